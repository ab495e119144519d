"""Pairs: their invariants, their distribution, their labels, and the two denominators."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lossbook.corpora import HiddenMarkovLanguage, TextCorpus, Vocabulary
from lossbook.models import Output, PairEncoder, TransformerConfig
from lossbook.objectives import NextSentence, SentenceOrder, full_sentences, instances
from lossbook.objectives.sentence_pairs import (
    Documents,
    Segments,
    sentence_ends,
    shortened,
    truncated,
)

LANGUAGE = HiddenMarkovLanguage.default()
WORDS = Vocabulary.from_words(["a", "b", "c", "d", ".", "!"])
BOTH = [NextSentence, SentenceOrder]


def generator(seed=0):
    return np.random.default_rng(seed)


def segments(batch):
    """The two segments of every row, as tuples."""
    second = batch["token_type_ids"].sum(1) - 1
    first = batch["attention_mask"].sum(1) - second - 3
    return [
        (tuple(row[1 : a + 1]), tuple(row[a + 2 : a + b + 2]))
        for row, a, b in zip(batch["input_ids"], first, second, strict=True)
    ]


# --- the batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("length", [40, 64, 100])
def test_every_pair_consists_of_whole_sentences_of_its_documents(kind, length):
    """Whatever was drawn: the frame, the segments, the label that goes with them."""
    goal = kind(LANGUAGE.vocabulary, rate=0.0)
    ids = LANGUAGE.batch(200, length, seed=3)
    kept = ids.copy()
    batch = goal.corrupt(ids, generator(length))
    assert (ids == kept).all()
    stop, texts = LANGUAGE.sentence_end_id, [tuple(row[1:-1]) for row in ids]
    seen = batch["input_ids"]
    assert (seen[:, 0] == 2).all() and ((seen == 3).sum(1) == 2).all()
    assert ((seen == 0) == (batch["attention_mask"] == 0)).all()
    for i, (a, b) in enumerate(segments(batch)):
        assert a[-1] == stop and b[-1] == stop and len(a) + len(b) <= length - 3
        negative = batch[goal.label_name][i]
        if not negative:
            assert (a + b) == texts[i][: len(a + b)]
        elif kind is SentenceOrder and (b + a) == texts[i][: len(a + b)]:
            pass  # swapped
        else:
            assert a == texts[i][: len(a)]
            found = [j for j, text in enumerate(texts) if contains(text, b)]
            assert set(found) - {i}
            assert kind is NextSentence or a.count(stop) == 1  # a single sentence


def contains(text, part):
    return any(text[k : k + len(part)] == part for k in range(len(text) - len(part) + 1))


@pytest.mark.parametrize("kind", BOTH)
def test_without_short_targets_no_pair_is_forced_and_half_are_negative(kind):
    """20,000 fair coins: five standard deviations are 0.018."""
    goal = kind(LANGUAGE.vocabulary, rate=0.0, short=0.0)
    rng, labels = generator(), []
    for index in range(20):
        batch = goal.corrupt(LANGUAGE.batch(1000, 64, index=index), rng)
        labels.append(batch[goal.label_name])
        assert (batch["attention_mask"].sum(1) - 3 >= 45).all()
    assert abs(np.concatenate(labels).mean() - 0.5) < 0.018


def test_forced_negatives_tip_the_balance():
    """Short targets make single sentences, which are negative in both tasks."""
    ids = LANGUAGE.batch(4000, 64)
    for kind in BOTH:
        goal = kind(LANGUAGE.vocabulary, rate=0.0, short=1.0)
        assert goal.corrupt(ids, generator())[goal.label_name].mean() > 0.52


def test_the_split_is_uniform_over_inner_ends():
    """Of chunks of four sentences, A has one, two or three; chi-square by five deviations."""
    goal = NextSentence(LANGUAGE.vocabulary, rate=0.0, short=0.0)
    stop, counts = LANGUAGE.sentence_end_id, Counter()
    batch = goal.corrupt(LANGUAGE.batch(20_000, 64), generator())
    for (a, b), negative in zip(segments(batch), batch["next_sentence_label"], strict=True):
        if not negative and (a + b).count(stop) == 5:
            counts[a.count(stop)] += 1
    n = sum(counts.values())
    assert set(counts) == {1, 2, 3, 4} and n > 1000
    assert all(abs(c - n / 4) < 5 * (n * 3 / 16) ** 0.5 for c in counts.values())


def test_the_order_is_swapped_only_when_there_is_an_order():
    """One sentence per row: nothing to swap, so B is foreign and the label is 1 (ALBERT)."""
    ids = np.array([[2, *sentence, 9, 3] for sentence in ([5, 6], [6, 7], [7, 8])])
    goal = SentenceOrder(WORDS, rate=0.0, slack=0, ends=[9])
    for seed in range(20):
        batch = goal.corrupt(ids, generator(seed))
        assert (batch["sentence_order_label"] == 1).all()


def test_masks_fall_on_words_alone():
    goal = NextSentence(LANGUAGE.vocabulary, rate=0.5)
    ids = LANGUAGE.batch(100, 64)
    batch = goal.corrupt(ids, generator())
    clean = NextSentence(LANGUAGE.vocabulary, rate=0.0).corrupt(ids, generator())
    chosen = batch["labels"] != -100
    assert (clean["input_ids"] > 4)[chosen].all()
    assert (batch["labels"] == clean["input_ids"])[chosen].all()
    assert (batch["input_ids"] == clean["input_ids"])[~chosen].all()
    assert abs(chosen.sum() / (clean["input_ids"] > 4).sum() - 0.5) < 0.04


def test_the_same_stream_gives_the_same_pairs():
    goal, ids = NextSentence(LANGUAGE.vocabulary, seed=4), LANGUAGE.batch(16, 64)
    one, two = goal.batch(ids, epoch=2, index=5), goal.batch(ids, epoch=2, index=5)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["input_ids"], goal.batch(ids, epoch=2, index=6)["input_ids"])
    goal.set_epoch(2)
    assert set(goal([{"input_ids": row} for row in ids])) == set(one)


# --- truncation ----------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 30), st.integers(2, 40), st.integers(0, 1000))
def test_truncation_takes_from_the_longer_side(a, b, room, seed):
    """The lengths are those of BERT's loop, which takes one token after the other."""
    one, two = (Segments(*(np.array([x]) for x in (0, 100, n))) for n in (a, b))
    first, second = truncated(one, two, room, generator(seed))
    x, y = a, b
    while x + y > room:
        x, y = (x - 1, y) if x > y else (x, y - 1)
    assert (first.length[0], second.length[0]) == (x, y)
    for before, after in ((one, first), (two, second)):
        assert before.start <= after.start
        assert after.start + after.length <= before.start + before.length
    lists = shortened(list(range(a)), list(range(b)), room, generator(seed))
    assert (len(lists[0]), len(lists[1])) == (x, y)
    assert all(kept == list(range(kept[0], kept[-1] + 1)) for kept in lists if kept)


