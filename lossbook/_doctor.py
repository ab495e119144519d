"""What is installed, what is missing, and how to get it."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata, util
from typing import NamedTuple

from lossbook import __version__

EXTRAS = ("oracles", "hub", "book", "test")


class Need(NamedTuple):
    """One requirement of the package, or of one of its extras."""

    name: str
    wanted: str
    extra: str | None

    @property
    def found(self) -> str | None:
        try:
            return metadata.version(self.name)
        except metadata.PackageNotFoundError:
            return None

    @property
    def ok(self) -> bool:
        return self.found is not None and _satisfies(self.found, self.wanted)


def report() -> tuple[list[str], bool]:
    """Lines for the reader, and whether all that the package needs is there."""
    needs = requirements()
    base = [need for need in needs if need.extra is None]
    missing = [need for need in base if not need.ok]
    lines = [f"lossbook {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    lines += ["", "needed"] + [_line(need) for need in base]
    for extra in EXTRAS:
        part = [need for need in needs if need.extra == extra]
        absent = [need.name for need in part if not need.ok]
        said = f"missing: {', '.join(absent)}" if absent else "all there"
        hint = f'  (pip install "lossbook[{extra}]")' if absent else ""
        lines.append(f"extra {extra}: {said}{hint}")
    lines += ["", *machine()]
    if missing or not base:
        lines += ["", f"missing: {', '.join(need.name for need in missing) or 'its metadata'}"]
        lines.append("install it with: pip install --upgrade lossbook")
    return lines, bool(base) and not missing


def requirements() -> list[Need]:
    """What the installed metadata asks for; nothing where the package is not installed."""
    try:
        lines = metadata.requires("lossbook") or []
    except metadata.PackageNotFoundError:
        return []
    needs = []
    for line in lines:
        asked, _, marker = line.partition(";")
        name, wanted = re.fullmatch(
            r"([\w.-]+)(?:\[[^]]*\])?\s*\(?([^)]*)\)?", asked.strip()
        ).groups()
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        if name.lower() != "lossbook":
            needs.append(Need(name, wanted.strip(), extra.group(1) if extra else None))
    return needs


def machine() -> list[str]:
    """Devices, threads, and the tools outside Python that something wants."""
    lines = [f"processors {os.cpu_count()}"]
    if util.find_spec("torch") and util.find_spec("accelerate"):
        import torch

        from lossbook.training.device import available, choose_device
        from lossbook.training.pretrain import device_name

        named = [device_name(torch.device(device)) for device in available()]
        lines = [f"devices {', '.join(named)}; auto means {choose_device()}"]
        lines.append(f"processors {os.cpu_count()}, threads of torch {torch.get_num_threads()}")
    compiler = next((c for c in ("c++", "g++", "clang++", "cl") if shutil.which(c)), None)
    without = "none: compiled optimizers run uncompiled, about three times slower"
    lines.append(f"C++ compiler {compiler or without}")
    topics = "there" if util.find_spec("pydoc_data.topics") else "missing in this Python"
    return [*lines, f"Python documentation as a corpus: {topics}"]


def _line(need: Need) -> str:
    state = need.found or "MISSING"
    return f"  {need.name:<14} {state:<16}" + ("" if need.ok else f" wanted {need.wanted}")


def _satisfies(version: str, wanted: str) -> bool:
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(wanted).contains(version, prereleases=True)
