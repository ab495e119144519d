"""A causal Transformer whose head is its embedding (Radford et al. 2019)."""

from __future__ import annotations

from jaxtyping import Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from lossbook.models.transformer import Output, Transformer, TransformerConfig, initialise


class Decoder(Transformer):
    """Every token sees itself and the past; ``logits[:, t]`` are about the token at t + 1.

    Args:
        config: the shape.
        seed: of the initial weights.
    """

    def __init__(self, config: TransformerConfig, seed: int = 0):
        super().__init__(config, causal=True)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "*shape"] | None = None,
    ) -> Output:
        """Logits over the vocabulary at every position.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding.

        Raises:
            ValueError: an id outside the vocabulary, a text above ``max_length``, a mask of
                another shape.
        """
        hidden = self.encode(input_ids, attention_mask)
        return Output(F.linear(hidden, self.embedding.weight), hidden)
