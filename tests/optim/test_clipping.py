"""Both forms of clipping against torch and optax, and where they part."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook import optim
from lossbook.optim.clipping import clip_factor, global_norm

optax = pytest.importorskip("optax")
jnp = pytest.importorskip("jax.numpy")

SHAPES = [(7,), (6, 5), (4, 3, 5), ()]
LIMIT = st.sampled_from([1e-2, 1.0, 1e3])
SIZE = st.floats(-9, 6).map(lambda x: 10.0**x)


def gradients(seed, size):
    rng = np.random.default_rng(seed)
    return [np.asarray(size * rng.normal(size=shape)) for shape in SHAPES]


def ours(grads, limit, form):
    scale = clip_factor(global_norm(torch.tensor(g) for g in grads), limit, form)
    return [scale * g for g in grads]


def gap(a, b):
    """The largest difference over the largest number."""
    top = max(np.abs(y).max() for y in b)
    return max(np.abs(np.asarray(x) - np.asarray(y)).max() for x, y in zip(a, b, strict=True)) / top


def torchs(grads, limit):
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for p, g in zip(tensors, grads, strict=True):
        p.grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(tensors, limit)
    return [p.grad.numpy() for p in tensors]


def optaxs(grads, limit):
    transform = optax.clip_by_global_norm(limit)
    arrays = [jnp.asarray(g) for g in grads]
    return [np.asarray(g) for g in transform.update(arrays, transform.init(arrays))[0]]


@given(seed=st.integers(0, 99), size=SIZE, limit=LIMIT)
def test_both_forms_equal_their_libraries(seed, size, limit):
    grads = gradients(seed, size)
    assert gap(ours(grads, limit, "torch"), torchs(grads, limit)) <= 1e-12
    assert gap(ours(grads, limit, "pascanu"), optaxs(grads, limit)) <= 1e-12


def test_where_they_part():
    """Norm 13 clipped at 1; a norm just below the limit; 1e-4 in every step at a limit of 0.01."""
    assert f"{13 * clip_factor(13, 1, 'torch'):.8f}" == "0.99999992"
    assert 13 * clip_factor(13, 1, "pascanu") == pytest.approx(1, abs=1e-15)
    assert clip_factor(0.9999999, 1, "torch") < 1 == clip_factor(0.9999999, 1, "pascanu")
    part = clip_factor(0.01, 0.01, "torch") / clip_factor(0.01, 0.01, "pascanu")
    assert 1 - part == pytest.approx(1e-4, rel=1e-3)
    grads = gradients(0, 1.0)
    assert gap(ours(grads, 1e-2, "torch"), optaxs(grads, 1e-2)) > 1e-8


def test_extremes():
    """Zero, nothing at all, and an infinity."""
    assert clip_factor(0.0, 1.0) == clip_factor(0.0, 1.0, "torch") == 1
    assert global_norm([]) == 0
    assert math.isinf(global_norm([torch.tensor([math.inf])]))


def test_planted_mistakes_are_caught():
    """By tensor (Keras' clipnorm) and by group are other algorithms; so is an eps of 1e-5."""
    grads = gradients(1, 1.0)
    by_tensor = [ours([g], 1.0, "pascanu")[0] for g in grads]
    by_group = ours(grads[:2], 1.0, "pascanu") + ours(grads[2:], 1.0, "pascanu")
    for wrong in (by_tensor, by_group):
        assert gap(wrong, optaxs(grads, 1.0)) > 0.1
    slipped = [g / (math.sqrt(sum((g**2).sum() for g in grads)) + 1e-5) for g in grads]
    assert gap(slipped, torchs(grads, 1.0)) > 1e-7


@pytest.mark.parametrize("form", ["pascanu", "torch"])
def test_an_optimizer_clips_over_all_its_groups(form):
    """One step of SGD at rate 1 moves by the clipped gradient and leaves the gradient alone."""
    grads = gradients(2, 3.0)
    tensors = [torch.zeros(g.shape, dtype=torch.float64, requires_grad=True) for g in grads]
    for p, g in zip(tensors, grads, strict=True):
        p.grad = torch.tensor(g)
    groups = [{"params": tensors[:1]}, {"params": tensors[1:]}]
    optim.SGD(groups, lr=1.0, clip=0.5, clip_form=form).step()
    expected = torchs(grads, 0.5) if form == "torch" else optaxs(grads, 0.5)
    assert gap([-p.detach().numpy() for p in tensors], expected) <= 1e-12
    assert all(np.array_equal(p.grad, g) for p, g in zip(tensors, grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_norm_of_low_precision_is_summed_in_a_higher_one(dtype):
    """Rows of 4096 numbers: in float16 their norm overflows, in bfloat16 it has two digits."""
    g = (3000 * torch.tensor(np.random.default_rng(0).uniform(1, 2, size=20_000))).to(dtype)
    assert global_norm([g]) == pytest.approx(g.double().norm().item(), rel=1e-6)


def test_the_norm_of_a_short_float32_gradient_has_the_digits_of_float64():
    g = torch.tensor(np.random.default_rng(0).normal(size=5000)).float()
    assert global_norm([g]) == pytest.approx(g.double().norm().item(), rel=1e-14)
