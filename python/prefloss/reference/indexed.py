"""Comparisons of items by index: the pairs of the items' scores."""

from __future__ import annotations

from typing import Any

from .arrays import (
    Array,
    ArrayLike,
    array_namespace,
    as_array,
    difference_dtype,
    is_known_to_hold,
    is_torch_array,
    namespace_of,
    sum_dtype,
    total_by_index,
    without_warnings,
)
from .paired import Pairs, bradley_terry_gradient, bradley_terry_loss, least, scale_of, smoothing_of, sums_of


@without_warnings
def bradley_terry_loss_indexed(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike, **options: Any
) -> Array | tuple[Array, Array]:
    """`bradley_terry_loss` of the scores of the compared items. IndexError for an index that is not in [0, n); -1 is none."""
    scores, indices, compared = _compared(scores, chosen_index, rejected_index)
    if not options.pop("return_stats", False):
        return bradley_terry_loss(*compared, **options)
    smoothing = smoothing_of(options.get("label_smoothing", 0.0), options.get("flip_rate", 0.0))
    margin, weight, target = (options.get(name) for name in ("margin", "weight", "target"))
    pairs = Pairs.of(*compared, margin, weight, target, options.get("beta", 1.0), smoothing)
    return bradley_terry_loss(*compared, **options), _sums(pairs, indices, scores.shape[0])


def _sums(pairs: Pairs, indices: tuple[Array, Array], items: int) -> Array:
    """The sums of `PairStats`. A unit is an item, with half of each of its comparisons."""
    xp, dtype = array_namespace(pairs.z), sum_dtype(pairs.z)
    w, loss = xp.astype(pairs.weight, dtype, copy=False), pairs.losses(dtype)
    ends = xp.concat(indices)
    weight, sum_of_losses = (total_by_index(ends, xp.concat((0.5 * each,) * 2), items) for each in (w, w * loss))
    from_mean = w / scale_of(weight) * (loss - xp.sum(w * loss) / xp.sum(w))
    linked = xp.sum(xp.astype(pairs.counted, dtype)) ** 2
    in_all = -least(-xp.abs(weight), 0.0) >= 0.5 * xp.abs(xp.sum(w)) * (1.0 - 1e-9)  # an item is in all of them
    return sums_of(
        pairs,
        loss,
        units=(weight, xp.where(weight == 0.0, 0.0, sum_of_losses / weight)),
        linked=(xp.where(in_all, 2.0, 1.0) * linked, xp.sum(xp.where(pairs.counted, xp.square(from_mean), 0.0))),
    )


def bradley_terry_gradient_indexed(
    grad: ArrayLike, scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike, **options: Any
) -> tuple[Array, Array]:
    """(grad_scores, grad_margin): one entry an item, which adds up its comparisons, and one a comparison."""
    scores, indices, compared = _compared(scores, chosen_index, rejected_index)
    xp = array_namespace(scores)
    grad_chosen, grad_rejected, grad_margin = bradley_terry_gradient(grad, *compared, **options)
    return total_by_index(xp.concat(indices), xp.concat((grad_chosen, grad_rejected)), scores.shape[0]), grad_margin


def _compared(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike
) -> tuple[Array, tuple[Array, Array], tuple[Array, Array]]:
    """The scores, both indices, and the scores of the items that they name.

    Halves become wide first, so that what comes back to an item is rounded once, when it is added up.
    """
    xp = namespace_of(scores, chosen_index, rejected_index)
    scores, chosen, rejected = (as_array(xp, value) for value in (scores, chosen_index, rejected_index))
    scores = xp.astype(scores, difference_dtype(scores), copy=False)
    for index in (chosen, rejected):
        # torch looks itself. Others take -1 for the last item, or take the nearest one.
        if not is_torch_array(index) and is_known_to_hold(xp.any((index < 0) | (index >= scores.shape[0]))):
            raise IndexError(f"an index is not in [0, {scores.shape[0]})")
    return scores, (chosen, rejected), (xp.take(scores, chosen, axis=0), xp.take(scores, rejected, axis=0))
