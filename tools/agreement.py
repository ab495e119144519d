"""Measure every line of the page on agreement and write its tables: ``python tools/agreement.py``.

The words of the page are written by hand. Each table stands between two comments, and only what
is between them is written here. A bound is the measured difference doubled and rounded up to a
power of ten, and at least 1e-14: another processor rounds otherwise.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import oracles
import torch
from oracle_lines import BITES, LINES, PARTINGS, STATES
from oracles import Line

PAGE = Path(__file__).resolve().parents[1] / "book" / "agreement.md"
LEAST = 1e-14
LOOSE = 1000  # how many times the measured difference a bound may be
CHAPTERS = {
    "gradient-descent": ("SGD",),
    "adaptive-methods": ("Adagrad", "RMSprop", "Adadelta"),
    "adam": ("Adam", "AMSGrad", "AdaMax", "NAdam", "RAdam"),
    "weight-decay": ("AdamW",),
    "adafactor": ("Adafactor",),
    "schedules-and-clipping": ("clip", "EMA", "course"),
}
WORDS = {"clip": "clipping", "course": "schedules"}
MOMENTA = {"nesterov": "Nesterov", "dampening": "dampening", "momentum": "momentum"}

Row = tuple[str, ...]


def bound(measured: float) -> float:
    return max(LEAST, 10.0 ** math.ceil(math.log10(2 * measured))) if measured else LEAST


def code(text: str) -> str:
    return f"`{text}`"


def chapter(line: Line) -> str:
    """The method as a link to the chapter that derives it."""
    (page,) = [page for page, methods in CHAPTERS.items() if line.method in methods]
    name = WORDS.get(line.method, line.method)
    if line.method == "SGD":
        name = ", ".join(
            ["SGD", *[word for key, word in MOMENTA.items() if key in line.theirs][:1]]
        )
    return f"{{doc}}`{name} </notebooks/5-optimizers/{page}>`"


def their_call(line: Line) -> str:
    parts = [f"{code(line.before)}, then"] if line.before else []
    parts.append(code(line.theirs))
    if line.ways:
        parts.append("with " + ", ".join(map(code, line.ways)))
    if line.wide:
        parts.append("after `torch.set_default_dtype(torch.float64)`")
    return " ".join(parts)


def agreeing(line: Line) -> Row:
    """The cells of a line but for its bound."""
    walks = line.method not in ("EMA", "course")
    steps = oracles.steps(line) + (", gaps" if walks and line.gaps else "")
    return chapter(line), code(line.ours), their_call(line), steps


def parted(size: float) -> str:
    """The order of magnitude, which is what other processors reproduce."""
    if math.isinf(size):
        return "it fails"
    power = round(math.log10(size))
    return f"{10.0**power:g}" if power >= -2 else f"{10.0**power:.0e}"


def agreement() -> list[Row]:
    sizes = map(oracles.measure, LINES)
    return [
        (*agreeing(line), f"{size:.0e}" if size else "0", f"{bound(size):.0e}")
        for line, size in zip(LINES, sizes, strict=True)
    ]


def partings() -> list[Row]:
    lines = [(each.line, each.reason) for each in PARTINGS]
    return [
        (code(line.ours), their_call(line), parted(oracles.parting(line)), reason)
        for line, reason in lines
    ]


def bites() -> list[Row]:
    return [(b.on, b.mistake, *map(parted_or_none, oracles.biting(b))) for b in BITES]


def parted_or_none(size: float) -> str:
    return parted(size) if size > LEAST else f"≤ {bound(size):.0e}"


def states() -> list[Row]:
    n, m = oracles.SHAPE
    rows = []
    for state in STATES:
        sizes = [
            oracles.state_bytes(call, dtype) / (n * m)
            for call, dtype in (
                (state.ours, torch.float32),
                (state.theirs, torch.float32),
                (state.theirs, torch.bfloat16),
            )
        ]
        formula = state.numbers.replace(" * ", "")
        cells = (f"{size:.3g}" for size in sizes)
        ours, *theirs = cells
        rows.append((code(state.ours), f"${formula}$", ours, code(state.theirs), *theirs))
    return rows


def versions() -> str:
    """The libraries of the lines and their versions, without the builds of torch."""
    names = {line.library for line in LINES} | {each.line.library for each in PARTINGS} | {"jax"}
    found = [f"{name} {version(name).partition('+')[0]}" for name in sorted(names)]
    return ", ".join(found) + "."


HEADS: dict[str, Row] = {
    "agreement": ("method", "ours", "theirs", "steps", "apart", "bound"),
    "partings": ("ours", "theirs", "apart", "why"),
    "bites": ("what is on", "mistake", "on", "off"),
    "states": (
        *("ours", "numbers for $n \\times m$", "bytes", "theirs"),
        *("float32", "bfloat16"),
    ),
}


def table(name: str, rows: Iterable[Row]) -> str:
    head = HEADS[name]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def section(name: str) -> re.Pattern[str]:
    """What stands between the comments ``% name: written by ...`` and ``% end``."""
    begin = rf"(?<=^% {name}: written by tools/agreement\.py\n)"
    return re.compile(begin + r".*?(?=^% end)", re.MULTILINE | re.DOTALL)


def lines_of(page: str, name: str) -> list[str]:
    found = section(name).search(page)
    return found.group().splitlines() if found else []


def rows_of(page: str, name: str) -> list[Row]:
    """The rows of a table of the page, without its head."""
    lines = [line for line in lines_of(page, name) if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines[2:]]


def with_table(page: str, name: str, rows: Iterable[Row]) -> str:
    """The page with another table in the section of that name; what surrounds it stays."""
    block, new = re.compile(r"^\|.*\|$(?:\n^\|.*\|$)*", re.MULTILINE), table(name, rows)
    return section(name).sub(lambda found: block.sub(lambda _: new, found.group(), 1), page)


def main(page: Path = PAGE) -> None:
    """Measure, and write what has changed."""
    text = page.read_text(encoding="utf-8")
    tables = {"agreement": agreement, "partings": partings, "bites": bites, "states": states}
    for name, rows in tables.items():
        text = with_table(text, name, rows())
    text = section("versions").sub(lambda _: versions() + "\n", text)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
