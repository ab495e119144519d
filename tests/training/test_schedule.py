"""The usual schedule, against its formula at the points that matter."""

import pytest

from lossbook.training.schedule import factor


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_warm_up_is_linear_and_ends_at_one(shape):
    at = factor(shape, 4, 20)
    assert [at(t) for t in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize(("shape", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1)])
def test_the_way_down(shape, middle):
    at = factor(shape, 4, 20)
    assert at(12) == pytest.approx(middle)
    course = [at(t) for t in range(4, 20)]
    assert course == sorted(course, reverse=True) and course[-1] > 0
    assert at(20) == pytest.approx(0 if shape != "constant" else 1)


def test_no_step_has_a_rate_of_zero():
    for steps in (1, 2, 3):
        for warmup in range(steps):
            assert all(factor("cosine", warmup, steps)(t) > 0 for t in range(steps))


def test_refusals():
    with pytest.raises(ValueError, match=r"schedule: .*got 'step'"):
        factor("step", 0, 10)
    with pytest.raises(ValueError, match="warmup: expected a number of steps from 0 to 9, got 10"):
        factor("cosine", 10, 10)
