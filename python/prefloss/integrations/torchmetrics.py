"""`PairStats` as a metric of torchmetrics, for Lightning and others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..arguments import check_numbers
from ..paired import bradley_terry_loss
from ..pairs import DEFAULTS
from ..stats import PairStats
from ..sums import merged_sums, sums_of_no_pairs, total_of

try:
    import torchmetrics
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("torchmetrics", "lightning_utilities"):
        raise
    raise ImportError(
        f'prefloss.integrations.torchmetrics needs {error.name}, which is not installed: pip install "prefloss[torchmetrics]"'
    ) from error

__all__ = ["PreferenceStats"]


class PreferenceStats(torchmetrics.Metric):
    """A metric with every property of `prefloss.PairStats`, over all pairs of an epoch and of all processes.

    >>> import torch
    >>> from prefloss.integrations.torchmetrics import PreferenceStats
    >>> stats = PreferenceStats()
    >>> stats.update(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 1.5]))
    >>> stats.update(torch.tensor([3.0]), torch.tensor([3.0]))
    >>> found = stats.compute()
    >>> found["accuracy"].item(), found["count"].item(), round(found["standard_error"].item(), 3)
    (0.3333333333333333, 3.0, 0.291)

    In a LightningModule, `update` it in `validation_step`, and write in `on_validation_epoch_end`::

        self.log_dict(self.stats.compute())
        self.stats.reset()

    Its state is the sums of `PairStats`, a few numbers. `update` does not wait for the device; `compute` waits once. Calling the
    metric itself (`forward`) also computes the statistics of the batch, and so waits in each step: prefer `update`.

    Args:
        beta, label_smoothing, flip_rate: of the loss, as in `prefloss.bradley_terry_loss`.
        kwargs: those of `torchmetrics.Metric`.

    Raises:
        TypeError, ValueError: options that `prefloss.bradley_terry_loss` refuses.
        ImportError: where torchmetrics is missing, when this module is imported: `pip install "prefloss[torchmetrics]"`.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor

    def __init__(
        self,
        *,
        beta: float = DEFAULTS.beta,
        label_smoothing: float = DEFAULTS.label_smoothing,
        flip_rate: float = DEFAULTS.label_smoothing,
        **kwargs: Any,
    ) -> None:
        check_numbers(None, None, beta, label_smoothing, flip_rate, None)
        super().__init__(**kwargs)
        self.options: dict[str, Any] = {"beta": beta, "label_smoothing": label_smoothing, "flip_rate": flip_rate}
        self.add_state("sums", sums_of_no_pairs(), dist_reduce_fx=total_of)

    def update(
        self,
        chosen: Tensor | PairStats,
        rejected: Tensor | None = None,
        *,
        margin: Tensor | float | None = None,
        weight: Tensor | None = None,
        target: Tensor | float | None = None,
    ) -> None:
        """Adds the pairs of a batch.

        Args:
            chosen, rejected, margin, weight, target: as in `prefloss.bradley_terry_loss`. Or give `chosen` alone, the `PairStats`
                that a loss has returned with ``return_stats=True``: then nothing is computed twice.

        Raises:
            TypeError: `PairStats` together with another argument; what `prefloss.bradley_terry_loss` raises.
        """
        if isinstance(chosen, PairStats):
            beside = {"rejected": rejected, "margin": margin, "weight": weight, "target": target}
            given = [name for name, value in beside.items() if value is not None]
            if given:
                raise TypeError(f"{', '.join(given)} must not be given beside PairStats, in which all that is")
            sums = chosen.sums
        else:
            others: Any = rejected  # None is an error there, which says so
            options: dict[str, Any] = {"margin": margin, "weight": weight, "target": target, **self.options}
            with torch.no_grad():
                _, stats = bradley_terry_loss(chosen, others, return_stats=True, **options)
            sums = stats.sums
        self.sums = merged_sums(self.sums, sums)

    def compute(self) -> dict[str, Tensor]:
        """{name of a property of `PairStats`: its value}, in float64 on the metric's device, which is read once."""
        found = PairStats(self.sums).as_dict()
        values = torch.tensor(list(found.values()), dtype=torch.float64, device=self.sums.device)
        return dict(zip(found, values.unbind(), strict=True))
