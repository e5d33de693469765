"""What makes an interval of an estimate and its standard error: quantiles of Student's t distribution, for any real number of
degrees of freedom >= 1 and without SciPy, and Hall's correction for skewness.

An interval asks for one quantile, so it may take a millisecond, but has to be right in the far tail and for few degrees of
freedom. The tail probability is an integral over an angle (t = sqrt(df) / tan u), which the double exponential rule
(Takahasi & Mori 1974) gives to 13 digits whatever df is; Newton's method in logarithms inverts it.
"""

from __future__ import annotations

import math
from functools import lru_cache

from .arguments import check_number

__all__ = ["student_t_quantile", "tail_of", "without_skewness"]

_STEPS = 30  # of Newton's method; it takes four to eight
_MANY = 1e3  # degrees of freedom from which on the series in 1 / df is as exact


def _nodes(step: float, count: int) -> list[tuple[float, float]]:
    """(place, weight) of the rule on (0, 1)."""
    found = []
    for k in range(-count, count + 1):
        sinh, cosh = 0.5 * math.pi * math.sinh(k * step), 0.5 * math.pi * math.cosh(k * step)
        place = 1.0 / (1.0 + math.exp(-2.0 * sinh))
        found.append((place, 2.0 * step * cosh * place / (1.0 + math.exp(2.0 * sinh))))
    return found


_NODES = _nodes(0.0625, 56)


def tail_of(level: float) -> float:
    """What an interval of this level leaves out at each end; TypeError where it is no number, ValueError if not in (0, 1)."""
    number = check_number("level", level, "a number between 0 and 1, both excluded", 5e-324, math.nextafter(1, 0))
    return 0.5 * (1.0 - number)


@lru_cache(maxsize=256)  # calls of the same number of pairs have the same quantile
def student_t_quantile(tail: float, df: float) -> float:
    """The t > 0 with P(|T| > t) = `tail`, in (0, 1), for `df` >= 1 degrees of freedom; infinite `df`: the normal distribution.

    >>> round(student_t_quantile(0.05, 10.0), 4)
    2.2281
    """
    from statistics import NormalDist  # which takes a tenth of the time that the package's own import takes

    if math.isnan(df):
        return math.nan
    z = -NormalDist().inv_cdf(0.5 * tail)
    if z <= 0.0:  # `tail` has been rounded to 1
        return 0.0
    if df >= _MANY:  # Abramowitz & Stegun 1964, eq. 26.7.5
        squared, inverse = z * z, 1.0 / df
        first = (squared + 1.0) / 4.0
        second = ((5.0 * squared + 16.0) * squared + 3.0) / 96.0
        third = (((3.0 * squared + 19.0) * squared + 17.0) * squared - 15.0) / 384.0
        fourth = ((((79.0 * squared + 776.0) * squared + 1482.0) * squared - 1920.0) * squared - 945.0) / 92160.0
        return z * (1.0 + inverse * (first + inverse * (second + inverse * (third + inverse * fourth))))
    # log P(|T| > t) is concave in log t: from the second step on Newton's method comes down to the root, ever faster.
    x = math.log(z)
    for _ in range(_STEPS):
        t = math.exp(x)
        probability = _tail(t, df)
        density = 2.0 * math.exp(_log_peak(df) - 0.5 * (df + 1.0) * math.log1p(t * t / df))
        step = math.log(probability / tail) * probability / (density * t)
        x += step
        if abs(step) < 1e-14:
            break
    return math.exp(x)


def without_skewness(t: float, skewness: float) -> float:
    """The x with x + a/3 x^2 + a^2/27 x^3 + a/6 = t, a being the skewness, or t where that is nan (Hall 1992).

    That is 3 / a ((1 + a (t - a / 6))^(1/3) - 1), in a form that holds for a = 0 too.
    """
    a = 0.0 if math.isnan(skewness) else skewness
    cube = 1.0 + a * (t - a / 6.0)
    root = math.copysign(abs(cube) ** (1.0 / 3.0), cube)
    return 3.0 * (t - a / 6.0) / (root * root + root + 1.0)


def _log_peak(df: float) -> float:
    """The logarithm of the density at 0."""
    return math.lgamma(0.5 * df + 0.5) - math.lgamma(0.5 * df) - 0.5 * math.log(df * math.pi)


def _tail(t: float, df: float) -> float:
    """P(|T| > t), t > 0."""
    most = math.atan2(math.sqrt(df), t)
    total = math.fsum(weight * math.pow(math.sin(most * place), df - 1.0) for place, weight in _NODES)
    return 2.0 * math.exp(_log_peak(df)) * math.sqrt(df) * most * total
