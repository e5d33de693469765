"""The recommender example: BPR with the fused loss learns what the same loop in plain torch learns."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def bpr(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module("bpr")


def test_it_recommends_better_than_popularity_and_as_well_as_plain_torch(bpr):
    feedback = bpr.made(300, 150, 4, seed=1)
    assert not (feedback.training & feedback.held_out).any()
    how = {"factors": 4, "epochs": 15, "batch": 512, "seed": 2}
    ours, _ = bpr.train(feedback, bpr.bpr, **how)
    theirs, _ = bpr.train(feedback, bpr.plain_torch, **how)
    popularity = feedback.training.float().mean(0).expand(feedback.training.shape)
    best = bpr.auc(feedback.affinity, feedback)
    found = bpr.auc(ours.all_scores().detach(), feedback)
    assert bpr.auc(popularity, feedback) + 0.05 < found < best
    assert found == pytest.approx(bpr.auc(theirs.all_scores().detach(), feedback), abs=0.01)


def test_the_auc_is_the_share_of_pairs_in_the_right_order(bpr):
    held_out = torch.tensor([[True, False, False, False], [False, False, False, True]])
    training = torch.tensor([[False, False, False, True], [False] * 4])
    scores = torch.tensor([[2.0, 1.0, 3.0, 9.0], [0.0, 1.0, 2.0, 3.0]])
    assert bpr.auc(scores, bpr.Feedback(training, held_out, scores)) == pytest.approx((0.5 + 1.0) / 2)
