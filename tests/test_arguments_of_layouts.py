"""Arguments of groups, of items by index and of `merge_comparisons` that are not accepted: as in test_arguments.py."""

from __future__ import annotations

import pytest
import torch
from test_arguments import (
    BETA,
    DENOMINATOR,
    DTYPES,
    INF,
    NAN,
    REDUCTION,
    SMOOTHING,
    asking,
    assert_rejected,
    nested,
    ones,
    quantized,
    table,
)

import prefloss

bad_indices = table(
    "build, error, says",
    ("scores-2d", lambda: {"scores": ones(3, 1)}, ValueError, ["scores", "one entry an item", "(3, 1)"]),
    ("scores-0d", lambda: {"scores": ones()}, ValueError, ["scores", "one entry an item", "()"]),
    ("scores-integer", lambda: {"scores": ones(3).int()}, TypeError, ["scores", *DTYPES, "int32"]),
    ("scores-list", lambda: {"scores": [1.0, 2.0, 3.0]}, TypeError, ["scores", "torch.Tensor", "list"]),
    ("list", lambda: {"chosen_index": [0, 1]}, TypeError, ["chosen_index", "int64 or int32", "(list)"]),
    ("floats", lambda: {"chosen_index": ones(2)}, TypeError, ["chosen_index", "int64 or int32", "float32"]),
    ("short", lambda: {"rejected_index": ones(2).short()}, TypeError, ["rejected_index", "int64 or int32", "int16"]),
    ("mask", lambda: {"rejected_index": ones(2).bool()}, TypeError, ["rejected_index", "int64 or int32", "bool"]),
    ("mixed", lambda: {"rejected_index": ones(2).int()}, TypeError, ["same dtype", "int64", "int32"]),
    ("2d", lambda: {"chosen_index": ones(2, 1).long()}, ValueError, ["chosen_index", "one entry a comparison", "(2, 1)"]),
    ("longer", lambda: {"rejected_index": ones(3).long()}, ValueError, ["same shape", "(2,)", "(3,)"]),
    ("sparse", lambda: {"chosen_index": ones(2).long().to_sparse()}, TypeError, ["chosen_index", "dense", "sparse_coo"]),
    ("elsewhere", lambda: {"chosen_index": ones(2, device="meta").long()}, ValueError, ["same device as scores", "meta"]),
    ("too-large", lambda: {"chosen_index": torch.tensor([2, 3])}, IndexError, ["chosen_index", "[0, 3)", "3 at position 1"]),
    ("negative", lambda: {"rejected_index": torch.tensor([-1, 0])}, IndexError, ["rejected_index", "[0, 3)", "-1 at position 0"]),
    ("weight-an-item", lambda: {"weight": ones(3)}, ValueError, ["weight", "one entry a pair", "(2,)", "(3,)"]),
    ("target-gradient", lambda: {"target": asking(2)}, ValueError, ["target", "target.detach()"]),
)  # fmt: skip


@bad_indices
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_bad_scores_and_indices_are_rejected(build, error, says, reduction):
    call = {"scores": asking(3), "chosen_index": torch.tensor([0, 1]), "rejected_index": torch.tensor([2, 2])}
    call |= {"reduction": reduction, **build()}
    assert_rejected(lambda: prefloss.bradley_terry_loss_indexed(**call), error, says)


def ragged(sizes):
    return {"rewards": ones(5), "ranks": ones(5), "group_sizes": sizes}


