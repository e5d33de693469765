"""Times contenders in turn, in many short rounds.

What disturbs a busy machine then disturbs all of them alike, and the ratio of their medians holds.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Run = Callable[[], object]
ROUND_SECONDS = 0.002  # at least so long is one contender's part of a round
MINIMUM_ROUNDS = 11


class Timing(NamedTuple):
    """Seconds a call, over the rounds. On a quiet machine the fastest is close to the median."""

    median: float
    fastest: float
    lower_quartile: float
    upper_quartile: float
    rounds: int


def wall_time(run: Run, calls: int) -> float:
    """Seconds a call takes, by the host's clock, which costs 0.06 us of it.

    The median: a call that frees a large block may also pay for giving back to the system what a rival has freed, which takes
    milliseconds.
    """
    clock = time.perf_counter
    ends = [clock()]
    for _ in range(calls):
        run()
        ends.append(clock())
    return statistics.median(end - start for start, end in itertools.pairwise(ends))


def measure(
    contenders: Mapping[str, Run], seconds: float, time_calls: Callable[[Run, int], float] = wall_time
) -> dict[str, Timing]:
    """The time of one call of each contender.

    All together get about `seconds`, and no fewer than MINIMUM_ROUNDS rounds.
    """
    for run in contenders.values():
        time_calls(run, 3)
    calls = max(1, math.ceil(ROUND_SECONDS / min(time_calls(run, 3) for run in contenders.values())))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(times[order[0]]) < MINIMUM_ROUNDS:
            shuffle(order)  # nobody always follows the same rival, who leaves the caches in the same state
            for name in order:
                contenders[name]()  # brings back what the last contender drove out of the caches
                times[name].append(time_calls(contenders[name], calls))
    finally:
        if collecting:
            gc.enable()
    return {name: _summary(values) for name, values in times.items()}


def _summary(times: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(times, n=4)
    return Timing(median, min(times), lower, upper, len(times))
