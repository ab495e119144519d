"""The floor of sentence pairs against enumeration: every document, split, target and place."""

import itertools
from collections import defaultdict
from functools import cache

import numpy as np
import pytest

from lossbook.corpora import HiddenMarkovLanguage, Vocabulary
from lossbook.corpora.floors import pair_floor, sentence_lengths, topic_floor
from lossbook.corpora.floors.base import entropy_of
from lossbook.objectives import NextSentence, SentenceOrder

TEXT, ROOM, TARGET = 7, 6, 4  # tokens of a document, of a pair, and what a pair must reach
TASKS = {"next-sentence": NextSentence, "sentence-order": SentenceOrder}


def small(kind: str) -> HiddenMarkovLanguage:
    """Two topics of two stages; a sentence is "w ." or "w w .".

    In "mixed" a state says the full stop or another word, so that no state is sure to end a
    sentence, and "." alone may be one.
    """
    #         word  word2  stop | word  stop
    block = np.array(
        [
            [0.0, 0.6, 0.4, 0.0, 0.0],
            [0.0, 0.0, 1.0, 0.0, 0.0],
            [0.7, 0.0, 0.0, 0.3, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0],
            [0.0, 0.0, 0.0, 1.0, 0.0],
        ]
    )
    stop = [0, 0, 0, 1]
    second = [0.2, 0.5, 0.0, 0.3] if kind == "mixed" else [0.3, 0.7, 0.0, 0.0]
    topics = [
        [[p, 1 - p, 0, 0], second, stop, [q, 0, 1 - q, 0], stop]
        for p, q in ((0.9, 0.2), (0.3, 0.6))
    ]
    emission = np.pad(np.array([row for topic in topics for row in topic], float), ((0, 0), (5, 0)))
    initial = np.zeros(10)
    initial[[0, 3, 5]] = 0.5, 0.1, 0.4
    words = Vocabulary.from_words("abc.")
    return HiddenMarkovLanguage(initial, [block, block.copy()], emission, words)


KINDS = {kind: small(kind) for kind in ("plain", "mixed")}


# --- the oracle: nothing but sums over everything ------------------------------------------------


@cache
def documents(kind):
    """Every document of ``TEXT`` tokens and its probability."""
    language = KINDS[kind]
    move, say = language.transition, language.emission
    found = {(): language.initial}  # P(text, state of the next token)
    for t in range(TEXT):
        longer = {}
        for text, state in found.items():
            for token in range(5, 9):
                p = state * say[:, token]
                if p.any():
                    longer[(*text, token)] = p @ move if t + 1 < TEXT else p
        found = longer
    return {text: p.sum() for text, p in found.items()}


def ends(text):
    return [i + 1 for i, token in enumerate(text) if token == 8]


def targets(short):
    return {t: short / (TARGET - 1) + (t == TARGET) * (1 - short) for t in range(2, TARGET + 1)}


def chunk(text, target):
    """Ends of the sentences of the first run with at least ``target`` tokens."""
    inner = [e for e in ends(text) if e < target]
    return [*inner, next(e for e in ends(text) if e >= target)]


@cache
def foreign(kind, a, target, tries):
    """P(B) of a segment from another document, one place after the other."""
    last, found = TEXT - (ROOM - a), defaultdict(float)
    missed = 0.0
    for text, p in documents(kind).items():
        for place in range(last + 1):
            start = 0 if place == 0 else next((e for e in ends(text) if e >= place), TEXT)
            if start <= last:
                found[segment(text, start, target - a)] += p / (last + 1)
            else:
                missed += p / (last + 1)
    tried = sum(missed**n for n in range(tries))
    found = {b: p * tried for b, p in found.items()}
    for text, p in documents(kind).items():
        b = segment(text, 0, target - a)
        found[b] = found.get(b, 0.0) + p * missed**tries
    return found


def segment(text, start, wanted):
    return text[start : next(e for e in ends(text) if e > start and e - start >= wanted)]


@cache
def law(kind, task, short, tries):
    """P(A, B, label) of every pair."""
    found = defaultdict(float)
    for (text, p), (t, p_t) in itertools.product(documents(kind).items(), targets(short).items()):
        stops = chunk(text, t)
        inner = stops[:-1] or stops
        for k in inner:
            a, b, q = text[:k], text[k : stops[-1]], p * p_t / len(inner)
            if len(stops) > 1:
                found[a, b, 0] += q / 2
                if task == "sentence-order":
                    found[b, a, 1] += q / 2
            if len(stops) == 1 or task == "next-sentence":
                for other, p_other in foreign(kind, k, t, tries).items():
                    found[a, other, 1] += q * p_other * (1 if len(stops) == 1 else 0.5)
    return {key: p for key, p in found.items() if p > 0}


