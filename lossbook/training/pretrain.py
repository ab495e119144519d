"""The training loop: where corpus, objective, model and optimizer meet.

Three things that training loops get wrong are kept here in one place each. The denominator of the
loss is the number of targets of the *whole* step, however the batch is cut into micro-batches and
processes (:meth:`Run.update`). The validation loss stands beside the lowest loss that any model
could have on the same batches (:meth:`Run.evaluate`). And a step is a function of the state before
it and of its number, so that a run that was killed repeats itself bit for bit (:meth:`Run.resume`).
"""

from __future__ import annotations

import math
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from lossbook._require import require
from lossbook.training import checkpoint as checkpoints
from lossbook.training.batches import Batch, Batches, pieces
from lossbook.training.checkpoint import Checkpoint
from lossbook.training.device import accelerator as accelerator_for
from lossbook.training.history import History
from lossbook.training.schedule import factor

LOOK = 20  # losses stay on the device for so many steps: looking at one waits for the device
LONG = 500  # steps from which on the optimizer is compiled
DROPOUT = 2  # the last word of the seed of a step's dropout; the streams of data have none


class Diverged(ValueError):
    """The loss or the weights are not finite; the message names the step."""


def pretrain(
    model: nn.Module,
    objective: Any,
    corpus: Any,
    *,
    steps: int = 300,
    batch_size: int = 64,
    length: int = 64,
    lr: float = 1e-3,
    optimizer: Optimizer | None = None,
    schedule: str | Callable[[int], float] | None = None,
    warmup: int | None = None,
    clip: float | None = 1.0,
    accumulation: int = 1,
    precision: str = "no",
    device: str = "auto",
    seed: int = 0,
    evaluate_every: int = 100,
    evaluation_batches: int = 8,
    checkpoint: str | Path | None = None,
    save_every: int | None = None,
    progress: bool | None = None,
    on_evaluation: Callable[[dict[str, Any]], object] | None = None,
) -> History:
    """Train a model in place.

    Started by ``accelerate launch`` or ``torchrun``, the same call trains on several processes.
    Ctrl-C ends the run after the current step, with a checkpoint where a folder is given.

    Args:
        model: called with the fields of a batch that its ``forward`` names; returns logits, or
            something that has ``.logits``. It comes back on its own device.
        objective: a :class:`~lossbook.objectives.base.Objective`.
        corpus: a :class:`~lossbook.corpora.base.Corpus`; its exact floor is reported where
            ``corpus.has_floor``.
        steps: updates of the weights.
        batch_size: texts in one update, over all micro-batches and processes.
        length: tokens in one text.
        lr: peak learning rate of the default optimizer.
        optimizer: of the model's parameters; by default :class:`~lossbook.optim.adamw.AdamW` with
            a weight decay of 0.01 on the matrices alone.
        schedule: ``"cosine"`` (the default), ``"linear"`` or ``"constant"`` after the warm-up,
            or a function of the step, counted from 0, that replaces both.
        warmup: steps of linear warm-up; a tenth of all by default.
        clip: largest norm of the gradient; None leaves it as it is.
        accumulation: micro-batches that one batch is cut into, to save memory.
        precision: ``"no"``, ``"bf16"`` or ``"fp16"``, by autocast; the weights stay as they are.
        device: ``"auto"``, ``"cuda"``, ``"mps"`` or ``"cpu"``.
        seed: of the order of the texts and of dropout; the masks have the objective's seed.
        evaluate_every: steps from one evaluation to the next; there is one before the first step
            and one after the last.
        evaluation_batches: validation batches of the same size; 0 leaves evaluation out.
        checkpoint: a folder. The newest checkpoint in it is resumed, bit for bit on a CPU.
        save_every: steps from one checkpoint to the next; ``evaluate_every`` by default.
        progress: a bar on stderr; None: where stderr is a terminal.
        on_evaluation: called with every record of ``History.evaluations``, those of a resumed
            checkpoint included.

    Returns:
        The history of the whole run, the part before a resume included.

    Raises:
        ValueError: arguments that do not fit together, a checkpoint of another run (with what
            differs), checkpoints of which none can be read.
        Diverged: (a ``ValueError``) a loss or weight that is not finite; no checkpoint has it.
        KeyboardInterrupt: after Ctrl-C; says where the run stands.
    """
    warmup = steps // 10 if warmup is None else warmup
    save_every = evaluate_every if save_every is None else save_every
    counts = {"steps": steps, "batch_size": batch_size, "accumulation": accumulation}
    counts |= {"evaluate_every": evaluate_every, "save_every": save_every}
    for name, value in counts.items():
        require(value >= 1, name, value, "at least 1")
    require(evaluation_batches >= 0, "evaluation_batches", evaluation_batches, "at least 0")
    require(clip is None or clip > 0, "clip", clip, "None or a number above 0")
    require(math.isfinite(lr) and lr > 0, "lr", lr, "a finite number above 0")
    require(seed >= 0, "seed", seed, "at least 0")
    _fits(model, corpus, length)
    course = schedule if callable(schedule) else factor(schedule or "cosine", warmup, steps)
    optimizer = optimizer or default_optimizer(model, lr, steps)
    batches = Batches(model, objective, corpus, batch_size, length, seed)
    settings = {
        "model": describe(model),
        "objective": describe(objective),
        "corpus": {
            **{"class": type(corpus).__name__, "name": corpus.name},
            "vocabulary": _words(corpus),
            "texts": _checksum(corpus.batch(batch_size, length, seed=seed)),
        },
        "optimizer": {"class": type(optimizer).__name__, **_plain(optimizer.defaults)},
        "schedule": _course(schedule) if callable(schedule) else schedule or "cosine",
        "warmup": None if callable(schedule) else warmup,
        **{"steps": steps, "batch_size": batch_size, "length": length, "clip": clip},
        **{"accumulation": accumulation, "precision": precision, "seed": seed},
        "evaluation_batches": evaluation_batches,
    }
    with accelerator_for(device, precision) as accelerator, _borrowed(model, accelerator):
        parts = accumulation * accelerator.num_processes
        room = f"at least accumulation * processes = {parts}"
        require(batch_size >= parts, "batch_size", batch_size, room)
        run = Run(model, optimizer, course, batches, accelerator, settings)
        run.tell = on_evaluation or run.tell
        if checkpoint is not None:
            run.resume(Path(checkpoint))
        run.train(evaluate_every, save_every, progress)
    return run.history


