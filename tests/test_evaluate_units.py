"""`prefloss.evaluate`: standard errors, degrees of freedom, skewness, against dense matrices and other packages."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import torch
from made_pairs import dense_cr2, losses, made_pairs

import prefloss

pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")
from scipy import stats

EXACT = {"rel": 1e-10, "abs": 0}


def assert_is(estimate, value, error, df, **tolerance):
    assert estimate.value == pytest.approx(value, **tolerance)
    assert estimate.standard_error == pytest.approx(error, **tolerance)
    assert estimate.degrees_of_freedom == pytest.approx(df, **tolerance)


@pytest.mark.parametrize("weighted", [False, True])
def test_clusters_are_those_of_dense_matrices(weighted):
    pairs = made_pairs(90, 12)
    weight = np.random.default_rng(1).gamma(2, size=90) if weighted else None
    found = prefloss.evaluate(**pairs, weight=weight)
    for estimate, values in (
        (found.loss, losses(pairs["chosen"])),
        (found.margin, pairs["chosen"]),
        (found.accuracy, 1.0 * (pairs["chosen"] > 0)),
        (found.brier, (1 - 1 / (1 + np.exp(-pairs["chosen"]))) ** 2),
    ):
        assert_is(estimate, *dense_cr2(values, np.ones(90) if weight is None else weight, pairs["cluster"]), **EXACT)


@pytest.mark.parametrize("clustered", [False, True])
def test_shares_of_groups_are_those_of_dense_matrices(clustered):
    pairs = made_pairs(80, 15)
    group = np.random.default_rng(2).integers(0, 3, 80)  # clusters span groups
    cluster = pairs.pop("cluster") if clustered else np.arange(80)
    shares = np.array([0.2, 0.5, 0.3])
    found = prefloss.evaluate(
        chosen=pairs["chosen"], rejected=pairs["rejected"], group=group, cluster=cluster if clustered else None
    )
    assert_is(
        found.reweighted(dict(enumerate(shares))).loss,
        *dense_cr2(losses(pairs["chosen"]), np.ones(80), cluster, group, shares),
        **EXACT,
    )


def test_pairs_of_equal_weight_are_clusters_of_one():
    """Exactly, by other sums; the degrees of freedom are n - 1."""
    pairs = made_pairs(50)
    for weight in (None, np.full(50, 3.0)):
        alone, clustered = (
            prefloss.evaluate(**pairs, weight=weight, **more).loss for more in ({}, {"cluster": np.arange(50)})
        )
        assert_is(alone, clustered.value, clustered.standard_error, 49, **EXACT)
        assert alone.standard_error == pytest.approx(losses(pairs["chosen"]).std(ddof=1) / math.sqrt(50), **EXACT)
        assert alone.skewness == pytest.approx(clustered.skewness, **EXACT)
        assert alone.effective_sample_size == pytest.approx(50, **EXACT)


def test_pairs_of_unequal_weight_are_clusters_of_one_to_the_order_of_their_effective_number():
    """Sums of powers stand for sums of fractions; what is left out is at most the variance of the leverages, a few / n^2."""
    pairs, weight = made_pairs(400), np.random.default_rng(3).gamma(0.5, size=400)
    found = prefloss.evaluate(**pairs, weight=weight)
    alone, clustered = found.loss, prefloss.evaluate(**pairs, weight=weight, cluster=np.arange(400)).loss
    leverage = weight / weight.sum()
    pull = (leverage * (losses(pairs["chosen"]) - alone.value)) ** 2
    # E[1 / (1 - h)] - 1 / (1 - E h) <= var h / (1 - max h)^3
    spread = np.average((leverage - np.average(leverage, weights=pull)) ** 2, weights=pull) / (1 - leverage.max()) ** 3
    assert alone.standard_error**2 == pytest.approx(clustered.standard_error**2, rel=1.01 * spread)
    assert spread < 1e-3
    assert alone.degrees_of_freedom == pytest.approx(clustered.degrees_of_freedom, rel=0.01)
    assert alone.skewness == pytest.approx(clustered.skewness, **EXACT)
    assert found.weights.effective_size == pytest.approx(weight.sum() ** 2 / (weight**2).sum(), **EXACT)


def test_statsmodels_clusters_are_ours_without_the_correction_for_few():
    """Its CR1 is the plain sandwich times G / (G - 1) (n - 1) / (n - k). With equal clusters ours is that too."""
    linear_model = pytest.importorskip("statsmodels.regression.linear_model")
    difference, cluster = made_pairs(120)["chosen"], np.repeat(np.arange(30), 4)
    theirs = linear_model.OLS(losses(difference), np.ones(120)).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    ours = prefloss.evaluate(difference, np.zeros(120), cluster=cluster).loss
    assert ours.value == pytest.approx(theirs.params[0], **EXACT)
    assert ours.standard_error == pytest.approx(theirs.bse[0], **EXACT)
    assert ours.degrees_of_freedom == pytest.approx(29, **EXACT)


def test_the_interval_is_near_the_bootstraps():
    """SciPy's BCa: both are right to the order 1 / n, so their ends differ by less than a tenth of the standard error here."""
    values = losses(made_pairs(200)["chosen"])
    ours = prefloss.evaluate(**made_pairs(200)).loss
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, rng=np.random.default_rng(0)).confidence_interval
    assert ours.interval(0.95) == pytest.approx((theirs.low, theirs.high), abs=0.1 * ours.standard_error)


