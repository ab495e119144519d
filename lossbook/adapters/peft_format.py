"""Adapters on the disk in PEFT's format: ``adapter_config.json``, ``adapter_model.safetensors``.

What is saved here loads with ``peft.PeftModel.from_pretrained(base_model, folder)``, and what
PEFT's ``save_pretrained`` wrote for LoRA loads here. Variants that compute something else are
refused by name.
"""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lossbook._require import require
from lossbook.adapters.lora import LoRA, LoRAEmbedding, LoRALinear, layers, replace

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
KEY = re.compile(r"(?P<name>.+)\.(lora_(embedding_)?(?P<factor>[AB])(\.weight)?)")
# Settings of PEFT under which the weights mean something else.
VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "lora_bias", "fan_in_fan_out", "modules_to_save",
    "layer_replication", "target_parameters", "trainable_token_indices", "arrow_config",
    "alora_invocation_tokens", "megatron_config", "kasa_config", "velora_config",
)  # fmt: skip
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


def save_adapter(model: nn.Module, folder: str | Path) -> Path:
    """Write the adapters of a model, not the model.

    Each of the two files appears when all of its bytes are on the disk. The weights carry a copy
    of the settings, by which :func:`load_adapter` sees two files that do not belong together.
    A warning says where PEFT will compute something else: it adapts what a layer returns, not the
    weight that a tied head reads.

    Args:
        model: with adapters, merged or not.
        folder: is made where it is missing.

    Returns:
        The folder.
    """
    from lossbook.training.history import write_atomically

    adapters = layers(model)
    require(adapters, "model", type(model).__name__, "a model with adapters (apply_lora)")
    tied = [name for name, layer in adapters.items() if layer.tied]
    if tied:
        words = "are used elsewhere, where PEFT does not adapt them before merging"
        warnings.warn(f"save_adapter: the weights of {tied} {words}", stacklevel=2)
    folder, tensors = Path(folder), {}
    for name, layer in adapters.items():
        for factor, value in zip("AB", layer.factors(), strict=True):
            tensors[PREFIX + name + _suffix(layer, factor)] = value.detach().cpu().contiguous()
    config = _config(model, adapters)
    parts = {n: list(a.parts) for n, a in adapters.items() if getattr(a, "parts", None)}
    extra = json.dumps({"config": config, "parts": parts}, sort_keys=True)
    data = save(tensors, {"format": "pt", "lossbook": extra})
    text = json.dumps(config, indent=2) + "\n"
    write_atomically(folder / WEIGHTS, lambda new: new.write_bytes(data))
    write_atomically(folder / CONFIG, lambda new: new.write_text(text, "utf-8"))
    return folder


def load_adapter(model: nn.Module, folder: str | Path) -> nn.Module:
    """Put the adapters of a folder around the layers of a model that has none, in place.

    Args:
        model: the model they were trained for; it is frozen.
        folder: written by :func:`save_adapter` or by PEFT.

    Returns:
        The same model; the adapters can be trained on.

    Raises:
        ValueError: files that are missing, cut short or not an adapter's, a variant of LoRA that
            is not this one, layers that the model does not have. The file is named, and the
            model stays as it was.
    """
    folder = Path(folder)
    require(not layers(model), "model", type(model).__name__, "a model without adapters")
    config, (tensors, extra) = _read_config(folder / CONFIG), _read_weights(folder / WEIGHTS)
    together = not extra or extra["config"] == config
    require(together, "folder", str(folder), f"{CONFIG} and {WEIGHTS} of one and the same save")
    parts = extra.get("parts", {})
    pairs = _pairs(folder / WEIGHTS, tensors, model)
    made = {
        name: _adapter(model, name, pair, config, parts.get(name)) for name, pair in pairs.items()
    }
    _complete(folder / WEIGHTS, config, model, made)
    model.requires_grad_(False)
    for name, layer in made.items():
        for factor in (layer.A, layer.B):
            factor.requires_grad_(True)
        replace(model, name, layer)
    return model


def _suffix(layer: LoRA, factor: str) -> str:
    embedding = isinstance(layer, LoRAEmbedding)
    return f".lora_embedding_{factor}" if embedding else f".lora_{factor}.weight"


def _stored(layer: LoRA) -> tuple[int, float]:
    """Rank and alpha as PEFT needs them: p parts of rank r are one adapter of rank p·r."""
    rank = layer.factors()[0].shape[0]
    share = rank / layer.rank
    return rank, layer.alpha * (share**0.5 if layer.rslora else share)


