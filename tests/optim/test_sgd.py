"""SGD against torch, optax and loops over numbers, and its conversion identities.

Errors are measured relative to the distance that a parameter has travelled.
"""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from trajectories import optax_walk

from lossbook.optim import SGD, plain_step, sgd_step

# 25 steps of a few roundings each, in float64.
ROUNDING = 1e-13
# One rounding at a time: a rate of any size meets sums of a hundred terms of size 1.
IDENTITY = 1e-14

TORCH_FORMS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.0, "dampening": 0.4},  # torch ignores the dampening of no momentum
]


@pytest.mark.parametrize("way", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("options", TORCH_FORMS, ids=str)
def test_equals_torch(hostile, tools, options, way):
    if "fused" in way:  # torch 2.13's fused kernel needs all buffers to begin at one step
        whole = tools.Problem.hostile(missing=False)
        hostile.gradients[0] = whole.gradients[0]
    ours = tools.walk(lambda p: SGD(p, **options), hostile)
    theirs = tools.walk(lambda p: torch.optim.SGD(p, **options, **way), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("options", TORCH_FORMS, ids=str)
def test_compiled_equals_uncompiled(hostile, tools, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled=True")  # the way a missing compiler speaks
        compiled = tools.walk(lambda p: SGD(p, **options, compiled=True), hostile)
    plain = tools.walk(lambda p: SGD(p, **options), hostile)
    assert tools.distance(compiled, plain) <= IDENTITY


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("nesterov", [False, True])
def test_equals_torch_at_every_size_of_gradient(tools, scale, nesterov):
    """Without decay, which would be all that is left at 1e-8; with a rate that grows instead."""
    problem = tools.Problem.hostile(scale=scale)
    problem.start = [np.zeros_like(x) for x in problem.start]
    options = {"momentum": 0.9, "nesterov": nesterov}
    ours = tools.walk(lambda p: SGD(p, **options), problem)
    theirs = tools.walk(lambda p: torch.optim.SGD(p, **options), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


def rate_of(problem, sign=1):
    import jax.numpy as jnp

    rates = sign * jnp.asarray(problem.rates)
    return lambda count: rates[count]


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_equals_optax_sgd(tools, options):
    import optax

    problem = tools.Problem.hostile(missing=False)
    chain = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate_of(problem), **options))
    ours = tools.walk(lambda p: SGD.like("optax", p, weight_decay=0.1, **options), problem)
    assert tools.distance(ours, optax_walk(chain, problem)) <= ROUNDING


@pytest.mark.parametrize("nesterov", [False, True])
def test_inside_is_optax_with_two_links_exchanged(tools, nesterov):
    """scale_by_schedule before trace: the trace accumulates steps."""
    import optax

    problem = tools.Problem.hostile(missing=False)
    chain = optax.chain(
        optax.scale_by_schedule(rate_of(problem, sign=-1)),
        optax.trace(0.9, nesterov=nesterov),
    )
    options = {"momentum": 0.9, "nesterov": nesterov}
    ours = tools.walk(lambda p: SGD(p, lr_placement="inside", **options), problem)
    assert tools.distance(ours, optax_walk(chain, problem)) <= ROUNDING


def test_a_dampened_first_buffer_is_optaxs_running_average(tools):
    import optax

    problem = tools.Problem.hostile(missing=False)
    chain = optax.chain(
        optax.ema(0.9, debias=False), optax.scale_by_schedule(rate_of(problem, sign=-1))
    )
    options = {"momentum": 0.9, "dampening": "momentum", "first_buffer": "dampened"}
    ours = tools.walk(lambda p: SGD(p, **options), problem)
    assert tools.distance(ours, optax_walk(chain, problem)) <= ROUNDING


def loop(problem, step):
    """``step(theta, g, memory, t, lr)`` over numbers; ``memory`` is a dict for each parameter."""
    theta = [x.copy() for x in problem.start]
    memories, path = [{} for _ in theta], [problem.start]
    for t, gradients in enumerate(problem.gradients):
        for i, g in enumerate(gradients):
            if g is not None:
                theta[i] = step(theta[i], g, memories[i], t, problem.rates[t])
        path.append([x.copy() for x in theta])
    return path


@pytest.mark.parametrize("nesterov", [False, True])
def test_keras_lines(hostile, tools, nesterov):
    """Decay first, then m = mu m - lr g, then theta + m, or theta + mu m - lr g."""

    def keras(theta, g, memory, t, lr):
        theta = theta - theta * 0.1 * lr
        m = memory["m"] = 0.9 * memory.get("m", 0.0) - g * lr
        return theta + (0.9 * m - g * lr if nesterov else m)

    options = {"momentum": 0.9, "nesterov": nesterov, "weight_decay": 0.1}
    ours = tools.walk(lambda p: SGD.like("keras", p, **options), hostile)
    assert tools.distance(ours, loop(hostile, keras)) <= ROUNDING


def test_sgdw_of_the_paper(hostile, tools):
    """Algorithm 1 of arXiv 1711.05101: the velocity holds eta alpha g, decay is eta lambda."""
    alpha, decay = 0.02, 0.1

    def sgdw(theta, g, memory, t, lr):
        eta = lr / alpha
        m = memory["m"] = 0.9 * memory.get("m", 0.0) + eta * alpha * g
        return theta - m - eta * decay * theta

    options = {"lr": alpha, "momentum": 0.9, "weight_decay": decay}
    ours = tools.walk(lambda p: SGD.like("sgdw", p, **options), hostile)
    assert tools.distance(ours, loop(hostile, sgdw)) <= ROUNDING


def test_lua_ties_the_dampening_to_the_momentum(hostile, tools):
    ours = tools.walk(lambda p: SGD.like("lua", p, momentum=0.9), hostile)
    theirs = tools.walk(lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.9), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


# Conversion identities


def test_inside_is_outside_at_a_constant_rate_only(tools, capsys):
    problem = tools.Problem.hostile()
    varying, problem.rates = problem.rates, [0.02] * len(problem.rates)
    inside, outside = (lambda p, k=k: SGD(p, momentum=0.9, lr_placement=k) for k in PLACES)
    assert tools.distance(tools.walk(inside, problem), tools.walk(outside, problem)) <= IDENTITY
    gaps = {}
    for name, rates in {
        "cosine": varying,
        "10 % less per step": [0.02 * 0.9**t for t in range(len(varying))],
    }.items():
        problem.rates = rates
        gaps[name] = tools.distance(tools.walk(inside, problem), tools.walk(outside, problem))
    with capsys.disabled():
        print("\nrate inside against outside:", {k: f"{v:.0%}" for k, v in gaps.items()})
    assert min(gaps.values()) > 0.1


PLACES = ("inside", "outside")


def quadratic(seed, n=6):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return basis @ np.diag(np.geomspace(1, 30, n)) @ basis.T, rng.normal(size=n)


def descend(hessian, start, make, rates, by_closure=False):
    """Trajectory and buffers on half theta' A theta."""
    p = torch.tensor(start, requires_grad=True)
    matrix, optimizer = torch.tensor(hessian), make([p])
    path, buffers = [start], [np.zeros_like(start)]

    def closure():
        p.grad = matrix @ p.detach()

    for rate in rates:
        optimizer.param_groups[0]["lr"] = float(rate)
        if by_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
        path.append(p.detach().numpy().copy())
        buffers.append(optimizer.state[p]["b"].numpy().copy())
    return np.array(path), np.array(buffers)


CONSTANT = np.full(40, 0.02)
VARYING = 0.02 * (1.2 + np.cos(np.arange(40.0)))


@pytest.mark.parametrize("placement", PLACES)
def test_the_stored_point_is_the_look_ahead_point(placement):
    """Sutskever's iterate minus what momentum would add is what torch stores; constant rate."""
    hessian, start = quadratic(0)
    options = {"momentum": 0.9, "lr_placement": placement}
    stored, _ = descend(hessian, start, lambda p: SGD(p, nesterov=True, **options), CONSTANT)
    form = "sutskever"
    kept, b = descend(hessian, start, lambda p: SGD(p, nesterov=form, **options), CONSTANT, True)
    rate = 0.02 if placement == "outside" else 1.0
    look_ahead = kept - rate * 0.9 * b
    assert np.abs(look_ahead - stored).max() <= IDENTITY * np.abs(start).max()
    assert np.abs(kept - stored).max() > 0.1  # the two paths themselves are apart


def test_under_a_schedule_the_identity_needs_the_rate_inside():
    hessian, start = quadratic(1)
    gaps = {}
    for placement in PLACES:
        options = {"momentum": 0.9, "lr_placement": placement}
        stored, _ = descend(
            hessian, start, lambda p, o=options: SGD(p, nesterov=True, **o), VARYING
        )
        kept, b = descend(
            hessian,
            start,
            lambda p, o=options: SGD(p, nesterov="sutskever", **o),
            VARYING,
            by_closure=True,
        )
        rates = np.concatenate([VARYING, [VARYING[-1]]])[:, None]  # of the step to come
        gaps[placement] = np.abs(kept - (rates if placement == "outside" else 1) * 0.9 * b - stored)
    assert gaps["inside"].max() <= IDENTITY * np.abs(start).max()
    assert gaps["outside"].max() > 1e-3


def test_torch_agrees_with_sutskevers_paper():
    """v = mu v - lr grad(theta + mu v), theta = theta + v, written out; no optimizer of ours."""
    hessian, start = quadratic(2)
    theta, v, look_ahead = start, np.zeros_like(start), [start]
    for _ in CONSTANT:
        v = 0.9 * v - 0.02 * hessian @ (theta + 0.9 * v)
        theta = theta + v
        look_ahead.append(theta + 0.9 * v)
    p = torch.tensor(start, requires_grad=True)
    optimizer, path = torch.optim.SGD([p], lr=0.02, momentum=0.9, nesterov=True), [start]
    for _ in CONSTANT:
        p.grad = torch.tensor(hessian) @ p.detach()
        optimizer.step()
        path.append(p.detach().numpy().copy())
    assert np.abs(np.array(path) - np.array(look_ahead)).max() <= IDENTITY * np.abs(start).max()
    options = {"lr": 0.02, "momentum": 0.9}
    ours, _ = descend(hessian, start, lambda p: SGD.like("sutskever", p, **options), CONSTANT, True)
    assert np.abs(ours[-1] - theta).max() <= IDENTITY * np.abs(start).max()


def test_a_running_average_is_dampening_but_for_the_first_step(tools):
    """Torch's tau = mu gives the first gradient the weight mu^(t-1); an average (1-mu) mu^(t-1)."""
    problem = tools.Problem.hostile(missing=False)
    torchs = tools.walk(lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.9), problem)
    options = {"momentum": 0.9, "dampening": "momentum", "first_buffer": "dampened"}
    average = tools.walk(lambda p: SGD(p, **options), problem)
    assert tools.distance(average, torchs) > 0.1
    extra = np.cumsum([rate * 0.9 * 0.9**t for t, rate in enumerate(problem.rates)])
    for i, g in enumerate(problem.gradients[0]):
        gap = np.stack([a[i] - b[i] for a, b in zip(average, torchs, strict=True)])[1:]
        assert np.allclose(gap, np.multiply.outer(extra, g), rtol=1e-9, atol=1e-14)


def test_dampening_is_a_smaller_rate_after_the_first_step():
    """From step 2 on (1 - tau) multiplies every gradient: with no first step, only the rate."""
    rng = np.random.default_rng(3)
    theta, b = torch.zeros(5), torch.zeros(5)
    other, c = torch.zeros(5), torch.zeros(5)
    for t in range(2, 30):
        g = torch.tensor(rng.normal(size=5)).float()
        theta, b = sgd_step(theta, g, b, t, lr=0.1, momentum=0.9, dampening=0.5)
        other, c = sgd_step(other, g, c, t, lr=0.05, momentum=0.9)
    assert torch.allclose(theta, other, rtol=1e-5)


# What holds without any oracle


def random_state(rng, n=50):
    return tuple(torch.tensor(rng.normal(size=n)) for _ in range(3))


FORMS = [
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "nesterov": True, "lr_placement": "inside"},
    {"momentum": 0.9, "dampening": 0.3, "decay": "decoupled", "weight_decay": 0.1},
]


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_equation_commutes_with_signs_and_permutations(options):
    rng = np.random.default_rng(1)
    theta, g, b = random_state(rng)
    order, sign = torch.tensor(rng.permutation(50)), torch.tensor(rng.choice([-1.0, 1.0], 50))
    expected = [(sign * x)[order] for x in sgd_step(theta, g, b, 3, lr=0.1, **options)]
    moved = sgd_step(*((sign * x)[order] for x in (theta, g, b)), 3, lr=0.1, **options)
    assert all(torch.equal(x, y) for x, y in zip(moved, expected, strict=True))


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_equation_commutes_with_rotations(options):
    """No coordinate is special to gradient descent, which no adaptive method can say."""
    rng = np.random.default_rng(2)
    turn = torch.tensor(np.linalg.qr(rng.normal(size=(50, 50)))[0])
    state = random_state(rng)
    expected = [turn @ x for x in sgd_step(*state, 3, lr=0.1, **options)]
    moved = sgd_step(*(turn @ x for x in state), 3, lr=0.1, **options)
    for x, y in zip(moved, expected, strict=True):
        assert torch.allclose(x, y, rtol=0, atol=1e-13)


