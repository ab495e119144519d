"""What all objectives share: collation, seeds, static corruption, and the contract of collators.

Masked LM stands for all of them here.
"""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lossbook.corpora.vocabulary import Vocabulary
from lossbook.objectives import MaskedLM
from lossbook.objectives.base import pad

WORDS = [f"w{i}" for i in range(20)]
VOCABULARY = Vocabulary.from_words(WORDS)
KEYS = ["input_ids", "attention_mask", "labels"]


def texts(lengths, seed=0):
    """Rows [CLS] ... [SEP] of these lengths."""
    rng = np.random.default_rng(seed)
    words = [rng.choice(VOCABULARY.ordinary_ids, n - 2) for n in lengths]
    return [np.array([VOCABULARY.cls_id, *row, VOCABULARY.sep_id]) for row in words]


def same(a, b):
    return all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in KEYS)


# --- Collation ----------------------------------------------------------------------------------

FORMS = {
    "dicts of arrays": lambda rows: [{"input_ids": row} for row in rows],
    "dicts of lists": lambda rows: [{"input_ids": row.tolist()} for row in rows],
    "dicts of tensors": lambda rows: [{"input_ids": torch.from_numpy(row)} for row in rows],
    "arrays": lambda rows: rows,
    "lists": lambda rows: [row.tolist() for row in rows],
    "tensors": lambda rows: [torch.from_numpy(row) for row in rows],
    "array": lambda rows: pad(rows, VOCABULARY.pad_id),
    "tensor": lambda rows: torch.from_numpy(pad(rows, VOCABULARY.pad_id)),
    "int32": lambda rows: [row.astype(np.int32) for row in rows],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("duplicates", [None, 1])
def test_every_form_of_examples_gives_the_same_batch(form, duplicates):
    rows = texts([7, 3, 12])
    expected = MaskedLM(VOCABULARY, rate=0.4, duplicates=duplicates)(rows)
    batch = MaskedLM(VOCABULARY, rate=0.4, duplicates=duplicates)(FORMS[form](rows))
    assert sorted(batch) == sorted(KEYS)
    assert same(batch, expected) and expected["labels"].shape == (3, 12)
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert batch["attention_mask"].sum(1).tolist() == [7, 3, 12]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=5))
def test_padding_fills_rows_up_on_the_right(rows):
    width = max(map(len, rows))
    expected = [row + [0] * (width - len(row)) for row in rows]
    assert pad(rows, 0).tolist() == expected
    assert pad(rows, 0, width + 2).tolist() == [[*row, 0, 0] for row in expected]


def test_segment_ids_travel_along():
    examples = [{"input_ids": row, "token_type_ids": [1] * len(row)} for row in texts([4, 6])]
    assert MaskedLM(VOCABULARY)(examples)["token_type_ids"].tolist() == [[1] * 4 + [0] * 2, [1] * 6]


@pytest.mark.parametrize(
    "examples, message",
    [
        ([], r"examples: expected at least one example, got \[\]"),
        ([[0.5, 1.5]], r"examples: expected integer ids, got .*float64"),
        (np.zeros(3, int), r"examples: expected an array \[batch, time\], got \(3,\)"),
        ([[[1, 2], [3, 4]]], r"examples: expected 1-D rows of ids"),
        ([[2, 99, 3]], r"ids: expected .*0 to 24, got 99"),
    ],
)
def test_bad_examples_are_refused_by_name(examples, message):
    with pytest.raises(ValueError, match=message):
        MaskedLM(VOCABULARY)(examples)


# --- Seeds: dynamic and static ------------------------------------------------------------------


def test_dynamic_masks_depend_on_seed_epoch_and_index_and_on_nothing_else():
    ids = np.stack(texts([40] * 8))
    objective = MaskedLM(VOCABULARY)
    batch = objective.batch(ids, epoch=3, index=5)
    assert same(batch, MaskedLM(VOCABULARY).batch(ids, epoch=3, index=5))
    assert not same(batch, objective.batch(ids, epoch=4, index=5))
    assert not same(batch, objective.batch(ids, epoch=3, index=6))
    assert not same(batch, MaskedLM(VOCABULARY, seed=1).batch(ids, epoch=3, index=5))


