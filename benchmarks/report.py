"""Times every case, prints what is reached of what is wanted, and writes the figures as JSON and as charts.

python benchmarks/report.py --json benchmarks/results.json --charts docs
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from cases import CASES, WITH_PEAKS, Case, contenders_of
from charts import draw
from fresh_process import peaks_of, timings_of
from limits import MEAN_ERROR_CASE, Figure, import_seconds, limits_of, mean_error
from records import circumstances, figures_of, line_of, load_average, row_of

IMPORT = "import time, torch; start = time.perf_counter(); import prefloss; print(time.perf_counter() - start)"


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    load = load_average()
    cases = [case for case in CASES if arguments.only in str(case)]
    rows, figures = [], []
    for case in cases:
        row, reached = _time(case, compiled=arguments.compile, seconds=arguments.seconds)
        rows.append(row)
        figures += reached
        print(line_of(case, row), flush=True)
    figures.append(import_seconds(_import_seconds()))
    print("\n" + "\n".join(map(str, figures)))
    missed = sum(not figure.reaches(figure.must) for figure in figures)
    print(f"\n{missed} of {len(figures)} figures miss what they must reach" + (", marked MISSED" if missed else ""))
    results = {
        **circumstances(arguments.seconds, load),
        "figures": [figure.plain() for figure in figures],
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if arguments.charts:
        draw(results, arguments.charts)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--charts",
        type=Path,
        metavar="FOLDER",
        help="draw speed_up, calls, bandwidth, all_pairs and list_laws.svg here",
    )
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
    figures = figures_of(limits_of(case), case, timings)
    if case == MEAN_ERROR_CASE:
        figures.append(mean_error(errors["prefloss"]))
    return row_of(case, timings, errors, peaks_of(case) if case in WITH_PEAKS else None), figures


def _import_seconds() -> float:
    """Median of what `import prefloss` takes after `import torch`, in fresh processes."""
    command = [sys.executable, "-c", IMPORT]
    return statistics.median(
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(7)
    )


if __name__ == "__main__":
    main()
