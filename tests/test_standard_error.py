"""How far the loss may be from the expected one: each way of collecting pairs against dense formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import RUNS_ON_HOST

import prefloss
from prefloss import PairStats, reference
from prefloss.intervals import student_t_quantile
from prefloss.operators import indexed
from prefloss.sums import Sum

softplus = reference.pair_loss


def stats_of(function, *arrays, **options):
    """By the kernels."""
    given = [torch.from_numpy(np.asarray(array)) for array in arrays]
    options = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in options.items()
    }
    return function(*given, **options, return_stats=True)[1]


def paired(losses, weight=None):
    """Statistics of independent pairs with given losses, of the default loss: z = -log(exp(l) - 1)."""
    z = -np.log(np.expm1(losses))
    return stats_of(prefloss.bradley_terry_loss, z, np.zeros_like(z), weight=weight)


def assert_estimate(stats, other, rel=1e-11):
    for name in ("loss", "standard_error", "degrees_of_freedom", "skewness", "units"):
        assert getattr(stats, name) == pytest.approx(getattr(other, name), rel=rel), name


# ---- Intervals ----


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.999, 1.0 - 1e-15, 1.0 - 2.0**-53])
def test_the_ends_of_the_interval_are_where_halls_cubic_is_the_quantile(level):
    stats = paired(np.random.default_rng(0).exponential(size=60) + 0.1)
    t, a = student_t_quantile(1.0 - level, stats.degrees_of_freedom), stats.skewness
    for bound, expected in zip(stats.confidence_interval(level), (t, -t), strict=True):
        x = (stats.loss - bound) / stats.standard_error
        assert x + a / 3.0 * x**2 + a**2 / 27.0 * x**3 + a / 6.0 == pytest.approx(expected, rel=1e-9)


def test_without_skewness_the_interval_is_students():
    losses = np.concatenate((np.linspace(0.5, 1.5, 10), [1.0]))
    stats = paired(losses)
    low, high = stats.confidence_interval()
    assert abs(stats.skewness) < 1e-12
    assert stats.degrees_of_freedom == pytest.approx(10.0, rel=1e-12)
    assert (low + high) / 2.0 == pytest.approx(1.0, rel=1e-12)
    assert (high - low) / (2.0 * stats.standard_error) == pytest.approx(2.228139, rel=1e-6)  # t(10), 95 %
    assert stats.standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(11), rel=1e-12)


@pytest.mark.parametrize("count", [1, 9, 99])
@pytest.mark.parametrize("rest", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-12, 1e-200])
def test_one_unit_with_nearly_the_whole_weight_leaves_one_degree_of_freedom_or_nothing(count, rest):
    losses, weight = np.linspace(0.5, 1.5, count + 1), np.r_[1.0, np.full(count, rest / count)]
    stats = paired(losses, weight)
    if rest < 1e-4:
        assert math.isnan(stats.standard_error)
        return
    share = weight / weight.sum()
    influence = share[:, None] * (np.eye(count + 1) - share)
    covariance = influence @ influence.T
    # The trace is some rest^2, of terms of 1 that are rounded by 1e-16; its square, of 1e-9 of such terms, too.
    squares = np.sum((share * (losses - stats.loss)) ** 2) / np.trace(covariance) * np.sum(share**2)
    assert stats.standard_error == pytest.approx(math.sqrt(squares), rel=1e-6)
    degrees = np.trace(covariance) ** 2 / np.sum(covariance**2)
    assert (1.0 - 1e-5 if rest > 1e-3 else 0.8) * degrees <= stats.degrees_of_freedom <= (1.0 + 1e-5) * degrees


# ---- Groups ----


def groups_of(random, count, size, spread=1.0):
    """Rewards and ranks of responses to prompts, some of which are easier than others."""
    quality = random.normal(size=(count, size)) * np.exp(0.5 * spread * random.normal(size=(count, 1)))
    ranks = np.argsort(np.argsort(-(quality + 0.7 * random.normal(size=(count, size)))))
    return quality, ranks


@pytest.mark.parametrize("average", ["groups", "pairs"])
@pytest.mark.parametrize("ties", ["skip", "half"])
def test_groups_are_units_whatever_their_pairs_are(average, ties):
    random = np.random.default_rng(1)
    rewards, ranks, sizes = random.normal(size=60), random.integers(0, 4, 60), np.array([2, 7, 1, 20, 5, 15, 0, 10])
    weight = np.array([1.0, 2.0, 1.0, 0.5, 0.0, 3.0, 1.0, 1.0])
    given = {"group_sizes": torch.from_numpy(sizes), "average": average, "ties": ties}
    stats = stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks, weight=weight, **given)
    terms = reference.bradley_terry_loss_grouped(
        rewards, ranks, group_sizes=sizes, ties=ties, average="groups", reduction="none"
    )
    groups = reference.grouped.Groups.of(rewards, ranks, sizes, ties)
    counts = groups.total(groups.times)
    shares = weight * (counts > 0 if average == "groups" else counts)
    expected = paired(terms[shares != 0], shares[shares != 0])
    assert_estimate(stats, expected, rel=1e-10)
    assert stats.effective_sample_size == pytest.approx(expected.effective_sample_size, rel=1e-12)


def test_shards_of_groups_add_up_to_the_whole():
    rewards, ranks = groups_of(np.random.default_rng(2), 30, 5)
    whole = stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks)
    for cuts in ([1], [10, 11, 12], [15], list(range(1, 30))):
        shards = zip(np.split(rewards, cuts), np.split(ranks, cuts), strict=True)
        merged = sum(stats_of(prefloss.bradley_terry_loss_grouped, *shard) for shard in shards)
        assert_estimate(merged, whole)


# ---- One list of two ranks ----


def list_of(random, positives, negatives):
    """Rewards and ranks of one list, in random order."""
    rewards = np.concatenate((random.normal(1.0, 1.0, positives), random.normal(0.0, 1.0, negatives)))
    order = random.permutation(len(rewards))
    return rewards[None, order], np.repeat([0, 1], [positives, negatives])[None, order]


def dense_list(rewards, ranks, **options):
    """Variance and degrees of freedom of the mean of a matrix of losses, by rows and columns."""
    losses = softplus(
        options.get("beta", 1.0) * (rewards[ranks == 0][:, None] - rewards[ranks == 1][None])
        - options.get("margin", 0.0)
    )
    parts = [losses.mean(axis).var(ddof=1) / losses.shape[1 - axis] for axis in (1, 0)]
    degrees = [losses.shape[0] - 1, losses.shape[1] - 1]
    return sum(parts), sum(parts) ** 2 / sum(part**2 / df for part, df in zip(parts, degrees, strict=True))


@pytest.mark.parametrize(("positives", "negatives"), [(2, 2), (40, 160), (300, 5), (900, 400), (2, 1500)])
@pytest.mark.parametrize("options", [{}, {"beta": 3.0, "margin": 0.5}, {"beta": 30.0}], ids=str)
def test_one_list_of_two_ranks_goes_by_rows_and_columns(positives, negatives, options):
    rewards, ranks = list_of(np.random.default_rng(3), positives, negatives)
    variance, degrees = dense_list(rewards, ranks, **options)
    for average, weight in (("groups", None), ("pairs", np.array([7.0]))):
        stats = stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks, average=average, weight=weight, **options)
        assert stats.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)
        assert stats.degrees_of_freedom == pytest.approx(degrees, rel=1e-10)
        low, high = stats.confidence_interval()
        t = student_t_quantile(0.05, degrees)
        assert (high - low) / (2.0 * stats.standard_error) == pytest.approx(t, rel=1e-8)
    assert stats.units == 1
    assert_estimate_is_kept(stats)


def assert_estimate_is_kept(stats):
    for same in (stats + PairStats.zero(), PairStats.zero() + stats):
        assert (same.standard_error, same.degrees_of_freedom) == (stats.standard_error, stats.degrees_of_freedom)


def test_label_smoothing_of_a_long_list_is_in_its_rows_and_columns():
    rewards, ranks = list_of(np.random.default_rng(4), 800, 700)
    given = {"label_smoothing": 0.1, "beta": 20.0}
    stats = stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks, **given)
    z = 20.0 * (rewards[ranks == 0][:, None] - rewards[ranks == 1][None])
    losses = softplus(z, 0.9, 0.1)
    variance = losses.mean(1).var(ddof=1) / 800 + losses.mean(0).var(ddof=1) / 700
    assert stats.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)


@pytest.mark.parametrize("count", [20, 1500])
def test_infinite_rewards_of_a_list_count_in_its_rows_and_columns(count):
    """An infinite reward of a better item has no loss; the others' rows and columns stay what they are."""
    rewards, ranks = list_of(np.random.default_rng(5), count, count)
    rewards[0, np.flatnonzero(ranks[0] == 0)[:2]] = math.inf
    rewards[0, np.flatnonzero(ranks[0] == 1)[0]] = -math.inf
    variance, _ = dense_list(rewards, ranks)
    stats = stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks)
    assert stats.standard_error == pytest.approx(math.sqrt(variance), rel=1e-10)
    rewards[0, 0] = math.nan
    assert math.isnan(stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks).standard_error)


