"""The formula in NumPy, in float64: the executable definition that every kernel is tested against.

Same names and arguments as the package's public functions, arrays for tensors. It is written to be read and to be
exact, not to be fast, and it checks nothing but that shapes agree. bfloat16, which NumPy lacks, is passed as float32.

For a pair with rewards a (chosen) and b (rejected):

    z    = beta (a - b) - margin
    t    = target (1 - 2 label_smoothing) + label_smoothing
    l    = -t log sigma(z) - (1 - t) log sigma(-z)
    loss = sum of w (l + c (a + b)^2) / D

D is the total weight for reduction "mean" (1 where that is 0) unless `denominator` is given, and 1 for "sum".
Sources: Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1; Touvron et al. 2023 (Llama 2), eq. 2 for the
margin; Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2 for c; Mitchell 2023 (cDPO) for label smoothing.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "bradley_terry_gradient",
    "bradley_terry_gradient_grouped",
    "bradley_terry_gradient_indexed",
    "bradley_terry_loss",
    "bradley_terry_loss_grouped",
    "bradley_terry_loss_indexed",
    "bradley_terry_loss_stacked",
    "pair_curvature",
    "pair_loss",
    "pair_slope",
]

Float64Array: TypeAlias = NDArray[np.float64]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Layout: TypeAlias = Literal["halves", "interleaved"]
Average: TypeAlias = Literal["groups", "pairs"]
Ties: TypeAlias = Literal["skip", "half"]


@np.errstate(all="ignore")
def pair_loss(z: ArrayLike, target: ArrayLike = 1.0) -> Float64Array:
    """l(z, t) = -t log sigma(z) - (1 - t) log sigma(-z) = log1p(exp(-|z|)) + |z| (t where z < 0, else 1 - t)."""
    z, target = _float64(z), _float64(target)
    magnitude, factor = np.abs(z), np.where(z < 0, target, 1.0 - target)
    hinge = np.where(factor == 0.0, 0.0, magnitude * factor)  # inf * 0 must not become NaN
    return np.asarray(np.log1p(np.exp(-magnitude)) + hinge)


@np.errstate(all="ignore")
def pair_slope(z: ArrayLike, target: ArrayLike = 1.0) -> Float64Array:
    """dl/dz = -t sigma(-z) + (1 - t) sigma(z); never sigma(z) - 1, which loses the tail."""
    z, target = _float64(z), _float64(target)
    return np.asarray((1.0 - target) * _sigmoid(z) - target * _sigmoid(-z))


@np.errstate(all="ignore")
def pair_curvature(z: ArrayLike) -> Float64Array:
    """d2l/dz2 = sigma(z) sigma(-z), whatever the target."""
    e = np.exp(-np.abs(_float64(z)))
    return np.asarray(e / (1.0 + e) / (1.0 + e))


@overload
def bradley_terry_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    margin: ArrayLike | None = ...,
    weight: ArrayLike | None = ...,
    target: ArrayLike | None = ...,
    beta: float = ...,
    label_smoothing: float = ...,
    center_rewards_coefficient: float = ...,
    reduction: Reduction = ...,
    denominator: ArrayLike | None = ...,
    return_stats: Literal[False] = ...,
) -> Float64Array: ...
@overload
def bradley_terry_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    margin: ArrayLike | None = ...,
    weight: ArrayLike | None = ...,
    target: ArrayLike | None = ...,
    beta: float = ...,
    label_smoothing: float = ...,
    center_rewards_coefficient: float = ...,
    reduction: Reduction = ...,
    denominator: ArrayLike | None = ...,
    return_stats: Literal[True],
) -> tuple[Float64Array, Float64Array]: ...
@np.errstate(all="ignore")
def bradley_terry_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    margin: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    target: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """The loss, float64: 0-d, or one term a pair for reduction "none".

    Args are those of `prefloss.bradley_terry_loss`. With `return_stats`, (loss, sums): the 16 sums of `PairStats`.
    Raises ValueError where shapes differ.
    """
    pairs = _pairs(chosen, rejected, margin, weight, target, beta, label_smoothing)
    losses = pair_loss(pairs.z, pairs.target)
    terms = losses
    if center_rewards_coefficient != 0.0:  # an option that is off must not turn an overflowing square into NaN
        terms = losses + center_rewards_coefficient * np.square(pairs.sum)
    terms = np.where(pairs.counted, pairs.weight * terms, 0.0)
    loss = terms if reduction == "none" else np.asarray(np.sum(terms) / _divisor(pairs, reduction, denominator))
    return (loss, _sums(pairs, losses)) if return_stats else loss


@overload
def bradley_terry_loss_stacked(
    rewards: ArrayLike,
    *,
    layout: Layout = ...,
    margin: ArrayLike | None = ...,
    weight: ArrayLike | None = ...,
    target: ArrayLike | None = ...,
    beta: float = ...,
    label_smoothing: float = ...,
    center_rewards_coefficient: float = ...,
    reduction: Reduction = ...,
    denominator: ArrayLike | None = ...,
    return_stats: Literal[False] = ...,
) -> Float64Array: ...
@overload
def bradley_terry_loss_stacked(
    rewards: ArrayLike,
    *,
    layout: Layout = ...,
    margin: ArrayLike | None = ...,
    weight: ArrayLike | None = ...,
    target: ArrayLike | None = ...,
    beta: float = ...,
    label_smoothing: float = ...,
    center_rewards_coefficient: float = ...,
    reduction: Reduction = ...,
    denominator: ArrayLike | None = ...,
    return_stats: Literal[True],
) -> tuple[Float64Array, Float64Array]: ...
def bradley_terry_loss_stacked(
    rewards: ArrayLike,
    *,
    layout: Layout = "halves",
    margin: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    target: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """`bradley_terry_loss` of the two halves along dimension 0, or of its even ("interleaved": chosen) and odd entries.

    Raises ValueError where dimension 0 cannot be split in two.
    """
    rewards = np.asarray(rewards)
    if rewards.ndim == 0 or len(rewards) % 2:
        raise ValueError(f"rewards must have an even number of entries along dimension 0; got shape {rewards.shape}")
    half = len(rewards) // 2
    both = (rewards[:half], rewards[half:]) if layout == "halves" else (rewards[0::2], rewards[1::2])
    options: dict[str, Any] = {
        "margin": margin,
        "weight": weight,
        "target": target,
        "beta": beta,
        "label_smoothing": label_smoothing,
        "center_rewards_coefficient": center_rewards_coefficient,
        "reduction": reduction,
        "denominator": denominator,
        "return_stats": return_stats,
    }
    result: Float64Array | tuple[Float64Array, Float64Array] = bradley_terry_loss(*both, **options)
    return result


@np.errstate(all="ignore")
def bradley_terry_gradient(
    grad: ArrayLike,
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    margin: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    target: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """(grad_chosen, grad_rejected, grad_margin), float64, one entry a pair each, for the upstream gradient `grad`.

    `grad` is a number, or one entry a pair for reduction "none":

        d/da = grad w (beta l' + 2 c (a + b)) / D
        d/db = grad w (-beta l' + 2 c (a + b)) / D
        d/dm = -grad w l' / D
    """
    pairs = _pairs(chosen, rejected, margin, weight, target, beta, label_smoothing)
    slope = pair_slope(pairs.z, pairs.target)
    # As in the loss: an option that is off must not meet an infinite sum.
    centring = 2.0 * center_rewards_coefficient * pairs.sum if center_rewards_coefficient != 0.0 else _float64(0.0)
    scale = _float64(grad) * pairs.weight / _divisor(pairs, reduction, denominator)

    def scaled(derivative: Float64Array) -> Float64Array:
        return np.where(pairs.counted, scale * derivative, 0.0)

    return scaled(centring + beta * slope), scaled(centring - beta * slope), scaled(-slope)


def bradley_terry_loss_indexed(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike, **options: Any
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """`bradley_terry_loss` of the scores of the items that are compared. Raises IndexError; -1 is no item."""
    result: Float64Array | tuple[Float64Array, Float64Array] = bradley_terry_loss(
        *_compared(scores, chosen_index, rejected_index), **options
    )
    return result


def bradley_terry_gradient_indexed(
    grad: ArrayLike, scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike, **options: Any
) -> tuple[Float64Array, Float64Array]:
    """(grad_scores, grad_margin), float64: one entry an item, which adds up its comparisons, and one a comparison."""
    grad_chosen, grad_rejected, grad_margin = bradley_terry_gradient(
        grad, *_compared(scores, chosen_index, rejected_index), **options
    )
    grad_scores = np.zeros(np.shape(scores))
    np.add.at(grad_scores, np.asarray(chosen_index), grad_chosen)
    np.add.at(grad_scores, np.asarray(rejected_index), grad_rejected)
    return grad_scores, grad_margin


@np.errstate(all="ignore")
def bradley_terry_loss_grouped(
    rewards: ArrayLike,
    ranks: ArrayLike,
    *,
    group_sizes: ArrayLike | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float = 0.0,
    weight: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """The loss over all pairs of each group, float64: 0-d, or one a group for reduction "none".

    Args are those of `prefloss.bradley_terry_loss_grouped`. With `return_stats`, (loss, sums): the 16 sums of `PairStats`, in
    which a pair of equal rank is half a pair in each order. Every pair is visited: O(K^2).
    """
    groups = _groups(rewards, ranks, group_sizes, ties)
    options: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing}
    terms = np.array(
        [
            np.sum(
                bradley_terry_loss(
                    group.chosen,
                    group.rejected,
                    margin=np.where(group.tied, 0.0, margin),
                    target=np.where(group.tied, 0.5, 1.0),
                    center_rewards_coefficient=center_rewards_coefficient,
                    reduction="none",
                    **options,
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
    total = np.array([0.0] * 14 + [np.inf, -np.inf])
    for group, weight_of_pairs in zip(groups, share, strict=True):
        for tied in (False, True):
            kept = group.tied == tied
            pairs = _pairs(
                group.chosen[kept], group.rejected[kept], 0.0 if tied else margin, np.full(kept.sum(), weight_of_pairs),
                0.5 if tied else 1.0, beta, label_smoothing,
            )  # fmt: skip
            losses = pair_loss(pairs.z, pairs.target)
            sums = _sums(pairs, losses)
            if tied:
                turned = _sums(
                    pairs._replace(chosen=pairs.rejected, rejected=pairs.chosen, difference=-pairs.difference), losses
                )
                sums[:14] = (sums[:14] + turned[:14]) / 2.0
                sums[8] = 0.0  # a - b and b - a, infinite ones too
            total[:14] += sums[:14]
            total[14:] = np.minimum(total[14], sums[14]), np.maximum(total[15], sums[15])
    return loss, total


@np.errstate(all="ignore")
def bradley_terry_gradient_grouped(
    grad: ArrayLike,
    rewards: ArrayLike,
    ranks: ArrayLike,
    *,
    group_sizes: ArrayLike | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float = 0.0,
    weight: ArrayLike | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
) -> Float64Array:
    """The gradient with respect to the rewards, float64, in their shape. `grad`: a number, or one a group for "none"."""
    groups = _groups(rewards, ranks, group_sizes, ties)
    counts = np.array([group.tied.size for group in groups], dtype=np.float64)
    share, divisor = _shares(counts, weight, average, reduction, denominator)
    scale = np.broadcast_to(_float64(grad), share.shape) * share / (1.0 if reduction == "none" else divisor)
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
            label_smoothing=label_smoothing,
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


def _groups(rewards: ArrayLike, ranks: ArrayLike, group_sizes: ArrayLike | None, ties: Ties) -> list[_Group]:
    rewards, ranks = np.asarray(rewards), np.asarray(ranks)
    if rewards.shape != ranks.shape:
        raise ValueError(f"rewards and ranks must have the same shape; got {rewards.shape} and {ranks.shape}")
    sizes = np.full(len(rewards), rewards.shape[1]) if group_sizes is None else np.asarray(group_sizes, dtype=np.int64)
    if sizes.sum() != rewards.size:
        raise ValueError(f"group_sizes must add up to the {rewards.size} rewards; got {sizes.sum()}")
    flat, order, groups = rewards.ravel(), ranks.ravel(), []
    for end, size in zip(np.cumsum(sizes), sizes, strict=True):
        members = np.arange(end - size, end)
        better = order[members][:, None] < order[members][None, :]
        equal = np.triu(order[members][:, None] == order[members][None, :], 1) & (ties == "half")
        pairs = [np.nonzero(which) for which in (better, equal)]
        i, j = (members[np.concatenate([pair[side] for pair in pairs])] for side in (0, 1))
        groups.append(_Group(i, j, flat[i], flat[j], np.arange(i.size) >= pairs[0][0].size))
    return groups


def _shares(
    counts: Float64Array,
    weight: ArrayLike | None,
    average: Average,
    reduction: Reduction,
    denominator: ArrayLike | None,
) -> tuple[Float64Array, Float64Array]:
    """The weight of each pair of a group, and what the sum over them all is divided by."""
    weights = np.where(counts > 0.0, np.ones(counts.shape) if weight is None else _float64(weight), 0.0)
    share = weights / np.maximum(counts, 1.0) if average == "groups" else weights
    if reduction != "mean":
        return share, _float64(1.0)
    if denominator is not None:
        return share, _float64(denominator)
    total = np.sum(share * counts)
    return share, _float64(1.0 if total == 0.0 else total)


def _compared(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    scores, indices = np.asarray(scores), (np.asarray(chosen_index), np.asarray(rejected_index))
    for index in indices:
        if np.any((index < 0) | (index >= len(scores))):
            raise IndexError(f"an index is not in [0, {len(scores)})")
    return scores[indices[0]], scores[indices[1]]


class _Pairs(NamedTuple):
    """One entry a pair, float64."""

    chosen: Float64Array
    rejected: Float64Array
    difference: Float64Array  # a - b and a + b, rounded as the kernels round them
    sum: Float64Array
    z: Float64Array
    target: Float64Array  # label smoothing is in it
    weight: Float64Array
    counted: NDArray[np.bool_]  # w != 0; other pairs contribute exactly 0, even if their rewards are NaN


def _pairs(
    chosen: ArrayLike,
    rejected: ArrayLike,
    margin: ArrayLike | None,
    weight: ArrayLike | None,
    target: ArrayLike | None,
    beta: float,
    label_smoothing: float,
) -> _Pairs:
    a, b = np.asarray(chosen), np.asarray(rejected)
    if a.shape != b.shape:  # broadcasting (B, 1) against (B,) is a silent bug
        raise ValueError(f"chosen and rejected must have the same shape; got {a.shape} and {b.shape}")
    accumulate: type[np.floating[Any]] = np.float32 if a.dtype in (np.float16, np.float32) else np.float64
    a, b = a.astype(accumulate), b.astype(accumulate)
    difference, total = _float64(a - b), _float64(a + b)
    margins = _a_pair("margin", 0.0 if margin is None else margin, a.shape)
    targets = _a_pair("target", 1.0 if target is None else target, a.shape)
    weights = _a_pair("weight", np.ones(a.shape) if weight is None else weight, a.shape)
    return _Pairs(
        chosen=_float64(a),
        rejected=_float64(b),
        difference=difference,
        sum=total,
        z=beta * difference - margins,
        target=targets * (1.0 - 2.0 * label_smoothing) + label_smoothing,
        weight=weights,
        counted=weights != 0.0,
    )


def _a_pair(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Float64Array:
    """`value` as one entry a pair: it has the pairs' shape, or is one number."""
    array = _float64(value)
    if array.shape not in ((), shape):
        raise ValueError(f"{name} must have the shape of chosen, {shape}; got {array.shape}")
    return np.broadcast_to(array, shape)


def _divisor(pairs: _Pairs, reduction: Reduction, denominator: ArrayLike | None) -> Float64Array:
    if reduction != "mean":
        return _float64(1.0)
    if denominator is not None:
        return _float64(denominator)
    total = np.sum(pairs.weight)
    return _float64(1.0 if total == 0.0 else total)  # no pairs: the loss is 0, not 0 / 0


def _sums(pairs: _Pairs, losses: Float64Array) -> Float64Array:
    """The 16 sums of `PairStats`, in its order, over the pairs with w != 0."""
    a, b, difference, w, loss = (
        array[pairs.counted] for array in (pairs.chosen, pairs.rejected, pairs.difference, pairs.weight, losses)
    )
    rewards = np.concatenate((a, b))
    return np.array(
        [
            loss.size,
            np.sum(w),
            np.sum(w * w),
            np.sum(w * loss),
            np.sum(w * w * loss),
            np.sum(np.square(w * loss)),
            np.count_nonzero(a > b),
            np.count_nonzero(a == b),
            np.sum(difference),
            np.sum(np.square(difference)),
            np.sum(a),
            np.sum(np.square(a)),
            np.sum(b),
            np.sum(np.square(b)),
            np.min(rewards, initial=np.inf),
            np.max(rewards, initial=-np.inf),
        ],
        dtype=np.float64,
    )


def _sigmoid(z: Float64Array) -> Float64Array:
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z < 0, e, 1.0) / (1.0 + e))


def _float64(value: ArrayLike) -> Float64Array:
    return np.asarray(value, dtype=np.float64)
