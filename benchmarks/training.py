"""Tokens per second of ``pretrain`` against loops written by hand.

The shape is that of nanoGPT's CPU recipe: 4 layers, width 128, 4 heads, batches of 12 x 64 tokens,
65 characters, no dropout. The bare loops do what such loops do: crops of an array of tokens,
forward, backward, clipping, a step of ``torch.optim.AdamW(fused=True)``, and nothing else.
``pretrain`` draws reproducible batches, counts targets, follows a schedule, watches for NaN and
keeps a history; it runs the book's AdamW, compiled as in every long run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import Row, best, race
from lossbook.corpora import Vocabulary
from lossbook.losses import cross_entropy
from lossbook.models import Decoder, Encoder, TransformerConfig
from lossbook.objectives import MaskedLM, Objective
from lossbook.optim import AdamW
from lossbook.training import pretrain

LAYERS, WIDTH, HEADS, BATCH, TIME, CHARACTERS = 4, 128, 4, 12, 64, 65
STEPS, ROUNDS = 40, 6


class Crops:
    """Rows cut out of one long array, as a corpus."""

    name, has_floor = "random characters", False

    def __init__(self, tokens: np.ndarray):
        self.tokens = tokens
        self.vocabulary = Vocabulary.from_words(chr(97 + i) for i in range(CHARACTERS - 5))

    def batch(self, batch_size, length, *, seed=0, epoch=0, index=0, split="train"):
        rng = np.random.default_rng([seed, epoch, index])
        starts = rng.integers(len(self.tokens) - length, size=(batch_size, 1))
        return self.tokens[starts + np.arange(length)]


class NextToken(Objective):
    """Predict each token from those before it."""

    name = "next-token"

    def corrupt(self, ids, rng):
        labels = np.roll(ids, -1, axis=1)
        labels[:, -1] = -100
        return {"input_ids": ids, "labels": labels}

    def loss(self, logits, batch, *, denominator=None, reduction="mean"):
        return cross_entropy(logits, batch["labels"], denominator=denominator, reduction=reduction)

    def count(self, batch):
        return int((batch["labels"] != -100).sum())

    def floor(self, language, ids, batch):
        raise NotImplementedError


class BareBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(b, t, 3 * HEADS, c // HEADS)
            .transpose(1, 2)
            .split(HEADS, dim=1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class BareGPT(nn.Module):
    """A GPT of torch.nn's parts, with a tied head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(TIME, WIDTH)
        self.blocks = nn.Sequential(*(BareBlock() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        return F.linear(self.norm(self.blocks(x)), self.tokens.weight)


def crops(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Texts and their continuation, as nanoGPT cuts them."""
    while True:
        starts = torch.randint(len(tokens) - TIME, (BATCH,))
        yield (
            torch.stack([tokens[i : i + TIME] for i in starts]),
            torch.stack([tokens[i + 1 : i + 1 + TIME] for i in starts]),
        )


def masked(tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Texts with 15 % of their tokens selected: 80 % [MASK], 10 % random, 10 % kept."""
    for ids, _ in crops(tokens):
        chosen, u = torch.rand(ids.shape) < 0.15, torch.rand(ids.shape)
        seen = torch.where(chosen & (u < 0.8), 4, ids)
        swap = chosen & (u >= 0.8) & (u < 0.9)
        seen = torch.where(swap, torch.randint(5, CHARACTERS, ids.shape), seen)
        yield seen, torch.where(chosen, ids, -100)


def bare(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Steps of a loop without anything to spare."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def steps() -> None:
        for _ in range(STEPS):
            ids, labels = next(batches)
            logits = getattr(out := model(ids), "logits", out)
            loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return steps


def ours(model: nn.Module, objective: Objective, corpus: Any) -> Callable[[], object]:
    options: dict[str, Any] = {"steps": STEPS, "batch_size": BATCH, "length": TIME}
    options |= {"evaluation_batches": 0, "device": "cpu", "progress": False}
    adamw = AdamW(model.named_parameters(), lr=1e-3, exclude="rank", compiled=True)
    options["optimizer"] = adamw
    return lambda: pretrain(model, objective, corpus, **options)


def row(what: str, peer: str, mine: float, theirs: float, target: float | None = None) -> Row:
    speeds = [STEPS * BATCH * TIME / seconds / 1e3 for seconds in (mine, theirs)]
    return Row(f"{what}: {speeds[0]:.1f} to {speeds[1]:.1f} k tok/s", peer, mine, theirs, target)


def run() -> list[Row]:
    ids = np.random.default_rng(0).integers(5, CHARACTERS, 200_000)
    corpus, tokens = Crops(ids), torch.from_numpy(ids)
    config = TransformerConfig(CHARACTERS, WIDTH, LAYERS, HEADS, TIME)
    seconds = race(
        {
            "masked": ours(Encoder(config), MaskedLM(corpus.vocabulary), corpus),
            "masked, bare": bare(Encoder(config), masked(tokens)),
            "causal": ours(Decoder(config), NextToken(corpus.vocabulary), corpus),
            "causal, bare": bare(Decoder(config), crops(tokens)),
            "nanoGPT": bare(BareGPT(), crops(tokens)),
        },
        rounds=ROUNDS,
        warmup=1,
    )
    time = {name: best(values) for name, values in seconds.items()}
    loop, shape = "a bare loop over the same model", "a bare GPT of nanoGPT's shape"
    return [
        row("masked LM", loop, time["masked"], time["masked, bare"], 1.0),
        row("next token", loop, time["causal"], time["causal, bare"]),
        row("masked LM", shape, time["masked"], time["nanoGPT"], 1.0),
        row("next token", shape, time["causal"], time["nanoGPT"]),
    ]
