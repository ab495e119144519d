"""Objectives: how ids become a problem, and how the answer is scored."""

from lossbook.objectives.base import IGNORE_INDEX, Objective, Shown
from lossbook.objectives.blank_infilling import BlankInfilling
from lossbook.objectives.causal_lm import CausalLM, pack, shifted_cross_entropy
from lossbook.objectives.conditional_lm import ConditionalLM
from lossbook.objectives.masked_lm import MaskedLM
from lossbook.objectives.sentence_pairs import (
    NextSentence,
    SentenceOrder,
    SentencePairs,
    full_sentences,
    instances,
)

__all__ = [
    "IGNORE_INDEX",
    "BlankInfilling",
    "CausalLM",
    "ConditionalLM",
    "MaskedLM",
    "NextSentence",
    "Objective",
    "SentenceOrder",
    "SentencePairs",
    "Shown",
    "full_sentences",
    "instances",
    "pack",
    "shifted_cross_entropy",
]
