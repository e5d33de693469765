"""Threads, forks and ranks: the same bits whatever runs the call, and no call that waits for a thread that is not there.

Whatever could hang runs in a process of its own, which is given a time and then killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fresh_processes import METHOD as FRESH
from sample_inputs import OPTIONS_ALONE, options_alone, rewards
from torch.utils.data import DataLoader, Dataset

import prefloss
from prefloss import PairStats

pytestmark = pytest.mark.usefixtures("set_threads")
SECONDS = 300  # only what hangs takes so long, on however busy a machine
PARALLEL_PAIRS = 32_768  # kParallelPairs in csrc/pairs.h
LARGE = 8 * PARALLEL_PAIRS + 1  # many chunks for each of many threads

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
# Python 3.12 warns of what is tested here.
forks = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def answer(connection, function, arguments):
    try:
        connection.send((function(*arguments), None))
    except BaseException:
        connection.send((None, traceback.format_exc()))


def results_of_processes(method, function, argument_lists):
    """What `function` returns in a process for each list of arguments; a process that takes too long is an error."""
    context = multiprocessing.get_context(method)
    seconds = SECONDS / 2 if method == "fork" else SECONDS  # who forks is waited for too
    running = []
    for arguments in argument_lists:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=answer, args=(theirs, function, arguments))
        process.start()
        theirs.close()
        running.append((process, ours))
    try:
        results = []
        for _, connection in running:
            assert connection.poll(seconds), f"no answer within {seconds} s: the process hangs"
            result, error = connection.recv()
            assert error is None, error
            results.append(result)
        return results
    finally:
        for process, _ in running:
            process.join(5)
            process.kill()


def inputs(count, seed=0, dtype=torch.float32):
    return rewards(np.random.default_rng(seed), (count,), dtype)


def everything(chosen, rejected, options):
    """Loss, statistics, terms, and derivatives of both orders, as bytes: what is compared is bits."""
    chosen, rejected = (tensor.detach().requires_grad_() for tensor in (chosen, rejected))
    loss, stats = prefloss.bradley_terry_loss(chosen, rejected, return_stats=True, **options)
    alone = prefloss.bradley_terry_loss(chosen, rejected, **options)
    terms = prefloss.bradley_terry_loss(chosen, rejected, reduction="none", **options)
    plain = torch.autograd.grad(alone, (chosen, rejected), retain_graph=True)
    upstream = torch.tensor(1.5, dtype=loss.dtype, requires_grad=True)
    first = torch.autograd.grad(alone, (chosen, rejected), upstream, create_graph=True)
    second = torch.autograd.grad(first, (upstream, chosen, rejected), (chosen.detach(), rejected.detach()))
    return [
        tensor.detach().view(-1).view(torch.uint8).numpy().tobytes()
        for tensor in (loss, stats.sums, alone, terms, *plain, *first, *second)
    ]


# One less and one more than a chunk (8192), than the size from which threads are used, and than what four threads share evenly.
AROUND = [edge + step for edge in (8192, PARALLEL_PAIRS, 5 * 8192, 12 * 8192) for step in (-1, 0, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype, set_threads):
    for i, count in enumerate(AROUND):
        name = list(OPTIONS_ALONE)[i % len(OPTIONS_ALONE)]
        for options in ({}, options_alone(name, np.random.default_rng(i), (count,), dtype)):
            case = *inputs(count, dtype=dtype), options
            results = []
            for threads in (1, 2, 3, 8):
                set_threads(threads)
                results.append(everything(*case))
            assert all(result == results[0] for result in results), (count, options.keys())


def test_any_number_of_threads_gives_the_same_bits_to_rows(set_threads):
    chosen, rejected = (tensor.view(5, -1) for tensor in inputs(5 * (PARALLEL_PAIRS + 1)))
    loss = torch.vmap(torch.func.grad_and_value(prefloss.bradley_terry_loss))
    results = []
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        results.append(loss(chosen, rejected))
    for gradients, losses in results:
        assert torch.equal(gradients, results[0][0])
        assert torch.equal(losses, results[0][1])


def digests_with(threads):
    torch.set_num_threads(threads)
    return digest(*inputs(LARGE), {})


def test_fewer_threads_than_torch_asks_for_give_the_same_bits(monkeypatch):
    """A batch system may allow fewer than `torch.get_num_threads()` says: those that there are do the work of all."""
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")  # read where OpenMP is loaded
    few, one = results_of_processes("spawn", digests_with, [(8,), (1,)])
    assert few == one


@pytest.fixture(scope="module")
def threads_of_python():
    """What one process gave, for pairs and for items."""
    ((of_pairs, of_items),) = results_of_processes(FRESH, pairs_and_items, [(items(),)])
    return of_pairs, of_items


def pairs_and_items(items):
    torch.set_num_threads(4)
    return alone_and_together(), items_here_and_in_threads(*items)


def test_threads_of_python_do_not_disturb_each_other(threads_of_python):
    """Each call, of other inputs, options and sizes, gives what it gives alone; kernels start threads of their own."""
    alone, together = threads_of_python[0]
    assert together == alone


def alone_and_together():
    cases = []
    for i, name in enumerate([*OPTIONS_ALONE] * 2):
        count = (50, 5000, LARGE)[i % 3]
        options = options_alone(name, np.random.default_rng(i), (count,), torch.float32)
        cases.append((*inputs(count, seed=i), options))
    alone = [digest(*case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        return alone, list(pool.map(digest, *zip(*cases, strict=True)))


def digest(*case):
    return [hashlib.sha256(bits).hexdigest() for bits in everything(*case)]


def test_backward_may_run_in_another_thread():
    chosen, rejected = (tensor.requires_grad_() for tensor in inputs(LARGE))
    loss = prefloss.bradley_terry_loss(chosen, rejected)
    expected = torch.autograd.grad(loss, (chosen, rejected), retain_graph=True)
    with ThreadPoolExecutor(1) as pool:
        gradients = pool.submit(torch.autograd.grad, loss, (chosen, rejected)).result(timeout=SECONDS)
    assert all(map(torch.equal, gradients, expected))


@needs_fork
def test_a_fork_of_a_process_with_one_thread_computes_the_same_bits():
    """As a fork does with torch's own operators; of a process that used more threads, neither promises anything."""
    ((here, *elsewhere),) = results_of_processes(FRESH, here_and_in_forks, [(*inputs(LARGE), items())])
    assert elsewhere == [here] * 3


