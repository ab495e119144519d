"""The chapter's NumPy against lossbook, torch and GPT-2, its museum and its exercises."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lossbook import checks, recorded
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.corpora.floors import length_pmf
from lossbook.models import infilling_visibility
from lossbook.objectives import BlankInfilling
from lossbook.objectives.blank_infilling import draw_lengths

CHAPTER = "blank-infilling"
IGNORE = -100
OPENING = [2, 10, 11, 12, 13, 14, 15, 16, 3]
SPECIAL = (4, 2, 3)
BLOCK = np.array([0] * 8 + [1, 2, 1, 2, 3])


@cache
def language():
    return HiddenMarkovLanguage.default()


def vocabulary():
    return language().vocabulary


# --- The opening example


def test_the_opening_example_by_hand(derivation):
    """The table, 1.248 nats, and the two other denominators."""
    seen, labels, place, block = derivation(CHAPTER).lay_out(
        OPENING, [(2, 2), (6, 1)], (1, 0), *SPECIAL
    )
    assert seen.tolist() == [2, 10, 4, 13, 14, 4, 16, 3, 2, 15, 2, 11, 12]
    assert labels.tolist() == [IGNORE] * 8 + [15, 3, 11, 12, 3]
    assert place.tolist() == [*range(8), 5, 5, 2, 2, 2]
    assert block.tolist() == BLOCK.tolist()
    p = np.array([1 / 4, 1 / 2, 1 / 8, 1 / 2, 1 / 4])
    assert round(-np.log(p).mean(), 3) == 1.248 == round(9 / 5 * math.log(2), 3)
    assert round(-np.log(p[[0, 2, 3]]).mean(), 3) == 1.386
    assert round((-np.log(p[:2]).mean() - np.log(p[2:]).mean()) / 2, 3) == 1.213
    assert math.isclose(p.prod(), 1 / 512)


# --- The layout and the mask


@given(
    seed=st.integers(0, 999),
    time=st.integers(5, 40),
    rate=st.sampled_from([0.15, 0.4]),
    level=st.sampled_from(["token", "sentence", "document"]),
)
def test_the_loops_lay_out_what_lossbook_does(derivation, seed, time, rate, level):
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    objective = BlankInfilling(vocabulary(), rate=rate, level=level)
    ids = language().batch(3, time, seed=seed)
    spans = objective.select(ids, rng)
    batch = objective.layout(ids, spans, rng)
    for b in range(3):
        mine = [(int(s), int(n)) for r, s, n in zip(*spans[:3], strict=True) if r == b]
        _, places = page.part_a(ids[b].tolist(), mine, 4)
        first = batch["block_position_ids"][b] == 1
        order = [places.index(p) for p in batch["position_ids"][b, first]]
        expected = page.lay_out(ids[b].tolist(), mine, order, *SPECIAL)
        names = ("input_ids", "labels", "position_ids", "block_position_ids")
        for name, row in zip(names, expected, strict=True):
            assert np.array_equal(batch[name][b, : len(row)], row)
        seen = infilling_visibility(torch.tensor(expected[3])[None])[0, 0].numpy()
        assert np.array_equal(seen, page.may_see(expected[3]))


# --- The laws


@given(rate=st.floats(0.2, 8), longest=st.integers(1, 60))
def test_poisson_without_its_zero(derivation, rate, longest):
    pmf = derivation(CHAPTER).poisson_without_zero(rate, longest)
    assert checks.difference(pmf, length_pmf(rate, longest)) <= 1e-13
    if longest == 60:
        assert math.isclose(pmf @ np.arange(61), rate / (1 - math.exp(-rate)), rel_tol=1e-9)


def test_the_numbers_about_lengths(derivation, solutions):
    """3.157; 10.50 and 77.50 covered; a tenth beyond 12; one span up to b = 3."""
    page, pmf = derivation(CHAPTER), length_pmf(3.0, 39)
    assert round(float(pmf @ np.arange(40)), 3) == 3.157 == round(3 / 0.9502, 3)
    assert stats.poisson.sf(39, 3) < 1e-30
    for budget, stated, share, n in ((9, 10.50, 16.4, 64), (76, 77.50, 15.1, 512)):
        law = solutions(CHAPTER).cover_law(pmf, budget)
        mean = law @ np.arange(len(law))
        assert math.isclose(mean, page.expected_cover(pmf, budget), rel_tol=1e-12)
        assert round(mean, 2) == stated and round(100 * mean / n, 1) == share
    law = solutions(CHAPTER).cover_law(pmf, 9)
    assert 0.10 < law[13:].sum() < 0.11  # one row in ten
    assert [round(1 - pmf[:n].sum(), 3) for n in (3, 4)] == [0.607, 0.371]
    assert math.floor(0.15 * 26) == 3 and math.floor(0.15 * 27) == 4


@given(budget=st.integers(1, 12), seed=st.integers(0, 99))
def test_expected_cover_against_the_law_and_against_draws(derivation, solutions, budget, seed):
    pmf = np.append(0.0, np.random.default_rng(seed).dirichlet(np.ones(5)))
    law = solutions(CHAPTER).cover_law(pmf, budget)
    mean = derivation(CHAPTER).expected_cover(pmf, budget)
    assert math.isclose(law @ np.arange(len(law)), mean, rel_tol=1e-12)
    drawn, _ = draw_lengths(pmf, np.full(4000, budget), np.random.default_rng(seed))
    total = drawn.sum(1)
    assert abs(total.mean() - mean) < 5 * total.std() / 4000**0.5 + 1e-9


# --- The loss


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 999),
)
def test_loss_and_gradient(derivation, shape, share, scale, seed):
    """As defined = as arrays = lossbook = torch, value and gradient."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    labels = np.where(rng.random(shape[:2]) < share, rng.integers(0, shape[2], shape[:2]), IGNORE)
    batch = {"labels": torch.tensor(labels)}
    z = torch.tensor(logits, requires_grad=True)
    ours = BlankInfilling(vocabulary()).loss(z, batch)
    ours.backward()
    value, gradient = page.infilling_loss_and_gradient(logits, labels)
    assert checks.difference(value, ours) <= 1e-13
    assert checks.difference(gradient, z.grad) <= 1e-13
    assert checks.difference(value, page.infilling_loss_by_definition(logits, labels)) <= 1e-13
    assert not gradient[labels == IGNORE].any()
    if (labels != IGNORE).any():
        y = torch.tensor(logits, requires_grad=True)
        theirs = torch.nn.functional.cross_entropy(y.flatten(0, 1), batch["labels"].flatten())
        theirs.backward()
        assert checks.difference(gradient, y.grad) <= 1e-13


