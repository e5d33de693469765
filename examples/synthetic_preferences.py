"""A world of preferences in which the expected loss is known, and what intervals from samples of it are worth.

Every prompt has some responses, every pair of a prompt's responses is equally likely to be asked about, and the answer
is drawn from a Bradley-Terry model whose rewards are known. So the expected loss of any head is a sum over all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import prefloss

WIDTH, PROMPTS, RESPONSES = 48, 1000, 10  # 45 pairs a prompt
EXPERTS = 0.15  # share of the prompts that only experts are asked about
EXPERTS_COLLECTED = 0.9  # their share of the pairs, where a collection is narrow
STUDY_SIZES = (100, 400, 1600, 6400, 25600)  # each step should halve the interval


@dataclass(frozen=True)
class Collection:
    """Answers of people: rows of `World.features` by preference, and each pair's density ratio (population to sample)."""

    chosen: Tensor
    rejected: Tensor
    ratio: Tensor

    def halves(self) -> tuple[Collection, Collection]:
        """The first to train on, the second to hold out."""
        first, second = zip(*(column.chunk(2) for column in (self.chosen, self.rejected, self.ratio)), strict=True)
        return Collection(*first), Collection(*second)


class StudyRow(NamedTuple):
    """95 % intervals from `pairs` pairs: means over many collections."""

    pairs: int
    expected_loss: float
    loss: float
    half_width: float
    coverage: float  # share of the intervals that hold the expected loss
    effective_sample_size: float


class World:
    """All prompts, responses, pairs and preference probabilities, drawn from the seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        responses = PROMPTS * RESPONSES
        self.features = torch.randn(responses, WIDTH, generator=self.generator)
        people, experts = torch.randn(2, WIDTH, generator=self.generator) / math.sqrt(WIDTH)
        # The tanh is beyond any linear head, so that the least loss a head can reach is not the least there is.
        curve = 0.7 * torch.tanh(2.0 * self.features[:, 0] * self.features[:, 1])
        self.by_experts = torch.arange(responses) < EXPERTS * responses
        # What is known of a prompt before anybody answers, of (PROMPTS, 4): experts' prompts are about something else.
        topics = torch.randn(PROMPTS, 4, generator=torch.Generator().manual_seed(seed))
        self.topics = topics + 1.5 * self.by_experts[::RESPONSES, None]
        true_reward = curve + torch.where(self.by_experts, 1.5 * self.features @ experts, self.features @ people)

        first, second = torch.combinations(torch.arange(RESPONSES)).T
        offset = RESPONSES * torch.arange(PROMPTS)[:, None]
        self.first, self.second = (offset + first).flatten(), (offset + second).flatten()
        self.expert_pairs = int(self.by_experts[self.first].sum())  # they come first
        self.preference = torch.sigmoid(true_reward[self.first].double() - true_reward[self.second].double())
        self.least_loss = self._expected_loss(true_reward)

    def __len__(self) -> int:
        return len(self.first)

    def rewards(self, head: Tensor) -> Tensor:
        return self.features @ head.detach()

    def expected_loss(self, head: Tensor) -> float:
        """The exact expectation over pairs and answers of a head's loss, head being (WIDTH,)."""
        return self._expected_loss(self.rewards(head))

    def _expected_loss(self, rewards: Tensor) -> float:
        # E[-log sigma(+-z)] over the answer is the loss with the known probability as the target; over pairs, the mean.
        rewards = rewards.double()
        return prefloss.bradley_terry_loss(rewards[self.first], rewards[self.second], target=self.preference).item()

    def expected_accuracy(self, head: Tensor) -> float:
        rewards = self.rewards(head)
        agree = torch.where(rewards[self.first] > rewards[self.second], self.preference, 1.0 - self.preference)
        return agree.mean().item()

    def collect(self, pairs: int, *, narrow: bool = False) -> Collection:
        """Independent draws: uniform over all pairs, or, if narrow, mostly of those that experts are asked about."""
        if narrow:
            by_experts = torch.rand(pairs, generator=self.generator) < EXPERTS_COLLECTED
            share = self.expert_pairs / len(self)
            ratio = torch.where(by_experts, share / EXPERTS_COLLECTED, (1.0 - share) / (1.0 - EXPERTS_COLLECTED))
            size = torch.where(by_experts, self.expert_pairs, len(self) - self.expert_pairs)
            start = torch.where(by_experts, 0, self.expert_pairs)
        else:
            ratio, start, size = torch.ones(pairs), torch.zeros(pairs), torch.tensor(len(self))
        uniform = torch.rand(pairs, generator=self.generator, dtype=torch.float64)
        pair = (start + uniform * size).long()
        first_wins = torch.rand(pairs, generator=self.generator, dtype=torch.float64) < self.preference[pair]
        first, second = self.first[pair], self.second[pair]
        return Collection(torch.where(first_wins, first, second), torch.where(first_wins, second, first), ratio)

    def study(
        self, head: Tensor, repeats: int, *, narrow: bool, weighted: bool, advance: Callable[[], object]
    ) -> list[StudyRow]:
        """Collect anew `repeats` times at each size: how wide are the intervals, and how often do they hold the truth?"""
        rewards, expected = self.rewards(head), self.expected_loss(head)
        table = []
        for size in STUDY_SIZES:
            found = np.empty((repeats, 4))
            for repeat in range(repeats):
                sample = self.collect(size, narrow=narrow)
                weight = sample.ratio if weighted else None
                _, stats = prefloss.bradley_terry_loss(
                    rewards[sample.chosen], rewards[sample.rejected], weight=weight, return_stats=True
                )
                low, high = stats.confidence_interval(0.95)
                holds = low <= expected <= high
                found[repeat] = stats.loss, (high - low) / 2, holds, stats.effective_sample_size
            table.append(StudyRow(size, expected, *found.mean(axis=0).tolist()))
            advance()
        return table
