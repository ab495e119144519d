"""The floor of blank infilling against enumeration: every text, every draw of lengths and places.

The oracle knows no recursion. It lists all texts with their probabilities and all sets of spans
with theirs, lays out part A for each pair, and conditions by picking out what agrees.
"""

from __future__ import annotations

import itertools
from functools import cache
from math import factorial

import numpy as np
import pytest

from lossbook.corpora import HiddenMarkovLanguage, Vocabulary
from lossbook.corpora.floors import infilling_floor, length_pmf, span_budget
from lossbook.objectives.blank_infilling import BlankInfilling

STOP = "d"  # the sentence end of the dense language


def dense(seed: int, tokens: str = "abcd") -> HiddenMarkovLanguage:
    """A random language in which every text is possible: two blocks of 3 and 2 states."""
    rng = np.random.default_rng(seed)
    blocks = [rng.dirichlet(np.full(n, 0.7), size=n) for n in (3, 2)]
    emission = np.pad(rng.dirichlet(np.full(len(tokens), 0.6), size=5), ((0, 0), (5, 0)))
    initial, vocabulary = rng.dirichlet(np.ones(5)), Vocabulary.from_words(tokens)
    return HiddenMarkovLanguage(initial, blocks, emission, vocabulary)


def marked(language: HiddenMarkovLanguage) -> HiddenMarkovLanguage:
    """The same language over a vocabulary with marks of its own for sentences and documents."""
    words = Vocabulary([*language.vocabulary.tokens, "[sMASK]", "[gMASK]"])
    emission = np.pad(language.emission, ((0, 0), (0, 2)))
    return HiddenMarkovLanguage(language.initial, language.transition, emission, words)


LANGUAGES = {"tiny": HiddenMarkovLanguage.tiny(), "dense": dense(0), "marked": marked(dense(0))}


