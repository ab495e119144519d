"""Graded exercises of the chapter *Adafactor*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("adafactor-step")
def adafactor_step() -> Iterable[Case]:
    """``f(theta, g, r, c, t, *, lr, eps1, eps2, d)``: the new theta, r and c; r and c are sums."""
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], size=(3, 5))
    theta, noise = signs * rng.uniform(0.9, 1.1, (3, 5)), rng.normal(size=(3, 5))
    theta = theta / np.sqrt(np.mean(theta**2))
    fresh = (np.zeros(3), np.zeros(5))
    yield _step(
        "step 1, weights of size one",
        (theta, 3 * signs, *fresh, 1),
        "Equal squares: the update is the sign, times the rate. Is 1 - t^-0.8 zero at t = 1?",
    )
    yield _step(
        "gradients of 1e-4",
        (theta, 1e-4 * noise, *fresh, 1),
        "A factor on the gradient changes nothing. What is compared with the root of V?",
    )
    yield _step(
        "a row without gradient",
        (theta, noise * [[1.0], [0.0], [1.0]], *fresh, 1),
        "Zero over zero? ε₁ is added to the squared gradient.",
    )
    yield _step(
        "weights of size 30",
        (30 * theta, noise, *fresh, 1),
        "The step is relative to the weights: times max(ε₂, RMS(θ)), of the old θ.",
    )
    yield _step(
        "weights that are zero",
        (0 * theta, noise, *fresh, 1),
        "ε₂ lets a tensor move away from zero.",
    )
    yield _step(
        "step 1000, gradients ten times as large as before",
        (theta, 10 * noise, *_margins(np.ones((3, 5))), 1000),
        "The update's RMS is divided by max(1, RMS/d). Root mean square, not the norm.",
    )
    yield _step(
        "step 1000, small updates are not stretched",
        (theta, 0.1 * noise, *_margins(np.ones((3, 5))), 1000, {"d": 2.0}),
        "Clipping divides by at least 1.",
    )
    yield _step(
        "step 40,000, uneven margins",
        (theta, noise, *_margins(rng.uniform(0.2, 3, (3, 5))), 40_000),
        "The relative step is min(lr, 1 / √t); V is r c over the total. Exchanged rows, columns?",
    )


def _margins(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return v.sum(1), v.sum(0)


def _step(label: str, state: tuple, hint: str) -> Case:
    *state, extra = state if isinstance(state[-1], dict) else (*state, {})
    options = {"lr": 1e-2, "eps1": 1e-30, "eps2": 1e-3, "d": 1.0, **extra}
    expected = _expected(*state, **options)
    # what is compared is the step, so the tolerance is relative to it
    moved = float(np.abs(expected[0] - state[0]).max() / max(np.abs(expected[0]).max(), 1e-300))
    return Case(label, tuple(state), expected, hint, options, tolerance=1e-7 * moved)


def _expected(theta, g, r, c, t, lr, eps1, eps2, d):
    """Algorithm 4 of the paper, one number at a time."""
    n, m = theta.shape
    keep = 1 - math.pow(t, -0.8)
    cells = [(i, j) for i in range(n) for j in range(m)]
    r = [
        keep * r[i] + (1 - keep) * math.fsum(g[i, j] ** 2 + eps1 for j in range(m))
        for i in range(n)
    ]
    c = [
        keep * c[j] + (1 - keep) * math.fsum(g[i, j] ** 2 + eps1 for i in range(n))
        for j in range(m)
    ]
    total = math.fsum(r)
    u = {(i, j): g[i, j] / math.sqrt(r[i] / total) / math.sqrt(c[j]) for i, j in cells}
    size = math.sqrt(math.fsum(x * x for x in u.values()) / (n * m))
    scale = max(eps2, math.sqrt(math.fsum(theta[cell] ** 2 for cell in cells) / (n * m)))
    step = scale * min(lr, math.pow(t, -0.5)) / max(1.0, size / d)
    new = np.empty((n, m))
    for cell in cells:
        new[cell] = theta[cell] - step * u[cell]
    return new, np.array(r), np.array(c)


@grader("adafactor-group")
def adafactor_group() -> Iterable[Case]:
    """``f(gs, epsilons)``: first updates of vectors in a group, each with its own floor."""
    half, single = 2.0**-7, 2.0**-23
    g = np.array([1e-4, -3e-4])
    own = "Each tensor has the floor of its own precision, whatever stands in front of it."
    for label, epsilons in (
        ("one tensor in float32", (single,)),
        ("two in bfloat16", (half, half)),
        ("float32 behind bfloat16", (half, single)),
        ("bfloat16 behind float32", (single, half)),
    ):
        gs = [g * (k + 1) for k in range(len(epsilons))]
        expected = tuple(
            np.array([x / max(abs(x), e) for x in row]) for row, e in zip(gs, epsilons, strict=True)
        )
        yield Case(label, (gs, list(epsilons)), expected, own)


@grader("adafactor-memory")
def adafactor_memory() -> Iterable[Case]:
    """``f(shape, smallest)``: how many numbers are kept for a tensor."""
    for label, shape, smallest, expected, hint in (
        ("a matrix", (512, 384), 128, 512 + 384, "n + m"),
        ("a vector", (512,), 0, 512, "Nothing to factor."),
        ("a number", (), 0, 1, "One number."),
        ("one side too short", (32, 4096), 128, 32 * 4096, "Both sides must be long enough."),
        ("exactly 128", (128, 128), 128, 256, "At least, not more than."),
        ("the largest axes are not the last", (256, 3, 200), 128, 3 * 456, "The two largest axes."),
        ("rank 4", (3, 5, 7, 2), 2, 3 * 2 * 12, "All other axes multiply."),
        ("a column", (100, 1), 0, 101, "With no smallest size even a column is factored."),
    ):
        yield Case(label, (shape, smallest), expected, hint)


@grader("adafactor-weights")
def adafactor_weights() -> Iterable[Case]:
    """``f(t, exponent)``: the weights of x_1 ... x_t."""
    for label, t, exponent, hint in (
        ("one step", 1, 0.8, "The first average is the first square."),
        ("two steps", 2, 0.8, "The newest has the weight 2^-0.8."),
        ("a plain mean", 50, 1.0, "All weights equal: is the product over later steps only?"),
        ("two hundred steps", 200, 0.8, "In which order are the weights?"),
        ("a short memory", 100, 0.3, "In which order are the weights?"),
    ):
        yield Case(label, (t, exponent), _weights(t, exponent), hint)


def _weights(t: int, exponent: float) -> np.ndarray:
    """By averaging the rows of the identity."""
    average = np.zeros(t)
    for k in range(1, t + 1):
        gamma = math.pow(k, -exponent)
        average = (1 - gamma) * average
        average[k - 1] += gamma
    return average


@grader("adafactor-adam")
def adafactor_adam() -> Iterable[Case]:
    """``f(beta2, t)``: the decay rate of Adam's corrected average."""
    steps = np.array([1, 2, 10, 1000])
    for label, beta2, t, hint in (
        ("step 1", 0.999, 1, "Nothing of the zero may be left: 0."),
        ("step 2", 0.999, 2, "A plain mean of two gives each one half, nearly."),
        ("step 10, β₂ = 0.95", 0.95, 10, "Divide Adam's recursion by 1 - β₂^t."),
        ("step 1,000,000", 0.99, 1_000_000, "In the end it is β₂."),
        ("an array of steps", 0.98, steps, "Use operations that take arrays."),
    ):
        expected = [_beta2(beta2, int(s)) for s in np.atleast_1d(t)]
        yield Case(label, (beta2, t), np.array(expected) if t is steps else expected[0], hint)


