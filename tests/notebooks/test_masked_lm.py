"""The chapter's NumPy against lossbook, torch and transformers, its museum and its exercises."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from lossbook import checks, recorded
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.corpora.floors import masked_floor, selection_pmf
from lossbook.objectives import MaskedLM

CHAPTER = "masked-lm"
IGNORE = -100


@cache
def language():
    return HiddenMarkovLanguage.default()


def vocabulary():
    return language().vocabulary


@cache
def many_ids():
    return language().batch(4096, 64, seed=5)


# --- the loss


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.2, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 999),
)
@settings(max_examples=50)
@example(shape=(0, 3, 2), share=1.0, scale=1.0, seed=0)
@example(shape=(3, 0, 2), share=1.0, scale=1.0, seed=0)
@example(shape=(2, 3, 1), share=1.0, scale=1.0, seed=0)
def test_loss_and_gradient(derivation, shape, share, scale, seed):
    """As defined = as arrays = lossbook = torch, from no target to all, also for huge logits."""
    page = derivation(CHAPTER)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    labels = rng.integers(0, shape[2], size=shape[:2])
    labels[rng.random(shape[:2]) >= share] = IGNORE
    objective, batch = MaskedLM(vocabulary()), {"labels": torch.tensor(labels)}
    z = torch.tensor(logits, requires_grad=True)
    ours = objective.loss(z, batch)
    ours.backward()
    value = page.masked_loss(logits, labels)
    gradient = page.masked_loss_gradient(logits, labels)
    assert checks.difference(value, ours) <= 1e-13
    assert checks.difference(gradient, z.grad) <= 1e-13
    assert not gradient[labels == IGNORE].any()
    if scale <= 1:  # the definition takes the logarithm of a probability, which may underflow
        assert checks.difference(value, page.masked_loss_by_definition(logits, labels)) <= 1e-13
    if (labels != IGNORE).any():
        y = torch.tensor(logits, requires_grad=True)
        theirs = F.cross_entropy(y.flatten(0, 1), batch["labels"].flatten())
        theirs.backward()
        assert checks.difference(value, theirs) <= 1e-13
        assert checks.difference(gradient, y.grad) <= 1e-13


def test_the_opening_example_by_hand(derivation):
    """1.386 nats; 1.155, 1.040 and 0.193 with a second text; the gradients -0.25 and -0.4375."""
    page = derivation(CHAPTER)
    logits = np.zeros((2, 9, 3))
    labels = np.full((2, 9), IGNORE)
    for place, p in {(0, 3): 0.5, (0, 6): 0.125, (1, 2): 0.5}.items():
        labels[place] = 0
        logits[place] = np.log([p, (1 - p) / 2, (1 - p) / 2])
    first = logits[:1], labels[:1]
    assert round(page.masked_loss(*first), 3) == 1.386 == round(math.log(4), 3)
    assert np.allclose(page.masked_loss_gradient(*first)[0, [3, 6], 0], [-0.25, -0.4375])
    assert round(page.masked_loss(logits, labels), 3) == 1.155
    nats = page.nats_at_targets(logits, labels)
    assert round((nats[:2].mean() + nats[2]) / 2, 3) == 1.040
    assert [round(nats[:2].sum() / 9, 3), round(nats.sum() / 18, 3)] == [0.308, 0.193]


@given(rows=st.lists(st.lists(st.floats(0, 20), min_size=1, max_size=6), min_size=1, max_size=6))
def test_two_denominators_differ_by_a_covariance(rows):
    """The identity of the text, for any losses and any numbers of targets."""
    n, m = np.array([len(row) for row in rows]), np.array([np.mean(row) for row in rows])
    covariance = np.mean(n * m) - n.mean() * m.mean()
    pooled = np.mean(np.concatenate(rows))
    assert math.isclose(pooled, m.mean() + covariance / n.mean(), abs_tol=1e-9)


# --- the corruption


@given(seed=st.integers(0, 999), length=st.integers(3, 30), rate=st.sampled_from([0, 0.15, 1]))
@settings(max_examples=30)
def test_slow_and_fast_corruption_are_equal(derivation, seed, length, rate):
    page = derivation(CHAPTER)
    ids = language().batch(3, length, seed=seed)
    before = ids.copy()
    slow = page.corrupt_by_definition(ids, vocabulary(), np.random.default_rng(seed), rate)
    fast = page.corrupt(ids, vocabulary(), np.random.default_rng(seed), rate)
    assert all(map(np.array_equal, slow, fast))
    assert np.array_equal(ids, before)


def lossbook_corruption(ids, vocabulary, rng):
    batch = MaskedLM(vocabulary).corrupt(ids, rng)
    return batch["input_ids"], batch["labels"]


@pytest.mark.parametrize("seed", range(4))
def test_right_corruptions_pass_the_audit(derivation, seed):
    """The p-value is above 0.001 by chance in all but one of a thousand seeds; these are fixed."""
    page = derivation(CHAPTER)
    for corruptor in (page.corrupt, lossbook_corruption):
        assert all(page.audit(corruptor, many_ids().copy(), vocabulary(), seed).values())


@pytest.mark.parametrize(
    ("bug", "caught"),
    [
        ("independent_branches", ["80/10/10"]),
        ("a_tenth_of_the_rest", ["80/10/10"]),
        ("any_id_at_random", ["no special token"]),
        ("changed_in_place", ["ids untouched", "labels are originals"]),
    ],
)
def test_the_same_audit_catches_each_bug(museum, bug, caught):
    page = museum(CHAPTER)
    report = page.audit(getattr(page, bug), many_ids().copy(), vocabulary())
    assert [name for name, good in report.items() if not good] == caught


@pytest.mark.parametrize(
    ("bug", "shares"),
    [("independent_branches", (0.81, 0.10, 0.09)), ("a_tenth_of_the_rest", (0.80, 0.02, 0.18))],
)
def test_the_shares_that_the_text_derives(museum, bug, shares):
    """81/10/9 and 80/2/18, within five standard errors of 39,000 targets."""
    page, ids = museum(CHAPTER), many_ids()
    seen, labels = getattr(page, bug)(ids.copy(), vocabulary(), np.random.default_rng(1))
    at = labels != IGNORE
    masked, same = (seen == vocabulary().mask_id)[at].mean(), (seen == ids)[at].mean()
    assert math.isclose(masked, shares[0], abs_tol=0.01)
    hit = shares[1] / len(vocabulary().ordinary_ids)
    assert math.isclose(same, shares[2] + hit, abs_tol=0.01)


@given(masked=st.integers(0, 300), other=st.integers(0, 60), same=st.integers(1, 60))
def test_the_p_value_is_scipys(derivation, masked, other, same):
    """The exponential of the text is the chi-square distribution with two degrees of freedom."""
    n, hit = masked + other + same, 1 / len(vocabulary().ordinary_ids)
    originals = np.full(n, 7)
    seen = np.repeat([vocabulary().mask_id, 8, 7], [masked, other, same])
    expected = n * np.array([0.8, 0.1 * (1 - hit), 0.1 * (1 + hit)])
    reference = stats.chisquare([masked, other, same], expected).pvalue
    found = derivation(CHAPTER).p_value(originals, seen, vocabulary())
    assert math.isclose(found, reference, rel_tol=1e-9, abs_tol=1e-290)


@given(
    selection=st.sampled_from(["bernoulli", "count", "rounding"]),
    length=st.integers(8, 200),
    rate=st.floats(0.05, 0.6),
)
def test_the_laws_of_the_number_of_targets(derivation, selection, length, rate):
    """The page's law is lossbook's, and its moments are the formulas of the text."""
    page, c = derivation(CHAPTER), length - 2
    law = page.count_law(selection, rate, length, c)
    assert checks.difference(law, selection_pmf(selection, rate, length, c)) <= 1e-9
    f = rate * length - math.floor(rate * length)
    whole = max(1, round(rate * length))
    moments = {
        "bernoulli": (c * rate, c * rate * (1 - rate)),
        "count": (whole, 0.0),
        "rounding": (rate * length, f * (1 - f)),
    }[selection]
    assert np.allclose(page.mean_and_variance(law), moments, atol=1e-9)


def test_numbers_of_the_text_about_counts(derivation):
    law = derivation(CHAPTER).count_law("bernoulli", 0.15, 64, 62)
    assert round(1 / law[:6].sum()) == 12 and round(1 / law[14:].sum()) == 14
    assert math.isclose(law[0], 4e-5, rel_tol=0.1)
    assert round(100 * 0.85**14) == 10 and round(100 * 0.85**10) == 20
    assert round(100 * 0.85**40, 2) == 0.15
    assert round(100 * 10 / 62, 1) == 16.1


# --- the ideal predictor


def test_bayes_rule_is_the_floor_of_a_language_without_context(derivation):
    """One hidden state: tokens are independent, and the exact floor must be the page's formula."""
    from lossbook.corpora import Vocabulary

    prior = np.array([0.6, 0.3, 0.08, 0.02])
    words = Vocabulary.from_words("abcd")
    emission = np.concatenate([np.zeros(5), prior])[None]
    flat = HiddenMarkovLanguage(np.ones(1), np.ones((1, 1)), emission, words)
    page, objective = derivation(CHAPTER), MaskedLM(words, rate=0.5)
    ids = flat.batch(20, 12)
    batch = objective.corrupt(ids, objective.generator(0, 0))
    ideal = masked_floor(flat, ids, batch["input_ids"], batch["labels"], rate=0.5, log_probs=True)
    seen = batch["input_ids"][ideal.targets]
    assert {4, 5, 8} <= set(seen.tolist())
    for token, log_q in zip(seen, ideal.log_probs, strict=True):
        known = page.posterior_without_context(prior, token - 5) if token > 4 else prior
        assert checks.difference(np.exp(log_q)[5:], known) <= 1e-12


