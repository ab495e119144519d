"""The chapter's NumPy against lossbook, transformers and torch, its museum, and its exercises."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from transformers.optimization import Adafactor as Transformers

from lossbook import checks, optim

CHAPTER = "adafactor"
SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
EPS1 = st.sampled_from([1e-30, 1e-3, 1.0])


def problem(shape, seed, steps=25):
    """Gradients over six powers of ten, some rows exactly zero, and a rate that changes."""
    rng = np.random.default_rng([seed, 7])
    gradients = [rng.normal(size=shape) * size for size in 10.0 ** rng.integers(-5, 2, steps)]
    if seed % 3 == 0:
        for g in gradients[:3]:
            g[0] = 0
    return rng.normal(size=shape), gradients, 0.1 * rng.uniform(0.2, 1, size=steps)


def torch_walk(make, theta, gradients, rates):
    p = torch.tensor(theta, requires_grad=True)
    optimizer, path = make([p]), [theta]
    for g, lr in zip(gradients, rates, strict=True):
        p.grad = torch.tensor(g)
        optimizer.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return np.array(path)


@given(shape=SHAPES, seed=st.integers(0, 999), eps1=EPS1, scaled=st.booleans())
@example(shape=(1, 1), seed=0, eps1=1e-30, scaled=True)
@example(shape=(4, 3, 2), seed=3, eps1=1e-30, scaled=False)
def test_the_derivation_equals_lossbook_and_transformers(derivation, shape, seed, eps1, scaled):
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed)
    path = page.walk(theta, gradients, rates, eps1=eps1, relative=False, scaled=scaled)
    options = {"eps": (eps1, 1e-3), "scale_parameter": scaled}
    ours = torch_walk(
        lambda p: optim.Adafactor(p, rate="given", **options), theta, gradients, rates
    )
    theirs = torch_walk(
        lambda p: Transformers(p, lr=1.0, relative_step=False, **options), theta, gradients, rates
    )
    assert checks.travel_difference(path, ours) <= 1e-12
    assert checks.travel_difference(path, theirs) <= 1e-12


@given(shape=SHAPES, seed=st.integers(0, 999).filter(lambda s: s % 3))
def test_the_derivation_equals_torch(derivation, shape, seed):
    """With relative steps; no row without gradient, see the museum."""
    theta, gradients, rates = problem(shape, seed)
    path = derivation(CHAPTER).walk(theta, gradients, 10 * rates)
    theirs = torch_walk(
        lambda p: torch.optim.Adafactor(p, eps=(1e-30, 1e-3)), theta, gradients, 10 * rates
    )
    assert checks.travel_difference(path, theirs) <= 1e-12


@given(seed=st.integers(0, 999), n=st.integers(1, 6), m=st.integers(1, 6), eps1=EPS1)
def test_the_literal_form_is_the_vectorised_one(derivation, seed, n, m, eps1):
    """Sums and the full table against means and roots of the factors."""
    page = derivation(CHAPTER)
    theta, gradients, rates = problem((n, m), seed)
    path = page.walk(theta, gradients, rates, eps1=eps1)
    literal, r, c = [theta], np.zeros(n), np.zeros(m)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
        theta, r, c = page.literal_step(theta, g, r, c, t, lr=lr, eps1=eps1)
        literal.append(theta)
    assert checks.travel_difference(path, np.array(literal)) <= 1e-12


@given(seed=st.integers(0, 999), n=st.integers(1, 5), m=st.integers(1, 6))
def test_the_theorem(derivation, seed, n, m):
    """Minimum among random tables of rank one, zero gradient there, and the least value."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    v = rng.gamma(0.4, size=(n, m)) * (rng.random((n, m)) < 0.8)
    assume((v.sum(0) > 0).all() and (v.sum(1) > 0).all())
    r, c, best = v.sum(1), v.sum(0), page.divergence(v, page.rank_one(v))
    for size in (1e-3, 0.1, 2.0):
        w = np.outer(r * np.exp(size * rng.normal(size=n)), c * np.exp(size * rng.normal(size=m)))
        assert page.divergence(v, w / v.sum()) >= best - 1e-12 * v.sum()

    def by_logs(x):
        w = np.outer(r * np.exp(x[:n]), c * np.exp(x[n:])) / v.sum()
        return page.divergence(v, w)

    slope = checks.finite_differences(by_logs, np.zeros(n + m))
    assert np.abs(slope).max() <= 1e-6 * v.sum()
    p = v / v.sum()
    logs = np.log(np.where(p > 0, p, 1) / np.outer(p.sum(1), p.sum(0)))
    assert math.isclose(best, v.sum() * (p * logs).sum(), rel_tol=1e-9, abs_tol=1e-12 * v.sum())