def test_steps_are_proportional_to_the_gradients(tools):
    """A factor c in the loss is a factor c in the rate; a power of two moves no digit."""
    for factor, bound in ((2.0**-20, 0.0), (1e3, ROUNDING)):
        problem = tools.Problem.hostile()
        problem.start = [np.zeros_like(x) for x in problem.start]
        options = {"momentum": 0.9, "nesterov": True}
        rated = copy.deepcopy(problem)
        rated.rates = [factor * rate for rate in problem.rates]
        problem.gradients = [
            [None if g is None else factor * g for g in gradients]
            for gradients in problem.gradients
        ]
        ours = tools.walk(lambda p, o=options: SGD(p, **o), problem)
        assert tools.distance(ours, tools.walk(lambda p, o=options: SGD(p, **o), rated)) <= bound


def test_the_trajectory_is_linear_in_the_gradients(tools):
    """Superposition: the walk of a sum of gradients is the sum of the walks."""
    a, b = (tools.Problem.hostile(seed=seed, missing=False) for seed in (0, 1))
    both = copy.deepcopy(a)
    for problem in (a, b, both):
        problem.start = [np.zeros_like(x) for x in problem.start]
    both.gradients = [
        [x + y for x, y in zip(*pair, strict=True)]
        for pair in zip(a.gradients, b.gradients, strict=True)
    ]
    walks = [tools.walk(lambda p: SGD(p, momentum=0.9, dampening=0.2), q) for q in (a, b, both)]
    total = [[x + y for x, y in zip(*pair, strict=True)] for pair in zip(*walks[:2], strict=True)]
    assert tools.distance(total, walks[2]) <= ROUNDING


