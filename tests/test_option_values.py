"""What options may be, for every layout: tensors of any real dtype, numbers of any kind, sizes, and what overflows."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from calls import ALL, FUNCTIONS, GROUPS, Call, assert_the_same_step
from rounding_bounds import assert_same_bits

import prefloss

UNSIGNED = [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
REAL = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int16, torch.int32, torch.int64]
REAL += [*UNSIGNED, torch.bool]
over_dtypes = pytest.mark.parametrize("dtype", REAL, ids=lambda dtype: str(dtype).removeprefix("torch."))
over_layouts = pytest.mark.parametrize("layout", FUNCTIONS)
OPTIONAL = [
    (call, place)
    for call in ALL
    for place in call.optional
    if call.option not in ("mask", "integer denominator", "weighted statistics", "everything")
]
over_optional = pytest.mark.parametrize(("call", "place"), OPTIONAL, ids=str)


def small_integers(tensor, most=2):
    """Values that every dtype holds."""
    return (tensor.detach().abs() * 1.5).round().clamp(max=most)


@over_optional
@pytest.mark.parametrize("rewards_dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_an_option_of_any_real_dtype_means_its_values(call, place, rewards_dtype, device):
    """Only a mask is of truth values."""
    tensors = call.drawn(device, rewards_dtype)
    most = {"target": 1, "weight": 1}.get(place, 2)
    values = tensors[place].floor() if place == "denominator" else small_integers(tensors[place], most)
    expected = call.step({**tensors, place: values.float()})
    for dtype in REAL:
        if dtype is not torch.bool or place == "weight":
            assert_the_same_step(call, tensors, call.step({**tensors, place: values.to(dtype)}), expected)


@pytest.mark.parametrize("layout", GROUPS)
@pytest.mark.parametrize("dtype", [*REAL, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_ranks_of_any_real_dtype_mean_their_values(layout, dtype, device):
    call = Call(layout, "ties half")
    tensors = call.drawn(device)
    name = "relevance" if layout == "masked" else "ranks"
    tensors[name] = tensors[name].clamp(max=1) if dtype is torch.bool else tensors[name]
    assert_same_bits(call.step({**tensors, name: tensors[name].to(dtype)}), call.step(tensors))


@pytest.mark.parametrize("worst", [5, 2**63 - 1, 2**63, 2**64 - 1])
def test_ranks_beyond_int64_are_compared_as_they_are(worst):
    rewards = torch.tensor([[2.0, 1.0]])
    loss = prefloss.bradley_terry_loss_grouped(rewards, torch.tensor([[0, worst]], dtype=torch.uint64))
    assert_same_bits([loss], [prefloss.bradley_terry_loss_grouped(rewards, torch.tensor([[0, 1]]))])


@pytest.mark.parametrize("layout", GROUPS)
def test_ranks_that_no_narrower_dtype_tells_apart_are_compared_as_they_are(layout):
    call = Call(layout, "default")
    tensors = call.drawn()
    name = "relevance" if layout == "masked" else "ranks"
    for values in ((2**52 + tensors[name]).double(), 2**60 + tensors[name], 2**30 + tensors[name].int()):
        assert_same_bits(call.step({**tensors, name: values}), call.step(tensors))


# 0-d tensors, parameters and NumPy's numbers, where a number is taken.
NUMBERS = {
    "0-d tensor": lambda number: torch.tensor(number, dtype=torch.float64),
    "parameter": lambda number: torch.nn.Parameter(torch.tensor(number, dtype=torch.float64), requires_grad=False),
    "numpy": np.float64,
    "numpy 0-d": lambda number: np.array(number)[()],
    "fraction": Fraction,
}
TAKEN = [
    *(("beta", 0.25), ("label_smoothing", 0.125), ("center_rewards_coefficient", 0.5)),
    *(("margin", 0.75), ("target", 0.25), ("denominator", 3.5)),
]


@over_layouts
@pytest.mark.parametrize(("option", "number"), TAKEN, ids=[option for option, _ in TAKEN])
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_number_may_be_of_any_kind(layout, option, number, kind, device):
    if option == "target" and layout in GROUPS:
        pytest.skip("groups have no targets")
    call = Call(layout, "default")
    tensors = call.drawn(device)
    own = {name: tensors[name] for name in call.places}
    fixed = {name: value for name, value in call.numbers.items() if name != option}
    results = [call.function(**own, **fixed, **{option: value}) for value in (number, NUMBERS[kind](number))]
    gradients = [torch.autograd.grad(loss, next(iter(tensors.values()))) for loss in results]
    assert_same_bits(results[1:], results[:1])
    assert_same_bits(*gradients)


@over_layouts
@pytest.mark.parametrize("option", ["beta", "margin", "center_rewards_coefficient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_number_that_overflows_what_is_computed_in_is_refused_by_name(layout, option, dtype, device):
    """Groups of 1,024 zeros and more ended the process. float64 has room for it."""
    call = Call(layout, "default")
    tensors = call.drawn(device, dtype)
    rewards = ("chosen", "rejected", "rewards", "scores")
    own = {name: torch.zeros_like(tensors[name]) if name in rewards else tensors[name] for name in call.places}
    with pytest.raises(ValueError, match=f"^{option} must be .*float32.*1e\\+39"):
        call.function(**own, **call.numbers, **{option: 1e39})
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    assert call.function(**wide, **call.numbers, **{option: 1e39}).isfinite()


@over_layouts
@pytest.mark.parametrize("denominator", [1e39, 1e-39])
def test_a_denominator_beyond_float32_divides_or_is_refused(layout, denominator):
    """An upstream gradient of the same size brings the gradient back to where float32 holds it."""
    call = Call(layout, "denominator number")
    tensors = call.drawn()
    own = {name: tensors[name] for name in call.places}
    fixed = {name: value for name, value in call.numbers.items() if name != "denominator"}
    leaf = next(iter(tensors.values()))
    expected = torch.autograd.grad(call.function(**own, **fixed, denominator=1.0), leaf)
    try:
        loss = call.function(**own, **fixed, denominator=denominator)
    except ValueError as error:
        assert str(error).startswith("denominator must be")  # noqa: PT017  either is right
        return
    (gradient,) = torch.autograd.grad(loss, leaf, torch.tensor(1e-30 if denominator < 1 else 1e30))
    exact = expected[0].double() * (1e-30 if denominator < 1 else 1e30) / denominator
    torch.testing.assert_close(gradient.double(), exact, rtol=2**-21, atol=2**-148)


@pytest.mark.parametrize("given", [Fraction(7, 2), 2**70, np.float32(3.5), np.int64(3)], ids=str)
def test_a_denominator_that_is_accepted_serves_every_way(given):
    chosen, rejected = torch.randn(4, requires_grad=True), torch.randn(4)
    expected = torch.autograd.grad(prefloss.bradley_terry_loss(chosen, rejected, denominator=float(given)), chosen)
    for pair in ((chosen, rejected), (chosen.expand(1, 4).t(), rejected.expand(1, 4).t())):
        loss = prefloss.bradley_terry_loss(*pair, denominator=given)
        assert_same_bits(torch.autograd.grad(loss, chosen, create_graph=True), expected)


# ---- Sizes of groups ----

WRAPPING = [
    [2**62] * 4 + [4],
    [2**62 + 300, 2**62, 2**62, 2**62 - 296],
    [2**63 - 1, 2**63 - 1, 6],
    [5],
    [3, 2, -1],
    [2**64 + 4],
]


@pytest.mark.parametrize("sizes", WRAPPING, ids=str)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["list", "tensor"])
def test_sizes_of_groups_that_do_not_add_up_are_refused_however_large(sizes, as_tensor):
    if as_tensor and max(sizes) >= 2**63:
        pytest.skip("no int64")
    with pytest.raises(ValueError, match="group_sizes"):
        prefloss.bradley_terry_loss_grouped(
            torch.randn(4, requires_grad=True), torch.arange(4), group_sizes=torch.tensor(sizes) if as_tensor else sizes
        )


def test_sizes_changed_before_backward_are_an_error_or_change_nothing():
    """As the buffer of a data loader is, for its next batch."""
    rewards, sizes = torch.randn(5, requires_grad=True), torch.tensor([2, 3])
    expected = torch.autograd.grad(
        prefloss.bradley_terry_loss_grouped(rewards, torch.arange(5), group_sizes=[2, 3]), rewards
    )
    loss = prefloss.bradley_terry_loss_grouped(rewards, torch.arange(5), group_sizes=sizes)
    sizes.copy_(torch.tensor([4, 1]))
    try:
        gradient = torch.autograd.grad(loss, rewards)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017  either is right
    else:
        assert_same_bits(gradient, expected)
