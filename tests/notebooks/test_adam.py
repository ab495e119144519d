"""The chapter's NumPy against lossbook, torch and optax, its museum, and its graded exercises."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from lossbook import checks, optim

jax.config.update("jax_enable_x64", True)
import optax  # noqa: E402

CHAPTER = "adam"
SHAPES = st.lists(st.integers(0, 4), min_size=1, max_size=3).map(tuple)
BETA1 = st.sampled_from([0.0, 0.5, 0.9, 0.99])
BETA2 = st.sampled_from([0.5, 0.75, 0.95, 0.999])
WALKS = settings(max_examples=12)  # a walk has 25 steps, and the shapes differ in each
EPS = st.sampled_from([1e-8, 1e-3, 1.0])


def problem(shape, seed, steps=25):
    """Gradients over six powers of ten, some exactly zero, and a rate that changes."""
    rng = np.random.default_rng([seed, 5])
    sizes = 10.0 ** rng.integers(-5, 2, size=steps)
    gradients = [rng.normal(size=shape) * size for size in sizes]
    if seed % 3 == 0:
        gradients[0] = np.zeros(shape)
    return rng.normal(size=shape), gradients, 0.1 * rng.uniform(0.2, 1, size=steps)


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


def optax_walk(theta, gradients, rates, **options):
    """The first of lr and gradients changes by step; optax counts from 0."""
    transform = optax.adam(1.0, **options)
    theta = jax.numpy.asarray(theta)
    state, path = transform.init(theta), [np.asarray(theta)]
    for g, lr in zip(gradients, rates, strict=True):
        update, state = transform.update(jax.numpy.asarray(g), state, theta)
        theta = theta + lr * update
        path.append(np.asarray(theta))
    return np.array(path)


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), beta1=BETA1, beta2=BETA2, eps=EPS)
@example(shape=(0,), seed=1, beta1=0.9, beta2=0.999, eps=1e-3)
@example(shape=(2, 0, 3), seed=2, beta1=0.9, beta2=0.999, eps=1e-3)
@example(shape=(4, 3, 2), seed=0, beta1=0.9, beta2=0.999, eps=1e-8)
def test_the_derivation_equals_lossbook_and_torch(derivation, shape, seed, beta1, beta2, eps):
    """Algorithm 1 over 25 steps, to rounding of a walk of 25 steps."""
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed)
    constants = {"betas": (beta1, beta2), "eps": eps}
    path = page.walk(page.adam_step, theta, gradients, rates, beta1=beta1, beta2=beta2, eps=eps)
    for adam in (optim.Adam, torch.optim.Adam):
        other = torch_walk(lambda p, a=adam: a(p, **constants), theta, gradients, rates)
        assert path.size == 0 or checks.travel_difference(path, other) <= 1e-12


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 3, 5)])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95), (0.0, 0.5)])
def test_the_derivation_equals_optax(derivation, shape, betas):
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed=4)
    constants = {"eps": 1e-3}
    path = page.walk(
        page.adam_step, theta, gradients, rates, beta1=betas[0], beta2=betas[1], **constants
    )
    other = optax_walk(theta, gradients, rates, b1=betas[0], b2=betas[1], **constants)
    assert checks.travel_difference(path, other) <= 1e-12


@WALKS
@given(shape=SHAPES, seed=st.integers(0, 999), beta1=BETA1, beta2=BETA2, eps=EPS)
def test_the_efficient_form(derivation, shape, seed, beta1, beta2, eps):
    """Against lossbook's, and against torch with the epsilon of the theorem in every step."""
    page = derivation(CHAPTER)
    theta, gradients, rates = problem(shape, seed)
    assume(theta.size)
    path = page.walk(
        page.efficient_step, theta, gradients, rates, beta1=beta1, beta2=beta2, eps=eps
    )
    ours = torch_walk(
        lambda p: optim.Adam(p, betas=(beta1, beta2), eps=eps, eps_placement="hat"),
        *(theta, gradients, rates),
    )
    theirs = torch_walk(
        lambda p: torch.optim.Adam(p, betas=(beta1, beta2)),
        *(theta, gradients, rates),
        lambda t: {"eps": eps / math.sqrt(1 - beta2**t)},
    )
    assert checks.travel_difference(path, ours) <= 1e-12
    assert checks.travel_difference(path, theirs) <= 1e-11


