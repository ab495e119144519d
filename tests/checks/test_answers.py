"""Grading: right answers pass, wrong ones are told which case fails and why."""

from __future__ import annotations

import numpy as np
import pytest

from lossbook import checks
from lossbook.checks import answers


@pytest.fixture
def doubling(monkeypatch):
    """An exercise: return twice the array and its sum."""
    cases = [
        checks.Case("plain", (np.array([1.0, 2.0]),), (np.array([2.0, 4.0]), 3.0)),
        checks.Case("empty", (np.zeros(0),), (np.zeros(0), 0.0), hint="A mean over nothing?"),
    ]
    monkeypatch.setitem(answers._GRADERS, "doubling", lambda: cases)


@pytest.mark.usefixtures("doubling")
def test_a_right_answer_passes(capsys):
    assert checks.check("doubling", lambda x: (2 * x, x.sum())).passed
    assert capsys.readouterr().out == "doubling: 2 of 2 cases pass\n  ✓ plain\n  ✓ empty\n"


@pytest.mark.usefixtures("doubling")
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x: (2 * x, x.mean() * len(x)), "A mean over nothing?"),
        (lambda x: (3 * x, x.sum()), "result 1: expected [2., 4.], got [3., 6.]"),
        (lambda x: 2 * x, "expected 2 results"),
        (lambda x: (np.multiply(x, 2, out=x), 0.0), "changes its arguments in place"),
        (lambda x: 1 / 0, "raises ZeroDivisionError"),
        (lambda x: (2 * x[:, None], x.sum()), "expected the shape (2,), got (2, 1)"),
        (lambda x: ("two", x.sum()), "expected numbers, got str"),
    ],
)
def test_a_wrong_answer_is_told_why(answer, says):
    report = checks.check("doubling", answer)
    assert not report.passed
    assert says in str(report)


def test_large_arrays_say_where(monkeypatch):
    case = checks.Case("large", (np.arange(12.0).reshape(3, 4),), np.arange(12.0).reshape(3, 4))
    monkeypatch.setitem(answers._GRADERS, "large", lambda: [case])
    wrong = np.arange(12.0).reshape(3, 4)
    wrong[1, 2] = 7.5
    assert "expected 6 at (1, 2), got 7.5" in str(checks.check("large", lambda x: wrong))
    wrong[2, 0] = np.nan
    assert "expected 8 at (2, 0), got nan" in str(checks.check("large", lambda x: wrong))


@pytest.mark.usefixtures("doubling")
def test_no_answer_yet():
    report = checks.check("doubling", lambda x: ...)
    assert not report.passed
    assert str(report) == "doubling: not answered yet"


def test_unknown_exercises_are_named():
    with pytest.raises(ValueError, match="name: expected one of"):
        checks.check("nonsense", print)
