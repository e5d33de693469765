"""The AUC example: all pairs of positives and negatives, counted and trained on."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def auc(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("auc")


def test_the_auc_is_the_share_of_pairs_in_the_right_order_with_ties_half(auc):
    scores, labels = torch.tensor([2.0, 1.0, 1.0, 0.0, 3.0]), torch.tensor([True, False, True, False, False])
    # 2 beats 1 and 0 and not 3; 1 ties with 1, beats 0, not 3
    assert auc.auc(scores, labels) == pytest.approx((2 + 1 + 0.5) / 6)


def test_training_on_all_pairs_gives_a_better_auc_than_cross_entropy(auc):
    found = {"all_pairs": 0.0, "cross_entropy": 0.0}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        features, labels = auc.made(1500, 0.03, generator)
        unseen, truth = auc.made(6000, 0.03, generator)
        for name in found:
            weights, _ = auc.train(features, labels, getattr(auc, name), steps=40)
            found[name] += auc.auc(unseen @ weights, truth) / 4
    assert 0.6 < found["cross_entropy"] < found["all_pairs"] < 0.9