@cache
def all_texts(name: str, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Every possible text and its probability, summed over all hidden paths."""
    language = LANGUAGES[name]
    path, operands = "abcdefg"[:length], [language.initial]
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


Span = tuple[int, int]


def token_law(length: int, rate: float, pmf: np.ndarray) -> dict[tuple[Span, ...], float]:
    """All sets of spans: draw until the budget is met, shuffle, draw the places, one by one."""
    goal = int(span_budget(rate, np.array([length + 2]), np.array([length]))[0])
    law: dict[tuple[Span, ...], float] = {}

    def draw(lengths: tuple[int, ...], p: float) -> None:
        if sum(lengths) >= goal:
            place(lengths, p)
            return
        for n in range(1, length + 1):
            if n < len(pmf):
                draw((*lengths, n), p * pmf[n])

    def place(lengths: tuple[int, ...], p: float) -> None:
        m, free = len(lengths), length - sum(lengths) - len(lengths) + 2
        if free < 1:
            return  # does not fit: drawn again
        for order in itertools.permutations(lengths):
            for drawn in itertools.product(range(free), repeat=m):
                spans, moved = [], 0
                for at, n in zip(sorted(drawn), order, strict=True):
                    spans.append((at + moved, n))
                    moved += n + 1
                key = tuple(spans)
                law[key] = law.get(key, 0) + p / factorial(m) / free**m

    draw((), 1.0)
    total = sum(law.values())
    return {spans: p / total for spans, p in law.items()}


def sentence_law(text: tuple[int, ...], rate: float, stop: int) -> dict[tuple[Span, ...], float]:
    """All orders of the sentences of one text, each followed until the budget is met."""
    goal = int(span_budget(rate, np.array([len(text) + 2]), np.array([len(text)]))[0])
    edges = [0, *(i + 1 for i, t in enumerate(text) if t == stop)]
    edges = [*edges, len(text)] if edges[-1] != len(text) else edges
    sentences = [(a, b - a) for a, b in itertools.pairwise(edges)]
    law: dict[tuple[Span, ...], float] = {}
    for order in itertools.permutations(sentences):
        taken, total = [], 0
        for sentence in order:
            taken.append(sentence)
            total += sentence[1]
            if total >= goal:
                break
        key = tuple(sorted(taken))
        law[key] = law.get(key, 0) + 1 / factorial(len(sentences))
    return law


def document_law(length: int, shares: tuple[float, float], suffix: float) -> dict:
    law: dict[tuple[Span, ...], float] = {}
    lengths = [n for n in range(1, length + 1) if shares[0] * length <= n <= shares[1] * length]
    for n in lengths:
        for start in range(length - n + 1):
            p = (1 - suffix) / (length - n + 1) + suffix * (start == length - n)
            law[((start, n),)] = p / len(lengths)
    return law


def part_a(text, spans) -> tuple[int, ...]:
    symbols, last = [], 0
    for start, n in spans:
        symbols += [*text[last:start], -1]
        last = start + n
    return (*symbols, *text[last:])


class Oracle:
    """All pairs of a text and a set of spans, by the part A that they give."""

    def __init__(self, name: str, length: int, law_of) -> None:
        self.groups: dict[tuple[int, ...], list] = {}
        for text, p in zip(*all_texts(name, length), strict=True):
            words = tuple(int(t) for t in text)
            for spans, q in law_of(words).items():
                pieces = [words[a : a + n] for a, n in spans]
                self.groups.setdefault(part_a(words, spans), []).append((pieces, p * q))

    def __call__(self, a, written: dict[int, tuple], blank: int, prefix: tuple, size: int):
        """Distribution of the next token, the end of the piece at index 3 (``[SEP]``)."""
        q = np.zeros(size)
        for pieces, p in self.groups[a]:
            if all(pieces[k] == piece for k, piece in written.items()):
                mine = pieces[blank]
                if mine == prefix:
                    q[3] += p
                elif mine[: len(prefix)] == prefix:
                    q[mine[len(prefix)]] += p
        return q / q.sum()


def framed(rows: np.ndarray) -> np.ndarray:
    return np.pad(rows, ((0, 0), (1, 1)), constant_values=((0, 0), (2, 3)))


def compare(name, objective, oracle, length, rows, seed=0) -> int:
    """Every target of some rows; the number of targets."""
    language = LANGUAGES[name]
    rng = np.random.default_rng(seed)
    texts = language.sample(rows, length, rng)
    ids = framed(texts)
    spans = objective.select(ids, rng)
    batch = objective.layout(ids, spans, rng)
    fields = [batch[k] for k in ("input_ids", "labels", "position_ids", "block_position_ids")]
    marks = {objective.marks[level]: level for level in objective.levels}
    floor = infilling_floor(
        language, ids, *fields, marks=marks, rate=objective.rate, pmf=objective.pmf,
        sentence_ends=objective.sentence_ends, log_probs=True,
    )  # fmt: skip
    at = 0
    for row in range(rows):
        mine = [(int(s) - 1, int(n)) for r, s, n in zip(*spans[:3], strict=True) if r == row]
        words = tuple(int(t) for t in texts[row])
        a, written = part_a(words, mine), {}
        order = np.flatnonzero(batch["block_position_ids"][row] == 1)
        marked_places = [i for i, t in enumerate(a, 1) if t == -1]
        for start in order:
            blank = marked_places.index(batch["position_ids"][row, start])
            first, n = mine[blank]
            piece = words[first : first + n]
            for j in range(n + 1):
                q = oracle(a, written, blank, piece[:j], language.vocabulary.size)
                true = piece[j] if j < n else 3
                assert np.abs(np.exp(floor.log_probs[at]) - q).max() < 1e-12
                assert abs(floor.loss[at] + np.log(q[true])) < 1e-10
                assert abs(floor.entropy[at] + sum(p * np.log(p) for p in q if p)) < 1e-10
                at += 1
            written[blank] = piece
    assert at == len(floor.loss)
    return at


@pytest.mark.parametrize("order", ["shuffled", "left-to-right"])
@pytest.mark.parametrize(("name", "rate", "mean"), [
    ("dense", 0.3, 2.0), ("dense", 0.45, 1.0), ("tiny", 0.45, 1.5),
])  # fmt: skip
def test_the_token_level_equals_enumeration(name, order, rate, mean):
    """Rows of five tokens, up to three blanks; the distributions themselves are compared."""
    words = LANGUAGES[name].vocabulary
    objective = BlankInfilling(words, rate=rate, mean_length=mean, max_length=4, order=order)
    law = token_law(5, rate, objective.pmf)
    assert abs(sum(law.values()) - 1) < 1e-12
    oracle = Oracle(name, 5, lambda _: law)
    assert compare(name, objective, oracle, 5, 40) > 120


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_sentence_level_equals_enumeration(rate):
    """Which sentences were taken depends on how long the hidden ones are."""
    words = LANGUAGES["dense"].vocabulary
    stop = words.id_of(STOP)
    objective = BlankInfilling(words, rate=rate, level="sentence", sentence_ends=[stop])
    oracle = Oracle("dense", 5, lambda text: sentence_law(text, rate, stop))
    assert compare("dense", objective, oracle, 5, 60) > 150


@pytest.mark.parametrize("suffix", [0.0, 0.5, 1.0])
def test_the_document_level_equals_enumeration(suffix):
    words = LANGUAGES["dense"].vocabulary
    objective = BlankInfilling(words, level="document", suffix=suffix, document=(0.25, 1.0))
    law = document_law(5, (0.25, 1.0), suffix)
    oracle = Oracle("dense", 5, lambda _: law)
    assert compare("dense", objective, oracle, 5, 30) > 80


def test_a_mixture_with_a_mark_for_each_level_equals_enumeration():
    words = LANGUAGES["marked"].vocabulary
    stop = words.id_of(STOP)
    shares = {"token": 0.4, "sentence": 0.3, "document": 0.3}
    objective = BlankInfilling(words, rate=0.4, level=shares, sentence_ends=[stop], max_length=4)
    ids = framed(LANGUAGES["marked"].sample(60, 6, np.random.default_rng(1)))
    batch = objective.batch(ids)
    whole = objective.floor(LANGUAGES["marked"], ids, batch)
    for level in shares:
        rows = (np.asarray(batch["input_ids"]) == objective.marks[level]).any(1)
        alone = BlankInfilling(words, rate=0.4, level=level, sentence_ends=[stop], max_length=4)
        part = {key: value[rows] for key, value in batch.items()}
        one = alone.floor(LANGUAGES["marked"], ids[rows], part)
        mine = np.repeat(rows, whole.targets.sum(1))
        assert rows.sum() > 10 and np.abs(one.loss - whole.loss[mine]).max() < 1e-12


def test_a_mixture_under_one_mark_is_refused():
    words = LANGUAGES["dense"].vocabulary
    objective = BlankInfilling(words, level={"token": 0.5, "document": 0.5})
    ids = framed(LANGUAGES["dense"].sample(4, 6, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="marks: expected a mark of its own for each level"):
        objective.floor(LANGUAGES["dense"], ids, objective.batch(ids))


def test_the_product_over_any_order_is_the_same():
    """The joint probability of the pieces given A, for all orders: the chain rule, to 1e-12."""
    language = LANGUAGES["dense"]
    rng = np.random.default_rng(3)
    ids = framed(language.sample(2, 12, rng))
    objective = BlankInfilling(language.vocabulary, rate=0.4, mean_length=1, max_length=4)
    spans = objective.select(ids, rng)
    number = np.bincount(spans.row, minlength=2)
    assert number.max() == 4
    seen = {row: {} for row in range(2)}
    for attempt in range(120):
        batch = objective.layout(ids, spans, np.random.default_rng(attempt))
        floor = objective.floor(language, ids, batch)
        total = np.nansum(floor.grid(floor.loss), axis=1)
        for row in range(2):
            starts = batch["block_position_ids"][row] == 1
            seen[row].setdefault(tuple(batch["position_ids"][row, starts]), []).append(total[row])
    for row, orders in seen.items():
        assert len(orders) == factorial(number[row])
        totals = np.concatenate([np.array(v) for v in orders.values()])
        assert np.ptp(totals) < 1e-12 * max(1, totals.max())


def test_the_joint_probability_is_that_of_the_enumeration():
    """exp(-sum of the losses) = P(pieces | A), from the list of all texts and spans."""
    objective = BlankInfilling(LANGUAGES["dense"].vocabulary, rate=0.4, mean_length=1, max_length=4)
    law = token_law(5, 0.4, objective.pmf)
    oracle = Oracle("dense", 5, lambda _: law)
    rng = np.random.default_rng(5)
    texts = LANGUAGES["dense"].sample(20, 5, rng)
    ids = framed(texts)
    spans = objective.select(ids, rng)
    floor = objective.floor(LANGUAGES["dense"], ids, objective.layout(ids, spans, rng))
    total = np.nansum(floor.grid(floor.loss), axis=1)
    for row in range(20):
        mine = [(int(s) - 1, int(n)) for r, s, n in zip(*spans[:3], strict=True) if r == row]
        words = tuple(int(t) for t in texts[row])
        pieces = [words[a : a + n] for a, n in mine]
        group = oracle.groups[part_a(words, mine)]
        joint = sum(p for other, p in group if other == pieces) / sum(p for _, p in group)
        assert abs(np.exp(-total[row]) - joint) < 1e-12


def test_expected_loss_is_expected_entropy_over_the_whole_joint():
    """Every text of four tokens, every set of spans, every order of B: E[loss] = E[entropy]."""
    language = dense(1, "abc")
    LANGUAGES["small"] = language
    objective = BlankInfilling(language.vocabulary, rate=0.4, mean_length=1, max_length=3)
    law = token_law(4, 0.4, objective.pmf)
    gap = weight = 0.0
    texts, p_text = all_texts("small", 4)
    for spans, p_spans in law.items():
        first, size = np.array(spans).T
        for order in itertools.permutations(range(len(spans))):
            fields = layouts(texts, first, size, order)
            floor = infilling_floor(language, framed(texts), *fields, rate=0.4, pmf=objective.pmf)
            p = p_text * p_spans / factorial(len(spans))
            gap += np.nansum(floor.grid(floor.loss - floor.entropy), axis=1) @ p
            weight += p.sum()
    assert abs(weight - 1) < 1e-12 and abs(gap) < 1e-12


def test_a_predictor_with_another_law_of_lengths_pays_for_it():
    """A uniform law of lengths instead of Poisson's costs more on average."""
    language = LANGUAGES["dense"]
    objective = BlankInfilling(language.vocabulary, rate=0.45, mean_length=1, max_length=4)
    ids = framed(language.sample(400, 8, np.random.default_rng(2)))
    batch = objective.corrupt(ids, np.random.default_rng(2))
    fields = [batch[k] for k in ("input_ids", "labels", "position_ids", "block_position_ids")]
    right = infilling_floor(language, ids, *fields, rate=0.45, pmf=objective.pmf)
    uniform = np.array([0, 0.25, 0.25, 0.25, 0.25])
    other = infilling_floor(language, ids, *fields, rate=0.45, pmf=uniform)
    gap = other.loss - right.loss
    assert np.abs(gap).max() > 0.02 and gap.mean() > 2 * gap.std() / np.sqrt(gap.size)
    # The sum of the lengths is known, and given it Poisson's parameter cancels.
    other = infilling_floor(language, ids, *fields, rate=0.45, pmf=length_pmf(4.0, 4))
    assert np.abs(other.loss - right.loss).max() < 1e-12


def layouts(texts, first, size, order):
    """The four arrays of all texts with the same spans and the same order, written by hand."""
    marks = first + 1 - np.concatenate([[0], np.cumsum(size - 1)[:-1]])
    rows = []
    for text in texts:
        a, last = [2], 0
        for start, n in zip(first, size, strict=True):
            a += [*text[last:start], 4]
            last = start + n
        a += [*text[last:], 3]
        row = [a, [-100] * len(a), list(range(len(a))), [0] * len(a)]
        for k in order:
            piece = list(text[first[k] : first[k] + size[k]])
            for field, more in zip(row, ([2, *piece], [*piece, 3], [marks[k]] * (size[k] + 1),
                                         list(range(1, size[k] + 2))), strict=True):  # fmt: skip
                field += more
        rows.append(row)
    return [np.array(field) for field in zip(*rows, strict=True)]


def test_the_length_law_is_poisson_without_its_zero():
    """Mean 3 / (1 - e^-3) = 3.157, whatever is cut off beyond 39."""
    pmf = length_pmf(3.0, 39)
    assert len(pmf) == 40 and pmf[0] == 0 and abs(pmf.sum() - 1) < 1e-12
    assert abs(pmf @ np.arange(40) - 3 / (1 - np.exp(-3))) < 1e-12
    assert round(float(pmf @ np.arange(40)), 3) == 3.157
    weights = [3.0**n / factorial(n) for n in range(1, 40)]
    assert np.abs(pmf[1:] - np.array(weights) / sum(weights)).max() < 1e-15


def book_batch(level: str, rows: int = 64, length: int = 64):
    language = HiddenMarkovLanguage.default()
    objective = BlankInfilling(language.vocabulary, level=level)
    ids = language.batch(rows, length)
    return language, objective, ids, objective.corrupt(ids, np.random.default_rng(0))


@pytest.mark.parametrize("level", ["token", "sentence", "document"])
def test_entropy_and_loss_agree_on_the_books_language(level):
    """Their difference has mean zero; four standard errors of about 1000 targets."""
    language, objective, ids, batch = book_batch(level)
    floor = objective.floor(language, ids, batch)
    gap = floor.loss - floor.entropy
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(gap.size)
    assert 1.0 < floor.mean_entropy < 2.3


def test_nothing_underflows_in_a_long_text():
    for level in ("token", "document"):
        language, objective, ids, batch = book_batch(level, rows=1, length=420)
        floor = objective.floor(language, ids, batch)
        assert np.isfinite(floor.loss).all() and 0.8 < floor.mean_loss < 2.5


def test_small_parts_change_nothing(monkeypatch):
    """The work is cut to fit into memory; the cut must not show."""
    from lossbook.corpora.floors import infilling

    language, objective, ids, batch = book_batch("token", rows=8)
    whole = objective.floor(language, ids, batch)
    monkeypatch.setattr(infilling, "_CELLS", 1)
    cut = objective.floor(language, ids, batch)
    assert np.abs(whole.loss - cut.loss).max() < 1e-12


@pytest.mark.parametrize(
    ("field", "change", "words"),
    [
        ("labels", lambda x: np.where(x == x[x > 4][0], x[x > 4][0] + 1, x), "the original text"),
        ("labels", lambda x: np.where(x == 3, -100, x), "one piece for each mark"),
        ("position_ids", lambda x: x * 0, "one piece for each mark"),
        ("input_ids", lambda x: np.where(x == 4, 6, x), "one piece for each mark"),
    ],
)
def test_what_is_no_layout_is_refused(field, change, words):
    language, objective, ids, batch = book_batch("token", rows=2, length=30)
    with pytest.raises(ValueError, match=words):
        objective.floor(language, ids, {**batch, field: change(batch[field])})


def test_spans_beyond_the_law_are_refused():
    language, _, ids, batch = book_batch("document", rows=2, length=100)
    law = BlankInfilling(language.vocabulary, marks={"token": 4})
    with pytest.raises(ValueError, match="spans that the law of the token level can draw"):
        law.floor(language, ids, batch)
