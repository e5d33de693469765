"""The compiled kernels over tensors: outputs are allocated here, and addresses, strides and numbers handed to `prefloss._core`.

For the operators, which make every tensor plain. `batch` is the number of leading dimensions that are reduced
separately (vmap); optional tensors have the rewards' shape. The divisor of a weighted mean is one of the `sums`, so
nothing of the pairs' size is kept for backward.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from .stats import Sum

REWARD_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_TAGS = {
    torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.bool: 4,
    torch.int64: 5, torch.int32: 6, torch.int16: 7, torch.int8: 8, torch.uint8: 9,
}  # fmt: skip
SUMS = len(Sum)
# Fewer pairs than this are done before a second thread would have started.
PARALLEL_PAIRS = 32_768
# So many pairs are within the reach of one thread, and of one block of a GPU, whatever their dtype.
SMALL = 2048

_Column = tuple[int, int, int, int]
Place = tuple[bool, int, int, int]
# beta, margin, target, label_smoothing, center_rewards_coefficient
Numbers = tuple[float, float, float, float, float]


class Options(NamedTuple):
    """The options that are not tensors, in the order of the ops' arguments."""

    beta: float = 1.0
    margin_number: float = 0.0
    target_number: float = 1.0
    label_smoothing: float = 0.0
    center_rewards_coefficient: float = 0.0
    reduction: str = "mean"
    return_stats: bool = False
    batch: int = 0


def accumulation_dtype(rewards: torch.dtype) -> torch.dtype:
    """The loss's dtype: float64 for float64 rewards, float32 for all others."""
    return torch.float64 if rewards is torch.float64 else torch.float32


def threads(pairs: int) -> int:
    return torch.get_num_threads() if pairs >= PARALLEL_PAIRS else 1


def scratch(rewards: Tensor, rows: int, count: int) -> Tensor | None:
    """Memory for partial sums, where a GPU needs more than one block a row."""
    size = _core.scratch_size(rewards.is_cuda, DTYPE_TAGS[rewards.dtype], rows, count)
    return rewards.new_empty((size,), dtype=torch.float64) if size else None


def resources(rewards: Tensor, pairs: int) -> tuple[int, Tensor | None]:
    """(threads, scratch) of one set of pairs."""
    return (1, None) if pairs <= SMALL else (threads(pairs), scratch(rewards, 1, pairs))


def place(rewards: Tensor, threads: int, scratch: Tensor | None) -> Place:
    """(whether on CUDA, threads, the current stream, address of the scratch memory): where a kernel runs, and with what."""
    address = 0 if scratch is None else scratch.data_ptr()
    if not rewards.is_cuda:
        return False, threads, 0, address
    return True, 1, torch.cuda.current_stream(rewards.device).cuda_stream, address


