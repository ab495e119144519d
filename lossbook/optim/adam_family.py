"""Adam's relatives: AMSGrad, AdaMax, NAdam and RAdam, with what the libraries made of each.

Each changes one thing in Adam: what divides (the largest v, or the largest gradient), what is
divided (an average that looks ahead), or how far the first steps trust the division.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.adam import DECAYS
from lossbook.optim.adam import EPS_PLACEMENTS as ADAM_EPS_PLACEMENTS
from lossbook.optim.adaptive import _decayed
from lossbook.optim.base import Number, Optimizer, _Plan

MAXIMA = ("raw", "corrected")
CORRECTIONS = ("separate", "present", "next")
UNRECTIFIED = ("momentum", "rest")


def _means(g: Tensor, m: Tensor, v: Tensor, beta1: Number, beta2: Number) -> tuple[Tensor, Tensor]:
    return beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g


def _over_root(m: Tensor, v: Tensor, c1: Number, c2: Number, eps: Number, placement: str) -> Tensor:
    """Adam's ratio, m and v divided by c1 and c2, with eps in one of its three places."""
    if placement == "outside":
        return m / c1 / ((v / c2).sqrt() + eps)
    if placement == "hat":
        return c2**0.5 / c1 * m / (v.sqrt() + eps)
    return m / c1 / (v / c2 + eps).sqrt()


def amsgrad_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    v_max: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-3,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    maximum: str = "raw",
    eps_placement: str = "outside",
    bias_correction: bool = True,
    decay: str = "l2",
) -> tuple[
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
    Float[Tensor, "*shape"],
]:
    """Step ``t`` (the first is 1) of AMSGrad: Reddi, Kale and Kumar 2018, algorithm 2.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        m: running mean of the gradients, 0 before the first step.
        v: running mean of their squares, 0 before the first step.
        v_max: the largest v so far.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`AMSGrad`.

    Returns:
        The new theta, m, v and v_max.
    """
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    m, v = _means(g, m, v, beta1, beta2)
    c1, c2 = (1 - beta1**t, 1 - beta2**t) if bias_correction else (1.0, 1.0)
    if maximum == "corrected":
        v_max = torch.maximum(v_max, v / c2)
        return theta - lr * _over_root(m, v_max, c1, 1.0, eps, eps_placement), m, v, v_max
    v_max = torch.maximum(v_max, v)
    return theta - lr * _over_root(m, v_max, c1, c2, eps, eps_placement), m, v, v_max


def adamax_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    u: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 2e-3,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    eps_placement: str = "inside",
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of AdaMax: arXiv 1412.6980, algorithm 2.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        m: running mean of the gradients, 0 before the first step.
        u: largest gradient so far, each faded by beta2 for every step since.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`AdaMax`.

    Returns:
        The new theta, m and u.
    """
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    m = beta1 * m + (1 - beta1) * g
    before, after = (eps, 0.0) if eps_placement == "inside" else (0.0, eps)
    u = torch.maximum(beta2 * u, g.abs() + before)
    return theta - lr / (1 - beta1**t) * m / (u + after), m, u


def scheduled_momentum(
    t: Number | Float[np.ndarray, " steps"], beta1: Number, momentum_decay: Number
) -> Number | Float[np.ndarray, " steps"]:
    """Dozat's mu_t = beta1 (1 - 0.96^(t psi) / 2), psi being ``momentum_decay``."""
    return beta1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))


@lru_cache(maxsize=256)
def momentum_product(t: int, beta1: float, momentum_decay: float) -> float:
    """mu_1 mu_2 ... mu_t, and 0 where 1 minus it is 1 in float64.

    Every mu is below beta1, so that the product never needs more than 42 / log(1 / beta1) factors.
    """
    enough = 1 if beta1 == 0 else math.ceil(42 / -math.log(beta1))
    if t > enough:
        return 0.0
    return float(scheduled_momentum(np.arange(1.0, t + 1), beta1, momentum_decay).prod())


