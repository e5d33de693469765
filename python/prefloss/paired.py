"""The public functions over pairs: checks and documentation. What they compute is in csrc/pair_math.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast, overload

from torch import Tensor
from torch.compiler import is_compiling

from . import _core, arguments, composed
from ._core import PairedCall
from .eager import PairedLoss, PlainLoss
from .operators.paired import paired_loss
from .pairs import DEFAULTS, HALVES, INTERLEAVED, PAIRED, Pairs, unstack
from .stats import PairStats
from .torch_internals import is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

Reduction = Literal["mean", "sum", "none"]
Layout = Literal["halves", "interleaved"]
Result = Tensor | tuple[Tensor, PairStats]

paired_call = composed.unless_asked_for(_core.paired_call)
_LAYOUTS = {"halves": HALVES, "interleaved": INTERLEAVED}


class PairedOptions(TypedDict, total=False):
    """The options that every loss over pairs takes; `bradley_terry_loss` documents them."""

    margin: Tensor | float | None
    weight: Tensor | None
    target: Tensor | float | None
    beta: float
    label_smoothing: float
    flip_rate: float
    center_rewards_coefficient: float
    reduction: Reduction
    denominator: Tensor | float | None


@overload
def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, return_stats: Literal[False] = False, **options: Unpack[PairedOptions]
) -> Tensor: ...
@overload
def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, return_stats: Literal[True], **options: Unpack[PairedOptions]
) -> tuple[Tensor, PairStats]: ...
@overload
def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, return_stats: bool, **options: Unpack[PairedOptions]
) -> Result: ...
def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float | None = None,
    weight: Tensor | None = None,
    target: Tensor | float | None = None,
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """The empirical preference loss -1/|D| sum log sigma(chosen - rejected) over a set D of pairs.

    It replaces ``-F.logsigmoid(chosen - rejected).mean()``. With a = chosen and b = rejected, for each pair::

        z  = beta (a - b) - margin
        t' = target (1 - 2 s) + s, with s = label_smoothing, or -flip_rate / (1 - 2 flip_rate)
        l  = -t' log sigma(z) - (1 - t') log sigma(-z)

    and the loss is sum w (l + c (a + b)^2) / n, with w the weight, c the ``center_rewards_coefficient`` and n the divisor
    that ``reduction`` and ``denominator`` choose. A pair of weight 0 adds exactly 0 and gets gradient exactly 0, even
    if its rewards are NaN or infinite. An empty batch, or one with all weights 0, has the loss 0 and zero gradients.

    >>> import prefloss, torch
    >>> chosen, rejected = torch.tensor([2.0, 0.5, 1.0]), torch.tensor([1.0, 1.5, 7.0])
    >>> prefloss.bradley_terry_loss(chosen, rejected, weight=torch.tensor([True, True, False]))
    tensor(0.8133)
    >>> _, stats = prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)
    >>> round(stats.accuracy, 3)
    0.333

    Args:
        chosen: rewards of the preferred responses; any shape; float64, float32, bfloat16 or float16; any strides.
        rejected: rewards of the others; the same shape, dtype and device. Nothing is broadcast.
        margin: how far apart the rewards should be: a number, or one entry a pair. May require a gradient.
        weight: how much each pair counts: one entry a pair. A bool tensor is a mask, for padding.
        target: the probability that `chosen` is preferred, in [0, 1]: a number, or one entry a pair (1/2 is a tie).
        beta: inverse temperature (DPO's beta), finite.
        label_smoothing: the probability that a label is wrong, in [0, 0.5]. The model learns to be less sure.
        flip_rate: the probability f that a label is wrong, in [0, 0.5), where it is known. The loss becomes
            ((1 - f) l(z) - f l(-z)) / (1 - 2 f): on average over the wrong labels, the loss of the right ones. It can be
            negative, and has no lower bound. Not together with ``label_smoothing``.
        center_rewards_coefficient: c >= 0, which pulls a + b towards 0.
        reduction: "mean" divides by the total weight (without weights, the number of pairs), "sum" by 1; "none" returns
            the pairs' terms w (l + c (a + b)^2) in the rewards' shape.
        denominator: what "mean" divides by instead, so that micro-batches and ranks add up to the loss of the whole
            batch: a number > 0, or a tensor of one entry, of any real dtype but bool, on the rewards' device or the CPU
            (Hugging Face's ``num_items_in_batch``). It must be > 0; on a GPU, under transforms and where compiled nobody looks.
        return_stats: also return `PairStats`, computed in the same pass.

    Tensors with one entry a pair (margin, weight, target) have the rewards' shape and device. They may have any real dtype, and are
    converted unless they are float32 or of the rewards' dtype. For margin and target a 0-d tensor stands for all pairs. An option
    that is a number may also be a tensor of one entry on the CPU. None means the default.

    Returns:
        The loss, float64 for float64 rewards and float32 for all others; with ``return_stats``, (loss, `PairStats`).
        Gradients have the rewards' dtype. With the kernels, forward-mode derivatives raise an error.

    Raises:
        TypeError: not a dense tensor, or a dtype or type that is not accepted.
        ValueError: shapes, devices or values that are not accepted; ``weight``, ``target`` or ``denominator`` that
            require a gradient.

    On a device without kernels (Apple's, Intel's and AMD's GPUs, and NVIDIA's where the package was built without CUDA) the loss is
    composed of torch's operations, and a warning says so once in a process. ``PREFLOSS_CPU=composed`` does the same on the CPU.
    There the gradients are torch's own, of any order and in forward mode too. Each pair is computed in the type of the loss. The
    loss and the statistics are added up in float64 where the device has it; the gradients of an item in several pairs, in the type
    of the loss. Bits may change with strides and the number of threads. The gradient that arrives at the loss, divided by n, must
    fit into the type of the loss.

    Sources: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; margin: Touvron et al. 2023 (2307.09288)
    eq. 2; centring: Eisenstein et al. 2023 (2312.09244) eq. 2; label smoothing: Mitchell 2023 (cDPO); flip rate: Natarajan et al.
    2013 (Learning with noisy labels), Chowdhury, Kini & Natarajan 2024 (robust DPO, 2403.00409); beta: Rafailov et al. 2023
    (2305.18290).
    """
    options = beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats
    return loss_of(chosen, rejected, PAIRED, margin, weight, target, options)


@overload
def bradley_terry_loss_stacked(
    rewards: Tensor,
    *,
    layout: Layout = "halves",
    return_stats: Literal[False] = False,
    **options: Unpack[PairedOptions],
) -> Tensor: ...
@overload
def bradley_terry_loss_stacked(
    rewards: Tensor, *, layout: Layout = "halves", return_stats: Literal[True], **options: Unpack[PairedOptions]
) -> tuple[Tensor, PairStats]: ...
@overload
def bradley_terry_loss_stacked(
    rewards: Tensor, *, layout: Layout = "halves", return_stats: bool, **options: Unpack[PairedOptions]
) -> Result: ...
def bradley_terry_loss_stacked(
    rewards: Tensor,
    *,
    layout: Layout = "halves",
    margin: Tensor | float | None = None,
    weight: Tensor | None = None,
    target: Tensor | float | None = None,
    beta: float = DEFAULTS.beta,
    label_smoothing: float = DEFAULTS.label_smoothing,
    flip_rate: float = DEFAULTS.label_smoothing,
    center_rewards_coefficient: float = DEFAULTS.center_rewards_coefficient,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss` where one tensor holds the chosen and the rejected rewards, as from one forward pass over all responses.

    >>> import prefloss, torch
    >>> prefloss.bradley_terry_loss_stacked(torch.tensor([2.0, 1.0, 0.5, 1.5]), layout="interleaved")
    tensor(0.8133)

    Args:
        rewards: (2B, ...) with the pairs along dimension 0, as ``layout`` says. Its gradient is one tensor too.
        layout: "halves" is [chosen...; rejected...], "interleaved" is [chosen, rejected, chosen, rejected, ...].
        margin, weight, target: a number where `bradley_terry_loss` takes one, or of shape (B, ...).

    The other arguments, the result and the errors are those of `bradley_terry_loss`. It is also a ValueError if dimension 0
    is missing or odd, or ``layout`` is unknown.
    """
    arguments.check_choice("layout", layout, tuple(_LAYOUTS))
    options = beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats
    return loss_of(rewards, None, _LAYOUTS[layout], margin, weight, target, options)


def loss_of(
    rewards: Tensor,
    rejected: Tensor | None,
    layout: int,
    margin: Tensor | float | None,
    weight: Tensor | None,
    target: Tensor | float | None,
    options: tuple[Any, ...],
) -> Result:
    """Eager where all that is given can be taken as it is; else once it has been checked and converted; else by the operators.

    Where there are no kernels, composed once it has been checked.

    `options`: beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats.
    """
    eager = not is_compiling() and not is_watched()
    if eager:
        call = paired_call(rewards, rejected, layout, margin, weight, target, options, False)
        if call is not None:
            if call.is_plain:
                return cast(Tensor, PlainLoss.apply(rewards, rejected, call))
            margin = margin if isinstance(margin, Tensor) else None
            target = target if isinstance(target, Tensor) else None
            return _result(PairedLoss.apply(rewards, rejected, margin, weight, target, call), call)
    numbers = arguments.check_numbers(margin, target, *options[:4])
    reduction, denominator, return_stats = options[4:]
    code = arguments.check_reduction(reduction)
    arguments.check_flag("return_stats", return_stats)
    pairs = _checked(Pairs.of(rewards, rejected, margin, weight, target), layout)
    arguments.check_range(numbers, pairs.chosen)
    divisor = arguments.check_denominator(denominator, code, pairs.chosen)
    composes = composed.is_needed(pairs.chosen)
    if eager and not composes:
        checked = numbers.as_given(reduction, divisor, return_stats)
        call = paired_call(pairs.chosen, pairs.rejected, PAIRED, *pairs.with_numbers(numbers), checked, True)
        if call is not None:
            return _result(PairedLoss.apply(*pairs, call), call)
    compute = composed.paired if composes else paired_loss
    loss, sums = compute(pairs, numbers, divisor, code, return_stats)
    return (loss, PairStats(sums.detach())) if return_stats else loss


def _result(made: Any, call: PairedCall) -> Result:
    """What `PairedLoss` made, as the public functions return it."""
    return (made[0], PairStats(made[1].detach())) if call.statistics else cast(Tensor, made)


def _checked(pairs: Pairs, layout: int) -> Pairs:
    """Two tensors and their options, of right dtypes and shapes."""
    if layout == PAIRED:
        chosen, rejected = arguments.check_pair(pairs.chosen, pairs.rejected)
    else:
        chosen, rejected = unstack(arguments.check_stacked(pairs.chosen), layout)
    arguments.check_no_gradient("weight", pairs.weight)
    arguments.check_no_gradient("target", pairs.target)
    return Pairs(
        chosen,
        rejected,
        arguments.per_pair("margin", pairs.margin, chosen),
        arguments.per_pair("weight", pairs.weight, chosen, mask=True),
        arguments.per_pair("target", pairs.target, chosen),
    )
