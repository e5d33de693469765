# The compiled kernels (csrc/bindings.cpp). Arguments are not checked: kernels.py and autograd.py are the only callers.
#
# A column, one entry a pair, is (address, dtype tag, stride, row stride) with strides in entries, or None where it is not
# given. `pairs` is (chosen, rejected, margin, weight, target: columns; rows; count; (beta, margin, target,
# label_smoothing, center_rewards_coefficient)); `divisor` is (number, address of one float64 a row or 0, its stride,
# whether it is a total weight); `place` is (whether on CUDA, threads, stream, address of `scratch_size` float64 or 0).
from typing import Final

from torch import Tensor

_Column = tuple[int, int, int, int]
_Place = tuple[bool, int, int, int]
_OptionNumbers = tuple[float, float, float, float, float]

__version__: Final[str]
compiler: Final[str]
cpu: Final[str]
cuda: Final[tuple[str, str] | None]

def cuda_unusable() -> str: ...
def scratch_size(cuda: bool, rewards: int, rows: int, count: int) -> int: ...
def load_torch(library: str) -> None: ...
def set_torch(tensor: type, parameter: type, exchange_api: object) -> None: ...
def tensors_accept(
    rewards: object, rejected: object, layout: int, margin: object, weight: object, target: object
) -> bool: ...
def tensors_forward(
    rewards: Tensor,
    rejected: Tensor | None,
    layout: int,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    options: _OptionNumbers,
    divisor: float | None,
    per_pair: bool,
    loss: Tensor,
    sums: Tensor | None,
    statistics: bool,
    threads: int,
    scratch: Tensor | None,
) -> None: ...
def tensors_backward(
    grad: Tensor,
    rewards: Tensor,
    rejected: Tensor | None,
    layout: int,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    options: _OptionNumbers,
    divisor: float | None,
    per_pair: bool,
    sums: Tensor | None,
    grad_rewards: Tensor | None,
    grad_rejected: Tensor | None,
    grad_margin: Tensor | None,
    threads: int,
) -> bool: ...
def default_forward(chosen: Tensor, rejected: Tensor, loss: Tensor, threads: int, scratch: Tensor | None) -> None: ...
def default_backward(
    grad: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    grad_chosen: Tensor | None,
    grad_rejected: Tensor | None,
    threads: int,
) -> bool: ...
def paired_forward(
    pairs: tuple[object, ...],
    divisor: tuple[float, int, int, bool],
    loss: int,
    terms: _Column | None,
    sums: int,
    statistics: bool,
    place: _Place,
) -> None: ...
def paired_backward(
    pairs: tuple[object, ...],
    divisor: tuple[float, int, int, bool],
    upstream: _Column,
    grad_chosen: _Column | None,
    grad_rejected: _Column | None,
    grad_margin: _Column | None,
    place: _Place,
) -> None: ...
def paired_double_backward(
    pairs: tuple[object, ...],
    divisor: tuple[float, int, int, bool],
    upstream: _Column,
    towards_chosen: _Column | None,
    towards_rejected: _Column | None,
    towards_margin: _Column | None,
    grad_upstream: _Column,
    grad_chosen: _Column | None,
    grad_rejected: _Column | None,
    grad_margin: _Column | None,
    place: _Place,
) -> None: ...
def indexed_forward(
    comparisons: tuple[_Column, int, int, int, bool],
    pairs: tuple[object, ...],
    divisor: tuple[float, int, int, bool],
    loss: int,
    sums: int,
    statistics: bool,
    slopes: int,
    threads: int,
) -> bool: ...
def runs_on_cuda(cuda: bool) -> bool: ...
def grouped_forward(
    groups: tuple[object, ...],
    average: tuple[_Column | None, bool, bool, tuple[float, int, int, bool]],
    loss: int,
    factors: int,
    sums: int,
    slopes: int,
    statistics: bool,
    place: _Place,
) -> bool: ...
def grouped_backward(
    groups: tuple[object, ...], slopes: int, upstream: tuple[_Column, bool], gradient: _Column, place: _Place
) -> None: ...
def grouped_double_backward(
    groups: tuple[object, ...],
    slopes: int,
    factors: int,
    upstream: tuple[_Column, bool],
    direction: _Column,
    gradient: _Column,
    along: int,
    place: _Place,
) -> None: ...
def grouped_scratch_size(cuda: bool, rows: int, groups: int, items: int, statistics: bool) -> int: ...
