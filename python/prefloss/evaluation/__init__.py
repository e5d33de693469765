"""Evaluation sets: what the average over pairs says about the population, in sums that add up. Needs pyarrow and SciPy."""

from .call import evaluate
from .estimate import Estimate
from .evaluation import Evaluation

__all__ = ["Estimate", "Evaluation", "evaluate"]
