"""Build the book: ``python tools/book.py html``, ``pdf`` or ``serve``."""

from __future__ import annotations

import argparse
import functools
import http.server
import os
import shutil
import subprocess
import sys
from pathlib import Path

from chromium import browser

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "_build"


def newest(folder: Path) -> float:
    return max(path.stat().st_mtime for path in folder.rglob("*.py"))


def forget(output: Path) -> None:
    """Sphinx repeats no warning of a page it has read: after a failure, read everything again."""
    shutil.rmtree(output / ".doctrees", ignore_errors=True)


def jupyter_book(output: Path, builder: str = "html", source: Path = ROOT) -> int:
    """Run jupyter-book strictly into ``output/<builder>``; the exit code is its own."""
    doctrees = output / ".doctrees"
    if doctrees.exists() and doctrees.stat().st_mtime < newest(source / "book" / "_ext"):
        forget(output)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(output.parent), "--builder", builder]
    command += ["--warningiserror", "--nitpick", "--keep-going", "--quiet"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MPLBACKEND": "agg"}
    code = subprocess.run(command, env=environment, cwd=source).returncode
    if code:
        forget(output)
    return code


def html(output: Path, clean: bool, source: Path) -> int:
    """The site; ``output`` must be a folder named _build, because jupyter-book insists on it."""
    if clean:
        shutil.rmtree(output, ignore_errors=True)
    code = jupyter_book(output, source=source)
    if code:
        print("\nThe book was not built: see the warnings above.", file=sys.stderr)
    else:
        print(f"\nThe book is built. Open {(output / 'html' / 'index.html').as_uri()}")
    return code


def single_page(output: Path, source: Path) -> Path:
    """The whole book as one page beside its assets."""
    if code := jupyter_book(output, "singlehtml", source):
        raise SystemExit(code)
    site = output / "singlehtml"
    # The page is written into the folder of the root document, with links that start at the top.
    page = site / "whole-book.html"
    shutil.copyfile(site / "book" / "intro.html", page)
    return page


def print_page(page: Path, target: Path) -> None:
    """Let Chromium print a page once its equations and figures are there."""
    with browser() as chromium:
        tab = chromium.new_page()
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_function("window.MathJax?.startup?.promise !== undefined", timeout=60_000)
        tab.evaluate("() => MathJax.startup.promise")
        tab.evaluate(
            "() => Promise.all([...document.images].map(i => (i.loading='eager', i.decode())))"
        )
        # A reader of paper cannot unfold anything.
        tab.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
        margin = {"top": "18mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
        target.parent.mkdir(parents=True, exist_ok=True)
        tab.pdf(
            path=target,
            format="A4",
            margin=margin,
            outline=True,
            tagged=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template='<div style="width:100%;text-align:center;font-size:8px">'
            '<span class="pageNumber"></span></div>',
        )


def pdf(output: Path, clean: bool, source: Path) -> int:
    if clean:
        shutil.rmtree(output, ignore_errors=True)
    target = output / "pdf" / "the-loss-book.pdf"
    print_page(single_page(output, source), target)
    print(f"\nThe book is printed. Open {target.as_uri()}")
    return 0


def serve(output: Path, port: int) -> int:
    """Serve the built site on this machine only."""
    site = output / "html"
    if not (site / "index.html").exists():
        print("There is no built book yet: run make book first.", file=sys.stderr)
        return 1
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        print(f"The book is at http://127.0.0.1:{server.server_port}/ (stop with Ctrl-C)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["html", "pdf", "serve"])
    parser.add_argument("--output", type=Path, default=BUILD, help="a folder named _build")
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--clean", action="store_true", help="start from nothing")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    output, source = options.output.resolve(), options.source.resolve()
    if output.name != "_build":
        parser.error(f"--output: expected a folder named _build, got {options.output}")
    if options.what == "serve":
        return serve(output, options.port)
    return (html if options.what == "html" else pdf)(output, options.clean, source)


if __name__ == "__main__":
    raise SystemExit(main())
