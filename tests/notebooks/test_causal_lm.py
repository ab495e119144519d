"""The chapter's NumPy against lossbook, torch and transformers, its museum and its exercises."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lossbook import checks, recorded
from lossbook.corpora import HiddenMarkovLanguage, Vocabulary, causal_floor, run_together
from lossbook.models import Decoder, TransformerConfig
from lossbook.objectives import CausalLM

CHAPTER = "causal-lm"
IGNORE = -100
LOG2 = math.log(2)


@cache
def language():
    return HiddenMarkovLanguage.default()


@cache
def tiny():
    return HiddenMarkovLanguage.tiny()


# --- the loss


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 7)),
    share=st.sampled_from([0.0, 0.4, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 999),
)
@settings(max_examples=50)
@example(shape=(0, 3, 2), share=1.0, scale=1.0, seed=0)
@example(shape=(3, 1, 2), share=1.0, scale=1.0, seed=0)
def test_loss_and_gradient(derivation, shape, share, scale, seed):
    """As defined = as arrays = lossbook = torch, from no target to all, also for huge logits."""
    page = derivation(CHAPTER)
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    labels = rng.integers(0, shape[2], size=shape[:2])
    labels[rng.random(shape[:2]) >= share] = IGNORE
    objective, batch = CausalLM(tiny().vocabulary), {"labels": torch.tensor(labels)}
    z = torch.tensor(logits, requires_grad=True)
    ours = objective.loss(z, batch)
    ours.backward()
    value = page.causal_loss(logits, labels)
    gradient = page.causal_loss_gradient(logits, labels)
    assert checks.difference(value, ours) <= 1e-13
    assert checks.difference(gradient, z.grad) <= 1e-13
    assert not gradient[:, -1:].any()
    if scale <= 1:  # the definition takes the logarithm of a probability, which may underflow
        assert checks.difference(value, page.causal_loss_by_definition(logits, labels)) <= 1e-13
    if (labels[:, 1:] != IGNORE).any():
        y = torch.tensor(logits, requires_grad=True)
        flat = batch["labels"][:, 1:].flatten()
        theirs = F.cross_entropy(y[:, :-1].flatten(0, 1), flat)
        theirs.backward()
        assert checks.difference(value, theirs) <= 1e-13
        assert checks.difference(gradient, y.grad) <= 1e-13


def test_gpt2_weights_fit_the_decoder(derivation):
    """The page's copy of the weights: every parameter has a place, and the logits are equal."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(1)
    config = GPT2Config(vocab_size=19, n_positions=8, n_embd=8, n_layer=1, n_head=2,
                        activation_function="gelu", initializer_range=0.5)  # fmt: skip
    gpt2 = GPT2LMHeadModel(config).double().eval()
    decoder = derivation(CHAPTER).decoder_from(gpt2)
    ids = torch.tensor(np.random.default_rng(0).integers(0, 19, (2, 8)))
    assert checks.difference(decoder(ids).logits, gpt2(ids).logits) <= 1e-13
    assert len(list(decoder.parameters())) == len(list(gpt2.parameters()))


# --- the chain rule


def test_the_opening_example_by_hand(derivation):
    """0.25 · 0.9 · 0.4752 forward, 0.10692 · 1 · 1 backward; 2.236 nats."""
    page = derivation(CHAPTER)
    text = tiny().vocabulary.encode("works . sing")[None]
    assert np.allclose(page.forward_factors(tiny(), text)[0], [0.25, 0.9, 0.4752], atol=1e-12)
    assert np.allclose(page.backward_factors(tiny(), text)[0], [1, 1, 0.10692], atol=1e-12)
    assert math.isclose(0.4 * 0.792 + 0.6 * 0.264, 0.4752)
    nats = [-math.log(p) for p in (0.25, 0.9, 0.4752)]
    assert [round(v, 3) for v in nats] == [1.386, 0.105, 0.744]
    assert round(sum(nats), 3) == 2.236 and round(sum(nats) / 3, 3) == 0.745
    stop = tiny().emission[:, tiny().sentence_end_id]
    topics = np.where(np.arange(14) < 7, 0, 1)
    first = tiny().initial * tiny().emission[:, tiny().vocabulary.id_of("works")]
    assert np.allclose(np.bincount(topics, first), [0.1, 0.15])
    after = (first @ tiny().transition) * stop
    sing = (after @ tiny().transition) * tiny().emission[:, tiny().vocabulary.id_of("sing")]
    assert np.allclose(np.bincount(topics, sing) / np.bincount(topics, after), [0.792, 0.264])


