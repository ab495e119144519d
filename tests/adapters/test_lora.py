"""LoRA: against PEFT in value, gradient and on the disk; merging; what is refused."""

import copy
import json
import os

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from lossbook.adapters import (
    LoRAEmbedding,
    LoRALinear,
    adapter_size,
    apply_lora,
    layers,
    load_adapter,
    merge,
    published_counts,
    save_adapter,
    trainable,
    unload,
    unmerge,
)
from lossbook.adapters.peft_format import CONFIG, WEIGHTS
from lossbook.checks import difference
from lossbook.models import Decoder, TransformerConfig

CONFIGURATION = TransformerConfig(20, width=8, heads=2, max_length=8)
IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (3, 7)))
QV = {"attention.qkv": (True, False, True)}


def decoder(dtype=torch.float64):
    return Decoder(CONFIGURATION, seed=0).to(dtype)


def stirred(model, seed=1):
    """The same model with factors that are not zero any more."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for _, p in trainable(model):
            p.copy_(torch.from_numpy(rng.standard_normal(p.shape)))
    return model


class Lookup(nn.Module):
    """An embedding that is only called, and a head of its own."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)
        rng = np.random.default_rng(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(rng.standard_normal(p.shape)))

    def forward(self, input_ids):
        return self.head(self.table(input_ids))


# --- value and gradient against PEFT


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("attention.qkv",), ("attention.qkv", "mlp.up", "mlp.down")])
def test_value_and_gradient_are_those_of_peft(targets, rslora, tmp_path):
    """Both in float64 with the same A and B; the two sums differ in their last digits at most."""
    ours = stirred(apply_lora(decoder(), targets, rank=3, alpha=5.0, rslora=rslora))
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(decoder(), tmp_path, is_trainable=True).double()
    with torch.no_grad():  # the file is exact in float64, PEFT's loading need not be
        for name, layer in layers(ours).items():
            module = theirs.base_model.model.get_submodule(name)
            module.lora_A["default"].weight.copy_(layer.A)
            module.lora_B["default"].weight.copy_(layer.B)
    values = []
    for model in (ours, theirs):
        logits = model(IDS).logits
        logits.square().sum().backward()
        values.append(logits)
    assert difference(*values) <= 1e-13
    for name, layer in layers(ours).items():
        module = theirs.base_model.model.get_submodule(name)
        assert difference(layer.A.grad, module.lora_A["default"].weight.grad) <= 1e-12
        assert difference(layer.B.grad, module.lora_B["default"].weight.grad) <= 1e-12
        assert layer.base.weight.grad is None


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_gradients_follow_from_the_full_gradient(shape, seed):
    """dA = s Bᵀ G and dB = s G Aᵀ, with G from a layer whose whole matrix is trained."""
    batch, ins, outs = shape
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((batch, ins)))
    rank = min(ins, outs, 2)
    layer = LoRALinear(nn.Linear(ins, outs).double(), rank, 3.0, rng=rng)
    stirred(layer, seed)
    layer(x).sin().sum().backward()
    full = layer.total().detach().requires_grad_()
    nn.functional.linear(x, full, layer.base.bias).sin().sum().backward()
    assert difference(layer.A.grad, layer.scaling * layer.B.T @ full.grad) <= 1e-12
    assert difference(layer.B.grad, layer.scaling * full.grad @ layer.A.T) <= 1e-12


def test_parts_are_separate_adapters_of_a_fused_projection():
    """Query and value adapted by parts = two adapters of their own slices; the key stays."""
    rng = np.random.default_rng
    base = nn.Linear(4, 12).double()
    layer = stirred(LoRALinear(copy.deepcopy(base), 2, 3.0, parts=(True, False, True), rng=rng(0)))
    x = torch.from_numpy(rng(1).standard_normal((5, 4)))
    q, k, v = layer(x).chunk(3, -1)
    (aq, av), (bq, bv) = layer.A.chunk(2), layer.B.chunk(2)
    q0, k0, v0 = base(x).chunk(3, -1)
    assert difference(q, q0 + 1.5 * x @ aq.T @ bq.T) <= 1e-14
    assert difference(v, v0 + 1.5 * x @ av.T @ bv.T) <= 1e-14
    assert torch.equal(k, k0)
    assert layer.A.numel() + layer.B.numel() == 2 * (2 * 4 + 4 * 2)


# --- the beginning


