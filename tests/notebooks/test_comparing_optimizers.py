"""The chapter's statistics against scipy and enumeration, its record, museum and exercises."""

from __future__ import annotations

import math
from itertools import combinations, product
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from lossbook import checks, optim, recorded
from lossbook.training import race

CHAPTER = "comparing-optimizers"
NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks/5-optimizers" / f"{CHAPTER}.ipynb"
SEEDS = st.integers(0, 9999)


# Pairs


@given(seed=SEEDS, n=st.integers(2, 12), scale=st.sampled_from([1e-6, 1.0, 1e5]))
def test_the_standard_errors_are_scipys(derivation, seed, n, scale):
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    hard = rng.normal(size=n)
    a, b = (scale * (hard + 0.1 * rng.normal(size=n)) for _ in range(2))
    mean, error = page.paired(a, b)
    assert math.isclose(mean / error, stats.ttest_rel(a, b).statistic, rel_tol=1e-9)
    mean, error = page.separate(a, b)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert math.isclose(mean / error, welch.statistic, rel_tol=1e-9, abs_tol=1e-12)


@given(seed=SEEDS, seeds=st.integers(2, 4))
def test_the_estimated_variance_is_unbiased(derivation, seed, seeds):
    """All samples from a joint distribution of three outcomes, each with its probability."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    outcomes, p = rng.normal(size=(3, 2)), rng.dirichlet(np.ones(3))
    estimate = mean = square = 0.0
    for draw in product(range(3), repeat=seeds):
        weight = math.prod(p[list(draw)])
        d, error = page.paired(*outcomes[list(draw)].T)
        estimate, mean, square = (
            x + weight * y
            for x, y in zip((estimate, mean, square), (error**2, d, d * d), strict=True)
        )
    true = p @ (outcomes[:, 0] - outcomes[:, 1])
    covariance = np.cov(outcomes.T, aweights=p, ddof=0)
    formula = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / seeds
    assert math.isclose(mean, true, abs_tol=1e-12)
    assert math.isclose(square - mean**2, formula, abs_tol=1e-12)
    assert math.isclose(estimate, formula, abs_tol=1e-12)


def test_students_distribution_with_two_degrees_of_freedom():
    for t in (0.5, 3.4641, 10.0):
        assert math.isclose(1 - t / math.sqrt(2 + t * t), 2 * stats.t.sf(t, 2), rel_tol=1e-9)


# The curse


@given(seed=SEEDS, k=st.integers(2, 4), outcomes=st.integers(1, 5))
def test_the_two_sides_of_a_tuned_score(seed, k, outcomes):
    """Any joint distribution of k scores, dependent or not."""
    rng = np.random.default_rng(seed)
    scores, p = rng.normal(size=(outcomes, k)), rng.dirichlet(np.ones(outcomes))
    mu = p @ scores
    assert p @ scores.min(1) <= mu.min() + 1e-12
    assert p @ mu[scores.argmin(1)] >= mu.min() - 1e-12


def test_the_normal_minimum(derivation):
    page = derivation(CHAPTER)
    closed = {1: 0.0, 2: -1 / math.sqrt(math.pi), 3: -1.5 / math.sqrt(math.pi)}
    for k, value in closed.items():
        assert math.isclose(page.normal_minimum(k), value, abs_tol=1e-6)
    for k in (5, 17, 100):
        density = integrate.quad(
            lambda x, k=k: x * k * stats.norm.pdf(x) * stats.norm.sf(x) ** (k - 1), -12, 12
        )
        assert math.isclose(page.normal_minimum(k), density[0], abs_tol=1e-6)
        assert page.normal_minimum(k) > -math.sqrt(2 * math.log(k))
    assert [round(-page.normal_minimum(k), 2) for k in (2, 3, 8)] == [0.56, 0.85, 1.42]


@given(k=st.integers(1, 50))
def test_uniform_and_exponential_noise(derivation, k):
    page = derivation(CHAPTER)
    uniform = integrate.quad(lambda x: (1 - x) ** k, 0, 1)[0]
    assert math.isclose(
        page.standardised_minimum("uniform", k), (uniform - 0.5) * 12**0.5, abs_tol=1e-9
    )
    exponential = integrate.quad(lambda x: math.exp(-k * x), 0, np.inf)[0]
    assert math.isclose(page.standardised_minimum("exponential", k), exponential - 1, abs_tol=1e-7)


@given(seed=SEEDS, n=st.integers(1, 8), ties=st.booleans())
def test_best_of_is_the_mean_over_all_subsets(derivation, seed, n, ties):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, n).astype(float) if ties else rng.normal(size=n)
    for k in range(1, n + 1):
        expected = np.mean([min(c) for c in combinations(x, k)])
        assert math.isclose(derivation(CHAPTER).best_of(x, k), expected, abs_tol=1e-12)


@given(seed=SEEDS, n=st.integers(2, 5))
def test_best_of_is_unbiased_and_the_museums_is_not(museum, seed, n):
    """All samples of n from a population of three values."""
    page, rng = museum(CHAPTER), np.random.default_rng(seed)
    values, p = np.array([0.0, 1.0, 3.0]), rng.dirichlet(3 * np.ones(3))
    k = n - 1 if n > 2 else 2
    above = np.append(np.cumsum(p[::-1])[::-1], 0) ** k
    truth = values @ (above[:-1] - above[1:])
    means = np.zeros(2)
    for draw in product(range(3), repeat=n):
        x = values[list(draw)]
        means += math.prod(p[list(draw)]) * np.array(
            [page.best_of(x, k), page.best_of_with_replacement(x, k)]
        )
    assert math.isclose(means[0], truth, abs_tol=1e-12)
    assert means[1] > truth + 1e-6


@given(seed=SEEDS, rates=st.integers(1, 7))
def test_the_optimism(derivation, seed, rates):
    """Never negative, blind to hard seeds, and what a swap of the seeds costs."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    scores = rng.normal(size=(rates, 2))
    value = page.optimism(scores)
    one, two = scores.argmin(0)
    assert value >= 0 and (value == 0) == (one == two)
    assert math.isclose(page.optimism(scores + np.array([0.0, 7.0])), value, abs_tol=1e-12)
    fresh = (scores[one, 1] + scores[two, 0]) / 2
    assert math.isclose(value, fresh - (scores[one, 0] + scores[two, 1]) / 2, abs_tol=1e-12)


