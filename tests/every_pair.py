"""Every pair of one list: what linear time is held against, and how far from it it may be."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from sample_inputs import array

import prefloss

WIDE = np.longdouble


class EveryPair(NamedTuple):
    """Sums over the pairs; and, of what an entry adds up, the absolute values, and what a rounding of its z would cost each.

    Of a pair's loss both parts count, that of z and that of -z: where flips are corrected one is negative, and what they
    leave may be nothing.
    """

    loss: WIDE
    gradient: np.ndarray
    curvature: np.ndarray
    product: np.ndarray  # of the second derivatives and a direction
    loss_size: WIDE
    gradient_size: np.ndarray
    loss_by_z: WIDE
    gradient_by_z: np.ndarray
    product_size: np.ndarray


def every_pair(
    rewards, ranks, direction=None, *, beta=1.0, margin=0.0, label_smoothing=0.0, flip_rate=0.0,
    center_rewards_coefficient=0.0, ties="skip", wide=None,
):  # fmt: skip
    """The definition, with no thought of speed: in the widest type, but of float32 in float64, which is as far beyond it.

    Options are rounded to the rewards' type, as the package does.
    """
    wide = wide or (WIDE if rewards.dtype == np.float64 else np.float64)
    size, x = rewards.size, rewards.astype(wide)
    beta, margin, pull = (wide(rewards.dtype.type(value)) for value in (beta, margin, center_rewards_coefficient))
    # Flips are smoothing by a negative number.
    wrong = wide(rewards.dtype.type(label_smoothing if flip_rate == 0 else -flip_rate / (1 - 2 * flip_rate)))
    direction = np.zeros(size, wide) if direction is None else direction.astype(wide)
    loss, loss_size, loss_by_z = wide(0), wide(0), wide(0)
    gradient, curvature, product, gradient_size, by_z, product_size = np.zeros((6, size), wide)
    for begin in range(0, size, 256):
        rows = slice(begin, begin + 256)
        first = np.arange(size)[None, :] > np.arange(size)[rows, None]
        kinds = [(ranks[rows, None] < ranks[None, :], margin, wrong)]
        if ties == "half":
            kinds.append(((ranks[rows, None] == ranks[None, :]) & first, wide(0), wide(0.5)))
        for counted, far, smoothed in kinds:
            a, b = np.nonzero(counted)
            if not a.size:
                continue
            w = beta * (x[None, :] - x[rows, None])[a, b] + far
            e = np.exp(-np.abs(w))
            high, low = 1 / (1 + e), e / (1 + e)  # sigma(|w|) and sigma(-|w|)
            right, mistaken = np.where(w < 0, low, high), np.where(w < 0, high, low)
            terms = np.log1p(e) + np.where(w < 0, smoothed, 1 - smoothed) * np.abs(w)
            total = (x[None, :] + x[rows, None])[a, b]
            centring = pull * total * total
            loss += (terms + centring).sum()
            apart = np.abs(1 - smoothed) * (np.log1p(e) + np.maximum(w, 0)) + np.abs(smoothed) * (
                np.log1p(e) + np.maximum(-w, 0)
            )
            loss_size += (apart + centring).sum()
            slope_size = np.abs(1 - smoothed) * right + np.abs(smoothed) * mistaken
            loss_by_z += (slope_size * (np.abs(w) + 2 * np.abs(far))).sum()

            def spread(values, counted=counted):
                """The pairs' values as a matrix: of the better items, and of the worse."""
                matrix = np.zeros(counted.shape, wide)
                matrix[counted] = values
                return matrix

            slope = spread(beta * (right - smoothed))
            centred = spread(2 * pull * total)
            bend = spread(beta * beta * high * low)
            of_centring = spread(np.full(a.size, 2 * pull))
            magnitude = spread(np.abs(beta) * slope_size) + np.abs(centred)
            of_z = spread(np.abs(beta) * high * low * (np.abs(w) + 2 * np.abs(far)))
            for result, values in ((gradient, centred), (gradient_size, magnitude), (by_z, of_z)):
                result[rows] += values.sum(1)
                result += values.sum(0)
            gradient[rows] -= slope.sum(1)
            gradient += slope.sum(0)
            for sign, matrix in ((-1, bend), (1, of_centring)):
                curvature[rows] += matrix.sum(1)
                curvature += matrix.sum(0)
                product[rows] += sign * (matrix @ direction)
                product += sign * (direction[rows] @ matrix)
                product_size[rows] += matrix @ np.abs(direction)
                product_size += np.abs(direction[rows]) @ matrix
    product += curvature * direction
    product_size += curvature * np.abs(direction)
    return EveryPair(loss, gradient, curvature, product, loss_size, gradient_size, loss_by_z, by_z, product_size)


class SumsOfPairs(NamedTuple):
    """What EveryPair calls so."""

    loss: float
    gradient: np.ndarray
    gradient_size: np.ndarray


