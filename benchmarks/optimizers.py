"""One step of an optimizer on the tensors of a GPT: ours against the fastest of the libraries.

A step does little arithmetic, so it is priced in bytes. Torch's fused kernels read and write every
number once: 12 bytes per float32 parameter for plain SGD, 20 with momentum, 28 for Adam and AdamW.
How fast memory can be read, changed and written back is measured in the same run by ``x.mul_(c)``
on as many bytes; the last block prints each step's time over that floor.

Nobody has a fused Adafactor. There ours stands against the fastest of torch, transformers, timm
and pytorch_optimizer. The least that it can move is 20 bytes per parameter: the gradient and the
parameter once for their sums, and once more, with a write, for the step; reading the gradient again
for the length of the update makes 24, and once more for sums along the other axis makes 28, which
is what ours does.

Torch's kernels do not look for infinities and NaNs, so neither do ours where they race; what the
look costs is a row of its own.

All of it runs on the CPU, and once more on a GPU where there is one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.timing import Row, best, race
from lossbook.optim import SGD, Adafactor, Adam, AdamW

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

# Name, ours, torch's, options of both, bytes that one step must move per float32 parameter.
FUSED: list[tuple[str, type, type, dict[str, Any], int]] = [
    ("AdamW", AdamW, torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.01}, 28),
    ("Adam", Adam, torch.optim.Adam, {"lr": 1e-3, "weight_decay": 0.01}, 28),
    ("SGD with momentum", SGD, torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}, 20),
    ("SGD", SGD, torch.optim.SGD, {"lr": 1e-3}, 12),
]
ADAFACTOR_BYTES = 28


def random_gradients(shapes: Shapes, device: str) -> list[torch.Tensor]:
    return [torch.randn(shape, device=device) * 1e-3 for shape in shapes]


def parameters(gradients: list[torch.Tensor]) -> list[torch.nn.Parameter]:
    made = [torch.nn.Parameter(torch.full_like(g, 0.02)) for g in gradients]
    for p, g in zip(made, gradients, strict=True):
        p.grad = g
    return made


def in_place(floats: int, device: str) -> Callable[[], object]:
    """Read, change and write back so many numbers: 8 bytes each."""
    x = torch.ones(floats, device=device)
    return lambda: x.mul_(0.999)


def settled(contestants: dict[str, Callable[[], object]], device: str) -> dict[str, Any]:
    """On a GPU a call returns before its work is done; there the clock has to wait for it."""

    def waiting(step: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            step()
            torch.cuda.synchronize()

        return run

    if device == "cpu":
        return contestants
    return {name: waiting(step) for name, step in contestants.items()}


def place(device: str) -> str:
    """How a row says where it was measured."""
    if device == "cpu":
        return f"{torch.get_num_threads()} threads"
    return torch.cuda.get_device_name()


def fused_race(
    shapes: Shapes, ours: type, torchs: type, options: dict[str, Any], moved: int, device: str
) -> dict[str, Callable[[], object]]:
    """Contestants of one optimizer, and the floor on a memory of the same size."""
    gradients = random_gradients(shapes, device)
    count = sum(map(math.prod, shapes))

    def own(**more: Any) -> Callable[[], object]:
        return ours(parameters(gradients), **options, **more).step

    contestants = {
        "fused": torchs(parameters(gradients), **options, fused=True).step,
        "for-loop": torchs(parameters(gradients), **options, foreach=False).step,
        "compiled": own(compiled=True, check_finite=False),
        "looking": own(compiled=True, check_finite=True),
        "eager": own(check_finite=False),
        "floor": in_place(count * moved // 8, device),
    }
    return settled(contestants, device)


def fused_rows(size: str, device: str) -> Iterator[Row]:
    shapes = SIZES[size]
    count = sum(map(math.prod, shapes)) / 1e6
    for name, ours, torchs, options, moved in FUSED:
        contestants = fused_race(shapes, ours, torchs, options, moved, device)
        seconds = race(contestants, rounds=40 if count < 50 else 7)
        time = SimpleNamespace(**{key.replace("-", "_"): best(s) for key, s in seconds.items()})
        what = f"{name}, {count:.1f} M parameters, {place(device)}"
        yield Row(what, "compiled against torch's fused", time.compiled, time.fused, target=1.1)
        yield Row(what, "the same with a look at the gradients", time.looking, time.fused)
        yield Row(what, "uncompiled against torch's for-loop", time.eager, time.for_loop)
        yield from floor_rows(f"{what}, {moved} B", time.compiled, time.fused, time.floor)


def floor_rows(what: str, compiled: float, fused: float, floor: float) -> Iterator[Row]:
    yield Row(f"compiled {what}", FLOOR, compiled, floor)
    yield Row(f"torch's {what}", FLOOR, fused, floor)


FLOOR = "so many bytes per parameter, changed in place"


@contextmanager
def without_torchvision() -> Iterator[None]:
    """timm's optimizers need neither its models nor torchvision, which its packages import."""
    found = find_spec("timm")
    parent, models = ModuleType("timm"), ModuleType("timm.models")
    parent.__path__ = list(found.submodule_search_locations) if found else []
    models.group_parameters = models.group_modules = None
    before = {name: sys.modules.get(name) for name in ("timm", "timm.models")}
    sys.modules |= {"timm": parent, "timm.models": models}
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                sys.modules.pop(name)
            else:
                sys.modules[name] = module


