"""The comparisons themselves: equal things pass, planted differences raise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook import checks


def test_a_table_of_bounds_is_printed(capsys):
    third = np.array([1 / 3, 2.0])
    checks.compare("thirds", {"a": third, "b": torch.tensor(third), "c": list(third)}, bound=1e-12)
    assert capsys.readouterr().out == (
        "thirds: 2 numbers\n  a – b  ≤ 1e-12\n  a – c  ≤ 1e-12\n  b – c  ≤ 1e-12\n"
    )


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-11]),  # a value
        ([1e-9, 2e-9], [1e-9, 2.0001e-9]),  # small numbers are not equal because they are small
        ([1.0, 2.0], [1.0, np.nan]),  # NaN equals nothing
        ([np.nan], [np.nan]),  # not even itself
        ([1.0, 2.0], [[1.0, 2.0]]),  # a shape that would broadcast
        ([1.0, np.inf], [1.0, 2.0]),
    ],
)
def test_a_missed_bound_raises(right, wrong):
    with pytest.raises(AssertionError, match="above 1e-12"):
        checks.compare("planted", {"right": right, "wrong": wrong}, bound=1e-12)


def test_gradient_against_finite_differences():
    x = np.random.default_rng(0).normal(size=(2, 3))
    gradients = {"derivation": 3 * x**2, "autograd": checks.autograd(lambda t: (t**3).sum(), x)}
    checks.compare_gradient("cubes", lambda t: (t**3).sum(), x, gradients)
    with pytest.raises(AssertionError, match="derivation – finite differences"):
        checks.compare_gradient("cubes", lambda t: (t**3).sum(), x, {"derivation": 2 * x**2})
    with pytest.raises(AssertionError, match="derivation – other"):
        wrong = {"derivation": 3 * x**2, "other": 3 * x**2 + 1e-9}
        checks.compare_gradient("cubes", lambda t: (t**3).sum(), x, wrong)


def test_trajectories_are_measured_against_the_distance_travelled():
    """Parameters near 1e6 that move by 1e-3: relative to their size every step looks right."""
    steps = 1e6 + 1e-3 * np.arange(5)[:, None]
    wrong = 1e6 + 1.01e-3 * np.arange(5)[:, None]
    assert checks.difference(steps, wrong) < 1e-9
    with pytest.raises(AssertionError, match=r"a – b  0\.01"):
        checks.compare_trajectory("planted", {"a": steps, "b": wrong}, bound=1e-6)


def test_one_source_is_no_comparison():
    with pytest.raises(ValueError, match="results: expected at least two sources"):
        checks.compare("alone", {"a": 1.0})