@given(seed=SEEDS, n=st.integers(1, 5), seeds=st.integers(1, 4))
def test_first_places_by_all_draws(derivation, seed, n, seeds):
    table = np.random.default_rng(seed).normal(size=(n, seeds))
    every = [
        np.argmin(table[:, list(draw)].mean(1)) for draw in product(range(seeds), repeat=seeds)
    ]
    found = derivation(CHAPTER).first_places(table)
    assert np.allclose(found, np.bincount(every, minlength=n) / seeds**seeds, atol=1e-12)


def test_the_pencil_examples(derivation):
    page = derivation(CHAPTER)
    a, b = [0.30, 0.26, 0.34], [0.28, 0.25, 0.31]
    assert np.allclose([np.std(a, ddof=1), np.std(b, ddof=1)], [0.04, 0.03])
    assert np.allclose(page.separate(a, b), [0.02, 0.05 / math.sqrt(3)])
    assert np.allclose(page.paired(a, b), [0.02, 0.01 / math.sqrt(3)])
    least = [min(roll) for roll in product(range(1, 7), repeat=3)]
    assert sum(least) == 441
    assert 2**-4 > 1 / 20 > 2**-5  # five and six seeds, all of one sign
    excess, floor, noise = np.array([0.15, 0.30]), 2.11, 10 * math.log(2)
    plain, printed = floor + excess, floor + noise + excess
    assert (plain.round(2).tolist(), printed.round(2).tolist()) == ([2.26, 2.41], [9.19, 9.34])
    assert round(100 * (1 - plain[0] / plain[1])) == 6
    assert round(100 * (1 - printed[0] / printed[1]), 1) == 1.6


