"""Every example as its users run it: bad numbers and files, a closed pipe, and the title that Sphinx shows."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = ("auc", "bpr", "leaderboard", "narrow_collection", "train_reward_model")
QUICK = {
    "auc": "--examples 200 --positives 0.2 --seeds 2 --steps 2",
    "bpr": "--users 30 --items 20 --epochs 1",
    "leaderboard": "--items 4 --comparisons 200",
    "narrow_collection": "--pairs 600",
    "train_reward_model": "--pairs 20 --repeats 2 --epochs 1",
}

for package in ("matplotlib", "pyarrow", "sklearn"):
    pytest.importorskip(package, reason="the examples need `pip install '.[examples]'`")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The script's main() in this process, which has imported torch already, in a folder of its own; gives the exit's code."""

    def here(name, options):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split()])
        with pytest.raises(SystemExit) as exit_:
            importlib.import_module(name).main()
        return exit_.value.code

    return here


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_closed_pipe_ends_an_example_without_a_word(name, tmp_path):
    command = f'"{sys.executable}" "{EXAMPLES / name}.py" {QUICK[name]} | true'
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    found = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    progress = name == "train_reward_model"  # which goes there
    assert "Traceback" not in found.stderr
    assert progress or found.stderr == ""


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("auc", "--examples 0", "--examples must be from 1"),
        ("auc", "--positives nan", "--positives must be between 0 and 1"),
        ("auc", "--positives 1e-9 --examples 20", "all labels are the same"),
        ("auc", "--seeds 1", "--seeds must be from 2"),
        ("bpr", "--batch 0", "--batch must be from 1"),
        ("bpr", "--items 1", "--items must be from 2"),
        ("bpr", "--users 1 --items 2", "nobody picked enough"),
        ("bpr", "--users 100000 --items 100000", "--users times --items must be at most"),
        ("leaderboard", "--seed -1", "--seed must be from 0"),
        ("leaderboard", "--items 6000", "--items must be from 2 to 5000"),
        ("leaderboard", "--comparisons 0", "--comparisons must be from 1"),
        ("leaderboard", "--elo nan", "--elo must be a finite number"),
        ("leaderboard", "--weight w", "--columns and --weight are of a file"),
        ("leaderboard", "--picture board.doc", "the name must end in one of"),
        ("leaderboard", "--picture board", "the name must end in one of"),
        ("leaderboard", "--picture none/board.png", "No such file or directory"),
        ("narrow_collection", "--pairs 20", "20 pairs are too few"),
        ("narrow_collection", "--decay nan", "--decay must be from 0"),
        ("narrow_collection", "--seed -1", "--seed must be from 0"),
        ("narrow_collection", "--data none.npz", "none.npz: no such file"),
        ("narrow_collection", "--data equal.npz", "there is nothing to learn"),
        ("narrow_collection", "--data two.npz", "2 pairs are too few"),
        ("train_reward_model", "--learning-rate nan", "nan is not between"),
        ("train_reward_model", "--pairs 3", "3 is not between"),
    ],
)
def test_what_cannot_be_done_is_one_line(name, options, says, run, capsys, tmp_path):
    np.savez(tmp_path / "equal.npz", chosen=np.ones((400, 8)), rejected=np.ones((400, 8)))
    np.savez(tmp_path / "two.npz", chosen=np.eye(2), rejected=np.zeros((2, 2)))
    code = run(name, options)
    # A message as the exit's code is what Python prints before it ends with 1.
    line = code if isinstance(code, str) else capsys.readouterr().err.splitlines()[-1]
    assert code == 2 or isinstance(code, str)
    assert line.startswith(f"{name}.py: ")
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_begins_with_a_title_which_its_help_leaves_out(name, run, capsys):
    """Sphinx takes the title and its underline for a heading."""
    lines = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith('"""')
    assert lines[1] == "=" * len(lines[0][3:])
    assert run(name, "--help") == 0
    printed = capsys.readouterr().out
    assert lines[0][3:] not in printed
    assert lines[3] in printed
