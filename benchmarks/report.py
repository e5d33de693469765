"""Times every case, prints what is reached of what is wanted, and writes the figures as JSON and as charts.

python benchmarks/report.py --json benchmarks/results.json --charts docs
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES, Case, contenders_of
from charts import draw
from fresh_process import timings_of
from limits import MEAN_ERROR_CASE, Figure, import_seconds, limits_of, mean_error

import prefloss

IMPORT = "import time, torch; start = time.perf_counter(); import prefloss; print(time.perf_counter() - start)"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0  # Windows has none
    if load > 0.5:
        print(f"warning: the machine is busy (load average {load:.1f}), so threads wait for cores", file=sys.stderr)
    cases = [case for case in CASES if arguments.only in str(case)]
    rows, figures = [], []
    for case in cases:
        row, reached = _time(case, compiled=arguments.compile, seconds=arguments.seconds)
        rows.append(row)
        figures += reached
        print(_line(case, row), flush=True)
    figures.append(import_seconds(_import_seconds()))
    print("\n" + "\n".join(_verdict(figure) for figure in figures))
    results = {
        **_circumstances(arguments.seconds, load),
        "figures": [_plain(figure) for figure in figures],
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.charts:
        draw(results, arguments.charts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw speed_up.svg and bandwidth.svg here")
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this in their name")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on a case (default: 2)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="default: torch's own choice")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    return parser.parse_args()


def _time(case: Case, *, compiled: bool, seconds: float) -> tuple[dict[str, Any], list[Figure]]:
    """The case's row for the JSON, and its figures."""
    contenders = contenders_of(case, compiled=compiled)
    errors = {name: contender.check() for name, contender in contenders.items()}
    timings = timings_of(case, compiled=compiled, seconds=seconds)
    ours = timings["prefloss"].median
    row = {
        "kind": case.kind,
        "dtype": str(case.dtype).removeprefix("torch."),
        "pairs": case.size,
        "seconds": {name: timing._asdict() for name, timing in timings.items()},
        "rival_over_prefloss": {name: timing.median / ours for name, timing in timings.items() if name != "prefloss"},
        "loss_relative_error": errors,
    }
    figures = [
        limit.figure(case, ours, timings[limit.rival].median) for limit in limits_of(case) if limit.rival in timings
    ]
    if case == MEAN_ERROR_CASE:
        figures.append(mean_error(errors["prefloss"]))
    return row, figures


def _import_seconds() -> float:
    """Median of what `import prefloss` takes after `import torch`, in fresh processes."""
    command = [sys.executable, "-c", IMPORT]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(7)
    )


def _circumstances(seconds: float, load: float) -> dict[str, Any]:
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


def _plain(figure: Figure) -> dict[str, Any]:
    return {
        **figure._asdict(),
        "must_reached": figure.reaches(figure.must),
        "aim_reached": None if figure.aim is None else figure.reaches(figure.aim),
    }


def _line(case: Case, row: dict[str, Any]) -> str:
    times = [f"{name} {1e6 * timing['median']:,.1f}" for name, timing in row["seconds"].items()]
    ratios = [f"{ratio:.2f} x {name}" for name, ratio in row["rival_over_prefloss"].items()]
    return f"{case!s:<38} us: {', '.join(times)}; speed: {', '.join(ratios)}"


def _verdict(figure: Figure) -> str:
    must = "reached" if figure.reaches(figure.must) else "MISSED"
    line = f"{figure.what:<72} {figure.value:>9.3g}  must {figure.sense} {figure.must:g}: {must}"
    if figure.aim is None:
        return line
    return f"{line}, aim {figure.aim:g}: {'reached' if figure.reaches(figure.aim) else 'missed'}"


if __name__ == "__main__":
    main()
