"""The loss over comparisons of items by index: a leaderboard, a tournament, a catalogue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _core, arguments, composed
from .eager import IndexedLoss
from .operators.indexed import indexed_loss
from .paired import Reduction, Result
from .pairs import DEFAULTS, Pairs, accumulation_dtype
from .stats import PairStats
from .sums import dtype_of_sums
from .torch_internals import is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .paired import PairedOptions


indexed_call = composed.unless_asked_for(_core.indexed_call)


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
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss(scores[chosen_index], scores[rejected_index])`, without these two tensors in memory.

    The gradient has one entry an item. Its bits are the same each time and for any number of threads, however often an item is
    compared. An item may be compared with itself.

    >>> import prefloss, torch
    >>> scores = torch.zeros(3, requires_grad=True)
    >>> loss = prefloss.bradley_terry_loss_indexed(scores, torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2]))
    >>> loss.backward()
    >>> scores.grad  # the first item has won twice, the last one has lost twice
    tensor([-0.3333,  0.0000,  0.3333])

    Args:
        scores: (n,), one an item; float64, float32, bfloat16 or float16. The Bradley-Terry strengths, as logarithms.
        chosen_index: (P,) int64 or int32, in [0, n): the item preferred in each comparison. -1 does not mean the last item.
        rejected_index: the other item; the same shape, dtype and device.
        margin, weight, target: a number where `bradley_terry_loss` takes one, or of shape (P,). Target 1/2 is a tie.

    The other arguments, the result and the errors are those of `bradley_terry_loss`; the units of `PairStats` are the items. The
    loss and its gradient are computed in one pass, with memory for the items and not for the comparisons. With
    ``reduction="none"``, a margin that requires a gradient, and under a transform or compiler, the scores are gathered first. On
    a GPU an item's slopes are added as integers, so their sum is exact; this takes 50 to 400 bytes an item (float64: up to 3 kB),
    and where there are many comparisons an item up to 32 times as much, but then less than 2 bytes a comparison. There the
    scores are also gathered first with ``return_stats``, and where the items would take more than 256 MiB and more than 64 bytes a
    comparison.

    If an optimiser needs the loss of the same comparisons many times, `merge_comparisons` makes one of those that are equal.

    Raises:
        IndexError: an index that is not in [0, n); on a GPU it is an assertion on the device. No memory is read at such an index.

    Sources: Bradley & Terry 1952; Zermelo 1929 (the same likelihood, for tournaments).
    """
    call = None
    eager = not is_compiling() and not is_watched()
    indices = chosen_index, rejected_index
    if eager:
        options = beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats
        call = indexed_call(scores, *indices, margin, weight, target, options, False)
    pairs = Pairs.of(scores, None, margin, weight, target)
    if call is None:
        numbers = arguments.check_numbers(margin, target, beta, label_smoothing, flip_rate, center_rewards_coefficient)
        code = arguments.check_reduction(reduction)
        arguments.check_flag("return_stats", return_stats)
        pairs = _checked(pairs, *indices)
        arguments.check_range(numbers, pairs.chosen)
        divisor = arguments.check_denominator(denominator, code, pairs.chosen)
        composes = composed.is_needed(pairs.chosen)
        if eager and not composes:
            checked = numbers.as_given(reduction, divisor, return_stats)
            call = indexed_call(pairs.chosen, *indices, *pairs.with_numbers(numbers), checked, True)
    if call is None:
        compute = composed.indexed if composes else indexed_loss
        loss, sums = compute(pairs, *indices, numbers, divisor, code, return_stats)
    else:
        given = pairs.chosen if torch.is_grad_enabled() else pairs.chosen.detach()  # without slopes: half the time
        loss, sums = IndexedLoss.apply(given, *indices, *pairs[2:], call)
    if pairs.chosen is not scores:
        loss = loss.to(accumulation_dtype(scores.dtype))
    return (loss, PairStats(sums.detach())) if return_stats else loss


def _checked(pairs: Pairs, chosen_index: Tensor, rejected_index: Tensor) -> Pairs:
    """Scores and options, of right dtypes and shapes. float64 weights, as merged ones may be, make all of it float64."""
    scores = arguments.check_scores(pairs.chosen)
    arguments.check_index_pair(chosen_index, rejected_index, scores)
    arguments.check_no_gradient("weight", pairs.weight)
    arguments.check_no_gradient("target", pairs.target)
    if isinstance(pairs.weight, Tensor) and pairs.weight.dtype is torch.float64:
        scores = scores.double()
    shape = chosen_index.shape
    return Pairs(
        scores,
        None,
        arguments.per_pair("margin", pairs.margin, scores, shape),
        arguments.per_pair("weight", pairs.weight, scores, shape, mask=True),
        arguments.per_pair("target", pairs.target, scores, shape),
    )


