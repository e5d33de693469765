"""Tensors that are not plain memory, and calls that something watches: the plain result, bit for bit, or an error.

A kernel reads memory through a pointer. Of a negative-bit view, say, that memory holds other values than the tensor.
"""

from __future__ import annotations

import contextlib
import itertools

import pytest
import torch
from rounding_bounds import assert_same_bits
from sample_inputs import LAYOUTS, laid_out
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode

import prefloss

SHAPE = (2, 3, 4, 5)
# Each is a way of its own through the package. The tensors that a call names are drawn.
CALLS = {
    "default": {"tensors": ["chosen", "rejected"]},
    "per-pair": {"tensors": ["chosen", "rejected"], "reduction": "none"},
    "options": {"tensors": ["chosen", "rejected", "margin", "weight", "target"], "label_smoothing": 0.125},
    "denominator": {"tensors": ["chosen", "rejected", "denominator"], "beta": 0.5},
    "halves": {"tensors": ["rewards", "target", "weight"], "layout": "halves"},
    "interleaved": {"tensors": ["rewards", "margin", "weight"], "layout": "interleaved", "shape": (120,)},
    "interleaved-rows": {"tensors": ["rewards", "margin"], "layout": "interleaved"},
}
over_calls = pytest.mark.parametrize("name", CALLS)


def over_places(*without):
    """Parametrises over the calls and, of each, the tensors that it takes and its upstream gradient."""
    rows = [
        (name, place)
        for name, call in CALLS.items()
        for place in [*call["tensors"], "upstream"]
        if place not in without
    ]
    return pytest.mark.parametrize(("name", "place"), rows, ids=["-".join(row) for row in rows])


FORWARD, BACKWARD = "prefloss.bradley_terry_forward.default", "prefloss.bradley_terry_backward.default"


