"""What ``lossbook adapt`` does: a base model, a task, adapters between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lossbook._require import require
from lossbook.adapters import apply_lora, save_adapter, trainable
from lossbook.corpora import HiddenMarkovLanguage
from lossbook.corpora.context_target import ContextTargets
from lossbook.models import Decoder, TransformerConfig
from lossbook.objectives import CausalLM, ConditionalLM
from lossbook.optim import AdamW
from lossbook.training import checkpoint as checkpoints
from lossbook.training import pretrain
from lossbook.training.history import History, write_atomically
from lossbook.training.pretrain import _words

ATTENTION = ("attention.qkv", "attention.out")
MLP = ("mlp.up", "mlp.down")
#: What ``--targets`` means: layers, and which parts of the fused projection.
TARGETS: dict[str, tuple[tuple[str, ...], dict[str, tuple[bool, ...]]]] = {
    "qv": (ATTENTION[:1], {ATTENTION[0]: (True, False, True)}),
    "attention": (ATTENTION, {}),
    "all": (ATTENTION + MLP, {}),
}
#: The embedded task: stories that are told from their end.
BACKWARDS = ("ending", "trouble", "quest", "opening")


class Task(NamedTuple):
    """What a base is pretrained on, what it is adapted to, and how that is scored."""

    source: Any
    target: Any
    objective: ConditionalLM


def embedded_task() -> Task:
    """From stories told in order to stories told backwards, given their first sentence."""
    language = HiddenMarkovLanguage.default()
    backwards = language.part(stages=BACKWARDS)
    return Task(language, backwards, ConditionalLM(language.vocabulary))


def file_task(path: Path, source: Any) -> Task:
    """From a corpus to the pairs of a file of JSON lines."""
    pairs = ContextTargets.from_jsonl(path, source.vocabulary)
    return Task(source, pairs, ConditionalLM(source.vocabulary, separator="[SEP]"))


def unknown_share(pairs: ContextTargets) -> float:
    """The share of target tokens that the vocabulary does not know."""
    ids = [i for part in pairs.split.values() for _, target in part for i in target]
    return sum(i == pairs.vocabulary.unk_id for i in ids) / len(ids)


def base_model(folder: str | Path, vocabulary: Any) -> Decoder:
    """The decoder of the newest checkpoint that ``lossbook pretrain`` left in a folder.

    Raises:
        ValueError: no checkpoint, one of another kind of model, or of another vocabulary.
    """
    folder = Path(folder)
    found = checkpoints.latest(folder) if folder.is_dir() else None
    require(found is not None, "base", str(folder), "a folder with checkpoints of a decoder")
    shape = dict(found.settings["model"])
    kind = shape.pop("class")
    require(kind == "Decoder", "base", kind, "checkpoints of a Decoder (--objective causal-lm)")
    words, here = found.settings["corpus"]["vocabulary"], _words(Wrapped(vocabulary))
    same = "the vocabulary that the base was trained with (--corpus, --tokenizer, --vocab-size)"
    require(words == here, "corpus", f"another one in {folder}", same)
    model = Decoder(TransformerConfig(**shape))
    model.load_state_dict(found.model)
    return model


class Wrapped(NamedTuple):
    vocabulary: Any


def pretrained(
    task: Task, folder: Path, shape: dict[str, int], steps: int, options: dict[str, Any]
) -> Decoder:
    """A small decoder, trained on the source or taken up where its training stopped."""
    seed = options["seed"]
    model = Decoder(TransformerConfig(task.source.vocabulary.size, **shape), seed=seed)
    goal = CausalLM(task.source.vocabulary, seed=seed)
    pretrain(model, goal, task.source, steps=steps, lr=3e-3, checkpoint=folder, **options)
    return model


def adapt(
    model: Decoder,
    task: Task,
    out: Path,
    *,
    adapter: dict[str, Any],
    targets: str,
    lr: float,
    steps: int,
    tell: Callable[[dict[str, Any]], object],
    options: dict[str, Any],
) -> History:
    """Train adapters, with checkpoints in ``out``, and save them there in PEFT's format."""
    names, parts = TARGETS[targets]
    remember(out / "adapt.json", {**adapter, "targets": targets, "lr": lr})
    apply_lora(model, names, parts=parts, seed=options["seed"], **adapter)
    optimizer = AdamW(trainable(model), lr=lr, weight_decay=0.0)
    rest = {"lr": lr, "optimizer": optimizer, "on_evaluation": tell}
    folder = out / "checkpoints"
    history = pretrain(
        model, task.objective, task.target, steps=steps, checkpoint=folder, **rest, **options
    )
    save_adapter(model, out)
    return history


def remember(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new folder; refuse a folder of other settings."""
    if path.exists():
        try:
            saved = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: expected the settings of an adaptation ({error})") from error
        changed = checkpoints.differences(saved, settings)
        require(not changed, "out", "; ".join(changed), f"the settings of {path}, or a new folder")
    else:
        text = json.dumps(settings) + "\n"
        write_atomically(path, lambda new: new.write_text(text, "utf-8"))


def sizes(model: torch.nn.Module) -> tuple[int, int]:
    """Trained numbers and all numbers."""
    return sum(p.numel() for _, p in trainable(model)), sum(p.numel() for p in model.parameters())
