"""The causal objective: where the shift happens, what is counted, both directions, packing."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lossbook.corpora import HiddenMarkovLanguage, Vocabulary
from lossbook.models import Decoder, TransformerConfig
from lossbook.objectives import CausalLM, pack, shifted_cross_entropy
from lossbook.objectives.causal_lm import document_numbers, mirrored

VOCABULARY = Vocabulary.from_words(f"w{i}" for i in range(12))
TINY = HiddenMarkovLanguage.tiny()
IGNORE = -100
SEP, CLS, PAD = VOCABULARY.sep_id, VOCABULARY.cls_id, VOCABULARY.pad_id


def rows(lengths, time, seed=0):
    """Framed texts of random words, padded on the right."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), time), PAD)
    for row, n in zip(ids, lengths, strict=True):
        row[: n + 2] = [CLS, *rng.choice(VOCABULARY.ordinary_ids, n), SEP]
    return ids


def by_loops(logits, labels):
    """Sum and number of the targets, one token at a time, by the standard library."""
    total, count = 0.0, 0
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != IGNORE:
                z = logits[b, t - 1]
                total += np.log(np.sum(np.exp(z - z.max()))) + z.max() - z[labels[b, t]]
                count += 1
    return total, count


# --- the loss


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 999),
)
def test_the_loss_is_the_definition_and_torch(shape, share, seed):
    """Value and gradient; a single column has no target, and nothing to learn from."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * 3
    labels = rng.integers(0, shape[2], shape[:2])
    labels[rng.random(shape[:2]) >= share] = IGNORE
    total, count = by_loops(logits, labels)
    z = torch.tensor(logits, requires_grad=True)
    ours = shifted_cross_entropy(z, torch.tensor(labels))
    ours.backward()
    assert ours.item() == pytest.approx(total / max(count, 1), abs=1e-12)
    assert not z.grad[:, -1].any()
    if count == 0:
        assert not z.grad.any()
        return
    y = torch.tensor(logits, requires_grad=True)
    F.cross_entropy(y[:, :-1].flatten(0, 1), torch.tensor(labels)[:, 1:].flatten()).backward()
    torch.testing.assert_close(z.grad, y.grad, rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 5, 7), (1, 2, 3)])
def test_optax_agrees(shape):
    rng = np.random.default_rng(3)
    logits = rng.normal(size=shape) * 3
    labels = rng.integers(0, shape[2], shape[:2])
    labels[0, 0] = IGNORE
    at = labels[:, 1:] != IGNORE
    safe = jnp.asarray(np.where(at, labels[:, 1:], 0))
    each = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits[:, :-1]), safe)
    ours = shifted_cross_entropy(torch.tensor(logits), torch.tensor(labels))
    assert ours.item() == pytest.approx(float((each * at).sum() / at.sum()), abs=1e-12)


def test_reductions():
    """The loss of a token stands at that token; micro-batches add up with the right denominator."""
    rng = np.random.default_rng(1)
    logits = torch.tensor(rng.normal(size=(3, 7, VOCABULARY.size)))
    objective = CausalLM(VOCABULARY)
    batch = objective.batch(rows([5, 1, 3], 7))
    each = objective.loss(logits, batch, reduction="none")
    assert each.shape == (3, 7) and torch.equal(each != 0, batch["labels"] != IGNORE)
    mean = objective.loss(logits, batch)
    assert each.sum().item() == pytest.approx(objective.loss(logits, batch, reduction="sum").item())
    assert mean.item() == pytest.approx((each.sum() / objective.count(batch)).item())
    parts = [
        objective.loss(logits[i : i + 1], {"labels": batch["labels"][i : i + 1]}, denominator=9)
        for i in range(3)
    ]
    assert sum(parts).item() == pytest.approx(mean.item()) and objective.count(batch) == 9


def test_labels_of_transformers_count_as_there():
    """Labels that copy the ids have a first one that nothing predicts."""
    ids = torch.tensor([[5, 6, 7, 8]])
    assert CausalLM(VOCABULARY).count({"labels": ids}) == 3


def test_each_logit_answers_for_the_next_label_alone():
    """For every pair (s, t): label t moves the gradient at position s exactly where s = t - 1."""
    rng = np.random.default_rng(2)
    logits = rng.normal(size=(1, 6, 9))
    labels = rng.integers(0, 9, (1, 6))

    def gradient(labels):
        z = torch.tensor(logits, requires_grad=True)
        shifted_cross_entropy(z, torch.tensor(labels)).backward()
        return z.grad[0].numpy()

    before = gradient(labels)
    for t in range(6):
        changed = labels.copy()
        changed[0, t] = (labels[0, t] + 1) % 9
        moved = np.abs(gradient(changed) - before).max(-1) > 0
        assert np.flatnonzero(moved).tolist() == ([t - 1] if t else [])


def test_wrong_shapes_speak(untyped):
    with pytest.raises(ValueError, match="logits: expected"):
        shifted_cross_entropy(torch.zeros(2, 3, 5), torch.zeros(2, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="direction: expected one of"):
        CausalLM(VOCABULARY, direction="sideways")
    with pytest.raises(ValueError, match="isolate: expected the direction forward"):
        CausalLM(VOCABULARY, direction="backward", isolate=True)


# --- what the model sees


def test_forward_leaves_the_text_alone():
    ids = rows([4, 2], 7)
    before = ids.copy()
    batch = CausalLM(VOCABULARY).corrupt(ids, np.random.default_rng(0))
    assert np.array_equal(batch["input_ids"], ids) and np.array_equal(ids, before)
    assert batch["labels"][1].tolist() == [IGNORE, *ids[1, 1:3], IGNORE, IGNORE, IGNORE, IGNORE]
    assert batch["attention_mask"].sum(1).tolist() == [6, 4]
    assert not np.shares_memory(batch["input_ids"], ids)


def test_ends_are_targets_when_asked_for():
    ids = rows([4, 2], 7)
    batch = CausalLM(VOCABULARY, ends=True).batch(ids)
    assert batch["labels"][1].tolist()[1:] == [*ids[1, 1:3], SEP, IGNORE, IGNORE, IGNORE]
    assert CausalLM(VOCABULARY, ends=True).count(batch) == 8
    turned = CausalLM(VOCABULARY, ends=True, direction="backward").batch(ids)
    assert turned["labels"][1].tolist()[1:] == [*ids[1, 2:0:-1], CLS, IGNORE, IGNORE, IGNORE]


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=5),
    direction=st.sampled_from(["forward", "backward", "both"]),
    seed=st.integers(0, 99),
)
def test_the_text_can_be_read_from_the_batch(lengths, direction, seed):
    """Every word is asked for exactly once, its row starts at the right end, frames survive."""
    ids = rows(lengths, 8, seed)
    objective = CausalLM(VOCABULARY, direction=direction, seed=seed)
    batch = objective.corrupt(ids, objective.generator(0, 0))
    seen, labels = batch["input_ids"], batch["labels"]
    for row, original, label, n in zip(seen, ids, labels, lengths, strict=True):
        back = row[0] == SEP
        assert back == (direction == "backward") or direction == "both"
        read = row[: n + 2][::-1] if back else row[: n + 2]
        assert np.array_equal(read, original[: n + 2]) and (row[n + 2 :] == PAD).all()
        assert np.array_equal(label[label != IGNORE], row[1 : n + 1])
    assert np.array_equal(batch["attention_mask"], seen != PAD)


def test_both_directions_are_equally_likely_and_repeatable():
    ids = rows([3] * 4000, 5)
    objective = CausalLM(VOCABULARY, direction="both", seed=3)
    first, again = (objective.batch(ids, epoch=2, index=5) for _ in range(2))
    turned = (first["input_ids"][:, 0] == SEP).double().mean().item()
    assert abs(turned - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], objective.batch(ids, epoch=3)["input_ids"])


def test_it_is_a_collator():
    """Lists of unequal length, as a DataLoader hands them over."""
    batch = CausalLM(VOCABULARY)([{"input_ids": [CLS, 7, 8, SEP]}, {"input_ids": [CLS, 9, SEP]}])
    assert batch["input_ids"].tolist() == [[CLS, 7, 8, SEP], [CLS, 9, SEP, PAD]]
    assert batch["labels"].tolist() == [[IGNORE, 7, 8, IGNORE], [IGNORE, 9, IGNORE, IGNORE]]


def test_show_pairs_each_token_with_the_next():
    shown = CausalLM(VOCABULARY).show("w3 w5")
    assert [(p.seen, p.target) for p in shown] == [
        ("[CLS]", "w3"), ("w3", "w5"), ("w5", None), ("[SEP]", None)
    ]  # fmt: skip
    shown = CausalLM(VOCABULARY, direction="backward").show("w3 w5")
    assert [p.seen for p in shown] == ["[SEP]", "w5", "w3", "[CLS]"]
    assert shown[0].target == "w5"


# --- the floor


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_the_floor_has_the_targets_of_the_batch(direction):
    ids = TINY.batch(6, 9, seed=1)
    ids[2, 5], ids[2, 6:] = TINY.vocabulary.sep_id, TINY.vocabulary.pad_id  # a shorter text
    objective = CausalLM(TINY.vocabulary, direction=direction, seed=4)
    batch = objective.batch(ids)
    floor = objective.floor(TINY, ids, batch)
    assert np.array_equal(floor.targets, (batch["labels"] != IGNORE).numpy())
    assert floor.loss.size == objective.count(batch)


def test_total_probability_is_the_same_in_both_directions():
    """For every text of the tiny language, though no single factor need be."""
    ids = TINY.batch(200, 10, seed=2)
    totals, tokens = [], []
    for direction in ("forward", "backward"):
        objective = CausalLM(TINY.vocabulary, direction=direction)
        floor = objective.floor(TINY, ids, objective.batch(ids))
        grid = np.nan_to_num(floor.grid(floor.loss))
        totals.append(grid.sum(1))
        tokens.append(grid[:, 1:-1])
    np.testing.assert_allclose(totals[0], totals[1], rtol=0, atol=1e-12)
    assert np.abs(tokens[0] - tokens[1][:, ::-1]).max() > 1


def test_the_ideal_predictor_reaches_the_floor_through_the_loss():
    """Logits that are the exact log-probabilities score exactly the floor's loss: no off by one."""
    from lossbook.corpora import causal_floor

    ids = TINY.batch(5, 8, seed=3)
    objective = CausalLM(TINY.vocabulary)
    batch = objective.batch(ids)
    floor = causal_floor(TINY, ids, log_probs=True)
    logits = np.zeros((*ids.shape, TINY.vocabulary.size))
    logits[:, :-1][floor.targets[:, 1:]] = np.maximum(floor.log_probs, -50)
    loss = objective.loss(torch.tensor(logits), batch)
    assert loss.item() == pytest.approx(floor.mean_loss, abs=1e-12)


