"""AMSGrad, AdaMax, NAdam and RAdam against every library that has them, and against their bugs.

Errors are measured relative to the distance that a parameter has travelled.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import math
import os
import warnings

import numpy as np
import oracles
import pytest
import torch

from lossbook.optim import (
    Adam,
    AdaMax,
    AMSGrad,
    NAdam,
    RAdam,
    adam_step,
    adamax_step,
    amsgrad_step,
    nadam_step,
    radam_step,
)
from lossbook.optim.adam_family import (
    average_length,
    momentum_product,
    rectifier,
    scheduled_momentum,
)

# 25 steps of two dozen roundings each, in float64.
ROUNDING = 1e-13
# rho_t is a small difference of large numbers: at t = 6 and beta2 = 0.999 one rounding of beta2^t
# moves it by 4e-11, and its root half as far.
CANCELLING = 1e-11

DECAYED = {"eps": 1e-3, "weight_decay": 0.1}
FAMILY = (AMSGrad, AdaMax, NAdam, RAdam)
torch_amsgrad = functools.partial(torch.optim.Adam, amsgrad=True)


def called(x: object) -> str:
    """A name without an address in memory: every worker must collect the same tests."""
    return getattr(x, "__name__", str(x))


TORCH_FORMS = [
    (AMSGrad, torch_amsgrad, {}),
    (AMSGrad, torch_amsgrad, {"betas": (0.5, 0.8)}),
    (AdaMax, torch.optim.Adamax, {}),
    (AdaMax, torch.optim.Adamax, {"betas": (0.5, 0.8)}),
    (NAdam, torch.optim.NAdam, {}),
    (NAdam, torch.optim.NAdam, {"momentum_decay": 1.0, "betas": (0.85, 0.99)}),
    (NAdam, torch.optim.NAdam, {"momentum_decay": 0.0}),
    (NAdam, torch.optim.NAdam, {"betas": (0.0, 0.99)}),
    (RAdam, torch.optim.RAdam, {}),
    (RAdam, torch.optim.RAdam, {"betas": (0.85, 0.9)}),
]
torch_forms = pytest.mark.parametrize(("kind", "oracle", "options"), TORCH_FORMS, ids=called)


@pytest.fixture
def double():
    """torch keeps NAdam's product of momenta in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@torch_forms
def test_equals_torch(hostile, tools, double, kind, oracle, options):
    ours = tools.walk(lambda p: kind(p, **DECAYED, **options), hostile)
    for way in (False, True):
        flags = {**DECAYED, **options, "foreach": way}
        theirs = tools.walk(lambda p, f=flags: oracle(p, **f), hostile)
        assert tools.distance(ours, theirs) <= ROUNDING


