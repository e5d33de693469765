"""Quantiles of Student's t distribution, against closed forms, the printed tables and the normal distribution."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest

from prefloss.intervals import student_t_quantile

TAILS = [0.999, 0.5, 0.05, 1e-3, 1e-8, 1e-15, 2.0**-53]


@pytest.mark.parametrize("tail", TAILS)
def test_one_two_and_four_degrees_of_freedom_have_closed_forms(tail):
    """Cauchy's distribution; Shaw 2006, "Sampling Student's T distribution", eqs. 36 and 38, with a = tail (2 - tail)."""
    a = tail * (2.0 - tail)
    four = math.cos(math.acos(math.sqrt(a)) / 3.0) / math.sqrt(a)
    assert student_t_quantile(tail, 1.0) == pytest.approx(1.0 / math.tan(0.5 * math.pi * tail), rel=1e-12)
    assert student_t_quantile(tail, 2.0) == pytest.approx((1.0 - tail) * math.sqrt(2.0 / a), rel=1e-12)
    # four - 1 loses digits where the tail is nearly 1.
    assert student_t_quantile(tail, 4.0) == pytest.approx(2.0 * math.sqrt(four - 1.0), rel=1e-9)


# NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2, two sided.
@pytest.mark.parametrize(
    ("tail", "df", "printed"),
    [(0.05, 3, 3.182), (0.05, 10, 2.228), (0.01, 29, 2.756), (0.2, 60, 1.296), (0.002, 100, 3.174), (0.1, 7, 1.895)],
)
def test_the_printed_tables_agree(tail, df, printed):
    assert abs(student_t_quantile(tail, df) - printed) <= 0.0005


@pytest.mark.parametrize("tail", TAILS[1:])
def test_many_degrees_of_freedom_are_the_normal_distribution_and_the_two_ways_meet(tail):
    z = -NormalDist().inv_cdf(0.5 * tail)
    assert student_t_quantile(tail, math.inf) == z
    below, above = student_t_quantile(tail, 999.999999), student_t_quantile(tail, 1000.0)
    # By one millionth of a degree of freedom the quantile changes by less than (z^3 + z) / 4e12.
    assert below == pytest.approx(above, rel=1e-9)
    assert above == pytest.approx(z * (1.0 + (z * z + 1.0) / 4000.0), rel=1e-3)


@pytest.mark.parametrize("df", [1.0, 1.3, 2.5, 17.2, 333.0])
def test_the_probability_beyond_the_quantile_is_the_tail(df):
    """By the trapezoidal rule over the density, an integral of its own."""
    for tail in (0.5, 0.05):
        inner = np.linspace(0.0, student_t_quantile(tail, df), 100_001)
        log_peak = math.lgamma(0.5 * df + 0.5) - math.lgamma(0.5 * df) - 0.5 * math.log(df * math.pi)
        density = np.exp(log_peak - 0.5 * (df + 1.0) * np.log1p(inner**2 / df))
        within = 2.0 * (density.sum() - 0.5 * (density[0] + density[-1])) * inner[1]
        # The rule's error is h^2 / 12 times the change of the derivative, which is below 1.
        assert within == pytest.approx(1.0 - tail, abs=inner[1] ** 2)


def test_what_cannot_be_told_is_nan_and_a_tail_of_one_is_the_middle():
    assert math.isnan(student_t_quantile(0.05, math.nan))
    assert student_t_quantile(1.0, 5.0) == 0.0
