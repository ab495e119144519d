"""The decoder never sees the future."""

import numpy as np
import pytest
import torch

from lossbook.models import Decoder, TransformerConfig

CONFIG = TransformerConfig(vocab_size=23, width=12, layers=2, heads=3, max_length=9)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_later_token_moves_no_earlier_logit(norm, padded):
    """For every pair (t, s): changing token s moves logit t exactly where s ≤ t."""
    net = Decoder(TransformerConfig(23, 12, 2, 3, 9, norm=norm), seed=1).double()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (1, 9)))
    mask = torch.ones_like(ids) if padded else None
    before = net(ids, mask).logits[0]
    for s in range(9):
        changed = ids.clone()
        changed[0, s] = 22
        moved = (net(changed, mask).logits[0] - before).abs().amax(-1)
        assert (moved[:s] == 0).all() and (moved[s:] > 1e-9).all()


def test_left_padding_gives_the_same_logits_up_to_positions():
    """With the position table flat, a text padded on the left is the same text."""
    net = Decoder(CONFIG, seed=2).double()
    net.position.weight.data.zero_()
    ids = torch.tensor([[7, 3, 11, 5]])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = (torch.arange(7) >= 3)[None].long()
    got = net(padded, mask).logits[:, 3:]
    torch.testing.assert_close(got, net(ids).logits, rtol=0, atol=1e-13)


def test_number_of_parameters():
    v, c, n, t = 23, 12, 2, 9
    expected = v * c + t * c + n * (12 * c * c + 13 * c) + 2 * c
    assert sum(p.numel() for p in Decoder(CONFIG).parameters()) == expected


def test_logits_are_hidden_times_embedding():
    net = Decoder(CONFIG, seed=3).double()
    out = net(torch.arange(6)[None])
    torch.testing.assert_close(out.logits, out.hidden @ net.embedding.weight.T, rtol=0, atol=1e-12)
