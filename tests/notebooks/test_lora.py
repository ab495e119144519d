"""The chapter's NumPy against lossbook and peft, its museum, its exercises and its numbers."""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import peft
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lossbook import checks, recorded
from lossbook.adapters import LoRALinear, published_counts
from lossbook.corpora import HiddenMarkovLanguage, causal_floor
from lossbook.objectives import ConditionalLM

CHAPTER = "lora"


@cache
def language():
    return HiddenMarkovLanguage.default()


# --- one layer


@given(
    n=st.integers(0, 4), d=st.integers(1, 5), k=st.integers(1, 5), r=st.integers(1, 3),
    scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40)
@example(n=0, d=2, k=3, r=1, scale=1.0, seed=0)
@example(n=3, d=1, k=1, r=1, scale=1e3, seed=1)
def test_layer_and_gradients(derivation, n, d, k, r, scale, seed):
    """As defined = as arrays = lossbook = autograd of W itself, from no token to several."""
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    r = min(r, d, k)
    x, g = scale * rng.normal(size=(n, k)), rng.normal(size=(n, d))
    W, A, B = rng.normal(size=(d, k)), rng.normal(size=(r, k)), rng.normal(size=(d, r))
    s = 3.0 / r
    layer = LoRALinear(torch.nn.Linear(k, d, bias=False).double(), r, 3.0, rng=rng)
    with torch.no_grad():
        for p, value in ((layer.base.weight, W), (layer.A, A), (layer.B, B)):
            p.copy_(torch.tensor(value))
    h = layer(torch.tensor(x))
    (h * torch.tensor(g)).sum().backward()
    value = page.adapted(W, A, B, s, x)
    assert checks.difference(value, h) <= 1e-13
    assert checks.difference(value, page.adapted_by_definition(W, A, B, s, x)) <= 1e-13
    full = torch.tensor(W + s * B @ A, requires_grad=True)
    (F.linear(torch.tensor(x), full) * torch.tensor(g)).sum().backward()
    thin = page.factor_gradients(A, B, s, x, g)
    for ours, theirs in zip(thin, (layer.A.grad, layer.B.grad), strict=True):
        assert checks.difference(ours, theirs) <= 1e-12
    wide = page.factor_gradients_from_full(A, B, s, full.grad.numpy())
    for ours, theirs in zip(thin, wide, strict=True):
        assert checks.difference(ours, theirs) <= 1e-12


def test_the_opening_example_by_hand(derivation):
    page = derivation(CHAPTER)
    A, B, x, g = (
        np.array([[1.0, -1]]),
        np.zeros((2, 1)),
        np.array([[3.0, 1]]),
        np.array([[1.0, -2]]),
    )
    assert np.array_equal(page.adapted(np.eye(2), A, B, 2, x), [[3, 1]])
    assert np.array_equal(g.T @ x, [[3, 1], [-6, -2]])
    da, db = page.factor_gradients(A, B, 2, x, g)
    assert not da.any()
    assert np.array_equal(db, [[4], [-8]])
    moved = page.adapted(np.eye(2), A, B - 0.1 * db, 2, x) - x
    assert np.allclose(moved, [[-1.6, 3.2]])
    assert 2 * 12288 == 24576
    assert round(12288**2 / 1e6) == 151


