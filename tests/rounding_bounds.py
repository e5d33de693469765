"""How far the kernels may be from the float64 reference, derived from what they round.

A kernel computes in Real: float32, or float64 for float64 rewards; u is Real's half ulp. The logit z carries an error
of some u in beta (a - b), margin and z, which the loss passes on as it is: since loss and slope are convex or monotonic
in z, the worst lies at an end of the interval. What follows adds a few u relative to each term. A result stored in
dtype may then be any rounding of a number within these bounds, so that comparing rounded bounds adds exactly the half
ulp of the dtype, infinities of an overflow included.
"""

from __future__ import annotations

import numpy as np
import torch
from sample_inputs import array, arrays

from prefloss import composed, reference
from prefloss.stats import Sum


def error_of_a_sum(terms, each):
    """Relative error of the sum of `terms` numbers of one sign, each of which errs by `each`, against the reference's.

    Both add in float64. An addition errs by at most half an ulp of its result, and no partial sum exceeds the whole, so that
    n - 1 of them, in whatever order, err by (n - 1) 2^-53 of it (Higham 2002, eq. 4.4, to first order): on each side.
    """
    return each + 2 * terms * 2.0**-53


def half_ulp_of_gradient_sums(u):
    """Of what the slopes of an item are added up in: kernels take float64; without them, torch's derivatives take the type of the
    loss, of which half an ulp is u. There each slope is rounded to it first, which with n - 1 additions makes n roundings."""
    return u if composed.ASKED_FOR else 2.0**-53


