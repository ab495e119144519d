"""Losses of numbers against torch, value and gradient, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lossbook import losses

PAIRS = {
    "squared": (losses.squared_error, F.mse_loss),
    "absolute": (losses.absolute_error, F.l1_loss),
    "huber": (losses.huber, F.huber_loss),
    "huber 0.3": (
        lambda *a, **k: losses.huber(*a, delta=0.3, **k),
        lambda *a, **k: F.huber_loss(*a, delta=0.3, **k),
    ),
}
SHAPES = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)


def draw(shape, seed, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, *shape, generator=generator, dtype=torch.float64) * scale


def value_and_gradient(loss, prediction, target, **options):
    prediction = prediction.clone().requires_grad_()
    value = loss(prediction, target, **options)
    value.sum().backward()
    return value.detach(), prediction.grad


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@given(shape=SHAPES, seed=st.integers(0, 99))
def test_equals_torch(name, reduction, shape, seed):
    """Same elementary operations in float64: agreement to a few ulps."""
    ours, theirs = PAIRS[name]
    prediction, target = draw(shape, seed)
    a = value_and_gradient(ours, prediction, target, reduction=reduction)
    b = value_and_gradient(theirs, prediction, target, reduction=reduction)
    torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_mask_divides_by_what_counts(name):
    ours, theirs = PAIRS[name]
    prediction, target = draw((4, 3), seed=1)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    torch.testing.assert_close(
        ours(prediction, target, mask=mask), theirs(prediction[mask], target[mask])
    )
    halves = sum(
        ours(prediction[i], target[i], mask=mask[i], denominator=int(mask.sum()))
        for i in range(len(mask))
    )
    torch.testing.assert_close(halves, ours(prediction, target, mask=mask))


@pytest.mark.parametrize("name", PAIRS)
def test_nothing_to_average_is_zero(name):
    ours, _ = PAIRS[name]
    prediction, target = draw((2, 3), seed=2)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    value, gradient = value_and_gradient(ours, prediction, target, mask=nothing)
    assert value == 0
    assert (gradient == 0).all()


def test_huber_is_smooth_at_its_threshold():
    """Value and slope meet at |r| = delta; a wrong branch would jump by delta**2 / 2."""
    delta, step = 0.7, 1e-9
    target = torch.zeros(2, dtype=torch.float64)
    around = torch.tensor([delta - step, delta + step], dtype=torch.float64)
    value, gradient = value_and_gradient(
        losses.huber, around, target, delta=delta, reduction="none"
    )
    assert abs(value[0] - value[1]) < 1e-8
    assert abs(gradient[0] - gradient[1]) < 1e-8


@pytest.mark.parametrize(
    ("module", "theirs"),
    [
        (losses.MSELoss, torch.nn.MSELoss),
        (losses.L1Loss, torch.nn.L1Loss),
        (losses.HuberLoss, torch.nn.HuberLoss),
    ],
)
def test_modules_are_torchs(module, theirs):
    prediction, target = draw((5,), seed=3)
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            module(reduction=reduction)(prediction, target),
            theirs(reduction=reduction)(prediction, target),
        )


def test_broadcasting_is_refused(untyped):
    """[B] against [B, 1] silently makes B * B pairs in NumPy; here it is an error."""
    with pytest.raises(ValueError, match=r"target: expected the shape of input, \(4,\)"):
        losses.squared_error(torch.zeros(4), torch.zeros(4, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "avg"}, r"reduction: expected one of .* got 'avg'"),
        ({"denominator": 0}, r"denominator: expected a positive number, got 0"),
        ({"denominator": torch.tensor(0)}, r"denominator: expected a positive number"),
        ({"reduction": "sum", "denominator": 3}, r"denominator: expected None"),
    ],
)
def test_bad_options_speak(options, message):
    with pytest.raises(ValueError, match=message):
        losses.squared_error(torch.zeros(4), torch.zeros(4), **options)


def test_bad_delta_speaks():
    with pytest.raises(ValueError, match=r"delta: expected a positive number, got -1"):
        losses.huber(torch.zeros(4), torch.zeros(4), delta=-1.0)