# --- The ideal predictor


def test_the_table_of_entropies():
    """Ends are nearly free, the last one entirely; first tokens are the hardest."""
    ids = language().batch(150, 64, seed=1, split="validation")
    objective = BlankInfilling(vocabulary())
    batch = objective.corrupt(ids, objective.generator(0, 0))
    ideal = objective.floor(language(), ids, batch)
    block, labels = batch["block_position_ids"], batch["labels"]
    number = np.cumsum(block == 1, axis=1)
    last = (number == number[:, -1:])[ideal.targets]
    first, end = block[ideal.targets] == 1, labels[ideal.targets] == 3
    means = [ideal.entropy[kind & ~last].mean() for kind in (first, ~first & ~end, end)]
    assert means[0] > means[1] > 1.4 > 0.3 > means[2] > 0.1
    assert ideal.entropy[end & last].max() < 1e-9
    assert 1.1 < ideal.mean_entropy < 1.45
    floors = []
    for level in ("token", "sentence", "document"):
        task = BlankInfilling(vocabulary(), level=level)
        some = task.corrupt(ids[:60], np.random.default_rng(0))
        floors.append(task.floor(language(), ids[:60], some).mean_entropy)
    assert floors == sorted(floors)


# --- Museum


def leaks_and_blind(page, rule):
    """By powers of the mask: two layers let t see u if some s sees u and is seen by t."""
    seen = rule(BLOCK).astype(int)
    reach = (seen @ seen > 0) | (seen > 0)
    right = page.may_see(BLOCK)
    assert np.array_equal((right.astype(int) @ right.astype(int) > 0), right)
    return int((reach & ~right).sum()), int((right & ~reach).sum())


@pytest.mark.parametrize(
    ("rule", "counts"),
    [
        ("may_see", (0, 0)),
        ("padding_mask_only", (50, 0)),
        ("one_too_far", (7, 0)),
        ("a_sees_b", (50, 0)),
        ("b_sees_its_own_piece_only", (0, 6)),
    ],
)
def test_the_check_of_pairs_catches_each_mask(museum, rule, counts):
    """What the page printed from a model follows from the masks alone."""
    page = museum(CHAPTER)
    assert leaks_and_blind(page, getattr(page, rule)) == counts


