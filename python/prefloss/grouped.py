"""The loss over all pairs of each group of responses: ranked lists, K answers to a prompt, positives against negatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.compiler import is_compiling

from . import _core, arguments, composed, eager
from .eager import GroupedLoss
from .numpy_arrays import as_tensor
from .operators.grouped import (
    GroupOptions,
    Groups,
    check_ranks,
    grouped_loss,
    opposite_ranks,
    order_keys,
    without_masked,
)
from .paired import Reduction, Result
from .pairs import DEFAULTS
from .stats import PairStats
from .torch_internals import check_memory, is_plain, is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

grouped_call = composed.unless_asked_for(_core.grouped_call)
Average = Literal["groups", "pairs"]
Ties = Literal["skip", "half"]
TensorOrArray: TypeAlias = Tensor | NDArray[Any]


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


class DerivativesOptions(TypedDict, total=False):
    """The options of `bradley_terry_derivatives_grouped`, which documents them."""

    relevance: TensorOrArray | None
    group_sizes: Sequence[int] | TensorOrArray | None
    average: Average
    ties: Ties
    margin: float | None
    weight: TensorOrArray | None
    beta: float
    label_smoothing: float
    flip_rate: float
    center_rewards_coefficient: float
    reduction: Literal["sum", "mean"]


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

    In a group every item is preferred to every item of higher rank: ranks are places, 0 is the best. **Labels (1 = relevant) and
    scores are not ranks: pass them as ``relevance``**, where higher is better. Each pair (a preferred to b) has the term
    l(beta (a - b) - margin) + c (a + b)^2 of `bradley_terry_loss`. With only two ranks, positives and negatives, the mean over
    the pairs is the logistic surrogate of 1 - AUC.

    >>> import prefloss, torch
    >>> rewards, labels = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([[1, 0, 0]])
    >>> prefloss.bradley_terry_loss_grouped(rewards, relevance=labels)  # the first item is better than the two others
    tensor(0.0878)
    >>> prefloss.bradley_terry_loss_grouped(rewards.flatten(), ranks=torch.tensor([0, 1, 0]), group_sizes=[2, 1])
    tensor(0.1269)

    For groups of unequal size that were padded to (B, K), give a mask. Items where it is 0 are in no pair, whatever their values:

    >>> rewards, relevance = torch.tensor([[2.0, 0.0, torch.nan]]), torch.tensor([[1, 0, 7]])
    >>> prefloss.bradley_terry_loss_grouped(rewards, relevance=relevance, mask=torch.tensor([[1, 1, 0]]))
    tensor(0.1269)

    **Long groups on the CPU.** From 512 items on, a group takes time and memory in proportion to its items, not to its pairs; also
    for second derivatives. The sums are computed in float64. With a margin, or many ties to skip, this takes several times as long
    where rewards lie far apart. With a margin, or any tie to skip, a group in which rewards times beta lie further apart than 650
    (float64: 40) is long only from 1,024 items on. An entry of the gradient is right to 2^-23 of the sum of the absolute values of
    its terms (float64: 1e-14, and what rounding z costs). If there are two ranks and one has few items (k, at most 64, with k^2 at
    most four times the group's items), the pairs are visited in the rewards' type, except with statistics, ``ties="half"`` or
    second derivatives.

    Float32 groups of few ranks, such as graded labels, take linear time from 32 items on, where that is quicker, and with the same
    error: in a call with 1,024 items or more; with at most 16 different ranks, and rewards times beta in at most 8 cells, each 1 to
    2 wide (fewer with a margin); without smoothing, flips, centring, statistics and ``ties="half"``.

    **Long groups on a GPU.** If groups have 4,096 items or more on average, the loss and its gradient take linear time too, with
    the same error. Each pair is visited, as in short groups, for second derivatives, and with statistics, smoothing, flips,
    centring or ``ties="half"``; also in a group with a reward that is not finite, or where rewards times beta lie in more than 512
    different cells, each 1 to 2 wide (float64: 1/2 to 1).

    **Devices without kernels** (see `bradley_terry_loss`). Each pair of items is in memory, in both orders: K^2 numbers, about ten
    times. `torch.compile` cannot trace a call with ``group_sizes``: its graph breaks, or with ``fullgraph=True`` it is an error.

    Args:
        rewards: (B, K), B groups of K items; or (N,) with ``group_sizes``. float64, float32, bfloat16 or float16.
        ranks: of the rewards' shape, on their device; any real dtype. Lower is better, equal is a tie; no NaN.
        relevance: the same, but higher is better. Give exactly one of ranks and relevance. Integers of any width, signed or not,
            and bool are compared exactly.
        mask: of the rewards' shape (B, K), bool or numbers: items where it is 0 are left out of their group. Their rewards and
            ranks may be NaN, their gradient is exactly 0. Where the mask is NaN, the reward is taken as NaN, so the loss of the
            group is NaN if a pair has that item. Not with ``group_sizes``.
        group_sizes: the groups' sizes, >= 0, which add up to N, for rewards (N,): a sequence of integers (NumPy's too), or a tensor
            (G,) of any integer dtype on the CPU.
        average: "groups" is the mean over a group's pairs, then over the groups that have at least one (Ouyang et al. 2022, eq.
            1); "pairs" the mean over all pairs of all groups.
        ties: "skip" leaves out pairs of equal rank; "half" counts them with target 1/2 and no margin.
        margin: a number: how far apart the rewards should be.
        weight: one a group, of any real dtype, or bool. With s the sum over a group's n pairs, average "groups" gives
            sum w (s / n) / sum w, and "pairs" gives sum w s / sum w n. A group of weight 0 adds nothing, NaN or not.
        beta, label_smoothing, flip_rate, center_rewards_coefficient: as in `bradley_terry_loss`.
        reduction: "mean", "sum" (not divided by the weight of the groups, or of the pairs), or "none": one entry a group.
        denominator: what "mean" divides by instead, as in `bradley_terry_loss`.
        return_stats: also return `PairStats`. Each group is an independent unit; for a single group of two ranks the units are its
            positives and its negatives. A tie, with "half", is half a pair in each order.

    Returns:
        The loss, float64 for float64 rewards and float32 for all others; with ``return_stats``, (loss, `PairStats`). Without
        any pair it is 0, with zero gradients.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices, values that are not accepted; on the CPU, NaN among ranks. On a GPU, NaN
            among ranks fails an assertion on the device.

    Sources: Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; Burges et al. 2005 (RankNet); Gao & Zhou 2015 (AUC surrogates); for
    linear time, Greengard & Rokhlin 1987 (the fast multipole method).
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


@overload
def bradley_terry_derivatives_grouped(
    rewards: Tensor, ranks: TensorOrArray | None = None, **options: Unpack[DerivativesOptions]
) -> tuple[Tensor, Tensor]: ...
@overload
def bradley_terry_derivatives_grouped(
    rewards: NDArray[Any], ranks: TensorOrArray | None = None, **options: Unpack[DerivativesOptions]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...
def bradley_terry_derivatives_grouped(
    rewards: TensorOrArray,
    ranks: TensorOrArray | None = None,
    *,
    relevance: TensorOrArray | None = None,
    group_sizes: Sequence[int] | TensorOrArray | None = None,
    average: Average = "pairs",
    ties: Ties = "skip",
    margin: float | None = None,
    weight: TensorOrArray | None = None,
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
    reduction: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, Tensor] | tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The gradient of `bradley_terry_loss_grouped`, and the diagonal of its second derivatives, to which boosted trees are fitted.

    The loss is the sum of w_p (l(z) + c (a + b)^2) over the pairs (a preferred to b) of each group, with z = beta (a - b) - margin
    and w_p the weight of the pair. Its derivatives by one reward s are sums over the pairs with that item, + where it is preferred:

        dL/ds = sum of w_p (+-beta l'(z) + 2c (a + b))        l'(z) = -sigma(-z), where no label is smoothed
        d2L/ds2 = sum of w_p (beta^2 sigma(z) sigma(-z) + 2c)

    >>> import numpy as np, prefloss
    >>> scores, labels = np.array([2.0, 0.0, -1.0, 0.5, 0.5]), np.array([1, 0, 0, 2, 0])
    >>> gradient, curvature = prefloss.bradley_terry_derivatives_grouped(scores, relevance=labels, group_sizes=[3, 2])
    >>> gradient.round(3)  # a query of two pairs, and one of a single pair
    array([-0.167,  0.119,  0.047, -0.5  ,  0.5  ])
    >>> curvature.round(3)
    array([0.15 , 0.105, 0.045, 0.25 , 0.25 ])

    The defaults differ from those of the loss, to suit boosting: each pair counts once, and the sum is not divided. A factor on all
    pairs does not change a leaf's value, -sum of gradients / sum of curvatures; it changes only how much a regularisation that is
    added to these sums counts.

    It works on the CPU alone, and its results cannot be differentiated; `bradley_terry_loss_grouped` can. A long group takes time
    and memory in proportion to its items, as there, if all of its rewards are finite.

    Args:
        rewards: (B, K), or (N,) with ``group_sizes``: a tensor on the CPU, or a NumPy array. float64, float32, bfloat16 or
            float16. The arguments below may be tensors or arrays, whatever the rewards are.
        ranks, relevance, group_sizes, ties, margin, weight: as in `bradley_terry_loss_grouped`.
        average: "pairs" counts each pair once, times its group's weight; "groups" divides that by the number of pairs of the
            group, so that long groups count no more than short ones.
        beta, label_smoothing, flip_rate, center_rewards_coefficient: as in `bradley_terry_loss`. Neither smoothing nor flips change
            the second derivatives.
        reduction: "sum", or "mean", which divides by the sum of the weights of all pairs.

    Returns:
        (gradient, hessian_diagonal), float64, of the rewards' shape: tensors for a tensor, NumPy arrays for an array. Pairs are
        computed in float64 for float64 rewards and in long groups, else in float32 or float64, whichever is quicker. They are
        added up in float64. Both are exactly 0 where an item is in no pair, or its group has weight 0.

    Raises:
        TypeError, ValueError: what `bradley_terry_loss_grouped` raises; reduction "none"; arrays that have a mask, or hold
            anything but real numbers of at most 64 bits.
        NotImplementedError: rewards on another device than the CPU; tensors that are not plain; under torch.func's transforms.

    Sources: Burges 2010 (MSR-TR-2010-82), section 7, for both derivatives; Friedman 2001 and Chen & Guestrin 2016, eq. 5, for what
    trees do with them.
    """
    scores, order = as_tensor("rewards", rewards), as_tensor("ranks", ranks)
    better, its_weight = as_tensor("relevance", relevance), as_tensor("weight", weight)
    sizes = as_tensor("group_sizes", group_sizes) if isinstance(group_sizes, np.ndarray) else group_sizes
    if is_watched():
        raise NotImplementedError(
            "bradley_terry_derivatives_grouped computes at once, and cannot be called under transforms of torch.func or in "
            "dispatch modes"
        )
    arguments.check_choice("reduction", reduction, ("sum", "mean"))
    arguments.check_choice("average", average, ("groups", "pairs"))
    arguments.check_choice("ties", ties, ("skip", "half"))
    if isinstance(margin, Tensor):
        margin = arguments.check_number("margin", margin, "a finite number (groups have one margin for all pairs)")
    numbers = arguments.check_numbers(margin, None, beta, label_smoothing, flip_rate, center_rewards_coefficient)
    if order is None or better is not None:
        order = _opposite(scores, order, better, sizes, True)
    groups = _checked(Groups(scores, order, arguments.as_group_sizes(sizes), its_weight))
    arguments.check_range(numbers, groups.rewards)
    if not groups.rewards.is_cpu:
        raise NotImplementedError(
            f"bradley_terry_derivatives_grouped computes on the CPU, got rewards on {groups.rewards.device}; pass their .cpu()"
        )
    groups = _plain(groups)
    options = numbers.as_given(reduction, None, False)
    call = _core.grouped_call(*groups, numbers.margin, average, ties, options, True)
    if call is None:
        raise NotImplementedError(
            "bradley_terry_derivatives_grouped reads the memory of arrays and of plain tensors, and takes nothing else, got "
            f"rewards of type {type(rewards).__name__}"
        )
    results = [torch.empty(groups.rewards.shape, dtype=torch.float64, device="cpu") for _ in range(2)]
    if not _core.grouped_derivatives(*groups[:4], call, eager.LARGE_GROUP, *results):
        check_ranks(groups.ranks)
    gradient, curvature = results
    return (gradient.numpy(), curvature.numpy()) if isinstance(rewards, np.ndarray) else (gradient, curvature)


def _plain(groups: Groups) -> Groups:
    """Contiguous, without a graph, and of dtypes that the compiled module reads."""
    _check_memory(True, **{name: tensor for name, tensor in groups._asdict().items() if tensor is not None})
    ranks = groups.ranks if groups.ranks.dtype in arguments.READ_DTYPES else order_keys(groups.ranks)
    tensors = groups._replace(ranks=ranks)
    plain = [tensor if tensor is None else tensor.detach().resolve_neg().contiguous() for tensor in tensors]
    return Groups._make(plain)


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
    """Of what torch reads before the kernels do."""
    for name, tensor in tensors.items():
        if eager and is_plain(tensor):
            check_memory(name, tensor)


def _checked(groups: Groups) -> Groups:
    rewards, ranks = arguments.check_groups(groups.rewards, groups.ranks, groups.group_sizes)
    count = rewards.shape[0] if groups.group_sizes is None else groups.group_sizes.shape[0]
    arguments.check_no_gradient("weight", groups.weight)
    weight = arguments.per_pair("weight", groups.weight, rewards, torch.Size((count,)), mask=True, entry="group")
    return Groups(rewards, ranks, groups.group_sizes, weight, groups.filled)
