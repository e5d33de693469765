"""The loss where there are no kernels, for every layout: the reference's formula in torch's operations, with torch's derivatives.

That is the case on other devices than the CPU and NVIDIA's GPUs, for a GPU whose kernels were not built, and on the CPU where the
environment variable PREFLOSS_CPU is "composed". It comes after the checks of the arguments, which are the same for all.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _core
from .arguments import READ_DTYPES
from .operators.grouped import GroupOptions, Groups, check_ranks, order_keys
from .operators.indexed import check_indices
from .pairs import DEFAULTS, REDUCTIONS, Numbers, Pairs
from .torch_internals import is_watched


def devices_with_kernels(cuda: object, hip: str | None) -> tuple[str, ...]:
    """Types of devices. `cuda`: what the compiled module was built for, or None; `hip`: of torch.

    A torch for AMD calls its GPUs cuda too. Meta tensors have shapes and no values; the operators' fake kernels serve them.
    """
    return ("cpu", "cuda", "meta") if cuda is not None and hip is None else ("cpu", "meta")


DEVICES = devices_with_kernels(_core.cuda, torch.version.hip)
ASKED_FOR = _core.cpu == "composed"
_REDUCTIONS = tuple(REDUCTIONS)


def unless_asked_for(call: Callable[..., Any]) -> Callable[..., Any]:
    """One of the compiled module's readers of calls; where the CPU has to do without kernels, one that reads none."""
    return (lambda *_: None) if ASKED_FOR else call


def is_needed(rewards: Tensor) -> bool:
    """Whether the loss of these rewards is composed. The first time that nobody has asked for it, a warning says so."""
    device = rewards.device.type
    if ASKED_FOR and device == "cpu":
        return True
    if device in DEVICES:
        return False
    if not is_compiling():
        _warn(device)
    return True


@cache
def _warn(device: str) -> None:
    if _warn.cache_info().currsize:
        return
    how = f"There are kernels for the CPU{' and for CUDA' if 'cuda' in DEVICES else ''}."
    if device == "cuda" and torch.version.hip is None:
        how = (
            "For its kernels put nvcc in PATH and run `pip install --force-reinstall --no-deps . "
            "--config-settings=cmake.define.PREFLOSS_CUDA=ON` in the root of prefloss's sources."
        )
    warnings.warn(
        f"prefloss has no kernels for device {device} in this build, so that the loss is composed of torch operations there. "
        f"It is the same loss, but slower, and groups need memory for each pair of their items. {how}",
        stacklevel=4,
    )


def paired(
    pairs: Pairs, numbers: Numbers, denominator: Tensor | float | None, reduction: int, return_stats: bool
) -> tuple[Tensor, Tensor]:
    """(loss, sums), of what has been checked. Without `return_stats` the sums are empty."""
    from . import reference  # by which the package's own import would take half as long again

    return _both(
        reference.bradley_terry_loss(
            pairs.chosen,
            pairs.rejected,
            **_options(pairs, numbers, denominator, reduction, return_stats),
        )
    )


def indexed(
    pairs: Pairs,
    chosen_index: Tensor,
    rejected_index: Tensor,
    numbers: Numbers,
    denominator: Tensor | float | None,
    reduction: int,
    return_stats: bool,
) -> tuple[Tensor, Tensor]:
    """The same of comparisons by index. `pairs.chosen` has the scores, one an item."""
    from . import reference

    if not is_compiling() and not is_watched():
        for name, index in (("chosen_index", chosen_index), ("rejected_index", rejected_index)):
            check_indices(name, index, pairs.chosen.shape[0])
    options = _options(pairs, numbers, denominator, reduction, return_stats)
    return _both(reference.bradley_terry_loss_indexed(pairs.chosen, chosen_index, rejected_index, **options))


def grouped(groups: Groups, options: GroupOptions, denominator: Tensor | float | None) -> tuple[Tensor, Tensor]:
    """The same over all pairs of groups, each of which is in memory."""
    from . import reference

    ranks, sizes, mask = groups.ranks, None, None
    if groups.filled is not None:
        mask = torch.arange(ranks.shape[-1], device=ranks.device) < groups.filled.unsqueeze(-1)
    if ranks.dtype not in READ_DTYPES:
        ranks = order_keys(ranks, groups.filled)
    elif ranks.is_floating_point() and (is_compiling() or not is_watched()):
        check_ranks(ranks, groups.filled)
    if groups.group_sizes is not None:
        # Not the tensor: NumPy, which finds the groups' places, cannot read a negative view, nor what torch.func wraps.
        sizes = _checked_sizes(groups.group_sizes, groups.rewards.shape[0])
    numbers = options.numbers
    return _both(
        reference.bradley_terry_loss_grouped(
            groups.rewards,
            ranks,
            mask=mask,
            group_sizes=sizes,
            average="pairs" if options.over_pairs else "groups",
            ties="half" if options.half_ties else "skip",
            margin=_may_change(numbers.margin, DEFAULTS.margin),
            weight=groups.weight,
            **_shared(numbers, denominator, options.reduction, options.return_stats),
        )
    )


def _checked_sizes(sizes: Tensor, items: int) -> list[int]:
    """Refused as in csrc/bindings/grouped.cpp; one by one, so that no sum overflows."""
    total, found = 0, sizes.tolist()
    for size in found:
        if size < 0:
            raise ValueError(f"group_sizes must be >= 0, got {size}")
        total += size
        if total > items:
            raise ValueError(f"group_sizes must add up to the number of rewards, {items}, got more")
    if total != items:
        raise ValueError(f"group_sizes must add up to the number of rewards, {items}, got {total}")
    return found


def _options(
    pairs: Pairs, numbers: Numbers, denominator: Tensor | float | None, reduction: int, return_stats: bool
) -> dict[str, Any]:
    margin, weight, target = pairs.with_numbers(numbers)
    margin, target = _may_change(margin, DEFAULTS.margin), _may_change(target, DEFAULTS.target)
    shared = _shared(numbers, denominator, reduction, return_stats)
    return {"margin": margin, "weight": weight, "target": target, **shared}


def _shared(numbers: Numbers, denominator: Tensor | float | None, reduction: int, return_stats: bool) -> dict[str, Any]:
    """The options of all layouts. A flip rate is in the label smoothing."""
    return {
        "beta": _may_change(numbers.beta, DEFAULTS.beta),
        "label_smoothing": numbers.label_smoothing,
        "center_rewards_coefficient": numbers.center_rewards_coefficient,
        "reduction": _REDUCTIONS[reduction],
        "denominator": denominator.reshape(()) if isinstance(denominator, Tensor) else _may_change(denominator, None),
        "return_stats": return_stats,
    }


def _may_change(option: Any, off: float | None) -> Any:
    """A number that was given, as a tensor under a compiler, so that another one does not mean a new graph.

    Smoothing and centring stay numbers: the formula asks whether they are 0.
    """
    if option is off or isinstance(option, Tensor) or not is_compiling():
        return option
    return torch.ones((), dtype=torch.float64, device="cpu") * option


def _both(result: Any) -> tuple[Tensor, Tensor]:
    return result if isinstance(result, tuple) else (result, result.new_empty(0))
