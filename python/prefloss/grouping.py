"""All pairs of a group as operators: prefloss::grouped_forward, _backward and _double_backward.

Forward keeps each item's slope, which is dear to compute and as small as the rewards; backward multiplies it.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from . import group_kernels
from .group_kernels import Groups
from .kernels import SUMS, accumulation_dtype
from .ops import as_tensor, on_its_device
from .torch_internals import in_transform

_TENSORS = "Tensor rewards, Tensor ranks"
_GROUPS = (
    "Tensor? group_sizes, SymInt group_size, float beta, float margin, float label_smoothing, "
    "float center_rewards_coefficient, bool half_ties, bool over_pairs, str reduction, bool return_stats"
)
_FORWARD_TENSORS, _BACKWARD_TENSORS = 4, 5

_library = torch.library.Library("prefloss", "FRAGMENT")
_library.define(
    f"grouped_forward({_TENSORS}, Tensor? weight, Tensor? denominator, {_GROUPS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(f"grouped_backward(Tensor grad, Tensor slopes, Tensor factors, {_TENSORS}, {_GROUPS}) -> Tensor")
_library.define(
    f"grouped_double_backward(Tensor direction, Tensor grad, Tensor slopes, Tensor factors, {_TENSORS}, {_GROUPS}) "
    "-> (Tensor, Tensor)"
)
_forward = torch.ops.prefloss.grouped_forward.default
_backward = torch.ops.prefloss.grouped_backward.default
_double_backward = torch.ops.prefloss.grouped_double_backward.default


def _forward_kernel(rewards: Tensor, ranks: Tensor, weight: Any, denominator: Any, *groups: Any) -> tuple[Tensor, ...]:
    return group_kernels.grouped_forward(rewards, ranks, weight, denominator, Groups(*groups))


def _backward_kernel(
    grad: Tensor, slopes: Tensor, factors: Tensor, rewards: Tensor, ranks: Tensor, *groups: Any
) -> Tensor:
    return group_kernels.grouped_backward(grad, slopes, rewards, Groups(*groups))


def _double_backward_kernel(
    direction: Tensor, grad: Tensor, slopes: Tensor, factors: Tensor, rewards: Tensor, ranks: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor]:
    return group_kernels.grouped_double_backward(direction, grad, slopes, factors, rewards, ranks, Groups(*arguments))


for _name, _kernel in (
    ("grouped_forward", _forward_kernel),
    ("grouped_backward", _backward_kernel),
    ("grouped_double_backward", _double_backward_kernel),
):
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, on_its_device(_kernel), "CUDA")


@torch.library.register_fake("prefloss::grouped_forward", lib=_library)
def _forward_fake(rewards: Tensor, ranks: Tensor, weight: Any, denominator: Any, *arguments: Any) -> tuple[Tensor, ...]:
    groups = Groups(*arguments)
    rows, dtype = rewards.shape[:-1], accumulation_dtype(rewards.dtype)
    factors = rewards.new_empty((*rows, groups.count(rewards.shape[-1])), dtype=torch.float64)
    loss = rewards.new_empty(factors.shape if groups.reduction == "none" else rows, dtype=dtype)
    return loss, factors, rewards.new_empty(rewards.shape, dtype=dtype), factors.new_empty((*rows, SUMS))


@torch.library.register_fake("prefloss::grouped_backward", lib=_library)
def _backward_fake(grad: Tensor, slopes: Tensor, factors: Tensor, rewards: Tensor, *_: Any) -> Tensor:
    return rewards.new_empty(rewards.shape)


@torch.library.register_fake("prefloss::grouped_double_backward", lib=_library)
def _double_backward_fake(
    direction: Tensor, grad: Tensor, slopes: Tensor, factors: Tensor, rewards: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return grad.new_empty(grad.shape), rewards.new_empty(rewards.shape)


def _set_up_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, factors, slopes, sums = output
    ctx.save_for_backward(slopes, factors, *inputs[:2])
    ctx.groups = inputs[_FORWARD_TENSORS:]
    ctx.mark_non_differentiable(factors, slopes, sums)


def _set_up_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:_BACKWARD_TENSORS])
    ctx.groups = inputs[_BACKWARD_TENSORS:]


def _forward_autograd(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return backward(grad, *ctx.saved_tensors, *ctx.groups), *(None,) * (_FORWARD_TENSORS - 1 + len(ctx.groups))


def _backward_autograd(ctx: Any, direction: Tensor) -> tuple[Tensor | None, ...]:
    along, bent = _double_backward(direction, *ctx.saved_tensors, *ctx.groups)
    return along, None, None, bent, None, *(None,) * len(ctx.groups)


def _third_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the grouped Bradley-Terry loss of prefloss has first and second derivatives; a third was asked for"
    )


torch.library.register_autograd(
    "prefloss::grouped_forward", _forward_autograd, setup_context=_set_up_forward, lib=_library
)
torch.library.register_autograd(
    "prefloss::grouped_backward", _backward_autograd, setup_context=_set_up_backward, lib=_library
)
torch.library.register_autograd("prefloss::grouped_double_backward", _third_derivative, lib=_library)


def _register_vmap(name: str, operator: Any, tensors: int, outputs: int) -> None:
    """One more leading batch dimension for every tensor but the sizes of the groups, which all rows share."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        if in_dims[tensors] is not None:
            raise ValueError("group_sizes cannot be batched: every row of a vmap has the same groups")
        batched = [
            None if tensor is None
            else tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape) if dim is None
            else tensor.movedim(dim, 0)
            for tensor, dim in zip(arguments[:tensors], in_dims, strict=False)
        ]  # fmt: skip
        return operator(*batched, *arguments[tensors:]), 0 if outputs == 1 else (0,) * outputs

    torch.library.register_vmap(f"prefloss::{name}", rule, lib=_library)


_register_vmap("grouped_forward", _forward, _FORWARD_TENSORS, 4)
_register_vmap("grouped_backward", _backward, _BACKWARD_TENSORS, 1)
_register_vmap("grouped_double_backward", _double_backward, _BACKWARD_TENSORS + 1, 2)


class _FunctorchForward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _forward(*arguments)

    setup_context = staticmethod(_set_up_forward)
    backward = staticmethod(_forward_autograd)


class _FunctorchBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return _backward(*arguments)

    setup_context = staticmethod(_set_up_backward)
    backward = staticmethod(_backward_autograd)


def backward(*arguments: Any) -> Tensor:
    """What `group_kernels.grouped_backward` returns, under a transform or not."""
    apply = _FunctorchBackward.apply if in_transform() else _backward
    return cast(Tensor, apply(*arguments))


def loss(
    rewards: Tensor, ranks: Tensor, weight: Tensor | None, denominator: Tensor | float | None, groups: Groups
) -> tuple[Tensor, Tensor]:
    """(loss, sums) of rewards (items,), under a transform or not."""
    apply = _FunctorchForward.apply if in_transform() else _forward
    result = apply(rewards, ranks, weight, as_tensor(denominator, rewards), *groups)
    return cast("tuple[Tensor, Tensor]", (result[0], result[3]))
