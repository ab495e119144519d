"""The race: which runs it asks for, that it can be interrupted, and that it is fair."""

from __future__ import annotations

import inspect
import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lossbook import recorded
from lossbook.training import race

TINY = race.Setting(
    *(16, 1, 2, 8, 4), steps=6, warmup=2, evaluate_every=3, evaluation_batches=1
)  # fmt: skip


def played(name, excess, stop=10_000):
    """All runs that the protocol asks for, where ``excess(lr, seed)`` is the outcome."""
    runs, asked = {}, []
    while left := race.missing(runs, [name]):
        for key in left[: stop - len(asked)]:
            asked.append(key)
            value = excess(key[1], key[2])
            row = dict(zip(("optimizer", "lr", "seed"), key, strict=True))
            runs[key] = {**row, "excess": value, "first": [1.0], "curve": [2.0, value], "floor": 1}
        if len(asked) >= stop:
            break
    return runs, asked


def bowl(best, width=1.0):
    return lambda lr, seed: 0.1 + width * math.log2(lr / best) ** 2 + 0.01 * (seed % 7)


@pytest.mark.parametrize("shift", [-5, -2, 0, 1, 4])
def test_the_grid_grows_until_the_best_rate_has_two_worse_neighbours(shift):
    best = race.COMPETITORS["adam"].guess * 2.0**shift
    runs, _ = played("adam", bowl(best))
    rates = sorted(race.scores(runs, "adam"))
    assert race.tuned(runs, "adam") == best
    assert min(rates.index(best), len(rates) - 1 - rates.index(best)) >= race.NEIGHBOURS
    assert len(rates) == race.RATES + abs(shift)
    assert {b / a for a, b in pairwise(rates)} == {2.0}


def test_only_the_tuned_rate_meets_the_test_seeds():
    runs, asked = played("sgd", bowl(race.COMPETITORS["sgd"].guess))
    tested = [(lr, seed) for _, lr, seed in asked if seed in race.TEST]
    assert tested == [(race.tuned(runs, "sgd"), seed) for seed in race.TEST]
    assert not set(race.TEST) & set(race.TUNING)
    assert len(asked) == len(set(asked)) == race.RATES * len(race.TUNING) + len(race.TEST)


def test_torchs_default_rate_runs_on_the_tuning_seeds_and_tunes_nothing():
    """Even where it is the best of all: it stands between two rates of the grid."""
    runs, asked = played("adam", lambda lr, seed: 0.0 if lr == 1e-3 else bowl(2.0**-8)(lr, seed))
    assert [seed for _, lr, seed in asked if lr == 1e-3] == list(race.TUNING)
    assert race.tuned(runs, "adam") == 2.0**-8
    assert 1e-3 not in race.scores(runs, "adam")
    entry = race.summary(runs, race.Setting())["competitors"]["adam"]["default"]
    assert entry["lr"] == 1e-3 and entry["excess"] == [0.0] * len(race.TUNING)


def test_the_default_rates_are_torchs():
    names = {"adagrad": "Adagrad", "rmsprop": "RMSprop", "adadelta": "Adadelta", "adam": "Adam",
             "adamw": "AdamW", "amsgrad": "Adam", "adamax": "Adamax", "nadam": "NAdam",
             "radam": "RAdam"}  # fmt: skip
    for name, made in race.COMPETITORS.items():
        if made.default is not None:
            found = inspect.signature(getattr(torch.optim, names[name])).parameters["lr"]
            assert made.default == found.default
    assert set(names) == {n for n, made in race.COMPETITORS.items() if made.default is not None}


def test_who_is_not_tuned_runs_on_the_test_seeds_at_the_papers_rate():
    runs, asked = played("adafactor-published", bowl(0.01))
    assert asked == [("adafactor-published", 0.01, seed) for seed in race.TEST]
    found = race.summary(runs, race.Setting())["untuned"]["adafactor-published"]
    assert [row["seed"] for row in found["test"]] == list(race.TEST)
    made = race.competitor("adafactor-published")
    assert race._schedule(made.schedule, race.Setting()).factors(300).tolist() == [1.0] * 300


