"""Check a built site by itself: every link inside it resolves, nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# Attributes that make a browser fetch something, by element.
LOADS = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "embed": ["src"],
    "object": ["data"],
    "use": ["href"],
}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "manifest"}
CSS_LOAD = re.compile(r"""(?:url\(\s*|@import\s+)["']?((?:https?:)?//[^"')\s]+)""")


class Page(HTMLParser):
    """The anchors that a page offers, the links that it follows, the files that it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if values.get(name)}
        self.loads += [values[name] for name in LOADS.get(tag, []) if values.get(name)]
        self.loads += CSS_LOAD.findall(values.get("style", ""))
        self.in_style = tag == "style"
        if tag == "link":
            loading = LOADING_RELATIONS & set(values.get("rel", "").split())
            (self.loads if loading else self.links).append(values.get("href", ""))
        elif tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "meta" and values.get("http-equiv", "").lower() == "refresh":
            self.links.append(values.get("content", "").partition("url=")[2])

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.loads += CSS_LOAD.findall(data)


@cache
def page_at(path: Path, changed: float) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def read(path: Path) -> Page:
    return page_at(path, path.stat().st_mtime)


def is_foreign(address: str) -> bool:
    return bool(urlsplit(address.strip()).netloc)


def unresolved(site: Path, page: Path, link: str) -> str | None:
    """Why a link of a page leads nowhere, or None."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = unquote(parts.path)
    target = (site / path.lstrip("/") if path.startswith("/") else page.parent / path).resolve()
    target = target if path else page.resolve()
    target = target / "index.html" if target.is_dir() else target
    if not target.is_relative_to(site.resolve()):
        return "leads out of the site"
    if not target.exists():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target.suffix == ".html" and anchor not in read(target).anchors:
        return "no such anchor"
    return None


def problems_of(site: Path, path: Path) -> list[str]:
    page, name = read(path), path.relative_to(site).as_posix()
    found = []
    for address in page.loads:
        addresses = [part.split()[0] for part in address.split(",") if part.strip()]
        single = [address] if address.startswith("data:") else addresses
        found += [f"{name}: loads {a} from another host" for a in single if is_foreign(a)]
        inside = [a for a in single if not is_foreign(a)]
        found += [f"{name}: {a}: {why}" for a in inside if (why := unresolved(site, path, a))]
    found += [
        f"{name}: {link}: {why}" for link in page.links if (why := unresolved(site, path, link))
    ]
    return found


def problems(site: Path) -> list[str]:
    """Everything that does not resolve inside ``site`` and everything loaded from elsewhere."""
    pages = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    found = [problem for path in pages for problem in problems_of(site, path)]
    for path in sorted(site.rglob("*.css")):
        loads = CSS_LOAD.findall(path.read_text(encoding="utf-8", errors="replace"))
        found += [
            f"{path.relative_to(site).as_posix()}: loads {a} from another host" for a in loads
        ]
    return sorted(set(found))


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print(*found, f"{len(found)} problems", sep="\n")
    raise SystemExit(bool(found))
