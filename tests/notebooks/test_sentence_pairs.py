"""The chapter's NumPy against lossbook, torch and transformers, its museum and its exercises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lossbook import checks, recorded
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.corpora.floors import topic_floor
from lossbook.models import Output
from lossbook.objectives import NextSentence, SentenceOrder, instances
from lossbook.objectives.sentence_pairs import Documents, shortened

CHAPTER = "sentence-pairs"
IGNORE = -100
LANGUAGE = HiddenMarkovLanguage.default()


# --- the procedure


@given(
    st.lists(st.lists(st.integers(1, 6), min_size=2, max_size=6), min_size=1, max_size=5),
    st.integers(1, 20),
)
def test_chunks(derivation, lengths, target):
    """On the page one sentence after the other, in lossbook all rows at once."""
    page = derivation(CHAPTER)
    width = max(sum(row) for row in lengths) + 3
    ids = np.zeros((len(lengths), width), np.int64)
    for row, sizes in zip(ids, lengths, strict=True):
        text = [token for size in sizes for token in [5] * (size - 1) + [6]]
        row[: len(text) + 2] = [2, *text, 3]
    documents = Documents(ids, LANGUAGE.vocabulary, np.arange(LANGUAGE.vocabulary.size) == 6)
    found = documents.chunk(np.full(len(lengths), target))
    assert found.tolist() == [page.chunk_size(row, target) for row in lengths]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 70))
def test_truncation(derivation, a, b, room):
    page = derivation(CHAPTER)
    slow = page.truncated_lengths(a, b, room)
    assert page.truncated_at_once(a, b, room) == slow
    lists = shortened(list(range(a)), list(range(b)), room, np.random.default_rng(a))
    assert tuple(map(len, lists)) == slow


def test_the_share_of_negatives():
    """One half plus half of the single sentences, 5 standard deviations of 2,000 pairs."""
    documents = [[[1] * 9] if d % 4 == 0 else [[1] * 4] * 2 for d in range(400)]
    rng, labels = np.random.default_rng(0), []
    for _ in range(5):
        for d in range(400):
            labels += [
                pair.label for pair in instances(documents, d, rng, max_length=20, short=0.0)
            ]
    single = np.mean([len(document) == 1 for document in documents])
    # pieces that are put back become single sentences of their own: only a lower bound is exact
    assert np.mean(labels) > 0.5 + single / 2 - 5 * 0.5 / len(labels) ** 0.5


# --- the loss


def batches(seed, shape=(3, 4, 6), share=0.5):
    rng = np.random.default_rng(seed)
    logits, pair_logits = rng.normal(size=shape), rng.normal(size=(shape[0], 2))
    labels = rng.integers(0, shape[2], size=shape[:2])
    labels[rng.random(shape[:2]) >= share] = IGNORE
    return logits, labels, pair_logits, rng.integers(0, 2, shape[0])


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_loss_and_gradient(derivation, shape, share, scale, seed):
    """As defined = as arrays = lossbook = torch, with no target too."""
    page = derivation(CHAPTER)
    logits, labels, pair_logits, answers = batches(seed, shape, share)
    logits, pair_logits = logits * scale, pair_logits * scale
    goal = SentenceOrder(LANGUAGE.vocabulary)
    batch = {"labels": torch.tensor(labels), "sentence_order_label": torch.tensor(answers)}
    z, s = (torch.tensor(a, requires_grad=True) for a in (logits, pair_logits))
    ours = goal.loss(Output(z, None, s), batch)
    ours.backward()
    arrays = logits, labels, pair_logits, answers
    near = 1e-13 * max(1.0, scale)  # a loss of 1e-3 from logits of 700 has lost five digits
    assert abs(page.joint_loss(*arrays) - ours.item()) <= near
    assert abs(page.joint_loss_by_definition(*arrays) - ours.item()) <= near
    dz, ds = page.logit_gradients(*arrays)
    assert np.abs(dz - z.grad.numpy()).max() <= near and np.abs(ds - s.grad.numpy()).max() <= near
    theirs = F.cross_entropy(s, batch["sentence_order_label"])
    if (labels != IGNORE).any():
        theirs = theirs + F.cross_entropy(z.flatten(0, 1), batch["labels"].flatten())
    assert abs((ours - theirs).item()) <= near


def test_the_opening_example_by_hand(derivation):
    """1.155 + 0.837 = 1.992, and 1.028 with one denominator."""
    page = derivation(CHAPTER)
    logits = np.log(np.array([[[0.5, 0.5], [0.125, 0.875]], [[0.5, 0.5], [0.5, 0.5]]]))
    arrays = logits, np.array([[0, 0], [0, IGNORE]]), np.log(np.array([[0.75, 0.25]] * 2))
    answers = np.array([0, 1])
    assert [round(part, 3) for part in page.two_means(*arrays, answers)] == [1.155, 0.837]
    assert round(page.joint_loss(*arrays, answers), 3) == 1.992
    sums = page.two_means(*arrays, answers, tokens=1, pairs=1)
    assert round(sum(sums), 3) == 5.140 and round(sum(sums) / 5, 3) == 1.028


@given(seed=st.integers(0, 999), rows=st.integers(1, 3), time=st.integers(1, 5))
@settings(max_examples=25)
def test_shared_gradients_add_up(derivation, seed, rows, time):
    """The two derived parts against autograd of each term, and their sum against that of both."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    shapes = {"W": (3, 3), "V": (3, 3), "P": (3, 3), "E": (5, 3), "D": (2, 3)}
    weights = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    u = rng.normal(size=(rows, time, 3))
    labels = rng.integers(0, 5, (rows, time))
    labels[:, 0] = IGNORE
    answers = rng.integers(0, 2, rows)
    parts = page.toy_gradients(weights, u, labels, answers)
    w = {name: torch.tensor(value, requires_grad=True) for name, value in weights.items()}
    x = torch.tensor(u)
    h = torch.tanh(x @ w["W"].T + x.mean(1, keepdim=True) @ w["V"].T)
    output = Output(h @ w["E"].T, h, torch.tanh(h[:, 0] @ w["P"].T) @ w["D"].T)
    goal = NextSentence(LANGUAGE.vocabulary)
    batch = {"labels": torch.tensor(labels), "next_sentence_label": torch.tensor(answers)}
    terms = goal.terms(output, batch)
    for name, term in zip(("tokens", "pairs"), terms.values(), strict=True):
        grads = torch.autograd.grad(term, [w["W"], w["V"]], retain_graph=True)
        assert checks.difference(parts[name], torch.stack(grads)) <= 1e-12


