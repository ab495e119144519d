"""Every constant of every preset: from the library's own signature, or from the named source.

Forms are walked elsewhere, with rates and an eps of the tests' own, so that the presets' own
numbers are not seen there.
"""

from __future__ import annotations

import inspect
import math

import oracles
import pytest
import torch

from lossbook import optim

# Where the names of a library's arguments are not ours.
SAME = {
    **{"learning_rate": "lr", "epsilon": "eps", "decay": "alpha"},
    **{"b1": "beta1", "b2": "beta2", "beta_1": "beta1", "beta_2": "beta2"},
    **{"initial_scale": "initial_accumulator_value"},
}
LIBRARIES = {
    ("SGD", "torch"): "torch.optim.SGD",
    ("SGD", "keras"): "keras.optimizers.SGD",
    ("Adagrad", "torch"): "torch.optim.Adagrad",
    ("Adagrad", "optax"): "optax.adagrad",
    ("Adagrad", "keras"): "keras.optimizers.Adagrad",
    ("RMSprop", "torch"): "torch.optim.RMSprop",
    ("RMSprop", "optax"): "optax.rmsprop",
    ("RMSprop", "keras"): "keras.optimizers.RMSprop",
    ("Adadelta", "torch"): "torch.optim.Adadelta",
    ("Adadelta", "optax"): "optax.adadelta",
    ("Adadelta", "keras"): "keras.optimizers.Adadelta",
    ("Adam", "torch"): "torch.optim.Adam",
    ("Adam", "optax"): "optax.adam",
    ("Adam", "keras"): "keras.optimizers.Adam",
    ("AdamW", "torch"): "torch.optim.AdamW",
    ("AdamW", "optax"): "optax.adamw",
    ("AdamW", "keras"): "keras.optimizers.AdamW",
    ("AMSGrad", "torch"): "torch.optim.Adam",
    ("AMSGrad", "optax"): "optax.amsgrad",
    ("AMSGrad", "keras"): "keras.optimizers.Adam",
    ("AdaMax", "torch"): "torch.optim.Adamax",
    ("AdaMax", "optax"): "optax.adamax",
    ("AdaMax", "keras"): "keras.optimizers.Adamax",
    ("NAdam", "torch"): "torch.optim.NAdam",
    ("NAdam", "optax"): "optax.nadam",
    ("NAdam", "keras"): "keras.optimizers.Nadam",
    ("NAdam", "timm"): "timm.optim.NAdamW",
    ("RAdam", "torch"): "torch.optim.RAdam",
    ("RAdam", "optax"): "optax.radam",
    ("RAdam", "authors"): "pytorch_optimizer.RAdam",
}
L2, OUTSIDE = {"decay": "l2"}, {"eps_placement": "outside", "decay": "l2"}
BERT = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01}
FACTORED = {"eps": (1e-30, 1e-3), "clip_threshold": 1.0, "beta2_decay": -0.8, "beta1": None}
PRINTED = {
    # torch/optim of Lua: momentum is its own dampening; Polyak's and Sutskever's forms
    ("SGD", "lua"): {"lr": 1e-3, "dampening": "momentum", "momentum": 0.0, **L2},
    ("SGD", "optax"): {"lr_placement": "outside", "nesterov": False, **L2},
    ("SGD", "mesh-tensorflow"): {"lr_placement": "inside", "dampening": 0.0, **L2},
    ("SGD", "sutskever"): {"lr_placement": "inside", "nesterov": "sutskever", "momentum": 0.9},
    ("SGD", "sgdw"): {"lr_placement": "inside", "decay": "paper"},
    # tf.train.RMSPropOptimizer; arXiv 1308.0850, section 4.2; arXiv 1212.5701, section 4.1
    ("RMSprop", "tensorflow-1"): {"alpha": 0.9, "eps": 1e-10, "initial_accumulator_value": 1.0},
    ("RMSprop", "graves"): {"lr": 1e-4, "alpha": 0.95, "momentum": 0.9, "eps": 1e-4},
    ("Adadelta", "paper"): {"lr": 1.0, "rho": 0.95, "eps": 1e-6},
    # google-research/bert, optimization.py
    ("Adam", "torch"): OUTSIDE,
    ("Adam", "bert"): {**BERT, "bias_correction": False, "decay": "decoupled"},
    ("AdamW", "bert"): {**BERT, "bias_correction": False, "decay": "decoupled"},
    ("AMSGrad", "paper"): {"maximum": "raw", "bias_correction": False},
    ("RAdam", "paper"): {"threshold": 4.0, "unrectified": "momentum"},
    # arXiv 1804.04235, algorithm 4; tensorflow/mesh, optimize.py, with T5's gin files
    ("Adafactor", "paper"): {
        **{"lr": 1e-2, "rate": "relative", "scale_parameter": True, **FACTORED},
        **{"factor": "last", "min_dim_size_to_factor": 0, "eps1_placement": "square"},
    },
    ("Adafactor", "t5"): {
        **{"lr": 1e-3, "rate": "given", "scale_parameter": True, **FACTORED},
        **{"factor": "largest", "min_dim_size_to_factor": 128, "eps1_placement": "square"},
    },
    # transformers, optimization.py, and its trainer's --optim adafactor
    ("Adafactor", "transformers"): {"rate": "relative", "decay": "scaled", **FACTORED},
    ("Adafactor", "transformers-trainer"): {
        **{"lr": 1e-3, "rate": "given", "scale_parameter": False, "decay": "scaled"},
        **FACTORED,
    },
    ("Adafactor", "torch"): {
        **{"lr": 1e-2, "rate": "relative", "decay": "lr", "eps1_placement": "floor"},
        **{**FACTORED, "eps": (1e-15, 1e-3), "factor": "last"},
    },
    ("Adafactor", "optax"): {
        **{"rate": "given", "decay": "raw", "factor": "largest", "scale_parameter": True},
        **{**FACTORED, "min_dim_size_to_factor": 128},
    },
}


