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


def optax_walk(theta, gradients, rates, name="adam", **options):
    """The first of lr and gradients changes by step; optax counts from 0."""
    transform = getattr(optax, name)(1.0, **options)
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
            for warmup, farther in ((10_000, 1.014), (100, 4.1)):
                rise = [t / warmup for t in range(1, warmup + 1)]
                way = math.fsum(x * r for x, r in zip(rise, ratios, strict=False))
                assert round(way / math.fsum(rise), 3 if warmup > 100 else 1) == farther
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


def test_the_two_words():
    """The rare one is absent from 98 % of the batches of 16, and needs 346 steps and more."""
    assert round(0.999**16, 2) == 0.98
    assert 0.998**346 > 0.5 > 0.998**347
    assert round(math.log(2) / abs(math.log(0.998))) == 346


def test_a_gradient_of_a_millionth():
    """The caption of the figure: 99 %, 76 % and 1 % of the step, in lossbook's three forms."""
    for placement, part in (("outside", 0.99), ("hat", 0.76), ("inside", 0.01)):
        path = torch_walk(
            lambda p, x=placement: optim.Adam(p, eps=1e-8, eps_placement=x),
            *(np.zeros(1), [np.array([1e-6])], [1.0]),
        )
        assert round(-float(path[1, 0]), 2) == part


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
    divided = "gradient exactly zero" in report.failures  # its hint speaks of zero over zero only
    assert divided == (bug == "epsilon_on_the_parameter")


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
    "nadam-psi": "momentum_decay",
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
        "result 2 is ε, 31.6 times",
    ),
    (
        "bert-from-adam",
        lambda lr, e, b1, b2, t: (
            lr * math.sqrt(1 - b2**t) / (1 - b1**t),
            e / math.sqrt(1 - b2**t),
        ),
        "Result 1 is 6.57 times as large",
    ),
    (
        "bert-from-adam",
        lambda lr, e, b1, b2, t: (
            lr * (1 - b1**t) / math.sqrt(1 - b2**t),
            e * math.sqrt(1 - b2**t),
        ),
        "Result 2 always becomes larger",
    ),
    ("rare-word", lambda n, b1, b2: (1 - b1**n) / math.sqrt(1 - b2), "fades too"),
    (
        "rare-word",
        lambda n, b1, b2: (
            (1 - b1) / math.sqrt(1 - b2) * (1 - (q := b1 / math.sqrt(b2)) ** n) / (1 - q)
        ),
        "ratio 1",
    ),
    ("nadam-psi", lambda a: math.log(0.96) / math.log(a) if a < 1 else 0.0, "way round"),
    ("nadam-psi", lambda a: -math.log(a) / math.log(0.96), "without a sign"),
    ("nadam-psi", lambda a: math.log(a, 0.996), "0.96 itself"),
    ("nadam-psi", lambda a: min(math.log(a) / math.log(0.96), 1e3), "A large ψ"),
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


# The relatives


