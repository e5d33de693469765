# The compiled module (csrc/bindings/). `..._call` reads what a public function was given. None: not all of it is certainly right,
# or can be read as it lies; Python's checks and the operators do the rest.
from typing import Final

from torch import Tensor

__version__: Final[str]
compiler: Final[str]
overload: Final[str]
cpu: Final[str]
cuda: Final[tuple[str, str] | None]
large_group: Final[int]
cpu_runs_cuda_kernels: Final[bool]

def cuda_unusable() -> str: ...
def set_torch(tensor: type, parameter: type, exchange_api: object, library: str) -> bool: ...

class PairedCall:
    layout: int
    divides_by_weight: bool
    reduction: int
    denominator: float | Tensor | None
    has_tensor_denominator: bool
    statistics: bool
    copied: bool
    is_plain: bool
    numbers: tuple[float, float, float, float, float]

class GroupedCall:
    half_ties: bool
    over_pairs: bool
    reduction: int
    denominator: float | Tensor | None
    has_tensor_denominator: bool
    statistics: bool
    copied: bool
    numbers: tuple[float, float, float, float, float]

# The functions of a step take their arguments in order, without names.
# options: (beta, label_smoothing, flip_rate, center_rewards_coefficient, reduction, denominator, return_stats).
def paired_call(
    rewards: object,
    rejected: object,
    layout: int,
    margin: object,
    weight: object,
    target: object,
    options: tuple[object, ...],
    checked: bool,
) -> PairedCall | None: ...
def grouped_call(
    rewards: object,
    ranks: object,
    group_sizes: object,
    weight: object,
    filled: object,
    margin: object,
    average: object,
    ties: object,
    options: tuple[object, ...],
    checked: bool,
) -> GroupedCall | None: ...
def indexed_call(
    scores: object,
    chosen_index: object,
    rejected_index: object,
    margin: object,
    weight: object,
    target: object,
    options: tuple[object, ...],
    checked: bool,
) -> PairedCall | None: ...
def paired_forward(
    rewards: Tensor,
    rejected: Tensor | None,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
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
    denominator: Tensor | None,
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
    filled: Tensor | None,
    denominator: Tensor | None,
    call: GroupedCall,
    large: int,
    loss: Tensor,
    slopes: Tensor | None,
    sums: Tensor | None,
) -> bool: ...

# Only what `grouped_call` has accepted, on the CPU, without a denominator, and not reduction "none". False: there is NaN among the
# ranks.
def grouped_derivatives(
    rewards: Tensor,
    ranks: Tensor,
    group_sizes: Tensor | None,
    weight: Tensor | None,
    call: GroupedCall,
    large: int,
    gradient: Tensor,
    curvatures: Tensor,
) -> bool: ...

# False: an index is out of range.
def indexed_forward(
    scores: Tensor,
    chosen_index: Tensor,
    rejected_index: Tensor,
    margin: Tensor | None,
    weight: Tensor | None,
    target: Tensor | None,
    denominator: Tensor | None,
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

# False, with nothing written: one of them is not certainly plain memory of the host.
def merge_sums(mine: Tensor, theirs: Tensor, result: Tensor) -> bool: ...
def pair_statistics(columns: tuple[Tensor | None, ...], numbers: tuple[float, ...], result: Tensor) -> None: ...
def add_statistics(
    columns: tuple[Tensor | None, ...],
    numbers: tuple[float, ...],
    moments: Tensor,
    shifts: Tensor,
    scale: float,
    bin_of: Tensor,
    rows: Tensor | None,
    bin_rows: Tensor | None,
    units: Tensor,
    bins: Tensor,
) -> None: ...