def nadam_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 2e-3,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    momentum_decay: Number = 4e-3,
    product: Number | None = None,
    multiplier: Number = 1.0,
    correction: str = "separate",
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of NAdam: Dozat 2016, as ``torch.optim.NAdam`` has it.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        m: running mean of the gradients, 0 before the first step.
        v: running mean of their squares, 0 before the first step.
        t: number of this step; a tensor of rank 0 will do where ``product`` is given.
        product: mu_1 mu_2 ... mu_t; None computes it, see :func:`momentum_product`.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`NAdam`.

    Returns:
        The new theta, m and v.
    """
    if product is None:
        product = momentum_product(int(t), float(beta1), float(momentum_decay))
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    m, v = _means(g, m, v, beta1, beta2)
    mu = scheduled_momentum(t, beta1, momentum_decay)
    mu_next = scheduled_momentum(t + 1, beta1, momentum_decay)
    c, c_next = 1 - product, 1 - product * mu_next
    c, c_next = {"separate": (c, c_next), "present": (c, c), "next": (c_next, c_next)}[correction]
    ahead = (1 - mu) / c * g + mu_next / c_next * m
    return theta - lr * ahead / ((v / (1 - beta2**t)).sqrt() + eps), m, v


def average_length(t: Number, beta2: Number) -> Number:
    """RAdam's rho_t: a plain average of so many gradients is as old as the running one.

    arXiv 1908.03265, section 4.1. It is 1 at the first step and always below t + 1.
    """
    faded = beta2**t
    return 2 / (1 - beta2) - 1 - 2 * t * faded / (1 - faded)


def rectifier(t: Number, beta2: Number) -> Number:
    """RAdam's r_t, for steps at which rho_t > 4: arXiv 1908.03265, section 4.2."""
    rho, rho_max = average_length(t, beta2), 2 / (1 - beta2) - 1
    return ((rho - 4) * (rho - 2) * rho_max / ((rho_max - 4) * (rho_max - 2) * rho)) ** 0.5


def radam_step(
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
    threshold: Number = 5.0,
    rectified: bool | None = None,
    unrectified: str = "momentum",
    eps_placement: str = "hat",
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of RAdam: arXiv 1908.03265, algorithm 2.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        m: running mean of the gradients, 0 before the first step.
        v: running mean of their squares, 0 before the first step.
        t: number of this step; a tensor of rank 0 will do where ``rectified`` is given.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.
        rectified: whether rho_t is above the threshold; None looks.

    The other options are those of :class:`RAdam`.

    Returns:
        The new theta, m and v.
    """
    if rectified is None:
        rectified = bool(average_length(t, beta2) > threshold)
    start = theta
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    m, v = _means(g, m, v, beta1, beta2)
    c1, c2 = 1 - beta1**t, 1 - beta2**t
    if rectified:
        ratio = rectifier(t, beta2) * _over_root(m, v, c1, c2, eps, eps_placement)
        return theta - lr * ratio, m, v
    return (theta - lr * m / c1 if unrectified == "momentum" else start), m, v


class _Relative(Optimizer):
    """What the four have in common: their groups' options, and the checks of these."""

    numbers: ClassVar[tuple[str, ...]] = ()  # what the equation takes beside Adam's own
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"decay": DECAYS}

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        betas, eps = group["betas"], group["eps"]
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        require(pair and all(0 <= b < 1 for b in betas), "betas", betas, "two numbers in [0, 1)")
        require(0 <= eps < math.inf, "eps", eps, "a number >= 0")
        for name, known in self.choices.items():
            require(group[name] in known, name, group[name], f"one of {known}")

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        names = ("lr", "eps", "weight_decay", *self.numbers, *self.choices)
        return {
            "beta1": beta1,
            "beta2": beta2,
            "multiplier": float(group["lr"]) / float(group["initial_lr"] or 1.0),
            **{name: group[name] for name in names},
        }


