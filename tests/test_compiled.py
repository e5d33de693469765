"""The loss under torch.compile and torch.export: the bits of the eager call, or an error; and what does not compile anew."""

from __future__ import annotations

import io

import pytest
import torch
from calls import ALL, COMPILED, OF_GROUPS, Call, asking, assert_the_same_step
from sample_inputs import DTYPES, OPTIONS_ALONE, REDUCTIONS, laid_out
from test_every_way import with_gradients
from test_transforms import assert_same_bits, draw
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.testing import CompileCounterWithBackend

import prefloss
from prefloss import PairStats
from prefloss.pairs import Numbers

# Importing what compiles defines script methods in torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def differentiated(loss, chosen, rejected, options):
    """(loss, *gradients) with an upstream gradient that is not 1."""
    margin = options.get("margin")
    inputs = [chosen, rejected, *([margin] if isinstance(margin, torch.Tensor) else [])]
    upstream = torch.linspace(-1.0, 2.0, loss.numel()).to(loss.dtype).view_as(loss)
    return loss.detach(), *torch.autograd.grad(loss, inputs, upstream)


def every_loss(cases):
    """What is compiled as one graph: the loss of each case, and its statistics."""
    return [prefloss.bradley_terry_loss(a, b, return_stats=stats, **options) for a, b, options, stats in cases]


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["every_other", "contiguous"])
def test_compiled_is_eager_bit_for_bit(layout):
    """Each option with statistics and without."""
    function = torch.compile(every_loss, fullgraph=True, backend=aot_eager)
    cases = []
    for i, name in enumerate(OPTIONS_ALONE):
        chosen, rejected, options = draw(name, 600, DTYPES[i % 4], seed=i)
        chosen, rejected = (laid_out(tensor.detach(), layout).requires_grad_() for tensor in (chosen, rejected))
        for k, stats in enumerate((False, True)):
            cases.append((chosen, rejected, {**options, "reduction": REDUCTIONS[(i + k) % 3]}, stats))
    for case, compiled, eager in zip(cases, function(cases), every_loss(cases), strict=True):
        *pair, options, stats = case
        if stats:
            (compiled, compiled_stats), (eager, eager_stats) = compiled, eager
            assert type(compiled_stats) is PairStats
            assert_same_bits([compiled_stats.sums], [eager_stats.sums])
        assert compiled.requires_grad
        assert (compiled.shape, compiled.dtype) == (eager.shape, eager.dtype)
        inputs = [*pair, *(value for key, value in options.items() if key == "margin" and torch.is_tensor(value))]
        upstream = torch.full_like(eager, -1.5)
        assert_same_bits([compiled], [eager])
        assert_same_bits(
            torch.autograd.grad(compiled, inputs, upstream, retain_graph=True),
            torch.autograd.grad(eager, inputs, upstream),
        )


def test_a_compiled_training_step_is_the_eager_one():
    """Inductor fuses what is around the losses, and leaves them alone."""

    def step(x, y):
        return prefloss.bradley_terry_loss(2.0 * x, y + 1.0, beta=0.5, return_stats=True)

    chosen, rejected, _ = draw("default", 1000)
    results = [step(chosen, rejected), torch.compile(step, fullgraph=True)(chosen, rejected)]
    assert_same_bits(*(torch.autograd.grad(loss, (chosen, rejected)) for loss, _ in results))
    assert_same_bits(*((loss.detach(), stats.sums) for loss, stats in results))


