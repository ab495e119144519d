"""One call moves all parameters, and moves them as the plain step does."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch

from lossbook.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    NAdam,
    RAdam,
    RMSprop,
    base,
    compiled,
)
from lossbook.optim.sweep import GRAIN, TILE, kernel_of

SHAPES = [
    (2 * TILE,),
    (3, TILE),
    (TILE, 2),
    (TILE + 1, 2),
    (TILE - 1,),
    (5, 7),
    (1,),
    (0,),
    (),
]
MAKERS = {
    "sgd": lambda params, **how: SGD(params, lr=0.1, **how),
    "momentum": lambda params, **how: SGD(params, lr=0.1, momentum=0.9, **how),
    "adamw": lambda params, **how: AdamW(params, lr=0.1, eps=1e-3, weight_decay=0.1, **how),
}


def parameters(shapes: list[tuple[int, ...]], turned: bool = False) -> list[torch.nn.Parameter]:
    """The same numbers for every caller; turned, every matrix is the transpose of its memory."""
    torch.manual_seed(0)
    made = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if turned:
        made = [x.T.contiguous().T if x.ndim == 2 else x for x in made]
    return [torch.nn.Parameter(x) for x in made]


def walked(make, shapes=SHAPES, turned=False, turned_gradients=False, **how):
    params = parameters(shapes, turned)
    optimizer = make(params, **how)
    rng = torch.Generator().manual_seed(1)
    for step in range(4):
        for i, p in enumerate(params):
            g = torch.randn(p.shape, generator=rng, dtype=torch.float64)
            p.grad = g.T.contiguous().T if turned_gradients and g.ndim == 2 else g
            if step == 1 and i == 1:
                p.grad = None  # from here on this one is a step behind the others
        optimizer.step()
    return [p.detach().clone() for p in params]


def gap(one: list[torch.Tensor], two: list[torch.Tensor]) -> float:
    return max(float((a - b).abs().sum()) for a, b in zip(one, two, strict=True))


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def no_warning():
    """A fall-back to the plain step would hide a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("turned_gradients", [False, True])
def test_whatever_the_shape_and_layout_the_step_is_the_plain_one(
    name, turned, turned_gradients, no_warning
):
    plain = walked(MAKERS[name])
    fast = walked(MAKERS[name], SHAPES, turned, turned_gradients, compiled=True)
    assert gap(plain, fast) <= 1e-11  # a sum over 2000 numbers, rounded once less each


@pytest.mark.parametrize("name", MAKERS)
def test_shares_of_threads_meet_without_gap_or_overlap(name, threads, no_warning):
    """Borders of shares fall into tensors, onto their ends, and behind the last of them."""
    shapes = [(3,), (GRAIN,), (GRAIN - 3,), (2 * GRAIN + 5,), (7, TILE), (11,)]
    threads(1)
    alone = walked(MAKERS[name], shapes, compiled=True)
    assert gap(alone, walked(MAKERS[name], shapes)) <= 1e-9
    for count in (2, 3, 5, 8):
        threads(count)
        assert gap(alone, walked(MAKERS[name], shapes, compiled=True)) == 0


def test_memory_that_was_replaced_is_followed():
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


@pytest.mark.parametrize("flag", [False, True])
def test_a_parameter_that_was_replaced_in_its_group_is_followed(flag):
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = SGD([p], lr=1.0, compiled=flag)
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    optimizer.param_groups[0]["params"][0] = q
    optimizer.step()
    assert torch.equal(p, torch.zeros(3))
    assert torch.equal(q, torch.zeros(3))


def test_memory_of_another_length_never_reaches_the_kernel(untyped):
    p = torch.nn.Parameter(torch.ones(8))
    optimizer = SGD([p], lr=1.0, momentum=0.5, compiled=True)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["b"] = torch.ones(5)
    with pytest.raises(RuntimeError, match="must match the size"):
        optimizer.step()


def test_the_kernel_never_gets_an_address_on_another_device(monkeypatch):
    """A group with parameters on two devices, the meta device in the place of an accelerator."""
    sent = []
    monkeypatch.setattr(base, "update_together", lambda _, rows, *__: sent.extend(rows))
    p, q = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4, device="meta"))
    optimizer = SGD([q, p], lr=1.0, momentum=0.5, compiled=True)
    for x in (p, q):
        x.grad = torch.ones_like(x)
    optimizer.step()
    assert torch.equal(p, torch.zeros(3))
    assert [row[0].device.type for row in sent] == ["meta"]


def test_a_gradient_that_is_read_with_the_other_sign_keeps_its_sign():
    """A view of -x has the memory of x."""
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch._neg_view(torch.ones(3))
    SGD([p], lr=1.0, compiled=True).step()
    assert torch.equal(p, torch.full((3,), 2.0))


def test_a_tensor_without_memory_is_refused():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch._efficientzerotensor(3)
    with pytest.raises(ValueError, match="expected numbers in the memory of the CPU"):
        SGD([p], lr=1.0, compiled=True, check_finite=False).step()


def test_two_threads_that_share_a_kernel_step_at_their_own_rates(threads):
    """The kernel keeps the numbers of its last step, and must know whose they are."""
    threads(1)
    wrong, before = [], sys.getswitchinterval()

    def steps(rate):
        p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        p.grad = torch.ones_like(p)
        optimizer = SGD([p], lr=rate, compiled=True)
        for i in range(3000):
            optimizer.param_groups[0]["lr"] = rate * (1 + i % 2)
            optimizer.step()
            if p[0] != -rate * (1 + i % 2):
                wrong.append((rate, p[0].item()))
            p.data.zero_()

    both = [threading.Thread(target=steps, args=(rate,)) for rate in (1.0, 128.0)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


ELEMENTWISE = (SGD, Adagrad, RMSprop, Adadelta, Adam, AdamW, AMSGrad, AdaMax, NAdam, RAdam)


@pytest.mark.parametrize("kind", ELEMENTWISE, ids=lambda kind: kind.__name__)
def test_every_elementwise_optimizer_is_swept(kind, monkeypatch, no_warning):
    """Nobody would see the slower way otherwise, which has the same results."""
    monkeypatch.setattr(compiled, "_kernels", {})
    ends = []
    for flag in (False, True):
        p = torch.nn.Parameter(torch.ones(5, dtype=torch.float64))
        optimizer = kind([p], compiled=flag)
        for t in range(7):
            p.grad = torch.cos(torch.arange(5.0).double() + t)
            optimizer.step()
        ends.append(p.detach())
    assert (ends[0] - ends[1]).abs().max() <= 1e-14
    moves = [kernel.move.__qualname__ for kernel in compiled._kernels.values()]
    assert moves and all(move.startswith("swept") for move in moves)


@pytest.mark.parametrize("name", MAKERS)
def test_where_the_list_cannot_be_swept_its_tensors_go_one_by_one(name, monkeypatch, no_warning):
    def refused(*_):
        raise ValueError("run: expected a function with one kernel, got []")

    swept = walked(MAKERS[name], compiled=True)
    monkeypatch.setattr(compiled, "swept", refused)
    monkeypatch.setattr(compiled, "_kernels", {})
    singly = walked(MAKERS[name], compiled=True)
    assert gap(swept, singly) <= 1e-11
    moves = [kernel.move.__qualname__ for kernel in compiled._kernels.values()]
    assert moves
    assert all(move.startswith("one_by_one") for move in moves)


def test_a_function_without_a_kernel_is_refused():
    with pytest.raises(ValueError, match="run: expected a function with one kernel, got"):
        kernel_of(lambda arguments: None, [torch.float32], (3,), [])