@pytest.mark.parametrize("decay", ["l2", "decoupled", "paper"])
def test_without_gradients_weights_shrink_by_the_product(hostile, tools, decay):
    """Plain SGD: with g = 0 what is left is theta prod(1 - lr lambda), in every form of decay."""
    hostile.gradients = [[np.zeros_like(x) for x in hostile.start] for _ in hostile.rates]
    strength = 0.1 * (0.02 if decay == "paper" else 1.0)
    path = tools.walk(lambda p: SGD(p, lr=0.02, weight_decay=strength, decay=decay), hostile)
    factor = np.prod([1 - rate * 0.1 for rate in hostile.rates])
    for start, end in zip(hostile.start, path[-1], strict=True):
        assert np.allclose(end, start * factor, rtol=1e-14, atol=0)


def test_l2_and_decay_are_one_without_momentum_and_two_with_it(hostile, tools):
    def gap(**options):
        ways = ({"decay": "l2"}, {"decay": "decoupled"})
        walks = [
            tools.walk(lambda p, w=w: SGD(p, weight_decay=0.3, **options, **w), hostile)
            for w in ways
        ]
        return tools.distance(*walks)

    assert gap() <= ROUNDING
    assert gap(momentum=0.9) > 1e-2


def test_the_equations_change_nothing_they_are_given():
    given = random_state(np.random.default_rng(3))
    copies = [x.clone() for x in given]
    sgd_step(*given, 5, momentum=0.9, weight_decay=0.1, nesterov=True)
    plain_step(*given[:2], 5, weight_decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


# State


def test_without_momentum_nothing_is_remembered():
    p = torch.zeros(1000, requires_grad=True)
    for momentum, floats in ((0.0, 0), (0.9, 1)):
        optimizer = SGD([p], momentum=momentum)
        p.grad = torch.ones_like(p)
        optimizer.step()
        kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
        assert sum(x.numel() for x in kept) == floats * p.numel()


def test_momentum_that_is_switched_on_later_begins_then(tools):
    problem = tools.Problem.hostile(missing=False)

    def adjust(optimizer, t):
        optimizer.param_groups[0]["momentum"] = 0.9 if t > 5 else 0.0

    ours = tools.walk(SGD, problem, adjust)
    theirs = tools.walk(torch.optim.SGD, problem, adjust)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_groups_may_differ(hostile, tools):
    def make(kind):
        return (
            lambda p: kind(
                [
                    {"params": p[:2], "dampening": 0.4},  # of no momentum
                    {"params": p[2:4], "momentum": 0.9, "nesterov": True},
                    {"params": p[4:], "momentum": 0.5, "dampening": 0.2, "weight_decay": 0.1},
                ],
                lr=0.1,
            )
        )

    ours, theirs = (tools.walk(make(kind), hostile) for kind in (SGD, torch.optim.SGD))
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("fresh", [{"momentum": 0.9, "nesterov": True}, {}], ids=str)
def test_resuming_from_a_state_dict_gives_the_same_bits(hostile, tools, fresh):
    """Also into an optimizer that was made without momentum: the groups bring theirs."""
    tensors = hostile.tensors()
    optimizer = SGD(tensors, momentum=0.9, nesterov=True, weight_decay=0.1)
    walk = tools.positions(optimizer, tensors, hostile)
    for _ in range(11):
        next(walk)  # the start, and ten steps
    saved = copy.deepcopy(optimizer.state_dict())
    untouched = copy.deepcopy(saved)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in tensors]
    rest = list(walk)
    other = SGD(twins, **fresh)
    other.load_state_dict(saved)
    again = list(tools.positions(other, twins, hostile, first=11))[1:]
    for one, two in zip(rest, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))
    for key, state in untouched["state"].items():
        assert torch.equal(state["b"], saved["state"][key]["b"])