def from_zero(problem):
    """Where steps are tiny, the rounding of a parameter of size 1 would be all that is seen."""
    problem.start = [np.zeros_like(x) for x in problem.start]
    return problem


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
@pytest.mark.parametrize(("kind", "oracle", "_"), [f for f in TORCH_FORMS if not f[2]], ids=called)
def test_equals_torch_at_every_size_of_gradient(tools, double, kind, oracle, _, scale):
    """Without decay, which would be all that is left at 1e-8; eps shrinks like the gradients."""
    problem = from_zero(tools.Problem.hostile(scale=scale))
    ours = tools.walk(lambda p: kind(p, eps=1e-3 * scale), problem)
    theirs = tools.walk(lambda p: oracle(p, eps=1e-3 * scale), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("kind", [NAdam, RAdam])
def test_decoupled_decay_equals_torch(hostile, tools, double, kind):
    oracle = getattr(torch.optim, kind.__name__)
    ours = tools.walk(lambda p: kind(p, **DECAYED, decay="decoupled"), hostile)
    theirs = tools.walk(lambda p: oracle(p, **DECAYED, decoupled_weight_decay=True), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_torch_keeps_the_product_of_momenta_in_the_default_precision(hostile, tools):
    """1e-9 of the way in float32, although parameters and moments are in float64."""
    assert torch.get_default_dtype() is torch.float32
    ours = tools.walk(lambda p: NAdam(p, **DECAYED), hostile)
    theirs = tools.walk(lambda p: torch.optim.NAdam(p, **DECAYED), hostile)
    assert 1e-10 < tools.distance(ours, theirs) < 1e-7


@torch_forms
def test_defaults_are_torchs(kind, oracle, options):
    fresh = kind([torch.zeros(2, requires_grad=True)]).param_groups[0]
    theirs = oracle([torch.zeros(2, requires_grad=True)]).param_groups[0]
    common = set(fresh) & set(theirs) - {"params"}
    assert {"lr", "betas", "eps", "weight_decay"} <= common
    assert {k: fresh[k] for k in common} == {k: theirs[k] for k in common}
    named = kind.like("torch", [torch.zeros(2, requires_grad=True)]).param_groups[0]
    assert {k: named[k] for k in common} == {k: theirs[k] for k in common}


# optax


def optax_path(problem, transformation):
    import jax.numpy as jnp
    import optax

    chain = optax.chain(optax.add_decayed_weights(0.1), transformation)
    theta = [jnp.asarray(x) for x in problem.start]
    state, path = chain.init(theta), [problem.start]
    for gradients in problem.gradients:
        updates, state = chain.update([jnp.asarray(g) for g in gradients], state, theta)
        theta = optax.apply_updates(theta, updates)
        path.append([np.asarray(x) for x in theta])
    return path


OPTAX_FORMS = [
    (AMSGrad, {}, "amsgrad", {}),
    (AMSGrad, {"eps_placement": "inside"}, "amsgrad", {"eps": 0.0, "eps_root": 1e-3}),
    (AdaMax, {}, "adamax", {}),
    (NAdam, {}, "nadam", {}),
    (NAdam, {"betas": (0.5, 0.9)}, "nadam", {"b1": 0.5, "b2": 0.9}),
    (RAdam, {}, "radam", {}),
    (RAdam, {"betas": (0.9, 0.98)}, "radam", {"b2": 0.98}),
    (RAdam, {"threshold": 4.0}, "radam", {"threshold": 4.0}),
    (RAdam, {"eps_placement": "inside"}, "radam", {"eps": 0.0, "eps_root": 1e-3}),
]


@pytest.mark.parametrize(("kind", "options", "name", "flags"), OPTAX_FORMS, ids=called)
def test_equals_optax(tools, kind, options, name, flags):
    import jax.numpy as jnp
    import optax

    problem = tools.Problem.hostile(missing=False)
    rates = jnp.asarray(problem.rates)
    theirs = getattr(optax, name)(lambda count: rates[count], **{"eps": 1e-3, **flags})
    ours = tools.walk(lambda p: kind.like("optax", p, **{**DECAYED, **options}), problem)
    bound = CANCELLING if kind is RAdam else ROUNDING
    assert tools.distance(ours, optax_path(problem, theirs)) <= bound


def test_the_papers_amsgrad_is_optaxs_without_corrections(tools):
    import jax.numpy as jnp
    import optax

    problem = tools.Problem.hostile(missing=False)
    rates = jnp.asarray(problem.rates)
    off = {"bias_correction_mu": False, "bias_correction_nu": False}
    theirs = optax_path(problem, optax.amsgrad(lambda count: rates[count], eps=1e-3, **off))
    ours = tools.walk(lambda p: AMSGrad.like("paper", p, **DECAYED), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


# Keras, on torch


@pytest.fixture
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")
    before = keras.config.floatx()
    keras.config.set_floatx("float64")  # before the first variable
    yield keras
    keras.config.set_floatx(before)


def keras_path(keras, problem, optimizer):
    variables = [keras.Variable(x, dtype="float64") for x in problem.start]
    optimizer.build(variables)
    path = [problem.start]
    for gradients, lr in zip(problem.gradients, problem.rates, strict=True):
        optimizer.learning_rate = lr
        optimizer.apply([torch.tensor(g) for g in gradients], variables)
        path.append([np.array(keras.ops.convert_to_numpy(x)) for x in variables])
    return path


KERAS_FORMS = [(AMSGrad, "Adam", {"amsgrad": True}), (AdaMax, "Adamax", {}), (NAdam, "Nadam", {})]


@pytest.mark.parametrize(("kind", "name", "flags"), KERAS_FORMS, ids=called)
def test_equals_keras(tools, keras, kind, name, flags):
    problem = tools.Problem.hostile(missing=False)
    optimizer = getattr(keras.optimizers, name)(epsilon=1e-3, weight_decay=0.1, **flags)
    ours = tools.walk(lambda p: kind.like("keras", p, **DECAYED), problem)
    assert tools.distance(ours, keras_path(keras, problem, optimizer)) <= ROUNDING


@pytest.mark.parametrize(("kind", "name", "flags"), KERAS_FORMS, ids=called)
def test_presets_have_the_constants_of_keras(keras, kind, name, flags):
    theirs = getattr(keras.optimizers, name)(**flags)
    group = kind.like("keras", [torch.zeros(2, requires_grad=True)]).param_groups[0]
    assert group["lr"] == pytest.approx(float(theirs.learning_rate), rel=1e-6)
    assert group["eps"] == theirs.epsilon and group["betas"] == (theirs.beta_1, theirs.beta_2)


# timm, pytorch_optimizer, torch_optimizer


@pytest.fixture
def timm():
    """Modules of ``timm.optim`` by name."""
    oracles.timm()
    return lambda name: importlib.import_module(f"timm.optim.{name}")


@pytest.mark.parametrize("foreach", [False, True])
def test_equals_timms_nadamw(hostile, tools, timm, foreach):
    theirs = timm("nadamw").NAdamW
    ours = tools.walk(lambda p: NAdam.like("timm", p, **DECAYED), hostile)
    other = tools.walk(lambda p: theirs(p, **DECAYED, foreach=foreach), hostile)
    assert tools.distance(ours, other) <= ROUNDING


def test_timms_older_nadam_is_torchs(hostile, tools, timm):
    theirs = timm("nadam").NAdamLegacy
    ours = tools.walk(lambda p: NAdam(p, **DECAYED), hostile)
    other = tools.walk(lambda p: theirs(p, **DECAYED), hostile)
    assert tools.distance(ours, other) <= ROUNDING


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("rests", [True, False])
def test_equals_pytorch_optimizer_radam(tools, rests, foreach):
    """Its step count belongs to the group, so no gradient may be missing."""
    library = pytest.importorskip("pytorch_optimizer")
    problem = tools.Problem.hostile(missing=False)
    options = {"unrectified": "rest" if rests else "momentum"}
    ours = tools.walk(lambda p: RAdam.like("authors", p, **DECAYED, **options), problem)
    flags = {"degenerated_to_sgd": not rests, "foreach": foreach}
    theirs = tools.walk(lambda p: library.RAdam(p, **DECAYED, **flags), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


@pytest.mark.parametrize("decoupled", [True, False])
def test_equals_pytorch_optimizer_adamax(tools, decoupled):
    library = pytest.importorskip("pytorch_optimizer")
    problem = tools.Problem.hostile(missing=False)
    decay = "decoupled" if decoupled else "l2"
    ours = tools.walk(lambda p: AdaMax(p, **DECAYED, decay=decay), problem)
    theirs = tools.walk(lambda p: library.AdaMax(p, **DECAYED, weight_decouple=decoupled), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_two_libraries_compute_radam_in_float32(tools, timm):
    """timm's older class and torch_optimizer turn everything into float32 first."""
    problem = tools.Problem.hostile(missing=False)
    ours = tools.walk(lambda p: RAdam(p, **DECAYED, decay="decoupled"), problem)
    kinds = [timm("radam").RAdamLegacy, pytest.importorskip("torch_optimizer").RAdam]
    for kind in kinds:
        theirs = tools.walk(lambda p, kind=kind: kind(p, **DECAYED), problem)
        assert 1e-9 < tools.distance(ours, theirs) < 1e-4


# How far the forms lie apart

WALKED = {}


@pytest.mark.parametrize(
    ("kind", "one", "two", "least"),
    [
        (AMSGrad, "torch", "optax", 0.1),
        (AMSGrad, "torch", "paper", 0.5),
        (AMSGrad, "torch", "keras", 0.1),
        (AdaMax, "torch", "keras", 1e-3),
        (NAdam, "torch", "keras", 0.2),
        (NAdam, "torch", "optax", 0.4),
        (NAdam, "keras", "optax", 0.3),
        (NAdam, "optax", "timm", 0.1),
        (RAdam, "torch", "optax", 1e-2),
        (RAdam, "torch", "authors", 0.1),
        (RAdam, "torch", "paper", 1e-2),
    ],
)
def test_forms_of_one_name_differ(tools, kind, one, two, least):
    """Same gradients, rates, eps and no decay: what is left is the form."""
    problem = tools.Problem.hostile(missing=False)
    for name in (one, two):
        if (kind, name) not in WALKED:
            make = functools.partial(kind.like, name, eps=1e-3, weight_decay=0.0)
            WALKED[kind, name] = tools.walk(make, problem)
    assert tools.distance(WALKED[kind, one], WALKED[kind, two]) > least


def test_eps_makes_the_whole_difference_between_torchs_and_optaxs_radam(tools):
    problem = tools.Problem.hostile(missing=False)
    paths = [
        tools.walk(lambda p, n=n: RAdam.like(n, p, eps=0.0), problem) for n in ("torch", "optax")
    ]
    assert tools.distance(*paths) <= ROUNDING


# Conversion identities


@pytest.mark.parametrize("preset", ["keras", "optax"])
def test_nadam_by_psi(tools, double, preset):
    """torch becomes Keras at psi = 1, optax at a psi that leaves nothing of 0.96^(t psi)."""
    problem = from_zero(tools.Problem.hostile(missing=False))
    psi = {"keras": 1.0, "optax": 1e6}[preset]
    same = {"eps": 1e-3, "weight_decay": 0.0}
    ours = tools.walk(lambda p: NAdam.like(preset, p, **same), problem)
    theirs = tools.walk(lambda p: torch.optim.NAdam(p, **same, momentum_decay=psi), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_next_is_adam_that_sees_the_gradient_twice():
    """correction="next": Adam's own average, one step on, if the next gradient is this one."""
    rng = np.random.default_rng(3)
    theta, g, m, v = states(rng)
    for t in (1, 2, 7, 100):
        ours, new_m, new_v = nadam_step(
            theta, g, m, v, t, eps=1e-3, momentum_decay=math.inf, correction="next"
        )
        again = 0.9 * new_m + 0.1 * g
        root = (new_v / (1 - 0.999**t)).sqrt() + 1e-3
        expected = theta - 2e-3 * again / (1 - 0.9 ** (t + 1)) / root
        assert torch.allclose(ours, expected, rtol=0, atol=1e-15)


def test_without_a_first_beta_nadam_is_adam(hostile, tools):
    ours = tools.walk(lambda p: NAdam(p, **DECAYED, betas=(0.0, 0.99)), hostile)
    adam = tools.walk(lambda p: Adam(p, **DECAYED, betas=(0.0, 0.99)), hostile)
    assert tools.distance(ours, adam) <= ROUNDING


def test_amsgrad_is_adam_while_v_grows(tools):
    """The raw v grows here in every step, by far: the maximum is v itself."""
    problem = tools.Problem.hostile(missing=False)
    for t, gradients in enumerate(problem.gradients):
        for g in gradients:
            g[...] = np.where(g < 0, -(1.1**t), 1.1**t)
    for placement in ("outside", "hat", "inside"):
        paths = [
            tools.walk(lambda p, k=k, e=placement: k(p, eps=1e-3, eps_placement=e), problem)
            for k in (AMSGrad, Adam)
        ]
        assert tools.distance(*paths) <= ROUNDING


def test_radam_is_adam_times_the_rectifier():
    theta, g, m, v = states(np.random.default_rng(5))
    for t in (6, 20, 5000):
        options = {"eps": 1e-3, "weight_decay": 0.1}
        ours, *_ = radam_step(theta, g, m, v, t, **options)
        other, *_ = adam_step(
            theta, g, m, v, t, **options, eps_placement="hat", lr=1e-3 * rectifier(t, 0.999)
        )
        assert torch.allclose(ours, other, rtol=0, atol=1e-15)


# What RAdam and NAdam compute from the step count alone


@pytest.mark.parametrize("beta2", [0.9, 0.98, 0.99, 0.999])
def test_the_average_length_matches_the_age(beta2):
    """rho_t plain weights on ages 0 ... rho_t - 1 have the mean age of the running average."""
    for t in (1, 2, 5, 6, 30, 1000):
        ages = np.arange(t)
        weights = beta2**ages
        age = (weights * ages).sum() / weights.sum()
        assert average_length(t, beta2) == pytest.approx(2 * age + 1, rel=1e-8)
        assert t == 1 or average_length(t, beta2) < t
    assert average_length(4, beta2) < 4 < average_length(5, beta2) < 5 < average_length(6, beta2)


def test_the_rectifier_is_the_ratio_of_two_spreads():
    """Of the root of 1/chi^2 to first order: Var = rho / (2 (rho - 2) (rho - 4))."""

    def spread(rho):
        return math.sqrt(rho / (2 * (rho - 2) * (rho - 4)))

    for t in (6, 10, 100, 3000):
        expected = spread(1999.0) / spread(average_length(t, 0.999))
        assert rectifier(t, 0.999) == pytest.approx(expected, rel=1e-8)
    assert rectifier(100_000, 0.999) == pytest.approx(1.0, abs=1e-12)


def test_the_product_of_momenta():
    for beta1, psi in ((0.9, 4e-3), (0.9, 1.0), (0.99, 0.0), (0.5, math.inf), (0.0, 1.0)):
        product = 1.0
        for t in range(1, 100):
            product *= scheduled_momentum(t, beta1, psi)
            assert abs(momentum_product(t, beta1, psi) - product) <= 1e-15
        assert momentum_product(5000, beta1, psi) < 1e-18
        assert scheduled_momentum(3, beta1, math.inf) == beta1


# What holds without any oracle


def states(rng, n=50):
    theta, g = (torch.tensor(rng.normal(size=n)) for _ in range(2))
    m = torch.tensor(0.1 * rng.normal(size=n))
    v = m**2 + torch.tensor(rng.uniform(0.1, 1, size=n))
    return theta, g, m, v


STEPS = [
    (amsgrad_step, ("v", "w"), {}),
    (amsgrad_step, ("v", "w"), {"maximum": "corrected", "eps_placement": "inside"}),
    (adamax_step, ("v",), {}),
    (nadam_step, ("v",), {}),
    (radam_step, ("v",), {}),
    (radam_step, ("v",), {"threshold": 8.0}),
]
equations = pytest.mark.parametrize(("step", "even", "options"), STEPS, ids=called)


def arguments(rng, even):
    theta, g, m, v = states(rng)
    largest = v + torch.tensor(rng.uniform(-0.1, 1, size=50)).clamp(min=0)
    return [theta, g, m, *{"v": v, "w": largest}.values()][: 3 + len(even)]


@equations
def test_the_equations_commute_with_signs_and_permutations(step, even, options):
    rng = np.random.default_rng(1)
    given = arguments(rng, even)
    order, sign = torch.tensor(rng.permutation(50)), torch.tensor(rng.choice([-1.0, 1.0], 50))
    signs = [sign, sign, sign, *[torch.ones(50, dtype=torch.float64) for _ in even]]
    options = {"eps": 1e-3, "weight_decay": 0.1, **options}
    new = step(*given, 7, **options)
    moved = step(*((s * x)[order] for s, x in zip(signs, given, strict=True)), 7, **options)
    for s, x, y in zip([sign, *signs[2:]], new, moved, strict=True):
        assert torch.equal(y, (s * x)[order])


@equations
def test_the_equations_change_nothing_they_are_given(step, even, options):
    given = arguments(np.random.default_rng(2), even)
    copies = [x.clone() for x in given]
    step(*given, 7, weight_decay=0.1, **options)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


SCALE_FREE = [
    (AMSGrad, {}),
    (AMSGrad, {"maximum": "corrected", "eps_placement": "inside"}),
    (AdaMax, {"eps_placement": "outside"}),
    (NAdam, {}),
    (NAdam, {"momentum_decay": math.inf, "correction": "present"}),
    (RAdam, {"unrectified": "rest"}),
]


@pytest.mark.parametrize(("kind", "options"), SCALE_FREE, ids=called)
def test_the_scale_of_the_gradient_does_not_matter(tools, kind, options):
    problems = [tools.Problem.hostile(scale=scale) for scale in (1.0, 2.0**-20, 1e6)]
    paths = [tools.walk(lambda p: kind(p, eps=0.0, **options), problem) for problem in problems]
    assert tools.distance(paths[1], paths[0]) == 0  # a power of two moves no digit
    assert tools.distance(paths[2], paths[0]) <= ROUNDING


def first_steps(make, gradients):
    """Lengths of the steps of one parameter, in learning rates."""
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer, path = make([p]), [0.0]
    for g in gradients:
        p.grad = torch.full_like(p, g)
        optimizer.step()
        path.append(p.item())
    return -np.diff(path)


def test_radams_first_steps_have_the_size_of_the_gradient():
    """Five of them; then Adam's, times the rectifier."""
    expected = [1.0] * 5 + [rectifier(t, 0.999) for t in range(6, 31)]
    for size in (1.0, 1000.0):
        steps = first_steps(lambda p: RAdam(p, lr=1.0, eps=0.0), [size] * 30)
        assert np.allclose(steps, [size] * 5 + expected[5:], rtol=1e-8)


def test_first_steps_under_a_steady_gradient():
    """AdaMax: always 1. NAdam's weights do not sum to one: 1.056, 1.063, 1.474, 1.9 at first."""
    assert np.allclose(first_steps(lambda p: AdaMax(p, lr=1.0, eps=0.0), [0.3] * 40), 1.0)
    same = {"lr": 1.0, "eps": 0.0, "weight_decay": 0.0}
    first = {
        name: first_steps(lambda p, n=name: NAdam.like(n, p, **same), [0.3])[0]
        for name in ("torch", "keras", "optax", "timm")
    }
    assert {k: round(x, 3) for k, x in first.items()} == {
        "torch": 1.056,
        "keras": 1.063,
        "optax": 1.474,
        "timm": 1.9,
    }
    ours = first_steps(
        lambda p: NAdam(p, lr=1.0, eps=0.0, momentum_decay=math.inf, correction="next"), [0.3] * 40
    )
    assert np.allclose(ours, 1.0)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9)])
def test_adamaxs_largest_step(betas):
    """Gradients that shrink by beta2: beta2 (1 - beta1) / (beta2 - beta1), not the paper's 1."""
    beta1, beta2 = betas
    gradients = beta2 ** np.arange(120.0)
    steps = first_steps(lambda p: AdaMax(p, lr=1.0, eps=0.0, betas=betas), gradients)
    t = np.arange(1, 121)
    q = beta1 / beta2
    bound = (1 - beta1) / (1 - beta1**t) * (1 - q**t) / (1 - q)
    assert np.allclose(steps, bound, rtol=1e-10)
    rng = np.random.default_rng(0)
    wild = rng.normal(size=120) * 10 ** rng.uniform(-3, 3, size=120)
    found = first_steps(lambda p: AdaMax(p, lr=1.0, eps=0.0, betas=betas), wild)
    assert (np.abs(found) <= bound * (1 + 1e-9)).all()


def test_amsgrad_finds_the_end_that_adam_misses():
    """Reddi et al. 2018, theorem 1: gradients C, -1, -1 on [-1, 1]; beta2 = 1 / (1 + C^2)."""
    ends = {}
    for kind in (Adam, AMSGrad, torch.optim.Adam, torch_amsgrad):
        x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = kind([x], betas=(0.0, 0.1))
        for t in range(1, 101):
            x.grad = torch.full_like(x, 3.0 if t % 3 == 1 else -1.0)
            optimizer.param_groups[0]["lr"] = 0.5 / math.sqrt(t)
            optimizer.step()
            x.data.clamp_(-1, 1)
        ends[kind] = x.item()
    assert ends[Adam] > 0.9 > -0.9 > ends[AMSGrad]
    assert abs(ends[Adam] - ends[torch.optim.Adam]) <= 1e-12
    assert abs(ends[AMSGrad] - ends[torch_amsgrad]) <= 1e-12


@pytest.mark.parametrize("kind", FAMILY)
def test_without_gradients_weights_shrink_by_the_product(hostile, tools, kind):
    hostile.gradients = [[np.zeros_like(x) for x in hostile.start] for _ in hostile.rates]
    path = tools.walk(lambda p: kind(p, weight_decay=0.1, decay="decoupled"), hostile)
    factor = np.prod([1 - rate * 0.1 for rate in hostile.rates])
    for start, end in zip(hostile.start, path[-1], strict=True):
        assert np.allclose(end, start * factor, rtol=1e-14, atol=0)


def test_a_resting_radam_rests_and_remembers(tools):
    problem = tools.Problem.hostile(missing=False)
    path = tools.walk(lambda p: RAdam.like("authors", p, **DECAYED), problem)
    assert tools.distance(path[:6], path[:1] * 6) == 0
    assert all((x != y).any() for x, y in zip(path[5], path[6], strict=True))


# State, speed, precision

COMPILED = [
    (AMSGrad, {"maximum": "corrected"}),
    (AdaMax, {}),
    (NAdam, {"momentum_decay": math.inf, "correction": "present"}),
    (RAdam, {}),
]


@pytest.mark.parametrize(("kind", "options"), COMPILED, ids=called)
def test_compiled_equals_uncompiled(hostile, tools, kind, options):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "compiled=True")  # the way a missing compiler speaks
        compiled = tools.walk(lambda p: kind(p, **DECAYED, **options, compiled=True), hostile)
    plain = tools.walk(lambda p: kind(p, **DECAYED, **options), hostile)
    assert tools.distance(compiled, plain) <= ROUNDING


@pytest.mark.parametrize("kind", FAMILY)
def test_resuming_from_a_state_dict_gives_the_same_bits(hostile, tools, kind):
    tensors = hostile.tensors()
    optimizer = kind(tensors, **DECAYED)
    walk = tools.positions(optimizer, tensors, hostile)
    for _ in range(5):  # in the middle of RAdam's first phase
        next(walk)
    saved = copy.deepcopy(optimizer.state_dict())
    twins = [torch.nn.Parameter(p.detach().clone()) for p in tensors]
    rest = list(walk)
    other = kind(twins)
    other.load_state_dict(saved)
    again = list(tools.positions(other, twins, hostile, first=5))[1:]
    assert len(rest) == len(again)
    for one, two in zip(rest, again, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize(("kind", "floats"), [(AMSGrad, 3), (AdaMax, 2), (NAdam, 2), (RAdam, 2)])
def test_a_state_is_as_large_as_it_must_be(kind, floats):
    p = torch.zeros(1000, requires_grad=True)
    optimizer = kind([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() for x in kept) == floats * p.numel()


@pytest.mark.parametrize("kind", FAMILY)
def test_precisions_mix_in_any_order(tools, kind):
    """A parameter moves as it would alone, whoever is first; its memory is float32 or better."""
    kinds = [torch.float64, torch.float32, torch.bfloat16]
    problem = tools.Problem.hostile()

    def run(order):
        tensors = {
            i: torch.nn.Parameter(torch.tensor(problem.start[2]).to(kinds[i])) for i in order
        }
        optimizer = kind(list(tensors.values()), **DECAYED)
        for gradients in problem.gradients[:9]:
            for p in tensors.values():
                p.grad = None if gradients[2] is None else torch.tensor(gradients[2]).to(p.dtype)
            optimizer.step()
        for p in tensors.values():
            dtypes = {x.dtype for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)}
            assert dtypes == {torch.promote_types(p.dtype, torch.float32)}
        return tensors

    forth, back, alone = run([0, 1, 2]), run([2, 1, 0]), [run([i])[i] for i in range(3)]
    for i in range(3):
        assert torch.equal(forth[i], back[i]) and torch.equal(forth[i], alone[i])
    assert torch.allclose(forth[0].float(), forth[1], rtol=0, atol=1e-5)
    assert torch.allclose(forth[0].float(), forth[2].float(), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", FAMILY)
def test_gradients_are_left_as_they_are(kind):
    p = torch.randn(5, dtype=torch.float64, requires_grad=True)
    p.grad = torch.randn(5, dtype=torch.float64)
    before = p.grad.clone()
    kind([p], **DECAYED).step()
    assert torch.equal(p.grad, before)


# The museum: each mistake must be caught


def moments(g, m, v, b1, b2):
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g


def nadam_right(theta, g, m, v, t, lr, b1, b2, eps, product):
    m, v = moments(g, m, v, b1, b2)
    now, after = (b1 * (1 - 0.5 * 0.96 ** (s * 4e-3)) for s in (t, t + 1))
    ahead = (1 - now) / (1 - product) * g + after / (1 - product * after) * m
    return theta - lr * ahead / ((v / (1 - b2**t)).sqrt() + eps), m, v


def nadam_product_with_mu_twice(theta, g, m, v, t, lr, b1, b2, eps, product):
    """The product for t + 1 takes mu_t twice: an old path of torch, and TorchSharp."""
    m, v = moments(g, m, v, b1, b2)
    now, after = (b1 * (1 - 0.5 * 0.96 ** (s * 4e-3)) for s in (t, t + 1))
    ahead = (1 - now) / (1 - product) * g + after / (1 - product * now * after) * m
    return theta - lr * ahead / ((v / (1 - b2**t)).sqrt() + eps), m, v


def nadam_one_denominator(theta, g, m, v, t, lr, b1, b2, eps, product):
    m, v = moments(g, m, v, b1, b2)
    ahead = (b1 * m + (1 - b1) * g) / (1 - b1**t)
    return theta - lr * ahead / ((v / (1 - b2**t)).sqrt() + eps), m, v


def nadam_old_average(theta, g, m, v, t, lr, b1, b2, eps, product):
    """Without the look ahead this is nearly Adam."""
    old = m
    m, v = moments(g, m, v, b1, b2)
    now, after = (b1 * (1 - 0.5 * 0.96 ** (s * 4e-3)) for s in (t, t + 1))
    ahead = (1 - now) / (1 - product) * g + after / (1 - product * after) * old
    return theta - lr * ahead / ((v / (1 - b2**t)).sqrt() + eps), m, v


def radam_right(theta, g, m, v, t, lr, b1, b2, eps, _):
    m, v = moments(g, m, v, b1, b2)
    rho = average_length(t, b2)
    if rho <= 5:
        return theta - lr * m / (1 - b1**t), m, v
    ratio = rectifier(t, b2) * (1 - b2**t) ** 0.5 / (1 - b1**t) * m / (v.sqrt() + eps)
    return theta - lr * ratio, m, v


def radam_climbs(theta, g, m, v, t, lr, b1, b2, eps, _):
    """The authors' mark for a skipped step, a factor of -1, taken for a factor."""
    new, new_m, new_v = radam_right(theta, g, m, v, t, lr, b1, b2, eps, _)
    return (theta + lr * new_m if average_length(t, b2) <= 5 else new), new_m, new_v


def radam_corrects_in_place(theta, g, m, v, t, lr, b1, b2, eps, _):
    new, m, v = radam_right(theta, g, m, v, t, lr, b1, b2, eps, _)
    return new, m / (1 - b1**t), v / (1 - b2**t)


def radam_without_rectifier(theta, g, m, v, t, lr, b1, b2, eps, _):
    new, new_m, new_v = radam_right(theta, g, m, v, t, lr, b1, b2, eps, _)
    factor = 1 / rectifier(t, b2) if average_length(t, b2) > 5 else 1.0
    return theta + factor * (new - theta), new_m, new_v


def adamax_right(theta, g, m, u, t, lr, b1, b2, eps, _):
    m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u, g.abs() + eps)
    return theta - lr / (1 - b1**t) * m / u, m, u


def adamax_eps_beside_the_past(theta, g, m, u, t, lr, b1, b2, eps, _):
    """max(beta2 u + eps, |g|), where the paper's own published code has it: u never falls below
    eps / (1 - beta2)."""
    m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u + eps, g.abs())
    return theta - lr / (1 - b1**t) * m / u, m, u


def adamax_corrects_u(theta, g, m, u, t, lr, b1, b2, eps, _):
    m, u = b1 * m + (1 - b1) * g, torch.maximum(b2 * u, g.abs() + eps)
    return theta - lr / (1 - b1**t) * m / (u / (1 - b2**t)), m, u


def mutant(kind, wrong):
    class Mutant(kind):
        @staticmethod
        def equation(theta, g, m, v, t, *, lr, beta1, beta2, eps, weight_decay, product=0.0, **_):
            g = g + weight_decay * theta
            return wrong(theta, g, m, v, t, lr, beta1, beta2, eps, product)

    return Mutant


MUSEUM = [
    (NAdam, nadam_right),
    (NAdam, nadam_product_with_mu_twice),
    (NAdam, nadam_one_denominator),
    (NAdam, nadam_old_average),
    (RAdam, radam_right),
    (RAdam, radam_climbs),
    (RAdam, radam_corrects_in_place),
    (RAdam, radam_without_rectifier),
    (AdaMax, adamax_right),
    (AdaMax, adamax_eps_beside_the_past),
    (AdaMax, adamax_corrects_u),
]


@pytest.mark.parametrize(("kind", "wrong"), MUSEUM, ids=called)
def test_every_mistake_is_caught_with_a_margin(hostile, tools, double, kind, wrong):
    """Right code is within 1e-13; each mistake is beyond 1e-3."""
    oracle = {NAdam: torch.optim.NAdam, RAdam: torch.optim.RAdam, AdaMax: torch.optim.Adamax}[kind]
    theirs = tools.walk(lambda p: oracle(p, **DECAYED), hostile)
    gap = tools.distance(tools.walk(lambda p: mutant(kind, wrong)(p, **DECAYED), hostile), theirs)
    assert gap <= ROUNDING if wrong.__name__.endswith("right") else gap > 1e-3


def test_a_shared_cache_gives_a_group_the_rate_of_another(tools):
    """torch_optimizer keeps RAdam's step size by step number, for all groups in one list."""
    library = pytest.importorskip("torch_optimizer")
    problem = tools.Problem.hostile(missing=False)

    def second(kind, **options):
        tensors = problem.tensors(torch.float32)
        groups = [{"params": tensors[:3], "lr": 0.1}, {"params": tensors[3:], "lr": 0.001}]
        optimizer = kind(groups, eps=1e-3, **options)
        for gradients in problem.gradients:
            for p, g in zip(tensors, gradients, strict=True):
                p.grad = torch.tensor(g).float()
            optimizer.step()
        start = [torch.tensor(x).float() for x in problem.start]
        return sum(float((p - x).norm()) for p, x in zip(tensors[3:], start[3:], strict=True))

    assert second(library.RAdam) / second(RAdam) == pytest.approx(100, rel=0.01)


# Refusals


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *[(kind, {"lr": -1e-3}, "lr: expected a finite") for kind in FAMILY],
        *[(kind, {"eps": -1e-3}, "eps: expected") for kind in FAMILY],
        *[(kind, {"eps": math.nan}, "eps: expected") for kind in FAMILY],
        *[(kind, {"betas": (0.9, 1.0)}, "betas: expected two numbers in") for kind in FAMILY],
        *[(kind, {"betas": (0.9,)}, "betas: expected two numbers in") for kind in FAMILY],
        *[(kind, {"weight_decay": -1.0}, "weight_decay: expected") for kind in FAMILY],
        *[(kind, {"decay": "l1"}, "decay: expected one of") for kind in FAMILY],
        *[(kind, {"clip": 0.0}, "clip: expected") for kind in FAMILY],
        (AMSGrad, {"maximum": "largest"}, "maximum: expected one of .*, got 'largest'"),
        (AMSGrad, {"bias_correction": 1}, "bias_correction: expected True or False, got 1"),
        (
            AMSGrad,
            {"maximum": "corrected", "eps_placement": "hat"},
            "eps_placement: expected 'outside' or 'inside' where .*, got 'hat'",
        ),
        (AdaMax, {"eps_placement": "hat"}, "eps_placement: expected one of .*, got 'hat'"),
        (NAdam, {"momentum_decay": -1.0}, "momentum_decay: expected a number >= 0, or infinity"),
        (NAdam, {"momentum_decay": math.nan}, "momentum_decay: expected .*, got nan"),
        (NAdam, {"correction": "both"}, "correction: expected one of .*, got 'both'"),
        (RAdam, {"threshold": 3.0}, "threshold: expected a finite number >= 4.*, got 3.0"),
        (RAdam, {"threshold": math.inf}, "threshold: expected a finite number >= 4.*, got inf"),
        (RAdam, {"unrectified": "sgd"}, "unrectified: expected one of .*, got 'sgd'"),
        (RAdam, {"betas": (0.9, 0.6)}, r"betas: expected a second beta above 0.6667, .*, got \(0"),
    ],
)
def test_bad_options_are_named(kind, options, message, untyped):
    with pytest.raises(ValueError, match=f"^{message}"):
        kind([torch.zeros(3, requires_grad=True)], **options)


