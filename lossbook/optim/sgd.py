"""Gradient descent, with heavy ball (Polyak 1964) and Nesterov's momentum, in every library's form.

The libraries disagree about two things that a constant learning rate hides: whether the rate
stands inside the momentum buffer or outside, and how the buffer begins when it is dampened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.base import Number, Optimizer
from lossbook.optim.compiled import arithmetic_dtype
from lossbook.optim.groups import Rule

LR_PLACEMENTS = ("outside", "inside")
FIRST_BUFFERS = ("gradient", "dampened")
NESTEROV_FORMS = (False, True, "lookahead", "sutskever")
SGD_DECAYS = ("l2", "decoupled", "paper")


def sgd_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    b: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-3,
    momentum: Number = 0.0,
    dampening: Number = 0.0,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    lr_placement: str = "outside",
    first_buffer: str = "gradient",
    nesterov: bool = False,
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` (the first is 1) of gradient descent with momentum.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters.
        g: their gradient.
        b: momentum buffer, 0 before the first step. With ``lr_placement="inside"`` it is minus
            the velocity of Sutskever et al. (2013), so that it is subtracted in both forms.
        t: number of this step; a tensor of rank 0 will do.
        multiplier: the schedule's factor (eta of arXiv 1711.05101), used by ``decay="paper"``.

    The other options are those of :class:`SGD`; ``nesterov`` is its look-ahead form here.

    Returns:
        The new theta and b.
    """
    if decay == "l2":
        g = g + weight_decay * theta
    else:
        theta = theta - (lr if decay == "decoupled" else multiplier) * weight_decay * theta
    if lr_placement == "inside":
        g = lr * g
    if first_buffer == "gradient":
        dampening = dampening * (t > 1)
    b = momentum * b + (1 - dampening) * g
    step = g + momentum * b if nesterov else b
    return theta - (lr * step if lr_placement == "outside" else step), b


def plain_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-3,
    weight_decay: Number = 0.0,
    multiplier: Number = 1.0,
    decay: str = "l2",
) -> tuple[Float[Tensor, "*shape"]]:
    """A step without momentum: nothing to remember. The arguments are those of :func:`sgd_step`."""
    if decay == "l2":
        g = g + weight_decay * theta
    else:
        theta = theta - (lr if decay == "decoupled" else multiplier) * weight_decay * theta
    return (theta - lr * g,)


