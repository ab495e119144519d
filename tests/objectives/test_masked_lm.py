"""The masked-LM objective: its exact distribution, its invariants, its loss, its errors.

Statistical checks run at a fixed seed. The right code must pass at p > 0.001; every planted
mistake must fail the same check at p < 1e-6.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lossbook.corpora import HiddenMarkovLanguage, Vocabulary
from lossbook.objectives import MaskedLM
from lossbook.objectives.masked_lm import bernoulli, subsets

PASSES, CAUGHT = 1e-3, 1e-6
VOCABULARY = Vocabulary.from_words(f"w{i}" for i in range(20))
LAWS = ("bernoulli", "count", "rounding")


def texts(batch, time, vocabulary=VOCABULARY, seed=0):
    """Rows [CLS] ... [SEP] of random words."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(vocabulary.ordinary_ids, (batch, time))
    ids[:, 0], ids[:, -1] = vocabulary.cls_id, vocabulary.sep_id
    return ids


def chi_square(observed, probabilities):
    """p-value of observed counts; cells that cannot occur must be empty."""
    observed, expected = np.asarray(observed), np.asarray(probabilities) * np.sum(observed)
    if observed[expected == 0].any():
        return 0.0
    possible = expected > 0
    return stats.chisquare(observed[possible], expected[possible]).pvalue


# --- What happens to a selected token -----------------------------------------------------------


class KeepDrawnFirst(MaskedLM):
    """10 % kept, then 10 % of the others random, then the rest masked: 81/9/10."""

    def replace(self, tokens, rng):
        keep, random = rng.random(tokens.size) < 0.1, rng.random(tokens.size) < 0.1
        drawn = rng.choice(self.random_ids, tokens.size)
        return np.where(keep, tokens, np.where(random, drawn, self.vocabulary.mask_id))


class TenthOfTheRest(MaskedLM):
    """80 % masked, then 10 % (instead of a half) of the rest random: 80/2/18."""

    def replace(self, tokens, rng):
        mask, random = rng.random(tokens.size) < 0.8, rng.random(tokens.size) < 0.1
        drawn = rng.choice(self.random_ids, tokens.size)
        return np.where(mask, self.vocabulary.mask_id, np.where(random, drawn, tokens))


class NeverTheOriginal(MaskedLM):
    """A random token that avoids the original one: 80/10/10 of visible changes."""

    def replace(self, tokens, rng):
        seen = super().replace(tokens, rng)
        hit = (seen == tokens) & (rng.random(tokens.size) < 0.1 / 20 / (0.1 + 0.1 / 20))
        others = np.where(tokens == self.random_ids[0], self.random_ids[1], self.random_ids[0])
        return np.where(hit, others, seen)


def visible_outcomes(objective, vocabulary=VOCABULARY):
    """p-value of the counts (seen as [MASK], unchanged, another token)."""
    ids = texts(3000, 512, vocabulary)
    batch = objective.corrupt(ids, objective.generator(0, 0))
    chosen = batch["labels"] != -100
    seen, original = batch["input_ids"][chosen], ids[chosen]
    masked, same = np.sum(seen == vocabulary.mask_id), np.sum(seen == original)
    mask, random, keep = objective.replacement
    each = random / len(objective.random_ids)  # the draw may hit the original, or [MASK] itself
    mask, keep = mask + each * (vocabulary.mask_id in objective.random_ids), keep + each
    return chi_square([masked, same, seen.size - masked - same], [mask, keep, 1 - mask - keep])


@pytest.mark.parametrize("selection", LAWS)
@pytest.mark.parametrize("random_tokens", ["ordinary", "all"])
def test_a_selected_token_is_masked_randomised_or_kept_80_10_10(selection, random_tokens):
    objective = MaskedLM(VOCABULARY, selection=selection, random_tokens=random_tokens, seed=1)
    assert visible_outcomes(objective) > PASSES


