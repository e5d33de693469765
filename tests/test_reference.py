"""The NumPy reference against what it is not made of: closed forms, published values, and mpmath at 60 digits."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import mpmath
import numpy as np
import pytest

import prefloss
from prefloss import PairStats, reference
from prefloss.stats import Sum

ROUNDING = 2.0**-53  # half an ulp of float64, relative
LOGITS = [
    *(0.0, 5e-324, 1e-300, 1e-16, 1e-8, 0.1, 0.5, 0.6931, 0.7, 1.0, 2.0, 5.0, 10.0, 20.0, 36.0, 37.5, 50.0, 100.0),
    *(300.0, 700.0, 708.5, 740.0, 745.0, 750.0, 1e4),
]
SIGNED_LOGITS = [-z for z in reversed(LOGITS)] + LOGITS
TARGETS = [0.0, 1e-9, 0.05, 0.25, 0.5, 0.9, 1.0]


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def exact_sigmoid(z):
    return 1 / (1 + mpmath.exp(-mpmath.mpf(z)))


def exact_pair_loss(z, target=1.0):
    z, target = mpmath.mpf(z), mpmath.mpf(target)
    return target * mpmath.log1p(mpmath.exp(-z)) + (1 - target) * mpmath.log1p(mpmath.exp(z))


def assert_close(actual, exact, tolerance):
    """Compared in mpmath: a float64 difference would round. 5e-324 is the last subnormal's ulp."""
    assert abs(mpmath.mpf(float(actual)) - exact) <= tolerance + mpmath.mpf(5e-324), (float(actual), exact)


@pytest.mark.parametrize(
    ("z", "published"),
    [(-100.0, 100.0), (0.0, 0.693147), (10.0, 4.53989e-5), (20.0, 2.06115e-9)],
)
def test_pair_loss_has_the_published_values(z, published):
    assert float(f"{float(reference.pair_loss(z)):.6g}") == published


def test_closed_forms():
    assert reference.pair_loss(0.0) == math.log(2.0)
    assert reference.pair_slope(0.0) == -0.5
    assert reference.pair_curvature(0.0) == 0.25
    assert reference.pair_loss(math.log(3.0)) == pytest.approx(math.log(4.0 / 3.0), rel=1e-15)
    assert reference.pair_slope(math.log(3.0)) == pytest.approx(-0.25, rel=1e-15)
    assert reference.pair_curvature(math.log(3.0)) == pytest.approx(3.0 / 16.0, rel=1e-15)


@pytest.mark.parametrize("target", TARGETS)
def test_pair_loss_agrees_with_mpmath_tails_and_soft_targets_included(target):
    losses = reference.pair_loss(SIGNED_LOGITS, target)
    for z, loss in zip(SIGNED_LOGITS, losses, strict=True):
        exact = exact_pair_loss(z, target)
        assert_close(loss, exact, 5 * ROUNDING * exact)


@pytest.mark.parametrize("target", TARGETS)
def test_pair_slope_agrees_with_mpmath_tails_and_soft_targets_included(target):
    slopes = reference.pair_slope(SIGNED_LOGITS, target)
    for z, slope in zip(SIGNED_LOGITS, slopes, strict=True):
        up, down = (1 - mpmath.mpf(target)) * exact_sigmoid(z), mpmath.mpf(target) * exact_sigmoid(-mpmath.mpf(z))
        assert_close(slope, up - down, 5 * ROUNDING * (up + down))  # the two terms may cancel, each is exact


def test_pair_curvature_agrees_with_mpmath_tails_included():
    for z, curvature in zip(SIGNED_LOGITS, reference.pair_curvature(SIGNED_LOGITS), strict=True):
        exact = exact_sigmoid(z) * exact_sigmoid(-mpmath.mpf(z))
        assert_close(curvature, exact, 5 * ROUNDING * exact)


def test_the_slope_without_a_target_is_strictly_increasing_in_the_right_tail():
    """sigma(z) - 1 would be 0 from z = 37 on."""
    slopes = reference.pair_slope(np.arange(30.0, 700.0))
    assert all(left < right < 0.0 for left, right in pairwise(slopes))


