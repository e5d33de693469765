# The compiled module (csrc/bindings/). `..._accepts` says whether the tensors of a call can be read as they lie; nothing else
# is checked.
from typing import Final

from torch import Tensor

__version__: Final[str]
compiler: Final[str]
cpu: Final[str]
cuda: Final[tuple[str, str] | None]
large_group: Final[int]
cpu_runs_cuda_kernels: Final[bool]

def cuda_unusable() -> str: ...
def set_torch(tensor: type, parameter: type, exchange_api: object, library: str) -> bool: ...
def number_of(tensor: Tensor) -> float | None: ...

class PairedCall:
    def __init__(
        self,
        layout: int,
        beta: float,
        margin: float,
        target: float,
        label_smoothing: float,
        center_rewards_coefficient: float,
        reduction: int,
        denominator: float | None,
        statistics: bool,
    ) -> None: ...

class GroupedCall:
    def __init__(
        self,
        beta: float,
        margin: float,
        target: float,
        label_smoothing: float,
        center_rewards_coefficient: float,
        half_ties: bool,
        over_pairs: bool,
        reduction: int,
        denominator: float | None,
        statistics: bool,
        large: int,
    ) -> None: ...

# 0: refused, 1: accepted, 2: accepted once the tensors are contiguous.
def paired_accepts(
    rewards: object, rejected: object, layout: int, margin: object, weight: object, target: object
) -> int: ...
def grouped_accepts(rewards: object, ranks: object, group_sizes: object, weight: object) -> int: ...
def indexed_accepts(
    scores: object, chosen_index: object, rejected_index: object, margin: object, weight: object, target: object
) -> int: ...
def paired_forward(
    rewards: Tensor,
    rejected: Tensor | None,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    call: PairedCall,
    loss: Tensor,
    sums: Tensor | None,
) -> None: ...

# False, with nothing written: the tensors are not what they were in forward.
def paired_backward(
    grad: Tensor,
    rewards: Tensor,
    rejected: Tensor | None,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    sums: Tensor | None,
    call: PairedCall,
    grad_rewards: Tensor | None,
    grad_rejected: Tensor | None,
    grad_margin: Tensor | None,
) -> bool: ...

# False: there is NaN among the ranks.
def grouped_forward(
    rewards: Tensor,
    ranks: Tensor,
    group_sizes: Tensor | None,
    weight: Tensor | None,
    call: GroupedCall,
    loss: Tensor,
    slopes: Tensor | None,
    sums: Tensor | None,
) -> bool: ...

# False: an index is out of range.
def indexed_forward(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    call: PairedCall,
    loss: Tensor,
    slopes: Tensor | None,
    sums: Tensor | None,
) -> bool: ...

# The gradient from the slopes that forward kept, of groups or of items by index. False, with nothing written: a tensor is not
# what it was.
def scale_slopes(
    grad: Tensor, slopes: Tensor | None, group_sizes: Tensor | None, per_group: bool, result: Tensor
) -> bool: ...