def test_schedulers_may_move_rate_and_momentum():
    paths = []
    for kind in (SGD, torch.optim.SGD):
        p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = kind([p], lr=0.1, momentum=0.9)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=30)
        for t in range(30):
            p.grad = torch.full_like(p, math.sin(t))
            optimizer.step()
            cycle.step()
        paths.append(p.detach().numpy())
    assert np.allclose(*paths, rtol=1e-13, atol=0)


def test_low_precision_keeps_its_buffer_in_float32():
    p = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SGD([p], lr=1e-2, momentum=0.9)
    for _ in range(3):
        p.grad = torch.full_like(p, 0.1)
        optimizer.step()
    assert optimizer.state[p]["b"].dtype is torch.float32
    g = torch.tensor(0.1, dtype=torch.bfloat16).float().item()
    assert math.isclose(optimizer.state[p]["b"][0].item(), g * 2.71, rel_tol=1e-6)


# Sutskever's form calls its closure elsewhere


def test_the_closure_is_called_ahead_and_the_parameters_come_back():
    p = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer = SGD.like("sutskever", [p], lr=0.25, momentum=0.5)
    seen = []

    def closure():
        seen.append(p.detach().clone())
        optimizer.zero_grad()
        loss = (p**2).sum() / 2
        loss.backward()
        return loss.detach()

    with torch.no_grad():  # of the caller; the closure has gradients all the same
        losses = [float(optimizer.step(closure)) for _ in range(2)]
    # theta: 1, then 1 - 1/4; look-ahead 3/4 - 1/8 = 5/8; v = -1/8 - 5/32 = -9/32
    assert torch.equal(seen[0], torch.ones(2).double())
    assert torch.equal(seen[1], torch.full((2,), 0.625).double())
    assert torch.equal(p.detach(), torch.full((2,), 0.75 - 9 / 32).double())
    assert losses == [1.0, 0.625**2]