@pytest.mark.parametrize("placement", ["outside", "hat", "inside"])
def test_extreme_gradients_stay_finite(derivation, placement):
    """From 1e-150, whose square is nearly the smallest number, to 1e150; and exact zeros."""
    sizes = [1e-150, 0.0, 1e150]
    path = torch_walk(
        lambda p: optim.Adam(p, eps_placement=placement),
        *(np.ones(3), [np.array(sizes)] * 3, [0.1] * 3),
    )
    assert np.isfinite(path).all()
    assert (path[:, 1] == 1).all()
    page = derivation(CHAPTER)
    ours = page.walk(page.adam_step, np.ones(3), [np.array(sizes)] * 3, [0.1] * 3)
    if placement == "outside":
        assert checks.travel_difference(ours, path) <= 1e-12


def test_steps_change_nothing_they_are_given(museum):
    page = museum(CHAPTER)
    names = ("adam_step", "efficient_step", "rate_inside", "no_correction", "hat_without_root")
    for step in (getattr(page, name) for name in names):
        state = [np.ones(3), np.arange(3.0), np.full(3, 0.5), np.full(3, 2.0)]
        before = [array.copy() for array in state]
        step(*state, 2, lr=0.1)
        assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))


def test_the_pencil_example(derivation):
    """The fractions of the first section, and the two gradients that beat the learning rate."""
    page = derivation(CHAPTER)
    options = {"beta1": 0.5, "beta2": 0.75, "eps": 0.0}
    for scale in (1.0, 1000.0, 1e-6):
        gradients = [np.array([scale * g]) for g in (2.0, 1.0, -1.0)]
        path = page.walk(page.adam_step, np.ones(1), gradients, [0.1] * 3, **options)[:, 0]
        second = 0.9 - 0.1 * math.sqrt(7) / 3
        assert checks.difference(path, [1, 0.9, second, second]) <= 1e-14
    growing = [np.array([2.0]), np.array([3.0])]
    path = page.walk(page.adam_step, np.zeros(1), growing, [1.0] * 2, **options)[:, 0]
    assert math.isclose(path[1] - path[2], 8 / 3 / math.sqrt(48 / 7), rel_tol=1e-14)
    assert round(path[1] - path[2], 3) == 1.018


@given(
    g=st.lists(st.floats(-1e3, 1e3, allow_subnormal=False), min_size=1, max_size=40),
    beta1=st.floats(0.0, 0.99),
    beta2=st.floats(0.01, 0.9999),
)
def test_no_step_exceeds_the_bound(derivation, g, beta1, beta2):
    """Any gradients, also where beta1 squared exceeds beta2 and the bound grows."""
    page = derivation(CHAPTER)
    g = np.array(g)
    assume((np.abs(g) > 1e-3).all() and abs(beta1**2 / beta2 - 1) > 1e-6)
    path = page.walk(page.adam_step, 0.0, g, np.ones(len(g)), beta1=beta1, beta2=beta2, eps=0.0)
    bounds = page.largest_step(np.arange(1, len(g) + 1), beta1, beta2)
    assert (np.abs(np.diff(path)) <= bounds * (1 + 1e-9)).all()


@given(beta1=st.floats(0.1, 0.95), beta2=st.floats(0.5, 0.999), t=st.integers(1, 60))
def test_the_bound_is_attained_in_torch(derivation, beta1, beta2, t):
    assume(abs(beta1**2 / beta2 - 1) > 1e-3)
    gradients = [np.array([(beta1 / beta2) ** (t - i)]) for i in range(1, t + 1)]
    path = torch_walk(
        lambda p: torch.optim.Adam(p, betas=(beta1, beta2), eps=0.0),
        *(np.zeros(1), gradients, np.ones(t)),
    )[:, 0]
    bound = derivation(CHAPTER).largest_step(t, beta1, beta2)
    assert math.isclose(path[-2] - path[-1], bound, rel_tol=1e-9)