def test_the_first_step_of_gradient_descent(derivation):
    """Equation eq-lora-first: ΔW = -η s² G AᵀA, through rank-r eyes."""
    page, rng = derivation(CHAPTER), np.random.default_rng(0)
    A, x, g = rng.normal(size=(2, 5)), rng.normal(size=(3, 5)), rng.normal(size=(3, 4))
    _, db = page.factor_gradients(A, np.zeros((4, 2)), 1.5, x, g)
    step = 1.5 * (-0.1 * db) @ A
    assert np.allclose(step, -0.1 * 1.5**2 * (g.T @ x) @ (A.T @ A))
    assert np.linalg.matrix_rank(A.T @ A) == 2


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_first_step_of_adam(rank):
    """Equation eq-lora-adam, with torch's Adam on PEFT's layer."""
    rng = np.random.default_rng(rank)
    x, g = torch.tensor(rng.normal(size=(1, 8))), torch.tensor(rng.normal(size=(1, 9)))
    base = torch.nn.Sequential(torch.nn.Linear(8, 9, bias=False)).double()
    config = peft.LoraConfig(r=rank, lora_alpha=4, target_modules=["0"])
    model = peft.get_peft_model(base, config).double()
    weight = model.base_model.model[0].lora_A["default"].weight.detach()
    weight.copy_(torch.tensor(rng.uniform(-1, 1, (rank, 8))))
    u = weight @ x[0]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = model(x).detach()
    (g * model(x)).sum().backward()
    optimizer.step()
    wanted = -1e-2 * 4 / rank * g.sign() * u.abs().sum()
    assert checks.difference(model(x).detach() - before, wanted) <= 1e-5  # Adam's ε = 1e-8


def test_rounding_loses_small_changes_in_bfloat16():
    """Below half a unit roundoff (0.195 %) of a weight always; float32 keeps such a change."""
    w = torch.tensor(np.random.default_rng(0).normal(size=10_000)).bfloat16()
    u = torch.finfo(torch.bfloat16).eps / 2
    for share, always in ((0.499, True), (0.6, False)):
        change = share * u * w.double()
        merged = (w.double() + change).bfloat16()
        assert torch.equal(merged, w) == always
        assert not torch.equal(w.float() + change.float(), w.float())


# --- the objective


