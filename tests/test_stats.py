"""PairStats: every property against a direct formula, the sums as a monoid, and what one can do with it.

What the standard error says of groups, lists and comparisons by index: test_standard_error.py.
"""

from __future__ import annotations

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch

import prefloss
from prefloss import PairStats, reference
from prefloss.stats import Sum

PROPERTIES = [name for name, member in vars(PairStats).items() if isinstance(member, property)]


def data(count, seed=0, weighted=True):
    """Rewards rounded so that some pairs tie, and weights of which a tenth are 0."""
    random = np.random.default_rng(seed)
    chosen, rejected = np.round(random.normal(0.5, 2.0, count), 1), np.round(random.normal(0.0, 1.0, count), 1)
    weight = random.exponential(size=count) * (random.random(count) > 0.1)
    return chosen, rejected, weight if weighted else np.ones(count)


def stats_of(chosen, rejected, **options):
    return PairStats(torch.from_numpy(reference.bradley_terry_loss(chosen, rejected, return_stats=True, **options)[1]))


def assert_same(one, other, rtol=0.0, atol=0.0):
    np.testing.assert_allclose(one.sums.numpy(), other.sums.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("count", [5, 17, 1000])
def test_properties_agree_with_direct_formulas(count, weighted):
    a, b, w = data(count, weighted=weighted)
    stats = stats_of(a, b, weight=w, beta=0.7, center_rewards_coefficient=9.0)
    a, b, w = a[w != 0], b[w != 0], w[w != 0]
    losses = np.log1p(np.exp(-0.7 * (a - b)))
    loss, n, share = np.average(losses, weights=w), len(a), w / w.sum()
    pulls = share * (losses - loss)
    # The covariance of the pulls where all losses have the variance 1.
    influence = share[:, None] * (np.eye(n) - share)
    covariance = influence @ influence.T
    expected = {
        "count": n,
        "units": n,
        "total_weight": w.sum(),
        "loss": loss,
        "standard_error": math.sqrt(sum(pulls**2) / np.trace(covariance) * sum(share**2)),
        "degrees_of_freedom": np.trace(covariance) ** 2 / np.sum(covariance**2),
        "skewness": sum(pulls**3) / sum(pulls**2) ** 1.5,
        "effective_sample_size": w.sum() ** 2 / (w**2).sum(),
        "accuracy": w[a > b].sum() / w.sum(),
        "tie_rate": w[a == b].sum() / w.sum(),
        "mean_margin": np.mean(a - b),
        "margin_std": np.std(a - b, ddof=1),
        "chosen_mean": np.mean(a),
        "chosen_std": np.std(a, ddof=1),
        "rejected_mean": np.mean(b),
        "rejected_std": np.std(b, ddof=1),
        "min_reward": min(a.min(), b.min()),
        "max_reward": max(a.max(), b.max()),
    }
    assert set(expected) == set(PROPERTIES)
    for name, value in expected.items():
        got = getattr(stats, name)
        assert type(got) is (int if name in ("count", "units") else float)
        assert got == pytest.approx(value, rel=1e-11, abs=1e-13), name


def test_the_standard_error_of_equal_weights_is_the_textbook_one():
    a, b, _ = data(50)
    losses = np.log1p(np.exp(b - a))
    for weight in (None, np.full(50, 0.125)):
        stats = stats_of(a, b, weight=weight)
        assert stats.standard_error == pytest.approx(np.std(losses, ddof=1) / math.sqrt(50), rel=1e-12)
        assert stats.effective_sample_size == pytest.approx(50.0, rel=1e-15)


def test_pairs_of_weight_zero_enter_no_sum():
    a, b, w = data(40, seed=1)
    kept = w != 0.0
    assert not kept.all()
    poisoned = np.where(kept, a, math.nan)
    # The zeros of the others change the order of additions: each errs by 2^-53 of 40 terms below 100, v^3 (L - M)^3 too.
    close = {"rtol": 1e-14, "atol": 40 * 2.0**-53 * 40 * 100}
    assert_same(stats_of(poisoned, b, weight=w), stats_of(a[kept], b[kept], weight=w[kept]), **close)
    assert_same(stats_of(poisoned, b, weight=kept), stats_of(a[kept], b[kept]), **close)


def test_zero_is_neutral_on_either_side():
    stats = stats_of(*data(10)[:2])
    assert_same(stats + PairStats.zero(), stats)
    assert_same(PairStats.zero() + stats, stats)
    assert_same(PairStats.zero() + PairStats.zero(), PairStats.zero())
    assert PairStats.zero(device="cpu").sums.dtype is torch.float64


def test_the_statistics_of_no_pairs_are_zero():
    assert_same(stats_of([], []), PairStats.zero())


def test_addition_is_commutative_and_associative():
    x, y, z = (stats_of(*data(count, seed)[:2], weight=data(count, seed)[2]) for seed, count in enumerate((5, 7, 11)))
    assert_same(x + y, y + x)
    assert_same((x + y) + z, x + (y + z), rtol=1e-14)


@pytest.mark.parametrize("cuts", [[1], [50], [0, 0, 17, 99], list(range(100))], ids=str)
def test_shards_add_up_to_the_whole(cuts):
    a, b, w = data(100)
    shards = zip(*(np.split(array, cuts) for array in (a, b, w)), strict=True)
    merged = sum([stats_of(*shard[:2], weight=shard[2]) for shard in shards])
    assert isinstance(merged, PairStats)
    whole = stats_of(a, b, weight=w)
    np.testing.assert_allclose(merged.sums, whole.sums, rtol=1e-13)
    for name in PROPERTIES:
        assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-12)


