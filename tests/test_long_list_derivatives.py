"""Second derivatives of long lists of unkind scores: against every pair, and the same bits for any number of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_pair import counts_as_nothing, every_pair
from rounding_bounds import assert_same_bits
from unkind_laws import DTYPES, IN_LINEAR_TIME, LAWS, OPTIONS, cases_of, made

import prefloss
from prefloss import eager

pytestmark = IN_LINEAR_TIME


def second_derivatives(scores, ranks, direction, **options):
    """The product with a direction, by double backward, and the diagonal."""
    leaf, order = torch.from_numpy(scores).requires_grad_(), torch.from_numpy(ranks)[None]
    options = {"reduction": "sum", "average": "pairs", **options}
    loss = prefloss.bradley_terry_loss_grouped(leaf[None], order, **options)
    (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (product,) = torch.autograd.grad(gradient, leaf, torch.from_numpy(direction))
    _, diagonal = prefloss.bradley_terry_derivatives_grouped(leaf.detach()[None], order, **options)
    return product, diagonal[0]


def share_of_second_derivatives(scores, ranks, **options):
    """The largest errors of the product and of the diagonal, over what is allowed.

    A curvature is the derivative of a polynomial of degree below p in the place in a cell of half-width h. It stands for sigma(z),
    or for -sigma(-z) where the cells' midsts say that this is less, so a rounding of it counts sum k^2 / h times and is of no
    more than 4 exp(4 h) sigma'. float64, with p = 16 and 1/4 <= h <= 1/2: 2480 * 4 exp(2) 2^-53 = 8e-12; 1e-9 is what is promised.
    float32, computed in float64, with p = 12 and 1/2 <= h <= 1: what the polynomials leave out, and the rounding of the result,
    4e-7.
    """
    direction = np.random.default_rng(1).normal(size=scores.size).astype(scores.dtype)
    expected = every_pair(scores, ranks, direction, wide=np.float64, **options)
    allowed = 1e-9 if scores.dtype == np.float64 else 4e-7
    nothing = float(counts_as_nothing(scores.dtype, scores.size))
    product, diagonal = (found.double().numpy() for found in second_derivatives(scores, ranks, direction, **options))
    return tuple(
        float(np.max(np.abs(found - exact) / (allowed * size + nothing)))
        for found, exact, size in (
            (product, expected.product, expected.product_size),
            (diagonal, expected.curvature, expected.curvature),
        )
    )


@pytest.mark.parametrize("step", [0, pytest.param(5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("law", LAWS)
def test_second_derivatives_agree_with_those_of_every_pair(law, step):
    cases, n = list(cases_of(law)), list(LAWS).index(law) + step
    ranks, name, ties, dtype = cases[n % len(cases)]
    scores, order = made(law, ranks, DTYPES[dtype], 1030, n)
    shares = share_of_second_derivatives(scores, order, ties=ties, **OPTIONS[name])
    assert max(shares) <= 1, (ranks, name, ties, dtype, shares)


@pytest.mark.parametrize("spread", [0, 0.3])
@pytest.mark.parametrize(
    ("dtype", "distance", "margin"),
    [
        (np.float32, 13, 0),
        (np.float32, 17.999, 0),
        (np.float32, 15.999, 2),
        (np.float64, 14, 0),
        (np.float64, 16.999, 0),
    ],
)
def test_second_derivatives_are_exact_where_all_pairs_are_in_the_wrong_order(dtype, distance, margin, spread):
    """Then sigma is 1 but for a little, and the curvatures are no more than that: they must not come from 1 less 1."""
    ranks = np.repeat([0, 1], 600)
    scores = (distance * ranks + spread * np.random.default_rng(0).normal(size=ranks.size)).astype(dtype)
    assert max(share_of_second_derivatives(scores, ranks, margin=margin)) <= 1


@pytest.mark.parametrize("law", LAWS)
def test_the_diagonal_of_small_lists_agrees_with_that_of_every_pair(law, monkeypatch):
    monkeypatch.setattr(eager, "LARGE_GROUP", 2)
    for n, (ranks, name, ties, dtype) in list(enumerate(cases_of(law)))[list(LAWS).index(law) % 3 :: 3]:
        scores, order = made(law, ranks, DTYPES[dtype], 150 + 17 * n, n)
        share = share_of_second_derivatives(scores, order, ties=ties, **OPTIONS[name])[1]
        assert share <= 1, (ranks, name, ties, dtype, share)


@pytest.mark.parametrize(
    ("law", "way", "dtype"),
    [
        # Each law and each way; the others are slow.
        ("normal", "in a tree", "float64"),
        ("deviation 30", "by score", "float64"),
        ("deviation 300", "by score", "float32"),
        ("half of them wide", "by score", "float32"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("normal", "in a tree", "float32"),
                *(("deviation 30", "in a tree", dtype) for dtype in DTYPES),
                *(("normal", "by score", dtype) for dtype in DTYPES),
                ("deviation 30", "by score", "float32"),
                *((law, "by score", "float64") for law in ("deviation 300", "half of them wide")),
            ]
        ),
    ],
)
def test_the_number_of_threads_does_not_change_a_bit_of_second_derivatives(dtype, law, way, set_threads):
    """So many items that each thread has time to come, and more than once: who is first changes from call to call."""
    options = {"ties": "half", "center_rewards_coefficient": 0.01} if way == "by score" else {"margin": 0.7}
    scores, ranks = made(law, "random", DTYPES[dtype], 100_000, 8)
    direction = np.random.default_rng(1).normal(size=scores.size).astype(scores.dtype)
    results = []
    for threads in (1, 2, 2, 3):
        set_threads(threads)
        results.append(second_derivatives(scores, ranks, direction, **options))
    for other in results[1:]:
        assert_same_bits(other, results[0])