def _beta2(beta2: float, t: int) -> float:
    """From the weight of the newest square in the corrected average."""
    return 1 - (1 - beta2) / (1 - math.pow(beta2, t))


@grader("adafactor-surge")
def adafactor_surge() -> Iterable[Case]:
    """``f(kappa, t, limit)``: for how many steps an unclipped update is too long."""
    for label, arguments, hint in (
        ("tenfold at step 1000", (10.0, 1000, 1.1), "The decay rate goes on changing."),
        ("tenfold at step 100", (10.0, 100, 1.1), "The first step counts, the average included."),
        ("never too long", (1.05, 1000, 1.1), "Then the answer is 0."),
        ("gradients that shrink", (0.1, 1000, 1.1), "A small gradient makes a short update."),
        ("at step 1", (10.0, 1, 1.1), "At step 1 there is no memory to be out of date."),
        ("a limit of 5", (20.0, 5000, 5.0), "κ over the root of v."),
    ):
        yield Case(label, arguments, _surge(*arguments), hint)


def _surge(kappa: float, t: int, limit: float) -> int:
    """By the distance of v from its new value, which shrinks by a factor in each step."""
    gap, k = 1 - kappa**2, t
    while True:
        gap *= 1 - math.pow(k, -0.8)
        if kappa <= limit * math.sqrt(kappa**2 + gap):
            return k - t
        k += 1


@grader("adafactor-information")
def adafactor_information() -> Iterable[Case]:
    """``f(v)``: mutual information of row and column, in nats."""
    rng = np.random.default_rng(1)
    for label, v, hint in (
        (
            "nearly rank one",
            np.array([[1.0, 4, 9], [4, 16, 60]]),
            "Which logarithm, which margins?",
        ),
        (
            "the opening example",
            np.array([[1.0, 1, 4], [4, 9, 1]]),
            "Divide by the total. 0.2858 would be bits.",
        ),
        ("two blocks", np.kron(np.eye(2), np.ones((2, 3))), "log 2; cells that are zero cost 0."),
        ("a row of zeros", np.array([[1.0, 2.0], [0, 0], [3.0, 1.0]]), "0 log 0 is 0, not NaN."),
        ("squares of 1e-12", 1e-12 * rng.gamma(1.0, size=(4, 6)), "A factor does not matter."),
    ):
        yield Case(label, (v,), _information(v), hint, tolerance=1e-8)


def _information(v: np.ndarray) -> float:
    """H(row) + H(column) - H(both), the three entropies."""
    entropies = []
    for masses in (v.sum(1), v.sum(0), v.ravel()):
        p = [x / v.sum() for x in masses if x > 0]
        entropies.append(-math.fsum(x * math.log(x) for x in p))
    return max(0.0, entropies[0] + entropies[1] - entropies[2])
