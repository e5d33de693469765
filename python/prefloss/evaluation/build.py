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

from .. import _core
from .keys import Codes, indicator, number, number_rows
from .state import BIN_KEYS, DISTANCE, UNIT_KEYS, WEIGHT, WEIGHT_STEPS, Float64Array, State, moments_of, unit_sums
from .statistics import BIN_OF, BIN_SUMS, EDGES, Options, Pairs, shifts_of

BLOCK = 2**16  # pairs that a thread adds up at a time, at least
MANY_ROWS = 2**12  # of more rows the sums no longer stay in the cache
LOG2_SAFE = 40  # weights whose greatest is 2^-40 to 2^41 are taken as they are: their sixth powers are numbers


def state_of(pairs: Pairs, clusters: pa.Array | None, groups: pa.Array | None, options: Options) -> State:
    """The sums of checked pairs."""
    keep = None if pairs.weight is None else np.flatnonzero(pairs.weight)
    if keep is not None and len(keep) < len(pairs):  # a weight of 0 counts nothing, whatever the rewards are
        pairs = pairs.part(keep)
        clusters, groups = (None if labels is None else labels.take(pa.array(keep)) for labels in (clusters, groups))
    scale = 1.0
    if pairs.weight is not None and len(pairs):
        exponent = math.frexp(float(pairs.weight.max()))[1] - 1
        scale = math.ldexp(1.0, exponent) if abs(exponent) > LOG2_SAFE else 1.0
    rows = _Rows.of(pairs, clusters, groups)
    shifts = shifts_of(pairs, options)
    sums, bins = _added(pairs, rows, options, scale, shifts)
    units = {**rows.keys(UNIT_KEYS), "pairs": pa.array(np.bincount(rows.codes, minlength=rows.count))}
    units |= {name: pa.array(sums[place]) for place, name in enumerate(unit_sums(options))}
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
        labelled = pairs.labelled()
        all_are = len(pairs) > 0 and bool(labelled.all())
        numbered["labelled"] = (
            (np.zeros(len(pairs), dtype=np.int64), pa.array([True])) if all_are else number(pa.array(labelled))
        )
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
    """(columns, rows) of `units`, from the first to the last row that the block has pairs of; and all bins."""

    first: int
    units: Float64Array
    bins: Float64Array


def _added(
    pairs: Pairs, rows: _Rows, options: Options, scale: float, shifts: dict[str, float]
) -> tuple[Float64Array, Float64Array]:
    """The columns of `units`, and (pairs, *BIN_SUMS) of each bin of each row of `bins`."""
    units, bins = (
        np.zeros((len(unit_sums(options)), rows.count)),
        np.zeros((rows.bin_count * len(EDGES), 1 + len(BIN_SUMS))),
    )
    codes, bin_codes = rows.codes, rows.bin_codes
    if rows.count > MANY_ROWS and (codes[1:] < codes[:-1]).any():
        # In the order of the rows a block has few of them: its sums stay in the cache, and are few to add.
        order = indicator(codes, rows.count).tocsr().indices
        pairs, codes, bin_codes = pairs.part(order), codes[order], bin_codes[order]
    size = max(BLOCK, len(bins))  # a block costs an addition of all bins

    def block_sums(start: int) -> _BlockSums:
        block = slice(start, min(start + size, len(pairs)))
        its_codes = codes[block] if rows.count > 1 else None
        its_bin_codes = bin_codes[block] if rows.bin_count > 1 else None
        return _block(pairs.part(block), its_codes, its_bin_codes, bins.shape, options, scale, shifts)

    starts = range(0, len(pairs), size)
    for first, unit_part, bin_part in _in_order(block_sums, starts) if len(starts) > 1 else map(block_sums, starts):
        units[:, first : first + unit_part.shape[1]] += unit_part
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


def _block(
    pairs: Pairs,
    codes: Codes | None,
    bin_codes: Codes | None,
    bins_shape: tuple[int, ...],
    options: Options,
    scale: float,
    shifts: dict[str, float],
) -> _BlockSums:
    first, last = (0, 0) if codes is None else (int(codes.min()), int(codes.max()))
    units = torch.zeros(len(unit_sums(options)), last + 1 - first, dtype=torch.float64, device="cpu")
    bins = torch.zeros(bins_shape, dtype=torch.float64, device="cpu")
    constants = [shifts.get(statistic.name, 0.0) for statistic in options.statistics()]
    _core.add_statistics(
        *pairs.for_kernel(options),
        _moments(options),
        torch.tensor(constants, dtype=torch.float64, device="cpu"),
        scale,
        BIN_OF,
        None if codes is None else torch.from_numpy(codes - first),
        None if bin_codes is None else torch.from_numpy(bin_codes),
        units,
        bins,
    )
    return _BlockSums(first, units.numpy(), bins.numpy())


@cache
def _moments(options: Options) -> torch.Tensor:
    """(columns, 3): for each of `unit_sums` the place of its statistic (-1: none), the power of the weight, and its own power."""
    weights = sum(name in unit_sums(options) for name in (f"w{power}" for power in range(1, 7)))
    moments = [(-1, power, 0) for power in range(1, weights + 1)]
    for place, statistic in enumerate(options.statistics()):
        moments += [(place, *moment) for moment in moments_of(statistic, options)]
    return torch.tensor(moments, device="cpu")
