"""The causal objective from the command line: the book's language, Python's words, a file."""

import json
import re

import pytest
from typer.testing import CliRunner

from lossbook import cli
from lossbook.training import History

QUICK = "--batch-size 4 --length 12 --width 16 --layers 1 --heads 2 --evaluate-every 2 --device cpu"
CAUSAL = "--objective causal-lm"


def lossbook(*arguments):
    return CliRunner().invoke(cli.app, [a for part in arguments for a in part.split(" ") if a])


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_pretrain_on_the_books_language(tmp_path, direction):
    options = f"--steps 2 --history {tmp_path}/h.json --set direction={direction}"
    done = lossbook("pretrain", CAUSAL, QUICK, options)
    assert done.exit_code == 0, done.output
    assert "causal-lm on the book's language" in done.output and "Decoder of 1 layer" in done.output
    history = History.load(tmp_path / "h.json")
    assert history.settings["objective"]["direction"] == direction
    assert history.floor > 1 and history.targets == 8 * 4 * 10


def test_pretrain_on_the_documentation_of_python():
    done = lossbook("pretrain", CAUSAL, QUICK, "--steps 2 --corpus python-docs --vocab-size 1500")
    assert done.exit_code == 0, done.output
    assert "validation perplexity" in done.output and "no floor" in done.output


def test_pretrain_on_a_file(tmp_path):
    path = tmp_path / "my text.txt"
    path.write_text("one fish two fish red fish blue fish . " * 60, "utf-8")
    arguments = ["pretrain", "--corpus", str(path), "--vocab-size", "300", "--tokenizer", "bpe"]
    arguments += f"{CAUSAL} {QUICK} --steps 2".split()
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "causal-lm on my text.txt" in done.output


def test_documents_that_are_kept_apart(tmp_path):
    """The field ``documents`` finds its way from the objective to the decoder."""
    path = tmp_path / "words.txt"
    path.write_text("one fish two fish . " * 60, "utf-8")
    arguments = ["pretrain", "--corpus", str(path), "--vocab-size", "300", "--tokenizer", "bpe"]
    arguments += f"{CAUSAL} {QUICK} --steps 2 --set isolate=true --set ends=true".split()
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output


def test_resumed_after_a_stop(tmp_path):
    """The same command in one go and in two: equal curves."""
    once = lossbook("pretrain", CAUSAL, QUICK, f"--steps 4 --history {tmp_path}/a.json")
    assert once.exit_code == 0, once.output
    folder = f"--checkpoint {tmp_path}/c"
    for _ in range(2):
        lossbook("pretrain", CAUSAL, QUICK, "--steps 4", folder, f"--history {tmp_path}/b.json")
    a, b = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "ab")
    assert a["losses"] == b["losses"] and a["evaluations"] == b["evaluations"]


def test_corrupt_shows_the_shift():
    done = lossbook("corrupt", CAUSAL, "--corpus", "embedded", "old")
    lines = [line.split() for line in done.output.splitlines() if line]
    assert lines[0] == ["text", "[CLS]", "old", "[SEP]"]
    assert lines[1] == ["seen", "[CLS]", "old", "[SEP]"]
    assert lines[2] == ["predict", "old"]
    assert "1 of 3 tokens is to be predicted" in done.output


def test_corrupt_backward_starts_at_the_other_end():
    done = CliRunner().invoke(
        cli.app, ["corrupt", "the old captain", *CAUSAL.split(), "--set", "direction=backward"]
    )
    seen = done.output.splitlines()[1].split()
    assert seen == ["seen", "[SEP]", "captain", "old", "the", "[CLS]"]


def test_corrupt_on_a_file_and_on_the_documentation(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("one fish two fish . " * 30, "utf-8")
    for corpus in (str(path), "python-docs"):
        done = CliRunner().invoke(
            cli.app, ["corrupt", "one fish", *CAUSAL.split(), "--corpus", corpus,
                      "--vocab-size", "1500"]
        )  # fmt: skip
        assert done.exit_code == 0 and "to be predicted" in done.output, done.output


def test_floor_is_equal_per_text_in_both_directions():
    """Over all tokens of the same texts the two floors agree to the printed digits."""
    found = {}
    for direction in ("forward", "backward"):
        done = lossbook("floor", CAUSAL, f"--texts 40 --length 16 --set direction={direction}")
        assert done.exit_code == 0, done.output
        found[direction] = float(re.search(r": ([\d.]+) ±", done.output)[1])
    assert abs(found["forward"] - found["backward"]) < 0.1  # entropies, not losses: not identical


def test_an_unknown_direction_is_one_clear_line(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["floor", *CAUSAL.split(), "--set", "direction=up"])
    assert stop.value.code == 2
    assert "direction: expected one of" in capsys.readouterr().err
