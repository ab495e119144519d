"""The conditional language model: who is a target, who is divided by, how low it can get."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lossbook.checks import difference
from lossbook.corpora import HiddenMarkovLanguage, Vocabulary, causal_floor
from lossbook.objectives import ConditionalLM

LANGUAGE = HiddenMarkovLanguage.default()
V = LANGUAGE.vocabulary
SMALL = Vocabulary.from_words(["a", "b", "."])
A, B, STOP = (SMALL.id_of(t) for t in ("a", "b", "."))
CLS, SEP, PAD = SMALL.cls_id, SMALL.sep_id, SMALL.pad_id


def labels_of(objective, *rows):
    return objective.corrupt(np.array(rows), np.random.default_rng(0))["labels"].tolist()


def test_the_target_begins_behind_the_first_separator():
    """The separator belongs to the context, a second one to the target."""
    rows = [CLS, A, STOP, B, STOP, A, SEP]
    assert labels_of(ConditionalLM(SMALL), rows) == [[-100] * 3 + [B, STOP, A, -100]]
    assert labels_of(ConditionalLM(SMALL, separator=A), rows) == [
        [-100, -100, STOP, B, STOP, A, -100]
    ]


def test_a_pair_ends_with_a_target_that_says_stop():
    pair = [CLS, A, B, SEP, B, A, SEP, PAD]
    wanted = [[-100] * 4 + [B, A, SEP, -100]]
    assert labels_of(ConditionalLM(SMALL, separator="[SEP]"), pair) == wanted
    wanted[0][6] = -100
    assert labels_of(ConditionalLM(SMALL, separator="[SEP]", ends=False), pair) == wanted


def test_a_row_without_a_separator_has_no_target():
    objective = ConditionalLM(SMALL)
    batch = objective.batch(np.array([[CLS, A, B, A, SEP]]))
    assert objective.count(batch) == 0
    logits = torch.zeros(1, 5, SMALL.size, requires_grad=True)
    loss = objective.loss(logits, batch)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_ids_stay_what_they_are_and_padding_is_masked():
    ids = np.array([[CLS, A, STOP, B, SEP, PAD]])
    batch = ConditionalLM(SMALL).corrupt(ids, np.random.default_rng(0))
    assert (batch["input_ids"] == ids).all()
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0]]


@given(seed=st.integers(0, 999), rows=st.integers(1, 4), length=st.integers(3, 24))
@settings(max_examples=25)
def test_loss_and_gradient_are_those_of_torch_at_the_targets(seed, rows, length):
    """One loop over the targets, and F.cross_entropy with its own shift; one denominator."""
    rng = np.random.default_rng(seed)
    objective = ConditionalLM(V)
    batch = objective.batch(LANGUAGE.batch(rows, length, seed=seed))
    z = torch.tensor(rng.standard_normal((rows, length, V.size)) * 3, requires_grad=True)
    loss = objective.loss(z, batch)
    loss.backward()
    places = (batch["labels"][:, 1:] != -100).nonzero().tolist()
    total = sum(-F.log_softmax(z[b, t], -1)[batch["labels"][b, t + 1]].item() for b, t in places)
    assert objective.count(batch) == len(places)
    assert difference(loss, total / max(len(places), 1)) <= 1e-12
    if places:
        y = z.detach().clone().requires_grad_()
        theirs = F.cross_entropy(y[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
        theirs.backward()
        assert difference(z.grad, y.grad) <= 1e-12
    none = objective.loss(z, batch, reduction="none")
    assert difference(none.sum(), objective.loss(z, batch, reduction="sum")) <= 1e-12
    assert not none[batch["labels"] == -100].any()


def test_micro_batches_with_one_denominator_add_up():
    objective = ConditionalLM(V)
    batch = objective.batch(LANGUAGE.batch(6, 20))
    z = torch.tensor(np.random.default_rng(0).standard_normal((6, 20, V.size)))
    n = objective.count(batch)
    halves = [
        objective.loss(z[s], {"labels": batch["labels"][s]}, denominator=n)
        for s in (slice(0, 2), slice(2, 6))
    ]
    assert difference(sum(halves), objective.loss(z, batch)) <= 1e-13


# --- the floor


def test_the_floor_is_the_causal_one_at_the_targets():
    ids = LANGUAGE.batch(5, 24)
    objective = ConditionalLM(V)
    batch = objective.batch(ids)
    found, every = objective.floor(LANGUAGE, ids, batch), causal_floor(LANGUAGE, ids)
    at = batch["labels"].numpy() != -100
    assert (found.targets == at).all()
    assert np.array_equal(found.loss, every.grid(every.loss)[at])
    assert np.array_equal(found.entropy, every.grid(every.entropy)[at])


def test_the_floor_against_every_text_of_the_tiny_language():
    """Texts of five tokens, all written down: the entropy of each target given all before it.

    The probabilities come from a sum over all paths of hidden states, without recursions. The
    expected loss of the ideal predictor over these texts is a conditional entropy.
    """
    tiny = HiddenMarkovLanguage.tiny()
    tokens = range(5, tiny.vocabulary.size)
    probability = {}
    for text in itertools.product(tokens, repeat=5):
        a = tiny.initial * tiny.emission[:, text[0]]
        for token in text[1:]:
            a = (a @ tiny.transition) * tiny.emission[:, token]
        if a.sum() > 0:
            probability[text] = a.sum()
    texts = np.array(list(probability))
    ids = np.pad(texts, ((0, 0), (1, 0)), constant_values=tiny.vocabulary.cls_id)
    objective = ConditionalLM(tiny.vocabulary)
    batch = objective.corrupt(ids, np.random.default_rng(0))
    found = objective.floor(tiny, ids, batch)
    loss = found.grid(found.loss)
    prefix: dict[tuple, float] = {}
    for text, p in probability.items():
        for t in range(6):
            prefix[text[:t]] = prefix.get(text[:t], 0.0) + p
    for row, text in enumerate(texts.tolist()):
        first = text.index(STOP_OF_TINY) if STOP_OF_TINY in text else 99
        for t in range(5):
            target = t > first
            assert np.isnan(loss[row, t + 1]) != target
            if target:
                exact = np.log(prefix[tuple(text[:t])] / prefix[tuple(text[: t + 1])])
                assert abs(loss[row, t + 1] - exact) <= 1e-12
    weights = np.repeat(list(probability.values()), 6).reshape(-1, 6)[found.targets]
    assert abs((weights * (found.loss - found.entropy)).sum()) <= 1e-12


STOP_OF_TINY = HiddenMarkovLanguage.tiny().sentence_end_id


def test_labels_that_are_no_corruption_of_the_ids_are_refused():
    ids = LANGUAGE.batch(2, 24)
    objective = ConditionalLM(V)
    batch = objective.batch(ids)
    wrong = batch["labels"].numpy().copy()
    at = np.argwhere(wrong != -100)[0]
    wrong[tuple(at)] = 5 + (wrong[tuple(at)] - 4) % 10
    with pytest.raises(ValueError, match="labels"):
        objective.floor(LANGUAGE, ids, {"labels": wrong})
    ends = ConditionalLM(V, ends=True)
    with pytest.raises(ValueError, match="special tokens have no floor"):
        ends.floor(LANGUAGE, ids, ends.batch(ids))
    with pytest.raises(ValueError, match="separator"):
        ConditionalLM(V, separator=V.size)
    with pytest.raises(ValueError, match="token"):
        ConditionalLM(V, separator="no such word")


def test_show_says_which_token_is_predicted_where():
    shown = ConditionalLM(V).show("the girl sleeps . the boy waits .")
    assert [place.seen for place in shown][:5] == ["[CLS]", "the", "girl", "sleeps", "."]
    assert [place.target for place in shown] == [
        *([None] * 4), "the", "boy", "waits", ".", None, None,
    ]  # fmt: skip
