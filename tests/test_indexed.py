"""The loss over comparisons of items by index: against the reference, and against gathering the scores first."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from conftest import RUNS_ON_HOST
from hypothesis import given
from hypothesis import strategies as st
from rounding_bounds import Bounds, assert_same_bits
from sample_inputs import (
    DTYPES,
    FINITE_VALUES,
    KINDS,
    OPTIONS_ALONE,
    REDUCTIONS,
    array,
    in_turns,
    laid_out,
    on,
    options_alone,
    paired_calls,
    real,
    rewards,
)

import prefloss
from prefloss import _core, reference
from prefloss.operators.indexed import accumulate, take

INDEX_DTYPES = [torch.int64, torch.int32]
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


def comparisons(random, items, count, dtype=torch.int64):
    """Two indices; some items are compared with themselves, and often."""
    chosen, rejected = random.integers(0, items, (2, count))
    rejected = np.where(random.random(count) < 0.05, chosen, rejected)
    return torch.from_numpy(chosen).to(dtype), torch.from_numpy(rejected).to(dtype)


def scores_of(random, items, dtype, values=()):
    return rewards(random, (items,), dtype, values)[0]


def check(scores, chosen_index, rejected_index, options, device):
    """Loss, sums, and the gradients of scores and margin, of one call, with a random upstream gradient."""
    scores, chosen_index, rejected_index = (on(device, tensor) for tensor in (scores, chosen_index, rejected_index))
    scores = scores.detach().requires_grad_()
    options = {name: on(device, value) for name, value in options.items()}
    loss, stats = prefloss.bradley_terry_loss_indexed(
        scores, chosen_index, rejected_index, **options, return_stats=True
    )
    alone = prefloss.bradley_terry_loss_indexed(scores, chosen_index, rejected_index, **options)
    pair = (scores.detach()[index.long()] for index in (chosen_index, rejected_index))
    bounds = Bounds(*pair, options)
    bounds.assert_loss(loss.detach())
    bounds.assert_loss(alone.detach())
    bounds.assert_sums(stats.sums, (scores.detach(), chosen_index, rejected_index))
    upstream = real(np.random.default_rng(1).uniform(0.5, 2.0, tuple(loss.shape)), loss.dtype).to(device)
    margin = options.get("margin")
    asks = isinstance(margin, torch.Tensor) and margin.requires_grad
    gradients = torch.autograd.grad(loss, (scores, margin) if asks else (scores,), upstream)
    assert gradients[0].dtype == scores.dtype
    bounds.assert_item_gradients(upstream, gradients[0], chosen_index, rejected_index)
    if asks:
        bounds.assert_gradients(upstream, (None, None, gradients[1]))


@pytest.mark.parametrize(("name", "kind", "dtype"), in_turns(OPTIONS_ALONE, KINDS, DTYPES), ids=str)
def test_each_option_alone_agrees_with_the_reference(name, kind, dtype, device):
    """The sizes and the reductions meet each other in turns."""
    random, values = np.random.default_rng(len(name)), KINDS[kind]
    turn = DTYPES.index(dtype) + len(values)
    for place, (items, count) in enumerate(((3, 700), (900, 40), (40, 90), (1, 1), (5, 0))):
        reduction = REDUCTIONS[(turn + place) % 3]
        indices = comparisons(random, items, count, INDEX_DTYPES[count % 2])
        options = options_alone(name, random, (count,), dtype)
        check(scores_of(random, items, dtype, values), *indices, {**options, "reduction": reduction}, device)


@pytest.mark.hypothesis
@over_dtypes
def test_any_options_together_agree_with_the_reference(dtype, device):
    @given(
        call=paired_calls(dtype, st.tuples(st.integers(0, 600))),
        items=st.integers(1, 700),
        index_dtype=st.sampled_from(INDEX_DTYPES),
        layout=st.sampled_from(["contiguous", "every_other", "column", "misaligned"]),
    )
    def check_one(call, items, index_dtype, layout):
        chosen, _, options = call
        random = np.random.default_rng(items)
        indices = comparisons(random, items, len(chosen), index_dtype)
        check(laid_out(scores_of(random, items, dtype, FINITE_VALUES), layout), *indices, options, device)

    check_one()


MANY = [(50, 120_001), (5_000, 90_001), (70_000, 70_001), (200_000, 9_000)]


@pytest.mark.parametrize(
    ("sizes", "name", "dtype"),
    [
        *in_turns(MANY, ["default", "weight tensor"], DTYPES[:2]),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product(MANY, ["default"], DTYPES[2:])),
    ],
    ids=str,
)
def test_many_comparisons_agree_with_the_reference(sizes, name, dtype, device):
    """One stripe of comparisons, and several."""
    (items, count), random = sizes, np.random.default_rng(3)
    options = options_alone(name, random, (count,), dtype)
    check(scores_of(random, items, dtype), *comparisons(random, items, count), options, device)


@pytest.mark.kernels
@pytest.mark.skipif(RUNS_ON_HOST, reason="there the sums are torch's operations, whose bits its threads change")
@pytest.mark.parametrize(("items", "count"), [(50, 200_001), (20_000, 200_001), (300_000, 100_000)], ids=str)
@pytest.mark.parametrize("name", ["default", "weight mask", "centring"])
def test_the_number_of_threads_does_not_change_a_bit(items, count, name, set_threads):
    random = np.random.default_rng(4)
    scores = scores_of(random, items, torch.float32).requires_grad_()
    indices = comparisons(random, items, count)
    options = options_alone(name, random, (count,), torch.float32)
    results = []
    for threads in (1, 2, 3, 7, 2):
        set_threads(threads)
        loss, stats = prefloss.bradley_terry_loss_indexed(scores, *indices, **options, return_stats=True)
        results.append((loss, stats.sums, *torch.autograd.grad(loss, scores)))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@over_dtypes
@over_reductions
def test_the_loss_has_the_bits_of_the_loss_over_gathered_scores(dtype, reduction, device):
    random = np.random.default_rng(5)
    scores, (chosen, rejected) = scores_of(random, 100, dtype).to(device), comparisons(random, 100, 20_000)
    chosen, rejected = chosen.to(device), rejected.to(device)
    for name in OPTIONS_ALONE:
        options = {k: on(device, v) for k, v in options_alone(name, random, (20_000,), torch.float32).items()}
        options["reduction"] = reduction
        ours = prefloss.bradley_terry_loss_indexed(scores, chosen, rejected, **options)
        assert_same_bits((ours,), (prefloss.bradley_terry_loss(scores[chosen], scores[rejected], **options),))


@over_dtypes
@pytest.mark.parametrize("gap", [40.0, 70.0, 87.0])
def test_confident_comparisons_keep_the_digits_of_their_slopes(gap, dtype, device):
    """Slopes of 1e-17, 1e-30, and at the end of float32, of one item, beside some of another that are not small."""
    scores = torch.tensor([gap, 0.0, 1.0, 0.5]).to(dtype)
    chosen, rejected = torch.tensor([0, 0, 2, 0]).repeat(50), torch.tensor([1, 1, 3, 1]).repeat(50)
    for options in ({}, {"reduction": "sum"}, {"weight": torch.linspace(0.1, 3.0, 200)}):
        check(scores, chosen, rejected, options, device)


@over_dtypes
def test_weights_over_many_powers_of_two_keep_their_digits(dtype, device):
    """One item is in all comparisons."""
    random = np.random.default_rng(13)
    chosen, rejected = torch.zeros(3_000, dtype=torch.int64), torch.from_numpy(random.integers(1, 40, 3_000))
    for low, high in ((-60, 0), (-140, -100), (60, 120)):
        weight = torch.from_numpy(np.ldexp(1.0 + random.random(3_000), random.integers(low, high, 3_000))).float()
        options = {"weight": weight, "center_rewards_coefficient": 0.25}
        check(scores_of(random, 40, dtype), chosen, rejected, options, device)


@pytest.mark.parametrize("values", [(torch.inf, 0.0), (torch.inf, torch.inf), (torch.nan, 0.0), (-torch.inf, 0.0)])
@pytest.mark.parametrize("centring", [0.0, 0.5])
def test_slopes_that_are_not_finite_add_up_as_floating_point_does(values, centring, device):
    scores = torch.tensor([*values, 1.0], device=device)
    chosen, rejected = torch.tensor([[0, 2, 1, 0, 2], [1, 1, 0, 2, 0]], device=device)
    options = {"center_rewards_coefficient": centring, "reduction": "sum"}
    scores.requires_grad_()
    loss = prefloss.bradley_terry_loss_indexed(scores, chosen, rejected, **options)
    pair = [scores.detach()[index].requires_grad_() for index in (chosen, rejected)]
    slopes = torch.autograd.grad(prefloss.bradley_terry_loss(*pair, **options), pair)
    expected = torch.zeros_like(scores)
    for index, slope in zip((chosen, rejected), slopes, strict=True):
        expected = expected.index_add(0, index, slope)
    torch.testing.assert_close(torch.autograd.grad(loss, scores)[0], expected, equal_nan=True)


@pytest.mark.parametrize("layout", ["contiguous", "every_other", "expanded"])
@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_indices_may_have_any_stride_and_either_width(dtype, layout):
    random = np.random.default_rng(6)
    scores, (chosen, rejected) = scores_of(random, 9, torch.float32).requires_grad_(), comparisons(random, 9, 300)
    if layout == "expanded":
        rejected = rejected[:1].expand(300)
    expected = torch.autograd.grad(prefloss.bradley_terry_loss_indexed(scores, chosen, rejected), scores)
    chosen = chosen.to(dtype)
    rejected = rejected[:1].to(dtype).expand(300) if layout == "expanded" else rejected.to(dtype)
    if layout == "every_other":
        chosen, rejected = (torch.stack((index, -index), 1)[:, 0] for index in (chosen, rejected))
    actual = torch.autograd.grad(prefloss.bradley_terry_loss_indexed(scores, chosen, rejected), scores)
    assert_same_bits(actual, expected)


def test_an_item_that_is_not_compared_has_gradient_zero_whatever_its_score_is():
    scores = torch.tensor([1.0, torch.nan, 2.0, torch.inf], requires_grad=True)
    loss = prefloss.bradley_terry_loss_indexed(scores, torch.tensor([0, 2]), torch.tensor([2, 0]))
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite()
    assert gradient[1] == gradient[3] == 0


@pytest.mark.parametrize("items", [0, 3])
@over_reductions
def test_without_comparisons_the_loss_is_zero_and_connected(items, reduction):
    scores, none = torch.randn(items, requires_grad=True), torch.empty(0, dtype=torch.int64)
    loss, stats = prefloss.bradley_terry_loss_indexed(scores, none, none, reduction=reduction, return_stats=True)
    assert loss.sum() == 0
    assert stats.count == 0
    assert torch.equal(torch.autograd.grad(loss.sum(), scores)[0], torch.zeros(items))


@pytest.mark.parametrize("place", [0, 8191, 8192, 99_999])
@pytest.mark.parametrize("wrong", [-1, 1000, -(2**31), 2**31 - 1])
@pytest.mark.parametrize("which", ["chosen_index", "rejected_index"])
@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_an_index_out_of_range_is_named_wherever_it_is(which, wrong, place, dtype):
    scores = torch.zeros(1000, requires_grad=True)
    indices = {name: torch.zeros(100_000, dtype=dtype) for name in ("chosen_index", "rejected_index")}
    indices[which][place] = wrong
    with pytest.raises(IndexError, match=rf"{which} .* in \[0, 1000\), got {wrong} at position {place}"):
        prefloss.bradley_terry_loss_indexed(scores, **indices)


def call_with(options, indices):
    return lambda scores: prefloss.bradley_terry_loss_indexed(scores, *indices, **options)


@pytest.mark.parametrize(("name", "reduction"), in_turns(OPTIONS_ALONE, REDUCTIONS))
def test_first_and_second_derivatives_are_those_of_finite_differences(name, reduction):
    random = np.random.default_rng(7)
    indices = comparisons(random, 6, 20)
    options = {**options_alone(name, random, (20,), torch.float64), "reduction": reduction}
    scores = real(random.normal(size=6), torch.float64).requires_grad_()
    inputs, function = [scores], call_with(options, indices)
    if isinstance(options.get("margin"), torch.Tensor):
        margin = options.pop("margin").requires_grad_()
        inputs.append(margin)

        def function(scores, margin):
            return prefloss.bradley_terry_loss_indexed(scores, *indices, **options, margin=margin)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_the_hessian_is_that_of_the_bradley_terry_model():
    """Two derivatives by torch.func against n_ij sigma (1 - sigma), the Fisher information."""
    random = np.random.default_rng(10)
    scores, (chosen, rejected) = real(random.normal(size=7), torch.float64), comparisons(random, 7, 200)
    hessian = torch.func.jacrev(
        torch.func.jacrev(lambda scores: prefloss.bradley_terry_loss_indexed(scores, chosen, rejected, reduction="sum"))
    )(scores)
    curvature = torch.from_numpy(reference.pair_curvature((scores[chosen] - scores[rejected]).numpy()))
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for i, j, h in zip(chosen, rejected, curvature, strict=True):
        expected[i, i] += h
        expected[j, j] += h
        expected[i, j] -= h
        expected[j, i] -= h
    torch.testing.assert_close(hessian, expected, rtol=1e-12, atol=1e-12)


def test_compiled_with_dynamic_shapes_and_exported_it_stays_right():
    function = torch.compile(prefloss.bradley_terry_loss_indexed, backend="aot_eager", fullgraph=True, dynamic=True)
    random = np.random.default_rng(11)
    for items, count in ((5, 30), (60, 7), (13, 4_000)):
        scores, indices = scores_of(random, items, torch.float32), comparisons(random, items, count)
        assert_same_bits((function(scores, *indices),), (prefloss.bradley_terry_loss_indexed(scores, *indices),))

    class Board(torch.nn.Module):
        def forward(self, scores, chosen, rejected):
            return prefloss.bradley_terry_loss_indexed(scores, chosen, rejected, beta=0.5)

    exported = torch.export.export(Board(), (scores, *indices)).module()
    assert_same_bits((exported(scores, *indices),), (Board()(scores, *indices),))


@pytest.mark.kernels
def test_an_index_out_of_range_is_an_error_in_a_compiled_call_too():
    function = torch.compile(prefloss.bradley_terry_loss_indexed, backend="aot_eager", fullgraph=True)
    with pytest.raises(IndexError, match="rejected_index must hold indices of the 3 scores"):
        function(torch.zeros(3), torch.tensor([0]), torch.tensor([3]))


@pytest.mark.kernels
@pytest.mark.parametrize("operator", [take.operator, accumulate.operator], ids=str)
@pytest.mark.parametrize("shape", [(6,), (2, 6)], ids=str)
def test_the_operators_are_registered_right(operator, shape):
    index = torch.tensor([0, 5, 5, 2, 1, 0])
    rest = ("index", 6) if operator is take.operator else (6,)
    torch.library.opcheck(operator, (torch.randn(shape, requires_grad=True), index, *rest))


def test_half_precision_is_rounded_once_an_item():
    """In every way: a thousand slopes in half precision would lose three digits."""
    scores = torch.tensor([0.0, 0.1], dtype=torch.bfloat16, requires_grad=True)
    indices = torch.zeros(1000, dtype=torch.int64), torch.ones(1000, dtype=torch.int64)
    expected, _ = reference.bradley_terry_gradient_indexed(1.0, array(scores), *map(array, indices), reduction="sum")
    for function in (
        lambda scores: prefloss.bradley_terry_loss_indexed(scores, *indices, reduction="sum"),
        lambda scores: prefloss.bradley_terry_loss_indexed(scores, *indices, reduction="none").sum(),
    ):
        (gradient,) = torch.autograd.grad(function(scores), scores)
        assert torch.equal(gradient, real(expected, torch.bfloat16))


@pytest.mark.kernels
def test_comparisons_take_no_memory_of_their_own():
    """A step over 4 million comparisons of ten items allocates little: torch's peak says so."""
    scores = torch.zeros(10, requires_grad=True)
    index = torch.zeros(4_000_000, dtype=torch.int32)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        prefloss.bradley_terry_loss_indexed(scores, index, index).backward()
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert 0 < allocated < 1e5


@pytest.mark.kernels
@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_without_gradients_no_slopes_are_computed(without, monkeypatch):
    """Scores that are parameters are often evaluated so, in half the time."""
    asked = []
    forward = _core.indexed_forward
    monkeypatch.setattr(
        _core, "indexed_forward", lambda *given: (asked.append(given[-2] is not None), forward(*given))[1]
    )
    scores, index = torch.nn.Parameter(torch.randn(3)), torch.tensor([0, 2])
    loss = prefloss.bradley_terry_loss_indexed(scores, index, 1 - index // 2)
    with without():
        other = prefloss.bradley_terry_loss_indexed(scores, index, 1 - index // 2)
    assert asked == [True, False]
    assert_same_bits([other], [loss.detach()])
    assert not other.requires_grad
