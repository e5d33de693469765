"""What only a GPU can show: streams, graphs, no synchronisation, the same bits from run to run and as on the CPU.

`PREFLOSS_REQUIRE_CUDA=1` makes a machine without one fail instead of skipping these.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES
from rounding_bounds import assert_same_bits
from sample_inputs import DTYPES

import prefloss

pytestmark = pytest.mark.skipif("cuda" not in DEVICES, reason="there is no GPU, or this build has no kernels for it")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
over_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

CUDA = torch.device("cuda")
SIZES = (1, 4096, 4097, 1_000_003)  # one block's reach of float32, and more


def drawn(size, dtype=torch.float32, device=CUDA, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [t.to(dtype).to(device).requires_grad_() for t in 4.0 * torch.randn((2, size), generator=generator)]


def options_of(size, device=CUDA):
    generator = torch.Generator().manual_seed(1)
    margin, weight, target = torch.rand((3, size), generator=generator).to(device)
    return {"margin": margin, "weight": weight, "target": target, "beta": 0.5, "label_smoothing": 0.1}


@contextlib.contextmanager
def no_waiting():
    """An operation that makes the host wait for the GPU raises; what was under way before is waited for first."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does not see all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def everything(pair, options):
    loss, stats = prefloss.bradley_terry_loss(*pair, **options, return_stats=True)
    alone = prefloss.bradley_terry_loss(*pair, **options)
    terms = prefloss.bradley_terry_loss(*pair, **options, reduction="none")
    return [loss, alone, terms, stats.sums, *torch.autograd.grad(alone, pair)]


@over_dtypes
def test_every_run_gives_the_same_bits(dtype):
    for size in SIZES:
        pair = drawn(size, dtype)
        for options in ({}, options_of(size)):
            first = everything(pair, options)
            for _ in range(3):
                assert_same_bits(everything(pair, options), first)


@over_dtypes
def test_it_agrees_with_the_cpu(dtype):
    """Pair by pair to the bit, where the CPU has the same fused multiply-add; sums, added in another order, to an ulp.

    Gradients of half precision come from slopes within 2^-16 of each other, of which a few round to neighbours.
    """
    for size in SIZES:
        for given in ({}, options_of(size)):
            there = everything(drawn(size, dtype), given)
            here = everything(
                drawn(size, dtype, "cpu"), {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
            )
            for on_gpu, on_cpu in zip((there[0], there[1]), (here[0], here[1]), strict=True):
                epsilon = torch.finfo(on_cpu.dtype).eps
                torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=4 * epsilon, atol=0)
            torch.testing.assert_close(there[3].cpu(), here[3], rtol=1e-12, atol=1e-12 * size)
            if prefloss.build_info()["cpu"] != "baseline":
                assert_same_bits([there[2].cpu()], [here[2]])
                for one, other in zip(there[4:], here[4:], strict=True):
                    if torch.finfo(dtype).bits == 16:
                        assert_same_or_neighbours(one.cpu(), other)
                    elif "weight" not in given:  # the divisor is a number, not a sum
                        assert_same_bits([one.cpu()], [other])


def assert_same_or_neighbours(one, other):
    """Of half precision; one entry in a hundred may be the next number."""
    steps = (one.detach().view(torch.int16).int() - other.detach().view(torch.int16).int()).abs()
    assert steps.max() <= 1
    assert steps.sum() <= 0.01 * len(steps) + 1


def of_items(layout, dtype=torch.float32, device=CUDA):
    """A call of the grouped or indexed loss, and the rewards that it is of."""
    generator = torch.Generator().manual_seed(2)
    given = (4.0 * torch.randn(20_000, generator=generator)).to(dtype).to(device)
    ranks = torch.randint(0, 6, (20_000,), generator=generator).to(device)
    chosen, rejected = torch.randint(0, 20_000, (2, 100_000), generator=generator).to(device)
    sizes = [0, 1, 9_999, 3_000, 7_000]

    def grouped(given, **options):
        return prefloss.bradley_terry_loss_grouped(given, ranks.view_as(given), ties="half", **options)

    return {
        "groups": (given.view(2_000, 10).requires_grad_(), grouped),
        "lists": (given.requires_grad_(), lambda x, **o: grouped(x, group_sizes=sizes, **o)),
        "indexed": (
            given.requires_grad_(),
            lambda x, **o: prefloss.bradley_terry_loss_indexed(x, chosen, rejected, **o),
        ),
    }[layout]


def everything_of_items(given, function):
    loss, stats = function(given, beta=0.5, return_stats=True)
    alone = function(given)
    return [loss, alone, stats.sums, *torch.autograd.grad(alone, given)]