def test_the_printed_limits(derivation):
    """7.27, 1.70, 1.16 and 3.16; equal betas never exceed the learning rate."""
    page = derivation(CHAPTER)
    limits = {b: page.largest_step(1e6, 0.9, b) for b in (0.999, 0.98, 0.95)}
    assert [round(float(x), 2) for x in limits.values()] == [7.27, 1.70, 1.16]
    assert checks.difference(page.largest_step(np.arange(1, 500), 0.9, 0.9), np.ones(499)) <= 1e-12
    silence = [np.zeros(1)] * 20_000 + [np.ones(1)]
    path = page.walk(page.adam_step, np.zeros(1), silence, np.ones(20_001))
    assert math.isclose(-path[-1, 0], 0.1 / math.sqrt(0.001), rel_tol=1e-6)


def test_the_printed_ratios(derivation):
    """By running both averages on a constant gradient, not by the formula."""
    page = derivation(CHAPTER)
    found = {}
    for beta2 in (0.95, 0.98, 0.999):
        m = v = 0.0
        ratios = []
        for _ in range(20_000):
            m, v = 0.9 * m + 0.1, beta2 * v + (1 - beta2)
            ratios.append(m / math.sqrt(v))
        formula = page.correction_ratio(np.arange(1, 20_001), 0.9, beta2)
        assert checks.difference(ratios, formula) <= 1e-10
        far = [t for t, r in enumerate(ratios, start=1) if abs(r - 1) >= 0.05]
        top = max(ratios)
        found[beta2] = round(ratios[0], 2), round(top, 2), ratios.index(top) + 1, far[-1] + 1
        if beta2 == 0.999:
            assert [round(ratios[t - 1], 2) for t in (100, 1000)] == [3.24, 1.26]
            assert round(ratios[49], 1) == 4.5
            assert max(r * min(1, t / 10_000) for t, r in enumerate(ratios, start=1)) <= 1 + 1e-4
    assert found == {
        0.95: (0.45, 1.10, 20, 43),
        0.98: (0.71, 1.55, 14, 118),
        0.999: (3.16, 6.57, 12, 2375),
    }


def test_where_the_ratio_is_largest():
    """exp(x) = 1 + 2x at 1.256, which is step 11.9."""
    x = 1.0
    for _ in range(200):
        x = math.log(1 + 2 * x)
    assert round(x, 3) == 1.256
    assert round(x / math.log(1 / 0.9), 1) == 11.9


@pytest.mark.parametrize(("beta", "steps"), [(0.9, 6.6), (0.95, 13.5), (0.999, 692.8)])
def test_half_lives(beta, steps):
    assert round(math.log(2) / math.log(1 / beta), 1) == steps


@given(scale=st.sampled_from([1e-4, 1 / 512, 1000.0]), seed=st.integers(0, 99), eps=EPS)
def test_a_factor_in_the_loss_is_a_divisor_of_epsilon(derivation, scale, seed, eps):
    page = derivation(CHAPTER)
    theta, gradients, rates = problem((3, 2), seed)
    scaled = [scale * g for g in gradients]
    one = page.walk(page.adam_step, theta, scaled, rates, eps=eps)
    other = page.walk(page.adam_step, theta, gradients, rates, eps=eps / scale)
    assert checks.travel_difference(one, other) <= 1e-11


@given(x=st.floats(1e-12, 1e3), eps=st.floats(1e-8, 1.0))
def test_inside_and_outside_differ_by_a_root_of_two_at_most(x, eps):
    inside = math.sqrt(x**2 + eps**2)
    assert inside <= (x + eps) * (1 + 1e-12)
    assert x + eps <= math.sqrt(2) * inside * (1 + 1e-12)


