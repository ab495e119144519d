"""Objectives: how ids become a problem, and how the answer is scored."""

from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown
from lossbook.objectives.causal_lm import CausalLM, shifted_cross_entropy
from lossbook.objectives.masked_lm import MaskedLM

__all__ = ["IGNORE_INDEX", "CausalLM", "MaskedLM", "Objective", "Shown", "shifted_cross_entropy"]