@given(rows=st.integers(1, 4), length=st.integers(3, 20), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_labels_loss_and_gradient(derivation, rows, length, seed):
    page, rng = derivation(CHAPTER), np.random.default_rng(seed)
    vocabulary = language().vocabulary
    objective = ConditionalLM(vocabulary)
    ids = language().batch(rows, length, seed=seed)
    batch = objective.batch(ids)
    labels = page.conditional_labels(ids, vocabulary.id_of("."), vocabulary.special_ids)
    assert np.array_equal(labels, batch["labels"])
    logits = 3 * rng.normal(size=(rows, length, vocabulary.size))
    value = page.conditional_loss(logits, labels)
    assert checks.difference(value, objective.loss(torch.tensor(logits), batch)) <= 1e-13
    mine = checks.autograd(lambda z: objective.loss(z, batch), logits)
    assert checks.difference(page.conditional_loss_gradient(logits, labels), mine) <= 1e-13


def test_the_condition_of_the_theorem_is_needed():
    """Asked only at the last sentence, the ideal predictor of plain modelling is not the best.

    In the tiny language: a token is a target if no full stop follows in the text. Given that it is
    one, its distribution differs from the one given the past alone.
    """
    tiny = HiddenMarkovLanguage.tiny()
    stop = tiny.sentence_end_id
    asked, plain = {}, {}
    for text in itertools.product(range(5, tiny.vocabulary.size), repeat=4):
        a = tiny.initial * tiny.emission[:, text[0]]
        for token in text[1:]:
            a = (a @ tiny.transition) * tiny.emission[:, token]
        plain[text[2]] = plain.get(text[2], 0) + a.sum()
        if stop not in text[2:]:
            asked[text[2]] = asked.get(text[2], 0) + a.sum()
    total = sum(asked.values())
    assert stop not in asked
    assert plain[stop] > 0.1
    assert any(abs(p / total - plain[t]) > 0.05 for t, p in asked.items())


def test_the_new_stories_use_no_new_word():
    """Every token of the stories told backwards can occur in those told forwards."""
    backwards = language().part(stages=("ending", "trouble", "quest", "opening"))
    assert np.array_equal(backwards.emission.any(0), language().emission.any(0))
    ids = backwards.batch(4, 24)
    found = ConditionalLM(language().vocabulary).batch(ids)
    assert (found["labels"] != -100).any()
    assert causal_floor(backwards, ids).loss.size == 4 * 22
    with pytest.raises(ValueError, match="texts that the language can produce"):
        causal_floor(language(), ids)


# --- the museum


def test_the_right_layer_passes_the_audit(derivation):
    page = derivation(CHAPTER)
    for seed in range(3):
        assert all(page.audit(page.ours_around, seed).values())


@pytest.mark.parametrize(
    ("bug", "caught"),
    [
        ("two_zeros", ["learns"]),
        ("MergesInPlace", ["survives a checkpoint"]),
    ],
)
def test_every_bug_fails_the_audit(museum, bug, caught):
    page = museum(CHAPTER)
    for seed in range(3):
        report = page.audit(getattr(page, bug), seed)
        assert [name for name, good in report.items() if not good] == caught


def test_eval_of_a_part_is_never_called(museum):
    """model.eval() calls train(False) on its parts, so a merge in eval() stays undone."""
    page = museum(CHAPTER)
    assert not page.Whole(page.EvalNobodyCalls(page.nn_linear())).eval().layer.merged
    assert page.Whole(page.MergesInPlace(page.nn_linear())).eval().layer.merged
    alone = page.EvalNobodyCalls(page.nn_linear())
    alone.eval()
    assert alone.merged


def test_two_zeros_are_stationary_for_any_loss(museum):
    page = museum(CHAPTER)
    layer = page.two_zeros(page.nn_linear())
    for loss in (torch.sum, lambda h: h.exp().sum(), lambda h: h.square().mean()):
        layer.zero_grad()
        loss(layer(torch.ones(2, 5).double())).backward()
        assert not layer.A.grad.any()
        assert not layer.B.grad.any()


# --- the exercises


def test_printed_solutions_pass(solutions, capsys):
    page = solutions(CHAPTER)
    assert checks.check("lora-gradients", page.lora_gradients).passed
    assert checks.check("conditional-loss", page.target_loss).passed
    assert checks.check("adapter-numbers", page.adapter_numbers).passed
    assert checks.check("rank-error", page.rank_error).passed


def unscaled(A, B, s, x, g):
    return (g @ B).T @ x, g.T @ (x @ A.T)


def swapped(A, B, s, x, g):
    return s * g.T @ (x @ A.T), s * (g @ B).T @ x


def averaged(A, B, s, x, g):
    n = max(len(x), 1)
    return s * (g @ B).T @ x / n, s * g.T @ (x @ A.T) / n


def transposed(A, B, s, x, g):
    return s * (g @ B.T).T @ x, s * g.T @ (x @ A)


def dense(shapes, rank, parts=1):
    return sum(d * k for d, k in shapes)


def deaf_to_parts(shapes, rank, parts=1):
    return sum(rank * (d + k) for d, k in shapes)


def whole_for_each_part(shapes, rank, parts=1):
    return parts * sum(rank * (d + k) for d, k in shapes)


def without_squares(D, r):
    values = np.linalg.svd(D, compute_uv=False)
    return values[r:].sum() / max(values.sum(), 1e-300)


def without_share(D, r):
    return float((np.linalg.svd(D, compute_uv=False)[r:] ** 2).sum())


def unshifted(logits, ids, separator):
    inside = np.cumsum(ids == separator, 1) - (ids == separator) > 0
    return _mean(logits[inside], ids[inside])


def late_by_one(logits, ids, separator):
    predicts = np.cumsum(ids == separator, axis=1)[:, :-1] - (ids == separator)[:, :-1] > 0
    return _mean(logits[:, :-1][predicts], ids[:, 1:][predicts])


def from_the_last_separator(logits, ids, separator):
    z, y = [], []
    for row, line in zip(logits, ids, strict=True):
        at = np.flatnonzero(line == separator)
        if at.size:
            z.append(row[at[-1] : -1])
            y.append(line[at[-1] + 1 :])
    return _mean(np.concatenate(z), np.concatenate(y)) if z else 0.0


def mean_of_rows(logits, ids, separator):
    rows = []
    for row, line in zip(logits, ids, strict=True):
        at = np.flatnonzero(line == separator)
        if at.size and at[0] + 1 < len(line):
            rows.append(_mean(row[at[0] : -1], line[at[0] + 1 :]))
    return np.mean(rows) if rows else 0.0


def everything(logits, ids, separator):
    return _mean(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].ravel())


