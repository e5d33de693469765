"""A recommender with the BPR loss
===============================

A matrix-factorisation recommender trained with the BPR loss (Rendle et al. 2009), beside the same loop in plain torch.

A user has picked some items and not the others. BPR samples pairs (picked, not picked) of a user and maximises the probability
that the first scores higher: the Bradley-Terry loss. The feedback is made here, from hidden factors, so that the best
possible ranking is known too.
"""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import prefloss

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Feedback:
    """What users picked, (users, items) bool: to train on, and held out. `affinity` is what they picked by."""

    training: Tensor
    held_out: Tensor
    affinity: Tensor


def made(users: int, items: int, factors: int, seed: int) -> Feedback:
    """Each user picks with the odds of a hidden affinity, popular items more often; a fifth of the picks is held out."""
    generator = torch.Generator().manual_seed(seed)
    tastes, traits = torch.randn(users, factors, generator=generator), torch.randn(items, factors, generator=generator)
    affinity = tastes @ traits.T / factors**0.5 * 2.0 + 0.7 * torch.randn(items, generator=generator) - 3.0
    picked = torch.rand(users, items, generator=generator) < torch.sigmoid(affinity)
    held_out = picked & (torch.rand(users, items, generator=generator) < 0.2)
    return Feedback(picked & ~held_out, held_out, affinity)


class Recommender(torch.nn.Module):
    """A user's score of an item: the product of their factors, and how popular the item is."""

    def __init__(self, users: int, items: int, factors: int) -> None:
        super().__init__()
        self.user = torch.nn.Embedding(users, factors)
        self.item = torch.nn.Embedding(items, factors)
        self.popularity = torch.nn.Embedding(items, 1)
        for table in (self.user, self.item):
            torch.nn.init.normal_(table.weight, std=0.1)
        torch.nn.init.zeros_(self.popularity.weight)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """One score for each user and item: (B,) of (B,)."""
        scores: Tensor = (self.user(users) * self.item(items)).sum(-1) + self.popularity(items).squeeze(-1)
        return scores

    def all_scores(self) -> Tensor:
        return self.user.weight @ self.item.weight.T + self.popularity.weight.T


def train(
    feedback: Feedback, loss: Loss, *, factors: int, epochs: int, batch: int, seed: int
) -> tuple[Recommender, float]:
    """The recommender, and the seconds that training took."""
    torch.manual_seed(seed)
    users, items = feedback.training.shape
    model = Recommender(users, items, factors)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.02)
    picks = feedback.training.nonzero()
    started = time.perf_counter()
    for _ in range(epochs):
        for part in torch.randperm(len(picks)).split(batch):  # type: ignore[no-untyped-call]
            user, picked = picks[part].T
            other = torch.randint(items, user.shape)
            counts = ~feedback.training[user, other]  # not one that the user picked as well
            user, picked, other = user[counts], picked[counts], other[counts]
            optimiser.zero_grad()
            loss(model(user, picked), model(user, other)).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model, time.perf_counter() - started


def auc(scores: Tensor, feedback: Feedback) -> float:
    """The share of pairs (held out, not picked) of a user in the right order; the mean over users who have both."""
    shares = []
    for row, held_out, trained_on in zip(scores, feedback.held_out, feedback.training, strict=True):
        others = ~held_out & ~trained_on
        if held_out.any() and others.any():
            shares.append((row[held_out][:, None] > row[others]).float().mean())
    return float(torch.stack(shares).mean())


def bpr(picked: Tensor, other: Tensor) -> Tensor:
    return prefloss.bradley_terry_loss(picked, other)


def plain_torch(picked: Tensor, other: Tensor) -> Tensor:
    return -F.logsigmoid(picked - other).mean()


def main() -> None:
    text = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--factors", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name, low, high in (
        ("users", 1, 10**6),
        ("items", 2, 10**6),
        ("factors", 1, 10**4),
        ("epochs", 1, 10**6),
        ("batch", 1, 10**9),
        ("seed", 0, 2**63 - 1),
    ):
        if not low <= (number := getattr(given, name)) <= high:
            parser.error(f"--{name} must be from {low} to {high}, got {number}")
    if given.users * given.items > 10**8:
        parser.error(f"--users times --items must be at most 100,000,000, got {given.users * given.items:,}")
    feedback = made(given.users, given.items, given.factors, given.seed)
    how = {"factors": given.factors, "epochs": given.epochs, "batch": given.batch, "seed": given.seed}
    if not (feedback.training.any() and feedback.held_out.any()):
        parser.error("nobody picked enough to train and to measure: more --users or --items")
    popularity = feedback.training.float().mean(0).expand(feedback.training.shape)
    print(f"{int(feedback.training.sum())} picks of {given.users} users among {given.items} items to train on\n")
    print(f"{'':34}  held-out AUC  seconds")
    print(f"{'the most picked first':34}  {auc(popularity, feedback):12.4f}")
    for name, loss in (("BPR, prefloss.bradley_terry_loss", bpr), ("BPR, -F.logsigmoid(a - b).mean()", plain_torch)):
        model, seconds = train(feedback, loss, **how)
        print(f"{name:34}  {auc(model.all_scores().detach(), feedback):12.4f}  {seconds:7.2f}")
    print(f"{'what the picks were drawn by':34}  {auc(feedback.affinity, feedback):12.4f}")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the script, as it ends other commands
    main()
