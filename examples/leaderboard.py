"""Rank items by comparisons of two: Bradley-Terry scores, how well each is known, and a picture.

examples:
  leaderboard.py                       comparisons drawn from known scores, so that the table can be held against them
  leaderboard.py games.csv             a CSV file with a row a comparison: two names and which of them won
  leaderboard.py games.csv --columns white black result

In the winner's column stands one of the two names, or the name of one of the two columns, or "tie" or "draw". A tie is half a
win for both. Needs scipy and matplotlib, which `pip install '.[examples]'` brings.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import prefloss

TIES = ("tie", "draw", "1/2")
COLUMNS = (("left", "right"), ("model_a", "model_b"), ("player_a", "player_b"), ("white", "black"), ("home", "away"))
INTERVAL = 0.95
Floats = NDArray[np.float64]


class InputError(Exception):
    """What is wrong with the user's file or options, in one line."""


@dataclass(frozen=True)
class Games:
    """Comparisons of named items. The target is 1 where `chosen` won and 1/2 for a tie."""

    names: list[str]
    chosen: torch.Tensor  # (P,) int64, by position in `names`
    rejected: torch.Tensor
    target: torch.Tensor  # (P,) float64


@dataclass(frozen=True)
class Leaderboard:
    """Scores are logarithms of strengths, with mean 0; all arrays have one entry an item."""

    scores: Floats
    standard_errors: Floats
    games: NDArray[np.int64]
    won: Floats  # ties count half


