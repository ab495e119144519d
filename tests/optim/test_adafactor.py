"""Adafactor against every library that has it, against its theorem and its invariances.

Errors are measured relative to the distance that a parameter has travelled.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trajectories import optax_walk
from transformers.optimization import Adafactor as Transformers

from lossbook.optim import Adafactor, adafactor_step
from lossbook.optim.adafactor import _column_mean, factored_axes

# 25 steps of some thirty roundings each, in float64.
ROUNDING = 1e-12
DECAY = {"weight_decay": 0.1}


def walk_without_lr(tools, make, problem):
    """As ``tools.walk``; transformers refuses an lr where its steps are relative."""

    def adjust(optimizer, t):
        for group in optimizer.param_groups:
            group["lr"] = None

    return tools.walk(make, problem, adjust)


# The libraries


@pytest.mark.parametrize("eps1", [1e-30, 1e-3])
@pytest.mark.parametrize("beta1", [None, 0.9])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("rate", ["relative", "warmup", "given"])
def test_equals_transformers(hostile, tools, rate, scale, beta1, eps1):
    """Every flag that it has, decay on, an eps1 that bites and one that does not."""
    shared = {"eps": (eps1, 1e-3), "beta1": beta1, "scale_parameter": scale, **DECAY}
    flags = {"relative_step": rate != "given", "warmup_init": rate == "warmup"}
    if rate == "given":
        theirs = tools.walk(lambda p: Transformers(p, lr=1.0, **flags, **shared), hostile)
    else:
        theirs = walk_without_lr(tools, lambda p: Transformers(p, **flags, **shared), hostile)
    hold = None if rate == "given" else (lambda o, t: o.param_groups[0].update(lr=1e-2))
    ours = tools.walk(lambda p: Adafactor(p, rate=rate, **shared), hostile, hold)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("threshold", [0.3, 2.0])
@pytest.mark.parametrize("exponent", [-0.8, -0.5])
def test_other_thresholds_and_exponents(hostile, tools, threshold, exponent):
    theirs = tools.walk(
        lambda p: Transformers(
            p, lr=1.0, relative_step=False, clip_threshold=threshold, decay_rate=exponent
        ),
        hostile,
    )
    options = {"clip_threshold": threshold, "beta2_decay": exponent, "rate": "given"}
    ours = tools.walk(lambda p: Adafactor(p, **options), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("eps", [(1e-30, 1e-3), (1e-3, 1e-3), (1e-3, 2.0)])
def test_equals_torch(hostile, tools, eps, foreach):
    """Its eps1 is a floor, its decay raw; its lr caps the relative step."""
    options = {"eps": eps, **DECAY}
    theirs = tools.walk(lambda p: torch.optim.Adafactor(p, foreach=foreach, **options), hostile)
    ours = tools.walk(lambda p: Adafactor.like("torch", p, **options), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_torch_with_a_tiny_eps_is_the_paper(hostile, tools):
    theirs = tools.walk(lambda p: torch.optim.Adafactor(p, eps=(1e-30, 1e-3)), hostile)
    assert tools.distance(tools.walk(Adafactor, hostile), theirs) <= ROUNDING


def optax_chain(problem, *, smallest, scale, momentum, eps):
    """optax.adafactor link by link: its own computes beta2 in float32."""
    import jax.numpy as jnp
    import optax

    rates = jnp.asarray(problem.rates)
    links = [
        optax.scale_by_factored_rms(
            min_dim_size_to_factor=smallest,
            epsilon=eps,
            decay_rate_fn=lambda i, exponent: 1 - (i + 1.0) ** -exponent,
        ),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_schedule(lambda count: rates[count]),
    ]
    links += [optax.scale_by_param_block_rms()] if scale else []
    links += [optax.ema(0.9, debias=False)] if momentum else []
    return optax.chain(*links, optax.add_decayed_weights(0.1), optax.scale(-1.0))


@pytest.mark.parametrize("eps", [1e-30, 1e-3])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("smallest", [2, 5])
def test_equals_optax(tools, smallest, scale, momentum, eps):
    """The two largest axes; at 5 only (6, 5) is factored among the shapes."""
    problem = tools.Problem.hostile(missing=False)
    chain = optax_chain(problem, smallest=smallest, scale=scale, momentum=momentum, eps=eps)
    options = {
        "min_dim_size_to_factor": smallest,
        "scale_parameter": scale,
        "beta1": 0.9 if momentum else None,
        "eps": (eps, 1e-3),
        **DECAY,
    }
    ours = tools.walk(lambda p: Adafactor.like("optax", p, **options), problem)
    assert tools.distance(ours, optax_walk(chain, problem)) <= ROUNDING


def test_optax_as_it_is_differs_by_its_float32_beta2(tools):
    import jax.numpy as jnp
    import optax

    problem = tools.Problem.hostile(missing=False)
    rates = jnp.asarray(problem.rates)
    theirs = optax.adafactor(lambda count: rates[count], min_dim_size_to_factor=2)
    options = {"min_dim_size_to_factor": 2}
    ours = tools.walk(lambda p: Adafactor.like("optax", p, **options), problem)
    assert ROUNDING < tools.distance(ours, optax_walk(theirs, problem)) < 1e-6


DISAGREEMENTS = {
    "rate": {"rate": "given"},
    "scale": {"scale_parameter": False},
    "axes": {"factor": "largest"},
    "no factors": {"factor": "none"},
    "smallest": {"min_dim_size_to_factor": 5},
    "eps1": {"eps1_placement": "floor"},
    "decay by lr": {"decay": "lr"},
    "raw decay": {"decay": "raw"},
    "first moment": {"beta1": 0.9},
    "no clipping": {"clip_threshold": None},
    "exponent": {"beta2_decay": -0.7},
}


@pytest.mark.parametrize("option", DISAGREEMENTS)
def test_every_option_can_be_seen(tools, option):
    """What the equalities above could not see would not be tested by them."""
    problem = tools.Problem.hostile(missing=False)
    problem.rates = [30 * rate for rate in problem.rates]  # above 1 / sqrt(t) now and then
    base = {"eps": (1e-3 if option == "eps1" else 1e-30, 1e-3), **DECAY}
    paths = [
        tools.walk(lambda p, o=o: Adafactor(p, **base, **o), problem)
        for o in ({}, DISAGREEMENTS[option])
    ]
    assert tools.distance(*paths) > 1e-2


# Precision


def mixed(order, scale=1e-4):
    """A matrix in each precision, gradients of the given size."""
    rng = np.random.default_rng(5)
    found = []
    for dtype in order:
        p = torch.nn.Parameter(torch.tensor(rng.normal(size=(16, 24))).to(dtype))
        p.grad = torch.tensor(scale * rng.normal(size=(16, 24))).to(dtype)
        found.append(p)
    return found


ORDERS = [
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float64),
    (torch.float64, torch.float16),
]


@pytest.mark.parametrize(
    ("order", "compiled"), [*((order, False) for order in ORDERS), (ORDERS[0], True)], ids=str
)
def test_precisions_in_one_group_do_not_touch_each_other(order, compiled):
    together = mixed(order)
    optimizer = Adafactor(together, compiled=compiled)
    alone = [copy.deepcopy(p) for p in together]
    for p, q in zip(together, alone, strict=True):
        q.grad = p.grad.clone()
    singles = [Adafactor([p], compiled=compiled) for p in alone]
    for _ in range(3):
        for each in (optimizer, *singles):
            each.step()
    for p, q in zip(together, alone, strict=True):
        assert torch.equal(p, q)
        expected = torch.promote_types(p.dtype, torch.float32)
        assert all(optimizer.state[p][name].dtype == expected for name in ("r", "c"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-8])
def test_steps_have_the_same_length_for_every_size_of_gradient(dtype, size):
    """RMS of the first update over alpha: 1, where torch's default makes 0.004 in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    p = torch.zeros(256, 256, dtype=torch.float32).to(dtype).requires_grad_()
    p.grad = (size * torch.randn(256, 256, generator=generator)).to(dtype)
    Adafactor([p]).step()
    alpha = 1e-3 * 1e-2
    assert p.float().square().mean().sqrt().item() / alpha == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("scale", [2.0**-20, 1e-8, 1e6])