@given(length=st.integers(1, 20), seed=st.integers(0, 99), small=st.booleans())
@settings(max_examples=20)
def test_the_factors_are_the_floors(derivation, length, seed, small):
    page, source = derivation(CHAPTER), tiny() if small else language()
    texts = source.sample(3, length, np.random.default_rng(seed))
    forward, backward = page.forward_factors(source, texts), page.backward_factors(source, texts)
    for factors, direction in ((forward, "forward"), (backward, "backward")):
        expected = np.exp(-causal_floor(source, texts, direction).loss).reshape(texts.shape)
        np.testing.assert_allclose(factors, expected, rtol=1e-9)
    np.testing.assert_allclose(forward.prod(1), backward.prod(1), rtol=1e-9)


def test_impossible_texts_stop_at_their_first_error(derivation):
    """What the figure of possible texts rests on; no NaN behind the error."""
    ids = tiny().vocabulary.encode("works works . sing")[None]
    factors = derivation(CHAPTER).forward_factors(tiny(), ids)[0]
    assert factors[0] > 0 and factors[1:].tolist() == [0, 0, 0]


def test_free_running_learns_the_marginal():
    """The two-token example: on its own past the best answer is one half, at log 2."""
    p = np.linspace(0.01, 0.99, 99)  # answer "same as my first token", which the draw does not know
    free = -0.5 * np.log(p) - 0.5 * np.log(1 - p)
    assert math.isclose(p[free.argmin()], 0.5) and math.isclose(free.min(), math.log(2))


# --- units and tokenizers


def test_the_ideal_predictors_three_perplexities():
    """7.85 per piece, 8.72 per word, 1.51 per byte: one total over three counts."""
    texts = language().batch(200, 64, split="validation")
    inner, words = texts[:, 1:-1], language().vocabulary
    total = causal_floor(language(), texts).loss.sum()
    counts = [inner.size, words.word_starts(inner).sum()]
    counts.append(sum(len(words.decode(row).encode()) for row in inner))
    assert [round(math.exp(total / n), 2) for n in counts] == [7.85, 8.72, 1.51]


def test_retokenising_keeps_the_total():
    """Glue every pair of tokens of the tiny language: fewer tokens, the same probability."""
    texts = tiny().sample(50, 6, np.random.default_rng(0))
    loss = np.zeros(50)
    for t in (0, 2, 4):  # P(pair | past), from the probabilities of prefixes alone
        past = [by_paths(tiny(), row[:t]) if t else 1.0 for row in texts]
        loss -= np.log([by_paths(tiny(), row[: t + 2]) for row in texts]) - np.log(past)
    expected = causal_floor(tiny(), texts).loss.reshape(50, 6).sum(1)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def by_paths(source, text):
    state = source.initial * source.emission[:, text[0]]
    for token in text[1:]:
        state = (state @ source.transition) * source.emission[:, token]
    return state.sum()


@given(
    train=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=4),
    test=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=1, max_size=3),
)
def test_the_bigram_model_is_its_formula(derivation, train, test):
    """Witten and Bell's estimate, token by token with dictionaries."""
    page, size = derivation(CHAPTER), 5
    train, test = [np.array(x) for x in train], [np.array(x) for x in test]
    counts, unigram = {}, np.ones(size)
    for ids in train:
        for u, v in zip([0, *ids[:-1]], ids, strict=True):
            counts.setdefault(int(u), []).append(int(v))
            unigram[v] += 1
    unigram /= unigram.sum()
    nats = 0.0
    for ids in test:
        for u, v in zip([0, *ids[:-1]], ids, strict=True):
            seen = counts.get(int(u), [])
            kinds = len(set(seen))
            p = (seen.count(v) + kinds * unigram[v]) / (len(seen) + kinds) if seen else unigram[v]
            nats -= math.log(p)
    assert math.isclose(page.bigram_nats(train, test, size), nats, rel_tol=1e-6)