# The record


@pytest.fixture(scope="module")
def result():
    return recorded.load("optimizer-race")["result"]


def test_everybody_ran_the_same_protocol(result):
    assert set(result["competitors"]) == set(race.COMPETITORS)
    assert result["setting"] == race.asdict(race.Setting())
    assert tuple(result["tuning_seeds"]) == race.TUNING
    assert tuple(result["test_seeds"]) == race.TEST
    starts = {}
    for c in result["competitors"].values():
        assert [row["seed"] for row in c["test"]] == list(race.TEST)
        for row in c["test"]:
            assert len(row["curve"]) == len(result["steps"]) and row["curve"][-1] == row["excess"]
            assert min(row["curve"]) > 0  # nobody is below the floor
            starts.setdefault(row["seed"], set()).add((row["first"][0], row["curve"][0]))
    assert all(len(found) == 1 for found in starts.values())  # same weights, same first texts


def test_every_tuned_rate_is_the_best_and_inside_its_grid(derivation, result):
    for name, c in result["competitors"].items():
        score = {
            row["lr"]: np.mean([math.inf if e is None else e for e in row["excess"]])
            for row in c["tuning"]
        }
        rates = sorted(score)
        place = rates.index(c["tuned"])
        assert min(score, key=score.get) == c["tuned"]
        assert 2 <= place <= len(rates) - 3
        guess = race.COMPETITORS[name].guess
        assert derivation(CHAPTER).tune(lambda lr, n, s=score: s[lr], guess, 300) == c["tuned"]


@pytest.mark.parametrize("name", ["momentum", "rmsprop", "nadam", "adafactor"])
def test_the_first_steps_of_a_recorded_run_happen_again(result, name):
    """Float32 on another machine: a few units of its last place at a loss of 6."""
    c = result["competitors"][name]
    again = race.run(name, c["tuned"], race.TEST[1], stop=race.FIRST)
    then = c["test"][1]
    assert np.allclose(again["first"], then["first"], rtol=0, atol=1e-5)
    assert math.isclose(again["curve"][0], then["curve"][0], abs_tol=2e-5)