class AMSGrad(_Relative):
    r"""AMSGrad (Reddi, Kale and Kumar 2018): Adam divided by the largest v so far.

    .. math::
        v^{\max}_t = \max(v^{\max}_{t-1}, v_t), \quad
        \theta_t = \theta_{t-1} - \alpha\,
        \frac{m_t / (1-\beta_1^t)}{\sqrt{v^{\max}_t / (1-\beta_2^t)} + \epsilon}

    with the running means m and v of :class:`~lossbook.optim.adam.Adam`.

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: step size alpha.
        betas: decay rates of the two running means, each in [0, 1).
        eps: epsilon; the paper has none, and a parameter without any gradient would become NaN.
        weight_decay: lambda.
        maximum: ``"raw"``: the maximum is taken over v and corrected afterwards (torch, Keras);
            ``"corrected"``: over v / (1 - beta2^t) (optax).
        eps_placement: as in Adam: ``"outside"`` (torch, optax), ``"hat"`` (Keras; not with
            ``maximum="corrected"``), ``"inside"`` (``eps_root`` of optax).
        bias_correction: False leaves out both corrections, as the paper does.
        decay: ``"l2"``, ``"decoupled"`` (torch's AdamW, Keras) or ``"paper"``, as in Adam.
        options: ``exclude``, ``clip``, ``clip_form``, ``check_finite``, ``compiled``, see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range, or options that exclude each other; the message
            names them.
    """

    memory: ClassVar[tuple[str, ...]] = ("m", "v", "v_max")
    equation = staticmethod(amsgrad_step)
    numbers = ("bias_correction",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "maximum": MAXIMA,
        "eps_placement": ADAM_EPS_PLACEMENTS,
        "decay": DECAYS,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"eps": 1e-8, "maximum": "raw"},
        "optax": {"eps": 1e-8, "maximum": "corrected"},
        "keras": {"eps": 1e-7, "eps_placement": "hat", "decay": "decoupled"},
        "paper": {"bias_correction": False},
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        maximum: str = "raw",
        eps_placement: str = "outside",
        bias_correction: bool = True,
        decay: str = "l2",
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximum": maximum,
            "eps_placement": eps_placement,
            "bias_correction": bias_correction,
            "decay": decay,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        correction, placement = group["bias_correction"], group["eps_placement"]
        require(isinstance(correction, bool), "bias_correction", correction, "True or False")
        fits = placement != "hat" or group["maximum"] == "raw"
        expected = "'outside' or 'inside' where the maximum is corrected: 'hat' has no corrected v"
        require(fits, "eps_placement", placement, expected)


class AdaMax(_Relative):
    r"""AdaMax (Kingma and Ba 2015, section 7.1): Adam with the largest gradient below the line.

    .. math::
        u_t = \max(\beta_2 u_{t-1}, |g_t| + \epsilon), \quad
        \theta_t = \theta_{t-1} - \frac{\alpha}{1-\beta_1^t}\, \frac{m_t}{u_t}

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: step size alpha.
        betas: decay rates of the running mean and of the running maximum, each in [0, 1).
        eps: epsilon; the paper has none.
        weight_decay: lambda.
        eps_placement: ``"inside"``: in the maximum, beside the gradient (torch, optax);
            ``"outside"``: u + eps in the denominator (Keras).
        decay: ``"l2"``, ``"decoupled"`` (Keras) or ``"paper"``, as in Adam.
        options: ``exclude``, ``clip``, ``clip_form``, ``check_finite``, ``compiled``, see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("m", "u")
    equation = staticmethod(adamax_step)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "eps_placement": ("inside", "outside"),
        "decay": DECAYS,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 2e-3, "eps": 1e-8},
        "optax": {"eps": 1e-8},
        "keras": {"lr": 1e-3, "eps": 1e-7, "eps_placement": "outside", "decay": "decoupled"},
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        eps_placement: str = "inside",
        decay: str = "l2",
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "eps_placement": eps_placement,
            "decay": decay,
        }
        super().__init__(params, defaults, **options)


class NAdam(_Relative):
    r"""NAdam (Dozat 2016): Nesterov's look ahead inside Adam. One name, several optimizers.

    .. math::
        \mu_t = \beta_1 \left(1 - \tfrac12\, 0.96^{t\psi}\right), \quad
        \theta_t = \theta_{t-1} - \frac{\alpha}{\sqrt{\hat v_t} + \epsilon} \left(
        \frac{(1-\mu_t)\, g_t}{1 - \prod_{i \le t} \mu_i} +
        \frac{\mu_{t+1}\, m_t}{1 - \prod_{i \le t+1} \mu_i} \right)

    with the running means m and v of :class:`~lossbook.optim.adam.Adam`. The product is a function
    of the step count and of the options as they are at this step; torch multiplies as it goes,
    which is the same for as long as the first beta and ``momentum_decay`` do not change.

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: step size alpha.
        betas: decay rates of the two running means, each in [0, 1).
        eps: epsilon, outside the root.
        weight_decay: lambda.
        momentum_decay: psi: 0.004 (torch), 1 (Keras), or infinity, which makes every mu equal to
            the first beta (optax).
        correction: ``"separate"``: as above; ``"present"``: both terms over 1 - prod_{i <= t} mu_i
            (with an infinite psi this is timm's NAdamW); ``"next"``: both over
            1 - prod_{i <= t+1} mu_i, which with an infinite psi makes the weights sum to one.
        decay: ``"l2"``, ``"decoupled"`` (Keras, timm) or ``"paper"``, as in Adam.
        options: ``exclude``, ``clip``, ``clip_form``, ``check_finite``, ``compiled``, see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("m", "v")
    equation = staticmethod(nadam_step)
    numbers = ("momentum_decay",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"correction": CORRECTIONS, "decay": DECAYS}
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 2e-3, "eps": 1e-8, "momentum_decay": 4e-3},
        "keras": {"lr": 1e-3, "eps": 1e-7, "momentum_decay": 1.0, "decay": "decoupled"},
        "optax": {"eps": 1e-8, "momentum_decay": math.inf},
        "timm": {
            "lr": 1e-3,
            "eps": 1e-8,
            "weight_decay": 1e-2,
            "momentum_decay": math.inf,
            "correction": "present",
            "decay": "decoupled",
        },
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 2e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        *,
        correction: str = "separate",
        decay: str = "l2",
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum_decay": momentum_decay,
            "correction": correction,
            "decay": decay,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        psi = group["momentum_decay"]
        require(psi >= 0, "momentum_decay", psi, "a number >= 0, or infinity")

    def _plan(self, index: int, decayed: bool, t: int, scale: float) -> _Plan:
        plan = super()._plan(index, decayed, t, scale)
        numbers = plan.numbers
        numbers["product"] = momentum_product(t, numbers["beta1"], numbers["momentum_decay"])
        return plan