def test_a_run_that_diverged_loses_to_every_other():
    guess = race.COMPETITORS["sgd"].guess
    runs, _ = played("sgd", lambda lr, seed: None if lr > guess else bowl(guess)(lr, seed))
    assert race.tuned(runs, "sgd") == guess
    assert race.scores(runs, "sgd")[2 * guess] == math.inf


def test_an_interrupted_race_asks_for_the_rest(tmp_path):
    guess = race.COMPETITORS["adam"].guess
    whole, _ = played("adam", bowl(guess))
    part, _ = played("adam", bowl(guess), stop=7)
    path = tmp_path / "race.jsonl"
    lines = [json.dumps(row) for row in part.values()]
    path.write_text("\n".join(lines) + "\n" + lines[0][:20], "utf-8")  # cut in the middle
    loaded = race.load(path)
    assert loaded == part
    assert set(race.missing(loaded, ["adam"])) <= set(whole) - set(part)
    assert race.load(tmp_path / "none") == {}


def test_go_on_writes_what_it_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(race, "RATES", 1)
    monkeypatch.setattr(race, "NEIGHBOURS", 0)
    path = tmp_path / "race.jsonl"
    assert race.go_on(path, ["adam"], math.inf, TINY) == 0
    runs = race.load(path)
    assert set(seed for _, _, seed in runs) == {*race.TUNING, *race.TEST}
    found = race.summary(runs, TINY)
    assert list(found["competitors"]) == ["adam"] and found["steps"] == [0, 3, 6]
    test = found["competitors"]["adam"]["test"]
    assert [row["seed"] for row in test] == list(race.TEST)
    assert all(row["excess"] == row["curve"][-1] > 0 for row in test)
    assert found["tuning_seeds"] == race.TUNING
    assert race.go_on(path, ["adam"], 0.0, TINY) == 0  # nothing is left


def test_a_seed_means_the_same_for_everybody():
    """Same weights and same first batch: the first loss agrees to the last bit."""
    first = {race.run(name, 1e-3, 3, TINY, stop=1)["first"][0] for name in race.COMPETITORS}
    assert len(first) == 1
    assert race.run("adam", 1e-3, 4, TINY, stop=1)["first"][0] not in first


def test_a_run_repeats_itself_and_a_prefix_is_its_beginning():
    whole, again = (race.run("momentum", 0.1, 0, TINY) for _ in range(2))
    assert whole == again
    assert race.run("momentum", 0.1, 0, TINY, stop=3)["first"] == whole["first"][:3]


def test_a_rate_that_is_far_too_large_is_recorded_as_diverged():
    found = race.run("sgd", 1e30, 0, TINY)
    assert found["excess"] is None and found["curve"] == []


@pytest.mark.parametrize("name", race.COMPETITORS)
@pytest.mark.parametrize("shape", [(6, 5), (7,)])
def test_the_state_is_what_the_formula_says(name, shape):
    p = torch.nn.Parameter(torch.ones(shape))
    optimizer = race.COMPETITORS[name].make([("weight", p)], 1e-3)
    for _ in range(2):
        p.grad = torch.ones(shape)
        optimizer.step()
    kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor)]
    assert sum(x.numel() for x in kept) == race.COMPETITORS[name].state(shape)


def test_an_unknown_competitor_is_named():
    with pytest.raises(ValueError, match=r"name: expected one of .*'adam'.* got 'lion'"):
        race.run("lion", 1e-3, 0)


def test_a_record_of_a_race_has_its_provenance(tmp_path):
    runs, _ = played("adam", bowl(race.COMPETITORS["adam"].guess))
    path = tmp_path / "race.json"
    result = race.summary(runs, race.Setting())
    recorded.write(path, result, device="cpu", seed=0, command="run it")
    saved = recorded.checked(json.loads(path.read_text("utf-8")), "race")["result"]
    tuning = saved["competitors"]["adam"]["tuning"]
    means = {row["lr"]: np.mean(row["excess"]) for row in tuning}
    assert min(means, key=means.get) == saved["competitors"]["adam"]["tuned"]
