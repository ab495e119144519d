"""Graded exercises of the chapter *Masked language modelling*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader

IGNORE = -100


@grader("masked-lm-loss")
def masked_lm_loss() -> Iterable[Case]:
    """``f(logits, labels, denominator=None)``: cross-entropy over the targets of the batch."""
    rng = np.random.default_rng(0)
    opening = np.log(np.array([[[0.2, 0.5, 0.3], [0.6, 0.2, 0.2], [0.125, 0.375, 0.5]]]))
    yield Case(
        "two targets by hand",
        (opening, np.array([[1, IGNORE, 0]])),
        math.log(4),
        "The mean of log 2 and log 8 is log 4. A denominator that counts all positions?",
    )
    z = rng.normal(size=(2, 3, 5)) * 2
    uneven = np.array([[4, IGNORE, 1], [IGNORE, IGNORE, 0]])
    yield _loss_case(
        "2 texts, 3 positions, 5 words; 2 and 1 targets",
        z,
        uneven,
        "A mean of the rows' means? Each target counts once, whatever its row.",
    )
    yield _loss_case(
        "a row without a target",
        rng.normal(size=(3, 4, 6)),
        np.array([[IGNORE] * 4, [2, IGNORE, 5, 1], [IGNORE, 0, IGNORE, IGNORE]]),
        "0/0 in one row must not reach the others, and the row must not count.",
    )
    yield _loss_case(
        "token 0 is a target too",
        rng.normal(size=(1, 4, 3)),
        np.array([[0, IGNORE, 0, 2]]),
        "Only -100 means: no target. A mask such as labels > 0 loses token 0.",
    )
    even = np.array([[4, IGNORE, 1], [2, IGNORE, 0]])
    yield _loss_case(
        "logits times 1000", z * 1000, even, "exp overflows. Subtract the largest logit first."
    )
    huge = np.where((even == IGNORE)[..., None], 1e4 * z, z)
    yield _loss_case(
        "a model that is very wrong where nobody asks",
        huge,
        even,
        "Positions without a target must not enter the mean at all.",
    )
    yield Case(
        "no target in the whole batch",
        (z, np.full((2, 3), IGNORE)),
        0.0,
        "The book's convention: a mean over nothing is 0, so that the gradient is 0.",
    )
    yield _loss_case(
        "one of two micro-batches, 7 targets in both",
        z,
        uneven,
        "The denominator is given: the targets of all micro-batches of the step.",
        denominator=7,
    )


def _loss_case(label, logits, labels, hint, **options) -> Case:
    total, count = 0.0, 0
    for place in np.ndindex(labels.shape):
        if labels[place] != IGNORE:
            z = logits[place]
            total += max(z) + math.log(sum(math.exp(v - max(z)) for v in z)) - z[labels[place]]
            count += 1
    expected = total / options.get("denominator", count)
    return Case(label, (logits, labels), expected, hint, options)


@grader("masked-lm-corruption")
def masked_lm_corruption() -> Iterable[Case]:
    """``f(ids, selected, u, random_ids, mask_id, replacement)``: ``input_ids`` and ``labels``."""
    rng = np.random.default_rng(1)
    bert = (0.8, 0.1, 0.1)
    ids = rng.integers(5, 20, size=(2, 6))
    random_ids = rng.integers(20, 30, size=(2, 6))
    u = np.array([[0.1, 0.85, 0.95, 0.3, 0.85, 0.95], [0.79, 0.81, 0.89, 0.91, 0.0, 0.5]])
    chosen = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 1]], bool)
    everything, nothing = np.ones((2, 6), bool), np.zeros((2, 6), bool)
    yield _corruption_case(
        "masked, random and kept", ids, chosen, u, random_ids, bert,
        "A kept token is a target too: its label is the token itself, not -100.",
    )  # fmt: skip
    yield _corruption_case(
        "nothing selected", ids, nothing, u, random_ids, bert,
        "A small u at a position that was not selected means nothing.",
    )  # fmt: skip
    yield _corruption_case("everything selected", ids, everything, u, random_ids, bert)
    edges = np.array([[0.0, 0.5, 0.75, 0.9999, 0.4999, 0.7499]] * 2)
    yield _corruption_case(
        "u on the boundaries", ids, everything, edges, random_ids, (0.5, 0.25, 0.25),
        "u is below p with probability p only if u < p is strict.",
    )  # fmt: skip
    yield _corruption_case(
        "half [MASK], nearly half random", ids, everything, u, random_ids, (0.5, 0.45, 0.05),
        "All three are shares of the selected tokens, not of what [MASK] left over.",
    )  # fmt: skip
    yield _corruption_case(
        "the random token happens to be the original", ids, everything, u, ids.copy(), (0, 1, 0),
        "It is a target all the same.",
    )  # fmt: skip


def _corruption_case(label, ids, selected, u, random_ids, replacement, hint="") -> Case:
    mask_id = 4
    input_ids, labels = np.array(ids), np.full(ids.shape, IGNORE)
    for place in np.ndindex(ids.shape):
        if selected[place]:
            labels[place] = ids[place]
            if u[place] < replacement[0]:
                input_ids[place] = mask_id
            elif u[place] < replacement[0] + replacement[1]:
                input_ids[place] = random_ids[place]
    arguments = (ids, selected, u, random_ids, mask_id, replacement)
    return Case(label, arguments, (input_ids, labels), hint)


@grader("distinct-targets")
def distinct_targets() -> Iterable[Case]:
    """``f(candidates, draws)``: expected number of different positions, drawn with replacement."""
    for label, candidates, draws, hint in (
        ("one draw", 7, 1, "One draw hits exactly one position."),
        ("one candidate", 1, 5, "All draws hit the same position."),
        ("no draw", 9, 0, ""),
        ("two draws from two", 2, 2, "Two different ones in two of four cases: 1.5."),
        ("19 draws of 125, ELECTRA at length 128", 125, 19, "Above 19 or an integer? About 17.7."),
        ("far more draws than candidates", 10, 400, "It cannot exceed the candidates."),
    ):
        yield Case(label, (candidates, draws), _occupancy(candidates, draws), hint)


def _occupancy(candidates: int, draws: int) -> float:
    """By the chain whose state is the number of different positions so far."""
    chance = [1.0] + [0.0] * candidates
    for _ in range(draws):
        stay = [p * k / candidates for k, p in enumerate(chance)]
        move = [0.0] + [p * (1 - k / candidates) for k, p in enumerate(chance[:-1])]
        chance = [a + b for a, b in zip(stay, move, strict=True)]
    return sum(k * p for k, p in enumerate(chance))


@grader("kept-token-posterior")
def kept_token_posterior() -> Iterable[Case]:
    """``f(prior, seen, keep, random)``: distribution of the original at a selected position."""
    uniform, skewed = np.full(4, 0.25), np.array([0.5, 0.3, 0.15, 0.05])
    absent = np.array([0.6, 0.4, 0.0])
    for label, prior, seen, keep, random, hint in (
        ("uniform prior, BERT's shares", uniform, 2, 0.1, 0.1, "The random draw may hit the seen "
         "token as well: it adds to the same entry."),
        ("a frequent token", skewed, 0, 0.1, 0.1, ""),
        ("a rare token", skewed, 3, 0.1, 0.1, "A rare token is more likely to be an impostor. "
         "Does the prior enter twice, for the kept and for the random branch?"),
        ("no random branch", skewed, 1, 0.2, 0.0, "Then what is seen is certain."),
        ("never kept", skewed, 1, 0.0, 0.2, "Then what is seen says nothing: the prior remains."),
        ("a token that the language never uses", absent, 2, 0.1, 0.1, "It must be random."),
        ("shares that do not add up to 0.2", skewed, 2, 0.05, 0.3, "Only their ratio matters."),
    ):  # fmt: skip
        yield Case(label, (prior, seen, keep, random), _posterior(prior, seen, keep, random), hint)


def _posterior(prior, seen, keep, random):
    """List every way to arrive at the seen token, and add up."""
    ways = np.zeros(len(prior))
    for original, p in enumerate(prior):
        if original == seen:
            ways[original] += p * keep
        for drawn in range(len(prior)):
            if drawn == seen:
                ways[original] += p * random / len(prior)
    return ways / ways.sum()


@grader("context-information")
def context_information() -> Iterable[Case]:
    """``f(rate, flip)``: nats per token that the context gives about the masked ones."""
    for label, rate, flip, hint in (
        ("15 %, neighbours mostly equal", 0.15, 0.1, "Left and right end both count, each at its "
         "own distance; the probability of a distance k is (1 - rate) * rate**(k - 1)."),
        ("half of the text", 0.5, 0.1, "Per token, not per target: multiply by the rate."),
        ("90 %, far neighbours", 0.9, 0.2, "Sum far enough: distances are long at high rates."),
        ("neighbours mostly different", 0.3, 0.85, "1 - 2 * flip is negative; that is fine."),
        ("nearly a coin for each token", 0.4, 0.45, "The context says hardly anything."),
    ):  # fmt: skip
        yield Case(label, (rate, flip), _context(rate, flip), hint, tolerance=1e-7)


def _context(rate: float, flip: float) -> float:
    """By powers of the transition matrix, instead of the closed form of the solution."""
    step = np.array([[1 - flip, flip], [flip, 1 - flip]])
    far = 2 + int(math.log(1e-12) / math.log(rate))
    powers, chances = [step], [1 - rate]
    for _ in range(far):
        powers.append(powers[-1] @ step)
        chances.append(chances[-1] * rate)
    reach, chance = np.array(powers), np.array(chances)
    # joint probability of (left end, hidden token, right end) at distances a and b
    joint = 0.5 * np.einsum("alx,bxr->ablxr", reach, reach)
    ends = joint.sum(3, keepdims=True)
    nats = -np.where(joint > 0, joint * np.log(np.where(joint > 0, joint / ends, 1)), 0)
    entropy = np.einsum("a,b,ablxr->", chance, chance, nats)
    return rate * (math.log(2) - entropy)
