"""The checks of arguments that the public functions share. An error names the argument, what was given, and what is accepted.

Values of tensors are never read: that would wait for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from .pairs import DEFAULTS, REDUCTIONS, Numbers, accumulation_dtype
from .sums import dtype_of_sums
from .torch_internals import has_tangent, is_readable, requires_gradient

REWARD_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# What the compiled module reads (csrc/pairs.h), and what torch converts: not complex, quantized, or packed several to a byte.
READ_DTYPES = {*REWARD_DTYPES, torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}
_REAL_DTYPES = {
    *(*READ_DTYPES, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
}
_GREATEST = {torch.float64: torch.finfo(torch.float64).max, torch.float32: torch.finfo(torch.float32).max}


def check_tensor(name: str, value: object, accepted: str) -> Tensor:
    """A dense tensor of real numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {accepted}, got {_given(value)}")
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(
            f"{name} must be a dense (strided) tensor, got a {_layout(value)} one; call .to_dense() or pad it first"
        )
    if value.dtype not in _REAL_DTYPES:
        hint = "; .dequantize() gives its values" if value.is_quantized else ""
        raise TypeError(f"{name} must have a real dtype (float, integer or bool), got {_dtype(value)}{hint}")
    return value


def check_rewards(name: str, rewards: object, what: str = "rewards") -> Tensor:
    """A strided tensor of a reward dtype; `what` its entries are."""
    rewards = check_tensor(name, rewards, f"a torch.Tensor of {what}")
    if rewards.dtype not in REWARD_DTYPES:
        raise TypeError(
            f"{name} must have dtype float64, float32, bfloat16 or float16, got {_dtype(rewards)}; cast it, for example "
            f"with {name}.float()"
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
            f"chosen and rejected must have the same shape (nothing is broadcast), got {_shape(chosen)} and {_shape(rejected)}; "
            f"for example .squeeze(-1) takes a last dimension of 1 away"
        )
    if chosen.dtype != rejected.dtype:
        raise TypeError(
            f"chosen and rejected must have the same dtype, got {_dtype(chosen)} and {_dtype(rejected)}; cast one of them, "
            f"for example with rejected.to(chosen.dtype)"
        )
    _check_device("rejected", rejected, chosen, "chosen")
    return chosen, rejected


def check_scores(scores: object) -> Tensor:
    """One reward an item."""
    scores = check_rewards("scores", scores)
    if scores.dim() != 1:
        raise ValueError(
            f"scores must have one entry an item, shape (n,), got {_shape(scores)}; .flatten() makes it so"
        )
    return scores


def check_index(name: str, index: object, scores: Tensor | None = None) -> Tensor:
    """(P,), int64 or int32, on the device of the scores."""
    index = check_tensor(name, index, "a tensor of int64 or int32 indices")
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must have dtype int64 or int32, got {_dtype(index)}; {name}.long() converts it")
    if index.dim() != 1:
        raise ValueError(
            f"{name} must have one entry a comparison, shape (P,), got {_shape(index)}; .flatten() makes it so"
        )
    if scores is not None:
        _check_device(name, index, scores, "scores")
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
            f"chosen_index and rejected_index must have the same dtype, got {_dtype(chosen)} and {_dtype(rejected)}; "
            f".long() converts them"
        )
    _check_device("rejected_index", rejected, chosen, "chosen_index")
    return chosen, rejected


