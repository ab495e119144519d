"""The chapter's NumPy against lossbook, torch and optax, its museum, and its graded exercises."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import jax
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lossbook import checks, models, optim
from lossbook.optim import schedules

jax.config.update("jax_enable_x64", True)
import optax  # noqa: E402

CHAPTER = "weight-decay"
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
BETAS = st.sampled_from([(0.0, 0.5), (0.5, 0.75), (0.9, 0.95), (0.9, 0.999)])
WALKS = settings(max_examples=10)  # a walk has 25 steps, and the shapes differ in each
EPS = st.sampled_from([1e-8, 1e-3, 1.0])
LAMBDA = st.sampled_from([0.0, 0.01, 0.3, 5.0])
PEAK = 0.1


def problem(shape, seed, steps=25):
    """Gradients over six powers of ten, some exactly zero, and a rate that changes."""
    rng = np.random.default_rng([seed, 6])
    sizes = 10.0 ** rng.integers(-5, 2, size=steps)
    gradients = [rng.normal(size=shape) * size for size in sizes]
    if seed % 3 == 0:
        gradients[0] = np.zeros(shape)
    return rng.normal(size=shape), gradients, PEAK * rng.uniform(0.2, 1, size=steps)


def torch_walk(make, theta, gradients, rates, by_step=lambda t: {}):
    p = torch.tensor(theta, requires_grad=True)
    optimizer, path = make([p]), [theta]
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        p.grad = torch.tensor(g)
        optimizer.param_groups[0].update({"lr": float(lr), **by_step(t)})
        optimizer.step()
        path.append(p.detach().numpy().copy())
        assert np.array_equal(p.grad.numpy(), g)
    return np.array(path)


def optax_walk(make, theta, gradients, rates):
    """make(schedule) is a transformation; optax counts from 0."""
    transform = make(lambda count: jax.numpy.asarray(rates)[count])
    theta = jax.numpy.asarray(theta)
    state, path = transform.init(theta), [np.asarray(theta)]
    for g in gradients:
        update, state = transform.update(jax.numpy.asarray(g), state, theta)
        theta = optax.apply_updates(theta, update)
        path.append(np.asarray(theta))
    return np.array(path)


@settings(max_examples=6)
@given(shape=SHAPES, seed=st.integers(0, 999), betas=BETAS, eps=EPS, lam=LAMBDA)
@example(shape=(0,), seed=1, betas=(0.9, 0.999), eps=1e-3, lam=0.3)
@example(shape=(2, 0, 3), seed=2, betas=(0.9, 0.999), eps=1e-3, lam=0.3)
@example(shape=(4, 3, 2), seed=3, betas=(0.9, 0.999), eps=1e-8, lam=0.3)
def test_both_decays_equal_lossbook_and_torch(derivation, shape, seed, betas, eps, lam):
    """25 steps to rounding. Under L2 a tiny gradient plus λθ cancels, hence the wider bound."""
    page, walk = derivation(CHAPTER), problem(shape, seed)
    constants = {"eps": eps, "weight_decay": lam}
    for step, makers in {
        page.adamw_step: (optim.AdamW, torch.optim.AdamW),
        page.l2_step: (optim.Adam, torch.optim.Adam),
    }.items():
        path = page.walk(step, *walk, beta1=betas[0], beta2=betas[1], **constants)
        for make in makers:
            other = torch_walk(lambda p, make=make: make(p, betas=betas, **constants), *walk)
            assert path.size == 0 or checks.travel_difference(path, other) <= 1e-11


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("lam", [0.01, 0.3])
def test_both_decays_equal_optax(derivation, shape, lam):
    page, walk = derivation(CHAPTER), problem(shape, seed=4)
    constants = {"eps": 1e-3, "weight_decay": lam}
    beside = optax_walk(lambda lr: optax.adamw(lr, **constants), *walk)
    inside = optax_walk(
        lambda lr: optax.chain(
            optax.add_decayed_weights(lam),
            optax.scale_by_adam(eps=1e-3),
            optax.scale_by_learning_rate(lr),
        ),
        *walk,
    )
    for step, other in ((page.adamw_step, beside), (page.l2_step, inside)):
        assert checks.travel_difference(page.walk(step, *walk, **constants), other) <= 1e-12


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), lam=st.sampled_from([0.0, 0.001, 0.03, 0.5]))
def test_the_papers_lambda(derivation, shape, seed, lam):
    """The paper's form, lossbook's, and torch's with lambda over the peak."""
    page, walk = derivation(CHAPTER), problem(shape, seed)
    assume(walk[0].size)
    path = page.walk(page.paper_step, *walk, peak=PEAK, eps=1e-3, weight_decay=lam)
    ours = torch_walk(
        lambda p: optim.AdamW(p, lr=PEAK, eps=1e-3, weight_decay=lam, decay="paper"), *walk
    )
    theirs = torch_walk(lambda p: torch.optim.AdamW(p, eps=1e-3, weight_decay=lam / PEAK), *walk)
    assert checks.travel_difference(path, ours) <= 1e-12
    assert checks.travel_difference(path, theirs) <= 1e-12


