"""The CUDA kernels' own edges: sizes around every boundary, alignment, large offsets, the bytes that they move.

They run on a GPU, or, built for the tests, on the host (tests/cuda_on_host; `make cuda-on-host`), where the order in which
threads run is CUDA_ON_HOST_SEED's. Everything else about them is in the tests of the public functions, which that build
runs too.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from conftest import DEVICES, RUNS_ON_HOST
from rounding_bounds import Bounds, assert_same_bits
from sample_inputs import DTYPES, laid_out, options_alone, rewards
from test_indexed import check as check_indexed
from test_indexed import comparisons
from test_paired_values import check_call, no_upstream

import prefloss
from prefloss import _core, reference
from prefloss.stats import Sum

DEVICE = torch.device("cpu" if RUNS_ON_HOST else "cuda")
NEITHER = not RUNS_ON_HOST and "cuda" not in DEVICES
pytestmark = pytest.mark.skipif(NEITHER, reason="neither a GPU nor the build for the host")
needs_host = pytest.mark.skipif(not RUNS_ON_HOST, reason="needs the build for the host (make cuda-on-host)")

# As in csrc/cuda/blocks.cuh and pair_groups.cuh: threads of a block, of a warp; 16-byte groups that a thread has of a chunk.
THREADS, WARP, GROUPS = 256, 32, 2

over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def group_of(dtype):
    """The pairs in 16 bytes of rewards."""
    return 16 // dtype.itemsize


def sizes_around_boundaries(dtype):
    """One less and one more than whatever a kernel counts in: groups, warps, blocks, chunks, several of them."""
    group = group_of(dtype)
    chunk = THREADS * GROUPS * group
    whole = {1, 2, 4, group, WARP, WARP * group, THREADS, THREADS * 4, THREADS * group, chunk, 3 * chunk}
    return sorted({0} | {size + offset for size in whole for offset in (-1, 0, 1)})


@over_dtypes
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "every_other", "half"])
@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("default", 0),
        ("default", 1),
        ("weight tensor", 0),
        ("weight mask", 1),
        ("margin tensor", 0),
        ("target tensor", 1),
    ],
)
def test_sizes_around_every_boundary_agree_with_the_reference(name, first, layout, dtype):
    """One reduction after the other, so that with options a size has each, and without them both."""
    random = np.random.default_rng(5)
    for n, size in enumerate(sizes_around_boundaries(dtype)):
        chosen, rejected = (laid_out(t.to(DEVICE), layout) for t in rewards(random, (size,), dtype))
        options = {
            key: laid_out(value.to(DEVICE), layout) if isinstance(value, torch.Tensor) else value
            for key, value in options_alone(name, random, (size,), dtype).items()
        }
        if "margin" in options:
            options["margin"].requires_grad_()
        options["reduction"] = ("mean", "none")[(n + first) % 2]
        check_call(chosen, rejected, options, no_upstream, DEVICE)


@over_dtypes
def test_columns_of_different_alignment_agree_with_the_reference(dtype):
    """Whole chunks are vectorised where every column can be; else each column is, or not, by itself."""
    random = np.random.default_rng(6)
    size = THREADS * GROUPS * group_of(dtype) + 3
    for which in ("chosen", "rejected", "margin", "weight", "target"):
        chosen, rejected = rewards(random, (size,), dtype)
        columns = {"chosen": chosen, "rejected": rejected}
        for name in ("margin", "weight", "target"):
            columns |= options_alone(f"{name} tensor", random, (size,), torch.float32)
        columns = {
            name: laid_out(value.to(DEVICE), "misaligned" if name == which else "contiguous")
            for name, value in columns.items()
        }
        columns["margin"].requires_grad_()
        check_call(columns.pop("chosen"), columns.pop("rejected"), columns, no_upstream, DEVICE)


@over_dtypes
def test_rows_of_several_blocks_are_reduced_separately(dtype):
    random = np.random.default_rng(7)
    shape = 3, THREADS * GROUPS * group_of(dtype) + 5
    chosen, rejected = (tensor.to(DEVICE) for tensor in rewards(random, shape, dtype))
    weight = torch.from_numpy(random.random(shape)).to(DEVICE, torch.float32)

    def loss(chosen, rejected, weight):
        return prefloss.bradley_terry_loss(chosen, rejected, weight=weight)

    together = torch.func.vmap(torch.func.grad_and_value(loss, (0, 1)))(chosen, rejected, weight)
    one_by_one = [torch.func.grad_and_value(loss, (0, 1))(*row) for row in zip(chosen, rejected, weight, strict=True)]
    for row, (gradients, value) in enumerate(one_by_one):
        torch.testing.assert_close(together[1][row], value, rtol=0, atol=0)
        for all_rows, gradient in zip(together[0], gradients, strict=True):
            torch.testing.assert_close(all_rows[row], gradient, rtol=0, atol=0)


def test_second_derivatives_of_several_blocks_are_right():
    size = THREADS * GROUPS * 2 + 7
    generator = torch.Generator().manual_seed(8)
    a, b, v = torch.randn((3, size), generator=generator, dtype=torch.float64).to(DEVICE)
    upstream = torch.tensor(1.5, dtype=torch.float64, device=DEVICE, requires_grad=True)
    pair = a.requires_grad_(), b.requires_grad_()

    def second(loss):
        gradient, _ = torch.autograd.grad(loss, pair, upstream, create_graph=True)
        return torch.autograd.grad(gradient, (*pair, upstream), v)

    expected = second(-torch.nn.functional.logsigmoid(a - b).mean())
    for ours, theirs in zip(second(prefloss.bradley_terry_loss(*pair)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-18)


def test_offsets_beyond_32_bits_reach_the_right_entries():
    """Entries 8 MiB apart: byte offsets pass 2^31 and 2^32, and entry offsets 2^31. Pages that nobody touches cost nothing."""
    stride, size = 2**21, 1100
    generator = torch.Generator().manual_seed(9)
    values = torch.randn((2, size), generator=generator)
    pair = []
    for column in values:
        spread = torch.empty(stride * size, device=DEVICE)[::stride]
        pair.append(spread.copy_(column).requires_grad_())
    assert pair[0].stride(0) * (size - 1) > 2**31
    check_call(*pair, {"reduction": "none"}, no_upstream, DEVICE)
    check_call(*pair, {"weight": pair[0].detach().abs(), "reduction": "mean"}, no_upstream, DEVICE)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_more_than_2_to_the_31_pairs_are_counted(dtype):
    """Also: so many chunks that a block takes several, and a thread's product of (1 + e) has to be put aside."""
    pairs = 2**31 + 5
    chosen = torch.tensor([0.25], dtype=dtype, device=DEVICE).expand(pairs)
    loss = prefloss.bradley_terry_loss(chosen, torch.zeros_like(chosen[:1]).expand(pairs))
    assert loss.item() == pytest.approx(math.log1p(math.exp(-0.25)), rel=2e-7)


