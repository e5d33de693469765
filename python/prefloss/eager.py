"""Gradients in eager mode, for every layout: what forward saves and what backward returns. No checks: what comes here is accepted.

Each call of the compiled module reads the tensors where they lie (csrc/bindings/views.cpp), or refuses: backward does, where
saved-tensor hooks or `.data` have changed them. That, and whatever needs more than plain gradients (a graph of the gradients,
batched ones), goes through the operators. What a call says beside its tensors, `_core.paired_call` and its like have read.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from . import _core
from .arguments import REWARD_DTYPES
from .operators.grouped import KEYS_ALONE, GroupOptions, Groups, check_ranks, grouped_loss, order_keys
from .operators.indexed import check_indices, indexed_loss
from .operators.paired import as_tensor, paired_backward
from .pairs import NONE, PAIRED, Numbers, Pairs, accumulation_dtype, stack, unstack
from .stats import Sum
from .torch_internals import Function, called_directly, check_memory, is_watched, real_tensors

# What a loss and the sums look like on the CPU: copying a likeness is the quickest way to allocate.
with real_tensors():
    _SCALARS = {dtype: torch.empty((), dtype=accumulation_dtype(dtype), device="cpu") for dtype in REWARD_DTYPES}
    _SUMS = torch.empty(len(Sum), dtype=torch.float64, device="cpu")


_Tensors = tuple[Any, Any, Any, Any, Any]  # the five that a layout has, some of them None


def _copies(tensors: _Tensors) -> _Tensors:
    """What the kernels read in a `copied` call, in which a tensor of many entries has no single stride (of few: views.h).

    Saved is what was copied, beside the copies: a graph of the gradients must lead there.
    """
    return cast(_Tensors, tuple(each if each is None else each.contiguous() for each in tensors))


@called_directly
class PlainLoss(Function):
    """What most calls are, two tensors and one result: every statement here is paid for in each training step."""

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor, call: _core.PairedCall) -> Tensor:
        ctx.save_for_backward(chosen, rejected)
        ctx.call = call
        loss = torch.empty_like(chosen) if call.reduction == NONE else new_scalar(chosen)
        _core.paired_forward(chosen, rejected, None, None, None, None, call, loss, None)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        chosen, rejected = ctx.saved_tensors
        wants_chosen, wants_rejected, _ = ctx.needs_input_grad
        if not torch.is_grad_enabled() and not is_watched():
            grad_chosen = torch.empty_like(chosen) if wants_chosen else None
            grad_rejected = torch.empty_like(rejected) if wants_rejected else None
            if _core.paired_backward(
                grad, chosen, rejected, None, None, None, None, None, ctx.call, grad_chosen, grad_rejected, None
            ):
                return grad_chosen, grad_rejected, None
        return *_by_operators(ctx.call, grad, chosen, rejected, None, None, None, None, None)[:2], None


@called_directly
class PairedLoss(Function):
    """Every option: the loss, or with `return_stats` (loss, sums)."""

    @staticmethod
    def forward(
        ctx: Any,
        rewards: Tensor,
        rejected: Tensor | None,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        call: _core.PairedCall,
    ) -> Tensor | tuple[Tensor, Tensor]:
        sums = None
        divides = weight is not None and call.divides_by_weight
        loss = new_losses(rewards, call.layout) if call.reduction == NONE else new_scalar(rewards)
        if divides or call.statistics:
            sums = new_sums(rewards)
        by = _tensor_denominator(call)
        tensors: _Tensors = (rewards, rejected, margin, weight, target)
        ctx.save_for_backward(*tensors, by, sums if divides else None)
        ctx.copies = None
        if call.copied:
            ctx.copies = tensors = _copies(tensors)
        _core.paired_forward(*tensors, by, call, loss, sums)
        ctx.call = call
        if not call.statistics:
            return loss
        assert sums is not None
        given = sums.clone() if divides else sums  # backward divides by its own, whatever becomes of the caller's
        ctx.mark_non_differentiable(given)
        ctx.set_materialize_grads(False)
        return loss, given

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        if grad is None:
            return (None,) * 6
        rewards, rejected, margin, weight, target, by, sums = ctx.saved_tensors
        saved: _Tensors = (rewards, rejected, margin, weight, target)
        if not torch.is_grad_enabled() and not is_watched():
            tensors: _Tensors = ctx.copies or saved
            rewards, rejected, margin, _, _ = tensors
            grad_rewards = torch.empty_like(rewards) if needs[0] else None
            grad_rejected = torch.empty_like(rejected) if needs[1] else None
            grad_margin = torch.empty_like(margin) if needs[2] else None
            results = grad_rewards, grad_rejected, grad_margin
            if _core.paired_backward(grad, *tensors, by, sums, ctx.call, *results):
                return *results, None, None, None
        gradients = _by_operators(ctx.call, grad, *saved, by, sums)
        kept = (gradient if needed else None for gradient, needed in zip(gradients, needs, strict=False))
        return *kept, None, None, None


def _by_operators(
    call: _core.PairedCall,
    grad: Tensor,
    rewards: Tensor,
    rejected: Tensor | None,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    by: Tensor | None,
    sums: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The gradients of the rewards, one tensor or two, and of the margin."""
    chosen, other = (rewards, rejected) if call.layout == PAIRED else unstack(rewards, call.layout)
    denominator = as_tensor(call.denominator if by is None else by, rewards)
    options = (*call.numbers, call.reduction, False, 0)
    first, second, third = paired_backward(
        grad, chosen, other, margin, weight, target, denominator, None, sums, *options
    )
    if call.layout == PAIRED:
        return first, second, third
    return stack(first, second, call.layout), None, third


