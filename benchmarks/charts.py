"""Draws the charts from the figures that report.py or gpu.py wrote.

python benchmarks/charts.py benchmarks/results.json docs
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "prefloss": "#c2410c",
    "backward": "#7c2d12",
    "torch.compile": "#2563eb",
    "Triton": "#15803d",
    "rival": "#6b7280",
}
MARKERS = {
    "prefloss": "o",
    "backward": "v",
    "torch.compile": "s",
    "Triton": "^",
    "rival": "D",
}  # for who sees no colours


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write speed_up, calls, bandwidth, all_pairs and list_laws.svg into `folder`, each only where `results` has rows for it.

    Those of a GPU are called gpu_speed_up.svg, gpu_calls.svg and gpu_bandwidth.svg.
    """
    machine, versions = results["machine"], results["versions"]
    on_gpu = "gpu" in machine
    hardware = machine["gpu"] if on_gpu else f"{machine['processor']}, {machine['threads']} threads"
    where, prefix = f"{hardware}, torch {versions['torch']}", "gpu_" if on_gpu else ""
    folder.mkdir(parents=True, exist_ok=True)
    float32 = [row for row in results["rows"] if row["dtype"] == "float32"]
    steps = [row for row in float32 if row["kind"] in ("step", "graph replay")]
    lists = [row for row in float32 if row["kind"] == "list"]
    laws = [row for row in float32 if row["kind"].startswith("list") and row["pairs"] >= 10**6]
    calls = [row for row in float32 if row["kind"].startswith("call ") and len(row["seconds"]) > 1]
    kernels = [row for row in float32 if row["kind"].removesuffix(" kernel") in ("forward", "backward")]
    with plt.rc_context(
        {
            "figure.figsize": (7.2, 4.0),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#e3e3e3",
            "lines.linewidth": 2,
            "lines.marker": "o",
            "lines.markersize": 5,
            "svg.hashsalt": "prefloss",  # the same figures give the same file
        }
    ):
        if steps:
            _speed_up(steps, where, folder / f"{prefix}speed_up.svg")
        if calls:
            _calls(calls, where, folder / f"{prefix}calls.svg")
        if lists:
            _all_pairs(lists, where, folder / f"{prefix}all_pairs.svg")
        if len(laws) > 1:
            _laws(laws, where, folder / f"{prefix}list_laws.svg")
        if kernels:
            _bandwidth(kernels, where, folder / f"{prefix}bandwidth.svg")


