"""How many digits of the paired loss, its gradients and its statistics are right, where rounding could take them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import RUNS_ON_HOST
from sample_inputs import DTYPES, array, rewards

import prefloss
from prefloss import reference


def test_many_equal_pairs_have_the_loss_of_one(device):
    """Two pairs are multiplied in float32 first, on a GPU four: each after the first adds two roundings to the 1.5 ulp of one."""
    multiplied = 4 if RUNS_ON_HOST or device.type == "cuda" else 2
    for z in np.linspace(-16.5, 16.5, 1500, dtype=np.float32):
        loss = prefloss.bradley_terry_loss(torch.full((96,), float(z), device=device), torch.zeros(96, device=device))
        exact = np.logaddexp(0.0, -np.float64(z))
        assert loss.item() == pytest.approx(exact, rel=(3 + 2 * (multiplied - 1) + 1) * 2.0**-24, abs=0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mean_of_a_million_pairs_is_right_to_1e_7(dtype):
    chosen, rejected = rewards(np.random.default_rng(7), (2**20,), dtype)
    exact = float(reference.bradley_terry_loss(array(chosen), array(rejected)))
    assert prefloss.bradley_terry_loss(chosen, rejected).item() == pytest.approx(exact, rel=1e-7)


def float32_loss_and_gradient(logit, **options):
    chosen = torch.tensor([logit], requires_grad=True)
    loss = prefloss.bradley_terry_loss(chosen, torch.zeros(1), **options)
    loss.backward()
    return loss.item(), chosen.grad.item()


@pytest.mark.parametrize("smoothing", [1e-2, 1e-4, 1e-6, 1e-8, 1e-12])
def test_small_label_smoothing_keeps_its_digits_in_float32(smoothing):
    """1 - t of a rounded t was 0 from 3e-8 on, and off by percents before."""
    loss, gradient = float32_loss_and_gradient(30.0, label_smoothing=smoothing)
    z = torch.tensor(30.0, dtype=torch.float64)
    exact = -(1 - smoothing) * F.logsigmoid(z) - smoothing * F.logsigmoid(-z)
    # Half an ulp each of the target, its product with z, the sum and the exponential.
    assert loss == pytest.approx(exact.item(), rel=4 * 2.0**-24)
    above, below = torch.sigmoid(z).item() * smoothing, torch.sigmoid(-z).item() * (1 - smoothing)
    assert gradient == pytest.approx(above - below, abs=4 * 2.0**-24 * (above + below))


def test_targets_next_to_one_keep_their_digits_in_float32():
    target = 1 - 1e-8
    _, gradient = float32_loss_and_gradient(20.0, target=target)
    above, below = 1 - target, torch.sigmoid(torch.tensor(-20.0, dtype=torch.float64)).item()
    assert gradient == pytest.approx(above - below, abs=4 * 2.0**-24 * (above + below))


@pytest.mark.parametrize("scale", [1e-44, 1e-42, 1e-38, 1e30, 3e38])
def test_a_common_factor_of_float32_weights_leaves_loss_and_gradients_alone(scale, device):
    chosen = torch.randn(100, generator=torch.Generator().manual_seed(0)).to(device)
    rejected = torch.zeros(100, device=device)
    results = []
    for weight in (scale, 1.0):
        given = chosen.clone().requires_grad_()
        weights = torch.full((100,), weight, device=device)
        loss = prefloss.bradley_terry_loss(given, rejected, weight=weights)
        (gradient,) = torch.autograd.grad(loss, given, create_graph=True)
        results.append((loss.detach(), gradient.detach(), *torch.autograd.grad(gradient.square().sum(), given)))
    for scaled, plain in zip(*results, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=8 * 2.0**-24, atol=0.0)


@pytest.mark.kernels
def test_a_denominator_whose_inverse_is_no_float_has_finite_gradients():
    chosen = torch.tensor([1.0, 2.0], requires_grad=True)
    denominator = torch.tensor(1e-39, dtype=torch.float64)
    prefloss.bradley_terry_loss(chosen, torch.zeros(2), denominator=denominator).backward()
    exact = -torch.sigmoid(-chosen.detach().double()) / 1e-39
    torch.testing.assert_close(chosen.grad.double(), exact, rtol=4 * 2.0**-24, atol=0.0)


def test_statistics_take_the_digits_of_a_float32_loss_that_float32_has_no_room_for():
    """Losses of nearly equal rewards, all about log 2, differ by less than its ulp."""
    chosen = (1e-8 * np.random.default_rng(0).normal(size=10_000)).astype(np.float32)
    losses = np.log1p(np.exp(-chosen.astype(np.float64)))
    _, stats = prefloss.bradley_terry_loss(torch.from_numpy(chosen), torch.zeros(10_000), return_stats=True)
    assert stats.standard_error == pytest.approx(np.std(losses, ddof=1) / 100.0, rel=1e-6)