def test_floors_that_cannot_be_are_refused():
    ids = TINY.batch(3, 8)
    with pytest.raises(ValueError, match="ends: expected False"):
        objective = CausalLM(TINY.vocabulary, ends=True)
        objective.floor(TINY, ids, objective.batch(ids))
    objective = CausalLM(TINY.vocabulary)
    with pytest.raises(ValueError, match="batch: expected what corrupt"):
        objective.floor(TINY, ids, CausalLM(TINY.vocabulary, direction="backward").batch(ids))


# --- packing


def unpacked(windows):
    """The documents again: by their separators, in a loop of its own."""
    stream = [int(i) for i in windows.ravel() if i != PAD]
    documents, current = [], []
    for token in stream:
        if token == SEP:
            documents.append(current)
            current = []
        else:
            current.append(token)
    assert not current
    return documents


@given(
    documents=st.lists(st.lists(st.integers(5, 16), max_size=9), max_size=8),
    length=st.integers(1, 12),
)
def test_documents_can_be_rebuilt_from_windows(documents, length):
    windows = pack([np.array(d, dtype=np.int64) for d in documents], length, SEP, PAD)
    assert unpacked(windows) == documents
    assert windows.shape[1] == length
    padding = windows.ravel() == PAD
    assert padding.sum() < length and not padding[: padding.size - padding.sum()].any()


