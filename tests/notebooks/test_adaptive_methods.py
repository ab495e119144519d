"""The chapter's NumPy against lossbook, torch and optax, its theorems, museum and exercises."""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
import torch
import trajectories
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lossbook import checks, optim

jax.config.update("jax_enable_x64", True)
import optax  # noqa: E402

CHAPTER = "adaptive-methods"
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
EPS = st.sampled_from([1e-8, 1e-3, 1.0])
RHO = st.sampled_from([0.0, 0.5, 0.9, 0.99])
WALKS = settings(max_examples=10)  # a walk has 25 steps, and the shapes differ in each
CHEAP = settings(max_examples=150)


def problem(shape, seed, steps=25):
    """Gradients over six powers of ten, some exactly zero, and a rate that changes."""
    rng = np.random.default_rng([seed, 6])
    sizes = 10.0 ** rng.integers(-5, 2, size=steps)
    gradients = [rng.normal(size=shape) * size for size in sizes]
    if seed % 3 == 0:
        gradients[0] = np.zeros(shape)
    return rng.normal(size=shape), gradients, 0.1 * rng.uniform(0.2, 1, size=steps)


def alone(theta, gradients, rates):
    return trajectories.Problem([theta], [[g] for g in gradients], list(map(float, rates)))


def torch_walk(make, theta, gradients, rates, by_step=lambda t: {}):
    given_ = alone(theta, gradients, rates)
    (p,), path = given_.tensors(), []
    for place in trajectories.positions(
        make([p]), [p], given_, lambda optimizer, t: optimizer.param_groups[0].update(by_step(t))
    ):
        path += place
        assert len(path) == 1 or np.array_equal(p.grad.numpy(), gradients[len(path) - 2])
    return np.array(path)


def optax_walk(name, theta, gradients, rates, **options):
    given_ = alone(theta, gradients, rates)
    transform = getattr(optax, name)(trajectories.optax_rate(given_), **options)
    return np.array([place for (place,) in trajectories.optax_walk(transform, given_)])


def same(path, *others, bound=1e-12):
    assert path.size == 0 or all(checks.travel_difference(path, x) <= bound for x in others)


def steady(page, step, g, n, starts=(0.0, 0.0), **constants):
    """Lengths of n steps under a steady gradient, at the rate 1."""
    return -np.diff(page.walk(step, 0.0, np.full(n, g), np.ones(n), starts, **constants))


# The derivation against three libraries


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), eps=EPS, start=st.sampled_from([0.0, 0.1, 1.0]))
@example(shape=(0,), seed=1, eps=1e-3, start=0.0)
@example(shape=(2, 0, 3), seed=2, eps=1e-3, start=0.1)
def test_adagrad(derivation, shape, seed, eps, start):
    page, given_ = derivation(CHAPTER), problem(shape, seed)
    options = {"eps": eps, "initial_accumulator_value": start}
    same(
        page.walk(page.adagrad_step, *given_, (start,), eps=eps),
        torch_walk(lambda p: optim.Adagrad(p, **options), *given_),
        torch_walk(lambda p: torch.optim.Adagrad(p, **options), *given_),
    )


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), rho=RHO, mu=st.sampled_from([0.0, 0.9]), eps=EPS)
@example(shape=(0,), seed=1, rho=0.9, mu=0.9, eps=1e-3)
def test_rmsprop_as_in_torch(derivation, shape, seed, rho, mu, eps):
    page, given_ = derivation(CHAPTER), problem(shape, seed)
    options = {"alpha": rho, "momentum": mu, "eps": eps}
    same(
        page.walk(page.rmsprop_step, *given_, rho=rho, mu=mu, eps=eps),
        torch_walk(lambda p: optim.RMSprop(p, **options), *given_),
        torch_walk(lambda p: torch.optim.RMSprop(p, **options), *given_),
    )


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("mu", [0.0, 0.9])
@pytest.mark.parametrize("shape", [(7,), (4, 3, 5)])
def test_rmsprop_as_in_tensorflow(derivation, shape, mu, start):
    page, given_ = derivation(CHAPTER), problem(shape, 4)
    options = {"initial_accumulator_value": start, "momentum": mu, "eps": 1e-3}
    same(
        page.walk(page.tensorflow_step, *given_, (start, 0.0), mu=mu, eps=1e-3),
        torch_walk(lambda p: optim.RMSprop.like("tensorflow-1", p, **options), *given_),
        optax_walk("rmsprop", *given_, eps=1e-3, initial_scale=start, momentum=mu),
    )


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), rho=st.sampled_from([0.5, 0.9, 0.99]))
def test_the_centred_form(derivation, shape, seed, rho):
    page, given_ = derivation(CHAPTER), problem(shape, seed)
    options = {"alpha": rho, "centered": True, "eps": 1e-3}
    same(
        page.walk(page.centred_step, *given_, rho=rho, eps=1e-3),
        torch_walk(lambda p: optim.RMSprop(p, **options), *given_),
        torch_walk(lambda p: torch.optim.RMSprop(p, **options), *given_),
        bound=1e-9,  # v - m^2 over six powers of ten
    )


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), rho=RHO, eps=EPS)
@example(shape=(2, 0, 3), seed=2, rho=0.9, eps=1e-3)
def test_adadelta(derivation, shape, seed, rho, eps):
    page, given_ = derivation(CHAPTER), problem(shape, seed)
    same(
        page.walk(page.adadelta_step, *given_, rho=rho, eps=eps),
        torch_walk(lambda p: optim.Adadelta(p, rho=rho, eps=eps), *given_),
        torch_walk(lambda p: torch.optim.Adadelta(p, rho=rho, eps=eps), *given_),
        bound=1e-11,
    )