@WALKS
@given(seed=st.integers(0, 999), lam=st.sampled_from([0.0, 0.001, 0.03]), s=st.floats(0, 1))
def test_the_papers_adamw_out_of_torchs(solutions, seed, lam, s):
    """Steps at a peak that changes, some of them at the rate 0, against the paper's line."""
    page, (theta, gradients, _) = solutions(CHAPTER), problem((3, 2), seed)
    peaks = [PEAK if t < 12 else PEAK / 4 for t in range(25)]
    factors = [s if t % 3 else 0.0 for t in range(25)]
    settings = [page.adamw_from_paper(p, f, lam) for p, f in zip(peaks, factors, strict=True)]
    names = ("lr", "weight_decay")
    torchs = torch_walk(
        torch.optim.AdamW,
        *(theta, gradients, np.zeros(25)),
        lambda t: dict(zip(names, settings[t - 1], strict=True)),
    )
    m, v, path = np.zeros_like(theta), np.zeros_like(theta), [theta]
    for t, (g, peak, f) in enumerate(zip(gradients, peaks, factors, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ratio = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        path.append(path[-1] - f * (peak * ratio + lam * path[-1]))
    assert checks.difference(path, torchs) <= 1e-12


@WALKS
@given(seed=st.integers(0, 999), betas=BETAS, eps=EPS, lam=LAMBDA)
def test_berts_adam(solutions, seed, betas, eps, lam):
    """By its equation, by lossbook's preset without its clipping, and out of torch's AdamW."""
    page, walk = solutions(CHAPTER), problem((3, 2), seed)
    constants = {"beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": lam}
    path = page.walk(page.bert_step, *walk, **constants)

    def by_step(t):
        values = page.bert_from_adamw(float(walk[2][t - 1]), eps, lam, *betas, t)
        return dict(zip(("lr", "eps", "weight_decay"), values, strict=True))

    ours = torch_walk(
        lambda p: optim.Adam.like(
            "bert", p, betas=betas, eps=eps, weight_decay=lam, clip=None, exclude=None
        ),
        *walk,
    )
    theirs = torch_walk(lambda p: torch.optim.AdamW(p, betas=betas), *walk, by_step)
    assert checks.travel_difference(path, ours) <= 1e-12
    assert checks.travel_difference(path, theirs) <= 1e-11


@WALKS
@given(seed=st.integers(0, 999), betas=BETAS, eps=EPS, lam=LAMBDA)
def test_gpts_adam(solutions, seed, betas, eps, lam):
    """The released code's two lines, one number at a time, against torch's AdamW."""
    theta, gradients, rates = problem((3, 2), seed)

    def by_step(t):
        values = solutions(CHAPTER).gpt_from_adamw(float(rates[t - 1]), eps, lam, *betas, t)
        return dict(zip(("lr", "eps", "weight_decay"), values, strict=True))

    torchs = torch_walk(
        lambda p: torch.optim.AdamW(p, betas=betas), theta, gradients, rates, by_step
    )
    for i in np.ndindex(theta.shape):
        value, m, v, path = theta[i], 0.0, 0.0, [theta[i]]
        for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
            m, v = betas[0] * m + (1 - betas[0]) * g[i], betas[1] * v + (1 - betas[1]) * g[i] ** 2
            rate = lr * math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
            value = value - rate * (m / (math.sqrt(v) + eps) + lam * value)
            path.append(value)
        assert checks.travel_difference(np.array(path), torchs[(slice(None), *i)]) <= 1e-10


def test_steps_change_nothing_they_are_given(museum):
    page = museum(CHAPTER)
    steps = {name: {} for name in ("l2_step", "adamw_step", "bert_step", "unscheduled_step")}
    for name, more in {**steps, "paper_step": {"peak": 0.2}}.items():
        state = [np.ones(3), np.arange(3.0), np.full(3, 0.5), np.full(3, 2.0)]
        before = [array.copy() for array in state]
        getattr(page, name)(*state, 2, lr=0.1, weight_decay=0.3, **more)
        assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))


