"""All pairs of a group as operators: prefloss::grouped_forward, and its first and second derivative. Their kernels:
csrc/bindings/grouped.cpp.

Forward keeps each item's slope, which is dear to compute and as small as the rewards; backward multiplies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import _core
from ..pairs import NONE, Numbers, accumulation_dtype
from ..stats import Sum
from ..torch_internals import asserts
from .operator import Operator
from .paired import NUMBERS, as_tensor

# Rewards are (..., items), ranks too, weight and filled (..., groups): the first dimensions are those of a vmap.
_GROUPS = (
    "Tensor rewards, Tensor ranks, Tensor? group_sizes, Tensor? weight, Tensor? filled, Tensor? denominator, Tensor? numbers, "
    f"{NUMBERS}, bool half_ties, bool over_pairs, int reduction, bool return_stats, SymInt group_size"
)
# CUDA kernels take ranks as `order_keys`; a build for tests runs them over the tensors of the CPU.
KEYS_ALONE: bool = _core.cpu_runs_cuda_kernels


def _count(rewards: Tensor, group_sizes: Tensor | None, group_size: int) -> int:
    """The number of groups of a row."""
    return rewards.shape[-1] // group_size if group_sizes is None else group_sizes.shape[0]


def _forward_fake(rewards: Tensor, ranks: Tensor, group_sizes: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    reduction, _, group_size = arguments[-3:]
    rows, dtype = rewards.shape[:-1], accumulation_dtype(rewards.dtype)
    factors = rewards.new_empty((*rows, _count(rewards, group_sizes, group_size)), dtype=torch.float64)
    loss = rewards.new_empty(factors.shape if reduction == NONE else rows, dtype=dtype)
    return loss, rewards.new_empty(rewards.shape, dtype=dtype), factors, factors.new_empty((*rows, len(Sum)))


def _forward_derivative(ctx: Any, grad: Tensor | None, *_: object) -> Sequence[Tensor | None]:
    if grad is None:
        return (None,)
    return (cast(Tensor, grouped_backward(grad, *ctx.saved_tensors, *ctx.options)),)


grouped_forward = Operator(
    f"grouped_forward({_GROUPS}) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_forward_fake,
    save=lambda tensors, options, outputs: (*outputs[1:3], *tensors),
    derivative=_forward_derivative,
    constant=(1, 2, 3),
    shared=("group_sizes", "numbers"),
)


def _backward_derivative(ctx: Any, direction: Tensor | None) -> Sequence[Tensor | None]:
    if direction is None:
        return (None,)
    along, rewards = grouped_double_backward(direction, *ctx.saved_tensors, *ctx.options)
    return (along if ctx.options[-3] == NONE else along.sum(-1)).to(ctx.saved_tensors[0].dtype), None, None, rewards


grouped_backward = Operator(
    f"grouped_backward(Tensor grad, Tensor slopes, Tensor factors, {_GROUPS}) -> Tensor",
    fake=lambda grad, slopes, factors, rewards, *_: rewards.new_empty(rewards.shape),
    save=lambda tensors, options, output: tensors,
    derivative=_backward_derivative,
    shared=("group_sizes", "numbers"),
)


def _third_derivative(ctx: Any, *_: object) -> Sequence[Tensor | None]:
    raise NotImplementedError(
        "the grouped Bradley-Terry loss of prefloss has first and second derivatives; a third was asked for"
    )


grouped_double_backward = Operator(
    f"grouped_double_backward(Tensor direction, Tensor grad, Tensor slopes, Tensor factors, {_GROUPS}) -> (Tensor, Tensor)",
    fake=lambda direction, grad, slopes, factors, rewards, *_: (
        factors.new_empty(factors.shape),
        rewards.new_empty(rewards.shape),
    ),
    save=lambda tensors, options, outputs: (),
    derivative=_third_derivative,
    shared=("group_sizes", "numbers"),
)


class Groups(NamedTuple):
    """The tensors of a call: rewards and ranks (B, K), or (N,) with the groups' sizes; a weight a group.

    `filled`, (B,) int64 beside the rewards: a group has as many items, in its first places, and the rest of its K are empty.
    """

    rewards: Tensor
    ranks: Tensor
    group_sizes: Tensor | None = None
    weight: Tensor | None = None
    filled: Tensor | None = None


class GroupOptions(NamedTuple):
    """The options of a call that are not tensors."""

    numbers: Numbers
    half_ties: bool
    over_pairs: bool
    reduction: int
    return_stats: bool


def order_keys(ranks: Tensor, filled: Tensor | None = None) -> Tensor:
    """int64 in the order of the ranks, equal where those are. NaN is an error, on a GPU an assertion there."""
    if not ranks.is_floating_point():
        if ranks.dtype is torch.uint64:  # the order of the bits as signed numbers, but for the first one
            return ranks.view(torch.int64) ^ torch.iinfo(torch.int64).min
        return ranks.to(torch.int64)
    check_ranks(ranks, filled)
    bits = (ranks.to(torch.float64) + 0.0).contiguous().view(torch.int64)  # -0 becomes 0
    return bits ^ ((bits >> 63) & 0x7FFF_FFFF_FFFF_FFFF)


def check_ranks(ranks: Tensor, filled: Tensor | None = None) -> None:
    nan = ranks.isnan()
    if asserts(nan):
        torch._assert_async(~nan.any(), "ranks, or relevance, must be numbers, got nan")
    elif bool(nan.any()):
        place = tuple(nan.nonzero()[0].tolist())
        where = f"at position {place}" if filled is None else f"in group {place[0]}"  # whose items have moved
        raise ValueError(f"ranks, or relevance, must be numbers, got nan {where}")


def opposite_ranks(relevance: Tensor) -> Tensor:
    """Ranks in the opposite order: of integers all bits change, because the opposite of the least one does not fit."""
    if relevance.is_floating_point():
        return -relevance
    return ~_in_common_dtype(relevance)


def _in_common_dtype(ranks: Tensor) -> Tensor:
    """In the same order, of a dtype that all of torch's operations take."""
    if ranks.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return order_keys(ranks)
    return ranks


