"""Tensors that are not plain memory, and calls that something watches: the plain result, bit for bit, or an error.

A kernel reads memory through a pointer. Of a negative-bit view, say, that memory holds other values than the tensor.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from calls import FEW, asking, assert_the_same_step, over_compiled, over_few, over_places
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES, LAYOUTS, REDUCTIONS, laid_out
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import prefloss


def directions(names):
    """Which of our operators are among the names."""
    ours = [name for name in names if name.startswith("prefloss.")]
    return {direction for direction in ("forward", "backward") if any(direction in name for name in ours)}


def changed(tensors, place, change):
    """The tensors, one of them changed."""
    return {**tensors, place: change(tensors[place])}


@contextlib.contextmanager
def right_or_an_error(*errors):
    """For what nobody can promise: a comparison inside must hold where no error of these types says otherwise."""
    with contextlib.suppress(*errors):
        yield


class Watched(torch.Tensor):
    """A subclass whose __torch_function__ is the inherited one."""


def complex_view(view):
    """Of the values of a floating-point tensor; integers have no such view."""
    return lambda tensor: view(tensor) if tensor.is_floating_point() else tensor


def negated_in_memory(tensor):
    return torch._neg_view(-tensor) if tensor.dtype is not torch.bool else tensor


# The values of a tensor in other clothes, differentiably.
FORMS = {
    "negative-bit": negated_in_memory,
    "imaginary-part-of-a-conjugate": complex_view(
        lambda tensor: torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    ),
    "real-part-of-a-conjugate": complex_view(lambda tensor: torch.complex(tensor, tensor).conj().real),
    "subclass": lambda tensor: tensor.as_subclass(Watched),
}


@over_places()
def test_a_tensor_that_memory_does_not_hold_counts_with_its_values(call, place, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    for form in FORMS.values():
        leaves = call.drawn(device)
        assert_the_same_step(call, tensors, call.step(changed(leaves, place, form), leaves), expected)


def test_the_forms_are_what_they_are_called():
    for tensor in (torch.ones(3), torch.ones(3, dtype=torch.int64)):
        assert FORMS["negative-bit"](tensor).is_neg()
    assert FORMS["imaginary-part-of-a-conjugate"](torch.ones(3)).is_neg()
    assert torch._efficientzerotensor(3)._is_zerotensor()


def divides(place):
    return place in ("denominator", "group_sizes")


@over_places(accepts=lambda place: not divides(place))
def test_a_zero_tensor_counts_as_zeros(call, place, device):
    tensors = call.drawn(device)
    results = []
    for make in (torch.zeros, torch._efficientzerotensor):
        zeros = make(tensors[place].shape, dtype=tensors[place].dtype, device=device)
        results.append(call.step({**tensors, place: zeros.requires_grad_(tensors[place].requires_grad)}))
    assert_the_same_step(call, {**tensors, place: torch.zeros_like(tensors[place])}, results[1], results[0])


@over_places()
def test_a_parameter_is_a_tensor(call, place, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    parameter = torch.nn.Parameter(tensors[place].detach(), requires_grad=tensors[place].requires_grad)
    assert_same_bits(call.step({**tensors, place: parameter}), expected)


def strided(tensor, layout):
    if tensor.dim() == 0:
        return tensor
    if layout == "channels-last":
        return tensor.detach().to(memory_format=torch.channels_last).requires_grad_(tensor.requires_grad)
    return laid_out(tensor.detach(), layout).requires_grad_(tensor.requires_grad)


@pytest.mark.kernels  # torch adds up in another order where strides are others
@over_places()
def test_a_tensor_may_have_any_strides(call, place, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    for layout in LAYOUTS:
        given = {**tensors, place: strided(tensors[place], layout)}
        assert_the_same_step(call, tensors, call.step(given), expected)


@over_few
def test_second_derivatives_lead_through_tensors_of_any_strides(call, device):
    """Kernels read copies of some. A graph that ends at a copy is a second derivative of zero, which nothing tells of."""

    def part_of_more(tensor):
        return torch.cat((tensor, tensor), -1)[..., : tensor.shape[-1]]

    results = []
    for change in (torch.clone, part_of_more):
        tensors = call.drawn(device, torch.float64)
        leaves = asking(tensors)
        given = {name: change(tensor) if tensor.requires_grad else tensor for name, tensor in tensors.items()}
        first = torch.autograd.grad(call.loss(given), leaves, tensors["upstream"], create_graph=True)
        results.append(torch.autograd.grad(sum(gradient.square().sum() for gradient in first), leaves))
    for one, other in zip(*results, strict=True):
        assert bool((one != 0).any())
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-15)


@pytest.mark.kernels  # see above
@pytest.mark.parametrize("rows", [64, 65], ids=["few", "many"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_and_many_entries_with_two_strides_have_the_bits_of_contiguous_ones(rows, reduction, dtype, device):
    """Up to 4,096 entries are copied in the compiled module, in each direction; of more, torch makes copies."""
    generator = torch.Generator().manual_seed(rows)
    plain = {
        "chosen": torch.randn(rows, 64, generator=generator).to(dtype),
        "rejected": torch.randn(rows, 64, generator=generator).to(dtype),
        "margin": torch.rand(rows, 64, generator=generator),
        "weight": torch.rand(rows, 64, generator=generator) < 0.7,
        "target": torch.rand(rows, 64, generator=generator),
    }

    def results(layouts, graph):
        given = {
            name: laid_out(tensor.to(device), layout)
            for (name, tensor), layout in zip(plain.items(), layouts, strict=True)
        }
        leaves = [given[name].requires_grad_() for name in ("chosen", "rejected", "margin")]
        loss = prefloss.bradley_terry_loss(**given, reduction=reduction)
        upstream = (
            laid_out((1 + torch.arange(loss.numel())).to(loss).view(loss.shape), layouts[0]) if loss.dim() else None
        )
        gradients = list(torch.autograd.grad(loss, leaves, upstream, create_graph=graph))
        if graph:
            gradients += torch.autograd.grad(sum(gradient.float().square().sum() for gradient in gradients), leaves)
        return [loss, *gradients]

    for graph in (False, True):
        expected = results(("contiguous",) * 5, graph)
        for first in ("all_but_last", "transposed"):
            for others in ("contiguous", "transposed"):
                actual = results((first, others, others, first, others), graph)
                assert_same_bits(actual, expected)


@pytest.mark.kernels  # see above
@over_few
@pytest.mark.parametrize("shift", range(len(LAYOUTS)))
def test_each_tensor_may_have_strides_of_its_own(call, shift, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    layouts = ["channels-last" if call.layout == "paired" else "misaligned", *LAYOUTS]
    given = {
        place: strided(tensor, layouts[(i + shift) % len(layouts)]) for i, (place, tensor) in enumerate(tensors.items())
    }
    assert_the_same_step(call, tensors, call.step(given), expected)


@over_places(accepts=lambda place: not divides(place))
def test_entries_that_share_memory_count_once_each(call, place, device):
    tensors = call.drawn(device)
    whole = tensors[place].detach()
    for dims in ((0, 1, 2, 3), (0,), (3,), (0, 2), (1, 3)) if whole.dim() > 1 else ((0,),):
        few = whole
        for dim in dims[: whole.dim()]:
            few = few.narrow(dim % whole.dim(), 0, 1)
        results = []
        for given in (few.expand_as(whole), few.expand_as(whole).clone()):
            given.requires_grad_(tensors[place].requires_grad)
            results.append(call.step({**tensors, place: given}))
        assert_the_same_step(call, {**tensors, place: given}, *results)


@over_few
def test_meta_tensors_give_meta_tensors(call):
    expected = call.step(call.drawn())
    for one, other in zip(call.step(call.drawn("meta")), expected, strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.kernels  # outside of the mode torch's own operations refuse them; sizes must be read
@over_few
@pytest.mark.parametrize("inside", [True, False], ids=["in-the-mode", "outside-the-mode"])
def test_fake_tensors_give_fake_tensors(call, inside):
    expected = call.step(call.drawn())
    mode = FakeTensorMode()  # sizes of groups are fake too: they are read by the operators alone
    tensors = {place: mode.from_tensor(tensor) for place, tensor in call.drawn().items()}
    with mode if inside else contextlib.nullcontext():
        actual = call.step(tensors)
    for one, other in zip(actual, expected, strict=True):
        assert one.fake_mode is mode
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@pytest.mark.parametrize("call", [call for call in FEW if len(call.places) > 1], ids=str)
def test_fake_and_real_tensors_do_not_mix(call):
    tensors = call.drawn()
    place = next(iter(tensors))
    tensors[place] = FakeTensorMode().from_tensor(tensors[place])
    with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        call.loss(tensors)


@pytest.mark.kernels  # looks for the operators
@over_compiled
@pytest.mark.parametrize(
    "tracing", ["symbolic", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("real", "fake"))]
)
def test_a_traced_step_is_right_for_other_inputs(call, tracing):
    def traced(*values):
        leaves = {
            place: value.detach().requires_grad_(tensor.requires_grad)
            for (place, tensor), value in zip(call.drawn().items(), values, strict=True)
        }
        return call.step(leaves)

    graph = make_fx(traced, tracing_mode=tracing)(*call.drawn().values())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert directions(called) == {"forward", "backward"}
    others = call.drawn(seed=1)
    assert_the_same_step(call, others, graph(*others.values()), call.step(others))


class Log(TorchDispatchMode):
    """What is dispatched while it is on."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.kernels  # looks for the operators
