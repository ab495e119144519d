r"""Cross-entropies: binary, categorical, with soft targets, smoothed, and the z-loss.

Everything starts from logits. A logit vector :math:`z \in \mathbb R^V` stands for the
distribution :math:`q = \operatorname{softmax}(z)`, and :math:`\log q_k = z_k - \log Z` with
:math:`\log Z = \log \sum_j e^{z_j}`. Losses are in nats. Logits of 16 bits are promoted to
float32 before anything is computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lossbook._require import require
from lossbook.losses.reduction import reduce

SMOOTHINGS = ("uniform", "others")


def _promote(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _require_labels(logits: Tensor, labels: Tensor, ignore_index: int) -> None:
    expected = tuple(logits.shape[:-1])
    hint = f"the shape {expected} of logits without its last axis, the classes"
    if logits.ndim > 2 and tuple(labels.shape) == (logits.shape[0], *logits.shape[2:]):
        hint += " (torch puts the classes second: move them with logits.movedim(1, -1))"
    require(tuple(labels.shape) == expected, "labels", tuple(labels.shape), hint)
    if labels.device.type == "cpu" and labels.numel():
        wrong = labels[(labels != ignore_index) & ((labels < 0) | (labels >= logits.shape[-1]))]
        require(wrong.numel() == 0, "labels", wrong[:3].tolist(),
                f"classes from 0 to {logits.shape[-1] - 1}, or {ignore_index}")  # fmt: skip


def cross_entropy(
    logits: Float[Tensor, "*batch vocab"],
    labels: Int[Tensor, "*batch"],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    smoothing: str = "uniform",
    z_loss: float = 0.0,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Cross-entropy of labels under the softmax of logits.

    .. math::

        \ell = \log Z - \sum_k p_k z_k + c \, (\log Z)^2

    where :math:`p` puts 1 on the label, or with ``label_smoothing`` :math:`\varepsilon`

    * ``smoothing="uniform"`` (torch, Mesh TensorFlow; Szegedy et al. 2016, eq. 7):
      :math:`1 - \varepsilon + \varepsilon/V` on the label and :math:`\varepsilon/V` elsewhere,
    * ``smoothing="others"`` (fairseq): :math:`1 - \varepsilon` on the label and
      :math:`\varepsilon/(V - 1)` elsewhere,

    and :math:`c` is the coefficient ``z_loss`` (T5's training code and PaLM use 1e-4).

    Args:
        logits: ``[..., V]``, classes last.
        labels: ``[...]``, integers below ``V``, or ``ignore_index`` where nothing is counted.
        ignore_index: The label that marks elements without a target.
        label_smoothing: :math:`\varepsilon \in [0, 1]`.
        smoothing: Which of the two conventions.
        z_loss: Coefficient of the squared log-normaliser.
        reduction: ``"mean"`` over the elements with a target, ``"sum"``, or ``"none"``.
        denominator: Replaces the number of targets below the mean.

    Returns:
        Nats. The mean over no target at all is 0 with a zero gradient (torch: NaN).

    Raises:
        ValueError: Shapes do not fit, a label lies outside the classes (looked at on the CPU
            only: on other devices the look would stall the queue), or an option is unknown.
    """
    require(smoothing in SMOOTHINGS, "smoothing", smoothing, f"one of {SMOOTHINGS}")
    require(0 <= label_smoothing <= 1, "label_smoothing", label_smoothing, "a number in [0, 1]")
    _require_labels(logits, labels, ignore_index)
    logits = _promote(logits)
    mask = labels != ignore_index
    log_z = logits.logsumexp(-1)
    hit = logits.gather(-1, labels.masked_fill(~mask, 0).unsqueeze(-1)).squeeze(-1)  # z_y
    losses = log_z - hit
    if label_smoothing:
        losses = losses + label_smoothing * (hit - _other_mean(logits, hit, smoothing))
    if z_loss:
        losses = losses + z_loss * log_z.square()
    return reduce(losses, mask, reduction, denominator)


def _other_mean(logits: Tensor, hit: Tensor, smoothing: str) -> Tensor:
    if smoothing == "uniform":
        return logits.mean(-1)
    return (logits.sum(-1) - hit) / (logits.shape[-1] - 1)


