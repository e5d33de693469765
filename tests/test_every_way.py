"""All ways through the package, eager, compiled, traced, transformed or stacked, give the same bits."""

from __future__ import annotations

import pytest
import torch
from rounding_bounds import assert_same_bits
from test_not_plain import Log
from torch.fx.experimental.proxy_tensor import make_fx

import prefloss
from prefloss import ops
from prefloss.kernels import Options


def loss_and_gradients(loss, pair, upstream):
    return [loss.detach(), *torch.autograd.grad(loss, pair, upstream)]


def eager(pair, upstream, options):
    return loss_and_gradients(prefloss.bradley_terry_loss(*pair, **options), pair, upstream)


def spelled_out(pair, upstream, options):
    defaults = {
        **{"margin": 0.0, "weight": None, "target": 1.0, "beta": float("1"), "label_smoothing": 0},
        **{"center_rewards_coefficient": -0.0, "reduction": "mean", "denominator": None, "return_stats": False},
    }
    return eager(pair, upstream, {**defaults, **options})


def by_the_module(pair, upstream, options):
    fixed = {name: options[name] for name in ("beta", "label_smoothing", "center_rewards_coefficient", "reduction")}
    others = {name: value for name, value in options.items() if name not in fixed}
    return loss_and_gradients(prefloss.BradleyTerryLoss(**fixed)(*pair, **others), pair, upstream)


def stacked(pair, upstream, options):
    return loss_and_gradients(prefloss.bradley_terry_loss_stacked(torch.cat(pair), **options), pair, upstream)


def interleaved(pair, upstream, options):
    rewards = torch.stack(pair, 1).flatten(0, 1)
    loss = prefloss.bradley_terry_loss_stacked(rewards, layout="interleaved", **options)
    return loss_and_gradients(loss, pair, upstream)


def by_the_operators(pair, upstream, options):
    tensors = [options.get(name) for name in ("margin", "weight", "target", "denominator")]
    numbers = {name: value for name, value in options.items() if not isinstance(value, torch.Tensor)}
    loss, _ = ops.loss(*pair, *tensors, Options(**numbers))
    return loss_and_gradients(loss, pair, upstream)


def compiled(pair, upstream, options):
    torch.compiler.reset()
    function = torch.compile(prefloss.bradley_terry_loss, backend="aot_eager", fullgraph=True)
    return loss_and_gradients(function(*pair, **options), pair, upstream)


def functorch(pair, upstream, options):
    loss, gradients = torch.func.vjp(lambda *pair: prefloss.bradley_terry_loss(*pair, **options), *pair)
    return [loss.detach(), *gradients(upstream)]


def traced(pair, upstream, options):
    return make_fx(lambda *pair: eager(pair, upstream, options))(*pair)(*pair)


def dispatched(pair, upstream, options):
    with Log():
        return eager(pair, upstream, options)


WAYS = [spelled_out, by_the_module, stacked, interleaved, by_the_operators, compiled, functorch, traced, dispatched]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("shape", [(7,), (40_001,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("which", ["default", "per-pair", "options"])
def test_every_way_gives_the_same_bits(way, shape, dtype, which, device):
    generator = torch.Generator().manual_seed(3)
    chosen, rejected, margin, weight, target = (torch.rand((5, *shape), generator=generator) * 4.0).to(device)
    options = {"beta": 1.0, "label_smoothing": 0.0, "center_rewards_coefficient": 0.0, "reduction": "mean"}
    if which == "per-pair":
        options["reduction"] = "none"
    elif which == "options":
        options = {"beta": 0.3, "label_smoothing": 0.1, "center_rewards_coefficient": 0.01, "reduction": "mean"}
        options |= {"margin": margin, "weight": weight.clamp(min=1.0) - 1.0, "target": target / 4.0}
    pair = [tensor.to(dtype).requires_grad_() for tensor in (chosen, rejected)]
    expected_loss = prefloss.bradley_terry_loss(*pair, **({} if which == "default" else options))
    upstream = torch.full_like(expected_loss, 0.7)
    assert_same_bits(way(pair, upstream, options), loss_and_gradients(expected_loss, pair, upstream))