@pytest.mark.parametrize("shape", [(7,), (4, 3, 5)])
def test_optax(derivation, shape):
    page, given_ = derivation(CHAPTER), problem(shape, 4)
    same(
        page.walk(page.adagrad_step, *given_, (0.1,), eps=0.0),
        optax_walk("adagrad", *given_, initial_accumulator_value=0.1, eps=0.0),
    )
    same(
        page.walk(page.adadelta_step, *given_, eps=1e-3),
        optax_walk("adadelta", *given_, eps=1e-3),
    )
    same(
        page.walk(page.rmsprop_step, *given_, rho=0.9, eps=1e-3),
        optax_walk("rmsprop", *given_, eps=1e-3, eps_in_sqrt=False),
    )


def test_steps_change_nothing_they_are_given(derivation):
    page = derivation(CHAPTER)
    for name, memories in (
        ("adagrad_step", 1),
        ("rmsprop_step", 2),
        ("tensorflow_step", 2),
        ("centred_step", 2),
        ("adadelta_step", 2),
    ):
        state = [np.ones(3), np.arange(3.0), *(np.full(3, 2.0) for _ in range(memories))]
        before = [array.copy() for array in state]
        getattr(page, name)(*state, lr=0.1)
        assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))


# The regret


def test_the_pencil_example(derivation):
    page = derivation(CHAPTER)
    path = page.walk(page.adagrad_step, 0.0, np.ones(4), np.ones(4), (0.0,), eps=0.0)
    assert round(-path[-1], 3) == 2.784
    assert round(float(path[2] - path[3]), 3) == 0.577
    rare = page.walk(page.adagrad_step, 0.0, [0.0, 0, 1, 0], np.ones(4), (0.0,))
    assert np.allclose(rare, [0, 0, 0, -1, -1])


@CHEAP
@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40))
def test_the_lemma_of_the_roots(g):
    """sqrt(G) <= sum g^2/sqrt(G_t) <= 2 sqrt(G), by loops over exact sums."""
    total, middle = Fraction(0), 0.0
    for x in g:
        total += x * x
        middle += x * x / math.sqrt(total) if total else 0.0
    assert math.sqrt(total) * (1 - 1e-12) <= middle <= 2 * math.sqrt(total) * (1 + 1e-12)


@CHEAP
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.sampled_from([0.2, 0.5, 0.8]))
def test_the_integral_of_the_powers(g, p):
    total = np.cumsum(np.square(g))
    left = np.sum(np.square(g) * total**-p)
    assert left <= total[-1] ** (1 - p) / (1 - p) * (1 + 1e-9)


