"""Losses without kernels: when they are composed, that they say so once, and that they are those of the kernels."""

from __future__ import annotations

import math
import warnings

import group_bounds
import numpy as np
import pytest
import test_compiled
import test_indexed
import test_paired_digits
import test_paired_values
import torch
from calls import ALL, FEW, Call, over_all, over_few
from fresh_processes import run
from sample_inputs import array, real
from test_compiled import all_outputs, check_compiled
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import prefloss
from prefloss import _core, composed, reference
from prefloss.pairs import Numbers

TERMS = 1100  # at most, of one sum, in the table of calls


def assert_near(actual, expected, u):
    """Every number adds up at most so many terms, none above 10 or the greatest result; either way errs by u for each of them
    (Higham 2002, eq. 4.4)."""
    for one, other in zip(actual, expected, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        most = max(10.0, other.abs().max().item()) if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=0.0, atol=2 * TERMS * u * most)


@pytest.fixture(scope="module")
def steps_of_kernels():
    return {call: call.step(call.drawn(dtype=torch.float64)) for call in ALL}


@over_all
def test_every_call_is_that_of_the_kernels(call, steps_of_kernels, composed_on_the_cpu):
    assert_near(call.step(call.drawn(dtype=torch.float64)), steps_of_kernels[call], 2.0**-53)


@pytest.fixture(scope="module")
def short_steps_of_kernels():
    return {
        (call, dtype): call.step(call.drawn(dtype=dtype)) for call in FEW for dtype in (torch.float32, torch.bfloat16)
    }


@over_few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_short_rewards_have_the_dtypes_and_values_of_the_kernels(
    call, dtype, short_steps_of_kernels, composed_on_the_cpu
):
    steps = call.step(call.drawn(dtype=dtype))
    assert [tensor.dtype for tensor in steps] == [tensor.dtype for tensor in short_steps_of_kernels[call, dtype]]
    u = torch.finfo(dtype).eps / 2 / (1.0 if dtype is torch.float32 else TERMS)  # a bfloat16 gradient is rounded once
    assert_near(steps, short_steps_of_kernels[call, dtype], u)


AWKWARD = {
    "chosen": [0.0, 1.0, math.inf, -math.inf, math.inf, -math.inf, 3e38, math.nan, math.inf, 0.0, 5.0],
    "rejected": [0.0, 1.0, 0.0, 0.0, -math.inf, math.inf, -3e38, 0.0, math.inf, math.nan, 0.0],
    "weight": [1.0, 2.0, 1.0, 1.0, 1.0, 0.5, 1.0, 0.0, 0.0, 0.0, -0.0],
}


@pytest.mark.parametrize("target", [1.0, 0.0, 0.25])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_ties_infinities_and_masked_nan_have_the_gradients_of_the_reference(target, dtype, composed_on_the_cpu):
    given = {name: torch.tensor(values, dtype=dtype) for name, values in AWKWARD.items()}
    pair = [given.pop(name).requires_grad_() for name in ("chosen", "rejected")]
    loss = prefloss.bradley_terry_loss(*pair, **given, target=target, reduction="none")
    upstream = torch.where(
        given["weight"] == 0.0, math.nan, torch.ones_like(loss)
    )  # nor does it count what is multiplied
    gradients = torch.autograd.grad(loss, pair, upstream)
    arrays = *map(array, pair), {"weight": array(given["weight"]), "target": target, "reduction": "none"}
    expected = reference.bradley_terry_loss(*arrays[:2], **arrays[2])
    slopes = reference.bradley_terry_gradient(1.0, *arrays[:2], **arrays[2])
    u = torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(loss.detach().numpy(), expected.astype(loss.detach().numpy().dtype), rtol=10 * u)
    assert not bool(loss[:4].isnan().any())  # which is said of the reference elsewhere
    for gradient, slope in zip(gradients, slopes, strict=False):
        np.testing.assert_allclose(gradient.numpy(), slope, rtol=10 * u)
        assert bool((gradient[given["weight"] == 0.0] == 0.0).all())
    known = [0.5 - target, 2.0 * (0.5 - target), 1.0 - target, -target]  # weighted: two ties, and both ends
    np.testing.assert_allclose(gradients[0][:4].numpy(), known, rtol=10 * u)


def check_centring_of_rewards_whose_sum_has_no_double():
    pair = real([3e38, -2e38], torch.float32), real([1.0, -1e38], torch.float32)
    options = {"center_rewards_coefficient": 0.01, "reduction": "none"}
    test_paired_values.check_call(*pair, options, test_paired_values.no_upstream, "cpu")


def check_halves_of_groups():
    """An item has a slope in each of 60 pairs; added up in bfloat16 they would lose two digits."""
    ranks = torch.arange(61)[None]
    group_bounds.check(real(np.random.default_rng(0).normal(size=(1, 61)), torch.bfloat16), ranks, {})


