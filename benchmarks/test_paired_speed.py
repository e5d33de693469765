"""Paired vectors: each contender's result is asserted, then all are timed in turn, ours by pytest-benchmark as well.

`pytest benchmarks` times; `pytest benchmarks --benchmark-disable` only asserts.
"""

from __future__ import annotations

import pytest
from cases import CASES, Case, contenders_of
from fresh_process import timings_of
from pytest_benchmark.fixture import BenchmarkFixture


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")  # its own compiler's
@pytest.mark.parametrize("case", CASES, ids=str)
def test_speed(case: Case, benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> None:
    compiled: bool = request.config.getoption("--compile")
    contenders = contenders_of(case, compiled=compiled)
    for contender in contenders.values():
        contender.check()
    benchmark.group = f"{case.kind}, {case.dtype}"
    if benchmark.enabled:
        timings = timings_of(case, compiled=compiled, seconds=1.0)
        benchmark.extra_info["median seconds, in turn"] = {name: timing.median for name, timing in timings.items()}
    benchmark(contenders["prefloss"].run)