def test_other_replacement_probabilities_are_met():
    assert visible_outcomes(MaskedLM(VOCABULARY, replacement=(0.5, 0.2, 0.3), seed=2)) > PASSES


@pytest.mark.parametrize("mutant", [KeepDrawnFirst, TenthOfTheRest, NeverTheOriginal])
def test_the_check_of_80_10_10_catches_its_well_known_mistakes(mutant):
    assert visible_outcomes(mutant(VOCABULARY, seed=1)) < CAUGHT


def random_token_law(objective):
    """p-value of the random tokens against the uniform law on their set, given the original."""
    ids = texts(400, 512)
    batch = objective.corrupt(ids, objective.generator(0, 0))
    chosen = batch["labels"] != -100
    seen, original = batch["input_ids"][chosen], ids[chosen]
    counts = np.zeros((VOCABULARY.size, VOCABULARY.size))
    np.add.at(counts, (original, seen), 1)
    law = np.isin(np.arange(VOCABULARY.size), objective.random_ids) / len(objective.random_ids)
    share = counts.sum(1, keepdims=True) / counts.sum()
    return chi_square(counts.ravel(), (share * law).ravel())


class WholeVocabulary(MaskedLM):
    """Draws specials although random_tokens="ordinary" was asked for."""

    def replace(self, tokens, rng):
        return rng.integers(self.vocabulary.size, size=tokens.size)


class MissesTheLast(MaskedLM):
    """An exclusive bound where an inclusive one was meant."""

    def replace(self, tokens, rng):
        return self.random_ids[rng.integers(len(self.random_ids) - 1, size=tokens.size)]


@pytest.mark.parametrize("random_tokens", ["ordinary", "all"])
def test_random_tokens_are_uniform_whatever_the_original_was(random_tokens):
    objective = MaskedLM(
        VOCABULARY, rate=1.0, replacement=(0, 1, 0), random_tokens=random_tokens, seed=3
    )
    assert random_token_law(objective) > PASSES


@pytest.mark.parametrize("mutant", [WholeVocabulary, MissesTheLast])
def test_the_check_of_random_tokens_can_fail(mutant):
    assert random_token_law(mutant(VOCABULARY, rate=1.0, replacement=(0, 1, 0))) < CAUGHT


# --- Which tokens are selected ------------------------------------------------------------------


def subset_law(selection, rate, length, candidates):
    """Exact probability of every subset (a bit mask) of ``candidates`` positions."""
    sizes = np.zeros(candidates + 1)
    if selection == "bernoulli":
        sizes[:] = stats.binom.pmf(np.arange(candidates + 1), candidates, rate)
    elif selection == "count":
        sizes[min(candidates, max(1, round(rate * length)))] = 1
    else:
        whole, rest = divmod(rate * length, 1)
        np.add.at(sizes, np.minimum(candidates, [int(whole), int(whole) + 1]), [1 - rest, rest])
    law = np.zeros(2**candidates)
    for size, probability in enumerate(sizes):
        members = [sum(1 << i for i in c) for c in combinations(range(candidates), size)]
        law[members] = probability / len(members)
    return law


def selected_subsets(objective, length=7):
    """p-value of the selected subsets of the words in short rows, over their exact law."""
    ids = texts(60_000, length)
    chosen = objective.corrupt(ids, objective.generator(0, 0))["labels"][:, 1:-1] != -100
    observed = np.bincount(chosen @ (1 << np.arange(length - 2)), minlength=2 ** (length - 2))
    return chi_square(observed, subset_law(objective.selection, objective.rate, length, length - 2))


@pytest.mark.parametrize("selection", LAWS)
@pytest.mark.parametrize("rate", [0.15, 0.3, 0.5])
def test_every_subset_has_its_exact_probability(selection, rate):
    assert selected_subsets(MaskedLM(VOCABULARY, selection=selection, rate=rate, seed=4)) > PASSES


