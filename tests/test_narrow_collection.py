"""The example of a narrow collection, on made pairs and, where they are, on real ones."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("PREFLOSS_DATA", ROOT.parent / "shared" / "data")) / "hh_harmless_minilm_train.npz"

for package in ("pyarrow", "sklearn"):
    pytest.importorskip(package, reason="the example needs `pip install '.[examples]'`")


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("narrow_collection")


def test_the_held_out_average_closes_around_the_wrong_value_and_known_shares_repair_it(example, capsys):
    found = example.run(example.made(12_000, 0), 0.02, 0)
    collected = [loss for name, loss in found.items() if name.startswith("collected")]
    low, high = found["population, never collected"].interval(0.99)
    widths = [np.ptp(loss.interval()) for loss in collected]
    assert widths[-1] < 0.35 * widths[0]
    assert collected[-1].interval(0.99)[1] < low
    repaired = found["  known shares of topics"].interval(0.99)
    assert repaired[0] < high
    assert low < repaired[1]
    assert "heavy tail" in capsys.readouterr().out


def test_it_runs_on_real_pairs(example, capsys):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there; PREFLOSS_DATA names the folder of the data")
    found = example.run(example.load(DATA, None), 0.02, 0)
    assert found["population, never collected"].pairs == 600
    assert "1800 pairs" in capsys.readouterr().out


def test_too_few_pairs_are_refused(example):
    with pytest.raises(example.InputError, match="too few"):
        example.run(example.made(60, 0), 0.02, 0)
