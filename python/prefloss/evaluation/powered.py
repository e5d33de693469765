"""Labels of people for some pairs and a judge's opinion of all of them: prediction-powered inference."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .estimate import Estimate
from .keys import number
from .state import State
from .units import ClusterUnits, Float64Array, PairUnits, units_of


@dataclass(frozen=True)
class PredictionPowered(Estimate):
    """The loss over all pairs. `pairs` and `clusters` count the labelled pairs alone; `effective_sample_size` is how many labelled
    pairs without a judge would be worth as much."""

    tuning: float = math.nan
    """How much the judge counts, from 0 (not at all) to 1: the lambda that makes the standard error smallest (Angelopoulos,
    Duchi & Zrnic 2023, PPI++, arXiv 2311.01453)."""


def part(state: State, *, labelled: bool) -> State:
    """The pairs that a person has labelled, or the others."""

    def rows(table: pa.Table) -> pa.Table:
        return table.filter(pc.equal(table["labelled"], labelled))

    return replace(state, units=rows(state.units), bins=rows(state.bins)) if state.options.judge else state


@np.errstate(all="ignore")
def prediction_powered(state: State) -> PredictionPowered:
    """lambda (mean over all of the judged loss) + mean over the labelled of (loss - lambda (judged loss)).

    With U and L the unlabelled and the labelled pairs that is mean_L loss + k (mean_U judged - mean_L judged), with k = lambda
    W_U / W.
    """
    known, unknown = (part(state, labelled=which) for which in (True, False))
    labelled, others = units_of(known), units_of(unknown)
    total = [pc.sum(each.units["w1"]).as_py() or 0.0 for each in (known, unknown)]
    loss, judged = labelled.moments("loss"), labelled.moments("judged")
    if total[1] == 0 or labelled.count < 2:
        powers, variance, k, correction = 0.0, loss.variance, 0.0, 0.0
    else:
        correction = others.moments("judged").value - judged.value
        if isinstance(labelled, ClusterUnits) and isinstance(others, ClusterUnits):
            a, b = _pulls(labelled, others)
            covariance, square = -float(a @ b), float(b @ b)
        else:
            assert isinstance(labelled, PairUnits)
            assert isinstance(others, PairUnits)
            # 2 cov(loss, judged) = var(loss) + var(judged) - var(loss - judged)
            covariance = 0.5 * (loss.variance + judged.variance - labelled.moments("gap").variance)
            square = judged.variance + others.moments("judged").variance
        unlabelled = total[1] / (total[0] + total[1])
        powers = min(max(covariance / square / unlabelled, 0.0), 1.0) if square > 0 else 0.0
        k = powers * unlabelled
        variance = loss.variance - 2.0 * k * covariance + k * k * square
    return PredictionPowered(
        loss.value + k * correction,
        math.sqrt(max(variance, 0.0)) if not math.isnan(variance) else math.nan,
        labelled.degrees_of_freedom,
        0.0,
        labelled.pairs,
        labelled.count,
        loss.pair_variance,
        tuning=powers,
    )


def _pulls(labelled: ClusterUnits, others: ClusterUnits) -> tuple[Float64Array, Float64Array]:
    """Of each cluster on the mean loss, and on mean_U judged - mean_L judged, whether it has labelled pairs or others or both."""
    codes, values = number(pa.concat_arrays([labelled.unit_labels, others.unit_labels]))
    mine, theirs = codes[: labelled.count], codes[labelled.count :]
    loss, judged = np.zeros(len(values)), np.zeros(len(values))
    loss[mine] = labelled.pulls("loss", adjusted=True)
    judged[mine] = -labelled.pulls("judged", adjusted=True)
    judged[theirs] += others.pulls("judged", adjusted=True)
    return loss, judged