def test_extreme_gradients_stay_finite(derivation):
    page = derivation(CHAPTER)
    gradients = [np.array([1e-150, 0.0, 1e150])] * 3
    for step in (page.l2_step, page.adamw_step, page.bert_step):
        path = page.walk(step, np.ones(3), gradients, [0.1] * 3, weight_decay=0.3)
        assert np.isfinite(path).all()


def test_the_pencil_example(derivation):
    """0.8333 and 0.9545 inside, 0.765 beside; the squares under the roots in exact fractions."""
    page = derivation(CHAPTER)
    gradients = [np.array([0.7, 3.5]), np.zeros(2)]
    options = {"weight_decay": 0.2, "beta1": 0.0, "beta2": 0.5, "eps": 0.0}
    inside, beside = (
        page.walk(step, np.full(2, 1.5), gradients, [0.5] * 2, **options)
        for step in (page.l2_step, page.adamw_step)
    )
    assert checks.difference(inside, [[1.5, 1.5], [1, 1], [5 / 6, 21 / 22]]) <= 1e-14
    assert checks.difference(beside, [[1.5, 1.5], [0.85, 0.85], [0.765, 0.765]]) <= 1e-14
    fifth = Fraction(1, 5)
    for first, root in ((Fraction(1), Fraction(3, 5)), (Fraction(19, 5), Fraction(11, 5))):
        assert (first**2 + 2 * fifth**2) / 3 == root**2


@given(seed=st.integers(0, 99), lam=LAMBDA)
def test_under_gradient_descent_the_two_are_one(seed, lam):
    """torch's SGD puts the penalty into the gradient; the factor gives the same path."""
    theta, gradients, rates = problem((3, 2), seed)
    path = torch_walk(
        lambda p: torch.optim.SGD(p, lr=PEAK, weight_decay=lam), theta, gradients, rates
    )
    beside = [theta]
    for g, lr in zip(gradients, rates, strict=True):
        beside.append((1 - lr * lam) * beside[-1] - lr * g)
    assert checks.travel_difference(path, beside) <= 1e-12


def test_momentum_breaks_the_equality():
    theta, gradients, rates = problem((3, 2), seed=5)
    path = torch_walk(
        lambda p: torch.optim.SGD(p, lr=PEAK, momentum=0.9, weight_decay=0.3),
        *(theta, gradients, rates),
    )
    beside, buffer = [theta], 0.0
    for g, lr in zip(gradients, rates, strict=True):
        buffer = 0.9 * buffer + g
        beside.append((1 - lr * 0.3) * beside[-1] - lr * buffer)
    assert checks.travel_difference(path, beside) > 1e-3


@given(p=st.lists(st.floats(0.1, 10), min_size=2, max_size=4), lam=st.floats(0.01, 1))
def test_a_rescaled_penalty_is_no_decay(p, lam):
    """The theorem's two sides agree for all theta only if P is a multiple of the identity."""
    p = np.array(p)
    assume(np.ptp(p) > 1e-3)
    factors = 1 - p * lam  # of each coordinate, for g = 0
    assert np.ptp(factors) > 0
    same = 1 - np.full(3, p[0]) * lam
    assert np.ptp(same) == 0