@pytest.fixture
def double():
    """torch keeps NAdam's product of momenta in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def torch_amsgrad(p, **options):
    return torch.optim.Adam(p, amsgrad=True, **options)


RELATIVES = {
    "amsgrad_step": (3, {}, optim.AMSGrad, torch_amsgrad),
    "adamax_step": (2, {}, optim.AdaMax, torch.optim.Adamax),
    "nadam_step": (2, {}, optim.NAdam, torch.optim.NAdam),
    "radam_step": (2, {}, optim.RAdam, torch.optim.RAdam),
}


@pytest.mark.parametrize("name", RELATIVES)
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.75)])
@pytest.mark.parametrize(("shape", "seed"), [((7,), 4), ((6, 5), 3), ((4, 3, 5), 1), ((2, 0), 2)])
def test_the_relatives_equal_lossbook_and_torch(derivation, double, name, betas, shape, seed):
    page = derivation(CHAPTER)
    memory, options, ours, theirs = RELATIVES[name]
    theta, gradients, rates = problem(shape, seed)
    constants = {"beta1": betas[0], "beta2": betas[1], "eps": 1e-3, **options}
    path = page.walk(getattr(page, name), theta, gradients, rates, memory=memory, **constants)
    for kind in (ours, theirs):
        other = torch_walk(lambda p, k=kind: k(p, betas=betas, eps=1e-3), theta, gradients, rates)
        assert path.size == 0 or checks.travel_difference(path, other) <= 1e-11


OPTAX = [
    ("amsgrad_step", "amsgrad", 3, {"maximum": "corrected"}, optim.AMSGrad),
    ("adamax_step", "adamax", 2, {}, optim.AdaMax),
    ("nadam_step", "nadam", 2, {"psi": math.inf}, optim.NAdam),
    ("radam_step", "radam", 2, {"outside": True}, optim.RAdam),
]


@pytest.mark.parametrize(("step", "name", "memory", "options", "kind"), OPTAX)
def test_the_relatives_equal_optax(derivation, step, name, memory, options, kind):
    page = derivation(CHAPTER)
    theta, gradients, rates = problem((6, 5), 4)
    path = page.walk(
        getattr(page, step), theta, gradients, rates, memory=memory, eps=1e-3, **options
    )
    other = optax_walk(theta, gradients, rates, name=name, eps=1e-3)
    ours = torch_walk(lambda p: kind.like("optax", p, eps=1e-3), theta, gradients, rates)
    assert checks.travel_difference(path, other) <= 1e-11
    assert checks.travel_difference(path, ours) <= 1e-11


def test_the_relatives_change_nothing_they_are_given(museum):
    page = museum(CHAPTER)
    steps = ["amsgrad_step", "adamax_step", "nadam_step", "radam_step", "counted_twice"]
    for name in steps:
        memory = 3 if name == "amsgrad_step" else 2
        state = [np.ones(3), np.arange(3.0), *[np.full(3, 0.5)] * memory]
        before = [array.copy() for array in state]
        getattr(page, name)(*state, 2, lr=0.1)
        assert all(np.array_equal(a, b) for a, b in zip(state, before, strict=True))


def cycle(period, beta2, rounds):
    """v and Adam's steps (beta1 = 0) in the last of many periods, by running them."""
    v, found = 0.0, []
    for t in range(period * rounds):
        g = float(period) if t % period == 0 else -1.0
        v = beta2 * v + (1 - beta2) * g * g
        found.append((v, -g / math.sqrt(v)))
    return np.array(found[-period:]).T


def test_the_example_of_reddi(derivation):
    """8.21, 1.72, 1.07; -1.05, +0.76, +0.97; together +0.68 and, for AMSGrad, -0.35."""
    page = derivation(CHAPTER)
    v, steps = cycle(3, 0.1, 30)
    assert [round(x, 2) for x in v] == [8.21, 1.72, 1.07]
    assert [round(x, 2) for x in steps] == [-1.05, 0.76, 0.97]
    assert round(steps.sum(), 2) == 0.68
    assert round(-1 / math.sqrt(v.max()), 2) == -0.35
    for period, beta2 in ((3, 0.1), (3, 0.9), (10, 0.5), (10, 0.97), (101, 0.99)):
        steps = cycle(period, beta2, 400 if period < 101 else 40)[1]
        assert checks.difference(page.mean_step(period, beta2), steps.mean()) <= 1e-9
    for period, window in ((3, 1.9), (10, 22), (101, 2512)):
        below, above = (page.mean_step(period, 1 - 1 / (window * f)) for f in (0.95, 1.05))
        assert below > 0 > above


def test_torchs_own_betas_go_uphill_too(derivation):
    """One of 101 before a hundred of -1: +0.001 and -0.001, and lossbook agrees with torch."""
    page = derivation(CHAPTER)
    gradients = ([np.array([101.0])] + [-np.ones(1)] * 100) * 40
    rates = np.ones(len(gradients))
    adam = page.walk(page.adam_step, np.zeros(1), gradients, rates)[:, 0]
    amsgrad = page.walk(page.amsgrad_step, np.zeros(1), gradients, rates, memory=3)[:, 0]
    means = [(path[4040] - path[2020]) / 2020 for path in (adam, amsgrad)]
    assert [round(float(x), 3) for x in means] == [0.001, -0.001]


def test_what_a_maximum_costs():
    """A first gradient of 10: 0.72 and 0.97 of a step at 100 and 1000, or a tenth for ever."""
    steps = {"raw": [], "corrected": []}
    m = v = raw = corrected = 0.0
    for t in range(1, 1001):
        g = 10.0 if t == 1 else 1.0
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        raw, corrected = max(raw, v), max(corrected, v / (1 - 0.999**t))
        m_hat = m / (1 - 0.9**t)
        steps["raw"].append(m_hat / math.sqrt(raw / (1 - 0.999**t)))
        steps["corrected"].append(m_hat / math.sqrt(corrected))
    found = {k: [round(x[t - 1], 2) for t in (100, 1000)] for k, x in steps.items()}
    assert found == {"raw": [0.72, 0.97], "corrected": [0.10, 0.10]}
    gradients = [np.array([10.0])] + [np.ones(1)] * 29
    for preset, form in (("torch", "raw"), ("optax", "corrected")):
        path = torch_walk(
            lambda p, n=preset: optim.AMSGrad.like(n, p), np.zeros(1), gradients, np.ones(30)
        )
        assert np.allclose(-np.diff(path[:, 0]), steps[form][:30], rtol=1e-6)


