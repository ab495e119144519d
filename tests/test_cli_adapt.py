"""``lossbook adapt``: the embedded task, a file of pairs, bad lines, interruption and resuming."""

import json
import re
import signal

import peft
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lossbook import _adapt, cli
from lossbook.adapters import layers, load_adapter
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.corpora.context_target import ContextTargets
from lossbook.training import History, pretrain

QUICK = (
    "--batch-size 4 --length 16 --width 16 --layers 1 --heads 2 --base-steps 4 --steps 4 "
    "--evaluate-every 2 --device cpu"
)
PAIRS = [
    {"context": f"the {a} {verb} .", "target": f"then the {a} sleeps .", "note": 1}
    for a in ("girl", "boy", "stranger", "friend", "child")
    for verb in ("waits", "rests")
]


def lossbook(*arguments):
    return CliRunner().invoke(cli.app, [a for part in arguments for a in part.split(" ") if a])


def error(capsys, *arguments):
    """The one line on stderr that bad input is answered with; the exit code has to be 2."""
    with pytest.raises(SystemExit) as stop:
        cli.main([a for part in arguments for a in part.split(" ") if a])
    captured = capsys.readouterr().err
    assert stop.value.code == 2
    assert captured.count("\n") == 1, captured
    return captured


def lines(path, *records):
    """A file with one record a line; strings and bytes go in as they are."""
    raw = [r if isinstance(r, bytes) else r.encode() if isinstance(r, str) else
           json.dumps(r).encode() for r in records]  # fmt: skip
    path.write_bytes(b"\n".join(raw) + b"\n")
    return str(path)


def rows(output):
    return re.findall(r"^ +(\d+) +(\d+\.\d+)", output, re.M)


def test_the_embedded_task_prints_a_floor_and_saves_for_peft(tmp_path):
    out = tmp_path / "a"
    result = lossbook("adapt", QUICK, f"--out {out} --rank 2 --history {tmp_path / 'h.json'}")
    assert result.exit_code == 0, result.output
    assert [step for step, _ in rows(result.stdout)] == ["0", "2", "4"]
    assert re.search(r"step +loss +floor +excess", result.stdout)
    vocabulary = HiddenMarkovLanguage.default().vocabulary
    base = _adapt.base_model(out / "base", vocabulary).eval()
    ids = torch.from_numpy(HiddenMarkovLanguage.default().batch(2, 16))
    unadapted = base(ids).logits
    theirs = peft.PeftModel.from_pretrained(_adapt.base_model(out / "base", vocabulary), out)
    ours = load_adapter(base, out)
    assert (ours(ids).logits - theirs.eval()(ids).logits).abs().max() <= 1e-6
    assert (ours(ids).logits - unadapted).abs().max() > 1e-6
    assert History.load(tmp_path / "h.json").final_loss == pytest.approx(
        float(rows(result.stdout)[-1][1]), abs=6e-4
    )


def test_pairs_of_a_file_have_a_perplexity_and_no_floor(tmp_path):
    data = lines(tmp_path / "pairs.jsonl", *PAIRS, "", {"context": "", "target": "the moonlight ."})
    result = lossbook("adapt", data, QUICK, f"--out {tmp_path / 'a'} --targets qv")
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.stdout
    assert "are [UNK] and not scored" in result.stdout
    assert (tmp_path / "a" / "adapter_model.safetensors").exists()


def test_a_base_is_taken_from_the_checkpoints_of_pretrain(tmp_path, capsys):
    folder = tmp_path / "base"
    shape = "--batch-size 4 --length 16 --width 16 --layers 1 --heads 2 --steps 2 --device cpu"
    made = lossbook("pretrain", shape, f"--objective causal-lm --checkpoint {folder}")
    assert made.exit_code == 0, made.output
    result = lossbook("adapt", QUICK, f"--base {folder} --out {tmp_path / 'a'}")
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "a" / "base").exists()
    assert "decoder" in error(capsys, "adapt", f"--base {tmp_path / 'none'} --out {tmp_path}")
    wrong = tmp_path / "masked"
    lossbook("pretrain", shape, f"--objective masked-lm --checkpoint {wrong}")
    assert "Decoder" in error(capsys, "adapt", f"--base {wrong} --out {tmp_path}")
    (tmp_path / "text.txt").write_text("a few words of another text. " * 40)
    data = lines(tmp_path / "pairs.jsonl", *PAIRS)
    other = f"adapt {data} --corpus {tmp_path / 'text.txt'} --base {folder} --out {tmp_path}"
    assert "vocabulary that the base was trained with" in error(capsys, other)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "list, not an object"),
        ({"context": "a"}, "no 'target'"),
        ({"target": "a"}, "no 'context'"),
        ({"context": "a", "target": 3}, "'target' that is not a string"),
        ({"context": "a", "target": "  "}, "an empty target"),
        (b'{"context": "\xff", "target": "a"}', "byte 0xff, which is not UTF-8, at offset 13"),
    ],
)
def test_a_malformed_line_is_named_by_its_number_before_anything_is_trained(
    capsys, tmp_path, bad, words
):
    data = lines(tmp_path / "pairs.jsonl", PAIRS[0], "", bad, PAIRS[1])
    message = error(capsys, "adapt", data, f"--out {tmp_path / 'a'}")
    assert "line 3 of" in message
    assert "pairs.jsonl" in message
    assert words in message
    assert not (tmp_path / "a").exists()


