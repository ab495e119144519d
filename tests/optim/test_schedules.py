"""Every schedule against the libraries that have it, at every step; the junctions by hand.

Both sides compute a few operations on numbers near 1, so 1e-12 is far above rounding and far
below a schedule that is off by one step, which differs by 1/steps.
"""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lossbook import optim
from lossbook.optim.schedules import SCHEDULES, Course, Schedule, course

optax = pytest.importorskip("optax")
transformers = pytest.importorskip("transformers")

LENGTHS = [(20, 0), (20, 1), (20, 6), (20, 19), (20, 20), (1, 0), (1, 1), (3, 2), (1000, 100)]
PEAK = 0.3


def carrier(lr=PEAK):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(make, steps, lr=PEAK):
    """The rate that each update is made with, and the one after the last, over the peak."""
    optimizer = carrier(lr)
    scheduler, found = make(optimizer), []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"] / lr)
        optimizer.step()
        scheduler.step()
    return np.array(found)


def ours(name, n, /, **options):
    return rates(lambda o: Schedule(o, name, **options), n)


def gap(a, b):
    return np.abs(np.asarray(a) - np.asarray(b)).max()


@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
def test_linear_equals_transformers_and_optax(steps, warmup):
    found = ours("linear", steps, steps=steps, warmup=warmup)
    theirs = partial(
        transformers.get_linear_schedule_with_warmup,
        num_warmup_steps=warmup,
        num_training_steps=steps,
    )
    assert gap(found, rates(theirs, steps)) <= 1e-12
    if warmup and warmup < steps:
        parts = [
            optax.linear_schedule(0.0, 1.0, warmup),
            optax.linear_schedule(1.0, 0.0, steps - warmup),
        ]
        joined = optax.join_schedules(parts, [warmup])
        assert gap(found, [float(joined(t)) for t in range(steps + 1)]) <= 1e-12


@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_equals_transformers_and_optax(steps, warmup, floor):
    found = ours("cosine", steps, steps=steps, warmup=warmup, floor=floor)
    theirs = partial(
        transformers.get_cosine_with_min_lr_schedule_with_warmup,
        num_warmup_steps=warmup,
        num_training_steps=steps,
        min_lr_rate=floor,
    )
    last = steps if warmup == steps else steps + 1  # transformers is still at 1 after 0 of 0 steps
    assert gap(found[:last], rates(theirs, steps)[:last]) <= 1e-12
    if floor == 0:
        plain = partial(
            transformers.get_cosine_schedule_with_warmup,
            num_warmup_steps=warmup,
            num_training_steps=steps,
        )
        assert gap(found[:last], rates(plain, steps)[:last]) <= 1e-12
    if 0 < warmup < steps:
        theirs = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps, end_value=floor)
        assert gap(found, [float(theirs(t)) for t in range(steps + 1)]) <= 1e-12


@pytest.mark.parametrize("floor", [0.0, 0.25])
def test_cosine_equals_torchs(floor):
    """torch's has no warm-up and goes up again after its end; it is chained, hence 1e-12 of 20."""
    found = ours("cosine", 20, steps=20, floor=floor)
    theirs = rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=floor * PEAK), 20
    )
    assert gap(found, theirs) <= 1e-12


@pytest.mark.parametrize(("steps", "warmup"), LENGTHS)
@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_polynomial_equals_transformers_torch_and_optax(steps, warmup, power, floor):
    options = {"steps": steps, "warmup": warmup, "power": power, "floor": floor}
    found = ours("polynomial", steps, **options)
    if warmup < steps:  # transformers divides by 0 otherwise
        theirs = partial(
            transformers.get_polynomial_decay_schedule_with_warmup,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            lr_end=floor * PEAK,
            power=power,
        )
        assert gap(found, rates(theirs, steps)) <= 1e-12
    if warmup == 0:
        theirs = optax.polynomial_schedule(1.0, floor, power, steps)
        assert gap(found, [float(theirs(t)) for t in range(steps + 1)]) <= 1e-12
    if warmup == 0 and floor == 0:
        theirs = rates(lambda o: torch.optim.lr_scheduler.PolynomialLR(o, steps, power), steps)
        assert gap(found, theirs) <= 1e-12


