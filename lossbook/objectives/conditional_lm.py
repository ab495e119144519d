r"""The conditional language model: read a context, be scored on what follows it.

A row is ``[CLS] context target``; the loss is that of a causal model, at the tokens of the target
alone,

.. math::

    \mathcal L = \frac{1}{\sum_b |y_b|} \sum_b \sum_{t=1}^{|y_b|}
                 -\log p_\theta(y_{bt} \mid x_b, y_{b,<t})

(Hu et al. 2021, arXiv:2106.09685, equation 1, whose sum becomes a mean over all target tokens of
the batch; the authors' ``examples/NLG/src/model.py`` adds :math:`10^{-4}` to the denominator).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lossbook._require import require
from lossbook.corpora.floors import Floor, causal_floor
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown, TokenIds
from lossbook.objectives.causal_lm import shifted_cross_entropy


class ConditionalLM(Objective):
    """Causal language modelling of a target, given a context that is not scored.

    The context of a row ends with its first ``separator`` and whatever stands behind is target.
    A row without a separator is all context and has no target. Labels are unshifted, as in
    transformers: ``labels[:, t]`` is the token at t, and the loss compares it with
    ``logits[:, t - 1]``.

    Args:
        vocabulary: Where the ids come from.
        separator: A token, or its id: ``"."`` for the first sentence as context, ``"[SEP]"`` for
            rows ``[CLS] context [SEP] target [SEP]``.
        ends: Whether the ``[SEP]`` that ends a row is a target, so that the model learns to stop.
            None: with the separator ``"[SEP]"`` only. In a text of the embedded language it marks
            where the text was cut, which nobody can know.
        seed: Unused by the objective, which draws nothing.

    Raises:
        ValueError: A separator that the vocabulary does not have.
    """

    name = "conditional-lm"

    def __init__(
        self,
        vocabulary: TokenIds,
        *,
        separator: str | int = ".",
        ends: bool | None = None,
        duplicates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(vocabulary, duplicates=duplicates, seed=seed)
        known: Any = vocabulary
        self.separator = known.id_of(separator) if isinstance(separator, str) else separator
        inside = 0 <= self.separator < vocabulary.size
        require(inside, "separator", separator, "a token of the vocabulary")
        self.ends = self.separator == known.sep_id if ends is None else ends
        self._special = np.isin(np.arange(vocabulary.size), vocabulary.special_ids)

    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The ids as they are, and labels at the target.

        Returns:
            ``input_ids``, ``labels`` (-100 outside the target) and ``attention_mask``, each
            ``[B, T]`` of int64.
        """
        ids = self._checked(ids)
        labels = np.where(self._targets(ids), ids, IGNORE_INDEX)
        mask = (ids != self.vocabulary.pad_id).astype(np.int64)
        return {"input_ids": ids.copy(), "labels": labels, "attention_mask": mask}

    def _targets(self, ids: Int[np.ndarray, "batch time"]) -> Bool[np.ndarray, "batch time"]:
        """Behind the first separator; special tokens are none, but for the last one if it counts.

        Whether a token is a target depends on the tokens before it alone, so that being asked
        tells the ideal predictor nothing.
        """
        separators = ids == self.separator
        behind = np.cumsum(separators, axis=1) - separators > 0
        known: Any = self.vocabulary
        wanted = ~self._special[ids]
        if self.ends:
            wanted |= ids == known.sep_id
        return behind & wanted

    def loss(
        self,
        logits: Float[Tensor, "batch time vocab"],
        batch: Mapping[str, Any],
        *,
        denominator: float | Tensor | None = None,
        reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Cross-entropy of the target tokens, each under the logits one position before it.

        Args:
            logits: ``[B, T, V]``.
            batch: Has ``labels [B, T]``, -100 outside the target.
            denominator: Replaces the number of target tokens below the mean.
            reduction: ``"mean"`` over the target tokens of the batch, ``"sum"`` or ``"none"``
                (``[B, T]``, each loss at its own token).

        Returns:
            Nats per target token. A batch without one gives 0 with a zero gradient.
        """
        how: dict[str, Any] = {"denominator": denominator, "reduction": reduction}
        return shifted_cross_entropy(logits, batch["labels"], **how)

    def count(self, batch: Mapping[str, Any]) -> int:
        """The number of target tokens."""
        return int((torch.as_tensor(batch["labels"])[:, 1:] != IGNORE_INDEX).sum())

    def floor(
        self,
        language: HiddenMarkovLanguage,
        ids: Int[np.ndarray, "batch time"],
        batch: Mapping[str, Any],
    ) -> Floor:
        """What the ideal predictor scores at the targets: it knows the context and the past.

        Args:
            language: Where the texts come from.
            ids: ``[B, T]``, one text per row.
            batch: What ``batch`` made of them.

        Returns:
            :func:`~lossbook.corpora.floors.causal.causal_floor`, restricted to the targets.

        Raises:
            ValueError: Labels that are not the tokens themselves, or stand at special tokens.
        """
        labels = np.asarray(batch["labels"])
        targets = labels != IGNORE_INDEX
        same = labels.shape == ids.shape and (labels == ids)[targets].all()
        require(same, "labels", labels.shape, "the ids themselves, or -100")
        every = causal_floor(language, ids)
        outside = "targets inside the texts: special tokens have no floor"
        require(not (targets & ~every.targets).any(), "labels", "a special token", outside)
        chosen = targets[every.targets]
        return Floor(every.entropy[chosen], every.loss[chosen], targets)

    def show(self, text: str, rng: np.random.Generator | None = None) -> list[Shown]:
        """One text: each token, and the target token that is predicted there, if there is one."""
        places = super().show(text, rng)
        asked = [place.target for place in places[1:]] + [None]
        return [Shown(p.seen, p.seen, target) for p, target in zip(places, asked, strict=True)]
