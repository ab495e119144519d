"""The usual course of the learning rate: a linear warm-up, then a way down."""

from __future__ import annotations

import math
from collections.abc import Callable

from lossbook._require import require

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov & Hutter 2017, eq. 5
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}


def factor(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with at a step, counted from 0.

    It climbs to 1 in ``warmup`` equal steps, the first of them above 0, and then follows the
    shape to 0 at ``steps``, which is never reached: no step is wasted on a rate of 0.
    """
    require(schedule in SHAPES, "schedule", schedule, f"a function of the step, or {list(SHAPES)}")
    require(0 <= warmup < steps, "warmup", warmup, f"a number of steps from 0 to {steps - 1}")

    def at(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return SHAPES[schedule](min(1.0, (step - warmup) / (steps - warmup)))

    return at
