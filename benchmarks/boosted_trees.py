"""Boosted trees on all pairs against the libraries' own objectives: held-out quality over seeds, and the time of a round.

    python benchmarks/boosted_trees.py             # quality; needs xgboost, lightgbm and scikit-learn
    python benchmarks/boosted_trees.py --time      # a round's objective over the library's own tree building

Everything is drawn here. Each objective trains with the same parameters; the number of trees is what is best on a validation
set, and the figures are of a third set. Differences are paired: of two objectives on the same draw, with the standard error over
the draws. Threads: OMP_NUM_THREADS; where other programs hold the cores, 1 is many times faster.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import lightgbm
import numpy as np
import torch
import xgboost
from numpy.typing import NDArray
from sklearn.datasets import make_classification  # type: ignore[import-untyped]
from sklearn.metrics import roc_auc_score  # type: ignore[import-untyped]

from prefloss.integrations.boosting import PairwiseObjective

Array = NDArray[Any]
TREES, EVERY = 200, 10
XGBOOST = {"learning_rate": 0.1, "max_depth": 5, "verbosity": 0}
LIGHTGBM = {"learning_rate": 0.1, "num_leaves": 31, "verbose": -1, "deterministic": True}


class Part(NamedTuple):
    """`sizes`: of the queries; None where the data are one list."""

    features: Array
    labels: Array
    sizes: Array | None


class ConstantCurvature(PairwiseObjective):
    """The gradient of all pairs, and for each row the curvature that it has on average before the first tree."""

    def of_arrays(self, *arguments: Any) -> tuple[Array, Array]:
        gradient, _ = super().of_arrays(*arguments)
        return gradient, np.full_like(gradient, 0.25)


def queries(random: np.random.Generator, count: int) -> Part:
    """Documents with labels 0 to 4, most of them 0: what they are worth depends on features with interactions, and on noise."""
    sizes = random.integers(10, 80, count)
    rows = int(sizes.sum())
    features = random.normal(size=(rows, 15))
    query = np.repeat(np.arange(count), sizes)
    features[:, 12] += 2.0 * random.normal(size=count)[query]  # the same for a query: of no use by itself
    worth = (
        features[:, 0] + np.maximum(features[:, 1], 0.0) * features[:, 2] + np.sin(2.0 * features[:, 3])
        + 0.5 * np.where(features[:, 12] > 0.0, features[:, 4], -features[:, 4]) + 1.5 * random.normal(size=rows)
    )  # fmt: skip
    return Part(features, np.digitize(worth, [0.5, 1.5, 2.5, 3.5]), sizes)


def imbalanced(random: np.random.Generator) -> list[Part]:
    """Three parts of one set with 3 % of positives."""
    features, labels = make_classification(
        18_000, 20, n_informative=8, n_redundant=2, n_clusters_per_class=4, weights=[0.97], flip_y=0.01, class_sep=0.8,
        random_state=int(random.integers(2**31)),
    )  # fmt: skip
    ends = ((0, 5_000), (5_000, 8_000), (8_000, 18_000))
    return [Part(features[begin:end], labels[begin:end], None) for begin, end in ends]


def ndcg(scores: Array, part: Part) -> float:
    """NDCG@10 with gains 2^label - 1, a mean over the queries with a label above 0."""
    assert part.sizes is not None
    found, begin = [], 0
    discounts = 1.0 / np.log2(np.arange(10) + 2.0)
    for size in part.sizes:
        gains = 2.0 ** part.labels[begin : begin + size] - 1.0
        best = np.sort(gains)[::-1][:10] @ discounts[:size]
        if best > 0.0:
            order = np.argsort(-scores[begin : begin + size], kind="stable")[:10]
            found.append(float(gains[order] @ discounts[:size] / best))
        begin += size
    return statistics.fmean(found)


def auc(scores: Array, part: Part) -> float:
    return float(roc_auc_score(part.labels, scores))


Scores = Callable[[Part, int], Array]


def with_xgboost(objective: Any, part: Part) -> Scores:
    data = xgboost.DMatrix(part.features, part.labels, group=part.sizes)
    own = {"objective": objective} if isinstance(objective, str) else {}
    model = xgboost.train({**XGBOOST, **own}, data, TREES, obj=None if own else objective)
    return lambda other, trees: np.asarray(
        model.predict(xgboost.DMatrix(other.features), output_margin=True, iteration_range=(0, trees))
    )


def with_lightgbm(objective: Any, part: Part) -> Scores:
    data = lightgbm.Dataset(part.features, part.labels, group=part.sizes)
    model = lightgbm.train({**LIGHTGBM, "objective": objective}, data, TREES)
    return lambda other, trees: np.asarray(model.predict(other.features, raw_score=True, num_iteration=trees))


LIBRARIES = {"XGBoost": with_xgboost, "LightGBM": with_lightgbm}


def contenders(one_list: bool) -> dict[str, tuple[str, Any]]:
    """{name: (library, objective)}; of each library its own first."""
    own = {
        "XGBoost": ["binary:logistic", "rank:pairwise"] if one_list else ["rank:pairwise", "rank:ndcg"],
        "LightGBM": ["binary"] if one_list else ["lambdarank", "rank_xendcg"],
    }
    ours = {
        "all pairs": PairwiseObjective(one_list=one_list),
        "all pairs, each counted once": PairwiseObjective(one_list=one_list, scale="pairs"),
        "all pairs, constant curvature": ConstantCurvature(one_list=one_list),
    }
    named: dict[str, tuple[str, Any]] = {}
    for library, theirs in own.items():
        named |= {f"{library}, {name}": (library, name) for name in theirs}
        named |= {f"{library}, {name}": (library, objective) for name, objective in ours.items()}
    return named


def quality(one_list: bool, seed: int) -> dict[str, float]:
    random = np.random.default_rng(seed)
    train, valid, test = imbalanced(random) if one_list else [queries(random, count) for count in (150, 100, 400)]
    metric = auc if one_list else ndcg
    found = {}
    for name, (library, objective) in contenders(one_list).items():
        scores = LIBRARIES[library](objective, train)
        trees = max(range(EVERY, TREES + 1, EVERY), key=lambda count: metric(scores(valid, count), valid))
        found[name] = metric(scores(test, trees), test)
    return found


def report(one_list: bool, seeds: int, first: int) -> None:
    rows = [quality(one_list, first + seed) for seed in range(seeds)]
    what = "AUC, 5,000 rows of which 3 % are positive" if one_list else "NDCG@10, 150 queries of 10 to 79 documents"
    print(f"\n{what}; {seeds} draws, up to {TREES} trees; and how much better than the library's own (its first)")
    print(f"{'':42}{'mean':>8}{'difference':>13}{'error':>9}{'better in':>11}")
    for name in rows[0]:
        own = next(other for other in rows[0] if other.partition(",")[0] == name.partition(",")[0])
        line = f"{name:42}{statistics.fmean(row[name] for row in rows):8.4f}"
        print(line + ("" if name == own else difference_of([row[name] - row[own] for row in rows])))
    for library in LIBRARIES:
        name = f"{library}, all pairs"
        differences = [row[name] - row[f"{name}, constant curvature"] for row in rows]
        print(f"{library + ', all pairs less constant curvature':50}{difference_of(differences)}")


def difference_of(differences: list[float]) -> str:
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    better = sum(difference > 0 for difference in differences)
    return f"{statistics.fmean(differences):+13.4f}{error:9.4f}{better:7} of {len(differences)}"


def report_time(rows: int, columns: int) -> None:
    """Median seconds of the objective in a round, and of the rest of the round, which is the library's tree building."""
    random = np.random.default_rng(0)
    features = random.standard_normal((rows, columns), dtype=np.float32)
    worth = features[:, 0] + features[:, 1] * features[:, 2] + random.normal(size=rows)
    cases = {
        "queries of 100, 5 labels": (np.digitize(worth, [0.5, 1.5, 2.5, 3.5]), [100] * (rows // 100), PairwiseObjective()),
        "one list, 3 % positive": (worth > np.quantile(worth, 0.97), None, PairwiseObjective(one_list=True)),
    }  # fmt: skip
    print(
        f"{rows} rows of {columns} features, {torch.get_num_threads()} threads: median seconds of 5 rounds after the first"
    )
    print(f"{'':40}{'objective':>11}{'trees':>9}{'share':>8}")
    for case, (labels, sizes, objective) in cases.items():
        for library in LIBRARIES:
            inside: list[float] = []

            def timed(
                predictions: Array, data: Any, objective: PairwiseObjective = objective, inside: list[float] = inside
            ) -> tuple[Array, Array]:
                start = time.perf_counter()
                result = objective(predictions, data)
                inside.append(time.perf_counter() - start)
                return result

            whole = []
            if library == "XGBoost":
                matrix = xgboost.DMatrix(features, labels, group=sizes)
                booster: Any = xgboost.Booster(XGBOOST, [matrix])
                rounds: Callable[[int], Any] = lambda i: booster.update(matrix, i, timed)  # noqa: B023, E731
            else:
                dataset = lightgbm.Dataset(features, labels, group=sizes, params=LIGHTGBM)
                booster = lightgbm.Booster({**LIGHTGBM, "objective": "none"}, dataset)
                rounds = lambda i: booster.update(fobj=timed)  # noqa: B023, E731
            for i in range(6):
                start = time.perf_counter()
                rounds(i)
                whole.append(time.perf_counter() - start)
            ours = statistics.median(inside[1:])
            trees = statistics.median(all_ - part for all_, part in zip(whole[1:], inside[1:], strict=True))
            print(f"{library + ', ' + case:40}{ours:11.3f}{trees:9.3f}{ours / trees:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="how many draws of each kind of data (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them (0)")
    parser.add_argument("--time", action="store_true", help="time rounds instead")
    parser.add_argument("--rows", type=int, default=1_000_000, help="for --time (1000000)")
    parser.add_argument("--features", type=int, default=20, help="for --time (20)")
    given = parser.parse_args()
    if given.seeds < 2 or given.rows < 1000 or given.features < 3:
        parser.error("--seeds must be at least 2, --rows at least 1000 and --features at least 3")
    if given.time:
        report_time(given.rows, given.features)
        return
    for one_list in (False, True):
        report(one_list, given.seeds, given.seed)


if __name__ == "__main__":
    main()
