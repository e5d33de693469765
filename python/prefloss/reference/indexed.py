"""Comparisons of items by index: the pairs of the items' scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .paired import Float64Array, bradley_terry_gradient, bradley_terry_loss


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


def _compared(
    scores: ArrayLike, chosen_index: ArrayLike, rejected_index: ArrayLike
) -> tuple[NDArray[Any], NDArray[Any]]:
    scores, indices = np.asarray(scores), (np.asarray(chosen_index), np.asarray(rejected_index))
    for index in indices:
        if np.any((index < 0) | (index >= len(scores))):
            raise IndexError(f"an index is not in [0, {len(scores)})")
    return scores[indices[0]], scores[indices[1]]