def drawn(name, device="cpu", seed=0):
    """The tensors of a call and the upstream gradient, by name: plain leaves, of which rewards and margin ask for gradients."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    pairs, *others = CALLS[name].get("shape", SHAPE)
    for place in [*CALLS[name]["tensors"], "upstream"]:
        shape = {"rewards": (2 * pairs, *others), "denominator": ()}.get(place, (pairs, *others))
        if place == "upstream" and CALLS[name].get("reduction") != "none":
            shape = ()
        value = torch.rand(shape, generator=generator) + 0.25
        if place in ("chosen", "rejected", "rewards"):
            value = 3.0 * torch.randn(shape, generator=generator)
        tensors[place] = value.clamp(max=1.0).to(device) if place == "target" else value.to(device)
        tensors[place].requires_grad_(place in ("chosen", "rejected", "rewards", "margin"))
    return tensors


def loss_of(name, tensors):
    call = {option: value for option, value in CALLS[name].items() if option not in ("tensors", "shape")}
    arguments = {place: tensors[place] for place in CALLS[name]["tensors"]}
    function = prefloss.bradley_terry_loss if "chosen" in arguments else prefloss.bradley_terry_loss_stacked
    return function(**arguments, **call)


def step(name, tensors, leaves=None):
    """The loss, and its gradients with respect to the leaves (the tensors themselves, unless they are made from others)."""
    loss = loss_of(name, tensors)
    wanted = [tensor for tensor in (leaves or tensors).values() if tensor.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, wanted, tensors["upstream"].to(loss.dtype))]


@contextlib.contextmanager
def right_or_an_error(*errors):
    """For what nobody can promise: a comparison inside must hold where no error of these types says otherwise."""
    with contextlib.suppress(*errors):
        yield


class Watched(torch.Tensor):
    """A subclass whose __torch_function__ is the inherited one."""


# The values of a tensor in other clothes, differentiably.
FORMS = {
    "negative-bit": lambda tensor: torch._neg_view(-tensor),
    "imaginary-part-of-a-conjugate": lambda tensor: torch.complex(torch.zeros_like(tensor), -tensor).conj().imag,
    "real-part-of-a-conjugate": lambda tensor: torch.complex(tensor, tensor).conj().real,
    "subclass": lambda tensor: tensor.as_subclass(Watched),
}


@over_places()
@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_that_memory_does_not_hold_counts_with_its_values(name, place, form, device):
    expected = step(name, drawn(name, device))
    leaves = drawn(name, device)
    tensors = {**leaves, place: FORMS[form](leaves[place])}
    assert_same_bits(step(name, tensors, leaves), expected)


def test_the_forms_are_what_they_are_called():
    tensor = torch.ones(3)
    assert FORMS["negative-bit"](tensor).is_neg()
    assert FORMS["imaginary-part-of-a-conjugate"](tensor).is_neg()
    assert torch._efficientzerotensor(3)._is_zerotensor()


@over_places("denominator")
def test_a_zero_tensor_counts_as_zeros(name, place, device):
    tensors = drawn(name, device)
    results = []
    for make in (torch.zeros, torch._efficientzerotensor):
        zeros = make(tensors[place].shape, device=device).requires_grad_(tensors[place].requires_grad)
        results.append(step(name, {**tensors, place: zeros}))
    assert_same_bits(*results)


@over_places()
def test_a_parameter_is_a_tensor(name, place, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    parameter = torch.nn.Parameter(tensors[place].detach(), requires_grad=tensors[place].requires_grad)
    assert_same_bits(step(name, {**tensors, place: parameter}), expected)


def strided(tensor, layout):
    if layout == "channels-last":
        return tensor.detach().to(memory_format=torch.channels_last).requires_grad_(tensor.requires_grad)
    return laid_out(tensor.detach(), layout).requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("layouts", list(itertools.permutations([*LAYOUTS, "channels-last"], 2)), ids="-".join)
@pytest.mark.parametrize("name", ["default", "options", "per-pair"])
def test_each_tensor_may_have_strides_of_its_own(name, layouts, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    chosen, others = layouts
    moved = {
        place: strided(tensor, chosen if place == "chosen" else others) if tensor.dim() else tensor
        for place, tensor in tensors.items()
    }
    assert_same_bits(step(name, moved), expected)


@over_places("denominator")
@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (0,), (3,), (0, 2), (1, 3)], ids=str)
def test_entries_that_share_memory_count_once_each(name, place, dims, device):
    tensors = drawn(name, device)
    few = whole = tensors[place].detach()
    for dim in dims[: whole.dim()]:
        few = few.narrow(dim % whole.dim(), 0, 1)
    results = []
    for given in (few.expand_as(whole), few.expand_as(whole).clone()):
        given.requires_grad_(tensors[place].requires_grad)
        results.append(step(name, {**tensors, place: given}))
    assert_same_bits(*results)


@over_calls
def test_meta_tensors_give_meta_tensors(name):
    expected = step(name, drawn(name))
    for one, other in zip(step(name, drawn(name, "meta")), expected, strict=True):
        assert one.is_meta
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@over_calls
@pytest.mark.parametrize("inside", [True, False], ids=["in-the-mode", "outside-the-mode"])
def test_fake_tensors_give_fake_tensors(name, inside):
    expected = step(name, drawn(name))
    mode = FakeTensorMode()
    tensors = {place: mode.from_tensor(tensor) for place, tensor in drawn(name).items()}
    with mode if inside else contextlib.nullcontext():
        actual = step(name, tensors)
    for one, other in zip(actual, expected, strict=True):
        assert one.fake_mode is mode
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


@over_calls
def test_fake_and_real_tensors_do_not_mix(name):
    tensors = drawn(name)
    place = next(iter(tensors))
    tensors[place] = FakeTensorMode().from_tensor(tensors[place])
    with pytest.raises(AssertionError, match="convert all Tensors to FakeTensors"):
        loss_of(name, tensors)


@over_calls
@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
def test_a_traced_step_is_right_for_other_inputs(name, tracing):
    def traced(*values):
        leaves = {
            place: value.detach().requires_grad_(tensor.requires_grad)
            for (place, tensor), value in zip(drawn(name).items(), values, strict=True)
        }
        return step(name, leaves)

    graph = make_fx(traced, tracing_mode=tracing)(*drawn(name).values())
    called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert {FORWARD, BACKWARD} <= set(called)
    others = drawn(name, seed=1)
    assert_same_bits(graph(*others.values()), step(name, others))


class Log(TorchDispatchMode):
    """What is dispatched while it is on."""

    def __init__(self):
        super().__init__()
        self.called = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.called.append(str(func))
        return func(*args, **(kwargs or {}))


@over_calls
def test_a_dispatch_mode_sees_the_operators(name, device):
    expected = step(name, drawn(name, device))
    with Log() as both:
        actual = step(name, drawn(name, device))
    assert_same_bits(actual, expected)
    assert {FORWARD, BACKWARD} <= set(both.called)


@over_calls
def test_a_dispatch_mode_may_watch_forward_or_backward_alone(name, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    with Log() as log:
        loss = loss_of(name, tensors)
    assert_same_bits([loss, *torch.autograd.grad(loss, wanted, tensors["upstream"])], expected)
    assert FORWARD in log.called
    loss = loss_of(name, tensors)
    with Log() as log:
        gradients = torch.autograd.grad(loss, wanted, tensors["upstream"])
    assert_same_bits([loss, *gradients], expected)
    assert BACKWARD in log.called


class Functions(TorchFunctionMode):
    """Lets every function of torch pass."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@over_calls
