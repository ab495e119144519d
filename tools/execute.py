"""Re-run chapters and store what they print: ``python tools/execute.py [path.ipynb ...]``.

A fresh kernel in the notebook's own folder, cell by cell. The stored file holds no time, no
version and no machine, so that running it twice changes nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import chapters
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "pygments_lexer": "ipython3",
    },
}
# What JupyterLab leaves behind in a cell.
TRANSIENT = (
    "execution",
    "ExecuteTime",
    "lines_to_next_cell",
    "collapsed",
    "scrolled",
    "editable",
    "slideshow",
    "jupyter",
)


def formatted(path: Path) -> None:
    """Source first, so that what ran is what is stored."""
    ruff = [sys.executable, "-m", "ruff"]
    subprocess.run([*ruff, "check", "--fix", "--quiet", str(path)], check=False)
    subprocess.run([*ruff, "format", "--quiet", str(path)], check=True)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from run to run and from machine to machine."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for key in TRANSIENT:
            cell.metadata.pop(key, None)
    return notebook


def run(notebook: nbformat.NotebookNode, folder: Path, timeout: int = 600) -> nbformat.NotebookNode:
    """Execute every cell in a fresh kernel that works in ``folder``.

    What a cell prints arrives in pieces whose number is chance; it is stored as one.
    """
    options = {"timeout": timeout, "kernel_name": "python3", "record_timing": False}
    options["coalesce_streams"] = True
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()
    return tidy(notebook)


def execute(path: Path) -> None:
    formatted(path)
    notebook = run(nbformat.read(path, as_version=4), path.parent)
    # Written beside and moved, so that a run cut short leaves the old file whole.
    part = path.with_suffix(".ipynb.part")
    nbformat.write(notebook, part)
    part.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all chapters of _toc.yml if none")
    paths = parser.parse_args().notebooks or chapters.notebooks()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    failed = 0
    for path in paths:
        start = time.perf_counter()
        try:
            execute(path.resolve())
            print(f"{path}: stored, {time.perf_counter() - start:.1f} s", flush=True)
        except CellExecutionError as error:
            failed += 1
            print(f"{path}: left as it was\n{error}", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
