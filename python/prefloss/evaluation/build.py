"""From columns of pairs to the sums of a `State`: blocks of pairs on all cores, added in their order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from .keys import Codes, indicator, number, number_rows
from .state import BIN_KEYS, DISTANCE, UNIT_KEYS, WEIGHT, WEIGHT_STEPS, Float64Array, State, moments_of, unit_sums
from .statistics import BIN_SUMS, CHUNK, EDGES, Options, Pairs, bins_of, shifts_of

# Pairs that a thread computes at a time, at least: 20 columns of them are 10 MiB. What malloc gives back to the system, from
# 32 MiB on, takes long to get again.
BLOCK = 2**16
LOG2_SAFE = 40  # weights within 2^-40 and 2^40 are taken as they are: their sixth powers are numbers


def state_of(pairs: Pairs, clusters: pa.Array | None, groups: pa.Array | None, options: Options) -> State:
    """The sums of checked pairs."""
    keep = None if pairs.weight is None else np.flatnonzero(pairs.weight)
    if keep is not None and len(keep) < len(pairs):  # a weight of 0 counts nothing, whatever the rewards are
        pairs = pairs.part(keep)
        clusters, groups = (None if labels is None else labels.take(pa.array(keep)) for labels in (clusters, groups))
    scale = 1.0
    if pairs.weight is not None and len(pairs):
        exponent = math.frexp(float(pairs.weight.max()))[1]
        scale = math.ldexp(1.0, exponent) if abs(exponent) > LOG2_SAFE else 1.0
    rows = _Rows.of(pairs, clusters, groups)
    shifts = shifts_of(pairs, options)
    sums, bins = _added(pairs, rows, options, scale, shifts)
    units = {**rows.keys(UNIT_KEYS), "pairs": pa.array(np.bincount(rows.codes, minlength=rows.count))}
    units |= {name: pa.array(sums[:, place].copy()) for place, name in enumerate(unit_sums(options))}
    return State(pa.table(units), rows.bins(bins, pairs, scale), options, scale, shifts)


class _Rows:
    """Which row of each table a pair belongs to."""

    def __init__(self, numbered: dict[str, tuple[Codes, pa.Array]], pairs: int) -> None:
        self.numbered, self.pairs = numbered, pairs
        self.codes, self.found = self._number(UNIT_KEYS)
        self.count = int(self.codes.max()) + 1 if pairs else 0
        self.bin_codes, self.bin_found = self._number(BIN_KEYS)
        self.bin_count = int(self.bin_codes.max()) + 1 if pairs else 0

    @classmethod
    def of(cls, pairs: Pairs, clusters: pa.Array | None, groups: pa.Array | None) -> _Rows:
        numbered = {
            key: number(labels) for key, labels in (("cluster", clusters), ("group", groups)) if labels is not None
        }
        numbered["labelled"] = number(pa.array(pairs.labelled()))
        return cls(numbered, len(pairs))

    def _number(self, keys: tuple[str, ...]) -> tuple[Codes, dict[str, Codes]]:
        names = [key for key in self.numbered if key in keys]
        columns = [(self.numbered[name][0], len(self.numbered[name][1])) for name in names]
        codes, found = number_rows(columns, self.pairs)
        return codes, dict(zip(names, found, strict=True))

    def keys(self, names: tuple[str, ...]) -> dict[str, pa.Array]:
        """The labels of the rows of `units`."""
        return {key: self.numbered[key][1].take(pa.array(code)) for key, code in self.found.items() if key in names}

    def bins(self, sums: Float64Array, pairs: Pairs, scale: float) -> pa.Table:
        """The table of bins: those of |z|, from their sums, and those of the weights."""
        row, place = np.divmod(np.arange(len(sums)), len(EDGES))
        kinds = [(row, np.full(len(sums), DISTANCE), place, sums)]
        if pairs.weight is not None:
            step = np.floor(WEIGHT_STEPS * np.log2(pairs.weight)).astype(np.int64)
            low, span = (int(step.min()), int(np.ptp(step)) + 1) if len(step) else (0, 1)
            codes, found = number_rows([(self.bin_codes, self.bin_count), (step - low, span)], len(step))
            of_weight = np.zeros((len(found[0]), 1 + len(BIN_SUMS)))
            of_weight[:, 0] = np.bincount(codes, minlength=len(of_weight))
            of_weight[:, 1] = np.bincount(codes, pairs.weight / scale, len(of_weight))
            kinds.append((found[0], np.full(len(of_weight), WEIGHT), found[1] + low, of_weight))
        row, part, place, sums = (np.concatenate(columns) for columns in zip(*kinds, strict=True))
        used = sums[:, 0] > 0
        row, part, place, sums = row[used], part[used], place[used], sums[used]
        columns = {key: self.numbered[key][1].take(pa.array(code[row])) for key, code in self.bin_found.items()}
        columns |= {"part": pa.array(part), "bin": pa.array(place), "pairs": pa.array(sums[:, 0].astype(np.int64))}
        return pa.table({**columns, **{name: pa.array(sums[:, 1 + k].copy()) for k, name in enumerate(BIN_SUMS)}})


class _BlockSums(NamedTuple):
    """Of the rows of `units` from the first to the last that the block has pairs of, and of all bins."""

    first: int
    units: Float64Array
    bins: Float64Array


def _added(
    pairs: Pairs, rows: _Rows, options: Options, scale: float, shifts: dict[str, float]
) -> tuple[Float64Array, Float64Array]:
    """The sums of each row of `units`, and (pairs, *BIN_SUMS) of each bin of each row of `bins`."""
    units, bins = (
        np.zeros((rows.count, len(unit_sums(options)))),
        np.zeros((rows.bin_count * len(EDGES), 1 + len(BIN_SUMS))),
    )
    # A block costs an addition of all bins, and of all rows where clusters lie in no order: let it have as many pairs. Adding those
    # rows alone that it has takes 170 ns a row, and all of them 7 ns.
    size = max(BLOCK, min(rows.count, 2**20), len(bins))

    def block_sums(start: int) -> _BlockSums:
        block = slice(start, min(start + size, len(pairs)))
        return _block(pairs, block, rows, options, scale, shifts)

    starts = range(0, len(pairs), size)
    for first, unit_part, bin_part in _in_order(block_sums, starts) if len(starts) > 1 else map(block_sums, starts):
        units[first : first + len(unit_part)] += unit_part
        bins += bin_part
    return units, bins


def _in_order(work: Callable[[int], _BlockSums], starts: Iterable[int]) -> Iterator[_BlockSums]:
    """The results in the order of `starts`, of which as many are computed ahead as torch has threads."""
    threads = torch.get_num_threads()
    waiting: deque[Future[_BlockSums]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for start in starts:
            waiting.append(pool.submit(work, start))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@np.errstate(all="ignore")  # infinite and NaN rewards give infinite and NaN sums
def _block(
    pairs: Pairs, block: slice, rows: _Rows, options: Options, scale: float, shifts: dict[str, float]
) -> _BlockSums:
    columns, one_row = len(unit_sums(options)), rows.count == 1
    # With rows to tell apart, the columns of all pairs of the block are needed at once; else their sums are.
    table = np.empty((0 if one_row else block.stop - block.start, columns))
    total, bin_total = np.zeros(columns), np.zeros((rows.bin_count * len(EDGES), 1 + len(BIN_SUMS)))
    buffer = np.empty((columns, CHUNK))
    for start in range(block.start, block.stop, CHUNK):
        chunk = slice(start, min(start + CHUNK, block.stop))
        part, size = pairs.part(chunk), chunk.stop - chunk.start
        weights = _powers(
            None if part.weight is None else np.divide(part.weight, scale, dtype=np.float64), size, options
        )
        unlabelled = np.flatnonzero(~part.labelled()) if options.judge else np.zeros(0, dtype=np.int64)
        values = part.statistics(options)
        products = _products(values, weights, unlabelled, options, shifts)
        if one_row:
            total += [value.sum() if weight is None else weight @ value for weight, value in products]
        else:
            for place, (weight, value) in enumerate(products):
                np.multiply(value, 1.0 if weight is None else weight, out=buffer[place, :size])
            table[start - block.start : chunk.stop - block.start] = buffer[:, :size].T
        (_, distance), (_, won) = values
        bins = rows.bin_codes[chunk] * len(EDGES) + bins_of(distance)
        keep = part.labelled() if len(unlabelled) else slice(None)
        weight = None if part.weight is None else weights[1][keep]
        _add_bins(bin_total, bins[keep], weight, distance[keep], won[keep])
    if one_row:
        return _BlockSums(0, total[None], bin_total)
    codes = rows.codes[block]
    first = int(codes.min())
    return _BlockSums(first, indicator(codes - first, int(codes.max()) + 1 - first) @ table, bin_total)


@cache
def _moments(options: Options) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Of each statistic."""
    return tuple(moments_of(statistic, options) for statistic in options.statistics())


