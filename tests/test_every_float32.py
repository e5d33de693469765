"""Every float32 z there is, 2^32 of them, against float64: the worst error of loss and slope in units in the last place.

Minutes an instruction set, so behind the marker `exhaustive`: `make exact`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import fresh_processes
import numpy as np
import pytest
import torch

import prefloss
from prefloss import _core

LOSS_LIMIT, SLOPE_LIMIT = 1.45, 1.3
CHUNK = 2**16  # small enough for its float64 arrays to stay in the cache


def truth(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and slope in float64, whose own error is below 1e-6 float32 ulp."""
    magnitude = z.abs()
    if float(magnitude.min()) > 128:  # exp(-128) is below half of the smallest subnormal
        return torch.clamp(-z, min=0), -(z < 0).double()
    if float(magnitude.max()) < 2.0**-20:  # the next terms, z^4 / 192 and z^3 / 48, are below 2^-64
        return math.log(2) - z / 2 + z * z / 8, z / 4 - 0.5
    exponential = torch.exp(-magnitude)
    loss = torch.log1p(exponential) + torch.clamp(-z, min=0)
    return loss, -torch.where(z >= 0, exponential, 1.0) / (1 + exponential)


def worst_ulp(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest |actual - expected| in float32 ulp of the expected value, subnormals included; inf for a wrong infinity."""
    finite = expected.abs() < float(torch.finfo(torch.float32).max)
    if not torch.equal(actual[~finite].double(), expected[~finite]):
        return math.inf
    actual, expected = actual[finite].double(), expected[finite]
    exponent = torch.frexp(expected).exponent.clamp(min=-125)
    error = torch.ldexp((actual - expected).abs(), 24 - exponent)
    return float(torch.nan_to_num(error, nan=math.inf).max()) if error.numel() else 0.0


def sweep(chunk: int) -> tuple[float, float]:
    bits = np.arange(chunk * CHUNK, (chunk + 1) * CHUNK, dtype=np.uint32)
    z = torch.from_numpy(bits.view(np.float32))
    z = z[~z.isnan()].clone().requires_grad_()
    if not z.numel():
        return 0.0, 0.0
    zero = torch.zeros_like(z)
    loss = prefloss.bradley_terry_loss(z.detach(), zero, reduction="none")
    prefloss.bradley_terry_loss(z, zero, reduction="sum").backward()
    assert z.grad is not None
    expected_loss, expected_slope = truth(z.detach().double())
    return worst_ulp(loss, expected_loss), worst_ulp(z.grad, expected_slope)


def run(chunks: range) -> tuple[float, float]:
    torch.set_num_threads(1)
    worst = [sweep(chunk) for chunk in chunks]
    return max(loss for loss, _ in worst), max(slope for _, slope in worst)


def run_everything() -> tuple[float, float]:
    chunks, workers = 2**32 // CHUNK, os.cpu_count() or 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        worst = list(pool.map(run, [range(start, chunks, 8 * workers) for start in range(8 * workers)]))
    return max(loss for loss, _ in worst), max(slope for _, slope in worst)


@cache
def supported_paths() -> list[str]:
    """The instruction sets of this processor, which the error for an unknown one lists."""
    message = fresh_processes.run("import prefloss", PREFLOSS_CPU="?").stderr
    return message.strip().rsplit("accepts ", 1)[1].split(", ")


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", ["baseline", "avx2", "avx512"])
def test_every_float32_is_within_its_limit(path: str) -> None:
    if path not in supported_paths():
        pytest.skip(f"this processor has no {path}")
    result = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "PREFLOSS_CPU": path},
        capture_output=True,
        text=True,
        check=False,
    )
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_sample_of_every_binade_is_within_its_limit() -> None:
    """The same measurement where the formula changes (|z| = 0.69) and in the subnormal tail (|z| up to 104)."""
    for start in (0.69, 1.0, 64.0, 103.0, -0.69, -1.0, -64.0, -103.0):
        loss, slope = sweep(int(np.float32(start).view(np.uint32)) // CHUNK)
        assert loss <= LOSS_LIMIT
        assert slope <= SLOPE_LIMIT


if __name__ == "__main__":
    loss, slope = run_everything()
    print(f"{_core.cpu}: every float32 z: worst loss {loss:.3f} ulp, worst slope {slope:.3f} ulp")
    sys.exit(not (loss <= LOSS_LIMIT and slope <= SLOPE_LIMIT))
