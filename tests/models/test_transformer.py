"""The block is the formula of the paper, and the trunk refuses what it cannot read."""

import math

import numpy as np
import pytest
import torch

from lossbook.models import Block, Decoder, Encoder, TransformerConfig
from lossbook.models.transformer import visibility

CONFIG = TransformerConfig(vocab_size=23, width=12, layers=3, heads=3, max_length=9, expansion=2)


def numpy_norm(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def numpy_attention(w, x, heads, causal, keys):
    batch, time, width = x.shape
    y, size = np.empty_like(x), width // heads
    q, k, v = np.split(x @ w["attention.qkv.weight"].T + w["attention.qkv.bias"], 3, -1)
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(time):
                sees = [s for s in range(time) if keys[b, s] and (s <= t or not causal)]
                scores = np.array([q[b, t, part] @ k[b, s, part] for s in sees]) / math.sqrt(size)
                p = np.exp(scores - scores.max())
                y[b, t, part] = (p / p.sum()) @ v[b, sees, part]
    return y @ w["attention.out.weight"].T + w["attention.out.bias"]


def numpy_mlp(w, x):
    z = x @ w["mlp.up.weight"].T + w["mlp.up.bias"]
    gelu = z * 0.5 * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return gelu @ w["mlp.down.weight"].T + w["mlp.down.bias"]


def numpy_block(w, x, config, causal, keys):
    def norm(y, i):
        return numpy_norm(y, w[f"norm{i}.weight"], w[f"norm{i}.bias"], config.norm_eps)

    if config.norm == "pre":
        x = x + numpy_attention(w, norm(x, 1), config.heads, causal, keys)
        return x + numpy_mlp(w, norm(x, 2))
    x = norm(x + numpy_attention(w, x, config.heads, causal, keys), 1)
    return norm(x + numpy_mlp(w, x), 2)


def random_block(config, causal, rng):
    block = Block(config, causal).double()
    for p in block.parameters():
        p.data.copy_(torch.from_numpy(rng.normal(0, 0.5, p.shape)))
    return block


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_block_equals_plain_numpy(norm, causal, padded):
    """float64 and sums of at most 24 terms: rounding stays far below 1e-12."""
    config = TransformerConfig(vocab_size=5, width=12, heads=3, expansion=2, norm=norm)
    rng = np.random.default_rng(0)
    block, x = random_block(config, causal, rng), rng.normal(size=(2, 5, 12))
    keys = np.ones((2, 5), dtype=int)
    keys[0, 3:] = 0 if padded else 1
    visible = visibility(torch.from_numpy(keys), causal) if padded else None
    weights = {name: p.detach().numpy() for name, p in block.named_parameters()}
    expected = numpy_block(weights, x, config, causal, keys)
    got = block(torch.from_numpy(x), visible).detach().numpy()
    seen = keys.astype(bool)  # what stands at padding means nothing
    np.testing.assert_allclose(got[seen], expected[seen], rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_gradient_of_block_equals_finite_differences(norm):
    config = TransformerConfig(vocab_size=5, width=4, heads=2, expansion=2, norm=norm)
    block = random_block(config, True, np.random.default_rng(1))
    x = torch.from_numpy(np.random.default_rng(2).normal(size=(1, 3, 4))).requires_grad_()
    names, values = zip(*block.named_parameters(), strict=True)

    def call(x, *values):
        return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("model", [Encoder, Decoder])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_padding_changes_nothing(model, norm):
    """Three texts of 4, 6 and 2 tokens alone, and padded to 6: the same logits."""
    config = TransformerConfig(vocab_size=23, width=12, heads=3, norm=norm)
    net = model(config, seed=3).double()
    rng, lengths = np.random.default_rng(0), (4, 6, 2)
    ids = torch.from_numpy(rng.integers(0, 23, (3, 6)))
    mask = torch.tensor([[int(t < n) for t in range(6)] for n in lengths])
    together = net(ids, mask).logits
    for b, n in enumerate(lengths):
        alone = net(ids[b : b + 1, :n]).logits[0]
        torch.testing.assert_close(together[b, :n], alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("model", [Encoder, Decoder])
def test_a_row_of_padding_alone_gives_no_nan(model):
    net = model(CONFIG)
    ids, mask = torch.zeros(2, 4, dtype=torch.long), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]])
    loss = net(ids, mask).logits.square().sum()
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("model", [Encoder, Decoder])
def test_same_seed_same_weights_and_deviation(model):
    config = TransformerConfig(vocab_size=400, width=128, layers=4, heads=4)
    first, again, other = model(config, seed=5), model(config, seed=5), model(config, seed=6)
    for (name, p), q, r in zip(
        first.named_parameters(), again.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(p, q)
        if p.ndim == 2:
            assert not torch.equal(p, r)
            std = 0.02 / math.sqrt(8) if name.endswith(("out.weight", "down.weight")) else 0.02
            # the deviation of n normals is off by std / √(2n), n ≥ 8192: 5 of these are 4 %
            assert p.std().item() == pytest.approx(std, rel=0.04), name
        else:
            assert p.unique().tolist() == ([1.0] if "norm" in name and "weight" in name else [0.0])


def test_weights_are_numpys():
    """The first matrix is the first draw of the named generator, so no platform can differ."""
    first = 0.02 * np.random.default_rng([7]).standard_normal((23, 12))
    got = Decoder(CONFIG, seed=7).embedding.weight.detach().numpy()
    np.testing.assert_array_equal(got, first.astype(np.float32))


def test_dropout_is_off_in_evaluation_and_on_in_training():
    net = Encoder(TransformerConfig(vocab_size=23, width=12, heads=3, dropout=0.5))
    ids = torch.arange(8)[None]
    assert torch.equal(net.eval()(ids).logits, net(ids).logits)
    assert not torch.equal(net.train()(ids).logits, net(ids).logits)


@pytest.mark.parametrize("model", [Encoder, Decoder])
@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([[1, 2, 23]], None, "input_ids: expected ids from 0 to vocab_size - 1 = 22, got 23"),
        ([[1, -4, 2]], None, "input_ids: .* got -4"),
        ([[0] * 10], None, r"input_ids: expected at most max_length=9 tokens, got \(1, 10\)"),
        ([[1, 2, 3]], [[1, 1]], r"attention_mask: expected the shape of input_ids, \(1, 3\), got"),
        ([[1, 2, 3]], [1, 1, 1], "attention_mask: "),
    ],
)
def test_bad_input_is_refused_by_name(model, ids, mask, words):
    mask = None if mask is None else torch.tensor(mask)
    with pytest.raises(ValueError, match=words):
        model(CONFIG)(torch.tensor(ids), mask)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 10, "heads": 4}, "width: expected a multiple of heads=4, got 10"),
        ({"layers": 0}, "layers: expected an int of at least 1, got 0"),
        ({"heads": -1}, "heads: "),
        ({"dropout": 1.0}, "dropout: "),
        ({"norm": "none"}, "norm: "),
        ({"norm_eps": 0.0}, "norm_eps: "),
    ],
)
def test_impossible_shapes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        TransformerConfig(**{"vocab_size": 23, **options})


def test_what_each_query_may_see():
    """Left padding, three tokens: a padded query sees itself, so that no softmax is empty."""
    mask = torch.tensor([[0, 1, 1]])
    assert visibility(mask, causal=False).int().tolist() == [[[[0, 1, 1]]]]
    assert visibility(mask, causal=True).int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]]
    assert visibility(None, causal=True) is None
