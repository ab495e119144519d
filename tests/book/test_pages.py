"""Every page in a real browser: equations, figures, dark mode, phone, console, hosts, access."""

from __future__ import annotations

import chapters
import pytest
from visits import Visitor, contrast

PAGES = [f"{page}.html" for page in chapters.pages()]
every_page = pytest.mark.parametrize("name", [*PAGES, "search.html"])


@every_page
def test_equations_are_rendered(visit, name):
    equations = visit(name).equations
    assert equations["rendered"] == equations["written"]
    assert not equations["errors"], "TeX errors"
    assert not equations["unknown"], "macros that MathJax does not know"


@every_page
def test_figures_are_there_and_described(visit, name):
    for figure in visit(name).figures:
        assert figure["width"] > 0, f"not loaded: {figure}"
        described = figure["alt"] and not figure["alt"].endswith((".png", ".svg", ".jpg"))
        assert described, f"no description: {figure}"


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_readers_colours(visit, name, scheme):
    seen = visit(name)
    assert seen.themes[scheme] == scheme
    # 7 is WCAG's enhanced level for body text.
    assert contrast(*seen.colours[scheme]) >= 7
    dark_side = seen.colours[scheme][scheme == "dark"]
    assert contrast(dark_side, "rgb(0, 0, 0)") < 4, "text and background are swapped"


@every_page
def test_nothing_sticks_out_on_a_phone(visit, name):
    assert not visit(name).overflow


@every_page
def test_the_console_is_quiet(visit, name):
    assert not visit(name).console


@every_page
def test_no_other_host_is_asked(visit, name):
    assert not visit(name).foreign
    assert not visit(name).missing


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_barrier(visit, name, scheme):
    assert not visit(name).violations[scheme]


BROKEN = """<!doctype html><html lang="en" data-theme="light"><head><title>Broken</title>
<script src="http://localhost:9/analytics.js"></script></head><body><main>
<p style="color:#999;background:#aaa">Grey on grey.</p>
<span class="math">\\(x\\)</span>
<img src="nowhere.png"><div style="width:900px">wide</div>
<script>console.error("planted"); undefined_name;</script></main></body></html>"""


def test_a_broken_page_is_seen_to_be_broken(browser, serve, tmp_path):
    """Each of the checks above can fail: one page that has every fault."""
    (tmp_path / "broken.html").write_text(BROKEN, encoding="utf-8")
    seen = Visitor(browser, serve(tmp_path)).visit("broken.html")
    assert seen.equations == {"written": 1, "rendered": 0, "errors": [], "unknown": []}
    assert seen.figures[0]["width"] == 0
    assert seen.figures[0]["alt"] is None
    assert seen.themes["dark"] == "light"
    assert contrast(*seen.colours["light"]) < 2
    assert seen.overflow[0].endswith("px too wide")
    assert "error: planted" in seen.console
    assert any("undefined_name" in line for line in seen.console)
    assert seen.foreign == ["http://localhost:9/analytics.js"]
    assert any("nowhere.png" in line for line in seen.missing)
    found = " ".join(seen.violations["light"])
    assert "image-alt" in found
    assert "color-contrast" in found
    assert "color-contrast" in " ".join(seen.violations["dark"])


def test_contrast_is_wcags():
    assert contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)") == pytest.approx(21)
    # The well-known grey that just passes on white.
    assert contrast("rgb(118, 118, 118)", "rgb(255, 255, 255)") == pytest.approx(4.54, abs=0.01)
