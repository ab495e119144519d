"""The decoder never sees the future."""

import numpy as np
import pytest
import torch

from lossbook.models import Decoder, TransformerConfig
from lossbook.models.decoder import draw, sampling_law

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


def from_gpt2(model):
    """Our decoder with the weights of a GPT-2; its linear maps are stored transposed there."""
    shape = model.config
    net = Decoder(
        TransformerConfig(shape.vocab_size, shape.n_embd, shape.n_layer, shape.n_head,
                          shape.n_positions)
    ).double()  # fmt: skip
    names = {
        "transformer.wte": "embedding", "transformer.wpe": "position", "transformer.ln_f": "norm",
        "transformer.h": "blocks", "ln_1": "norm1", "ln_2": "norm2", "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out", "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down",
    }  # fmt: skip
    weights = {}
    for name, value in model.state_dict().items():
        linear = "c_" in name and name.endswith("weight")
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        if name != "lm_head.weight":
            weights[name] = value.T if linear else value
    net.load_state_dict(weights)
    return net


@pytest.mark.parametrize("activation, bound", [("gelu", 1e-12), ("gelu_new", 1e-2)])
def test_gpt2_with_the_same_weights_has_the_same_logits(activation, bound):
    """Exact GELU: to 1e-12. GPT-2's own activation is a tanh that stays close to it, not equal."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=29, n_positions=10, n_embd=12, n_layer=2, n_head=3,
        activation_function=activation, initializer_range=0.3,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).double().eval()
    ids = torch.from_numpy(np.random.default_rng(4).integers(0, 29, (3, 10)))
    gap = (from_gpt2(theirs)(ids).logits - theirs(ids).logits).abs().max().item()
    assert gap <= bound and (activation == "gelu" or gap > 1e-6)


# --- documents in one row


def test_a_token_moves_nothing_in_another_document():
    """For every pair (t, s): a change at s moves logit t exactly where s ≤ t in one document."""
    net = Decoder(CONFIG, seed=5).double()
    documents = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 20, (1, 9)))
    before = net(ids, documents=documents).logits[0]
    for s in range(9):
        changed = ids.clone()
        changed[0, s] = 22
        moved = (net(changed, documents=documents).logits[0] - before).abs().amax(-1) > 1e-9
        same = (documents[0] == documents[0, s]) & (torch.arange(9) >= s)
        assert torch.equal(moved, same)


def test_a_mask_without_boundaries_is_caught_by_the_same_test():
    """Planted: documents forgotten. A change in the first then reaches the last."""
    net = Decoder(CONFIG, seed=5).double()
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 20, (1, 9)))
    changed = ids.clone()
    changed[0, 0] = 22
    assert (net(changed).logits - net(ids).logits)[0, 8].abs().max() > 1e-9


# --- writing


def looped(net, ids, steps, choose):
    """Generation as it reads: one text, one token at a time."""
    ids = list(ids)
    for _ in range(steps):
        ids.append(choose(net(torch.tensor([ids])).logits[0, -1]))
    return ids


def test_greedy_is_the_argmax_loop():
    net = Decoder(CONFIG, seed=6).double()
    start = torch.tensor([[3, 5], [7, 1], [2, 2]])
    found = net.generate(start, 6, temperature=0)
    for row, ids in zip(found.tolist(), start.tolist(), strict=True):
        assert row == looped(net, ids, 6, lambda z: int(z.argmax()))


def test_sampling_is_a_loop_over_the_same_draws():
    net = Decoder(CONFIG, seed=6).double()
    found = net.generate(torch.tensor([[4, 9]]), 5, np.random.default_rng(3), temperature=0.7)
    rng = np.random.default_rng(3)
    law = lambda z: int(rng.choice(23, p=(z / 0.7).softmax(-1).detach().numpy()))  # noqa: E731
    assert found[0].tolist() == looped(net, [4, 9], 5, law)


def test_frequencies_are_the_softmax():
    """40,000 texts of one token: chi-square against softmax(z / τ), and planted wrong laws."""
    from scipy import stats

    net = Decoder(CONFIG, seed=7).double()
    net.embedding.weight.data *= 30
    start = torch.tensor([[3, 5]])
    z = net(start).logits[0, -1].detach()
    law = sampling_law(z[None], temperature=1.5)
    tokens = draw(law.expand(40_000, -1), np.random.default_rng(0))
    counts = np.bincount(tokens.numpy(), minlength=23)
    right = (z / 1.5).softmax(-1).numpy()
    assert stats.chisquare(counts, right * 40_000).pvalue > 1e-3
    wrong = z.softmax(-1).numpy()  # the temperature forgotten
    assert stats.chisquare(counts, wrong * 40_000).pvalue < 1e-6


@pytest.mark.parametrize("top_k, top_p", [(None, None), (1, None), (5, None), (None, 0.3),
                                          (None, 0.9), (8, 0.6), (100, 1.0)])  # fmt: skip
def test_truncation_is_that_of_transformers(top_k, top_p):
    """Their warpers in their order: temperature, top-k, top-p."""
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    z = torch.from_numpy(np.random.default_rng(8).normal(size=(50, 23)) * 2)
    theirs = TemperatureLogitsWarper(0.8)(None, z)
    if top_k is not None:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p is not None and top_p < 1:
        theirs = TopPLogitsWarper(top_p)(None, theirs)
    ours = sampling_law(z, temperature=0.8, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(ours, theirs.softmax(-1), rtol=0, atol=1e-14)


def test_the_nucleus_by_hand():
    z = torch.tensor([0.5, 0.1, 0.3, 0.1]).double().log()
    kept = sampling_law(z, top_p=0.7)
    torch.testing.assert_close(kept, torch.tensor([5 / 8, 0, 3 / 8, 0]).double())
    assert sampling_law(z, temperature=0).tolist() == [1, 0, 0, 0]
    equal = sampling_law(torch.zeros(4), temperature=0)
    assert equal.tolist() == [1, 0, 0, 0]  # the first of equals


def test_forbidden_tokens_and_ends():
    net = Decoder(CONFIG, seed=9).double()
    rng = np.random.default_rng(1)
    found = net.generate(torch.tensor([[1]] * 30), 8, rng, temperature=5.0, forbidden=range(20))
    assert found[:, 1:].min() >= 20
    found = net.generate(torch.tensor([[1]] * 30), 8, rng, temperature=5.0, end=4)
    for row in found.tolist():
        after = row[row.index(4) :] if 4 in row else []
        assert set(after) <= {4}
    stopped = net.generate(torch.tensor([[1]]), 8, rng, forbidden=[*range(4), *range(5, 23)], end=4)
    assert stopped.tolist() == [[1, 4]]


def test_dropout_is_off_while_writing_and_on_again():
    net = Decoder(TransformerConfig(23, 12, 2, 3, 9, dropout=0.5), seed=1).train()
    start = torch.tensor([[1, 2]])
    a, b = (net.generate(start, 6, temperature=0) for _ in range(2))
    assert torch.equal(a, b) and net.training


def test_bad_requests_speak(untyped):
    net = Decoder(CONFIG)
    with pytest.raises(ValueError, match=r"steps: expected 0 to max_length - T = 7"):
        net.generate(torch.tensor([[1, 2]]), 8, temperature=0)
    with pytest.raises(ValueError, match="rng: expected a numpy Generator"):
        net.generate(torch.tensor([[1]]), 1)
    with pytest.raises(ValueError, match="top_p: expected"):
        sampling_law(torch.zeros(3), top_p=0.0)
    with pytest.raises(ValueError, match="documents: expected the shape"):
        net(torch.tensor([[1, 2]]), documents=torch.tensor([[0, 0, 0]]))


# --- scoring


def test_a_score_is_the_loss_of_the_continuation():
    """Minus the sum of the score = the summed causal loss at the continuation's labels."""
    from lossbook.objectives import shifted_cross_entropy

    net = Decoder(CONFIG, seed=10).double()
    context, continuation = torch.tensor([2, 7, 9]), torch.tensor([4, 4, 11])
    score = net.score(context, continuation)
    ids = torch.cat([context, continuation])[None]
    labels = ids.clone()
    labels[:, :3] = -100
    loss = shifted_cross_entropy(net(ids).logits, labels, reduction="sum")
    torch.testing.assert_close(-score.sum(), loss, rtol=0, atol=1e-12)
    step = net(ids[:, :4]).logits[0, -1].log_softmax(-1)[4]
    torch.testing.assert_close(score[1], step, rtol=0, atol=1e-12)


def test_continuations_are_a_distribution():
    """All 23² continuations of two tokens together have probability 1."""
    net = Decoder(CONFIG, seed=11).double()
    with torch.no_grad():
        pairs = torch.cartesian_prod(torch.arange(23), torch.arange(23))
        ids = torch.cat([torch.tensor([[2, 7]]).expand(len(pairs), -1), pairs], 1)
        total = net.log_probs(ids)[:, 2:].sum(1).exp().sum()
    assert abs(total.item() - 1) < 1e-12
