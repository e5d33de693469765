"""The parts of torch that it does not document, all of them: what is watching a call, and how a tensor is read."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import _core

_functorch_depth = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def _libtorch_cpu() -> str:
    folder = Path(torch.__file__).parent / "lib"
    return str(next(path for path in folder.iterdir() if path.name.split(".")[0] in ("libtorch_cpu", "torch_cpu")))


_core.load_torch(_libtorch_cpu())

# Eager calls read tensors through DLPack, where torch has its C exchange API (2.10 and later); else they go through the operators.
if hasattr(Tensor, "__dlpack_c_exchange_api__"):
    _core.set_torch(Tensor, Parameter, Tensor.__dlpack_c_exchange_api__)


def in_transform() -> bool:
    """Whether tensors may carry more than values: a `torch.func` transform, batched autograd, or forward-mode tangents."""
    return bool(_functorch_depth()) or forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a transform or a dispatch mode (fake tensors, make_fx, a logger) must see every operation."""
    return bool(_functorch_depth()) or _dispatch_modes() > 0 or forward_ad._current_level >= 0
