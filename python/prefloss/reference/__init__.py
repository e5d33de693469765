"""The formula in plain array code: every kernel is tested against it, and it computes the loss where there are no kernels.

Names and arguments are those of the package's public functions. It is written in the array API standard: give arrays of NumPy,
torch, JAX or CuPy, and the results are of the same library; numbers and sequences become NumPy's. NumPy and CuPy compute in
float64, torch and JAX in float32 (float64 for float64 rewards); `arrays` says more. It is written to be read and to be exact, not
to be fast, and checks only that shapes agree. NumPy has no bfloat16: pass it as float32.

Derivatives by torch or JAX are right too, of any order: at ties, where z is infinite, and beside NaN of weight 0. Under `jax.jit`
the sizes of groups and the options that are numbers must be constants, and indices are not checked.

Importing this module imports the package, and so torch. The computation with NumPy arrays needs only NumPy and array-api-compat.
CuPy has the functions that are used, but it has not been run with this.

For a pair with rewards a (chosen) and b (rejected)::

    z    = beta (a - b) - margin
    t    = target (1 - 2 e) + e,  e = label_smoothing, or -flip_rate / (1 - 2 flip_rate)
    l    = -t log sigma(z) - (1 - t) log sigma(-z)
    loss = sum of w (l + c (a + b)^2) / n

n is the total weight for reduction "mean" (1 where that is 0) unless `denominator` is given, and 1 for "sum".
Sources: Bradley & Terry 1952; Ouyang et al. 2022 (InstructGPT), eq. 1; Touvron et al. 2023 (Llama 2), eq. 2 for the
margin; Eisenstein et al. 2023 (arXiv 2312.09244), eq. 2 for c; Mitchell 2023 (cDPO) for label smoothing; Natarajan et al.
2013 and Chowdhury et al. 2024 (robust DPO) for flip_rate.
"""

from .dpo import dpo_loss
from .grouped import bradley_terry_derivatives_grouped, bradley_terry_gradient_grouped, bradley_terry_loss_grouped
from .indexed import bradley_terry_gradient_indexed, bradley_terry_loss_indexed
from .paired import (
    bradley_terry_gradient,
    bradley_terry_loss,
    bradley_terry_loss_stacked,
    pair_curvature,
    pair_loss,
    pair_slope,
)

__all__ = [
    "bradley_terry_derivatives_grouped",
    "bradley_terry_gradient",
    "bradley_terry_gradient_grouped",
    "bradley_terry_gradient_indexed",
    "bradley_terry_loss",
    "bradley_terry_loss_grouped",
    "bradley_terry_loss_indexed",
    "bradley_terry_loss_stacked",
    "dpo_loss",
    "pair_curvature",
    "pair_loss",
    "pair_slope",
]
