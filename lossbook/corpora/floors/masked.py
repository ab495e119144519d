"""The floor of masked language modelling, under every law of selection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from lossbook._require import require
from lossbook.corpora.floors.base import (
    Floor,
    Texts,
    entropy_of,
    evidence,
    log_choose,
    log_or_minus_infinity,
    token_probabilities,
)
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage

SELECTIONS = ("bernoulli", "count", "rounding")
IGNORED = -100

_CELLS = 2**22  # numbers that one pass may keep


def selection_pmf(
    selection: str | Float[np.ndarray, " counts"],
    rate: float | int,
    length: int,
    candidates: int,
    max_predictions: int | None = None,
) -> Float[np.ndarray, " counts"]:
    """Distribution of the number of selected positions; given it, all subsets are equally likely.

    ``"bernoulli"``: each candidate on its own. ``"count"``: BERT's rule
    ``min(max_predictions, max(1, round(rate * length)))`` (create_pretraining_data.py).
    ``"rounding"``: RoBERTa's ``floor(rate * length + u)`` with u uniform on [0, 1)
    (fairseq/data/mask_tokens_dataset.py). Never more than there are candidates.

    Args:
        selection: the name of the rule, or the distribution itself from count 0 on.
        rate: fraction of positions.
        length: tokens of the row, [CLS] and [SEP] included, padding excluded.
        candidates: tokens of the row that may be selected.
        max_predictions: an upper limit; surplus positions are dropped at random.

    Returns:
        Probabilities of the counts ``0 .. candidates``.
    """
    limit = candidates if max_predictions is None else min(max_predictions, candidates)
    wide = _counts(selection, rate, length, candidates)
    pmf = np.zeros(candidates + 1)
    np.add.at(pmf, np.minimum(np.arange(len(wide)), limit), wide)
    return pmf


def _counts(selection, rate: float | int, length: int, candidates: int) -> np.ndarray:
    """The counts before any limit."""
    if not isinstance(selection, str):
        pmf = np.asarray(selection, dtype=np.float64)
        good = pmf.min() >= 0 and abs(pmf.sum() - 1) <= 1e-9
        require(good, "selection", selection, "probabilities of the counts 0, 1, ... with sum 1")
        return pmf
    require(selection in SELECTIONS, "selection", selection, f"one of {SELECTIONS} or counts")
    if selection == "bernoulli":
        if rate == 1:
            return np.eye(candidates + 1)[-1]
        n = np.arange(candidates + 1)
        logs = n * np.log(rate) + (candidates - n) * np.log1p(-rate)
        return np.exp(log_choose(candidates) + logs)
    if selection == "count":
        return np.eye(length + 1)[min(length, max(1, round(rate * length)))]
    low = int(rate * length)
    return np.append(np.zeros(low), [low + 1 - rate * length, rate * length - low])


def masked_floor(
    language: HiddenMarkovLanguage,
    ids: Int[np.ndarray, "batch time"],
    input_ids: Int[np.ndarray, "batch time"],
    labels: Int[np.ndarray, "batch time"],
    *,
    rate: float | int = 0.15,
    selection: str | Float[np.ndarray, " counts"] = "bernoulli",
    replacement: Sequence[float | int] = (0.8, 0.1, 0.1),
    random_ids: Int[np.ndarray, " choices"] | None = None,
    max_predictions: int | None = None,
    log_probs: bool = False,
) -> Floor:
    r"""The ideal predictor of the selected tokens from the corrupted text.

    It computes :math:`q_i(v) = P(x_i = v \mid \tilde x, i \in M)` exactly. It knows that ``i`` was
    selected (the loss is taken nowhere else) and the law of the corruption, but not which other
    visible tokens were selected. A token :math:`\tilde x_t` is the output of the channel

    .. math:: P(\tilde x_t \mid x_t) = \begin{cases}
        [\tilde x_t = x_t] & t \notin M \\
        r_m [\tilde x_t = \text{mask}] + r_r [\tilde x_t \in R] / |R|
            + r_k [\tilde x_t = x_t] & t \in M.
        \end{cases}

    Every law of selection here makes all subsets of one size equally likely, so
    :math:`P(M) = w(|M|)` with :math:`w(n) = P(n) / \binom{C}{n}`, and the recursions carry the
    number of selected positions along: :math:`\alpha_t(n, j)`. For independent selection
    (``"bernoulli"``) the sum over ``M`` factorises and one level is enough.

    Args:
        language: the language of the texts.
        ids: the original rows, one text each, with or without special tokens around it.
        input_ids: the corrupted rows.
        labels: the original id at the selected positions, -100 elsewhere.
        rate: fraction of positions that are selected.
        selection: ``"bernoulli"``, ``"count"``, ``"rounding"`` (see `selection_pmf`), or the
            probabilities of the counts themselves.
        replacement: probabilities that a selected token becomes [MASK], becomes random, stays.
        random_ids: what a random token is drawn from, uniformly; the ordinary tokens by default.
        max_predictions: upper limit of selected positions per row.
        log_probs: also return the distributions.

    Returns:
        One target for each selected position.

    Raises:
        ValueError: labels that are not the original tokens, unselected tokens that changed, or a
            batch that this corruption of this language cannot produce.
    """
    require(0 < rate <= 1, "rate", rate, "a number above 0 and up to 1")
    texts = Texts(language, ids)
    channel = _Channel(language, replacement, random_ids)
    _check_corruption(ids, input_ids, labels, texts, channel)
    pmf = [
        selection_pmf(selection, rate, int(n), int(c), max_predictions)
        for n, c in zip(texts.framed, texts.length, strict=True)
    ]
    independent = isinstance(selection, str) and selection == "bernoulli" and not max_predictions
    if not independent:
        _check_counts(labels, pmf)
    seen = _Seen(texts.align(input_ids), texts.align(labels), texts, pmf, rate, independent)
    q = np.concatenate([_masked(language, channel, part) for part in seen.parts(language)])
    true = labels[labels != IGNORED]
    reached = q[np.arange(len(true)), true]
    require((reached > 0).all(), "ids", "an impossible text", "texts of the language")
    kept = log_or_minus_infinity(q) if log_probs else None
    return Floor(entropy_of(q), -np.log(reached), labels != IGNORED, kept)


class _Channel:
    """The replacement of selected tokens as a noisy channel."""

    def __init__(
        self,
        language: HiddenMarkovLanguage,
        replacement: Sequence[float | int],
        random_ids: np.ndarray | None,
    ) -> None:
        shares = np.asarray(replacement, dtype=np.float64)
        good = shares.shape == (3,) and shares.min() >= 0 and abs(shares.sum() - 1) <= 1e-9
        require(good, "replacement", replacement, "three probabilities with sum 1")
        vocabulary = language.vocabulary
        random_ids = vocabulary.ordinary_ids if random_ids is None else random_ids
        vocabulary.require_ids(random_ids, "random_ids")
        require(random_ids.size, "random_ids", random_ids, "at least one id")
        mask, random, self.keep = shares
        # P(seen token | selected) apart from its being kept
        self.blind = np.bincount(random_ids, minlength=vocabulary.size) * random / len(random_ids)
        self.blind[vocabulary.mask_id] += mask


def _check_corruption(
    ids: np.ndarray, input_ids: np.ndarray, labels: np.ndarray, texts: Texts, channel: _Channel
) -> None:
    """The three arrays must describe one corruption."""
    chosen = labels != IGNORED
    for argument, array in (("input_ids", input_ids), ("labels", labels)):
        require(array.shape == ids.shape, argument, array.shape, f"the shape of ids, {ids.shape}")
    require((labels == ids)[chosen].all(), "labels", "another token", "the original ids or -100")
    require(texts.inside[chosen].all(), "labels", "a special token", "targets inside the text")
    same = (input_ids == ids)[~chosen].all()
    require(same, "input_ids", "a changed token without a label", "changes at targets only")
    seen = channel.blind[input_ids] + channel.keep * (input_ids == ids) > 0
    require(seen[chosen].all(), "input_ids", "an impossible replacement", "tokens of random_ids")


def _check_counts(labels: np.ndarray, pmf: list[np.ndarray]) -> None:
    """The number of targets must be possible in every row."""
    counts = (labels != IGNORED).sum(1)
    bad = [b for b, (n, p) in enumerate(zip(counts, pmf, strict=True)) if not p[n] > 0]
    expected = "a number of targets that the selection can produce"
    require(not bad, "labels", f"{counts[bad[:1]]} targets in row {bad[:1]}", expected)


@dataclass
class _Seen:
    """What the predictor sees, rows moved to the left edge."""

    ids: np.ndarray
    labels: np.ndarray
    texts: Texts
    pmf: list[np.ndarray]
    rate: float
    independent: bool

    def __post_init__(self) -> None:
        self.target = (self.labels != IGNORED) & self.texts.valid
        special = self.ids < 5
        self.sure = special & self.texts.valid  # a special token inside the text was selected
        self.open = ~special & self.texts.valid  # might have been selected
        self.ids = np.where(self.texts.valid, self.ids, 0)

    def weights(self, row: int) -> np.ndarray:
        """``w`` by the number of selected positions among the open ones, scaled to maximum 1."""
        if self.independent:
            return np.ones(1)
        log_weight = log_or_minus_infinity(self.pmf[row]) - log_choose(len(self.pmf[row]) - 1)
        log_weight = log_weight[self.sure[row].sum() :]
        log_weight = log_weight[: np.flatnonzero(np.isfinite(log_weight))[-1] + 1]
        return np.exp(log_weight - log_weight.max())

    def parts(self, language: HiddenMarkovLanguage) -> Iterator[_Part]:
        """Groups of rows small enough for the memory of one pass, in order."""
        weights = [self.weights(row) for row in range(len(self.ids))]
        cells = [
            len(w) * (1 + n) * language._initial.size
            for w, n in zip(weights, self.target.sum(1), strict=True)
        ]
        group = (np.cumsum(cells) - 1) // _CELLS
        for g in np.unique(group):
            rows = np.flatnonzero(group == g)
            yield _Part(self, rows, [weights[row] for row in rows])


class _Part:
    """Some rows; each has one entry per level = number of selected open positions so far."""

    def __init__(self, seen: _Seen, rows: np.ndarray, weights: list[np.ndarray]) -> None:
        self.ids, self.target = seen.ids[rows], seen.target[rows]
        self.open, self.sure = seen.open[rows], seen.sure[rows]
        self.rate, self.independent = seen.rate, seen.independent
        levels = np.array([len(w) for w in weights])
        self.row = np.repeat(np.arange(len(rows)), levels)
        self.first = np.cumsum(levels) - levels
        self.last = self.first + levels - 1
        self.weight = np.concatenate(weights)

    def up(self, a: np.ndarray) -> np.ndarray:
        """Every entry moved to the next level (one more selected position)."""
        moved = np.zeros_like(a)
        moved[:, 1:] = a[:, :-1]
        moved[:, self.first] = 0.0
        return moved

    def down(self, b: np.ndarray) -> np.ndarray:
        """Every entry sees the value of the next level."""
        moved = np.zeros_like(b)
        moved[:, :-1] = b[:, 1:]
        moved[:, self.last] = 0.0
        return moved

    def scaled(self, a: np.ndarray) -> np.ndarray:
        """Divided by the sum over levels and states of the row."""
        total = np.add.reduceat(a.sum((0, 2)), self.first)
        require((total > 0).all(), "input_ids", "a row of probability 0", "what can occur")
        return a / total[self.row][:, None]

    def over_levels(self, a: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Sum of the entries of each of ``rows``, when ``a`` holds just their entries."""
        size = (self.last - self.first + 1)[rows]
        return np.add.reduceat(a, np.cumsum(size) - size, axis=1)


