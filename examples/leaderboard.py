"""A leaderboard from comparisons
==============================

Rank items by comparisons of two: Bradley-Terry scores, how well each is known, and a picture.

examples::

  leaderboard.py                       comparisons drawn from known scores, so that the table can be held against them
  leaderboard.py games.csv             a CSV file with a row a comparison: two names and which of them won
  leaderboard.py games.csv --columns white black result --weight importance --elo 1000

In the winner's column stands one of the two names, or the name of one of the two columns, or a score of the first (1, 0 or 0.5;
1-0, 0-1 or 1/2-1/2), or "tie", "draw" or "tie (bothbad)". In its place there may be columns of 0 and 1, as in
winner_model_a, winner_model_b and winner_tie. A tie is half a win for both. Commas, semicolons, tabs or bars separate cells.
Needs scipy and matplotlib, which ``pip install '.[examples]'`` brings.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import prefloss

TIES = ("tie", "draw", "tie (bothbad)", "tie(bothbad)", "bothbad", "both bad")
SCORES = {
    "1": 1.0,
    "0": 0.0,
    "1/2": 0.5,
    "½": 0.5,
    "1-0": 1.0,
    "0-1": 0.0,
    "1/2-1/2": 0.5,
    "½-½": 0.5,
}  # of the first one
SEPARATORS = ",;\t|"
COLUMNS = (("left", "right"), ("model_a", "model_b"), ("player_a", "player_b"), ("white", "black"), ("home", "away"))
INTERVAL = 0.95
ELO = 400 / math.log(10)  # Elo points in a unit of the log odds: 400 points are odds of 10 to 1
MOST_ITEMS = 5000  # for standard errors, a dense matrix of items by items is inverted
MOST_DRAWN = 100  # in the picture
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
    weight: torch.Tensor  # (P,) float64, > 0


@dataclass(frozen=True)
class Leaderboard:
    """Scores are logarithms of strengths, with mean 0; all arrays have one entry an item."""

    scores: Floats
    standard_errors: Floats
    games: NDArray[np.int64]
    won: Floats  # share of the weight of its comparisons; ties count half


def read(path: Path, columns: list[str] | None, weight: str | None = None) -> Games:
    """The comparisons of a CSV file. Those of weight 0 are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        separator = max(SEPARATORS, key=text.partition("\n")[0].count)
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        table.fieldnames = [name.strip() for name in table.fieldnames or []]
        result = Result.of(path, table.fieldnames, columns)
        check_columns(path, table.fieldnames, [*result.all, *([weight] if weight else [])])
        rows = []
        for row in table:
            where = f"{path}:{table.line_num}"
            counts = 1.0 if weight is None else weight_of(row[weight], separator, where)
            if counts > 0:
                rows.append((*result.read(row, where), counts))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise InputError(f"{path}: no comparisons in it")
    names = sorted({name for row in rows for name in row[:2]})
    if result.by_score and (confused := SCORES.keys() & set(names)):
        raise InputError(f"{path}: {min(confused)!r} is a name here and a score in column {result.winner!r}: rename it")
    place = {name: index for index, name in enumerate(names)}
    # A row that `right` won is a comparison that it was chosen in.
    ordered = [(a, b, won, counts) if won >= 0.5 else (b, a, 1.0 - won, counts) for a, b, won, counts in rows]
    return Games(
        names,
        torch.tensor([place[a] for a, _, _, _ in ordered]),
        torch.tensor([place[b] for _, b, _, _ in ordered]),
        torch.tensor([won for _, _, won, _ in ordered], dtype=torch.float64),
        torch.tensor([counts for _, _, _, counts in ordered], dtype=torch.float64),
    )


