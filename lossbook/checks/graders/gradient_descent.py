"""Graded exercises of the chapter *Gradient descent*."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("momentum-step")
def momentum_step() -> Iterable[Case]:
    """``f(theta, g, b, t, *, lr, momentum, dampening, nesterov)``: the new theta and b."""
    rng = np.random.default_rng(0)
    theta, g, b = rng.normal(size=(3, 2))
    zero = np.zeros(2)
    yield _step("no momentum", (theta, g, zero, 1), "The new theta is theta minus lr times g.")
    yield _step(
        "step 7, with momentum",
        (theta, g, b, 7),
        "The buffer holds gradients: does the learning rate multiply what comes out of it?",
        momentum=0.9,
    )
    yield _step(
        "step 1, dampened",
        (theta, g, zero, 1),
        "torch does not dampen the first gradient.",
        momentum=0.9,
        dampening=0.9,
    )
    yield _step(
        "step 2, dampened",
        (theta, g, b, 2),
        "From step 2 on the gradient enters the buffer with the factor 1 - dampening.",
        momentum=0.8,
        dampening=0.3,
    )
    yield _step(
        "step 5, Nesterov, a matrix",
        (*rng.normal(size=(3, 3, 4)), 5),
        "The step is lr times (g + momentum times the new buffer). A sign, or the old buffer?",
        momentum=0.9,
        nesterov=True,
    )


def _step(label: str, state: tuple, hint: str, **options: object) -> Case:
    options = {"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False, **options}
    return Case(label, state, _moved(*state, **options), hint, options)


def _moved(theta, g, b, t, lr, momentum, dampening, nesterov):
    """torch's conventions, one number at a time."""
    new = [np.empty(theta.shape) for _ in range(2)]
    for i in np.ndindex(theta.shape):
        kept = 1.0 if t == 1 else 1.0 - dampening
        push = math.fsum((momentum * b[i], kept * g[i]))
        move = math.fsum((g[i], momentum * push)) if nesterov else push
        new[0][i], new[1][i] = theta[i] - lr * move, push
    return tuple(new)


class Bowl:
    """The gradient of half x' A x; counts nothing, changes nothing."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.matrix @ x


@grader("nesterov-step")
def nesterov_step() -> Iterable[Case]:
    """``f(gradient, theta, v, *, lr, momentum)``: the new theta and v, Sutskever's form."""
    theta, v = np.array([1.0, -2.0]), np.array([0.3, -0.7])
    bowl = Bowl(np.array([[10.0, 1.0], [1.0, 2.0]]))
    for label, state, momentum, hint in (
        ("the first step", (theta, np.zeros(2)), 0.9, "Without velocity this is a gradient step."),
        ("no momentum", (theta, v), 0.0, "Without momentum the old velocity does not matter."),
        (
            "on the way",
            (theta, v),
            0.9,
            "The gradient belongs to theta + momentum v, and the step starts at theta.",
        ),
        ("at the minimum, moving", (np.zeros(2), v), 0.5, "Ahead of the minimum it points back."),
    ):
        options = {"lr": 0.05, "momentum": momentum}
        expected = _looked_ahead(bowl.matrix, *state, **options)
        yield Case(label, (bowl, *state), expected, hint, options)


def _looked_ahead(matrix, theta, v, lr, momentum):
    """With the gradient written out as a sum."""
    n = len(theta)
    ahead = [theta[i] + momentum * v[i] for i in range(n)]
    pull = [math.fsum(matrix[i, j] * ahead[j] for j in range(n)) for i in range(n)]
    new = [momentum * v[i] - lr * pull[i] for i in range(n)]
    return np.array([theta[i] + new[i] for i in range(n)]), np.array(new)


@grader("gradient-rates")
def gradient_rates() -> Iterable[Case]:
    """``f(curvatures)``: limit of stability, best rate, factor of the loss at the best rate."""
    for label, curvatures, hint in (
        ("the opening's bowl", [10.0, 1.0], "The loss is quadratic in the error: square it."),
        ("in no order", [3.0, 0.5, 40.0, 7.0], "The ends count, wherever they stand."),
        ("a single curvature", [4.0], "One step suffices: the factor is 0."),
        ("all equal", [0.2, 0.2, 0.2], "A round bowl: the factor is 0."),
        ("a condition number of a million", [1e-3, 1e3, 1.0], "The factor is just below 1."),
    ):
        yield Case(label, (np.array(curvatures),), _rates(sorted(curvatures)), hint)


