"""Schedules: the learning rate as a factor of its peak, by number of the update.

Every function takes ``t``, the number of updates made so far: the first update is made with
``t = 0``. That is how TensorFlow, transformers, optax and torch's schedulers count. What the peak
is multiplied by comes back, except from ``t5`` and ``noam``, whose published formulas are rates
and go with a peak of 1.

Options that all warm-ups share:

* ``warmup``: the number of updates below the peak. Update ``t = warmup`` is the first at the peak.
* ``start``: the factor of the first update, 0 as in TensorFlow and transformers, where that update
  changes nothing; any other number; or ``"even"`` for ``1 / (warmup + 1)``, so that the peak is
  reached in ``warmup + 1`` equal steps and none is lost, as in nanoGPT.
* ``steps``: the number of updates of the whole run. The ways down reach their end at
  ``t = steps``, one update after the last, and stay there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch.optim.lr_scheduler import LambdaLR

from lossbook._require import require

Start = float | str
SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov & Hutter 2017, eq. 5
    "linear": lambda done: 1 - done,
    "1-sqrt": lambda done: 1 - math.sqrt(done),  # Haegele et al. 2024, arXiv 2405.18392
    "constant": lambda done: 1.0,
}


# The schedules


def constant(t: int, *, warmup: int = 0, start: Start = 0.0) -> float:
    """A linear warm-up, then 1 for ever."""
    _check(t, warmup, start)
    return ramp(t, warmup, start) if t < warmup else 1.0


def linear(t: int, *, steps: int, warmup: int = 0, floor: float = 0.0, start: Start = 0.0) -> float:
    """Warm-up to 1, then straight down from there to ``floor`` at ``steps``."""
    return _rise_and_fall("linear", t, steps, warmup, floor, start)


def cosine(t: int, *, steps: int, warmup: int = 0, floor: float = 0.0, start: Start = 0.0) -> float:
    """Warm-up to 1, then half a period of a cosine to ``floor`` (Loshchilov and Hutter 2017)."""
    return _rise_and_fall("cosine", t, steps, warmup, floor, start)


def polynomial(
    t: int,
    *,
    steps: int,
    power: float,
    warmup: int = 0,
    floor: float = 0.0,
    start: Start = 0.0,
) -> float:
    """Warm-up to 1, then ``(1 - done) ** power`` between 1 and ``floor``."""
    require(power > 0, "power", power, "a number > 0")
    _check(t, warmup, start, steps, floor)
    if t < warmup:
        return ramp(t, warmup, start)
    return floor + (1 - floor) * (1 - _done(t, warmup, steps)) ** power


def inverse_sqrt(t: int, *, warmup: int, timescale: int | None = None, start: Start = 0.0) -> float:
    """Warm-up to 1, then ``sqrt(S / (t - warmup + S))`` with the time scale S.

    Args:
        timescale: S, by default ``warmup``, and then the factor is ``sqrt(warmup / t)`` as in
            fairseq. Needed where there is no warm-up to take it from.
    """
    _check(t, warmup, start)
    scale = warmup if timescale is None else timescale
    require(scale >= 1, "timescale", timescale, "a number of updates >= 1, as there is no warmup")
    return ramp(t, warmup, start) if t < warmup else 1 / math.sqrt((t - warmup + scale) / scale)


def wsd(
    t: int,
    *,
    steps: int,
    decay: int,
    warmup: int = 0,
    shape: str = "cosine",
    floor: float = 0.0,
    start: Start = 0.0,
) -> float:
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395).

    Args:
        decay: updates of the way down, the last ones of ``steps``; the peak is held before them.
        shape: of the way down, ``"cosine"``, ``"linear"`` or ``"1-sqrt"``.
    """
    _check(t, warmup, start, steps, floor)
    require(shape in SHAPES, "shape", shape, f"one of {tuple(SHAPES)}")
    require(0 <= decay <= steps - warmup, "decay", decay, f"0 to {steps - warmup} updates")
    if t < warmup:
        return ramp(t, warmup, start)
    return floor + (1 - floor) * SHAPES[shape](_done(t, steps - decay, steps))