def test_how_likely_a_seen_token_is_genuine(derivation):
    """0.98 for the full stop, 0.24 for a rare word, (1 + 1/V)/2 at the average frequency."""
    page = derivation(CHAPTER)
    V = len(vocabulary().ordinary_ids)
    assert V == 387
    for frequency, stated in ((0.12, 0.98), (0.0008, 0.24), (1 / V, (1 + 1 / V) / 2)):
        prior = np.full(V, (1 - frequency) / (V - 1))
        prior[3] = frequency
        assert math.isclose(page.posterior_without_context(prior, 3)[3], stated, abs_tol=0.005)
    text = language().batch(400, 64)[:, 1:-1]
    stop = np.mean(text == language().sentence_end_id)
    assert round(stop, 2) == 0.12


# --- museum, exercises, record


@pytest.mark.parametrize(
    ("bug", "must_fail"),
    [
        ("cancelled_mask", "two targets by hand"),
        ("mean_of_row_means", "a row without a target"),
        ("divided_by_positions", "two targets by hand"),
    ],
)
def test_the_same_check_catches_each_denominator(museum, bug, must_fail):
    report = checks.check("masked-lm-loss", getattr(museum(CHAPTER), bug))
    assert must_fail in report.failures


def test_the_mask_cancels(museum):
    """Four slots with log 2, 8, 16 and 16: the right value is 1.386, the bug's 2.079."""
    logits = np.array([[[p, 0.5, 0.5 - p] for p in (0.25, 0.125, 0.0625, 0.0625)]])
    logits = np.log(logits)[..., [1, 0, 2]]
    labels = np.array([[0, 1, IGNORE, IGNORE]])
    logits[:, 2:] = np.log([0.0625, 0.5, 0.4375])
    page = museum(CHAPTER)
    assert math.isclose(page.masked_loss(logits, labels), math.log(4))
    assert math.isclose(page.cancelled_mask(logits, labels), 3 * math.log(2))
    assert round(3 * math.log(2), 3) == 2.079


