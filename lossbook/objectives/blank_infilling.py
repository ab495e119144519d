r"""Blank infilling: remove spans of a text and write them again, one after the other.

Spans :math:`s_1, \dots, s_m` of a text are blanked out. **Part A** is the text with one mark in
the place of each span. **Part B** is the spans, one behind the other in an order :math:`z`; a
piece begins with a start token in the input and closes with an end token in the target. Every
token of B is predicted from A, from the pieces before its own and from the tokens before it in
its own piece, and the loss is

.. math::

    \mathcal L = \frac{1}{N} \sum_{i=1}^{m}
        -\log p_\theta(s_{z_i}, \text{end} \mid \text{A}, s_{z_1}, \dots, s_{z_{i-1}}),
    \qquad N = \sum_{i=1}^{m} (|s_i| + 1)

over the spans of the *whole batch* (Du et al. 2022, section 2.1; layout and denominator as in
``blocklm_utils.py`` and ``pretrain_glm.py`` of THUDM/GLM).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lossbook._require import require
from lossbook.corpora.floors import Floor, infilling_floor, length_pmf, span_budget
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.objectives.base import IGNORE_INDEX, AtLabels, Shown, TokenIds, pad

LEVELS = ("token", "sentence", "document")
ORDERS = ("shuffled", "left-to-right")
MARKS = {"token": "[MASK]", "sentence": "[sMASK]", "document": "[gMASK]"}
ENDS = ".?!;:\n"
ATTEMPTS = 200  # draws before a row is given up on


class Spans(NamedTuple):
    """Spans of a batch in the order of the text: row, first position, length, mark's id."""

    row: Int[np.ndarray, " spans"]
    start: Int[np.ndarray, " spans"]
    length: Int[np.ndarray, " spans"]
    mark: Int[np.ndarray, " spans"]