def test_calls_are_the_batches_of_the_epoch():
    """A collator called k times stands where generator(epoch, k) is."""
    ids = np.stack(texts([40] * 8))
    objective = MaskedLM(VOCABULARY, seed=7)
    for epoch in (0, 1, 0):
        objective.set_epoch(epoch)
        for index in range(3):
            assert same(objective(ids), objective.batch(ids, epoch=epoch, index=index))


def test_static_masks_cycle_through_the_duplicates():
    ids = np.stack(texts([40] * 8))
    objective = MaskedLM(VOCABULARY, duplicates=3)
    copies = [objective.batch(ids, epoch=epoch) for epoch in range(7)]
    agree = [[same(a, b) for b in copies] for a in copies]
    assert agree == [[(i - j) % 3 == 0 for j in range(7)] for i in range(7)]
    collated = []
    for epoch in range(7):
        objective.set_epoch(epoch)
        collated.append(objective(ids))
    assert all(same(a, b) for a, b in zip(collated, copies, strict=True))


def rows_of(batch, rows):
    """(input, labels) of each row without its padding, in the order of ``rows``."""
    width = batch["attention_mask"].sum(1).tolist()
    return {
        int(row): [batch[key][i, :n].tolist() for key in ("input_ids", "labels")]
        for i, (row, n) in enumerate(zip(rows, width, strict=True))
    }


class PerBatch(MaskedLM):
    """Static per batch: one generator for all rows, whatever their ids."""

    def corrupt_rows(self, ids, row_ids=None, epoch=0):
        return self.corrupt(ids, self.generator(epoch, 0))


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("selection", ["bernoulli", "count", "rounding"])
def test_a_static_mask_belongs_to_the_example_not_to_its_batch(named, selection):
    """Shuffled, cut into other batches, padded to other widths: each row keeps its mask."""
    rows = texts([12, 30, 7, 3, 25, 18, 40, 9])
    order = np.array([5, 0, 7, 2, 6, 1, 4, 3])

    def masks(kind):
        objective = kind(VOCABULARY, rate=0.4, selection=selection, duplicates=2)
        together, apart = {}, {}
        for found, parts in ((together, [np.arange(8)]), (apart, np.split(order, [3, 4]))):
            for part in parts:
                ids = pad([rows[i] for i in part], VOCABULARY.pad_id)
                batch = objective.batch(ids, epoch=1, row_ids=part if named else None)
                found.update(rows_of(batch, part))
        return together, apart

    together, apart = masks(MaskedLM)
    assert together == apart
    together, apart = masks(PerBatch)
    assert together != apart


def test_equal_texts_have_masks_of_their_own_where_rows_are_named():
    ids = np.repeat(np.stack(texts([40])), 2, axis=0)
    objective = MaskedLM(VOCABULARY, duplicates=1)
    named, unnamed = objective.batch(ids, row_ids=[8, 9]), objective.batch(ids)
    assert not torch.equal(*named["labels"]) and torch.equal(*unnamed["labels"])
    collated = objective([{"input_ids": row, "row_id": 8 + i} for i, row in enumerate(ids)])
    assert same(collated, named)


def test_static_masks_follow_the_same_law():
    """A stream per row: 0.15 of the tokens, to 4 standard errors."""
    ids = np.stack(texts([102] * 2000))
    count = MaskedLM.count(objective := MaskedLM(VOCABULARY, duplicates=1), objective.batch(ids))
    assert abs(count - 30_000) <= 4 * np.sqrt(200_000 * 0.15 * 0.85)


def test_one_name_for_each_row():
    with pytest.raises(ValueError, match="row_ids: expected one for each of 2 rows, got 1"):
        MaskedLM(VOCABULARY, duplicates=1).batch(np.stack(texts([5, 5])), row_ids=[1])


# --- In torch's DataLoader ----------------------------------------------------------------------


