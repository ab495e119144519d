"""What every corpus offers."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from lossbook._require import require
from lossbook.corpora.vocabulary import Vocabulary

SPLITS = ("train", "validation")


@runtime_checkable
class Corpus(Protocol):
    """A source of batches of token ids.

    Attributes:
        name: for titles and records.
        vocabulary: the tokens behind the ids.
        has_floor: whether the true distribution is known, so that exact floors exist.
    """

    name: str
    vocabulary: Vocabulary
    has_floor: bool

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
        """Rows ``[CLS] ... [SEP]`` of ``length`` ids; the same arguments give the same rows."""
        ...

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
        """Ids of the examples in the batch of the same arguments."""
        ...


def check_batch(
    batch_size: int, length: int, seed: int, epoch: int, index: int, split: str
) -> tuple[int, int]:
    """Refuse bad arguments of ``batch``; otherwise ``(seed, number of the split)``."""
    require(batch_size >= 1, "batch_size", batch_size, "at least 1")
    require(length >= 3, "length", length, "at least 3 ([CLS], one token, [SEP])")
    for argument, value in (("seed", seed), ("epoch", epoch), ("index", index)):
        require(value >= 0, argument, value, "an integer of at least 0")
    require(split in SPLITS, "split", split, f"one of {SPLITS}")
    return seed, SPLITS.index(split)


def frame(
    texts: Int[np.ndarray, "batch inner"], vocabulary: Vocabulary
) -> Int[np.ndarray, "batch time"]:
    """Put ``[CLS]`` in front of every row and ``[SEP]`` behind it."""
    return np.pad(
        texts, ((0, 0), (1, 1)), constant_values=((0, 0), (vocabulary.cls_id, vocabulary.sep_id))
    )
