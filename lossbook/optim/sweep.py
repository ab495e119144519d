"""One call moves all parameters: a compiled kernel, swept over a list of vectors.

A model has hundreds of tensors, and most of them are small. A call from Python costs some five
microseconds, and every call starts its threads anew. Plain gradient descent on ten million
parameters loses a third of its time that way. So the list goes to a loop in C++. The loop sees the
vectors end to end, gives each thread an equal share of the whole, up to a tile, and calls the
kernel that the compiler made for one vector on every piece.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from operator import itemgetter
from types import BuiltinFunctionType
from typing import Any

import torch
from torch import Tensor

from lossbook._require import require
from lossbook.optim.batching import Row

Run = Callable[[list[Tensor]], Any]

TILE = 1024  # width of the table as which a kernel sees a long vector
GRAIN = 2**15  # numbers that are worth a thread of their own
LENGTH = 3  # of the examples; a kernel is told it, so it must show among its arguments

SOURCE = """
#include <algorithm>
#include <cstdint>
#include <numeric>

using Kernel = void (*)({types}, int64_t);

extern "C" void sweep(Kernel table, Kernel vector, int64_t rows, char* const* tensors,
                      const int64_t* lengths, char* const* scalars, int64_t threads) {{
    const int64_t total = std::accumulate(lengths, lengths + rows, int64_t(0));
    threads = std::min(threads, total / {grain} + 1);
    const int64_t share = (total + threads - 1) / threads;
    #pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t thread = 0; thread < threads; ++thread) {{
        int64_t begin = thread * share, end = begin + share;
        for (int64_t row = 0; row < rows && end > 0; ++row) {{
            const int64_t length = lengths[row];
            auto border = [&](int64_t x) {{  // between tiles, so that no bit depends on the threads
                return x >= length ? length : std::max(x, int64_t(0)) / {tile} * {tile};
            }};
            int64_t at = border(begin), stop = border(end);
            char* const* tensor = tensors + row * {width};
            if (const int64_t tiles = (stop - at) / {tile}) {{
                table({table}, tiles);
                at += tiles * {tile};
            }}
            if (at < stop) vector({vector}, stop - at);
            begin -= length;
            end -= length;
        }}
    }}
}}
"""


def swept(
    table: Run, vector: Run, dtypes: Sequence[torch.dtype], scalars: Sequence[Tensor]
) -> Callable[[Sequence[Row], Sequence[Tensor]], None]:
    """A function of rows and scalars that moves all rows in one call.

    Args:
        table: what the compiler returned for a graph whose arguments are tables of one length,
            ``TILE`` columns wide, and then numbers, which are tensors of rank 0. It must have
            become one kernel, without threads of its own. The inner loop of a table has a length
            that the compiler knows: that is worth 4 to 9 % of a step.
        vector: the same for vectors, which is used for what is left over.
        dtypes: precisions of the tensors of a row.
        scalars: examples of the numbers.

    Returns:
        The function. It goes by addresses: the tensors of a row must be contiguous, of these
        precisions, equally long, and have their numbers in the memory of the CPU.

    Raises:
        Exception: whatever a compiler raises; ValueError where one of the two is no such function.
    """
    from torch._inductor.codecache import CppCodeCache

    found = [
        kernel_of(table, dtypes, (LENGTH, TILE), scalars),
        kernel_of(vector, dtypes, (LENGTH,), scalars),
    ]
    kernels, orders = zip(*found, strict=True)
    sizes = [f"tensor[{i}] + at * {dtype.itemsize}" for i, dtype in enumerate(dtypes)]
    calls = [
        ", ".join(sizes[i] if i < len(sizes) else f"scalars[{i - len(sizes)}]" for i in order)
        for order in orders
    ]
    source = SOURCE.format(
        types=", ".join(["char*"] * len(orders[0])),
        table=calls[0],
        vector=calls[1],
        width=len(dtypes),
        tile=TILE,
        grain=GRAIN,
    )
    libraries = [ctypes.CDLL(kernel.__self__.__file__) for kernel in kernels]
    addresses = [ctypes.cast(library.kernel, ctypes.c_void_p).value for library in libraries]
    sweep = CppCodeCache.load(source).sweep
    sweep.restype, address, number = None, ctypes.c_void_p, ctypes.c_int64
    sweep.argtypes = [address, address, number, address, address, address, number]

    def move(rows: Sequence[Row], scalars: Sequence[Tensor]) -> None:
        tensors = array("q", list(map(Tensor.data_ptr, chain.from_iterable(rows))))
        lengths = array("q", list(map(Tensor.numel, map(itemgetter(0), rows))))
        if 0 in tensors:
            refuse_nowhere(rows)
        values = array("q", list(map(Tensor.data_ptr, scalars)))
        pointers = (x.buffer_info()[0] for x in (tensors, lengths, values))
        sweep(*addresses, len(rows), *pointers, torch.get_num_threads())

    return move


def refuse_nowhere(rows: Sequence[Row]) -> None:
    """A tensor without an address has no numbers here, unless it is empty."""
    for tensor in chain.from_iterable(rows):
        here = tensor.data_ptr() or not tensor.numel()
        require(here, "tensor", type(tensor), "numbers in the memory of the CPU (compiled=True)")


def kernel_of(
    run: Run, dtypes: Sequence[torch.dtype], shape: tuple[int, ...], scalars: Sequence[Tensor]
) -> tuple[Callable[..., None], list[int]]:
    """The one C++ function that ``run`` calls, and the order in which it takes the tensors.

    The order is observed: ``run`` is called with a function in the kernel's place that looks at
    its arguments.
    """
    names = getattr(run, "__func__", run).__globals__
    kernels = [name for name, value in names.items() if is_kernel(value)]
    require(len(kernels) == 1, "run", kernels, "a function with one kernel")
    examples = [*(torch.zeros(shape, dtype=dtype) for dtype in dtypes), *scalars]
    places, seen = {id(x): i for i, x in enumerate(examples)}, []
    (name,) = kernels
    kernel, names[name] = names[name], lambda *arguments: seen.append(arguments)
    try:
        run(list(examples))
    finally:
        names[name] = kernel
    ((*tensors, length),) = seen
    order = [places.get(id(x)) for x in tensors]
    require(length == LENGTH and None not in order, "run", seen, "a kernel of tensors and a length")
    return kernel, order


def is_kernel(value: Any) -> bool:
    is_function = isinstance(value, BuiltinFunctionType) and value.__name__ == "kernel"
    return is_function and hasattr(value.__self__, "__file__")
