"""The loop around an equation: groups, state, decay rules, clipping, errors, the fast path.

A subclass brings its update as a pure function of a few lines, ``equation(theta, g, *memory, t,
**hyperparameters) -> (theta, *memory)``, and the names of what it remembers. The same function
runs in the tests in float64, step by step in :meth:`Optimizer.step`, and through the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from operator import is_
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lossbook._require import require
from lossbook.optim.batching import TILE, Row, batches, blocks, glued, shape_for
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


class _Moving(NamedTuple):
    group: int
    name: str | None
    parameter: Tensor
    decayed: bool


class _Plan(NamedTuple):
    numbers: dict[str, float]
    options: dict[str, Any]
    rows: list[Row]
    forms: list[tuple[Any, ...] | None]  # of each row: what its kernel depends on, None without


class _Flat(NamedTuple):
    """A parameter and its memory as vectors or tables, kept from step to step."""

    place: int
    memory: list[Tensor]
    theta: Tensor
    rest: list[Tensor]
    turned: tuple[int, ...] | None  # the shape of the views, where it is not the parameter's own
    form: tuple[Any, ...]


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
        self._excluded_by, self._flat, self._listed = exclusion_rule(exclude), {}, []
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
        group.setdefault("initial_lr", group["lr"])
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
        plans: dict[tuple[int, bool, int], _Plan] = {}
        self._names = self.memory
        for item in moving:
            state = self._state_of(item.parameter)
            state["step"] = t = state["step"] + 1
            key = item.group, item.decayed, t
            plan = plans.get(key)
            if plan is None:
                plan = plans[key] = self._plan(*key, scale)
            row, form = self._row(item.parameter, state)
            plan.rows.append(row)
            plan.forms.append(form)
        for plan in plans.values():
            self._run(plan)
        return loss

    def _moving(self) -> list[_Moving]:
        moving = [item for item in self._all() if item.parameter.grad is not None]
        for item in moving:
            g = item.parameter.grad
            if g.layout is not torch.strided:
                require(False, _label(item.name, item.parameter), g.layout, "a dense gradient")
            if not g.is_floating_point():
                require(False, _label(item.name, item.parameter), g.dtype, "a real gradient")
        return moving

    def _all(self) -> list[_Moving]:
        """All parameters in order, listed anew when a group has changed."""
        if len(self._listed) != sum(len(group["params"]) for group in self.param_groups):
            self._listed = [
                _Moving(index, name, p, decayed)
                for index, group in enumerate(self.param_groups)
                for (name, p), decayed in zip(_named(group), group["decayed"], strict=True)
            ]
        return self._listed

    def _scale(self, moving: list[_Moving]) -> float:
        """What the gradients are multiplied by; refuses those that are not finite."""
        if self.clip is None:
            if self.check_finite is False:
                return 1.0
            self._refuse_non_finite([item for item in moving if self._looks_at(item.parameter)])
            return 1.0
        total = global_norm(item.parameter.grad for item in moving)
        if self.check_finite is not False and not math.isfinite(total):
            self._refuse_non_finite(moving)
            raise NonFiniteGradientError(
                "gradients: expected finite numbers, got a norm that overflows"
            )
        return clip_factor(total, self.clip, self.clip_form)

    def _looks_at(self, p: Tensor) -> bool:
        return p.device.type == "cpu" if self.check_finite is None else self.check_finite

    def _refuse_non_finite(self, moving: list[_Moving]) -> None:
        bad = [_label(m.name, m.parameter) for m in moving if not _is_finite(m.parameter.grad)]
        if bad:
            found = f"an infinity or NaN in {', '.join(bad[:8])}"
            raise NonFiniteGradientError(f"gradients: expected finite numbers, got {found}")

    def shapes(self, p: Tensor) -> dict[str, tuple[int, ...]]:
        """What is remembered of a parameter: names and shapes; here all are shaped like it."""
        return {name: tuple(p.shape) for name in self.memory}

    def _state_of(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            state["step"] = 0
            dtype = arithmetic_dtype(p.dtype)
            for name, shape in self.shapes(p).items():
                if shape == tuple(p.shape):  # and laid out like it
                    state[name] = torch.zeros_like(p, dtype=dtype)
                else:
                    state[name] = p.new_zeros(shape, dtype=dtype)
        return state

    def _plan(self, index: int, decayed: bool, t: int, scale: float) -> _Plan:
        """What the parameters of a group with the same step count have in common."""
        values = self.hyperparameters(self.param_groups[index])
        if not decayed:
            values["weight_decay"] = 0.0
        options = {k: x for k, x in values.items() if isinstance(x, str | bool)}
        numbers = {k: float(x) for k, x in values.items() if k not in options}
        return _Plan({"t": float(t), "scale": scale, **numbers}, options, [], [])

    def _row(self, p: Tensor, state: dict[str, Any]) -> tuple[Row, tuple[Any, ...] | None]:
        """(theta, g, *memory), flat where the equation allows and no copy is needed; its form."""
        g, memory = p.grad, [state[name] for name in self._names]
        if not (self.elementwise and g.is_contiguous() and p.is_contiguous()):
            return [p, g, *memory], None
        flat = self._flat.get(id(p))
        if flat is None or flat.place != p.data_ptr() or not _same(flat.memory, memory):
            if not all(map(Tensor.is_contiguous, memory)):
                return [p, g, *memory], None
            flat = self._flat[id(p)] = self._flattened(p, memory)
        _, _, theta, rest, turned, form = flat
        return [theta, g if turned is None else g.view(turned), *rest], form

    def _flattened(self, p: Tensor, memory: list[Tensor]) -> _Flat:
        shape = shape_for(p, self.compiled)
        theta, *rest = (x.view(shape) for x in (p, *memory))
        turned = None if p.shape == shape else shape
        return _Flat(p.data_ptr(), memory, theta, rest, turned, (p.dtype, len(shape)))

    def _run(self, plan: _Plan) -> None:
        equation, rows = type(self).equation, plan.rows
        if self.compiled and rows[0][0].device.type != "cpu":
            update_together(equation, rows, plan.numbers, plan.options)
            return
        if self.compiled:
            rows = self._run_compiled(plan)

        def move(row: Row) -> None:
            for block in blocks(row) if self.elementwise else [row]:
                update(equation, block, plan.numbers, plan.options)

        for batch in batches(rows) if self.elementwise else ([row] for row in rows):
            glued(batch, move)

    def _run_compiled(self, plan: _Plan) -> list[Row]:
        """Move the rows for which there is a kernel; the others come back, as vectors."""
        left, moved = [], []
        calls: dict[Any, Any] = {}  # of every form that occurs: its kernel, or None without one
        for row, form in zip(plan.rows, plan.forms, strict=True):
            key = form, row[1].dtype
            call = calls.get(key, self)
            if call is self:
                call = calls[key] = self._kernel(row, form, plan)
            if call is None:
                left.append([x.view(-1) for x in row] if self.elementwise and form else row)
                continue
            run, scalars = call
            run([*row, *scalars])
            moved.append(row[0])
        torch.autograd.graph.increment_version(moved)
        return left

    def _kernel(
        self, row: Row, form: tuple[Any, ...] | None, plan: _Plan
    ) -> tuple[Callable[..., Any], Any] | None:
        if form is None:
            return None
        width = TILE if self.elementwise and row[0].ndim == 2 else None
        kernel = kernel_for(type(self).equation, row, plan.numbers, plan.options, width)
        return kernel and (kernel.run, kernel.scalars(plan.numbers))

    # What is saved

    def __getstate__(self) -> dict[str, Any]:
        own = ("clip", "clip_form", "check_finite", "compiled", "_exclude")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._excluded_by, self._flat, self._listed = exclusion_rule(self._exclude), {}, []

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


def _same(kept: list[Tensor], found: list[Tensor]) -> bool:
    return len(kept) == len(found) and all(map(is_, kept, found))


def _named(group: dict[str, Any]) -> list[tuple[str | None, Tensor]]:
    names = group.get("param_names") or [None] * len(group["params"])
    return list(zip(names, group["params"], strict=True))


def _is_finite(g: Tensor) -> bool:
    """One reading; a sum that overflows, as in float16, takes a second one."""
    return math.isfinite(float(g.sum())) or bool(g.isfinite().all())


def _label(name: str | None, p: Tensor) -> str:
    return name or f"parameter of shape {tuple(p.shape)}"
