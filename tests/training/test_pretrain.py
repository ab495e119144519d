"""The loop: denominators, floors, resuming, and refusals."""

import io
import math
import runpy
import signal
from contextlib import redirect_stderr
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lossbook.corpora.hidden_markov import HiddenMarkovLanguage
from lossbook.models import Encoder, Output, TransformerConfig
from lossbook.objectives import MaskedLM
from lossbook.training import Diverged, pretrain
from lossbook.training.checkpoint import latest

LANGUAGE = HiddenMarkovLanguage.tiny()
SIZE = LANGUAGE.vocabulary.size
CONFIG = TransformerConfig(SIZE, 16, 1, 2, 16)
SMALL = {"steps": 12, "batch_size": 8, "length": 12, "device": "cpu", "evaluation_batches": 0}
child = runpy.run_path(str(Path(__file__).with_name("child.py")))


def objective(kind=MaskedLM, **options):
    return kind(LANGUAGE.vocabulary, **{"rate": 0.3, **options})


def run(model=None, kind=MaskedLM, **options):
    model = Encoder(CONFIG, seed=1) if model is None else model
    return model, pretrain(model, objective(kind), LANGUAGE, **{**SMALL, **options})


def sgd(model):
    """Weights move by the gradient itself, so that a gradient can be read off them."""
    return torch.optim.SGD(model.parameters(), lr=1.0)


def one_gradient(accumulation, kind=MaskedLM, dtype=torch.float64):
    model = Encoder(CONFIG, seed=1).to(dtype)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    options = {"steps": 1, "accumulation": accumulation, "clip": None, "schedule": "constant"}
    run(model, kind, optimizer=sgd(model), warmup=0, **options)
    return before - torch.cat([p.detach().flatten() for p in model.parameters()])


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("accumulation", [2, 3, 8])
def test_micro_batches_add_up_to_the_whole_batch(accumulation):
    """Only the order of sums differs: 1e-14 in float64, 1e-6 in float32."""
    whole = one_gradient(1)
    assert relative(one_gradient(accumulation), whole) < 1e-14
    single = one_gradient(accumulation, dtype=torch.float32).double()
    assert relative(single, whole) < 3e-6


class MeanOfMeans(MaskedLM):
    """The common bug: each micro-batch is divided by its own number of targets."""

    def loss(self, logits, batch, *, denominator=None, reduction="mean"):
        return super().loss(logits, batch, reduction=reduction) / 4


def test_a_mean_of_means_would_be_seen():
    assert relative(one_gradient(4, MeanOfMeans), one_gradient(1)) > 0.05


def test_the_first_gradient_is_that_of_the_loss_by_hand():
    model = Encoder(CONFIG, seed=1).double()
    ids = LANGUAGE.batch(8, 12, seed=0, epoch=0, index=0)
    batch = objective().batch(ids, epoch=0, index=0)
    logits = model(batch["input_ids"]).logits.flatten(0, 1)
    loss = F.cross_entropy(logits, batch["labels"].flatten(), ignore_index=-100)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    assert relative(one_gradient(1), torch.cat([g.flatten() for g in grads])) < 1e-13
    history = run(Encoder(CONFIG, seed=1).double(), steps=1)[1]
    assert history.losses == [pytest.approx(loss.item(), rel=1e-13)]


