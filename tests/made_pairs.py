"""Pairs for the tests of `prefloss.evaluate`, and its sums of units done the slow way: dense matrices, an entry a pair."""

from __future__ import annotations

import numpy as np


def made_pairs(pairs, clusters=None, seed=0):
    """{"chosen", "rejected"}, and "cluster" of unequal sizes whose pairs resemble each other."""
    random = np.random.default_rng(seed)
    difference = 0.8 + 1.5 * random.normal(size=pairs)
    if clusters is None:
        return {"chosen": difference, "rejected": np.zeros(pairs)}
    share = random.gamma(0.7, size=clusters)
    cluster = np.r_[np.arange(clusters), random.choice(clusters, pairs - clusters, p=share / share.sum())]
    random.shuffle(cluster)
    difference += random.normal(size=clusters)[cluster]
    return {"chosen": difference, "rejected": np.zeros(pairs), "cluster": cluster}


def losses(difference):
    return np.logaddexp(0.0, -difference)


def dense_cr2(values, weight, cluster, group=None, shares=None):
    """(value, standard error, degrees of freedom) of a mean, or of the mean of groups' means, from matrices of pairs by pairs.

    Weighted least squares on indicators of the groups with Bell & McCaffrey's (2002) adjustment by the inverse symmetric
    square root, and Imbens & Kolesar's (2016) degrees of freedom for residuals that are perfectly correlated within clusters.
    """
    pairs = len(values)
    group = np.zeros(pairs, dtype=int) if group is None else group
    shares = np.ones(1) if shares is None else shares
    root = np.sqrt(weight)
    design = root[:, None] * (group[:, None] == np.arange(len(shares)))
    inverse = np.linalg.inv(design.T @ design)
    hat = design @ inverse @ design.T
    residual = root * values - hat @ (root * values)
    towards = design @ inverse @ shares
    variance, columns, working = 0.0, [], np.zeros((pairs, pairs))
    for each in np.unique(cluster):
        rows = cluster == each
        eigenvalues, vectors = np.linalg.eigh(np.eye(rows.sum()) - hat[np.ix_(rows, rows)])
        adjusted = vectors @ np.diag(eigenvalues**-0.5) @ vectors.T @ towards[rows]
        variance += (adjusted @ residual[rows]) ** 2
        columns.append((np.eye(pairs) - hat)[:, rows] @ adjusted)
        working += np.outer(np.where(rows, root, 0), np.where(rows, root, 0))
    m = np.array(columns) @ working @ np.array(columns).T
    return towards @ (root * values), np.sqrt(variance), np.trace(m) ** 2 / np.trace(m @ m)
