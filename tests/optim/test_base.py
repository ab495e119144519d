"""What every optimizer of the book inherits: groups, exclusion, clipping, state, refusals."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from lossbook import optim
from lossbook.optim import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    NAdam,
    NonFiniteGradientError,
    RAdam,
    RMSprop,
    batching,
    clip_factor,
    compiled,
    global_norm,
)
from lossbook.optim.compiled import update_together

OPTIONS = {"eps": 1e-3, "weight_decay": 0.1}
ROUNDING = 1e-13


def with_gradient(*shape: int, value: float = 1.0, dtype: torch.dtype = torch.float64):
    p = nn.Parameter(torch.zeros(shape, dtype=dtype))
    p.grad = torch.full_like(p, value)
    return p


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.LayerNorm = nn.LayerNorm(4)
        self.output = nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(3))


# Parameters and their gradients


def test_a_parameter_without_gradient_rests_and_does_not_count():
    moving, resting = with_gradient(3), with_gradient(3)
    resting.grad = None
    optimizer = AdamW([moving, resting], **OPTIONS)
    optimizer.step()
    assert torch.equal(resting, torch.zeros(3, dtype=torch.float64))
    assert optimizer.state[moving]["step"] == 1 and resting not in optimizer.state


def test_gradients_stay_as_they_are(hostile, tools):
    tensors = hostile.tensors()
    optimizer = Adam(tensors, **OPTIONS, clip=0.01)
    for p in tensors:
        p.grad = torch.randn_like(p)
    before = [p.grad.clone() for p in tensors]
    optimizer.step()
    assert all(torch.equal(p.grad, g) for p, g in zip(tensors, before, strict=True))


def test_groups_have_their_own_options(hostile, tools):
    def make(kind):
        def groups(p):
            return kind([{"params": p[:3], "eps": 1e-2}, {"params": p[3:]}], **OPTIONS)

        return groups

    def adjust(optimizer, t):
        optimizer.param_groups[1]["lr"] *= 3

    ours = tools.walk(make(AdamW), hostile, adjust)
    theirs = tools.walk(make(torch.optim.AdamW), hostile, adjust)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("kind", [LambdaLR, CosineAnnealingLR])
def test_schedules_of_torch_drive_it(kind):
    paths = []
    for make in (AdamW, torch.optim.AdamW):
        p = nn.Parameter(torch.ones(4, dtype=torch.float64))
        optimizer = make([p], lr=0.1, **OPTIONS)
        argument = (lambda t: 1 / (1 + t)) if kind is LambdaLR else 8
        schedule, path = kind(optimizer, argument), []
        for t in range(12):
            p.grad = torch.full_like(p, np.cos(t))
            optimizer.step()
            schedule.step()
            path.append(p.detach().numpy().copy())
        paths.append(np.stack(path))
    assert np.abs(paths[0] - paths[1]).max() <= 1e-14


def test_a_closure_is_evaluated_with_gradients_and_its_loss_returned():
    p = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = Adam([p], lr=0.5, eps=0.0)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert p.item() == 1.5


def test_a_learning_rate_may_be_a_tensor():
    p = with_gradient(2)
    Adam([p], lr=torch.tensor(0.25, dtype=torch.float64), eps=0.0).step()
    assert torch.equal(p, torch.full_like(p, -0.25))


@pytest.mark.parametrize("flag", [False, True])
def test_layouts_and_lengths_do_not_matter(tools, flag, monkeypatch):
    """Glued, cut, transposed and empty tensors move as torch moves them."""
    monkeypatch.setattr(batching, "BLOCK", 64)
    monkeypatch.setattr(batching, "SMALL", 16)
    rng = np.random.default_rng(0)
    shapes = [(0,), (1,), (5,), (15,), (16,), (17, 3), (13, 11)]
    ends = []
    for make in (lambda p: AdamW(p, **OPTIONS, compiled=flag), torch.optim.AdamW):
        rng = np.random.default_rng(0)
        tensors = [nn.Parameter(torch.tensor(rng.normal(size=s))) for s in shapes]
        tensors.append(nn.Parameter(torch.tensor(rng.normal(size=(4, 9))).t()))
        optimizer = make(tensors) if make is not torch.optim.AdamW else make(tensors, **OPTIONS)
        for _ in range(5):
            for p in tensors:
                p.grad = torch.tensor(rng.normal(size=tuple(p.shape)))
            optimizer.step()
        ends.append(tensors)
    for ours, theirs in zip(*ends, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-16 * 10)


def test_a_glued_step_is_the_step_to_the_bit(tools, hostile, monkeypatch):
    together = tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)
    monkeypatch.setattr(batching, "SMALL", 1)
    assert tools.distance(tools.walk(lambda p: AdamW(p, **OPTIONS), hostile), together) == 0


# Exclusion from decay


def test_berts_rule_goes_by_name():
    optimizer = Adam.like("bert", Model().named_parameters(), lr=1e-4)
    assert optimizer.excluded == ["LayerNorm.weight", "LayerNorm.bias", "output.bias"]


def test_the_rule_by_rank_takes_vectors():
    optimizer = AdamW(Model().named_parameters(), exclude="rank")
    assert optimizer.excluded == ["gain", "LayerNorm.weight", "LayerNorm.bias", "output.bias"]


def test_a_rule_of_ones_own():
    rule = AdamW(Model().named_parameters(), exclude=lambda name, p: "embedding" in name)
    assert rule.excluded == ["embedding.weight"]
    assert AdamW(Model().parameters()).excluded == []


@pytest.mark.parametrize("flag", [False, True])
def test_what_is_excluded_moves_without_decay(hostile, tools, flag):
    def ours(p):
        return AdamW(p, **OPTIONS, exclude="rank", compiled=flag)

    def theirs(p):
        matrices = [x for x in p if x.ndim > 1]
        vectors = [x for x in p if x.ndim <= 1]
        return torch.optim.AdamW(
            [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], **OPTIONS
        )

    assert tools.distance(tools.walk(ours, hostile), tools.walk(theirs, hostile)) <= ROUNDING


def test_berts_rule_without_names_says_what_it_needs():
    with pytest.raises(ValueError, match=r"model\.named_parameters"):
        Adam.like("bert", Model().parameters())


# Clipping


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e3])
def test_clipping_is_torchs(hostile, tools, limit):
    def adjust(optimizer, t):
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], limit)

    ours = tools.walk(lambda p: AdamW(p, **OPTIONS, clip=limit, clip_form="torch"), hostile)
    theirs = tools.walk(lambda p: torch.optim.AdamW(p, **OPTIONS), hostile, adjust)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_the_norm_runs_over_all_groups_at_once():
    p, q = with_gradient(9, value=1.0), with_gradient(16, value=1.0)  # norms 3 and 4
    optimizer = Adam([{"params": [p]}, {"params": [q]}], clip=1.0)
    optimizer.step()
    assert torch.allclose(optimizer.state[p]["m"], torch.full_like(p, 0.1 / 5), rtol=1e-14)
    assert torch.allclose(optimizer.state[q]["m"], torch.full_like(q, 0.1 / 5), rtol=1e-14)


def test_the_two_forms_differ_by_torchs_millionth():
    assert clip_factor(13.0, 1.0) == 1 / 13
    assert clip_factor(0.9999999, 1.0) == 1.0
    assert clip_factor(0.9999999, 1.0, "torch") < 1.0
    assert clip_factor(0.01, 0.01, "torch") == pytest.approx(1 - 1e-4, abs=1e-8)


def test_clipping_is_optaxs():
    import jax.numpy as jnp
    import optax

    rng = np.random.default_rng(0)
    gradients = [rng.normal(size=s) for s in [(3, 4), (5,)]]
    clip = optax.clip_by_global_norm(0.5)
    clipped, _ = clip.update([jnp.asarray(g) for g in gradients], clip.init(gradients))
    factor = clip_factor(global_norm(torch.tensor(g) for g in gradients), 0.5)
    for g, c in zip(gradients, clipped, strict=True):
        assert np.allclose(factor * g, np.asarray(c), rtol=1e-14, atol=0)


def test_the_norm_of_a_long_float32_gradient_is_right():
    """One running float32 sum is wrong in the third digit at such lengths."""
    g = torch.tensor(np.random.default_rng(0).normal(size=3_000_001) * 1e-3).float()
    assert global_norm([g]) == pytest.approx(g.double().norm().item(), rel=1e-7)
    half = torch.full((70_000,), 1.0, dtype=torch.bfloat16)
    assert global_norm([half]) == pytest.approx(70_000**0.5, rel=1e-7)


# State


@pytest.mark.parametrize("flag", [False, True])
def test_resuming_gives_the_same_bits(hostile, tools, flag):
    def make(p):
        return AdamW(p, **OPTIONS, clip=1.0, exclude="rank", compiled=flag)

    whole = tools.walk(make, hostile)
    tensors = hostile.tensors()
    optimizer, path = make(tensors), []
    for theta in tools.positions(optimizer, tensors, hostile):
        path.append(theta)
        if len(path) == 11:
            break
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = [nn.Parameter(p.detach().clone()) for p in tensors]
    resumed = make(again)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    path += list(tools.positions(resumed, again, hostile, first=11))[1:]
    assert tools.distance(path, whole) == 0


def test_a_loaded_state_is_a_copy():
    p, q = with_gradient(3), with_gradient(3)
    first, second = AdamW([p]), AdamW([q])
    first.step()
    saved = first.state_dict()
    kept = saved["state"][0]["m"].clone()
    second.load_state_dict(saved)
    second.step()
    assert torch.equal(saved["state"][0]["m"], kept)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on_alone(how):
    p = with_gradient(3)
    optimizer = AdamW([("w", p)], **OPTIONS, clip=0.5, exclude="rank")
    optimizer.step()
    twin = how(optimizer)
    other = twin.param_groups[0]["params"][0]
    other.grad = p.grad.clone()
    optimizer.step()
    assert not torch.equal(other, p)
    twin.step()
    assert torch.equal(other, p) and twin.excluded == ["w"] and twin.clip == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_moments_of_low_precision_are_float32(dtype):
    p = with_gradient(3, dtype=dtype)
    optimizer = AdamW([p])
    optimizer.step()
    assert optimizer.state[p]["v"].dtype == torch.float32 and p.dtype == dtype
    other = with_gradient(3, dtype=dtype)
    resumed = AdamW([other])
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(resumed.state[other]["v"], optimizer.state[p]["v"])


def test_in_bfloat16_the_second_moment_can_fall_again():
    """0.999 v rounds back to v in bfloat16; in float32 it does not."""
    p = with_gradient(1, value=1.0, dtype=torch.bfloat16)
    theirs = with_gradient(1, value=1.0, dtype=torch.bfloat16)
    optimizer, other = AdamW([p]), torch.optim.AdamW([theirs])
    for t in range(200):
        p.grad.fill_(1.0 if t == 0 else 0.0)
        theirs.grad.copy_(p.grad)
        optimizer.step()
        other.step()
    assert optimizer.state[p]["v"].item() == pytest.approx(1e-3 * 0.999**199, rel=1e-4)
    assert other.state[theirs]["exp_avg_sq"].item() > 0.95e-3


def test_a_state_loads_across_precisions():
    p, q = with_gradient(3, dtype=torch.float32), with_gradient(3, dtype=torch.float64)
    optimizer, wide = AdamW([p]), AdamW([q])
    optimizer.step()
    wide.load_state_dict(optimizer.state_dict())
    assert wide.state[q]["m"].dtype == torch.float64 and wide.state[q]["step"] == 1


def test_a_state_of_another_optimizer_is_refused_and_loses_nothing():
    p, q = with_gradient(3), with_gradient(3)
    ours, theirs = AdamW([p]), torch.optim.AdamW([q])
    ours.step()
    theirs.step()
    kept = ours.state[p]["m"].clone()
    with pytest.raises(
        ValueError, match=r"state_dict\['state'\]\[0\]: expected .*'m', 'step', 'v'"
    ):
        ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours.state[p]["m"], kept)
    wider = AdamW([with_gradient(4)])
    wider.step()
    with pytest.raises(ValueError, match=r"\['m'\]: expected shape \(3,\), got \(4,\)"):
        ours.load_state_dict(wider.state_dict())


# Refusals


def test_a_sparse_gradient_is_refused_before_anything_moves():
    p, q = with_gradient(3), with_gradient(3)
    q.grad = torch.ones(3, dtype=torch.float64).to_sparse()
    optimizer = AdamW([("first", p), ("second", q)])
    with pytest.raises(ValueError, match=r"second: expected a dense gradient, got torch.sparse"):
        optimizer.step()
    assert not p.any() and not optimizer.state


def test_complex_parameters_are_refused():
    p = torch.zeros(3, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ValueError, match=r"w: expected a real floating-point type, .*complex64"):
        Adam([("w", p)])


def test_a_complex_gradient_is_refused_before_anything_moves():
    p = with_gradient(3)
    p.grad = None
    p.grad_dtype = None  # torch's way to let a gradient have another type
    p.grad = torch.ones(3, dtype=torch.complex128)
    optimizer = AdamW([("w", p)])
    with pytest.raises(ValueError, match=r"w: expected a real gradient, got torch.complex128"):
        optimizer.step()
    assert not p.any() and not optimizer.state


@pytest.mark.parametrize("options", [{}, {"clip": 1.0}, {"check_finite": True}])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_is_named_and_changes_nothing(options, bad):
    p, q = with_gradient(3), with_gradient(3, value=bad)
    optimizer = AdamW([("good", p), ("bad", q)], **options)
    with pytest.raises(NonFiniteGradientError, match=r"infinity or NaN in bad$"):
        optimizer.step()
    assert not p.any() and not q.any() and not optimizer.state


def test_finite_gradients_with_an_infinite_norm_are_told_apart():
    p = with_gradient(3, value=1e200)
    with pytest.raises(NonFiniteGradientError, match="a norm that overflows"):
        AdamW([p], clip=1.0).step()
    SGD([p], lr=1e-200).step()  # without clipping nobody needs the norm
    assert torch.equal(p, -torch.ones_like(p))


def test_finite_gradients_with_an_infinite_sum_pass():
    p = with_gradient(3, value=6e4, dtype=torch.float16)
    assert p.grad.sum().isinf()
    SGD([p], lr=2.0**-14).step()
    assert p.isfinite().all() and p.all()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_who_does_not_want_to_look_gets_what_is_there(clip):
    p = with_gradient(3, value=np.nan)
    AdamW([p], check_finite=False, clip=clip).step()
    assert p.isnan().all()


def test_by_default_an_accelerator_is_not_waited_for():
    """The rule itself, since tensors on ``meta`` have no numbers that one could look at."""
    near, far = torch.zeros(3), torch.zeros(3, device="meta")
    for option, expected in ((None, (True, False)), (True, (True, True)), (False, (False, False))):
        optimizer = SGD([near, far], check_finite=option)
        assert (optimizer._looks_at(near), optimizer._looks_at(far)) == expected


def test_no_parameters():
    with pytest.raises(ValueError, match="params: expected at least one parameter"):
        AdamW([])


def test_a_misspelt_option_of_a_group():
    group = {"params": [with_gradient(3)], "learning_rate": 1.0}
    with pytest.raises(ValueError, match=r"params: expected options among .*'learning_rate'"):
        AdamW([group])
    with pytest.raises(ValueError, match="eps: expected"):
        AdamW([{"params": [with_gradient(3)], "eps": -1.0}])


# The compiler


def test_without_a_compiler_the_equation_runs_as_it_is(monkeypatch):
    def broken(*_):
        raise RuntimeError("no working C++ compiler found")

    monkeypatch.setattr(compiled, "_build", broken)
    monkeypatch.setattr(compiled, "_kernels", {})
    p, q = with_gradient(3), with_gradient(3)
    optimizer = AdamW([p], compiled=True)
    with pytest.warns(RuntimeWarning, match="no working C.. compiler found.*runs uncompiled"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        optimizer.step()
    plain = AdamW([q])
    plain.step()
    plain.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_steps_in_other_precisions(hostile, tools, dtype):
    paths = [
        tools.walk(lambda p, flag=flag: AdamW(p, **OPTIONS, compiled=flag), hostile, dtype=dtype)
        for flag in (False, True)
    ]
    if dtype == torch.float32:
        assert tools.distance(*paths) <= 1e-5
    else:  # the arithmetic is float32, and theta is rounded once: one unit in its last place
        gaps = [np.abs(a - b).max() for a, b in zip(paths[0][-1], paths[1][-1], strict=True)]
        assert max(gaps) <= 2**-7


def test_a_new_learning_rate_does_not_compile_again(hostile, tools):
    tools.walk(lambda p: AdamW(p, **OPTIONS, compiled=True), hostile)
    before = len(compiled._kernels)
    tools.walk(lambda p: AdamW(p, eps=1e-2, weight_decay=0.3, compiled=True), hostile)
    assert len(compiled._kernels) == before


def test_a_compiled_step_is_seen_by_autograd():
    p = nn.Parameter(torch.ones(3, dtype=torch.float64))
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    AdamW([p], compiled=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_graph_for_other_devices_is_the_same_equation(untyped):
    """What a GPU runs, all tensors in one graph, here on the CPU."""

    def equation(theta, g, m, t, *, lr):
        m = m + g
        return theta - lr * m / t, m

    def rows():
        generator = np.random.default_rng(1)
        return [[torch.tensor(generator.normal(size=s)) for _ in range(3)] for s in [(3,), (2, 5)]]

    numbers, (ours, theirs) = {"t": 2.0, "scale": 0.5, "lr": 0.1}, (rows(), rows())
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a fall-back would hide a failure
        update_together(equation, ours, numbers, {})
    for row in theirs:
        compiled.update(equation, row, numbers, {})
    for one, two in zip(ours, theirs, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-14, atol=0) for a, b in zip(one, two, strict=True))


KINDS = {
    "SGD": SGD,
    "momentum": partial(SGD, momentum=0.9),
    "Adagrad": Adagrad,
    "RMSprop": partial(RMSprop, momentum=0.9, centered=True),
    "Adadelta": Adadelta,
    "Adam": Adam,
    "AdamW": AdamW,
    "AMSGrad": AMSGrad,
    "AdaMax": AdaMax,
    "NAdam": NAdam,
    "RAdam": RAdam,
    "Adafactor": partial(Adafactor, beta1=0.9),
}
SPOILT = {
    "sparse": lambda g: g.to_sparse(),
    "complex": lambda g: g.to(torch.complex128),
    "infinite": lambda g: g / 0,
    "NaN": lambda g: g * np.nan,
}


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_refuses_before_anything_moves(kind, how, clip):
    """The last of two gradients is bad, after a step that has filled the memory."""
    p, q = with_gradient(3, 2), with_gradient(3, 2)
    optimizer = KINDS[kind]([("first", p), ("second", q)], clip=clip)
    optimizer.step()
    before = copy.deepcopy([p.detach(), q.detach(), optimizer.state_dict()["state"]])
    g, q.grad, q.grad_dtype = q.grad, None, None
    q.grad = SPOILT[how](g)
    with pytest.raises(ValueError, match="second"):
        optimizer.step()
    after = [p.detach(), q.detach(), optimizer.state_dict()["state"]]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_goes_on_from_its_state_to_the_bit(hostile, tools, kind, dtype):
    hostile.dtypes = [dtype] * len(hostile.start)
    whole = tools.walk(KINDS[kind], hostile)
    tensors = hostile.tensors()
    first = KINDS[kind](tensors)
    walk = tools.positions(first, tensors, hostile)
    path = [next(walk) for _ in range(11)]  # the start, and ten steps
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    kept = copy.deepcopy(saved)
    second = KINDS[kind](tensors)
    second.load_state_dict(saved)
    path += list(tools.positions(second, tensors, hostile, first=11))[1:]
    assert tools.distance(path, whole) == 0
    torch.testing.assert_close(saved["state"], kept["state"], rtol=0, atol=0)  # it was copied


@pytest.mark.parametrize("kind", KINDS)
def test_precisions_mix_in_both_orders(hostile, tools, kind):
    """Whoever stands beside it in the group, a parameter moves as it does alone, to the bit."""
    kinds = [torch.float64, torch.float32, torch.bfloat16, torch.float16] * 2
    for dtypes in (kinds[:6], kinds[1:7]):
        hostile.dtypes = dtypes
        together = tools.walk(KINDS[kind], hostile)
        for i in range(6):
            one = copy.deepcopy(hostile)
            one.start, one.dtypes = one.start[i : i + 1], dtypes[i : i + 1]
            one.gradients = [row[i : i + 1] for row in one.gradients]
            alone = tools.walk(KINDS[kind], one)
            assert all(np.array_equal(a[i], b[0]) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize(
    ("kind", "oracle"),
    [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)],
)
def test_defaults_are_torchs(kind, oracle):
    groups = [
        make([torch.zeros(2, requires_grad=True)]).param_groups[0]
        for make in (kind, partial(kind.like, "torch"), oracle)
    ]
    common = set(groups[0]) & set(groups[2]) - {"params"}
    assert {"lr", "weight_decay"} <= common
    for ours in groups[:2]:
        assert {k: ours[k] for k in common} == {k: groups[2][k] for k in common}


def defaults(function):
    """By name; two betas count as beta1 and beta2, two eps as eps1 and eps2."""
    parameters = inspect.signature(function).parameters.values()
    found = {p.name: p.default for p in parameters if p.default not in (p.empty, None)}
    for plural, one in (("betas", "beta"), ("eps", "eps")):
        if isinstance(found.get(plural), tuple):
            found[f"{one}1"], found[f"{one}2"] = found.pop(plural)
    return found


STEPS = [name for name in optim.__all__ if name.endswith("_step") and name != "ema_step"]


@pytest.mark.parametrize("step", STEPS)
def test_an_equation_has_the_defaults_of_its_class(step):
    kinds = {name.lower(): getattr(optim, name) for name in optim.__all__}
    kind = kinds["sgd" if step == "plain_step" else step.removesuffix("_step")]
    ours, theirs = defaults(kind.__init__), defaults(getattr(optim, step))
    common = set(ours) & set(theirs)
    assert {"lr", "weight_decay"} <= common
    assert {k: theirs[k] for k in common} == {k: ours[k] for k in common}


def test_a_rate_that_is_a_tensor_keeps_where_it_began():
    """torch's schedulers change such a rate in place; ``initial_lr`` must not go with it."""
    ends = []
    for lr in (0.25, torch.tensor(0.25, dtype=torch.float64)):
        p = with_gradient(1, value=0.0)
        p.data.fill_(1.0)
        optimizer = AdamW([p], lr=lr, weight_decay=0.5, decay="paper")
        schedule = LambdaLR(optimizer, lambda t: 0.5**t)
        for _ in range(3):
            optimizer.step()
            schedule.step()
        ends.append(p.item())
    assert ends == [0.5 * 0.75 * 0.875] * 2