def compiled(function, **how):
    """(the compiled function, what counts its graphs)."""
    counter = CompileCounterWithBackend("aot_eager")
    return torch.compile(function, fullgraph=True, backend=counter, **how), counter


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *(pytest.param("pair", name, marks=pytest.mark.slow) for name in ("default", "margin tensor")),
        ("stacked", "weight tensor"),
    ],
)
def test_other_sizes_do_not_compile_again(name, form):
    def loss(a, b, options):
        if form == "stacked":
            return prefloss.bradley_terry_loss_stacked(torch.cat((a, b)), return_stats=True, **options)
        return prefloss.bradley_terry_loss(a, b, return_stats=True, **options)

    function, counter = compiled(loss, dynamic=True)
    frames = []
    for count in (7, 5, 40_000, 2):
        case = draw(name, count, seed=count)
        (mine, stats), (its, expected) = function(*case), loss(*case)
        assert_same_bits(differentiated(mine, *case), differentiated(its, *case))
        assert_same_bits([stats.sums], [expected.sums])
        frames.append(counter.frame_count)
    assert set(frames) == {frames[0]}
    for count in (1, 0):  # torch compiles these two sizes for themselves, each at most as often as the first call
        case = draw(name, count)
        (mine, _), (its, _) = function(*case), loss(*case)
        assert_same_bits(differentiated(mine, *case), differentiated(its, *case))
    assert counter.frame_count <= 3 * frames[0]


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param([3.5, 2.25, 7.0, 11.125, 1e6, 0.5], id="float", marks=pytest.mark.slow),
        pytest.param([3, 4, 17, 1000, 12, 8], id="integer"),
        pytest.param([torch.tensor(n) for n in (3, 4, 17, 1000)], id="tensor"),
    ],
)
def test_another_denominator_does_not_compile_again(numbers):
    function, counter = compiled(lambda a, b, n: prefloss.bradley_terry_loss(a, b, denominator=n))
    chosen, rejected, _ = draw("default", 50)
    frames = []
    for number in numbers:
        losses = function(chosen, rejected, number), prefloss.bradley_terry_loss(chosen, rejected, denominator=number)
        assert_same_bits(*(differentiated(loss, chosen, rejected, {}) for loss in losses))
        frames.append(counter.frame_count)
    assert len(set(frames[1:])) == 1  # torch takes the first number for a constant


@pytest.mark.parametrize(
    "names",
    [Numbers._fields, *(pytest.param((name,), marks=pytest.mark.slow) for name in Numbers._fields)],
    ids="-".join,
)
def test_other_numbers_do_not_compile_again(names):
    """As a schedule changes them from step to step; all at once, or one alone."""
    function, counter = compiled(lambda a, b, x: prefloss.bradley_terry_loss(a, b, **dict.fromkeys(names, x)))
    chosen, rejected, _ = draw("default", 50)
    frames = []
    for step in range(8):
        losses = (
            function(chosen, rejected, step / 41),
            prefloss.bradley_terry_loss(chosen, rejected, **dict.fromkeys(names, step / 41)),
        )
        assert_same_bits(*(differentiated(loss, chosen, rejected, {}) for loss in losses))
        frames.append(counter.frame_count)
    assert len(set(frames[2:])) == 1  # torch takes the first number for a constant, and 0 for one of its own


@pytest.mark.parametrize("option", ["denominator", *Numbers._fields])
def test_a_number_may_be_made_of_a_size_that_is_symbolic(option):
    class Model(torch.nn.Module):
        def forward(self, chosen, rejected):
            return prefloss.bradley_terry_loss(chosen, rejected, **{option: 1 / chosen.shape[0]})

    size = torch.export.Dim("size", min=2)
    program = torch.export.export(
        Model(), (torch.randn(8), torch.randn(8)), dynamic_shapes=({0: size}, {0: size}), strict=False
    )
    for count in (3, 8, 500):
        pair = torch.randn(2, count)
        assert_same_bits([program.module()(*pair)], [Model()(*pair)])


@pytest.mark.parametrize(
    ("options", "error"),
    [({"beta": float("inf")}, ValueError), ({"weight": torch.ones(3)}, ValueError), ({"target": "1"}, TypeError)],
    ids=["beta", "weight", "target"],
)
def test_a_bad_argument_is_an_error_when_compiled_too(options, error):
    chosen, rejected, _ = draw("default", 50)
    function = torch.compile(lambda a, b: prefloss.bradley_terry_loss(a, b, **options), backend="aot_eager")
    with pytest.raises(error, match=next(iter(options))):
        function(chosen, rejected)


class Exported(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, chosen, rejected, weight):
        loss, stats = prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True, **self.options)
        mean = prefloss.bradley_terry_loss(chosen, rejected, denominator=2 * chosen.shape[0])  # a number, symbolic
        return loss, mean, stats.sums


