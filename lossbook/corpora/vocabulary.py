"""Token ids and the strings behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool, Int

from lossbook._require import require

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_UNIT = re.compile(r"\[[A-Z]+\]|(?:##)?\w+|[^\w\s]")


class Vocabulary:
    """A closed list of tokens; the five special tokens have the ids 0 to 4.

    A token that starts with ``##`` continues the word before it (WordPiece's convention).

    Args:
        tokens: every token once, the special tokens first, in the order of ``SPECIAL_TOKENS``.

    Raises:
        ValueError: the special tokens are not in front, or a token occurs twice or is empty.
    """

    pad_id, unk_id, cls_id, sep_id, mask_id = range(5)

    def __init__(self, tokens: Iterable[str]) -> None:
        self.tokens: tuple[str, ...] = tuple(tokens)
        self.size: int = len(self.tokens)
        self._id = {token: i for i, token in enumerate(self.tokens)}
        head = self.tokens[: len(SPECIAL_TOKENS)]
        require(head == SPECIAL_TOKENS, "tokens", head, f"to begin with {SPECIAL_TOKENS}")
        twice = [token for i, token in enumerate(self.tokens) if self._id[token] != i or not token]
        require(not twice, "tokens", twice, "every token once and none of them empty")
        self.special_ids = np.arange(len(SPECIAL_TOKENS))
        self.ordinary_ids = np.arange(len(SPECIAL_TOKENS), self.size)
        self._starts = np.array([self._starts_word(token) for token in self.tokens])

    @classmethod
    def from_words(cls, words: Iterable[str]) -> Vocabulary:
        """The special tokens followed by ``words`` (repetitions are dropped)."""
        return cls(dict.fromkeys((*SPECIAL_TOKENS, *words)))

    def __len__(self) -> int:
        return self.size

    def __contains__(self, token: str) -> bool:
        return token in self._id

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size} tokens)"

    @staticmethod
    def _starts_word(token: str) -> bool:
        return not token.startswith("##")

    def id_of(self, token: str) -> int:
        """The id of one token; a ``ValueError`` when it is not in the vocabulary."""
        require(token in self._id, "token", token, f"one of the {self.size} tokens")
        return self._id[token]

    def encode(self, text: str, *, specials: bool = True) -> Int[np.ndarray, " time"]:
        """Token ids of ``text``: lower-cased, cut at spaces and punctuation, longest piece first.

        A word that cannot be composed of pieces becomes ``[UNK]``.

        Args:
            text: any string; pieces written with ``##`` are understood too.
            specials: whether ``[MASK]`` and the like in the text mean the special tokens.

        Returns:
            int64 ids, without ``[CLS]`` and ``[SEP]``.
        """
        ids: list[int] = []
        for unit in _UNIT.findall(text):
            ids += [self._id[unit]] if specials and unit in SPECIAL_TOKENS else self._pieces(unit)
        return np.array(ids, dtype=np.int64)

    def _pieces(self, unit: str) -> list[int]:
        """Greedy longest match first, as WordPiece does it."""
        rest, ids = unit.lower(), []
        while rest not in ("", "##"):
            cuts = range(len(rest), 0, -1)
            piece = next((rest[:c] for c in cuts if rest[:c] in self._id), None)
            if piece is None:
                return [self.unk_id]
            ids.append(self._id[piece])
            rest = "##" + rest[len(piece) :]
        return ids or [self.unk_id]

    def decode(self, ids: Int[np.ndarray, " time"], *, specials: bool = True) -> str:
        """Readable text: pieces glued to their word, tokens separated by spaces.

        Args:
            ids: token ids of one row.
            specials: keep special tokens in the text; otherwise they are left out.
        """
        kept = ids if specials else ids[~np.isin(ids, self.special_ids)]
        return " ".join(self.tokens_of(kept)).replace(" ##", "")

    def tokens_of(self, ids: Int[np.ndarray, " time"]) -> list[str]:
        """The tokens as they stand in the vocabulary, pieces with their ``##``."""
        self.require_ids(ids, "ids")
        return [self.tokens[i] for i in ids]

    def word_starts(self, ids: Int[np.ndarray, "*batch time"]) -> Bool[np.ndarray, "*batch time"]:
        """True where a token begins a word, False where it continues one."""
        self.require_ids(ids, "ids")
        return self._starts[ids]

    def is_special(self, ids: Int[np.ndarray, "*batch time"]) -> Bool[np.ndarray, "*batch time"]:
        """True at ``[PAD]``, ``[UNK]``, ``[CLS]``, ``[SEP]`` and ``[MASK]``."""
        return ids < len(SPECIAL_TOKENS)

    def require_ids(self, ids: np.ndarray, argument: str) -> None:
        """Refuse ids outside the vocabulary, naming ``argument`` and the first bad id."""
        bad = ids[(ids < 0) | (ids >= self.size)]
        require(not bad.size, argument, bad[:1], f"token ids from 0 to {self.size - 1}")
