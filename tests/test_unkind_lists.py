"""Long lists of unkind scores, ranks and options: errors within the promise.

The promise, of an entry of the gradient: 2^-23 in float32 and 1e-14 in float64 of the sum of the absolute values of its pairs'
terms, and pairs below 1e-304. Of the loss 1e-7 and 1e-13 of that of its terms. To both comes what rounding z to float64 costs, by
(|z| + 2 |margin|) 2^-51 a pair. Where a few items meet many, pairs are visited as in short lists: see `share_of_promise`.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import SHORTER
from every_pair import share_of_promise
from hypothesis import given
from hypothesis import strategies as st
from unkind_laws import DTYPES, IN_LINEAR_TIME, LAWS, OPTIONS, RANKS, cases_of, made

import prefloss
from prefloss import eager

pytestmark = IN_LINEAR_TIME
LONG = 2 * SHORTER + 12  # with `shorter_long_lists`, whatever the scores


@pytest.mark.parametrize("law", LAWS)
def test_gradient_and_loss_keep_the_promise(law, monkeypatch):
    """In lists of 90 to 300 items, which take linear time here."""
    monkeypatch.setattr(eager, "LARGE_GROUP", 2)
    for n, (ranks, name, ties, dtype) in enumerate(cases_of(law)):
        scores, order = made(law, ranks, DTYPES[dtype], 90 + 19 * n, n)
        shares = share_of_promise(scores, order, ties=ties, **OPTIONS[name])
        assert max(shares) <= 1, (ranks, name, ties, dtype, shares)


@pytest.mark.hypothesis
def test_gradient_and_loss_keep_the_promise_in_any_list(monkeypatch):
    @given(
        law=st.sampled_from(list(LAWS)),
        ranks=st.sampled_from(list(RANKS)),
        name=st.sampled_from(list(OPTIONS)),
        ties=st.sampled_from(["skip", "half"]),
        dtype=st.sampled_from(list(DTYPES)),
        size=st.integers(2, 500),
        seed=st.integers(0, 2**32 - 1),
    )
    def check_one(law, ranks, name, ties, dtype, size, seed):
        monkeypatch.setattr(eager, "LARGE_GROUP", 2)
        scores, order = made(law, ranks, DTYPES[dtype], size, seed)
        assert max(share_of_promise(scores, order, ties=ties, **OPTIONS[name])) <= 1

    check_one()


def assert_kept(scores, ranks, dtype=np.float32, **options):
    shares = share_of_promise(np.asarray(scores, dtype=dtype), np.asarray(ranks), **options)
    assert max(shares) <= 1, shares


@pytest.mark.parametrize("deviation", [30, 100])
@pytest.mark.parametrize("options", [{}, {"margin": 1e-30}], ids=["default", "margin"])
def test_slopes_that_are_many_and_equal_add_up_right(deviation, options):
    """Hundreds of pairs of one list have the very same slope: added in float32, their roundings would all point one way."""
    random = np.random.default_rng(0)
    scores = np.round(deviation * random.normal(size=1024))
    assert_kept(scores, (-(scores + random.normal(size=1024))).argsort().argsort(), **options)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("top", [1e6, 1e10, 1e15])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_outlier_changes_nothing_in_the_pairs_of_others(dtype, top):
    """One far above on a rank of its own, and all others tied: half of each tie's loss is linear in the scores."""
    scores = np.r_[top, np.linspace(0.5, 1, LONG - 1)].astype(DTYPES[dtype])
    ranks = np.r_[0, np.ones(LONG - 1, int)]
    assert_kept(scores, ranks, DTYPES[dtype], ties="half")