class _Rows:
    """The batch of a call: `rows` sets of `count` pairs. Keeps the flattened tensors alive while their addresses are in use."""

    def __init__(self, rewards: Tensor, shape: torch.Size, batch: int) -> None:
        """`shape`: the pairs', the batch's dimensions first. They lie in memory like `rewards`, on the same device."""
        self.batch_shape = shape[:batch]
        self.rows = self.batch_shape.numel()
        self.count = shape[batch:].numel()
        self.rewards = rewards
        self._alive: list[Tensor | None] = []

    def column(self, name: str, tensor: Tensor, *dtypes: torch.dtype) -> _Column:
        """One entry a pair: the tensor itself where strides can say it, else a copy."""
        flat = self._flat(name, tensor, (self.rows, self.count), *dtypes)
        row_stride, stride = flat.stride()
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], stride if self.count > 1 else 1, row_stride

    def optional(self, name: str, tensor: Tensor | None, *dtypes: torch.dtype) -> _Column | None:
        return None if tensor is None else self.column(name, tensor, *dtypes)

    def per_loss(self, name: str, tensor: Tensor, reduction: str) -> _Column:
        """One entry a loss: a pair's, or a row's."""
        dtype = accumulation_dtype(self.rewards.dtype)
        if reduction == "none":
            return self.column(name, tensor, dtype)
        flat = self._flat(name, tensor, (self.rows,), dtype)
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], 0, flat.stride(0)

    def _flat(self, name: str, tensor: Tensor, shape: tuple[int, ...], *dtypes: torch.dtype) -> Tensor:
        """The public functions have checked all this; a saved tensor may have been changed since."""
        if tensor.dtype not in dtypes or tensor.device != self.rewards.device or tensor.numel() != math.prod(shape):
            raise ValueError(
                f"{name} does not fit rewards of shape {tuple(self.rewards.shape)}, {self.rewards.dtype}, on "
                f"{self.rewards.device}: got shape {tuple(tensor.shape)}, {tensor.dtype}, on {tensor.device}; was it "
                f"changed between forward and backward?"
            )
        flat = tensor.detach().reshape(shape)
        if flat.numel() > 0 and flat.data_ptr() == 0:
            raise ValueError(f"{name} has no memory (a null pointer); a plain dense tensor is needed")
        self._alive.append(flat)
        return flat

    def pairs(
        self,
        chosen: Tensor,
        rejected: Tensor,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        options: Options,
    ) -> tuple[object, ...]:
        dtype = chosen.dtype
        if dtype not in REWARD_DTYPES:
            raise TypeError(f"chosen must have dtype float64, float32, bfloat16 or float16, got {dtype}")
        columns = self.column("chosen", chosen, dtype), self.column("rejected", rejected, dtype)
        return (*columns, *self.optionals(margin, weight, target), self.rows, self.count, options[:5])

    def optionals(
        self, margin: Tensor | None, weight: Tensor | None, target: Tensor | None
    ) -> tuple[_Column | None, _Column | None, _Column | None]:
        dtype = self.rewards.dtype
        return (
            self.optional("margin", margin, dtype, torch.float32),
            self.optional("weight", weight, dtype, torch.float32, torch.bool),
            self.optional("target", target, dtype, torch.float32),
        )

    def items(self, scores: Tensor) -> _Column:
        """One entry an item, which pairs name by index."""
        flat = self._flat("scores", scores, tuple(scores.shape), self.rewards.dtype)
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], flat.stride(0), 0

    def gradients(
        self, kind: str, chosen: Tensor, rejected: Tensor, margin: Tensor | None
    ) -> tuple[_Column, _Column, _Column | None]:
        """What has one entry for each entry of the rewards and of the margin: gradients, or directions of derivatives."""
        dtype = self.rewards.dtype
        return (
            self.column(f"{kind} chosen", chosen, dtype),
            self.column(f"{kind} rejected", rejected, dtype),
            self.optional(f"{kind} margin", margin, dtype, torch.float32),
        )

    def place(self, *, sums: bool = False) -> Place:
        """Where a kernel runs, and with what."""
        partial = scratch(self.rewards, self.rows, self.count) if sums else None
        self._alive.append(partial)
        return place(self.rewards, threads(self.rows * self.count), partial)

    def divisor(
        self, weight: Tensor | None, denominator: Tensor | None, sums: Tensor | None, reduction: str
    ) -> tuple[float, int, int, bool]:
        """(number, address of one float64 a row or 0, its stride, whether that is a total weight)."""
        if reduction != "mean":
            return 1.0, 0, 0, False
        if denominator is not None:
            rows = denominator.detach().to(torch.float64).expand(self.batch_shape).reshape(self.rows)
            self._alive.append(rows)
            return 1.0, rows.data_ptr(), rows.stride(0), False
        if weight is None:
            return float(max(self.count, 1)), 0, 0, False
        if sums is None:
            return 1.0, 0, 0, True
        flat = self._flat("sums", sums[..., Sum.WEIGHT], (self.rows,), torch.float64)
        return 1.0, flat.data_ptr(), flat.stride(0), True


def divisor(
    count: int, weight: Tensor | None, denominator: Tensor | None, sums: Tensor, reduction: str
) -> Tensor | float:
    """What `_Rows.divisor` describes to a kernel, of one set of `count` pairs."""
    if reduction != "mean":
        return 1.0
    if denominator is not None:
        return denominator
    if weight is None:
        return float(max(count, 1))
    return torch.where(sums[Sum.WEIGHT] == 0, 1.0, sums[Sum.WEIGHT])


def forward(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor]:
    """The loss, () or one a row, or per-pair losses; and the float64 sums, (..., 16).

    Without `return_stats`, of the sums only the total weight means anything, and only where weights are given.
    """
    batch = _Rows(chosen, chosen.shape, options.batch)
    pairs = batch.pairs(chosen, rejected, margin, weight, target, options)
    none = options.reduction == "none"
    loss = chosen.new_empty(chosen.shape if none else batch.batch_shape, dtype=accumulation_dtype(chosen.dtype))
    sums = chosen.new_empty((*batch.batch_shape, SUMS), dtype=torch.float64)
    _core.paired_forward(
        pairs,
        batch.divisor(weight, denominator, None, options.reduction),
        0 if none else loss.data_ptr(),
        batch.per_loss("loss", loss, options.reduction) if none else None,
        sums.data_ptr(),
        options.return_stats,
        batch.place(sums=True),
    )
    return loss, sums


