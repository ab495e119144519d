"""Floors against enumeration: every text, every selection and every corruption written out."""

import itertools
from functools import cache
from math import comb, log

import numpy as np
import pytest

from lossbook.corpora import (
    HiddenMarkovLanguage,
    Vocabulary,
    causal_floor,
    masked_floor,
    selection_pmf,
)
from lossbook.corpora.floors import DIRECTIONS, masked

REPLACEMENT = (0.8, 0.1, 0.1)
LAWS = ("bernoulli", "count", "rounding")


# --- the oracle: nothing but sums over everything ------------------------------------------------


def dense(seed: int, tokens: str = "abcd") -> HiddenMarkovLanguage:
    """A random language in which every text is possible: two blocks of 3 and 2 states."""
    rng = np.random.default_rng(seed)
    blocks = [rng.dirichlet(np.full(n, 0.7), size=n) for n in (3, 2)]
    emission = np.pad(rng.dirichlet(np.full(len(tokens), 0.6), size=5), ((0, 0), (5, 0)))
    initial, vocabulary = rng.dirichlet(np.ones(5)), Vocabulary.from_words(tokens)
    return HiddenMarkovLanguage(initial, blocks, emission, vocabulary)


LANGUAGES = {"tiny": HiddenMarkovLanguage.tiny(), "dense": dense(0)}
SMALL = {"small": dense(1, "abc")}