@given(seed=st.integers(0, 99))
def test_the_divergence_is_positive_and_zero_only_at_equality(derivation, seed):
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    v, w = rng.gamma(1.0, size=(2, 3, 4))
    assert page.divergence(v, w) > 0
    assert abs(page.divergence(v, v)) <= 1e-14


def test_the_pencil_example(derivation):
    page = derivation(CHAPTER)
    g = np.array([[1.0, -1, 2], [2, 3, -1]])
    estimate = page.rank_one(g**2)
    assert np.allclose(estimate, [[1.5, 3, 1.5], [3.5, 7, 3.5]], rtol=1e-15)
    ratio = g**2 / estimate
    assert (round(ratio.min(), 2), round(ratio.max(), 2)) == (0.29, 2.67)
    u = (g / np.sqrt(estimate)).round(2)
    assert u.tolist() == [[0.82, -0.58, 1.63], [1.07, 1.13, -0.53]]
    exact = np.array([[1.0, 4, 9], [4, 16, 36]])
    assert np.allclose(page.rank_one(exact), exact, rtol=1e-15)
    assert abs(page.information(exact)) < 1e-15


def test_the_printed_sizes(derivation):
    """BERT and T5 counted a second time, from their papers' formulas."""
    page = derivation(CHAPTER)
    h, f = 768, 3072
    layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 4 * h
    bert = (30522 + 512 + 2) * h + 2 * h + 12 * layer + h * h + h
    assert page.numbers(page.bert_base(), math.prod) == bert == 109_482_240
    block = 4 * 1024 * 16384
    t5 = 32128 * 1024 + 24 * (3 * block + 4 * 1024 * 65536) + 2 * (32 * 128 + 1024)
    t5 += 24 * 5 * 1024
    assert page.numbers(page.t5_11b(), math.prod) == t5
    assert round(t5 / 1e9, 2) == 11.31
    kept = page.numbers(page.t5_11b(), page.adafactor_keeps)
    assert (round(8 * t5 / 1e9), round(4 * kept / 1e6), round(4 * t5 / 1e9)) == (90, 46, 45)


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (4, 3, 5), (1, 9)])
def test_the_count_is_what_lossbook_keeps(derivation, shape):
    p = torch.zeros(shape, requires_grad=True)
    p.grad = torch.ones(shape)
    optimizer = optim.Adafactor([p])
    optimizer.step()
    kept = sum(x.numel() for x in optimizer.state[p].values() if isinstance(x, torch.Tensor))
    assert kept == derivation(CHAPTER).adafactor_keeps(shape)


