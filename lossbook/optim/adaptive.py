"""Methods that divide each gradient by its own history: AdaGrad, RMSProp, AdaDelta.

The libraries disagree about where epsilon stands, what the accumulator holds before the first
gradient, and whether the learning rate is inside the momentum buffer. Each is an option here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.base import Number, Optimizer
from lossbook.optim.compiled import arithmetic_dtype
from lossbook.optim.groups import Rule

EPS_PLACEMENTS = ("outside", "inside")
LR_PLACEMENTS = ("outside", "inside")
DECAYS = ("l2", "decoupled", "paper")


def _decayed(
    theta: Tensor, g: Tensor, lr: Number, weight_decay: Number, multiplier: Number, decay: str
) -> tuple[Tensor, Tensor]:
    """Theta and its gradient after the decay, which changes one of them."""
    if decay == "l2":
        return theta, g + weight_decay * theta
    return theta - (lr if decay == "decoupled" else multiplier) * weight_decay * theta, g


def _root(square: Tensor, eps: Number, placement: str) -> Tensor:
    return square.sqrt() + eps if placement == "outside" else (square + eps).sqrt()


def adagrad_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-2,
    lr_decay: Number = 0.0,
    eps: Number = 1e-10,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    eps_placement: str = "outside",
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of AdaGrad: Duchi, Hazan and Singer 2011, figure 1, diagonal.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        v: sum of the squared gradients so far.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`Adagrad`.

    Returns:
        The new theta and v.
    """
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    v = v + g * g
    return theta - lr / (1 + (t - 1) * lr_decay) * g / _root(v, eps, eps_placement), v


def rmsprop_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    memory: dict[str, Float[Tensor, "*shape"]],
    t: Number,
    *,
    lr: Number = 1e-2,
    alpha: Number = 0.99,
    eps: Number = 1e-8,
    weight_decay: Number = 0.0,
    momentum: Number = 0.0,
    multiplier: Number = 1.0,
    centered: bool = False,
    bias_correction: bool = False,
    eps_placement: str = "outside",
    lr_placement: str = "outside",
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], dict[str, Float[Tensor, "*shape"]]]:
    """Step ``t`` (the first is 1) of RMSProp: Tieleman and Hinton 2012; centred: Graves 2013.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        memory: ``v``, running mean of the squared gradients; ``m``, of the gradients, where
            ``centered`` needs it; ``b``, the momentum buffer, where there is momentum.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`RMSprop`.

    Returns:
        The new theta and the new memory.
    """
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    new = {"v": alpha * memory["v"] + (1 - alpha) * g * g}
    if "m" in memory:
        new["m"] = alpha * memory["m"] + (1 - alpha) * g
    correction = 1 - alpha**t if bias_correction else 1.0
    square = new["v"] / correction
    if centered:  # no variance is negative, except by rounding
        square = (square - (new["m"] / correction) ** 2).clamp(min=0.0)
    step = g / _root(square, eps, eps_placement)
    if lr_placement == "inside":
        step = lr * step
    if "b" in memory:
        step = new["b"] = momentum * memory["b"] + step
    return theta - (lr * step if lr_placement == "outside" else step), new


def adadelta_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    u: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1.0,
    rho: Number = 0.9,
    eps: Number = 1e-6,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """A step of AdaDelta: arXiv 1212.5701, algorithm 1.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        v: running mean of the squared gradients.
        u: running mean of the squared steps, before ``lr`` multiplies them.
        t: number of this step; it has no influence.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`Adadelta`.

    Returns:
        The new theta, v and u.
    """
    theta, g = _decayed(theta, g, lr, weight_decay, multiplier, decay)
    v = rho * v + (1 - rho) * g * g
    step = (u + eps).sqrt() / (v + eps).sqrt() * g
    return theta - lr * step, v, rho * u + (1 - rho) * step * step


class _Adaptive(Optimizer):
    """What the three have in common: their checks, and memories that may not begin at 0."""

    numbers: ClassVar[tuple[str, ...]] = ()  # what the equation takes beside lr and decay
    choices: ClassVar[dict[str, tuple[str, ...]]] = {"decay": DECAYS}

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
        eps, start = group["eps"], group.get("initial_accumulator_value", 0.0)
        require(0 <= eps < math.inf, "eps", eps, "a number >= 0")
        finite = 0 <= start < math.inf
        require(finite, "initial_accumulator_value", start, "a finite number >= 0")
        for name, known in self.choices.items():
            require(group[name] in known, name, group[name], f"one of {known}")

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "multiplier": float(group["lr"]) / float(group["initial_lr"] or 1.0),
            **{name: group[name] for name in ("lr", "eps", "weight_decay", *self.numbers)},
            **{name: group[name] for name in self.choices},
        }

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        fresh = "v" not in state
        super()._begin(p, state)
        if fresh:
            group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
            state["v"].fill_(group.get("initial_accumulator_value", 0.0))


