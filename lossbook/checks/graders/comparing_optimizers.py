"""Graded exercises of the chapter *Comparing optimizers*."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import combinations, product

import numpy as np
from scipy import integrate

from lossbook.checks.answers import Case, grader


@grader("comparing-tuning")
def comparing_tuning() -> Iterable[Case]:
    """``f(excess, guess, steps)``: the best rate, where ``excess(rate, steps)`` is a run."""
    for label, excess, guess, steps, hint in (
        ("a bowl around the guess", _bowl(0.01), 0.01, 300, "The least score wins."),
        ("a bowl one rate to the left", _bowl(0.005), 0.01, 300, "The least score wins."),
        (
            "the best rate far above the guess",
            _bowl(0.01 * 2**6),
            0.01,
            300,
            "A best rate at the edge of the grid: the grid must grow.",
        ),
        (
            "the best rate far below the guess",
            _bowl(4.0 / 2**11),
            4.0,
            300,
            "A best rate at the edge of the grid: the grid must grow.",
        ),
        (
            "a long race wants a smaller rate",
            _quadratic,
            2.0**-6,
            4000,
            "Tuned at another number of steps than the race has?",
        ),
        (
            "large rates diverge",
            _diverging,
            2.0**-4,
            100,
            "A run that is not finite loses; min() of a NaN is whatever came first.",
        ),
        (
            "all of the first rates diverge",
            lambda rate, steps: math.nan if rate > 2.0**-11 else 1 - rate,
            2.0**-4,
            100,
            "Nothing finite yet: go on towards smaller rates.",
        ),
    ):
        yield Case(label, (excess, guess, steps), _search(excess, guess, steps), hint)


def _bowl(best: float) -> Callable[[float, int], float]:
    return lambda rate, steps: 0.2 + 0.3 * math.log2(rate / best) ** 2


def _quadratic(rate: float, steps: int) -> float:
    """What is left of the start, and a noise that grows with the rate."""
    return max(0.0, 1 - rate) ** (2 * steps) + rate


def _diverging(rate: float, steps: int) -> float:
    return math.nan if rate > 2.0**-5 else 1 - rate


def _search(excess: Callable[[float, int], float], guess: float, steps: int) -> float:
    """All rates from far below to far above."""
    rates = [guess * 2.0**j for j in range(-20, 21)]
    scores = [excess(rate, steps) for rate in rates]
    finite = [(score, rate) for score, rate in zip(scores, rates, strict=True) if score == score]
    return min(finite)[1]


@grader("comparing-best-of")
def comparing_best_of() -> Iterable[Case]:
    """``f(losses, k)``: expected least of k tries, estimated without bias from all."""
    rng = np.random.default_rng(0)
    many = "Two draws of a search are two different tries: draw without replacement."
    for label, x, k, hint in (
        ("one try", rng.normal(size=6), 1, "One try: the mean."),
        ("two of three", np.array([1.0, 2.0, 4.0]), 2, many),
        ("four of nine, unsorted", rng.gamma(2.0, size=9), 4, many),
        ("all tries", rng.normal(size=7), 7, "With all tries: the least of them."),
        ("equal losses", np.array([3.0, 1.0, 1.0, 3.0]), 2, many),
        ("one try of one", np.array([0.7]), 1, "Nothing to choose."),
    ):
        yield Case(label, (x, k), _subsets(x, k), hint)


def _subsets(x: np.ndarray, k: int) -> float:
    """The mean of the least over all subsets, one by one."""
    return float(np.mean([min(subset) for subset in combinations(x.tolist(), k)]))


@grader("comparing-chances")
def comparing_chances() -> Iterable[Case]:
    """``f(p, k)``: the chances that the best of k is better, equal, worse than one run."""
    die = np.full(6, 1 / 6)
    three = "Better, equal, worse. And at least j and above j are two things."
    for label, p, k, hint in (
        ("the die, three against one", die, 3, three),
        ("one against one", die, 1, "Equal budgets: better and worse are equally likely."),
        ("a loaded coin", np.array([0.2, 0.8]), 2, "In which order are the outcomes? Least first."),
        ("an outcome that never comes", np.array([0.5, 0.0, 0.5]), 4, "Its probability is 0."),
        ("no noise", np.array([1.0]), 5, "Then they are always equal."),
        ("forty against one", np.array([0.1, 0.2, 0.3, 0.4]), 40, "All k of them: a power."),
    ):
        yield Case(label, (p, k), _chances(p, k), hint)


def _chances(p: np.ndarray, k: int) -> tuple[float, float, float]:
    """From the distribution of the minimum, built up one run at a time."""
    n, least = len(p), list(p)
    for _ in range(k - 1):
        new = [0.0] * n
        for i, j in product(range(n), repeat=2):
            new[min(i, j)] += least[i] * p[j]
        least = new
    better = math.fsum(least[i] * p[j] for i in range(n) for j in range(n) if i < j)
    equal = math.fsum(least[i] * p[i] for i in range(n))
    worse = math.fsum(least[i] * p[j] for i in range(n) for j in range(n) if i > j)
    return better, equal, worse


@grader("comparing-seeds")
def comparing_seeds() -> Iterable[Case]:
    """``f(deviation, difference, level)``: how many paired seeds an interval needs."""
    degrees = "The half width: Student's quantile, with n - 1 degrees, of deviation / sqrt(n)."
    for label, deviation, difference, level, hint in (
        ("a difference as large as the deviation", 1.0, 1.0, 0.95, degrees),
        ("half of the deviation", 0.04, 0.02, 0.95, degrees),
        ("two sides of one per cent", 1.0, 0.5, 0.99, "Half of what is left on each side."),
        ("a very clear difference", 0.001, 1.0, 0.95, "At least two seeds."),
        ("a small difference", 0.01, 0.001, 0.9, "It grows with the square."),
        ("three times the deviation", 1.0, 3.0, 0.95, "Few seeds: the normal quantile is short."),
    ):
        yield Case(
            label, (deviation, difference, level), _seeds(deviation, difference, level), hint
        )


def _seeds(deviation: float, difference: float, level: float) -> int:
    """By integrating Student's density up to where the interval would end."""
    n = 2
    while _inside(difference * math.sqrt(n) / deviation, n - 1) < level:
        n += 1
    return n


