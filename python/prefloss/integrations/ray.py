"""`prefloss.evaluate` for a Ray data set: each block becomes a table of sums where it lies, and workers add the tables."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

try:
    import pyarrow as pa
    import ray
    import ray.data

    from ..evaluation import Evaluation
    from ..evaluation import evaluate as evaluate_columns
    from ..evaluation.evaluation import merged
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] not in ("ray", "pyarrow", "scipy"):
        raise
    raise ImportError(
        f'prefloss.integrations.ray needs {error.name}, which is not installed: pip install "prefloss[ray]"'
    ) from error

__all__ = ["evaluate"]

FAN_IN = 8  # tables that one task adds up
LABELS = ("cluster", "group")


def evaluate(
    dataset: ray.data.Dataset,
    *,
    chosen: str,
    rejected: str,
    weight: str | None = None,
    target: str | float | None = None,
    margin: str | float | None = None,
    beta: float | None = 1.0,
    label_smoothing: float | None = 0.0,
    flip_rate: float | None = 0.0,
    cluster: str | None = None,
    group: str | None = None,
    baseline: tuple[str, str] | None = None,
    judge: str | None = None,
) -> Evaluation:
    """`prefloss.evaluate` for the columns of a Ray data set.

    Each block is turned into a table of sums by the worker that has it; other tasks add these tables, eight at a time, in the order
    of the blocks. Only the last table, with a row for each cluster and group, comes to the calling process. For the same blocks the
    result has the same bits each time; it differs from that of one process only by the rounding of sums.

    >>> import ray
    >>> from prefloss.integrations.ray import evaluate
    >>> rows = [{"a": 1.2, "b": 0.2, "who": "x"}, {"a": 0.3, "b": 0.5, "who": "x"}, {"a": 2.0, "b": 0.1, "who": "y"}]
    >>> evaluation = evaluate(ray.data.from_items(rows), chosen="a", rejected="b", cluster="who")
    >>> evaluation.clusters, round(evaluation.accuracy.value, 3)
    (2, 0.667)

    The data set is executed, with `execution_options.preserve_order` set meanwhile. prefloss must be installed on the workers too.
    Where Ray knows the names of the columns before execution, as for Parquet files, only the named columns are read.

    Args:
        dataset: a `ray.data.Dataset` with a row for each pair.
        chosen, rejected, weight, cluster, group, judge: names of its columns.
        target, margin: the name of a column, or a number for all pairs.
        baseline: the names of the two columns (chosen, rejected) of the other model's rewards.
        beta, label_smoothing, flip_rate: numbers. All arguments mean the same as in `prefloss.evaluate`.

    Returns:
        `Evaluation`. For an empty data set its numbers are nan; it can be added to others.

    Raises:
        TypeError: a data set that is not Ray's; a name that is not a string; what `prefloss.evaluate` raises for a column.
        ValueError: a column that is not there; what `prefloss.evaluate` raises for values. The number of the pair is counted in its
            block, whose size the message says.
        ImportError: where this module is imported and Ray, pyarrow or SciPy is missing: `pip install "prefloss[ray]"`.
    """
    if not isinstance(dataset, ray.data.Dataset):
        raise TypeError(f"dataset must be a ray.data.Dataset, got {type(dataset).__name__}")
    columns: dict[str, Any] = {
        "chosen": chosen,
        "rejected": rejected,
        "weight": weight,
        "target": target,
        "margin": margin,
    }
    columns |= {"cluster": cluster, "group": group, "baseline": baseline, "judge": judge}
    given = {name: _checked(name, value) for name, value in columns.items() if value is not None}
    given |= {"beta": beta, "label_smoothing": label_smoothing, "flip_rate": flip_rate}
    nothing = _of_no_pairs(dataset, given)  # first, as it raises for what is wrong before anything is executed
    if dataset.schema(fetch_if_missing=False) is not None:
        dataset = dataset.select_columns(list(dict.fromkeys(_names(given))))
    with _in_order(dataset):
        # A batch is a block, as it lies: no row is copied, and none goes to another machine.
        summed = dataset.map_batches(_sums_of_block, fn_args=(given,), batch_size=None, batch_format="pyarrow")
        tables = summed.to_arrow_refs()
    return _total(tables) or nothing


# ---- Arguments ----


def _checked(name: str, value: Any) -> Any:
    """A column's name, a pair of names or a number, whichever the argument takes."""
    if name == "baseline":
        if isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(each, str) for each in value):
            return tuple(value)
        raise TypeError(f"baseline must be a pair (chosen, rejected) of names of columns, got {value!r:.80}")
    if isinstance(value, str) or (name in ("target", "margin") and isinstance(value, int | float)):
        return value
    accepted = "the name of a column" + (", or a number" if name in ("target", "margin") else "")
    raise TypeError(f"{name} must be {accepted}, got {value!r:.80}")


