"""How often 95 % intervals hold the truth, by the way in which pairs were collected: a table, and docs/coverage.svg.

python benchmarks/coverage.py --svg docs/coverage.svg

Each row draws collections from a law whose expected loss is known, and asks for an interval each time: `prefloss.evaluate`,
and in the rows of groups, lists and comparisons by index the `PairStats` of the loss. Beside it stands what is usually done:
the standard error of independent, equally likely pairs and the normal quantile.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from tqdm import tqdm  # type: ignore[import-untyped]

import prefloss

LEVEL = 0.95
NORMAL = float(stats.norm.ppf(0.5 + LEVEL / 2))
Array = NDArray[np.float64]
Interval = tuple[float, float]


class Trial(NamedTuple):
    """Of one collection: whether each interval holds the truth."""

    naive: bool
    ours: bool


class Design(NamedTuple):
    """A way to collect pairs. `repeats` is how many collections are drawn for each hundred that are asked for."""

    name: str
    draw: Callable[[np.random.Generator], Trial]
    must: str  # what the project promises, in percent
    repeats: int = 100


def expected_loss(mean: float, deviation: float) -> float:
    """Of z ~ N(mean, deviation^2), by Gauss-Hermite quadrature."""
    x, weight = np.polynomial.hermite_e.hermegauss(120)
    return float(weight @ np.logaddexp(0.0, -mean - deviation * x) / weight.sum())


def holds(interval: Interval, truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def naive(values: Array, weight: Array | None = None) -> Interval:
    """Mean +- 1.96 standard errors, the pairs being taken to be independent."""
    weight = np.ones(len(values)) if weight is None else weight
    mean = float(weight @ values / weight.sum())
    error = (
        math.sqrt(float(weight**2 @ (values - mean) ** 2)) / weight.sum() * math.sqrt(len(values) / (len(values) - 1))
    )
    return mean - NORMAL * error, mean + NORMAL * error


def of_losses(z: Array, truth: float, weight: Array | None = None, **collected: Any) -> Trial:
    found = prefloss.evaluate(z, np.zeros(len(z)), weight=weight, **collected).loss
    return Trial(holds(naive(np.logaddexp(0.0, -z), weight), truth), holds(found.interval(LEVEL), truth))


# ---- The designs ----


def independent(pairs: int) -> Callable[[np.random.Generator], Trial]:
    truth = expected_loss(1.0, 2.0)
    return lambda random: of_losses(1.0 + 2.0 * random.normal(size=pairs), truth)


def weighted(pairs: int) -> Callable[[np.random.Generator], Trial]:
    """Collected where x is 0.7 too great: the weights exp(-0.7 x + 0.7^2 / 2) leave exp(-0.7^2) = 61 % of the pairs."""
    shift, truth = 0.7, expected_loss(1.0, math.hypot(1.0, 1.0))

    def draw(random: np.random.Generator) -> Trial:
        x = random.normal(size=pairs) + shift
        return of_losses(1.0 + x + random.normal(size=pairs), truth, np.exp(-shift * x + shift**2 / 2))

    return draw


def prompts(count: int) -> Callable[[np.random.Generator], Trial]:
    """Half of the prompts have 2 pairs, a quarter 8, a quarter 30; pairs of a prompt resemble each other."""
    truth = expected_loss(1.0, math.hypot(1.0, 1.5))
    cluster = np.repeat(
        np.arange(count),
        np.r_[np.full(count // 2, 2), np.full(count // 4, 8), np.full(count - count // 2 - count // 4, 30)],
    )

    def draw(random: np.random.Generator) -> Trial:
        z = 1.0 + random.normal(size=count)[cluster] + 1.5 * random.normal(size=len(cluster))
        return of_losses(z, truth, cluster=cluster)

    return draw


def difference(pairs: int) -> Callable[[np.random.Generator], Trial]:
    """Two models of equal expected loss on the same pairs. What is naive here: two separate intervals, as if of different
    pairs."""

    def draw(random: np.random.Generator) -> Trial:
        common, own = random.normal(size=pairs), random.normal(size=(2, pairs))
        one, other = 1.0 + common + own
        found = prefloss.evaluate(one, np.zeros(pairs), baseline=(other, np.zeros(pairs)))
        low, high = (naive(np.logaddexp(0.0, -z)) for z in (one, other))
        distance = abs(low[0] + low[1] - high[0] - high[1]) / 2
        unpaired = math.hypot(low[1] - low[0], high[1] - high[0]) / 2
        return Trial(distance <= unpaired, holds(found.difference.interval(LEVEL), 0.0))

    return draw


def worst_group(groups: int, pairs: int) -> Callable[[np.random.Generator], Trial]:
    truth, group = expected_loss(1.0, 1.5), np.repeat(np.arange(groups), pairs)

    def draw(random: np.random.Generator) -> Trial:
        z = 1.0 + 1.5 * random.normal(size=groups * pairs)
        losses = np.logaddexp(0.0, -z).reshape(groups, pairs)
        found = prefloss.evaluate(z, np.zeros(len(z)), group=group).worst_group(LEVEL)
        return Trial(holds(naive(losses[losses.mean(1).argmax()]), truth), holds(found.interval, truth))

    return draw


def sequence(first: int, last: int, step: int) -> Callable[[np.random.Generator], Trial]:
    """Looked at again and again. The estimates of the looks are made from running sums."""
    truth, looks = expected_loss(1.0, 1.5), np.arange(first, last + 1, step)

    def draw(random: np.random.Generator) -> Trial:
        losses = np.logaddexp(0.0, -(1.0 + 1.5 * random.normal(size=last)))
        mean = np.cumsum(losses)[looks - 1] / looks
        variance = (np.cumsum(losses**2)[looks - 1] / looks - mean**2) * looks / (looks - 1)
        errors = np.sqrt(variance / looks)
        found = (
            prefloss.Estimate(float(m), float(e), n - 1.0, 0.0, int(n), int(n), float(v)).sequence(
                LEVEL, tightest_at=1000
            )
            for m, e, n, v in zip(mean, errors, looks, variance, strict=True)
        )
        return Trial(
            bool(np.all(np.abs(mean - truth) <= NORMAL * errors)), all(holds(interval, truth) for interval in found)
        )

    return draw


def judged(labelled: int, others: int) -> Callable[[np.random.Generator], Trial]:
    """People label some pairs, a judge all of them. What is naive here: the judge's labels taken for people's."""
    pairs = labelled + others

    def draw(random: np.random.Generator) -> Trial:
        z = 1.5 * random.normal(size=pairs)
        right = random.random(pairs) < 1.0 / (1.0 + np.exp(-0.7 * z))
        judge = np.clip(0.75 * right + 0.25 * random.random(pairs), 0.0, 1.0)
        found = prefloss.evaluate(
            z, np.zeros(pairs), target=np.where(np.arange(pairs) < labelled, right, np.nan), judge=judge
        ).prediction_powered
        of_judge = np.logaddexp(0.0, -z) + (1.0 - judge) * z
        return Trial(holds(naive(of_judge), JUDGED_TRUTH), holds(found.interval(LEVEL), JUDGED_TRUTH))

    return draw


def _judged_truth() -> float:
    """E log(1 + exp(-z)) + E (1 - sigma(0.7 z)) z."""
    x, weight = np.polynomial.hermite_e.hermegauss(120)
    z = 1.5 * x
    return float(weight @ (np.logaddexp(0.0, -z) + z / (1.0 + np.exp(0.7 * z))) / weight.sum())


JUDGED_TRUTH = _judged_truth()


# ---- The designs of `PairStats`: the layout says which pairs are dependent ----


def groups(count: int, responses: int) -> Callable[[np.random.Generator], Trial]:
    """All pairs of the ranked responses to each prompt. A response of rank k has the reward -k s + noise, and the model is
    better at some prompts than at others: s ~ N(0.5, 0.3^2)."""
    mean, deviation = 0.5, 0.3
    better, worse = np.triu_indices(responses, 1)
    truth = float(
        np.mean([expected_loss(mean * far, math.hypot(deviation * far, math.sqrt(2))) for far in worse - better])
    )
    ranks = torch.arange(responses).expand(count, responses)

    def draw(random: np.random.Generator) -> Trial:
        step = mean + deviation * random.normal(size=(count, 1))
        rewards = random.normal(size=(count, responses)) - step * np.arange(responses)
        _, found = prefloss.bradley_terry_loss_grouped(torch.from_numpy(rewards), ranks, return_stats=True)
        return of_stats(rewards[:, better] - rewards[:, worse], truth, found)

    return draw


def one_list(positives: int, negatives: int) -> Callable[[np.random.Generator], Trial]:
    """All pairs of a positive and a negative of one list."""
    truth = expected_loss(1.0, math.sqrt(2))
    ranks = torch.arange(positives + negatives)[None] >= positives

    def draw(random: np.random.Generator) -> Trial:
        rewards = random.normal(size=positives + negatives) + np.where(ranks[0], 0.0, 1.0)
        _, found = prefloss.bradley_terry_loss_grouped(torch.from_numpy(rewards)[None], ranks, return_stats=True)
        return of_stats(rewards[:positives, None] - rewards[positives:], truth, found)

    return draw


def comparisons(count: int, items: int) -> Callable[[np.random.Generator], Trial]:
    """Items of strength N(0, 1) are compared at random and win by Bradley-Terry; the model's scores are the strengths + N(0, 1)."""
    x, weight = np.polynomial.hermite_e.hermegauss(80)
    apart = math.sqrt(2) * x[:, None]
    z = apart + math.sqrt(2) * x
    of_both = (np.logaddexp(0.0, -z) + z / (1.0 + np.exp(apart))) / weight.sum() ** 2  # the first item wins or loses
    truth = float(weight @ of_both @ weight)

    def draw(random: np.random.Generator) -> Trial:
        strength = random.normal(size=items)
        scores = strength + random.normal(size=items)
        one = random.integers(items, size=count)
        other = (one + random.integers(1, items, size=count)) % items
        wins = random.random(count) < 1.0 / (1.0 + np.exp(strength[other] - strength[one]))
        winner, loser = np.where(wins, one, other), np.where(wins, other, one)
        _, found = prefloss.bradley_terry_loss_indexed(
            *map(torch.from_numpy, (scores, winner, loser)), return_stats=True
        )
        return of_stats(scores[winner] - scores[loser], truth, found)

    return draw


