"""One estimated number and what it is worth: `Estimate`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from .. import arguments
from ..intervals import tail_of, without_skewness


@dataclass(frozen=True)
class Estimate:
    """A mean over the population, estimated from pairs, and how far it may be off.

    An `Evaluation` makes it. Its attributes are Python numbers, nan where they cannot be known (fewer than two independent units).

    >>> import prefloss
    >>> chosen, rejected = [2.0, 0.5, 1.0, 0.3], [1.0, 1.5, 0.0, 0.1]
    >>> loss = prefloss.evaluate(chosen, rejected).loss
    >>> round(loss.value, 4), round(loss.standard_error, 4), loss.pairs
    (0.6345, 0.236, 4)
    >>> low, high = loss.interval(0.95)
    >>> low < loss.value < high
    True
    """

    value: float
    """The estimate, in the statistic's own unit: nats a pair for the loss, a share in [0, 1] for accuracy and ties."""
    standard_error: float
    """Standard error of `value`, from independent units, with the CR2 correction for few of them (Bell & McCaffrey 2002). For
    weighted pairs without `cluster` the correction is that of a mean leverage: too small where one pair has much of all weight
    (`weights.warning` says so). A label of its own for each pair as `cluster` gives each pair its own."""
    degrees_of_freedom: float
    """Degrees of freedom of Student's t for `standard_error` (Imbens & Kolesar 2016): fewer, the more unequal the units are."""
    skewness: float
    """Skewness of the estimate: sum S^3 / (sum S^2)^1.5, with S how far a unit moves the estimate."""
    pairs: int
    """How many pairs count: those with a weight other than 0."""
    clusters: int
    """How many independent units they come from; the number of pairs where no `cluster` was given."""
    pair_variance: float
    """Variance of the statistic of a single pair in the population."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """The least and the greatest possible `value`."""

    @property
    def effective_sample_size(self) -> float:
        """How many independent, equally weighted pairs would be worth as much: `pair_variance` over the squared standard error."""
        return self.pair_variance / self.standard_error**2 if self.standard_error > 0 else math.nan

    @property
    def design_effect(self) -> float:
        """Pairs over `effective_sample_size` (Kish 1965): 1 for independent pairs of equal weight, more where weights or clusters
        reduce what the pairs are worth."""
        return self.pairs / self.effective_sample_size if self.effective_sample_size > 0 else math.nan

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """(low, high), which contains the population's value for a share `level` of all collections like this one.

        Student's t with `degrees_of_freedom`, corrected for skewness by Hall's monotone cubic g(t) = t + a t^2 / 3 + a^2 t^3 /
        27 + a / 6 (Hall 1992, "On the removal of skewness by transformation"), and cut at `bounds`. If a share (accuracy, ties) is
        the same for all pairs, its standard error is 0 and says nothing; then the interval is that of Clopper & Pearson (1934)
        for as many draws as there are clusters.

        Raises ValueError where `level` is not in (0, 1).
        """
        tail = tail_of(level)
        if self.standard_error == 0 and math.isfinite(self.bounds[1]) and self.clusters > 1:
            rest = 1.0 - tail ** (1.0 / self.clusters)
            return _cut(self.value - rest, self.bounds), _cut(self.value + rest, self.bounds)
        t = -float(special.stdtrit(self.degrees_of_freedom, tail))
        return (
            _cut(self.value - self.standard_error * without_skewness(t, self.skewness), self.bounds),
            _cut(self.value - self.standard_error * without_skewness(-t, self.skewness), self.bounds),
        )

    def sequence(self, level: float = 0.95, *, tightest_at: float) -> tuple[float, float]:
        """(low, high) that stays valid if you look after every new pair: with probability `level`, it contains the value each time.

        An asymptotic confidence sequence (Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2021, arXiv 2103.06476; rho as
        in the authors' package sequential.causal). It is wider than `interval`, and narrowest at `tightest_at` pairs: choose that
        number before the first look.

        Raises ValueError where `level` is not in (0, 1) or `tightest_at` is not > 0.
        """
        alpha = 2.0 * tail_of(level)
        tightest = arguments.check_number("tightest_at", tightest_at, "a number of pairs > 0", 5e-324)
        x = self.pairs * (-2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))) / tightest
        if x == 0:
            return math.nan, math.nan
        width = self.standard_error * math.sqrt(2.0 * (x + 1.0) / x * math.log(math.sqrt(x + 1.0) / alpha))
        return _cut(self.value - width, self.bounds), _cut(self.value + width, self.bounds)

    def pairs_needed(self, half_width: float, level: float = 0.95) -> float:
        """How many pairs, collected as these were, would make the interval `half_width` wide to each side; nan where unknown.

        It is n (z se / half_width)^2, with z the normal quantile. Small collections need somewhat more.

        Raises ValueError where `half_width` is not > 0 or `level` is not in (0, 1).
        """
        wanted = arguments.check_number("half_width", half_width, "a number > 0", 5e-324)
        needed = self.pairs * (special.ndtri(tail_of(level)) * self.standard_error / wanted) ** 2
        return float(needed) if not math.isfinite(needed) else float(math.ceil(needed))

    def __repr__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"

    def as_dict(self, level: float = 0.95) -> dict[str, float | int | list[float]]:
        """Plain numbers for JSON and loggers; `interval` is [low, high]."""
        return {
            "value": self.value,
            "standard_error": self.standard_error,
            "interval": list(self.interval(level)),
            "degrees_of_freedom": self.degrees_of_freedom,
            "skewness": self.skewness,
            "pairs": self.pairs,
            "clusters": self.clusters,
            "effective_sample_size": self.effective_sample_size,
            "design_effect": self.design_effect,
        }


def _cut(value: float, bounds: tuple[float, float]) -> float:
    return min(max(value, bounds[0]), bounds[1]) if not math.isnan(value) else value
