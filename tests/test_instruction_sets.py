"""The kernels of every instruction set of this processor: right, at every size where loops end, and alike.

Those that are not in use run in a process of their own. The other tests run on the instruction set that is in use; the long one
here runs those of the values on all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_processes import start
from rounding_bounds import Bounds
from sample_inputs import DTYPES, FINITE_VALUES, LAYOUTS, REDUCTIONS, laid_out, options_alone, rewards
from test_every_float32 import supported_paths

import prefloss
from prefloss import _core

SECONDS = 900
BLOCK, CHUNK = 512, 8192
# Around every vector of 2 to 32 lanes, a block, a chunk, and chunks enough for threads, with a block and lanes left over.
SIZES = [*range(18), 31, 32, 33, 63, 64, 65, *(n + step for n in (BLOCK, CHUNK) for step in (-1, 0, 1))]
SIZES += [5 * CHUNK + BLOCK + 37]
EVERYTHING = ["beta", "margin tensor", "weight tensor", "target tensor", "label smoothing", "centring"]
# Where z, and so what its error is multiplied by, has the same bits in every instruction set.
ALIKE = ["default", "weight tensor", "weight mask"]


def draw(parts, count, dtype, layout):
    random = np.random.default_rng(count)
    pair = [laid_out(tensor, layout) for tensor in rewards(random, (count,), dtype, FINITE_VALUES)]
    options = {}
    for part in parts:
        options |= options_alone(part, random, (count,), dtype)
    return pair, {key: laid_out(value, layout) if torch.is_tensor(value) else value for key, value in options.items()}


def call(pair, options):
    """(loss, sums, gradients, second derivatives)"""
    inputs = [tensor.detach().requires_grad_() for tensor in pair]
    options = dict(options)
    if torch.is_tensor(options.get("margin")):
        options["margin"] = options["margin"].detach().requires_grad_()
        inputs.append(options["margin"])
    loss, stats = prefloss.bradley_terry_loss(*inputs[:2], return_stats=True, **options)
    upstream = torch.full_like(loss, -1.5).requires_grad_()
    first = torch.autograd.grad(loss, inputs, upstream, retain_graph=True)
    graphed = torch.autograd.grad(loss, inputs, upstream, create_graph=True)
    second = torch.autograd.grad(graphed, [upstream, *inputs], [torch.ones_like(tensor) for tensor in inputs])
    return loss.detach(), stats.sums, list(first), list(second)


def check_values(count, dtype, layout):
    """Loss, gradients and sums against the reference, with every loop of the kernels; those of masks at every other size."""
    for i, parts in enumerate(([], EVERYTHING, ["weight mask"])[: 2 + count % 2]):
        pair, options = draw(parts, count, dtype, layout)
        options["reduction"] = REDUCTIONS[(count + i) % 3]
        loss, sums, first, _ = call(pair, options)
        bounds = Bounds(*pair, options)
        bounds.assert_loss(loss)
        bounds.assert_loss(prefloss.bradley_terry_loss(*pair, **options))  # without statistics: another loop
        bounds.assert_gradients(torch.full_like(loss, -1.5), first if len(first) == 3 else [*first, None])
        bounds.assert_sums(sums)


def check_threads(count, dtype):
    for parts in ([], EVERYTHING):
        pair, options = draw(parts, count, dtype, "contiguous")
        results = []
        for threads in (1, 3, 8):
            torch.set_num_threads(threads)
            loss, sums, first, second = call(pair, options)
            results.append([loss, prefloss.bradley_terry_loss(*pair, **options), sums, *first, *second])
        for other in results[1:]:
            torch.testing.assert_close(other, results[0], rtol=0.0, atol=0.0, equal_nan=True)


def assert_in_use(path):
    assert _core.cpu == path
    assert prefloss.build_info()["cpu"] == path


def check(path):
    """Every size, dtype and stride, where that instruction set is in use."""
    assert_in_use(path)
    torch.set_num_threads(1)
    for dtype in DTYPES:
        for count in SIZES:
            check_values(count, dtype, LAYOUTS[count % len(LAYOUTS)])
        for count in (4 * CHUNK, 5 * CHUNK + BLOCK + 37):
            check_threads(count, dtype)


def alike():
    """What must be alike on all instruction sets, by case."""
    cases = [(name, count, dtype) for name in ALIKE for dtype in DTYPES for count in (1, 65, BLOCK + 1, CHUNK + 37)]
    results = {}
    for name, count, dtype in cases:
        pair, options = draw([name], count, dtype, "contiguous")
        for reduction in REDUCTIONS:
            loss, _, first, second = call(pair, {**options, "reduction": reduction})
            results[name, count, dtype, reduction] = [loss, *first, *second[1:]]
    return results


def save_alike(path, file):
    assert_in_use(path)
    torch.save(alike(), file)


def run(function, path, *arguments):
    """Calls a function of this module, named, where that instruction set is in use: in a process of its own."""
    process = start(f"test_instruction_sets:{function}", path, *arguments, PREFLOSS_CPU=path).wait()
    assert process.returncode == 0, process.stdout + process.stderr


IN_USE = _core.cpu
PATHS = ("baseline", "avx2", "avx512")


def skip_unless_supported(path):
    if path != IN_USE and path not in supported_paths():
        pytest.skip(f"this processor has no {path}")


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path == IN_USE else pytest.mark.slow) for path in PATHS]
)
def test_every_size_dtype_and_stride_is_right_and_no_thread_changes_a_bit(path, set_threads):
    skip_unless_supported(path)
    check(path) if path == IN_USE else run("check", path)


@pytest.mark.parametrize("path", [path for path in PATHS if path != IN_USE])
def test_instruction_sets_agree_to_the_last_bits(path, tmp_path):
    skip_unless_supported(path)
    run("save_alike", path, tmp_path / path)
    one, other = alike(), torch.load(tmp_path / path)
    for case, expected in one.items():
        for mine, its in zip(other[case], expected, strict=True):
            kind = torch.finfo(its.dtype)
            # The slope is right to 1.5 ulp, and divisor and weight round once more: 2.5 ulp in each of the two.
            torch.testing.assert_close(
                mine, its, rtol=5 * kind.eps, atol=2 * kind.smallest_normal * kind.eps, equal_nan=True, msg=str(case)
            )


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "file",
    [
        "test_paired_values.py",
        "test_paired_digits.py",
        "test_indexed.py",
        "test_grouped.py",
        "test_grouped_calls.py",
        "test_long_lists.py",
    ],
)
def test_the_tests_of_the_values_pass(path, file):
    skip_unless_supported(path)
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).with_name(file)],
        env={**os.environ, "PREFLOSS_CPU": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert process.returncode == 0, process.stdout + process.stderr
