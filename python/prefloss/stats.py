"""What one pass over the pairs says about the empirical loss: its value, its standard error, accuracy, and rewards.

The kernels fill one float64 tensor, an entry for each `Sum`; `PairStats` wraps it and does the (few) divisions when
asked.
"""

from __future__ import annotations

import math
from enum import IntEnum
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

__all__ = ["PairStats", "Sum"]


class Sum(IntEnum):
    """Where each sum lies in `PairStats.sums`; the kernels and `prefloss.reference` write the same order.

    w is a pair's weight, v = w / WEIGHT_SCALE, l its loss without centring, a and b its chosen and rejected reward. Only
    pairs with w != 0 are counted. "Squares" are of what a number differs from the mean by, so that they keep their
    digits wherever the mean lies. Counts and reward sums are unweighted.
    """

    COUNT = 0
    WEIGHT = 1  # sum of w
    WEIGHT_CORRECT = 2  # sum of w over the pairs with a > b
    WEIGHT_TIED = 3  # sum of w over the pairs with a = b
    WEIGHTED_LOSS = 4  # sum of w l
    WEIGHT_SCALE = 5  # a power of two near the greatest |w|, so that v^2 is a number; 0 where there are no pairs
    WEIGHT_SQUARED = 6  # sum of v^2
    SQUARED_WEIGHT_LOSS = 7  # sum of v^2 l
    SQUARED_WEIGHT_LOSS_SQUARES = 8  # sum of v^2 (l - SQUARED_WEIGHT_LOSS / WEIGHT_SQUARED)^2
    CORRECT = 9  # pairs with a > b
    TIED = 10  # pairs with a = b
    DIFFERENCE = 11  # sum of a - b
    DIFFERENCE_SQUARES = 12
    CHOSEN = 13  # sum of a
    CHOSEN_SQUARES = 14
    REJECTED = 15  # sum of b
    REJECTED_SQUARES = 16
    MINIMUM = 17  # of all rewards; +inf where there are no pairs
    MAXIMUM = 18  # -inf where there are no pairs


