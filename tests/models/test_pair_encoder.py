"""The encoder of two segments: its head, its embeddings, and the encoder that it extends."""

import pytest
import torch

from lossbook.models import Encoder, PairEncoder, TransformerConfig

CONFIG = TransformerConfig(11, 8, 2, 2, 12)


def inputs():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 11, (3, 12), generator=generator)
    kinds = (torch.arange(12) > 5).long().expand(3, -1)
    mask = (torch.arange(12) < 10).long().expand(3, -1)
    return ids, mask, kinds


def test_an_encoder_keeps_its_initial_weights():
    """What both have is equal, so that nothing recorded with an Encoder changes."""
    plain, pairs = Encoder(CONFIG, seed=3).state_dict(), PairEncoder(CONFIG, seed=3).state_dict()
    assert set(plain) < set(pairs)
    assert all(torch.equal(pairs[name], value) for name, value in plain.items())
    assert all(pairs[name].std() > 0.01 for name in ("token_type.weight", "pair.pooler.weight"))


def test_the_head_is_berts():
    """tanh of a dense layer at [CLS], then two logits (google-research/bert, modeling.py)."""
    model = PairEncoder(CONFIG, seed=1).double()
    ids, mask, kinds = inputs()
    output = model(ids, mask, token_type_ids=kinds)
    pooler, answer = model.pair.pooler, model.pair.answer
    pooled = torch.tanh(output.hidden[:, 0] @ pooler.weight.T + pooler.bias)
    assert torch.allclose(output.pair_logits, pooled @ answer.weight.T + answer.bias, atol=1e-14)
    assert output.logits.shape == (3, 12, 11) and output.pair_logits.shape == (3, 2)


def test_segments_matter_and_are_0_by_default():
    model, (ids, mask, kinds) = PairEncoder(CONFIG, seed=1).double(), inputs()
    default = model(ids, mask)
    zeros = model(ids, mask, token_type_ids=torch.zeros_like(ids))
    assert torch.equal(default.pair_logits, zeros.pair_logits)
    assert not torch.allclose(default.pair_logits, model(ids, mask, None, kinds).pair_logits)


def test_segments_are_added_to_the_embeddings():
    """With the same vector for both kinds and that vector in the positions instead: equal."""
    model, (ids, mask, kinds) = PairEncoder(CONFIG, seed=1).double(), inputs()
    other = PairEncoder(CONFIG, seed=1).double()
    with torch.no_grad():
        model.token_type.weight[:] = model.token_type.weight[0]
        other.position.weight += model.token_type.weight[0]
        other.token_type.weight.zero_()
    one, two = model(ids, mask, None, kinds), other(ids, mask, None, kinds)
    assert torch.allclose(one.pair_logits, two.pair_logits, atol=1e-13)


def test_padding_is_invisible():
    model, (ids, mask, kinds) = PairEncoder(CONFIG, seed=1).double(), inputs()
    changed = torch.where(mask == 1, ids, (ids + 1) % 11)
    one, two = model(ids, mask, None, kinds), model(changed, mask, None, kinds)
    assert torch.equal(one.pair_logits, two.pair_logits)


def test_another_shape_is_refused(untyped):
    model, (ids, mask, kinds) = PairEncoder(CONFIG), inputs()
    with pytest.raises(ValueError, match=r"token_type_ids: expected the shape of input_ids"):
        model(ids, mask, None, kinds[:, :5])
