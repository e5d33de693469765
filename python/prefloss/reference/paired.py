"""The loss of two arrays of rewards, and what all layouts share: the pairs, the formula and the sums."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64Array: TypeAlias = NDArray[np.float64]
Reduction: TypeAlias = Literal["mean", "sum", "none"]
Layout: TypeAlias = Literal["halves", "interleaved"]


@np.errstate(all="ignore")
def pair_loss(z: ArrayLike, target: ArrayLike = 1.0, complement: ArrayLike | None = None) -> Float64Array:
    """l(z, t) = -t log sigma(z) - (1 - t) log sigma(-z) = log1p(exp(-|z|)) + |z| (t where z < 0, else 1 - t).

    `complement` is 1 - t, for where more of its digits are known than those of a rounded t.
    """
    z, target, complement = _targets(z, target, complement)
    magnitude, factor = np.abs(z), np.where(z < 0, target, complement)
    hinge = np.where(factor == 0.0, 0.0, magnitude * factor)  # inf * 0 must not become NaN
    return np.asarray(np.log1p(np.exp(-magnitude)) + hinge)


@np.errstate(all="ignore")
def pair_slope(z: ArrayLike, target: ArrayLike = 1.0, complement: ArrayLike | None = None) -> Float64Array:
    """dl/dz = -t sigma(-z) + (1 - t) sigma(z); never sigma(z) - 1, which loses the tail."""
    z, target, complement = _targets(z, target, complement)
    return np.asarray(complement * _sigmoid(z) - target * _sigmoid(-z))


@np.errstate(all="ignore")
def pair_curvature(z: ArrayLike) -> Float64Array:
    """d2l/dz2 = sigma(z) sigma(-z), whatever the target."""
    e = np.exp(-np.abs(float64(z)))
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
    flip_rate: float = ...,
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
    flip_rate: float = ...,
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
    flip_rate: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """The loss, float64: 0-d, or one term a pair for reduction "none".

    Args are those of `prefloss.bradley_terry_loss`. With `return_stats`, (loss, sums): those of `PairStats`. Raises
    ValueError where shapes differ.
    """
    pairs = Pairs.of(chosen, rejected, margin, weight, target, beta, smoothing_of(label_smoothing, flip_rate))
    losses = pairs.losses()
    terms = losses
    if center_rewards_coefficient != 0.0:  # an option that is off must not turn an overflowing square into NaN
        terms = losses + center_rewards_coefficient * np.square(pairs.sum)
    terms = np.where(pairs.counted, pairs.weight * terms, 0.0)
    loss = terms if reduction == "none" else np.asarray(np.sum(terms) / _divisor(pairs, reduction, denominator))
    return (loss, sums_of(pairs, losses)) if return_stats else loss


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
    flip_rate: float = ...,
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
    flip_rate: float = ...,
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
    flip_rate: float = 0.0,
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
        "flip_rate": flip_rate,
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
    flip_rate: float = 0.0,
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
    pairs = Pairs.of(chosen, rejected, margin, weight, target, beta, smoothing_of(label_smoothing, flip_rate))
    slope = pair_slope(pairs.z, pairs.target, pairs.complement)
    # As in the loss: an option that is off must not meet an infinite sum.
    centring = 2.0 * center_rewards_coefficient * pairs.sum if center_rewards_coefficient != 0.0 else float64(0.0)
    scale = float64(grad) * pairs.weight / _divisor(pairs, reduction, denominator)

    def scaled(derivative: Float64Array) -> Float64Array:
        return np.where(pairs.counted, scale * derivative, 0.0)

    return scaled(centring + beta * slope), scaled(centring - beta * slope), scaled(-slope)


def smoothing_of(label_smoothing: float, flip_rate: float) -> float:
    """The label smoothing that either option is. Flipped labels are corrected by a negative one."""
    if label_smoothing != 0.0 and flip_rate != 0.0:
        raise ValueError(f"give label_smoothing or flip_rate, not both; got {label_smoothing} and {flip_rate}")
    if not 0.0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must lie in [0, 0.5); got {flip_rate}")
    return label_smoothing if flip_rate == 0.0 else -flip_rate / (1.0 - 2.0 * flip_rate)


class Pairs(NamedTuple):
    """One entry a pair, float64."""

    chosen: Float64Array
    rejected: Float64Array
    difference: Float64Array  # a - b and a + b, rounded as the kernels round them
    sum: Float64Array
    z: Float64Array
    target: Float64Array  # label smoothing is in it
    complement: Float64Array  # 1 - target, formed before either is rounded
    weight: Float64Array
    counted: NDArray[np.bool_]  # w != 0; other pairs contribute exactly 0, even if their rewards are NaN

    @classmethod
    def of(
        cls,
        chosen: ArrayLike,
        rejected: ArrayLike,
        margin: ArrayLike | None,
        weight: ArrayLike | None,
        target: ArrayLike | None,
        beta: float,
        smoothing: float,
    ) -> Pairs:
        """The pairs of two arrays of rewards, and what the options make of them."""
        a, b = np.asarray(chosen), np.asarray(rejected)
        if a.shape != b.shape:  # broadcasting (B, 1) against (B,) is a silent bug
            raise ValueError(f"chosen and rejected must have the same shape; got {a.shape} and {b.shape}")
        accumulate: type[np.floating[Any]] = np.float32 if a.dtype in (np.float16, np.float32) else np.float64
        a, b = a.astype(accumulate), b.astype(accumulate)
        difference, total = float64(a - b), float64(a + b)
        margins = _a_pair("margin", 0.0 if margin is None else margin, a.shape)
        targets = _a_pair("target", 1.0 if target is None else target, a.shape)
        weights = _a_pair("weight", np.ones(a.shape) if weight is None else weight, a.shape)
        return cls(
            chosen=float64(a),
            rejected=float64(b),
            difference=difference,
            sum=total,
            z=beta * difference - margins,
            target=targets * (1.0 - 2.0 * smoothing) + smoothing,
            complement=(1.0 - targets) * (1.0 - 2.0 * smoothing) + smoothing,
            weight=weights,
            counted=weights != 0.0,
        )

    def losses(self) -> Float64Array:
        """Without centring."""
        return pair_loss(self.z, self.target, self.complement)


def _a_pair(name: str, value: ArrayLike, shape: tuple[int, ...]) -> Float64Array:
    """`value` as one entry a pair: it has the pairs' shape, or is one number."""
    array = float64(value)
    if array.shape not in ((), shape):
        raise ValueError(f"{name} must have the shape of chosen, {shape}; got {array.shape}")
    return np.broadcast_to(array, shape)


