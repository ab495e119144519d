"""Blank infilling: its layout, its three laws, its loss.

Statistical checks run at a fixed seed. The right code must pass at p > 0.001; every planted
mistake must fail the same check at p < 1e-6.
"""

from __future__ import annotations

import itertools
from math import factorial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils.data import DataLoader

from lossbook.corpora import Vocabulary
from lossbook.corpora.floors import span_budget
from lossbook.objectives import BlankInfilling
from lossbook.objectives.blank_infilling import draw_lengths, longest_runs, places, runs

PASSES, CAUGHT = 1e-3, 1e-6
WORDS = Vocabulary.from_words([*(f"w{i}" for i in range(20)), "."])
MARKED = Vocabulary([*WORDS.tokens, "[sMASK]", "[gMASK]"])
PAD, CLS, SEP, MASK, DOT = 0, 2, 3, 4, WORDS.id_of(".")
FIELDS = ("input_ids", "labels", "attention_mask", "position_ids", "block_position_ids")


def texts(batch, time, seed=0, specials=0.0):
    """Rows [CLS] ... [SEP] of random words, with full stops and unknown words inside."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(WORDS.ordinary_ids, (batch, time))
    ids[rng.random(ids.shape) < 0.15] = DOT
    ids[rng.random(ids.shape) < specials] = WORDS.unk_id
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def chi_square(observed, probabilities):
    """p-value of observed counts; rare cells are put together."""
    observed, expected = np.asarray(observed, float), np.asarray(probabilities) * np.sum(observed)
    if observed[expected == 0].any():
        return 0.0
    rare = expected < 5
    tail = observed[rare].sum(), expected[rare].sum()
    observed, expected = observed[~rare], expected[~rare]
    if tail[1] >= 5:
        observed, expected = np.append(observed, tail[0]), np.append(expected, tail[1])
    return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue


# --- The published layout, rebuilt from its description -------------------------------------------


def described(ids, spans, order, width):
    """Parts A and B of one row, token by token, from the words of the paper.

    ``spans``: (first, length, mark) in the order of the text; ``order``: of the pieces.
    """
    a, marks, t = [], [], 0
    text = [int(i) for i in ids if i != PAD]
    while t < len(text):
        here = [k for k, (first, _, _) in enumerate(spans) if first == t]
        if here:
            marks.append(len(a))
            a.append(spans[here[0]][2])
            t += spans[here[0]][1]
        else:
            a.append(text[t])
            t += 1
    rows = [(token, -100, 1, place, 0) for place, token in enumerate(a)]
    for k in order:
        first, length, _ = spans[k]
        piece = text[first : first + length]
        for j, (seen, target) in enumerate(zip([CLS, *piece], [*piece, SEP], strict=True), 1):
            rows.append((seen, target, 1, marks[k], j))
    rows += [(PAD, -100, 0, 0, 0)] * (width - len(rows))
    return [list(column) for column in zip(*rows, strict=True)]


@given(
    level=st.sampled_from(["token", "sentence", "document", "mixture"]),
    order=st.sampled_from(["shuffled", "left-to-right"]),
    batch=st.integers(1, 5),
    time=st.integers(3, 40),
    rate=st.sampled_from([0.0, 0.15, 0.4]),
    bare=st.booleans(),
    seed=st.integers(0, 9999),
)
def test_every_row_is_laid_out_as_described(level, order, batch, time, rate, bare, seed):
    """All five arrays, from the spans and the order of the pieces; with and without a frame."""
    shares = {"token": 0.4, "sentence": 0.3, "document": 0.3} if level == "mixture" else level
    objective = BlankInfilling(MARKED, level=shares, order=order, rate=rate)
    ids = texts(batch, time, seed, specials=0.05)
    ids[0, max(2, time - seed % 4) :] = PAD
    ids = ids[:, 1:-1] if bare else ids
    rng = np.random.default_rng(seed)
    spans = objective.select(ids, rng)
    found = objective.layout(ids, spans, rng)
    width = found["input_ids"].shape[1]
    for row in range(batch):
        mine = [(int(s), int(n), int(m)) for r, s, n, m in zip(*spans, strict=True) if r == row]
        marks = [s - sum(n - 1 for t, n, _ in mine if t < s) for s, _, _ in mine]
        starts = found["position_ids"][row, found["block_position_ids"][row] == 1].tolist()
        z = [marks.index(place) for place in starts]
        assert sorted(z) == list(range(len(mine)))
        assert order == "shuffled" or z == sorted(z)
        expected = described(ids[row], mine, z, width)
        assert [found[name][row].tolist() for name in FIELDS] == expected


# --- What holds for every batch -------------------------------------------------------------------


def rebuilt(row):
    """The text, from the batch alone: each mark is replaced by the targets that name its place."""
    used = row["attention_mask"] == 1
    in_a = used & (row["block_position_ids"] == 0)
    pieces = {}
    for place, target in zip(
        row["position_ids"][used & ~in_a], row["labels"][used & ~in_a], strict=True
    ):
        pieces.setdefault(int(place), []).append(int(target))
    text = []
    for place, token in enumerate(row["input_ids"][in_a].tolist()):
        piece = pieces.pop(place, None)
        text += [token] if piece is None else piece[:-1]
        assert piece is None or (piece[-1] == SEP and SEP not in piece[:-1])
    assert not pieces
    return text


@given(
    level=st.sampled_from(["token", "sentence", "document"]),
    batch=st.integers(0, 5),
    time=st.integers(0, 60),
    rate=st.sampled_from([0.0, 0.15, 0.4]),
    special=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 9999),
    dtype=st.sampled_from([np.int64, np.int32]),
)
def test_the_promises_hold(level, batch, time, rate, special, seed, dtype):
    """The text comes back; each blanked token is asked once; special tokens stay; purity."""
    objective = BlankInfilling(WORDS, level=level, rate=rate, sentence_ends=[DOT])
    ids = texts(batch, time, seed, special).astype(dtype) if batch and time > 1 else np.zeros(
        (batch, time), dtype
    )  # fmt: skip
    before = ids.copy()
    found = objective.corrupt(ids, objective.generator(0, seed))
    again = objective.corrupt(ids, objective.generator(0, seed))
    assert np.array_equal(ids, before)
    assert all(np.array_equal(found[name], again[name]) for name in FIELDS)
    assert all(found[name].dtype == np.int64 for name in FIELDS)
    at = found["labels"] != -100
    assert np.array_equal(at, found["block_position_ids"] > 0)
    assert not (np.isin(found["labels"], WORDS.special_ids) & at & (found["labels"] != SEP)).any()
    assert objective.count(found) == at.sum()
    for b in range(batch):
        row = {name: found[name][b] for name in FIELDS}
        text = before[b][before[b] != PAD].tolist()
        assert rebuilt(row) == text
        blanks = int((row["input_ids"] == MASK).sum())
        hidden = int(at[b].sum()) - blanks
        assert row["attention_mask"].sum() == len(text) + 2 * blanks
        assert (row["position_ids"] < max(len(text), 1)).all()
        words = np.array([(before[b] > 4).sum()])
        if level == "sentence" or (level == "token" and not special):
            assert hidden >= span_budget(rate, np.array([len(text)]), words)[0]
        if not rate and level != "document":
            assert not blanks


def test_spans_of_tokens_stand_apart_and_may_reach_both_ends():
    objective = BlankInfilling(WORDS, rate=0.4)
    ids = texts(3000, 12)
    spans = objective.select(ids, np.random.default_rng(0))
    same = np.diff(spans.row) == 0
    assert (spans.start[1:] - (spans.start + spans.length)[:-1])[same].min() == 1
    assert spans.start.min() == 1 and (spans.start + spans.length).max() == 11


def test_rows_without_a_candidate_and_empty_batches():
    for level in ("token", "sentence", "document"):
        objective = BlankInfilling(WORDS, level=level)
        ids = np.array([[CLS, SEP, PAD], [PAD, PAD, PAD], [CLS, 7, SEP]])
        found = objective.corrupt(ids, np.random.default_rng(0))
        assert (found["labels"] != -100).sum(1).tolist() == [0, 0, 2]
        empty = objective.corrupt(np.zeros((0, 4), np.int64), np.random.default_rng(0))
        assert all(empty[name].shape[0] == 0 for name in FIELDS)


def test_spans_that_cannot_fit_are_refused_by_row():
    objective = BlankInfilling(WORDS, rate=1.0)
    with pytest.raises(ValueError, match="fit between the 18 tokens of row 0"):
        BlankInfilling(WORDS, rate=1.0, max_length=3).corrupt(texts(2, 20), np.random.default_rng())
    assert objective.rate == 1.0


# --- Which spans ----------------------------------------------------------------------------------


def token_law(length, rate, pmf):
    """All sets of spans: draw until the budget is met, shuffle, draw the places, one by one."""
    goal, law = int(span_budget(rate, np.array([length + 2]), np.array([length]))[0]), {}

    def draw(lengths, p):
        if sum(lengths) >= goal:
            place(lengths, p)
        else:
            for n in range(1, min(length, len(pmf) - 1) + 1):
                draw((*lengths, n), p * pmf[n])

    def place(lengths, p):
        m, free = len(lengths), length - sum(lengths) - len(lengths) + 2
        for order in itertools.permutations(lengths) if free > 0 else ():
            for drawn in itertools.product(range(free), repeat=m):
                key, moved = [], 0
                for at, n in zip(sorted(drawn), order, strict=True):
                    key.append((at + moved, n))
                    moved += n + 1
                law[tuple(key)] = law.get(tuple(key), 0) + p / factorial(m) / free**m

    draw((), 1.0)
    total = sum(law.values())
    return {key: p / total for key, p in law.items()}


def drawn_sets(objective, ids, rng):
    """How often each set of spans was drawn."""
    spans, counts = objective.select(ids, rng), {}
    edges = np.searchsorted(spans.row, np.arange(len(ids) + 1))
    for a, b in itertools.pairwise(edges):
        key = tuple(zip((spans.start[a:b] - 1).tolist(), spans.length[a:b].tolist(), strict=True))
        counts[key] = counts.get(key, 0) + 1
    return counts


def law_of_spans(objective, law, ids, seed=0):
    counts = drawn_sets(objective, ids, np.random.default_rng(seed))
    keys = list(law) + [key for key in counts if key not in law]
    return chi_square([counts.get(k, 0) for k in keys], [law.get(k, 0.0) for k in keys])


@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.3, 2.0), (0.45, 1.0)])
def test_every_set_of_spans_has_its_exact_probability(rate, mean):
    objective = BlankInfilling(WORDS, rate=rate, mean_length=mean)
    law = token_law(7, rate, objective.pmf)
    assert law_of_spans(objective, law, texts(40_000, 9)) > PASSES


class InTheOrderDrawn(BlankInfilling):
    """The lengths are not shuffled: the last one drawn, which is long, stands last."""

    def _lengths_that_fit(self, budgets, room, rows, rng):
        lengths, number = draw_lengths(self.pmf, budgets, rng)
        while (bad := np.flatnonzero(lengths.sum(1) + number - 1 > room)).size:
            again, number[bad] = draw_lengths(self.pmf, budgets[bad], rng)
            width = max(lengths.shape[1], again.shape[1])
            lengths = np.pad(lengths, ((0, 0), (0, width - lengths.shape[1])))
            lengths[bad] = np.pad(again, ((0, 0), (0, width - again.shape[1])))
        return lengths, number


class NeverTheLastToken(BlankInfilling):
    """One place too few: a token must follow every span."""

    def _tokens(self, text, budgets, rows, rng):
        shorter = text.copy()
        last = text.shape[1] - 1 - text[:, ::-1].argmax(1)
        shorter[np.arange(len(text)), last] = False
        return super()._tokens(shorter, budgets, rows, rng)


class WithItsZero(BlankInfilling):
    """Poisson with 0 counted as 1."""

    def __init__(self, vocabulary, **options):
        super().__init__(vocabulary, **options)
        pmf = stats.poisson.pmf(np.arange(40), self.mean_length)
        pmf[1] += pmf[0]
        pmf[0] = 0
        self.pmf = pmf / pmf.sum()


@pytest.mark.parametrize("mutant", [InTheOrderDrawn, NeverTheLastToken, WithItsZero])
def test_the_check_of_the_spans_can_fail(mutant):
    law = token_law(7, 0.45, BlankInfilling(WORDS, mean_length=1.5).pmf)
    objective = mutant(WORDS, rate=0.45, mean_length=1.5)
    assert law_of_spans(objective, law, texts(40_000, 9)) < CAUGHT


def test_lengths_are_poisson_without_its_zero():
    """The first length drawn has the law itself; the mean is 3.157 and no 3."""
    rng, pmf = np.random.default_rng(1), BlankInfilling(WORDS).pmf
    lengths, number = draw_lengths(pmf, np.full(40_000, 9), rng)
    first = np.bincount(lengths[:, 0], minlength=40)
    assert chi_square(first, pmf) > PASSES
    assert abs(lengths[:, 0].mean() - 3.157) < 5 * 1.74 / 200
    wrong = stats.poisson.pmf(np.arange(40), 3)
    assert chi_square(first, wrong / wrong.sum()) < CAUGHT
    total = lengths.sum(1)
    last = lengths[np.arange(len(lengths)), number - 1]
    assert (total >= 9).all() and (total - last < 9).all()


def test_the_rate_overshoots_by_what_the_last_span_brings():
    """Covered tokens of rows of 400: their mean by the renewal recursion, within five errors."""
    objective = BlankInfilling(WORDS)
    goal, pmf = 60, objective.pmf
    visits = np.zeros(goal)
    visits[0] = 1.0
    for n in range(1, goal):
        visits[n] = sum(visits[n - k] * pmf[k] for k in range(1, min(n, 39) + 1))
    expected = sum(visits[n] * pmf[k] * (n + k) for n in range(goal) for k in range(1, 40)
                   if n + k >= goal)  # fmt: skip
    spans = objective.select(texts(2000, 400), np.random.default_rng(2))
    covered = np.bincount(spans.row, spans.length)
    assert abs(covered.mean() - expected) < 5 * covered.std() / np.sqrt(2000)
    assert 61 < expected < 62.5


def test_pieces_come_in_every_order_alike():
    """Rows with three spans: six orders. Left to right is one of them."""
    for order, right in (("shuffled", True), ("left-to-right", False)):
        objective = BlankInfilling(WORDS, rate=0.5, mean_length=0.5, order=order)
        found = objective.corrupt(texts(20_000, 9), np.random.default_rng(3))
        starts = found["block_position_ids"] == 1
        rows = np.flatnonzero(starts.sum(1) == 3)
        marks = found["position_ids"][rows][starts[rows]].reshape(-1, 3)
        ranks = marks.argsort(1).argsort(1) @ np.array([9, 3, 1])
        counts = np.unique(ranks, return_counts=True)[1]
        counts = np.append(counts, np.zeros(6 - len(counts)))
        p = chi_square(counts, np.full(6, 1 / 6))
        assert p > PASSES if right else p < CAUGHT


def test_the_order_of_the_pieces_says_nothing_about_the_lengths():
    """Rows with three spans: the first piece is as long as the others. Left to right it is not
    compared, since the law of the text's order is the same there."""
    found = BlankInfilling(WORDS, rate=0.4).corrupt(texts(12_000, 30), np.random.default_rng(4))
    block = found["block_position_ids"]
    ends = (found["labels"] == SEP) & (block > 0)
    lengths = (block[ends] - 1)[np.repeat(ends.sum(1) == 3, ends.sum(1))].reshape(-1, 3)
    assert len(lengths) > 2000
    counts = [np.bincount(lengths[:, k], minlength=12)[1:9] for k in range(3)]
    assert stats.chi2_contingency(counts).pvalue > PASSES
    counts = [np.bincount(np.sort(lengths)[:, k], minlength=12)[2:5] for k in range(3)]
    assert stats.chi2_contingency(counts).pvalue < CAUGHT  # the check sees an order by length


