"""`PairwiseObjective` for XGBoost and LightGBM: what it returns in a round, what it refuses, and training with both."""

from __future__ import annotations

import doctest
import importlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

import prefloss
from prefloss.integrations import boosting
from prefloss.integrations.boosting import PairwiseObjective
from prefloss.integrations.lightgbm import PairwiseObjective as ForLightGBM
from prefloss.integrations.xgboost import PairwiseObjective as ForXGBoost

clients = pytest.mark.clients
PAGE = Path(__file__).parent.parent / "docs" / "boosted_trees.md"


def drawn(seed=0, sizes=(5, 1, 30, 64)):
    """(labels, scores, sizes), as the libraries hand them over."""
    random = np.random.default_rng(seed)
    rows = sum(sizes)
    return random.integers(0, 4, rows).astype(np.float32), random.normal(size=rows).astype(np.float32), np.array(sizes)


def test_both_libraries_have_the_same_class():
    assert ForXGBoost is ForLightGBM is PairwiseObjective
    assert doctest.testmod(boosting).failed == 0


def test_pairs_scale_is_the_sum_over_all_pairs_of_all_queries():
    labels, scores, sizes = drawn()
    expected = prefloss.bradley_terry_derivatives_grouped(scores, relevance=labels, group_sizes=sizes, beta=0.5)
    found = PairwiseObjective(scale="pairs", beta=0.5, max_step=1e9).of_arrays(labels, scores, None, sizes)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, other.astype(np.float32))