def test_truncation_takes_from_both_ends():
    """Of 8 tokens 4 go; how many from the front is binomial: 5 deviations of 4000 draws."""
    segment = Segments(*(np.full(4000, x) for x in (0, 0, 8)))
    first, _ = truncated(segment, segment, 8, generator())
    counts = np.bincount(first.start, minlength=5) / 4000
    assert np.abs(counts - np.array([1, 4, 6, 4, 1]) / 16).max() < 5 * (0.25 / 4000) ** 0.5
    lists = [shortened(list(range(8)), [], 4, generator(i))[0][0] for i in range(4000)]
    assert np.abs(np.bincount(lists, minlength=5) / 4000 - counts).max() < 0.06


def test_overlong_pairs_of_real_text_are_cut():
    """No slack, as in BERT: most pairs are cut to the full width, and none is wider."""
    goal = NextSentence(LANGUAGE.vocabulary, rate=0.0, slack=0, short=0.0)
    batch = goal.corrupt(LANGUAGE.batch(500, 64), generator())
    length = batch["attention_mask"].sum(1)
    assert length.max() == 64 and (length == 64).mean() > 0.5


# --- one instance after the other ----------------------------------------------------------------


def library(sizes, per=3):
    """Documents of numbered tokens: 1000 * document + place, sentences of these sizes."""
    documents = []
    for d, lengths in enumerate(sizes):
        tokens = itertools.count(1000 * d)
        documents.append([[next(tokens) for _ in range(n)] for n in lengths])
    return documents


@given(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=2, max_size=4),
    st.integers(8, 40),
    st.sampled_from(["next-sentence", "sentence-order"]),
    st.integers(0, 10**6),
)
def test_instances_follow_the_procedure(sizes, max_length, task, seed):
    """Runs of consecutive tokens, the right label, and every sentence used once as A's side."""
    documents = library(sizes)
    for first, second, label in instances(
        documents, 0, generator(seed), max_length=max_length, task=task
    ):
        assert 0 < len(first) + len(second) <= max_length - 3
        runs = [part for part in (first, second) if part]
        assert all(part == list(range(part[0], part[-1] + 1)) for part in runs)
        own = [part[0] < 1000 for part in runs]
        if label == 0 and len(runs) == 2:
            assert all(own) and first[-1] < second[0]
        elif len(runs) == 2 and all(own):  # swapped, or ten draws hit the own document
            assert task == "next-sentence" or second[-1] < first[0] or len(documents[0]) == 1