@cache
def all_texts(name: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every possible text and its probability, summed over all hidden paths."""
    language = (LANGUAGES | SMALL)[name]
    path, operands = "abcdef"[:length], [language.initial]
    terms = [path[0]]
    for t in range(length):
        operands.append(language.emission)
        terms.append(path[t] + path[t].upper())
        if t:
            operands.append(language.transition)
            terms.append(path[t - 1] + path[t])
    table = np.einsum(",".join(terms) + "->" + path.upper(), *operands, optimize="greedy")
    texts = np.argwhere(table > 0)
    return texts, table[tuple(texts.T)]


def channel(
    language: HiddenMarkovLanguage, replacement: tuple[float, float, float], random_ids: np.ndarray
) -> np.ndarray:
    """P(seen | true) of a selected token, one action after the other."""
    size = language.vocabulary.size
    matrix = np.zeros((size, size))
    for true in range(size):
        matrix[true, language.vocabulary.mask_id] += replacement[0]
        matrix[true, true] += replacement[2]
        for choice in random_ids:
            matrix[true, choice] += replacement[1] / len(random_ids)
    return matrix


def subsets(law: str, rate: float, length: int, limit: int | None) -> dict[tuple[int, ...], float]:
    """Every selection of a text of ``length`` tokens and its probability."""
    framed = length + 2
    counts: dict[int, float] = {}
    if law == "count":
        counts = {max(1, round(rate * framed)): 1.0}
    elif law == "rounding":
        low = int(rate * framed)
        counts = {low: low + 1 - rate * framed, low + 1: rate * framed - low}
    result: dict[tuple[int, ...], float] = {}
    for size in range(length + 1):
        for chosen in itertools.combinations(range(length), size):
            if law == "bernoulli":
                p = rate**size * (1 - rate) ** (length - size)
            else:
                p = sum(q for n, q in counts.items() if min(n, limit or n, length) == size)
                p /= comb(length, size)
            if p:
                result[chosen] = p
    return result


def oracle(name, seen, i, law, rate, random_ids, replacement=REPLACEMENT, limit=None):
    """P(x_i | seen, i selected) by summing P(text) P(selection) P(corruption) over everything."""
    language = LANGUAGES[name]
    texts, p_text = all_texts(name, len(seen))
    noise = channel(language, replacement, random_ids)
    q = np.zeros(language.vocabulary.size)
    for chosen, p_chosen in subsets(law, rate, len(seen), limit).items():
        if i in chosen:
            p = p_text * p_chosen
            for j, token in enumerate(seen):
                p = p * (noise[texts[:, j], token] if j in chosen else texts[:, j] == token)
            np.add.at(q, texts[:, i], p)
    return q / q.sum()


def corrupted(language, texts, law, rate, random_ids, rng, replacement=REPLACEMENT, limit=None):
    """Rows drawn from the law itself: (seen, labels)."""
    seen, labels = texts.copy(), np.full_like(texts, -100)
    table = subsets(law, rate, texts.shape[1], limit)
    for row, text in enumerate(texts):
        chosen = list(table)[rng.choice(len(table), p=list(table.values()))]
        for j in chosen:
            labels[row, j] = text[j]
            action = rng.choice(3, p=replacement)
            if action != 2:
                seen[row, j] = (
                    language.vocabulary.mask_id if action == 0 else rng.choice(random_ids)
                )
    return seen, labels


def framed(rows: np.ndarray, first: int, last: int) -> np.ndarray:
    return np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), (first, last)))


# --- causal ------------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("name", LANGUAGES)
def test_causal_floor_equals_enumeration(name, direction):
    """All texts of five tokens; 1e-12 is a few hundred roundings of float64."""
    language, length = LANGUAGES[name], 5
    texts, p = all_texts(name, length)
    floor = causal_floor(language, framed(texts, 2, 3), direction, log_probs=True)
    grid = floor.grid(floor.loss)[:, 1:-1]
    order = range(length) if direction == "forward" else range(length - 1, -1, -1)
    known: list[int] = []
    for t in order:
        marginal = joint_of(texts, p, known)
        wanted = joint_of(texts, p, [*known, t]) / marginal
        assert np.abs(np.exp(-grid[:, t]) - wanted).max() < 1e-12
        known.append(t)
    assert abs(np.exp(-grid.sum(1)).sum() - 1) < 1e-12


def joint_of(texts: np.ndarray, p: np.ndarray, places: list[int]) -> np.ndarray:
    """P of the tokens at ``places``, for every text."""
    if not places:
        return np.ones(len(texts))
    _, group = np.unique(texts[:, places], axis=0, return_inverse=True)
    return np.bincount(group.ravel(), p)[group.ravel()]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_causal_entropy_is_that_of_the_distribution(direction):
    texts, p = all_texts("dense", 4)
    floor = causal_floor(LANGUAGES["dense"], texts, direction, log_probs=True)
    q = np.exp(floor.log_probs)
    assert np.abs(q.sum(1) - 1).max() < 1e-12
    scores = -(q * np.where(q > 0, floor.log_probs, 0.0)).sum(1)
    assert np.abs(scores - floor.entropy).max() < 1e-12
    true = floor.log_probs[np.arange(texts.size), texts.ravel()]
    assert np.abs(true + floor.loss).max() < 1e-12
    # The entropy of a text is the sum of its conditional entropies (chain rule).
    assert (
        abs((floor.entropy.reshape(texts.shape).sum(1) * p).sum() + (p * np.log(p)).sum()) < 1e-12
    )


def test_both_directions_give_every_text_the_same_probability():
    """The book's language: the chain rule holds in either order, text by text."""
    language = HiddenMarkovLanguage.default()
    ids = language.batch(16, 64)
    one, two = (causal_floor(language, ids, d) for d in DIRECTIONS)
    total = [np.nansum(f.grid(f.loss), axis=1) for f in (one, two)]
    assert np.abs(total[0] - total[1]).max() < 1e-9  # sums of 62 terms, each of about 2 nats


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_nothing_underflows_in_a_long_text(direction):
    """1200 tokens have a probability of e^-2400, far below the smallest float64."""
    language = HiddenMarkovLanguage.default()
    ids = language.sample(2, 1200, np.random.default_rng(0))
    floor = causal_floor(language, ids, direction)
    assert np.isfinite(floor.loss).all()
    assert 1.5 < floor.mean_loss < 2.5


# --- masked ------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["ordinary", "all"])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", LANGUAGES)
def test_masked_floor_equals_enumeration(name, law, convention):
    """Rows of five tokens drawn from the law; the predictor itself is compared, not its mean."""
    language, rate = LANGUAGES[name], 0.4
    vocabulary = language.vocabulary
    random_ids = vocabulary.ordinary_ids if convention == "ordinary" else np.arange(vocabulary.size)
    rng = np.random.default_rng([LAWS.index(law), convention == "all", name == "tiny"])
    texts = language.sample(60, 5, rng)
    # One in two selected tokens becomes random, so that the channel matters in every row.
    for replacement in (REPLACEMENT, (0.3, 0.5, 0.2)):
        seen, labels = corrupted(language, texts, law, rate, random_ids, rng, replacement)
        floor = masked_floor(
            language,
            framed(texts, 2, 3),
            framed(seen, 2, 3),
            framed(labels, -100, -100),
            rate=rate,
            selection=law,
            replacement=replacement,
            random_ids=random_ids,
            log_probs=True,
        )
        places = np.argwhere(labels != -100)
        assert len(places) == len(floor.loss) > 60
        for (row, i), log_q, entropy, loss in zip(
            places, floor.log_probs, floor.entropy, floor.loss, strict=True
        ):
            q = oracle(name, seen[row], i, law, rate, random_ids, replacement)
            assert np.abs(np.exp(log_q) - q).max() < 1e-12
            assert abs(loss + log(q[texts[row, i]])) < 1e-10
            assert abs(entropy + sum(p * log(p) for p in q if p)) < 1e-10


@pytest.mark.parametrize("law", LAWS)
def test_masked_floor_with_a_limit_equals_enumeration(law):
    """``max_predictions`` drops surplus positions at random, also from independent selections."""
    language, rate, limit = LANGUAGES["dense"], 0.6, 2
    rng = np.random.default_rng(3)
    texts = language.sample(30, 4, rng)
    ordinary = language.vocabulary.ordinary_ids
    table = limited(law, rate, 4, limit)
    seen, labels = texts.copy(), np.full_like(texts, -100)
    for row in range(len(texts)):
        for j in list(table)[rng.choice(len(table), p=list(table.values()))]:
            labels[row, j], seen[row, j] = texts[row, j], rng.choice([4, texts[row, j], 5, 6])
    arguments = dict(rate=rate, selection=law, max_predictions=limit, log_probs=True)
    floor = masked_floor(
        language, framed(texts, 2, 3), framed(seen, 2, 3), framed(labels, -100, -100), **arguments
    )
    noise = channel(language, REPLACEMENT, ordinary)
    all_x, p_text = all_texts("dense", 4)
    for (row, i), log_q in zip(np.argwhere(labels != -100), floor.log_probs, strict=True):
        q = np.zeros(language.vocabulary.size)
        for chosen, p_chosen in table.items():
            if i in chosen:
                p = p_text * p_chosen
                for j, token in enumerate(seen[row]):
                    p = p * (noise[all_x[:, j], token] if j in chosen else all_x[:, j] == token)
                np.add.at(q, all_x[:, i], p)
        assert np.abs(np.exp(log_q) - q / q.sum()).max() < 1e-12


def limited(law: str, rate: float, length: int, limit: int) -> dict[tuple[int, ...], float]:
    """Selections when more than ``limit`` positions are thinned out uniformly."""
    result: dict[tuple[int, ...], float] = {}
    for chosen, p in subsets(law, rate, length, None).items():
        kept = list(itertools.combinations(chosen, min(limit, len(chosen))))
        for subset in kept:
            result[subset] = result.get(subset, 0.0) + p / len(kept)
    return result


@pytest.mark.parametrize("law", LAWS)
def test_expected_loss_is_expected_entropy_over_the_whole_joint(law):
    """Every text, selection and corruption of three tokens: E[loss] = E[entropy] exactly."""
    language, rate, length = SMALL["small"], 0.3, 3
    ordinary = language.vocabulary.ordinary_ids
    noise = channel(language, REPLACEMENT, ordinary)
    rows, weights = [], []
    for text, p_text in zip(*all_texts("small", length), strict=True):
        for chosen, p_chosen in subsets(law, rate, length, None).items():
            for new in itertools.product([4, *ordinary], repeat=len(chosen)):
                seen, label, p = text.copy(), np.full(length, -100), p_text * p_chosen
                for j, token in zip(chosen, new, strict=True):
                    p, seen[j], label[j] = p * noise[text[j], token], token, text[j]
                rows.append((text, seen, label))
                weights.append(p)
    texts, seen, labels = (np.array(part) for part in zip(*rows, strict=True))
    weights = np.array(weights)
    assert abs(weights.sum() - 1) < 1e-12
    floor = floor_of(language, texts, seen, labels, rate=rate, selection=law)
    per_row = [np.nansum(floor.grid(v), axis=1) @ weights for v in (floor.loss, floor.entropy)]
    assert abs(per_row[0] - per_row[1]) < 1e-12
    # A predictor that takes the other visible tokens for true pays for it.
    naive = floor_of(language, texts, seen, labels, rate=1e-9, selection="bernoulli")
    assert np.nansum(naive.grid(naive.loss), axis=1) @ weights > per_row[0] + 1e-5


def floor_of(language, texts, seen, labels, **arguments):
    return masked_floor(
        language, framed(texts, 2, 3), framed(seen, 2, 3), framed(labels, -100, -100), **arguments
    )


def book_batch(law: str, rows: int = 48, length: int = 48, replacement=REPLACEMENT):
    """The book's language under BERT's noise: (language, ids, seen, labels)."""
    language = HiddenMarkovLanguage.default()
    rng = np.random.default_rng(7)
    texts = language.sample(rows, length - 2, rng)
    seen, labels = texts.copy(), np.full_like(texts, -100)
    for row in range(rows):
        count = {
            "bernoulli": rng.binomial(length - 2, 0.15),
            "count": max(1, round(0.15 * length)),
            "rounding": int(0.15 * length + rng.random()),
        }[law]
        for j in rng.permutation(length - 2)[:count]:
            labels[row, j] = texts[row, j]
            action = rng.choice(3, p=replacement)
            if action != 2:
                seen[row, j] = [4, rng.choice(language.vocabulary.ordinary_ids)][action]
    return language, framed(texts, 2, 3), framed(seen, 2, 3), framed(labels, -100, -100)


@pytest.mark.parametrize("law", LAWS)
def test_entropy_and_loss_agree_on_the_books_language(law):
    """Their difference has mean zero; four standard errors of some 330 targets."""
    floor = masked_floor(*book_batch(law), selection=law)
    gap = floor.loss - floor.entropy
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size)
    assert 0.8 < floor.mean_entropy < 1.8


