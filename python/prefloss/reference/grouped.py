"""The loss over all pairs of groups."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .arrays import (
    Array,
    ArrayLike,
    array_namespace,
    as_array,
    beside,
    difference_dtype,
    formula_dtype,
    identity,
    is_numpy_array,
    namespace_of,
    sum_dtype,
    total,
    without_warnings,
)
from .paired import (
    Pairs,
    Reduction,
    bradley_terry_gradient,
    bradley_terry_loss,
    pair_curvature,
    smoothing_of,
    sums_of,
)

Average: TypeAlias = Literal["groups", "pairs"]
Ties: TypeAlias = Literal["skip", "half"]


@without_warnings
def bradley_terry_loss_grouped(
    rewards: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    relevance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    group_sizes: ArrayLike | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float = 0.0,
    weight: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    flip_rate: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Array | tuple[Array, Array]:
    """The loss over all pairs of each group: 0-d, or one a group for reduction "none".

    Args are those of `prefloss.bradley_terry_loss_grouped`. With `return_stats` it returns (loss, sums), the sums of `PairStats`,
    in which a pair of equal rank is half a pair in each order. Every pair is visited: O(K^2). Under `jax.jit` sizes are constants.
    """
    groups = Groups.of(rewards, ranks, group_sizes, ties, relevance, mask)
    xp = array_namespace(groups.times)
    share, divisor = groups.shares(weight, average, reduction, denominator)
    smoothing = smoothing_of(label_smoothing, flip_rate)
    options = groups.options(share, margin, beta, smoothing)
    terms = bradley_terry_loss(
        groups.chosen,
        groups.rejected,
        **options,
        center_rewards_coefficient=center_rewards_coefficient,
        reduction="none",
    )
    loss = groups.total(groups.times * terms)
    if reduction != "none":
        loss = total(loss) / divisor
    loss = xp.astype(loss, terms.dtype, copy=False)
    return (loss, _sums(groups, share, options, ties)) if return_stats else loss


@without_warnings
def bradley_terry_gradient_grouped(
    grad: ArrayLike,
    rewards: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    relevance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    group_sizes: ArrayLike | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float = 0.0,
    weight: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    flip_rate: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
) -> Array:
    """The gradient with respect to the rewards, in their shape. `grad`: a number, or one a group for "none"."""
    groups = Groups.of(rewards, ranks, group_sizes, ties, relevance, mask)
    xp = array_namespace(groups.times)
    share, divisor = groups.shares(weight, average, reduction, denominator)
    scale = xp.broadcast_to(beside(grad, share) / divisor, share.shape)
    gradients = bradley_terry_gradient(
        groups.for_pairs(scale),
        groups.chosen,
        groups.rejected,
        **groups.options(share, margin, beta, smoothing_of(label_smoothing, flip_rate)),
        center_rewards_coefficient=center_rewards_coefficient,
        reduction="none",
    )
    result = groups.total_by_item(*(groups.times * gradient for gradient in gradients[:2]))
    return xp.reshape(result, np.shape(rewards))


@np.errstate(all="ignore")
def bradley_terry_derivatives_grouped(
    rewards: ArrayLike,
    ranks: ArrayLike | None = None,
    *,
    relevance: ArrayLike | None = None,
    group_sizes: ArrayLike | None = None,
    average: Average = "pairs",
    ties: Ties = "skip",
    margin: float = 0.0,
    weight: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    flip_rate: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> tuple[Array, Array]:
    """(gradient, hessian_diagonal) of the loss with respect to the rewards, each in their shape.

    With w_p what a pair weighs and D the divisor, the second is, for each item, over its pairs (a, b), whatever the labels are::

        sum of w_p (beta^2 sigma(z) sigma(-z) + 2c) / D,  z = beta (a - b) - margin
    """
    centring = center_rewards_coefficient
    gradient = bradley_terry_gradient_grouped(
        1.0,
        rewards,
        ranks,
        relevance=relevance,
        group_sizes=group_sizes,
        average=average,
        ties=ties,
        margin=margin,
        weight=weight,
        beta=beta,
        label_smoothing=label_smoothing,
        flip_rate=flip_rate,
        center_rewards_coefficient=centring,
        reduction=reduction,
    )
    groups = Groups.of(rewards, ranks, group_sizes, ties, relevance)
    xp = array_namespace(groups.times)
    share, divisor = groups.shares(weight, average, reduction, None)
    options = groups.options(share, margin, beta, smoothing_of(label_smoothing, flip_rate))
    smoothing = options.pop("label_smoothing")
    pairs = Pairs.of(groups.chosen, groups.rejected, **options, smoothing=smoothing)
    curvature = beta * (beta * pair_curvature(pairs.z)) + 2.0 * centring
    curvature = xp.where(pairs.counted, groups.times * pairs.weight * curvature, 0.0)
    result = groups.total_by_item(curvature, curvature) / divisor
    return gradient, xp.reshape(result, np.shape(rewards))


class Block(NamedTuple):
    """Groups of one size: which items they have is known before any value is, and the same for all values."""

    shape: tuple[int, int]  # (G, K): how many groups, and of how many items
    groups: NDArray[np.int32] | None = None  # (G,): their places among all groups; None: these are all, in their order
    items: NDArray[np.int32] | None = None  # (G, K): the places of their items among all items; None likewise

    @property
    def pairs(self) -> tuple[int, int, int]:
        return *self.shape, self.shape[1]


class Groups(NamedTuple):
    """The pairs of all groups, block after block: of ordered pairs (i, j) of items those that count, or all, (G, K, K) a block."""

    blocks: list[Block]
    counted: (
        Array | None
    )  # which ordered pairs these are; None for all: whether a pair counts is then not known to the host
    chosen: Array  # i's rewards
    rejected: Array  # j's
    tied: Array  # two items of equal rank
    times: Array  # how often a pair counts: once where i is better; with ties "half", half where they are tied; else 0

    @classmethod
    def of(
        cls,
        rewards: ArrayLike,
        ranks: ArrayLike | None,
        group_sizes: ArrayLike | None,
        ties: Ties,
        relevance: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Groups:
        if (ranks is None) is (relevance is None):
            raise TypeError("exactly one of ranks and relevance must be given")
        order = relevance if ranks is None else ranks
        xp = namespace_of(rewards, order)
        rewards, order = as_array(xp, rewards), as_array(xp, order)
        mask = xp.ones_like(order, dtype=xp.bool) if mask is None else as_array(xp, mask)
        there = beside(mask, order, xp.bool)
        if not rewards.shape == order.shape == there.shape:
            name = "relevance" if ranks is None else "ranks"
            raise ValueError(
                f"rewards, {name} and mask must have the same shape; got {tuple(rewards.shape)}, {tuple(order.shape)} and "
                f"{tuple(there.shape)}"
            )
        # Halves become wide first, so that what comes back to an item is rounded once, when it is added up.
        rewards = xp.astype(rewards, difference_dtype(rewards), copy=False)
        if xp.isdtype(mask.dtype, "real floating"):  # nobody knows whether an item is there, nor what depends on it
            rewards = rewards + xp.astype(xp.where(xp.isnan(mask), xp.nan, -0.0), rewards.dtype, copy=False)
        blocks = _blocks(rewards.shape, group_sizes)
        columns = [[_taken(column, block.items, block.shape) for block in blocks] for column in (rewards, order, there)]
        ahead, tied = [], []
        for its_order, its_there in zip(*columns[1:], strict=True):
            first, second = its_order[:, :, None], its_order[:, None, :]
            both = its_there[:, :, None] & its_there[:, None, :]
            itself = identity(its_order.shape[1], order)
            ahead.append((first > second if ranks is None else first < second) & both)
            tied.append((first == second) & both & ~itself)
        better, equal, counted = _joined(ahead), _joined(tied), None
        if is_numpy_array(better):
            (counted,) = np.nonzero(better | equal if ties == "half" else better)
            better, equal = better[counted], equal[counted]
        chosen, rejected = (
            _joined(xp.broadcast_to(its[side], block.pairs) for its, block in zip(columns[0], blocks, strict=True))
            for side in ((slice(None), slice(None), None), (slice(None), None, slice(None)))
        )
        if counted is not None:
            chosen, rejected = chosen[counted], rejected[counted]
        once, half = (beside(which, chosen, formula_dtype(chosen)) for which in (better, equal))
        return cls(blocks, counted, chosen, rejected, equal, once + 0.5 * half if ties == "half" else once)

    def shares(
        self, weight: ArrayLike | None, average: Average, reduction: Reduction, denominator: ArrayLike | None
    ) -> tuple[Array, Array]:
        """The weight of each pair of a group, and what the sum over them all is divided by."""
        counts = self.total(self.times)
        xp = array_namespace(counts)
        weights = xp.where(counts > 0.0, beside(1.0 if weight is None else weight, counts), 0.0)
        share = weights / xp.where(counts > 0.0, counts, 1.0) if average == "groups" else weights
        if reduction != "mean":
            return share, beside(1.0, share)
        if denominator is not None:
            return share, beside(denominator, share)
        all_weight = xp.sum(share * counts)
        return share, xp.where(all_weight == 0.0, 1.0, all_weight)

    def options(self, share: Array, margin: float, beta: float, smoothing: float) -> dict[str, Any]:
        """Those of the pairs. What is no pair has weight 0, and a tie has no margin."""
        xp = array_namespace(share)
        tied = xp.astype(self.tied, self.times.dtype)
        return {
            "margin": margin * (1.0 - tied),
            "weight": xp.where(self.times == 0.0, 0.0, self.for_pairs(share)),
            "target": 1.0 - 0.5 * tied,
            "beta": beta,
            "label_smoothing": smoothing,
        }

    def for_pairs(self, values: Array) -> Array:
        """For each pair the entry of its group."""
        xp = array_namespace(values)
        found = _joined(
            xp.broadcast_to(_taken(values, block.groups, (block.shape[0], 1, 1)), block.pairs) for block in self.blocks
        )
        return found if self.counted is None else found[self.counted]

    def matrices(self, values: Array) -> list[Array]:
        """(G, K, K), of the values of a block's pairs, for each block; 0 where there is no pair."""
        if self.counted is not None:
            every = np.zeros(sum(math.prod(block.pairs) for block in self.blocks), values.dtype)
            every[self.counted] = values
            values = every
        xp, begin, found = array_namespace(values), 0, []
        for block in self.blocks:
            end = begin + math.prod(block.pairs)
            found.append(xp.reshape(values[begin:end], block.pairs))
            begin = end
        return found

    def total(self, values: Array) -> Array:
        """One sum a group, of what its pairs have."""
        sums = _joined(total(matrix, axis=(1, 2)) for matrix in self.matrices(values))
        return _in_order(sums, [block.groups for block in self.blocks])

    def total_by_item(self, as_chosen: Array, as_rejected: Array) -> Array:
        """One sum an item, of what it has in the pairs in which it is the one or the other."""
        both = zip(self.matrices(as_chosen), self.matrices(as_rejected), strict=True)
        sums = _joined(total(one, axis=2) + total(other, axis=1) for one, other in both)
        return _in_order(sums, [block.items for block in self.blocks])


