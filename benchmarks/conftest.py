"""The option `--compile` of `pytest benchmarks`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--compile", action="store_true", help="let torch.compile compete, too (needs a C++ compiler)")
