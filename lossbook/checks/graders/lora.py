"""Graded exercises of the chapter *LoRA*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("lora-gradients")
def lora_gradients() -> Iterable[Case]:
    """``f(A, B, s, x, g)``: the gradients by A and by B."""
    opening = (
        np.array([[1.0, -1.0]]),
        np.zeros((2, 1)),
        2.0,
        np.array([[3.0, 1.0]]),
        np.array([[1.0, -2.0]]),
    )
    yield Case(
        "the opening example",
        opening,
        (np.zeros((1, 2)), np.array([[4.0], [-8.0]])),
        "First the gradient by A, then by B. B is zero, so the one by A is.",
    )
    rng = np.random.default_rng(0)
    for label, n, d, k, r, s, hint in (
        ("3 tokens, d = 4, k = 5, r = 2", 3, 4, 5, 2, 1.5,
         "All sizes differ: a transposed factor has the wrong shape or the wrong sum."),
        ("the scaling is not 1", 2, 3, 2, 2, 0.25,
         "Both gradients carry the factor s, once."),
        ("square, so that a transpose goes unnoticed by shapes", 3, 3, 3, 3, 1.0,
         "d = k = r: only the numbers tell B g from its transpose."),
        ("one token", 1, 2, 3, 1, 2.0, "A mean over tokens? The gradient is a sum."),
        ("many tokens", 50, 2, 3, 1, 2.0, "A mean over tokens? The gradient is a sum."),
        ("no token at all", 0, 2, 3, 1, 2.0, "An empty sum is zero, in the shape of the factor."),
    ):  # fmt: skip
        arrays = (rng.normal(size=shape) for shape in ((r, k), (d, r), (n, k), (n, d)))
        a, b, x, g = arrays
        yield Case(label, (a, b, s, x, g), _gradients(a, b, s, x, g), hint)


def _gradients(a, b, s, x, g):
    """By plain loops over every path from a factor to the loss."""
    da, db = np.zeros_like(a), np.zeros_like(b)
    for t in range(len(x)):
        for i in range(len(b)):
            for j in range(a.shape[1]):
                for m in range(len(a)):
                    da[m, j] += s * g[t, i] * b[i, m] * x[t, j]
                    db[i, m] += s * g[t, i] * a[m, j] * x[t, j]
    return da, db


@grader("conditional-loss")
def conditional_loss() -> Iterable[Case]:
    """``f(logits, ids, separator)``: the mean over the target tokens of the batch."""
    opening = np.zeros((1, 4, 2))
    opening[0, 1], opening[0, 2] = [math.log(3), 0.0], [0.0, math.log(7)]
    yield Case(
        "two targets by hand",
        (opening, np.array([[1, 0, 0, 1]]), 0),
        (math.log(4 / 3) + math.log(8 / 7)) / 2,
        "The output at the separator predicts the first target: 3/4, and the next 7/8.",
    )
    rng = np.random.default_rng(1)
    z = 2 * rng.normal(size=(3, 6, 5))
    for label, ids, hint in (
        ("several separators in a row",
         [[1, 0, 2, 0, 3, 4], [0, 0, 0, 0, 1, 2], [4, 3, 2, 1, 0, 1]],
         "A second separator is a target like any other token."),
        ("targets of different length",
         [[0, 1, 2, 3, 4, 1], [1, 1, 1, 1, 0, 2], [2, 2, 2, 0, 3, 3]],
         "Each target token counts once: no mean of the rows' means, no division by B times T."),
        ("a row without a separator, and one that ends with it",
         [[1, 2, 3, 4, 1, 2], [3, 3, 3, 3, 3, 0], [2, 0, 1, 1, 1, 1]],
         "They have no target, and must not count."),
    ):  # fmt: skip
        ids = np.array(ids)
        yield Case(label, (z, ids, 0), _conditional(z, ids, 0), hint)
    ids = np.array([[3, 1, 3, 2], [1, 3, 0, 0]])
    yield Case(
        "the separator is token 3",
        (z[:2, :4], ids, 3),
        _conditional(z[:2, :4], ids, 3),
        "It is an argument, not always 0.",
    )
    yield Case(
        "logits times 1000",
        (1000 * z[:2, :4], ids, 3),
        _conditional(1000 * z[:2, :4], ids, 3),
        "exp overflows. Subtract the largest logit first.",
    )
    yield Case(
        "no target in the whole batch",
        (z[:2, :4], np.ones((2, 4), int), 3),
        0.0,
        "The book's convention: a mean over nothing is 0.",
    )


def _conditional(logits, ids, separator) -> float:
    total, count = 0.0, 0
    for b, row in enumerate(ids):
        for t in range(1, len(row)):
            if separator in row[:t]:
                z = logits[b, t - 1]
                total += max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[row[t]]
                count += 1
    return total / count if count else 0.0


@grader("adapter-numbers")
def adapter_numbers() -> Iterable[Case]:
    """``f(shapes, rank, parts=1)``: how many numbers are trained."""
    gpt3 = [(12288, 12288)] * 192
    hint = "A has r times k numbers, B has d times r: their sum, not d times k."
    yield Case("one matrix of 4 by 6 at rank 2", ([(4, 6)], 2), 20, hint)
    yield Case("GPT-3, query and value, rank 1", (gpt3, 1), 4_718_592, hint)
    yield Case("GPT-3, query and value, rank 8", (gpt3, 8), 37_748_736, hint)
    yield Case("layers of different shapes", ([(4, 6), (10, 3), (7, 7)], 3), 3 * 37, hint)
    fused = "Every part has an A of its own over all k inputs, and a B of d / p rows."
    yield Case("a fused projection in three parts", ([(12, 4)], 2), 32, hint)
    yield Case("the same in parts", ([(12, 4)], 2), 48, fused, {"parts": 3})
    yield Case("no layer", ([], 4), 0, "An empty sum.")


@grader("rank-error")
def rank_error() -> Iterable[Case]:
    """``f(D, r)``: the share of the squared norm that no product of rank r can hold."""
    diagonal = np.diag([3.0, 2.0, 1.0])
    yield Case(
        "singular values 3, 2, 1 at rank 1",
        (diagonal, 1),
        5 / 14,
        "Squared singular values: 9 of 14 are held.",
    )
    rng = np.random.default_rng(2)
    thin = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4))
    yield Case("a product of rank 2 at rank 1", (thin, 1), _left(thin, 1), "One of two is left.")
    wide = rng.normal(size=(3, 8))
    yield Case("a rank above the smaller side", (wide, 5), 0.0, "There is nothing left to cut.")
    yield Case("rank 0", (wide, 0), 1.0, "Nothing is held.")
    for r in (1, 2):
        yield Case(f"3 by 8, rank {r}", (wide, r), _left(wide, r),
                   "Squares, and a share of the whole: no root, no absolute size.")  # fmt: skip
        yield Case(f"8 by 3, rank {r}", (1e3 * wide.T, r), _left(wide, r),
                   "A share does not depend on the scale of D.")  # fmt: skip
    yield Case("no change at all", (np.zeros((3, 2)), 1), 0.0, "0 of 0 is 0 here, by convention.")


def _left(matrix: np.ndarray, rank: int) -> float:
    """By the eigenvalues of the Gram matrix, the other way to singular values."""
    values = np.sort(np.linalg.eigvalsh(matrix @ matrix.T))[::-1]
    return float(values[rank:].sum() / values.sum())
