"""Open a page as a reader would, light, dark and on a phone, and write down what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
from importlib import resources
from urllib.parse import urlsplit

from playwright.sync_api import TimeoutError

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
SERIOUS = {"serious", "critical"}

SETTLED = """async () => {
    if (window.MathJax?.startup?.promise) await MathJax.startup.promise;
    const images = [...document.images];
    images.forEach(image => image.loading = 'eager');
    await Promise.all(images.map(image => image.decode().catch(() => null)));
}"""
EQUATIONS = """() => ({
    written: document.querySelectorAll('.math').length,
    rendered: [...document.querySelectorAll('.math')].filter(
        e => e.querySelector('mjx-container')).length,
    errors: [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map(
        e => e.getAttribute('data-mjx-error') || e.textContent),
    unknown: [...document.querySelectorAll('mjx-container [style*="color: red"]')].map(
        e => e.textContent || e.outerHTML.slice(0, 80)),
})"""
FIGURES = """() => [...document.querySelectorAll('main img')].map(image => ({
    source: image.getAttribute('src').slice(0, 120), alt: image.getAttribute('alt'),
    width: image.naturalWidth, drawn: image.getBoundingClientRect().width}))"""
# Elements that are wider than the window and not inside something that scrolls.
OVERFLOW = """() => {
    const wide = document.documentElement.scrollWidth - window.innerWidth;
    if (wide <= 0) return [];
    const sticks = e => e.getBoundingClientRect().right > window.innerWidth + 1;
    const clips = e => getComputedStyle(e).overflowX !== 'visible';
    const scrolls = e => e && (clips(e) || scrolls(e.parentElement));
    const guilty = [...document.querySelectorAll('main *')].filter(
        e => sticks(e) && !scrolls(e.parentElement));
    return [`${wide} px too wide`, ...guilty.slice(0, 5).map(e => e.outerHTML.slice(0, 120))];
}"""
COLOURS = """() => {
    const main = document.querySelector('main p') || document.body;
    const ground = e => getComputedStyle(e).backgroundColor;
    let behind = main;
    while (behind && ground(behind) === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
    return [getComputedStyle(main).color, behind ? ground(behind) : 'rgb(255, 255, 255)'];
}"""

THEME = "scheme => document.documentElement.dataset.theme === scheme"
# axe needs a minute for a reference of 20,000 elements; a dozen definitions show all its markup.
THIN = "() => [...document.querySelectorAll('section > dl.py')].slice(12).forEach(e => e.remove())"
# Without preload: axe would ask again for style sheets, at addresses that are not theirs.
AXE = "rules => axe.run(document, {preload: false, resultTypes: ['violations'], ...rules})"
# What the second colour scheme can change; the rest of the page is the same.
COLOUR_RULES = {"runOnly": {"type": "rule", "values": ["color-contrast", "link-in-text-block"]}}


@dataclasses.dataclass
class Visit:
    """What one page showed."""

    console: list[str] = dataclasses.field(default_factory=list)
    foreign: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    equations: dict = dataclasses.field(default_factory=dict)
    figures: list[dict] = dataclasses.field(default_factory=list)
    themes: dict[str, str] = dataclasses.field(default_factory=dict)
    colours: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    overflow: list[str] = dataclasses.field(default_factory=list)
    violations: dict[str, list[str]] = dataclasses.field(default_factory=dict)


def channels(colour: str) -> list[float]:
    return [float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]]


def luminance(colour: str) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in channels(colour))
    ]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, from 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


class Visitor:
    """Opens the pages of one site in one browser."""

    def __init__(self, browser, address: str):
        self.browser, self.address = browser, address
        self.axe = (
            resources.files("axe_playwright_python").joinpath("axe.min.js").read_text("utf-8")
        )

    def listen(self, page, visit: Visit) -> None:
        host = urlsplit(self.address).netloc

        def note_request(request) -> None:
            parts = urlsplit(request.url)
            if parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != host:
                visit.foreign.append(request.url)

        def note_response(response) -> None:
            if response.status >= 400:
                visit.missing.append(f"{response.status} {response.url}")

        def note_console(message) -> None:
            if message.type in ("error", "warning"):
                visit.console.append(f"{message.type}: {message.text}")

        page.on("request", note_request)
        page.on("response", note_response)
        page.on("console", note_console)
        page.on("pageerror", lambda error: visit.console.append(f"exception: {error}"))

    def violations(self, page, rules: dict) -> list[str]:
        """Serious and critical findings of axe, with the first places."""
        result = page.evaluate(AXE, rules)
        return [
            f"{found['impact']} {found['id']}: "
            + " | ".join(n["html"][:160] for n in found["nodes"][:4])
            for found in result["violations"]
            if found["impact"] in SERIOUS
        ]

    def look(self, page, visit: Visit, scheme: str, rules: dict) -> None:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        with contextlib.suppress(TimeoutError):
            page.wait_for_function(THEME, arg=scheme, timeout=2000)
        visit.themes[scheme] = page.evaluate("document.documentElement.dataset.theme || ''")
        visit.colours[scheme] = page.evaluate(COLOURS)
        visit.violations[scheme] = self.violations(page, rules)

    def visit(self, name: str) -> Visit:
        visit = Visit()
        context = self.browser.new_context(viewport=DESKTOP, color_scheme="light")
        page = context.new_page()
        self.listen(page, visit)
        page.goto(f"{self.address}/{name}", wait_until="load")
        page.evaluate(SETTLED)
        visit.equations, visit.figures = page.evaluate(EQUATIONS), page.evaluate(FIGURES)
        page.set_viewport_size(PHONE)
        page.wait_for_timeout(100)
        visit.overflow = page.evaluate(OVERFLOW)
        page.set_viewport_size(DESKTOP)
        page.evaluate(THIN)
        page.evaluate(self.axe)
        self.look(page, visit, "light", {})
        self.look(page, visit, "dark", COLOUR_RULES)
        context.close()
        return visit
