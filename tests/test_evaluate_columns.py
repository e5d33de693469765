"""`prefloss.evaluate`: what may be a column, and what is said of what may not."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import DEVICES
from fresh_processes import run

import prefloss

pa = pytest.importorskip("pyarrow", reason="prefloss.evaluate needs `pip install 'prefloss[evaluate]'`")

CHOSEN, REJECTED, LABELS = [2.0, 0.5, 1.0, 0.25], [1.0, 1.5, -1.0, 0.0], ["a", "b", "a", "c"]


def kinds_of_numbers():
    yield "list", list
    yield "tuple", tuple
    yield "array", np.array
    yield "float32 array", lambda values: np.array(values, dtype=np.float32)
    yield "float16 array", lambda values: np.array(values, dtype=np.float16)
    yield "reversed array", lambda values: np.array(values[::-1])[::-1]
    yield "read-only array", lambda values: np.broadcast_to(np.array(values), (4,)) + 0.0
    yield "arrow", pa.array
    yield "chunked arrow", lambda values: pa.chunked_array([values[:1], values[1:]])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        yield str(dtype), lambda values, dtype=dtype: torch.tensor(values, dtype=dtype, requires_grad=True)
    yield "negative bit", lambda values: torch.complex(torch.zeros(4), -torch.tensor(values)).conj().imag
    for device in DEVICES:
        yield device, lambda values, device=device: torch.tensor(values, device=device)


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in kinds_of_numbers()])
def test_a_column_of_numbers_may_be_of_any_kind(make):
    expected = prefloss.evaluate(CHOSEN, REJECTED, weight=[1.0, 2.0, 0.5, 0.0]).as_dict()
    found = prefloss.evaluate(make(CHOSEN), make(REJECTED), weight=make([1.0, 2.0, 0.5, 0.0]))
    np.testing.assert_equal(found.as_dict(), expected)


def kinds_of_labels():
    yield "list", list
    yield "array of objects", lambda labels: np.array(labels, dtype=object)
    yield "array of strings", np.array
    yield "arrow", pa.array
    yield "large arrow", lambda labels: pa.array(labels, pa.large_string())
    yield "dictionary", lambda labels: pa.array(labels).dictionary_encode()
    yield "chunks", lambda labels: pa.chunked_array([labels[:1], labels[1:]])


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in kinds_of_labels()])
def test_labels_may_be_strings_of_any_kind(make):
    found = prefloss.evaluate(CHOSEN, REJECTED, cluster=make(LABELS), group=make(LABELS))
    assert found.clusters == 3
    assert list(found.groups) == ["a", "b", "c"]


def test_a_label_does_not_end_at_a_nul():
    labels = ["a\0b", "a", "a\0c", "a"]
    for given in (labels, np.array(labels)):
        assert list(prefloss.evaluate(CHOSEN, REJECTED, group=given).groups) == ["a", "a\0b", "a\0c"]


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint32, np.uint64, bool])
def test_labels_may_be_integers_of_any_width(dtype):
    labels = np.array([0, 1, 0, 1], dtype=dtype)
    assert list(prefloss.evaluate(CHOSEN, REJECTED, group=labels).groups) == [0, 1]
    assert prefloss.evaluate(CHOSEN, REJECTED, cluster=torch.tensor([-(2**62), 5, 5, 2**62])).clusters == 3


def test_pandas_and_polars_columns_are_columns():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"chosen": CHOSEN, "rejected": REJECTED, "who": LABELS})
    frame["kind"] = frame["who"].astype("category")
    found = prefloss.evaluate(frame["chosen"], frame["rejected"], cluster=frame["who"], group=frame["kind"])
    np.testing.assert_equal(
        found.as_dict(), prefloss.evaluate(CHOSEN, REJECTED, cluster=LABELS, group=LABELS).as_dict()
    )


@pytest.mark.parametrize("make", ["Int64 array", "Int64 index", "Int64 series"])
def test_what_is_missing_in_a_column_of_pandas_is_not_nan(make):
    """NumPy reads the first two as NaN."""
    pandas = pytest.importorskip("pandas")
    kinds = {"Int64 array": pandas.array, "Int64 index": pandas.Index, "Int64 series": pandas.Series}
    column = kinds[make]([1, None, 3, 4], dtype="Int64")
    with pytest.raises(ValueError, match="chosen must have a number for each pair, got null for pair 1"):
        prefloss.evaluate(column, REJECTED)
    whole = prefloss.evaluate(kinds[make]([1, 2, 3, 4], dtype="Int64"), REJECTED)
    assert whole.loss.value == prefloss.evaluate([1, 2, 3, 4], REJECTED).loss.value


@pytest.mark.parametrize(
    "number",
    [np.float32(0.5), Fraction(1, 2), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16)],
)
def test_a_number_for_all_pairs_may_be_of_any_kind(number):
    for name in ("margin", "target"):
        found = prefloss.evaluate(CHOSEN, REJECTED, **{name: number})
        np.testing.assert_equal(found.as_dict(), prefloss.evaluate(CHOSEN, REJECTED, **{name: 0.5}).as_dict())


def test_labels_may_be_a_range_and_a_tensor_with_the_negative_bit():
    assert prefloss.evaluate(CHOSEN, REJECTED, cluster=range(4)).clusters == 4
    negative = torch._neg_view(torch.tensor([1, 2, 2, 1]))
    assert list(prefloss.evaluate(CHOSEN, REJECTED, group=negative).groups) == [-2, -1]


def test_torch_s_default_device_does_not_matter():
    """With "cuda" it is the same: the sums are on the CPU."""
    from prefloss.evaluation import build

    build._moments.cache_clear()
    expected = prefloss.evaluate(CHOSEN, REJECTED, cluster=LABELS).as_dict()
    build._moments.cache_clear()
    with torch.device("meta"):
        np.testing.assert_equal(prefloss.evaluate(CHOSEN, REJECTED, cluster=LABELS).as_dict(), expected)


def test_null_is_an_unknown_target_as_nan_is():
    judge = [0.9, 0.5, 0.6, 0.7]
    for target in ([1.0, math.nan, 0.0, 1.0], pa.array([1.0, None, 0.0, 1.0]), pa.array([1, None, 0, 1])):
        found = prefloss.evaluate(CHOSEN, REJECTED, target=target, judge=judge)
        assert found.pairs == 3
        assert math.isfinite(found.prediction_powered.value)


BAD = [
    ({"chosen": "abc"}, TypeError, "chosen must be a tensor, an array"),
    ({"chosen": ["a", "b", "c", "d"]}, TypeError, "chosen must hold real numbers, got dtype"),
    ({"chosen": pa.array(["a", "b", "c", "d"])}, TypeError, "chosen must hold real numbers, got string"),
    ({"chosen": torch.zeros(2, 2)}, ValueError, r"chosen must have one entry a pair, shape \(P,\), got shape \(2, 2\)"),
    ({"rejected": [1.0]}, ValueError, "rejected must have one entry a pair, 4 as chosen has, got 1"),
    (
        {"rejected": pa.array([1.0, 2.0, None, 3.0])},
        ValueError,
        r"rejected must have a number for each pair, got null for pair 2",
    ),
    ({"weight": [1, 1, -1, 1]}, ValueError, r"weight must be a finite number >= 0, got -1.0 for pair 2"),
    ({"weight": [1, 1, 1, math.inf]}, ValueError, "weight must be a finite number >= 0, got inf for pair 3"),
    ({"weight": [1, math.nan, 1, 1]}, ValueError, "weight must be a finite number >= 0, got nan for pair 1"),
    ({"target": [1, 1.5, 1, 1]}, ValueError, r"target must be a probability in \[0, 1\], got 1.5 for pair 1"),
    ({"target": 2}, ValueError, "target must be a number in"),
    ({"target": [1, math.nan, 1, 1]}, ValueError, "target is NaN or null for 1 pairs"),
    ({"judge": [1, math.nan, 1, 1]}, ValueError, "judge must be a probability"),
    ({"margin": [0, math.nan, 1, 1]}, ValueError, "margin must be a finite number"),
    ({"beta": math.inf}, ValueError, "beta must be a finite number"),
    ({"flip_rate": 0.1, "label_smoothing": 0.1}, ValueError, "flip_rate and label_smoothing cannot both be given"),
    ({"cluster": [1, 2, 3]}, ValueError, "cluster must have one label a pair, 4 as chosen has, got 3"),
    ({"cluster": [1.5, 2, 3, 4]}, TypeError, "cluster must hold integers or strings, got double"),
    ({"group": ["a", 1, "b", 2]}, TypeError, "group must hold integers or strings, all of one kind"),
    ({"group": ["a", None, "b", "c"]}, ValueError, "group must have a label for each pair, got none for pair 1"),
    ({"group": np.zeros((2, 2))}, TypeError, "group must hold integers or strings"),
    (
        {"cluster": np.array([1, 2, 3, 2**64 - 1], dtype=np.uint64)},
        ValueError,
        "cluster must hold integers of at most 64 bits",
    ),
    ({"group": [1, 2, 3, 2**70]}, ValueError, "group must hold integers of at most 64 bits with a sign, got"),
    ({"chosen": np.ma.array(CHOSEN, mask=[1, 0, 0, 0])}, TypeError, "chosen must be an array without a mask"),
    *(
        ({name: np.ma.array(np.ones(4), mask=[1, 0, 0, 0])}, TypeError, f"{name} must be an array without a mask")
        for name in ("rejected", "weight", "margin", "target", "judge")
    ),
    ({"chosen": np.float64(1)}, ValueError, r"chosen must have one entry a pair, shape \(P,\), got shape \(\)"),
    ({"chosen": [[1.0], [1.0, 2.0], 1.0, 1.0]}, ValueError, "chosen must have one entry a pair, shape"),
    ({"margin": np.float32(math.nan)}, ValueError, "margin must be a finite number"),
    ({"target": torch.tensor(2.0)}, ValueError, "target must be a number in"),
    ({"chosen": [0, 1e81, 0, 0]}, ValueError, r"chosen must be from -1e\+80 to 1e\+80 where .* got 1e\+81 for pair 1"),
    ({"rejected": [0, math.nan, -1e71, 0], "beta": -1e10}, ValueError, r"rejected must be from -1e\+70 to 1e\+70 "),
    ({"baseline": (CHOSEN, [0, 1e81, 0, 0])}, ValueError, r"baseline rejected must be from -1e\+80 to 1e\+80 "),
    ({"margin": [0, 0, 0, 1e81]}, ValueError, r"margin must be from -1e\+80 to 1e\+80 "),
    ({"margin": 1e81}, ValueError, r"margin must be a number from -1e\+80 to 1e\+80, got 1e\+81"),
    *(
        ({"cluster": labels}, TypeError, "cluster must be a tensor, an array, an Arrow or pandas column, or a list")
        for labels in (set("abcd"), "aabb", b"aabb", dict.fromkeys("abcd"))
    ),
    ({"baseline": CHOSEN}, TypeError, r"baseline must be a pair \(chosen, rejected\) of columns"),
    ({"baseline": (CHOSEN, [1.0])}, ValueError, "baseline rejected must have one entry a pair"),
]


@pytest.mark.parametrize(
    ("arguments", "error", "message"), BAD, ids=[" ".join(case[0]) + f" {n}" for n, case in enumerate(BAD)]
)
def test_a_bad_argument_is_named_with_what_was_given_and_what_is_accepted(arguments, error, message):
    with pytest.raises(error, match=message):
        prefloss.evaluate(**{"chosen": CHOSEN, "rejected": REJECTED, **arguments})


def test_without_its_packages_an_error_says_what_to_install():
    code = "import sys; sys.modules['pyarrow'] = None; import prefloss; prefloss.bradley_terry_loss; prefloss.evaluate"
    assert run(code).stderr.splitlines()[-1] == (
        'ImportError: prefloss.evaluate needs pyarrow, which is not installed: pip install "prefloss[evaluate]"'
    )
