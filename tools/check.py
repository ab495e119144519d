"""Run every check of the project and end with a clear verdict: ``python tools/check.py``."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import chapters
import chromium

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "_build" / "test" / "_build"
SANITIZE = "tests/notebooks/sanitize.cfg"
# One thread a process: the workers share the cores. Nothing may ask a model hub.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LOSSBOOK_SITE": str(OUTPUT / "html"),
}


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def workers() -> int:
    """Two to four: each holds torch, jax and perhaps a kernel in memory."""
    return max(2, min(4, os.cpu_count() or 2))


def pytest(*extra: str) -> list[str]:
    """Tests and notebooks in one run; a file, and so a notebook, stays on one worker."""
    notebooks = [path.relative_to(ROOT) for path in chapters.notebooks()]
    nbval = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", SANITIZE]
    nbval += ["--nbval-cell-timeout", "300"]
    spread = ["-n", workers(), "--dist", "loadfile"]
    return module("pytest", "-q", "tests", *notebooks, *nbval, *spread, "--durations=10", *extra)


def steps(extra: list[str]) -> dict[str, list[str]]:
    build = [sys.executable, "tools/book.py", "html", "--clean", "--output", str(OUTPUT)]
    return {
        "style (ruff check)": module("ruff", "check", "."),
        "style (ruff format)": module("ruff", "format", "--check", "."),
        "spelling (codespell)": [sys.executable, "-m", "codespell_lib"],
        "strict book build": build,
        "tests, notebooks, pages (pytest)": pytest(*extra),
    }


def run(name: str, command: list[str]) -> tuple[bool, float]:
    print(f"\n== {name}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, cwd=ROOT, env=os.environ | ENVIRONMENT).returncode
    return code == 0, time.perf_counter() - start


def warn_about_browser() -> None:
    """Say it before the long run and not only at its end."""
    try:
        with chromium.browser():
            pass
    except chromium.NoBrowser as missing:
        print(f"The tests of the pages will fail: {missing}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pytest", nargs="*", help="more arguments for pytest, after --")
    extra = parser.parse_args().pytest
    warn_about_browser()
    start = time.perf_counter()
    results = {name: run(name, command) for name, command in steps(extra).items()}
    print()
    for name, (passed, seconds) in results.items():
        print(f"{'passed' if passed else 'FAILED'}  {seconds:6.1f} s  {name}")
    good = all(passed for passed, _ in results.values())
    print(f"{'PASSED' if good else 'FAILED'}  {time.perf_counter() - start:6.1f} s  everything")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
