"""The causal floor of documents that share a row: with known and with unknown boundaries."""

import itertools

import numpy as np
import pytest

from lossbook.corpora import HiddenMarkovLanguage, Vocabulary, causal_floor, run_together

TINY = HiddenMarkovLanguage.tiny()


def dense(seed=0):
    """A random language of three tokens in which every text is possible."""
    rng = np.random.default_rng(seed)
    emission = np.pad(rng.dirichlet(np.ones(3), size=4), ((0, 0), (5, 0)))
    transition = rng.dirichlet(np.full(4, 0.5), size=4)
    return HiddenMarkovLanguage(
        rng.dirichlet(np.ones(4)), transition, emission, Vocabulary.from_words("abc")
    )


def probability(language, text):
    """Of one document, by a sum over all hidden paths written as matrix products."""
    state = language.initial * language.emission[:, text[0]]
    for token in text[1:]:
        state = (state @ language.transition) * language.emission[:, token]
    return state.sum()


def in_pieces(language, text, cuts):
    edges = [0, *cuts, len(text)]
    return np.prod([probability(language, text[a:b]) for a, b in itertools.pairwise(edges)])


@pytest.mark.parametrize("cuts", [(), (2,), (1, 2), (1, 2, 3, 4)])
def test_known_boundaries_start_the_predictor_anew(cuts):
    """The row's probability is the product of those of its documents, for all 243 texts."""
    language = dense()
    texts = np.array(list(itertools.product(range(5, 8), repeat=5)))
    documents = np.tile(np.isin(np.arange(5), cuts).cumsum(), (len(texts), 1))
    floor = causal_floor(language, texts, documents=documents)
    found = np.exp(-floor.loss.reshape(texts.shape).sum(1))
    wanted = [in_pieces(language, text, cuts) for text in texts]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_known_boundaries_behind_a_frame():
    """With [CLS] in front the numbers move with the tokens."""
    rows = TINY.sample(6, 3, np.random.default_rng(1))
    other = TINY.sample(6, 4, np.random.default_rng(2))
    frame = np.full((6, 1), TINY.vocabulary.cls_id)
    ids = np.concatenate([frame, rows, other], axis=1)
    documents = np.tile([7, 7, 7, 7, 9, 9, 9, 9], (6, 1))
    found = causal_floor(TINY, ids, documents=documents)
    apart = [causal_floor(TINY, part).loss.reshape(6, -1) for part in (rows, other)]
    np.testing.assert_allclose(found.loss.reshape(6, -1), np.hstack(apart), rtol=0, atol=1e-13)


def test_unknown_boundaries_are_a_mixture_over_all_of_them():
    """P(row) = sum over the cuts of h^k (1 - h)^(4 - k) times the product of the documents."""
    language, h = dense(1), 0.3
    stream = run_together(language, h)
    texts = np.array(list(itertools.product(range(5, 8), repeat=5)))
    found = np.exp(-causal_floor(stream, texts).loss.reshape(texts.shape).sum(1))
    wanted = np.zeros(len(texts))
    for number in range(5):
        for cuts in itertools.combinations(range(1, 5), number):
            weight = h**number * (1 - h) ** (4 - number)
            wanted += weight * np.array([in_pieces(language, text, cuts) for text in texts])
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert abs(found.sum() - 1) < 1e-12


def test_what_boundaries_are_worth_is_bounded_by_what_they_cost():
    """H(X) - H(X | B) = H(B) - H(B | X), between 0 and the entropy of the boundaries."""
    language, h, n = dense(2), 0.25, 5
    stream = run_together(language, h)
    texts = np.array(list(itertools.product(range(5, 8), repeat=n)))
    loss = causal_floor(stream, texts).loss.reshape(texts.shape).sum(1)
    unknown = (np.exp(-loss) * loss).sum()
    known = 0.0
    for number in range(n):
        for cuts in itertools.combinations(range(1, n), number):
            p = np.array([in_pieces(language, text, cuts) for text in texts])
            known -= h**number * (1 - h) ** (n - 1 - number) * (p * np.log(p)).sum()
    cost = -(n - 1) * (h * np.log(h) + (1 - h) * np.log(1 - h))
    assert 0 < unknown - known < cost


def test_the_ends_of_the_range():
    """h = 0 is the language itself; h = 1 makes every token a document."""
    ids = TINY.sample(8, 6, np.random.default_rng(0))
    same = causal_floor(run_together(TINY, 0), ids)
    np.testing.assert_allclose(same.loss, causal_floor(TINY, ids).loss, rtol=0, atol=1e-12)
    first = causal_floor(TINY, ids[:, :1], log_probs=True)
    starts = TINY.sample(4, 1, np.random.default_rng(3)).reshape(1, 4)
    single = causal_floor(run_together(TINY, 1), starts, log_probs=True)
    np.testing.assert_allclose(single.log_probs[3], first.log_probs[0], rtol=0, atol=1e-12)


def test_bad_requests_speak():
    ids = TINY.batch(2, 6)
    with pytest.raises(ValueError, match="documents: expected the direction forward"):
        causal_floor(TINY, ids, "backward", documents=np.zeros_like(ids))
    with pytest.raises(ValueError, match="rate: expected a probability"):
        run_together(TINY, 1.5)
