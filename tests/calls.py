"""Every call of every layout, in one table: the tests of ways, memory, dtypes and devices each run over it.

A call is a layout and an option. Whoever adds a layout or an option adds it here, and every such test has it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import pytest
import torch
from rounding_bounds import assert_same_bits
from sample_inputs import on

import prefloss

# The arguments that the loss is differentiated by; they ask for gradients.
DIFFERENTIATED = ("chosen", "rejected", "rewards", "scores", "margin")
FIXED_BY_THE_MODULE = tuple(inspect.signature(prefloss.BradleyTerryLoss).parameters)


def the_module(chosen, rejected, **options):
    fixed = {name: options.pop(name) for name in FIXED_BY_THE_MODULE if name in options}
    return prefloss.BradleyTerryLoss(**fixed)(chosen, rejected, **options)


FUNCTIONS = {
    "paired": prefloss.bradley_terry_loss,
    "module": the_module,
    "halves": prefloss.bradley_terry_loss_stacked,
    "interleaved": prefloss.bradley_terry_loss_stacked,
    "grouped": prefloss.bradley_terry_loss_grouped,
    "masked": prefloss.bradley_terry_loss_grouped,
    "ragged": prefloss.bradley_terry_loss_grouped,
    "long": prefloss.bradley_terry_loss_grouped,
    "indexed": prefloss.bradley_terry_loss_indexed,
}
GROUPS = ("grouped", "masked", "ragged", "long")
TENSORS_OF_PAIRS = ("margin", "target")  # options that groups do not take as tensors
NUMBERS = {
    **{"default": {}, "beta": {"beta": 0.3}, "margin number": {"margin": 0.7}, "target number": {"target": 0.25}},
    **{
        "label smoothing": {"label_smoothing": 0.125},
        "flip rate": {"flip_rate": 0.125},
        "centring": {"center_rewards_coefficient": 0.01},
    },
    **{"sum": {"reduction": "sum"}, "none": {"reduction": "none"}, "denominator number": {"denominator": 3.5}},
    **{"statistics": {"return_stats": True}, "ties half": {"ties": "half"}, "average pairs": {"average": "pairs"}},
}
# What is a tensor, by option: {argument: what to draw}.
TENSORS = {
    **{"margin": {"margin": "normal"}, "weight": {"weight": "weights"}, "mask": {"weight": "mask"}},
    **{"target": {"target": "shares"}, "denominator": {"denominator": "number"}},
    **{"integer denominator": {"denominator": "integer"}, "denominator of one element": {"denominator": "element"}},
    "everything": {"margin": "normal", "weight": "weights", "target": "shares", "denominator": "number"},
}
TENSORS["weighted statistics"] = TENSORS["weight"]
NUMBERS["weighted statistics"] = NUMBERS["statistics"]
NUMBERS["everything"] = {**NUMBERS["beta"], **NUMBERS["label smoothing"], **NUMBERS["centring"], "return_stats": True}


@dataclass(frozen=True)
class Call:
    """One call; see ALL."""

    layout: str
    option: str

    def __str__(self):
        return f"{self.layout}-{self.option}".replace(" ", "_")

    @property
    def numbers(self):
        """The arguments that are no tensors."""
        layout = {"layout": self.layout} if self.layout in ("halves", "interleaved") else {}
        return {**layout, **NUMBERS.get(self.option, {})}

    @property
    def optional(self):
        """{argument: what to draw} of the options that are tensors."""
        refused = TENSORS_OF_PAIRS if self.layout in GROUPS else ()
        return {name: kind for name, kind in TENSORS.get(self.option, {}).items() if name not in refused}

    @property
    def places(self):
        """The names of the arguments that are tensors."""
        return [*SHAPES[self.layout][0], *self.optional]

    def shapes(self, large=False):
        """({argument: shape} of the layout's own tensors, the shape of what has one entry a pair, or a group)."""
        own, entries = SHAPES[self.layout]
        if not large:
            return own, entries
        times = 3 if self.layout == "long" else LARGE
        own = {name: (times * size, *others) for name, (size, *others) in own.items()}
        return own, (times * entries[0], *entries[1:])

    def drawn(self, device="cpu", dtype=torch.float32, seed=0, large=False):
        """{argument: tensor}, and `upstream`; those that the loss is differentiated by are leaves that ask for gradients."""
        generator = torch.Generator().manual_seed(seed)
        own, entries = self.shapes(large)
        tensors = {name: self._own(name, shape, generator) for name, shape in own.items()}
        tensors = {name: tensor if name == "group_sizes" else tensor.to(device) for name, tensor in tensors.items()}
        for name, kind in self.optional.items():
            tensors[name] = draw(kind, entries, generator).to(device)
        terms = entries if self.numbers.get("reduction") == "none" else ()
        tensors["upstream"] = (0.25 + torch.rand(terms, generator=generator)).to(device)
        for name, tensor in tensors.items():
            if name in DIFFERENTIATED:
                wide = dtype if name != "margin" else torch.float64 if dtype is torch.float64 else torch.float32
                tensors[name] = tensor.to(wide).requires_grad_()
            elif name == "upstream" and dtype is torch.float64:
                tensors[name] = tensor.double()
        return tensors

    def _own(self, name, shape, generator):
        if name in ("ranks", "relevance"):
            return torch.randint(0, 5, shape, generator=generator)
        if name == "mask":
            return draw(name, shape, generator)
        if name == "group_sizes":
            return torch.tensor([5, 0, 9, 1, 8]).repeat(shape[0] // 5)
        if name.endswith("_index"):
            return torch.randint(0, 9, shape, generator=generator)
        return 3.0 * torch.randn(shape, generator=generator)

    @property
    def function(self):
        return FUNCTIONS[self.layout]

    def result(self, tensors):
        """What the function returns."""
        return self.function(**{name: tensors[name] for name in self.places}, **self.numbers)

    def loss(self, tensors):
        return self.outputs(tensors)[0]

    def outputs(self, tensors):
        """[loss], or [loss, sums of the statistics]."""
        result = self.result(tensors)
        return [result[0], result[1].sums] if isinstance(result, tuple) else [result]

    def step(self, tensors, leaves=None):
        """The loss and sums, and the gradients of the leaves (of the tensors themselves, unless they are made from others)."""
        loss, *sums = self.outputs(tensors)
        return [loss.detach(), *sums, *torch.autograd.grad(loss, asking(leaves or tensors), tensors["upstream"])]


def asking(tensors):
    return [tensor for tensor in tensors.values() if tensor.requires_grad]


def draw(kind, shape, generator):
    if kind in ("number", "integer", "element"):
        return torch.tensor({"number": 3.5, "integer": 7, "element": [3.5]}[kind])
    uniform = torch.rand(shape, generator=generator)
    if kind == "normal":
        return torch.randn(shape, generator=generator)
    if kind == "mask":
        return uniform < 0.7
    return (uniform * 1.25 - 0.25).clamp(min=0.0) if kind == "weights" else uniform


PAIRS = (2, 3, 4, 5)
SHAPES = {
    "paired": ({"chosen": PAIRS, "rejected": PAIRS}, PAIRS),
    "module": ({"chosen": (11,), "rejected": (11,)}, (11,)),
    "halves": ({"rewards": (4, 3, 4, 5)}, PAIRS),
    "interleaved": ({"rewards": (24,)}, (12,)),
    "grouped": ({"rewards": (6, 5), "ranks": (6, 5)}, (6,)),
    "masked": ({"rewards": (6, 5), "relevance": (6, 5), "mask": (6, 5)}, (6,)),
    "ragged": ({"rewards": (23,), "ranks": (23,), "group_sizes": (5,)}, (5,)),
    "long": ({"rewards": (1, 1100), "ranks": (1, 1100)}, (1,)),
    "indexed": ({"scores": (9,), "chosen_index": (40,), "rejected_index": (40,)}, (40,)),
}
LARGE = 1000  # times as many pairs, groups or comparisons: several threads
OF_GROUPS = ("ties half", "average pairs")
OF_PAIRS = ("target number", *TENSORS_OF_PAIRS)
OF_MASKED = ("default", "everything", "none", "ties half", "average pairs")  # other groups have the others
OPTIONS = tuple(dict.fromkeys((*NUMBERS, *TENSORS)))
ALL = [
    Call(layout, option)
    for layout in FUNCTIONS
    for option in OPTIONS
    if option not in (OF_PAIRS if layout in GROUPS else OF_GROUPS) and (layout != "masked" or option in OF_MASKED)
]
# For tests that take long: each layout plain, with all options together, and without a reduction.
FEW = [call for call in ALL if call.option in ("default", "everything", "none")]

# For tests that compile one call each: every operator with all its options, and the plain call. The rest of the few is slow.
COMPILED = [
    Call("paired", "default"),
    *(Call(layout, "everything") for layout in ("paired", "halves", "grouped", "masked", "ragged", "indexed")),
]


def marks_of(call):
    """What is tried with all calls has the few of each layout, and each option with every third layout; the others are slow."""
    turn = list(FUNCTIONS).index(call.layout) + OPTIONS.index(call.option)
    return () if call in FEW or turn % 3 == 0 else pytest.mark.slow


over_all = pytest.mark.parametrize("call", [pytest.param(call, marks=marks_of(call)) for call in ALL], ids=str)
over_few = pytest.mark.parametrize("call", FEW, ids=str)
# Where another test that compiles has each of those too: one call of each sort of operator.
SORTS = [Call(layout, "everything") for layout in ("paired", "grouped", "indexed")]


def slow_but_for(calls):
    """Parametrises over the few; those that are not in `calls` are slow."""
    rows = [call if call in calls else pytest.param(call, marks=pytest.mark.slow) for call in FEW]
    return pytest.mark.parametrize("call", rows, ids=str)


over_compiled, over_sorts = slow_but_for(COMPILED), slow_but_for(SORTS)


def over_places(calls=ALL, accepts=lambda place: True):
    """Parametrises over calls and, of each, the tensors that its option takes; those of its layout where it is one of the few."""
    rows = [
        pytest.param(call, place, marks=marks_of(call), id=f"{call}-{place}")
        for call in calls
        for place in ([*call.places, "upstream"] if call in FEW else call.optional)
        if accepts(place)
    ]
    return pytest.mark.parametrize(("call", "place"), rows)


def assert_the_same_step(call, tensors, actual, expected):
    """The same bits; but a gradient by index may be summed from slopes that were rounded to float32, or after they were."""
    if call.layout != "indexed" or len(actual) == len(call.outputs(tensors)):
        assert_same_bits(actual, expected, signed_zeros=False)
        return
    place = next(i for i, tensor in enumerate(expected) if tensor.shape == tensors["scores"].shape)
    assert_same_bits(*([*step[:place], *step[place + 1 :]] for step in (actual, expected)), signed_zeros=False)
    # Each slope is rounded once in both ways, and where it is divided first, three times more: the factor, and its two products.
    # The sum is rounded in both ways; where it is divided after, so is its product with the upstream gradient.
    u = torch.finfo(torch.float32).eps / 2
    error = (actual[place] - expected[place]).abs()
    assert bool((error <= 5 * u * slopes_of_items(call, tensors) + 3 * u * expected[place].abs()).all())


def slopes_of_items(call, tensors):
    """For each item the sum of the absolute values of the slopes that its gradient adds up."""
    indices = [tensors[name] for name in ("chosen_index", "rejected_index")]
    pair = [tensors["scores"].detach()[index].requires_grad_() for index in indices]
    options = {name: tensors[name] for name in call.optional}
    result = prefloss.bradley_terry_loss(*pair, **options, **call.numbers)
    loss = result[0] if isinstance(result, tuple) else result
    total = torch.zeros_like(tensors["scores"])
    for index, gradient in zip(indices, torch.autograd.grad(loss, pair, tensors["upstream"]), strict=True):
        total = total.index_add(0, index, gradient.abs())
    return total.detach()


def moved(tensors, device):
    return {name: tensor if name == "group_sizes" else on(device, tensor) for name, tensor in tensors.items()}
