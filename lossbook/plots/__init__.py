"""The book's figures in one style."""

from lossbook.plots.curves import curve_to_floor
from lossbook.plots.style import COLORS, axes, show

__all__ = ["COLORS", "axes", "curve_to_floor", "show"]