def test_lists_of_which_nothing_is_known_are_nan():
    rewards, ranks = list_of(np.random.default_rng(6), 30, 50)
    nothing = [
        (rewards, np.arange(80)[None], {}),  # more than two ranks
        (rewards, ranks, {"ties": "half"}),
        (*list_of(np.random.default_rng(6), 1, 50), {}),
        (*list_of(np.random.default_rng(6), 50, 1), {}),
        (rewards, ranks, {"weight": np.zeros(1)}),
    ]
    for *given, options in nothing:
        stats = stats_of(prefloss.bradley_terry_loss_grouped, *given, **options)
        assert math.isnan(stats.standard_error), options
        assert all(math.isnan(end) for end in stats.confidence_interval())


def test_of_equal_losses_a_list_shows_no_more_than_rounding():
    _, ranks = list_of(np.random.default_rng(6), 30, 50)
    assert not stats_of(prefloss.bradley_terry_loss_grouped, np.zeros((1, 80)), ranks).standard_error > 1e-16


def test_several_lists_are_units_and_not_rows_and_columns():
    random = np.random.default_rng(7)
    lists = [list_of(random, 10, 30) for _ in range(6)]
    whole = stats_of(prefloss.bradley_terry_loss_grouped, *(np.concatenate(each) for each in zip(*lists, strict=True)))
    assert_estimate(sum(stats_of(prefloss.bradley_terry_loss_grouped, *each) for each in lists), whole)
    assert whole.units == 6


