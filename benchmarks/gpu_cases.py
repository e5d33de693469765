"""What gpu.py times: the GPU's cases and their contenders, each of which checks itself against float64.

A step is forward and backward; a graph replay is a step without the host; forward and backward alone show bandwidth,
against a copy of as many bytes. Gradients of 2**26 pairs all round to 0 in float16: the speed there is honest, but the
check is none.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial

import torch
from cases import Case, eager
from contenders import OURS, THEIRS, Contender, Expected, LossFunction, Tolerance, check_gradients, check_loss, step
from torch import Tensor

import prefloss
from prefloss import reference

if importlib.util.find_spec("triton") is None:
    TRITON_VERSION = None
else:
    import triton_loss

    TRITON_VERSION = triton_loss.VERSION

LAUNCH_BOUND = 65_536  # up to so many pairs the host, not the GPU, decides how long a step takes
CASES = (
    *(Case("step", torch.float32, size) for size in (8, 64, 256, 4_096, LAUNCH_BOUND, 2**20, 2**24, 2**26, 2**27)),
    *(Case(kind, torch.float32, 2**power) for power in (24, 25, 26, 27) for kind in ("forward", "backward")),
    *(Case("graph replay", torch.float32, size) for size in (8, 64, 256, 4_096, LAUNCH_BOUND)),
    *(Case("step", dtype, size) for dtype in (torch.bfloat16, torch.float16) for size in (2**20, 2**26)),
)
MEMORY_CASE = Case("step", torch.float32, 2**24)
BYTES_A_PAIR = 128  # at most so much memory do the rewards, a contender and its check in float64 take
EXTREME_DIFFERENCES = (100.0, -100.0, 16.0, 0.0)


def contenders_of(case: Case, device: str) -> dict[str, Callable[[], Contender]]:
    """What makes each contender of a case, "prefloss" first."""
    chosen, rejected = _rewards(case, device)
    expected, functions = _expected(chosen, rejected), _loss_functions()
    alone = case.kind in ("forward", "backward")
    make = {"step": step, "graph replay": _graph_replay, "forward": _forward, "backward": _backward}[case.kind]
    contenders: dict[str, Callable[[], Contender]] = {
        name: partial(
            make, function, (chosen, rejected), expected, (OURS if name == "prefloss" else THEIRS)[case.dtype]
        )
        for name, function in functions.items()
        if not alone or name in ("prefloss", "Triton")
    }
    if alone:
        contenders["device copy"] = partial(_device_copy, case, device)
    return contenders


def _loss_functions() -> dict[str, LossFunction]:
    torch._dynamo.reset()  # each size gets its own code, as fast as it can be, instead of one for all sizes
    functions: dict[str, LossFunction] = {
        "prefloss": prefloss.bradley_terry_loss,
        "eager": eager,
        "torch.compile": torch.compile(eager, fullgraph=True, dynamic=False),
    }
    if TRITON_VERSION is not None:
        functions["Triton"] = triton_loss.bradley_terry_loss
    return functions


def _rewards(case: Case, device: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(case.size)
    chosen, rejected = (torch.randn(case.size, generator=generator, device=device) for _ in range(2))
    chosen += 0.5
    extremes = torch.tensor(EXTREME_DIFFERENCES, device=device)
    chosen[: len(extremes)], rejected[: len(extremes)] = extremes, 0.0
    return chosen.to(case.dtype).requires_grad_(), rejected.to(case.dtype).requires_grad_()


def _expected(chosen: Tensor, rejected: Tensor) -> Callable[[], Expected]:
    """The reference on the device, float64 but for the difference of rewards, which is float32 by contract."""

    @cache
    def compute() -> Expected:
        a, b = chosen.detach().float(), rejected.detach().float()
        z = (a - b).double()
        e = torch.exp(-z.abs())
        loss = float((e.log1p() + (-z).clamp(min=0.0)).mean())
        slope = torch.where(z < 0, 1.0, e).div_(1.0 + e).div_(-z.numel())
        if z.numel() <= LAUNCH_BOUND:
            arrays = a.cpu().numpy(), b.cpu().numpy()
            assert abs(loss / float(reference.bradley_terry_loss(*arrays)) - 1.0) < 1e-6
            reference_slope = torch.from_numpy(reference.bradley_terry_gradient(1.0, *arrays)[0])
            torch.testing.assert_close(slope.cpu(), reference_slope, rtol=1e-6, atol=0.0)
        return Expected(loss, (slope, -slope))

    return compute


def _graph_replay(
    function: LossFunction, leaves: tuple[Tensor, ...], expected: Callable[[], Expected], tolerance: Tolerance
) -> Contender:
    """The whole step captured in a CUDA graph: what remains of it without the host."""

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss = function(*leaves)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    gradients = tuple(leaf.grad for leaf in leaves)

    def check() -> float:
        for output in (loss, *gradients):
            assert output is not None
            output.fill_(torch.nan)
        graph.replay()
        check_gradients(gradients, expected(), tolerance)
        return check_loss(loss, expected().loss, tolerance)

    return Contender(graph.replay, check)


def _forward(
    function: LossFunction, leaves: tuple[Tensor, ...], expected: Callable[[], Expected], tolerance: Tolerance
) -> Contender:
    run = partial(function, *(leaf.detach() for leaf in leaves))
    return Contender(run, lambda: check_loss(run(), expected().loss, tolerance))


def _backward(
    function: LossFunction, leaves: tuple[Tensor, ...], expected: Callable[[], Expected], tolerance: Tolerance
) -> Contender:
    loss = function(*leaves)
    upstream = torch.ones_like(loss)

    def run() -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, leaves, upstream, retain_graph=True)

    def check() -> float:
        check_gradients(run(), expected(), tolerance)
        return 0.0

    return Contender(run, check)


def _device_copy(case: Case, device: str) -> Contender:
    """Moves as many bytes as the case must: forward reads two tensors, backward reads two and writes two."""
    source = torch.randn(case.size * (1 if case.kind == "forward" else 2), device=device)
    target = torch.empty_like(source)

    def check() -> float:
        assert torch.equal(target.copy_(source), source)
        return 0.0

    return Contender(partial(target.copy_, source), check)


def peak_bytes(name: str, case: Case, device: str) -> int:
    """The high-water mark of one step over what the rewards take, its gradients included."""
    chosen, rejected = _rewards(case, device)
    function = _loss_functions()[name]
    run = step(function, (chosen, rejected), _expected(chosen, rejected), THEIRS[case.dtype]).run
    run()  # compiles
    chosen.grad = rejected.grad = None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