def here_and_in_forks(*case):
    """In a new process: autograd, which other tests gave threads of its own, would refuse to run in a fork of this one."""
    torch.set_num_threads(1)
    here = everything_of_both(*case)
    return [here, *results_of_processes("fork", everything_of_both, [case, case]), everything_of_both(*case)]


def everything_of_both(chosen, rejected, items):
    return [everything(chosen, rejected, options) for options in ({}, {"beta": 0.5})] + everything_of_items(*items)


def items():
    random = np.random.default_rng(3)
    given = torch.from_numpy(random.normal(size=30_000)).float()
    ranks = torch.from_numpy(random.integers(0, 20_000, 30_000))
    return given, ranks, torch.from_numpy(random.integers(0, 30_000, (2, LARGE)))


def everything_of_items(given, ranks, indices):
    """Loss, statistics and gradient of a long list, of many groups and of comparisons by index, as bytes."""
    given = given.detach().requires_grad_()
    results = []
    for loss, stats in (
        prefloss.bradley_terry_loss_grouped(given[None], ranks[None], ties="half", return_stats=True),
        prefloss.bradley_terry_loss_grouped(given.view(-1, 10), ranks.view(-1, 10), return_stats=True),
        prefloss.bradley_terry_loss_indexed(given, *indices, return_stats=True),
    ):
        results += [loss, stats.sums, *torch.autograd.grad(loss, given)]
    return [tensor.detach().view(-1).view(torch.uint8).numpy().tobytes() for tensor in results]


def test_losses_over_items_have_the_same_bits_in_threads_of_python(threads_of_python):
    here, *elsewhere = threads_of_python[1]
    assert elsewhere == [here] * 4


def items_here_and_in_threads(*case):
    here = everything_of_items(*case)
    with ThreadPoolExecutor(4) as pool:
        return [here, *pool.map(lambda _: everything_of_items(*case), range(4))]


class Losses(Dataset):
    """The loss of pairs far too many for one worker thread, computed where the worker loads them."""

    def __init__(self, chosen, rejected):
        self.pair = chosen, rejected

    def __len__(self):
        return 4

    def __getitem__(self, i):
        loss, stats = prefloss.bradley_terry_loss(*self.pair, beta=0.25 * (i + 1), return_stats=True)
        return torch.cat((loss.double().view(1), stats.sums))


