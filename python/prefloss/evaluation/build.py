"""From columns of pairs to the sums of a `State`: blocks of pairs on all cores, added in their order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from .keys import Codes, indicator, number, number_rows
from .state import BIN_KEYS, DISTANCE, UNIT_KEYS, WEIGHT, WEIGHT_STEPS, Float64Array, State, moments_of, unit_sums
from .statistics import BIN_SUMS, CHUNK, EDGES, Options, Pairs, bins_of, shifts_of

BLOCK = 2**18  # pairs: what a thread computes at a time
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


def _added(
    pairs: Pairs, rows: _Rows, options: Options, scale: float, shifts: dict[str, float]
) -> tuple[Float64Array, Float64Array]:
    """The sums of each row of `units`, and (pairs, *BIN_SUMS) of each bin of each row of `bins`."""
    units, bins = (
        np.zeros((rows.count, len(unit_sums(options)))),
        np.zeros((rows.bin_count * len(EDGES), 1 + len(BIN_SUMS))),
    )
    size = max(BLOCK, rows.count // 4, len(bins))  # a block costs an addition of all rows: let it have pairs enough

    def block_sums(start: int) -> tuple[Float64Array, Float64Array]:
        block = slice(start, min(start + size, len(pairs)))
        return _block(pairs, block, rows, options, scale, shifts)

    for unit_part, bin_part in _in_order(block_sums, range(0, len(pairs), size)):
        units += unit_part
        bins += bin_part
    return units, bins


def _in_order(
    work: Callable[[int], tuple[Float64Array, Float64Array]], starts: Iterable[int]
) -> Iterator[tuple[Float64Array, Float64Array]]:
    """The results in the order of `starts`, of which as many are computed ahead as torch has threads."""
    threads = torch.get_num_threads()
    waiting: deque[Future[tuple[Float64Array, Float64Array]]] = deque()
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
) -> tuple[Float64Array, Float64Array]:
    columns, one_row = len(unit_sums(options)), rows.count == 1
    # With rows to tell apart, the columns of all pairs of the block are needed at once; else their sums are.
    table = np.zeros((0 if one_row else block.stop - block.start, columns))
    total, bin_total = np.zeros(columns), np.zeros((rows.bin_count * len(EDGES), 1 + len(BIN_SUMS)))
    for start in range(block.start, block.stop, CHUNK):
        chunk = slice(start, min(start + CHUNK, block.stop))
        inside = slice(chunk.start - block.start, chunk.stop - block.start)
        for place, values in enumerate(_columns(pairs.part(chunk), chunk, rows, options, scale, shifts, bin_total)):
            if one_row:
                total[place] += values.sum()
            else:
                table[inside, place] = values
    if one_row:
        return total[None], bin_total
    return indicator(rows.codes[block], rows.count) @ table, bin_total


def _columns(
    pairs: Pairs,
    chunk: slice,
    rows: _Rows,
    options: Options,
    scale: float,
    shifts: dict[str, float],
    bin_total: Float64Array,
) -> Iterator[Float64Array]:
    """The columns of `unit_sums` for each pair of a chunk, in that order. The bins are added to `bin_total`."""
    weight: Float64Array = np.ones(len(pairs)) if pairs.weight is None else np.asarray(pairs.weight / scale, np.float64)
    powers = [weight]
    for _ in range(sum(name in unit_sums(options) for name in ("w2", "w3", "w4", "w5", "w6"))):
        powers.append(powers[-1] * weight)
    yield from powers
    unlabelled = np.flatnonzero(~pairs.labelled()) if options.judge else None
    values = pairs.statistics(options)
    for statistic in options.statistics():
        name, value = next(values)
        value = value - shifts[name] if shifts.get(name) else value
        if unlabelled is not None and name != "judged":
            value = value.copy()
            value[unlabelled] = 0.0
        known: dict[tuple[int, int], Float64Array] = {(1, 0): weight}
        for a, b in moments_of(statistic, options):
            if (a, b - 1) in known:
                known[a, b] = known[a, b - 1] * value if options.weighted or b > 1 else value
            else:
                known[a, b] = known[a - 1, b] * weight
            yield known[a, b]
    distance, won = (values_of for _, values_of in values)
    place = bins_of(distance)
    keep = slice(None) if unlabelled is None else pairs.labelled()
    _add_bins(bin_total, (rows.bin_codes[chunk] * len(EDGES) + place)[keep], weight[keep], distance[keep], won[keep])


def _add_bins(
    total: Float64Array, place: NDArray[np.int64], weight: Float64Array, distance: Float64Array, won: Float64Array
) -> None:
    total[:, 0] += np.bincount(place, minlength=len(total))
    value = weight
    for power in range(4):
        total[:, 1 + power] += np.bincount(place, value, len(total))
        value = value * distance
    total[:, 5] += np.bincount(place, weight * won, len(total))