@WALKS
@given(
    lam=st.sampled_from([1e-12, 1e-6, 0.01, 1.0, 1e6]),
    start=st.floats(0.01, 10),
    sign=st.sampled_from([-1, 1]),
    betas=BETAS,
)
def test_without_a_loss_lambda_does_not_matter(derivation, lam, start, sign, betas):
    """The metamorphic test of L2 under Adam, in torch, lossbook and on the page."""
    page = derivation(CHAPTER)
    theta, silence, rates = np.array([sign * start]), [np.zeros(1)] * 25, np.full(25, 1e-3)
    options = {"betas": betas, "eps": 0.0}
    reference = page.walk(
        page.l2_step, theta, silence, rates, weight_decay=1.0, beta1=betas[0], beta2=betas[1],
        eps=0.0,
    )  # fmt: skip
    assert abs(reference[1, 0] - (theta[0] - 1e-3 * sign)) <= 1e-15 * max(1, start)
    for make in (torch.optim.Adam, optim.Adam):
        path = torch_walk(
            lambda p, m=make: m(p, weight_decay=lam, **options), theta, silence, rates
        )
        assert checks.travel_difference(reference, path) <= 1e-9


def test_the_unused_word():
    """24 steps to zero in torch, for every lambda; AdamW keeps 0.9998."""
    for lam in (1e-6, 0.01, 1.0):
        path = torch_walk(
            lambda p, lam=lam: torch.optim.Adam(p, weight_decay=lam, eps=0.0),
            *(np.array([0.02]), [np.zeros(1)] * 40, [0.001] * 40),
        )[:, 0]
        assert int(np.argmax(path < 0)) == 24
    assert round((1 - 0.001 * 0.01) ** 24, 4) == 0.9998


@WALKS
@given(scale=st.sampled_from([1e-3, 2.0, 512.0]), seed=st.integers(1, 99))
def test_adamw_cannot_tell_a_loss_from_its_double(derivation, scale, seed):
    """With eps = 0 AdamW's path stays; L2's is that of lambda over the factor."""
    page = derivation(CHAPTER)
    theta, gradients, rates = problem((3, 2), 3 * seed + 1)
    scaled = [scale * g for g in gradients]
    for step, lam in ((page.adamw_step, 0.3), (page.l2_step, 0.3 / scale)):
        one = page.walk(step, theta, scaled, rates, weight_decay=0.3, eps=0.0)
        other = page.walk(step, theta, gradients, rates, weight_decay=lam, eps=0.0)
        assert checks.travel_difference(one, other) <= 1e-10


@given(
    u=st.lists(st.floats(-8, 8), min_size=1, max_size=40),
    start=st.floats(-20, 20),
    decay=st.floats(0.001, 1.0),
    lam=st.floats(0.05, 10),
)
def test_decayed_weights_are_an_average(u, start, decay, lam):
    """The recursion against the weighted sum, and the box."""
    lr, beta, theta = decay / lam, 1 - decay, start
    for x in u:
        theta = (1 - lr * lam) * theta - lr * x
    n = len(u)
    weights = [(1 - beta) * beta ** (n - i) for i in range(1, n + 1)]
    total = beta**n * start - math.fsum(w * x / lam for w, x in zip(weights, u, strict=True))
    box = max(abs(start), max(map(abs, u)) / lam)
    assert abs(theta - total) <= 1e-11 * max(box, 1)
    assert abs(theta) <= box * (1 + 1e-9) + 1e-12


def test_a_steady_gradient_drives_a_weight_to_one_over_lambda():
    for size in (1e-2, 100.0):
        path = torch_walk(
            lambda p: torch.optim.AdamW(p, eps=0.0, weight_decay=0.5),
            *(np.zeros(1), [np.full(1, size)] * 1500, [0.02] * 1500),
        )
        assert abs(path[-1, 0] + 2) < 1e-5


@given(
    rates=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    lam=st.floats(0, 0.5),
)
def test_the_shrink_lies_between_its_bounds(derivation, rates, lam):
    left = derivation(CHAPTER).kept(rates, lam)[-1]
    total, squares = math.fsum(rates), math.fsum(r * r for r in rates)
    assert math.exp(-lam * total - lam**2 * squares) <= left * (1 + 1e-12)
    assert left <= math.exp(-lam * total) * (1 + 1e-12)


