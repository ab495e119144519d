"""A causal Transformer whose head is its embedding (Radford et al. 2019), and what it writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from lossbook._require import require
from lossbook.models.transformer import (
    Output,
    Transformer,
    TransformerConfig,
    initialise,
    visibility,
)


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
        documents: Int[Tensor, "batch time"] | None = None,
    ) -> Output:
        """Logits over the vocabulary at every position.

        Args:
            input_ids: [B, T].
            attention_mask: [B, T], true or 1 at tokens and 0 at padding; None: no padding.
            documents: [B, T], the number of the document that each token belongs to. Tokens
                then see their own document only, and positions start anew with each: the logits
                are those of every document by itself.

        Raises:
            ValueError: an id outside the vocabulary, a text above ``max_length``, a mask or
                documents of another shape.
        """
        how = {}
        if documents is not None:
            require(documents.shape == input_ids.shape, "documents", tuple(documents.shape),
                    f"the shape of input_ids, {tuple(input_ids.shape)}")  # fmt: skip
            how = {"visible": apart(documents, attention_mask), "places": restarted(documents)}
        hidden = self.encode(input_ids, attention_mask, **how)
        return Output(F.linear(hidden, self.embedding.weight), hidden)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch time"],
        steps: int,
        rng: np.random.Generator | None = None,
        *,
        temperature: float | int = 1.0,
        top_k: int | None = None,
        top_p: float | int | None = None,
        forbidden: Sequence[int] = (),
        end: int | None = None,
    ) -> Int[Tensor, "batch longer"]:
        """Continue texts, one token at a time, each drawn from :func:`sampling_law`.

        Args:
            input_ids: [B, T], the texts so far, all of one length. (Padding on the left would
                move them to other positions, which are learned: texts of several lengths are
                several calls.)
            steps: tokens to add; T + steps may not exceed ``max_length``.
            rng: where the draws come from; not needed at temperature 0.
            temperature, top_k, top_p: see :func:`sampling_law`; temperature 0 is greedy.
            forbidden: ids that are never written.
            end: the id that ends a text; it is repeated behind its first place, and when all
                texts have ended, nothing more is added.

        Returns:
            [B, T + steps], or fewer columns when all texts have ended.

        Raises:
            ValueError: no start, too long, or no generator where something is to be drawn.
        """
        limit = self.config.max_length
        time = input_ids.shape[1]
        require(time >= 1, "input_ids", tuple(input_ids.shape), "at least one token to start from")
        require(0 <= steps <= limit - time, "steps", steps, f"0 to max_length - T = {limit - time}")
        require(rng is not None or temperature == 0, "rng", rng, "a numpy Generator, or greedy")
        ended = torch.zeros(len(input_ids), dtype=torch.bool)
        training = self.training
        self.eval()
        for _ in range(steps):
            logits = self(input_ids).logits[:, -1].cpu()
            logits[:, list(forbidden)] = -torch.inf
            chosen = draw(sampling_law(logits, temperature, top_k, top_p), rng)
            if end is not None:
                chosen[ended] = end
                ended |= chosen == end
            input_ids = torch.cat([input_ids, chosen[:, None].to(input_ids.device)], 1)
            if ended.all():
                break
        self.train(training)
        return input_ids

    def log_probs(
        self,
        input_ids: Int[Tensor, "batch time"],
        attention_mask: Shaped[Tensor, "*shape"] | None = None,
    ) -> Float[Tensor, "batch time"]:
        """Log-probability of each token given those before it, nats; 0 for the first."""
        log_q = self(input_ids, attention_mask).logits[:, :-1].log_softmax(-1)
        return F.pad(log_q.gather(-1, input_ids[:, 1:, None]).squeeze(-1), (1, 0))

    def score(
        self, context: Int[Tensor, " past"], continuation: Int[Tensor, " future"]
    ) -> Float[Tensor, " future"]:
        """Log-probability of each token of a continuation, nats; their sum is that of the whole.

        Args:
            context: at least one token, such as ``[CLS]``.
            continuation: what might follow.
        """
        require(len(context) >= 1, "context", len(context), "at least one token")
        return self.log_probs(torch.cat([context, continuation])[None])[0, len(context) :]


def apart(
    documents: Int[Tensor, "batch time"], attention_mask: Shaped[Tensor, "batch time"] | None
) -> Bool[Tensor, "batch 1 time time"]:
    """Which key each query sees: the past of its own document."""
    mask = torch.ones_like(documents) if attention_mask is None else attention_mask
    past = visibility(mask, causal=True)
    return past & (documents[:, None, :, None] == documents[:, None, None, :])


def restarted(documents: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Positions that begin at 0 with every document; its tokens stand together."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0))
    return place - (place * begins).cummax(1).values


def sampling_law(
    logits: Float[Tensor, "*batch vocab"],
    temperature: float | int = 1.0,
    top_k: int | None = None,
    top_p: float | int | None = None,
) -> Float[Tensor, "*batch vocab"]:
    """The distribution that the next token is drawn from.

    softmax(z / τ), cut to the ``top_k`` most probable tokens (Fan et al. 2018, section 5.4) and
    then to the nucleus, the fewest tokens whose probabilities sum to ``top_p`` or more (Holtzman
    et al. 2020, section 3.1), each time divided by its sum.

    Args:
        logits: [..., V]; -inf for what must not be drawn.
        temperature: τ; 0 puts everything on the largest logit, the first of equals.
        top_k: how many tokens remain at most.
        top_p: the mass of the nucleus, above 0 and up to 1.

    Returns:
        float64 probabilities.

    Raises:
        ValueError: a temperature below 0, ``top_k`` below 1, ``top_p`` outside (0, 1].
    """
    require(temperature >= 0, "temperature", temperature, "a number from 0 up")
    require(top_k is None or top_k >= 1, "top_k", top_k, "None or at least 1")
    require(top_p is None or 0 < top_p <= 1, "top_p", top_p, "None or a number in (0, 1]")
    z, order = logits.double().sort(dim=-1, descending=True, stable=True)
    if temperature == 0:
        temperature, top_k = 1.0, 1
    q = ((z - z[..., :1]) / temperature).softmax(-1)
    if top_k is not None:
        q[..., top_k:] = 0.0
        q /= q.sum(-1, keepdim=True)
    if top_p is not None:
        before = q.cumsum(-1) - q
        q[(before >= top_p)] = 0.0
        q /= q.sum(-1, keepdim=True)
    return torch.zeros_like(q).scatter(-1, order, q)


def draw(
    law: Float[Tensor, "batch vocab"], rng: np.random.Generator | None
) -> Int[Tensor, " batch"]:
    """One token per row; without a generator the most probable one."""
    if rng is None:
        return law.argmax(-1)
    return torch.tensor([rng.choice(law.shape[-1], p=row) for row in law.numpy()])
