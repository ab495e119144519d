"""Checkpoints come back as they were saved, or not at all."""

import json

import pytest
import torch
from safetensors.torch import save_file

from lossbook.training.checkpoint import Checkpoint, differences, latest, pack, paths, unpack


def example(step=3):
    tied = torch.arange(6.0).view(2, 3)
    model = {"a.weight": tied, "b.weight": tied, "b.turned": tied.T, "scale": torch.tensor(2.5)}
    state = {
        "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(2, 3, dtype=torch.float64)}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0], "name": None}],
        "half": torch.randn(3).bfloat16(),
        "huge": float("inf"),
    }
    return Checkpoint(step, model, state, {"lr": 0.1}, {"losses": [1 / 3]})


def test_round_trip_keeps_every_bit_and_kind(tmp_path):
    saved = example()
    loaded = Checkpoint.load(saved.save(tmp_path))
    assert (loaded.step, loaded.settings, loaded.history) == (3, {"lr": 0.1}, {"losses": [1 / 3]})
    for name, weight in saved.model.items():
        assert torch.equal(loaded.model[name], weight)
    state = loaded.state["state"][0]
    assert torch.equal(state["m"], saved.state["state"][0]["m"]) and state["step"].ndim == 0
    assert loaded.state["param_groups"] == saved.state["param_groups"]  # a tuple stays a tuple
    assert loaded.state["half"].dtype == torch.bfloat16 and loaded.state["huge"] == float("inf")


def test_what_json_cannot_say_is_refused_by_its_path(tmp_path):
    bad = example()
    bad.state["param_groups"][0]["rule"] = len
    with pytest.raises(ValueError, match=r"state\.param_groups\.0\.rule: "):
        bad.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_last_two_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".step-00000002.safetensors.77.tmp").write_bytes(b"half")
    for step in (1, 2, 30, 4):
        example(step).save(tmp_path)
    assert [p.name for p in paths(tmp_path)] == [
        "step-00000004.safetensors",
        "step-00000030.safetensors",
    ]
    assert len(list(tmp_path.iterdir())) == 3  # the half file of a dead process is gone


@pytest.mark.parametrize("left", [0, 5, 200, -1])
def test_a_file_cut_short_is_named_and_the_one_before_it_serves(tmp_path, left):
    example(1).save(tmp_path)
    path = example(2).save(tmp_path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"step-00000002\.safetensors: expected a whole"):
        Checkpoint.load(path)
    with pytest.warns(UserWarning, match=r"step-00000002.*going on from step-00000001"):
        assert latest(tmp_path).step == 1
    paths(tmp_path)[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"step-00000002.*step-00000001"):
        latest(tmp_path)


def test_nothing_to_resume(tmp_path):
    assert latest(tmp_path) is None and latest(tmp_path / "not there") is None


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "step-00000001.safetensors"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"step-00000001.*another safetensors file"):
        Checkpoint.load(path)
    save_file({"x": torch.ones(2)}, path, {"lossbook": json.dumps({"schema": 99})})
    with pytest.raises(ValueError, match="expected a checkpoint of schema 1, got 99"):
        Checkpoint.load(path)
    save_file({"x": torch.ones(2)}, path, {"lossbook": json.dumps({"schema": 1})})
    with pytest.raises(ValueError, match=r"step-00000001.*settings"):
        Checkpoint.load(path)
    path.write_text("a pickle, perhaps")
    with pytest.raises(ValueError, match=r"step-00000001.*expected a whole checkpoint"):
        Checkpoint.load(path)


def test_pack_is_json_all_through():
    tensors = {}
    tree = {"a": [1, (2.5, None)], 7: {"t": torch.ones(1)}}
    packed = json.loads(json.dumps(pack(tree, "s", tensors)))
    assert unpack(packed, tensors) == tree


def test_differences_name_both_values():
    saved = {"lr": 0.1, "model": {"width": 8, "layers": 2}, "old": 1}
    asked = {"lr": 0.2, "model": {"width": 8, "layers": 3}}
    assert differences(saved, asked) == [
        "lr was 0.1 and is now 0.2",
        "model.layers was 2 and is now 3",
        "old was 1 and is now None",
    ]
    assert differences(saved, saved) == []