def test_a_nan_reward_stays_visible_through_merging():
    poisoned = stats_of([math.nan, 1.0], [0.0, 0.0])
    for merged in (poisoned + stats_of([5.0], [1.0]), stats_of([5.0], [1.0]) + poisoned):
        for name in ("loss", "standard_error", "mean_margin", "chosen_mean", "chosen_std", "min_reward", "max_reward"):
            assert math.isnan(getattr(merged, name)), name
        assert (merged.count, merged.rejected_mean) == (3, pytest.approx(1.0 / 3.0))


@pytest.mark.parametrize("other", [1, 0.5, None, (1,), torch.zeros(len(Sum))], ids=repr)
def test_adding_anything_else_is_a_type_error(other):
    with pytest.raises(TypeError):
        PairStats.zero() + other
    with pytest.raises(TypeError):
        other + PairStats.zero()


def test_without_pairs_everything_but_the_counts_is_nan():
    stats = PairStats.zero()
    assert (stats.count, stats.units, stats.total_weight) == (0, 0, 0.0)
    for name in set(PROPERTIES) - {"count", "units", "total_weight"}:
        assert math.isnan(getattr(stats, name)), name
    assert all(math.isnan(end) for end in stats.confidence_interval())


def test_one_pair_has_a_loss_but_no_spread():
    stats = stats_of([1.0], [1.0], weight=[3.0])
    assert stats.loss == pytest.approx(math.log(2.0), rel=1e-15)
    for name in ("standard_error", "margin_std", "chosen_std", "rejected_std"):
        assert math.isnan(getattr(stats, name)), name


def test_rounding_never_makes_a_spread_nan():
    """Equal pairs: no square is more than the rounding of the mean."""
    for value in (0.1, 1e5 / 3.0, 1e-3 / 7.0):
        stats = stats_of(np.full(1001, value), np.full(1001, -value))
        assert 0.0 <= stats.standard_error <= 1e-13 * stats.loss
        assert 0.0 <= stats.margin_std <= 1e-13 * value
        assert 0.0 <= stats.chosen_std <= 1e-13 * value


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95, math.nan, math.inf])
def test_a_level_that_is_no_probability_is_refused(level):
    with pytest.raises(ValueError, match="level must be a number between 0 and 1, both excluded, got"):
        stats_of(*data(10)[:2]).confidence_interval(level)


def test_what_is_no_level_and_what_are_no_sums_is_refused():
    stats = stats_of(*data(10)[:2])
    with pytest.raises(TypeError, match="level must be a number between 0 and 1, both excluded, got 'x'"):
        stats.confidence_interval("x")
    for sums in (None, [0.0] * len(Sum), np.zeros(len(Sum))):
        with pytest.raises(TypeError, match="sums must be a tensor with an entry for each Sum, got"):
            PairStats(sums)
    for sums in (torch.zeros(3), torch.zeros(()), torch.zeros(len(Sum), 2)):
        with pytest.raises(ValueError, match="sums must have an entry for each Sum, shape"):
            stats + PairStats(sums)


def test_a_tree_of_what_its_sums_are_is_one_of_the_same_kind():
    shapes = torch.utils._pytree.tree_map(lambda sums: sums.shape, stats_of(*data(10)[:2]))
    assert type(shapes) is PairStats
    assert shapes.sums == (len(Sum),)


