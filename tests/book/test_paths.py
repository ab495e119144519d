"""The interactive figure of paths: its numbers are lossbook's, its keys work, axe has no objection.

The markup comes out of the chapter and is served beside the real script and style sheet, so these
tests need a browser but no built book; the last one looks at the built page.
"""

from __future__ import annotations

import re
import shutil

import chapters
import nbformat
import numpy as np
import pytest
import torch
from visits import OVERFLOW, PHONE, Visit, Visitor

from lossbook import optim

CHAPTER = "notebooks/5-optimizers/gradient-descent"
STATIC = chapters.ROOT / "book" / "_static"
PAGE = """<!doctype html><html lang="en" data-theme="light"><head><title>Paths</title>
<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>
:root {{ --pst-color-text-base: #222; --pst-color-background: #fff; --pst-color-link: #0a4fb0; }}
@media (prefers-color-scheme: dark) {{ :root {{ --pst-color-text-base: #ddd;
  --pst-color-background: #121212; --pst-color-link: #8ab4f8; }}
  body {{ background: #121212; color: #ddd; }} }}
</style></head><body><main><h1>Paths</h1>
{}
</main></body></html>"""


@pytest.fixture(scope="module")
def markup() -> str:
    """The raw HTML of the chapter's cell, up to the blank line that ends it."""
    notebook = nbformat.read(chapters.ROOT / f"{CHAPTER}.ipynb", as_version=4)
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    return re.search(r'<div class="paths-figure".*?(?=\n\n)', text, re.DOTALL).group(0)


