"""Graded exercises of the chapter *Weight decay*."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from lossbook.checks.answers import Case, grader


@grader("decay-only")
def decay_only() -> Iterable[Case]:
    """``f(parameters, rates, weight_decay)``: named parameters after steps without a loss."""
    rng = np.random.default_rng(0)
    matrix, vector = rng.normal(size=(4, 3)), rng.normal(size=7)
    inside = "Something else than the decay moved it: is λθ inside the gradient?"
    schedule = "The decay of a step is that step's learning rate times λ."
    gain = "A gain is spared under every name. By which pattern is it looked for?"
    embedding = (
        "An embedding is a matrix and loses what every matrix loses. If cases above fail too, "
        "begin there."
    )
    cosine = [1.5e-4 * (1 + math.cos(math.pi * t / 1000)) for t in range(1000)]
    for label, parameters, rates, lam, hint in (
        ("a matrix, rate 1", {"up.weight": matrix}, [1.0], 0.01, inside),
        ("a rate that changes", {"up.weight": matrix}, [0.1, 0.05, 0.2], 0.5, schedule),
        ("1000 cosine steps", {"out.weight": matrix}, cosine, 0.1, schedule),
        ("an embedding", {"embedding.weight": matrix}, [0.3, 0.3], 0.4, embedding),
        ("gain, BERT's name", {"LayerNorm.weight": vector}, [0.1] * 3, 0.5, gain),
        ("gain, T5's name", {"layer_norm.weight": vector}, [0.1] * 3, 0.5, gain),
        ("gain, GPT-2's name", {"ln_f.weight": vector}, [0.1] * 3, 0.5, gain),
        ("gain, this book's name", {"norm1.weight": vector}, [0.1] * 3, 0.5, gain),
        (
            "biases",
            {"head.bias": vector, "output_bias": vector[:2]},
            [0.1] * 3,
            0.5,
            "Biases are spared, also where the name has a prefix.",
        ),
        ("λ = 0", {"up.weight": matrix, "up.bias": vector}, [0.1] * 3, 0.0, "Nothing moves."),
    ):
        expected = tuple(_decayed(theta, rates, lam) for theta in parameters.values())
        yield Case(label, (parameters, rates, lam), expected, hint)


def _decayed(theta: np.ndarray, rates: list[float], lam: float) -> np.ndarray:
    """One number at a time; vectors stay."""
    if theta.ndim == 1:
        return theta
    new = np.empty(theta.shape)
    for i in np.ndindex(theta.shape):
        value = float(theta[i])
        for rate in rates:
            value -= rate * lam * value
        new[i] = value
    return new


@grader("decay-for-a-run")
def decay_for_a_run() -> Iterable[Case]:
    """``f(left, rates)``: the λ with which that part of a weight is left."""
    exact = "The exponential is an approximation; the factors are 1 − ηλ."
    for label, lam, rates, hint in (
        ("one step", 0.5, [1.0], exact),
        ("large rates", 0.9, [1.0, 0.3, 0.7], exact),
        ("a constant rate", 0.1, [3e-4] * 1000, "Every step takes its part."),
        ("a cosine", 2.0, [0.05 * (1 + math.cos(i)) for i in range(200)], "The rates differ."),
        ("rates that are zero at times", 3.0, [0.0, 0.1, 0.0, 0.2], "Divided by a rate?"),
        ("rates far above 1", 1e-4, [2000.0, 100.0], "λ is below one over the largest rate."),
    ):
        left = 1.0
        for rate in rates:
            left -= left * rate * lam
        yield Case(label, (left, rates), lam, hint, tolerance=1e-6)


@grader("adamw-from-paper")
def adamw_from_paper() -> Iterable[Case]:
    """``f(peak, s, lam)``: rate and decay of torch's AdamW in a step of the paper's."""
    for label, arguments, hint in (
        (
            "at the peak",
            (0.1, 1.0, 0.03),
            "Result 1 is the rate of the step. Result 2: torch multiplies it by the rate, and the "
            "paper does not.",
        ),
        (
            "in the warm-up",
            (0.1, 0.2, 0.03),
            "Result 1 is a fifth of the peak. Result 2: divided by the rate of the step instead "
            "of by the peak?",
        ),
        (
            "the first step of a warm-up from 0",
            (0.1, 0.0, 0.03),
            "Zero over zero? s stands in front of both terms.",
        ),
        ("a peak of 1", (1.0, 0.5, 0.001), "Then the two λ are one number, whatever s is."),
        ("a peak above 1", (20.0, 0.25, 0.1), "Multiplied where a division belongs?"),
        ("half the peak", (0.05, 1.0, 0.03), "Is the peak of an earlier call still in it?"),
    ):
        peak, s, lam = arguments
        yield Case(label, arguments, (s * peak, lam / peak), hint)


# Rate, epsilon, decay, betas and step, for the conversions of BERT's Adam and of GPT's.
SETTINGS = {
    "step 1": (1e-4, 1e-8, 0.01, 0.9, 0.999, 1),
    "step 12": (0.1, 1e-3, 0.3, 0.9, 0.999, 12),
    "β₂ = 0.95, step 1": (1.0, 0.5, 0.1, 0.9, 0.95, 1),
    "no momentum": (0.1, 1e-6, 0.1, 0.0, 0.999, 3),
    "step 1,000,000": (0.1, 1e-6, 0.1, 0.9, 0.999, 10**6),
}


@grader("bert-from-adamw")
def bert_from_adamw() -> Iterable[Case]:
    """``f(lr, eps, weight_decay, beta1, beta2, t)``: rate, epsilon and decay of torch's AdamW."""
    hints = (
        "Result 1, the rate, × 3.16; result 2, ε, × 31.6; result 3, the decay, ÷ 3.16.",
        "Result 1 × 6.57; result 2 × 9.15; result 3 ÷ 6.57: rate times decay stays.",
        "Here result 1 becomes smaller, × 0.447, and result 3 larger, ÷ 0.447; result 2 × 4.47.",
        "1 − β₁ᵗ is 1 then: results 1 and 2 have one factor, and result 3 its inverse.",
        "Nothing is left to convert.",
    )
    for (label, arguments), hint in zip(SETTINGS.items(), hints, strict=True):
        lr, eps, lam, beta1, beta2, t = arguments
        second = 1 - math.pow(beta2, t)
        rate = lr * (1 - math.pow(beta1, t)) * second**-0.5
        yield Case(label, arguments, (rate, eps * second**-0.5, lr * lam / rate), hint)


