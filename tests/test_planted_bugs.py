"""Bugs planted in the CUDA kernels make the tests of the kernels fail: a barrier left out, a wrong mask, an end missed by one.

Each is a build for the host (tests/cuda_on_host) of a copy of the sources with one line changed. Minutes; `make planted-bugs`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
from builds import ROOT, copy_of_the_sources, install

GROUPED, GROUPS, BLOCKS = "csrc/cuda/grouped.cu", "csrc/cuda/pair_groups.cuh", "csrc/cuda/blocks.cuh"
SEEDS = ("0", "1", "5")
BOUNDARIES = "(boundary and float32 and default) or rows_of_several"
PUT_ASIDE, APART = "puts_its_product_aside", "keep_their_sums_apart"


class Bug(NamedTuple):
    """A line changed in a file, and the tests that are to find it."""

    path: str
    right: str
    wrong: str
    tests: str = BOUNDARIES


BUGS = {
    "none": None,
    "missing barrier": Bug(BLOCKS, "  __syncthreads();\n  if (threadIdx.x == 0) {", "  if (threadIdx.x == 0) {"),
    "missing barrier after a sum": Bug(
        BLOCKS, "  __syncthreads();  // the next sum of this block writes there again\n", "", APART
    ),
    "wrong shuffle mask": Bug(
        BLOCKS,
        "__shfl_xor_sync(0xffffffffu, number",
        "__shfl_xor_sync(0x7fffffffu, number",
    ),
    "end missed by one": Bug(GROUPS, "if (i + 1 < count)", "if (i < count)"),
    "product of pairs never put aside": Bug(
        GROUPS, "if (added_ + kSize > PairLossSum::kMost)", "if (false)", f"more_than_1024_pairs_{PUT_ASIDE}"
    ),
    "product of a group never put aside": Bug(
        GROUPED, "if (added + kAddedInReal > PairLossSum::kMost)", "if (false)", f"more_than_1024_others_{PUT_ASIDE}"
    ),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A copy of the sources and a folder for what is compiled, which all builds share: each compiles what it changes."""
    folder = tmp_path_factory.mktemp("workshop")
    return copy_of_the_sources(folder / "sources"), folder / "build"


@pytest.mark.slow
@pytest.mark.planted
@pytest.mark.parametrize("name", BUGS)
def test_the_tests_of_the_kernels_find(name, workshop, tmp_path):
    (sources, build), site, bug = workshop, tmp_path / "site", BUGS[name]
    original = (sources / bug.path).read_text() if bug else ""
    if bug:
        assert original.count(bug.right) == 1
        (sources / bug.path).write_text(original.replace(bug.right, bug.wrong))
    try:
        built = install(sources, site, "PREFLOSS_CUDA_ON_HOST=ON", build=build)
        assert built.returncode == 0, built.stdout
    finally:
        if bug:
            (sources / bug.path).write_text(original)
    tests = bug.tests if bug else " or ".join((BOUNDARIES, PUT_ASIDE, APART))
    failed = []
    for seed in SEEDS:
        environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_ON_HOST_SEED": seed}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not exhaustive"]
        command += ["tests/test_cuda_kernels.py", "-k", tests]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode in (0, 1), run.stdout + run.stderr  # passed, or failed; not "nothing was run"
        assert "passed" in run.stdout or "failed" in run.stdout
        failed.append(run.returncode == 1)
    assert any(failed) == (name != "none"), dict(zip(SEEDS, failed, strict=True))