class Bounds:
    """Bounds of everything that one call returns."""

    @np.errstate(all="ignore")
    def __init__(self, chosen, rejected, options):
        self.options = arrays(options)
        self.reduction = self.options.get("reduction", "mean")
        self.denominator = self.options.get("denominator")
        self.beta = self.options.get("beta", 1.0)
        self.centring = self.options.get("center_rewards_coefficient", 0.0)
        self.inputs = array(chosen), array(rejected)
        in_double = chosen.dtype is torch.float64
        # Half an ulp of 1, the last subnormal, and where Real overflows.
        self.u, self.tiny, self.greatest = (
            (2.0**-53, 2.0**-1074, np.inf) if in_double else (2.0**-24, 2.0**-149, 2.0**128)
        )
        smoothing = self.options.get("label_smoothing", 0.0)
        self.pairs = pairs = reference.paired.Pairs.of(
            *self.inputs, *(self.options.get(name) for name in ("margin", "weight", "target")), self.beta, smoothing
        )
        z = pairs.z
        # a - b is rounded alike on both sides. Then beta, its product with a - b, margin and the difference may be.
        error = 2 * (self.beta != 1.0) * np.abs(self.beta * pairs.difference)
        if "margin" in self.options:
            error += np.abs(np.asarray(self.options["margin"], dtype=np.float64)) + np.abs(z)
        # In float64 the reference rounds as well.
        self.z_error = _finite(error) * (2 * self.u if in_double else self.u)
        exact_target = (pairs.target == 1.0) | ((pairs.target == 0.0) & (smoothing == 0.0))
        self.target_error = np.where(exact_target, 0.0, 5 * self.u)
        # 1.5 ulp, and half an ulp for a term that an option adds; twice that in float64, where the reference errs too.
        self.relative = (3 + (len(self.options.keys() - {"reduction", "denominator"}) > 0)) * self.u * (1 + in_double)
        self.loss, self.loss_error = self._with_error(reference.pair_loss)
        magnitude = np.where(np.isfinite(z), np.abs(z), 0.0)
        self.loss_error += self.target_error * magnitude + self.relative * _finite(self.loss) + 2 * self.tiny
        # Where Real's z is infinite, so may its loss be.
        self.loss_error = np.where(np.abs(z) >= self.greatest, np.inf, self.loss_error)
        self.slope, self.slope_error = self._with_error(reference.pair_slope)
        parts = pairs.target * -reference.pair_slope(z, 1.0) + pairs.complement * reference.pair_slope(z, 0.0)
        self.slope_error += self.target_error + self.relative * _finite(parts) + 2 * self.tiny
        if chosen.dtype in (torch.bfloat16, torch.float16):
            self.slope_error += 2.0**-17 * _finite(np.abs(parts))  # the short formula, where the result has few digits

    def _with_error(self, function):
        z, target, error = self.pairs.z, (self.pairs.target, self.pairs.complement), self.z_error
        value = function(z, *target)
        ends = (np.abs(function(z + sign * error, *target) - value) for sign in (-1.0, 1.0))
        return value, _finite(np.maximum(*ends))

    @np.errstate(all="ignore")
    def assert_loss(self, actual):
        """The loss, or the terms of reduction "none"."""
        centring = self.centring * np.square(self.pairs.sum) if self.centring else np.zeros_like(self.loss)
        unweighted = self.loss + centring
        # The products of centring round, and their sum with the loss; then the product with the weight.
        error = self.loss_error + 2 * self.u * (_finite(2 * centring + unweighted) if self.centring else 0.0)
        if "weight" in self.options:
            error += 2 * self.u * _finite(unweighted) + 2 * self.tiny
        lower, upper = self._weighted(unweighted, error, self.pairs.weight)
        terms = reference.bradley_terry_loss(*self.inputs, **{**self.options, "reduction": "none", "denominator": None})
        if self.reduction != "none":
            divisor = reference.paired._divisor(self.pairs, self.reduction, self.denominator)
            rounding = 100 * 2.0**-53 * np.sum(np.abs(_finite(terms)))
            lower, upper = (np.sum(lower) - rounding) / divisor, (np.sum(upper) + rounding) / divisor
        _assert_between(actual, reference.bradley_terry_loss(*self.inputs, **self.options), lower, upper)

    def assert_gradients(self, upstream, actual):
        """`actual`: the gradients of chosen, rejected, and (or None) margin."""
        for gradient, bounds in zip(actual, self.gradients(upstream), strict=True):
            if gradient is not None:
                _assert_between(gradient, *bounds)

    @np.errstate(all="ignore")
    def assert_item_gradients(self, upstream, actual, chosen_index, rejected_index):
        """`actual`: the gradients of the items that the pairs name by index, each the sum over its pairs."""
        exact, lower, upper, magnitude, terms = totals = [np.zeros(actual.shape) for _ in range(5)]
        for index, bounds in zip((chosen_index, rejected_index), self.gradients(upstream), strict=False):
            for total, parts in zip(totals, (*bounds, np.abs(_finite(bounds[0])), 1.0), strict=True):
                np.add.at(total, array(index), np.broadcast_to(parts, index.shape))
        slack = terms * (half_ulp_of_gradient_sums(self.u) + 2.0**-53) * magnitude  # that sum, and the reference's
        lower, upper = lower - slack - 2 * self.tiny, upper + slack + 2 * self.tiny
        lower, upper = np.where(np.isnan(lower), -np.inf, lower), np.where(np.isnan(upper), np.inf, upper)
        # Terms beyond Real's range of either sign: their sum may be anything, NaN too.
        anything = torch.from_numpy(np.isfinite(exact) & (lower == -np.inf) & (upper == np.inf))
        _assert_between(
            torch.where(anything, torch.from_numpy(exact).to(actual.dtype), actual.cpu()), exact, lower, upper
        )

    @np.errstate(all="ignore")
    def gradients(self, upstream):
        """(exact, lower, upper) of the gradients of chosen, rejected and margin, before they are rounded to a dtype."""
        divisor = reference.paired._divisor(self.pairs, self.reduction, self.denominator)
        scale = np.asarray(array(upstream), dtype=np.float64) * self.pairs.weight / divisor
        pull = 2.0 * self.centring * self.pairs.sum if self.centring else np.zeros_like(self.slope)
        exact = reference.bradley_terry_gradient(array(upstream), *self.inputs, **self.options)
        found = []
        for expected, beta, pulled in zip(
            exact, (self.beta, -self.beta, -1.0), (pull, pull, 0.0 * _finite(pull)), strict=True
        ):
            unscaled = beta * self.slope + pulled
            parts = _finite(np.abs(beta * self.slope) + np.abs(pulled))
            # The scale, its product with weight and derivative; beta, and the sum with the centring's pull.
            error = abs(beta) * self.slope_error + (6 if self.options.keys() - {"reduction"} else 2) * self.u * parts
            error += 2 * self.tiny
            lower, upper = self._weighted(unscaled, error, scale)
            slack = 2 * self.tiny * (1.0 + parts)  # the scale, or the product, is subnormal
            found.append((expected, lower - slack, upper + slack))
        return found

    def _weighted(self, value, error, factor):
        """Bounds of factor * value; a value beyond Real's range may have become infinite before it is multiplied."""
        overflow = np.abs(value) + error >= self.greatest
        lower, upper = value - _finite(error), value + _finite(error)
        lower, upper = np.where(overflow & (value < 0), -np.inf, lower), np.where(overflow & (value > 0), np.inf, upper)
        ends = np.where(self.pairs.counted, factor * lower, 0.0), np.where(self.pairs.counted, factor * upper, 0.0)
        return np.minimum(*ends), np.maximum(*ends)

    @np.errstate(all="ignore")
    def assert_sums(self, actual, compared=None):
        """The sums of PairStats; `compared`: (scores, chosen_index, rejected_index), of comparisons of items."""
        function = reference.bradley_terry_loss if compared is None else reference.bradley_terry_loss_indexed
        given = self.inputs if compared is None else [array(tensor) for tensor in compared]
        _, expected = function(*given, **self.options, return_stats=True)
        p, kept = self.pairs, self.pairs.counted
        w, loss = np.abs(p.weight[kept]), self.loss[kept]
        every = np.ones(w.shape)
        error = np.where(loss >= self.greatest, np.inf, self.loss_error[kept])
        units = w, loss, error
        if compared is not None:  # an item has half of each of its comparisons
            ends = np.concatenate([index[kept] for index in given[1:]])
            totals = [np.bincount(ends, np.tile(0.5 * each, 2), len(given[0])) for each in (w, w * loss, w * error)]
            there = totals[0] != 0.0
            units = totals[0][there], *(total[there] / totals[0][there] for total in totals[1:])
        rounding = 100 * 2.0**-53
        tolerance = np.zeros(len(Sum))
        for which, terms in (
            (Sum.WEIGHT, w),
            (Sum.WEIGHT_CORRECT, w),
            (Sum.WEIGHT_TIED, w),
            (Sum.WEIGHTED_LOSS, w * loss),
        ):
            tolerance[which] = rounding * np.sum(_finite(np.abs(terms)))
        tolerance[Sum.WEIGHTED_LOSS] += np.sum(w * error)
        for which, weights, values, off in (
            (Sum.DIFFERENCE, every, p.difference[kept], 0.0),
            (Sum.CHOSEN, every, p.chosen[kept], 0.0),
            (Sum.REJECTED, every, p.rejected[kept], 0.0),
        ):
            # A number's distance from the mean errs by their roundings and by what the numbers are off by; and the mean
            # of the kernel is another one by so much.
            values, total = _finite(values), np.sum(weights) or 1.0
            tolerance[which] = rounding * np.sum(weights * np.abs(values)) + np.sum(weights * off)
            mean_error = tolerance[which] / total
            distance = np.abs(values - np.sum(weights * values) / total)
            wrong = off + mean_error + rounding * np.abs(values)
            tolerance[which + 1] = rounding * expected[which + 1] + np.sum(weights * (2 * distance + wrong) * wrong)
        self._allow_units(*units, expected, tolerance, rounding)
        if compared is not None:
            scaled, its_loss = (
                w / (expected[Sum.WEIGHT_SCALE] or 1.0),
                expected[Sum.WEIGHTED_LOSS] / expected[Sum.WEIGHT],
            )
            wrong = error + rounding * _finite(loss) + tolerance[Sum.WEIGHTED_LOSS] / np.sum(w)
            distance = np.abs(_finite(loss) - its_loss)
            tolerance[Sum.LINKED_SQUARES] = np.sum(scaled**2 * ((2 + rounding) * distance + wrong) * wrong)
            tolerance[Sum.LINKED_SQUARES] += rounding * expected[Sum.LINKED_SQUARES]
        # Losses beyond Real's range are infinite in the kernel, and then the squares about their mean NaN.
        anything = torch.from_numpy(np.isinf(tolerance))
        actual = torch.where(anything, torch.from_numpy(expected), actual.cpu())
        _assert_between(actual, expected, expected - tolerance, expected + tolerance)

    @staticmethod
    def _allow_units(weight, loss, error, expected, tolerance, rounding):
        """How far the sums over units may be off: their weights are positive, and their mean losses off by `error`."""
        v, loss = weight / (expected[Sum.WEIGHT_SCALE] or 1.0), _finite(loss)
        for power, which in enumerate((Sum.WEIGHT_SQUARED, Sum.WEIGHT_CUBED, Sum.WEIGHT_FOURTH, Sum.WEIGHT_FIFTH), 2):
            tolerance[which] = power * rounding * np.sum(v**power)  # v is a sum too, and its power errs by so much more
        total = np.sum(v**2) or 1.0
        tolerance[Sum.SQUARED_WEIGHT_LOSS] = np.sum(v**2 * (rounding * loss + error))
        # A loss's distance from the mean errs by what both are off by; and a power of it by so much more, sum by sum.
        distance = np.abs(loss - np.sum(v**2 * loss) / total)
        wrong = error + rounding * loss + tolerance[Sum.SQUARED_WEIGHT_LOSS] / total
        for weights, power, which in (
            (v**2, 2, Sum.SQUARED_WEIGHT_LOSS_SQUARES),
            (v**3, 1, Sum.CUBED_WEIGHT_LOSS),
            (v**3, 2, Sum.CUBED_WEIGHT_LOSS_SQUARES),
            (v**3, 3, Sum.CUBED_WEIGHT_LOSS_CUBES),
        ):
            grown = (distance + wrong) ** power
            tolerance[which] = np.sum(weights * (grown - distance**power + rounding * grown))


