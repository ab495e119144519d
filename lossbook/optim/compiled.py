"""One equation, two ways to run it: as it is, and as one compiled pass over the memory.

Adam's step moves 28 bytes per float32 parameter and computes next to nothing, so its price is the
number of passes over the memory. Run as it is, the equation makes a pass per operation; its
temporaries are kept in the cache by giving it small blocks. Compiled, it is a single pass.

The compiler is called below ``torch.compile``: that checks its guards at every call, which for
the hundreds of small tensors of a model costs more than the update. Here kernels with an open
length are built for each equation, set of options and precision, and :mod:`lossbook.optim.sweep`
takes them over all tensors in one call. Learning rate, step count and the other numbers are
arguments, so a schedule does not recompile anything.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import compress
from typing import Any

import torch
from torch import Tensor, fx

from lossbook.optim.batching import Row, flat
from lossbook.optim.sweep import TILE, swept

Equation = Callable[..., tuple[Tensor, ...]]
Move = Callable[[Sequence[Row], Sequence[Tensor]], None]  # rows and scalars
EXAMPLE_LENGTH = 2**20  # large enough that the compiler thinks threads worth their start
EXAMPLE_SHAPE = (1048, 1000, 24, 20, 12)  # of what is no vector; no two axes share a length
LARGE = 2**18  # among the examples: at least this long is a parameter, shorter are its statistics


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of moments and arithmetic: the parameter's own, but float32 at the least."""
    return torch.promote_types(dtype, torch.float32)


