"""Long lists, which are done in linear time: against the reference, every pair visited, and the promised error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from conftest import RUNS_ON_HOST, SHORTER
from every_pair import every_pair, sums_of_pairs
from group_bounds import LEVELS, OPTIONS, check, over_dtypes, over_options, ranks_of
from hypothesis import example, given
from hypothesis import strategies as st
from rounding_bounds import assert_same_bits
from sample_inputs import array, real, rewards

import prefloss
from prefloss import eager, reference
from prefloss.stats import Sum

pytestmark = pytest.mark.kernels

# Linear time begins at longer lists there: tests/test_cuda_long_lists.py.
linear = pytest.mark.skipif(RUNS_ON_HOST, reason="the CUDA kernels visit each pair of lists as short as these")

JUST_LONG = 2 * SHORTER + 6  # with `shorter_long_lists`, a list that is done in linear time, whatever its scores

SCORES = {
    "normal": lambda random, n: random.normal(size=n),
    "sorted with the ranks": lambda random, n: -np.arange(n) / n * 20.0,
    "sorted against the ranks": lambda random, n: np.arange(n) / n * 20.0,
    "deviation 0.01": lambda random, n: 0.01 * random.normal(size=n),
    "deviation 30": lambda random, n: 30.0 * random.normal(size=n),
    "deviation 1000": lambda random, n: 1000.0 * random.normal(size=n),
    "outlier above": lambda random, n: np.r_[1e30, random.normal(size=n - 1)],
    "outlier below": lambda random, n: np.r_[random.normal(size=n - 1), -1e30],
    "clusters": lambda random, n: random.choice([-60.0, 0.0, 1e-3, 9.0, 300.0], n) + 1e-4 * random.normal(size=n),
    "near ties": lambda random, n: 1.0 + random.integers(0, 3, n) * 2.0**-23,
    "equal": lambda random, n: np.full(n, 3.25),
    "subnormal spacings": lambda random, n: random.integers(-99, 99, n) * 1e-44,
    "edges of cells": lambda random, n: random.integers(-9, 9, n) * 2.0,
    "far apart": lambda random, n: -25.0 * np.arange(n),
    "far apart by twos": lambda random, n: -25.0 * (np.arange(n) // 2) - 0.25 * (np.arange(n) % 2),
    "far tail": lambda random, n: np.where(np.arange(n) < n // 2, 60.0, 0.0) + random.normal(size=n),
}
LARGE_RANKS = {
    "distinct": lambda random, n: random.permutation(n),
    "in order": lambda random, n: np.arange(n),
    "in order by twos": lambda random, n: np.arange(n) // 2,
    "two": lambda random, n: (random.random(n) < 0.1).astype(np.int64),
    "a few": lambda random, n: random.integers(0, 7, n),
    "one of many items": lambda random, n: np.where(random.random(n) < 0.8, 50, random.integers(0, 100, n)),
    "many": lambda random, n: random.integers(0, n // 8, n),
    "floating": lambda random, n: random.normal(size=n),
}


CASES = [
    *((scores, "distinct", "skip") for scores in SCORES),
    *((scores, "a few", "half") for scores in SCORES),
    *((scores, "a few", "skip") for scores in ("near ties", "equal", "clusters", "edges of cells")),
    *((scores, "many", "skip") for scores in ("deviation 30", "deviation 1000", "outlier above", "far tail")),
    ("deviation 30", "one of many items", "skip"),
    ("far apart by twos", "in order by twos", "skip"),  # every slope is tiny, but for those of ties, and right
    *(("normal", ranks, "half") for ranks in ("in order", "two", "one of many items", "many", "floating")),
    ("far apart", "in order", "skip"),  # every slope is tiny, and right
]


@linear
@pytest.mark.parametrize(
    ("scores", "ranks", "ties", "dtype", "size"),
    [
        # Each law in both dtypes, each case in one; the others are slow.
        pytest.param(
            *case, dtype, size, marks=() if size == 1100 and (i + i // len(SCORES) + j) % 2 == 0 else pytest.mark.slow
        )
        for i, case in enumerate(CASES)
        for j, dtype in enumerate((torch.float32, torch.float64))
        for size in (1100, 1400, 2200)
    ],
    ids=str,
)
def test_long_lists_agree_with_the_reference_to_the_promised_error(scores, ranks, dtype, ties, size):
    """Against the sum of the absolute values of an entry's terms: 2^-23, and in float64 1e-14; the loss to 1e-7 and 1e-13."""
    random = np.random.default_rng(3)
    given = real(SCORES[scores](random, size), dtype).requires_grad_()
    order = torch.from_numpy(LARGE_RANKS[ranks](random, size))
    loss = prefloss.bradley_terry_loss_grouped(given[None], order[None], reduction="sum", average="pairs", ties=ties)
    (gradient,) = torch.autograd.grad(loss, given)
    expected, slopes, magnitudes = sums_of_pairs(array(given), array(order), ties=ties)
    promise = 1e-14 if dtype is torch.float64 else 2.0**-23
    tiny = torch.finfo(dtype).tiny
    assert abs(loss.item() - expected) <= (1e-13 if dtype is torch.float64 else 1e-7) * expected + tiny
    assert np.all(np.abs(gradient.double().numpy() - slopes) <= promise * magnitudes + tiny)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ties": "half"},
        {"label_smoothing": 0.1, "ties": "half"},
        {"beta": -2.5, "margin": 0.3},
        {"beta": 0.2, "center_rewards_coefficient": 0.01, "ties": "half"},
    ],
    ids=str,
)
def test_sums_in_float64_are_those_of_the_widest_type(options):
    """What long lists are held against, itself: to a fifth of the least that is promised of them."""
    random = np.random.default_rng(2)
    for size in (0, 1, 2, 33, 300):
        scores, ranks = 5.0 * random.normal(size=size), random.integers(0, size // 2 + 1, size)
        found, expected = sums_of_pairs(scores, ranks, **options), every_pair(scores, ranks, **options)
        assert found.loss == pytest.approx(float(expected.loss), rel=2e-15)
        for name in ("gradient", "gradient_size"):
            error = np.abs(getattr(found, name) - getattr(expected, name))
            assert np.all(error <= 2e-15 * expected.gradient_size)


@linear
@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(
    ("ranks", "ties", "name"),
    [
        ("one of many items", "half", "all"),
        pytest.param("distinct", "skip", "default", marks=pytest.mark.slow),
        pytest.param("distinct", "skip", "all", marks=pytest.mark.slow),
        pytest.param("one of many items", "half", "default", marks=pytest.mark.slow),
    ],
)
def test_statistics_of_long_lists_are_those_of_every_pair(scores, ranks, ties, name):
    random = np.random.default_rng(10)
    order = LARGE_RANKS[ranks](random, JUST_LONG)
    given = SCORES[scores](random, JUST_LONG)
    options = {**OPTIONS[name], "ties": ties, "return_stats": True}
    _, expected = reference.bradley_terry_loss_grouped(given[None], order[None], **options)
    _, stats = prefloss.bradley_terry_loss_grouped(
        torch.from_numpy(given)[None], torch.from_numpy(order)[None], **options
    )
    # The mean difference is compared with its deviation, as it may be nearly 0; rewards with their size.
    scale, names = np.abs(expected), list(Sum)
    scale[Sum.DIFFERENCE] += np.sqrt(expected[Sum.COUNT] * expected[Sum.DIFFERENCE_SQUARES])
    for first, second in ((Sum.CHOSEN, Sum.CHOSEN_SQUARES), (Sum.REJECTED, Sum.REJECTED_SQUARES)):
        scale[first] += np.sqrt(expected[Sum.COUNT] * expected[second])
    # What is taken from the losses' squares when they are centred: they are not summed about their mean.
    scale[Sum.SQUARED_WEIGHT_LOSS_SQUARES] += expected[Sum.SQUARED_WEIGHT_LOSS] ** 2 / expected[Sum.WEIGHT_SQUARED]
    error = np.abs(stats.sums.numpy() - expected)
    assert np.all(error <= 1e-12 * scale + 1e-300), {
        name: (error[name], expected[name]) for name in names if error[name] > 1e-12 * scale[name]
    }


@linear
@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize(
    ("dtype", "ties"),
    [
        *((torch.float32, "half"), (torch.float64, "skip")),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((torch.float32, "skip"), (torch.float64, "half"))),
    ],
    ids=str,
)
@over_options
def test_long_lists_with_options_agree_with_the_reference(name, dtype, ties):
    random = np.random.default_rng(4)
    given = real(2.0 * random.normal(size=(1, JUST_LONG)), dtype)
    check(given, torch.from_numpy(LARGE_RANKS["many"](random, JUST_LONG))[None], {**OPTIONS[name], "ties": ties})