@given(seed=st.integers(0, 99), scale=st.sampled_from([1e-6, 0.3, 1000.0]))
def test_two_scales_cancel(derivation, seed, scale):
    """The theorem of both scales, on a real loss: || theta x - y ||^2 and theta' = s theta."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    x, y, theta = rng.normal(size=(4, 9)), rng.normal(size=(3, 9)), rng.normal(size=(3, 4))
    assume((np.abs(theta) > 0.1).any())

    def run(s, factor):
        w, memory, path = s * theta, (0.0, 0.0), []
        for t in range(1, 15):
            g = factor * 2 * (w / s @ x - y) @ x.T / s
            w, memory = page.adafactor_step(w, g, memory, t, eps1=0.0, eps2=0.0, lr=0.1)
            path.append(w / s)
        return np.array(path)

    plain = run(1.0, 1.0)
    assert checks.travel_difference(run(1.0, scale), plain) <= 1e-9
    assert checks.travel_difference(run(scale, 1.0), plain) <= 1e-9


def test_t5s_schedule_is_the_relative_step():
    for t in (1, 99, 9_999, 10_000, 10_001, 10**6):
        assert math.isclose(min(1e-2, t**-0.5), 1 / math.sqrt(max(t, 10**4)), rel_tol=1e-14)


def test_the_printed_numbers_of_the_text():
    """The windows, the stale updates, the ratios of T5's steps, nats of noise."""
    assert round(100**0.8) == 40 and round(10_000**0.8, -2) == 1600
    gamma = 10_000**-0.8
    assert round(10 / math.sqrt(1 + 99 * gamma), 1) == 9.7
    assert round(10_000**0.4) == 40
    for kappa, length in ((1, 1.0), (2, 2.0)):  # a tenfold gradient that was clipped
        assert round(kappa / math.sqrt(1 + (kappa**2 - 1) * gamma), 2) == length
    assert 1e-6 * 10_000 == pytest.approx(10_000**-0.5) == 0.01  # the paper's warm-up
    initial = [(768 * 64) ** 0.5, 768**0.5, 3072**0.5]
    assert [round(x) for x in initial] == [222, 28, 55]
    noise = {}
    for k in (1, 20):
        shape = torch.tensor(k / 2, dtype=torch.float64)
        noise[k] = round((torch.digamma(shape + 1) - torch.log(shape)).item(), 2)
    assert noise == {1: 0.73, 20: 0.05}


def test_rank_one_for_one_token():
    """The gradient of a linear layer from one token: outer product, exact factor."""
    rng = np.random.default_rng(0)
    layer = torch.nn.Linear(5, 3).double()
    (layer(torch.tensor(rng.normal(size=5))) * torch.tensor(rng.normal(size=3))).sum().backward()
    v = layer.weight.grad.numpy() ** 2
    assert np.allclose(np.outer(v.sum(1), v.sum(0)) / v.sum(), v, rtol=1e-12)


# The museum

MUSEUM = {
    "floored_step": {"gradients of 1e-4"},
    "unscaled_step": {"weights of size 30", "weights that are zero"},
}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_the_check_that_adafactor_passes(museum, bug):
    page = museum(CHAPTER)
    assert checks.check("adafactor-step", page.literal_step).passed
    report = checks.check("adafactor-step", getattr(page, bug))
    assert set(report.failures) == MUSEUM[bug]


def test_the_sticky_floor_fails_the_check_of_a_group(museum):
    page = museum(CHAPTER)
    assert checks.check("adafactor-group", page.group_updates).passed
    report = checks.check("adafactor-group", page.sticky_updates)
    assert "float32 behind bfloat16" in report.failures
    assert "two in bfloat16" not in report.failures


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-4, 1e-6])
def test_the_rebuilt_floor_is_the_installed_torchs(museum, size):
    """In float64 with the epsilon of bfloat16 given by hand, so that rounding plays no part."""
    page, rng = museum(CHAPTER), np.random.default_rng(1)
    theta, g = rng.normal(size=(6, 5)), size * rng.normal(size=(6, 5))
    one, _, _ = page.floored_step(theta, g, np.zeros(6), np.zeros(5), 1)
    two = torch_walk(lambda p: torch.optim.Adafactor(p, eps=(2.0**-7, 1e-3)), theta, [g], [1e-2])[
        -1
    ]
    assert checks.travel_difference([theta, one], [theta, two]) <= 1e-9


def test_the_factor_78(museum):
    """RMS(G) / eps1 at 1e-4, before any rounding."""
    page, rng = museum(CHAPTER), np.random.default_rng(2)
    theta, g = np.ones((64, 64)), rng.choice([-1e-4, 1e-4], size=(64, 64))
    step = theta - page.floored_step(theta, g, np.zeros(64), np.zeros(64), 1)[0]
    assert round(1e-2 / page.rms(step)) == 78