def test_the_printed_runs(derivation):
    """By plain loops; and one of them by torch's AdamW itself, with torch's schedule."""
    page = derivation(CHAPTER)

    def left(rates, lam):
        kept = 1.0
        for rate in rates:
            kept *= 1 - rate * lam
        return kept

    def linear(peak, steps, warmup):
        for t in range(1, steps + 1):
            yield peak * min(t / warmup, (steps - t) / (steps - warmup))

    def berts(peak, steps, warmup):
        for t in range(steps):
            yield peak * (t / warmup if t < warmup else 1 - t / steps)

    assert round(left(berts(1e-4, 1_000_000, 10_000), 0.01), 4) == 0.6095
    ours = [schedules.bert(t, steps=50, warmup=7) for t in range(50)]
    assert checks.difference(ours, page.bert(50, 7)) <= 1e-14
    assert round(left(linear(6e-4, 500_000, 24_000), 0.01), 4) == 0.2231
    assert round(left(linear(2e-5, 10_000, 1000), 0.01), 4) == 0.9990
    assert checks.difference(list(linear(1.0, 50, 7)), page.linear(50, 7)) <= 1e-14
    p = torch.ones(1, dtype=torch.float64, requires_grad=True)
    adamw = torch.optim.AdamW([p], lr=3e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, T_max=1000)
    for _ in range(1000):
        p.grad = torch.zeros_like(p)
        adamw.step()
        schedule.step()
    assert round(p.item(), 4) == 0.9851
    assert math.isclose(p.item(), page.kept(3e-4 * page.cosine(1000), 0.1)[-1], rel_tol=1e-9)
    assert round(math.log(2) / (0.1 * 3e-4), -2) == 23_100
    assert 0.1**2 * 3e-4**2 * np.square(page.cosine(1000)).sum() < 1e-6


def test_the_balance_of_sign_steps():
    """Independent signs: a closed form against the exact recursion of the mean square."""
    for lr, lam in ((0.01, 0.5), (3e-4, 0.1), (0.5, 1.0)):
        q = 0.0
        for _ in range(200_000 if lr * lam < 1e-3 else 5000):
            q = (1 - lr * lam) ** 2 * q + lr**2
        assert math.isclose(q, lr / (lam * (2 - lr * lam)), rel_tol=2e-3)
    assert round(math.sqrt(3e-4 / 0.2), 3) == 0.039


def test_a_step_over_the_size():
    """Updates of mean square (1 - b)/(1 + b), so 0.23 of sqrt(2 eta lambda); 100,000 steps."""
    weights = [0.1 * 0.9**k for k in range(2000)]
    assert math.isclose(math.fsum(w * w for w in weights), 0.1 / 1.9, rel_tol=1e-12)
    assert round(math.sqrt(0.1 / 1.9), 2) == 0.23
    assert round(math.sqrt(2 * 0.01 * 0.5 * 0.1 / 1.9), 4) == 0.0229
    rng = np.random.default_rng(5)
    p = torch.full((1000,), 0.1, dtype=torch.float64, requires_grad=True)
    adamw, found, far = optim.AdamW([p], lr=0.01, weight_decay=0.5), [], []
    for t in range(700):
        before = p.detach().clone()
        p.grad = torch.tensor(rng.normal(size=1000))
        adamw.step()
        if t >= 350:
            found.append(((p - before).norm() / p.norm()).item())
    assert abs(np.mean(found) / 0.0229 - 1) < 0.05
    # Over many steps the weight moves as far as with updates of mean square 1.
    u, n = rng.normal(size=(2000, 1500)), 1000
    m = np.zeros(2000)
    for t, g in enumerate(u.T):
        m = 0.9 * m + 0.1 * g
        if t >= 500:
            far.append(m)
    assert abs(np.sum(far, axis=0).std() / math.sqrt(n) - 1) < 0.05
    defaults = torch.optim.AdamW([p]).defaults
    assert round(1 / (defaults["lr"] * defaults["weight_decay"])) == 100_000