SOLUTIONS = {
    "masked-lm-loss": "masked_lm_loss",
    "masked-lm-corruption": "corrupt_given",
    "distinct-targets": "distinct_targets",
    "kept-token-posterior": "kept_posterior",
    "context-information": "context_information",
}


@pytest.mark.parametrize(("exercise", "name"), SOLUTIONS.items())
def test_the_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def loss(logits, labels, denominator=None, *, ignored=None, stable=True):
    targets = labels != IGNORE if ignored is None else ~ignored(labels)
    z, y = logits[targets], labels[targets]
    z = z - (z.max(-1, keepdims=True, initial=-np.inf) if stable else 0)
    nats = np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y]
    return nats.sum() / (denominator or max(len(y), 1))


def corruption(ids, selected, u, random_ids, mask_id, replacement, **mistake):
    below = np.less_equal if mistake.get("closed") else np.less
    mask, random, _ = replacement
    if mistake.get("rest"):
        random *= 1 - mask
    masked = below(u, mask) & (selected | bool(mistake.get("everywhere")))
    input_ids = np.where(selected & below(u, mask + random) & ~masked, random_ids, ids)
    input_ids = np.where(masked, mask_id, input_ids)
    changed = selected & (input_ids != ids) if mistake.get("changed") else selected
    return input_ids, np.where(changed, ids, IGNORE)