def backward(
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
    sums: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients with respect to chosen, rejected and margin. `grad` has the loss's shape."""
    batch = _Rows(chosen, chosen.shape, options.batch)
    grad_chosen, grad_rejected = chosen.new_empty(chosen.shape), rejected.new_empty(rejected.shape)
    grad_margin = None if margin is None else margin.new_empty(margin.shape)
    _core.paired_backward(
        batch.pairs(chosen, rejected, margin, weight, target, options),
        batch.divisor(weight, denominator, sums, options.reduction),
        batch.per_loss("the upstream gradient", grad, options.reduction),
        *batch.gradients("the gradient of", grad_chosen, grad_rejected, grad_margin),
        batch.place(),
    )
    return grad_chosen, grad_rejected, grad_margin


def double_backward(
    towards_chosen: Tensor,
    towards_rejected: Tensor,
    towards_margin: Tensor | None,
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
    sums: Tensor | None,
    options: Options,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The vector-Jacobian products of `backward` with respect to grad, chosen, rejected and margin.

    `towards_chosen`, ...: the vectors, one for each of its results.
    """
    batch = _Rows(chosen, chosen.shape, options.batch)
    grad_upstream = grad.new_empty(grad.shape)
    grad_chosen, grad_rejected = chosen.new_empty(chosen.shape), rejected.new_empty(rejected.shape)
    grad_margin = None if margin is None else margin.new_empty(margin.shape)
    _core.paired_double_backward(
        batch.pairs(chosen, rejected, margin, weight, target, options),
        batch.divisor(weight, denominator, sums, options.reduction),
        batch.per_loss("the upstream gradient", grad, options.reduction),
        *batch.gradients("the direction towards", towards_chosen, towards_rejected, towards_margin),
        batch.per_loss("the upstream gradient", grad_upstream, options.reduction),
        *batch.gradients("the gradient of", grad_chosen, grad_rejected, grad_margin),
        batch.place(sums=True),
    )
    return grad_upstream, grad_chosen, grad_rejected, grad_margin


def indexed_forward(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
    options: Options,
    with_slopes: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, sums, slopes) of comparisons of items by index, on the CPU.

    `slopes`, float64, one an item: the derivatives of the sum of the terms, not divided; none without `with_slopes`.
    Raises IndexError.
    """
    batch = _Rows(scores, chosen_index.shape, 0)
    items = scores.shape[0]
    chosen, rejected = chosen_index.contiguous(), rejected_index.contiguous()
    loss = scores.new_empty((), dtype=accumulation_dtype(scores.dtype))
    sums = scores.new_empty((SUMS,), dtype=torch.float64)
    slopes = scores.new_empty((items if with_slopes else 0,), dtype=torch.float64)
    in_range = _core.indexed_forward(
        (batch.items(scores), items, chosen.data_ptr(), rejected.data_ptr(), chosen.dtype is torch.int64),
        (None, None, *batch.optionals(margin, weight, target), 1, batch.count, options[:5]),
        batch.divisor(weight, denominator, None, options.reduction),
        loss.data_ptr(),
        sums.data_ptr(),
        options.return_stats,
        slopes.data_ptr(),
        threads(batch.count),
    )
    if not in_range:
        check_indices("chosen_index", chosen_index, items)
        check_indices("rejected_index", rejected_index, items)
    return loss, sums, slopes


def check_indices(name: str, index: Tensor, items: int) -> None:
    """IndexError where an index is not in [0, items); on a GPU an assertion, which nobody waits for."""
    outside = (index < 0) | (index >= items)
    if not index.is_cpu:
        torch._assert_async(~outside.any(), f"{name} has an entry that is not in [0, {items})")
    elif bool(outside.any()):
        position = tuple(outside.nonzero()[0].tolist())
        raise IndexError(
            f"{name} must hold indices of the {items} scores, in [0, {items}), got {int(index[position])} at position "
            f"{position[0] if len(position) == 1 else position}"
        )
