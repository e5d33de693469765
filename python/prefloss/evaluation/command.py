"""The command `prefloss evaluate`: files in; a table, JSON and an HTML report out."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm  # type: ignore[import-untyped]

from .call import evaluate, greatest_reward
from .evaluation import Evaluation, Label, merged
from .files import LABELS, InputError, Piece, pieces, rows_of
from .text import printable

HELP = """\
examples:
  prefloss evaluate pairs.parquet --chosen reward_chosen --rejected reward_rejected
  prefloss evaluate shard-*.parquet --chosen a --rejected b --cluster prompt --group language --report report.html
  prefloss evaluate pairs.csv --chosen a --rejected b --group language --population shares.json

Files end in .parquet, .csv, .csv.gz, .jsonl, .jsonl.gz, .ndjson, .arrow, .feather or .ipc, and all have the same columns.
shares.json is {"group": share, ...}, adding up to 1. Messages count rows from 1, without the header."""
COLUMNS = {
    "chosen": "rewards of the preferred responses",
    "rejected": "rewards of the others",
    "weight": "how much each pair counts",
    "target": "the probability that chosen is preferred, 0 to 1",
    "cluster": "what was drawn together: prompt, annotator, conversation",
    "group": "the part of the population a pair belongs to",
    "baseline_chosen": "another model's rewards of the preferred responses",
    "baseline_rejected": "another model's rewards of the others",
    "judge": "the probability, by a judge, that chosen is better",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, HELP
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="one pair a row")
    for name, text in COLUMNS.items():
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, metavar="COLUMN", required=name in ("chosen", "rejected"), help=text)
    parser.add_argument("--beta", type=float, default=1.0, metavar="X", help="inverse temperature (%(default)s)")
    parser.add_argument("--population", type=Path, metavar="JSON", help="the groups' shares of the population")
    parser.add_argument("--level", type=float, default=0.95, metavar="X", help="level of the intervals (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all numbers to this file")
    parser.add_argument(
        "--report", type=Path, metavar="OUT", help="write a report (HTML) to this file; needs matplotlib"
    )


def run(given: argparse.Namespace) -> None:
    """Raises InputError."""
    columns = {name: getattr(given, name) for name in COLUMNS if getattr(given, name) is not None}
    if ("baseline_chosen" in columns) != ("baseline_rejected" in columns):
        raise InputError("--baseline-chosen and --baseline-rejected are given together or not at all")
    if given.population is not None and "group" not in columns:
        raise InputError("--population needs --group, the column of the groups that it gives shares of")
    if not 0.0 < given.level < 1.0:
        raise InputError(f"--level must be between 0 and 1, got {given.level:g}")
    if not math.isfinite(given.beta):
        raise InputError(f"--beta must be a finite number, got {given.beta:g}")
    _check_outputs(given)
    if given.report is not None:
        _require_matplotlib()
    shares = None if given.population is None else _shares(given.population)
    shown, notes = _evaluation(given.files, columns, given.beta), list[str]()
    if shares is not None:
        shown, notes = _population(shown, shares, given.population)
    print(shown.summary(given.level))
    for note in notes:
        print(f"! {note}")
    sys.stdout.flush()  # a closed pipe is noticed here, not after the files are written
    if given.json is not None:
        numbers = {**shown.as_dict(given.level), "files": [str(path) for path in given.files]}
        numbers["concerns"] = notes + numbers["concerns"]
        _write(given.json, json.dumps(_plain(numbers), indent=2, allow_nan=False) + "\n")
    if given.report is not None:
        from .report import page

        _write(given.report, page(shown, given.level, [str(path) for path in given.files], notes))


def _check_outputs(given: argparse.Namespace) -> None:
    """Each can be written, and is another file than what is read and than the other one."""
    used = {path.resolve(): "is read" for path in [*given.files, *filter(None, [given.population])]}
    for option, path in (("--json", given.json), ("--report", given.report)):
        if path is None:
            continue
        if not (path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()):
            raise InputError(f"{path}: cannot be written there")
        if path.resolve() in used:
            raise InputError(
                f"{path}: {option} would overwrite this file, which {used[path.resolve()]}; give another name"
            )
        used[path.resolve()] = f"{option} writes"


def _require_matplotlib() -> None:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise InputError("--report draws with matplotlib, which is not installed: pip install matplotlib") from error
    matplotlib.use("svg")


def _evaluation(paths: list[Path], columns: dict[str, str], beta: float) -> Evaluation:
    """Piece by piece. What is held is the sums, and as many again that are not yet merged."""
    total: list[Evaluation] = []
    merged_rows = 0
    for found in _each(paths, columns, beta):
        total.append(found)
        if sum(each.rows for each in total) > merged_rows + 2**19:
            total = [merged(total)]
            merged_rows = total[0].rows
    if not total:
        raise InputError(f"{', '.join(map(str, paths))}: no rows")
    return merged(total)


def _each(paths: list[Path], columns: dict[str, str], beta: float) -> Iterator[Evaluation]:
    known = [rows_of(path) for path in paths]
    rows = None if None in known else sum(filter(None, known))
    kinds: dict[str, tuple[str, Path]] = {}
    with tqdm(total=rows, unit="pairs", unit_scale=True, file=sys.stderr, disable=not sys.stderr.isatty()) as progress:
        for path in paths:
            for piece in pieces(path, columns, greatest_reward(beta)):
                _check_kinds(path, piece, columns, kinds)
                yield _of_piece(path, piece, beta)
                progress.update(len(piece.columns["chosen"]))


def _check_kinds(path: Path, piece: Piece, columns: dict[str, str], kinds: dict[str, tuple[str, Path]]) -> None:
    """Labels are integers in all files, or strings in all. `kinds` is {argument: its kind, the file that first had it}."""
    for argument in LABELS:
        if argument not in columns or not len(piece.columns[argument]):
            continue
        kind = piece.columns[argument].type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        words = "integers" if pa.types.is_integer(kind) or pa.types.is_boolean(kind) else "strings"
        known, first = kinds.setdefault(argument, (words, path))
        if words != known:
            raise InputError(
                f"{path}: column {columns[argument]!r}: holds {words}, but in {first} it holds {known}; labels must be of one "
                "kind (in a CSV file all are strings)"
            )


def _of_piece(path: Path, piece: Piece, beta: float) -> Evaluation:
    columns: dict[str, Any] = dict(piece.columns)
    if "baseline_chosen" in columns:
        columns["baseline"] = columns.pop("baseline_chosen"), columns.pop("baseline_rejected")
    try:
        return evaluate(columns.pop("chosen"), columns.pop("rejected"), beta=beta, **columns)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error


def _shares(path: Path) -> dict[str, float]:
    try:
        shares = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once_each)
    except (OSError, ValueError, RecursionError) as error:  # the last: nested too deep
        reason = error.strerror if isinstance(error, OSError) else f"no shares can be read from it: {error}"
        raise InputError(f"{path}: {reason}") from error
    numbers = isinstance(shares, dict) and all(type(share) in (int, float) for share in shares.values())
    if not numbers or not all(0 <= share <= 1 for share in shares.values()) or abs(sum(shares.values()) - 1.0) > 1e-6:
        raise InputError(f'{path}: must be {{"group": share, ...}} with shares >= 0 that add up to 1')
    return dict(shares)


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there {names.count(twice)} times")
    return found


def _population(collected: Evaluation, shares: dict[str, float], path: Path) -> tuple[Evaluation, list[str]]:
    """The population's evaluation, and what is to be said about groups that only one side has."""
    notes: list[str] = []
    by_name: dict[str, Label] = {str(label): label for label in collected.groups}
    missing = {name: share for name, share in shares.items() if share > 0 and name not in by_name}
    rest = math.fsum(share for name, share in shares.items() if name in by_name)
    if rest == 0:
        raise InputError(f"{path}: none of its groups is in the data; there are: {', '.join(by_name)}")
    if missing:
        names = ", ".join(map(printable, missing))
        notes.append(
            f"There are no pairs of {names}: {1 - rest:.1%} of the population. Nobody knows the loss there; all numbers are for "
            f"the other {rest:.1%}. Collect pairs of {names} before you rely on them."
        )
    unnamed = [name for name in by_name if shares.get(name, 0.0) == 0]
    if unnamed:
        notes.append(f"The population has no share for {', '.join(map(printable, unnamed))}: these pairs are left out.")
    return collected.reweighted({label: shares.get(name, 0.0) / rest for name, label in by_name.items()}), notes


def _plain(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: null."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write(path: Path, text: str) -> None:
    """All of it, or nothing."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(f"{path}: {error.strerror}") from error
