"""NumPy arrays as tensors, for functions whose users have no torch: of the same memory wherever it can be read as it lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def as_tensor(name: str, value: object) -> Any:
    """Of an array, a tensor or None. TypeError for all else, for arrays with a mask, and for those that torch has no dtype for."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be a NumPy array or a torch.Tensor, got {value!r:.80} ({type(value).__name__})")
    check_no_mask(name, value)
    if value.dtype.kind not in "fiub" or value.dtype.itemsize > 8:
        raise TypeError(f"{name} must hold real numbers of at most 64 bits, got an array of dtype {value.dtype}")
    native = value.dtype.newbyteorder("=")
    # torch warns of memory that must not be written, and takes none that is read backwards: those are copied.
    return torch.from_numpy(np.require(value, native, ("C", "ALIGNED", "WRITEABLE", "ENSUREARRAY")))


def check_no_mask(name: str, value: object) -> None:
    """What lies under a mask would count: all that reads an array as plain memory does not see the mask."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array without a mask, got a masked one; leave its masked entries out")
