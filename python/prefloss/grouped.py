"""The loss over all pairs of each group of responses: ranked lists, K answers to a prompt, positives against negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _core, arguments, composed
from .eager import GroupedLoss
from .operators.grouped import GroupOptions, Groups, grouped_loss, opposite_ranks, without_masked
from .paired import Reduction, Result
from .pairs import DEFAULTS
from .stats import PairStats
from .torch_internals import check_memory, is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

grouped_call = composed.unless_asked_for(_core.grouped_call)
Average = Literal["groups", "pairs"]
Ties = Literal["skip", "half"]


class GroupedOptions(TypedDict, total=False):
    """The options of `bradley_terry_loss_grouped`, which documents them."""

    relevance: Tensor | None
    mask: Tensor | None
    group_sizes: Sequence[int] | Tensor | None
    average: Average
    ties: Ties
    margin: float | None
    weight: Tensor | None
    beta: float
    label_smoothing: float
    flip_rate: float
    center_rewards_coefficient: float
    reduction: Reduction
    denominator: Tensor | float | None


@overload
def bradley_terry_loss_grouped(
    rewards: Tensor,
    ranks: Tensor | None = None,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[GroupedOptions],
) -> Tensor: ...
@overload
def bradley_terry_loss_grouped(
    rewards: Tensor, ranks: Tensor | None = None, *, return_stats: Literal[True], **options: Unpack[GroupedOptions]
) -> tuple[Tensor, PairStats]: ...
@overload
def bradley_terry_loss_grouped(
    rewards: Tensor, ranks: Tensor | None = None, *, return_stats: bool, **options: Unpack[GroupedOptions]
) -> Result: ...
def bradley_terry_loss_grouped(
    rewards: Tensor,
    ranks: Tensor | None = None,
    *,
    relevance: Tensor | None = None,
    mask: Tensor | None = None,
    group_sizes: Sequence[int] | Tensor | None = None,
    average: Average = "groups",
    ties: Ties = "skip",
    margin: float | None = None,
    weight: Tensor | None = None,
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss` over all pairs of each group, without a K by K matrix: InstructGPT's loss, RankNet's, AUC's surrogate.

    In a group every item is preferred to every item of higher rank. Ranks are places, 0 for the best. **Labels (1 = relevant) and
    scores are not ranks: pass them as ``relevance``**, of which the higher is better. Each pair (a preferred to b) has the term
    l(beta (a - b) - margin) + c (a + b)^2 of `bradley_terry_loss`. With two ranks only, positives and negatives, the mean over
    the pairs is the logistic surrogate of 1 - AUC.

    >>> import prefloss, torch
    >>> rewards, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1, 0, 0]])
    >>> prefloss.bradley_terry_loss_grouped(rewards, relevance=labels)  # the first item is better than the two others
    tensor(0.0878)
    >>> prefloss.bradley_terry_loss_grouped(rewards.flatten(), ranks=torch.tensor([0, 1, 0]), group_sizes=[2, 1])
    tensor(0.1269)

    Groups of unequal size that were padded to (B, K) have a mask. Masked items are in no pair, whatever stands in their places:

    >>> rewards, relevance = torch.tensor([[2.0, 0.0, torch.nan]]), torch.tensor([[1, 0, 7]])
    >>> prefloss.bradley_terry_loss_grouped(rewards, relevance=relevance, mask=torch.tensor([[1, 1, 0]]))
    tensor(0.1269)

    On the CPU a group of 1,024 items or more takes time and memory in proportion to its items, not to its pairs: their sum
    factorises over cells of rewards and a tree of ranks. An entry of the gradient is then right to 2^-23 of the sum of the absolute
    values of its terms (float64: 1e-14). On a GPU, and for second derivatives, each pair is visited.
    Without kernels for a device (see `bradley_terry_loss`) each pair of items is in memory, in either order: K^2 numbers, some ten
    times over. There `torch.compile` cannot trace a call with ``group_sizes``: its graph breaks, or it is an error with
    ``fullgraph=True``.

    Args:
        rewards: (B, K), B groups of K items; or (N,) with ``group_sizes``. float64, float32, bfloat16 or float16.
        ranks: of the rewards' shape, on their device; any real dtype. Lower is better, equal is a tie; no NaN.
        relevance: the same, but higher is better. Exactly one of ranks and relevance is given. The order is that of the numbers,
            exactly, for integers of any width, signed or not, and bool.
        mask: of the rewards' shape (B, K), bool or numbers: items where it is 0 take no part at all, as if they were left out of
            their group. Their rewards and ranks may be NaN, their gradient is exactly 0. An item whose mask is NaN may be there or
            not, so its reward counts as NaN: the loss of its group is NaN if a pair has it. Not with ``group_sizes``.
        group_sizes: the groups' sizes, >= 0, which add up to N, for rewards (N,): a sequence of integers (NumPy's too), or a tensor
            (G,) of any integer dtype on the CPU.
        average: "groups" is the mean over a group's pairs, then over the groups that have at least one (Ouyang et al. 2022, eq.
            1); "pairs" the mean over all pairs of all groups.
        ties: "skip" leaves out pairs of equal rank; "half" counts them with target 1/2 and no margin.
        margin: a number: how far apart the rewards should be.
        weight: one a group, of any real dtype, or bool: sum w mean / sum w for average "groups", and sum w sum / sum w
            n for "pairs". A group of weight 0 counts nothing, even if its rewards are NaN.
        beta, label_smoothing, flip_rate, center_rewards_coefficient: as in `bradley_terry_loss`.
        reduction: "mean", "sum" (not divided by the groups' weight, or that of the pairs), or "none": one entry a group.
        denominator: what "mean" divides by instead, as in `bradley_terry_loss`.
        return_stats: also return `PairStats`, in which each group is a unit with all its pairs; of one group of two ranks alone the
            standard error goes by rows and columns. A tie, with "half", is half a pair in each order.

    Returns:
        The loss, float64 for float64 rewards and float32 for all others; with ``return_stats``, (loss, `PairStats`). Where there
        is no pair at all it is 0, connected, with zero gradients.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices, values that are not accepted; NaN among ranks on the CPU. On a GPU NaN
            among ranks fails an assertion there.

    Sources: Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; Burges et al. 2005 (RankNet); Gao & Zhou 2015 (AUC surrogates); for
    sums that factorise, Greengard & Rokhlin 1987 (the fast multipole method).
    """
    eager = not is_compiling() and not is_watched()
    if ranks is None or relevance is not None:
        ranks = _opposite(rewards, ranks, relevance, group_sizes, eager)
    groups = Groups(rewards, ranks, arguments.as_group_sizes(group_sizes), weight)
    if mask is not None:
        groups = _without_masked(groups, mask, eager)
    call = None
    if eager:
        options = beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats
        call = grouped_call(*groups, margin, average, ties, options, False)
    if call is None:
        if isinstance(margin, Tensor):
            margin = arguments.check_number("margin", margin, "a finite number (groups have one margin for all pairs)")
        numbers = arguments.check_numbers(margin, None, beta, label_smoothing, flip_rate, center_rewards_coefficient)
        arguments.check_choice("average", average, ("groups", "pairs"))
        arguments.check_choice("ties", ties, ("skip", "half"))
        code = arguments.check_reduction(reduction)
        arguments.check_flag("return_stats", return_stats)
        groups = _checked(groups)
        arguments.check_range(numbers, groups.rewards)
        divisor = arguments.check_denominator(denominator, code, groups.rewards)
        composes = composed.is_needed(groups.rewards)
        if eager and not composes:
            checked = numbers.as_given(reduction, divisor, return_stats)
            call = grouped_call(*groups, numbers.margin, average, ties, checked, True)
    if call is None:
        compute = composed.grouped if composes else grouped_loss
        of_call = GroupOptions(numbers, ties == "half", average == "pairs", code, return_stats)
        loss, sums = compute(groups, of_call, divisor)
    else:
        loss, sums = GroupedLoss.apply(*groups, call)
    return (loss, PairStats(sums.detach())) if return_stats else loss


