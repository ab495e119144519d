r"""LoRA: a frozen matrix, and beside it a trained product of two thin ones.

.. math:: h = W x + s\, B A x, \qquad W \in \mathbb R^{d \times k},\;
          B \in \mathbb R^{d \times r},\; A \in \mathbb R^{r \times k}

with :math:`s = \alpha / r` (Hu et al. 2021, arXiv:2106.09685, equation 3 and section 4.1), or
:math:`s = \alpha / \sqrt r` (Kalajdzievski 2023, arXiv:2312.03732). One factor starts at zero,
so that the adapted model begins as the model it adapts. For a loss with the gradient
:math:`G = \partial \mathcal L / \partial (W + sBA)`,

.. math:: \frac{\partial \mathcal L}{\partial A} = s\, B^\top G, \qquad
          \frac{\partial \mathcal L}{\partial B} = s\, G A^\top .

Merging is a cache here and no change of state: the sum W + sBA is kept beside W. So unmerging
gives W back to the last bit, merging twice is merging once, and a ``state_dict`` holds W, A and B
whether merged or not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lossbook._require import require

INITS = ("kaiming", "gaussian")


class LoRA(nn.Module):
    """What the adapters of all kinds of layers share.

    Args:
        base: the layer to adapt; its parameters are frozen.
        rank: r.
        alpha: the numerator of the scaling.
        rslora: divide by the root of the rank instead of the rank.
    """

    base: nn.Module
    merged_weight: Tensor | None
    tied = False  # whether anybody has asked for the weight, to use it elsewhere

    def __init__(self, base: nn.Module, rank: int, alpha: float, rslora: bool) -> None:
        super().__init__()
        require(rank >= 1, "rank", rank, "at least 1")
        good = math.isfinite(alpha) and alpha > 0
        require(good, "alpha", alpha, "a finite number above 0")
        self.base = base.requires_grad_(False)
        self.rank, self.alpha, self.rslora = rank, float(alpha), rslora
        self.register_buffer("merged_weight", None, persistent=False)

    @property
    def scaling(self) -> float:
        """s = α/r, or α/√r."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def delta(self) -> Float[Tensor, "rows columns"]:
        """sBA, in the shape of the adapted weight."""
        raise NotImplementedError

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B as PEFT stores them."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        return self.merged_weight is not None

    @property
    def weight(self) -> Float[Tensor, "rows columns"]:
        """W + sBA, for others who use this weight, such as a tied head."""
        self.tied = True
        return self.total()

    def total(self) -> Float[Tensor, "rows columns"]:
        """W + sBA for the layer itself."""
        if self.merged_weight is not None:
            return self.merged_weight
        return self.base.weight + self.delta()

    @torch.no_grad()
    def merge(self) -> None:
        """Use one matrix instead of three from now on; merging again changes nothing."""
        self.merged_weight = self.total()

    def unmerge(self) -> None:
        """Forget the sum; W was never touched."""
        self.merged_weight = None

    def plain(self) -> nn.Module:
        """The base layer with W + sBA as its weight: no adapter any more."""
        with torch.no_grad():
            self.base.weight.copy_(self.total())
        return self.base

    def train(self, mode: bool = True) -> LoRA:
        """Training starts from separate factors: a merged sum would not see A and B move."""
        if mode:
            self.unmerge()
        return super().train(mode)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha:g}, scaling={self.scaling:.3g}"