def test_nothing_underflows_in_a_long_corrupted_text():
    floor = masked_floor(*book_batch("bernoulli", rows=1, length=1200))
    assert np.isfinite(floor.loss).all()
    assert 0.8 < floor.mean_loss < 1.8


@pytest.mark.parametrize("law", LAWS)
def test_rows_do_not_influence_each_other(law):
    language, *arrays = book_batch(law, rows=12)
    floor = masked_floor(language, *arrays, selection=law)
    order = np.random.default_rng(0).permutation(12)
    turned = masked_floor(language, *(a[order] for a in arrays), selection=law)
    assert np.nanmax(np.abs(floor.grid(floor.loss)[order] - turned.grid(turned.loss))) < 1e-12


def test_passes_of_little_memory_give_the_same(monkeypatch):
    language, *arrays = book_batch("count", rows=6)
    whole = masked_floor(language, *arrays, selection="count")
    monkeypatch.setattr(masked, "_CELLS", 1)
    pieces = masked_floor(language, *arrays, selection="count")
    assert np.abs(whole.loss - pieces.loss).max() < 1e-12


def test_padding_and_frames_change_nothing():
    language, ids, seen, labels = book_batch("bernoulli", rows=6)
    bare = masked_floor(language, ids[:, 1:-1], seen[:, 1:-1], labels[:, 1:-1])
    wide = [
        np.pad(a, ((0, 0), (1, 4)), constant_values=fill)
        for a, fill in ((ids, 0), (seen, 0), (labels, -100))
    ]
    padded = masked_floor(language, *wide)
    assert np.abs(bare.loss - padded.loss).max() < 1e-12
    assert padded.grid(padded.loss).shape == wide[0].shape
    one, two = causal_floor(language, ids), causal_floor(language, wide[0])
    assert np.abs(one.loss - two.loss).max() < 1e-12


