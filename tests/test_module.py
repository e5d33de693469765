"""The module `BradleyTerryLoss`: the function with its options, and nothing that a copy or a file would lose."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from rounding_bounds import assert_same_bits
from sample_inputs import rewards

import prefloss

FIXED = {"beta": 0.5, "label_smoothing": 0.1, "center_rewards_coefficient": 0.01, "reduction": "sum"}


def restored_by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [lambda module: module, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), restored_by_torch_save],
    ids=["itself", "deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("fixed", [{}, FIXED], ids=["default", "with-options"])
def test_the_module_is_the_function_with_options_and_survives_copying(copied, fixed, device):
    module = copied(prefloss.BradleyTerryLoss(**fixed))
    pair = rewards(np.random.default_rng(1), (6,), torch.float32)
    chosen, rejected = (tensor.to(device).requires_grad_() for tensor in pair)
    varying = {"margin": 0.25, "weight": torch.linspace(0.0, 1.0, 6, device=device), "target": 0.75}
    for options in ({}, varying, {"return_stats": True}):
        results = [
            module(chosen, rejected, **options),
            prefloss.bradley_terry_loss(chosen, rejected, **fixed, **options),
        ]
        losses = [result[0] if "return_stats" in options else result for result in results]
        assert_same_bits(*(torch.autograd.grad(loss, (chosen, rejected), retain_graph=True) for loss in losses))
        assert_same_bits(losses[:1], losses[1:])
    if not fixed:
        assert module(chosen, rejected, denominator=3).item() == pytest.approx(2 * module(chosen, rejected).item())


def test_the_module_has_no_state_and_says_its_options():
    module = prefloss.BradleyTerryLoss(**FIXED)
    assert module.state_dict() == {}
    assert list(module.parameters()) == list(module.buffers()) == []
    assert repr(module) == (
        "BradleyTerryLoss(beta=0.5, label_smoothing=0.1, flip_rate=0.0, center_rewards_coefficient=0.01, reduction='sum')"
    )