def test_the_interval_undoes_halls_cubic():
    loss = prefloss.evaluate(**made_pairs(30)).loss
    a = loss.skewness
    assert a > 0.05
    t = stats.t.ppf(0.95, 29)
    for end, quantile in zip(loss.interval(0.9), (t, -t), strict=True):
        x = (loss.value - end) / loss.standard_error
        assert x + a / 3 * x**2 + a**2 / 27 * x**3 + a / 6 == pytest.approx(quantile, rel=1e-12)


def test_the_design_effect_of_weights_is_balances():
    """balance computes Kish's n sum w^2 / (sum w)^2; ours is it too, on the effective size."""
    if importlib.util.find_spec("balance") is None:
        pytest.skip("needs balance")
    design_effect = pytest.importorskip("balance.stats_and_plots.weights_stats").design_effect
    import pandas as pd

    weight = np.random.default_rng(3).gamma(2, size=100)
    found = prefloss.evaluate(**made_pairs(100), weight=weight).weights
    assert 100 / found.effective_size == pytest.approx(design_effect(pd.Series(weight)), **EXACT)


@pytest.mark.parametrize("clustered", [False, True])
def test_a_difference_is_that_of_the_same_pairs(clustered):
    pairs, other = made_pairs(90, 12), made_pairs(90, seed=9)["chosen"]
    cluster = pairs.pop("cluster")
    found = prefloss.evaluate(**pairs, baseline=(other, np.zeros(90)), cluster=cluster if clustered else None)
    values = losses(pairs["chosen"]) - losses(other)
    assert_is(found.difference, *dense_cr2(values, np.ones(90), cluster if clustered else np.arange(90)), **EXACT)
    assert found.baseline_loss.value == pytest.approx(losses(other).mean(), **EXACT)
    right = 1.0 * (pairs["chosen"] > 0) - (other > 0)
    assert found.accuracy_difference.value == pytest.approx(right.mean(), **EXACT)