def test_unused_sentences_are_put_back():
    """All that no negative pair used comes again: A's sides and positive B's make the document."""
    documents = library([[5] * 40, [5] * 40])
    used = []
    for first, second, label in instances(documents, 0, generator(3), max_length=200, short=0.0):
        used += first if label else first + second
    assert used == list(range(200)) or set(used) <= set(range(200))
    rng, seen = generator(5), []
    for first, second, label in instances(documents, 0, rng, max_length=33, short=0.0):
        seen += first if label else first + second
    assert seen == list(range(200))


def test_negatives_avoid_the_own_document():
    """Ten redraws among two documents: the own one remains with probability 2 ** -10."""
    documents, own, negatives = library([[4] * 50, [4] * 50]), 0, 0
    for seed in range(60):
        for _, second, label in instances(documents, 0, generator(seed), max_length=43):
            negatives += label
            own += label and second[0] < 1000
    assert negatives > 200 and own <= 4


def test_a_single_sentence_is_a_negative_in_both_tasks():
    documents = library([[6], [6, 6]])
    for task in ("next-sentence", "sentence-order"):
        (pair,) = instances(documents, 0, generator(1), task=task, short=0.0)
        assert pair.label == 1 and pair.first == list(range(6)) and pair.second[0] >= 1000


def test_full_sentences():
    """By hand: room for 8; a separator between documents; nothing is lost."""
    documents = [[[1, 2, 3], [4, 5]], [[6, 7], [8, 9, 10]]]
    assert list(full_sentences(documents, 0, max_length=10)) == [
        [1, 2, 3, 4, 5, 0, 6, 7],
        [8, 9, 10],
    ]
    assert list(full_sentences(documents, 0, max_length=10, cross=False)) == [
        [1, 2, 3, 4, 5],
        [6, 7, 8, 9, 10],
    ]
    long = list(full_sentences(library([[7] * 9, [3] * 9]), -1, max_length=32))
    assert all(len(row) <= 30 and row[0] != -1 != row[-1] for row in long)
    flat = [token for row in long for token in row if token >= 0]
    assert flat == list(range(63)) + list(range(1000, 1027))


# --- sentence ends -------------------------------------------------------------------------------


def test_sentence_ends():
    assert sentence_ends(WORDS) == [9, 10]
    assert sentence_ends(LANGUAGE.vocabulary) == [LANGUAGE.sentence_end_id]
    words = Vocabulary.from_words(["##.", "Ġ.", "...", ".5", "e.g.", "?!", "…"])
    assert sentence_ends(words) == [5, 6, 7, 10]


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_real_text_makes_pairs(tokenizer):
    corpus = TextCorpus.python_documentation(tokenizer, vocab_size=600)
    goal = NextSentence(corpus.vocabulary)
    batch = goal.corrupt(corpus.batch(64, 64), generator())
    assert (batch["attention_mask"].sum(1) > 3).all()
    assert set(batch["next_sentence_label"]) == {0, 1}


# --- loss, count ---------------------------------------------------------------------------------


def answered(batch, seed=0):
    rng = generator(seed)
    shape = (*batch["input_ids"].shape, LANGUAGE.vocabulary.size)
    logits = torch.from_numpy(rng.standard_normal(shape)).requires_grad_()
    pair_logits = torch.from_numpy(rng.standard_normal((shape[0], 2))).requires_grad_()
    return Output(logits, None, pair_logits)


@pytest.mark.parametrize("kind", BOTH)
def test_the_loss_is_the_sum_of_two_means(kind):
    goal = kind(LANGUAGE.vocabulary)
    batch = goal.batch(LANGUAGE.batch(16, 64))
    output = answered(batch)
    tokens = F.cross_entropy(output.logits.flatten(0, 1), batch["labels"].flatten())
    pairs = F.cross_entropy(output.pair_logits, batch[goal.label_name])
    assert goal.loss(output, batch).item() == pytest.approx((tokens + pairs).item(), rel=1e-14)
    counts = goal.count(batch)
    assert counts == {"masked-lm": int((batch["labels"] != -100).sum()), goal.name: 16}
    halves = [{k: v[s] for k, v in batch.items()} for s in (slice(0, 5), slice(5, 16))]
    parts = [
        Output(output.logits[s], None, output.pair_logits[s]) for s in (slice(0, 5), slice(5, 16))
    ]
    split = sum(
        goal.loss(part, half, denominator=counts) for part, half in zip(parts, halves, strict=True)
    )
    assert split.item() == pytest.approx(goal.loss(output, batch).item(), rel=1e-14)
    sums = goal.terms(output, batch, reduction="sum")
    assert (sums[goal.name] / 16).item() == pytest.approx(pairs.item(), rel=1e-14)