def denominator(count: int | Mapping[str, int]) -> int | dict[str, int]:
    """What the sums of a step are divided by: its targets, or 1 where there are none."""
    if isinstance(count, Mapping):
        return {name: max(1, number) for name, number in count.items()}
    return max(1, count)


def default_optimizer(model: nn.Module, lr: float, steps: int) -> Optimizer:
    """AdamW, which decays the matrices and leaves biases and norms alone.

    A long run compiles it: the compiler takes some two seconds, which so many steps win back.
    It does not look for gradients that are not finite, since the run refuses the losses and
    weights that they come from and lead to.
    """
    from lossbook.optim import AdamW

    options = {"weight_decay": 0.01, "exclude": "rank", "compiled": steps >= LONG}
    return AdamW(model.named_parameters(), lr=lr, check_finite=False, **options)


class Run:
    """A run in progress: what changes from step to step, and the moves that change it."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        course: Callable[[int], float],
        batches: Batches,
        accelerator: Accelerator,
        settings: dict[str, Any],
    ):
        self.bare, self.batches, self.accelerator = model, batches, accelerator
        self.objective, self.corpus = batches.objective, batches.corpus
        self.settings = _plain(settings)
        self.model = accelerator.prepare_model(model)
        self.parameters = list(model.parameters())
        self.schedule = LambdaLR(optimizer, course)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.step, self.folder, self.saved, self.pending = 0, None, -1, []
        self.counts: dict[str, int] = {}  # targets of the validation batches, by term
        self.floors: dict[str, float] = {}
        self.tell: Callable[[dict[str, Any]], object] = lambda record: None
        self.history = History(
            self.objective.name,
            self.corpus.name,
            device=device_name(accelerator.device),
            settings=self.settings,
        )

    def train(self, evaluate_every: int, save_every: int, progress: bool | None) -> None:
        """All steps that are left."""
        steps, main = self.settings["steps"], self.accelerator.is_main_process
        hide = None if progress is None and main else not (progress and main)
        with (
            _Interruption() as interruption,
            tqdm(total=steps, initial=self.step, disable=hide, unit="step") as bar,
        ):
            if self.step == 0:
                self.evaluate()
            self.clock = time.perf_counter()
            while self.step < steps:
                self.pending.append(self.update(self.step))
                self.step += 1
                bar.update()
                last = self.step == steps or interruption.asked
                if len(self.pending) == LOOK or last:
                    self.look(bar)
                if self.step % evaluate_every == 0 or self.step == steps:
                    self.evaluate(bar)
                if self.step % save_every == 0 or last:
                    self.save()
                if interruption.asked and self.step < steps:
                    raise KeyboardInterrupt(self._where())

    def update(self, step: int) -> Tensor:
        """One update of the weights; the loss in nats per target, still on the device.

        Every micro-batch is divided by the number of targets of the whole step, so that the
        gradients add up to the gradient of the whole. (A mean of means would give each target
        of a micro-batch with few of them a larger weight.) Gradients of several processes are
        averaged on their way, which the factor ``processes`` undoes.
        """
        batch, processes = self.batches.train(step), self.accelerator.num_processes
        targets = denominator(self.objective.count(batch))
        mine = pieces(batch, processes)[self.accelerator.process_index]
        parts = pieces(mine, self.settings["accumulation"])
        self._seed_dropout(step)
        losses = []
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            with self.accelerator.no_sync(self.model) if more else nullcontext():
                loss = self.loss(part, denominator=targets)
                self.accelerator.backward(loss * processes if processes > 1 else loss)
            losses.append(loss.detach())
        self._descend()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def loss(self, batch: Batch, **how: Any) -> Tensor:
        """The objective's loss of a batch that is still on the CPU."""
        return self.objective.loss(*self.answered(batch), **how)

    def answered(self, batch: Batch) -> tuple[Any, Batch]:
        """What the model says of a batch, as the objective wants it, and the batch it saw."""
        batch = self.batches.ready(batch, self.accelerator.device)
        output = self.model(**self.batches.inputs(batch))
        whole = getattr(self.objective, "whole_output", False)
        return (output if whole else getattr(output, "logits", output)), batch

    def _descend(self) -> None:
        clip = self.settings["clip"]
        # Only the scaler of fp16 needs accelerate here, whose wrapper of an optimizer looks for
        # another package on the disk at every step.
        scaled = self.accelerator.scaler is not None
        if scaled:
            self.accelerator.unscale_gradients()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, clip)
        (self.optimizer if scaled else self.optimizer.optimizer).step()
        self.schedule.step()
        self.optimizer.optimizer.zero_grad(set_to_none=True)

    def look(self, bar: tqdm | None = None) -> None:
        """Fetch the losses that wait on the device, and refuse those that are not finite."""
        if not self.pending:
            return
        fetched = torch.stack(self.pending)
        if self.accelerator.num_processes > 1:
            fetched = self.accelerator.reduce(fetched, "sum")
        losses = fetched.tolist()
        self.pending.clear()
        first = len(self.history.steps) + 1
        for step, loss in enumerate(losses, first):
            if not math.isfinite(loss):
                raise Diverged(f"loss: expected a finite number, got {loss} at {self._at(step)}")
        self._count(losses, first)
        if bar is not None and not bar.disable:
            bar.set_postfix_str(f"loss {losses[-1]:.3f}{self._excess()}", refresh=False)

    def _count(self, losses: list[float], first: int) -> None:
        history, now = self.history, time.perf_counter()
        history.steps += range(first, first + len(losses))
        history.losses += losses
        history.tokens += len(losses) * math.prod(self.batches.shape)
        history.seconds += now - self.clock
        self.clock = now

    @torch.no_grad()
    def evaluate(self, bar: tqdm | None = None) -> None:
        """The loss on the fixed validation batches, beside the ideal predictor's on the same."""
        number = self.settings["evaluation_batches"]
        if not number:
            return
        self.look(bar)
        if not self.counts:
            self._floor()
        self.bare.eval()
        mine = range(self.accelerator.process_index, number, self.accelerator.num_processes)
        terms = self._terms(mine)
        self.bare.train()
        loss, floor = sum(terms.values()), self.history.floor
        excess = None if floor is None else loss - floor
        record = {"step": self.step, "loss": loss, "floor": floor, "excess": excess}
        if len(terms) > 1:
            floors = {name: self.floors.get(name) for name in terms}
            record["terms"] = {k: {"loss": v, "floor": floors[k]} for k, v in terms.items()}
        self.history.evaluations.append(record)
        if self.accelerator.is_main_process:
            self.tell(record)
        self.clock = time.perf_counter()

    def _terms(self, indices: Iterable[int]) -> dict[str, float]:
        """The validation loss by term; an objective that is no sum of terms has one."""
        terms = getattr(self.objective, "terms", None) or self._only_term
        totals = {name: torch.zeros((), device=self.device) for name in self.counts}
        for i in indices:
            found = terms(*self.answered(self.batches.validation(i)[1]), reduction="sum")
            totals = {name: total + found[name] for name, total in totals.items()}
        whole = {name: self.accelerator.reduce(total, "sum") for name, total in totals.items()}
        return {name: total.item() / max(1, self.counts[name]) for name, total in whole.items()}

    def _only_term(self, output: Any, batch: Batch, **how: Any) -> dict[str, Tensor]:
        return {self.objective.name: self.objective.loss(output, batch, **how)}

    def _floor(self) -> None:
        """Count the targets of the validation batches and find what the ideal predictor scores."""
        batches = [self.batches.validation(i) for i in range(self.settings["evaluation_batches"])]
        counts = [self._by_term(self.objective.count(batch)) for _, batch in batches]
        self.counts = {name: sum(count[name] for count in counts) for name in counts[0]}
        self.history.targets = sum(self.counts.values())
        enough = f"targets in {len(batches)} batches of {self.batches.shape}"
        require(self.history.targets, "evaluation_batches", len(batches), enough)
        if self.corpus.has_floor:
            found = [self.objective.floor(self.corpus, ids, batch) for ids, batch in batches]
            floors = [self._by_term(floor) for floor in found]
            self.floors = {k: _mean([floor[k].loss for floor in floors]) for k in self.counts}
            self.history.floor = sum(self.floors.values())
            entropies = [_mean([floor[k].entropy for floor in floors]) for k in self.counts]
            self.history.entropy = sum(entropies)

    def _by_term(self, value: Any) -> Mapping[str, Any]:
        return value if isinstance(value, Mapping) else {self.objective.name: value}

    def save(self) -> None:
        """A checkpoint, if there is a folder and anything new; never one that is not finite."""
        self.look()
        if self.folder is None or self.saved == self.step:
            return
        finite = torch.stack([p.detach().isfinite().all() for p in self.bare.parameters()])
        if not finite.all():
            raise Diverged(f"weights: expected finite numbers after {self._at(self.step)}")
        if self.accelerator.is_main_process:
            state = {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler()}
            model, history = self.bare.state_dict(), self.history.to_json()
            Checkpoint(self.step, model, state, self.settings, history).save(self.folder)
        self.saved = self.step
        self.clock = time.perf_counter()

    def resume(self, folder: Path) -> None:
        """Take up the newest checkpoint of the folder, if there is one.

        All that a step needs besides the state is its number: texts, masks and dropout are
        functions of it. So there is no state of a random generator to restore.
        """
        self.folder = folder
        found = checkpoints.latest(folder)
        if found is None:
            return
        changed = checkpoints.differences(found.settings, self.settings)
        if changed:
            raise ValueError(
                f"checkpoint: expected {folder} to hold this run or nothing, got another run: "
                + "; ".join(changed)
            )
        self.bare.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.state["optimizer"])
        if found.state["scaler"]:
            self.accelerator.scaler.load_state_dict(found.state["scaler"])
        self.step = self.saved = self.schedule.last_epoch = found.step
        device = self.history.device
        self.history = History.from_json(found.history)
        self.history.device = device
        for record in self.history.evaluations:
            self.tell(record)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def _scaler(self) -> dict[str, Any] | None:
        scaler = self.accelerator.scaler
        return None if scaler is None else scaler.state_dict()

    def _seed_dropout(self, step: int) -> None:
        """Make dropout a function of the step: torch's generators of the devices in use.

        ``torch.manual_seed`` would also queue a seed, with a traceback, for devices that are not
        there; that takes longer than the rest of this loop's own work.
        """
        words = [self.settings["seed"], step, self.accelerator.process_index, DROPOUT]
        noise = int(np.random.SeedSequence(words).generate_state(1)[0])
        torch.default_generator.manual_seed(noise)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(noise)
        elif self.device.type == "mps":
            torch.mps.manual_seed(noise)

    def _excess(self) -> str:
        excess = self.history.excess
        return "" if excess is None else f", excess {excess:.3f}"

    def _at(self, step: int) -> str:
        kept = "" if self.saved < 0 else f"; the checkpoint after step {self.saved} is good"
        return f"step {step} (a lower lr or a longer warmup may help{kept})"

    def _where(self) -> str:
        if self.folder is None:
            return f"stopped after step {self.step}; no checkpoint folder was given, none is saved"
        return f"stopped after step {self.step}; the same call goes on from {self.folder}"