class WithReplacement(MaskedLM):
    """Positions drawn with replacement (ELECTRA): fewer distinct ones."""

    def select(self, ids, rng):
        numbers = self.target_numbers((ids != 0).sum(1), rng)
        rows = np.repeat(np.arange(len(ids)), numbers)
        return np.unique(rows * ids.shape[1] + rng.integers(1, ids.shape[1] - 1, rows.size))


class FirstOnes(MaskedLM):
    """The right number, always from the left."""

    def select(self, ids, rng):
        numbers = self.target_numbers((ids != 0).sum(1), rng)
        place = np.arange(ids.shape[1])
        return np.flatnonzero((place >= 1) & (place < 1 + numbers[:, None]))


class HalfUp(MaskedLM):
    """Rounds 3.5 to 4 and 2.5 to 3."""

    def target_numbers(self, lengths, rng):
        return np.floor(self.rate * lengths + 0.5).astype(int)


class WordsOnly(MaskedLM):
    """Counts the words where BERT counts the special tokens too."""

    def target_numbers(self, lengths, rng):
        return super().target_numbers(lengths - 2, rng)


@pytest.mark.parametrize(
    "mutant, selection, rate, length",
    [
        (WithReplacement, "count", 0.3, 7),
        (WithReplacement, "rounding", 0.3, 7),
        (FirstOnes, "count", 0.3, 7),
        (HalfUp, "count", 0.5, 9),
        (WordsOnly, "count", 0.5, 7),
        (WordsOnly, "rounding", 0.3, 7),
    ],
)
def test_the_check_of_the_subsets_can_fail(mutant, selection, rate, length):
    objective = mutant(VOCABULARY, selection=selection, rate=rate, seed=4)
    assert selected_subsets(objective, length) < CAUGHT


def position_law(objective, time=130):
    """p-value of how often each position is selected."""
    ids = texts(4000, time)
    chosen = objective.corrupt(ids, objective.generator(0, 0))["labels"][:, 1:-1] != -100
    return chi_square(chosen.sum(0), np.full(time - 2, 1 / (time - 2)))


@pytest.mark.parametrize("selection", LAWS)
def test_no_position_is_preferred(selection):
    assert position_law(MaskedLM(VOCABULARY, selection=selection, seed=5)) > PASSES
    assert position_law(FirstOnes(VOCABULARY, selection=selection, seed=5)) < CAUGHT


def test_row_counts_of_the_bernoulli_law_are_binomial():
    batch = MaskedLM(VOCABULARY, seed=6).corrupt(texts(20_000, 66), np.random.default_rng(6))
    counts = np.bincount((batch["labels"] != -100).sum(1), minlength=65)
    law = stats.binom.pmf(np.arange(65), 64, 0.15)
    middle = slice(2, 20)  # the tails are too rare for chi-square: one cell for both
    observed, expected = counts[middle], law[middle]
    tails = [counts.sum() - observed.sum(), 1 - expected.sum()]
    assert chi_square([*observed, tails[0]], [*expected, tails[1]]) > PASSES


def rounded_bernoulli(shape, rate, rng):
    """16 digits of the rate and no more."""
    return rng.integers(2**16, size=shape, dtype=np.uint16) < round(rate * 2**16)


def test_the_rate_is_exact_beyond_its_first_16_binary_digits():
    rate, draws = 1.5 / 2**16, 2**25
    for sample, passes in ((bernoulli, True), (rounded_bernoulli, False)):
        hits = int(sample((draws,), rate, np.random.default_rng(7)).sum())
        p = stats.binomtest(hits, draws, rate).pvalue
        assert p > PASSES if passes else p < CAUGHT


def test_bernoulli_at_the_ends_is_certain():
    rng = np.random.default_rng(8)
    assert not bernoulli((300_000,), 0.0, rng).any()
    assert bernoulli((300_000,), 1.0, rng).all()
    assert bernoulli((300_000,), 1 - 2**-53, rng).all()


