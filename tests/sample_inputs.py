"""Rewards and options for the tests: dtypes, memory layouts and awkward values, drawn from a seed or by Hypothesis."""

from __future__ import annotations

import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "every_other", "column", "all_but_last", "half", "transposed", "misaligned"]
REDUCTIONS = ["mean", "sum", "none"]

# Zeros, subnormals of every dtype, both sides of where exp(-z) and the dtypes end, huge numbers (infinite in float16).
FINITE_VALUES = [
    *(0.0, -0.0, 5e-324, 1e-310, 1e-45, 1e-40, 6e-8, -6e-8, 1e-30, 0.6931, 0.6932, 17.0, 88.0, -88.0, 90.0, -90.0),
    *(103.0, 104.0, -104.0, 708.0, 745.0, -745.0, 1e4, -1e4, 3e38, -3e38),
]
VALUES = [*FINITE_VALUES, math.inf, -math.inf, math.nan]
KINDS = {"moderate": (), "extreme": FINITE_VALUES, "not finite": VALUES}
# One entry a pair each; each option alone. A callable takes (generator, shape, dtype).
OPTIONS_ALONE = {
    "default": {},
    "beta": {"beta": 0.1},
    "negative beta": {"beta": -2.5},
    "margin number": {"margin": 0.7},
    "margin tensor": {"margin": lambda random, shape, dtype: real(random.normal(size=shape), dtype)},
    "weight tensor": {"weight": lambda random, shape, dtype: real(weights(random, shape), dtype)},
    "weight mask": {"weight": lambda random, shape, dtype: torch.from_numpy(np.asarray(random.random(shape) < 0.7))},
    "target number": {"target": 0.3},
    "target tensor": {"target": lambda random, shape, dtype: real(targets(random, shape), dtype)},
    "label smoothing": {"label_smoothing": 0.1},
    "most label smoothing": {"label_smoothing": 0.5},
    "centring": {"center_rewards_coefficient": 0.01},
}


def in_turns(*axes):
    """Combinations in which the entries of the axes take turns; the others are slow.

    Of three axes or more any two entries of two axes meet; of two, each entry of the longer one has one of the shorter.
    """
    axes = [list(axis) for axis in axes]
    fewest = min(map(len, axes))
    return [
        pytest.param(
            *(axis[place] for axis, place in zip(axes, places, strict=True)),
            marks=() if sum(places) % fewest == 0 else pytest.mark.slow,
        )
        for places in itertools.product(*(range(len(axis)) for axis in axes))
    ]


def real(values, dtype):
    """A float64 array, or number, as a tensor of `dtype`."""
    return torch.from_numpy(np.array(values, dtype=np.float64)).to(dtype)


def weights(random, shape):
    """Between 0.01 and 10, a fifth of them 0 (and -0)."""
    drawn = np.exp(random.uniform(math.log(0.01), math.log(10.0), shape))
    return drawn * random.choice([0.0, -0.0, *([1.0] * 8)], shape)


def targets(random, shape):
    """Uniform in [0, 1], with exact zeros, halves and ones among them."""
    return np.where(random.random(shape) < 0.4, random.choice([0.0, 0.5, 1.0], shape), random.random(shape))


def rewards(random, shape, dtype, values=()):
    """Two tensors: moderate and far apart rewards, ties, and a third from `values` where any are given."""
    chosen, rejected = 3.0 * random.normal(size=shape), 3.0 * random.normal(size=shape)
    chosen = np.where(random.random(shape) < 0.15, random.uniform(-110.0, 110.0, shape), chosen)
    rejected = np.where(random.random(shape) < 0.05, chosen, rejected)
    if len(values):
        chosen = np.where(random.random(shape) < 0.18, random.choice(values, shape), chosen)
        rejected = np.where(random.random(shape) < 0.18, random.choice(values, shape), rejected)
    return real(chosen, dtype), real(rejected, dtype)


def options_alone(name, random, shape, dtype):
    """The options called `name` in OPTIONS_ALONE, with tensors drawn."""
    return {
        key: value(random, shape, dtype) if callable(value) else value for key, value in OPTIONS_ALONE[name].items()
    }


