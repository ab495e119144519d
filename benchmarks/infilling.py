"""Blank infilling on one thread: collation of 128 x 400 tokens, and the exact floor of 64 x 64.

The peer draws and lays out each row by itself in plain Python, as the public strategy is
described: lengths one by one until the budget is met, shuffled; places drawn and sorted; parts A
and B put together span by span; rows padded to one length. Ours makes the same five arrays.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import Row, best, race
from lossbook.corpora import HiddenMarkovLanguage, Vocabulary
from lossbook.objectives import BlankInfilling

BATCH, TIME, WORDS = 128, 400, 30_000
FLOOR = (64, 64)
PUBLIC = 0.31e6  # tokens a second of the public strategy, measured once on another day
FASTER = 20


class PlainPython:
    """Row by row, with lists."""

    def __init__(self, vocabulary: Vocabulary, rate: float = 0.15) -> None:
        self.vocabulary, self.rate = vocabulary, rate
        self.weights = BlankInfilling(vocabulary).pmf[1:].tolist()
        self.rng = random.Random(0)

    def __call__(self, rows: list[list[int]]) -> dict[str, torch.Tensor]:
        made = [self.row(row) for row in rows]
        width = max(len(row[0]) for row in made)
        fill = (self.vocabulary.pad_id, -100, 0, 0, 0)
        names = ("input_ids", "labels", "attention_mask", "position_ids", "block_position_ids")
        columns = (
            torch.tensor([row[k] + [fill[k]] * (width - len(row[k])) for row in made])
            for k in range(5)
        )
        return dict(zip(names, columns, strict=True))

    def row(self, ids: list[int]) -> tuple[list[int], ...]:
        spans = self.spans(len(ids), len(ids) - 2)
        input_ids, position_ids, place, last = [], [], {}, 0
        for start, end in spans:
            input_ids += ids[last:start]
            place[start] = len(input_ids)
            input_ids.append(self.vocabulary.mask_id)
            last = end
        input_ids += ids[last:]
        position_ids += range(len(input_ids))
        labels, block = [-100] * len(input_ids), [0] * len(input_ids)
        self.rng.shuffle(spans)
        for start, end in spans:
            piece = ids[start:end]
            input_ids += [self.vocabulary.cls_id, *piece]
            labels += [*piece, self.vocabulary.sep_id]
            position_ids += [place[start]] * (len(piece) + 1)
            block += range(1, len(piece) + 2)
        return input_ids, labels, [1] * len(input_ids), position_ids, block

    def spans(self, total: int, room: int) -> list[tuple[int, int]]:
        lengths: list[int] = []
        while sum(lengths) < int(self.rate * total):
            lengths += self.rng.choices(range(1, len(self.weights) + 1), self.weights)
        self.rng.shuffle(lengths)
        free = room - sum(lengths) - len(lengths) + 2
        drawn = sorted(self.rng.randrange(free) for _ in lengths)
        spans, moved = [], 1
        for start, length in zip(drawn, lengths, strict=True):
            spans.append((start + moved, start + moved + length))
            moved += length + 1
        return spans


def collation() -> dict[str, Callable[[], object]]:
    vocabulary = Vocabulary.from_words(f"w{i}" for i in range(WORDS))
    ids = np.random.default_rng(0).choice(vocabulary.ordinary_ids, (BATCH, TIME))
    ids[:, 0], ids[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    ours, theirs = BlankInfilling(vocabulary), PlainPython(vocabulary)
    document = BlankInfilling(vocabulary, level="document")
    rows, lists = list(ids), ids.tolist()
    return {
        "ours": lambda: ours(rows),
        "documents": lambda: document(rows),
        "theirs": lambda: theirs(lists),
    }


def floors() -> dict[str, Callable[[], object]]:
    language = HiddenMarkovLanguage.default()
    objective = BlankInfilling(language.vocabulary)
    ids = language.batch(*FLOOR)
    batch = objective.corrupt(ids, objective.generator(0, 0))
    return {"floor": lambda: objective.floor(language, ids, batch)}


def run() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        step = race(collation(), rounds=20)
        floor = race(floors(), rounds=5, warmup=1)
    finally:
        torch.set_num_threads(threads)
    time = {name: best(seconds) for name, seconds in (step | floor).items()}
    tokens = BATCH * TIME

    def speed(name: str) -> str:
        return f"{tokens / time[name] / 1e6:.3g} Mtok/s"

    plain, public = "a plain Python strategy, row by row", "0.31 Mtok/s of the public strategy"
    whole = "a second"
    return [
        Row(f"collation: {speed('ours')} to {speed('theirs')}", plain, time["ours"],
            time["theirs"]),
        Row(f"document level: {speed('documents')}", plain, time["documents"], time["theirs"]),
        Row(f"collation: {speed('ours')}", public, time["ours"], tokens / PUBLIC, 1 / FASTER),
        Row(f"exact floor of {FLOOR[0]} x {FLOOR[1]} tokens", whole, time["floor"], 1.0, 1.0),
    ]  # fmt: skip