def test_a_packing_that_loses_the_rest_is_noticed():
    """Planted: cut at full windows and drop what is left over."""
    documents = [np.array([5, 6, 7]), np.array([8, 9])]
    windows = pack(documents, 4, SEP, PAD)
    assert unpacked(windows) == [[5, 6, 7], [8, 9]]
    with pytest.raises(AssertionError):
        unpacked(windows.ravel()[:6].reshape(1, 6))


def test_a_separator_inside_a_document_is_refused():
    with pytest.raises(ValueError, match="documents: expected no separator"):
        pack([np.array([5, 6]), np.array([5, SEP, 6])], 4, SEP)


def test_document_numbers():
    ids = np.array([[5, 6, SEP, 7, SEP, SEP], [5, 5, 5, 5, 5, 5]])
    assert document_numbers(ids, SEP).tolist() == [[0, 0, 0, 1, 1, 2], [0] * 6]


def test_isolated_documents_are_scored_as_if_alone():
    """A packed window through the decoder = every document by itself, loss by loss."""
    documents = [np.array([5, 6, 7]), np.array([8, 9]), np.array([10, 11, 12, 13])]
    windows = pack(documents, 12, SEP, PAD)
    model = Decoder(TransformerConfig(VOCABULARY.size, 16, 2, 2, 12), seed=1).double()
    objective = CausalLM(VOCABULARY, ends=True, isolate=True)
    batch = objective.batch(windows)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "documents")}
    logits = model(**inputs).logits
    start = 0
    for ids in documents:
        alone = torch.tensor(np.append(ids, SEP))[None]
        part = logits[:, start : start + alone.shape[1]]
        torch.testing.assert_close(part, model(alone).logits, rtol=0, atol=1e-12)
        start += alone.shape[1]
    open_logits = model(batch["input_ids"]).logits
    assert not torch.allclose(open_logits[:, 4:], logits[:, 4:], atol=1e-3)