# Differences that float32 holds: where z overflows, it does so pair by pair alone.
EXTREME = (0.0, -0.0, 1e30, -1e30, 1e-44, 60.0, -60.0)
NOT_FINITE = [[-math.inf], [math.inf, -math.inf], [math.inf, -math.inf, math.nan]]


@pytest.mark.hypothesis
@linear
@over_dtypes
def test_both_ways_agree_on_groups_of_any_sizes(dtype, monkeypatch):
    """From two items on in linear time, and pair by pair whatever the size."""

    @given(
        sizes=st.lists(st.integers(0, 150), min_size=1, max_size=3),
        levels=st.sampled_from(LEVELS),
        scale=st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e3]),
        values=st.sampled_from([(), EXTREME, (*EXTREME, math.inf, -math.inf, math.nan)]),
        name=st.sampled_from(list(OPTIONS)),
        ties=st.sampled_from(["skip", "half"]),
        seed=st.integers(0, 2**32 - 1),
    )
    @example([5], 2, 1e-3, (), "default", "skip", 0)  # two ranks in one leaf, whose rows and columns are wanted
    @example([9], 1, 0.0, (*EXTREME, math.inf, -math.inf, math.nan), "default", "half", 0)  # ties of NaN alone
    def check_one(sizes, levels, scale, values, name, ties, seed):
        random = np.random.default_rng(seed)
        given, _ = rewards(random, (sum(sizes),), dtype, values)
        order = ranks_of(random, (sum(sizes),), levels)
        for large in (2, 1000):
            monkeypatch.setattr(eager, "LARGE_GROUP", large)
            check(given * scale, order, {**OPTIONS[name], "ties": ties, "group_sizes": sizes})

    check_one()


