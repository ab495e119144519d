"""AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101): decay beside the gradient, not in it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from lossbook.optim.adam import Adam, adam_step
from lossbook.optim.base import Number


def adamw_step(
    theta: Float[Tensor, "*shape"],
    g: Float[Tensor, "*shape"],
    m: Float[Tensor, "*shape"],
    v: Float[Tensor, "*shape"],
    t: Number,
    *,
    lr: Number = 1e-3,
    weight_decay: Number = 0.01,
    decay: str = "decoupled",
    **adam: Any,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Step ``t`` of AdamW: :func:`~lossbook.optim.adam.adam_step` with the decay taken out of g.

    The moments never see theta, so lambda means the same for every weight.
    """
    return adam_step(theta, g, m, v, t, lr=lr, weight_decay=weight_decay, decay=decay, **adam)


class AdamW(Adam):
    r"""Adam with decoupled weight decay.

    .. math::
        \theta_t = \theta_{t-1} - \alpha_t \lambda\, \theta_{t-1}
        - \alpha_t \frac{\hat m_t}{\sqrt{\hat v_t} + \epsilon}

    Torch, optax and Keras multiply lambda by the learning rate (``decay="decoupled"``). The paper
    multiplies it by the schedule alone (``decay="paper"``): lambda there is lr times lambda here.
    The arguments are those of :class:`~lossbook.optim.adam.Adam`.
    """

    equation = staticmethod(adamw_step)
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "torch": {"eps": 1e-8, "weight_decay": 0.01},
        "optax": {"eps": 1e-8, "weight_decay": 1e-4},
        "keras": {"eps": 1e-7, "weight_decay": 4e-3, "eps_placement": "hat"},
        "bert": Adam.presets["bert"],
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        decay: str = "decoupled",
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, decay=decay, **options)
