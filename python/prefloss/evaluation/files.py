"""Columns of pairs from files, a piece at a time: Parquet, CSV, JSON lines and Arrow. What is wrong is said in one line."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from numpy.typing import NDArray

BATCH = 2**20  # rows: clusters that are met again within them are added before anything is merged
PIECE = 2**23  # bytes of text
LABELS = ("cluster", "group")
# Lowest and greatest number. All others are rewards, which must be finite, and not larger than `evaluate` takes them.
RANGES = {"weight": (0.0, math.inf), "target": (0.0, 1.0), "judge": (0.0, 1.0)}

Float64Array: TypeAlias = NDArray[np.float64]


class InputError(Exception):
    """What the user has to put right, in one line that names the file and the place in it."""


class Piece(NamedTuple):
    """Some rows of a file: {column: values}, and the number of the first of them, from 1."""

    columns: dict[str, pa.ChunkedArray]
    first: int


def pieces(path: Path, columns: dict[str, str], greatest: float = math.inf) -> Iterator[Piece]:
    """The file's columns, checked; `columns` is {argument of evaluate: name in the file}, `greatest` that of a reward's size.

    Raises InputError.
    """
    reader = next((read for suffixes, read in READERS.items() if path.name.lower().endswith(suffixes)), None)
    if reader is None:
        known = ", ".join(suffix for suffixes in READERS for suffix in suffixes)
        raise InputError(f"{path}: the name must end in one of {known}")
    first = 1
    try:
        for table in reader(path, columns):
            piece = Piece({argument: table[name] for argument, name in columns.items()}, first)
            _check(path, piece, columns, greatest)
            yield piece
            first += len(table)
    except (OSError, EOFError, pa.ArrowException, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read: {reason}") from error


def rows_of(path: Path) -> int | None:
    """How many rows the file has, where that is known without reading it."""
    try:
        return int(pa.parquet.read_metadata(path).num_rows) if path.name.lower().endswith(".parquet") else None
    except (OSError, pa.ArrowException):  # said when it is read
        return None


# ---- Readers ----


def _parquet(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    with pa.parquet.ParquetFile(path, pre_buffer=False) as file:  # or pyarrow reads ahead, and keeps, all of the file
        names = _present(path, columns, file.schema_arrow.names)
        for batch in file.iter_batches(BATCH, columns=names):
            yield pa.Table.from_batches([batch])


def _arrow(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        if is_file:
            file = pa.ipc.open_file(source)
            schema, batches = file.schema, (file.get_batch(place) for place in range(file.num_record_batches))
        else:
            stream = pa.ipc.open_stream(source)
            schema, batches = stream.schema, iter(stream)
        names = _present(path, columns, schema.names)
        for batch in batches:
            yield pa.Table.from_batches([batch.select(names)])


def _csv(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    parse = pa.csv.ParseOptions(
        newlines_in_values=True
    )  # or a block may end, and the next begin, inside of a quoted text
    read = pa.csv.ReadOptions(block_size=PIECE, use_threads=False)
    # Of numbers. "nan" is a number, and said to be one where it must not be there. "NA" may be a label: Namibia.
    nothing = ["", "NA", "N/A", "null", "NULL", "None"]
    header: list[str] = []
    try:
        with pa.input_stream(str(path)) as source:
            first = pa.csv.ReadOptions(block_size=2**20, use_threads=False)  # with room for a row of long texts
            header = pa.csv.open_csv(source, first, parse).schema.names
        names = _present(path, columns, header)
        types = {name: pa.string() if argument in LABELS else pa.float64() for argument, name in columns.items()}
        convert = pa.csv.ConvertOptions(include_columns=names, column_types=types, null_values=nothing)
        with pa.input_stream(str(path)) as source, pa.csv.open_csv(source, read, parse, convert) as reader:
            for batch in reader:
                yield _without_empty_labels(pa.Table.from_batches([batch]))
    except pa.ArrowInvalid as error:
        # The header is row 1 there.
        said = re.sub(r"Row #(\d+)", lambda match: f"row {int(match[1]) - 1}", " ".join(str(error).split()))
        found = re.search(r"column #(\d+): (?:(row \d+): )?CSV conversion error to \w+: invalid value '(.*)'", said)
        if found is None:
            raise InputError(f"{path}: cannot be read: {said}") from error
        column, row, value = found.groups()
        place = f"{row}, " if row else ""
        raise InputError(f"{path}: {place}column {header[int(column)]!r}: {value!r} is not a number") from error


def _without_empty_labels(table: pa.Table) -> pa.Table:
    """The empty field is no label."""
    for place, values in enumerate(table.columns):
        if pa.types.is_string(values.type):
            labels = pc.if_else(pc.equal(values, ""), None, values)
            table = table.set_column(place, table.column_names[place], labels)
    return table


def _json_lines(path: Path, columns: dict[str, str]) -> Iterator[pa.Table]:
    schema, rest, rows = None, b"", count(1)
    with pa.input_stream(str(path)) as source:
        while True:
            read = source.read(PIECE)
            whole, newline, rest = (rest + read).rpartition(b"\n") if read else (rest, b"", b"")
            if whole.strip():
                schema = schema or _schema(path, columns, whole)
                yield _json_piece(path, columns, schema, whole + newline, rows)
            if not read:
                return


def _schema(path: Path, columns: dict[str, str], lines: bytes) -> pa.Schema:
    """Rewards are float64; labels are what they are in the first line."""
    first = _object(path, 1, lines.lstrip().split(b"\n", 1)[0].removeprefix(b"\xef\xbb\xbf"))
    _present(path, columns, list(first))
    kinds = {
        name: (pa.string() if isinstance(first[name], str) else pa.int64()) if argument in LABELS else pa.float64()
        for argument, name in columns.items()
    }
    return pa.schema(kinds)


def _json_piece(path: Path, columns: dict[str, str], schema: pa.Schema, lines: bytes, rows: Iterator[int]) -> pa.Table:
    parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pa.json.read_json(pa.BufferReader(lines), pa.json.ReadOptions(block_size=len(lines) + 1), parse)
        for _ in range(len(table)):
            next(rows)
        return table
    except pa.ArrowInvalid:  # which line is it?
        for row, line in zip(rows, filter(bytes.strip, lines.split(b"\n")), strict=False):
            _explain_json(path, columns, schema, row, line)
        raise


def _explain_json(path: Path, columns: dict[str, str], schema: pa.Schema, row: int, line: bytes) -> None:
    """Raises for the line that does not fit."""
    record = _object(path, row, line)
    for name in columns.values():
        value = record.get(name)
        kinds = {
            pa.float64(): ("a number", int | float),
            pa.string(): ("a string", str),
            pa.int64(): ("an integer", int),
        }
        wanted, fits = kinds[schema.field(name).type]
        if value is not None and (isinstance(value, bool) or not isinstance(value, fits)):
            raise InputError(f"{path}: row {row}, column {name!r}: {value!r} is not {wanted}")


def _object(path: Path, row: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # the second: nested too deep
        raise InputError(f"{path}: row {row}: not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path}: row {row}: must be an object {{...}}, one a line")
    return record


READERS: dict[tuple[str, ...], Callable[[Path, dict[str, str]], Iterator[pa.Table]]] = {
    (".parquet",): _parquet,
    (".csv", ".csv.gz"): _csv,
    (".jsonl", ".jsonl.gz", ".ndjson"): _json_lines,
    (".arrow", ".feather", ".ipc"): _arrow,
}

# ---- Checks ----


def _present(path: Path, columns: dict[str, str], names: list[str]) -> list[str]:
    """The names in the file, once each."""
    for argument, name in columns.items():
        option, times = f"--{argument.replace('_', '-')}", names.count(name)
        if times == 0:
            raise InputError(f"{path}: no column {name!r} ({option}); there are: {', '.join(names)}")
        if times > 1:
            raise InputError(f"{path}: {times} columns are named {name!r} ({option}): rename all but one of them")
    return list(dict.fromkeys(columns.values()))


def _check(path: Path, piece: Piece, columns: dict[str, str], greatest: float) -> None:
    """Every number is finite and in its range. As in `evaluate`, a target may be missing where a judge stands in, and where the
    weight is 0 the others may be NaN or anything else, but not missing."""
    numbers = {name: _numbers(path, columns[name], piece.columns[name]) for name in columns if name not in LABELS}
    for argument, values in piece.columns.items():
        wrong: np.ndarray[Any, np.dtype[np.bool_]] = values.is_null().to_numpy()
        if argument in numbers:
            given = numbers[argument]
            low, high = RANGES.get(argument, (-greatest, greatest))
            outside = ~(np.isfinite(given) & (given >= low) & (given <= high))
            if argument != "weight" and "weight" in numbers:
                outside &= numbers["weight"] != 0
            if argument == "target" and "judge" in columns:
                wrong, outside = np.zeros_like(wrong), outside & ~np.isnan(given)
            wrong |= outside
        if wrong.any():
            place = int(wrong.argmax())
            value = values[place].as_py()
            found = "nothing" if value is None else repr(value)
            raise InputError(
                f"{path}: row {piece.first + place}, column {columns[argument]!r}: "
                f"must be {_wanted(argument, value, greatest)}, is {found}"
            )


def _numbers(path: Path, name: str, values: pa.ChunkedArray) -> Float64Array:
    """Null is NaN."""
    kind = values.type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise InputError(f"{path}: column {name!r}: must hold numbers, holds {kind}")
    return np.asarray(values.cast(pa.float64()).to_numpy())


def _wanted(argument: str, value: float | None, greatest: float) -> str:
    if argument in LABELS:
        return "a label"
    low, high = RANGES.get(argument, (-greatest, greatest))
    if argument in RANGES:
        return f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a finite number >= {low:g}"
    too_large = value is not None and math.isfinite(value)
    return f"a number from {low:g} to {high:g}" if too_large else "a finite number"
