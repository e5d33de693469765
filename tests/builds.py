"""Builds of the package with CMake options, for the tests that need one of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copy_of_the_sources(folder):
    """What a build reads, and nothing that another one left."""
    for name in ("csrc", "python", "tests/cuda_on_host"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CMakeLists.txt", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def install(sources, site, *options, build=None, **environment):
    """pip installs `sources` into the folder `site`, with CMake options NAME=VALUE. Returns what ran, its output as text.

    A folder `build` keeps what is compiled, so that the next build there compiles only what has changed.
    """
    defines = [f"--config-settings=cmake.define.{option}" for option in options]
    defines += [f"--config-settings=build-dir={build}"] if build else []
    command = [sys.executable, "-m", "pip", "install", "--verbose", "--no-deps", "--target", str(site), str(sources)]
    return subprocess.run(
        [*command, *defines],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
