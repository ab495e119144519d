"""What a training run leaves behind."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from lossbook._require import require


@dataclass
class History:
    """Losses in nats per target, step by step; JSON all through.

    Attributes:
        steps: the steps done, counted from 1.
        losses: the training loss at each of them, on the batch of that step.
        evaluations: records with ``step``, ``loss`` on the fixed validation batches, ``floor``
            (what the ideal predictor scores on the same batches) and ``excess``, their
            difference; the last two are None where the corpus has no known distribution.
        floor: the same as in the evaluations.
        entropy: the exact conditional entropy of the targets of these batches. The ideal
            predictor's loss scatters around it; None without a floor.
        targets: how many targets the validation batches have.
        tokens_per_second: training tokens by training time (no evaluation, no saving).
        device: where it ran.
        settings: everything that decided the result.
    """

    objective: str = ""
    corpus: str = ""
    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    floor: float | None = None
    entropy: float | None = None
    targets: int = 0
    tokens: int = 0
    seconds: float = 0.0
    device: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def final_loss(self) -> float:
        """The last validation loss; without one, the mean of the last ten training losses."""
        if self.evaluations:
            return self.evaluations[-1]["loss"]
        return float(np.mean(self.losses[-10:])) if self.losses else float("nan")

    @property
    def excess(self) -> float | None:
        """The last validation loss above its floor, which estimates a KL divergence."""
        return self.evaluations[-1]["excess"] if self.evaluations else None

    @property
    def perplexity(self) -> float:
        """exp of the final loss."""
        return float(np.exp(self.final_loss))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, record: Any) -> History:
        """The inverse of ``to_json``; a ``ValueError`` names what is missing or unknown."""
        names = {f.name for f in fields(cls)}
        require(isinstance(record, dict), "history", type(record).__name__, "a JSON object")
        wrong = sorted(names ^ set(record))
        require(not wrong, "history", wrong, "exactly the fields of a History")
        return cls(**record)

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        write_atomically(
            Path(path), lambda new: new.write_text(json.dumps(self.to_json()), "utf-8")
        )

    @classmethod
    def load(cls, path: str | Path) -> History:
        """Read what :meth:`save` wrote; a ``ValueError`` names the file that is not that."""
        try:
            return cls.from_json(json.loads(Path(path).read_text("utf-8")))
        except ValueError as error:  # JSON and UTF-8 errors are ValueErrors
            raise ValueError(f"{path}: expected a saved History ({error})") from error


def write_atomically(path: Path, write) -> None:
    """Let ``write`` fill a new file, then move it to ``path``: nobody ever sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(new)
        with open(new, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the new name as durable as the bytes; Windows cannot open a folder and need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
