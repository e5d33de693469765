"""Items by index as operators: `take` gives each comparison its item's score, `accumulate` adds up what comes back to an item.

Each is the other's derivative, so first and second derivatives, `vmap` and tracing all come from these two and from the
operators over pairs. `accumulate` adds in float64 and in the comparisons' order: the same bits each time.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import Function

from .kernels import accumulation_dtype, check_indices
from .torch_internals import in_transform

_Optional = TypeVar("_Optional", Tensor, Tensor | None)

_library = torch.library.Library("prefloss", "FRAGMENT")
_library.define("take(Tensor items, Tensor index, str name) -> Tensor")
_library.define("accumulate(Tensor values, Tensor index, SymInt items) -> Tensor")
_take = torch.ops.prefloss.take.default
_accumulate = torch.ops.prefloss.accumulate.default


def _take_kernel(items: Tensor, index: Tensor, name: str) -> Tensor:
    """(..., items) and (..., P), or (P,) for all: (..., P)."""
    check_indices(name, index, items.shape[-1])
    return items.gather(-1, index.long().expand(*items.shape[:-1], index.shape[-1]))


def _accumulate_kernel(values: Tensor, index: Tensor, items: int) -> Tensor:
    """(..., P) and the index as above: (..., items)."""
    rows = values.shape[:-1].numel()
    first = torch.arange(rows, device=index.device).mul(items).unsqueeze(1)
    flat = (index.long().expand(values.shape).reshape(rows, values.shape[-1]) + first).flatten()
    total = values.new_zeros(rows * items, dtype=torch.float64)
    if values.is_cpu:
        total.index_add_(0, flat, values.flatten().double())
    else:  # sorted by index first, which on a GPU is what makes the order the same each time
        total.index_put_((flat,), values.flatten().double(), accumulate=True)
    return total.to(values.dtype).reshape(*values.shape[:-1], items)


for _device in ("CPU", "CUDA"):
    _library.impl("take", _take_kernel, _device)
    _library.impl("accumulate", _accumulate_kernel, _device)


@torch.library.register_fake("prefloss::take", lib=_library)
def _take_fake(items: Tensor, index: Tensor, name: str) -> Tensor:
    return items.new_empty((*items.shape[:-1], index.shape[-1]))


@torch.library.register_fake("prefloss::accumulate", lib=_library)
def _accumulate_fake(values: Tensor, index: Tensor, items: int) -> Tensor:
    return values.new_empty((*values.shape[:-1], items))


def _set_up_take(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    items, index, ctx.name = inputs
    ctx.items = items.shape[-1]
    ctx.save_for_backward(index)


def _set_up_accumulate(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _take_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return accumulate(grad, ctx.saved_tensors[0], ctx.items), None, None


def _accumulate_autograd(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return take(grad, ctx.saved_tensors[0], "index"), None, None


torch.library.register_autograd("prefloss::take", _take_autograd, setup_context=_set_up_take, lib=_library)
torch.library.register_autograd(
    "prefloss::accumulate", _accumulate_autograd, setup_context=_set_up_accumulate, lib=_library
)


def _register_vmap(name: str, operator: Any) -> None:
    def rule(
        info: Any, in_dims: tuple[int | None, ...], tensor: Tensor, index: Tensor, last: Any
    ) -> tuple[Tensor, int]:
        batched = (
            tensor.unsqueeze(0).expand(info.batch_size, *tensor.shape)
            if in_dims[0] is None
            else tensor.movedim(in_dims[0], 0)
        )
        if in_dims[1] is not None:
            index = index.movedim(in_dims[1], 0)
            index = index.reshape(info.batch_size, *(1,) * (batched.dim() - index.dim()), *index.shape[1:])
        return operator(batched, index, last), 0

    torch.library.register_vmap(f"prefloss::{name}", rule, lib=_library)


_register_vmap("take", _take)
_register_vmap("accumulate", _accumulate)


class _FunctorchTake(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(items: Any, index: Any, name: Any) -> Any:
        return _take(items, index, name)

    setup_context = staticmethod(_set_up_take)
    backward = staticmethod(_take_autograd)


class _FunctorchAccumulate(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(values: Any, index: Any, items: Any) -> Any:
        return _accumulate(values, index, items)

    setup_context = staticmethod(_set_up_accumulate)
    backward = staticmethod(_accumulate_autograd)


def take(items: Tensor, index: Tensor, name: str) -> Tensor:
    """The items' entries by index. `name`: what an IndexError calls the index."""
    apply = _FunctorchTake.apply if in_transform() else _take
    return cast(Tensor, apply(items, index, name))


def accumulate(values: Tensor, index: Tensor, items: int) -> Tensor:
    """For each item the sum of its entries of `values`."""
    apply = _FunctorchAccumulate.apply if in_transform() else _accumulate
    return cast(Tensor, apply(values, index, items))


def widened(values: _Optional) -> _Optional:
    """Half precision as float32; anything else, a mask too, as it is."""
    if values is None or not values.is_floating_point():
        return values
    return values.to(accumulation_dtype(values.dtype))
