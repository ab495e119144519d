"""What the floors share: their result, the texts of a batch, the tables of the recursions."""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma

import numpy as np
from jaxtyping import Bool, Float

from lossbook._require import require
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage


@dataclass(frozen=True)
class Floor:
    """What the ideal predictor knows and scores, per target in row-major order.

    Attributes:
        entropy: entropy of the ideal predictor's distribution, nats.
        loss: minus its log-probability of the true token, nats.
        targets: where the targets stand in the batch.
        log_probs: the distribution itself, when asked for (``-inf`` for impossible tokens).
    """

    entropy: Float[np.ndarray, " targets"]
    loss: Float[np.ndarray, " targets"]
    targets: Bool[np.ndarray, "batch time"]
    log_probs: Float[np.ndarray, "targets vocab"] | None = None

    @property
    def mean_entropy(self) -> float:
        """Mean over the targets; 0 when there is none."""
        return float(self.entropy.mean()) if self.entropy.size else 0.0

    @property
    def mean_loss(self) -> float:
        """What a perfect model scores on this batch; 0 when there is no target."""
        return float(self.loss.mean()) if self.loss.size else 0.0

    def grid(self, values: Float[np.ndarray, " targets"]) -> Float[np.ndarray, "batch time"]:
        """Values of the targets at their places in the batch, NaN elsewhere."""
        grid = np.full(self.targets.shape, np.nan)
        grid[self.targets] = values
        return grid


class Texts:
    """The texts of a batch without their frame, moved to the left edge."""

    def __init__(self, language: HiddenMarkovLanguage, ids: np.ndarray) -> None:
        language.vocabulary.require_ids(ids, "ids")
        self.inside = ~language.vocabulary.is_special(ids)
        self.length = self.inside.sum(1)
        self.framed = (ids != language.vocabulary.pad_id).sum(1)
        width = int(self.length.max(initial=0))
        require(width, "ids", ids.shape, "at least one token that is not special")
        self._columns = self.inside.argmax(1)[:, None] + np.arange(width)
        self.valid = np.arange(width) < self.length[:, None]
        whole = (np.diff(self.inside.astype(np.int8), axis=1) == 1).sum(1) + self.inside[:, 0] <= 1
        require(
            whole.all(), "ids", f"row {whole.argmin()}", "one text per row, no special token inside"
        )
        self.ids = np.where(self.valid, self.align(ids), language.vocabulary.pad_id)

    def align(self, grid: np.ndarray) -> np.ndarray:
        """The columns of the texts, moved to the left edge."""
        columns = np.minimum(self._columns, grid.shape[1] - 1)
        return np.take_along_axis(grid, columns, axis=1)


def evidence(language: HiddenMarkovLanguage) -> np.ndarray:
    """``E`` as [blocks, vocab, states]; special tokens (the frame) say nothing: ones."""
    table = language._emission.copy()
    table[:, language.vocabulary.special_ids] = 1.0
    return table


def token_probabilities(language: HiddenMarkovLanguage, weights: np.ndarray) -> np.ndarray:
    """From states [blocks, rows, states] to tokens [rows, vocab]."""
    q = np.zeros((weights.shape[1], language.vocabulary.size))
    for states, (used, emission) in zip(weights, language._spoken, strict=True):
        q[:, used] += states @ emission
    return q


def log_or_minus_infinity(q: np.ndarray) -> np.ndarray:
    """Logarithm with ``log 0 = -inf`` and no warning."""
    return np.log(q, out=np.full_like(q, -np.inf), where=q > 0)


def entropy_of(q: np.ndarray) -> np.ndarray:
    """Entropy of the last axis in nats, with ``0 log 0 = 0``."""
    return -(q * np.log(np.where(q > 0, q, 1.0))).sum(-1)


def log_choose(n: int) -> np.ndarray:
    """Logarithms of the binomial coefficients ``n`` over ``0 .. n``."""
    log_factorial = np.array([lgamma(k + 1) for k in range(n + 1)])
    return log_factorial[-1] - log_factorial - log_factorial[::-1]
