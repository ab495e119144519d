"""A race: the same model, texts, steps and schedule for every optimizer, each at its tuned rate.

The protocol has three parts. *Tuning* trains every competitor on the seeds ``TUNING`` at rates that
are factors of two apart, and goes on at the end where the best rate lies until it has two worse
neighbours on either side. *Testing* trains it at that rate on the seeds ``TEST``, which tuning has
never seen. *Scoring* takes the last validation loss above its exact floor. For comparison, those
whose rate has a default in torch run at it too, on the tuning seeds, and those of ``UNTUNED`` run
as their paper has them, on the test seeds.

What a seed decides (initial weights, order of texts) it decides for everybody, so that competitors
can be compared pair by pair. ``python -m lossbook.training.race`` runs what is still missing,
one line of JSON for each run, and may be interrupted at any time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lossbook import recorded
from lossbook._require import require
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.models import Decoder, TransformerConfig
from lossbook.objectives import CausalLM
from lossbook.optim import (
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    AdaMax,
    AdamW,
    AMSGrad,
    Course,
    NAdam,
    NonFiniteGradientError,
    RAdam,
    RMSprop,
    course,
)
from lossbook.training.history import History
from lossbook.training.pretrain import Diverged, pretrain

TUNING = (100, 101, 102, 103, 104)
TEST = (0, 1, 2, 3, 4)
RATES = 5  # to begin with; more where the best is near the edge
NEIGHBOURS = 2  # worse rates that are wanted on either side of the best
FIRST = 5  # training losses that are kept, to be checked by a short run

Make = Callable[[Iterable[Any], float], torch.optim.Optimizer]


@dataclass(frozen=True)
class Setting:
    """What all competitors share.

    Args:
        width, layers, heads: of the decoder.
        length, batch_size: tokens of a text, texts of a step.
        steps: updates of the weights.
        warmup: steps of them on the way up to the peak rate; a cosine leads down to 0.
        clip: largest norm of the gradient.
        evaluate_every: steps from one evaluation to the next.
        evaluation_batches: of the same size, the same in all runs.
    """

    width: int = 64
    layers: int = 2
    heads: int = 4
    length: int = 32
    batch_size: int = 16
    steps: int = 300
    warmup: int = 30
    clip: float = 1.0
    evaluate_every: int = 25
    evaluation_batches: int = 8


@dataclass(frozen=True)
class Competitor:
    """An optimizer with everything but its rate.

    Attributes:
        label: for figures.
        make: ``make(named_parameters, lr)``.
        guess: the rate in the middle of the first grid.
        state: numbers that it keeps of a parameter tensor of a given shape.
        default: torch's rate for it, where torch has one.
        schedule: of the rate; ``"cosine"`` is that of the race.
    """

    label: str
    make: Make
    guess: float
    state: Callable[[tuple[int, ...]], int]
    default: float | None = None
    schedule: str = "cosine"


def _full(times: int) -> Callable[[tuple[int, ...]], int]:
    return lambda shape: times * math.prod(shape)


def _margins(shape: tuple[int, ...]) -> int:
    return sum(shape) if len(shape) == 2 else math.prod(shape)


#: Every competitor has the defaults of torch beside its rate; the exceptions are written out.
COMPETITORS: dict[str, Competitor] = {
    "sgd": Competitor("SGD", lambda p, lr: SGD(p, lr=lr), 1.0, _full(0)),
    "momentum": Competitor("momentum", lambda p, lr: SGD(p, lr=lr, momentum=0.9), 0.25, _full(1)),
    "nesterov": Competitor(
        "Nesterov", lambda p, lr: SGD(p, lr=lr, momentum=0.9, nesterov=True), 0.25, _full(1)
    ),
    "adagrad": Competitor("AdaGrad", lambda p, lr: Adagrad(p, lr=lr), 2.0**-6, _full(1), 1e-2),
    "rmsprop": Competitor("RMSProp", lambda p, lr: RMSprop(p, lr=lr), 2.0**-9, _full(1), 1e-2),
    "adadelta": Competitor("AdaDelta", lambda p, lr: Adadelta(p, lr=lr), 4.0, _full(2), 1.0),
    "adam": Competitor("Adam", lambda p, lr: Adam(p, lr=lr), 2.0**-8, _full(2), 1e-3),
    "adamw": Competitor(
        "AdamW",
        lambda p, lr: AdamW(p, lr=lr, weight_decay=0.01, exclude="rank"),
        2.0**-8,
        _full(2),
        1e-3,
    ),
    "bert": Competitor(
        "BERT's Adam",
        lambda p, lr: Adam.like("bert", p, lr=lr, exclude="rank", clip=None),
        2.0**-10,
        _full(2),
    ),
    "amsgrad": Competitor("AMSGrad", lambda p, lr: AMSGrad(p, lr=lr), 2.0**-8, _full(3), 1e-3),
    "adamax": Competitor("AdaMax", lambda p, lr: AdaMax(p, lr=lr), 2.0**-7, _full(2), 2e-3),
    "nadam": Competitor("NAdam", lambda p, lr: NAdam(p, lr=lr), 2.0**-8, _full(2), 2e-3),
    "radam": Competitor("RAdam", lambda p, lr: RAdam(p, lr=lr), 2.0**-8, _full(2), 1e-3),
    "adafactor": Competitor("Adafactor", lambda p, lr: Adafactor(p, lr=lr), 2.0**-3, _margins),
    "adafactor-unscaled": Competitor(
        "Adafactor, unscaled",
        lambda p, lr: Adafactor(p, lr=lr, rate="given", scale_parameter=False),
        2.0**-8,
        _margins,
    ),
}

#: These run out of competition, and nothing of them is tuned.
UNTUNED: dict[str, Competitor] = {
    "adafactor-published": Competitor(
        "Adafactor, the paper's rate",
        lambda p, lr: Adafactor(p, lr=lr),
        1e-2,
        _margins,
        schedule="constant",
    ),
}


def competitor(name: str) -> Competitor:
    """The competitor of that name."""
    every = COMPETITORS | UNTUNED
    require(name in every, "name", name, f"one of {tuple(every)}")
    return every[name]


@cache
def language() -> HiddenMarkovLanguage:
    """The book's language; texts that several runs ask for are drawn once."""
    made = HiddenMarkovLanguage.default()
    made.batch = cache(made.batch)
    return made