def options(kind, preset):
    optimizer = getattr(optim, kind).like(preset, [("w", torch.zeros(2, requires_grad=True))])
    (group,) = optimizer.param_groups
    betas = dict(zip(("beta1", "beta2"), group.get("betas", ()), strict=False))
    return optimizer, {**group, **betas}


@pytest.mark.parametrize(("kind", "preset"), LIBRARIES, ids=str)
def test_numbers_are_the_defaults_of_the_library(kind, preset):
    parameters = inspect.signature(oracles.evaluate(LIBRARIES[kind, preset], {})).parameters
    theirs = {SAME.get(name, name): p.default for name, p in parameters.items()}
    if kind == "RMSprop":
        theirs["alpha"] = theirs.pop("rho", theirs.get("alpha"))
    if "betas" in theirs:
        theirs["beta1"], theirs["beta2"] = theirs["betas"]
    theirs = {k: x for k, x in theirs.items() if type(x) in (int, float)}
    _, ours = options(kind, preset)
    common = set(ours) & set(theirs)
    numbers = {k for k, x in getattr(optim, kind).presets[preset].items() if type(x) is float}
    assert numbers - common <= {"momentum_decay"}  # which is the form, and walked
    assert {k: ours[k] for k in common} == {k: theirs[k] for k in common}


@pytest.mark.parametrize(("kind", "preset"), PRINTED, ids=str)
def test_constants_are_the_printed_ones(kind, preset):
    printed = PRINTED[kind, preset]
    optimizer, ours = options(kind, preset)
    assert {k: ours[k] for k in printed} == printed
    if preset == "bert":
        assert optimizer.clip == 1.0 and optimizer.clip_form == "pascanu"
        assert optimizer._exclude == "bert"


def test_every_preset_is_looked_at():
    kinds = [getattr(optim, name) for name in optim.__all__]
    kinds = [x for x in kinds if inspect.isclass(x) and issubclass(x, optim.Optimizer)]
    named = {(kind.__name__, preset) for kind in kinds for preset in kind.presets}
    assert named == {*LIBRARIES, *PRINTED}
    assert math.isinf(optim.NAdam.presets["timm"]["momentum_decay"])