def test_the_document_level_has_its_law():
    """Lengths uniform from half to all; half of the spans end the text, the others lie anywhere."""
    objective = BlankInfilling(WORDS, level="document", suffix=0.3)
    law = {}
    for n in range(4, 9):
        for start in range(8 - n + 1):
            p = 0.7 / (8 - n + 1) + 0.3 * (start == 8 - n)
            law[((start, n),)] = p / 5
    assert law_of_spans(objective, law, texts(20_000, 10)) > PASSES
    for wrong in ({"suffix": 0.5}, {"suffix": 0.3, "document": (0.25, 1.0)}):
        mutant = BlankInfilling(WORDS, level="document", **wrong)
        assert law_of_spans(mutant, law, texts(20_000, 10)) < CAUGHT
    prefix = BlankInfilling(WORDS, level="document", suffix=1, document=(0, 1))  # GLM-130B
    spans = prefix.select(texts(4000, 10), np.random.default_rng(0))
    assert (spans.start + spans.length == 9).all()
    assert chi_square(np.bincount(spans.length, minlength=9)[1:], np.full(8, 1 / 8)) > PASSES


def test_the_sentence_level_has_its_law():
    """Sentences of 2, 1, 3 and an open one of 2 in all orders, until 3 tokens are reached."""
    row = [CLS, 7, DOT, DOT, 8, 9, DOT, 8, 7, SEP]
    sentences = [(0, 2), (2, 1), (3, 3), (6, 2)]
    law = {}
    for order in itertools.permutations(sentences):
        total = np.cumsum([length for _, length in order])
        key = tuple(sorted(order[: 1 + int((total < 3).sum())]))
        law[key] = law.get(key, 0) + 1 / 24
    objective = BlankInfilling(WORDS, level="sentence", rate=0.3)
    assert objective.sentence_ends.tolist() == [DOT]
    ids = np.array([row] * 20_000)
    assert law_of_spans(objective, law, ids) > PASSES
    one = BlankInfilling(WORDS, level="sentence", rate=0.1)
    assert law_of_spans(one, law, ids) < CAUGHT


