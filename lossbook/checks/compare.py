"""Compare several ways to compute one thing, and print how far apart they are.

The tables print *bounds*, not differences: the last digits of a difference depend on the
platform, the bound does not. A bound that is missed raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np
import torch

from lossbook._require import require


def as_array(values: object) -> np.ndarray:
    """Anything numeric (number, list, array, tensor) as a float64 array."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    return np.asarray(values, dtype=np.float64)


def difference(a: object, b: object) -> float:
    """Largest absolute difference over the largest absolute value (or over 1 for zeros).

    A NaN in either, or two different shapes, count as an infinite difference.
    """
    a, b = as_array(a), as_array(b)
    if a.shape != b.shape or np.isnan(a).any() or np.isnan(b).any():
        return np.inf
    if a.size == 0 or np.array_equal(a, b):
        return 0.0
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b).max() / (max(np.abs(a).max(), np.abs(b).max()))
    return float(gap) if np.isfinite(gap) else np.inf


def _table(title: str, rows: list[tuple[str, float, float]]) -> None:
    """Print the rows (label, difference, bound) and raise if a bound is missed."""
    width = max(len(label) for label, _, _ in rows)
    missed = [row for row in rows if not row[1] <= row[2]]
    lines = [title]
    for label, gap, bound in rows:
        verdict = f"≤ {bound:g}" if gap <= bound else f"{gap:.2g}, which is above {bound:g}"
        lines.append(f"  {label:<{width}}  {verdict}")
    text = "\n".join(lines)
    if missed:
        raise AssertionError(text)
    print(text)


def compare(name: str, results: Mapping[str, object], bound: float = 1e-12) -> None:
    """Compare every pair of results; print one line a pair.

    Args:
        name: What was computed; the title of the table.
        results: From the name of a source (``"derivation"``, ``"lossbook"``, ``"torch"``) to
            its numbers: array, tensor, list or number.
        bound: What the largest difference, relative to the largest value, may be.

    Raises:
        AssertionError: A pair differs by more, in shape, or has a NaN. The message is the table.
        ValueError: Fewer than two results.
    """
    require(len(results) >= 2, "results", list(results), "at least two sources")
    pairs = combinations(results, 2)
    rows = [(f"{a} – {b}", difference(results[a], results[b]), bound) for a, b in pairs]
    count = as_array(next(iter(results.values()))).size
    _table(f"{name}: {count} number{'s' if count > 1 else ''}", rows)


def finite_differences(
    f: Callable[[np.ndarray], float], x: np.ndarray, step: float = 1e-5
) -> np.ndarray:
    r"""Central differences :math:`(f(x + h e_i) - f(x - h e_i)) / 2h` of a scalar function.

    The error is of order :math:`h^2` from the curvature and :math:`10^{-16}/h` from rounding:
    about 1e-10 for smooth functions of size 1.
    """
    x = np.array(x, dtype=np.float64)
    gradient = np.empty_like(x)
    for i in np.ndindex(x.shape):
        here, gradient[i] = x[i], 0.0
        for sign in (+1, -1):
            x[i] = here + sign * step
            gradient[i] += sign * float(f(x)) / (2 * step)
        x[i] = here
    return gradient


def autograd(f: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray) -> np.ndarray:
    """Gradient of a scalar torch function at a NumPy point, in float64."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    f(point).backward()
    return point.grad.numpy()


def compare_gradient(
    name: str,
    f: Callable[[np.ndarray], float],
    x: np.ndarray,
    gradients: Mapping[str, object],
    bound: float = 1e-12,
    finite_bound: float = 1e-7,
) -> None:
    """Compare gradients at ``x`` with the finite differences of ``f`` and with each other.

    Args:
        name: Title of the table.
        f: The loss as a NumPy function of ``x``; smooth around ``x``.
        x: The point.
        gradients: From the name of a source to its gradient. The first is the one that is
            compared with the finite differences.
        bound: Relative bound between the sources.
        finite_bound: Relative bound to the finite differences, which are only this good.

    Raises:
        AssertionError: A bound is missed. The message is the table.
    """
    first = next(iter(gradients))
    numeric = finite_differences(f, x)
    rows = [(f"{first} – finite differences", difference(gradients[first], numeric), finite_bound)]
    for a, b in combinations(gradients, 2):
        rows.append((f"{a} – {b}", difference(gradients[a], gradients[b]), bound))
    _table(f"{name}: gradient, {numeric.size} numbers", rows)


def travel_difference(a: object, b: object) -> float:
    """Largest difference of two trajectories over the distance that the first has travelled.

    Parameters may be large and move little: an error relative to the parameters themselves
    would hide a wrong step.
    """
    a, b = as_array(a), as_array(b)
    if a.shape != b.shape or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.inf
    travelled = np.abs(a - a[:1]).max()
    gap = np.abs(a - b).max()
    return float(gap / travelled) if travelled > 0 else float(np.inf if gap else 0)


def compare_trajectory(name: str, trajectories: Mapping[str, object], bound: float = 1e-12) -> None:
    """Compare sequences of parameters ``[steps + 1, ...]`` that start at the same point.

    Args:
        name: Title of the table.
        trajectories: From the name of a source to its parameters after 0, 1, 2, ... steps.
        bound: Bound on the largest difference over the distance travelled.

    Raises:
        AssertionError: A bound is missed, or a trajectory is not finite.
        ValueError: Fewer than two trajectories.
    """
    require(len(trajectories) >= 2, "trajectories", list(trajectories), "at least two sources")
    rows = [
        (f"{a} – {b}", travel_difference(trajectories[a], trajectories[b]), bound)
        for a, b in combinations(trajectories, 2)
    ]
    steps = len(as_array(next(iter(trajectories.values())))) - 1
    _table(f"{name}: {steps} steps", rows)
