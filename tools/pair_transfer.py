"""What a pair task teaches: train on one, test on both. Writes the record ``sentence-pairs``.

For each seed one small encoder is trained on the next sentence and one on the order of
sentences, on the pairs alone; both are then asked both questions. Seeds that the file already
has are kept, so a run can be cut into parts::

    python tools/pair_transfer.py --seeds 4
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossbook import recorded
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.models import PairEncoder, TransformerConfig
from lossbook.models.transformer import initialise
from lossbook.objectives import NextSentence, SentenceOrder
from lossbook.training import pretrain

RECORD = Path(recorded.__file__).parent / "sentence-pairs.json"
TASKS = {kind.name: kind for kind in (NextSentence, SentenceOrder)}
FIELDS = ("input_ids", "attention_mask", "token_type_ids")
HOW = {"progress": False, "evaluation_batches": 4, "evaluate_every": 100, "device": "cpu"}


def goal(name: str, language: HiddenMarkovLanguage) -> Any:
    """A pair task without masks and without short targets."""
    return TASKS[name](language.vocabulary, rate=0.0, short=0.0)


def tell(record: dict[str, Any]) -> None:
    print(f"  step {record['step']:4d}  {record['loss']:.3f}  ({record['floor']:.3f})", flush=True)


@torch.no_grad()
def accuracies(model: PairEncoder, language: HiddenMarkovLanguage) -> dict[str, float]:
    """Shares of right answers to both questions on 1,024 validation pairs each."""
    found = {}
    for name in TASKS:
        right = []
        for index in range(4):
            ids = language.batch(256, 64, index=1000 + index, split="validation")
            batch = goal(name, language).batch(ids, epoch=1000, index=index)
            answers = model(**{field: batch[field] for field in FIELDS}).pair_logits.argmax(-1)
            right += (answers == batch[goal(name, language).label_name]).tolist()
        found[name] = float(np.mean(right))
    return found


@torch.no_grad()
def pooling_start(words: int, seed: int) -> PairEncoder:
    """One block that begins as a bag of words: words loud, places quiet, attention even."""
    model = PairEncoder(TransformerConfig(words, width=64, layers=1, heads=1), seed)
    initialise(model, seed, std=0.15)
    model.embedding.weight *= 3
    model.position.weight *= 0.1
    model.token_type.weight *= 0.1
    model.blocks[0].attention.qkv.weight[:128] *= 0.1  # queries and keys
    return model


def usual_start(words: int, seed: int) -> PairEncoder:
    """One block with the usual kind of weights."""
    model = PairEncoder(TransformerConfig(words, width=64, layers=1), seed)
    initialise(model, seed, std=0.1)
    return model


#: What each task learns from in a short time: the start, and how it is trained.
RECIPES = {
    "next-sentence": (pooling_start, {"steps": 1000, "batch_size": 64, "lr": 2e-3}),
    "sentence-order": (usual_start, {"steps": 300, "batch_size": 32, "lr": 3e-3}),
}


def one_seed(seed: int, language: HiddenMarkovLanguage) -> dict[str, Any]:
    """One model per task, and the answers of both to both questions."""
    result: dict[str, Any] = {"seed": seed}
    for name, (start, how) in RECIPES.items():
        print(f"seed {seed}, {name}", flush=True)
        model = start(language.vocabulary.size, seed)
        constant = {"schedule": "constant", "warmup": 20} if name == "next-sentence" else {}
        history = pretrain(model, goal(name, language), language, length=64, seed=seed,
                           on_evaluation=tell, **how, **constant, **HOW)  # fmt: skip
        curve = [[r["step"], r["loss"]] for r in history.evaluations]
        result[name] = {"curve": curve, "floor": history.floor}
        result[name]["accuracy"] = accuracies(model, language)
        print(f"  {result[name]['accuracy']}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--record", type=Path, default=RECORD)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    language = HiddenMarkovLanguage.default()
    done = []
    if arguments.record.exists():
        done = json.loads(arguments.record.read_text("utf-8"))["result"]["runs"]
    for seed in range(len(done), arguments.seeds):
        done.append(one_seed(seed, language))
        command = f"python tools/pair_transfer.py --seeds {len(done)}"
        recorded.write(arguments.record, {"runs": done}, device="CPU (x86-64, one thread)",
                       seed=0, command=command)  # fmt: skip


if __name__ == "__main__":
    main()
