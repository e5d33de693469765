"""Groups of few ranks and near scores, which are done without a sort: against every pair, and against float64's other way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from every_pair import counts_as_nothing, every_pair
from rounding_bounds import assert_same_bits
from torch import Tensor
from unkind_laws import IN_LINEAR_TIME

import prefloss
from prefloss import reference

pytestmark = IN_LINEAR_TIME

# Of one call's groups: more than the 1,024 items from which it may pay.
SIZES = [31, 32, 33, 100, 129, 300, 500, 1, 0, 8]
SCORES = {
    "normal": lambda random, n: random.normal(size=n),
    "narrow": lambda random, n: 0.01 * random.normal(size=n),
    "as wide as may be": lambda random, n: random.uniform(-8.0, 8.0, n),
    "too wide for some": lambda random, n: random.uniform(-9.0, 9.0, n),
    "offset": lambda random, n: 1e6 + random.normal(size=n),
    "equal": lambda random, n: np.full(n, 3.3),
    "edges of cells": lambda random, n: random.integers(-3, 4, n) * 2.0 - 1e-7 * (random.random(n) < 0.5),
    "two values": lambda random, n: random.choice([0.0, 13.99], n),
    "tiny": lambda random, n: 1e-40 * random.normal(size=n),
}
OPTIONS = {
    "default": {},
    "margin": {"margin": 0.7},
    "margin of -9": {"margin": -9.0},
    "margin of 20": {"margin": 20.0},  # with which no cells are near enough
    "beta": {"beta": 1.01},  # narrow cells
    "negative beta": {"beta": -0.7},
    "no beta": {"beta": 0.0},
}
RANKS = {
    "two": lambda random, x: (random.random(x.size) < 0.3).astype(int),
    "five": lambda random, x: random.integers(0, 5, x.size),
    "sixteen": lambda random, x: np.r_[np.arange(min(x.size, 16)), random.integers(0, 16, max(x.size - 16, 0))],
    "seventeen": lambda random, x: np.r_[np.arange(min(x.size, 17)), random.integers(0, 17, max(x.size - 17, 0))],
    "many, late": lambda random, x: np.r_[np.zeros(x.size - x.size // 4, int), np.arange(x.size // 4)],
    "against the scores": lambda random, x: (x.argsort().argsort() * 4) // max(x.size, 1),
    "halves": lambda random, x: random.choice([-1.5, 0.25, 1e30], x.size),
}


def groups_of(scores, ranks, seed):
    random = np.random.default_rng(seed)
    made = [SCORES[scores](random, size).astype(np.float32) for size in SIZES]
    return made, [RANKS[ranks](random, its) for its in made]


class Results(NamedTuple):
    """The losses of the groups, the gradient of their sum, both derivatives without a loss, and the second by double backward."""

    losses: Tensor
    gradient: Tensor
    slopes: Tensor
    curvatures: Tensor
    product: Tensor  # with a direction


def results_of(rewards, ranks, direction, sizes, **options):
    leaf = torch.from_numpy(rewards).requires_grad_()
    given = {"group_sizes": sizes, "average": "pairs", **options}
    losses = prefloss.bradley_terry_loss_grouped(leaf, torch.from_numpy(ranks), reduction="none", **given)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
    (product,) = torch.autograd.grad(gradient, leaf, torch.from_numpy(direction))
    both = prefloss.bradley_terry_derivatives_grouped(leaf.detach(), torch.from_numpy(ranks), **given)
    return Results(losses.detach(), gradient.detach(), *both, product)


def direction_of(size):
    return np.random.default_rng(size).normal(size=size).astype(np.float32)


CASES = [
    *((scores, ranks, "default") for scores in SCORES for ranks in ("two", "five", "against the scores")),
    *(("normal", ranks, "default") for ranks in RANKS),
    *((scores, "five", options) for scores in ("normal", "offset", "two values") for options in OPTIONS),
]


@pytest.mark.parametrize(("scores", "ranks", "name"), CASES)
def test_groups_of_few_ranks_agree_with_every_pair(scores, ranks, name):
    """To what long lists promise: a gradient's entry to 2^-23 of the sum of its pairs', a curvature to 4e-7 of itself.

    What short groups promise is no less: a pair's slope is right to 1.5 ulp.
    """
    rewards, order = groups_of(scores, ranks, len(scores) + len(ranks))
    direction = direction_of(sum(SIZES))
    found = results_of(np.concatenate(rewards), np.concatenate(order), direction, SIZES, **OPTIONS[name])
    losses, gradient, slopes, curvatures, product = (each.double().numpy() for each in found)
    begin = 0
    for n, (its, their_ranks) in enumerate(zip(rewards, order, strict=True)):
        here = slice(begin, begin + its.size)
        begin += its.size
        expected = every_pair(its, their_ranks, direction[here], **OPTIONS[name])
        nothing = float(counts_as_nothing(np.float32, its.size))

        def is_near(values, exact, allowed, nothing=nothing):
            return bool((np.abs(values - exact) <= allowed + nothing).all())

        slope = 2.0**-23 * expected.gradient_size + 2.0**-24 * expected.gradient_by_z  # short groups round z to float32
        assert is_near(slopes[here], expected.gradient, slope), its.size
        assert is_near(gradient[here], expected.gradient, slope + 2.0**-24 * np.abs(expected.gradient)), its.size
        # ln sigma'(z) changes by no more than z, which short groups round.
        spread = 2.0**-24 * (1 + np.abs(OPTIONS[name].get("margin", 0.0)) + (np.ptp(its) if its.size else 0))
        assert is_near(curvatures[here], expected.curvature, (4e-7 + 4 * spread) * expected.curvature), its.size
        assert is_near(product[here], expected.product, (4e-7 + 2.0**-24 + 4 * spread) * expected.product_size), (
            its.size
        )
        assert is_near(losses[n], expected.loss, 2.0**-22 * expected.loss_size + 2.0**-24 * expected.loss_by_z)


@pytest.mark.parametrize("size", [8191, 8193, 50_000])
@pytest.mark.parametrize("positive", [0.5, 0.003])
def test_lists_of_several_parts_agree_with_float64(size, positive):
    """Which are done another way. Of two ranks, an item's slopes have one sign: their sum is that of their sizes."""
    random = np.random.default_rng(size)
    scores = (1.3 * random.normal(size=size)).astype(np.float32)
    ranks = (random.random(size) > positive).astype(np.int64)
    direction = direction_of(size)
    found = results_of(scores, ranks, direction, [size])
    expected = results_of(scores.astype(np.float64), ranks, direction.astype(np.float64), [size])
    for name, share in (("losses", 2.0**-23), ("gradient", 2.0**-22), ("slopes", 2.0**-23), ("curvatures", 4e-7)):
        exact = getattr(expected, name)
        assert (torch.abs(getattr(found, name).double() - exact) <= share * torch.abs(exact)).all(), name
    # An item's part of the product is no more than its curvature times the largest of the directions, twice.
    most = 2 * np.abs(direction).max() * expected.curvatures
    assert (torch.abs(found.product.double() - expected.product) <= (4e-7 + 2.0**-24) * most).all()