@over_few
def test_a_dispatch_mode_sees_the_operators(call, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    with Log() as both:
        actual = call.step(tensors)
    assert_the_same_step(call, tensors, actual, expected)
    assert directions(both.called) == {"forward", "backward"}


@pytest.mark.kernels  # looks for the operators
@over_few
def test_a_dispatch_mode_may_watch_forward_or_backward_alone(call, device):
    tensors = call.drawn(device)
    loss, *gradients = call.step(tensors)
    wanted = asking(tensors)
    expected = [loss, *gradients[-len(wanted) :]]
    with Log() as log:
        loss = call.loss(tensors)
    assert_the_same_step(call, tensors, [loss, *torch.autograd.grad(loss, wanted, tensors["upstream"])], expected)
    assert "forward" in directions(log.called)
    loss = call.loss(tensors)
    with Log() as log:
        gradients = torch.autograd.grad(loss, wanted, tensors["upstream"])
    assert_the_same_step(call, tensors, [loss, *gradients], expected)
    assert "backward" in directions(log.called)


class Functions(TorchFunctionMode):
    """Lets every function of torch pass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@over_few
@pytest.mark.parametrize("mode", [Functions, lambda: torch.device("meta")], ids=["function-mode", "default-device"])
def test_a_function_mode_changes_nothing(call, mode, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    with mode():
        actual = call.step(tensors)
    assert_the_same_step(call, tensors, actual, expected)


@over_few
def test_a_subclass_that_dispatches_gets_the_loss_of_its_parts(call, device):
    parts = [call.drawn(device, seed=seed) for seed in (0, 1)]
    tensors = dict(parts[0])
    for place in tensors.keys() - {"group_sizes"}:  # the sizes are read where the call is made
        both = TwoTensor(parts[0][place], parts[1][place])
        tensors[place] = both.detach().requires_grad_(parts[0][place].requires_grad)
    results = call.step(tensors)
    for part, half in zip(parts, ("a", "b"), strict=True):
        assert_the_same_step(call, part, [getattr(result, half) for result in results], call.step(part))


@over_few
def test_the_result_of_a_subclass_is_of_the_subclass(call):
    tensors = {place: tensor.as_subclass(Watched) for place, tensor in call.drawn().items()}
    assert type(call.loss(tensors)) is Watched


@over_few
def test_batched_gradients_are_the_gradients_one_by_one(call, device):
    tensors = call.drawn(device)
    loss = call.loss(tensors)
    wanted = asking(tensors)
    upstream = torch.stack([tensors["upstream"] * factor for factor in (1.0, -2.0, 0.0)])
    batched = torch.autograd.grad(loss, wanted, upstream, is_grads_batched=True, retain_graph=True)
    for row, each in enumerate(upstream):
        expected = torch.autograd.grad(loss, wanted, each, retain_graph=True)
        its = {**tensors, "upstream": each}
        assert_the_same_step(call, its, [loss, *(gradients[row] for gradients in batched)], [loss, *expected])


@over_few
def test_inference_tensors_have_the_same_loss(call, device):
    expected = call.step(call.drawn(device))[:1]
    with torch.inference_mode():
        tensors = {place: tensor.clone() for place, tensor in call.drawn(device).items()}
        inside = call.loss(tensors)
    assert inside.is_inference()
    assert_same_bits([inside], expected)
    assert_same_bits([call.loss(tensors)], expected)


@pytest.mark.kernels  # torch's own operations need not keep it
@pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])
def test_an_inference_tensor_cannot_be_kept_for_backward(options):
    with torch.inference_mode():
        rejected = torch.zeros(4)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        prefloss.bradley_terry_loss(torch.zeros(4, requires_grad=True), rejected, **options)


@pytest.mark.kernels  # sizes must be read, and of these torch reads none
@over_places(accepts=lambda place: place != "upstream")
def test_a_functional_tensor_counts_with_its_values(call, place, device):
    """Those that were written last, which its memory does not hold yet."""
    tensors = {name: tensor.detach() for name, tensor in call.drawn(device).items()}
    expected = call.loss(tensors)
    written = torch._to_functional_tensor(torch.ones_like(tensors[place]))
    written.copy_(tensors[place])
    loss = call.loss({**tensors, place: written})
    assert_same_bits([torch._from_functional_tensor(loss) if torch._is_functional_tensor(loss) else loss], [expected])


@over_few
def test_functionalisation_sees_the_operators(call, device):
    tensors = {name: tensor.detach() for name, tensor in call.drawn(device).items()}
    expected = call.loss(tensors)
    with FunctionalTensorMode():
        loss = call.loss({place: FunctionalTensor.to_functional(tensor) for place, tensor in tensors.items()})
    assert_same_bits([loss.from_functional()], [expected])
    with right_or_an_error(RuntimeError):  # torch has no rule for a torch.autograd.Function
        functional = torch.func.functionalize(lambda *values: call.loss(dict(zip(tensors, values, strict=True))))
        assert_same_bits([functional(*tensors.values())], [expected])