# Published junctions between the way up and the way down


def bert(t: int, *, steps: int, warmup: int) -> float:
    """BERT's: ``t / warmup``, then ``1 - t / steps``, a decay that has run since step 0.

    The factor jumps at the junction, from ``1 - 1 / warmup`` to ``1 - warmup / steps``, and the
    peak is never reached. Source: google-research/bert, optimization.py; ALBERT has the same.
    """
    _check(t, warmup, 0.0, steps)
    return t / warmup if t < warmup else max(0.0, 1 - t / steps)


def electra(t: int, *, steps: int, warmup: int) -> float:
    """ELECTRA's: the product of the decay from step 0 and of the warm-up; it does not jump.

    Source: google-research/electra, model/optimization.py.
    """
    _check(t, warmup, 0.0, steps)
    return max(0.0, 1 - t / steps) * min(1.0, t / warmup if warmup else 1.0)


def gpt1(t: int, *, steps: int, fraction: float = 0.002, shape: str = "linear") -> float:
    """The schedules of GPT's published fine-tuning code, in ``x = t / steps``.

    ``"linear"`` (used there) is ``min(1, x / fraction) (1 - x)``. ``"cosine"`` is ``x / fraction``
    up to and including ``x = fraction``, and then a cosine that has run since step 0: it jumps.
    ``"constant"`` stays at 1. Source: openai/finetune-transformer-lm, opt.py.

    Args:
        fraction: part of the run that is warm-up.
    """
    _check(t, 0, 0.0, steps)
    require(0 < fraction <= 1, "fraction", fraction, "a part of the run in (0, 1]")
    require(shape in ("linear", "cosine", "constant"), "shape", shape, "linear, cosine, constant")
    x = min(1.0, t / steps)
    if shape == "linear":
        return min(1.0, x / fraction) * (1 - x)
    return x / fraction if x <= fraction else SHAPES[shape](x)


def t5(t: int, *, warmup: int = 10_000) -> float:
    """T5's rate ``1 / sqrt(max(t, warmup))``: 0.01 for 10,000 updates, then falling.

    A rate, not a factor: the peak it goes with is 1. T5's Adafactor multiplies it with the size
    of each parameter. Source: Raffel et al. 2020, section 3.1.2; tensorflow/mesh,
    learning_rate_schedules.py, ``truncated_rsqrt``.
    """
    _check(t, warmup, 0.0)
    require(warmup >= 1, "warmup", warmup, "a number of updates >= 1")
    return 1 / math.sqrt(max(t, warmup))


def noam(t: int, *, width: int, warmup: int) -> float:
    """The rate of Vaswani et al. 2017, eq. 3, whose step number s = t + 1 starts at 1.

    A rate, not a factor: ``width ** -0.5 * min(s ** -0.5, s * warmup ** -1.5)`` goes with a peak
    of 1 and is largest, ``(width * warmup) ** -0.5``, at s = warmup.
    """
    _check(t, warmup, 0.0)
    require(width >= 1 and warmup >= 1, "width, warmup", (width, warmup), "numbers >= 1")
    return width**-0.5 * min((t + 1) ** -0.5, (t + 1) * warmup**-1.5)


# Their parts


def ramp(t: int, warmup: int, start: Start) -> float:
    """The factor at ``t < warmup``, on a straight line that reaches 1 at ``t = warmup``."""
    if start == "even":
        return (t + 1) / (warmup + 1)
    return start + (1 - start) * t / warmup


def _done(t: int, begin: int, end: int) -> float:
    """How much of the way from ``begin`` to ``end`` lies behind, from 0 to 1."""
    if t >= end:
        return 1.0
    return (t - begin) / (end - begin) if t > begin else 0.0


