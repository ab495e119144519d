"""The chapter's NumPy against lossbook and the libraries, its theorems, museum and exercises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lossbook import checks, models, optim

CHAPTER = "schedules-and-clipping"
STEPS = st.integers(1, 120)
PART = st.floats(0, 1)
FEW = settings(max_examples=12)  # every example calls some hundred schedules


def course(name, n, /, **options):
    return optim.course(name, **options).factors(n)


# The schedules


@FEW
@given(steps=STEPS, part=PART, floor=st.sampled_from([0.0, 0.1, 1.0]))
def test_the_courses_of_the_page_equal_lossbooks(derivation, steps, part, floor):
    """Every length of warm-up from none to all of the run."""
    page, warmup = derivation(CHAPTER), round(part * steps)
    options = {"steps": steps, "warmup": warmup}
    pairs = [
        (page.linear_course(warmup, steps), course("linear", steps, **options)),
        (page.bert_course(warmup, steps), course("bert", steps, **options)),
        (page.cosine_course(warmup, steps, floor), course("cosine", steps, floor=floor, **options)),
    ]
    for power in (0.5, 1, 3):
        theirs = course("polynomial", steps, power=power, floor=floor, **options)
        pairs.append((page.polynomial_course(warmup, steps, power, floor), theirs))
    if warmup:
        theirs = course("inverse_sqrt", steps, warmup=warmup)
        pairs.append((page.inverse_sqrt_course(warmup, steps), theirs))
    for down in ((steps - warmup) // 2, steps - warmup):
        wsd = course("wsd", steps, decay=down, shape="linear", **options)
        pairs.append((page.wsd_course(warmup, steps, down), wsd))
    assert all(np.abs(ours - theirs).max() <= 1e-14 for ours, theirs in pairs)


def test_a_polynomial_of_power_one_is_the_line(derivation):
    page = derivation(CHAPTER)
    assert checks.difference(page.polynomial_course(7, 60, 1), page.linear_course(7, 60)) <= 1e-15


@FEW
@given(steps=STEPS, part=PART)
def test_the_rules_of_the_opening(derivation, steps, part):
    page, warmup = derivation(CHAPTER), max(1, round(part * steps))
    assume(warmup < steps)
    for name, rule in (("linear", page.linear), ("bert", page.bert), ("electra", page.electra)):
        by_hand = [rule(k, warmup, steps) for k in range(steps)]
        expected = course(name, steps, steps=steps, warmup=warmup)
        assert np.abs(by_hand - expected).max() <= 1e-14


def test_the_printed_tables(derivation):
    """By fractions: 5, 3.6 and 3.25, and the junction at ten per cent."""
    page = derivation(CHAPTER)
    tables = {
        page.linear: ([0, 1 / 4, 1 / 2, 3 / 4, 1, 5 / 6, 2 / 3, 1 / 2, 1 / 3, 1 / 6], 5),
        page.bert: ([0, 0.25, 0.5, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 3.6),
        page.electra: ([0, 0.225, 0.4, 0.525, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 3.25),
    }
    for rule, (expected, total) in tables.items():
        found = [rule(k, 4, 10) for k in range(10)]
        assert found == pytest.approx(expected, abs=1e-15)
        assert sum(found) == pytest.approx(total, abs=1e-14)
    junction = [page.bert(k, 10, 100) for k in (9, 10, 11)]
    assert junction == pytest.approx([0.9, 0.9, 0.89], abs=1e-15)
    ratios = {page.linear(k, 10, 100) / page.bert(k, 10, 100) for k in range(10, 100)}
    assert max(ratios) == pytest.approx(10 / 9) == min(ratios)


def test_the_figure_of_the_junctions(derivation):
    """A warm-up of 20 in 100: who jumps, and T5's kink."""
    page = derivation(CHAPTER)
    found = {
        rule: [rule(k, 20, 100) for k in range(18, 23)]
        for rule in (page.linear, page.bert, page.electra)
    }
    assert found[page.linear] == pytest.approx([0.9, 0.95, 1, 0.9875, 0.975], abs=1e-15)
    assert found[page.bert] == pytest.approx([0.9, 0.95, 0.8, 0.79, 0.78], abs=1e-15)
    assert found[page.electra] == pytest.approx([0.738, 0.7695, 0.8, 0.79, 0.78], abs=1e-15)
    assert found[page.bert][1] - found[page.bert][2] == pytest.approx(20 / 100 - 1 / 20)
    gpt = course("gpt1", 23, steps=100, fraction=0.2, shape="cosine")
    assert gpt[18:].round(3).tolist() == [0.9, 0.95, 1, 0.895, 0.885]
    t5 = [optim.course("t5")(k) for k in (0, 10_000, 20_000, 40_000, 100_000)]
    assert [round(rate, 5) for rate in t5] == [0.01, 0.01, 0.00707, 0.005, 0.00316]