def _mean(z, y):
    if not len(y):
        return 0.0
    z = z - z.max(-1, keepdims=True)
    return (np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y]).mean()


def _overflows(logits, ids, separator):
    predicts = np.cumsum(ids == separator, axis=1)[:, :-1] > 0
    z, y = logits[:, :-1][predicts], ids[:, 1:][predicts]
    return -np.log(np.exp(z)[np.arange(len(y)), y] / np.exp(z).sum(-1)).mean() if len(y) else 0.0


@pytest.mark.parametrize(
    ("name", "mutant", "fails"),
    [
        ("lora-gradients", unscaled, "not 1"),
        ("lora-gradients", swapped, "d = 4"),
        ("lora-gradients", averaged, "many"),
        ("lora-gradients", transposed, "square"),
        ("conditional-loss", unshifted, "by hand"),
        ("conditional-loss", late_by_one, "by hand"),
        ("conditional-loss", from_the_last_separator, "several separators"),
        ("conditional-loss", mean_of_rows, "different length"),
        ("conditional-loss", everything, "without a separator"),
        ("conditional-loss", _overflows, "times 1000"),
        ("adapter-numbers", dense, "rank 2"),
        ("adapter-numbers", deaf_to_parts, "in parts"),
        ("adapter-numbers", whole_for_each_part, "in parts"),
        ("rank-error", without_squares, "3, 2, 1"),
        ("rank-error", without_share, "rank 1"),
    ],
)
def test_typical_mistakes_fail(capsys, name, mutant, fails):
    report = checks.check(name, mutant)
    assert not report.passed
    assert any(fails in case for case in report.failures), report


# --- printed numbers


def test_printed_counts(derivation):
    assert 2 * 12288 * 96 * 2 == 4_718_592
    assert 8 * 4_718_592 == 37_748_736
    off = [line for line in published_counts() if not line.agrees]
    assert len(off) == 8
    by_name = {(line.model, line.setting, line.place): line.formula for line in published_counts()}
    assert by_name["GPT-3", "q, k, v, o at rank 2", "appendix D.4"] == 18_874_368
    assert by_name["DeBERTa-XXL", "q, v at rank 16", "its scripts"] == 4_718_592
    C = 4096
    assert (24 * 4 * C, 8 * 6 * C) == (96 * C, 48 * C)


def test_printed_results_of_the_record():
    runs = recorded.load(CHAPTER)["result"]["runs"]
    assert len(runs) == 57

    def mean(what, rank, scaling="alpha / r", point=-1):
        found = [run["excess"][point] for run in runs if (run["what"], run["rank"]) == (what, rank)
                 and run["scaling"] in ("", scaling)]  # fmt: skip
        assert len(found) == 3
        return float(np.mean(found))

    assert round(mean("full", 0, point=0), 2) == 1.09
    assert [round(mean(w, 4), 2) for w in ("qv", "blocks", "embedding too")] == [0.53, 0.37, 0.12]
    assert round(mean("full", 0), 2) == 0.09
    assert round(mean("blocks", 4) - mean("blocks", 16), 2) == 0.01
    early = {s: mean("blocks", 32, s, 1) for s in ("alpha / r", "alpha")}
    assert early["alpha"] > early["alpha / r"] + 0.15
    late = {s: mean("blocks", 32, s) for s in ("alpha / r", "alpha / sqrt r", "alpha")}
    assert abs(late["alpha"] - late["alpha / r"]) < 0.01
    assert late["alpha / sqrt r"] < min(late["alpha"], late["alpha / r"]) - 0.02
    for run in runs:  # the ideal predictor's loss is never beaten
        assert min(run["excess"]) > 0


def test_the_unit_roundoffs():
    assert math.isclose(torch.finfo(torch.float32).eps / 2, 6e-8, rel_tol=0.01)
    assert math.isclose(torch.finfo(torch.bfloat16).eps / 2, 4e-3, rel_tol=0.03)