def test_a_mixture_draws_a_level_for_each_row_and_marks_it():
    """GLM-10B's shares; each level has a mark of its own where the vocabulary has one."""
    shares = {"token": 0.5, "sentence": 0.3, "document": 0.2}
    found = BlankInfilling(MARKED, level=shares).corrupt(texts(8000, 30), np.random.default_rng(5))
    marks = [MASK, MARKED.id_of("[sMASK]"), MARKED.id_of("[gMASK]")]
    rows = [(found["input_ids"] == mark).any(1) for mark in marks]
    assert (sum(row.astype(int) for row in rows) == 1).all()
    assert chi_square([row.sum() for row in rows], list(shares.values())) > PASSES
    assert ((found["input_ids"] == marks[2]).sum(1)[rows[2]] == 1).all()
    plain = BlankInfilling(WORDS, level=shares).marks
    assert set(plain.values()) == {MASK}


def test_spans_keep_clear_of_special_tokens():
    for level in ("token", "document", "sentence"):
        objective = BlankInfilling(WORDS, level=level, rate=0.3)
        ids = texts(300, 40, specials=0.08)
        spans = objective.select(ids, np.random.default_rng(6))
        for row, start, length, _ in zip(*spans, strict=True):
            assert (ids[row, start : start + length] > 4).all()


