"""One step of an optimizer on the tensors of a GPT: ours against torch's fused kernel.

The fused kernel reads and writes every number once (28 bytes per float32 parameter), which is as
fast as the memory allows. Every contestant steps its own copy of the same parameters.

Nobody has a fused Adafactor. There ours stands against the faster of torch and transformers. The
least that it can move is 20 bytes per parameter: the gradient and the parameter once for their
sums, and once more, with a write, for the step; reading the gradient again for the length of the
update makes 24, and once more for sums along the other axis makes 28, which is what ours does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from benchmarks.timing import Row, best, race
from lossbook.optim import Adafactor, AdamW

Shapes = list[tuple[int, ...]]


def gpt_shapes(width: int, layers: int, vocabulary: int, context: int) -> Shapes:
    """The tensors of GPT-2: two embeddings, twelve tensors a layer, a last norm."""
    layer: Shapes = [
        *[(width,), (width,), (3 * width, width), (3 * width,), (width, width), (width,)],
        *[(width,), (width,), (4 * width, width), (4 * width,), (width, 4 * width), (width,)],
    ]
    return [(vocabulary, width), (context, width), *(layer * layers), (width,), (width,)]


SIZES = {
    "10 M": gpt_shapes(width=256, layers=11, vocabulary=4096, context=256),
    "100 M": gpt_shapes(width=768, layers=11, vocabulary=30_000, context=1024),
}


def parameters(shapes: Shapes, gradients: list[torch.Tensor]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.full(shape, 0.02)) for shape in shapes]
    for p, g in zip(made, gradients, strict=True):
        p.grad = g
    return made


def contestants(shapes: Shapes) -> dict[str, Callable[[], object]]:
    gradients = [torch.randn(shape) * 1e-3 for shape in shapes]
    return {
        "fused": torch.optim.AdamW(parameters(shapes, gradients), fused=True).step,
        "for-loop": torch.optim.AdamW(parameters(shapes, gradients), foreach=False).step,
        "compiled": AdamW(parameters(shapes, gradients), compiled=True).step,
        "eager": AdamW(parameters(shapes, gradients)).step,
    }


def rows(size: str, threads: int) -> list[Row]:
    shapes = SIZES[size]
    count = sum(math.prod(shape) for shape in shapes) / 1e6
    seconds = race(contestants(shapes), rounds=80 if count < 50 else 9)
    time = {name: best(values) for name, values in seconds.items()}
    what = f"{count:.1f} M parameters, {len(shapes)} tensors, {threads} threads"
    fused, loop = "torch.optim.AdamW(fused=True)", "torch.optim.AdamW(foreach=False)"
    return [
        Row(f"compiled, {what}", fused, time["compiled"], time["fused"], target=1.1),
        Row(f"uncompiled, {what}", loop, time["eager"], time["for-loop"]),
    ]


def adafactors(shapes: Shapes) -> dict[str, Callable[[], object]]:
    from transformers.optimization import Adafactor as Transformers

    gradients = [torch.randn(shape) * 1e-3 for shape in shapes]
    given = {"lr": 1e-3, "relative_step": False}
    return {
        "torch": torch.optim.Adafactor(parameters(shapes, gradients), foreach=False).step,
        "transformers": Transformers(parameters(shapes, gradients), **given).step,
        "compiled": Adafactor(parameters(shapes, gradients), rate="given", compiled=True).step,
        "eager": Adafactor(parameters(shapes, gradients), rate="given").step,
    }


def adafactor_rows(size: str, threads: int) -> list[Row]:
    shapes = SIZES[size]
    count = sum(math.prod(shape) for shape in shapes) / 1e6
    seconds = race(adafactors(shapes), rounds=12 if count < 50 else 5)
    time = {name: best(values) for name, values in seconds.items()}
    what = f"Adafactor, {count:.1f} M parameters, {threads} threads"
    theirs = min(time["torch"], time["transformers"])
    peer = "the faster of torch's and transformers' Adafactor"
    return [
        Row(f"compiled {what}", peer, time["compiled"], theirs, target=0.5),
        Row(f"uncompiled {what}", peer, time["eager"], theirs),
    ]


def run() -> list[Row]:
    threads = torch.get_num_threads()
    found = [row for size in SIZES for row in rows(size, threads)]
    found += [row for size in SIZES for row in adafactor_rows(size, threads)]
    return sorted(found, key=lambda row: row.peer, reverse=True)
