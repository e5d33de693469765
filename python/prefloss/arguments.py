"""The checks of arguments that the public functions share. An error names the argument, what was given, and what is accepted.

Values of tensors are never read: that would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from . import _core
from .kernels import REWARD_DTYPES

# Meta tensors have shapes and no values; the operators' fake kernels serve them. A torch for AMD calls its GPUs cuda too.
_HAS_CUDA = _core.cuda is not None and torch.version.hip is None
DEVICES = ("cpu", "cuda", "meta") if _HAS_CUDA else ("cpu", "meta")
REDUCTIONS = ("mean", "sum", "none")


def check_rewards(name: str, rewards: object) -> Tensor:
    """A strided tensor of a reward dtype on a device with kernels."""
    if not isinstance(rewards, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor of rewards, got {type(rewards).__name__}")
    if rewards.layout is not torch.strided or rewards.is_nested:
        raise TypeError(
            f"{name} must be a dense (strided) tensor, got a {_layout(rewards)} one; call .to_dense() or pad it first"
        )
    if rewards.dtype not in REWARD_DTYPES:
        raise TypeError(
            f"{name} must have dtype float64, float32, bfloat16 or float16, got {_dtype(rewards)}; cast it, for example "
            f"with {name}.float()"
        )
    if rewards.device.type not in DEVICES:
        with_cuda = (
            "; to build it with CUDA kernels, put nvcc in PATH and run `pip install --force-reinstall --no-deps . "
            "--config-settings=cmake.define.PREFLOSS_CUDA=ON` in the source's root"
        )
        raise NotImplementedError(
            f"{name} is on device {rewards.device}, for which this build of prefloss has no kernels; it has them for "
            + ("cpu and cuda" if _HAS_CUDA else "cpu" + with_cuda * (rewards.device.type == "cuda"))
        )
    return rewards


def check_stacked(rewards: object) -> Tensor:
    """Rewards with an even number of entries along dimension 0."""
    rewards = check_rewards("rewards", rewards)
    if rewards.dim() == 0 or rewards.shape[0] % 2 != 0:
        raise ValueError(
            f"rewards must have an even number of entries along dimension 0, chosen and rejected, got shape {_shape(rewards)}"
        )
    return rewards


def check_pair(chosen: object, rejected: object) -> tuple[Tensor, Tensor]:
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
    return chosen, rejected


def check_scores(scores: object) -> Tensor:
    """One reward an item."""
    scores = check_rewards("scores", scores)
    if scores.dim() != 1:
        raise ValueError(f"scores must have one entry an item, shape (n,), got {_shape(scores)}")
    return scores


def check_index(name: str, index: object, scores: Tensor | None = None) -> Tensor:
    """(P,), int64 or int32, on the device of the scores."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} must be a tensor of int64 or int32 indices, got {_given(index)}")
    if index.layout is not torch.strided or index.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor, got a {_layout(index)} one")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must have dtype int64 or int32, got {_dtype(index)}")
    if index.dim() != 1:
        raise ValueError(f"{name} must have one entry a comparison, shape (P,), got {_shape(index)}")
    if scores is not None and index.device != scores.device:
        raise ValueError(f"{name} must be on the device of scores, {scores.device}, got {index.device}")
    return index


