"""`dpo_loss`: the loss of pairs whose rewards are a policy's log-probabilities less a reference's. Its formula is that of pairs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from . import arguments
from .paired import bradley_terry_loss
from .pairs import DEFAULTS
from .stats import PairStats
from .sums import scaled_rewards
from .torch_internals import requires_gradient

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .paired import Reduction, Result

BETA = 0.1


class DPOOptions(TypedDict, total=False):
    """The options of `dpo_loss`, which documents them."""

    beta: float
    label_smoothing: float
    flip_rate: float
    weight: Tensor | None
    reduction: Reduction
    denominator: Tensor | float | None


@overload
def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None,
    reference_rejected_logps: Tensor | None,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[DPOOptions],
) -> Tensor: ...
@overload
def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None,
    reference_rejected_logps: Tensor | None,
    *,
    return_stats: Literal[True],
    **options: Unpack[DPOOptions],
) -> tuple[Tensor, PairStats]: ...
@overload
def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None,
    reference_rejected_logps: Tensor | None,
    *,
    return_stats: bool,
    **options: Unpack[DPOOptions],
) -> Result: ...
def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor | None,
    reference_rejected_logps: Tensor | None,
    *,
    beta: float = BETA,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """The loss of direct preference optimisation: `bradley_terry_loss` of the implicit rewards beta (policy - reference).

    With p_a, p_b the policy's log-probabilities of the chosen and the rejected response, and r_a, r_b those of the reference,

        z = beta ((p_a - r_a) - (p_b - r_b))
        l = -log sigma(z)

    and ``label_smoothing`` (cDPO), ``flip_rate`` (robust DPO), ``weight``, ``reduction`` and ``denominator`` as in
    `bradley_terry_loss`. The reference is subtracted first, because this order rounds least: the two log-probabilities of one
    response are close to each other, so their difference is exact if one is at most twice the other (Sterbenz 1974). Those of two
    responses may differ by hundreds. Half-precision log-probabilities are subtracted in float32.

    >>> import prefloss, torch
    >>> policy = torch.tensor([-10.0, -42.0]), torch.tensor([-12.0, -40.0])
    >>> reference = torch.tensor([-11.0, -41.0]), torch.tensor([-11.0, -41.5])
    >>> loss, stats = prefloss.dpo_loss(*policy, *reference, beta=0.5, return_stats=True)
    >>> loss
    tensor(0.9076)
    >>> stats.accuracy, stats.chosen_mean, stats.rejected_mean
    (0.5, 0.0, 0.125)

    Args:
        policy_chosen_logps, policy_rejected_logps: log-probabilities (nats) of the responses, summed over their tokens; any shape,
            one entry a pair; float64, float32, bfloat16 or float16.
        reference_chosen_logps, reference_rejected_logps: the same under the reference model, which must not require a gradient.
            None for both means no reference, as if they were 0. All four have one shape and device; their dtypes may differ.
        beta: how far the policy may go from the reference: a finite number > 0.
        label_smoothing: the probability that a label is wrong, in [0, 0.5]: cDPO.
        flip_rate: the known share of wrong labels, in [0, 0.5): robust DPO. Not together with ``label_smoothing``.
        weight: one entry a pair; a bool tensor is a mask. A pair of weight 0 adds exactly 0, even if it is NaN.
        reduction, denominator: see `bradley_terry_loss`.
        return_stats: also return `PairStats` of the implicit rewards, which include the factor beta.

    Returns:
        The loss, float64 if one of the log-probabilities is, else float32; with ``return_stats``, (loss, `PairStats`).
        Gradients have the dtypes of the log-probabilities.

    Raises:
        TypeError: not a dense tensor, or a dtype or type that is not accepted.
        ValueError: shapes, devices or values that are not accepted; one reference without the other; a reference or ``weight``
            that requires a gradient.

    Sources: Rafailov et al. 2023 (arXiv 2305.18290) eq. 7; cDPO: Mitchell 2023; robust DPO: Chowdhury, Kini & Natarajan 2024
    (2403.00409) eq. 9.
    """
    chosen, rejected = _implicit_rewards(
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    number = BETA if beta is None else arguments.check_number("beta", beta, "a finite number > 0", math.ulp(0.0))
    result = bradley_terry_loss(
        chosen,
        rejected,
        weight=weight,
        beta=number,
        label_smoothing=label_smoothing,
        flip_rate=flip_rate,
        reduction=reduction,
        denominator=denominator,
        return_stats=return_stats,
    )
    if isinstance(result, Tensor):
        return result
    loss, stats = result
    return loss, PairStats(scaled_rewards(stats.sums, number))


def _implicit_rewards(
    policy_chosen_logps: object,
    policy_rejected_logps: object,
    reference_chosen_logps: object,
    reference_rejected_logps: object,
) -> tuple[Tensor, Tensor]:
    """Policy less reference of both responses, not yet times beta: the kernel multiplies their difference, with one rounding."""
    given = {"policy_chosen_logps": policy_chosen_logps, "policy_rejected_logps": policy_rejected_logps}
    references = {
        "reference_chosen_logps": reference_chosen_logps,
        "reference_rejected_logps": reference_rejected_logps,
    }
    missing = [name for name, value in references.items() if value is None]
    if len(missing) == 1:
        (there,) = references.keys() - missing
        raise ValueError(f"{missing[0]} must be given where {there} is, or both must be None (no reference); got None")
    logps = {
        name: arguments.check_rewards(name, value, "log-probabilities")
        for name, value in (given if missing else given | references).items()
    }
    first = logps["policy_chosen_logps"]
    for name, tensor in logps.items():
        if tensor.shape != first.shape or tensor.device != first.device:
            raise ValueError(
                f"{name} must have the shape and device of policy_chosen_logps, {tuple(first.shape)} on {first.device} "
                f"(nothing is broadcast), got {tuple(tensor.shape)} on {tensor.device}"
            )
        if name in references and requires_gradient(tensor):
            raise ValueError(
                f"{name} must not require a gradient, got a tensor with requires_grad=True: the reference is fixed; compute it "
                f"under torch.no_grad(), or pass {name}.detach()"
            )
    wide = torch.float64 if any(tensor.dtype is torch.float64 for tensor in logps.values()) else torch.float32
    policies = [logps[name].to(wide) for name in given]
    if missing:
        return policies[0], policies[1]
    chosen, rejected = (policy - logps[name].to(wide) for policy, name in zip(policies, references, strict=True))
    return chosen, rejected
