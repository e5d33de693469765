"""Times the loss on a CUDA GPU against eager, torch.compile and Triton, and its bandwidth against that of a device copy.

python benchmarks/gpu.py --json gpu.json --charts .

Prints what is reached of what is wanted. The exit status is 1 where a result was wrong, and 2 where there is nothing to
measure on.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import Case
from gpu_cases import BYTES_A_PAIR, CASES, MEMORY_CASE, TRITON_VERSION, contenders_of, peak_bytes
from interleaved import Run, measure
from limits import Figure, gpu_limits_of
from records import circumstances, figures_of, line_of, load_average, row_of

import prefloss

MESSAGE = 500  # characters of an error that are kept: a compiler's can be pages


def main() -> int:
    arguments = _arguments()
    if missing := _missing():
        print(f"benchmarks/gpu.py: {missing}", file=sys.stderr)
        return 2
    results: dict[str, Any] = _circumstances(arguments.seconds)
    figures: list[Figure] = []
    try:
        for case in CASES:
            if arguments.only in str(case):
                figures += _case_on_gpu(case, arguments.seconds, results)
                results["figures"] = [figure.plain() for figure in figures]
                _write(results, arguments.json)  # what is measured is kept, whatever comes
    except RuntimeError as error:  # a GPU that met an error answers nothing more
        results["failures"].append(f"{case}: {type(error).__name__}: {str(error)[:MESSAGE]}")
    _write(results, arguments.json)
    print("\n" + "\n".join(map(str, figures)))
    for line in results["left_out"]:
        print(f"left out: {line}")
    for line in results["failures"]:
        print(f"FAILED: {line}")
    if arguments.charts:
        _draw(results, arguments.charts)
    return 1 if results["failures"] else 0


def _case_on_gpu(case: Case, seconds: float, results: dict[str, Any]) -> list[Figure]:
    gc.collect()  # what compiled functions and captured graphs of the last case hold, they hold in cycles
    torch.cuda.empty_cache()
    if BYTES_A_PAIR * case.size > torch.cuda.mem_get_info()[0]:
        results["left_out"].append(f"{case}: too little memory on this GPU")
        return []
    return time_case(case, "cuda", seconds, event_time, results)


def time_case(
    case: Case, device: str, seconds: float, time_calls: Callable[[Run, int], float], results: dict[str, Any]
) -> list[Figure]:
    """Check and time one case; what comes of it goes into `results`, a contender that is wrong into its failures."""
    contenders, errors = {}, {}
    for name, make in contenders_of(case, device).items():
        try:
            contender = make()
            errors[name] = contender.check()
            contenders[name] = contender.run
        except Exception as error:  # a rival's compiler may raise anything, and must not end the report
            results["failures"].append(f"{case}, {name}: {type(error).__name__}: {str(error)[:MESSAGE]}")
    if "prefloss" not in contenders:
        return []
    timings = measure(contenders, seconds, time_calls)
    row = row_of(case, timings, errors)
    results["rows"].append(row)
    print(line_of(case, row), flush=True)
    if case == MEMORY_CASE:
        row["peak_bytes"] = {name: peak_bytes(name, case, device) for name in contenders}
        times = [f"{name} {peak / case.size:.1f}" for name, peak in row["peak_bytes"].items()]
        print(f"{'':<38} bytes a pair at the peak, beside the rewards: {', '.join(times)}", flush=True)
    return figures_of(gpu_limits_of(case), case, timings)


def event_time(run: Run, calls: int) -> float:
    """Seconds a call takes, by the GPU's clock, the host's part included where the GPU waits for it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return 1e-3 * milliseconds / calls


def _missing() -> str:
    """Why nothing can be measured here, or nothing."""
    if not torch.cuda.is_available():
        reason = "is built without CUDA" if torch.version.cuda is None else "finds none: is its driver there?"
        return f"needs a CUDA GPU, and torch {torch.__version__} {reason}"
    try:
        prefloss.bradley_terry_loss(*torch.zeros(2, 8, device="cuda"))
    except NotImplementedError as error:
        return f"prefloss has no kernels for this GPU: {error} (build_info: {prefloss.build_info()['cuda']})"
    return ""


def _circumstances(seconds: float) -> dict[str, Any]:
    results = circumstances(seconds, load_average())
    gpu = torch.cuda.get_device_properties(0)
    results["machine"] |= {
        "gpu": gpu.name,
        "driver": _driver(),
        "capability": f"{gpu.major}.{gpu.minor}",
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
    }
    results["versions"] |= {"cuda": torch.version.cuda, "triton": TRITON_VERSION}
    left_out = ["Triton: it is not installed"] if TRITON_VERSION is None else []
    return {**results, "figures": [], "rows": [], "left_out": left_out, "failures": []}


def _driver() -> str | None:
    """torch does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _write(results: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _draw(results: dict[str, Any], folder: Path) -> None:
    if importlib.util.find_spec("matplotlib") is None:
        print("no charts: matplotlib is not installed; benchmarks/charts.py draws them from the JSON elsewhere")
        return
    from charts import draw

    draw(results, folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--charts", type=Path, metavar="FOLDER", help="draw gpu_speed_up, gpu_calls and gpu_bandwidth.svg here"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="the cases with this in their name")
    parser.add_argument("--seconds", type=float, default=0.5, help="time spent on a case (default: 0.5)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