class Adagrad(_Adaptive):
    r"""AdaGrad (Duchi, Hazan and Singer 2011), with the libraries' disagreements as options.

    .. math::
        v_t = v_{t-1} + g_t^2, \quad
        \theta_t = \theta_{t-1} - \frac{\eta}{1 + (t-1)\,\delta}\,
        \frac{g_t}{\sqrt{v_t} + \epsilon}

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: learning rate eta.
        lr_decay: delta, which torch adds to the method; 0 in the paper and elsewhere.
        weight_decay: lambda.
        initial_accumulator_value: v before the first gradient: 0 (the paper, torch) or 0.1
            (TensorFlow, Keras, optax).
        eps: epsilon.
        eps_placement: ``"outside"``: sqrt(v) + eps (torch); ``"inside"``: sqrt(v + eps)
            (Keras, optax).
        decay: ``"l2"`` adds lambda theta to the gradient, and the sum sees it;
            ``"decoupled"`` takes lr lambda theta off theta (Keras);
            ``"paper"`` takes eta lambda theta off, where eta is the schedule's multiplier, that is
            lr divided by the group's ``initial_lr`` (arXiv 1711.05101).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("v",)
    equation = staticmethod(adagrad_step)
    numbers = ("lr_decay",)
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "eps_placement": EPS_PLACEMENTS,
        "decay": DECAYS,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 1e-2, "eps": 1e-10},
        "optax": {"eps": 1e-7, "eps_placement": "inside", "initial_accumulator_value": 0.1},
        "keras": {
            "lr": 1e-3,
            "eps": 1e-7,
            "eps_placement": "inside",
            "initial_accumulator_value": 0.1,
            "decay": "decoupled",
        },
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        eps_placement: str = "outside",
        decay: str = "l2",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
            "eps_placement": eps_placement,
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
        delta = group["lr_decay"]
        require(0 <= delta < math.inf, "lr_decay", delta, "a finite number >= 0")


class RMSprop(_Adaptive):
    r"""RMSProp (Tieleman and Hinton 2012), with the libraries' disagreements as options.

    .. math::
        v_t = \alpha v_{t-1} + (1-\alpha)\, g_t^2, \quad
        b_t = \mu b_{t-1} + \frac{g_t}{\sqrt{v_t} + \epsilon}, \quad
        \theta_t = \theta_{t-1} - \eta\, b_t

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: learning rate eta.
        alpha: decay rate of the running means, in [0, 1); rho in the book's text.
        eps: epsilon.
        weight_decay: lambda.
        momentum: mu, in [0, 1). Where no group has any, no buffer is kept.
        centered: divide by the standard deviation, sqrt(v - m^2), m the running mean of the
            gradients (Graves 2013). What rounding makes negative counts as 0; torch and optax
            take its root, which is NaN.
        eps_placement: ``"outside"``: sqrt(v) + eps (torch); ``"inside"``: sqrt(v + eps)
            (TensorFlow, Keras, optax, Graves).
        initial_accumulator_value: v before the first gradient: 0 (torch, Keras, optax) or 1
            (TensorFlow 1, timm).
        lr_placement: ``"outside"``: the rate multiplies the buffer (torch); ``"inside"``: it
            multiplies what enters the buffer (TensorFlow, Keras, optax). The same under a
            constant rate and not under a schedule.
        bias_correction: divide v (and m) by 1 - alpha^t; with it this is Adam without its first
            moment. Together with ``centered`` the variance is 0 in the first step, but for
            rounding, and that step is g / eps.
        decay: ``"l2"`` adds lambda theta to the gradient, and the means see it;
            ``"decoupled"`` takes lr lambda theta off theta (Keras);
            ``"paper"`` takes eta lambda theta off, where eta is the schedule's multiplier, that is
            lr divided by the group's ``initial_lr`` (arXiv 1711.05101).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range, or options that exclude each other; the message
            names them.
    """

    numbers = ("alpha", "momentum", "centered", "bias_correction")
    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "eps_placement": EPS_PLACEMENTS,
        "lr_placement": LR_PLACEMENTS,
        "decay": DECAYS,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8},
        "optax": {"alpha": 0.9, "eps": 1e-8, "eps_placement": "inside", "lr_placement": "inside"},
        "keras": {
            "lr": 1e-3,
            "alpha": 0.9,
            "eps": 1e-7,
            "eps_placement": "inside",
            "lr_placement": "inside",
            "decay": "decoupled",
        },
        "tensorflow-1": {
            "alpha": 0.9,
            "eps": 1e-10,
            "eps_placement": "inside",
            "lr_placement": "inside",
            "initial_accumulator_value": 1.0,
        },
        "graves": {
            "lr": 1e-4,
            "alpha": 0.95,
            "momentum": 0.9,
            "centered": True,
            "eps": 1e-4,
            "eps_placement": "inside",
            "lr_placement": "inside",
        },
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        eps_placement: str = "outside",
        initial_accumulator_value: float = 0.0,
        lr_placement: str = "outside",
        bias_correction: bool = False,
        decay: str = "l2",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
            "eps_placement": eps_placement,
            "initial_accumulator_value": initial_accumulator_value,
            "lr_placement": lr_placement,
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
        for name in ("alpha", "momentum"):
            require(0 <= group[name] < 1, name, group[name], "a number in [0, 1)")
        for name in ("centered", "bias_correction"):
            require(isinstance(group[name], bool), name, group[name], "True or False")
        start, corrected = group["initial_accumulator_value"], group["bias_correction"]
        expected = "0 where bias_correction is on: it undoes a start at 0"
        require(start == 0 or not corrected, "initial_accumulator_value", start, expected)

    @property
    def memory(self) -> tuple[str, ...]:
        """``v``; ``m`` where any group is centred; ``b`` where any group has momentum."""
        mean = any(group["centered"] for group in self.param_groups)
        buffer = any(group["momentum"] for group in self.param_groups)
        return ("v", *(["m"] if mean else []), *(["b"] if buffer else []))

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**super().hyperparameters(group), "remembers": " ".join(self.memory)}

    @staticmethod
    def equation(theta: Tensor, g: Tensor, *rest: Any, remembers: str, **options: Any) -> tuple:
        """:func:`rmsprop_step` with its memory in a row."""
        *memory, t = rest
        names = remembers.split()
        theta, new = rmsprop_step(theta, g, dict(zip(names, memory, strict=True)), t, **options)
        return theta, *(new[name] for name in names)

    def _checked(self, saved: dict[str, Any], key: int, p: Tensor) -> dict[str, Any]:
        state = super()._checked(saved, key, p)
        for name in {"m", "b"} & set(saved) - set(self.memory):  # the saved groups need them
            state[name] = saved[name].to(p.device, arithmetic_dtype(p.dtype), copy=True)
        return state


class Adadelta(_Adaptive):
    r"""AdaDelta (Zeiler 2012, arXiv 1212.5701): the ratio of two root mean squares is the rate.

    .. math::
        v_t = \rho v_{t-1} + (1-\rho)\, g_t^2, \quad
        \Delta_t = -\frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t, \quad
        u_t = \rho u_{t-1} + (1-\rho)\, \Delta_t^2, \quad
        \theta_t = \theta_{t-1} + \eta\, \Delta_t

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: eta, 1 in the paper; Keras has 0.001, which makes steps a thousand times smaller.
        rho: decay rate of both running means, in [0, 1).
        eps: epsilon, under both roots. It sets the length of the first steps: sqrt(eps/(1-rho)).
        weight_decay: lambda.
        decay: ``"l2"`` adds lambda theta to the gradient, and the means see it;
            ``"decoupled"`` takes lr lambda theta off theta (Keras);
            ``"paper"`` takes eta lambda theta off, where eta is the schedule's multiplier, that is
            lr divided by the group's ``initial_lr`` (arXiv 1711.05101).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    memory: ClassVar[tuple[str, ...]] = ("v", "u")
    equation = staticmethod(adadelta_step)
    numbers = ("rho",)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 1.0, "rho": 0.9, "eps": 1e-6},
        "optax": {"rho": 0.9, "eps": 1e-6},
        "keras": {"lr": 1e-3, "rho": 0.95, "eps": 1e-7, "decay": "decoupled"},
        "paper": {"lr": 1.0, "rho": 0.95, "eps": 1e-6},
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        decay: str = "l2",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
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
        require(0 <= group["rho"] < 1, "rho", group["rho"], "a number in [0, 1)")
        require(group["eps"] > 0, "eps", group["eps"], "a number > 0: with 0 nothing ever moves")