@pytest.mark.parametrize("init", ["kaiming", "gaussian"])
def test_an_adapted_model_begins_as_its_base(init):
    """B is zero, so to the last bit; A is not, so that B has a gradient."""
    model = apply_lora(decoder(), rank=2, init=init)
    assert torch.equal(model(IDS).logits, decoder()(IDS).logits)
    model(IDS).logits.square().sum().backward()
    for layer in layers(model).values():
        assert not layer.A.grad.any()
        assert layer.B.grad.any()


def test_initial_weights_have_their_law_and_come_from_the_seed():
    wide = LoRALinear(nn.Linear(400, 60), 50, 1.0, rng=np.random.default_rng(0))
    assert wide.A.abs().max() <= 0.05  # 1 / sqrt(400), PyTorch's kaiming_uniform_(a=sqrt(5))
    assert abs(wide.A.std() - 0.05 / 3**0.5) < 0.001  # 20,000 numbers
    normal = LoRALinear(nn.Linear(400, 60), 50, 1.0, init="gaussian", rng=np.random.default_rng(0))
    assert abs(normal.A.std() - 1 / 50) < 0.0005
    first, same, other = (apply_lora(decoder(), rank=2, seed=s) for s in (0, 0, 1))
    pairs = zip(trainable(first), trainable(same), trainable(other), strict=True)
    for (name, a), (_, b), (_, c) in pairs:
        assert torch.equal(a, b)
        assert torch.equal(a, c) == name.endswith("B")
    a, b = (layer.A for layer in layers(first).values())
    assert not torch.equal(a, b)  # every layer draws for itself


def test_only_factors_are_trained():
    model = apply_lora(decoder(), ("attention.qkv", "mlp.up"), rank=2, parts=QV)
    assert {name.rsplit(".", 1)[1] for name, _ in trainable(model)} == {"A", "B"}
    q_and_v = adapter_size(8, 2, (2, 2))
    assert sum(p.numel() for _, p in trainable(model)) == q_and_v + 2 * 2 * (8 + 32)