def check_index_pair(
    chosen_index: object, rejected_index: object, scores: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Two index tensors of one length, dtype and device."""
    chosen = check_index("chosen_index", chosen_index, scores)
    rejected = check_index("rejected_index", rejected_index, scores)
    if chosen.shape != rejected.shape:
        raise ValueError(
            f"chosen_index and rejected_index must have the same shape, got {_shape(chosen)} and {_shape(rejected)}"
        )
    if chosen.dtype != rejected.dtype:
        raise TypeError(
            f"chosen_index and rejected_index must have the same dtype, got {_dtype(chosen)} and {_dtype(rejected)}"
        )
    if chosen.device != rejected.device:
        raise ValueError(
            f"chosen_index and rejected_index must be on the same device, got {chosen.device} and {rejected.device}"
        )
    return chosen, rejected


def check_per_pair(
    name: str,
    value: object,
    rewards: Tensor,
    shape: torch.Size | None = None,
    *,
    mask: bool = False,
    entry: str = "pair",
) -> None:
    """None, or one entry a pair (or group), on the rewards' device, float32 or the rewards' dtype (or bool: a mask).

    `shape`: the pairs', where it is not that of the rewards.
    """
    if value is None:
        return
    shape = rewards.shape if shape is None else shape
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor with one entry a {entry}, got {_given(value)}")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name} must be a dense (strided) tensor, got a {_layout(value)} one")
    if value.shape != shape:
        raise ValueError(
            f"{name} must have one entry a {entry}, shape {tuple(shape)} (nothing is broadcast), got {_shape(value)}"
        )
    if not (value.dtype in (torch.float32, rewards.dtype) or (mask and value.dtype is torch.bool)):
        accepted = f"float32 or the rewards' dtype ({_dtype(rewards)})" + (" or bool (a mask)" if mask else "")
        raise TypeError(f"{name} must have dtype {accepted}, got {_dtype(value)}")
    if value.device != rewards.device:
        raise ValueError(f"{name} must be on the rewards' device, {rewards.device}, got {value.device}")


def check_groups(rewards: object, ranks: object, group_sizes: object) -> tuple[Tensor, Tensor]:
    """Rewards (B, K), or (N,) with sizes of groups, and ranks of the same shape on the same device."""
    rewards = check_rewards("rewards", rewards)
    dimensions = 2 if group_sizes is None else 1
    if rewards.dim() != dimensions:
        shape = "(B, K), or (N,) with group_sizes" if group_sizes is None else "(N,) with group_sizes"
        raise ValueError(f"rewards must have shape {shape}, got {_shape(rewards)}")
    if rewards.numel() >= 2**31:
        raise ValueError(f"rewards must have fewer than 2**31 entries, got {rewards.numel()}")
    if not isinstance(ranks, Tensor):
        raise TypeError(f"ranks must be a tensor of the rewards' shape, got {_given(ranks)}")
    if ranks.layout is not torch.strided or ranks.is_nested:
        raise TypeError(f"ranks must be a dense (strided) tensor, got a {_layout(ranks)} one")
    if ranks.is_complex():
        raise TypeError(f"ranks must have a real dtype, got {_dtype(ranks)}")
    if ranks.shape != rewards.shape:
        raise ValueError(f"ranks must have the shape of rewards, {_shape(rewards)}, got {_shape(ranks)}")
    if ranks.device != rewards.device:
        raise ValueError(f"ranks must be on the rewards' device, {rewards.device}, got {ranks.device}")
    check_no_gradient("ranks", ranks)
    return rewards, ranks


def as_group_sizes(group_sizes: object) -> Tensor | None:
    """(G,) int64, on the CPU. That they add up is checked where they are read."""
    accepted = "group_sizes must be a sequence of ints, or a 1-dimensional int64 tensor on the CPU"
    if group_sizes is None:
        return None
    if isinstance(group_sizes, Tensor):
        if group_sizes.dtype is not torch.int64 or group_sizes.dim() != 1 or not group_sizes.is_cpu:
            raise ValueError(
                f"{accepted}, got one of {_dtype(group_sizes)}, shape {_shape(group_sizes)}, on {group_sizes.device}"
            )
        return group_sizes
    if isinstance(group_sizes, str) or not isinstance(group_sizes, Sequence):
        raise TypeError(f"{accepted}, got {_given(group_sizes)}")
    for size in group_sizes:
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{accepted}, got {_given(size)} among them")
    return torch.tensor([int(size) for size in group_sizes], dtype=torch.int64, device="cpu")


def check_to_be_merged(name: str, value: object, index: Tensor, *, mask: bool = False) -> None:
    """None, or one floating-point entry (or bool: a mask) a comparison, on the indices' device."""
    if value is None:
        return
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor with one entry a comparison, got {_given(value)}")
    if not (value.dtype in REWARD_DTYPES or (mask and value.dtype is torch.bool)):
        raise TypeError(f"{name} must be floating-point{' or bool' if mask else ''}, got {_dtype(value)}")
    if value.shape != index.shape:
        raise ValueError(f"{name} must have one entry a comparison, shape {_shape(index)}, got {_shape(value)}")
    if value.device != index.device:
        raise ValueError(f"{name} must be on the indices' device, {index.device}, got {value.device}")


def check_no_gradient(name: str, value: object) -> None:
    """What the loss is not differentiated by must not ask for it: a gradient is never dropped in silence."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, got a tensor with requires_grad=True: the loss is differentiated by rewards "
            f"and margin only; pass {name}.detach()"
        )


def check_number(name: str, value: object, accepted: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high], which `accepted` says in words."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {accepted}, got {_given(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not (low <= number <= high and -math.inf < number < math.inf):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


def check_coefficients(
    beta: object, label_smoothing: object, center_rewards_coefficient: object
) -> tuple[float, float, float]:
    return (
        check_number("beta", beta, "a finite number"),
        check_number("label_smoothing", label_smoothing, "a number in [0, 0.5]", 0, 0.5),
        check_number("center_rewards_coefficient", center_rewards_coefficient, "a finite number >= 0", 0),
    )


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
        symbolic = isinstance(denominator, torch.SymInt | torch.SymFloat)  # while exporting: a size, say
        if not symbolic and not check_number("denominator", denominator, accepted) > 0:
            raise ValueError(f"denominator must be {accepted}, got {denominator!r}")
        return
    strided = denominator.layout is torch.strided and not denominator.is_nested
    if not strided or denominator.dtype is torch.bool or denominator.is_complex():
        raise TypeError(f"denominator must be {accepted}, got a {_layout(denominator)} tensor of {_dtype(denominator)}")
    if denominator.dim() != 0:
        raise ValueError(f"denominator must be {accepted}, got shape {_shape(denominator)}")
    if denominator.device != rewards.device:
        raise ValueError(f"denominator must be {accepted} ({rewards.device}), got one on {denominator.device}")
    check_no_gradient("denominator", denominator)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _layout(tensor: Tensor) -> str:
    return "nested" if tensor.is_nested else str(tensor.layout)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _given(value: object) -> str:
    return f"a tensor of shape {_shape(value)}" if isinstance(value, Tensor) else f"{value!r} ({type(value).__name__})"
