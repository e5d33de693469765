"""What `evaluate` accepts as a column: tensors, arrays, Arrow and pandas columns, lists. Checked here, and only here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ..numpy_arrays import check_no_mask

FloatArray: TypeAlias = NDArray[np.floating[Any]]
Column: TypeAlias = Any  # torch.Tensor, numpy.ndarray, pyarrow array, pandas or polars series, list or tuple


def numbers(name: str, column: Column, count: int | None = None, *, missing: bool = False) -> FloatArray:
    """(P,) float64 or float32, on the CPU. `missing`: whether NaN and null may stand for "not known"."""
    values = _as_numpy(name, column, missing)
    if values.ndim != 1:
        raise ValueError(f"{name} must have one entry a pair, shape (P,), got shape {values.shape}")
    if count is not None and len(values) != count:
        raise ValueError(f"{name} must have one entry a pair, {count} as chosen has, got {len(values)}")
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {values.dtype}")
    return values if values.dtype in (np.float64, np.float32) else values.astype(np.float64)


def of_pairs_that_count(which: NDArray[np.bool_], weight: FloatArray | None) -> NDArray[np.bool_]:
    """Those of `which` whose weight is not 0."""
    return which if weight is None else which & (weight != 0)


def between(
    name: str,
    values: FloatArray,
    low: float,
    high: float,
    accepted: str,
    weight: FloatArray | None = None,
    *,
    missing: bool = False,
) -> None:
    """Raise where an entry of a pair that counts lies outside [low, high], or is NaN and not allowed to be."""
    if not len(values) or (values.min() >= low and values.max() <= high and not np.isinf(values).any()):
        return
    wrong = ~((values >= low) & (values <= high) & ~np.isinf(values))
    if missing:
        wrong &= ~np.isnan(values)
    wrong = of_pairs_that_count(wrong, weight)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(f"{name} must be {accepted}, got {values[place]} for pair {place} (counted from 0)")


def check_size(name: str, values: FloatArray, greatest: float, weight: FloatArray | None) -> None:
    """Raise where a finite entry of a pair that counts lies beyond `greatest`."""
    if not len(values) or float(np.finfo(values.dtype).max) <= greatest:
        return
    if values.min() >= -greatest and values.max() <= greatest:
        return
    wrong = of_pairs_that_count((np.abs(values) > greatest) & np.isfinite(values), weight)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"{name} must be from {-greatest:g} to {greatest:g} where it is finite, so that cubes of it, and of beta times "
            f"it, can be added up; got {values[place]} for pair {place} (counted from 0)"
        )


def labels(name: str, column: Column, count: int) -> pa.Array:
    """(P,) int64 or string labels without nulls."""
    if isinstance(column, torch.Tensor):
        column = column.detach().cpu().resolve_neg().numpy()
    if not _is_column(column):
        raise TypeError(f"{name} must be a tensor, an array, an Arrow or pandas column, or a list, got {column!r:.80}")
    try:
        array = _as_arrow(column)
    except OverflowError as error:
        raise ValueError(f"{name} must hold integers of at most 64 bits with a sign, got {column!r:.80}") from error
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise TypeError(f"{name} must hold integers or strings, all of one kind, got {column!r:.80}") from error
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if len(array) != count:
        raise ValueError(f"{name} must have one label a pair, {count} as chosen has, got {len(array)}")
    if pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        kind = pa.int64()
    elif pa.types.is_string(array.type) or pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        kind = pa.large_string()  # a string column of more than 2 GB needs 64-bit offsets
    elif pa.types.is_null(array.type) and not count:
        kind = pa.int64()
    else:
        raise TypeError(f"{name} must hold integers or strings, got {array.type}")
    if array.null_count:
        place = pc.index(array.is_null(), pa.scalar(True)).as_py()
        raise ValueError(f"{name} must have a label for each pair, got none for pair {place} (counted from 0)")
    try:
        return array.cast(kind)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} must hold integers of at most 64 bits with a sign: {error}") from error


def _is_column(column: Column) -> bool:
    """Whether its entries have an order, and are not characters."""
    if isinstance(column, Sequence):
        return not isinstance(column, str | bytes | bytearray)
    return _knows_arrow(column) or hasattr(column, "__array__")


def _knows_arrow(column: Column) -> bool:
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return True
    return hasattr(column, "__arrow_c_stream__") or hasattr(column, "__arrow_array__")


def _as_arrow(column: Column) -> pa.Array:
    if isinstance(column, np.ndarray) and column.ndim != 1:
        raise TypeError(f"shape {column.shape}")
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        if isinstance(column, np.ndarray) and column.dtype.kind == "U":
            column = column.tolist()  # Arrow would end each string at its first NUL
        column = pa.chunked_array(column) if hasattr(column, "__arrow_c_stream__") else pa.array(column)
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column


def _as_numpy(name: str, column: Column, missing: bool) -> NDArray[Any]:
    if isinstance(column, torch.Tensor):
        tensor = column.detach().cpu()
        if tensor.layout is not torch.strided or tensor.is_complex():
            raise TypeError(f"{name} must be a dense tensor of real numbers, got {tensor.layout}, {tensor.dtype}")
        if tensor.is_floating_point() and tensor.dtype not in (torch.float64, torch.float32):
            tensor = tensor.float()  # exact: each half-precision number is a float32
        return tensor.resolve_neg().numpy()
    check_no_mask(name, column)
    if _knows_arrow(getattr(column, "array", None)):  # an index of pandas
        column = column.array
    if _knows_arrow(column):  # NumPy would read its nulls as NaN
        array = _as_arrow(column)
        if array.null_count and not missing:
            place = pc.index(array.is_null(), pa.scalar(True)).as_py()
            raise ValueError(f"{name} must have a number for each pair, got null for pair {place} (counted from 0)")
        if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
            raise TypeError(f"{name} must hold real numbers, got {array.type}")
        if array.null_count:
            array = array.cast(pa.float64()).fill_null(float("nan"))
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if not _is_column(column):
        raise TypeError(f"{name} must be a tensor, an array, an Arrow or pandas column, or a list, got {column!r:.80}")
    try:
        values = np.asarray(column)
    except ValueError as error:
        raise ValueError(f"{name} must have one entry a pair, shape (P,): {error}") from error
    return np.zeros(0) if values.ndim and not len(values) else values