def _config(model: nn.Module, adapters: dict[str, LoRA]) -> dict[str, Any]:
    stored = {name: _stored(layer) for name, layer in adapters.items()}
    (rank, alpha), first = next(iter(stored.values())), next(iter(adapters.values()))
    drops = [getattr(getattr(layer, "drop", None), "p", 0.0) for layer in adapters.values()]
    roots = {layer.rslora for layer in adapters.values()}
    require(len(roots) == 1, "rslora", roots, "the same for all adapters of a model")
    return {
        "peft_type": "LORA",
        "auto_mapping": {
            "base_model_class": type(model).__name__,
            "parent_library": type(model).__module__,
        },
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {n: r for n, (r, _) in stored.items() if r != rank},
        "alpha_pattern": {n: a for n, (_, a) in stored.items() if a != alpha},
        "lora_dropout": max(drops),
        "use_rslora": first.rslora,
        "target_modules": sorted(adapters),
        "init_lora_weights": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the settings of an adapter ({error})") from error
    mapping = isinstance(config, dict) and config.get("peft_type") == "LORA"
    require(mapping, str(path), config, '"peft_type": "LORA"')
    numbers = isinstance(config.get("r"), int) and isinstance(config.get("lora_alpha"), int | float)
    require(numbers, str(path), {k: config.get(k) for k in ("r", "lora_alpha")}, "two numbers")
    wrong = [key for key in VARIANTS if config.get(key)]
    wrong += ["bias"] if config.get("bias", "none") != "none" else []
    init = str(config.get("init_lora_weights", True)).lower()
    wrong += ["init_lora_weights"] if init.startswith(CHANGES_BASE) else []
    require(not wrong, str(path), wrong, "plain LoRA, without these settings")
    return config


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            extra = (file.metadata() or {}).get("lossbook", "{}")
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(extra)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected the weights of an adapter ({error})") from error


def _pairs(path: Path, tensors: dict[str, Tensor], model: nn.Module) -> dict[str, dict[str, Any]]:
    """Both factors of every adapted layer, by its name."""
    pairs: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name = key.removeprefix(PREFIX)
        if name.endswith(".base_layer.weight"):  # PEFT adds the table of an adapted embedding
            own = dict(model.named_parameters()).get(name.replace(".base_layer", ""))
            same = own is not None and torch.equal(own.detach().cpu(), value)
            require(same, str(path), key, "the weights of this model")
            continue
        found = KEY.fullmatch(name)
        require(found and key.startswith(PREFIX), str(path), key, f"{PREFIX}NAME.lora_A.weight ...")
        pairs.setdefault(found["name"], {})[found["factor"]] = value
    half = [name for name, pair in pairs.items() if len(pair) != 2]
    require(pairs and not half, str(path), half, "an A and a B for every layer")
    return pairs


def _adapter(
    model: nn.Module, name: str, pair: dict[str, Any], config: dict[str, Any], parts: Any
) -> LoRA:
    """The adapter of one layer, with its weights, not yet in its place."""
    there = dict(model.named_modules()).get(name)
    good = isinstance(there, nn.Linear | nn.Embedding)
    require(good, "model", name, "a linear layer or an embedding of this name")
    rank, alpha = (_pattern(config, key, name) for key in ("r", "lora_alpha"))
    rslora, rng = bool(config.get("use_rslora")), np.random.default_rng(0)
    require(pair["A"].shape[0] == rank, name, tuple(pair["A"].shape), f"an A of rank {rank}")
    if parts:
        share = sum(parts)
        rank, alpha = rank // share, alpha / (share**0.5 if rslora else share)
    if isinstance(there, nn.Embedding):
        layer: LoRA = LoRAEmbedding(there, rank, alpha, rslora=rslora, rng=rng)
    else:
        options = {"dropout": config.get("lora_dropout", 0.0), "parts": parts}
        layer = LoRALinear(there, rank, alpha, rslora=rslora, rng=rng, **options)
    wide = [tuple(factor.shape) for factor in layer.factors()]
    seen = [tuple(pair[factor].shape) for factor in "AB"]
    require(wide == seen, name, seen, f"the shapes {wide}")
    b = _narrow(pair["B"], layer, parts) if parts else pair["B"]
    with torch.no_grad():
        layer.A.copy_(pair["A"])
        layer.B.copy_(b)
    return layer


def _narrow(wide: Tensor, layer: LoRA, parts: list[bool]) -> Tensor:
    """The blocks of a wide B, without the zeros between them."""
    heights = wide.chunk(len(parts))
    blocks = [block for block, part in zip(heights, parts, strict=True) if part]
    return torch.cat([b[:, i * layer.rank : (i + 1) * layer.rank] for i, b in enumerate(blocks)])


def _pattern(config: dict[str, Any], key: str, name: str) -> Any:
    """PEFT's rule: the first pattern that is the end of the name, or else the common value."""
    patterns = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
    fits = (v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name))
    return next(fits, config[key])


def _complete(path: Path, config: dict[str, Any], model: nn.Module, made: dict[str, LoRA]) -> None:
    """Every layer that the settings name must have weights: a missing one would adapt nothing."""
    targets = config.get("target_modules") or []
    names = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]
    if isinstance(targets, str):
        asked = [name for name in names if targets != "all-linear" and re.fullmatch(targets, name)]
    else:
        asked = [n for n in names if any(n == t or n.endswith(f".{t}") for t in targets)]
    missing = sorted(set(asked) - set(made))
    require(not missing, str(path), missing, "weights for these layers, which the settings name")
