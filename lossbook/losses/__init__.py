"""Losses as functions of tensors, and as modules with torch's names."""

from lossbook.losses.cross_entropy import (
    BCEWithLogitsLoss,
    CrossEntropyLoss,
    SoftCrossEntropyLoss,
    binary_cross_entropy,
    cross_entropy,
    soft_cross_entropy,
    z_loss,
)
from lossbook.losses.reduction import reduce
from lossbook.losses.regression import (
    HuberLoss,
    L1Loss,
    MSELoss,
    absolute_error,
    huber,
    squared_error,
)

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "HuberLoss",
    "L1Loss",
    "MSELoss",
    "SoftCrossEntropyLoss",
    "absolute_error",
    "binary_cross_entropy",
    "cross_entropy",
    "huber",
    "reduce",
    "soft_cross_entropy",
    "squared_error",
    "z_loss",
]
