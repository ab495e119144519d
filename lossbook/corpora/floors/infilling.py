r"""The floor of blank infilling: entropy of the pieces of part B, one token after the other.

What the ideal predictor of one token of B has seen: part A, the pieces before, and the beginning
of the piece :math:`c` that is being written. What it does not see are the other blanks, in number
and in length. It knows that A stands for a text of :math:`T` tokens (all texts of a run have the
same length), so the lengths of all blanks add up to :math:`S = T - |\text A| + m`. The places of
the marks among the visible tokens are in plain sight, so of the law of the spans only the weight
of the *lengths* matters.

**The weight of the lengths.** Lengths are drawn from :math:`p` until their sum reaches the budget
:math:`b`, then put into random order. The sum stays below :math:`b` without the last one drawn,
and each of the :math:`m` may have been that one:

.. math::

    P(\ell_1, \dots, \ell_m) = \prod_i p(\ell_i) \cdot \frac1m \sum_i [\ell_i > S - b],
    \qquad S \ge b.

Whole sentences in random order until their sum reaches :math:`b` give the same sum over
:math:`i`, with :math:`p = 1`, and with factorials that depend on nothing hidden.

**The recursion.** A blank is a run of unseen tokens of unknown length. Let
:math:`\alpha(\mu, s, j)` be the probability of all that is seen so far, of :math:`j` as the state
of the next token, of :math:`s` tokens in the unseen blanks so far, with :math:`\mu = 1` if the
sum over :math:`i` has been charged to one of them. A seen token :math:`v` multiplies by
:math:`E(j, v)` and moves on by :math:`A`. An unseen blank mixes all its lengths,

.. math::

    \alpha'(0, s) &= \sum_\ell p(\ell)\, \alpha(0, s - \ell)\, A^\ell \\
    \alpha'(1, s) &= \sum_\ell p(\ell) \big( \alpha(1, s - \ell)
        + [\ell > S - b]\, \alpha(0, s - \ell) \big) A^\ell,

and likewise from behind for :math:`\beta`. Blanks that are known by now, :math:`\kappa` of them
with :math:`\ell_i > S - b`, are seen tokens. With :math:`R` for what they leave of :math:`S`, the
current piece may end after :math:`j` tokens with the weight

.. math::

    D_j(0, s) = p(j) \big( (\kappa + [j > S - b])\, \beta(0, R - s - j) + \beta(1, R - s - j)
        \big), \qquad D_j(1, s) = p(j)\, \beta(0, R - s - j),

and goes on with all that may follow, :math:`C_j = D_j + A\, C_{j+1}`. After the prefix the next
token is ``end`` with a weight :math:`\sum \alpha D_j` and :math:`v` with
:math:`\sum \alpha\, E(\cdot, v)\, A\, C_{j+1}`. In a blank that is a whole sentence, tokens
inside are no sentence ends and the last one is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import lgamma

import numpy as np
from jaxtyping import Float, Int

from lossbook._require import require
from lossbook.corpora.floors.base import (
    Floor,
    Texts,
    entropy_of,
    evidence,
    log_or_minus_infinity,
)
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage

LEVELS = ("token", "sentence", "document")
IGNORED = -100
BLANK, NOTHING = -1, -2

_CELLS = 2**21  # numbers that one pass keeps for the pieces being written


def length_pmf(mean_length: float | int, max_length: int) -> Float[np.ndarray, " lengths"]:
    """The Poisson law without its zero, cut off and renormalised: probabilities of 0, 1, 2, ...

    Args:
        mean_length: the parameter of the law; without the zero the mean is a little larger,
            3.157 for 3.
        max_length: the longest span that is possible.
    """
    require(mean_length > 0, "mean_length", mean_length, "a number above 0")
    require(max_length >= 1, "max_length", max_length, "at least 1")
    length = np.arange(1, max_length + 1)
    logs = length * np.log(mean_length) - np.array([lgamma(n + 1) for n in length])
    weight = np.exp(logs - logs.max())
    return np.append(0.0, weight / weight.sum())


def span_budget(
    rate: float | int,
    lengths: Int[np.ndarray, " batch"],
    candidates: Int[np.ndarray, " batch"],
) -> Int[np.ndarray, " batch"]:
    """How many tokens the spans of a row cover at least.

    The rate's share of all its tokens, rounded down; but at least 1, and at most what there is.

    Args:
        rate: the share; at 0 there are no spans.
        lengths: tokens of each row without padding, special tokens included.
        candidates: those of them that a span may cover.
    """
    share = np.maximum(1, np.floor(rate * lengths)).astype(np.int64)
    return np.minimum(share, candidates) * (rate > 0)


def infilling_floor(
    language: HiddenMarkovLanguage,
    ids: Int[np.ndarray, "batch time"],
    input_ids: Int[np.ndarray, "batch width"],
    labels: Int[np.ndarray, "batch width"],
    position_ids: Int[np.ndarray, "batch width"],
    block_position_ids: Int[np.ndarray, "batch width"],
    *,
    marks: Mapping[int, str] | None = None,
    rate: float | int = 0.15,
    pmf: Float[np.ndarray, " lengths"] | None = None,
    sentence_ends: Int[np.ndarray, " ends"] | None = None,
    log_probs: bool = False,
) -> Floor:
    """The ideal predictor of the tokens of part B, in the order in which they are written.

    It knows part A, the length of the text, the law of the spans, the pieces written before and
    the beginning of the present one; not the lengths of the blanks that are still to come.

    Args:
        language: the language of the texts.
        ids: the original rows, one text each, between ``[CLS]`` and ``[SEP]`` or bare.
        input_ids: parts A and B; a piece of B starts at block position 1 with a start token.
        labels: the next token of the piece, then the end token ``[SEP]``; -100 elsewhere.
        position_ids: in B the index of the piece's mark in A.
        block_position_ids: 0 in A, 1, 2, ... in a piece of B.
        marks: level (``"token"``, ``"sentence"``, ``"document"``) of each id that marks a blank;
            ``[MASK]`` for ``"token"`` by default.
        rate: share of the tokens that spans cover, in the laws of tokens and of sentences.
        pmf: law of the lengths 0, 1, 2, ... of the token level; by default Poisson with
            parameter 3, without 0 and up to 39.
        sentence_ends: ids that end a sentence, for the sentence level.
        log_probs: also return the distributions; the end of a piece stands at ``[SEP]``.

    Returns:
        One target for each token of B, end tokens included.

    Raises:
        ValueError: the arrays are not a layout of these ids, or spans that the law cannot draw.
    """
    marks = {language.vocabulary.mask_id: "token"} if marks is None else dict(marks)
    require(set(marks.values()) <= set(LEVELS), "marks", marks, f"levels among {LEVELS}")
    pmf = length_pmf(3.0, 39) if pmf is None else np.asarray(pmf, np.float64)
    texts = Texts(language, ids)
    fields = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    fields |= {"block_position_ids": block_position_ids}
    for argument, array in fields.items():
        expected = f"{(len(ids), input_ids.shape[1])}, as input_ids, a row for each text"
        require(array.shape == (len(ids), input_ids.shape[1]), argument, array.shape, expected)
    budgets = span_budget(rate, texts.framed, texts.length)
    items: list[_Item] = []
    for row in range(len(ids)):
        layout = _Layout.read(language, row, ids[row], fields, marks)
        items += layout.items(int(budgets[row]), pmf)
    targets = labels != IGNORED
    expected = "targets in part B alone"
    require(targets.sum() == sum(len(i.piece) + 1 for i in items), "labels", "another", expected)
    first = np.cumsum([0] + [len(item.piece) + 1 for item in items])
    q = np.zeros((int(targets.sum()), language.vocabulary.size))
    for chosen in _parts(items, language):
        rows = np.concatenate([np.arange(first[i], first[i + 1]) for i in chosen])
        law = np.ones(ids.shape[1] + 1) if items[chosen[0]].level != "token" else pmf
        q[rows] = _predicted(language, [items[i] for i in chosen], law, sentence_ends)
    probability = q[np.arange(len(q)), labels[targets]]
    possible = "spans that this law can draw from this language"
    require((probability > 0).all(), "labels", "a target of probability 0", possible)
    logs = log_or_minus_infinity(q) if log_probs else None
    return Floor(entropy_of(q), -np.log(probability), targets, logs)


@dataclass(frozen=True)
class _Item:
    """One piece of part B while it is written.

    Attributes:
        left, right: tokens and ``BLANK`` from either end of the text up to the piece.
        piece: its tokens.
        rest: tokens of the blanks whose lengths are not known yet, this one among them.
        known: how many of the pieces before are longer than the overshoot.
        over: ``S - b``, by which the spans exceed their budget.
        level: the law of the lengths.
    """

    left: list[int]
    piece: list[int]
    right: list[int]
    rest: int
    known: int
    over: int
    level: str

    @property
    def unknown(self) -> tuple[int, int]:
        """Blanks of unknown length to the left and to the right."""
        return self.left.count(BLANK), self.right.count(BLANK)


@dataclass(frozen=True)
class _Layout:
    """A row of a batch, read back: part A without its frame, and the pieces in their order."""

    row: int
    part_a: list[int]
    pieces: dict[int, list[int]]  # by the number of the blank in the text
    level: str

    @classmethod
    def read(
        cls,
        language: HiddenMarkovLanguage,
        row: int,
        ids: np.ndarray,
        fields: Mapping[str, np.ndarray],
        marks: Mapping[int, str],
    ) -> _Layout:
        """Refuses what is not a layout of ``ids``, and names the row."""
        special, pad = language.vocabulary.is_special, language.vocabulary.pad_id
        seen, labels, place, block = (array[row] for array in fields.values())
        a = seen[(block == 0) & (seen != pad)]
        is_mark = np.isin(a, list(marks))
        blanks = np.flatnonzero(is_mark)
        pieces: dict[int, list[int]] = {}
        for start in np.flatnonzero(block == 1):
            size = 1 + int(np.argmin(np.append(np.diff(block[start:]) == 1, False)))
            number = int(np.searchsorted(blanks, place[start]))
            good = number < len(blanks) and blanks[number] == place[start]
            good &= number not in pieces and labels[start + size - 1] == language.vocabulary.sep_id
            require(good, "position_ids", f"row {row}, piece at {start}", "one piece for each mark")
            pieces[number] = labels[start : start + size - 1].tolist()
        complete = len(pieces) == len(blanks)
        require(complete, "input_ids", f"row {row}", "one piece for each mark")
        names = {marks[int(a[i])] for i in blanks}
        require(len(names) <= 1, "input_ids", names, "marks of one level in a row")
        whole: list[int] = []
        for i, token in enumerate(a.tolist()):
            whole += pieces[int(np.searchsorted(blanks, i))] if is_mark[i] else [token]
        same = whole == ids[ids != pad].tolist()
        require(same, "labels", f"row {row}", "the original text when the pieces are put back")
        part_a = np.where(is_mark, BLANK, a)[is_mark | ~special(a)].tolist()
        return cls(row, part_a, pieces, names.pop() if names else "token")

    def items(self, budget: int, pmf: np.ndarray) -> Iterator[_Item]:
        """The pieces in the order of part B, each with what is known when it is written."""
        lengths = [len(piece) for piece in self.pieces.values()]
        rest = sum(lengths)
        over = rest - budget if self.level != "document" else 0
        self._check(lengths, over, pmf)
        known, written = 0, {}
        for number, piece in self.pieces.items():
            symbols = self._with(written)
            at = [i for i, symbol in enumerate(symbols) if symbol == BLANK]
            here = at[number - sum(n < number for n in written)]
            left, right = symbols[:here], symbols[here + 1 :][::-1]
            yield _Item(left, piece, right, rest, known, over, self.level)
            written[number] = piece
            rest -= len(piece)
            known += len(piece) > over

    def _with(self, written: Mapping[int, list[int]]) -> list[int]:
        """Part A with the pieces that are known put back."""
        symbols: list[int] = []
        number = 0
        for symbol in self.part_a:
            symbols += written.get(number, [BLANK]) if symbol == BLANK else [symbol]
            number += symbol == BLANK
        return symbols

    def _check(self, lengths: list[int], over: int, pmf: np.ndarray) -> None:
        good = all(lengths)
        if self.level == "document":
            good &= len(lengths) == 1
        elif lengths:
            good &= over >= 0 and max(lengths) > over
        if self.level == "token":
            good &= all(n < len(pmf) and pmf[n] > 0 for n in lengths)
        require(good, "labels", f"lengths {lengths} in row {self.row}",
                f"spans that the law of the {self.level} level can draw")  # fmt: skip


def _parts(items: list[_Item], language: HiddenMarkovLanguage) -> Iterator[list[int]]:
    """Numbers of items of one level, in groups small enough for the memory of one pass."""
    for level in LEVELS:
        group, cells = [], 0
        for i, item in enumerate(items):
            if item.level == level:
                size = 2 * (item.rest + 1 if any(item.unknown) else 1) * (len(item.piece) + 3)
                if group and cells + size * language._initial.shape[1] > _CELLS:
                    yield group
                    group, cells = [], 0
                group.append(i)
                cells += size * language._initial.shape[1]
        if group:
            yield group


def _predicted(
    language: HiddenMarkovLanguage,
    items: list[_Item],
    law: np.ndarray,
    sentence_ends: np.ndarray | None,
) -> np.ndarray:
    """Distributions of the targets of some items of one level: [targets, vocab]."""
    ends = np.zeros(language.vocabulary.size, bool)
    if items[0].level == "sentence":
        ends[np.array([] if sentence_ends is None else sentence_ends, np.int64)] = True
    table = evidence(language)
    found = [
        _Chain(block, start, step, items, law, ends).run()
        for block, start, step in zip(table, language._initial, language._transition, strict=True)
    ]
    logs = np.array([log for log, _ in found])
    highest = logs.max(0)
    highest[~np.isfinite(highest)] = 0.0
    q = np.zeros((len(logs[0]), language.vocabulary.size))
    for (log, weights), (used, emission) in zip(found, language._spoken, strict=True):
        share = np.exp(log - highest)[:, None]
        rows = np.flatnonzero(share)
        inside, closing, stop = (share[rows] * w[rows] for w in weights)
        part = inside @ emission
        part[:, ends[used]] = (closing @ emission)[:, ends[used]]
        q[rows[:, None], used] += part
        q[rows, language.vocabulary.sep_id] += stop[:, 0]
    total = q.sum(1, keepdims=True)
    return q / np.where(total > 0, total, 1.0)


class _Entries:
    """One row of numbers for each (item, mark, tokens in unseen blanks), item behind item."""

    def __init__(self, cap: np.ndarray, marks: np.ndarray) -> None:
        self.cap, self.marks = cap, marks
        self.size = marks * (cap + 1)
        self.first = np.cumsum(self.size) - self.size
        self.item = np.repeat(np.arange(len(cap)), self.size)
        self.mark, self.tokens = np.divmod(
            np.arange(len(self.item)) - self.first[self.item], cap[self.item] + 1
        )

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sums over the entries of each item."""
        return np.add.reduceat(values, self.first)