def test_parameters_come_back_when_the_closure_fails():
    p = torch.ones(2, requires_grad=True)
    optimizer = SGD.like("sutskever", [p], lr=0.25)
    p.grad = torch.ones(2)
    optimizer.step(lambda: 0.0)
    here = p.detach().clone()

    def broken():
        assert not torch.equal(p, here)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        optimizer.step(broken)
    assert torch.equal(p, here)


def test_sutskevers_form_asks_for_its_closure(untyped):
    optimizer = SGD.like("sutskever", [torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match=r"closure: expected a function that .* got None"):
        optimizer.step()


# The museum: each mistake must be caught


def right(theta, g, b, t, lr, mu, tau):
    b = g if t == 1 else mu * b + (1 - tau) * g
    return theta - lr * b, b


def rate_inside(theta, g, b, t, lr, mu, tau):
    b = lr * g if t == 1 else mu * b + (1 - tau) * lr * g
    return theta - b, b


def dampened_from_the_start(theta, g, b, t, lr, mu, tau):
    b = mu * b + (1 - tau) * g
    return theta - lr * b, b


def dampening_forgotten(theta, g, b, t, lr, mu, tau):
    return right(theta, g, b, t, lr, mu, 0.0)


def old_buffer(theta, g, b, t, lr, mu, tau):
    return theta - lr * (b if t > 1 else g), right(theta, g, b, t, lr, mu, tau)[1]


MUSEUM = [rate_inside, dampened_from_the_start, dampening_forgotten, old_buffer]


def mutant(wrong):
    class Mutant(SGD):
        @staticmethod
        def equation(theta, g, b, t, *, lr, momentum, dampening, weight_decay, **_):
            return wrong(theta, g + weight_decay * theta, b, t, lr, momentum, dampening)

    return Mutant


@pytest.mark.parametrize("wrong", [right, *MUSEUM], ids=lambda f: f.__name__)
def test_every_mistake_is_caught_with_a_margin(hostile, tools, wrong):
    """Right code is within 1e-13; each mistake is beyond 1e-2."""
    options = {"momentum": 0.9, "dampening": 0.4, "weight_decay": 0.1}
    oracle = tools.walk(lambda p: torch.optim.SGD(p, **options), hostile)
    gap = tools.distance(tools.walk(lambda p: mutant(wrong)(p, **options), hostile), oracle)
    assert gap <= ROUNDING if wrong is right else gap > 1e-2


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1e-3}, "lr: expected a finite number >= 0, got -0.001"),
        ({"lr": math.nan}, "lr: expected a finite number"),
        ({"momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum: expected a number in \[0, 1\)"),
        ({"dampening": 1.5}, r"dampening: expected a number in \[0, 1\], or 'momentum', got 1.5"),
        ({"dampening": -0.1}, "dampening: expected .*, got -0.1"),
        ({"dampening": "tied"}, "dampening: expected .*, got 'tied'"),
        ({"weight_decay": -0.1}, "weight_decay: expected"),
        ({"nesterov": "keras", "momentum": 0.9}, "nesterov: expected one of .*'sutskever'"),
        ({"nesterov": True}, "momentum: expected a number > 0 where nesterov is on, got 0.0"),
        (
            {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
            "dampening: expected 0 where nesterov is on, got 0.1",
        ),
        ({"lr_placement": "under"}, "lr_placement: expected one of .*'inside'.*, got 'under'"),
        ({"first_buffer": "zero"}, "first_buffer: expected one of"),
        ({"decay": "l1"}, "decay: expected one of"),
        ({"clip": 0.0}, "clip: expected"),
        ({"exclude": "biases"}, "exclude: expected"),
    ],
)
def test_bad_options_are_named(options, message, untyped):
    with pytest.raises(ValueError, match=f"^{message}"):
        SGD([torch.zeros(3, requires_grad=True)], **options)