@pytest.fixture(scope="module")
def address(markup, serve, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(STATIC, folder / "_static")
    page = folder / f"{CHAPTER}.html"
    page.parent.mkdir(parents=True)
    page.write_text(PAGE.format(markup), encoding="utf-8")
    return serve(folder)


@pytest.fixture
def page(browser, address):
    context = browser.new_context()
    tab = context.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{address}/{CHAPTER}.html", wait_until="load")
    yield tab
    context.close()
    assert not errors


def bowl(a, b, c):
    return lambda p: (a * p[0] ** 2 + 2 * b * p[0] * p[1] + c * p[1] ** 2) / 2


def valley(k):
    return lambda p: ((1 - p[0]) ** 2 + k * (p[1] - p[0] ** 2) ** 2) / 2


PROBLEMS = {
    "bowl": (bowl(10, 0, 1), 0.15),
    "narrow": (bowl(100, 0, 1), 0.015),
    "turned": (bowl(50.5, 49.5, 50.5), 0.015),
    "banana": (valley(10), 0.02),
    "rosenbrock": (valley(200), 3e-4),
}
OPTIMIZERS = {
    "sgd": lambda p, lr, mu: optim.SGD(p, lr=lr),
    "ball": lambda p, lr, mu: optim.SGD(p, lr=lr, momentum=mu),
    "nesterov": lambda p, lr, mu: optim.SGD(p, lr=lr, momentum=mu, nesterov=True),
    "rmsprop": lambda p, lr, mu: optim.RMSprop(p, lr=lr, alpha=0.9),
    "adam": lambda p, lr, mu: optim.Adam(p, lr=lr, betas=(mu, 0.999)),
}


def lossbooks(problem, make, start, steps):
    """By automatic differentiation, so that the page's derivatives are tested, too."""
    f, p = PROBLEMS[problem][0], torch.tensor(start, dtype=torch.float64, requires_grad=True)
    optimizer, path = make([p]), [start]
    for _ in range(steps):
        optimizer.zero_grad()
        f(p).backward()
        optimizer.step()
        path.append(p.detach().tolist())
    return np.array(path)


def gap(tab, problem, optimizer, steps=60):
    """Largest difference over the distance travelled."""
    adaptive = optimizer in ("adam", "rmsprop")
    lr, momentum = 0.05 if adaptive else PROBLEMS[problem][1], 0.8
    call = "([p, o, options, n]) => lossbookPaths.run(p, o, options, n)"
    options = {"lr": lr, "momentum": momentum}
    theirs = np.array(tab.evaluate(call, [problem, optimizer, options, steps]))
    ours = lossbooks(
        problem, lambda p: OPTIMIZERS[optimizer](p, lr, momentum), theirs[0].tolist(), steps
    )
    assert ours.shape == theirs.shape == (steps + 1, 2)
    return np.abs(ours - theirs).max() / np.abs(ours - ours[0]).max()


def test_the_numbers_are_lossbooks(page):
    """Sixty steps in the browser's float64: a few hundred roundings."""
    gaps = {(p, o): gap(page, p, o) for p in PROBLEMS for o in OPTIMIZERS}
    assert max(gaps.values()) <= 1e-12, gaps
    assert set(page.evaluate("Object.keys(lossbookPaths.problems)")) == set(PROBLEMS)
    assert set(page.evaluate("Object.keys(lossbookPaths.optimizers)")) == set(OPTIMIZERS)


def test_a_planted_mistake_is_seen(page):
    """The old buffer in Nesterov's step, and a hat lost in Adam's."""
    page.evaluate(
        """() => {
        lossbookPaths.optimizers.nesterov.step = (x, g, m, t, o) => {
            const old = m.b || 0;
            m.b = o.momentum * old + g;
            return x - o.lr * (g + o.momentum * old);
        };
        const step = lossbookPaths.optimizers.adam.step;
        lossbookPaths.optimizers.adam.step = (x, g, m, t, o) => step(x, g, m, t + 1, o);
    }"""
    )
    assert gap(page, "bowl", "nesterov") > 1e-3
    assert gap(page, "bowl", "adam") > 1e-3


def status(tab) -> str:
    return tab.locator(".paths-status").inner_text()


def test_the_picture_shows_the_numbers(page):
    """Ten steps by the button: the text is the run's end, and the dots are where they belong."""
    for _ in range(10):
        page.get_by_role("button", name="Step", exact=True).click()
    ten = "lossbookPaths.run('bowl', 'ball', {lr: 0.23, momentum: 0.27}, 10)"
    x, y = page.evaluate(f"{ten}[10]")
    expected = f"Step 10: x = {x:.4f}, y = {y:.4f}, loss {(10 * x * x + y * y) / 2:.4f}."
    assert status(page) == expected
    assert page.locator(".paths-dots circle").count() == 11
    last = page.locator(".paths-dots circle").last
    # 3.2 by 2.2 units on 640 by 440
    assert float(last.get_attribute("cx")) == pytest.approx((x + 1.6) * 200, abs=0.06)
    assert float(last.get_attribute("cy")) == pytest.approx((1.4 - y) * 200, abs=0.06)
    assert expected in page.locator(".paths-figure svg").get_attribute("aria-label")
    assert page.locator(".paths-contours path").count() >= 6


def test_contours_lie_on_their_level(page):
    """Every end of every piece of the bowl's contours has one of the levels."""
    pieces = page.evaluate(
        "[...document.querySelectorAll('.paths-contours path')].map(e => e.getAttribute('d'))"
    )
    for d in pieces:
        points = np.array(re.findall(r"[ML]([-\d.]+) ([-\d.]+)", d), dtype=float)
        x, y = points[:, 0] / 200 - 1.6, 1.4 - points[:, 1] / 200
        level = (10 * x**2 + y**2) / 2
        # linear interpolation in cells of 0.044 by 0.031
        assert np.ptp(level) <= 0.012


def test_the_axes_have_numbers(page):
    """A label stands at its tick, and the tick where the coordinate is: 3.2 by 2.2 units."""
    texts = page.evaluate(
        """[...document.querySelectorAll('.paths-ticks text')].map(
            e => [e.textContent, +e.getAttribute('x'), +e.getAttribute('y')])"""
    )
    across, up = texts[::2], texts[1::2]
    assert [name for name, _, _ in across] == ["-1", "0", "x = 1"]
    assert [x for _, x, _ in across] == pytest.approx([120, 320, 520])
    assert [name for name, _, _ in up] == ["-1", "0", "y = 1"]
    assert [y for _, _, y in up] == pytest.approx([480, 280, 80])  # the first is below the picture


def test_what_a_screen_reader_is_told(page):
    """The rate as it is shown, not the slider's logarithm, and the keys of the picture."""
    slider = page.locator("input[id$=lr]")
    assert slider.get_attribute("aria-valuetext") == "0.23"
    slider.focus()
    page.keyboard.press("ArrowRight")
    shown = page.locator("label", has_text="Rate").inner_text()
    assert shown == f"Rate η = {slider.get_attribute('aria-valuetext')}" != "Rate η = 0.23"
    picture = page.get_by_role("application")
    assert picture.get_attribute("aria-label").startswith("bowl, curvatures 10 and 1, heavy ball.")
    described = page.locator(f"#{picture.get_attribute('aria-describedby')}")
    assert described.inner_text().startswith("Keys on the picture: → step")


def test_each_optimizer_comes_with_its_momentum(page):
    """0.52 is Nesterov's usual constant for a condition number of 10."""
    assert round((np.sqrt(10) - 1) / (np.sqrt(10) + 1), 2) == 0.52
    for optimizer, shown in (
        ("nesterov", "Momentum μ = 0.52"),
        ("adam", "β₁ = 0.9"),
        ("sgd", "No momentum"),
        ("ball", "Momentum μ = 0.27"),
    ):
        page.locator("select[id$=optimizer]").select_option(optimizer)
        assert page.locator("label[for$=momentum]").inner_text() == shown
    page.locator("input[id$=momentum]").fill("0.6")
    page.locator("select[id$=problem]").select_option("narrow")  # keeps what was chosen
    assert page.locator("label[for$=momentum]").inner_text() == "Momentum μ = 0.6"


def test_turning_the_bowl_matters_to_adaptive_methods_only(page):
    """As the chapter says above the figure: after 25 steps with the rates that come up."""
    losses = {}
    for optimizer in OPTIMIZERS:
        page.locator("select[id$=optimizer]").select_option(optimizer)
        for problem in ("narrow", "turned"):
            page.locator("select[id$=problem]").select_option(problem)
            for _ in range(25):
                page.get_by_role("button", name="Step", exact=True).click()
            loss = re.search(r"loss ([-\d.e]+\d)", status(page)).group(1)
            losses[optimizer, problem] = float(loss)
    for optimizer in OPTIMIZERS:
        narrow, turned = losses[optimizer, "narrow"], losses[optimizer, "turned"]
        alike = abs(narrow - turned) <= 0.01 * turned
        assert alike == (optimizer in ("sgd", "ball", "nesterov")), losses


def test_keys_alone_suffice(page):
    """Tab to a control, arrows on sliders, and the keys of the picture."""
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    kinds = [name.rpartition("-")[2] for name in reached]
    assert kinds == ["problem", "optimizer", "lr", "momentum", "BUTTON", "BUTTON", "BUTTON", "svg"]
    for n in (1, 2, 3):
        page.keyboard.press("ArrowRight")
        assert status(page).startswith(f"Step {n}:")
    page.keyboard.press("r")
    assert status(page).startswith("Step 0:")
    page.keyboard.press("Shift+Tab")  # Reset
    page.keyboard.press("Shift+Tab")  # Play
    page.keyboard.press("Shift+Tab")  # Step
    page.keyboard.press("Enter")
    assert status(page).startswith("Step 1:")
    before = page.locator("label", has_text="Rate").inner_text()
    page.locator("input[id$=lr]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("label", has_text="Rate").inner_text() != before
    assert status(page).startswith("Step 0:")


def test_play_runs_and_pauses(page):
    button = page.locator(".paths-buttons button").nth(1)
    button.click()
    assert button.inner_text() == "Pause"
    page.wait_for_function(
        "!document.querySelector('.paths-status').textContent.includes('Step 0')"
    )
    button.click()
    assert button.inner_text() == "Play"
    stopped = status(page)
    page.wait_for_timeout(400)
    assert status(page) == stopped


def test_reduced_motion_moves_nothing(browser, address):
    context = browser.new_context(reduced_motion="reduce")
    tab = context.new_page()
    tab.goto(f"{address}/{CHAPTER}.html", wait_until="load")
    button = tab.locator(".paths-buttons button").nth(1)
    assert button.inner_text() == "25 steps"
    button.click()
    assert status(tab).startswith("Step 25:")  # at once
    tab.wait_for_timeout(400)
    assert status(tab).startswith("Step 25:")
    context.close()


def test_every_choice_works(page):
    """All landscapes with all optimizers: labels, a rate that suits, a path in the picture."""
    for problem in PROBLEMS:
        page.locator("select[id$=problem]").select_option(problem)
        for optimizer in OPTIMIZERS:
            page.locator("select[id$=optimizer]").select_option(optimizer)
            for _ in range(3):
                page.get_by_role("button", name="Step", exact=True).click()
            text = status(page)
            assert text.startswith("Step 3:")
            assert "NaN" not in text
            assert "outside" not in text, (problem, optimizer)
            has = optimizer not in ("sgd", "rmsprop")
            assert page.locator("input[id$=momentum]").is_enabled() == has


def test_a_divergent_path_is_told_and_stops(page):
    page.locator("select[id$=problem]").select_option("narrow")
    page.locator("input[id$=lr]").evaluate(
        "e => { e.value = 0.5; e.dispatchEvent(new Event('input')); }"
    )
    for _ in range(12):
        page.get_by_role("button", name="Step", exact=True).click()
    assert "outside the picture" in status(page)
    assert "NaN" not in status(page)
    assert int(re.match(r"Step (\d+)", status(page)).group(1)) < 12


def test_without_javascript_the_page_still_says_something(browser, address):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(f"{address}/{CHAPTER}.html", wait_until="load")
    assert "needs JavaScript" in tab.locator(".paths-fallback").inner_text()
    context.close()


def test_it_fits_a_phone(browser, address):
    context = browser.new_context(viewport=PHONE)
    tab = context.new_page()
    tab.goto(f"{address}/{CHAPTER}.html", wait_until="load")
    assert tab.evaluate(OVERFLOW) == []
    heights = tab.evaluate(
        "[...document.querySelectorAll('.paths-figure button')].map(e => e.offsetHeight)"
    )
    assert min(heights) >= 24  # WCAG 2.2, target size
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser, address, scheme):
    visitor, seen = Visitor(browser, address), Visit()
    context = browser.new_context(color_scheme=scheme)
    tab = context.new_page()
    visitor.listen(tab, seen)
    tab.goto(f"{address}/{CHAPTER}.html", wait_until="load")
    tab.evaluate(visitor.axe)
    assert visitor.violations(tab, {}) == []
    assert not seen.missing
    assert not seen.foreign
    assert not [line for line in seen.console if "favicon" not in line]
    context.close()


def test_script_and_style_are_small():
    assert (STATIC / "paths.js").stat().st_size <= 12_000
    assert (STATIC / "paths.css").stat().st_size <= 3_000


def test_the_built_page_has_the_figure(browser, serve, site):
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(f"{serve(site)}/{CHAPTER}.html", wait_until="load")
    tab.get_by_role("button", name="Step", exact=True).click()
    assert status(tab).startswith("Step 1:")
    context.close()