def test_the_scale_of_the_gradient_does_not_matter(tools, scale):
    options = {"eps": (0.0, 1e-3)}
    paths = [
        tools.walk(lambda p: Adafactor(p, **options), tools.Problem.hostile(scale=s))
        for s in (1.0, scale)
    ]
    assert tools.distance(*paths) <= (0 if scale == 2.0**-20 else ROUNDING)


def test_the_scale_of_the_parameter_scales_the_path(tools):
    """theta times 1024: every step is 1024 times as long, as long as eps2 does not bind."""
    small, large = tools.Problem.hostile(), tools.Problem.hostile()
    large.start = [1024 * x for x in large.start]
    paths = [tools.walk(Adafactor, problem) for problem in (small, large)]
    scaled = [[1024 * x for x in step] for step in paths[0]]
    assert tools.distance(paths[1], scaled) == 0


def test_rows_without_gradient_stay_where_they_are():
    """An embedding whose word did not occur; torch with eps1 = 1e-30 makes NaN of everything."""
    for dtype, placement in product((torch.float32, torch.bfloat16), ("square", "floor")):
        p = torch.ones(6, 4, dtype=dtype, requires_grad=True)
        p.grad = torch.ones(6, 4, dtype=dtype)
        p.grad[2] = 0
        Adafactor([p], eps1_placement=placement, eps=(1e-30, 1e-3)).step()
        assert p.isfinite().all()
        assert (p[2] == 1).all() and (p[3] != 1).all()


