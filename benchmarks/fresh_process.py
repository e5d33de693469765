"""Times a case in a process of its own.

What a process did before decides whether the C allocator keeps large blocks or gives them back, and so whether each new tensor is
paid for with page faults: at a million pairs that is half of an eager step. In a fresh process only the contenders decide.
"""

from __future__ import annotations

import multiprocessing

import torch
from cases import Case, contenders_of
from interleaved import Timing, measure


def timings_of(case: Case, *, compiled: bool, seconds: float) -> dict[str, Timing]:
    """The timing of each contender of a case, with as many threads as this process uses. Nothing is checked here."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (case, compiled, seconds, torch.get_num_threads()))


def _measure(case: Case, compiled: bool, seconds: float, threads: int) -> dict[str, Timing]:
    torch.set_num_threads(threads)
    contenders = contenders_of(case, compiled=compiled)
    return measure({name: contender.run for name, contender in contenders.items()}, seconds)