@dataclass
class Result:
    """Where a row says who was compared and who won: in `winner`, or in columns of 0 and 1 (`hot`: left, right, perhaps tie)."""

    left: str
    right: str
    winner: str = ""
    hot: tuple[str, ...] = ()
    by_score: bool = False  # whether any row was read by its score

    @property
    def all(self) -> tuple[str, ...]:
        return self.left, self.right, *(self.hot or (self.winner,))

    @classmethod
    def of(cls, path: Path, there: list[str], columns: list[str] | None) -> Result:
        """The columns that the user names, or those that are known."""
        if columns:
            left, right, winner = columns
            return cls(left, right, winner)
        for left, right in COLUMNS:
            if {left, right, "winner"} <= set(there):
                return cls(left, right, "winner")
            hot = tuple(f"winner_{name}" for name in (left, right, "tie"))
            if {left, right, *hot[:2]} <= set(there):
                return cls(left, right, hot=hot if hot[2] in there else hot[:2])
        known = "; ".join(f"{a}, {b}, winner" for a, b in COLUMNS)
        raise InputError(f"{path}: name the columns with --columns LEFT RIGHT WINNER; known by themselves are {known}")

    def read(self, row: dict[str, str | None], where: str) -> tuple[str, str, float]:
        """(left, right, outcome): 1 where left won, 0 where right did, 1/2 for a tie."""
        left, right = (" ".join((row[column] or "").split()) for column in (self.left, self.right))
        for name, column in ((left, self.left), (right, self.right)):
            if not name:
                raise InputError(f"{where}: column {column!r} is empty")
        if left == right:
            raise InputError(f"{where}: {left!r} is compared with itself")
        return left, right, self._of_columns(row, where) if self.hot else self._of_word(row, left, right, where)

    def _of_columns(self, row: dict[str, str | None], where: str) -> float:
        cells = [(row[column] or "").strip().lower() for column in self.hot]
        known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
        marked = [known.get(cell) for cell in cells]
        if None in marked or marked.count(True) != 1:
            raise InputError(f"{where}: exactly one of {', '.join(self.hot)} must be 1 and the others 0, got {cells}")
        return (1.0, 0.0, 0.5)[marked.index(True)]

    def _of_word(self, row: dict[str, str | None], left: str, right: str, where: str) -> float:
        winner = " ".join((row[self.winner] or "").split())
        if winner in (left, self.left):
            return 1.0
        if winner in (right, self.right):
            return 0.0
        if winner.lower() in TIES:
            return 0.5
        score = SCORES.get(winner.replace(" ", ""))
        with suppress(ValueError):
            number = float(winner.replace(",", "."))
            score = number if number in (0.0, 0.5, 1.0) else None
        if score is None:
            raise InputError(
                f"{where}: the winner is {winner!r}; it may be {left!r}, {right!r}, {self.left!r}, {self.right!r}, 'tie' "
                "or a score of 1, 0 or 0.5"
            )
        self.by_score = True
        return score


def check_columns(path: Path, there: list[str], wanted: list[str]) -> None:
    for name in wanted:
        if there.count(name) != 1:
            how_many = "no column" if name not in there else "more than one column"
            raise InputError(f"{path}: has {how_many} {name!r}; there is {', '.join(there)}")
    if len(set(wanted)) < len(wanted):
        raise InputError(f"{path}: the same column is named twice: {', '.join(wanted)}")


def weight_of(cell: str | None, separator: str, where: str) -> float:
    try:
        weight = float((cell or "").replace(",", ".") if separator == ";" else cell or "")
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight < math.inf:
        raise InputError(f"{where}: the weight must be a finite number >= 0, got {cell!r}")
    return weight


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
    ones = np.ones(comparisons)
    return Games(names, *(torch.from_numpy(array) for array in (chosen, rejected, ones, ones.copy()))), scores