class RAdam(_Relative):
    r"""RAdam (Liu et al. 2020, arXiv 1908.03265): Adam that trusts v as far as it is known.

    .. math::
        \rho_\infty = \frac{2}{1-\beta_2} - 1, \quad
        \rho_t = \rho_\infty - \frac{2t\beta_2^t}{1-\beta_2^t}, \quad
        r_t^2 = \frac{(\rho_t-4)(\rho_t-2)\,\rho_\infty}
        {(\rho_\infty-4)(\rho_\infty-2)\,\rho_t}

    While :math:`\rho_t` is above the threshold, Adam's step is multiplied by :math:`r_t`; before
    that the step is :math:`\alpha\, m_t/(1-\beta_1^t)`, in the gradients' own units.

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: step size alpha.
        betas: decay rates of the two running means, each in [0, 1).
        eps: epsilon.
        weight_decay: lambda.
        threshold: above which rho_t the division begins: 5 (torch, optax, the authors' code) or 4
            (the paper), which is one step earlier.
        unrectified: what happens before: ``"momentum"``, or ``"rest"``: the averages go on, the
            parameters and their decay wait (``degenerated_to_sgd=False`` in the authors' code).
        eps_placement: as in Adam: ``"hat"`` (torch, the authors' code), ``"outside"`` (optax),
            ``"inside"``.
        decay: ``"l2"`` (torch), ``"decoupled"`` (the authors' code, timm) or ``"paper"``, as in
            Adam.
        options: ``exclude``, ``clip``, ``clip_form``, ``check_finite``, ``compiled``, see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range, or a second beta with which rho_t never reaches
            the threshold; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("m", "v")
    equation = staticmethod(radam_step)
    numbers = ("threshold",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "unrectified": UNRECTIFIED,
        "eps_placement": ADAM_EPS_PLACEMENTS,
        "decay": DECAYS,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"eps": 1e-8, "eps_placement": "hat"},
        "optax": {"eps": 1e-8, "eps_placement": "outside"},
        "authors": {"eps": 1e-8, "unrectified": "rest", "decay": "decoupled"},
        "paper": {"threshold": 4.0},
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        threshold: float = 5.0,
        unrectified: str = "momentum",
        eps_placement: str = "hat",
        decay: str = "l2",
        **options: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "threshold": threshold,
            "unrectified": unrectified,
            "eps_placement": eps_placement,
            "decay": decay,
        }
        super().__init__(params, defaults, **options)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        threshold, beta2 = group["threshold"], group["betas"][1]
        expected = "a finite number >= 4: below, the rectifier is the root of a negative number"
        require(4 <= threshold < math.inf, "threshold", threshold, expected)
        least = (threshold - 1) / (threshold + 1)  # rho_infinity = (1 + beta2) / (1 - beta2)
        expected = f"a second beta above {least:.4g}, so that rho passes the threshold"
        require(beta2 > least, "betas", group["betas"], expected)

    def _plan(self, index: int, decayed: bool, t: int, scale: float) -> _Plan:
        plan = super()._plan(index, decayed, t, scale)
        numbers = plan.numbers
        length = average_length(float(t), numbers["beta2"])
        plan.options["rectified"] = length > numbers["threshold"]
        return plan