def test_the_count_law_gives_the_numbers_of_bert():
    lengths = np.arange(1, 700)
    for rate in (0.0, 0.1, 0.15, 0.25, 0.5, 1.0):
        objective = MaskedLM(VOCABULARY, selection="count", rate=rate)
        numbers = objective.target_numbers(lengths, np.random.default_rng(0))
        assert numbers.tolist() == [max(1, int(round(n * rate))) for n in lengths.tolist()]  # noqa: RUF046
    count = MaskedLM(VOCABULARY, selection="count").target_numbers
    assert count(np.array([128, 512]), np.random.default_rng(0)).tolist() == [19, 77]
    capped = MaskedLM(VOCABULARY, selection="count", max_predictions=20)
    counts = (capped.corrupt(texts(4, 512), capped.generator(0, 0))["labels"] != -100).sum(1)
    assert counts.tolist() == [20] * 4


def test_a_row_of_one_word():
    ids = texts(4000, 3)
    chosen = {
        law: (MaskedLM(VOCABULARY, selection=law).batch(ids)["labels"] != -100).numpy()
        for law in LAWS
    }
    assert chosen["count"][:, 1].all()  # round(0.45) = 0, but at least one
    assert stats.binomtest(int(chosen["rounding"].sum()), 4000, 0.45).pvalue > PASSES
    assert stats.binomtest(int(chosen["bernoulli"].sum()), 4000, 0.15).pvalue > PASSES


@settings(deadline=None, max_examples=100)
@given(data=st.data(), batch=st.integers(0, 5), time=st.integers(0, 9))
def test_subsets_have_the_wanted_sizes_and_hold_candidates_only(data, batch, time):
    flags = st.lists(st.booleans(), min_size=batch * time, max_size=batch * time)
    candidates = np.array(data.draw(flags), bool).reshape(batch, time)
    sizes = np.array(data.draw(st.lists(st.integers(0, 12), min_size=batch, max_size=batch)), int)
    chosen = subsets(candidates, sizes, np.random.default_rng(0))
    assert not (chosen & ~candidates).any()
    assert chosen.sum(1).tolist() == np.minimum(sizes, candidates.sum(1)).tolist()


class FewNumbers(np.random.Generator):
    """Draws 16 different numbers only, so that ties are common."""

    def integers(self, high, **options):
        return super().integers(16, **options)


def test_ties_between_the_drawn_numbers_prefer_no_subset():
    rng = FewNumbers(np.random.PCG64(9))
    chosen = subsets(np.ones((60_000, 5), bool), np.full(60_000, 2), rng)
    observed = np.bincount(chosen @ (1 << np.arange(5)), minlength=32)
    assert chi_square(observed, subset_law("count", 0.4, 5, 5)) > PASSES
    keys = rng.integers(16, size=(60_000, 5))  # breaking ties by position instead
    first = (np.argsort(keys, axis=1, kind="stable")[:, :2, None] == np.arange(5)).any(1)
    observed = np.bincount(first @ (1 << np.arange(5)), minlength=32)
    assert chi_square(observed, subset_law("count", 0.4, 5, 5)) < CAUGHT


# --- What holds for every batch -----------------------------------------------------------------


@st.composite
def problems(draw):
    """Number of words, ids, options."""
    words, batch, time = draw(st.integers(1, 7)), draw(st.integers(0, 5)), draw(st.integers(0, 9))
    values = draw(st.lists(st.integers(0, words + 4), min_size=batch * time, max_size=batch * time))
    dtype = draw(st.sampled_from([np.int64, np.int32, np.int16]))
    mask = draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    swap = draw(st.sampled_from([0.0, 0.5, 1.0])) * (1 - mask)
    options = {
        "rate": draw(st.sampled_from([0.0, 1e-9, 0.15, 0.5, 1.0]) | st.floats(0, 1)),
        "selection": draw(st.sampled_from(LAWS)),
        "replacement": (mask, swap, 1 - mask - swap),
        "random_tokens": draw(st.sampled_from(["ordinary", "all"])),
        "seed": draw(st.integers(0, 2**32)),
    }
    return words, np.array(values, dtype).reshape(batch, time), options


