"""Collation of a masked-LM batch of 512 x 512 tokens on one thread: ours against transformers'.

"As called" is all that happens between the examples and the batch: padding, the attention mask,
special tokens looked up, masks and labels. "The masking step" starts from a padded tensor with
the special tokens already known; ours still looks them up and makes the attention mask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
import torch

from benchmarks.timing import Row, best, race
from lossbook.corpora import Vocabulary
from lossbook.objectives import MaskedLM

BATCH, TIME, WORDS = 512, 512, 30_000
LAWS = ("bernoulli", "count", "rounding")

Contestants = dict[str, Callable[[], object]]


def texts(vocabulary: Vocabulary) -> np.ndarray:
    """Rows ``[CLS] ... [SEP]``."""
    ids = np.random.default_rng(0).choice(vocabulary.ordinary_ids, (BATCH, TIME))
    ids[:, 0], ids[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    return ids


def peer(vocabulary: Vocabulary) -> Any:
    """transformers' collator over the same tokens."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    names = ("pad", "unk", "cls", "sep", "mask")
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(ids, unk_token="[UNK]")),
        **{f"{name}_token": f"[{name.upper()}]" for name in names},
    )
    return DataCollatorForLanguageModeling(tokenizer)


def as_called(vocabulary: Vocabulary, ids: np.ndarray, theirs: Any) -> Contestants:
    ours = MaskedLM(vocabulary)
    arrays = [{"input_ids": row} for row in ids]
    lists = [{"input_ids": row.tolist()} for row in ids]
    return {
        "ours, arrays": lambda: ours(arrays),
        "ours, lists": lambda: ours(lists),
        "theirs, arrays": lambda: theirs(arrays),
        "theirs, lists": lambda: theirs(lists),
    }


def masking_step(vocabulary: Vocabulary, ids: np.ndarray, theirs: Any) -> Contestants:
    def step(law: str) -> Callable[[], object]:
        objective = MaskedLM(vocabulary, selection=law)
        rng = objective.generator(0, 0)
        return lambda: objective.corrupt(ids, rng)

    tensor, special = torch.from_numpy(ids.copy()), torch.from_numpy(ids < 5)
    found = {law: step(law) for law in LAWS}
    found["theirs"] = lambda: theirs.torch_mask_tokens(tensor, special_tokens_mask=special)
    return found


def row(what: str, name: str, ours: float, theirs: float, target: float | None = None) -> Row:
    speed, their_speed = (BATCH * TIME / seconds / 1e6 for seconds in (ours, theirs))
    return Row(f"{what}: {speed:.0f} to {their_speed:.3g} Mtok/s", name, ours, theirs, target)


def run() -> list[Row]:
    vocabulary = Vocabulary.from_words(f"w{i}" for i in range(WORDS))
    ids, theirs = texts(vocabulary), peer(vocabulary)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with redirect_stderr(StringIO()):  # the tokenizer's advice on padding
            called = race(as_called(vocabulary, ids, theirs), rounds=8, warmup=1)
        step = race(masking_step(vocabulary, ids, theirs), rounds=40)
    finally:
        torch.set_num_threads(threads)
    time = {name: best(seconds) for name, seconds in (called | step).items()}
    whole, alone = "DataCollatorForLanguageModeling as called", "its torch_mask_tokens alone"
    return [
        row("rows of arrays", whole, time["ours, arrays"], time["theirs, arrays"], 1 / 50),
        row("rows of lists", whole, time["ours, lists"], time["theirs, lists"]),
        row("bernoulli, their law", alone, time["bernoulli"], time["theirs"], 1 / 4),
        row("count", alone, time["count"], time["theirs"]),
        row("rounding", alone, time["rounding"], time["theirs"]),
    ]
