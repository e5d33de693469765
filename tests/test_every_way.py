"""Every way of calling every layout gives the same: eager, traced, transformed, checkpointed or watched.

Compiled and exported: test_compiled.py. The same bits; but a gradient by index, whose slopes some ways round before they are
added up.
"""

from __future__ import annotations

import copy
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from calls import (
    ALL,
    DIFFERENTIATED,
    FUNCTIONS,
    GROUPS,
    NUMBERS,
    asking,
    assert_the_same_step,
    over_all,
    over_few,
    over_sorts,
)
from conftest import not_on_host
from rounding_bounds import assert_same_bits
from test_not_plain import Log
from torch._dynamo import compiled_autograd
from torch.autograd.graph import save_on_cpu
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import prefloss

# Importing what compiles defines script methods in torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")


def with_gradients(outputs, tensors):
    loss, *sums = outputs
    return [loss.detach(), *sums, *torch.autograd.grad(loss, asking(tensors), tensors["upstream"])]


def function_of(call, tensors):
    """(the call as a function of the tensors that it differentiates by alone, those tensors)."""
    names = [name for name in call.places if tensors[name].requires_grad]
    return lambda *leaves: call.outputs({**tensors, **dict(zip(names, leaves, strict=True))}), [
        tensors[name] for name in names
    ]


def by_vjp(call, tensors):
    function, leaves = function_of(call, tensors)
    outputs, vjp = torch.func.vjp(function, *(leaf.detach() for leaf in leaves))
    zeros = [torch.zeros_like(output) for output in outputs[1:]]
    return [*outputs, *vjp([tensors["upstream"], *zeros])]


def traced(call, tensors):
    return make_fx(lambda *values: call.step(dict(zip(tensors, values, strict=True))))(*tensors.values())(
        *tensors.values()
    )


def dispatched(call, tensors):
    with Log():
        return call.step(tensors)


def with_a_graph_of_the_gradients(call, tensors):
    loss, *sums = call.outputs(tensors)
    gradients = torch.autograd.grad(loss, asking(tensors), tensors["upstream"], create_graph=True)
    assert all(gradient.requires_grad for gradient in gradients)
    return [loss.detach(), *sums, *(gradient.detach() for gradient in gradients)]


def checkpointed(call, tensors):
    function, leaves = function_of(call, tensors)
    return with_gradients(checkpoint(lambda *leaves: tuple(function(*leaves)), *leaves, use_reentrant=False), tensors)


def checkpointed_reentrantly(call, tensors):
    function, leaves = function_of(call, tensors)
    loss, *sums = checkpoint(lambda *leaves: tuple(function(*leaves)), *leaves, use_reentrant=True)
    loss.backward(tensors["upstream"])
    gradients = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    return [loss.detach(), *sums, *gradients]


def saved_on_the_cpu(call, tensors):
    with save_on_cpu():
        return call.step(tensors)


def under_autocast(call, tensors):
    with torch.autocast(next(iter(tensors.values())).device.type, torch.bfloat16):
        return call.step(tensors)


def backward_in_another_thread(call, tensors):
    outputs = call.outputs(tensors)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(with_gradients, outputs, tensors).result(timeout=300)


WAYS = [
    *(by_vjp, traced, dispatched, with_a_graph_of_the_gradients, checkpointed, checkpointed_reentrantly),
    *(saved_on_the_cpu, under_autocast, backward_in_another_thread),
]


def assert_every_way(call, tensors):
    expected = call.step(tensors)
    for way in WAYS:
        assert_the_same_step(call, tensors, way(call, tensors), expected)


@over_all
def test_every_way_gives_the_same(call, device):
    tensors = call.drawn(device)
    assert_every_way(call, tensors)


@over_few
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_every_way_gives_the_same_in_other_dtypes(call, dtype, device):
    tensors = call.drawn(device, dtype)
    assert_every_way(call, tensors)


@pytest.mark.kernels  # long without them
@not_on_host
@over_few
def test_every_way_gives_the_same_where_threads_are_used(call, device):
    tensors = call.drawn(device, large=True)
    assert_every_way(call, tensors)


