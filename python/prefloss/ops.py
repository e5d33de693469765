"""The kernels as torch.library operators, for everything that must see an operator: torch.compile, export, fake tensors, vmap.

Three operators, prefloss::bradley_terry_forward, _backward and _double_backward, each with a kernel, a fake kernel and a vmap
rule, and autograd from each to the next. `torch.func` cannot differentiate a registered autograd rule; it gets `FunctorchLoss`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from . import kernels
from .kernels import SUMS, Options, accumulation_dtype
from .torch_internals import in_transform

_PAIRS = "Tensor chosen, Tensor rejected, Tensor? margin, Tensor? weight, Tensor? target, Tensor? denominator"
_OPTIONS = (
    "float beta, float margin_number, float target_number, float label_smoothing, float center_rewards_coefficient, "
    "str reduction, bool return_stats, int batch"
)
_FORWARD_TENSORS = 6
_BACKWARD_TENSORS = 8
_DOUBLE_BACKWARD_TENSORS = 11

_library = torch.library.Library("prefloss", "FRAGMENT")
_library.define(f"bradley_terry_forward({_PAIRS}, {_OPTIONS}) -> (Tensor, Tensor)")
_library.define(f"bradley_terry_backward(Tensor grad, {_PAIRS}, Tensor? sums, {_OPTIONS}) -> (Tensor, Tensor, Tensor)")
_library.define(
    "bradley_terry_double_backward(Tensor towards_chosen, Tensor towards_rejected, Tensor? towards_margin, "
    f"Tensor grad, {_PAIRS}, Tensor? sums, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)"
)
forward = torch.ops.prefloss.bradley_terry_forward.default
backward = torch.ops.prefloss.bradley_terry_backward.default
double_backward = torch.ops.prefloss.bradley_terry_double_backward.default


def _or_empty(gradient: Tensor | None, rewards: Tensor) -> Tensor:
    """An operator returns tensors only: where there is no margin, its gradient is one without entries."""
    return rewards.new_empty((0,)) if gradient is None else gradient


def _forward_kernel(*arguments: Any) -> tuple[Tensor, Tensor]:
    chosen, rejected, margin, weight, target, denominator, *options = arguments
    return kernels.forward(chosen, rejected, margin, weight, target, denominator, Options(*options))


def _backward_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    grad, chosen, rejected, margin, weight, target, denominator, sums, *options = arguments
    grad_chosen, grad_rejected, grad_margin = kernels.backward(
        grad, chosen, rejected, margin, weight, target, denominator, sums, Options(*options)
    )
    return grad_chosen, grad_rejected, _or_empty(grad_margin, chosen)


def _double_backward_kernel(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    to_chosen, to_rejected, to_margin, grad, chosen, rejected, margin, weight, target, denominator, sums, *options = (
        arguments
    )
    *gradients, margin_gradient = kernels.double_backward(
        to_chosen,
        to_rejected,
        to_margin,
        grad,
        chosen,
        rejected,
        margin,
        weight,
        target,
        denominator,
        sums,
        Options(*options),
    )
    return gradients[0], gradients[1], gradients[2], _or_empty(margin_gradient, chosen)


def on_its_device(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel with the tensors' GPU as the current one: it launches there."""

    def guarded(tensor: Tensor, *arguments: Any) -> Any:
        with torch.cuda.device(tensor.device):
            return kernel(tensor, *arguments)

    return guarded


for _name, _kernel in (
    ("bradley_terry_forward", _forward_kernel),
    ("bradley_terry_backward", _backward_kernel),
    ("bradley_terry_double_backward", _double_backward_kernel),
):
    _library.impl(_name, _kernel, "CPU")
    _library.impl(_name, on_its_device(_kernel), "CUDA")


