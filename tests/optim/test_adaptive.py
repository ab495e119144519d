"""AdaGrad, RMSProp and AdaDelta against torch, optax, one another, and their bugs.

Errors are measured relative to the distance that a parameter has travelled.
"""

from __future__ import annotations

import copy
import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from trajectories import optax_walk

from lossbook.optim import (
    Adadelta,
    Adagrad,
    Adam,
    RMSprop,
    adadelta_step,
    adagrad_step,
    adam_step,
    rmsprop_step,
)

# 25 steps of a dozen roundings each, in float64.
ROUNDING = 1e-13
# The difference v - m^2 of the centred form loses digits that both its terms have.
CANCELLING = 1e-11

DECAYED = {"eps": 1e-3, "weight_decay": 0.1}
RMS_FORMS = [
    {**DECAYED, "alpha": 0.9, "centered": centered, "momentum": momentum}
    for centered, momentum in product((False, True), (0.0, 0.9))
]
TORCH_FORMS = [
    (Adagrad, torch.optim.Adagrad, {**DECAYED, "lr_decay": 0.05}),
    (Adagrad, torch.optim.Adagrad, {**DECAYED, "initial_accumulator_value": 0.1}),
    *[(RMSprop, torch.optim.RMSprop, options) for options in RMS_FORMS],
    (Adadelta, torch.optim.Adadelta, DECAYED),
    (Adadelta, torch.optim.Adadelta, {**DECAYED, "rho": 0.5}),
]
torch_forms = pytest.mark.parametrize(("kind", "oracle", "options"), TORCH_FORMS, ids=str)


def bound(options):
    return CANCELLING if options.get("centered") else ROUNDING


@pytest.mark.parametrize("way", [{"foreach": False}, {"foreach": True}], ids=str)
@torch_forms
def test_equals_torch(hostile, tools, kind, oracle, options, way):
    ours = tools.walk(lambda p: kind(p, **options), hostile)
    theirs = tools.walk(lambda p: oracle(p, **options, **way), hostile)
    assert tools.distance(ours, theirs) <= bound(options)


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-8])
@torch_forms
def test_equals_torch_at_every_size_of_gradient(tools, kind, oracle, options, scale):
    """Without decay, which would be all that is left at 1e-8; eps shrinks like the gradients."""
    problem = tools.Problem.hostile(scale=scale)
    options = {**options, "eps": 1e-3 * scale, "weight_decay": 0.0}
    ours = tools.walk(lambda p: kind(p, **options), problem)
    theirs = tools.walk(lambda p: oracle(p, **options), problem)
    assert tools.distance(ours, theirs) <= bound(options)


@torch_forms
def test_defaults_are_torchs(hostile, tools, kind, oracle, options):
    fresh = kind([torch.zeros(2, requires_grad=True)]).param_groups[0]
    theirs = oracle([torch.zeros(2, requires_grad=True)]).param_groups[0]
    common = set(fresh) & set(theirs) - {"params"}
    assert {"lr", "eps", "weight_decay"} <= common
    assert {k: fresh[k] for k in common} == {k: theirs[k] for k in common}
    named = kind.like("torch", [torch.zeros(2, requires_grad=True)]).param_groups[0]
    assert {k: named[k] for k in common} == {k: theirs[k] for k in common}


def optax_chain(name, problem, **options):
    import jax.numpy as jnp
    import optax

    rates = jnp.asarray(problem.rates)
    transformation = getattr(optax, name)(lambda count: rates[count], **options)
    return optax_walk(optax.chain(optax.add_decayed_weights(0.1), transformation), problem)


@pytest.mark.parametrize("start", [0.0, 0.1, 1.0])
def test_equals_optax_adagrad(tools, start):
    problem = tools.Problem.hostile(missing=False)
    options = {"eps": 1e-3, "initial_accumulator_value": start}
    ours = tools.walk(lambda p: Adagrad.like("optax", p, weight_decay=0.1, **options), problem)
    assert tools.distance(ours, optax_chain("adagrad", problem, **options)) <= ROUNDING


def test_torchs_adagrad_is_optaxs_without_eps(tools):
    problem = tools.Problem.hostile(missing=False)
    options = {"eps": 0.0, "initial_accumulator_value": 0.1}
    theirs = tools.walk(lambda p: torch.optim.Adagrad(p, weight_decay=0.1, **options), problem)
    assert tools.distance(theirs, optax_chain("adagrad", problem, **options)) <= ROUNDING