@pytest.mark.parametrize("kind", FAMILY)
def test_presets_are_valid_and_can_be_overridden(kind):
    for name in kind.presets:
        p = torch.zeros(3, requires_grad=True)
        optimizer = kind.like(name, [("weight", p)], lr=0.5, eps=0.25)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["eps"] == 0.25


@pytest.mark.parametrize("kind", FAMILY)
def test_the_papers_decay_follows_the_schedule_and_not_the_rate(hostile, tools, kind):
    """lambda_paper = alpha lambda_decoupled, for any schedule."""
    alpha = 0.02
    options = {"lr": alpha, "weight_decay": 0.1 * alpha, "decay": "paper"}
    paper = tools.walk(lambda p: kind(p, eps=1e-3, **options), hostile)
    other = tools.walk(lambda p: kind(p, **DECAYED, decay="decoupled"), hostile)
    assert tools.distance(paper, other) <= ROUNDING


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (AMSGrad, {"betas": (0.5, 0.9)}),
        (AdaMax, {"betas": (0.5, 0.9)}),
        (NAdam, {"betas": (0.5, 0.9), "momentum_decay": 1.0}),
        (RAdam, {"betas": (0.5, 0.7)}),
    ],
    ids=called,
)
def test_groups_may_differ(hostile, tools, double, kind, options):
    """What is computed once for a group, from step count and options, is that group's own."""
    oracle = {AMSGrad: torch_amsgrad, AdaMax: torch.optim.Adamax}.get(kind) or getattr(
        torch.optim, kind.__name__
    )

    def make(which):
        return lambda p: which([{"params": p[:3]}, {"params": p[3:], **options}], **DECAYED)

    ours, theirs = (tools.walk(make(which), hostile) for which in (kind, oracle))
    assert tools.distance(ours, theirs) <= ROUNDING


def test_radams_equation_finds_its_threshold_itself():
    """As the class does for it; rho is a little below t at these steps."""
    given = states(np.random.default_rng(4))
    for threshold in (4.0, 5.0, 8.0):
        for t in (5, 6, 9):
            rectified = average_length(t, 0.999) > threshold
            found = radam_step(*given, t, threshold=threshold)[0]
            assert torch.equal(found, radam_step(*given, t, rectified=rectified)[0])
