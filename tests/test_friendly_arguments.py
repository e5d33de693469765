"""Everything that is accepted beside plain numbers and float32 tensors, and means the same as those."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_arguments import FLOAT8, INF, asking, indexed, ones, over_functions, rewards_with_gradients, table

import prefloss

OFF = ("margin", "weight", "target", "beta", "label_smoothing", "flip_rate")
OFF += ("center_rewards_coefficient", "reduction", "denominator")


def assert_same_result(call, other_call):
    """Both accepted, with the same bits of loss and gradients."""
    results = []
    for each in (call, other_call):
        pair = rewards_with_gradients("cpu")
        loss = each(*pair)
        results.append((loss, *torch.autograd.grad(loss, pair)))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@over_functions
@table(
    "given, meant",
    ("beta-integer", {"beta": 2}, {"beta": 2.0}),
    ("beta-zero", {"beta": 0.0}, {"beta": -0.0}),
    ("beta-numpy-float32", {"beta": np.float32(0.1)}, {"beta": float(np.float32(0.1))}),
    ("beta-numpy-float64", {"beta": np.float64(-0.1)}, {"beta": -0.1}),
    ("beta-numpy-integer", {"beta": np.int64(3)}, {"beta": 3.0}),
    ("beta-fraction", {"beta": Fraction(1, 4)}, {"beta": 0.25}),
    ("smoothing-integer", {"label_smoothing": 0}, {}),
    ("smoothing-numpy", {"label_smoothing": np.float16(0.5)}, {"label_smoothing": 0.5}),
    ("centring-integer", {"center_rewards_coefficient": 1}, {"center_rewards_coefficient": 1.0}),
    ("margin-numpy-integer", {"margin": np.int64(3)}, {"margin": 3.0}),
    ("margin-integer", {"margin": -1}, {"margin": -1.0}),
    ("target-integer", {"target": 1}, {}),
    ("target-zero", {"target": 0}, {"target": 0.0}),
    ("target-numpy", {"target": np.float32(0.5)}, {"target": 0.5}),
    ("reduction-numpy", {"reduction": np.str_("sum")}, {"reduction": "sum"}),
    ("denominator-numpy", {"denominator": np.int64(3)}, {"denominator": 3.0}),
    ("denominator-0d-parameter", {"denominator": torch.nn.Parameter(torch.tensor(3.0), False)}, {"denominator": 3.0}),
    ("denominator-one-element", {"denominator": torch.full((1, 1), 3)}, {"denominator": 3}),
    ("denominator-float8", {"denominator": torch.tensor(4.0).to(FLOAT8)}, {"denominator": 4}),
    ("beta-0d", {"beta": torch.tensor(0.25)}, {"beta": 0.25}),
    ("beta-one-element", {"beta": torch.tensor([2], dtype=torch.uint16)}, {"beta": 2.0}),
    ("beta-parameter", {"beta": torch.nn.Parameter(torch.tensor(0.25), False)}, {"beta": 0.25}),
    ("smoothing-0d", {"label_smoothing": torch.tensor(0.125)}, {"label_smoothing": 0.125}),
    ("flips-0d", {"flip_rate": torch.tensor(0.25, dtype=torch.float64)}, {"flip_rate": 0.25}),
    ("flips-numpy", {"flip_rate": np.float32(0.25)}, {"flip_rate": 0.25}),
    ("centring-0d", {"center_rewards_coefficient": torch.tensor(0.5)}, {"center_rewards_coefficient": 0.5}),
    ("margin-0d", {"margin": torch.tensor(0.75)}, {"margin": 0.75}),
    ("margin-0d-integer", {"margin": torch.tensor(2)}, {"margin": 2.0}),
    ("target-0d", {"target": torch.tensor(0.25)}, {"target": 0.25}),
    ("target-0d-mask", {"target": torch.tensor(False)}, {"target": 0.0}),
    ("all-none", dict.fromkeys(OFF), {}),
    ("denominator-small", {"denominator": 1e-30}, {"denominator": torch.tensor(1e-30, dtype=torch.float64)}),
)
def test_any_real_number_is_a_number(function, given, meant):
    assert_same_result(lambda *pair: function(*pair, **given), lambda *pair: function(*pair, **meant))


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64]
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@over_functions
@pytest.mark.parametrize("dtype", [*INTEGERS, *FLOATS], ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_a_denominator_tensor_is_the_number_that_it_holds(function, dtype):
    denominator = torch.tensor(7, dtype=dtype)
    assert_same_result(
        lambda *pair: function(*pair, denominator=denominator), lambda *pair: function(*pair, denominator=7)
    )


@over_functions
@table(
    "build",
    ("weight-integer", lambda: {"weight": torch.tensor([2, 0, 1, 3])}),
    ("weight-unsigned", lambda: {"weight": torch.tensor([2, 0, 1, 3], dtype=torch.uint16)}),
    ("weight-double", lambda: {"weight": torch.tensor([2.0, 0.0, 1.0, 3.0], dtype=torch.float64)}),
    ("weight-half", lambda: {"weight": ones(4, dtype=torch.float16)}),
    ("weight-float8", lambda: {"weight": torch.tensor([2.0, 0.0, 1.0, 3.0]).to(FLOAT8)}),
    ("margin-integer", lambda: {"margin": torch.tensor([2, 0, -1, 3])}),
    ("margin-mask", lambda: {"margin": torch.tensor([True, False, True, True])}),
    ("margin-double", lambda: {"margin": ones(4, dtype=torch.float64)}),
    ("margin-half", lambda: {"margin": ones(4, dtype=torch.float16)}),
    ("margin-float8", lambda: {"margin": ones(4).to(FLOAT8)}),
    ("target-integer", lambda: {"target": torch.tensor([1, 0, 1, 0])}),
    ("target-mask", lambda: {"target": torch.tensor([True, False, True, False])}),
    ("weight-mask", lambda: {"weight": torch.tensor([True, False, True, True])}),
    ("weight-parameter", lambda: {"weight": torch.nn.Parameter(ones(4), requires_grad=False)}),
    ("margin-gradient", lambda: {"margin": asking(4)}),
    ("margin-parameter", lambda: {"margin": torch.nn.Parameter(ones(4))}),
    ("target-expanded", lambda: {"target": torch.tensor(0.5).expand(4)}),
)
def test_a_tensor_option_means_its_values(function, build):
    given = build()
    plain = {name: tensor.detach().float().clone() for name, tensor in given.items()}
    asks = any(tensor.requires_grad for tensor in given.values())
    if function is indexed and (
        asks or any(tensor.dtype is torch.float64 for name, tensor in given.items() if name == "weight")
    ):
        pytest.skip("the slopes of an item are then added up after they were rounded, or in float64: see test_indexed")
    assert_same_result(lambda *pair: function(*pair, **given), lambda *pair: function(*pair, **plain))


@over_functions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_a_margin_for_all_pairs_may_ask_for_a_gradient(function, dtype, device):
    """A learned margin: its derivative is the sum of those of the pairs."""
    pair = rewards_with_gradients(device)
    margins = (
        torch.tensor(0.75, dtype=dtype, device=device, requires_grad=True),
        asking(4).mul(0.75).detach().to(device),
    )
    margins[1].requires_grad_()
    one, each = (torch.autograd.grad(function(*pair, margin=margin), margin)[0] for margin in margins)
    assert one.shape == ()
    assert one.dtype == dtype
    torch.testing.assert_close(one, each.sum().to(dtype))


def test_the_module_takes_the_margin_in_the_published_order():
    pair, margin = rewards_with_gradients("cpu"), torch.tensor([0.5, 0.0, 1.0, 2.0])
    loss = prefloss.BradleyTerryLoss(beta=0.5)(*pair, margin)
    assert torch.equal(loss, prefloss.bradley_terry_loss(*pair, margin=margin, beta=0.5))


@over_functions
def test_a_loss_beyond_float32_is_infinite(function):
    pair = rewards_with_gradients("cpu")
    for denominator in (3e-39, torch.tensor(1e-60, dtype=torch.float64)):
        assert function(*pair, denominator=denominator).item() == INF
    wide = (tensor.detach().double() for tensor in pair)
    assert function(*wide, denominator=1e-60).isfinite()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (3, 0), (2, 3, 1, 4)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("make", [torch.nn.Parameter, torch.Tensor.requires_grad_], ids=["parameter", "tensor"])
@pytest.mark.parametrize("options", [{}, {"margin": 0.0}], ids=["default", "with-an-option"])
def test_rewards_may_have_any_shape(shape, dtype, make, options, device):
    generator = torch.Generator().manual_seed(1)
    chosen, rejected = (make(torch.randn(shape, generator=generator).to(device, dtype)) for _ in range(2))
    loss = prefloss.bradley_terry_loss(chosen, rejected, **options)
    wide = torch.promote_types(dtype, torch.float32)
    expected = -F.logsigmoid(chosen.to(wide) - rejected.to(wide)).sum() / max(chosen.numel(), 1)
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(each, (chosen, rejected)) for each in (loss, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", FLOATS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", ["margin", "weight", "target"])
def test_options_may_be_float32_whatever_the_rewards_are(name, dtype):
    rewards = (torch.tensor([1.0, -2.0], dtype=dtype), torch.tensor([0.5, 0.25], dtype=dtype))
    single, same = (
        prefloss.bradley_terry_loss(*rewards, **{name: torch.tensor([0.5, 0.25], dtype=kind)})
        for kind in (torch.float32, dtype)
    )
    assert torch.equal(single, same)
