"""The numbers of each pair whose sums an `Evaluation` keeps: their names. csrc/cpu/evaluation.cpp computes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _core
from ..arguments import check_numbers
from .columns import FloatArray

# Slopes of the Bradley-Terry model at which the calibration score is summed; between them its variance is interpolated.
SLOPES = (0.25, 0.5, 1.0, 2.0, 4.0)
SCORES = tuple(f"score_{slope:g}" for slope in SLOPES)
# Bins of |z|, the last one without end. All are multiples of 1/20, so a table finds them.
EDGES = (0, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 20)
BIN_OF = torch.from_numpy(np.searchsorted(EDGES, np.arange(20 * EDGES[-1] + 1) / 20 + 1e-9, side="right") - 1)
BIN_SUMS = ("bin_weight", "bin_distance", "bin_distance_2", "bin_distance_3", "bin_won")


class Statistic(NamedTuple):
    """A number of each pair. `order`: 3 where its skewness is wanted, 2 where its variance is enough."""

    name: str
    order: int
    centred: bool = (
        False  # whether a constant near its median may be subtracted, so that sums of squares keep their digits
    )


@dataclass(frozen=True)
class Options:
    """What the loss of a pair is, and which statistics there are. Evaluations with the same options can be added."""

    beta: float
    label_smoothing: float
    flip_rate: float
    weighted: bool
    clustered: bool
    grouped: bool
    baseline: bool
    judge: bool

    def statistics(self) -> tuple[Statistic, ...]:
        """In the order of csrc/evaluation.h.

        loss; how far the order of the rewards agrees with the target: t where a > b, 1 - t where a < b; whether a = b; the margin
        a - b; (won - p)^2 with p = sigma(|z|), the model's probability that the response of greater reward is the better one, and
        won the target seen from it; |z| (sigma(s |z|) - won) for each slope s.
        """
        names = [Statistic("loss", 3, True), Statistic("correct", 3), Statistic("tied", 3)]
        names += [Statistic("margin", 3, True), Statistic("brier", 3)]
        names += [Statistic(name, 2) for name in SCORES]
        if self.baseline:
            names += [Statistic("baseline_loss", 3, True), Statistic("baseline_correct", 3)]
            names += [Statistic("difference", 3, True), Statistic("correct_difference", 3)]
        if self.judge:
            names += [Statistic("judged", 2, True), Statistic("gap", 2, True)]
        return tuple(names)


@dataclass(frozen=True)
class Pairs:
    """Columns of checked pairs, or of a part of them."""

    chosen: FloatArray
    rejected: FloatArray
    margin: FloatArray | float
    weight: FloatArray | None
    target: FloatArray | float
    baseline: tuple[FloatArray, FloatArray] | None
    judge: FloatArray | None

    def __len__(self) -> int:
        return len(self.chosen)

    def part(self, rows: slice | NDArray[Any]) -> Pairs:
        """The pairs of these rows."""

        def of(column: FloatArray) -> FloatArray:
            return column[rows]

        return replace(
            self,
            chosen=of(self.chosen),
            rejected=of(self.rejected),
            margin=of(self.margin) if isinstance(self.margin, np.ndarray) else self.margin,
            weight=None if self.weight is None else of(self.weight),
            target=of(self.target) if isinstance(self.target, np.ndarray) else self.target,
            baseline=None if self.baseline is None else (of(self.baseline[0]), of(self.baseline[1])),
            judge=None if self.judge is None else of(self.judge),
        )

    def for_kernel(self, options: Options) -> tuple[tuple[torch.Tensor | None, ...], tuple[float, ...]]:
        """(columns, numbers) as `_core.add_statistics` takes them."""
        margin, target = (None if isinstance(given, np.ndarray) else given for given in (self.margin, self.target))
        numbers = check_numbers(margin, target, options.beta, options.label_smoothing, options.flip_rate, 0.0)
        columns = (self.chosen, self.rejected, self.margin, self.weight, self.target)
        columns += (*(self.baseline or (None, None)), self.judge)
        return tuple(_tensor(column) if isinstance(column, np.ndarray) else None for column in columns), numbers[:4]

    def labelled(self) -> NDArray[np.bool_]:
        """Which pairs a person has labelled: those whose target is not NaN."""
        if isinstance(self.target, np.ndarray):
            return ~np.isnan(self.target)
        return np.ones(len(self), dtype=bool)


def shifts_of(pairs: Pairs, options: Options) -> dict[str, float]:
    """What to subtract from each statistic: its median, where that is far from 0 compared with the spread; else 0.

    A sum of squares loses log2(median^2 / variance) bits. Below a ratio of 16 that is at most 8 bits of 53, and sums without a
    shift can be read and added by anybody. A sample of some thousand pairs is enough: any value near the bulk will do.
    """
    sample = pairs.part(slice(None, None, 1 + len(pairs) // 4096))
    statistics = options.statistics()
    values = torch.empty(len(statistics), len(sample), dtype=torch.float64, device="cpu")
    _core.pair_statistics(*sample.for_kernel(options), values)
    shifts = {}
    for statistic, column in zip(statistics, values.numpy(), strict=True):
        if statistic.centred:
            finite = column[np.isfinite(column)]
            median = float(np.median(finite)) if len(finite) else 0.0
            spread = float(np.median(np.abs(finite - median))) if len(finite) else 0.0
            shifts[statistic.name] = median if abs(median) > 16.0 * spread else 0.0
    return shifts


def _tensor(column: FloatArray) -> torch.Tensor:
    if not column.flags.writeable or any(stride < 0 for stride in column.strides):
        column = column.copy()  # torch warns of the one and refuses the other
    return torch.from_numpy(column)
