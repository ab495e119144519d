"""Real text: windows, the split, and files that are not what they should be."""

import sys

import numpy as np
import pytest

from lossbook.corpora import Corpus, TextCorpus

SENTENCES = [f"Number {i} is {'even' if i % 2 == 0 else 'odd'}, said the clerk." for i in range(60)]


@pytest.fixture(scope="module")
def documentation() -> TextCorpus:
    return TextCorpus.python_documentation(vocab_size=1500)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpus")
    for k in range(12):
        (root / f"part{k}.txt").write_text(" ".join(SENTENCES[5 * k : 5 * k + 5]), encoding="utf-8")
    (root / "picture.png").write_bytes(b"\x89PNG\xff")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "secret.txt").write_text("hidden", encoding="utf-8")
    return root


def test_python_documentation(documentation):
    assert isinstance(documentation, Corpus)
    assert not documentation.has_floor
    rows = documentation.batch(16, 64)
    assert rows.shape == (16, 64)
    assert rows.dtype == np.int64
    v = documentation.vocabulary
    assert (rows[:, 0] == v.cls_id).all()
    ends = rows.shape[1] - 1 - (rows == v.pad_id).sum(1)
    assert (rows[np.arange(16), ends] == v.sep_id).all()
    assert len(documentation.windows(64)) > 1000
    assert (rows == v.unk_id).mean() < 0.01


def test_windows_hold_the_whole_text(documentation):
    """The windows of a document, overlap removed, are the document."""
    v = documentation.vocabulary
    windows = documentation.windows(50, "validation")
    position = 0
    for ids in documentation._ids["validation"]:
        count = -(-len(ids) // 48)
        rows = [
            row[(row != v.cls_id) & (row != v.sep_id) & (row != v.pad_id)]
            for row in windows[position : position + count]
        ]
        whole = np.concatenate([*rows[:-1], rows[-1][-((len(ids) - 1) % 48 + 1) :]])
        assert (whole == ids).all()
        if len(ids) >= 48:
            assert (windows[position : position + count] != v.pad_id).all()
        position += count
    assert position == len(windows)


def test_an_epoch_shows_every_window_once(documentation):
    total, size = len(documentation.windows(64, "validation")), 32
    steps = documentation.steps_per_epoch(size, 64, "validation")
    seen = np.concatenate(
        [documentation.rows(size, 64, index=i, split="validation") for i in range(steps)]
    )
    assert sorted(seen[:total]) == list(range(total))
    assert steps * size - total < size
    other = documentation.rows(size, 64, epoch=1, split="validation")
    assert (other != seen[:size]).any()


def test_rows_name_the_windows_in_every_epoch(documentation):
    """Static masking relies on it: the same number is the same text."""
    for epoch in (0, 1):
        rows = documentation.rows(8, 64, epoch=epoch, index=3)
        batch = documentation.batch(8, 64, epoch=epoch, index=3)
        assert (documentation.windows(64)[rows] == batch).all()
        assert (documentation.batch(8, 64, epoch=epoch, index=3) == batch).all()


def test_the_split_shares_no_text_and_ignores_order_and_names(documentation):
    train, held = (documentation.split[part] for part in ("train", "validation"))
    assert not set(train) & set(held)
    share = sum(map(len, held)) / sum(map(len, train + held))
    assert 0.02 < share <= 0.1
    turned = dict(reversed(documentation.documents.items()))
    again = TextCorpus({f"new {k}": t for k, t in turned.items()}, documentation.vocabulary)
    assert again.split == documentation.split
    twins = TextCorpus({"a": "one two", "b": "one two", "c": "three"}, documentation.vocabulary)
    assert sorted(twins.split["train"] + twins.split["validation"]) == ["one two", "three"]


def test_a_folder_of_text(folder):
    corpus = TextCorpus.from_path(folder, "bpe", vocab_size=400)
    assert corpus.name == folder.name
    assert len(corpus.documents) == 12
    text = "".join(corpus.split["train"] + corpus.split["validation"])
    assert sorted(text) == sorted("".join(corpus.documents.values()))
    short = corpus.batch(4, 200)
    assert (short[:, -1] == corpus.vocabulary.pad_id).all()


def test_a_single_file_is_cut_in_two(tmp_path):
    path = tmp_path / "story.md"
    path.write_text("\ufeff" + "\n".join(SENTENCES), encoding="utf-8")
    corpus = TextCorpus.from_path(str(path), "bpe", vocab_size=400)
    train, held = corpus.split["train"][0], corpus.split["validation"][0]
    assert train + held == "\n".join(SENTENCES)
    assert train.endswith("\n")
    assert 0.05 < len(held) / len(train + held) < 0.15
    decoded = corpus.vocabulary.decode(corpus.windows(64)[0], specials=False)
    assert train.startswith(decoded)


def test_words_like_special_tokens_stay_text(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("[MASK] and [PAD] are words here. " * 30, encoding="utf-8")
    corpus = TextCorpus.from_path(path, "bpe", vocab_size=300)
    assert corpus.vocabulary.mask_id not in corpus.windows(32)


def test_bad_files_are_named(tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9 noir")
    with pytest.raises(ValueError, match=r"byte 0xe9 at offset 3 of .*latin\.txt"):
        TextCorpus.from_path(latin)
    latin.write_bytes(b"\xef\xbb\xbfcaf\xe9")
    with pytest.raises(ValueError, match="byte 0xe9 at offset 6"):
        TextCorpus.from_path(tmp_path)
    latin.write_bytes(b" \n")
    with pytest.raises(ValueError, match="path: expected text, not empty"):
        TextCorpus.from_path(latin)
    with pytest.raises(ValueError, match="path: expected a file or folder that exists"):
        TextCorpus.from_path(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="path: expected a folder with files"):
        TextCorpus.from_path(tmp_path / "empty")


def test_bad_arguments_are_named(documentation):
    with pytest.raises(ValueError, match="documents"):
        TextCorpus({})
    with pytest.raises(ValueError, match="tokenizer"):
        TextCorpus({"a": "some text"}, "unigram")
    with pytest.raises(ValueError, match="split"):
        documentation.batch(2, 10, split="test")


def test_a_python_without_its_documentation_is_told_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(ValueError, match=r"pydoc_data\.topics, got none"):
        TextCorpus.python_documentation()
