"""The infilling model: who sees whom, its positions, its order, and GLM-130B's two options."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lossbook.corpora import Vocabulary
from lossbook.models import Decoder, Infiller, TransformerConfig, infilling_visibility
from lossbook.models.transformer import Block
from lossbook.objectives import BlankInfilling
from lossbook.objectives.blank_infilling import Spans

WORDS = Vocabulary.from_words(f"w{i}" for i in range(18))
CONFIG = TransformerConfig(vocab_size=23, width=12, layers=2, heads=3, max_length=16)
NAMES = ("input_ids", "attention_mask", "position_ids", "block_position_ids")


def batch_of(orders, time=12, spans=((2, 2), (5, 1), (7, 3)), seed=0):
    """The same text and spans once for each order of the pieces, as tensors."""
    rng = np.random.default_rng(seed)
    ids = np.repeat(rng.choice(WORDS.ordinary_ids, (1, time)), len(orders), axis=0)
    ids[:, 0], ids[:, -1] = 2, 3
    rows = []
    for order in orders:
        first = BlankInfilling(WORDS, order="left-to-right")
        start, length = np.array(spans).T
        one = Spans(np.zeros(len(start), int), start, length, np.full(len(start), 4))
        arrays = first.layout(ids[:1], one, rng)
        a = int((arrays["block_position_ids"] == 0).sum())
        size = length + 1
        begin = a + np.cumsum(size) - size
        index = [*range(a), *(begin[k] + j for k in order for j in range(size[k]))]
        rows.append({name: array[0][index] for name, array in arrays.items()})
    return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}


def model(seed=0, scale=20.0, **options):
    """In float64, with weights so large that every connection matters."""
    net = Infiller(options.pop("config", CONFIG), seed, **options).double()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.mul_(scale if p.shape[0] > 20 else scale / 2)
    return net


def logits(net, batch):
    return net(**{name: batch[name] for name in NAMES if name in batch}).logits


# --- Who sees whom --------------------------------------------------------------------------------


def may_see(block, query, key):
    """The rule in words: A sees A, B sees A and what of B is not behind it."""
    if block[key] == 0:
        return True
    return block[query] > 0 and key <= query


def moved(net, batch):
    """moved[q, k]: whether changing the token at k moves any logit at q."""
    before = logits(net, batch)[0]
    time = before.shape[0]
    found = np.zeros((time, time), bool)
    for k in range(time):
        other = {name: value.clone() for name, value in batch.items()}
        other["input_ids"][0, k] = 22 if other["input_ids"][0, k] != 22 else 21
        found[:, k] = ((logits(net, other)[0] - before).abs().amax(-1) > 0).numpy()
    return found


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("norm", ["pre", "post", "deep"])
def test_every_pair_of_positions_sees_exactly_what_it_may(order, norm):
    """Not one logit moves by one bit where it must not, and every visible token moves some."""
    config = TransformerConfig(23, 12, 2, 3, 16, norm=norm)
    batch = batch_of([order])
    block = batch["block_position_ids"][0].tolist()
    time = len(block)
    expected = [[may_see(block, q, k) for k in range(time)] for q in range(time)]
    net = model(config=config, scale=2.0 if norm == "deep" else 20.0)
    assert np.array_equal(moved(net, batch), expected)


class PaddingMaskOnly(Infiller):
    """The padding mask stands for the whole mask: everything sees everything."""

    def encode(self, *arguments, visible=None, **options):
        return super().encode(*arguments, visible=torch.ones_like(visible), **options)


class AllSeesB(Infiller):
    """B is right; A sees B, and B sees it there one layer later."""

    def encode(self, *arguments, visible=None, **options):
        size = visible.shape[-1]
        a = visible[0, 0].sum(-1) == visible[0, 0].sum(-1).min()
        open_rows = a[None, None, :, None].expand(1, 1, size, size)
        return super().encode(*arguments, visible=visible | open_rows, **options)


@pytest.mark.parametrize("leak", [PaddingMaskOnly, AllSeesB])
def test_the_check_of_the_mask_catches_leaks(leak):
    batch = batch_of([(0, 1, 2)])
    block = batch["block_position_ids"][0].tolist()
    net = leak(CONFIG).double()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20 if p.ndim > 1 else 1)
    seen = moved(net, batch)
    expected = [[may_see(block, q, k) for k in range(len(block))] for q in range(len(block))]
    assert (seen & ~np.array(expected)).any()


def test_padding_changes_nothing_and_gives_no_nan():
    batch = batch_of([(1, 0, 2)])
    net = model()
    alone = logits(net, batch)
    wide = {name: torch.nn.functional.pad(batch[name], (0, 5)) for name in NAMES}
    torch.testing.assert_close(logits(net, wide)[:, :-5], alone, rtol=0, atol=1e-12)
    empty = {name: torch.zeros_like(value) for name, value in wide.items()}
    assert logits(net, empty).isfinite().all()


def test_the_mask_as_a_table():
    visible = infilling_visibility(torch.tensor([[0, 0, 1, 2, 1, 0]]),
                                   torch.tensor([[1, 1, 1, 1, 1, 0]]))  # fmt: skip
    rows = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 1]]  # fmt: skip
    assert visible[0, 0].int().tolist() == rows


# --- The factorisation ----------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_one_pass_equals_a_reader_who_gets_token_after_token(order):
    """The same weights on every beginning of (A, B): there the future does not exist at all."""
    batch, net = batch_of([order]), model()
    whole = logits(net, batch)[0]
    a = int((batch["block_position_ids"] == 0).sum())
    for t in range(a, whole.shape[0]):
        prefix = {name: batch[name][:, : t + 1] for name in NAMES}
        torch.testing.assert_close(logits(net, prefix)[0, -1], whole[t], rtol=0, atol=1e-10)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 1, 0)])
def test_the_factorisation_over_an_order_equals_gpt_2_on_the_reordered_text(order):
    """transformers' GPT-2 with our weights reads A and the pieces in this order, float64.

    It gets the sum of our two position embeddings, and the part of the mask that is not causal.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    net, batch = model(), batch_of([order])
    config = GPT2Config(
        vocab_size=23, n_positions=64, n_embd=12, n_layer=2, n_head=3, n_inner=48,
        activation_function="gelu", layer_norm_epsilon=1e-5, attn_implementation="eager",
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(net.embedding.weight)
        theirs.transformer.wpe.weight.zero_()
        theirs.transformer.ln_f.load_state_dict(net.norm.state_dict())
        for ours, block in zip(net.blocks, theirs.transformer.h, strict=True):
            block.ln_1.load_state_dict(ours.norm1.state_dict())
            block.ln_2.load_state_dict(ours.norm2.state_dict())
            for conv, linear in ((block.attn.c_attn, ours.attention.qkv),
                                 (block.attn.c_proj, ours.attention.out),
                                 (block.mlp.c_fc, ours.mlp.up),
                                 (block.mlp.c_proj, ours.mlp.down)):  # fmt: skip
                conv.weight.copy_(linear.weight.T)
                conv.bias.copy_(linear.bias)
    embedded = (net.embedding(batch["input_ids"]) + net.position(batch["position_ids"])
                + net.block_position(batch["block_position_ids"]))  # fmt: skip
    block = batch["block_position_ids"][0].tolist()
    see = torch.tensor(
        [[may_see(block, q, k) for k in range(len(block))] for q in range(len(block))]
    )
    mask = torch.zeros(1, 1, *see.shape, dtype=torch.float64).masked_fill(~see, -1e300)
    expected = theirs(inputs_embeds=embedded, attention_mask=mask).logits
    got = logits(net, batch)
    at = batch["labels"] != -100
    loss = BlankInfilling(WORDS).loss(got, batch)
    reference = torch.nn.functional.cross_entropy(expected[at], batch["labels"][at])
    assert (got[at] - expected[at]).abs().max() < 1e-10
    assert abs((loss - reference).item()) < 1e-10


def test_where_part_a_is_one_token_the_model_is_our_decoder():
    """A whole text blanked: [MASK] and then B is a plain causal text of the same weights."""
    net, causal = model(), Decoder(TransformerConfig(23, 12, 2, 3, 16)).double()
    text = np.random.default_rng(1).choice(WORDS.ordinary_ids, (1, 9))
    objective = BlankInfilling(WORDS, level="document", document=(1, 1))
    batch = {
        k: torch.from_numpy(v) for k, v in objective.corrupt(text, np.random.default_rng()).items()
    }
    own = {k: v for k, v in net.state_dict().items() if k != "block_position.weight"}
    causal.load_state_dict(own)
    with torch.no_grad():
        causal.position.weight[:11] = net.position.weight[0] + net.block_position.weight[:11]
    reordered = torch.cat([torch.tensor([[4, 2]]), torch.from_numpy(text)], dim=1)
    assert batch["input_ids"].tolist() == reordered.tolist()
    torch.testing.assert_close(logits(net, batch), causal(reordered).logits, rtol=0, atol=1e-12)


# --- The objective as an expectation over permutations --------------------------------------------


def losses_by_order(net):
    """The summed loss of one text under each of the six orders of its three pieces."""
    orders = list(itertools.permutations(range(3)))
    batch = batch_of(orders)
    each = BlankInfilling(WORDS).loss(logits(net, batch), batch, reduction="none")
    rows = (batch["labels"] != -100).nonzero()[:, 0] if each.ndim == 1 else None
    return each.sum(1) if rows is None else torch.zeros(6).double().index_add(0, rows, each)


def test_the_order_matters_for_the_model():
    assert losses_by_order(model()).detach().numpy().std() > 0.1


def test_one_drawn_order_estimates_value_and_gradient_without_bias():
    """Over all six orders: the mean of the single estimates is the loss of all of them at once."""
    net = model(scale=5.0)
    orders = list(itertools.permutations(range(3)))
    every = losses_by_order(net).mean()
    (whole,) = torch.autograd.grad(every, net.embedding.weight)
    singles = []
    for k in range(6):
        batch = batch_of([orders[k]])
        loss = BlankInfilling(WORDS).loss(logits(net, batch), batch, reduction="sum")
        singles.append((loss, torch.autograd.grad(loss, net.embedding.weight)[0]))
    value = torch.stack([loss for loss, _ in singles]).mean()
    gradient = torch.stack([g for _, g in singles]).mean(0)
    assert abs((value - every).item()) < 1e-10
    assert (gradient - whole).abs().max() < 1e-10


@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_variance_falls_with_the_number_of_orders(draws):
    """All tuples (with) and all subsets (without replacement) of the six orders, enumerated."""
    loss = losses_by_order(model()).detach().numpy()
    mean, variance = loss.mean(), loss.var()
    tuples = np.array([loss[list(t)].mean() for t in itertools.product(range(6), repeat=draws)])
    subsets = np.array([loss[list(t)].mean() for t in itertools.combinations(range(6), draws)])
    assert abs(tuples.mean() - mean) < 1e-10 and abs(subsets.mean() - mean) < 1e-10
    assert math.isclose(tuples.var(), variance / draws, rel_tol=1e-9)
    assert math.isclose(subsets.var(), variance / draws * (6 - draws) / 5, rel_tol=1e-9)


# --- GLM-130B's options ---------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_embedding_gradient_shrink(alpha):
    """Forward to the last bit the same; through the input the gradient is α times as large."""
    plain, shrunk = model(seed=3), model(seed=3, shrink=alpha)
    batch = batch_of([(0, 1, 2)])
    assert torch.equal(logits(plain, batch), logits(shrunk, batch))
    grads = []
    for net in (plain, shrunk):
        hidden = net(**{name: batch[name] for name in NAMES}).hidden  # not through the head
        grads.append(
            torch.autograd.grad(hidden.square().sum(), net.parameters(), allow_unused=True)
        )
    for (name, _), g, h in zip(plain.named_parameters(), *grads, strict=True):
        expected = alpha * g if name == "embedding.weight" else g
        torch.testing.assert_close(h, expected, rtol=1e-12, atol=1e-12)
    paper = alpha * plain.embedding.weight + (1 - alpha) * plain.embedding.weight.detach()
    torch.testing.assert_close(paper, plain.embedding.weight, rtol=1e-14, atol=1e-14)


def test_deepnorm_is_its_formula():
    """norm(αx + attention(x)), norm(αx + mlp(x)) with α = √(2N), by the parts of the block."""
    config = TransformerConfig(23, 12, 5, 3, 16, norm="deep")
    block = Block(config, causal=False).double()
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    alpha = math.sqrt(10)
    y = block.norm1(alpha * x + block.attention(x, None))
    expected = block.norm2(alpha * y + block.mlp(y))
    torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-14)
    assert block.alpha == pytest.approx(alpha)


