"""The page on agreement: every line of its tables is measured again, and each can fail."""

from __future__ import annotations

import inspect
import math
import re
from functools import cache
from importlib.metadata import version
from pathlib import Path

import agreement
import numpy as np
import oracles
import pytest
import torch
from oracle_lines import BITES, LINES, PARTINGS, STATES
from oracles import Line, measure, walking

from lossbook import optim
from lossbook.optim.schedules import SCHEDULES

# Types and shapes are checked in all other tests; here some ten thousand steps are made.
pytestmark = pytest.mark.usefixtures("untyped")
measured = cache(measure)


@cache
def page() -> str:
    return agreement.PAGE.read_text(encoding="utf-8")


def name(line: Line) -> str:
    return f"{line.ours} = {line.theirs}"


def complaint(cells: tuple[str, ...], line: Line, difference: float) -> str | None:
    """What is wrong with a row of the page, or None."""
    *words, stated, bound = cells
    if tuple(words) != agreement.agreeing(line):
        return "stale"
    bound = float(bound)
    if not float(stated) <= bound:
        return "stale"
    if not difference <= bound:
        return "violated"
    loose = bound > max(agreement.LEAST, agreement.LOOSE * difference)
    return "loose" if loose else None


# The table of lines


def test_the_page_has_the_lines_in_their_order():
    rows = agreement.rows_of(page(), "agreement")
    assert [row[:-2] for row in rows] == [agreement.agreeing(line) for line in LINES]


@pytest.mark.parametrize("index", range(len(LINES)), ids=lambda i: name(LINES[i]))
def test_every_line_is_true(index):
    row = agreement.rows_of(page(), "agreement")[index]
    assert complaint(row, LINES[index], measured(LINES[index])) is None, measured(LINES[index])


def test_everything_exported_has_a_line():
    methods = {line.method for line in LINES}
    exported = [getattr(optim, each) for each in optim.__all__]
    kinds = {x.__name__ for x in exported if inspect.isclass(x) and issubclass(x, optim.Optimizer)}
    assert kinds - {"Optimizer"} <= methods
    assert {"EMA", "clip", "course"} <= methods
    schedules = {re.match(r'course\("(\w+)"', x.ours)[1] for x in LINES if x.method == "course"}
    assert schedules == set(SCHEDULES)


def test_every_value_of_every_option_that_names_a_library_is_walked():
    """Presets carry the names of libraries; each has a line, or no library on PyPI has it."""
    without = {
        *(("SGD", preset) for preset in ("torch", "mesh-tensorflow", "sutskever", "sgdw")),
        *((kind, "torch") for kind in KINDS),
        *(("RMSprop", preset) for preset in ("graves",)),
        *(("Adadelta", preset) for preset in ("paper",)),
        *(("AdamW", preset) for preset in ("bert",)),
        *(("RAdam", preset) for preset in ("paper",)),
        *(("Adafactor", preset) for preset in ("paper", "t5", "transformers")),
    }
    walked = {found for x in LINES for found in re.findall(r'^(\w+)\.like\("([\w-]+)"', x.ours)}
    for kind in KINDS:
        for preset in getattr(optim, kind).presets:
            assert (kind, preset) in walked | without, (kind, preset)


KINDS = sorted({line.method for line in LINES} - {"EMA", "clip", "course"})


def test_a_row_can_be_missing_stale_violated_and_loose():
    """The tests above are as good as this complaint."""
    line = LINES[0]
    row = (*agreement.agreeing(line), "4e-15", "1e-14")
    assert complaint(row, line, 4e-15) is None
    assert complaint(row, line, 2e-14) == "violated"
    assert complaint(row, line, math.nan) == "violated"
    assert complaint((*row[:-1], "1e-12"), line, 5e-16) == "loose"
    assert complaint((*row[:-2], "2e-14", "1e-14"), line, 4e-15) == "stale"
    assert complaint(row, line, 0.0) is None
    assert complaint(row, LINES[1], 4e-15) == "stale"
    shorter = page().replace(next(x for x in page().splitlines() if "Adagrad(p" in x) + "\n", "")
    assert len(agreement.rows_of(shorter, "agreement")) == len(LINES) - 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [(0.0, 1e-14), (3e-16, 1e-14), (6e-15, 1e-13), (4e-14, 1e-13), (6e-14, 1e-12)],
)
def test_bounds_are_powers_of_ten_with_room_for_a_factor_of_two(size, expected):
    assert agreement.bound(size) == pytest.approx(expected)


# Planted mistakes: what a line measures when its text says something else