@FEW
@given(steps=st.integers(2, 150), part=PART)
def test_the_sums(steps, part):
    warmup = min(max(1, round(part * steps)), steps - 1)
    options = {"steps": steps, "warmup": warmup}
    for name in ("linear", "cosine"):
        assert course(name, steps, **options).sum() == pytest.approx(steps / 2, rel=1e-12)
    bert = (warmup - 1) / 2 + (steps - warmup) * (steps - warmup + 1) / (2 * steps)
    assert course("bert", steps, **options).sum() == pytest.approx(bert, rel=1e-12)
    less = (warmup - 1) * (2 * warmup - 1) / (6 * steps)
    assert course("electra", steps, **options).sum() == pytest.approx(bert - less, abs=1e-10)
    down = max(1, (steps - warmup) // 3)
    found = course("wsd", steps, decay=down, shape="linear", **options).sum()
    expected = steps - (warmup + down) / 2
    assert found == pytest.approx(expected, rel=1e-12)


def test_the_cosines_ends():
    f = course("cosine", 1000, steps=1000)
    assert round(float((f > 0.9).mean()), 2) == 0.20 == round(float((f < 0.1).mean()), 2)
    assert round(float((course("linear", 1000, steps=1000) > 0.9).mean()), 2) == 0.10


# The way down, the averages, the way up


@given(curvature=st.floats(0.01, 10), noise=st.floats(0.01, 10), seed=st.integers(0, 99))
def test_the_best_rates_are_best(curvature, noise, seed):
    """The closed form solves the recursion, and no disturbed sequence of rates does better."""
    rng, s0 = np.random.default_rng(seed), 3.0
    first = noise / (curvature**2 * s0)

    def end(rates):
        s = s0
        for eta in rates:
            s = (1 - eta * curvature) ** 2 * s + eta**2 * noise
        return s

    best = np.array([1 / (curvature * (t + first)) for t in range(1, 21)])
    for n in (1, 7, 20):
        expected = noise / (curvature**2 * (n + first))
        assert end(best[:n]) == pytest.approx(expected, rel=1e-9)
        other = best[:n] * np.exp(rng.normal(size=n))
        assert end(other) >= expected * (1 - 1e-12)


def test_the_expected_excess_by_simulation(derivation):
    page, rng = derivation(CHAPTER), np.random.default_rng(1)
    rates = 0.3 * course("cosine", 60, steps=60, warmup=5)
    theta = np.full((40_000, 2), 5.0)
    curvatures = np.array([1.0, 0.1])
    for eta in rates:
        theta = theta - eta * (curvatures * theta + rng.normal(size=theta.shape))
    found = (curvatures * theta**2 / 2).sum(axis=1)
    expected = page.expected_excess(rates, curvatures)
    assert abs(found.mean() - expected) <= 4 * found.std() / math.sqrt(len(found))


def test_the_table_of_best_peaks(derivation):
    """Sums, who is ahead at 0.03 and at 0.3, and how near the four that fall are."""
    page, options = derivation(CHAPTER), {"warmup": 50}
    runs = {
        "constant": course("constant", 1000, **options),
        "1/√t": course("inverse_sqrt", 1000, **options),
        "WSD": course("wsd", 1000, steps=1000, decay=200, shape="linear", **options),
        "linear": course("linear", 1000, steps=1000, **options),
        "cosine": course("cosine", 1000, steps=1000, **options),
    }
    assert {k: round(float(f.sum())) for k, f in runs.items()} == {
        **{"constant": 974, "1/√t": 372, "WSD": 875, "linear": 500, "cosine": 500}
    }

    def excess(name, peak):
        return page.expected_excess(peak * runs[name], (1, 0.1, 0.01))

    low, high = ({name: excess(name, peak) for name in runs} for peak in (0.03, 0.3))
    assert min(low, key=low.get) == "constant" == max(high, key=high.get)
    assert low["WSD"] < 1.02 * low["constant"]
    assert high["constant"] > 4 * high["linear"]
    best = {n: min(excess(n, p) for p in np.geomspace(0.01, 1.6, 61)) for n in runs}
    assert max(best, key=best.get) == "constant"
    falling = [best[name] for name in runs if name != "constant"]
    assert max(falling) < 1.25 * min(falling)


@given(beta=st.floats(0.0, 0.99), rate=st.floats(0.01, 1.9))
def test_the_noise_of_an_average(derivation, beta, rate):
    """Against the covariance matrix of iterate and average, brought to its fixed point."""
    page, rho = derivation(CHAPTER), 1 - rate
    step = np.array([[rho, 0.0], [(1 - beta) * rho, beta]])
    kick = np.array([1.0, 1 - beta])
    system = np.eye(4) - np.kron(step, step)
    covariance = np.linalg.solve(system, np.outer(kick, kick).ravel()).reshape(2, 2)
    assert page.gain(beta, rho) == pytest.approx(covariance[1, 1] / covariance[0, 0], rel=1e-8)


def test_the_limit_of_the_average_forgets_the_rate(derivation):
    page, beta = derivation(CHAPTER), 1 - 1e-6
    for rate in (0.3, 0.03):
        floor = rate / (2 - rate)  # curvature and noise 1
        assert floor * page.gain(beta, 1 - rate) == pytest.approx((1 - beta) / 2, rel=1e-3)


def test_adams_first_strides():
    """The sum of squared weights, by unit vectors; 0.229 and 4.4."""
    for t in (1, 2, 10, 200):
        weights = 0.1 * 0.9 ** np.arange(t) / (1 - 0.9**t)
        formula = (0.1 / 1.9) * (1 + 0.9**t) / (1 - 0.9**t)
        assert (weights**2).sum() == pytest.approx(formula, rel=1e-12)
    assert round(math.sqrt(0.1 / 1.9), 3) == 0.229
    assert round(1 / math.sqrt(0.1 / 1.9), 1) == 4.4


def test_noams_numbers():
    assert round(1e4 * (512 * 4000) ** -0.5, 2) == 6.99
    peaks = [max(course("noam", 900, width=512, warmup=w)) for w in (200, 400)]
    assert peaks[0] / peaks[1] == pytest.approx(math.sqrt(2))


@given(seed=st.integers(0, 99), beta=st.floats(0, 0.999), n=st.integers(1, 12))
def test_both_averages_equal_lossbooks_and_torchs(derivation, seed, beta, n):
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    thetas = rng.normal(size=(n, 3))
    p = torch.zeros(3, dtype=torch.float64)
    for start in ("copy", "zero"):
        ema, found = optim.EMA([p], beta, start=start), []
        for theta in thetas:
            p.copy_(torch.tensor(theta))
            ema.update()
            found.append(ema.averages()[0].numpy())
        assert checks.difference(page.averages(thetas, beta, start), found) <= 1e-12


def test_the_copys_weight_after_a_thousand_updates():
    assert round(0.999**999, 2) == 0.37
    assert math.ceil(1 + math.log(0.01) / math.log(0.9999)) == 46_051
    assert round(0.9999**9999, 2) == 0.37
    assert 0.9999 ** (6932 - 1) > 0.5 > 0.9999 ** (6933 - 1)


# Clipping


@given(
    seed=st.integers(0, 99),
    limit=st.sampled_from([1e-4, 0.01, 1.0, 50.0]),
    shapes=st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=4),
)
def test_clipping_projects(derivation, seed, limit, shapes):
    """Equal to lossbook's factor and to torch's within its constant; no nearer point inside."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    g = [np.asarray(rng.normal(size=shape)) for shape in shapes]
    norm = math.sqrt(sum(float((x**2).sum()) for x in g))
    clipped = page.clip(g, limit)
    assert all(
        np.allclose(a, b * optim.clip_factor(norm, limit), rtol=1e-12, atol=0)
        for a, b in zip(clipped, g, strict=True)
    )
    tensors = [torch.zeros(x.shape, dtype=torch.float64, requires_grad=True) for x in g]
    for p, x in zip(tensors, g, strict=True):
        p.grad = torch.tensor(x)
    torch.nn.utils.clip_grad_norm_(tensors, limit)
    part = 2e-6 / max(norm, limit)
    assert all(
        np.allclose(p.grad.numpy(), x, rtol=part, atol=0)
        for p, x in zip(tensors, clipped, strict=True)
    )
    flat = np.concatenate([x.ravel() for x in g])
    inside = rng.normal(size=flat.shape)
    inside *= limit * rng.uniform() / max(np.linalg.norm(inside), 1e-300)
    nearest = np.concatenate([x.ravel() for x in clipped])
    assert np.linalg.norm(nearest - flat) <= np.linalg.norm(inside - flat) + 1e-12


def test_the_printed_norms(derivation, museum):
    page = museum(CHAPTER)
    g = [np.array([3.0, 4.0]), np.array([12.0])]
    assert 13 * optim.clip_factor(13.0, 1.0, "torch") == pytest.approx(0.99999992, abs=5e-9)
    u = np.concatenate(page.clipnorm(g, 1.0))
    assert u.round(3).tolist() == [0.6, 0.8, 1.0]
    turned = math.degrees(math.acos(np.concatenate(g) @ u / 13 / math.sqrt(2)))
    assert round(turned, 1) == 22.4


@given(size=st.floats(-200, 200), beta2=st.sampled_from([0.95, 0.999]))
def test_a_burst_in_torchs_adam(derivation, size, beta2):
    """torch, its state set to that of an endless run of ones."""
    page = derivation(CHAPTER)
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=1.0, betas=(0.9, beta2), eps=0.0)
    p.grad = torch.ones_like(p)
    adam.step()
    adam.state[p]["step"].fill_(1e6)
    adam.state[p]["exp_avg"].fill_(1.0)
    adam.state[p]["exp_avg_sq"].fill_(1.0)
    for j in range(12):
        before = p.item()
        p.grad = torch.full_like(p, size if j == 0 else 1.0)
        adam.step()
        found, expected = before - p.item(), page.after_burst(j, size, 0.9, beta2)
        assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-9)


def test_the_printed_bursts(derivation):
    page = derivation(CHAPTER)
    assert round(float(page.after_burst(0, 100)), 2) == 3.29
    assert round(float(page.after_burst(50, 100)), 2) == 0.32
    assert abs(page.after_burst(50, 2.0) - 1) < 0.01


# Rates for layers, and the museum


def test_a_factor_on_the_gradient_against_one_on_the_rate(museum):
    """Below 1 % against 97 %, and without an eps nothing at all."""
    page, rng = museum(CHAPTER), np.random.default_rng(0)
    gradients = rng.normal(size=(25, 13))
    plain, rate, gradient = (
        method(gradients, 1e-3, decay)[0]
        for method, decay in (
            (page.layerwise_adam, 1.0),
            (page.layerwise_adam, 0.75),
            (page.xlnet, 0.75),
        )
    )
    assert abs(gradient / plain - 1) < 0.01
    assert round(1 - rate / plain, 2) == 0.97
    exact = page.xlnet(gradients, 1e-3, 0.75, eps=0.0)
    assert checks.difference(exact, page.layerwise_adam(gradients, 1e-3, 1.0, eps=0.0)) <= 1e-12


def test_layerwise_adam_equals_lossbooks_optimizer(derivation):
    """Groups by ``layerwise`` in BERT's Adam, one number for each layer."""
    page, rng = derivation(CHAPTER), np.random.default_rng(2)
    gradients = rng.normal(size=(25, 5))
    zeros = [torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(5)]
    names = ["embedding", "blocks.0", "blocks.1", "blocks.2", "head"]
    groups = optim.layerwise(zip(names, zeros, strict=True), 1e-3, 0.7)
    adam = optim.Adam(groups, eps=1e-6, bias_correction=False)
    for g in gradients:
        for p, value in zip(zeros, g, strict=True):
            p.grad = torch.tensor([value])
        adam.step()
    found = [p.item() for p in zeros]
    assert checks.difference(found, page.layerwise_adam(gradients, 1e-3, 0.7)) <= 1e-12