def _inside(t: float, degrees: int) -> float:
    """P(|T| <= t) by the integral of cos^(degrees - 1), which is Student's in other clothes."""
    whole = integrate.quad(lambda a: math.cos(a) ** (degrees - 1), 0, math.pi / 2)[0]
    part = integrate.quad(
        lambda a: math.cos(a) ** (degrees - 1), 0, math.atan(t / math.sqrt(degrees))
    )[0]
    return part / whole


@grader("comparing-flips")
def comparing_flips() -> Iterable[Case]:
    """``f(d)``: the share of all choices of signs whose mean is as far from zero."""
    for label, d, hint in (
        ("five of one sign", np.array([0.02, 0.01, 0.03, 0.02, 0.05]), "Two of 32: both sides."),
        ("all negative", np.array([-0.1, -0.2, -0.4]), "Both sides: the absolute value."),
        (
            "sums that tie",
            np.array([0.1, 0.2, -0.3, 0.4]),
            "0.1 + 0.2 is not 0.3 in float64: compare with a little slack.",
        ),
        ("one seed", np.array([0.7]), "One seed says nothing: 1."),
        ("no difference at all", np.zeros(4), "Zero is as far from zero as zero: 1."),
        ("eight mixed", np.array([3.0, 1, -2, 5, 4, -1, 2, 6]), "All 2^S choices of signs."),
    ):
        yield Case(label, (d,), _flips(d), hint)


def _flips(d: np.ndarray) -> float:
    """In whole numbers of hundredths, where nothing is rounded."""
    whole = [round(100 * x) for x in d.tolist()]
    sums = [0]
    for x in whole:
        sums = [s + sign * x for s in sums for sign in (-1, 1)]
    return sum(abs(s) >= abs(sum(whole)) for s in sums) / len(sums)


@grader("comparing-budget")
def comparing_budget() -> Iterable[Case]:
    """``f(a, b)``: the least number of tries from which on A is ahead."""
    sharp, flat = np.array([0.1, 0.9, 1.2, 1.5, 2.0]), np.array([0.2, 0.25, 0.3, 0.35, 0.4])
    for label, a, b, hint in (
        ("a sharp bowl against a flat one", sharp, flat, "The expected best of k, not the best."),
        ("the other way round", flat, sharp, "0 where A is not ahead at the largest k."),
        ("always ahead", flat - 0.15, flat, "Then one try is enough: 1."),
        ("the same losses", flat, flat, "Equal is not below."),
        ("grids of two lengths", sharp[:3], flat, "k ends where the shorter grid ends."),
        ("a longer grid against a shorter one", sharp, flat[:3], "k ends with the shorter grid."),
        (
            "ahead, behind, ahead again",
            np.array([0.0, 1.0, 1.0, 1.0]),
            np.array([0.01, 0.3, 0.3, 3.3]),
            "From which k *on*: look from the largest k down.",
        ),
    ):
        yield Case(label, (a, b), _budget(a, b), hint)


def _budget(a: np.ndarray, b: np.ndarray) -> int:
    ahead = [_subsets(a, k) < _subsets(b, k) for k in range(1, min(len(a), len(b)) + 1)]
    lost = [k for k, won in enumerate(ahead, start=1) if not won]
    start = max(lost, default=0) + 1
    return start if start <= len(ahead) else 0
