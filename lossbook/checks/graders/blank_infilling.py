"""Graded exercises of the chapter *Blank infilling*."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader

IGNORE = -100
MASK, START, END = 4, 2, 3


@grader("blank-layout")
def blank_layout() -> Iterable[Case]:
    """``f(text, spans, order, mask_id, start_id, end_id)``: the four arrays of one text."""
    opening = [2, 10, 11, 12, 13, 14, 15, 16, 3]
    for label, text, spans, order, hint in (
        ("the example of the opening", opening, [(2, 2), (6, 1)], (1, 0),
         "The place of a piece is the index of its mark in part A, where earlier spans have "
         "shrunk to one mark each."),
        ("the same, in the order of the text", opening, [(2, 2), (6, 1)], (0, 1),
         "The order decides where a piece stands in part B, and nothing else."),
        ("three spans, the last one first", list(range(20, 35)), [(1, 3), (6, 1), (9, 4)],
         (2, 0, 1), "The places must follow their own spans, not the order of the pieces."),
        ("spans at both ends", [10, 11, 12, 13, 14], [(0, 2), (4, 1)], (0, 1),
         "A text may begin with a mark, and end with one."),
        ("two spans that touch", [10, 11, 12, 13, 14, 15], [(1, 2), (3, 2)], (1, 0),
         "Two marks stand side by side."),
        ("the whole text", [10, 11, 12], [(0, 3)], (0,), "Part A is one mark."),
        ("no span", [2, 10, 11, 3], [], (), "Part B is empty, part A is the text."),
        ("a token with the id of the end token inside a span", [2, 10, 3, 11, 3], [(1, 3)], (0,),
         "The end of a piece is known by its length, not by its id."),
    ):  # fmt: skip
        arguments = (text, spans, order, MASK, START, END)
        yield Case(label, arguments, _layout(*arguments), hint)


def _layout(text, spans, order, mask_id, start_id, end_id):
    """Token by token over the text, with the index in A counted along."""
    begins = {first: k for k, (first, _) in enumerate(spans)}
    inside = {t for first, length in spans for t in range(first, first + length)}
    seen, labels, place, block, where = [], [], [], [], {}
    for t, token in enumerate(text):
        if t in begins:
            where[begins[t]] = len(seen)
        if t in begins or t not in inside:
            place.append(len(seen))
            seen.append(mask_id if t in begins else token)
            labels.append(IGNORE)
            block.append(0)
    for k in order:
        first, length = spans[k]
        for j in range(length + 1):
            seen.append(text[first + j - 1] if j else start_id)
            labels.append(text[first + j] if j < length else end_id)
            place.append(where[k])
            block.append(j + 1)
    return tuple(np.array(row, dtype=np.int64) for row in (seen, labels, place, block))


@grader("infilling-mask")
def infilling_mask() -> Iterable[Case]:
    """``f(block_position_ids, attention_mask)``: who sees whom, ``[B, T, T]`` of booleans."""
    opening = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 1, 2, 3]
    full = [1] * 13
    for label, block, keys, hint in (
        ("the example of the opening", [opening], [full],
         "The row looks, the column is looked at. Did you swap them?"),
        ("two rows with parts of different length", [[0, 0, 1, 2, 3, 1], [0, 0, 0, 0, 1, 2]],
         [[1] * 6] * 2, "Each row has its own part A."),
        ("a piece that begins anew", [[0, 1, 2, 1, 2]], [[1] * 5],
         "The second piece sees the first: compare places in the sequence, not in the piece."),
        ("part A alone", [[0, 0, 0]], [[1, 1, 1]], "Without a blank everything sees everything."),
        ("padding behind part B", [[0, 0, 1, 2, 0, 0]], [[1, 1, 1, 1, 0, 0]],
         "Padding has block position 0 as part A has, but nobody may see it."),
        ("a row of padding alone", [[0, 0], [0, 1]], [[0, 0], [1, 1]],
         "Padding sees itself, so that no softmax is empty."),
    ):  # fmt: skip
        arguments = (np.array(block), np.array(keys))
        yield Case(label, arguments, _visible(*arguments), hint)


def _visible(block, keys):
    """One pair after the other."""
    batch, time = block.shape
    seen = np.zeros((batch, time, time), bool)
    for b in range(batch):
        for t in range(time):
            for u in range(time):
                open_ = block[b, u] == 0 or (block[b, t] > 0 and u <= t)
                seen[b, t, u] = (open_ and keys[b, u] > 0) or t == u
    return seen


@grader("cover-law")
def cover_law() -> Iterable[Case]:
    """``f(pmf, budget)``: the distribution of the covered tokens."""
    pmf = np.array([0, 0.5, 0.3, 0.2])
    for label, law, budget, hint in (
        ("one span may be enough", pmf, 2, "Stop as soon as the sum has reached the budget."),
        ("several spans", pmf, 7, "After the first span the rest of the budget is smaller."),
        ("a budget of 1", pmf, 1, "Exactly one span is drawn, whatever its length."),
        ("no budget", pmf, 0, "Nothing is drawn, so nothing is covered."),
        ("lengths that are all 1", np.array([0, 1.0]), 5, "Then the budget is met exactly."),
        ("a budget below the longest span", np.array([0, 0.1, 0, 0, 0.9]), 3,
         "The array has budget + len(pmf) - 1 entries: at most budget - 1 before the last span."),
    ):  # fmt: skip
        yield Case(label, (law, budget), _cover(law, budget), hint)


def _cover(pmf, budget):
    """Follow every sequence of draws."""
    law = np.zeros(budget + len(pmf) - 1)
    open_ = {0: 1.0}
    while open_:
        total, p = open_.popitem()
        if total >= budget:
            law[total] += p
            continue
        for n in range(1, len(pmf)):
            open_[total + n] = open_.get(total + n, 0.0) + p * pmf[n]
    return law


@grader("first-length")
def first_length() -> Iterable[Case]:
    """``f(pmf, blanks, total, budget)``: the law of one blank's length, given part A's size."""
    pmf = np.array([0, 0.4, 0.3, 0.2, 0.1])
    for label, blanks, total, budget, hint in (
        ("one blank", 1, 3, 2, "Its length is the total, with certainty."),
        ("two blanks that meet the budget exactly", 2, 5, 5,
         "Without overshoot every blank may have been the last: the law is p(l) p(S - l)."),
        ("two blanks beyond the budget", 2, 5, 4,
         "One of them was drawn last, and the other alone is below the budget: longer lengths "
         "count for one more of the m."),
        ("three blanks, far beyond", 3, 7, 4,
         "The sum of indicators in the weight is over all blanks, the others included."),
        ("four blanks", 4, 9, 8, "Sum over all lengths of the others that leave S - l."),
        ("a total that the longest spans just reach", 2, 8, 6,
         "Lengths with probability 0 stay impossible."),
    ):  # fmt: skip
        yield Case(label, (pmf, blanks, total, budget), _first(pmf, blanks, total, budget), hint)


def _first(pmf, blanks, total, budget):
    """All tuples of lengths with the right sum."""
    law = np.zeros(total + 1)
    stack = [()]
    while stack:
        lengths = stack.pop()
        if len(lengths) < blanks:
            stack += [(*lengths, n) for n in range(1, min(len(pmf) - 1, total) + 1)]
        elif sum(lengths) == total:
            charged = sum(n > total - budget for n in lengths)
            law[lengths[0]] += np.prod([pmf[n] for n in lengths]) * charged
    return law / law.sum()
