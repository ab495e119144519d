"""Graded exercises of the chapter *Adaptive methods*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("rmsprop-run")
def rmsprop_run() -> Iterable[Case]:
    """``f(gradients, rates, *, rho, mu, eps)``: theta after 0, 1, 2, ... steps from 0, torch's."""
    rng = np.random.default_rng(0)
    steady, constant = np.full((12, 1), 0.02), np.full(12, 0.1)
    yield _run(
        "the first steps of a steady gradient",
        steady,
        constant,
        "The average starts at 0, not at 1, and nothing is corrected: step 1 is η/√(1-ρ).",
    )
    yield _run(
        "gradients of the size of ε",
        1e-3 * rng.normal(size=(8, 3)),
        constant[:8],
        "ε stands outside the root, and is not squared.",
        eps=1e-3,
    )
    yield _run(
        "the rate falls to a tenth, momentum 0.9",
        np.ones((12, 2)),
        np.repeat([0.1, 0.01], 6),
        "The rate multiplies the buffer: old gradients feel the new rate.",
        mu=0.9,
    )
    yield _run(
        "gradients exactly zero, then one",
        np.repeat([[0.0], [0.0], [1.0]], 4, axis=1),
        constant[:3],
        "Zero over zero? ε belongs into the denominator.",
    )
    yield _run(
        "rank 2, gradients that change their size",
        rng.normal(size=(9, 3, 1)) * np.geomspace(1e-3, 10, 9)[:, None, None],
        0.1 * rng.uniform(0.2, 1, size=9),
        "The new gradient enters the average before it is divided by it; ρ is not a constant.",
        rho=0.7,
        mu=0.5,
    )


def _run(label: str, gradients: np.ndarray, rates: np.ndarray, hint: str, **options) -> Case:
    options = {"rho": 0.99, "mu": 0.0, "eps": 1e-20, **options}
    expected = _path(gradients, rates, **options)
    return Case(label, (gradients, rates), expected, hint, options, tolerance=1e-9)


def _path(gradients, rates, rho, mu, eps):
    """Torch's form, one number at a time."""
    path = np.zeros((len(gradients) + 1, *gradients.shape[1:]))
    for i in np.ndindex(gradients.shape[1:]):
        theta = v = b = 0.0
        for t, lr in enumerate(rates):
            g = float(gradients[(t, *i)])
            v = rho * v + (1 - rho) * g * g
            b = mu * b + g / (math.sqrt(v) + eps)
            theta -= float(lr) * b
            path[(t + 1, *i)] = theta
    return path


@grader("half-life")
def half_life() -> Iterable[Case]:
    """``f(rho)``: after how many steps the weight of a gradient has halved."""
    long = "A decay rate near 1 remembers long."
    for label, rho, expected, hint in (
        ("ρ = ½", 0.5, 1.0, "A weight that is multiplied by ½ halves in one step."),
        ("ρ = ¼", 0.25, 0.5, "The answer may be a fraction of a step."),
        ("ρ = 0.9", 0.9, math.log(2) / math.log(1 / 0.9), long),
        ("ρ = 0.999", 0.999, math.log(2) / math.log(1 / 0.999), long),
    ):
        yield Case(label, (rho,), expected, hint)


@grader("centred-root")
def centred_root() -> Iterable[Case]:
    """``f(v, m, eps)``: denominator of the centred form, in the precision of v and m."""
    v, m = _steady_averages()
    exact = np.sqrt(np.maximum(v.astype(float) - m.astype(float) ** 2, 0.0))
    yield Case(
        "two averages of normal size",
        (np.array([2.0, 5.0]), np.array([1.0, -2.0]), 0.5),
        np.array([1.5, 1.5]),
        "The root of v - m², then ε.",
    )
    yield Case(
        "the same gradient 200 times, in float32",
        (v, m, 1e-2),
        exact + 1e-2,
        "Rounding makes v - m² negative; a variance is never below 0.",
        tolerance=0.15,
    )
    yield Case(
        "no gradient so far",
        (np.zeros(2, np.float32), np.zeros(2, np.float32), 1e-8),
        np.full(2, 1e-8),
        "ε is what remains.",
        tolerance=1e-6,
    )


