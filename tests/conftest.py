"""The devices that the tests run on, and what makes two runs alike: seeds, examples, threads."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile

import pytest
import torch
from calls import ALL
from hypothesis import HealthCheck, settings

from prefloss import _core, composed, eager

# What stands in the place of architectures in the build that runs the CUDA kernels on the CPU (tests/cuda_on_host).
ON_HOST = "the CPU, for tests"
RUNS_ON_HOST = _core.cuda is not None and _core.cuda[1] == ON_HOST
not_on_host = pytest.mark.skipif(
    RUNS_ON_HOST, reason="about threads of the CPU; there the CUDA kernels would run on one of them"
)
# A GPU is of use only where this build has kernels for it.
DEVICES = ["cpu"] + ["cuda"] * (torch.cuda.is_available() and "cuda" in composed.DEVICES)

LONG_LISTS = [call for call in ALL if call.layout == "long"]

# The files that take longest come first, so that no process is left alone with one of them at the end.
LONGEST = (
    "cuda_kernels",
    "cuda_long_lists",
    "compiled",
    "long_lists",
    "composed",
    "every_way",
    "unkind_lists",
    "train_reward_model",
    "grouped",
    "long_list_derivatives",
    "processes",
    "indexed",
    "paired_values",
    "grouped_derivatives",
    "not_plain",
    "evaluate_command",
    "instruction_sets",
    "examples",
    "evaluate_sums",
    "autograd",
    "transforms",
)
FIRST = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}

# HYPOTHESIS_PROFILE chooses: the same few examples each time, so that nothing fails by chance, or a search (make test-random).
DRAWN = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", derandomize=True, max_examples=15, database=None, **DRAWN)
settings.register_profile("random", max_examples=1000, **DRAWN)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_configure(config):
    """Graphs that another state of the package has compiled are not found, and not left behind.

    Each process of pytest-xdist takes its share of the cores, and so do the processes that it starts.

    Threads that wait for each other's cores made the training example three times as slow. A job that is there to test the GPU
    must not pass without one.

    Inductor compiles without vector instructions: to see which there are, each process would build a program and import torch
    once more. Nothing here is about the code that it makes.
    """
    os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "0")
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.compiled_graphs = os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="prefloss-tests-")
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        share = max(1, torch.get_num_threads() // int(workers))
        torch.set_num_threads(share)
        os.environ["OMP_NUM_THREADS"] = str(share)
    if os.environ.get("PREFLOSS_REQUIRE_CUDA") == "1" and "cuda" not in DEVICES:
        raise pytest.UsageError(
            f"PREFLOSS_REQUIRE_CUDA=1, but there is no GPU to test: torch.cuda.is_available() is "
            f"{torch.cuda.is_available()}, and this build has kernels for {composed.DEVICES}"
        )


def pytest_collection_modifyitems(items):
    if _core.cpu == "composed":  # PREFLOSS_CPU
        without_kernels = pytest.mark.skip(reason="about the kernels, and here losses are composed")
        long = pytest.mark.skip(reason="without kernels a long list goes the way of a short one, and takes seconds")
        for item in items:
            if item.get_closest_marker("kernels"):
                item.add_marker(without_kernels)
            elif getattr(getattr(item, "callspec", None), "params", {}).get("call", None) in LONG_LISTS:
                item.add_marker(long)
    items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))


def pytest_collection():
    gc.disable()


def pytest_collection_finish():
    """What has been imported stays: the garbage collector need not look through it again and again, a twentieth of the time."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(config.compiled_graphs, ignore_errors=True)


@pytest.fixture(autouse=True)
def the_same_random_numbers():
    """As torch.manual_seed(0), which before a GPU is in use writes down the whole stack for later, at a millisecond a test."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)


@pytest.fixture
def composed_on_the_cpu(monkeypatch):
    """As in a process with PREFLOSS_CPU=composed."""
    monkeypatch.setattr(composed, "ASKED_FOR", True)
    for module in ("paired", "grouped", "indexed"):
        monkeypatch.setattr(f"prefloss.{module}.{module}_call", composed.unless_asked_for(None))


SHORTER = 256


@pytest.fixture
def shorter_long_lists(monkeypatch):
    """Lists take linear time from so many items on, half as many as else, and from twice as many where scores lie far apart.

    So a test that visits each pair takes a quarter of the time. It does not hold of second derivatives by autograd.
    """
    monkeypatch.setattr(eager, "LARGE_GROUP", SHORTER)


@pytest.fixture
def set_threads():
    """Calling it is torch.set_num_threads; other tests find the number as it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)