# The theorem


def divergence(v, w):
    """Generalised Kullback-Leibler divergence of two positive matrices."""
    return (v * np.log(v / w) - v + w).sum()


@given(seed=st.integers(0, 999), n=st.integers(1, 5), m=st.integers(1, 6))
def test_the_factors_minimise_the_divergence(seed, n, m):
    rng = np.random.default_rng(seed)
    v = rng.gamma(0.5, size=(n, m)) + 1e-6
    r, c = v.sum(1), v.sum(0)
    best = np.outer(r, c) / v.sum()
    low = divergence(v, best)
    for size in (1e-3, 1e-1, 1.0):
        a, b = r * np.exp(size * rng.normal(size=n)), c * np.exp(size * rng.normal(size=m))
        assert divergence(v, np.outer(a, b) / v.sum()) >= low - 1e-12 * v.sum()
    # gradient by log a and by log b: marginals of the estimate minus marginals of v
    assert np.allclose(best.sum(1), r, rtol=1e-12)
    assert np.allclose(best.sum(0), c, rtol=1e-12)


def memory_of(shape):
    *rest, n, m = shape
    zeros = {"r": torch.zeros(*rest, n, 1), "c": torch.zeros(*rest, 1, m), "v": torch.zeros(shape)}
    return {name: x.double() for name, x in zeros.items()}


