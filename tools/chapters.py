"""What _toc.yml says: the pages of the book and the notebooks among them."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def entries(node: object) -> list[str]:
    """The files below a node of the table of contents, in reading order."""
    if isinstance(node, list):
        return [file for item in node for file in entries(item)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("root", "file") if key in node]
    return own + [
        file for key in ("parts", "chapters", "sections") for file in entries(node.get(key))
    ]


def pages(root: Path = ROOT) -> list[str]:
    """Every page without its suffix, as _toc.yml writes it."""
    return entries(yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8")))


def notebooks(root: Path = ROOT) -> list[Path]:
    """The chapters: the pages of the book that are notebooks."""
    return [path for page in pages(root) if (path := root / f"{page}.ipynb").exists()]
