"""A history is JSON, whole or refused."""

import json
import math

import pytest

from lossbook.training.history import History, write_atomically

EXAMPLE = History(
    objective="masked-lm",
    corpus="tiny",
    steps=[1, 2],
    losses=[2.0, 1 / 3],
    evaluations=[
        {"step": 0, "loss": 3.0, "floor": 1.0, "excess": 2.0},
        {"step": 2, "loss": 1.5, "floor": 1.0, "excess": 0.5},
    ],
    floor=1.0,
    entropy=1.1,
    targets=10,
    tokens=600,
    seconds=2.0,
    device="cpu",
    settings={"seed": 0},
)


def test_what_it_says():
    assert (EXAMPLE.final_loss, EXAMPLE.excess, EXAMPLE.tokens_per_second) == (1.5, 0.5, 300)
    assert EXAMPLE.perplexity == pytest.approx(math.exp(1.5), rel=1e-15)


def test_without_evaluation_the_training_losses_speak():
    history = History(losses=[9.0] + [1.0, 3.0] * 5)
    assert (history.final_loss, history.excess, history.tokens_per_second) == (2.0, None, 0.0)
    assert math.isnan(History().final_loss)


def test_round_trip(tmp_path):
    EXAMPLE.save(tmp_path / "deep" / "run.json")
    assert History.load(tmp_path / "deep" / "run.json") == EXAMPLE


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"objective": ""}', b"\xff\xfe"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"run\.json: expected a saved History"):
        History.load(path)


def test_unknown_fields_are_named(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(EXAMPLE.to_json() | {"extra": 1}))
    with pytest.raises(ValueError, match="extra"):
        History.load(path)


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")

    def fail(new):
        new.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"] and path.read_text() == "old"
