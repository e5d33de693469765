"""`dpo_loss` against the formulas of the papers, and its statistics against those of the implicit rewards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import prefloss
from prefloss import reference

NAMES = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
PAIRS = 37


def drawn(dtype=torch.float64, device="cpu", pairs=PAIRS):
    """Log-probabilities of long responses: -500, give or take 200, and a reference that is 3 away."""
    generator = torch.Generator().manual_seed(1)
    fixed = -500 + 200 * torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    policy = fixed + 3 * torch.randn(2, pairs, generator=generator, dtype=torch.float64)
    given = [each.to(dtype).to(device) for each in (*policy, *fixed)]
    return [*(each.requires_grad_() for each in given[:2]), *given[2:]]


# Rafailov et al. 2023, equation 7; Mitchell 2023, equation 3; Chowdhury et al. 2024, equation 9.
def sigmoid(h, epsilon):
    return -F.logsigmoid(h)


def conservative(h, epsilon):
    return -(1 - epsilon) * F.logsigmoid(h) - epsilon * F.logsigmoid(-h)


def robust(h, epsilon):
    return (-(1 - epsilon) * F.logsigmoid(h) + epsilon * F.logsigmoid(-h)) / (1 - 2 * epsilon)


FORMULAS = {"sigmoid": ({}, sigmoid), "cDPO": ({"label_smoothing": 0.2}, conservative)}
FORMULAS["robust"] = {"flip_rate": 0.2}, robust


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_loss_and_its_gradients_are_those_of_the_papers(name, beta, device):
    options, formula = FORMULAS[name]
    logps = drawn(device=device)
    pc, pr, rc, rr = logps
    expected = formula(beta * ((pc - pr) - (rc - rr)), 0.2).mean()
    loss = prefloss.dpo_loss(*logps, beta=beta, **options)
    # In float64 the paper's order loses some 1e-13: the half ulp of -500 in each difference.
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for one, other in zip(torch.autograd.grad(loss, logps[:2]), torch.autograd.grad(expected, logps[:2]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-14)
    arrays = [each.detach().cpu().numpy() for each in logps]
    assert loss.item() == pytest.approx(float(reference.dpo_loss(*arrays, beta=beta, **options)), rel=1e-14)


def test_nothing_is_lost_of_rewards_that_are_small_beside_the_log_probabilities():
    """Float32 has 24 bits: at -500 its unit is 3e-5. Policy less reference is exact there, chosen less rejected is not."""
    logps = [each.detach() for each in drawn(torch.float32)]
    pc, pr, rc, rr = (each.double() for each in logps)
    exact = -F.logsigmoid(0.1 * ((pc - rc) - (pr - rr)))
    ours = (prefloss.dpo_loss(*logps, reduction="none") - exact).abs()
    papers = (-F.logsigmoid(0.1 * ((logps[0] - logps[1]) - (logps[2] - logps[3]))) - exact).abs()
    # The difference of the rewards, beta, its product and the loss: half an ulp each of at most |z|, and 1.5 ulp of the loss.
    z = 0.1 * ((pc - rc) - (pr - rr)).abs()
    assert bool((ours <= 2.0**-24 * (3 * z + 3 * exact)).all())
    assert papers.max() > 10 * ours.max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_subtracted_in_float32_and_gradients_have_its_dtype(dtype, device):
    # Of policy and reference one is more than twice the other: closer ones have an exact difference in any precision.
    logps = [
        (scale * each).to(dtype).to(device) for scale, each in zip((1, 1, 7, 7), torch.rand(4, PAIRS), strict=True)
    ]
    logps = [*(each.requires_grad_() for each in logps[:2]), *logps[2:]]
    wide = [each.detach().float().requires_grad_(each.requires_grad) for each in logps]
    loss, expected = prefloss.dpo_loss(*logps), prefloss.dpo_loss(*wide)
    assert torch.equal(loss, expected)
    for one, other in zip(torch.autograd.grad(loss, logps[:2]), torch.autograd.grad(expected, wide[:2]), strict=True):
        assert torch.equal(one, other.to(dtype))


def test_policy_and_reference_may_have_different_dtypes():
    logps = drawn(torch.float32)
    mixed = [logps[0].detach().bfloat16(), logps[1].detach(), logps[2].bfloat16(), logps[3]]
    same = [each.float() for each in mixed]
    assert torch.equal(prefloss.dpo_loss(*mixed), prefloss.dpo_loss(*same))
    assert prefloss.dpo_loss(*mixed[:3], logps[3].double()).dtype is torch.float64


def test_the_statistics_are_those_of_the_implicit_rewards(device):
    pc, pr, rc, rr = logps = drawn(device=device)
    weight = torch.linspace(0, 1, PAIRS, dtype=torch.float64, device=device)
    loss, stats = prefloss.dpo_loss(*logps, beta=0.3, weight=weight, return_stats=True)
    chosen, rejected = (0.3 * (pc - rc)).detach(), (0.3 * (pr - rr)).detach()
    expected, its = prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True)
    torch.testing.assert_close(loss, expected)
    assert stats.as_dict() == pytest.approx(its.as_dict(), rel=1e-12)
    rewards = torch.cat([chosen[1:], rejected[1:]])  # the first weight is 0
    assert (stats.min_reward, stats.max_reward) == pytest.approx((rewards.min().item(), rewards.max().item()))
    assert stats.chosen_std == pytest.approx(chosen[1:].std().item())
    _, sums = reference.dpo_loss(
        *(each.detach().cpu().numpy() for each in logps), beta=0.3, weight=weight.cpu().numpy(), return_stats=True
    )
    np.testing.assert_allclose(stats.sums.cpu().numpy(), sums, rtol=1e-10)
    assert not stats.sums.requires_grad


def test_without_a_reference_its_log_probabilities_are_0():
    pc, pr, _, _ = drawn()
    zeros = torch.zeros_like(pc.detach())
    assert torch.equal(prefloss.dpo_loss(pc, pr, None, None), prefloss.dpo_loss(pc, pr, zeros, zeros))
    arrays = pc.detach().numpy(), pr.detach().numpy()
    assert prefloss.dpo_loss(pc, pr, None, None).item() == pytest.approx(reference.dpo_loss(*arrays, None, None))


def test_pairs_of_weight_0_count_nothing_even_where_they_are_nan(device):
    logps = [each.detach() for each in drawn(torch.float32, device)]
    weight = torch.ones(PAIRS, dtype=torch.bool, device=device)
    weight[[3, 4, 5]] = False
    kept = [each[weight] for each in logps]
    logps[0][3], logps[2][4] = math.nan, -math.inf
    logps[0][5] = logps[2][5] = -math.inf
    logps = [*(each.requires_grad_() for each in logps[:2]), *logps[2:]]
    loss, stats = prefloss.dpo_loss(*logps, weight=weight, return_stats=True)
    torch.testing.assert_close(loss, prefloss.dpo_loss(*kept))
    assert stats.count == PAIRS - 3
    assert math.isfinite(stats.max_reward)
    for gradient in torch.autograd.grad(loss, logps[:2]):
        assert gradient[[3, 4, 5]].tolist() == [0.0, 0.0, 0.0]
        assert bool(gradient.isfinite().all())
    assert prefloss.dpo_loss(*logps).isnan()


def test_micro_batches_add_up_to_the_batch():
    logps = drawn()
    whole = torch.autograd.grad(prefloss.dpo_loss(*logps, flip_rate=0.1), logps[:2])
    total, parts = 0.0, [torch.zeros_like(logps[0]), torch.zeros_like(logps[1])]
    for piece in (slice(0, 20), slice(20, 21), slice(21, None)):
        loss = prefloss.dpo_loss(*(each[piece] for each in logps), flip_rate=0.1, denominator=torch.tensor(PAIRS))
        total += loss.item()
        parts = [one + other for one, other in zip(parts, torch.autograd.grad(loss, logps[:2]), strict=True)]
    assert total == pytest.approx(prefloss.dpo_loss(*logps, flip_rate=0.1).item())
    torch.testing.assert_close(parts, list(whole))


def test_no_pairs_give_0():
    logps = drawn(pairs=0)
    loss, stats = prefloss.dpo_loss(*logps, return_stats=True)
    assert loss.item() == 0.0
    assert stats.count == 0
    assert math.isnan(stats.min_reward)
    assert [each.shape for each in torch.autograd.grad(loss, logps[:2])] == [(0,), (0,)]


def test_none_is_the_default_of_each_option():
    logps = drawn()
    off = dict.fromkeys(("beta", "label_smoothing", "flip_rate", "weight", "reduction", "denominator"))
    assert torch.equal(prefloss.dpo_loss(*logps, **off), prefloss.dpo_loss(*logps))


def test_second_derivatives_and_transforms():
    logps = [each.detach()[:5] for each in drawn()]

    def loss(*policy):
        return prefloss.dpo_loss(*policy, *logps[2:])

    policy = [each.clone().requires_grad_() for each in logps[:2]]
    assert torch.autograd.gradcheck(loss, policy)
    assert torch.autograd.gradgradcheck(loss, policy)
    each = torch.func.vmap(lambda *one: prefloss.dpo_loss(*one, reduction="sum", return_stats=True)[0])(*logps)
    torch.testing.assert_close(each, prefloss.dpo_loss(*logps, reduction="none"))


@pytest.mark.slow
def test_it_compiles_without_a_break():
    logps = drawn(torch.float32)
    step = torch.compile(lambda *given: prefloss.dpo_loss(*given, beta=0.5, return_stats=True), fullgraph=True)
    loss, stats = step(*logps)
    expected, its = prefloss.dpo_loss(*logps, beta=0.5, return_stats=True)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(stats.sums, its.sums)
    torch.testing.assert_close(torch.autograd.grad(loss, logps[:2]), torch.autograd.grad(expected, logps[:2]))


ONES = torch.ones(3)
REFUSED = {
    "one reference": (
        {"reference_chosen_logps": None},
        ValueError,
        r"reference_chosen_logps must be given where reference_rejected_logps is, or both must be None .* got None",
    ),
    "shape": (
        {"reference_chosen_logps": torch.ones(3, 1)},
        ValueError,
        r"reference_chosen_logps must have the shape and device of policy_chosen_logps, \(3,\) .* got \(3, 1\) on cpu",
    ),
    "device": (
        {"policy_rejected_logps": ONES.to("meta")},
        ValueError,
        r"policy_rejected_logps must .* got \(3,\) on meta",
    ),
    "a list": (
        {"policy_chosen_logps": [1.0]},
        TypeError,
        r"policy_chosen_logps must be a torch.Tensor of log-probabilities, got \[1.0\]",
    ),
    "integers": (
        {"policy_rejected_logps": ONES.long()},
        TypeError,
        "policy_rejected_logps must have dtype .* got int64",
    ),
    "trained": (
        {"reference_rejected_logps": torch.ones(3, requires_grad=True)},
        ValueError,
        r"reference_rejected_logps must not require a gradient.*torch.no_grad\(\)",
    ),
    "beta 0": ({"beta": 0.0}, ValueError, "beta must be a finite number > 0, got 0.0"),
    "beta": ({"beta": -0.1}, ValueError, "beta must be a finite number > 0, got -0.1"),
    "beta nan": ({"beta": math.nan}, ValueError, "beta must be a finite number > 0, got nan"),
    "beta a string": ({"beta": "0.1"}, TypeError, "beta must be a finite number > 0, got '0.1'"),
    "both": ({"label_smoothing": 0.1, "flip_rate": 0.1}, ValueError, "cannot both be given"),
    "flip rate": ({"flip_rate": 0.5}, ValueError, "flip_rate must be a number in"),
    "weight": ({"weight": torch.ones(2)}, ValueError, "weight must have one entry a pair"),
    "reduction": ({"reduction": "batchmean"}, ValueError, "reduction must be one of"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    given, error, says = REFUSED[name]
    with pytest.raises(error, match=says):
        prefloss.dpo_loss(**(dict.fromkeys(NAMES, ONES) | given))


def test_the_reference_refuses_one_reference_without_the_other():
    with pytest.raises(ValueError, match="must both be given"):
        reference.dpo_loss([1.0], [1.0], None, [1.0])
