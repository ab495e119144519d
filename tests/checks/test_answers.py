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


@pytest.mark.parametrize(
    "right, wrong, said",
    [
        (4.9e-6, 0.0, "expected 4.9e-06, got 0."),
        (1.0, 1.00001, "expected 1., got 1.00001"),
        (0.98752, 0.98751, "expected 0.98752, got 0.98751"),
        ([0.0, 2e-7], [0.0, 1e-7], r"expected [0.e+00, 2.e-07], got [0.e+00, 1.e-07]"),
        (np.full(9, 1.00001), np.ones(9), "expected 1.00001 at (0,), got 1"),
    ],
)
def test_two_numbers_that_differ_are_shown_to_differ(monkeypatch, right, wrong, said):
    cases = [answers.Case("close", (1,), np.asarray(right))]
    monkeypatch.setitem(answers._GRADERS, "close", lambda: cases)
    assert said in str(checks.check("close", lambda x: wrong))


def test_who_returns_nothing_in_one_case_has_answered(monkeypatch):
    """A function without a return at its end; on the first case it looks like no answer at all."""
    cases = [answers.Case(f"case {x}", (x,), x > 1) for x in (2, 1)]
    monkeypatch.setitem(answers._GRADERS, "nothing", lambda: cases)
    report = checks.check("nothing", lambda x: True if x > 1 else None)
    assert "case 1: returns nothing" in str(report)
    assert report.failures == ("case 1",)


def test_an_argument_that_grew_was_changed(monkeypatch):
    monkeypatch.setitem(answers._GRADERS, "grown", lambda: [answers.Case("a list", ([1],), 1)])
    assert "changes its arguments" in str(checks.check("grown", lambda x: x.append(1) or 1))


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
