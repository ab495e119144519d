"""The build itself: strict, never green after red, and honest about where the repository is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from chapters import ROOT
from execute import METADATA
from lossbook_build import mathjax_files, repair, restart_numbers
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

TOC = "format: jb-book\nroot: book/intro\nchapters:\n- file: notebooks/one\n"
INTRO = "# A small book\n\n$\\E[x]$ and {{doc}}`/notebooks/{target}`.\n"


@pytest.fixture
def small_book(tmp_path):
    """The book's own machinery around two pages, far from any repository."""
    source = tmp_path / "small"
    shutil.copytree(ROOT / "book" / "_ext", source / "book" / "_ext")
    shutil.copytree(ROOT / "book" / "_static", source / "book" / "_static")
    shutil.copy(ROOT / "_config.yml", source)
    (source / "notebooks").mkdir()
    (source / "_toc.yml").write_text(TOC)
    cells = [new_markdown_cell("# One"), new_code_cell("1", execution_count=1)]
    notebook = new_notebook(cells=cells, metadata=METADATA)
    nbformat.write(notebook, source / "notebooks" / "one.ipynb")
    (source / "book" / "references.bib").write_text("@misc{a, title={A}, author={B}, year={2000}}")
    return source


def build(source, target: str, what: str = "html", **variables: str) -> subprocess.CompletedProcess:
    (source / "book" / "intro.md").write_text(INTRO.format(target=target))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LOSSBOOK_")}
    environment |= {"GIT_CEILING_DIRECTORIES": str(source.parent), **variables}
    command = [sys.executable, ROOT / "tools" / "book.py", what, "--source", source]
    command += ["--output", source / "_build"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_failed_build_is_not_followed_by_a_passing_one(small_book):
    """Sphinx alone passes the second time: it does not repeat the warnings of a page it knows."""
    for _ in range(2):
        result = build(small_book, "gone")
        assert result.returncode != 0
        assert "unknown document" in result.stderr
        assert "was not built" in result.stderr
    mended = build(small_book, "one")
    assert mended.returncode == 0, mended.stderr
    assert "Open file://" in mended.stdout
    page = (small_book / "_build/html/notebooks/one.html").read_text()
    assert "github.com" not in page
    assert "colab" not in page.lower()


def test_a_known_repository_gets_its_buttons(small_book):
    result = build(small_book, "one", LOSSBOOK_REPOSITORY_URL="https://github.com/ada/lossbook")
    assert result.returncode == 0, result.stderr
    page = (small_book / "_build/html/notebooks/one.html").read_text()
    assert "https://github.com/ada/lossbook/issues" in page
    assert "colab.research.google.com/github/ada/lossbook/blob/main/notebooks/one" in page


def test_the_whole_book_is_printed(small_book):
    result = build(small_book, "one", "pdf")
    assert result.returncode == 0, result.stderr
    pdf = (small_book / "_build/pdf/the-loss-book.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    # The preface and, on a page of its own, the chapter; fonts make up most of the size.
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 2
    assert len(pdf) > 10_000


def test_numbers_restart_on_each_page_in_the_order_of_the_book():
    book = {"a": {"figure": {"x": (1,)}}, "b": {"figure": {"z": (3,), "y": (2,)}, "table": {}}}
    page = {"a": {"figure": {"x": (1,)}}, "b": {"figure": {"y": (1,), "z": (2,)}, "table": {}}}
    assert restart_numbers(book) == page


def test_the_needed_part_of_mathjax_is_found():
    files = mathjax_files()
    assert "tex-chtml.js" in files
    assert all(path.exists() for path in files.values())
    assert sum(path.stat().st_size for path in files.values()) < 5_000_000


def test_long_signatures_become_lines():
    parameter = '<dd><em class="sig-param">{}</em>,</dd>\n'
    html = f"<dl>\n{parameter.format('a')}{parameter.format('b')}</dl>"
    assert "<dl>" not in repair(html)
    assert repair(html).count('class="sig-line"') == 2
    other = "<dl>\n<dt>a</dt>\n<dd>b</dd>\n</dl>"
    assert repair(other) == other