@pytest.mark.parametrize("clustered", [False, True])
def test_prediction_powered_is_ppi_py(clustered):
    pairs, random = made_pairs(600), np.random.default_rng(4)
    z, labelled = pairs["chosen"], random.random(600) < 0.3
    judge = random.beta(1, 1, 600)  # more sure of itself than it should be, so that it is not trusted altogether
    target = np.where(labelled, random.random(600) < 0.25 + 0.5 * judge, np.nan)
    cluster = np.arange(600) if clustered else None
    found = prefloss.evaluate(**pairs, target=target, judge=judge, cluster=cluster).prediction_powered
    loss, judged = losses(z) + (1 - target) * z, losses(z) + (1 - judge) * z
    n, rest = labelled.sum(), (~labelled).sum()
    # Ours has one factor for the judge: theirs is lambda W_U / W, and the best one is the same.
    k = found.tuning * rest / 600
    assert 0 < found.tuning < 1
    assert found.value == pytest.approx(
        loss[labelled].mean() + k * (judged[~labelled].mean() - judged[labelled].mean()), **EXACT
    )
    variance = np.var((loss - k * judged)[labelled], ddof=1) / n + k**2 * np.var(judged[~labelled], ddof=1) / rest
    assert found.standard_error == pytest.approx(math.sqrt(variance), **EXACT)
    ppi_py = pytest.importorskip("ppi_py")
    data = loss[labelled], judged[labelled], judged[~labelled]
    assert found.value == pytest.approx(ppi_py.ppi_mean_pointestimate(*data, lam=k)[0], rel=1e-12)
    low, high = ppi_py.ppi_mean_ci(*data, lam=k, alpha=0.05)
    error = (high[0] - low[0]) / 2 / stats.norm.ppf(0.975)  # with n in the place of n - 1
    assert found.standard_error == pytest.approx(error, rel=1 / n)
    best = ppi_py.ppi_mean_pointestimate(*data)[0]
    # Its factor differs by the square root of 1 / n: it pools the variance of judgements; the standard error is flat there.
    assert found.value == pytest.approx(best, abs=0.1 * found.standard_error)


def test_one_unit_or_none_leaves_no_standard_error():
    for found in (
        prefloss.evaluate([1.0], [0.0]),
        prefloss.evaluate([1.0, 2.0], [0.0, 0.0], cluster=["a", "a"]),
        prefloss.evaluate([1.0, 2.0], [0.0, 0.0], weight=[1.0, 0.0]),
        prefloss.evaluate([], []),
        prefloss.evaluate([], [], cluster=[], group=[], weight=[]),
    ):
        assert found.clusters < 2
        assert all(
            math.isnan(end)
            for end in (found.loss.standard_error, *found.loss.interval(), *found.calibration.interval())
        )
        assert math.isnan(found.loss.value) == (found.pairs == 0)
        assert str(found)
        assert found.as_dict()


@pytest.mark.parametrize(("pairs", "heavy"), [(30, 200.0), (100, 500.0)])
def test_one_huge_weight_leaves_no_less_than_one_degree_of_freedom(pairs, heavy):
    weight = np.r_[heavy, np.ones(pairs - 1)]
    loss = prefloss.evaluate(made_pairs(pairs)["chosen"], np.zeros(pairs), weight=weight).loss
    assert 1.0 <= loss.degrees_of_freedom < 1.2
    assert all(math.isfinite(end) for end in loss.interval())


def test_a_weight_that_is_nearly_all_leaves_no_interval():
    weight = np.r_[1e6, np.ones(999)]
    loss = prefloss.evaluate(made_pairs(1000)["chosen"], np.zeros(1000), weight=weight).loss
    assert all(math.isnan(end) for end in loss.interval())


def test_one_huge_cluster_among_small_ones_is_worth_few():
    cluster = np.r_[np.zeros(1000), np.arange(1, 21)].astype(int)
    loss = prefloss.evaluate(made_pairs(1020)["chosen"], np.zeros(1020), cluster=cluster).loss
    assert loss.degrees_of_freedom < 1.2
    low, high = loss.interval()
    assert high - low > 4 * loss.standard_error