@pytest.mark.parametrize(
    ("options", "saved"),
    [({}, True), ({"beta": 0.5, "reduction": "none"}, False)],
    ids=["default-saved-and-loaded", "with-options-as-is"],
)
def test_an_exported_program_serves_every_batch_size(options, saved):
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(
        Exported(**options), (torch.randn(6), torch.randn(6), torch.ones(6)), dynamic_shapes=(batch, batch, batch)
    )
    if saved:
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        program = torch.export.load(file)
    for count in (2, 6, 601, 40_000):
        chosen, rejected, other = draw("weight tensor", count)
        case = chosen, rejected, other["weight"]
        results = [module(*case) for module in (program.module(), Exported(**options))]
        assert_same_bits(*(differentiated(loss + mean, chosen, rejected, {}) for loss, mean, _ in results))
        assert_same_bits(results[0][2:], results[1][2:])


def all_outputs(calls, many):
    return [call.outputs(tensors) for call, tensors in zip(calls, many, strict=True)]


# A graph for each layout: one compilation. Pairs have each option, groups what is an option of theirs alone.
def goes_its_own_way(call):
    return call in COMPILED or call.layout == "paired" or (call.layout == "grouped" and call.option in OF_GROUPS)


def by_layout(calls):
    return [
        [call for call in calls if call.layout == layout] for layout in dict.fromkeys(call.layout for call in calls)
    ]


def over_layouts(*without):
    calls = [call for call in ALL if call.layout not in without]
    some = by_layout([call for call in calls if goes_its_own_way(call)])
    rest = by_layout([call for call in calls if call.layout != "paired"])
    graphs = [*some, *(pytest.param(each, marks=pytest.mark.slow) for each in rest)]
    return pytest.mark.parametrize("calls", graphs, ids=lambda each: f"{each[0].layout}-{len(each)}")


# Inductor takes long, and leaves our operators as aot_eager does; it builds a program for what is around each of them.
FOR_INDUCTOR = [Call("paired", "none"), *(Call(layout, "everything") for layout in ("paired", "masked", "indexed"))]


def check_compiled(function, calls, device):
    many = [call.drawn(device) for call in calls]
    results = function(calls, many)
    leaves = [leaf for tensors in many for leaf in asking(tensors)]
    upstream = [tensors["upstream"] for tensors in many]
    gradients = iter(torch.autograd.grad([loss for loss, *_ in results], leaves, upstream))
    for call, tensors, (loss, *sums) in zip(calls, many, results, strict=True):
        assert not any(part.requires_grad for part in sums)
        actual = [loss.detach(), *sums, *(next(gradients) for _ in asking(tensors))]
        assert_the_same_step(call, tensors, actual, call.step(tensors))


@over_layouts()
def test_compiled_it_gives_the_same(calls, device):
    check_compiled(torch.compile(all_outputs, backend="aot_eager", fullgraph=True), calls, device)


@pytest.mark.slow
def test_compiled_by_inductor_it_gives_the_same(device):
    check_compiled(torch.compile(all_outputs, fullgraph=True), FOR_INDUCTOR, device)


class EveryCall(torch.nn.Module):
    def __init__(self, calls, names):
        super().__init__()
        self.calls, self.names = calls, names

    def forward(self, *values):
        values = iter(values)
        return all_outputs(self.calls, [{name: next(values) for name in names} for names in self.names])


@over_layouts("module")
def test_exported_it_gives_the_same(calls):
    many = [call.drawn() for call in calls]
    flat = tuple(tensor for tensors in many for tensor in tensors.values())
    program = torch.export.export(EveryCall(calls, [list(tensors) for tensors in many]), flat)
    for call, tensors, outputs in zip(calls, many, program.module()(*flat), strict=True):
        assert_the_same_step(call, tensors, with_gradients(outputs, tensors), call.step(tensors))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # what dynamo itself does
def test_vmap_when_compiled_is_vmap():
    function = torch.vmap(lambda a, b: prefloss.bradley_terry_loss(a, b, return_stats=True))
    case = [tensor.requires_grad_() for tensor in torch.randn(2, 4, 9)]
    results = function(*case), torch.compile(function, fullgraph=True, backend="aot_eager")(*case)
    assert_same_bits(*(torch.autograd.grad(losses.sum(), case) for losses, _ in results))
    assert_same_bits(*((losses.detach(), stats.sums) for losses, stats in results))
