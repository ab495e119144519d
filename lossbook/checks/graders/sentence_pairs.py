"""Graded exercises of the chapter *Sentence pairs*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader

IGNORE = -100


@grader("joint-pair-loss")
def joint_pair_loss() -> Iterable[Case]:
    """``f(logits, labels, pair_logits, pair_labels, tokens=None, pairs=None)``: two means."""
    opening = np.log(np.array([[[0.5, 0.5], [0.125, 0.875]], [[0.5, 0.5], [0.3, 0.7]]]))
    targets = np.array([[0, 0], [0, IGNORE]])
    answers = np.log(np.array([[0.75, 0.25], [0.75, 0.25]]))
    yield Case(
        "three tokens and two pairs by hand",
        (opening, targets, answers, np.array([0, 1])),
        math.log(32) / 3 + math.log(16 / 3) / 2,
        "log 32 / 3 for the tokens, log(16/3) / 2 for the pairs. One denominator for both?",
    )
    rng = np.random.default_rng(0)
    z, u = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 2))
    labels = np.array([[2, IGNORE, 0, 4], [IGNORE] * 4, [IGNORE, 1, IGNORE, IGNORE]])
    yield _joint(
        "rows with 3, 0 and 1 targets",
        z,
        labels,
        u,
        np.array([0, 1, 1]),
        "Tokens count once each, over the whole batch; a row without one still has a pair.",
    )
    yield _joint(
        "label 0 is a label",
        z,
        np.where(labels == IGNORE, IGNORE, 0),
        u,
        np.array([0, 0, 0]),
        "Only -100 means: no target. The pair's label 0 counts like 1.",
    )
    yield _joint(
        "no masked token at all",
        z,
        np.full((3, 4), IGNORE),
        u,
        np.array([1, 0, 1]),
        "A mean over nothing is 0; the pairs remain.",
    )
    yield _joint(
        "logits times 1000",
        1000 * z,
        labels,
        1000 * u,
        np.array([1, 0, 1]),
        "exp overflows. Subtract the largest logit first.",
    )
    yield _joint(
        "one of two micro-batches: 9 tokens and 7 pairs in both",
        z,
        labels,
        u,
        np.array([0, 1, 1]),
        "Both denominators are given, each for its own sum.",
        tokens=9,
        pairs=7,
    )


def _nats(z, y) -> float:
    return max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[y]


def _joint(label, logits, labels, pair_logits, pair_labels, hint, **options) -> Case:
    places = [p for p in np.ndindex(labels.shape) if labels[p] != IGNORE]
    tokens = sum(_nats(logits[p], labels[p]) for p in places)
    pairs = sum(_nats(z, y) for z, y in zip(pair_logits, pair_labels, strict=True))
    expected = tokens / options.get("tokens", max(1, len(places)))
    expected += pairs / options.get("pairs", len(pair_labels))
    return Case(label, (logits, labels, pair_logits, pair_labels), expected, hint, options)


@grader("truncate-pair")
def truncate_pair() -> Iterable[Case]:
    """``f(first, second, room, from_front)``: the two lists that remain."""
    for label, a, b, room, coins, hint in (
        ("nothing to cut", 3, 4, 7, [], "A pair that fits stays as it is."),
        ("only A is longer", 6, 2, 6, [True, False], "Cut the longer side, not both."),
        ("only B is longer", 2, 6, 6, [True, False], "The longer side may be the second."),
        ("equal lengths", 4, 4, 7, [False], "Of equal sides BERT's code cuts B."),
        ("they take turns", 5, 4, 4, [True, False, True, False, False],
         "Compare anew after every token; one coin per token, in order."),
        ("always the front", 6, 5, 6, [True] * 5, "True removes the first token."),
        ("always the back", 6, 5, 6, [False] * 5, "False removes the last token."),
    ):  # fmt: skip
        first, second = list(range(10, 10 + a)), list(range(50, 50 + b))
        expected = _cut(first, second, room, coins)
        yield Case(label, (first, second, room, coins), expected, hint)


def _cut(first, second, room, coins) -> tuple[np.ndarray, np.ndarray]:
    first, second = list(first), list(second)
    for coin in coins:
        if len(first) + len(second) <= room:
            break
        if len(first) > len(second):
            first = first[1:] if coin else first[:-1]
        else:
            second = second[1:] if coin else second[:-1]
    return np.array(first), np.array(second)


@grader("topic-floor")
def topic_floor() -> Iterable[Case]:
    """``f(topics, negatives)``: entropy of the label given both topics."""
    half = "Sum over the four cases of (topic of A, topic of B, label), or condition on equality."
    for label, topics, negatives, hint in (
        ("six equal topics", [1 / 6] * 6, 0.5, "0.239: 7/12 of the pairs share a topic."),
        ("one topic", [1.0], 0.5, "Topics say nothing: the entropy of the coin, log 2."),
        ("a thousand topics", [1e-3] * 1000, 0.5, "Nearly 0, since topics nearly tell all."),
        ("uneven topics", [0.7, 0.2, 0.1], 0.5, half),
        ("a topic that never occurs", [0.5, 0.5, 0.0], 0.5, "0 log 0 is 0."),
        ("more negatives than positives", [0.25] * 4, 0.6, "The coin need not be fair."),
        ("no negatives", [0.5, 0.5], 0.0, "A certain label has no entropy."),
    ):
        expected = _topic_entropy(topics, negatives)
        yield Case(label, (np.array(topics), negatives), expected, hint)


def _topic_entropy(topics, negatives) -> float:
    total = 0.0
    for k, p in enumerate(topics):
        for j, q in enumerate(topics):
            joint = [(1 - negatives) * p * (j == k), negatives * p * q]
            total -= sum(x * math.log(x / sum(joint)) for x in joint if x > 0)
    return total
