"""A bidirectional Transformer with BERT's masked-LM head (Devlin et al. 2018)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook.models.transformer import Output, Transformer, TransformerConfig, initialise


class MaskedHead(nn.Module):
    """norm(GELU(W h + b)) Eᵀ + c, where E is the embedding (google-research/bert, modeling.py)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, hidden: Float[Tensor, "*batch width"], embedding: Float[Tensor, "vocab width"]
    ) -> Float[Tensor, "*batch vocab"]:
        return F.linear(self.norm(F.gelu(self.dense(hidden))), embedding, self.bias)


class Encoder(Transformer):
    """Every token sees the whole text; the head predicts the token at its own position.

    Args:
        config: the shape.
        seed: of the initial weights.
    """

    def __init__(self, config: TransformerConfig, seed: int = 0):
        super().__init__(config, causal=False)
        self.head = MaskedHead(config)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "*shape"] | None = None,
        positions: Int[Tensor, " targets"] | None = None,
    ) -> Output:
        """Logits over the vocabulary at every position, or at some.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding.
            positions: flat indices b·T + t of the N tokens that the loss asks for. All that
                follows the last attention is then computed at these alone, and the output is
                ``logits [1, N, V]`` and ``hidden [1, N, C]``.

        Raises:
            ValueError: an id outside the vocabulary, a text above ``max_length``, a mask of
                another shape.
        """
        hidden = self.encode(input_ids, attention_mask, positions)
        return Output(self.head(hidden, self.embedding.weight), hidden)
