"""The encoder sees both sides, and its head may be asked at some positions only."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lossbook.models import Encoder, TransformerConfig

CONFIG = TransformerConfig(vocab_size=23, width=12, layers=2, heads=3, max_length=9)


def test_every_token_moves_every_logit():
    net = Encoder(CONFIG, seed=1).double()
    ids = torch.arange(9)[None]
    before = net(ids).logits[0]
    for t in range(9):
        changed = ids.clone()
        changed[0, t] = 20
        assert ((net(changed).logits[0] - before).abs().amax(-1) > 0).all()


def test_number_of_parameters():
    v, c, n, t = 23, 12, 2, 9
    blocks = n * (12 * c * c + 13 * c)  # 4 C² attention, 8 C² feed-forward, 9 C biases, 4 C norms
    head = c * c + c + 2 * c + v  # dense, norm, output bias; the matrix is the embedding
    expected = v * c + t * c + blocks + 2 * c + head
    assert sum(p.numel() for p in Encoder(CONFIG).parameters()) == expected


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("layers", [1, 2])
def test_head_at_positions_equals_the_same_rows_of_the_whole(norm, layers):
    """Value and gradient; in float64, where the order of sums costs less than 1e-12."""
    net = Encoder(TransformerConfig(23, 12, layers, 3, 9, norm=norm), seed=2).double()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 23, (3, 7)))
    positions = torch.tensor([0, 4, 9, 20])
    whole, part = net(ids).logits.flatten(0, 1)[positions], net(ids, positions=positions).logits
    assert part.shape == (1, 4, 23)
    torch.testing.assert_close(part[0], whole, rtol=0, atol=1e-12)
    grads = [torch.autograd.grad(x.square().sum(), net.parameters()) for x in (whole, part)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_no_position_gives_no_logits_and_a_zero_gradient():
    net = Encoder(CONFIG)
    logits = net(torch.arange(5)[None], positions=torch.tensor([], dtype=torch.long)).logits
    assert logits.shape == (1, 0, 23)
    logits.sum().backward()
    assert all(not p.grad.any() for p in net.parameters())


def test_the_head_is_the_embedding_with_a_bias():
    net = Encoder(CONFIG, seed=4).double()
    net.head.bias.data.copy_(torch.arange(23))
    out = net(torch.arange(6)[None])
    inner = net.head.norm(F.gelu(net.head.dense(out.hidden)))
    expected = inner @ net.embedding.weight.T + torch.arange(23)
    torch.testing.assert_close(out.logits, expected, rtol=0, atol=1e-12)
