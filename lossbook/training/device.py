"""Where training runs and with how many bits."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lossbook._require import require

with warnings.catch_warnings():  # about progress bars that need ipywidgets; none is shown
    warnings.filterwarnings("ignore", "IProgress not found")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("no", "bf16", "fp16")


def available() -> list[str]:
    """The devices of this machine, the fastest first."""
    found = ["cuda"] if torch.cuda.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def choose_device(device: str = "auto", precision: str = "no") -> str:
    """The device that ``"auto"`` means here, or the one that was asked for.

    Args:
        device: ``"auto"`` (the fastest there is), ``"cuda"``, ``"mps"`` or ``"cpu"``.
        precision: ``"no"`` (float32), ``"bf16"``, or ``"fp16"`` where gradients can be scaled.

    Raises:
        ValueError: the device is not there, or it does not have that precision.
    """
    require(device in DEVICES, "device", device, f"one of {DEVICES}")
    require(precision in PRECISIONS, "precision", precision, f"one of {PRECISIONS}")
    here = available()
    require(device == "auto" or device in here, "device", device, f"one of this machine's, {here}")
    chosen = here[0] if device == "auto" else device
    half = precision != "fp16" or chosen != "cpu"
    require(half, "precision", precision, '"no" or "bf16" on a CPU (fp16 needs cuda or mps)')
    return chosen


@contextmanager
def accelerator(device: str = "auto", precision: str = "no") -> Iterator[Accelerator]:
    """An ``accelerate.Accelerator`` for the length of a ``with`` block.

    accelerate keeps one state per process, which would fix the precision of the first run for
    all later ones and for the caller's own Accelerator. Here it is put back at the end.
    """
    chosen = choose_device(device, precision)
    states = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        made = Accelerator(cpu=chosen == "cpu", mixed_precision=precision)
        made.gradient_accumulation_steps = 1  # the denominator of the loss does this already
        yield made
    finally:
        for state, old in zip(states, before, strict=True):
            state.clear()
            state.update(old)
