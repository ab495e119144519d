"""Clipping by the global norm (Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

CLIP_FORMS = ("pascanu", "torch")
ROW = 4096  # numbers that are summed in the gradient's own precision


def norm(g: Tensor) -> float:
    """Euclidean norm of one tensor.

    Rows of 4096 numbers are summed in the tensor's own precision and the rows in float64: one
    float32 sum over 50 million numbers is wrong in the third digit on a CPU.
    """
    flat = g.detach().reshape(-1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    if flat.numel() < 2 * ROW:
        return float(torch.linalg.vector_norm(flat, dtype=torch.float64))
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1)
    return math.hypot(norm(rows), norm(flat[whole:]))


def global_norm(gradients: Iterable[Tensor]) -> float:
    """Norm of all gradients laid end to end, in float64."""
    return math.hypot(*(norm(g) for g in gradients))


def clip_factor(total: float, limit: float, form: str = "pascanu") -> float:
    """The number in (0, 1] that every gradient is multiplied by.

    Args:
        total: global norm of the gradients.
        limit: largest norm that is left alone.
        form: ``"pascanu"`` is c / max(norm, c), exact at the limit, as in TensorFlow and optax;
            ``"torch"`` is min(1, c / (norm + 1e-6)), as in ``torch.nn.utils.clip_grad_norm_``,
            which also shrinks a gradient that lies just below the limit.
    """
    if form == "torch":
        return min(1.0, limit / (total + 1e-6))
    return limit / max(total, limit)
