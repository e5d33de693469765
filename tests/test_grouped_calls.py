"""Calls over groups: strides, threads, memory, derivatives, compiling, and parts that add up. Values: test_grouped.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import not_on_host
from group_bounds import AVERAGES, OPTIONS, RANK_DTYPES, TIES, over_dtypes, ranks_of
from rounding_bounds import assert_same_bits
from sample_inputs import in_turns, real, rewards

import prefloss


@over_dtypes
@pytest.mark.parametrize("rank_dtype", RANK_DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", [(5, 4), (40, 9), (2, 60), (1, 1300), (500, 9)])
def test_columns_of_any_stride_have_the_bits_of_contiguous_ones(shape, rank_dtype, dtype):
    """Two strides too: few entries are copied in the compiled module, more than 4,096 by torch."""
    random = np.random.default_rng(12)
    given = real(random.normal(size=shape), dtype)
    ranks = ranks_of(random, shape, 5, rank_dtype)
    weight = real(random.uniform(0.5, 2, shape[:1]), torch.float32)

    def spread(tensor):
        wide = torch.zeros(2 * tensor.numel(), dtype=tensor.dtype)[::2].view(tensor.shape)
        return wide.copy_(tensor)

    def part(tensor):
        return torch.cat((tensor, tensor[..., :1]), -1)[..., :-1]

    def transposed(tensor):
        return tensor.T.contiguous().T if tensor.dim() == 2 else tensor

    results = []
    for made in (torch.Tensor.contiguous, spread, part, transposed):
        leaf = made(given).detach().requires_grad_()
        loss = prefloss.bradley_terry_loss_grouped(leaf, made(ranks), weight=made(weight))
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    for result in results[1:]:
        assert_same_bits(result, results[0])


@pytest.mark.kernels
@not_on_host
@pytest.mark.parametrize("name", ["default", "all"])
@pytest.mark.parametrize("kind", ["a long list", "one positive"])
def test_a_huge_group_among_small_ones_has_the_same_bits_for_any_threads(kind, name, set_threads):
    random = np.random.default_rng(5)
    sizes = [4, 9, 20_000, 30, 0, 2, *([7] * 50)]
    given = real(random.normal(size=sum(sizes)), torch.float32)
    ranks = torch.from_numpy(random.integers(0, 6, sum(sizes)))
    if kind == "one positive":
        ranks[13:20_013] = 1
        ranks[5000] = 0
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        leaf = given.clone().requires_grad_()
        loss = prefloss.bradley_terry_loss_grouped(leaf, ranks, group_sizes=sizes, **OPTIONS[name])
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    for other in results[1:]:
        assert_same_bits(other, results[0])


def test_sizes_may_be_a_tensor():
    given, ranks = torch.randn(6), torch.arange(6)
    expected = prefloss.bradley_terry_loss_grouped(given, ranks, group_sizes=[1, 0, 5])
    actual = prefloss.bradley_terry_loss_grouped(given, ranks, group_sizes=torch.tensor([1, 0, 5]))
    assert_same_bits((actual,), (expected,))


@pytest.mark.kernels
@pytest.mark.parametrize("shape", [(400, 9), (7, 300), (1, 700), (100, 40)], ids=str)
@pytest.mark.parametrize("name", ["default", "all"])
def test_the_number_of_threads_does_not_change_a_bit(shape, name, set_threads):
    random = np.random.default_rng(7)
    given, _ = rewards(random, shape, torch.float32)
    given, ranks = given.requires_grad_(), ranks_of(random, shape, 10**6)
    results = []
    for threads in (1, 2, 3, 7):
        set_threads(threads)
        loss, stats = prefloss.bradley_terry_loss_grouped(given, ranks, **OPTIONS[name], return_stats=True)
        alone = prefloss.bradley_terry_loss_grouped(given, ranks, **OPTIONS[name])
        results.append((loss, alone, stats.sums, *torch.autograd.grad(alone, given)))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize(("name", "ties", "average"), in_turns(OPTIONS, TIES, AVERAGES))
def test_first_and_second_derivatives_are_those_of_finite_differences(name, ties, average):
    random = np.random.default_rng(8)
    given = real(random.normal(size=(3, 4)), torch.float64).requires_grad_()
    ranks = ranks_of(random, (3, 4), 3)
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    for reduction in ("mean", "none"):

        def function(given, reduction=reduction):
            return prefloss.bradley_terry_loss_grouped(
                given, ranks, weight=weight, ties=ties, average=average, reduction=reduction, **OPTIONS[name]
            )

        assert torch.autograd.gradcheck(function, given)
        assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.kernels
def test_a_third_derivative_is_refused():
    given = torch.randn(2, 3, requires_grad=True)
    loss = prefloss.bradley_terry_loss_grouped(given, torch.arange(6).reshape(2, 3))
    (first,) = torch.autograd.grad(loss, given, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), given, create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives"):
        second.sum().backward()


def test_the_hessian_by_torch_func_is_that_of_the_pairs():
    given, ranks = real(np.random.default_rng(11).normal(size=(1, 5)), torch.float64), torch.arange(5)[None]
    i, j = torch.triu_indices(5, 5, 1)

    def pairs(given):
        return prefloss.bradley_terry_loss(given[0, i], given[0, j])

    def groups(given):
        return prefloss.bradley_terry_loss_grouped(given, ranks)

    expected, actual = (torch.func.jacrev(torch.func.jacrev(function))(given) for function in (pairs, groups))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


def test_compiled_with_dynamic_shapes_and_exported_it_stays_right():
    function = torch.compile(prefloss.bradley_terry_loss_grouped, backend="aot_eager", fullgraph=True, dynamic=True)
    for shape in ((3, 5), (20, 7), (2, 40)):
        given, ranks = torch.randn(shape), torch.argsort(torch.rand(shape), 1)
        assert_same_bits((function(given, ranks),), (prefloss.bradley_terry_loss_grouped(given, ranks),))

    class Ranker(torch.nn.Module):
        def forward(self, given, ranks):
            return prefloss.bradley_terry_loss_grouped(given, ranks, average="pairs")

    exported = torch.export.export(Ranker(), (given, ranks)).module()
    assert_same_bits((exported(given, ranks),), (Ranker()(given, ranks),))


def test_micro_batches_of_groups_add_up_by_the_denominator():
    given, ranks = torch.randn(6, 4, dtype=torch.float64), torch.argsort(torch.rand(6, 4), 1)
    whole = prefloss.bradley_terry_loss_grouped(given, ranks)
    parts = [prefloss.bradley_terry_loss_grouped(given[s], ranks[s], denominator=6) for s in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-14, atol=0)


def test_statistics_of_batches_add_up():
    given, ranks = torch.randn(6, 4), torch.argsort(torch.rand(6, 4), 1)

    def stats(part):
        return prefloss.bradley_terry_loss_grouped(given[part], ranks[part], return_stats=True)[1]

    torch.testing.assert_close(  # the sum of what equal weights' losses differ from their mean by is 0, but for roundings
        (stats(slice(0, 2)) + stats(slice(2, 6))).sums, stats(slice(None)).sums, rtol=1e-14, atol=1e-14
    )


@pytest.mark.kernels
def test_memory_is_that_of_the_items():
    given, ranks = torch.randn(1, 3000, requires_grad=True), torch.randperm(3000)[None]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        prefloss.bradley_terry_loss_grouped(given, ranks).backward()
    allocated = sum(event.cpu_memory_usage for event in profile.events() if event.cpu_memory_usage > 0)
    assert 0 < allocated < 20 * 4 * 3000
