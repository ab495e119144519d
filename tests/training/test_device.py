"""A run's device and precision are its own."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from lossbook.training.device import accelerator, available, choose_device


def test_auto_is_the_first_that_is_there():
    assert choose_device("auto") == available()[0] and available()[-1] == "cpu"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "tpu"}, "device: expected one of"),
        ({"precision": "fp8"}, "precision: expected one of"),
        ({"device": "cpu", "precision": "fp16"}, "precision: .*on a CPU"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ValueError, match=words):
        choose_device(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"device: expected one of this machine's, \[.*'cpu'\]"):
        choose_device("cuda")


def test_two_runs_of_different_precision_in_one_process():
    for precision in ("no", "bf16", "no"):
        with accelerator("cpu", precision) as made:
            assert made.mixed_precision == precision and made.device.type == "cpu"


def test_the_callers_accelerator_survives():
    AcceleratorState._reset_state(True)
    try:
        theirs = Accelerator(cpu=True, mixed_precision="no")
        with accelerator("cpu", "bf16"):
            pass
        assert theirs.mixed_precision == "no" and PartialState().device == theirs.device
    finally:
        AcceleratorState._reset_state(True)
