"""The leaderboard example: the scores of greatest likelihood, intervals that hold what they say, and input that is refused."""

from __future__ import annotations

import csv
import importlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the example needs `pip install '.[examples]'`")
pytest.importorskip("matplotlib", reason="the example needs `pip install '.[examples]'`")

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("PREFLOSS_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture
def leaderboard(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("leaderboard")


def written(path, rows, header="left,right,winner"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def run(leaderboard, monkeypatch, capsys, *options):
    """What is printed; the exit's message where there is one."""
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", *map(str, options)])
    try:
        leaderboard.main()
    except SystemExit as exit_:
        return str(exit_.code)
    return capsys.readouterr().out


def test_two_items_have_the_log_odds_of_their_games(leaderboard, tmp_path):
    """7 wins, 2 losses and 2 ties are 8 of 11; s.e. of the log odds by the delta method, from the variance of the outcomes."""
    rows = ["a,b,a"] * 4 + ["b,a,right"] * 3 + ["a,b,b"] * 2 + ["a,b,tie"] * 2
    board = leaderboard.fit(leaderboard.read(written(tmp_path / "games.csv", rows), None))
    p = 8 / 11
    assert board.scores[0] - board.scores[1] == pytest.approx(np.log(p / (1 - p)), rel=1e-9)
    outcomes = np.array([1.0] * 7 + [0.0] * 2 + [0.5] * 2)
    expected = np.sqrt(np.sum((outcomes - p) ** 2)) / (11 * p * (1 - p))
    assert board.standard_errors == pytest.approx([expected / 2] * 2, rel=1e-9)
    assert board.games.tolist() == [11, 11]
    assert board.won.tolist() == [8.0, 3.0]


def test_names_columns_and_ties_may_be_written_in_several_ways(leaderboard, tmp_path):
    names = leaderboard.read(written(tmp_path / "1.csv", ["x,y,x", "x,y,y", "y,x,Draw"]), None)
    columns = written(tmp_path / "2.csv", ["x,y,white", "x,y,black", "y,x,1/2"], "white,black,result")
    places = leaderboard.read(columns, ["white", "black", "result"])
    assert names.names == places.names == ["x", "y"]
    for one, other in zip(names.__dict__.values(), places.__dict__.values(), strict=True):
        assert list(one) == list(other)


def test_intervals_hold_the_true_scores_as_often_as_they_say(leaderboard):
    held = total = 0
    for seed in range(30):
        games, truth = leaderboard.drawn(12, 1500, seed)
        board = leaderboard.fit(games)
        held += np.count_nonzero(np.abs(board.scores - truth) <= 1.959964 * board.standard_errors)
        total += len(truth)
    assert 0.92 < held / total < 0.98


def test_the_table_and_the_picture_of_what_is_drawn(leaderboard, monkeypatch, capsys, tmp_path):
    picture = tmp_path / "board.png"
    options = ("--items", 5, "--comparisons", 900, "--picture", picture)
    lines = run(leaderboard, monkeypatch, capsys, *options).splitlines()
    assert lines[0].split() == ["rank", "name", "score", "s.e.", "95", "%", "interval", "games", "won", "true", "score"]
    assert [line.split()[0] for line in lines[1:6]] == ["1", "2", "3", "4", "5"]
    scores = [float(line.split()[3]) for line in lines[1:6]]
    assert scores == sorted(scores, reverse=True)
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("rows", "header", "says"),
    [
        ([], "left,right,winner", "no comparisons in it"),
        (["a,b,a"], "one,two,winner", "--columns LEFT RIGHT WINNER"),
        (["a,b,a", "a,b,c"], "left,right,winner", "games.csv:3: the winner is 'c'"),
        (["a,a,a"], "left,right,winner", "games.csv:2: 'a' is compared with itself"),
        (["a,b,a", "b,c,b", "c,b,c"], "left,right,winner", "a won all comparisons with the others"),
    ],
    ids=["empty", "columns", "winner", "itself", "unbeaten"],
)
def test_what_cannot_be_ranked_is_one_line(rows, header, says, leaderboard, monkeypatch, capsys, tmp_path):
    message = run(leaderboard, monkeypatch, capsys, written(tmp_path / "games.csv", rows, header))
    assert message.startswith("leaderboard.py: ")
    assert says in message
    assert "\n" not in message


def test_a_missing_file_or_column_is_one_line(leaderboard, monkeypatch, capsys, tmp_path):
    missing = run(leaderboard, monkeypatch, capsys, tmp_path / "none.csv")
    assert "none.csv: cannot be read" in missing
    games = written(tmp_path / "games.csv", ["a,b,a"])
    message = run(leaderboard, monkeypatch, capsys, games, "--columns", "left", "right", "who")
    assert message.endswith("has no column 'who'; there is left, right, winner")


def test_real_comparisons_agree_with_independent_solvers(leaderboard):
    data = DATA / "llmfao.csv"
    if not data.exists():
        pytest.skip(f"{data} is not there; PREFLOSS_DATA names the folder of the data")
    evalica = pytest.importorskip("evalica")
    games = leaderboard.read(data, None)
    board = leaderboard.fit(games)
    with data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert board.games.sum() == 2 * len(rows) == 2 * 8931
    words = {"left": evalica.Winner.X, "right": evalica.Winner.Y, "tie": evalica.Winner.Draw}
    columns = [[row[name] for row in rows] for name in ("left", "right")]
    winners = [words[row["winner"]] for row in rows]
    found = evalica.bradley_terry(*columns, winners, tolerance=1e-13, limit=10_000).scores
    theirs = np.log(found.reindex(games.names).to_numpy(dtype=float))
    np.testing.assert_allclose(board.scores, theirs - theirs.mean(), rtol=0, atol=1e-6)