def _divisor(pairs: Pairs, reduction: Reduction, denominator: ArrayLike | None) -> Float64Array:
    if reduction != "mean":
        return float64(1.0)
    if denominator is not None:
        return float64(denominator)
    total = np.sum(pairs.weight)
    return float64(1.0 if total == 0.0 else total)  # no pairs: the loss is 0, not 0 / 0


@np.errstate(all="ignore")
def sums_of(
    pairs: Pairs,
    losses: Float64Array,
    times: ArrayLike = 1.0,
    tied: ArrayLike = False,
    units: tuple[Float64Array, Float64Array] | None = None,
    list_variance: tuple[float, float] = (0.0, 0.0),
    linked: tuple[float, float] = (0.0, 0.0),
) -> Float64Array:
    """The sums of `PairStats`, in its order, over the pairs with w != 0, each counted `times` times.

    `tied`: pairs of equal rank, which come in both orders, so that their differences add up to 0, infinite ones too.
    `units`: the weight of each unit, and its mean loss; not given: each pair is one. The last two arguments are sums.
    """
    a, b, difference, w, loss, n, zero = (
        np.broadcast_to(array, pairs.counted.shape)[pairs.counted]
        for array in (pairs.chosen, pairs.rejected, pairs.difference, pairs.weight, losses, times, tied)
    )

    def centred(counts: Float64Array, values: Float64Array, counted: Float64Array) -> tuple[Float64Array, Float64Array]:
        """The sum, and the sum of squares about the mean."""
        total = np.sum((counts * values)[counted != 0.0])
        return total, np.sum(counts * np.square(values - total / np.sum(counts))) if loss.size else float64(0.0)

    every = np.ones(loss.shape)
    rewards = np.concatenate((a, b))
    return np.array(
        [
            np.sum(n),
            np.sum(n * w),
            np.sum((n * w)[a > b]),
            np.sum((n * w)[a == b]),
            np.sum(n * w * loss),
            *_unit_sums(*((w, loss) if units is None else units)),
            np.sum(n[a > b]),
            np.sum(n[a == b]),
            *centred(n, difference, 1.0 - zero),
            *centred(n, a, every),
            *centred(n, b, every),
            np.min(rewards, initial=np.inf),
            np.max(rewards, initial=-np.inf),
            *list_variance,
            *linked,
        ],
        dtype=np.float64,
    )


def _unit_sums(weight: Float64Array, loss: Float64Array) -> list[Any]:
    """From UNITS to CUBED_WEIGHT_LOSS_CUBES, over the units with weight != 0."""
    weight, loss = weight[weight != 0.0], loss[weight != 0.0]
    scale = scale_of(weight)
    v = weight / scale
    from_mean = loss - np.sum(v**2 * loss) / np.sum(v**2)
    return [
        loss.size,
        scale,
        *(np.sum(v**power) for power in (2, 3, 4, 5)),
        np.sum(v**2 * loss),
        np.sum(np.square(v * from_mean)),
        *(np.sum(v**3 * from_mean**power) for power in (1, 2, 3)),
    ]


def scale_of(weight: Float64Array) -> float:
    """The power of two at or below the greatest |weight|, whose inverse is a number; 0 where there is none."""
    return float(2.0 ** np.clip(np.floor(np.log2(np.max(np.abs(weight)))), -1022, 1022)) if weight.size else 0.0


def _targets(
    z: ArrayLike, target: ArrayLike, complement: ArrayLike | None
) -> tuple[Float64Array, Float64Array, Float64Array]:
    target = float64(target)
    return float64(z), target, 1.0 - target if complement is None else float64(complement)


def _sigmoid(z: Float64Array) -> Float64Array:
    e = np.exp(-np.abs(z))
    return np.asarray(np.where(z < 0, e, 1.0) / (1.0 + e))


def float64(value: ArrayLike) -> Float64Array:
    return np.asarray(value, dtype=np.float64)