def _blocks(shape: tuple[int, ...], group_sizes: ArrayLike | None) -> list[Block]:
    if group_sizes is None:
        return [Block((shape[0], shape[1]))]
    count = math.prod(shape)
    sizes = np.asarray(group_sizes, dtype=np.int64)
    if sizes.sum() != count:
        raise ValueError(f"group_sizes must add up to the {count} rewards; got {sizes.sum()}")
    starts = np.cumsum(sizes) - sizes
    blocks = []
    for size in np.unique(sizes).tolist() or [0]:
        (groups,) = np.nonzero(sizes == size)
        items = starts[groups, None] + np.arange(size)
        blocks.append(Block((len(groups), size), groups.astype(np.int32), items.astype(np.int32)))
    return blocks


def _taken(values: Array, places: NDArray[Any] | None, shape: tuple[int, ...]) -> Array:
    """The entries at these places, or all of them, in this shape."""
    xp = array_namespace(values)
    flat = xp.reshape(values, (-1,))
    if places is not None:
        flat = xp.take(flat, beside(places.ravel(), values, xp.int32), axis=0)
    return xp.reshape(flat, shape)


def _in_order(values: Array, places: list[NDArray[np.int32] | None]) -> Array:
    """The entries, each at its place: those of each block in turn. Without places they lie in order."""
    known = [each.ravel() for each in places if each is not None]
    return _taken(values, np.argsort(np.concatenate(known)), values.shape) if known else values


