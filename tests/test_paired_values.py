"""What the paired loss, its gradients and its statistics are, against the NumPy reference and PyTorch's own loss."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from rounding_bounds import Bounds, assert_same_bits
from sample_inputs import (
    DTYPES,
    FINITE_VALUES,
    KINDS,
    LAYOUTS,
    OPTIONS_ALONE,
    REDUCTIONS,
    VALUES,
    in_turns,
    laid_out,
    on,
    options_alone,
    paired_calls,
    real,
    rewards,
)

import prefloss

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
over_layouts = pytest.mark.parametrize("layout", LAYOUTS)
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def accumulation(dtype):
    return torch.float64 if dtype is torch.float64 else torch.float32


def ask_for_gradients(*tensors):
    return [tensor.detach().requires_grad_() for tensor in tensors]


def gradients(loss, upstream, inputs, margin):
    """Of both rewards and of the margin, None where it asks for none."""
    wanted = [*inputs, margin] if isinstance(margin, torch.Tensor) and margin.requires_grad else list(inputs)
    given = torch.autograd.grad(loss, wanted, upstream)
    for gradient, tensor in zip(given, wanted, strict=True):
        assert (gradient.shape, gradient.dtype) == (tensor.shape, tensor.dtype)
    return given if len(wanted) > len(inputs) else (*given, None)


def check_call(chosen, rejected, options, upstream, device):
    """Loss, gradients and statistics of one call; `upstream` is called with the loss."""
    chosen, rejected = (on(device, tensor).detach().requires_grad_() for tensor in (chosen, rejected))
    options = {name: on(device, value) for name, value in options.items()}
    loss = prefloss.bradley_terry_loss(chosen, rejected, **options)
    assert loss.dtype == accumulation(chosen.dtype)
    bounds = Bounds(chosen, rejected, options)
    bounds.assert_loss(loss.detach())
    given = on(device, upstream(loss))
    bounds.assert_gradients(given, gradients(loss, given, (chosen, rejected), options.get("margin")))
    again, stats = prefloss.bradley_terry_loss(chosen, rejected, **options, return_stats=True)
    bounds.assert_loss(again.detach())
    bounds.assert_sums(stats.sums)


def no_upstream(loss):
    return torch.full_like(loss, -1.5)


@pytest.mark.parametrize(("name", "kind", "dtype"), in_turns(OPTIONS_ALONE, KINDS, DTYPES), ids=str)
def test_each_option_alone_agrees_with_the_reference(name, kind, dtype, device):
    """700 pairs with each reduction; the few with them in turns."""
    random, values = np.random.default_rng(len(name)), KINDS[kind]
    few = REDUCTIONS[(DTYPES.index(dtype) + len(values)) % 3]
    for count, reduction in ((1, few), (5, few), *((700, reduction) for reduction in REDUCTIONS)):
        chosen, rejected = rewards(random, (count,), dtype, values)
        options = options_alone(name, random, (count,), dtype)
        check_call(chosen, rejected, {**options, "reduction": reduction}, no_upstream, device)


@over_dtypes
def test_every_pair_of_extreme_values_agrees_with_the_reference(dtype, device):
    grid = torch.cartesian_prod(real(VALUES, dtype), real(VALUES, dtype))
    for options in ({}, {"target": 0.5}, {"target": 0.0}, {"center_rewards_coefficient": 1.0, "beta": 0.5}):
        check_call(grid[:, 0], grid[:, 1], {**options, "reduction": "none"}, no_upstream, device)


@pytest.mark.hypothesis
@over_dtypes
def test_any_options_together_agree_with_the_reference(dtype, device):
    @given(call=paired_calls(dtype), upstream_layout=st.sampled_from([*LAYOUTS, "expanded"]))
    def check(call, upstream_layout):
        def upstream(loss):
            value = real(-0.75, loss.dtype)
            if upstream_layout == "expanded" or loss.ndim == 0:
                return value.expand(loss.shape)
            values = np.random.default_rng(loss.numel()).uniform(0.5, 2.0, tuple(loss.shape))
            return laid_out(real(values, loss.dtype), upstream_layout)

        check_call(*call, upstream, device)

    check()


@pytest.mark.hypothesis
@over_dtypes
@pytest.mark.parametrize("pair_layout", ["halves", "interleaved"])
def test_stacked_agrees_with_the_reference(dtype, pair_layout):
    @given(call=paired_calls(dtype), rewards_layout=st.sampled_from(LAYOUTS))
    def check(call, rewards_layout):
        chosen, rejected, options = call
        halves = torch.stack((chosen, rejected))
        stacked = (halves if pair_layout == "halves" else halves.transpose(0, 1)).flatten(0, 1)
        (stacked,) = ask_for_gradients(laid_out(stacked, rewards_layout))
        loss, stats = prefloss.bradley_terry_loss_stacked(stacked, layout=pair_layout, **options, return_stats=True)
        bounds = Bounds(chosen, rejected, options)
        bounds.assert_loss(loss.detach())
        bounds.assert_sums(stats.sums)
        upstream = no_upstream(loss)
        gradient, of_margin, *_ = (*gradients(loss, upstream, (stacked,), options.get("margin")), None)
        both = gradient.chunk(2) if pair_layout == "halves" else (gradient[::2], gradient[1::2])
        if len(gradient):
            bounds.assert_gradients(upstream, (*both, of_margin))

    check()


@pytest.mark.kernels
@over_layouts
@over_dtypes
def test_the_layout_does_not_change_a_bit(layout, dtype, device):
    random = np.random.default_rng(3)
    for name in OPTIONS_ALONE:
        for shape in ((1300,), (7, 9, 3)):
            inputs = rewards(random, shape, dtype, VALUES)
            options = {**options_alone(name, random, shape, dtype), "reduction": "none"}
            moved = {k: laid_out(v, layout) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
            assert_same_bits(
                everything(*inputs, options, device),
                everything(*(laid_out(tensor, layout) for tensor in inputs), moved, device),
            )


def everything(chosen, rejected, options, device="cpu"):
    """Loss, gradients and sums."""
    chosen, rejected = (on(device, tensor).detach().requires_grad_() for tensor in (chosen, rejected))
    options = {name: on(device, value) for name, value in options.items()}
    loss, stats = prefloss.bradley_terry_loss(chosen, rejected, **options, return_stats=True)
    alone = prefloss.bradley_terry_loss(chosen, rejected, **options)
    return (loss, alone, stats.sums, *torch.autograd.grad(loss, (chosen, rejected), torch.ones_like(loss)))


@over_dtypes
def test_a_slice_at_any_address_gives_the_same_bits(dtype, device):
    chosen, rejected = rewards(np.random.default_rng(4), (1100,), dtype)
    for start in (1, 2, 3, 5, 7, 8, 15):
        for reduction in REDUCTIONS:
            options = {"reduction": reduction, "beta": 0.5 if start % 2 else 1.0}
            slices = (tensor[start : start + 1050] for tensor in (chosen, rejected))
            copies = (tensor[start : start + 1050].clone() for tensor in (chosen, rejected))
            assert_same_bits(everything(*slices, options, device), everything(*copies, options, device))


@pytest.mark.kernels
@over_reductions
@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "default"),
        (torch.bfloat16, "default"),
        (torch.float64, "centring"),
        (torch.float32, "weight tensor"),
    ],
    ids=str,
)
def test_the_number_of_threads_does_not_change_a_bit(dtype, name, reduction, set_threads):
    random = np.random.default_rng(5)
    for count in (40_000, 300_001):
        inputs = rewards(random, (count,), dtype)
        options = {**options_alone(name, random, (count,), dtype), "reduction": reduction}
        results = []
        for threads in (1, 2, 3):
            set_threads(threads)
            results.append(everything(*inputs, options))
        assert_same_bits(results[0], results[1])
        assert_same_bits(results[0], results[2])


def test_large_inputs_agree_with_the_reference(device):
    random = np.random.default_rng(6)
    for dtype in DTYPES:
        chosen, rejected = rewards(random, (70_001,), dtype, FINITE_VALUES)
        check_call(chosen, rejected, {"reduction": "none"}, no_upstream, device)
        check_call(chosen, rejected, options_alone("weight tensor", random, (70_001,), dtype), no_upstream, device)


@over_dtypes
@pytest.mark.parametrize("far", [100.0, -100.0, math.inf, math.nan, 0.0])
def test_one_difference_far_from_zero_among_many_near_it_agrees_with_the_reference(far, dtype, device):
    """Near ones go a shorter way, a block at a time: the far one stands first or last in a block, a chunk, or what is left."""
    random = np.random.default_rng(19)
    near = [random.normal(size=9_140) for _ in range(2)]
    for where in (0, 31, 32, 63, 64, 511, 512, 8_191, 8_192, 9_087, 9_088, 9_119, 9_120, 9_139):
        chosen, rejected = (real(values, dtype) for values in near)
        chosen[where], rejected[where] = far, 0.0
        check_call(chosen, rejected, {}, no_upstream, device)


@pytest.mark.parametrize("where", [0, 600, 9000, 19_999])
def test_one_nan_among_many_stays_visible(where):
    """Whatever chunk it lies in, the others' minimum and maximum must not cover it."""
    chosen, rejected = rewards(np.random.default_rng(15), (20_000,), torch.float32)
    chosen[where] = math.nan
    loss, stats = prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)
    assert math.isnan(loss.item())
    Bounds(chosen, rejected, {}).assert_sums(stats.sums)
    assert math.isnan(stats.min_reward)
    assert math.isnan(stats.max_reward)