def test_the_page_finds_them_in_a_model(museum):
    page = museum(CHAPTER)
    example = page.lay_out(OPENING, [(2, 2), (6, 1)], (1, 0), *SPECIAL)
    one = page.stacked([example])

    def model(rule):
        class With(page.Infiller):
            def encode(self, *arguments, visible, **options):
                wrong = torch.tensor(rule(BLOCK))[None, None]
                return super().encode(*arguments, visible=wrong, **options)

        return page.loud(With(page.TransformerConfig(30, width=16, max_length=16), seed=2))

    for name in ("may_see", "padding_mask_only", "one_too_far", "a_sees_b",
                 "b_sees_its_own_piece_only"):  # fmt: skip
        found = page.moved(model(getattr(page, name)), one)
        assert np.array_equal(found, page.may_see(BLOCK)) == (name == "may_see")
    single = page.TransformerConfig(30, width=16, layers=1, max_length=16)

    class Shallow(page.Infiller):
        def encode(self, *arguments, visible, **options):
            wrong = torch.tensor(page.a_sees_b(BLOCK))[None, None]
            return super().encode(*arguments, visible=wrong, **options)

    found = page.moved(page.loud(Shallow(single, seed=2)), one)
    assert np.array_equal(found[8:], page.may_see(BLOCK)[8:])  # one layer: B learns nothing


def test_the_same_grader_catches_the_masks(museum):
    page = museum(CHAPTER)

    def answer(rule):
        def visible(block, keys):
            seen = np.stack([rule(row) for row in block]) & (keys > 0)[:, None, :]
            return seen | np.eye(block.shape[1], dtype=bool)

        return visible

    assert checks.check("infilling-mask", answer(page.may_see)).passed
    for name in ("padding_mask_only", "one_too_far", "a_sees_b", "b_sees_its_own_piece_only"):
        assert not checks.check("infilling-mask", answer(getattr(page, name))).passed


def test_without_first_targets_the_floor_is_lower(museum):
    page = museum(CHAPTER)
    ids = language().batch(100, 64, split="validation")
    objective = BlankInfilling(vocabulary())
    batch = objective.corrupt(ids, objective.generator(0, 0))
    ideal = objective.floor(language(), ids, batch)
    few = page.first_target_dropped(batch["labels"], batch["block_position_ids"])
    kept = (few != IGNORE)[ideal.targets]
    assert (~kept).sum() == (batch["block_position_ids"] == 1).sum()
    assert ideal.entropy[kept].mean() < ideal.mean_entropy - 0.1


# --- Exercises

SOLUTIONS = {
    "blank-layout": "blank_layout",
    "infilling-mask": "visible",
    "cover-law": "cover_law",
    "first-length": "first_length",
}


@pytest.mark.parametrize(("exercise", "name"), SOLUTIONS.items())
def test_the_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def layout(text, spans, order, mask_id, start_id, end_id, *, mistake=""):
    a, places, last, lost = [], [], 0, 0
    for first, length in spans:
        a += text[last:first]
        places.append(first if mistake == "original places" else first - lost)
        a.append(mask_id)
        last, lost = first + length, lost + length - 1
    a += text[last:]
    rows = [(token, IGNORE, place, 0) for place, token in enumerate(a)]
    for i, k in enumerate(sorted(order) if mistake == "sorted" else order):
        first, length = spans[k]
        piece = text[first : first + length]
        place = places[i if mistake == "places by rank" else k]
        if mistake == "no end":
            piece, asked = piece[:-1], piece
        else:
            asked = [*piece, end_id]
        for j, pair in enumerate(zip([start_id, *piece], asked, strict=True), 1):
            rows.append((*pair, place, j - (mistake == "from zero")))
    return tuple(np.array(column) for column in zip(*rows, strict=True))


def mask(block, keys, *, mistake=""):
    in_b = block > 0
    earlier = np.tri(block.shape[1], dtype=bool)
    if mistake == "in the piece":
        earlier = block[:, None, :] <= block[:, :, None]
    seen = ~in_b[:, None, :] | (in_b[:, :, None] & earlier)
    if mistake == "transposed":
        seen = seen.transpose(0, 2, 1)
    if mistake != "padding seen":
        seen = seen & (keys > 0)[:, None, :]
    return seen if mistake == "empty rows" else seen | np.eye(block.shape[1], dtype=bool)


def cover(pmf, budget, *, mistake=""):
    law = np.zeros(budget + len(pmf) - 1 + (mistake == "too long"))
    law[0] = 1.0
    for total in range(budget + (mistake == "beyond")):
        if total + len(pmf) > len(law) + 1:
            break
        step, law[total] = law[total], 0.0
        room = law[total + 1 : total + len(pmf)]
        room += step * np.asarray(pmf)[1 : 1 + len(room)]
    return law