# ---- Comparisons by index ----


def comparisons_of(random, count, items, noise=0.7):
    """Scores of items that are known but for noise, and comparisons that go by the true ones."""
    first = random.integers(0, items, count)
    second = (first + random.integers(1, items, count)) % items
    true = random.normal(size=items)
    wins = random.random(count) < 1.0 / (1.0 + np.exp(true[second] - true[first]))
    return true + noise * random.normal(size=items), np.where(wins, first, second), np.where(wins, second, first)


def dense_comparisons(scores, chosen, rejected, weight):
    """The standard error. Two comparisons' pulls are multiplied as often as they share an item, but one's with itself once."""
    losses = softplus(scores[chosen] - scores[rejected])
    pulls = weight * (losses - np.average(losses, weights=weight)) / weight.sum()
    ends = np.concatenate((chosen, rejected))
    share, of_items = (
        np.bincount(ends, np.tile(values, 2), len(scores)) for values in (0.5 * weight / weight.sum(), pulls)
    )
    products = of_items @ of_items - pulls @ pulls
    if len(chosen) < 1000:
        items = [np.eye(len(scores))[index] for index in (chosen, rejected)]
        shared = (items[0] + items[1]) @ (items[0] + items[1]).T
        np.fill_diagonal(shared, 1.0)
        assert products == pytest.approx(pulls @ shared @ pulls, rel=1e-9)
    correction = np.sum(share**2) / (np.sum(share**2) - 2.0 * np.sum(share**3) + np.sum(share**2) ** 2)
    return math.sqrt(max(products, pulls @ pulls) * correction)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize(("count", "items"), [(30, 6), (600, 60), (20_000, 50), (9000, 30_000)])
def test_comparisons_that_share_an_item_go_together(count, items, weighted):
    random = np.random.default_rng(8)
    scores, chosen, rejected = comparisons_of(random, count, items)
    weight = random.exponential(size=count) * (random.random(count) > 0.1) if weighted else np.ones(count)
    stats = stats_of(prefloss.bradley_terry_loss_indexed, scores, chosen, rejected, weight=weight)
    kept = weight != 0
    expected = dense_comparisons(scores, chosen[kept], rejected[kept], weight[kept])
    assert stats.standard_error == pytest.approx(expected, rel=1e-10)
    assert stats.units == len(np.unique(np.concatenate((chosen[kept], rejected[kept]))))
    assert_estimate_is_kept(stats)


