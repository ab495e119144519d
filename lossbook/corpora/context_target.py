"""Pairs of a context and a target, as rows that a decoder reads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from lossbook._require import require
from lossbook.corpora.base import check_batch
from lossbook.corpora.text import VALIDATION_SHARE
from lossbook.corpora.vocabulary import Vocabulary

FIELDS = ("context", "target")


class ContextTargets:
    """Rows ``[CLS] context [SEP] target [SEP]``, padded on the right.

    A pair that is too long loses the beginning of its context. A target that is too long even
    alone loses all of it and its own end, with the last ``[SEP]``, which would claim an end there.
    Pairs with the same context are in the same part of the split.

    Args:
        pairs: (context, target), as text.
        vocabulary: of the model that is to read them.
        name: for titles and records.

    Raises:
        ValueError: a target without a token, or fewer than two different contexts: one has to be
            kept for validation.
    """

    has_floor = False

    def __init__(
        self, pairs: Sequence[tuple[str, str]], vocabulary: Vocabulary, *, name: str = "pairs"
    ) -> None:
        self.name, self.vocabulary = name, vocabulary
        contexts = sorted({context for context, _ in pairs}, key=_digest)
        enough = "at least 2 different contexts, one of them for validation"
        require(len(contexts) >= 2, "pairs", len(contexts), enough)
        held = set(contexts[: max(1, round(VALIDATION_SHARE * len(contexts)))])
        coded = [[vocabulary.encode(text, specials=False) for text in pair] for pair in pairs]
        empty = [pair[1] for pair, (_, target) in zip(pairs, coded, strict=True) if not len(target)]
        require(not empty, "pairs", empty[:1], "a target with at least one token")
        self.split: dict[str, list[Any]] = {"train": [], "validation": []}
        for pair, ids in zip(pairs, coded, strict=True):
            self.split["validation" if pair[0] in held else "train"].append(ids)

    @classmethod
    def from_jsonl(
        cls, path: str | os.PathLike[str], vocabulary: Vocabulary, *, name: str | None = None
    ) -> ContextTargets:
        """A UTF-8 file with one JSON object a line, ``{"context": "...", "target": "..."}``.

        Other fields are ignored, and so are empty lines.

        Raises:
            ValueError: no such file, no line, bytes that are not UTF-8, or a line that is not
                such an object; the line is named by its number.
        """
        file = Path(path)
        require(file.is_file(), "data", str(path), "a file of JSON lines that exists")
        lines = file.read_bytes().split(b"\n")
        pairs = [_pair(file, n, line) for n, line in enumerate(lines, 1) if line.strip()]
        require(pairs, "data", str(path), "at least one line, not an empty file")
        return cls(pairs, vocabulary, name=name or file.name)

    def windows(self, length: int, split: str = "train") -> Int[np.ndarray, "pairs time"]:
        """All rows of one part, in the order of the file."""
        check_batch(1, length, 0, 0, 0, split)
        require(length >= 5, "length", length, "at least 5 ([CLS], a token, [SEP], a token, [SEP])")
        return np.stack([self._row(*pair, length) for pair in self.split[split]])

    def _row(self, context: np.ndarray, target: np.ndarray, length: int) -> np.ndarray:
        known, room = self.vocabulary, length - 3
        kept = context[max(0, len(context) + len(target) - room) :] if len(target) <= room else []
        parts = [[known.cls_id], kept, [known.sep_id], target, [known.sep_id]]
        row = np.concatenate(parts).astype(np.int64)[:length]
        return np.pad(row, (0, length - len(row)), constant_values=known.pad_id)

    def shortened(self, length: int) -> int:
        """How many pairs do not fit into rows of this length."""
        pairs = [pair for part in self.split.values() for pair in part]
        return sum(len(context) + len(target) > length - 3 for context, target in pairs)

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
        """Numbers of the pairs in the batch of the same arguments: the same in every epoch."""
        seed, part = check_batch(batch_size, length, seed, epoch, index, split)
        total = len(self.split[split])
        places = index * batch_size + np.arange(batch_size)
        laps = places // total
        rows = np.empty(batch_size, dtype=np.int64)
        for lap in np.unique(laps):
            order = np.random.default_rng([seed, part, epoch, int(lap)]).permutation(total)
            rows[laps == lap] = order[places[laps == lap] % total]
        return rows

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
        """Pairs in a random order that every epoch draws anew; equal arguments, equal rows."""
        chosen = self.rows(batch_size, length, seed=seed, epoch=epoch, index=index, split=split)
        require(length >= 5, "length", length, "at least 5 ([CLS], a token, [SEP], a token, [SEP])")
        return np.stack([self._row(*self.split[split][row], length) for row in chosen])

    def steps_per_epoch(self, batch_size: int, length: int, split: str = "train") -> int:
        """Batches until every pair was seen once."""
        return -(-len(self.split[split]) // batch_size)


def _pair(file: Path, number: int, line: bytes) -> tuple[str, str]:
    """The context and the target of one line; a ``ValueError`` names the line."""

    def refuse(got: str) -> ValueError:
        wanted = '{"context": "...", "target": "..."}'
        return ValueError(f"data: expected {wanted} in line {number} of {file}, got {got}")

    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02x}, which is not UTF-8"
        raise refuse(f"{byte}, at offset {error.start} of the line") from error
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(f"no JSON ({error})") from error
    if not isinstance(record, dict):
        raise refuse(f"{type(record).__name__}, not an object")
    for field in FIELDS:
        if not isinstance(record.get(field), str):
            missing = field not in record
            raise refuse(f"no {field!r}" if missing else f"{field!r} that is not a string")
    if not record["target"].strip():
        raise refuse("an empty target")
    return record["context"], record["target"]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