def test_the_bigram_model_is_a_distribution(derivation):
    page, train = derivation(CHAPTER), [np.array([1, 2, 1, 3, 3, 0])]
    for u in range(5):
        each = [page.bigram_nats(train, [np.array([u, v])], 5) for v in range(5)]
        first = page.bigram_nats(train, [np.array([u])], 5)
        assert math.isclose(np.exp(-(np.array(each) - first)).sum(), 1, rel_tol=1e-6)


@given(st.text(max_size=60))
def test_plain_text_survives_wordpiece_rules(derivation, text):
    """Idempotent, ASCII, single spaces: what a lower-casing tokenizer can give back."""
    page = derivation(CHAPTER)
    found = page.plain(text)
    assert page.plain(found) == found and found.isascii() and "  " not in found


# --- packing


def test_the_a_b_example():
    """0.087 with boundaries, 0.234 without, 0.147 between them, at most 0.377."""

    def h2(p):
        return -p * math.log(p) - (1 - p) * math.log(1 - p)

    h = 1 / 8
    assert round(h * math.log(2), 3) == 0.087 and round(h2(h / 2), 3) == 0.234
    assert round(h2(h / 2) - h * math.log(2), 3) == 0.147 and round(h2(h), 3) == 0.377
    emission = np.pad(np.eye(2), ((0, 0), (5, 0)))
    words = Vocabulary.from_words("ab")
    coins = HiddenMarkovLanguage(np.full(2, 0.5), np.eye(2), emission, words)
    ids = np.array([[5, 5, 6, 6, 6, 5]])
    floor = causal_floor(run_together(coins, h), ids)
    assert np.allclose(floor.entropy[1:], h2(h / 2), atol=1e-12)


def test_streams_have_documents_of_the_right_length(derivation):
    """Geometric lengths, fresh documents at the boundaries, and every row full."""
    page = derivation(CHAPTER)
    ids, numbers = page.stream(language(), 0.25, 200, 30, np.random.default_rng(0))
    ends = np.diff(numbers, axis=1)
    assert ids.shape == numbers.shape == (200, 30) and set(np.unique(ends)) == {0, 1}
    assert abs(ends.mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / ends.size)
    floor = causal_floor(language(), ids, documents=numbers)
    assert np.isfinite(floor.loss).all()
    unknown = causal_floor(run_together(language(), 0.25), ids).mean_loss
    assert 0 < unknown - floor.mean_loss < page.coin(0.25)


# --- the scores


def test_three_scores_choose_three_ways(derivation):
    """house by the sum, boathouse by the mean, log 6 of gain for the words of the sea."""
    page, words = derivation(CHAPTER), language().vocabulary

    def exact(context, candidate):
        ids = words.encode(f"{context} {candidate}")[None]
        known = len(words.encode(context))
        return -causal_floor(language(), ids).loss[known:]

    contexts = "the captain lives near the", "the child lives near the"
    found = {name: page.scores(*contexts, name, exact) for name in ("house", "boathouse", "port")}
    assert max(found, key=lambda name: found[name][0]) == "house"
    assert max(found, key=lambda name: found[name][1]) == "boathouse"
    gains = [found[name][2] for name in found]
    np.testing.assert_allclose(gains, [0, math.log(6), math.log(6)], atol=1e-9)
    assert round(math.log(6), 3) == 1.792 and round(found["boathouse"][0], 3) == -2.680
    assert found["boathouse"][0] < found["house"][1]  # in one piece the mean would choose house


# --- museum


def test_labels_reach_one_position_to_the_left(museum):
    """The check that passes on the right loss and fails on both shifts."""
    page = museum(CHAPTER)
    offsets = {}
    for loss in (page.causal_loss, page.missing_shift, page.double_shift):
        t, s = np.nonzero(page.reach_of_labels(loss))
        offsets[loss.__name__] = sorted({int(i) for i in s - t})
    assert offsets == {"causal_loss": [-1], "missing_shift": [0], "double_shift": [-2]}


