"""What one pass over the pairs says about the empirical loss: its value, its standard error, accuracy, and rewards.

The kernels fill one float64 tensor, an entry for each `Sum`; `PairStats` wraps it and does the (few) divisions when
asked.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils import _pytree

from .intervals import student_t_quantile, tail_of, without_skewness
from .sums import CUBES, WEIGHT_POWERS, Sum, dtype_of_sums, merged_sums, shifted_cubes, sums_of_no_pairs

__all__ = ["PairStats", "Sum"]

# Where so little is left of greater terms, rounding is all that there is.
_LEAST_REST = 1e-9
_SUMS = len(Sum)


class PairStats:
    """Statistics of a set of preference pairs.

    `sums` is a detached float64 tensor (float32 on devices that may have no float64) with an entry for each `Sum` (and leading
    dimensions after `vmap`) on the rewards' device. Reading a property waits for the device and gives a Python number, nan without
    pairs. `as_dict()` reads all properties at once. Nothing else waits.

    `a + b` gives the statistics of both sets of pairs together, `sum([...])` those of many, so batches, shards and
    ranks (`all_reduce`) can be added; adding `PairStats.zero()` changes nothing. Do not add `sums` entry by entry: some are
    squares of differences from the mean, and the two means differ.

    How far `loss` may be from the expected loss depends on what was drawn independently, the `units`:

    - Pairs (`bradley_terry_loss`, `bradley_terry_loss_stacked`): each pair is a unit. Pairs of the same prompt or annotator are
      not independent: with such pairs the standard error is too small.
    - Groups (`bradley_terry_loss_grouped`): each group is a unit, with all its pairs. A single group of two ranks is taken as a
      sample of better items and a sample of worse items, all compared with each other.
    - Comparisons by index (`bradley_terry_loss_indexed`): the items are the units, and two comparisons that share an item are
      dependent. Two such sets may share items, which cannot be known here: after adding them the standard error is nan.

    `loss`, `accuracy` and `tie_rate` are weighted as the loss is; the statistics of rewards are not.

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
        if not isinstance(sums, Tensor):
            raise TypeError(
                f"sums must be a tensor with an entry for each Sum, got {sums!r:.80} ({type(sums).__name__})"
            )
        self.sums = sums

    @classmethod
    def zero(cls, device: torch.device | str | int | None = None) -> PairStats:
        """The statistics of no pairs, on `device` (torch's default device where None)."""
        return cls(sums_of_no_pairs(device))

    def __add__(self, other: object) -> PairStats:
        """The statistics of both sets of pairs together; the order does not matter."""
        if isinstance(other, int) and other == 0:  # the start value of sum()
            return self
        if not isinstance(other, PairStats):
            raise TypeError(f"PairStats can be added to PairStats only, not to {type(other).__name__}")
        for sums in (self.sums, other.sums):
            if sums.shape[-1:] != (_SUMS,):
                raise ValueError(f"sums must have an entry for each Sum, shape (..., {_SUMS}), got {tuple(sums.shape)}")
        return PairStats(merged_sums(self.sums, other.sums))

    def __radd__(self, other: object) -> PairStats:
        return self + other

    def __reduce__(self) -> tuple[type[PairStats], tuple[Tensor]]:
        return PairStats, (self.sums,)

    def __repr__(self) -> str:
        """A line of a report, for which the device is read once; where there is no one number to read, the shape."""
        if self.sums.shape != (len(Sum),) or self.sums.is_meta or not _is_plain(self.sums):
            return f"PairStats(sums of shape {tuple(self.sums.shape)})"
        read = self.to("cpu")
        units = "" if read.units == read.count else f" in {read.units} unit{'s' * (read.units != 1)}"
        return (
            f"PairStats({read.count} pairs{units}: loss {read.loss:.4g} ± {read.standard_error:.2g}, "
            f"accuracy {read.accuracy:.1%}, ties {read.tie_rate:.1%}, margin {read.mean_margin:.4g} "
            f"(std {read.margin_std:.4g}))"
        )

    def to(self, device: torch.device | str | int) -> PairStats:
        """The same on another device, in one copy. With `to("cpu")`, properties can then be read without waiting."""
        return PairStats(self.sums.detach().to(device, dtype_of_sums(torch.device(device))))

    def as_dict(self, prefix: str = "") -> dict[str, float]:
        """All properties as {prefix + name: Python number}, for a logger. The device is read once.

        >>> PairStats.zero().as_dict("train/")["train/count"]
        0
        """
        read = PairStats(torch.tensor(self._read(), dtype=torch.float64, device="cpu"))
        names = [name for name, member in vars(PairStats).items() if isinstance(member, property)]
        return {prefix + name: getattr(read, name) for name in names}

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> PairStats:
        """The statistics of the pairs of all ranks together. Every rank must call it, and each gets the same bits.

        The sums are gathered, and added in the order of the ranks. A rank without pairs calls it on `PairStats.zero()`.
        `self` does not change.

        Args:
            group: of torch.distributed; None is the default group. Its backend must work on the device of `sums`: `to("cpu")` is
                for gloo, `to("cuda")` for nccl.

        Raises:
            ValueError: torch.distributed has not been initialised (`torch.distributed.init_process_group`).
        """
        mine = self.sums.detach().contiguous()
        everyone = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(everyone, mine, group=group)
        total = everyone[0]
        for sums in everyone[1:]:
            total = merged_sums(total, sums)
        return PairStats(total)

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
    def units(self) -> int:
        """Number of independent units: pairs, groups, or the items of comparisons by index, with a weight other than 0."""
        return int(self._read()[Sum.UNITS])

    @property
    def standard_error(self) -> float:
        """Standard error of `loss` as an estimate of the expected loss, from the differences between units.

        A unit has the weight W and the mean loss L; h = W / sum W is its share of the weight, and S = h (L - loss) how far it moves
        the loss. The variance is sum S^2 (Cochran 1977, section 6.3: of a ratio of sums) divided by a correction for few units,
        1 - (2 sum h^3 - (sum h^2)^2) / sum h^2, which is (n - 1) / n for n equal weights (Bell & McCaffrey 2002: what sum S^2 is on
        average, over the variance of `loss`, if the units' mean losses have equal variances). Two cases differ:

        - one group of two ranks: the variance of its row means over their number, plus that of its column means over theirs (Sen
          1960; DeLong, DeLong & Clarke-Pearson 1988);
        - comparisons by index: sum (2 S)^2 over the items, minus the squares of single comparisons, each of which is in two items
          (Fafchamps & Gubert 2007; Aronow, Samii & Assenova 2015), but not less than if comparisons were independent.

        It is nan, not too small, where the data cannot tell: one unit alone, or one that has all but about 1e-5 of the weight;
        one group of more than two ranks, with ``ties="half"``, or with a single item of a rank; comparisons by index with one item
        in all of them; comparisons by index that were added to others, with which they may share items.
        """
        return _estimate(self._read()).standard_error

    @property
    def degrees_of_freedom(self) -> float:
        """Degrees of freedom of the variance behind `standard_error`: n - 1 for n units of equal weight, less for unequal ones.

        With V that variance, (mean of V)^2 over half the variance of V (Satterthwaite 1946), for normal mean losses of equal
        variance (Bell & McCaffrey 2002).
        """
        return _estimate(self._read()).degrees_of_freedom

    @property
    def skewness(self) -> float:
        """Skewness of `loss` as an estimate: sum S^3 / (sum S^2)^1.5, with S as in `standard_error`.

        nan for one group alone, and where all losses are equal.
        """
        return _estimate(self._read()).skewness

    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high), which contains the expected loss in about `level` of all data sets; nan where `standard_error` is.

        Quantiles of Student's t distribution with `degrees_of_freedom`, times `standard_error`, corrected for `skewness` by Hall's
        monotone cubic (Hall 1992, Journal of the Royal Statistical Society B 54, 221-228). Losses have a long tail above, so the
        interval reaches further up than down.

        Args:
            level: in (0, 1).

        Raises:
            TypeError: a level that is no number.
            ValueError: a level that is not in (0, 1).
        """
        both_tails = 2.0 * tail_of(level)
        loss, error, df, skewness = _estimate(self._read())
        t = student_t_quantile(both_tails, df)
        return loss - error * without_skewness(t, skewness), loss - error * without_skewness(-t, skewness)

    @property
    def effective_sample_size(self) -> float:
        """(sum W)^2 / sum W^2 over units: how many equally weighted units would be worth as much (Kish 1965, section 11.7)."""
        sums = self._read()
        scaled = _ratio(sums[Sum.WEIGHT], sums[Sum.WEIGHT_SCALE])
        return _ratio(scaled * scaled, sums[Sum.WEIGHT_SQUARED])

    @property
    def accuracy(self) -> float:
        """Share of the total weight that belongs to pairs whose chosen reward is the greater one; the margin is ignored.

        A tie counts as wrong. Unweighted counts are in `sums` (`Sum.CORRECT`, `Sum.TIED`).
        """
        sums = self._read()
        return _ratio(sums[Sum.WEIGHT_CORRECT], sums[Sum.WEIGHT])

    @property
    def tie_rate(self) -> float:
        """Share of the total weight that belongs to pairs whose two rewards are equal."""
        sums = self._read()
        return _ratio(sums[Sum.WEIGHT_TIED], sums[Sum.WEIGHT])

    @property
    def mean_margin(self) -> float:
        """Mean of chosen minus rejected reward, without weights."""
        return self._mean(Sum.DIFFERENCE)

    @property
    def margin_std(self) -> float:
        """Standard deviation (over n - 1) of chosen minus rejected reward, without weights."""
        return self._std(Sum.DIFFERENCE_SQUARES)

    @property
    def chosen_mean(self) -> float:
        """Mean of the chosen rewards, without weights."""
        return self._mean(Sum.CHOSEN)

    @property
    def chosen_std(self) -> float:
        """Standard deviation (over n - 1) of the chosen rewards, without weights."""
        return self._std(Sum.CHOSEN_SQUARES)

    @property
    def rejected_mean(self) -> float:
        """Mean of the rejected rewards, without weights."""
        return self._mean(Sum.REJECTED)

    @property
    def rejected_std(self) -> float:
        """Standard deviation (over n - 1) of the rejected rewards, without weights."""
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


class _Estimate(NamedTuple):
    loss: float
    standard_error: float
    degrees_of_freedom: float
    skewness: float


def _estimate(sums: list[float]) -> _Estimate:
    """What the properties above say, with their sources."""
    loss = _ratio(sums[Sum.WEIGHTED_LOSS], sums[Sum.WEIGHT])
    if sums[Sum.UNITS] == 1.0 and sums[Sum.LINKED] == 0.0:
        variance, spread = sums[Sum.LIST_VARIANCE], sums[Sum.LIST_VARIANCE_ERROR]
        if variance == 0.0:
            return _Estimate(loss, math.nan, math.nan, math.nan)
        return _Estimate(loss, math.sqrt(variance), _ratio(variance * variance, spread), math.nan)
    # About the loss instead of the mean that the squared weights give.
    from_mean = _ratio(sums[Sum.SQUARED_WEIGHT_LOSS], sums[Sum.WEIGHT_SQUARED]) - loss
    squares = sums[Sum.SQUARED_WEIGHT_LOSS_SQUARES] + from_mean * from_mean * sums[Sum.WEIGHT_SQUARED]
    cubes = cast(float, shifted_cubes([sums[which] for which in CUBES], from_mean)[-1])
    skewness = _ratio(cubes, squares**1.5)
    share = _ratio(sums[Sum.WEIGHT_SCALE], sums[Sum.WEIGHT])
    h2, h3, h4, h5 = (sums[which] * share**power for power, which in enumerate(WEIGHT_POWERS, 2))
    # With M the covariance of the S where the L are independent, of variance 1: M_ij = h_i h_j ((i = j) - h_i - h_j + h2).
    trace = h2 - 2.0 * h3 + h2 * h2
    trace_of_square = h4 * (1.0 + 4.0 * h2) - 4.0 * h5 + h2**4 + 2.0 * h3 * h3 - 4.0 * h2 * h2 * h3
    if not trace > _LEAST_REST * h2:
        return _Estimate(loss, math.nan, math.nan, skewness)
    if sums[Sum.LINKED] != 0.0:
        own = sums[Sum.LINKED_SQUARES]
        alone = sums[Sum.LINKED] == sums[Sum.COUNT] * sums[Sum.COUNT]
        squares = max(4.0 * squares - own, own) if alone else math.nan
    variance = squares * share * share * h2 / trace
    if math.isnan(variance):
        return _Estimate(loss, math.nan, math.nan, skewness)
    # Where one unit has nearly the whole weight, the trace of the square is the rounding of greater terms; M has one eigenvalue.
    df = trace * trace / trace_of_square if trace_of_square > _LEAST_REST * h4 else 1.0
    return _Estimate(loss, math.sqrt(variance), max(df, 1.0), skewness)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator != 0.0 else math.nan


def _is_plain(sums: Tensor) -> bool:
    """Whether there are numbers to read: not in a graph that is traced, and not under a transform."""
    return type(sums) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(sums)


def _flatten(stats: PairStats) -> tuple[list[Any], None]:
    return [stats.sums], None


def _unflatten(leaves: Any, _: None) -> PairStats:
    stats = PairStats.__new__(PairStats)
    (stats.sums,) = leaves  # any leaf: a tree of shapes or devices has no tensors
    return stats


# A container with one leaf: so transforms and the compiler look into it, and a program that returns it can be saved.
_pytree.register_pytree_node(
    PairStats,
    _flatten,
    _unflatten,
    serialized_type_name="prefloss.PairStats",
    flatten_with_keys_fn=lambda stats: ([(_pytree.GetAttrKey("sums"), stats.sums)], None),
)
torch.serialization.add_safe_globals([PairStats])  # torch.load takes it with weights_only=True
