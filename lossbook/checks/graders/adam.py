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
        (np.ones(1), *np.zeros((3, 1)), 1),
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
        (
            "step 1",
            (1e-4, 1e-6, 0.9, 0.999, 1),
            "Result 1 is the rate, 3.16 times as large; result 2 is ε, 31.6 times.",
        ),
        (
            "step 12",
            (0.1, 1e-3, 0.9, 0.999, 12),
            "Result 1 is 6.57 times as large, result 2 9.15 times.",
        ),
        (
            "β₂ = 0.95, step 1",
            (1.0, 0.5, 0.9, 0.95, 1),
            "Here result 1 becomes smaller, by 0.447. Result 2 always becomes larger.",
        ),
        (
            "no momentum",
            (0.1, 1e-6, 0.0, 0.999, 3),
            "1 − β₁ᵗ is 1 then, and both results have the same factor.",
        ),
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


@grader("nadam-step")
def nadam_step() -> Iterable[Case]:
    """``f(theta, g, m, v, t, *, lr, beta1, beta2, eps, psi)``: the new theta, m and v."""
    rng = np.random.default_rng(2)
    one, empty = np.array([1.0, 1.0]), np.zeros(2)
    yield _nadam(
        "step 1, ε = 0",
        (one, np.array([300.0, -0.02]), empty, empty, 1),
        "Step 1 needs μ₁ and μ₂: is the second product one factor longer than the first?",
        eps=0.0,
    )
    yield _nadam(
        "constant gradient, step 4, ψ = 1",
        (np.ones(1), *_history(np.array([-0.5]), 4)),
        "1 − μ₁⋯μ_t below g, 1 − μ₁⋯μ_{t+1} below m. Does a μ count twice?",
        psi=1.0,
    )
    yield _nadam(
        "a silent step",
        (one, np.zeros(2), np.array([1.0, -2.0]), np.array([1.0, 4.0]), 400),
        "The term of m belongs to the next step: μ_{t+1}, and the new m.",
        psi=0.1,
    )
    yield _nadam(
        "an infinite ψ",
        (one, *_history(np.array([3.0, -1.0]), 3)),
        "Then every μ is β₁: 0.96 to an infinite power is 0.",
        psi=math.inf,
    )
    state = rng.normal(size=(3, 1, 2))
    yield _nadam(
        "rank 2, other betas, large ε",
        (state[0], state[1], state[2], state[1] ** 2 + 0.3, 60),
        "m decays by β₁, not by μ; ε stands outside the root.",
        beta1=0.7,
        beta2=0.95,
        eps=0.3,
    )
    yield _nadam(
        "step 3000, no product left",
        (one, *_history(np.array([3.0, -1.0]), 3000)),
        "A sign, or the learning rate?",
    )


def _nadam(label: str, state: tuple, hint: str, **options: float) -> Case:
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "psi": 0.004, **options}
    return Case(label, state, _nadam_expected(*state, **options), hint, options, tolerance=1e-7)


def _nadam_expected(theta, g, m, v, t, lr, beta1, beta2, eps, psi):
    """One number at a time, and the product of momenta by a loop."""
    product, mu = 1.0, [beta1 * (1 - 0.5 * math.pow(0.96, s * psi)) for s in range(1, t + 2)]
    for factor in mu[:-1]:
        product *= factor
    new = [np.empty(theta.shape) for _ in range(3)]
    for i in np.ndindex(theta.shape):
        first = beta1 * m[i] + (1 - beta1) * g[i]
        second = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
        ahead = (1 - mu[-2]) * g[i] / (1 - product) + mu[-1] * first / (1 - product * mu[-1])
        move = lr * ahead / (math.sqrt(second / (1 - math.pow(beta2, t))) + eps)
        for array, value in zip(new, (theta[i] - move, first, second), strict=True):
            array[i] = value
    return tuple(new)


@grader("radam-step")
def radam_step() -> Iterable[Case]:
    """``f(theta, g, m, v, t, *, lr, beta1, beta2, eps)``: the new theta, m and v."""
    one, rng = np.array([1.0, 1.0]), np.random.default_rng(4)
    steady = np.array([3.0, -1.0])
    yield _radam(
        "step 5: not rectified yet",
        (one, *_history(steady, 5)),
        "ρ₅ is just below 5: the step is η m̂, downhill, with nothing below it.",
    )
    yield _radam(
        "step 6: rectified",
        (one, *_history(steady, 6)),
        "ρ₆ is just above 5: Adam's step times the rectifier. Is the second moment corrected?",
    )
    yield _radam(
        "step 6 again, at another rate",
        (one, *_history(steady, 6)),
        "The same step with another learning rate: is something kept from the last call?",
        lr=0.001,
    )
    yield _radam(
        "step 6 once more, other betas",
        (one, *_history(steady, 6)),
        "Are the betas written as numbers, or kept from the last call?",
        beta1=0.5,
        beta2=0.9,
    )
    yield _radam(
        "step 1, gradient exactly zero",
        (one, np.array([0.0, 1.0]), np.zeros(2), np.zeros(2), 1),
        "Nothing is divided in the first five steps.",
    )
    state = rng.normal(size=(3, 1, 2))
    yield _radam(
        "rank 2, large ε",
        (state[0], state[1], state[2], state[1] ** 2 + 0.3, 40),
        "ε stands beside √v, in front of the correction.",
        eps=0.3,
    )


def _radam(label: str, state: tuple, hint: str, **options: float) -> Case:
    options = {"lr": 0.1, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, **options}
    return Case(label, state, _radam_expected(*state, **options), hint, options, tolerance=1e-7)


def _radam_expected(theta, g, m, v, t, lr, beta1, beta2, eps):
    """rho as one plus twice the mean age, r as a ratio of two spreads."""
    weights = [math.pow(beta2, k) for k in range(t)]
    age = math.fsum(k * w for k, w in enumerate(weights)) / math.fsum(weights)
    rho, last = 1 + 2 * age, (1 + beta2) / (1 - beta2)
    new = [np.empty(theta.shape) for _ in range(3)]
    for i in np.ndindex(theta.shape):
        first = beta1 * m[i] + (1 - beta1) * g[i]
        second = beta2 * v[i] + (1 - beta2) * g[i] * g[i]
        move = lr * first / (1 - math.pow(beta1, t))
        if rho > 5:
            spread = [math.sqrt(n / ((n - 2) * (n - 4))) for n in (last, rho)]
            move *= spread[0] / spread[1] * math.sqrt(1 - math.pow(beta2, t))
            move /= math.sqrt(second) + eps
        for array, value in zip(new, (theta[i] - move, first, second), strict=True):
            array[i] = value
    return tuple(new)


@grader("nadam-psi")
def nadam_psi() -> Iterable[Case]:
    """``f(a)``: the momentum_decay with which 0.96^(t psi) is a^t."""
    for label, a, hint in (
        ("Keras", 0.96, "Keras's base is 0.96 itself: ψ is 1."),
        ("a fast schedule", 0.5, "Powers multiply exponents: which way round is the quotient?"),
        ("torch's default", 0.96**0.004, "This must come out as 0.004, without a sign."),
        ("a momentum that never rises", 1.0, "The momentum stays at β₁/2: ψ is 0."),
        ("nearly constant", 1e-30, "A large ψ: the step t does not belong in it."),
    ):
        yield Case(label, (a,), _psi(a), hint)


def _psi(a: float) -> float:
    """By bisection of 0.96^psi = a."""
    if a == 1:
        return 0.0
    low, high = 0.0, 1e5
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.pow(0.96, middle) > a else (low, middle)
    return (low + high) / 2