def test_independent_selection_as_a_law_of_counts_gives_the_same():
    """The cheap path against the general recursion over counts."""
    language, ids, seen, labels = book_batch("bernoulli", rows=8)
    pmf = selection_pmf("bernoulli", 0.15, ids.shape[1], ids.shape[1] - 2)
    cheap = masked_floor(language, ids, seen, labels, log_probs=True)
    general = masked_floor(language, ids, seen, labels, selection=pmf, log_probs=True)
    assert np.abs(np.exp(cheap.log_probs) - np.exp(general.log_probs)).max() < 1e-12


def test_a_wrong_idea_of_the_corruption_costs_measurably(monkeypatch):
    """Predictors with a planted error score worse on the same targets."""
    language, *arrays = book_batch("count")
    right = masked_floor(language, *arrays, selection="count")
    # The rule of selection matters little, and still to many digits.
    other = masked_floor(language, *arrays, selection="bernoulli")
    assert abs(other.mean_loss - right.mean_loss) > 1e-6
    # Who does not look at the target itself cannot know that it was kept.
    blind = lambda tokens, seen, channel: tokens / tokens.sum(1, keepdims=True)  # noqa: E731
    monkeypatch.setattr(masked, "_reweighted", blind)
    other = masked_floor(language, *arrays, selection="count")
    assert other.mean_loss > right.mean_loss + 0.1


