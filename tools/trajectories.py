"""A problem on which wrong optimizers differ, and walks through it with every library.

Everything that makes a mistake visible is on: an eps that matters (1e-3), a learning rate that
changes, decay, ranks 0 to 3 with unequal sides, gradients that are missing now and then, and
sizes of gradients from 1 to 1e-8.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

STEPS = 25
SHAPES = [(), (7,), (6, 5), (4, 3, 5), (3,), (2, 9)]


@dataclass
class Problem:
    """Starting points, gradients [step][parameter] (None where missing), learning rates."""

    start: list[np.ndarray]
    gradients: list[list[np.ndarray | None]]
    rates: list[float]
    dtypes: list[torch.dtype] | None = None  # of the parameters, where they differ

    @classmethod
    def hostile(cls, seed: int = 0, missing: bool = True, scale: float = 1.0) -> Problem:
        rng = np.random.default_rng(seed)
        start = [rng.normal(size=shape) for shape in SHAPES]
        gradients = [[cls.draw(rng, t, i, missing, scale) for i in range(6)] for t in range(STEPS)]
        return cls(start, gradients, [1e-2 * (1 + math.cos(t / 4)) for t in range(STEPS)])

    @staticmethod
    def draw(
        rng: np.random.Generator, t: int, i: int, missing: bool, scale: float
    ) -> np.ndarray | None:
        size = scale * (10.0 ** -(2 * i - 2) if i >= 1 else 1.0)  # 1, 1, 1e-2, ... 1e-8
        g = np.asarray(rng.normal(size=SHAPES[i]) * np.exp(rng.normal()) * size)
        return None if missing and (t + i) % 6 == 5 else g

    @classmethod
    def from_rest(cls, scale: float, missing: bool = True) -> Problem:
        """All parameters begin at 0, so that nothing but the gradients has a size."""
        problem = cls.hostile(missing=missing, scale=scale)
        problem.start = [np.zeros_like(x) for x in problem.start]
        return problem

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[torch.nn.Parameter]:
        dtypes = self.dtypes or [dtype] * len(self.start)
        pairs = zip(self.start, dtypes, strict=True)
        return [torch.nn.Parameter(torch.tensor(x).to(form)) for x, form in pairs]


Path = list[list[np.ndarray]]  # [step][parameter]
Adjust = Callable[[torch.optim.Optimizer, int], None]


def walk(
    make: Callable[..., torch.optim.Optimizer],
    problem: Problem,
    adjust: Adjust | None = None,
    dtype: torch.dtype = torch.float64,
) -> Path:
    """Parameters after 0, 1, 2, ... steps; ``adjust(optimizer, t)`` is called before step t."""
    tensors = problem.tensors(dtype)
    return list(positions(make(tensors), tensors, problem, adjust))


def positions(
    optimizer: torch.optim.Optimizer,
    tensors: list[torch.nn.Parameter],
    problem: Problem,
    adjust: Adjust | None = None,
    first: int = 1,
) -> Iterator[list[np.ndarray]]:
    yield [p.detach().double().numpy().copy() for p in tensors]
    for t in range(first, len(problem.rates) + 1):
        for p, g in zip(tensors, problem.gradients[t - 1], strict=True):
            p.grad = None if g is None else torch.tensor(g).to(p.dtype)
        for group in optimizer.param_groups:
            group["lr"] = problem.rates[t - 1]
        if adjust is not None:
            adjust(optimizer, t)
        optimizer.step()
        yield [p.detach().double().numpy().copy() for p in tensors]


def optax_walk(transformation, problem: Problem) -> Path:
    """The walk of an optax transformation, which has no word for a missing gradient."""
    import jax.numpy as jnp
    import optax

    theta = [jnp.asarray(x) for x in problem.start]
    state, path = transformation.init(theta), [problem.start]
    for gradients in problem.gradients:
        updates, state = transformation.update([jnp.asarray(g) for g in gradients], state, theta)
        theta = optax.apply_updates(theta, updates)
        path.append([np.asarray(x) for x in theta])
    return path


def optax_rate(problem: Problem):
    """The learning rates as optax wants them: a function of the number of steps made."""
    import jax.numpy as jnp

    rates = jnp.asarray(problem.rates)
    return lambda count: rates[count]


def keras_module():
    """Keras on torch. Its settings file goes to a folder of its own, not into the home folder."""
    os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("KERAS_HOME", tempfile.mkdtemp(prefix="keras-"))
    import keras

    return keras


@contextmanager
def keras_in_float64() -> Iterator[None]:
    """Variables that are built inside are float64."""
    keras = keras_module()
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def keras_walk(make: Callable, problem: Problem) -> Path:
    """The walk of a Keras optimizer; a missing gradient passes its variable over."""
    keras = keras_module()
    with keras_in_float64():
        variables = [keras.Variable(x, dtype="float64") for x in problem.start]
        optimizer = make(variables)
        optimizer.build(variables)
        path = [problem.start]
        for gradients, rate in zip(problem.gradients, problem.rates, strict=True):
            optimizer.learning_rate = rate
            pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
            optimizer.apply([torch.tensor(g) for g, _ in pairs], [v for _, v in pairs])
            path.append([v.value.detach().numpy().copy() for v in variables])
    return path


def distance(a: Path, b: Path) -> float:
    """Largest difference of any parameter over the distance that it has travelled in all."""
    worst = 0.0
    for i in range(len(a[0])):
        x, y = (np.stack([step[i] for step in path]) for path in (a, b))
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            return np.inf
        worst = max(worst, np.abs(x - y).max() / max(np.abs(y - y[0]).max(), 1e-300))
    return worst
