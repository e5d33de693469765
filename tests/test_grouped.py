"""The loss over all pairs of groups: against the reference over sizes, ranks, ties and options."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from group_bounds import (
    AVERAGES,
    LEVELS,
    OPTIONS,
    RANK_DTYPES,
    TIES,
    check,
    over_averages,
    over_dtypes,
    over_ties,
    ranks_of,
)
from hypothesis import given
from hypothesis import strategies as st
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES, FINITE_VALUES, VALUES, in_turns, laid_out, real, rewards

import prefloss

over_reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])


@pytest.mark.parametrize(("name", "ties", "average", "dtype"), in_turns(OPTIONS, TIES, AVERAGES, DTYPES), ids=str)
def test_every_option_agrees_with_the_reference(name, ties, average, dtype):
    random = np.random.default_rng(len(name))
    cases = [((1, 1), 1), ((3, 2), 2), ((17, 9), 1), ((17, 9), 2), ((17, 9), 10**6), ((2, 40), 4)]
    for (shape, levels), reduction in zip(cases, ("sum", "none", "sum", "mean", "none", "mean"), strict=True):
        given, _ = rewards(random, shape, dtype)
        options = {**OPTIONS[name], "ties": ties, "average": average, "reduction": reduction}
        check(given, ranks_of(random, shape, levels), options)


SIZES = [0, 1, 2, 3, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 513]


@pytest.mark.parametrize(
    ("size", "levels", "dtype"),
    [
        *in_turns(SIZES, [3, 10**6], DTYPES),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product([511, 512], [3, 10**6], DTYPES)),
    ],
    ids=str,
)
def test_every_size_of_groups_agrees_with_the_reference(size, levels, dtype):
    """Several at a time in lanes, and one at a time in tiles."""
    random = np.random.default_rng(size)
    for groups in (1, 15, 17) if size <= 65 else (1, 2):
        given, _ = rewards(random, (groups, size), dtype)
        check(given, ranks_of(random, (groups, size), levels), {"ties": "half" if levels == 3 else "skip"})


@over_dtypes
@pytest.mark.parametrize("values", [FINITE_VALUES, VALUES], ids=["extreme", "not-finite"])
def test_extreme_rewards_agree_with_the_reference(values, dtype):
    random = np.random.default_rng(2)
    for shape in ((3, 5), (20, 7), (2, 30), (20, 20)):
        given, _ = rewards(random, shape, dtype, values)
        for options in ({}, {"margin": 0.5}, {"label_smoothing": 0.1}):
            check(given, ranks_of(random, shape, 10**6), options)


@pytest.mark.parametrize("furthest", [39.9, 40.1, 300.0, 649.0, 1_430.0])
@pytest.mark.parametrize(
    ("size", "options"), [(20, {}), (20, {"margin": -3.0, "beta": -0.25}), (150, {"margin": 3.0, "beta": 4.0})], ids=str
)
def test_rewards_as_far_apart_as_products_of_exponentials_go(size, furthest, options):
    """Up to a distance exp(z) of a pair is a product of numbers of its items. One group beyond it is in the others' lanes."""
    random = np.random.default_rng(int(furthest))
    width = (furthest - abs(options.get("margin", 0.0))) / abs(options.get("beta", 1.0))
    for wide in (slice(None), slice(1, 2)):
        scale = np.ones((17, 1))
        scale[wide] = width
        given = 1e3 + scale * random.uniform(size=(17, size))
        given[wide, :2] = 1e3, 1e3 + width
        groups = slice(17 if size < 100 else 2)  # larger ones have no lanes of their own
        check(real(given[groups], torch.float32), ranks_of(random, given[groups].shape, 10**6), options)