def test_berts_and_alberts_own_losses():
    """The losses inside transformers on batches of ours, in float64: 1e-10 and far below."""
    from transformers import AlbertConfig, AlbertForPreTraining, BertConfig, BertForPreTraining

    sizes = {"vocab_size": LANGUAGE.vocabulary.size, "hidden_size": 16, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "intermediate_size": 32, "initializer_range": 0.5}
    bert = BertForPreTraining(BertConfig(**sizes)), NextSentence
    albert = AlbertForPreTraining(AlbertConfig(**sizes, embedding_size=8)), SentenceOrder
    for model, kind in (bert, albert):
        model = model.double().eval()
        goal = kind(LANGUAGE.vocabulary)
        batch = goal.batch(LANGUAGE.batch(8, 64, seed=2))
        output = model(**batch)
        ours = goal.loss(output, batch)
        assert checks.difference(ours, output.loss) <= 1e-13
        weights = [p for p in model.parameters() if p.requires_grad]
        mine = torch.autograd.grad(ours, weights, retain_graph=True, allow_unused=True)
        theirs = torch.autograd.grad(output.loss, weights, allow_unused=True)
        for a, b in zip(mine, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or (a - b).abs().max() <= 1e-12 * max(1, b.abs().max())
        swapped = batch | {goal.label_name: 1 - batch[goal.label_name]}
        assert checks.difference(goal.loss(output, swapped), output.loss) > 1e-6


# --- the numbers of the text


def test_topics_tell_two_thirds():
    """0.239 nats and 91.7 %: by the sum over topic pairs, and by the formula of the chapter."""
    p, joint = 1 / 6, {}
    for a in range(6):
        for b in range(6):
            joint[a, b] = (0.5 * p * (a == b), 0.5 * p * p)
    entropy = -sum(x * math.log(x / sum(v)) for v in joint.values() for x in v if x)
    right = sum(max(v) for v in joint.values())
    assert round(entropy, 3) == 0.239 and round(right, 3) == 0.917
    assert topic_floor(LANGUAGE) == pytest.approx(entropy, abs=1e-14)
    assert round(1 - entropy / math.log(2), 2) == 0.65  # "two thirds"


def test_most_of_what_can_be_known_is_topic():
    """Nine tenths, and a lower floor for the order, on pairs that the page does not use."""
    floors = {}
    for kind in (NextSentence, SentenceOrder):
        goal = kind(LANGUAGE.vocabulary, rate=0.0, short=0.0)
        found = []
        for index in range(6):
            ids = LANGUAGE.batch(64, 64, index=index, seed=9)
            batch = goal.corrupt(ids, np.random.default_rng(index))
            found.append(goal.floor(LANGUAGE, ids, batch)[goal.name].entropy)
        floors[goal.name] = np.concatenate(found).mean()
    told = (math.log(2) - topic_floor(LANGUAGE)) / (math.log(2) - floors["next-sentence"])
    assert 0.85 < told < 0.97
    assert floors["sentence-order"] < floors["next-sentence"] < topic_floor(LANGUAGE)


# --- museum


@pytest.mark.parametrize("bug", ["one_criterion_for_both", "one_denominator"])
def test_the_check_fails_on_the_museum_and_passes_on_the_page(museum, bug):
    page = museum(CHAPTER)
    assert checks.check("joint-pair-loss", page.joint_loss).passed
    report = checks.check("joint-pair-loss", getattr(page, bug))
    assert not report.passed


def test_the_ignored_label_goes_below_every_floor(museum):
    """A model that always answers 1 has lost nothing by the wrong loss, and log 2 at best."""
    page = museum(CHAPTER)
    sure = np.tile([-30.0, 30.0], (4, 1))
    arrays = np.zeros((4, 1, 3)), np.full((4, 1), IGNORE), sure, np.array([0, 1, 0, 1])
    assert page.one_criterion_for_both(*arrays) < 1e-12 < topic_floor(LANGUAGE)
    assert page.joint_loss(*arrays) == pytest.approx(30)


def test_the_audit_of_negatives(museum):
    page = museum(CHAPTER)
    own, following = page.audit(page.as_bert, page.numbered(50, 20), rounds=60)
    assert own == following == 0
    own, _ = page.audit(page.any_line, page.numbered(50, 20), rounds=60)
    assert 0.005 < own < 0.05
    for make in (page.as_bert, page.any_line):
        assert page.audit(make, page.numbered(1, 20), rounds=20)[0] == 1


# --- exercises

EXERCISES = {
    "joint-pair-loss": "joint_pair_loss",
    "truncate-pair": "truncate_pair",
    "topic-floor": "topic_entropy",
}


@pytest.mark.parametrize(("exercise", "name"), EXERCISES.items())
def test_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def _one_for_both(logits, labels, pair_logits, pair_labels, tokens=None, pairs=None):
    at = labels != IGNORE
    nats = -_log_softmax(logits[at])[np.arange(at.sum()), labels[at]]
    answers = -_log_softmax(pair_logits)[np.arange(len(pair_labels)), pair_labels]
    return (nats.sum() + answers.sum()) / ((tokens or at.sum()) + (pairs or len(pair_labels)))


def _no_micro_batches(logits, labels, pair_logits, pair_labels, tokens=None, pairs=None):
    at = labels != IGNORE
    nats = -_log_softmax(logits[at])[np.arange(at.sum()), labels[at]]
    answers = -_log_softmax(pair_logits)[np.arange(len(pair_labels)), pair_labels]
    return nats.sum() / max(at.sum(), 1) + answers.mean()


def _log_softmax(z):
    z = z - z.max(-1, keepdims=True, initial=-np.inf)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _only_the_back(first, second, room, from_front):
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


def _ties_cut_a(first, second, room, from_front):
    first, second, coins = list(first), list(second), iter(from_front)
    while len(first) + len(second) > room:
        (first if len(first) >= len(second) else second).pop(0 if next(coins) else -1)
    return first, second


@pytest.mark.parametrize(
    ("exercise", "mutant", "hint"),
    [
        ("joint-pair-loss", _one_for_both, "One denominator for both"),
        ("joint-pair-loss", _no_micro_batches, "Both denominators are given"),
        ("truncate-pair", _only_the_back, "True removes the first|Cut the longer|Compare"),
        ("truncate-pair", _ties_cut_a, "Of equal sides"),
        ("topic-floor", lambda topics, negatives: math.log(2), "0.239"),
        ("topic-floor", lambda topics, negatives: topics_are_equal(topics), "0.239|coin|uneven"),
    ],
)
def test_typical_mistakes_fail_with_a_hint(capsys, exercise, mutant, hint):
    report = checks.check(exercise, mutant)
    assert not report.passed
    text = " ".join(capsys.readouterr().out.split())
    assert any(part in text for part in hint.split("|"))


def topics_are_equal(topics):
    """A mistake: the posterior of equal topics alone, without the pairs that differ."""
    p = 1 / (1 + topics[0])
    return -p * math.log(p) - (1 - p) * math.log(1 - p) if p < 1 else 0.0


# --- what was recorded


def test_the_record_says_what_the_text_says():
    """Whoever learned the next sentence tosses a coin on order; one seed stayed on the plateau.

    1,024 answers scatter by 0.016; the bounds leave five of that.
    """
    runs = recorded.load("sentence-pairs")["result"]["runs"]
    assert len(runs) >= 3 and len({run["seed"] for run in runs}) == len(runs)
    learned = [run["next-sentence"]["accuracy"]["next-sentence"] > 0.7 for run in runs]
    assert len(runs) - sum(learned) == 1
    for run in runs:
        following, order = (run[name]["accuracy"] for name in ("next-sentence", "sentence-order"))
        if following["next-sentence"] > 0.7:
            assert abs(following["sentence-order"] - 0.5) < 0.08
        assert order["sentence-order"] > 0.85
        assert order["next-sentence"] < 0.7
        for name in ("next-sentence", "sentence-order"):
            assert run[name]["curve"][-1][1] > run[name]["floor"]
