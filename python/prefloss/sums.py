"""The sums that every call gathers for `PairStats`: what they are, and how those of two sets of pairs become one."""

from __future__ import annotations

import math
from enum import IntEnum

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _core
from .torch_internals import is_watched

__all__ = ["Sum", "merged_sums", "scaled_rewards", "sums_of_no_pairs", "total_of"]


class Sum(IntEnum):
    """Where each sum lies in `PairStats.sums`; the kernels (csrc/pairs.h) and `prefloss.reference` write the same order.

    w is a pair's weight, l its loss without centring, a and b its chosen and rejected reward. Only pairs with w != 0 are counted.
    A unit is what was drawn independently: a pair; a group with all its pairs; or an item that is compared by index, which
    has half the weight of each of its comparisons. W is the weight of a unit's pairs, v = W / WEIGHT_SCALE, L their mean
    loss, and M = SQUARED_WEIGHT_LOSS / WEIGHT_SQUARED. "Squares" are of what a number differs from the mean by, so that they
    keep their digits wherever the mean lies. Counts and reward sums are unweighted.
    """

    COUNT = 0
    WEIGHT = 1  # sum of w
    WEIGHT_CORRECT = 2  # sum of w over the pairs with a > b
    WEIGHT_TIED = 3  # sum of w over the pairs with a = b
    WEIGHTED_LOSS = 4  # sum of w l
    UNITS = 5  # with W != 0
    WEIGHT_SCALE = 6  # a power of two near the greatest |W|, so that v^5 is a number; 0 where there are no pairs
    WEIGHT_SQUARED = 7  # sum of v^2
    WEIGHT_CUBED = 8
    WEIGHT_FOURTH = 9
    WEIGHT_FIFTH = 10
    SQUARED_WEIGHT_LOSS = 11  # sum of v^2 L
    SQUARED_WEIGHT_LOSS_SQUARES = 12  # sum of v^2 (L - M)^2
    CUBED_WEIGHT_LOSS = 13  # sum of v^3 (L - M)
    CUBED_WEIGHT_LOSS_SQUARES = 14  # sum of v^3 (L - M)^2
    CUBED_WEIGHT_LOSS_CUBES = 15  # sum of v^3 (L - M)^3
    CORRECT = 16  # pairs with a > b
    TIED = 17  # pairs with a = b
    DIFFERENCE = 18  # sum of a - b
    DIFFERENCE_SQUARES = 19
    CHOSEN = 20  # sum of a
    CHOSEN_SQUARES = 21
    REJECTED = 22  # sum of b
    REJECTED_SQUARES = 23
    MINIMUM = 24  # of all rewards; +inf where there are no pairs
    MAXIMUM = 25  # -inf where there are no pairs
    LIST_VARIANCE = (
        26  # of the mean loss of one group of two ranks, by rows and columns; tells nothing of several groups
    )
    LIST_VARIANCE_ERROR = 27  # the squares of that variance's two parts, each divided by its degrees of freedom
    LINKED = (
        28  # of comparisons by index: COUNT^2, for each set of its own; twice that where one item is in all of a set
    )
    LINKED_SQUARES = 29  # and their sum of (w / WEIGHT_SCALE)^2 (l - mean loss)^2


def sums_of_no_pairs(device: torch.device | str | int | None = None) -> Tensor:
    sums = [0.0] * len(Sum)
    sums[Sum.MINIMUM], sums[Sum.MAXIMUM] = math.inf, -math.inf
    place = torch.get_default_device() if device is None else torch.device(device)
    return torch.tensor(sums, dtype=dtype_of_sums(place), device=device)


def dtype_of_sums(device: torch.device) -> torch.dtype:
    """float64 on devices that certainly have it, as `prefloss.reference` has it."""
    return torch.float64 if device.type in ("cpu", "cuda", "meta") else torch.float32


def scaled_rewards(sums: Tensor, by: float) -> Tensor:
    """The sums where every reward is `by` > 0 times what it was, and the losses are the same."""
    powers = {which: 1 for which in (Sum.DIFFERENCE, Sum.CHOSEN, Sum.REJECTED, Sum.MINIMUM, Sum.MAXIMUM)}
    powers |= {which: 2 for which in (Sum.DIFFERENCE_SQUARES, Sum.CHOSEN_SQUARES, Sum.REJECTED_SQUARES)}
    scaled = [sums[..., which] * by ** powers[which] if which in powers else sums[..., which] for which in Sum]
    return torch.stack(scaled, dim=-1)


