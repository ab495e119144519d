"""Whatever shape and layout a parameter has, the compiled step is the plain one."""

import pytest
import torch

from lossbook.optim import SGD, AdamW
from lossbook.optim.batching import TILE, shape_for

SHAPES = [
    (2 * TILE,),
    (3, TILE),
    (TILE, 2),
    (TILE, TILE),
    (1, TILE),
    (5, 7),
    (TILE + 1, 2),
    (1,),
    (),
]
MAKERS = {
    "sgd": lambda params, **how: SGD(params, lr=0.1, **how),
    "momentum": lambda params, **how: SGD(params, lr=0.1, momentum=0.9, **how),
    "adamw": lambda params, **how: AdamW(params, lr=0.1, eps=1e-3, weight_decay=0.1, **how),
}


def parameters(turned: bool) -> list[torch.nn.Parameter]:
    """The same numbers for every caller; turned, every matrix is the transpose of its memory."""
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=torch.float64) for shape in SHAPES]
    if turned:
        made = [x.T.contiguous().T if x.ndim == 2 else x for x in made]
    return [torch.nn.Parameter(x) for x in made]


def walked(make, compiled: bool, turned: bool = False, turned_gradients: bool = False):
    params = parameters(turned)
    optimizer = make(params, compiled=compiled)
    rng = torch.Generator().manual_seed(1)
    for _ in range(4):
        for p in params:
            g = torch.randn(p.shape, generator=rng, dtype=torch.float64)
            p.grad = g.T.contiguous().T if turned_gradients and g.ndim == 2 else g
        optimizer.step()
    return [p.detach().clone() for p in params]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("turned_gradients", [False, True])
def test_tables_vectors_and_other_layouts_move_alike(name, turned, turned_gradients):
    plain = walked(MAKERS[name], False)
    fast = walked(MAKERS[name], True, turned, turned_gradients)
    for expected, found in zip(plain, fast, strict=True):
        assert (expected - found).abs().max() <= 1e-14


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_holds_whole_tiles_and_nothing_else(shape):
    p = torch.zeros(shape)
    found = shape_for(p, compiled=True)
    assert torch.Size(found).numel() == p.numel()
    whole = p.numel() % TILE == 0 and p.numel() > TILE
    assert found == ((p.numel() // TILE, TILE) if whole else (p.numel(),))
    assert shape_for(p, compiled=False) == (p.numel(),)


def test_a_parameter_whose_memory_was_replaced_follows_the_new_one():
    """What is kept from step to step must notice another tensor behind the same name."""
    p = torch.nn.Parameter(torch.ones(2 * TILE, dtype=torch.float64))
    optimizer = SGD([p], lr=1.0, momentum=0.5, compiled=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["b"] = torch.ones_like(p)
    optimizer.step()
    assert torch.allclose(p, torch.full_like(p, 0.5))
    p.data = torch.full_like(p, 3.0)
    optimizer.step()
    assert torch.allclose(p, torch.full_like(p, 2.75))
