"""The public functions over pairs: checks and documentation. What they compute is in csrc/pair_math.h."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, cast, overload

from torch import Tensor
from torch.compiler import is_compiling

from . import arguments, ops
from ._core import tensors_accept
from .autograd import HALVES, INTERLEAVED, PAIRED, DefaultLoss, EagerLoss, unstack
from .kernels import Numbers, Options
from .stats import PairStats
from .torch_internals import is_watched

if TYPE_CHECKING:
    from typing_extensions import Unpack

Reduction = Literal["mean", "sum", "none"]
Layout = Literal["halves", "interleaved"]
Result = Tensor | tuple[Tensor, PairStats]

_ONE, _ZERO = 1.0, 0.0  # defaults by identity: one comparison tells "not given"
_LAYOUTS = {"halves": HALVES, "interleaved": INTERLEAVED}


class PairedOptions(TypedDict, total=False):
    """The options that every loss over pairs takes; `bradley_terry_loss` documents them."""

    margin: Tensor | float | None
    weight: Tensor | None
    target: Tensor | float | None
    beta: float
    label_smoothing: float
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
    beta: float = _ONE,
    label_smoothing: float = _ZERO,
    center_rewards_coefficient: float = _ZERO,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """The empirical preference loss -1/|D| sum log sigma(chosen - rejected) and its gradient, fused.

    Drop-in for ``-F.logsigmoid(chosen - rejected).mean()``. With a = chosen and b = rejected, for each pair

        z  = beta (a - b) - margin
        t' = target (1 - 2 label_smoothing) + label_smoothing
        l  = -t' log sigma(z) - (1 - t') log sigma(-z)

    and the loss is sum w (l + c (a + b)^2) / D, with w the weight, c the ``center_rewards_coefficient`` and D the divisor
    that ``reduction`` and ``denominator`` choose. A pair of weight 0 counts exactly 0 and gets gradient exactly 0, even
    if its rewards are NaN or infinite; so an empty batch, or one masked out altogether, has the loss 0 and zero gradients.

    Args:
        chosen: rewards of the preferred responses; any shape; float64, float32, bfloat16 or float16; any strides.
        rejected: rewards of the others; the same shape, dtype and device. Nothing is broadcast.
        margin: how far apart the rewards should be: a number, or one entry a pair. May require a gradient.
        weight: one entry a pair; a bool tensor is a mask. Importance weights, or padding.
        target: the probability that `chosen` is preferred, in [0, 1]: a number, or one entry a pair (1/2 is a tie).
        beta: inverse temperature (DPO's beta), finite.
        label_smoothing: the probability that a preference is flipped, in [0, 0.5].
        center_rewards_coefficient: c >= 0, which pulls a + b towards 0.
        reduction: "mean" divides by the total weight (the number of pairs without weights), "sum" by 1; "none" returns
            the pairs' terms w (l + c (a + b)^2) in the rewards' shape.
        denominator: what "mean" divides by instead, so that micro-batches and ranks add up to the loss of the whole
            batch: a number > 0, or a 0-d tensor on the rewards' device (Hugging Face's ``num_items_in_batch``).
        return_stats: also return `PairStats`, gathered in the same pass.

    Per-pair tensors (margin, weight, target) are float32 or of the rewards' dtype, on their device and of their shape.

    Returns:
        The loss, float64 for float64 rewards and float32 for all others; with ``return_stats``, (loss, `PairStats`).
        Gradients have the rewards' dtype. Forward-mode derivatives are not supported and raise.

    Raises:
        TypeError: not a dense tensor, or a dtype or type that is not accepted.
        ValueError: shapes, devices or values that are not accepted; ``weight``, ``target`` or ``denominator`` that
            require a gradient.
        NotImplementedError: a device without kernels.

    Sources: Bradley & Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155) eq. 1; margin: Touvron et al. 2023 (2307.09288)
    eq. 2; centring: Eisenstein et al. 2023 (2312.09244) eq. 2; label smoothing: Mitchell 2023 (cDPO); beta: Rafailov et
    al. 2023 (2305.18290).
    """
    if (
        margin is None
        and weight is None
        and target is None
        and beta is _ONE
        and label_smoothing is _ZERO
        and center_rewards_coefficient is _ZERO
        and reduction == "mean"
        and denominator is None
        and return_stats is False
        and not is_compiling()
        and not is_watched()
        and tensors_accept(chosen, rejected, PAIRED, None, None, None)
    ):
        return cast(Tensor, DefaultLoss.apply(chosen, rejected))
    numbers = check_options(margin, target, beta, label_smoothing, center_rewards_coefficient, reduction, return_stats)
    return _loss(chosen, rejected, PAIRED, margin, weight, target, numbers, denominator, reduction, return_stats)


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
    beta: float = _ONE,
    label_smoothing: float = _ZERO,
    center_rewards_coefficient: float = _ZERO,
    reduction: Reduction = "mean",
    denominator: Tensor | float | None = None,
    return_stats: bool = False,
) -> Result:
    """`bradley_terry_loss` of the two parts of one tensor, as one forward pass over all responses gives them.

    Args:
        rewards: (2B, ...) with the pairs along dimension 0, as ``layout`` says. Its gradient is one tensor too.
        layout: "halves" is [chosen...; rejected...], "interleaved" is [chosen, rejected, chosen, rejected, ...].
        margin, weight, target: a number where `bradley_terry_loss` takes one, or of shape (B, ...).

    The other arguments, the result and the errors are those of `bradley_terry_loss`; a ValueError also where dimension 0
    is missing or odd, or ``layout`` unknown.
    """
    arguments.check_choice("layout", layout, tuple(_LAYOUTS))
    numbers = check_options(margin, target, beta, label_smoothing, center_rewards_coefficient, reduction, return_stats)
    return _loss(rewards, None, _LAYOUTS[layout], margin, weight, target, numbers, denominator, reduction, return_stats)


def check_options(
    margin: object,
    target: object,
    beta: float,
    label_smoothing: float,
    center_rewards_coefficient: float,
    reduction: str,
    return_stats: bool,
) -> Numbers:
    """The options that are numbers, checked: for each that is not given, what stands for it."""
    margin_number, target_number = 0.0, 1.0
    if margin is not None and not isinstance(margin, Tensor):
        margin_number = arguments.check_number("margin", margin, "a finite number or a tensor with one entry a pair")
    if target is not None and not isinstance(target, Tensor):
        target_number = arguments.check_number(
            "target", target, "a number in [0, 1] or a tensor with one entry a pair", 0, 1
        )
    if beta is not _ONE or label_smoothing is not _ZERO or center_rewards_coefficient is not _ZERO:
        beta, label_smoothing, center_rewards_coefficient = arguments.check_coefficients(
            beta, label_smoothing, center_rewards_coefficient
        )
    arguments.check_choice("reduction", reduction, arguments.REDUCTIONS)
    if return_stats is not False and return_stats is not True:
        raise TypeError(f"return_stats must be True or False, got {return_stats!r} ({type(return_stats).__name__})")
    return beta, margin_number, target_number, label_smoothing, center_rewards_coefficient


def _loss(
    rewards: Tensor,
    rejected: Tensor | None,
    layout: int,
    margin: Tensor | float | None,
    weight: Tensor | None,
    target: Tensor | float | None,
    numbers: Numbers,
    denominator: Tensor | float | None,
    reduction: str,
    return_stats: bool,
) -> Result:
    """`EagerLoss` of tensors that it takes as they are; of others, once they are known to be right, the operators."""
    margin = margin if isinstance(margin, Tensor) else None
    target = target if isinstance(target, Tensor) else None
    arguments.check_no_gradient("weight", weight)
    arguments.check_no_gradient("target", target)
    if (
        not is_compiling()
        and not is_watched()
        and not isinstance(denominator, Tensor)
        and tensors_accept(rewards, rejected, layout, margin, weight, target)
    ):
        arguments.check_denominator(denominator, reduction, rewards)
        result = EagerLoss.apply(
            rewards, rejected, layout, margin, weight, target, numbers, denominator, reduction, return_stats
        )
        return (result[0], PairStats(result[1])) if return_stats else cast(Tensor, result)
    if rejected is None and layout != PAIRED:
        chosen, rejected = unstack(arguments.check_stacked(rewards), layout)
    else:
        chosen, rejected = arguments.check_pair(rewards, rejected)
    arguments.check_per_pair("margin", margin, chosen)
    arguments.check_per_pair("weight", weight, chosen, mask=True)
    arguments.check_per_pair("target", target, chosen)
    arguments.check_denominator(denominator, reduction, chosen)
    options = Options(*numbers, reduction, return_stats)
    loss, sums = ops.loss(chosen, rejected, margin, weight, target, denominator, options)
    return (loss, PairStats(sums)) if return_stats else loss