def saved_and_loaded(stats):
    file = io.BytesIO()
    torch.save(stats, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_it_survives_pickling_copying_and_saving():
    stats = stats_of(*data(10)[:2])
    for restored in (
        pickle.loads(pickle.dumps(stats)),
        copy.deepcopy(stats),
        copy.copy(stats),
        saved_and_loaded(stats),
    ):
        assert type(restored) is PairStats
        assert_same(restored, stats)


def test_the_loss_returns_it_detached_in_float64():
    chosen = torch.randn(8, requires_grad=True)
    loss, stats = prefloss.bradley_terry_loss(chosen, torch.zeros(8), return_stats=True)
    assert isinstance(stats, PairStats)
    assert (stats.sums.dtype, stats.sums.shape, stats.sums.requires_grad) == (torch.float64, (len(Sum),), False)
    assert loss.requires_grad
    assert stats.loss == pytest.approx(loss.item(), rel=1e-7)


def test_after_vmap_it_has_one_row_a_batch_and_a_property_says_to_take_one():
    chosen, rejected = torch.randn(3, 20), torch.randn(3, 20)

    def loss(a, b):
        return prefloss.bradley_terry_loss(a, b, return_stats=True)

    _, stats = torch.func.vmap(loss)(chosen, rejected)
    assert stats.sums.shape == (3, len(Sum))
    with pytest.raises(ValueError, match=rf"\(3, {len(Sum)}\).*PairStats\(stats\.sums\[i\]\)"):
        _ = stats.loss
    for i in range(3):
        np.testing.assert_allclose(stats.sums[i], loss(chosen[i], rejected[i])[1].sums, rtol=1e-12)
    rows = [PairStats(row) for row in stats.sums]
    both = stats + stats
    assert both.sums.shape == (3, len(Sum))
    assert_same(PairStats(both.sums[1]), rows[1] + rows[1])


def test_it_passes_through_has_aux():
    chosen, rejected = torch.randn(20), torch.randn(20)
    _, stats = torch.func.grad(lambda a: prefloss.bradley_terry_loss(a, rejected, return_stats=True), has_aux=True)(
        chosen
    )
    assert isinstance(stats, PairStats)
    assert_same(stats, prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)[1])


def test_adding_under_compile_does_not_break_the_graph():
    x, y = (stats_of(*data(10, seed)[:2]) for seed in range(2))
    merge = torch.compile(lambda a, b: a + b, fullgraph=True, backend="eager")
    # Traced, operators do what one call does else: a number is a sum of two or three products and quotients, none of which cancels.
    assert_same(merge(x, y), x + y, rtol=2.0**-50)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e8, -1e8])
def test_deviations_are_right_at_any_offset(offset):
    """Sums of plain squares gave 2.02 and 0 for deviations of 1 at an offset of 1e8."""
    random = np.random.default_rng(3)
    for count in (5, 700, 20_000):
        a, b = random.normal(size=(2, count)) + offset
        for stats in both_ways(a, b):
            for name, values in (("chosen_std", a), ("rejected_std", b), ("margin_std", a - b)):
                assert getattr(stats, name) == pytest.approx(np.std(values, ddof=1), rel=1e-6), name
    halves = [prefloss.bradley_terry_loss(*tensors(a[i::2], b[i::2]), return_stats=True)[1] for i in range(2)]
    assert sum(halves).chosen_std == pytest.approx(np.std(a, ddof=1), rel=1e-6)


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


def both_ways(a, b, **options):
    """By the kernels, and by the reference."""
    yield prefloss.bradley_terry_loss(
        *tensors(a, b), **{name: torch.from_numpy(value) for name, value in options.items()}, return_stats=True
    )[1]
    yield stats_of(a, b, **options)


@pytest.mark.parametrize("deviation", [1e-6, 1e-7, 1e-8])
def test_the_standard_error_of_nearly_equal_losses_is_right(deviation):
    """A head that has just been set to almost nothing; plain squares gave 0."""
    a = (np.random.default_rng(0).normal(size=10_000) * deviation).astype(np.float64)
    losses = np.log1p(np.exp(-a))
    for stats in both_ways(a, np.zeros_like(a)):
        # Losses near log 2 are rounded by 1e-16, of deviations of 5e-9 and more.
        assert stats.standard_error == pytest.approx(np.std(losses, ddof=1) / 100.0, rel=1e-6)