over_layouts = pytest.mark.parametrize("layout", ["groups", "lists", "indexed"])


@over_layouts
@over_dtypes
def test_items_give_the_same_bits_in_every_run_and_agree_with_the_cpu(layout, dtype):
    there = everything_of_items(*of_items(layout, dtype))
    for _ in range(3):
        assert_same_bits(everything_of_items(*of_items(layout, dtype)), there)
    here = everything_of_items(*of_items(layout, dtype, "cpu"))
    for on_gpu, on_cpu in zip(there[:2], here[:2], strict=True):
        # float64 terms, all of them positive, added in another order; float32 results are rounded once more.
        terms = 2_000 if layout == "groups" else 100_000
        rounding = terms * torch.finfo(torch.float64).eps + 2 * torch.finfo(on_cpu.dtype).eps
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=rounding, atol=0)
    exact = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    torch.testing.assert_close(there[2].cpu(), here[2], rtol=8 * exact, atol=1e-6)
    # Entries cancel, so that their size says nothing: a pair's gradient is at most 1 over the number of pairs.
    rounding, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    atol = 8 * exact * here[3].abs().max().item() + 2 * rounding * tiny  # below `tiny` float16 has fewer digits
    torch.testing.assert_close(there[3].cpu(), here[3], rtol=2 * rounding, atol=atol)


@over_layouts
def test_losses_over_items_wait_for_nothing(layout):
    given, function = of_items(layout)
    with no_waiting():
        loss, _ = function(given, return_stats=True)
        loss.backward()