def merged_sums(mine: Tensor, theirs: Tensor) -> Tensor:
    """The sums of both sets of pairs (Chan, Golub & LeVeque 1983): at once on the host, else by operators that wait for nothing."""
    if mine.is_cpu and not is_compiling() and not is_watched():
        result = torch.empty_like(mine)
        if _core.merge_sums(mine, theirs, result):
            return result
    both = {which: mine[..., which] + theirs[..., which] for which in Sum}  # right where sums only add up
    _merge_units(both, mine, theirs)
    counts = mine[..., Sum.COUNT], theirs[..., Sum.COUNT]
    for total, of_squares in (
        (Sum.DIFFERENCE, Sum.DIFFERENCE_SQUARES),
        (Sum.CHOSEN, Sum.CHOSEN_SQUARES),
        (Sum.REJECTED, Sum.REJECTED_SQUARES),
    ):
        share = counts[0] * counts[1] / (counts[0] + counts[1])
        distance = theirs[..., total] / counts[1] - mine[..., total] / counts[0]
        both[of_squares] = both[of_squares] + torch.where(share > 0.0, distance.square() * share, 0.0)
    both[Sum.MINIMUM] = torch.minimum(mine[..., Sum.MINIMUM], theirs[..., Sum.MINIMUM])
    both[Sum.MAXIMUM] = torch.maximum(mine[..., Sum.MAXIMUM], theirs[..., Sum.MAXIMUM])
    return torch.stack(list(both.values()), dim=-1)


def total_of(sums: Tensor) -> Tensor:
    """The sums of all pairs of several sets, which lie along dimension 0: halves of them are merged, as often as it takes."""
    if not len(sums):
        return sums_of_no_pairs(sums.device)
    while len(sums) > 1:
        even, odd = sums[: len(sums) // 2 * 2], sums[len(sums) // 2 * 2 :]
        sums = torch.cat([merged_sums(even[0::2], even[1::2]), odd])
    return sums[0]


def _merge_units(both: dict[Sum, Tensor], mine: Tensor, theirs: Tensor) -> None:
    """The sums over units, in terms of the greater scale and about the common mean."""
    scale = torch.maximum(mine[..., Sum.WEIGHT_SCALE], theirs[..., Sum.WEIGHT_SCALE])
    both[Sum.WEIGHT_SCALE] = scale
    rescaled = []
    for sums in (mine, theirs):
        its = sums[..., Sum.WEIGHT_SCALE]
        ratio = torch.where(its == scale, 1.0, its / scale)  # 1 where neither has pairs
        rescaled.append({which: sums[..., which] * ratio**power for which, power in _POWERS.items()})
    for which in _POWERS:
        both[which] = rescaled[0][which] + rescaled[1][which]
    weight, loss = ([sums[which] for sums in rescaled] for which in (Sum.WEIGHT_SQUARED, Sum.SQUARED_WEIGHT_LOSS))
    total = weight[0] + weight[1]
    empty = (weight[0] == 0.0) | (weight[1] == 0.0)
    # From mean to mean, over the weight of all.
    step = torch.where(empty, 0.0, (loss[1] / weight[1] - loss[0] / weight[0]) / total)
    squares = torch.where(empty, 0.0, step.square() * weight[0] * weight[1] * total)
    both[Sum.SQUARED_WEIGHT_LOSS_SQUARES] = both[Sum.SQUARED_WEIGHT_LOSS_SQUARES] + squares
    shifted = [
        shifted_cubes([sums[which] for which in CUBES], by)
        for sums, by in zip(rescaled, (-step * weight[1], step * weight[0]), strict=True)
    ]
    for which, one, other in zip(CUBES, *shifted, strict=True):
        both[which] = one + other


def shifted_cubes(cubes: list[Tensor] | list[float], by: Tensor | float) -> tuple[Tensor | float, ...]:
    """The sums of v^3 (x + by)^k from those of v^3 x^k, k = 0 ... 3."""
    zeroth, first, second, third = cubes
    return (
        zeroth,
        first + by * zeroth,
        second + by * (2.0 * first + by * zeroth),
        third + by * (3.0 * second + by * (3.0 * first + by * zeroth)),
    )


# The sums of v^2 ... v^5, and those of v^3 (L - M)^k for k = 0 ... 3.
WEIGHT_POWERS = (Sum.WEIGHT_SQUARED, Sum.WEIGHT_CUBED, Sum.WEIGHT_FOURTH, Sum.WEIGHT_FIFTH)
CUBES = (Sum.WEIGHT_CUBED, Sum.CUBED_WEIGHT_LOSS, Sum.CUBED_WEIGHT_LOSS_SQUARES, Sum.CUBED_WEIGHT_LOSS_CUBES)
# Of v in each sum over units.
_POWERS = {
    Sum.WEIGHT_SQUARED: 2,
    Sum.SQUARED_WEIGHT_LOSS: 2,
    Sum.SQUARED_WEIGHT_LOSS_SQUARES: 2,
    Sum.LINKED_SQUARES: 2,
    **dict.fromkeys(CUBES, 3),
    Sum.WEIGHT_FOURTH: 4,
    Sum.WEIGHT_FIFTH: 5,
}
