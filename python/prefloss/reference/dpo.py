"""The loss of implicit rewards, beta (policy - reference)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .paired import Float64Array, Reduction, bradley_terry_loss, float64


@np.errstate(all="ignore")
def dpo_loss(
    policy_chosen_logps: ArrayLike,
    policy_rejected_logps: ArrayLike,
    reference_chosen_logps: ArrayLike | None,
    reference_rejected_logps: ArrayLike | None,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    flip_rate: float = 0.0,
    weight: ArrayLike | None = None,
    reduction: Reduction = "mean",
    denominator: ArrayLike | None = None,
    return_stats: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """The loss, float64, of -log sigma(beta ((p_a - r_a) - (p_b - r_b))); with `return_stats`, (loss, sums).

    Args are those of `prefloss.dpo_loss`. All differences are taken in float64. Raises ValueError where one reference is missing.
    """
    if (reference_chosen_logps is None) != (reference_rejected_logps is None):
        raise ValueError("reference_chosen_logps and reference_rejected_logps must both be given, or both be None")
    chosen, rejected = (
        beta * (float64(policy) - (0.0 if fixed is None else float64(fixed)))
        for policy, fixed in (
            (policy_chosen_logps, reference_chosen_logps),
            (policy_rejected_logps, reference_rejected_logps),
        )
    )
    options: dict[str, Any] = {
        "label_smoothing": label_smoothing,
        "flip_rate": flip_rate,
        "weight": weight,
        "reduction": reduction,
        "denominator": denominator,
        "return_stats": return_stats,
    }
    result: Float64Array | tuple[Float64Array, Float64Array] = bradley_terry_loss(chosen, rejected, **options)
    return result