def _tensor_denominator(call: _core.PairedCall | _core.GroupedCall) -> Tensor | None:
    """A denominator that a GPU reads, as its kernels do. It is saved, so that torch sees where it changes before backward."""
    return cast(Tensor, call.denominator).to(torch.float64) if call.has_tensor_denominator else None


# Groups of so many items take linear time; smaller ones visit each pair.
LARGE_GROUP: int = _core.large_group


@called_directly
class GroupedLoss(Function):
    """(loss, sums) of all pairs of each group: forward keeps what backward multiplies, one slope an item."""

    @staticmethod
    def forward(
        ctx: Any,
        rewards: Tensor,
        ranks: Tensor,
        sizes: Tensor | None,
        weight: Tensor | None,
        filled: Tensor | None,
        call: _core.GroupedCall,
    ) -> tuple[Tensor, Tensor | None]:
        if call.reduction == NONE:
            count = rewards.shape[0] if sizes is None else sizes.shape[0]
            loss = rewards.new_empty((count,), dtype=accumulation_dtype(rewards.dtype))
        else:
            loss = new_scalar(rewards)
        slopes = None
        if ctx.needs_input_grad[0]:
            slopes = torch.empty_like(rewards, dtype=loss.dtype, memory_format=torch.contiguous_format)
        sums = new_sums(rewards) if call.statistics else None
        tensors: _Tensors = (rewards, ranks, sizes, weight, filled)
        if call.copied:
            tensors = _copies(tensors)
        if rewards.is_cuda or KEYS_ALONE:
            tensors = _for_cuda(*tensors)
        by = _tensor_denominator(call)
        if not _core.grouped_forward(*tensors, by, call, LARGE_GROUP, loss, slopes, sums):
            check_ranks(ranks, filled)
        # A copy of the sizes, whose buffer may be filled anew before backward.
        ctx.save_for_backward(slopes, rewards, ranks, sizes if sizes is None else sizes.clone(), weight, filled, by)
        ctx.call, ctx.shape = call, rewards.shape
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
        slopes, rewards, ranks, sizes, weight, filled, by = ctx.saved_tensors
        call = ctx.call
        if not torch.is_grad_enabled() and not is_watched():
            result = rewards.new_empty(ctx.shape)
            if _core.scale_slopes(grad, slopes, sizes, call.reduction == NONE, result):
                return result, None, None, None, None, None
        _check_saved(ctx.shape, rewards=rewards, ranks=ranks, weight=weight, filled=filled)
        options = GroupOptions(Numbers(*call.numbers), call.half_ties, call.over_pairs, call.reduction, call.statistics)
        with torch.enable_grad():
            denominator = call.denominator if by is None else by
            loss, _ = grouped_loss(Groups(rewards, ranks, sizes, weight, filled), options, denominator)
            (result,) = torch.autograd.grad(loss, rewards, grad, create_graph=True)
        return result, None, None, None, None, None