@pytest.mark.parametrize(
    ("z", "target", "loss", "slope"),
    [
        (math.inf, 1.0, 0.0, 0.0),
        (-math.inf, 1.0, math.inf, -1.0),
        (math.inf, 0.0, math.inf, 1.0),
        (-math.inf, 0.0, 0.0, 0.0),
        (math.inf, 0.75, math.inf, 0.25),
        (-math.inf, 0.75, math.inf, -0.75),
        (1e300, 1.0, 0.0, 0.0),
        (-1e300, 1.0, 1e300, -1.0),
    ],
)
def test_limits_at_infinity(z, target, loss, slope):
    assert reference.pair_loss(z, target) == loss
    assert reference.pair_slope(z, target) == slope
    assert reference.pair_curvature(z) == 0.0


def test_nan_propagates():
    for function in (reference.pair_loss, reference.pair_slope, reference.pair_curvature):
        assert np.isnan(function(math.nan))
    assert np.isnan(reference.bradley_terry_loss([math.inf, 1.0], [math.inf, 0.0]))
    assert np.isnan(reference.bradley_terry_loss([math.nan, 1.0], [0.0, 0.0]))


OPTIONS = [
    {},
    {"beta": 0.1},
    {"margin": 0.75},
    {"margin": [0.0, 0.5, -1.0, 2.0]},
    {"target": 0.7},
    {"target": [1.0, 0.0, 0.5, 0.9]},
    {"label_smoothing": 0.1},
    {"center_rewards_coefficient": 0.01},
    {"weight": [1.0, 0.0, 2.5, 0.25]},
    {"weight": [True, False, True, True]},
    {
        "beta": 2.5,
        "margin": [0.0, 0.5, -1.0, 2.0],
        "target": [1.0, 0.0, 0.5, 0.9],
        "label_smoothing": 0.2,
        "center_rewards_coefficient": 0.3,
        "weight": [1.0, 0.0, 2.5, 0.25],
    },
]
REDUCTIONS = [{"reduction": "mean"}, {"reduction": "sum"}, {"reduction": "mean", "denominator": 7.0}]
CHOSEN, REJECTED = np.array([0.3, 1e-3, -20.0, 4.0]), np.array([-1.5, 2.0, 21.0, -33.0])


def exact_loss(chosen, rejected, *, margins=None, reduction="mean", denominator=None, **options):
    """The formula as the papers write it, in mpmath; `margins` overrides option margin."""
    count = len(chosen)
    column = {
        name: np.broadcast_to(np.asarray(options.get(name, default), dtype=float), count)
        for name, default in (("margin", 0.0), ("target", 1.0), ("weight", 1.0))
    }
    beta, smoothing, centring = (
        mpmath.mpf(options.get(name, default))
        for name, default in (("beta", 1.0), ("label_smoothing", 0.0), ("center_rewards_coefficient", 0.0))
    )
    total = total_weight = mpmath.mpf(0)
    for i in range(count):
        a, b = mpmath.mpf(chosen[i]), mpmath.mpf(rejected[i])
        margin = mpmath.mpf(column["margin"][i] if margins is None else margins[i])
        target = mpmath.mpf(column["target"][i]) * (1 - 2 * smoothing) + smoothing
        weight = mpmath.mpf(column["weight"][i])
        total += weight * (exact_pair_loss(beta * (a - b) - margin, target) + centring * (a + b) ** 2)
        total_weight += weight
    if reduction == "sum":
        return total
    return total / (total_weight if denominator is None else mpmath.mpf(denominator))


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "default")
def test_loss_agrees_with_mpmath(options, reduction):
    loss = reference.bradley_terry_loss(CHOSEN, REJECTED, **options, **reduction)
    assert float(loss) == pytest.approx(float(exact_loss(CHOSEN, REJECTED, **options, **reduction)), rel=1e-14)


