"""Bugs planted in the CUDA kernels make the tests of the kernels fail: a barrier left out, a wrong mask, an end missed by one.

Each is a build for the host (tests/cuda_on_host) of a copy of the sources with one line changed. Minutes; `make planted-bugs`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from builds import ROOT, copy_of_the_sources, install

GROUPS, BLOCKS = "csrc/cuda/pair_groups.cuh", "csrc/cuda/blocks.cuh"
SEEDS = ("0", "1", "5")
TESTS = ("tests/test_cuda_kernels.py", "-k", "(boundary and float32 and default) or rows_of_several")

BUGS = {
    "none": None,
    "missing barrier": (BLOCKS, "  __syncthreads();\n  if (threadIdx.x == 0) {", "  if (threadIdx.x == 0) {"),
    "wrong shuffle mask": (
        BLOCKS,
        "__shfl_xor_sync(0xffffffffu, number",
        "__shfl_xor_sync(0x7fffffffu, number",
    ),
    "end missed by one": (GROUPS, "if (i < count) few.add", "if (i <= count) few.add"),
}


@pytest.mark.slow
@pytest.mark.planted
@pytest.mark.parametrize("name", BUGS)
def test_the_tests_of_the_kernels_find(name, tmp_path):
    sources, site = copy_of_the_sources(tmp_path / "sources"), tmp_path / "site"
    if BUGS[name]:
        path, right, wrong = BUGS[name]
        source = (sources / path).read_text()
        assert source.count(right) == 1
        (sources / path).write_text(source.replace(right, wrong))
    built = install(sources, site, "PREFLOSS_CUDA_ON_HOST=ON")
    assert built.returncode == 0, built.stdout
    failed = []
    for seed in SEEDS:
        environment = {**os.environ, "PYTHONPATH": str(site), "CUDA_ON_HOST_SEED": seed}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode in (0, 1), run.stdout + run.stderr  # passed, or failed; not "nothing was run"
        assert "passed" in run.stdout or "failed" in run.stdout
        failed.append(run.returncode == 1)
    assert any(failed) == (name != "none"), dict(zip(SEEDS, failed, strict=True))