def test_items_scale_gives_each_query_the_curvature_of_its_rows():
    """At equal scores a quarter for each row, in queries with pairs; and the sums of both scales are in proportion."""
    labels, scores, sizes = drawn()
    _, curvature = PairwiseObjective().of_arrays(labels, np.zeros_like(scores), None, sizes)
    ends = np.cumsum(sizes)
    for begin, end in zip(ends - sizes, ends, strict=True):
        several = len(set(labels[begin:end])) > 1
        assert curvature[begin:end].sum() == pytest.approx((end - begin) / 4 if several else 0.0, rel=1e-6)
    once, scaled = (
        PairwiseObjective(scale=scale).of_arrays(labels[6:36], scores[6:36], None, [30]) for scale in ("pairs", "items")
    )
    np.testing.assert_allclose(scaled[0], once[0] * (scaled[0][0] / once[0][0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["items", "pairs"])
def test_weights_of_queries_multiply_theirs_and_may_be_given_for_rows(scale):
    labels, scores, sizes = drawn()
    weights = np.array([2.0, 1.0, 0.0, 0.5])
    objective = PairwiseObjective(scale=scale)
    alone = objective.of_arrays(labels, scores, None, sizes)
    of_queries = objective.of_arrays(labels, scores, weights, sizes)
    of_rows = objective.of_arrays(labels, scores, np.repeat(weights, sizes), sizes)
    for found, row, unweighted in zip(of_queries, of_rows, alone, strict=True):
        np.testing.assert_array_equal(found, row)
        np.testing.assert_allclose(found, np.repeat(weights, sizes) * unweighted, rtol=1e-6)


def test_one_list_needs_no_queries():
    labels, scores, _ = drawn()
    labels = labels > 1
    found = PairwiseObjective(one_list=True).of_arrays(labels, scores)
    expected = PairwiseObjective().of_arrays(labels, scores, None, [len(scores)])
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    for empty in ([], np.array([], dtype=np.uint32)):  # as XGBoost has it where nothing is given
        np.testing.assert_array_equal(PairwiseObjective(one_list=True).of_arrays(labels, scores, empty, empty), found)


def test_no_row_asks_for_a_longer_step_than_the_guard_allows():
    """A pair in the wrong order by 60: its own curvature is exp(-60)."""
    labels, scores = np.array([1.0, 0.0, 1.0, 0.0]), np.array([-30.0, 30.0, 0.1, 0.0])
    for step in (10.0, 3.0):
        gradient, curvature = PairwiseObjective(one_list=True, max_step=step).of_arrays(labels, scores)
        assert (np.abs(gradient) <= step * curvature * (1 + 2.0**-22)).all()
    _, free = PairwiseObjective(one_list=True, max_step=1e30).of_arrays(labels[:2], scores[:2])
    assert (free < 1e-20).all()


def test_rows_without_a_pair_keep_zeros():
    gradient, curvature = PairwiseObjective().of_arrays(np.array([1, 1, 2]), np.zeros(3), None, [2, 1])
    np.testing.assert_array_equal([gradient, curvature], np.zeros((2, 3)))
    for found in PairwiseObjective(one_list=True).of_arrays(np.zeros(0), np.zeros(0)):
        assert found.shape == (0,)


BAD = [
    ({}, (None, None), ValueError, "the data must say which rows are of one query, got no group; give group="),
    ({"one_list": True}, (None, [2, 2]), ValueError, "one_list=True is for data without queries, got 2 of them"),
    ({}, (None, [2, 3]), ValueError, "group must be the sizes .* that add up to the number of rows, 4, got 5"),
    ({}, (None, [2**63 + 4, 2**63]), ValueError, "that add up to the number of rows, 4, got 184467"),
    (
        {},
        (None, [1.5, 2.5]),
        TypeError,
        r"group must be the sizes of the queries, \(Q,\) integers >= 0, got dtype float64",
    ),
    ({}, (None, [5, -1]), ValueError, "group must be the sizes of the queries, .* got -1 among them"),
    ({}, (None, 3), ValueError, r"group must be the sizes of the queries, \(Q,\) integers >= 0, got shape \(\)"),
    ({}, (None, np.ma.array([2, 2], mask=[1, 0])), TypeError, "group must be an array without a mask"),
    ({}, ([1.0, -1.0], [2, 2]), ValueError, "weights must be finite numbers >= 0, got -1.0"),
    ({}, ([1.0, np.nan], [2, 2]), ValueError, "weights must be finite numbers >= 0, got nan"),
    ({}, ([1.0, 1j], [2, 2]), TypeError, "weights must hold real numbers, got dtype complex128"),
    ({}, (np.ma.array([1.0, 1.0], mask=[1, 0]), [2, 2]), TypeError, "weights must be an array without a mask"),
    ({}, (2.0, [2, 2]), ValueError, r"weights must be one a query, 2, or one a row, 4, got shape \(\)"),
    ({}, ([1.0, 2.0, 1.0, 1.0], [2, 2]), ValueError, "got different ones within a query"),
    ({"one_list": True}, ([1.0, 2.0, 1.0, 1.0], None), ValueError, "got different ones within a query"),
    ({}, ([1.0, 2.0, 1.0], [2, 2]), ValueError, r"weights must be one a query, 2, or one a row, 4, got shape \(3,\)"),
]


@pytest.mark.parametrize(("options", "given", "error", "says"), BAD)
def test_what_a_round_cannot_use_is_an_error_that_says_so(options, given, error, says):
    with pytest.raises(error, match=says):
        PairwiseObjective(**options).of_arrays(np.array([0, 1, 0, 1]), np.zeros(4), *given)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"one_list": 1}, TypeError, "one_list must be True or False, got 1"),
        ({"scale": "rows"}, ValueError, "scale must be one of 'items', 'pairs', got 'rows'"),
        ({"max_step": 0.0}, ValueError, "max_step must be a number from 1e-30 to 1e30, got 0"),
        ({"max_step": float("inf")}, ValueError, "max_step must be a number from 1e-30 to 1e30"),
        ({"max_step": 1e-46}, ValueError, "max_step must be a number from 1e-30 to 1e30"),
        ({"beta": 1e300}, ValueError, "beta must be finite in float32"),
        ({"beta": float("nan")}, ValueError, "beta must be a finite number"),
        ({"ties": "both"}, ValueError, "ties must be one of"),
        ({"label_smoothing": 0.6}, ValueError, "label_smoothing must be a number in"),
    ],
)
def test_options_are_checked_when_the_objective_is_made(options, error, says):
    with pytest.raises(error, match=says):
        PairwiseObjective(**options)


def test_scores_of_several_classes_and_nan_labels_are_refused():
    with pytest.raises(ValueError, match=r"one score a row, got predictions of shape \(4, 3\)"):
        PairwiseObjective(one_list=True).of_arrays(np.array([0, 1, 2, 0]), np.zeros((4, 3)))
    for values, says in (
        (np.ones(4, dtype=np.complex64), "must hold real numbers, got dtype complex64"),
        (np.ma.array(np.ones(4), mask=[1, 0, 0, 0]), "must be an array without a mask"),
    ):
        with pytest.raises(TypeError, match=f"predictions {says}"):
            PairwiseObjective(one_list=True).of_arrays(np.array([0, 1, 2, 0]), values)
        with pytest.raises(TypeError, match=f"labels {says}"):
            PairwiseObjective(one_list=True).of_arrays(values, np.zeros(4))
    with pytest.raises(ValueError, match="must be numbers, got nan"):
        PairwiseObjective(one_list=True).of_arrays(np.array([0, np.nan]), np.zeros(2))