class SGD(Optimizer):
    r"""Gradient descent with momentum, with every disagreement between libraries as an option.

    .. math::
        b_t = \mu b_{t-1} + (1-\tau) g_t, \quad
        \theta_t = \theta_{t-1} - \eta_t\, b_t
        \qquad\text{or}\qquad
        b_t = \mu b_{t-1} + (1-\tau)\,\eta_t\, g_t, \quad
        \theta_t = \theta_{t-1} - b_t

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: learning rate eta.
        momentum: mu, in [0, 1). Where no group has any, nothing is remembered.
        dampening: tau, in [0, 1]; ``"momentum"`` ties it to mu, as Lua Torch does by default.
        weight_decay: lambda.
        lr_placement: ``"outside"``: the buffer holds gradients, the rate multiplies the buffer
            (torch, optax); ``"inside"``: the buffer holds steps (Sutskever et al. 2013, Keras,
            Mesh TensorFlow). The same under a constant rate and not under a schedule.
        first_buffer: ``"gradient"``: the first gradient enters whole, dampening begins at step 2
            (torch); ``"dampened"``: it begins at step 1. With tau = mu the buffer is then a
            running average from 0.
        nesterov: True or ``"lookahead"``: the parameters hold the look-ahead point, where the
            gradient is taken (torch, optax, Keras). ``"sutskever"``: the parameters hold the
            iterate, and :meth:`step` calls its closure at the look-ahead point. Needs momentum
            and no dampening.
        decay: ``"l2"`` adds lambda theta to the gradient, and the buffer sees it;
            ``"decoupled"`` takes lr lambda theta off theta (Keras);
            ``"paper"`` takes eta lambda theta off, where eta is the schedule's multiplier, that is
            lr divided by the group's ``initial_lr`` (SGDW, arXiv 1711.05101, algorithm 1).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`.

    Raises:
        ValueError: an option outside its range, or options that exclude each other; the message
            names them.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"lr": 1e-3},
        "optax": {"lr_placement": "outside"},
        "keras": {"lr": 1e-2, "lr_placement": "inside", "decay": "decoupled"},
        "mesh-tensorflow": {"lr_placement": "inside"},
        "lua": {"lr": 1e-3, "dampening": "momentum"},
        "sutskever": {"lr_placement": "inside", "nesterov": "sutskever", "momentum": 0.9},
        "sgdw": {"lr_placement": "inside", "decay": "paper"},
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float | str = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool | str = False,
        *,
        lr_placement: str = "outside",
        first_buffer: str = "gradient",
        decay: str = "l2",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "lr_placement": lr_placement,
            "first_buffer": first_buffer,
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
        momentum, dampening, nesterov = (group[k] for k in ("momentum", "dampening", "nesterov"))
        require(0 <= momentum < 1, "momentum", momentum, "a number in [0, 1)")
        tied = dampening == "momentum"
        number = isinstance(dampening, int | float) and 0 <= dampening <= 1
        require(tied or number, "dampening", dampening, "a number in [0, 1], or 'momentum'")
        require(nesterov in NESTEROV_FORMS, "nesterov", nesterov, f"one of {NESTEROV_FORMS}")
        if nesterov:
            require(momentum > 0, "momentum", momentum, "a number > 0 where nesterov is on")
            require(dampening == 0, "dampening", dampening, "0 where nesterov is on")
        for name, known in (
            ("lr_placement", LR_PLACEMENTS),
            ("first_buffer", FIRST_BUFFERS),
            ("decay", SGD_DECAYS),
        ):
            require(group[name] in known, name, group[name], f"one of {known}")

    @property
    def memory(self) -> tuple[str, ...]:
        """The buffer ``b`` where any group has momentum, nothing elsewhere."""
        return ("b",) if any(group["momentum"] for group in self.param_groups) else ()

    @staticmethod
    def equation(theta: Tensor, g: Tensor, *rest: Any, remembers: bool, **options: Any) -> tuple:
        """:func:`sgd_step` where there is a buffer, :func:`plain_step` where there is none."""
        if remembers:
            return sgd_step(theta, g, *rest, **options)
        names = ("lr", "weight_decay", "multiplier", "decay")
        return plain_step(theta, g, *rest, **{name: options[name] for name in names})

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        momentum, tau = group["momentum"], group["dampening"]
        tau = momentum if tau == "momentum" else tau
        return {
            "momentum": momentum,
            "dampening": tau if momentum else 0.0,  # nothing to dampen, as in torch
            "multiplier": float(group["lr"]) / float(group["initial_lr"] or 1.0),
            "nesterov": group["nesterov"] in (True, "lookahead"),
            "remembers": bool(self.memory),
            **{name: group[name] for name in ("lr", "weight_decay")},
            **{name: group[name] for name in ("lr_placement", "first_buffer", "decay")},
        }

    def _checked(self, saved: dict[str, Any], key: int, p: Tensor) -> dict[str, Any]:
        state = super()._checked(saved, key, p)
        if "b" in saved and not self.memory:  # the groups that come with it have momentum
            state["b"] = saved["b"].to(p.device, arithmetic_dtype(p.dtype), copy=True)
        return state

    # Sutskever's form: the gradient belongs to another point than the parameters

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; see :meth:`lossbook.optim.base.Optimizer.step`.

        With ``nesterov="sutskever"`` the closure is needed: it is called while the parameters
        stand at the look-ahead point, and they are put back before the step is made.
        """
        if all(group["nesterov"] != "sutskever" for group in self.param_groups):
            return super().step(closure)
        expected = "a function that evaluates the loss, called at Sutskever's look-ahead point"
        require(closure is not None, "closure", closure, expected)
        with self.ahead(), torch.enable_grad():
            loss = closure()
        super().step()
        return loss

    @contextmanager
    def ahead(self) -> Iterator[None]:
        """Move the parameters to where momentum alone would carry them, and back at the end."""
        with torch.no_grad():
            kept = [(p, p.clone(), move) for p, move in self._coasting()]
            for p, here, move in kept:
                p.copy_(here.to(move.dtype) - move)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, here, _ in kept:
                    p.copy_(here)

    def _coasting(self) -> Iterator[tuple[Tensor, Tensor]]:
        for group in self.param_groups:
            if group["nesterov"] == "sutskever":
                rate = float(group["lr"]) if group["lr_placement"] == "outside" else 1.0
                for p in group["params"]:
                    if "b" in self.state.get(p, {}):
                        yield p, rate * group["momentum"] * self.state[p]["b"]
