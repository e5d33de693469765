"""`prefloss.integrations.ray.evaluate` on a local Ray of two workers: the numbers, and the errors, of one process."""

from __future__ import annotations

import doctest
import importlib
import io
import itertools
import sys
import time

import numpy as np
import pytest
from made_pairs import made_pairs

import prefloss

pa = pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # Ray's, of its own settings
PAIRS = 700
# Unequal, two empty, more than are added up at once, and no end of one where a cluster ends.
ENDS = np.cumsum([0, 1, 250, 0, 3, 40, 41, 1, 90, 0, 100, 60, 14, 100])


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "prefloss.integrations.ray", raising=False)
    with pytest.raises(ImportError, match=r'needs ray, which is not installed: pip install "prefloss\[ray\]"'):
        importlib.import_module("prefloss.integrations.ray")


@pytest.fixture(scope="module")
def ray():
    """Two workers. Only `-m clients` gets here, so it is an error if Ray is missing."""
    ray = importlib.import_module("ray")
    importlib.import_module("ray.data").DataContext.get_current().enable_progress_bars = False
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def evaluate(ray):
    return importlib.import_module("prefloss.integrations.ray").evaluate


def pairs(seed=0):
    random = np.random.default_rng(seed)
    made = made_pairs(PAIRS, 60, seed)
    columns = {"a": made["chosen"], "b": 0.3 * random.normal(size=PAIRS), "prompt": made["cluster"]}
    columns["who"] = np.array([f"w{each}" for each in made["cluster"]])
    columns["kind"] = np.array(["code", "news", "söng"])[random.integers(0, 3, PAIRS)]
    columns["w"] = random.gamma(0.5, size=PAIRS) * (random.random(PAIRS) < 0.9)
    columns["t"], columns["m"] = random.random(PAIRS), random.random(PAIRS)
    columns["sure"] = np.where(random.random(PAIRS) < 0.3, columns["t"].round(), np.nan)
    return columns | {"a2": made["chosen"] + random.normal(size=PAIRS), "b2": random.normal(size=PAIRS)}


def blocks(columns):
    table = pa.table(columns)
    return [table.slice(first, last - first) for first, last in itertools.pairwise(ENDS)]


def numbers(value):
    """All numbers of a nested dictionary, in its order."""
    if isinstance(value, dict):
        return [number for each in value.values() for number in numbers(each)]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


def named(columns, names):
    """What `prefloss.evaluate` is given where that of Ray is given these names."""
    taken = {}
    for argument, name in names.items():
        several = isinstance(name, tuple)
        taken[argument] = tuple(columns[each] for each in name) if several else columns.get(name, name)
    return taken


@pytest.mark.clients
@pytest.mark.parametrize(
    "names",
    [
        {},
        {"cluster": "prompt"},
        {"cluster": "who", "group": "kind", "weight": "w", "baseline": ("a2", "b2"), "target": "t", "margin": "m"},
        {"group": "kind", "weight": "w", "target": 0.75, "margin": 0.5, "beta": 2.0, "label_smoothing": 0.1},
        {"cluster": "who", "target": "sure", "judge": "t", "flip_rate": 0.1},
    ],
    ids=lambda names: "+".join(names) or "plain",
)
def test_the_numbers_are_those_of_one_process(names, ray, evaluate):
    columns = pairs()
    whole = prefloss.evaluate(columns["a"], columns["b"], **named(columns, names))
    found = evaluate(ray.data.from_arrow(blocks(columns)), chosen="a", rejected="b", **names)
    assert found.options == whole.options
    assert (found.pairs, found.clusters) == (whole.pairs, whole.clusters)
    for name in ("loss", "accuracy", "margin", "brier"):
        ours, theirs = getattr(found, name), getattr(whole, name)
        assert ours.value == pytest.approx(theirs.value, rel=1e-12)
        assert ours.standard_error == pytest.approx(theirs.standard_error, rel=1e-12)
        assert ours.interval() == pytest.approx(theirs.interval(), rel=1e-12)
    assert numbers(found.as_dict()) == pytest.approx(numbers(whole.as_dict()), rel=1e-12, nan_ok=True)


@pytest.mark.clients
def test_an_offset_of_1e8_and_one_huge_reward_change_nothing_of_that(ray, evaluate):
    columns = pairs()
    columns["a"], columns["b"] = columns["a"].round(3) + 1e8, columns["b"].round(3) + 1e8
    columns["a"][5], columns["w"][7] = -1e9, 1e6
    whole = prefloss.evaluate(columns["a"], columns["b"], weight=columns["w"], cluster=columns["who"])
    found = evaluate(ray.data.from_arrow(blocks(columns)), chosen="a", rejected="b", weight="w", cluster="who")
    assert found.loss.value == pytest.approx(whole.loss.value, rel=1e-12)
    assert found.loss.standard_error == pytest.approx(whole.loss.standard_error, rel=1e-12)


@pytest.mark.clients
def test_the_same_blocks_give_the_same_bits_in_whatever_order_they_are_ready(ray, evaluate):
    def late(block):
        time.sleep(1.0 if len(block) in (250, 41) else 0.0)
        return block

    dataset = ray.data.from_arrow(blocks(pairs()))
    slow = dataset.map_batches(late, batch_size=None, batch_format="pyarrow")
    first, second = (evaluate(each, chosen="a", rejected="b", weight="w", group="kind") for each in (dataset, slow))
    assert second.to_table().equals(first.to_table(), check_metadata=True)
    assert slow.context.execution_options.preserve_order is False  # as the user had it


