"""What gpu.py times: the GPU's cases and their contenders, each of which checks itself against float64.

A step is forward and backward; a graph replay is a step without the host; forward and backward alone show bandwidth,
against a copy of as many bytes. Gradients of 2**26 pairs all round to 0 in float16: the speed there is honest, but the
check is none. The small calls are those of the CPU's benchmark, on tensors of the GPU.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import call_cases
import torch
from cases import Case, eager
from contenders import (
    OURS,
    THEIRS,
    Contender,
    Expected,
    LossFunction,
    Tolerance,
    as_array,
    check_gradients,
    check_loss,
    step,
)
from torch import Tensor

import prefloss
from prefloss import reference

if importlib.util.find_spec("triton") is None:
    TRITON_VERSION = None
else:
    import triton_loss

    TRITON_VERSION = triton_loss.VERSION

LAUNCH_BOUND = 65_536  # up to so many pairs the host, not the GPU, decides how long a step takes
ALONE = ("forward", "backward")
# What forward and backward take beside the rewards, and its bytes a pair.
OPTIONS = {"statistics": 0, "beta": 0, "margin and weight": 8}
DEFAULTS = {"beta": 1.0, "margin": 0.0, "weight": 1.0}
CASES = (
    *(Case("step", torch.float32, size) for size in (8, 64, 256, 4_096, LAUNCH_BOUND, 2**20, 2**24, 2**26, 2**27)),
    *(Case(kind, torch.float32, 2**power) for power in (24, 25, 26, 27) for kind in ALONE),
    *(Case("graph replay", torch.float32, size) for size in (8, 64, 256, 4_096, LAUNCH_BOUND)),
    *(Case("step", dtype, size) for dtype in (torch.bfloat16, torch.float16) for size in (2**20, 2**26)),
    *(Case(kind, dtype, 2**26) for dtype in (torch.bfloat16, torch.float16) for kind in ALONE),
    *(
        Case(f"{kind}, {option}", dtype, 2**26)
        for dtype in (torch.float32, torch.bfloat16)
        for option in OPTIONS
        for kind in ALONE
        if (kind, option) != ("backward", "statistics")  # which is the plain one
    ),
    *(Case(kind, torch.float32, size) for kind, size in call_cases.NAMES),
)
MEMORY_CASE = Case("step", torch.float32, 2**24)
BYTES_A_PAIR = 128  # at most so much memory do the rewards, a contender and its check in float64 take
EXTREME_DIFFERENCES = (100.0, -100.0, 16.0, 0.0)


def contenders_of(case: Case, device: str) -> dict[str, Callable[[], Contender]]:
    """What makes each contender of a case, "prefloss" first."""
    if case.kind.startswith("call "):
        return _small_call(case, device)
    pair, functions = _rewards(case, device), _loss_functions()
    kind, _, option = case.kind.partition(", ")
    options = _options(option, case, device)
    expected, alone = _expected(*pair, **options), kind in ALONE
    if option:
        functions = {"prefloss": partial(prefloss.bradley_terry_loss, **options)}
    make = {"step": step, "graph replay": _graph_replay, "forward": _forward, "backward": _backward}[kind]
    contenders: dict[str, Callable[[], Contender]] = {
        name: partial(make, function, pair, expected, (OURS if name == "prefloss" else THEIRS)[case.dtype])
        for name, function in functions.items()
        if not alone or name in ("prefloss", "Triton")
    }
    if alone:
        contenders["device copy"] = partial(_device_copy, _bytes_moved(kind, option, case), device)
    return contenders


def _small_call(case: Case, device: str) -> dict[str, Callable[[], Contender]]:
    with torch.device(device):
        contenders = call_cases.contenders_of(case.kind, case.size, torch.Generator(device).manual_seed(0), True)
    return {name: partial(_made, contender) for name, contender in contenders.items()}


def _made(contender: Contender) -> Contender:
    return contender


def _options(option: str, case: Case, device: str) -> dict[str, Any]:
    if option == "margin and weight":
        margin, weight = torch.rand(2, case.size, device=device, generator=torch.Generator(device).manual_seed(1))
        return {"margin": margin, "weight": weight}
    numbers: dict[str, dict[str, Any]] = {"": {}, "statistics": {"return_stats": True}, "beta": {"beta": 0.5}}
    return numbers[option]


def _bytes_moved(kind: str, option: str, case: Case) -> int:
    """Forward reads two tensors, backward reads two and writes two; an option is read."""
    return ((2 if kind == "forward" else 4) * case.dtype.itemsize + OPTIONS.get(option, 0)) * case.size


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


def _expected(chosen: Tensor, rejected: Tensor, **options: Any) -> Callable[[], Expected]:
    """The reference on the device, float64 but for the difference of rewards, which is float32 by contract."""
    beta, margin, weight = (options.get(name, default) for name, default in DEFAULTS.items())

    @cache
    def compute() -> Expected:
        a, b = chosen.detach().float(), rejected.detach().float()
        z = ((a - b) * beta - margin).double()
        e = torch.exp(-z.abs())
        total = weight.double().sum() if isinstance(weight, Tensor) else z.numel()
        loss = float((e.log1p_() + (-z).clamp_(min=0.0)).mul_(weight).sum() / total)
        slope = torch.sigmoid(-z).mul_(weight).mul_(-beta / total)
        if z.numel() <= LAUNCH_BOUND:
            arrays = as_array(a), as_array(b)
            given: dict[str, Any] = {
                name: as_array(value) if isinstance(value, Tensor) else value
                for name, value in options.items()
                if name in DEFAULTS
            }
            assert abs(loss / float(reference.bradley_terry_loss(*arrays, **given)) - 1.0) < 1e-6
            reference_slope = torch.from_numpy(reference.bradley_terry_gradient(1.0, *arrays, **given)[0])
            torch.testing.assert_close(slope.cpu(), reference_slope, rtol=1e-6, atol=1e-50)
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
    return Contender(run, lambda: check_loss(_loss_of(run()), expected().loss, tolerance))


def _loss_of(result: Any) -> Tensor:
    """With statistics a loss is the first of two."""
    loss: Tensor = result[0] if isinstance(result, tuple) else result
    return loss


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


def _device_copy(bytes_moved: int, device: str) -> Contender:
    """Reads half of the bytes and writes the other half."""
    source = torch.randn(bytes_moved // 8, device=device)
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