class LoRALinear(LoRA):
    """W x + b + s B A x.

    A fused projection, such as ``qkv``, can be adapted in parts: ``parts=(True, False, True)``
    cuts the output into three, gives the first and the last an A and a B of their own, and leaves
    the second alone (``enable_lora`` in loralib's ``MergedLinear``). Stored for PEFT, p parts of
    rank r are one adapter of rank p·r whose B has blocks of zeros, with α such that s is the same.

    Args:
        base: a linear layer [out, in].
        rank: r, of each part.
        alpha: the numerator of the scaling.
        dropout: probability with which the inputs of A are dropped in training.
        rslora: s = α/√r.
        parts: which equal parts of the output are adapted; all as one by default.
        init: ``"kaiming"``, A uniform in ±1/√in (loralib, PEFT), or ``"gaussian"``, A normal
            with deviation 1/r (the paper says normal, PEFT chose the deviation). B is zero.
        rng: where A comes from.

    Raises:
        ValueError: a rank below 1 or above the smaller side, parts that do not divide the output.
    """

    def __init__(
        self,
        base: nn.Linear,
        rank: int,
        alpha: float,
        *,
        dropout: float = 0.0,
        rslora: bool = False,
        parts: Sequence[bool] | None = None,
        init: str = "kaiming",
        rng: np.random.Generator,
    ) -> None:
        super().__init__(base, rank, alpha, rslora)
        require(init in INITS, "init", init, f"one of {INITS}")
        require(0 <= dropout < 1, "dropout", dropout, "a probability in [0, 1)")
        self.parts = None if parts is None or (all(parts) and len(parts) == 1) else tuple(parts)
        pieces, adapted = (1, 1) if self.parts is None else (len(self.parts), sum(self.parts))
        fits = pieces and base.out_features % pieces == 0 and adapted
        require(fits, "parts", parts, f"equal parts of {base.out_features} outputs, one adapted")
        height, width = base.out_features // pieces, base.in_features
        require(rank <= min(height, width), "rank", rank, f"at most {min(height, width)}")
        shape = (adapted * rank, width)
        drawn = rng.uniform(-1, 1, shape) / math.sqrt(width)
        a = drawn if init == "kaiming" else rng.standard_normal(shape) / rank
        self.A = nn.Parameter(torch.from_numpy(a).to(base.weight))
        self.B = nn.Parameter(base.weight.new_zeros(adapted * height, rank))
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def wide_B(self) -> Float[Tensor, "outs ranks"]:
        """B with a row for each output and a column for each row of A: zeros between parts."""
        if self.parts is None:
            return self.B
        blocks = iter(self.B.chunk(sum(self.parts)))
        height = self.base.out_features // len(self.parts)
        empty = self.B.new_zeros(height, 0)
        return torch.block_diag(*[next(blocks) if part else empty for part in self.parts])

    def forward(self, x: Float[Tensor, "*batch ins"]) -> Float[Tensor, "*batch outs"]:
        if self.merged_weight is not None:
            return F.linear(x, self.merged_weight, self.base.bias)
        low = F.linear(self.drop(x), self.A)
        return self.base(x) + self.scaling * F.linear(low, self.wide_B())

    def delta(self) -> Float[Tensor, "outs ins"]:
        return self.scaling * (self.wide_B() @ self.A)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.wide_B()


