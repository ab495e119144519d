"""Grade a reader's function against hostile cases, and say what kind of mistake it looks like."""

from __future__ import annotations

import copy
import pkgutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module

import numpy as np

from lossbook._require import require
from lossbook.checks import graders
from lossbook.checks.compare import as_array, difference

_GRADERS: dict[str, Callable[[], Iterable[Case]]] = {}


@dataclass(frozen=True)
class Case:
    """One call of the reader's function: arguments, the right answer, and a hint.

    Attributes:
        label: What is hostile about this case.
        arguments: Positional arguments; copied before the call.
        expected: The right answer: a number, an array, or a tuple of them.
        hint: What kind of mistake fails here.
        options: Keyword arguments.
        tolerance: Largest difference, relative to the largest value.
    """

    label: str
    arguments: tuple
    expected: object
    hint: str = ""
    options: dict = field(default_factory=dict)
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Report:
    """What came out: one line a case. ``print`` it, or ask whether it ``passed``."""

    name: str
    lines: tuple[str, ...]
    failures: tuple[str, ...]
    total: int

    @property
    def passed(self) -> bool:
        return self.total > 0 and not self.failures

    def __str__(self) -> str:
        right = self.total - len(self.failures)
        verdict = f"{right} of {self.total} cases pass" if self.total else "not answered yet"
        return "\n".join([f"{self.name}: {verdict}", *self.lines])


def grader(name: str) -> Callable:
    """Register a function that returns the cases of the exercise ``name``."""

    def register(cases: Callable[[], Iterable[Case]]) -> Callable[[], Iterable[Case]]:
        _GRADERS[name] = cases
        return cases

    return register


def exercises() -> list[str]:
    """The names that :func:`check` knows."""
    for module in pkgutil.iter_modules(graders.__path__):
        import_module(f"{graders.__name__}.{module.name}")
    return sorted(_GRADERS)


def check(name: str, answer: Callable) -> Report:
    """Run ``answer`` on the cases of an exercise, print what came out and return it.

    Args:
        name: The exercise; :func:`exercises` lists them.
        answer: The reader's function. Returning ``None`` or ``...`` means: not answered yet.

    Raises:
        ValueError: There is no such exercise, or ``answer`` cannot be called.
    """
    known = exercises()
    require(name in known, "name", name, f"one of {known}")
    require(callable(answer), "answer", answer, "a function")
    report = _grade(name, answer, list(_GRADERS[name]()))
    print(report)
    return report


def _grade(name: str, answer: Callable, cases: list[Case]) -> Report:
    lines, failures = [], []
    for case in cases:
        problem = _run(case, answer)
        if problem is _UNANSWERED and not lines:
            return Report(name, (), (), 0)
        if problem is _UNANSWERED:
            problem = "returns nothing"
        lines.append(f"  ✗ {case.label}: {problem}" if problem else f"  ✓ {case.label}")
        if problem:
            failures.append(case.label)
            lines += textwrap.wrap(case.hint, 72, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return Report(name, tuple(lines), tuple(failures), len(cases))


_UNANSWERED = "not answered"


def _run(case: Case, answer: Callable) -> str | None:
    """None if the answer is right, or what is wrong with it."""
    arguments, options = copy.deepcopy((case.arguments, case.options))
    try:
        with np.errstate(all="ignore"):
            result = answer(*arguments, **options)
    except Exception as error:  # whatever the reader's code raises is an answer to report
        return f"raises {type(error).__name__}: {error}"
    if result is None or result is Ellipsis:
        return _UNANSWERED
    if not _same((case.arguments, case.options), (arguments, options)):
        return "the function changes its arguments in place"
    return _mismatch(result, case.expected, case.tolerance)


def _same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return True


def _mismatch(result: object, expected: object, tolerance: float) -> str | None:
    if isinstance(expected, tuple):
        if not isinstance(result, (tuple, list)) or len(result) != len(expected):
            return f"expected {len(expected)} results, got {_show(result)}"
        found = [_mismatch(r, e, tolerance) for r, e in zip(result, expected, strict=True)]
        return next((f"result {i + 1}: {text}" for i, text in enumerate(found) if text), None)
    try:
        got, want = as_array(result), as_array(expected)
    except (TypeError, ValueError):
        return f"expected numbers, got {type(result).__name__}"
    if got.shape != want.shape:
        return f"expected the shape {want.shape}, got {got.shape}"
    if difference(got, want) <= tolerance:
        return None
    if want.size > 6:
        return _largest(got, want)
    return "expected {}, got {}".format(*_apart(_show, want, got))


def _apart(show: Callable[[object, int], str], *pair: object) -> list[str]:
    """Both as text, with as many digits as it takes to tell them apart."""
    for digits in (4, 8, 16):
        texts = [show(values, digits) for values in pair]
        if texts[0] != texts[1]:
            break
    return texts


def _largest(got: np.ndarray, want: np.ndarray) -> str:
    """Where two arrays differ most, or where the first NaN stands."""
    with np.errstate(invalid="ignore"):
        gap = np.nan_to_num(np.abs(got - want), nan=np.inf)
    place = tuple(int(i) for i in np.unravel_index(gap.argmax(), gap.shape))
    expected, found = _apart(lambda x, digits: f"{x:.{digits}g}", want[place], got[place])
    return f"expected {expected} at {place}, got {found}"


def _show(values: object, digits: int = 4) -> str:
    values = np.asarray(values)
    if values.size > 6 or values.dtype.kind not in "fiub":
        return f"an array of shape {values.shape}" if values.size > 1 else repr(values.item())
    small = 0 < np.abs(np.nan_to_num(values.astype(float))).max(initial=0.0) < 10.0**-digits
    how = {"precision": digits, "separator": ", ", "suppress_small": not small}
    return np.array2string(values, **how)