def broken_promises(objective, ids):
    """Names of the promises that a corrupted batch breaks."""
    before, vocabulary = ids.copy(), objective.vocabulary
    batch = objective.corrupt(ids, objective.generator(1, 2))
    again = objective.corrupt(ids, objective.generator(1, 2))
    seen, labels, mask = (batch[key] for key in ("input_ids", "labels", "attention_mask"))
    chosen, special = labels != -100, np.isin(ids, vocabulary.special_ids)
    promises = {
        "ids untouched": np.array_equal(ids, before) and not np.shares_memory(seen, ids),
        "shapes": {array.shape for array in batch.values()} == {ids.shape},
        "int64": {array.dtype for array in batch.values()} == {np.dtype(np.int64)},
        "changed at targets only": (seen == ids)[~chosen].all(),
        "labels rebuild the original": np.array_equal(np.where(chosen, labels, seen), ids),
        "special tokens survive": not (chosen & special).any(),
        "padding is masked out": np.array_equal(mask, ids != vocabulary.pad_id),
        "tokens of the vocabulary": ((seen >= 0) & (seen < vocabulary.size)).all(),
        "same generator, same batch": all(np.array_equal(batch[k], again[k]) for k in batch),
        "rate 0 selects nothing": objective.rate > 0
        or objective.selection == "count"
        or not chosen.any(),
        "rate 1 selects every word": objective.rate < 1 or np.array_equal(chosen, ~special),
        "random tokens are ordinary": objective.random_tokens == "all"
        or not np.isin(seen[chosen & (seen != vocabulary.mask_id)], vocabulary.special_ids).any(),
    }
    return [name for name, kept in promises.items() if not kept]


@settings(deadline=None, max_examples=200)
@given(problems())
def test_promises_of_every_batch(problem):
    words, ids, options = problem
    vocabulary = Vocabulary.from_words(f"w{i}" for i in range(words))
    assert broken_promises(MaskedLM(vocabulary, **options), ids) == []


class Unprotected(MaskedLM):
    """Special tokens can be selected."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self._protected[:] = False


class InPlace(MaskedLM):
    """Writes into the caller's ids."""

    def corrupt(self, ids, rng):
        batch = super().corrupt(ids, rng)
        ids[:] = batch["input_ids"]
        return batch


class LabelsOfTheInput(MaskedLM):
    """Takes the labels after the replacement."""

    def corrupt(self, ids, rng):
        batch = super().corrupt(ids, rng)
        batch["labels"] = np.where(batch["labels"] == -100, -100, batch["input_ids"])
        return batch


@pytest.mark.parametrize(
    "mutant, promise",
    [
        (Unprotected, "special tokens survive"),
        (InPlace, "ids untouched"),
        (LabelsOfTheInput, "labels rebuild the original"),
        (WholeVocabulary, "random tokens are ordinary"),
    ],
)
def test_the_promises_can_be_broken(mutant, promise):
    assert promise in broken_promises(mutant(VOCABULARY, rate=0.5), texts(20, 20))


@pytest.mark.parametrize("selection", LAWS)
def test_rows_of_special_tokens_and_padding_have_no_target(selection):
    ids = np.array([[2, 3, 0, 0], [0, 0, 0, 0], [2, 1, 4, 3]])
    objective = MaskedLM(VOCABULARY, rate=1.0, selection=selection)
    batch = objective.batch(ids)
    assert torch.equal(batch["input_ids"], torch.from_numpy(ids))
    assert objective.count(batch) == 0


# --- The loss -----------------------------------------------------------------------------------


def scored(objective, ids, seed=0):
    batch = objective.batch(ids)
    shape = (*ids.shape, objective.vocabulary.size)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=shape) * 3)
    return logits.requires_grad_(), batch


