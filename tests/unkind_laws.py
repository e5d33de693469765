"""Unkind laws of scores, with unkind ranks and options, for the tests of long lists."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import RUNS_ON_HOST
from every_pair import WIDE

IN_LINEAR_TIME = [
    pytest.mark.skipif(RUNS_ON_HOST, reason="the CUDA kernels visit each pair of lists as short as these"),
    pytest.mark.skipif(
        np.finfo(WIDE).nmant <= 52, reason="long double is no wider than float64 here: it is no measure of it"
    ),
]

DTYPES = {"float32": np.float32, "float64": np.float64}
LAWS = {
    "normal": lambda random, n: random.normal(size=n),
    "deviation 30": lambda random, n: 30 * random.normal(size=n),
    "deviation 300": lambda random, n: 300 * random.normal(size=n),
    "deviation 1e7": lambda random, n: 1e7 * random.normal(size=n),
    "whole numbers": lambda random, n: np.round(30 * random.normal(size=n)),
    "few whole numbers": lambda random, n: np.round(3 * random.normal(size=n)),
    "powers of two": lambda random, n: random.choice([-1, 1], n) * 2.0 ** random.integers(-20, 30, n),
    "Cauchy": lambda random, n: random.standard_cauchy(n),
    "logarithms normal": lambda random, n: np.exp(6 * random.normal(size=n)),
    "offset": lambda random, n: 1e6 + random.normal(size=n),
    "outlier": lambda random, n: np.r_[1e30, random.normal(size=n - 1)],
    "outliers": lambda random, n: np.where(random.random(n) < 0.05, 1e10, 1.0) * random.normal(size=n),
    "two values": lambda random, n: random.choice([0.0, 1.99999], n),
    "two values far apart": lambda random, n: random.choice([-1e8, 1e8], n),
    "equal": lambda random, n: np.full(n, 3.3),
    "ladder": lambda random, n: -12.3456 * np.arange(n),
    "tiny": lambda random, n: 1e-30 * random.normal(size=n),
    "edges of cells": lambda random, n: random.integers(-9, 9, n) * 2.0 - 1e-7 * (random.random(n) < 0.5),
    "half of them wide": lambda random, n: np.where(random.random(n) < 0.5, 1e5, 1.0) * random.normal(size=n),
    "clusters": lambda random, n: random.choice([-60.0, 0.0, 1e-3, 9.0, 300.0], n) + 1e-4 * random.normal(size=n),
    "corners of cells": lambda random, n: np.where(np.arange(n) < n // 2, random.choice([2, 6, 30]) - 1e-9, 0.0),
}
RANKS = {
    "random": lambda random, x: random.permutation(x.size),
    "as the scores": lambda random, x: (-x).argsort().argsort(),
    "against the scores": lambda random, x: x.argsort().argsort(),
    "as the scores and noise": lambda random, x: (
        (-(x + 0.3 * np.std(x) * random.normal(size=x.size))).argsort().argsort()
    ),
    "seven": lambda random, x: random.integers(0, 7, x.size),
    "two": lambda random, x: (random.random(x.size) < 0.3).astype(int),
    "one and the others": lambda random, x: np.r_[0, np.ones(x.size - 1, int)],
    "blocks": lambda random, x: np.arange(x.size) // 90,
}
OPTIONS = {
    "default": {},
    "margin": {"margin": 0.7},
    "margin of 50": {"margin": 50.0},
    "margin of -20": {"margin": -20.0},
    "beta": {"beta": 0.3},
    "negative beta": {"beta": -2.5},
    "tiny beta": {"beta": 1e-5},
    "large beta": {"beta": 30.0},
    "smoothing": {"label_smoothing": 0.1},
    "flips": {"flip_rate": 0.2},
    "centring": {"center_rewards_coefficient": 0.01},
    "all": {"beta": 0.3, "margin": -0.7, "label_smoothing": 0.2, "center_rewards_coefficient": 0.1},
}


def made(law, ranks, dtype, size, seed):
    """A list whose items lie in any order."""
    random = np.random.default_rng(seed)
    scores = LAWS[law](random, size).astype(dtype)
    order, places = RANKS[ranks](random, scores.astype(np.float64)), random.permutation(size)
    return scores[places], order[places]


def cases_of(law):
    """Each law with each option; of ranks, ties and dtypes such that any two values of any two of the five meet in some law."""
    i, ranks = list(LAWS).index(law), list(RANKS)
    for j, name in enumerate(OPTIONS):
        ties, dtype = ("skip", "half")[(i + j // 2) % 2], ("float32", "float64")[(i // 2 + j) % 2]
        yield ranks[(i + j) % len(ranks)], name, ties, dtype
