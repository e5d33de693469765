"""What a call is made of: the tensors with one entry a pair, and the options that are numbers. Mirrors csrc/pairs.h."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_compiling

# How the pairs lie in the rewards (csrc/bindings/paired.cpp): in two tensors, or stacked in one.
PAIRED, HALVES, INTERLEAVED = 0, 1, 2
MEAN, SUM, NONE = 0, 1, 2
REDUCTIONS = {"mean": MEAN, "sum": SUM, "none": NONE}


class Numbers(NamedTuple):
    """The options that are numbers, in the order of csrc/pairs.h. By identity, the defaults tell what is not given."""

    beta: float = 1.0
    margin: float = 0.0
    target: float = 1.0
    label_smoothing: float = 0.0
    center_rewards_coefficient: float = 0.0

    def for_operator(self) -> tuple[Tensor | None, Numbers]:
        """The numbers as an operator takes them. Under a compiler those that are given may change from call to call: they are a
        tensor then, so that a new value does not mean a new graph."""
        if not is_compiling() or all(mine is default for mine, default in zip(self, DEFAULTS, strict=True)):
            return None, self
        one = torch.ones((), dtype=torch.float64, device="cpu")
        return torch.stack([one * number for number in self]), DEFAULTS

    def as_given(
        self, reduction: str | None, denominator: Tensor | float | None, return_stats: bool
    ) -> tuple[Any, ...]:
        """The options of a call for `_core.paired_call` and its like, with the flip rate in the label smoothing."""
        centring = self.center_rewards_coefficient
        return self.beta, self.label_smoothing, None, centring, reduction, denominator, return_stats


DEFAULTS = Numbers()


class Pairs(NamedTuple):
    """The tensors with one entry a pair. `rejected` is None where `chosen` holds both, stacked."""

    chosen: Tensor
    rejected: Tensor | None
    margin: Tensor | None = None
    weight: Tensor | None = None
    target: Tensor | None = None

    @classmethod
    def of(
        cls,
        chosen: Tensor,
        rejected: Tensor | None,
        margin: Tensor | float | None,
        weight: Tensor | None,
        target: Tensor | float | None,
    ) -> Pairs:
        """Without the margin and the target that are numbers: those are among the `Numbers`."""
        margin = margin if isinstance(margin, Tensor) else None
        target = target if isinstance(target, Tensor) else None
        return cls(chosen, rejected, margin, weight, target)

    def with_numbers(self, numbers: Numbers) -> tuple[Tensor | float | None, Tensor | None, Tensor | float | None]:
        """Margin, weight and target, with the numbers that stand for tensors."""
        margin = numbers.margin if self.margin is None else self.margin
        return margin, self.weight, numbers.target if self.target is None else self.target


def accumulation_dtype(rewards: torch.dtype) -> torch.dtype:
    """The loss's dtype: float64 for float64 rewards, float32 for all others."""
    return torch.float64 if rewards is torch.float64 else torch.float32


def unstack(rewards: Tensor, layout: int) -> tuple[Tensor, Tensor]:
    """The chosen and the rejected rewards of one tensor, as views."""
    if layout == INTERLEAVED:
        return rewards[0::2], rewards[1::2]
    half = rewards.shape[0] // 2
    return rewards[:half], rewards[half:]


def stack(chosen: Tensor, rejected: Tensor, layout: int) -> Tensor:
    """The inverse of `unstack`."""
    if layout == INTERLEAVED:
        return torch.stack((chosen, rejected), 1).reshape(2 * chosen.shape[0], *chosen.shape[1:])
    return torch.cat((chosen, rejected))