def change_in_place(ids, selected, u, random_ids, mask_id, replacement):
    right = corruption(ids, selected, u, random_ids, mask_id, replacement)
    ids[:] = right[0]
    return right


def posterior(prior, seen, keep, random, *, hit=True):
    ways = np.array(prior) * random / len(prior)
    ways[seen] = prior[seen] * (keep + hit * random / len(prior))
    return ways / ways.sum()


def information(rate, flip, *, one_sided=False, per_target=False, reach=400):
    k = np.arange(1, reach)
    chance, p = (1 - rate) * rate ** (k - 1.0), (1 + (1 - 2 * flip) ** k) / 2
    a, b = p[:, None], np.full_like(p, 0.5) if one_sided else p
    parts = np.stack([a * b, (1 - a) * (1 - b), a * (1 - b), (1 - a) * b])
    ends = np.stack([parts[0] + parts[1]] * 2 + [parts[2] + parts[3]] * 2)
    nats = -np.sum(parts * np.log(np.maximum(parts, 1e-300) / ends), 0)
    return (1 if per_target else rate) * (math.log(2) - chance @ nats @ chance)


MISTAKES = [
    ("masked-lm-loss", lambda z, y, d=None: loss(z, y, y.size), "two targets by hand"),
    ("masked-lm-loss", lambda z, y, d=None: loss(z, y), "one of two micro-batches"),
    ("masked-lm-loss", lambda z, y, d=None: loss(z, y, d, stable=False), "logits times 1000"),
    ("masked-lm-loss", lambda z, y, d=None: loss(z, y, d, ignored=lambda y: y <= 0), "token 0"),
    ("masked-lm-loss", lambda z, y, d=None: loss(z, y, d) if (y >= 0).any() else math.nan,
     "no target in the whole batch"),
    ("masked-lm-loss", lambda z, y, d=None: np.mean([loss(*row) for row in zip(z, y, strict=True)]),
     "a row without a target"),
    ("masked-lm-corruption", lambda *a: corruption(*a, closed=True), "u on the boundaries"),
    ("masked-lm-corruption", lambda *a: corruption(*a, rest=True), "half [MASK]"),
    ("masked-lm-corruption", lambda *a: corruption(*a, everywhere=True), "nothing selected"),
    ("masked-lm-corruption", lambda *a: corruption(*a, changed=True), "happens to be the original"),
    ("masked-lm-corruption", change_in_place, "masked, random and kept"),
    ("distinct-targets", lambda n, k: min(n, k), "two draws from two"),
    ("distinct-targets", lambda n, k: n * (1 - math.exp(-k / n)), "one candidate"),
    ("kept-token-posterior", lambda *a: posterior(*a, hit=False), "uniform prior"),
    ("kept-token-posterior", lambda prior, *a: posterior(np.full(len(prior), 1 / len(prior)), *a),
     "a rare token"),
    ("context-information", lambda *a: information(*a, one_sided=True), "15 %"),
    ("context-information", lambda *a: information(*a, per_target=True), "half of the text"),
    ("context-information", lambda *a: information(*a, reach=20), "90 %"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "mutant", "case"), MISTAKES)
