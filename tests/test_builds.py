"""What PREFLOSS_CUDA=AUTO, ON and OFF build where there is no nvcc, and what such a build says. Each test is a build: slow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builds import copy_of_the_sources, install

pytestmark = pytest.mark.slow

WITHOUT_CUDA = """
import warnings
import torch, prefloss
from torch._subclasses.fake_tensor import FakeTensorMode

print(prefloss.__file__)
print(prefloss.build_info()["cuda"])
print(prefloss.build_info()["gpu"])
print(prefloss.bradley_terry_loss(torch.zeros(3), torch.zeros(3)).item())
with FakeTensorMode(), warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    rewards = torch.ones(3, device="cuda")
    prefloss.bradley_terry_loss(rewards, rewards)
print(*(warning.message for warning in said if "prefloss" in str(warning.message)))
"""


@pytest.fixture
def no_nvcc(tmp_path):
    """Environment variables under which CMake finds no nvcc: a PATH of links to everything else."""
    folders = []
    for number, folder in enumerate(os.environ["PATH"].split(os.pathsep)):
        if (Path(folder) / "nvcc").exists():
            links = tmp_path / f"path{number}"
            links.mkdir()
            for program in Path(folder).iterdir():
                if program.name != "nvcc":
                    (links / program.name).symlink_to(program)
            folder = str(links)
        folders.append(folder)
    return {"PATH": os.pathsep.join(folders), "CUDACXX": "", "SKBUILD_CMAKE_DEFINE": ""}


@pytest.fixture
def sources(tmp_path):
    return copy_of_the_sources(tmp_path / "sources")


@pytest.mark.parametrize("option", ["AUTO", "OFF"])
def test_without_cuda_a_build_works_on_the_cpu_and_says_how_to_get_the_gpus(option, sources, tmp_path, no_nvcc):
    site = tmp_path / "site"
    built = install(sources, site, f"PREFLOSS_CUDA={option}", **no_nvcc)
    assert built.returncode == 0, built.stdout
    assert ("CPU KERNELS ONLY" in built.stdout) == (option == "AUTO")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_CUDA], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    where, cuda, gpu, loss, warning = ran.stdout.splitlines()
    assert where.startswith(str(site))
    assert cuda.startswith("none: built without nvcc")
    assert gpu == "none: built without CUDA"
    assert float(loss) == pytest.approx(0.6931472)
    assert warning.startswith("prefloss has no kernels for device cuda in this build")
    assert "PREFLOSS_CUDA=ON" in warning


def test_on_without_nvcc_is_an_error_that_says_what_to_do(sources, tmp_path, no_nvcc):
    built = install(sources, tmp_path / "site", "PREFLOSS_CUDA=ON", **no_nvcc)
    assert built.returncode != 0
    assert "PREFLOSS_CUDA=ON, but there is no nvcc" in built.stdout
    assert "CUDACXX" in built.stdout


def test_another_word_than_auto_on_and_off_is_an_error(sources, tmp_path):
    built = install(sources, tmp_path / "site", "PREFLOSS_CUDA=YES")
    assert built.returncode != 0
    assert "PREFLOSS_CUDA is 'YES'; it may be AUTO, ON or OFF" in built.stdout
