"""The loop around an equation: groups, state, decay rules, clipping, errors, the fast path.

A subclass brings its update as a pure function of a few lines, ``equation(theta, g, *memory, t,
**hyperparameters) -> (theta, *memory)``, and the names of what it remembers. The same function
runs in the tests in float64, step by step in :meth:`Optimizer.step`, and through the compiler.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, compress
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.batching import Row, batches, blocks, flat, glued
from lossbook.optim.clipping import CLIP_FORMS, clip_factor, global_norm
from lossbook.optim.compiled import (
    arithmetic_dtype,
    kernel_for,
    update,
    update_together,
)
from lossbook.optim.groups import Rule, exclusion_rule

Number = int | float | Float[Tensor, ""]

# Keys that torch or its schedulers put into a group beside the optimizer's own options.
FOREIGN_KEYS = {
    *("params", "param_names", "name", "initial_lr", "decayed"),
    *("max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"),
}


DENSE = frozenset([torch.strided])
REAL = frozenset([torch.float16, torch.bfloat16, torch.float32, torch.float64])


class _Moving(NamedTuple):
    """Parameters of one group that are decayed alike, and their gradients."""

    group: int
    decayed: bool
    parameters: list[Tensor]
    gradients: list[Tensor]


class _Plan(NamedTuple):
    numbers: dict[str, float]
    options: dict[str, Any]
    rows: list[Row]


class NonFiniteGradientError(ValueError):
    """A gradient holds an infinity or a NaN; nothing has been changed."""


class Optimizer(torch.optim.Optimizer):
    """Base class of the book's optimizers; a ``torch.optim.Optimizer`` in every respect.

    Args:
        params: tensors, parameter groups, or ``model.named_parameters()``.
        defaults: options that a group may override.
        exclude: which parameters are not decayed: None (all are), ``"bert"`` (names in which
            ``LayerNorm``, ``layer_norm`` or ``bias`` occurs), ``"rank"`` (vectors and numbers), or
            a function of name and parameter. :attr:`excluded` lists them.
        clip: largest global norm of the gradients; the norm runs once over all groups. The
            gradients themselves are left as they are.
        clip_form: ``"pascanu"`` or ``"torch"``, see :func:`~lossbook.optim.clipping.clip_factor`.
        check_finite: look for infinities and NaNs before anything moves. True always does, False
            never. None does on the CPU, where it costs one more reading of the gradients, and on
            an accelerator only where ``clip`` needs their norm anyway: to look there is to wait
            for the device in every step.
        compiled: run the equation through the compiler: one pass over the memory. The first step
            then takes seconds. Without a C++ compiler the same equation runs as it is, and a
            warning says so.

    Moments are kept in float32 for parameters in float16 and bfloat16, and the arithmetic is done
    there: in bfloat16 the product 0.999 v rounds back to v, and v could only ever grow.
    """

    memory: ClassVar[tuple[str, ...]] = ()
    equation: ClassVar[Callable[..., tuple[Tensor, ...]]]
    elementwise: ClassVar[bool] = True  # may the equation be given any piece of a tensor?
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        exclude: str | Rule | None = None,
        clip: float | None = None,
        clip_form: str = "pascanu",
        check_finite: bool | None = None,
        compiled: bool = False,
    ) -> None:
        require(clip is None or 0 < clip < math.inf, "clip", clip, "None or a number > 0")
        require(clip_form in CLIP_FORMS, "clip_form", clip_form, f"one of {CLIP_FORMS}")
        self.clip, self.clip_form, self.check_finite = clip, clip_form, check_finite
        self.compiled, self._exclude = compiled, exclude
        self._excluded_by = exclusion_rule(exclude)
        if not isinstance(params, Tensor | dict):
            params = list(params)
            require(params, "params", params, "at least one parameter (a generator is used up?)")
        super().__init__(params, defaults)

    @classmethod
    def like(cls, preset: str, params: Iterable[Any], **options: Any) -> Optimizer:
        """The optimizer as a named library or model has it: ``presets[preset]`` says how.

        ``options`` are added to the preset and win over it.
        """
        require(preset in cls.presets, "preset", preset, f"one of {tuple(cls.presets)}")
        return cls(params, **{**cls.presets[preset], **options})

    # Parameter groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not name come from the defaults."""
        unknown = set(param_group) - set(self.defaults) - FOREIGN_KEYS
        known = f"options among {sorted(self.defaults)}"
        require(not unknown, "params", sorted(unknown), known)
        self.check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        lr = group["lr"]  # a tensor would go on changing with the schedule
        group.setdefault("initial_lr", lr.clone() if isinstance(lr, Tensor) else lr)
        group["decayed"] = [not self._excluded_by(*pair) for pair in _named(group)]
        for name, p in _named(group):
            require(p.is_floating_point(), _label(name, p), p.dtype, "a real floating-point type")

    def check_group(self, group: dict[str, Any]) -> None:
        """Refuse options outside their range; subclasses add theirs."""
        for name in ("lr", "weight_decay"):
            value = group[name]
            require(0 <= float(value) < math.inf, name, value, "a finite number >= 0")

    def hyperparameters(self, group: dict[str, Any]) -> dict[str, Any]:
        """What the equation takes beside tensors: numbers, and options that are no numbers."""
        raise NotImplementedError

    @property
    def excluded(self) -> list[str]:
        """The parameters that ``exclude`` keeps from decay, by name where they have one."""
        return [
            _label(name, p)
            for group in self.param_groups
            for (name, p), decayed in zip(_named(group), group["decayed"], strict=True)
            if not decayed
        ]

    # The step

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient; the others and their counts rest.

        Args:
            closure: evaluates the loss again and returns it.

        Raises:
            ValueError: a sparse or complex gradient.
            NonFiniteGradientError: see ``check_finite``. Nothing has changed in either case.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moving = self._moving()
        scale = self._scale(moving)
        for plan in [plan for part in moving for plan in self._plans(part, scale)]:
            self._run(plan)
        return loss

    def _moving(self) -> list[_Moving]:
        found = []
        for index, group in enumerate(self.param_groups):
            for decayed in set(group["decayed"]):
                params = list(compress(group["params"], map(decayed.__eq__, group["decayed"])))
                gradients = [p.grad for p in params]
                there = [g is not None for g in gradients]
                if not all(there):
                    params, gradients = (list(compress(x, there)) for x in (params, gradients))
                found.append(_Moving(index, decayed, params, gradients))
        for part in found:
            self._refuse_kinds(part)
        return found

    def _refuse_kinds(self, part: _Moving) -> None:
        """Gradients must be dense and real."""
        for name, known in (("layout", DENSE), ("dtype", REAL)):
            kinds = list(map(attrgetter(name), part.gradients))
            if not known.issuperset(kinds):
                i = [kind in known for kind in kinds].index(False)
                expected = "a dense gradient" if name == "layout" else "a real gradient"
                require(False, self._label(part.parameters[i]), kinds[i], expected)

    def _scale(self, moving: list[_Moving]) -> float:
        """What the gradients are multiplied by; refuses those that are not finite."""
        if self.clip is None:
            if self.check_finite is not False:
                self._refuse_non_finite(moving, self._looks_at)
            return 1.0
        total = global_norm(g for part in moving for g in part.gradients)
        if self.check_finite is not False and not math.isfinite(total):
            self._refuse_non_finite(moving)
            raise NonFiniteGradientError(
                "gradients: expected finite numbers, got a norm that overflows"
            )
        return clip_factor(total, self.clip, self.clip_form)

    def _looks_at(self, p: Tensor) -> bool:
        return p.device.type == "cpu" if self.check_finite is None else self.check_finite

    def _refuse_non_finite(
        self, moving: list[_Moving], looks_at: Callable[[Tensor], bool] = lambda p: True
    ) -> None:
        pairs = [pair for part in moving for pair in zip(*part[2:], strict=True)]
        bad = [self._label(p) for p, g in pairs if looks_at(p) and not _is_finite(g)]
        if bad:
            found = f"an infinity or NaN in {', '.join(bad[:8])}"
            raise NonFiniteGradientError(f"gradients: expected finite numbers, got {found}")

    def _label(self, p: Tensor) -> str:
        pairs = chain.from_iterable(map(_named, self.param_groups))
        return next(_label(name, p) for name, q in pairs if q is p)

    def shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """What is remembered of a parameter: names and shapes; here all are shaped like it."""
        return {name: tuple(p.shape) for name in self.memory}

    def _plans(self, part: _Moving, scale: float) -> Iterator[_Plan]:
        """Begin what is not remembered yet, count the step, and sort by step count and device."""
        needed = {"step", *self.memory}
        states = [self.state[p] for p in part.parameters]
        for p, state in zip(part.parameters, states, strict=True):
            if not needed <= state.keys():
                self._begin(p, state)
            state["step"] += 1
        rows = self._rows(part, states)
        kinds = [(state["step"], row[0].is_cpu) for state, row in zip(states, rows, strict=True)]
        for kind in set(kinds):
            plan = self._plan(part.group, part.decayed, kind[0], scale)
            plan.rows.extend(compress(rows, map(kind.__eq__, kinds)))
            yield plan

    def _begin(self, p: Tensor, state: dict[str, Any]) -> None:
        """Zeros for what is not remembered yet."""
        state.setdefault("step", 0)
        dtype = arithmetic_dtype(p.dtype)
        for name, shape in self.shapes(p).items():
            if name in state:
                continue
            if shape == tuple(p.shape):  # and laid out like it
                state[name] = torch.zeros_like(p, dtype=dtype)
            else:
                state[name] = p.new_zeros(shape, dtype=dtype)

    def _plan(self, index: int, decayed: bool, t: int, scale: float) -> _Plan:
        """What the parameters of a group with the same step count have in common."""
        values = self.hyperparameters(self.param_groups[index])
        if not decayed:
            values["weight_decay"] = 0.0
        options = {k: x for k, x in values.items() if isinstance(x, str | bool)}
        numbers = {k: float(x) for k, x in values.items() if k not in options}
        return _Plan({"t": float(t), "scale": scale, **numbers}, options, [])

    def _rows(self, part: _Moving, states: list[dict[str, Any]]) -> list[Row]:
        """(theta, g, *memory) of each parameter."""
        memory = ([state[name] for state in states] for name in self.memory)
        return list(zip(part.parameters, part.gradients, *memory, strict=True))

    def _run(self, plan: _Plan) -> None:
        equation, rows = type(self).equation, plan.rows
        on_cpu = rows[0][0].is_cpu
        if self.compiled and on_cpu:
            rows = self._run_compiled(plan)
        if self.elementwise:
            rows = [flat(row) for row in rows]
        if self.compiled and not on_cpu:
            update_together(equation, rows, plan.numbers, plan.options)
            return

        def move(row: Row) -> None:
            for block in blocks(row) if self.elementwise else [row]:
                update(equation, block, plan.numbers, plan.options)

        for batch in batches(rows) if self.elementwise else ([row] for row in rows):
            glued(batch, move)

    def _run_compiled(self, plan: _Plan) -> list[Row]:
        """Move the rows for which there is a kernel; the others come back."""
        alike: defaultdict[Any, list[Row]] = defaultdict(list)
        for form, row in zip(self._forms(plan.rows), plan.rows, strict=True):
            alike[form].append(row)
        left = alike.pop(None, [])
        for rows in alike.values():
            example = flat(rows[0]) if self.elementwise else rows[0]
            kernel = kernel_for(type(self).equation, example, plan.numbers, plan.options)
            if kernel is None:
                left += rows
                continue
            kernel.move(rows, kernel.scalars(plan.numbers))
            torch.autograd.graph.increment_version([row[0] for row in rows])
        return left

    def _forms(self, rows: list[Row]) -> Iterable[Any]:
        """What the kernel of each row depends on; None where no kernel can take the row."""
        columns = list(zip(*rows, strict=True))
        lengths = [list(map(Tensor.numel, column)) for column in columns]
        forms = zip(*(map(attrgetter("dtype"), column) for column in columns), strict=True)
        whole = (map(Tensor.is_contiguous, column) for column in columns)
        turned = (map(Tensor.is_neg, column) for column in columns)  # -x, to be read as x
        same = lengths.count(lengths[0]) == len(lengths)
        if same and all(map(all, whole)) and not any(map(any, turned)):
            return forms
        return [
            form if all(_is_plain(x) and x.numel() == row[0].numel() for x in row) else None
            for form, row in zip(forms, rows, strict=True)
        ]

    # What is saved

    def __getstate__(self) -> dict[str, Any]:
        own = ("clip", "clip_form", "check_finite", "compiled", "_exclude")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._excluded_by = exclusion_rule(self._exclude)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from ``state_dict``, which is copied; moments take this optimizer's precision.

        Raises:
            ValueError: groups of other sizes, moments that are missing or of another shape.
                Nothing has changed then.
        """
        wanted = list(chain.from_iterable(group["params"] for group in self.param_groups))
        saved = list(chain.from_iterable(group["params"] for group in state_dict["param_groups"]))
        states = {
            p: self._checked(state_dict["state"][key], key, p)
            for key, p in zip(saved, wanted, strict=False)
            if key in state_dict["state"]
        }
        super().load_state_dict(state_dict)  # refuses groups of other sizes
        for p, state in states.items():
            self.state[p] = state

    def _checked(self, saved: dict[str, Any], key: int, p: Tensor) -> dict[str, Any]:
        label = f"state_dict['state'][{key}]"
        shapes = self.shapes(p)
        expected = {"step", *shapes}
        require(expected <= set(saved), label, sorted(saved), f"the entries {sorted(expected)}")
        for name, shape in shapes.items():
            found = tuple(saved[name].shape)
            require(found == shape, f"{label}['{name}']", found, f"shape {shape}")
        form = {"dtype": arithmetic_dtype(p.dtype), "device": p.device, "copy": True}
        moments = {name: saved[name].to(**form) for name in shapes}
        return {**saved, "step": int(saved["step"]), **moments}


def _is_plain(x: Tensor) -> bool:
    """Whether the numbers lie in the memory as they are, and without gaps."""
    return x.is_contiguous() and not x.is_neg()


def _named(group: dict[str, Any]) -> list[tuple[str | None, Tensor]]:
    names = group.get("param_names") or [None] * len(group["params"])
    return list(zip(names, group["params"], strict=True))


def _is_finite(g: Tensor) -> bool:
    """One reading; a sum that overflows, as in float16, takes a second one."""
    return math.isfinite(float(g.sum())) or bool(g.isfinite().all())


def _label(name: str | None, p: Tensor) -> str:
    return name or f"parameter of shape {tuple(p.shape)}"