def test_a_direction_that_adds_up_to_nothing_is_felt():
    """The items of one rank lie in one cell, half of them with 1, half with -1."""
    random = np.random.default_rng(6)
    scores = random.uniform(0.1, 1.9, 2048).astype(np.float32)
    ranks, direction = np.arange(2048) // 1024, np.where(np.arange(2048) % 2, 1, -1).astype(np.float32)
    found = results_of(scores, ranks, direction, [2048])
    expected = every_pair(scores, ranks, direction, wide=np.float64)
    assert (np.abs(found.product.numpy() - expected.product) <= (4e-7 + 2.0**-24) * expected.product_size).all()
    others = expected.product - expected.curvature * direction  # what the direction of others gives
    assert (np.abs(others) > 1e-5 * expected.product_size).mean() > 0.9


def test_the_bits_do_not_depend_on_the_threads(set_threads):
    random = np.random.default_rng(4)
    sizes = [60_000, *[200] * 150, 31, 9000]  # the first one has all threads
    scores = random.normal(size=sum(sizes)).astype(np.float32)
    ranks = random.integers(0, 4, scores.size)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(results_of(scores, ranks, direction_of(scores.size), sizes))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_not_finite_is_felt_by_its_group_alone(value):
    random = np.random.default_rng(5)
    scores, ranks = random.normal(size=(8, 300)).astype(np.float32), random.integers(0, 3, (8, 300))
    before = prefloss.bradley_terry_derivatives_grouped(scores, ranks)
    scores[3, 200] = value
    after = prefloss.bradley_terry_derivatives_grouped(scores, ranks)
    others = np.arange(8) != 3
    for found, old in zip(after, before, strict=True):
        np.testing.assert_array_equal(found[others], old[others])
    with np.errstate(all="ignore"):
        expected = reference.bradley_terry_derivatives_grouped(scores, ranks, average="pairs", reduction="sum")
    for found, exact in zip(after, expected, strict=True):
        # Of 299 pairs, none of which gives more than 1.
        np.testing.assert_allclose(found, exact, rtol=0, atol=300 * 2.0**-22)
