"""Rules about parameters: which are not decayed, and how fast each layer learns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn

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


# Layer-wise learning rates

LAYER = re.compile(r"(?:^|[._/])(?:blocks?|layers?|h)[._/](\d+)(?:[._/]|$)")
INPUT = re.compile(r"(?:^|[._/])(?:\w*embed\w*|position|wte|wpe)(?:[._/]|$)", re.IGNORECASE)
ABOVE = {"plain": 1, "electra": 2}  # how far above the last layer the head stands


def depth_by_name(name: str) -> int | None:
    """0 for embeddings, i + 1 for what stands in layer i, None for what stands above them all.

    A layer is a number behind ``block(s)``, ``layer(s)`` or ``h``, as in this package's models,
    in transformers and in the repositories of BERT and GPT-2.
    """
    found = LAYER.search(name)
    if found:
        return int(found.group(1)) + 1
    return 0 if INPUT.search(name) else None


class LayerGroups(list[dict[str, Any]]):
    """Parameter groups by depth, for any optimizer of torch's; ``print`` says what was done.

    Attributes:
        factors: from the depth of a group to the factor of its rate, the head's depth last.
        frozen: names of parameters without ``requires_grad``, which are in no group.
    """

    def __init__(
        self, groups: list[dict[str, Any]], factors: dict[int, float], frozen: list[str]
    ) -> None:
        super().__init__(groups)
        self.factors, self.frozen = factors, frozen

    def __str__(self) -> str:
        lines = ["group         rate       factor    tensors  numbers  first"]
        for group, factor in zip(self, self.factors.values(), strict=True):
            tensors = [p for _, p in group["params"]]
            count = f"{len(tensors):7}  {sum(p.numel() for p in tensors):7}"
            first = group["params"][0][0]
            lines.append(
                f"{group['name']:12}  {group['lr']:<9.3g}  {factor:<8.4g}  {count}  {first}"
            )
        if self.frozen:
            lines.append(f"frozen, in no group: {', '.join(self.frozen)}")
        return "\n".join(lines)


def layerwise(
    parameters: nn.Module | Iterable[tuple[str, Tensor]],
    lr: float,
    decay: float,
    *,
    depth_of: Callable[[str], int | None] = depth_by_name,
    convention: str = "plain",
) -> LayerGroups:
    r"""Groups whose rates fall by ``decay`` from each layer to the one below it.

    With L layers, a group at depth k (embeddings 0, layer i at i + 1) learns with
    :math:`\eta\,\xi^{L+1-k}` and what stands above the layers with :math:`\eta`
    (Howard and Ruder 2018, section 3.2).

    Args:
        parameters: a module or its ``named_parameters()``.
        lr: the head's learning rate.
        decay: :math:`\xi` in (0, 1].
        depth_of: from a name to a depth, or to None for what stands above the layers.
        convention: ``"plain"``, or ``"electra"`` for :math:`\eta\,\xi^{L+2-k}` below the head:
            google-research/electra keeps a depth for a pooler that is no longer there, so that
            its last layer learns with :math:`\xi^2`.

    Returns:
        The groups, from the embeddings up, each with ``params`` (named), ``lr`` and ``name``.

    Raises:
        ValueError: a parameter without a name, a depth that is none, a decay outside (0, 1].
    """
    require(0 <= lr < math.inf, "lr", lr, "a finite number >= 0")
    require(0 < decay <= 1, "decay", decay, "a number in (0, 1]")
    require(convention in ABOVE, "convention", convention, f"one of {tuple(ABOVE)}")
    named = parameters.named_parameters() if isinstance(parameters, nn.Module) else parameters
    by_depth: dict[int | None, list[tuple[str, Tensor]]] = {}
    frozen = []
    for pair in named:
        named_pair = isinstance(pair, tuple) and isinstance(pair[0], str)
        require(named_pair, "parameters", type(pair).__name__, "pairs of a name and a tensor")
        name, p = pair
        if p.requires_grad:
            by_depth.setdefault(_depth(depth_of, name), []).append((name, p))
        else:
            frozen.append(name)
    require(by_depth, "parameters", frozen, "at least one parameter that learns")
    layers = max((depth for depth in by_depth if depth is not None), default=0)
    head = layers + ABOVE[convention]
    placed = {head if depth is None else depth: pairs for depth, pairs in by_depth.items()}
    factors = {depth: decay ** (head - depth) for depth in sorted(placed)}
    groups = [
        {"params": placed[depth], "lr": lr * factor, "name": _place(depth, head)}
        for depth, factor in factors.items()
    ]
    return LayerGroups(groups, factors, frozen)


def _depth(depth_of: Callable[[str], int | None], name: str) -> int | None:
    depth = depth_of(name)
    fits = depth is None or (isinstance(depth, int) and depth >= 0)
    require(fits, f"depth_of({name!r})", depth, "None or a whole number >= 0")
    return depth


def _place(depth: int, head: int) -> str:
    return "embeddings" if depth == 0 else "head" if depth == head else f"layer {depth - 1}"
