"""What pairs say about a model in the population that they were drawn from: `Evaluation`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch.distributed

from . import population, powered
from .calibration import Calibration
from .estimate import Estimate
from .state import DISTANCE, State, merge
from .statistics import BIN_SUMS, SCORES, Options
from .units import ClusterUnits, PairUnits, units_of
from .weights import Weights, weights_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Label = int | str
SHARE = (0.0, 1.0)


class Shares(NamedTuple):
    """The groups' shares of a population; `counted` people or pairs stand behind them, inf where they are known."""

    of: dict[Label, float]
    counted: float


class Evaluation:
    """Estimates of a model's loss, accuracy and calibration. Evaluations of shards and processes can be added.

    `prefloss.evaluate` makes it. `a + b`, `sum([...])` and `all_reduce` give the evaluation of all pairs together; pairs of the
    same cluster or group come together again. Numbers are computed when they are read. With fewer than two independent units,
    errors and intervals are nan.

    >>> import prefloss
    >>> chosen, rejected = [2.0, 0.5, 1.0, 0.3], [1.0, 1.5, 0.0, 0.1]
    >>> first = prefloss.evaluate(chosen[:2], rejected[:2], group=["news", "code"])
    >>> both = first + prefloss.evaluate(chosen[2:], rejected[2:], group=["news", "code"])
    >>> both.accuracy.value, both.groups["code"].accuracy.value
    (0.75, 0.5)
    >>> round(both.reweighted({"news": 0.9, "code": 0.1}).accuracy.value, 3)
    0.95
    """

    def __init__(self, state: State, shares: Shares | None = None) -> None:
        self._state, self._shares = state, shares

    # ---- Estimates ----

    @property
    def loss(self) -> Estimate:
        """The expected loss, in nats a pair; a model whose rewards are all equal has log 2 = 0.693."""
        return self._estimate("loss")

    @property
    def accuracy(self) -> Estimate:
        """How often the order of the rewards agrees with the preference; a tie counts as wrong.

        Where a `target` t was given: the mean of t where chosen has the greater reward, and of 1 - t where rejected has.
        """
        return self._estimate("correct", SHARE)

    @property
    def tie_rate(self) -> Estimate:
        """How often the two rewards are equal."""
        return self._estimate("tied", SHARE)

    @property
    def margin(self) -> Estimate:
        """The mean of chosen minus rejected reward, in the rewards' unit."""
        return self._estimate("margin")

    @property
    def brier(self) -> Estimate:
        """The mean of (t - sigma(z))^2 (Brier 1950): 0 is perfect, 1/4 a model whose rewards are all equal."""
        return self._estimate("brier", SHARE)

    @property
    def baseline_loss(self) -> Estimate:
        """The baseline's expected loss. ValueError where no baseline was given."""
        return self._estimate("baseline_loss", needs="baseline")

    @property
    def baseline_accuracy(self) -> Estimate:
        """The baseline's accuracy. ValueError where no baseline was given."""
        return self._estimate("baseline_correct", SHARE, needs="baseline")

    @property
    def difference(self) -> Estimate:
        """Loss minus the baseline's loss on the same pairs: below 0 this model is better.

        Its interval is not corrected for skewness: between two equal models the distribution is symmetric, and the correction
        would add noise (tried on 8,000 collections of 100 pairs: it found a difference that was not there in 6.0 % instead of
        5.0 %). ValueError where no baseline was given.
        """
        return self._difference("difference")

    @property
    def accuracy_difference(self) -> Estimate:
        """Accuracy minus the baseline's on the same pairs: above 0 this model is better. Otherwise as `difference`."""
        return self._difference("correct_difference", (-1.0, 1.0))

    @cached_property
    def prediction_powered(self) -> powered.PredictionPowered:
        """The loss, from people's labels of some pairs and the judge's opinion of all. ValueError where no judge was given."""
        self._need("judge")
        if self._shares is not None:
            raise ValueError(
                "prediction_powered is for the pairs as they were collected: ask it of the evaluation before reweighted()"
            )
        return powered.prediction_powered(self._state)

    @cached_property
    def calibration(self) -> Calibration:
        """Whether the probabilities sigma(z) are right: a slope with its interval, a test, and bins of |z|."""
        bins = self._state.bins.filter(pc.equal(self._state.bins["part"], DISTANCE))
        if self._shares is not None:
            factor = self._factors()
            by_row = np.array([factor[label] for label in bins["group"].to_pylist()])
            for name in BIN_SUMS:
                place = bins.column_names.index(name)
                bins = bins.set_column(place, name, pa.array(by_row * bins[name].to_numpy()))
        return Calibration(bins, {name: self._estimate(name) for name in SCORES})

    @cached_property
    def weights(self) -> Weights | None:
        """How much the weights reduce what the pairs are worth, with a warning; None where no weights were given."""
        return weights_of(self._labelled) if self._state.options.weighted else None

    @property
    def pairs(self) -> int:
        """How many pairs count: those with a label and a weight other than 0."""
        return self._units.pairs

    @property
    def clusters(self) -> int:
        """How many independent units the pairs come from: clusters, or the pairs themselves where no `cluster` was given."""
        return self._units.count

    @property
    def rows(self) -> int:
        """How many rows of sums are kept: one for each cluster in each group, and some bins."""
        return int(self._state.units.num_rows + self._state.bins.num_rows)

    @property
    def is_reweighted(self) -> bool:
        """Whether the groups count by the shares that `reweighted` was given."""
        return self._shares is not None

    @property
    def options(self) -> Options:
        """The options of the loss, and which optional arguments were given."""
        return self._state.options

    # ---- Groups and populations ----

    @cached_property
    def groups(self) -> Mapping[Label, Evaluation]:
        """The evaluation of each group alone, by its label, sorted. ValueError where no `group` was given."""
        self._need("grouped")
        state = self._state
        labels = pc.unique(state.units["group"].filter(pc.greater(state.units["w1"], 0))).to_pylist()
        return {
            label: Evaluation(
                replace(
                    state,
                    units=state.units.filter(pc.equal(state.units["group"], label)),
                    bins=state.bins.filter(pc.equal(state.bins["group"], label)),
                )
            )
            for label in sorted(labels)
        }

    @cached_property
    def shares(self) -> dict[Label, float]:
        """Each group's share of the total weight, or of the population that `reweighted` was given (nan without labels)."""
        if self._shares is not None:
            return dict(self._shares.of)
        totals = {label: group._units_total for label, group in self.groups.items()}
        everything = math.fsum(totals.values())
        return {label: total / everything if everything else math.nan for label, total in totals.items()}

    def reweighted(
        self, shares: Mapping[Any, float] | None = None, *, share_counts: Mapping[Any, int] | None = None
    ) -> Evaluation:
        """The evaluation of a population in which the groups have these shares (post-stratification; Holt & Smith 1979).

        Args:
            shares: {label: share}, adding up to 1; a group of share 0 is left out.
            share_counts: instead of `shares`, how many of each group a random sample of the population held. The shares are then
                estimated themselves, and their sampling error (multinomial) is part of the standard error.

        Raises:
            ValueError: shares that are negative or do not add up to 1; counts that are no whole numbers; a group with a share but
                no data, whose loss nobody knows; data of a group that has no share; both arguments, or none.
        """
        given = population.checked_shares(shares, share_counts, self.groups)
        keep = pa.array([label for label, share in given.items() if share > 0], self._state.units["group"].type)
        state = replace(
            self._state,
            units=self._state.units.filter(pc.is_in(self._state.units["group"], keep)),
            bins=self._state.bins.filter(pc.is_in(self._state.bins["group"], keep)),
        )
        counted = math.inf if share_counts is None else float(sum(share_counts.values()))
        return Evaluation(state, Shares({label: share for label, share in given.items() if share > 0}, counted))

    def worst_group(self, level: float = 0.95) -> population.WorstGroup:
        """The group with the greatest loss, and an interval for the greatest of the groups' expected losses.

        Each group's interval has the level 1 - (1 - level) / (number of groups) (Bonferroni), so that all hold at once. The
        greatest expected loss then lies between the greatest lower end and the greatest upper end. The ordinary interval of the
        worst group would miss it too often, because that group was picked partly for its bad luck.
        """
        return population.worst_group(self.groups, level)

    def worst_mixture(self, radius: float) -> population.WorstMixture:
        """The shares of groups, near those of the data, that give the greatest expected loss, and that loss.

        Near: with p the shares of the data and q the new ones, the sum over groups of (q - p)^2 / p is at most `radius` (a ball of
        the chi-square divergence; Namkoong & Duchi 2017). The interval takes the shares as known. ValueError where `radius` is
        negative, or there are no pairs.
        """
        return population.worst_mixture(self, radius)

    # ---- Sums ----

    def __add__(self, other: object) -> Evaluation:
        """The evaluation of both sets of pairs together."""
        if isinstance(other, int) and other == 0:  # the start value of sum()
            return self
        if not isinstance(other, Evaluation):
            raise TypeError(f"an Evaluation can be added to an Evaluation only, not to {type(other).__name__}")
        return merged([self, other])

    def __radd__(self, other: object) -> Evaluation:
        return self + other

    def all_reduce(self, group: torch.distributed.ProcessGroup | None = None) -> Evaluation:
        """The evaluation of the pairs of all processes of `group` (None: of all processes), with the same bits in each.

        Every process of the group must call it. Each sends its table once; tables are added in the order of the ranks.
        """
        self._need_collected()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, (table := self.to_table()).schema) as writer:
            writer.write_table(table)
        received: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(received, sink.getvalue().to_pybytes(), group=group)
        return merged([Evaluation.from_table(pa.ipc.open_stream(each).read_all()) for each in received])

    def to_table(self) -> pa.Table:
        """The sums as an Arrow table, with the options in its metadata; Parquet and Arrow files keep both.

        The column `part` says what a row is: 0 for each (cluster, group, labelled), 1 for a bin of |z|, 2 for a bin of the weight.
        """
        self._need_collected()
        return self._state.to_table()

    @classmethod
    def from_table(cls, table: pa.Table) -> Evaluation:
        """The evaluation from a table that `to_table` has made. ValueError for other tables, TypeError for what is no table."""
        return cls(State.from_table(table))

    # ---- For people ----

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return f"Evaluation({self.pairs} pairs, {self.clusters} independent units: loss {self.loss}, accuracy {self.accuracy})"

    def summary(self, level: float = 0.95) -> str:
        """The table that `print` shows, with intervals of `level`."""
        from .text import summary

        return summary(self, level)

    def concerns(self) -> list[str]:
        """Warnings about these numbers, in sentences; empty where there are none."""
        from .text import concerns

        return concerns(self)

    def figure(self, level: float = 0.95) -> Figure:
        """A matplotlib figure: intervals of the groups, calibration, margins, and the weights where there are some."""
        from .figure import figure

        return figure(self, level)

    def as_dict(self, level: float = 0.95) -> dict[str, Any]:
        """All estimates as plain numbers, for JSON and loggers; nan is kept."""
        named = {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "tie_rate": self.tie_rate,
            "margin": self.margin,
            "brier": self.brier,
        }
        if self.options.baseline:
            named |= {"baseline_loss": self.baseline_loss, "baseline_accuracy": self.baseline_accuracy}
            named |= {"difference": self.difference, "accuracy_difference": self.accuracy_difference}
        result: dict[str, Any] = {"pairs": self.pairs, "clusters": self.clusters, "level": level}
        result |= {name: estimate.as_dict(level) for name, estimate in named.items()}
        result["calibration"] = self.calibration.as_dict(level)
        if self.options.judge and self._shares is None:
            result["prediction_powered"] = self.prediction_powered.as_dict(level)
        if self.weights is not None:
            result["weights"] = self.weights.as_dict()
        if self.options.grouped:
            result["shares"] = self.shares
            result["groups"] = {
                label: {"loss": group.loss.as_dict(level), "accuracy": group.accuracy.as_dict(level)}
                for label, group in self.groups.items()
            }
            result["worst_group"] = self.worst_group(level).as_dict() if self.groups else None
        result["concerns"] = self.concerns()
        return result

    # ---- Inside ----

    @cached_property
    def _labelled(self) -> State:
        return powered.part(self._state, labelled=True)

    @cached_property
    def _units(self) -> ClusterUnits | PairUnits:
        return units_of(self._labelled, None if self._shares is None else self._shares.of)

    @property
    def _units_total(self) -> float:
        return float(pc.sum(self._labelled.units["w1"]).as_py() or 0.0)

    def _factors(self) -> dict[Label, float]:
        """What a weight in each group counts, so that the groups have their shares."""
        assert self._shares is not None
        return {label: share / self.groups[label]._units_total for label, share in self._shares.of.items()}

    def _estimate(
        self, name: str, bounds: tuple[float, float] = (-math.inf, math.inf), needs: str | None = None
    ) -> Estimate:
        if needs:
            self._need(needs)
        moments, units = self._units.moments(name), self._units
        variance, skewness = moments.variance, moments.skewness
        if self._shares is not None and math.isfinite(self._shares.counted):
            share = np.array([self._shares.of[label] for label in units.labels])
            means = units.stratum_means(name)
            spread = float(share @ means**2) - float(share @ means) ** 2
            ours, variance = variance, variance + max(spread, 0.0) / self._shares.counted
            skewness *= (
                (ours / variance) ** 1.5 if variance > 0 else 1.0
            )  # the shares' own error adds no skewness of its own
        return Estimate(
            moments.value,
            math.sqrt(variance) if variance >= 0 else math.nan,
            units.degrees_of_freedom,
            skewness,
            units.pairs,
            units.count,
            moments.pair_variance,
            bounds,
        )

    def _difference(self, name: str, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
        return replace(self._estimate(name, bounds, needs="baseline"), skewness=0.0)

    def _need(self, option: str) -> None:
        if not getattr(self.options, option):
            argument = {"grouped": "group"}.get(option, option)
            raise ValueError(f"this needs {argument}, which evaluate() was not given: evaluate(..., {argument}=...)")

    def _need_collected(self) -> None:
        if self._shares is not None:
            raise ValueError(
                "a reweighted evaluation has no sums of its own: add up, store and gather first, then call reweighted()"
            )


def merged(evaluations: list[Evaluation]) -> Evaluation:
    """The evaluation of all pairs of all evaluations, which are at least one; the table is grouped once."""
    for evaluation in evaluations:
        evaluation._need_collected()
    return Evaluation(merge([evaluation._state for evaluation in evaluations]))