def test_the_planted_mistakes_need_a_sharp_check(derivation):
    """Invisible with eps = 1e-8 or a constant rate, and far above the bound otherwise."""
    page = derivation(CHAPTER)
    rng = np.random.default_rng(8)
    easy = rng.choice([-1, 1], size=(30, 8)) * rng.uniform(0.5, 1.5, size=(30, 8))
    constant, varying = np.full(30, 0.1), 0.1 * rng.uniform(0.2, 1, size=30)

    def gap(wrong, rates, eps):
        steps = (page.adam_step, wrong)
        return checks.travel_difference(
            *(page.walk(step, np.ones(8), easy, rates, eps=eps) for step in steps)
        )

    assert (
        gap(page.efficient_step, varying, 1e-8)
        <= 1e-6
        < 1e-3
        < gap(page.efficient_step, varying, 1e-3)
    )
    assert (
        gap(page.rate_inside, constant, 1e-3) <= 1e-12 < 1e-2 < gap(page.rate_inside, varying, 1e-8)
    )


MUSEUM = {
    "epsilon_on_the_parameter": "gradient exactly zero",
    "hat_without_root": "gradient of the size of ε",
    "one_hat_lost": "constant gradient, step 12",
    "no_correction": "constant gradient, step 12",
}


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_fails_the_check_that_adam_passes(museum, bug):
    page = museum(CHAPTER)
    assert checks.check("adam-step", page.adam_step).passed
    report = checks.check("adam-step", getattr(page, bug))
    assert MUSEUM[bug] in report.failures
    assert len(report.failures) < report.total


@pytest.mark.parametrize("bug", MUSEUM)
def test_each_museum_bug_leaves_the_trajectory(museum, bug):
    """The trajectory check of the chapter sees all four as well."""
    page = museum(CHAPTER)
    theta, gradients, rates = problem((6, 5), seed=4)
    right, wrong = (
        page.walk(step, theta, gradients, rates, eps=1e-3)
        for step in (page.adam_step, getattr(page, bug))
    )
    assert checks.travel_difference(right, wrong) > 1e-3


def test_what_the_museum_costs(museum):
    """NaN at a zero gradient, 31.6 and 10 by a lost hat, BERT's factor from lossbook too."""
    page = museum(CHAPTER)
    gradients = [np.array([0.0, 1.0])] * 12
    with np.errstate(invalid="ignore"):
        drift = page.walk(page.epsilon_on_the_parameter, np.ones(2), gradients, np.ones(12))
    assert np.isnan(drift[1:, 0]).all()
    lost = -np.diff(page.walk(page.one_hat_lost, np.zeros(2), gradients, np.ones(12)), axis=0)
    assert [round(float(lost[i, 1]), 1) for i in (0, 9)] == [31.6, 10.0]
    bert = page.walk(page.no_correction, np.zeros(2), gradients, np.ones(12), eps=1e-6)
    assert round(float(bert[11, 1] - bert[12, 1]), 2) == 6.57
    ours = torch_walk(
        lambda p: optim.Adam(p, eps=1e-6, bias_correction=False),
        *(np.zeros(2), gradients, np.ones(12)),
    )
    assert checks.travel_difference(bert, ours) <= 1e-12


