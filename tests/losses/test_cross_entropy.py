"""Cross-entropies against torch and against their definitions, value and gradient, float64."""

from __future__ import annotations

import math

import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossbook import losses

BATCH = st.lists(st.integers(1, 4), min_size=0, max_size=2).map(tuple)
SEEDS = st.integers(0, 999)


def problem(batch, vocab, seed, scale=3.0, ignored=0.3):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=(*batch, vocab)) * scale)
    labels = np.where(rng.random(batch) < ignored, -100, rng.integers(0, vocab, batch))
    return logits, torch.tensor(labels)


def value_and_gradient(loss, logits, *args, **options):
    logits = logits.clone().requires_grad_()
    value = loss(logits, *args, **options)
    value.sum().backward()
    return value.detach(), logits.grad


def torchs(logits, labels, **options):
    """torch wants one batch axis; an empty mean is NaN there and 0 here."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), **options)
    return flat.view(labels.shape) if options.get("reduction") == "none" else flat.nan_to_num(0)


@given(batch=BATCH, vocab=st.integers(2, 7), seed=SEEDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_equals_torch(smoothing, reduction, batch, vocab, seed):
    """Two orders of the same sums: a few ulps of numbers of the size of the logits."""
    logits, labels = problem((*batch, 3), vocab, seed)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    ours = value_and_gradient(losses.cross_entropy, logits, labels, **options)
    theirs = value_and_gradient(torchs, logits, labels, **options)
    gradient = theirs[1].nan_to_num(0)
    torch.testing.assert_close(ours, (theirs[0], gradient), rtol=1e-12, atol=1e-13)


@given(batch=BATCH, vocab=st.integers(2, 7), seed=SEEDS, epsilon=st.floats(0, 1))
@pytest.mark.parametrize("smoothing", ["uniform", "others"])
def test_smoothing_is_a_soft_target(smoothing, batch, vocab, seed, epsilon):
    """Both conventions equal the cross-entropy against the target they stand for."""
    logits, labels = problem(batch, vocab, seed, ignored=0)
    target = F.one_hot(labels, vocab).double()
    spread = epsilon / vocab if smoothing == "uniform" else epsilon / (vocab - 1) * (1 - target)
    target = (1 - epsilon) * target + spread
    ours = losses.cross_entropy(
        logits, labels, label_smoothing=epsilon, smoothing=smoothing, reduction="none"
    )
    definition = -(target * logits.log_softmax(-1)).sum(-1)
    torch.testing.assert_close(ours, definition, rtol=1e-12, atol=1e-12)
    soft = losses.soft_cross_entropy(logits, target, reduction="none")
    torch.testing.assert_close(soft, definition, rtol=1e-12, atol=1e-12)


def test_the_two_conventions_meet_at_one_rate():
    """eps/V everywhere is the same as eps' = eps (V - 1)/V spread over the other classes."""
    logits, labels = problem((50,), 7, seed=1, ignored=0)
    uniform = losses.cross_entropy(logits, labels, label_smoothing=0.1)
    others = losses.cross_entropy(logits, labels, label_smoothing=0.1 * 6 / 7, smoothing="others")
    torch.testing.assert_close(uniform, others, rtol=1e-14, atol=0)
    wrong = losses.cross_entropy(logits, labels, label_smoothing=0.1, smoothing="others")
    assert abs(wrong - uniform) > 1e-3


def test_equals_optax():
    logits, labels = problem((4, 5), 6, seed=2, ignored=0)
    ours = losses.cross_entropy(logits, labels, reduction="none")
    theirs = optax.softmax_cross_entropy_with_integer_labels(logits.numpy(), labels.numpy())
    np.testing.assert_allclose(ours.numpy(), np.asarray(theirs), rtol=1e-13, atol=1e-13)


def test_gradient_is_softmax_minus_target():
    logits, labels = problem((3, 4), 5, seed=3)
    _, gradient = value_and_gradient(losses.cross_entropy, logits, labels)
    mask = labels != -100
    onehot = F.one_hot(labels.clamp(min=0), 5)
    expected = (logits.softmax(-1) - onehot) * mask[..., None] / mask.sum()
    torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-15)


def test_extreme_logits_stay_finite():
    """Logits times 1000: exp overflows, the loss must not; -inf forbids a class."""
    logits, labels = problem((6,), 5, seed=4, ignored=0)
    value, gradient = value_and_gradient(losses.cross_entropy, logits * 1000, labels)
    torch.testing.assert_close(value, F.cross_entropy(logits * 1000, labels))
    assert gradient.isfinite().all()
    forbidden = logits.clone()
    forbidden[torch.arange(6), (labels + 1) % 5] = -math.inf
    value, gradient = value_and_gradient(losses.cross_entropy, forbidden, labels)
    assert value.isfinite() and gradient.isfinite().all()


def test_zero_probability_classes_add_nothing():
    """0 log 0 = 0: a hard target as a distribution, with a class of probability 0 under q."""
    logits = torch.tensor([[2.0, -math.inf, 0.5]], dtype=torch.float64)
    probs = torch.tensor([[0.25, 0.0, 0.75]], dtype=torch.float64)
    value, gradient = value_and_gradient(losses.soft_cross_entropy, logits, probs)
    q = logits.softmax(-1)
    assert math.isclose(value, -(0.25 * q[0, 0].log() + 0.75 * q[0, 2].log()), rel_tol=1e-14)
    torch.testing.assert_close(gradient, q - probs)