def per_pair(
    name: str,
    value: object,
    rewards: Tensor,
    shape: torch.Size | None = None,
    *,
    mask: bool = False,
    entry: str = "pair",
) -> Tensor | None:
    """None, or one entry a pair (or group) as kernels take it: float32 or the rewards' dtype, or, for a mask, bool.

    Any other real dtype is converted, so that a gradient finds its way back. A 0-dimensional tensor stands for all pairs.

    Args:
        shape: the pairs', where it is not that of the rewards.
        mask: whether zeros and ones are a mask, so that a bool tensor stays one; then there is no number for all pairs.
    """
    if value is None:
        return None
    shape = rewards.shape if shape is None else shape
    tensor = check_tensor(name, value, f"a tensor with one entry a {entry}" + ("" if mask else " or a number"))
    if tensor.dim() == 0 and not mask:
        # Wide before it is expanded: so its gradient is added up before it is rounded.
        tensor = _beside(tensor, rewards).to(accumulation_dtype(rewards.dtype)).expand(shape)
    if tensor.shape != shape:
        raise ValueError(
            f"{name} must have one entry a {entry}, shape {tuple(shape)} (nothing is broadcast), got {_shape(tensor)}; "
            f".reshape() or .expand() makes it so"
        )
    _check_device(name, tensor, rewards, "the rewards")
    if tensor.dtype in (torch.float32, rewards.dtype) or (mask and tensor.dtype is torch.bool):
        return tensor
    return tensor.to(accumulation_dtype(rewards.dtype))


def check_groups(rewards: object, ranks: object, group_sizes: object, name: str = "ranks") -> tuple[Tensor, Tensor]:
    """Rewards (B, K), or (N,) with sizes of groups, and ranks, or what has this name, of the same shape on the same device."""
    rewards = check_rewards("rewards", rewards)
    dimensions = 2 if group_sizes is None else 1
    if rewards.dim() != dimensions:
        shape = "(B, K), or (N,) with group_sizes" if group_sizes is None else "(N,) with group_sizes"
        raise ValueError(f"rewards must have shape {shape}, got {_shape(rewards)}")
    if rewards.numel() >= 2**31 - 2**16:  # kMostItems of the kernels
        raise ValueError(f"rewards must have fewer than 2**31 - 2**16 entries, got {rewards.numel()}")
    return rewards, _per_item(name, ranks, rewards)


def check_mask(mask: object, rewards: Tensor, group_sizes: object) -> Tensor:
    """One entry an item of padded groups."""
    if group_sizes is not None:
        raise ValueError(
            f"mask is for padded groups, rewards (B, K), and cannot be given with group_sizes, got {_given(mask)}; "
            "leave the items out of rewards, and count them out of group_sizes"
        )
    return _per_item("mask", mask, rewards)


def check_one_of(ranks: object, relevance: object) -> None:
    """Exactly one of the two says which items are better."""
    if (ranks is None) is (relevance is None):
        given = "neither" if ranks is None else "both"
        raise TypeError(
            f"exactly one of ranks (lower is better) and relevance (higher is better) must be given, got {given}"
        )


def _per_item(name: str, value: object, rewards: Tensor) -> Tensor:
    tensor = check_tensor(name, value, "a tensor of the rewards' shape")
    if tensor.shape != rewards.shape:
        raise ValueError(f"{name} must have the shape of rewards, {_shape(rewards)}, got {_shape(tensor)}")
    _check_device(name, tensor, rewards, "the rewards")
    check_no_gradient(name, tensor)
    # Of float8 torch has few operations.
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def as_group_sizes(group_sizes: object) -> Tensor | None:
    """(G,) int64, on the CPU. That they add up is checked where they are read."""
    accepted = "group_sizes must be a sequence of ints, or a 1-dimensional tensor of integers on the CPU"
    if group_sizes is None:
        return None
    if isinstance(group_sizes, Tensor):
        check_tensor("group_sizes", group_sizes, accepted)
        integers = not group_sizes.is_floating_point() and group_sizes.dtype is not torch.bool
        if not integers or group_sizes.dim() != 1 or not group_sizes.is_cpu:
            raise ValueError(
                f"{accepted}, got one of {_dtype(group_sizes)}, shape {_shape(group_sizes)}, on {group_sizes.device}"
            )
        return group_sizes.to(torch.int64)
    if isinstance(group_sizes, str) or not isinstance(group_sizes, Sequence):
        raise TypeError(f"{accepted}, got {_given(group_sizes)}")
    for size in group_sizes:
        if isinstance(size, bool) or not isinstance(size, Integral):
            raise TypeError(f"{accepted}, got {_given(size)} among them")
        if not 0 <= int(size) < 2**31:
            raise ValueError(f"group_sizes must be >= 0 and add up to the number of rewards, got {size} among them")
    return torch.tensor([int(size) for size in group_sizes], dtype=torch.int64, device="cpu")


