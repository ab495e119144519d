"""The book's language: what the tables promise, and that samples follow the arrays."""

import numpy as np
import pytest

from lossbook.corpora import Corpus, HiddenMarkovLanguage, Vocabulary, causal_floor
from lossbook.corpora.story import STAGES, TOPICS

LANGUAGE = HiddenMarkovLanguage.default()
TINY = HiddenMarkovLanguage.tiny()
V = LANGUAGE.vocabulary


def column(token: str) -> np.ndarray:
    return LANGUAGE.emission[:, V.id_of(token)]


def test_rows_are_framed_texts():
    assert isinstance(LANGUAGE, Corpus)
    rows = LANGUAGE.batch(7, 33)
    assert rows.shape == (7, 33)
    assert rows.dtype == np.int64
    assert (rows[:, 0] == V.cls_id).all()
    assert (rows[:, -1] == V.sep_id).all()
    assert (rows[:, 1:-1] >= 5).all()


def test_equal_arguments_give_equal_rows_and_others_do_not():
    base = dict(seed=1, epoch=2, index=3, split="train")
    rows = LANGUAGE.batch(8, 40, **base)
    assert (rows == LANGUAGE.batch(8, 40, **base)).all()
    for change in ({"seed": 2}, {"epoch": 3}, {"index": 4}, {"split": "validation"}):
        other = LANGUAGE.batch(8, 40, **(base | change))
        assert not (rows[:, None] == other[None]).all(-1).any()
    # (seed, epoch, index) are not confused with one another, nor with the split
    seen = {
        LANGUAGE.batch(1, 40, seed=s, epoch=e, index=i, split=split).tobytes()
        for s in (0, 1)
        for e in (0, 1)
        for i in (0, 1)
        for split in ("train", "validation")
    }
    assert len(seen) == 16


def test_documents_have_ids_of_their_own():
    rows = [LANGUAGE.rows(8, 40, epoch=e, index=i) for e in (0, 1) for i in (0, 1)]
    assert len(np.unique(rows)) == 32
    assert (rows[0] == LANGUAGE.rows(8, 40)).all()


def test_topics_never_mix_and_stages_only_move_forward():
    _, path = LANGUAGE.sample(200, 150, np.random.default_rng(0), states=True)
    topic = np.array([s[0] for s in LANGUAGE.states])[path]
    stage = np.array([STAGES.index(s[1]) for s in LANGUAGE.states])[path]
    assert (topic == topic[:, :1]).all()
    assert set(topic[:, 0]) == set(TOPICS)
    assert set(np.unique(np.diff(stage, axis=1))) == {0, 1}
    assert (stage[:, 0] == 0).all()
    assert (stage[:, -1] == 3).mean() > 0.9


def test_stages_change_at_full_stops_only():
    ids, path = LANGUAGE.sample(200, 150, np.random.default_rng(1), states=True)
    stage = np.array([STAGES.index(s[1]) for s in LANGUAGE.states])[path]
    moved = np.diff(stage, axis=1) == 1
    assert moved.sum() > 400
    assert (ids[:, :-1][moved] == LANGUAGE.sentence_end_id).all()


