"""The usual course of the learning rate: a linear warm-up, then a way down."""

from __future__ import annotations

from collections.abc import Callable

from lossbook._require import require
from lossbook.optim.schedules import Course

SHAPES = ("cosine", "linear", "constant")


def factor(schedule: str, warmup: int, steps: int) -> Callable[[int], float]:
    """What the learning rate is multiplied with at a step, counted from 0.

    It climbs to 1 in equal steps, the first of them above 0, and then follows the shape to 0 at
    ``steps``, which is never reached: no step is wasted on a rate of 0.
    """
    known = f"a function of the step, or {list(SHAPES)}"
    require(schedule in SHAPES, "schedule", schedule, known)
    require(0 <= warmup < steps, "warmup", warmup, f"a number of steps from 0 to {steps - 1}")
    length = {} if schedule == "constant" else {"steps": steps}
    return Course(schedule, {"warmup": warmup, "start": "even", **length})