def without_masked(rewards: Tensor, ranks: Tensor, mask: Tensor, weight: Tensor | None) -> Groups:
    """The groups of the items whose mask is not 0: these take the first places of their rows, the others the last.

    Shapes stay as they are, so that nothing waits for the device, and nothing is compiled anew. Where the mask is NaN nobody knows
    whether the item is there: its reward becomes NaN, and so does whatever depends on it.
    """
    there = mask.to(torch.bool)
    if mask.is_floating_point():
        rewards = rewards + torch.where(mask.isnan(), torch.nan, -0.0).to(rewards.dtype)  # any number + -0 is itself
    filled = there.sum(-1)
    place = torch.where(there, there.cumsum(-1), (~there).cumsum(-1) + filled.unsqueeze(-1)) - 1
    ranks = _in_common_dtype(ranks).masked_fill(~there, 0)
    return Groups(
        torch.zeros_like(rewards).scatter(-1, place, rewards),
        torch.zeros_like(ranks).scatter(-1, place, ranks),
        None,
        weight,
        filled,
    )


def grouped_loss(groups: Groups, options: GroupOptions, denominator: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """(loss, sums) by the operators."""
    rewards, ranks, sizes, weight, filled = groups
    size = rewards.shape[-1]
    if sizes is None and size == 0:  # groups without items have no place in a flat list
        sizes, filled = torch.zeros(rewards.shape[0], dtype=torch.int64, device="cpu"), None
    if ranks.dtype in (torch.uint16, torch.uint32, torch.uint64) or ranks.is_cuda or KEYS_ALONE:
        ranks = order_keys(ranks, filled)
    given, constant = options.numbers.for_operator()
    tensors = rewards.reshape(-1), ranks.reshape(-1), sizes, weight, filled, as_tensor(denominator, rewards), given
    loss, _, _, sums = grouped_forward(*tensors, *constant, *options[1:], 0 if sizes is not None else size)
    return loss, sums