@pytest.mark.parametrize("reduction", REDUCTIONS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "default")
def test_gradient_is_the_derivative_of_the_exact_loss(options, reduction):
    gradients = reference.bradley_terry_gradient(-1.5, CHOSEN, REJECTED, **options, **reduction)
    inputs = [CHOSEN, REJECTED, np.broadcast_to(np.asarray(options.get("margin", 0.0)), CHOSEN.shape)]
    for which, gradient in enumerate(gradients):
        for i in range(len(CHOSEN)):

            def loss_of_one(x, which=which, i=i):
                moved = [list(values) for values in inputs]
                moved[which][i] = x
                return exact_loss(moved[0], moved[1], margins=moved[2], **options, **reduction)

            exact = -1.5 * mpmath.diff(loss_of_one, mpmath.mpf(inputs[which][i]))
            assert float(gradient[i]) == pytest.approx(float(exact), rel=1e-13, abs=1e-30)


def test_no_reduction_gives_the_terms_and_takes_one_upstream_gradient_a_pair():
    options = {"weight": [1.0, 0.0, 2.5, 0.25], "center_rewards_coefficient": 0.3, "beta": 0.5}
    terms = reference.bradley_terry_loss(CHOSEN, REJECTED, reduction="none", **options)
    assert terms.shape == CHOSEN.shape
    assert float(np.sum(terms)) == pytest.approx(
        float(reference.bradley_terry_loss(CHOSEN, REJECTED, reduction="sum", **options)), rel=1e-15
    )
    upstream = np.array([1.0, 2.0, -3.0, 0.0])
    of_terms = reference.bradley_terry_gradient(upstream, CHOSEN, REJECTED, reduction="none", **options)
    of_sum = reference.bradley_terry_gradient(1.0, CHOSEN, REJECTED, reduction="sum", **options)
    for got, expected in zip(of_terms, of_sum, strict=True):
        np.testing.assert_allclose(got, upstream * expected, rtol=1e-15)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_pair_of_weight_zero_contributes_exactly_nothing(poison):
    options = {"center_rewards_coefficient": 0.5, "label_smoothing": 0.1}
    expected = reference.bradley_terry_loss([1.0], [0.0], return_stats=True, **options)
    for weight in ([1.0, 0.0], [True, False], [1.0, -0.0]):
        loss, sums = reference.bradley_terry_loss(
            [1.0, poison], [0.0, poison], weight=weight, margin=[0.0, poison], return_stats=True, **options
        )
        assert loss == expected[0]
        np.testing.assert_array_equal(sums, expected[1])
        for gradient in reference.bradley_terry_gradient(1.0, [1.0, poison], [0.0, poison], weight=weight, **options):
            assert np.isfinite(gradient[0])
            assert gradient[1] == 0.0


@pytest.mark.parametrize(("rewards", "weight"), [([], None), ([], []), ([2.0, math.nan], [0.0, 0.0])])
def test_the_mean_of_nothing_is_zero(rewards, weight):
    loss, sums = reference.bradley_terry_loss(rewards, rewards, weight=weight, return_stats=True)
    assert loss == 0.0
    np.testing.assert_array_equal(sums, PairStats.zero().sums)
    for gradient in reference.bradley_terry_gradient(1.0, rewards, rewards, weight=weight):
        np.testing.assert_array_equal(gradient, np.zeros(len(rewards)))


def test_centring_that_is_off_touches_nothing():
    assert reference.bradley_terry_loss([1e200], [1e200]) == math.log(2.0)
    assert reference.bradley_terry_loss([1e200], [1e200], center_rewards_coefficient=1.0) == math.inf
    np.testing.assert_array_equal(reference.bradley_terry_gradient(1.0, [math.inf], [1.0])[:2], [[0.0], [0.0]])