@pytest.mark.parametrize("mode", [Functions, lambda: torch.device("meta")], ids=["function-mode", "default-device"])
def test_a_function_mode_changes_nothing(name, mode, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    with mode():
        actual = step(name, tensors)
    assert_same_bits(actual, expected)


@over_calls
def test_a_subclass_that_dispatches_gets_the_loss_of_its_parts(name, device):
    parts = [drawn(name, device, seed) for seed in (0, 1)]
    tensors = {place: TwoTensor(tensor, parts[1][place]) for place, tensor in parts[0].items()}
    for place, tensor in tensors.items():
        tensors[place] = tensor.detach().requires_grad_(parts[0][place].requires_grad)
    results = step(name, tensors)
    for part, half in zip(parts, ("a", "b"), strict=True):
        assert_same_bits([getattr(result, half) for result in results], step(name, part))


@over_calls
def test_the_result_of_a_subclass_is_of_the_subclass(name):
    tensors = {place: tensor.as_subclass(Watched) for place, tensor in drawn(name).items()}
    assert type(loss_of(name, tensors)) is Watched


@over_calls
def test_batched_gradients_are_the_gradients_one_by_one(name, device):
    tensors = drawn(name, device)
    loss = loss_of(name, tensors)
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    upstream = torch.stack([tensors["upstream"] * factor for factor in (1.0, -2.0, 0.0)])
    batched = torch.autograd.grad(loss, wanted, upstream, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(loss, wanted, each, retain_graph=True) for each in upstream]
    assert_same_bits(batched, [torch.stack(gradients) for gradients in zip(*one_by_one, strict=True)])


@over_calls
def test_inference_tensors_have_the_same_loss(name, device):
    expected = step(name, drawn(name, device))[:1]
    with torch.inference_mode():
        tensors = {place: tensor * 1.0 for place, tensor in drawn(name, device).items()}
        inside = loss_of(name, tensors)
    assert inside.is_inference()
    assert_same_bits([inside], expected)
    assert_same_bits([loss_of(name, tensors)], expected)


@pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])
def test_an_inference_tensor_cannot_be_kept_for_backward(options):
    with torch.inference_mode():
        rejected = torch.zeros(4)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        prefloss.bradley_terry_loss(torch.zeros(4, requires_grad=True), rejected, **options)


@over_places("upstream")
def test_a_functional_tensor_counts_with_its_values(name, place, device):
    tensors = {name: tensor.detach() for name, tensor in drawn(name, device).items()}
    expected = loss_of(name, tensors)
    loss = loss_of(name, {**tensors, place: torch._to_functional_tensor(tensors[place])})
    assert_same_bits([torch._from_functional_tensor(loss)], [expected])


