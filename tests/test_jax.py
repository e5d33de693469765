"""`prefloss.reference` with JAX arrays: the numbers of NumPy, the derivatives of JAX, and what it can trace."""

from __future__ import annotations

import math

import numpy as np
import pytest

from prefloss import reference

jax = pytest.importorskip("jax", reason="JAX is not installed: make test-clients installs it")
pytestmark = pytest.mark.clients

U = 2.0**-24  # half an ulp of float32, which JAX computes in unless it is told otherwise
CHOSEN = np.array([0.3, 1.0, -20.0, 4.0, math.nan, math.inf, 1.0, -math.inf, 1.0], np.float32)
REJECTED = np.array([-1.5, 1.0, 21.0, -33.0, math.inf, math.inf, 0.0, 0.0, 1.0], np.float32)
WEIGHT = np.array([1.0, 2.0, 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0], np.float32)
OPTIONS = [
    {},
    {"beta": 0.5, "label_smoothing": 0.1},
    {"target": 0.25, "margin": 0.5},
    {"denominator": 7.0},
    {"flip_rate": 0.2},
    {"reduction": "sum"},
]
SCORES, RANKS = np.array([1.0, 2.0, 3.0, 1.0, 0.0, 0.5], np.float32), np.array([0, 1, 2, 1, 0, 0])
FIRST, SECOND = np.array([0, 0, 1, 5, 2]), np.array([1, 2, 2, 5, 0])


def paired(options, chosen, rejected, weight):
    return reference.bradley_terry_loss(chosen, rejected, weight=weight, **options)


def grouped(options, scores, ranks):
    return reference.bradley_terry_loss_grouped(scores, ranks, **options)


def indexed(options, scores, first, second):
    return reference.bradley_terry_loss_indexed(scores, first, second, **options)


LAYOUTS = [
    *((paired, options, (CHOSEN, REJECTED, WEIGHT)) for options in OPTIONS),
    (grouped, {"group_sizes": [4, 0, 2], "ties": "half"}, (SCORES, RANKS)),
    (grouped, {"group_sizes": [6], "average": "pairs", "weight": [2.0]}, (SCORES, RANKS)),
    (grouped, {"margin": 0.5, "center_rewards_coefficient": 0.1}, (SCORES.reshape(2, 3), RANKS.reshape(2, 3))),
    (indexed, {"beta": 2.0}, (SCORES, FIRST, SECOND)),
]
over_layouts = pytest.mark.parametrize(("function", "options", "arrays"), LAYOUTS)


def close(actual, expected, **tolerance):
    """Of numbers below 10 that some 20 operations have rounded, each to float32, and 36 pairs are added up."""
    assert isinstance(actual, jax.Array)
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=20 * U, atol=36 * 10 * U, **tolerance)


@over_layouts
def test_the_loss_and_its_statistics_are_those_of_numpy_traced_or_not(function, options, arrays):
    expected, sums = function({**options, "return_stats": True}, *arrays)
    given = [jax.numpy.asarray(array) for array in arrays]
    for compiled in (lambda function: function, jax.jit):
        loss, its_sums = compiled(lambda *given: function({**options, "return_stats": True}, *given))(*given)
        close(loss, expected)
        known = np.isfinite(sums)  # infinite losses have no squares about their mean
        scale = np.maximum(1.0, np.abs(sums[known]))
        assert its_sums.shape == sums.shape
        # A sum of cubes of losses up to 41 errs by three times as much as they do, and what they are taken from, 9 at a time.
        assert np.all(np.abs(np.asarray(its_sums)[known] - sums[known]) <= 9 * 3 * 20 * U * scale * 41.0)


@over_layouts
def test_the_gradient_by_jax_is_that_of_the_formula(function, options, arrays):
    """At ties, at infinities, and 0 for pairs of weight 0 whose rewards are NaN."""
    given = [jax.numpy.asarray(array) for array in arrays]
    name = {paired: "bradley_terry_gradient", grouped: "bradley_terry_gradient_grouped"}.get(
        function, "bradley_terry_gradient_indexed"
    )
    wide = {"weight": arrays[2]} if function is paired else {}
    inputs = arrays[:2] if function is paired else arrays
    expected = getattr(reference, name)(1.0, *inputs, **wide, **options)
    expected = expected if function is grouped else expected[0]
    gradient = jax.grad(lambda first: function(options, first, *given[1:]))
    close(gradient(given[0]), expected)
    close(jax.jit(gradient)(given[0]), expected)
    by_formula = getattr(reference, name)(1.0, given[0], *given[1 : len(inputs)], **wide, **options)
    close(by_formula if function is grouped else by_formula[0], expected)


def test_second_derivatives_are_right_at_ties_and_in_the_tails():
    curvature = jax.vmap(jax.grad(jax.grad(lambda z: reference.pair_loss(z))))
    z = np.array([0.0, -0.0, 1.0, 200.0, -200.0, math.inf, -math.inf], np.float32)
    np.testing.assert_allclose(
        np.asarray(curvature(jax.numpy.asarray(z))), reference.pair_curvature(z), rtol=20 * U, atol=2.0**-149
    )


def test_half_precision_is_subtracted_in_float32_and_gets_its_own_gradient():
    chosen, rejected = (jax.numpy.asarray([value], dtype="float16") for value in (60000.0, -60000.0))
    loss, sums = reference.bradley_terry_loss(chosen, rejected, return_stats=True)
    assert (loss.dtype, float(sums[18])) == ("float32", 120000.0)  # infinite in float16
    assert jax.grad(lambda first: reference.bradley_terry_loss(first, rejected))(chosen).dtype == "float16"


def test_an_index_of_no_item_is_refused_where_it_is_known():
    scores, index = jax.numpy.zeros(3), jax.numpy.asarray([0])
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match=r"not in \[0, 3\)"):
            reference.bradley_terry_loss_indexed(scores, index, jax.numpy.asarray([wrong]))


def test_with_float64_switched_on_it_is_as_exact_as_numpy():
    with jax.enable_x64(True):
        loss = reference.bradley_terry_loss(
            *map(jax.numpy.asarray, (CHOSEN[:4].astype(float), REJECTED[:4].astype(float)))
        )
        assert loss.dtype == "float64"
        expected = reference.bradley_terry_loss(CHOSEN[:4].astype(float), REJECTED[:4].astype(float))
        assert float(loss) == pytest.approx(float(expected), rel=1e-15)
