"""Comparisons of the same items merged into one each: the loss and its gradient stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sample_inputs import DTYPES, array, arrays
from test_indexed import INDEX_DTYPES, comparisons, scores_of

import prefloss
from prefloss import reference


@pytest.mark.parametrize("weight", [None, torch.float32, torch.float64, torch.bool], ids=str)
@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=str)
def test_merged_comparisons_have_the_same_loss_and_gradient(weight, with_target, index_dtype):
    random = np.random.default_rng(12)
    indices = comparisons(random, 6, 500, index_dtype)
    given = {}
    if weight is not None:
        given["weight"] = torch.from_numpy(random.random(500) * (random.random(500) < 0.7)).to(weight)
    if with_target:
        given["target"] = torch.from_numpy(random.random(500)).to(torch.float64)
    merged = prefloss.merge_comparisons(*indices, **given)
    assert len(merged["chosen_index"]) <= 36
    assert merged["chosen_index"].dtype == index_dtype
    merged = {name: value for name, value in merged.items() if value is not None}
    options = {"beta": 0.5, "label_smoothing": 0.1, "margin": 0.3, "center_rewards_coefficient": 0.1}
    scores = scores_of(random, 6, torch.float64)
    for reduction in ("mean", "sum"):
        results = [
            reference.bradley_terry_loss_indexed(
                array(scores), array(call.pop("chosen_index")), array(call.pop("rejected_index")),
                **arrays(call), **options, reduction=reduction,
            )
            for call in ({"chosen_index": indices[0], "rejected_index": indices[1], **given}, dict(merged))
        ]  # fmt: skip
        exact = merged["weight"].dtype is torch.float64
        np.testing.assert_allclose(results[1], results[0], rtol=1e-14 if exact else 1e-6)


def test_merging_leaves_out_what_counts_nothing_and_takes_no_comparisons():
    merged = prefloss.merge_comparisons(
        torch.tensor([0, 1, 0]), torch.tensor([1, 0, 1]), weight=torch.tensor([1.0, 0.0, 2.0])
    )
    assert merged["chosen_index"].tolist() == [0]
    assert merged["weight"].tolist() == [3.0]
    assert merged["target"] is None
    none = torch.empty(0, dtype=torch.int32)
    assert all(len(value) == 0 for value in prefloss.merge_comparisons(none, none).values() if value is not None)
    scores = torch.zeros(2, requires_grad=True)
    prefloss.bradley_terry_loss_indexed(scores, **merged).backward()
    assert torch.equal(scores.grad, torch.tensor([-0.5, 0.5]))


LAST = 2**63 - 1


@pytest.mark.parametrize(
    ("chosen", "rejected", "merged"),
    [
        ([4 * 10**9, 4 * 10**9, 7], [5, 5, 4 * 10**9], [(7, 4 * 10**9, 1.0), (4 * 10**9, 5, 2.0)]),
        ([LAST], [0], [(LAST, 0, 1.0)]),
        ([LAST, 0, LAST, LAST], [LAST, LAST, LAST, 1], [(0, LAST, 1.0), (LAST, 1, 1.0), (LAST, LAST, 2.0)]),
    ],
)
def test_comparisons_of_items_with_any_index_are_merged(chosen, rejected, merged):
    found = prefloss.merge_comparisons(torch.tensor(chosen), torch.tensor(rejected))
    columns = (found[name].tolist() for name in ("chosen_index", "rejected_index", "weight"))
    assert sorted(zip(*columns, strict=True)) == merged


def merged_and_not(scores, chosen, rejected, **options):
    """The loss and the gradient, of the comparisons and of them merged."""
    results = []
    for call in (
        {"chosen_index": chosen, "rejected_index": rejected, **options},
        prefloss.merge_comparisons(chosen, rejected, **options),
    ):
        loss = prefloss.bradley_terry_loss_indexed(scores, **call)
        results.append((loss.detach(), *torch.autograd.grad(loss, scores)))
    return results


@pytest.mark.parametrize(
    "options",
    [
        {"weight": [1.0, 0.0, 1.0], "target": [1.0, float("nan"), 0.5]},
        {"weight": [3e38, 3e38, 3e38]},
        {"weight": [3e38, 3e38, 3e38], "target": [0.25, 1.0, 0.0]},
        {"weight": [1e-45, 1e-45, 1e-45]},
        {"weight": [0.0, 0.0, 0.0]},
    ],
    ids=["nan-target-of-weight-0", "sum-beyond-float32", "with-targets", "subnormal", "nothing"],
)
def test_merging_keeps_the_loss_whatever_the_weights_are(options):
    """To the roundings of float32: slopes of at most 1 are right to 1.5 ulp on either side, and their mean may cancel."""
    scores = torch.tensor([0.3, -0.2, 1.0], requires_grad=True)
    options = {name: torch.tensor(values) for name, values in options.items()}
    before, after = merged_and_not(scores, torch.tensor([0, 0, 1]), torch.tensor([1, 1, 2]), **options)
    assert before[0].isfinite()
    torch.testing.assert_close(after, before, rtol=1e-6, atol=2**-22)


def test_without_float64_merged_weights_are_rounded_or_refused(monkeypatch):
    """As on Apple's GPUs; only on the CPU is there one to try it."""
    monkeypatch.setattr("prefloss.indexed.dtype_of_sums", lambda device: torch.float32)
    index, other = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    weight = torch.tensor([0.1, 0.2, 0.3])
    merged = prefloss.merge_comparisons(index, other, weight=weight, target=torch.ones(3))
    assert {merged[name].dtype for name in ("weight", "target")} == {torch.float32}
    assert torch.equal(merged["weight"], torch.tensor([weight[:2].double().sum().item(), 0.3]))
    with pytest.raises(ValueError, match=r"weight must have sums that are finite in float32 on cpu.*got 6"):
        prefloss.merge_comparisons(index, other, weight=torch.full((3,), 3e38))
    wide = prefloss.merge_comparisons(index, other, weight=torch.full((3,), 3e38, dtype=torch.float64))
    assert wide["weight"].dtype is torch.float64


@pytest.mark.slow  # sixteen million comparisons
def test_more_comparisons_of_two_items_than_float32_counts_are_merged():
    """2^24 + 1 against one of the other kind."""
    count = 2**24 + 1
    chosen = torch.zeros(count + 1, dtype=torch.int32)
    chosen[-1] = 1
    merged = prefloss.merge_comparisons(chosen, 1 - chosen)
    assert dict(zip(merged["chosen_index"].tolist(), merged["weight"].tolist(), strict=True)) == {0: count, 1: 1}


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_comparisons_are_accepted_however_few_they_are(count, dtype):
    index = torch.zeros(count, dtype=torch.int64)
    ones = torch.ones(count, dtype=dtype)
    merged = prefloss.merge_comparisons(index, index, target=ones, weight=ones)
    for scores in (torch.zeros(3), torch.zeros(3, dtype=torch.float64)):
        loss = prefloss.bradley_terry_loss_indexed(scores, **merged)
        assert loss.item() == pytest.approx(count * np.log(2), rel=1e-7)
