"""``python -m benchmarks [NAME ...]``: run the benchmarks and print their ratios."""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import platform
from collections.abc import Iterator

import benchmarks
from benchmarks.timing import Row


def available() -> list[str]:
    names = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return [name for name in names if name not in ("__main__", "timing")]


def quantity(value: float, unit: str) -> str:
    """Three digits and a prefix: 12.3 ms, 1.50 GB."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def line(row: Row) -> str:
    target = "" if row.target is None else f"target <= {row.target:g} "
    verdict = {None: "", True: "met", False: "MISSED"}[row.met]
    ours, theirs = quantity(row.ours, row.unit), quantity(row.theirs, row.unit)
    return f"  {row.what:<52} {ours:>9}  {theirs:>9}  {row.ratio:7.3f}  {target}{verdict}"


def table(rows: list[Row]) -> Iterator[str]:
    peer = None
    for row in rows:
        if row.peer != peer:
            peer = row.peer
            yield f"  {'against ' + peer:<52} {'ours':>9}  {'theirs':>9}  {'ratio':>7}"
        yield line(row)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=benchmarks.__doc__)
    parser.add_argument("names", nargs="*", choices=[*available(), []], help="all by default")
    parser.add_argument("--strict", action="store_true", help="fail where a target is missed")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    rows: list[Row] = []
    for name in arguments.names or available():
        print(f"\n{name}", flush=True)
        found = importlib.import_module(f"benchmarks.{name}").run()
        print("\n".join(table(found)), flush=True)
        rows += found
    return int(arguments.strict and any(row.met is False for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
