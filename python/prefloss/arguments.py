"""The checks of arguments that the public functions share. An error names the argument, what was given, and what is accepted.

Values of tensors are never read: that would wait for the device.
"""

from __future__ import annotations

import math
from numbers import Real

import torch
from torch import Tensor

from .kernels import REWARD_DTYPES

DEVICES = ("cpu", "meta")  # meta tensors have shapes and no values; the operators' fake kernels serve them
REDUCTIONS = ("mean", "sum", "none")


def check_rewards(name: str, rewards: object) -> Tensor:
    """A strided tensor of a reward dtype on a device with kernels."""
    if not isinstance(rewards, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of rewards, got {type(rewards).__name__}")
    if rewards.layout is not torch.strided or rewards.is_nested:
        kind = "nested" if rewards.is_nested else str(rewards.layout)
        raise TypeError(f"{name} must be a dense (strided) tensor, got a {kind} one; call .to_dense() or pad it first")
    if rewards.dtype not in REWARD_DTYPES:
        raise TypeError(
            f"{name} must have dtype float64, float32, bfloat16 or float16, got {_dtype(rewards)}; cast it, for example "
            f"with {name}.float()"
        )
    if rewards.device.type not in DEVICES:
        raise NotImplementedError(
            f"{name} is on device {rewards.device}, for which this build of prefloss has no kernels; it has them for cpu"
        )
    return rewards


def check_pair(chosen: object, rejected: object) -> None:
    """Two reward tensors of one shape, dtype and device. Nothing is broadcast: (B, 1) against (B,) would give (B, B)."""
    chosen, rejected = check_rewards("chosen", chosen), check_rewards("rejected", rejected)
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen and rejected must have the same shape (nothing is broadcast), got {_shape(chosen)} and {_shape(rejected)}"
        )
    if chosen.dtype != rejected.dtype:
        raise TypeError(
            f"chosen and rejected must have the same dtype, got {_dtype(chosen)} and {_dtype(rejected)}; cast one of them, "
            f"for example with rejected.to(chosen.dtype)"
        )
    if chosen.device != rejected.device:
        raise ValueError(
            f"chosen and rejected must be on the same device, got {chosen.device} and {rejected.device}; "
            f"move one of them with .to()"
        )


def check_per_pair(
    name: str, value: Tensor, rewards: Tensor, shape: torch.Size, *, mask: bool = False, differentiable: bool = False
) -> None:
    """An option with one entry a pair: `shape`, on the rewards' device, float32 or the rewards' dtype (or bool: a mask)."""
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(
            f"{name} must be a dense (strided) tensor, got a {'nested' if value.is_nested else value.layout} one"
        )
    if value.shape != shape:
        raise ValueError(
            f"{name} must have one entry a pair, shape {tuple(shape)} (nothing is broadcast), got {_shape(value)}"
        )
    if not (value.dtype in (torch.float32, rewards.dtype) or (mask and value.dtype is torch.bool)):
        accepted = f"float32 or the rewards' dtype ({_dtype(rewards)})" + (" or bool (a mask)" if mask else "")
        raise TypeError(f"{name} must have dtype {accepted}, got {_dtype(value)}")
    if value.device != rewards.device:
        raise ValueError(f"{name} must be on the rewards' device, {rewards.device}, got {value.device}")
    if value.requires_grad and not differentiable:
        _refuse_gradient(name)


def check_number(name: str, value: object, accepted: str, low: float = -math.inf, high: float = math.inf) -> None:
    """A finite number in [low, high], which `accepted` says in words."""
    if isinstance(value, bool) or not isinstance(value, Real | torch.SymInt | torch.SymFloat):
        raise TypeError(f"{name} must be {accepted}, got {_given(value)}")
    if not (low <= value <= high and -math.inf < value < math.inf):  # type: ignore[operator]
        raise ValueError(f"{name} must be {accepted}, got {value!r}")


def check_numbers(beta: object, label_smoothing: object, center_rewards_coefficient: object) -> None:
    check_number("beta", beta, "a finite number")
    check_number("label_smoothing", label_smoothing, "a number in [0, 0.5]", 0, 0.5)
    check_number("center_rewards_coefficient", center_rewards_coefficient, "a finite number >= 0", 0)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not (isinstance(value, str) and value in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_denominator(denominator: object, reduction: str, rewards: Tensor) -> None:
    """None, a number > 0, or a 0-d integer or floating tensor on the rewards' device; with reduction "mean" only."""
    if denominator is None:
        return
    if reduction != "mean":
        raise ValueError(
            f"denominator takes the place of the mean's divisor; with reduction={reduction!r} it must be None"
        )
    accepted = "a number > 0, or a 0-dimensional integer or floating-point tensor on the rewards' device"
    if not isinstance(denominator, Tensor):
        check_number("denominator", denominator, accepted)
        if not denominator > 0:  # type: ignore[operator]
            raise ValueError(f"denominator must be {accepted}, got {denominator!r}")
        return
    if denominator.dtype is torch.bool or denominator.is_complex() or denominator.layout is not torch.strided:
        raise TypeError(f"denominator must be {accepted}, got a {denominator.layout} tensor of {_dtype(denominator)}")
    if denominator.dim() != 0:
        raise ValueError(f"denominator must be {accepted}, got shape {_shape(denominator)}")
    if denominator.device != rewards.device:
        raise ValueError(f"denominator must be {accepted} ({rewards.device}), got one on {denominator.device}")
    if denominator.requires_grad:
        _refuse_gradient("denominator")


def _refuse_gradient(name: str) -> None:
    raise ValueError(
        f"{name} requires a gradient, and prefloss has none with respect to it; pass {name}.detach(), or accept only "
        f"gradients for rewards and margin"
    )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _given(value: object) -> str:
    return f"a tensor of shape {_shape(value)}" if isinstance(value, Tensor) else f"{value!r} ({type(value).__name__})"