def test_the_denominator_counts_the_masked_tokens_of_the_whole_batch():
    """Written out token by token; a mean per sequence or over B*T is something else."""
    ids = texts(5, 12)
    ids[3, 4:] = VOCABULARY.pad_id  # rows of unequal numbers of targets
    objective = MaskedLM(VOCABULARY, rate=0.4, seed=1)
    logits, batch = scored(objective, ids)
    losses, rows = [], []
    for b in range(5):
        row = []
        for t in range(12):
            if (label := int(batch["labels"][b, t])) != -100:
                z = logits[b, t].tolist()
                row.append(float(np.log(np.sum(np.exp(z)))) - z[label])
        losses += row
        rows.append(np.mean(row))
    loss = objective.loss(logits, batch).item()
    assert loss == pytest.approx(np.mean(losses), abs=1e-12)
    assert abs(loss - np.mean(rows)) > 1e-3 and abs(loss - np.sum(losses) / 60) > 1e-3
    assert objective.count(batch) == len(losses)
    assert objective.loss(logits, batch, reduction="sum").item() == pytest.approx(sum(losses))
    assert objective.loss(logits, batch, reduction="none").shape == (5, 12)


def test_micro_batches_with_the_common_denominator_add_up():
    objective = MaskedLM(VOCABULARY, rate=0.3, seed=2)
    logits, batch = scored(objective, texts(6, 10))
    (whole,) = torch.autograd.grad(objective.loss(logits, batch), logits)
    total = torch.zeros_like(logits)
    for part in (slice(0, 1), slice(1, 2), slice(2, 6)):
        piece = {key: value[part] for key, value in batch.items()}
        loss = objective.loss(logits[part], piece, denominator=objective.count(batch))
        total += torch.autograd.grad(loss, logits)[0]
    torch.testing.assert_close(total, whole, rtol=0, atol=1e-15)


def test_logits_at_the_targets_alone_give_the_same_loss_and_gradient():
    objective = MaskedLM(VOCABULARY, rate=0.3, seed=3)
    logits, batch = scored(objective, texts(6, 10))
    compact = logits[batch["labels"] != -100]
    dense, few = objective.loss(logits, batch), objective.loss(compact, batch)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (dense, few)]
    assert abs(dense - few).item() <= 1e-15
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-16)


def test_a_batch_without_a_target_costs_nothing():
    objective = MaskedLM(VOCABULARY, rate=0.0)
    logits, batch = scored(objective, texts(2, 4))
    loss = objective.loss(logits, batch)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0 and not gradient.any()
    assert objective.loss(logits[batch["labels"] != -100], batch).item() == 0