class Uniform(torch.nn.Module):
    """Knows nothing: its loss is ln V whatever the text, and its one weight never matters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(SIZE))

    def forward(self, input_ids):
        return Output(self.weight.mean() + torch.zeros(*input_ids.shape, SIZE), None)


def test_evaluation_stands_beside_the_floor_of_the_same_batches():
    """The uniform model scores ln V; the floor is recomputed here from the language itself."""
    history = run(Uniform(), evaluation_batches=3, evaluate_every=5)[1]
    assert [e["step"] for e in history.evaluations] == [0, 5, 10, 12]
    losses, entropies = [], []
    for index in range(3):
        ids = LANGUAGE.batch(8, 12, index=index, split="validation")
        batch = objective().corrupt(ids, np.random.default_rng([0, 0, index, 1]))
        floor = objective().floor(LANGUAGE, ids, batch)
        losses, entropies = [*losses, *floor.loss], [*entropies, *floor.entropy]
    assert history.targets == len(losses)
    assert history.floor == pytest.approx(np.mean(losses), rel=1e-12)
    assert history.entropy == pytest.approx(np.mean(entropies), rel=1e-12)
    for evaluation in history.evaluations:
        assert evaluation["loss"] == pytest.approx(math.log(SIZE), rel=1e-6)
        assert evaluation["excess"] == evaluation["loss"] - history.floor


def test_training_comes_near_the_floor_and_not_below():
    """The excess is measured on the floor's own batches, so it scatters far less than the loss."""
    model = Encoder(TransformerConfig(SIZE, 32, 1, 4, 16), seed=0)
    options = {"steps": 150, "batch_size": 16, "lr": 1e-2, "evaluation_batches": 8}
    history = run(model, **options)[1]
    assert history.evaluations[0]["excess"] > 1.5
    assert 0 < history.excess < 0.9
    assert history.final_loss == history.evaluations[-1]["loss"]


def test_a_leak_would_be_seen_below_the_floor():
    """An objective whose labels stand in the input: the loss falls through its floor."""

    class Leaking(MaskedLM):
        def corrupt(self, ids, rng):
            return {**super().corrupt(ids, rng), "input_ids": ids}

    model = Encoder(TransformerConfig(SIZE, 32, 1, 4, 16), seed=0)
    honest = objective().floor
    Leaking.floor = lambda self, language, ids, batch: honest(
        language, ids, {**batch, "input_ids": np.where(batch["labels"] >= 0, 4, ids)}
    )
    options = {"steps": 100, "batch_size": 16, "lr": 1e-2, "evaluation_batches": 4}
    assert run(model, Leaking, **options)[1].excess < -0.1


def test_a_corpus_without_a_known_law_has_no_floor():
    class Unknown:
        name, has_floor, vocabulary = "unknown", False, LANGUAGE.vocabulary
        batch, rows = staticmethod(LANGUAGE.batch), staticmethod(LANGUAGE.rows)

    options = SMALL | {"evaluation_batches": 1}
    history = pretrain(Encoder(CONFIG), objective(), Unknown(), **options)
    assert history.floor is None and history.excess is None
    assert history.perplexity == pytest.approx(math.exp(history.final_loss))