PLANTED = {
    "SGD": ("SGD(p, momentum=0.9, weight_decay=λ)", "λ)", 'λ, lr_placement="inside")'),
    "SGD, Nesterov": ("nesterov=True)", "nesterov=True", "nesterov=False"),
    "SGD, dampening": ("dampening=0.4)", "dampening=0.4", 'dampening=0.4, first_buffer="dampened"'),
    "AdaGrad": ("Adagrad(p, eps=ε", "eps=ε", 'eps=κ, eps_placement="inside"'),
    "RMSProp": ("RMSprop(p, eps=ε", "eps=ε", 'eps=κ, eps_placement="inside"'),
    "RMSProp, start": ('RMSprop.like("tensorflow-1"', "tensorflow-1", "optax"),
    "AdaDelta": ("Adadelta(p, eps=κ", "eps=κ", "eps=ε * 2"),
    "Adam, eps": ("Adam(p, eps=ε", "eps=ε", 'eps=ε, eps_placement="inside"'),
    "Adam, eps hat": ("Adam(p, eps=ε", "eps=ε", 'eps=ε, eps_placement="hat"'),
    "Adam, bias": ("Adam(p, eps=ε", "eps=ε", "eps=ε, bias_correction=False"),
    "Adam, betas": ("Adam(p, eps=ε", "eps=ε", "eps=ε, betas=(0.9, 0.99)"),
    "BERT's Adam": ('Adam.like("bert"', "exclude", "bias_correction=True, exclude"),
    "AdamW": ("AdamW(p, eps=ε", "AdamW", "Adam"),
    "AMSGrad": ("AMSGrad(p, eps=ε", "eps=ε", 'eps=ε, maximum="corrected"'),
    "AdaMax": ("AdaMax(p, eps=ε", "eps=ε", 'eps=ε, eps_placement="outside"'),
    "NAdam": ("NAdam(p, eps=ε", "eps=ε", "eps=ε, momentum_decay=1.0"),
    "RAdam": ("RAdam(p, eps=ε", "eps=ε", "eps=ε, threshold=4.0"),
    "Adafactor": ("Adafactor(p, eps=(κ, 0.001)", "λ", 'λ, factor="largest"'),
    "Adafactor, limit": ('Adafactor.like("torch", p, lr=1.0', "λ", 'λ, rate="given"'),
    "Adafactor, decay": ("Adafactor(p, eps=(κ, 0.001)", "λ", 'λ, decay="lr"'),
    "clipping": ("SGD(p, clip=c, weight_decay", "clip=c", "clip=1.1 * c"),
    "average": ("EMA(p, 0.99)", "0.99", '0.99, start="zero"'),
    "schedule": ('course("bert"', "bert", "linear"),
    "schedule, start": ('course("linear"', "warmup=W", 'warmup=W, start="even"'),
}


def planted(begin: str, old: str, new: str) -> Line:
    line = next(x for x in LINES if x.ours.startswith(begin) or x.ours.endswith(begin))
    assert old in line.ours
    return Line(**{**vars(line), "ours": line.ours.replace(old, new, 1)})


@pytest.mark.parametrize("mistake", PLANTED)
def test_a_planted_mistake_is_far_above_the_bound(mistake):
    line = planted(*PLANTED[mistake])
    found = measure(line) if line.method in ("EMA", "course") else oracles.parting(line)
    assert 1e-6 < found < math.inf  # the bounds are 1e-12 and less


def test_a_mistake_in_the_equation_itself_is_far_above_the_bound(monkeypatch):
    """Adam's v without its correction: not an option, so nothing but the walk can tell."""

    def wrong(theta, g, m, v, t, *, lr, beta1, beta2, eps, weight_decay, **_):
        g = g + weight_decay * theta
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        return theta - lr * (m / (1 - beta1**t)) / (v.sqrt() + eps), m, v

    (line,) = [x for x in LINES if x.ours == "Adam(p, eps=ε, weight_decay=λ)"]
    assert measured(line) <= 1e-14
    monkeypatch.setattr(optim.Adam, "equation", staticmethod(wrong))
    assert oracles.parting(line) > 0.1


# Mixed precision


TORCHLIKE = [
    line
    for line in LINES
    if line.library not in ("optax", "keras") and line.method not in ("EMA", "course")
]


@pytest.mark.parametrize("line", TORCHLIKE, ids=name)
def test_float32_and_float64_in_one_group_in_both_orders(line):
    found = oracles.mixing(line)
    assert found[torch.float32] <= 1e-6
    assert found[torch.float64] <= (1e-6 if line.method == "clip" else 1e-14)


# What the problem catches, and what does not agree


@pytest.mark.parametrize("index", range(len(BITES)), ids=lambda i: BITES[i].on)
def test_what_is_on_catches_what_the_page_says(index):
    """By order of magnitude: within a factor of ten of what is printed."""
    bite, row = BITES[index], agreement.rows_of(page(), "bites")[index]
    assert row[:2] == (bite.on, bite.mistake)
    for cell, found in zip(row[2:], oracles.biting(bite), strict=True):
        assert printed(cell, found), (cell, found)
    on, off = oracles.biting(bite)
    assert off < 1e-3 < 0.01 < on
    assert walking(bite.line, [oracles.gentle()]) < 1e-4


