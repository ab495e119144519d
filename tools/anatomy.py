"""What every stored chapter must be: executed, clean, and whole."""

from __future__ import annotations

import re
from pathlib import Path

import chapters
import nbformat
import yaml

LARGEST = 1_000_000  # bytes
PICTURES = ("image/png", "image/svg+xml", "image/jpeg")
TRANSIENT = {"execution", "ExecuteTime"}
# Directives with their label; solutions name the exercise that they answer.
EXERCISE = re.compile(
    r"[`:]{3,}\{exercise(?:-start)?\}.*?^:label:\s*(\S+)", re.DOTALL | re.MULTILINE
)
SOLUTION = re.compile(r"[`:]{3,}\{solution(?:-start)?\}\s*(\S+)")
CITATION = re.compile(r"\{cite(?::\w+)?\}`")
HEADINGS = {
    "the bug museum": r"^##.*museum",
    "exercises": r"^##.*exercise",
    "in the wild": r"^##.*in the wild",
    "a summary": r"^##.*summary",
}


def source(cell) -> str:
    return cell.source


def tags(cell) -> set[str]:
    return set(cell.metadata.get("tags", []))


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def execution(notebook) -> list[str]:
    """Every code cell ran, in order, once, and none failed unless it says that it should."""
    cells, found = code_cells(notebook), []
    counts = [cell.execution_count for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        found.append(f"execution counts are {counts}, not 1 to {len(cells)}: run make execute")
    for cell in cells:
        failed = any(output.output_type == "error" for output in cell.outputs)
        if failed and "raises-exception" not in tags(cell):
            found.append(f"stores an error: {cell.source[:60]!r}")
        if not cell.source.strip():
            found.append("an empty code cell")
    return found


def cleanliness(notebook) -> list[str]:
    """No time, no version, no other kernel, and an id for every cell."""
    found = [
        f"cell {i} stores {sorted(TRANSIENT & set(cell.metadata))}"
        for i, cell in enumerate(notebook.cells)
        if TRANSIENT & set(cell.metadata)
    ]
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if "version" in notebook.metadata.get("language_info", {}):
        found.append("stores the version of Python that ran it")
    ids = [cell.get("id") for cell in notebook.cells]
    if None in ids or len(set(ids)) < len(ids):
        found.append("cell ids are missing or repeated")
    return found


def figures(notebook) -> list[str]:
    """Every picture has a caption, a name and a description for those who cannot see it."""
    found = []
    for cell in code_cells(notebook):
        data = [output.get("data", {}) for output in cell.outputs]
        if not any(kind in entry for entry in data for kind in PICTURES):
            continue
        rendering = cell.metadata.get("mystnb", {})
        if len(rendering.get("image", {}).get("alt", "")) < 20:
            found.append(f"no mystnb.image.alt of 20 letters or more: {cell.source[:60]!r}")
        if not {"name", "caption"} <= set(rendering.get("figure", {})):
            found.append(f"no mystnb.figure with name and caption: {cell.source[:60]!r}")
    return found


def set_up(notebook) -> list[str]:
    """The first code cell imports the package and installs it where it is missing."""
    first = code_cells(notebook)[0].source if code_cells(notebook) else ""
    if 'find_spec("lossbook")' in first and '%pip install -q "lossbook' in first:
        return []
    return ["the first code cell is not the set-up: %pip install lossbook where it is missing"]


def parts(notebook) -> list[str]:
    """The cells and sections that every chapter has."""
    text, all_tags = text_of(notebook), set().union(*map(tags, notebook.cells))
    found = [f"no cell tagged {tag}" for tag in ("derivation", "museum") if tag not in all_tags]
    found += [
        f"no section for {name}"
        for name, pattern in HEADINGS.items()
        if not re.search(pattern, text, re.IGNORECASE | re.MULTILINE)
    ]
    if not notebook.cells or not notebook.cells[0].source.startswith("# "):
        found.append("the first cell is not the title")
    if not CITATION.search(text):
        found.append("no citation")
    return found


def exercises(notebook) -> list[str]:
    """Three or more exercises, each with a solution."""
    text = text_of(notebook)
    asked, answered = EXERCISE.findall(text), SOLUTION.findall(text)
    found = [f"exercise {label} has no solution" for label in asked if label not in answered]
    found += [
        f"solution of {label}, which is no exercise" for label in answered if label not in asked
    ]
    if len(asked) < 3:
        found.append(f"{len(asked)} exercises with a label, not three or more")
    return found


def mathematics(notebook) -> list[str]:
    """JupyterLab and Colab do not know the macros that the book's pages have."""
    config = yaml.safe_load((chapters.ROOT / "_config.yml").read_text(encoding="utf-8"))
    macros = config["sphinx"]["config"]["mathjax3_config"]["tex"]["macros"]
    used = sorted(set(re.findall(r"\\([A-Za-z]+)", text_of(notebook))) & set(macros))
    return [f"uses macros that JupyterLab does not know: {used}"] if used else []


CHECKS = (execution, cleanliness, figures, set_up, parts, exercises, mathematics)


def problems(path: Path) -> list[str]:
    """Everything that keeps a stored chapter from being whole."""
    notebook = nbformat.read(path, as_version=4)
    size = path.stat().st_size
    found = [f"{size / 1e6:.1f} MB, not below {LARGEST / 1e6:.0f} MB"] if size >= LARGEST else []
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        found.append(f"not a valid notebook: {error}")
    return found + [problem for check in CHECKS for problem in check(notebook)]