def check_to_be_merged(name: str, value: object, index: Tensor) -> Tensor | None:
    """None, or one real number a comparison, on the indices' device."""
    if value is None:
        return None
    tensor = check_tensor(name, value, "a tensor with one entry a comparison")
    if tensor.shape != index.shape:
        raise ValueError(f"{name} must have one entry a comparison, shape {_shape(index)}, got {_shape(tensor)}")
    _check_device(name, tensor, index, "the indices")
    check_no_gradient(name, tensor)
    return tensor.detach()


def check_no_gradient(name: str, value: object) -> None:
    """What the loss is not differentiated by must not ask for it: a gradient is never dropped in silence."""
    if not isinstance(value, Tensor):
        return
    if requires_gradient(value):
        raise ValueError(
            f"{name} must not require a gradient, got a tensor with requires_grad=True, by which this loss is not differentiated; "
            f"pass {name}.detach()"
        )
    if has_tangent(value):
        raise NotImplementedError(
            f"{name} must not have a tangent, got one (of jvp, jacfwd or forward_ad), by which this loss is not differentiated in "
            f"forward mode; pass {name}.detach()"
        )


def check_number(name: str, value: object, accepted: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high], which `accepted` says in words; or a tensor of one entry on the CPU."""
    if isinstance(value, Tensor):
        check_tensor(name, value, accepted)
        check_no_gradient(name, value)
        if value.numel() != 1 or not value.is_cpu:
            raise TypeError(
                f"{name} must be {accepted}, got a tensor of shape {_shape(value)} on {value.device}; {name}.item() is the "
                f"number of one with one entry"
            )
        value = value.item()
    if isinstance(value, torch.SymInt | torch.SymFloat):  # while exporting: a size, say
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be {accepted}, got {_given(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not (low <= number <= high and -math.inf < number < math.inf):
        raise ValueError(f"{name} must be {accepted}, got {value!r}")
    return number


def check_numbers(
    margin: object,
    target: object,
    beta: object,
    label_smoothing: object,
    flip_rate: object,
    center_rewards_coefficient: object,
) -> Numbers:
    """The options that are numbers; for each that is not given, or None, its default itself. Margin and target may be tensors."""
    given = beta, label_smoothing, flip_rate, center_rewards_coefficient
    off = DEFAULTS.beta, DEFAULTS.label_smoothing, DEFAULTS.label_smoothing, DEFAULTS.center_rewards_coefficient
    tensors = (margin is None or isinstance(margin, Tensor)) and (target is None or isinstance(target, Tensor))
    if tensors and all(value is default for value, default in zip(given, off, strict=True)):
        return DEFAULTS
    smoothing = DEFAULTS.label_smoothing
    if label_smoothing is not None and label_smoothing is not DEFAULTS.label_smoothing:
        smoothing = check_number("label_smoothing", label_smoothing, "a number in [0, 0.5]", 0, 0.5)
    if flip_rate is not None and flip_rate is not DEFAULTS.label_smoothing:
        rate = check_number("flip_rate", flip_rate, "a number in [0, 0.5)", 0, math.nextafter(0.5, 0))
        if smoothing != 0 and rate != 0:
            raise ValueError(
                f"flip_rate and label_smoothing cannot both be given, got {flip_rate!r} and {label_smoothing!r}: "
                "the one corrects for flipped labels, the other adds some"
            )
        smoothing = -rate / (1 - 2 * rate) if rate else smoothing
    return Numbers(
        DEFAULTS.beta if beta is None or beta is DEFAULTS.beta else check_number("beta", beta, "a finite number"),
        DEFAULTS.margin
        if margin is None or isinstance(margin, Tensor)
        else check_number("margin", margin, "a finite number, or for pairs a tensor with one entry a pair"),
        DEFAULTS.target
        if target is None or isinstance(target, Tensor)
        else check_number("target", target, "a number in [0, 1] or a tensor with one entry a pair", 0, 1),
        smoothing,
        DEFAULTS.center_rewards_coefficient
        if center_rewards_coefficient is None or center_rewards_coefficient is DEFAULTS.center_rewards_coefficient
        else check_number("center_rewards_coefficient", center_rewards_coefficient, "a finite number >= 0", 0),
    )


def check_range(numbers: Numbers, rewards: Tensor) -> None:
    """A number that overflows the type of the computation would be infinite there."""
    greatest = _GREATEST[accumulation_dtype(rewards.dtype)]
    for name, default, number in zip(Numbers._fields, DEFAULTS, numbers, strict=True):
        if number is not default and isinstance(number, float) and not -greatest <= number <= greatest:
            raise ValueError(
                f"{name} must be finite in float32, in which the loss of {_dtype(rewards)} rewards is computed, got "
                f"{number!r}; float64 rewards take it"
            )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {_given(value)}")


def check_reduction(reduction: object) -> int:
    if reduction is None:
        reduction = "mean"
    check_choice("reduction", reduction, tuple(REDUCTIONS))
    return REDUCTIONS[str(reduction)]


def check_flag(name: str, value: object) -> None:
    if value is not False and value is not True:
        raise TypeError(f"{name} must be True or False, got {_given(value)}")


def check_denominator(denominator: object, reduction: int, rewards: Tensor) -> float | Tensor | None:
    """None, a number > 0, or a tensor of one entry, on the rewards' device when it is returned."""
    if denominator is None:
        return None
    if reduction != REDUCTIONS["mean"]:
        name = next(name for name, code in REDUCTIONS.items() if code == reduction)
        raise ValueError(f"denominator takes the place of the mean's divisor; with reduction={name!r} it must be None")
    accepted = "a number > 0, or an integer or floating-point tensor of one entry on the rewards' device"
    if not isinstance(denominator, Tensor):
        number = check_number("denominator", denominator, accepted)
        if isinstance(number, float) and not number > 0:
            raise ValueError(f"denominator must be {accepted}, got {denominator!r}")
        wide = accumulation_dtype(rewards.dtype)
        if isinstance(number, float) and not 1 / _GREATEST[wide] <= number <= _GREATEST[wide]:
            raise ValueError(
                f"denominator must be finite, and its inverse too, in {dtype_name(wide)}, in which the loss of {_dtype(rewards)} "
                f"rewards is computed, got {denominator!r}" + "; float64 rewards take it" * (wide is torch.float32)
            )
        return number
    tensor = check_tensor("denominator", denominator, accepted)
    if tensor.dtype is torch.bool:
        raise TypeError(f"denominator must be {accepted}, got a tensor of bool")
    if tensor.numel() != 1:
        raise ValueError(f"denominator must be {accepted}, got shape {_shape(tensor)}; its .sum(), perhaps?")
    given, tensor = tensor, _beside(tensor, rewards)
    _check_device("denominator", tensor, rewards, "the rewards")
    check_no_gradient("denominator", tensor)
    if is_readable(given) and not float(given) > 0:
        raise ValueError(f"denominator must be > 0, got a tensor of {float(given)}")
    return tensor if tensor.dtype in READ_DTYPES else tensor.double()


def _beside(number: Tensor, rewards: Tensor) -> Tensor:
    """A tensor that is one number, on the rewards' device. Only one on the CPU may come from elsewhere, as torch has it."""
    if not number.is_cpu or rewards.is_cpu:
        return number
    if number.dtype is torch.float64:
        number = number.to(dtype_of_sums(rewards.device))
    return number.to(rewards.device, non_blocking=True)


def _check_device(name: str, tensor: Tensor, other: Tensor, whose: str) -> None:
    if tensor.device != other.device:
        raise ValueError(
            f"{name} must be on the same device as {whose}, {other.device}, got {tensor.device}; move it with .to()"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _layout(tensor: Tensor) -> str:
    return "nested" if tensor.is_nested else str(tensor.layout)


def _dtype(tensor: Tensor) -> str:
    return dtype_name(tensor.dtype)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _given(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"{value!r} ({type(value).__name__})"
    return "a nested tensor" if value.is_nested else f"a tensor of shape {_shape(value)}"