@given(seed=st.integers(0, 999))
def test_rank_one_squares_make_factored_equal_unfactored(seed):
    """At the first step, for any signs: the product of marginals is then exact."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 7, size=rng.integers(2, 4)))
    size = rng.uniform(0.1, 2, size=(*shape[:-1], 1)) * rng.uniform(
        0.1, 2, size=(*shape[:-2], 1, shape[-1])
    )
    g = torch.tensor(size * rng.choice([-1, 1], size=shape))
    theta, memory = torch.tensor(rng.normal(size=shape)), memory_of(shape)
    factored = {name: memory[name] for name in ("r", "c")}
    one, _ = adafactor_step(theta, g, factored, 1, eps1=0.0)
    two, _ = adafactor_step(theta, g, {"v": memory["v"]}, 1, eps1=0.0)
    assert torch.allclose(one - theta, two - theta, rtol=1e-12, atol=0)


def test_other_squares_do_not():
    g = torch.tensor([[1.0, 2.0], [3.0, 1.0]]).double()
    memory = memory_of((2, 2))
    factored = {name: memory[name] for name in ("r", "c")}
    one, _ = adafactor_step(torch.zeros(2, 2).double(), g, factored, 1)
    two, _ = adafactor_step(torch.zeros(2, 2).double(), g, {"v": memory["v"]}, 1)
    assert (one - two).abs().max() > 0.1 * two.abs().max()


def test_the_first_step_without_factors_is_the_sign():
    """beta2_1 = 0: v is the squared gradient itself, and nothing needs a correction."""
    rng = np.random.default_rng(0)
    theta, g = (torch.tensor(rng.normal(size=(5, 4))) for _ in range(2))
    options = {"rate": "given", "scale_parameter": False, "eps1": 0.0}
    new, _ = adafactor_step(theta, g, {"v": torch.zeros(5, 4).double()}, 1, lr=0.01, **options)
    assert torch.allclose(new, theta - 0.01 * g.sign(), rtol=0, atol=1e-15)


def test_no_update_is_longer_than_the_threshold(tools):
    """RMS of what a step without decay changes, over alpha, for gradients that explode."""
    problem = tools.Problem.hostile(missing=False)
    problem.gradients = [
        [g * 10.0 ** (t % 7) for g in gs] for t, gs in enumerate(problem.gradients)
    ]
    path = tools.walk(lambda p: Adafactor(p, rate="given", clip_threshold=0.5), problem)
    for t, (old, new) in enumerate(pairwise(path)):
        for x, y in zip(old, new, strict=True):
            alpha = problem.rates[t] * max(1e-3, np.sqrt(np.mean(x**2)))
            assert np.sqrt(np.mean((y - x) ** 2)) <= 0.5 * alpha * (1 + 1e-9)


def test_the_equation_commutes_with_signs_permutations_and_transposition():
    rng = np.random.default_rng(1)
    theta, g = (torch.tensor(rng.normal(size=(5, 4))) for _ in range(2))
    r, c = torch.tensor(rng.uniform(0.1, 1, (5, 1))), torch.tensor(rng.uniform(0.1, 1, (1, 4)))
    new, memory = adafactor_step(theta, g, {"r": r, "c": c}, 4, weight_decay=0.1)
    rows, sign = torch.tensor(rng.permutation(5)), torch.tensor(rng.choice([-1.0, 1.0], (5, 4)))
    moved, kept = adafactor_step(
        (sign * theta)[rows], (sign * g)[rows], {"r": r[rows], "c": c}, 4, weight_decay=0.1
    )
    assert torch.allclose(moved, (sign * new)[rows], rtol=1e-13)
    assert torch.allclose(kept["r"], memory["r"][rows], rtol=1e-13)
    # rows and columns may change places only where mean(r) = mean(c), as running means have it
    c = c * r.mean() / c.mean()
    new, _ = adafactor_step(theta, g, {"r": r, "c": c}, 4)
    turned, _ = adafactor_step(theta.T, g.T, {"r": c.T, "c": r.T}, 4)
    assert torch.allclose(turned.T, new, rtol=1e-13)


def test_weights_without_gradient_signal_shrink_by_the_product(tools):
    problem = tools.Problem.hostile()
    problem.gradients = [[np.zeros_like(x) for x in problem.start] for _ in problem.rates]
    factors = {
        "raw": [0.9] * len(problem.rates),
        "lr": [1 - 0.1 * rate for rate in problem.rates],
    }
    for decay, factor in factors.items():
        path = tools.walk(lambda p, d=decay: Adafactor(p, decay=d, **DECAY), problem)
        for start, end in zip(problem.start, path[-1], strict=True):
            assert np.allclose(end, start * np.prod(factor), rtol=1e-13, atol=0)


def test_the_equation_changes_nothing_it_is_given():
    rng = np.random.default_rng(3)
    given = [torch.tensor(rng.uniform(1, 2, size=s)) for s in [(5, 4), (5, 4), (5, 1), (1, 4)]]
    copies = [x.clone() for x in given]
    theta, g, r, c = given
    adafactor_step(theta, g, {"r": r, "c": c, "m": theta}, 5, beta1=0.9, weight_decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


# Memory


@pytest.mark.parametrize(
    ("shape", "options", "numbers"),
    [
        ((512, 384), {}, 512 + 384),
        ((512,), {}, 512),
        ((), {}, 1),
        ((3, 40, 50), {}, 3 * (40 + 50)),
        ((200, 3, 150), {"factor": "largest"}, 3 * (200 + 150)),
        ((200, 100), {"min_dim_size_to_factor": 128}, 200 * 100),
        ((200, 100), {"factor": "none"}, 200 * 100),
        ((200, 100), {"beta1": 0.9}, 200 * 100 + 200 + 100),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_is_as_large_as_the_formula_says(shape, options, numbers, dtype):
    p = torch.zeros(shape, dtype=dtype, requires_grad=True)
    p.grad = torch.ones(shape, dtype=dtype)
    optimizer = Adafactor([p], **options)
    optimizer.step()
    tensors = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() * x.element_size() for x in tensors) == 4 * numbers


# Resuming, compiling, refusing


def gradients(tools, steps):
    rng = np.random.default_rng(7)
    return [[rng.normal(size=shape) for shape in ((6, 5), (7,), (4, 3, 5))] for _ in range(steps)]


@pytest.mark.parametrize("options", [{}, {"beta1": 0.9, "factor": "largest"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_resumed_run_has_the_same_bits(tools, options, dtype, tmp_path):
    gs = gradients(tools, 12)

    def step(optimizer, parameters, gs):
        for row in gs:
            for p, g in zip(parameters, row, strict=True):
                p.grad = torch.tensor(g).to(dtype)
            optimizer.step()

    whole = [torch.nn.Parameter(torch.tensor(g).to(dtype)) for g in gs[-1]]
    part = copy.deepcopy(whole)
    step(Adafactor(whole, **options), whole, gs)
    first = Adafactor(part, **options)
    step(first, part, gs[:5])
    torch.save({"p": part, "o": first.state_dict()}, tmp_path / "half.pt")
    saved = torch.load(tmp_path / "half.pt", weights_only=False)
    second = Adafactor(saved["p"], **options)
    second.load_state_dict(saved["o"])
    step(second, saved["p"], gs[5:])
    assert all(torch.equal(a, b) for a, b in zip(whole, saved["p"], strict=True))


def test_a_state_of_another_kind_is_refused():
    p = torch.zeros(6, 5, requires_grad=True)
    p.grad = torch.ones(6, 5)
    optimizer = Adafactor([p])
    optimizer.step()
    saved = optimizer.state_dict()
    for option in ({"factor": "none"}, {"beta1": 0.9}, {"min_dim_size_to_factor": 8}):
        (name,) = option
        with pytest.raises(ValueError, match=rf"state_dict.*{name}.*: expected .*, got "):
            Adafactor([p], **option).load_state_dict(saved)
    saved["state"][0]["r"] = torch.zeros(5, 1)
    with pytest.raises(ValueError, match=r"state_dict\['state'\]\[0\]\['r'\]: expected shape"):
        Adafactor([p]).load_state_dict(saved)


COMPILED = [
    {"weight_decay": 0.1, "clip": 1.0},
    {"beta1": 0.9, "eps1_placement": "floor", "eps": (1e-3, 1e-3), "factor": "largest"},
]
SIZES = [(2, 2), (6, 5), (63, 3), (64, 64), (65, 2), (128, 130), (3, 70, 4), (9,), (), (1, 5)]


@pytest.mark.parametrize("options", COMPILED, ids=str)
def test_compiled_equals_uncompiled(options):
    """Also around 64 rows, where the sums of columns change their form."""
    rng = np.random.default_rng(0)
    ends = []
    start = [rng.normal(size=shape) for shape in SIZES]
    gs = [[rng.normal(size=shape) for shape in SIZES] for _ in range(4)]
    for compiled in (False, True):
        parameters = [torch.nn.Parameter(torch.tensor(x)) for x in start]
        optimizer = Adafactor(parameters, compiled=compiled, **options)
        for row in gs:
            for p, g in zip(parameters, row, strict=True):
                p.grad = torch.tensor(g)
            optimizer.step()
        ends.append([p.detach().numpy() for p in parameters])
    for x, a, b in zip(start, *ends, strict=True):
        assert np.abs(a - b).max() <= 1e-13 * np.abs(a - x).max()


def test_compiled_half_precision():
    """State and arithmetic in float32; the two ways round to the same bfloat16 numbers."""
    ends = []
    for compiled in (False, True):
        (p,) = mixed([torch.bfloat16])
        optimizer = Adafactor([p], compiled=compiled, lr=0.1)
        for _ in range(3):
            optimizer.step()
        ends.append(p.detach().float())
    assert (ends[0] != ends[1]).float().mean() < 0.01


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1e-3),
        ("eps", (None, 1e-3)),
        ("eps", (1e-30,)),
        ("eps", (-1.0, 1e-3)),
        ("eps", (1e-30, math.inf)),
        ("scale_parameter", 1),
        ("beta2_decay", 0.8),
        ("clip_threshold", 0.0),
        ("beta1", 1.0),
        ("weight_decay", math.nan),
        ("rate", "absolute"),
        ("factor", "first"),
        ("min_dim_size_to_factor", -1),
        ("eps1_placement", "root"),
        ("decay", "decoupled"),
    ],
)
def test_bad_options_are_named(argument, value, untyped):
    p = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, got "):
        Adafactor([p], **{argument: value})


def test_presets_are_valid_and_can_be_overridden():
    for name in Adafactor.presets:
        p = torch.zeros(3, requires_grad=True)
        optimizer = Adafactor.like(name, [("weight", p)], lr=0.5, eps=(0.25, 0.5))
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["eps"] == (0.25, 0.5)


# The museum: public mistakes and near misses, each of which the comparison must catch


def wrong_steps(beta2=None, mean=None, clip=None, scale=None, order=None):
    """adafactor in NumPy, with one line exchanged."""
    beta2 = beta2 or (lambda t: 1 - t**-0.8)
    mean = mean or (lambda r, c: r * c / r.mean(-2, keepdims=True))
    clip = clip or (lambda u: max(1, np.sqrt(np.mean(u**2))))
    scale = scale or (lambda x: max(1e-3, np.sqrt(np.mean(x**2))))

    def walk(start, gradients, rates):
        path, memory = [start], None
        for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
            x, square, b = path[-1], g**2 + 1e-3, beta2(t)
            if x.ndim < 2:
                memory = square if memory is None else b * memory + (1 - b) * square
                v = memory
            else:
                rows, columns = square.mean(-1, keepdims=True), square.mean(-2, keepdims=True)
                r, c = memory or (0, 0)
                memory = b * r + (1 - b) * rows, b * c + (1 - b) * columns
                v = mean(*memory)
            u = g / np.sqrt(v)
            path.append(x - min(rate, t**-0.5) * scale(x) * u / clip(u))
        return path

    return walk


WRONG = {
    "right": {},
    "count starts at 0": {"beta2": lambda t: 1 - (t + 1) ** -0.8},
    "constant beta2": {"beta2": lambda t: 0.999 if t > 1 else 0.0},
    "mean forgotten": {"mean": lambda r, c: r * c},
    "root of the mean": {"mean": lambda r, c: r * c / np.sqrt(r.mean(-2, keepdims=True))},
    "clipped by the norm": {"clip": lambda u: max(1, np.sqrt(np.sum(u**2)))},
    "no clipping": {"clip": lambda u: 1},
    "no parameter scale": {"scale": lambda x: 1},
    "scaled by the norm": {"scale": lambda x: max(1e-3, np.sqrt(np.sum(x**2)))},
}


@pytest.mark.parametrize("mistake", WRONG)
def test_every_mistake_is_caught_with_a_margin(tools, mistake):
    problem = tools.Problem.hostile(missing=False)
    options = {"eps": (1e-3, 1e-3), "lr": 1.0}
    oracle = tools.walk(lambda p: Adafactor(p, **options), problem)
    walk = wrong_steps(**WRONG[mistake])
    columns = [
        walk(start, [g[i] for g in problem.gradients], problem.rates)
        for i, start in enumerate(problem.start)
    ]
    gap = tools.distance([list(step) for step in zip(*columns, strict=True)], oracle)
    assert gap <= ROUNDING if mistake == "right" else gap > 1e-2


@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 127, 128, 130, 200])
def test_the_mean_of_the_columns_is_their_mean(n):
    """64 rows at a time and the rest: sums of 200 numbers in another order, so 1e-14."""
    x = torch.tensor(np.random.default_rng(n).uniform(0.5, 1.5, size=(2, n, 3)))
    assert (_column_mean(x) - x.mean(-2, keepdim=True)).abs().max() <= 1e-14


def test_a_step_of_a_large_matrix_is_transformers():
    """More rows than the 64 that are summed at a time; the shapes above are smaller."""
    rng = np.random.default_rng(3)
    start, gs = rng.normal(size=(150, 70)), rng.normal(size=(3, 150, 70))
    ends = []
    for make in (
        lambda p: Adafactor(p, rate="given", clip_threshold=1e9),
        lambda p: Transformers(p, lr=1e-2, relative_step=False, clip_threshold=1e9),
    ):
        p = torch.nn.Parameter(torch.tensor(start))
        optimizer = make([p])
        for g in gs:
            p.grad = torch.tensor(g)
            optimizer.step()
        ends.append(p.detach())
    assert (ends[0] - ends[1]).abs().max() <= ROUNDING * (ends[1] - torch.tensor(start)).abs().max()


def test_torchs_decay_goes_by_its_lr_and_not_by_the_relative_step(hostile, tools):
    """Where lr is above 1 / sqrt(t) the two differ."""
    hostile.rates = [30 * rate for rate in hostile.rates]
    theirs = tools.walk(lambda p: torch.optim.Adafactor(p, eps=(1e-3, 1e-3), **DECAY), hostile)
    ours = tools.walk(lambda p: Adafactor.like("torch", p, eps=(1e-3, 1e-3), **DECAY), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_the_warm_up_rises_to_where_it_meets_the_root_whatever_lr_is():
    """min(1e-6 t, 1 / sqrt(t)): they meet at t = 10,000."""
    theta, g = torch.zeros(3).double(), torch.ones(3).double()
    options = {"rate": "warmup", "scale_parameter": False, "beta2_decay": 0.0, "lr": 0.0}
    for t, rate in ((1, 1e-6), (5_000, 5e-3), (40_000, 5e-3)):
        new, _ = adafactor_step(theta, g, {"v": torch.zeros(3).double()}, t, **options)
        assert new.tolist() == pytest.approx([-rate] * 3, rel=1e-14)


def test_groups_may_differ(hostile, tools):
    """In what they remember too: a parameter moves as in an optimizer of its own."""
    forms = [{}, {"beta1": 0.9}, {"factor": "largest"}, {"factor": "none"}]
    forms += [{"beta1": 0.9, "factor": "largest"}, {"min_dim_size_to_factor": 3}]
    hostile.start[1:5] = [hostile.start[3]] * 4  # (4, 3, 5): every form another way
    for row in hostile.gradients:
        row[1:5] = [row[3]] * 4
    whole = tools.walk(
        lambda p: Adafactor([{"params": [x], **f} for x, f in zip(p, forms, strict=True)]), hostile
    )
    for i, form in enumerate(forms):
        one = copy.deepcopy(hostile)
        one.start, one.gradients = one.start[i : i + 1], [g[i : i + 1] for g in one.gradients]
        alone = tools.walk(lambda p, f=form: Adafactor(p, **f), one)
        assert tools.distance([step[i : i + 1] for step in whole], alone) == 0


@pytest.mark.parametrize("shape", [(3, 3, 5), (5, 3, 3), (4, 4, 4), (3, 5, 3), (2, 7, 7, 2)])
def test_among_equal_axes_the_last_are_the_largest(shape):
    """As in optax, whose sort keeps the order of equals."""
    from optax._src.factorized import _factored_dims

    group = {"factor": "largest", "min_dim_size_to_factor": 2}
    assert factored_axes(shape, group) == tuple(sorted(_factored_dims(shape, True, 2)))
