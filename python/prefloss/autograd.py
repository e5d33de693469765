"""Gradients in eager mode: what forward saves and what backward returns. No checks: what comes here is accepted.

Backward recomputes the slope from the saved rewards. Whatever needs more than plain gradients (a graph of the gradients,
batched gradients, tensors changed by saved-tensor hooks) goes through the operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _core, group_kernels, grouping, kernels, ops
from .group_kernels import Groups
from .indexing import accumulate, take, widened
from .kernels import REWARD_DTYPES, SMALL, SUMS, Numbers, Options, accumulation_dtype, resources, threads
from .torch_internals import is_watched

# How the pairs lie in the rewards (csrc/tensors.h): in two tensors, or stacked in one.
PAIRED, HALVES, INTERLEAVED = 0, 1, 2

# What a loss and the sums look like on the CPU: copying a likeness is the quickest way to allocate.
_SCALARS = {dtype: torch.empty((), dtype=accumulation_dtype(dtype), device="cpu") for dtype in REWARD_DTYPES}
_SUMS = torch.empty(SUMS, dtype=torch.float64, device="cpu")


class DefaultLoss(Function):
    """The default call and nothing else: every statement here is paid for in each training step."""

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor) -> Tensor:
        ctx.save_for_backward(chosen, rejected)
        pairs = chosen.numel()
        if pairs <= SMALL and chosen.is_cpu:
            loss = torch.empty_like(_SCALARS[chosen.dtype])
            _core.default_forward(chosen, rejected, loss, 1, None)
        else:
            loss = _new_scalar(chosen)
            _core.default_forward(chosen, rejected, loss, *resources(chosen, pairs))
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        chosen, rejected = ctx.saved_tensors
        if not torch.is_grad_enabled() and not is_watched():
            wants_chosen, wants_rejected = ctx.needs_input_grad
            grad_chosen = torch.empty_like(chosen) if wants_chosen else None
            grad_rejected = torch.empty_like(rejected) if wants_rejected else None
            if _core.default_backward(grad, chosen, rejected, grad_chosen, grad_rejected, threads(chosen.numel())):
                return grad_chosen, grad_rejected
        gradients = ops.gradients(grad, chosen, rejected, None, None, None, None, None, *Options())
        return gradients[0], gradients[1]


class EagerLoss(Function):
    """Every option: the loss, or with `return_stats` (loss, sums). `rejected` is None where `layout` stacks the two."""

    @staticmethod
    def forward(
        ctx: Any,
        rewards: Tensor,
        rejected: Tensor | None,
        layout: int,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        numbers: Numbers,
        denominator: float | None,
        reduction: str,
        return_stats: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        per_pair = reduction == "none"
        divisor = denominator if reduction == "mean" else 1.0
        if per_pair:
            like = rewards if layout == PAIRED else unstack(rewards, layout)[0]
            loss = torch.empty_like(like, dtype=accumulation_dtype(like.dtype), memory_format=torch.contiguous_format)
        else:
            loss = torch.empty_like(_SCALARS[rewards.dtype]) if rewards.is_cpu else _new_scalar(rewards)
        needs_sums = return_stats or (weight is not None and divisor is None)
        sums = None
        if needs_sums:
            sums = torch.empty_like(_SUMS) if rewards.is_cpu else rewards.new_empty(SUMS, dtype=torch.float64)
        pairs = rewards.numel() if layout == PAIRED else rewards.numel() // 2
        _core.tensors_forward(
            rewards, rejected, layout, margin, weight, target,
            numbers, divisor, per_pair, loss, sums, return_stats, *resources(rewards, pairs),
        )  # fmt: skip
        ctx.save_for_backward(rewards, rejected, margin, weight, target, sums)
        ctx.call = layout, numbers, denominator, reduction
        if sums is None or not return_stats:
            return loss
        ctx.mark_non_differentiable(sums)
        ctx.set_materialize_grads(False)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        grad_rewards = grad_rejected = grad_margin = None
        if grad is not None:
            rewards, rejected, margin, weight, target, sums = ctx.saved_tensors
            layout, numbers, denominator, reduction = ctx.call
            if torch.is_grad_enabled() or is_watched():
                accepted = False
            else:
                grad_rewards = torch.empty_like(rewards) if needs[0] else None
                grad_rejected = torch.empty_like(rejected) if needs[1] else None
                grad_margin = torch.empty_like(margin) if needs[3] else None
                accepted = _core.tensors_backward(
                    grad, rewards, rejected, layout, margin, weight, target,
                    numbers, denominator if reduction == "mean" else 1.0, reduction == "none", sums,
                    grad_rewards, grad_rejected, grad_margin, threads(rewards.numel()),
                )  # fmt: skip
            if not accepted:
                pair = (rewards, rejected) if layout == PAIRED else unstack(rewards, layout)
                divisor = ops.as_tensor(denominator, rewards)
                options = (*numbers, reduction, False, 0)
                gradients = ops.gradients(grad, *pair, margin, weight, target, divisor, sums, *options)
                grad_rewards, grad_rejected = gradients[0], gradients[1]
                if layout != PAIRED:
                    grad_rewards, grad_rejected = stack(gradients[0], gradients[1], layout), None
                grad_margin = gradients[2] if needs[3] else None
        return (
            grad_rewards if needs[0] else None,
            grad_rejected if needs[1] else None,
            None,
            grad_margin,
            *(None,) * (len(needs) - 4),
        )


class IndexedLoss(Function):
    """(loss, sums) of comparisons of items by index: forward keeps what backward needs, one slope an item.

    A mean or a sum, on the CPU, of a margin that asks for no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scores: Tensor,
        chosen_index: Tensor,
        rejected_index: Tensor,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        denominator: Tensor | None,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        tensors = scores, chosen_index, rejected_index, margin, weight, target, denominator
        loss, sums, slopes = kernels.indexed_forward(*tensors, options, ctx.needs_input_grad[0])
        ctx.save_for_backward(*tensors, sums, slopes)
        ctx.options = options
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scores, chosen_index, rejected_index, margin, weight, target, denominator, sums, slopes = ctx.saved_tensors
        options = ctx.options
        if torch.is_grad_enabled() or is_watched():
            wide = widened(scores)
            pair = take(wide, chosen_index, "chosen_index"), take(wide, rejected_index, "rejected_index")
            gradients = ops.gradients(grad, *pair, margin, weight, target, denominator, sums, *options)
            items = scores.shape[0]
            result = accumulate(gradients[0], chosen_index, items) + accumulate(gradients[1], rejected_index, items)
            result = result.to(scores.dtype)
        else:
            divisor = kernels.divisor(chosen_index.numel(), weight, denominator, sums, options.reduction)
            result = torch.mul(slopes, grad.double() / divisor, out=torch.empty_like(scores))
        return (result, *(None,) * (len(ctx.needs_input_grad) - 1))


class GroupedLoss(Function):
    """(loss, sums) of all pairs of each group, of plain tensors."""

    @staticmethod
    def forward(
        ctx: Any, rewards: Tensor, ranks: Tensor, weight: Tensor | None, denominator: Tensor | None, groups: Groups
    ) -> tuple[Tensor, Tensor]:
        needed = ctx.needs_input_grad[0]
        loss, factors, slopes, sums = group_kernels.grouped_forward(rewards, ranks, weight, denominator, groups, needed)
        ctx.save_for_backward(slopes, factors, rewards, ranks)
        ctx.groups = groups
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slopes, factors, rewards, ranks = ctx.saved_tensors
        if torch.is_grad_enabled() or is_watched():
            return grouping.backward(grad, slopes, factors, rewards, ranks, *ctx.groups), None, None, None, None
        return group_kernels.grouped_backward(grad, slopes, rewards, ctx.groups), None, None, None, None


def _new_scalar(rewards: Tensor) -> Tensor:
    return rewards.new_empty((), dtype=accumulation_dtype(rewards.dtype))


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
