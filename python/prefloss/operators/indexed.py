"""Items by index as operators: `take` gives each comparison its item's score, `accumulate` adds up what comes back to an item.

Each is the other's derivative, so first and second derivatives, `vmap` and tracing all come from these two and from the
operators over pairs. `accumulate` adds in float64 and in the comparisons' order: the same bits each time. So do the sums of
`PairStats`, in which the items are the units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .. import _core
from ..pairs import NONE, SUM, Numbers, Pairs, accumulation_dtype
from ..sums import CUBES, WEIGHT_POWERS, Sum
from ..torch_internals import asserts, check_memory
from .operator import Operator
from .paired import COLUMNS, NUMBERS, paired_loss


def check_indices(name: str, index: Tensor, items: int) -> None:
    """IndexError where an index is not in [0, items); on a GPU an assertion, which nobody waits for."""
    outside = (index < 0) | (index >= items)
    if asserts(outside):
        torch._assert_async(~outside.any(), f"{name} has an entry that is not in [0, {items})")
    elif bool(outside.any()):
        position = tuple(outside.nonzero()[0].tolist())
        raise IndexError(
            f"{name} must hold indices of the {items} scores, in [0, {items}), got {int(index[position])} at position "
            f"{position[0] if len(position) == 1 else position}"
        )


def _over_rows(index: Tensor, rows: torch.Size) -> Tensor:
    """The index of one set of comparisons, or of each row, for rows of more dimensions."""
    missing = len(rows) - (index.dim() - 1)
    return index.long().reshape(*index.shape[:-1], *(1,) * missing, index.shape[-1]).expand(*rows, index.shape[-1])


def _take_kernel(items: Tensor, index: Tensor, name: str, count: int) -> Tensor:
    """(..., items) and (..., P): (..., P)."""
    check_memory("scores", items)
    check_memory(name, index)
    check_indices(name, index, items.shape[-1])
    return items.gather(-1, _over_rows(index, items.shape[:-1]))


def _accumulate_kernel(values: Tensor, index: Tensor, items: int) -> Tensor:
    """(..., P) and the index as above: (..., items)."""
    check_memory("the gradient of the scores", values)
    check_memory("an index", index)
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
    "take(Tensor items, Tensor index, str name, SymInt count) -> Tensor",
    kernel=_take_kernel,
    fake=lambda items, index, name, count: items.new_empty((*items.shape[:-1], index.shape[-1])),
    save=lambda tensors, options, output: tensors[
        1:
    ],  # not the items, of which another number may be there in backward
    derivative=lambda ctx, grad: _take_derivative(ctx, grad),
)


def _take_derivative(ctx: Any, grad: Tensor | None) -> Sequence[Tensor | None]:
    (index,), (_, count) = ctx.saved_tensors, ctx.options
    return (None if grad is None else cast(Tensor, accumulate(grad, index, count)),)


accumulate = Operator(
    "accumulate(Tensor values, Tensor index, SymInt items) -> Tensor",
    kernel=_accumulate_kernel,
    fake=lambda values, index, items: values.new_empty((*values.shape[:-1], items)),
    save=lambda tensors, options, output: tensors,
    derivative=lambda ctx, grad: (None if grad is None else take(grad, ctx.saved_tensors[1], "index", grad.shape[-1]),),
)


def _gathered(pairs: Pairs, chosen_index: Tensor, rejected_index: Tensor) -> Pairs:
    """The compared items' scores. Halves become wide first, so that an item's slopes are rounded once, when they are added up."""
    wide = pairs.chosen.to(accumulation_dtype(pairs.chosen.dtype))
    count = wide.shape[-1]
    chosen, rejected = (
        take(wide, index, name, count)
        for index, name in ((chosen_index, "chosen_index"), (rejected_index, "rejected_index"))
    )
    options = (
        option if option is None or not option.is_floating_point() else option.to(accumulation_dtype(option.dtype))
        for option in pairs[2:]
    )
    return Pairs(chosen, rejected, *options)


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
    gathered = _gathered(pairs, chosen_index, rejected_index)
    loss, sums = paired_loss(gathered, numbers, denominator, reduction, return_stats)
    if return_stats:
        given, constant = numbers.for_operator()
        sums = cast(Tensor, indexed_sums(pairs.chosen, chosen_index, rejected_index, *pairs[2:], given, *constant))
    return loss, sums


def _sums_kernel(scores: Tensor, chosen: Tensor, rejected: Tensor, *arguments: Any) -> Tensor:
    """The sums of each row: by the kernel for comparisons by index, or, on devices without one, by operations."""
    count = len(Pairs._fields) - 2
    options, (given, *constant) = arguments[:count], arguments[count:]
    numbers = Numbers(*(constant if given is None else given.tolist()))
    rows = scores.shape[:-1]
    sums = scores.new_empty((rows.numel(), len(Sum)), dtype=torch.float64)
    loss = scores.new_empty((), dtype=accumulation_dtype(scores.dtype))
    columns = [_plain_rows(tensor, rows) for tensor in (scores, chosen, rejected, *options)]
    for result, items, its_chosen, its_rejected, *its_options in zip(sums, *columns, strict=True):
        pairs, given = Pairs(items, None, *its_options), numbers.as_given("mean", 1.0, True)
        call = _core.indexed_call(items, its_chosen, its_rejected, *pairs.with_numbers(numbers), given, True)
        if call is not None:
            _core.indexed_forward(items, its_chosen, its_rejected, *pairs[2:], None, call, loss, None, result)
        else:
            result.copy_(_composed_sums(pairs, its_chosen, its_rejected, numbers))
    return sums.reshape(*rows, len(Sum))


def _plain_rows(tensor: Tensor | None, rows: torch.Size) -> Any:
    """A tensor's rows, of as many dimensions as `rows` has, as plain memory; None for each where it is not given."""
    if tensor is None:
        return (None,) * rows.numel()
    flat = tensor.detach().expand(*rows, tensor.shape[-1]).reshape(rows.numel(), tensor.shape[-1])
    return flat.contiguous().resolve_neg()