def in_a_graph(step):
    """The CUDA graph of a step, and the tensors that its replays fill."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    return graph, captured


@pytest.mark.parametrize("layout", ["groups", "indexed"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.5, "center_rewards_coefficient": 0.1}], ids=["default", "options"])
def test_a_step_over_items_is_captured_in_a_graph_and_replayed(layout, options):
    given, function = of_items(layout)
    denominator = torch.tensor(3, device=CUDA)

    def step():
        loss = function(given, denominator=denominator, **options)
        return [loss.detach(), *torch.autograd.grad(loss, given)]  # a graph kept alive belongs to its stream

    graph, captured = in_a_graph(step)
    for number in (5, 6):
        given.data.mul_(0.5)
        denominator.fill_(number)
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        assert_same_bits(replayed, step())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_long_list_waits_for_nothing_and_is_replayed_whatever_its_scores_are(dtype):
    """Whether it takes linear time is decided on the GPU: the last replay has too many cells of scores."""
    generator = torch.Generator().manual_seed(6)
    given = torch.randn(20_000, generator=generator, dtype=dtype).to(CUDA).requires_grad_()
    ranks = torch.randperm(20_000, generator=generator).to(CUDA)

    def step():
        loss = prefloss.bradley_terry_loss_grouped(given[None], ranks[None])
        return [loss.detach(), *torch.autograd.grad(loss, given)]

    with no_waiting():
        step()
    graph, captured = in_a_graph(step)
    for scale in (1.0, 30.0, 100.0):
        given.data.mul_(scale)
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        assert_same_bits(replayed, step())


@over_layouts
@over_dtypes
def test_weighted_items_agree_with_the_cpu(layout, dtype):
    results = []
    for device in ("cpu", CUDA):
        given, function = of_items(layout, dtype, device)
        count = {"groups": 2_000, "lists": 5, "indexed": 100_000}[layout]
        generator = torch.Generator().manual_seed(4)
        weight = 2.0 ** torch.randint(-30, 30, (count,), generator=generator).float()
        denominator = torch.tensor(7.0, device=device)
        loss = function(given, weight=weight.to(device), denominator=denominator, beta=0.5)
        results.append([loss.detach().cpu(), torch.autograd.grad(loss, given)[0].cpu()])
    (loss, gradient), (on_gpu, its_gradient) = results
    exact, rounding = torch.finfo(loss.dtype).eps, torch.finfo(dtype).eps
    torch.testing.assert_close(on_gpu, loss, rtol=8 * exact, atol=0)
    torch.testing.assert_close(its_gradient, gradient, rtol=2 * rounding, atol=8 * exact * gradient.abs().max().item())


@needs_two
def test_items_on_two_gpus_are_refused():
    given, _ = of_items("indexed")
    with pytest.raises(ValueError, match="must be on the same device"):
        prefloss.bradley_terry_loss_indexed(given, *torch.zeros(2, 3, dtype=torch.int64, device="cuda:1"))


@pytest.mark.parametrize("of", ["ranks", "chosen_index"])
def test_a_value_that_is_none_fails_an_assertion_on_the_gpu(of):
    """In a process of its own: after such a failure its context is of no use."""
    code = {
        "ranks": "prefloss.bradley_terry_loss_grouped(x[None], x[None] * float('nan'))",
        "chosen_index": "prefloss.bradley_terry_loss_indexed(x, torch.tensor([9]).cuda(), torch.tensor([0]).cuda())",
    }[of]
    script = f"import torch, prefloss; x = torch.ones(5, device='cuda'); {code}; torch.cuda.synchronize()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "assert" in done.stderr.lower()


def test_products_of_many_losses_stay_finite():
    """Thousands of pairs a thread, each of which doubles the product that it keeps in the place of a sum of logarithms."""
    pairs = torch.zeros(2**29, dtype=torch.bfloat16, device=CUDA)
    assert prefloss.bradley_terry_loss(pairs, pairs).item() == pytest.approx(math.log(2), rel=1e-7)
    rewards = 1e-3 * torch.randn(300, 1_100, generator=torch.Generator().manual_seed(0))
    ranks = torch.arange(1_100).expand(300, -1)
    there, here = (prefloss.bradley_terry_loss_grouped(rewards.to(to), ranks.to(to)).item() for to in (CUDA, "cpu"))
    assert there == pytest.approx(here, rel=1e-6)


@over_dtypes
@pytest.mark.parametrize("sizes", [[4_097], [64] * 40, [513, 0, 1, 2_000, 130], [100_000]], ids=str)
def test_groups_of_any_sizes_agree_with_the_cpu(sizes, dtype):
    """Few items in large groups have many threads each, and many items one."""
    generator = torch.Generator().manual_seed(0)
    rewards = (2.0 * torch.randn(sum(sizes), generator=generator)).to(dtype)
    ranks = torch.randint(0, 5, rewards.shape, generator=generator)
    results = []
    for to in (CUDA, torch.device("cpu")):
        given = rewards.to(to).requires_grad_()
        loss, stats = prefloss.bradley_terry_loss_grouped(
            given, ranks.to(to), group_sizes=torch.tensor(sizes), return_stats=True
        )
        results.append([loss, stats.sums, *torch.autograd.grad(loss, given)])
    there, here = ([tensor.cpu() for tensor in result] for result in results)
    rounding = torch.finfo(dtype).eps
    exact = torch.finfo(here[0].dtype).eps
    torch.testing.assert_close(there[0], here[0], rtol=max(8 * exact, 1e-12), atol=0)
    torch.testing.assert_close(there[1], here[1], rtol=max(8 * exact, 1e-12), atol=1e-6)
    torch.testing.assert_close(there[2], here[2], rtol=2 * rounding, atol=8 * exact * here[2].abs().max().item())


def test_a_call_follows_what_its_stream_does_before():
    """The rewards are written by the same stream, after a wait: a launch on any other stream would read the old ones."""
    stream = torch.cuda.Stream()
    for run in range(20):
        new = drawn(100_000, seed=run)
        expected = torch.autograd.grad(prefloss.bradley_terry_loss(*new), new)
        pair = [torch.zeros_like(tensor).requires_grad_() for tensor in new]
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(2_000_000)
            for old, values in zip(pair, new, strict=True):
                old.data.copy_(values.detach())
            gradients = torch.autograd.grad(prefloss.bradley_terry_loss(*pair), pair)
        stream.synchronize()
        assert_same_bits(gradients, expected)


@pytest.mark.parametrize("size", [64, 100_000])
@pytest.mark.parametrize("with_options", [False, True], ids=["default", "options"])
def test_a_whole_step_is_captured_in_a_graph_and_replayed(size, with_options):
    pair = drawn(size)
    denominator = torch.tensor(float(size), device=CUDA)
    options = {**options_of(size), "denominator": denominator} if with_options else {}

    def step():
        loss = prefloss.bradley_terry_loss(*pair, **options)
        return [loss.detach(), *torch.autograd.grad(loss, pair)]

    graph, captured = in_a_graph(step)
    for seed in (5, 6):
        for tensor, values in zip(pair, drawn(size, seed=seed), strict=True):
            tensor.data.copy_(values.detach())
        graph.replay()
        replayed = [tensor.clone() for tensor in captured]
        assert_same_bits(replayed, step())


def test_nothing_waits_for_the_gpu():
    pair, options = drawn(100_000), options_of(100_000)
    denominator = torch.tensor(7, device=CUDA)
    with no_waiting():
        for given in ({}, options, {**options, "denominator": denominator}, {"reduction": "sum"}):
            loss, _ = prefloss.bradley_terry_loss(*pair, **given, return_stats=True)
            loss.backward()
            prefloss.bradley_terry_loss(*pair, **given).backward()
        (gradient, _) = torch.autograd.grad(prefloss.bradley_terry_loss(*pair), pair, create_graph=True)
        gradient.sum().backward()


def test_autocast_and_gradient_scaling_train():
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 1, device=CUDA)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    scaler = torch.amp.GradScaler("cuda")
    chosen, rejected = torch.randn(256, 16, device=CUDA) + 0.3, torch.randn(256, 16, device=CUDA)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        with torch.autocast("cuda", dtype=torch.float16):
            loss = prefloss.bradley_terry_loss(model(chosen).squeeze(1), model(rejected).squeeze(1))
        assert loss.dtype is torch.float32
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        expected = -F.logsigmoid(model(chosen) - model(rejected)).mean()
        (gradient,) = torch.autograd.grad(expected, model.weight)
        torch.testing.assert_close(model.weight.grad, gradient, rtol=2e-2, atol=2e-3)
        scaler.step(optimiser)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_step_needs_the_memory_of_its_gradients():
    pair = drawn(2**22)
    prefloss.bradley_terry_loss(*pair).backward()
    for tensor in pair:
        tensor.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    prefloss.bradley_terry_loss(*pair).backward()
    torch.cuda.synchronize()
    assert torch.cuda.max_memory_allocated() - before <= 2 * pair[0].nbytes + 2**20


@pytest.mark.parametrize("name", ["margin", "weight", "target"])
def test_an_option_on_the_cpu_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be on the same device as the rewards, cuda:0, got cpu"):
        prefloss.bradley_terry_loss(*drawn(5), **{name: torch.ones(5)})


def test_compiled_and_transformed_calls_give_the_same_bits():
    pair = drawn(5000)
    loss = prefloss.bradley_terry_loss(*pair)
    expected = [loss, *torch.autograd.grad(loss, pair)]
    compiled = torch.compile(prefloss.bradley_terry_loss, fullgraph=True)(*pair)
    assert_same_bits([compiled, *torch.autograd.grad(compiled, pair)], expected)
    rows = [torch.stack([tensor.detach()] * 3) for tensor in pair]
    gradients, losses = torch.func.vmap(torch.func.grad_and_value(prefloss.bradley_terry_loss, (0, 1)))(*rows)
    for row in range(3):
        assert_same_bits([losses[row], gradients[0][row], gradients[1][row]], expected)


@needs_two
def test_another_device_than_the_current_one_works_and_stays_so():
    pair = drawn(5000, device="cuda:1")
    with torch.cuda.device(0):
        loss = prefloss.bradley_terry_loss(*pair)
        gradients = torch.autograd.grad(loss, pair)
        assert torch.cuda.current_device() == 0
    assert loss.device == gradients[0].device == torch.device("cuda:1")
    assert_same_bits([t.cpu() for t in gradients], [t.cpu() for t in torch.autograd.grad(loss_on_first(pair), pair)])


def loss_on_first(pair):
    return prefloss.bradley_terry_loss(*(tensor.to("cuda:0") for tensor in pair))


def train_one_rank(rank, port, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("nccl", rank=rank, world_size=2)
    torch.cuda.set_device(rank)
    model, inputs = model_and_inputs(f"cuda:{rank}")
    model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank])
    part = slice(0, 30) if rank == 0 else slice(30, None)
    chosen, rejected = (model(x[part]).squeeze(1) for x in inputs)
    # DDP averages the ranks' gradients: half the pairs, so that the average is the whole batch's mean.
    prefloss.bradley_terry_loss(chosen, rejected, denominator=len(inputs[0]) / 2).backward()
    if rank == 0:
        results.put(model.module.weight.grad.cpu().numpy())
    torch.distributed.destroy_process_group()


def model_and_inputs(device):
    torch.manual_seed(0)
    model, inputs = torch.nn.Linear(8, 1), torch.randn(2, 100, 8)
    return model.to(device), inputs.to(device)


@needs_two
def test_ranks_of_unequal_size_give_the_gradient_of_the_whole_batch():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    ranks = [context.Process(target=train_one_rank, args=(rank, port, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    gradient = torch.from_numpy(results.get(timeout=120))
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    model, inputs = model_and_inputs("cuda:0")
    prefloss.bradley_terry_loss(*(model(x).squeeze(1) for x in inputs)).backward()
    torch.testing.assert_close(gradient, model.weight.grad.cpu(), rtol=1e-5, atol=1e-7)
