"""Adapters: small trainable parts beside frozen weights."""

from lossbook.adapters.lora import (
    INITS,
    LoRA,
    LoRAEmbedding,
    LoRALinear,
    Published,
    adapter_size,
    apply_lora,
    layers,
    merge,
    published_counts,
    trainable,
    unload,
    unmerge,
)
from lossbook.adapters.peft_format import load_adapter, save_adapter

__all__ = [
    "INITS",
    "LoRA",
    "LoRAEmbedding",
    "LoRALinear",
    "Published",
    "adapter_size",
    "apply_lora",
    "layers",
    "load_adapter",
    "merge",
    "published_counts",
    "save_adapter",
    "trainable",
    "unload",
    "unmerge",
]