def read(path: Path, columns: list[str] | None) -> Games:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            left, right, winner = columns or guessed_columns(path, list(table.fieldnames or []))
            for name in (left, right, winner):
                if name not in (table.fieldnames or []):
                    raise InputError(f"{path}: has no column {name!r}; there is {', '.join(table.fieldnames or [])}")
            rows = [
                (row[left], row[right], outcome(row[left], row[right], row[winner], left, right, f"{path}:{line}"))
                for line, row in enumerate(table, 2)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise InputError(f"{path}: no comparisons in it")
    names = sorted({name for row in rows for name in row[:2]})
    place = {name: index for index, name in enumerate(names)}
    # A row that `right` won is a comparison that it was chosen in.
    ordered = [(a, b, won) if won >= 0.5 else (b, a, 1.0 - won) for a, b, won in rows]
    return Games(
        names,
        torch.tensor([place[a] for a, _, _ in ordered]),
        torch.tensor([place[b] for _, b, _ in ordered]),
        torch.tensor([won for _, _, won in ordered], dtype=torch.float64),
    )


def guessed_columns(path: Path, there: list[str]) -> tuple[str, str, str]:
    for pair in COLUMNS:
        if {*pair, "winner"} <= set(there):
            return *pair, "winner"
    known = "; ".join(f"{a}, {b}, winner" for a, b in COLUMNS)
    raise InputError(f"{path}: name the columns with --columns LEFT RIGHT WINNER; known by themselves are {known}")


def outcome(left: str, right: str, winner: str, left_column: str, right_column: str, where: str) -> float:
    """1 where `left` won, 0 where `right` did, 1/2 for a tie."""
    if left == right:
        raise InputError(f"{where}: {left!r} is compared with itself")
    if winner in (left, left_column):
        return 1.0
    if winner in (right, right_column):
        return 0.0
    if (winner or "").lower() in TIES:
        return 0.5
    raise InputError(
        f"{where}: the winner is {winner!r}; it may be {left!r}, {right!r}, {left_column!r}, {right_column!r} or 'tie'"
    )


def drawn(items: int, comparisons: int, seed: int) -> tuple[Games, Floats]:
    """Comparisons of items whose scores are known, and those scores."""
    random = np.random.default_rng(seed)
    scores = random.normal(size=items)
    scores -= scores.mean()
    left = random.integers(0, items, comparisons)
    right = (left + random.integers(1, items, comparisons)) % items
    chance = 1.0 / (1.0 + np.exp(scores[right] - scores[left]))
    won = random.random(comparisons) < chance
    chosen, rejected = np.where(won, left, right), np.where(won, right, left)
    names = [f"item {index + 1}" for index in range(items)]
    target = np.ones(comparisons)
    return Games(names, *(torch.from_numpy(array) for array in (chosen, rejected, target))), scores


def fit(games: Games) -> Leaderboard:
    """The scores of greatest likelihood, by L-BFGS over the indexed loss, and their standard errors."""
    items = len(games.names)
    check_connected(games)
    scores = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    comparisons = prefloss.merge_comparisons(
        games.chosen, games.rejected, weight=torch.ones_like(games.target), target=games.target
    )
    optimiser = torch.optim.LBFGS(
        [scores], max_iter=1000, tolerance_grad=1e-12, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        loss = prefloss.bradley_terry_loss_indexed(scores, **comparisons)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(step)  # type: ignore[no-untyped-call]
    found = scores.detach().numpy()
    found = found - found.mean()  # the likelihood knows differences only
    counts = np.bincount(np.concatenate((games.chosen, games.rejected)), minlength=items).astype(np.int64)
    won: Floats = np.zeros(items)
    np.add.at(won, games.chosen.numpy(), games.target.numpy())
    np.add.at(won, games.rejected.numpy(), 1.0 - games.target.numpy())
    return Leaderboard(found, standard_errors(games, found), counts, won)


def check_connected(games: Games) -> None:
    """There is a finite maximum only if no set of items won, or lost, all its comparisons with the others (Ford 1957)."""
    ties = games.target == 0.5
    beat = torch.cat((games.chosen, games.rejected[ties]))
    lost = torch.cat((games.rejected, games.chosen[ties]))
    items = len(games.names)
    graph = coo_array((np.ones(len(beat)), (beat.numpy(), lost.numpy())), shape=(items, items)).tocsr()
    parts, part = connected_components(graph, connection="strong")
    if parts > 1:
        smallest = np.bincount(part).argmin()
        names = [name for name, number in zip(games.names, part, strict=True) if number == smallest]
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise InputError(
            f"{listed} won all comparisons with the others, or lost all, or had none: no finite scores fit; leave them out"
        )


def standard_errors(games: Games, scores: Floats) -> Floats:
    """Square roots of the diagonal of the sandwich H^+ G H^+ (White 1982): right for ties too, which are no coin's outcome.

    H is the sum of the comparisons' curvatures and G of their squared slopes, both as Laplacians of the items' graph.
    """
    margin = scores[games.chosen] - scores[games.rejected]
    inverse = np.linalg.pinv(laplacian(games, prefloss.reference.pair_curvature(margin)), hermitian=True)
    slope = prefloss.reference.pair_slope(margin, games.target.numpy())
    variances: Floats = np.einsum("ij,jk,ki->i", inverse, laplacian(games, slope * slope), inverse, optimize=True)
    return np.sqrt(variances)


def laplacian(games: Games, entries: Floats) -> Floats:
    """The sum of entry (e_i - e_j)(e_i - e_j)^T over the comparisons of i with j."""
    items = len(games.names)
    adjacency = np.zeros((items, items))
    np.add.at(adjacency, (games.chosen.numpy(), games.rejected.numpy()), entries)
    adjacency += adjacency.T
    result: Floats = np.diag(adjacency.sum(1)) - adjacency
    return result


def table(games: Games, board: Leaderboard, truth: Floats | None) -> Iterator[str]:
    half_width = NormalDist().inv_cdf(0.5 + INTERVAL / 2) * board.standard_errors
    width = max(len("name"), *map(len, games.names))
    head = f"{'rank':>4}  {'name':{width}}  {'score':>7}  {'s.e.':>6}  {'95 % interval':>17}  {'games':>6}  {'won':>5}"
    yield head + ("" if truth is None else f"  {'true score':>10}")
    for rank, item in enumerate(np.argsort(-board.scores), 1):
        score, half = board.scores[item], half_width[item]
        yield (
            f"{rank:4}  {games.names[item]:{width}}  {score:7.3f}  {board.standard_errors[item]:6.3f}  "
            f"[{score - half:7.3f}, {score + half:7.3f}]  {board.games[item]:6}  {board.won[item] / board.games[item]:5.1%}"
            + ("" if truth is None else f"  {truth[item]:10.3f}")
        )
    if truth is not None:
        within = np.count_nonzero(np.abs(board.scores - truth) <= half_width)
        yield f"\nThe 95 % interval holds the true score of {within} of {len(truth)} items."


def draw(path: Path, games: Games, board: Leaderboard, truth: Floats | None) -> None:
    half_width = NormalDist().inv_cdf(0.5 + INTERVAL / 2) * board.standard_errors
    order = np.argsort(board.scores)
    figure = Figure(figsize=(7, 1.2 + 0.22 * len(order)), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(order))
    panel.errorbar(board.scores[order], places, xerr=half_width[order], fmt="o", color="#1f6fb4", label="95 % interval")
    if truth is not None:
        panel.plot(truth[order], places, "|", color="#d1602d", markersize=11, markeredgewidth=2, label="true score")
    panel.set_yticks(places, [games.names[item] for item in order])
    panel.set_ylim(-0.7, len(order) - 0.3)
    panel.set_xlabel("Bradley-Terry score: the log odds of winning against the average")
    panel.grid(axis="x", color="#e4e4e4")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="CSV with a header (default: comparisons that are drawn)")
    parser.add_argument("--columns", nargs=3, metavar=("LEFT", "RIGHT", "WINNER"), help="where the file has them")
    parser.add_argument("--picture", type=Path, default=Path("leaderboard.png"), help="(default: leaderboard.png)")
    parser.add_argument("--items", type=int, default=20, help="to draw comparisons of (default: 20)")
    parser.add_argument("--comparisons", type=int, default=4000, help="to draw (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    return parser.parse_args()


def main() -> Any:
    given = arguments()
    try:
        if given.items < 2 or given.comparisons < 1:
            raise InputError("--items must be at least 2 and --comparisons at least 1")
        games, truth = (
            (read(given.file, given.columns), None) if given.file else drawn(given.items, given.comparisons, given.seed)
        )
        board = fit(games)
        print("\n".join(table(games, board, truth)))
        draw(given.picture, games, board, truth)
    except InputError as error:
        sys.exit(f"leaderboard.py: {error}")
    except OSError as error:
        sys.exit(f"leaderboard.py: --picture {given.picture}: {error.strerror}")
    print(f"\n{given.picture}")


if __name__ == "__main__":
    main()
