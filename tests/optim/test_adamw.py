"""AdamW: what decoupled means, and that three libraries and the paper mean it in two ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lossbook.optim import Adam, AdamW, adam_step, adamw_step

ROUNDING = 1e-13
OPTIONS = {"eps": 1e-3, "betas": (0.85, 0.99), "weight_decay": 0.1}


@pytest.mark.parametrize("form", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_equals_torch(hostile, tools, form):
    ours = tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)
    theirs = tools.walk(lambda p: torch.optim.AdamW(p, **OPTIONS, **form), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_equals_optax(tools):
    import optax

    problem = tools.Problem.hostile(missing=False)
    transformation = optax.adamw(tools.optax_rate(problem), 0.85, 0.99, eps=1e-3, weight_decay=0.1)
    ours = tools.walk(lambda p: AdamW(p, **OPTIONS), problem)
    assert tools.distance(ours, tools.optax_walk(transformation, problem)) <= ROUNDING


def test_l2_is_another_algorithm(hostile, tools):
    l2 = tools.walk(lambda p: Adam(p, **OPTIONS), hostile)
    decoupled = tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)
    assert tools.distance(l2, decoupled) > 0.1


def test_without_decay_the_two_are_one(hostile, tools):
    options = {**OPTIONS, "weight_decay": 0.0}
    l2 = tools.walk(lambda p: Adam(p, **options), hostile)
    assert tools.distance(tools.walk(lambda p: AdamW(p, **options), hostile), l2) == 0


def test_adam_with_decoupled_decay_is_adamw(hostile, tools):
    ours = tools.walk(lambda p: Adam(p, **OPTIONS, decay="decoupled"), hostile)
    assert tools.distance(ours, tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)) == 0


def test_the_equation_is_decay_followed_by_adam():
    rng = np.random.default_rng(0)
    theta, g, m = (torch.tensor(rng.normal(size=9)) for _ in range(3))
    together = adamw_step(theta, g, m, m**2 + 1, 4, lr=0.1, weight_decay=0.3)
    apart = adam_step(theta - 0.1 * 0.3 * theta, g, m, m**2 + 1, 4, lr=0.1)
    assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))


def test_weights_without_gradient_signal_shrink_by_the_product(hostile, tools):
    """With g = 0 what is left is theta prod(1 - lr_t lambda), whatever the moments."""
    hostile.gradients = [[np.zeros_like(x) for x in hostile.start] for _ in hostile.rates]
    path = tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)
    factor = np.prod([1 - rate * 0.1 for rate in hostile.rates])
    for start, end in zip(hostile.start, path[-1], strict=True):
        assert np.allclose(end, start * factor, rtol=1e-14, atol=0)


def test_the_papers_decay_follows_the_schedule_and_not_the_rate(hostile, tools):
    """Algorithm 2: lambda_paper = alpha lambda_torch, for any schedule."""
    alpha = 0.02
    paper = {**OPTIONS, "weight_decay": OPTIONS["weight_decay"] * alpha}
    ours = tools.walk(lambda p: AdamW(p, lr=alpha, decay="paper", **paper), hostile)
    theirs = tools.walk(lambda p: torch.optim.AdamW(p, **OPTIONS), hostile)
    assert tools.distance(ours, theirs) <= ROUNDING


def test_compiled_equals_uncompiled(hostile, tools):
    plain = tools.walk(lambda p: AdamW(p, **OPTIONS), hostile)
    compiled = tools.walk(lambda p: AdamW(p, **OPTIONS, compiled=True), hostile)
    assert tools.distance(compiled, plain) <= 1e-14


def test_presets_carry_each_librarys_decay():
    decays = {"torch": 1e-2, "optax": 1e-4, "keras": 4e-3, "bert": 1e-2}
    for name, decay in decays.items():
        p = torch.zeros(3, requires_grad=True)
        assert AdamW.like(name, [("w", p)]).param_groups[0]["weight_decay"] == decay


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="bias_corection"):
        AdamW([torch.zeros(3, requires_grad=True)], bias_corection=False)