def length(pmf, blanks, total, budget, *, mistake=""):
    weight = np.zeros(total + 1)
    for lengths in itertools.product(range(1, len(pmf)), repeat=blanks):
        if sum(lengths) == total:
            charged = sum(n > total - budget for n in lengths)
            charged = {"no budget": 1, "own only": int(lengths[0] > total - budget)}.get(
                mistake, charged
            )
            weight[lengths[0]] += np.prod([pmf[n] for n in lengths]) * charged
    if mistake == "prior":
        weight[1 : len(pmf)] = pmf[1 : total + 1]
    return weight / weight.sum()


MISTAKES = [
    ("blank-layout", layout, "original places", "the example of the opening"),
    ("blank-layout", layout, "places by rank", "three spans"),
    ("blank-layout", layout, "sorted", "the example of the opening"),
    ("blank-layout", layout, "no end", "the whole text"),
    ("blank-layout", layout, "from zero", "the whole text"),
    ("infilling-mask", mask, "transposed", "the example of the opening"),
    ("infilling-mask", mask, "in the piece", "a piece that begins anew"),
    ("infilling-mask", mask, "padding seen", "padding behind part B"),
    ("infilling-mask", mask, "empty rows", "a row of padding alone"),
    ("cover-law", cover, "beyond", "one span may be enough"),
    ("cover-law", cover, "too long", "a budget below the longest span"),
    ("first-length", length, "no budget", "two blanks beyond the budget"),
    ("first-length", length, "own only", "two blanks beyond the budget"),
    ("first-length", length, "prior", "one blank"),
]


@pytest.mark.parametrize(("exercise", "answer", "mistake", "case"), MISTAKES)
def test_the_exercises_catch_mistakes(exercise, answer, mistake, case):
    """Each mistake fails at the case that was made for it, and that case has a hint."""
    report = checks.check(exercise, lambda *a: answer(*a, mistake=mistake))
    (line,) = [i for i, t in enumerate(report.lines) if t.startswith("  ✗") and case in t]
    assert report.lines[line + 1].startswith("      ")


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("blank-layout", layout), ("infilling-mask", mask), ("cover-law", cover),
     ("first-length", length)],
)  # fmt: skip
def test_the_exercises_accept_right_answers(exercise, answer):
    assert checks.check(exercise, answer).passed


@given(seed=st.integers(0, 99), blanks=st.integers(1, 4), budget=st.integers(1, 7))
def test_the_length_given_the_size_of_part_a(solutions, seed, blanks, budget):
    """The solution's convolutions against a list of all lengths."""
    rng = np.random.default_rng(seed)
    pmf = np.append(0.0, rng.dirichlet(np.ones(4)))
    total = min(max(budget, blanks) + seed % 3, 4 * blanks)
    possible = any(
        sum(t) == total and max(t) > total - budget
        for t in itertools.product(range(1, 5), repeat=blanks)
    )
    if possible and total >= budget:
        found = solutions(CHAPTER).first_length(pmf, blanks, total, budget)
        assert checks.difference(found, length(pmf, blanks, total, budget)) <= 1e-12


def test_what_the_length_gives_away(solutions):
    """1.82 nats if nothing is known, 1.6 given the number of blanks and their sum."""
    pmf = length_pmf(3.0, 39)
    entropy = -np.sum(pmf[1:] * np.log(pmf[1:]))
    assert round(float(entropy), 2) == 1.82
    spans = BlankInfilling(vocabulary()).select(
        language().batch(2000, 64), np.random.default_rng(1)
    )
    number, hidden = np.bincount(spans.row), np.bincount(spans.row, spans.length).astype(int)
    left = []
    for m, total in zip(number, hidden, strict=True):
        p = solutions(CHAPTER).first_length(pmf, m, total, 9)
        left.append(-np.sum(p[p > 0] * np.log(p[p > 0])))
    assert math.isclose(np.mean(left), 1.64, abs_tol=0.02)


def test_the_recorded_run():
    """It says where it comes from, and falls to its floor from above."""
    record = recorded.load(CHAPTER)
    assert record["command"].startswith("lossbook pretrain") and record["device"]
    history = record["result"]
    rows = history["evaluations"]
    assert history["objective"] == CHAPTER
    assert all(row["loss"] > row["floor"] == history["floor"] for row in rows)
    assert rows[-1]["excess"] < 0.5
    ids = language().batch(64, 64, index=0, split="validation")
    objective = BlankInfilling(vocabulary())
    batch = objective.corrupt(ids, np.random.default_rng([0, 0, 0, 1]))
    entropy = objective.floor(language(), ids, batch).mean_entropy
    assert math.isclose(entropy, history["entropy"], abs_tol=0.1)
