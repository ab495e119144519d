"""Training curves, drawn against the line they must end at."""

from __future__ import annotations

from matplotlib.axes import Axes

from lossbook.plots.style import COLORS


def curve_to_floor(
    ax: Axes,
    steps: list[int],
    losses: list[float],
    floor: float | None = None,
    label: str = "validation loss",
    color: str = "blue",
) -> Axes:
    """Draw a loss over training steps and, where it is known, its exact floor.

    Args:
        ax: Where to draw.
        steps: Training steps at which the loss was measured.
        losses: The losses, nats per target.
        floor: The lowest loss that any model can reach; a dashed line.
        label: Name of the curve, for the legend.
        color: A name in ``lossbook.plots.COLORS``.
    """
    ax.plot(steps, losses, marker="o", markersize=3, color=COLORS[color], label=label)
    if floor is not None:
        ax.axhline(floor, linestyle="--", color=COLORS["black"], linewidth=1.2)
        ax.annotate(
            f"floor {floor:.3f}",
            (steps[-1], floor),
            xytext=(0, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=9,
        )
    ax.set_xlabel("training steps")
    ax.set_ylabel("nats per target")
    return ax
