"""Layer-wise rates: by hand, in torch's optimizers, and as ELECTRA's repository has them."""

from __future__ import annotations

import pytest
import torch

from lossbook import models, optim
from lossbook.optim.groups import depth_by_name, layerwise

CONFIG = models.TransformerConfig(vocab_size=11, width=8, layers=3, heads=2, max_length=8)


def electra_by_the_repository(layers, decay):
    """Depths 0, 1 .. n and n + 2, and n + 2 - depth as the exponent."""
    depths = {"embeddings": 0, "head": layers + 2}
    depths |= {f"layer {i}": i + 1 for i in range(layers)}
    return {name: decay ** (layers + 2 - depth) for name, depth in depths.items()}


def factors(groups, lr):
    return {group["name"]: group["lr"] / lr for group in groups}


def test_plain_rates():
    groups = layerwise(models.Encoder(CONFIG), 1e-3, 0.5)
    expected = {"embeddings": 1 / 16, "layer 0": 1 / 8, "layer 1": 1 / 4, "layer 2": 1 / 2}
    assert factors(groups, 1e-3) == pytest.approx({**expected, "head": 1.0}, rel=1e-14)


def test_electras_rates():
    found = factors(layerwise(models.Encoder(CONFIG), 1e-3, 0.8, convention="electra"), 1e-3)
    assert found == pytest.approx(electra_by_the_repository(3, 0.8), rel=1e-14)
    plain = factors(layerwise(models.Encoder(CONFIG), 1e-3, 0.8), 1e-3)
    assert found["layer 2"] == pytest.approx(0.64, rel=1e-14)  # not 0.8
    ratio = {name: found[name] / plain[name] for name in plain if name != "head"}
    assert ratio == pytest.approx(dict.fromkeys(ratio, 0.8), rel=1e-14)


@pytest.mark.parametrize("model", [models.Encoder, models.Decoder])
def test_every_parameter_is_in_one_group(model):
    model = model(CONFIG)
    groups = layerwise(model, 1e-3, 0.9)
    names = [name for group in groups for name, _ in group["params"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())


@pytest.mark.parametrize("make", [torch.optim.SGD, optim.SGD])
def test_optimizers_read_the_rates(make):
    """Unlike ``lr_scale``, which stands in a group and which no optimizer of torch's reads."""
    model = models.Encoder(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make(layerwise(model, 1.0, 0.5), lr=1.0)
    scheduler = optim.Schedule(optimizer, "constant", warmup=2, start="even")
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    scheduler.step()
    for group, factor in zip(optimizer.param_groups, (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1), strict=True):
        for name, p in zip(group["param_names"], group["params"], strict=True):
            moved = (before[name] - p.detach()).double()
            assert (moved - factor / 3).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("embedding.weight", 0),
        ("position.weight", 0),
        ("blocks.0.norm1.bias", 1),
        ("norm.weight", None),
        ("bert.embeddings.word_embeddings.weight", 0),
        ("bert.encoder.layer.11.output.LayerNorm.bias", 12),
        ("classifier.weight", None),
        ("transformer.wte.weight", 0),
        ("transformer.wpe.weight", 0),
        ("Embed_0.embedding", 0),
        ("EMBEDDING.weight", 0),
        ("bert.layer2", None),
        ("encoder.layer.3a.weight", None),
        ("transformer.h.10.mlp.c_fc.weight", 11),
        ("electra/encoder/layer_3/attention/self/query/kernel", 4),
        ("electra/embeddings_project/kernel", 0),
        ("model.layers.7.mlp.up_proj.weight", 8),
        ("players.3.weight", None),
    ],
)
def test_depths_by_name(name, depth):
    assert depth_by_name(name) == depth


def test_it_says_what_it_did():
    model = models.Encoder(CONFIG)
    model.head.bias.requires_grad_(False)
    groups = layerwise(model, 1e-3, 0.5)
    text = str(groups)
    assert "layer 2       0.0005     0.5" in text
    assert "blocks.2.attention.qkv.weight" in text
    assert text.endswith("frozen, in no group: head.bias")
    assert groups.frozen == ["head.bias"]
    assert groups.factors == {0: 1 / 16, 1: 1 / 8, 2: 1 / 4, 3: 1 / 2, 4: 1.0}


def test_a_rule_of_ones_own():
    p = torch.nn.Parameter(torch.ones(1))
    pairs = [("a", p), ("b", torch.nn.Parameter(torch.ones(2)))]
    groups = layerwise(pairs, 1.0, 0.1, depth_of={"a": 0, "b": 1}.get)
    assert [group["lr"] for group in groups] == pytest.approx([0.01, 0.1])


def test_refusals():
    p = torch.nn.Parameter(torch.ones(1))
    frozen = torch.ones(1)
    for call, message in (
        (lambda: layerwise([("a", p)], 1.0, 0.0), r"decay: expected a number in \(0, 1\], got 0.0"),
        (lambda: layerwise([("a", p)], 1.0, 1.1), "decay: .*got 1.1"),
        (lambda: layerwise([("a", p)], -1.0, 0.5), "lr: .*got -1.0"),
        (lambda: layerwise([("a", p)], float("inf"), 0.5), "lr: .*got inf"),
        (
            lambda: layerwise([("a", p)], 1.0, 0.5, depth_of=lambda name: 1.5),
            r"depth_of\('a'\): expected None or a whole number >= 0, got 1.5",
        ),
        (lambda: layerwise([("a", frozen)], 1.0, 0.5), "parameters: expected at least one .*'a'"),
        (lambda: layerwise([("a", p)], 1.0, 0.5, convention="x"), "convention: .*got 'x'"),
        (
            lambda: layerwise([("a", p)], 1.0, 0.5, depth_of=lambda name: -1),
            r"depth_of\('a'\): expected None or a whole number >= 0, got -1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.usefixtures("untyped")
def test_a_parameter_without_a_name_is_refused():
    with pytest.raises(ValueError, match="parameters: expected pairs of a name and a tensor"):
        layerwise([torch.nn.Parameter(torch.ones(1))], 1.0, 0.5)


def test_depths_count_and_not_the_groups_that_there_are():
    """Layers that are frozen, or have no parameters, are layers all the same."""
    pairs = [(name, torch.nn.Parameter(torch.ones(1))) for name in ("layer.3.weight", "head")]
    groups = layerwise(pairs, 1.0, 0.5)
    assert [(g["name"], g["lr"]) for g in groups] == [("layer 3", 0.5), ("head", 1.0)]


@pytest.mark.parametrize(
    ("name", "excluded"),
    [
        ("bert/embeddings/LayerNorm/gamma", True),
        ("encoder.layer_norm.weight", True),
        ("cls.predictions.output_bias", True),
        ("attention.bias_table", True),
        ("encoder.layer.0.weight", False),
        ("layernorm.weight", False),
    ],
)
def test_berts_rule_searches_anywhere_in_the_name(name, excluded):
    assert optim.exclusion_rule("bert")(name, torch.ones(2, 2)) is excluded
