"""Pictures of an evaluation: intervals of groups, calibration, margins, weights. Needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .weights import histogram

if TYPE_CHECKING:
    from .evaluation import Evaluation

BLUE, ORANGE, GREY = "#1d4ed8", "#c2410c", "#6b7280"  # can be told apart without seeing red and green
MOST_GROUPS = 30
Panel = Callable[[Axes, "Evaluation", float], None]


def panels(evaluation: Evaluation) -> dict[str, Panel]:
    """The pictures that this evaluation has something for."""
    found: dict[str, Panel] = {"losses": draw_losses, "calibration": draw_calibration, "margins": draw_margins}
    if evaluation.weights is not None:
        found["weights"] = draw_weights
    return found


def figure(evaluation: Evaluation, level: float) -> Figure:
    """All pictures side by side."""
    drawn = panels(evaluation)
    whole = Figure(figsize=(4.6 * len(drawn), 4.2), layout="constrained")
    for axes, draw in zip(np.atleast_1d(whole.subplots(1, len(drawn))), drawn.values(), strict=True):
        draw(axes, evaluation, level)
    return whole


def draw_losses(axes: Axes, evaluation: Evaluation, level: float) -> None:
    """A forest plot: the loss of all pairs and of each group with its interval."""
    rows = [("all pairs", evaluation.loss)]
    title = "Expected loss"
    if evaluation.options.grouped:
        groups = sorted(evaluation.groups.items(), key=lambda item: -item[1].loss.value)
        rows += [(str(label), group.loss) for label, group in groups[:MOST_GROUPS]]
        if len(groups) > MOST_GROUPS:
            title += f": the {MOST_GROUPS} worst of {len(groups)} groups"
    for place, (_, loss) in enumerate(rows):
        low, high = loss.interval(level)
        colour = ORANGE if place == 0 else BLUE
        axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
        axes.plot(loss.value, place, "D" if place == 0 else "o", color=colour, markersize=5)
    axes.axvline(math.log(2.0), color=GREY, linewidth=1, linestyle="--")
    along_x = axes.get_xaxis_transform()
    axes.text(
        math.log(2.0),
        0.98,
        "knows nothing ",
        transform=along_x,
        color=GREY,
        fontsize=8,
        ha="right",
        va="top",
        rotation=90,
    )
    axes.set_yticks(range(len(rows)), [name if len(name) < 25 else name[:23] + "…" for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"loss, nats a pair, with {100 * level:g} % intervals")
    axes.set_title(title, fontsize=10)
    _tidy(axes)


def draw_calibration(axes: Axes, evaluation: Evaluation, level: float) -> None:
    """A reliability diagram: how often the response with the greater reward is the better one, by what the model says."""
    bins = evaluation.calibration.bins
    axes.plot([0.5, 1.0], [0.5, 1.0], color=GREY, linewidth=1, linestyle="--", label="calibrated")
    largest = max((each.share for each in bins), default=1.0)
    axes.scatter(
        [each.predicted for each in bins],
        [each.observed for each in bins],
        [10 + 110 * each.share / largest for each in bins],
        color=BLUE,
        alpha=0.8,
        label="pairs (area: their weight)",
    )
    axes.set_xlim(0.49, 1.01)
    axes.set_xlabel("the model's probability for the response it prefers")
    axes.set_ylabel("how often that response was preferred")
    axes.set_title(f"Calibration: slope {evaluation.calibration.slope:.2f}", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="best")
    _tidy(axes)


def draw_margins(axes: Axes, evaluation: Evaluation, level: float) -> None:
    """How far apart the rewards lie, for pairs that are ordered rightly (to the right of 0) and wrongly (to the left)."""
    bins = evaluation.calibration.bins
    for side, colour, name in ((1, BLUE, "ordered rightly"), (-1, ORANGE, "ordered wrongly")):
        for each in bins:
            high = each.high if math.isfinite(each.high) else each.low + 5.0
            share = each.share * (each.observed if side == 1 else 1.0 - each.observed)
            if share > 0:  # an empty bar would widen the picture
                width = side * (high - each.low)
                axes.bar(side * each.low, share / abs(width), width, align="edge", color=colour)
        axes.bar(0.0, 0.0, color=colour, label=name)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_xlabel("β (chosen − rejected) − margin")
    axes.set_ylabel("share of the weight a unit")
    axes.set_title(f"Margins: {evaluation.accuracy.value:.1%} ordered rightly", fontsize=10)
    if bins:
        axes.legend(fontsize=8, frameon=False)
    _tidy(axes)


def draw_weights(axes: Axes, evaluation: Evaluation, level: float) -> None:
    """How many pairs it takes, from the heaviest on, to carry a share of the total weight."""
    assert evaluation.weights is not None
    counts, values = histogram(evaluation._labelled)
    pairs, carried = np.cumsum(counts[::-1]), np.cumsum((counts * values)[::-1])
    axes.plot(np.r_[0, pairs / pairs[-1]], np.r_[0, carried / carried[-1]], color=BLUE, linewidth=2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="equal weights")
    axes.set_xlabel("share of the pairs, heaviest first")
    axes.set_ylabel("share of the weight that they carry")
    axes.set_title(f"Weights: {evaluation.weights.effective_size:,.0f} effective of {pairs[-1]:,} pairs", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="lower right")
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e3e3", linewidth=0.6)
    axes.set_axisbelow(True)