def test_dropout_falls_on_the_way_through_the_factors_only():
    model = stirred(apply_lora(decoder(), rank=2, dropout=0.5))
    layer = layers(model)["blocks.0.attention.qkv"]
    x = torch.ones(4, 8, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    model.eval()
    assert torch.equal(layer(x), layer(x))
    with torch.no_grad():
        layer.B.zero_()
    assert torch.equal(layer.train()(x), layer.base(x))


# --- merging


def test_merging_changes_nothing_but_the_last_digits_and_unmerging_gives_every_bit_back():
    model = stirred(apply_lora(decoder(), ("attention.qkv", "mlp.up"), rank=2, parts=QV)).eval()
    apart, state = model(IDS).logits, copy.deepcopy(model.state_dict())
    merge(model)
    merge(model)  # a second time is no second time
    together = model(IDS).logits
    assert difference(apart, together) <= 1e-14
    assert state.keys() == model.state_dict().keys()  # a checkpoint is the same either way
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    unmerge(model)
    assert torch.equal(model(IDS).logits, apart)


def test_training_unmerges():
    """Else the sum would stand still while A and B move."""
    model = stirred(apply_lora(decoder(), rank=2)).eval()
    merge(model)
    model.train()
    assert not any(layer.merged for layer in layers(model).values())
    model(IDS).logits.sum().backward()
    assert all(p.grad is not None for _, p in trainable(model))


def test_unload_leaves_a_plain_model():
    model = stirred(apply_lora(decoder(), ("attention.qkv", "embedding"), rank=2))
    adapted = model(IDS).logits
    merge(model)
    plain = unload(model)
    assert not layers(plain)
    assert plain.state_dict().keys() == decoder().state_dict().keys()
    assert difference(plain(IDS).logits, adapted) <= 1e-13


def test_a_tied_head_moves_with_its_embedding():
    """Merging an adapted embedding must not change what a decoder with tied weights says."""
    model = stirred(apply_lora(decoder(), ("embedding",), rank=2)).eval()
    before = model(IDS).logits
    merge(model)
    assert difference(model(IDS).logits, before) <= 1e-13


def test_saving_an_adapted_tied_embedding_warns(tmp_path):
    """PEFT would adapt the look-up alone, so its outputs are others until it merges."""
    model = stirred(apply_lora(decoder(), ("embedding",), rank=2)).eval()
    ours = model(IDS).logits
    with pytest.warns(UserWarning, match="embedding.* are used elsewhere"):
        save_adapter(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(decoder(torch.float32), tmp_path).eval()
    assert difference(theirs(IDS).logits, ours) > 0.01
    assert difference(theirs.merge_and_unload()(IDS).logits, ours) <= 1e-5


def test_an_embedding_is_adapted_row_by_row():
    layer = stirred(LoRAEmbedding(nn.Embedding(9, 4).double(), 2, 6.0, rng=np.random.default_rng()))
    ids = torch.tensor([[0, 8], [3, 3]])
    assert difference(layer(ids), (layer.base.weight + 3 * (layer.B @ layer.A).T)[ids]) <= 1e-14
    fresh = LoRAEmbedding(nn.Embedding(9, 4), 2, 6.0, rng=np.random.default_rng(0))
    assert not fresh.A.any()
    assert fresh.B.any()


# --- on the disk


@pytest.mark.parametrize(
    "options",
    [
        {"rank": 2},
        {"rank": 3, "alpha": 7, "rslora": True},
        {"rank": 2, "targets": ("attention.qkv", "mlp.up", "attention.out"), "parts": QV},
        {"rank": 2, "alpha": 3, "rslora": True, "parts": QV, "dropout": 0.1},
    ],
)
def test_what_is_saved_here_loads_in_peft_and_back(options, tmp_path):
    """Outputs of ours, of PEFT's and of both after another round agree to float32's rounding."""
    ours = stirred(apply_lora(decoder(torch.float32), **options)).eval()
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(decoder(torch.float32), tmp_path / "ours")
    assert difference(theirs(IDS).logits, ours(IDS).logits) <= 1e-6
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        back = load_adapter(decoder(torch.float32), tmp_path / folder).eval()
        assert difference(back(IDS).logits, ours(IDS).logits) <= 1e-6
        merge(back)
        assert difference(back(IDS).logits, theirs.merge_and_unload()(IDS).logits) <= 1e-5
    again = load_adapter(decoder(torch.float32), tmp_path / "ours")
    assert [n for n, _ in trainable(again)] == [n for n, _ in trainable(ours)]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*map(trainable, (again, ours))))  # noqa: B905


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_made_by_peft_loads_here(rslora, tmp_path):
    """With a rank and an alpha of its own for one of the layers."""
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=["attention.qkv", "mlp.up"],
        rank_pattern={"blocks.1.mlp.up": 3},
        alpha_pattern={"mlp.up": 5},
        use_rslora=rslora,
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(decoder(torch.float32), config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_adapter(decoder(torch.float32), tmp_path).eval()
    assert difference(ours(IDS).logits, theirs(IDS).logits) <= 1e-6
    found = {name: (a.rank, a.alpha) for name, a in layers(ours).items()}
    assert found["blocks.0.attention.qkv"] == (2, 6)
    assert found["blocks.0.mlp.up"] == (2, 5)
    assert found["blocks.1.mlp.up"] == (3, 5)


def test_embeddings_that_are_only_called_travel_both_ways(tmp_path):
    ours = stirred(apply_lora(Lookup(), ("table", "head"), rank=2)).eval()
    save_adapter(ours, tmp_path / "ours")
    theirs = peft.PeftModel.from_pretrained(Lookup(), tmp_path / "ours").eval()
    assert difference(theirs(IDS), ours(IDS)) <= 1e-6
    theirs.save_pretrained(tmp_path / "theirs", save_embedding_layers=True)
    back = load_adapter(Lookup(), tmp_path / "theirs").eval()
    assert difference(back(IDS), ours(IDS)) <= 1e-6


def saved(folder, **options):
    save_adapter(stirred(apply_lora(decoder(torch.float32), rank=2, **options)), folder)
    return folder


def test_files_that_are_cut_short_or_foreign_are_named(tmp_path):
    model = decoder(torch.float32)
    folder = saved(tmp_path)
    whole = (folder / WEIGHTS).read_bytes()
    for size in (0, 7, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors: expected the weights"):
            load_adapter(model, folder)
    save_file({"weight": torch.ones(2)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match="lora_A"):
        load_adapter(model, folder)
    (folder / WEIGHTS).write_bytes(whole)
    for text in ("", "{", '{"r": 2}', "[]", "\x00"):
        (folder / CONFIG).write_text(text)
        with pytest.raises(ValueError, match=r"adapter_config\.json: expected"):
            load_adapter(model, folder)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load_adapter(model, tmp_path / "nowhere")
    assert not layers(model)  # nothing of all this touched the model
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("use_dora", True),
        ("bias", "all"),
        ("lora_bias", True),
        ("modules_to_save", ["embedding"]),
        ("init_lora_weights", "pissa_niter_4"),
        ("fan_in_fan_out", True),
    ],
)
def test_variants_that_compute_something_else_are_refused(setting, value, tmp_path):
    theirs = peft.get_peft_model(
        decoder(torch.float32), peft.LoraConfig(r=2, target_modules=["attention.qkv"])
    )
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text()) | {setting: value}
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=setting):
        load_adapter(decoder(torch.float32), tmp_path)


