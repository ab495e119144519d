r"""A language whose true distribution is known: texts drawn from a hidden Markov model.

A text :math:`x_1 \dots x_L` comes from hidden states :math:`s_1 \dots s_L` with

.. math:: P(x, s) = \pi(s_1) \prod_{t>1} A(s_{t-1}, s_t) \prod_t E(s_t, x_t)

(Rabiner 1989, section II). The states of one topic never lead to another topic, so ``A`` is block
diagonal; all recursions work on the blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, overload

import numpy as np
from jaxtyping import Bool, Float, Int

from lossbook._require import require
from lossbook.corpora.base import check_batch, frame
from lossbook.corpora.story import compile_story
from lossbook.corpora.vocabulary import Vocabulary

Units = tuple[tuple[str, ...], ...]


class HiddenMarkovLanguage:
    """Documents from a hidden Markov model that is written down in the open.

    ``HiddenMarkovLanguage.default()`` is the book's language, ``.tiny()`` an instance small enough
    to enumerate all of its texts.

    Args:
        initial: :math:`\\pi`, the probabilities of the first state.
        transition: :math:`A`, rows are the state before, columns the state after; or the list of
            its diagonal blocks.
        emission: :math:`E`, the probability of each token (all of the vocabulary, special tokens
            included) in each state.
        vocabulary: the tokens.
        states: what each state means: (topic, stage, grammar node).
        words: every word as a tuple of its pieces.
        phrases: word sequences that always stand together.
        entities: names of several words.
        synonyms: pairs of interchangeable words.
        sentence_end: the token that closes a sentence.
        name: for titles and records.

    Raises:
        ValueError: shapes disagree, a row is not a distribution, or a special token is emitted.
    """

    has_floor = True

    def __init__(
        self,
        initial: Float[np.ndarray, " states"],
        transition: Float[np.ndarray, "states states"] | Sequence[np.ndarray],
        emission: Float[np.ndarray, "states vocab"],
        vocabulary: Vocabulary,
        *,
        states: Sequence[tuple[str, str, str]] = (),
        words: Units = (),
        phrases: Units = (),
        entities: Units = (),
        synonyms: tuple[tuple[str, str], ...] = (),
        sentence_end: str = ".",
        name: str = "hidden Markov language",
    ) -> None:
        self.name, self.vocabulary = name, vocabulary
        self.initial = _distributions(initial, "initial")
        self.emission = _distributions(emission, "emission")
        dense = isinstance(transition, np.ndarray)
        blocks = _split(transition) if dense else list(transition)
        self.blocks = [_distributions(block, "transition") for block in blocks]
        self.words, self.phrases, self.entities = words, phrases, entities
        self.synonyms, self.sentence_end = synonyms, sentence_end
        self.states = tuple(states)
        self._check_shapes()
        self._prepare()

    def _check_shapes(self) -> None:
        n, vocab = len(self.initial), self.vocabulary.size
        sizes = [block.shape for block in self.blocks]
        square = all(rows == columns for rows, columns in sizes)
        total = sum(rows for rows, _ in sizes)
        require(square and total == n, "transition", sizes, f"square blocks of {n} states in all")
        require(
            self.emission.shape == (n, vocab), "emission", self.emission.shape, f"({n}, {vocab})"
        )
        special = self.emission[:, self.vocabulary.special_ids].max()
        require(special == 0, "emission", special, "probability 0 for the special tokens")
        require(len(self.states) in (0, n), "states", len(self.states), f"{n} descriptions or none")
        units = [*self.words, *self.phrases, *self.entities, *self.synonyms]
        unknown = [token for unit in units for token in unit if token not in self.vocabulary]
        require(not unknown, "words", unknown, "tokens of the vocabulary")

    def _prepare(self) -> None:
        """Blocks padded to one size for batched products, and tables for sampling."""
        sizes = [len(block) for block in self.blocks]
        width, edges = max(sizes), np.cumsum([0, *sizes])
        shape = (len(sizes), width)
        self._initial = np.zeros(shape)
        self._transition = np.zeros((*shape, width))
        self._emission = np.zeros((shape[0], self.vocabulary.size, width))
        for k, (size, start) in enumerate(zip(sizes, edges[:-1], strict=True)):
            rows = slice(start, start + size)
            self._initial[k, :size] = self.initial[rows]
            self._transition[k, :size, :size] = self.blocks[k]
            self._emission[k, :, :size] = self.emission[rows].T
        used = [np.flatnonzero(block.any(1)) for block in self._emission]
        self._spoken = [(v, block[v].T) for v, block in zip(used, self._emission, strict=True)]
        self._next = _Draw(
            [np.pad(b, ((0, 0), (s, 0))) for b, s in zip(self.blocks, edges, strict=False)]
        )
        self._token = _Draw([self.emission])
        self._first = _Draw([self.initial[None]])

    @property
    def transition(self) -> Float[np.ndarray, "states states"]:
        """The transition matrix in full."""
        matrix, start = np.zeros((len(self.initial),) * 2), 0
        for block in self.blocks:
            matrix[start : start + len(block), start : start + len(block)] = block
            start += len(block)
        return matrix

    @property
    def sentence_end_id(self) -> int:
        """The id of the token that closes a sentence."""
        return self.vocabulary.id_of(self.sentence_end)

    @classmethod
    def default(cls) -> HiddenMarkovLanguage:
        """The book's language: six topics, four stages, a small grammar (see `story`)."""
        story = compile_story()
        vocabulary = Vocabulary.from_words(story.tokens)
        return cls(
            story.initial,
            story.blocks,
            _behind_specials(story.emission),
            vocabulary,
            states=story.states,
            words=story.words,
            phrases=story.phrases,
            entities=story.entities,
            synonyms=story.synonyms,
            name="the book's language",
        )

    @classmethod
    def tiny(cls) -> HiddenMarkovLanguage:
        """Five tokens, two topics, two stages: small enough to write down every text.

        A sentence is "singer works ." or "farmer works ."; in the second stage the verb may be
        left out. The topic says which of the two is the more common.
        """
        #         stem   ##er   verb   stop | stem   ##er   stop      (first | second stage)
        block = np.array(
            [
                [0.00, 1.00, 0.00, 0.00, 0.00, 0.00, 0.00],
                [0.00, 0.00, 0.75, 0.25, 0.00, 0.00, 0.00],
                [0.10, 0.00, 0.00, 0.90, 0.00, 0.00, 0.00],
                [0.60, 0.00, 0.00, 0.00, 0.40, 0.00, 0.00],
                [0.00, 0.00, 0.00, 0.00, 0.00, 0.80, 0.20],
                [0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 1.00],
                [0.00, 0.00, 0.00, 0.00, 1.00, 0.00, 0.00],
            ]
        )
        #             sing  farm  ##er works .
        er, works, stop = [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]
        rows = [
            [[p, 1 - p, 0, 0, 0], er, works, stop, [0.9 * q, 0.9 * (1 - q), 0, 0.1, 0], er, stop]
            for p, q in ((0.9, 0.7), (0.2, 0.4))
        ]
        initial = np.zeros(14)
        initial[[0, 2, 7, 9]] = 0.45, 0.1, 0.3, 0.15
        return cls(
            initial,
            [block, block.copy()],
            _behind_specials(np.array([row for topic in rows for row in topic], dtype=float)),
            Vocabulary.from_words(["sing", "farm", "##er", "works", "."]),
            words=(("sing",), ("farm",), ("works",), (".",), ("sing", "##er"), ("farm", "##er")),
            name="the tiny language",
        )

    def part(
        self, topics: Sequence[str] | None = None, stages: Sequence[str] | None = None
    ) -> HiddenMarkovLanguage:
        """The documents of some topics, with their stages told in a given order.

        The vocabulary stays the same, so a model of the whole language reads every part, and the
        part has exact floors of its own. A sentence ends where it did and stays in its stage as
        often as it did; when it leaves the stage, it goes to the next of ``stages``. The stage that
        was the last one is left as often as the others are on average.

        Args:
            topics: their names, in the order of the language by default.
            stages: their names; all of them in their order by default. Reversed, the story is
                told from its end.

        Raises:
            ValueError: a name that is not there or stands twice, or a language whose states have
                no descriptions.
        """
        require(self.states, "states", self.states, "a language whose states are described")
        every = (self._described(0), self._described(1))
        chosen = [list(e if c is None else c) for e, c in zip(every, (topics, stages), strict=True)]
        for argument, names, known in zip(("topics", "stages"), chosen, every, strict=True):
            good = names and len(set(names)) == len(names) and set(names) <= set(known)
            require(good, argument, names, f"some of {known}, each once")
        told = [_Retold(self, topic, *chosen[1:]) for topic in chosen[0]]
        mass = np.array([retold.mass for retold in told])
        rows = np.concatenate([retold.rows for retold in told])
        return HiddenMarkovLanguage(
            np.concatenate([r.initial * m for r, m in zip(told, mass / mass.sum(), strict=True)]),
            [retold.transition for retold in told],
            self.emission[rows],
            self.vocabulary,
            states=[self.states[row] for row in rows],
            words=self.words,
            phrases=self.phrases,
            entities=self.entities,
            synonyms=self.synonyms,
            sentence_end=self.sentence_end,
            name="; ".join([self.name, *(", ".join(x) for x in (topics, stages) if x is not None)]),
        )

    def _described(self, place: int) -> list[str]:
        return list(dict.fromkeys(state[place] for state in self.states))

    @overload
    def sample(
        self, n: int, length: int, rng: np.random.Generator, *, states: Literal[False] = False
    ) -> Int[np.ndarray, "batch time"]: ...

    @overload
    def sample(
        self, n: int, length: int, rng: np.random.Generator, *, states: Literal[True]
    ) -> tuple[Int[np.ndarray, "batch time"], Int[np.ndarray, "batch time"]]: ...

    def sample(self, n, length, rng, *, states=False):
        """Draw ``n`` documents and keep their first ``length`` tokens.

        Args:
            n: number of documents.
            length: tokens per document, without special tokens.
            rng: the only source of randomness.
            states: also return the hidden states.

        Returns:
            int64 ids ``[n, length]``, or the pair (ids, states).
        """
        require(n >= 1, "n", n, "at least 1")
        require(length >= 1, "length", length, "at least 1")
        path = np.empty((n, length), dtype=np.int64)
        ids = np.empty((n, length), dtype=np.int64)
        uniform = rng.random((length, 2, n))
        state = self._first(np.zeros(n, dtype=np.int64), uniform[0, 0])
        for t in range(length):
            if t:
                state = self._next(state, uniform[t, 0])
            path[:, t] = state
            ids[:, t] = self._token(state, uniform[t, 1])
        return (ids, path) if states else ids

    def batch(
        self,
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        index: int = 0,
        split: str = "train",
    ) -> Int[np.ndarray, "batch time"]:
        """Fresh documents as rows ``[CLS] text [SEP]``; the same arguments give the same rows.

        Args:
            batch_size: number of rows.
            length: ids per row, the two special tokens included.
            seed: seed of the corpus.
            epoch: number of the epoch; every epoch has fresh documents.
            index: number of the batch in the epoch.
            split: ``"train"`` or ``"validation"``; they never share a random stream.
        """
        seed, part = check_batch(batch_size, length, seed, epoch, index, split)
        rng = np.random.default_rng([seed, part, epoch, index])
        return frame(self.sample(batch_size, length - 2, rng), self.vocabulary)

    def rows(
        self,
        batch_size: int,
        length: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        index: int = 0,
        split: str = "train",
    ) -> Int[np.ndarray, " batch"]:
        """Ids of the documents in the batch of the same arguments: all different over time."""
        check_batch(batch_size, length, seed, epoch, index, split)
        return (epoch << 40) + index * batch_size + np.arange(batch_size)

    def word_starts(self, ids: Int[np.ndarray, "*batch time"]) -> Bool[np.ndarray, "*batch time"]:
        """True where a token begins a word, False where it continues one."""
        return self.vocabulary.word_starts(ids)

    def unit_starts(
        self, ids: Int[np.ndarray, "*batch time"], unit: str = "word"
    ) -> Bool[np.ndarray, "*batch time"]:
        """True where a new unit begins: a word, or also a whole phrase or entity.

        Args:
            ids: token ids.
            unit: ``"word"``; ``"phrase"`` (a phrase is one unit, all else by words); ``"entity"``.
        """
        units = {"word": (), "phrase": self.phrases, "entity": self.entities}
        require(unit in units, "unit", unit, f"one of {tuple(units)}")
        starts = self.word_starts(ids)
        for tokens in units[unit]:
            for j in range(1, len(tokens)):
                starts[..., j:][self._found(ids, tokens)[..., : ids.shape[-1] - j]] = False
        return starts

    def _found(self, ids: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
        """True where the token sequence begins (and is complete within the row)."""
        found = np.ones(ids.shape, dtype=bool)
        for j, token in enumerate(tokens):
            found[..., : ids.shape[-1] - j] &= ids[..., j:] == self.vocabulary.id_of(token)
            found[..., ids.shape[-1] - j :] = False
        return found


class _Retold:
    """One topic of a described language with its stages in a new order."""

    def __init__(self, language: HiddenMarkovLanguage, topic: str, stages: Sequence[str]) -> None:
        matrix, emission = language.transition, language.emission
        of_topic = np.array([state[0] == topic for state in language.states])
        of_stage = np.array([state[1] for state in language.states])
        closes = of_topic & (emission[:, language.sentence_end_id] == 1)
        groups = [np.flatnonzero(of_topic & (of_stage == stage)) for stage in stages]
        stops = [group[closes[group]] for group in groups]
        one = [len(stop) for stop in stops]
        require(set(one) == {1}, "stages", stages, f"one state in each that ends {topic} sentences")
        self.mass = language.initial[of_topic].sum()
        self.rows = np.concatenate(groups)
        stay = np.array([matrix[stop, g].sum() for stop, g in zip(stops, groups, strict=True)])
        starts = [matrix[stop[0], g] / p for stop, g, p in zip(stops, groups, stay, strict=True)]
        leave = 1 - stay
        usual = leave[leave > 1e-12].mean() if (leave > 1e-12).any() else 0.5
        self._connect(matrix, groups, stops, starts, np.where(leave > 1e-12, leave, usual))

    def _connect(self, matrix, groups, stops, starts, leave) -> None:
        """Within the stages as before; after a full stop also to the next stage of the order."""
        self.transition = matrix[np.ix_(self.rows, self.rows)]
        edges = np.cumsum([0, *map(len, groups)])
        self.initial = np.pad(starts[0], (0, len(self.rows) - len(starts[0])))
        for g, ((a, b), stop) in enumerate(zip(pairwise(edges), stops, strict=True)):
            row = a + np.flatnonzero(groups[g] == stop)[0]
            self.transition[row] = 0
            moves = leave[g] if g + 1 < len(groups) else 0.0
            self.transition[row, a:b] = (1 - moves) * starts[g]
            if moves:
                self.transition[row, b : edges[g + 2]] = moves * starts[g + 1]


class _Draw:
    """Draws from the rows of sparse matrices by inverting their distribution functions."""

    def __init__(self, matrices: list[np.ndarray]) -> None:
        rows = [row for matrix in matrices for row in matrix]
        width = max(np.count_nonzero(row) for row in rows)
        self.column = np.zeros((len(rows), width), dtype=np.int64)
        self.cumulative = np.full((len(rows), width), np.inf)
        for r, row in enumerate(rows):
            (used,) = np.nonzero(row)
            self.column[r, : len(used)] = used
            self.cumulative[r, : len(used) - 1] = np.cumsum(row[used])[:-1]

    def __call__(self, row: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        at = (self.cumulative[row] <= uniform[:, None]).sum(-1)
        return self.column[row, at]


def _behind_specials(emission: np.ndarray) -> np.ndarray:
    return np.pad(emission, ((0, 0), (5, 0)))


def _distributions(rows: np.ndarray, argument: str) -> np.ndarray:
    """The array in float64 when every row is a distribution; otherwise an error."""
    rows = np.asarray(rows, dtype=np.float64)
    require(rows.size, argument, rows.shape, "at least one entry")
    good = np.isfinite(rows).all() and rows.min() >= 0
    require(good, argument, rows.min(), "probabilities of at least 0")
    off = np.abs(rows.sum(-1) - 1).max()
    require(off <= 1e-9, argument, off, "rows that sum to 1 (shown: the largest deviation)")
    return rows / rows.sum(-1, keepdims=True)


def _split(transition: np.ndarray) -> list[np.ndarray]:
    """The finest diagonal blocks of consecutive states that never lead to one another."""
    n = len(transition)
    cuts = [c for c in range(1, n) if not (transition[:c, c:].any() or transition[c:, :c].any())]
    edges = [0, *cuts, n]
    return [transition[a:b, a:b] for a, b in pairwise(edges)]