def _powers(weight: Float64Array | None, size: int, options: Options) -> list[Float64Array]:
    """w^0, w^1, ...: as many as there are sums of."""
    powers = [np.ones(size)]
    while f"w{len(powers)}" in unit_sums(options):
        powers.append(powers[0] if weight is None else powers[-1] * weight)
    return powers


def _products(
    values: Iterator[tuple[str, Float64Array]],
    weights: list[Float64Array],
    unlabelled: NDArray[np.int64],
    options: Options,
    shifts: dict[str, float],
) -> Iterator[tuple[Float64Array | None, Float64Array]]:
    """For each column of `unit_sums` two factors, the first of which is None where it is 1."""
    for power in range(1, len(weights)):
        yield None, weights[power]
    for moments in _moments(options):
        name, value = next(values)
        value = value - shifts[name] if shifts.get(name) else value
        if len(unlabelled) and name != "judged":
            value = value.copy()
            value[unlabelled] = 0.0
        square = value * value
        for a, b in moments:
            if b == 3 and a == 1:
                yield square, value
            elif b == 3:
                yield weights[a], square * value
            else:
                yield weights[a] if options.weighted else None, square if b == 2 else value


def _add_bins(
    total: Float64Array,
    place: NDArray[np.int64],
    weight: Float64Array | None,
    distance: Float64Array,
    won: Float64Array,
) -> None:
    """Adds pairs, and the columns of `BIN_SUMS`."""
    counts = np.bincount(place, minlength=len(total))
    total[:, 0] += counts
    total[:, 1] += counts if weight is None else np.bincount(place, weight, len(total))
    moment = distance if weight is None else weight * distance
    for power in (2, 3, 4):
        total[:, power] += np.bincount(place, moment, len(total))
        moment = moment * distance
    total[:, 5] += np.bincount(place, won if weight is None else weight * won, len(total))