class _Interruption:
    """Ctrl-C asks for a stop between two steps; a second one stops at once."""

    asked = False

    def __enter__(self) -> _Interruption:
        self.mine = threading.current_thread() is threading.main_thread()
        if self.mine:
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self.before)

    def __exit__(self, *_: Any) -> None:
        if self.mine:
            signal.signal(signal.SIGINT, self.before)


@contextmanager
def _borrowed(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Give the model back where and as it was, and torch's random numbers with it."""
    home, training = next(model.parameters()).device, model.training
    forward = vars(model).get("forward")
    cuda = [accelerator.device] if accelerator.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(cuda):
            model.train()
            yield
    finally:
        for name in ("forward", "_original_forward"):  # accelerate's autocast lives there
            vars(model).pop(name, None)
        if forward is not None:
            model.forward = forward
        model.to(home).train(training)


def _fits(model: nn.Module, corpus: Any, length: int) -> None:
    config = getattr(model, "config", None)
    longest = getattr(config, "max_length", None)
    if isinstance(longest, int):
        room = f"at most the model's max_length={longest}"
        require(length <= longest, "length", length, room)
    words = getattr(config, "vocab_size", corpus.vocabulary.size)
    enough = f"a model whose vocab_size is at least the corpus's {corpus.vocabulary.size}"
    require(words >= corpus.vocabulary.size, "model", words, enough)


def device_name(device: torch.device) -> str:
    """The device in words: ``"cuda (NVIDIA H200)"``, ``"cpu"``."""
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return device.type


def describe(thing: Any) -> dict[str, Any]:
    """What decides the behaviour of a model or an objective, as JSON."""
    found: dict[str, Any] = {"class": type(thing).__name__}
    config = getattr(thing, "config", None)
    if is_dataclass(config):
        return found | _plain(asdict(config))
    if isinstance(thing, nn.Module):
        return found | {k: list(v.shape) for k, v in thing.state_dict().items()}
    found |= {k: v for k, v in vars(thing).items() if k not in ("epoch", "calls")}
    return _plain(found | ({"vocabulary": _words(thing)} if hasattr(thing, "vocabulary") else {}))


def _words(thing: Any) -> int:
    return _checksum("\n".join(thing.vocabulary.tokens).encode())


def _plain(value: Any) -> Any:
    """A value as JSON gives it back: arrays as checksums, functions and objects as names."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if str(k)[:1] != "_"}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "checksum": _checksum(value)}
    if isinstance(value, Tensor):
        return _plain(value.detach().cpu().numpy())
    plain = value is None or isinstance(value, (bool, int, float, str))
    return value if plain else _name(value)


def _checksum(data: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(data).tobytes() if hasattr(data, "dtype") else data)


def _course(schedule: Callable[[int], float]) -> Any:
    """A function by its name; one that is a dataclass (a ``Course``) with its parameters."""
    if not is_dataclass(schedule):
        return _name(schedule)
    return {"class": type(schedule).__name__, **_plain(asdict(schedule))}


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _mean(arrays: list[np.ndarray]) -> float:
    return float(np.concatenate([np.ravel(a) for a in arrays]).mean())
