"""A chapter where nothing of the book is installed, as in Colab.

A fresh environment holds torch, numpy, matplotlib and a kernel; the working directory is empty;
the wheel lies in a folder that pip is told about. The chapter's own first cell has to do the rest.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from chapters import ROOT
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

CHAPTER = ROOT / "notebooks/1-foundations/losses-from-likelihood.ipynb"
PREINSTALLED = ("torch", "numpy", "matplotlib", "ipykernel")


def pinned() -> list[str]:
    """The versions of requirements.txt, for what Colab would bring along."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.partition("==")[0] in PREINSTALLED]


def pip(python: Path | str, *arguments: object) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, cwd=ROOT)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    pip(sys.executable, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Iterator[Path]:
    """An interpreter that has what Colab has, and no lossbook; gone afterwards, for its size."""
    folder = tmp_path_factory.mktemp("colab") / "env"
    venv.create(folder, with_pip=True)
    executable = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip(executable, "install", "--quiet", "--no-compile", *pinned())
    yield executable
    shutil.rmtree(folder, ignore_errors=True)


def without_the_book(wheels: Path, python: Path) -> dict[str, str]:
    """This environment, but nothing in it leads to the working copy."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    links = " ".join(filter(None, [str(wheels), kept.get("PIP_FIND_LINKS")]))
    path = os.pathsep.join([str(python.parent), kept.get("PATH", "")])
    return kept | {"PIP_FIND_LINKS": links, "PATH": path}


def kernel(python: Path, environment: dict[str, str]) -> AsyncKernelManager:
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    manager = AsyncKernelManager(kernel_name="python3")
    manager._kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")
    manager._kernel_spec.env = environment
    return manager


def test_the_environment_does_not_know_the_book(python, tmp_path):
    """Otherwise the next test would prove nothing."""
    code = "import importlib.util as u; raise SystemExit(u.find_spec('lossbook') is not None)"
    environment = without_the_book(tmp_path, python)
    subprocess.run([python, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_a_chapter_runs_from_its_first_cell_to_its_last(wheels, python, tmp_path, monkeypatch):
    environment = without_the_book(wheels, python)
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(CHAPTER, as_version=4)
    manager = kernel(python, environment)
    options = {"km": manager, "timeout": 900, "resources": {"metadata": {"path": str(tmp_path)}}}
    NotebookClient(notebook, **options).execute()
    code = "import lossbook; print(lossbook.__file__)"
    ran = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert Path(ran.stdout.strip()).is_relative_to(python.parents[1]), "not the installed wheel"