def decoder(setting: Setting, seed: int) -> Decoder:
    """The model of the race, with the initial weights of a seed."""
    words = language().vocabulary.size
    shape = {"width": setting.width, "layers": setting.layers, "heads": setting.heads}
    return Decoder(TransformerConfig(words, max_length=setting.length, **shape), seed=seed)


def run(
    name: str, lr: float, seed: int, setting: Setting | None = None, stop: int | None = None
) -> dict[str, Any]:
    """One run of a competitor, on the CPU.

    Args:
        name: one of ``COMPETITORS``.
        lr: the peak rate.
        seed: of the initial weights and of the order of the texts; no competitor enters it.
        setting: what all share.
        stop: steps after which to stop early; the schedule remains that of the whole run.

    Returns:
        ``optimizer``, ``lr``, ``seed``; ``first``, the first training losses; ``curve``, the
        excess at every evaluation; ``excess``, the last one, None where the loss was not finite;
        ``floor``.
    """
    setting = setting or Setting()
    made = competitor(name)
    record = {"optimizer": name, "lr": lr, "seed": seed}
    try:
        history = _train(made, lr, seed, setting, stop)
    except (Diverged, NonFiniteGradientError):
        return {**record, "first": [], "curve": [], "excess": None, "floor": None}
    curve = [round(e["excess"], 5) for e in history.evaluations]
    first = [round(x, 7) for x in history.losses[:FIRST]]
    return {**record, "first": first, "curve": curve, "excess": curve[-1], "floor": history.floor}


def _schedule(name: str, setting: Setting) -> Course:
    if name == "constant":
        return course(name)
    return course(name, steps=setting.steps, warmup=setting.warmup, start="even")


def _train(made: Competitor, lr: float, seed: int, setting: Setting, stop: int | None) -> History:
    model = decoder(setting, seed)
    return pretrain(
        model,
        CausalLM(language().vocabulary),
        language(),
        steps=stop or setting.steps,
        batch_size=setting.batch_size,
        length=setting.length,
        optimizer=made.make(model.named_parameters(), lr),
        schedule=_schedule(made.schedule, setting),
        clip=setting.clip,
        device="cpu",
        seed=seed,
        evaluate_every=setting.evaluate_every,
        evaluation_batches=setting.evaluation_batches,
        progress=False,
    )


# Which runs are still missing

Runs = dict[tuple[str, float, int], dict[str, Any]]


def grid(guess: float, low: int, high: int) -> list[float]:
    """Rates that are factors of two apart, from ``low`` to ``high`` powers around the guess."""
    return [guess * 2.0**k for k in range(low, high + 1)]


def scores(runs: Runs, name: str) -> dict[float, float]:
    """Mean excess over the tuning seeds, by rate, for the rates of the grid that have them all."""
    guess = competitor(name).guess
    rates = sorted(
        {lr for found, lr, _ in runs if found == name and math.log2(lr / guess) % 1 == 0}
    )
    found = {}
    for lr in rates:
        rows = [runs.get((name, lr, seed)) for seed in TUNING]
        if all(rows):
            values = [math.inf if row["excess"] is None else row["excess"] for row in rows]
            found[lr] = float(np.mean(values))
    return found


