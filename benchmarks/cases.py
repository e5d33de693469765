"""What is timed: cases (kind, dtype, number of pairs), each with its contenders.

Every contender's result is held against the NumPy reference before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import prefloss
from prefloss import _core, kernels, reference

LossFunction = Callable[..., Tensor]
OPTIONS = {"beta": 0.5, "label_smoothing": 0.1}
STEP_SIZES = (8, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216)
ITEMS = {10_000_000: 100_000, 2_000_000: 200}  # of so many comparisons by index
GROUPS = {9: 4_096, 64: 512, 512: 32, 4_096: 1}  # of so many items each
# One ranked list: distinct ranks and normal scores unless the kind says otherwise.
LISTS = ("list", "list, two ranks", "list, deviation 30", "list, outlier")
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
    *(Case("indexed", torch.float32, size) for size in ITEMS),
    *(Case("grouped", torch.float32, size) for size in GROUPS),
    *(Case(kind, torch.float32, size) for kind in LISTS for size in (10_000, 100_000, 1_000_000)),
    *(Case(kind, torch.float32, size) for size in KERNEL_SIZES for kind in ("forward kernel", "backward kernel")),
)


class Contender(NamedTuple):
    """`run` is what is timed; `check` asserts what it computed and returns the relative error of the loss."""

    run: Callable[[], object]
    check: Callable[[], float]


class Expected(NamedTuple):
    """The reference's float64 results, the gradients where the rewards are."""

    loss: float
    gradients: tuple[Tensor, ...]


class Tolerance(NamedTuple):
    """Relative tolerance of the loss, and of each entry of a gradient: of that entry, plus of the greatest entry."""

    loss: float
    entry: float = 0.0
    greatest: float = 0.0


# Ours: the loss is rounded once to float32 (float64), and a gradient once to its dtype.
OURS = {
    torch.float64: Tolerance(1e-14, entry=1e-14),
    torch.float32: Tolerance(1e-7, entry=3e-7),
    torch.bfloat16: Tolerance(1e-7, entry=2.0**-8),
    torch.float16: Tolerance(1e-7, entry=2.0**-10),
}
# With smoothed labels the slope passes through 0, where its two terms cancel.
OURS_WITH_OPTIONS = Tolerance(3e-7, greatest=3e-7)
# Theirs: wide enough for means in half precision, and for torch.compile's, which is one float32 sum.
THEIRS = {
    torch.float64: Tolerance(1e-10, greatest=1e-10),
    torch.float32: Tolerance(1e-3, greatest=1e-6),
    torch.bfloat16: Tolerance(3e-2, greatest=3e-2),
    torch.float16: Tolerance(3e-2, greatest=3e-2),
}


def contenders_of(case: Case, *, compiled: bool) -> dict[str, Contender]:
    """The contenders of a case by name, "prefloss" first. The reference is computed by the first check, not here.

    `compiled` adds torch.compile, which needs a C++ compiler and time.
    """
    generator = torch.Generator().manual_seed(case.size)
    if case.kind == "indexed":
        return _indexed(case, generator)
    if case.kind in LISTS:
        return _list(case, generator)
    if case.kind == "grouped":
        return _grouped(case.size, generator)
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


