"""What the formula asks of an array library: NumPy, torch, JAX and CuPy, by the array API standard, and what that lacks.

The types are decided here. A difference of rewards is taken in float32 (float64 for float64 rewards), as kernels do it. NumPy and
CuPy then go on in float64: theirs are the results that others are held against. torch and JAX stay in the type of the difference,
in which a training step computes, and only add up in float64 where they have it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeAlias, TypeVar

import array_api_compat
import numpy as np

Array: TypeAlias = Any  # of NumPy, torch, JAX or CuPy
ArrayLike: TypeAlias = Any  # or numbers and sequences of them, which become NumPy's
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


# array-api-compat caches what it finds out of a type, and torch.compile warns of caches: so neither torch's tensors
# nor NumPy's arrays come to it.
def is_torch_array(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def is_jax_array(value: object) -> bool:
    return not is_torch_array(value) and array_api_compat.is_jax_array(value)


def is_numpy_array(value: object) -> bool:
    return isinstance(value, (np.ndarray, np.generic))


def is_array(value: object) -> bool:
    """Of any library; numbers and sequences are none, but NumPy's own numbers are."""
    if type(value) in (type(None), bool, int, float, list, tuple):
        return False
    return is_torch_array(value) or is_numpy_array(value) or array_api_compat.is_array_api_obj(value)


def array_namespace(*arrays: Array) -> Any:
    """The functions of the library of these arrays. TypeError where they are of several."""
    if all(is_torch_array(array) for array in arrays):
        from array_api_compat import torch as functions  # imports torch, of which arrays of others have no need

        return functions
    return array_api_compat.array_namespace(*arrays)


def without_warnings(function: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """A function during which NumPy does not warn of infinities and NaN.

    Other libraries do not warn, and torch.compile cannot trace what tells NumPy not to.
    """

    @wraps(function)
    def quiet(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        if any(is_torch_array(value) for value in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        with np.errstate(all="ignore"):
            return function(*args, **kwargs)

    return quiet


def namespace_of(*values: ArrayLike) -> Any:
    """The functions of the library whose arrays these are; NumPy's where all are numbers or sequences."""
    arrays = [value for value in values if is_array(value)]
    return array_namespace(
        *arrays or [np.empty(0)]
    )  # which imports all of NumPy, and so nothing of it before it is needed


def as_array(xp: Any, value: ArrayLike) -> Array:
    return value if is_array(value) else xp.asarray(value)


def beside(value: ArrayLike, other: Array, dtype: Any = None) -> Array:
    """`value` as an array of the library, the device and (where no other is named) the dtype of another one."""
    xp = array_namespace(other)
    dtype = other.dtype if dtype is None else dtype
    if is_array(value) and is_numpy_array(value) == is_numpy_array(other):
        return xp.astype(value, dtype, copy=False)
    return xp.asarray(value, dtype=dtype, **({"device": other.device} if is_torch_array(other) else {}))


def identity(size: int, other: Array) -> Array:
    """(size, size): whether the row is the column, of the library and the device of another array."""
    xp = array_namespace(other)
    return xp.eye(size, dtype=xp.bool, **({"device": other.device} if is_torch_array(other) else {}))


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
    if is_torch_array(array):
        return xp.float64 if array.device.type in ("cpu", "cuda") else xp.float32
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
