"""The compiled kernels over tensors: outputs are allocated here, and addresses, strides and numbers handed to `prefloss._core`.

For the operators, which make every tensor plain. `batch` is the number of leading dimensions that are reduced
separately (vmap); optional tensors have the rewards' shape. The divisor of a weighted mean is one of the `sums`, so
nothing of the pairs' size is kept for backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _core
from .stats import Sum

REWARD_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DTYPE_TAGS = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3, torch.bool: 4}
SUMS = len(Sum)
# Fewer pairs than this are done before a second thread would have started.
PARALLEL_PAIRS = 32_768

_Column = tuple[int, int, int, int]
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


class _Rows:
    """The batch of a call: `rows` sets of `count` pairs. Keeps the flattened tensors alive while their addresses are in use."""

    def __init__(self, rewards: Tensor, batch: int) -> None:
        self.batch_shape = rewards.shape[:batch]
        self.rows = self.batch_shape.numel()
        self.count = rewards.shape[batch:].numel()
        self._alive: list[Tensor] = []

    def column(self, tensor: Tensor) -> _Column:
        """One entry a pair: the tensor itself where strides can say it, else a copy."""
        flat = tensor.detach().reshape(self.rows, self.count)
        self._alive.append(flat)
        row_stride, stride = flat.stride()
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], stride if self.count > 1 else 1, row_stride

    def optional(self, tensor: Tensor | None) -> _Column | None:
        return None if tensor is None else self.column(tensor)

    def per_row(self, tensor: Tensor) -> _Column:
        """One entry a row."""
        flat = tensor.detach().reshape(self.rows)
        self._alive.append(flat)
        return flat.data_ptr(), DTYPE_TAGS[flat.dtype], 0, flat.stride(0)

    def pairs(
        self,
        chosen: Tensor,
        rejected: Tensor,
        margin: Tensor | None,
        weight: Tensor | None,
        target: Tensor | None,
        options: Options,
    ) -> tuple[object, ...]:
        columns = map(self.optional, (chosen, rejected, margin, weight, target))
        return (*columns, self.rows, self.count, options[:5])

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
        return 1.0, sums.data_ptr() + sums.element_size() * Sum.WEIGHT, SUMS, True


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
    batch = _Rows(chosen, options.batch)
    pairs = batch.pairs(chosen, rejected, margin, weight, target, options)
    none = options.reduction == "none"
    loss = chosen.new_empty(chosen.shape if none else batch.batch_shape, dtype=accumulation_dtype(chosen.dtype))
    sums = chosen.new_empty((*batch.batch_shape, SUMS), dtype=torch.float64)
    _core.paired_forward(
        pairs,
        batch.divisor(weight, denominator, None, options.reduction),
        0 if none else loss.data_ptr(),
        batch.column(loss) if none else None,
        sums.data_ptr(),
        options.return_stats,
        threads(batch.rows * batch.count),
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
    batch = _Rows(chosen, options.batch)
    per_loss = batch.column if options.reduction == "none" else batch.per_row
    grad_chosen, grad_rejected = chosen.new_empty(chosen.shape), rejected.new_empty(rejected.shape)
    grad_margin = None if margin is None else margin.new_empty(margin.shape)
    _core.paired_backward(
        batch.pairs(chosen, rejected, margin, weight, target, options),
        batch.divisor(weight, denominator, sums, options.reduction),
        per_loss(grad),
        batch.column(grad_chosen),
        batch.column(grad_rejected),
        batch.optional(grad_margin),
        threads(batch.rows * batch.count),
    )
    return grad_chosen, grad_rejected, grad_margin


def double_backward(
    directions: Sequence[Tensor | None],
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

    `directions`: the vectors for the gradients with respect to chosen, rejected and margin.
    """
    batch = _Rows(chosen, options.batch)
    per_loss = batch.column if options.reduction == "none" else batch.per_row
    grad_upstream = grad.new_empty(grad.shape)
    grad_chosen, grad_rejected = chosen.new_empty(chosen.shape), rejected.new_empty(rejected.shape)
    grad_margin = None if margin is None else margin.new_empty(margin.shape)
    towards_chosen, towards_rejected, towards_margin = map(batch.optional, directions)
    _core.paired_double_backward(
        batch.pairs(chosen, rejected, margin, weight, target, options),
        batch.divisor(weight, denominator, sums, options.reduction),
        per_loss(grad),
        towards_chosen,
        towards_rejected,
        towards_margin,
        per_loss(grad_upstream),
        batch.column(grad_chosen),
        batch.column(grad_rejected),
        batch.optional(grad_margin),
        threads(batch.rows * batch.count),
    )
    return grad_upstream, grad_chosen, grad_rejected, grad_margin
