r"""Causal language modelling: predict each token from those before it.

The chain rule makes one question of a text into one question per token,

.. math::

    \log p_\theta(x_1 \dots x_n) = \sum_{t=1}^{n} \log p_\theta(x_t \mid x_{<t}), \qquad
    \mathcal L = -\frac{1}{N} \sum_{b,\,t} \log p_\theta(x_{bt} \mid x_{b,<t}) ,

with :math:`N` the number of targets of the *whole batch* (Bengio et al. 2003, section 2;
Radford et al. 2018, equation 1). Labels stand at their own token, as in transformers: the one
shift between a prediction and its target happens in :func:`shifted_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from lossbook._require import require
from lossbook.corpora.floors import Floor, causal_floor
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.losses import cross_entropy
from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown, TokenIds

DIRECTIONS = ("forward", "backward", "both")


class CausalLM(Objective):
    r"""The left-to-right objective of GPT, its mirror image, or both.

    A row ``[CLS] x_1 ... x_n [SEP]`` has the targets :math:`x_1 \dots x_n`: the first is predicted
    from ``[CLS]``, the others from all that stands before them. Special tokens and padding are
    no targets, so that :func:`lossbook.corpora.floors.causal.causal_floor` has the same ones.

    * ``"forward"``: :math:`\prod_t p(x_t \mid x_{<t})`;
    * ``"backward"``: the row is read from its other end, ``[SEP] x_n ... x_1 [CLS]``, and the
      loss is the same: :math:`\prod_t p(x_t \mid x_{>t})`;
    * ``"both"``: a fair coin per row. One model learns both directions, and its first token,
      ``[CLS]`` or ``[SEP]``, says which. The expected loss is half of ELMo's sum over two models
      (Peters et al. 2018, section 3.1).

    Args:
        vocabulary: Where the ids come from; for anything but the plain forward objective it must
            also know ``cls_id`` and ``sep_id``.
        direction: ``"forward"``, ``"backward"`` or ``"both"``.
        ends: Whether the token that ends a text is a target too: ``[SEP]`` forward, ``[CLS]``
            backward. For rows that end where a document ends; a window that was cut out of one
            would teach a wrong end.
        isolate: Whether rows may hold several documents, each closed by ``[SEP]`` (see
            :func:`pack`), that must not see one another: the batch then has ``documents``, which
            :class:`~lossbook.models.decoder.Decoder` understands. Forward only.
        seed: Where the random stream of ``"both"`` starts.

    Raises:
        ValueError: An unknown direction.
    """

    name = "causal-lm"

    def __init__(
        self,
        vocabulary: TokenIds,
        *,
        direction: str = "forward",
        ends: bool = False,
        isolate: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(vocabulary, seed=seed)
        require(direction in DIRECTIONS, "direction", direction, f"one of {DIRECTIONS}")
        require(not isolate or direction == "forward", "isolate", direction,
                "the direction forward")  # fmt: skip
        self.direction, self.ends, self.isolate = direction, ends, isolate
        silent = {*vocabulary.special_ids.tolist(), vocabulary.pad_id}
        if ends:
            known: Any = vocabulary
            silent -= {known.sep_id, known.cls_id}
        self._silent = np.isin(np.arange(vocabulary.size), list(silent))

    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The rows in reading order, and at each token itself as its label.

        Returns:
            ``input_ids``, ``labels`` (unshifted, -100 at special tokens and padding),
            ``attention_mask`` and, where they are isolated, ``documents``; each ``[B, T]`` of
            int64.

        Raises:
            ValueError: The ids are not integers ``[B, T]`` of the vocabulary.
        """
        ids = self._checked(ids)
        input_ids, labels, attention_mask = np.empty((3, *ids.shape), np.int64)
        input_ids[:] = mirrored(ids, self._lengths(ids), self._turned(len(ids), rng))
        labels[:] = np.where(self._silent[input_ids], IGNORE_INDEX, input_ids)
        attention_mask[:] = input_ids != self.vocabulary.pad_id
        batch = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
        if self.isolate:
            known: Any = self.vocabulary
            batch["documents"] = document_numbers(input_ids, known.sep_id)
        return batch

    def _turned(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Which rows are read from behind."""
        if self.direction == "both":
            return rng.random(rows) < 0.5
        return np.full(rows, self.direction == "backward")

    def loss(
        self,
        logits: Float[Tensor, "batch time vocab"],
        batch: Mapping[str, Any],
        *,
        denominator: float | Tensor | None = None,
        reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Cross-entropy of each token under the logits one position before it.

        See :func:`shifted_cross_entropy`; ``batch`` has ``labels [B, T]``.
        """
        return shifted_cross_entropy(
            logits, batch["labels"], denominator=denominator, reduction=reduction
        )

    def count(self, batch: Mapping[str, Any]) -> int:
        """The number of labels that have a position before them."""
        return int((torch.as_tensor(batch["labels"])[:, 1:] != IGNORE_INDEX).sum())

    def floor(
        self,
        language: HiddenMarkovLanguage,
        ids: Int[np.ndarray, "batch time"],
        batch: Mapping[str, Any],
    ) -> Floor:
        """What the ideal predictor of these targets scores, each row in its own direction.

        Args:
            language: Where the texts come from.
            ids: ``[B, T]``, one text per row.
            batch: What ``batch`` made of them.

        Returns:
            Targets in the order of the batch, in which rows may be mirrored.

        Raises:
            ValueError: ``ends`` is on: where a text of the language is cut says nothing about it.
        """
        require(not self.ends, "ends", self.ends, "False, for a language without ends")
        seen = np.asarray(batch["input_ids"])
        turned = self._is_turned(seen)
        lengths = self._lengths(self._checked(ids))
        require(np.array_equal(mirrored(ids, lengths, turned), seen), "batch", seen.shape,
                "what corrupt() made of these ids")  # fmt: skip
        entropy, loss = np.full((2, *ids.shape), np.nan)
        for direction, rows in (("forward", ~turned), ("backward", turned)):
            if rows.any():
                found = causal_floor(language, ids[rows], direction)
                entropy[rows], loss[rows] = found.grid(found.entropy), found.grid(found.loss)
        entropy, loss = (mirrored(grid, lengths, turned) for grid in (entropy, loss))
        targets = ~np.isnan(loss)
        targets[:, :1] = False  # no prediction stands before it
        return Floor(entropy[targets], loss[targets], targets)

    def _is_turned(self, seen: np.ndarray) -> np.ndarray:
        if self.direction == "both":
            known: Any = self.vocabulary
            return seen[:, 0] == known.sep_id
        return np.full(len(seen), self.direction == "backward")

    def show(self, text: str, rng: np.random.Generator | None = None) -> list[Shown]:
        """One text in reading order: each token, and the token that is to be predicted there."""
        places = super().show(text, rng)
        asked = [place.target for place in places[1:]] + [None]
        return [
            Shown(place.seen, place.seen, target)
            for place, target in zip(places, asked, strict=True)
        ]


def shifted_cross_entropy(
    logits: Float[Tensor, "batch time vocab"],
    labels: Int[Tensor, "batch time"],
    *,
    denominator: float | Tensor | None = None,
    reduction: str = "mean",
) -> Float[Tensor, "..."]:
    r"""Cross-entropy of ``labels[:, t + 1]`` under ``logits[:, t]``.

    .. math:: \mathcal L = \frac1N \sum_b \sum_{t=1}^{T-1} [y_{b,t+1} \ne -100]
              \left(\log Z_{bt} - z_{b,t,y_{b,t+1}}\right)

    Args:
        logits: ``[B, T, V]``; those of the last position predict nothing that is known.
        labels: ``[B, T]``, each at its own token, -100 where there is no target; the first column
            has no prediction and is not looked at.
        denominator: Replaces the number of targets :math:`N` below the mean.
        reduction: ``"mean"`` over the targets of the batch, ``"sum"``, or ``"none"``: ``[B, T]``
            with the loss of each token at that token, 0 where there is none.

    Returns:
        Nats per target. A batch without a target gives 0 with a zero gradient.

    Raises:
        ValueError: Logits and labels do not fit, or a label is outside the classes.
    """
    require(logits.shape[:-1] == labels.shape, "logits", tuple(logits.shape),
            f"{tuple(labels.shape)} as the labels, and the classes last")  # fmt: skip
    loss = cross_entropy(
        logits[:, :-1],
        labels[:, 1:],
        ignore_index=IGNORE_INDEX,
        reduction=reduction,
        denominator=denominator,
    )
    return F.pad(loss, (1, 0)) if reduction == "none" else loss


def mirrored(
    grid: Any, lengths: Int[np.ndarray, " batch"], turned: Bool[np.ndarray, " batch"]
) -> Any:
    """``grid [B, T]`` with the first ``lengths[b]`` entries of the turned rows reversed."""
    place = np.arange(grid.shape[1])
    back = lengths[:, None] - 1 - place
    order = np.where(turned[:, None] & (back >= 0), back, place)
    return np.take_along_axis(grid, order, axis=1)


def pack(
    documents: Sequence[Int[np.ndarray, "_"]],
    length: int,
    separator_id: int,
    pad_id: int = 0,
) -> Int[np.ndarray, "windows time"]:
    """Documents one after the other, each closed by a separator, cut into windows.

    No token is lost or doubled, and only the last window has padding (Radford et al. 2019 and
    Brown et al. 2020, appendix B, train on such windows).

    Args:
        documents: 1-D arrays of ids without the separator and without padding.
        length: ``T``, tokens per window.
        separator_id: closes each document, the last one too.
        pad_id: fills up the last window.

    Raises:
        ValueError: A document contains the separator or padding, so that it could not be told
            from the frame.
    """
    require(length >= 1, "length", length, "at least 1")
    for i, ids in enumerate(documents):
        clean = not np.isin(ids, [separator_id, pad_id]).any()
        require(clean, "documents", f"number {i}", "no separator and no padding inside")
    closed = [np.append(ids, separator_id) for ids in documents]
    stream = np.concatenate(closed).astype(np.int64) if closed else np.zeros(0, np.int64)
    return np.pad(stream, (0, -len(stream) % length), constant_values=pad_id).reshape(-1, length)


def document_numbers(
    ids: Int[np.ndarray, "windows time"], separator_id: int
) -> Int[np.ndarray, "windows time"]:
    """Which document of its row each token belongs to, from 0; a separator closes its own."""
    closed = np.cumsum(ids == separator_id, axis=1)
    return np.pad(closed[:, :-1], ((0, 0), (1, 0)))
