"""The loss under torch.func and other tracers: the bits of the eager call, or an error."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import rounding_bounds
import torch
from calls import DIFFERENTIATED, FEW
from sample_inputs import DTYPES, OPTIONS_ALONE, REDUCTIONS, options_alone, rewards
from torch.fx.experimental.proxy_tensor import make_fx

import prefloss
from prefloss.operators.paired import paired_backward, paired_double_backward, paired_forward
from prefloss.pairs import REDUCTIONS as CODES
from prefloss.pairs import Numbers, Pairs

# Importing what compiles, and forward mode, defines script methods in torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")

# A graph adds the zeros that its other outputs contribute, and -0 + 0 is 0.
assert_same_bits = functools.partial(rounding_bounds.assert_same_bits, signed_zeros=False)
over_names = pytest.mark.parametrize("name", OPTIONS_ALONE, ids=lambda name: name.replace(" ", "-"))
over_ways = pytest.mark.parametrize("options", [{}, {"beta": 0.5}], ids=["default", "with-an-option"])


def draw(name, count, dtype=torch.float32, seed=0):
    """(chosen, rejected, options): the rewards ask for gradients, and so does a tensor of margins."""
    random = np.random.default_rng(seed)
    chosen, rejected = rewards(random, (count,), dtype)
    options = options_alone(name, random, (count,), dtype)
    if isinstance(options.get("margin"), torch.Tensor):
        options["margin"].requires_grad_()
    return chosen.requires_grad_(), rejected.requires_grad_(), options


@pytest.mark.kernels  # there are none
@pytest.mark.parametrize("tracing_mode", ["real", "symbolic"])
@over_ways
def test_make_fx_sees_the_operators(tracing_mode, options):
    def gradient(a, b):
        return torch.autograd.grad(prefloss.bradley_terry_loss(a, b, **options), a)[0]

    graph = make_fx(gradient, tracing_mode=tracing_mode)(*draw("default", 40)[:2])
    targets = {node.target for node in graph.graph.nodes}
    assert {paired_forward.plain, paired_backward.plain} <= targets
    chosen, rejected, _ = draw("default", 40, seed=1)
    assert_same_bits([graph(chosen, rejected)], [gradient(chosen, rejected)])


def rows(batch, count=9, seed=0):
    """Rewards, margins, weights and targets of a batch of rows, and denominators."""
    random = np.random.default_rng(seed)
    chosen, rejected = rewards(random, (batch, count), torch.float32)
    margin, weight, target = (
        options_alone(f"{name} tensor", random, (batch, count), torch.float32)[name]
        for name in ("margin", "weight", "target")
    )
    return chosen, rejected, margin, weight, target, torch.arange(1, batch + 1)


def row_loss(chosen, rejected, margin, weight, target, denominator):
    return prefloss.bradley_terry_loss(
        chosen, rejected, margin=margin, weight=weight, target=target, denominator=denominator, beta=0.5,
        label_smoothing=0.1, center_rewards_coefficient=0.01, return_stats=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "in_dims",
    [(0,) * 6, (1, 0, 0, 1, 0, 0), (0, None, None, None, None, None), (None, None, 0, None, 1, None),
     (None, None, None, 0, None, None), (None, None, None, None, None, 0)],
    ids=str,
)  # fmt: skip
def test_vmap_is_a_loop_over_rows_bit_for_bit(in_dims):
    tensors = rows(4)
    given = [tensor[2] if dim is None else tensor.movedim(0, dim) for tensor, dim in zip(tensors, in_dims, strict=True)]
    losses, stats = torch.vmap(row_loss, in_dims=in_dims)(*given)
    gradients = torch.vmap(torch.func.grad(row_loss, argnums=(0, 1, 2), has_aux=True), in_dims=in_dims)(*given)
    for i in range(4):
        row = [tensor[2] if dim is None else tensor[i] for tensor, dim in zip(tensors, in_dims, strict=True)]
        loss, expected = row_loss(*row)
        assert_same_bits((losses[i], stats.sums[i]), (loss, expected.sums))
        gradient, _ = torch.func.grad(row_loss, argnums=(0, 1, 2), has_aux=True)(*row)
        assert_same_bits([gradient[i] for gradient in gradients[0]], gradient)
        assert_same_bits([gradients[1].sums[i]], [expected.sums])


@pytest.mark.kernels  # torch's own vmap of operations that are composed takes no batch of 0 rows
@pytest.mark.parametrize("reduction", REDUCTIONS)
@over_ways
def test_nested_vmap_empty_rows_and_no_rows(reduction, options):
    def loss(a, b):
        return prefloss.bradley_terry_loss(a, b, reduction=reduction, **options)

    chosen, rejected = rewards(np.random.default_rng(0), (2, 3, 5), torch.float64)
    nested = torch.vmap(torch.vmap(loss, in_dims=(1, 1)))(chosen.mT, rejected.mT)
    assert_same_bits([nested[1, 2]], [loss(chosen[1, 2], rejected[1, 2])])
    for shape in ((3, 0), (0, 3), (0, 0)):
        empty = torch.zeros(shape)
        assert_same_bits([torch.vmap(loss)(empty, empty)], [torch.zeros(shape if reduction == "none" else shape[:1])])


def test_autograd_goes_through_vmap():
    chosen, rejected, _ = draw("default", 24)
    losses = torch.vmap(prefloss.bradley_terry_loss)(chosen.view(4, 6), rejected.view(4, 6))
    expected = torch.stack(
        [prefloss.bradley_terry_loss(a, b) for a, b in zip(chosen.view(4, 6), rejected.view(4, 6), strict=True)]
    )
    upstream = torch.arange(4.0)
    assert_same_bits(*(torch.autograd.grad(values, (chosen, rejected), upstream) for values in (losses, expected)))


@over_names
@pytest.mark.parametrize("form", ["pair", "halves", "interleaved"])
def test_jacobians_and_hessians_are_those_of_autograd(name, form):
    chosen, rejected, options = draw(name, 4, torch.float64)
    if form == "pair":
        x = torch.cat((chosen, rejected)).detach()
    else:
        x = (
            torch.cat((chosen, rejected)).detach()
            if form == "halves"
            else torch.stack((chosen, rejected), 1).flatten().detach()
        )
    options = {key: value.detach() if torch.is_tensor(value) else value for key, value in options.items()}

    def terms(x, reduction="none"):
        if form == "pair":
            return prefloss.bradley_terry_loss(x[:4], x[4:], reduction=reduction, **options)
        return prefloss.bradley_terry_loss_stacked(x, layout=form, reduction=reduction, **options)

    jacobian, hessian = torch.autograd.functional.jacobian, torch.autograd.functional.hessian
    torch.testing.assert_close(torch.func.jacrev(terms)(x), jacobian(terms, x), rtol=1e-14, atol=0.0)
    for reduction in ("mean", "sum"):

        def loss(x, reduction=reduction):
            return terms(x, reduction)

        expected = hessian(loss, x)
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(loss))(x), expected, rtol=1e-13, atol=1e-18)
        batch = torch.stack((x, x + 1.0))
        hessians = torch.vmap(torch.func.jacrev(torch.func.jacrev(loss)))(batch)
        torch.testing.assert_close(hessians[0], expected, rtol=1e-13, atol=1e-18)
        torch.testing.assert_close(hessians[1], hessian(loss, x + 1.0), rtol=1e-13, atol=1e-18)


def test_per_sample_gradients_add_up_to_the_gradient():
    model = torch.nn.Linear(5, 1)
    parameters = dict(model.named_parameters())
    chosen, rejected = torch.randn(8, 5), torch.randn(8, 5)

    def loss(parameters, a, b):
        outputs = (torch.func.functional_call(model, parameters, (x,)).squeeze(-1) for x in (a, b))
        return prefloss.bradley_terry_loss(*outputs, denominator=8)

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, chosen, rejected)
    whole = torch.func.grad(loss)(parameters, chosen, rejected)
    assert each["weight"].shape == (8, 1, 5)
    torch.testing.assert_close(each["weight"].sum(0), whole["weight"])


def test_an_ensemble_trains_as_its_members_do_alone():
    models = [torch.nn.Linear(5, 1) for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(models)
    bare = copy.deepcopy(models[0]).to("meta")
    chosen, rejected = torch.randn(8, 5), torch.randn(8, 5)

    def loss(parameters, buffers, a, b):
        outputs = (torch.func.functional_call(bare, (parameters, buffers), (x,)).squeeze(-1) for x in (a, b))
        return prefloss.bradley_terry_loss(*outputs, return_stats=True)

    gradients, stats = torch.vmap(torch.func.grad(loss, has_aux=True), in_dims=(0, 0, None, None))(
        parameters, buffers, chosen, rejected
    )
    for i, model in enumerate(models):
        value, expected = prefloss.bradley_terry_loss(
            model(chosen).squeeze(-1), model(rejected).squeeze(-1), return_stats=True
        )
        value.backward()
        torch.testing.assert_close(gradients["weight"][i], model.weight.grad)
        torch.testing.assert_close(stats.sums[i], expected.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.kernels  # torch's own derivatives have one
@pytest.mark.parametrize("call", [call for call in FEW if call.option == "default"], ids=str)
def test_a_third_derivative_is_refused_under_torch_func(call):
    tensors = {name: tensor.detach() for name, tensor in call.drawn().items()}
    place = call.places[0]

    def third(values):
        def loss(x):
            return call.loss({**tensors, place: values + x})

        return torch.func.grad(lambda x: torch.func.grad(lambda y: torch.func.grad(loss)(y).sum())(x).sum())(
            torch.tensor(0.0)
        )

    with pytest.raises(NotImplementedError, match="first and second derivatives"):
        third(tensors[place])


@pytest.mark.parametrize("call", FEW, ids=str)
def test_a_gradient_of_a_gradient_under_torch_func_is_that_of_autograd(call):
    """Each level of functorch records a derivative of its own."""
    tensors = {name: tensor.detach() for name, tensor in call.drawn().items()}
    place = next(name for name in call.places if name in DIFFERENTIATED)
    direction = torch.linspace(-1.0, 1.0, tensors[place].numel()).view_as(tensors[place])

    def loss(given):
        return call.loss({**tensors, place: given}).sum()

    _, expected = torch.autograd.functional.vhp(loss, tensors[place], direction)
    twice = torch.func.grad(lambda given: (torch.func.grad(loss)(given) * direction).sum())
    assert expected.any()
    assert_same_bits([twice(tensors[place])], [expected])

    def of_the_outer_level(given):
        return torch.func.grad(lambda factor: factor * loss(given))(torch.ones(()))

    once = torch.func.grad(loss)(tensors[place])
    assert_same_bits([torch.func.grad(of_the_outer_level)(tensors[place])], [once])


@pytest.mark.kernels  # calls them
def test_weights_without_the_sums_that_divide_them_are_refused():
    """Gradients that nothing divides look like any others."""
    ones, options = torch.ones(3), (*Numbers(), CODES["mean"], False, 0)
    tensors = (*Pairs(ones, ones, weight=ones), None, None, None)  # denominator, numbers, sums
    for operator, directions in ((paired_backward, ()), (paired_double_backward, (ones, ones, None))):
        with pytest.raises(Exception, match="sums must be given"):
            operator(*directions, torch.tensor(1.0), *tensors, *options)


@pytest.mark.kernels  # calls them
@pytest.mark.parametrize("numbers", [torch.ones(5), torch.ones(2, dtype=torch.float64)], ids=["float32", "too few"])
def test_numbers_of_an_operator_that_are_no_five_float64_are_refused(numbers):
    pairs = Pairs(torch.ones(3), torch.ones(3))
    with pytest.raises(Exception, match="numbers must be five float64"):
        paired_forward(*pairs, None, numbers, *Numbers(), CODES["mean"], False, 0)


@pytest.mark.kernels  # calls them
@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf"
)  # opcheck of torch 2.14 looks at it
@pytest.mark.parametrize(
    ("name", "reduction"),
    [
        pytest.param(name, reduction, marks=() if reduction in wanted else pytest.mark.slow)
        for name, wanted in {
            **{"default": ("mean",), "margin tensor": ("none",), "weight tensor": ("mean",)},
            **{"weight mask": ("sum",), "target tensor": ()},
        }.items()
        for reduction in REDUCTIONS
    ],
)
def test_the_operators_keep_their_promises(name, reduction):
    """Schema, fake kernels, autograd registration and tracing, by torch's own checks; rewards of each dtype in turn."""
    dtype = DTYPES[len(name) % 4]
    chosen, rejected, options = draw(name, 6, dtype)
    columns = {name: options.pop(name) for name in [*options] if torch.is_tensor(options[name])}
    pairs, numbers = Pairs(chosen, rejected, **columns), Numbers(**options)
    denominator = torch.tensor(3.0, dtype=torch.float64) if reduction == "mean" else None
    tensors = (*pairs, denominator, None)
    for return_stats in (False, True):
        fixed = (*numbers, CODES[reduction], return_stats, 0)
        torch.library.opcheck(paired_forward.operator, (*tensors, *fixed))
    loss, sums = paired_forward(*tensors, *fixed)
    upstream = torch.full_like(loss, -1.5).requires_grad_()
    torch.library.opcheck(paired_backward.operator, (upstream, *tensors, sums, *fixed))
    detached = [tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in (upstream, *tensors, sums)]
    directions = [torch.ones_like(tensor) if torch.is_tensor(tensor) else None for tensor in detached[1:4]]
    torch.library.opcheck(paired_double_backward.operator, (*directions, *detached, *fixed))