def adafactors(shapes: Shapes, device: str) -> dict[str, Callable[[], object]]:
    from pytorch_optimizer import AdaFactor as OfPytorchOptimizer
    from transformers.optimization import Adafactor as OfTransformers

    with without_torchvision():
        from timm.optim.adafactor import Adafactor as OfTimm

    gradients = random_gradients(shapes, device)
    count = sum(map(math.prod, shapes))

    def step(make: type, **options: Any) -> Callable[[], object]:
        return make(parameters(gradients), lr=1e-3, **options).step

    contestants = {
        "torch, for-loop": step(torch.optim.Adafactor, foreach=False),
        "torch, foreach": step(torch.optim.Adafactor, foreach=True),
        "transformers": step(OfTransformers, relative_step=False),
        "timm": step(OfTimm),
        "pytorch_optimizer": step(OfPytorchOptimizer, relative_step=False),
        "compiled": step(Adafactor, rate="given", compiled=True, check_finite=False),
        "eager": step(Adafactor, rate="given", check_finite=False),
        "floor": in_place(count * ADAFACTOR_BYTES // 8, device),
    }
    return settled(contestants, device)


def adafactor_rows(size: str, device: str) -> Iterator[Row]:
    shapes = SIZES[size]
    count = sum(map(math.prod, shapes)) / 1e6
    seconds = race(adafactors(shapes, device), rounds=8 if count < 50 else 3)
    time = {name: best(values) for name, values in seconds.items()}
    compiled, eager, floor = (time.pop(name) for name in ("compiled", "eager", "floor"))
    fastest = min(time, key=time.__getitem__)
    what = f"Adafactor, {count:.1f} M parameters, {place(device)}"
    for name, theirs in time.items():
        peer = f"compiled against {name}{' (the fastest)' if name == fastest else ''}"
        yield Row(what, peer, compiled, theirs, target=0.5)
    yield Row(what, f"uncompiled against {fastest}", eager, time[fastest])
    yield Row(f"compiled {what}, {ADAFACTOR_BYTES} B", FLOOR, compiled, floor)
    yield Row(f"{fastest}'s {what}", FLOOR, time[fastest], floor)


def run() -> list[Row]:
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found = [row for d in devices for size in SIZES for row in fused_rows(size, d)]
    found += [row for d in devices for size in SIZES for row in adafactor_rows(size, d)]
    return sorted(found, key=lambda row: row.peer == FLOOR)
