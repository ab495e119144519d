"""Results of longer runs, shipped with the package, each with its provenance.

A record is a JSON file in this folder::

    {"device": ..., "versions": {...}, "seed": ..., "command": ..., "result": ...}

``result`` is what the command computed; the rest says how to compute it again.
"""

from __future__ import annotations

import json
import platform
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from lossbook._require import require

FIELDS = ("device", "versions", "seed", "command", "result")
PACKAGES = ("lossbook", "torch", "numpy")


def names() -> list[str]:
    """The records there are."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def load(name: str) -> dict[str, Any]:
    """A record by its name, the file's without ``.json``.

    Raises:
        ValueError: there is no such record, or it lacks a part of its provenance.
    """
    known = names()
    require(name in known, "name", name, f"one of the records {known}")
    text = resources.files(__name__).joinpath(f"{name}.json").read_text("utf-8")
    return checked(json.loads(text), name)


def checked(record: Any, name: str) -> dict[str, Any]:
    """The record, if it carries all of its provenance."""
    require(isinstance(record, dict), name, type(record).__name__, "a JSON object")
    missing = [field for field in FIELDS if record.get(field) in (None, "", {})]
    require(not missing, name, f"a record without {missing}", f"the fields {FIELDS}")
    return record


def write(path: str | Path, result: Any, *, device: str, seed: int, command: str) -> None:
    """Write a record of a run that happened on this machine.

    Args:
        path: where to; records of the package lie beside this file.
        result: JSON, such as ``History.to_json()``.
        device: in words, such as ``History.device``.
        seed: where all of the run's random numbers start.
        command: what to type to get the same result.
    """
    versions = {"python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in PACKAGES}
    record = {"device": device, "versions": versions, "seed": seed}
    record |= {"command": command, "result": result}
    Path(path).write_text(json.dumps(checked(record, "record"), indent=1) + "\n", "utf-8")
