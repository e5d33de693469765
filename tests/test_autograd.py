"""The gradients as autograd's machinery asks for them: of both orders, twice, in parts and under hooks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from calls import ALL, asking
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES, LAYOUTS, OPTIONS_ALONE, REDUCTIONS, laid_out, options_alone, rewards

import prefloss
from prefloss import composed as without_kernels
from prefloss.stats import Sum

FORMS = ["pair", "halves", "interleaved"]  # two tensors, or stacked in one
NAMES = [*OPTIONS_ALONE, "everything"]
EVERYTHING = ["beta", "margin tensor", "weight tensor", "target tensor", "label smoothing", "centring"]

over_forms = pytest.mark.parametrize("form", FORMS)
over_names = pytest.mark.parametrize("name", NAMES, ids=lambda name: name.replace(" ", "-"))
over_reductions = pytest.mark.parametrize("reduction", REDUCTIONS)
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
# The all-default call has its own way; so have options in general.
over_ways = pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])


class Call:
    """One call of the loss: `inputs` ask for gradients, the rewards and where there is one the tensor of margins."""

    def __init__(self, form, name, device="cpu", count=5, dtype=torch.float64, seed=0, layout="contiguous", **options):
        random = np.random.default_rng(seed)
        pair = [tensor.to(device) for tensor in rewards(random, (count,), dtype)]
        if form != "pair":
            pair = [torch.cat(pair) if form == "halves" else torch.stack(pair, 1).flatten()]
        for part in EVERYTHING if name == "everything" else [name]:
            options |= options_alone(part, random, (count,), dtype)
        moved = {
            key: laid_out(value.to(device), layout) if isinstance(value, torch.Tensor) else value
            for key, value in options.items()
        }
        margin = moved.pop("margin", None)
        self.form, self.options = form, moved
        self.inputs = [laid_out(tensor, layout).requires_grad_() for tensor in pair]
        if isinstance(margin, torch.Tensor):
            self.inputs.append(margin.requires_grad_())
        elif margin is not None:
            self.options["margin"] = margin

    def __call__(self, *inputs, **more):
        inputs = list(inputs or self.inputs)
        options = {**self.options, **more}
        count = 2 if self.form == "pair" else 1
        if len(inputs) > count:
            options["margin"] = inputs.pop()
        if self.form == "pair":
            return prefloss.bradley_terry_loss(*inputs, **options)
        return prefloss.bradley_terry_loss_stacked(*inputs, layout=self.form, **options)


def pair(device, count=6, dtype=torch.float32, seed=1):
    return [tensor.to(device).requires_grad_() for tensor in rewards(np.random.default_rng(seed), (count,), dtype)]


def composed(chosen, rejected, margin=0.0, weight=None, target=1.0, beta=1.0, label_smoothing=0.0, **rest):
    """The loss out of PyTorch's own operations."""
    z = beta * (chosen - rejected) - margin
    target = torch.as_tensor(target, dtype=z.dtype, device=z.device).expand_as(z)
    terms = F.binary_cross_entropy_with_logits(
        z, target * (1 - 2 * label_smoothing) + label_smoothing, reduction="none"
    )
    terms = terms + rest["center_rewards_coefficient"] * (chosen + rejected) ** 2 if len(rest) > 1 else terms
    weight = torch.ones_like(z) if weight is None else weight.to(z.dtype)
    return {"none": weight * terms, "sum": (weight * terms).sum(), "mean": (weight * terms).sum() / weight.sum()}[
        rest["reduction"]
    ]