def test_where_nearly_all_losses_are_equal_the_comparisons_keep_their_digits():
    scores, chosen, rejected = comparisons_of(np.random.default_rng(9), 600, 60)
    small = stats_of(prefloss.bradley_terry_loss_indexed, scores * 1e-8, chosen, rejected)
    losses = -0.5e-8 * (scores[chosen] - scores[rejected])  # log 2 and what is linear in z
    slope = stats_of(prefloss.bradley_terry_loss_indexed, scores, chosen, rejected, beta=1e-3)
    # Losses near log 2 are rounded by 1e-16, of deviations of 5e-9; of beta 1e-3 the curvature is 1e-3 of the slope.
    assert small.standard_error == pytest.approx(slope.standard_error * 1e-5, rel=5e-3)
    assert small.standard_error > np.std(losses) / math.sqrt(600)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_a_common_factor_of_the_weights_changes_nothing(scale):
    random = np.random.default_rng(10)
    scores, chosen, rejected = comparisons_of(random, 500, 40)
    weight = random.exponential(size=500)
    given = scores, chosen, rejected
    plain, scaled = (
        stats_of(prefloss.bradley_terry_loss_indexed, *given, weight=weight * factor) for factor in (1.0, scale)
    )
    assert_estimate(scaled, plain)
    rewards, ranks = groups_of(random, 20, 4)
    plain, scaled = (
        stats_of(prefloss.bradley_terry_loss_grouped, rewards, ranks, weight=weight[:20] * factor)
        for factor in (1.0, scale)
    )
    assert_estimate(scaled, plain)


def test_comparisons_to_which_others_are_added_may_share_items_and_are_nan():
    random = np.random.default_rng(11)
    scores, chosen, rejected = comparisons_of(random, 200, 20)
    by_index = stats_of(prefloss.bradley_terry_loss_indexed, scores, chosen, rejected)
    more = stats_of(prefloss.bradley_terry_loss_indexed, scores, chosen[:1], rejected[:1])
    pairs = paired(random.exponential(size=50) + 0.1)
    for other in (by_index, more, pairs):
        for stats in (by_index + other, other + by_index):
            assert math.isnan(stats.standard_error)
            assert math.isnan(stats.degrees_of_freedom)
            assert math.isfinite(stats.loss)


def test_comparisons_with_one_item_in_all_of_them_are_nan():
    random = np.random.default_rng(12)
    others = random.integers(1, 30, 100)
    stats = stats_of(prefloss.bradley_terry_loss_indexed, random.normal(size=30), np.zeros(100, dtype=np.int64), others)
    assert math.isnan(stats.standard_error)
    two = stats_of(prefloss.bradley_terry_loss_indexed, np.array([1.0, 0.0]), np.array([0, 1, 0]), np.array([1, 0, 1]))
    assert math.isnan(two.standard_error)
    none = stats_of(prefloss.bradley_terry_loss_indexed, np.zeros(3), *np.zeros((2, 0), dtype=np.int64))
    assert math.isnan(none.standard_error)
    assert none.sums.tolist() == PairStats.zero().sums.tolist()


