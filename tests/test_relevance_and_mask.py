"""`relevance=` and `mask=` of groups: the loss of the same ranks turned round, and of the same groups without the masked items."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES
from test_arguments import assert_rejected, table
from torch._dynamo.testing import CompileCounterWithBackend

from prefloss import bradley_terry_loss_grouped, reference
from prefloss.stats import Sum

INTEGERS = [
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
]
over_ties = pytest.mark.parametrize("ties", ["skip", "half"])
over_averages = pytest.mark.parametrize("average", ["groups", "pairs"])


def step(rewards, **call):
    """[loss, gradient], and the statistics' sums."""
    rewards = rewards.detach().requires_grad_()
    loss, stats = bradley_terry_loss_grouped(rewards, **call, return_stats=True)
    alone = bradley_terry_loss_grouped(rewards, **call)
    (gradient,) = torch.autograd.grad(alone.sum(), rewards)
    return [loss.detach(), alone.detach(), gradient, stats.sums]


def padded(device="cpu", dtype=torch.float32, shape=(6, 5), ranks=5, share=0.7):
    """Rewards, ranks and mask, with what must not be read where the mask is 0."""
    generator = torch.Generator().manual_seed(shape[1])
    rewards = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    order = torch.randint(0, ranks, shape, generator=generator).float()
    mask = torch.rand(shape, generator=generator) < share
    return *(values.masked_fill(~mask, math.nan).to(device) for values in (rewards, order)), mask.to(device)


def without_padding(rewards, ranks, mask):
    """The same items as ragged groups."""
    return {"rewards": rewards[mask], "ranks": ranks[mask], "group_sizes": mask.sum(1).cpu()}


# ---- relevance ----


@over_ties
def test_relevance_is_the_order_of_the_opposite_ranks(ties, device):
    rewards, labels = torch.randn(7, 9, device=device), torch.randint(0, 4, (7, 9), device=device)
    assert_same_bits(step(rewards, relevance=labels, ties=ties), step(rewards, ranks=-labels, ties=ties))
    flat = {"group_sizes": [20, 0, 43], "ties": ties}
    rewards, labels = rewards.flatten(), labels.flatten()
    assert_same_bits(step(rewards, relevance=labels, **flat), step(rewards, ranks=-labels, **flat))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_relevance_keeps_the_order_at_the_ends_of_every_integer(dtype, device):
    """The opposite of the least int64 is itself, and of the uint8 1 it is 255."""
    least, most = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    relevance = torch.tensor([[most, least, least + 1, most - 1, 1]], dtype=dtype, device=device)
    places = torch.tensor([[sorted(relevance[0].tolist(), reverse=True).index(x) for x in relevance[0].tolist()]])
    rewards = torch.randn(1, 5, device=device)
    assert_same_bits(step(rewards, relevance=relevance), step(rewards, ranks=places.to(device)))


def test_relevance_may_be_bool_or_floating(device):
    rewards = torch.randn(2, 4, device=device)
    labels = torch.tensor([[True, False, False, True], [False, True, True, True]], device=device)
    expected = step(rewards, ranks=(~labels).long())
    for dtype in (torch.bool, torch.float64, torch.bfloat16, torch.float8_e5m2):
        assert_same_bits(step(rewards, relevance=labels.to(dtype)), expected)
    infinite = torch.where(labels, math.inf, -math.inf)
    assert_same_bits(step(rewards, relevance=infinite), expected)


# ---- mask ----


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over_ties
@over_averages
def test_masked_groups_are_the_groups_without_the_masked_items(dtype, ties, average, device):
    """The same bits as of ragged groups, and gradients of exactly 0, whatever the padding holds."""
    options = {"ties": ties, "average": average, "beta": 0.5, "center_rewards_coefficient": 0.01}
    for shape, ranks in (((6, 5), 5), ((40, 9), 3), ((3, 70), 2), ((2, 200), 1000), ((1, 30), 2)):
        rewards, order, mask = padded(device, dtype, shape, ranks)
        for extra in ({}, {"weight": torch.linspace(0, 1, shape[0], device=device)}, {"reduction": "none"}):
            loss, alone, gradient, sums = step(rewards, ranks=order, mask=mask, **options, **extra)
            expected = step(**without_padding(rewards, order, mask), **options, **extra)
            assert_same_bits([loss, alone, gradient[mask], sums], expected)
            assert bool((gradient[~mask] == 0).all())


@pytest.mark.kernels
@over_ties
def test_a_long_masked_list_is_the_list_without_the_masked_items(ties, device):
    rewards, order, mask = padded(device, shape=(2, 3000), ranks=10**6)
    loss, alone, gradient, sums = step(rewards, ranks=order, mask=mask, ties=ties)
    expected = step(**without_padding(rewards, order, mask), ties=ties)
    assert_same_bits([loss, alone, gradient[mask], sums], expected)
    assert bool((gradient[~mask] == 0).all())