def test_deepnorm_starts_with_smaller_matrices():
    """Xavier's deviation, over √(2N) for the feed-forward layer, values and outputs."""
    net = Infiller(TransformerConfig(50, 128, 8, 4, 16, norm="deep"), seed=1)
    for name, p in net.named_parameters():
        if p.ndim > 1 and name.startswith("blocks."):
            rows, columns = p.shape
            rows = 128 if name.endswith("qkv.weight") else rows
            xavier = math.sqrt(2 / (rows + columns))
            q, k, v = p.chunk(3) if name.endswith("qkv.weight") else (None, None, p)
            assert v.std().item() == pytest.approx(xavier / 4, rel=0.03), name
            if q is not None:
                assert q.std().item() == k.std().item() == pytest.approx(xavier, rel=0.03) or (
                    q.std().item() == pytest.approx(xavier, rel=0.03)
                )


# --- Inputs ---------------------------------------------------------------------------------------


def test_positions_may_exceed_the_text_only_by_part_b():
    """22 tokens in a model of 16: the positions are those of the text, below 16."""
    net = Infiller(TransformerConfig(23, 12, 1, 3, 12))
    batch = batch_of([(0, 1, 2)])
    assert batch["input_ids"].shape[1] > 12
    assert logits(net, batch).isfinite().all()
    wrong = {**batch, "position_ids": batch["position_ids"] + 12}
    with pytest.raises(ValueError, match="position_ids: expected positions below max_length=12"):
        logits(net, wrong)


def test_without_positions_it_reads_a_plain_text():
    net, ids = model(), torch.arange(9)[None]
    given = net(ids, position_ids=ids, block_position_ids=torch.zeros_like(ids)).logits
    assert torch.equal(net(ids).logits, given)


def test_logits_at_the_targets_alone():
    net, batch = model(), batch_of([(0, 2, 1)])
    at = (batch["labels"].flatten() != -100).nonzero().squeeze(1)
    few = net(**{name: batch[name] for name in NAMES}, positions=at).logits[0]
    torch.testing.assert_close(few, logits(net, batch).flatten(0, 1)[at], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["position_ids", "block_position_ids", "attention_mask"])
def test_arrays_of_another_shape_are_named(name):
    batch = batch_of([(0, 1, 2)])
    with pytest.raises(ValueError, match=name):
        logits(model(), {**batch, name: batch[name][:, :-1]})


def test_a_wrong_factor_is_named():
    with pytest.raises(ValueError, match="shrink: expected a factor"):
        Infiller(CONFIG, shrink=0.0)