def test_division_by_a_zero_denominator_gives_what_division_gives():
    assert reference.bradley_terry_loss([0.0], [0.0], denominator=0.0) == math.inf
    assert np.isnan(reference.bradley_terry_loss([math.inf], [0.0], denominator=0.0))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_difference_of_float16_and_float32_rewards_is_taken_in_float32(dtype):
    big, small = dtype(60000.0), dtype(1e-3)
    _, sums = reference.bradley_terry_loss(np.array([big]), np.array([-big]), return_stats=True)
    assert sums[Sum.DIFFERENCE] == 2.0 * float(big)  # in float16 this would be infinite
    _, sums = reference.bradley_terry_loss(np.array([big]), np.array([small]), return_stats=True)
    assert sums[Sum.DIFFERENCE] == float(np.float32(big) - np.float32(small)) != float(big) - float(small)


def test_the_sums_are_those_of_their_definition():
    a, b, w = np.array([0.5, 2.0, -1.0, 7.0]), np.array([0.25, 2.0, 3.0, 9.0]), np.array([1.0, 3.0, 0.5, 0.0])
    _, sums = reference.bradley_terry_loss(a, b, weight=w, center_rewards_coefficient=5.0, return_stats=True)
    losses = [math.log1p(math.exp(-0.25)), math.log(2.0), math.log1p(math.exp(4.0))]  # without centring
    v = w[:3] / 2.0  # the greatest power of two that is at most the greatest weight
    mean = np.dot(v**2, losses) / sum(v**2)
    x = np.array(losses) - mean
    expected = [
        *(3, 4.5, 1.0, 3.0, np.dot(w[:3], losses), 3, 2.0, *(sum(v**power) for power in (2, 3, 4, 5))),
        *(np.dot(v**2, losses), np.dot(v**2, x**2), *(np.dot(v**3, x**power) for power in (1, 2, 3))),
        *(1, 1, -3.75, 16.0625 - 3.75**2 / 3.0, 1.5, 5.25 - 1.5**2 / 3.0, 5.25, 13.0625 - 5.25**2 / 3.0),
        *(-1.0, 3.0, 0.0, 0.0, 0.0, 0.0),
    ]
    np.testing.assert_allclose(sums, expected, rtol=1e-14)


@pytest.mark.parametrize("shape", [(6,), (4, 3), (2, 2, 1)])
def test_stacked_is_the_loss_of_the_two_halves_or_of_alternate_entries(shape):
    rewards = np.random.default_rng(0).normal(size=shape)
    half = shape[0] // 2
    for layout, chosen, rejected in (
        ("halves", rewards[:half], rewards[half:]),
        ("interleaved", rewards[::2], rewards[1::2]),
    ):
        stacked = reference.bradley_terry_loss_stacked(rewards, layout=layout, beta=0.5, return_stats=True)
        paired = reference.bradley_terry_loss(chosen, rejected, beta=0.5, return_stats=True)
        assert stacked[0] == paired[0]
        np.testing.assert_array_equal(stacked[1], paired[1])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 1\) and \(3,\)"):
        reference.bradley_terry_loss(np.zeros((3, 1)), np.zeros(3))
    for name in ("margin", "weight", "target"):
        with pytest.raises(ValueError, match=name):
            reference.bradley_terry_loss(np.zeros(3), np.zeros(3), **{name: np.ones((3, 1))})
    with pytest.raises(ValueError, match=r"\(3,\)"):
        reference.bradley_terry_loss_stacked(np.zeros(3))


def test_no_floating_point_warning_or_error_leaks():
    extreme = np.array([0.0, math.inf, -math.inf, math.nan, 1e308, -1e308, 5e-324])
    a, b = (grid.ravel() for grid in np.meshgrid(extreme, extreme))
    with np.errstate(all="raise"):
        reference.bradley_terry_loss(a, b, center_rewards_coefficient=1.0, denominator=0.0, return_stats=True)
        reference.bradley_terry_gradient(math.inf, a, b, center_rewards_coefficient=1.0, denominator=0.0)
        for function in (reference.pair_loss, reference.pair_slope, reference.pair_curvature):
            function(a)


def test_every_function_over_pairs_is_in_the_reference():
    assert {name for name in prefloss.__all__ if name.startswith("bradley_terry_")} <= {*reference.__all__}


