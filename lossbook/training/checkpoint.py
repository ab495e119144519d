"""Checkpoints that are whole or not there: tensors by safetensors, everything else as JSON.

One file holds one step. Its tensors are named ``model.*`` and ``state.*``; the JSON (schema,
step, settings, history, structure of the optimizer's state) stands in the header's metadata.
Nothing is pickled, so that reading a stranger's file runs no code of theirs.
"""

from __future__ import annotations

import json
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lossbook._require import require
from lossbook.training.history import write_atomically

SCHEMA = 1
NAME = re.compile(r"step-(\d{8})\.safetensors")


@dataclass
class Checkpoint:
    """A run after ``step`` steps.

    Attributes:
        step: steps done.
        model: the model's ``state_dict``.
        state: any tree of dicts, lists, tuples, numbers, strings, None and tensors: here the
            states of optimizer and gradient scaler.
        settings: what the run was asked for, as JSON.
        history: the history so far, as JSON.
    """

    step: int
    model: dict[str, Tensor]
    state: Any
    settings: dict[str, Any]
    history: dict[str, Any]

    def save(self, folder: str | Path, keep: int = 2) -> Path:
        """Write ``step-NNNNNNNN.safetensors`` into the folder and drop all but the last ``keep``.

        The file appears under its name when all of its bytes are on the disk.
        """
        folder, tensors = Path(folder), {f"model.{k}": _own(v) for k, v in self.model.items()}
        structure = pack(self.state, "state", tensors)
        record = {"schema": SCHEMA, "step": self.step, "settings": self.settings}
        record |= {"history": self.history, "state": structure}
        path = folder / f"step-{self.step:08d}.safetensors"
        data = save(tensors, {"lossbook": json.dumps(record)})
        write_atomically(path, lambda new: new.write_bytes(data))
        _tidy(folder, keep)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read one file.

        Raises:
            ValueError: cut short, no safetensors file, or not one of these; the file is named.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: expected a whole checkpoint ({error})") from error
        record = _record(path, metadata)
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        state = unpack(record["state"], tensors)
        return cls(record["step"], model, state, record["settings"], record["history"])


def paths(folder: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest first; other files are none of our business."""
    return sorted(p for p in Path(folder).glob("step-*") if NAME.fullmatch(p.name))


def latest(folder: str | Path) -> Checkpoint | None:
    """The newest readable checkpoint; None where there is no checkpoint at all.

    A file that was damaged later (a full disk, a broken copy) is passed over with a warning.

    Raises:
        ValueError: there are checkpoints and none of them can be read.
    """
    errors = []
    for path in reversed(paths(folder)):
        try:
            found = Checkpoint.load(path)
        except ValueError as error:
            errors.append(str(error))
            continue
        for error in errors:
            warnings.warn(f"{error}; going on from {path.name}", stacklevel=2)
        return found
    if errors:
        raise ValueError("; ".join(errors))
    return None


def pack(tree: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The tree as JSON; its tensors move to ``tensors`` and leave their names behind."""
    if isinstance(tree, Tensor):
        tensors[name] = _own(tree)
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[k, pack(v, f"{name}.{k}", tensors)] for k, v in tree.items()]}
    if isinstance(tree, (list, tuple)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return {kind: [pack(v, f"{name}.{i}", tensors) for i, v in enumerate(tree)]}
    plain = tree is None or isinstance(tree, (bool, int, float, str))
    require(plain, name, tree, "tensors, numbers, strings, None, and dicts and lists of them")
    return tree


def unpack(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of :func:`pack`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, value),) = tree.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {k: unpack(v, tensors) for k, v in value}
    return (tuple if kind == "tuple" else list)(unpack(v, tensors) for v in value)


def differences(saved: Any, asked: Any, name: str = "") -> list[str]:
    """Where two JSON trees differ, as lines ``name: saved there, asked here``."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        keys = sorted(saved.keys() | asked.keys())
        inner = [
            differences(saved.get(k), asked.get(k), f"{name}.{k}" if name else k) for k in keys
        ]
        return [line for lines in inner for line in lines]
    return [] if saved == asked else [f"{name} was {saved!r} and is now {asked!r}"]


def _own(tensor: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing, as safetensors demands."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _record(path: str | Path, metadata: dict[str, str]) -> dict[str, Any]:
    if "lossbook" not in metadata:
        raise ValueError(f"{path}: expected a lossbook checkpoint, got another safetensors file")
    record = json.loads(metadata["lossbook"])
    found = record.get("schema")
    if found != SCHEMA:
        raise ValueError(f"{path}: expected a checkpoint of schema {SCHEMA}, got {found!r}")
    missing = [key for key in ("step", "settings", "history", "state") if key not in record]
    if missing:
        raise ValueError(f"{path}: expected a lossbook checkpoint, which has also {missing}")
    return record


def _tidy(folder: Path, keep: int) -> None:
    """Drop old checkpoints, and what a killed process left half written."""
    for old in paths(folder)[:-keep]:
        old.unlink(missing_ok=True)
    for rest in folder.glob(".step-*.tmp"):
        rest.unlink(missing_ok=True)
