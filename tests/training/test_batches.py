"""Batches are functions of their number, and cutting them loses nothing."""

import numpy as np
import pytest
import torch

from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.models import Decoder, Encoder, TransformerConfig
from lossbook.objectives import MaskedLM
from lossbook.training.batches import Batches, only_targets, pieces

LANGUAGE = HiddenMarkovLanguage.tiny()
CONFIG = TransformerConfig(LANGUAGE.vocabulary.size, 8, 1, 2, 16)


def batches(model=Encoder, seed=0, **options):
    objective = MaskedLM(LANGUAGE.vocabulary, **options)
    return Batches(model(CONFIG), objective, LANGUAGE, 4, 12, seed)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("duplicates", [None, 2])
def test_a_batch_depends_on_its_number_alone(duplicates):
    first, again = batches(duplicates=duplicates), batches(duplicates=duplicates)
    expected = [first.train(step) for step in range(4)]
    assert all(same(again.train(step), expected[step]) for step in (3, 0, 2))
    assert not same(expected[0], expected[1])


def test_validation_is_the_same_for_all_seeds_and_unlike_training():
    ids, batch = batches(seed=0).validation(1)
    assert same(batches(seed=9, duplicates=3).validation(1)[1], batch)
    assert not np.array_equal(ids, LANGUAGE.batch(4, 12, index=1))


def test_pieces_are_the_rows_in_order():
    batch = batches().train(0)
    for parts in (1, 2, 3, 4):
        cut = pieces(batch, parts)
        assert len(cut) == parts and min(len(p["labels"]) for p in cut) >= 1
        assert same({k: torch.cat([p[k] for p in cut]) for k in batch}, batch)


def test_only_targets_keeps_every_target_in_place():
    batch = batches(rate=0.5).train(0)
    asked = only_targets(batch)
    assert (asked["labels"] != -100).all()
    whole = torch.full((4, 12), -100).flatten()
    whole[asked["positions"]] = asked["labels"][0]
    assert torch.equal(whole.view(4, 12), batch["labels"])


def test_the_head_is_asked_where_model_and_objective_allow_it():
    here = torch.device("cpu")
    assert "positions" in batches(Encoder).ready(batches().train(0), here)
    assert "positions" not in batches(Decoder).ready(batches().train(0), here)
    shy = batches(Encoder)
    shy.at_targets = False
    assert same(shy.inputs(shy.ready(shy.train(0), here)), {"input_ids": shy.train(0)["input_ids"]})


def test_a_mask_that_hides_nothing_is_left_out():
    source, here = batches(), torch.device("cpu")
    batch = source.train(0)
    assert "attention_mask" not in source.ready(batch, here)
    batch["attention_mask"][0, -1] = 0
    assert "attention_mask" in source.ready(batch, here)