def _check_saved(shape: torch.Size, **tensors: Tensor | None) -> None:
    """ValueError where the first of the saved tensors no longer has its shape, or one of them no memory.

    On a GPU an index into what is no longer there is an assertion, and torch, where it converts a tensor without memory, reads it:
    either ends the process's use of the GPU.
    """
    name, first = next(iter(tensors.items()))
    if first is not None and first.shape != shape:
        raise ValueError(
            f"{name} had shape {tuple(shape)} and have {tuple(first.shape)} now: were they changed between forward and backward?"
        )
    for each, tensor in tensors.items():
        if tensor is not None and not is_watched():
            check_memory(each, tensor)


def _for_cuda(
    rewards: Tensor, ranks: Tensor, sizes: Tensor | None, weight: Tensor | None, filled: Tensor | None
) -> Groups:
    """As CUDA kernels take groups: of the type that they are computed in, with integers in the order of the ranks."""
    wide = accumulation_dtype(rewards.dtype)
    if weight is not None and weight.dtype is rewards.dtype:
        weight = weight.to(wide)
    return Groups(rewards.to(wide).contiguous(), order_keys(ranks, filled).contiguous(), sizes, weight, filled)


def new_losses(rewards: Tensor, layout: int) -> Tensor:
    """Where the pairs' terms go, contiguous."""
    like = rewards if layout == PAIRED else unstack(rewards, layout)[0]
    return torch.empty_like(like, dtype=accumulation_dtype(rewards.dtype), memory_format=torch.contiguous_format)


def new_scalar(rewards: Tensor) -> Tensor:
    """Where the loss of these rewards goes."""
    if rewards.is_cpu:
        return torch.empty_like(_SCALARS[rewards.dtype])
    return rewards.new_empty((), dtype=accumulation_dtype(rewards.dtype))


def new_sums(rewards: Tensor) -> Tensor:
    """Where the sums of these rewards' pairs go."""
    return torch.empty_like(_SUMS) if rewards.is_cpu else rewards.new_empty(len(Sum), dtype=torch.float64)


@called_directly
class IndexedLoss(Function):
    """(loss, sums) of comparisons of items by index: forward keeps what backward needs, one slope an item.

    A mean or a sum, of a margin that asks for no gradient; on a GPU without sums.
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
        call: _core.PairedCall,
    ) -> tuple[Tensor, Tensor | None]:
        loss, slopes = new_scalar(scores), None
        if ctx.needs_input_grad[0]:
            slopes = torch.empty_like(scores, dtype=loss.dtype, memory_format=torch.contiguous_format)
        sums = new_sums(scores) if call.statistics else None
        tensors = scores, chosen_index, rejected_index, margin, weight, target
        by = _tensor_denominator(call)
        if not _core.indexed_forward(*tensors, by, call, loss, slopes, sums):
            for name, index in (("chosen_index", chosen_index), ("rejected_index", rejected_index)):
                check_indices(name, index, scores.shape[0])
        ctx.save_for_backward(slopes, by, *tensors)
        ctx.call, ctx.shape = call, scores.shape
        if sums is not None:
            ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: object) -> tuple[Tensor | None, ...]:
        slopes, by, scores, chosen_index, rejected_index, *options = ctx.saved_tensors
        call = ctx.call
        if not torch.is_grad_enabled() and not is_watched():
            result = torch.empty_like(scores)
            if _core.scale_slopes(grad, slopes, None, False, result):
                return result, None, None, None, None, None, None
        _check_saved(ctx.shape, scores=scores, **dict(zip(Pairs._fields[2:], options, strict=True)))
        with torch.enable_grad():
            pairs, numbers = Pairs(scores, None, *options), Numbers(*call.numbers)
            denominator = call.denominator if by is None else by
            loss, _ = indexed_loss(pairs, chosen_index, rejected_index, numbers, denominator, call.reduction, False)
            (result,) = torch.autograd.grad(loss, scores, grad, create_graph=True)
        return result, None, None, None, None, None, None