def test_a_scale_in_front_of_a_norm():
    """Without effect where the norm sees the matrix alone, and not behind a residual."""
    rng = np.random.default_rng(6)
    x, w = (torch.tensor(rng.normal(size=shape)) for shape in ((9, 8), (8, 8)))
    layer_norm = torch.nn.LayerNorm(8, eps=0.0, dtype=torch.float64)
    alone, behind = (
        [f(c) for c in (1.0, 3.0)] for f in (lambda c: c * x @ w, lambda c: x + c * x @ w)
    )
    assert torch.allclose(*map(layer_norm, alone), rtol=0, atol=1e-12)
    assert not torch.allclose(*map(layer_norm, behind), rtol=0, atol=0.1)


@pytest.mark.parametrize("size", [100.0])
def test_adamw_settles_where_it_was_derived(size):
    """lossbook's AdamW under random gradients: one size, whatever the gradients are."""
    rng = np.random.default_rng(2)
    p = torch.zeros(1000, dtype=torch.float64, requires_grad=True)
    adamw, found = optim.AdamW([p], lr=0.01, weight_decay=0.5), []
    for t in range(700):
        p.grad = torch.tensor(size * rng.normal(size=1000))
        adamw.step()
        if t >= 350:
            found.append(p.detach().square().mean().sqrt().item())
    assert abs(np.mean(found) / math.sqrt(0.01 / (2 * 0.5)) - 1) < 0.06


def test_the_effective_rate_of_l2(derivation):
    """Inversely proportional to the size of the gradients: a tenth of the decay at ten times."""
    page, found = derivation(CHAPTER), []
    noise = np.random.default_rng(3).normal(size=(200, 300))
    for size in (1.0, 10.0):
        ends = [
            page.walk(
                page.l2_step, np.ones(300), sign * size * noise, [1e-4] * 200, weight_decay=0.1
            )
            for sign in (1, -1)
        ]
        mean = (ends[0] + ends[1]).mean(axis=1) / 2
        found.append(-math.log(mean[-1] / mean[50]) / (150 * 1e-4))
    assert abs(found[0] / 0.1 - 1) < 0.05
    assert abs(found[1] / found[0] / 0.1 - 1) < 0.02


@pytest.mark.parametrize("layers", [1, 2])
def test_whom_the_two_rules_spare(layers):
    """By name all biases; by rank the gains too; under BERT's names the same."""
    model = models.Encoder(models.TransformerConfig(vocab_size=60, width=8, heads=2, layers=layers))
    named = list(model.named_parameters())
    bert, rank = (set(optim.AdamW(named, exclude=rule).excluded) for rule in ("bert", "rank"))
    gains = {name for name, p in named if p.ndim == 1 and not name.endswith("bias")}
    assert bert == {name for name, _ in named if name.endswith("bias")}
    assert rank - bert == gains and not bert - rank
    assert len(gains) == 2 * layers + 2
    assert not any("embedding" in name or "position" in name for name in bert | rank)
    renamed = [(name.replace("norm", "LayerNorm"), p) for name, p in named]
    assert len(optim.AdamW(renamed, exclude="bert").excluded) == len(rank)
    if layers == 1:
        assert (len(named), len(bert), len(rank)) == (21, 10, 14)


def test_names_on_which_the_rules_disagree():
    tensors = {
        "r_w_bias": torch.zeros(2, 4),
        "debias.weight": torch.zeros(3, 3),
        "output_bias": torch.zeros(5),
        "ln_f.weight": torch.zeros(4),
        "word_embeddings.weight": torch.zeros(5, 4),
    }
    named = [(name, x.requires_grad_()) for name, x in tensors.items()]
    assert optim.AdamW(named, exclude="bert").excluded == [
        "r_w_bias",
        "debias.weight",
        "output_bias",
    ]
    assert optim.AdamW(named, exclude="rank").excluded == ["output_bias", "ln_f.weight"]


def test_with_the_loss_off_lossbooks_optimizers_decay_what_they_say():
    """The museum's check on real optimizers and a whole model."""
    config = models.TransformerConfig(vocab_size=30, width=8, heads=2, layers=1)
    for make, decays in ((optim.AdamW, True), (optim.Adam, False)):
        model = models.Encoder(config)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = make(model.named_parameters(), lr=0.1, weight_decay=0.5, exclude="rank")
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        optimizer.step()
        for name, p in model.named_parameters():
            factor = 1.0 if name in optimizer.excluded else 0.95
            same = torch.allclose(p, factor * before[name], rtol=1e-6)
            assert same or (not decays and factor < 1)


