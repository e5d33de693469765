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
    assert board.won == pytest.approx([8 / 11, 3 / 11])


def test_names_columns_and_ties_may_be_written_in_several_ways(leaderboard, tmp_path):
    names = leaderboard.read(written(tmp_path / "1.csv", ["x,y,x", "x,y,y", "y,x,Draw"]), None)
    columns = written(tmp_path / "2.csv", ["x,y,white", "x,y,black", "y,x,1/2"], "white,black,result")
    places = leaderboard.read(columns, ["white", "black", "result"])
    assert names.names == places.names == ["x", "y"]
    for one, other in zip(names.__dict__.values(), places.__dict__.values(), strict=True):
        assert list(one) == list(other)


SAME = ["x,y,x", "x,y,y", "y,x,tie", "y,x,y"]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("\ufeffmodel_a,model_b,winner\nx,y,model_a\nx,y,model_b\ny,x,tie (bothbad)\ny,x,model_a\n", None),
        (
            "id,model_a,model_b,winner_model_a,winner_model_b,winner_tie\n1,x,y,1,0,0\n2,x,y,0,1,0\n3,y,x,0,0,1\n4,y,x,1,0,0\n",
            None,
        ),
        ("model_a;model_b;winner\r\nx;y;x\r\n x ; y ;y\r\ny;x;Tie\r\ny;x;y\r\n", None),
        ("one\ttwo\tscore\nx\ty\t1\nx\ty\t0\ny\tx\t0.5\ny\tx\t1.0\n", ["one", "two", "score"]),
        ("white,black,result\nx,y,1-0\nx,y,0-1\ny,x,1/2-1/2\ny,x,1 - 0\n", ["white", "black", "result"]),
        ('one;two;score\n"x";y;1\nx;y;0\ny;x;"0,5"\ny;x;1\n\n', ["one", "two", "score"]),
    ],
    ids=["arena with a byte-order mark", "one-hot", "semicolons", "tabs and scores", "chess", "decimal commas"],
)
def test_files_as_people_have_them_are_the_same_games(text, columns, leaderboard, tmp_path):
    plain = leaderboard.read(written(tmp_path / "plain.csv", SAME), None)
    (tmp_path / "games.csv").write_bytes(text.encode())
    found = leaderboard.read(tmp_path / "games.csv", columns)
    for one, other in zip(plain.__dict__.values(), found.__dict__.values(), strict=True):
        assert list(one) == list(other)


def test_a_weight_counts_as_so_many_comparisons_and_0_as_none(leaderboard, tmp_path):
    once = ["a,b,a,3", "b,a,right,2", "a,b,b,2", "a,b,tie,0", "a,c,c,0"]
    weighted = leaderboard.fit(leaderboard.read(written(tmp_path / "w.csv", once, "left,right,winner,n"), None, "n"))
    rows = ["a,b,a"] * 5 + ["a,b,b"] * 2
    repeated = leaderboard.fit(leaderboard.read(written(tmp_path / "r.csv", rows), None))
    assert weighted.scores == pytest.approx(repeated.scores, rel=1e-9)
    assert weighted.won == pytest.approx(repeated.won)
    assert weighted.games.tolist() == [3, 3]
    # The sandwich for weights w: sum of (w slope)^2 over (sum of w curvature)^2, of the difference of two scores.
    p = 5 / 7
    error = np.sqrt((3 * (1 - p)) ** 2 + (2 * (1 - p)) ** 2 + (2 * p) ** 2) / (7 * p * (1 - p))
    assert weighted.standard_errors == pytest.approx([error / 2] * 2, rel=1e-9)


def test_an_elo_scale_has_400_points_for_odds_of_ten_to_one(leaderboard, monkeypatch, capsys, tmp_path):
    games = written(tmp_path / "games.csv", ["a,b,a"] * 10 + ["a,b,b"])
    out = run(leaderboard, monkeypatch, capsys, games, "--elo", 1000, "--picture", tmp_path / "board.svg")
    assert [line.split()[2] for line in out.splitlines()[1:3]] == ["1200.0", "800.0"]


def test_names_that_look_like_formulas_and_very_many_of_them_are_drawn(leaderboard, monkeypatch, capsys, tmp_path):
    rows = [f"$x_{{{i},$x_{{{(i + 1) % 120},tie" for i in range(120)]
    games = written(tmp_path / "games.csv", rows)
    out = run(leaderboard, monkeypatch, capsys, games, "--picture", tmp_path / "board.png")
    assert len(out.splitlines()) == 123
    assert (tmp_path / "board.png").read_bytes().startswith(b"\x89PNG")


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
        (["a,b"], "left,right,winner", "games.csv:2: the winner is ''"),
        (["a"], "left,right,winner", "games.csv:2: column 'right' is empty"),
        ([",b,b"], "left,right,winner", "games.csv:2: column 'left' is empty"),
        (["0,1,0", "2,1,0"], "left,right,winner", "'0' is a name here and a score in column 'winner'"),
        (["a,b,a"], "left,left,winner", "known by themselves are"),
        (["a,b,1,1"], "left,right,winner_left,winner_right", "exactly one of winner_left, winner_right must be 1"),
        (["a,b,2,0"], "left,right,winner_left,winner_right", "exactly one of winner_left, winner_right must be 1"),
        ([f"a{i},a{i + 1},tie" for i in range(5001)], "left,right,winner", "5,002 items are too many"),
    ],
    ids=[
        *("empty", "columns", "winner", "itself", "unbeaten", "short", "shorter", "nameless", "confused", "twice"),
        *("both", "neither", "many"),
    ],
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
    assert "has no column 'w'" in run(leaderboard, monkeypatch, capsys, games, "--weight", "w")


@pytest.mark.parametrize("cell", ["-1", "nan", "inf", "much", ""])
def test_a_bad_weight_is_named_with_its_line(cell, leaderboard, monkeypatch, capsys, tmp_path):
    games = written(tmp_path / "games.csv", ["a,b,a,1", f"a,b,b,{cell}"], "left,right,winner,w")
    message = run(leaderboard, monkeypatch, capsys, games, "--weight", "w")
    assert message.endswith(f"games.csv:3: the weight must be a finite number >= 0, got {cell!r}")


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
