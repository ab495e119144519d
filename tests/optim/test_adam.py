"""Adam against every library that has it, against its own invariances, and against its bugs.

Errors are measured relative to the distance that a parameter has travelled: relative to the
parameter itself, a step that is wrong in every digit can look right.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from trajectories import optax_walk

from lossbook.optim import Adam, adam_step

# 25 steps of a dozen roundings each, in float64.
ROUNDING = 1e-13
OPTIONS = {"eps": 1e-3, "betas": (0.85, 0.99), "weight_decay": 0.1}


@pytest.mark.parametrize("form", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_equals_torch(hostile, tools, form):
    ours = tools.walk(lambda p: Adam(p, **OPTIONS), hostile)
    theirs = tools.walk(lambda p: torch.optim.Adam(p, **OPTIONS, **form), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def schedule(problem):
    import jax.numpy as jnp

    rates = jnp.asarray(problem.rates)
    return lambda count: -rates[count]


@pytest.mark.parametrize("placement", ["outside", "inside"])
def test_equals_optax(tools, placement):
    import optax

    problem = tools.Problem.hostile(missing=False)
    eps = {"eps": 1e-3} if placement == "outside" else {"eps": 0.0, "eps_root": 1e-3}
    chain = optax.chain(
        optax.add_decayed_weights(0.1),
        optax.scale_by_adam(0.85, 0.99, **eps),
        optax.scale_by_schedule(schedule(problem)),
    )
    ours = tools.walk(lambda p: Adam(p, **OPTIONS, eps_placement=placement), problem)
    assert tools.distance(ours, optax_walk(chain, problem)) <= ROUNDING


def test_hat_form_is_algorithm_1_with_a_moving_eps(tools):
    """The efficient form is algorithm 1 with eps = eps hat / sqrt(1 - beta2^t) at step t."""
    problem = tools.Problem.hostile(missing=False)

    def adjust(optimizer, t):
        optimizer.param_groups[0]["eps"] = 1e-3 / math.sqrt(1 - 0.99**t)

    ours = tools.walk(lambda p: Adam(p, **OPTIONS, eps_placement="hat"), problem)
    theirs = tools.walk(lambda p: torch.optim.Adam(p, **OPTIONS), problem, adjust)
    assert tools.distance(ours, theirs) <= ROUNDING
    fixed = tools.walk(lambda p: torch.optim.Adam(p, **OPTIONS), problem)
    assert tools.distance(ours, fixed) > 0.1  # no constant eps will do


def test_bert_is_adamw_with_three_moving_numbers(tools):
    problem = tools.Problem.hostile(missing=False)
    beta1, beta2, eps, decay = 0.9, 0.999, 1e-3, 0.1

    def adjust(optimizer, t):
        group = optimizer.param_groups[0]
        rate, c1, c2 = group["lr"], 1 - beta1**t, math.sqrt(1 - beta2**t)
        group.update(lr=rate * c1 / c2, eps=eps / c2)
        group["weight_decay"] = decay * rate / group["lr"]

    options = {"eps": eps, "weight_decay": decay}
    bert = {**options, "exclude": None, "clip": None}
    ours = tools.walk(lambda p: Adam.like("bert", p, **bert), problem)
    theirs = tools.walk(lambda p: torch.optim.AdamW(p, **options), problem, adjust)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_bert_steps_are_longer_by_the_missing_corrections():
    """3.16 times at the first step, at most 6.57 times, at step 12."""
    t = np.arange(1, 100)
    expected = (1 - 0.9**t) / np.sqrt(1 - 0.999**t)
    ratio = []
    for correction in (False, True):
        p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        optimizer = Adam([p], eps=0.0, bias_correction=correction)
        path = []
        for _ in t:
            p.grad = torch.ones_like(p)
            optimizer.step()
            path.append(p.item())
        ratio.append(np.diff(path, prepend=0))
    assert np.allclose(ratio[0] / ratio[1], expected, rtol=1e-10)
    assert expected.argmax() + 1 == 12 and round(expected.max(), 2) == 6.57


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-8])
def test_equals_torch_at_every_size_of_gradient(tools, scale):
    problem = tools.Problem.hostile(scale=scale)
    options = {"eps": 1e-3 * scale, "weight_decay": 0.0}
    ours = tools.walk(lambda p: Adam(p, **options), problem)
    theirs = tools.walk(lambda p: torch.optim.Adam(p, **options), problem)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_compiled_equals_uncompiled(hostile, tools):
    plain, compiled = [], []
    for kept, flag in ((plain, False), (compiled, True)):

        def make(p, kept=kept, flag=flag):
            kept.append(Adam(p, **OPTIONS, clip=1.0, compiled=flag))
            return kept[0]

        kept.append(tools.walk(make, hostile))
    assert tools.distance(compiled[1], plain[1]) <= 1e-14
    pairs = zip(plain[0].state.values(), compiled[0].state.values(), strict=True)
    for one, two in pairs:
        assert one["step"] == two["step"]
        for name in ("m", "v"):
            largest = float(one[name].abs().max())
            assert torch.allclose(one[name], two[name], rtol=0, atol=1e-14 * largest)


# What holds without any oracle


def random_step(rng, n=50, **options):
    theta, g = (torch.tensor(rng.normal(size=n)) for _ in range(2))
    m = torch.tensor(0.1 * rng.normal(size=n))
    v = m**2 + torch.tensor(rng.uniform(0.1, 1, size=n))
    return theta, g, m, v


def test_the_first_step_is_the_sign_of_the_gradient():
    rng = np.random.default_rng(0)
    theta, g = (torch.tensor(rng.normal(size=50)) for _ in range(2))
    zero = torch.zeros_like(theta)
    new, _, _ = adam_step(theta, g, zero, zero, 1, lr=0.01, eps=0.0)
    assert torch.allclose(new, theta - 0.01 * g.sign(), rtol=0, atol=1e-15)


def test_the_scale_of_the_gradient_does_not_matter(tools):
    paths = [
        tools.walk(lambda p: Adam(p, eps=0.0), tools.Problem.hostile(scale=scale))
        for scale in (1.0, 2.0**-20, 1e6)
    ]
    assert tools.distance(paths[1], paths[0]) == 0  # a power of two moves no digit
    assert tools.distance(paths[2], paths[0]) <= ROUNDING


def test_the_equation_commutes_with_signs_and_permutations():
    rng = np.random.default_rng(1)
    theta, g, m, v = random_step(rng)
    order, sign = torch.tensor(rng.permutation(50)), torch.tensor(rng.choice([-1.0, 1.0], 50))
    for placement in ("outside", "hat", "inside"):
        options = {"eps": 1e-3, "weight_decay": 0.1, "eps_placement": placement}
        new, new_m, new_v = adam_step(theta, g, m, v, 3, **options)
        moved = adam_step(
            (sign * theta)[order], (sign * g)[order], (sign * m)[order], v[order], 3, **options
        )
        assert torch.equal(moved[0], (sign * new)[order])
        assert torch.equal(moved[1], (sign * new_m)[order])
        assert torch.equal(moved[2], new_v[order])


def test_no_step_is_longer_than_the_paper_allows():
    """Section 2.1: alpha (1 - beta1) / sqrt(1 - beta2), reached by a gradient after silence."""
    lr, beta1, beta2 = 0.01, 0.9, 0.999
    bound = lr * (1 - beta1) / math.sqrt(1 - beta2)
    rng = np.random.default_rng(2)
    m = v = theta = torch.zeros(200, dtype=torch.float64)
    longest = 0.0
    for t in range(1, 301):
        g = rng.normal(size=200) * (rng.random(200) < 0.02) if t < 300 else np.ones(200)
        new, m, v = adam_step(theta, torch.tensor(g), m, v, t, lr=lr, eps=0.0 if t > 1 else 1e-300)
        step = (new - theta).nan_to_num(0.0)  # 0 / 0 where no gradient has been seen
        theta, longest = theta + step, max(longest, float(step.abs().max()))
    assert longest <= bound * (1 + 1e-12)
    assert longest > 0.3 * bound


def test_the_equation_changes_nothing_it_is_given():
    given = random_step(np.random.default_rng(3))
    copies = [x.clone() for x in given]
    adam_step(*given, 5, weight_decay=0.1)
    assert all(torch.equal(a, b) for a, b in zip(given, copies, strict=True))


# The museum: public mistakes, each of which the comparison must catch


def mutant(wrong):
    """Adam whose equation is ``wrong(theta, g, m, v, t, lr, b1, b2, eps)``, decay taken care of."""

    class Mutant(Adam):
        @staticmethod
        def equation(theta, g, m, v, t, *, lr, beta1, beta2, eps, weight_decay, **_):
            return wrong(theta, g + weight_decay * theta, m, v, t, lr, beta1, beta2, eps)

    return Mutant


def moments(g, m, v, b1, b2):
    return b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g


def right(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v


def eps_added_to_the_parameter(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * (m / (1 - b1**t)) / (v / (1 - b2**t)).sqrt() + eps, m, v


def eps_inside_the_root(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * (m / (1 - b1**t)) / (v / (1 - b2**t) + eps).sqrt(), m, v


def eps_hat(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * (1 - b2**t) ** 0.5 / (1 - b1**t) * m / (v.sqrt() + eps), m, v


def eps_hat_without_the_root(theta, g, m, v, t, lr, b1, b2, eps):
    """eps hat = eps (1 - beta2^t): the square root of the correction is missing."""
    m, v = moments(g, m, v, b1, b2)
    c1, c2 = 1 - b1**t, 1 - b2**t
    return theta - lr * c2**0.5 / c1 * m / (v.sqrt() + eps * c2), m, v


def missing_hat_on_m(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * m / ((v / (1 - b2**t)).sqrt() + eps), m, v


def missing_hat_on_v(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * (m / (1 - b1**t)) / (v.sqrt() + eps), m, v


def missing_bias_correction(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    return theta - lr * m / (v.sqrt() + eps), m, v


def corrected_moments_are_stored(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b1, b2)
    m, v = m / (1 - b1**t), v / (1 - b2**t)
    return theta - lr * m / (v.sqrt() + eps), m, v


def beta2_in_m(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = moments(g, m, v, b2, b2)
    return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v


def gradient_not_squared(theta, g, m, v, t, lr, b1, b2, eps):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g.abs()
    return theta - lr * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + eps), m, v


def count_starts_at_2(theta, g, m, v, t, lr, b1, b2, eps):
    return right(theta, g, m, v, t + 1, lr, b1, b2, eps)


MUSEUM = [
    eps_added_to_the_parameter,
    eps_inside_the_root,
    eps_hat,
    eps_hat_without_the_root,
    missing_hat_on_m,
    missing_hat_on_v,
    missing_bias_correction,
    corrected_moments_are_stored,
    beta2_in_m,
    gradient_not_squared,
    count_starts_at_2,
]


def test_the_frame_of_the_museum_is_right(hostile, tools):
    oracle = tools.walk(lambda p: torch.optim.Adam(p, **OPTIONS), hostile)
    assert (
        tools.distance(tools.walk(lambda p: mutant(right)(p, **OPTIONS), hostile), oracle) < 1e-13
    )


@pytest.mark.parametrize("wrong", MUSEUM, ids=lambda f: f.__name__)
def test_every_mistake_is_caught_with_a_margin(hostile, tools, wrong):
    """Right code is within 1e-13; each mistake is beyond 1e-2."""
    oracle = tools.walk(lambda p: torch.optim.Adam(p, **OPTIONS), hostile)
    path = tools.walk(lambda p: mutant(wrong)(p, **OPTIONS), hostile)
    assert tools.distance(path, oracle) > 1e-2


# Refusals


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("lr", -1e-3),
        ("lr", math.nan),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.999)),
        ("betas", (0.9,)),
        ("eps", -1e-8),
        ("eps", math.nan),
        ("bias_correction", 1),
        ("weight_decay", -0.01),
        ("eps_placement", "under"),
        ("decay", "l1"),
        ("clip", 0.0),
        ("clip_form", "value"),
        ("exclude", "biases"),
    ],
)
def test_bad_options_are_named(argument, value, untyped):
    p = torch.zeros(3, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, got "):
        Adam([p], **{argument: value})


def test_unknown_preset_is_named():
    with pytest.raises(ValueError, match=r"preset: expected one of .*'bert'.*, got 'gpt'"):
        Adam.like("gpt", [torch.zeros(3, requires_grad=True)])


def test_presets_are_valid_and_can_be_overridden():
    for name in Adam.presets:
        p = torch.zeros(3, requires_grad=True)
        optimizer = Adam.like(name, [("weight", p)], lr=0.5, eps=0.25)
        assert optimizer.param_groups[0]["lr"] == 0.5
        assert optimizer.param_groups[0]["eps"] == 0.25
