"""One look for every figure: colours that survive colour blindness and print, few lines."""

from __future__ import annotations

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

#: Okabe and Ito's palette, darkest contrasts first.
COLORS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
    "yellow": "#E69F00",
    "black": "#222222",
    "grey": "#777777",
}

STYLE = {
    "axes.prop_cycle": mpl.cycler(color=[COLORS[c] for c in ("blue", "orange", "green", "pink")]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "savefig.dpi": 160,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def axes(
    rows: int = 1, columns: int = 1, width: float = 6.4, height: float = 3.2, **options: object
) -> tuple[Figure, Axes]:
    """A figure and its axes in the book's style, without touching matplotlib's globals.

    Args:
        rows: Rows of panels.
        columns: Columns of panels.
        width: Inches of the whole figure.
        height: Inches of the whole figure.
        options: Passed to ``matplotlib.pyplot.subplots`` (``sharey=True``, ...).

    Returns:
        The figure and its ``Axes``: one, or an array of them.
    """
    with mpl.rc_context(STYLE):
        return plt.subplots(rows, columns, figsize=(width, height), **options)


def show(figure: Figure):
    """The figure as a small PNG for the last line of a cell; the figure is closed.

    The picture has 64 colours, which line drawings do not miss, and no date: the same figure
    gives the same bytes.
    """
    from IPython.display import Image
    from PIL import Image as Picture

    raw, small = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(STYLE):
        for legend in [ax.get_legend() for ax in figure.axes] + figure.legends:
            if legend is not None:
                legend.set_frame_on(False)
        figure.savefig(raw, format="png", metadata={"Software": None})
    plt.close(figure)
    picture = Picture.open(raw).convert("RGB")
    picture.quantize(64, dither=Picture.Dither.NONE).save(small, format="png", optimize=True)
    return Image(small.getvalue(), width=int(picture.width / 1.6))