def test_the_power_of_adamax(derivation):
    """p = 2 is the Adam of the opening; with p the root grows towards the maximum."""
    page = derivation(CHAPTER)
    gradients = [np.array([g]) for g in (2.0, 1.0, -1.0)]
    beta = math.sqrt(3 / 4)
    options = {"beta1": 0.5, "eps": 0.0}
    adam = page.walk(page.adam_step, np.zeros(1), gradients, np.ones(3), beta2=0.75, **options)
    assert np.allclose(-np.diff(adam[:, 0]), [1, 0.8819, 0], atol=5e-5)
    top = page.walk(page.adamax_step, np.zeros(1), gradients, np.ones(3), beta2=beta, **options)
    assert np.allclose(-np.diff(top[:, 0]), [1, 0.7698, 0], atol=5e-5)
    sizes = np.array([2 * beta, 1.0])
    previous = 0.0
    for p in (2, 4, 16, 64, 500):
        mean = ((1 - beta**p) * (sizes**p).sum() / (1 - beta ** (2 * p))) ** (1 / p)
        assert previous < mean < 2 * beta * (1 + 1e-12)  # u_2 = max(2 beta, 1)
        previous = mean
    assert math.isclose(previous, 2 * beta, rel_tol=1e-3)


def test_the_largest_step_of_adamax():
    """1.009 by gradients that shrink by beta2, in torch."""
    gradients = [np.array([0.999**i]) for i in range(200)]
    path = torch_walk(
        lambda p: torch.optim.Adamax(p, eps=0.0), np.zeros(1), gradients, np.ones(200)
    )[:, 0]
    assert round(float(path[-2] - path[-1]), 3) == 1.009
    assert math.isclose(path[-2] - path[-1], 0.999 * 0.1 / 0.099, rel_tol=1e-6)


NADAM = {
    "torch": (1.056, 0.588, (0.45, 0.46), 0.004),
    "keras": (1.063, 0.197, (0.47, 0.89), 1.0),
    "optax": (1.474, 0.190, (0.90, 0.90), math.inf),
    "timm": (1.9, 0.190, (0.90, 0.90), math.inf),
}


@pytest.mark.parametrize("name", NADAM)
def test_the_table_of_nadams(derivation, name):
    """First steps and weights out of lossbook's optimizers, which the libraries check."""
    page = derivation(CHAPTER)
    first, newest, momenta, psi = NADAM[name]
    same = {"lr": 1.0, "eps": 0.0, "weight_decay": 0.0}

    def steps(gradients):
        arrays = [np.array([g]) for g in gradients]
        make = lambda p: optim.NAdam.like(name, p, **same)  # noqa: E731
        return -np.diff(torch_walk(make, np.zeros(1), arrays, np.ones(len(arrays)))[:, 0])

    assert round(float(steps([0.3])[0]), 3) == first
    silence = steps([1e-100] * 99 + [1.0])[-1] * math.sqrt(0.001 / (1 - 0.999**100))
    assert abs(silence - newest) < 6e-4
    assert tuple(round(float(page.momentum(t, 0.9, psi)), 2) for t in (1, 100)) == momenta
    if name != "timm":
        found = page.nadam_weights(1, psi)[0], page.nadam_weights(100, psi)[1]
        assert (round(float(found[0]), 3), round(float(found[1]), 3)) == (first, newest)