FORMS = list(product((False, True), (None, 0.9), (0.0, 1.0), (True, False)))


@pytest.mark.parametrize(("centered", "momentum", "start", "inside"), FORMS)
def test_equals_optax_rmsprop(tools, centered, momentum, start, inside):
    """With start = 1 and eps under the root this is TensorFlow 1's, and timm's RMSpropTF."""
    problem = tools.Problem.hostile(missing=False)
    flags = {"initial_scale": start, "eps_in_sqrt": inside, "centered": centered}
    theirs = optax_chain("rmsprop", problem, eps=1e-3, momentum=momentum, **flags)
    options = {
        "eps_placement": "inside" if inside else "outside",
        "initial_accumulator_value": start,
        "centered": centered,
        "momentum": momentum or 0.0,
    }
    preset = "tensorflow-1" if start else "optax"
    ours = tools.walk(lambda p: RMSprop.like(preset, p, **DECAYED, **options), problem)
    assert tools.distance(ours, theirs) <= bound(options)


@pytest.mark.parametrize(("centered", "inside"), [(False, False), (False, True), (True, True)])
def test_equals_optax_with_bias_correction(tools, centered, inside):
    problem = tools.Problem.hostile(missing=False)
    options = {"centered": centered, "bias_correction": True}
    theirs = optax_chain("rmsprop", problem, eps=1e-3, eps_in_sqrt=inside, **options)
    options["eps_placement"] = "inside" if inside else "outside"
    ours = tools.walk(lambda p: RMSprop.like("optax", p, **DECAYED, **options), problem)
    assert tools.distance(ours, theirs) <= bound(options)


def test_the_first_corrected_variance_is_zero(tools):
    """One gradient has no variance: optax's root is NaN where rounding makes it negative."""
    problem = tools.Problem.hostile(missing=False)
    options = {"centered": True, "bias_correction": True}
    theirs = optax_chain("rmsprop", problem, eps=1e-3, eps_in_sqrt=False, **options)
    assert any(np.isnan(x).any() for x in theirs[1])
    options["eps_placement"] = "outside"
    ours = tools.walk(lambda p: RMSprop.like("optax", p, **DECAYED, **options), problem)
    assert all(np.isfinite(x).all() for step in ours for x in step)
    start, rate = problem.start, problem.rates[0]
    for x, y, g in zip(start, ours[1], problem.gradients[0], strict=True):
        assert np.allclose(y, x - rate * (g + 0.1 * x) / 1e-3, rtol=1e-4, atol=0)


