"""What was drawn independently, and what follows from its sums: value, variance (CR2), degrees of freedom and skewness of a mean.

A stratum is all pairs, or a group with a share of its own. With pi_s its share, W_s its weight and theta_s its mean, a unit c moves
("pulls") the estimate by

    u_c = sum over s of pi_s (T_cs - theta_s W_cs) / W_s,        h_cs = W_cs / W_s its part of the stratum

CR2 (Bell & McCaffrey 2002) is the sandwich variance without its bias under equal correlation. It divides each term by sqrt(1 -
h_cs): the regression of y on indicators of the strata has hat matrices that are blocks, of one nonzero eigenvalue each.
Degrees of freedom are those of Imbens & Kolesar (2016) for perfect correlation within units:
tr(M)^2 / tr(M^2) with

    M = Q Q',   Q = diag(alpha) - B H',   B_cs = pi_s h_cs / sqrt(1 - h_cs),   alpha_c = sum over s of B_cs.

All traces follow from products of matrices of strata by strata, so the cost is linear in the units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

from .keys import number
from .state import State, column, sum_name

Float64Array = NDArray[np.float64]


class Moments(NamedTuple):
    """Of the estimate of a mean: nan where it cannot be known."""

    value: float
    variance: float
    skewness: float
    pair_variance: float  # of one pair, for the design effect


@np.errstate(all="ignore")
def _traces(
    d2: float, d4: float, dbh: float, d3bh: float, bb: Float64Array, hh: Float64Array, hdb: Float64Array,
    hd2h: Float64Array, bd2b: Float64Array,
) -> float:  # fmt: skip
    """tr(M)^2 / tr(M^2) from sums over units. d is alpha, bb is B'B, hdb is H' diag(alpha) B, and so on; dbh sums alpha B_c . H_c.

    M = diag(d^2) + X B' + B X' with X = -diag(d) H + B N / 2 and N = H'H.
    """
    trace = d2 - 2.0 * dbh + np.trace(hh @ bb)
    bx = -hdb.T + 0.5 * bb @ hh  # B'X
    xx = hd2h - 0.5 * (hdb @ hh + hh @ hdb.T) + 0.25 * hh @ bb @ hh
    d2xb = -d3bh + 0.5 * np.trace(hh @ bd2b)
    square = d4 + 4.0 * d2xb + 2.0 * np.trace(bx @ bx) + 2.0 * np.trace(xx @ bb)
    # tr(M)^2 is no less than tr(M^2), but where leverages were approximated.
    return max(float(trace**2 / square), 1.0) if trace > 0 and square > 0 else math.nan


class ClusterUnits:
    """Units that hold several pairs: a row a (unit, stratum)."""

    def __init__(self, state: State, shares: Mapping[Any, float] | None) -> None:
        table = state.units.filter(pc.greater(state.units["w1"], 0))
        self._table, self._shifts = table, state.shifts
        self.pairs = int(sum(table["pairs"].to_numpy()))
        self._unit, self.unit_labels = number(column(table, "cluster"))
        self.count = len(self.unit_labels)
        self._stratum, self._share, self.labels = _strata(table, shares)
        self._w = table["w1"].to_numpy()
        self._total = np.bincount(self._stratum, self._w, len(self._share))
        with np.errstate(all="ignore"):
            if shares is None:  # rows of one unit in several groups are one
                part = np.bincount(self._unit, self._w, self.count)[self._unit] / self._total
            else:
                part = self._w / self._total[self._stratum]
        self._rest = 1.0 - part

    def _per_unit(self, rows: Float64Array) -> Float64Array:
        return np.asarray(np.bincount(self._unit, rows, self.count), np.float64)

    def stratum_means(self, statistic: str) -> Float64Array:
        total = np.bincount(self._stratum, self._table[sum_name(statistic, (1, 1))].to_numpy(), len(self._share))
        with np.errstate(all="ignore"):
            return self._shifts.get(statistic, 0.0) + total / self._total

    @np.errstate(all="ignore")
    def pulls(self, statistic: str, *, adjusted: bool) -> Float64Array:
        """(units,): what each unit adds to the estimate's error, with CR2's adjustment or without."""
        t = self._table[sum_name(statistic, (1, 1))].to_numpy()
        mean = np.bincount(self._stratum, t, len(self._share)) / self._total
        residual = (t - mean[self._stratum] * self._w) * (self._share / self._total)[self._stratum]
        return self._per_unit(residual / np.sqrt(self._rest) if adjusted else residual)

    @np.errstate(all="ignore")
    def moments(self, statistic: str) -> Moments:
        means, pulls = self.stratum_means(statistic), self.pulls(statistic, adjusted=False)
        variance = float(np.sum(np.square(self.pulls(statistic, adjusted=True)))) if self.count > 1 else math.nan
        name = sum_name(statistic, (1, 2))
        squares = np.full(len(means), math.nan)
        if name in self._table.column_names:
            squares = np.bincount(self._stratum, self._table[name].to_numpy(), len(means)) / self._total
        centred = means - self._shifts.get(statistic, 0.0)
        return Moments(
            float(self._share @ means) if self.count else math.nan,
            variance,
            _skewness(float(np.sum(pulls**3)), float(np.sum(pulls**2))),
            _pair_variance(self._share, centred, squares, self.pairs),
        )

    @cached_property
    @np.errstate(all="ignore")
    def degrees_of_freedom(self) -> float:
        if self.count < 2:
            return math.nan
        strata = len(self._share)
        part = self._w / self._total[self._stratum]
        if strata == 1:
            part = self._per_unit(part)
            h, b = part[:, None], (part / np.sqrt(1.0 - part))[:, None]
        else:
            shape = (self.count, strata)
            h = csr_array((part, (self._unit, self._stratum)), shape=shape)
            b = csr_array(
                (self._share[self._stratum] * part / np.sqrt(self._rest), (self._unit, self._stratum)), shape=shape
            )
        d = np.asarray(b.sum(axis=1)).ravel()
        bh = np.asarray((b * h).sum(axis=1)).ravel()

        def gram(left: Float64Array, scale: Float64Array | None, right: Float64Array) -> Float64Array:
            scaled = right if scale is None else (right.T * scale).T
            product = left.T @ scaled
            return np.asarray(product if isinstance(product, np.ndarray) else product.toarray())

        return _traces(
            float(d @ d), float(np.sum(d**4)), float(d @ bh), float(d**3 @ bh), gram(b, None, b), gram(h, None, h),
            gram(h, d, b), gram(h, d * d, h), gram(b, d * d, b),
        )  # fmt: skip


class PairUnits:
    """Pairs that are units themselves: a row a stratum, with sums of squares and cubes.

    Leverages h = w / W enter through sum h^k / (1 - h)^j, which is taken as p / (1 - q / p)^j with p = sum h^k, q = sum h^(k +
    1): exact for equal weights, and otherwise less by the variance of h about its mean q / p, weighted by h^k: with n
    effective pairs a part of the order 1 / n^2.
    """

    def __init__(self, state: State, shares: Mapping[Any, float] | None) -> None:
        table = state.units.filter(pc.greater(state.units["w1"], 0))
        self._shifts = state.shifts
        stratum, self._share, self.labels = _strata(table, shares)
        self._sums = {
            name: np.asarray(np.bincount(stratum, table[name].to_numpy(), len(self._share)), np.float64)
            for name in table.column_names
            if name not in ("group", "labelled")
        }
        self._counts = self._sums["pairs"]
        self.pairs = self.count = int(self._counts.sum())
        self._total = self._sums["w1"]

    def _sum(self, statistic: str, a: int, b: int) -> Float64Array:
        """Sum of w^a y^b; where weights are equal, they are 1."""
        name = sum_name(statistic, (a, b)) if b else f"w{a}"
        return self._sums[name] if name in self._sums else self._sums[sum_name(statistic, (1, b)) if b else "w1"]

    def stratum_means(self, statistic: str) -> Float64Array:
        with np.errstate(all="ignore"):
            return self._shifts.get(statistic, 0.0) + self._sum(statistic, 1, 1) / self._total

    @np.errstate(all="ignore")
    def residual_squares(self, statistic: str) -> tuple[Float64Array, Float64Array]:
        """For each stratum: sum of S^2, and of S^2 / (1 - h), S being the residual w (y - mean)."""
        mean = self._sum(statistic, 1, 1) / self._total
        squares, with_leverage = (
            self._sum(statistic, a, 2) - 2.0 * mean * self._sum(statistic, a, 1) + mean**2 * self._sum(statistic, a, 0)
            for a in (2, 3)
        )
        squares = np.maximum(squares, 0.0)  # a rounding error below 0
        # One pair's residual is 0, and its leverage 1.
        leverage = np.where(squares > 0, with_leverage / (squares * self._total), 0.0)
        return squares, np.where(self._counts > 1, squares / (1.0 - leverage), math.nan)

    @np.errstate(all="ignore")
    def moments(self, statistic: str) -> Moments:
        means, factor = self.stratum_means(statistic), self._share / self._total
        squares, adjusted = self.residual_squares(statistic)
        if not self.count:
            return Moments(*[math.nan] * 4)
        centred, pair_squares, cubes = means - self._shifts.get(statistic, 0.0), np.full(len(means), math.nan), 0.0
        if sum_name(statistic, (1, 2)) in self._sums:
            pair_squares = self._sum(statistic, 1, 2) / self._total
        if sum_name(statistic, (3, 3)) in self._sums or sum_name(statistic, (1, 3)) in self._sums:
            y1, y2, y3 = (self._sum(statistic, 3, power) for power in (1, 2, 3))
            third = y3 - 3 * centred * y2 + 3 * centred**2 * y1 - centred**3 * self._sum(statistic, 3, 0)
            cubes = float(np.sum(factor**3 * third))
        return Moments(
            float(self._share @ means),
            float(np.sum(np.where(factor > 0, factor**2 * adjusted, 0.0))),
            _skewness(cubes, float(np.sum(factor**2 * squares))),
            _pair_variance(self._share, centred, pair_squares, self.pairs),
        )

    @cached_property
    @np.errstate(all="ignore")
    def degrees_of_freedom(self) -> float:
        if self.count < 2:
            return math.nan
        p = {k: self._sum("", k, 0) / self._total**k for k in range(1, 7)}

        def over(k: int, j: int) -> Float64Array:
            """Sum of h^k / (1 - h)^j."""
            return np.asarray(np.where(self._counts > 1, p[k] / (1.0 - p[k + 1] / p[k]) ** j, math.nan))

        pi, diagonal = self._share, np.diag
        return _traces(
            float(pi**2 @ over(2, 1)), float(pi**4 @ over(4, 2)), float(pi**2 @ over(3, 1)), float(pi**4 @ over(5, 2)),
            diagonal(pi**2 * over(2, 1)), diagonal(p[2]), diagonal(pi**2 * over(3, 1)), diagonal(pi**2 * over(4, 1)),
            diagonal(pi**4 * over(4, 2)),
        )  # fmt: skip


def units_of(state: State, shares: Mapping[Any, float] | None = None) -> ClusterUnits | PairUnits:
    """The units of a state; in strata of these shares, each for the group of its label."""
    return (ClusterUnits if state.options.clustered else PairUnits)(state, shares)


def _strata(
    table: pa.Table, shares: Mapping[Any, float] | None
) -> tuple[NDArray[np.int64], Float64Array, list[int | str]]:
    """(rows,): each row's stratum, and (strata,): their shares and their groups' labels."""
    if shares is None:
        return np.zeros(len(table), dtype=np.int64), np.ones(1), []
    codes, values = number(column(table, "group"))
    labels = values.to_pylist()
    return codes, np.array([shares[label] for label in labels]), labels


def _skewness(cubes: float, squares: float) -> float:
    return cubes / squares**1.5 if squares > 0 else 0.0 if squares == 0 else math.nan


def _pair_variance(share: Float64Array, centred: Float64Array, squares: Float64Array, pairs: int) -> float:
    """Of one pair drawn from the population: squares and means are about the same constant."""
    if pairs < 2:
        return math.nan
    variance = float(share @ squares) - float(share @ centred) ** 2
    return max(variance, 0.0) * pairs / (pairs - 1) if not math.isnan(variance) else math.nan
