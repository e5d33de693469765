"""Items by index as operators: `take` gives each comparison its item's score, `accumulate` adds up what comes back to an item.

Each is the other's derivative, so first and second derivatives, `vmap` and tracing all come from these two and from the
operators over pairs. `accumulate` adds in float64 and in the comparisons' order: the same bits each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..pairs import Numbers, Pairs, accumulation_dtype
from .operator import Operator
from .paired import paired_loss


def check_indices(name: str, index: Tensor, items: int) -> None:
    """IndexError where an index is not in [0, items); on a GPU an assertion, which nobody waits for."""
    outside = (index < 0) | (index >= items)
    if not index.is_cpu:
        torch._assert_async(~outside.any(), f"{name} has an entry that is not in [0, {items})")
    elif bool(outside.any()):
        position = tuple(outside.nonzero()[0].tolist())
        raise IndexError(
            f"{name} must hold indices of the {items} scores, in [0, {items}), got {int(index[position])} at position "
            f"{position[0] if len(position) == 1 else position}"
        )


def _check_memory(name: str, tensor: Tensor) -> None:
    """torch itself would read through a null pointer."""
    if tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0:
        raise ValueError(f"{name} has no memory (a null pointer); a plain dense tensor is needed")


def _over_rows(index: Tensor, rows: torch.Size) -> Tensor:
    """The index of one set of comparisons, or of each row, for rows of more dimensions."""
    missing = len(rows) - (index.dim() - 1)
    return index.long().reshape(*index.shape[:-1], *(1,) * missing, index.shape[-1]).expand(*rows, index.shape[-1])


def _take_kernel(items: Tensor, index: Tensor, name: str) -> Tensor:
    """(..., items) and (..., P): (..., P)."""
    _check_memory("scores", items)
    _check_memory(name, index)
    check_indices(name, index, items.shape[-1])
    return items.gather(-1, _over_rows(index, items.shape[:-1]))


def _accumulate_kernel(values: Tensor, index: Tensor, items: int) -> Tensor:
    """(..., P) and the index as above: (..., items)."""
    _check_memory("the gradient of the scores", values)
    _check_memory("an index", index)
    rows = values.shape[:-1].numel()
    first = torch.arange(rows, device=index.device).mul(items).unsqueeze(1)
    flat = (_over_rows(index, values.shape[:-1]).reshape(rows, values.shape[-1]) + first).flatten()
    total = values.new_zeros(rows * items, dtype=torch.float64)
    if values.is_cpu:
        total.index_add_(0, flat, values.flatten().double())
    else:  # sorted by index first, which on a GPU is what makes the order the same each time
        total.index_put_((flat,), values.flatten().double(), accumulate=True)
    return total.to(values.dtype).reshape(*values.shape[:-1], items)


take = Operator(
    "take(Tensor items, Tensor index, str name) -> Tensor",
    kernel=_take_kernel,
    fake=lambda items, index, name: items.new_empty((*items.shape[:-1], index.shape[-1])),
    save=lambda tensors, options, output: tensors,
    derivative=lambda ctx, grad: _take_derivative(ctx, grad),
)


def _take_derivative(ctx: Any, grad: Tensor | None) -> Sequence[Tensor | None]:
    items, index = ctx.saved_tensors
    return (None if grad is None else cast(Tensor, accumulate(grad, index, items.shape[-1])),)


accumulate = Operator(
    "accumulate(Tensor values, Tensor index, SymInt items) -> Tensor",
    kernel=_accumulate_kernel,
    fake=lambda values, index, items: values.new_empty((*values.shape[:-1], items)),
    save=lambda tensors, options, output: tensors,
    derivative=lambda ctx, grad: (None if grad is None else take(grad, ctx.saved_tensors[1], "index"),),
)


def indexed_loss(
    pairs: Pairs,
    chosen_index: Tensor,
    rejected_index: Tensor,
    numbers: Numbers,
    denominator: Tensor | float | None,
    reduction: int,
    return_stats: bool,
) -> tuple[Tensor, Tensor]:
    """(loss, sums) by the operators. `pairs.chosen` has the scores, one an item."""
    scores = pairs.chosen
    wide = scores.to(
        accumulation_dtype(scores.dtype)
    )  # halves are rounded once, after an item's slopes have been added up
    chosen, rejected = take(wide, chosen_index, "chosen_index"), take(wide, rejected_index, "rejected_index")
    margin, weight, target = (
        option if option is None or not option.is_floating_point() else option.to(accumulation_dtype(option.dtype))
        for option in pairs[2:]
    )
    gathered = Pairs(chosen, rejected, margin, weight, target)
    return paired_loss(gathered, numbers, denominator, reduction, return_stats)
