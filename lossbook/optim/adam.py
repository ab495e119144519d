"""Adam (Kingma and Ba 2015, arXiv 1412.6980) and the forms in which libraries ship it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.base import Number, Optimizer
from lossbook.optim.groups import Rule

EPS_PLACEMENTS = ("outside", "hat", "inside")
DECAYS = ("l2", "decoupled", "paper")


def adam_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-3,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    eps_placement: str = "outside",
    bias_correction: bool = True,
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of Adam: algorithm 1 of the paper, line by line.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        m: running mean of the gradients, 0 before the first step.
        v: running mean of their squares, 0 before the first step.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`Adam`.

    Returns:
        The new theta, m and v.
    """
    if decay == "l2":
        g = g + weight_decay * theta
    elif decay == "decoupled":
        theta = theta - lr * weight_decay * theta
    else:
        theta = theta - multiplier * weight_decay * theta
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    c1, c2 = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1.0, 1.0)
    if eps_placement == "outside":
        step = lr * (m / c1) / ((v / c2).sqrt() + eps)
    elif eps_placement == "hat":
        step = lr * (c2**0.5 / c1) * m / (v.sqrt() + eps)
    else:
        step = lr * (m / c1) / (v / c2 + eps).sqrt()
    return theta - step, m, v


class Adam(Optimizer):
    r"""Adam, with every disagreement between the libraries as a named option.

    .. math::
        m_t = \beta_1 m_{t-1} + (1-\beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1-\beta_2) g_t^2, \quad
        \theta_t = \theta_{t-1} - \alpha\,
        \frac{m_t / (1-\beta_1^t)}{\sqrt{v_t / (1-\beta_2^t)} + \epsilon}

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: step size alpha.
        betas: decay rates of the two running means, each in [0, 1).
        eps: the paper's epsilon (or epsilon hat, see ``eps_placement``).
        weight_decay: lambda.
        eps_placement: ``"outside"``: sqrt(v hat) + eps, algorithm 1 (torch, optax);
            ``"hat"``: sqrt(v) + eps before the correction, the efficient form at the end of the
            paper's section 2 (TensorFlow, Keras, fairseq);
            ``"inside"``: sqrt(v hat + eps) (``eps_root`` of optax).
        bias_correction: False leaves out both corrections, as BERT does.
        decay: ``"l2"`` adds lambda theta to the gradient, and the moments see it;
            ``"decoupled"`` takes lr lambda theta off theta (torch's AdamW);
            ``"paper"`` takes eta lambda theta off, where eta is the schedule's multiplier, that is
            lr divided by the group's ``initial_lr`` (arXiv 1711.05101, algorithm 2).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("m", "v")
    equation = staticmethod(adam_step)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"eps": 1e-8, "eps_placement": "outside", "decay": "l2"},
        "optax": {"eps": 1e-8, "eps_placement": "outside"},
        "keras": {"eps": 1e-7, "eps_placement": "hat", "decay": "decoupled"},
        "bert": {
            "eps": 1e-6,
            "weight_decay": 0.01,
            "bias_correction": False,
            "decay": "decoupled",
            "exclude": "bert",
            "clip": 1.0,
        },
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_placement: str = "outside",
        bias_correction: bool = True,
        decay: str = "l2",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "eps_placement": eps_placement,
            "bias_correction": bias_correction,
            "decay": decay,
        }
        super().__init__(
            params,
            defaults,
            exclude=exclude,
            clip=clip,
            clip_form=clip_form,
            check_finite=check_finite,
            compiled=compiled,
        )

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        betas, eps = group["betas"], group["eps"]
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        require(pair and all(0 <= b < 1 for b in betas), "betas", betas, "two numbers in [0, 1)")
        require(eps >= 0, "eps", eps, "a number >= 0")
        placement, decay, correction = (
            group["eps_placement"],
            group["decay"],
            group["bias_correction"],
        )
        require(placement in EPS_PLACEMENTS, "eps_placement", placement, f"one of {EPS_PLACEMENTS}")
        require(decay in DECAYS, "decay", decay, f"one of {DECAYS}")
        require(isinstance(correction, bool), "bias_correction", correction, "True or False")

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            "beta1": beta1,
            "beta2": beta2,
            "multiplier": float(group["lr"]) / float(group["initial_lr"] or 1.0),
            **{name: group[name] for name in ("lr", "eps", "weight_decay")},
            **{name: group[name] for name in ("eps_placement", "bias_correction", "decay")},
        }