def test_masked_groups_agree_with_the_reference(device):
    rewards, order, mask = padded(device, torch.float64)
    rewards.requires_grad_()
    loss, stats = bradley_terry_loss_grouped(rewards, relevance=order, mask=mask, return_stats=True)
    (gradient,) = torch.autograd.grad(loss, rewards)
    inputs = {"rewards": rewards, "relevance": order, "mask": mask}
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in inputs.items()}
    expected, sums = reference.bradley_terry_loss_grouped(**arrays, return_stats=True)
    slopes = reference.bradley_terry_gradient_grouped(1.0, **arrays)
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-14)
    np.testing.assert_allclose(gradient.cpu().numpy(), slopes, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(stats.sums.cpu().numpy(), sums, rtol=1e-13, atol=1e-13)


def test_the_reference_masks_as_if_items_were_left_out():
    rewards, order, mask = (tensor.nan_to_num().numpy() for tensor in padded(dtype=torch.float64))  # nan is in no pair
    masked = reference.bradley_terry_loss_grouped(rewards, order, mask=mask, return_stats=True)
    ragged = {"group_sizes": mask.sum(1), "return_stats": True}
    expected = reference.bradley_terry_loss_grouped(rewards[mask], order[mask], **ragged)
    # The same numbers added up in another order: an error of u for each of the ordered pairs, of the greatest sum at most.
    bound = rewards.size * rewards.shape[1] * 2.0**-53 * np.abs(np.hstack(expected)).max()
    np.testing.assert_allclose(np.hstack(masked), np.hstack(expected), rtol=0, atol=bound)


def test_groups_of_one_item_or_none_have_no_pairs(device):
    rewards = torch.full((3, 3), math.nan, device=device)
    rewards[1, 2] = 1.0
    mask = ~rewards.isnan()
    loss, alone, gradient, sums = step(rewards, relevance=rewards, mask=mask)
    assert loss == alone == 0
    assert not gradient.any()
    assert sums[Sum.COUNT] == sums[Sum.WEIGHT] == 0
    losses = bradley_terry_loss_grouped(rewards, relevance=rewards, mask=mask, reduction="none")
    assert_same_bits([losses], [torch.zeros(3, device=device)])
    empty = torch.empty(2, 0, device=device)
    assert step(empty, ranks=empty, mask=empty.bool())[0] == 0


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float32, torch.float8_e4m3fn], ids=str)
def test_a_mask_of_zeros_and_ones_is_a_mask(dtype, device):
    rewards, order, mask = padded(device)
    assert_same_bits(
        step(rewards, ranks=order, mask=mask.to(dtype)),
        step(rewards, ranks=order, mask=mask),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("rewards_dtype", [torch.float64, torch.bfloat16], ids=str)
def test_an_item_whose_mask_is_nan_makes_what_depends_on_it_nan(dtype, rewards_dtype, device):
    """The first group has a pair with it, in the second it is alone with its rank, and the third has none such."""
    nan = math.nan
    rewards = torch.tensor([[2.0, 0.0, 1.0]] * 3, dtype=rewards_dtype, device=device).requires_grad_()
    relevance = torch.tensor([[1, 0, 0], [1, 0, 1], [1, 0, 1]], device=device)
    mask = torch.tensor([[1, 1, nan], [1, 0, nan], [1, 1, 1]], device=device).to(dtype)
    loss = bradley_terry_loss_grouped(rewards, relevance=relevance, mask=mask, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), rewards)
    assert loss.isnan().tolist() == [True, False, False]
    assert loss[1] == 0
    assert gradient.isnan().tolist() == [[True, False, True], [False] * 3, [False] * 3]
    arrays = rewards.detach().double().cpu().numpy(), None
    options = {"relevance": relevance.cpu().numpy(), "mask": mask.double().cpu().numpy(), "reduction": "none"}
    assert np.isnan(reference.bradley_terry_loss_grouped(*arrays, **options)).tolist() == [True, False, False]
    slopes = reference.bradley_terry_gradient_grouped(1.0, *arrays, **options)
    assert np.isnan(slopes).tolist() == gradient.isnan().tolist()


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.bool, torch.float8_e5m2, torch.float64], ids=str)
def test_masked_ranks_may_be_of_any_dtype(dtype, device):
    rewards, _, mask = padded(device)
    order = torch.randint(0, 2, rewards.shape, device=device)
    expected = step(rewards, ranks=order, mask=mask)
    assert_same_bits(step(rewards, ranks=order.to(dtype), mask=mask), expected)
    assert_same_bits(step(rewards, relevance=(1 - order).to(dtype), mask=mask), expected)


def test_views_are_masked_as_their_values_are(device):
    rewards, order, mask = padded(device)
    expected = step(rewards, ranks=order, mask=mask)
    turned = [tensor.T.contiguous().T for tensor in (rewards, order, mask)]
    found = step(turned[0], ranks=turned[1], mask=turned[2])
    assert_same_bits(found, expected)