@linear
@pytest.mark.parametrize("ranks", ["distinct", "a few"])
@pytest.mark.parametrize("nans", [1, 2])
def test_nan_in_a_long_list_reaches_only_the_items_that_it_is_paired_with(nans, ranks):
    random = np.random.default_rng(6)
    given, order = real(random.normal(size=3000), torch.float32), torch.from_numpy(LARGE_RANKS[ranks](random, 3000))
    expected = torch.autograd.grad(*with_gradient(given, order))[0]
    given[order.argsort()[: 900 * nans : 900]] = math.nan
    loss, leaf = with_gradient(given, order)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isnan()
    paired = given.isnan()
    for rank in order[given.isnan()]:
        paired |= order != rank
    assert torch.equal(gradient.isnan(), paired)
    # Those of the same rank lose nothing but NaN: their pairs are what they were.
    torch.testing.assert_close(gradient[~paired], expected[~paired], rtol=1e-5, atol=1e-7)


def with_gradient(given, order):
    leaf = given.detach().clone().requires_grad_()
    return prefloss.bradley_terry_loss_grouped(leaf[None], order[None], reduction="sum"), leaf


@linear
@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize(
    ("kinds", "ranks", "ties", "name"),
    [
        # Any two of kinds, ranks and options meet; the others are slow.
        pytest.param(
            kinds, ranks, ties, name, marks=() if name == ("default", "all")[(i + j) % 2] else pytest.mark.slow
        )
        for i, kinds in enumerate(NOT_FINITE)
        for j, (ranks, ties) in enumerate([("distinct", "skip"), ("two", "skip"), ("many", "half")])
        for name in ("default", "all", "negative beta", "label smoothing")
    ],
    ids=str,
)
def test_rewards_that_are_not_finite_in_a_long_list_agree_with_the_reference(name, ties, kinds, ranks):
    random = np.random.default_rng(7)
    given = random.normal(size=(1, JUST_LONG))
    given[0, random.choice(JUST_LONG, 100, replace=False)] = random.choice(kinds, 100)
    order = torch.from_numpy(LARGE_RANKS[ranks](random, JUST_LONG))[None]
    check(torch.from_numpy(given), order, {**OPTIONS[name], "ties": ties})


