"""The two averages against torch's AveragedModel and optax, and what averages must do."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lossbook.optim import EMA, ema_step

optax = pytest.importorskip("optax")
jnp = pytest.importorskip("jax.numpy")

SHAPES = [(), (7,), (6, 5), (0, 3)]


class Model(torch.nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        tensors = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
        self.weights = torch.nn.ParameterList(tensors)


def course(steps=30, seed=0):
    rng = np.random.default_rng(seed)
    steps = [[rng.normal(size=shape) for shape in SHAPES] for _ in range(steps)]
    return [[np.asarray(x) for x in tensors] for tensors in steps]


def fill(model, values):
    with torch.no_grad():
        for p, value in zip(model.weights, values, strict=True):
            p.copy_(torch.tensor(value))


def gap(a, b):
    pairs = zip(a, b, strict=True)
    return max((np.abs(np.asarray(x) - np.asarray(y)).max(initial=0) for x, y in pairs), default=0)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_copy_first_equals_torch(decay):
    model = Model()
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    ours = EMA(model, decay, start="copy")
    for values in course():
        fill(model, values)
        ours.update()
        theirs.update_parameters(model)
        expected = [p.detach().numpy() for p in theirs.module.weights]
        assert gap(ours.averages(), expected) <= 1e-14


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_zero_first_equals_optax(decay):
    model = Model()
    ours = EMA(model, decay, start="zero")
    theirs = optax.ema(decay, debias=True)
    state = theirs.init([jnp.asarray(x) for x in course()[0]])
    for values in course():
        fill(model, values)
        ours.update()
        expected, state = theirs.update([jnp.asarray(x) for x in values], state)
        assert gap(ours.averages(), expected) <= 1e-12


def test_the_first_average_is_the_first_parameter_either_way():
    for start in ("copy", "zero"):
        model = Model()
        fill(model, course()[0])
        ema = EMA(model, 0.99, start=start)
        ema.update()
        assert gap(ema.averages(), course()[0]) <= 1e-14


def test_the_two_differ_by_the_weight_of_the_first():
    """Copying gives the first parameters the weight delta^(t-1), debiasing (1-delta) of that."""
    weights = {}
    for start in ("copy", "zero"):
        p = torch.zeros(1, dtype=torch.float64)
        ema = EMA([p], 0.9, start=start)
        for t in range(5):
            p.fill_(float(t == 0))
            ema.update()
        weights[start] = ema.averages()[0].item()
    assert weights["copy"] == pytest.approx(0.9**4, abs=1e-15)
    assert weights["zero"] == pytest.approx(0.1 * 0.9**4 / (1 - 0.9**5), abs=1e-15)


def test_a_planted_mistake_is_caught():
    """Debiasing with the count before the update, and none at all."""
    p = torch.ones(1, dtype=torch.float64)
    ema = EMA([p], 0.9, start="zero")
    for _ in range(3):
        ema.update()
    assert ema.averages()[0].item() == pytest.approx(1.0, abs=1e-15)
    assert abs(ema.sums[0].item() - 1) > 0.5
    assert abs(ema.sums[0].item() / (1 - 0.9**2) - 1) > 0.1


def test_applied_puts_averages_in_and_takes_them_out():
    model = Model()
    ema = EMA(model.named_parameters(), 0.9)
    for values in course(5):
        fill(model, values)
        ema.update()
    before = [p.detach().clone() for p in model.weights]
    with pytest.raises(KeyError), ema.applied():
        assert gap([p.detach() for p in model.weights], ema.averages()) == 0
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(before, model.weights, strict=True))


def test_bfloat16_moves():
    """A step of 0.001 of the difference is below bfloat16's digits; the float32 sum keeps it."""
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    ema = EMA([p], 0.999)
    ema.update()
    p.data.fill_(2.0)
    naive = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(100):
        ema.update()
        naive = ema_step(naive, p.detach(), 0.999)
    assert ema.averages()[0].item() == pytest.approx(2 - 0.999**100, rel=1e-4)
    assert naive.item() == 1.0


def test_state_dict_round_trip():
    model, values = Model(), course(20)
    whole, first = EMA(model, 0.9, start="zero"), EMA(model, 0.9, start="zero")
    for v in values[:8]:
        fill(model, v)
        whole.update()
        first.update()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = EMA(model, 0.9, start="zero")
    second.load_state_dict(torch.load(file, weights_only=True))
    for v in values[8:]:
        fill(model, v)
        whole.update()
        second.update()
    assert all(torch.equal(a, b) for a, b in zip(whole.averages(), second.averages(), strict=True))


def test_refusals():
    p = torch.zeros(2)
    for call, message in (
        (lambda: EMA([p], 1.0), r"decay: expected a number in \[0, 1\), got 1.0"),
        (lambda: EMA([p], -0.1), "decay: .*got -0.1"),
        (lambda: EMA([p], start="ones"), r"start: expected one of \('copy', 'zero'\), got 'ones'"),
        (lambda: EMA([]), "parameters: expected at least one tensor"),
        (lambda: EMA([p]).averages(), r"averages: expected an update\(\) before"),
        (
            lambda: EMA([p], 0.9).load_state_dict(EMA([p], 0.99).state_dict()),
            r"state_dict\['decay'\]: expected this average's 0.9, got 0.99",
        ),
        (
            lambda: EMA([p]).load_state_dict(EMA([p], start="zero").state_dict()),
            r"state_dict\['start'\]: expected this average's 'copy', got 'zero'",
        ),
        (
            lambda: EMA([p]).load_state_dict(EMA([torch.zeros(3)]).state_dict()),
            r"state_dict\['sums'\]: expected the shapes \[\(2,\)\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_what_is_read_or_saved_or_loaded_is_a_copy():
    p = torch.ones(2)
    ema, other = EMA([p], 0.5), EMA([p], 0.5)
    ema.update()
    averages, saved = ema.averages(), ema.state_dict()
    other.load_state_dict(saved)
    p.fill_(3.0)
    for each in (ema, other):
        each.update()
        assert torch.equal(each.averages()[0], torch.full((2,), 2.0))
    assert torch.equal(averages[0], torch.ones(2)) and torch.equal(saved["sums"][0], torch.ones(2))


def test_buffers_are_not_averaged():
    norm = torch.nn.BatchNorm1d(3)
    assert [tuple(x.shape) for x in EMA(norm).sums] == [(3,), (3,)]


def test_a_refused_state_changes_nothing():
    ema, other = (EMA([torch.ones(2)], decay) for decay in (0.5, 0.9))
    other.update()
    with pytest.raises(ValueError, match="decay"):
        ema.load_state_dict(other.state_dict())
    assert ema.updates == 0


def test_defaults():
    """0.999 and a copy, as torch's ``get_ema_multi_avg_fn`` and ``AveragedModel`` have them."""
    ours, p = EMA(Model()), Model()
    theirs = AveragedModel(p, multi_avg_fn=get_ema_multi_avg_fn())
    ours.parameters = list(p.parameters())
    for values in course(5):
        fill(p, values)
        ours.update()
        theirs.update_parameters(p)
    assert gap(ours.averages(), [x.detach().numpy() for x in theirs.module.weights]) <= 1e-14