def _opposite(rewards: object, ranks: object, relevance: object, group_sizes: object, eager: bool) -> Tensor:
    """Ranks in the opposite order of the relevance."""
    arguments.check_one_of(ranks, relevance)
    _, relevance = arguments.check_groups(rewards, relevance, group_sizes, "relevance")
    _check_memory(eager, relevance=relevance)
    return opposite_ranks(relevance)


def _without_masked(groups: Groups, mask: object, eager: bool) -> Groups:
    groups = _checked(groups)
    mask = arguments.check_mask(mask, groups.rewards, groups.group_sizes)
    _check_memory(eager, rewards=groups.rewards, ranks=groups.ranks, mask=mask)
    return without_masked(groups.rewards, groups.ranks, mask, groups.weight)


def _check_memory(eager: bool, **tensors: Tensor) -> None:
    """Of what torch reads before the kernels do. Subclasses hold their memory as they like."""
    for name, tensor in tensors.items():
        if eager and type(tensor) in (Tensor, torch.nn.Parameter):
            check_memory(name, tensor)


def _checked(groups: Groups) -> Groups:
    rewards, ranks = arguments.check_groups(groups.rewards, groups.ranks, groups.group_sizes)
    count = rewards.shape[0] if groups.group_sizes is None else groups.group_sizes.shape[0]
    arguments.check_no_gradient("weight", groups.weight)
    weight = arguments.per_pair("weight", groups.weight, rewards, torch.Size((count,)), mask=True, entry="group")
    return Groups(rewards, ranks, groups.group_sizes, weight, groups.filled)
