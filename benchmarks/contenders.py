"""A contender: what is timed, and the check of its result against the NumPy reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

LossFunction = Callable[..., Tensor]


class Contender(NamedTuple):
    """`run` is what is timed; `check` asserts what it computed and returns the relative error of the loss."""

    run: Callable[[], object]
    check: Callable[[], float]
    once: bool = False  # so slow that one run must do


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


def as_array(tensor: Tensor) -> NDArray[Any]:
    """On the CPU. NumPy has no bfloat16, whose values float32 holds exactly."""
    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array


def check_loss(loss: Tensor, expected: float, tolerance: Tolerance) -> float:
    error = abs(loss.item() - expected) / abs(expected)
    assert error <= tolerance.loss, f"loss {loss.item()!r}, reference {expected!r}: relative error {error:.2e}"
    return error


def check_gradients(gradients: tuple[Tensor | None, ...], expected: Expected, tolerance: Tolerance) -> None:
    for gradient, wanted in zip(gradients, expected.gradients, strict=True):
        assert gradient is not None
        gradient = gradient.to(wanted.device)
        information = torch.finfo(gradient.dtype)
        spacing = information.tiny * information.eps  # of subnormals: a mean's gradient is 1 / N small
        allowed = tolerance.entry * wanted.abs() + tolerance.greatest * wanted.abs().max() + spacing
        excess = ((gradient.double() - wanted).abs() - allowed).flatten()
        worst = int(excess.argmax())
        assert excess[worst] <= 0, (
            f"gradient entry {worst} is {gradient.flatten()[worst].item()!r}, reference {wanted.flatten()[worst].item()!r}"
        )