@given(
    flags=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=4),
    cuts=st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_runs_against_a_loop(flags, cuts):
    text, ends = np.array(flags), np.array([cuts] * len(flags))
    expected = []
    for b, row in enumerate(flags):
        open_ = None
        for t in range(7):
            inside = t < 6 and row[t]
            if open_ is not None and (not inside or cuts[t - 1]):
                expected.append((b, open_, t - open_))
                open_ = None
            if inside and open_ is None:
                open_ = t
    assert list(zip(*(x.tolist() for x in runs(text, ends)), strict=True)) == expected
    for b, first, length in zip(*longest_runs(text), strict=True):
        assert text[b, first : first + length].all()
        assert length == max(len(list(g)) for k, g in itertools.groupby(flags[b]) if k)


def test_places_are_independent_draws_in_order():
    lengths, number = np.array([[2, 1, 0]] * 30_000), np.full(30_000, 2)
    start = places(lengths, number, np.full(30_000, 6), np.random.default_rng(7))[:, :2]
    law = {}
    for drawn in itertools.product(range(3), repeat=2):
        a, b = sorted(drawn)
        law[a, b + 3] = law.get((a, b + 3), 0) + 1 / 9
    counts = [int(((start == key).all(1)).sum()) for key in law]
    assert sum(counts) == 30_000 and chi_square(counts, list(law.values())) > PASSES


