"""Checks that can fail: comparisons for the book, grading for the reader's own answers."""

from lossbook.checks.answers import Case, Report, check, exercises, grader
from lossbook.checks.compare import (
    autograd,
    compare,
    compare_gradient,
    compare_trajectory,
    difference,
    finite_differences,
    travel_difference,
)

__all__ = [
    "Case",
    "Report",
    "autograd",
    "check",
    "compare",
    "compare_gradient",
    "compare_trajectory",
    "difference",
    "exercises",
    "finite_differences",
    "grader",
    "travel_difference",
]
