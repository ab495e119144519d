"""WordPiece and byte-level BPE, trained with the `tokenizers` library on any text."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from lossbook._require import require
from lossbook.corpora.vocabulary import SPECIAL_TOKENS, Vocabulary

KINDS = ("wordpiece", "bpe")

_ALPHABET = 1000  # the most frequent characters; others become [UNK] in WordPiece


class SubwordVocabulary(Vocabulary):
    """A `Vocabulary` whose pieces were learned from text.

    Args:
        tokenizer: a tokenizer whose special tokens have the ids 0 to 4.
        kind: ``"wordpiece"`` or ``"bpe"``.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str) -> None:
        require(kind in KINDS, "kind", kind, f"one of {KINDS}")
        self.kind, self.tokenizer = kind, tokenizer
        table = tokenizer.get_vocab()
        super().__init__(sorted(table, key=table.__getitem__))
        if kind == "bpe":
            surfaces = [
                token if i < 5 else tokenizer.decode([i]) for i, token in enumerate(self.tokens)
            ]
            self._opens = np.array([not _in_word(surface[:1]) for surface in surfaces])
            self._closes = np.array([not _in_word(surface[-1:]) for surface in surfaces])

    def word_starts(self, ids: Int[np.ndarray, "*batch time"]) -> Bool[np.ndarray, "*batch time"]:
        """True where a token begins a word, False where it continues one.

        A byte-level piece continues a word when it begins with a letter, a digit or part of a
        character, and the piece before it ends with one.
        """
        if self.kind == "wordpiece":
            return super().word_starts(ids)
        self.require_ids(ids, "ids")
        starts = self._opens[ids]
        starts[..., :1] = True
        starts[..., 1:] |= self._closes[ids[..., :-1]]
        return starts

    def encode(self, text: str, *, specials: bool = True) -> Int[np.ndarray, " time"]:
        """Token ids of ``text``, without ``[CLS]`` and ``[SEP]``.

        Args:
            text: any string.
            specials: whether ``[MASK]`` and the like in the text mean the special tokens.
        """
        self.tokenizer.encode_special_tokens = not specials
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        return np.array(ids, dtype=np.int64)

    def decode(self, ids: Int[np.ndarray, " time"], *, specials: bool = True) -> str:
        """The text again: exactly for BPE; for WordPiece lower-cased and without its spacing."""
        self.require_ids(ids, "ids")
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=not specials)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one JSON file, at once or not at all."""
        content = {"kind": self.kind, "tokenizer": json.loads(self.tokenizer.to_str())}
        scratch = Path(f"{os.fspath(path)}.part")
        scratch.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        scratch.replace(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SubwordVocabulary:
        """Read what `save` wrote; a ``ValueError`` names a file that is something else."""
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            tokenizer = Tokenizer.from_str(json.dumps(content["tokenizer"]))
            return cls(tokenizer, content["kind"])
        except FileNotFoundError:
            raise ValueError(f"path: expected a saved tokenizer, got no file {path}") from None
        except Exception as error:
            raise ValueError(f"path: expected a saved tokenizer, got {path} ({error})") from error

    def __getstate__(self) -> dict[str, str]:
        return {"kind": self.kind, "tokenizer": self.tokenizer.to_str()}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__init__(Tokenizer.from_str(state["tokenizer"]), state["kind"])


def train_tokenizer(
    texts: Iterable[str],
    kind: str = "wordpiece",
    vocab_size: int = 4096,
    *,
    lowercase: bool = True,
) -> SubwordVocabulary:
    """Learn subword pieces from texts; the same texts give the same vocabulary.

    Both kinds merge the most frequent pair of neighbouring pieces again and again (Sennrich,
    Haddow and Birch 2016, algorithm 1). ``"bpe"`` starts from bytes and loses nothing;
    ``"wordpiece"`` starts from characters, marks the inside of words with ``##`` and encodes by
    the longest match first, as BERT does (the library trains it by the same merges).

    Args:
        texts: the documents to learn from.
        kind: ``"wordpiece"`` or ``"bpe"``.
        vocab_size: the largest size of the vocabulary, special tokens and alphabet included.
        lowercase: fold case and strip accents (WordPiece only; BPE keeps every byte).

    Raises:
        ValueError: an unknown kind, no text, or a size too small for the alphabet.
    """
    require(kind in KINDS, "kind", kind, f"one of {KINDS}")
    documents = [text for text in texts if text.strip()]
    require(documents, "texts", documents, "at least one text that is not empty")
    train = _wordpiece if kind == "wordpiece" else _bpe
    return SubwordVocabulary(train(documents, vocab_size, lowercase), kind)


def _in_word(character: str) -> bool:
    return character.isalnum() or character in ("_", "\N{REPLACEMENT CHARACTER}")


def _bpe(texts: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    _require_room(vocab_size, alphabet)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _wordpiece(texts: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """The trainer numbers ``##a``, ``##b``, ... in random order, and ties depend on the numbers.

    Declaring them beforehand makes the outcome the same in every process.
    """
    draft = _empty_wordpiece(None, lowercase)
    start, inside = _characters(draft, texts)
    _require_room(vocab_size, [*start, *inside])
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIAL_TOKENS, *start, *(f"##{c}" for c in inside)],
        initial_alphabet=sorted({*start, *inside}),
        limit_alphabet=len({*start, *inside}),
        min_frequency=2,
        show_progress=False,
    )
    draft.train_from_iterator(texts, trainer)
    pieces = sorted(draft.get_vocab().items(), key=lambda item: item[1])
    tokenizer = _empty_wordpiece({piece: i for i, (piece, _) in enumerate(pieces)}, lowercase)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def _empty_wordpiece(pieces: dict[str, int] | None, lowercase: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(pieces or {}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def _characters(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[str], list[str]]:
    """The characters at the start of words and inside of words, sorted, the rare ones dropped."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        words.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    seen: Counter[str] = Counter()
    for word, n in words.items():
        for character in word:
            seen[character] += n
    kept = set(sorted(seen, key=lambda c: (-seen[c], c))[:_ALPHABET])
    start = {word[0] for word in words} & kept
    inside = {c for word in words for c in word[1:]} & kept
    return sorted(start), sorted(inside)


def _require_room(vocab_size: int, alphabet: list[str]) -> None:
    least = len(SPECIAL_TOKENS) + len(alphabet)
    require(vocab_size >= least, "vocab_size", vocab_size, f"at least {least} for the alphabet")
