"""Blank infilling from the command line: the book's language, Python's words, a file."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from lossbook import cli
from lossbook.training import History

QUICK = "--batch-size 4 --length 12 --width 16 --layers 1 --heads 2 --evaluate-every 2 --device cpu"
INFILLING = "--objective blank-infilling"


def lossbook(*arguments):
    return CliRunner().invoke(cli.app, [a for part in arguments for a in part.split(" ") if a])


@pytest.mark.parametrize("setting", ["rate=0.3", "order=left-to-right", "level=document"])
def test_pretrain_on_the_books_language(tmp_path, setting):
    options = f"--steps 2 --history {tmp_path}/h.json --set {setting}"
    done = lossbook("pretrain", INFILLING, QUICK, options)
    assert done.exit_code == 0, done.output
    assert "blank-infilling on the book's language" in done.output
    assert "Infiller of 1 layer" in done.output
    history = History.load(tmp_path / "h.json")
    assert history.floor > 0.5 and history.targets > 50
    assert history.final_loss > history.floor


def test_pretrain_goes_on_by_itself(tmp_path):
    options = f"--steps 2 --checkpoint {tmp_path}/run"
    first = lossbook("pretrain", INFILLING, QUICK, options)
    again = lossbook("pretrain", INFILLING, QUICK, options)
    assert first.exit_code == 0 and again.output == first.output


def test_pretrain_on_the_documentation_of_python():
    done = lossbook(
        "pretrain", INFILLING, QUICK, "--steps 2 --corpus python-docs --vocab-size 1500"
    )
    assert done.exit_code == 0, done.output
    assert "validation perplexity" in done.output and "no floor" in done.output


@pytest.mark.parametrize("tokenizer", ["wordpiece", "bpe"])
def test_pretrain_on_a_file(tmp_path, tokenizer):
    path = tmp_path / "my text.txt"
    path.write_text("one fish two fish red fish blue fish . " * 60, "utf-8")
    arguments = ["pretrain", "--corpus", str(path), "--vocab-size", "300", "--tokenizer", tokenizer]
    arguments += ["--set", "level=sentence", *INFILLING.split(), *QUICK.split(), "--steps", "2"]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "validation perplexity" in done.output


def shown(output):
    """The three lines of every block, put together and cut at two spaces."""
    lines = [line for line in output.split("\n\n4 of")[0].split("\n") if line]
    return {name: [line for line in lines if line.startswith(name)]
            for name in ("text", "seen", "predict")}  # fmt: skip


def test_corrupt_shows_part_a_and_part_b():
    text = "the captain finds a pearl near the reef ."
    done = CliRunner().invoke(cli.app, ["corrupt", text, *INFILLING.split(), "--seed", "0"])
    assert done.exit_code == 0, done.output
    rows = shown(done.output)
    assert " ".join(" ".join(rows["text"]).replace("text", "").split()) == f"[CLS] {text} [SEP]"
    seen = " ".join(rows["seen"]).replace("seen", "").split()
    asked = " ".join(rows["predict"]).replace("predict", "").split()
    blanks = seen.count("[MASK]")
    assert blanks == asked.count("[SEP]") and seen.count("[CLS]") == 1 + blanks
    assert re.search(rf"{len(asked)} of {len(seen)} tokens are to be predicted", done.output)


def test_corrupt_at_the_document_level_and_with_unknown_words():
    arguments = ["corrupt", "the zebra sails to the reef .", *INFILLING.split()]
    done = CliRunner().invoke(cli.app, [*arguments, "--set", "level=document"])
    assert done.exit_code == 0 and "not in this vocabulary, so [UNK]: zebra" in done.output
    assert done.output.count("[MASK]") == 1


def test_corrupt_with_the_words_of_a_file(tmp_path):
    path = tmp_path / "tale.txt"
    path.write_text("one fish two fish red fish blue fish . " * 60, "utf-8")
    arguments = ["corrupt", "red fish one fish .", *INFILLING.split(), "--corpus", str(path)]
    done = CliRunner().invoke(cli.app, [*arguments, "--vocab-size", "60"])
    assert done.exit_code == 0 and "fish" in done.output and "[MASK]" in done.output


@pytest.mark.parametrize("level", ["token", "sentence", "document"])
def test_floor_of_every_level(level):
    done = lossbook("floor", INFILLING, f"--texts 20 --length 24 --set level={level}")
    assert done.exit_code == 0, done.output
    mean = float(re.search(r": ([\d.]+) ± ([\d.]+) nats per target", done.output).group(1))
    assert 0.5 < mean < 2.5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("corrupt word --set level=page", "level: expected one of"),
        ("corrupt word --set order=backwards", "order: expected one of"),
        ("floor --set rate=3", "rate: expected a share of the tokens"),
        ("pretrain --steps 0", "steps: expected at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, words):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments.split(" "), *INFILLING.split()])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in line and line.count("\n") == 1
    assert words in line


def test_a_mixture_needs_marks_and_says_so(capsys):
    mixture = 'level={"token": 0.5, "document": 0.5}'
    with pytest.raises(SystemExit):
        cli.main(["floor", *INFILLING.split(), "--texts", "4", "--length", "12", "--set", mixture])
    assert "marks: expected a mark of its own for each level" in capsys.readouterr().err
