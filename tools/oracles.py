"""Which class of which library our optimizers agree with, and how far: one line for each pair.

A line holds the two calls as text, and the text is what runs: what the page shows is what was
measured. In the text stand

* ``p``, the parameters;
* ``ε`` = 1e-3, and ``κ`` = 1e-3 where it is added to squares, so that both can be scaled;
* ``λ`` = 0.1, the decay, and ``c`` = 2, the largest norm;
* ``η``, the learning rate of the step, and ``t``, its number: where a call names one of them
  outside of optax, its options are worked out again before every step;
* in schedules ``N``, ``W`` and ``D``, the updates of the run, of its warm-up and of its way down,
  and ``o``, an optimizer that carries the rate; in averages ``model``, which holds ``p``.

Where no learning rate is named, the walk sets it before each step.
"""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
import trajectories
from trajectories import Path, Problem, distance

from lossbook import optim

SCALES = (1.0, 1e-4, 1e-8)  # sizes of the gradients in the walks that begin at 0
LENGTHS = ((20, 6, 5), (100, 10, 30), (300, 1, 60))  # (N, W, D) of the schedules
LOOPS = ("foreach=False", "foreach=True")
FUSED = (*LOOPS, "fused=True")


@dataclass(frozen=True)
class Line:
    """Our call, theirs, and what the walks that compare them have to leave out.

    Args:
        ours: a call of something in ``lossbook.optim``.
        theirs: a call of a library.
        ways: options that ``theirs`` gets in turn; the largest difference counts.
        before: a call that comes before each of their steps.
        gaps: whether gradients are missing now and then.
        held: whether both keep the learning rate that they were built with.
        wide: whether torch's default precision is float64 meanwhile.
    """

    ours: str
    theirs: str
    ways: tuple[str, ...] = ()
    before: str = ""
    gaps: bool = True
    held: bool = False
    wide: bool = False

    @property
    def method(self) -> str:
        """The name in ``lossbook.optim``; clipping is an option of all and a method of its own."""
        name = self.ours.partition("(")[0].partition(".")[0]
        return "clip" if mentions(self.ours, "c") else name

    @property
    def library(self) -> str:
        return self.theirs.partition(".")[0]

    def calls(self) -> list[str]:
        """Their call, once for each way."""
        return [f"{self.theirs[:-1]}, {way})" for way in self.ways] or [self.theirs]


@dataclass(frozen=True)
class Disagreement:
    """Two calls that one might take for the same, how far they part, and why."""

    line: Line
    reason: str


@dataclass(frozen=True)
class Bite:
    """A mistake that is seen where something is on, and hardly where it is off.

    Args:
        on: what is on, in words.
        mistake: in words.
        line: the right call and the wrong one.
        off: the problem without it, one of ``EASIER``.
    """

    on: str
    mistake: str
    line: Line
    off: str


@dataclass(frozen=True)
class State:
    """What is remembered of a matrix of n rows and m columns: a count of numbers, and a library."""

    ours: str
    numbers: str
    theirs: str


# What the names in a line mean


class Names(dict):
    """Names of a call; libraries are imported when they are first needed."""

    def __missing__(self, name: str) -> Any:
        if name in optim.__all__:
            return getattr(optim, name)
        if name in LIBRARIES:
            return LIBRARIES[name]()
        if name == "get_ema_multi_avg_fn":
            return torch.optim.swa_utils.get_ema_multi_avg_fn
        raise KeyError(name)


def timm() -> types.ModuleType:
    """timm's optimizers alone: its models ask for torchvision, which they do not need."""
    if "timm.optim" not in sys.modules:
        found = importlib.util.find_spec("timm")
        for name in ("timm", "timm.models"):
            stub = types.ModuleType(name)
            stub.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
            stub.__path__ = [f"{found.submodule_search_locations[0]}{name[4:].replace('.', '/')}"]
            sys.modules.setdefault(name, stub)
        sys.modules["timm.models"].group_parameters = None
        sys.modules["timm"].optim = importlib.import_module("timm.optim")
    return sys.modules["timm"]