class LoRAEmbedding(LoRA):
    """Rows of E + s (B A)ᵀ, with A [r, vocab] zero and B [width, r] normal, as in PEFT.

    ``weight`` is the adapted table, so a head that is tied to the embedding moves with it, before
    merging as after. PEFT adapts only the look-up; see the chapter's museum.

    Args:
        base: an embedding [vocab, width].
        rank: r.
        alpha: the numerator of the scaling.
        rslora: s = α/√r.
        rng: where B comes from.
    """

    def __init__(
        self,
        base: nn.Embedding,
        rank: int,
        alpha: float,
        *,
        rslora: bool = False,
        rng: np.random.Generator,
    ) -> None:
        super().__init__(base, rank, alpha, rslora)
        b = rng.standard_normal((base.embedding_dim, rank))
        self.A = nn.Parameter(base.weight.new_zeros(rank, base.num_embeddings))
        self.B = nn.Parameter(torch.from_numpy(b).to(base.weight))

    def forward(self, ids: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:
        if self.merged_weight is not None:
            return F.embedding(ids, self.merged_weight)
        return self.base(ids) + self.scaling * (F.embedding(ids, self.A.T) @ self.B.T)

    def delta(self) -> Float[Tensor, "vocab width"]:
        return self.scaling * (self.B @ self.A).T

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.A, self.B


def apply_lora(
    model: nn.Module,
    targets: Sequence[str] = ("attention.qkv",),
    *,
    rank: int = 4,
    alpha: float = 8.0,
    dropout: float = 0.0,
    rslora: bool = False,
    parts: Mapping[str, Sequence[bool]] | None = None,
    init: str = "kaiming",
    seed: int = 0,
) -> nn.Module:
    """Freeze a model and put adapters around some of its linear layers and embeddings, in place.

    Args:
        model: any module; everything in it is frozen.
        targets: names of layers, or the ends of names: ``"attention.qkv"`` means that of every
            block, as in PEFT.
        rank, alpha, dropout, rslora, init: see :class:`LoRALinear`.
        parts: for some of the targets, which parts of a fused projection are adapted:
            ``{"attention.qkv": (True, False, True)}`` for query and value.
        seed: of the initial weights, drawn by NumPy.

    Returns:
        The same model.

    Raises:
        ValueError: a target that is not there, is no linear layer or embedding, or is adapted
            already.
    """
    parts = dict(parts or {})
    known = f"some of the targets {list(targets)}"
    require(set(parts) <= set(targets), "parts", list(parts), known)
    found: dict[str, str] = {}
    for target in targets:
        names = [name for name, _ in model.named_modules() if _ends(name, target)]
        require(names, "targets", target, "the name of a layer, or its end")
        found |= dict.fromkeys(names, target)
    model.requires_grad_(False)
    for index, name in enumerate(sorted(found)):
        rng = np.random.default_rng([seed, index])
        cuts = parts.get(found[name])
        options: dict[str, Any] = {"rslora": rslora, "rng": rng}
        linear = {"dropout": dropout, "parts": cuts, "init": init}
        layer = model.get_submodule(name)
        if isinstance(layer, nn.Embedding):
            wrapped: LoRA = LoRAEmbedding(layer, rank, alpha, **options)
        else:
            expected = "a linear layer or an embedding without an adapter"
            require(isinstance(layer, nn.Linear), "targets", f"{name}, {layer}", expected)
            wrapped = LoRALinear(layer, rank, alpha, **options, **linear)
        replace(model, name, wrapped)
    return model


def layers(model: nn.Module) -> dict[str, LoRA]:
    """The adapters of a model by the names of the layers they adapt."""
    return {name: part for name, part in model.named_modules() if isinstance(part, LoRA)}


def merge(model: nn.Module) -> None:
    """Let every adapter use W + sBA. Training unmerges."""
    for layer in layers(model).values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Back to W and sBA apart; W is what it was, to the last bit."""
    for layer in layers(model).values():
        layer.unmerge()


def unload(model: nn.Module) -> nn.Module:
    """The model without adapters, their sums written into its weights; it stays frozen."""
    for name, layer in layers(model).items():
        replace(model, name, layer.plain())
    return model


def trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The named parameters that an optimizer should get."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of the one of this name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


# What the paper counts


def adapter_size(width: int, layers: int, ranks: Sequence[int]) -> int:
    """Trained numbers for square projections: 2 · width · rank for each, in every layer.

    Args:
        width: C of the model.
        layers: number of blocks.
        ranks: the rank of each adapted projection of a block.
    """
    return sum(2 * width * rank for rank in ranks) * layers


class Published(NamedTuple):
    """One line of a publication: what it prints and what the formula gives.

    ``agrees`` is whether the formula, rounded to the printed digits, is the printed number.
    """

    model: str
    setting: str
    printed: float
    place: str
    width: int
    layers: int
    ranks: tuple[int, ...]

    @property
    def formula(self) -> int:
        return adapter_size(self.width, self.layers, self.ranks)

    @property
    def agrees(self) -> bool:
        digits = len(str(self.printed).partition(".")[2])
        return round(self.formula / 1e6, digits) == self.printed


GPT3, DEBERTA = (12288, 96), (1536, 48)
PUBLISHED = (
    Published("GPT-3", "q, v at rank 1", 4.7, "table 4", *GPT3, (1, 1)),
    Published("GPT-3", "v at rank 2", 4.7, "appendix D.4", *GPT3, (2,)),
    Published("GPT-3", "q, v at rank 8", 37.7, "table 4", *GPT3, (8, 8)),
    Published("GPT-3", "q, k, v, o at rank 2", 37.7, "appendix D.4", *GPT3, (2, 2, 2, 2)),
    Published("GPT-3", "one at rank 8", 18, "table 5", *GPT3, (8,)),
    Published("GPT-3", "two at rank 4", 18, "table 5", *GPT3, (4, 4)),
    Published("GPT-3", "four at rank 2", 18, "table 5", *GPT3, (2, 2, 2, 2)),
    Published("RoBERTa-base", "q, v at rank 8", 0.3, "table 2", 768, 12, (8, 8)),
    Published("RoBERTa-base", "q, v at rank 8", 0.8, "README", 768, 12, (8, 8)),
    Published("RoBERTa-large", "q, v at rank 8", 0.8, "table 2", 1024, 24, (8, 8)),
    Published("GPT-2 M", "q, v at rank 4", 0.35, "table 3", 1024, 24, (4, 4)),
    Published("GPT-2 L", "q, v at rank 4", 0.77, "table 3", 1280, 36, (4, 4)),
    Published("DeBERTa-XXL", "q, v at rank 8", 4.7, "tables 2, 10", *DEBERTA, (8, 8)),
    Published("DeBERTa-XXL", "q, v at rank 16", 4.7, "its scripts", *DEBERTA, (16, 16)),
)


def published_counts() -> list[Published]:
    """The counts of the paper and its repository, each with what the formula gives."""
    return list(PUBLISHED)
