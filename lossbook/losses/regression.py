r"""Losses of numbers: each is the negative logarithm of a noise density.

Squared error belongs to Gaussian noise, absolute error to Laplace noise, and Huber's loss
:cite:p:`huber1964` to a density that is Gaussian in the middle and Laplace in the tails.
Constants that do not depend on the prediction are left out.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lossbook._require import require
from lossbook.losses.reduction import reduce


def _residual(input: Tensor, target: Tensor) -> Tensor:
    require(input.shape == target.shape, "target", tuple(target.shape),
            f"the shape of input, {tuple(input.shape)} (broadcasting would average "
            "over pairs that do not belong together)")  # fmt: skip
    return input - target


def squared_error(
    input: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Squared error :math:`(\hat y_i - y_i)^2`, without the factor ½, as in torch.

    Args:
        input: Predictions :math:`\hat y`.
        target: Observations :math:`y`, of exactly the same shape.
        mask: Which elements count.
        reduction: See :func:`lossbook.losses.reduction.reduce`.
        denominator: Likewise.

    Raises:
        ValueError: The shapes differ.
    """
    return reduce(_residual(input, target).square(), mask, reduction, denominator)


def absolute_error(
    input: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    mask: Bool[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Absolute error :math:`|\hat y_i - y_i|`; its gradient at 0 is 0, as in torch.

    Arguments and errors are those of :func:`squared_error`.
    """
    return reduce(_residual(input, target).abs(), mask, reduction, denominator)


def huber(
    input: Float[Tensor, "*shape"],
    target: Float[Tensor, "*shape"],
    *,
    delta: float = 1.0,
    mask: Bool[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Huber's loss with threshold :math:`\delta`, on :math:`r = \hat y - y`.

    .. math::

        \ell(r) = \begin{cases}
            \tfrac12 r^2 & |r| \le \delta \\
            \delta\,(|r| - \tfrac12 \delta) & |r| > \delta
        \end{cases}

    Source: Huber (1964), with his :math:`k` written :math:`\delta`; equal to
    ``torch.nn.functional.huber_loss``. Arguments and errors are those of
    :func:`squared_error`; ``delta`` must be positive.
    """
    require(delta > 0, "delta", delta, "a positive number")
    size = _residual(input, target).abs()
    losses = torch.where(size <= delta, size.square() / 2, delta * (size - delta / 2))
    return reduce(losses, mask, reduction, denominator)


class MSELoss(nn.Module):
    """Module form of :func:`squared_error`; the reduction is fixed at construction."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return squared_error(input, target, reduction=self.reduction)


class L1Loss(nn.Module):
    """Module form of :func:`absolute_error`."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return absolute_error(input, target, reduction=self.reduction)


class HuberLoss(nn.Module):
    """Module form of :func:`huber`."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return huber(input, target, delta=self.delta, reduction=self.reduction)