def sums_of_pairs(
    rewards, ranks, *, beta=1.0, margin=0.0, label_smoothing=0.0, center_rewards_coefficient=0.0, ties="skip"
):
    """The same three in float64, of many thousands of items: each pair is looked at once, in the order of the ranks.

    By torch, whose exp is several times as fast as NumPy's, and so few rows of pairs at a time that a cache holds them.
    """
    order = torch.from_numpy(np.argsort(ranks, kind="stable"))
    x, ranks, size = torch.from_numpy(rewards)[order].double(), torch.from_numpy(ranks)[order], rewards.size
    beta, margin, wrong, pull = (
        float(rewards.dtype.type(number)) for number in (beta, margin, label_smoothing, center_rewards_coefficient)
    )
    loss, (slopes, sizes) = 0.0, torch.zeros((2, size), dtype=torch.float64)
    for begin in range(0, size, 32):
        rows, others = slice(begin, begin + 32), slice(begin, None)
        kinds = [(ranks[rows, None] < ranks[None, others], margin, wrong)]
        if ties == "half":
            kinds.append(((ranks[rows, None] == ranks[None, others]).triu(1), 0.0, 0.5))
        apart, total = x[None, others] - x[rows, None], x[None, others] + x[rows, None] if pull else torch.zeros(())
        for counted, far, share in kinds:
            w = (beta * apart + far).clamp_(-1e308, 1e308)
            terms = (-w.abs()).exp_().log1p_() + (1 - share) * w.relu()
            right = torch.where(counted, beta * (1 - share) * w.sigmoid(), 0.0)
            mistaken = torch.zeros(())
            if share:
                terms += share * (-w).relu()
                mistaken = torch.where(counted, beta * share * (-w).sigmoid(), 0.0)
            centring = torch.where(counted, 2 * pull * total, 0.0) if pull else torch.zeros(())
            loss += torch.where(counted, terms + pull * total * total, 0.0).sum().item()
            size_here = right.abs() + mistaken.abs() + centring.abs()
            slope = right - mistaken
            for dim, here, sign in ((1, rows, -1), (0, others, 1)):
                slopes[here] += (centring + sign * slope).sum(dim)
                sizes[here] += size_here.sum(dim)
    back = torch.argsort(order)
    return SumsOfPairs(loss, array(slopes[back]), array(sizes[back]))


def promise_of_loss(dtype):
    return 1e-13 if dtype == np.float64 else 1e-7


def promise_of_gradient(dtype):
    return 1e-14 if dtype == np.float64 else 2.0**-23


def counts_as_nothing(dtype, size):
    """What an entry may lack in any case: beyond exp(-702), of float64, far pairs count 0."""
    return WIDE(1e-304 * size if dtype == np.float64 else np.finfo(dtype).tiny)


def few_meet_many(ranks):
    """Whether a list is one of those of two ranks whose pairs are visited, in the rewards' type, as in short lists."""
    _, counts = np.unique(ranks, return_counts=True)
    return counts.size == 2 and counts.min() <= 64 and counts.min() ** 2 <= 4 * ranks.size


def share_of_promise(rewards, ranks, **options):
    """The largest error of an entry of the gradient over what is promised, and the loss's."""
    expected = every_pair(rewards, ranks, **options)
    leaf = torch.from_numpy(rewards).requires_grad_()
    given = {"reduction": "sum", "average": "pairs", **options}
    loss = prefloss.bradley_terry_loss_grouped(leaf[None], torch.from_numpy(ranks)[None], **given)
    found = array(torch.autograd.grad(loss, leaf)[0]).astype(WIDE)
    visited = few_meet_many(ranks) and options.get("ties", "skip") == "skip"
    by_z = 2 * np.finfo(rewards.dtype if visited else np.float64).eps  # of what z is computed in
    nothing = counts_as_nothing(rewards.dtype, rewards.size)
    coarse = visited and rewards.dtype == np.float32
    share = 2.0**-22 if coarse else promise_of_gradient(rewards.dtype)
    allowed = share * expected.gradient_size + nothing + by_z * expected.gradient_by_z
    # What exceeds the type may be infinite, and so may what is not far below it.
    held = np.isfinite(allowed) & (np.abs(expected.gradient) + allowed < np.finfo(rewards.dtype).max)
    error = np.abs(found - expected.gradient)[held] / allowed[held]
    of_loss = (2.0**-22 if coarse else promise_of_loss(rewards.dtype)) * expected.loss_size
    of_loss += by_z * expected.loss_by_z + nothing * rewards.size
    is_held = np.abs(expected.loss) + of_loss < np.finfo(rewards.dtype).max
    off = abs(WIDE(loss.item()) - expected.loss) / of_loss if is_held else 0.0
    return float(np.max(error, initial=0.0)), float(off)