@pytest.mark.parametrize(
    "check",
    [
        test_paired_digits.test_targets_next_to_one_keep_their_digits_in_float32,
        test_paired_digits.test_statistics_take_the_digits_of_a_float32_loss_that_float32_has_no_room_for,
        test_indexed.test_half_precision_is_rounded_once_an_item,
        check_centring_of_rewards_whose_sum_has_no_double,
        check_halves_of_groups,
    ],
)
def test_digits_are_as_many_as_of_the_kernels(check, composed_on_the_cpu):
    check()


@pytest.mark.filterwarnings("ignore:.torch.jit.script")  # torch's own
@pytest.mark.parametrize(
    "call",
    [
        Call("paired", "everything"),
        *(pytest.param(Call(layout, "default"), marks=pytest.mark.slow) for layout in ("masked", "indexed")),
    ],
    ids=str,
)
def test_compiled_it_is_one_graph_and_gives_the_same(call, composed_on_the_cpu):
    """Without a warning of the compiler's."""
    torch.compiler.reset()
    check_compiled(torch.compile(all_outputs, backend="aot_eager", fullgraph=True), [call], "cpu")


RAGGED = Call("ragged", "default")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script", "ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_with_sizes_of_groups_the_graph_breaks_and_it_gives_the_same(composed_on_the_cpu):
    torch.compiler.reset()
    check_compiled(torch.compile(all_outputs, backend="aot_eager"), [RAGGED], "cpu")


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
def test_compiled_as_one_graph_sizes_of_groups_are_an_error(composed_on_the_cpu):
    torch.compiler.reset()
    with pytest.raises((torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError)):
        check_compiled(torch.compile(all_outputs, backend="aot_eager", fullgraph=True), [RAGGED], "cpu")


def check_another_denominator():
    test_compiled.test_another_denominator_does_not_compile_again([3.5, 2.25, 7.0, 11.125])


def check_an_integer_denominator():
    test_compiled.test_another_denominator_does_not_compile_again([3, 4, 17, 1000])


def check_other_numbers():
    test_compiled.test_other_numbers_do_not_compile_again(Numbers._fields)


def check_a_denominator_made_of_a_size():
    test_compiled.test_a_number_may_be_made_of_a_size_that_is_symbolic("denominator")


@pytest.mark.filterwarnings("ignore:.torch.jit.script")
@pytest.mark.parametrize(
    "check",
    [
        *(
            pytest.param(check, marks=pytest.mark.slow)
            for check in (check_another_denominator, check_an_integer_denominator, check_other_numbers)
        ),
        check_a_denominator_made_of_a_size,
    ],
)
def test_other_numbers_do_not_compile_again(check, composed_on_the_cpu):
    """A trainer's number of items is another one in each step."""
    torch.compiler.reset()
    check()


def test_sizes_of_groups_may_stand_inside_of_torch_func(composed_on_the_cpu):
    rewards, ranks, sizes = torch.randn(5), torch.tensor([0, 1, 0, 1, 2]), torch.tensor([2, 3])

    def loss(rewards):
        return prefloss.bradley_terry_loss_grouped(rewards, ranks, group_sizes=sizes)

    leaf = rewards.clone().requires_grad_()
    assert_near([torch.func.grad(loss)(rewards)], torch.autograd.grad(loss(leaf), leaf), 2.0**-24)


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own, in forward mode
def test_a_third_derivative_a_vmap_and_a_forward_derivative_are_torchs(composed_on_the_cpu):
    """At a tie too, where a derivative of |z| would be 0: l' = -1/2, l'' = 1/4, l''' = 0 and -1/8 is its derivative."""
    z = torch.tensor([0.0, 40.0, -40.0], dtype=torch.float64)
    derivative = loss = lambda z: prefloss.bradley_terry_loss(z, torch.zeros_like(z), reduction="sum")
    found = []
    for _ in range(4):
        derivative = torch.func.grad(lambda z, of=derivative: of(z).sum())
        found.append(derivative(z)[0].item())
    assert found == [-0.5, 0.25, 0.0, -0.125]
    rows = torch.stack((z, z + 1.0))
    assert_near(torch.vmap(torch.func.grad(loss))(rows), [torch.func.grad(loss)(row) for row in rows], 2.0**-53)
    _, along = torch.func.jvp(loss, (z,), (torch.ones_like(z),))
    assert along.item() == pytest.approx(torch.func.grad(loss)(z).sum().item(), rel=1e-15)


@pytest.mark.parametrize("weight", [[], [0.0, 0.0]])
def test_the_mean_of_nothing_is_zero_and_connected(weight, composed_on_the_cpu):
    chosen = torch.full((len(weight),), math.nan, requires_grad=True)
    margin = torch.full((len(weight),), math.inf, requires_grad=True)
    loss, stats = prefloss.bradley_terry_loss(
        chosen, chosen * 2.0, margin=margin, weight=torch.tensor(weight), return_stats=True
    )
    assert loss.item() == 0.0
    assert torch.equal(stats.sums, prefloss.PairStats.zero().sums)
    for gradient in torch.autograd.grad(loss, (chosen, margin)):
        assert torch.equal(gradient, torch.zeros(len(weight)))