MUSEUM = {
    "penalty_called_decay": "a matrix, rate 1",
    "somebody_elses_names": "gain, this book's name",
    "decay_without_rate": "a rate that changes",
}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_the_check_that_adamw_passes(museum, bug):
    page = museum(CHAPTER)
    right = page.without_loss(page.adamw_step, page.spared_by_rank)
    assert checks.check("decay-only", right).passed
    report = checks.check("decay-only", getattr(page, bug))
    assert MUSEUM[bug] in report.failures
    assert len(report.failures) < report.total


def test_bert_and_its_check(derivation):
    """BERT's step passes too: its decay stands beside the gradient."""
    page = derivation(CHAPTER)
    assert checks.check("decay-only", page.without_loss(page.bert_step, page.spared_by_rank)).passed


@pytest.mark.parametrize("bug", ["l2_step", "unscheduled_step"])
def test_the_wrong_decays_leave_the_trajectory(museum, bug):
    page, walk = museum(CHAPTER), problem((6, 5), seed=4)
    right, wrong = (
        page.walk(step, *walk, eps=1e-3, weight_decay=0.3)
        for step in (page.adamw_step, getattr(page, bug))
    )
    assert checks.travel_difference(right, wrong) > 1e-3


def test_what_the_museum_costs():
    """A thousand times and a tenth of lambda; 37 % after a hundred steps of one percent."""
    assert round(0.99**100, 2) == 0.37
    for theta, times in ((1e-3, 1000), (1.0, 100)):  # the rate of L2 over lambda, at s = 0.001
        assert abs(1 / math.hypot(0.001, 0.01 * theta) / times - 1) < 0.01
    theta = optax_walk(
        lambda lr: optax.adafactor(lr, weight_decay_rate=0.01),
        *(np.full((2, 2), 3.0), [np.zeros((2, 2))] * 3, [1e-5] * 3),
    )
    assert checks.difference(theta[-1], np.full((2, 2), 3 * 0.99**3)) <= 1e-6


