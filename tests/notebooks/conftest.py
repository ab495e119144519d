"""The code on the page is the code under test: cells are imported out of the notebooks by tag."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@cache
def run_cells(chapter: str, *tags: str) -> SimpleNamespace:
    """What the cells of a chapter define that carry one of the tags, run in reading order."""
    (path,) = NOTEBOOKS.glob(f"*/{chapter}.ipynb")
    names: dict[str, object] = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and set(tags) & set(cell.metadata.get("tags", [])):
            exec(compile(cell.source, f"{path.name}[{cell.id}]", "exec"), names)
    return SimpleNamespace(**{key: value for key, value in names.items() if key[0] != "_"})


@pytest.fixture(scope="session")
def derivation() -> Callable[[str], SimpleNamespace]:
    """``derivation("adam")``: the cells tagged ``derivation`` of that chapter."""
    return lambda chapter: run_cells(chapter, "derivation")


@pytest.fixture(scope="session")
def museum() -> Callable[[str], SimpleNamespace]:
    """``museum("adam")``: the derivation and the rebuilt bugs of that chapter."""
    return lambda chapter: run_cells(chapter, "derivation", "museum")


@pytest.fixture(scope="session")
def solutions() -> Callable[[str], SimpleNamespace]:
    """``solutions("adam")``: the derivation and the solved exercises of that chapter."""
    return lambda chapter: run_cells(chapter, "derivation", "solution")