def test_bad_ranks_sizes_and_indices_are_refused_as_by_the_kernels(composed_on_the_cpu):
    rewards = torch.zeros(3)
    for sizes, says in (([2, 2], "add up to the number of rewards, 3, got more"), ([1, 1], "3, got 2")):
        with pytest.raises(ValueError, match=says):
            prefloss.bradley_terry_loss_grouped(rewards, rewards, group_sizes=sizes)
    with pytest.raises(ValueError, match="group_sizes must be >= 0, got -1"):
        prefloss.bradley_terry_loss_grouped(rewards, rewards, group_sizes=torch.tensor([-1, 4]))
    with pytest.raises(ValueError, match="ranks, or relevance, must be numbers, got nan"):
        prefloss.bradley_terry_loss_grouped(rewards[None], torch.tensor([[0.0, math.nan, 1.0]]))
    for index in (-1, 3):
        with pytest.raises(IndexError, match="chosen_index must hold indices of the 3 scores"):
            prefloss.bradley_terry_loss_indexed(rewards, torch.tensor([index]), torch.tensor([0]))


def test_sizes_may_be_a_view_whose_memory_holds_their_opposites(composed_on_the_cpu):
    rewards, sizes = torch.randn(5), torch._neg_view(torch.tensor([-2, -3]))
    losses = [prefloss.bradley_terry_loss_grouped(rewards, rewards, group_sizes=given) for given in (sizes, [2, 3])]
    assert losses[0] == losses[1]


def test_unsigned_ranks_beyond_int64_keep_their_order(composed_on_the_cpu):
    ranks = torch.tensor([[2**63 + 1, 5]], dtype=torch.uint64)
    loss = prefloss.bradley_terry_loss_grouped(torch.tensor([[0.0, 3.0]]), ranks)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3.0)), rel=1e-6)


@pytest.fixture
def nobody_was_warned():
    composed._warn.cache_clear()
    yield
    composed._warn.cache_clear()


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs have none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "mps":
                assert tensor.dtype is not torch.float64, func
        return result


def test_on_devices_without_kernels_one_warning_says_that_it_is_composed(nobody_was_warned):
    """Of fake tensors, which have a device that is not there, but neither slices nor gradients on it."""
    with FakeTensorMode(), NoFloat64(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        wide = {name: torch.tensor(0.5, dtype=torch.float64) for name in ("margin", "target", "denominator")}
        for device in ("mps", "xpu"):
            rewards = torch.ones(2, 3, dtype=torch.bfloat16, device=device)
            for options in (
                {},
                {"weight": torch.ones_like(rewards), "margin": 0.5},
                {"target": 0.5, "beta": 0.1},
                wide,
            ):
                loss, stats = prefloss.bradley_terry_loss(rewards, rewards, **options, return_stats=True)
                assert (loss.device.type, loss.dtype, loss.shape) == (device, torch.float32, ())
                assert stats.sums.dtype == torch.float32  # where there may be no float64
            assert prefloss.PairStats.zero(device).sums.dtype == torch.float32
    said = [str(warning.message) for warning in said if "prefloss" in str(warning.message)]
    assert len(said) == 1
    assert "no kernels for device mps" in said[0]
    assert "kernels for the CPU" in said[0]


def test_what_was_asked_for_is_not_warned_of(nobody_was_warned, composed_on_the_cpu, recwarn):
    prefloss.bradley_terry_loss(torch.ones(2), torch.zeros(2))
    assert len(recwarn) == 0


def test_a_torch_for_amd_has_no_kernels_for_what_it_calls_cuda():
    assert composed.devices_with_kernels(("13.0", "90"), None) == ("cpu", "cuda", "meta")
    assert composed.devices_with_kernels(("13.0", "90"), "7.1") == ("cpu", "meta")
    assert composed.devices_with_kernels(None, None) == ("cpu", "meta")


FORCED = """
import warnings
warnings.simplefilter("error")
import torch, prefloss
print(prefloss.build_info()["cpu"])
loss = prefloss.bradley_terry_loss(torch.ones(2, requires_grad=True), torch.zeros(2))
names, nodes = [], [loss.grad_fn]
for node in nodes:
    names.append(node.name())
    nodes.extend(following for following, _ in node.next_functions if following is not None)
print("Log1PBackward0" in names, any("Loss" in name for name in names))
print(prefloss.evaluate(torch.ones(2), torch.zeros(2)).loss.value)
"""


def test_an_environment_variable_forces_it_on_the_cpu_without_a_warning():
    ran = run(FORCED, PREFLOSS_CPU="composed")
    assert ran.returncode == 0, ran.stderr
    cpu, operations, loss = ran.stdout.splitlines()
    assert (cpu, operations) == ("composed", "True False")
    assert float(loss) == pytest.approx(math.log1p(math.exp(-1.0)), rel=1e-12)


@pytest.mark.skipif(_core.cpu == "composed", reason="there is no default to see")
def test_without_it_kernels_are_used_on_the_cpu():
    assert type(prefloss.bradley_terry_loss(torch.ones(2, requires_grad=True), torch.zeros(2)).grad_fn).__name__ == (
        "PlainLossBackward"
    )
