"""How far the loss of groups may be from the reference, by the roundings of each of their pairs; and options to try it with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rounding_bounds import error_of_a_sum, half_ulp_of_gradient_sums
from sample_inputs import DTYPES, array, real

import prefloss
from prefloss import reference
from prefloss.stats import Sum

OPTIONS = {
    "default": {},
    "beta": {"beta": 0.1},
    "negative beta": {"beta": -2.5},
    "margin": {"margin": 0.7},
    "label smoothing": {"label_smoothing": 0.1},
    "centring": {"center_rewards_coefficient": 0.01},
    "all": {"beta": 0.5, "margin": -0.3, "label_smoothing": 0.2, "center_rewards_coefficient": 0.1},
}
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
over_options = pytest.mark.parametrize("name", OPTIONS)
TIES, AVERAGES = ["skip", "half"], ["groups", "pairs"]
over_ties = pytest.mark.parametrize("ties", TIES)
over_averages = pytest.mark.parametrize("average", AVERAGES)
RANK_DTYPES = [
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
]
# How many ranks there are: all alike, positives and negatives, a few, as many as items.
LEVELS = [1, 2, 4, 10**6]


def epsilon(dtype):
    """Half an ulp of 1, of what is computed in."""
    return 2.0**-53 if dtype is torch.float64 else 2.0**-24


@np.errstate(all="ignore")
def check(rewards, ranks, options, weight=None):
    """Loss, gradient and sums of a call, within what rounding can do to each of their pairs' terms, and to their sum.

    An entry of the gradient is a sum of slopes; what it may err by is relative to the sum of their absolute values.
    """
    rewards = rewards.detach().requires_grad_()
    given = {**options} if weight is None else {**options, "weight": weight}
    loss, stats = prefloss.bradley_terry_loss_grouped(rewards, ranks, **given, return_stats=True)
    alone = prefloss.bradley_terry_loss_grouped(rewards, ranks, **given)
    upstream = real(np.random.default_rng(1).uniform(0.5, 2.0, tuple(loss.shape)), loss.dtype)
    (gradient,) = torch.autograd.grad(alone, rewards, upstream)
    assert gradient.dtype == rewards.dtype
    assert loss.dtype == alone.dtype == (torch.float64 if rewards.dtype is torch.float64 else torch.float32)

    call = {name: array(value) for name, value in given.items()}
    inputs = array(rewards), array(ranks)
    expected, sums = reference.bradley_terry_loss_grouped(*inputs, **call, return_stats=True)
    without_stats = {name: value for name, value in call.items() if name != "return_stats"}
    slopes = reference.bradley_terry_gradient_grouped(array(upstream), *inputs, **without_stats)
    u, promise = epsilon(rewards.dtype), 1e-14 if rewards.dtype is torch.float64 else 0.0
    # What z may be off by: its rounding, and beta's and the margin's. Loss and slope change by no more.
    largest = np.abs(options.get("beta", 1.0)) * _spread(inputs[0]) + np.abs(options.get("margin", 0.0))
    off = 4 * u * (1 + largest)
    overflows = u > 1e-10 and largest >= 2.0**127  # in float32 z may be infinite, and its loss
    scale, pairs, ones = _magnitudes(array(upstream), *inputs, without_stats)
    # A pair's loss is right to 1.5 ulp, or 3 u; smoothing adds 1, centring 3, share and divisor 2.
    each = error_of_a_sum(pairs, max(9 * u, 10 * promise))
    for value in (loss, alone):
        _close(value.detach(), expected, np.inf if overflows else each * np.abs(expected) + off * ones, u)
    # The slope likewise, with beta's product; a linear-time series has its own promise.
    items = 2 * max(options.get("group_sizes", rewards.shape[-1:]), default=0)  # terms of one sum: either order
    each_slope = error_of_a_sum(pairs, max(9 * u, promise)) + items * half_ulp_of_gradient_sums(u)
    _close(gradient, slopes, (each_slope + off) * scale, u)
    finite = np.isfinite(sums)
    if overflows:
        finite &= np.isfinite(stats.sums.numpy())
    np.testing.assert_array_equal(np.isfinite(stats.sums.numpy())[~finite & ~np.isfinite(sums)], False)
    assert np.isfinite(stats.sums.numpy()[finite]).all()
    tolerance = each + off
    size = np.abs(sums) + np.sqrt(np.abs(sums[0] * _squares(inputs[0])))
    size[Sum.SQUARED_WEIGHT_LOSS_SQUARES] += _loss_squares(sums)
    # What is told of units' mean losses L is of their distances from a mean: differences of numbers up to `most`, off by its
    # rounding. (2 most + e)^k exceeds (2 most)^k by k (2 most)^(k - 1) e, and e is twice the rounding of `most`.
    most = 2 * (1 + largest)
    for k, which in enumerate((Sum.CUBED_WEIGHT_LOSS, Sum.CUBED_WEIGHT_LOSS_SQUARES, Sum.CUBED_WEIGHT_LOSS_CUBES), 1):
        size[which] += k * (2 * most) ** k * np.abs(sums[Sum.WEIGHT_CUBED])
    size[Sum.LIST_VARIANCE] += 2 * (2 * most) ** 2  # of row means, and of column means, each over their number
    size[Sum.LIST_VARIANCE_ERROR] += 4 * (2 * most) ** 4  # of the squares of both
    assert np.all((np.abs(stats.sums.numpy() - sums) <= tolerance * size + 1e-300)[finite])


@np.errstate(all="ignore")
def check_derivatives(rewards, ranks, options, weight=None):
    """Both derivatives of a call, within what rounding can do to each of their pairs, and to their sums."""
    given = {"average": "pairs", "reduction": "sum", **options} | ({} if weight is None else {"weight": weight})
    found = prefloss.bradley_terry_derivatives_grouped(rewards, ranks, **given)
    assert all(value.dtype is torch.float64 and value.shape == rewards.shape for value in found)
    call = {name: array(value) for name, value in given.items()}
    inputs = array(rewards), array(ranks)
    gradient, curvature = reference.bradley_terry_derivatives_grouped(*inputs, **call)
    u, promise = epsilon(rewards.dtype), 1e-14 if rewards.dtype is torch.float64 else 0.0
    beta = np.abs(options.get("beta", 1.0))
    off = 4 * u * (1 + beta * _spread(inputs[0]) + np.abs(options.get("margin", 0.0)))
    scale, pairs, _ = _magnitudes(1.0, *inputs, call)
    _close(found[0], gradient, (error_of_a_sum(pairs, max(9 * u, promise)) + off) * scale, u)
    # Of a pair's curvature: two sigmoids, 1.5 ulp or 3 u each, and their product; then beta, centring and factor, four roundings in
    # float64, and the reference's own 11. ln sigma'(z) changes by no more than z. Below u's type there is nothing.
    each = 7 * u + 15 * 2.0**-53
    tiny = 2.0**-1074 if rewards.dtype is torch.float64 else 2.0**-149
    most = (
        beta * scale / 4 + 1e-300
    )  # a pair's curvature is at most beta^2 / 4; what centring adds has no error but `each`
    tolerance = error_of_a_sum(pairs, each) * np.abs(curvature) + np.minimum(np.expm1(off) * np.abs(curvature), most)
    _close(found[1], curvature, tolerance + 4 * tiny * beta * scale, u)


def _spread(values):
    values = values[np.isfinite(values)].astype(np.float64)
    return np.ptp(values) if values.size else 0.0


def _squares(values):
    values = values[np.isfinite(values)].astype(np.float64)
    return np.sum(values * values)


def _loss_squares(sums):
    """What is taken from the losses' squares when they are centred: the long lists' are not summed about their mean."""
    return sums[Sum.SQUARED_WEIGHT_LOSS] ** 2 / max(sums[Sum.WEIGHT_SQUARED], 1e-300)


def _magnitudes(upstream, rewards, ranks, options):
    """For each entry of the gradient, the sum of the absolute values of what its pairs give to it; how many pairs there are;
    and the loss that there would be if each pair's were 1."""
    given = {name: options[name] for name in ("group_sizes", "ties") if name in options}
    groups = reference.grouped.Groups.of(rewards, ranks, given.get("group_sizes"), given.get("ties", "skip"))
    share, divisor = groups.shares(
        options.get("weight"), options.get("average", "groups"), options.get("reduction", "mean"),
        options.get("denominator"),
    )  # fmt: skip
    counts = groups.total(groups.times)
    scale = np.abs(np.broadcast_to(upstream, share.shape) * share / divisor)
    centring = 2 * options.get("center_rewards_coefficient", 0.0)
    size = np.abs(groups.chosen.astype(np.float64)) + np.abs(groups.rejected.astype(np.float64))
    slope = groups.for_pairs(scale) * (np.abs(options.get("beta", 1.0)) + centring * size)
    slope = np.where(groups.times == 0, 0.0, groups.times * slope)
    ones = np.abs(share / divisor) * counts
    total = groups.total_by_item(slope, slope).reshape(rewards.shape)
    return total, counts.sum(), ones if options.get("reduction") == "none" else ones.sum()


def _close(actual, expected, tolerance, u):
    """NaN and infinities where they are expected; else within the tolerance and the rounding to the dtype."""
    expected, tolerance = np.asarray(expected, dtype=np.float64), np.asarray(tolerance)
    found = actual.detach().double().numpy()
    kind = torch.finfo(actual.dtype)
    allowed = tolerance + kind.eps / 2 * np.abs(expected) + kind.tiny * kind.eps
    right = np.where(
        np.isfinite(expected),
        (np.abs(found - expected) <= allowed) | ~np.isfinite(allowed) | (np.abs(expected) + allowed > kind.max),
        (found == expected) | (np.isnan(expected) & np.isnan(found)),
    )
    assert right.all(), (found[~right][:3], expected[~right][:3], np.broadcast_to(allowed, expected.shape)[~right][:3])


def ranks_of(random, shape, levels, dtype=torch.int64):
    most = min(levels, 2 if dtype is torch.bool else 100 if dtype.itemsize == 1 else 10**6)
    return torch.from_numpy(random.integers(0, most, shape)).to(dtype)