class PairStats:
    """Statistics of a set of preference pairs.

    `sums` is a detached float64 tensor with an entry for each `Sum` (and leading dimensions after `vmap`) on the
    rewards' device. Nothing is read until a property is: reading one waits for the device, once, and gives a Python
    number; where there are no pairs, nan.

    `a + b` is the statistics of both sets of pairs together and `sum([...])` that of many, so batches, shards and
    ranks add up; `PairStats.zero()` changes nothing it is added to. Adding `sums` entry by entry does not: squares about
    two means are not squares about the common one.

    `loss`, `accuracy` and `tie_rate` are weighted as the loss is; the statistics of rewards are not. `standard_error` takes the
    pairs to be independent. The pairs of a group that has more than two items, and the comparisons of the same item, are not: there
    it is too small.

    >>> import prefloss, torch
    >>> chosen, rejected, weight = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0])
    >>> _, stats = prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True)
    >>> stats.accuracy, stats.effective_sample_size
    (0.75, 1.6)
    >>> sum([stats, stats]).count
    4
    """

    __slots__ = ("sums",)
    sums: Tensor

    def __init__(self, sums: Tensor) -> None:
        self.sums = sums

    @classmethod
    def zero(cls, device: torch.device | str | int | None = None) -> PairStats:
        """The statistics of no pairs, on `device` (torch's default device where None)."""
        return cls(torch.tensor([0.0] * Sum.MINIMUM + [math.inf, -math.inf], dtype=torch.float64, device=device))

    def __add__(self, other: object) -> PairStats:
        """The statistics of the pairs of both; their order does not matter."""
        if isinstance(other, int) and other == 0:  # the start value of sum()
            return self
        if not isinstance(other, PairStats):
            raise TypeError(f"PairStats can be added to PairStats only, not to {type(other).__name__}")
        return PairStats(_merged(self.sums, other.sums))

    def __radd__(self, other: object) -> PairStats:
        return self + other

    def __reduce__(self) -> tuple[type[PairStats], tuple[Tensor]]:
        return PairStats, (self.sums,)

    def __repr__(self) -> str:
        """A line of a report, for which the device is read once; where there is no one number to read, the shape."""
        if self.sums.shape != (len(Sum),) or self.sums.is_meta or not _is_plain(self.sums):
            return f"PairStats(sums of shape {tuple(self.sums.shape)})"
        read = PairStats(self.sums.detach().cpu())
        return (
            f"PairStats({read.count} pairs: loss {read.loss:.4g} ± {read.standard_error:.2g}, "
            f"accuracy {read.accuracy:.1%}, ties {read.tie_rate:.1%}, margin {read.mean_margin:.4g} "
            f"(std {read.margin_std:.4g}))"
        )

    @property
    def count(self) -> int:
        """Number of pairs with a weight other than 0."""
        return int(self._read()[Sum.COUNT])

    @property
    def total_weight(self) -> float:
        """Sum of the weights; the number of pairs where no weight was given."""
        return self._read()[Sum.WEIGHT]

    @property
    def loss(self) -> float:
        """Weighted mean of the pairs' losses, without centring: the estimate of the expected loss."""
        sums = self._read()
        return _ratio(sums[Sum.WEIGHTED_LOSS], sums[Sum.WEIGHT])

    @property
    def standard_error(self) -> float:
        """Standard error of `loss` as an estimate of the expected loss, for pairs drawn independently.

        sqrt(sum w^2 (l - L)^2) / sum w * sqrt(n / (n - 1)), L being `loss`: the linearised variance of a ratio of sums
        (Cochran 1977, section 6.3), which for equal weights is the standard deviation over sqrt(n). One pair: nan.
        """
        return _loss_and_standard_error(self._read())[1]

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high): `loss` minus and plus the normal quantile of `level`, in (0, 1), times `standard_error`."""
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must lie between 0 and 1, both excluded; got {level!r}")
        loss, standard_error = _loss_and_standard_error(self._read())
        # By the upper tail: 1 - level keeps its digits where 0.5 + level / 2 would be rounded to 1.
        half_width = -NormalDist().inv_cdf(0.5 * (1.0 - level)) * standard_error
        return loss - half_width, loss + half_width

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2: as many equally weighted pairs would know as much (Kish 1965, section 11.7)."""
        sums = self._read()
        scaled = _ratio(sums[Sum.WEIGHT], sums[Sum.WEIGHT_SCALE])
        return _ratio(scaled * scaled, sums[Sum.WEIGHT_SQUARED])

    @property
    def accuracy(self) -> float:
        """Share of the total weight of pairs whose chosen reward is the greater one; the margin is ignored.

        A tie is not correct. Unweighted counts are in `sums` (`Sum.CORRECT`, `Sum.TIED`).
        """
        sums = self._read()
        return _ratio(sums[Sum.WEIGHT_CORRECT], sums[Sum.WEIGHT])

    @property
    def tie_rate(self) -> float:
        """Share of the total weight of pairs whose two rewards are equal."""
        sums = self._read()
        return _ratio(sums[Sum.WEIGHT_TIED], sums[Sum.WEIGHT])

    @property
    def mean_margin(self) -> float:
        """Mean of chosen minus rejected reward, whatever the weights."""
        return self._mean(Sum.DIFFERENCE)

    @property
    def margin_std(self) -> float:
        """Standard deviation (n - 1) of chosen minus rejected reward."""
        return self._std(Sum.DIFFERENCE_SQUARES)

    @property
    def chosen_mean(self) -> float:
        """Mean of the chosen rewards."""
        return self._mean(Sum.CHOSEN)

    @property
    def chosen_std(self) -> float:
        """Standard deviation (n - 1) of the chosen rewards."""
        return self._std(Sum.CHOSEN_SQUARES)

    @property
    def rejected_mean(self) -> float:
        """Mean of the rejected rewards."""
        return self._mean(Sum.REJECTED)

    @property
    def rejected_std(self) -> float:
        """Standard deviation (n - 1) of the rejected rewards."""
        return self._std(Sum.REJECTED_SQUARES)

    @property
    def min_reward(self) -> float:
        """Least of all rewards, chosen and rejected."""
        sums = self._read()
        return sums[Sum.MINIMUM] if sums[Sum.COUNT] else math.nan

    @property
    def max_reward(self) -> float:
        """Greatest of all rewards, chosen and rejected."""
        sums = self._read()
        return sums[Sum.MAXIMUM] if sums[Sum.COUNT] else math.nan

    def _read(self) -> list[float]:
        if self.sums.shape != (len(Sum),):
            raise ValueError(
                f"PairStats.sums has shape {tuple(self.sums.shape)}, so there is no one number to read; "
                f"take PairStats(stats.sums[i]), whose sums have shape ({len(Sum)},)"
            )
        values: list[float] = self.sums.tolist()
        return values

    def _mean(self, total: Sum) -> float:
        sums = self._read()
        return _ratio(sums[total], sums[Sum.COUNT])

    def _std(self, squares: Sum) -> float:
        sums = self._read()
        return math.sqrt(sums[squares] / (sums[Sum.COUNT] - 1.0)) if sums[Sum.COUNT] > 1 else math.nan