def test_the_printed_table_is_the_record(result):
    text = "".join(
        output.text
        for cell in nbformat.read(NOTEBOOK, as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "behind the first" in output.get("text", "")
    )
    *rows, last = text.split("behind the first\n")[1].splitlines()
    untuned = result["untuned"]["adafactor-published"]
    assert untuned["lr"] == 0.01
    assert last.endswith(f"{np.mean([row['excess'] for row in untuned['test']]):.2f}")
    means = {n: np.mean([r["excess"] for r in c["test"]]) for n, c in result["competitors"].items()}
    order = sorted(means, key=means.get)
    best = np.array([r["excess"] for r in result["competitors"][order[0]]["test"]])
    assert len(rows) == len(order)
    for name, row in zip(order, rows, strict=True):
        c = result["competitors"][name]
        assert row.startswith(c["label"]) and f"{means[name]:.2f}" in row
        if name != order[0]:
            d = np.array([r["excess"] for r in c["test"]]) - best
            half = stats.sem(d) * stats.t.ppf(0.975, 4)
            assert row.endswith(f"{d.mean():.2f} ± {half:.3f}")


def test_what_the_text_says_of_the_record(derivation, result):
    """The numbers that stand in sentences."""
    found = {
        n: np.array([r["excess"] for r in c["test"]]) for n, c in result["competitors"].items()
    }
    mean = {n: x.mean() for n, x in found.items()}
    order = sorted(mean, key=mean.get)
    assert (order[0], order[1], order[-1]) == ("adafactor", "radam", "sgd")
    assert [round(mean[n], 2) for n in ("adafactor", "adam")] == [0.17, 0.47]
    assert round(mean["adafactor-unscaled"], 2) == 0.44 and round(mean["rmsprop"], 2) == 0.77
    assert round(mean["rmsprop"] - mean["adam"], 1) == 0.3
    assert max(mean[n] for n in ("adam", "adamw", "amsgrad", "adamax")) - mean["adam"] < 0.0035
    apart = np.abs(found["adam"] - found["adamw"])
    assert apart.min() < 1e-4 and round(apart.max(), 3) == 0.007
    assert round(np.ptp(found["adam"]), 2) == 0.05
    assert all((found["sgd"] > x).all() for n, x in found.items() if n != "sgd")
    widths = [x.std(ddof=1) for x in found.values()]
    assert round(max(widths) / min(widths)) == 7
    rates = {n: c["tuned"] for n, c in result["competitors"].items()}
    assert (min(rates.values()), max(rates.values())) == (1 / 1024, 2)
    assert (rates["adafactor"], rates["adam"], rates["bert"]) == (1 / 4, 1 / 256, 1 / 1024)


def test_what_the_text_says_of_tuning(derivation, result):
    grids = {n: [row["lr"] for row in c["tuning"]] for n, c in result["competitors"].items()}
    scores = {n: np.array([row["excess"] for row in c["tuning"]], dtype=float)
              for n, c in result["competitors"].items()}  # fmt: skip
    test = {n: np.mean([r["excess"] for r in c["test"]]) for n, c in result["competitors"].items()}
    at = {n: dict(zip(grids[n], scores[n], strict=True)) for n in scores}
    best = {n: x.mean(1).min() for n, x in scores.items()}
    # Adafactor does as well at 1/8, and its bowl is flat
    assert at["adafactor"][1 / 8].mean() - best["adafactor"] < 0.005
    assert max(at["adafactor"][r].mean() for r in (1 / 8, 1 / 4, 1 / 2)) < 0.175
    # the curse of the second seed
    assert scores["adam"][:, 1].argmin() == grids["adam"].index(1 / 128)
    second, *others = at["adam"][1 / 128][[1, 0, 2, 3, 4]]
    assert [round(x, 2) for x in (second, min(others), max(others))] == [0.31, 0.56, 0.79]
    pairs = [list(pair) for pair in combinations(range(5), 2)]
    luck = {n: np.mean([derivation(CHAPTER).optimism(x[:, p]) for p in pairs])
            for n, x in scores.items()}  # fmt: skip
    assert round(np.mean(list(luck.values())), 2) == 0.03 and round(luck["bert"], 2) == 0.09
    gaps = np.diff(sorted(test.values()))
    assert sum(gaps < luck["bert"]) == 9  # most of 14
    # what two seeds would have chosen
    chosen = {n: grids[n][x[:, :2].mean(1).argmin()] for n, x in scores.items()}
    cost = (at["bert"][1 / 512] - at["bert"][1 / 1024])[2:].mean()
    assert chosen["bert"] == 1 / 512 and round(cost, 2) == 0.13
    # a factor of four in Adam's rate
    quarter = at["adam"][1 / 1024].mean()
    assert quarter > best["sgd"]
    order = sorted(test.values())
    assert math.isclose(quarter - best["adam"], order[-1] - order[3], abs_tol=0.015)
    # torch's defaults
    for name, c in result["competitors"].items():
        assert c.get("default", {}).get("lr") == race.COMPETITORS[name].default
    default = {n: np.mean(c["default"]["excess"])
               for n, c in result["competitors"].items() if "default" in c}  # fmt: skip
    behind = {n for n, x in default.items() if x > best["sgd"]}
    assert behind == {"rmsprop", "adam", "adamw", "amsgrad", "adamax", "radam"}
    assert {round(default[n] - best["sgd"], 2) for n in ("adam", "adamw", "amsgrad")} == {0.04}
    assert len(default) == 9 and max(best[n] for n in default) < best["sgd"]


def test_adafactors_limit_acts_as_long_as_the_text_says():
    t = np.arange(1, 301)
    shape = optim.course("cosine", steps=300, warmup=30, start="even").factors(300)[:300]
    ratio = {lr: lr * shape * np.sqrt(t) for lr in (1 / 8, 1 / 4, 1 / 2)}
    assert [int((x > 1).sum()) for x in ratio.values()] == [59, 181, 222]
    assert 0.05 < 1 - 1 / ratio[1 / 8].max() < 0.06


def test_decay_takes_what_the_text_says(result):
    shrink = result["competitors"]["adamw"]["tuned"] * 0.01
    shrink *= optim.course("cosine", steps=300, warmup=30, start="even").factors(300).sum()
    assert round(100 * shrink, 1) == 0.6


@pytest.mark.parametrize("name", ["bert", "radam"])
def test_one_method_under_three_schedules(derivation, name):
    """A step from Adam's memory, times the factor, is the other method's step."""
    factor, rng = derivation(CHAPTER).step_factor, np.random.default_rng(0)
    zero = torch.zeros(5, dtype=torch.float64)
    m, v = zero, zero
    for t in range(1, 301):
        g = torch.tensor(rng.normal(size=5))
        plain = {"lr": 1.0, "eps": 1e-30}
        adam = optim.adam_step(zero, g, m, v, t, **plain)[0]
        if name == "bert":
            other, m, v = optim.adam_step(zero, g, m, v, t, **plain, bias_correction=False)
        else:
            other, m, v = optim.radam_step(zero, g, m, v, t, **plain)
        if t > 5:
            assert np.allclose(other, factor(name, t) * adam, rtol=1e-9, atol=0)
    quoted = [round(factor(name, t), 2) for t in (30, 300)]
    assert quoted == {"bert": [5.57, 1.96], "radam": [0.11, 0.37]}[name]


# The museum


def test_each_museum_bug_fails_the_check_that_the_right_code_passes(museum):
    page = museum(CHAPTER)
    assert checks.check("comparing-tuning", page.tune).passed
    report = checks.check("comparing-tuning", page.tune_for_another_race)
    assert set(report.failures) == {
        "the best rate far above the guess",
        "the best rate far below the guess",
        "a long race wants a smaller rate",
    }
    assert checks.check("comparing-best-of", page.best_of).passed
    report = checks.check("comparing-best-of", page.best_of_with_replacement)
    assert "two of three" in report.failures and "one try" not in report.failures


@given(seed=SEEDS, shift=st.integers(-12, 12), cliff=st.booleans())
def test_tuning_finds_the_bottom_of_any_bowl(derivation, seed, shift, cliff):
    """Within a grid of factors of two, from any guess, with rates that diverge above."""
    width = np.random.default_rng(seed).uniform(0.01, 2)

    def excess(rate, steps):
        j = math.log2(rate / 0.01) - shift
        return math.nan if cliff and j > 0.5 else width * j * j

    assert derivation(CHAPTER).tune(excess, 0.01, 1) == 0.01 * 2.0**shift


def test_the_museum_rule_with_replacement_is_a_fifth_off(museum):
    """By the exact mean of normal order statistics, in place of the page's simulation."""
    page, n, k = museum(CHAPTER), 10, 8
    weights = page.best_of_with_replacement
    order = [
        integrate.quad(
            lambda x, i=i: x * stats.norm.pdf(x) * math.comb(n - 1, i) * n
            * stats.norm.cdf(x) ** i * stats.norm.sf(x) ** (n - 1 - i),
            -12, 12,
        )[0]
        for i in range(n)
    ]  # fmt: skip
    assert math.isclose(page.best_of(order, k), page.normal_minimum(k), abs_tol=1e-6)
    assert round(weights(order, k) - page.normal_minimum(k), 1) == 0.2


# The exercises

SOLUTIONS = {
    "comparing-chances": "chances",
    "comparing-seeds": "seeds_needed",
    "comparing-flips": "flip_test",
    "comparing-budget": "budget",
}


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_printed_solutions_pass(solutions, exercise):
    assert checks.check(exercise, getattr(solutions(CHAPTER), SOLUTIONS[exercise])).passed


def test_the_solutions_say_what_is_printed(solutions):
    page = solutions(CHAPTER)
    assert [round(x, 2) for x in page.chances([1 / 6] * 6, 3)] == [0.66, 0.17, 0.17]
    assert round(page.chances([1e-4] * 10_000, 3)[0], 3) == 0.75
    assert [page.seeds_needed(1.0, d, 0.95) for d in (0.5, 0.25, 0.1)] == [18, 64, 387]
    assert [round(stats.t.ppf(0.975, n), 1) for n in (1, 2)] == [12.7, 4.3]
    assert page.flip_test([1.0, 2, 3, 4, 5]) == 1 / 16


def least_of(x, k):
    return np.mean([min(c) for c in combinations(x, k)])


def late_on(a, b, longest):
    """To the length of the longer grid, where the shorter one has nothing new to give."""
    needed = 0
    for k in range(longest, 0, -1):
        if not least_of(a, min(k, len(a))) < least_of(b, min(k, len(b))):
            break
        needed = k
    return needed


def chances(p, k):
    above = np.append(np.cumsum(p[:0:-1])[::-1], 0.0)
    better, worse = np.dot(p, 1 - (above + p) ** k), np.dot(p, above**k)
    return better, 1 - better - worse, worse


def late(a, b):
    ahead = [least_of(a, k) < least_of(b, k) for k in range(1, min(len(a), len(b)) + 1)]
    return ahead.index(True) + 1 if True in ahead else 0


MUTANTS = [
    ("comparing-chances", lambda p, k: (k / (k + 1), 0.0, 1 / (k + 1)), "two things"),
    ("comparing-chances", lambda p, k: tuple(
        float(np.dot(p, x)) for x in (
            1 - (1 - np.cumsum(p)) ** k, 0 * p, (1 - np.cumsum(p)) ** k)), "two things"),
    ("comparing-seeds", lambda s, d, level: max(
        2, math.ceil((stats.norm.ppf((1 + level) / 2) * s / d) ** 2)), "Student"),
    ("comparing-seeds", lambda s, d, level: next(
        n for n in range(2, 9999)
        if 2 * stats.t.ppf((1 + level) / 2, n - 1) * s / math.sqrt(n) <= d), "The half width"),
    ("comparing-seeds", lambda s, d, level: next(
        n for n in range(2, 9999)
        if stats.t.ppf(level, n - 1) * s / math.sqrt(n) <= d), "Half of what is left"),
    ("comparing-flips", lambda d: np.mean(
        [np.dot(s, d) >= np.sum(d) for s in product((-1, 1), repeat=len(d))]), "Both sides"),
    ("comparing-flips", lambda d: np.mean(
        [abs(np.dot(s, d)) > abs(np.sum(d)) for s in product((-1, 1), repeat=len(d))]),
     "as far from zero"),
    ("comparing-flips", lambda d: stats.ttest_1samp(d, 0).pvalue, "Two of 32"),
    ("comparing-budget", late, "from the largest k down"),
    ("comparing-budget", lambda a, b: late_on(a, b, max(len(a), len(b))), "with the shorter grid"),
    ("comparing-chances", lambda p, k: chances(p, k)[::-1], "Better, equal, worse"),
    ("comparing-budget", lambda a, b: int(min(a) < min(b)), "expected best of k"),
    ("comparing-tuning", lambda f, guess, n: min(
        (guess * 2.0**j for j in range(-20, 21)), key=lambda r: f(r, n // 10)), "another number"),
    ("comparing-best-of", lambda x, k: np.mean(np.sort(x)[:k]), "One try: the mean"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "mutant", "hint"), MUTANTS)
def test_the_exercises_catch_mistakes(exercise, mutant, hint):
    with np.errstate(all="ignore"):
        report = checks.check(exercise, mutant)
    assert not report.passed
    assert hint in " ".join(str(report).split())
