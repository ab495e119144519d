"""The chapter's NumPy against lossbook and torch, its museum, and its graded exercises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from lossbook import checks, losses

CHAPTER = "losses-from-likelihood"
SHAPES = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)
RULES = {
    "squared": (losses.squared_error, F.mse_loss),
    "absolute": (losses.absolute_error, F.l1_loss),
    "huber": (losses.huber, F.huber_loss),
}


@pytest.mark.parametrize("rule", RULES)
@given(shape=SHAPES, seed=st.integers(0, 999), scale=st.sampled_from([1e-3, 1.0, 1e6]))
@example(shape=(0,), seed=0, scale=1.0)
@example(shape=(3, 0, 2), seed=0, scale=1.0)
def test_derivation_equals_lossbook_and_torch(derivation, rule, shape, seed, scale):
    """Value and gradient, any shape, from no element to many, none to all of them observed."""
    page = derivation(CHAPTER)
    ours, theirs = RULES[rule]
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, *shape)) * scale
    observed = rng.random(shape) < rng.choice([0.0, 0.3, 1.0])
    mask, y = torch.tensor(observed), torch.tensor(target)
    r = prediction - target

    value = page.mean_over_observed(getattr(page, rule)(r), observed)
    gradient = page.mean_over_observed_gradient(getattr(page, f"{rule}_pull")(r), observed)
    p = torch.tensor(prediction, requires_grad=True)
    loss = ours(p, y, mask=mask)
    loss.backward()
    assert checks.difference(value, loss) <= 1e-14
    assert checks.difference(gradient, p.grad) <= 1e-14
    if observed.any():
        q = torch.tensor(prediction, requires_grad=True)
        reference = theirs(q[mask], y[mask])
        reference.backward()
        assert checks.difference(value, reference) <= 1e-14
        assert checks.difference(gradient, q.grad) <= 1e-14


@given(delta=st.floats(0.05, 5))
def test_hubers_density_integrates_to_one(derivation, delta):
    """By Simpson's rule on the middle and in closed form on the tails, independently cut."""
    page = derivation(CHAPTER)
    grid = np.linspace(-delta, delta, 2001)
    weights = np.array([1, *([4, 2] * 999), 4, 1]) * (grid[1] - grid[0]) / 3
    middle = (weights * np.exp(-page.huber(grid, delta))).sum()
    far = np.linspace(delta, delta + 40 / delta, 400_001)
    tail = np.trapezoid(np.exp(-page.huber(far, delta)), far)
    assert math.isclose(middle + 2 * tail, page.huber_normaliser(delta), rel_tol=1e-6)


@given(delta=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_smooth_l1_is_huber_over_delta(delta, seed):
    """The relation that the table of the chapter states."""
    x, y = torch.tensor(np.random.default_rng(seed).normal(size=(2, 9)) * 2)
    smooth = F.smooth_l1_loss(x, y, beta=delta)
    assert checks.difference(smooth * delta, losses.huber(x, y, delta=delta)) <= 1e-14


def test_the_price_of_the_wrong_belief():
    """KL(Laplace || best Gaussian) by numerical integration equals (log pi - 1) / 2."""
    b = 0.3
    grid = np.linspace(-40 * b, 40 * b, 800_001)
    p = np.exp(-np.abs(grid) / b) / (2 * b)
    log_q = -(grid**2) / (4 * b**2) - np.log(np.sqrt(2) * b) - np.log(2 * np.pi) / 2
    kl = np.trapezoid(p * (np.log(p) - log_q), grid)
    assert math.isclose(kl, (math.log(math.pi) - 1) / 2, rel_tol=1e-6)


def test_the_museum_bug_fails_its_check(museum):
    page = museum(CHAPTER)
    assert checks.check("squared-error", lambda p, t: np.mean((p - t) ** 2)).passed
    report = checks.check("squared-error", page.broadcast_squared_error)
    assert "four different targets" in report.failures


def test_what_the_museum_bug_costs(museum):
    """The decomposition in the text: the inputs have dropped out of the objective."""
    page = museum(CHAPTER)
    prediction, target = np.random.default_rng(5).normal(size=(2, 7))
    expected = np.mean((prediction - target.mean()) ** 2) + target.var()
    assert checks.difference(page.broadcast_squared_error(prediction, target), expected) <= 1e-14


@pytest.mark.parametrize(
    ("exercise", "name"),
    [
        ("huber-location", "huber_location"),
        ("gaussian-nll", "gaussian_nll"),
        ("huber-efficiency", "efficiency"),
    ],
)
def test_the_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def _nll(prediction, log_sigma, target, observed, constant=True, count_all=False):
    r, n = prediction - target, observed.size if count_all else max(observed.sum(), 1)
    z = (r * np.exp(-log_sigma)) ** 2
    nats = z / 2 + log_sigma + constant * math.log(2 * math.pi) / 2
    pulls = (r * np.exp(-2 * log_sigma), 1 - z)
    return ((nats * observed).sum() / n, *(p * observed / n for p in pulls))


@pytest.mark.parametrize(
    ("exercise", "mutant"),
    [
        ("huber-location", lambda data, delta: np.mean(data)),
        ("huber-location", lambda data, delta: np.median(data)),
        ("gaussian-nll", lambda *a: _nll(*a, constant=False)),
        ("gaussian-nll", lambda *a: _nll(*a, count_all=True)),
        ("huber-efficiency", lambda delta: math.erf(delta / math.sqrt(2))),
    ],
)
def test_the_exercises_catch_mistakes(exercise, mutant):
    assert not checks.check(exercise, mutant).passed


def test_the_exercises_accept_right_answers():
    """The mutants above differ from a right answer by their one mistake only."""
    assert checks.check("gaussian-nll", _nll).passed
