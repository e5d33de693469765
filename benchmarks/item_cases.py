"""What is timed of the losses over items: comparisons by index, groups, long lists."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from unittest.mock import patch

import numpy as np
import peers
import torch
import torch.nn.functional as F
from contenders import (
    OURS_WITH_OPTIONS,
    Contender,
    Expected,
    LossFunction,
    Tolerance,
    as_array,
    check_gradients,
    check_loss,
    step,
)
from torch import Tensor

import prefloss
from prefloss import eager, reference

ITEMS = {10_000_000: 100_000, 2_000_000: 200}  # of so many comparisons by index
GROUPS = {9: 4_096, 64: 512, 512: 32, 4_096: 1}  # of so many items each
# One ranked list: distinct ranks and normal scores unless the kind says otherwise.
SPREAD: dict[str, Callable[[Tensor], Tensor]] = {
    "deviation 30": lambda scores: 30.0 * scores,
    "outlier": lambda scores: torch.cat([torch.tensor([1e30]), scores[1:]]),
    "deviation 1,000": lambda scores: 1e3 * scores,
    "deviation a million": lambda scores: 1e6 * scores,
    "log-normal, deviation 8": lambda scores: (8.0 * scores).exp(),
    "rounded": lambda scores: (30.0 * scores).round(),
}  # these are held against the ordinary list
LISTS = ("list", "list, two ranks", *(f"list, {law}" for law in SPREAD))
LIST_SIZES = (32, 128, 512, 1_024, 2_048, 4_096, 10_000, 30_000, 100_000, 1_000_000)
ONE_BY_ONE, COMPOSED = 30_000, 4_096  # the longest lists whose pairs are visited, and are tensors


def indexed(comparisons: int, generator: torch.Generator) -> dict[str, Contender]:
    """Comparisons of ITEMS items by int64 index; those of few items also merged, which an optimiser does once."""
    items = ITEMS[comparisons]
    scores = torch.randn(items, generator=generator).requires_grad_()
    chosen, rejected = torch.randint(items, (2, comparisons), generator=generator)

    @cache
    def expected() -> Expected:
        array, indices = as_array(scores), (as_array(chosen), as_array(rejected))
        gradient, _ = reference.bradley_terry_gradient_indexed(1.0, array, *indices)
        loss = reference.bradley_terry_loss(*(array[index] for index in indices))
        return Expected(float(loss), (torch.from_numpy(gradient),))

    def ours(scores: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_indexed(scores, chosen, rejected)

    def theirs(scores: Tensor) -> Tensor:
        return -F.logsigmoid(scores[chosen] - scores[rejected]).mean()

    contenders = {
        "prefloss": step(ours, (scores,), expected, OURS_WITH_OPTIONS),
        "eager": step(theirs, (scores,), expected, Tolerance(1e-3, greatest=1e-4)),
    }
    if items < 1000:
        merged = prefloss.merge_comparisons(chosen, rejected)
        contenders["prefloss, merged"] = step(
            lambda scores: prefloss.bradley_terry_loss_indexed(scores, **merged), (scores,), expected, OURS_WITH_OPTIONS
        )
    for name, peer in peers.installed().items():
        contenders[name] = _objective(peer, scores, chosen, rejected, expected)
    return contenders


def _objective(
    peer: peers.Peer, scores: Tensor, chosen: Tensor, rejected: Tensor, expected: Callable[[], Expected]
) -> Contender:
    run = peer(as_array(scores), as_array(chosen), as_array(rejected))

    def check() -> float:
        loss, gradient = run()
        check_gradients((torch.from_numpy(gradient.copy()),), expected(), Tolerance(1e-3, greatest=1e-3))
        return check_loss(torch.tensor(loss), expected().loss, Tolerance(1e-3))

    return Contender(run, check, once=True)


def grouped(size: int, generator: torch.Generator) -> dict[str, Contender]:
    """GROUPS groups of `size` items in random order, against both ways to compose their pairs from tensor operations."""
    groups = GROUPS[size]
    rewards = torch.randn(groups, size, generator=generator).requires_grad_()
    ranks = torch.rand(groups, size, generator=generator).argsort(1)

    @cache
    def expected() -> Expected:
        arrays = as_array(rewards), as_array(ranks)
        loss = reference.bradley_terry_loss_grouped(*arrays)
        gradient = reference.bradley_terry_gradient_grouped(1.0, *arrays)
        return Expected(float(np.asarray(loss)), (torch.from_numpy(gradient),))

    def ours(rewards: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_grouped(rewards, ranks)

    theirs = Tolerance(1e-3, greatest=1e-4)
    return {
        "prefloss": step(ours, (rewards,), expected, Tolerance(1e-7, greatest=3e-7)),
        **{name: step(loss, (rewards,), expected, theirs) for name, loss in composed(ranks, torch.mean).items()},
    }


def composed(ranks: Tensor, average: Callable[[Tensor], Tensor]) -> dict[str, LossFunction]:
    """The two ways to compose the loss of all pairs of (groups, size), all of different rank, from tensor operations."""
    size = ranks.shape[1]
    first, second = torch.triu_indices(size, size, 1)

    def by_index(rewards: Tensor) -> Tensor:
        best_first = rewards.gather(1, ranks.argsort(1))
        return average(-F.logsigmoid(best_first[:, first] - best_first[:, second]))

    def by_mask(rewards: Tensor) -> Tensor:
        preferred = ranks[:, :, None] < ranks[:, None, :]
        losses = -F.logsigmoid(rewards[:, :, None] - rewards[:, None, :])
        return average(
            torch.where(preferred, losses, 0.0).sum((1, 2)) / (first.numel() if average is torch.mean else 1)
        )

    return {"eager, index form": by_index, "eager, mask form": by_mask}


def lists(kind: str, size: int, generator: torch.Generator) -> dict[str, Contender]:
    """All pairs of one list, summed, against sorting as many numbers, and short ones against visiting the pairs."""
    scores, ranks = torch.randn(size, generator=generator), torch.randperm(size, generator=generator)
    if kind == "list, two ranks":
        ranks = (torch.rand(size, generator=generator) < 0.5).long()
    law = SPREAD.get(kind.removeprefix("list, "))
    if law is not None:
        scores = law(scores)
    leaf, numbers = scores[None].clone().requires_grad_(), scores.clone()

    def ours(rewards: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_grouped(rewards, ranks[None], reduction="sum", average="pairs")

    def one_by_one(rewards: Tensor) -> Tensor:
        with patch.object(eager, "LARGE_GROUP", 2**31):
            return ours(rewards)

    def contender(loss: LossFunction, tolerance: float) -> Contender:
        """The reference is a sample of the items, each with all its pairs."""

        def run() -> Tensor:
            leaf.grad = None
            value = loss(leaf)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        def check() -> float:
            run()
            assert leaf.grad is not None
            for item in torch.randint(size, (20,), generator=generator).tolist():
                others = scores.double() - scores[item].double()
                terms = torch.sigmoid(others) * (ranks[item] < ranks) - torch.sigmoid(-others) * (ranks[item] > ranks)
                error = abs(leaf.grad[0, item].item() + terms.sum().item())
                assert error <= tolerance * terms.abs().sum().item(), f"entry {item} is off by {error}"
            return 0.0

        return Contender(run, check)

    def sort() -> Tensor:
        return torch.sort(numbers).values

    def check_sort() -> float:
        assert (sort().diff() >= 0).all()
        return 0.0

    contenders = {"prefloss": contender(ours, 2.0**-23), "torch.sort": Contender(sort, check_sort)}
    if law is not None:
        contenders["ordinary list"] = lists("list", size, generator)["prefloss"]
    if kind == "list" and size <= ONE_BY_ONE:
        contenders["one by one"] = contender(one_by_one, 2.0**-23)
    if kind == "list" and size <= COMPOSED:
        contenders |= {name: contender(loss, 1e-4) for name, loss in composed(ranks[None], torch.sum).items()}
    return contenders