def of_stats(z: Array, truth: float, found: prefloss.PairStats) -> Trial:
    losses = np.logaddexp(0.0, -z).ravel()
    return Trial(holds(naive(losses), truth), holds(found.confidence_interval(LEVEL), truth))


DESIGNS = (
    Design("60 independent pairs", independent(60), "93.5 to 96.5"),
    Design("weights: 150 effective pairs", weighted(245), "93 to 97"),
    Design("25 prompts of 2 to 30 pairs", prompts(25), "92 or more"),
    Design("100 prompts of 2 to 30 pairs", prompts(100), "93.5 to 96.5"),
    Design("difference of two equal models", difference(100), "93.5 to 96.5"),
    Design("worst of 20 equal groups", worst_group(20, 100), "95 or more", repeats=25),
    Design("looked at from 200 to 5,000 pairs", sequence(200, 5000, 100), "94 or more", repeats=50),
    Design("100 labels, 900 judged pairs", judged(100, 900), ""),
    Design("all pairs of 6 responses, 60 prompts", groups(60, 6), "93 or more"),
    Design("all pairs of 40 and 160 items", one_list(40, 160), "92.5 or more"),
    Design("600 comparisons of 60 items", comparisons(600, 60), "90 or more"),
)


def simulate(design: Design, repeats: int, seed: int) -> Iterator[Trial]:
    random = np.random.default_rng(seed)
    for _ in range(max(2, repeats * design.repeats // 100)):
        yield design.draw(random)


def draw_chart(rows: list[tuple[str, float, float, float]], path: Path) -> None:
    """Real against nominal coverage; `rows` are (name, naive, ours, simulation error of ours), in percent.

    The grey band is 95 +- 1.5, and bars are 1.96 simulation errors.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": "prefloss"}):
        figure, axes = plt.subplots(figsize=(7.6, 0.42 * len(rows) + 1.5), layout="constrained")
        axes.axvspan(93.5, 96.5, color="#e5e7eb", linewidth=0)
        axes.axvline(95.0, color="#6b7280", linewidth=1)
        for place, (_, before, now, error) in enumerate(rows):
            axes.plot([before, now], [place, place], color="#d1d5db", linewidth=2, zorder=1)
            axes.plot(
                before,
                place,
                "s",
                color="#6b7280",
                label="as independent pairs, normal quantile" if place == 0 else None,
            )
            axes.errorbar(
                now,
                place,
                xerr=1.96 * error,
                fmt="o",
                color="#c2410c",
                label="prefloss" if place == 0 else None,
            )
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=min(40.0, *(row[1] - 3 for row in rows)), right=100.5)
        axes.set_xlabel("of 100 intervals at 95 %, how many hold the truth")
        axes.set_title("Do 95 % intervals hold the truth?", loc="left", x=-0.45)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "--repeats",
        type=int,
        default=4000,
        metavar="N",
        help="collections a row (%(default)s; fewer where one takes long)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of everything random (%(default)s)")
    parser.add_argument("--svg", type=Path, metavar="PATH", help="draw the picture there")
    given = parser.parse_args()
    print(f"{'coverage of 95 % intervals':36}{'naive':>8}{'ours':>8}{'+-':>7}   must")
    rows = []
    for design in DESIGNS:
        trials = np.array(
            list(
                tqdm(
                    simulate(design, given.repeats, given.seed),
                    design.name,
                    leave=False,
                    disable=not sys.stderr.isatty(),
                )
            )
        )
        before, now = (100.0 * float(share) for share in trials.mean(axis=0))
        error = 100.0 * math.sqrt(max(now / 100.0 * (1.0 - now / 100.0), 1.0 / len(trials)) / len(trials))
        rows.append((design.name, before, now, error))
        print(f"{design.name:36}{before:6.1f} %{now:6.1f} %{error:7.2f}   {design.must}".rstrip(), flush=True)
    if given.svg:
        draw_chart(rows, given.svg)


if __name__ == "__main__":
    main()
