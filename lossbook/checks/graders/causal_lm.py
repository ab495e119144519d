"""Graded exercises of the chapter *Causal language modelling*."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import product

import numpy as np

from lossbook.checks.answers import Case, grader

IGNORE = -100


@grader("causal-lm-loss")
def causal_lm_loss() -> Iterable[Case]:
    """``f(logits, labels, denominator=None)``: cross-entropy of each label one position before."""
    rng = np.random.default_rng(0)
    opening = np.log(np.array([[[0.25, 0.5, 0.25], [0.9, 0.05, 0.05], [0.2, 0.2, 0.6]]]))
    yield Case(
        "two targets by hand",
        (opening, np.array([[IGNORE, 1, 0]])),
        (math.log(2) - math.log(0.9)) / 2,
        "The logits at position 0 answer for label 1: 0.5, and those at 1 for label 2: 0.9.",
    )
    z = rng.normal(size=(2, 4, 5)) * 2
    copied = np.zeros((1, 4, 6))
    copied[0, np.arange(4), [3, 1, 4, 2]] = 20.0
    yield _loss_case(
        "a model that copies its input",
        copied,
        np.array([[3, 1, 4, 2]]),
        "Near 0? Then each logit was compared with the label at its own position: the shift "
        "is missing.",
    )
    ahead = np.zeros((1, 5, 6))
    ahead[0, np.arange(3), [4, 2, 5]] = 20.0
    yield _loss_case(
        "a model that knows the next token but one",
        ahead,
        np.array([[3, 1, 4, 2, 5]]),
        "Small? Then the shift was made twice.",
    )
    yield _loss_case(
        "2 texts without -100: eight minus two targets",
        z,
        rng.integers(0, 5, (2, 4)),
        "The first label of a row has no position before it, and the last logits of a row must "
        "not meet the first label of the next one.",
    )
    yield _loss_case(
        "2 texts with 3 and 1 targets",
        z,
        np.array([[IGNORE, 1, 0, 2], [IGNORE, 3, IGNORE, IGNORE]]),
        "A mean of the rows' means? Each target counts once, whatever its row.",
    )
    yield _loss_case(
        "token 0 is a target too",
        rng.normal(size=(1, 4, 3)),
        np.array([[IGNORE, 0, 0, 2]]),
        "Only -100 means: no target. A mask such as labels > 0 loses token 0.",
    )
    yield _loss_case(
        "logits times 1000",
        z * 1000,
        np.array([[IGNORE, 1, 0, 2], [IGNORE, 3, 4, 0]]),
        "exp overflows. Subtract the largest logit first.",
    )
    yield Case(
        "a text of one position",
        (z[:, :1], np.array([[2], [3]])),
        0.0,
        "No label has a position before it, so there is no target, and a mean over nothing is 0.",
    )
    yield _loss_case(
        "one of two micro-batches, 9 targets in both",
        z,
        np.array([[IGNORE, 1, 0, 2], [IGNORE, 3, IGNORE, IGNORE]]),
        "The denominator is given: the targets of all micro-batches of the step.",
        denominator=9,
    )


def _loss_case(label, logits, labels, hint, **options) -> Case:
    total, count = 0.0, 0
    for b, t in np.ndindex(labels.shape):
        if t > 0 and labels[b, t] != IGNORE:
            z = logits[b, t - 1]
            total += max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[labels[b, t]]
            count += 1
    expected = total / options.get("denominator", count)
    return Case(label, (logits, labels), expected, hint, options)


@grader("bits-per-byte")
def bits_per_byte() -> Iterable[Case]:
    """``f(nats, texts)``: all nats in bits over all bytes."""
    two = math.log(2)
    yield Case(
        "one bit for each of two letters", ([np.array([two, two])], ["ab"]), 1.0,
        "A nat is 1/log 2 bits: divide by log 2.",
    )  # fmt: skip
    yield Case(
        "one token for three letters", ([np.array([6 * two])], ["abc"]), 2.0,
        "Divide by the bytes of the text, not by its tokens.",
    )  # fmt: skip
    yield Case(
        "letters of two, three and four bytes", ([np.array([9 * two])], ["é€𝄞"]), 1.0,
        "len(text) counts characters. Bytes are len(text.encode()).",
    )  # fmt: skip
    yield Case(
        "a long and a short text",
        ([np.full(8, two), np.array([4 * two])], ["abcdefgh", "xy"]),
        12 / 10,
        "One quotient of two sums; a mean of the texts' own values weighs the short one too much.",
    )
    yield Case(
        "texts of 1 to 5 tokens",
        ([np.arange(1.0, n + 1) for n in range(1, 6)], ["word" * n for n in range(1, 6)]),
        sum(n * (n + 1) / 2 for n in range(1, 6)) / two / 60,
        "The tokens' losses are added up, not averaged.",
    )


@grader("pack-documents")
def pack_documents() -> Iterable[Case]:
    """``f(documents, length, separator, pad)``: rows of the closed documents, one after another."""
    yield _pack_case(
        "two documents, rows of four", [[5, 6], [7, 8, 9]], 4,
        "The second document begins where the first ended, in the same row.",
    )  # fmt: skip
    yield _pack_case(
        "an exact fit", [[5, 6, 7], [8, 9, 5]], 4,
        "Eight tokens are two rows of four: no row of padding behind them.",
    )  # fmt: skip
    yield _pack_case(
        "a document longer than a row", [[5, 6, 7, 8, 9, 5, 6]], 3,
        "It goes on in the next row; nothing is cut off.",
    )  # fmt: skip
    yield _pack_case(
        "the rest of the last row", [[5], [6], [7]], 5,
        "What does not fill a row is not dropped but filled up with padding.",
    )  # fmt: skip
    yield _pack_case(
        "an empty document", [[], [5, 6]], 2,
        "Its separator stands there all the same.",
    )  # fmt: skip
    yield _pack_case(
        "rows of one token", [[5, 6]], 1, "The last document is closed by a separator, too."
    )


def _pack_case(label, documents, length, hint) -> Case:
    separator, pad = 3, 0
    rows: list[list[int]] = [[]]
    for token in [t for ids in documents for t in (*ids, separator)]:
        if len(rows[-1]) == length:
            rows.append([])
        rows[-1].append(token)
    rows[-1] += [pad] * (length - len(rows[-1]))
    arguments = ([np.array(ids, dtype=int) for ids in documents], length, separator, pad)
    return Case(label, arguments, np.array(rows), hint)


@grader("document-mask")
def document_mask() -> Iterable[Case]:
    """``f(ids, separator)``: [B, T, T], whether a query sees a key."""
    yield _mask_case(
        "one document", [[5, 6, 7]], "Without a separator it is the causal mask, diagonal included."
    )
    yield _mask_case(
        "two documents", [[5, 3, 6, 7, 3]],
        "A separator belongs to the document that it closes, and the next one must not see it.",
    )  # fmt: skip
    yield _mask_case(
        "a row that begins with a separator", [[3, 5, 6, 3]],
        "That separator is a document by itself: the end of one from the row before.",
    )  # fmt: skip
    yield _mask_case("two separators in a row", [[5, 3, 3, 6]], "An empty document is a document.")
    yield _mask_case(
        "two rows", [[5, 6, 3, 7], [5, 3, 6, 7]],
        "Each row has its own documents; a count along the flattened batch mixes them.",
    )  # fmt: skip


def _mask_case(label, ids, hint) -> Case:
    ids, separator = np.array(ids), 3
    rows, time = ids.shape
    expected = np.zeros((rows, time, time))
    for b, t, s in product(range(rows), range(time), range(time)):
        expected[b, t, s] = s <= t and separator not in ids[b, s:t]
    return Case(label, (ids, separator), expected, hint)


@grader("entropies-both-ways")
def entropies_both_ways() -> Iterable[Case]:
    """``f(joint)``: the entropies of three tokens given the past, and given the future."""
    certain = np.zeros((2, 2, 2))
    certain[0, 1, 1] = 1
    yield _entropy_case("a text that is certain", certain, "0 log 0 is 0, not a NaN.")
    copies = np.zeros((2, 2, 2))
    copies[0, 0, 0] = copies[1, 1, 1] = 0.5
    yield _entropy_case(
        "three copies of one coin", copies,
        "Forward log 2, 0, 0 and backward 0, 0, log 2: order the results by position.",
    )  # fmt: skip
    flat = np.einsum("i,j,k->ijk", [0.9, 0.1], [0.5, 0.5], [0.2, 0.8])
    yield _entropy_case(
        "independent tokens", flat, "Each token's own entropy, in either direction, in nats."
    )
    rng = np.random.default_rng(5)
    yield _entropy_case(
        "the first token decides about the third",
        np.einsum("i,j,ik->ijk", rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3)),
                  rng.dirichlet(np.ones(3), size=3)),
        "The whole past counts, not the neighbour alone.",
    )  # fmt: skip
    yield _entropy_case(
        "any table", rng.dirichlet(np.full(27, 0.3)).reshape(3, 3, 3),
        "A conditional entropy averages over what is known, with its probability.",
    )  # fmt: skip


def _entropy_case(label, joint, hint) -> Case:
    size = joint.shape[0]
    texts = [(text, joint[text]) for text in product(range(size), repeat=3) if joint[text] > 0]

    def given(t: int, known: list[int]) -> float:
        nats = 0.0
        for text, p in texts:
            agree = [(y, q) for y, q in texts if all(y[i] == text[i] for i in known)]
            both = sum(q for y, q in agree if y[t] == text[t])
            nats -= p * math.log(both / sum(q for _, q in agree))
        return nats

    forward = np.array([given(t, list(range(t))) for t in range(3)])
    backward = np.array([given(t, list(range(t + 1, 3))) for t in range(3)])
    return Case(label, (joint,), (forward, backward), hint)
