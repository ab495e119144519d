"""A bidirectional Transformer with BERT's heads for tokens and pairs (Devlin et al. 2019)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._require import require
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


class PairHead(nn.Module):
    """W tanh(P h + p) + w, h at ``[CLS]`` (google-research/bert, modeling.py: the pooler)."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.pooler = nn.Linear(config.width, config.width)
        self.answer = nn.Linear(config.width, 2)

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch 2"]:
        return self.answer(torch.tanh(self.pooler(hidden)))


class PairEncoder(Encoder):
    """An encoder of two segments: their embeddings, and a head that answers for the pair.

    Args:
        config: the shape.
        seed: of the initial weights.
    """

    def __init__(self, config: TransformerConfig, seed: int = 0):
        super().__init__(config, seed)
        self.token_type = nn.Embedding(2, config.width)
        self.pair = PairHead(config)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "*shape"] | None = None,
        positions: Int[Tensor, " targets"] | None = None,
        token_type_ids: Int[Tensor, "*shape"] | None = None,
    ) -> Output:
        """Logits over the vocabulary, and two per pair.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding.
            positions: as in :class:`Encoder`; the pair is answered for in any case.
            token_type_ids: [B, T], 0 in the first segment and 1 in the second; 0 by default.

        Raises:
            ValueError: as in :class:`Encoder`, or segments of another shape.
        """
        kinds = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        require(kinds.shape == input_ids.shape, "token_type_ids", tuple(kinds.shape),
                f"the shape of input_ids, {tuple(input_ids.shape)}")  # fmt: skip
        rows, time = input_ids.shape
        at = positions
        if positions is not None:  # [CLS] of every row in front of them
            at = torch.cat([torch.arange(rows, device=input_ids.device) * time, positions])
        hidden = self.encode(input_ids, attention_mask, at, added=self.token_type(kinds))
        first = hidden[:, 0] if positions is None else hidden[0, :rows]
        hidden = hidden if positions is None else hidden[:, rows:]
        return Output(self.head(hidden, self.embedding.weight), hidden, self.pair(first))