def _steady_averages(steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    g = np.linspace(0.1, 1, 64, dtype=np.float32)
    v, m = np.zeros_like(g), np.zeros_like(g)
    rho = np.float32(0.9)
    for _ in range(steps):
        v = rho * v + (1 - rho) * g * g
        m = rho * m + (1 - rho) * g
    return v, m


@grader("port-eps")
def port_eps() -> Iterable[Case]:
    """``f(x, eps)``: the constant outside the root that makes the step of ``eps`` inside it."""
    digits = "The difference of two nearly equal numbers? Multiply by the sum of both over itself."
    for label, x, eps, hint in (
        ("no gradients", 0.0, 0.01, "The root of ε is all there is."),
        ("gradients of size ε", 0.01, 0.01, "x + ε' must be √(x² + ε)."),
        ("gradients of size 1, Inception's ε", 1.0, 1.0, "x is not squared outside."),
        ("large gradients, small ε", 1.0, 1e-18, digits),
        ("tiny gradients", 1e-9, 1e-10, "x is a root mean square, not a mean square."),
    ):
        yield Case(label, (x, eps), eps / (math.hypot(x, math.sqrt(eps)) + x), hint)


@grader("hidden-warm-up")
def hidden_warm_up() -> Iterable[Case]:
    """``f(g, rho, start, tolerance)``: the step from which on steps have their final length."""
    for label, arguments, hint in (
        ("TensorFlow's start, gradients of 0.001", (1e-3, 0.9, 1.0, 0.05), "ρ^t against g²."),
        ("a longer memory", (1e-3, 0.99, 1.0, 0.05), "The memory sets the pace."),
        ("a negative gradient", (-0.1, 0.9, 1.0, 0.1), "Only the size of g matters."),
        ("a start at 0", (0.3, 0.99, 0.0, 0.05), "From 0 the steps are too long at first."),
        ("a start that is right", (2.0, 0.9, 4.0, 0.01), "Then it is the first step."),
        ("gradients above the start", (30.0, 0.95, 1.0, 0.02), "Too long here, not too short."),
    ):
        yield Case(label, arguments, _warm_up(*arguments), hint)


def _warm_up(g: float, rho: float, start: float, tolerance: float) -> int:
    """By running the average for 10,000 steps."""
    v, last = start, 0
    for t in range(1, 10_001):
        v = rho * v + (1 - rho) * g * g
        if abs(abs(g) / math.sqrt(v) - 1) >= tolerance:
            last = t
    return last + 1


@grader("adagrad-from-rmsprop")
def adagrad_from_rmsprop() -> Iterable[Case]:
    """``f(lr, eps, t)``: rate, decay rate and epsilon that make RMSProp's step t AdaGrad's."""
    halves = (
        "The mean of two squares gives both the weight ½; "
        "√v is √(G/t), so rate and ε both need 1/√t."
    )
    for label, arguments, hint in (
        ("step 1", (0.1, 1e-3, 1), "At step 1 nothing is left of the start: ρ = 0."),
        ("step 2", (0.1, 1e-3, 2), halves),
        ("step 10", (1.0, 0.5, 10), "v is G/t: the rate needs a root of t, and ε one too."),
        ("step 1,000,000", (0.01, 1e-10, 10**6), "The rate falls like 1/√t."),
    ):
        lr, eps, t = arguments
        root = math.sqrt(t)
        yield Case(label, arguments, (lr / root, (t - 1) / t, eps / root), hint)


@grader("one-rate-or-many")
def one_rate_or_many() -> Iterable[Case]:
    """``f(sums, width)``: bound with the best single rate in hindsight, and AdaGrad's."""
    zipf = 1e6 / np.arange(1, 1001)
    four = "One rate: √(d ΣG). Many: the sum of roots, each of one sum."
    for label, sums, width, hint in (
        ("one coordinate", np.array([9.0]), 1.0, "AdaGrad loses a factor √2 here."),
        ("four equal coordinates", np.full(4, 25.0), 2.0, four),
        ("words by Zipf's law", zipf, 1.0, "One rate serves d coordinates: √(d ΣG)."),
        ("a coordinate without gradients", np.array([4.0, 0.0]), 3.0, "It counts in d."),
    ):
        one = width * math.sqrt(len(sums) * math.fsum(sums))
        many = math.sqrt(2) * width * math.fsum(math.sqrt(x) for x in sums)
        yield Case(label, (sums, width), (one, many), hint)


@grader("adadelta-way")
def adadelta_way() -> Iterable[Case]:
    """``f(n, rho, eps)``: way after n steps of a steady gradient far above the root of eps."""
    for label, arguments, hint in (
        ("one step", (1, 0.9, 1e-6), "The first step is √(ε/(1-ρ))."),
        ("two steps", (2, 0.9, 1e-6), "The first step enters u with the weight 1-ρ."),
        ("214 steps", (214, 0.9, 1e-6), "The average of squares grows towards g² meanwhile."),
        ("a longer memory", (50, 0.99, 1e-6), "Is ρ written as a number?"),
        ("Keras's ε", (100, 0.95, 1e-7), "ε under the numerator's root, and not under the other."),
    ):
        yield Case(label, arguments, _way(*arguments), hint)


def _way(n: int, rho: float, eps: float) -> float:
    """By running AdaDelta, on a gradient that is large enough to drown eps."""
    v = u = 0.0
    steps, square = [], 1e20
    for _ in range(n):
        v = rho * v + (1 - rho) * square
        steps.append(math.sqrt((u + eps) / (v + eps) * square))
        u = rho * u + (1 - rho) * steps[-1] ** 2
    return math.fsum(steps)