@pytest.mark.parametrize(("warmup", "timescale"), [(6, None), (1, None), (6, 40), (0, 10_000)])
def test_inverse_sqrt_equals_transformers(warmup, timescale):
    options = {"warmup": warmup, "timescale": timescale}
    theirs = partial(
        transformers.get_inverse_sqrt_schedule, num_warmup_steps=warmup, timescale=timescale
    )
    assert gap(ours("inverse_sqrt", 200, **options), rates(theirs, 200)) <= 1e-12
    if timescale is None:
        fairseq = [math.sqrt(warmup / t) for t in range(warmup, 200)]
        assert gap(ours("inverse_sqrt", 200, **options)[warmup:200], fairseq) <= 1e-12


@pytest.mark.parametrize("warmup", [0, 1, 6])
def test_constant_equals_transformers_and_torchs_linear_lr(warmup):
    theirs = partial(transformers.get_constant_schedule_with_warmup, num_warmup_steps=warmup)
    assert gap(ours("constant", 20, warmup=warmup), rates(theirs, 20)) <= 1e-12
    if warmup:  # torch's cannot start at 0, but the same start can be asked of ours
        found = ours("constant", 20, warmup=warmup, start=0.125)
        linear = partial(torch.optim.lr_scheduler.LinearLR, start_factor=0.125, total_iters=warmup)
        assert gap(found, rates(linear, 20)) <= 1e-12


