"""The built site, a local server for it, and one browser for all of its pages."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import chromium
import pytest
from visits import Visitor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def site() -> Path:
    """The strict build of ``make test``, or else what ``make book`` built last."""
    folder = Path(os.environ.get("LOSSBOOK_SITE") or ROOT / "_build" / "html")
    if not (folder / "index.html").exists():
        pytest.fail(f"there is no built book in {folder}: run make book first", pytrace=False)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="session")
def serve():
    """Serve folders on this machine: ``serve(folder)`` is their address."""
    servers = []

    def start(folder: Path) -> str:
        handler = functools.partial(Quiet, directory=folder)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """A missing browser fails the tests: a page that nobody opened is not a page that works."""
    try:
        with chromium.browser() as running:
            yield running
    except chromium.NoBrowser as missing:
        pytest.fail(str(missing), pytrace=False)


@pytest.fixture(scope="session")
def visit(browser, serve, site):
    """``visit(name)``: what a browser sees on a page of the book; every page is opened once."""
    visitor, seen = Visitor(browser, serve(site)), {}

    def once(name: str):
        if name not in seen:
            seen[name] = visitor.visit(name)
        return seen[name]

    return once