@pytest.mark.parametrize("kind", [int, float, torch.tensor, lambda number: torch.tensor(float(number))])
@over_dtypes
def test_micro_batches_with_a_denominator_add_up_to_the_whole_batch(dtype, kind):
    chosen, rejected = ask_for_gradients(*rewards(np.random.default_rng(8), (1000,), dtype))
    whole = prefloss.bradley_terry_loss(chosen, rejected)
    expected = torch.autograd.grad(whole, (chosen, rejected))
    total = 0.0
    for begin, end in pairwise([0, 1, 300, 301, 999, 1000]):
        part = prefloss.bradley_terry_loss(chosen[begin:end], rejected[begin:end], denominator=kind(1000))
        part.backward()
        total += part.item()
    assert total == pytest.approx(whole.item(), rel=3e-7)  # every part is rounded to float32
    torch.testing.assert_close((chosen.grad, rejected.grad), expected, rtol=0.0, atol=0.0)


def test_weighted_micro_batches_add_up_to_the_whole_batch():
    random = np.random.default_rng(9)
    chosen, rejected = ask_for_gradients(*rewards(random, (1000,), torch.float64))
    options = options_alone("weight tensor", random, (1000,), torch.float64)
    weight = options.pop("weight")
    whole, stats = prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True)
    expected = torch.autograd.grad(whole, (chosen, rejected))
    parts = [
        prefloss.bradley_terry_loss(a, b, weight=w, denominator=weight.sum(), return_stats=True)
        for a, b, w in zip(chosen.split(300), rejected.split(300), weight.split(300), strict=True)
    ]
    total = sum(loss for loss, _ in parts)
    torch.testing.assert_close(total, whole, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(torch.autograd.grad(total, (chosen, rejected)), expected, rtol=1e-14, atol=0.0)
    assert sum(part for _, part in parts).loss == pytest.approx(stats.loss, rel=1e-14)


@pytest.mark.hypothesis
@over_dtypes
def test_pairs_of_weight_zero_contribute_exactly_nothing(dtype):
    @given(call=paired_calls(dtype), poison=st.sampled_from([math.nan, math.inf, -math.inf]))
    def check(call, poison):
        chosen, rejected, options = call
        weight = options.get("weight")
        assume(weight is not None and bool((weight == 0).any()))
        columns = {name: value for name, value in options.items() if torch.is_tensor(value)}
        of_pairs = columns.keys() - {"weight", "denominator"}
        poisoned, clean = (
            everything(
                *(torch.where(weight == 0, value, tensor) for tensor in (chosen, rejected)),
                {**options, **{name: torch.where(weight == 0, value, columns[name].detach()) for name in of_pairs}},
            )
            for value in (poison, 0.0)
        )
        assert_same_bits(poisoned, clean)
        for gradient in poisoned[-2:]:
            assert bool((gradient[weight == 0] == 0).all())

    check()


@over_dtypes
@over_reductions
@pytest.mark.parametrize("shape", [(0,), (0, 3), (4,)])
def test_no_pairs_give_a_connected_zero(dtype, reduction, shape):
    chosen, rejected = ask_for_gradients(torch.full(shape, math.nan, dtype=dtype), torch.zeros(shape, dtype=dtype))
    loss = prefloss.bradley_terry_loss(chosen, rejected, weight=torch.zeros(shape), reduction=reduction)
    assert loss.requires_grad
    assert bool((loss == 0).all())
    for gradient in torch.autograd.grad(loss.sum(), (chosen, rejected)):
        assert gradient.shape == shape
        assert bool((gradient == 0).all())


@over_reductions
@pytest.mark.parametrize("shape", [(0,), (0, 3), (1, 0, 2)])
@pytest.mark.parametrize("create_graph", [False, True])
def test_without_pairs_a_margin_has_a_gradient_of_its_shape(reduction, shape, create_graph, device):
    leaves = [torch.zeros(shape, device=device, requires_grad=True) for _ in range(3)]
    chosen, rejected, margin = leaves
    loss = prefloss.bradley_terry_loss(chosen, rejected, margin=margin, reduction=reduction)
    gradients = torch.autograd.grad(loss.sum(), leaves, create_graph=create_graph)
    assert [gradient.shape for gradient in gradients] == [shape] * 3


def test_no_pairs_without_weights_give_a_connected_zero():
    chosen, rejected = ask_for_gradients(torch.zeros(0), torch.zeros(0))
    loss, stats = prefloss.bradley_terry_loss(chosen, rejected, return_stats=True)
    assert (loss.item(), stats.count) == (0.0, 0)
    loss.backward()
    assert chosen.grad.shape == rejected.grad.shape == (0,)


@over_dtypes
@over_reductions
def test_one_pair_of_zero_dimensional_rewards_agrees_with_the_reference(dtype, reduction, device):
    weight = torch.tensor(0.5)
    check_call(
        real(1.5, dtype),
        real(2.25, dtype),
        {"weight": weight, "beta": 3.0, "reduction": reduction},
        no_upstream,
        device,
    )


@pytest.mark.parametrize("expanded", ["chosen", "rejected", "weight"])
def test_expanded_inputs_agree_with_the_reference(expanded, device):
    random = np.random.default_rng(10)
    chosen, rejected = rewards(random, (40,), torch.float32)
    options = {"reduction": "none"}
    if expanded == "chosen":
        chosen = chosen[:1].expand(40)
    elif expanded == "rejected":
        rejected = rejected[:1].expand(40)
    else:
        options["weight"] = torch.tensor(0.25).expand(40)
    check_call(chosen, rejected, options, no_upstream, device)


@over_dtypes
def test_the_default_is_the_mean_of_minus_logsigmoid(dtype):
    wide = accumulation(dtype)
    tolerance = 1e-13 if dtype is torch.float64 else 1e-6
    chosen, rejected = ask_for_gradients(*rewards(np.random.default_rng(11), (5000,), dtype))
    ours, theirs = (
        prefloss.bradley_terry_loss(chosen, rejected),
        -F.logsigmoid(chosen.to(wide) - rejected.to(wide)).mean(),
    )
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=0.0)
    for mine, its in zip(*(torch.autograd.grad(loss, (chosen, rejected)) for loss in (ours, theirs)), strict=True):
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(mine, its, rtol=4 * eps, atol=torch.finfo(dtype).smallest_normal * eps)


