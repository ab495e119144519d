"""The chapter's NumPy against lossbook, torch and optax, its theorems, museum and exercises."""

from __future__ import annotations

import math
import re

import chapters
import jax
import nbformat
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lossbook import checks, optim

jax.config.update("jax_enable_x64", True)
import optax  # noqa: E402

CHAPTER = "gradient-descent"
SHAPES = st.lists(st.integers(0, 4), min_size=0, max_size=3).map(tuple)
MOMENTUM = st.sampled_from([0.0, 0.5, 0.9, 0.99])
WALKS = settings(max_examples=12)
STEPS = 26


def problem(shape, seed):
    """Gradients over six powers of ten, some exactly zero, and a rate that changes."""
    rng = np.random.default_rng([seed, 5])
    sizes = 10.0 ** rng.integers(-5, 2, size=STEPS)
    gradients = [rng.normal(size=shape) * size for size in sizes]
    if seed % 3 == 0:
        gradients[0] = np.zeros(shape)
    return np.asarray(rng.normal(size=shape)), gradients, 0.1 * rng.uniform(0.2, 1, size=STEPS)


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


def optax_walk(transform, theta, gradients):
    theta = jax.numpy.asarray(theta)
    state, path = transform.init(theta), [np.asarray(theta)]
    for g in gradients:
        update, state = transform.update(jax.numpy.asarray(g), state, theta)
        theta = optax.apply_updates(theta, update)
        path.append(np.asarray(theta))
    return np.array(path)


@WALKS
@given(
    shape=SHAPES,
    seed=st.integers(0, 999),
    momentum=MOMENTUM,
    dampening=st.sampled_from([0.0, 0.3, 0.9]),
    nesterov=st.booleans(),
)
@example(shape=(0,), seed=1, momentum=0.9, dampening=0.0, nesterov=True)
@example(shape=(4, 3, 2), seed=0, momentum=0.9, dampening=0.9, nesterov=False)
def test_the_derivation_equals_lossbook_and_torch(
    derivation, shape, seed, momentum, dampening, nesterov
):
    assume(not nesterov or momentum > 0)
    page = derivation(CHAPTER)
    # torch refuses both at once, and ignores a dampening of no momentum
    dampening = 0.0 if nesterov or momentum == 0 else dampening
    options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
    theta, gradients, rates = problem(shape, seed)
    path = page.walk(page.momentum_step, theta, gradients, rates, **options)
    for sgd in (optim.SGD, torch.optim.SGD):
        other = torch_walk(lambda p, s=sgd: s(p, **options), theta, gradients, rates)
        assert path.size == 0 or checks.travel_difference(path, other) <= 1e-12


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_the_derivation_equals_optax(derivation, shape, nesterov):
    """Outside as optax.sgd has it, inside with the two links exchanged."""
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed=4)
    options = {"momentum": 0.9, "nesterov": nesterov}
    table = jax.numpy.asarray(rates)
    trace = optax.trace(0.9, nesterov=nesterov)
    by_rate = optax.scale_by_learning_rate(lambda count: table[count])
    for step, chain in (
        (page.momentum_step, optax.sgd(lambda count: table[count], **options)),
        (page.velocity_step, optax.chain(by_rate, trace)),
    ):
        path = page.walk(step, theta, gradients, rates, **options)
        other = optax_walk(chain, theta, gradients)
        assert checks.travel_difference(path, other) <= 1e-12


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), momentum=MOMENTUM, nesterov=st.booleans())
def test_the_velocity_form_equals_lossbook(derivation, shape, seed, momentum, nesterov):
    assume(not nesterov or momentum > 0)
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed)
    assume(theta.size)
    options = {"momentum": momentum, "nesterov": nesterov}
    path = page.walk(page.velocity_step, theta, gradients, rates, **options)
    ours = torch_walk(
        lambda p: optim.SGD(p, lr_placement="inside", **options), theta, gradients, rates
    )
    assert checks.travel_difference(path, ours) <= 1e-12


