"""The empirical preference (Bradley-Terry) loss of reward models and its gradient, fused."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

import torch  # before the kernels, which find its functions

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

from .dpo import dpo_loss
from .grouped import bradley_terry_derivatives_grouped, bradley_terry_loss_grouped
from .indexed import bradley_terry_loss_indexed, merge_comparisons
from .module import BradleyTerryLoss
from .paired import bradley_terry_loss, bradley_terry_loss_stacked
from .stats import PairStats
from .tokens import divergence_weight, last_token

if TYPE_CHECKING:
    from . import reference as reference
    from .evaluation import Estimate as Estimate
    from .evaluation import Evaluation as Evaluation
    from .evaluation import evaluate as evaluate

__all__ = [
    "BradleyTerryLoss",
    "PairStats",
    "bradley_terry_derivatives_grouped",
    "bradley_terry_loss",
    "bradley_terry_loss_grouped",
    "bradley_terry_loss_indexed",
    "bradley_terry_loss_stacked",
    "build_info",
    "divergence_weight",
    "dpo_loss",
    "last_token",
    "merge_comparisons",
    "reference",
]
_EVALUATION = ["Estimate", "Evaluation", "evaluate"]  # not for `import *`, which would need what they need


def __getattr__(name: str) -> Any:
    """What a training loop does not need, or needs pyarrow and SciPy, is imported when it is first used."""
    if name == "reference":
        return importlib.import_module(".reference", __name__)
    if name in _EVALUATION:
        try:
            from . import evaluation
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in ("pyarrow", "scipy"):
                raise
            needs = f'prefloss.{name} needs {error.name}, which is not installed: pip install "prefloss[evaluate]"'
            raise ImportError(needs) from error
        return getattr(evaluation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__ + _EVALUATION)


def build_info() -> dict[str, object]:
    """What was built and what is in use in this process, for bug reports: a dictionary.

    Keys: version; compiler; cpu (the instruction set of the kernels in use: baseline, avx2 or avx512; the environment
    variable PREFLOSS_CPU forces one, or is "composed", for losses composed of torch's operations); cuda (the toolkit and
    architectures of the CUDA kernels, or why there are none); gpu (the GPUs that the kernels can use, or why there are none);
    torch; torch_cuda (the CUDA that torch was built with, or None). This starts the CUDA driver in the process.

    >>> import prefloss
    >>> prefloss.build_info()["version"] == prefloss.__version__
    True
    """
    cuda = "none: built without nvcc, or with PREFLOSS_CUDA=OFF"
    if _core.cuda is not None:
        cuda = "toolkit {}, architectures {}".format(*_core.cuda)
    return {
        "version": __version__,
        "compiler": _core.compiler,
        "cpu": _core.cpu,
        "cuda": cuda,
        "gpu": _gpu(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
    }


def _gpu() -> str:
    reason = _core.cuda_unusable()
    if not reason and not torch.cuda.is_available():
        reason = "torch.cuda.is_available() is False" + ("" if torch.version.cuda else ": torch was built without CUDA")
    if reason:
        return f"none: {reason}"
    names = (
        f"{torch.cuda.get_device_name(index)} (compute capability {torch.cuda.get_device_capability(index)})"
        for index in range(torch.cuda.device_count())
    )
    return ", ".join(names)