@linear
@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("scale", [1e140, 1e160, 1e308])
def test_rewards_of_a_long_list_beyond_any_square_agree_with_the_reference(scale):
    random = np.random.default_rng(8)
    given = torch.from_numpy(scale * random.uniform(-1, 1, (1, JUST_LONG)))
    order = torch.from_numpy(random.permutation(JUST_LONG))[None]
    for options in ({}, {"beta": 3.0, "margin": 1.0}):
        check(given, order, options)


LONGER = {
    "deviation 30": SCORES["deviation 30"],
    "deviation 3000": lambda random, n: 3000.0 * random.normal(size=n),
    "single items beside many": lambda random, n: np.where(random.random(n) < 0.2, np.arange(n) * 0.7, n // 2),
    "in order, and apart": lambda random, n: -7.0 * np.arange(n),  # every slope is tiny, and right
}


@linear
@pytest.mark.parametrize(
    ("scores", "ties"),
    [
        pytest.param(scores, ties, marks=[] if (scores, ties) == ("deviation 3000", "skip") else pytest.mark.slow)
        for scores in LONGER
        for ties in ("skip", "half")
    ],
)
def test_lists_that_threads_share_agree_with_the_reference_to_the_promised_error(scores, ties):
    """The bounds are those of shorter lists; `skip` is of ranks that all differ, `half` of a few."""
    random = np.random.default_rng(12)
    size = 8400  # of which threads take 8192 at a time
    given = torch.from_numpy(LONGER[scores](random, size)).requires_grad_()
    ordered = np.arange(size) if scores == "in order, and apart" else random.permutation(size)
    order = ordered if ties == "skip" else ordered // 840
    ranks = torch.from_numpy(order)[None]
    loss = prefloss.bradley_terry_loss_grouped(given[None], ranks, reduction="sum", average="pairs", ties=ties)
    (gradient,) = torch.autograd.grad(loss, given)
    expected, slopes, magnitudes = sums_of_pairs(array(given), order, ties=ties)
    assert abs(loss.item() - expected) <= 1e-13 * expected
    assert np.all(np.abs(gradient.numpy() - slopes) <= 1e-14 * magnitudes)


@linear
@pytest.mark.parametrize("ranks", ["distinct", "many"])
@pytest.mark.parametrize("scores", ["normal", "deviation 30", "deviation 1000"])
def test_the_number_of_threads_does_not_change_a_bit_of_a_long_list(scores, ranks, set_threads):
    random = np.random.default_rng(8)
    given = real(SCORES[scores](random, 30_000), torch.float32)
    order = torch.from_numpy(LARGE_RANKS[ranks](random, 30_000))
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        loss, leaf = with_gradient(given, order)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@linear
def test_a_long_list_takes_time_and_memory_for_its_items():
    """A million items have 5e11 pairs, of which a computer that visited each would take minutes."""
    random = np.random.default_rng(9)
    given, order = real(random.normal(size=10**6), torch.float32), torch.from_numpy(random.permutation(10**6))
    loss, leaf = with_gradient(given, order)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.item() == pytest.approx(0.90, abs=0.01)  # E log(1 + exp(z)) of z of variance 2
    assert abs(gradient.double().sum().item()) < 1e-6 * gradient.abs().sum().item()