def test_extreme_gradients_stay_finite(derivation):
    page = derivation(CHAPTER)
    sizes = np.array([1e-300, 0.0, 1e150])
    for nesterov in (False, True):
        options = {"momentum": 0.9, "nesterov": nesterov}
        path = page.walk(page.momentum_step, np.ones(3), [sizes] * 5, [0.1] * 5, **options)
        other = torch_walk(
            lambda p, o=options: optim.SGD(p, **o), np.ones(3), [sizes] * 5, [0.1] * 5
        )
        assert np.isfinite(path).all()
        assert checks.travel_difference(path, other) <= 1e-12
        assert (path[:, 1] == 1).all()


def test_steps_change_nothing_they_are_given(museum):
    page = museum(CHAPTER)
    for name in ("momentum_step", "velocity_step", "rate_inside", "dampened_first", "wrong_sign"):
        state = [np.ones(3), np.arange(3.0), np.full(3, 0.5)]
        before = [array.copy() for array in state]
        getattr(page, name)(*state, 2, lr=0.1, momentum=0.9, nesterov=True)
        assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))


# The pencil


def test_the_pencil_example(derivation):
    page = derivation(CHAPTER)
    theta, b, path = np.array([1.0, 1.0]), np.zeros(2), []
    for t in range(1, 3):
        g = np.array([10.0, 1.0]) * theta
        theta, b = page.momentum_step(theta, g, b, t, lr=0.2, momentum=0.5)
        path.append(theta)
    assert checks.difference(path, [[-1, 4 / 5], [0, 27 / 50]]) <= 1e-15
    assert checks.difference(b, [-5, 13 / 10]) <= 1e-15
    for lr, factors in ((1 / 10, (0, 9 / 10)), (1 / 5, (-1, 4 / 5)), (2 / 11, (-9 / 11, 9 / 11))):
        new = page.gradient_step(np.ones(2), np.array([10.0, 1.0]), lr)
        assert np.abs(new - factors).max() <= 1e-15


# The theorems


def curvatures_of(seed, n=6):
    return np.sort(np.random.default_rng(seed).uniform(0.05, 20, size=n))


@given(low=st.floats(1e-3, 10), ratio=st.floats(1, 1e5), other=st.floats(0.01, 1.99))
def test_no_rate_beats_the_best(derivation, low, ratio, other):
    page = derivation(CHAPTER)
    high = low * ratio
    lr, factor = page.best_rate(low, high)
    assert math.isclose(max(abs(1 - lr * low), abs(1 - lr * high)), factor, abs_tol=1e-12)
    assert math.isclose(factor, (ratio - 1) / (ratio + 1), abs_tol=1e-12)
    rival = other / high
    assert max(abs(1 - rival * low), abs(1 - rival * high)) >= factor - 1e-12


@given(
    lr=st.floats(1e-3, 1.0),
    momentum=st.floats(-0.99, 0.99),
    curvature=st.floats(0.01, 10),
)
def test_the_spectral_radius_is_the_matrixs(derivation, lr, momentum, curvature):
    """Double roots of a matrix are known to half the digits only."""
    companion = np.array([[1 + momentum - lr * curvature, -momentum], [1, 0]])
    expected = np.abs(np.linalg.eigvals(companion)).max()
    found = derivation(CHAPTER).spectral_radius(lr, momentum, curvature)
    assert math.isclose(found, expected, abs_tol=2e-7)
    stable = 0 < lr * curvature < 2 * (1 + momentum)
    assume(abs(expected - 1) > 1e-9)
    assert (expected < 1) == stable


@settings(max_examples=100)
@given(
    low=st.floats(0.01, 10),
    ratio=st.floats(1.01, 1e4),
    lr=st.floats(0.01, 4),
    momentum=st.floats(-0.9, 0.999),
)
def test_no_ball_beats_the_best(derivation, low, ratio, lr, momentum):
    page = derivation(CHAPTER)
    high = low * ratio
    rate, best, radius = page.best_ball(low, high)
    assert math.isclose(best, radius**2, rel_tol=1e-12)
    for curvature in np.linspace(low, high, 7):
        assert page.spectral_radius(rate, best, curvature) <= radius + 1e-6
    rival = max(page.spectral_radius(lr / high, momentum, value) for value in (low, high))
    assert rival >= radius - 1e-12