def test_every_option_of_the_package_is_in_the_reference():
    for name in ("bradley_terry_loss", "bradley_terry_loss_stacked"):
        package, ours = (inspect.signature(getattr(module, name)).parameters for module in (prefloss, reference))
        assert [(p.name, p.kind, p.default) for p in package.values()] == [
            (p.name, p.kind, p.default) for p in ours.values()
        ]


def test_the_reference_imports_numpy_only():
    path = Path(reference.__file__)
    code = (
        f"import sys; sys.path.insert(0, {str(path.parent.parent)!r}); import reference; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


FLIP_RATES = [0.0, 0.1, 0.3, 0.49]


@pytest.mark.parametrize("rate", FLIP_RATES)
def test_with_flipped_labels_the_expected_corrected_loss_is_that_of_the_true_labels(rate):
    """((1 - rate) l(z) - rate l(-z)) / (1 - 2 rate), Natarajan et al. 2013: flips turn z round with that rate."""
    for options in ({}, {"target": [0.9, 1.0, 0.25, 0.0], "weight": [1.0, 0.5, 0.0, 2.0], "beta": 0.3}):
        corrected, turned = (
            reference.bradley_terry_loss(*pair, flip_rate=rate, reduction="none", **options)
            for pair in ((CHOSEN, REJECTED), (REJECTED, CHOSEN))
        )
        true = reference.bradley_terry_loss(CHOSEN, REJECTED, reduction="none", **options)
        # Cancellation: both terms are up to 1 / (1 - 2 rate) of the loss of either order.
        slack = 1e-14 * (np.abs(corrected) + np.abs(turned))
        assert np.all(np.abs((1.0 - rate) * corrected + rate * turned - true) <= slack)


def test_a_flip_rate_is_a_negative_label_smoothing():
    rate = 0.2
    options = {"label_smoothing": -rate / (1.0 - 2.0 * rate), "return_stats": True}
    for name, inputs in (
        ("bradley_terry_loss", (CHOSEN, REJECTED)),
        ("bradley_terry_loss_stacked", (np.concatenate((CHOSEN, REJECTED)),)),
        ("bradley_terry_loss_grouped", (CHOSEN[None], np.arange(4)[None])),
        ("bradley_terry_loss_indexed", (CHOSEN, np.array([0, 1]), np.array([1, 3]))),
    ):
        function = getattr(reference, name)
        given, expected = function(*inputs, flip_rate=rate, return_stats=True), function(*inputs, **options)
        np.testing.assert_array_equal(given[0], expected[0])
        np.testing.assert_array_equal(given[1], expected[1])
    gradient = reference.bradley_terry_gradient(1.0, CHOSEN, REJECTED, flip_rate=rate)
    np.testing.assert_array_equal(
        gradient, reference.bradley_terry_gradient(1.0, CHOSEN, REJECTED, label_smoothing=options["label_smoothing"])
    )


@pytest.mark.parametrize(
    "options", [{"flip_rate": 0.5}, {"flip_rate": -0.1}, {"flip_rate": 0.1, "label_smoothing": 0.1}], ids=str
)
def test_a_flip_rate_that_cannot_be_corrected_is_refused(options):
    with pytest.raises(ValueError, match="flip_rate"):
        reference.bradley_terry_loss(CHOSEN, REJECTED, **options)
    with pytest.raises(ValueError, match="flip_rate"):
        reference.bradley_terry_loss_grouped(CHOSEN[None], np.arange(4)[None], **options)


@pytest.mark.parametrize("smoothing", [1e-4, 1e-12, 1e-20, 1e-300])
def test_tiny_label_smoothing_keeps_its_digits(smoothing):
    """1 - t of a rounded t would be 0."""
    exact = (1 - mpmath.mpf(smoothing)) * mpmath.log1p(mpmath.exp(-40)) + smoothing * mpmath.log1p(mpmath.exp(40))
    assert_close(reference.bradley_terry_loss([40.0], [0.0], label_smoothing=smoothing), exact, 5 * ROUNDING * exact)