@pytest.mark.parametrize("size", [9, 20, 64, 128])
@pytest.mark.parametrize("ties", [False, True])
def test_groups_whose_worse_items_score_far_above_the_better_ones(ties, size):
    """In lanes an item's pairs are one product, which would overflow if the logarithm were not taken in time."""
    random = np.random.default_rng(size)
    ranks = torch.from_numpy(np.argsort(random.uniform(size=(17, size))))
    given = torch.where(ranks < size // 2, 0.0, 39.0) + torch.from_numpy(random.uniform(0.0, 0.9, (17, size)))
    check(real(given.numpy(), torch.float32), ranks // 3 if ties else ranks, {})


@pytest.mark.parametrize("shape", [(2, 5), (20, 5), (20, 30)], ids=str)
def test_nan_reaches_only_the_items_that_it_is_paired_with(shape):
    random = np.random.default_rng(3)
    given, _ = rewards(random, shape, torch.float32)
    ranks = ranks_of(random, shape, 3)
    given[1, 2] = math.nan
    given.requires_grad_()
    loss = prefloss.bradley_terry_loss_grouped(given, ranks, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    others = torch.arange(shape[0]) != 1
    assert loss[1].isnan()
    assert loss[others].isfinite().all()
    paired = (ranks != ranks[1, 2]) & ~others[:, None]
    paired[1, 2] = True
    assert torch.equal(gradient.isnan(), paired)


@pytest.mark.parametrize("dtype", RANK_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@over_ties
def test_ranks_may_have_any_real_dtype(dtype, ties):
    random = np.random.default_rng(4)
    for shape in ((2, 11), (19, 6)):
        given, _ = rewards(random, shape, torch.float64)
        check(given, ranks_of(random, shape, 4, dtype), {"ties": ties})


def test_ranks_are_compared_as_they_are():
    """Neighbouring int64 beyond float64, both zeros, infinities."""
    given = torch.tensor([[0.0, 1.0, -2.0]], dtype=torch.float64)
    for ranks in (
        torch.tensor([[2**62 + 1, 2**62, 2**62 + 2]]),
        torch.tensor([[0.0, -0.0, math.inf]]),
        torch.tensor([[-math.inf, 5.0, -1e308]], dtype=torch.float64),
    ):
        check(given, ranks, {})


@pytest.mark.parametrize(
    ("size", "few", "name"),
    [
        *((size, few, name) for size in (51, 300) for few in (1, 7, 9, 40) for name in ("default", "all")),
        # Composed they take gigabytes.
        *(
            pytest.param(1001, few, name, marks=pytest.mark.kernels)
            for few, name in ((1, "default"), (7, "all"), (9, "default"), (40, "all"))
        ),
        *(
            # A thread takes 4096 at a time.
            pytest.param(4200, few, name, marks=[pytest.mark.slow, pytest.mark.kernels])
            for few in (1, 7, 9, 40)
            for name in ("default", "all")
        ),
    ],
)
@pytest.mark.parametrize("best", [True, False], ids=["few positives", "few negatives"])
def test_few_items_against_many_agree_with_the_reference(size, few, best, name):
    """One positive among sampled negatives, and the like: a group of two ranks, one of which has few items."""
    random = np.random.default_rng(size + few)
    ranks = torch.full((1 if size > 4096 else 2, size), int(best))  # the reference visits all pairs of the items
    for row in ranks:
        row[torch.from_numpy(random.choice(size, few, replace=False))] = int(not best)
    check(real(random.normal(size=ranks.shape), torch.float32), ranks, OPTIONS[name])


@pytest.mark.parametrize("few", [1, 3])
def test_what_is_not_finite_among_many_reaches_only_its_pairs(few):
    ranks = torch.ones(600, dtype=torch.int64)
    ranks[100 : 100 + few] = 0
    given = torch.linspace(-3, 3, 600)
    given[7], given[8], given[100] = math.nan, math.inf, -math.inf
    leaf = given[None].requires_grad_()
    loss = prefloss.bradley_terry_loss_grouped(leaf, ranks[None])
    ((gradient,),) = torch.autograd.grad(loss, leaf)
    assert loss.isnan()
    assert gradient.isnan().nonzero().flatten().tolist() == [7, *range(100, 100 + few)]


@over_dtypes
@pytest.mark.parametrize("size", [9, 200, 1500])
def test_a_group_of_one_rank_has_no_pairs(size, dtype):
    given = torch.full((3, size), math.nan, dtype=dtype)
    given[1] = torch.linspace(-1, 1, size).to(dtype)
    ranks = torch.full((3, size), 7)
    ranks[1, 0] = 3
    results = []
    for groups in (slice(None), slice(1, 2)):
        leaf = given[groups].clone().requires_grad_()
        loss = prefloss.bradley_terry_loss_grouped(leaf, ranks[groups])
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    (loss, gradient), (expected, its) = results
    assert torch.equal(gradient[[0, 2]], torch.zeros(2, size, dtype=dtype))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient[1:2], its)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ties": "half"}, {"margin": 1.0}], ids=str)
@pytest.mark.parametrize("size", [9, 40, 200])
@pytest.mark.parametrize("few", [True, False])
def test_losses_whose_sum_is_no_float32_have_a_mean(size, few, options):
    """One item's pairs have losses of up to 2e38 each: eight of them are infinite in float32, their mean is not."""
    ranks = torch.arange(size)[None]
    ranks = (ranks > 0).long() if few else ranks
    rewards = torch.zeros(2, size)
    rewards[:, 0], rewards[1, -1] = -1e38, 1e38
    loss = prefloss.bradley_terry_loss_grouped(rewards, ranks.expand(2, size), **options)
    exact = prefloss.bradley_terry_loss_grouped(rewards.double(), ranks.expand(2, size), **options)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert math.isfinite(exact.item())


def test_nan_among_the_ranks_is_named():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        ranks = torch.zeros(4, 9, dtype=dtype)
        ranks[2, 3] = math.nan
        with pytest.raises(ValueError, match="ranks, or relevance, must be numbers"):
            prefloss.bradley_terry_loss_grouped(torch.zeros(4, 9), ranks)


@pytest.mark.hypothesis
@over_dtypes
def test_groups_of_any_sizes_with_weights_agree_with_the_reference(dtype):
    @given(
        sizes=st.lists(st.integers(0, 40), max_size=40),
        levels=st.sampled_from(LEVELS),
        name=st.sampled_from(list(OPTIONS)),
        ties=st.sampled_from(["skip", "half"]),
        average=st.sampled_from(["groups", "pairs"]),
        reduction=st.sampled_from(["mean", "sum", "none"]),
        weighted=st.sampled_from([None, "mask", "float"]),
        layout=st.sampled_from(["contiguous", "every_other", "misaligned"]),
        seed=st.integers(0, 2**32 - 1),
    )
    def check_one(sizes, levels, name, ties, average, reduction, weighted, layout, seed):
        random = np.random.default_rng(seed)
        given, _ = rewards(random, (sum(sizes),), dtype, FINITE_VALUES if seed % 3 == 0 else ())
        weight = (
            None
            if weighted is None
            else torch.from_numpy(random.random(len(sizes)) * (random.random(len(sizes)) < 0.7))
        )
        if weighted is not None:
            weight = (weight > 0.3) if weighted == "mask" else weight.to(random.choice([torch.float32, dtype]))
        options = {**OPTIONS[name], "ties": ties, "average": average, "reduction": reduction, "group_sizes": sizes}
        if reduction == "mean" and seed % 2:
            options["denominator"] = 3.5
        check(laid_out(given, layout), ranks_of(random, (sum(sizes),), levels), options, weight)

    check_one()


@over_dtypes
def test_groups_of_nearly_one_size_agree_with_the_reference(dtype):
    """They lie in lanes together; where a group is smaller, nothing of its lane counts."""
    random = np.random.default_rng(12)
    for place, (least, most) in enumerate(((0, 3), (2, 4), (5, 9), (30, 40), (60, 66))):
        sizes = random.integers(least, most + 1, 50)
        given, _ = rewards(random, (sizes.sum(),), dtype)
        ranks = ranks_of(random, (sizes.sum(),), 5)
        for n, its in enumerate(
            (ranks + 1, torch.tensor([-(2**31), -1, 0, 2**31 - 2, 2**31 - 1], dtype=torch.int32)[ranks])
        ):
            check(given + 3, its, {"group_sizes": sizes.tolist()})
            name, ties = list(OPTIONS)[(place + n + DTYPES.index(dtype)) % len(OPTIONS)], TIES[(place + n) % 2]
            check(given + 3, its, {**OPTIONS[name], "ties": ties, "group_sizes": sizes.tolist()})


@over_reductions
@over_averages
def test_a_group_of_weight_zero_counts_nothing_even_if_its_rewards_are_nan(reduction, average):
    given = torch.tensor([[1.0, 2.0], [math.nan, math.inf], [0.5, -1.0]], requires_grad=True)
    ranks, weight = torch.tensor([[0, 1]] * 3), torch.tensor([True, False, True])
    options = {"reduction": reduction, "average": average}
    loss, stats = prefloss.bradley_terry_loss_grouped(given, ranks, weight=weight, **options, return_stats=True)
    kept = given.detach()[::2].requires_grad_()
    expected, _ = prefloss.bradley_terry_loss_grouped(kept, ranks[::2], **options, return_stats=True)
    assert_same_bits((loss[::2] if reduction == "none" else loss,), (expected,))
    assert reduction != "none" or loss[1] == 0
    (gradient,) = torch.autograd.grad(loss.sum(), given)
    assert_same_bits((gradient[::2],), torch.autograd.grad(expected.sum(), kept))
    assert torch.equal(gradient[1], torch.zeros(2))
    assert stats.count == 2
    assert math.isfinite(stats.loss)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 1), (2, 3)], ids=str)
