"""The loss over comparisons of items by index: a leaderboard, a tournament, a catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, cast, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import arguments, ops
from .autograd import IndexedLoss
from .indexing import take, widened
from .kernels import Options
from .paired import Reduction, Result, check_options
from .stats import PairStats
from .torch_internals import is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .paired import PairedOptions


class Comparisons(TypedDict):
    """What `merge_comparisons` returns: arguments of `bradley_terry_loss_indexed`."""

    chosen_index: Tensor
    rejected_index: Tensor
    weight: Tensor
    target: Tensor | None


@overload
def bradley_terry_loss_indexed(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[PairedOptions],
) -> Tensor: ...
@overload
def bradley_terry_loss_indexed(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    *,
    return_stats: Literal[True],
    **options: Unpack[PairedOptions],
) -> tuple[Tensor, PairStats]: ...
@overload
def bradley_terry_loss_indexed(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    *,
    return_stats: bool,
    **options: Unpack[PairedOptions],
) -> Result: ...
def bradley_terry_loss_indexed(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    *,
    margin: Tensor | float | None = None,
    weight: Tensor | None = None,
    target: Tensor | float | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss(scores[chosen_index], scores[rejected_index])`, without those two in memory.

    The gradient has one entry an item. However often an item is compared, it is the same bits each time and for any number of
    threads. An item may be compared with itself.

    Args:
        scores: (n,), one an item; float64, float32, bfloat16 or float16. The Bradley-Terry strengths, as logarithms.
        chosen_index: (P,) int64 or int32, in [0, n): the item preferred in each comparison. -1 does not mean the last item.
        rejected_index: the other item; the same shape, dtype and device.
        margin, weight, target: a number where `bradley_terry_loss` takes one, or of shape (P,). Target 1/2 is a tie.

    The other arguments, the result and the errors are those of `bradley_terry_loss`. On the CPU the loss and its gradient are
    computed in one pass, in memory for the items and not for the comparisons; with ``reduction="none"``, a margin that asks
    for a gradient, under a transform or compiler, and on GPUs the scores are gathered first.

    An optimiser that asks for the loss of the same comparisons again and again can have those of equal items counted
    once: see `merge_comparisons`.

    Raises:
        IndexError: an index that is not in [0, n); on a GPU it is an assertion on the device. Nothing is read by it.

    Sources: Bradley & Terry 1952; Zermelo 1929 (the same likelihood, for tournaments).
    """
    numbers = check_options(margin, target, beta, label_smoothing, center_rewards_coefficient, reduction, return_stats)
    margin = margin if isinstance(margin, Tensor) else None
    target = target if isinstance(target, Tensor) else None
    scores = arguments.check_scores(scores)
    arguments.check_index_pair(chosen_index, rejected_index, scores)
    for name, value in (("margin", margin), ("weight", weight), ("target", target)):
        arguments.check_per_pair(name, value, scores, chosen_index.shape, mask=name == "weight")
    arguments.check_no_gradient("weight", weight)
    arguments.check_no_gradient("target", target)
    arguments.check_denominator(denominator, reduction, scores)
    options = Options(*numbers, reduction, return_stats)
    margin, weight, target = (widened(value) for value in (margin, weight, target))
    if (
        scores.is_cpu
        and reduction != "none"
        and not is_compiling()
        and not is_watched()
        and not (margin is not None and margin.requires_grad and torch.is_grad_enabled())
    ):
        loss, sums = IndexedLoss.apply(
            scores, chosen_index, rejected_index, margin, weight, target, ops.as_tensor(denominator, scores), options
        )
    else:
        wide = widened(scores)  # half precision is rounded once, after an item's slopes have been added up
        chosen, rejected = take(wide, chosen_index, "chosen_index"), take(wide, rejected_index, "rejected_index")
        loss, sums = ops.loss(chosen, rejected, margin, weight, target, denominator, options)
    return (loss, PairStats(sums)) if return_stats else cast(Tensor, loss)


def merge_comparisons(
    chosen_index: Tensor, rejected_index: Tensor, *, weight: Tensor | None = None, target: Tensor | None = None
) -> Comparisons:
    """Comparisons of the same two items, in the same order, as one, with the sum of their weights and the mean of their targets.

    The loss is linear in both, so it stays what it was, whatever the scores and the other options are, at a fraction of the
    work: two million comparisons of 200 items are 39,800 at most. Do this once, and then

        comparisons = prefloss.merge_comparisons(chosen_index, rejected_index)
        loss = prefloss.bradley_terry_loss_indexed(scores, **comparisons)  # in each step

    `PairStats` would count merged comparisons as one: take the standard error from those that were collected.

    Args:
        chosen_index, rejected_index: (P,) int64 or int32, >= 0.
        weight: (P,), finite and >= 0: floating-point or bool. Not given: 1 each.
        target: (P,), floating-point.

    Returns:
        A dictionary of `bradley_terry_loss_indexed`'s arguments: both indices, sorted, weight (float32, or float64 where one
        of those given is; those of sum 0 are left out) and target (or None, where none is given).

    Raises:
        TypeError, ValueError: shapes, dtypes, devices, values that are not accepted. IndexError: a negative index.
    """
    arguments.check_index_pair(chosen_index, rejected_index)
    dtype = torch.float32
    for name, value in (("weight", weight), ("target", target)):
        arguments.check_to_be_merged(name, value, chosen_index, mask=name == "weight")
        arguments.check_no_gradient(name, value)
        dtype = dtype if value is None else torch.promote_types(dtype, value.dtype)
    counts = torch.ones_like(chosen_index, dtype=torch.float64) if weight is None else weight.detach().double()
    if chosen_index.numel() == 0:
        return {
            "chosen_index": chosen_index,
            "rejected_index": rejected_index,
            "weight": counts.to(dtype),
            "target": target,
        }
    if not bool((counts >= 0).all() & (counts < torch.inf).all()):
        raise ValueError("weight must be finite and >= 0 to be added up")
    if bool((torch.minimum(chosen_index, rejected_index) < 0).any()):
        raise IndexError("chosen_index and rejected_index must be >= 0, got a negative one")
    items = 1 + int(torch.maximum(chosen_index, rejected_index).max())
    pairs, place = torch.unique(chosen_index.long() * items + rejected_index.long(), return_inverse=True)
    total = counts.new_zeros(pairs.shape).index_add_(0, place, counts)
    kept = total > 0
    merged: Comparisons = {
        "chosen_index": (pairs // items)[kept].to(chosen_index.dtype),
        "rejected_index": (pairs % items)[kept].to(rejected_index.dtype),
        "weight": total[kept].to(dtype),
        "target": None,
    }
    if target is not None:
        weighted = counts.new_zeros(pairs.shape).index_add_(0, place, counts * target.detach().double())
        merged["target"] = (weighted / total)[kept].to(dtype)
    return merged