def test_what_the_schedule_of_torch_does(derivation):
    """Half of the step for 1600 steps, half way at 4245, 11.7 and 6.0 after silence, the dip."""
    page = derivation(CHAPTER)
    above = [t for t in range(100, 2000, 10) if page.nadam_weights(t, 0.004)[1] > 0.5]
    assert 1600 <= max(above) < 1700
    assert round(math.log(2) / 0.004 / -math.log(0.96)) == 4245
    assert round(math.log(2) / -math.log(0.96)) == 17
    root = math.sqrt(0.001)
    assert round(page.nadam_weights(5000, 0.004)[1] / root, 1) == 11.7
    assert round(page.nadam_weights(5000, 1.0)[1] / root, 1) == 6.0
    for psi in (0.004, 1.0):
        sums = [page.nadam_weights(t, psi)[0] for t in range(1, 50)]
        assert np.argmin(sums) == 3 and 0.7 < min(sums) < 0.74
    assert round(0.96**0.004, 6) == 0.999837


def test_the_moments_of_an_inverse_chi_squared():
    """1/(n - 2) and 1/((n - 2)(n - 4)), by adding up the density."""
    x = np.linspace(1e-6, 150, 2_000_001)
    for n in (6, 9, 20):
        density = x ** (n / 2 - 1) * np.exp(-x / 2)
        density /= density.sum()
        assert math.isclose((density / x).sum(), 1 / (n - 2), rel_tol=1e-4)
        assert math.isclose((density / x**2).sum(), 1 / ((n - 2) * (n - 4)), rel_tol=1e-4)
        variance = n**2 * ((density / x**2).sum() - (density / x).sum() ** 2)
        formula = 2 * n**2 / ((n - 2) ** 2 * (n - 4))
        assert math.isclose(variance, formula, rel_tol=1e-3)


def test_the_rectifier(derivation):
    """0.026, 0.22, 0.83; rho_5 < 5 < rho_6; like the root of t/2000; the spread of 3000 runs."""
    page = derivation(CHAPTER)
    r = [float(page.rectifier(t, 0.999)) for t in (6, 100, 2000)]
    assert [round(r[0], 3), *(round(x, 2) for x in r[1:])] == [0.026, 0.22, 0.83]
    lengths = [page.average_length(t, 0.999) for t in (5, 100, 1000)]
    assert 4.9 < lengths[0] < 5 and [round(x) for x in lengths[1:]] == [98, 836]
    for beta2 in (0.9, 0.95, 0.98, 0.99, 0.999):
        assert page.average_length(4, beta2) < 4 < page.average_length(5, beta2) < 5
        assert page.average_length(6, beta2) > 5
    for t in (50, 100, 200):
        assert abs(page.rectifier(t, 0.999) / math.sqrt(t / 2000) - 1) < 0.1
    rng, v, spread = np.random.default_rng(77), np.zeros(3000), {}
    for t in range(1, 6001):
        v = 0.999 * v + 0.001 * rng.normal(size=3000) ** 2
        if t in (6, 40, 100, 1000, 6000):
            spread[t] = np.std(1 / np.sqrt(v / (1 - 0.999**t)))
    for t in (40, 100, 1000):
        assert abs(page.rectifier(t, 0.999) * spread[t] / spread[6000] - 1) < 0.13
    assert spread[6000] / spread[6] > 1.2 * page.rectifier(6, 0.999)


def test_radam_does_not_forget_the_size_of_the_gradient():
    gradients = [np.array([1000.0])] * 7
    steps = -np.diff(torch_walk(torch.optim.RAdam, np.zeros(1), gradients, np.ones(7))[:, 0])
    assert np.allclose(steps[:5], 1000) and (steps[5:] < 1).all()


WRONG_RELATIVES = {
    "counted_twice": ("nadam-step", "nadam_step", "constant gradient, step 4, ψ = 1"),
    "cached_rate": ("radam-step", "radam_step", "step 6 again, at another rate"),
}


@pytest.mark.parametrize("bug", WRONG_RELATIVES)
def test_each_wrong_relative_fails_the_check_that_the_right_one_passes(museum, bug):
    page = museum(CHAPTER)
    page.CACHE.clear()
    name, right, case = WRONG_RELATIVES[bug]
    assert checks.check(name, getattr(page, right)).passed
    report = checks.check(name, getattr(page, bug))
    assert case in report.failures
    assert len(report.failures) < report.total


def test_what_a_momentum_that_counts_twice_costs(museum):
    """0.7 % at step 1 and 0.1 % at step 5; 9.6 % where the momentum is constant."""
    page = museum(CHAPTER)
    gradients = [np.ones(1)] * 5

    def steps(step, psi):
        return -np.diff(page.walk(step, np.zeros(1), gradients, np.ones(5), psi=psi)[:, 0])

    loss = 100 * (1 - steps(page.counted_twice, 0.004) / steps(page.nadam_step, 0.004))
    assert [round(float(loss[i]), 1) for i in (0, 4)] == [0.7, 0.1]
    loss = 100 * (1 - steps(page.counted_twice, math.inf) / steps(page.nadam_step, math.inf))
    assert round(float(loss[0]), 1) == 9.6