def test_merged_comparisons_say_what_those_that_were_collected_do():
    """Their own squares are those of two items' comparisons together: so no pair of comparisons counts twice."""
    scores, chosen, rejected = comparisons_of(np.random.default_rng(13), 800, 12)
    whole = stats_of(prefloss.bradley_terry_loss_indexed, scores, chosen, rejected)
    merged = prefloss.merge_comparisons(torch.from_numpy(chosen), torch.from_numpy(rejected))
    _, stats = prefloss.bradley_terry_loss_indexed(torch.from_numpy(scores), **merged, return_stats=True)
    for name in ("loss", "degrees_of_freedom", "skewness", "effective_sample_size"):
        assert getattr(stats, name) == pytest.approx(getattr(whole, name), rel=1e-10), name
    assert stats.sums[Sum.SQUARED_WEIGHT_LOSS_SQUARES] == pytest.approx(
        whole.sums[Sum.SQUARED_WEIGHT_LOSS_SQUARES].item()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", ["many items", "one item in all", "none"])
def test_devices_without_a_kernel_for_indices_compute_the_same_sums(monkeypatch, shape, dtype):
    random = np.random.default_rng(15)
    scores, chosen, rejected = comparisons_of(random, 0 if shape == "none" else 700, 40)
    if shape == "one item in all":
        chosen, rejected = np.zeros_like(chosen), 1 + rejected % 39
    weight = torch.from_numpy(random.exponential(size=len(chosen)) * (random.random(len(chosen)) > 0.1)).to(dtype)
    scores, chosen, rejected = torch.from_numpy(scores).to(dtype), torch.from_numpy(chosen), torch.from_numpy(rejected)

    def sums(*given):  # under a transform, which the operators do
        options = {"margin": 0.3, "beta": 0.7, "center_rewards_coefficient": 0.1, "return_stats": True}
        return prefloss.bradley_terry_loss_indexed(*given[:3], weight=given[3], **options)[1].sums

    given = [torch.stack((tensor, tensor.flip(0))) for tensor in (scores, chosen, rejected, weight)]
    expected = torch.func.vmap(sums)(*given)
    monkeypatch.setattr(indexed._core, "indexed_call", lambda *_: None)
    found = torch.func.vmap(sums)(*given)
    # There losses are of a z in float64; in the kernel of one that is rounded to float32, three times.
    torch.testing.assert_close(found, expected, rtol=1e-11 if dtype is torch.float64 else 1e-5, atol=1e-12)


# ---- What intervals cover ----


def independent(random):
    z = random.normal(1.0, 2.0, 60)
    return stats_of(prefloss.bradley_terry_loss, z, np.zeros(60))


def weighted(random):
    """z ~ N(0, 2), weighted to N(1, 2) by the density ratio: some 156 of 200 pairs' worth."""
    z = random.normal(0.0, 2.0, 200)
    return stats_of(prefloss.bradley_terry_loss, z, np.zeros(200), weight=np.exp((2.0 * z - 1.0) / 8.0))


def in_groups(random):
    return stats_of(prefloss.bradley_terry_loss_grouped, *groups_of(random, 60, 6))


def in_one_list(random):
    return stats_of(prefloss.bradley_terry_loss_grouped, *list_of(random, 40, 160))


def by_index(random):
    return stats_of(prefloss.bradley_terry_loss_indexed, *comparisons_of(random, 600, 60))


def expected_loss(mean, deviation):
    """E[-log sigma(z)] for a normal z, by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(150)
    return float(weights @ softplus(mean + deviation * nodes) / weights.sum())


# What at least, and at most, 95 % intervals cover; the expected loss, or None where the mean over all data sets stands for it.
DESIGNS = {
    independent: (0.935, 0.965, expected_loss(1.0, 2.0)),
    weighted: (0.93, 0.97, expected_loss(1.0, 2.0)),
    in_groups: (0.93, 0.975, None),
    in_one_list: (0.925, 0.975, expected_loss(1.0, math.sqrt(2.0))),
    by_index: (0.90, 0.975, None),
}


@pytest.mark.kernels
@pytest.mark.skipif(RUNS_ON_HOST, reason="2,000 calls a design, whose sums the other tests compare")
@pytest.mark.parametrize("design", DESIGNS, ids=lambda design: design.__name__)
def test_intervals_cover_what_they_say(design):
    least, most, truth = DESIGNS[design]
    random = np.random.default_rng(14)
    drawn = [design(random) for _ in range(2000)]
    losses = np.array([stats.loss for stats in drawn])
    truth = losses.mean() if truth is None else truth
    bounds = np.array([stats.confidence_interval() for stats in drawn])
    covered = np.mean((bounds[:, 0] <= truth) & (truth <= bounds[:, 1]))
    error = math.sqrt(0.95 * 0.05 / 2000)  # of the share itself
    print(f"{design.__name__}: {covered:.4f} +- {error:.4f}")
    assert least - 3.0 * error <= covered <= most + 3.0 * error
    # Nor is the standard error far off: the deviation of 2000 means is known to 1.6 %.
    assert np.mean([stats.standard_error for stats in drawn]) == pytest.approx(losses.std(ddof=1), rel=0.1)