@pytest.mark.parametrize(
    ("form", "reduction"),
    [
        *(("pair", reduction) for reduction in REDUCTIONS),
        *((form, "mean") for form in FORMS[1:]),
        *(pytest.param(form, reduction, marks=pytest.mark.slow) for form in FORMS[1:] for reduction in ("sum", "none")),
    ],
)
@over_names
def test_derivatives_of_both_orders_are_those_of_the_loss(form, name, reduction, device):
    call = Call(form, name, device, reduction=reduction)
    torch.autograd.gradcheck(call, call.inputs, check_batched_grad=True)
    torch.autograd.gradgradcheck(call, call.inputs, check_batched_grad=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@over_forms
def test_derivatives_do_not_depend_on_the_layout(form, layout, device):
    call = Call(form, "everything", device, layout=layout, reduction="none")
    plain = Call(form, "everything", device, reduction="none")
    torch.autograd.gradgradcheck(call, call.inputs)
    assert_same_bits(torch.autograd.grad(call().sum(), call.inputs), torch.autograd.grad(plain().sum(), plain.inputs))


@over_reductions
@over_forms
def test_derivatives_go_through_the_loss_that_comes_with_statistics(form, reduction, device):
    call = Call(form, "everything", device, reduction=reduction, return_stats=True)
    torch.autograd.gradgradcheck(lambda *inputs: call(*inputs)[0], call.inputs)
    assert not call()[1].sums.requires_grad


def sum_of_parts(inputs, directions, options):
    """Of a derivative by the upstream gradient, the sum of the absolute values of what its terms are made of; slopes are below 1.

    Without kernels each term is made in the type of the loss: at most 16 roundings of beta, z, slope, weight, centring, divisor."""
    chosen, rejected = (tensor.detach() for tensor in inputs[:2])
    parts = (
        abs(options.get("beta", 1.0)) + 2.0 * options.get("center_rewards_coefficient", 0.0) * (chosen + rejected).abs()
    )
    weight = options.get("weight", torch.ones_like(chosen)).to(chosen.dtype)
    divisor = weight.sum() if options["reduction"] == "mean" else 1.0
    return float(sum((direction.abs() * weight * parts).sum() for direction in directions) / divisor)


@over_reductions
@over_dtypes
@over_names
def test_second_derivatives_are_those_of_the_composed_loss(name, dtype, reduction, device):
    """At sizes of one block, several blocks and several chunks; the composed loss in float64 of the same values."""
    for count in (1, 700, 20_000):
        call = Call("pair", name, device, count, dtype, seed=count, reduction=reduction)
        exact = [tensor.detach().double().requires_grad_() for tensor in call.inputs]
        options = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in call.options.items()}
        if len(exact) > 2:
            options["margin"] = exact[2]
        losses = call(), composed(*exact[:2], **options)
        upstream = torch.linspace(0.5, 2.0, losses[0].numel(), device=device).to(losses[0].dtype).view_as(losses[0])
        directions = [torch.linspace(-1.0, 1.0, count, device=device).to(dtype), torch.ones_like(call.inputs[1])]
        products = []
        for loss, inputs in zip(losses, (call.inputs, exact), strict=True):
            given = upstream.detach().to(loss.dtype).requires_grad_()
            first = torch.autograd.grad(loss, inputs, given, create_graph=True)
            along = [direction.to(tensor.dtype) for direction, tensor in zip(directions, inputs, strict=False)]
            products.append(torch.autograd.grad(first[:2], [given, *inputs], along))
        kind = torch.finfo(dtype)
        sums = [
            sum_of_parts(exact, directions, options) * 16 * kind.eps / 2 if losses[0].dim() == 0 else 0.0,
            0.0,
            0.0,
            0.0,
        ]
        for mine, its, of_sum in zip(*products, sums[: len(exact) + 1], strict=True):
            # Sums that cancel; theirs, from 1 - sigma(z); half precision's subnormals.
            cancelled = float(its.abs().max()) * (1e-13 if dtype is torch.float64 else 1e-6) + 1e-15
            cancelled += of_sum if without_kernels.ASKED_FOR else 0.0
            torch.testing.assert_close(
                mine.double(), its, rtol=16 * kind.eps, atol=cancelled + kind.smallest_normal * kind.eps
            )


@pytest.mark.kernels
@pytest.mark.parametrize("options", [{}, {"beta": 2.0}], ids=["default", "with-an-option"])
def test_a_third_derivative_is_refused(options):
    def loss(chosen):
        return prefloss.bradley_terry_loss(chosen, torch.zeros_like(chosen), **options)

    (chosen, _) = pair("cpu")
    (first,) = torch.autograd.grad(loss(chosen), chosen, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), chosen, create_graph=True)
    with pytest.raises(NotImplementedError, match="a third was asked for"):
        torch.autograd.grad(second.sum(), chosen, retain_graph=True)
    with pytest.raises(NotImplementedError, match="a third was asked for"):
        second.sum().backward()


@over_ways
@over_forms
def test_a_graph_that_is_kept_gives_the_same_gradient_again(form, options, device):
    call = Call(form, "default", device, **options)
    loss = call()
    loss.backward(retain_graph=True)
    once = [tensor.grad.clone() for tensor in call.inputs]
    loss.backward()
    assert_same_bits([tensor.grad for tensor in call.inputs], [2 * gradient for gradient in once])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@over_ways
def test_gradients_accumulate_into_what_is_there(options, device):
    chosen, rejected = pair(device)
    loss = prefloss.bradley_terry_loss(chosen, rejected, **options)
    expected = torch.autograd.grad(loss, (chosen, rejected), retain_graph=True)
    chosen.grad, rejected.grad = torch.full_like(chosen, 3.0), torch.full_like(rejected, -7.0)
    loss.backward()
    assert_same_bits([chosen.grad, rejected.grad], [expected[0] + 3.0, expected[1] - 7.0])


