"""Figures: the same bytes for the same data, small, and no global settings left behind."""

from __future__ import annotations

import matplotlib as mpl

from lossbook import plots


def draw():
    figure, ax = plots.axes()
    plots.curve_to_floor(ax, [0, 10, 20], [5.0, 3.0, 2.5], floor=2.29)
    return plots.show(figure)


def test_the_same_figure_is_the_same_bytes():
    before = dict(mpl.rcParams)
    first, second = draw(), draw()
    assert first.data == second.data
    assert first.data[:4] == b"\x89PNG"
    assert len(first.data) < 60_000
    assert dict(mpl.rcParams) == before
