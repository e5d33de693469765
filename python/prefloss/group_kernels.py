"""The compiled kernels over all pairs of groups; see `kernels`."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from .kernels import DTYPE_TAGS, REWARD_DTYPES, SUMS, Place, accumulation_dtype, place, threads

# Groups of so many items take linear time on the CPU; in smaller ones it is quicker to visit each pair.
LARGE = 1024


class Groups(NamedTuple):
    """How items are divided into groups, and the options that are not tensors, in the order of the operators' arguments."""

    group_sizes: Tensor | None  # (G,) int64, on the CPU; None: all are of `group_size`
    group_size: int
    beta: float = 1.0
    margin: float = 0.0
    label_smoothing: float = 0.0
    center_rewards_coefficient: float = 0.0
    half_ties: bool = False
    over_pairs: bool = False
    reduction: str = "mean"
    return_stats: bool = False

    def count(self, items: int) -> int:
        """The number of groups."""
        if self.group_sizes is not None:
            return self.group_sizes.shape[0]
        return items // self.group_size


class _GroupedItems:
    """Rows of items in groups, as the kernels take them: contiguous, in the type of the computation. Keeps them alive."""

    def __init__(self, rewards: Tensor, ranks: Tensor | None, groups: Groups) -> None:
        items = rewards.shape[-1]
        self.batch_shape = rewards.shape[:-1]
        self.rows = self.batch_shape.numel()
        self.groups = groups.count(items)
        self.dtype = accumulation_dtype(rewards.dtype)
        self.converts = _core.runs_on_cuda(rewards.is_cuda)  # the CPU's kernels read any column
        self.rewards = rewards.detach()
        if self.converts:
            self.rewards = self.rewards.to(self.dtype).contiguous()
            ranks = None if ranks is None else _order_keys(ranks)
        offsets = None if groups.group_sizes is None else self._offsets(groups.group_sizes, items)
        self._alive: list[Tensor | None] = [offsets]
        self.arguments = (
            self.column(self.rewards, items),
            None if ranks is None else self.column(_with_column(ranks.detach()), items),
            self.rows,
            self.groups,
            groups.group_size,
            rewards.numel(),
            0 if offsets is None else offsets.data_ptr(),
            groups[2:6],
            groups.half_ties,
            LARGE,
        )

    def column(self, tensor: Tensor, entries: int) -> tuple[int, int, int, int]:
        """One entry an item, or a group."""
        flat = tensor.reshape(self.rows, entries)
        self._alive.append(flat)
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], flat.stride(1), flat.stride(0)

    def _offsets(self, sizes: Tensor, items: int) -> Tensor:
        """Where each group of each row begins, and where the last one ends."""
        ends = sizes.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        if len(ends) and int(sizes.min()) < 0:
            raise ValueError(f"group_sizes must be >= 0, got {int(sizes.min())}")
        if total != items:
            raise ValueError(f"group_sizes must add up to the number of rewards, {items}, got {total}")
        rows = torch.arange(self.rows, device="cpu").unsqueeze(1) * items
        offsets = torch.cat((ends.new_zeros(1), (rows + ends).flatten()))
        if not self.rewards.is_cuda:
            return offsets
        # From pinned memory the copy waits for nothing.
        return offsets.pin_memory().to(self.rewards.device, non_blocking=True)

    def place(self, scratch: Tensor | None = None) -> Place:
        self._alive.append(scratch)
        return place(self.rewards, torch.get_num_threads(), scratch)

    def scratch(self, statistics: bool) -> Tensor | None:
        size = _core.grouped_scratch_size(
            self.rewards.is_cuda, self.rows, self.groups, self.rewards.numel(), statistics
        )
        return self.rewards.new_empty((size,), dtype=torch.float64) if size else None


def _with_column(ranks: Tensor) -> Tensor:
    """Ranks of a dtype that the kernels read."""
    return ranks if ranks.dtype in DTYPE_TAGS else _order_keys(ranks)


