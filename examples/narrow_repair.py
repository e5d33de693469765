"""A narrow collection, found out and repaired after the fact: by groups of known shares, and by weights that a classifier makes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from synthetic_preferences import EXPERTS, RESPONSES, Collection, World
from torch import Tensor

import prefloss

SHARES = {"experts": EXPERTS, "others": 1.0 - EXPERTS}  # of the population


class Repairs(NamedTuple):
    """What held-out pairs of a narrow collection say about a head."""

    by_group: prefloss.Evaluation
    reweighted: prefloss.Estimate  # shares of the groups known
    classified: prefloss.Evaluation  # shares unknown, prompts of the population known


def repairs(world: World, training: Collection, held_out: Collection, head: Tensor) -> Repairs:
    """The groups' shares are known, or else only what prompts the population asks: then a classifier tells the two apart."""
    rewards = world.rewards(head)
    chosen, rejected = rewards[held_out.chosen], rewards[held_out.rejected]
    experts = world.by_experts[held_out.chosen].numpy()
    by_group = prefloss.evaluate(chosen, rejected, group=np.where(experts, "experts", "others"))
    weight = density_ratio(
        collected=_prompt_features(world, training),
        population=_prompt_features(world, world.collect(len(training.chosen))),
        at=_prompt_features(world, held_out),
    )
    return Repairs(by_group, by_group.reweighted(SHARES).loss, prefloss.evaluate(chosen, rejected, weight=weight))


def _prompt_features(world: World, sample: Collection) -> NDArray[Any]:
    features: NDArray[Any] = world.topics[sample.chosen // RESPONSES].numpy()
    return features


def density_ratio(collected: NDArray[Any], population: NDArray[Any], at: NDArray[Any]) -> NDArray[Any]:
    """(n,), population over collection, at the rows of `at`: the odds of a classifier that tells the one's rows from the other's.

    Bickel, Bruckner & Scheffer 2007 ("Discriminative learning for differing training and test distributions").
    """
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped] # takes a second, and few runs need it

    rows = np.concatenate([collected, population])
    of_population = np.repeat([0, 1], [len(collected), len(population)])
    log_odds = LogisticRegression(max_iter=1000).fit(rows, of_population).decision_function(at)
    ratio: NDArray[Any] = np.exp(log_odds) * len(collected) / len(population)
    return ratio


def print_repairs(found: Repairs, expected: float) -> None:
    """Which group the collection is of, and what each repair makes of it."""
    print("\nWhat prefloss.evaluate finds in the held-out pairs of that collection\n")
    print(f"{'':36}{'pairs':>7}{'loss':>9}{'95 % interval':>18}{'collected':>11}{'population':>12}")
    for label, group in found.by_group.groups.items():
        low, high = group.loss.interval()
        shares = f"{found.by_group.shares[label]:10.0%}{SHARES[str(label)]:12.0%}"
        print(f"  {label:34}{group.pairs:7}{group.loss.value:9.4f}  [{low:.4f}, {high:.4f}]{shares}")
    for name, loss in (
        ("reweighted to known shares", found.reweighted),
        ("weights from a classifier", found.classified.loss),
    ):
        low, high = loss.interval()
        verdict = "holds the expected loss" if low <= expected <= high else "MISSES the expected loss"
        print(f"{name:36}{loss.pairs:7}{loss.value:9.4f}  [{low:.4f}, {high:.4f}]  {verdict}")
    weights = found.classified.weights
    assert weights is not None
    print(
        "\nThe groups differ, and their shares are not the population's. Known shares repair the average (reweighted). Where "
        "nobody\nknows them, weights from a classifier of prompts may do: here they leave "
        f"{weights.effective_size:.0f} effective pairs and give {found.classified.loss.value:.4f} for {expected:.4f}."
    )
