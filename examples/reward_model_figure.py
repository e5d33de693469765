"""The picture of a run: how the loss fell, how far apart the rewards are, and what intervals are worth."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from synthetic_preferences import StudyRow

TRAINING, HELD_OUT, TRUTH, WRONG = "#8a8f98", "#1f6fb4", "#111111", "#d1602d"


class CurvePoint(NamedTuple):
    """Losses after an epoch; low and high are the held-out loss's 95 % interval."""

    training: float
    held_out: float
    low: float
    high: float
    expected: float | None


def draw(
    path: Path,
    curve: list[CurvePoint],
    margins: np.ndarray[Any, Any],
    studies: dict[str, list[StudyRow]],
) -> None:
    """Write the picture: two panels, and two more where there are studies of intervals."""
    figure = Figure(figsize=(11, 9 if studies else 4.8), layout="constrained")
    axes = figure.subplots(2 if studies else 1, 2, squeeze=False)
    _draw_curve(axes[0, 0], curve)
    _draw_margins(axes[0, 1], margins)
    if studies:
        _draw_closing(axes[1, 0], studies["uniform"])
        _draw_narrow(axes[1, 1], studies["narrow"], studies["weighted"])
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.title.set(fontsize=11, fontweight="bold")
        # Below the panel, where it hides nothing.
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130)


def _draw_curve(panel: Axes, curve: list[CurvePoint]) -> None:
    epochs = range(len(curve))
    panel.plot(epochs, [point.training for point in curve], color=TRAINING, ls=":", lw=2.2, label="training pairs")
    panel.plot(epochs, [point.held_out for point in curve], color=HELD_OUT, label="held-out pairs, 95 % interval")
    panel.fill_between(
        epochs, [point.low for point in curve], [point.high for point in curve], color=HELD_OUT, alpha=0.18, lw=0
    )
    expected = [point.expected for point in curve if point.expected is not None]
    if expected:
        panel.plot(epochs, expected, color=TRUTH, ls="--", lw=1.2, label="expected loss")
    panel.axhline(math.log(2), color="#c4c4c4", lw=0.8, zorder=0, label="log 2: knows nothing")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set(title="Loss while training", xlabel="epoch", ylabel="loss (nats a pair)", xlim=(0, len(curve) - 1))


def _draw_margins(panel: Axes, margins: np.ndarray[Any, Any]) -> None:
    reach = float(np.quantile(np.abs(margins), 0.995)) or 1.0
    bins = np.linspace(-reach, reach, 41).tolist()  # 0 is an edge: no bar is of both colours
    right = np.mean(margins > 0)
    for side, color, hatch, label in (
        (margins > 0, HELD_OUT, "", f"chosen above rejected: {100 * right:.1f} %"),
        (margins <= 0, WRONG, "///", f"not: {100 * (1 - right):.1f} %"),
    ):
        shown = np.clip(margins[side], -reach, reach)
        panel.hist(shown, bins, color=color, hatch=hatch, edgecolor="white", lw=0.3, label=label)
    panel.set(title="Reward margins, held-out pairs", xlabel="chosen - rejected reward", ylabel="pairs")


def _draw_closing(panel: Axes, study: list[StudyRow]) -> None:
    sizes = np.array([row.pairs for row in study])
    widths = np.array([row.half_width for row in study])
    law = widths[-1] * np.sqrt(sizes[-1] / sizes)
    panel.plot(sizes, law, color=TRUTH, ls="--", lw=1.2, label=r"$\propto 1/\sqrt{n}$")
    panel.plot(sizes, widths, "o", color=HELD_OUT, label="95 % interval, and how often it holds")
    for row in study:
        panel.annotate(
            f"{100 * row.coverage:.1f} %",
            (row.pairs, row.half_width),
            xytext=(6, 5),
            textcoords="offset points",
            size=9,
        )
    panel.set(title="The interval closes", xlabel="pairs n", ylabel="half-width (nats)", xscale="log", yscale="log")
    panel.margins(x=0.15)


def _draw_narrow(panel: Axes, narrow: list[StudyRow], weighted: list[StudyRow]) -> None:
    panel.axhline(narrow[0].expected_loss, color=TRUTH, ls="--", lw=1.2, label="expected loss")
    for rows, color, marker, label, shift in (
        (narrow, WRONG, "s", "as collected", 0.93),
        (weighted, HELD_OUT, "o", "weight=density ratio", 1.07),
    ):
        panel.errorbar(
            [shift * row.pairs for row in rows],
            [row.loss for row in rows],
            yerr=[row.half_width for row in rows],
            fmt=marker,
            ms=4,
            capsize=3,
            color=color,
            label=label,
        )
    panel.set(title="90 % of the pairs from 15 % of the population", xlabel="pairs n", ylabel="loss, 95 % interval")
    panel.set(xscale="log")
