"""Adafactor (Shazeer and Stern 2018, arXiv 1804.04235): second moments from rows and columns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.base import Number, Optimizer
from lossbook.optim.batching import Row, is_open
from lossbook.optim.compiled import form_of
from lossbook.optim.groups import Rule

RATES = ("relative", "warmup", "given")
FACTORED_AXES = ("last", "largest", "none")
EPS1_PLACEMENTS = ("square", "floor")
DECAYS = ("scaled", "lr", "raw")
BLOCK_OF_ROWS = 64

Memory = dict[str, Float[Tensor, "..."]]


def adafactor_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    memory: Memory,
    t: Number,
    *,
    lr: Number = 1e-2,
    eps1: Number = 1e-30,
    eps2: Number = 1e-3,
    clip_threshold: Number = 1.0,
    beta2_decay: Number = -0.8,
    beta1: Number = 0.0,
    weight_decay: Number = 0.0,
    rate: str = "relative",
    scale_parameter: bool = True,
    eps1_placement: str = "square",
    decay: str = "scaled",
) -> tuple[Float[Tensor, "*shape"], Memory]:
    """Step ``t`` (the first is 1) of Adafactor: algorithms 4 and 5 of the paper.

    A pure function: nothing that comes in is changed.

    Args:
        theta: parameters; the last two axes are rows and columns where they are factored.
        g: their gradient.
        memory: all 0 before the first step: ``r [..., n, 1]`` and ``c [..., 1, m]``, the running
            means of the squared gradient along rows and columns, or ``v``, as large as theta;
            and ``m``, as large as theta, where there is a first moment.
        t: number of this step; a tensor of rank 0 will do.

    The other options are those of :class:`Adafactor`.

    Returns:
        The new theta and memory.
    """
    beta2 = 1 - t**beta2_decay
    square = g * g + (eps1 if eps1_placement == "square" else 0.0)
    floor = eps1 if eps1_placement == "floor" else None
    if "v" in memory:
        new = {"v": beta2 * memory["v"] + (1 - beta2) * square}
        u = g / _root(new["v"], floor)
    else:
        r = beta2 * memory["r"] + (1 - beta2) * square.mean(-1, keepdim=True)
        c = beta2 * memory["c"] + (1 - beta2) * _column_mean(square)
        new = {"r": r, "c": c}
        u = _divided(g, r, c, floor)
    rho = _step_size(lr, t, rate)
    alpha = rho * _at_least(_rms(theta), eps2) if scale_parameter else rho
    step = alpha / _at_least(_rms(u) / clip_threshold, 1.0) * u
    if "m" in memory:
        step = new["m"] = beta1 * memory["m"] + (1 - beta1) * step
    shrink = weight_decay * {"scaled": alpha, "lr": lr, "raw": 1.0}[decay]
    return theta - shrink * theta - step, new


def _divided(g: Tensor, r: Tensor, c: Tensor, floor: Number | None) -> Tensor:
    """g over the root of r c / mean(r); root by root, because r c may underflow."""
    mean = r.mean(-2, keepdim=True)
    if floor is None:
        return g / (r / mean).sqrt() / c.sqrt()
    root = (r / _at_least(mean, floor)).sqrt() * c.sqrt()
    return g / _at_least(root, floor)


def _root(v: Tensor, floor: Number | None) -> Tensor:
    return v.sqrt() if floor is None else _at_least(v.sqrt(), floor)


def _step_size(lr: Number, t: Number, rate: str) -> Number:
    """rho: the relative step size, or lr itself."""
    if rate == "given":
        return lr
    cap, limit = lr if rate == "relative" else 1e-6 * t, t**-0.5
    return torch.minimum(cap, limit) if isinstance(limit, Tensor) else min(cap, limit)


def _rms(x: Tensor) -> Tensor:
    """Root mean square, row by row first: one float32 sum over millions would lose digits."""
    square = x.square()
    rows = square.mean(-1, keepdim=True) if x.ndim else square
    return rows.mean(dim=tuple(range(x.ndim)), keepdim=True).sqrt()


def _at_least(x: Tensor, low: Number) -> Tensor:
    return torch.maximum(x, low.to(x)) if isinstance(low, Tensor) else x.clamp(min=low)


def _column_mean(x: Tensor) -> Tensor:
    """Means of the columns, 64 rows at a time: walking down a whole column misses the cache."""
    n = x.shape[-2]
    whole = n // BLOCK_OF_ROWS * BLOCK_OF_ROWS
    blocks = x[..., :whole, :].unflatten(-2, (n // BLOCK_OF_ROWS, BLOCK_OF_ROWS))
    total = blocks.sum(-2).sum(-2, keepdim=True) + x[..., whole:, :].sum(-2, keepdim=True)
    return total / n


class Adafactor(Optimizer):
    r"""Adafactor, with every disagreement between the libraries as a named option.

    .. math::
        R_t = \hat\beta_{2t} R_{t-1} + (1-\hat\beta_{2t})\, (G_t^2 + \epsilon_1)\, 1_m, \quad
        C_t = \hat\beta_{2t} C_{t-1} + (1-\hat\beta_{2t})\, 1_n^\top (G_t^2 + \epsilon_1), \quad
        U_t = G_t \Big/ \sqrt{R_t C_t / 1_n^\top R_t}

    .. math::
        \theta_t = \theta_{t-1} - \max(\epsilon_2, \mathrm{RMS}(\theta_{t-1}))\, \rho_t\,
        U_t \big/ \max(1, \mathrm{RMS}(U_t) / d), \quad
        \hat\beta_{2t} = 1 - t^{-0.8}, \quad \rho_t = \min(10^{-2}, 1/\sqrt t)

    A matrix of n rows and m columns costs n + m numbers. (Means are kept in place of sums: only
    their ratio enters.) Vectors, and what is too small to factor, keep a v of their own size.

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        lr: the largest relative step, 1e-2 in the paper; the step size itself with
            ``rate="given"``. A schedule may change it.
        beta2_decay: exponent of 1 - beta2_t, at most 0.
        eps: ``(eps1, eps2)``: what keeps the squared gradient from 0, and the smallest RMS of
            theta that scales a step.
        clip_threshold: d, the largest RMS of an update; None for no limit.
        weight_decay: lambda.
        beta1: None for no first moment; else the decay rate of a running average *of the scaled
            updates*.
        rate: ``"relative"``: min(lr, 1 / sqrt(t)), the paper and torch;
            ``"warmup"``: min(1e-6 t, 1 / sqrt(t)), the paper's warm-up, lr is not used;
            ``"given"``: lr, as in T5, optax, and transformers with ``relative_step=False``.
        scale_parameter: multiply the rate by max(eps2, RMS(theta)). Without it this is another
            algorithm: the same lr then means a step some 30 times as long.
        factor: which two axes become rows and columns: ``"last"`` (paper's code, torch,
            transformers), ``"largest"`` (T5's code, optax), ``"none"``: no factors (PaLM).
        min_dim_size_to_factor: factor only where both axes are at least so long (T5's code and
            optax: 128).
        eps1_placement: ``"square"`` adds eps1 to the squared gradient; ``"floor"`` keeps mean(R)
            and sqrt(V) at eps1 or above, as torch does.
        decay: what is taken off theta: ``"scaled"``: lambda alpha_t theta, with the parameter's
            own alpha_t (transformers); ``"lr"``: lambda lr theta (torch); ``"raw"``: lambda theta
            (optax).
        exclude, clip, clip_form, check_finite, compiled: see
            :class:`~lossbook.optim.base.Optimizer`. ``clip`` limits gradients and is no part of
            Adafactor; ``clip_threshold`` is.

    ``like("torch", ...)`` is torch's algorithm with the paper's scale of eps1, not with torch's
    default, which depends on the precision of a parameter (``torch.finfo(dtype).eps``).

    Raises:
        ValueError: an option outside its range; the message names it.
    """

    elementwise: ClassVar[bool] = False
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {"lr": 1e-2, "rate": "relative"},
        "t5": {"lr": 1e-3, "rate": "given", "factor": "largest", "min_dim_size_to_factor": 128},
        "transformers": {"rate": "relative", "decay": "scaled"},
        "transformers-trainer": {"lr": 1e-3, "rate": "given", "scale_parameter": False},
        "torch": {"lr": 1e-2, "eps": (1e-15, 1e-3), "eps1_placement": "floor", "decay": "lr"},
        "optax": {
            "rate": "given",
            "factor": "largest",
            "min_dim_size_to_factor": 128,
            "decay": "raw",
        },
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[Any, ...] | list[Any] = (1e-30, 1e-3),
        clip_threshold: float | None = 1.0,
        weight_decay: float = 0.0,
        *,
        beta1: float | None = None,
        rate: str = "relative",
        scale_parameter: bool = True,
        factor: str = "last",
        min_dim_size_to_factor: int = 0,
        eps1_placement: str = "square",
        decay: str = "scaled",
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "clip_threshold": clip_threshold,
            "weight_decay": weight_decay,
            "beta1": beta1,
            "rate": rate,
            "scale_parameter": scale_parameter,
            "factor": factor,
            "min_dim_size_to_factor": min_dim_size_to_factor,
            "eps1_placement": eps1_placement,
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
        eps, d, beta1 = group["eps"], group["clip_threshold"], group["beta1"]
        exponent, size = group["beta2_decay"], group["min_dim_size_to_factor"]
        pair = isinstance(eps, tuple | list) and len(eps) == 2 and None not in eps
        require(pair and all(0 <= e < math.inf for e in eps), "eps", eps, "two numbers >= 0")
        require(exponent <= 0, "beta2_decay", exponent, "a number <= 0")
        require(d is None or d > 0, "clip_threshold", d, "None or a number > 0")
        require(beta1 is None or 0 <= beta1 < 1, "beta1", beta1, "None or a number in [0, 1)")
        require(size >= 0, "min_dim_size_to_factor", size, "a number >= 0")
        scale = group["scale_parameter"]
        require(isinstance(scale, bool), "scale_parameter", scale, "True or False")
        for name, known in (
            ("rate", RATES),
            ("factor", FACTORED_AXES),
            ("eps1_placement", EPS1_PLACEMENTS),
            ("decay", DECAYS),
        ):
            require(group[name] in known, name, group[name], f"one of {known}")

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        d, beta1 = group["clip_threshold"], group["beta1"]
        return {
            "eps1": group["eps"][0],
            "eps2": group["eps"][1],
            "clip_threshold": math.inf if d is None else d,
            "beta1": 0.0 if beta1 is None else beta1,
            "first_moment": beta1 is not None,
            **{name: group[name] for name in ("lr", "beta2_decay", "weight_decay")},
            **{name: group[name] for name in ("rate", "scale_parameter")},
            **{name: group[name] for name in ("eps1_placement", "decay")},
        }

    @staticmethod
    def equation(theta: Tensor, g: Tensor, *rest: Any, first_moment: bool, **options: Any) -> tuple:
        """:func:`adafactor_step` with its memory in a row."""
        *memory, t = rest
        names = ["m"] if first_moment else []
        names += ["r", "c"] if len(memory) - len(names) == 2 else ["v"]
        new_theta, new = adafactor_step(
            theta, g, dict(zip(names, memory, strict=True)), t, **options
        )
        return new_theta, *(new[name] for name in names)

    # What is remembered, and along which axes

    def shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        group = next(g for g in self.param_groups if any(p is q for q in g["params"]))
        shape, axes = tuple(p.shape), factored_axes(tuple(p.shape), group)
        found = {} if group["beta1"] is None else {"m": shape}
        if axes is None:
            return {**found, "v": shape}
        rows, columns = ([1 if i == axis else n for i, n in enumerate(shape)] for axis in axes)
        return {**found, "r": tuple(columns), "c": tuple(rows)}

    def _rows(self, part: Any, states: list[dict[str, Any]]) -> list[Row]:
        return list(map(self._row, part.parameters, part.gradients, states))

    def _row(self, p: Tensor, g: Tensor, state: dict[str, Any]) -> Row:
        """(theta, g, *memory), with rows and columns as the last two axes."""
        row = [p, g, *(state[name] for name in ("m", "r", "c", "v") if name in state)]
        axes = None if "v" in state else self._factored(p)
        if axes not in (None, (p.ndim - 2, p.ndim - 1)):
            row = [x.movedim(axes, (-2, -1)) for x in row]
        return row

    def _forms(self, rows: list[Row]) -> list[tuple[Any, ...] | None]:
        return [
            (*(x.dtype for x in row), *map(form_of, row)) if is_open(row) else None for row in rows
        ]

    def _factored(self, p: Tensor) -> tuple[int, int] | None:
        for group in self.param_groups:
            if group["factor"] != "last":
                for q in group["params"]:
                    if p is q:
                        return factored_axes(tuple(p.shape), group)
        return p.ndim - 2, p.ndim - 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``; what is remembered must be of the same kind."""
        for i, (own, saved) in enumerate(
            zip(self.param_groups, state_dict["param_groups"], strict=False)
        ):
            for name in ("factor", "min_dim_size_to_factor"):
                label = f"state_dict['param_groups'][{i}]['{name}']"
                require(saved.get(name) == own[name], label, saved.get(name), repr(own[name]))
            label = f"state_dict['param_groups'][{i}]['beta1']"
            same = (saved.get("beta1") is None) == (own["beta1"] is None)
            require(same, label, saved.get("beta1"), "None" if own["beta1"] is None else "a number")
        super().load_state_dict(state_dict)


def factored_axes(shape: tuple[int, ...], group: dict[str, Any]) -> tuple[int, int] | None:
    """The axes that become rows and columns, or None where nothing is factored."""
    if group["factor"] == "none" or len(shape) < 2:
        return None
    order = range(len(shape))
    axes = sorted(order, key=lambda i: shape[i]) if group["factor"] == "largest" else list(order)
    row, column = sorted(axes[-2:])
    if min(shape[row], shape[column]) < group["min_dim_size_to_factor"]:
        return None
    return row, column
