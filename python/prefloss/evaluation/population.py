"""Populations other than the one that was collected: shares of groups, the worst group, the worst mixture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from .. import arguments
from ..intervals import tail_of
from .estimate import Estimate

if TYPE_CHECKING:
    from .evaluation import Evaluation, Label


class WorstGroup(NamedTuple):
    """The group with the greatest loss."""

    label: Label
    value: float  # its loss
    interval: tuple[float, float]  # of the greatest of all groups' expected losses

    def as_dict(self) -> dict[str, Any]:
        return {**self._asdict(), "interval": list(self.interval)}


class WorstMixture(NamedTuple):
    """The shares of groups, within a radius, that give the greatest loss."""

    shares: dict[Label, float]
    loss: Estimate


def checked_shares(
    shares: Mapping[Any, float] | None, share_counts: Mapping[Any, int] | None, groups: Mapping[Label, Evaluation]
) -> dict[Label, float]:
    """The share of each group that has data."""
    if (shares is None) == (share_counts is None):
        raise ValueError("exactly one of shares and share_counts must be given")
    given: Mapping[Any, float] = (shares if shares is not None else share_counts) or {}
    name = "shares" if shares is not None else "share_counts"
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} must be a mapping {{label: number}}, got {given!r} ({type(given).__name__})")
    checked = {
        label: arguments.check_number(f"{name}[{label!r}]", share, "a number >= 0", 0) for label, share in given.items()
    }
    parts = [label for label, count in checked.items() if share_counts is not None and not count.is_integer()]
    if parts:
        raise ValueError(f"share_counts[{parts[0]!r}] must be a whole number >= 0, got {given[parts[0]]!r}")
    total = math.fsum(checked.values())
    if shares is not None and abs(total - 1.0) > 1e-6:
        raise ValueError(f"shares must add up to 1, got {total:g}")
    if total == 0:
        raise ValueError(f"{name} must not all be 0")
    checked = {label: share / total for label, share in checked.items()}
    missing = {
        label: share
        for label, share in checked.items()
        if share > 0 and (label not in groups or not groups[label].pairs)
    }
    if missing:
        listed = ", ".join(f"{label!r} ({share:.1%})" for label, share in missing.items())
        raise ValueError(
            f"there are no pairs of {listed}, so the loss of {math.fsum(missing.values()):.1%} of the population is unknown; "
            f"collect such pairs, or give shares of the other groups alone; there are pairs of {', '.join(map(repr, groups))}"
        )
    unnamed = [label for label in groups if label not in checked]
    if unnamed:
        raise ValueError(
            f"{name} must name every group; give 0 to leave one out; not named: {', '.join(map(repr, unnamed))}"
        )
    return {label: checked[label] for label in groups}


def worst_group(groups: Mapping[Label, Evaluation], level: float) -> WorstGroup:
    if not groups:
        raise ValueError("there are no pairs, so there is no worst group")
    each = 1.0 - 2.0 * tail_of(level) / len(groups)
    losses = {label: group.loss for label, group in groups.items()}
    worst = max(losses, key=lambda label: losses[label].value if not math.isnan(losses[label].value) else math.inf)
    intervals = [loss.interval(each) for loss in losses.values()]
    # A group of one unit has no interval, so nothing bounds the greatest loss from above.
    low = max((low for low, _ in intervals if not math.isnan(low)), default=math.nan)
    high = math.inf if any(math.isnan(high) for _, high in intervals) else max(high for _, high in intervals)
    return WorstGroup(worst, losses[worst].value, (low, high))


def worst_mixture(evaluation: Evaluation, radius: float) -> WorstMixture:
    radius = arguments.check_number("radius", radius, "a number >= 0", 0)
    if not evaluation.groups:
        raise ValueError("there are no pairs, so there is no worst mixture")
    # A group of no labelled pair has no share, and no loss that is known.
    own = {label: share for label, share in evaluation.shares.items() if share > 0}
    if not own:
        raise ValueError("there are no labelled pairs, so there is no worst mixture")
    share = np.array(list(own.values()))
    losses = np.array([evaluation.groups[label].loss.value for label in own])
    found = dict(zip(own, _worst_shares(share, losses, radius).tolist(), strict=True))
    worst = {label: found.get(label, 0.0) for label in evaluation.groups}
    return WorstMixture(worst, evaluation.reweighted(worst).loss)


def _worst_shares(share: NDArray[np.float64], losses: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """q >= 0 with sum q = 1 and sum (q - p)^2 / p <= radius of the greatest sum q loss.

    q is p max(0, loss - level), scaled; the greater the level, the farther it is from p, up to the worst groups alone. Losses
    and levels are counted down from the greatest loss, in parts of the range of all, so that no digits cancel.
    """
    spread = float(np.ptp(losses))
    if not (spread > 0 and radius > 0 and math.isfinite(spread)):
        return share
    below = (losses.max() - losses) / spread

    def at(depth: float) -> NDArray[np.float64]:
        q = share * np.maximum(depth - below, 0.0)
        return np.asarray(q / q.sum())

    def excess(depth: float) -> float:
        return float(np.sum((at(depth) - share) ** 2 / share)) - radius

    only_worst = share * (below == 0)
    only_worst = only_worst / only_worst.sum()
    if np.sum((only_worst - share) ** 2 / share) <= radius:
        return np.asarray(only_worst)
    mean = float(share @ below)
    # Far below all losses, the divergence is var / (depth - mean)^2.
    deep = mean + 2.0 * math.sqrt(float(share @ (below - mean) ** 2) / radius) + 1.0
    if not (math.isfinite(deep) and excess(deep) < 0):  # the radius is too small to be told from 0
        return share
    shallow = 1e-12
    return at(optimize.brentq(excess, shallow, deep)) if excess(shallow) > 0 else at(shallow)
