"""Comparisons of items by index: the pairs of the items' scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .paired import (
    Float64Array,
    Pairs,
    bradley_terry_gradient,
    bradley_terry_loss,
    float64,
    scale_of,
    smoothing_of,
    sums_of,
)


@np.errstate(all="ignore")
def bradley_terry_loss_indexed(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike, **options: Any
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """`bradley_terry_loss` of the scores of the items that are compared. Raises IndexError; -1 is no item."""
    compared = _compared(scores, chosen_index, rejected_index)
    if not options.pop("return_stats", False):
        loss: Float64Array = bradley_terry_loss(*compared, **options)
        return loss
    smoothing = smoothing_of(options.get("label_smoothing", 0.0), options.get("flip_rate", 0.0))
    margin, weight, target = (options.get(name) for name in ("margin", "weight", "target"))
    pairs = Pairs.of(*compared, margin, weight, target, options.get("beta", 1.0), smoothing)
    sums = _sums(pairs, np.asarray(chosen_index), np.asarray(rejected_index), len(np.asarray(scores)))
    return bradley_terry_loss(*compared, **options), sums


def _sums(pairs: Pairs, chosen_index: NDArray[Any], rejected_index: NDArray[Any], items: int) -> Float64Array:
    """The sums of `PairStats`. A unit is an item, with half of each of its comparisons."""
    losses, counted = pairs.losses(), pairs.counted
    w, loss = pairs.weight[counted], losses[counted]
    ends = np.concatenate((chosen_index[counted], rejected_index[counted]))
    weight, total = (float64(np.bincount(ends, np.tile(0.5 * each, 2), items)) for each in (w, w * loss))
    from_mean = (w / scale_of(weight[weight != 0.0])) * (loss - np.sum(w * loss) / np.sum(w))
    linked = float64(w.size) ** 2
    if np.max(np.abs(weight), initial=0.0) >= 0.5 * np.abs(np.sum(w)) * (1.0 - 1e-9):  # an item is in all of them
        linked = 2.0 * linked
    return sums_of(pairs, losses, units=(weight, total / weight), linked=(float(linked), np.sum(np.square(from_mean))))


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


def _compared(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    scores, indices = np.asarray(scores), (np.asarray(chosen_index), np.asarray(rejected_index))
    for index in indices:
        if np.any((index < 0) | (index >= len(scores))):
            raise IndexError(f"an index is not in [0, {len(scores)})")
    return scores[indices[0]], scores[indices[1]]