@pytest.mark.parametrize("layers", [1, 3, 6])
def test_the_factors_equal_lossbooks_under_both_conventions(museum, layers):
    page = museum(CHAPTER)
    config = models.TransformerConfig(vocab_size=8, width=8, layers=layers, heads=2, max_length=8)
    model = models.Encoder(config)
    for convention, factors in (("plain", page.layer_factors), ("electra", page.electra_layers)):
        groups = optim.layerwise(model, 1.0, 0.8, convention=convention)
        found = [group["lr"] for group in groups]
        assert checks.difference(found, factors(layers, 0.8)) <= 1e-12


MUSEUM = {
    "xlnet": ("layerwise-adam", "layerwise_adam", "gradients of size 1", True),
    "electra_layers": ("layer-factors", "layer_factors", "12 layers, 0.8", True),
    "clipnorm": ("clip-global", "clip", "norms 5 and 12", True),
    "zero_twice": ("linear-course", "linear_course", "the first two updates", False),
    "counted_in_batches": ("linear-course", "linear_course", "the end", False),
}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_the_check_that_the_right_code_passes(museum, bug):
    page = museum(CHAPTER)
    exercise, right, case, some_pass = MUSEUM[bug]
    assert checks.check(exercise, getattr(page, right)).passed
    report = checks.check(exercise, getattr(page, bug))
    assert case in report.failures
    assert (len(report.failures) < report.total) is some_pass


