"""Stored chapters are executed, clean and whole; and the check notices when they are not."""

from __future__ import annotations

import copy
from pathlib import Path

import anatomy
import chapters
import nbformat
import pytest
from execute import METADATA
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

NOTEBOOKS = sorted((chapters.ROOT / "notebooks").rglob("*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_chapter_is_whole(path):
    assert anatomy.problems(path) == []


def test_every_notebook_is_in_the_contents():
    assert sorted(chapters.notebooks()) == NOTEBOOKS


EXERCISE = """```{{exercise}}
:label: ex-{0}
Show it.
```

```{{solution}} ex-{0}
:class: dropdown
So.
```"""
SETUP = (
    "from importlib.util import find_spec\n\n"
    'if find_spec("lossbook") is None:\n    %pip install -q "lossbook[oracles]"'
)
FIGURE = {
    "figure": {"name": "fig-one", "caption": "One."},
    "image": {"alt": "A curve that falls towards a line."},
}


def whole():
    """The smallest chapter that passes."""
    markdown = ["# Title", "{cite:t}`kingma2015`", "## In the wild", "## Bug museum"]
    markdown += ["## Exercises", *(EXERCISE.format(i) for i in "abc"), "## Summary"]
    picture = new_output("display_data", data={"image/png": "AAAA"})
    code = [
        new_code_cell(SETUP, execution_count=1),
        new_code_cell("x = 1", execution_count=2, metadata={"tags": ["derivation"]}),
        new_code_cell("y = 2", execution_count=3, metadata={"tags": ["museum"]}),
        new_code_cell("plot()", execution_count=4, outputs=[picture], metadata={"mystnb": FIGURE}),
    ]
    cells = [new_markdown_cell(markdown[0]), *code, *map(new_markdown_cell, markdown[1:])]
    return new_notebook(cells=cells, metadata=copy.deepcopy(METADATA))


def found(notebook, folder: Path) -> list[str]:
    path = folder / "chapter.ipynb"
    nbformat.write(notebook, path)
    return anatomy.problems(path)


def test_a_whole_chapter_passes(tmp_path):
    assert found(whole(), tmp_path) == []


def code(notebook, i):
    return anatomy.code_cells(notebook)[i]


def drop_markdown(notebook, start):
    notebook.cells = [cell for cell in notebook.cells if not cell.source.startswith(start)]


def fail(notebook):
    code(notebook, 1).outputs = [new_output("error", ename="E", evalue="", traceback=[])]


FAULTS = {
    "execution counts": lambda n: code(n, 2).update(execution_count=None),
    "not 1 to": lambda n: code(n, 1).update(execution_count=7),
    "stores an error": fail,
    "stores ['execution']": lambda n: code(n, 0).metadata.update(execution={"iopub": "now"}),
    "kernel is not python3": lambda n: n.metadata.kernelspec.update(name="venv"),
    "version of Python": lambda n: n.metadata.language_info.update(version="3.11.7"),
    "mystnb.image.alt": lambda n: code(n, 3).metadata.mystnb.image.update(alt="plot"),
    "mystnb.figure": lambda n: code(n, 3).metadata.mystnb.pop("figure"),
    "is not the set-up": lambda n: code(n, 0).update(source="import lossbook"),
    "tagged derivation": lambda n: code(n, 1).metadata.update(tags=[]),
    "tagged museum": lambda n: code(n, 2).metadata.update(tags=[]),
    "no citation": lambda n: drop_markdown(n, "{cite"),
    "section for the bug museum": lambda n: drop_markdown(n, "## Bug"),
    "has no solution": lambda n: n.cells[-2].update(source=EXERCISE.format("c").split("\n\n")[0]),
    "2 exercises": lambda n: n.cells.pop(-2),
    "not the title": lambda n: n.cells.pop(0),
    "MB": lambda n: code(n, 3).outputs[0].data.update({"image/png": "A" * 1_000_000}),
    "macros that JupyterLab": lambda n: n.cells[0].update(source=n.cells[0].source + r" $\E x$"),
    "empty code cell": lambda n: code(n, 1).update(source=" "),
}


@pytest.mark.parametrize("message", FAULTS)
def test_each_planted_fault_is_found(message, tmp_path):
    notebook = whole()
    FAULTS[message](notebook)
    problems = found(notebook, tmp_path)
    assert len(problems) == 1
    assert message in problems[0]