def _rise_and_fall(
    shape: str, t: int, steps: int, warmup: int, floor: float, start: Start
) -> float:
    _check(t, warmup, start, steps, floor)
    if t < warmup:
        return ramp(t, warmup, start)
    return floor + (1 - floor) * SHAPES[shape](_done(t, warmup, steps))


def _check(t: int, warmup: int, start: Start, steps: int | None = None, floor: float = 0.0) -> None:
    require(t >= 0, "t", t, "a number of updates >= 0")
    require(steps is None or steps >= 1, "steps", steps, "at least 1")
    most = "" if steps is None else f" to steps = {steps}"
    fits = 0 <= warmup <= (math.inf if steps is None else steps)
    require(fits, "warmup", warmup, f"a number of updates from 0{most}")
    named = start == "even" if isinstance(start, str) else 0 <= start <= 1
    require(named, "start", start, "a factor from 0 to 1, or 'even'")
    require(0 <= floor <= 1, "floor", floor, "a factor from 0 to 1")


SCHEDULES: dict[str, Callable[..., float]] = {
    f.__name__: f
    for f in (
        *(constant, linear, cosine, polynomial, inverse_sqrt, wsd),
        *(bert, electra, gpt1, t5, noam),
    )
}


# As objects


@dataclass(frozen=True)
class Course:
    """A schedule with its options filled in: a function of ``t`` that can be compared and pickled.

    Args:
        name: one of ``SCHEDULES``.
        options: what the function of that name takes beside ``t``.

    Raises:
        ValueError: no such schedule, an option it does not have, or options that do not fit.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(self.name in SCHEDULES, "name", self.name, f"one of {tuple(SCHEDULES)}")
        parameters = list(inspect.signature(SCHEDULES[self.name]).parameters.values())[1:]
        known = {p.name for p in parameters}
        needed = {p.name for p in parameters if p.default is p.empty}
        wanted = f"options of {self.name!r} among {sorted(known)}, with {sorted(needed)}"
        require(needed <= set(self.options) <= known, "options", sorted(self.options), wanted)
        self(0)

    def __call__(self, t: int) -> float:
        return SCHEDULES[self.name](t, **self.options)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"

    def factors(self, n: int) -> Float[np.ndarray, " n"]:
        """The factors of the first ``n`` updates."""
        return np.array([self(t) for t in range(n)], dtype=np.float64)


def course(name: str, **options: Any) -> Course:
    """``course("cosine", steps=1000, warmup=100)``: the schedule as a function of the step."""
    return Course(name, options)


class Schedule(LambdaLR):
    """A course as torch's scheduler: call ``step()`` after each ``optimizer.step()``.

    ``Schedule(optimizer, "cosine", steps=1000, warmup=100)`` multiplies the ``lr`` that each group
    had when it was built; groups with rates of their own keep their ratios.

    Args:
        optimizer: any of torch's.
        name: one of ``SCHEDULES``, or a :class:`Course`.
        last_epoch: updates that were made before, less one; as in torch.
        options: of the schedule of that name.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        name: str | Course,
        *,
        last_epoch: int = -1,
        **options: Any,
    ) -> None:
        given = isinstance(name, Course)
        require(not (given and options), "options", sorted(options), "none beside a Course")
        self.course = name if given else Course(name, options)
        super().__init__(optimizer, self.course, last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and names: what torch stores, with the course in place of an object."""
        state = super().state_dict()
        del state["lr_lambdas"]
        return {**state, "course": {"name": self.course.name, "options": dict(self.course.options)}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where ``state_dict`` stands.

        Raises:
            ValueError: the state of another schedule, with what differs; a run whose ``steps``
                have changed is another schedule. Nothing has changed then.
        """
        saved = Course(**state_dict["course"])
        require(saved == self.course, "state_dict", str(saved), f"a state of {self.course}")
        state = {key: value for key, value in state_dict.items() if key != "course"}
        super().load_state_dict({**state, "lr_lambdas": [None] * len(self.lr_lambdas)})


__all__ = ["SCHEDULES", "Course", "Schedule", "course", *SCHEDULES]