@pytest.mark.parametrize("size", [0.02, 0.01])
def test_between_two_floors_the_update_is_the_gradient(museum, size):
    """Below eps1^(3/4): proportional to G in small rows. Above eps1: of the right length."""
    page, rng = museum(CHAPTER), np.random.default_rng(3)
    g = np.geomspace(0.1, 10, 40)[:, None] * rng.choice([-1.0, 1.0], size=(40, 30))
    g *= size / page.rms(g)
    one = np.ones((40, 30))
    step = one - page.floored_step(one, g, np.zeros(40), np.zeros(30), 1)[0]
    right = one - page.literal_step(one, g, np.zeros(40), np.zeros(30), 1)[0]
    assert page.rms(step) == pytest.approx(1e-2, rel=1e-9) == page.rms(right)
    ratio = step / g
    assert np.ptp(ratio[:20]) <= 1e-9 * ratio.max()  # small rows: under the floor
    assert abs(right).max() == pytest.approx(abs(right).min(), rel=1e-9)


def test_where_the_second_floor_begins():
    assert round((2.0**-7) ** 0.75, 3) == 0.026
    assert round(1e6 * (2.0**-23) ** 0.75) == 6


@pytest.mark.parametrize("make", [optim.Adafactor, partial(optim.Adafactor.like, "torch")])
@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_an_epsilon_of_zero_is_not_safe(make, shape):
    for eps1, finite in ((1e-30, True), (0.0, False)):
        p = torch.ones(shape, requires_grad=True)
        p.grad = torch.ones(shape)
        p.grad[0] = 0
        make([p], eps=(eps1, 1e-3)).step()
        assert bool(p.isfinite().all()) == finite


def test_a_zero_row_in_torch_and_here():
    for make, finite in (
        (lambda p: torch.optim.Adafactor(p, eps=(1e-30, 1e-3)), False),
        (lambda p: torch.optim.Adafactor(p, eps=(1e-15, 1e-3)), True),
        (lambda p: optim.Adafactor(p, eps=(1e-30, 1e-3)), True),
        (lambda p: optim.Adafactor.like("torch", p), True),
        (lambda p: optim.Adafactor.like("torch", p, eps=(1e-30, 1e-3)), True),
    ):
        p = torch.ones(4, 3, requires_grad=True)
        p.grad = torch.tensor([[1.0, 2, 3], [0, 0, 0], [4, 5, 6], [7, 8, 9]])
        make([p]).step()
        assert bool(p.isfinite().all()) == finite


# The exercises