def _names(given: dict[str, Any]) -> Iterator[str]:
    for value in given.values():
        yield from (each for each in (value if isinstance(value, tuple) else (value,)) if isinstance(each, str))


def _of_no_pairs(dataset: ray.data.Dataset, given: dict[str, Any]) -> Evaluation:
    """The evaluation of the data set without its rows, with the columns that Ray knows of or else with those that are wanted."""
    schema = dataset.schema(fetch_if_missing=False)
    names = list(_names(given)) if schema is None else schema.names
    known = None if schema is None else schema.base_schema
    if isinstance(known, pa.Schema):
        return _of_columns(known.empty_table(), given)
    labels = [given.get(name) for name in LABELS]
    kinds = {
        name: pa.null() if name in labels else pa.float64() for name in names
    }  # pandas blocks: types come with rows
    return _of_columns(pa.schema(kinds).empty_table(), given)


@contextmanager
def _in_order(dataset: ray.data.Dataset) -> Iterator[None]:
    """Blocks come in the order of the data, so that sums are added in it. The options belong to the caller's data set too."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


# ---- Tasks: tables in, one table out ----
#
# A table has one column, "found", and a row for each pickled `Evaluation.to_table()`, or for the exception that was raised in its
# place. So Ray neither cuts a table of sums into blocks nor drops its metadata, and errors reach the caller as they were raised
# and not as a RayTaskError.


def _sums_of_block(block: pa.Table, given: dict[str, Any]) -> pa.Table:
    if not len(block):  # it may have no columns either
        return _row()
    try:
        return _row(_of_columns(block, given).to_table())
    except (TypeError, ValueError) as error:
        return _row(type(error)(f"{error}; in a block of {len(block)} pairs"))


def _total(tables: Sequence[Any]) -> Evaluation | None:
    """Adds tables up, of which this process has references only, and fetches the last one. None where there is nothing in it."""
    add = ray.remote(_sum_of_tables)
    while tables:
        tables = [add.remote(*tables[first : first + FAN_IN]) for first in range(0, len(tables), FAN_IN)]
        if len(tables) == 1:
            break
    for found in _read(*ray.get(tables)):
        if isinstance(found, Exception):
            raise found
        return Evaluation.from_table(found)
    return None


def _sum_of_tables(*tables: pa.Table) -> pa.Table:
    found = _read(*tables)
    for each in found:
        if isinstance(each, Exception):
            return _row(each)
    if not found:
        return _row()
    try:
        return _row(merged([Evaluation.from_table(each) for each in found]).to_table())
    except ValueError as error:  # labels that are strings in one block and integers in another
        return _row(error)


def _row(*found: pa.Table | Exception) -> pa.Table:
    return pa.table({"found": pa.array([pickle.dumps(each) for each in found], pa.large_binary())})


def _read(*tables: pa.Table) -> list[pa.Table | Exception]:
    """What was given to `_row`; an empty block that Ray passed on as it was has no such column, and no rows."""
    return [pickle.loads(row.as_py()) for table in tables if len(table) for row in table["found"]]


def _of_columns(block: pa.Table, given: dict[str, Any]) -> Evaluation:
    """`prefloss.evaluate` with columns in the place of their names."""

    def filled(argument: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(filled(argument, each) for each in value)
        if not isinstance(value, str):
            return value
        if value not in block.column_names:
            raise ValueError(f"{argument}: there is no column {value!r}; there are: {', '.join(block.column_names)}")
        return block[value]

    return evaluate_columns(**{argument: filled(argument, value) for argument, value in given.items()})
