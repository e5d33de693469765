"""What the reports write down: a row of timings a case, its figures, and the circumstances they were measured in."""

from __future__ import annotations

import datetime
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case
from interleaved import Timing
from limits import Figure, Limit

import prefloss


def row_of(
    case: Case, timings: Mapping[str, Timing], errors: Mapping[str, float], peaks: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The case's row for the JSON."""
    ours = timings["prefloss"].median
    return {
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "pairs": case.size,
        "seconds": {name: timing._asdict() for name, timing in timings.items()},
        "rival_over_prefloss": {name: timing.median / ours for name, timing in timings.items() if name != "prefloss"},
        "loss_relative_error": errors,
        **({"peak_bytes": dict(peaks)} if peaks else {}),
    }


def line_of(case: Case, row: dict[str, Any]) -> str:
    times = [f"{name} {1e6 * timing['median']:,.1f}" for name, timing in row["seconds"].items()]
    ratios = [f"{ratio:.2f} x {name}" for name, ratio in row["rival_over_prefloss"].items()]
    peaks = [f"{name} {peak / 2**20:,.1f}" for name, peak in row.get("peak_bytes", {}).items()]
    memory = f"; peak MiB: {', '.join(peaks)}" if peaks else ""
    return f"{case!s:<38} us: {', '.join(times)}; speed: {', '.join(ratios)}{memory}"


def figures_of(limits: Iterable[Limit], case: Case, timings: Mapping[str, Timing]) -> list[Figure]:
    """What was measured beside what is wanted, against those rivals that were timed."""
    ours = timings["prefloss"].median
    return [limit.figure(case, ours, timings[limit.rival].median) for limit in limits if limit.rival in timings]


def load_average() -> float:
    """The last minute's, with a warning where it is too high for figures to be trusted."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > 0.5:
        print(f"warning: the machine is busy (load average {load:.1f}), so threads wait for cores", file=sys.stderr)
    return load


def circumstances(seconds: float, load: float) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "prefloss": prefloss.build_info(),
        },
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average_at_start": load,
        },
        "seconds_per_case": seconds,
    }


def _processor() -> str:
    """The processor's name: Linux keeps it in a file, and elsewhere `platform` knows it."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
