"""An evaluation in words: the table that `print` shows, and what to worry about."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .estimate import Estimate

if TYPE_CHECKING:
    from .evaluation import Evaluation

LOG_2 = math.log(2.0)
FEW_UNITS = 30


def summary(evaluation: Evaluation, level: float) -> str:
    """A table of plain text."""
    lines = [
        assumption(evaluation),
        "",
        f"{'':24}{'estimate':>10}{f'{100 * level:g} % interval':>24}{'effective pairs':>17}",
    ]
    for name, estimate in named_estimates(evaluation).items():
        lines.append(_line(name, estimate, level))
    calibration = evaluation.calibration
    low, high = calibration.interval(level)
    lines.append(f"{'calibration slope':24}{calibration.slope:10.4f}{f'{low:.4f} … {high:.4f}':>24}")
    if evaluation.options.grouped and evaluation.groups:
        lines += ["", f"{'loss by group':24}{'estimate':>10}{f'{100 * level:g} % interval':>24}{'pairs':>17}"]
        for label, group in evaluation.groups.items():
            low, high = group.loss.interval(level)
            lines.append(
                f"{printable(label)[:23]:24}{group.loss.value:10.4f}{f'{low:.4f} … {high:.4f}':>24}{group.pairs:17,}"
            )
    worries = concerns(evaluation)
    return "\n".join([*lines, *([""] if worries else []), *(f"! {worry}" for worry in worries)])


def _line(name: str, estimate: Estimate, level: float) -> str:
    low, high = estimate.interval(level)
    effective = estimate.effective_sample_size
    size = "" if math.isnan(effective) else f"{effective:,.0f}"
    return f"{name:24}{estimate.value:10.4f}{f'{low:.4f} … {high:.4f}':>24}{size:>17}".rstrip()


def printable(label: int | str) -> str:
    """The label on one line: line breaks and what else moves a terminal's cursor are spaces."""
    return "".join(each if each.isprintable() else " " for each in str(label))


def named_estimates(evaluation: Evaluation) -> dict[str, Estimate]:
    """The estimates of the table, by what a reader calls them."""
    named = {
        "loss": evaluation.loss,
        "accuracy": evaluation.accuracy,
        "ties": evaluation.tie_rate,
        "margin": evaluation.margin,
        "Brier score": evaluation.brier,
    }
    if evaluation.options.baseline:
        named |= {"loss, baseline's": evaluation.baseline_loss, "loss - baseline's": evaluation.difference}
        named |= {"accuracy - baseline's": evaluation.accuracy_difference}
    if evaluation.options.judge and not evaluation.is_reweighted:
        named["loss, with the judge"] = evaluation.prediction_powered
    return named


def assumption(evaluation: Evaluation) -> str:
    """What the intervals take for granted."""
    pairs = f"{evaluation.pairs:,} pairs"
    if evaluation.options.clustered:
        drawn = f"{pairs} in {evaluation.clusters:,} clusters, which are taken to be drawn independently"
    else:
        drawn = f"{pairs}, each taken to be drawn independently of the others"
    if evaluation.is_reweighted:
        return f"{drawn}; groups count by their shares of the population"
    return f"{drawn}; weighted" if evaluation.options.weighted else drawn


def concerns(evaluation: Evaluation) -> list[str]:
    """Sentences, the most serious first."""
    loss, found = evaluation.loss, []
    if not evaluation.pairs:
        return ["There are no pairs, so nothing is known."]
    if math.isnan(loss.value) or math.isinf(loss.value):
        found.append(
            f"The loss is {loss.value}: some rewards are NaN or infinite. Find out why before reading anything else."
        )
    if evaluation.weights is not None and evaluation.weights.warning:
        found.append(evaluation.weights.warning)
    unit = "clusters" if evaluation.options.clustered else "pairs"
    if evaluation.clusters < 2:
        found.append(
            f"There are {evaluation.clusters} independent {unit}: how far the estimates are off cannot be known from so few."
        )
    elif loss.degrees_of_freedom < FEW_UNITS - 1:
        worth = f"{evaluation.clusters} {unit}, worth {loss.degrees_of_freedom + 1:.0f} of equal size"
        found.append(
            f"The intervals rest on the differences between {worth}. From fewer than {FEW_UNITS} they are rough: "
            f"collect more {unit}" + (", not more pairs of the same ones." if evaluation.options.clustered else ".")
        )
    found += _of_calibration(evaluation)
    if evaluation.options.grouped and len(evaluation.groups) > 1:
        found += _of_groups(evaluation)
    return found


def _of_calibration(evaluation: Evaluation) -> list[str]:
    calibration = evaluation.calibration
    if calibration.slope == math.inf and evaluation.pairs > 1:
        return [
            "The model orders every pair rightly. If these are pairs that it was trained on, this says nothing about new "
            "ones; nor do the "
            "loss and the accuracy."
        ]
    if not calibration.p_value < 0.01:
        return []
    slope = f"slope {calibration.slope:.2f} instead of 1"
    low, high = calibration.interval(0.99)
    if low <= 0 <= high:
        return [
            f"The rewards may say nothing about which response is preferred: the calibration slope is {calibration.slope:.2f} "
            f"instead of 1, and 0 lies in its 99 % interval, {low:.2f} … {high:.2f}."
        ]
    if calibration.slope <= 0:
        return [
            f"The model prefers the rejected response more often, the surer it is ({slope}). Are chosen and rejected swapped?"
        ]
    if calibration.slope < 1:
        return [
            f"The model is too sure of itself ({slope}): its probabilities are too near 0 and 1. Scale its rewards by the slope."
        ]
    return [
        f"The model is less sure than it could be ({slope}). If rewards were not scaled down on purpose (DPO's beta), that is "
        f"what pairs from the "
        "training set look like: a model knows them better than it knows new ones. Were these pairs held out?"
    ]


def _of_groups(evaluation: Evaluation) -> list[str]:
    """Groups whose loss lies clearly above the whole's: there the average hides something."""
    worst = evaluation.worst_group(0.95)
    low, _ = worst.interval
    if low <= evaluation.loss.value:
        return []
    losses = f"the loss of {worst.label!r} is {worst.value:.3f}, against {evaluation.loss.value:.3f} overall"
    shares = (
        ""
        if evaluation.is_reweighted
        else " It holds for new pairs only where groups have the shares that they have here."
    )
    return [f"The average hides a group: {losses}.{shares}"]
