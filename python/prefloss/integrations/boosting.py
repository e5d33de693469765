"""The loss over all pairs as an objective of boosted trees, for XGBoost and LightGBM alike. It needs neither of them."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ..arguments import check_choice, check_flag, check_number
from ..grouped import Ties, bradley_terry_derivatives_grouped
from ..numpy_arrays import check_no_mask
from ..pairs import DEFAULTS

Scale = Literal["items", "pairs"]
Derivatives = tuple[NDArray[np.float32], NDArray[np.float32]]


class Data(Protocol):
    """What `xgboost.DMatrix` and `lightgbm.Dataset` have in common."""

    def get_label(self) -> Any: ...
    def get_weight(self) -> Any: ...
    def get_group(self) -> Any: ...


class PairwiseObjective:
    """Gradient and curvature (second derivative) of the loss over all pairs of each query. No pair is sampled or left out.

    In a query every row is preferred to every row with a lower label. Labels may be any numbers; only their order counts. For the
    AUC they are 1 and 0. Equal labels make no pair, or with ``ties="half"`` a tie::

        xgboost.train(parameters, xgboost.DMatrix(X, labels, group=sizes), obj=PairwiseObjective())
        lightgbm.train({"objective": PairwiseObjective(), **parameters}, lightgbm.Dataset(X, labels, group=sizes))
        lightgbm.LGBMRanker(objective=PairwiseObjective().of_arrays).fit(X, labels, group=sizes)
        xgboost.XGBClassifier(objective=PairwiseObjective(one_list=True).of_arrays).fit(X, labels)

    `xgboost.XGBRanker` accepts only its own objectives. Only differences of scores have a meaning; they are not probabilities.
    Scores are read in float32, in which both libraries keep gradients; sums are float64.

    >>> import numpy as np
    >>> from prefloss.integrations.boosting import PairwiseObjective
    >>> labels, scores, sizes = np.array([2, 0, 1, 0, 1]), np.zeros(5), np.array([3, 2])
    >>> PairwiseObjective().of_arrays(labels, scores, None, sizes)  # three pairs, and one
    (array([-0.5,  0.5,  0. ,  0.5, -0.5], dtype=float32), array([0.25, 0.25, 0.25, 0.25, 0.25], dtype=float32))

    **The guard.** A leaf's value is -sum of gradients / sum of curvatures. For a pair that the trees have far in the wrong order,
    the gradient is about 1 and the curvature about exp(-|z|), so their ratio would be a step that is far too long. A row's
    curvature is therefore at least its |gradient| / `max_step`. Then no leaf's value is beyond `max_step`, before the learning
    rate, with or without regularisation. Rows that are in no pair keep gradient and curvature 0.

    Args:
        one_list: the data are one list without queries; with two labels, all positives against all negatives. Without
            `one_list`, data without queries are an error; with it, data that have queries are.
        scale: "items": all pairs of a query together weigh as much as its rows. A row's curvature is then 1/4 on average where
            all scores are equal, as in logistic regression, and `lambda`, `min_child_weight`, `min_sum_hessian_in_leaf` mean the
            same as there. "pairs" counts each pair once, so long queries count more.
        ties: "skip" or "half", as in `prefloss.bradley_terry_loss_grouped`.
        beta, margin, label_smoothing, flip_rate: as there.
        max_step: the largest value that a leaf may have, from 1e-30 to 1e30; in the units of the scores.

    Raises:
        TypeError, ValueError: what `prefloss.bradley_terry_derivatives_grouped` raises. In a round: no queries, or queries with
            `one_list`; sizes of queries that are no integers or do not add up to the rows; weights that differ within a query or
            are negative; scores of several classes; arrays with a mask.
    """

    def __init__(
        self,
        *,
        one_list: bool = False,
        scale: Scale = "items",
        ties: Ties = "skip",
        beta: float = DEFAULTS.beta,
        margin: float = DEFAULTS.margin,
        label_smoothing: float = DEFAULTS.label_smoothing,
        flip_rate: float = DEFAULTS.label_smoothing,
        max_step: float = 10.0,
    ) -> None:
        check_flag("one_list", one_list)
        check_choice("scale", scale, ("items", "pairs"))
        check_number("max_step", max_step, "a number from 1e-30 to 1e30", low=1e-30, high=1e30)
        self.one_list, self.scale, self.max_step = one_list, scale, max_step
        self.options: dict[str, Any] = {
            "ties": ties,
            "beta": beta,
            "margin": margin,
            "label_smoothing": label_smoothing,
            "flip_rate": flip_rate,
        }
        nothing = np.zeros((1, 0), dtype=np.float32)  # as scores are in each round
        bradley_terry_derivatives_grouped(nothing, nothing, **self.options)  # says now what is wrong

    def __call__(self, predictions: NDArray[Any], data: Data) -> Derivatives:
        """(gradient, curvature), (N,) float32 each. Both libraries call this in each round.

        Args:
            predictions: (N,), the scores of the trees so far.
            data: the training data, a `DMatrix` or `Dataset`, with labels, the sizes of its queries, and perhaps weights: one a
                query (XGBoost), or one a row (LightGBM), the same for all rows of a query.
        """
        return self.of_arrays(data.get_label(), predictions, data.get_weight(), data.get_group())

    def of_arrays(
        self,
        y_true: NDArray[Any],
        y_pred: NDArray[Any],
        weight: NDArray[Any] | None = None,
        group: NDArray[Any] | None = None,
    ) -> Derivatives:
        """The same as the libraries' scikit-learn classes call it.

        Args:
            y_true, y_pred: (N,), labels and scores.
            weight: of the queries, or of the rows, as above.
            group: (Q,), the sizes of the queries.
        """
        scores = _real("predictions", y_pred)
        if scores.ndim != 1:
            raise ValueError(
                f"there must be one score a row, got predictions of shape {scores.shape}; leave num_class as it is"
            )
        sizes = self._sizes(group, len(scores))
        gradient, curvature = bradley_terry_derivatives_grouped(
            scores.astype(np.float32, copy=False),  # as the libraries keep what is returned; half the time of float64
            relevance=_real("labels", y_true),
            group_sizes=sizes,
            weight=self._weights(weight, sizes, len(scores)),
            average="groups" if self.scale == "items" else "pairs",
            **self.options,
        )
        slopes, curvatures = gradient.astype(np.float32), curvature.astype(np.float32)
        least = np.abs(slopes) / np.float32(self.max_step)
        return slopes, np.maximum(curvatures, least, out=curvatures)

    def _sizes(self, group: NDArray[Any] | None, rows: int) -> NDArray[np.int64]:
        sizes = np.zeros(0, dtype=np.int64) if group is None else _real("group", group)
        accepted = "group must be the sizes of the queries, (Q,) integers >= 0"
        if sizes.ndim != 1:
            raise ValueError(f"{accepted}, got shape {sizes.shape}")
        given = len(sizes) > 0
        if self.one_list and given:
            raise ValueError(f"one_list=True is for data without queries, got {len(sizes)} of them; leave one_list out")
        if not self.one_list and not given and rows > 0:
            raise ValueError(
                "the data must say which rows are of one query, got no group; give group= or qid= to the data, or one_list=True to "
                "PairwiseObjective for all positives against all negatives"
            )
        if not given:
            return np.array([rows], dtype=np.int64)
        if sizes.dtype.kind not in "iu":
            raise TypeError(f"{accepted}, got dtype {sizes.dtype}")
        if sizes.min() < 0:
            raise ValueError(f"{accepted}, got {sizes.min()} among them")
        if (total := sizes.sum(dtype=np.float64)) != rows:  # in which nothing wraps
            raise ValueError(f"{accepted}, that add up to the number of rows, {rows}, got {total:.0f}")
        return sizes.astype(np.int64)

    def _weights(self, weight: NDArray[Any] | None, sizes: NDArray[np.int64], rows: int) -> NDArray[np.float64]:
        """One a query."""
        weights = np.ones(len(sizes))
        given = np.zeros(0) if weight is None else _real("weights", weight)
        if given.size > 0:
            weights = given.astype(np.float64)
            if not (np.isfinite(weights) & (weights >= 0)).all():
                wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
                raise ValueError(f"weights must be finite numbers >= 0, got {wrong[0]}")
            if weights.shape == (rows,) != sizes.shape:
                first = weights[np.minimum(np.cumsum(sizes) - sizes, rows - 1)]
                if not np.array_equal(np.repeat(first, sizes), weights):
                    raise ValueError(
                        "weights must be one a query, or the same for all rows of a query, got different ones within a query: a "
                        "pair has no weight of its own"
                    )
                weights = first
            if weights.shape != sizes.shape:
                raise ValueError(
                    f"weights must be one a query, {len(sizes)}, or one a row, {rows}, got shape {weights.shape}"
                )
        return weights * sizes / 2 if self.scale == "items" else weights


def _real(name: str, values: object) -> NDArray[Any]:
    """As an array of real numbers."""
    check_no_mask(name, values)
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers, got dtype {array.dtype}")
    return array