def transformers() -> types.ModuleType:
    importlib.import_module("transformers.optimization")
    return sys.modules["transformers"]


LIBRARIES: dict[str, Callable[[], types.ModuleType]] = {
    "keras": trajectories.keras_module,
    "timm": timm,
    "transformers": transformers,
    **{
        name: lambda name=name: importlib.import_module(name)
        for name in ("math", "optax", "pytorch_optimizer", "torch", "torch_optimizer")
    },
}


def evaluate(text: str, names: dict[str, Any]) -> Any:
    return eval(text, {}, Names(names))


def mentions(text: str, *names: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id in names for n in ast.walk(ast.parse(text)))


def symbols(scale: float = 1.0, decay: float = 0.1) -> dict[str, float]:
    return {"ε": 1e-3 * scale, "κ": 1e-3 * scale**2, "λ": decay, "c": 2.0 * scale}


# The walks


@dataclass(frozen=True)
class Case:
    """A problem and what the symbols mean in it."""

    problem: Problem
    symbols: dict[str, float]


@cache
def trials(gaps: bool) -> tuple[Case, ...]:
    """The hostile problem with decay, then from rest without, for every size of gradient."""
    hostile = Case(Problem.hostile(missing=gaps), symbols())
    rest = [Case(Problem.from_rest(scale, gaps), symbols(scale, 0.0)) for scale in SCALES]
    return hostile, *rest


def torch_walk(text: str, line: Line, case: Case, before: str = "") -> Path:
    """The walk of a ``torch.optim.Optimizer``, ours or a library's."""
    tensors, rates = case.problem.tensors(), case.problem.rates
    names = {**case.symbols, "p": tensors, "t": 1, "η": rates[0]}
    optimizer = evaluate(text, names)
    kept = [group["lr"] for group in optimizer.param_groups]

    def adjust(optimizer: torch.optim.Optimizer, t: int) -> None:
        if before:
            evaluate(before, names)
        if line.held:
            for group, lr in zip(optimizer.param_groups, kept, strict=True):
                group["lr"] = lr
        if mentions(text, "η", "t"):
            aside = {**names, "t": t, "η": rates[t - 1], "p": [torch.zeros(1, requires_grad=True)]}
            fresh = evaluate(text, aside).param_groups[0]
            moving = {"eps", "weight_decay"} | ({"lr"} if mentions(text, "η") else set())
            optimizer.param_groups[0].update({k: fresh[k] for k in moving})

    return list(trajectories.positions(optimizer, tensors, case.problem, adjust))


def library_walk(text: str, line: Line, case: Case) -> Path:
    if line.library == "optax":
        names = {**case.symbols, "η": trajectories.optax_rate(case.problem)}
        return trajectories.optax_walk(evaluate(text, names), case.problem)
    if line.library == "keras":
        return trajectories.keras_walk(lambda _: evaluate(text, case.symbols), case.problem)
    return torch_walk(text, line, case, line.before)


def walking(line: Line, cases: Sequence[Case] | None = None) -> float:
    """The largest difference over all problems and ways, over the distance travelled."""
    worst = 0.0
    for case in cases or trials(line.gaps):
        ours = torch_walk(line.ours, line, case)
        for text in line.calls():
            with warnings.catch_warnings(), precision(line.wide):
                warnings.simplefilter("ignore")
                worst = max(worst, distance(ours, library_walk(text, line, case)))
    return worst