def quadratic_walk(make, spectrum, steps, lr):
    p = torch.ones(len(spectrum), dtype=torch.float64, requires_grad=True)
    optimizer, path = make([p]), [p.detach().numpy().copy()]
    optimizer.param_groups[0]["lr"] = lr
    for _ in range(steps):
        p.grad = torch.tensor(spectrum) * p.detach()
        optimizer.step()
        path.append(p.detach().numpy().copy())
    return np.array(path)


@pytest.mark.parametrize("seed", range(3))
def test_torch_contracts_as_derived(derivation, seed):
    page, spectrum = derivation(CHAPTER), curvatures_of(seed)
    lr, factor = page.best_rate(spectrum[0], spectrum[-1])
    path = quadratic_walk(torch.optim.SGD, spectrum, 60, lr)
    assert np.allclose(path, (1 - lr * spectrum) ** np.arange(61)[:, None], rtol=1e-9, atol=1e-12)
    assert (
        np.linalg.norm(path[1:], axis=1) <= factor * np.linalg.norm(path[:-1], axis=1) + 1e-12
    ).all()
    for share, stable in ((0.99, True), (1.01, False)):
        end = quadratic_walk(torch.optim.SGD, spectrum, 500, share * 2 / spectrum[-1])[-1, -1]
        assert (abs(end) < 1) == stable
    for share, stable in ((0.99, True), (1.01, False)):
        lr = share * 2 * 1.9 / spectrum[-1]
        ball = quadratic_walk(lambda p: torch.optim.SGD(p, momentum=0.9), spectrum, 1500, lr)
        assert (np.abs(ball[-1]).max() < 1) == stable


def test_torchs_nesterov_is_stable_up_to_the_derived_limit():
    """eta lambda < 2 (1 + mu) / (1 + 2 mu)."""
    limit = 2 * 1.9 / 2.8
    for share, stable in ((0.99, True), (1.01, False)):
        end = quadratic_walk(
            lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True),
            *(np.ones(1), 1500, share * limit),
        )[-1, 0]
        assert (abs(end) < 1) == stable


@WALKS
@given(seed=st.integers(0, 999), momentum=st.sampled_from([0.3, 0.9, 0.99]))
def test_the_look_ahead_identity(derivation, seed, momentum):
    """Sutskever's form on a random quadratic; torch, lossbook and any schedule inside."""
    page = derivation(CHAPTER)
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    matrix, start = basis @ np.diag(rng.uniform(0.1, 10, 5)) @ basis.T, rng.normal(size=5)
    varying = rng.uniform(0.005, 0.03, size=STEPS)

    def stored(make, rates):
        p = torch.tensor(start, requires_grad=True)
        optimizer, path = make([p]), [start]
        for lr in rates:
            p.grad = torch.tensor(matrix) @ p.detach()
            optimizer.param_groups[0]["lr"] = float(lr)
            optimizer.step()
            path.append(p.detach().numpy().copy())
        return np.array(path)

    def ahead(rates):
        theta, v, path = start, np.zeros(5), [start]
        for lr in rates:
            options = {"lr": lr, "momentum": momentum}
            theta, v = page.nesterov_step(lambda x: matrix @ x, theta, v, **options)
            path.append(theta + momentum * v)
        return np.array(path)

    options = {"momentum": momentum, "nesterov": True}
    constant = np.full(STEPS, 0.02)
    # One rounding per operation on numbers of size 5: 1e-14 for the whole walk.
    bound = 1e-14 * max(1, np.abs(start).max())
    for make in (torch.optim.SGD, optim.SGD):
        gap = np.abs(stored(lambda p, m=make: m(p, **options), constant) - ahead(constant))
        assert gap.max() <= bound
    inside = stored(lambda p: optim.SGD(p, lr_placement="inside", **options), varying)
    assert np.abs(inside - ahead(varying)).max() <= bound
    outside = stored(lambda p: torch.optim.SGD(p, **options), varying)
    assert np.abs(outside - ahead(varying)).max() > 1e-6