def laid_out(tensor, layout):
    """The same values with other strides or offset; NaN (True, the largest integer) lies between, where no kernel must read."""
    shape = tuple(tensor.shape)

    def surrounded(larger):
        between = math.nan
        if not tensor.dtype.is_floating_point:
            between = True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max
        return torch.full(larger, between, dtype=tensor.dtype, device=tensor.device)

    if layout == "every_other":
        result = surrounded((*shape[:-1], 2 * shape[-1]))[..., ::2]
    elif layout == "column":
        result = surrounded((*shape, 3))[..., 1]
    elif layout == "all_but_last":
        result = surrounded((*shape[:-1], shape[-1] + 1))[..., :-1]
    elif layout == "half":
        result = surrounded((2 * shape[0], *shape[1:]))[shape[0] :]
    elif layout == "misaligned":
        result = surrounded((1 + math.prod(shape),))[1:].view(shape)
    elif layout == "transposed":
        backwards = tuple(reversed(range(len(shape))))
        result = surrounded(tuple(reversed(shape))).permute(backwards)
    else:
        result = surrounded(shape)
    return result.copy_(tensor)


def on(device, value):
    """A tensor with its strides and what lies between on another device; anything else as it is."""
    if not isinstance(value, torch.Tensor) or value.device == torch.device(device):
        return value
    memory = value.untyped_storage().nbytes() // value.itemsize
    moved = value.detach().as_strided((memory,), (1,), 0).to(device)
    moved = moved.as_strided(value.shape, value.stride(), value.storage_offset())
    return moved.requires_grad_(value.requires_grad)


def array(tensor):
    """What the reference takes: bfloat16 as float32, numbers as they are."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()


def arrays(options):
    return {name: array(value) for name, value in options.items()}


SHAPES = st.one_of(
    st.tuples(st.integers(0, 70)),
    st.sampled_from([(511,), (512,), (513,), (1030,), (8191,), (8193,)]),
    st.tuples(st.integers(0, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(0, 5)),
)


@st.composite
def paired_calls(draw, dtype, shapes=SHAPES):
    """(chosen, rejected, options): any shape, layouts, values and options together."""
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.sampled_from([(), FINITE_VALUES, VALUES]))

    def column(values):
        return laid_out(values, draw(st.sampled_from(LAYOUTS)))

    chosen, rejected = (column(tensor) for tensor in rewards(random, shape, dtype, values))
    column_dtype = st.sampled_from([torch.float32, dtype])
    options = {"reduction": draw(st.sampled_from(REDUCTIONS))}
    for name, numbers in (
        ("beta", [0.1, 2.5, -0.5, 0.0]),
        ("label_smoothing", [0.1, 0.5, 1e-3]),
        ("center_rewards_coefficient", [0.01, 1.0]),
    ):
        if draw(st.booleans()):
            options[name] = draw(st.sampled_from(numbers))
    margin, weight, target = (
        draw(st.sampled_from(kinds))
        for kinds in (["none", "number", "tensor"], ["none", "tensor", "mask"], ["none", "number", "tensor"])
    )
    if margin != "none":
        scale = draw(st.sampled_from([0.5, 1e4]))
        drawn = real(scale * random.normal(size=shape if margin == "tensor" else ()), draw(column_dtype))
        options["margin"] = column(drawn).requires_grad_() if margin == "tensor" else drawn.item()
    if weight != "none":
        drawn = random.random(shape) < 0.7 if weight == "mask" else weights(random, shape)
        drawn = torch.from_numpy(np.asarray(drawn))
        options["weight"] = column(drawn if weight == "mask" else drawn.to(draw(column_dtype)))
    if target != "none":
        drawn = real(targets(random, shape if target == "tensor" else ()), torch.float64)
        options["target"] = column(drawn.to(draw(column_dtype))) if target == "tensor" else drawn.item()
    if options["reduction"] == "mean" and draw(st.booleans()):
        number = draw(st.sampled_from([1, 7, 0.25]))
        options["denominator"] = draw(st.sampled_from([number, torch.tensor(number)]))
    return chosen, rejected, options
