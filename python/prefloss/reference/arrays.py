"""What the formula asks of an array library: NumPy, torch, JAX and CuPy, by the array API standard, and what that lacks.

The types are decided here. A difference of rewards is taken in float32 (float64 for float64 rewards), as kernels do it. NumPy and
CuPy then go on in float64: theirs are the results that others are held against. torch and JAX stay in the type of the difference,
in which a training step computes, and only add up in float64 where they have it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj, is_jax_array, is_numpy_array, is_torch_array

Array: TypeAlias = Any  # of NumPy, torch, JAX or CuPy
ArrayLike: TypeAlias = Any  # or numbers and sequences of them, which become NumPy's


def namespace_of(*values: ArrayLike) -> Any:
    """The functions of the library whose arrays these are; NumPy's where all are numbers or sequences."""
    arrays = [value for value in values if is_array_api_obj(value)]
    return array_namespace(
        *arrays or [np.empty(0)]
    )  # which imports all of NumPy, and so nothing of it before it is needed


def as_array(xp: Any, value: ArrayLike) -> Array:
    return value if is_array_api_obj(value) else xp.asarray(value)


def beside(value: ArrayLike, other: Array, dtype: Any = None) -> Array:
    """`value` as an array of the library, the device and (where no other is named) the dtype of another one."""
    xp = array_namespace(other)
    dtype = other.dtype if dtype is None else dtype
    if is_array_api_obj(value) and is_numpy_array(value) == is_numpy_array(other):
        return xp.astype(value, dtype, copy=False)
    return xp.asarray(value, dtype=dtype, **({"device": other.device} if is_torch_array(other) else {}))


def difference_dtype(array: Array) -> Any:
    """float32 for floating-point numbers of at most so many bits, float64 for longer ones; for integers the widest type."""
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating"):
        return _widest(array)
    return xp.float32 if xp.finfo(array.dtype).bits <= 32 else xp.float64


def formula_dtype(array: Array) -> Any:
    """The type of z and of all that follows from it."""
    xp = array_namespace(array)
    return difference_dtype(array) if is_torch_array(array) or is_jax_array(array) else xp.float64


def sum_dtype(array: Array) -> Any:
    xp = array_namespace(array)
    return xp.float64 if formula_dtype(array) == xp.float64 else _widest(array)


def _widest(array: Array) -> Any:
    """float64 where there is certainly one: not on Apple's GPUs, not on all of Intel's, and in JAX only if it is asked for."""
    xp = array_namespace(array)
    if is_torch_array(array) and array.device.type not in ("cpu", "cuda"):
        return xp.float32
    if is_jax_array(array):
        return xp.__array_namespace_info__().dtypes().get("float64", xp.float32)
    return xp.float64


def total(values: Array, **options: Any) -> Array:
    """Their sum, added up in the widest type there is."""
    return array_namespace(values).sum(values, dtype=sum_dtype(values), **options)


def total_by_index(index: Array, values: Array, count: int) -> Array:
    """(count,): at each place the sum of the values whose index it is. The standard has no such function."""
    xp = array_namespace(values)
    if is_torch_array(values):
        return values.new_zeros(count).index_add(0, index, values)
    sums = xp.zeros(count, dtype=values.dtype)
    if is_jax_array(values):
        return sums.at[index].add(values)
    xp.add.at(sums, index, values)
    return sums


def is_known_to_hold(condition: Array) -> bool:
    """False also while JAX traces, when nothing has a value yet."""
    try:
        return bool(condition)
    except TypeError:
        return False
