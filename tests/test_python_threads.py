"""Calls of all layouts from many Python threads at once give the bits that they give alone: also without a GIL.

`make thread-sanitize` runs this file, and all tests with `threads` in their name, with a build in which the thread sanitizer sees
every access to memory. In that build kernels have threads of their own (csrc/cpu/threads.h), since the sanitizer does not see how
torch's wait for each other.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from calls import FEW, over_few
from rounding_bounds import assert_same_bits

THREADS = 8


@pytest.fixture(autouse=True)
def turns_are_short():
    """Where there is a GIL, threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def step(call, tensors):
    """Copies, which no later call could change."""
    return [tensor.clone() for tensor in call.step(tensors)]


def at_once(task):
    """[task(0), task(1), ...], each in a thread of its own, that all begin together."""
    start = Barrier(THREADS)

    def wait_and_run(thread):
        torch.set_num_threads(1)  # of this thread of Python
        start.wait(timeout=60)
        return task(thread)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(wait_and_run, range(THREADS), timeout=300))


@over_few
def test_threads_that_share_their_inputs_get_the_same_bits(call):
    tensors = call.drawn()
    expected = step(call, tensors)
    for results in at_once(lambda _: [step(call, tensors) for _ in range(8)]):
        for result in results:
            assert_same_bits(result, expected)


@pytest.mark.parametrize("call", [call for call in FEW if call.option == "everything"], ids=str)
def test_calls_that_let_go_of_the_gil_get_the_same_bits(call):
    """Of so many pairs or items that they do."""
    tensors = call.drawn(large=True)
    expected = step(call, tensors)
    for result in at_once(lambda _: step(call, tensors)):
        assert_same_bits(result, expected)


def test_threads_with_calls_of_their_own_do_not_disturb_each_other():
    """Each thread begins with another call, so that different layouts and options meet."""
    inputs = [call.drawn(seed=seed) for seed, call in enumerate(FEW)]
    expected = [step(call, tensors) for call, tensors in zip(FEW, inputs, strict=True)]

    def all_calls(thread):
        places = [(place + thread * len(FEW) // THREADS) % len(FEW) for place in range(len(FEW))]
        return {place: step(FEW[place], inputs[place]) for _ in range(4) for place in places}

    for results in at_once(all_calls):
        for place, result in results.items():
            assert_same_bits(result, expected[place])


def test_the_module_does_not_ask_for_the_gil():
    """Else an import would turn it on again for the whole process, with a warning."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        import prefloss._core  # noqa: F401

        assert not sys._is_gil_enabled()
    else:
        pytest.skip("this Python has a GIL")


def test_operators_may_be_called_at_once():
    """As compiled code calls them, which has no Python of ours around it."""
    call = next(call for call in FEW if str(call) == "grouped-everything")
    tensors = call.drawn()

    def gradient(rewards):
        return torch.func.grad(lambda values: call.outputs({**tensors, "rewards": values})[0])(rewards)

    expected = gradient(tensors["rewards"].detach())
    for result in at_once(lambda _: gradient(tensors["rewards"].detach())):
        assert_same_bits([result], [expected])
