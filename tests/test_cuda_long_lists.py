"""Long lists on the GPU, in linear time: against every pair, at every edge of a block and of a row, and what is left to pairs.

They run on a GPU, or, built for the tests, on the host (tests/cuda_on_host; `make cuda-on-host`).
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from conftest import DEVICES, RUNS_ON_HOST
from every_pair import promise_of_gradient, promise_of_loss, sums_of_pairs
from rounding_bounds import assert_same_bits
from sample_inputs import array, real
from test_long_lists import LARGE_RANKS, SCORES

import prefloss
from prefloss import _core

DEVICE = torch.device("cpu" if RUNS_ON_HOST else "cuda")
NEITHER = not RUNS_ON_HOST and "cuda" not in DEVICES
pytestmark = pytest.mark.skipif(NEITHER, reason="neither a GPU nor the build for the host")
needs_host = pytest.mark.skipif(not RUNS_ON_HOST, reason="needs the build for the host (make cuda-on-host)")

# As in csrc/cuda/long_list/: shorter lists, and those with more cells, are done pair by pair; a block has at least so many items.
LONG, MOST_CELLS, BLOCK = 4096, 512, 256
SIZE = LONG + 131


def call(rewards, ranks, **options):
    """The loss and its gradient, of each pair once."""
    leaf = rewards.detach().to(DEVICE).requires_grad_()
    options = {"reduction": "sum", "average": "pairs", **options}
    loss = prefloss.bradley_terry_loss_grouped(leaf, ranks.to(DEVICE), **options)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach().cpu(), gradient.cpu()


def assert_right(rewards, ranks, found, **options):
    """Within the promise."""
    loss, gradient = found
    expected = sums_of_pairs(rewards, ranks, **options)
    tiny = np.finfo(rewards.dtype).tiny
    error = np.abs(array(gradient).astype(np.float64) - expected.gradient)
    assert np.all(error <= promise_of_gradient(rewards.dtype) * expected.gradient_size + tiny)
    assert abs(loss.item() - expected.loss) <= promise_of_loss(rewards.dtype) * expected.loss + tiny


@pytest.mark.parametrize(
    ("scores", "ranks", "dtype"),
    [
        *((scores, "a few", torch.float32) for scores in SCORES),
        *(("normal", ranks, torch.float32) for ranks in LARGE_RANKS if ranks != "a few"),
        *((scores, "distinct", torch.float64) for scores in ("normal", "deviation 30", "outlier above", "clusters")),
        *(("far tail", ranks, torch.float64) for ranks in ("two", "one of many items")),
        ("far apart", "in order", torch.float32),
    ],
    ids=str,
)
def test_long_lists_keep_the_promised_error(scores, ranks, dtype):
    random = np.random.default_rng(3)
    given, order = real(SCORES[scores](random, SIZE), dtype), LARGE_RANKS[ranks](random, SIZE)
    assert_right(array(given), order, call(given[None], torch.from_numpy(order)[None]))


@pytest.mark.parametrize(
    "options", [{"beta": 0.1}, {"beta": -2.5}, {"margin": 0.7}, {"beta": 0.5, "margin": -30.0}], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_beta_and_margin_of_long_lists_keep_the_promised_error(dtype, options):
    random = np.random.default_rng(4)
    given, order = real(3.0 * random.normal(size=SIZE), dtype), LARGE_RANKS["many"](random, SIZE)
    assert_right(array(given), order, call(given[None], torch.from_numpy(order)[None], **options), **options)


@pytest.mark.parametrize("better", [1.7e308, -1.7e308])
def test_differences_beyond_float64_are_no_nan(better):
    order = np.random.default_rng(18).permutation(SIZE)
    given = np.where(order < SIZE // 2, better, -better)
    loss, gradient = call(torch.from_numpy(given)[None], torch.from_numpy(order)[None])
    expected = sums_of_pairs(given, order)
    assert np.all(np.abs(array(gradient) - expected.gradient) <= 1e-14 * expected.gradient_size)
    assert loss.item() == (math.inf if better < 0 else pytest.approx(expected.loss, rel=1e-13))


@pytest.mark.parametrize("a_rank", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, LONG])
def test_sizes_and_ranks_around_every_boundary_agree_with_every_pair(a_rank):
    """A rank may begin or end in a block, or with it, and fill several; a block may have one item, and the last none behind it."""
    random = np.random.default_rng(5)
    for size in (LONG - 1, LONG, LONG + 1, LONG + BLOCK - 1, LONG + BLOCK, LONG + BLOCK + 1):
        given = real(random.normal(size=size), torch.float32)
        order = random.permutation(np.arange(size) // a_rank)
        assert_right(array(given), order, call(given[None], torch.from_numpy(order)[None]))


@pytest.mark.parametrize("cells", [1, 2, BLOCK // 4, BLOCK // 4 + 1, 300, MOST_CELLS, MOST_CELLS + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_number_of_cells_agrees_with_every_pair(dtype, cells):
    """More cells take larger blocks, and too many of them none. Cells are 2 wide in float32, and 1 in float64; some are empty."""
    random = np.random.default_rng(6)
    width = 1.0 if dtype is torch.float64 else 2.0
    keys = np.sort(random.choice(3 * cells, cells, replace=False)) - cells
    cell = np.r_[np.arange(cells), random.integers(0, cells, SIZE - cells)]
    given = real(width * (keys[cell] + random.uniform(0.01, 0.99, SIZE)), dtype)
    order = random.permutation(SIZE)
    assert_right(array(given), order, call(given[None], torch.from_numpy(order)[None]))


def lists_of_all_kinds(random):
    """Rows of one call: what is done with one depends on no other."""
    rows = random.normal(size=(5, SIZE))
    rows[1] *= 1000.0  # too many cells
    rows[2] *= 30.0
    rows[3, 7], rows[4, 9] = math.nan, math.inf
    return real(rows, torch.float32), torch.from_numpy(random.integers(0, SIZE // 2, (5, SIZE)))


def test_lists_of_one_call_do_not_touch_each_other():
    """In linear time to the bit. How the pairs of the others are shared among threads depends on the whole call."""
    given, order = lists_of_all_kinds(np.random.default_rng(7))
    loss, gradient = call(given, order, reduction="none")
    for row in range(len(given)):
        here = slice(row, row + 1)
        alone = call(given[here], order[here], reduction="none")
        if row in (0, 2):
            assert_same_bits((loss[here], gradient[here]), alone)
        torch.testing.assert_close(alone, (loss[here], gradient[here]), rtol=1e-4, atol=1e-4, equal_nan=True)
    assert_right(array(given[1]), array(order[1]), (loss[1], gradient[1]))
    assert loss[3].isnan()
    assert gradient[3].isnan().sum() >= SIZE - 100  # but those of its rank


@pytest.mark.parametrize("sizes", [(SIZE, 0, LONG, 1, 3 * LONG), (LONG,), (2 * LONG + 1, LONG, LONG)], ids=str)
def test_lists_of_different_sizes_have_the_bits_that_each_has_alone(sizes):
    """Ranks of one list mean nothing in another, and may be as small and as large as there are."""
    random = np.random.default_rng(8)
    given = real(random.normal(size=sum(sizes)), torch.float32)
    order = torch.from_numpy(random.integers(0, LONG, sum(sizes)))
    order[::500], order[1::500] = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
    loss, gradient = call(given, order, group_sizes=list(sizes), reduction="none")
    ends = np.cumsum(sizes)
    for row, (begin, end) in enumerate(zip(ends - sizes, ends, strict=True)):
        if end - begin < LONG:
            continue
        alone = call(given[begin:end][None], order[begin:end][None])
        assert_same_bits((loss[row], gradient[begin:end]), (alone[0].squeeze(), alone[1][0]))
    assert (loss[[size < 2 for size in sizes]] == 0).all()


def test_masked_lists_have_the_bits_of_their_items_alone():
    random = np.random.default_rng(9)
    given, order = lists_of_all_kinds(random)
    given = torch.nan_to_num(given[:3].repeat(1, 2))
    order = order[:3].repeat(1, 2)
    order[:, ::90] = torch.iinfo(torch.int64).max
    mask = torch.from_numpy(random.random(given.shape) < 0.8)
    mask[1] = False
    loss, gradient = call(given, order, mask=mask.to(DEVICE), reduction="none")
    assert (gradient[~mask] == 0).all()
    assert loss[1] == 0
    for row in (0, 2):
        there = mask[row]
        alone = call(given[row, there][None], order[row, there][None], reduction="none")
        assert_same_bits((loss[row : row + 1], gradient[row, there][None]), alone)


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"center_rewards_coefficient": 0.01}, {"ties": "half"}], ids=str
)
def test_options_that_are_left_to_pairs_agree_with_every_pair(options):
    random = np.random.default_rng(10)
    given, order = random.normal(size=LONG), LARGE_RANKS["many"](random, LONG)
    assert_right(given, order, call(torch.from_numpy(given)[None], torch.from_numpy(order)[None], **options), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_statistics_which_are_left_to_pairs_change_the_loss_by_roundings_alone(dtype):
    random = np.random.default_rng(11)
    given, order = real(random.normal(size=(1, SIZE)), dtype), torch.from_numpy(random.permutation(SIZE))[None]
    alone, _ = call(given, order)
    loss, stats = prefloss.bradley_terry_loss_grouped(
        given.to(DEVICE), order.to(DEVICE), reduction="sum", average="pairs", return_stats=True
    )
    assert stats.count == SIZE * (SIZE - 1) / 2
    assert stats.loss == pytest.approx(alone.item() / stats.count, rel=2.0**-22)
    assert loss.dtype == alone.dtype == torch.float32
    assert abs(loss.item() - alone.item()) <= 2.0**-22 * alone.item()


def test_weights_and_averages_are_those_of_short_lists():
    random = np.random.default_rng(12)
    given, order = (
        real(random.normal(size=(3, SIZE)), torch.float64),
        torch.from_numpy(random.permutation(3 * SIZE)).view(3, -1),
    )
    weight = torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    pairs = SIZE * (SIZE - 1) / 2
    losses, slopes = call(given, order, reduction="none")
    loss, gradient = call(given, order, weight=weight.to(DEVICE), average="groups", reduction="mean")
    torch.testing.assert_close(loss, (weight * losses).sum() / pairs / weight.sum(), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, weight[:, None] * slopes / pairs / weight.sum(), rtol=1e-14, atol=0)
    assert (gradient[1] == 0).all()


def test_vmapped_and_eager_lists_have_the_same_bits():
    random = np.random.default_rng(13)
    given, order = (
        real(random.normal(size=(2, SIZE)), torch.float32).to(DEVICE),
        torch.from_numpy(random.integers(0, 99, (2, SIZE))),
    )
    order = order.to(DEVICE)

    def loss(rewards, ranks):
        return prefloss.bradley_terry_loss_grouped(rewards[None], ranks[None], reduction="sum", average="pairs")

    gradients, values = torch.func.vmap(torch.func.grad_and_value(loss))(given, order)
    expected, slopes = call(given, order, reduction="none")
    assert_same_bits((values.cpu(), gradients.cpu()), (expected, slopes))


def test_a_long_list_has_second_derivatives():
    """Of two ranks the product with a direction is that of a bipartite matrix."""
    random = np.random.default_rng(14)
    given, direction, order = *random.normal(size=(2, LONG)), np.arange(LONG) % 2
    leaf = torch.from_numpy(given).to(DEVICE).requires_grad_()
    ranks = torch.from_numpy(order).to(DEVICE)
    loss = prefloss.bradley_terry_loss_grouped(leaf[None], ranks[None], reduction="sum", average="pairs")
    (slopes,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (product,) = torch.autograd.grad(slopes, leaf, torch.from_numpy(direction).to(DEVICE))
    e = np.exp(-np.abs(given[0::2, None] - given[None, 1::2]))
    bend = e / (1 + e) ** 2
    expected = np.empty(LONG)
    expected[0::2] = bend.sum(1) * direction[0::2] - bend @ direction[1::2]
    expected[1::2] = bend.sum(0) * direction[1::2] - direction[0::2] @ bend
    assert np.all(np.abs(array(product.cpu()) - expected) <= 1e-13 * bend.sum() / LONG)


@needs_host
def test_no_order_of_threads_changes_a_bit(monkeypatch):
    given, order = lists_of_all_kinds(np.random.default_rng(15))
    results = []
    for seed in ("0", "1", "7", "7"):
        monkeypatch.setenv("CUDA_ON_HOST_SEED", seed)
        results.append(call(given[:3], order[:3], reduction="none"))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@needs_host
@pytest.mark.parametrize("scores", ["normal", "deviation 30"])
def test_a_long_list_agrees_with_the_cpu_kernels(scores):
    """On the CPU in a tree over the ranks, here in rows; to the promise of both, of sums that are at most the number of pairs."""
    size, random = 40_000, np.random.default_rng(16)
    given, order = torch.from_numpy(SCORES[scores](random, size)), torch.from_numpy(random.permutation(size))
    _, gradient = call(given[None], order[None])
    expected, _ = prefloss.bradley_terry_derivatives_grouped(given[None], order[None])
    assert (gradient - expected).abs().max() <= 2e-14 * size


@needs_host
def test_a_long_list_reads_as_many_bytes_as_it_has_items():
    """Those that kernels read by __ldg: pair by pair they are 12 a visit, of as many visits as items."""
    counters = ctypes.CDLL(_core.__file__)
    counters.cuda_on_host_bytes_loaded.restype = ctypes.c_uint64
    random = np.random.default_rng(17)
    an_item = {}
    for kind, scale in (("linear", 1.0), ("too many cells", 1000.0)):
        given, order = (
            real(scale * random.normal(size=(1, SIZE)), torch.float32),
            torch.from_numpy(random.permutation(SIZE))[None],
        )
        counters.cuda_on_host_reset_counts()
        call(given, order)
        an_item[kind] = counters.cuda_on_host_bytes_loaded() / SIZE
    assert an_item["linear"] < 200
    assert an_item["too many cells"] > 12 * SIZE