@given(t=st.integers(1, 60), momentum=st.floats(0.01, 0.99))
def test_torchs_dampened_weights_sum_to_one(t, momentum):
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1.0, momentum=momentum, dampening=momentum)
    for _ in range(t):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert math.isclose(optimizer.state[p]["momentum_buffer"].item(), 1.0, rel_tol=1e-12)


def measured_variance(lr, momentum, curvature, noise, runs=20_000, steps=300):
    rng = np.random.default_rng(0)
    c = b = np.zeros(runs)
    for _ in range(steps):
        b = momentum * b + curvature * c + math.sqrt(noise) * rng.normal(size=runs)
        c = c - lr * b
    return c.var()


@pytest.mark.parametrize("case", [(0.1, 0.0, 1.0, 1.0), (0.5, 0.0, 2.0, 4.0), (0.1, 0.8, 1.0, 2.0)])
def test_the_noise_floor_is_measured(solutions, case):
    """20,000 runs know a variance to one per cent; a bound of four standard errors."""
    lr, momentum, curvature, noise = case
    floor = solutions(CHAPTER).ball_variance(*case)
    assert math.isclose(measured_variance(*case), floor, rel_tol=4 * math.sqrt(2 / 20_000))
    if momentum == 0:
        assert math.isclose(floor, lr * noise / (curvature * (2 - lr * curvature)), rel_tol=1e-12)


def test_the_variance_of_a_batch():
    rng = np.random.default_rng(1)
    draws = 3 * rng.normal(size=(40_000, 16))
    for batch in (1, 4, 16):
        assert math.isclose(draws[:, :batch].mean(1).var(), 9 / batch, rel_tol=0.03)


# Printed numbers


def test_the_printed_numbers(derivation):
    page = derivation(CHAPTER)
    assert round(page.best_rate(1, 10)[1], 3) == 0.818
    lr, momentum, radius = page.best_ball(1, 10)
    assert [round(x, 3) for x in (lr, momentum, radius)] == [0.231, 0.270, 0.519]
    assert round(1 - 1 / math.sqrt(10), 3) == 0.684
    million = math.log(1e6)
    assert math.ceil(million / -math.log(page.best_rate(1, 1e4)[1])) == 69078
    assert math.ceil(million / -math.log(page.best_ball(1, 1e4)[2])) == 691
    assert math.ceil(million / (2 * math.log(101 / 99))) == 346
    assert round(million / (2 * math.log(101 / 99)), 1) == 345.4


def lengths_of_the_error(page, lr, momentum, steps=2000):
    """Over its length at the start, for the curvatures 1 and 10,000 from (1, 1)."""
    theta, b, lengths = np.ones(2), np.zeros(2), []
    for t in range(1, steps + 1):
        g = np.array([1.0, 1e4]) * theta
        theta, b = page.momentum_step(theta, g, b, t, lr=lr, momentum=momentum)
        lengths.append(np.linalg.norm(theta) / math.sqrt(2))
    return np.array(lengths)


def steps_for_a_million(lengths):
    """After how many steps the error is a millionth, and stays below it."""
    return int(np.nonzero(lengths > 1e-6)[0][-1]) + 2


def test_the_price_of_the_double_roots(derivation):
    """The optimum of the heavy ball for a condition number of 10,000, and what is near it."""
    page = derivation(CHAPTER)
    lr, momentum, _ = page.best_ball(1, 1e4)
    lengths = lengths_of_the_error(page, lr, momentum)
    assert round(lengths.max()) == 26
    assert steps_for_a_million(lengths) == 1056
    cautious = lengths_of_the_error(page, lr, 1.01 * momentum)
    assert steps_for_a_million(cautious) == 1066 and cautious.max() < lengths.max() / 2
    cautious = lengths_of_the_error(page, 0.99 * lr, momentum)
    assert steps_for_a_million(cautious) == 843 and cautious.max() < lengths.max() / 2


