"""Graded exercises of the chapter *Cross-entropy*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


def _log_z(row: np.ndarray) -> float:
    top = max(row)
    return top + math.log(math.fsum(math.exp(z - top) for z in row))


def _mean(logits: np.ndarray, labels: np.ndarray) -> float:
    places = [i for i in np.ndindex(labels.shape) if labels[i] != -100]
    total = math.fsum(_log_z(logits[i]) - logits[i][labels[i]] for i in places)
    return total / max(len(places), 1)


def _gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    gradient = np.zeros(logits.shape)
    count = max(int((labels != -100).sum()), 1)
    for i in np.ndindex(labels.shape):
        if labels[i] != -100:
            for k, z in enumerate(logits[i]):
                gradient[i][k] = (math.exp(z - _log_z(logits[i])) - (k == labels[i])) / count
    return gradient


def _texts(seed: int, shape: tuple[int, int, int] = (2, 3, 5)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * 2, rng.integers(0, shape[-1], shape[:2])


@grader("cross-entropy")
def cross_entropy() -> Iterable[Case]:
    """``f(logits [B, T, V], labels [B, T])``: mean over the targets, and its gradient."""
    logits, labels = _texts(0)
    some = labels.copy()
    some[0] = -100
    some[1, 1] = -100
    forbidden = logits.copy()
    forbidden[..., 4] = -np.inf
    low = np.minimum(labels, 3)
    for label, z, y, hint in (
        ("every position has a target", logits, labels, "Softmax minus one at the label?"),
        ("a row without any target", logits, some, "A mean of means, or over all of B x T?"),
        ("logits times 1000", logits * 1000, labels, "Subtract the largest logit first."),
        ("a class with logit −inf", forbidden, low, "0 times infinity is NaN."),
        ("no target at all", logits, np.full_like(labels, -100), "An empty mean is 0."),
    ):
        yield Case(label, (z, y), (_mean(z, y), _gradient(z, y)), hint)


@grader("masked-mean")
def masked_mean() -> Iterable[Case]:
    """``f(logits, labels)``: the mean over the targets only."""
    logits, labels = _texts(1)
    short = labels.copy()
    short[0, 1:] = -100
    padded = np.concatenate([short, np.full((2, 4), -100)], 1)
    longer = np.concatenate([logits, np.zeros((2, 4, 5))], 1)
    hint = "Is the padding counted below the fraction bar?"
    yield Case("no padding", (logits, labels), _mean(logits, labels), hint)
    yield Case("one short text", (logits, short), _mean(logits, short), hint)
    yield Case("the same, padded more", (longer, padded), _mean(logits, short), hint)


@grader("label-smoothing")
def label_smoothing() -> Iterable[Case]:
    """``f(logits, labels, epsilon)``: the smoothed loss, uniform convention."""
    logits, labels = _texts(2)
    for epsilon in (0.1, 1.0, 0.0):
        yield Case(
            f"ε = {epsilon}",
            (logits, labels, epsilon),
            _smoothed(logits, labels, epsilon, False),
            "A term 0 log 0? Or the target's entropy subtracted?",
        )


def _smoothed(logits: np.ndarray, labels: np.ndarray, epsilon: float, others: bool) -> float:
    classes, total = logits.shape[-1], 0.0
    for i in np.ndindex(labels.shape):
        for k, z in enumerate(logits[i]):
            p = (1 - epsilon) * (k == labels[i])
            p += (epsilon / (classes - 1) * (k != labels[i])) if others else epsilon / classes
            total += p * (_log_z(logits[i]) - z) if p else 0.0
    return total / labels.size


@grader("smoothing-conventions")
def smoothing_conventions() -> Iterable[Case]:
    """``f(logits, labels, epsilon, others)``."""
    logits, labels = _texts(3, (2, 4, 3))
    forbidden = logits.copy()
    forbidden[..., 2] = -np.inf
    for label, z, y, epsilon, others, hint in (
        ("uniform, ε = 0.1", logits, labels, 0.1, False, "The label keeps its own share ε/V."),
        ("others, ε = 0.1", logits, labels, 0.1, True, "Spread over V − 1 classes here."),
        ("logits times 1000", logits * 1000, labels, 0.2, False, "Overflow?"),
        ("ε = 0 and a logit of −inf", forbidden, np.minimum(labels, 1), 0.0, True,
         "0 times infinity is NaN."),
    ):  # fmt: skip
        yield Case(label, (z, y, epsilon, others), _smoothed(z, y, epsilon, others), hint)


@grader("accumulation")
def accumulation() -> Iterable[Case]:
    """``f(pieces)``: pieces of one batch, each (losses, counted); the loss of the whole batch."""
    for label, pieces in (
        ("equal pieces", [([1.0, 2.0], [1, 1]), ([3.0, 5.0], [1, 1])]),
        ("one target against three", [([4.0, 9.0, 9.0], [1, 0, 0]), ([1.0, 1.0, 1.0], [1, 1, 1])]),
        ("a piece without a target", [([4.0, 2.0], [0, 0]), ([1.0, 3.0], [1, 1])]),
    ):
        arrays = [(np.array(x), np.array(m)) for x, m in pieces]
        values = [x for piece in pieces for x, m in zip(*piece, strict=True) if m]
        yield Case(
            label, (arrays,), sum(values) / len(values), "One denominator for all the pieces."
        )


@grader("smoothing-gap")
def smoothing_gap() -> Iterable[Case]:
    """``f(V, epsilon, others)``: the gap between the label's logit and the others."""
    for classes, epsilon, others in (
        (3, 0.1, False),
        (3, 0.1, True),
        (30_000, 0.1, False),
        (2, 0.5, True),
    ):
        ratio = 1 + (1 - epsilon) * classes / epsilon
        if others:
            ratio = (1 - epsilon) * (classes - 1) / epsilon
        yield Case(
            f"V = {classes}, ε = {epsilon}, {'others' if others else 'uniform'}",
            (classes, epsilon, others),
            math.log(ratio),
            "The optimum is q = p: take the ratio of two targets.",
        )


@grader("smoothing-price")
def smoothing_price() -> Iterable[Case]:
    """``f(p, epsilon)``: KL(p || (1 - eps) p + eps/V)."""
    zipf = 1 / np.arange(1, 51)
    for label, p, epsilon in (
        ("a flat distribution", np.full(8, 1 / 8), 0.3),
        ("a Zipf-like distribution", zipf / zipf.sum(), 0.1),
        ("some words impossible", np.array([0.5, 0.25, 0.25, 0.0]), 0.2),
        ("ε = 0", np.array([0.9, 0.1, 0.0]), 0.0),
    ):
        mixed = [(1 - epsilon) * x + epsilon / len(p) for x in p]
        expected = math.fsum(x * math.log(x / m) for x, m in zip(p, mixed, strict=True) if x)
        yield Case(
            label,
            (p, epsilon),
            expected,
            "The model ends at the smoothed p; the loss is taken under the true p.",
            tolerance=1e-9 if expected else 1e-12,
        )
