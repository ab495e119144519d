"""Optimizers: the loop in the base class, the equation in the subclass, speed from the compiler."""

from lossbook.optim.adafactor import Adafactor, adafactor_step
from lossbook.optim.adam import Adam, adam_step
from lossbook.optim.adam_family import (
    AdaMax,
    AMSGrad,
    NAdam,
    RAdam,
    adamax_step,
    amsgrad_step,
    nadam_step,
    radam_step,
)
from lossbook.optim.adamw import AdamW, adamw_step
from lossbook.optim.adaptive import (
    Adadelta,
    Adagrad,
    RMSprop,
    adadelta_step,
    adagrad_step,
    rmsprop_step,
)
from lossbook.optim.base import NonFiniteGradientError, Optimizer
from lossbook.optim.clipping import clip_factor, global_norm
from lossbook.optim.ema import EMA, ema_step
from lossbook.optim.groups import LayerGroups, depth_by_name, exclusion_rule, layerwise
from lossbook.optim.schedules import SCHEDULES, Course, Schedule, course
from lossbook.optim.sgd import SGD, plain_step, sgd_step

__all__ = [
    "EMA",
    "SCHEDULES",
    "SGD",
    "AMSGrad",
    "AdaMax",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Course",
    "LayerGroups",
    "NAdam",
    "NonFiniteGradientError",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Schedule",
    "adadelta_step",
    "adafactor_step",
    "adagrad_step",
    "adam_step",
    "adamax_step",
    "adamw_step",
    "amsgrad_step",
    "clip_factor",
    "course",
    "depth_by_name",
    "ema_step",
    "exclusion_rule",
    "global_norm",
    "layerwise",
    "nadam_step",
    "plain_step",
    "radam_step",
    "rmsprop_step",
    "sgd_step",
]
