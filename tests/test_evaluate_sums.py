"""`prefloss.evaluate`: sums add up, in any sharding and any order, over processes, tables and files."""

from __future__ import annotations

import socket

import numpy as np
import pytest
import torch
from fresh_processes import CONTEXT
from made_pairs import made_pairs

import prefloss

pa = pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")
parquet = pytest.importorskip("pyarrow.parquet")
build = pytest.importorskip("prefloss.evaluation.build")

SAME = {"rel": 1e-12, "abs": 1e-14}


def columns(seed=0, pairs=3000):
    """Everything that `evaluate` takes a column of."""
    random = np.random.default_rng(seed)
    made = made_pairs(pairs, 200)
    group = np.array(["code", "news", "poems"])[random.integers(0, 3, pairs)]
    weight, judge = random.gamma(1.5, size=pairs), random.random(pairs)
    target = np.where(random.random(pairs) < 0.6, 1.0 * (random.random(pairs) < 0.8), np.nan)
    baseline = 0.8 * made["chosen"] + random.normal(size=pairs)
    return {**made, "group": group, "weight": weight, "target": target, "judge": judge, "baseline": baseline}


def evaluate(columns, rows=slice(None), **options):
    given = {name: column[rows] for name, column in columns.items()}
    if "baseline" in given:
        given["baseline"] = given["baseline"], np.zeros(len(given["baseline"]))
    return prefloss.evaluate(**given, **options)


def numbers(value):
    """All numbers of a nested dictionary, in order, without the words."""
    if isinstance(value, dict):
        return [number for key in value if key != "concerns" for number in numbers(value[key])]
    if isinstance(value, list | tuple):
        return [number for each in value for number in numbers(each)]
    return [] if isinstance(value, str) or value is None else [value]


def assert_same(found, whole):
    assert numbers(found.as_dict()) == pytest.approx(numbers(whole.as_dict()), **SAME, nan_ok=True)
    assert found.as_dict().keys() == whole.as_dict().keys()


CHOICES = [
    (),
    ("weight",),
    ("cluster",),
    ("group", "baseline"),
    ("cluster", "group", "weight", "baseline"),
    ("target", "judge"),
    ("cluster", "target", "judge", "weight", "group"),
]


@pytest.mark.parametrize("names", CHOICES, ids="-".join)
def test_shards_add_up_in_any_order(names):
    """Weights and shards of any size; a shard may be empty; the pairs of a cluster may lie in several."""
    given = {name: column for name, column in columns().items() if name in ("chosen", "rejected", *names)}
    whole = evaluate(given)
    random = np.random.default_rng(1)
    for shards in (2, 7):
        of = random.integers(0, shards, 3000)
        of[of == 1] = 0  # shard 1 is empty
        parts = [evaluate(given, of == shard) for shard in range(shards)]
        assert parts[1].pairs == 0
        assert_same(sum(parts), whole)
        assert_same(parts[-1] + sum(reversed(parts[:-1])), whole)


def test_no_pairs_can_be_added_whatever_the_labels_of_the_others_are():
    """A shard without rows, of which nobody knows whether its labels would have been strings."""
    nothing = prefloss.evaluate([], [], cluster=[], group=[])
    whole = evaluate({name: columns()[name] for name in ("chosen", "rejected", "cluster", "group")})
    assert sum([nothing, whole, nothing]).to_table() == whole.to_table()
    assert (nothing + nothing).pairs == 0


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_shards_whose_constants_differ_add_up(offset):
    """The first shard's margins lie near 0, so that nothing is subtracted from them; the other's near 1e8."""
    first, second = made_pairs(100)["chosen"], made_pairs(150, seed=1)["chosen"] + offset
    both = np.r_[first, second]
    for extra in ({}, {"cluster": np.arange(250) % 30}):
        parts = [
            prefloss.evaluate(
                both[rows], np.zeros(len(both[rows])), **{name: column[rows] for name, column in extra.items()}
            )
            for rows in (slice(0, 100), slice(100, 250))
        ]
        found, whole = (parts[0] + parts[1]).margin, prefloss.evaluate(both, np.zeros(250), **extra).margin
        assert found.value == pytest.approx(whole.value, rel=1e-12)
        assert found.standard_error == pytest.approx(whole.standard_error, rel=1e-10)


@pytest.mark.parametrize("clustered", [False, True])
def test_shards_whose_weights_are_of_different_scales_add_up(clustered):
    """Weights beyond 2^40 are divided by a power of two, those below are not; both shards matter here."""
    given = {name: columns(pairs=400)[name] for name in ("chosen", "rejected", *(["cluster"] * clustered))}
    weight = np.random.default_rng(2).gamma(2, size=400) * np.where(np.arange(400) < 200, 1e11, 5e12)
    parts = [evaluate({**given, "weight": weight}, rows) for rows in (slice(0, 200), slice(200, 400))]
    assert_same(parts[0] + parts[1], evaluate({**given, "weight": weight}))


def test_a_result_does_not_depend_on_the_number_of_threads(set_threads):
    given = columns(pairs=530_000)
    given = {name: given[name] for name in ("chosen", "rejected", "cluster", "group")}
    tables = []
    for threads in (1, 2, 3):
        set_threads(threads)
        tables.append(evaluate(given).to_table())
    assert tables[0] == tables[1] == tables[2]