SOLUTIONS = {
    "decay-for-a-run": "decay_for",
    "adamw-from-paper": "adamw_from_paper",
    "bert-from-adamw": "bert_from_adamw",
    "gpt-from-adamw": "gpt_from_adamw",
    "xlnet-spares": "xlnet_spares",
    "norm-balance": "balance",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


@given(lam=st.floats(0.001, 3), rates=st.lists(st.floats(0.0, 0.3), min_size=1, max_size=30))
def test_decay_for_a_run_is_the_inverse_of_kept(solutions, lam, rates):
    page = solutions(CHAPTER)
    assume(max(rates) > 1e-3)
    found = page.decay_for(page.kept(rates, lam)[-1], rates)
    assert math.isclose(page.kept(rates, found)[-1], page.kept(rates, lam)[-1], rel_tol=1e-9)


def test_the_printed_second_factor(solutions):
    balance = solutions(CHAPTER).balance
    assert round((balance(0.01, 0.5, 0.9) / balance(0.01, 0.5, 0.0)) ** 2, 3) == 0.955
    assert round(1 - balance(0.01, 0.5, 0.9) / balance(0.01, 0.5, 0.0), 3) == 0.023


def gpt(rate=None, e=None, lam=None, bert=False):
    """A conversion with one of its three results replaced."""

    def answer(lr, eps, weight_decay, beta1, beta2, t):
        c1, root = 1 - beta1**t, math.sqrt(1 - beta2**t)
        values = (lr * c1 / root if bert else lr, eps / root, weight_decay * root / c1)
        given = (rate, e, lam)
        names = {"lr": lr, "eps": eps, "lam": weight_decay, "c1": c1, "root": root}
        return tuple(f(**names) if f else x for f, x in zip(given, values, strict=True))

    return answer


MUTANTS = [
    ("decay-for-a-run", lambda left, rates: -math.log(left) / math.fsum(rates), "approximation"),
    ("decay-for-a-run", lambda left, rates: (1 - left) / math.fsum(rates), "Every step"),
    (
        "decay-for-a-run",
        lambda left, rates: (1 - left ** (1 / len(rates))) / (sum(rates) / len(rates)),
        "rates differ",
    ),
    ("adamw-from-paper", lambda peak, s, lam: (s * peak, lam), "multiplies it by the rate"),
    ("adamw-from-paper", lambda peak, s, lam: (peak, lam / peak), "a fifth of the peak"),
    ("adamw-from-paper", lambda peak, s, lam: (s * peak, lam * peak), "a division belongs"),
    (
        "adamw-from-paper",
        lambda peak, s, lam: (s * peak, lam / (s * peak) if s else 0.0),
        "by the rate of the step instead of by the peak",
    ),
    (
        "adamw-from-paper",
        lambda peak, s, lam: (s * peak, np.divide(s * lam, s * peak)),
        "Zero over zero",
    ),
    ("adamw-from-paper", lambda peak, s, lam: (s * peak, lam / 0.1), "an earlier call"),
    (
        "bert-from-adamw",
        gpt(lam=lambda lam, **_: lam, bert=True),
        "result 3, the decay, ÷ 3.16",
    ),
    (
        "bert-from-adamw",
        gpt(lam=lambda lam, c1, root, **_: lam * c1 / root, bert=True),
        "result 3 larger",
    ),
    ("bert-from-adamw", gpt(e=lambda eps, **_: eps, bert=True), "result 2 × 9.15"),
    ("bert-from-adamw", gpt(), "Result 1 × 6.57"),
    (
        "gpt-from-adamw",
        gpt(lam=lambda lam, **_: lam),
        "result 3 ÷ 6.57",
    ),
    ("gpt-from-adamw", gpt(lam=lambda lam, c1, root, **_: lam * c1 / root), "becomes larger"),
    ("gpt-from-adamw", gpt(e=lambda eps, **_: eps), "result 2, ε, × 31.6"),
    ("gpt-from-adamw", gpt(bert=True), "Result 1 stays"),
    ("xlnet-spares", lambda name: re.search("bias|LayerNorm|layer_norm", name), "no match"),
    (
        "xlnet-spares",
        lambda name: True if re.search("LayerNorm|layer_norm|bias", name) else None,
        "returns nothing No pattern occurs. The answer is False",
    ),
    ("xlnet-spares", lambda name: "bias" in name or "LayerNorm" in name, "first list"),
    (
        "xlnet-spares",
        lambda name: (
            any(x in name for x in ("LayerNorm", "layer_norm", "bias")) and "r_" not in name
        ),
        "three of them",
    ),
    ("xlnet-spares", lambda name: name.endswith(("bias", "gamma")), "case counts"),
    ("norm-balance", lambda lr, lam, b: math.sqrt(lr / (2 * lam)), "2 − ηλ"),
    ("norm-balance", lambda lr, lam, b: math.sqrt(lr / (lam * (2 - lr * lam))), "spread"),
    ("norm-balance", lambda lr, lam, b: lr / (lam * (2 - lr * lam)), "under a root"),
]


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    """Each mistake fails, and the hint that names it is among those that are printed."""
    report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())


def decays(slip):
    """A function of parameters, rates and lambda with one slip, number by number."""

    def run(parameters, rates, weight_decay):
        ends = []
        for name, theta in parameters.items():
            spared = theta.ndim < 2
            if slip == "nobody spared":
                spared = False
            if slip == "embeddings spared":
                spared = spared or "embedding" in name
            if slip == "by an ending":
                spared = name.endswith((".bias", "norm.weight", "Norm.weight", "f.weight"))
            factor = 1.0
            for rate in rates[1:] if slip == "one step short" else rates:
                factor *= 1 - rate * weight_decay
            if slip == "exponential":
                factor = math.exp(-sum(rates) * weight_decay)
            ends.append(theta if spared else factor * theta)
        return tuple(ends)

    return run


SLIPS = ["nobody spared", "embeddings spared", "by an ending", "one step short", "exponential"]


@pytest.mark.parametrize("slip", SLIPS)
def test_the_check_of_a_decay_catches_other_slips(slip):
    assert checks.check("decay-only", decays(None)).passed
    report = checks.check("decay-only", decays(slip))
    assert not report.passed
    if slip == "embeddings spared":
        assert report.failures == ("an embedding",)
        assert "loses what every matrix loses" in " ".join(str(report).split())