def least_cost(z):
    """The best fixed point of a sum of |θ - z|, by trying every target."""
    return min(sum(abs(a - b) for b in z) for a in z) if len(z) else 0.0


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 60),
    words=st.integers(1, 4),
    width=st.sampled_from([0.1, 1.0, 20.0]),
    hostile=st.booleans(),
)
def test_no_regret_exceeds_the_bound(derivation, seed, steps, words, width, hostile):
    """Played again with a loop; the enemy answers every move from the other end."""
    rng = np.random.default_rng([seed, 1])
    present = rng.random((steps, words)) < rng.random(words)
    targets, theta, G, paid = np.zeros((steps, words)), [0.0] * words, [0.0] * words, 0.0
    for t in range(steps):
        for i in range(words):
            z = width * rng.random()
            if hostile:
                z = width if theta[i] < width / 2 else 0.0
            targets[t, i] = z
            if not present[t, i]:
                continue
            paid += abs(theta[i] - z)
            g = (theta[i] > z) - (theta[i] < z)
            G[i] += g * g
            if G[i]:
                move = width / math.sqrt(2) * g / math.sqrt(G[i])
                theta[i] = min(max(theta[i] - move, 0.0), width)
    least = sum(least_cost(targets[present[:, i], i]) for i in range(words))
    bound = math.sqrt(2) * width * sum(math.sqrt(x) for x in G)
    assert paid - least <= bound * (1 + 1e-9) + 1e-9
    regret, printed = derivation(CHAPTER).adagrad_regret(targets, present, width)
    assert math.isclose(regret, paid - least, rel_tol=1e-9, abs_tol=1e-9 * width)
    assert math.isclose(printed, bound, rel_tol=1e-9, abs_tol=1e-12)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), power=st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_the_lemma_for_any_rates(seed, power):
    """Quadratic losses, a cut interval, rates c G^-p that never grow."""
    rng = np.random.default_rng([seed, 2])
    z, a, c = rng.random(40), rng.exponential(size=40), rng.exponential()
    theta, G, paid, second = 0.0, 0.0, 0.0, 0.0
    for target, weight in zip(z, a, strict=True):
        paid += weight * (theta - target) ** 2
        g = 2 * weight * (theta - target)
        G += g * g
        rate = c * G**-power
        second += rate * g * g / 2
        theta = min(max(theta - rate * g, 0.0), 1.0)
    best = np.sum(a * z) / np.sum(a)
    assert paid - np.sum(a * (best - z) ** 2) <= 1 / (2 * rate) + second + 1e-9


def test_what_zipf_gains():
    n = 1 / np.arange(1.0, 50_001)
    quotient = np.sqrt(n).sum() / math.sqrt(len(n) * n.sum())
    assert round(quotient, 2) == 0.59 and round(math.sqrt(2) * quotient, 2) == 0.84


# RMSProp


def test_how_long_sums_and_averages_remember(derivation):
    page = derivation(CHAPTER)
    gradients = np.r_[np.ones(100), np.full(1300, 0.01)]
    path = page.walk(page.adagrad_step, 0.0, gradients, np.ones(1400), (0.0,))
    assert math.isclose(path[100] - path[101], 0.001, rel_tol=1e-3)
    assert round(100 / 0.01**2) == 1_000_000
    assert round(math.log(1e-4) / math.log(0.99)) == 916
    path = page.walk(page.rmsprop_step, 0.0, gradients, np.ones(1400), rho=0.99, eps=0.0)
    after = -np.diff(path)[99:]  # n steps after the fall
    assert [round(float(after[n]), 2) for n in (916, 1200)] == [0.78, 0.98]
    assert round(math.log(2) / math.log(1 / 0.99)) == 69


def test_a_young_average_is_a_sum(derivation):
    """For t far below the window RMSProp with η is AdaGrad with η/sqrt(1 - ρ)."""
    page = derivation(CHAPTER)
    gradients, rates = np.random.default_rng(0).normal(size=30), np.ones(30)
    one = page.walk(page.rmsprop_step, 0.0, gradients, rates, rho=1 - 1e-6, eps=0.0)
    two = page.walk(page.adagrad_step, 0.0, gradients, rates * 1000, (0.0,), eps=0.0)
    assert checks.travel_difference(one, two) < 1e-4