# --- The loss -------------------------------------------------------------------------------------


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([1.0, 1e3]),
    seed=st.integers(0, 999),
)
def test_loss_and_gradient_equal_torch_and_numpy(shape, share, scale, seed):
    """float64: values and gradients agree to 1e-12."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    labels = np.where(rng.random(shape[:2]) < share, rng.integers(0, shape[2], shape[:2]), -100)
    objective, batch = BlankInfilling(WORDS), {"labels": torch.tensor(labels)}
    z = torch.tensor(logits, requires_grad=True)
    ours = objective.loss(z, batch)
    ours.backward()
    at = labels != -100
    top = logits[at] - logits[at].max(-1, keepdims=True) if at.any() else logits[at]
    logs = top - np.log(np.exp(top).sum(-1, keepdims=True)) if at.any() else top
    value = -logs[np.arange(at.sum()), labels[at]].mean() if at.any() else 0.0
    gradient = np.zeros(shape)
    gradient[at] = (np.exp(logs) - np.eye(shape[2])[labels[at]]) / max(at.sum(), 1)
    assert abs(ours.item() - value) <= 1e-12 * max(1, abs(value))
    assert np.abs(z.grad.numpy() - gradient).max() <= 1e-12
    if at.any():
        y = torch.tensor(logits, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(y.flatten(0, 1), batch["labels"].flatten())
        theirs.backward()
        assert abs(ours.item() - theirs.item()) <= 1e-12 * max(1, abs(value))
        assert torch.allclose(z.grad, y.grad, rtol=0, atol=1e-12)


def test_the_denominator_counts_end_tokens_over_the_whole_batch():
    """Two rows with one span each, of 1 and 3 tokens: 2 + 4 targets."""
    objective = BlankInfilling(WORDS)
    spans = type(objective.select(texts(2, 9), np.random.default_rng(0)))(
        np.array([0, 1]), np.array([2, 4]), np.array([1, 3]), np.array([MASK, MASK])
    )
    arrays = objective.layout(texts(2, 9), spans, np.random.default_rng(0))
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert objective.count(batch) == 6
    logits = torch.randn(*batch["labels"].shape, WORDS.size, dtype=torch.float64)
    each = objective.loss(logits, batch, reduction="none")
    total = objective.loss(logits, batch, reduction="sum")
    assert torch.isclose(total, each.sum()) and torch.isclose(
        total / 6, objective.loss(logits, batch)
    )
    halves = [{k: v[b : b + 1] for k, v in batch.items()} for b in (0, 1)]
    parts = [objective.loss(logits[b : b + 1], halves[b], denominator=6) for b in (0, 1)]
    assert torch.isclose(sum(parts), total / 6)
    at = batch["labels"] != -100
    assert torch.isclose(objective.loss(logits[at], batch), total / 6)


# --- As a collator --------------------------------------------------------------------------------


def test_a_collator_of_a_data_loader_pads_and_draws_anew():
    rows = [{"input_ids": row[: 20 + i]} for i, row in enumerate(texts(8, 30))]
    objective = BlankInfilling(WORDS)
    loader = DataLoader(rows, batch_size=4, collate_fn=objective)
    objective.set_epoch(0)
    first = [batch["input_ids"] for batch in loader]
    objective.set_epoch(1)
    second = [batch["input_ids"] for batch in loader]
    objective.set_epoch(0)
    again = [batch["input_ids"] for batch in loader]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(a.shape != b.shape or not torch.equal(a, b)
               for a, b in zip(first, second, strict=True))  # fmt: skip


def test_static_corruption_does_not_depend_on_the_batch():
    objective = BlankInfilling(WORDS, duplicates=2)
    ids = texts(6, 30)
    whole = objective.corrupt_rows(ids, range(6), epoch=3)
    part = objective.corrupt_rows(ids[2:4], [2, 3], epoch=1)
    for name in FIELDS:
        used = part["attention_mask"].sum(1).max()
        assert np.array_equal(whole[name][2:4, :used], part[name][:, :used])
    other = objective.corrupt_rows(ids[2:4], [2, 3], epoch=2)
    assert (
        other["labels"].shape != part["labels"].shape or (other["labels"] != part["labels"]).any()
    )


def test_show_lets_the_reader_see_both_parts():
    words = Vocabulary.from_words(["the", "cat", "sat", "on", "mat", "."])
    shown = BlankInfilling(words, rate=0.5).show(
        "the cat sat on the mat .", np.random.default_rng(1)
    )
    names = [place.seen for place in shown]
    asked = [place for place in shown if place.target is not None]
    assert names[0] == "[CLS]" and "[MASK]" in names and names.count("[SEP]") == 1
    assert (
        " ".join(p.original for p in shown if p.original) == "[CLS] the cat sat on the mat . [SEP]"
    )
    assert asked[0].seen == "[CLS]" and asked[-1].target == "[SEP]"
    blanks = [p.original for p in shown if p.seen == "[MASK]"]
    pieces = " ".join(p.target for p in asked).split(" [SEP]")
    assert sorted(blanks) == sorted(piece.strip() for piece in pieces if piece.strip())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate": 1.5}, "rate: expected a share"),
        ({"order": "backwards"}, "order: expected one of"),
        ({"level": "page"}, "level: expected one of"),
        ({"level": {"token": 0.5, "document": 0.4}}, "level: expected probabilities"),
        ({"document": (0.9, 0.5)}, "document: expected two shares"),
        ({"suffix": -0.1}, "suffix: expected a probability"),
        ({"mean_length": 0}, "mean_length: expected a number above 0"),
        ({"max_length": 0}, "max_length: expected at least 1"),
        ({"marks": {"page": 4}}, "marks: expected ids of"),
        ({"marks": {"token": 99}}, "marks: expected ids of the vocabulary"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        BlankInfilling(WORDS, **options)


def test_a_vocabulary_without_sentence_ends_is_refused():
    with pytest.raises(ValueError, match="sentence_ends: expected a token with one of"):
        BlankInfilling(Vocabulary.from_words("abc"), level="sentence")
