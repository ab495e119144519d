"""A Transformer that writes the blanks of a text (Du et al. 2022, section 2.2).

Part A of its input, the text with marks in the place of the blanks, sees all of itself. Part B,
the pieces one behind the other, sees A and what was written before. Each token has two positions:
its place in A (for B, that of the mark), and its place within its piece.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._require import require
from lossbook.models.transformer import Output, Transformer, TransformerConfig, initialise


class Infiller(Transformer):
    """A sees A, B sees A and the earlier part of B; the head is the embedding.

    Args:
        config: the shape. ``max_length`` is that of the texts; the pieces of part B come on top,
            and their positions are those of their marks.
        seed: of the initial weights.
        shrink: α of GLM-130B's embedding-gradient shrink (Zeng et al. 2023, section 3): the
            gradient that reaches the embedding through the input is multiplied by it, the output
            stays as it is; 1 leaves it out.

    Raises:
        ValueError: a factor outside (0, 1].
    """

    def __init__(self, config: TransformerConfig, seed: int = 0, *, shrink: float = 1.0):
        require(0 < shrink <= 1, "shrink", shrink, "a factor above 0 and up to 1")
        super().__init__(config, causal=False)
        self.shrink = shrink
        self.block_position = nn.Embedding(config.max_length + 2, config.width)
        if shrink < 1:
            self.embedding = ShrunkEmbedding(config.vocab_size, config.width, shrink)
        initialise(self, seed)

    def forward(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "..."] | None = None,
        position_ids: Int[Tensor, "..."] | None = None,
        block_position_ids: Int[Tensor, "..."] | None = None,
        positions: Int[Tensor, " targets"] | None = None,
    ) -> Output:
        """Logits over the vocabulary at every position, or at some.

        Args:
            input_ids: [B, T], part A and then part B.
            attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding.
            position_ids: [B, T], the index in A, and in B that of the mark; 0, 1, 2, ... by
                default.
            block_position_ids: [B, T], 0 in A and 1, 2, ... within a piece of B; 0 by default.
            positions: flat indices b·T + t of the N tokens that the loss asks for; the output
                is then ``logits [1, N, V]`` and ``hidden [1, N, C]``.

        Raises:
            ValueError: an id or a position outside its table, or arrays of other shapes.
        """
        place = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        block = torch.zeros_like(input_ids) if block_position_ids is None else block_position_ids
        place = place if position_ids is None else position_ids
        for name, ids in (("position_ids", place), ("block_position_ids", block)):
            require(ids.shape == input_ids.shape, name, tuple(ids.shape),
                    f"the shape of input_ids, {tuple(input_ids.shape)}")  # fmt: skip
        hidden = self.encode(
            input_ids,
            attention_mask,
            positions,
            visible=infilling_visibility(block, attention_mask),
            places=place,
            added=self.block_position(block),
        )
        return Output(F.linear(hidden, self.embedding.weight), hidden)


class ShrunkEmbedding(nn.Embedding):
    """An embedding whose output passes only a part of its gradient on.

    GLM-130B writes αw + (1 - α) sg(w), where sg stops the gradient. In this form the output is
    w to the last bit: sg(w) + α(w - sg(w)).
    """

    def __init__(self, size: int, width: int, shrink: float):
        super().__init__(size, width)
        self.shrink = shrink

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        w = super().forward(input)
        return w.detach() + self.shrink * (w - w.detach())


def infilling_visibility(
    block_position_ids: Int[Tensor, "batch time"],
    attention_mask: Shaped[Tensor, "..."] | None = None,
) -> Bool[Tensor, "batch 1 time time"]:
    """Which key each query may see: A for all, and for B also the earlier part of B.

    Args:
        block_position_ids: [B, T], 0 in A, above 0 in B.
        attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding. Padding
            sees itself, so that no softmax is empty.
    """
    is_b = block_position_ids > 0
    time = is_b.shape[1]
    square = torch.ones(time, time, dtype=torch.bool, device=is_b.device)
    visible = ~is_b[:, None, :] | (is_b[:, :, None] & square.tril())
    if attention_mask is not None:
        shape = tuple(attention_mask.shape)
        require(shape == is_b.shape, "attention_mask", shape,
                f"the shape of input_ids, {tuple(is_b.shape)}")  # fmt: skip
        visible = (visible & attention_mask.bool()[:, None, :]) | square.diag().diag()
    return visible[:, None]
