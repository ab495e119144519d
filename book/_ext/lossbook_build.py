"""What the book's build needs beyond its extensions: a site that reads without a network."""

from __future__ import annotations

import os
import re
import shutil
from importlib.metadata import distribution
from pathlib import Path

from lossbook_repository import repository_url, theme_options

# The part of MathJax that a page with TeX can ask for: 3 MB of 24.
MATHJAX_PARTS = (
    "tex-chtml.js",
    "output/chtml/fonts/woff-v2/",
    "input/tex/extensions/",
    "a11y/",
    "sre/mathmaps/base.json",
    "sre/mathmaps/en.json",
)
MATHJAX_ROOT = "sphinx-mathjax-offline/static/mathjax/"


def fill_repository(app, config) -> None:
    """Buttons and links only when the repository is known."""
    hub = os.environ.get("LOSSBOOK_JUPYTERHUB_URL")
    config.html_theme_options = theme_options(config.html_theme_options, repository_url(), hub)


def mathjax_files() -> dict[str, Path]:
    """Path inside the site's MathJax folder -> installed file."""
    carrier = distribution("sphinx-mathjax-offline")
    files = {}
    for file in carrier.files or []:
        path = file.as_posix()
        inner = path.removeprefix(MATHJAX_ROOT)
        if inner != path and inner.startswith(MATHJAX_PARTS):
            files[inner] = Path(carrier.locate_file(file))
    return files


def copy_mathjax(app, exception) -> None:
    """Put MathJax beside the pages, so that equations need no other host."""
    if exception is not None or app.builder.format != "html":
        return
    for inner, source in mathjax_files().items():
        target = Path(app.outdir, "_static", "mathjax", inner)
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def drop_repeated_scripts(app, pagename, templatename, context, doctree) -> None:
    """Sphinx 7 emits inline scripts that extensions add late twice, and the second one throws."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        key = (str(getattr(script, "filename", script) or ""), str(body))
        if key not in seen:
            seen.add(key)
            kept.append(script)
    context["script_files"][:] = kept


# Names and roles that the theme and docutils get wrong, each found by axe.
REPAIRS = (
    (r'<div role="list" class="citation-list">', '<div class="citation-list">'),
    (r' role="doc-biblioentry"', ""),
    (r'(<button[^>]*search-button-field[^>]*?) aria-label="Search"', r"\1"),
    (r'(<button[^>]*theme-switch-button[^>]*?) aria-label="Color mode"', r"\1"),
    # sphinx-proof gives every proof the same ids and no title.
    (r' id="proof-content"', ""),
    (
        r'<div class="proof admonition" id="proof">\s*<p>Proof\.',
        '<div class="proof admonition demonstration">\n<p><em>Proof.</em>',
    ),
    (
        r'<div class="sidebar-primary-items__start sidebar-primary__section">',
        '<div class="sidebar-primary-items__start sidebar-primary__section"'
        ' role="navigation" aria-label="Book">',
    ),
)


# A long signature is a list of parameters without terms, which a <dl> must not be.
LONG_SIGNATURE = re.compile(r"<dl>\n((?:<dd><em class=\"sig-param.*?</dd>\n)+)</dl>", re.DOTALL)


def as_lines(match: re.Match) -> str:
    lines = match[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">\n{lines}</span>'


def repair(html: str) -> str:
    for pattern, replacement in REPAIRS:
        html = re.sub(pattern, replacement, html)
    return LONG_SIGNATURE.sub(as_lines, html)


def repair_pages(app, exception) -> None:
    if exception is not None or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        old = page.read_text(encoding="utf-8")
        if (new := repair(old)) != old:
            page.write_text(new, encoding="utf-8")


def merge_singlehtml_handlers(app) -> None:
    """sphinx-exercise registers nodes for "singlehtml" by name, which hides all of "html"."""
    handlers = app.registry.translation_handlers
    if "singlehtml" in handlers:
        handlers["singlehtml"] = {**handlers.get("html", {}), **handlers["singlehtml"]}


def restart_numbers(numbers: dict) -> dict:
    """Per page and kind, 1, 2, 3 in the order of the book-wide numbers.

    {page: {kind: {id: (number,)}}}: chapters carry no number, the book grows in the middle, and
    equation (4) of a chapter should stay equation (4).
    """
    return {
        page: {
            kind: {label: (i,) for i, label in enumerate(sorted(ids, key=ids.get), start=1)}
            for kind, ids in kinds.items()
        }
        for page, kinds in numbers.items()
    }


def before_numbering(app, env) -> list[str]:
    """Give Sphinx its own numbers back, so that it rewrites only pages whose numbers changed."""
    env.toc_fignumbers = getattr(env, "lossbook_fignumbers", {})
    return []


def after_numbering(app, env) -> list[str]:
    env.lossbook_fignumbers = env.toc_fignumbers
    env.toc_fignumbers = restart_numbers(env.toc_fignumbers)
    return []


def setup(app):
    app.connect("config-inited", fill_repository, priority=100)
    app.connect("builder-inited", merge_singlehtml_handlers)
    app.connect("env-get-updated", before_numbering, priority=100)
    app.connect("env-get-updated", after_numbering, priority=900)
    app.connect("html-page-context", drop_repeated_scripts, priority=900)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", repair_pages, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