SOLUTIONS = {
    "adafactor-memory": "state_numbers",
    "adafactor-weights": "weights",
    "adafactor-adam": "adam_beta2",
    "adafactor-surge": "surge",
    "adafactor-information": "lost",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


def test_the_solutions_say_what_is_printed(solutions):
    page = solutions(CHAPTER)
    logs = [round(math.log10(page.weights(10_000, e)[0])) for e in (1.0, 0.8, 0.5)]
    assert logs == [-4, -12, -88]
    assert [page.surge(10, t, 1.1) for t in (100, 1000, 10_000)] == [89, 519, 3080]
    assert page.state_numbers((1024, 1024), 128) == 2048
    assert math.isclose(page.weights(500, 0.8).sum(), 1, rel_tol=1e-12)


def test_adams_decay_rate_runs_adam(solutions):
    """The recursion with it is the corrected average, for any gradients."""
    rng, v, hat = np.random.default_rng(0), 0.0, 0.0
    for t in range(1, 200):
        square, beta2 = rng.normal() ** 2, solutions(CHAPTER).adam_beta2(0.95, t)
        v = 0.95 * v + 0.05 * square
        hat = beta2 * hat + (1 - beta2) * square
        assert math.isclose(hat, v / (1 - 0.95**t), rel_tol=1e-12)


def state_mutant(last=False, beyond=False):
    def answer(shape, smallest):
        axes = list(shape) if last else sorted(shape)
        if len(shape) < 2 or (axes[-2] <= smallest if beyond else axes[-2] < smallest):
            return math.prod(shape)
        return math.prod(axes[:-2]) * (axes[-1] + axes[-2])

    return answer


def surge_mutant(constant=False, late=False):
    def answer(kappa, t, limit):
        v, count = 1.0, 0
        while count < 10_000:
            if late and kappa / math.sqrt(v) <= limit:
                return count
            gamma = (t if constant else t + count) ** -0.8
            v = (1 - gamma) * v + gamma * kappa**2
            if not late and kappa / math.sqrt(v) <= limit:
                return count
            count += 1
        return None

    return answer


MUTANTS = [
    ("adafactor-memory", state_mutant(last=True), "two largest"),
    ("adafactor-memory", state_mutant(beyond=True), "not more than"),
    ("adafactor-memory", lambda shape, smallest: sum(shape), "Both sides"),
    (
        "adafactor-weights",
        lambda t, e: (
            (g := np.arange(1.0, t + 1) ** -e) * np.append(np.cumprod((1 - g)[:0:-1]), 1.0)
        ),
        "order",
    ),
    ("adafactor-weights", lambda t, e: np.arange(1.0, t + 1) ** -e, "plain mean"),
    ("adafactor-adam", lambda b, t: b * (1 - b**t) / (1 - b ** (t + 1)), "zero may be left"),
    ("adafactor-adam", lambda b, t: 1 - (1 - b) / (1 - b**t) ** 2, "recursion"),
    ("adafactor-adam", lambda b, t: 1 - (1 - b) / (1 - math.pow(b, t)), "take arrays"),
    ("adafactor-surge", surge_mutant(constant=True), "goes on changing"),
    ("adafactor-surge", surge_mutant(late=True), "average included"),
    (
        "adafactor-information",
        lambda v: (v * np.log(v * v.sum() / np.outer(v.sum(1), v.sum(0)))).sum() / v.sum(),
        "0 log 0",
    ),
    (
        "adafactor-information",
        lambda v: (
            v[v > 0] * np.log(v[v > 0] * v.sum() / np.outer(v.sum(1), v.sum(0))[v > 0])
        ).sum(),
        "Divide by the total",
    ),
    (
        "adafactor-information",
        lambda v: (
            (p := (v + 1e-9) / (v + 1e-9).sum())
            * np.log2(p / np.outer(p.sum(1), p.sum(0)))
        ).sum(),
        "Which logarithm",
    ),
    (
        "adafactor-information",
        lambda v: (
            (p := (v + 1e-9) / (v + 1e-9).sum())
            * np.log2(p / np.outer(p.sum(1), p.sum(0)))
        ).sum(),
        "got 0.2858 Divide by the total. 0.2858 would be bits",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    with np.errstate(all="ignore"):
        report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())


SLIPS = [
    *("counts from 0", "means for sums", "mean forgotten", "norm", "no clipping"),
    *("always divided", "new scale", "in place", "no eps1", "rate only", "exchanged"),
]


def wrong_step(slip):
    """Adafactor with one slip, from the lines of Algorithm 4."""

    def step(theta, g, r, c, t, *, lr, eps1, eps2, d):
        beta2 = 1 - (t + (slip == "counts from 0")) ** -0.8
        square = g**2 + (0 if slip == "no eps1" else eps1)
        if slip == "in place":
            r *= beta2
            c *= beta2
        else:
            r, c = beta2 * r, beta2 * c
        sums = (square.mean(1), square.mean(0)) if slip == "means for sums" else None
        rows, columns = sums or (square.sum(1), square.sum(0))
        r = r + (1 - beta2) * rows
        c = c + (1 - beta2) * columns
        u = g / np.sqrt(np.outer(r, c) / (1 if slip == "mean forgotten" else r.sum()))
        if slip == "exchanged":
            u = g / np.sqrt(np.outer(np.sort(r), c) / r.sum())
        size = np.linalg.norm(u) if slip == "norm" else np.sqrt(np.mean(u**2))
        low = {"no clipping": math.inf, "always divided": 0}.get(slip, 1)
        u = u / (1 if low == math.inf else max(low, size / d))
        rate = lr if slip == "rate only" else min(lr, t**-0.5)
        scale = np.sqrt(np.mean((theta - rate * u if slip == "new scale" else theta) ** 2))
        return theta - max(eps2, scale) * rate * u, r, c

    return step


def test_the_frame_of_the_slips_is_right():
    assert checks.check("adafactor-step", wrong_step(None)).passed


@pytest.mark.parametrize("slip", SLIPS)
def test_the_check_of_a_step_catches_other_slips(slip):
    assert not checks.check("adafactor-step", wrong_step(slip)).passed
