"""Which parameters are not decayed: rules by name, by rank, or the caller's own."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

from lossbook._require import require

Rule = Callable[[str | None, Tensor], bool]

# google-research/bert, optimization.py and run_pretraining.py: searched anywhere in the name,
# so that `output_bias` is found too.
BERT_PATTERN = re.compile("LayerNorm|layer_norm|bias")


def excluded_by_bert(name: str | None, parameter: Tensor) -> bool:
    """BERT's rule: a name in which ``LayerNorm``, ``layer_norm`` or ``bias`` occurs."""
    require(
        name is not None,
        "params",
        f"a tensor of shape {tuple(parameter.shape)} without a name",
        "named parameters (model.named_parameters()), because exclude='bert' goes by names",
    )
    return BERT_PATTERN.search(str(name)) is not None


def excluded_by_rank(name: str | None, parameter: Tensor) -> bool:
    """GPT's rule: vectors and numbers are not decayed, matrices (embeddings included) are."""
    return parameter.ndim <= 1


def excluded_never(name: str | None, parameter: Tensor) -> bool:
    return False


RULES: dict[str | None, Rule] = {
    None: excluded_never,
    "bert": excluded_by_bert,
    "rank": excluded_by_rank,
}


def exclusion_rule(exclude: str | Rule | None) -> Rule:
    """The function behind ``exclude=``: None, ``"bert"``, ``"rank"`` or ``f(name, parameter)``."""
    if callable(exclude):
        return exclude
    require(exclude in RULES, "exclude", exclude, "None, 'bert', 'rank' or f(name, parameter)")
    return RULES[exclude]