def test_equals_optax_adadelta(tools):
    problem = tools.Problem.hostile(missing=False)
    theirs = optax_chain("adadelta", problem, rho=0.9, eps=1e-3)
    ours = tools.walk(lambda p: Adadelta.like("optax", p, **DECAYED), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


# Libraries that the tests do not install: their lines, written out over arrays


def loop(problem, step):
    """``step(theta, g, memory, lr)`` over arrays; ``memory`` is a dict for each parameter."""
    theta, memories, path = [x.copy() for x in problem.start], [{} for _ in problem.start], []
    for gradients, lr in zip(problem.gradients, problem.rates, strict=True):
        path.append([x.copy() for x in theta])
        for i, g in enumerate(gradients):
            if g is not None:
                theta[i] = step(theta[i], g, memories[i], lr)
    return [*path, theta]


def keras_adagrad(theta, g, memory, lr):
    theta = theta - theta * 0.1 * lr
    memory["v"] = memory.get("v", 0.1) + g * g
    return theta - lr * g / np.sqrt(memory["v"] + 1e-3)


def keras_rmsprop(theta, g, memory, lr):
    theta = theta - theta * 0.1 * lr
    v = memory["v"] = 0.9 * memory.get("v", 0.0) + 0.1 * g * g
    m = memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * g
    b = memory["b"] = 0.9 * memory.get("b", 0.0) + lr * g / np.sqrt(v - m * m + 1e-3)
    return theta - b


def keras_adadelta(theta, g, memory, lr):
    theta = theta - theta * 0.1 * lr
    v = memory["v"] = 0.95 * memory.get("v", 0.0) + 0.05 * g * g
    delta = -np.sqrt(memory.get("u", 0.0) + 1e-3) * g / np.sqrt(v + 1e-3)
    memory["u"] = 0.95 * memory.get("u", 0.0) + 0.05 * delta * delta
    return theta + lr * delta


KERAS = [
    (Adagrad, keras_adagrad, {}),
    (RMSprop, keras_rmsprop, {"centered": True, "momentum": 0.9}),
    (Adadelta, keras_adadelta, {}),
]


@pytest.mark.parametrize(
    ("kind", "lines", "options"), KERAS, ids=["adagrad", "rmsprop", "adadelta"]
)
def test_keras_lines(hostile, tools, kind, lines, options):
    ours = tools.walk(lambda p: kind.like("keras", p, **DECAYED, **options), hostile)
    assert tools.distance(ours, loop(hostile, lines)) <= bound(options)


def test_graves_equations(hostile, tools):
    """Equations 38 to 41 of arXiv 1308.0850, with his constants."""

    def graves(theta, g, memory, lr):
        n = memory["n"] = 0.95 * memory.get("n", 0.0) + 0.05 * g**2
        mean = memory["g"] = 0.95 * memory.get("g", 0.0) + 0.05 * g
        move = 0.9 * memory.get("d", 0.0) - lr * g / np.sqrt(n - mean**2 + 1e-4)
        memory["d"] = move
        return theta + move

    ours = tools.walk(lambda p: RMSprop.like("graves", p), hostile)
    assert tools.distance(ours, loop(hostile, graves)) <= CANCELLING


# Conversion identities


def test_rmsprop_is_adam_without_its_first_moment(hostile, tools):
    options = {**DECAYED, "alpha": 0.97, "bias_correction": True}
    ours = tools.walk(lambda p: RMSprop(p, **options), hostile)
    for kind in (Adam, torch.optim.Adam):
        other = tools.walk(lambda p, k=kind: k(p, betas=(0.0, 0.97), **DECAYED), hostile)
        assert tools.distance(ours, other) <= ROUNDING


@pytest.mark.parametrize("kind", [RMSprop, torch.optim.RMSprop])
def test_adagrad_is_rmsprop_that_forgets_nothing(tools, kind):
    """alpha = 1 - 1/t makes v the plain mean G/t; rate and eps over the root of t do the rest."""
    problem = tools.Problem.hostile(missing=False)

    def adjust(optimizer, t):
        group, root = optimizer.param_groups[0], math.sqrt(t)
        group.update(lr=group["lr"] / root, eps=1e-3 / root, alpha=1 - 1 / t)

    theirs = tools.walk(lambda p: kind(p), problem, adjust)
    ours = tools.walk(lambda p: Adagrad(p, eps=1e-3), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_the_rate_inside_is_the_rate_outside_at_a_constant_rate_only(tools):
    problem = tools.Problem.hostile()
    walks = {}
    for rates in (problem.rates, [0.01] * len(problem.rates)):
        problem.rates = rates
        for placement in ("inside", "outside"):
            options = {"momentum": 0.9, "lr_placement": placement}
            walks[placement] = tools.walk(lambda p, o=options: RMSprop(p, **o), problem)
        gap = tools.distance(walks["inside"], walks["outside"])
        assert gap > 0.1 if rates[0] != rates[-1] else gap <= ROUNDING


def test_adadeltas_rate_only_multiplies_the_walk(tools):
    """Its memory holds steps before lr, so Keras's 0.001 takes a path a thousand times shorter."""
    problem = tools.Problem.hostile()
    problem.start = [np.zeros_like(x) for x in problem.start]
    problem.rates = [1.0] * len(problem.rates)
    paper = tools.walk(Adadelta, problem)
    problem.rates = [1e-3] * len(problem.rates)
    keras = tools.walk(Adadelta, problem)
    larger = [[1e3 * x for x in step] for step in keras]
    assert tools.distance(larger, paper) <= ROUNDING


# What holds without any oracle


def states(rng, n=50):
    theta, g, m = (torch.tensor(rng.normal(size=n)) for _ in range(3))
    m = 0.3 * m
    v = m**2 + torch.tensor(rng.uniform(0.1, 1, size=n))
    u, b = torch.tensor(rng.uniform(0, 1, size=n)), torch.tensor(rng.normal(size=n))
    return theta, g, v, m, b, u


def rms_rows(theta, g, v, m, b, t, **options):
    theta, new = rmsprop_step(theta, g, {"v": v, "m": m, "b": b}, t, **options)
    return theta, new["v"], new["m"], new["b"]


@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_the_equations_commute_with_signs_and_permutations(placement):
    rng = np.random.default_rng(1)
    theta, g, v, m, b, u = states(rng)
    order, sign = torch.tensor(rng.permutation(50)), torch.tensor(rng.choice([-1.0, 1.0], 50))
    common = {"eps": 1e-3, "weight_decay": 0.1}
    rms = {"centered": True, "momentum": 0.9, "eps_placement": placement}
    for step, odd, even, odd_memory, options in (
        (adagrad_step, (theta, g), (v,), (), {"eps_placement": placement}),
        (rms_rows, (theta, g), (v,), (m, b), rms),
        (adadelta_step, (theta, g), (v, u), (), {}),
    ):
        signs = [sign, sign, *(1.0 for _ in even), *(sign for _ in odd_memory)]
        state = [*odd, *even, *odd_memory]
        new = step(*state, 3, **common, **options)
        expected = [(s * x)[order] for s, x in zip([signs[0], *signs[2:]], new, strict=True)]
        moved = step(*((s * x)[order] for s, x in zip(signs, state, strict=True)), 3,
                     **common, **options)  # fmt: skip
        assert all(torch.equal(x, y) for x, y in zip(moved, expected, strict=True))


SCALED = [
    (Adagrad, {"eps": 0.0}),
    (RMSprop, {"eps": 0.0}),
    (RMSprop, {"eps": 0.0, "momentum": 0.9, "centered": True, "eps_placement": "inside"}),
    (RMSprop, {"eps": 0.0, "bias_correction": True}),
]


@pytest.mark.parametrize(("kind", "options"), SCALED, ids=str)
def test_the_scale_of_the_gradient_does_not_matter(tools, kind, options):
    problems = [tools.Problem.hostile(scale=scale) for scale in (1.0, 2.0**-20, 1e6)]
    paths = [tools.walk(lambda p: kind(p, **options), problem) for problem in problems]
    assert tools.distance(paths[1], paths[0]) == 0  # a power of two moves no digit
    assert tools.distance(paths[2], paths[0]) <= bound(options)


def test_a_start_at_1_makes_the_scale_matter(tools):
    options = {"eps": 0.0, "initial_accumulator_value": 1.0}
    paths = [
        tools.walk(lambda p: RMSprop(p, **options), tools.Problem.hostile(scale=scale))
        for scale in (1.0, 1e-3)
    ]
    assert tools.distance(*paths) > 0.1


def steps_of(make, gradients):
    """Lengths of the steps of one parameter, in learning rates."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer, path = make([p]), [0.0]
    for g in gradients:
        p.grad = torch.full_like(p, g)
        optimizer.step()
        path.append(p.item())
    return -np.diff(path)


def test_the_lengths_of_steps_under_a_steady_gradient():
    """1/sqrt(t); 1/sqrt(1 - alpha^t), 10 at first; and a growth like the root of t."""
    t, steady = np.arange(1, 301), [0.3] * 300
    adagrad = steps_of(lambda p: Adagrad(p, lr=1.0, eps=0.0), steady)
    assert np.allclose(adagrad, 1 / np.sqrt(t), rtol=1e-10)
    rmsprop = steps_of(lambda p: RMSprop(p, lr=1.0, eps=0.0), steady)
    assert np.allclose(rmsprop, 1 / np.sqrt(1 - 0.99**t), rtol=1e-10)
    assert math.isclose(rmsprop[0], 10.0, rel_tol=1e-12)
    adadelta = steps_of(lambda p: Adadelta(p), steady)
    first = 0.3 * math.sqrt(1e-6 / (0.1 * 0.09 + 1e-6))
    assert math.isclose(adadelta[0], first, rel_tol=1e-12)
    growth = (adadelta[-1] ** 2 - adadelta[-101] ** 2) / 100
    assert math.isclose(growth, 0.1 * 1e-6, rel_tol=1e-2)


def test_the_equations_change_nothing_they_are_given():
    given = states(np.random.default_rng(3))
    copies = [x.clone() for x in given]
    theta, g, v, m, b, u = given
    adagrad_step(theta, g, v, 5, weight_decay=0.1)
    rmsprop_step(theta, g, {"v": v, "m": m, "b": b}, 5, weight_decay=0.1, centered=True)
    adadelta_step(theta, g, v, u, 5, weight_decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


@pytest.mark.parametrize("kind", [Adagrad, RMSprop, Adadelta])
def test_without_gradients_weights_shrink_by_the_product(hostile, tools, kind):
    hostile.gradients = [[np.zeros_like(x) for x in hostile.start] for _ in hostile.rates]
    path = tools.walk(lambda p: kind(p, weight_decay=0.1, decay="decoupled"), hostile)
    factor = np.prod([1 - rate * 0.1 for rate in hostile.rates])
    for start, end in zip(hostile.start, path[-1], strict=True):
        assert np.allclose(end, start * factor, rtol=1e-14, atol=0)


# State and speed


COMPILED = [
    (Adagrad, {**DECAYED, "lr_decay": 0.05, "initial_accumulator_value": 0.1}),
    (RMSprop, {**DECAYED, "centered": True, "momentum": 0.9, "eps_placement": "inside"}),
    (Adadelta, DECAYED),
]


@pytest.mark.parametrize(("kind", "options"), COMPILED, ids=str)
def test_compiled_equals_uncompiled(hostile, tools, kind, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled=True")  # the way a missing compiler speaks
        compiled = tools.walk(lambda p: kind(p, **options, compiled=True), hostile)
    plain = tools.walk(lambda p: kind(p, **options), hostile)
    assert tools.distance(compiled, plain) <= CANCELLING / 10


RESUMED = [
    (Adagrad, {**DECAYED, "initial_accumulator_value": 0.1}, {}),
    (RMSprop, {**DECAYED, "centered": True, "momentum": 0.9}, {}),
    (RMSprop, {**DECAYED, "initial_accumulator_value": 1.0}, {"momentum": 0.5}),
    (Adadelta, DECAYED, {}),
]


@pytest.mark.parametrize(("kind", "options", "fresh"), RESUMED, ids=str)
def test_resuming_from_a_state_dict_gives_the_same_bits(hostile, tools, kind, options, fresh):
    """Also into an optimizer that was made with other options: the groups bring theirs."""
    tensors = hostile.tensors()
    optimizer = kind(tensors, **options)
    walk = tools.positions(optimizer, tensors, hostile)
    for _ in range(11):
        next(walk)  # the start, and ten steps
    saved = copy.deepcopy(optimizer.state_dict())
    twins = [torch.nn.Parameter(p.detach().clone()) for p in tensors]
    rest = list(walk)
    other = kind(twins, **(fresh or {}))
    if fresh and other.memory != optimizer.memory:
        with pytest.raises(ValueError, match="expected the entries"):
            other.load_state_dict(saved)
        other = kind(twins)
    kept = copy.deepcopy(saved)
    other.load_state_dict(saved)
    again = list(tools.positions(other, twins, hostile, first=11))[1:]
    for one, two in zip(rest, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))
    torch.testing.assert_close(saved["state"], kept["state"], rtol=0, atol=0)  # it was copied


def test_a_state_is_as_large_as_it_must_be():
    p = torch.zeros(1000, requires_grad=True)
    for kind, options, floats in (
        (Adagrad, {}, 1),
        (RMSprop, {}, 1),
        (RMSprop, {"momentum": 0.9}, 2),
        (RMSprop, {"centered": True}, 2),
        (RMSprop, {"centered": True, "momentum": 0.9}, 3),
        (Adadelta, {}, 2),
    ):
        optimizer = kind([p], **options)
        p.grad = torch.ones_like(p)
        optimizer.step()
        kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
        assert sum(x.numel() for x in kept) == floats * p.numel()


def test_groups_may_begin_and_remember_differently(hostile, tools):
    def make(kind):
        return lambda p: kind(
            [
                {"params": p[:2]},
                {"params": p[2:4], "momentum": 0.9, "alpha": 0.5},
                {"params": p[4:], "centered": True, "weight_decay": 0.1},
            ],
            eps=1e-3,
        )

    ours, theirs = (tools.walk(make(kind), hostile) for kind in (RMSprop, torch.optim.RMSprop))
    assert tools.distance(ours, theirs) <= CANCELLING
    tensors = hostile.tensors()
    groups = [
        {"params": tensors[:3], "initial_accumulator_value": 1.0},
        {"params": tensors[3:]},
    ]
    optimizer = Adagrad(groups)
    for p in tensors:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert [float(optimizer.state[p]["v"].sum() / p.numel()) for p in tensors] == [1.0] * 3 + [
        0.0
    ] * 3


def test_momentum_that_is_switched_on_later_begins_then(tools):
    problem = tools.Problem.hostile(missing=False)

    def adjust(optimizer, t):
        optimizer.param_groups[0]["momentum"] = 0.9 if t > 5 else 0.0

    path = tools.walk(lambda p: RMSprop(p, eps=1e-3), problem, adjust)
    plain = tools.walk(lambda p: RMSprop(p, eps=1e-3), problem)
    assert tools.distance(path[:7], plain[:7]) == 0 and tools.distance(path, plain) > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_variance_that_rounds_below_zero_is_zero(dtype):
    """A steady gradient: v - m^2 shrinks like alpha^t, and then rounding decides its sign."""
    ends = {}
    for kind in (RMSprop, torch.optim.RMSprop):
        p = torch.zeros(64, dtype=dtype, requires_grad=True)
        optimizer = kind([p], lr=1e-3, alpha=0.9, eps=1e-3, centered=True)
        for _ in range(200):
            p.grad = torch.linspace(0.1, 1.0, 64).to(dtype)
            optimizer.step()
        ends[kind] = p.detach()
    assert ends[RMSprop].isfinite().all()
    assert ends[torch.optim.RMSprop].isnan().any()


def test_low_precision_keeps_its_memory_in_float32():
    p = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    for kind in (Adagrad, RMSprop, Adadelta):
        optimizer = kind([p])
        p.grad = torch.full_like(p, 1e-3)
        optimizer.step()
        kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
        assert all(x.dtype is torch.float32 for x in kept)


# The museum: each mistake must be caught


def right(g, v, b, t, lr):
    v = 0.9 * v + 0.1 * g * g
    b = 0.9 * b + g / (v.sqrt() + 1e-3)
    return lr * b, v, b


def eps_inside(g, v, b, t, lr):
    v = 0.9 * v + 0.1 * g * g
    b = 0.9 * b + g / (v + 1e-3).sqrt()
    return lr * b, v, b


def starts_at_1(g, v, b, t, lr):
    return right(g, v + 1.0 if t == 1 else v, b, t, lr)


def rate_inside(g, v, b, t, lr):
    v = 0.9 * v + 0.1 * g * g
    b = 0.9 * b + lr * g / (v.sqrt() + 1e-3)
    return b, v, b


def old_average(g, v, b, t, lr):
    _, new, _ = right(g, v, b, t, lr)
    b = 0.9 * b + g / (v.sqrt() + 1e-3)
    return lr * b, new, b


def corrected(g, v, b, t, lr):
    v = 0.9 * v + 0.1 * g * g
    b = 0.9 * b + g / ((v / (1 - 0.9**t)).sqrt() + 1e-3)
    return lr * b, v, b


def averaged_buffer(g, v, b, t, lr):
    v = 0.9 * v + 0.1 * g * g
    b = 0.9 * b + 0.1 * g / (v.sqrt() + 1e-3)
    return lr * b, v, b


MUSEUM = [eps_inside, starts_at_1, rate_inside, old_average, corrected, averaged_buffer]


def mutant(wrong):
    class Mutant(RMSprop):
        @staticmethod
        def equation(theta, g, v, b, t, *, lr, weight_decay, **_):
            step, v, b = wrong(g + weight_decay * theta, v, b, t, lr)
            return theta - step, v, b

    return Mutant


@pytest.mark.parametrize("wrong", [right, *MUSEUM], ids=lambda f: f.__name__)
def test_every_mistake_is_caught_with_a_margin(hostile, tools, wrong):
    """Right code is within 1e-13; each mistake is beyond 1e-2."""
    options = {**DECAYED, "alpha": 0.9, "momentum": 0.9}
    oracle = tools.walk(lambda p: torch.optim.RMSprop(p, **options), hostile)
    gap = tools.distance(tools.walk(lambda p: mutant(wrong)(p, **options), hostile), oracle)
    assert gap <= ROUNDING if wrong is right else gap > 1e-2


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *[(k, {"lr": -1e-3}, "lr: expected a finite") for k in (Adagrad, RMSprop, Adadelta)],
        *[(k, {"eps": -1e-3}, "eps: expected") for k in (Adagrad, RMSprop, Adadelta)],
        *[(k, {"eps": math.nan}, "eps: expected") for k in (Adagrad, RMSprop, Adadelta)],
        *[(k, {"decay": "l1"}, "decay: expected one of") for k in (Adagrad, RMSprop, Adadelta)],
        (Adagrad, {"lr_decay": -0.1}, "lr_decay: expected a finite number >= 0, got -0.1"),
        (
            Adagrad,
            {"initial_accumulator_value": -0.1},
            "initial_accumulator_value: expected a finite number >= 0, got -0.1",
        ),
        (Adagrad, {"eps_placement": "hat"}, "eps_placement: expected one of .*, got 'hat'"),
        (RMSprop, {"alpha": 1.0}, r"alpha: expected a number in \[0, 1\), got 1.0"),
        (RMSprop, {"momentum": -0.1}, r"momentum: expected a number in \[0, 1\), got -0.1"),
        (RMSprop, {"bias_correction": 1}, "bias_correction: expected True or False, got 1"),
        (RMSprop, {"centered": 1}, "centered: expected True or False, got 1"),
        (RMSprop, {"lr_placement": "under"}, "lr_placement: expected one of"),
        (
            RMSprop,
            {"bias_correction": True, "initial_accumulator_value": 1.0},
            "initial_accumulator_value: expected 0 where bias_correction is on.*, got 1.0",
        ),
        (Adadelta, {"rho": 1.5}, r"rho: expected a number in \[0, 1\), got 1.5"),
        (Adadelta, {"eps": 0.0}, "eps: expected a number > 0: with 0 nothing ever moves, got 0.0"),
    ],
)
def test_bad_options_are_named(kind, options, message, untyped):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind([torch.zeros(3, requires_grad=True)], **options)


def test_presets_are_valid_and_can_be_overridden():
    for kind in (Adagrad, RMSprop, Adadelta):
        for name in kind.presets:
            p = torch.zeros(3, requires_grad=True)
            optimizer = kind.like(name, [("weight", p)], lr=0.5, eps=0.25)
            assert optimizer.param_groups[0]["lr"] == 0.5
            assert optimizer.param_groups[0]["eps"] == 0.25


def test_the_identity_with_adam_holds_for_one_step_of_the_equations():
    theta, g, v, *_ = states(np.random.default_rng(5))
    zero = torch.zeros_like(theta)
    options = {"lr": 0.1, "eps": 1e-3}
    for placement in ("outside", "inside"):
        ours, new = rmsprop_step(
            theta,
            g,
            {"v": v},
            7,
            **options,
            alpha=0.97,
            bias_correction=True,
            eps_placement=placement,
        )
        other, _, w = adam_step(
            theta, g, zero, v, 7, **options, beta1=0.0, beta2=0.97, eps_placement=placement
        )
        assert torch.allclose(ours, other, rtol=0, atol=1e-15)
        assert torch.equal(new["v"], w)


@pytest.mark.parametrize("kind", [Adagrad, RMSprop, Adadelta])
def test_the_papers_decay_follows_the_schedule_and_not_the_rate(hostile, tools, kind):
    """lambda_paper = alpha lambda_decoupled, for any schedule."""
    alpha = 0.02
    options = {"lr": alpha, "weight_decay": 0.1 * alpha, "decay": "paper"}
    paper = tools.walk(lambda p: kind(p, **options), hostile)
    other = tools.walk(lambda p: kind(p, weight_decay=0.1, decay="decoupled"), hostile)
    assert tools.distance(paper, other) <= ROUNDING


@pytest.mark.parametrize(("name", "option"), [("b", {"momentum": 0.9}), ("m", {"centered": True})])
def test_what_is_switched_on_later_begins_then_in_float32(name, option):
    p = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = RMSprop([p], eps=1e-3)
    for change in ({}, option):
        optimizer.param_groups[0].update(change)
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.state[p][name].dtype is torch.float32 and optimizer.state[p][name].all()


def test_what_the_saved_groups_need_takes_the_parameters_precision():
    p, q = (torch.zeros(4, dtype=d, requires_grad=True) for d in (torch.float32, torch.float64))
    first, second = RMSprop([p], momentum=0.9, centered=True), RMSprop([q])
    p.grad = torch.ones_like(p)
    first.step()
    second.load_state_dict(first.state_dict())
    assert {second.state[q][name].dtype for name in "vmb"} == {torch.float64}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(Adagrad, "eps"), (Adagrad, "lr_decay"), (Adagrad, "initial_accumulator_value")],
)
def test_infinity_is_no_option(kind, name):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got inf"):
        kind([torch.zeros(3, requires_grad=True)], **{name: math.inf})
