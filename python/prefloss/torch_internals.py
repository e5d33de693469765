"""The parts of torch that it does not document, all of them: what is watching a call, and how a tensor is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter
from torch.utils._python_dispatch import _disable_current_modes

from . import _core

in_functorch = torch._C._are_functorch_transforms_active
_dispatch_modes = torch._C._len_torch_dispatch_stack


def real_tensors() -> AbstractContextManager[Any]:
    """In it tensors are real ones, even where the first import of the package is under a FakeTensorMode."""
    return _disable_current_modes()


# functorch calls an operator's autograd kernel once for each of its levels, from the innermost to the outermost, as it does those
# of torch's own operators. There the derivative is recorded by a Function of that level alone. Outside of functorch it is
# torch.autograd.Function without the part in Python that looks for functorch, which takes 3 us a call.
class Function(torch.autograd.Function):
    if not TYPE_CHECKING:
        apply = vars(torch._C._FunctionBase)["apply"]


at_this_level = enable_single_level_autograd_function


def called_directly(function: Any) -> Any:
    """A Function whose backward torch's engine calls itself, not through the method that looks for a `vjp` first: 1 us."""
    function._backward_cls.apply = function.backward
    return function


@contextmanager
def derivatives_recorded() -> Iterator[None]:
    with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
        yield


def in_forward_mode() -> bool:
    """Whether tensors may have tangents."""
    return forward_ad._current_level >= 0


def is_watched() -> bool:
    """Whether a transform or a dispatch mode (fake tensors, make_fx, a logger) must see every operation."""
    return in_functorch() or _dispatch_modes() > 0 or forward_ad._current_level >= 0


def is_plain(tensor: Tensor) -> bool:
    """No subclass, which may hold its memory as it likes, but a parameter."""
    return type(tensor) in (Tensor, Parameter)


def is_readable(tensor: Tensor) -> bool:
    """Whether Python may look at its values here, with nothing to wait for."""
    return tensor.is_cpu and is_plain(tensor) and not is_compiling() and not is_watched()


def check_memory(name: str, tensor: Tensor) -> None:
    """torch itself would read through a null pointer."""
    if tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0:
        raise ValueError(f"{name} has no memory (a null pointer); a plain dense tensor is needed")


def requires_gradient(tensor: Tensor) -> bool:
    """Also of a tensor that `torch.vmap` has wrapped, which hides it."""
    while not is_compiling() and not tensor.requires_grad and torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor.requires_grad


def has_tangent(tensor: Tensor) -> bool:
    """Whether forward mode differentiates by it."""
    return not is_compiling() and in_forward_mode() and forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def will_run(node: Any, places: Iterable[int]) -> bool:
    """Whether the gradient of one of a Function's inputs is asked for, in the backward pass that is running now."""
    functions = [node.next_functions[place][0] for place in places if place < len(node.next_functions)]
    return any(_will_run(function) for function in functions if function is not None)


def _will_run(function: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(function)
    except RuntimeError as error:  # of a leaf that torch.autograd.grad was asked for, and of no other
        if "leaf node" not in str(error):
            raise
        return True


def asserts(condition: Tensor) -> bool:
    """Whether a condition is left to an assertion, for which nobody waits: when compiled, and on a GPU that has assertions."""
    if is_compiling():
        return True
    if condition.is_cpu:
        return False
    key = torch._C._dispatch_key_for_device(condition.device.type)
    return is_watched() or torch._C._dispatch_has_kernel_for_dispatch_key("aten::_assert_async.msg", key)


def _connect() -> None:
    """Gives the compiled module torch's tensors and its stable C ABI (torch >= 2.10)."""
    name = {"darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}.get(sys.platform, "libtorch_cpu.so")
    library = os.path.join(os.path.dirname(torch.__file__), "lib", name)
    try:
        first = _core.set_torch(Tensor, Parameter, Tensor.__dlpack_c_exchange_api__, library)
    except (AttributeError, RuntimeError) as error:
        raise ImportError(
            f"prefloss needs torch's stable C ABI, which torch 2.10 and later have; this is torch {torch.__version__}, "
            f"{library}: {error}"
        ) from error
    if not first:
        raise ImportError(
            "prefloss was imported before in this process, and its modules were removed from sys.modules; torch registers an "
            "operator only once, so start a new process"
        )


_connect()