@pytest.mark.parametrize("offset", [0.0, 1e8])
@pytest.mark.parametrize("clustered", [False, True])
def test_an_offset_of_the_margin_loses_no_digits(offset, clustered):
    """Differences of rewards near 1e8 are known to 1.5e-8, and their spread too: nothing is lost beyond the data's own rounding."""
    rounded = (made_pairs(300)["chosen"] + offset) - offset
    cluster = np.arange(300) % 40 if clustered else None
    found = prefloss.evaluate(rounded + offset, np.zeros(300), cluster=cluster).margin
    exact = prefloss.evaluate(rounded, np.zeros(300), cluster=cluster).margin
    assert found.value - offset == pytest.approx(exact.value, abs=3e-8 if offset else 0)
    assert found.standard_error == pytest.approx(exact.standard_error, **EXACT)
    assert found.skewness == pytest.approx(exact.skewness, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300, 1.7e308])
@pytest.mark.parametrize("clustered", [False, True])
def test_the_scale_of_weights_does_not_matter(scale, clustered):
    pairs, weight = made_pairs(60, 9), np.random.default_rng(5).gamma(2, size=60)
    weight /= weight.max()
    if not clustered:
        del pairs["cluster"]
    one, other = (prefloss.evaluate(**pairs, weight=each) for each in (weight, scale * weight))
    assert_is(other.loss, one.loss.value, one.loss.standard_error, one.loss.degrees_of_freedom, rel=1e-12)
    assert other.weights.effective_size == pytest.approx(one.weights.effective_size, rel=1e-12)
    both = one + other
    assert both.loss.value == pytest.approx((one if scale < 1 else other).loss.value, rel=1e-12)


def test_a_pair_of_weight_0_counts_nothing_even_if_it_is_nan():
    pairs = made_pairs(50)
    more = {name: np.r_[values, np.nan] for name, values in pairs.items()}
    wrong = np.r_[np.full(50, 0.5), np.nan], np.r_[np.full(50, 0.25), -7.0]
    for extra in (
        {},
        {"cluster": np.arange(51), "group": np.arange(51)},
        *({"margin": column, "target": column, "judge": column} for column in wrong),
        *({"margin": column, "target": column} for column in wrong),
    ):
        found = prefloss.evaluate(**more, weight=np.r_[np.ones(50), 0.0], **extra)
        alone = prefloss.evaluate(**pairs, **{name: column[:50] for name, column in extra.items()})
        assert found.pairs == 50
        assert found.loss.value == pytest.approx(alone.loss.value, **EXACT)
        assert "group" not in extra or len(found.groups) == 50


def test_the_largest_rewards_have_finite_errors_and_larger_ones_do_not_matter_where_their_weight_is_0():
    rewards = np.array([1e80, -1e80, 3.0, 1e200, math.inf]), np.array([-1e80, 1e80, 1.0, 0.0, 0.0])
    weight = 2.0**40 * np.array([1.9, 1.0, 1.5, 0.0, 0.0])
    for cluster in (None, np.arange(5)):
        found = prefloss.evaluate(*rewards, weight=weight, cluster=cluster, margin=[1e80, 1e80, 0.0, 0.0, 0.0])
        for estimate in (found.loss, found.margin):
            assert math.isfinite(estimate.standard_error)
            assert all(math.isfinite(end) for end in estimate.interval())
        assert "inf" not in str(found.loss)


def test_nan_and_infinite_rewards_are_not_hidden():
    found = prefloss.evaluate([1.0, math.nan, 2.0], [0.0, 0.0, 0.0])
    assert math.isnan(found.loss.value)
    assert "NaN" in found.concerns()[0]
    found = prefloss.evaluate([1.0, -math.inf, 2.0], [0.0, 0.0, 0.0], cluster=[1, 2, 3])
    assert found.loss.value == math.inf
    assert math.isnan(found.loss.standard_error)