@pytest.mark.parametrize(
    ("bug", "must_fail"),
    [
        ("missing_shift", "a model that copies its input"),
        ("double_shift", "a model that knows the next token but one"),
        ("double_shift", "2 texts without -100"),
    ],
)
def test_the_grader_catches_both_shifts(museum, bug, must_fail):
    report = checks.check("causal-lm-loss", getattr(museum(CHAPTER), bug))
    assert any(must_fail in name for name in report.failures)


def test_the_double_shift_crosses_rows(museum):
    """Flattened first: the last logits of a row meet a label of the next."""
    page = museum(CHAPTER)
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4)), rng.integers(0, 4, (2, 3))
    z, y = torch.tensor(logits), torch.tensor(labels)
    flat = z[:, :-1].reshape(-1, 4), y[:, 1:].reshape(-1)
    theirs = F.cross_entropy(flat[0][:-1], flat[1][1:])
    assert checks.difference(page.double_shift(logits, labels), theirs) <= 1e-14


def test_the_floor_of_the_next_but_one(derivation):
    """Against sums over the token in between, on the tiny language."""
    page, source = derivation(CHAPTER), tiny()
    texts = source.sample(40, 5, np.random.default_rng(1))
    found = page.nats_of_the_next_but_one(source, texts)
    for row, nats in zip(texts, found, strict=True):
        for t in range(1, 4):
            past = by_paths(source, row[:t])
            between = source.vocabulary.ordinary_ids
            p = sum(by_paths(source, [*row[:t], v, row[t + 1]]) for v in between) / past
            assert math.isclose(nats[t - 1], -math.log(p), abs_tol=1e-10)


def test_what_the_double_shift_costs(derivation):
    texts = language().batch(200, 64, split="validation")[:, 1:-1]
    two = derivation(CHAPTER).nats_of_the_next_but_one(language(), texts).mean()
    one = causal_floor(language(), texts).mean_loss
    assert (round(one, 2), round(two, 2)) == (2.06, 2.60)


