"""`prefloss.evaluate`: groups and other populations, calibration, weights, and what is said in words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from made_pairs import losses, made_pairs
from scipy import optimize, special

import prefloss

pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")


def in_groups(pairs=900, seed=0):
    random = np.random.default_rng(seed)
    group = random.choice(4, pairs, p=[0.5, 0.3, 0.15, 0.05])
    difference = 1.5 - 0.5 * group + random.normal(size=pairs)
    return {"chosen": difference, "rejected": np.zeros(pairs), "group": group}


def test_groups_are_the_evaluations_of_their_pairs_alone():
    given = in_groups()
    found = prefloss.evaluate(**given)
    assert list(found.groups) == [0, 1, 2, 3]
    for label, group in found.groups.items():
        alone = prefloss.evaluate(given["chosen"][given["group"] == label], np.zeros((given["group"] == label).sum()))
        assert group.loss.value == pytest.approx(alone.loss.value, rel=1e-10)
        assert group.loss.interval() == pytest.approx(alone.loss.interval(), rel=1e-10)
        assert found.shares[label] == pytest.approx(np.mean(given["group"] == label), rel=1e-12)


def test_the_sampling_error_of_shares_is_added():
    """The multinomial variance of sum share * mean: (sum share mean^2 - (sum share mean)^2) / n."""
    found = prefloss.evaluate(**in_groups())
    counts = {0: 10, 1: 20, 2: 40, 3: 30}
    known, counted = (
        found.reweighted({label: count / 100 for label, count in counts.items()}),
        found.reweighted(share_counts=counts),
    )
    assert counted.loss.value == pytest.approx(known.loss.value, rel=1e-12)
    share = np.array(list(counts.values())) / 100
    means = np.array([group.loss.value for group in found.groups.values()])
    more = (share @ means**2 - (share @ means) ** 2) / 100
    assert counted.loss.standard_error**2 == pytest.approx(known.loss.standard_error**2 + more, rel=1e-10)


def test_the_datas_own_shares_give_the_datas_own_mean():
    found = prefloss.evaluate(**in_groups(), weight=np.random.default_rng(1).gamma(2, size=900))
    again = found.reweighted(found.shares)
    assert again.loss.value == pytest.approx(found.loss.value, rel=1e-12)
    assert again.calibration.slope == pytest.approx(found.calibration.slope, rel=1e-9)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"shares": {0: 0.5, 1: 0.4, 2: 0.0, 3: 0.0}}, "shares must add up to 1, got 0.9"),
        ({"shares": {0: 1.5, 1: -0.5, 2: 0.0, 3: 0.0}}, r"shares\[1\] must be a number >= 0"),
        ({"shares": {0: 0.5, 1: 0.5}}, "shares must name every group; give 0 to leave one out; not named: 2, 3"),
        ({"shares": {0: 0.5, 1: 0.2, 2: 0.0, 3: 0.0, 9: 0.3}}, r"no pairs of 9 \(30.0%\), so the loss of 30.0% of the"),
        ({}, "exactly one of shares and share_counts"),
        ({"share_counts": {0: 0, 1: 0, 2: 0, 3: 0}}, "share_counts must not all be 0"),
        ({"share_counts": {0: 1, 1: 1.5, 2: 0, 3: 0}}, r"share_counts\[1\] must be a whole number >= 0, got 1.5"),
    ],
)
def test_shares_that_mean_nothing_are_refused(shares, message):
    with pytest.raises(ValueError, match=message):
        prefloss.evaluate(**in_groups()).reweighted(**shares)


def test_a_group_of_share_0_is_left_out():
    given = in_groups()
    found = prefloss.evaluate(**given).reweighted({0: 0.5, 1: 0.5, 2: 0.0, 3: 0.0})
    assert found.pairs == (given["group"] < 2).sum()
    assert found.loss.degrees_of_freedom < found.pairs


def test_the_worst_group_has_the_interval_of_the_greatest_loss():
    found = prefloss.evaluate(**in_groups())
    worst = found.worst_group(0.9)
    intervals = [group.loss.interval(1 - 0.1 / 4) for group in found.groups.values()]
    assert worst.label == 3
    assert worst.value == found.groups[3].loss.value
    assert worst.interval == (max(low for low, _ in intervals), max(high for _, high in intervals))


@pytest.mark.parametrize("radius", [0.0, 1e-320, 1e-40, 0.01, 0.3, 2.0, 100.0])
def test_the_worst_mixture_is_what_an_optimiser_finds(radius):
    found = prefloss.evaluate(**in_groups())
    own = np.array(list(found.shares.values()))
    means = np.array([group.loss.value for group in found.groups.values()])
    mixture = found.worst_mixture(radius)
    shares = np.array(list(mixture.shares.values()))
    divergence = np.sum((shares - own) ** 2 / own)
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    assert divergence <= radius + 1e-9
    result = optimize.minimize(
        lambda q: -q @ means, own, bounds=[(0, 1)] * 4, method="SLSQP", options={"ftol": 1e-12},
        constraints=[
            {"type": "eq", "fun": lambda q: q.sum() - 1},
            {"type": "ineq", "fun": lambda q: radius - np.sum((q - own) ** 2 / own)},
        ],
    )  # fmt: skip
    assert mixture.loss.value == pytest.approx(-result.fun, rel=1e-5)


@pytest.mark.parametrize("gap", [1e-3, 1e-6, 1e-12])
def test_the_worst_mixture_does_not_depend_on_the_size_of_the_difference(gap):
    """Two groups of the same size: q - 1/2 is half the root of the radius, whatever the losses are."""
    chosen = np.tile(np.linspace(-1, 1, 100), 2)
    chosen[100:] += gap
    mixture = prefloss.evaluate(chosen, np.zeros(200), group=np.repeat(["x", "y"], 100)).worst_mixture(0.1)
    assert mixture.shares["x"] == pytest.approx(0.5 + math.sqrt(0.1) / 2, rel=1e-9)


def test_groups_of_which_nothing_is_labelled_have_no_share():
    nan = math.nan
    given = {"judge": [0.9, 0.4, 0.2, 0.6], "group": ["a", "a", "b", "c"]}
    nothing = prefloss.evaluate([1.0, 2.0, 0.5, 0.7], [0.0, 3.0, 0.0, 0.0], target=[nan] * 4, **given)
    assert all(math.isnan(share) for share in nothing.shares.values())
    assert math.isnan(nothing.as_dict()["loss"]["value"])
    with pytest.raises(ValueError, match="there are no labelled pairs, so there is no worst mixture"):
        nothing.worst_mixture(0.1)
    some = prefloss.evaluate([1.0, 2.0, 0.5, 0.7], [0.0, 3.0, 0.0, 0.0], target=[1.0, 1.0, nan, 1.0], **given)
    assert some.shares == pytest.approx({"a": 2 / 3, "b": 0, "c": 1 / 3})
    shares = some.worst_mixture(0.1).shares
    assert shares["b"] == 0
    assert shares["a"] > 2 / 3


def test_there_is_no_worst_mixture_of_nothing():
    with pytest.raises(ValueError, match="there are no pairs, so there is no worst mixture"):
        prefloss.evaluate([], [], group=[]).worst_mixture(1.0)


def test_a_label_is_printed_on_one_line():
    text = str(prefloss.evaluate([1.0, 2.0], [0.0, 0.0], group=["a\nb\x1b[2J", "c"]))
    assert "\na b [2J " in text
    assert "\x1b" not in text


# ---- Calibration ----


def drawn(slope, scale=1.5, pairs=4000, seed=0):
    """Pairs whose probabilities are sigma(slope z)."""
    random = np.random.default_rng(seed)
    z = np.abs(scale * random.normal(size=pairs))
    return np.where(random.random(pairs) < special.expit(slope * z), z, -z)


@pytest.mark.parametrize("slope", [-1.0, 0.1, 0.4, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("scale", [0.3, 1.5, 8.0])
def test_the_slope_is_that_of_a_logistic_regression(slope, scale):
    """The root of the score of all pairs and its sandwich, for which ours has 20 bins and five slopes."""
    z = drawn(slope, scale)
    size, won = np.abs(z), z > 0
    exact = optimize.brentq(lambda beta: np.mean(size * (special.expit(beta * size) - won)), -100, 100, xtol=1e-14)
    likely = special.expit(exact * size)
    error = np.sqrt(np.sum((size * (likely - won)) ** 2)) / np.sum(size**2 * likely * (1 - likely))
    found = prefloss.evaluate(z, np.zeros(len(z))).calibration
    assert found.slope == pytest.approx(exact, abs=0.02 * error)
    # Beyond the five slopes the ratio to the variance of independent pairs is held: some percent.
    assert found.standard_error == pytest.approx(error, rel=0.03)


def test_the_slopes_error_knows_of_clusters():
    generalized = pytest.importorskip("statsmodels.api")
    given = made_pairs(2000, 60)
    z = np.abs(given["chosen"])
    model = generalized.GLM((given["chosen"] > 0) * 1.0, z[:, None], family=generalized.families.Binomial())
    theirs = model.fit(cov_type="cluster", cov_kwds={"groups": given["cluster"]})
    found = prefloss.evaluate(**given).calibration
    assert found.slope == pytest.approx(theirs.params[0], abs=0.02 * theirs.bse[0])
    assert found.standard_error == pytest.approx(theirs.bse[0], rel=0.05)  # CR2 against CR1, 60 unequal clusters


def test_the_test_of_calibration_rejects_what_is_not_calibrated():
    assert prefloss.evaluate(drawn(1.0), np.zeros(4000)).calibration.p_value > 0.05
    assert prefloss.evaluate(drawn(0.7), np.zeros(4000)).calibration.p_value < 1e-6


def test_the_bins_are_those_of_a_calibration_curve():
    """scikit-learn's, of pairs and their mirror images: its probability bins are those of |z| on the upper half."""
    calibration = pytest.importorskip("sklearn.calibration")
    z = drawn(0.8)
    bins = prefloss.evaluate(z, np.zeros(len(z))).calibration.bins
    edges = [each.low for each in bins] + [math.inf]
    assert sum(each.pairs for each in bins) == len(z)
    for each, low, high in zip(bins, edges, edges[1:], strict=False):
        inside = (np.abs(z) >= low) & (np.abs(z) < high)
        assert each.pairs == inside.sum()
        assert each.predicted == pytest.approx(special.expit(np.abs(z[inside]).mean()), rel=1e-12)
        observed, predicted = calibration.calibration_curve(z[inside] > 0, special.expit(np.abs(z[inside])), n_bins=1)
        assert each.observed == pytest.approx(observed[0], rel=1e-12)
        assert each.predicted == pytest.approx(predicted[0], abs=0.05)


