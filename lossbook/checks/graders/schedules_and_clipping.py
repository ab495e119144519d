"""Graded exercises of the chapter *Schedules and clipping*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


def _linear(k: int, warmup: int, steps: int) -> float:
    return k / warmup if k < warmup else (steps - k) / (steps - warmup)


def _bert(k: int, warmup: int, steps: int) -> float:
    return k / warmup if k < warmup else 1 - k / steps


def _cosine(k: int, warmup: int, steps: int) -> float:
    if k < warmup:
        return k / warmup
    return (1 + math.cos(math.pi * (k - warmup) / (steps - warmup))) / 2


def _electra(k: int, warmup: int, steps: int) -> float:
    return (1 - k / steps) * (k / warmup if k < warmup else 1.0)


@grader("linear-course")
def linear_course() -> Iterable[Case]:
    """``f(W, K)``: the factors of the updates 0 to K - 1 under transformers' linear rule."""
    for label, warmup, steps, hint in (
        ("ten steps, warm-up 4", 4, 10, "Compare with the table at the start of the chapter."),
        (
            "the first two updates",
            50,
            51,
            "Only update 0 has 0, and update W has the peak. Is W counted in updates?",
        ),
        (
            "no warm-up",
            0,
            7,
            "1 at the first update, 1/K at the last. Is K a number of updates, or of batches?",
        ),
        ("a warm-up of 1", 1, 3, "Update 0 is the warm-up, and update 1 has the peak."),
        ("the whole run is warm-up", 4, 4, "k/W throughout; the way down is empty."),
        ("the end", 0, 1000, "The last update has 1/K: it would be 0 at update K."),
    ):
        expected = np.array([_linear(k, warmup, steps) for k in range(steps)])
        yield Case(label, (warmup, steps), expected, hint)


@grader("clip-global")
def clip_global() -> Iterable[Case]:
    """``f(gradients, c)``: the gradients, clipped by the norm over all of them."""
    rng = np.random.default_rng(4)
    ranks = [rng.normal(size=shape) for shape in ((2,), (2, 3), (), (2, 1, 2))]
    together = "One norm over all tensors, and one factor for all."
    for label, gradients, limit, hint in (
        ("one tensor of norm 5", [np.array([3.0, 4.0])], 1.0, "c over the norm."),
        ("norms 5 and 12", [np.array([3.0, 4.0]), np.array([12.0])], 1.0, together),
        ("each is below, all are not", [np.full(2, 0.6), np.full(2, -0.6)], 1.0, together),
        ("ranks 0 to 3", [np.asarray(g) for g in ranks], 0.7, together),
        ("below the limit", [np.array([3.0, 4.0])], 6.0, "Short gradients stay as they are."),
        (
            "exactly at a limit of 0.01",
            [np.array([0.006, 0.008])],
            0.01,
            "The factor is c / max(norm, c), and no constant is added to the norm.",
        ),
        ("all zero", [np.zeros(3), np.zeros(2)], 1.0, "Zero over zero?"),
        ("an empty tensor among others", [np.zeros(0), np.array([8.0])], 2.0, together),
    ):
        yield Case(label, (gradients, limit), _clipped(gradients, limit), hint)


def _clipped(gradients: list[np.ndarray], limit: float) -> tuple[np.ndarray, ...]:
    norm = math.hypot(*(float(x) for g in gradients for x in np.ravel(g)))
    return tuple(np.asarray(g if norm <= limit else g / norm * limit) for g in gradients)


@grader("layer-factors")
def layer_factors() -> Iterable[Case]:
    """``f(layers, decay)``: factors of the embeddings, the layers and the head."""
    gap = "From the head to the last layer is one step down, as from each layer to the next."
    for label, layers, decay, hint in (
        ("12 layers, 0.8", 12, 0.8, gap),
        ("24 layers, 0.9", 24, 0.9, gap),
        ("one layer", 1, 0.5, "Three groups: 1/4, 1/2 and 1."),
        ("no layer at all", 0, 0.5, "Embeddings and a head: 1/2 and 1."),
        ("a decay of 1", 3, 1.0, "Then all rates are equal."),
    ):
        factors = [1.0]
        for _ in range(layers + 1):
            factors.insert(0, factors[0] * decay)
        yield Case(label, (layers, decay), np.array(factors), hint)


@grader("layerwise-adam")
def layerwise_adam() -> Iterable[Case]:
    """``f(gradients[step, layer], lr, decay)``: positions after the steps, the top layer's last."""
    rng = np.random.default_rng(5)
    absorbed = "Adam does not see a factor on the gradients. It belongs on the rate."
    for label, size, layers, decay, hint in (
        ("gradients of size 1", 1.0, 13, 0.75, absorbed),
        ("gradients of size 0.001", 1e-3, 13, 0.75, absorbed),
        ("two layers", 1.0, 2, 0.5, absorbed),
        ("one layer", 1.0, 1, 0.5, "The top layer has the rate as it is given."),
        ("a decay of 1", 1.0, 4, 1.0, "Is this Adam without bias correction, with ε = 1e-6?"),
    ):
        gradients = size * rng.normal(size=(25, layers))
        expected = np.array(
            [_adam(gradients[:, i], 1e-3 * decay ** (layers - 1 - i)) for i in range(layers)]
        )
        yield Case(label, (gradients, 1e-3, decay), expected, hint)


def _adam(gradients: np.ndarray, lr: float) -> float:
    theta = m = v = 0.0
    for g in gradients:
        m, v = 0.9 * m + 0.1 * float(g), 0.999 * v + 0.001 * float(g) ** 2
        theta -= lr * m / (math.sqrt(v) + 1e-6)
    return theta