def merge_comparisons(
    chosen_index: Tensor, rejected_index: Tensor, *, weight: Tensor | None = None, target: Tensor | None = None
) -> Comparisons:
    """Makes one of all comparisons of the same two items in the same order, with the sum of their weights and their mean target.

    The loss is linear in both, so it stays the same for any scores and options, with less work: two million comparisons of 200
    items become 39,800 at most. Do this once, and use the result in each step:

    >>> import prefloss, torch
    >>> comparisons = prefloss.merge_comparisons(torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0]))
    >>> comparisons["chosen_index"], comparisons["weight"]
    (tensor([0, 1]), tensor([2., 1.]))
    >>> prefloss.bradley_terry_loss_indexed(torch.tensor([1.0, 0.0]), **comparisons)
    tensor(0.6466)

    `PairStats` counts merged comparisons as one. Its units are the items, so its standard error stays valid: comparisons of the
    same two items count as dependent in any case.

    Args:
        chosen_index, rejected_index: (P,) int64 or int32, >= 0.
        weight: (P,), finite and >= 0; any real dtype, or bool. Not given: 1 each.
        target: (P,), any real dtype.

    Returns:
        A dictionary of arguments of `bradley_terry_loss_indexed`: both indices, sorted; weight; and target, or None where none is
        given. Comparisons whose weights add up to 0 are left out. Weight and target are float32, or float64 where one given is, or
        where float32 cannot hold a sum of weights exactly. On devices that may have no float64 (Apple's and Intel's GPUs) they are
        computed on the CPU, and a sum that float32 cannot hold is rounded to it.

    Raises:
        TypeError, ValueError: shapes, dtypes, devices, values that are not accepted; on those devices also a sum of weights that
            overflows float32.
        IndexError: a negative index.
    """
    arguments.check_index_pair(chosen_index, rejected_index)
    dtype = torch.float32
    for value in (weight, target):
        if isinstance(value, Tensor) and value.dtype is torch.float64:
            dtype = torch.float64
    counts = arguments.check_to_be_merged("weight", weight, chosen_index)
    targets = arguments.check_to_be_merged("target", target, chosen_index)
    device = chosen_index.device
    may_be_wide = torch.float64 in (dtype, dtype_of_sums(device))
    if not may_be_wide:
        chosen_index, rejected_index = chosen_index.cpu(), rejected_index.cpu()
    counts, targets = (each if each is None else each.to(chosen_index.device).double() for each in (counts, targets))
    if counts is None:
        counts = torch.ones_like(chosen_index, dtype=torch.float64)
    if not bool((counts >= 0).all() & (counts < torch.inf).all()):
        raise ValueError("weight must be finite and >= 0 to be added up")
    if bool((chosen_index < 0).any() | (rejected_index < 0).any()):
        raise IndexError("chosen_index and rejected_index must be >= 0, got a negative one")
    # Items by their places among those that are there, so that a pair of them is one number, however large the indices are.
    items, place = torch.unique(torch.cat((chosen_index, rejected_index)).long(), return_inverse=True)
    chosen, rejected = place.chunk(2) if len(place) else (place, place)
    pairs, place = torch.unique(chosen * len(items) + rejected, return_inverse=True)
    total = counts.new_zeros(pairs.shape).index_add_(0, place, counts)
    if not bool((total < torch.inf).all()):
        raise ValueError("weight must have finite sums: those of comparisons of the same two items add up to inf")
    kept = total > 0
    pairs, weights = pairs[kept], total[kept]
    if may_be_wide and not torch.equal(weights.float().double(), weights):
        dtype = torch.float64
    if dtype is torch.float32 and bool(weights.float().isinf().any()):
        raise ValueError(
            f"weight must have sums that are finite in float32 on {device}, which may have no float64, got {weights.max().item()!r}"
        )
    merged: Comparisons = {
        "chosen_index": items[pairs // max(len(items), 1)].to(device, chosen_index.dtype),
        "rejected_index": items[pairs % max(len(items), 1)].to(device, rejected_index.dtype),
        "weight": weights.to(device, dtype),
        "target": None,
    }
    if targets is not None:
        products = torch.where(counts == 0, 0.0, counts * targets)  # one that counts nothing may be NaN
        merged["target"] = (counts.new_zeros(total.shape).index_add_(0, place, products)[kept] / weights).to(
            device, dtype
        )
    return merged