@CHEAP
@given(x=st.floats(0, 1e6), eps=st.floats(1e-12, 1e3))
def test_the_bounds_of_the_placement(derivation, x, eps):
    q = derivation(CHAPTER).placement(x, eps)
    assert min(1, math.sqrt(eps)) * (1 - 1e-12) <= q <= math.sqrt(1 + eps) * (1 + 1e-12)


@pytest.mark.parametrize("eps", [1.0, 0.01, 1e-8])
def test_where_the_placement_matters(derivation, eps):
    page = derivation(CHAPTER)
    assert math.isclose(page.placement(1.0, eps), math.sqrt(1 + eps), rel_tol=1e-12)
    assert math.isclose(page.placement(0.0, eps), math.sqrt(eps), rel_tol=1e-12)
    assert 0.7 < page.placement(eps, eps) / (2 * math.sqrt(eps)) <= 1
    inside = steady(page, page.tensorflow_step, eps, 400, rho=0.9, eps=eps)
    outside = steady(page, page.rmsprop_step, eps, 400, rho=0.9, eps=eps)
    assert math.isclose(inside[-1] / outside[-1], page.placement(eps, eps), rel_tol=1e-9)


def test_inceptions_constant_is_the_harmless_one(derivation):
    q = derivation(CHAPTER).placement(np.geomspace(1e-9, 1e9, 2001), 1.0)
    assert q.min() >= 1 and q.max() <= math.sqrt(2) * (1 + 1e-12)


@pytest.mark.parametrize(("rho", "first"), [(0.99, 10.0), (0.9, 3.162)])
def test_the_first_steps_from_0_and_from_1(derivation, rho, first):
    page, t = derivation(CHAPTER), np.arange(1, 200)
    zero = steady(page, page.rmsprop_step, 1e-3, 199, rho=rho, eps=0.0)
    assert np.allclose(zero, 1 / np.sqrt(1 - rho**t), rtol=1e-10)
    assert round(zero[0], 3) == first
    one = steady(page, page.rmsprop_step, 1e-3, 199, (1.0, 0.0), rho=rho, eps=0.0)
    assert np.allclose(one, 1e-3 / np.sqrt(rho**t + (1 - rho**t) * 1e-6), rtol=1e-10)
    assert round(zero[0] / one[0]) == {0.9: 3000, 0.99: 9950}[rho]
    assert math.isclose(zero[0] / one[0], math.sqrt(rho / (1 - rho)) / 1e-3, rel_tol=1e-6)
    waits = 2 * math.log(1000) / math.log(1 / rho)
    assert round(waits) == {0.9: 131, 0.99: 1375}[rho]
    if rho == 0.9:
        assert math.isclose(one[130], 1 / math.sqrt(2), rel_tol=0.02)


def test_coasting_after_a_cut(derivation):
    page = derivation(CHAPTER)
    rates = np.r_[np.ones(500), np.full(20, 0.1)]
    for step, expected in (
        (page.rmsprop_step, np.full(20, 0.1)),
        (page.tensorflow_step, 0.1 + 0.9 * 0.9 ** np.arange(1, 21)),
    ):
        path = page.walk(step, 0.0, np.ones(520), rates, rho=0.9, mu=0.9, eps=0.0)
        assert np.allclose(-np.diff(path)[500:] / 10, expected, rtol=1e-9)
    assert round(0.1 + 0.9 * 0.9**10, 2) == 0.41


@CHEAP
@given(
    g=st.lists(st.integers(-100, 100), min_size=1, max_size=20),
    rho=st.fractions(0, Fraction(19, 20), max_denominator=20),
)
def test_no_exact_variance_is_negative(g, rho):
    v = m = Fraction(0)
    for x in g:
        v, m = rho * v + (1 - rho) * x * x, rho * m + (1 - rho) * x
        assert v - m * m >= 0