class BlankInfilling(AtLabels):
    r"""The objective of GLM.

    ``[CLS]`` stands for GLM's ``<sop>``, which starts a piece, and ``[SEP]`` for its ``<eop>``,
    which ends it; their places in part B tell them from the frame of the text.

    Spans follow one of three laws. With :math:`n` the tokens of a row without padding (special
    tokens do count) and the budget :math:`b = \max(1, \lfloor rn \rfloor)`, or all there is:

    * ``"token"``: lengths are drawn from a Poisson law without its zero, until their sum reaches
      :math:`b`, and put into random order. Each then draws a place, independently and uniformly;
      spans with the same place stand one token apart. Lengths that do not fit are drawn again.
    * ``"sentence"``: whole sentences in random order, until their sum reaches :math:`b`.
    * ``"document"``: one span, of a length uniform between two shares of the text. With
      probability ``suffix`` it is the end of the text, otherwise its place is uniform.

    No span holds a special token. Where special tokens stand inside a text, a document's span
    stays within their longest gap.

    Args:
        vocabulary: Where the ids come from. Sentences and separate marks need its ``tokens``.
        rate: :math:`r`, from 0 (no span) to 1, for tokens and sentences.
        mean_length: The Poisson law's :math:`\lambda`, before the zero is cut off: 3 gives a mean
            of 3.157.
        max_length: The longest span of the token level.
        order: In which order the pieces are written: ``"shuffled"`` or ``"left-to-right"``.
        level: ``"token"``, ``"sentence"``, ``"document"``, or a mapping of these to
            probabilities, of which each row draws one.
        document: Least and largest share of the text that a document's span covers.
        suffix: Probability that a document's span is the end of the text.
        sentence_ends: Ids that end a sentence; by default of all tokens with one of ``.?!;:``
            or a line break.
        marks: Id of the mark of each level; by default those of ``[MASK]``, ``[sMASK]`` and
            ``[gMASK]``, or of ``[MASK]`` where the vocabulary lacks the others.
        duplicates: ``None`` for dynamic corruption, ``n`` for ``n`` static ones per example.
        seed: Where the random streams start.

    Raises:
        ValueError: An unknown law or order, or a number outside its range.
    """

    name = "blank-infilling"

    def __init__(
        self,
        vocabulary: TokenIds,
        *,
        rate: float = 0.15,
        mean_length: float = 3.0,
        max_length: int = 39,
        order: str = "shuffled",
        level: str | Mapping[str, float] = "token",
        document: tuple[float, float] | list[float] = (0.5, 1.0),
        suffix: float = 0.5,
        sentence_ends: Iterable[int] | None = None,
        marks: Mapping[str, int] | None = None,
        duplicates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(vocabulary, duplicates=duplicates, seed=seed)
        require(0 <= rate <= 1, "rate", rate, "a share of the tokens, from 0 to 1")
        require(order in ORDERS, "order", order, f"one of {ORDERS}")
        require(len(document) == 2 and 0 <= document[0] <= document[1] <= 1, "document", document,
                "two shares of the text, the smaller one first")  # fmt: skip
        require(0 <= suffix <= 1, "suffix", suffix, "a probability, from 0 to 1")
        self.rate, self.order, self.suffix = rate, order, suffix
        self.mean_length, self.max_length = mean_length, max_length
        self.document = (float(document[0]), float(document[1]))
        self.levels = _levels(level)
        self.sop_id, self.eop_id = vocabulary.cls_id, vocabulary.sep_id
        self.marks = _marks(vocabulary, marks)
        self.sentence_ends = self._ends(sentence_ends)
        self.pmf = length_pmf(mean_length, max_length)
        everything = np.arange(vocabulary.size)
        frame = [*vocabulary.special_ids, vocabulary.pad_id, *self.marks.values()]
        self._protected = np.isin(everything, frame)
        self._is_end = np.isin(everything, self.sentence_ends)

    def _ends(self, given: Iterable[int] | None) -> Int[np.ndarray, " ends"]:
        if given is None and "sentence" in self.levels:
            tokens = getattr(self.vocabulary, "tokens", ())
            given = [i for i, token in enumerate(tokens) if set(token) & set(ENDS)]
            require(given, "sentence_ends", given, f"a token with one of {ENDS!r}, or the ids")
        return np.array(sorted(given or []), dtype=np.int64)

    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Blank out spans, and lay out parts A and B.

        Returns:
            Five arrays ``[B, W]`` of int64; a row with ``m`` spans uses ``2 m`` positions more
            than its text.

            * ``input_ids``: A, then the pieces of B, each behind its start token.
            * ``labels``: in B the next token of the piece or its end token, -100 elsewhere.
            * ``attention_mask``: 0 on padding.
            * ``position_ids``: the index in A; in B the index of the piece's mark in A.
            * ``block_position_ids``: 0 in A, 1, 2, ... within a piece of B.

        Raises:
            ValueError: The ids are not integers ``[B, T]`` of the vocabulary, or the spans of a
                row do not fit into it.
        """
        ids = self._checked(ids)
        return self.layout(ids, self.select(ids, rng), rng)

    def select(self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator) -> Spans:
        """The spans of a batch, by the law of each row's level."""
        text = ~self._protected[ids]
        names = list(self.levels)
        if len(names) == 1:
            return self._select(names[0], ids, text, np.arange(len(ids)), rng)
        drawn = rng.choice(len(names), len(ids), p=list(self.levels.values()))
        parts = [
            self._select(name, ids, text, np.flatnonzero(drawn == k), rng)
            for k, name in enumerate(names)
        ]
        merged = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        order = np.lexsort((merged[1], merged[0]))
        return Spans(*(column[order] for column in merged))

    def _select(
        self, name: str, ids: np.ndarray, text: np.ndarray, rows: np.ndarray, rng: Any
    ) -> Spans:
        """The spans of some rows, all of one level."""
        inside = text[rows]
        budgets = span_budget(self.rate, self._lengths(ids[rows]), inside.sum(1))
        if not inside.any():
            row = start = length = np.zeros(0, np.int64)
        elif name == "token":
            row, start, length = self._tokens(inside, budgets, rows, rng)
        elif name == "sentence":
            row, start, length = _sentences(inside, self._is_end[ids[rows]], budgets, rng)
        else:
            row, start, length = self._document(inside, rng)
        return Spans(rows[row], start, length, np.full(len(row), self.marks[name]))

    def _tokens(
        self, text: np.ndarray, budgets: np.ndarray, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first = text.argmax(1)
        room = (text.shape[1] - text[:, ::-1].argmax(1) - first) * text.any(1)
        lengths, number = self._lengths_that_fit(budgets, room, rows, rng)
        start = first[:, None] + places(lengths, number, room, rng)
        used = np.arange(lengths.shape[1]) < number[:, None]
        row, start, length = np.nonzero(used)[0], start[used], lengths[used]
        if text.sum() == room.sum():
            return row, start, length
        return _around_specials(text, row, start, length, first, room, rng)

    def _lengths_that_fit(
        self, budgets: np.ndarray, room: np.ndarray, rows: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lengths in the order of the text ``[B, spans]``, 0 behind the last, and their number."""
        lengths, number = draw_lengths(self.pmf, budgets, rng)
        for _ in range(ATTEMPTS):
            (bad,) = np.nonzero(lengths.sum(1) + number - 1 > room)
            if not bad.size:
                break
            again, number[bad] = draw_lengths(self.pmf, budgets[bad], rng)
            wider = max(0, again.shape[1] - lengths.shape[1])
            lengths = np.pad(lengths, ((0, 0), (0, wider)))
            lengths[bad] = np.pad(again, ((0, 0), (0, lengths.shape[1] - again.shape[1])))
        else:
            row = int(bad[0])
            require(False, "rate", self.rate, f"a share whose spans fit between the {room[row]} "
                    f"tokens of row {rows[row]}, one token apart")  # fmt: skip
        keys = rng.random(lengths.shape)
        keys[lengths == 0] = 2.0
        return np.take_along_axis(lengths, keys.argsort(1), axis=1), number

    def _document(
        self, text: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        row, first, room = longest_runs(text)
        low = np.maximum(1, np.ceil(self.document[0] * room - 1e-9)).astype(np.int64)
        high = np.maximum(low, np.floor(self.document[1] * room + 1e-9)).astype(np.int64)
        length = rng.integers(low, high + 1)
        inner = rng.integers(0, room - length + 1)
        last = rng.random(len(row)) < self.suffix
        return row, first + np.where(last, room - length, inner), length

    def layout(
        self, ids: Int[np.ndarray, "batch time"], spans: Spans, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Parts A and B of ids whose spans are given; the generator decides the order of B."""
        row, start, length, mark = spans
        batch, time = ids.shape
        number = np.bincount(row, minlength=batch)
        hidden = np.bincount(row, length, minlength=batch).astype(np.int64)
        used = self._lengths(ids)
        in_a = used - hidden + number
        whole = used + 2 * number
        width = int(whole.max(initial=0))
        # one block of memory: five would be given back to the system and fetched again
        arrays = np.zeros((5, batch, width), np.int64)
        input_ids, labels, attention_mask, position_ids, block_position_ids = arrays
        input_ids[:], labels[:] = self.vocabulary.pad_id, IGNORE_INDEX
        column = np.arange(width)
        is_a = column < in_a[:, None]
        attention_mask[:] = column < whole[:, None]
        position_ids[:] = column * is_a
        input_ids[is_a] = _part_a(ids, used, row, start, length, mark)
        place = start - _before(length - 1, row, number)  # of the marks in A
        order = np.arange(len(row))
        if self.order == "shuffled":
            order = np.argsort(row + rng.random(len(row)))
        size = length[order] + 1
        piece = np.repeat(order, size)
        j = np.arange(len(piece)) - np.repeat(np.cumsum(size) - size, size)
        first = row[piece] * time + start[piece]
        is_b = np.flatnonzero(attention_mask.astype(bool) & ~is_a)
        flat = ids.ravel()
        last = length[piece]
        seen, asked = flat[first + np.maximum(j - 1, 0)], flat[first + np.minimum(j, last - 1)]
        input_ids.ravel()[is_b] = np.where(j == 0, self.sop_id, seen)
        labels.ravel()[is_b] = np.where(j == last, self.eop_id, asked)
        position_ids.ravel()[is_b] = place[piece]
        block_position_ids.ravel()[is_b] = j + 1
        names = ("input_ids", "labels", "attention_mask", "position_ids", "block_position_ids")
        return dict(zip(names, arrays, strict=True))

    def _stack(self, pieces: list[dict[str, np.ndarray]], width: int) -> dict[str, np.ndarray]:
        """Rows that were corrupted one by one; each is as long as its number of spans asks."""
        fill = dict.fromkeys(pieces[0], 0) if pieces else {}
        fill |= {"input_ids": self.vocabulary.pad_id, "labels": IGNORE_INDEX}
        return {key: pad([piece[key][0] for piece in pieces], fill[key]) for key in fill}

    def floor(
        self,
        language: HiddenMarkovLanguage,
        ids: Int[np.ndarray, "batch time"],
        batch: Mapping[str, Any],
    ) -> Floor:
        """What the ideal predictor scores on these targets, in this order of the pieces.

        Args:
            language: Where the texts come from.
            ids: ``[B, T]`` before the corruption.
            batch: What ``batch`` made of them.

        Returns:
            See :func:`lossbook.corpora.floors.infilling.infilling_floor`.
        """
        names = ("input_ids", "labels", "position_ids", "block_position_ids")
        return infilling_floor(
            language,
            ids,
            *(np.asarray(batch[name]) for name in names),
            marks={self.marks[name]: name for name in self._told_apart()},
            rate=self.rate,
            pmf=self.pmf,
            sentence_ends=self.sentence_ends,
        )

    def _told_apart(self) -> list[str]:
        """The levels in use, of which each must have a mark of its own."""
        names = list(self.levels)
        own = len({self.marks[name] for name in names}) == len(names)
        require(own, "marks", self.marks, "a mark of its own for each level that is mixed: "
                "without it the ideal predictor would have to guess the level")  # fmt: skip
        return names

    def show(self, text: str, rng: np.random.Generator | None = None) -> list[Shown]:
        """Corrupt one text: part A, where a mark stands for its span, then the pieces of part B."""
        vocabulary: Any = self.vocabulary
        ids = np.array([[vocabulary.cls_id, *vocabulary.encode(text), vocabulary.sep_id]])
        rng = self.generator(self.epoch or 0, 0) if rng is None else rng
        spans = self.select(ids, rng)
        batch = self.layout(ids, spans, rng)
        seen = vocabulary.tokens_of(batch["input_ids"][0])
        labels = batch["labels"][0]
        target = vocabulary.tokens_of(np.where(labels == IGNORE_INDEX, 0, labels))
        originals = vocabulary.tokens_of(ids[0])
        for start, length in zip(spans.start[::-1], spans.length[::-1], strict=True):
            originals[start : start + length] = [" ".join(originals[start : start + length])]
        originals += [""] * (len(seen) - len(originals))
        return [
            Shown(original, sight, None if label == IGNORE_INDEX else token)
            for original, sight, label, token in zip(originals, seen, labels, target, strict=True)
        ]


def draw_lengths(
    pmf: Float[np.ndarray, " lengths"],
    budgets: Int[np.ndarray, " batch"],
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, "batch spans"], Int[np.ndarray, " batch"]]:
    """Draw lengths in each row until their sum reaches the budget.

    Args:
        pmf: Probabilities of the lengths 0, 1, 2, ...; that of 0 is 0.
        budgets: ``[B]``; a row with budget 0 gets no span.
        rng: The only source of randomness.

    Returns:
        The lengths in the order drawn, 0 behind the last, and how many they are.
    """
    levels = np.cumsum(pmf)[:-1]
    most = int(budgets.max(initial=0))
    mean = pmf @ np.arange(len(pmf))
    step = int(most / mean + 2 * most**0.5) + 1
    lengths = np.zeros((len(budgets), 0), np.int64)
    total = lengths
    while not total.size or (total[:, -1] < budgets).any():
        fresh = np.searchsorted(levels, rng.random((len(budgets), step)), side="right")
        lengths = np.concatenate([lengths, fresh], axis=1)
        total = np.cumsum(lengths, axis=1)
        if not len(budgets):
            break
    needed = total - lengths < budgets[:, None]
    number = needed.sum(1)
    return (lengths * needed)[:, : int(number.max(initial=0))], number


def places(
    lengths: Int[np.ndarray, "batch spans"],
    number: Int[np.ndarray, " batch"],
    room: Int[np.ndarray, " batch"],
    rng: np.random.Generator,
) -> Int[np.ndarray, "batch spans"]:
    """Where the spans of each row start, at least one token apart.

    Each span draws one of the ``room - sum of lengths - number + 2`` places, independently; in
    their order the places are moved on by the spans and the single tokens before them.
    """
    free = np.maximum(room - lengths.sum(1) - number + 2, 1)
    drawn = rng.integers(0, free[:, None], lengths.shape)
    drawn[lengths == 0] = room.max(initial=0)
    return np.sort(drawn, axis=1) + np.cumsum(lengths + 1, axis=1) - lengths - 1


def _around_specials(
    text: np.ndarray, row: np.ndarray, start: np.ndarray, length: np.ndarray, first: np.ndarray,
    room: np.ndarray, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """Draw the places of a row again while a span holds a special token; at last leave it out."""
    below = np.concatenate([np.zeros((len(text), 1), int), np.cumsum(text, axis=1)], axis=1)
    start = start.copy()
    for _ in range(ATTEMPTS):
        hits = below[row, start + length] - below[row, start] < length
        bad = np.unique(row[hits])
        if not bad.size:
            return row, start, length
        mine = np.isin(row, bad)
        number = np.bincount(row[mine], minlength=len(text))[bad]
        table = np.zeros((len(bad), number.max()), np.int64)
        table[np.arange(table.shape[1]) < number[:, None]] = length[mine]
        fresh = first[bad][:, None] + places(table, number, room[bad], rng)
        start[mine] = fresh[table > 0]
    good = below[row, start + length] - below[row, start] == length
    return row[good], start[good], length[good]


def _sentences(
    text: np.ndarray, ends: np.ndarray, budgets: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole sentences in random order, until their sum reaches the budget."""
    row, start, length = runs(text, ends)
    order = np.argsort(row + rng.random(len(row)))
    number = np.bincount(row, minlength=len(text))
    before = _before(length[order], row[order], number)
    taken = np.sort(order[before < budgets[row[order]]])
    return row[taken], start[taken], length[taken]


def runs(
    text: Bool[np.ndarray, "batch time"], ends: Bool[np.ndarray, "batch time"] | None = None
) -> tuple[Int[np.ndarray, " runs"], Int[np.ndarray, " runs"], Int[np.ndarray, " runs"]]:
    """Row, start and length of the longest stretches of ``text``, cut behind each of ``ends``."""
    cut = ~text[:, :-1] if ends is None else ~text[:, :-1] | ends[:, :-1]
    begins = text & np.pad(cut, ((0, 0), (1, 0)), constant_values=True)
    row, start = np.nonzero(begins)
    member = np.cumsum(begins.ravel())[text.ravel()] - 1
    return row, start, np.bincount(member, minlength=len(row))


def longest_runs(
    text: Bool[np.ndarray, "batch time"],
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    """The longest stretch of each row that has one: row, start and length."""
    row, start, length = runs(text)
    best = np.lexsort((start, -length, row))
    first = best[np.diff(row[best], prepend=-1) > 0]
    return row[first], start[first], length[first]


def _part_a(
    ids: np.ndarray, used: np.ndarray, row: np.ndarray, start: np.ndarray, length: np.ndarray,
    mark: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The tokens of A, row behind row: each span's first token becomes its mark, the rest goes."""
    time = ids.shape[1]
    step = np.zeros((len(ids), time + 2), np.int8)
    step[row, start + 1] += 1
    step[row, start + length] -= 1
    gone = np.cumsum(step[:, :time], axis=1, dtype=np.int8).view(bool)
    text = ids.copy()
    text[row, start] = mark
    return text[~gone & (np.arange(time) < used[:, None])]


def _before(values: np.ndarray, row: np.ndarray, number: np.ndarray) -> np.ndarray:
    """The sum of the values before each one in its row; rows stand together, in order."""
    ahead = np.cumsum(values) - values
    first = np.cumsum(number) - number
    return ahead - np.append(ahead, 0)[first[row]]


def _levels(level: str | Mapping[str, float]) -> dict[str, float]:
    levels = {level: 1.0} if isinstance(level, str) else dict(level)
    require(set(levels) <= set(LEVELS) and levels, "level", level,
            f"one of {LEVELS}, or probabilities of them")  # fmt: skip
    shares = list(levels.values())
    require(min(shares) > 0 and abs(sum(shares) - 1) <= 1e-9, "level", level,
            "probabilities above 0 that sum to 1")  # fmt: skip
    return levels


def _marks(vocabulary: Any, given: Mapping[str, int] | None) -> dict[str, int]:
    known = {token: i for i, token in enumerate(getattr(vocabulary, "tokens", ()))}
    marks = {level: known.get(name, vocabulary.mask_id) for level, name in MARKS.items()}
    require(given is None or set(given) <= set(LEVELS), "marks", given, f"ids of {LEVELS}")
    marks |= given or {}
    good = all(0 <= i < vocabulary.size for i in marks.values())
    require(good, "marks", marks, f"ids of the vocabulary, 0 to {vocabulary.size - 1}")
    return marks