class _Chain:
    """All items in one block of the language, whose states never leave it."""

    def __init__(
        self,
        table: np.ndarray,
        initial: np.ndarray,
        transition: np.ndarray,
        items: list[_Item],
        law: np.ndarray,
        ends: np.ndarray,
    ) -> None:
        self.table, self.initial, self.transition = table, initial, transition
        self.everything, self.law = items, law
        self.closing = table[ends].sum(0) if ends.any() else None
        self.inner = None if self.closing is None else 1 - self.closing
        self.ends = ends
        spoken = table.any(1)
        self.rows = [i for i, item in enumerate(items) if self._possible(item, spoken)]
        self.items = [items[i] for i in self.rows]

    @staticmethod
    def _possible(item: _Item, spoken: np.ndarray) -> bool:
        """Whether some state of the block emits each of the tokens that stand around."""
        return all(spoken[t] for t in (*item.left, *item.right) if t != BLANK)

    def run(self) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Per target: the logarithm of its scale, and in units of it the states at the next token
        if that goes on or closes a sentence [targets, states], and the weight of the end.
        """
        size = np.array([len(item.piece) + 1 for item in self.everything])
        log = np.full(size.sum(), -np.inf)
        states = len(self.initial)
        weights = tuple(np.zeros((size.sum(), n)) for n in (states, states, 1))
        if self.items:
            self._columns()
            front, log_front = self._sweep([i.left for i in self.items], self.left, self.initial)
            back, log_back = self._sweep(
                [i.right for i in self.items], self.right, np.ones(states), backward=True
            )
            first = (np.cumsum(size) - size)[self.rows]
            self._write(front, back, first, log_front + log_back, (log[:, None], *weights))
        return log, weights

    def _columns(self) -> None:
        """The attributes of the items as arrays, and their entries on either side."""
        self.rest = np.array([item.rest for item in self.items])
        self.known = np.array([item.known for item in self.items])
        self.over = np.array([item.over for item in self.items])
        self.length = np.array([len(item.piece) for item in self.items])
        self.open = np.array([not item.right or self.closing is None for item in self.items])
        unknown = np.array([item.unknown for item in self.items])
        for side, other, name in ((0, 1, "left"), (1, 0, "right")):
            some = unknown[:, side] > 0
            cap = np.where(some, self.rest - 1 - unknown[:, other], 0)
            setattr(self, name, _Entries(cap, 1 + (some & (self.over > 0))))

    def _sweep(
        self, rows: list[list[int]], entries: _Entries, start: np.ndarray, backward: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Through the symbols of each item, all of them at once: weights, and logs of scales."""
        width = max(map(len, rows))
        symbols = np.full((len(rows), width), NOTHING)
        for i, row in enumerate(rows):
            symbols[i, width - len(row) :] = row
        a = np.zeros((len(entries.item), len(start)))
        a[entries.first] = start
        log = np.zeros(len(rows))
        for t in range(width):
            symbol = symbols[entries.item, t]
            blank = np.flatnonzero(symbol == BLANK)
            mixed = self._blank(a[blank], blank, entries, rows, width - t, backward)
            seen = np.flatnonzero(symbol >= 0)
            emitted = self.table[symbol[seen]]
            if backward:
                a[seen] = emitted * (a[seen] @ self.transition.T)
            else:
                a[seen] = (a[seen] * emitted) @ self.transition
            a[blank] = mixed
            if t % 8 == 7:
                a, log = self._scaled(a, entries, log)
        return a, log

    @staticmethod
    def _scaled(a: np.ndarray, entries: _Entries, log: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Divided by the sum over the entries of each item, and the logs of the scales."""
        scale = entries.total(a.sum(1))
        alive = scale > 0
        scale[~alive] = 1.0
        return a / scale[entries.item][:, None], log + np.where(alive, np.log(scale), -np.inf)

    def _blank(
        self,
        y: np.ndarray,
        chosen: np.ndarray,
        entries: _Entries,
        rows: list[list[int]],
        left: int,
        backward: bool,
    ) -> np.ndarray:
        """All lengths of an unseen blank, mixed."""
        if not len(chosen):
            return y
        item, tokens, mark = entries.item[chosen], entries.tokens[chosen], entries.mark[chosen]
        cap, over, two = entries.cap[item], self.over[item], entries.marks[item] == 2
        closes = np.array([len(row) == left for row in rows])[item]  # the text itself, backward
        mixed, here = np.zeros_like(y), np.arange(len(y))
        for length in range(1, min(int(cap.max()), len(self.law) - 1) + 1):
            y, shown = self._unseen(y, length, closes, backward)
            fits = tokens + length <= cap
            at = here[fits]
            weighted = self.law[length] * shown[fits]
            mixed[at + length] += weighted
            charge = ((mark == 0) & two & (length > over))[fits]
            mixed[at[charge] + length + cap[fits][charge] + 1] += weighted[charge]
        return mixed

    def _unseen(
        self, y: np.ndarray, length: int, closes: np.ndarray, backward: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """One more unseen token: the blank going on, and the blank ending with it."""
        if self.closing is None:
            y = y @ (self.transition.T if backward else self.transition)
            return y, y
        if not backward:
            return (y * self.inner) @ self.transition, (y * self.closing) @ self.transition
        moved = y @ self.transition.T
        if length == 1:
            y = self.closing * moved + closes[:, None] * self.inner * moved
        else:
            y = self.inner * moved
        return y, y

    def _write(
        self,
        front: np.ndarray,
        back: np.ndarray,
        first: np.ndarray,
        log: np.ndarray,
        kept: tuple[np.ndarray, ...],
    ) -> None:
        """The pieces themselves: ``a_j`` along each prefix, then ``D_j`` and ``C_j`` backwards."""
        prefixes = self._prefixes(front, log)
        opened = self.open[self.left.item][:, None]
        go_on = stop = np.zeros_like(front)
        for j in reversed(range(int(self.rest.max()) + 1)):
            moved = go_on @ self.transition.T
            closed = moved if self.closing is None else stop @ self.transition.T
            stop = self._stop(j, back)
            rows = np.flatnonzero(self.length >= j)
            if len(rows) and j < len(prefixes):
                a, scale = prefixes[j]
                ended = np.array([j > 0 and self.ends[self.items[i].piece[j - 1]] for i in rows])
                inside, closing = (
                    self.left.total(a * after)[rows] * ~ended[:, None] for after in (moved, closed)
                )
                end = self.left.total((a * stop).sum(1))[rows] * (ended | self.open[rows])
                found = (scale[rows][:, None], inside, closing, end[:, None])
                for array, values in zip(kept, found, strict=True):
                    array[first[rows] + j] = values
            if self.closing is None:
                go_on = stop + moved
            else:
                go_on = opened * stop + self.inner * moved + self.closing * closed

    def _prefixes(self, front: np.ndarray, log: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """``a_j`` and the logs of its scales for each prefix length ``j``.

        What is behind the end of a piece is not looked at.
        """
        longest = int(self.length.max())
        pieces = np.zeros((len(self.items), longest), np.int64)
        for i, item in enumerate(self.items):
            pieces[i, : len(item.piece)] = item.piece
        a, found = front, [(front, log)]
        for j in range(longest):
            a, log = self._scaled((a * self.table[pieces[self.left.item, j]]) @ self.transition,
                                  self.left, log)  # fmt: skip
            found.append((a, log))
        return found

    def _stop(self, j: int, back: np.ndarray) -> np.ndarray:
        """``D_j``: the piece ends after j tokens, and what stands behind it follows."""
        left, right = self.left, self.right
        item = left.item
        stop = np.zeros((len(item), back.shape[1]))
        behind = self.rest[item] - left.tokens - j
        fits = np.flatnonzero((behind >= 0) & (behind <= right.cap[item]))
        if not (0 < j < len(self.law)) or not len(fits):
            return stop
        item, mark = item[fits], left.mark[fits]
        at = right.first[item] + behind[fits]
        charge = np.where(mark == 0, self.known[item] + (j > self.over[item]), 1)
        stop[fits] = self.law[j] * charge[:, None] * back[at]
        two = np.flatnonzero((mark == 0) & (right.marks[item] == 2))
        stop[fits[two]] += self.law[j] * back[at[two] + right.cap[item[two]] + 1]
        return stop
