"""What the README tells a reader to type does what it says."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


# The same in seconds: fewer steps, smaller batches.
QUICK = {
    "steps=300": "steps=3, batch_size=8, evaluation_batches=1",
    "--steps 300": "--steps 3 --batch-size 4 --length 16",
    "lossbook floor": "lossbook floor --texts 8",
    "lossbook adapt": "lossbook adapt --base-steps 3",
}


def quick(text: str) -> str:
    for slow, fast in QUICK.items():
        text = text.replace(slow, fast)
    return text


@pytest.mark.parametrize("slow", QUICK)
def test_every_shortcut_is_used(slow):
    assert slow in README


def test_the_example_runs_and_its_loss_lies_above_the_floor(capsys):
    (example,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(quick(example), "README.md", "exec"), names)
    assert re.search(r"loss \d\.\d{3}, floor \d\.\d{3} nats", capsys.readouterr().out)
    assert names["history"].final_loss > names["history"].floor > 0


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if "lossbook " in line]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command, monkeypatch, tmp_path):
    from typer.testing import CliRunner

    cli = import_module("lossbook.cli")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, shlex.split(quick(command))[1:])
    assert result.exit_code == 0, result.output
    assert result.output


def test_make_has_the_targets():
    targets = re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`make ([a-z]+)`", README) + re.findall(r"^make ([a-z]+)$", README, re.M)
    assert len(set(named)) >= 4
    assert set(named) <= set(targets)


LINKS = re.findall(r"\]\(((?!http)[^)#]+)\)", README) + re.findall(r"src(?:set)?=\"(.+?)\"", README)


@pytest.mark.parametrize("target", sorted(set(LINKS)))
def test_linked_files_exist(target):
    assert (ROOT / target).exists()


def test_the_powershell_lines_name_files_that_exist():
    (lines,) = blocks("powershell")
    scripts = re.findall(r"(tools\\\S+\.py)", lines)
    assert len(scripts) == 2
    assert all((ROOT / script.replace("\\", "/")).exists() for script in scripts)
