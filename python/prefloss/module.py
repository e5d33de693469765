"""The loss as a torch.nn.Module."""

from __future__ import annotations

import torch
from torch import Tensor

from . import arguments
from .paired import Reduction, Result, bradley_terry_loss
from .pairs import DEFAULTS


class BradleyTerryLoss(torch.nn.Module):
    """`bradley_terry_loss` as a module, with the fixed options set once. It has no parameters and no state.

    Args:
        beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction: as in `bradley_terry_loss`, and checked here.

    Call it with (chosen, rejected) or (chosen, rejected, margin); options that change from batch to batch are keywords of the call.

    >>> import prefloss, torch
    >>> criterion = prefloss.BradleyTerryLoss(beta=0.1)
    >>> criterion(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]), torch.tensor([0.5, 0.0]))
    tensor(0.8287)
    """

    def __init__(
        self,
        *,
        beta: float = DEFAULTS.beta,
        label_smoothing: float = DEFAULTS.label_smoothing,
        flip_rate: float = DEFAULTS.label_smoothing,
        center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        arguments.check_numbers(None, None, beta, label_smoothing, flip_rate, center_rewards_coefficient)
        arguments.check_reduction(reduction)
        self.beta, self.label_smoothing, self.flip_rate = beta, label_smoothing, flip_rate
        self.center_rewards_coefficient = center_rewards_coefficient
        self.reduction: Reduction = reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        margin: Tensor | float | None = None,
        *,
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
            flip_rate=self.flip_rate,
            center_rewards_coefficient=self.center_rewards_coefficient,
            reduction=self.reduction,
            denominator=denominator,
            return_stats=return_stats,
        )

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, label_smoothing={self.label_smoothing}, flip_rate={self.flip_rate}, "
            f"center_rewards_coefficient={self.center_rewards_coefficient}, reduction={self.reduction!r}"
        )