def test_the_best_ball_stands_at_the_edge(derivation):
    page = derivation(CHAPTER)
    for kappa in (4.0, 10.0, 1e4):
        lr, momentum, _ = page.best_ball(1, kappa)
        limit = 2 * (1 + momentum) / kappa
        assert math.isclose(limit / lr, 1 + 1 / kappa, rel_tol=1e-12)
    assert page.spectral_radius(1.0002 * lr, momentum, 1e4) > 1
    assert page.spectral_radius(lr, 0.9997 * momentum, 1e4) > 1
    for rate, mu in ((0.99, 1), (1, 1.01)):  # the other side
        radii = page.spectral_radius(rate * lr, mu * momentum, np.array([1.0, 1e4]))
        assert math.sqrt(momentum) < radii.max() < 0.986


def test_the_paths_of_the_figure(derivation):
    """The ball is behind Nesterov for nine of sixteen steps, and ends lowest."""
    page, bowl = derivation(CHAPTER), np.array([10.0, 1.0])
    usual, losses = (math.sqrt(10) - 1) / (math.sqrt(10) + 1), []
    ball = dict(zip(("lr", "momentum"), page.best_ball(1, 10)[:2], strict=True))
    for options in ({"lr": 2 / 11}, ball, {"lr": 0.1, "momentum": usual, "nesterov": True}):
        theta, b, path = np.ones(2), np.zeros(2), []
        for t in range(1, 17):
            theta, b = page.momentum_step(theta, bowl * theta, b, t, **options)
            path.append(np.sum(bowl * theta**2) / 2)
        losses.append(path)
    plain, ball, nesterov = np.array(losses)
    assert list(ball > nesterov) == [True] * 9 + [False] * 7
    assert ball[-1] < nesterov[-1] < plain[-1]


def test_the_speed_of_a_momentum_of_095(derivation):
    """At any rate between 0.001 and 0.38 both directions swing with the root of μ."""
    radii = derivation(CHAPTER).spectral_radius(
        np.array([[0.001, 0.05, 0.38]]), 0.95, np.array([[1.0], [10.0]])
    )
    assert np.allclose(radii, math.sqrt(0.95), rtol=1e-12)


def test_the_fallback_of_the_interactive_figure(derivation):
    """What a reader without JavaScript is told, by the page."""
    page = derivation(CHAPTER)
    path = chapters.ROOT / "notebooks" / "5-optimizers" / f"{CHAPTER}.ipynb"
    text = " ".join(" ".join(c.source for c in nbformat.read(path, as_version=4).cells).split())
    told = re.search(
        r"best rate 2/11 has the loss ([\d.]+) after 10 steps, the heavy ball with rate 0.231 and"
        r" momentum 0.270 has ([\d.]+), and gradient descent at a rate of 0.21 has ([\d.]+) ",
        text,
    )
    bowl, found = np.array([10.0, 1.0]), []
    for lr, momentum in ((2 / 11, 0.0), (0.231, 0.27), (0.21, 0.0)):
        theta, b = np.ones(2), np.zeros(2)
        for t in range(1, 11):
            theta, b = page.momentum_step(theta, bowl * theta, b, t, lr=lr, momentum=momentum)
        found.append(np.sum(bowl * theta**2) / 2)
    assert told.groups() == (f"{found[0]:.3f}", f"{found[1]:.4f}", f"{found[2]:.1f}")


