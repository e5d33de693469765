"""The loss over all pairs of groups."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .paired import (
    Float64Array,
    Pairs,
    Reduction,
    bradley_terry_gradient,
    bradley_terry_loss,
    float64,
    smoothing_of,
    sums_of,
)

Average: TypeAlias = Literal["groups", "pairs"]
Ties: TypeAlias = Literal["skip", "half"]


@np.errstate(all="ignore")
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
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """The loss over all pairs of each group, float64: 0-d, or one a group for reduction "none".

    Args are those of `prefloss.bradley_terry_loss_grouped`. With `return_stats`, (loss, sums): those of `PairStats`, in
    which a pair of equal rank is half a pair in each order. Every pair is visited: O(K^2).
    """
    groups = _groups(rewards, ranks, group_sizes, ties, relevance, mask)
    smoothing = smoothing_of(label_smoothing, flip_rate)
    terms = np.array(
        [
            np.sum(
                bradley_terry_loss(
                    group.chosen,
                    group.rejected,
                    margin=np.where(group.tied, 0.0, margin),
                    target=np.where(group.tied, 0.5, 1.0),
                    beta=beta,
                    label_smoothing=smoothing,
                    center_rewards_coefficient=center_rewards_coefficient,
                    reduction="none",
                )
            )
            for group in groups
        ]
    )
    counts = np.array([group.tied.size for group in groups], dtype=np.float64)
    share, divisor = _shares(counts, weight, average, reduction, denominator)
    loss = np.where(share == 0.0, 0.0, share * terms)
    loss = loss if reduction == "none" else np.asarray(np.sum(loss) / divisor)
    if not return_stats:
        return loss
    return loss, _sums(groups, share, np.asarray(rewards).dtype, margin, beta, smoothing, ties)


@np.errstate(all="ignore")
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
) -> Float64Array:
    """The gradient with respect to the rewards, float64, in their shape. `grad`: a number, or one a group for "none"."""
    groups = _groups(rewards, ranks, group_sizes, ties, relevance, mask)
    counts = np.array([group.tied.size for group in groups], dtype=np.float64)
    share, divisor = _shares(counts, weight, average, reduction, denominator)
    scale = np.broadcast_to(float64(grad), share.shape) * share / (1.0 if reduction == "none" else divisor)
    result = np.zeros(np.size(rewards))
    for group, factor, counted in zip(groups, scale, share != 0.0, strict=True):
        if not counted:
            continue
        gradients = bradley_terry_gradient(
            np.full(group.tied.shape, factor),
            group.chosen,
            group.rejected,
            margin=np.where(group.tied, 0.0, margin),
            target=np.where(group.tied, 0.5, 1.0),
            beta=beta,
            label_smoothing=smoothing_of(label_smoothing, flip_rate),
            center_rewards_coefficient=center_rewards_coefficient,
            reduction="none",
        )
        np.add.at(result, group.chosen_index, gradients[0])
        np.add.at(result, group.rejected_index, gradients[1])
    return result.reshape(np.shape(rewards))


class _Group(NamedTuple):
    """The counted pairs of a group."""

    chosen_index: NDArray[np.int64]  # among all items
    rejected_index: NDArray[np.int64]
    chosen: NDArray[Any]
    rejected: NDArray[Any]
    tied: NDArray[np.bool_]


def _groups(
    rewards: ArrayLike,
    ranks: ArrayLike | None,
    group_sizes: ArrayLike | None,
    ties: Ties,
    relevance: ArrayLike | None = None,
    mask: ArrayLike | None = None,
) -> list[_Group]:
    if (ranks is None) is (relevance is None):
        raise TypeError("exactly one of ranks and relevance must be given")
    if relevance is not None:  # whose places in ascending order, 0, 1, ..., have an opposite
        ranks = -np.unique(np.asarray(relevance), return_inverse=True)[1].reshape(np.shape(relevance))
    rewards, ranks = np.asarray(rewards), np.asarray(ranks)
    there = np.ones(rewards.size, np.bool_) if mask is None else np.asarray(mask).astype(np.bool_).ravel()
    if rewards.shape != ranks.shape:
        raise ValueError(f"rewards and ranks must have the same shape; got {rewards.shape} and {ranks.shape}")
    sizes = np.full(len(rewards), rewards.shape[1]) if group_sizes is None else np.asarray(group_sizes, dtype=np.int64)
    if sizes.sum() != rewards.size:
        raise ValueError(f"group_sizes must add up to the {rewards.size} rewards; got {sizes.sum()}")
    flat, order, groups = rewards.ravel(), ranks.ravel(), []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        members = np.arange(end - size, end)
        members = members[there[members]]
        better = order[members][:, None] < order[members][None, :]
        equal = np.triu(order[members][:, None] == order[members][None, :], 1) & (ties == "half")
        pairs = [np.nonzero(which) for which in (better, equal)]
        i, j = (members[np.concatenate([pair[side] for pair in pairs])] for side in (0, 1))
        groups.append(_Group(i, j, flat[i], flat[j], np.arange(i.size) >= pairs[0][0].size))
    return groups


def _sums(
    groups: list[_Group],
    share: Float64Array,
    dtype: np.dtype[Any],
    margin: float,
    beta: float,
    smoothing: float,
    ties: Ties,
) -> Float64Array:
    """The sums of `PairStats`, for which each group is a unit."""
    chosen, rejected = (
        np.concatenate([np.empty(0, dtype), *(group[side] for group in groups)]) for side in (2, 3)
    )  # fmt: skip
    tied = np.concatenate([np.empty(0, np.bool_), *(group.tied for group in groups)])
    weight = np.repeat(share, [group.tied.size for group in groups])
    once = Pairs.of(
        chosen, rejected, np.where(tied, 0.0, margin), weight, np.where(tied, 0.5, 1.0), beta, smoothing
    )  # fmt: skip
    second = np.arange(tied.size + np.count_nonzero(tied)) >= tied.size  # the other order of a pair of equal rank
    which = np.concatenate((np.arange(tied.size), np.nonzero(tied)[0]))
    pairs = Pairs._make(column[which] for column in once)
    pairs = pairs._replace(
        chosen=np.where(second, pairs.rejected, pairs.chosen),
        rejected=np.where(second, pairs.chosen, pairs.rejected),
        difference=np.where(second, -pairs.difference, pairs.difference),
    )
    losses = once.losses()
    counts = np.array([group.tied.size for group in groups], dtype=np.int64)
    of_groups = np.split(losses, np.cumsum(counts))[: len(counts)]
    units = share * counts, np.array([np.mean(each) if each.size else 0.0 for each in of_groups])
    one_list = len(groups) == 1 and ties == "skip" and share[0] != 0.0
    spread = _list_variance(groups[0], losses) if one_list else (0.0, 0.0)
    return sums_of(pairs, losses[which], np.where(tied[which], 0.5, 1.0), tied[which], units, spread)


def _list_variance(group: _Group, losses: Float64Array) -> tuple[float, float]:
    """LIST_VARIANCE and LIST_VARIANCE_ERROR of one group, where it has two ranks and at least two items of each.

    The variance of the mean of a two-sample U-statistic: that of the row means over their number, and that of the column means
    over theirs (Sen 1960; DeLong et al. 1988).
    """
    parts = []
    for index, others in ((group.chosen_index, group.rejected_index), (group.rejected_index, group.chosen_index)):
        items, place = np.unique(index, return_inverse=True)
        if items.size < 2 or np.isin(items, others).any():
            return 0.0, 0.0
        means = np.bincount(place, losses) / np.bincount(place)
        parts.append((np.var(means, ddof=1) / items.size, items.size - 1))
    return sum(part for part, _ in parts), sum(part**2 / df for part, df in parts)


def _shares(
    counts: Float64Array,
    weight: ArrayLike | None,
    average: Average,
    reduction: Reduction,
    denominator: ArrayLike | None,
) -> tuple[Float64Array, Float64Array]:
    """The weight of each pair of a group, and what the sum over them all is divided by."""
    weights = np.where(counts > 0.0, np.ones(counts.shape) if weight is None else float64(weight), 0.0)
    share = weights / np.maximum(counts, 1.0) if average == "groups" else weights
    if reduction != "mean":
        return share, float64(1.0)
    if denominator is not None:
        return share, float64(denominator)
    total = np.sum(share * counts)
    return share, float64(1.0 if total == 0.0 else total)