def _finite(values):
    """Infinities and NaN as 0: there the reference's value itself decides."""
    return np.where(np.isfinite(values), values, 0.0)


def _assert_between(actual, expected, lower, upper):
    """NaN exactly where the reference is; else between the bounds rounded to the dtype; else equal to the infinity."""
    actual = actual.cpu()
    assert actual.shape == np.shape(expected)
    expected, lower, upper = (
        torch.from_numpy(np.array(values, dtype=np.float64)) for values in (expected, lower, upper)
    )
    infinite = expected.isinf()
    lower, upper = torch.where(infinite, expected, lower), torch.where(infinite, expected, upper)
    lower, upper = lower.to(actual.dtype), upper.to(actual.dtype)
    right = torch.where(expected.isnan(), actual.isnan(), (lower <= actual) & (actual <= upper))
    if not bool(right.all()):
        i = tuple((~right).nonzero()[0].tolist())
        raise AssertionError(
            f"{int((~right).sum())} of {right.numel()} entries are wrong; at {i}: got {actual[i].item()!r}, "
            f"expected {expected[i].item()!r}, accepted [{lower[i].item()!r}, {upper[i].item()!r}]"
        )


def assert_same_bits(actual, expected, signed_zeros=True):
    """Shapes, dtypes and every bit, but for those of a NaN, and the sign of a zero if that does not matter."""
    for one, other in zip(actual, expected, strict=True):
        one, other = (tensor.as_subclass(torch.Tensor).detach() for tensor in (one, other))
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0, equal_nan=True)
        if signed_zeros:
            assert torch.equal(one.signbit() & ~one.isnan(), other.signbit() & ~other.isnan())