@pytest.mark.slow
def test_a_thread_of_more_than_1024_pairs_puts_its_product_aside():
    """At z = 0 each pair doubles the product of (1 + e), and float64 ends at 2^1024. So many pairs that each thread has more.

    They are zeros that nobody writes, so that they cost no memory.
    """
    chunk = THREADS * GROUPS * group_of(torch.bfloat16)
    zeros = torch.zeros(65 * chunk * 2048, dtype=torch.bfloat16, device=DEVICE)  # 2048: the most blocks of a row
    assert prefloss.bradley_terry_loss(zeros, zeros).item() == pytest.approx(math.log(2), rel=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_item_with_more_than_1024_others_puts_its_product_aside(dtype):
    """The same of a group of 1,100. There are so many places beside it that one thread visits all of a group."""
    places = -(-(2**18) // 1100), 1100
    generator = torch.Generator().manual_seed(14)
    rewards = 1e-3 * torch.randn(places, generator=generator, dtype=torch.float64).to(dtype)
    ranks, mask = torch.arange(1100).expand(places), torch.zeros(places, dtype=torch.bool)
    mask[0] = True
    loss = prefloss.bradley_terry_loss_grouped(rewards.to(DEVICE), ranks.to(DEVICE), mask=mask.to(DEVICE))
    better, worse = torch.triu_indices(1100, 1100, offset=1)
    expected = torch.nn.functional.softplus(rewards[0].double()[worse] - rewards[0].double()[better]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-7 if dtype is torch.float32 else 1e-13)


@pytest.mark.slow
def test_rows_that_share_a_block_keep_their_sums_apart():
    """More rows than a grid has blocks, so that a block adds up two rows; all of its warps have pairs, and all pairs differ."""
    rows, pairs = 66_000, 4 * THREADS
    generator = torch.Generator().manual_seed(15)
    columns = torch.randn((2, rows + pairs), generator=generator)
    chosen, rejected = (column.to(DEVICE).as_strided((rows, pairs), (1, 1)) for column in columns)
    losses = torch.func.vmap(prefloss.bradley_terry_loss)(chosen, rejected).cpu().double()
    upto = torch.nn.functional.softplus((columns[1] - columns[0]).double()).cumsum(0)
    expected = (upto[pairs - 1 : -1] - torch.cat((torch.zeros(1).double(), upto[: rows - 1]))) / pairs
    torch.testing.assert_close(losses, expected, rtol=2e-7, atol=0)


@pytest.mark.slow
def test_more_rows_than_a_grid_has_blocks():
    rows = 66_000
    generator = torch.Generator().manual_seed(10)
    chosen, rejected = torch.randn((2, rows, 3), generator=generator).to(DEVICE)
    gradients = torch.func.vmap(torch.func.grad(prefloss.bradley_terry_loss))(chosen, rejected)
    losses = torch.func.vmap(prefloss.bradley_terry_loss)(chosen, rejected)
    margin = chosen - rejected
    torch.testing.assert_close(losses, -torch.nn.functional.logsigmoid(margin).mean(1))
    torch.testing.assert_close(gradients, -torch.sigmoid(-margin) / 3)


@over_dtypes
@pytest.mark.parametrize("name", ["default", "weight tensor", "target tensor", "margin tensor", "centring"])
def test_comparisons_around_every_boundary_agree_with_the_reference(name, dtype):
    random = np.random.default_rng(11)
    group = 2 if dtype is torch.float64 else 4
    for whole in (1, group, THREADS * group, THREADS * GROUPS * group, 3 * THREADS * GROUPS * group):
        for count in (whole - 1, whole, whole + 1):
            indices = comparisons(random, 70, count, torch.int32 if count % 2 else torch.int64)
            options = {**options_alone(name, random, (count,), dtype), "reduction": "sum" if count % 2 else "mean"}
            check_indexed(rewards(random, (70,), dtype)[0], *indices, options, DEVICE)


@over_dtypes
@pytest.mark.parametrize("items", [2, 900])
def test_the_order_of_comparisons_changes_no_bit_of_the_gradient(items, dtype):
    """Sums of integers: exact, with weights of any size, in one copy of the items' words or in several."""
    random = np.random.default_rng(12)
    scores = (20.0 * rewards(random, (items,), torch.float64)[0]).to(dtype).to(DEVICE).requires_grad_()
    chosen, rejected = (index.to(DEVICE) for index in comparisons(random, items, 30_000))
    weight = torch.from_numpy(np.ldexp(random.random(30_000), random.integers(-60, 0, 30_000))).float().to(DEVICE)
    for given in (None, weight):
        gradients = []
        for _ in range(3):
            order = torch.from_numpy(random.permutation(30_000)).to(DEVICE)
            loss = prefloss.bradley_terry_loss_indexed(
                scores,
                chosen[order],
                rejected[order],
                weight=None if given is None else given[order],
                reduction="sum",
            )
            gradients += torch.autograd.grad(loss, scores)
        assert gradients[0].isfinite().all()
        for other in gradients[1:]:
            assert_same_bits((other,), gradients[:1])


@pytest.mark.parametrize("denominator", [None, torch.tensor(3.0), torch.tensor([3])], ids=["none", "0-d", "integer"])
def test_eager_calls_do_without_the_operators(denominator):
    values, index = torch.randn(6, device=DEVICE), torch.arange(6, device=DEVICE)
    denominator = denominator if denominator is None else denominator.to(DEVICE)
    options = 0.5, 0.0, 0.0, 0.0, "mean", denominator, False
    calls = [
        _core.paired_call(values, values, 0, None, None, None, options, False),
        _core.grouped_call(
            values.view(2, 3), index.view(2, 3), None, None, None, None, "groups", "skip", options, False
        ),
        _core.grouped_call(values, values, torch.tensor([2, 4]), None, None, None, "groups", "skip", options, False),
        _core.indexed_call(values, index, index, values, None, None, options, False),
    ]
    assert [call is not None and call.has_tensor_denominator for call in calls] == [denominator is not None] * 4


@needs_host
@over_dtypes
def test_a_pair_moves_no_more_bytes_than_its_own(dtype):
    """Forward reads both rewards once; backward reads them once and writes both gradients once."""
    counters = ctypes.CDLL(_core.__file__)
    loaded, stored = counters.cuda_on_host_bytes_loaded, counters.cuda_on_host_bytes_stored
    loaded.restype = stored.restype = ctypes.c_uint64
    chosen, rejected = (torch.zeros(1_000_003, dtype=dtype, requires_grad=True) for _ in range(2))
    both = 2 * chosen.nbytes
    counters.cuda_on_host_reset_counts()
    loss = prefloss.bradley_terry_loss(chosen, rejected)
    assert (loaded(), stored()) == (both, 0)
    counters.cuda_on_host_reset_counts()
    loss.backward()
    assert (loaded(), stored()) == (both, both)


def assert_exact_statistics(chosen, rejected, weight=None):
    """The sums of float64 rewards, against ones of more digits: relative to themselves, but for the roundings of means."""
    columns = [torch.from_numpy(np.asarray(column)).to(DEVICE) for column in (chosen, rejected)]
    given = {} if weight is None else {"weight": torch.from_numpy(weight).to(DEVICE)}
    _, stats = prefloss.bradley_terry_loss(*columns, **given, return_stats=True)
    sums = dict(zip(Sum, stats.sums.cpu().numpy(), strict=True))
    w = np.ones(chosen.shape) if weight is None else weight
    a, b, w = (np.asarray(column[w != 0], dtype=np.longdouble) for column in (chosen, rejected, w))
    loss, v = np.log1p(np.exp(-np.abs(a - b))) + np.maximum(b - a, 0), w / sums[Sum.WEIGHT_SCALE]
    expected = {Sum.COUNT: len(w), Sum.UNITS: len(w), Sum.CORRECT: np.sum(a > b), Sum.TIED: np.sum(a == b)}
    expected |= {Sum.MINIMUM: min(a.min(), b.min()), Sum.MAXIMUM: max(a.max(), b.max())}
    expected |= {Sum.WEIGHT: np.sum(w), Sum.WEIGHTED_LOSS: np.sum(w * loss)}
    expected |= {Sum.WEIGHT_CORRECT: np.sum(w[a > b]), Sum.WEIGHT_TIED: np.sum(w[a == b])}
    expected |= {Sum.WEIGHT_SQUARED + k: np.sum(v ** (k + 2)) for k in range(4)}
    slack = {}
    for which, values, weights in (
        (Sum.DIFFERENCE, a - b, 1),
        (Sum.CHOSEN, a, 1),
        (Sum.REJECTED, b, 1),
        (Sum.SQUARED_WEIGHT_LOSS, loss, v**2),
    ):
        expected[which] = np.sum(weights * values)
        slack[which] = 1e-15 * np.sum(weights * np.abs(values))
        from_mean = values - expected[which] / np.sum(weights * np.ones(values.shape))
        off = 1e-15 * np.abs(values)  # a number, and the mean
        expected[which + 1] = np.sum(weights * from_mean**2)
        slack[which + 1] = np.sum(weights * (2 * np.abs(from_mean) / np.sqrt(len(w)) + off) * off)
    for power in (1, 2, 3):
        which = Sum.CUBED_WEIGHT_LOSS + power - 1
        expected[which] = np.sum(v**3 * from_mean**power)
        grown = (np.abs(from_mean) + off) ** power
        slack[which] = np.sum(v**3 * (grown - np.abs(from_mean) ** power + 1e-13 * grown))
    for which, value in expected.items():
        assert abs(sums[which] - value) <= 1e-12 * abs(value) + slack.get(which, 0), (Sum(which), sums[which], value)


def unkind_rewards(random, size):
    """Rewards whose squares about their mean are hard to sum, by name."""
    a, b = random.normal(0.3, 1.0, size), random.normal(size=size)
    first, every, last = (np.array(a) for _ in range(3))
    first[0] = last[-1] = 30.0
    every[:: THREADS * 2] = -25.0  # each thread's first pair, or none
    steps = np.arange(size) % 2 * 1e-3
    return {
        "first": (first, b),
        "last": (last, b),
        "each thread's first": (every, b),
        "far from 0": (a + 1e6, b + 1e6),
        "ascending": (np.sort(a), b),
        "equal": (np.full(size, 0.1), np.full(size, 1e5 / 3.0)),
        "nearly equal": (1e4 / 3.0 + steps, np.full(size, 1e4 / 3.0)),
    }


@pytest.mark.parametrize("size", [1, 2, 3, 63, 511, 513, 1025, 33_000, 300_001])
def test_statistics_of_unkind_rewards_keep_their_digits(size):
    """Outliers, offsets, equal numbers; weights of which one outweighs all others, early or late."""
    random = np.random.default_rng(11)
    weights = {
        "none": None,
        "some 0": random.exponential(size=size) * ((random.random(size) < 0.6) | (np.arange(size) == 0)),
        "of every scale": 10.0 ** random.uniform(-30.0, 30.0, size),
        "ascending": 2.0 ** np.linspace(-60.0, 60.0, size),
        "descending": 2.0 ** np.linspace(60.0, -60.0, size),
    }
    for name, (chosen, rejected) in unkind_rewards(random, size).items():
        for kind, weight in list(weights.items())[: 5 if size < 10_000 else 3]:
            try:
                assert_exact_statistics(chosen, rejected, weight)
            except AssertionError as error:
                raise AssertionError(f"rewards: {name}; weights: {kind}: {error}") from None


def test_statistics_of_rewards_that_are_not_finite_are_those_of_the_reference():
    """Also where the first pair of a thread, which its sums are about, is not; and where its weight is 0."""
    random, size = np.random.default_rng(12), 5000
    for value in (np.inf, -np.inf, np.nan):
        for where in (0, 4, 2047, 4999):
            for weight in (None, np.ones(size), np.where(np.arange(size) == where, 0.0, 2.0)):
                chosen, rejected = random.normal(size=(2, size))
                chosen[where] = value
                given = {} if weight is None else {"weight": weight}
                _, expected = reference.bradley_terry_loss(chosen, rejected, **given, return_stats=True)
                tensors = (torch.from_numpy(column).to(DEVICE) for column in (chosen, rejected))
                given = {name: torch.from_numpy(column).to(DEVICE) for name, column in given.items()}
                _, stats = prefloss.bradley_terry_loss(*tensors, **given, return_stats=True)
                np.testing.assert_allclose(stats.sums.cpu().numpy(), expected, rtol=1e-11, atol=1e-11)


@over_dtypes
def test_statistics_around_every_boundary_agree_with_the_reference(dtype):
    """Of each of three rows, which has the bits that it has alone."""
    random, rows = np.random.default_rng(13), 3
    steps = {
        THREADS * group_of(dtype),
        THREADS * min(group_of(dtype), 4),
    }  # without and with a column beside the rewards
    for size in sorted({many * step + offset for step in steps for many in (1, 2, 65) for offset in (-1, 0, 1)}):
        chosen, rejected = (tensor.to(DEVICE) for tensor in rewards(random, (rows, size), dtype))
        weight = torch.from_numpy(random.random((rows, size)) * (random.random((rows, size)) < 0.8)).to(DEVICE, dtype)
        for weights in ((), (weight,)):

            def sums(chosen, rejected, weight=None):
                return prefloss.bradley_terry_loss(chosen, rejected, weight=weight, return_stats=True)[1].sums

            of_rows = torch.func.vmap(sums)(chosen, rejected, *weights)
            for row in range(rows):
                columns = [column[row] for column in (chosen, rejected, *weights)]
                torch.testing.assert_close(of_rows[row], sums(*columns), rtol=0, atol=0)
                options = {"weight": columns[2]} if weights else {}
                Bounds(*columns[:2], options).assert_sums(of_rows[row])
