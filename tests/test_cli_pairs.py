"""The command line with sentence pairs: on the language, on Python's documentation, on a file."""

import re

import pytest
from typer.testing import CliRunner

from lossbook import cli

TINY = ["--steps", "2", "--batch-size", "4", "--length", "48", "--width", "8", "--heads", "1",
        "--layers", "1", "--device", "cpu"]  # fmt: skip
TEXT = "the captain waits . he sails .\n\nthe king sleeps . the queen smiles ."
PAIRS = ["next-sentence", "sentence-order"]


def lossbook(*arguments):
    return CliRunner().invoke(cli.app, arguments)


@pytest.mark.parametrize("objective", PAIRS)
def test_pretrain_prints_the_floor_of_both_terms_together(objective):
    done = lossbook("pretrain", "--objective", objective, *TINY)
    assert done.exit_code == 0, done.output
    first = re.search(r"^ +0 +([\d.]+) +([\d.]+) +([\d.]+)$", done.output, re.M)
    loss, floor, excess = map(float, first.groups())
    assert 5 < loss < 7.5 and 0 < floor < 3.5  # about ln 281 + ln 2 at the start
    assert abs(loss - floor - excess) < 2e-3
    assert "PairEncoder" in done.output
    terms = re.findall(r"^\S+: ([\d.]+) over a floor of ([\d.]+)\.$", done.output, re.M)
    assert len(terms) == 2
    assert abs(sum(float(f) for _, f in terms) - floor) < 2e-3


@pytest.mark.parametrize("objective", PAIRS)
def test_pretrain_on_real_text(tmp_path, objective):
    path = tmp_path / "text.txt"
    path.write_text("One two three. Four five! Is six next? Seven eight nine ten. " * 40, "utf-8")
    options = ["--corpus", str(path), "--vocab-size", "60", *TINY]
    done = lossbook("pretrain", "-o", objective, *options)
    assert done.exit_code == 0 and "no floor" in done.output, done.output
    assert "perplexity" not in done.output  # of a sum of two losses it would mean nothing
    docs = ["--corpus", "python-docs", "--vocab-size", "300", *TINY]
    assert lossbook("pretrain", "-o", objective, *docs).exit_code == 0


@pytest.mark.parametrize("objective", PAIRS)
def test_corrupt_shows_a_pair_and_its_label(objective, tmp_path):
    done = lossbook("corrupt", TEXT, "-o", objective, "--set", "rate=0.3")
    assert done.exit_code == 0, done.output
    assert done.output.count("[SEP]") >= 2 and "sentence_" in done.output
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 30, "utf-8")
    own = lossbook("corrupt", TEXT, "-o", objective, "--corpus", str(path), "--vocab-size", "60")
    assert own.exit_code == 0 and "[CLS]" in own.output
    docs = ["--corpus", "python-docs", "--vocab-size", "300"]
    assert lossbook("corrupt", TEXT, "-o", objective, *docs).exit_code == 0


def test_one_document_has_no_negative(capsys):
    with pytest.raises(SystemExit):
        cli.main(["corrupt", "the captain waits . he sails .", "-o", "next-sentence"])
    assert "text: expected two documents, an empty line between them" in capsys.readouterr().err


def test_floor_prints_a_line_per_term_and_their_sum():
    options = ["--texts", "12", "--length", "48", "-o", "next-sentence"]
    done = lossbook("floor", *options)
    assert done.exit_code == 0, done.output
    terms = dict(re.findall(r"^(masked-lm|next-sentence) on .*: ([\d.]+) ±", done.output, re.M))
    total = float(re.search(r"sum of the terms: ([\d.]+)", done.output).group(1))
    assert set(terms) == {"masked-lm", "next-sentence"}
    assert abs(sum(map(float, terms.values())) - total) < 2e-4
    alone = lossbook("floor", *options, "--set", "rate=0").output
    assert "masked-lm" not in alone and "sum of" not in alone


def test_a_law_without_a_floor_is_named(capsys):
    for option, words in [("slack=0", "room: expected at least"), ("selection=count", "selection")]:
        with pytest.raises(SystemExit):
            cli.main(["floor", "--texts", "4", "-o", "next-sentence", "--set", option])
        assert words in capsys.readouterr().err