def test_a_model_without_the_shift_falls_below_the_floor():
    """Forty steps on a small batch: copying is quick to learn, and no honest model can do it."""
    torch.manual_seed(0)
    model = Decoder(TransformerConfig(language().vocabulary.size, 32, 1, 2, 16), seed=0)
    objective = CausalLM(language().vocabulary)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for index in range(40):
        ids = language().batch(32, 16, index=index)
        batch = objective.batch(ids)
        loss = objective.loss(model(batch["input_ids"]).logits.roll(-1, 1), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < objective.floor(language(), ids, batch).mean_loss - 1


def test_ends_that_are_padding(museum):
    page, end = museum(CHAPTER), 3
    ids = np.array([[2, 7, 8, end, end], [2, 7, 8, 9, end]])
    lengths = np.array([4, 5])
    right, wrong = page.labels_by_mask(ids, lengths), page.labels_by_id(ids, lengths, end)
    assert page.every_token_once(right, ids, lengths)
    assert not page.every_token_once(wrong, ids, lengths)
    assert (wrong == end).sum() == 0 and (right == end).sum() == 2


def test_the_collator_of_transformers_wipes_out_the_ends(museum):
    """The bug as it stands in the library: pad = end, so no end is ever a target."""
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

    words = {"<end>": 0, "a": 1, "b": 2}
    raw = Tokenizer(models.WordLevel(words, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<end>", pad_token="<end>")
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = collator([{"input_ids": [1, 2, 0]}, {"input_ids": [2, 0]}])
    ids, lengths = batch["input_ids"].numpy(), np.array([3, 2])
    labels = museum(CHAPTER).labels_by_id(ids, lengths, 0)
    assert np.array_equal(batch["labels"].numpy(), labels)
    assert not museum(CHAPTER).every_token_once(batch["labels"].numpy(), ids, lengths)


@given(st.lists(st.lists(st.floats(0, 5), min_size=2, max_size=9), min_size=1, max_size=6))
def test_cutting_texts_moves_the_mean_of_perplexities_only(museum, texts):
    page = museum(CHAPTER)
    nats = [np.array(text) for text in texts]
    halves = [piece for text in nats for piece in np.array_split(text, 2)]
    assert math.isclose(page.perplexity(nats), page.perplexity(halves), rel_tol=1e-9)
    equal = len({len(text) for text in texts}) == 1
    if equal:  # Jensen: the mean of exponentials is at least the exponential of the mean
        assert page.mean_of_perplexities(nats) >= page.perplexity(nats) * (1 - 1e-9)


# --- exercises


SOLUTIONS = {
    "causal-lm-loss": "causal_lm_loss",
    "bits-per-byte": "bits_per_byte",
    "pack-documents": "pack_documents",
    "document-mask": "document_mask",
    "entropies-both-ways": "entropies",
}


@pytest.mark.parametrize(("exercise", "name"), SOLUTIONS.items())
def test_the_printed_solutions_pass(solutions, exercise, name):
    assert checks.check(exercise, getattr(solutions(CHAPTER), name)).passed


def loss(logits, labels, denominator=None, *, shift=1, ignored=None, stable=True, flat=False):
    if flat:
        logits, labels = logits.reshape(1, -1, logits.shape[-1]), labels.reshape(1, -1)
    z, y = logits[:, : logits.shape[1] - shift], labels[:, shift:]
    asked = y != IGNORE if ignored is None else ~ignored(y)
    z, y = z[asked], y[asked]
    z = z - (z.max(-1, keepdims=True, initial=-np.inf) if stable else 0)
    nats = np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y]
    return nats.sum() / (denominator or max(len(y), 1))


def row_means(logits, labels, denominator=None):
    rows = [loss(z[None], y[None]) for z, y in zip(logits, labels, strict=True)]
    return np.mean(rows)


def bits(nats, texts, *, unit=LOG2, size=lambda text: len(text.encode())):
    return sum(float(np.sum(x)) for x in nats) / unit / sum(map(size, texts))


def packing(documents, length, separator, pad, *, last=True, rest=True, extra=False):
    stream = [t for ids in documents for t in [*ids.tolist(), separator]]
    stream = stream if last else stream[:-1]
    if rest:
        stream += [pad] * ((length - len(stream) % length) if extra else -len(stream) % length)
    else:
        stream = stream[: len(stream) // length * length]
    return np.array(stream, dtype=int).reshape(-1, length)


def one_document_a_row(documents, length, separator, pad):
    rows = np.full((len(documents), length), pad)
    for row, ids in zip(rows, documents, strict=True):
        row[: len(ids) + 1] = [*ids, separator][:length]
    return rows


def mask(ids, separator, *, after=False, strict=False, causal=True):
    closed = ids == separator
    number = closed.cumsum(1) - (0 if after else closed)
    same = number[:, :, None] == number[:, None, :]
    return same & np.tri(ids.shape[1], k=-int(strict), dtype=bool) if causal else same


def entropies(joint, *, markov=False, swapped=False, bits=False, nan=False):
    def H(*kept):
        p = joint.sum(axis=tuple({0, 1, 2} - set(kept)))
        with np.errstate(all="ignore"):
            terms = p * np.log(p if nan else np.where(p > 0, p, 1))
        return -np.sum(terms) / (math.log(2) if bits else 1)

    forward = [H(0), H(0, 1) - H(0), H(1, 2) - H(1) if markov else H(0, 1, 2) - H(0, 1)]
    backward = [H(0, 1, 2) - H(1, 2), H(1, 2) - H(2), H(2)]
    return np.array(forward), np.array(backward[::-1] if swapped else backward)


MISTAKES = [
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d, shift=0), "a model that copies"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d, shift=2), "next token but one"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d, flat=True), "2 texts without -100"),
    ("causal-lm-loss", row_means, "2 texts with 3 and 1 targets"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d, ignored=lambda y: y <= 0), "token 0"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d, stable=False), "logits times 1000"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y), "one of two micro-batches"),
    ("causal-lm-loss", lambda z, y, d=None: loss(z, y, d) if y.shape[1] > 1 else math.nan,
     "a text of one position"),
    ("bits-per-byte", lambda n, t: bits(n, t, unit=1), "one bit for each"),
    ("bits-per-byte", lambda n, t: bits(n, t, size=len), "letters of two, three"),
    ("bits-per-byte", lambda n, t: np.mean([bits([x], [y]) for x, y in zip(n, t, strict=True)]),
     "a long and a short text"),
    ("bits-per-byte", lambda n, t: sum(map(np.sum, n)) / math.log(2) / sum(map(len, n)),
     "one token for three letters"),
    ("bits-per-byte", lambda n, t: bits([np.mean(x) for x in n], t), "texts of 1 to 5 tokens"),
    ("pack-documents", lambda *a: packing(*a, rest=False), "the rest of the last row"),
    ("pack-documents", lambda *a: packing(*a, last=False), "rows of one token"),
    ("pack-documents", lambda *a: packing(*a, extra=True), "an exact fit"),
    ("pack-documents", one_document_a_row, "two documents, rows of four"),
    ("pack-documents", lambda d, *a: packing([x for x in d if len(x)], *a), "an empty document"),
    ("document-mask", lambda *a: mask(*a, after=True), "two documents"),
    ("document-mask", lambda *a: mask(*a, strict=True), "one document"),
    ("document-mask", lambda *a: mask(*a, causal=False), "one document"),
    ("entropies-both-ways", lambda j: entropies(j, markov=True), "decides about the third"),
    ("entropies-both-ways", lambda j: entropies(j, swapped=True), "three copies of one coin"),
    ("entropies-both-ways", lambda j: entropies(j, bits=True), "independent tokens"),
    ("entropies-both-ways", lambda j: entropies(j, nan=True), "a text that is certain"),
]  # fmt: skip


