"""Gradients in eager mode: what forward saves and what backward returns. No checks; whoever calls has made sure of plain tensors.

Backward recomputes the slope from the saved rewards. Whatever needs more than plain gradients (a graph of the gradients,
batched gradients, tensors changed by saved-tensor hooks) goes through the operators.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from . import _core, kernels, ops
from .kernels import REWARD_DTYPES, Options, accumulation_dtype, threads
from .torch_internals import is_plain, is_watched

# What a loss looks like, for each dtype of rewards: the quickest way to allocate one.
_SCALARS = {dtype: torch.empty((), dtype=accumulation_dtype(dtype), device="cpu") for dtype in REWARD_DTYPES}


def _needs_operator(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() or is_watched() or not all(tensor is None or is_plain(tensor) for tensor in tensors)


class DefaultLoss(Function):
    """The default call over contiguous rewards, and nothing else: every statement is paid for in each training step."""

    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor) -> Tensor:
        ctx.save_for_backward(chosen, rejected)
        loss = torch.empty_like(_SCALARS[chosen.dtype])
        _core.default_forward(chosen, rejected, loss, threads(chosen.numel()))
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
        gradients = ops.backward(grad, chosen, rejected, None, None, None, None, None, *Options())
        return gradients[0], gradients[1]


def _run_forward(
    ctx: Any,
    rewards: tuple[Tensor, ...],
    chosen: Tensor,
    rejected: Tensor,
    optional: tuple[Tensor | None, Tensor | None, Tensor | None],
    denominator: Tensor | float | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    loss, sums = kernels.forward(chosen, rejected, *optional, denominator, options)
    on_device = isinstance(denominator, Tensor)
    ctx.save_for_backward(*rewards, *optional, denominator if on_device else None, sums)
    ctx.denominator = None if on_device else denominator
    ctx.options = options
    ctx.mark_non_differentiable(sums)
    ctx.set_materialize_grads(False)
    return loss, sums


class PairedLoss(Function):
    """Every option, any strides: (loss, sums) of chosen, rejected, margin, weight, target, denominator, options."""

    @staticmethod
    def forward(
        ctx: Any,
        chosen: Tensor,
        rejected: Tensor,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        denominator: Tensor | float | None,
        options: Options,
    ) -> tuple[Tensor, Tensor]:
        return _run_forward(ctx, (chosen, rejected), chosen, rejected, (margin, weight, target), denominator, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 4
        if grad is None:
            return (None, None, None, *nothing)
        chosen, rejected, margin, weight, target, denominator, sums = ctx.saved_tensors
        divisor = ctx.denominator if denominator is None else denominator
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[2])
        if _needs_operator(grad, *ctx.saved_tensors):
            divisor = ops.as_tensor(divisor, chosen)
            gradients = ops.backward(grad, chosen, rejected, margin, weight, target, divisor, sums, *ctx.options)
            return (*(g if want else None for g, want in zip(gradients, wanted, strict=True)), *nothing)
        results = kernels.new_gradients((chosen, rejected, margin), wanted)
        kernels.backward(results, grad, chosen, rejected, margin, weight, target, divisor, sums, ctx.options)
        return (*results, *nothing)


class StackedLoss(Function):
    """`PairedLoss` over the two parts of one tensor, with one gradient for both."""

    @staticmethod
    def forward(
        ctx: Any,
        rewards: Tensor,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        denominator: Tensor | float | None,
        options: Options,
        layout: str,
    ) -> tuple[Tensor, Tensor]:
        ctx.layout = layout
        return _run_forward(ctx, (rewards,), *unstack(rewards, layout), (margin, weight, target), denominator, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 5
        if grad is None:
            return (None, None, *nothing)
        rewards, margin, weight, target, denominator, sums = ctx.saved_tensors
        divisor = ctx.denominator if denominator is None else denominator
        chosen, rejected = unstack(rewards, ctx.layout)
        wants_rewards, wants_margin = ctx.needs_input_grad[:2]
        if _needs_operator(grad, *ctx.saved_tensors):
            divisor = ops.as_tensor(divisor, rewards)
            grad_chosen, grad_rejected, grad_margin = ops.backward(
                grad, chosen, rejected, margin, weight, target, divisor, sums, *ctx.options
            )
            stacked = stack(grad_chosen, grad_rejected, ctx.layout)
            return (stacked if wants_rewards else None, grad_margin if wants_margin else None, *nothing)
        grad_rewards, grad_margin = kernels.new_gradients((rewards, margin), (wants_rewards, wants_margin))
        parts = (None, None) if grad_rewards is None else unstack(grad_rewards, ctx.layout)
        kernels.backward(
            (*parts, grad_margin), grad, chosen, rejected, margin, weight, target, divisor, sums, ctx.options
        )
        return (grad_rewards, grad_margin, *nothing)


def unstack(rewards: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The chosen and the rejected rewards of one tensor, as views."""
    if layout == "interleaved":
        return rewards[0::2], rewards[1::2]
    half = rewards.shape[0] // 2
    return rewards[:half], rewards[half:]


def stack(chosen: Tensor, rejected: Tensor, layout: str) -> Tensor:
    """The inverse of `unstack`."""
    if layout == "interleaved":
        return torch.stack((chosen, rejected), 1).flatten(0, 1)
    return torch.cat((chosen, rejected))


def paired_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | float | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """(loss, sums), through the operators where something must see them."""
    if _is_eager(chosen, rejected, margin, weight, target, denominator):
        arguments = (chosen, rejected, margin, weight, target, denominator, options)
        return cast("tuple[Tensor, Tensor]", PairedLoss.apply(*arguments))
    return ops.loss(chosen, rejected, margin, weight, target, denominator, options)


def stacked_loss(
    rewards: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | float | None,
    options: Options,
    layout: str,
) -> tuple[Tensor, Tensor]:
    """(loss, sums), through the operators where something must see them."""
    if _is_eager(rewards, margin, weight, target, denominator):
        arguments = (rewards, margin, weight, target, denominator, options, layout)
        return cast("tuple[Tensor, Tensor]", StackedLoss.apply(*arguments))
    return ops.loss(*unstack(rewards, layout), margin, weight, target, denominator, options)


def _is_eager(*arguments: object) -> bool:
    if torch.compiler.is_compiling() or is_watched():
        return False
    return all(is_plain(argument) for argument in arguments if isinstance(argument, Tensor))