@contextmanager
def precision(wide: bool) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if wide else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def mixing(line: Line) -> dict[torch.dtype, float]:
    """From rest with float64 and float32 parameters in turn, in both orders; the last way.

    Ours is held against the library's and against itself alone: a mistake that both made in such a
    group would not pass. Clipping ties the tensors of a group together, so it has no walk alone.
    """
    found = dict.fromkeys((torch.float64, torch.float32), 0.0)
    case = trials(line.gaps)[1]
    alone = None if line.method == "clip" else torch_walk(line.ours, line, case)
    for order in (list(found) * 3, list(found)[::-1] * 3):
        mixed = replace(case, problem=replace(case.problem, dtypes=order))
        with precision(line.wide):
            theirs = library_walk(line.calls()[-1], line, mixed)
        ours = torch_walk(line.ours, line, mixed)
        for dtype, other in product(found, filter(None, (theirs, alone))):
            columns = [[only(step, order, dtype) for step in path] for path in (ours, other)]
            found[dtype] = max(found[dtype], distance(*columns))
    return found


def only(step: list[np.ndarray], order: list[torch.dtype], dtype: torch.dtype) -> list[np.ndarray]:
    return [x for x, form in zip(step, order, strict=True) if form == dtype]


def parting(line: Line) -> float:
    """The largest difference on the hostile problem; infinite where the library gives up."""
    try:
        return walking(line, trials(line.gaps)[:1])
    except (RuntimeError, TypeError):
        return np.inf


def without(case: Case, keep: Callable[[int, np.ndarray], bool]) -> Case:
    """The same case with fewer parameters."""
    start = case.problem.start
    kept = [i for i, x in enumerate(start) if keep(i, x)]
    gradients = [[row[i] for i in kept] for row in case.problem.gradients]
    return replace(case, problem=Problem([start[i] for i in kept], gradients, case.problem.rates))


def steady(case: Case) -> Case:
    problem = case.problem
    return replace(case, problem=replace(problem, rates=[0.01] * len(problem.rates)))


def gentle() -> Case:
    """What optimizers are usually tested on: a matrix, a constant rate, no decay, a tiny eps."""
    rest = Case(Problem.from_rest(100.0, False), symbols(1e-5, 0.0))
    return steady(without(rest, lambda i, x: x.shape == (6, 5)))


# What is on in the problem, and what is off: the pairs of cases that a bite is measured on.
EASIER: dict[str, Callable[[], tuple[Case, Case]]] = {
    "small ε": lambda: (
        trials(True)[0],
        replace(trials(True)[0], symbols=symbols() | {"ε": 1e-8}),
    ),
    "constant rate": lambda: (trials(True)[0], steady(trials(True)[0])),
    "no decay": lambda: (
        trials(True)[0],
        replace(trials(True)[0], symbols=symbols(decay=0.0)),
    ),
    "no gaps": lambda: (trials(True)[0], trials(False)[0]),
    "larger gradients": lambda: (
        trials(True)[1],
        without(trials(True)[1], lambda i, _: i < 5),
    ),
    "no rank 3": lambda: (trials(True)[0], without(trials(True)[0], lambda _, x: x.ndim < 3)),
}


def biting(bite: Bite) -> tuple[float, float]:
    """The difference where it is on, and where it is off."""
    found = []
    for case in EASIER[bite.off]():
        try:
            found.append(walking(bite.line, [case]))
        except RuntimeError:
            found.append(np.inf)
    return found[0], found[1]


# Averages and schedules


class Model(torch.nn.Module):
    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(problem.tensors())

    @torch.no_grad()
    def fill(self, values: list[np.ndarray]) -> None:
        for p, value in zip(self.weights, values, strict=True):
            p.copy_(torch.tensor(value))


def averaging(line: Line) -> float:
    """Averages of a walk of plain gradient descent."""
    problem = trials(True)[1].problem
    course = trajectories.walk(lambda p: torch.optim.SGD(p), problem)[1:]
    ours, theirs = our_averages(line.ours, problem, course), their_averages(line, problem, course)
    return distance([problem.start, *ours], [problem.start, *theirs])


def our_averages(text: str, problem: Problem, course: Path) -> Path:
    model = Model(problem)
    ema, path = evaluate(text, {"p": list(model.weights)}), []
    for values in course:
        model.fill(values)
        ema.update()
        path.append([x.numpy() for x in ema.averages()])
    return path


