"""One Transformer block, and the trunk that the encoder and the decoder share.

Vaswani et al. 2017 (arXiv:1706.03762), equation 1 and section 3; the norm stands in front of each
sub-layer by default (Xiong et al. 2020, arXiv:2002.04745), or behind it as in the original and in
BERT. Symbols: B texts, T tokens, C = width, H heads, V = vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._require import require


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model.

    Args:
        vocab_size: V, number of token ids.
        width: C, length of the hidden vectors; a multiple of ``heads``.
        layers: number of blocks.
        heads: H, attention heads of width C / H each.
        max_length: longest text, in tokens; positions are learned.
        expansion: width of the feed-forward layer in multiples of C.
        dropout: probability with which embeddings, attention weights and the outputs of both
            sub-layers are dropped in training.
        norm: ``"pre"``: x + f(norm(x)), with one more norm at the end;
            ``"post"``: norm(x + f(x)), with one more norm on the embeddings (BERT);
            ``"deep"``: norm(αx + f(x)) with α = √(2 · layers), and smaller initial weights
            (GLM-130B's form of DeepNorm, Zeng et al. 2023, section 2.2).
        norm_eps: ε inside the square root of the layer norm.

    Raises:
        ValueError: a size below 1, a width that the heads do not divide, and the like.
    """

    vocab_size: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    max_length: int = 64
    expansion: int = 4
    dropout: float = 0.0
    norm: str = "pre"
    norm_eps: float = 1e-5

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "max_length", "expansion"):
            size = getattr(self, name)
            require(isinstance(size, int) and size >= 1, name, size, "an int of at least 1")
        require(
            self.width % self.heads == 0, "width", self.width, f"a multiple of heads={self.heads}"
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "a probability in [0, 1)")
        known = '"pre", "post" or "deep"'
        require(self.norm in ("pre", "post", "deep"), "norm", self.norm, known)
        require(self.norm_eps > 0, "norm_eps", self.norm_eps, "a number above 0")


class Output(NamedTuple):
    """What a model returns: ``logits [B, T, V]`` and the ``hidden [B, T, C]`` they come from.

    A model with a pair head adds ``pair_logits [B, 2]``.
    """

    logits: Tensor
    hidden: Tensor
    pair_logits: Tensor | None = None


class Attention(nn.Module):
    """softmax(Q Kᵀ / √(C/H)) V in H heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        self.heads, self.causal, self.dropout = config.heads, causal, config.dropout
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, x: Float[Tensor, "batch time width"], visible: Bool[Tensor, "batch 1 q time"] | None
    ) -> Float[Tensor, "batch time width"]:
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)  # [B, H, T, .]
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=visible,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and visible is None,
        )
        return self.out(y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """W₂ GELU(W₁ x + b₁) + b₂, at each position by itself."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.up = nn.Linear(config.width, config.expansion * config.width)
        self.down = nn.Linear(config.expansion * config.width, config.width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.down(F.gelu(self.up(x)))


class Block(nn.Module):
    """Attention, then the feed-forward layer, each with its norm and its residual."""

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        self.pre = config.norm == "pre"
        self.alpha = (2 * config.layers) ** 0.5 if config.norm == "deep" else None
        self.attention, self.mlp = Attention(config, causal), FeedForward(config)
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch time width"],
        visible: Bool[Tensor, "batch 1 q time"] | None = None,
        positions: Int[Tensor, " targets"] | None = None,
    ) -> Float[Tensor, "rows columns width"]:
        """[B, T, C], or [1, N, C] at N flat positions: after attention no token sees another."""
        if self.pre:
            x = at(x + self.drop(self.attention(self.norm1(x), visible)), positions)
            return x + self.drop(self.mlp(self.norm2(x)))
        x = self.norm1(at(self.carried(x) + self.drop(self.attention(x, visible)), positions))
        return self.norm2(self.carried(x) + self.drop(self.mlp(x)))

    def carried(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """The residual: αx in DeepNorm, x elsewhere."""
        return x if self.alpha is None else self.alpha * x


def at(
    x: Float[Tensor, "batch time width"], positions: Int[Tensor, " targets"] | None
) -> Float[Tensor, "rows columns width"]:
    """The vectors at flat positions b·T + t, as [1, N, C]; all of them without positions."""
    return x if positions is None else x.flatten(0, 1).index_select(0, positions)[None]


class Transformer(nn.Module):
    """Embeddings and blocks: from ``input_ids [B, T]`` to ``hidden [B, T, C]``.

    A subclass adds the head and calls :func:`initialise` when all of its parameters are there.
    """

    def __init__(self, config: TransformerConfig, causal: bool):
        super().__init__()
        self.config, self.causal = config, causal
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config, causal) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.drop = nn.Dropout(config.dropout)

    def encode(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "*shape"] | None = None,
        positions: Int[Tensor, " targets"] | None = None,
        *,
        visible: Bool[Tensor, "batch 1 time time"] | None = None,
        places: Int[Tensor, "batch time"] | None = None,
        added: Float[Tensor, "batch time width"] | None = None,
    ) -> Float[Tensor, "rows columns width"]:
        """The last hidden vectors: [B, T, C], or [1, N, C] at N flat positions b·T + t.

        ``visible`` says which key each query sees, instead of the mask; ``places`` are the rows
        of the position table, 0, 1, 2, ... by default; ``added`` joins the embeddings.
        """
        _refuse(self.config, input_ids, attention_mask, places)
        visible = visibility(attention_mask, self.causal) if visible is None else visible
        where = self.position.weight[: input_ids.shape[1]]
        x = self.embedding(input_ids) + (where if places is None else self.position(places))
        x = x if added is None else x + added
        x = self.drop(x if self.config.norm == "pre" else self.norm(x))
        for block in self.blocks[:-1]:
            x = block(x, visible)
        x = self.blocks[-1](x, visible, positions)
        return self.norm(x) if self.config.norm == "pre" else x


