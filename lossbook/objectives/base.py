"""What every objective shares: collation, seeds, and the place where targets are counted.

An objective turns token ids into a problem (what the model sees, what it must predict) and
scores the answer. The corruption is a pure function of the ids and of a random generator.
Everything that chooses the generator lives here, so that dynamic masking, static masking,
worker processes and resuming after a crash are one mechanism.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import get_worker_info

from lossbook._require import require
from lossbook.losses import cross_entropy

IGNORE_INDEX = -100


@runtime_checkable
class TokenIds(Protocol):
    """What an objective needs to know about a vocabulary."""

    size: int
    pad_id: int
    mask_id: int
    special_ids: np.ndarray
    ordinary_ids: np.ndarray


class Shown(NamedTuple):
    """One position of a corrupted text, as :meth:`Objective.show` returns it."""

    original: str
    seen: str
    target: str | None


class Objective(ABC):
    """Base class of the objectives.

    A subclass says how ids are corrupted, how logits are scored and how many targets a batch
    has. It is then a ``collate_fn`` of a torch ``DataLoader`` and a data collator of
    transformers.

    Random numbers come from ``SFC64`` generators seeded by (seed, epoch, worker, index):

    * ``objective(examples)`` counts its own calls since :meth:`set_epoch`, and asks torch for
      the number of the worker process it runs in (0 in the main process);
    * ``objective.generator(epoch, index)`` is the same stream for callers who know where they
      are, which is what makes a resumed run repeat itself.

    Without :meth:`set_epoch`, fresh worker processes would count from zero again and repeat
    every mask of the pass before. There the seed that torch draws for each pass takes the
    epoch's place.

    Args:
        vocabulary: Knows ``size``, ``pad_id``, ``mask_id``, ``special_ids``, ``ordinary_ids``.
        duplicates: ``None`` draws anew in every epoch (dynamic). ``n`` keeps ``n`` static
            corruptions of each example and takes the epoch modulo ``n``; what happens to an
            example then depends on nothing but (seed, epoch modulo n, example).
        seed: Where all random streams start.
    """

    name: str = "objective"
    # Whether the loss reads the logits of a position exactly where its own label is a target.
    # The head of a model then need not be computed anywhere else.
    at_labels: bool = False
    # Whether the loss reads the model's whole output instead of its logits. An objective of
    # several terms has a mapping as its ``count`` and as its ``floor``, one entry per term, takes
    # such a mapping as the denominator, and has ``terms``, which are the parts of its loss.
    whole_output: bool = False

    def __init__(
        self, vocabulary: TokenIds, *, duplicates: int | None = None, seed: int = 0
    ) -> None:
        require(duplicates is None or duplicates >= 1, "duplicates", duplicates,
                "None (dynamic) or at least 1")  # fmt: skip
        require(seed >= 0, "seed", seed, "an integer from 0 up")
        self.vocabulary = vocabulary
        self.duplicates = duplicates
        self.seed = seed
        self.epoch: int | None = None
        self.calls = 0

    @abstractmethod
    def corrupt(
        self, ids: Int[np.ndarray, "batch time"], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """The batch a model trains on, made from ids ``[B, T]``; the ids stay untouched."""

    @abstractmethod
    def loss(
        self,
        logits: Float[Tensor, "..."],
        batch: Mapping[str, Any],
        *,
        denominator: float | Tensor | None = None,
        reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """The loss in nats per target."""

    @abstractmethod
    def count(self, batch: Mapping[str, Any]) -> int | Mapping[str, int]:
        """The number of targets in a batch: the denominator of its loss, or of each term."""

    @abstractmethod
    def floor(self, language: Any, ids: Int[np.ndarray, "batch time"], batch: Mapping[str, Any]):
        """The lowest loss that any model can reach on this batch of a known language."""

    def set_epoch(self, epoch: int) -> None:
        """Start an epoch: masks depend on it, and calls count from zero again."""
        require(epoch >= 0, "epoch", epoch, "an integer from 0 up")
        self.epoch, self.calls = epoch, 0

    def generator(self, epoch: int, index: int) -> np.random.Generator:
        """The random stream of batch ``index`` of an epoch."""
        return self._stream(self._copy(epoch), 0, index)

    def corrupt_rows(
        self,
        ids: Int[np.ndarray, "batch time"],
        row_ids: Sequence[int] | np.ndarray | None = None,
        epoch: int = 0,
    ) -> dict[str, np.ndarray]:
        """Corrupt each row by a random stream of its own, whatever batch it is in.

        Padding at the end of a row is cut off first, so the width of the batch plays no role.

        Args:
            ids: ``[B, T]``.
            row_ids: ``[B]``, a number from 0 up for each example. By default a checksum of
                its ids, so equal texts are corrupted equally.
            epoch: Taken modulo ``duplicates``.
        """
        ids = self._checked(ids)
        used = self._lengths(ids)
        rows = [row[:length] for row, length in zip(ids, used, strict=True)]
        keys = [zlib.crc32(row.tobytes()) for row in rows] if row_ids is None else row_ids
        require(len(keys) == len(ids), "row_ids", len(keys), f"one for each of {len(ids)} rows")
        streams = (self._stream(self._copy(epoch), int(key)) for key in keys)
        pieces = [self.corrupt(row[None], rng) for row, rng in zip(rows, streams, strict=True)]
        return self._stack(pieces, ids.shape[1])

    def batch(
        self,
        ids: Int[np.ndarray, "batch time"],
        *,
        epoch: int = 0,
        index: int = 0,
        row_ids: Sequence[int] | np.ndarray | None = None,
    ) -> dict[str, Tensor]:
        """Batch ``index`` of an epoch as tensors; static where ``duplicates`` is set."""
        if self.duplicates is None:
            arrays = self.corrupt(ids, self.generator(epoch, index))
        else:
            arrays = self.corrupt_rows(ids, row_ids, epoch)
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def __call__(self, examples: Any) -> dict[str, Tensor]:
        """Collate examples: pad, corrupt, and hand over as tensors.

        Args:
            examples: A list of mappings with ``input_ids`` (and, for static corruption,
                ``row_id``), a list of 1-D lists, arrays or tensors, or a 2-D array or tensor.

        Returns:
            ``input_ids``, ``attention_mask`` and ``labels``, ``[B, T]`` of int64; also
            ``token_type_ids``, padded with 0, where the examples have them.
        """
        require(len(examples) > 0, "examples", examples, "at least one example")
        extra, row_ids = {}, None
        if isinstance(examples[0], Mapping):
            if "token_type_ids" in examples[0]:
                kinds = pad([example["token_type_ids"] for example in examples], 0)
                extra["token_type_ids"] = torch.from_numpy(kinds)
            if "row_id" in examples[0]:
                row_ids = [int(example["row_id"]) for example in examples]
            examples = [example["input_ids"] for example in examples]
        ids = pad(examples, self.vocabulary.pad_id)
        index, self.calls = self.calls, self.calls + 1
        epoch, worker = self._where()
        if self.duplicates is None:
            arrays = self.corrupt(ids, self._stream(epoch, worker, index))
        else:
            arrays = self.corrupt_rows(ids, row_ids, self.epoch or 0)
        return {key: torch.from_numpy(value) for key, value in arrays.items()} | extra

    def show(self, text: str, rng: np.random.Generator | None = None) -> list[Shown]:
        """Corrupt one text: for each token the original, what the model sees, and its target.

        Args:
            text: Encoded by the vocabulary, between ``[CLS]`` and ``[SEP]``.
            rng: The stream of the first batch of this epoch by default.
        """
        vocabulary: Any = self.vocabulary
        ids = np.array([vocabulary.cls_id, *vocabulary.encode(text), vocabulary.sep_id])
        rng = self.generator(self.epoch or 0, 0) if rng is None else rng
        batch = self.corrupt(ids[None], rng)
        seen, labels = batch["input_ids"][0], batch["labels"][0]
        targets = vocabulary.tokens_of(np.where(labels == IGNORE_INDEX, ids, labels))
        return [
            Shown(before, after, None if label == IGNORE_INDEX else target)
            for before, after, label, target in zip(
                vocabulary.tokens_of(ids), vocabulary.tokens_of(seen), labels, targets, strict=True
            )
        ]

    def _copy(self, epoch: int) -> int:
        return epoch if self.duplicates is None else epoch % self.duplicates

    def _stream(self, *where: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, *where]))

    def _where(self) -> tuple[int, int]:
        info = get_worker_info()
        if info is None:
            return self.epoch or 0, 0
        return (info.seed - info.id if self.epoch is None else self.epoch), info.id

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        require(ids.ndim == 2 and ids.dtype.kind in "iu", "ids", (ids.dtype, ids.shape),
                "integers [batch, time]")  # fmt: skip
        if ids.size:
            low, high, size = ids.min(), ids.max(), self.vocabulary.size
            require(low >= 0 and high < size, "ids", int(low if low < 0 else high),
                    f"ids of the vocabulary, 0 to {size - 1}")  # fmt: skip
        return ids.astype(np.int64, copy=False)

    def _lengths(self, ids: np.ndarray) -> np.ndarray:
        """Positions up to the last token that is no padding."""
        used = ids != self.vocabulary.pad_id
        return (
            np.where(used.any(1), ids.shape[1] - used[:, ::-1].argmax(1), 0)
            if ids.size
            else (np.zeros(len(ids), np.int64))
        )

    def _stack(self, pieces: list[dict[str, np.ndarray]], width: int) -> dict[str, np.ndarray]:
        fill = {"input_ids": self.vocabulary.pad_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        return {
            key: pad([piece[key][0] for piece in pieces], value, width)
            for key, value in fill.items()
        }


class AtLabels(Objective):
    """An objective whose logits answer for the label at their own position.

    The loss is a cross-entropy there, and every label but -100 is a target.
    """

    at_labels = True

    def loss(
        self,
        logits: Float[Tensor, "..."],
        batch: Mapping[str, Any],
        *,
        denominator: float | Tensor | None = None,
        reduction: str = "mean",
    ) -> Float[Tensor, "..."]:
        """Cross-entropy at the targets.

        Args:
            logits: ``[B, T, V]``, or ``[N, V]`` at the ``N`` targets alone, in the order of
                ``batch["labels"][batch["labels"] != -100]``.
            batch: Has ``labels [B, T]``, -100 where there is no target.
            denominator: Replaces the number of targets below the mean: the targets of all
                micro-batches of a step, or of all processes.
            reduction: ``"mean"`` over the targets of the batch, ``"sum"`` or ``"none"``.

        Returns:
            Nats per target. A batch without a target gives 0 with a zero gradient.

        Raises:
            ValueError: Logits and labels do not fit, or a label is outside the classes.
        """
        labels = batch["labels"]
        if logits.ndim == 2 and labels.ndim == 2:
            labels = labels[labels != IGNORE_INDEX]
        require(logits.shape[:-1] == labels.shape, "logits", tuple(logits.shape),
                f"{tuple(labels.shape)} as the labels, and the classes last")  # fmt: skip
        return cross_entropy(
            logits,
            labels,
            ignore_index=IGNORE_INDEX,
            reduction=reduction,
            denominator=denominator,
        )

    def count(self, batch: Mapping[str, Any]) -> int:
        """The number of labels that are targets."""
        return int((torch.as_tensor(batch["labels"]) != IGNORE_INDEX).sum())


def pad(
    rows: Sequence[Any] | np.ndarray | Tensor, fill: int, width: int | None = None
) -> Int[np.ndarray, "batch time"]:
    """Rows of unequal length as one array ``[B, T]`` of int64, filled up on the right.

    Args:
        rows: 1-D lists, arrays or tensors of integers, or one 2-D array or tensor.
        fill: What stands after the end of a row.
        width: ``T``; the longest row by default.
    """
    if isinstance(rows, np.ndarray | Tensor):
        table = np.asarray(rows)
        require(table.ndim == 2, "examples", table.shape, "an array [batch, time]")
        return _integers(table)
    lengths = np.array([len(row) for row in rows])
    filled = [row for row, length in zip(rows, lengths, strict=True) if length]
    flat = _integers(np.concatenate(filled)) if filled else np.zeros(0, np.int64)
    require(flat.ndim == 1, "examples", np.shape(filled[:1]), "1-D rows of ids")
    width = int(lengths.max()) if width is None else width
    if flat.size == len(rows) * width:
        return flat.reshape(len(rows), width)
    padded = np.full((len(rows), width), fill)
    padded[np.arange(width) < lengths[:, None]] = flat
    return padded


def _integers(values: np.ndarray) -> np.ndarray:
    require(values.dtype.kind in "iu", "examples", values.dtype, "integer ids")
    return values.astype(np.int64, copy=False)