def test_the_loss_is_that_of_the_training_function():
    chosen, rejected, weight, target, margin = torch.rand(5, 100, dtype=torch.float64)
    options = {"weight": weight, "target": target, "margin": margin, "beta": 0.7}
    for more in ({"label_smoothing": 0.1}, {"flip_rate": 0.2}, {}):
        loss, of_pass = prefloss.bradley_terry_loss(chosen, rejected, **options, **more, return_stats=True)
        found = prefloss.evaluate(chosen, rejected, **options, **more)
        assert found.loss.value == pytest.approx(loss.item(), rel=1e-12)
        assert found.margin.value == pytest.approx(
            ((chosen - rejected) * weight).sum().item() / weight.sum().item(), rel=1e-12
        )
        assert found.tie_rate.value == of_pass.tie_rate
    assert prefloss.evaluate(chosen, rejected, weight=weight).accuracy.value == pytest.approx(
        of_pass.accuracy, rel=1e-12
    )


def test_accuracy_follows_the_target():
    chosen, rejected = [2.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]
    assert prefloss.evaluate(chosen, rejected, target=[1, 1, 0.25, 0.5]).accuracy.value == pytest.approx(
        (1 + 0 + 0.25 + 0) / 4
    )
    upside_down = prefloss.evaluate(chosen, rejected, target=0)
    assert upside_down.accuracy.value == 0.25
    assert upside_down.tie_rate.value == 0.25


def test_two_infinities_are_a_tie_and_two_nan_are_none():
    chosen, rejected = torch.tensor(
        [[math.inf, -math.inf, math.inf, math.nan, 2.0], [math.inf, -math.inf, 0.0, math.nan, 2.0]]
    )
    _, of_pass = prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)
    assert prefloss.evaluate(chosen, rejected).tie_rate.value == of_pass.tie_rate == 0.6


def test_shares_that_all_pairs_agree_on_still_have_an_interval():
    """Of Clopper & Pearson."""
    accuracy = prefloss.evaluate(np.ones(20), np.zeros(20)).accuracy
    exact = stats.binomtest(20, 20).proportion_ci(0.95)
    assert accuracy.interval(0.95) == pytest.approx((exact.low, exact.high), rel=1e-12)
    assert (
        prefloss.evaluate(np.ones(20), np.zeros(20), cluster=np.arange(20) // 2).accuracy.interval(0.95)[0] < exact.low
    )


def test_pairs_needed_shrinks_the_interval_as_it_says():
    loss = prefloss.evaluate(**made_pairs(400)).loss
    half = stats.norm.ppf(0.975) * loss.standard_error
    assert loss.pairs_needed(half) == pytest.approx(400, abs=1)
    assert loss.pairs_needed(half / 10) == pytest.approx(40_000, abs=1)


def test_a_sequence_is_wider_than_an_interval_and_tightest_where_it_is_told():
    loss = prefloss.evaluate(**made_pairs(1000)).loss
    widths = {n: np.ptp(loss.sequence(0.95, tightest_at=n)) for n in (10, 1000, 100_000)}
    assert min(widths, key=widths.get) == 1000
    assert np.ptp(loss.interval()) < widths[1000] < 1.7 * np.ptp(loss.interval())
    x = 1000 * (-2 * math.log(0.05) + math.log(1 - 2 * math.log(0.05))) / 1000  # n rho^2, in the paper's letters
    radius = math.sqrt(2 * (x + 1) / (1000 * x) * math.log(math.sqrt(x + 1) / 0.05)) * losses(
        made_pairs(1000)["chosen"]
    ).std(ddof=1)
    assert widths[1000] == pytest.approx(2 * radius, rel=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda loss: loss.interval(0), "level must be a number between 0 and 1"),
        (lambda loss: loss.interval(1.0), "level must be a number between 0 and 1"),
        (lambda loss: loss.sequence(0.9, tightest_at=0), "tightest_at must be a number of pairs > 0"),
        (lambda loss: loss.pairs_needed(0.0), "half_width must be a number > 0"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(prefloss.evaluate(**made_pairs(10)).loss)