def test_the_limits_of_the_bigram_model():
    """106, 201, a factor of 19, 72 and 718, from the exact distribution of the language."""
    from lossbook.corpora import HiddenMarkovLanguage

    language = HiddenMarkovLanguage.default()
    state, before = language.initial, 0
    for _ in range(63):
        before = before + state / 63
        state = state @ language.transition
    words = language.emission
    pairs = words.T @ (before[:, None] * language.transition) @ words
    share = pairs.sum(1)
    steepest = 0.0
    for a in np.argsort(share)[-40:]:  # an eigenvalue of the others is at most share / 2
        row, p = pairs[a], share[a]
        q = row / p
        steepest = max(steepest, p * np.linalg.eigvalsh(np.diag(q) - np.outer(q, q))[-1])
    assert np.sort(share)[-41] / 2 < steepest
    limit = 2 / steepest
    nesterov = 1.9 / 2.8 * limit
    found = [limit, 1.9 * limit, 1.9 * limit / 0.1 / limit, nesterov, nesterov / 0.1]
    assert [round(x) for x in found] == [106, 201, 19, 72, 718]


# The museum

MUSEUM = {
    "rate_inside": ("momentum-step", "step 7, with momentum"),
    "dampened_first": ("momentum-step", "step 1, dampened"),
    "wrong_sign": ("momentum-step", "step 5, Nesterov, a matrix"),
    "stays_ahead": ("nesterov-step", "on the way"),
    "gradient_at_home": ("nesterov-step", "at the minimum, moving"),
}
RIGHT = {"momentum-step": "momentum_step", "nesterov-step": "nesterov_step"}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_the_check_that_the_right_code_passes(museum, bug):
    page, (name, case) = museum(CHAPTER), MUSEUM[bug]
    assert checks.check(name, getattr(page, RIGHT[name])).passed
    assert case in checks.check(name, getattr(page, bug)).failures


def test_what_the_museum_costs(museum):
    """5 and 13.01 after the cut, nine rates of the first gradient, minus eight rates a step."""
    page = museum(CHAPTER)
    rates = np.where(np.arange(100) < 50, 0.1, 0.01)
    for kind, expected in (("outside", 5.00), ("inside", 13.01)):
        path = torch_walk(
            lambda p, k=kind: optim.SGD(p, momentum=0.9, lr_placement=k),
            *(np.zeros(1), [np.ones(1)] * 100, rates),
        )
        assert round(path[50, 0] - path[100, 0], 2) == expected
    options = {"momentum": 0.9, "dampening": 0.9}
    gradients = [np.ones(1)] + [np.zeros(1)] * 400
    paths = [
        page.walk(step, np.zeros(1), gradients, np.full(401, 0.1), **options)
        for step in (page.momentum_step, page.dampened_first)
    ]
    assert math.isclose(paths[1][-1, 0] - paths[0][-1, 0], 9 * 0.1, rel_tol=1e-9)
    b = np.full(1, 10.0)  # the buffer of a slope of 1
    theta, b = page.wrong_sign(np.zeros(1), np.ones(1), b, 9, lr=0.1, momentum=0.9, nesterov=True)
    assert math.isclose(theta[0], 8 * 0.1, rel_tol=1e-12)
    assert math.isclose(b[0], 10.0, rel_tol=1e-12)


def test_the_gradient_at_home_is_the_heavy_ball(museum):
    page = museum(CHAPTER)
    spectrum = np.array([10.0, 1.0])
    theta, v, path = np.ones(2), np.zeros(2), [np.ones(2)]
    for _ in range(30):
        theta, v = page.gradient_at_home(lambda x: spectrum * x, theta, v, lr=0.05, momentum=0.9)
        path.append(theta)
    ball = quadratic_walk(lambda p: torch.optim.SGD(p, momentum=0.9), spectrum, 30, 0.05)
    assert checks.travel_difference(np.array(path), ball) <= 1e-12


# The exercises

