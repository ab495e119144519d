"""Tokens to ids and back."""

import numpy as np
import pytest

from lossbook.corpora import SPECIAL_TOKENS, HiddenMarkovLanguage, Vocabulary

VOCABULARY = Vocabulary.from_words(["the", "light", "##house", "un", "##kind", "##ly", "."])


def test_special_tokens_come_first_and_are_known_by_name():
    v = VOCABULARY
    assert v.tokens[:5] == SPECIAL_TOKENS
    assert (v.pad_id, v.unk_id, v.cls_id, v.sep_id, v.mask_id) == (0, 1, 2, 3, 4)
    assert v.special_ids.tolist() == [0, 1, 2, 3, 4]
    assert v.ordinary_ids.tolist() == list(range(5, v.size))
    assert v.special_ids.dtype == v.ordinary_ids.dtype == np.int64
    assert [v.id_of(token) for token in v.tokens] == list(range(v.size))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The lighthouse.", ["the", "light", "##house", "."]),
        ("unkindly light ##house", ["un", "##kind", "##ly", "light", "##house"]),
        ("the [MASK] .", ["the", "[MASK]", "."]),
        ("darkness", ["[UNK]"]),
        ("lighthousex", ["[UNK]"]),
        ("##", ["[UNK]", "[UNK]"]),
        ("  ", []),
    ],
)
def test_encode(text, tokens):
    assert VOCABULARY.tokens_of(VOCABULARY.encode(text)) == tokens


def test_special_tokens_in_a_text_can_be_ordinary_text():
    assert VOCABULARY.mask_id not in VOCABULARY.encode("[MASK]", specials=False)


def test_decode_glues_pieces():
    ids = VOCABULARY.encode("[CLS] the lighthouse . [SEP]")
    assert VOCABULARY.decode(ids) == "[CLS] the lighthouse . [SEP]"
    assert VOCABULARY.decode(ids, specials=False) == "the lighthouse ."
    assert VOCABULARY.word_starts(ids).tolist() == [True, True, True, False, True, True]


def test_round_trip_of_the_books_language():
    """Every text the language can produce survives, word by word and text by text."""
    language = HiddenMarkovLanguage.default()
    v = language.vocabulary
    for word in language.words:
        assert v.tokens_of(v.encode("".join(word).replace("##", ""))) == list(word)
    for row in language.batch(32, 64):
        assert (v.encode(v.decode(row)) == row).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="tokens: expected to begin with"):
        Vocabulary(["a", "b"])
    with pytest.raises(ValueError, match="every token once"):
        Vocabulary([*SPECIAL_TOKENS, "a", "a"])
    with pytest.raises(ValueError, match="ids: expected token ids from 0 to 11"):
        VOCABULARY.decode(np.array([3, 99]))
    with pytest.raises(ValueError, match="ids"):
        VOCABULARY.tokens_of(np.array([-1]))
    with pytest.raises(ValueError, match="token"):
        VOCABULARY.id_of("dark")
