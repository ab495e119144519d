"""The floor of causal language modelling, in either direction."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

from lossbook._require import require
from lossbook.corpora.floors.base import (
    Floor,
    Texts,
    entropy_of,
    evidence,
    log_or_minus_infinity,
    token_probabilities,
)
from lossbook.corpora.hidden_markov import HiddenMarkovLanguage

DIRECTIONS = ("forward", "backward")


def causal_floor(
    language: HiddenMarkovLanguage,
    ids: Int[np.ndarray, "batch time"],
    direction: str = "forward",
    *,
    documents: Int[np.ndarray, "batch time"] | None = None,
    log_probs: bool = False,
) -> Floor:
    r"""The ideal predictor of every token from those before it (or behind it).

    Forward, :math:`q_t(v) = P(x_t = v \mid x_{<t}) = \sum_j \hat\alpha_t(j) E(j, v)` with the
    predicted state distribution :math:`\hat\alpha_t = \alpha_{t-1} A / \|\alpha_{t-1}\|`;
    backward, :math:`q_t(v) \propto \sum_j (\pi A^{t-1})_j\, \beta_t(j)\, E(j, v)`.
    Special tokens around the text are a frame that carries no information: they are no targets,
    and the first (last) token is predicted from the start of a document (nothing).

    Args:
        language: the language of the texts.
        ids: rows of one text each, with or without special tokens before and behind.
        direction: ``"forward"`` or ``"backward"``.
        documents: the number of the document that each token belongs to, where a row holds
            several, one after the other (forward only). The predictor then knows where each
            begins, and nothing that stands before says anything about it.
        log_probs: also return the distributions.

    Returns:
        One target for each token of the texts.

    Raises:
        ValueError: special tokens inside a text, or a text that the language cannot produce.
    """
    require(direction in DIRECTIONS, "direction", direction, f"one of {DIRECTIONS}")
    require(documents is None or direction == "forward", "documents", direction,
            "the direction forward")  # fmt: skip
    texts = Texts(language, ids)
    steps = (
        forward(language, texts, documents) if direction == "forward" else backward(language, texts)
    )
    shape = texts.ids.shape
    entropy, loss = np.zeros(shape), np.zeros(shape)
    kept = np.zeros((*shape, language.vocabulary.size)) if log_probs else None
    for t, weights, probability in steps:
        require(
            (probability > 0)[texts.valid[:, t]].all(),
            "ids",
            f"row {np.argmin((probability > 0) | ~texts.valid[:, t])}, token {t} of the text",
            "texts that the language can produce",
        )
        q = token_probabilities(language, weights)
        entropy[:, t] = entropy_of(q)
        loss[:, t] = -np.log(np.where(texts.valid[:, t], probability, 1.0))
        if kept is not None:
            kept[:, t] = log_or_minus_infinity(q)
    valid = texts.valid
    return Floor(entropy[valid], loss[valid], texts.inside, None if kept is None else kept[valid])


def forward(
    language: HiddenMarkovLanguage, texts: Texts, documents: np.ndarray | None = None
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Per token: its place, the predicted states [blocks, batch, states], P(token | past)."""
    table = evidence(language)
    first = np.repeat(language._initial[:, None], len(texts.ids), axis=1)
    begins = np.zeros(texts.ids.shape, dtype=bool)
    if documents is not None:
        begins[:, 1:] = np.diff(texts.align(documents), axis=1) != 0
    predicted = first
    for t in range(texts.ids.shape[1]):
        predicted = np.where(begins[:, t, None], first, predicted)
        alpha = predicted * table[:, texts.ids[:, t]]
        scale = alpha.sum((0, 2))
        yield t, predicted, scale
        predicted = (alpha / scale[:, None]) @ language._transition


def backward(
    language: HiddenMarkovLanguage, texts: Texts
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The same from behind: P(state | future), P(token | future)."""
    table = evidence(language)
    beta = np.ones((len(language.blocks), len(texts.ids), language._initial.shape[1]))
    marginals = [language._initial[:, None]]
    for _ in range(texts.ids.shape[1] - 1):
        marginals.append(marginals[-1] @ language._transition)
    for t in reversed(range(texts.ids.shape[1])):
        weights = marginals[t] * beta
        weights /= weights.sum((0, 2))[:, None]
        seen = table[:, texts.ids[:, t]]
        yield t, weights, (weights * seen).sum((0, 2))
        beta = (beta * seen) @ language._transition.transpose(0, 2, 1)
        beta /= beta.max((0, 2))[:, None]


def run_together(language: HiddenMarkovLanguage, rate: float) -> HiddenMarkovLanguage:
    r"""The language of an endless row of documents with nothing between them.

    After each token the document ends with probability :math:`h`, and a new one begins:
    :math:`A' = (1 - h)\,A + h\,\mathbf 1 \pi^\top`. Its causal floor is that of a reader who
    is not told where documents begin.

    Args:
        language: the language of the documents.
        rate: :math:`h`, one over the mean length of a document.
    """
    require(0 <= rate <= 1, "rate", rate, "a probability")
    mixed = (1 - rate) * language.transition + rate * language.initial
    name = f"{language.name}, run together"
    return HiddenMarkovLanguage(
        language.initial, mixed, language.emission, language.vocabulary, name=name
    )