def test_what_the_museum_costs(museum):
    page = museum(CHAPTER)
    late = page.zero_twice(4, 10)
    assert late[:2].tolist() == [0, 0]
    assert np.array_equal(late[1:], page.linear_course(4, 10)[:-1])
    assert page.counted_in_batches(0, 1000)[-1] == pytest.approx(0.75, abs=1e-3)
    assert page.electra_layers(12, 0.8)[-2] == pytest.approx(0.64)


def test_other_readings_of_the_linear_rule_fail_too(derivation):
    page = derivation(CHAPTER)
    assert not checks.check("linear-course", page.bert_course).passed
    assert not checks.check("linear-course", page.cosine_course).passed


# Exercises

SOLUTIONS = {
    "schedule-total": "total",
    "ema-weights": "ema_weights",
    "burst-cost": "lost",
    "best-fall": "best_fall",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


def test_the_printed_answers(solutions):
    page = solutions(CHAPTER)
    assert [
        round(page.lost(size, 0.9, beta2, 10_000))
        for size, beta2 in ((3, 0.999), (100, 0.999), (100, 0.95))
    ] == [2, 1508, 91]
    assert page.best_fall(0.03, (1, 0.1, 0.01), 200) == 0
    assert page.best_fall(0.3, (1, 0.1, 0.01), 200) > 190
    parts = [page.best_fall(eta, (1, 0.1, 0.01), 400) / 400 for eta in (0.06, 0.07, 0.08)]
    assert parts == pytest.approx([0.1, 0.16, 0.22], abs=0.005)
    ratio = page.total("bert", 1000, 10_000) / page.total("linear", 1000, 10_000)
    assert round(ratio, 2) == 0.91
    assert round(3 / ratio, 1) == 3.3
    weights = page.ema_weights(46_051, 0.9999, "copy")
    assert weights[0] < 0.01 < page.ema_weights(46_050, 0.9999, "copy")[0]


def up(warmup):
    return (warmup - 1) / 2


def fall_mutant(slip=0, most=1.0):
    """Tries the ways down up to a part of the run; the first factor is 1 - slip / D."""

    def answer(eta, curvatures, k):
        ends = []
        for down in range(int(most * k) + 1):
            factors = np.ones(k)
            factors[k - down :] = (down - slip - np.arange(down)) / max(down, 1)
            s = np.full(len(curvatures), 25.0)
            for f in factors:
                s = (1 - eta * f * np.array(curvatures)) ** 2 * s + (eta * f) ** 2
            ends.append(np.dot(curvatures, s))
        return int(np.argmin(ends))

    return answer


MUTANTS = [
    ("schedule-total", lambda rule, w, k: up(w) + (k - w + 1) / 2, "starts at 1 - W/K"),
    ("schedule-total", lambda rule, w, k: k / 2, "not minus a half"),
    ("ema-weights", lambda t, b, s: (1 - b) * b ** np.arange(t - 1.0, -1, -1), "sum to 1"),
    (
        "ema-weights",
        lambda t, b, s: (w := b ** np.arange(t - 1.0, -1, -1)) / w.sum(),
        "undivided",
    ),
    (
        "ema-weights",
        lambda t, b, s: (w := b ** np.arange(float(t))) / w.sum(),
        "newest is last",
    ),
    (
        "burst-cost",
        lambda size, b1, b2, n: sum(
            1 - (1 + 0.1 * 0.9**j * (size - 1)) / math.sqrt(1 + 0.001 * 0.999**j * (size**2 - 1))
            for j in range(n)
        ),
        "written as numbers",
    ),
    (
        "burst-cost",
        lambda size, b1, b2, n: sum(
            1
            - (1 + (1 - b1) * b1**j * (size - 1)) / math.sqrt(1 + (1 - b2) * b2**j * (size**2 - 1))
            for j in range(1, n + 1)
        ),
        "j = 0",
    ),
    ("best-fall", lambda eta, curvatures, k: k // 5, "no decay"),
    ("best-fall", lambda eta, curvatures, k: k, "no decay"),
    ("best-fall", fall_mutant(slip=1), "not 1 - 1/D"),
    ("best-fall", fall_mutant(most=0.5), "long ways down count"),
    ("best-fall", fall_mutant(most=0.5), "D = K is allowed"),
    ("clip-global", lambda g, c: [x * min(1, c / (norm_of(g) + 1e-6)) for x in g], "no constant"),
    ("clip-global", lambda g, c: [x * c / norm_of(g) for x in g], "stay as they are"),
    ("layer-factors", lambda n, d: d ** (n - np.arange(n + 2.0)), "one step down"),
    ("linear-course", lambda w, k: np.arange(k) / k, "table at the start"),
    (
        "linear-course",
        lambda w, k: np.where((i := np.arange(k)) < 4 * w, i / max(4 * w, 1), 1 - i / (4 * k)),
        "or of batches",
    ),
]


def norm_of(gradients):
    return math.sqrt(sum(float((x**2).sum()) for x in gradients))


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    """Each mistake fails, and the hint that names it is among those that are printed."""
    report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())