def test_pairs_that_are_all_right_have_an_infinite_slope():
    found = prefloss.evaluate(np.arange(1.0, 50.0), np.zeros(49))
    assert found.calibration.slope == math.inf
    assert any("orders every pair rightly" in concern for concern in found.concerns())


# ---- Weights ----


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_paretos_k_is_the_tails_shape(k):
    """Of weights drawn from a Pareto law. The estimate's standard deviation is about (1 + k) / sqrt(tail)."""
    pairs = 20_000
    weight = (1 - np.random.default_rng(0).random(pairs)) ** -k
    found = prefloss.evaluate(made_pairs(pairs)["chosen"], np.zeros(pairs), weight=weight).weights
    assert found.pareto_k == pytest.approx(k, abs=4 * (1 + k) / math.sqrt(3 * math.sqrt(pairs)))
    assert found.largest_share == pytest.approx(weight.max() / weight.sum(), rel=0.011)
    assert ("heavy tail" in found.warning) == (k > 0.7)


def test_weights_that_leave_few_pairs_are_worried_about():
    given = made_pairs(100)
    weight = np.r_[100.0, np.ones(99)]
    assert "One pair carries 50%" in prefloss.evaluate(**given, weight=weight).concerns()[0]
    assert prefloss.evaluate(**given, weight=np.ones(100)).weights.warning == ""
    assert prefloss.evaluate(**given).weights is None