@grader("schedule-total")
def schedule_total() -> Iterable[Case]:
    """``f(rule, W, K)``: the sum of the factors of the updates 0 to K - 1."""
    product = "ELECTRA's warm-up is multiplied by the decay as well."
    for label, rule, warmup, steps, hint in (
        ("linear, ten steps", "linear", 4, 10, "Five, by the table of the chapter."),
        ("cosine, ten steps", "cosine", 4, 10, "The first term of the way down is 1, not 1/2."),
        ("BERT, ten steps", "bert", 4, 10, "The decay starts at 1 - W/K, not at 1."),
        ("ELECTRA, ten steps", "electra", 4, 10, product),
        ("ELECTRA, warm-up 100 of 1000", "electra", 100, 1000, product),
        ("BERT, all warm-up", "bert", 9, 9, "The way down may be empty."),
        ("no warm-up", "linear", 0, 10, "With W = 0 the warm-up has no term, not minus a half."),
        ("ELECTRA without warm-up", "electra", 0, 10, "Without warm-up it is BERT's, and linear."),
        ("cosine, a warm-up of 1", "cosine", 1, 20, "The warm-up of 1 adds a zero."),
    ):
        function = {"linear": _linear, "cosine": _cosine, "bert": _bert, "electra": _electra}[rule]
        expected = math.fsum(function(k, warmup, steps) for k in range(steps))
        yield Case(label, (rule, warmup, steps), expected, hint)


@grader("ema-weights")
def ema_weights() -> Iterable[Case]:
    """``f(t, beta, start)``: the weights of the parameters 1 to t in the average."""
    sums = "The weights sum to 1 under both beginnings."
    for label, t, beta, start, hint in (
        ("copy, one update", 1, 0.9, "copy", "After one update the average is the parameters."),
        ("zero, one update", 1, 0.9, "zero", "After one update the average is the parameters."),
        (
            "copy, five updates",
            5,
            0.9,
            "copy",
            "The first has beta ** (t - 1), undivided.",
        ),
        ("zero, five updates", 5, 0.9, "zero", sums),
        ("copy, beta = 0.9999", 200, 0.9999, "copy", sums),
        ("zero, beta = 0.9999", 200, 0.9999, "zero", sums),
        ("beta = 0", 3, 0.0, "copy", "Without memory only the newest counts; 0 ** 0 is 1."),
        ("the order", 2, 0.25, "zero", "The newest is last, and has the largest weight."),
    ):
        yield Case(label, (t, beta, start), _weights(t, beta, start), hint)


def _weights(t: int, beta: float, start: str) -> np.ndarray:
    """By averaging unit vectors."""
    average = np.zeros(t)
    for i in range(t):
        average *= beta
        average[i] += 1 - beta
        if start == "copy" and i == 0:
            average[0] = 1.0
    return average if start == "copy" else average / (1 - math.pow(beta, t))


@grader("burst-cost")
def burst_cost() -> Iterable[Case]:
    """``f(size, beta1, beta2, n)``: learning rates not travelled in n steps from the burst on."""
    for label, arguments, hint in (
        ("the burst alone", (100.0, 0.9, 0.999, 1), "The step of the burst, j = 0, counts."),
        ("no burst", (1.0, 0.9, 0.999, 100), "A burst of size 1 is none, and costs nothing."),
        ("size 100", (100.0, 0.9, 0.999, 10_000), "The root is of v, which fades with beta2."),
        ("size 3", (3.0, 0.9, 0.999, 5000), "Small bursts cost little: sum 1 minus the step."),
        ("beta2 = 0.95", (100.0, 0.9, 0.95, 1000), "Are the betas written as numbers?"),
        ("no momentum", (10.0, 0.0, 0.999, 50), "beta1 = 0: after the burst m is 1 at once."),
        ("a burst backwards", (-100.0, 0.9, 0.999, 40), "A negative gradient moves it back."),
    ):
        yield Case(label, arguments, _lost(*arguments), hint, tolerance=1e-8)


def _lost(size: float, beta1: float, beta2: float, n: int) -> float:
    """By running both averages from their settled values."""
    m = v = 1.0
    steps = []
    for g in [size] + [1.0] * (n - 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        steps.append(1 - m / math.sqrt(v))
    return math.fsum(steps)


@grader("best-fall")
def best_fall() -> Iterable[Case]:
    """``f(eta, curvatures, K)``: the length of the linear way down with the lowest end."""
    first = "The first factor of the way down is 1, not 1 - 1/D; long ways down count as well."
    for label, arguments, hint in (
        ("a rate that is too small", (0.03, (1.0, 0.1, 0.01), 120), "Short of distance: no decay."),
        ("in between", (0.1, (1.0, 0.1, 0.01), 200), "Add the three curvatures' losses up."),
        ("a large rate", (0.3, (1.0, 0.1, 0.01), 150), first),
        ("one curvature", (0.2, (1.0,), 80), "D = K is allowed."),
        ("K = 1", (0.5, (1.0,), 1), "D = 0 and D = 1 are the same run here: take the first."),
    ):
        yield Case(label, arguments, _fall(*arguments), hint)


def _fall(eta: float, curvatures: tuple[float, ...], steps: int) -> int:
    ends = []
    for down in range(steps + 1):
        rates = [eta] * (steps - down) + [eta * (down - i) / down for i in range(down)]
        ends.append(math.fsum(h * _second_moment(h, rates) / 2 for h in curvatures))
    return min(range(steps + 1), key=ends.__getitem__)


def _second_moment(curvature: float, rates: list[float]) -> float:
    s = 25.0
    for eta in rates:
        s = s * (1 - eta * curvature) * (1 - eta * curvature) + eta * eta
    return s