@over_ties
def test_second_derivatives_of_masked_groups_are_those_of_ragged_ones(ties, device):
    """Nothing reaches a masked item, whatever direction it is given."""
    rewards, order, mask = padded(device, torch.float64)
    call = without_padding(rewards, order, mask)
    direction = torch.randn(rewards.shape, dtype=torch.float64, device=device)
    found = []
    for leaf, towards, options in (
        (rewards, direction.masked_fill(~mask, math.nan), {"ranks": order, "mask": mask}),
        (call.pop("rewards"), direction[mask], call),
    ):
        leaf = leaf.detach().requires_grad_()
        loss = bradley_terry_loss_grouped(leaf, **options, ties=ties, margin=0.3)
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        found.append(torch.autograd.grad(gradient, leaf, towards)[0])
    assert_same_bits([found[0][mask]], [found[1]])
    assert bool((found[0][~mask] == 0).all())


def test_each_row_of_a_vmap_may_have_its_own_mask(device):
    rewards, order = torch.randn(4, 6, 5, device=device), torch.randint(0, 3, (4, 6, 5), device=device)
    mask = torch.rand(4, 6, 5, device=device) < 0.6
    gradient = torch.func.grad(lambda *given: bradley_terry_loss_grouped(given[0], relevance=given[1], mask=given[2]))
    together = torch.vmap(gradient)(rewards, order, mask)
    for i in range(4):
        assert_same_bits([together[i]], [gradient(rewards[i], order[i], mask[i])])


def test_other_masks_do_not_compile_again():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(bradley_terry_loss_grouped, backend=counter, fullgraph=True)
    for share in (0.0, 0.5, 1.0):
        rewards, order, mask = padded(share=share)
        loss = compiled(rewards, relevance=order, mask=mask)
        assert_same_bits([loss], [bradley_terry_loss_grouped(rewards, relevance=order, mask=mask)])
    assert counter.frame_count == 1


def test_an_error_tells_the_group_of_a_rank_that_is_nan():
    mask = torch.tensor([[True, True, True], [False, True, True]])
    ranks = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, math.nan]])
    assert_rejected(
        lambda: bradley_terry_loss_grouped(torch.ones(2, 3), ranks, mask=mask),
        ValueError,
        ["ranks, or relevance, must be numbers", "nan in group 1"],
    )


ONE_OF = ["exactly one of ranks (lower is better) and relevance (higher is better)"]
ones = torch.ones


@table(
    "build, error, says",
    ("neither", lambda: {}, TypeError, [*ONE_OF, "got neither"]),
    ("both", lambda: {"ranks": ones(2, 3), "relevance": ones(2, 3)}, TypeError, [*ONE_OF, "got both"]),
    ("relevance-list", lambda: {"relevance": [1, 0]}, TypeError, ["relevance", "tensor of the rewards' shape", "list"]),
    (
        "relevance-shape",
        lambda: {"relevance": ones(3)},
        ValueError,
        ["relevance must have the shape", "(2, 3)", "(3,)"],
    ),
    ("relevance-complex", lambda: {"relevance": ones(2, 3).cfloat()}, TypeError, ["relevance", "real", "complex64"]),
    (
        "relevance-device",
        lambda: {"relevance": ones(2, 3, device="meta")},
        ValueError,
        ["relevance", "same device", "meta"],
    ),
    ("relevance-nan", lambda: {"relevance": ones(2, 3) / 0 * 0}, ValueError, ["relevance", "nan at position (0, 0)"]),
    ("relevance-grad", lambda: {"relevance": ones(2, 3).requires_grad_()}, ValueError, ["relevance.detach()"]),
    (
        "mask-list",
        lambda: {"ranks": ones(2, 3), "mask": [[1]]},
        TypeError,
        ["mask", "tensor of the rewards' shape", "list"],
    ),
    ("mask-shape", lambda: {"ranks": ones(2, 3), "mask": ones(2)}, ValueError, ["mask", "(2, 3)", "(2,)"]),
    ("mask-complex", lambda: {"ranks": ones(2, 3), "mask": ones(2, 3).cfloat()}, TypeError, ["mask", "complex64"]),
    ("mask-grad", lambda: {"ranks": ones(2, 3), "mask": ones(2, 3).requires_grad_()}, ValueError, ["mask.detach()"]),
    (
        "mask-device",
        lambda: {"ranks": ones(2, 3), "mask": ones(2, 3, device="meta")},
        ValueError,
        ["mask", "same device"],
    ),
    (
        "mask-of-ragged-groups",
        lambda: {"rewards": ones(6), "ranks": ones(6), "mask": ones(6), "group_sizes": [6]},
        ValueError,
        ["mask is for padded groups", "(B, K)", "group_sizes"],
    ),
    ("ranks-under-a-mask", lambda: {"ranks": ones(3), "mask": ones(2, 3)}, ValueError, ["ranks", "(2, 3)", "(3,)"]),
)
def test_what_cannot_be_is_refused_by_name(build, error, says):
    assert_rejected(lambda: bradley_terry_loss_grouped(**{"rewards": ones(2, 3), **build()}), error, says)
