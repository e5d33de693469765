"""What an `Evaluation` knows: two Arrow tables of sums that add up, and what is needed to read them.

`units` has a row for each (cluster, group, labelled); `bins` one for each (group, labelled, part, bin). A column "loss_w2y1"
is the sum over the row's pairs of w^2 y^1, where y is the loss less a constant of the whole table (`shifts`) and w the weight
over another (`scale`). Both constants are 0 and 1 for ordinary data, so the tables can be read and added by any engine that
groups by key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import comb
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from .keys import indicator, number, number_rows
from .statistics import BIN_SUMS, Options, Statistic

Float64Array = NDArray[np.float64]

VERSION = 1
UNIT_KEYS, BIN_KEYS = ("cluster", "group", "labelled"), ("group", "labelled", "part", "bin")
# Which rows of `bins` a row belongs to: bins of |z|, or of the logarithm of the weight.
DISTANCE, WEIGHT = 1, 2
AT_ONCE = 8  # columns that are added up together: a cache line of a row; all of them would be a copy of the table
WEIGHT_STEPS = 64  # bins of the weight a factor of two: 1.1 % apart


def moments_of(statistic: Statistic, options: Options) -> tuple[tuple[int, int], ...]:
    """(power of w, power of y) of the sums that are kept of a statistic.

    With clusters, the sums of a cluster are the unit, and squares within it serve the design effect alone. Without, each pair
    is a unit, and its squares and cubes are summed at once; with equal weights the powers of w do not matter.
    """
    pair_squares = ((1, 1), (1, 2)) if statistic.order == 3 else ((1, 1),)
    if options.clustered:
        return pair_squares
    if not options.weighted:
        return tuple((1, power) for power in range(1, statistic.order + 1))
    squares = (*pair_squares, (2, 1), (2, 2))
    # w^3 y and w^3 y^2 are for CR2's leverages as well, so scores have them too.
    return (*squares, (3, 1), (3, 2), (3, 3)) if statistic.order == 3 else (*squares, (3, 1), (3, 2))


@cache
def unit_sums(options: Options) -> tuple[str, ...]:
    """The names of the columns of `units`, but for the keys and the count."""
    weights = 1 if not options.weighted else 2 if options.clustered else 6
    names = [f"w{power}" for power in range(1, weights + 1)]
    for statistic in options.statistics():
        names += [sum_name(statistic.name, moment) for moment in moments_of(statistic, options)]
    return tuple(names)


def sum_name(statistic: str, moment: tuple[int, int]) -> str:
    return f"{statistic}_w{moment[0]}y{moment[1]}"


@dataclass(frozen=True)
class State:
    """The sums of a set of pairs."""

    units: pa.Table
    bins: pa.Table
    options: Options
    scale: float  # weights are divided by it: a power of two
    shifts: dict[str, float]

    def to_table(self) -> pa.Table:
        """One table, with the constants in its metadata; units are part 0."""
        units = self.units.append_column("part", pa.array(np.zeros(len(self.units), dtype=np.int64)))
        table = pa.concat_tables([units, self.bins], promote_options="default")
        meta = {"version": VERSION, "options": asdict(self.options), "scale": self.scale, "shifts": self.shifts}
        return table.replace_schema_metadata({b"prefloss": json.dumps(meta).encode()})

    @classmethod
    def from_table(cls, table: pa.Table) -> State:
        accepted = "table must be what Evaluation.to_table() gave"
        if not isinstance(table, pa.Table):
            raise TypeError(f"{accepted}, got {table!r:.80} ({type(table).__name__})")
        meta = (table.schema.metadata or {}).get(b"prefloss")
        if meta is None:
            raise ValueError(f"{accepted}, with its metadata; this one has no 'prefloss' in it")
        try:
            read = json.loads(meta)
            version = read["version"]
            options, scale, shifts = (read[name] for name in ("options", "scale", "shifts"))
            options = Options(**options) if version == VERSION else None
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{accepted}, with its metadata; this one's 'prefloss' is {meta!r:.80}") from error
        if options is None:
            raise ValueError(f"table must be of version {VERSION}, got version {version}: evaluate the pairs again")
        keys = ["labelled", *["cluster"] * options.clustered, *["group"] * options.grouped]
        needed = [*keys, "part", "bin", "pairs", *unit_sums(options), *BIN_SUMS]
        missing = [name for name in needed if table.column_names.count(name) != 1]
        if missing:
            raise ValueError(f"{accepted}, with each of its columns once; this one has not: {', '.join(missing)}")
        is_unit = pc.equal(table["part"], 0)
        units = table.filter(is_unit).select([*(key for key in UNIT_KEYS if key in keys), "pairs", *unit_sums(options)])
        bin_keys = [key for key in BIN_KEYS if key in (*keys, "part", "bin")]
        bins = table.filter(pc.invert(is_unit)).select([*bin_keys, "pairs", *BIN_SUMS])
        return cls(units, bins, options, scale, shifts)

    def with_constants(self, scale: float, shifts: dict[str, float]) -> State:
        """The same sums about other constants."""
        if scale == self.scale and shifts == self.shifts:
            return self
        ratio = self.scale / scale
        sums = {name: self.units[name].to_numpy() for name in unit_sums(self.options)}
        changed = dict(sums)
        for statistic in self.options.statistics():
            shift = self.shifts.get(statistic.name, 0.0) - shifts.get(statistic.name, 0.0)
            for a, b in moments_of(statistic, self.options):
                # (y + shift)^b; where weights are equal, sums of w are those of w^2 and w^3 too.
                lower = [sums[f"w{a}"], *(sums.get(sum_name(statistic.name, (a, j))) for j in range(1, b + 1))]
                total = sum(comb(b, j) * shift ** (b - j) * lower[j] for j in range(b + 1)) if shift else lower[b]
                changed[sum_name(statistic.name, (a, b))] = ratio**a * total
        for power in range(1, 7):
            if f"w{power}" in sums:
                changed[f"w{power}"] = ratio**power * sums[f"w{power}"]
        units = _with_columns(self.units, {name: changed[name] for name in unit_sums(self.options)})
        bins = _with_columns(self.bins, {name: ratio * self.bins[name].to_numpy() for name in BIN_SUMS})
        return replace(self, units=units, bins=bins, scale=scale, shifts=shifts)


def merge(states: Sequence[State]) -> State:
    """The sums of all pairs of all states."""
    first = states[0]
    for state in states[1:]:
        if state.options != first.options:
            names = [name for name, value in asdict(first.options).items() if asdict(state.options)[name] != value]
            raise ValueError(
                "evaluations can be added where they were made with the same options; these differ in "
                + ", ".join(
                    f"{name} ({getattr(first.options, name)!r} and {getattr(state.options, name)!r})" for name in names
                )
            )
    states = [state for state in states if len(state.units)] or [first]  # labels of no pairs are of no kind
    for key in ("cluster", "group"):
        if key in first.units.column_names and len({state.units[key].type for state in states}) > 1:
            raise ValueError(f"evaluations can be added where {key} is of one kind, got integers and strings")
    if len(states) == 1:
        return states[0]
    scale = max(state.scale for state in states)
    # The shift of the most pairs, so that a small shard of odd pairs does not decide.
    shifts = max(states, key=lambda state: pc.sum(state.units["pairs"]).as_py()).shifts
    states = [state.with_constants(scale, shifts) for state in states]
    units, bins = ([getattr(state, part) for state in states] for part in ("units", "bins"))
    return replace(states[0], units=add_rows(pa.concat_tables(units)), bins=add_rows(pa.concat_tables(bins)))


def add_rows(table: pa.Table) -> pa.Table:
    """One row for each combination of keys."""
    keys = [name for name in table.column_names if name in (*UNIT_KEYS, *BIN_KEYS)]
    numbered = [number(column(table, key)) for key in keys]
    codes, found = number_rows([(codes, len(values)) for codes, values in numbered], len(table))
    count = len(found[0]) if found else 0
    if count == len(table):
        return table
    names = [name for name in table.column_names if name not in keys and name != "pairs"]
    columns = {key: values.take(pa.array(code)) for key, (_, values), code in zip(keys, numbered, found, strict=True)}
    columns["pairs"] = pa.array(np.bincount(codes, table["pairs"].to_numpy(), count).astype(np.int64))
    adding = indicator(codes, count)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        added = adding @ np.column_stack([table[name].to_numpy() for name in some])
        columns |= {name: pa.array(added[:, place].copy()) for place, name in enumerate(some)}
    return pa.table(columns, schema=table.schema)


def column(table: pa.Table, name: str) -> pa.Array:
    """The column in one piece."""
    whole = table[name].combine_chunks()
    return cast(pa.Array, whole.chunk(0) if isinstance(whole, pa.ChunkedArray) else whole)


def _with_columns(table: pa.Table, columns: dict[str, Any]) -> pa.Table:
    """The table with other values in some of its columns."""
    return pa.table({name: columns.get(name, table[name]) for name in table.column_names}, schema=table.schema)
