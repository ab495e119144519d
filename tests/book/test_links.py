"""The built site by itself: every link resolves, nothing comes from another host."""

from __future__ import annotations

import chapters
from links import problems


def test_every_page_of_the_contents_is_built(site):
    assert [page for page in chapters.pages() if not (site / f"{page}.html").exists()] == []


def test_every_link_resolves_and_nothing_is_loaded_from_elsewhere(site):
    assert problems(site) == []


def test_mathjax_is_copied_with_its_fonts(site):
    mathjax = site / "_static" / "mathjax"
    assert (mathjax / "tex-chtml.js").stat().st_size > 1_000_000
    assert (mathjax / "input/tex/extensions/mathtools.js").exists()
    assert list((mathjax / "output/chtml/fonts/woff-v2").glob("*.woff"))


PLANTED = """<html><head><link rel="stylesheet" href="https://fonts.example/inter.css">
<script src="//cdn.example/x.js"></script><style>@import "https://fonts.example/y.css";</style></head>
<body><h1 id="top">Here</h1><a href="#top">good</a><a href="other.html#end">good</a>
<a href="https://example.org/">good</a><a href="mailto:a@example.org">good</a>
<a href="#bottom">no anchor</a><a href="other.html#middle">no anchor</a>
<a href="gone.html">no file</a>
<a href="../../outside.html">outside</a><img src="gone.png"><img src="data:image/png;base64,AAAA">
</body></html>"""


def test_planted_faults_are_found_and_nothing_else(tmp_path):
    (tmp_path / "index.html").write_text(PLANTED, encoding="utf-8")
    (tmp_path / "other.html").write_text('<p id="end">there</p>', encoding="utf-8")
    (tmp_path / "own.css").write_text("a { background: url('https://cdn.example/z.png') }")
    assert problems(tmp_path) == [
        "index.html: #bottom: no such anchor",
        "index.html: ../../outside.html: leads out of the site",
        "index.html: gone.html: no such file",
        "index.html: gone.png: no such file",
        "index.html: loads //cdn.example/x.js from another host",
        "index.html: loads https://fonts.example/inter.css from another host",
        "index.html: loads https://fonts.example/y.css from another host",
        "index.html: other.html#middle: no such anchor",
        "own.css: loads https://cdn.example/z.png from another host",
    ]