SOLUTIONS = {
    "correction-settles": "settles",
    "eps-schedule": "eps_schedule",
    "bert-from-adam": "bert_from_adam",
    "rare-word": "carried",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


@WALKS
@given(seed=st.integers(0, 999), beta1=BETA1, beta2=BETA2, eps=EPS)
def test_berts_adam_out_of_torchs(solutions, seed, beta1, beta2, eps):
    page = solutions(CHAPTER)
    theta, gradients, rates = problem((3, 2), seed)

    def by_step(t):
        lr, constant = page.bert_from_adam(float(rates[t - 1]), eps, beta1, beta2, t)
        return {"lr": lr, "eps": constant}

    torchs = torch_walk(
        lambda p: torch.optim.Adam(p, betas=(beta1, beta2)), theta, gradients, rates, by_step
    )
    berts = torch_walk(
        lambda p: optim.Adam(p, betas=(beta1, beta2), eps=eps, bias_correction=False),
        *(theta, gradients, rates),
    )
    assert checks.travel_difference(torchs, berts) <= 1e-11


def test_a_rare_words_way_in_torch(solutions):
    """31.8 learning rates, by torch itself; an optimizer that skips the silent rows stops."""
    carried = solutions(CHAPTER).carried
    assert round(carried(10_000, 0.9, 0.999), 1) == 31.8
    start = 30_000  # torch's corrections are 1 by then
    p = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([p], lr=1.0, eps=0.0)
    p.grad = torch.ones_like(p)
    adam.step()
    adam.state[p]["step"].fill_(start)
    for name in ("exp_avg", "exp_avg_sq"):
        adam.state[p][name].zero_()
    p.data.zero_()
    for g in (1.0, *([0.0] * 199)):
        p.grad = torch.full_like(p, g)
        adam.step()
    assert math.isclose(-p.item(), carried(200, 0.9, 0.999), rel_tol=1e-9)


def settles_by(condition):
    def answer(beta1, beta2, tolerance):
        for t in range(1, 20_000):
            r = (1 - beta1**t) / math.sqrt(1 - beta2**t)
            if condition(r, tolerance):
                return t
        return None

    return answer


MUTANTS = [
    ("correction-settles", settles_by(lambda r, tau: r < 1 + tau), "two sides"),
    ("correction-settles", settles_by(lambda r, tau: abs(r - 1) < tau), "comes back"),
    (
        "correction-settles",
        lambda b1, b2, tau: math.ceil(math.log(1 - (1 + tau) ** -2) / math.log(b2)),
        "two sides",
    ),
    ("eps-schedule", lambda e, b, t: e / (1 - b**t), "root"),
    ("eps-schedule", lambda e, b, t: e * np.sqrt(1 - b**t), "division"),
    ("eps-schedule", lambda e, b, t: e / math.sqrt(1 - b**t), "takes arrays"),
    (
        "bert-from-adam",
        lambda lr, e, b1, b2, t: (lr * (1 - b1**t) / math.sqrt(1 - b2**t), e),
        "converted as well",
    ),
    (
        "bert-from-adam",
        lambda lr, e, b1, b2, t: (
            lr * math.sqrt(1 - b2**t) / (1 - b1**t),
            e / math.sqrt(1 - b2**t),
        ),
        "3.16",
    ),
    ("rare-word", lambda n, b1, b2: (1 - b1**n) / math.sqrt(1 - b2), "fades too"),
    (
        "rare-word",
        lambda n, b1, b2: (
            (1 - b1) / math.sqrt(1 - b2) * (1 - (q := b1 / math.sqrt(b2)) ** n) / (1 - q)
        ),
        "ratio 1",
    ),
]


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    """Each mistake fails, and the hint that names it is among those that are printed."""
    report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())


def wrong_adam(slip):
    """Adam with one slip, from the lines of Algorithm 1."""

    def step(theta, g, m, v, t, *, lr, beta1, beta2, eps):
        if slip == "betas exchanged":
            beta1, beta2 = beta2, beta1
        if slip == "written as numbers":
            beta1, beta2 = 0.9, 0.999
        if slip == "in place":
            m *= beta1
            m += (1 - beta1) * g
        else:
            m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        if slip == "counts from 0":
            m_hat, v_hat = m / (1 - beta1 ** (t + 1)), v / (1 - beta2 ** (t + 1))
        size = np.sqrt(v_hat + eps) if slip == "eps inside" else np.sqrt(v_hat) + eps
        sign = -1 if slip == "uphill" else 1
        return theta - sign * lr * m_hat / size, m, v

    return step


SLIPS = ["betas exchanged", "written as numbers", "in place", "counts from 0", "eps inside"]


@pytest.mark.parametrize("slip", [*SLIPS, "uphill"])
def test_the_check_of_a_step_catches_other_slips(slip):
    assert checks.check("adam-step", wrong_adam(None)).passed
    assert not checks.check("adam-step", wrong_adam(slip)).passed
