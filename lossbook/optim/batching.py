"""Cut and glue: an elementwise equation does not care where one tensor ends.

Run as it is, an equation costs some twenty calls per tensor, and its temporaries should fit into
the cache. So small tensors are laid end to end, and on the CPU large ones are cut into blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Row = Sequence[Tensor]  # (theta, g, *memory) of one parameter

SMALL = 2**14  # tensors with fewer numbers are glued together
BLOCK = 2**17  # numbers that are updated at a time


def is_vector(row: Row) -> bool:
    return row[0].ndim == 1


def flat(row: Row) -> Row:
    """A row of contiguous tensors as vectors, any other as it is."""
    return [x.view(-1) for x in row] if all(map(Tensor.is_contiguous, row)) else row


def is_open(row: Row) -> bool:
    """Whether a kernel with open lengths fits: no gaps in the memory, no axis of length 0 or 1."""
    contiguous = all(x.is_contiguous() for x in row)
    return contiguous and row[0].ndim > 0 and all(n > 1 for n in row[0].shape)


def batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Small vectors of one device and precision together, everything else alone."""
    waiting: dict[object, list[Row]] = {}
    for row in rows:
        theta, g = row[:2]
        if theta.numel() >= SMALL or not is_vector(row):
            yield [row]
        else:
            waiting.setdefault((theta.device, theta.dtype, g.dtype), []).append(row)
    for small in waiting.values():
        for start in range(0, len(small), BLOCK // SMALL):
            yield small[start : start + BLOCK // SMALL]


def glued(batch: list[Row], move: Callable[[Row], None]) -> None:
    """Let ``move`` change the vectors of a batch in place, laid end to end."""
    if len(batch) == 1:
        move(batch[0])
        return
    columns = [list(column) for column in zip(*batch, strict=True)]
    whole = [torch.cat(column) for column in columns]
    move(whole)
    lengths = [x.numel() for x in columns[0]]
    for index, (column, changed) in enumerate(zip(columns, whole, strict=True)):
        if index != 1:  # the gradient stays
            torch._foreach_copy_(column, changed.split(lengths))


def blocks(row: Row) -> Iterator[Row]:
    """A long vector on the CPU in pieces, anything else as it is."""
    length = row[0].numel()
    if length <= BLOCK or not is_vector(row) or row[0].device.type != "cpu":
        yield row
        return
    for start in range(0, length, BLOCK):
        yield [x[start : start + BLOCK] for x in row]
