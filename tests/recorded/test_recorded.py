"""No number without its provenance."""

import pytest

from lossbook import recorded


@pytest.mark.parametrize("name", recorded.names())
def test_every_record_says_where_it_comes_from(name):
    assert set(recorded.load(name)) >= set(recorded.FIELDS)


def test_round_trip(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded.resources, "files", lambda package: tmp_path)
    recorded.write(tmp_path / "a.json", {"loss": 1 / 3}, device="cpu", seed=0, command="make it")
    assert recorded.names() == ["a"]
    record = recorded.load("a")
    assert record["result"] == {"loss": 1 / 3} and record["seed"] == 0
    assert set(record["versions"]) == {"python", "lossbook", "torch", "numpy"}


def test_a_record_without_provenance_is_refused():
    record = {"device": "cpu", "versions": {"python": "3"}, "seed": 0, "result": [1]}
    with pytest.raises(ValueError, match=r"curve: .*without \['command'\]"):
        recorded.checked(record, "curve")
    with pytest.raises(ValueError, match=r"without \['command'\]"):
        recorded.checked(record | {"command": ""}, "curve")


def test_an_unknown_name():
    with pytest.raises(ValueError, match=r"name: expected one of the records .*got 'nothing'"):
        recorded.load("nothing")
