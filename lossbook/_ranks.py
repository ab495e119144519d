"""Rank against excess over the floor: ``python -m lossbook._ranks --out lora.json``.

A decoder learns stories told in order; adapters of several ranks, and full fine-tuning, then
learn to tell them backwards. One line of ``RUNS.jsonl`` for each finished run: started again,
the script does what is missing. When nothing is, it writes the record.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lossbook._adapt import ATTENTION, BACKWARDS, MLP
from lossbook.adapters import apply_lora, trainable
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.models import Decoder, TransformerConfig
from lossbook.objectives import CausalLM, ConditionalLM
from lossbook.optim import AdamW
from lossbook.recorded import write
from lossbook.training import pretrain

ALPHA, WIDTH, LENGTH, BATCH = 8.0, 64, 24, 32
BASE_STEPS, STEPS = 1000, 200
SEEDS = (0, 1, 2)
RANKS = (1, 2, 4, 8, 16)
PLACES: dict[str, tuple[str, ...]] = {
    "qv": ATTENTION[:1],
    "blocks": ATTENTION + MLP,
    "embedding too": (*ATTENTION, *MLP, "embedding"),
}
#: What stands in the place of alpha / rank, at rank 32.
SCALINGS = {"alpha / r": (ALPHA, False), "alpha / sqrt r": (ALPHA, True), "alpha": (32 * ALPHA, 0)}


def plan() -> Iterator[dict[str, Any]]:
    """Every run as its settings, seed by seed."""
    for seed in SEEDS:
        yield {"seed": seed, "what": "full", "rank": 0, "scaling": ""}
        for what in PLACES:
            for rank in RANKS:
                yield {"seed": seed, "what": what, "rank": rank, "scaling": "alpha / r"}
        for scaling in SCALINGS:
            yield {"seed": seed, "what": "blocks", "rank": 32, "scaling": scaling}


def base(seed: int, folder: Path) -> Decoder:
    """The decoder of stories told in order, trained once for each seed."""
    language = HiddenMarkovLanguage.default()
    shape = {"width": WIDTH, "layers": 2, "heads": 4, "max_length": LENGTH}
    model = Decoder(TransformerConfig(language.vocabulary.size, **shape), seed=seed)
    goal = CausalLM(language.vocabulary)
    options: dict[str, Any] = {"steps": BASE_STEPS, "lr": 3e-3, "evaluate_every": BASE_STEPS}
    pretrain(model, goal, language, checkpoint=folder / f"base-{seed}", **options, **_how(seed))
    return model


def run(settings: dict[str, Any], model: Decoder) -> dict[str, Any]:
    """Adapt and report: excess at five points, numbers trained, the floor."""
    language = HiddenMarkovLanguage.default()
    seed, what, rank = settings["seed"], settings["what"], settings["rank"]
    if what != "full":
        alpha, root = SCALINGS[settings["scaling"]]
        parts = {ATTENTION[0]: (True, False, True)} if what == "qv" else None
        options: dict[str, Any] = {"rank": rank, "alpha": alpha, "rslora": bool(root)}
        apply_lora(model, PLACES[what], parts=parts, seed=seed, **options)
    lr = 3e-3 if what == "full" else 1e-2
    optimizer = AdamW(trainable(model), lr=lr, weight_decay=0.0)
    goal, task = ConditionalLM(language.vocabulary), language.part(stages=BACKWARDS)
    rest: dict[str, Any] = {"steps": STEPS, "lr": lr, "evaluate_every": STEPS // 4}
    history = pretrain(model, goal, task, optimizer=optimizer, **rest, **_how(seed))
    excess = [round(e["excess"], 4) for e in history.evaluations]
    trained = sum(p.numel() for _, p in trainable(model))
    found = {"excess": excess, "trained": trained, "floor": round(history.floor or 0.0, 4)}
    return settings | found


def _how(seed: int) -> dict[str, Any]:
    return {"batch_size": BATCH, "length": LENGTH, "seed": seed, "device": "cpu"} | {
        "progress": False
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="lora.json")
    parser.add_argument("--runs", default="lora-runs", help="folder for what is finished")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many")
    given = parser.parse_args()
    folder, start = Path(given.runs), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "runs.jsonl"
    done = (
        [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    )
    keys = ("seed", "what", "rank", "scaling")
    seen = {tuple(record[k] for k in keys) for record in done}
    for settings in plan():
        if tuple(settings[k] for k in keys) in seen:
            continue
        if time.monotonic() - start > 60 * given.minutes:
            return
        done.append(run(settings, base(settings["seed"], folder)))
        print(done[-1], flush=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(done[-1]) + "\n")
    result = {"runs": done, "steps": STEPS, "base_steps": BASE_STEPS, "alpha": ALPHA}
    shape = {"width": WIDTH, "length": LENGTH, "batch_size": BATCH}
    command = "python -m lossbook._ranks --out lora.json"
    device = f"cpu ({torch.get_num_threads()} thread)"
    write(given.out, result | shape, device=device, seed=0, command=command)


if __name__ == "__main__":
    main()