def _speed_up(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    figure, axes = plt.subplots(layout="constrained")
    for kind, suffix, style in (("step", "", "-"), ("graph replay", ", graph replays", "--")):
        for name in ("prefloss", "torch.compile", "Triton"):
            points = [
                (row["pairs"], row["seconds"]["eager"]["median"] / row["seconds"][name]["median"])
                for row in rows
                if row["kind"] == kind and {name, "eager"} <= row["seconds"].keys()
            ]
            _line(axes, points, name + suffix, name, style)
    axes.axhline(1.0, color=COLOURS["rival"], linewidth=1, marker="")
    axes.text(max(row["pairs"] for row in rows), 1.02, "eager", color=COLOURS["rival"], ha="right", va="bottom")
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_ylabel("times as fast as eager PyTorch")
    axes.set_title("Training step (loss and gradient), float32", loc="left")
    _finish(axes, where)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _calls(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    """Each call beside the better of its composed forms; of options, those of the smallest number of pairs."""
    smallest: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["kind"].removeprefix("call ")
        if name == "compiled" or name.startswith("indexed"):
            name = f"{name}, {row['pairs']:,} pairs"
        smallest.setdefault(name, row)
    names = list(reversed(smallest))
    micro = [
        {contender: 1e6 * timing["median"] for contender, timing in smallest[name]["seconds"].items()} for name in names
    ]
    ours = [times.pop("prefloss") for times in micro]
    theirs = [min(times.values()) for times in micro]
    figure, axes = plt.subplots(figsize=(7.2, 0.22 * len(names) + 1.2), layout="constrained")
    axes.hlines(names, ours, theirs, color=COLOURS["rival"], linewidth=1)
    axes.plot(
        theirs,
        names,
        linestyle="",
        color=COLOURS["rival"],
        marker=MARKERS["rival"],
        label="composed operations, the better form",
    )
    axes.plot(ours, names, linestyle="", color=COLOURS["prefloss"], label="prefloss")
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("A call, loss and gradient, float32", loc="left")
    _finish(axes, where, "microseconds a call", base=10)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _bandwidth(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    """Forward reads two tensors; backward reads two and writes two, as the copies it is held against do."""
    figure, axes = plt.subplots(layout="constrained")
    for label, kind, contender, tensors, colour in (
        ("forward kernel", "forward", "prefloss", 2, "prefloss"),
        ("backward kernel", "backward", "prefloss", 4, "backward"),
        ("copying two tensors", "backward", "two copies", 4, "rival"),
        ("device copy", "backward", "device copy", 4, "rival"),
    ):
        points = [
            (row["pairs"], 1e-9 * tensors * 4 * row["pairs"] / row["seconds"][contender]["median"])
            for row in rows
            if row["kind"].startswith(kind) and contender in row["seconds"]
        ]
        _line(axes, points, label, colour)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GB read and written a second")
    axes.set_title("Kernels alone, float32, against a copy", loc="left")
    _finish(axes, where)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _all_pairs(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    figure, axes = plt.subplots(layout="constrained")
    for label, name, colour, style in (
        ("prefloss", "prefloss", "prefloss", "-"),
        ("prefloss, every pair visited", "one by one", "backward", "--"),
        ("eager, pairs by index", "eager, index form", "torch.compile", "-"),
        ("eager, pairs by mask", "eager, mask form", "Triton", "-"),
        ("torch.sort of as many numbers", "torch.sort", "rival", "-"),
    ):
        points = [(row["pairs"], row["seconds"][name]["median"]) for row in rows if name in row["seconds"]]
        _line(axes, points, label, colour, style)
    axes.set_yscale("log")
    axes.set_ylabel("seconds a step")
    axes.set_title("All pairs of one ranked list (loss and gradient), float32", loc="left")
    _finish(axes, where, "items in the list", base=10, columns=2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _laws(rows: list[dict[str, Any]], where: str, path: Path) -> None:
    """What all pairs of a long list cost by the law of its scores, in sorts of as many numbers."""
    names = [row["kind"].removeprefix("list").removeprefix(", ") or "normal" for row in rows][::-1]
    sorts = [row["seconds"]["prefloss"]["median"] / row["seconds"]["torch.sort"]["median"] for row in rows][::-1]
    figure, axes = plt.subplots(figsize=(7.2, 0.3 * len(names) + 1.4), layout="constrained")
    axes.barh(names, sorts, color=COLOURS["prefloss"])
    for place, value in enumerate(sorts):
        axes.annotate(f" {value:.1f}", (value, place), va="center", fontsize=8)
    axes.grid(visible=False, axis="y")
    axes.set_title(f"All pairs of a list of {rows[0]['pairs']:,} items by its scores, float32", loc="left")
    axes.set_xlabel(f"time over torch.sort of as many numbers\n{where}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _line(axes: Axes, points: list[tuple[int, float]], label: str, look: str, style: str = "-") -> None:
    """`look` is a key of COLOURS and MARKERS."""
    if points:
        xs, ys = zip(*sorted(points), strict=True)
        axes.plot(xs, ys, label=label, color=COLOURS[look], marker=MARKERS[look], linestyle=style)


def _finish(axes: Axes, where: str, what: str = "pairs", base: int = 2, columns: int = 3) -> None:
    axes.set_xscale("log", base=base)
    axes.set_xlabel(f"{what}\n{where}")
    axes.get_figure().legend(frameon=False, loc="outside lower center", ncols=columns)  # type: ignore[union-attr]  # beside the lines


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