def test_samples_follow_the_arrays():
    """Frequencies of 200 000 draws against the tiny language's arrays: five standard errors."""
    n = 200_000
    ids, path = TINY.sample(n, 3, np.random.default_rng(0), states=True)
    expected = TINY.initial
    for t in range(3):
        for drawn, p in ((path, expected), (ids, expected @ TINY.emission)):
            found = np.bincount(drawn[:, t], minlength=len(p)) / n
            assert (np.abs(found - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()
        expected = expected @ TINY.transition
    pair = np.bincount(path[:, 0] * 14 + path[:, 1], minlength=196).reshape(14, 14) / n
    p = TINY.initial[:, None] * TINY.transition
    assert (np.abs(pair - p) <= 5 * np.sqrt(p * (1 - p) / n)).all()


def test_synonyms_are_interchangeable():
    """In every state the two stand in the ratio 60 to 40, and they exist."""
    assert len(LANGUAGE.synonyms) > 15
    for first, second in LANGUAGE.synonyms:
        assert column(first).any()
        assert np.abs(0.4 * column(first) - 0.6 * column(second)).max() < 1e-15


def test_every_token_belongs_to_a_word_and_is_used():
    in_words = {piece for word in LANGUAGE.words for piece in word}
    assert in_words == set(V.tokens[5:])
    assert (LANGUAGE.emission[:, 5:].max(0) > 0).all()
    assert {len(word) for word in LANGUAGE.words} == {1, 2, 3}


def test_pieces_form_the_words_of_the_tables():
    """In a long sample every group of pieces is a declared word, and every word occurs."""
    ids = LANGUAGE.sample(400, 300, np.random.default_rng(2))
    seen = set()
    for row in ids:
        starts = np.flatnonzero(LANGUAGE.word_starts(row))
        groups = np.split(row, starts)[1:-1]
        seen |= {tuple(group.tolist()) for group in groups}
    assert {tuple(V.tokens[i] for i in word) for word in seen} == set(LANGUAGE.words)


@pytest.mark.parametrize(
    ("unit", "text"), [("phrase", "once upon a time"), ("entity", "anna moor")]
)
def test_units_are_kept_together(unit, text):
    ids = V.encode(f"the pilot sails . {text} lives in the lighthouse . {text}")
    words = LANGUAGE.unit_starts(ids)
    assert (words == LANGUAGE.word_starts(ids)).all()
    units = LANGUAGE.unit_starts(ids[None], unit)[0]
    n = len(text.split())
    assert words.sum() - units.sum() == 2 * (n - 1)
    assert units[4:].tolist()[:n] == [True] + [False] * (n - 1)
    incomplete = V.encode("once upon the anna sails")
    assert LANGUAGE.unit_starts(incomplete, unit).all()


def test_phrases_and_entities_occur():
    ids = LANGUAGE.sample(400, 100, np.random.default_rng(3))
    for tokens in (*LANGUAGE.phrases, *LANGUAGE.entities):
        assert LANGUAGE._found(ids, tokens).any()


def test_the_language_has_long_range_information():
    """Late in a text the topic is known: the floor falls by more than a fifth of a nat."""
    ids = LANGUAGE.batch(128, 64)
    floor = causal_floor(LANGUAGE, ids)
    assert 2.0 < floor.mean_entropy < 2.6
    entropy = floor.grid(floor.entropy)
    assert np.nanmean(entropy[:, 1:5]) > np.nanmean(entropy[:, 20:]) + 0.2


def test_blocks_are_found_in_a_full_matrix():
    again = HiddenMarkovLanguage(TINY.initial, TINY.transition, TINY.emission, TINY.vocabulary)
    assert [len(block) for block in again.blocks] == [7, 7]
    ids = TINY.sample(5, 6, np.random.default_rng(0))
    assert np.abs(causal_floor(again, ids).loss - causal_floor(TINY, ids).loss).max() < 1e-12


def broken(**changes: np.ndarray) -> HiddenMarkovLanguage:
    parts = dict(initial=TINY.initial, transition=TINY.transition, emission=TINY.emission)
    return HiddenMarkovLanguage(**(parts | changes), vocabulary=TINY.vocabulary)


def test_bad_arrays_are_named():
    with pytest.raises(ValueError, match="initial: expected rows that sum to 1"):
        broken(initial=TINY.initial * 0.9)
    with pytest.raises(ValueError, match="transition: expected probabilities"):
        broken(transition=TINY.transition - 0.1)
    with pytest.raises(ValueError, match="emission: expected probabilities"):
        broken(emission=TINY.emission * np.nan)
    with pytest.raises(ValueError, match="special tokens"):
        broken(emission=np.roll(TINY.emission, 1, axis=1)[:, ::-1].copy())
    with pytest.raises(ValueError, match="transition"):
        HiddenMarkovLanguage(TINY.initial, TINY.blocks[:1], TINY.emission, TINY.vocabulary)
    with pytest.raises(ValueError, match="words"):
        HiddenMarkovLanguage(
            TINY.initial, TINY.blocks, TINY.emission, TINY.vocabulary, words=(("moon",),)
        )


def test_bad_arguments_are_named():
    for argument, value in [("split", "test"), ("epoch", -1), ("seed", -1), ("index", -1)]:
        with pytest.raises(ValueError, match=argument):
            LANGUAGE.batch(2, 10, **{argument: value})
    with pytest.raises(ValueError, match="length"):
        LANGUAGE.batch(2, 2)
    with pytest.raises(ValueError, match="batch_size"):
        LANGUAGE.batch(0, 10)
    with pytest.raises(ValueError, match="unit"):
        LANGUAGE.unit_starts(np.array([5]), "sentence")


def test_a_word_with_two_places_is_one_token():
    """Ambiguity is wanted: some tokens are a word here and a part of a name there."""
    assert len(Vocabulary.from_words(["a", "b", "a"])) == 7
    assert "apple" in {t for unit in LANGUAGE.entities for t in unit} & set(
        TOPICS["farm"].things.split()
    )


def test_a_part_that_is_everything_is_the_language():
    whole = LANGUAGE.part()
    assert np.abs(whole.transition - LANGUAGE.transition).max() <= 1e-15
    assert np.abs(whole.emission - LANGUAGE.emission).max() <= 1e-15
    assert np.abs(whole.initial - LANGUAGE.initial).max() <= 1e-15


def test_a_part_by_topic_is_the_language_given_its_topic():
    """P(text | topic in part) = P(text and topic in part) / P(topic in part), on real texts."""
    topics = ("sea", "castle")
    part = LANGUAGE.part(topics)
    kept = np.array([state[0] in topics for state in LANGUAGE.states])
    ids, states = part.sample(20, 12, np.random.default_rng(0), states=True)
    assert {part.states[s][0] for s in states.ravel()} == set(topics)
    for row in ids:
        a = LANGUAGE.initial * kept * LANGUAGE.emission[:, row[0]]
        for token in row[1:]:
            a = (a @ LANGUAGE.transition) * LANGUAGE.emission[:, token]
        exact = np.log(a.sum() / LANGUAGE.initial[kept].sum())
        assert abs(-causal_floor(part, row[None]).loss.sum() - exact) <= 1e-10


def test_stages_are_told_in_the_order_asked_for():
    order = STAGES[::-1]
    part = LANGUAGE.part(stages=order)
    assert np.abs(part.transition.sum(1) - 1).max() <= 1e-12
    _, states = part.sample(50, 60, np.random.default_rng(0), states=True)
    stage = np.array([[order.index(part.states[s][1]) for s in row] for row in states])
    assert (np.diff(stage, axis=1) >= 0).all()
    assert (np.diff(stage, axis=1) <= 1).all()
    assert (stage[:, 0] == 0).all()
    assert (stage[:, -1] == 3).any()
    # within a stage nothing changed: the same words in the same grammar
    for name in STAGES:
        old = [i for i, s in enumerate(LANGUAGE.states) if s[:2] == ("sea", name)]
        new = [i for i, s in enumerate(part.states) if s[:2] == ("sea", name)]
        assert np.abs(part.emission[new] - LANGUAGE.emission[old]).max() <= 1e-15
        inner = [s[2] != "stop" for s in (LANGUAGE.states[i] for i in old)]
        before, after = (m[np.ix_(r, r)] for m, r in ((LANGUAGE.transition, old),
                                                      (part.transition, new)))  # fmt: skip
        assert np.abs(before - after)[inner].max() <= 1e-15
    same = LANGUAGE.part(("sea",), ("quest", "trouble"))
    assert {s[1] for s in same.states} == {"quest", "trouble"}


def test_parts_that_do_not_exist_are_named():
    for arguments, match in [
        ((("moon",),), "topics"),
        (((),), "topics"),
        ((("sea", "sea"),), "topics"),
        ((None, ("middle",)), "stages"),
        ((None, ("quest", "quest")), "stages"),
    ]:
        with pytest.raises(ValueError, match=match):
            LANGUAGE.part(*arguments)
    with pytest.raises(ValueError, match="described"):
        TINY.part()
