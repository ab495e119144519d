"""The command line: what a reader types, and what they are told."""

import json
import re
import subprocess
import sys
from importlib import metadata

import pytest
from typer.testing import CliRunner

from lossbook import _doctor, cli
from lossbook.training import History

QUICK = "--batch-size 4 --length 12 --width 16 --layers 1 --heads 2 --evaluate-every 2 --device cpu"


def lossbook(*arguments):
    return CliRunner().invoke(cli.app, [a for part in arguments for a in part.split(" ") if a])


def error(capsys, *arguments):
    """The one line on stderr that bad input is answered with; the exit code has to be 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main([a for part in arguments for a in part.split(" ")])
    captured = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in captured
    assert captured.count("\n") == 1, captured
    return captured


def test_help_is_quick():
    """No torch, no NumPy: the words alone."""
    code = (
        "import sys, contextlib, io\nfrom lossbook.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main(['pretrain', '--help'])\n"
        "print(sorted({'torch', 'numpy', 'matplotlib', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_python_dash_m():
    done = subprocess.run(
        [sys.executable, "-m", "lossbook", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"lossbook {metadata.version('lossbook')}\n"


def test_pretrain_prints_the_curve_and_the_floor(tmp_path):
    options = f"--steps 4 --history {tmp_path}/h.json --plot {tmp_path}/curve.svg"
    done = lossbook("pretrain", QUICK, options)
    assert done.exit_code == 0, done.output
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) +([-\d.]+)$", done.output, re.MULTILINE)
    history = History.load(tmp_path / "h.json")
    assert [int(row[0]) for row in rows] == [0, 2, 4]
    for row, record in zip(rows, history.evaluations, strict=True):
        expected = [record["loss"], record["floor"], record["excess"]]
        assert [float(x) for x in row[1:]] == pytest.approx(expected, abs=6e-4)
    assert f"floor {history.floor:.3f}" in done.output
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_pretrain_goes_on_by_itself(tmp_path):
    options = f"--steps 4 --checkpoint {tmp_path}/run"
    first, again = lossbook("pretrain", QUICK, options), lossbook("pretrain", QUICK, options)
    assert first.exit_code == 0 and again.output == first.output  # even the speed was kept


def test_pretrain_on_a_file_reports_a_perplexity_and_no_floor(tmp_path):
    text = tmp_path / "tale.txt"
    text.write_text("the cat sat on the mat and the dog sat on the cat . " * 40)
    done = lossbook("pretrain", QUICK, f"--steps 2 --corpus {text} --vocab-size 60")
    assert done.exit_code == 0, done.output
    assert re.search(r"validation perplexity [\d.]+\. .*there is no floor", done.output)
    assert "excess" not in done.output


def test_pretrain_on_the_python_documentation():
    done = lossbook("pretrain", QUICK, "--steps 1 --corpus python-docs --vocab-size 1000")
    assert done.exit_code == 0, done.output
    assert "on Python documentation" in done.output


def test_corrupt_aligns_what_is_seen_and_asked():
    text = "the captain finds a pearl near the reef ."
    done = CliRunner().invoke(cli.app, ["corrupt", text, "--set", "rate=0.5", "--seed", "1"])
    lines = done.output.split("\n")
    assert [line.split()[0] for line in lines[:3]] == ["text", "seen", "predict"]
    starts = [m.start() for m in re.finditer(r"\S+", lines[0])][1:]
    words = [[line[a:].split(" ")[0] for a in starts] for line in lines[:3]]
    assert words[0] == ["[CLS]", *text.split(), "[SEP]"]
    asked = [target for target in words[2] if target]
    assert asked and f"{len(asked)} of {len(words[0])} tokens" in done.output
    for original, seen, target in zip(*words, strict=True):
        assert target in ("", original) and (target or seen == original)


def test_corrupt_takes_any_words():
    done = CliRunner().invoke(cli.app, ["corrupt", "the zebra 你好 sails !"])
    assert done.exit_code == 0, done.output
    assert "not in this vocabulary, so [UNK]: zebra, 你好, !" in done.output
    assert re.search(r"^\d+ of 7 tokens (is|are) to be predicted", done.output, re.MULTILINE)


def test_corrupt_with_the_pieces_of_a_file(tmp_path):
    text = tmp_path / "tale.txt"
    text.write_text("low lower lowest slow slower slowest " * 30)
    options = ["--corpus", str(text), "--vocab-size", "40", "--set", "rate=1"]
    done = CliRunner().invoke(cli.app, ["corrupt", "lowest zebra", *options])
    assert done.exit_code == 0 and "[UNK]" in done.output and "low" in done.output


def test_long_texts_are_wrapped():
    done = CliRunner().invoke(cli.app, ["corrupt", "the captain finds a pearl . " * 12])
    assert max(map(len, done.output.split("\n"))) <= 100
    assert done.output.count("text     ") >= 4


def test_floor_says_how_sure_it_is():
    done = lossbook("floor", "--texts 40 --length 32")
    found = re.search(r": ([\d.]+) ± ([\d.]+) nats per target", done.output)
    mean, spread = float(found.group(1)), float(found.group(2))
    assert done.exit_code == 0 and "40 texts of 32 tokens" in done.output
    other = lossbook("floor", "--texts 40 --length 32 --seed 1").output
    second = float(re.search(r": ([\d.]+) ±", other).group(1))
    assert 0 < spread < 0.3 * mean
    assert abs(second - mean) < 5 * spread * 2**0.5  # five standard errors of a difference


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("pretrain --corpus nowhere", "corpus: expected embedded, python-docs, or a file"),
        ("pretrain --objective psychic", "objective: expected one of masked-lm"),
        ("pretrain --steps 0", "steps: expected at least 1, got 0"),
        ("pretrain --width 10 --heads 4", "width: expected a multiple of heads=4, got 10"),
        ("pretrain --plot curve.doc", "plot: expected a name that ends in"),
        ("pretrain --device toaster", "device: expected one of"),
        ("corrupt word --set colour=red", "--set: expected NAME=VALUE with one of"),
        ("corrupt word --set rate=2", "rate: expected a probability"),
        ("corrupt word --set rate=often", "rate"),
        ("floor --texts 1", "texts: expected at least 2"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(capsys, arguments, words):
    assert words in error(capsys, arguments)


def test_a_file_that_is_not_utf8_is_named(capsys, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(b"abc\xff")
    assert re.search(r"0xff at offset 3 of .*bad\.txt", error(capsys, f"pretrain --corpus {path}"))


def test_a_checkpoint_of_another_run_is_named(capsys, tmp_path):
    assert lossbook("pretrain", QUICK, f"--steps 1 --checkpoint {tmp_path}").exit_code == 0
    line = error(capsys, f"pretrain {QUICK} --steps 2 --checkpoint {tmp_path}")
    assert "steps was 1 and is now 2" in line


def test_doctor_is_content_here():
    done = lossbook("doctor")
    assert done.exit_code == 0, done.output
    for name in ("torch", "numpy", "devices", "threads of torch", "C++ compiler"):
        assert name in done.output


def test_doctor_names_what_is_missing_and_exits_with_1(monkeypatch):
    needs = [*_doctor.requirements(), _doctor.Need("sockenschuss", ">=3", None)]
    needs.append(_doctor.Need("numpy", ">=99", None))
    monkeypatch.setattr(_doctor, "requirements", lambda: needs)
    done = lossbook("doctor")
    assert done.exit_code == 1
    assert "missing: sockenschuss, numpy" in done.output and "pip install" in done.output
    assert re.search(r"sockenschuss +MISSING +wanted >=3", done.output)


def test_doctor_reads_every_requirement():
    names = {need.name for need in _doctor.requirements() if need.extra is None}
    assert names == {
        *("torch", "numpy", "accelerate", "jaxtyping", "matplotlib", "safetensors"),
        *("tokenizers", "tqdm", "typer"),
    }


def test_the_registry_leads_somewhere():
    for kind in cli.OBJECTIVES.values():
        assert callable(cli._load(kind.objective)) and callable(cli._load(kind.model))


def test_json_values_reach_the_objective():
    from lossbook.corpora import HiddenMarkovLanguage

    words = HiddenMarkovLanguage.tiny().vocabulary
    settings = ["rate=0.25", "selection=count", "replacement=[1, 0, 0]"]
    made = cli._make(cli.OBJECTIVES["masked-lm"].objective, words, settings, 4)
    assert (made.rate, made.selection, made.seed) == (0.25, "count", 4)
    assert json.dumps(list(made.replacement)) == "[1, 0, 0]"
