"""Objectives: how ids become a problem, and how the answer is scored."""

from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown
from lossbook.objectives.masked_lm import MaskedLM

__all__ = ["IGNORE_INDEX", "MaskedLM", "Objective", "Shown"]