def _indexed(case: Case, generator: torch.Generator) -> dict[str, Contender]:
    """Comparisons of ITEMS items by int64 index; those of few items also merged, which an optimiser does once."""
    items = ITEMS[case.size]
    scores = torch.randn(items, generator=generator).requires_grad_()
    chosen, rejected = torch.randint(items, (2, case.size), generator=generator)

    @cache
    def expected() -> Expected:
        array, indices = _array(scores), (_array(chosen), _array(rejected))
        gradient, _ = reference.bradley_terry_gradient_indexed(1.0, array, *indices)
        loss = reference.bradley_terry_loss(*(array[index] for index in indices))
        return Expected(float(loss), (torch.from_numpy(gradient),))

    def ours(scores: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_indexed(scores, chosen, rejected)

    def theirs(scores: Tensor) -> Tensor:
        return -F.logsigmoid(scores[chosen] - scores[rejected]).mean()

    contenders = {
        "prefloss": step(ours, (scores,), expected, OURS_WITH_OPTIONS),
        "eager": step(theirs, (scores,), expected, Tolerance(1e-3, greatest=1e-4)),
    }
    if items < 1000:
        merged = prefloss.merge_comparisons(chosen, rejected)
        contenders["prefloss, merged"] = step(
            lambda scores: prefloss.bradley_terry_loss_indexed(scores, **merged), (scores,), expected, OURS_WITH_OPTIONS
        )
    return contenders


def _grouped(size: int, generator: torch.Generator) -> dict[str, Contender]:
    """GROUPS groups of `size` items in random order, against both ways to compose their pairs from tensor operations."""
    groups = GROUPS[size]
    rewards = torch.randn(groups, size, generator=generator).requires_grad_()
    ranks = torch.rand(groups, size, generator=generator).argsort(1)
    first, second = torch.triu_indices(size, size, 1)

    @cache
    def expected() -> Expected:
        arrays = _array(rewards), _array(ranks)
        loss = reference.bradley_terry_loss_grouped(*arrays)
        gradient = reference.bradley_terry_gradient_grouped(1.0, *arrays)
        return Expected(float(np.asarray(loss)), (torch.from_numpy(gradient),))

    def ours(rewards: Tensor) -> Tensor:
        return prefloss.bradley_terry_loss_grouped(rewards, ranks)

    def by_index(rewards: Tensor) -> Tensor:
        best_first = rewards.gather(1, ranks.argsort(1))
        return -F.logsigmoid(best_first[:, first] - best_first[:, second]).mean()

    def by_mask(rewards: Tensor) -> Tensor:
        preferred = ranks[:, :, None] < ranks[:, None, :]
        losses = -F.logsigmoid(rewards[:, :, None] - rewards[:, None, :])
        return (torch.where(preferred, losses, 0.0).sum((1, 2)) / preferred.sum((1, 2))).mean()

    theirs = Tolerance(1e-3, greatest=1e-4)
    return {
        "prefloss": step(ours, (rewards,), expected, Tolerance(1e-7, greatest=3e-7)),
        "eager, index form": step(by_index, (rewards,), expected, theirs),
        "eager, mask form": step(by_mask, (rewards,), expected, theirs),
    }


def _list(case: Case, generator: torch.Generator) -> dict[str, Contender]:
    """All pairs of one list, against sorting as many numbers. The reference visits a sample of the items' pairs, all of them."""
    scores = torch.randn(case.size, generator=generator)
    ranks = torch.randperm(case.size, generator=generator)
    if case.kind == "list, two ranks":
        ranks = (torch.rand(case.size, generator=generator) < 0.5).long()
    elif case.kind == "list, deviation 30":
        scores *= 30.0
    elif case.kind == "list, outlier":
        scores[0] = 1e30
    leaf, numbers = scores.clone().requires_grad_(), scores.clone()

    def run() -> Tensor:
        leaf.grad = None
        value: Tensor = prefloss.bradley_terry_loss_grouped(leaf[None], ranks[None], reduction="sum", average="pairs")
        value.backward()  # type: ignore[no-untyped-call]
        return value

    def check() -> float:
        run()
        assert leaf.grad is not None
        for item in torch.randint(case.size, (20,), generator=generator).tolist():
            others = scores.double() - scores[item].double()
            terms = torch.sigmoid(others) * (ranks[item] < ranks) - torch.sigmoid(-others) * (ranks[item] > ranks)
            error = abs(leaf.grad[item].item() + terms.sum().item())
            assert error <= 2.0**-23 * terms.abs().sum().item(), f"entry {item} is off by {error}"
        return 0.0

    def sort() -> Tensor:
        return torch.sort(numbers).values

    def check_sort() -> float:
        assert (sort().diff() >= 0).all()
        return 0.0

    return {"prefloss": Contender(run, check), "torch.sort": Contender(sort, check_sort)}


def step(
    loss: LossFunction,
    leaves: tuple[Tensor, ...],
    expected: Callable[[], Expected],
    tolerance: Tolerance,
) -> Contender:
    """Forward and backward of leaves whose gradients are fresh, as after `optimizer.zero_grad()`."""

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value = loss(*leaves)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    def check() -> float:
        value = run()
        check_gradients(tuple(leaf.grad for leaf in leaves), expected(), tolerance)
        return check_loss(value, expected().loss, tolerance)

    return Contender(run, check)


def _kernels(kind: str, chosen: Tensor, rejected: Tensor) -> dict[str, Contender]:
    """A kernel without autograd or allocation, against copying the two inputs into outputs that are there already."""
    expected, tolerance = _expected(chosen, rejected, {}), OURS[chosen.dtype]
    first, second = torch.zeros_like(chosen), torch.zeros_like(rejected)
    loss, upstream = torch.zeros(()), torch.ones(())
    threads = kernels.threads(chosen.numel())

    def forward() -> None:
        _core.default_forward(chosen, rejected, loss, threads, None)

    def check_forward() -> float:
        forward()
        return check_loss(loss, expected().loss, tolerance)

    def backward() -> bool:
        return _core.default_backward(upstream, chosen, rejected, first, second, threads)

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
        arrays = _array(chosen), _array(rejected)
        loss = reference.bradley_terry_loss(*arrays, **options)
        grad_chosen, grad_rejected, _ = reference.bradley_terry_gradient(1.0, *arrays, **options)
        return Expected(float(loss), (torch.from_numpy(grad_chosen), torch.from_numpy(grad_rejected)))

    return compute


def _expected_sum(chosen: Tensor, rejected: Tensor) -> Callable[[], Expected]:
    def compute() -> Expected:
        ones = torch.ones_like(chosen, dtype=torch.float64)
        return Expected(float(np.sum(_array(chosen) - _array(rejected), dtype=np.float64)), (ones, -ones))

    return compute


def _array(tensor: Tensor) -> NDArray[Any]:
    """NumPy has no bfloat16, whose values float32 holds exactly."""
    tensor = tensor.detach()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def check_loss(loss: Tensor, expected: float, tolerance: Tolerance) -> float:
    error = abs(loss.item() - expected) / abs(expected)
    assert error <= tolerance.loss, f"loss {loss.item()!r}, reference {expected!r}: relative error {error:.2e}"
    return error


def check_gradients(gradients: tuple[Tensor | None, ...], expected: Expected, tolerance: Tolerance) -> None:
    for gradient, wanted in zip(gradients, expected.gradients, strict=True):
        assert gradient is not None
        information = torch.finfo(gradient.dtype)
        spacing = information.tiny * information.eps  # of subnormals: a mean's gradient is 1 / N small
        allowed = tolerance.entry * wanted.abs() + tolerance.greatest * wanted.abs().max() + spacing
        excess = ((gradient.double() - wanted).abs() - allowed).flatten()
        worst = int(excess.argmax())
        assert excess[worst] <= 0, (
            f"gradient entry {worst} is {gradient.flatten()[worst].item()!r}, reference {wanted.flatten()[worst].item()!r}"
        )