def _joined(parts: Iterable[Array]) -> Array:
    """All entries of the parts, one after the other."""
    listed = list(parts)
    xp = array_namespace(*listed)
    return xp.concat([xp.reshape(part, (-1,)) for part in listed])


def _sums(groups: Groups, share: Array, options: dict[str, Any], ties: Ties) -> Array:
    """The sums of `PairStats`, for which each group is a unit."""
    smoothing = options.pop("label_smoothing")
    pairs = Pairs.of(groups.chosen, groups.rejected, **options, smoothing=smoothing)
    losses = pairs.losses(sum_dtype(pairs.z))
    xp, counts = array_namespace(losses), groups.total(groups.times)
    units = share * counts, groups.total(groups.times * losses) / xp.where(counts == 0.0, 1.0, counts)
    variance: tuple[ArrayLike, ArrayLike] = (0.0, 0.0)
    if share.shape[0] == 1 and ties == "skip":
        (times,), (of_pairs,) = groups.matrices(groups.times), groups.matrices(losses)
        variance = _list_variance(xp.where(share == 0.0, 0.0, times[0, ...]), of_pairs[0, ...])
    return sums_of(pairs, losses, groups.times, groups.tied, units, variance)


def _list_variance(times: Array, losses: Array) -> tuple[Array, Array]:
    """LIST_VARIANCE and LIST_VARIANCE_ERROR of one group, where it has two ranks and at least two items of each; else 0.

    The variance of the mean of a two-sample U-statistic: that of the row means over their number, and that of the column means
    over theirs (Sen 1960; DeLong et al. 1988). `times`: 1 where (i, j) is a pair, else 0.
    """
    xp, dtype = array_namespace(losses), sum_dtype(losses)
    times, losses = xp.astype(times, dtype, copy=False), xp.astype(losses, dtype, copy=False)
    sides = [xp.sum(times, axis=axis) for axis in (1, 0)]  # how many pairs an item wins, and how many it loses
    holds = ~xp.any((sides[0] > 0.0) & (sides[1] > 0.0))  # or there are more than two ranks
    parts = []
    for axis, pairs in zip((1, 0), sides, strict=True):
        there = xp.astype(pairs > 0.0, dtype)
        items = xp.sum(there)
        holds = holds & (items >= 2.0)
        means = xp.sum(times * losses, axis=axis) / xp.where(pairs > 0.0, pairs, 1.0)
        mean = xp.sum(there * means) / xp.where(items == 0.0, 1.0, items)
        others = xp.where(items < 2.0, 1.0, items - 1.0)
        parts.append((xp.sum(there * xp.square(means - mean)) / others / xp.where(items == 0.0, 1.0, items), others))
    return (
        xp.where(holds, sum(part for part, _ in parts), 0.0),
        xp.where(holds, sum(part**2 / df for part, df in parts), 0.0),
    )