def test_a_steady_gradient_has_no_variance():
    rho, v, m = Fraction(9, 10), Fraction(0), Fraction(0)
    for t in range(1, 30):
        v, m = rho * v + (1 - rho) * 49, rho * m + (1 - rho) * 7
        assert v - m * m == rho**t * (1 - rho**t) * 49
    assert round(0.9 ** (-100 / 2)) == 194
    assert 0.9**135 < 1e-6


def test_a_straight_road_is_limited_by_epsilon(derivation):
    page = derivation(CHAPTER)
    moves = steady(page, page.centred_step, 0.5, 3000, rho=0.9, eps=1e-3)
    assert math.isclose(moves[-1], 0.5 / 1e-3, rel_tol=1e-3)


# AdaDelta


@pytest.mark.parametrize(("rho", "eps"), [(0.9, 1e-6), (0.95, 1e-7), (0.5, 1e-3)])
def test_adadeltas_speed_is_its_epsilon(derivation, rho, eps):
    page, n = derivation(CHAPTER), 600
    moves = steady(page, page.adadelta_step, 1e8, n, rho=rho, eps=eps)
    assert math.isclose(moves[0], math.sqrt(eps / (1 - rho)), rel_tol=1e-9)
    y = eps
    for t in range(1, n + 1):
        assert math.isclose(moves[t - 1] ** 2, y / (1 - rho**t), rel_tol=1e-9)
        y = (rho + (1 - rho) / (1 - rho**t)) * y + (1 - rho) * eps
    slope = np.diff(moves[-200:] ** 2)
    assert np.allclose(slope, (1 - rho) * eps, rtol=1e-3)
    quarter = steady(page, page.adadelta_step, 1e8, n, rho=rho, eps=eps / 4)
    assert np.allclose(quarter, moves / 2, rtol=1e-9)


def test_adadelta_on_small_gradients_is_gradient_descent(derivation):
    page = derivation(CHAPTER)
    gradients = 1e-7 * np.random.default_rng(0).normal(size=50)
    path = page.walk(page.adadelta_step, 0.0, gradients, np.ones(50))
    assert np.allclose(np.diff(path), -gradients, rtol=1e-6)


def test_adadeltas_printed_numbers(derivation):
    page = derivation(CHAPTER)
    moves = steady(page, page.adadelta_step, 1.0, 300)
    assert round(moves[0], 4) == 0.0032
    assert int(np.searchsorted(np.cumsum(moves), 1)) + 1 == 214
    keras = 1e-3 * steady(page, page.adadelta_step, 1.0, 1, rho=0.95, eps=1e-7)
    assert round(float(keras[0]), 7) == 0.0000014


def test_rare_gradients(derivation):
    """Each occasion: 1/sqrt(n) for AdaGrad; nearly ten rates for RMSProp; no motor for AdaDelta."""
    page = derivation(CHAPTER)
    gradients = np.zeros(2000)
    gradients[99::100] = 1.0
    occasions = {}
    for name, starts in (("adagrad", (0.0,)), ("rmsprop", (0.0, 0.0)), ("adadelta", (0.0, 0.0))):
        path = page.walk(getattr(page, f"{name}_step"), 0.0, gradients, np.ones(2000), starts)
        occasions[name] = -np.diff(path)[99::100]
    assert np.allclose(occasions["adagrad"], 1 / np.sqrt(np.arange(1, 21)))
    assert round(1 - 0.99**100, 2) == 0.63  # forgotten between two occasions
    assert ((occasions["rmsprop"] > 7.9) & (occasions["rmsprop"] <= 10)).all()
    assert np.allclose(occasions["adadelta"], occasions["adadelta"][0], rtol=1e-2)


# The museum


MUSEUM = {
    "ported": ("rmsprop-run", "gradients of the size of ε"),
    "started_at_one": ("rmsprop-run", "the first steps of a steady gradient"),
    "half_life_of_the_textbook": ("half-life", "ρ = 0.9"),
    "unguarded_root": ("centred-root", "the same gradient 200 times, in float32"),
}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_its_check(museum, bug):
    grade, case = MUSEUM[bug]
    assert case in checks.check(grade, getattr(museum(CHAPTER), bug)).failures