def test_no_masked_token_and_no_rate():
    goal = NextSentence(LANGUAGE.vocabulary, rate=0.0)
    batch = goal.batch(LANGUAGE.batch(8, 64))
    output = answered(batch)
    assert goal.count(batch) == {"next-sentence": 8}
    pairs = F.cross_entropy(output.pair_logits, batch["next_sentence_label"])
    assert goal.loss(output, batch).item() == pytest.approx(pairs.item(), rel=1e-14)
    joint = NextSentence(LANGUAGE.vocabulary)
    loss = joint.loss(output, batch)
    loss.backward()
    assert loss.item() == pytest.approx(pairs.item(), rel=1e-14)
    assert output.logits.grad.abs().max() == 0


def test_logits_at_the_targets_alone():
    """The model computes its head at the targets and at [CLS]: the same loss, float32."""
    goal = SentenceOrder(LANGUAGE.vocabulary)
    batch = goal.batch(LANGUAGE.batch(4, 64))
    model = PairEncoder(TransformerConfig(LANGUAGE.vocabulary.size, 16, 2, 2)).double()
    fields = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
    whole = model(**fields)
    at = (batch["labels"].flatten() != -100).nonzero()[:, 0]
    few = model(**fields, positions=at)
    assert torch.allclose(few.logits[0], whole.logits.flatten(0, 1)[at], atol=1e-12)
    assert torch.allclose(few.pair_logits, whole.pair_logits, atol=1e-12)


# --- show and refusals ---------------------------------------------------------------------------


def test_show():
    text = "The old captain sails . He waits .\n\nthe king waits . the queen smiles ."
    shown = NextSentence(LANGUAGE.vocabulary, rate=0.0).show(text, generator(1))
    assert shown[0].seen == "[CLS]" and shown[0].target.startswith("next_sentence_label ")
    assert [place.seen for place in shown].count("[SEP]") == 2
    alone = SentenceOrder(LANGUAGE.vocabulary, rate=0.5).show("the king waits . he smiles .")
    assert alone[0].target[:-1] == "sentence_order_label "
    with pytest.raises(ValueError, match="text: expected two documents, an empty line between"):
        NextSentence(LANGUAGE.vocabulary).show("one text . alone .")


def test_refusals():
    with pytest.raises(ValueError, match="slack: expected at least 0, got -1"):
        NextSentence(WORDS, slack=-1)
    with pytest.raises(ValueError, match="short: expected a probability"):
        NextSentence(WORDS, short=1.5)
    with pytest.raises(ValueError, match="ends: expected at least one token that ends"):
        NextSentence(Vocabulary.from_words("ab"))
    goal = NextSentence(LANGUAGE.vocabulary)
    with pytest.raises(ValueError, match=r"length: expected more than slack \+ 3 = 19"):
        goal.corrupt(LANGUAGE.batch(4, 19), generator())
    with pytest.raises(ValueError, match="ids: expected at least 2 rows"):
        goal.corrupt(LANGUAGE.batch(1, 64), generator())
    empty = np.full((2, 64), 0)
    with pytest.raises(ValueError, match="ids: expected text in all rows"):
        goal.corrupt(empty, generator())
    with pytest.raises(ValueError, match="output: expected an output that has one of"):
        batch = goal.batch(LANGUAGE.batch(4, 64))
        goal.loss(answered(batch)._replace(pair_logits=None), batch)
    with pytest.raises(ValueError, match="task: expected"):
        next(instances([[[1]]], 0, generator(), task="order"))
    ids = np.array([[2, 5, 6, 9, 7, 9, 8, 3]])
    documents = Documents(ids, WORDS, np.isin(np.arange(11), [9]))
    assert documents.reach(np.array([0, 0]), np.array([1, 2])).tolist() == [3, 5]
    assert documents.number(np.array([0, 0, 0]), np.array([2, 3, 6])).tolist() == [0, 1, 2]
