"""bfloat16 and float16 rewards: what they lose, which is one rounding of each gradient."""

from __future__ import annotations

import pytest
import torch
from rounding_bounds import assert_same_bits
from sample_inputs import laid_out

import prefloss

HALF = (torch.bfloat16, torch.float16)
over_half_precision = pytest.mark.parametrize("dtype", HALF, ids=["bfloat16", "float16"])


def every_value(dtype):
    """All 65,536 of them, in the order of their bits: a block of 512 neighbours is moderate as a whole, or not at all."""
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


def assert_rounded_once(actual, exact, relative):
    """`actual` is a number within `relative` of `exact`, rounded to nearest in its dtype."""
    limits = torch.finfo(actual.dtype)
    finite = exact.abs() < limits.max  # NaN is not
    torch.testing.assert_close(actual[~finite], exact[~finite].to(actual.dtype), rtol=0.0, atol=0.0, equal_nan=True)
    actual, exact = actual[finite].double(), exact[finite].double()
    error = relative * exact.abs() + 2.0**-148  # float32's own subnormal numbers
    magnitude = torch.clamp(exact.abs() + error, min=limits.smallest_normal)
    half_ulp = torch.ldexp(torch.full_like(exact, limits.eps / 2), torch.frexp(magnitude).exponent - 1)
    assert ((actual - exact).abs() <= half_ulp + error).all()


# What a slope errs by before it is rounded: the polynomial of the exponential 2^-17.5; then its sum with 1 - s, 1 + exp and the
# quotient half an ulp of float32 each, and the same again for the reduced argument and its product with log 2. That is less than
# 2^-17, and 2^-6 ulp of float16, 2^-9 of bfloat16. Beyond the moderate z it is 1.5 ulp of float32, and a product's rounding.
SLOPE = 2.0**-17


@over_half_precision
@pytest.mark.parametrize("upstream", [1.0, -(2.0**-20)])
def test_the_gradient_at_every_half_precision_z_is_rounded_once(dtype, upstream, device):
    """Within 1/2 + 2^-6 ulp of float16, 1/2 + 2^-9 ulp of bfloat16."""
    z = every_value(dtype)
    chosen, rejected = (tensor.to(device).requires_grad_() for tensor in (z.clone(), torch.zeros_like(z)))
    loss = prefloss.bradley_terry_loss(chosen, rejected, reduction="sum")
    gradients = torch.autograd.grad(loss, (chosen, rejected), torch.tensor(upstream, device=device))
    exact = -upstream * torch.sigmoid(-z.double())
    for gradient, its in zip(gradients, (exact, -exact), strict=True):
        assert_rounded_once(gradient.cpu(), its, SLOPE)


@over_half_precision
@pytest.mark.parametrize("count", [1, 2, 511, 513, 1023])
def test_each_gradient_goes_to_its_own_pair(dtype, count, device):
    """bfloat16 is computed two neighbours at a time: odd counts, and a beginning that no word has."""
    random = torch.Generator().manual_seed(count)
    for start in (0, 1):
        chosen, rejected = (
            torch.randn(count + 1, generator=random).to(device, dtype)[start : start + count].requires_grad_()
            for _ in range(2)
        )
        loss = prefloss.bradley_terry_loss(chosen, rejected, reduction="sum")
        exact = -torch.sigmoid((rejected.float() - chosen.float()).detach().double()).cpu()
        for gradient, its in zip(torch.autograd.grad(loss, (chosen, rejected)), (exact, -exact), strict=True):
            assert_rounded_once(gradient.cpu(), its, SLOPE)


@pytest.mark.kernels  # torch's own operations may round otherwise where strides are others
@over_half_precision
@pytest.mark.parametrize("count", [511, 1023])
def test_a_gradient_depends_neither_on_strides_nor_on_what_else_is_wanted(dtype, count, device):
    """Moderate differences have a formula of their own, which rounds to the other side once in some hundred times."""
    drawn = torch.randn(2, count, generator=torch.Generator().manual_seed(count)).to(device, dtype)
    expected = None
    for layout in ("contiguous", "every_other", "column"):
        for wanted in ((0, 1), (0,), (1,)):
            pair = [laid_out(tensor, layout) for tensor in drawn]
            leaves = [pair[place].requires_grad_() for place in wanted]
            gradients = torch.autograd.grad(prefloss.bradley_terry_loss(*pair), leaves)
            expected = expected or gradients
            assert_same_bits(gradients, [expected[place] for place in wanted])


@over_half_precision
@pytest.mark.parametrize("upstream", [1.0, -3e-5, 1e30], ids=["ordinary", "subnormal", "overflowing"])
@pytest.mark.parametrize("layout", ["contiguous", "every_other"])
def test_every_half_precision_value_is_converted_exactly(dtype, layout, upstream, device):
    """As rewards: the losses of the same values in float32, to the last bit; and the gradients, rounded once more."""
    every = every_value(dtype)
    losses, gradients = [], []
    for kind in (dtype, torch.float32):
        pair = [
            laid_out(tensor.to(device, kind), layout).detach().requires_grad_()
            for tensor in (every, every.roll(12_345))
        ]
        losses.append(prefloss.bradley_terry_loss(*pair, reduction="none"))
        total = prefloss.bradley_terry_loss(*pair, reduction="sum")
        gradients.append(torch.autograd.grad(total, pair, torch.tensor(upstream, device=device)))
    assert_same_bits(losses[:1], losses[1:])
    for half, single in zip(*gradients, strict=True):
        assert_rounded_once(half.cpu(), single.cpu(), SLOPE + 2.0**-22)  # and of float32, 1.5 ulp and a product


@over_half_precision
def test_the_loss_of_half_precision_rewards_is_that_of_the_same_values_in_float32(dtype):
    random = torch.Generator().manual_seed(13)
    pair = [torch.randn(4096, generator=random).to(dtype) for _ in range(2)]
    half, single = (
        prefloss.bradley_terry_loss(*(tensor.to(kind) for tensor in pair)) for kind in (dtype, torch.float32)
    )
    assert half.item() == single.item()


@pytest.mark.parametrize("margin", HALF, ids=str)
@pytest.mark.parametrize("rewards", [torch.float64, torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("by_index", [False, True], ids=["pairs", "by-index"])
def test_the_gradient_of_one_margin_of_all_pairs_is_rounded_once(rewards, margin, by_index):
    """Not in each pair, where with this denominator float16 has only zeros."""
    scores, pairs = torch.randn(2000).to(rewards), torch.randperm(2000).reshape(2, 1000)
    wide = torch.tensor(0.5, dtype=torch.promote_types(rewards, torch.float32), requires_grad=True)
    narrow = wide.detach().to(margin).requires_grad_()
    for one in (wide, narrow):
        if by_index:
            loss = prefloss.bradley_terry_loss_indexed(scores, *pairs, margin=one, denominator=1e8)
        else:
            loss = prefloss.bradley_terry_loss(*scores[pairs], margin=one, denominator=1e8)
        loss.backward()
    assert narrow.grad == wide.grad.to(margin) > 0