# ---- With the packages ----


def table(seed=0, rows=600):
    """(features, labels 0 to 2, sizes): labels follow two of four features."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(rows, 4))
    worth = features[:, 0] + features[:, 1] ** 2 + 0.3 * random.normal(size=rows)
    return features, np.digitize(worth, [0.5, 2.0]), np.full(rows // 30, 30)


def right(scores, labels, sizes):
    """The share of pairs that the scores have in the right order."""
    found = []
    for begin in np.cumsum(sizes) - sizes:
        its = slice(begin, begin + sizes[0])
        better = labels[its][:, None] > labels[its][None, :]
        found.append((scores[its][:, None] > scores[its][None, :])[better].mean())
    return float(np.mean(found))


def with_xgboost(objective, features, labels, sizes, weights=None):
    xgboost = importlib.import_module("xgboost")
    data = xgboost.DMatrix(features, labels, group=sizes, weight=weights)
    model = xgboost.train({"max_depth": 3, "nthread": 1}, data, 20, obj=objective)
    return lambda other: model.predict(xgboost.DMatrix(other))


def with_lightgbm(objective, features, labels, sizes, weights=None):
    lightgbm = importlib.import_module("lightgbm")
    weights = None if weights is None else np.repeat(weights, sizes)
    data = lightgbm.Dataset(features, labels, group=sizes, weight=weights)
    own = {"num_leaves": 8, "num_threads": 1, "verbose": -1, "deterministic": True}
    model = lightgbm.train({**own, "objective": objective}, data, 20)
    return model.predict


over_libraries = pytest.mark.parametrize("train", [with_xgboost, with_lightgbm])


@clients
@over_libraries
def test_trees_learn_the_order_within_queries(train):
    features, labels, sizes = table()
    unseen, truth, _ = table(1)
    assert right(train(PairwiseObjective(), features, labels, sizes)(unseen), truth, sizes) > 0.9


@clients
@over_libraries
def test_queries_of_weight_zero_teach_nothing(train):
    features, labels, sizes = table()
    weights = np.repeat([1.0, 0.0], len(sizes) // 2)
    spoilt = np.where(np.arange(len(labels)) < len(labels) // 2, labels, 2 - labels)
    models = [train(PairwiseObjective(), features, given, sizes, weights) for given in (labels, spoilt)]
    np.testing.assert_array_equal(*(model(features) for model in models))


@clients
@over_libraries
def test_one_list_is_trained_for_its_auc(train):
    features, labels, _ = table()
    model = train(PairwiseObjective(one_list=True), features, labels > 1, None)
    assert right(model(features), labels > 1, [len(labels)]) > 0.9


@clients
@over_libraries
def test_data_without_queries_are_an_error_of_ours(train):
    features, labels, _ = table()
    with pytest.raises(ValueError, match="the data must say which rows are of one query"):
        train(PairwiseObjective(), features, labels, None)


@clients
def test_the_classes_for_scikit_learn_take_it():
    lightgbm, xgboost = importlib.import_module("lightgbm"), importlib.import_module("xgboost")
    features, labels, sizes = table()
    options = {"n_estimators": 20, "n_jobs": 1}
    ranker = lightgbm.LGBMRanker(objective=PairwiseObjective().of_arrays, verbose=-1, **options)
    ranker.fit(features, labels, group=sizes)
    assert right(ranker.predict(features), labels, sizes) > 0.9
    classifier = xgboost.XGBClassifier(objective=PairwiseObjective(one_list=True).of_arrays, **options)
    classifier.fit(features, labels > 1)
    assert right(classifier.predict(features, output_margin=True), labels > 1, [len(labels)]) > 0.9
    for model in (ranker, classifier):
        assert pickle.loads(pickle.dumps(model)).get_params()["n_estimators"] == 20
    with pytest.raises(ValueError, match="custom objective function not supported"):
        xgboost.XGBRanker(objective=PairwiseObjective())


@clients
@pytest.mark.parametrize("name", ["xgboost", "lightgbm"])
def test_the_example_of_a_module_gives_what_it_says(name):
    found = doctest.testmod(importlib.import_module(f"prefloss.integrations.{name}"))
    assert found.attempted
    assert not found.failed


@clients
def test_the_lines_of_the_page_run():
    blocks = re.findall(r"^```\{code-block\} py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)
    assert len(blocks) >= 3
    features, labels, sizes = table()
    space = {"features": features, "relevance": labels, "positive": labels > 1, "sizes": sizes}
    for code in blocks:
        exec(compile(code, str(PAGE), "exec"), space)
