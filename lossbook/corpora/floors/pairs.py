r"""The floor of sentence pairs: what the two segments tell about their label, and about each other.

With :math:`y = 0` for a pair as it stood in its document and :math:`y = 1` for a negative one,
the ideal predictor has

.. math:: P(y \mid \tilde A, \tilde B) =
    \frac{P(y, \tilde A, \tilde B)}{P(0, \tilde A, \tilde B) + P(1, \tilde A, \tilde B)} ,

and both joint probabilities follow from the law by which the pairs were made, lengths included
(:class:`lossbook.objectives.sentence_pairs.SentencePairs`). Three devices keep this short.

* The split point is uniform on the :math:`S - 1` inner sentence ends, and :math:`S` depends on
  text that a negative pair does not show. From :math:`1/n = \int_0^1 u^{n-1} du`, a factor
  :math:`u` for every sentence end makes the recursions count by themselves, and Gauss-Legendre
  nodes make the integral exact.
* Targets :math:`t` differ (short sequences). A pair fits all :math:`t` above the end of its last
  inner sentence and up to its length, so the weights of those :math:`t` enter where the last inner
  sentence ends, and a second set of states, which may not end another sentence, carries them on.
* Every joint probability is linear in the likelihood of each single token. Its derivative is the
  weight of that token in all stories that explain the rest, which is the posterior of a masked
  token up to a factor (Darwiche 2003): automatic differentiation is the backward recursion.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from lossbook._require import require
from lossbook.corpora.floors.base import Floor, entropy_of
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage

TASKS = ("next-sentence", "sentence-order")
IGNORED = -100
LONGEST = 512  # a sentence above this counts as unbounded
GROUP = 8  # pairs in one pass
ONE = torch.ones(1, dtype=torch.float64)


def sentence_lengths(language: HiddenMarkovLanguage) -> tuple[int, int]:
    """Tokens of the shortest and of the longest sentence, at most `LONGEST`.

    Raises:
        ValueError: sentences have no bound, or never end.
    """
    tables = _Tables(language)
    state = (tables.initial + tables.step((tables.stop > 0).double())) > 0
    lengths = []
    for n in range(1, LONGEST + 1):
        if (state & (tables.stop > 0)).any():
            lengths.append(n)
        state = tables.step((state & (tables.stop < 1)).double()) > 0
        if not state.any():
            return lengths[0], lengths[-1]
    raise ValueError(f"language: expected sentences of at most {LONGEST} tokens, got longer ones")


def topic_floor(language: HiddenMarkovLanguage, task: str = "next-sentence") -> float:
    r"""Entropy of the label given the topics of A and B and nothing else, nats.

    With topic probabilities :math:`\pi_k` and no single sentences, a negative pair of
    next-sentence prediction has equal topics with probability :math:`c = \sum_k \pi_k^2`, so

    .. math:: H(y \mid z_A, z_B) = \sum_k \frac{\pi_k + \pi_k^2}{2} \,
        h\!\left(\frac{1}{1 + \pi_k}\right), \qquad h(p) = -p \ln p - (1 - p) \ln (1 - p).

    The segments of a pair of sentence order always share their topic: :math:`\ln 2`.
    """
    require(task in TASKS, "task", task, f"one of {TASKS}")
    topics = language._initial.sum(1)
    topics = topics[topics > 0]
    if task == "sentence-order":
        return float(np.log(2))
    known = np.stack([1 / (1 + topics), topics / (1 + topics)], -1)
    return float(((topics + topics**2) / 2 * entropy_of(known)).sum())


def pair_floor(
    language: HiddenMarkovLanguage,
    input_ids: Int[np.ndarray, "batch time"],
    token_type_ids: Int[np.ndarray, "batch time"],
    attention_mask: Int[np.ndarray, "batch time"],
    labels: Int[np.ndarray, "batch time"],
    pair_labels: Int[np.ndarray, " batch"],
    *,
    task: str,
    target: int,
    text: int,
    tries: int,
    short: float | int = 0.0,
    rate: float | int = 0.0,
    replacement: Sequence[float | int] = (0.8, 0.1, 0.1),
    random_ids: Int[np.ndarray, " choices"] | None = None,
) -> tuple[Floor, Floor]:
    r"""The ideal predictors of the masked tokens and of the labels of a batch of pairs.

    They see the corrupted pair and know the law of its making: where a chunk ends, the split, the
    short targets, the forced negatives, and how a foreign segment is chosen. Tokens are selected
    independently; as in :func:`~lossbook.corpora.floors.masked.masked_floor`, the predictor of a
    token knows that this one was selected and not which others were.

    Args:
        language: the language of the documents; its sentences must have a longest one.
        input_ids: rows ``[CLS] A [SEP] B [SEP]``, corrupted.
        token_type_ids: 0 for ``[CLS] A [SEP]``, 1 for ``B [SEP]``.
        attention_mask: 0 at padding.
        labels: the original id at selected places, -100 elsewhere.
        pair_labels: 1 for negative pairs.
        task: ``"next-sentence"`` or ``"sentence-order"``.
        target: tokens that a pair must reach.
        text: tokens of each document that the batch was made from.
        tries: places that are tried for a foreign segment.
        short: probability of a target uniform on 2 ... target instead.
        rate: probability with which a token is selected.
        replacement: probabilities that it becomes [MASK], becomes random, stays.
        random_ids: what a random token is drawn from; the ordinary tokens by default.

    Returns:
        The floors of the masked tokens and of the pairs (whose targets are ``[batch, 1]``).

    Raises:
        ValueError: an unknown task; pairs that may have to be truncated, for which there is no
            floor; a pair that this law cannot make.
    """
    require(task in TASKS, "task", task, f"one of {TASKS}")
    pairs = _Pairs(input_ids, token_type_ids, attention_mask)
    law = _Law(language, task, target, input_ids.shape[1] - 3, text, tries, short)
    channel = _Channel(language, rate, replacement, random_ids)
    chosen = labels != IGNORED
    require(rate or not chosen.any(), "labels", "targets", "none where the rate is 0")
    belief = np.zeros((len(input_ids), 2))
    q = np.zeros((*input_ids.shape, language.vocabulary.size if rate else 0))
    for rows in pairs.groups():
        belief[rows], slopes = _group(law, channel, pairs.of(rows))
        if rate:
            part = pairs.of(rows), input_ids[rows], chosen[rows]
            q[rows] = _tokens(language, channel, *part, *slopes)
    reached = belief[np.arange(len(belief)), pair_labels]
    require((reached > 0).all(), "pair_labels", pair_labels, "labels that this law can give")
    answers = Floor(entropy_of(belief), -np.log(reached), np.ones((len(reached), 1), bool))
    if not rate:
        return Floor(np.zeros(0), np.zeros(0), chosen), answers
    q = q[chosen]
    reached = q[np.arange(len(q)), labels[chosen]]
    require((reached > 0).all(), "labels", "an impossible token", "the original ids")
    return Floor(entropy_of(q), -np.log(reached), chosen), answers


def _group(law: _Law, channel: _Channel, pairs: _Pairs) -> tuple[np.ndarray, tuple]:
    """P(label | pair), ``[batch, 2]``, and the derivatives of log P(pair) by the evidence."""
    with torch.enable_grad():
        spoken = [channel.evidence(law.tables, ids) for ids in (pairs.first, pairs.second)]
        joint = law.joint(*spoken)  # [batch, 2]
        total = joint.sum(1)
        impossible = "a pair of probability 0"
        require(bool((total > 0).all()), "input_ids", impossible, "pairs that this law can make")
        leaves = [leaf for segment in spoken for leaf in (segment.open, segment.stop)]
        slopes = torch.autograd.grad(total.log().sum(), leaves) if channel.rate else ()
    belief = (joint / total[:, None]).detach().numpy()
    return belief, (slopes[:2], slopes[2:])


class _Tables:
    """The language as tensors ``[states]``, ``[states, vocab]`` and a list of transitions."""

    def __init__(self, language: HiddenMarkovLanguage) -> None:
        self.initial = torch.from_numpy(language.initial)
        self.words = torch.from_numpy(language.emission)
        self.stop = self.words[:, language.sentence_end_id]
        self.ends = self.stop.nonzero().squeeze(1)  # the few states that may end a sentence
        matrix = torch.from_numpy(language.transition)
        self.source, self.target = matrix.nonzero(as_tuple=True)
        self.chance = matrix[self.source, self.target]

    def step(self, f: Tensor) -> Tensor:
        """One transition of ``[states, ...]``: few of them are possible."""
        moved = f.index_select(0, self.source) * self.chance.view(-1, *[1] * (f.ndim - 1))
        return torch.zeros_like(f).index_add_(0, self.target, moved)

    def among(self, f: Tensor, few: Tensor) -> Tensor:
        """``f [states, ...]`` with ``few`` added, in place, at the states that end sentences."""
        return f.index_add_(0, self.ends, few)

    def expect(self, g: Tensor) -> Tensor:
        """The mean of ``g [states, ...]`` after one transition."""
        ahead = g[self.target] * self.chance.view(-1, *[1] * (g.ndim - 1))
        return torch.zeros_like(g).index_add(0, self.source, ahead)


@dataclass
class _Segment:
    """Likelihood of what is seen at each place, ``[states, batch, time]``, if the place
    ends no sentence (``open``) and if it does (``stop``); ``length [batch]``; and, where nothing
    is masked, the number of inner sentence ends ``[batch]``."""

    open: Tensor
    stop: Tensor
    length: Tensor
    inner: Tensor | None

    def places(self) -> Iterator[tuple[Tensor, Tensor]]:
        """``open`` and ``stop`` of one place after the other, ``[states, batch, 1]``."""
        return zip(self.open[..., None].unbind(2), self.stop[..., None].unbind(2), strict=True)


class _Pairs:
    """The segments of a batch, each moved to the left edge."""

    def __init__(self, ids: np.ndarray, kinds: np.ndarray, mask: np.ndarray) -> None:
        for argument, array in (("token_type_ids", kinds), ("attention_mask", mask)):
            require(array.shape == ids.shape, argument, array.shape, f"{ids.shape} as input_ids")
        self.second_length = (kinds * mask).sum(1) - 1
        self.first_length = mask.sum(1) - self.second_length - 3
        low = min(self.first_length.min(), self.second_length.min())
        require(low > 0, "token_type_ids", int(low), "two segments with a token each")
        self.first_at, self.first = self._segment(ids, self.first_length, np.ones_like(mask[:, 0]))
        start = self.first_length + 2
        self.second_at, self.second = self._segment(ids, self.second_length, start)

    def groups(self) -> list[np.ndarray]:
        """Rows of like lengths, few enough for a processor's cache."""
        order = np.argsort(self.first_length, kind="stable")
        return np.array_split(order, -(-len(order) // GROUP))

    def of(self, rows: np.ndarray) -> _Pairs:
        """Some rows, no wider than they must be."""
        part = copy(self)
        for name, length in (("first", self.first_length), ("second", self.second_length)):
            width = length[rows].max()
            setattr(part, name, getattr(self, name)[rows, :width])
            setattr(part, f"{name}_at", getattr(self, f"{name}_at")[rows, :width])
        return part

    @staticmethod
    def _segment(ids, length, start) -> tuple[np.ndarray, np.ndarray]:
        column = np.arange(length.max())
        at = np.minimum(start[:, None] + column, ids.shape[1] - 1)
        inside = column < length[:, None]
        return np.where(inside, at, -1), np.where(inside, np.take_along_axis(ids, at, 1), -1)


class _Channel:
    """P(seen token | true token) of a place that was selected with probability ``rate``."""

    def __init__(self, language, rate, replacement, random_ids) -> None:
        shares = np.asarray(replacement, dtype=np.float64)
        good = shares.shape == (3,) and shares.min() >= 0 and abs(shares.sum() - 1) <= 1e-9
        require(good, "replacement", replacement, "three probabilities with sum 1")
        require(0 <= rate <= 1, "rate", rate, "a probability, from 0 to 1")
        vocabulary = language.vocabulary
        random_ids = vocabulary.ordinary_ids if random_ids is None else random_ids
        self.blind = np.bincount(random_ids, minlength=vocabulary.size) * shares[1]
        self.blind /= len(random_ids)
        self.blind[vocabulary.mask_id] += shares[0]
        self.keep, self.rate, self.end = shares[2], rate, language.sentence_end_id

    def evidence(self, tables: _Tables, ids: np.ndarray) -> _Segment:
        """Of a segment; padded with -1."""
        seen = np.maximum(ids, 0)
        same = 1 - self.rate + self.rate * self.keep
        other = torch.from_numpy(self.rate * self.blind[seen])
        full_stop = torch.from_numpy((seen == self.end).astype(np.float64))
        spoken = same * tables.words[:, torch.from_numpy(seen)]  # [states, batch, time]
        ends = tables.stop[:, None, None]
        is_open = (1 - full_stop) * spoken + other * (1 - ends)
        is_stop = ends * (same * full_stop + other)
        scale = (is_open + is_stop).amax(0, keepdim=True)  # the same for both labels
        scale = torch.where(scale > 0, scale, 1.0)
        length = torch.from_numpy((ids >= 0).sum(1))
        inner = None if self.rate else full_stop.sum(1) - 1.0
        parts = ((e / scale).requires_grad_(self.rate > 0) for e in (is_open, is_stop))
        return _Segment(*parts, length, inner)


class _Law:
    """The joint law of label and pair."""

    def __init__(self, language, task, target, room, text, tries, short) -> None:
        self.task, self.target, self.room, self.text = task, target, room, text
        self.tables, self.tries = _Tables(language), tries
        self.shortest, self.longest = sentence_lengths(language)
        self._refuse(self.longest, short)
        weights = np.zeros(room + 1)
        weights[2 : target + 1] = short / max(1, target - 1)
        weights[target] += 1 - short if target >= 2 else 1.0
        self.weights = torch.from_numpy(weights)  # of each target
        most = (target - 1) // self.shortest  # inner ends: a polynomial of degree most - 1
        nodes, share = np.polynomial.legendre.leggauss(max(1, (most + 1) // 2))
        self.nodes = torch.from_numpy((nodes + 1) / 2)
        self.share = torch.from_numpy(share / 2)

    def _refuse(self, longest: int, short: float) -> None:
        require(2 <= self.target <= self.room, "target", self.target, f"2 to {self.room} tokens")
        require(0 <= short <= 1, "short", short, "a probability, from 0 to 1")
        single = 2 * longest if short or longest >= self.target else 0
        most = max(self.target + longest - 1, single)
        why = f"at least {most} tokens, so that no pair is ever cut (no floor is known otherwise)"
        require(self.room >= most, "room", self.room, why)
        require(self.text > self.room, "text", self.text, f"documents of more than {self.room}")

    def joint(self, first: _Segment, second: _Segment) -> Tensor:
        """P(label, pair) up to a common factor, ``[batch, 2]``."""
        first_ends = self.read(first)
        both = self.whole(first_ends, first, second)
        if self.task == "sentence-order":
            negative = self.whole(self.read(second), second, first)
            weight = torch.zeros(second.open.shape[1:], dtype=torch.float64)
        else:
            negative, weight = 0.0, self.fitting(first, second, self.continued(first_ends))
        weight = torch.cat([weight[:, :1] + self.forced(first), weight[:, 1:]], 1)
        foreign = self.closed(self.elsewhere(first.length), second, weight)[:, 0]
        return torch.stack([both, negative + foreign], 1)

    def beginning(self, segment: _Segment) -> Tensor:
        """States of the first token of a document, ``[states, batch, 1]``."""
        return self.tables.initial[:, None, None].expand(-1, len(segment.length), 1)

    def read(self, segment: _Segment) -> Tensor:
        """States at the stop that ends a document's first segment, ``[states, batch, nodes]``.

        Every sentence end before it has the factor ``u``.
        """
        if segment.inner is not None:  # the ends are visible: one pass serves all nodes
            return self._read(segment, ONE) * self.powers(segment)
        return self._read(segment, self.nodes)

    def powers(self, segment: _Segment) -> Tensor:
        """``u`` to the number of inner ends, ``[batch, nodes]``."""
        return self.nodes ** segment.inner[:, None]

    def _read(self, segment: _Segment, u: Tensor) -> Tensor:
        f = self.beginning(segment)
        rows, found = self.tables.ends, 0.0
        for t, (is_open, is_stop) in enumerate(segment.places()):
            if t + 1 < self.shortest:  # no sentence ends here, so there is nothing to count yet
                f = self.tables.step(f * is_open)
                continue
            f = f.expand(-1, -1, len(u))
            stop = f.index_select(0, rows) * is_stop.index_select(0, rows)
            here = (segment.length == t + 1)[:, None]
            if here.any():
                found = found + torch.where(here, stop, 0.0)
            f = self.tables.step(self.tables.among(f * is_open, u * stop))
        return self.tables.among(torch.zeros_like(f), found)

    def closed(self, start: Tensor, segment: _Segment, weight: Tensor, u: Tensor = ONE) -> Tensor:
        """Probability of a last segment, ``[batch, nodes]``, every inner end with its factor.

        ``weight[:, t]`` multiplies the stories whose last inner sentence ends at place ``t`` of
        the segment (0: it is a single sentence).
        """
        time, width = segment.length, segment.open.shape[2]
        early = int(time.min()) - self.longest  # an end before this place is not the last one
        f = start
        last = start * weight[:, 0, None] if early <= 0 else torch.zeros_like(start)
        rows, found = self.tables.ends, torch.zeros(start.shape[1:], dtype=torch.float64)
        several = bool(weight[:, 1:].any())  # stories with more sentences than one
        for t, (is_open, is_stop) in enumerate(segment.places()):
            here = (time == t + 1)[:, None]
            is_stop = is_stop.index_select(0, rows)
            if here.any():
                ended = (last.index_select(0, rows) * is_stop).sum(0)
                found = found + torch.where(here, ended, 0.0)
            if t + 1 == width:
                break
            stop = u * f.index_select(0, rows) * is_stop if several else None
            if t + 1 >= early:
                last = last * is_open
                if several:
                    last = self.tables.among(last, weight[:, t + 1, None] * stop)
                last = self.tables.step(last)
            if several:
                f = self.tables.step(self.tables.among(f * is_open, stop))
        return found

    def whole(self, ends: Tensor, first: _Segment, second: _Segment) -> Tensor:
        """P(both segments are a chunk, split here) / 2."""
        share, weight = self.share / 2, self.fitting(first, second)
        if second.inner is None:
            return self.closed(self.tables.step(ends), second, weight, self.nodes) @ share
        mixed = (ends * (self.powers(second) * share)).sum(2, keepdim=True)
        return self.closed(self.tables.step(mixed), second, weight)[:, 0]

    def fitting(self, first: _Segment, second: _Segment, factor: Tensor | None = None) -> Tensor:
        """Weight of the targets that fit, by the place of the last inner end, ``[batch, place]``.

        ``factor [batch, q]`` belongs to target ``len(first) + 1 + q``.
        """
        a, b = first.length[:, None], second.length[:, None]
        q = torch.arange(second.open.shape[2])
        t = a + 1 + q
        weight = torch.where(q < b, self.weights[t.clamp(max=self.room)], 0.0)
        weight = torch.where(t <= self.room, weight, 0.0)
        if factor is not None:
            weight = weight * factor[:, : len(q)]
        return weight.flip(1).cumsum(1).flip(1)

    def continued(self, ends: Tensor) -> Tensor:
        """P(first segment, split there) / 2 by ``q``, if the target is ``q`` tokens behind + 1.

        The document goes on unseen; its sentence ends within ``q`` tokens count.
        """
        return torch.einsum("sbg,qsg,g->bq", ends, self.unseen, self.share / 2)

    @cached_property
    def unseen(self) -> Tensor:
        """E[u ** (sentence ends in the next ``q`` tokens)], ``[q, states, nodes]``."""
        stop = self.tables.stop[:, None]
        counted = 1 - stop + stop * self.nodes
        future = [torch.ones_like(counted)]
        for _ in range(self.room - 1):
            future.append(self.tables.expect(future[-1] * counted))
        return torch.stack(future)

    def forced(self, first: _Segment) -> Tensor:
        """P(the first segment is a chunk of one sentence), ``[batch, 1]``."""
        only = torch.zeros(first.open.shape[1:], dtype=torch.float64)
        only[:, 0] = self.weights.cumsum(0)[first.length.clamp(max=self.room)]
        return self.closed(self.beginning(first), first, only)

    def elsewhere(self, a: Tensor) -> Tensor:
        """States of the first token of a foreign segment, ``[states, batch, 1]``.

        ``place`` is uniform on 0 ... c with c = text - (room - a); the segment begins with the
        first sentence behind it, if that leaves room, and otherwise another document is tried.
        """
        return self.entries[self.text - self.room + a].T[:, :, None]

    @cached_property
    def entries(self) -> Tensor:
        """The law of the first state by the last place ``c``, ``[c, states]``."""
        tables = self.tables
        begun = tables.initial  # place 0
        state, waiting = tables.initial, torch.zeros_like(tables.initial)
        laws = []
        for c in range(self.text + 1):
            good = begun / (c + 1)
            fail = max(0.0, 1 - float(good.sum()))
            again = self.tries if fail == 1 else (1 - fail**self.tries) / (1 - fail)
            laws.append(good * again + fail**self.tries * tables.initial)
            waiting = waiting + state  # places up to token c + 1 that wait for a sentence end
            begun = begun + tables.step(waiting * tables.stop)
            waiting = tables.step(waiting * (1 - tables.stop))
            state = tables.step(state)
        return torch.stack(laws)


def _tokens(
    language: HiddenMarkovLanguage,
    channel: _Channel,
    pairs: _Pairs,
    ids: np.ndarray,
    chosen: np.ndarray,
    *slopes: tuple,
) -> np.ndarray:
    """Posterior of the token at the chosen places, ``[batch, time, vocab]``."""
    q = np.zeros((*ids.shape, language.vocabulary.size))
    for at, slope in zip((pairs.first_at, pairs.second_at), slopes, strict=True):
        rows, columns = np.nonzero((at >= 0) & np.take_along_axis(chosen, np.maximum(at, 0), 1))
        where = rows, at[rows, columns]
        is_open, is_stop = (part[:, rows, columns].numpy().T for part in slope)
        found = is_open @ language.emission
        found[:, channel.end] = is_stop @ language.emission[:, channel.end]
        seen = ids[where]
        kept = found[np.arange(len(seen)), seen] * channel.keep
        found *= channel.blind[seen][:, None]
        found[np.arange(len(seen)), seen] += kept
        q[where] = found / found.sum(-1, keepdims=True)
    return q