@over_ways
def test_the_gradients_are_not_views_of_each_other(options, device):
    chosen, rejected = pair(device)
    margin = torch.zeros(6, device=device, requires_grad=True) if options else None
    prefloss.bradley_terry_loss(chosen, rejected, margin=margin, **options).backward()
    others = [tensor.grad for tensor in (rejected, margin) if tensor is not None]
    before = [gradient.clone() for gradient in others]
    chosen.grad.fill_(math.nan)
    assert_same_bits(others, before)


@over_reductions
@over_dtypes
@over_names
def test_one_input_alone_may_ask_for_a_gradient(name, dtype, reduction, device):
    """Of the rewards and margins; it gets the bits that it gets when all of them ask, in its own dtype."""
    call = Call("pair", name, device, 40, dtype, reduction=reduction)
    loss = call()
    together = torch.autograd.grad(loss, call.inputs, torch.ones_like(loss))
    for i, expected in enumerate(together):
        inputs = [tensor.detach() for tensor in call.inputs]
        inputs[i].requires_grad_()
        call(*inputs).sum().backward()
        assert_same_bits([inputs[i].grad], [expected])
        assert all(tensor.grad is None for j, tensor in enumerate(inputs) if j != i)
    assert not call(*(tensor.detach() for tensor in call.inputs)).requires_grad


@pytest.mark.parametrize("coefficient", [0.0, 0.25])
def test_the_same_tensor_may_be_chosen_and_rejected(coefficient, device):
    (x, _) = pair(device, dtype=torch.float64)
    loss = prefloss.bradley_terry_loss(x, x, center_rewards_coefficient=coefficient)
    loss.backward()
    torch.testing.assert_close(loss, math.log(2) + coefficient * (4 * x * x).mean())
    torch.testing.assert_close(x.grad, coefficient * 8 * x.detach() / 6)


@over_ways
def test_a_batch_of_upstream_gradients_gives_a_batch_of_gradients(options, device):
    chosen, rejected = pair(device)
    terms = prefloss.bradley_terry_loss(chosen, rejected, reduction="none", **options)
    batched = torch.autograd.grad(
        terms, (chosen, rejected), torch.eye(6, device=device), retain_graph=True, is_grads_batched=True
    )
    for i in range(6):
        alone = torch.autograd.grad(terms, (chosen, rejected), torch.eye(6, device=device)[i], retain_graph=True)
        assert_same_bits([gradient[i] for gradient in batched], alone)


@over_ways
@over_forms
def test_micro_batches_of_stacked_rewards_add_up(form, options, device):
    """With gradients accumulating into one leaf, as they do in a trainer."""
    call = Call(form, "weight tensor", device, 12, **options)
    whole = torch.autograd.grad(call(), call.inputs)
    weight = call.options.pop("weight")
    for begin in range(0, 12, 4):
        if form == "pair":
            part = [tensor[begin : begin + 4] for tensor in call.inputs]
        elif form == "interleaved":
            part = [call.inputs[0][2 * begin : 2 * begin + 8]]
        else:
            part = [torch.cat([half[begin : begin + 4] for half in call.inputs[0].chunk(2)])]
        call(*part, weight=weight[begin : begin + 4], denominator=weight.sum()).backward()
    torch.testing.assert_close([tensor.grad for tensor in call.inputs], list(whole), rtol=1e-14, atol=0.0)