def fit(games: Games) -> Leaderboard:
    """The scores of greatest likelihood, by L-BFGS over the indexed loss, and their standard errors."""
    items = len(games.names)
    if items > MOST_ITEMS:
        raise InputError(f"{items:,} items are too many: standard errors are worked out for up to {MOST_ITEMS:,}")
    check_connected(games)
    scores = torch.zeros(items, dtype=torch.float64, requires_grad=True)
    comparisons = prefloss.merge_comparisons(games.chosen, games.rejected, weight=games.weight, target=games.target)
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
    weight, target = games.weight.numpy(), games.target.numpy()
    won, total = np.zeros((2, items))
    for item, share in ((games.chosen.numpy(), target), (games.rejected.numpy(), 1.0 - target)):
        np.add.at(won, item, weight * share)
        np.add.at(total, item, weight)
    return Leaderboard(found, standard_errors(games, found), counts, won / total)


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

    H is the sum of the comparisons' curvatures and G of their squared slopes, both as Laplacians of the items' graph; weights
    multiply both curvatures and slopes.
    """
    margin, weight = scores[games.chosen] - scores[games.rejected], games.weight.numpy()
    inverse = np.linalg.pinv(laplacian(games, weight * prefloss.reference.pair_curvature(margin)), hermitian=True)
    slope = weight * prefloss.reference.pair_slope(margin, games.target.numpy())
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


def on_elo_scale(board: Leaderboard, truth: Floats | None, mean: float) -> tuple[Leaderboard, Floats | None]:
    scores = mean + ELO * board.scores
    shown = replace(board, scores=scores, standard_errors=ELO * board.standard_errors)
    return shown, None if truth is None else mean + ELO * truth


def table(games: Games, board: Leaderboard, truth: Floats | None, digits: int) -> Iterator[str]:
    half_width = NormalDist().inv_cdf(0.5 + INTERVAL / 2) * board.standard_errors
    width = max(len("name"), *map(len, games.names))
    head = f"{'rank':>4}  {'name':{width}}  {'score':>7}  {'s.e.':>6}  {'95 % interval':>17}  {'games':>6}  {'won':>5}"
    yield head + ("" if truth is None else f"  {'true score':>10}")
    for rank, item in enumerate(np.argsort(-board.scores), 1):
        score, half = board.scores[item], half_width[item]
        yield (
            f"{rank:4}  {games.names[item]:{width}}  {score:7.{digits}f}  {board.standard_errors[item]:6.{digits}f}  "
            f"[{score - half:7.{digits}f}, {score + half:7.{digits}f}]  {board.games[item]:6}  {board.won[item]:5.1%}"
            + ("" if truth is None else f"  {truth[item]:10.{digits}f}")
        )
    if truth is not None:
        within = np.count_nonzero(np.abs(board.scores - truth) <= half_width)
        yield f"\nThe 95 % interval holds the true score of {within} of {len(truth)} items."


def draw(path: Path, games: Games, board: Leaderboard, truth: Floats | None, unit: str) -> None:
    """The best items, `MOST_DRAWN` of them at most."""
    half_width = NormalDist().inv_cdf(0.5 + INTERVAL / 2) * board.standard_errors
    order = np.argsort(board.scores)[-MOST_DRAWN:]
    figure = Figure(figsize=(7, 1.6 + 0.22 * len(order)), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(order))
    panel.errorbar(board.scores[order], places, xerr=half_width[order], fmt="o", color="#1f6fb4", label="95 % interval")
    if truth is not None:
        panel.plot(truth[order], places, "|", color="#d1602d", markersize=11, markeredgewidth=2, label="true score")
    names = [name if len(name) <= 40 else name[:39] + "…" for name in (games.names[item] for item in order)]
    panel.set_yticks(places, names, parse_math=False)
    panel.set_ylim(-0.7, len(order) - 0.3)
    panel.set_xlabel(unit)
    panel.grid(axis="x", color="#e4e4e4")
    panel.spines[["top", "right"]].set_visible(False)
    best = "" if len(order) == len(games.names) else f", the best {len(order)} of {len(games.names)}"
    panel.set_title(f"Bradley-Terry scores{best}", loc="left")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)


def arguments() -> argparse.Namespace:
    text = (__doc__ or "").partition("\n\n")[2]
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="CSV with a header (default: comparisons that are drawn)")
    parser.add_argument("--columns", nargs=3, metavar=("LEFT", "RIGHT", "WINNER"), help="where the file has them")
    parser.add_argument("--weight", metavar="COLUMN", help="how much each comparison counts (default: all the same)")
    parser.add_argument("--elo", type=float, metavar="MEAN", help="scores as Elo ratings with this mean, such as 1000")
    parser.add_argument("--picture", type=Path, default=Path("leaderboard.png"), help="(default: leaderboard.png)")
    parser.add_argument("--items", type=int, default=20, help="to draw comparisons of (default: 20)")
    parser.add_argument("--comparisons", type=int, default=4000, help="to draw (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    given = parser.parse_args()
    for name, low, high in (("items", 2, MOST_ITEMS), ("comparisons", 1, 10**8), ("seed", 0, 2**63 - 1)):
        if not low <= (number := getattr(given, name)) <= high:
            parser.error(f"--{name} must be from {low} to {high}, got {number}")
    if given.elo is not None and not math.isfinite(given.elo):
        parser.error(f"--elo must be a finite number, got {given.elo}")
    if given.file is None and (given.columns or given.weight):
        parser.error("--columns and --weight are of a file, and none is given")
    formats = FigureCanvasBase.get_supported_filetypes()
    if given.picture.suffix[1:].lower() not in formats:
        parser.error(f"--picture {given.picture}: the name must end in one of .{', .'.join(sorted(formats))}")
    return given


def main() -> None:
    given = arguments()
    truth = None
    try:
        if given.file:
            games = read(given.file, given.columns, given.weight)
        else:
            games, truth = drawn(given.items, given.comparisons, given.seed)
        board = fit(games)
        unit, digits = "score: the log odds of winning against the average", 3
        if given.elo is not None:
            board, truth = on_elo_scale(board, truth, given.elo)
            unit, digits = f"Elo rating, with mean {given.elo:g}", 1
        draw(given.picture, games, board, truth, unit)
    except InputError as error:
        sys.exit(f"leaderboard.py: {error}")
    except OSError as error:
        sys.exit(f"leaderboard.py: --picture {given.picture}: {error.strerror}")
    print("\n".join(table(games, board, truth, digits)))
    print(f"\n{given.picture}")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the script, as it ends other commands
    main()
