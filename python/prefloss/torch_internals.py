"""The private parts of torch that prefloss asks, all of them: what kind of tensor this is, and what is watching the call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from . import _core

_dispatch_keys = torch._C._dispatch_keys
_functorch_depth = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def _plain_keys() -> frozenset[int]:
    with torch.inference_mode():
        inference = torch.empty(0, device="cpu")
    return frozenset(_dispatch_keys(tensor).raw_repr() for tensor in (torch.empty(0, device="cpu"), inference))


_PLAIN_TYPES = (Tensor, Parameter)
_PLAIN_KEYS = _plain_keys()


def is_plain(tensor: Tensor) -> bool:
    """Whether `tensor` is certainly a dense tensor in this machine's memory, whose address may be taken.

    The type alone does not tell: negative-bit and conjugate views, nested, sparse, zero and meta tensors and functorch's
    wrappers are `torch.Tensor` too. Their dispatch keys differ from a plain tensor's; so does a fake tensor's.
    """
    return type(tensor) in _PLAIN_TYPES and _dispatch_keys(tensor).raw_repr() in _PLAIN_KEYS


# The short way of the default call reads tensors through DLPack, where torch has its C exchange API (2.10 and later).
if hasattr(Tensor, "__dlpack_c_exchange_api__"):
    _core.set_torch(Tensor, Parameter, Tensor.__dlpack_c_exchange_api__)


def in_functorch() -> bool:
    """Whether a `torch.func` transform (grad, vjp, vmap, ...) or batched autograd is being applied."""
    return bool(_functorch_depth())


def is_watched() -> bool:
    """Whether a functorch transform or a dispatch mode (fake tensors, make_fx, a logger) must see every operation."""
    return bool(_functorch_depth()) or _dispatch_modes() > 0