@over_ways
def test_autocast_changes_nothing_and_leaves_the_loss_in_float32(options, device):
    model = torch.nn.Linear(8, 1, device=device)
    x = torch.linspace(-2.0, 2.0, 2 * 6 * 8, device=device).view(2, 6, 8)
    chosen, rejected = pair(device)
    expected = torch.autograd.grad(prefloss.bradley_terry_loss(chosen, rejected, **options), (chosen, rejected))
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        outputs = model(x).squeeze(-1)
        loss = prefloss.bradley_terry_loss(*outputs, **options)
        assert (outputs.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
        assert_same_bits([loss], [prefloss.bradley_terry_loss(*outputs.detach(), **options)])
        inside = torch.autograd.grad(prefloss.bradley_terry_loss(chosen, rejected, **options), (chosen, rejected))
    assert_same_bits(inside, expected)
    loss.backward()
    assert model.weight.grad.dtype == torch.float32
    assert bool(model.weight.grad.any())


@pytest.mark.kernels
@over_names
@over_forms
def test_only_the_inputs_and_one_row_of_sums_are_kept_for_backward(form, name, device):
    call = Call(form, name, device, 300, torch.float32)
    given = {tensor.data_ptr() for tensor in (*call.inputs, *call.options.values()) if isinstance(tensor, torch.Tensor)}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        call()
    assert all(tensor.data_ptr() in given or tensor.numel() <= len(Sum) for tensor in kept)
    assert kept


@pytest.mark.kernels
@pytest.mark.parametrize("which", [0, 1, 2, "weight", "target"])
def test_changing_an_input_before_backward_is_an_error(which, device):
    call = Call("pair", "everything", device)
    loss = call()
    with torch.no_grad():
        (call.options[which] if isinstance(which, str) else call.inputs[which]).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.kernels
def test_changing_the_rewards_of_the_default_call_before_backward_is_an_error(device):
    for which in (0, 1):
        inputs = pair(device)
        loss = prefloss.bradley_terry_loss(*inputs)
        with torch.no_grad():
            inputs[which].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@over_reductions
@over_forms
def test_second_derivatives_of_no_pairs_are_zero(form, reduction, device):
    for count, options in ((0, {}), (3, {"weight": torch.zeros(3, device=device)})):
        call = Call(form, "default", device, count, reduction=reduction, **options)
        loss = call().sum()
        first = torch.autograd.grad(loss, call.inputs, create_graph=True)
        second = torch.autograd.grad(sum(gradient.sum() for gradient in first), call.inputs)
        assert loss.item() == 0.0
        for gradient, tensor in zip((*first, *second), call.inputs * 2, strict=True):
            assert_same_bits([gradient], [torch.zeros_like(tensor)])


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_detection_finds_a_nan_reward_but_none_that_is_masked_out(device):
    chosen, rejected = pair(device)
    with torch.no_grad():
        chosen[2] = math.nan
    mask = ~chosen.detach().isnan()
    with torch.autograd.set_detect_anomaly(True):
        prefloss.bradley_terry_loss(chosen, rejected, weight=mask).backward()
        with pytest.raises(RuntimeError, match="returned nan values"), pytest.warns(UserWarning, match="Traceback"):
            prefloss.bradley_terry_loss(chosen, rejected).backward()
    assert chosen.grad[2].item() == 0.0


class NoGradient(torch.autograd.Function):
    """The identity, which hands no gradient on."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return None


@pytest.mark.parametrize("return_stats", [False, True])
@over_ways
def test_a_loss_that_gets_no_gradient_hands_none_on(options, return_stats, device):
    chosen, rejected = pair(device)
    result = prefloss.bradley_terry_loss(chosen, rejected, return_stats=return_stats, **options)
    (NoGradient.apply(result[0] if return_stats else result) + 0.0 * chosen.sum()).backward()
    assert_same_bits([chosen.grad], [torch.zeros_like(chosen)])
    assert rejected.grad is None or not bool(rejected.grad.any())


@pytest.mark.parametrize("call", [call for call in ALL if call.numbers.get("return_stats")], ids=str)
@pytest.mark.parametrize("seen", [True, False], ids=["in-place", "by-a-collective"])
def test_statistics_changed_before_backward_change_no_gradient(call, seen, device):
    """torch.distributed.all_reduce writes into the sums, and autograd does not see it."""
    tensors = call.drawn(device)
    expected = call.step(tensors)[2:]
    loss, sums = call.outputs(tensors)
    (sums if seen else sums.data).mul_(2.0)
    assert_same_bits(torch.autograd.grad(loss, asking(tensors), tensors["upstream"]), expected)


@pytest.mark.parametrize("call", [call for call in ALL if call.numbers.get("return_stats")], ids=str)
def test_statistics_are_detached(call, device):
    """Adding them up, step by step, must not keep the graphs of all steps. Under vmap too."""
    tensors = call.drawn(device)
    others = {name: tensor for name, tensor in tensors.items() if not tensor.requires_grad}
    stacked = {name: tensor.detach()[None].requires_grad_() for name, tensor in tensors.items() if name not in others}
    loss, sums = torch.vmap(lambda leaves: tuple(call.outputs({**others, **leaves})))(stacked)
    assert loss.requires_grad
    assert not sums.requires_grad
    assert not call.outputs(tensors)[1].requires_grad


SECOND_ORDER = ["hessian", "vhp", "hvp", "jvp", "vjp", "jacobian"]


@pytest.mark.parametrize("name", SECOND_ORDER)
@over_ways
def test_torchs_functionals_give_what_the_composed_loss_gives_or_say_why_not(name, options):
    chosen, rejected = torch.randn(2, 6, dtype=torch.float64)
    arguments = (chosen, rejected) if name in ("vhp", "hvp", "jvp") else (chosen,)
    functional = getattr(torch.autograd.functional, name)
    beta = options.get("beta", 1.0)
    expected = functional(lambda chosen: -F.logsigmoid(beta * (chosen - rejected)).mean(), *arguments)
    try:
        actual = functional(lambda chosen: prefloss.bradley_terry_loss(chosen, rejected, **options), *arguments)
    except NotImplementedError as error:
        assert "first and second derivatives" in str(error)  # noqa: PT017  either is right
    else:
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)