def test_mirrored_is_its_own_inverse():
    grid = np.arange(12).reshape(2, 6)
    lengths, turned = np.array([4, 6]), np.array([True, False])
    once = mirrored(grid, lengths, turned)
    assert once[0].tolist() == [3, 2, 1, 0, 4, 5] and np.array_equal(once[1], grid[1])
    assert np.array_equal(mirrored(once, lengths, turned), grid)


# --- oracle


def tiny_gpt2(activation="gelu"):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY.size, n_positions=16, n_embd=12, n_layer=2, n_head=3,
        activation_function=activation, initializer_range=0.5,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double()


def test_gpt2_of_transformers(monkeypatch):
    """Loss and the gradient of every parameter to 1e-12.

    transformers turns logits to float32 in front of the loss; that one cast is switched off here.
    """
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    model = tiny_gpt2()
    batch = CausalLM(VOCABULARY).batch(rows([7, 3, 5], 9, seed=5))
    output = model(**batch)
    theirs = torch.autograd.grad(output.loss, list(model.parameters()), retain_graph=True)
    loss = CausalLM(VOCABULARY).loss(output.logits, batch)
    ours = torch.autograd.grad(loss, list(model.parameters()))
    assert loss.dtype == output.loss.dtype == torch.float64
    assert abs((loss - output.loss).item()) <= 1e-13
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