def printed(cell: str, found: float) -> bool:
    if cell == "it fails":
        return math.isinf(found)
    if cell.startswith("≤ "):
        return found <= float(cell[2:])
    return 0.1 < found / float(cell) < 10


@pytest.mark.parametrize("index", range(len(PARTINGS)), ids=lambda i: name(PARTINGS[i].line))
def test_what_does_not_agree_still_does_not(index):
    each, row = PARTINGS[index], agreement.rows_of(page(), "partings")[index]
    ours, theirs, size, reason = row
    assert (ours, theirs) == (f"`{each.line.ours}`", agreement.their_call(each.line))
    assert reason == each.reason
    found = oracles.parting(each.line)
    assert found > 1e-10 and printed(size, found), found


def test_the_reasons_are_the_reasons():
    """Where a reason says what would make the two agree, they then do."""
    by_library = {each.line.theirs: each.line for each in PARTINGS}
    for line in by_library.values():
        if line.theirs.startswith(("torch.optim.NAdam", "pytorch_optimizer.AdaMax")):
            changed = {"wide": True} if "NAdam" in line.theirs else {"gaps": False}
            assert oracles.parting(Line(**{**vars(line), **changed})) <= 1e-13
    from trajectories import keras_in_float64, keras_module

    keras, wide = keras_module(), torch.ones(3, dtype=torch.float64)
    with keras_in_float64():
        for function in (keras.ops.minimum, keras.ops.maximum):
            assert function(wide, wide).dtype is torch.float32
    for theirs in ("timm.optim.RAdamLegacy", "torch_optimizer.RAdam"):
        (p,) = [torch.nn.Parameter(wide)]
        p.grad = wide.clone()
        optimizer = oracles.evaluate(f"{theirs}(p)", {"p": [p]})
        optimizer.step()
        assert optimizer.state[p]["exp_avg"].dtype is torch.float32


# State


@pytest.mark.parametrize("index", range(len(STATES)), ids=lambda i: STATES[i].theirs)
def test_state_bytes_equal_the_formula(index):
    state, row = STATES[index], agreement.rows_of(page(), "states")[index]
    n, m = oracles.SHAPE
    numbers = eval(state.numbers, {}, {"n": n, "m": m})
    for dtype in (torch.float32, torch.bfloat16):
        assert oracles.state_bytes(state.ours, dtype) == 4 * numbers
    assert oracles.state_bytes(state.ours, torch.float64) == 8 * numbers
    sizes = [oracles.state_bytes(state.theirs, d) for d in (torch.float32, torch.bfloat16)]
    cells = [f"{size / (n * m):.3g}" for size in (4 * numbers, *sizes)]
    formula = state.numbers.replace(" * ", "")
    assert row == (f"`{state.ours}`", f"${formula}$", cells[0], f"`{state.theirs}`", *cells[1:])


def test_every_optimizer_has_its_state_stated():
    assert {state.ours.partition("(")[0] for state in STATES} == set(KINDS)


# The page


def test_the_versions_on_the_page_are_the_pinned_ones():
    (text,) = [x for x in agreement.lines_of(page(), "versions") if x]
    found = dict(pair.split() for pair in text.rstrip(".").split(", "))
    root = Path(__file__).resolve().parents[2]
    pins = (root / "requirements.txt").read_text() + (
        root / "tests" / "requirements-no-deps.txt"
    ).read_text()
    pinned = dict(re.findall(r"^([\w-]+)==([\w.]+)", pins, re.MULTILINE))
    assert found == {each: pinned[each] for each in found}
    used = {line.library for line in LINES} | {each.line.library for each in PARTINGS}
    assert set(found) >= used
    if all(version(each).partition("+")[0] == pinned[each] for each in found):
        assert text == agreement.versions()


def test_the_numbers_in_the_text():
    text = page()
    assert "make 25 steps" in text and oracles.trajectories.STEPS == 25
    problem = oracles.trials(True)[0].problem
    norms = [
        math.sqrt(sum(np.square(g).sum() for g in row if g is not None))
        for row in problem.gradients
    ]
    assert 0.5 < np.mean(np.array(norms) > oracles.symbols()["c"]) < 0.9
    lengths = re.search(r"runs of `N` = (.*?) updates, with `W` = (.*?) of.*?`D` = (.*?) to", text)
    columns = [tuple(map(int, re.findall(r"\d+", group))) for group in lengths.groups()]
    assert columns == [tuple(column) for column in zip(*oracles.LENGTHS, strict=True)]