def test_presets_are_valid_and_can_be_overridden():
    for name in SGD.presets:
        optimizer = SGD.like(name, [torch.zeros(3, requires_grad=True)], lr=0.5, momentum=0.25)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["momentum"] == 0.25


def test_lookahead_is_another_word_for_true(hostile, tools):
    paths = [
        tools.walk(lambda p, w=word: SGD(p, momentum=0.9, nesterov=w), hostile)
        for word in (True, "lookahead")
    ]
    assert tools.distance(*paths) == 0


def test_momentum_that_is_switched_on_later_is_kept_in_float32():
    p = torch.zeros(4, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SGD([p])
    for momentum in (0.0, 0.9):
        optimizer.param_groups[0]["momentum"] = momentum
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.state[p]["b"].dtype is torch.float32


def test_a_group_ties_the_dampening_to_its_own_momentum():
    p, q = (torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [p], "momentum": 0.5}, {"params": [q], "momentum": 0.75}]
    optimizer = SGD(groups, dampening="momentum", first_buffer="dampened")
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    optimizer.step()
    assert [optimizer.state[x]["b"].item() for x in (p, q)] == [0.5, 0.25]


def test_only_sutskevers_groups_go_ahead_and_each_at_its_own_rate():
    tensors = [torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    forms = [{"nesterov": "sutskever", "lr": 0.25}, {"nesterov": "sutskever", "lr": 0.5}, {}]
    groups = [{"params": [p], **form} for p, form in zip(tensors, forms, strict=True)]
    optimizer, seen = SGD(groups, lr=0.25, momentum=0.5), []

    def closure():
        seen.append([p.item() for p in tensors])
        for p in tensors:
            p.grad = torch.ones_like(p)

    optimizer.step(closure)
    optimizer.step(closure)
    # theta is 1 - lr now and b is 1: momentum alone would carry it on by lr / 2
    assert seen == [[1.0, 1.0, 1.0], [0.75 - 0.125, 0.5 - 0.25, 0.75]]


def test_the_look_ahead_point_is_rounded_once():
    """1 - move lies just beyond the middle of two numbers; move rounded first is that middle."""
    p = torch.ones(1, dtype=torch.bfloat16, requires_grad=True)
    optimizer = SGD.like("sutskever", [p], momentum=0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step(lambda: None)
    move = 2.0**-9 * (1 + 2.0**-10)
    optimizer.state[p]["b"].fill_(2 * move)
    with optimizer.ahead():
        assert p.item() == 1 - 2.0**-8