@pytest.mark.usefixtures("shorter_long_lists")
def test_many_outliers_change_nothing_in_the_pairs_of_others():
    scores = np.r_[1e20 * np.arange(101, 0, -1), np.linspace(0, 100, 923)]
    assert_kept(scores, np.minimum(np.arange(1024), 101), np.float64, ties="half")


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, 1e9, 1e12])
def test_an_offset_of_the_scores_costs_no_digit_whatever_beta_is(offset):
    random = np.random.default_rng(0)
    assert_kept(offset + random.normal(size=LONG), random.permutation(LONG), np.float64, beta=0.3)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("top", [1e4, 1e6, 1e7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_centring_of_scores_that_cancel_keeps_its_digits(dtype, top):
    """c (a + b)^2 is small, and the squares that it is the sum of are large."""
    better = np.arange(LONG) < LONG // 2
    scores = np.round(4 * np.random.default_rng(0).normal(size=LONG)) + np.where(better, top, -top)
    assert_kept(scores, 1 - better, DTYPES[dtype], center_rewards_coefficient=0.01)


@pytest.mark.parametrize("ranks", [np.arange(2048) // 1024, np.arange(2048)], ids=["two", "distinct"])
def test_a_difference_beyond_float32_does_not_overflow(ranks):
    scores = np.where(np.random.default_rng(0).random(2048) < 0.5, -2e38, 2e38).astype(np.float32)
    loss = prefloss.bradley_terry_loss_grouped(torch.from_numpy(scores)[None], torch.from_numpy(ranks)[None])
    w = (scores.astype(np.float64) - scores[:, None])[ranks[:, None] < ranks]
    assert loss.item() == pytest.approx(np.logaddexp(0, w).mean(), rel=1e-7)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("better", [2 - 1e-9, 6 - 1e-9, 8 - 1e-12, 30 - 1e-9])
def test_scores_in_opposite_corners_of_cells_keep_the_promise(better):
    """There sigma is least, and what a rounding of the largest in these cells is of it greatest."""
    worse = np.arange(LONG) // (LONG // 2)
    assert_kept(np.where(worse, 0.0, better), worse, np.float64)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize(("margin", "beta", "step"), [(0.0, 0.1, 301.7), (-50.0, 1.0, 14.4)])
def test_well_ordered_lists_keep_the_promise(margin, beta, step):
    """Each sigma is small, and has the rounding of a large z: z must not be rounded to float32."""
    assert_kept(-step * np.arange(LONG), np.arange(LONG), margin=margin, beta=beta)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("flip_rate", [0.2, 0.45])
@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_flips_that_take_all_of_a_loss_off_keep_the_promise(dtype, offset, flip_rate):
    """All pairs have nearly the z at which (1 - rho) loss(z) = rho loss(-z): what is left is far less than either."""
    low, high = 0.0, 50.0
    for _ in range(60):
        z = (low + high) / 2
        left = (1 - flip_rate) * np.log1p(np.exp(-z)) - flip_rate * np.log1p(np.exp(z))
        low, high = (z, high) if left > 0 else (low, z)
    ranks = np.arange(LONG) // (LONG // 2)
    scores = offset + z * (ranks == 0) + 1e-6 * np.random.default_rng(0).normal(size=LONG)
    assert_kept(scores, ranks, DTYPES[dtype], flip_rate=flip_rate)


@pytest.mark.usefixtures("shorter_long_lists")
@pytest.mark.parametrize("ranks", [np.arange(LONG) // (LONG // 2), np.arange(LONG)], ids=["two", "distinct"])
@pytest.mark.parametrize("beta", [pytest.param(1.0, marks=pytest.mark.slow), 0.3])
@pytest.mark.parametrize("margin", [1e6, pytest.param(1e10, marks=pytest.mark.slow), 1e13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_margin_that_takes_all_of_a_difference_off_costs_what_rounding_z_does(dtype, margin, beta, ranks):
    """Rewards and margin are far greater than z: their own roundings are all that may be lost."""
    noise = np.random.default_rng(0).normal(size=LONG) / beta
    better = ranks < ranks[LONG // 2]
    assert_kept(np.where(better, margin / beta, 0.0) + noise, ranks, DTYPES[dtype], margin=margin, beta=beta)
