"""The exponential moving average of the parameters, and its two beginnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lossbook._require import require
from lossbook.optim.compiled import arithmetic_dtype

STARTS = ("copy", "zero")


def ema_step(
    average: Float[Tensor, "*shape"], theta: Float[Tensor, "*shape"], decay: float
) -> Float[Tensor, "*shape"]:
    r""":math:`\bar\theta_t = \delta\,\bar\theta_{t-1} + (1-\delta)\,\theta_t`, a pure function."""
    return decay * average + (1 - decay) * theta


class EMA:
    r"""A second set of weights that follows the first, at a distance.

    Args:
        parameters: tensors, ``named_parameters()``, or a module. They are not changed.
        decay: :math:`\delta`; the average looks back over about :math:`1/(1-\delta)` updates.
        start: ``"copy"``: the first update copies, as in torch's ``AveragedModel``. ``"zero"``:
            the average starts at 0 and what is read is divided by :math:`1 - \delta^t`, as in
            ``optax.ema(debias=True)``; then it is a weighted mean of the updates alone.

    Averages are kept in float32 for parameters in float16 and bfloat16: what is added in one
    update, :math:`(1-\delta)(\theta_t - \bar\theta_{t-1})`, is too small for their digits.
    Buffers of a module are not averaged.
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Any],
        decay: float = 0.999,
        *,
        start: str = "copy",
    ) -> None:
        require(0 <= decay < 1, "decay", decay, "a number in [0, 1)")
        require(start in STARTS, "start", start, f"one of {STARTS}")
        listed = parameters.parameters() if isinstance(parameters, nn.Module) else parameters
        self.parameters = [p[1] if isinstance(p, tuple) else p for p in listed]
        require(self.parameters, "parameters", self.parameters, "at least one tensor")
        self.decay, self.start, self.updates = float(decay), start, 0
        self.sums = [torch.zeros_like(p, dtype=arithmetic_dtype(p.dtype)) for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in; call it after ``optimizer.step()``."""
        copy = self.start == "copy" and self.updates == 0
        for average, p in zip(self.sums, self.parameters, strict=True):
            theta = p.detach().to(average.dtype)
            average.copy_(theta if copy else ema_step(average, theta, self.decay))
        self.updates += 1

    def averages(self) -> list[Tensor]:
        """The averages, as tensors of their own, in the order of the parameters."""
        require(self.updates > 0, "averages", 0, "an update() before the first look")
        weight = 1.0 if self.start == "copy" else 1 - self.decay**self.updates
        return [average / weight for average in self.sums]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters *are* the averages; after it, they are back, bit for bit."""
        averages = self.averages()
        kept = [p.detach().clone() for p in self.parameters]
        try:
            self._fill(averages)
            yield
        finally:
            self._fill(kept)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        sums = [average.clone() for average in self.sums]
        own = {"decay": self.decay, "start": self.start, "updates": self.updates}
        return {**own, "sums": sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``, which is copied.

        Raises:
            ValueError: another decay or beginning, or averages of other shapes.
        """
        for name in ("decay", "start"):
            found, own = state_dict[name], getattr(self, name)
            require(found == own, f"state_dict['{name}']", found, f"this average's {own!r}")
        found = [tuple(average.shape) for average in state_dict["sums"]]
        shapes = [tuple(average.shape) for average in self.sums]
        require(found == shapes, "state_dict['sums']", found, f"the shapes {shapes}")
        for average, saved in zip(self.sums, state_dict["sums"], strict=True):
            average.copy_(saved)
        self.updates = int(state_dict["updates"])
