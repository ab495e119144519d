"""Objectives: how ids become a problem, and how the answer is scored."""

from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown
from lossbook.objectives.blank_infilling import BlankInfilling
from lossbook.objectives.causal_lm import CausalLM, pack, shifted_cross_entropy
from lossbook.objectives.conditional_lm import ConditionalLM
from lossbook.objectives.masked_lm import MaskedLM

__all__ = [
    "IGNORE_INDEX",
    "BlankInfilling",
    "CausalLM",
    "ConditionalLM",
    "MaskedLM",
    "Objective",
    "Shown",
    "pack",
    "shifted_cross_entropy",
]
