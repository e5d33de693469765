"""Forward-mode derivatives, which kernels have in no layout: each call says so, and never drops a tangent."""

from __future__ import annotations

import pytest
import torch
from calls import DIFFERENTIATED, over_few
from torch.autograd import forward_ad

import prefloss

# Forward mode defines script methods in torch itself.
pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:.torch.jit.script")]

over_ways = pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])


def draw():
    return (torch.randn(6, requires_grad=True) for _ in range(2))


def dual(tensor):
    return forward_ad.make_dual(tensor, torch.ones_like(tensor))


INDICES = torch.tensor([[0, 1], [2, 3]])

FORWARD_MODE = {
    "default": lambda a, b: prefloss.bradley_terry_loss(dual(a), b),
    "rejected": lambda a, b: prefloss.bradley_terry_loss(a, dual(b)),
    "options": lambda a, b: prefloss.bradley_terry_loss(dual(a), b, beta=2.0, return_stats=True),
    "margin": lambda a, b: prefloss.bradley_terry_loss(a, b, margin=dual(b)),
    "weight": lambda a, b: prefloss.bradley_terry_loss(a, b, weight=dual(b)),
    "target": lambda a, b: prefloss.bradley_terry_loss(a, b, target=dual(b)),
    "operator": lambda a, b: prefloss.bradley_terry_loss(dual(a), b, denominator=torch.tensor(3)),
    "denominator": lambda a, b: prefloss.bradley_terry_loss(a, b, denominator=dual(a.sum())),
    "stacked": lambda a, b: prefloss.bradley_terry_loss_stacked(dual(a)),
    "beta": lambda a, b: prefloss.bradley_terry_loss(a, b, beta=dual(a.sum())),
    "label_smoothing": lambda a, b: prefloss.bradley_terry_loss(a, b, label_smoothing=dual(a.sum())),
    "flip_rate": lambda a, b: prefloss.bradley_terry_loss(a, b, flip_rate=dual(a.sum())),
    "centring": lambda a, b: prefloss.bradley_terry_loss(a, b, center_rewards_coefficient=dual(a.sum())),
    "margin of groups": lambda a, b: prefloss.bradley_terry_loss_grouped(
        a[None], b[None].detach(), margin=dual(a.sum())
    ),
    "beta by index": lambda a, b: prefloss.bradley_terry_loss_indexed(a, *INDICES, beta=dual(a.sum())),
    "beta of DPO": lambda a, b: prefloss.dpo_loss(a, b, b.detach(), a.detach(), beta=dual(a.sum())),
}


@pytest.mark.parametrize("asks", [False, True], ids=["plain", "requires-grad"])
@pytest.mark.parametrize("call", FORWARD_MODE.values(), ids=FORWARD_MODE)
def test_forward_mode_raises(call, asks):
    inputs = [tensor.detach().requires_grad_(asks) for tensor in draw()]
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, ValueError), match=r"jvp|forward|requir"):
        call(*inputs)


@pytest.mark.parametrize("transform", [torch.func.jacfwd, torch.func.hessian])
@over_ways
def test_forward_mode_of_torch_func_raises(transform, options):
    chosen, rejected = (tensor.detach() for tensor in draw())
    with pytest.raises(NotImplementedError, match="jvp"):
        transform(lambda a: prefloss.bradley_terry_loss(a, rejected, **options))(chosen)


def test_a_number_in_a_tensor_is_no_constant_of_forward_mode():
    chosen, rejected = (tensor.detach() for tensor in draw())
    with pytest.raises(NotImplementedError, match=r"beta must not have a tangent.*beta\.detach\(\)"):
        torch.func.jacfwd(lambda beta: prefloss.bradley_terry_loss(chosen, rejected, beta=beta))(torch.tensor(0.5))
    detached = torch.func.jacfwd(lambda a: a.sum() * prefloss.bradley_terry_loss(chosen, rejected, beta=a.detach()))
    assert detached(torch.tensor(0.5)) == prefloss.bradley_terry_loss(chosen, rejected, beta=0.5)


@pytest.mark.parametrize("create_graph", [False, True])
@over_ways
def test_forward_mode_through_backward_raises(create_graph, options):
    """Forward over reverse, from the upstream gradient."""
    chosen, rejected = draw()
    terms = prefloss.bradley_terry_loss(chosen, rejected, reduction="none", **options)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
        torch.autograd.grad(terms, chosen, dual(torch.ones(6)), create_graph=create_graph)


@over_few
def test_every_layout_refuses_a_tangent_of_what_it_is_differentiated_by(call):
    tensors = {name: tensor.detach() for name, tensor in call.drawn().items()}
    for place in set(call.places) & set(DIFFERENTIATED):
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):
            call.loss({**tensors, place: dual(tensors[place])})
        for derivative in (torch.func.jacfwd, torch.func.hessian):
            with pytest.raises(NotImplementedError, match="jvp"):
                derivative(lambda given, place=place: call.loss({**tensors, place: given}).sum())(tensors[place])
