"""Train a classifier on an imbalanced set for its AUC: the loss over all pairs of a positive and a negative, against cross-entropy.

The AUC is the share of those pairs that the scores put in the right order (Hanley & McNeil 1982). Its logistic surrogate, the
mean of -log sigma(positive - negative) over all of them, is the grouped Bradley-Terry loss of one group with two ranks: no
pairs are sampled, and none are put into memory. The set is made here: many weak features, few positives of two kinds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import prefloss

Loss = Callable[[Tensor, Tensor], Tensor]


def made(examples: int, positives: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(features, labels): (N, 21) float32, the last one 1, and bool. A positive is shifted, a little or a lot, in two features."""
    labels = torch.rand(examples, generator=generator) < positives
    features = torch.randn(examples, 21, generator=generator)
    far = torch.rand(examples, generator=generator) < 0.3
    features[:, 0] += labels * torch.where(far, 4.0, 0.3)
    features[:, 1] += labels * torch.where(far, -3.0, 0.6)
    features[:, -1] = 1.0  # cross-entropy needs the intercept; pairs do not feel it
    return features, labels


def all_pairs(scores: Tensor, labels: Tensor) -> Tensor:
    return prefloss.bradley_terry_loss_grouped(scores[None], relevance=labels[None])


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(scores, labels.float())


def weighted_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Positives and negatives have the same weight in all."""
    return F.binary_cross_entropy_with_logits(scores, labels.float(), pos_weight=(~labels).sum() / labels.sum())


def auc(scores: Tensor, labels: Tensor) -> float:
    """The accuracy of `PairStats` over all pairs, ties half."""
    _, stats = prefloss.bradley_terry_loss_grouped(scores.detach()[None], relevance=labels[None], return_stats=True)
    return stats.accuracy + stats.tie_rate / 2


def train(features: Tensor, labels: Tensor, loss: Loss, *, steps: int) -> tuple[Tensor, float]:
    """A linear classifier's weights, by L-BFGS over the whole set, and the seconds that it took."""
    weights = torch.zeros(features.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=steps, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimiser.zero_grad()
        value = loss(features @ weights, labels) + 1e-4 * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    started = time.perf_counter()
    optimiser.step(step)  # type: ignore[no-untyped-call]
    return weights.detach(), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=4000, help="to train on, and as many to test (default: 4000)")
    parser.add_argument("--positives", type=float, default=0.02, help="their share (default: 0.02)")
    parser.add_argument("--steps", type=int, default=60, help="of L-BFGS (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(given.seed)
    features, labels = made(given.examples, given.positives, generator)
    unseen, truth = made(10 * given.examples, given.positives, generator)
    print(f"{len(labels)} examples, {int(labels.sum())} positive: {int(labels.sum()) * int((~labels).sum())} pairs\n")
    print(f"{'':34}  AUC, trained on  AUC, unseen  seconds")
    for name, loss in (
        ("all pairs, prefloss", all_pairs),
        ("cross-entropy", cross_entropy),
        ("cross-entropy, classes balanced", weighted_cross_entropy),
    ):
        weights, seconds = train(features, labels, loss, steps=given.steps)
        print(
            f"{name:34}  {auc(features @ weights, labels):15.4f}  {auc(unseen @ weights, truth):11.4f}  {seconds:7.2f}"
        )


if __name__ == "__main__":
    main()