def rows(pairs, width=ROOM + 3):
    """Arrays of a batch from segments."""
    ids, kinds, mask = np.zeros((3, len(pairs), width), np.int64)
    for i, (a, b) in enumerate(pairs):
        row = [2, *a, 3, *b, 3]
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        kinds[i, len(a) + 2 : len(row)] = 1
    return ids, kinds, mask


def floors(kind, task, ids, kinds, mask, labels, answers, **options):
    how = {"task": task, "target": TARGET, "text": TEXT, "tries": 3} | options
    return pair_floor(KINDS[kind], ids, kinds, mask, labels, answers, **how)


# --- the comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize("short", [0.0, 0.3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_label_floor_equals_enumeration(kind, task, short):
    """Every pair that there is; 1e-12 is some hundred roundings."""
    joint = law(kind, task, short, 3)
    assert sum(joint.values()) == pytest.approx(1, abs=1e-12)
    pairs = sorted({(a, b) for a, b, _ in joint})
    pairs = [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:300]]
    wanted = np.array([[joint.get((*pair, y), 0.0) for y in (0, 1)] for pair in pairs])
    wanted /= wanted.sum(1, keepdims=True)
    answers = wanted.argmax(1)
    arrays = rows(pairs)
    labels = np.full_like(arrays[0], -100)
    _, found = floors(kind, task, *arrays, labels, answers, short=short)
    assert np.abs(np.exp(-found.loss) - wanted.max(1)).max() < 1e-12
    assert np.abs(found.entropy - entropy_of(wanted)).max() < 1e-12
    assert ((wanted.max(1) < 0.99).mean() > 0.2) and wanted[:, 0].any() and wanted[:, 1].any()


RATE, REPLACEMENT, RANDOM = 0.4, (0.6, 0.3, 0.1), np.array([5, 6, 8])


def channel(selected: float) -> np.ndarray:
    """P(seen | true) of a token that was selected with this probability."""
    matrix = np.eye(9) * (1 - selected + selected * REPLACEMENT[2])
    matrix[:, 4] += selected * REPLACEMENT[0]
    matrix[:, RANDOM] += selected * REPLACEMENT[1] / len(RANDOM)
    return matrix


@pytest.mark.parametrize("short", [0.0, 0.3])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_joint_floors_equal_enumeration_under_masks(kind, task, short):
    """All pairs with the lengths of the corrupted one, the label and every masked token of it."""
    joint, rng = law(kind, task, short, 3), np.random.default_rng(1)
    keys = list(joint)
    drawn = rng.choice(len(keys), 12, p=np.array(list(joint.values())) / sum(joint.values()))
    pairs, answers = [keys[i][:2] for i in drawn], np.array([keys[i][2] for i in drawn])
    ids, kinds, mask = rows(pairs)
    seen, labels = ids.copy(), np.full_like(ids, -100)
    chosen = (ids > 4) & (rng.random(ids.shape) < RATE)
    labels[chosen] = ids[chosen]
    seen[chosen] = [rng.choice(9, p=channel(1.0)[v]) for v in ids[chosen]]
    how = {"rate": RATE, "replacement": REPLACEMENT, "random_ids": RANDOM, "short": short}
    tokens, labels_floor = floors(kind, task, seen, kinds, mask, labels, answers, **how)
    found = iter(tokens.loss)
    for i, (a, b) in enumerate(pairs):
        alike = [key for key in keys if len(key[0]) == len(a) and len(key[1]) == len(b)]
        true = rows([key[:2] for key in alike])[0]
        p = np.array([joint[key] for key in alike])
        noise = channel(RATE)[true, seen[i]]  # of every place, in every pair
        noise[:, ids[i] < 5] = 1.0
        right_label = np.array([key[2] == answers[i] for key in alike])
        whole = p * noise.prod(1)
        share = whole[right_label].sum() / whole.sum()
        assert np.exp(-labels_floor.loss[i]) == pytest.approx(share, abs=1e-12)
        for t in np.flatnonzero(chosen[i]):
            others = np.delete(noise, t, axis=1).prod(1)
            known = p * others * channel(1.0)[true[:, t], seen[i, t]]
            right = known[true[:, t] == ids[i, t]].sum() / known.sum()
            assert np.exp(-next(found)) == pytest.approx(right, abs=1e-12)
    assert next(found, None) is None and len(tokens.loss) == chosen.sum()