SIZES = ["group_sizes", "sequence of ints", "1-dimensional tensor of integers on the CPU"]
bad_groups = table(
    "build, error, says",
    ("rewards-1d", lambda: {"rewards": ones(6), "ranks": ones(6)}, ValueError, ["rewards", "(B, K)", "(6,)"]),
    ("rewards-3d", lambda: {"rewards": ones(1, 2, 3), "ranks": ones(1, 2, 3)}, ValueError, ["rewards", "(B, K)", "(1, 2, 3)"]),
    ("rewards-2d", lambda: {"group_sizes": [3, 3]}, ValueError, ["rewards", "(N,) with group_sizes", "(2, 3)"]),
    ("rewards-integer", lambda: {"rewards": ones(2, 3).int()}, TypeError, ["rewards", *DTYPES, "int32"]),
    ("too-many", lambda: {"rewards": ones(2**16, 2**15, device="meta")}, ValueError, ["rewards", "2**31", "2147483648"]),
    ("too-many-in-no-memory", lambda: {"rewards": ones(1, 1).expand(1, 2**31), "ranks": ones(1, 1).expand(1, 2**31)}, ValueError,
     ["rewards", "2**31"]),
    ("ranks-list", lambda: {"ranks": [[0, 1, 2]] * 2}, TypeError, ["ranks", "tensor of the rewards' shape", "(list)"]),
    ("ranks-shape", lambda: {"ranks": ones(3)}, ValueError, ["ranks", "shape of rewards", "(2, 3)", "(3,)"]),
    ("ranks-complex", lambda: {"ranks": ones(2, 3).cfloat()}, TypeError, ["ranks", "real", "complex64"]),
    ("ranks-sparse", lambda: {"ranks": ones(2, 3).to_sparse()}, TypeError, ["ranks", "dense", "sparse_coo"]),
    ("ranks-elsewhere", lambda: {"ranks": ones(2, 3, device="meta")}, ValueError, ["ranks", "same device as the rewards", "meta"]),
    ("ranks-gradient", lambda: {"ranks": asking(2, 3)}, ValueError, ["ranks", "ranks.detach()"]),
    ("ranks-nan", lambda: {"ranks": torch.tensor([[0, 1, 2], [0, NAN, 1]])}, ValueError, ["ranks", "nan at position (1, 1)"]),
    ("sizes-sum", lambda: ragged([2, 2]), ValueError, ["group_sizes", "add up", "5", "4"]),
    ("sizes-empty", lambda: ragged([]), ValueError, ["group_sizes", "add up", "5", "got 0"]),
    ("sizes-sparse", lambda: ragged(torch.tensor([3, 2]).to_sparse()), TypeError, ["group_sizes", "dense", "sparse_coo"]),
    ("sizes-nested", lambda: ragged(torch.nested.nested_tensor([[3, 2]])), TypeError, ["group_sizes", "dense", "nested"]),
    ("sizes-negative", lambda: ragged([7, -2]), ValueError, ["group_sizes", ">= 0", "-2"]),
    ("sizes-number", lambda: ragged(5), TypeError, [*SIZES, "5 (int)"]),
    ("sizes-floats", lambda: ragged([2.0, 3.0]), TypeError, [*SIZES, "2.0 (float)"]),
    ("sizes-bools", lambda: ragged([True, 4]), TypeError, [*SIZES, "True (bool)"]),
    ("sizes-string", lambda: ragged("23"), TypeError, [*SIZES, "'23'"]),
    ("sizes-float-tensor", lambda: ragged(torch.tensor([2.0, 3.0])), ValueError, [*SIZES, "float32"]),
    ("sizes-2d", lambda: ragged(torch.tensor([[2, 3]])), ValueError, [*SIZES, "(1, 2)"]),
    ("sizes-elsewhere", lambda: ragged(torch.tensor([2, 3], device="meta")), ValueError, [*SIZES, "meta"]),
    ("average", lambda: {"average": "items"}, ValueError, ["average", "'groups', 'pairs'", "'items'"]),
    ("ties", lambda: {"ties": "third"}, ValueError, ["ties", "'skip', 'half'", "'third'"]),
    ("margin-tensor", lambda: {"margin": ones(2, 3)}, TypeError, ["margin", "one margin", "a tensor of shape (2, 3)"]),
    ("margin-nan", lambda: {"margin": NAN}, ValueError, ["margin", "nan"]),
    ("margin-nested", lambda: {"margin": nested(torch.strided)}, TypeError, ["margin", "dense", "nested"]),
    ("beta", lambda: {"beta": INF}, ValueError, [*BETA, "inf"]),
    ("smoothing", lambda: {"label_smoothing": 0.6}, ValueError, [*SMOOTHING, "0.6"]),
    ("reduction", lambda: {"reduction": "average"}, ValueError, [*REDUCTION, "'average'"]),
    ("weight-an-item", lambda: {"weight": ones(2, 3)}, ValueError, ["weight", "one entry a group", "(2,)", "(2, 3)"]),
    ("weight-quantized", lambda: {"weight": quantized()}, TypeError, ["weight", "real dtype", "quint8"]),
    ("weight-number", lambda: {"weight": 1.0}, TypeError, ["weight", "one entry a group", "1.0 (float)"]),
    ("weight-gradient", lambda: {"weight": asking(2)}, ValueError, ["weight", "weight.detach()"]),
    ("denominator", lambda: {"denominator": 0}, ValueError, [*DENOMINATOR, "got 0"]),
    ("denominator-of-sum", lambda: {"denominator": 4, "reduction": "sum"}, ValueError, ["denominator", "'sum'", "None"]),
    ("stats", lambda: {"return_stats": 1}, TypeError, ["return_stats", "True or False"]),
    ("target", lambda: {"target": 0.5}, TypeError, ["unexpected keyword", "target"]),
)  # fmt: skip


@bad_groups
def test_bad_groups_are_rejected(build, error, says):
    call = {"rewards": asking(2, 3), "ranks": ones(2, 3), **build()}
    assert_rejected(lambda: prefloss.bradley_terry_loss_grouped(**call), error, says)


bad_merges = table(
    "build, error, says",
    ("list", lambda: {"rejected_index": [0, 1]}, TypeError, ["rejected_index", "int64 or int32"]),
    ("longer", lambda: {"rejected_index": ones(3).long()}, ValueError, ["same shape", "(2,)", "(3,)"]),
    (
        "elsewhere",
        lambda: {"rejected_index": ones(2, device="meta").long()},
        ValueError,
        ["same device", "cpu", "meta"],
    ),
    ("negative", lambda: {"chosen_index": torch.tensor([0, -1])}, IndexError, ["chosen_index", ">= 0"]),
    ("weight-number", lambda: {"weight": 2.0}, TypeError, ["weight", "2.0 (float)"]),
    ("weight-long", lambda: {"weight": ones(3)}, ValueError, ["weight", "(2,)", "(3,)"]),
    ("weight-negative", lambda: {"weight": torch.tensor([1.0, -1.0])}, ValueError, ["weight", "finite and >= 0"]),
    ("weight-nan", lambda: {"weight": torch.tensor([1.0, NAN])}, ValueError, ["weight", "finite and >= 0"]),
    ("weight-infinite", lambda: {"weight": torch.tensor([1.0, INF])}, ValueError, ["weight", "finite and >= 0"]),
    (
        "weight-elsewhere",
        lambda: {"weight": ones(2, device="meta")},
        ValueError,
        ["weight", "same device as the indices"],
    ),
    ("target-quantized", lambda: {"target": quantized()}, TypeError, ["target", "real dtype", "quint8"]),
    ("target-gradient", lambda: {"target": asking(2)}, ValueError, ["target", "target.detach()"]),
)


@bad_merges
def test_comparisons_that_cannot_be_merged_are_rejected(build, error, says):
    call = {"chosen_index": torch.tensor([0, 1]), "rejected_index": torch.tensor([1, 0]), **build()}
    assert_rejected(lambda: prefloss.merge_comparisons(**call), error, says)
