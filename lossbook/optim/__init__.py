"""Optimizers: the loop in the base class, the equation in the subclass, speed from the compiler."""

from lossbook.optim.adafactor import Adafactor, adafactor_step
from lossbook.optim.adam import Adam, adam_step
from lossbook.optim.adamw import AdamW, adamw_step
from lossbook.optim.base import NonFiniteGradientError, Optimizer
from lossbook.optim.clipping import clip_factor, global_norm
from lossbook.optim.groups import exclusion_rule
from lossbook.optim.sgd import SGD, plain_step, sgd_step

__all__ = [
    "SGD",
    "Adafactor",
    "Adam",
    "AdamW",
    "NonFiniteGradientError",
    "Optimizer",
    "adafactor_step",
    "adam_step",
    "adamw_step",
    "clip_factor",
    "exclusion_rule",
    "global_norm",
    "plain_step",
    "sgd_step",
]
