"""Draw the README's picture from the recorded run: ``python tools/readme_picture.py``.

Two SVG files, for light and for dark pages, with a transparent background. They hold no date, so
that drawing them again changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lossbook import recorded
from lossbook.plots import axes
from lossbook.plots.style import STYLE

FOLDER = Path(__file__).resolve().parents[1] / "book" / "_static"
FILES = {
    "curve-to-floor.svg": {"ink": "#24292f", "grid": "#d0d7de", "curve": "#0072B2"},
    "curve-to-floor-dark.svg": {"ink": "#e6edf3", "grid": "#3d444d", "curve": "#56B4E9"},
}


def draw(record: dict, ink: str, grid: str, curve: str) -> Figure:
    """The validation loss of a recorded history above its floor, with the excess marked."""
    history = record["result"]
    steps = [row["step"] for row in history["evaluations"]]
    losses = [row["loss"] for row in history["evaluations"]]
    floor = history["floor"]
    figure, ax = axes(width=7.2, height=3.4)
    ax.plot(steps, losses, "o-", color=curve, markersize=3.5, linewidth=2)
    ax.axhline(floor, color=ink, linewidth=1.4, linestyle="--")
    name = f"the floor, computed exactly: {floor:.3f} nats"
    below = {"xytext": (0, -6), "textcoords": "offset points", "va": "top"}
    ax.annotate(name, (0, floor), color=ink, **below)
    _excess(ax, steps[2 * len(steps) // 5], losses[2 * len(steps) // 5], floor, ink)
    ax.annotate("validation loss", (steps[2], losses[2]), xytext=(10, 6), color=curve,
                textcoords="offset points")  # fmt: skip
    ax.set_xlabel("training steps", color=ink)
    ax.set_ylabel("nats per masked token", color=ink)
    ax.set_ylim(floor - 0.13 * (max(losses) - floor), 1.05 * max(losses))
    ax.grid(color=grid, linewidth=0.6)
    ax.tick_params(colors=ink)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(ink)
    return figure


def _excess(ax, step: int, loss: float, floor: float, ink: str) -> None:
    arrow = {"arrowstyle": "<->", "color": ink, "shrinkA": 0, "shrinkB": 3}
    ax.annotate("", (step, loss), (step, floor), arrowprops=arrow)
    name = f"excess {loss - floor:.2f} nats: what is left to learn"
    ax.annotate(name, (step, loss), xytext=(0, 10), textcoords="offset points", color=ink)


def main(folder: Path = FOLDER) -> None:
    """Write both files."""
    record = recorded.load("masked-lm")
    for name, colours in FILES.items():
        with mpl.rc_context(STYLE | {"svg.hashsalt": name, "svg.fonttype": "path"}):
            figure = draw(record, **colours)
            figure.savefig(folder / name, transparent=True, metadata={"Date": None})
            plt.close(figure)
        print(folder / name)


if __name__ == "__main__":
    main()
