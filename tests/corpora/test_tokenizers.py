"""Trained tokenizers: nothing lost, the same in every process, safe on disk."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from lossbook.corpora import SPECIAL_TOKENS, SubwordVocabulary, train_tokenizer
from lossbook.corpora.tokenizers import KINDS

TEXTS = [
    "The lighthouse keeper lights the lamp.\nThe keeper sleeps; the lighthouse stands.",
    "def light(house):\n    return house.lamp  # naïve façade, 灯台 😀",
] * 3


@pytest.fixture(scope="module", params=KINDS)
def vocabulary(request) -> SubwordVocabulary:
    return train_tokenizer(TEXTS, request.param, 400)


def test_special_tokens_have_their_ids(vocabulary):
    assert vocabulary.tokens[:5] == SPECIAL_TOKENS
    assert vocabulary.encode("[CLS] [MASK]")[[0, -1]].tolist() == [2, 4]
    assert vocabulary.encode("lamp").dtype == np.int64
    assert vocabulary.size <= 400


def test_special_tokens_in_a_text_can_be_ordinary_text(vocabulary):
    assert not np.isin(vocabulary.encode("[MASK] [PAD]", specials=False), [0, 2, 3, 4]).any()
    assert vocabulary.encode("[MASK]").tolist() == [4]


def test_bpe_loses_nothing():
    vocabulary = train_tokenizer(TEXTS, "bpe", 400)
    for text in [*TEXTS, "  two  spaces\t\n", "unseen: ÄÖÜ Ωμέγα \x00 end", ""]:
        assert vocabulary.decode(vocabulary.encode(text, specials=False)) == text


def test_wordpiece_loses_case_and_spacing_only():
    vocabulary = train_tokenizer(TEXTS, "wordpiece", 400)
    for text in TEXTS:
        ids = vocabulary.encode(text)
        assert vocabulary.unk_id not in ids
        assert (vocabulary.encode(vocabulary.decode(ids)) == ids).all()
    assert vocabulary.decode(vocabulary.encode("The LIGHTHOUSE.")) == "the lighthouse ."
    assert vocabulary.encode("ωμέγα").tolist() == [vocabulary.unk_id]
    cased = train_tokenizer(TEXTS, "wordpiece", 400, lowercase=False)
    assert cased.decode(cased.encode("The lamp.")) == "The lamp ."


def test_words_begin_where_they_begin(vocabulary):
    text = "The lighthouse keeper lights the lamp."
    ids = vocabulary.encode(text)
    assert vocabulary.word_starts(ids).sum() == 7
    pieces = vocabulary.encode("lamphouses")
    assert len(pieces) > 1
    assert vocabulary.word_starts(pieces[None]).tolist() == [[True] + [False] * (len(pieces) - 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_other_processes_learn_the_same(kind):
    """Hash tables differ from process to process; the vocabulary must not."""
    code = (
        "from lossbook.corpora import train_tokenizer; from pydoc_data.topics import topics;"
        f"print(ascii(train_tokenizer(sorted(topics.values())[:20], {kind!r}, 900).tokens))"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
        for _ in range(2)
    }
    assert len(runs) == 1


def test_saved_and_pickled_vocabularies_are_the_same(vocabulary, tmp_path):
    path = tmp_path / "tokenizer.json"
    vocabulary.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]
    for again in (SubwordVocabulary.load(path), pickle.loads(pickle.dumps(vocabulary))):
        assert again.tokens == vocabulary.tokens
        assert again.kind == vocabulary.kind
        ids = vocabulary.encode(TEXTS[1])
        assert (again.encode(TEXTS[1]) == ids).all()
        assert (again.word_starts(ids) == vocabulary.word_starts(ids)).all()
        assert again.decode(ids) == vocabulary.decode(ids)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="kind"):
        train_tokenizer(TEXTS, "unigram")
    with pytest.raises(ValueError, match="texts"):
        train_tokenizer(["", "  "])
    for kind in KINDS:
        with pytest.raises(ValueError, match="vocab_size: expected at least"):
            train_tokenizer(TEXTS, kind, 10)
    with pytest.raises(ValueError, match="no file"):
        SubwordVocabulary.load(tmp_path / "missing.json")
    cut = tmp_path / "cut.json"
    cut.write_text('{"kind": "bpe", "tok', encoding="utf-8")
    with pytest.raises(ValueError, match=r"path: expected a saved tokenizer, got .*cut\.json"):
        SubwordVocabulary.load(cut)