@torch.library.register_fake("prefloss::bradley_terry_forward", lib=_library)
def _forward_fake(chosen: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    options = Options(*arguments[_FORWARD_TENSORS - 1 :])
    rows = chosen.shape[: options.batch]
    loss = chosen.new_empty(
        chosen.shape if options.reduction == "none" else rows, dtype=accumulation_dtype(chosen.dtype)
    )
    return loss, chosen.new_empty((*rows, SUMS), dtype=torch.float64)


@torch.library.register_fake("prefloss::bradley_terry_backward", lib=_library)
def _backward_fake(
    grad: Tensor, chosen: Tensor, rejected: Tensor, margin: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor]:
    margin_gradient = None if margin is None else margin.new_empty(margin.shape)
    return (
        chosen.new_empty(chosen.shape),
        rejected.new_empty(rejected.shape),
        _or_empty(margin_gradient, chosen),
    )


@torch.library.register_fake("prefloss::bradley_terry_double_backward", lib=_library)
def _double_backward_fake(
    towards_chosen: Tensor, towards_rejected: Tensor, towards_margin: Tensor | None, grad: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (grad.new_empty(grad.shape), *_backward_fake(grad, *arguments))


def _set_up_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, sums = output
    ctx.save_for_backward(*inputs[:_FORWARD_TENSORS], sums)
    ctx.options = inputs[_FORWARD_TENSORS:]
    ctx.mark_non_differentiable(sums)


def _set_up_backward(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
    ctx.save_for_backward(*inputs[:_BACKWARD_TENSORS])
    ctx.options = inputs[_BACKWARD_TENSORS:]


def _gradients(
    ctx: Any, arguments: int, gradients: Sequence[Tensor], wanted: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of the first arguments, where they are wanted, and None for the others."""
    kept = [gradient if want else None for gradient, want in zip(gradients, wanted, strict=True)]
    return (*kept, *(None,) * (arguments - len(kept)))


def _forward_autograd(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, sums = ctx.saved_tensors
    wanted = [*ctx.needs_input_grad[:2], tensors[2] is not None and ctx.needs_input_grad[2]]
    return _gradients(ctx, _FORWARD_TENSORS + len(ctx.options), backward(grad, *tensors, sums, *ctx.options), wanted)


def _second_derivatives(
    ctx: Any, towards_chosen: Tensor, towards_rejected: Tensor, towards_margin: Tensor
) -> tuple[Sequence[Tensor], bool]:
    """What `double_backward` makes of a saved call of `backward`, and whether that call has a margin."""
    tensors = ctx.saved_tensors
    has_margin = tensors[3] is not None
    directions = towards_chosen, towards_rejected, towards_margin if has_margin else None
    return double_backward(*directions, *tensors, *ctx.options), has_margin


def _backward_autograd(
    ctx: Any, towards_chosen: Tensor, towards_rejected: Tensor, towards_margin: Tensor
) -> tuple[Tensor | None, ...]:
    gradients, has_margin = _second_derivatives(ctx, towards_chosen, towards_rejected, towards_margin)
    wanted = [*ctx.needs_input_grad[:3], has_margin and ctx.needs_input_grad[3]]
    return _gradients(ctx, _BACKWARD_TENSORS + len(ctx.options), gradients, wanted)


def _third_derivative(ctx: Any, *_: Any) -> None:
    raise NotImplementedError(
        "the Bradley-Terry loss of prefloss has first and second derivatives; a third was asked for"
    )


torch.library.register_autograd(
    "prefloss::bradley_terry_forward", _forward_autograd, setup_context=_set_up_forward, lib=_library
)
torch.library.register_autograd(
    "prefloss::bradley_terry_backward", _backward_autograd, setup_context=_set_up_backward, lib=_library
)
torch.library.register_autograd("prefloss::bradley_terry_double_backward", _third_derivative, lib=_library)


def _register_vmap(name: str, operator: Any, tensors: int, outputs: int, margin: int | None) -> None:
    """One more leading batch dimension for every tensor. `margin`: the argument without which the last output is empty."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, tuple[int | None, ...]]:
        batched: list[Tensor | None] = []
        for tensor, dim in zip(arguments[:tensors], in_dims, strict=False):
            if tensor is None:
                batched.append(None)
            elif dim is None:
                batched.append(tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape))
            else:
                batched.append(tensor.movedim(dim, 0))
        *options, batch = arguments[tensors:]
        no_margin = margin is not None and arguments[margin] is None
        out_dims = [0] * (outputs - 1) + [None if no_margin else 0]
        return operator(*batched, *options, batch + 1), tuple(out_dims)

    torch.library.register_vmap(f"prefloss::{name}", rule, lib=_library)


_register_vmap("bradley_terry_forward", forward, _FORWARD_TENSORS, 2, None)
_register_vmap("bradley_terry_backward", backward, _BACKWARD_TENSORS, 3, 3)
_register_vmap("bradley_terry_double_backward", double_backward, _DOUBLE_BACKWARD_TENSORS, 4, 6)


class _FunctorchBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Any,
        chosen: Any,
        rejected: Any,
        margin: Any,
        weight: Any,
        target: Any,
        denominator: Any,
        sums: Any,
        options: Any,
    ) -> Any:
        return backward(grad, chosen, rejected, margin, weight, target, denominator, sums, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(
        ctx: Any, towards_chosen: Tensor, towards_rejected: Tensor, towards_margin: Tensor
    ) -> tuple[Tensor | None, ...]:
        gradients, has_margin = _second_derivatives(ctx, towards_chosen, towards_rejected, towards_margin)
        return _gradients(ctx, _BACKWARD_TENSORS + 1, gradients, [True, True, True, has_margin])


class FunctorchLoss(Function):
    """The loss and the sums under `torch.func`: the operators again, with the derivative rules where functorch looks for them."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        chosen: Any, rejected: Any, margin: Any, weight: Any, target: Any, denominator: Any, options: Any
    ) -> Any:
        return forward(chosen, rejected, margin, weight, target, denominator, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, sums = ctx.saved_tensors
        gradients = _FunctorchBackward.apply(grad, *tensors, sums, ctx.options)
        return _gradients(ctx, _FORWARD_TENSORS + 1, gradients, [True, True, tensors[2] is not None])


def gradients(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `backward` returns, under a transform or not."""
    if in_transform():
        tensors, options = arguments[:_BACKWARD_TENSORS], arguments[_BACKWARD_TENSORS:]
        return cast("tuple[Tensor, Tensor, Tensor]", _FunctorchBackward.apply(*tensors, options))
    return cast("tuple[Tensor, Tensor, Tensor]", backward(*arguments))


def as_tensor(denominator: Tensor | float | None, rewards: Tensor) -> Tensor | None:
    """A denominator as the operators take it: a number that changes from call to call must not be compiled in."""
    if denominator is None or isinstance(denominator, Tensor):
        return denominator
    return rewards.new_ones((), dtype=torch.float64) * denominator


def loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | float | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """(loss, sums) by the operators, under `torch.func` or not."""
    tensors = (chosen, rejected, margin, weight, target, as_tensor(denominator, chosen))
    if in_transform():
        return cast("tuple[Tensor, Tensor]", FunctorchLoss.apply(*tensors, options))
    return cast("tuple[Tensor, Tensor]", forward(*tensors, *options))