def test_the_loss_is_the_one_that_transformers_computes():
    """float64, random weights: value to 1e-12 and the gradient of every parameter."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY.size, hidden_size=32, num_hidden_layers=2,
                        num_attention_heads=2, intermediate_size=64)  # fmt: skip
    model = BertForMaskedLM(config).double().eval()
    objective = MaskedLM(VOCABULARY, rate=0.3, seed=4)
    lengths = (16, 9, 3, 12)
    batch = objective([row[:n] for row, n in zip(texts(4, 16), lengths, strict=True)])
    theirs = model(**batch).loss
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    ours = objective.loss(logits, batch)
    assert abs(ours - theirs).item() <= 1e-12
    weights = list(model.parameters())
    pairs = zip(*(torch.autograd.grad(x, weights) for x in (ours, theirs)), strict=True)
    assert max((a - b).abs().max().item() for a, b in pairs) <= 1e-12
    wrong = objective.loss(logits, batch, denominator=batch["labels"].numel())
    assert abs(wrong - theirs).item() > 0.1


# --- The floor ----------------------------------------------------------------------------------


LANGUAGE = HiddenMarkovLanguage.default()


def unusual(**options):
    """Every probability far from the defaults and from the others."""
    options = {"rate": 0.4, "replacement": (0.3, 0.6, 0.1)} | options
    return MaskedLM(LANGUAGE.vocabulary, **options)


def floor_of(objective, assumed=None, batch_size=100):
    """The floor of a corrupted batch, as the same or another objective sees it."""
    ids = LANGUAGE.batch(batch_size, 26)
    return (assumed or objective).floor(LANGUAGE, ids, objective.batch(ids))


def z_score(differences):
    return differences.mean() / (differences.std() / np.sqrt(len(differences)))


@pytest.mark.parametrize("selection", LAWS)
def test_the_ideal_predictor_is_calibrated(selection):
    """Its surprise is its entropy on average."""
    floor = floor_of(unusual(selection=selection), batch_size=50)
    assert abs(z_score(floor.loss - floor.entropy)) < 4


@pytest.mark.parametrize("wrong", [{"replacement": (0.3, 0.1, 0.6)}, {"rate": 0.02}])
def test_whoever_assumes_another_corruption_predicts_worse(wrong):
    """So every parameter arrives, and at its place: the difference is a KL divergence."""
    right, worse = (floor_of(unusual(), unusual(**law), 800) for law in ({}, wrong))
    assert z_score(worse.loss - right.loss) > 6


def test_the_floor_knows_what_random_tokens_are_drawn_from():
    """From the whole vocabulary come special tokens, which the other law cannot explain."""
    floor = floor_of(unusual(random_tokens="all"))
    assert abs(z_score(floor.loss - floor.entropy)) < 4
    with pytest.raises(ValueError, match="input_ids"):
        floor_of(unusual(random_tokens="all"), unusual())


def test_the_floor_knows_the_cap():
    """20 words, a rate of 0.4: without the cap of 3 the count of targets is impossible."""
    capped = unusual(selection="count", max_predictions=3)
    assert len(floor_of(capped).loss) == 3 * 100
    with pytest.raises(ValueError, match="labels"):
        floor_of(capped, unusual(selection="count"))


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rate": 1.5}, r"rate: expected a probability.*got 1\.5"),
        ({"rate": -0.1}, r"rate: expected .*got -0\.1"),
        ({"rate": float("nan")}, r"rate: expected .*got nan"),
        ({"replacement": (0.8, 0.1, 0.2)}, r"replacement: .*sum to 1, got \(0\.8, 0\.1, 0\.2\)"),
        ({"replacement": (1.2, -0.1, -0.1)}, r"replacement: expected three probabilities"),
        ({"replacement": (0.9, 0.1)}, r"replacement: expected three probabilities"),
        ({"selection": "binomial"}, r"selection: expected one of .*bernoulli.*got 'binomial'"),
        ({"random_tokens": "some"}, r"random_tokens: expected one of .*got 'some'"),
        ({"max_predictions": 20}, r'max_predictions: .*selection="count".*got 20'),
        ({"selection": "count", "max_predictions": 0}, r"max_predictions: .*got 0"),
        ({"duplicates": 0}, r"duplicates: expected None .*at least 1, got 0"),
        ({"seed": -1}, r"seed: expected .*got -1"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        MaskedLM(VOCABULARY, **options)


@pytest.mark.parametrize("bad", [-1, 25])
def test_ids_outside_the_vocabulary_are_refused(bad):
    with pytest.raises(ValueError, match=rf"ids: expected .*0 to 24, got {bad}"):
        MaskedLM(VOCABULARY).corrupt(np.array([[2, bad, 3]]), np.random.default_rng(0))


def test_labels_that_do_not_fit_are_refused():
    objective = MaskedLM(VOCABULARY, rate=0.5)
    logits, batch = scored(objective, texts(2, 6))
    with pytest.raises(
        ValueError, match=r"logits: expected \(2, 6\) as the labels.*got \(2, 5, 25"
    ):
        objective.loss(logits[:, 1:], batch)
    with pytest.raises(ValueError, match=r"logits: expected .*got \(12, 25\)"):
        objective.loss(logits.flatten(0, 1), batch)
    with pytest.raises(ValueError, match=r"labels: expected classes from 0 to 2"):
        objective.loss(logits[..., :3], batch)