@pytest.mark.parametrize("shape", ["cosine", "linear", "1-sqrt"])
@pytest.mark.parametrize(("warmup", "decay"), [(0, 5), (1, 5), (4, 1), (4, 0), (4, 16), (0, 20)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_wsd_equals_transformers(shape, warmup, decay, floor):
    """Its warm-up begins at the floor, ours where ``start`` says."""
    options = {"decay": decay, "shape": shape, "floor": floor}
    found = ours("wsd", 20, steps=20, warmup=warmup, start=floor, **options)
    theirs = partial(
        transformers.get_wsd_schedule,
        num_warmup_steps=warmup,
        num_decay_steps=decay,
        num_training_steps=20,
        decay_type=shape,
        min_lr_ratio=floor,
    )
    assert gap(found, rates(theirs, 20)) <= 1e-12


def test_the_even_start_is_nanogpts():
    """(t + 1) / (W + 1), then the usual cosine; no update is lost."""
    found = ours("cosine", 20, steps=20, warmup=4, start="even")
    assert gap(found[:5], np.arange(1, 6) / 5) <= 1e-15
    assert gap(found[4:], ours("cosine", 20, steps=20, warmup=4)[4:]) == 0
    other = ours("cosine", 20, steps=20, warmup=4, start=0.2)
    assert gap(found, other) <= 1e-15


# The junctions


def bert_by_the_repository(t, steps, warmup):
    """polynomial_decay with power 1, and then the choice by an integer comparison."""
    decayed = (1.0 - 0.0) * (1 - min(t, steps) / steps) ** 1.0 + 0.0
    if not warmup:
        return decayed
    warm = float(t < warmup)
    return (1.0 - warm) * decayed + warm * (t / warmup)


def electra_by_the_repository(t, steps, warmup):
    return (1 - min(t, steps) / steps) * np.minimum(1.0, np.float64(t) / warmup)


def gpt1_by_the_repository(t, steps, fraction, shape):
    x = t / steps
    s = float(x <= fraction)
    return {
        "linear": (s * (x / fraction) + (1 - s)) * (1 - x),
        "cosine": s * (x / fraction) + (1 - s) * (0.5 * (1 + math.cos(math.pi * x))),
        "constant": s * (x / fraction) + (1 - s) * 1,
    }[shape]


@pytest.mark.parametrize(("steps", "warmup"), [(10, 4), (100, 10), (20, 1), (20, 0), (20, 20)])
def test_bert_electra_and_gpt_as_their_repositories_write_them(steps, warmup):
    every = range(steps + 4)
    found = course("bert", steps=steps, warmup=warmup)
    assert (
        gap([found(t) for t in every], [bert_by_the_repository(t, steps, warmup) for t in every])
        <= 1e-15
    )
    if warmup:
        found = course("electra", steps=steps, warmup=warmup)
        expected = [electra_by_the_repository(t, steps, warmup) for t in every]
        assert gap([found(t) for t in every], expected) <= 1e-15
        for shape in ("linear", "cosine", "constant"):
            found = course("gpt1", steps=steps, fraction=warmup / steps, shape=shape)
            expected = [
                gpt1_by_the_repository(min(t, steps), steps, warmup / steps, shape) for t in every
            ]  # whose run ends at steps
            assert gap(found.factors(steps + 4), expected) <= 1e-15


def test_electra_without_a_warm_up_only_decays():
    """Where the repository divides 0 by 0."""
    assert course("electra", steps=10, warmup=0).factors(3).tolist() == [1.0, 0.9, 0.8]


def test_the_junction_at_ten_per_cent():
    """BERT 0.9, 0.9, 0.89 where transformers has 0.9, 1.0, 0.989."""
    options = {"steps": 100, "warmup": 10}
    assert course("bert", **options).factors(12)[9:] == pytest.approx([0.9, 0.9, 0.89], abs=1e-15)
    linear = course("linear", **options).factors(12)[9:]
    assert linear == pytest.approx([0.9, 1.0, 89 / 90], abs=1e-15)
    assert course("bert", **options).factors(101).max() == 0.9
    assert course("electra", **options).factors(101).max() == pytest.approx(0.9, abs=1e-15)


@given(width=st.integers(1, 4096), warmup=st.integers(1, 10_000))
def test_noams_peak(width, warmup):
    schedule = course("noam", width=width, warmup=warmup)
    top = schedule(warmup - 1)  # s = warmup
    assert math.isclose(top, (width * warmup) ** -0.5, rel_tol=1e-12)
    assert schedule(warmup) < top
    assert warmup == 1 or schedule(warmup - 2) < top


def test_noams_printed_peak_and_its_factor_form():
    assert f"{course('noam', width=512, warmup=4000)(3999):.3g}" == "0.000699"
    peak, shape = (64 * 7) ** -0.5, course("inverse_sqrt", warmup=7)
    noam = course("noam", width=64, warmup=7)
    assert gap(noam.factors(100)[:-1], peak * shape.factors(100)[1:]) <= 1e-15


def test_t5_is_flat_and_then_falls():
    schedule = course("t5")
    assert [schedule(t) for t in (0, 9_999, 10_000)] == [0.01] * 3
    assert schedule(40_000) == 0.005
    assert schedule(10_001) < 0.01


@given(
    steps=st.integers(1, 200),
    warmup=st.integers(0, 200),
    floor=st.sampled_from([0.0, 0.1, 1.0]),
    name=st.sampled_from(["linear", "cosine", "polynomial", "wsd"]),
)
def test_up_to_one_and_down_to_the_floor(steps, warmup, floor, name):
    """Rising to the junction, falling from it, and beyond the end nothing moves."""
    warmup = min(warmup, steps)
    extra = {"polynomial": {"power": 2.0}, "wsd": {"decay": (steps - warmup) // 2}}.get(name, {})
    schedule = course(name, steps=steps, warmup=warmup, floor=floor, **extra)
    f = schedule.factors(steps + 5)
    assert (np.diff(f[: warmup + (warmup < steps)]) >= 0).all()
    assert (np.diff(f[warmup:]) <= 1e-15).all()
    assert warmup == steps or f[warmup] == 1 or (name == "wsd" and extra["decay"] == steps)
    assert np.abs(f[steps:] - floor).max() <= 1e-15
    assert warmup == steps or f[warmup] == 1


OFF_BY_ONE = {
    "counts the first update as 1": lambda t: course("linear", steps=20, warmup=6)(t + 1),
    "starts at zero twice": lambda t: course("linear", steps=20, warmup=6)(max(0, t - 1)),
    "one step of warm-up too many": course("linear", steps=20, warmup=7),
    "one step too long": course("linear", steps=21, warmup=6),
    "decays from step 0": course("bert", steps=20, warmup=6),
    "even start": course("linear", steps=20, warmup=6, start="even"),
}


@pytest.mark.parametrize("mistake", OFF_BY_ONE)
def test_planted_mistakes_are_far_above_the_bound(mistake):
    theirs = partial(
        transformers.get_linear_schedule_with_warmup, num_warmup_steps=6, num_training_steps=20
    )
    wrong = [OFF_BY_ONE[mistake](t) for t in range(21)]
    assert gap(wrong, rates(theirs, 20)) > 1e-2
    assert gap(wrong[10:12], rates(theirs, 20)[10:12]) > 1e-3 or mistake == "even start"


# As torch's scheduler


def walked(scheduler, optimizer, n):
    found = []
    for _ in range(n):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


COURSES = [
    course("cosine", steps=20, warmup=4, floor=0.1),
    course("bert", steps=20, warmup=4),
    course("wsd", steps=20, warmup=4, decay=6, shape="1-sqrt"),
    course("noam", width=64, warmup=4),
]


@pytest.mark.parametrize("schedule", COURSES, ids=str)
def test_state_dict_round_trip(schedule):
    """Through a file, into a fresh scheduler: the rates that follow are the same bits."""
    optimizer = carrier()
    scheduler = Schedule(optimizer, schedule)
    whole = walked(scheduler, optimizer, 20)
    optimizer = carrier()
    scheduler = Schedule(optimizer, schedule)
    first = walked(scheduler, optimizer, 7)
    file = io.BytesIO()
    torch.save([scheduler.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    optimizer = carrier(lr=123.0)
    scheduler = Schedule(optimizer, schedule)
    scheduler.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    assert first + walked(scheduler, optimizer, 13) == whole


def test_another_schedules_state_is_refused():
    """Also the same schedule over another length: torch's own would go on with the old one."""
    short, long = (Schedule(carrier(), "cosine", steps=n, warmup=2) for n in (20, 30))
    long.step()
    before = copy.deepcopy(long.state_dict())
    with pytest.raises(ValueError, match=r"state_dict: expected a state of cosine\(steps=30"):
        long.load_state_dict(short.state_dict())
    assert long.state_dict() == before


def test_pickle_and_copy():
    for schedule in COURSES:
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert copy.deepcopy(schedule)(7) == schedule(7)
    optimizer = carrier()
    scheduler = Schedule(optimizer, COURSES[0])
    walked(scheduler, optimizer, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the copy's optimizer has made no step, says torch
        other = pickle.loads(pickle.dumps(scheduler))
        other.step()
    scheduler.step()
    assert other.get_last_lr() == scheduler.get_last_lr()


def test_groups_keep_their_ratio_and_our_optimizers_are_moved():
    p = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = optim.SGD([{"params": p[:1], "lr": 1.0}, {"params": p[1:], "lr": 0.1}], lr=1.0)
    scheduler = Schedule(optimizer, "linear", steps=4)
    for t in range(4):
        for q in p:
            q.grad = torch.ones_like(q)
        assert [g["lr"] for g in optimizer.param_groups] == [1 - t / 4, 0.1 * (1 - t / 4)]
        optimizer.step()
        scheduler.step()
    assert p[0].item() == pytest.approx(1 - 2.5, abs=1e-6)


def test_resuming_by_last_epoch():
    optimizer = carrier()
    optimizer.param_groups[0]["initial_lr"] = PEAK
    scheduler = Schedule(optimizer, COURSES[0], last_epoch=6)
    assert scheduler.get_last_lr() == [PEAK * COURSES[0](7)]


REFUSALS = [
    (lambda: course("step"), r"name: expected one of \('constant', .*got 'step'"),
    (lambda: course("linear", warmup=3), r"options: .*with \['steps'\], got \['warmup'\]"),
    (lambda: course("bert", steps=9, warmup=1, floor=0), "options: expected options of 'bert'"),
    (lambda: course("linear", steps=10, warmup=11), "warmup: .*0 to steps = 10, got 11"),
    (lambda: course("bert", steps=10, warmup=-1), "warmup: .*got -1"),
    (lambda: course("inverse_sqrt", warmup=0), "timescale: .*as there is no warmup, got None"),
    (lambda: course("cosine", steps=0), "steps: expected at least 1, got 0"),
    (lambda: course("cosine", steps=9, floor=1.5), "floor: expected a factor from 0 to 1, got 1.5"),
    (lambda: course("cosine", steps=9, floor=-0.1), "floor: .*got -0.1"),
    (lambda: course("cosine", steps=9, start=1.5), "start: .*got 1.5"),
    (lambda: course("cosine", steps=9, start="odd"), "start: .*or 'even', got 'odd'"),
    (lambda: course("cosine", steps=9, start=-0.1), "start: .*got -0.1"),
    (lambda: course("wsd", steps=9, warmup=3, decay=7), "decay: expected 0 to 6 updates, got 7"),
    (lambda: course("wsd", steps=9, decay=-1), "decay: .*got -1"),
    (lambda: course("wsd", steps=9, decay=7, shape="exp"), "shape: .*got 'exp'"),
    (lambda: course("polynomial", steps=9, power=0.0), "power: expected a number > 0, got 0.0"),
    (lambda: course("gpt1", steps=9, fraction=0.0), r"fraction: .*got 0.0"),
    (lambda: course("gpt1", steps=9, fraction=1.5), r"fraction: .*got 1.5"),
    (lambda: course("gpt1", steps=9, shape="exp"), "shape: .*got 'exp'"),
    (lambda: course("noam", width=0, warmup=3), "width, warmup: .*got"),
    (lambda: course("noam", width=9, warmup=0), "width, warmup: .*got"),
    (lambda: course("t5", warmup=0), "warmup: .*>= 1, got 0"),
    (lambda: course("t5")(-1), "t: expected a number of updates >= 0, got -1"),
    (lambda: Schedule(carrier(), course("t5"), warmup=3), "options: expected none beside a Course"),
]


@pytest.mark.parametrize(("call", "message"), REFUSALS)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_every_schedule_has_a_name_and_a_source():
    assert set(SCHEDULES) <= set(dir(__import__("lossbook.optim.schedules", fromlist=["x"])))
    assert all(f.__doc__ for f in SCHEDULES.values())
    assert str(Course("t5")) == "t5()"


def test_the_defaults_are_the_published_ones():
    """GPT's 0.2 % and its straight line; the cosine of wsd."""
    expected = course("gpt1", steps=1000, fraction=2 / 1000, shape="linear").factors(1001)
    assert gap(course("gpt1", steps=1000).factors(1001), expected) == 0
    options = {"steps": 20, "decay": 7}
    expected = course("wsd", shape="cosine", **options).factors(21)
    assert gap(course("wsd", **options).factors(21), expected) == 0


def test_a_saved_state_is_not_changed_by_the_schedule_that_it_came_from():
    scheduler = Schedule(carrier(), "cosine", steps=20)
    saved = scheduler.state_dict()
    saved["course"]["options"]["steps"] = 30
    assert scheduler.course.options == {"steps": 20}