def _order_keys(ranks: Tensor) -> Tensor:
    """Contiguous int64 in the order of the ranks, equal where those are: of any dtype but the largest of uint64."""
    ranks = ranks.detach()
    if not ranks.is_floating_point():
        return ranks.to(torch.int64).contiguous()
    nan = ranks.isnan()
    if not ranks.is_cpu:
        torch._assert_async(~nan.any(), "ranks must be numbers, got nan")
    elif bool(nan.any()):
        raise ValueError(f"ranks must be numbers, got nan at position {int(nan.flatten().nonzero()[0])}")
    bits = (ranks.to(torch.float64).contiguous() + 0.0).view(torch.int64)  # -0 becomes 0
    return bits ^ ((bits >> 63) & 0x7FFF_FFFF_FFFF_FFFF)


def grouped_forward(
    rewards: Tensor,
    ranks: Tensor,
    weight: Tensor | None,
    denominator: Tensor | None,
    groups: Groups,
    with_slopes: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, factors, slopes, sums) of rewards (..., items) and weight (..., groups).

    The gradient is an item's slope, (..., items), times its group's factor, (..., groups), float64; `sums` are those of
    `PairStats`, (..., 16), where they are asked for. Raises ValueError for group sizes and ranks that are none.
    """
    given = _GroupedItems(rewards, ranks, groups)
    none = groups.reduction == "none"
    factors = rewards.new_empty((*given.batch_shape, given.groups), dtype=torch.float64)
    loss = rewards.new_empty(factors.shape if none else given.batch_shape, dtype=given.dtype)
    slopes = rewards.new_empty(rewards.shape if with_slopes else (0,), dtype=given.dtype)
    sums = rewards.new_empty((*given.batch_shape, SUMS), dtype=torch.float64)
    weights = None if weight is None else weight.detach()
    if weights is not None and weights.dtype not in REWARD_DTYPES and weights.dtype is not torch.bool:
        weights = weights.to(torch.float64)
    by = None
    if groups.reduction == "mean" and denominator is not None:
        by = denominator.detach().to(torch.float64).expand(given.batch_shape).reshape(given.rows)
    total_weight = groups.reduction == "mean" and by is None
    divisor = (1.0, 0, 0, total_weight) if by is None else (1.0, by.data_ptr(), by.stride(0), False)
    done = _core.grouped_forward(
        given.arguments,
        (None if weights is None else given.column(weights, given.groups), groups.over_pairs, none, divisor),
        loss.data_ptr(),
        factors.data_ptr(),
        sums.data_ptr(),
        slopes.data_ptr() if with_slopes else 0,
        groups.return_stats,
        given.place(given.scratch(groups.return_stats)),
    )
    if not done:
        nan = int(ranks.detach().isnan().flatten().nonzero()[0])
        raise ValueError(f"ranks must be numbers, got nan at position {nan}")
    return loss, factors, slopes, sums


def grouped_backward(grad: Tensor, slopes: Tensor, rewards: Tensor, groups: Groups) -> Tensor:
    """The gradient with respect to the rewards. `grad` has the loss's shape."""
    given = _GroupedItems(rewards, None, groups)
    result = torch.empty(rewards.shape, dtype=rewards.dtype, device=rewards.device)
    slopes = slopes.detach().contiguous()
    none = groups.reduction == "none"
    _core.grouped_backward(
        given.arguments,
        slopes.data_ptr(),
        (given.column(grad.detach(), given.groups if none else 1), none),
        given.column(result, rewards.shape[-1]),
        place(rewards, threads(rewards.numel()), None),
    )
    return result


def grouped_double_backward(
    direction: Tensor, grad: Tensor, slopes: Tensor, factors: Tensor, rewards: Tensor, ranks: Tensor, groups: Groups
) -> tuple[Tensor, Tensor]:
    """The derivatives of sum(gradients * direction) by the upstream gradient and by the rewards."""
    given = _GroupedItems(rewards, ranks, groups)
    direction = direction.detach()
    if given.converts:
        direction = direction.to(given.dtype).contiguous()
    result = torch.empty(rewards.shape, dtype=rewards.dtype, device=rewards.device)
    slopes, factors = slopes.detach().contiguous(), factors.detach().contiguous()
    along = torch.empty_like(factors)
    none = groups.reduction == "none"
    _core.grouped_double_backward(
        given.arguments,
        slopes.data_ptr(),
        factors.data_ptr(),
        (given.column(grad.detach(), given.groups if none else 1), none),
        given.column(direction, rewards.shape[-1]),
        given.column(result, rewards.shape[-1]),
        along.data_ptr(),
        given.place(),
    )
    return (along if none else along.sum(-1)).to(grad.dtype), result
