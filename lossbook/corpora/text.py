"""Real text: the Python documentation on every machine, or any UTF-8 file or folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lossbook._require import require
from lossbook.corpora.base import SPLITS, check_batch
from lossbook.corpora.tokenizers import KINDS, train_tokenizer
from lossbook.corpora.vocabulary import Vocabulary

SUFFIXES = (".txt", ".md", ".rst", ".py", ".tex", ".csv", ".json", ".html", ".xml")

VALIDATION_SHARE = 0.1


class TextCorpus:
    """Documents cut into windows ``[CLS] ... [SEP]``, one part of them kept for validation.

    The split is by document and depends on the content of the documents alone: equal documents
    are on the same side, and the order or the names of files play no part. A corpus of a single
    document is cut in two instead, its end being for validation.

    Args:
        documents: name and text of every document.
        tokenizer: a `Vocabulary`, or ``"wordpiece"`` or ``"bpe"`` to train one on the training
            documents.
        vocab_size: size of the vocabulary when it is trained here.
        name: for titles and records.

    Raises:
        ValueError: no text at all, or a tokenizer of an unknown kind.
    """

    has_floor = False

    def __init__(
        self,
        documents: Mapping[str, str],
        tokenizer: Vocabulary | str = "wordpiece",
        *,
        vocab_size: int = 4096,
        name: str = "text",
    ) -> None:
        self.name = name
        self.documents = {key: text for key, text in documents.items() if text.strip()}
        require(self.documents, "documents", sorted(documents), "at least one that is not empty")
        self.split = _split(self.documents)
        if isinstance(tokenizer, str):
            require(tokenizer in KINDS, "tokenizer", tokenizer, f"a Vocabulary or one of {KINDS}")
            tokenizer = train_tokenizer(self.split["train"], tokenizer, vocab_size)
        self.vocabulary = tokenizer
        self._windows: dict[tuple[str, int], np.ndarray] = {}

    @classmethod
    def python_documentation(
        cls, tokenizer: Vocabulary | str = "wordpiece", *, vocab_size: int = 4096
    ) -> TextCorpus:
        """The language reference that CPython carries for ``help()``: some 460 kB of English.

        The text differs a little between versions of Python.
        """
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise ValueError(
                "python_documentation: expected CPython's pydoc_data.topics, got none "
                "(some distributions leave it out; TextCorpus.from_path reads any UTF-8 text)"
            ) from error
        name = "Python documentation"
        return cls(topics, tokenizer, vocab_size=vocab_size, name=name)

    @classmethod
    def from_path(
        cls,
        path: str | os.PathLike[str],
        tokenizer: Vocabulary | str = "wordpiece",
        *,
        vocab_size: int = 4096,
    ) -> TextCorpus:
        """One UTF-8 file, or all files of a folder whose names end like text files (`SUFFIXES`).

        Raises:
            ValueError: nothing there, no text in it, or a file that is not UTF-8 (named, with the
                offset of the first bad byte).
        """
        root = Path(path)
        require(root.exists(), "path", str(path), "a file or folder that exists")
        files = [root] if root.is_file() else _text_files(root)
        require(files, "path", str(path), f"a folder with files that end in {SUFFIXES}")
        documents = {str(file.relative_to(root.parent)): _read(file) for file in files}
        text = "".join(documents.values())
        require(text.strip(), "path", str(path), "text, not empty files only")
        return cls(documents, tokenizer, vocab_size=vocab_size, name=root.name)

    @cached_property
    def _ids(self) -> dict[str, list[np.ndarray]]:
        """The documents of each part as ids; ``[MASK]`` in a text is text, not a token."""
        return {
            part: [self.vocabulary.encode(text, specials=False) for text in texts]
            for part, texts in self.split.items()
        }

    def windows(self, length: int, split: str = "train") -> Int[np.ndarray, "windows time"]:
        """All examples of one part, in the order of the documents.

        A document of ``n`` tokens gives ``ceil(n / (length - 2))`` windows; the last one is moved
        back to be full, or padded when the document is shorter than a window.

        Args:
            length: ids per window, ``[CLS]`` and ``[SEP]`` included.
            split: ``"train"`` or ``"validation"``.
        """
        check_batch(1, length, 0, 0, 0, split)
        if (split, length) not in self._windows:
            rows = [row for ids in self._ids[split] for row in self._cut(ids, length - 2)]
            require(rows, "split", split, "a part with at least one token")
            self._windows[split, length] = np.stack(rows)
        return self._windows[split, length]

    def _cut(self, ids: np.ndarray, inner: int) -> list[np.ndarray]:
        last = max(0, len(ids) - inner)
        starts = [min(start, last) for start in range(0, len(ids), inner)]
        return [self._framed(ids[start : start + inner], inner) for start in starts]

    def _framed(self, ids: np.ndarray, inner: int) -> np.ndarray:
        row = np.full(inner + 2, self.vocabulary.pad_id)
        row[0], row[1 : len(ids) + 1] = self.vocabulary.cls_id, ids
        row[len(ids) + 1] = self.vocabulary.sep_id
        return row

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
        """Numbers of the windows in the batch of the same arguments: the same in every epoch."""
        seed, part = check_batch(batch_size, length, seed, epoch, index, split)
        total = len(self.windows(length, split))
        places = index * batch_size + np.arange(batch_size)
        laps = places // total
        rows = np.empty(batch_size, dtype=np.int64)
        for lap in np.unique(laps):
            rng = np.random.default_rng([seed, part, epoch, int(lap)])
            rows[laps == lap] = rng.permutation(total)[places[laps == lap] % total]
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
        """Windows in a random order that every epoch draws anew; equal arguments, equal rows.

        Within an epoch every window comes once before any comes twice.
        """
        chosen = self.rows(batch_size, length, seed=seed, epoch=epoch, index=index, split=split)
        return self.windows(length, split)[chosen]

    def steps_per_epoch(self, batch_size: int, length: int, split: str = "train") -> int:
        """Batches until every window was seen once."""
        return -(-len(self.windows(length, split)) // batch_size)


def _split(documents: Mapping[str, str]) -> dict[str, list[str]]:
    """Training and validation texts; documents sorted by a hash of their content."""
    texts = sorted(set(documents.values()), key=_digest)
    if len(texts) == 1:
        return dict(zip(SPLITS, _halves(texts[0]), strict=True))
    room = VALIDATION_SHARE * sum(map(len, texts))
    held: list[str] = []
    for text in texts:
        if len(text) <= room:
            held.append(text)
            room -= len(text)
    held = held or [min(texts, key=len)]
    return {"train": [text for text in texts if text not in held], "validation": held}


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _halves(text: str) -> tuple[list[str], list[str]]:
    """One text cut before its last tenth, at the end of a line or word where there is one."""
    cut = int(len(text) * (1 - VALIDATION_SHARE))
    for mark in ("\n", " "):
        found = text.rfind(mark, len(text) // 2, cut)
        if found > 0:
            return [text[: found + 1]], [text[found + 1 :]]
    return [text[:cut]], [text[cut:]]


def _text_files(folder: Path) -> list[Path]:
    """The text files below a folder, sorted, hidden ones left out."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )


def _read(file: Path) -> str:
    data = file.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        offset = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        raise ValueError(
            f"path: expected UTF-8 text, got byte 0x{data[offset]:02x} at offset {offset} of {file}"
        ) from error
