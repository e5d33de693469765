"""The loss of implicit rewards, beta (policy - reference)."""

from __future__ import annotations

from typing import Any

from .arrays import Array, ArrayLike, as_array, beside, formula_dtype, namespace_of, without_warnings
from .paired import Reduction, bradley_terry_loss


@without_warnings
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
) -> Array | tuple[Array, Array]:
    """The loss of -log sigma(beta ((p_a - r_a) - (p_b - r_b))); with `return_stats`, (loss, sums).

    Args are those of `prefloss.dpo_loss`. All differences are taken in the type of the formula,
    NumPy's in float64. Raises ValueError where one reference is missing.
    """
    if (reference_chosen_logps is None) != (reference_rejected_logps is None):
        raise ValueError("reference_chosen_logps and reference_rejected_logps must both be given, or both be None")
    chosen = _implicit_rewards(policy_chosen_logps, reference_chosen_logps, beta)
    rejected = _implicit_rewards(policy_rejected_logps, reference_rejected_logps, beta)
    options: dict[str, Any] = {
        "label_smoothing": label_smoothing,
        "flip_rate": flip_rate,
        "weight": weight,
        "reduction": reduction,
        "denominator": denominator,
        "return_stats": return_stats,
    }
    return bradley_terry_loss(chosen, rejected, **options)


def _implicit_rewards(policy: ArrayLike, reference: ArrayLike | None, beta: float) -> Array:
    xp = namespace_of(policy)
    policy = as_array(xp, policy)
    wide = xp.astype(policy, formula_dtype(policy), copy=False)
    return beta * (wide - (0.0 if reference is None else beside(reference, wide)))