@pytest.mark.parametrize(
    ("method", "workers"), [pytest.param("fork", 2, marks=needs_fork), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
@forks
def test_workers_of_a_data_loader_compute_the_same_bits(method, workers, set_threads):
    set_threads(4)
    data = Losses(*inputs(LARGE))
    expected = torch.stack([data[i] for i in range(4)])
    loader = DataLoader(data, batch_size=2, num_workers=workers, multiprocessing_context=method, timeout=SECONDS)
    assert torch.equal(torch.cat(list(loader)), expected)


def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double()


def responses(count):
    random = np.random.default_rng(7)
    weight = torch.from_numpy(random.exponential(size=count) * (random.random(count) > 0.2))
    return *(torch.from_numpy(random.normal(size=(count, 8))) for _ in range(2)), weight


CUTS = [0, 5, 18, 18]  # ranks of unequal size, of which the last one has no pairs


def loss_of_rank(outputs, weight, total, return_stats):
    return prefloss.bradley_terry_loss_stacked(
        outputs.squeeze(-1), weight=weight, denominator=total, return_stats=return_stats
    )


def run_on_rank(rank, rendezvous):
    """(what training gives on this rank, in one step and accumulated in two; what all_reduce gives)"""
    torch.set_num_threads(1)
    ranks, part = len(CUTS) - 1, slice(CUTS[rank], CUTS[rank + 1])
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=ranks, timeout=timedelta(seconds=SECONDS)
    )
    try:
        mine = [tensor[part] for tensor in responses(CUTS[-1])]
        return [steps_of_rank(mine, ranks, pieces) for pieces in (1, 2)], reduced_on_rank(rank, mine)
    finally:
        dist.destroy_process_group()


def steps_of_rank(part, ranks, accumulate):
    """Gradients and merged statistics of a rank's part. DDP takes the mean over ranks, so the divisor is the total / ranks."""
    parallel = torch.nn.parallel.DistributedDataParallel(model())
    chosen, rejected, weight = part
    total = weight.sum()
    dist.all_reduce(total)
    stats = PairStats.zero()
    pieces = torch.arange(len(weight)).tensor_split(accumulate)
    for i, piece in enumerate(pieces):
        with contextlib.nullcontext() if i + 1 == len(pieces) else parallel.no_sync():
            outputs = parallel(torch.cat((chosen[piece], rejected[piece])))
            loss, part_stats = loss_of_rank(outputs, weight[piece], total / ranks, True)
            loss.backward()
        stats = stats + part_stats
    gradients = [parameter.grad.tolist() for parameter in parallel.parameters()]
    return gradients, stats.all_reduce().sums.tolist()


needs_gloo = pytest.mark.skipif(
    not dist.is_available() or sys.platform == "win32", reason="torch.distributed has no gloo here"
)


@pytest.fixture(scope="module")
def of_ranks():
    """What run_on_rank returns, of each rank."""
    with tempfile.TemporaryDirectory() as folder:
        ranks = [(rank, os.path.join(folder, "rendezvous")) for rank in range(len(CUTS) - 1)]
        return results_of_processes(FRESH, run_on_rank, ranks)


@needs_gloo
def test_ranks_of_unequal_size_train_as_one_process_does(of_ranks):
    chosen, rejected, weight = responses(CUTS[-1])
    whole = model()
    outputs = whole(torch.cat((chosen, rejected)))
    loss, stats = loss_of_rank(outputs, weight, None, True)
    loss.backward()
    expected = [parameter.grad.tolist() for parameter in whole.parameters()]
    for gradients, sums in (way for ways, _ in of_ranks for way in ways):
        for mine, its in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(mine, its, rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(sums, stats.sums, rtol=1e-13)


def reduced_on_rank(rank, part):
    """The statistics of all ranks, of the first two alone (None elsewhere), and what this rank had."""
    chosen, rejected, weight = part
    _, mine = prefloss.bradley_terry_loss(chosen.sum(1), rejected.sum(1), weight=weight, return_stats=True)
    first = dist.new_group([0, 1])
    before = mine.sums.tolist()
    of_first = mine.all_reduce(first).sums.tolist() if rank < 2 else None
    return mine.all_reduce().sums.tolist(), of_first, before, mine.sums.tolist()


@needs_gloo
def test_all_reduce_gives_each_rank_the_same_bits(of_ranks):
    results = [reduced for _, reduced in of_ranks]
    everyone = [PairStats(torch.tensor(before, dtype=torch.float64)) for _, _, before, _ in results]
    for total, of_first, before, after in results:
        assert total == sum(everyone).sums.tolist()
        assert of_first in (None, sum(everyone[:2]).sums.tolist())
        assert after == before
    assert everyone[-1].count == 0


def test_all_reduce_without_ranks_says_so():
    with pytest.raises(ValueError, match="init_process_group"):
        PairStats.zero().all_reduce()
