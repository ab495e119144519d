"""Fair timing on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """One comparison: ours against a peer, both measured in the same race.

    Attributes:
        what: what is timed, with its size: ``"AdamW step, 10 M parameters, 2 threads"``.
        peer: what it is compared with: ``"torch.optim.AdamW(fused=True)"``.
        ours: seconds of the book's code (or bytes, with ``unit="B"``).
        theirs: the peer's.
        target: a bound on ``ratio``; None where the row only informs.
        unit: ``"s"`` or ``"B"``.
    """

    what: str
    peer: str
    ours: float
    theirs: float
    target: float | None = None
    unit: str = "s"

    @property
    def ratio(self) -> float:
        """ours / theirs: below 1 the book's code is faster (or smaller)."""
        return self.ours / self.theirs

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio <= self.target


def once(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def race(
    contestants: dict[str, Callable[[], object]], rounds: int = 20, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round.

    They take turns within a round, and who starts moves on from round to round, so that a slow
    moment of the machine or a cache left warm by a neighbour falls on all alike.
    """
    for function in contestants.values():
        for _ in range(warmup):
            function()
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(once(contestants[name]))
    return seconds


def best(seconds: list[float]) -> float:
    """The fastest round: the one that other processes disturbed least."""
    return min(seconds)


def typical(seconds: list[float]) -> float:
    """The median round."""
    return median(seconds)