def test_the_exercises_catch_mistakes(exercise, mutant, case):
    """Each mistake fails at the case that was made for it, and that case has a hint."""
    report = checks.check(exercise, mutant)
    (line,) = [i for i, text in enumerate(report.lines) if text.startswith("  ✗") and case in text]
    assert report.lines[line + 1].startswith("      ")


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("masked-lm-loss", loss),
        ("masked-lm-corruption", corruption),
        ("kept-token-posterior", posterior),
        ("context-information", information),
    ],
)
def test_the_exercises_accept_right_answers(exercise, answer):
    """The mutants differ from a right answer by their one mistake only."""
    assert checks.check(exercise, answer).passed


@given(prior=st.floats(0.001, 0.5), random=st.floats(0.01, 0.2), V=st.integers(3, 50))
def test_the_frequency_at_which_doubt_is_even(solutions, prior, random, V):
    """pi = rho / (kappa V + 2 rho) makes a seen token genuine with probability one half."""
    keep = 0.1
    even = random / (keep * V + 2 * random)
    if even < 1:
        law = np.full(V, (1 - even) / (V - 1))
        law[0] = even
        half = solutions(CHAPTER).kept_posterior(law, 0, keep, random)[0]
        assert math.isclose(half, 0.5, rel_tol=1e-9)


def test_the_best_rate_of_the_chain(solutions):
    """0.80, 0.65 and 0.55 for flips of 0.02, 0.1 and 0.3, by the other implementation."""
    rates = np.arange(0.05, 0.96, 0.05)
    for flip, best in ((0.02, 0.80), (0.1, 0.65), (0.3, 0.55)):
        for f in (solutions(CHAPTER).context_information, information):
            assert math.isclose(rates[np.argmax([f(r, flip) for r in rates])], best)


def test_aliased_labels_are_refused(museum):
    """What the chapter prints: the floor of labels that are not the originals is an error."""
    ids = language().batch(4, 20)
    seen, labels = museum(CHAPTER).changed_in_place(
        ids.copy(), vocabulary(), np.random.default_rng(0)
    )
    batch = {"input_ids": seen, "labels": labels}
    with pytest.raises(ValueError, match="labels: expected the original ids"):
        MaskedLM(vocabulary()).floor(language(), ids, batch)


def test_the_recorded_run():
    """It says where it comes from, falls to its floor from above, and knows its plateau."""
    record = recorded.load("masked-lm")
    assert record["command"].startswith("lossbook pretrain") and record["device"]
    history = record["result"]
    rows = history["evaluations"]
    assert [row["step"] for row in rows] == list(range(0, 2001, 100))
    assert all(row["loss"] > row["floor"] == history["floor"] for row in rows)
    assert rows[-1]["excess"] < 0.2 < rows[5]["excess"]
    ids = language().batch(64, 64, index=0, split="validation")
    objective = MaskedLM(vocabulary())
    batch = objective.corrupt(ids, np.random.default_rng([0, 0, 0, 1]))
    entropy = objective.floor(language(), ids, batch).mean_entropy
    assert math.isclose(entropy, history["entropy"], abs_tol=0.1)
