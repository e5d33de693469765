"""The empirical preference (Bradley-Terry) loss of reward models and its gradient, fused."""

from __future__ import annotations

import importlib.util

__version__ = "0.1.0"

import torch  # before the kernels: they share its OpenMP runtime

if importlib.util.find_spec("prefloss._core") is None:
    raise ImportError(
        "prefloss has no compiled module (prefloss._core) beside its Python files. Install it with `pip install .` from the "
        "repository's root, and do not import it from inside the source folder."
    )
from . import _core

if _core.__version__ != __version__:
    raise ImportError(
        f"prefloss {__version__} (Python files) found a compiled module of version {_core.__version__}. Rebuild it "
        "with `pip install --force-reinstall --no-deps .` from the repository's root, or reinstall the wheel."
    )

from . import reference
from .module import BradleyTerryLoss
from .paired import bradley_terry_loss, bradley_terry_loss_stacked
from .stats import PairStats

__all__ = [
    "BradleyTerryLoss",
    "PairStats",
    "bradley_terry_loss",
    "bradley_terry_loss_stacked",
    "build_info",
    "reference",
]


def build_info() -> dict[str, object]:
    """What was built and what is in use here, for bug reports.

    Keys: version; compiler; cpu (the instruction set of the kernels in use: baseline, avx2 or avx512; the environment
    variable PREFLOSS_CPU forces one); openmp (whether kernels use threads); cuda (architectures, or why there are
    none); torch.
    """
    return {
        "version": __version__,
        "compiler": _core.compiler,
        "cpu": _core.cpu,
        "openmp": _core.openmp,
        "cuda": "none: this version has CPU kernels only",
        "torch": torch.__version__,
    }