def test_many_clusters_may_lie_in_any_order(monkeypatch):
    """More rows than a core's cache holds the sums of are added up in their order, few of them in that of the pairs."""
    random = np.random.default_rng(0)
    pairs = 70_000  # two blocks
    given = {"chosen": random.normal(size=pairs), "rejected": random.normal(size=pairs)}
    given |= {"cluster": random.integers(0, 9_000, pairs), "group": random.integers(0, 3, pairs)}
    by_row = evaluate(given)
    monkeypatch.setattr(build, "MANY_ROWS", 10**9)
    assert_same(by_row, evaluate(given))


@pytest.mark.parametrize("names", CHOICES, ids="-".join)
def test_a_table_gives_the_evaluation_back(names, tmp_path):
    whole = evaluate({name: column for name, column in columns().items() if name in ("chosen", "rejected", *names)})
    parquet.write_table(whole.to_table(), tmp_path / "sums.parquet")
    found = prefloss.Evaluation.from_table(parquet.read_table(tmp_path / "sums.parquet"))
    np.testing.assert_array_equal(numbers(found.as_dict()), numbers(whole.as_dict()))
    assert_same(found + found, whole + whole)


def test_the_table_can_be_added_by_an_engine():
    """Where the constants are 1 and 0, as for ordinary data, any group-by with sums will do."""
    given = {name: columns()[name] for name in ("chosen", "rejected", "cluster", "group")}
    parts = [evaluate(given, rows).to_table() for rows in (slice(0, 1000), slice(1000, None))]
    keys = ["cluster", "group", "labelled", "part", "bin"]
    both = pa.concat_tables(parts)
    sums = [name for name in both.column_names if name not in keys]
    added = both.group_by(keys, use_threads=False).aggregate([(name, "sum") for name in sums])
    added = added.rename_columns([name.removesuffix("_sum") for name in added.column_names])
    assert_same(prefloss.Evaluation.from_table(added.replace_schema_metadata(both.schema.metadata)), evaluate(given))


def test_other_tables_and_other_options_are_refused():
    one = prefloss.evaluate([1.0, 2.0], [0.0, 0.0])
    with pytest.raises(ValueError, match=r"Evaluation\.to_table"):
        prefloss.Evaluation.from_table(pa.table({"a": [1]}))
    whole = one.to_table()
    older = whole.schema.metadata[b"prefloss"].replace(b'"version": 1', b'"version": 0')
    for table, error, says in (
        (None, TypeError, r"Evaluation\.to_table\(\) gave, got None"),
        (whole.drop_columns(["pairs", "w1"]), ValueError, "each of its columns once; this one has not: pairs, w1"),
        (whole.append_column("part", whole["part"]), ValueError, "each of its columns once; this one has not: part"),
        (whole.replace_schema_metadata({"prefloss": "x"}), ValueError, "this one's 'prefloss' is b'x'"),
        (whole.replace_schema_metadata({"prefloss": older}), ValueError, "of version 1, got version 0"),
    ):
        with pytest.raises(error, match=says):
            prefloss.Evaluation.from_table(table)
    with pytest.raises(ValueError, match=r"differ in beta \(1.0 and 2.0\)"):
        one + prefloss.evaluate([1.0], [0.0], beta=2)
    with pytest.raises(TypeError, match="can be added to an Evaluation only, not to float"):
        one + 1.5
    groups = [prefloss.evaluate([1.0], [0.0], group=[label]) for label in (1, "one")]
    with pytest.raises(ValueError, match="group is of one kind"):
        groups[0] + groups[1]
    with pytest.raises(ValueError, match="then call reweighted"):
        groups[0].reweighted({1: 1.0}).to_table()


# ---- Processes ----


def of_rank(rank, port, results):
    """Of three processes, of which the first two are a group of their own too."""
    torch.set_num_threads(1)
    store = torch.distributed.TCPStore("127.0.0.1", port, 3, rank == 0)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
    mine, pair = evaluate(columns(), rows_of(rank)), torch.distributed.new_group([0, 1])
    found = {3: numbers(mine.all_reduce().as_dict())}
    if rank < 2:
        found[2] = numbers(mine.all_reduce(pair).as_dict())
    results.put((rank, found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def rows_of(rank):
    """Unequal shards, the last one empty: so two processes have all pairs, and three have too."""
    return slice((0, 700, 3000)[rank], (700, 3000, 3000)[rank])


def test_two_and_three_processes_reduce_to_the_evaluation_of_all_pairs():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = CONTEXT.Queue()
    workers = [CONTEXT.Process(target=of_rank, args=(rank, port, results)) for rank in range(3)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    whole = numbers(evaluate(columns()).as_dict())
    assert found[0].keys() == {2, 3}
    for reduced in (*found[0].values(), found[2][3]):
        assert reduced == pytest.approx(whole, **SAME, nan_ok=True)
    np.testing.assert_array_equal(found[0][2], found[1][2])  # the same bits on each rank
    np.testing.assert_array_equal(found[0][3], found[2][3])