def wanted(runs: Runs, name: str) -> list[float]:
    """The rates that tuning asks for, given what it has seen."""
    guess = competitor(name).guess
    half = RATES // 2
    first = grid(guess, -half, half)
    seen = scores(runs, name)
    if set(first) - set(seen):
        return first
    rates = sorted(seen)
    best = rates.index(min(seen, key=seen.get))
    below, above = NEIGHBOURS - best, NEIGHBOURS - (len(rates) - 1 - best)
    lower = [rates[0] / 2.0**k for k in range(1, below + 1)]
    upper = [rates[-1] * 2.0**k for k in range(1, above + 1)]
    return rates + lower + upper


def tuned(runs: Runs, name: str) -> float | None:
    """The best rate, once tuning is over."""
    seen = scores(runs, name)
    over = seen and not set(wanted(runs, name)) - set(seen)
    return min(seen, key=seen.get) if over else None


def missing(runs: Runs, names: Iterable[str]) -> list[tuple[str, float, int]]:
    """The next runs: of every competitor those of its tuning, or else of its test."""
    found = []
    for name in names:
        made = competitor(name)
        best = made.guess if name in UNTUNED else tuned(runs, name)
        rates, seeds = (wanted(runs, name), TUNING) if best is None else ([best], TEST)
        found += [(name, lr, seed) for lr in rates for seed in seeds]
        if made.default is not None:
            found += [(name, made.default, seed) for seed in TUNING]
    return [key for key in dict.fromkeys(found) if key not in runs]


# Running and recording


def load(path: Path) -> Runs:
    """The runs in a file of JSON lines; a last line that was cut short does not count."""
    runs: Runs = {}
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        runs[row["optimizer"], row["lr"], row["seed"]] = row
    return runs


def go_on(path: Path, names: Iterable[str], minutes: float, setting: Setting) -> int:
    """Run what is missing for that many minutes; how many runs are known to be left."""
    names, end = list(names), time.monotonic() + 60 * minutes
    runs = load(path)
    while left := missing(runs, names):
        for key in left:
            if time.monotonic() > end:
                return len(missing(runs, names))
            runs[key] = run(*key, setting)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(runs[key]) + "\n")
            print(*key, runs[key]["excess"], flush=True)
    return 0


def summary(runs: Runs, setting: Setting) -> dict[str, Any]:
    """The record: the setting, and for every competitor all of its runs, tuning and test."""
    found: dict[str, Any] = {}
    for name in COMPETITORS:
        best = tuned(runs, name)
        if best is None or any((name, best, seed) not in runs for seed in TEST):
            continue
        found[name] = {
            "label": COMPETITORS[name].label,
            "tuned": best,
            "tuning": [_short(runs, name, lr) for lr in sorted(scores(runs, name))],
            "test": [_row(runs[name, best, seed]) for seed in TEST],
        }
        default = COMPETITORS[name].default
        if default is not None and all((name, default, seed) in runs for seed in TUNING):
            found[name]["default"] = _short(runs, name, default)
    floor = next(row["floor"] for row in runs.values() if row["floor"])
    steps = list(range(0, setting.steps + 1, setting.evaluate_every))
    head = {"setting": asdict(setting), "tuning_seeds": TUNING, "test_seeds": TEST}
    untuned = {
        name: {
            "label": made.label,
            "lr": made.guess,
            "test": [_row(runs[name, made.guess, seed]) for seed in TEST],
        }
        for name, made in UNTUNED.items()
        if all((name, made.guess, seed) in runs for seed in TEST)
    }
    return {**head, "floor": floor, "steps": steps, "competitors": found, "untuned": untuned}


def _row(run: dict[str, Any]) -> dict[str, Any]:
    return {key: run[key] for key in ("seed", "excess", "first", "curve")}


def _short(runs: Runs, name: str, lr: float) -> dict[str, Any]:
    rows = [runs[name, lr, seed] for seed in TUNING]
    halves = [row["curve"][:: max(1, len(row["curve"]) // 4)] for row in rows]
    return {"lr": lr, "excess": [row["excess"] for row in rows], "curve": halves}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m lossbook.training.race", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("race.jsonl"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--only", nargs="*", default=[*COMPETITORS, *UNTUNED])
    parser.add_argument("--record", type=Path, help="write the record there and stop")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting()
    if asked.record:
        command = "python -m lossbook.training.race --runs race.jsonl"
        runs = load(asked.runs)
        when = {"date": datetime.date.today().isoformat(), "runs": len(runs)}
        result = when | summary(runs, setting)
        device = "CPU (x86-64, one thread)"
        recorded.write(asked.record, result, device=device, seed=0, command=command)
        return
    left = go_on(asked.runs, asked.only, asked.minutes, setting)
    print(f"{left} runs of this round are left" if left else "all runs are there")


if __name__ == "__main__":
    main()
