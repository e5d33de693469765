"""Processes in which prefloss is not imported yet, for what a test cannot do in its own.

`import torch` takes two seconds of a core. A server (Python's own, of multiprocessing) does it once, and each process is a fork of
it. Where a system has no such server, each process imports torch itself.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
CONTEXT = multiprocessing.get_context(METHOD)
if METHOD == "forkserver":
    CONTEXT.set_forkserver_preload(["torch", "numpy"])  # nothing else: a test looks at what prefloss imports
SECONDS = 600  # only what hangs takes so long


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process that has been started."""

    def __init__(self, target, arguments, environment):
        self.printed = tempfile.TemporaryDirectory()
        self.process = CONTEXT.Process(target=_begin, args=(self.printed.name, environment, target, arguments))
        self.process.start()

    def wait(self):
        self.process.join(SECONDS)
        hangs = self.process.exitcode is None
        if hangs:
            self.process.kill()
            self.process.join()
        said = [Path(self.printed.name, name).read_text() for name in ("stdout", "stderr")]
        self.printed.cleanup()
        assert not hangs, f"no end within {SECONDS} s: the process hangs; it printed {said}"
        return Ended(self.process.exitcode, *said)


def start(function, *arguments, **environment):
    """Starts a process that calls a function, named as "module:function", with these arguments and environment variables.

    The module is imported there, after the variables are set: whatever it imports finds them.
    """
    return Running("call", (function, *arguments), environment)


def run(code, *arguments, **environment):
    """How a process ends that runs `code` as a script, with these arguments (of which it finds the first in sys.argv[1])."""
    return Running("execute", (code, *arguments), environment).wait()


def _begin(folder, environment, target, arguments):
    os.environ.update(environment)
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        stream.flush()
        file = os.open(Path(folder, ("stdout", "stderr")[number - 1]), os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    {"call": _call, "execute": _execute}[target](*arguments)


def _call(function, *arguments):
    module, _, name = function.partition(":")
    getattr(importlib.import_module(module), name)(*arguments)


def _execute(code, *arguments):
    sys.argv[:] = ["-c", *arguments]
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
