"""What is timed: cases (kind, dtype, number of pairs), each with its contenders.

Every contender's result is held against the NumPy reference before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import call_cases
import item_cases
import numpy as np
import torch
import torch.nn.functional as F
from contenders import OURS, OURS_WITH_OPTIONS, THEIRS, Contender, Expected, as_array, check_gradients, check_loss, step
from item_cases import GROUPS, ITEMS, LIST_SIZES, LISTS
from torch import Tensor

import prefloss
from prefloss import _core, reference
from prefloss.pairs import DEFAULTS, PAIRED

OPTIONS = {"beta": 0.5, "label_smoothing": 0.1}
STEP_SIZES = (8, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
KERNEL_SIZES = (4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)


class Case(NamedTuple):
    kind: str
    dtype: torch.dtype
    size: int

    def __str__(self) -> str:
        return f"{self.kind}, {str(self.dtype).removeprefix('torch.')}, {self.size}"


CASES = (
    *(Case("step", torch.float32, size) for size in STEP_SIZES),
    *(
        Case("step", dtype, size)
        for dtype in (torch.bfloat16, torch.float16, torch.float64)
        for size in (256, 1_048_576)
    ),
    *(Case("options", torch.float32, size) for size in (8, 64, 256, 65_536, 1_048_576)),
    *(Case(kind, torch.float32, size) for kind, size in call_cases.NAMES),
    *(Case("indexed", torch.float32, size) for size in ITEMS),
    *(Case("grouped", torch.float32, size) for size in GROUPS),
    *(Case("list", torch.float32, size) for size in LIST_SIZES),
    *(Case(kind, torch.float32, size) for kind in LISTS[1:] for size in (10_000, 100_000, 1_000_000)),
    *(Case(kind, torch.float32, size) for size in KERNEL_SIZES for kind in ("forward kernel", "backward kernel")),
)


# Their peak memory is measured too.
WITH_PEAKS = tuple(case for case in CASES if case.kind in ("grouped", "list"))


def contenders_of(case: Case, *, compiled: bool) -> dict[str, Contender]:
    """The contenders of a case by name, "prefloss" first. The reference is computed by the first check, not here.

    `compiled` adds torch.compile, which needs a C++ compiler and time.
    """
    generator = torch.Generator().manual_seed(case.size)
    if case.kind.startswith("call "):
        return call_cases.contenders_of(case.kind, case.size, generator, compiled)
    if case.kind == "indexed":
        return item_cases.indexed(case.size, generator)
    if case.kind in LISTS:
        return item_cases.lists(case.kind, case.size, generator)
    if case.kind == "grouped":
        return item_cases.grouped(case.size, generator)
    chosen, rejected = (torch.randn(case.size, generator=generator) for _ in range(2))
    chosen, rejected = ((chosen + 0.5).to(case.dtype).requires_grad_(), rejected.to(case.dtype).requires_grad_())
    if case.kind == "step":
        return _steps(chosen, rejected, compiled)
    if case.kind == "options":
        return _steps_with_options(chosen, rejected, generator)
    return _kernels(case.kind, chosen.detach(), rejected.detach())


def eager(chosen: Tensor, rejected: Tensor) -> Tensor:
    return -F.logsigmoid(chosen - rejected).mean()


def cheapest(chosen: Tensor, rejected: Tensor) -> Tensor:
    return (chosen - rejected).sum()


def _steps(chosen: Tensor, rejected: Tensor, compiled: bool) -> dict[str, Contender]:
    pair, expected, theirs = (chosen, rejected), _expected(chosen, rejected, {}), THEIRS[chosen.dtype]
    contenders = {
        "prefloss": step(prefloss.bradley_terry_loss, pair, expected, OURS[chosen.dtype]),
        "eager": step(eager, pair, expected, theirs),
    }
    if chosen.dtype is torch.float32:  # a sum overflows float16
        contenders["cheapest two-input op"] = step(cheapest, pair, _expected_sum(chosen, rejected), theirs)
    if compiled:
        torch._dynamo.reset()  # each size gets its own code, as fast as it can be, instead of one for all sizes
        function = torch.compile(eager, fullgraph=True, dynamic=False)
        contenders["torch.compile"] = step(function, pair, expected, theirs)
    return contenders


def _steps_with_options(chosen: Tensor, rejected: Tensor, generator: torch.Generator) -> dict[str, Contender]:
    margin, weight = (torch.rand(chosen.shape, generator=generator) for _ in range(2))
    beta, smoothing = OPTIONS["beta"], OPTIONS["label_smoothing"]

    def composed(chosen: Tensor, rejected: Tensor) -> Tensor:
        z = beta * (chosen - rejected) - margin
        losses = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
        return (weight * losses).sum() / weight.sum()

    fused = partial(prefloss.bradley_terry_loss, margin=margin, weight=weight, beta=beta, label_smoothing=smoothing)
    pair = chosen, rejected
    expected = _expected(chosen, rejected, {"margin": margin.numpy(), "weight": weight.numpy(), **OPTIONS})
    return {
        "prefloss": step(fused, pair, expected, OURS_WITH_OPTIONS),
        "composed": step(composed, pair, expected, THEIRS[chosen.dtype]),
    }


def _kernels(kind: str, chosen: Tensor, rejected: Tensor) -> dict[str, Contender]:
    """A kernel without autograd or allocation, against copying the two inputs into outputs that are there already."""
    expected, tolerance = _expected(chosen, rejected, {}), OURS[chosen.dtype]
    first, second = torch.zeros_like(chosen), torch.zeros_like(rejected)
    loss, upstream = torch.zeros(()), torch.ones(())
    options = None, None, None, None  # margin, weight, target, denominator
    as_given = DEFAULTS.as_given("mean", None, False)
    call = _core.paired_call(chosen, rejected, PAIRED, None, None, None, as_given, False)
    assert call is not None

    def forward() -> None:
        _core.paired_forward(chosen, rejected, *options, call, loss, None)

    def check_forward() -> float:
        forward()
        return check_loss(loss, expected().loss, tolerance)

    def backward() -> bool:
        return _core.paired_backward(upstream, chosen, rejected, *options, None, call, first, second, None)

    def check_backward() -> float:
        assert backward()
        check_gradients((first, second), expected(), tolerance)
        return 0.0

    def copy() -> None:
        first.copy_(chosen)
        second.copy_(rejected)

    def check_copy() -> float:
        copy()
        assert torch.equal(first, chosen)
        assert torch.equal(second, rejected)
        return 0.0

    ours = Contender(forward, check_forward) if kind == "forward kernel" else Contender(backward, check_backward)
    return {"prefloss": ours, "two copies": Contender(copy, check_copy)}


def _expected(chosen: Tensor, rejected: Tensor, options: dict[str, Any]) -> Callable[[], Expected]:
    @cache
    def compute() -> Expected:
        arrays = as_array(chosen), as_array(rejected)
        loss = reference.bradley_terry_loss(*arrays, **options)
        grad_chosen, grad_rejected, _ = reference.bradley_terry_gradient(1.0, *arrays, **options)
        return Expected(float(loss), (torch.from_numpy(grad_chosen), torch.from_numpy(grad_rejected)))

    return compute


def _expected_sum(chosen: Tensor, rejected: Tensor) -> Callable[[], Expected]:
    def compute() -> Expected:
        ones = torch.ones_like(chosen, dtype=torch.float64)
        return Expected(float(np.sum(as_array(chosen) - as_array(rejected), dtype=np.float64)), (ones, -ones))

    return compute
