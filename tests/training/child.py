"""A training run in a process of its own, for the tests that kill it or start it twice.

Run by ``runpy.run_path`` with ``job`` among its globals: a dict with ``folder`` and, where the
process must die, ``die`` (a place in the writing of a checkpoint) and ``save`` (which one).
"""

import os
import signal
from pathlib import Path

import torch

from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.models import Encoder, TransformerConfig
from lossbook.objectives import MaskedLM
from lossbook.training import pretrain


def kill_myself():
    if hasattr(signal, "SIGKILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(9)


def arm(die, save):
    """Let the process kill itself at one place of the ``save``-th checkpoint it writes."""
    count = {"left": save}
    write, replace, fsync = Path.write_bytes, os.replace, os.fsync

    def dying_write(path, data):
        count["left"] -= 1
        if count["left"] == 0 and die == "in the middle of the bytes":
            write(path, data[: len(data) // 2])
            kill_myself()
        return write(path, data)

    def dying_fsync(handle):
        if count["left"] == 0 and die == "before the bytes are safe":
            kill_myself()
        fsync(handle)

    def dying_replace(old, new):
        if count["left"] == 0 and die == "before the name":
            kill_myself()
        replace(old, new)
        if count["left"] == 0 and die == "after the name":
            kill_myself()

    Path.write_bytes, os.replace, os.fsync = dying_write, dying_replace, dying_fsync


def train(folder=None, double=False, dropout=0.1, **options):
    language = HiddenMarkovLanguage.tiny()
    config = TransformerConfig(language.vocabulary.size, 16, 2, 2, 16, dropout=dropout)
    model = Encoder(config, seed=3)
    model = model.double() if double else model
    objective = MaskedLM(language.vocabulary, rate=0.3, seed=1)
    options = {"steps": 30, "batch_size": 8, "length": 12, "save_every": 1, **options}
    options = {"evaluate_every": 7, "evaluation_batches": 2, "device": "cpu", **options}
    history = pretrain(model, objective, language, checkpoint=folder, progress=False, **options)
    return model, history


if "job" in globals():
    torch.set_num_threads(1)
    job = globals()["job"]
    os.environ.update(job.get("environment", {}))
    if "die" in job:
        arm(job["die"], job["save"])
    trained, _ = train(job["folder"], **job.get("options", {}))
    if "weights" in job:
        torch.save(trained.state_dict(), job["weights"])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