def test_a_cache_without_the_rate_moves_every_group_by_the_first(museum):
    page = museum(CHAPTER)
    page.CACHE.clear()
    gradients = [np.ones(1)] * 30
    first = page.walk(page.cached_rate, np.zeros(1), gradients, np.full(30, 0.1))
    second = page.walk(page.cached_rate, np.zeros(1), gradients, np.full(30, 0.001))
    right = page.walk(page.radam_step, np.zeros(1), gradients, np.full(30, 0.1))
    assert checks.travel_difference(first, right) <= 1e-12
    assert np.array_equal(first, second)


def nadam_slip(slip):
    def step(theta, g, m, v, t, *, lr, beta1, beta2, eps, psi):
        old, m = m, beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        mu = [beta1 * (1 - 0.5 * 0.96 ** (s * psi)) for s in range(1, t + 2)]
        if slip == "m decays by mu":
            m = mu[-2] * old + (1 - mu[-2]) * g
        now, after = math.prod(mu[:-1]), math.prod(mu)
        if slip == "one product":
            after = now
        weight = mu[-2] if slip == "no step ahead" else mu[-1]
        past = old if slip == "the old average" else m
        ahead = (1 - mu[-2]) / (1 - now) * g + weight / (1 - after) * past
        v_hat = v / (1 - beta2**t)
        below = np.sqrt(v_hat + eps) if slip == "eps inside" else np.sqrt(v_hat) + eps
        return theta - lr * ahead / below, m, v

    return step


NADAM_SLIPS = {
    "m decays by mu": "m decays by β₁",
    "one product": "one factor longer",
    "no step ahead": "belongs to the next step",
    "the old average": "the new m",
    "eps inside": "outside the root",
}


@pytest.mark.parametrize("slip", NADAM_SLIPS)
def test_the_check_of_nadam_catches_slips(slip):
    assert checks.check("nadam-step", nadam_slip(None)).passed
    report = checks.check("nadam-step", nadam_slip(slip))
    assert not report.passed and NADAM_SLIPS[slip] in " ".join(str(report).split())


def radam_slip(slip):
    def step(theta, g, m, v, t, *, lr, beta1, beta2, eps):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        last = 2 / (1 - beta2) - 1
        rho = last - 2 * t * beta2**t / (1 - beta2**t)
        r = math.sqrt(max((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho), 0))
        if slip == "written as numbers":
            beta1, beta2 = 0.9, 0.999
        if rho <= (4 if slip == "threshold 4" else 5):
            return theta - lr * (-1 if slip == "climbs" else 1) * m / (1 - beta1**t), m, v
        root = math.sqrt(1 - beta2**t)
        if slip == "uncorrected":
            root = 1.0
        below = np.sqrt(v) / root + eps if slip == "eps outside" else (np.sqrt(v) + eps) / root
        return theta - lr * (1 if slip == "no r" else r) * m / (1 - beta1**t) / below, m, v

    return step


RADAM_SLIPS = {
    "climbs": "downhill",
    "threshold 4": "just below 5",
    "no r": "Adam's step times the rectifier",
    "uncorrected": "second moment corrected",
    "written as numbers": "betas written as numbers",
    "eps outside": "beside √v",
}


@pytest.mark.parametrize("slip", RADAM_SLIPS)
def test_the_check_of_radam_catches_slips(slip):
    assert checks.check("radam-step", radam_slip(None)).passed
    report = checks.check("radam-step", radam_slip(slip))
    assert not report.passed and RADAM_SLIPS[slip] in " ".join(str(report).split())


@pytest.mark.parametrize(("preset", "a"), [("keras", 0.96), ("optax", 1e-300)])
def test_nadam_by_psi(solutions, double, preset, a):
    psi = solutions(CHAPTER).momentum_decay(a)
    theta, gradients, rates = problem((3, 2), 4)
    torchs = torch_walk(
        lambda p: torch.optim.NAdam(p, eps=1e-3, momentum_decay=psi), theta, gradients, rates
    )
    ours = torch_walk(lambda p: optim.NAdam.like(preset, p, eps=1e-3), theta, gradients, rates)
    assert checks.travel_difference(torchs, ours) <= 1e-12
