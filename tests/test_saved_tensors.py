"""What is kept for backward may come back from a hook, or change before it is used: the plain result, bit for bit, or an error.

A kernel reads memory through a pointer, and so must be told where that memory is no longer what it was.
"""

from __future__ import annotations

import pytest
import torch
from calls import FEW, assert_the_same_step, over_few, over_places
from rounding_bounds import assert_same_bits
from sample_inputs import LAYOUTS, laid_out
from test_not_plain import FORMS, right_or_an_error
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks

pytestmark = (
    pytest.mark.kernels
)  # without them torch reads what it has saved itself, and a tensor without memory ends the process


def hooked(unpack):
    """Saved tensors are copied, then handed to backward as `unpack` makes them."""
    return saved_tensors_hooks(lambda tensor: tensor.detach().clone(), unpack)


def where_it_has_entries(change):
    return lambda tensor: change(tensor) if tensor.dim() else tensor


SAME_VALUES = {
    **FORMS,
    **{layout: where_it_has_entries(lambda tensor, to=layout: laid_out(tensor, to)) for layout in LAYOUTS},
    "parameter": lambda tensor: torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()),
}


@over_few
@pytest.mark.parametrize("unpack", SAME_VALUES)
def test_saved_tensors_may_come_back_in_other_clothes(call, unpack, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    with hooked(SAME_VALUES[unpack]):
        actual = call.step(tensors)
    assert_the_same_step(call, tensors, actual, expected)


@over_few
def test_saved_tensors_may_wait_on_the_cpu(call, device):
    tensors = call.drawn(device)
    expected = call.step(tensors)
    with save_on_cpu():
        actual = call.step(tensors)
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


def assert_nearly(actual, expected):
    """Rewards of up to 10 rounded to bfloat16 move z by 0.04 and a slope by 0.01, in sums that cancel."""
    torch.testing.assert_close(actual, expected, rtol=4e-2, atol=4e-2 * expected.abs().max().item())


@over_few
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_saved_tensors_that_come_back_changed_are_no_silent_error(call, dtype, device):
    tensors = call.drawn(device)
    for place in tensors.keys() & {"chosen", "rejected", "rewards", "scores"}:
        tensors[place] = tensors[place].detach().to(dtype).requires_grad_()
    expected = call.step(tensors)
    for unpack in OTHER_TENSORS.values():
        with right_or_an_error(RuntimeError, ValueError, TypeError, IndexError), hooked(unpack):
            for one, other in zip(call.step(tensors), expected, strict=True):
                assert_nearly(one, other)


@over_places(FEW, lambda place: place not in ("upstream", "denominator"))
def test_data_swapped_before_backward_is_no_silent_error(call, place, device):
    """As an optimiser or a sharding of parameters does, which autograd does not see."""
    for new in OTHER_TENSORS.values():
        tensors = call.drawn(device)
        places = [other for other, tensor in tensors.items() if tensor.requires_grad]
        expected = call.step(tensors)[-len(places) :]
        loss = call.loss(tensors)
        with right_or_an_error(RuntimeError, ValueError, TypeError, IndexError):
            tensors[place].data = new(tensors[place].detach())
            loss.backward(tensors["upstream"])
            for other, gradient in zip(places, expected, strict=True):
                assert_nearly(tensors[other].grad.float(), gradient)


@over_places(FEW, lambda place: place != "denominator")  # torch itself reads it, and crashes
def test_a_tensor_without_memory_is_refused(call, place, device):
    tensors = call.drawn(device)
    tensors[place] = emptied(tensors[place]).requires_grad_(tensors[place].requires_grad)
    with pytest.raises((ValueError, RuntimeError), match=r"no memory|storage|not allocated"):
        call.step(tensors)