def _masked(language: HiddenMarkovLanguage, channel: _Channel, part: _Part) -> np.ndarray:
    """Distributions of the targets of some rows, row-major: [targets, vocab]."""
    table = evidence(language)
    width = part.ids.shape[1]
    entries = [np.flatnonzero(part.target[part.row, t]) for t in range(width)]
    a = np.zeros((len(language.blocks), len(part.row), table.shape[2]))
    a[:, part.first] = language._initial[:, None]
    before = []
    for t in range(width):
        before.append(a[:, entries[t]])
        stay, move = _observed(t, table, channel, part)
        now = a * stay if move is None else a * stay + part.up(a) * move
        a = part.scaled(now) @ language._transition
    q = np.zeros((*part.target.shape, language.vocabulary.size))
    b = np.broadcast_to(part.weight[:, None], a.shape)
    for t in reversed(range(width)):
        rows = np.flatnonzero(part.target[:, t])
        if len(rows):
            stay_open = part.independent | part.sure[part.row, t][:, None]
            behind = np.where(stay_open, b, part.down(b))[:, entries[t]]
            states = part.over_levels(before[t] * behind, rows)
            q[rows, t] = _reweighted(
                token_probabilities(language, states), part.ids[rows, t], channel
            )
        stay, move = _observed(t, table, channel, part)
        now = b * stay if move is None else b * stay + part.down(b) * move
        b = part.scaled(now @ language._transition.transpose(0, 2, 1))
    return q[part.target]


def _observed(
    t: int, table: np.ndarray, channel: _Channel, part: _Part
) -> tuple[np.ndarray, np.ndarray | None]:
    """Likelihood of the token seen at ``t``: not selected, and selected (one level up).

    Independent selection needs no levels: both cases together, and None.
    """
    kept = table[:, part.ids[:, t]]
    is_open = part.open[:, t][:, None]
    moved = channel.keep * kept + channel.blind[part.ids[:, t]][:, None]
    if part.independent:
        return np.where(is_open, (1 - part.rate) * kept + part.rate * moved, kept), None
    return kept[:, part.row], (moved * is_open)[:, part.row]


def _reweighted(tokens: np.ndarray, seen: np.ndarray, channel: _Channel) -> np.ndarray:
    """Times the likelihood of the token seen at the target itself, normalised."""
    q = tokens * channel.blind[seen][:, None]
    rows = np.arange(len(seen))
    q[rows, seen] += tokens[rows, seen] * channel.keep
    return q / q.sum(-1, keepdims=True)