SOLUTIONS = {
    "gradient-rates": "rates_of",
    "nesterov-radius": "nesterov_radius",
    "torch-momenta": "torch_momenta",
    "ball-variance": "ball_variance",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


@WALKS
@given(seed=st.integers(0, 999), momentum=MOMENTUM)
def test_torch_with_moving_momenta_keeps_the_rate_inside(solutions, seed, momentum):
    page = solutions(CHAPTER)
    theta, gradients, rates = problem((3, 2), seed)
    assume(momentum > 0)
    momenta = page.torch_momenta(rates, momentum)
    torchs = torch_walk(
        lambda p: torch.optim.SGD(p, momentum=0.9),
        *(theta, gradients, rates),
        lambda t: {"momentum": momenta[t - 1]},
    )
    inside = page.walk(page.velocity_step, theta, gradients, rates, momentum=momentum)
    assert checks.travel_difference(inside, torchs) <= 1e-12


def test_the_usual_constants_of_nesterov(solutions):
    """1 - 1 / sqrt(kappa) at the flattest direction, to the digits of a double root."""
    radius = solutions(CHAPTER).nesterov_radius
    for kappa in (2.0, 10.0, 1e3):
        usual = (math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)
        radii = [radius(1 / kappa, usual, value) for value in np.linspace(1, kappa, 40)]
        assert math.isclose(max(radii), 1 - 1 / math.sqrt(kappa), abs_tol=1e-7)
        assert max(radii[1:]) < radii[0]


def complex_only(lr, momentum, curvature):
    return math.sqrt(abs(momentum * (1 - lr * curvature)))


def largest_signed(lr, momentum, curvature):
    a = 1 - lr * curvature
    return float(np.real(np.roots([1, -(1 + momentum) * a, momentum * a])).max())


def heavy_balls(lr, momentum, curvature):
    return float(np.abs(np.roots([1, -(1 + momentum - lr * curvature), momentum])).max())


MUTANTS = [
    ("gradient-rates", lambda c: (2 / c[0], 2 / (c[0] + c[-1]), 0.0), "wherever they stand"),
    (
        "gradient-rates",
        lambda c: (2 / max(c), 2 / (max(c) + min(c)), (max(c) - min(c)) / (max(c) + min(c))),
        "square it",
    ),
    ("nesterov-radius", complex_only, "larger absolute value"),
    ("nesterov-radius", largest_signed, "one root is negative"),
    ("nesterov-radius", heavy_balls, "Complex roots have the size"),
    (
        "torch-momenta",
        lambda r, m: np.concatenate([[m], m * np.asarray(r[1:]) / np.asarray(r[:-1])]),
        "Upside down",
    ),
    ("torch-momenta", lambda r, m: np.full(len(r), m), "0 over 0.1 is 0"),
    ("torch-momenta", lambda r, m: np.append(m, m * r[:-1] / r[1:]), "as a list"),
    ("ball-variance", lambda lr, m, c, s: lr * s / (c * (2 - lr * c)) / (1 - m), "covariance"),
    (
        "ball-variance",
        lambda lr, m, c, s: lr * s / (c * (2 * (1 - m) - lr * c)),
        "The plain floor at the effective rate",
    ),
    (
        "ball-variance",
        lambda lr, m, c, s: (1 + m) / (1 - m) * lr * s**0.5 / (c * (2 * (1 + m) - lr * c)),
        "enters once",
    ),
]


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    """Each mistake fails, and the hint that names it is among those that are printed."""
    report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())


def wrong_momentum(slip):
    def step(theta, g, b, t, *, lr, momentum, dampening, nesterov):
        kept = 1 if t == 1 or slip == "dampening ignored" else 1 - dampening
        new = momentum * b + kept * g
        if slip == "averaged":
            new = momentum * b + (1 - momentum) * g
        push = g + momentum * (b if slip == "old buffer" else new) if nesterov else new
        sign = -1 if slip == "uphill" else 1
        if slip == "in place":
            theta -= lr * push
            return theta, new
        return theta - sign * lr * push, new

    return step


SLIPS = ["dampening ignored", "averaged", "old buffer", "uphill", "in place"]


@pytest.mark.parametrize("slip", SLIPS)
def test_the_check_of_a_step_catches_other_slips(slip):
    assert checks.check("momentum-step", wrong_momentum(None)).passed
    assert not checks.check("momentum-step", wrong_momentum(slip)).passed
