"""Objectives of several terms: a denominator, a sum and a floor for each."""

import numpy as np
import pytest
import torch

from lossbook.corpora import HiddenMarkovLanguage
from lossbook.models import Encoder, PairEncoder, TransformerConfig
from lossbook.objectives import MaskedLM, NextSentence, SentenceOrder
from lossbook.optim.schedules import Course
from lossbook.training import pretrain

LANGUAGE = HiddenMarkovLanguage.default()
SIZE = LANGUAGE.vocabulary.size
CONFIG = TransformerConfig(SIZE, 8, 1, 2, 48)
SMALL = {"steps": 1, "batch_size": 8, "length": 48, "device": "cpu", "evaluation_batches": 0,
         "clip": None, "schedule": "constant", "warmup": 0}  # fmt: skip


def run(goal=None, dtype=torch.float64, **options):
    model = PairEncoder(CONFIG, seed=1).to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    goal = NextSentence(LANGUAGE.vocabulary) if goal is None else goal
    history = pretrain(model, goal, LANGUAGE, **{**SMALL, "optimizer": optimizer, **options})
    return model, history


def moved(goal=None, **options):
    """The gradient of the first step: what plain descent with a rate of 1 subtracts."""
    before = PairEncoder(CONFIG, seed=1).double()
    after, _ = run(goal, **options)
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    return torch.cat([(b - a).detach().flatten() for b, a in pairs])


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("accumulation", [2, 3, 8])
@pytest.mark.parametrize("kind", [NextSentence, SentenceOrder])
def test_micro_batches_add_up_to_the_whole_batch(kind, accumulation):
    """Only the order of sums differs: 1e-13 in float64."""
    goal = kind(LANGUAGE.vocabulary)
    assert relative(moved(goal, accumulation=accumulation), moved(goal)) < 1e-13


def test_the_gradient_is_that_of_the_sum_of_two_means():
    goal = NextSentence(LANGUAGE.vocabulary)
    model = PairEncoder(CONFIG, seed=1).double()
    batch = goal.batch(LANGUAGE.batch(8, 48, seed=0), epoch=0, index=0)
    output = model(**{k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")})
    tokens = torch.nn.functional.cross_entropy(
        output.logits.flatten(0, 1), batch["labels"].flatten()
    )
    pairs = torch.nn.functional.cross_entropy(output.pair_logits, batch["next_sentence_label"])
    grads = torch.autograd.grad(tokens + pairs, list(model.parameters()))
    assert relative(moved(accumulation=4), torch.cat([g.flatten() for g in grads])) < 1e-13


class OneDenominator(NextSentence):
    """The bug: what belongs to one term divides both."""

    def terms(self, output, batch, *, denominator=None, reduction="mean"):
        if denominator is not None:
            denominator = dict.fromkeys(denominator, max(denominator.values()))
        return super().terms(output, batch, denominator=denominator, reduction=reduction)


class LocalMeans(NextSentence):
    """Another: each micro-batch divides by its own counts."""

    def terms(self, output, batch, *, denominator=None, reduction="mean"):
        parts = super().terms(output, batch, reduction=reduction)
        return {name: part / 4 for name, part in parts.items()}


@pytest.mark.parametrize("bug", [OneDenominator, LocalMeans])
def test_a_wrong_denominator_would_be_seen(bug):
    assert relative(moved(bug(LANGUAGE.vocabulary), accumulation=4), moved()) > 1e-3


def test_evaluation_has_both_terms_and_the_sum_of_their_floors():
    goal = NextSentence(LANGUAGE.vocabulary)
    model, history = run(goal, evaluation_batches=2, dtype=torch.float32)
    losses = {"masked-lm": [0.0, 0], "next-sentence": [0.0, 0]}
    floors = {"masked-lm": [], "next-sentence": []}
    for index in range(2):
        ids = LANGUAGE.batch(8, 48, index=index, split="validation")
        arrays = goal.corrupt(ids, np.random.default_rng([0, 0, index, 1]))
        batch = {k: torch.from_numpy(v) for k, v in arrays.items()}
        fields = {k: batch[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            sums = goal.terms(model(**fields), batch, reduction="sum")
        for name, number in goal.count(batch).items():
            losses[name] = [losses[name][0] + sums[name].item(), losses[name][1] + number]
        for name, floor in goal.floor(LANGUAGE, ids, arrays).items():
            floors[name] = [*floors[name], *floor.loss]
    last = history.evaluations[-1]
    for name, (total, number) in losses.items():
        assert last["terms"][name]["loss"] == pytest.approx(total / number, rel=1e-5)
        assert last["terms"][name]["floor"] == pytest.approx(np.mean(floors[name]), rel=1e-12)
    assert last["loss"] == pytest.approx(sum(t["loss"] for t in last["terms"].values()), rel=1e-12)
    assert last["floor"] == pytest.approx(sum(np.mean(f) for f in floors.values()), rel=1e-12)
    assert last["excess"] == last["loss"] - last["floor"]
    assert history.targets == sum(number for _, number in losses.values())


def test_one_term_alone_looks_as_it_always_did():
    goal = NextSentence(LANGUAGE.vocabulary, rate=0.0)
    _, history = run(goal, evaluation_batches=1, dtype=torch.float32)
    assert set(history.evaluations[0]) == {"step", "loss", "floor", "excess"}
    assert history.targets == 8


def test_a_resumed_run_repeats_itself(tmp_path):
    options = {"steps": 4, "evaluation_batches": 1, "evaluate_every": 2, "dtype": torch.float32}
    whole = run(**options)[0]
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, on_evaluation=stop_at(2), **options)
    rest, history = run(checkpoint=tmp_path, **options)
    assert all(map(torch.equal, whole.parameters(), rest.parameters()))
    assert [e["step"] for e in history.evaluations] == [0, 2, 4]
    assert all("terms" in e for e in history.evaluations)


def stop_at(step):
    import signal

    def stop(record):
        if record["step"] == step:
            signal.raise_signal(signal.SIGINT)

    return stop


def test_another_course_is_another_run(tmp_path):
    """A Course is kept with its options, so that a changed one is noticed on resuming."""
    model = Encoder(TransformerConfig(SIZE, 8, 1, 2, 16), seed=0)
    how = {"steps": 2, "batch_size": 4, "length": 16, "device": "cpu", "evaluation_batches": 0}

    def train(course):
        goal = MaskedLM(LANGUAGE.vocabulary)
        return pretrain(model, goal, LANGUAGE, schedule=course, checkpoint=tmp_path, **how)

    history = train(Course("linear", {"steps": 9, "warmup": 1}))
    kept = {"class": "Course", "name": "linear", "options": {"steps": 9, "warmup": 1}}
    assert history.settings["schedule"] == kept
    train(Course("linear", {"steps": 9, "warmup": 1}))
    with pytest.raises(ValueError, match=r"schedule\.options\.warmup was 1 and is now 2"):
        train(Course("linear", {"steps": 9, "warmup": 2}))