def test_the_order_of_events_does_not_reach_the_weights():
    """Evaluation, saving, progress bars and the caller's random numbers change no bit."""
    dropout = TransformerConfig(SIZE, 16, 1, 2, 16, dropout=0.2)
    torch.manual_seed(1)
    plain, _ = run(Encoder(dropout))
    torch.manual_seed(2)
    with redirect_stderr(io.StringIO()):
        busy, _ = run(Encoder(dropout), evaluation_batches=1, evaluate_every=1, progress=True)
    other, _ = run(Encoder(dropout), seed=1)
    for p, q, r in zip(plain.parameters(), busy.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and not torch.equal(p, r)


def test_the_model_and_torchs_random_numbers_come_back_as_they_were():
    model, state = Encoder(CONFIG).eval(), torch.get_rng_state()
    ids = torch.zeros(1, 4, dtype=torch.long)
    run(model, precision="bf16")
    assert not model.training and torch.equal(torch.get_rng_state(), state)
    assert "forward" not in vars(model) and model(ids).logits.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_bf16_is_used_and_close():
    exact, rounded = run(precision="no")[1].losses, run(precision="bf16")[1].losses
    assert exact != rounded and rounded == pytest.approx(exact, rel=0.01)


def test_schedule_as_a_function_and_a_rate_of_zero():
    model = Encoder(CONFIG, seed=1)
    before = [p.clone() for p in model.parameters()]
    run(model, schedule=lambda step: float(step > 100))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("stop", [1, 20])
def test_control_c_leaves_a_checkpoint_and_the_run_goes_on(tmp_path, stop):
    class Interrupted(MaskedLM):
        calls_left = stop

        def loss(self, *args, **how):
            self.calls_left -= torch.is_grad_enabled()
            if self.calls_left == 0:
                signal.raise_signal(signal.SIGINT)
            return super().loss(*args, **how)

    Interrupted.__name__ = "MaskedLM"
    options = {"steps": 30, "checkpoint": tmp_path, "save_every": 1000}
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=f"stopped after step {stop}; the same call goes"):
        run(kind=Interrupted, **options)
    assert latest(tmp_path).step == stop and signal.getsignal(signal.SIGINT) is handler
    resumed, history = run(**options)
    expected, whole = run(steps=30)
    assert history.losses == whole.losses and history.steps == list(range(1, 31))
    for p, q in zip(resumed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(p, q)


def test_control_c_without_a_folder_says_so():
    class Interrupted(MaskedLM):
        def loss(self, *args, **how):
            signal.raise_signal(signal.SIGINT)
            return super().loss(*args, **how)

    with pytest.raises(KeyboardInterrupt, match="after step 1; no checkpoint folder was given"):
        run(kind=Interrupted)


class Diverging(MaskedLM):
    """NaN in the loss of the 27th training batch."""

    left = 27

    def loss(self, *args, **how):
        type(self).left -= torch.is_grad_enabled()
        loss = super().loss(*args, **how)
        return loss * float("nan") if type(self).left == 0 else loss


def test_nan_names_its_step_and_leaves_the_last_good_checkpoint(tmp_path):
    Diverging.left = 27
    words = "got nan at step 27 .*the checkpoint after step 20 is good"
    with pytest.raises(Diverged, match=words):
        run(kind=Diverging, steps=60, checkpoint=tmp_path, save_every=10)
    found = latest(tmp_path)
    assert found.step == 20 and all(w.isfinite().all() for w in found.model.values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    with pytest.raises(Diverged, match="weights: expected finite numbers after step 1 "):
        run(schedule=lambda step: math.inf, steps=1, checkpoint=tmp_path)
    assert latest(tmp_path) is None


def test_a_finished_run_is_read_and_not_run_again(tmp_path):
    first, history = run(checkpoint=tmp_path)
    again, same = run(Encoder(CONFIG, seed=2), checkpoint=tmp_path)
    assert same == history
    assert all(
        torch.equal(p, q) for p, q in zip(first.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 2e-3}, "optimizer.lr was 0.001 and is now 0.002"),
        ({"steps": 13}, "steps was 12 and is now 13"),
        ({"seed": 5}, "seed was 0 and is now 5"),
        ({"schedule": "linear", "warmup": 3}, "schedule was 'cosine' and is now 'linear'; warmup"),
        ({"model": Encoder(TransformerConfig(SIZE, 16, 2, 2, 16))}, "model.layers was 1"),
        ({"kind": lambda v, rate: MaskedLM(v, rate=0.5)}, "objective.rate was 0.3 and is now 0.5"),
    ],
)
def test_another_run_in_the_folder_is_refused(tmp_path, options, words):
    run(checkpoint=tmp_path)
    before = [p.read_bytes() for p in sorted(tmp_path.iterdir())]
    with pytest.raises(ValueError, match=words):
        run(**{"checkpoint": tmp_path, **options})
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: "),
        ({"batch_size": 2, "accumulation": 3}, r"batch_size: .* = 3, got 2"),
        ({"length": 17}, "length: expected at most the model's max_length=16, got 17"),
        ({"accumulation": 0}, "accumulation: "),
        ({"evaluate_every": 0}, "evaluate_every: "),
        ({"evaluation_batches": -1}, "evaluation_batches: "),
        ({"clip": 0.0}, "clip: "),
        ({"lr": float("nan")}, "lr: "),
        ({"seed": -1}, "seed: "),
        ({"warmup": 12}, "warmup: "),
        ({"schedule": "step"}, "schedule: "),
        ({"model": Encoder(TransformerConfig(SIZE - 1, 16, 1, 2))}, "model: .*vocab_size"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        run(**options)
