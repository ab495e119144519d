"""A run killed at any moment ends with the weights of one that was not, bit for bit.

Real processes, killed by SIGKILL: at random times, and at each place in the writing of a
checkpoint. Dropout is on, so that forgotten random numbers would show.
"""

import multiprocessing
import random
import runpy
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from lossbook.training.checkpoint import latest

PARTS = ("corpora", "corpora.floors", "models", "objectives", "optim", "training")
CHILD = str(Path(__file__).with_name("child.py"))


@pytest.fixture(scope="module")
def context():
    """Processes forked from a clean one that has imported torch; Windows has to spawn them."""
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([f"lossbook.{part}" for part in PARTS])
    return found


def start(context, **job):
    process = context.Process(target=runpy.run_path, args=(CHILD, {"job": job}))
    process.start()
    return process


def finish(process):
    process.join(120)
    assert not process.is_alive()
    return process.exitcode


@pytest.fixture(scope="module")
def undisturbed(context, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finish(start(context, folder=folder)) == 0
    return latest(folder)


def assert_same(found, expected):
    assert found.step == expected.step == 30
    assert found.model.keys() == expected.model.keys()
    for name, weight in expected.model.items():
        assert torch.equal(found.model[name], weight), name
    ours, theirs = found.state["optimizer"]["state"], expected.state["optimizer"]["state"]
    for index, state in theirs.items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(ours[index][key]), torch.as_tensor(value)), key
    for key in ("steps", "losses", "evaluations", "floor", "tokens"):
        assert found.history[key] == expected.history[key], key


PLACES = ("in the middle of the bytes", "before the bytes are safe")
PLACES += ("before the name", "after the name")


@pytest.mark.parametrize("place", PLACES)
def test_killed_while_it_writes(context, undisturbed, tmp_path, place):
    """At the very first checkpoint, and later at the third of a process that resumed."""
    for save in (1, 3):
        code = finish(start(context, folder=tmp_path, die=place, save=save))
        assert code != 0, "the process was to die here"
    assert finish(start(context, folder=tmp_path)) == 0
    assert_same(latest(tmp_path), undisturbed)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "step-00000029.safetensors",
        "step-00000030.safetensors",
    ]


def test_killed_at_random_times(context, undisturbed, tmp_path):
    """Up to twelve deaths at unforeseeable moments, one to three steps behind a checkpoint."""
    clock, deaths = random.Random(0), 0
    job = {"folder": tmp_path, "options": {"save_every": 4}}
    for _ in range(12):
        process, before = start(context, **job), len(list(tmp_path.iterdir()))
        limit = time.monotonic() + 30
        while process.is_alive() and len(list(tmp_path.iterdir())) == before == 0:
            assert time.monotonic() < limit
            time.sleep(0.005)
        time.sleep(clock.uniform(0, 0.3))
        process.kill()
        deaths += finish(process) != 0
    assert deaths >= 3, "too few of the processes were killed for this to be a test"
    assert finish(start(context, **job)) == 0
    assert_same(latest(tmp_path), undisturbed)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo's two processes are tested on Unix")
def test_two_processes_give_the_weights_of_one(context, tmp_path):
    """Both count the targets of the whole step. In float64 what is left is the order of sums.

    Dropout has to be off: each process has its own. The largest weight is about 1, and six
    steps of Adam at rate 1e-3 amplify rounding of 1e-16 by less than 1e4.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    options = {"steps": 6, "accumulation": 2, "double": True, "dropout": 0.0}
    started = []
    for rank in range(2):
        group = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        group |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": "2"}
        job = {"environment": group, "options": options, "weights": tmp_path / f"{rank}.pt"}
        started.append(start(context, folder=tmp_path / "together", **job))
    assert [finish(process) for process in started] == [0, 0]
    options["accumulation"] = 1
    alone = {"options": options, "weights": tmp_path / "alone.pt"}
    assert finish(start(context, folder=tmp_path / "alone", **alone)) == 0
    one = torch.load(tmp_path / "alone.pt")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for name, weight in one.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=0, atol=1e-12)
    histories = [latest(tmp_path / name).history for name in ("together", "alone")]
    for key in ("losses", "floor", "tokens"):
        assert histories[0][key] == pytest.approx(histories[1][key], rel=1e-12)