@over_reductions
def test_without_any_pair_the_loss_is_zero_and_connected(shape, reduction):
    given = torch.full(shape, math.nan, requires_grad=True)  # tied, all of them
    loss, stats = prefloss.bradley_terry_loss_grouped(given, torch.zeros(shape), reduction=reduction, return_stats=True)
    assert loss.shape == ((shape[0],) if reduction == "none" else ())
    assert loss.sum() == 0
    assert stats.count == 0
    assert torch.equal(torch.autograd.grad(loss.sum(), given)[0], torch.zeros(shape))


def test_two_ranks_are_the_logistic_surrogate_of_auc():
    random = np.random.default_rng(5)
    scores, labels = real(random.normal(size=200), torch.float64), torch.from_numpy(random.random(200) < 0.1)
    loss, stats = prefloss.bradley_terry_loss_grouped(scores[None], (~labels)[None], return_stats=True)
    difference = scores[labels][:, None] - scores[~labels]
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(difference).mean())
    assert stats.accuracy == pytest.approx((difference > 0).double().mean().item())


def test_k_responses_are_instructgpts_loss():
    """Ouyang et al. 2022, eq. 1: the mean over K choose 2 pairs, averaged over prompts."""
    random = np.random.default_rng(6)
    given = real(random.normal(size=(4, 5)), torch.float64)
    ranks = torch.from_numpy(np.argsort(random.random((4, 5)), 1))
    total = 0.0
    for row, order in zip(given, ranks.argsort(1), strict=True):
        best_first = row[order]
        pairs = [
            -torch.nn.functional.logsigmoid(best_first[i] - best_first[j]) for i in range(5) for j in range(i + 1, 5)
        ]
        total += sum(pairs) / 10 / 4
    torch.testing.assert_close(prefloss.bradley_terry_loss_grouped(given, ranks), total)
