"""Times a case in a process of its own.

What a process did before decides whether the C allocator keeps large blocks or gives them back, and so whether each new tensor is
paid for with page faults: at a million pairs that is half of an eager step. In a fresh process only the contenders decide.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from cases import Case, contenders_of
from interleaved import Timing, measure, wall_time

Result = TypeVar("Result")


def _in_a_process(function: Callable[..., Result], *arguments: object) -> Result:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def timings_of(case: Case, *, compiled: bool, seconds: float) -> dict[str, Timing]:
    """The timing of each contender of a case, with as many threads as this process uses. Nothing is checked here."""
    return _in_a_process(_measure, case, compiled, seconds, torch.get_num_threads())


def _measure(case: Case, compiled: bool, seconds: float, threads: int) -> dict[str, Timing]:
    torch.set_num_threads(threads)
    contenders = contenders_of(case, compiled=compiled)
    timings = measure({name: contender.run for name, contender in contenders.items() if not contender.once}, seconds)
    for name, contender in contenders.items():
        if contender.once:
            contender.run()  # what is compiled, or read, the first time
            taken = wall_time(contender.run, 1)
            timings[name] = Timing(taken, taken, taken, taken, 1)
    return timings


def peaks_of(case: Case) -> dict[str, int]:
    """The memory that each contender's first run needs beyond that of its process, one a contender. Linux alone says."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    return {name: _in_a_process(_peak, case, name) for name in contenders_of(case, compiled=False)}


def _peak(case: Case, name: str) -> int:
    run = contenders_of(case, compiled=False)[name].run
    warm_up = contenders_of(Case("list", torch.float32, 512), compiled=False)
    for contender in warm_up.values():
        contender.run()  # threads, and what is loaded late
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _peak_resident()
    run()
    return _peak_resident() - before


def _peak_resident() -> int:
    """Bytes of this process in memory, at most so far."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status has no VmHWM")