@pytest.mark.parametrize("scale", [2.0**-1000, 1e-200, 1e-30, 1e30, 1e155, 1e290])
def test_a_common_factor_of_the_weights_changes_nothing(scale):
    a, b, w = data(3000)
    plain = stats_of(a, b, weight=w)
    for stats in both_ways(a, b, weight=w * scale):
        for name in PROPERTIES:
            expected = getattr(plain, name) * (scale if name == "total_weight" else 1.0)
            assert getattr(stats, name) == pytest.approx(expected, rel=1e-12), name
    left, right = ([values[i::2] for values in (a, b, w * scale)] for i in range(2))
    merged = stats_of(*left[:2], weight=left[2]) + stats_of(*right[:2], weight=right[2])
    assert merged.standard_error == pytest.approx(plain.standard_error, rel=1e-12)


def test_weights_of_very_different_scales_add_up():
    a, b, w = data(400)
    w = w * 10.0 ** np.linspace(-200, 100, 400)
    whole = stats_of(a, b, weight=w)
    parts = [stats_of(a[i : i + 50], b[i : i + 50], weight=w[i : i + 50]) for i in range(0, 400, 50)]
    for stats in (sum(parts), sum(reversed(parts)), *both_ways(a, b, weight=w)):
        for name in PROPERTIES:
            assert getattr(stats, name) == pytest.approx(getattr(whole, name), rel=1e-12), name


def test_accuracy_and_ties_are_weighted_and_their_counts_are_not():
    stats = stats_of([1.0, 0.0, 2.0], [0.0, 1.0, 2.0], weight=[1.0, 3.0, 4.0])
    assert (stats.accuracy, stats.tie_rate) == (1.0 / 8.0, 0.5)
    assert stats.sums[[Sum.CORRECT, Sum.TIED]].tolist() == [1.0, 1.0]


def test_a_dictionary_has_every_property_as_a_plain_number():
    stats = stats_of(*data(20)[:2])
    found = stats.as_dict(prefix="eval/")
    assert found == {f"eval/{name}": getattr(stats, name) for name in PROPERTIES}
    assert {type(value) for value in found.values()} == {int, float}
    with torch.device("meta"):  # torch's default device
        assert stats.as_dict(prefix="eval/") == found
    with pytest.raises(ValueError, match=rf"\(2, {len(Sum)}\)"):
        PairStats(torch.zeros(2, len(Sum))).as_dict()


def test_it_goes_to_another_device():
    stats = stats_of(*data(10)[:2])
    assert stats.to("meta").sums.device.type == "meta"
    moved = stats.to("cpu")
    assert type(moved) is PairStats
    assert_same(moved, stats)


def test_it_is_no_tuple():
    stats = stats_of(*data(10)[:2])
    for operation in (len, iter, lambda s: s * 2, lambda s: 2 * s, lambda s: s[0]):
        with pytest.raises(TypeError):
            operation(stats)
    assert stats == stats
    assert stats != copy.deepcopy(stats)
    assert {stats: 1}[stats] == 1


def test_it_prints_as_a_line_of_a_report():
    stats = stats_of([2.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0])
    assert repr(stats) == (
        "PairStats(4 pairs: loss 0.6582 ± 0.24, accuracy 50.0%, ties 25.0%, margin 0.25 (std 0.9574))"
    )
    several = PairStats(torch.zeros(3, len(Sum)))
    assert repr(several) == repr(PairStats(several.sums.to("meta"))) == f"PairStats(sums of shape (3, {len(Sum)}))"
    assert "nan" in repr(PairStats.zero())
    groups = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]]), torch.tensor([[0, 1, 2], [0, 1, 2]])
    _, stats = prefloss.bradley_terry_loss_grouped(*groups, return_stats=True)
    assert repr(stats).startswith("PairStats(6 pairs in 2 units: loss ")


def test_an_exported_program_that_returns_it_can_be_saved_and_loaded():
    class Loss(torch.nn.Module):
        def forward(self, chosen, rejected):
            return prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)

    given = tensors(*data(10)[:2])
    file = io.BytesIO()
    torch.export.save(torch.export.export(Loss(), tuple(given)), file)
    file.seek(0)
    _, stats = torch.export.load(file).module()(*given)
    assert isinstance(stats, PairStats)
    assert_same(stats, prefloss.bradley_terry_loss(*given, return_stats=True)[1])


def test_a_compiled_function_may_return_it():
    given = tensors(*data(10)[:2])
    loss = torch.compile(
        lambda a, b: prefloss.bradley_terry_loss(a, b, return_stats=True), fullgraph=True, backend="eager"
    )
    assert_same(loss(*given)[1], prefloss.bradley_terry_loss(*given, return_stats=True)[1])
