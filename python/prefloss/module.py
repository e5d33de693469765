"""The loss as a torch.nn.Module."""

from __future__ import annotations

import torch
from torch import Tensor

from . import arguments
from .paired import Reduction, Result, bradley_terry_loss


class BradleyTerryLoss(torch.nn.Module):
    """`bradley_terry_loss` with its fixed options set once; no parameters, no state.

    Args:
        beta, label_smoothing, center_rewards_coefficient, reduction: as in `bradley_terry_loss`, and checked here.

    The module is called with (chosen, rejected) and the options that change from batch to batch.
    """

    def __init__(
        self,
        *,
        beta: float = 1.0,
        label_smoothing: float = 0.0,
        center_rewards_coefficient: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        coefficients = arguments.check_coefficients(beta, label_smoothing, center_rewards_coefficient)
        arguments.check_choice("reduction", reduction, arguments.REDUCTIONS)
        self.beta, self.label_smoothing, self.center_rewards_coefficient = coefficients
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        margin: Tensor | float | None = None,
        weight: Tensor | None = None,
        target: Tensor | float | None = None,
        denominator: Tensor | float | None = None,
        return_stats: bool = False,
    ) -> Result:
        """See `bradley_terry_loss`."""
        return bradley_terry_loss(
            chosen,
            rejected,
            margin=margin,
            weight=weight,
            target=target,
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            center_rewards_coefficient=self.center_rewards_coefficient,
            reduction=self.reduction,
            denominator=denominator,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, label_smoothing={self.label_smoothing}, "
            f"center_rewards_coefficient={self.center_rewards_coefficient}, reduction={self.reduction!r}"
        )