def test_files_without_pairs_are_named(capsys, tmp_path):
    empty = tmp_path / "empty.jsonl"
    for content in (b"", b"\n \n"):
        empty.write_bytes(content)
        assert "empty file" in error(capsys, "adapt", str(empty))
    assert "exists" in error(capsys, "adapt", str(tmp_path / "nowhere.jsonl"))
    assert "exists" in error(capsys, "adapt", str(tmp_path))
    one = lines(tmp_path / "one.jsonl", PAIRS[0], PAIRS[0])
    assert "2 different contexts" in error(capsys, "adapt", one)
    assert "data" in error(capsys, "adapt", "--corpus python-docs")
    assert "targets" in error(capsys, "adapt", "--targets everything")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "pairs.jsonl"
    text = "\r\n".join(json.dumps(p) for p in PAIRS)
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    vocabulary = HiddenMarkovLanguage.default().vocabulary
    pairs = ContextTargets.from_jsonl(path, vocabulary)
    assert sum(map(len, pairs.split.values())) == len(PAIRS)


def test_the_objective_has_its_place_in_the_other_commands():
    text = "the girl waits . soon the boy rests ."
    shown = CliRunner().invoke(cli.app, ["corrupt", "--objective", "conditional-lm", text])
    assert "5 of 11 tokens" in shown.stdout, shown.output
    quick = QUICK.split(" --base")[0]
    for corpus in ("embedded", "python-docs"):
        options = f"--objective conditional-lm --corpus {corpus} --steps 1 --vocab-size 500"
        result = lossbook("pretrain", quick.replace("16 --width", "32 --width"), options)
        assert result.exit_code == 0, result.output
        assert len(rows(result.stdout)) == 2


# --- interruption


@pytest.mark.parametrize("stage", ["base", "adapter"])
def test_ctrl_c_loses_nothing_and_the_same_call_goes_on(tmp_path, monkeypatch, stage):
    """Stopped after two of four steps, and taken up: the same adapter, bit for bit."""
    command = ["adapt", QUICK, "--rank 2"]
    assert lossbook(*command, f"--out {tmp_path / 'whole'}").exit_code == 0

    def interrupted(model, goal, corpus, **options):
        if bool(layers(model)) != (stage == "adapter"):
            return pretrain(model, goal, corpus, **options)
        tell = options.pop("on_evaluation", None)

        def stop(record):
            if tell:
                tell(record)
            if record["step"] == 2:
                signal.raise_signal(signal.SIGINT)

        return pretrain(model, goal, corpus, on_evaluation=stop, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_adapt, "pretrain", interrupted)
        stopped = lossbook(*command, f"--out {tmp_path / 'parts'}")
    assert stopped.exit_code == 130
    assert "the same call goes on" in stopped.output
    assert not (tmp_path / "parts" / "adapter_model.safetensors").exists()
    again = lossbook(*command, f"--out {tmp_path / 'parts'}")
    assert again.exit_code == 0, again.output
    name = "adapter_model.safetensors"
    whole, parts = (load_file(tmp_path / f / name) for f in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path, capsys):
    out = f"--out {tmp_path / 'a'}"
    assert lossbook("adapt", QUICK, out).exit_code == 0
    before = (tmp_path / "a" / "adapter_model.safetensors").read_bytes()
    assert "rank was 4 and is now 2" in error(capsys, "adapt", QUICK, out, "--rank 2")
    assert "steps was 4 and is now 5" in error(
        capsys, "adapt", QUICK.replace("--steps 4", "--steps 5"), out
    )
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() == before
    (tmp_path / "a" / "adapt.json").write_text("{")
    assert "adapt.json" in error(capsys, "adapt", QUICK, out)


# --- rows


def test_rows_keep_the_end_of_a_context_and_the_whole_target():
    vocabulary = HiddenMarkovLanguage.default().vocabulary
    pairs = ContextTargets(
        [("the girl sleeps .", "now ."), ("moonlight", "the boy waits .")], vocabulary
    )
    ids = [row for part in pairs.split for row in pairs.windows(8, part)]
    texts = {vocabulary.decode(row) for row in ids}
    assert texts == {
        "[CLS] girl sleeps . [SEP] now . [SEP]",
        "[CLS] [UNK] [SEP] the boy waits . [SEP]",
    }
    assert pairs.shortened(8) == 1
    short = {vocabulary.decode(row) for part in pairs.split for row in pairs.windows(5, part)}
    assert short == {"[CLS] [SEP] the boy waits", "[CLS] [SEP] now . [SEP]"}
    assert {r.tobytes() for r in pairs.batch(3, 8, index=2)} == {pairs.windows(8)[0].tobytes()}


def test_equal_contexts_are_never_on_both_sides():
    vocabulary = HiddenMarkovLanguage.default().vocabulary
    many = [(f"{a} {b}", f"{c} .") for a in ("the", "this") for b in ("girl", "boy", "cook")
            for c in ("waits", "rests", "runs")]  # fmt: skip
    pairs = ContextTargets(many, vocabulary)
    sides = [{tuple(context) for context, _ in pairs.split[s]} for s in ("train", "validation")]
    assert sides[0]
    assert sides[1]
    assert not sides[0] & sides[1]