# ---- Words ----


def test_concerns_are_said_where_there_are_any():
    assert prefloss.evaluate(drawn(1.0), np.zeros(4000)).concerns() == []
    few = prefloss.evaluate(**made_pairs(200, 8)).concerns()
    assert any("8 clusters" in concern and "not more pairs" in concern for concern in few)
    assert any("too sure of itself" in concern for concern in prefloss.evaluate(drawn(0.5), np.zeros(4000)).concerns())
    assert any(
        "Were these pairs held out?" in concern for concern in prefloss.evaluate(drawn(2), np.zeros(4000)).concerns()
    )
    assert any("swapped" in concern for concern in prefloss.evaluate(drawn(-1), np.zeros(4000)).concerns())
    (of_chance,) = prefloss.evaluate(np.random.default_rng(2).normal(size=4000), np.zeros(4000)).concerns()
    assert "may say nothing about which response is preferred" in of_chance
    assert any("hides a group: the loss of 3" in concern for concern in prefloss.evaluate(**in_groups(4000)).concerns())


def test_the_table_says_what_was_assumed_and_holds_the_numbers():
    found = prefloss.evaluate(**in_groups(), cluster=np.arange(900) // 3)
    printed = str(found)
    assert "900 pairs in 300 clusters" in printed
    assert f"{found.loss.value:.4f}" in printed
    assert f"{found.groups[3].loss.interval()[1]:.4f}" in printed
    assert json.loads(json.dumps(found.as_dict()))["loss"]["value"] == pytest.approx(
        losses(in_groups()["chosen"]).mean(), rel=1e-12
    )


def test_the_figure_has_a_panel_for_each_thing():
    pytest.importorskip("matplotlib")
    plain, weighted = (
        prefloss.evaluate(**made_pairs(100)),
        prefloss.evaluate(**in_groups(), weight=np.linspace(0.1, 1, 900)),
    )
    assert len(plain.figure().axes) == 3
    figure = weighted.figure()
    figure.canvas.draw()
    assert len(figure.axes) == 4
    prefloss.evaluate([], []).figure().canvas.draw()


def test_what_was_not_given_is_asked_for_by_name():
    found = prefloss.evaluate(**made_pairs(10))
    for name, argument in (("groups", "group"), ("difference", "baseline"), ("prediction_powered", "judge")):
        with pytest.raises(ValueError, match=rf"evaluate\(..., {argument}=...\)"):
            getattr(found, name)
