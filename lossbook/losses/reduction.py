"""From one loss per element to one number: what is summed, and what it is divided by."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from lossbook._require import require

REDUCTIONS = ("mean", "sum", "none")


def reduce(
    losses: Float[Tensor, "*shape"],
    mask: Bool[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Reduce elementwise losses over the elements that count.

    With :math:`m_i \in \{0, 1\}` the mask and :math:`\ell_i` the losses, ``"sum"`` is
    :math:`\sum_i m_i \ell_i` and ``"mean"`` is that sum over :math:`\sum_i m_i`, or over
    ``denominator`` where one is given: a batch that is cut into pieces needs the number of
    elements of the *whole* batch below every piece.

    Args:
        losses: One loss per element.
        mask: Which elements count. All of them by default.
        reduction: ``"mean"``, ``"sum"`` or ``"none"`` (the losses, 0 where the mask is false).
        denominator: Replaces the number of elements that count. Only with ``"mean"``.

    Returns:
        A scalar, or a tensor of the shape of ``losses`` for ``"none"``. The mean of an empty
        set is 0 and has a gradient of 0, where torch returns NaN.

    Raises:
        ValueError: The reduction is unknown, or the denominator is not positive.
    """
    require(reduction in REDUCTIONS, "reduction", reduction, f"one of {REDUCTIONS}")
    require(denominator is None or reduction == "mean", "denominator", denominator,
            f"None, because reduction={reduction!r} divides by nothing")  # fmt: skip
    if mask is not None:
        losses = losses.masked_fill(~mask, 0.0)
    if reduction == "none":
        return losses
    total = losses.sum()
    if reduction == "sum":
        return total
    if denominator is None:
        count = losses.numel() if mask is None else mask.sum()
        denominator = max(count, 1) if isinstance(count, int) else count.clamp(min=1)
    else:
        seen = not isinstance(denominator, Tensor) or denominator.device.type == "cpu"
        require(not seen or denominator > 0, "denominator", denominator, "a positive number")
    return total / denominator