def visibility(
    attention_mask: Shaped[Tensor, "batch time"] | None, causal: bool
) -> Bool[Tensor, "batch 1 q time"] | None:
    """Which key each query may see: [B, 1, 1, T], or [B, 1, T, T] where order matters.

    None where there is no padding, so that attention takes its fastest path. A token of a causal
    model always sees itself: text may then be padded on the left, and no softmax is empty.
    """
    if attention_mask is None:
        return None
    keys = attention_mask.bool()[:, None, None, :]
    if not causal:
        return keys
    time = attention_mask.shape[1]
    square = torch.ones(time, time, dtype=torch.bool, device=attention_mask.device)
    return (keys & square.tril()) | square.diag().diag()


def _refuse(
    config: TransformerConfig, ids: Tensor, mask: Tensor | None, places: Tensor | None = None
) -> None:
    longest = f"at most max_length={config.max_length} tokens"
    fits = places is not None or ids.shape[1] <= config.max_length
    require(fits, "input_ids", tuple(ids.shape), longest)
    if mask is not None:
        require(
            mask.shape == ids.shape,
            "attention_mask",
            tuple(mask.shape),
            f"the shape of input_ids, {tuple(ids.shape)}",
        )
    # On an accelerator this look would wait for the device at every step; `pretrain` has looked
    # before the ids were sent there.
    if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
        low, high = (int(x) for x in torch.aminmax(ids))
        outside = low if low < 0 else high
        require(
            0 <= outside < config.vocab_size,
            "input_ids",
            outside,
            f"ids from 0 to vocab_size - 1 = {config.vocab_size - 1}",
        )
        highest = 0 if places is None else int(places.max())
        require(highest < config.max_length, "position_ids", highest,
                f"positions below max_length={config.max_length}")  # fmt: skip


@torch.no_grad()
def initialise(model: Transformer, seed: int, std: float = 0.02) -> None:
    """Draw the weights from NumPy, so that a seed means the same model on every platform.

    Matrices are normal with deviation ``std``; the two projections of each block that write into
    the residual stream are divided by √(2 · layers), since so many of them add up (Radford et al.
    2019, section 2.3). Biases are 0, the gains of the norms 1. With the norm ``"deep"`` the
    matrices of the blocks follow Glorot and Bengio (2010) instead, :func:`deep_deviation`.
    """
    rng = np.random.default_rng([seed])
    residual = std / np.sqrt(2 * model.config.layers)
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.fill_(float("norm" in name and name.endswith("weight")))
        else:
            deviation = residual if name.endswith(("out.weight", "down.weight")) else std
            if model.config.norm == "deep" and name.startswith("blocks."):
                deviation = deep_deviation(name, p, model.config.layers)
            p.copy_(torch.from_numpy(deviation * rng.standard_normal(p.shape)))


def deep_deviation(
    name: str, p: Float[Tensor, "out in"], layers: int
) -> Float[np.ndarray, "out #one"] | float:
    """√(2 / (in + out)), over √(2 · layers) for all but queries and keys (Zeng et al. 2023)."""
    rows, columns = p.shape
    if not name.endswith("qkv.weight"):
        return float(np.sqrt(2 / (rows + columns)) / np.sqrt(2 * layers))
    gain = np.repeat([1.0, 1.0, 1 / np.sqrt(2 * layers)], rows // 3)
    return gain[:, None] * np.sqrt(2 / (rows // 3 + columns))