@over_all
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_value_is_the_same_and_has_no_graph(call, context, device):
    tensors = call.drawn(device)
    expected = call.outputs(tensors)
    with context():
        results = [call.outputs(tensors), call.outputs({name: tensor.clone() for name, tensor in tensors.items()})]
    for outputs in results:
        assert not any(output.requires_grad for output in outputs)
        assert_same_bits(outputs, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks at it itself
@over_few
def test_compiled_autograd_gives_the_same(call, device):
    """It records the backward pass as a graph, and asks each Function for a key."""
    drawn = call.drawn(device)
    tensors = {name: tensor.detach().requires_grad_(tensor.requires_grad) for name, tensor in drawn.items()}
    expected = call.step(tensors)
    loss, *sums = call.outputs(tensors)
    with compiled_autograd._enable(lambda graph: graph):
        loss.backward(tensors["upstream"])
    gradients = [tensor.grad for tensor in asking(tensors)]
    assert_the_same_step(call, tensors, [loss.detach(), *sums, *gradients], expected)


def rows_of(call, device, count=2):
    """([the tensors of each row], {argument: stacked}); the sizes of groups are those of all rows.

    Two rows: of 16 groups and more, some lie in other lanes than those of a row, and have other last bits.
    """
    rows = [call.drawn(device, seed=seed) for seed in range(count)]
    stacked = {name: torch.stack([row[name].detach() for row in rows]) for name in rows[0] if name != "group_sizes"}
    return rows, stacked


def mapped(call, rows, stacked, in_dims):
    """vmap of the call over the arguments in `stacked` that have a dimension; the others are the first row's."""

    def outputs(values):
        return tuple(call.outputs({**rows[0], **values}))

    values = {name: stacked[name] for name in in_dims}
    return torch.vmap(outputs, in_dims=(dict.fromkeys(values, 0),))(values)


@over_all
def test_vmap_is_a_loop_over_rows(call, device):
    """Over all arguments, those that the loss is differentiated by, and the others."""
    rows, stacked = rows_of(call, device)
    names = [name for name in call.places if name in stacked]
    differentiated = [name for name in names if rows[0][name].requires_grad]
    for mapped_over in (names, differentiated, [name for name in names if name not in differentiated]):
        if not mapped_over:
            continue
        together = mapped(call, rows, stacked, mapped_over)
        for i, row in enumerate(rows):
            alone = call.outputs({**rows[0], **{name: row[name] for name in mapped_over}})
            assert_same_bits([part[i] for part in together], alone)


def gradient_of(call, others):
    """A function of a dictionary of tensors: ([the gradients of the differentiable ones], loss and statistics)."""

    def loss(leaves, values):
        outputs = call.outputs({**others, **values, **leaves})
        return (outputs[0] * values["upstream"]).sum(), tuple(output.detach() for output in outputs)

    return torch.func.grad(loss, has_aux=True)


def split(call, tensors, rows):
    leaves = {name: tensor.detach() for name, tensor in tensors.items() if rows[0][name].requires_grad}
    return leaves, {name: tensor for name, tensor in tensors.items() if name not in leaves}


def check_rows_of_gradients(call, rows, stacked, function, device):
    gradients, outputs = function(*split(call, stacked, rows))
    for i, row in enumerate(rows):
        actual = [*(output[i] for output in outputs), *(gradient[i] for gradient in gradients.values())]
        assert_the_same_step(call, row, actual, call.step(row))


@over_all
def test_vmap_of_grad_is_a_loop_over_rows(call, device):
    rows, stacked = rows_of(call, device)
    sizes = {name: rows[0][name] for name in rows[0] if name == "group_sizes"}
    check_rows_of_gradients(call, rows, stacked, torch.vmap(gradient_of(call, sizes)), device)


@pytest.mark.slow  # the next test shows as much, but for vmap
@over_sorts
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what dynamo itself does
def test_compiled_grad_is_grad(call, device):
    torch.compiler.reset()
    tensors = call.drawn(device)
    sizes = {name: tensors[name] for name in tensors if name == "group_sizes"}
    others = {name: tensor for name, tensor in tensors.items() if name not in sizes}
    function = torch.compile(gradient_of(call, sizes), backend="aot_eager", fullgraph=True)
    gradients, outputs = function(*split(call, others, [tensors]))
    assert_the_same_step(call, tensors, [*outputs, *gradients.values()], call.step(tensors))


@pytest.mark.kernels  # sizes of groups break the graph
@over_sorts
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_vmap_of_grad_is_a_loop_over_rows(call, device):
    torch.compiler.reset()
    rows, stacked = rows_of(call, device)
    sizes = {name: rows[0][name] for name in rows[0] if name == "group_sizes"}
    function = torch.compile(torch.vmap(gradient_of(call, sizes)), backend="aot_eager", fullgraph=True)
    check_rows_of_gradients(call, rows, stacked, function, device)


@pytest.mark.slow
@over_sorts
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_vmap_is_a_loop_over_rows(call, device):
    torch.compiler.reset()
    rows, stacked = rows_of(call, device)
    names = [name for name in call.places if name in stacked]

    def function(stacked):
        return mapped(call, rows, stacked, names)

    together = torch.compile(function, backend="aot_eager", fullgraph=True)(stacked)
    for i, row in enumerate(rows):
        assert_same_bits([part[i] for part in together], call.outputs(row))


@over_few
def test_grad_of_grad_is_the_second_derivative(call, device):
    """Each level of torch.func records a derivative, and so does autograd around them: a missing one is a silent zero."""
    tensors = {name: tensor.detach() for name, tensor in call.drawn(device, torch.float64).items()}
    upstream, place = tensors["upstream"], call.places[0]
    x, direction = tensors[place], torch.linspace(-1.0, 2.0, tensors[place].numel(), dtype=torch.float64, device=device)

    def loss(x):
        return (call.loss({**tensors, place: x}) * upstream).sum()

    def along(gradient):
        return lambda x: (gradient(x).flatten() * direction).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((gradient.flatten() * direction).sum(), leaf)
    assert bool((expected != 0).any())
    inner = torch.func.grad(loss)
    ways = torch.func.grad(along(inner))(x), *torch.autograd.grad(along(inner)(leaf), leaf)
    for found in ways:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


# What the loss is not differentiated by, and may be a floating-point tensor.
ASKING = [
    (call, place)
    for call in ALL
    for place in call.places
    if place not in (*DIFFERENTIATED, "mask", "group_sizes")
    and not place.endswith("_index")
    and call.option not in ("mask", "integer denominator")
]


@pytest.mark.parametrize(("call", "place"), ASKING, ids=lambda value: str(value))
def test_a_gradient_that_there_is_not_is_refused_by_name(call, place, device):
    rows, stacked = rows_of(call, device)
    asked = stacked[place].float()

    def one(value):
        return call.loss({**rows[0], place: value}).sum()

    def many(values):
        return mapped(call, rows, {place: values}, [place])[0].sum()

    for way in (
        lambda: torch.func.grad(one)(asked[0]),
        lambda: torch.func.grad(many)(asked),
        lambda: one(asked[0].clone().requires_grad_()),
        lambda: many(asked.clone().requires_grad_()),
    ):
        with pytest.raises(ValueError, match=f"^{place} must not require a gradient"):
            way()


def names_of(function):
    return {*inspect.signature(function).parameters}


# What each function takes, by name.
TAKEN = {layout: names_of(function) for layout, function in FUNCTIONS.items()}
TAKEN["module"] = names_of(prefloss.BradleyTerryLoss) | names_of(prefloss.BradleyTerryLoss().forward)


def test_every_loss_over_pairs_is_in_the_table_of_calls():
    losses = {name for name in prefloss.__all__ if name.startswith("bradley_terry_loss")}
    assert losses <= {function.__name__ for function in FUNCTIONS.values()}


@pytest.mark.parametrize("layout", FUNCTIONS)
def test_every_argument_of_a_function_is_in_the_table_of_calls(layout):
    """One that is not there is in no test over that table: a way that forgets it would not be seen."""
    layouts = GROUPS if layout in GROUPS else (layout,)  # the groups have one function
    calls = [call for call in ALL if call.layout in layouts]
    assert {name for call in calls for name in (*call.places, *call.numbers)} == TAKEN[layout]


@over_all
def test_no_option_is_without_effect(call, device):
    """One that is taken and then dropped would be the same in every way."""
    tensors = call.drawn(device)
    arguments = {**{name: tensors[name] for name in call.places}, **call.numbers}
    outputs = call.outputs(tensors)
    for name in {**call.optional, **NUMBERS.get(call.option, {})}:
        if call.layout == "long" and name in ("weight", "average", "reduction"):
            continue  # it is one group, by whose weight the mean divides
        result = call.function(**{other: value for other, value in arguments.items() if other != name})
        without = [result[0], result[1].sums] if isinstance(result, tuple) else [result]
        assert len(without) < len(outputs) or not torch.equal(without[0], outputs[0]), name


@over_all
def test_spelling_out_the_defaults_changes_nothing(call, device):
    defaults = {"weight": None, "beta": 1, "label_smoothing": 0, "center_rewards_coefficient": -0.0}
    defaults |= {"reduction": "mean", "denominator": None, "margin": 0, "return_stats": False}
    if call.layout not in GROUPS:
        defaults["target"] = 1
    tensors = call.drawn(device)
    own = {name: tensors[name] for name in call.places}
    result = call.function(**{**defaults, **call.numbers, **own})
    outputs = [result[0], result[1].sums] if isinstance(result, tuple) else [result]
    assert_same_bits(with_gradients(outputs, tensors), call.step(tensors))


@over_all
def test_none_is_off(call, device):
    """As a trainer's configuration holds it."""
    tensors = call.drawn(device)
    given = {*call.places, *call.numbers, "relevance", "mask", "group_sizes", "average", "ties", "return_stats"}
    off = dict.fromkeys(TAKEN[call.layout] - given)
    result = call.function(**{**off, **call.numbers}, **{name: tensors[name] for name in call.places})
    outputs = [result[0], result[1].sums] if isinstance(result, tuple) else [result]
    assert_same_bits(with_gradients(outputs, tensors), call.step(tensors))


def test_modules_copied_give_the_same():
    chosen, rejected = (tensor.requires_grad_() for tensor in torch.randn(2, 9))
    module = prefloss.BradleyTerryLoss(beta=0.5, label_smoothing=0.1)
    for margin in (0.25, torch.rand(9)):
        expected = module(chosen, rejected, margin=margin)
        assert_same_bits([copy.deepcopy(module)(chosen, rejected, margin)], [expected])  # the published order
