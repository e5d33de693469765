"""The loss of two arrays of rewards, and what all layouts share: the pairs, the formula and the sums."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, overload

from .arrays import (
    Array,
    ArrayLike,
    array_namespace,
    as_array,
    beside,
    difference_dtype,
    formula_dtype,
    is_array,
    namespace_of,
    sum_dtype,
    total,
    without_warnings,
)

Reduction: TypeAlias = Literal["mean", "sum", "none"]
Layout: TypeAlias = Literal["halves", "interleaved"]


@without_warnings
def pair_loss(z: ArrayLike, target: ArrayLike = 1.0, complement: ArrayLike | None = None) -> Array:
    """l(z, t) = -t log sigma(z) - (1 - t) log sigma(-z) = log1p(exp(-|z|)) + |z| (t where z < 0, else 1 - t).

    `complement` is 1 - t, for where more of its digits are known than those of a rounded t.
    """
    z, target, complement = _targets(z, target, complement)
    xp = array_namespace(z)
    # Written so that a library's own derivatives of it are right. Of |z| they are 0 at z = 0; each branch goes smoothly through it.
    magnitude, factor = xp.where(z < 0, -z, z), xp.where(z < 0, target, complement)
    # inf * 0 must not become NaN, nor what a derivative makes of it.
    hinge = xp.where(factor == 0.0, 0.0, magnitude) * factor
    return xp.log1p(xp.exp(-magnitude)) + hinge


@without_warnings
def pair_slope(z: ArrayLike, target: ArrayLike = 1.0, complement: ArrayLike | None = None) -> Array:
    """dl/dz = -t sigma(-z) + (1 - t) sigma(z); never sigma(z) - 1, which loses the tail."""
    z, target, complement = _targets(z, target, complement)
    return complement * _sigmoid(z) - target * _sigmoid(-z)


@without_warnings
def pair_curvature(z: ArrayLike) -> Array:
    """d2l/dz2 = sigma(z) sigma(-z), whatever the target."""
    z, *_ = _targets(z, 1.0, None)
    xp = array_namespace(z)
    e = xp.exp(-xp.abs(z))
    return e / (1.0 + e) / (1.0 + e)


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
) -> Array: ...
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
) -> tuple[Array, Array]: ...
@without_warnings
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
) -> Array | tuple[Array, Array]:
    """The loss: 0-d, or one term a pair for reduction "none".

    Args are those of `prefloss.bradley_terry_loss`. With `return_stats` it returns (loss, sums), the sums of `PairStats`. Raises
    ValueError where shapes differ.
    """
    pairs = Pairs.of(chosen, rejected, margin, weight, target, beta, smoothing_of(label_smoothing, flip_rate))
    xp = array_namespace(pairs.z)
    losses = pairs.losses()
    terms = losses
    if center_rewards_coefficient != 0.0:  # an option that is off must not turn an overflowing square into NaN
        # Of half the sum: a derivative of the square of all of it would multiply by 2 (a + b), which may be too large.
        terms = losses + 4.0 * (center_rewards_coefficient * xp.square(0.5 * pairs.sum))
    loss = xp.where(pairs.counted, pairs.weight * xp.astype(terms, sum_dtype(terms), copy=False), 0.0)
    if reduction != "none":
        loss = xp.sum(loss) / _divisor(pairs, reduction, denominator)
    loss = xp.astype(loss, losses.dtype, copy=False)
    return (loss, sums_of(pairs, pairs.losses(sum_dtype(losses)))) if return_stats else loss


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
) -> Array: ...
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
) -> tuple[Array, Array]: ...
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
) -> Array | tuple[Array, Array]:
    """`bradley_terry_loss` of the two halves along dimension 0, or of its even ("interleaved": chosen) and odd entries.

    Raises ValueError where dimension 0 cannot be split in two.
    """
    rewards = as_array(namespace_of(rewards), rewards)
    if rewards.ndim == 0 or rewards.shape[0] % 2:
        raise ValueError(f"rewards must have an even number of entries along dimension 0; got {tuple(rewards.shape)}")
    half = rewards.shape[0] // 2
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
    result: Array | tuple[Array, Array] = bradley_terry_loss(*both, **options)
    return result


@without_warnings
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
) -> tuple[Array, Array, Array]:
    """(grad_chosen, grad_rejected, grad_margin), one entry a pair each, for the upstream gradient `grad`.

    `grad` is a number, or one entry a pair for reduction "none":

        d/da = grad w (beta l' + 2 c (a + b)) / D
        d/db = grad w (-beta l' + 2 c (a + b)) / D
        d/dm = -grad w l' / D
    """
    pairs = Pairs.of(chosen, rejected, margin, weight, target, beta, smoothing_of(label_smoothing, flip_rate))
    xp = array_namespace(pairs.z)
    slope = pair_slope(pairs.z, pairs.target, pairs.complement)
    # As in the loss: an option that is off must not meet an infinite sum.
    centring = 2.0 * center_rewards_coefficient * pairs.sum if center_rewards_coefficient != 0.0 else 0.0
    scale = beside(grad, pairs.z) * pairs.weight / _divisor(pairs, reduction, denominator)

    def scaled(derivative: Array) -> Array:
        return xp.astype(xp.where(pairs.counted, scale * derivative, 0.0), slope.dtype, copy=False)

    return scaled(centring + beta * slope), scaled(centring - beta * slope), scaled(-slope)


def smoothing_of(label_smoothing: float, flip_rate: float) -> float:
    """The label smoothing that either option is. Flipped labels are corrected by a negative one."""
    if label_smoothing != 0.0 and flip_rate != 0.0:
        raise ValueError(f"give label_smoothing or flip_rate, not both; got {label_smoothing} and {flip_rate}")
    if not 0.0 <= flip_rate < 0.5:
        raise ValueError(f"flip_rate must lie in [0, 0.5); got {flip_rate}")
    return label_smoothing if flip_rate == 0.0 else -flip_rate / (1.0 - 2.0 * flip_rate)


class Pairs(NamedTuple):
    """One entry a pair.

    A pair of weight 0 contributes exactly 0 to everything, even if its rewards are NaN. So it has the rewards, the margin and
    the target 0 here: a derivative that is NaN would stay so, even multiplied by 0.
    """

    chosen: Array
    rejected: Array
    difference: Array  # a - b and a + b, rounded as the kernels round them
    sum: Array
    z: Array
    target: Array  # label smoothing is in it
    complement: Array  # 1 - target, formed before either is rounded
    weight: Array
    counted: Array  # w != 0

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
        xp = namespace_of(chosen, rejected)
        a, b = as_array(xp, chosen), as_array(xp, rejected)
        if a.shape != b.shape:  # broadcasting (B, 1) against (B,) is a silent bug
            raise ValueError(f"chosen and rejected must have the same shape; got {tuple(a.shape)} and {tuple(b.shape)}")
        short, wide = difference_dtype(a), formula_dtype(a)
        a, b = xp.astype(a, short, copy=False), xp.astype(b, short, copy=False)
        margins, targets, weights = (
            _a_pair(name, default if value is None else value, a, wide)
            for name, value, default in (("margin", margin, 0.0), ("target", target, 1.0), ("weight", weight, 1.0))
        )
        # Of a number, 1 - target is taken before it is rounded to the type of the formula.
        complements = 1.0 - targets
        if target is not None and (isinstance(target, (int, float)) or (is_array(target) and target.ndim == 0)):
            complements = _a_pair("target", 1.0 - target, a, wide)
        counted = weights != 0.0
        if weight is not None:
            a, b, margins, targets, complements = (
                xp.where(counted, column, 0.0) for column in (a, b, margins, targets, complements)
            )
        difference, both = xp.astype(a - b, wide, copy=False), xp.astype(a + b, wide, copy=False)
        return cls(
            chosen=xp.astype(a, wide, copy=False),
            rejected=xp.astype(b, wide, copy=False),
            difference=difference,
            sum=both,
            z=beta * difference - margins,
            target=targets * (1.0 - 2.0 * smoothing) + smoothing,
            complement=complements * (1.0 - 2.0 * smoothing) + smoothing,
            weight=weights,
            counted=counted,
        )

    def losses(self, dtype: Any = None) -> Array:
        """Without centring. For statistics in the type of the sums, whose digits nearly equal losses differ by."""
        xp = array_namespace(self.z)
        of_pairs = self.z, self.target, self.complement
        return pair_loss(*(xp.astype(each, self.z.dtype if dtype is None else dtype, copy=False) for each in of_pairs))


def _a_pair(name: str, value: ArrayLike, rewards: Array, dtype: Any) -> Array:
    """`value` as one entry a pair: it has the rewards' shape, or is one number."""
    array = beside(value, rewards, dtype)
    if tuple(array.shape) not in ((), tuple(rewards.shape)):
        raise ValueError(f"{name} must have the shape of chosen, {tuple(rewards.shape)}; got {tuple(array.shape)}")
    return array_namespace(rewards).broadcast_to(array, rewards.shape)


def _divisor(pairs: Pairs, reduction: Reduction, denominator: ArrayLike | None) -> Array:
    xp = array_namespace(pairs.z)
    if reduction != "mean":
        return beside(1.0, pairs.z)
    if denominator is not None:
        return beside(denominator, pairs.z, sum_dtype(pairs.z))
    weight = total(pairs.weight)
    return xp.where(weight == 0.0, 1.0, weight)  # no pairs: the loss is 0, not 0 / 0


def sums_of(
    pairs: Pairs,
    losses: Array,
    times: ArrayLike = 1.0,
    tied: ArrayLike = False,
    units: tuple[Array, Array] | None = None,
    list_variance: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
    linked: tuple[ArrayLike, ArrayLike] = (0.0, 0.0),
) -> Array:
    """The sums of `PairStats`, in its order, over the pairs with w != 0, each counted `times` times.

    `tied`: pairs of equal rank, which come in both orders, so that their differences add up to 0, infinite ones too.
    `units`: the weight of each unit, and its mean loss; not given: each pair is one. The last two arguments are sums.
    """
    xp, counted = array_namespace(losses), pairs.counted
    dtype = sum_dtype(losses)
    a, b, difference, w, loss = (
        xp.astype(column, dtype, copy=False)
        for column in (pairs.chosen, pairs.rejected, pairs.difference, pairs.weight, losses)
    )
    n = xp.where(counted, beside(times, loss), 0.0)  # rewards that are not counted are 0, so 0 times each adds nothing
    count = xp.sum(n)

    def centred(values: Array, to_total: Array = n) -> tuple[Array, Array]:
        """The sum, and the sum of squares about the mean."""
        sum_ = xp.sum(to_total * values)
        return sum_, xp.sum(n * xp.square(values - sum_ / xp.where(count == 0.0, 1.0, count)))

    sums = [
        count,
        xp.sum(n * w),
        xp.sum(xp.where(a > b, n * w, 0.0)),
        xp.sum(xp.where(a == b, n * w, 0.0)),
        xp.sum(n * w * loss),
        *_unit_sums(*((w, loss) if units is None else units)),
        xp.sum(xp.where(a > b, n, 0.0)),
        xp.sum(xp.where(a == b, n, 0.0)),
        *centred(difference, xp.where(beside(tied, counted), 0.0, n)),
        *centred(a),
        *centred(b),
        least(xp.where(counted, xp.minimum(a, b), xp.inf), xp.inf),
        -least(xp.where(counted, -xp.maximum(a, b), xp.inf), xp.inf),
        *list_variance,
        *linked,
    ]
    return xp.stack([beside(value, loss) for value in sums])


def _unit_sums(weight: Array, loss: Array) -> list[Any]:
    """From UNITS to CUBED_WEIGHT_LOSS_CUBES, over the units with weight != 0."""
    xp = array_namespace(weight)
    there = weight != 0.0
    scale = scale_of(weight)
    v = xp.where(there, weight / scale, 0.0)
    squares = xp.sum(v**2)
    mean = xp.sum(xp.where(there, v**2 * loss, 0.0))
    from_mean = xp.where(there, loss - mean / xp.where(squares == 0.0, 1.0, squares), 0.0)
    return [
        xp.sum(xp.astype(there, weight.dtype)),
        scale,
        *(xp.sum(v**power) for power in (2, 3, 4, 5)),
        mean,
        xp.sum(xp.square(v * from_mean)),
        *(xp.sum(v**3 * from_mean**power) for power in (1, 2, 3)),
    ]


def scale_of(weight: Array) -> Array:
    """The power of two at or below the greatest |weight|, whose inverse is a number; 0 where there is none."""
    xp = array_namespace(weight)
    most = -least(-xp.abs(weight), 0.0)
    end = xp.log2(beside(xp.finfo(weight.dtype).smallest_normal, weight))
    power = xp.clip(xp.floor(xp.log2(most)), end, -end)
    return xp.where(most == 0.0, 0.0, 2.0**power)


def least(values: Array, at_most: float) -> Array:
    """The least of the values, or `at_most` where there is none below it; NaN where one is NaN."""
    xp = array_namespace(values)
    return xp.min(xp.concat((xp.reshape(values, (-1,)), beside([at_most], values))))


def _targets(z: ArrayLike, target: ArrayLike, complement: ArrayLike | None) -> tuple[Array, Array, Array]:
    xp = namespace_of(z, target)
    z = as_array(xp, z)
    z = xp.astype(z, formula_dtype(z), copy=False)
    target = beside(target, z)
    return z, target, 1.0 - target if complement is None else beside(complement, z)


def _sigmoid(z: Array) -> Array:
    xp = array_namespace(z)
    e = xp.exp(-xp.abs(z))
    return xp.where(z < 0, e, 1.0) / (1.0 + e)