def test_a_group_may_say_where_its_rate_began():
    """As a run does that is taken up in the middle of its schedule."""
    p = with_gradient(1, value=0.0)
    p.data.fill_(1.0)
    group = {"params": [p], "lr": 0.1, "initial_lr": 0.2}
    AdamW([group], weight_decay=0.5, decay="paper").step()
    assert p.item() == 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_begins_at_zero_moves_nothing(kind):
    """The schedule's multiplier is lr over initial_lr, here 0 over 0."""
    p = with_gradient(3)
    KINDS[kind]([p], lr=0.0).step()
    assert not p.any()


def test_a_group_that_is_added_later_moves_and_is_excluded_like_the_others():
    early, matrix, bias = with_gradient(2, 2), with_gradient(2, 2), with_gradient(3)
    optimizer = AdamW([("early", early)], exclude="rank")
    optimizer.step()
    optimizer.add_param_group({"params": [("matrix", matrix), ("bias", bias)]})
    optimizer.step()
    assert matrix.all() and bias.all() and optimizer.excluded == ["bias"]
    assert [optimizer.state[p]["step"] for p in (early, matrix, bias)] == [2, 1, 1]


def test_a_refused_group_is_not_added():
    optimizer = AdamW([with_gradient(3)])
    with pytest.raises(ValueError, match="eps: expected"):
        optimizer.add_param_group({"params": [with_gradient(3)], "eps": -1.0})
    assert len(optimizer.param_groups) == 1