@pytest.mark.parametrize("task", TASKS)
def test_the_batches_follow_the_law(task):
    """Frequencies of 60,000 pairs within five standard deviations of the enumerated law."""
    language = KINDS["plain"]
    goal = TASKS[task](language.vocabulary, rate=0.0, slack=ROOM - TARGET, short=0.3)
    joint, counts, rng = law("plain", task, 0.3, 10), defaultdict(int), np.random.default_rng(2)
    for _ in range(30):
        ids = np.pad(
            language.sample(2000, TEXT, rng), ((0, 0), (1, 1)), constant_values=((0, 0), (2, 3))
        )
        batch = goal.corrupt(ids, rng)
        second = batch["token_type_ids"].sum(1) - 1
        first = batch["attention_mask"].sum(1) - second - 3
        for row, a, b, y in zip(
            batch["input_ids"], first, second, batch[goal.label_name], strict=True
        ):
            counts[tuple(row[1 : a + 1]), tuple(row[a + 2 : a + b + 2]), y] += 1
    n = sum(counts.values())
    assert set(counts) <= set(joint)
    p = np.array(list(joint.values()))
    seen = np.array([counts[key] for key in joint])
    often = p * n > 20
    z = (seen - n * p)[often] / np.sqrt(n * p * (1 - p))[often]
    assert np.abs(z).max() < 5 and 0.8 < z.std() < 1.2


def test_the_floor_needs_the_law_that_made_the_pairs():
    """A floor for other targets or tries is another number: the check above can fail."""
    joint = law("plain", "next-sentence", 0.3, 3)
    pairs = sorted({(a, b) for a, b, _ in joint})
    arrays, labels = rows(pairs), np.full((len(pairs), ROOM + 3), -100)
    answers = np.array([int((*pair, 1) in joint) for pair in pairs])
    kinds = ("plain", "next-sentence")
    right = floors(*kinds, *arrays, labels, answers, short=0.3)[1].loss
    assert np.abs(floors(*kinds, *arrays, labels, answers, short=0.2)[1].loss - right).max() > 1e-2
    assert (
        np.abs(floors(*kinds, *arrays, labels, answers, short=0.3, tries=1)[1].loss - right).max()
        > 1e-3
    )


def test_topics_alone():
    """By hand for the book's six topics: a negative has equal topics with probability 1/6."""
    language = HiddenMarkovLanguage.default()
    same, h = 7 / 12, lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)
    assert topic_floor(language) == pytest.approx(same * h(6 / 7), abs=1e-14)
    assert topic_floor(language, "sentence-order") == pytest.approx(np.log(2), abs=1e-15)
    with pytest.raises(ValueError, match="task: expected one of"):
        topic_floor(language, "topics")


def test_lengths_of_sentences():
    assert sentence_lengths(KINDS["plain"]) == (2, 3)
    assert sentence_lengths(KINDS["mixed"]) == (1, 3)
    assert sentence_lengths(HiddenMarkovLanguage.default()) == (4, 17)
    with pytest.raises(ValueError, match="sentences of at most 512 tokens"):
        sentence_lengths(HiddenMarkovLanguage.tiny())


def test_what_has_no_floor_is_refused():
    language = HiddenMarkovLanguage.default()
    ids = language.batch(8, 64)

    def floor(**options):
        goal = NextSentence(language.vocabulary, **options)
        return goal.floor(language, ids, goal.corrupt(ids, np.random.default_rng(0)))

    with pytest.raises(ValueError, match="room: expected at least 77 tokens, so that no pair"):
        floor(slack=0)
    with pytest.raises(ValueError, match=r"selection: expected .*bernoulli"):
        floor(selection="count")
    with pytest.raises(ValueError, match="ends: expected the language's own"):
        floor(ends=[105, 106])
    goal = NextSentence(language.vocabulary, rate=0.0)
    batch = goal.corrupt(ids, np.random.default_rng(0))
    wrong = batch | {"input_ids": np.where(batch["input_ids"] > 4, 5, batch["input_ids"])}
    with pytest.raises(ValueError, match="input_ids: expected pairs that this law can make"):
        goal.floor(language, ids, wrong)
    with pytest.raises(ValueError, match="labels: expected none where the rate is 0"):
        goal.floor(language, ids, batch | {"labels": np.full_like(ids, 7)})