def guarded(v, m, eps):
    return np.sqrt(np.maximum(v - m**2, 0)) + eps


def half_life(rho):
    return math.log(2) / math.log(1 / rho)


def test_the_right_code_passes_the_same_checks(museum):
    assert checks.check("rmsprop-run", museum(CHAPTER).rmsprop_run).passed
    assert checks.check("half-life", half_life).passed
    assert checks.check("centred-root", guarded).passed


def test_a_port_passes_where_tests_are_soft(museum):
    """Gradients of size 1 and the default constant hide the placement."""
    page, rng = museum(CHAPTER), np.random.default_rng(0)
    easy = rng.choice([-1.0, 1.0], size=(30, 8)) * rng.uniform(0.5, 1.5, size=(30, 8))
    for eps, gap in ((1e-8, 1e-6), (1e-2, 1e-3)):
        options = {"rho": 0.99, "mu": 0.0, "eps": eps}
        one, two = (f(easy, np.full(30, 0.1), **options) for f in (page.rmsprop_run, page.ported))
        found = checks.travel_difference(one, two)
        assert found <= gap if eps == 1e-8 else found > gap


# The exercises


SOLUTIONS = {
    "port-eps": "port_eps",
    "hidden-warm-up": "hidden_warm_up",
    "adagrad-from-rmsprop": "adagrad_from_rmsprop",
    "one-rate-or-many": "one_rate_or_many",
    "adadelta-way": "adadelta_way",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


def test_the_printed_answers(solutions):
    assert solutions(CHAPTER).hidden_warm_up(1e-3, 0.9, 1.0, 0.05) == 153
    way = solutions(CHAPTER).adadelta_way
    assert way(214, 0.9, 1e-6) >= 1 > way(213, 0.9, 1e-6)
    assert way(28_119, 0.9, 1e-6) >= 1000 > way(28_118, 0.9, 1e-6)
    assert round(28_119 / 214) == 131
    roots, d = np.array([1.0, 4.0, 9.0, 100.0]), 4
    one, many = solutions(CHAPTER).one_rate_or_many(roots, 1.0)
    deviates_less = np.sqrt(roots).std() < np.sqrt(roots).mean()
    assert (many > one) == deviates_less == (np.sqrt(roots).sum() ** 2 > d / 2 * roots.sum())


@CHEAP
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_when_many_rates_have_the_larger_bound(sums):
    sums = np.array(sums)
    one, many = math.sqrt(len(sums) * sums.sum()), math.sqrt(2) * np.sqrt(sums).sum()
    spread = np.sqrt(sums).std() - np.sqrt(sums).mean()
    assume(abs(spread) > 1e-9)
    assert (many > one) == (spread < 0)


@WALKS
@given(seed=st.integers(0, 999), eps=EPS)
def test_adagrad_out_of_rmsprop(solutions, seed, eps):
    answer, given_ = solutions(CHAPTER).adagrad_from_rmsprop, problem((3, 2), seed)

    def by_step(t):
        lr, rho, constant = answer(float(given_[2][t - 1]), eps, t)
        return {"lr": lr, "alpha": rho, "eps": constant}

    for kind in (torch.optim.RMSprop, optim.RMSprop):
        same(
            torch_walk(kind, *given_, by_step),
            torch_walk(lambda p: torch.optim.Adagrad(p, eps=eps), *given_),
        )


def test_a_ported_constant_makes_the_same_step(derivation, solutions):
    page, answer = derivation(CHAPTER), solutions(CHAPTER).port_eps
    for x in (1e-6, 1e-3, 1.0):
        inside = steady(page, page.tensorflow_step, x, 500, rho=0.9, eps=0.01)[-1]
        outside = steady(page, page.rmsprop_step, x, 500, rho=0.9, eps=answer(x, 0.01))[-1]
        assert math.isclose(inside, outside, rel_tol=1e-9)


def first_inside(length):
    def answer(g, rho, start, tolerance):
        for t in range(1, 20_000):
            if abs(length(abs(g), rho**t, start) - 1) < tolerance:
                return t
        return None

    return answer


MUTANTS = [
    ("port-eps", lambda x, eps: math.sqrt(eps), "x + ε'"),
    ("port-eps", lambda x, eps: math.sqrt(x**2 + eps) - x, "nearly equal"),
    ("port-eps", lambda x, eps: math.sqrt(x + eps) - math.sqrt(x), "root mean square"),
    (
        "hidden-warm-up",
        lambda g, rho, start, tau: math.ceil(2 * math.log(1 / abs(g)) / math.log(1 / rho)),
        "ρ^t against g²",
    ),
    (
        "hidden-warm-up",
        first_inside(lambda g, p, start: g / math.sqrt(p + (1 - p) * g * g)),
        "From 0",
    ),
    (
        "hidden-warm-up",
        first_inside(lambda g, p, start: min(1, g / math.sqrt(p * start + (1 - p) * g * g))),
        "not too short",
    ),
    ("adagrad-from-rmsprop", lambda lr, eps, t: (lr / math.sqrt(t), 1 - 1 / t, eps), "ε one too"),
    ("adagrad-from-rmsprop", lambda lr, eps, t: (lr / math.sqrt(t), 1 - 1 / t, eps), "both need"),
    (
        "adagrad-from-rmsprop",
        lambda lr, eps, t: (lr / math.sqrt(t), t / (t + 1), eps / math.sqrt(t)),
        "the weight ½",
    ),
    (
        "adagrad-from-rmsprop",
        lambda lr, eps, t: (lr / t, 1 - 1 / t, eps / math.sqrt(t)),
        "root of t",
    ),
    (
        "one-rate-or-many",
        lambda G, D: (D * math.sqrt(G.sum()), math.sqrt(2) * D * np.sqrt(G).sum()),
        "One rate serves d",
    ),
    (
        "one-rate-or-many",
        lambda G, D: (D * math.sqrt(G.sum()), math.sqrt(2) * D * np.sqrt(G).sum()),
        "One rate: √(d ΣG)",
    ),
    (
        "one-rate-or-many",
        lambda G, D: (D * math.sqrt(len(G) * G.sum()), D * np.sqrt(G).sum()),
        "factor √2",
    ),
    (
        "one-rate-or-many",
        lambda G, D: (
            D * math.sqrt(np.count_nonzero(G) * G.sum()),
            math.sqrt(2) * D * np.sqrt(G).sum(),
        ),
        "counts in d",
    ),
    ("adadelta-way", lambda n, rho, eps: n * math.sqrt(eps / (1 - rho)), "enters u"),
    (
        "adadelta-way",
        lambda n, rho, eps: 2 / 3 * math.sqrt((1 - rho) * eps) * n**1.5,
        "first step is",
    ),
]


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    """Each mistake fails, and the hint that names it is among those that are printed."""
    report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())