def test_two_files_of_different_saves_are_not_mixed(tmp_path):
    folder = saved(tmp_path)
    old = (folder / CONFIG).read_text()
    saved(folder, alpha=99.0)
    (folder / CONFIG).write_text(old)
    with pytest.raises(ValueError, match="one and the same save"):
        load_adapter(decoder(torch.float32), folder)


def test_weights_must_fit_the_settings_and_the_model(tmp_path):
    theirs = peft.get_peft_model(
        decoder(torch.float32), peft.LoraConfig(r=2, target_modules=["attention.qkv"])
    )
    theirs.save_pretrained(tmp_path)
    tensors, config = load_file(tmp_path / WEIGHTS), json.loads((tmp_path / CONFIG).read_text())
    model = decoder(torch.float32)

    def refused(match, tensors=tensors, **changes):
        save_file(dict(tensors), tmp_path / WEIGHTS, {"format": "pt"})
        (tmp_path / CONFIG).write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=match):
            load_adapter(model, tmp_path)

    refused("rank 3", r=3)
    refused("which the settings name", target_modules=["attention.qkv", "mlp.up"])
    half = {k: v for k, v in tensors.items() if "blocks.1" not in k or "lora_A" in k}
    refused("an A and a B", half)
    fewer = {k: v for k, v in tensors.items() if "blocks.1" not in k}
    refused("which the settings name", fewer)
    other = {k.replace("qkv", "kqv"): v for k, v in tensors.items()}
    refused("blocks.0.attention.kqv", other)
    save_file(dict(tensors), tmp_path / WEIGHTS, {"format": "pt"})
    (tmp_path / CONFIG).write_text(json.dumps(config))
    wide = Decoder(TransformerConfig(20, width=12, heads=2, max_length=8))
    with pytest.raises(ValueError, match="the shapes"):
        load_adapter(wide, tmp_path)


def test_a_save_that_is_interrupted_leaves_the_old_one(tmp_path, monkeypatch):
    """The new bytes are moved into place when they are all there, or never."""
    folder = saved(tmp_path)
    before = (folder / WEIGHTS).read_bytes()

    def fails(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        with pytest.raises(OSError, match="no space"):
            saved(folder, seed=5)
    assert (folder / WEIGHTS).read_bytes() == before
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]


# --- what is refused, and what the paper counts


def test_bad_arguments_are_named():
    for options, match in [
        ({"targets": ("nowhere",)}, "targets"),
        ({"targets": ("norm1",)}, "targets"),
        ({"rank": 0}, "rank"),
        ({"rank": 9}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": float("nan")}, "alpha"),
        ({"init": "zeros"}, "init"),
        ({"dropout": 1.0}, "dropout"),
        ({"parts": {"mlp.up": (True,)}}, "parts"),
        ({"parts": {"attention.qkv": (True,) * 5}}, "parts"),
        ({"parts": {"attention.qkv": (False,) * 3}}, "parts"),
    ]:
        with pytest.raises(ValueError, match=match):
            apply_lora(decoder(), **options)
    with pytest.raises(ValueError, match="without an adapter"):
        apply_lora(apply_lora(decoder()))
    with pytest.raises(ValueError, match="with adapters"):
        save_adapter(decoder(), "nowhere")


def test_the_counts_of_the_paper():
    """Two lines of table 4 by name, and the ones that do not follow from the formula."""
    assert adapter_size(12288, 96, (1, 1)) == 4_718_592
    assert adapter_size(12288, 96, (8, 8)) == 37_748_736
    off = {(p.model, p.setting, p.printed) for p in published_counts() if not p.agrees}
    assert off == {
        ("GPT-3", "q, k, v, o at rank 2", 37.7),
        ("GPT-3", "one at rank 8", 18),
        ("GPT-3", "two at rank 4", 18),
        ("GPT-3", "four at rank 2", 18),
        ("RoBERTa-base", "q, v at rank 8", 0.8),
        ("GPT-2 M", "q, v at rank 4", 0.35),
        ("GPT-2 L", "q, v at rank 4", 0.77),
        ("DeBERTa-XXL", "q, v at rank 8", 4.7),
    }
    for line in published_counts():  # the formula against matrices that are counted
        pairs = [(line.width * r) + (r * line.width) for r in line.ranks]
        assert line.formula == line.layers * sum(pairs)
