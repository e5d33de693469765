"""The public function: documentation, checks, and the way to the sums."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch

from .. import arguments
from .build import state_of
from .columns import Column, FloatArray, between, check_size, labels, numbers, of_pairs_that_count
from .evaluation import Evaluation
from .statistics import Options, Pairs

PROBABILITY = "a probability in [0, 1]"
# Of a finite reward or margin, and of beta times it: its cube, times that of a weight, is far from infinite.
GREATEST = 1e80


def evaluate(
    chosen: Column,
    rejected: Column,
    *,
    weight: Column | None = None,
    target: Column | float | None = None,
    margin: Column | float | None = None,
    beta: float | None = 1.0,
    label_smoothing: float | None = 0.0,
    flip_rate: float | None = 0.0,
    cluster: Column | None = None,
    group: Column | None = None,
    baseline: tuple[Column, Column] | None = None,
    judge: Column | None = None,
) -> Evaluation:
    """Estimates the expected loss of a model from a set of preference pairs, and says how far the estimate may be off.

    The empirical loss is the average over the pairs that were collected; the expected loss is the mean over the population that
    they were drawn from. The result has the loss, accuracy, ties, margin, Brier score and calibration, each with a standard error
    and an interval. These are right for the way in which the pairs were drawn, if you give it by `cluster` and `weight`.

    >>> import prefloss
    >>> chosen, rejected = [1.2, 0.3, 2.0, 0.1, 0.9, 1.1], [0.2, 0.5, 0.1, 0.0, 1.0, 0.3]
    >>> evaluation = prefloss.evaluate(chosen, rejected, cluster=["a", "a", "b", "b", "c", "c"])
    >>> evaluation.clusters, round(evaluation.accuracy.value, 3)
    (3, 0.667)
    >>> print(f"{evaluation.loss.value:.3f} +- {evaluation.loss.standard_error:.3f}")
    0.502 +- 0.055

    A column is a 1-D tensor (any device and real dtype), array, Arrow, pandas or polars column, or list, with one entry a pair.
    Everything is computed in float64 on the CPU.

    Args:
        chosen: rewards of the preferred responses. A finite reward lies between -1e80 and 1e80, and so does beta times it.
        rejected: rewards of the others.
        weight: how much each pair counts (importance weights, for example), finite and >= 0. A pair of weight 0 has no effect,
            whatever its numbers are.
        target: the probability that `chosen` is preferred, in [0, 1]: a number or a column. With `judge`, NaN or null where no
            person has labelled the pair.
        margin, beta, label_smoothing, flip_rate: as in `prefloss.bradley_terry_loss`; `margin` is a number or a column.
        cluster: integers or strings: the prompt, the annotator, the conversation. Pairs with the same label were drawn together,
            different labels independently. Without it all pairs are taken to be independent.
        group: integers or strings: the part of the population of each pair, for `groups`, `reweighted` and `worst_group`.
        baseline: (chosen, rejected) rewards of another model for the same pairs, for `difference`.
        judge: the probability, by a judge (another model, say), that `chosen` is better, for `prediction_powered`.

    Returns:
        `Evaluation`. Without pairs its numbers are nan; it can be added to others.

    Raises:
        TypeError: a column that does not hold real numbers, or has a mask (`numpy.ma`); labels that are neither integers nor
            strings.
        ValueError: lengths that differ, a missing label, values out of range.
        ImportError: pyarrow or SciPy is missing: `pip install "prefloss[evaluate]"`.
    """
    rewards = numbers("chosen", chosen)
    count = len(rewards)
    others = numbers("rejected", rejected, count)
    margin, target = _number_or_column(margin), _number_or_column(target)
    settings = arguments.check_numbers(
        margin if isinstance(margin, Real) else None,
        target if isinstance(target, Real) else None,
        beta,
        label_smoothing,
        flip_rate,
        None,
    )
    weights = None if weight is None else numbers("weight", weight, count)
    if weights is not None:
        between("weight", weights, 0.0, math.inf, "a finite number >= 0")
    if baseline is not None and (not isinstance(baseline, tuple | list) or len(baseline) != 2):
        raise TypeError(f"baseline must be a pair (chosen, rejected) of columns, got {baseline!r:.80}")
    compared = None
    if baseline is not None:
        compared = numbers("baseline chosen", baseline[0], count), numbers("baseline rejected", baseline[1], count)
    pairs = Pairs(
        rewards,
        others,
        _margin(margin, settings.margin, count, weights),
        weights,
        _target(target, settings.target, count, weights, judge is not None),
        compared,
        None if judge is None else _judge(judge, count, weights),
    )
    _check_sizes(pairs, float(settings.beta))
    options = Options(
        float(settings.beta),
        0.0 if label_smoothing is None else float(label_smoothing),
        0.0 if flip_rate is None else float(flip_rate),
        weights is not None,
        cluster is not None,
        group is not None,
        baseline is not None,
        judge is not None,
    )
    clusters = None if cluster is None else labels("cluster", cluster, count)
    groups = None if group is None else labels("group", group, count)
    return Evaluation(state_of(pairs, clusters, groups, options))


def greatest_reward(beta: float) -> float:
    """The greatest size of a finite reward."""
    return GREATEST / max(1.0, abs(beta))


def _check_sizes(pairs: Pairs, beta: float) -> None:
    """Raise where a number is finite, but the sums of its squares and cubes might not be."""
    rewards = {"chosen": pairs.chosen, "rejected": pairs.rejected}
    if pairs.baseline is not None:
        rewards |= {"baseline chosen": pairs.baseline[0], "baseline rejected": pairs.baseline[1]}
    for name, column in rewards.items():
        check_size(name, column, greatest_reward(beta), pairs.weight)
    if isinstance(pairs.margin, np.ndarray):
        check_size("margin", pairs.margin, GREATEST, pairs.weight)
    else:
        arguments.check_number(
            "margin", pairs.margin, f"a number from {-GREATEST:g} to {GREATEST:g}", -GREATEST, GREATEST
        )


def _number_or_column(value: Any) -> Any:
    """A tensor without dimensions is a number."""
    return value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value


def _margin(margin: Any, number: float, count: int, weight: FloatArray | None) -> FloatArray | float:
    if margin is None or isinstance(margin, Real):
        return float(number)
    values = numbers("margin", margin, count)
    between("margin", values, -math.inf, math.inf, "a finite number", weight)
    return values


def _target(target: Any, number: float, count: int, weight: FloatArray | None, judged: bool) -> FloatArray | float:
    if target is None or isinstance(target, Real):
        return float(number)
    values = numbers("target", target, count, missing=True)
    if not judged and (unknown := of_pairs_that_count(np.isnan(values), weight)).any():
        raise ValueError(
            f"target is NaN or null for {int(unknown.sum())} pairs, which nobody has labelled: leave them out, or give judge="
        )
    between("target", values, 0.0, 1.0, PROBABILITY, weight, missing=True)
    return values


def _judge(judge: Any, count: int, weight: FloatArray | None) -> FloatArray:
    values = numbers("judge", judge, count)
    between("judge", values, 0.0, 1.0, PROBABILITY, weight)
    return values
