"""One evaluation of the objective, value and gradient, as other packages for leaderboards have it: where they are installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# (scores, chosen_index, rejected_index) to a call that returns the mean loss and its gradient.
Peer = Callable[[NDArray[Any], NDArray[Any], NDArray[Any]], Callable[[], tuple[float, NDArray[Any]]]]


def choix(
    scores: NDArray[Any], chosen: NDArray[Any], rejected: NDArray[Any]
) -> Callable[[], tuple[float, NDArray[Any]]]:
    """A loop over the comparisons in Python (choix 0.4: choix/opt.py)."""
    data = list(zip(chosen.tolist(), rejected.tolist(), strict=True))
    functions, params = importlib.import_module("choix.opt").PairwiseFcts(data, 0.0), scores.astype(np.float64)
    return lambda: (functions.objective(params) / len(data), functions.gradient(params) / len(data))


def arena_rank(
    scores: NDArray[Any], chosen: NDArray[Any], rejected: NDArray[Any]
) -> Callable[[], tuple[float, NDArray[Any]]]:
    """JAX, over merged comparisons, as its PairDataset has them (arena-rank 0.1: arena_rank/models/bradley_terry.py)."""
    jax = importlib.import_module("jax")
    loss = importlib.import_module("arena_rank.models.bradley_terry").BradleyTerry.loss_function
    items = scores.shape[0]
    keys, counts = np.unique(chosen.astype(np.int64) * items + rejected, return_counts=True)
    data = {
        "pairs": jax.numpy.asarray(np.stack((keys // items, keys % items), 1).astype(np.int32)),
        "outcomes": jax.numpy.ones(keys.size),
        "opt_weights": jax.numpy.asarray(counts.astype(np.float64)),
    }
    params = {"ratings": jax.numpy.asarray(scores.astype(np.float64))}
    evaluate = jax.jit(jax.value_and_grad(loss))

    def run() -> tuple[float, NDArray[Any]]:
        value, gradient = evaluate(params, data)
        return float(value), np.asarray(gradient["ratings"])

    return run


# By the module that it needs.
PEERS: dict[str, Peer] = {"choix": choix, "arena_rank": arena_rank}


def installed() -> dict[str, Peer]:
    return {name: peer for name, peer in PEERS.items() if importlib.util.find_spec(name)}
