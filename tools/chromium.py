"""Find and start a Chromium, for the PDF and for the tests of the pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
MAC = ("Google Chrome", "Chromium", "Microsoft Edge")
MISSING = """no Chromium found. Install one of
    apt-get install chromium                        (Debian)
    .venv/bin/python -m playwright install chromium (any system)
or name an executable in LOSSBOOK_CHROMIUM."""


class NoBrowser(RuntimeError):
    """No Chromium on this machine."""


def executable(own: str) -> str:
    """The named browser, playwright's own, or the first one installed on this machine."""
    named = os.environ.get("LOSSBOOK_CHROMIUM")
    apps = [f"/Applications/{name}.app/Contents/MacOS/{name}" for name in MAC]
    found = [named] if named else [own, *map(shutil.which, NAMES), *apps]
    for path in found:
        if path and Path(path).exists():
            return path
    raise NoBrowser(f"{named} does not exist: {MISSING}" if named else MISSING)


@contextlib.contextmanager
def browser() -> Iterator:
    """A headless Chromium driven by playwright; one start serves many pages."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = executable(playwright.chromium.executable_path)
        # A container's root has no sandbox, and its /dev/shm is small.
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield chromium
        finally:
            chromium.close()
