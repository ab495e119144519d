"""The chapter's NumPy against lossbook and torch, its museum, floors and graded exercises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from lossbook import checks, losses
from lossbook.corpora import HiddenMarkovLanguage

CHAPTER = "cross-entropy"
SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 6))
SEEDS = st.integers(0, 999)
SCALES = st.sampled_from([0.1, 3.0, 1000.0])


def problem(shape, seed, scale):
    """Logits [B, T, V] and labels [B, T]; none, some or all positions have a target."""
    rng = np.random.default_rng(seed)
    ignored = rng.choice([0.0, 0.4, 1.0])
    labels = rng.integers(0, shape[-1], shape[:2])
    return rng.normal(size=shape) * scale, np.where(rng.random(shape[:2]) < ignored, -100, labels)


def autograd(loss, z, labels, **options):
    t = torch.tensor(z, requires_grad=True)
    value = loss(t, torch.tensor(labels), **options)
    value.backward()
    return value.detach(), t.grad


@pytest.mark.parametrize("convention", ["uniform", "others"])
@given(shape=SHAPES, seed=SEEDS, scale=SCALES, epsilon=st.sampled_from([0.0, 0.1, 1.0]))
@example(shape=(0, 3, 4), seed=0, scale=1.0, epsilon=0.1)
@example(shape=(2, 3, 1), seed=0, scale=1.0, epsilon=0.0)
def test_derivation_equals_lossbook_and_torch(derivation, convention, shape, seed, scale, epsilon):
    """Value and gradient; with logits of 1000 the sums are of that size, hence 1e-12."""
    if shape[-1] == 1 and convention == "others":
        epsilon = 0.0  # there are no others
    page = derivation(CHAPTER)
    z, labels = problem(shape, seed, scale)
    value = page.cross_entropy(z, labels, epsilon, convention)
    gradient = page.cross_entropy_gradient(z, labels, epsilon, convention)
    ours = autograd(losses.cross_entropy, z, labels, label_smoothing=epsilon, smoothing=convention)
    assert checks.difference(value, ours[0]) <= 1e-12
    np.testing.assert_allclose(gradient, ours[1].numpy(), rtol=0, atol=1e-12)
    if convention == "uniform" and (labels != -100).any():
        theirs = autograd(
            lambda t, y: F.cross_entropy(t.flatten(0, 1), y.flatten(), label_smoothing=epsilon),
            z,
            labels,
        )
        assert checks.difference(value, theirs[0]) <= 1e-12
        np.testing.assert_allclose(gradient, theirs[1].numpy(), rtol=0, atol=1e-12)


@given(seed=SEEDS, scale=SCALES)
def test_binary_and_z_loss(derivation, seed, scale):
    page = derivation(CHAPTER)
    rng = np.random.default_rng(seed)
    z, y = rng.normal(size=9) * scale, rng.random(9)
    value, gradient = autograd(losses.binary_cross_entropy, z, y, reduction="sum")
    assert checks.difference(page.binary_cross_entropies(z, y).sum(), value) <= 1e-13
    assert checks.difference(page.sigmoid(z) - y, gradient) <= 1e-13
    rows = rng.normal(size=(3, 5)) * scale
    ours = losses.z_loss(torch.tensor(rows), coefficient=0.2, reduction="none")
    assert checks.difference(page.z_losses(rows, 0.2), ours) <= 1e-12


@given(seed=SEEDS)
def test_impossible_classes(derivation, seed):
    """A logit of -inf is a class that cannot come: it must not make a NaN anywhere."""
    page = derivation(CHAPTER)
    z, labels = problem((2, 3, 5), seed, 2.0)
    z[..., 4] = -np.inf
    labels = np.minimum(labels, 3)
    value, gradient = autograd(losses.cross_entropy, z, labels)
    assert checks.difference(page.cross_entropy(z, labels), value) <= 1e-13
    assert checks.difference(page.cross_entropy_gradient(z, labels), gradient) <= 1e-13


def test_the_opening_example(derivation):
    page = derivation(CHAPTER)
    z = np.log([[1.0, 2, 5], [2, 1, 1]])
    assert math.isclose(page.cross_entropy(z, np.array([2, 1])), -math.log(5 / 32) / 2)
    gradient = [[1 / 8, 2 / 8, -3 / 8], [2 / 4, -3 / 4, 1 / 4]]
    np.testing.assert_allclose(2 * page.cross_entropy_gradient(z, np.array([2, 1])), gradient)


def test_convexity(derivation):
    """The Hessian of the proof has no negative eigenvalue."""
    page = derivation(CHAPTER)
    q = page.softmax(np.random.default_rng(0).normal(size=6) * 2)
    assert np.linalg.eigvalsh(np.diag(q) - np.outer(q, q)).min() > -1e-15


def test_the_floors_on_the_page():
    """Word and word-pair entropies from the recursion equal those counted by sampling."""
    language = HiddenMarkovLanguage.default()
    state, occupancy = language.initial, []
    for _ in range(64):
        occupancy.append(state)
        state = state @ language.transition
    before = np.mean(occupancy[:-1], axis=0)
    pairs = language.emission.T @ (before[:, None] * language.transition) @ language.emission
    assert math.isclose(pairs.sum(), 1.0, rel_tol=1e-12)
    ids = language.sample(3000, 64, np.random.default_rng(1))
    counts = np.zeros_like(pairs)
    np.add.at(counts, (ids[:, :-1].ravel(), ids[:, 1:].ravel()), 1)
    expected = counts.sum() * pairs
    often = expected > 20
    z_scores = (counts - expected)[often] / np.sqrt(expected[often])
    assert counts[pairs == 0].sum() == 0
    assert 0.5 < np.sqrt(np.mean(z_scores**2)) < 2  # documents are correlated inside


def test_every_museum_bug_fails_its_check(museum):
    page = museum(CHAPTER)
    with np.errstate(all="ignore"):
        smoothing = checks.check("label-smoothing", page.smoothed_as_divergence)
    assert "ε = 0.0" in smoothing.failures
    assert "one short text" in checks.check("masked-mean", page.padded_mean).failures
    accumulation = checks.check("accumulation", page.mean_of_means)
    assert "one target against three" in accumulation.failures


def test_the_right_versions_pass(derivation):
    page = derivation(CHAPTER)
    assert checks.check("label-smoothing", page.cross_entropy).passed
    assert checks.check("masked-mean", page.cross_entropy).passed


@pytest.mark.parametrize(
    ("exercise", "name"),
    [
        ("cross-entropy", "my_cross_entropy"),
        ("smoothing-conventions", "my_smoothed"),
        ("smoothing-gap", "logit_gap"),
        ("smoothing-price", "price"),
    ],
)
def test_the_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def naive(logits, labels):
    q = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    hit = labels[..., None] == np.arange(logits.shape[-1])
    n = max((labels != -100).sum(), 1)
    return -np.log(q)[hit].sum() / n, (q - hit) * (labels != -100)[..., None] / n


def over_everything(logits, labels):
    value, gradient = autograd(losses.cross_entropy, logits, labels, denominator=labels.size)
    return value, gradient


@pytest.mark.parametrize(
    ("exercise", "mutant", "fails"),
    [
        ("cross-entropy", naive, "logits times 1000"),
        ("cross-entropy", over_everything, "a row without any target"),
        ("smoothing-conventions", lambda z, y, e, o: F.cross_entropy(
            torch.tensor(z).flatten(0, 1), torch.tensor(y).flatten(), label_smoothing=e),
         "others, ε = 0.1"),
        ("smoothing-gap", lambda V, e, o: math.log((1 - e) / (e / V)), "V = 3, ε = 0.1, uniform"),
        ("smoothing-price", lambda p, e: e, "a flat distribution"),
        ("accumulation", lambda pieces: np.mean(np.concatenate([x for x, _ in pieces])),
         "one target against three"),
    ],
)  # fmt: skip
def test_the_exercises_catch_mistakes(exercise, mutant, fails):
    with np.errstate(all="ignore"):
        assert fails in checks.check(exercise, mutant).failures
