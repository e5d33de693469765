"""Whether weights leave enough pairs to speak of: effective size, largest share, Pareto's k."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from .state import WEIGHT, State

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Weights:
    """How unequal the weights are. Weights are kept in bins 1.1 % apart, so `pareto_k` and `largest_share` are about that exact."""

    effective_size: float
    """(sum w)^2 / sum w^2: how many equally weighted pairs would be worth as much, for a number that does not depend on the weights
    (Kish 1965)."""
    largest_share: float
    """Share of the total weight that the heaviest pair has."""
    pareto_k: float
    """Shape of the tail of the weights. Above 0.7 their mean cannot be known from so few pairs, and no interval can be trusted
    (Vehtari, Simpson, Gelman, Yao & Gabry 2024, "Pareto smoothed importance sampling"). nan where the largest
    weights are equal, or fewer than 5."""

    @property
    def warning(self) -> str:
        """A warning, in words; "" where there is none."""
        if self.pareto_k > 0.7:
            return (
                f"The weights have a heavy tail (Pareto k = {self.pareto_k:.2f}, above 0.7): pairs that were not collected "
                f"would weigh more than "
                "all that were. The estimates and their intervals cannot be trusted, however many pairs there are."
            )
        if self.largest_share > 0.1:
            return f"One pair carries {self.largest_share:.0%} of the total weight: the estimates rest on it."
        if self.effective_size < 30:
            return (
                f"The weights leave {self.effective_size:.0f} effective pairs: intervals from fewer than 30 are rough."
            )
        return ""

    def as_dict(self) -> dict[str, float | str]:
        """Plain numbers and the warning."""
        return {
            "effective_size": self.effective_size,
            "largest_share": self.largest_share,
            "pareto_k": self.pareto_k,
            "warning": self.warning,
        }


def weights_of(state: State) -> Weights:
    """Of the labelled pairs of a state with weights."""
    total, squares = (pc.sum(state.units[name]).as_py() or 0.0 for name in ("w1", "w2"))
    counts, values = histogram(state)
    largest = float(values[-1]) / total if len(values) else math.nan
    return Weights(total**2 / squares if squares else math.nan, largest, _pareto_k(counts, values))


def histogram(state: State) -> tuple[NDArray[np.int64], Float64Array]:
    """(counts, mean weights) of the bins of the weight, from small to large, in units of the state's scale."""
    bins = state.bins.filter(pc.equal(state.bins["part"], WEIGHT))
    places, place = np.unique(bins["bin"].to_numpy(), return_inverse=True)
    counts = np.bincount(place, bins["pairs"].to_numpy(), len(places)).astype(np.int64)
    return counts, np.bincount(place, bins["bin_weight"].to_numpy(), len(places)) / np.maximum(counts, 1)


def _pareto_k(counts: NDArray[np.int64], values: Float64Array) -> float:
    """Of the generalised Pareto distribution of what the largest weights exceed the next one by (Zhang & Stephens 2009),
    shrunk towards 1/2.

    There are min(n / 5, 3 sqrt n) of them.
    """
    pairs = int(counts.sum())
    tail = math.ceil(min(0.2 * pairs, 3.0 * math.sqrt(pairs)))
    if tail < 5:
        return math.nan
    above = np.cumsum(counts[::-1])[::-1]  # pairs in this bin and in those above it
    start = int(np.flatnonzero(above > tail)[-1])  # the next largest weight lies in this bin
    excess, many = values[start:] - values[start], counts[start:].astype(np.float64)
    many[0] = tail - (above[start + 1] if start + 1 < len(above) else 0)
    if len(excess) < 2:
        return math.nan
    quartile = excess[np.searchsorted(np.cumsum(many), 0.25 * tail)]
    grid = np.arange(1, 31 + math.isqrt(tail)) - 0.5
    b = (1.0 - np.sqrt(len(grid) / grid)) / (3.0 * max(quartile, excess[1])) + 1.0 / excess[-1]

    def shape(slope: Float64Array) -> Float64Array:
        return np.asarray(np.log1p(-slope[:, None] * excess) @ many / tail)

    k = shape(b)
    likelihood = tail * (np.log(-b / k) - k - 1.0)
    weight = np.exp(likelihood - likelihood.max())
    mean = float(weight @ b / weight.sum())
    return float((tail * shape(np.array([mean]))[0] + 5.0) / (tail + 10.0))