def their_averages(line: Line, problem: Problem, course: Path) -> Path:
    if line.library == "torch":
        model = Model(problem)
        average, path = evaluate(line.theirs, {"model": model}), []
        for values in course:
            model.fill(values)
            average.update_parameters(model)
            path.append([p.detach().numpy().copy() for p in average.module.weights])
        return path
    if line.library == "optax":
        transformation, path = evaluate(line.theirs, {}), []
        state = transformation.init(problem.start)
        for values in course:
            average, state = transformation.update(values, state)
            path.append([np.asarray(x) for x in average])
        return path
    with trajectories.keras_in_float64():
        return keras_averages(line.theirs, problem, course)


def keras_averages(text: str, problem: Problem, course: Path) -> Path:
    """Keras averages what an optimizer has moved; here its gradients are 0 and we move."""
    keras = trajectories.keras_module()
    variables = [keras.Variable(x, dtype="float64") for x in problem.start]
    optimizer, path = evaluate(text, {}), []
    for values in course:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        optimizer.apply([torch.zeros(x.shape, dtype=torch.float64) for x in values], variables)
        averages = optimizer._model_variables_moving_average
        path.append([v.value.detach().numpy().copy() for v in averages])
    return path


def scheduling(line: Line) -> float:
    """The largest difference of the factors of all updates; the peak is 1."""
    worst = 0.0
    for n, w, d in LENGTHS:
        names = {"N": n, "W": w, "D": d}
        ours = evaluate(line.ours, names).factors(n + 1)
        worst = max(worst, np.abs(ours - their_factors(line.theirs, names)).max())
    return float(worst)


def their_factors(text: str, names: dict[str, Any]) -> np.ndarray:
    carrier, every = (
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0),
        range(names["N"] + 1),
    )
    names = {**names, "o": carrier}
    if mentions(text, "t"):
        return np.array([float(evaluate(text, {**names, "t": t})) for t in every])
    schedule, found = evaluate(text, names), []
    for t in every:
        if callable(schedule):
            found.append(float(schedule(t)))
            continue
        found.append(carrier.param_groups[0]["lr"])
        carrier.step()
        schedule.step()
    return np.array(found)


def measure(line: Line) -> float:
    kinds = {"EMA": averaging, "course": scheduling}
    return kinds.get(line.method, walking)(line)


# What is remembered

SHAPE = (512, 384)


def state_bytes(text: str, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of all tensors that a call keeps after one step on a matrix of ``SHAPE``."""
    library = text.partition(".")[0]
    if library == "optax":
        return optax_bytes(text, dtype)
    if library == "keras":
        return keras_bytes(text, dtype)
    p = torch.nn.Parameter(torch.ones(SHAPE, dtype=dtype))
    p.grad = torch.ones_like(p)
    optimizer = evaluate(text, {"p": [p]})
    optimizer.step()
    kept = [x for x in optimizer.state[p].values() if isinstance(x, torch.Tensor) and x.ndim]
    return sum(x.numel() * x.element_size() for x in kept)


def optax_bytes(text: str, dtype: torch.dtype) -> int:
    import jax
    import jax.numpy as jnp

    p = jnp.ones(SHAPE, dtype=str(dtype).removeprefix("torch."))
    state = jax.tree.leaves(evaluate(text, {}).init(p))
    return sum(x.nbytes for x in state if x.size > 1)


def keras_bytes(text: str, dtype: torch.dtype) -> int:
    keras = trajectories.keras_module()
    p = keras.Variable(np.ones(SHAPE), dtype=str(dtype).removeprefix("torch."))
    optimizer = evaluate(text, {})
    optimizer.build([p])
    kept = [v.value for v in optimizer.variables if len(v.shape)]
    return sum(x.numel() * x.element_size() for x in kept)


def steps(line: Line) -> str:
    if line.method == "course":
        return f"{LENGTHS[0][0]} to {LENGTHS[-1][0]}"
    return str(trajectories.STEPS)