@grader("gpt-from-adamw")
def gpt_from_adamw() -> Iterable[Case]:
    """``f(lr, e, weight_decay, beta1, beta2, t)``: rate, epsilon and decay of torch's AdamW."""
    hints = (
        "Result 1, the rate, stays; result 2, ε, × 31.6; result 3, the decay, ÷ 3.16.",
        "Result 1 stays; result 2 × 9.15; result 3 ÷ 6.57.",
        "Result 1 stays; result 2 × 4.47; here result 3 becomes larger, × 2.24.",
        "1 − β₁ᵗ is 1 then: results 2 and 3 have inverse factors.",
        "Nothing is left to convert.",
    )
    for (label, arguments), hint in zip(SETTINGS.items(), hints, strict=True):
        lr, e, lam, beta1, beta2, t = arguments
        second = 1 - math.pow(beta2, t)
        rate = lr * second**0.5 / (1 - math.pow(beta1, t))  # the code's own
        answer = (lr, e * second**-0.5, rate * lam / lr)
        yield Case(label, arguments, answer, hint)


@grader("xlnet-spares")
def xlnet_spares() -> Iterable[Case]:
    """``f(name)``: is the parameter spared?"""
    for label, name, spared, hint in (
        (
            "a gain",
            "model/layer_0/ff/LayerNorm/gamma",
            True,
            "LayerNorm occurs in it. The answer is True or False, and no match.",
        ),
        (
            "a kernel",
            "model/transformer/layer_0/ff/layer_1/kernel",
            False,
            "No pattern occurs. The answer is False, and not nothing.",
        ),
        ("a norm's other name", "model/layer_norm/gamma", True, "layer_norm occurs in it."),
        ("another case", "model/layernorm/gamma", False, "The case counts."),
        ("a bias", "model/lm_loss/bias", True, "bias occurs in it."),
        ("a bias with a prefix", "output_bias", True, "The search runs anywhere in the name."),
        ("a relative bias", "model/transformer/r_w_bias", False, "The first list puts it back."),
        ("a relative bias, inside", "model/r_s_bias/kernel", False, "The first list comes first."),
        ("r_r_bias", "model/transformer/r_r_bias", False, "There are three of them."),
        ("nearly one of them", "model/transformer/r_x_bias", True, "There are three of them."),
        ("an accident", "model/debias/kernel", True, "bias occurs in it, as it did for XLNet."),
        ("an embedding", "model/word_embedding/lookup_table", False, "Embeddings are decayed."),
    ):
        yield Case(f"{label}: {name}", (name,), float(spared), hint)


@grader("norm-balance")
def norm_balance() -> Iterable[Case]:
    """``f(lr, weight_decay, beta1)``: the root mean square at which a weight settles."""
    for label, arguments, hint in (
        ("no momentum", (0.01, 0.5, 0.0), "Without momentum it is η/λ(2 − ηλ), under a root."),
        ("no momentum, ηλ = 1", (2.0, 0.5, 0.0), "All but the last update is forgotten: η."),
        ("the figure", (0.01, 0.5, 0.9), "Each gradient is spread over many steps."),
        ("strong decay", (0.1, 3.0, 0.9), "Decay acts while m still hands the gradient out."),
        ("β₁ = 1 − ηλ", (0.1, 1.0, 0.9), "Zero over zero? The difference cancels."),
        ("β₁ above 1 − ηλ", (0.2, 2.0, 0.95), "A sign lost?"),
    ):
        yield Case(label, arguments, _balance(*arguments), hint)


def _balance(lr: float, lam: float, beta1: float) -> float:
    """By following one gradient of 1 through m and theta until both have forgotten it."""
    m, theta, squares = 0.0, 0.0, []
    for n in range(8000):
        m = beta1 * m + (1 - beta1) * (1.0 if n == 0 else 0.0)
        theta = theta - lr * lam * theta - lr * m
        squares.append(theta * theta)
    return math.sqrt(math.fsum(squares))
