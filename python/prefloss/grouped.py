"""The loss over all pairs of each group of responses: ranked lists, K answers to a prompt, positives against negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import arguments, grouping, ops
from ._core import tensors_accept
from .autograd import PAIRED, GroupedLoss
from .group_kernels import Groups
from .paired import Reduction, Result, check_options
from .stats import PairStats
from .torch_internals import is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

Average = Literal["groups", "pairs"]
Ties = Literal["skip", "half"]


class GroupedOptions(TypedDict, total=False):
    """The options of `bradley_terry_loss_grouped`, which documents them."""

    group_sizes: Sequence[int] | Tensor | None
    average: Average
    ties: Ties
    margin: float | None
    weight: Tensor | None
    beta: float
    label_smoothing: float
    center_rewards_coefficient: float
    reduction: Reduction
    denominator: Tensor | float | None


@overload
def bradley_terry_loss_grouped(
    rewards: Tensor, ranks: Tensor, *, return_stats: Literal[False] = False, **options: Unpack[GroupedOptions]
) -> Tensor: ...
@overload
def bradley_terry_loss_grouped(
    rewards: Tensor, ranks: Tensor, *, return_stats: Literal[True], **options: Unpack[GroupedOptions]
) -> tuple[Tensor, PairStats]: ...
@overload
def bradley_terry_loss_grouped(
    rewards: Tensor, ranks: Tensor, *, return_stats: bool, **options: Unpack[GroupedOptions]
) -> Result: ...
def bradley_terry_loss_grouped(
    rewards: Tensor,
    ranks: Tensor,
    *,
    group_sizes: Sequence[int] | Tensor | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float | None = None,
    weight: Tensor | None = None,
    beta: float = 1.0,
    label_smoothing: float = 0.0,
    center_rewards_coefficient: float = 0.0,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss` over all pairs of each group, without a K by K matrix: InstructGPT's loss, RankNet's, AUC's surrogate.

    In a group every item is preferred to every item of higher rank. Each pair (a preferred to b) has the term
    l(beta (a - b) - margin) + c (a + b)^2 of `bradley_terry_loss`. With two ranks only, positives and negatives, the mean over the
    pairs is the logistic surrogate of 1 - AUC.

    On the CPU a group of 1,024 items or more takes time and memory in proportion to its items, not to its pairs: their sum
    factorises over cells of rewards and a tree of ranks. An entry of the gradient is then right to 2^-23 of the sum of the absolute
    values of its terms (float64: 1e-14). On a GPU, and for second derivatives, each pair is visited.

    Args:
        rewards: (B, K), B groups of K items; or (N,) with ``group_sizes``. float64, float32, bfloat16 or float16.
        ranks: of the rewards' shape, on their device; any real dtype. Lower is better, equal is a tie; no NaN.
        group_sizes: the groups' sizes, >= 0, which add up to N, for rewards (N,): a sequence of ints, or (G,) int64 on the CPU.
        average: "groups" is the mean over a group's pairs, then over the groups that have at least one (Ouyang et al. 2022, eq.
            1); "pairs" the mean over all pairs of all groups.
        ties: "skip" leaves out pairs of equal rank; "half" counts them with target 1/2 and no margin.
        margin: a number: how far apart the rewards should be.
        weight: one a group, float32 or the rewards' dtype, or bool: sum w mean / sum w for average "groups", and sum w sum / sum w
            n for "pairs". A group of weight 0 counts nothing, even if its rewards are NaN.
        beta, label_smoothing, center_rewards_coefficient: as in `bradley_terry_loss`.
        reduction: "mean", "sum" (not divided by the groups' weight, or that of the pairs), or "none": one entry a group.
        denominator: what "mean" divides by instead: a number > 0, or a 0-d tensor.
        return_stats: also return `PairStats` of the pairs. They are not independent where groups have more than two items: the
            standard error is then too small. A tie, with "half", is half a pair in each order.

    Returns:
        The loss, float64 for float64 rewards and float32 for all others; with ``return_stats``, (loss, `PairStats`). Where there
        is no pair at all it is 0, connected, with zero gradients.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices, values that are not accepted; NaN among ranks on the CPU. On a GPU NaN
            among ranks fails an assertion there.
        NotImplementedError: a device without kernels.

    Sources: Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; Burges et al. 2005 (RankNet); Gao & Zhou 2015 (AUC surrogates); for
    sums that factorise, Greengard & Rokhlin 1987 (the fast multipole method).
    """
    sizes = arguments.as_group_sizes(group_sizes)
    rewards, ranks = arguments.check_groups(rewards, ranks, group_sizes)
    if isinstance(margin, Tensor):
        raise TypeError(f"margin must be a number, for groups, got a tensor of shape {tuple(margin.shape)}")
    numbers = check_options(margin, None, beta, label_smoothing, center_rewards_coefficient, reduction, return_stats)
    arguments.check_choice("average", average, ("groups", "pairs"))
    arguments.check_choice("ties", ties, ("skip", "half"))
    count = rewards.shape[0] if sizes is None else sizes.shape[0]
    arguments.check_per_pair("weight", weight, rewards, torch.Size((count,)), mask=True, entry="group")
    arguments.check_no_gradient("weight", weight)
    arguments.check_denominator(denominator, reduction, rewards)
    beta, margin_number, _, label_smoothing, center_rewards_coefficient = numbers
    size = 0 if sizes is not None else rewards.shape[1]
    if sizes is None and size == 0:  # groups without items have no place in a flat list
        sizes = torch.zeros(count, dtype=torch.int64, device="cpu")
    groups = Groups(
        sizes, size, beta, margin_number, label_smoothing, center_rewards_coefficient,
        ties == "half", average == "pairs", reduction, return_stats,
    )  # fmt: skip
    items = rewards.reshape(-1), ranks.reshape(-1), weight
    if not is_compiling() and not is_watched() and tensors_accept(rewards, rewards, PAIRED, None, None, None):
        loss, sums = GroupedLoss.apply(*items, ops.as_tensor(denominator, rewards), groups)
    else:
        loss, sums = grouping.loss(*items, denominator, groups)
    return (loss, PairStats(sums)) if return_stats else loss