def soft_cross_entropy(
    logits: Float[Tensor, "*batch vocab"],
    probs: Float[Tensor, "*batch vocab"],
    *,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Cross-entropy :math:`-\sum_k p_k \log q_k` against a whole target distribution.

    A class with :math:`p_k = 0` adds nothing, even where :math:`q_k = 0`.

    Args:
        logits: ``[..., V]``.
        probs: ``[..., V]``, non-negative, each row summing to 1 (to 1e-4).
        mask: ``[...]``, which rows count.
        reduction: See :func:`lossbook.losses.reduction.reduce`.
        denominator: Likewise.

    Raises:
        ValueError: Shapes differ or a row of ``probs`` is no distribution.
    """
    require(logits.shape == probs.shape, "probs", tuple(probs.shape),
            f"the shape of logits, {tuple(logits.shape)}")  # fmt: skip
    if probs.device.type == "cpu" and probs.numel():
        require(bool((probs >= 0).all()), "probs", probs.min().item(), "no negative probability")
        worst = (probs.double().sum(-1) - 1).abs().max().item()
        require(worst <= 1e-4, "probs", f"a row off by {worst:.3g}", "rows that sum to 1")
    log_q = _promote(logits).log_softmax(-1)
    products = torch.where(probs > 0, probs * log_q, torch.zeros_like(log_q))
    return reduce(-products.sum(-1), mask, reduction, denominator)


def binary_cross_entropy(
    logits: Float[Tensor, "*shape"],
    targets: Float[Tensor, "*shape"],
    *,
    pos_weight: float | None = None,
    mask: Bool[Tensor, "*shape"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""Binary cross-entropy from logits: :math:`w\,y \log(1 + e^{-z}) + (1 - y) \log(1 + e^{z})`.

    Args:
        logits: Any shape.
        targets: Same shape, in [0, 1]: a class, or the probability of one.
        pos_weight: :math:`w`, the weight of the positive class (1 by default).
        mask: Which elements count.
        reduction: See :func:`lossbook.losses.reduction.reduce`.
        denominator: Likewise.

    Raises:
        ValueError: Shapes differ, or a target lies outside [0, 1].
    """
    require(logits.shape == targets.shape, "targets", tuple(targets.shape),
            f"the shape of logits, {tuple(logits.shape)}")  # fmt: skip
    if targets.device.type == "cpu" and targets.numel():
        low, high = targets.aminmax()
        require(low >= 0 and high <= 1, "targets", (low.item(), high.item()), "values in [0, 1]")
    logits = _promote(logits)
    weight = 1.0 if pos_weight is None else pos_weight
    log_q, log_not_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # softplus drops e^-z at z > 20
    losses = -weight * targets * log_q - (1 - targets) * log_not_q
    return reduce(losses, mask, reduction, denominator)


def z_loss(
    logits: Float[Tensor, "*batch vocab"],
    *,
    coefficient: float = 1e-4,
    mask: Bool[Tensor, "*batch"] | None = None,
    reduction: str = "mean",
    denominator: float | Tensor | None = None,
) -> Float[Tensor, "..."]:
    r"""The z-loss :math:`c\,(\log Z)^2`, which pulls the log-normaliser to 0.

    Source: Mesh TensorFlow's language-model loss (T5), coefficient 1e-4; the same in PaLM.

    Args:
        logits: ``[..., V]``.
        coefficient: :math:`c`.
        mask: ``[...]``, which rows count.
        reduction: See :func:`lossbook.losses.reduction.reduce`.
        denominator: Likewise.
    """
    losses = coefficient * _promote(logits).logsumexp(-1).square()
    return reduce(losses, mask, reduction, denominator)


class CrossEntropyLoss(nn.Module):
    """Module form of :func:`cross_entropy`: the options of torch, classes on the last axis."""

    def __init__(
        self,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        smoothing: str = "uniform",
        z_loss: float = 0.0,
    ) -> None:
        super().__init__()
        self.options = {
            "ignore_index": ignore_index,
            "reduction": reduction,
            "label_smoothing": label_smoothing,
            "smoothing": smoothing,
            "z_loss": z_loss,
        }

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(input, target, **self.options)


class SoftCrossEntropyLoss(nn.Module):
    """Module form of :func:`soft_cross_entropy`."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return soft_cross_entropy(input, target, reduction=self.reduction)


class BCEWithLogitsLoss(nn.Module):
    """Module form of :func:`binary_cross_entropy`, named as in torch."""

    def __init__(self, reduction: str = "mean", pos_weight: float | None = None) -> None:
        super().__init__()
        self.reduction = reduction
        self.pos_weight = pos_weight

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return binary_cross_entropy(
            input, target, pos_weight=self.pos_weight, reduction=self.reduction
        )