def wrong_run(slip):
    def run(gradients, rates, *, rho, mu, eps):
        theta = np.zeros(gradients.shape[1:])
        v, b = np.zeros_like(theta), np.zeros_like(theta)
        for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), start=1):
            if slip == "rho as a number":
                rho = 0.99
            old, v = v, rho * v + (1 - rho) * g**2
            size = np.sqrt(v) + eps
            if slip == "old average":
                size = np.sqrt(old) + eps
            if slip == "corrected":
                size = np.sqrt(v / (1 - rho**t)) + eps
            if slip == "no root":
                size = v + eps
            if slip == "no eps":
                size = np.sqrt(v)
            with np.errstate(all="ignore"):
                b = mu * b + (lr * g if slip == "rate inside" else g) / size
            if slip == "averaged buffer":
                b = b - mu * g / size
            theta = theta - (b if slip == "rate inside" else lr * b)
            run.path.append(theta)
        return np.array([np.zeros_like(theta), *run.path[-len(rates) :]])

    run.path = []
    return run


SLIPS = ["rho as a number", "old average", "corrected", "no root", "no eps", "rate inside"]


@pytest.mark.parametrize("slip", [*SLIPS, "averaged buffer"])
def test_the_check_of_a_run_catches_other_slips(slip):
    assert checks.check("rmsprop-run", wrong_run(None)).passed
    assert not checks.check("rmsprop-run", wrong_run(slip)).passed