@pytest.mark.parametrize(("exercise", "mutant", "case"), MISTAKES)
def test_the_exercises_catch_mistakes(exercise, mutant, case):
    """Each mistake fails at the case that was made for it, and that case has a hint."""
    report = checks.check(exercise, mutant)
    (line,) = [i for i, text in enumerate(report.lines) if text.startswith("  ✗") and case in text]
    assert report.lines[line + 1].startswith("      ")


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [
        ("causal-lm-loss", loss),
        ("bits-per-byte", bits),
        ("pack-documents", packing),
        ("document-mask", mask),
        ("entropies-both-ways", entropies),
    ],
)
def test_the_exercises_accept_right_answers(exercise, answer):
    """The mutants differ from a right answer by their one mistake only."""
    assert checks.check(exercise, answer).passed


def test_a_memory_of_one_token_has_no_arrow():
    """H(1) + H(2|1) + H(3|2) = H(3) + H(2|3) + H(1|2), for any table."""
    for seed in range(20):
        joint = np.random.default_rng(seed).dirichlet(np.full(27, 0.3)).reshape(3, 3, 3)

        def conditional(t, u, joint=joint):
            pair = joint.sum(3 - t - u)
            pair = pair if t < u else pair.T  # [t, u]
            return -np.sum(pair * np.log(pair / pair.sum(0)))

        def alone(t, joint=joint):
            p = joint.sum(axis=tuple({0, 1, 2} - {t}))
            return -np.sum(p * np.log(p))

        forward = alone(0) + conditional(1, 0) + conditional(2, 1)
        backward = alone(2) + conditional(1, 2) + conditional(0, 1)
        assert math.isclose(forward, backward)


def test_the_recorded_run():
    """It says where it comes from and falls to its floor from above."""
    record = recorded.load("causal-lm")
    assert record["command"].startswith("lossbook pretrain") and record["device"]
    history = record["result"]
    rows = history["evaluations"]
    assert [row["step"] for row in rows] == list(range(0, 1501, 100))
    assert all(row["loss"] > row["floor"] == history["floor"] for row in rows)
    assert round(rows[-1]["excess"], 2) == 0.02
    ids = np.concatenate([language().batch(64, 64, index=i, split="validation") for i in range(8)])
    floor = causal_floor(language(), ids)
    assert floor.loss.size == history["targets"]
    assert math.isclose(floor.mean_loss, history["floor"], abs_tol=1e-9)
