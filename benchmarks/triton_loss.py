"""The same loss as a pair of Triton kernels, as one would write them by hand: the GPU benchmark's closest rival.

One pass forward with a sum a program, one pass backward that recomputes the slope and has the upstream gradient fused in.
Rewards are contiguous and of one shape; half precision is computed in float32. With the environment variable
TRITON_INTERPRET=1, set before Triton is imported, it runs on CPU tensors.
"""

# mypy: disallow-untyped-decorators=False, disallow-untyped-calls=False

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

VERSION: str = triton.__version__
BLOCK = 2_048  # pairs a program takes at once: with 4 warps four 16-byte loads of each float32 tensor for every thread
ONE_PROGRAM = 8_192  # up to so many pairs one program is faster than a second launch that adds partial sums
PROGRAMS = 2_048  # enough to fill any GPU, and few partial sums


def bradley_terry_loss(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The mean of -log sigma(chosen - rejected), float32."""
    loss: Tensor = _BradleyTerryLoss.apply(chosen, rejected)
    return loss


class _BradleyTerryLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, chosen: Tensor, rejected: Tensor) -> Tensor:
        ctx.save_for_backward(chosen, rejected)
        pairs = chosen.numel()
        programs = 1 if pairs <= ONE_PROGRAM else min(triton.cdiv(pairs, BLOCK), PROGRAMS)
        sums = torch.empty(programs, device=chosen.device, dtype=torch.float32)
        _sum_losses[(programs,)](chosen, rejected, sums, pairs, 1.0 / pairs, block=BLOCK, num_warps=4)
        return sums.view(()) if programs == 1 else sums.sum()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        chosen, rejected = ctx.saved_tensors
        grad_chosen, grad_rejected = torch.empty_like(chosen), torch.empty_like(rejected)
        pairs = chosen.numel()
        _gradients[(triton.cdiv(pairs, BLOCK),)](
            upstream[0], chosen, rejected, grad_chosen, grad_rejected, pairs, 1.0 / pairs, block=BLOCK, num_warps=4
        )
        return grad_chosen, grad_rejected


@triton.jit
def _difference(chosen, rejected, offsets, mask):  # type: ignore[no-untyped-def]
    """Pairs beyond the end get a difference of 0."""
    a = tl.load(chosen + offsets, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(rejected + offsets, mask=mask, other=0.0).to(tl.float32)
    return a - b


@triton.jit
def _sum_losses(chosen, rejected, sums, pairs, scale, block: tl.constexpr):  # type: ignore[no-untyped-def]
    total = tl.zeros((block,), dtype=tl.float32)
    for first in range(tl.program_id(0) * block, pairs, tl.num_programs(0) * block):
        offsets = first + tl.arange(0, block)
        mask = offsets < pairs
        z = _difference(chosen, rejected, offsets, mask)
        losses = tl.log(1.0 + tl.exp(-tl.abs(z))) + tl.maximum(-z, 0.0)
        total += tl.where(mask, losses, 0.0)
    tl.store(sums + tl.program_id(0), tl.sum(total) * scale)


@triton.jit
def _gradients(upstream, chosen, rejected, grad_chosen, grad_rejected, pairs, scale, block: tl.constexpr):  # type: ignore[no-untyped-def]
    offsets = tl.program_id(0) * block + tl.arange(0, block)
    mask = offsets < pairs
    z = _difference(chosen, rejected, offsets, mask)
    e = tl.exp(-tl.abs(z))
    gradient = -scale * tl.load(upstream) * tl.where(z < 0, 1.0, e) / (1.0 + e)
    tl.store(grad_chosen + offsets, gradient, mask=mask)
    tl.store(grad_rejected + offsets, -gradient, mask=mask)
