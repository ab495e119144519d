"""From a corpus and an objective to what the model gets, a whole step at a time.

Every process draws the whole batch of a step and keeps its rows. Drawing costs little, and so
the number of targets below the loss needs no message between processes, and neither the masks
nor the denominator depend on how the batch is cut.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

IGNORE_INDEX = -100
VALIDATION = 1  # the last word of the seed of validation masks; training streams have none

Batch = dict[str, Tensor]


class Batches:
    """The batches of a run, each a pure function of its number.

    Args:
        model: tells which fields it takes.
        objective: corrupts.
        corpus: gives the ids.
        batch_size, length: B and T of a step.
        seed: of the order of the texts.
    """

    def __init__(
        self, model: nn.Module, objective: Any, corpus: Any, batch_size: int, length: int, seed: int
    ):
        self.objective, self.corpus, self.seed = objective, corpus, seed
        self.shape = (batch_size, length)
        self.fields = set(inspect.signature(model.forward).parameters)
        finite = getattr(corpus, "steps_per_epoch", None)  # a language never repeats itself
        self.per_epoch = finite(batch_size, length) if finite else None
        self.at_targets = "positions" in self.fields and getattr(objective, "at_labels", False)

    def train(self, step: int) -> Batch:
        """The batch of a step, counted from 0, on the CPU."""
        epoch, index = divmod(step, self.per_epoch) if self.per_epoch else (0, step)
        where = {"seed": self.seed, "epoch": epoch, "index": index}
        ids = self.corpus.batch(*self.shape, **where)
        static = getattr(self.objective, "duplicates", None) is not None
        rows = self.corpus.rows(*self.shape, **where) if static else None
        return self.objective.batch(ids, epoch=epoch, index=index, row_ids=rows)

    def validation(self, index: int) -> tuple[np.ndarray, Batch]:
        """A validation batch and the ids before corruption: the same in every run."""
        ids = self.corpus.batch(*self.shape, index=index, split="validation")
        arrays = self.objective.corrupt(ids, np.random.default_rng([0, 0, index, VALIDATION]))
        return ids, {k: torch.from_numpy(v) for k, v in arrays.items()}

    def inputs(self, batch: Batch) -> Batch:
        """The fields that the model takes."""
        return {k: v for k, v in batch.items() if k in self.fields and "label" not in k}

    def ready(self, batch: Batch, device: torch.device) -> Batch:
        """The batch as the model should see it, on its device."""
        if self.at_targets:
            batch = only_targets(batch)
        if "attention_mask" in batch and bool(batch["attention_mask"].all()):
            batch = {k: v for k, v in batch.items() if k != "attention_mask"}
        if device.type == "cuda":
            batch = {k: v.pin_memory() for k, v in batch.items()}
        return {k: v.to(device, non_blocking=True) for k, v in batch.items()}


def only_targets(batch: Batch) -> Batch:
    """Ask for logits at the targets alone: ``positions [N]`` and ``labels [1, N]``."""
    labels = batch["labels"].flatten()
    positions = (labels != IGNORE_INDEX).nonzero().squeeze(1)
    return {**batch, "positions": positions, "labels": labels[positions][None]}


def pieces(batch: Batch, parts: int) -> list[Batch]:
    """The rows of a batch in ``parts`` nearly equal parts."""
    if parts == 1:
        return [batch]
    cut = {k: v.tensor_split(parts) for k, v in batch.items()}
    return [{k: v[i] for k, v in cut.items()} for i in range(parts)]