@over_reductions
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_soft_targets_and_weights_are_those_of_binary_cross_entropy(dtype, reduction):
    random = np.random.default_rng(12)
    chosen, rejected = ask_for_gradients(*rewards(random, (3000,), dtype))
    weight, target = (options_alone(f"{name} tensor", random, (3000,), dtype)[name] for name in ("weight", "target"))
    ours = prefloss.bradley_terry_loss(
        chosen,
        rejected,
        beta=0.5,
        margin=0.25,
        weight=weight,
        target=target,
        label_smoothing=0.125,
        reduction=reduction,
    )
    z = 0.5 * (chosen - rejected) - 0.25
    theirs = F.binary_cross_entropy_with_logits(z, 0.75 * target + 0.125, weight, reduction=reduction)
    if reduction == "mean":
        theirs = theirs * 3000 / weight.sum()  # theirs divides by the number of entries
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours, theirs, rtol=16 * eps, atol=0.0)
    upstream = torch.ones_like(ours)
    for mine, its in zip(
        *(torch.autograd.grad(loss, (chosen, rejected), upstream) for loss in (ours, theirs)), strict=True
    ):
        # Theirs is sigma(z) - t: absolute errors of an eps, which cancellation makes relative to 1.
        torch.testing.assert_close(mine, its, rtol=16 * eps, atol=16 * eps * float(its.abs().max()))
