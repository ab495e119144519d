r"""Sentence pairs: does the second segment follow the first, and are the two in order?

A batch carries two problems at once. Some tokens :math:`M` of the pair are masked, and the pair
:math:`b` has a label :math:`y_b`, which is read off the vector at ``[CLS]``:

.. math::

    \mathcal L = \frac{1}{|M|} \sum_{i \in M} -\log p_\theta(x_i \mid \tilde x)
               + \frac{1}{B} \sum_{b=1}^{B} -\log p_\theta(y_b \mid \tilde x_b)

(Devlin et al. 2019, appendix A.2; google-research/bert, run_pretraining.py; Lan et al. 2020,
section 3.1). Two sums, two denominators.

The functions at the end of the module take documents as lists of sentences and make instances as
BERT's ``create_pretraining_data.py`` does, one at a time. The classes make a batch at once from
rows ``[CLS] text [SEP]``; what differs is written in :class:`SentencePairs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lossbook._require import require
from lossbook.corpora.floors import Floor, pair_floor
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.losses import cross_entropy
from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown, TokenIds
from lossbook.objectives.masked_lm import MaskedLM

FRAME = 3  # [CLS] A [SEP] B [SEP]
ENDS = ".!?"
TRIES = 10  # BERT's number of draws of another document

# Where models keep their answers: ours, BertForPreTraining, AlbertForPreTraining
TOKEN_LOGITS = ("logits", "prediction_logits")
PAIR_LOGITS = ("pair_logits", "seq_relationship_logits", "sop_logits")


class Segments(NamedTuple):
    """One run of tokens per pair: ``length`` tokens of ``row`` from place ``start`` on."""

    row: np.ndarray
    start: np.ndarray
    length: np.ndarray

    def of(self, pairs: np.ndarray) -> Segments:
        """Those of some pairs."""
        return Segments(*(field[pairs] for field in self))


class SentencePairs(Objective):
    r"""What next-sentence prediction and sentence order share; use one of the two subclasses.

    From rows ``[CLS] text [SEP]`` to rows ``[CLS] A [SEP] B [SEP]``. With :math:`T` ids per row
    and room for :math:`N = T - 3` tokens:

    * a chunk is the first run of whole sentences with at least ``target`` tokens, where
      :math:`\text{target} = N - \text{slack}`, or, with probability ``short``, uniform on
      2 ... target;
    * ``A`` is its first :math:`k` sentences, :math:`k` uniform on :math:`1 \dots S - 1` (all of
      it when :math:`S = 1`), and ``B`` the rest;
    * a foreign ``B`` comes from another row of the batch: it begins with the first sentence
      behind a place drawn uniformly from those that leave room for ``B``, and ends with the
      sentence that brings the pair to its target;
    * a pair above :math:`N` tokens loses tokens of its longer side, each from the front or the
      back with probability 1/2.

    It differs from BERT's procedure (:func:`instances`) in five ways. A row gives one pair, so no
    unused sentences have to be put back. The slack leaves room for the last sentence, so that
    whole sentences survive; ``slack=0`` is BERT's, where most pairs are cut. The text of a row
    behind its last sentence end is dropped. The other document is another row, never the own one
    (up to ten places are tried, each in another row, and then the beginning of one more is taken);
    windows of one long document count as different rows. And ``B`` begins behind a random token
    instead of at a random sentence, so sentences behind long ones come a little more often.

    A sentence ends at a token that consists of the characters . ! ? alone.

    Args:
        vocabulary: Where the ids come from; must know ``cls_id`` and ``sep_id``.
        rate: Fraction of masked tokens; 0 leaves the masked-LM term out.
        replacement, random_tokens: As in :class:`~lossbook.objectives.masked_lm.MaskedLM`.
        selection, max_predictions: Likewise; floors exist for ``"bernoulli"``.
        slack: Tokens that the last sentence may go beyond the target. The longest sentence of the
            book's language has 17.
        short: Probability of a shorter target.
        ends: Ids that end a sentence, instead of the rule above.
        seed: Where the random streams start.

    Raises:
        ValueError: A vocabulary without sentence ends, a negative slack, no probability.
    """

    whole_output = True
    at_labels = True
    label_name: str

    def __init__(
        self,
        vocabulary: TokenIds,
        *,
        rate: float = 0.15,
        replacement: Sequence[float] = (0.8, 0.1, 0.1),
        random_tokens: str = "ordinary",
        selection: str = "bernoulli",
        max_predictions: int | None = None,
        slack: int = 16,
        short: float = 0.1,
        ends: Sequence[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(vocabulary, seed=seed)
        require(slack >= 0, "slack", slack, "at least 0")
        require(0 <= short <= 1, "short", short, "a probability, from 0 to 1")
        self.rate, self.replacement, self.random_tokens = rate, tuple(replacement), random_tokens
        self.selection, self.max_predictions = selection, max_predictions
        self.slack, self.short = slack, short
        self.ends = sentence_ends(vocabulary) if ends is None else [int(i) for i in ends]
        require(self.ends, "ends", self.ends, "at least one token that ends a sentence")
        self._ends = np.isin(np.arange(vocabulary.size), self.ends)
        self._masking = MaskedLM(
            vocabulary,
            rate=rate,
            selection=selection,
            replacement=replacement,
            random_tokens=random_tokens,
            max_predictions=max_predictions,
        )

    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Pair the rows, then mask.

        Returns:
            ``input_ids``, ``token_type_ids`` (0 up to the first ``[SEP]``, then 1),
            ``attention_mask`` and ``labels`` (of the masked tokens), each ``[B, T]`` of int64, and
            the labels of the pairs ``[B]`` under the name that transformers gives them.

        Raises:
            ValueError: Ids that are no rows of the vocabulary, an empty row, fewer than two rows
                where one needs a segment of another.
        """
        documents = Documents(self._checked(ids), self.vocabulary, self._ends)
        first, second, labels = self.pairs(documents, rng)
        first, second = truncated(first, second, documents.room, rng)
        batch = assembled(documents, first, second)
        masked = {"labels": np.full_like(batch["input_ids"], IGNORE_INDEX)}
        if self.rate:
            masked = self._masking.corrupt(batch["input_ids"], rng)
        return {**batch, **masked, self.label_name: labels.astype(np.int64)}

    def targets(self, room: int, rows: int, rng: np.random.Generator) -> Int[np.ndarray, " batch"]:
        """Tokens that each pair should reach."""
        usual = self.target(room)
        shorter = rng.random(rows) < self.short
        return np.where(shorter, rng.integers(2, max(usual, 2) + 1, size=rows), usual)

    def target(self, room: int) -> int:
        """Tokens that a pair reaches unless it is a short one."""
        require(room > self.slack, "length", room + FRAME,
                f"more than slack + {FRAME} = {self.slack + FRAME} ids per row")  # fmt: skip
        return room - self.slack

    def pairs(
        self, documents: Documents, rng: np.random.Generator
    ) -> tuple[Segments, Segments, np.ndarray]:
        """Segments A and B, and whether the pair is a negative one."""
        rows = np.arange(len(documents.length))
        target = self.targets(documents.room, len(rows), rng)
        size = documents.chunk(target)
        split = rng.integers(1, np.maximum(size, 2))
        a, end = documents.reach(rows, split), documents.reach(rows, size)
        first = Segments(rows, np.zeros_like(a), a)
        second = Segments(rows.copy(), a.copy(), end - a)
        negative = (rng.random(len(rows)) < 0.5) | (size == 1)
        foreign, swapped = self.kinds(negative, size == 1)
        if foreign.any():
            which = np.flatnonzero(foreign)
            drawn = documents.elsewhere(which, a[which], target[which], rng)
            for field, values in zip(second, drawn, strict=True):
                field[which] = values
        pairs = [np.where(swapped, y, x) for x, y in zip(first, second, strict=True)]
        others = [np.where(swapped, x, y) for x, y in zip(first, second, strict=True)]
        return Segments(*pairs), Segments(*others), negative

    def kinds(
        self, negative: Bool[np.ndarray, " batch"], single: Bool[np.ndarray, " batch"]
    ) -> tuple[Bool[np.ndarray, " batch"], Bool[np.ndarray, " batch"]]:
        """Which negatives get a foreign segment, and which are swapped."""
        raise NotImplementedError

    def terms(
        self,
        output: Any,
        batch: Mapping[str, Any],
        *,
        denominator: Mapping[str, float] | None = None,
        reduction: str = "mean",
    ) -> dict[str, Tensor]:
        """The losses of the masked tokens and of the pairs, by name, each with its denominator."""
        below = denominator or {}
        found = {}
        if self.rate:
            found["masked-lm"] = self._masking.loss(
                _one_of(output, TOKEN_LOGITS),
                batch,
                denominator=below.get("masked-lm"),
                reduction=reduction,
            )
        found[self.name] = cross_entropy(
            _one_of(output, PAIR_LOGITS),
            batch[self.label_name],
            denominator=below.get(self.name),
            reduction=reduction,
        )
        return found

    def loss(
        self,
        output: Any,
        batch: Mapping[str, Any],
        *,
        denominator: Mapping[str, float] | None = None,
        reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Mean over the masked tokens of the batch plus mean over its pairs.

        Args:
            output: Of a model with a pair head: ``logits [B, T, V]`` (or at the targets alone) and
                ``pair_logits [B, 2]``, or what ``BertForPreTraining`` and
                ``AlbertForPreTraining`` return.
            batch: Made by :meth:`corrupt`.
            denominator: Replaces the two counts, as a mapping like that of :meth:`count`.
            reduction: ``"mean"``, or ``"sum"`` for the sum of both sums.

        Returns:
            Nats per masked token plus nats per pair.

        Raises:
            ValueError: Shapes that do not fit, or an output without pair logits.
        """
        require(reduction in ("mean", "sum"), "reduction", reduction, '"mean" or "sum"')
        terms = self.terms(output, batch, denominator=denominator, reduction=reduction)
        return sum(terms.values())

    def count(self, batch: Mapping[str, Any]) -> dict[str, int]:
        """The two denominators: masked tokens (with a rate above 0) and pairs."""
        tokens = {"masked-lm": self._masking.count(batch)} if self.rate else {}
        return tokens | {self.name: len(batch[self.label_name])}

    def floor(
        self,
        language: HiddenMarkovLanguage,
        ids: Int[np.ndarray, "batch time"],
        batch: Mapping[str, Any],
    ) -> dict[str, Floor]:
        """What the ideal predictors of both terms score, by the names of :meth:`count`.

        Args:
            language: Where the texts come from.
            ids: ``[B, T]`` before they were paired.
            batch: What :meth:`corrupt` made of them.

        Raises:
            ValueError: An option without an exact floor (see
                :func:`lossbook.corpora.floors.pairs.pair_floor`).
        """
        require(self.selection == "bernoulli" or not self.rate, "selection", self.selection,
                '"bernoulli": no other law has a floor for pairs')  # fmt: skip
        require(self.max_predictions is None or not self.rate, "max_predictions",
                self.max_predictions, "None: a cap has no floor for pairs")  # fmt: skip
        only = [language.sentence_end_id]
        require(self.ends == only, "ends", self.ends, f"the language's own, {only}")
        lengths = Documents(ids, self.vocabulary, self._ends).length
        require(lengths.min() == lengths.max(), "ids", lengths, "rows of one length")
        arrays = {key: np.asarray(value) for key, value in batch.items()}
        tokens, pairs = pair_floor(
            language,
            arrays["input_ids"],
            arrays["token_type_ids"],
            arrays["attention_mask"],
            arrays["labels"],
            arrays[self.label_name],
            task=self.name,
            target=self.target(ids.shape[1] - FRAME),
            short=self.short,
            text=int(lengths[0]),
            tries=tries(len(ids)),
            rate=self.rate,
            replacement=self.replacement,
            random_ids=self._masking.random_ids,
        )
        return ({"masked-lm": tokens} if self.rate else {}) | {self.name: pairs}

    def show(self, text: str, rng: np.random.Generator | None = None) -> list[Shown]:
        """Make one pair: for each token what the model sees and what it must predict.

        Args:
            text: Documents separated by an empty line, as in BERT's input files. The pair is that
                of the first; next-sentence prediction needs a second one for its negatives.
            rng: The stream of the first batch of this epoch by default.

        Returns:
            As everywhere; the target at ``[CLS]`` is the label of the pair.
        """
        vocabulary: Any = self.vocabulary
        texts = [part for part in text.split("\n\n") if part.strip()]
        least = 2 if self.name == "next-sentence" else 1
        require(len(texts) >= least, "text", text, "two documents, an empty line between them: "
                "a negative pair takes its second segment from another")  # fmt: skip
        rows = [[vocabulary.cls_id, *vocabulary.encode(part), vocabulary.sep_id] for part in texts]
        width = max(len(row) for row in rows) + self.slack + FRAME
        ids = np.full((len(rows), width), vocabulary.pad_id)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = values
        rng = self.generator(self.epoch or 0, 0) if rng is None else rng
        batch = {key: value[0] for key, value in self.corrupt(ids, rng).items()}
        used = int(batch["attention_mask"].sum())
        seen, labels = batch["input_ids"][:used], batch["labels"][:used]
        was = vocabulary.tokens_of(np.where(labels == IGNORE_INDEX, seen, labels))
        shown = [
            Shown(before, after, None if label == IGNORE_INDEX else before)
            for before, after, label in zip(was, vocabulary.tokens_of(seen), labels, strict=True)
        ]
        answer = f"{self.label_name} {batch[self.label_name]}"
        return [shown[0]._replace(target=answer), *shown[1:]]


class NextSentence(SentencePairs):
    """Next-sentence prediction as in BERT: does B follow A in the document?

    With probability 1/2 it does (label 0). Otherwise, and always when the chunk has a single
    sentence, B comes from another document (label 1). Negatives are therefore slightly more than
    half, if there are single sentences.
    """

    name = "next-sentence"
    label_name = "next_sentence_label"

    def pairs(
        self, documents: Documents, rng: np.random.Generator
    ) -> tuple[Segments, Segments, np.ndarray]:
        """See :meth:`SentencePairs.pairs`."""
        require(len(documents.length) > 1, "ids", len(documents.length),
                "at least 2 rows: a negative takes its second segment from another")  # fmt: skip
        return super().pairs(documents, rng)

    def kinds(
        self, negative: Bool[np.ndarray, " batch"], single: Bool[np.ndarray, " batch"]
    ) -> tuple[Bool[np.ndarray, " batch"], Bool[np.ndarray, " batch"]]:
        """All negatives are foreign."""
        return negative, np.zeros_like(negative)


class SentenceOrder(SentencePairs):
    """Sentence order as in ALBERT: are the two segments in the order of the document?

    With probability 1/2 they are (label 0), otherwise they are swapped (label 1). A chunk of a
    single sentence has nothing to swap: as in ALBERT's ``create_pretraining_data.py`` it gets a
    foreign second segment and label 1.
    """

    name = "sentence-order"
    label_name = "sentence_order_label"

    def kinds(
        self, negative: Bool[np.ndarray, " batch"], single: Bool[np.ndarray, " batch"]
    ) -> tuple[Bool[np.ndarray, " batch"], Bool[np.ndarray, " batch"]]:
        """Single sentences are foreign, the other negatives swapped."""
        return single, negative & ~single


def _one_of(output: Any, names: Sequence[str]) -> Tensor:
    found = [getattr(output, name) for name in names if getattr(output, name, None) is not None]
    require(found, "output", type(output).__name__, f"an output that has one of {names}")
    return found[0]


def sentence_ends(vocabulary: Any) -> list[int]:
    """Ids of the tokens that consist of sentence-ending characters alone.

    A continuation mark (``##``) and a leading space (``Ġ`` of byte-level tokens) do not count.
    An abbreviation's full stop ends a sentence by this rule, and a title without one does not.
    """
    bare = [token.removeprefix("##").removeprefix("Ġ") for token in vocabulary.tokens]
    return [i for i, token in enumerate(bare) if token and not token.strip(ENDS)]


def tries(rows: int) -> int:
    """Places that are tried for a foreign segment: ten, in rows that are all different."""
    return max(0, min(TRIES, rows - 2))


@dataclass
class Documents:
    """Rows ``[CLS] text [SEP]`` and where their sentences end; places count from the text on.

    Args:
        ids: ``[B, T]``.
        vocabulary: Knows ``cls_id`` and ``sep_id``.
        ends: ``[V]``, which ids end a sentence.
    """

    ids: np.ndarray
    vocabulary: Any
    ends: np.ndarray

    def __post_init__(self) -> None:
        ids, width = self.ids, self.ids.shape[1]
        self.room = width - FRAME
        require(self.room >= 2, "ids", ids.shape, f"at least {FRAME + 2} ids per row")
        used = ids != self.vocabulary.pad_id
        after = width - used[:, ::-1].argmax(1)
        rows = np.arange(len(ids))
        self.begin = (ids[:, 0] == self.vocabulary.cls_id).astype(np.int64)
        after -= ids[rows, after - 1] == self.vocabulary.sep_id
        self.length = np.where(used.any(1), after - self.begin, 0)
        require(self.length.min(initial=1) > 0, "ids", "a row without a token", "text in all rows")
        stop = self.ends[ids]
        stop[rows, after - 1] |= ~stop.any(1)  # a text without an end is one sentence
        self.stops = np.flatnonzero(stop)
        counts = stop.sum(1)
        self.before = np.cumsum(counts) - counts
        self.sentences = counts

    def number(
        self, rows: Int[np.ndarray, "*shape"], place: Int[np.ndarray, "*shape"]
    ) -> Int[np.ndarray, "*shape"]:
        """How many sentences end within the first ``place`` tokens."""
        where = rows * self.ids.shape[1] + self.begin[rows] + np.maximum(place, 0)
        return np.searchsorted(self.stops, where) - self.before[rows]

    def reach(
        self, rows: Int[np.ndarray, "*shape"], number: Int[np.ndarray, "*shape"]
    ) -> Int[np.ndarray, "*shape"]:
        """How many tokens the first ``number`` sentences have."""
        at = np.minimum(self.before[rows] + np.maximum(number, 1), len(self.stops)) - 1
        tokens = self.stops[at] - rows * self.ids.shape[1] - self.begin[rows] + 1
        return np.where(number > 0, tokens, 0)

    def chunk(self, target: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Sentences of the first run with at least ``target`` tokens, or all that there are."""
        rows = np.arange(len(target))
        return np.minimum(self.number(rows, target - 1) + 1, self.sentences)

    def elsewhere(
        self,
        rows: Int[np.ndarray, " some"],
        a: Int[np.ndarray, " some"],
        target: Int[np.ndarray, " some"],
        rng: np.random.Generator,
    ) -> Segments:
        """A segment of another row for each of ``rows``, whose first segment has ``a`` tokens."""
        size = len(self.length)
        require(size > 1, "ids", size, "at least 2 rows: a single sentence needs another's")
        columns = np.arange(tries(size) + 1)
        shift = rng.integers(size - 1, size=(len(rows), 1))
        others = (rows[:, None] + 1 + (shift + columns) % (size - 1)) % size
        last = np.maximum(0, self.length[others] - (self.room - a[:, None]))
        place = rng.integers(last + 1)
        number = np.where(place > 0, self.number(others, place - 1) + 1, 0)
        start = self.reach(others, number)
        good = (start <= last) & (number < self.sentences[others])
        good[:, -1], number[:, -1] = True, 0  # in the end, the beginning of one more
        pick = np.arange(len(rows)), good.argmax(1)
        row, number = others[pick], number[pick]
        start = self.reach(row, number)
        wanted = np.maximum(target - a, 1)
        last_one = np.minimum(self.number(row, start + wanted - 1) + 1, self.sentences[row])
        return Segments(row, start, self.reach(row, last_one) - start)


def truncated(
    first: Segments, second: Segments, room: int, rng: np.random.Generator
) -> tuple[Segments, Segments]:
    """Take tokens from the longer side (from B when equal) until both fit into ``room`` tokens.

    Each token goes from the front or from the back with probability 1/2
    (google-research/bert, create_pretraining_data.py, ``truncate_seq_pair``).
    """
    a, b = first.length, second.length
    excess = np.maximum(a + b - room, 0)
    if not excess.any():
        return first, second
    uneven = np.minimum(excess, np.abs(a - b))
    rest = excess - uneven
    from_a = np.where(a > b, uneven, 0) + rest // 2
    from_b = np.where(a > b, 0, uneven) + (rest + 1) // 2
    return _cut(first, from_a, rng), _cut(second, from_b, rng)


def _cut(segments: Segments, tokens: np.ndarray, rng: np.random.Generator) -> Segments:
    front = rng.binomial(tokens, 0.5)
    return Segments(segments.row, segments.start + front, segments.length - tokens)


def assembled(documents: Documents, first: Segments, second: Segments) -> dict[str, np.ndarray]:
    """``input_ids``, ``token_type_ids`` and ``attention_mask`` of ``[CLS] A [SEP] B [SEP]``."""
    ids, vocabulary = documents.ids, documents.vocabulary
    width = ids.shape[1]
    column = np.arange(width)
    a, b = first.length[:, None], second.length[:, None]
    from_a = (first.row * width + documents.begin[first.row] + first.start)[:, None] - 1
    from_b = (second.row * width + documents.begin[second.row] + second.start)[:, None] - 2 - a
    typed = column > a + 1
    used = column < a + b + FRAME
    seen = ids.ravel().take(np.where(typed, from_b, from_a) + column, mode="clip")
    seen[~used] = vocabulary.pad_id
    seen[:, 0] = vocabulary.cls_id
    rows = np.arange(len(ids))
    seen[rows, first.length + 1] = vocabulary.sep_id
    seen[rows, first.length + second.length + 2] = vocabulary.sep_id
    kinds, mask = (typed & used).astype(np.int64), used.astype(np.int64)
    return {"input_ids": seen, "token_type_ids": kinds, "attention_mask": mask}


# One instance after the other, from lists of sentences


class Pair(NamedTuple):
    """One instance: two segments and 0 (follows, in order) or 1 (random, swapped)."""

    first: list[int]
    second: list[int]
    label: int


Sentences = Sequence[Sequence[int]]


def instances(
    documents: Sequence[Sentences],
    index: int,
    rng: np.random.Generator,
    *,
    max_length: int = 128,
    short: float = 0.1,
    task: str = "next-sentence",
) -> Iterator[Pair]:
    """All pairs of one document, as BERT's and ALBERT's ``create_pretraining_data.py`` make them.

    Sentences are gathered until the target length is reached; the chunk is split at a random
    sentence. A negative of next-sentence prediction takes B from a random document (redrawn up to
    ten times while it is the own one, then kept), from a random sentence on, and the sentences
    that it does not use go back. A single sentence is always such a negative, in both tasks.

    Args:
        documents: All documents, each a list of sentences, each a list of ids.
        index: Which one to cut up.
        rng: The only source of randomness.
        max_length: Ids of an instance, ``[CLS]`` and both ``[SEP]`` included.
        short: Probability that this document gets a random target from 2 up.
        task: ``"next-sentence"`` or ``"sentence-order"``.

    Raises:
        ValueError: An unknown task, or too few ids for a pair.
    """
    require(task in ("next-sentence", "sentence-order"), "task", task,
            '"next-sentence" or "sentence-order"')  # fmt: skip
    room = max_length - FRAME
    require(room >= 2, "max_length", max_length, f"at least {FRAME + 2}")
    document = documents[index]
    target = int(rng.integers(2, room + 1)) if rng.random() < short else room
    chunk: list[Sequence[int]] = []
    i = 0
    while i < len(document):
        chunk.append(document[i])
        if i == len(document) - 1 or sum(map(len, chunk)) >= target:
            k = int(rng.integers(1, len(chunk))) if len(chunk) > 1 else 1
            first, second = joined(chunk[:k]), joined(chunk[k:])
            negative = len(chunk) == 1 or bool(rng.random() < 0.5)
            if negative and (task == "next-sentence" or len(chunk) == 1):
                second = from_elsewhere(documents, index, target - len(first), rng)
                i -= len(chunk) - k
            elif negative:
                first, second = second, first
            yield Pair(*shortened(first, second, room, rng), int(negative))
            chunk = []
        i += 1


def joined(sentences: Sentences) -> list[int]:
    """The tokens of some sentences."""
    return [int(token) for sentence in sentences for token in sentence]


def from_elsewhere(
    documents: Sequence[Sentences], index: int, wanted: int, rng: np.random.Generator
) -> list[int]:
    """Sentences of a random document from a random one on, until there are ``wanted`` tokens."""
    for _ in range(TRIES):
        other = int(rng.integers(len(documents)))
        if other != index:
            break
    tokens: list[int] = []
    for sentence in documents[other][int(rng.integers(len(documents[other]))) :]:
        tokens += joined([sentence])
        if len(tokens) >= wanted:
            break
    return tokens


def shortened(
    first: list[int], second: list[int], room: int, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """One token at a time from the longer side, front or back, until both fit."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        longer.pop(0 if rng.random() < 0.5 else -1)
    return first, second


def full_sentences(
    documents: Sequence[Sentences], separator: int, *, max_length: int = 128, cross: bool = True
) -> Iterator[list[int]]:
    """RoBERTa's inputs without a second segment: whole sentences, packed until no more fits.

    ``cross=True`` is FULL-SENTENCES, which goes on into the next document behind one extra
    separator; ``cross=False`` is DOC-SENTENCES, which stops at the end of a document (Liu et al.
    2019, section 4.2). A sentence longer than an input is cut.

    Args:
        documents: Each a list of sentences.
        separator: The id between two documents, ``[SEP]``.
        max_length: Ids of an input, with its ``[CLS]`` and ``[SEP]``, which are not added here.
        cross: Whether an input may reach into the next document.
    """
    room = max_length - 2
    require(room >= 1, "max_length", max_length, "at least 3")
    row: list[int] = []
    for document in documents:
        if row and document:
            row = [*row, separator]
        for sentence in document:
            tokens = joined([sentence])[:room]
            if len(row) + len(tokens) > room:
                yield row[:-1] if row[-1] == separator else row
                row = []
            row = row + tokens
        if row and not cross:
            yield row
            row = []
    if row:
        yield row