@over_calls
def test_functionalisation_sees_the_operators(name, device):
    tensors = {name: tensor.detach() for name, tensor in drawn(name, device).items()}
    expected = loss_of(name, tensors)
    with FunctionalTensorMode():
        loss = loss_of(name, {place: FunctionalTensor.to_functional(tensor) for place, tensor in tensors.items()})
    assert_same_bits([loss.from_functional()], [expected])
    with right_or_an_error(RuntimeError):  # torch has no rule for a torch.autograd.Function
        functional = torch.func.functionalize(lambda *values: loss_of(name, dict(zip(tensors, values, strict=True))))
        assert_same_bits([functional(*tensors.values())], [expected])


def hooked(unpack):
    """Saved tensors are copied, then handed to backward as `unpack` makes them."""
    return saved_tensors_hooks(lambda tensor: tensor.detach().clone(), unpack)


def where_it_has_entries(change):
    return lambda tensor: change(tensor) if tensor.dim() else tensor


SAME_VALUES = {
    **FORMS,
    **{layout: where_it_has_entries(lambda tensor, to=layout: laid_out(tensor, to)) for layout in LAYOUTS},
    "parameter": torch.nn.Parameter,
}


@over_calls
@pytest.mark.parametrize("unpack", SAME_VALUES)
def test_saved_tensors_may_come_back_in_other_clothes(name, unpack, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    with hooked(SAME_VALUES[unpack]):
        actual = step(name, tensors)
    assert_same_bits(actual, expected)


@over_calls
def test_saved_tensors_may_wait_on_the_cpu(name, device):
    tensors = drawn(name, device)
    expected = step(name, tensors)
    with save_on_cpu():
        actual = step(name, tensors)
    assert_same_bits(actual, expected)


def emptied(tensor):
    """All of the shape, none of the memory."""
    tensor = tensor.detach().clone()
    tensor.untyped_storage().resize_(0)
    return tensor


OTHER_TENSORS = {
    "float64": torch.Tensor.double,
    "float32": torch.Tensor.float,
    "bfloat16": torch.Tensor.bfloat16,
    "rewards-in-float64": lambda tensor: tensor.double() if tensor.numel() > 16 else tensor,
    "shorter": where_it_has_entries(lambda tensor: tensor[:-1]),
    "longer": where_it_has_entries(lambda tensor: torch.cat((tensor, tensor))),
    "flat": torch.Tensor.flatten,
    "without-memory": where_it_has_entries(emptied),  # torch itself reads the number that 0-d tensors hold
    "without-values": lambda tensor: tensor.to("meta"),
}


@over_calls
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("unpack", OTHER_TENSORS)
def test_saved_tensors_that_come_back_changed_are_no_silent_error(name, dtype, unpack, device):
    tensors = drawn(name, device)
    for place in tensors.keys() & {"chosen", "rejected", "rewards"}:
        tensors[place] = tensors[place].detach().to(dtype).requires_grad_()
    expected = step(name, tensors)
    with right_or_an_error(RuntimeError, ValueError, TypeError), hooked(OTHER_TENSORS[unpack]):
        for one, other in zip(step(name, tensors), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-4)


@over_places("upstream", "denominator")
@pytest.mark.parametrize("new", OTHER_TENSORS)
def test_data_swapped_before_backward_is_no_silent_error(name, place, new, device):
    """As an optimiser or a sharding of parameters does, which autograd does not see."""
    tensors = drawn(name, device)
    expected = step(name, tensors)[1:]
    loss = loss_of(name, tensors)
    places = [other for other, tensor in tensors.items() if tensor.requires_grad]
    with right_or_an_error(RuntimeError, ValueError, TypeError):
        tensors[place].data = OTHER_TENSORS[new](tensors[place].detach())
        loss.backward(tensors["upstream"])
        for other, gradient in zip(places, expected, strict=True):
            torch.testing.assert_close(tensors[other].grad.float(), gradient, rtol=2e-2, atol=2e-4)


@over_places("denominator")  # torch itself reads it, and crashes
def test_a_tensor_without_memory_is_refused(name, place, device):
    tensors = drawn(name, device)
    tensors[place] = emptied(tensors[place]).requires_grad_(tensors[place].requires_grad)
    with pytest.raises((ValueError, RuntimeError), match=r"no memory|storage"):
        step(name, tensors)
