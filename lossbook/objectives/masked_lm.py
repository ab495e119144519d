r"""Masked language modelling: hide some tokens, predict them from the others.

Some positions :math:`M` of a text :math:`x` are selected. Each selected token is replaced by
``[MASK]`` (80 %), by a random token (10 %) or by itself (10 %), which gives :math:`\tilde x`,
and the loss is

.. math::

    \mathcal L = \frac{1}{|M|} \sum_{i \in M} -\log p_\theta(x_i \mid \tilde x)

with :math:`M` the selected positions of the *whole batch* (Devlin et al. 2019, section 3.1
and appendix A; the denominator as in BERT's ``run_pretraining.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lossbook._require import require
from lossbook.corpora.floors import Floor, masked_floor
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.objectives.base import IGNORE_INDEX, AtLabels, TokenIds

SELECTIONS = ("bernoulli", "count", "rounding")
RANDOM_TOKENS = ("ordinary", "all")


class MaskedLM(AtLabels):
    r"""The masked-LM objective of BERT, RoBERTa and transformers' collator.

    Special tokens and padding are never selected. How many of the others are depends on
    ``selection``; with :math:`r` the rate and :math:`n` a row's length without padding
    (special tokens do count towards it):

    * ``"bernoulli"``: each token on its own with probability :math:`r`, exactly
      (transformers' ``DataCollatorForLanguageModeling``);
    * ``"count"``: :math:`\min(\text{max\_predictions}, \max(1, \operatorname{round}(rn)))`
      tokens, so at least one even at rate 0. ``round`` is Python's, as in BERT's
      ``create_pretraining_data.py``: 2.5 becomes 2 and 3.5 becomes 4;
    * ``"rounding"``: :math:`\lfloor rn + u \rfloor` tokens with one
      :math:`u \sim U[0, 1)` per row (fairseq's ``mask_tokens_dataset.py``, which leaves the
      protection of special tokens to its caller).

    Of a given number every subset is equally likely; a row with fewer candidates gives all.

    Args:
        vocabulary: Where the ids come from.
        rate: :math:`r \in [0, 1]`.
        selection: ``"bernoulli"``, ``"count"`` or ``"rounding"``.
        replacement: Probabilities of ``[MASK]``, a random token and the token itself. One
            uniform draw per selected token decides between the three.
        random_tokens: Random tokens are uniform over the ``"ordinary"`` ones (fairseq) or over
            ``"all"`` of the vocabulary, special tokens included (BERT). Either way the draw may
            hit the original token.
        max_predictions: BERT's cap per row, for ``selection="count"`` only.
        duplicates: ``None`` for dynamic masking; ``n`` for ``n`` static masks per example
            (BERT's ``dupe_factor``).
        seed: Where the random streams start.

    Raises:
        ValueError: A rate outside [0, 1], probabilities that do not sum to 1, an unknown law.
    """

    name = "masked-lm"

    def __init__(
        self,
        vocabulary: TokenIds,
        *,
        rate: float = 0.15,
        selection: str = "bernoulli",
        replacement: Sequence[float] = (0.8, 0.1, 0.1),
        random_tokens: str = "ordinary",
        max_predictions: int | None = None,
        duplicates: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(vocabulary, duplicates=duplicates, seed=seed)
        require(0 <= rate <= 1, "rate", rate, "a probability, from 0 to 1")
        require(selection in SELECTIONS, "selection", selection, f"one of {SELECTIONS}")
        require(len(replacement) == 3 and min(replacement) >= 0
                and abs(sum(replacement) - 1) <= 1e-9, "replacement", replacement,
                "three probabilities (mask, random, same) that sum to 1")  # fmt: skip
        require(random_tokens in RANDOM_TOKENS, "random_tokens", random_tokens,
                f"one of {RANDOM_TOKENS}")  # fmt: skip
        require(max_predictions is None or (selection == "count" and max_predictions >= 1),
                "max_predictions", max_predictions,
                'None, or at least 1 together with selection="count"')  # fmt: skip
        self.rate = rate
        self.selection = selection
        self.replacement = tuple(replacement)
        self.random_tokens = random_tokens
        self.max_predictions = max_predictions
        everything = np.arange(vocabulary.size)
        self.random_ids = vocabulary.ordinary_ids if random_tokens == "ordinary" else everything
        require(len(self.random_ids) > 0 or replacement[1] == 0, "vocabulary", vocabulary.size,
                "an ordinary token to draw as the random one")  # fmt: skip
        self._protected = np.isin(everything, [*vocabulary.special_ids, vocabulary.pad_id])

    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Select, replace, and remember the originals.

        Returns:
            ``input_ids``, ``labels`` (the original token at selected positions, -100 elsewhere)
            and ``attention_mask`` (0 on padding), each ``[B, T]`` of int64.

        Raises:
            ValueError: The ids are not integers ``[B, T]`` of the vocabulary.
        """
        ids = self._checked(ids)
        selected = self.select(ids, rng)
        originals = ids.ravel()[selected]
        # one block of memory: three would be given back to the system and fetched again
        input_ids, labels, attention_mask = np.empty((3, *ids.shape), np.int64)
        input_ids[:], labels[:] = ids, IGNORE_INDEX
        attention_mask[:] = ids != self.vocabulary.pad_id
        input_ids.ravel()[selected] = self.replace(originals, rng)
        labels.ravel()[selected] = originals
        return {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}

    def select(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> Int[np.ndarray, " targets"]:
        """Positions of the targets in the flattened ids, in order."""
        if self.selection == "bernoulli":
            drawn = np.flatnonzero(bernoulli(ids.shape, self.rate, rng))
            return drawn[~self._protected[ids.ravel()[drawn]]]
        numbers = self.target_numbers((ids != self.vocabulary.pad_id).sum(1), rng)
        return np.flatnonzero(subsets(~self._protected[ids], numbers, rng))

    def target_numbers(
        self, lengths: Int[np.ndarray, " batch"], rng: np.random.Generator
    ) -> Int[np.ndarray, " batch"]:
        """How many tokens the laws "count" and "rounding" want in rows of these lengths."""
        if self.selection == "rounding":
            return np.floor(self.rate * lengths + rng.random(len(lengths))).astype(np.int64)
        cap = self.max_predictions or np.inf  # np.rint rounds halves to even, as Python does
        return np.minimum(cap, np.maximum(1, np.rint(self.rate * lengths))).astype(np.int64)

    def replace(
        self, tokens: Int[np.ndarray, " targets"], rng: np.random.Generator
    ) -> Int[np.ndarray, " targets"]:
        """What the model sees in the place of selected tokens."""
        mask, random, _ = self.replacement
        u = rng.random(tokens.size)
        seen = np.where(u < mask, self.vocabulary.mask_id, tokens)
        swapped = np.flatnonzero((mask <= u) & (u < mask + random))
        if swapped.size:
            seen[swapped] = self.random_ids[rng.integers(len(self.random_ids), size=swapped.size)]
        return seen

    def floor(
        self,
        language: HiddenMarkovLanguage,
        ids: Int[np.ndarray, "batch time"],
        batch: Mapping[str, Any],
    ) -> Floor:
        """What the ideal predictor of these targets scores, given the corruption of this objective.

        Args:
            language: Where the texts come from.
            ids: ``[B, T]`` before the corruption.
            batch: What ``batch`` made of them.

        Returns:
            See :func:`lossbook.corpora.floors.masked.masked_floor`.
        """
        return masked_floor(
            language,
            ids,
            np.asarray(batch["input_ids"]),
            np.asarray(batch["labels"]),
            rate=self.rate,
            selection=self.selection,
            replacement=self.replacement,
            random_ids=self.random_ids,
            max_predictions=self.max_predictions,
        )


def bernoulli(
    shape: tuple[int, ...], rate: float, rng: np.random.Generator
) -> Bool[np.ndarray, "..."]:
    """True with probability ``rate``, independently.

    A uniform number is compared with the rate. Its first 16 binary digits decide it except
    where they equal those of the rate; further digits are drawn only there.
    """
    first, rest = divmod(rate * 2**16, 1)
    digits = rng.integers(2**16, size=shape, dtype=np.uint16)
    below = digits < first
    ties = np.flatnonzero(digits == first)
    below.ravel()[ties] = rng.random(ties.size) < rest
    return below


def subsets(
    candidates: Bool[np.ndarray, "batch time"],
    sizes: Int[np.ndarray, " batch"],
    rng: np.random.Generator,
) -> Bool[np.ndarray, "batch time"]:
    """In each row ``sizes`` of the candidates, all of them where there are fewer.

    Every position draws a number, and the candidates with the smallest are taken. Where equal
    numbers leave that open, the row draws again, so every subset stays equally likely.
    """
    if not candidates.size:
        return candidates.copy()
    sizes = np.minimum(sizes, candidates.sum(1))
    keys = rng.integers(2**32, size=candidates.shape, dtype=np.uint32)
    keys[~candidates] = 2**32 - 1
    most = max(1, sizes.max())
    smallest = np.sort(np.partition(keys, most - 1, axis=1)[:, :most], axis=1)
    last = smallest[np.arange(len(sizes)), np.maximum(sizes, 1) - 1]
    chosen = candidates & (keys <= last[:, None]) & (sizes > 0)[:, None]
    tied = np.flatnonzero(chosen.sum(1) != sizes)
    if tied.size:
        chosen[tied] = subsets(candidates[tied], sizes[tied], rng)
    return chosen
