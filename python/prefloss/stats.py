"""What one pass over the pairs says about the empirical loss: its value, its standard error, accuracy, and rewards.

The kernels fill one float64 tensor of 16 sums; `PairStats` wraps it and does the (few) divisions when asked.
"""

from __future__ import annotations

import math
from enum import IntEnum
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["PairStats", "Sum"]


class Sum(IntEnum):
    """Where each sum lies in `PairStats.sums`; the kernels and `prefloss.reference` write the same order.

    w is a pair's weight, l its loss without centring, a and b its chosen and rejected reward. Only pairs with w != 0
    are counted. Counts and reward sums are unweighted.
    """

    COUNT = 0
    WEIGHT = 1  # sum of w
    WEIGHT_SQUARED = 2  # sum of w^2
    WEIGHTED_LOSS = 3  # sum of w l
    SQUARED_WEIGHT_LOSS = 4  # sum of w^2 l
    SQUARED_WEIGHT_LOSS_SQUARED = 5  # sum of w^2 l^2
    CORRECT = 6  # pairs with a > b
    TIED = 7  # pairs with a = b
    MARGIN = 8  # sum of a - b
    MARGIN_SQUARED = 9
    CHOSEN = 10  # sum of a
    CHOSEN_SQUARED = 11
    REJECTED = 12  # sum of b
    REJECTED_SQUARED = 13
    MIN_REWARD = 14  # +inf where there are no pairs
    MAX_REWARD = 15  # -inf where there are no pairs


class PairStats(NamedTuple):
    """Statistics of a set of preference pairs.

    `sums` is a detached float64 tensor of 16 entries in the order of `Sum` (with leading dimensions after `vmap`) on
    the rewards' device. Nothing is read until a property is: reading one waits for the device, once, and gives a
    Python number; where there are no pairs, nan.

    `a + b` is the statistics of both sets of pairs together and `sum([...])` that of many, so batches, shards and
    ranks add up; `PairStats.zero()` changes nothing it is added to.
    """

    sums: Tensor

    @classmethod
    def zero(cls, device: torch.device | str | int | None = None) -> PairStats:
        """The statistics of no pairs, on `device` (torch's default device where None)."""
        return cls(torch.tensor([0.0] * Sum.MIN_REWARD + [math.inf, -math.inf], dtype=torch.float64, device=device))

    # A tuple's + concatenates and its count() searches: neither means anything here.
    def __add__(self, other: object) -> PairStats:
        """The statistics of the pairs of both; their order does not matter."""
        if isinstance(other, int) and other == 0:  # the start value of sum()
            return self
        if not isinstance(other, PairStats):
            raise TypeError(f"PairStats can be added to PairStats only, not to {type(other).__name__}")
        mine, theirs = self.sums, other.sums
        return PairStats(
            torch.cat(
                (
                    mine[..., : Sum.MIN_REWARD] + theirs[..., : Sum.MIN_REWARD],
                    torch.minimum(mine[..., Sum.MIN_REWARD, None], theirs[..., Sum.MIN_REWARD, None]),
                    torch.maximum(mine[..., Sum.MAX_REWARD, None], theirs[..., Sum.MAX_REWARD, None]),
                ),
                dim=-1,
            )
        )

    def __radd__(self, other: object) -> PairStats:
        return self + other

    @property
    def count(self) -> int:  # type: ignore[override]
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
        half_width = NormalDist().inv_cdf(0.5 + 0.5 * level) * standard_error
        return loss - half_width, loss + half_width

    @property
    def effective_sample_size(self) -> float:
        """(sum w)^2 / sum w^2: as many equally weighted pairs would know as much (Kish 1965, section 11.7)."""
        sums = self._read()
        return _ratio(sums[Sum.WEIGHT] * sums[Sum.WEIGHT], sums[Sum.WEIGHT_SQUARED])

    @property
    def accuracy(self) -> float:
        """Share of pairs whose chosen reward is the greater one; margin and weight are ignored, ties do not count."""
        return self._mean(Sum.CORRECT)

    @property
    def tie_rate(self) -> float:
        """Share of pairs whose two rewards are equal."""
        return self._mean(Sum.TIED)

    @property
    def mean_margin(self) -> float:
        """Mean of chosen minus rejected reward."""
        return self._mean(Sum.MARGIN)

    @property
    def margin_std(self) -> float:
        """Standard deviation (n - 1) of chosen minus rejected reward."""
        return self._std(Sum.MARGIN, Sum.MARGIN_SQUARED)

    @property
    def chosen_mean(self) -> float:
        """Mean of the chosen rewards."""
        return self._mean(Sum.CHOSEN)

    @property
    def chosen_std(self) -> float:
        """Standard deviation (n - 1) of the chosen rewards."""
        return self._std(Sum.CHOSEN, Sum.CHOSEN_SQUARED)

    @property
    def rejected_mean(self) -> float:
        """Mean of the rejected rewards."""
        return self._mean(Sum.REJECTED)

    @property
    def rejected_std(self) -> float:
        """Standard deviation (n - 1) of the rejected rewards."""
        return self._std(Sum.REJECTED, Sum.REJECTED_SQUARED)

    @property
    def min_reward(self) -> float:
        """Least of all rewards, chosen and rejected."""
        sums = self._read()
        return sums[Sum.MIN_REWARD] if sums[Sum.COUNT] else math.nan

    @property
    def max_reward(self) -> float:
        """Greatest of all rewards, chosen and rejected."""
        sums = self._read()
        return sums[Sum.MAX_REWARD] if sums[Sum.COUNT] else math.nan

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

    def _std(self, total: Sum, total_of_squares: Sum) -> float:
        sums = self._read()
        count = sums[Sum.COUNT]
        mean = _ratio(sums[total], count)
        return _square_root(_ratio(sums[total_of_squares] - sums[total] * mean, count - 1.0))


def _loss_and_standard_error(sums: list[float]) -> tuple[float, float]:
    loss = _ratio(sums[Sum.WEIGHTED_LOSS], sums[Sum.WEIGHT])
    squares = (
        sums[Sum.SQUARED_WEIGHT_LOSS_SQUARED]
        - 2.0 * loss * sums[Sum.SQUARED_WEIGHT_LOSS]
        + loss * loss * sums[Sum.WEIGHT_SQUARED]
    )
    bessel = _square_root(_ratio(sums[Sum.COUNT], sums[Sum.COUNT] - 1.0))
    return loss, _ratio(_square_root(squares) * bessel, sums[Sum.WEIGHT])


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0.0 else math.nan


def _square_root(square: float) -> float:
    """Rounding may leave a sum of squares a little below 0; a nan stays one (max(0.0, nan) would be 0.0)."""
    return math.sqrt(0.0 if square < 0.0 else square)