def clean_start():
    """Workers from a process without JAX: a fork of this one would copy its threads' locks."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["lossbook.objectives"])
    return found


def passes(objective, workers, epochs):
    """The labels of one pass per entry of ``epochs``; None leaves the epoch alone."""
    rows, found = texts([30] * 24), []
    for epoch in epochs:
        if epoch is not None:
            objective.set_epoch(epoch)
        how = {"num_workers": workers, "multiprocessing_context": clean_start()} if workers else {}
        loader = DataLoader(rows, batch_size=4, collate_fn=objective, **how)
        found.append(torch.cat([batch["labels"] for batch in loader]))
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_passes_of_a_data_loader(workers):
    """Repeatable where the epoch is set, different between epochs, and between workers."""
    first, second, again = passes(MaskedLM(VOCABULARY), workers, [0, 1, 0])
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert (first != -100).any()
    patterns = (first != -100).view(6, 4, 30)
    assert len({tuple(p.flatten().tolist()) for p in patterns}) == 6  # no batch repeats another


def test_fresh_workers_do_not_repeat_their_masks_when_nobody_sets_the_epoch():
    first, second = passes(MaskedLM(VOCABULARY), 2, [None, None])
    assert not torch.equal(first, second)


def test_static_masks_are_the_same_in_any_number_of_workers():
    alone, shared = (passes(MaskedLM(VOCABULARY, duplicates=1), n, [0])[0] for n in (0, 2))
    assert torch.equal(alone, shared)


# --- Beside transformers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    ids = {token: i for i, token in enumerate(VOCABULARY.tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="[UNK]")),
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")},
    )


def contract(batch):
    """What a model relies on."""
    chosen = batch["labels"] != -100
    return {
        "keys": sorted(batch),
        "types": {key: (type(batch[key]), batch[key].dtype) for key in sorted(batch)},
        "shapes": {key: tuple(batch[key].shape) for key in sorted(batch)},
        "attention": batch["attention_mask"].tolist(),
        "visible elsewhere": torch.where(chosen, batch["labels"], batch["input_ids"]).tolist(),
    }


def test_the_batch_keeps_the_contract_of_transformers_collator(tokenizer):
    from transformers import DataCollatorForLanguageModeling

    theirs = DataCollatorForLanguageModeling(tokenizer)
    examples = [{"input_ids": row.tolist()} for row in texts([9, 4, 17])]
    assert contract(MaskedLM(VOCABULARY)(examples)) == contract(theirs(examples))


def test_a_batch_of_transformers_collator_has_the_same_loss_here(tokenizer):
    """Their labels, torch's own cross-entropy: to 1e-12 in float64."""
    from transformers import DataCollatorForLanguageModeling

    batch = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.4)(
        [{"input_ids": row.tolist()} for row in texts([9, 4, 17])]
    )
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 17, VOCABULARY.size)))
    expected = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"])
    objective = MaskedLM(VOCABULARY)
    assert abs(objective.loss(logits, batch) - expected).item() <= 1e-12
    assert objective.count(batch) == int((batch["labels"] != -100).sum()) > 0


def test_the_trainer_of_transformers_takes_it_as_its_data_collator(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

    config = BertConfig(vocab_size=VOCABULARY.size, hidden_size=16, num_hidden_layers=1,
                        num_attention_heads=1, intermediate_size=16)  # fmt: skip
    arguments = TrainingArguments(str(tmp_path), max_steps=3, per_device_train_batch_size=4,
                                  report_to=[], use_cpu=True, disable_tqdm=True)  # fmt: skip
    objective = MaskedLM(VOCABULARY, rate=0.4)
    trainer = Trainer(
        BertForMaskedLM(config),
        arguments,
        data_collator=objective,
        train_dataset=[{"input_ids": row} for row in texts([9] * 12)],
    )
    assert 0 < trainer.train().training_loss < 10
    assert objective.calls >= 3


# --- For people ---------------------------------------------------------------------------------


def test_show_gives_the_original_what_is_seen_and_the_target():
    text = " ".join(WORDS)
    shown = MaskedLM(VOCABULARY, rate=0.5, seed=1).show(text)
    assert [row.original for row in shown] == ["[CLS]", *WORDS, "[SEP]"]
    assert all(row.target in (None, row.original) for row in shown)
    assert all(row.seen == row.original for row in shown if row.target is None)
    targets = [row for row in shown if row.target is not None]
    assert 5 <= len(targets) <= 15 and "[MASK]" in {row.seen for row in targets}
    assert shown == MaskedLM(VOCABULARY, rate=0.5, seed=1).show(text)
    assert shown != MaskedLM(VOCABULARY, rate=0.5).show(text, np.random.default_rng(5))
