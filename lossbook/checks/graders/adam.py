"""Graded exercises of the chapter *Adam*."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("adam-step")
def adam_step() -> Iterable[Case]:
    """``f(theta, g, m, v, t, *, lr, beta1, beta2, eps)``: the new theta, m and v."""
    rng = np.random.default_rng(0)
    one, empty = np.array([1.0, 1.0]), np.zeros(2)
    yield _step(
        "step 1, ε = 0",
        (one, np.array([300.0, -0.02]), empty, empty, 1),
        "The first step is η times the sign. A hat missing, or too many?",
        eps=0.0,
    )
    yield _step(
        "constant gradient, step 12",
        (np.ones(1), *_history(np.array([-0.5]), 12)),
        "It moves by η in every step. Are both averages corrected?",
    )
    yield _step(
        "gradient exactly zero",
        (one, np.array([0.0, 1.0]), empty, empty, 1),
        "Zero over zero? ε belongs into the denominator, beside the root.",
    )
    yield _step(
        "gradient of the size of ε",
        (np.ones(1), *_history(np.array([5e-4]), 3)),
        "ε stands outside the root, behind the correction.",
        eps=1e-3,
    )
    state = rng.normal(size=(3, 1, 2))
    yield _step(
        "rank 2, other betas",
        (state[0], state[1], state[2], state[1] ** 2 + 0.3, 5),
        "Are β₁ and β₂ in each other's place, or written as numbers?",
        beta1=0.7,
        beta2=0.95,
    )
    yield _step(
        "step 100,000, nothing left to correct",
        (one, *_history(np.array([3.0, -1.0]), 100_000)),
        "A sign, or the learning rate?",
    )


def _history(g: np.ndarray, t: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """The gradient of step t and the averages before it, all gradients so far having been g."""
    return g, g * (1 - 0.9 ** (t - 1)), g**2 * (1 - 0.999 ** (t - 1)), t


def _step(label: str, state: tuple, hint: str, **options: float) -> Case:
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **options}
    return Case(label, state, _expected(*state, **options), hint, options, tolerance=1e-7)


def _expected(theta, g, m, v, t, lr, beta1, beta2, eps):
    """Algorithm 1, one number at a time."""
    new = [np.empty(theta.shape) for _ in range(3)]
    for i in np.ndindex(theta.shape):
        first = beta1 * m[i] + (1 - beta1) * g[i]
        second = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
        size = math.sqrt(second / (1 - math.pow(beta2, t))) + eps
        move = lr * first / (1 - math.pow(beta1, t)) / size
        for array, value in zip(new, (theta[i] - move, first, second), strict=True):
            array[i] = value
    return tuple(new)


@grader("correction-settles")
def correction_settles() -> Iterable[Case]:
    """``f(beta1, beta2, tolerance)``: from which step on the correction changes less than that."""
    for label, arguments, hint in (
        ("the default betas, 5 %", (0.9, 0.999, 0.05), "Start to count at step 1."),
        (
            "β₂ = 0.95: 1 is crossed on the way up",
            (0.9, 0.95, 0.05),
            "The ratio passes through 1 and comes back: it must stay within the tolerance.",
        ),
        (
            "equal betas: the ratio stays below 1",
            (0.9, 0.9, 0.3),
            "The distance from 1 has two sides.",
        ),
        ("no momentum", (0.0, 0.999, 0.05), "β₁ = 0: the numerator is 1 from the first step."),
        ("a tolerance of 1e-4", (0.9, 0.98, 1e-4), "Was the search stopped too early?"),
        ("never off by so much", (0.9, 0.95, 0.6), "Then it is the first step."),
    ):
        yield Case(label, arguments, _settles(*arguments), hint)


def _settles(beta1: float, beta2: float, tolerance: float) -> int:
    """By running both averages on a gradient of 1, for 20,000 steps."""
    m, v, last = 0.0, 0.0, 0
    for t in range(1, 20_001):
        m, v = beta1 * m + (1 - beta1), beta2 * v + (1 - beta2)
        if abs(m / math.sqrt(v) - 1) >= tolerance:
            last = t
    return last + 1


@grader("eps-schedule")
def eps_schedule() -> Iterable[Case]:
    """``f(eps_hat, beta2, t)``: the constant of Algorithm 1 that makes the same step."""
    root = "A root missing, or multiplied where a division belongs? The answer is above ε̂."
    steps = np.array([1, 2, 10, 1000])
    for label, eps_hat, beta2, t, hint in (
        ("step 1", 1e-8, 0.999, 1, root),
        ("step 10, β₂ = 0.95", 1e-3, 0.95, 10, root),
        ("step 1,000,000", 1e-6, 0.999, 1_000_000, "In the end the two are the same."),
        ("an array of steps", 1e-7, 0.98, steps, "Use a root that takes arrays."),
    ):
        expected = [eps_hat / math.sqrt(1 - math.pow(beta2, int(s))) for s in np.atleast_1d(t)]
        answer = np.array(expected) if isinstance(t, np.ndarray) else expected[0]
        yield Case(label, (eps_hat, beta2, t), answer, hint)


@grader("bert-from-adam")
def bert_from_adam() -> Iterable[Case]:
    """``f(lr, eps, beta1, beta2, t)``: learning rate and epsilon of a corrected Adam."""
    for label, arguments, hint in (
        ("step 1", (1e-4, 1e-6, 0.9, 0.999, 1), "At step 1 the rate is 3.16 times as large."),
        ("step 12", (0.1, 1e-3, 0.9, 0.999, 12), "ε has to be converted as well."),
        ("β₂ = 0.95, step 1", (1.0, 0.5, 0.9, 0.95, 1), "Here the rate becomes smaller."),
        ("no momentum", (0.1, 1e-6, 0.0, 0.999, 3), "The numerator is 1 then."),
        ("step 1,000,000", (0.1, 1e-6, 0.9, 0.999, 10**6), "Nothing is left to convert."),
    ):
        lr, eps, beta1, beta2, t = arguments
        second = 1 - math.pow(beta2, t)
        rate = lr * (1 - math.pow(beta1, t)) * second**-0.5
        yield Case(label, arguments, (rate, eps * second**-0.5), hint)


@grader("rare-word")
def rare_word() -> Iterable[Case]:
    """``f(n, beta1, beta2)``: way after n steps, in learning rates, from one gradient."""
    for label, arguments, hint in (
        ("the step of the gradient alone", (1, 0.9, 0.999), "The first step counts."),
        ("ten steps", (10, 0.9, 0.999), "v fades too, and its root by √β₂ in each step."),
        ("ten thousand steps", (10_000, 0.9, 0.999), "The way has a limit."),
        ("no momentum", (50, 0.0, 0.999), "Without m nothing moves after the first step."),
        ("β₁ = √β₂", (7, 0.5, 0.25), "All steps are equal: a geometric sum with the ratio 1."),
        ("β₁ > √β₂", (20, 0.9, 0.5), "Here the steps grow."),
    ):
        yield Case(label, arguments, _way(*arguments), hint)


def _way(n: int, beta1: float, beta2: float) -> float:
    """By running the averages, for a gradient that is small enough for long runs."""
    m, v, steps = 0.0, 0.0, []
    for g in _one_then_silence(n):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        steps.append(m / math.sqrt(v) if m else 0.0)
    return math.fsum(steps)


def _one_then_silence(n: int) -> Sequence[float]:
    return [1.0] + [0.0] * (n - 1)
