"""The numbers of each pair whose sums an `Evaluation` keeps, computed a chunk at a time so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..paired import bradley_terry_loss
from .columns import FloatArray

Float64Array = NDArray[np.float64]

# Pairs: a column is then 64 KiB. Some ten fit in a core's cache, BLAS adds up in one thread, and malloc keeps the memory: from
# 128 KiB on it may go back to the system and come again, page by page, which took 20 times as long.
CHUNK = 2**13

# Slopes of the Bradley-Terry model at which the calibration score is summed; between them its variance is interpolated.
SLOPES = (0.25, 0.5, 1.0, 2.0, 4.0)
SCORES = tuple(f"score_{slope:g}" for slope in SLOPES)
# Bins of |z|, the last one without end. All are multiples of 1/20, so a table finds them.
EDGES = (0, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 8, 12, 20)
_BIN_OF = np.searchsorted(EDGES, np.arange(20 * EDGES[-1] + 1) / 20 + 1e-9, side="right") - 1
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
        """In the order in which `Pairs.statistics` yields them."""
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
        """The pairs of these rows, as float64."""

        def of(column: FloatArray) -> FloatArray:
            return column[rows].astype(np.float64, copy=False)

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

    def labelled(self) -> NDArray[np.bool_]:
        """Which pairs a person has labelled: those whose target is not NaN."""
        if isinstance(self.target, np.ndarray):
            return ~np.isnan(self.target)
        return np.ones(len(self), dtype=bool)

    def statistics(self, options: Options) -> Iterator[tuple[str, Float64Array]]:
        """Each statistic of each pair, as `Options.statistics` lists them, then the sums of `BIN_SUMS` before they are summed."""
        loss, signs = self._losses(self.chosen, self.rejected, self.target, options), self.chosen - self.rejected
        z = options.beta * signs - self.margin
        correct, tied = self._agreement(signs)
        yield "loss", loss
        yield "correct", correct
        yield "tied", tied
        yield "margin", signs
        distance = np.abs(z)
        e = torch.exp(torch.from_numpy(-distance)).numpy()  # torch's takes less time than NumPy's
        likely = 1.0 / (1.0 + e)  # the model's probability that the response of greater reward is the better one
        won = self._won(z)
        yield "brier", np.square(won - likely)
        root, infinite = np.sqrt(e), bool(np.isinf(distance).any())
        for name, power in zip(SCORES, (np.sqrt(root), root, None, e * e, np.square(e * e)), strict=True):
            gap = (likely if power is None else 1.0 / (1.0 + power)) - won
            yield name, np.where(gap == 0.0, 0.0, distance * gap) if infinite else distance * gap
        if self.baseline is not None:
            other = self._losses(*self.baseline, self.target, options)
            yield "baseline_loss", other
            other_correct, _ = self._agreement(self.baseline[0] - self.baseline[1])
            yield "baseline_correct", other_correct
            yield "difference", loss - other
            yield "correct_difference", correct - other_correct
        if self.judge is not None:
            judged = self._losses(self.chosen, self.rejected, self.judge, options)
            yield "judged", judged
            yield "gap", loss - judged
        yield "bin_distance", distance
        yield "bin_won", np.where(z == 0.0, 0.5, won) if tied.any() else won

    def _losses(
        self, chosen: FloatArray, rejected: FloatArray, target: FloatArray | float, options: Options
    ) -> Float64Array:
        losses = bradley_terry_loss(
            _tensor(chosen),
            _tensor(rejected),
            margin=_tensor(self.margin) if isinstance(self.margin, np.ndarray) else self.margin,
            target=_tensor(target) if isinstance(target, np.ndarray) else target,
            beta=options.beta,
            label_smoothing=options.label_smoothing,
            flip_rate=options.flip_rate,
            reduction="none",
        )
        return losses.numpy()

    def _agreement(self, signs: FloatArray) -> tuple[Float64Array, Float64Array]:
        """How far the order of the rewards agrees with the target: t where a > b, 1 - t where a < b; and whether a = b."""
        up, down = signs > 0, signs < 0
        tied = (signs == 0).astype(np.float64)
        if isinstance(self.target, float) and self.target == 1.0:
            return up.astype(np.float64), tied
        return self.target * up + (1.0 - self.target) * down, tied

    def _won(self, z: FloatArray) -> Float64Array:
        """The target, seen from the response that the model takes for the better one."""
        if isinstance(self.target, float) and self.target == 1.0:
            return (z > 0).astype(np.float64)
        return np.where(z > 0, self.target, 1.0 - self.target)


def bins_of(distance: Float64Array) -> NDArray[np.intp]:
    """The bin of `EDGES` that each |z| lies in; NaN lies in the last one."""
    place: NDArray[np.intp] = _BIN_OF[(20.0 * np.fmin(distance, EDGES[-1])).astype(np.intp)]
    return place


def shifts_of(pairs: Pairs, options: Options) -> dict[str, float]:
    """What to subtract from each statistic: its median, where that is far from 0 compared with the spread; else 0.

    A sum of squares loses log2(median^2 / variance) bits. Below a ratio of 16 that is at most 8 bits of 53, and sums without a
    shift can be read and added by anybody. A sample of some thousand pairs is enough: any value near the bulk will do.
    """
    sample = pairs.part(slice(None, None, 1 + len(pairs) // 4096))
    shifts = {}
    centred = {statistic.name for statistic in options.statistics() if statistic.centred}
    with np.errstate(all="ignore"):
        for name, values in sample.statistics(options):
            if name in centred:
                values = values[np.isfinite(values)]
                median = float(np.median(values)) if len(values) else 0.0
                spread = float(np.median(np.abs(values - median))) if len(values) else 0.0
                shifts[name] = median if abs(median) > 16.0 * spread else 0.0
    return shifts


def _tensor(column: FloatArray) -> torch.Tensor:
    if not column.flags.writeable or any(stride < 0 for stride in column.strides):
        column = column.copy()  # torch warns of the one and refuses the other
    return torch.from_numpy(column)
