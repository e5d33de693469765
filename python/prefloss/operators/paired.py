"""The operators over pairs: prefloss::paired_forward, and its first and second derivative. Kernels: csrc/bindings/paired.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from ..pairs import MEAN, NONE, Numbers, Pairs, accumulation_dtype
from ..stats import Sum
from ..torch_internals import will_run
from .operator import Operator, Options

# The options of pairs in a schema: the tensors, and the numbers, of which some stand for a tensor.
COLUMNS = ", ".join(f"Tensor? {name}" for name in Pairs._fields[2:])
NUMBERS = ", ".join(f"float {name}_number" if name in Pairs._fields else f"float {name}" for name in Numbers._fields)
_PAIRS = f"Tensor chosen, Tensor rejected, {COLUMNS}, Tensor? denominator, Tensor? numbers"
_OPTIONS = f"{NUMBERS}, int reduction, bool return_stats, int batch"
_GRADIENTS = 3  # of chosen, rejected and margin


def _loss_shape(chosen: Tensor, reduction: int, batch: int) -> torch.Size:
    return chosen.shape if reduction == NONE else chosen.shape[:batch]


def _forward_fake(chosen: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    reduction, _, batch = arguments[-3:]
    loss = chosen.new_empty(_loss_shape(chosen, reduction, batch), dtype=accumulation_dtype(chosen.dtype))
    return loss, chosen.new_empty((*chosen.shape[:batch], len(Sum)), dtype=torch.float64)


def _save_forward(
    tensors: tuple[Any, ...], options: Options, outputs: tuple[Tensor, Tensor]
) -> Sequence[Tensor | None]:
    *columns, denominator, _ = tensors
    divides = options[-3] == MEAN and Pairs(*columns).weight is not None and denominator is None
    return *tensors, outputs[1].clone() if divides else None  # a copy: the caller may add up his own in place


def _forward_derivative(ctx: Any, grad: Tensor | None, _: object) -> Sequence[Tensor | None]:
    if grad is None:
        return (None,) * _GRADIENTS
    return cast("Sequence[Tensor]", paired_backward(grad, *ctx.saved_tensors, *ctx.options))


paired_forward = Operator(
    f"paired_forward({_PAIRS}, {_OPTIONS}) -> (Tensor, Tensor)",
    fake=_forward_fake,
    save=_save_forward,
    derivative=_forward_derivative,
    constant=(1,),
    shared=("numbers",),
)


def _backward_fake(grad: Tensor, chosen: Tensor, rejected: Tensor, margin: Tensor | None, *arguments: Any) -> Any:
    empty = chosen.new_empty((*chosen.shape[: arguments[-1]], 0))
    return (
        chosen.new_empty(chosen.shape),
        chosen.new_empty(chosen.shape),
        empty if margin is None else chosen.new_empty(chosen.shape, dtype=margin.dtype),
    )


def _backward_derivative(ctx: Any, *towards: Tensor | None) -> Sequence[Tensor | None]:
    directions = towards if ctx.saved_tensors[3] is not None else (*towards[:2], None)
    return cast("Sequence[Tensor]", paired_double_backward(*directions, *ctx.saved_tensors, *ctx.options))


paired_backward = Operator(
    f"paired_backward(Tensor grad, {_PAIRS}, Tensor? sums, {_OPTIONS}) -> (Tensor, Tensor, Tensor)",
    fake=_backward_fake,
    save=lambda tensors, options, outputs: tensors,
    derivative=_backward_derivative,
    shared=("numbers",),
)


def _double_backward_fake(
    to_chosen: Tensor | None, to_rejected: Tensor | None, to_margin: Tensor | None, grad: Tensor, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return grad.new_empty(grad.shape), *_backward_fake(grad, *arguments)


def _double_backward_derivative(
    ctx: Any, along: Tensor | None, chosen: Tensor | None, rejected: Tensor | None, margin: Tensor | None
) -> Sequence[Tensor | None]:
    """By the directions, in which the second derivative is linear and symmetric: what a Hessian-vector product needs."""
    directions = sum(ctx.options.is_given[:_GRADIENTS])
    if will_run(ctx, range(directions, directions + 4)):
        raise NotImplementedError(
            "the Bradley-Terry loss of prefloss has first and second derivatives; a third was asked for"
        )
    saved = ctx.saved_tensors[_GRADIENTS:]
    result: list[Tensor | None] = [None] * _GRADIENTS
    if any(direction is not None for direction in (chosen, rejected, margin)):
        margin = margin if saved[3] is not None else None
        result = list(paired_double_backward(chosen, rejected, margin, *saved, *ctx.options)[1:])
    if along is not None:
        more = paired_backward(along, *saved[1:], *ctx.options)
        result = [its if total is None else total + its for total, its in zip(result, more, strict=True)]
    return result


paired_double_backward = Operator(
    "paired_double_backward(Tensor? towards_chosen, Tensor? towards_rejected, Tensor? towards_margin, Tensor grad, "
    f"{_PAIRS}, Tensor? sums, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor)",
    fake=_double_backward_fake,
    save=lambda tensors, options, outputs: tensors,
    derivative=_double_backward_derivative,
    shared=("numbers",),
)


def as_tensor(denominator: Tensor | float | None, rewards: Tensor) -> Tensor | None:
    """A denominator as the operators take it: a number that changes from call to call must not be compiled in."""
    if denominator is None:
        return None
    if isinstance(denominator, Tensor):
        return denominator.reshape(()).to(torch.float64)
    return rewards.new_ones((), dtype=torch.float64) * denominator


def paired_loss(
    pairs: Pairs, numbers: Numbers, denominator: Tensor | float | None, reduction: int, return_stats: bool
) -> tuple[Tensor, Tensor]:
    """(loss, sums) by the operators."""
    given, constant = numbers.for_operator()
    tensors = (*pairs, as_tensor(denominator, pairs.chosen), given)
    return cast("tuple[Tensor, Tensor]", paired_forward(*tensors, *constant, reduction, return_stats, 0))