@pytest.mark.parametrize("law", LAWS)
def test_no_predictor_beats_the_floor(law):
    """Expected loss under the floor's own distribution, for perturbed distributions."""
    floor = masked_floor(*book_batch(law, rows=12), selection=law, log_probs=True)
    q, rng = np.exp(floor.log_probs), np.random.default_rng(0)
    for size in (0.01, 0.3):
        p = q * np.exp(size * rng.standard_normal(q.shape))
        p /= p.sum(1, keepdims=True)
        expected = -(q * np.log(np.where(q > 0, p, 1.0))).sum(1)
        assert (expected >= floor.entropy - 1e-12).all()
        assert expected.mean() > floor.mean_entropy + 0.1 * size**2


def test_counts_follow_the_published_rules():
    assert selection_pmf("count", 0.15, 128, 125).argmax() == 19  # BERT, 128 tokens
    assert selection_pmf("count", 0.15, 512, 509).argmax() == 77
    assert selection_pmf("count", 0.15, 128, 125, max_predictions=10).argmax() == 10
    assert selection_pmf("count", 0.15, 3, 1)[1] == 1  # at least one
    rounding = selection_pmf("rounding", 0.15, 128, 126)  # 19.2: 19 or 20
    assert np.abs(rounding[[19, 20]] - [0.8, 0.2]).max() < 1e-12
    binomial = selection_pmf("bernoulli", 0.25, 6, 4)
    assert np.abs(binomial - np.array([81, 108, 54, 12, 1]) / 256).max() < 1e-15


# --- refusals ------------------------------------------------------------------------------------


def test_bad_input_is_named():
    language, ids, seen, labels = book_batch("count", rows=3)
    with pytest.raises(ValueError, match="direction"):
        causal_floor(language, ids, "sideways")
    with pytest.raises(ValueError, match="no special token inside"):
        causal_floor(language, np.concatenate([ids, ids], axis=1))
    with pytest.raises(ValueError, match="ids"):
        causal_floor(language, ids + 10_000)
    with pytest.raises(ValueError, match="can produce"):
        causal_floor(language, ids[:, ::-1].copy())
    with pytest.raises(ValueError, match="labels"):
        masked_floor(language, ids, seen, np.where(labels >= 0, labels + 1, labels))
    with pytest.raises(ValueError, match="changed token without a label"):
        masked_floor(language, ids, seen, np.full_like(labels, -100))
    with pytest.raises(ValueError, match="number of targets"):
        masked_floor(language, ids, seen, labels, selection="count", rate=0.5)
    with pytest.raises(ValueError, match="selection"):
        masked_floor(language, ids, seen, labels, selection="some")
    with pytest.raises(ValueError, match="rate"):
        masked_floor(language, ids, seen, labels, rate=1.5)
    with pytest.raises(ValueError, match="replacement"):
        masked_floor(language, ids, seen, labels, replacement=(0.8, 0.1, 0.2))
    # With shapes checked in the tests, jaxtyping is faster with its TypeError.
    with pytest.raises((ValueError, TypeError), match="input_ids"):
        masked_floor(language, ids, seen[:, 1:], labels)
