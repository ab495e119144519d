"""Sentence pairs on one thread: a batch of 512 rows of 128 tokens, and floors of 64 x 64 tokens.

The peer builds pairs from the same documents, given as lists of sentences, one after the other in
plain Python, as BERT's ``create_pretraining_data.py`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.timing import Row, best, race
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.objectives import NextSentence, SentenceOrder, instances

BATCH, TIME = 512, 128
PEER = "one pair after the other, in Python"
SECOND = "one second"


def one_after_the_other(language: HiddenMarkovLanguage, ids: np.ndarray) -> Callable[[], object]:
    """One pair per document, padded into arrays."""
    ends = language.sentence_end_id
    documents = []
    for row in ids[:, 1:-1]:
        cuts = np.flatnonzero(row == ends) + 1
        documents.append([part.tolist() for part in np.split(row, cuts)[:-1]])

    def build() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(0)
        seen, kinds, mask = np.zeros((3, BATCH, TIME), np.int64)
        labels = np.zeros(BATCH, np.int64)
        for i in range(BATCH):
            pair = next(instances(documents, i, rng, max_length=TIME))
            row = [2, *pair.first, 3, *pair.second, 3]
            seen[i, : len(row)], mask[i, : len(row)] = row, 1
            kinds[i, len(pair.first) + 2 : len(row)] = 1
            labels[i] = pair.label
        return {
            "input_ids": seen,
            "token_type_ids": kinds,
            "attention_mask": mask,
            "labels": labels,
        }

    return build


def run() -> list[Row]:
    language = HiddenMarkovLanguage.default()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [*_building(language), *_floors(language)]
    finally:
        torch.set_num_threads(threads)


def _building(language: HiddenMarkovLanguage) -> list[Row]:
    ids = language.batch(BATCH, TIME)
    contestants = {"theirs": one_after_the_other(language, ids)}
    for kind in (NextSentence, SentenceOrder):
        for rate in (0.0, 0.15):
            objective = kind(language.vocabulary, rate=rate)
            rng = objective.generator(0, 0)
            name = f"{objective.name}{', masked' if rate else ''}"
            contestants[name] = lambda o=objective, r=rng: o.corrupt(ids, r)
    seconds = {name: best(times) for name, times in race(contestants, rounds=12).items()}
    theirs = seconds.pop("theirs")
    speed = {name: BATCH * TIME / s / 1e6 for name, s in seconds.items()}
    return [
        Row(f"{name}: {speed[name]:.0f} Mtok/s", PEER, ours, theirs, BATCH * TIME / 1e6 / theirs)
        for name, ours in seconds.items()
    ]


def _floors(language: HiddenMarkovLanguage) -> list[Row]:
    ids, rows = language.batch(64, 64), []
    for kind in (NextSentence, SentenceOrder):
        for rate in (0.0, 0.15):
            objective = kind(language.vocabulary, rate=rate)
            batch = objective.corrupt(ids, objective.generator(0, 0))
            how = {"floor": lambda o=objective, b=batch: o.floor(language, ids, b)}
            ours = best(race(how, rounds=3, warmup=1)["floor"])
            name = f"floor, {objective.name}{' and masked tokens' if rate else ''}"
            rows.append(Row(f"{name}, 64 x 64", SECOND, ours, 1.0, 1.0))
    return rows