def _merged(mine: Tensor, theirs: Tensor) -> Tensor:
    """The sums of both sets of pairs (Chan, Golub & LeVeque 1983), by operators that wait for nothing."""
    scale = torch.maximum(mine[..., Sum.WEIGHT_SCALE], theirs[..., Sum.WEIGHT_SCALE])
    # The squared scale of one in terms of the greater; 1 where neither has pairs.
    rescale = [
        torch.where(sums[..., Sum.WEIGHT_SCALE] == scale, 1.0, sums[..., Sum.WEIGHT_SCALE] / scale).square()
        for sums in (mine, theirs)
    ]
    weight, loss, squares = (
        [ratio * sums[..., which] for ratio, sums in zip(rescale, (mine, theirs), strict=True)]
        for which in (Sum.WEIGHT_SQUARED, Sum.SQUARED_WEIGHT_LOSS, Sum.SQUARED_WEIGHT_LOSS_SQUARES)
    )
    both = {which: mine[..., which] + theirs[..., which] for which in Sum}  # right where sums only add up
    both[Sum.WEIGHT_SCALE] = scale
    both[Sum.WEIGHT_SQUARED], both[Sum.SQUARED_WEIGHT_LOSS] = weight[0] + weight[1], loss[0] + loss[1]
    both[Sum.SQUARED_WEIGHT_LOSS_SQUARES] = squares[0] + squares[1] + _between(*weight, *loss)
    counts = mine[..., Sum.COUNT], theirs[..., Sum.COUNT]
    for total, of_squares in (
        (Sum.DIFFERENCE, Sum.DIFFERENCE_SQUARES),
        (Sum.CHOSEN, Sum.CHOSEN_SQUARES),
        (Sum.REJECTED, Sum.REJECTED_SQUARES),
    ):
        both[of_squares] = both[of_squares] + _between(*counts, mine[..., total], theirs[..., total])
    both[Sum.MINIMUM] = torch.minimum(mine[..., Sum.MINIMUM], theirs[..., Sum.MINIMUM])
    both[Sum.MAXIMUM] = torch.maximum(mine[..., Sum.MAXIMUM], theirs[..., Sum.MAXIMUM])
    return torch.stack(list(both.values()), dim=-1)


def _between(count: Tensor, other_count: Tensor, total: Tensor, other_total: Tensor) -> Tensor:
    """What two sets' squares about their own means lack of those about the common mean; 0 where a set is empty."""
    share = count * other_count / (count + other_count)
    distance = other_total / other_count - total / count
    return torch.where(share > 0.0, distance.square() * share, 0.0)


def _loss_and_standard_error(sums: list[float]) -> tuple[float, float]:
    loss = _ratio(sums[Sum.WEIGHTED_LOSS], sums[Sum.WEIGHT])
    # About the loss instead of the mean that the squared weights give.
    distance = _ratio(sums[Sum.SQUARED_WEIGHT_LOSS], sums[Sum.WEIGHT_SQUARED]) - loss
    squares = sums[Sum.SQUARED_WEIGHT_LOSS_SQUARES] + distance * distance * sums[Sum.WEIGHT_SQUARED]
    bessel = math.sqrt(_ratio(sums[Sum.COUNT], sums[Sum.COUNT] - 1.0))
    return loss, _ratio(math.sqrt(squares) * bessel, _ratio(sums[Sum.WEIGHT], sums[Sum.WEIGHT_SCALE]))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0.0 else math.nan


def _is_plain(sums: Tensor) -> bool:
    """Whether there are numbers to read: not in a graph that is traced, and not under a transform."""
    return type(sums) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(sums)


def _flatten(stats: PairStats) -> tuple[list[Any], None]:
    return [stats.sums], None


def _unflatten(leaves: Any, _: None) -> PairStats:
    (sums,) = leaves
    return PairStats(sums)


# A container with one leaf: so transforms and the compiler look into it, and a program that returns it can be saved.
_pytree.register_pytree_node(
    PairStats,
    _flatten,
    _unflatten,
    serialized_type_name="prefloss.PairStats",
    flatten_with_keys_fn=lambda stats: ([(_pytree.GetAttrKey("sums"), stats.sums)], None),
)
torch.serialization.add_safe_globals([PairStats])  # torch.load takes it with weights_only=True