indexed_sums = Operator(
    f"indexed_sums(Tensor scores, Tensor chosen_index, Tensor rejected_index, {COLUMNS}, Tensor? numbers, {NUMBERS}) -> Tensor",
    kernel=_sums_kernel,
    fake=lambda scores, *_: scores.new_empty((*scores.shape[:-1], len(Sum)), dtype=torch.float64),
    save=lambda tensors, options, output: (),
    derivative=lambda ctx, grad: (),
    constant=(0,),
    shared=("numbers",),
)


def _composed_sums(pairs: Pairs, chosen_index: Tensor, rejected_index: Tensor, numbers: Numbers) -> Tensor:
    """The sums of one set of comparisons of items."""
    gathered = _gathered(pairs, chosen_index, rejected_index)
    _, sums = paired_loss(gathered, numbers, None, SUM, True)
    if len(pairs.chosen) == 0:
        return sums
    # The difference as it is rounded there; the loss of it in float64, of which nearly equal losses need the digits.
    difference = (gathered.chosen - cast(Tensor, gathered.rejected)).double()
    alone = Pairs(difference, torch.zeros_like(difference), gathered.margin, None, gathered.target)
    uncentred = numbers._replace(center_rewards_coefficient=0.0)
    losses, _ = paired_loss(alone, uncentred, None, NONE, False)
    return _with_items(sums, losses, gathered.weight, (chosen_index, rejected_index), len(pairs.chosen))


# An item has half the weight of its comparisons; one that is in all has half of all, but for rounding.
_ONE_IN_ALL = 1e-9
_EXPONENT, _FINEST, _COARSEST = 0x7FF << 52, 1 << 52, 2045 << 52  # bits of float64, and of the scales that there may be


def _with_items(
    sums: Tensor, losses: Tensor, weight: Tensor | None, index: tuple[Tensor, Tensor], items: int
) -> Tensor:
    """The sums of pairs with items as units, each of which has half of each of its comparisons; mirrors csrc/cpu/indexed.cpp."""
    w = torch.ones_like(losses) if weight is None else weight.double()
    weighted = torch.where(w != 0.0, w * losses, 0.0)  # a comparison of weight 0 counts 0, even if its loss is NaN
    of_items, total = (
        cast(Tensor, accumulate(0.5 * each, index[0], items) + accumulate(0.5 * each, index[1], items))
        for each in (w, weighted)
    )
    there = of_items != 0.0
    mean_loss = torch.where(there, total / of_items, 0.0)
    heaviest = of_items.abs().amax(-1)
    scale = (heaviest.view(torch.int64) & _EXPONENT).clamp(_FINEST, _COARSEST).view(torch.float64)
    scale = torch.where(heaviest == 0.0, 0.0, scale)
    v = torch.where(there, of_items / scale.unsqueeze(-1), 0.0)
    squared_loss, squared = (v.square() * mean_loss).sum(-1), v.square().sum(-1)
    from_mean = torch.where(there, mean_loss - (squared_loss / squared).unsqueeze(-1), 0.0)
    from_loss = losses - (sums[..., Sum.WEIGHTED_LOSS] / sums[..., Sum.WEIGHT]).unsqueeze(-1)
    own = torch.where(w != 0.0, w / scale.unsqueeze(-1) * from_loss, 0.0)
    all_of_one = heaviest >= 0.5 * (1.0 - _ONE_IN_ALL) * sums[..., Sum.WEIGHT].abs()
    both = {which: sums[..., which] for which in Sum}
    both[Sum.UNITS] = there.double().sum(-1)
    both[Sum.WEIGHT_SCALE] = scale
    for power, which in enumerate(WEIGHT_POWERS, 2):
        both[which] = (v**power).sum(-1)
    both[Sum.SQUARED_WEIGHT_LOSS] = squared_loss
    both[Sum.SQUARED_WEIGHT_LOSS_SQUARES] = (v * from_mean).square().sum(-1)
    for power, which in enumerate(CUBES[1:], 1):
        both[which] = (v**3 * from_mean**power).sum(-1)
    both[Sum.LINKED] = sums[..., Sum.COUNT].square() * torch.where(all_of_one, 2.0, 1.0)
    both[Sum.LINKED_SQUARES] = own.square().sum(-1)
    return torch.stack(list(both.values()), dim=-1)
