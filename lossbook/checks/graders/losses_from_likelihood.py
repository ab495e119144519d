"""Graded exercises of the chapter *Losses from likelihood*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("squared-error")
def squared_error() -> Iterable[Case]:
    """``f(prediction, target)``: the mean square of the differences of paired elements."""
    rng = np.random.default_rng(0)
    pairs = {
        "a batch of one": rng.normal(size=(2, 1)),
        "all targets equal": np.stack([rng.normal(size=4), np.full(4, 0.5)]),
        "four different targets": rng.normal(size=(2, 4)),
        "numbers near a million": 1e6 + rng.normal(size=(2, 5)),
    }
    for label, (prediction, target) in pairs.items():
        expected = math.fsum((p - t) ** 2 for p, t in zip(prediction, target, strict=True))
        hint = "Every prediction paired with every target? Compare the shape of the difference."
        yield Case(label, (prediction, target), expected / len(target), hint, tolerance=1e-8)


@grader("huber-location")
def huber_location() -> Iterable[Case]:
    """``f(data, delta)``: the minimiser of the sum of Huber losses."""
    yield Case("the opening example", ([1.0, 2.0, 6.0], 2.0), 2.5)
    yield Case(
        "a huge delta is least squares", ([0.0, 1.0, 7.0], 1e6), 8 / 3, "Is the middle clipped?"
    )
    yield Case(
        "a small delta is the median",
        ([5.0, -3.0, 0.25], 1e-3),
        0.25,
        "The data need not be sorted.",
        tolerance=1e-2,
    )
    yield Case("negative numbers", ([-6.0, -2.0, -1.0], 2.0), -2.5, "A sign lost?")
    yield Case(
        "an interval of minima", ([0.0, 10.0], 1.0), 5.0, "Return the middle of the interval."
    )
    yield Case("one observation", ([3.0], 0.5), 3.0)


@grader("gaussian-nll")
def gaussian_nll() -> Iterable[Case]:
    """``f(prediction, log_sigma, target, observed)``: value and two gradients."""
    rng = np.random.default_rng(1)
    everything = np.ones((3, 2))
    some = np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    nothing = np.zeros((3, 2))
    for label, observed, hint in (
        ("everything observed", everything, "The constant ½ log 2π, or log σ, left out?"),
        ("half missing, one row empty", some, "A denominator that counts missing elements?"),
        ("nothing observed", nothing, "An empty mean is 0, with a gradient of 0."),
    ):
        prediction, log_sigma, target = rng.normal(size=(3, 3, 2))
        log_sigma = log_sigma * 2
        yield Case(
            label,
            (prediction, log_sigma, target, observed),
            _gaussian_nll(prediction, log_sigma, target, observed),
            hint,
        )


def _gaussian_nll(prediction, log_sigma, target, observed):
    total, by_prediction, by_scale = 0.0, np.zeros(target.shape), np.zeros(target.shape)
    count = max(sum(observed.ravel()), 1)
    for i in np.ndindex(target.shape):
        if observed[i]:
            sigma, r = math.exp(log_sigma[i]), prediction[i] - target[i]
            total += (r / sigma) ** 2 / 2 + math.log(sigma * math.sqrt(2 * math.pi))
            by_prediction[i] = r / sigma**2 / count
            by_scale[i] = (1 - (r / sigma) ** 2) / count
    return total / count, by_prediction, by_scale


@grader("huber-efficiency")
def huber_efficiency() -> Iterable[Case]:
    """``f(delta)``: variance of the mean over the variance of Huber's estimate."""
    grid = np.linspace(-12, 12, 2_400_001)
    weights = np.exp(-(grid**2) / 2)
    weights /= weights.sum()
    for label, delta in (
        ("δ = 1.345, known from robust statistics", 1.345),
        ("δ = 3, hardly any clipping", 3.0),
        ("δ = 0.1, nearly the median", 0.1),
    ):
        slope = (weights * (np.abs(grid) <= delta)).sum()
        spread = (weights * np.clip(grid, -delta, delta) ** 2).sum()
        yield Case(
            label,
            (delta,),
            slope**2 / spread,
            "As δ → 0 the efficiency tends to 2/π = 0.637, as δ → ∞ to 1.",
            tolerance=1e-4,
        )