def test_micro_batches_with_the_global_denominator():
    logits, labels = problem((8, 6), 5, seed=5, ignored=0.5)
    whole = losses.cross_entropy(logits, labels)
    count = int((labels != -100).sum())
    rows = list(zip(logits, labels, strict=True))
    parts = sum(losses.cross_entropy(*row, denominator=count) for row in rows)
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    naive = sum(losses.cross_entropy(*row) for row in rows) / len(rows)
    assert abs(naive - whole) > 1e-3


def test_nothing_to_predict_is_zero():
    logits, _ = problem((2, 3), 4, seed=6)
    value, gradient = value_and_gradient(
        losses.cross_entropy, logits, torch.full((2, 3), -100), label_smoothing=0.1, z_loss=1.0
    )
    assert value == 0
    assert (gradient == 0).all()


def test_half_precision_is_promoted():
    """bfloat16 carries 8 bits: the loss of 512 classes must not be computed in it."""
    logits, labels = problem((64,), 512, seed=7, ignored=0)
    rounded = logits.bfloat16()
    ours = losses.cross_entropy(rounded, labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(
        ours.double(), F.cross_entropy(rounded.double(), labels), rtol=1e-6, atol=0
    )


@given(batch=BATCH, vocab=st.integers(1, 6), seed=SEEDS)
def test_z_loss_is_the_squared_log_normaliser(batch, vocab, seed):
    logits, labels = problem(batch, vocab, seed, ignored=0)
    expected = 0.3 * logits.exp().sum(-1).log().square()
    torch.testing.assert_close(
        losses.z_loss(logits, coefficient=0.3, reduction="none"), expected, rtol=1e-11, atol=1e-12
    )
    both = losses.cross_entropy(logits, labels, z_loss=0.3, reduction="none")
    plain = losses.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(both, plain + expected, rtol=1e-11, atol=1e-12)


@given(batch=BATCH, seed=SEEDS, weight=st.sampled_from([None, 0.5, 3.0]))
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_binary_equals_torch(scale, batch, seed, weight):
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(size=batch) * scale)
    targets = torch.tensor(rng.random(batch))
    options = {} if weight is None else {"pos_weight": torch.tensor(weight, dtype=torch.float64)}
    ours = value_and_gradient(losses.binary_cross_entropy, logits, targets, pos_weight=weight)
    theirs = value_and_gradient(F.binary_cross_entropy_with_logits, logits, targets, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_binary_is_categorical_with_two_classes():
    """sigmoid(z) = softmax([0, z])[1]."""
    logits = torch.linspace(-5, 5, 11, dtype=torch.float64)
    labels = torch.arange(11) % 2
    pairs = torch.stack([torch.zeros_like(logits), logits], -1)
    torch.testing.assert_close(
        losses.binary_cross_entropy(logits, labels.double()), losses.cross_entropy(pairs, labels)
    )


def test_modules_are_torchs():
    logits, labels = problem((9,), 5, seed=8)
    for options in ({}, {"label_smoothing": 0.2}, {"reduction": "sum"}, {"ignore_index": 3}):
        labels_ = labels.clamp(min=0) if "ignore_index" in options else labels
        torch.testing.assert_close(
            losses.CrossEntropyLoss(**options)(logits, labels_),
            torch.nn.CrossEntropyLoss(**options)(logits, labels_),
        )
    targets = torch.rand(9, dtype=torch.float64)
    torch.testing.assert_close(
        losses.BCEWithLogitsLoss()(logits[:, 0], targets),
        torch.nn.BCEWithLogitsLoss()(logits[:, 0], targets),
    )
    probs = logits.flip(0).softmax(-1)
    torch.testing.assert_close(
        losses.SoftCrossEntropyLoss()(logits, probs), torch.nn.CrossEntropyLoss()(logits, probs)
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda z: losses.cross_entropy(z, torch.tensor([0, 5, 1, -100])),
         r"labels: expected classes from 0 to 2, or -100, got \[5\]"),
        (lambda z: losses.cross_entropy(z, torch.zeros(3, dtype=torch.long)),
         r"labels: expected the shape \(4,\) of logits without its last axis.*got \(3,\)"),
        (lambda z: losses.cross_entropy(z.view(2, 3, 2), torch.zeros(2, 2, dtype=torch.long)),
         r"torch puts the classes second"),
        (lambda z: losses.cross_entropy(z, torch.zeros(4, dtype=torch.long), label_smoothing=2.0),
         r"label_smoothing: expected a number in \[0, 1\], got 2.0"),
        (lambda z: losses.cross_entropy(z, torch.zeros(4, dtype=torch.long), smoothing="all"),
         r"smoothing: expected one of"),
        (lambda z: losses.soft_cross_entropy(z, torch.ones(4, 3)),
         r"probs: expected rows that sum to 1, got 'a row off by 2'"),
        (lambda z: losses.soft_cross_entropy(z, torch.tensor([[1.5, -0.5, 0.0]] * 4)),
         r"probs: expected no negative probability, got -0.5"),
        (lambda z: losses.binary_cross_entropy(z, torch.full((4, 3), 2.0)),
         r"targets: expected values in \[0, 1\], got \(2.0, 2.0\)"),
    ],
)  # fmt: skip
def test_bad_input_speaks(untyped, call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(4, 3))