@pytest.mark.clients
def test_pandas_blocks_dictionaries_and_files_are_read_too(ray, evaluate, tmp_path):
    columns = {name: column for name, column in pairs().items() if name in ("a", "b", "who", "w")}
    whole = prefloss.evaluate(columns["a"], columns["b"], cluster=columns["who"])
    frames = [block.to_pandas() for block in blocks(columns) if len(block)]
    files = [frame.to_parquet(tmp_path / f"{place:02}.parquet") for place, frame in enumerate(frames)]
    frames[0]["who"] = frames[0]["who"].astype("category")
    for dataset in (ray.data.from_pandas(frames), ray.data.read_parquet(str(tmp_path))):
        found = evaluate(dataset, chosen="a", rejected="b", cluster="who")
        assert found.pairs == PAIRS
        assert found.loss.standard_error == pytest.approx(whole.loss.standard_error, rel=1e-12)
    assert len(files) > 8


@pytest.mark.clients
def test_what_is_not_known_before_it_is_run_is_run_once(ray, evaluate, tmp_path):
    """A model's rewards, say: nothing is executed to see which columns will come."""
    log = tmp_path / "log"

    def rewards(block):
        with log.open("a") as file:
            file.write("x")
        if len(block) == 3:
            return pa.table({})  # nothing is left of this one, not even the columns
        return block.append_column("c", block["a"])

    dataset = ray.data.from_arrow(blocks(pairs())).map_batches(rewards, batch_size=None, batch_format="pyarrow")
    found = evaluate(dataset, chosen="c", rejected="b")
    assert found.pairs == PAIRS - 3
    assert len(log.read_text()) <= len(ENDS) - 1
    with pytest.raises(ValueError, match=r"rejected: there is no column 'd'; there are: a, b, .*, c; in a block of"):
        evaluate(dataset, chosen="c", rejected="d")


@pytest.mark.clients
def test_data_sets_without_rows_give_the_evaluation_of_no_pairs(ray, evaluate):
    full = ray.data.from_arrow(blocks(pairs()))
    whole = evaluate(full, chosen="a", rejected="b", cluster="who")
    for dataset in (ray.data.from_items([]), ray.data.from_arrow(blocks(pairs())[2]), full.limit(0)):
        found = evaluate(dataset, chosen="a", rejected="b", cluster="who")
        assert found.pairs == 0
        assert np.isnan(found.loss.value)
        assert (found + whole).pairs == PAIRS


@pytest.mark.clients
def test_a_block_that_has_lost_its_columns_with_its_rows_counts_nothing(evaluate):
    """Ray 2.60 does not pass such blocks on; it is not documented that none does."""
    summed = sys.modules[evaluate.__module__]._sums_of_block(pa.table({}), {"chosen": "a", "rejected": "b"})
    assert len(summed) == 0


@pytest.mark.clients
def test_wrong_arguments_and_columns_are_named_before_anything_is_run(ray, evaluate):
    dataset = ray.data.from_arrow(blocks(pairs()))
    given = {"chosen": "a", "rejected": "b"}
    for wrong, says in (
        ({"weight": "x"}, "weight: there is no column 'x'; there are: a, b, prompt, who, "),
        ({"baseline": ("a2", "x")}, "baseline: there is no column 'x'; there are: a, b, "),
        ({"label_smoothing": 2.0}, "label_smoothing must be"),
    ):
        with pytest.raises(ValueError, match=says):
            evaluate(dataset, **given | wrong)
    for wrong, says in (
        ({"chosen": "who"}, "chosen must hold real numbers, got string"),
        ({"cluster": "a"}, "cluster must hold integers or strings, got double"),
        ({"cluster": 3}, "cluster must be the name of a column, got 3"),
        ({"margin": [1.0]}, r"margin must be the name of a column, or a number, got \[1.0\]"),
        ({"baseline": "a2"}, "baseline must be a pair .* of names of columns, got 'a2'"),
    ):
        with pytest.raises(TypeError, match=says):
            evaluate(dataset, **given | wrong)
    with pytest.raises(TypeError, match=r"dataset must be a ray.data.Dataset, got dict"):
        evaluate({}, **given)
    assert dataset.context.execution_options.preserve_order is False


@pytest.mark.clients
def test_wrong_values_are_raised_as_in_one_process_with_the_block_s_size(ray, evaluate):
    columns = pairs()
    columns["w"][300] = -1.0  # of the block of 40 pairs that starts at 254
    dataset = ray.data.from_arrow(blocks(columns))
    says = r"weight must be a finite number >= 0, got -1.0 for pair 6 \(counted from 0\); in a block of 41 pairs"
    with pytest.raises(ValueError, match=says):
        evaluate(dataset, chosen="a", rejected="b", weight="w")
    of_two_kinds = ray.data.from_arrow(blocks(pairs())).map_batches(
        lambda block: block.set_column(3, "who", block["prompt"]) if len(block) == 100 else block,
        batch_size=None,
        batch_format="pyarrow",
    )
    with pytest.raises(ValueError, match="where cluster is of one kind, got integers and strings"):
        evaluate(of_two_kinds, chosen="a", rejected="b", cluster="who")


@pytest.mark.clients
def test_the_documentation_s_example_gives_what_it_says(ray, evaluate):
    (documentation,) = doctest.DocTestFinder(recurse=False).find(evaluate, "evaluate", globs={})
    output = io.StringIO()
    assert doctest.DocTestRunner().run(documentation, out=output.write).failed == 0, output.getvalue()