def _rates(curvatures: list[float]) -> tuple[float, float, float]:
    """The best rate by halving: where the flat and the steep direction shrink alike."""
    low, high = 0.0, 2 / curvatures[-1]
    for _ in range(200):
        middle = (low + high) / 2
        flat, steep = abs(1 - middle * curvatures[0]), middle * curvatures[-1] - 1
        low, high = (middle, high) if flat > steep else (low, middle)
    return 2 / curvatures[-1], middle, (1 - middle * curvatures[0]) ** 2


@grader("nesterov-radius")
def nesterov_radius() -> Iterable[Case]:
    """``f(lr, momentum, curvature)``: larger size of an eigenvalue of the companion matrix."""
    for label, arguments, hint in (
        ("complex roots", (0.1, 0.9, 5.0), "Complex roots have the size of the root of μ(1 − ηλ)."),
        ("real roots", (0.01, 0.2, 1.0), "Real roots: the larger absolute value of the two."),
        ("no momentum", (0.1, 0.0, 3.0), "Without momentum it is |1 − ηλ|."),
        ("a step to the bottom", (0.25, 0.9, 4.0), "With ηλ = 1 everything is forgotten."),
        ("beyond the bottom", (0.3, 0.8, 4.0), "1 − ηλ < 0: one root is negative."),
        ("diverging", (1.0, 0.9, 2.0), "A radius above 1 is an answer, too."),
        ("no slope", (0.1, 0.7, 0.0), "On a plain one root is 1."),
    ):
        lr, momentum, curvature = arguments
        a = 1 - lr * curvature
        companion = np.array([[(1 + momentum) * a, -momentum * a], [1.0, 0.0]])
        expected = np.abs(np.linalg.eigvals(companion)).max()
        yield Case(label, arguments, float(expected), hint, tolerance=1e-7)


@grader("torch-momenta")
def torch_momenta() -> Iterable[Case]:
    """``f(rates, momentum)``: momentum of every step, rate outside for rate inside."""
    rng = np.random.default_rng(1)
    for label, rates, momentum, hint in (
        ("a constant rate", np.full(5, 0.1), 0.9, "Nothing is to be converted."),
        ("a cut by ten", np.array([1.0, 1.0, 0.1, 0.1]), 0.9, "Upside down? The ball coasts on."),
        ("a warm-up from zero", np.array([0.0, 0.1, 0.2, 0.3]), 0.9, "0 over 0.1 is 0."),
        ("any rates", rng.uniform(0.1, 1, size=9), 0.5, "The ratio of neighbours, old over new."),
        ("a single step", np.array([0.3]), 0.9, "The first entry is the momentum."),
        ("a list", [0.1, 0.2, 0.4], 0.8, "Rates may come as a list."),
    ):
        expected = [momentum]
        for before, now in pairwise(rates):
            expected.append(momentum * before / now)
        yield Case(label, (rates, momentum), np.array(expected), hint)


@grader("ball-variance")
def ball_variance() -> Iterable[Case]:
    """``f(lr, momentum, curvature, noise)``: variance of the error far from the start."""
    neighbours = (
        "The plain floor at the effective rate agrees only for small ηλ: "
        "is the covariance of neighbours in it?"
    )
    for label, arguments, hint in (
        ("no momentum", (0.1, 0.0, 2.0, 3.0), "Without momentum it is the floor of the text."),
        ("swinging", (0.1, 0.9, 1.5, 1.0), neighbours),
        ("overdamped", (0.01, 0.3, 1.0, 1.0), "The same formula for real roots."),
        ("near the limit", (1.89, 0.9, 2.0, 1.0), "Is the limit 2(1 + μ)?"),
        ("much noise", (0.05, 0.5, 10.0, 400.0), "noise is a variance: it enters once."),
    ):
        yield Case(label, arguments, _variance(*arguments), hint, tolerance=1e-8)


def _variance(lr: float, momentum: float, curvature: float, noise: float) -> float:
    """The stationary covariance S = M S M' + N of the companion matrix, as linear equations."""
    companion = np.array([[1 + momentum - lr * curvature, -momentum], [1.0, 0.0]])
    source = np.array([lr**2 * noise, 0.0, 0.0, 0.0])
    return float(np.linalg.solve(np.eye(4) - np.kron(companion, companion), source)[0])