def update(
    equation: Equation,
    tensors: Sequence[Tensor],
    numbers: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Replace theta and the memory in ``tensors = (theta, g, *memory)`` by their next values."""
    theta, g, *memory = tensors
    dtype = arithmetic_dtype(theta.dtype)
    t, scale = numbers["t"], numbers["scale"]
    rest = {name: x for name, x in numbers.items() if name not in ("t", "scale")}
    g = g.to(dtype)
    g = g if isinstance(scale, float) and scale == 1.0 else g * scale
    new = equation(theta.to(dtype), g, *memory, t, **rest, **options)
    for old, value in zip((theta, *memory), new, strict=True):
        old.copy_(value)


class Kernel:
    """A compiled update of rows of vectors of any length, or of matrices of any shape.

    Args:
        prepare: computes what depends on numbers alone, such as 1 - beta^t.
        move: moves all rows, given what ``prepare`` found.
        dtype: the precision in which ``move`` wants it.
    """

    def __init__(self, prepare: fx.GraphModule, move: Move, dtype: torch.dtype) -> None:
        self.prepare, self.move, self.dtype = prepare, move, dtype
        inputs = prepare.graph.find_nodes(op="placeholder")
        self._used = [bool(node.users) for node in inputs]
        self._last: tuple[list[float], Sequence[Tensor]] | None = None

    def scalars(self, numbers: dict[str, float]) -> Sequence[Tensor]:
        """The kernel's arguments beside the tensors, computed in float64 where they are new."""
        used = list(compress(numbers.values(), self._used))
        last = self._last  # read once: another thread may step with this kernel meanwhile
        if last is None or last[0] != used:
            values = torch.tensor([*numbers.values()], dtype=torch.float64, device="cpu")
            found = self.prepare(*values.unbind())
            last = self._last = used, torch.stack(found).to(self.dtype).unbind() if found else ()
        return last[1]


def as_tensors(numbers: dict[str, float]) -> dict[str, Tensor]:
    return {k: torch.tensor(x, dtype=torch.float64, device="cpu") for k, x in numbers.items()}


_kernels: dict[Any, Kernel | None] = {}
_building = threading.Lock()  # the compiler's settings belong to the whole process


def kernel_for(
    equation: Equation,
    tensors: Sequence[Tensor],
    numbers: dict[str, float],
    options: dict[str, Any],
) -> Kernel | None:
    """The kernel for tensors of these precisions, built at its first use; None if that fails."""
    precisions = (x.dtype for x in tensors)
    key = (equation, *precisions, *map(form_of, tensors), *options.items())
    if key not in _kernels:
        with _building:
            if key not in _kernels:  # nor built while this thread waited
                _kernels[key] = _built(equation, tensors, numbers, options)
    return _kernels[key]


def _built(*what: Any) -> Kernel | None:
    try:
        with warnings.catch_warnings():  # torch's own about itself, which may be errors
            warnings.simplefilter("ignore", DeprecationWarning)
            return _build(*what)
    except Exception as error:  # whatever a compiler, its headers or its cache may raise
        warn_uncompiled(error)
        return None


def warn_uncompiled(error: Exception) -> None:
    reason = (str(error).strip().splitlines() or ["?"])[0]
    warnings.warn(
        f"compiled=True: the compiler cannot be used here ({type(error).__name__}: {reason}). "
        "The same equation runs uncompiled: the same results, several times slower. "
        "torch needs a C++ compiler, such as g++ or clang.",
        RuntimeWarning,
        stacklevel=2,
    )


def _build(
    equation: Equation,
    tensors: Sequence[Tensor],
    numbers: dict[str, float],
    options: dict[str, Any],
) -> Kernel:
    what, dtype = (equation, tensors, numbers, options), arithmetic_dtype(tensors[0].dtype)
    vectors = all(x.ndim == 1 for x in tensors)
    if vectors:
        serial = {"cpp.threads": 1}
        with suppress(Exception):  # the slower way, or its own error, comes next
            _, table = _compiled(*what, width=TILE, **serial)
            prepare, vector = _compiled(*what, **serial)
            scalars = Kernel(prepare, one_by_one(vector, vectors), dtype).scalars(numbers)
            dtypes = [x.dtype for x in tensors]
            return Kernel(prepare, swept(table, vector, dtypes, scalars), dtype)
    # dynamic_threads: follow torch.set_num_threads() instead of today's number of threads.
    prepare, run = _compiled(*what, **{"cpp.dynamic_threads": True})
    return Kernel(prepare, one_by_one(run, vectors), dtype)


def one_by_one(run: Callable[[list[Tensor]], Any], vectors: bool) -> Move:
    """A call for each row."""

    def move(rows: Sequence[Row], scalars: Sequence[Tensor]) -> None:
        for row in map(flat, rows) if vectors else rows:
            run([*row, *scalars])

    return move


def _compiled(
    equation: Equation,
    tensors: Sequence[Tensor],
    numbers: dict[str, float],
    options: dict[str, Any],
    width: int | None = None,
    **settings: Any,
) -> tuple[Callable[..., tuple[Tensor, ...]], Callable[[list[Tensor]], Any]]:
    """What is to be computed of the numbers, and the compiler's function of one row and of that.

    With ``width`` it takes tables of so many columns in the place of vectors.
    """
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    def body(*arguments: Tensor) -> tuple[()]:
        named = dict(zip(numbers, arguments[len(tensors) :], strict=True))
        update(equation, arguments[: len(tensors)], named, options)
        return ()

    settings["size_asserts"] = False
    if hasattr(config.cpp, "enable_floating_point_contract_flag"):
        settings["cpp.enable_floating_point_contract_flag"] = "fast"  # a x + b is rounded once
    mode, arguments = _examples(tensors, numbers, width)
    with torch.no_grad(), tracing(TracingContext(mode)), config.patch(settings):
        graph = make_fx(body, decomposition_table=select_decomp_table())(*arguments)
        divide_once(graph)
        prepare, kernel = split_scalars(graph)
        hold_small(kernel)
        dtype = arithmetic_dtype(tensors[0].dtype)
        inputs = [node.meta["val"] for node in kernel.graph.nodes if node.op == "placeholder"]
        inputs = [x.to(dtype) if x.ndim == 0 else x for x in inputs]
        compiled = compile_fx_inner(kernel, inputs)
        return prepare, getattr(compiled, "current_callable", None) or compiled


def form_of(x: Tensor) -> tuple[bool, ...]:
    """Which axes a kernel leaves open: all but those of length 1."""
    return tuple(n > 1 for n in x.shape) if x.ndim > 1 else (True,) * x.ndim


def _examples(
    tensors: Sequence[Tensor], numbers: dict[str, float], width: int | None
) -> tuple[Any, list[Tensor]]:
    """Stand-ins for tensors whose axes have unknown lengths, and for the numbers.

    Axes of the same place share their length, or have length 1, as row and column sums do.
    With ``width`` vectors are tables, whose second axis has that length.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import (
        DimDynamic,
        ShapeEnv,
        StatelessSymbolicContext,
    )

    mode = FakeTensorMode(shape_env=ShapeEnv())
    arguments = []
    for x in tensors:
        lengths = EXAMPLE_SHAPE if x.ndim > 1 else (EXAMPLE_LENGTH,)
        shape = [n if is_open else 1 for n, is_open in zip(lengths, form_of(x), strict=False)]
        shape += [width] if width else []
        sizes = [DimDynamic.STATIC if n in (1, width) else DimDynamic.DUCK for n in shape]
        lengths = StatelessSymbolicContext(dynamic_sizes=sizes)
        example = torch.empty(shape, dtype=x.dtype, device=x.device)
        arguments.append(mode.from_tensor(example, symbolic_context=lengths))
    return mode, arguments + [mode.from_tensor(x) for x in as_tensors(numbers).values()]


def _length(node: Any) -> int:
    """How many numbers the example of this node has; -1 where it is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return -1
    return value.numel() if isinstance(value.numel(), int) else value.numel().node.hint


def divide_once(module: fx.GraphModule) -> None:
    """Turn x / c into x * (1 / c) where c is small: a division costs five products."""
    div = torch.ops.aten.div.Tensor
    for node in module.graph.find_nodes(op="call_function", target=div):
        x, c = node.args
        if 0 < _length(c) < min(_length(x), LARGE):
            with module.graph.inserting_before(node):
                inverse = module.graph.call_function(torch.ops.aten.reciprocal.default, (c,))
                product = module.graph.call_function(torch.ops.aten.mul.Tensor, (x, inverse))
            inverse.meta["val"], product.meta["val"] = c.meta["val"], node.meta["val"]
            node.replace_all_uses_with(product)
            module.graph.erase_node(node)


def split_scalars(module: fx.GraphModule) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Split a graph into what depends on its numbers alone, and the rest.

    The first part, such as 1 - beta^t, is then computed once a step instead of once a parameter.
    The second takes the tensors and the results of the first.
    """
    nodes = [node for node in module.graph.nodes if node.op != "output"]
    numeric: set[fx.Node] = set()
    for n in nodes:
        number = _length(n) == 1 and n.meta["val"].ndim == 0
        if number and numeric.issuperset(n.all_input_nodes):
            numeric.add(n)
    passed = [n for n in nodes if n in numeric and any(user not in numeric for user in n.users)]
    first, second = fx.Graph(), fx.Graph()
    copies: dict[fx.Graph, dict[fx.Node, fx.Node]] = {first: {}, second: {}}

    def copy(graph: fx.Graph, node: fx.Node) -> None:
        copies[graph][node] = graph.node_copy(node, copies[graph].__getitem__)

    for node in nodes:
        if node in numeric:
            copy(first, node)
    first.output(tuple(copies[first][node] for node in passed))
    for node in nodes:
        if node not in numeric and node.op == "placeholder":
            copy(second, node)
    for node in passed:
        copies[second][node] = second.placeholder(node.name)
        copies[second][node].meta = dict(node.meta)
    for node in nodes:
        if node not in numeric and node.op != "placeholder":
            copy(second, node)
    second.output(())
    return fx.GraphModule(module, first), fx.GraphModule(module, second)


@cache
def _held() -> Any:
    """An operator that does nothing and that the compiler may not see through."""
    from torch._inductor.lowering import register_lowering

    library = torch.library.Library("lossbook", "FRAGMENT")
    library.define("held(Tensor x) -> Tensor")
    library.impl("held", torch.clone, "CompositeExplicitAutograd")
    operator = torch.ops.lossbook.held.default

    def realize(x: Any) -> Any:
        x.realize()
        return x

    register_lowering(operator, type_promotion_kind=None)(realize)
    _held.library = library  # an operator lives as long as its library
    return operator


def hold_small(module: fx.GraphModule) -> None:
    """Compute statistics of a tensor once, and not again for each number that they apply to.

    Left alone, the compiler puts the arithmetic on row and column sums into the innermost loop.
    """
    for node in list(module.graph.nodes):
        users = [user for user in node.users if _length(user) >= LARGE]
        if node.op == "call_function" and users and 0 < _length(node) < LARGE:
            with module.graph.inserting_after(node):
                held = module.graph.call_function(_held(), (node,))
            held.meta["val"] = node.meta["val"]
            for user in users:
                user.replace_input_with(node, held)
    module.recompile()


def _update_all(
    equation: Equation,
    rows: list[Sequence[Tensor]],
    numbers: dict[str, Any],
    options: dict[str, Any],
) -> None:
    for row in rows:
        update(equation, row, numbers, options)


@cache
def _compiled_update_all() -> Callable[..., None]:
    return torch.compile(_update_all, fullgraph=True, dynamic=False)


def update_together(
    equation: Equation,
    rows: list[Sequence[Tensor]],
    numbers: dict[str, float],
    options: dict[str, Any],
) -> None:
    """All rows in one graph: on a GPU the start of a kernel costs more than its guards."""
    try:
        _compiled_update_all()(equation, rows, as_tensors(numbers), options)
    except Exception as error:  # raised while compiling, before anything has changed
        warn_uncompiled(error)
        _update_all(equation, rows, numbers, options)
