"""Whether the model's probabilities are right: the slope of the Bradley-Terry model, its test, and bins of |z|."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import optimize, special

from ..intervals import tail_of
from .estimate import Estimate
from .statistics import BIN_SUMS, EDGES, SCORES, SLOPES

Float64Array = NDArray[np.float64]
GREATEST = 1000.0  # slopes beyond it are infinite: no pair, or every pair, is right


class Bin(NamedTuple):
    """The pairs whose |z| lies in [low, high)."""

    low: float
    high: float
    pairs: int
    share: float  # of the total weight
    predicted: float  # the model's probability that the response of greater reward is the better one, at the mean |z|
    observed: float  # how often it is the better one


@dataclass(frozen=True)
class Calibration:
    """Whether the probabilities sigma(z) are right.

    The slope is the beta that fits P(chosen is better) = sigma(beta z) best: 1 is calibrated, less is too sure, more is less sure
    than it could be, inf if the model orders every pair rightly. Only sums are kept: 20 bins of |z|, each with its first three
    moments, from which two points stand for the pairs of a bin (Gauss's rule). The score (the derivative of the loss by the slope)
    is summed exactly at five slopes, which corrects the rest.
    """

    distances: pa.Table  # the rows of `State.bins` for |z|
    scores: dict[str, Estimate]

    @cached_property
    def _sums(self) -> dict[str, Float64Array]:
        place = self.distances["bin"].to_numpy()
        return {
            name: np.asarray(np.bincount(place, self.distances[name].to_numpy(), len(EDGES)), np.float64)
            for name in ("pairs", *BIN_SUMS)
        }

    @cached_property
    @np.errstate(all="ignore")
    def _nodes(self) -> tuple[Float64Array, Float64Array, Float64Array]:
        """(x, weight, won): two |z| for each bin that has the bin's first three moments; `won` is the bin's."""
        sums = {name: values[self._sums["bin_weight"] > 0] for name, values in self._sums.items()}
        w, mean = sums["bin_weight"], sums["bin_distance"] / sums["bin_weight"]
        second, third = sums["bin_distance_2"] / w, sums["bin_distance_3"] / w
        variance = np.maximum(second - mean**2, 0.0)
        deviation = np.sqrt(variance)
        skewness = np.where(variance > 1e-12 * second, (third - 3 * mean * second + 2 * mean**3) / deviation**3, 0.0)
        root = np.sqrt(1.0 + 0.25 * skewness**2)
        x = np.stack([mean + deviation * (0.5 * skewness - root), mean + deviation * (0.5 * skewness + root)])
        share = np.stack([0.5 + 0.25 * skewness / root, 0.5 - 0.25 * skewness / root])
        won = np.broadcast_to(sums["bin_won"] / w, x.shape)
        return x.ravel(), (share * w / w.sum()).ravel(), won.ravel()

    def _binned_score(self, slope: float) -> float:
        x, weight, won = self._nodes
        return float(np.sum(weight * x * (special.expit(slope * x) - won)))

    def _score(self, slope: float) -> float:
        """Mean over the pairs of |z| (sigma(slope |z|) - won), the derivative of the mean loss by the slope."""
        off = [self.scores[name].value - self._binned_score(known) for name, known in zip(SCORES, SLOPES, strict=True)]
        return self._binned_score(slope) + float(np.interp(slope, SLOPES, off))

    @cached_property
    def slope(self) -> float:
        """The maximum likelihood estimate of the slope; 1 is calibrated. nan without pairs."""
        ends = [self._score(end) for end in (-GREATEST, GREATEST)]
        if not (math.isfinite(ends[0]) and math.isfinite(ends[1])) or not ends[0] < ends[1]:
            return math.nan
        if ends[0] >= 0 or ends[1] <= 0:
            return -math.inf if ends[0] >= 0 else math.inf
        return float(optimize.brentq(self._score, -GREATEST, GREATEST, xtol=1e-12))

    @cached_property
    def standard_error(self) -> float:
        """Standard error of the slope, by the sandwich formula with clusters; nan where the slope is not finite.

        The variance of the score is known at five slopes. Between them, its ratio to that of independent pairs is interpolated.
        """
        if not math.isfinite(self.slope):
            return math.nan
        x, weight, _ = self._nodes
        likely = special.expit(self.slope * x)
        ratios = [
            self.scores[name].standard_error / self._binned_deviation(known)
            for name, known in zip(SCORES, SLOPES, strict=True)
        ]
        if not np.all(np.isfinite(ratios)):
            return math.nan
        ratio = float(np.interp(math.log(max(self.slope, SLOPES[0])), np.log(SLOPES), ratios))
        information = float(np.sum(weight * x**2 * likely * (1.0 - likely)))
        return ratio * self._binned_deviation(self.slope) / information if information > 0 else math.nan

    def _binned_deviation(self, slope: float) -> float:
        """Standard deviation of the score of one pair."""
        x, weight, won = self._nodes
        likely = special.expit(slope * x)
        square = np.sum(weight * x**2 * (won * (1.0 - likely) ** 2 + (1.0 - won) * likely**2))
        deviation = float(square) - self._binned_score(slope) ** 2
        return math.sqrt(deviation) if deviation > 0 else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high) for the slope, by Student's t with the score's degrees of freedom.

        Raises ValueError where `level` is not in (0, 1).
        """
        half = -float(special.stdtrit(self.scores["score_1"].degrees_of_freedom, tail_of(level))) * self.standard_error
        return self.slope - half, self.slope + half

    @property
    def p_value(self) -> float:
        """p value of the hypothesis that the slope is 1, by the score test, which needs no estimate of the slope."""
        score = self.scores["score_1"]
        if not score.standard_error > 0:
            return math.nan
        return 2.0 * float(special.stdtr(score.degrees_of_freedom, -abs(score.value) / score.standard_error))

    @property
    def bins(self) -> list[Bin]:
        """The bins with pairs, from small |z| to large."""
        sums, total = self._sums, self._sums["bin_weight"].sum()
        return [
            Bin(
                EDGES[place],
                EDGES[place + 1] if place + 1 < len(EDGES) else math.inf,
                int(sums["pairs"][place]),
                float(weight / total),
                float(special.expit(sums["bin_distance"][place] / weight)),
                float(sums["bin_won"][place] / weight),
            )
            for place, weight in enumerate(sums["bin_weight"])
            if weight > 0
        ]

    def __repr__(self) -> str:
        return f"slope {self.slope:.3g} ± {self.standard_error:.2g} (1 is calibrated; p = {self.p_value:.2g})"

    def as_dict(self, level: float = 0.95) -> dict[str, object]:
        """Plain numbers: slope, standard_error, interval, p_value, bins."""
        return {
            "slope": self.slope,
            "standard_error": self.standard_error,
            "interval": list(self.interval(level)),
            "p_value": self.p_value,
            "bins": [each._asdict() for each in self.bins],
        }