def test_a_loaded_state_brings_its_exclusions():
    """They are part of the groups; a list that was made before must not be used any longer."""
    p, q = with_gradient(3, value=0.0), with_gradient(3, value=0.0)
    saved, optimizer = AdamW([p], exclude="rank"), AdamW([q], weight_decay=0.5)
    saved.step()
    optimizer.step()
    optimizer.load_state_dict(saved.state_dict())
    q.data.fill_(1.0)
    optimizer.step()
    assert (q == 1).all()


def test_the_groups_of_one_optimizer_are_groups_for_another():
    """With what torch's schedulers have left in them."""
    old = SGD([("w", with_gradient(3))], lr=0.5, momentum=0.9, exclude="rank")
    OneCycleLR(old, max_lr=0.1, total_steps=9)
    SWALR(old, swa_lr=0.1)
    assert {"decayed", "initial_lr", "max_lr", "swa_lr"} <= set(old.param_groups[0])
    assert SGD(old.param_groups).excluded == []


def test_the_first_eight_bad_gradients_are_named_and_no_others():
    bad = [(f"w{i}", with_gradient(1, value=np.nan)) for i in range(9)]
    with pytest.raises(NonFiniteGradientError, match=r"NaN in w0, w1, w2, w3, w4, w5, w6, w7$"):
        AdamW(bad).step()


def test_a_parameter_without_a_name_goes_by_its_shape():
    with pytest.raises(NonFiniteGradientError, match=r"in parameter of shape \(3, 2\)$"):
        AdamW([with_gradient(3, 2, value=np.nan)]).step()


@pytest.mark.parametrize("name", ["lr", "weight_decay", "clip"])
def test_infinity_is_no_option(name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got inf"):
        AdamW([with_gradient(3)], **{name: np.inf})
