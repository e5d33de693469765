"""What the compiler made of the CUDA kernels: registers, spills, shared memory, 16-byte accesses, bytes a pair. No GPU.

python benchmarks/cuda_static.py --markdown docs/cuda_kernels.md

Exits with 1 where a kernel spills or goes through generic addresses, or where a plain kernel's loop has other than
16-byte accesses or moves more bytes a pair than it must. Needs nvcc and c++filt; cuobjdump and nvdisasm, where CUDA's
toolkit is without them: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SOURCES = (Path("csrc/cuda/paired.cu"), Path("csrc/cuda/grouped.cu"), Path("csrc/cuda/indexed.cu"))
AHEAD = Path("csrc/cuda/pair_groups.cuh")  # says how many groups
SIZES = {"float": 4, "double": 8, "BFloat16": 2, "Float16": 2}  # bytes of an entry
COLUMNS = {"plain_forward": (2, 0), "plain_backward": (2, 2)}  # columns that must be loaded and stored
# Warps that fit on a multiprocessor; all of them have 65536 registers.
WARPS = {"75": 32, "80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "120": 48}
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
USAGE = re.compile(
    r"Compiling entry function '(.*)' for.*\n.*\n\s*(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\n.*Used (\d+) registers(?:.*?(\d+) bytes smem)?"
)


class Usage(NamedTuple):
    stack: int
    spill_stores: int
    spill_loads: int
    registers: int
    shared: int


class Traffic(NamedTuple):
    """Global accesses: how many of 16 bytes, and the bytes of the narrower ones."""

    wide_loads: int
    wide_stores: int
    narrow_loads: int
    narrow_stores: int


class Kernel(NamedTuple):
    usage: Usage
    generic: int
    whole: Traffic
    loop: Traffic | None


def output_of(*command: str | Path, text: str | None = None) -> str:
    """What a command printed, on either stream."""
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", cwd=ROOT
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def tool(name: str, package: str | None = None) -> str:
    """A program's path, from PATH or from a PyPI package."""
    found = shutil.which(name)
    if not found and package:
        try:
            files = importlib.metadata.files(package) or []
            found = next((str(file.locate()) for file in files if file.name == name), None)
        except importlib.metadata.PackageNotFoundError:
            pass
    if not found:
        sys.exit(f"there is no {name} in PATH" + (f", nor the package: pip install {package}" if package else ""))
    return found


def build_settings() -> tuple[list[str], list[str]]:
    """The architectures and the flags that CMakeLists.txt compiles the kernels with."""
    text = (ROOT / "CMakeLists.txt").read_text()
    architectures = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)", text)
    flags = re.search(r"target_compile_options\(kernels_cuda PRIVATE (-[^)]*)\)", text)
    assert architectures, "no architectures in CMakeLists.txt"
    assert flags, "no flags of kernels_cuda in CMakeLists.txt"
    return (
        [name.removesuffix("-real") for name in architectures[1].split()],
        ["-O3", "-DNDEBUG", "-std=c++17", *flags[1].split(), "-Werror=all-warnings"],
    )


def short_name(signature: str) -> str:
    """plain_forward<float> for the whole demangled signature."""
    return re.sub(r"\(anonymous namespace\)|void |[\w]+(?=::)|::", "", signature).partition("(")[0]


def traffic_of(opcodes: list[str]) -> Traffic:
    counts: Counter[tuple[str, int]] = Counter()
    for opcode in opcodes:
        name, *suffixes = opcode.split(".")
        counts[name, next((WIDTHS[suffix] for suffix in suffixes if suffix in WIDTHS), 4)] += 1
    narrow = {
        name: sum(n * width for (key, width), n in counts.items() if key == name and width < 16)
        for name in ("LDG", "STG")
    }
    return Traffic(counts["LDG", 16], counts["STG", 16], narrow["LDG"], narrow["STG"])


def vector_loop(instructions: list[tuple[int, str, str]]) -> Traffic | None:
    """The one innermost loop that loads 16 bytes at a time and nothing narrower: from a backward branch's target on."""
    loops = []
    for address, opcode, operands in instructions:
        target = re.search(r"0x([0-9a-f]+)\s*$", operands)
        if opcode.split(".")[0] == "BRA" and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    inner = [(a, b) for a, b in loops if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)]
    bodies = [traffic_of([opcode for at, opcode, _ in instructions if a <= at <= b]) for a, b in inner]
    found = [body for body in bodies if body.wide_loads and not body.narrow_loads]
    return found[0] if len(found) == 1 else None


def compiled(architecture: str, source: Path, flags: list[str], cuobjdump: str, folder: Path) -> dict[str, Kernel]:
    """The kernels of one source for one architecture, by name."""
    cubin = folder / f"{source.stem}_sm_{architecture}.cubin"
    said = output_of("nvcc", *flags, f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin", source, "-o", cubin)
    said = output_of("c++filt", text=said)
    usages = {short_name(name): Usage(*(int(n or 0) for n in figures)) for name, *figures in USAGE.findall(said)}
    sass = output_of("c++filt", text=output_of(cuobjdump, "-sass", cubin))
    kernels = {}
    for listing in sass.split("Function : ")[1:]:
        signature, _, body = listing.partition("\n")
        instructions = [(int(at, 16), opcode, operands) for at, opcode, operands in INSTRUCTION.findall(body)]
        opcodes = [opcode for _, opcode, _ in instructions]
        generic = sum(opcode.split(".")[0] in ("LD", "ST") for opcode in opcodes)
        name = short_name(signature)
        kernels[name] = Kernel(usages[name], generic, traffic_of(opcodes), vector_loop(instructions))
    assert kernels.keys() == usages.keys()
    return kernels


def pairs_a_pass(name: str) -> int:
    """Pairs that a thread takes in one pass of a plain kernel's loop: kAhead groups of 16 bytes."""
    ahead = re.search(r"\bkAhead = (\d+)", (ROOT / AHEAD).read_text())
    assert ahead, f"{AHEAD} has no kAhead"
    return int(ahead[1]) * 16 // entry_size(name)


def entry_size(name: str) -> int:
    return SIZES[name.partition("<")[2].rstrip(">")]


def floor_of(name: str) -> int:
    return sum(COLUMNS[name.partition("<")[0]]) * entry_size(name)


def bytes_a_pair(name: str, loop: Traffic) -> float:
    """Either the 16-byte stores run or, where a gradient's address does not suit them, the narrow ones."""
    return (16 * loop.wide_loads + max(16 * loop.wide_stores, loop.narrow_stores)) / pairs_a_pass(name)


def faults(name: str, kernel: Kernel) -> list[str]:
    """What is wrong with a kernel."""
    usage, found = kernel.usage, []
    if usage.stack or usage.spill_stores or usage.spill_loads:
        found.append(f"spills: {usage.stack} bytes of stack, {usage.spill_stores} stored, {usage.spill_loads} loaded")
    if kernel.generic:
        found.append(f"has {kernel.generic} generic loads or stores")
    columns = COLUMNS.get(name.partition("<")[0])
    if not columns:
        return found
    if not kernel.loop:
        return [*found, "has no loop, or several, that loads 16 bytes at a time and nothing narrower"]
    if columns[1] and not kernel.loop.wide_stores:
        found.append("has no 16-byte stores in its loop")
    if bytes_a_pair(name, kernel.loop) > floor_of(name):
        found.append(f"moves {bytes_a_pair(name, kernel.loop):g} bytes a pair; {floor_of(name)} will do")
    return found


def occupancy(architecture: str, registers: int) -> str:
    """The share of a multiprocessor's warps that its registers allow, in blocks of 8 warps."""
    of_a_warp = -(-registers * 32 // 256) * 256
    return f"{min(65536 // (8 * of_a_warp) * 8, WARPS[architecture]) / WARPS[architecture]:.0%}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def loop_row(name: str, report: dict[str, dict[str, Kernel]]) -> list[str]:
    loops = {architecture: kernels[name].loop for architecture, kernels in report.items()}
    moved = max(bytes_a_pair(name, loop) for loop in loops.values() if loop)
    shares = [occupancy(architecture, kernels[name].usage.registers) for architecture, kernels in report.items()]
    of_90 = loops["90"]
    accesses = f"{of_90.wide_loads} / {of_90.wide_stores}" if of_90 else "none"
    return [f"`{name}`", accesses, str(pairs_a_pass(name)), f"{moved:g}", str(floor_of(name)), *shares]


def resources_row(name: str, report: dict[str, dict[str, Kernel]]) -> list[str]:
    usages, whole = [kernels[name].usage for kernels in report.values()], report["90"][name].whole
    spilled = sum(usage.stack + usage.spill_stores + usage.spill_loads for usage in usages)
    shared = " or ".join(str(size) for size in sorted({usage.shared for usage in usages}))
    registers = [str(usage.registers) for usage in usages]
    return [f"`{name}`", *registers, str(spilled or "none"), shared, f"{whole.wide_loads} / {whole.wide_stores}"]


def markdown(report: dict[str, dict[str, Kernel]], flags: list[str]) -> str:
    """The report as a document."""
    release = re.search(r"V[\d.]+", output_of("nvcc", "--version"))
    resources = [resources_row(name, report) for name in sorted(report["90"])]
    loops = [loop_row(name, report) for name in sorted(report["90"]) if name.partition("<")[0] in COLUMNS]
    columns = [f"sm_{architecture}" for architecture in report]
    return f"""# The CUDA kernels as compiled

By `make cuda-report`, which fails where a kernel spills registers or a plain one moves more bytes than it must.
Compiled: {" and ".join(f"`{source}`" for source in SOURCES)} by nvcc {release[0] if release else "?"}, once per architecture, with
`{" ".join(flags)}`.
All of this is static, read from what ptxas says and from the machine code (SASS). Nothing here ran on a GPU, and it says
nothing of speed.

## The loop of the plain kernels

What runs where there are no options, and the rewards are contiguous and begin at a multiple of 16 bytes. In one pass of
the loop a thread takes so many pairs (`kAhead` groups of 16 bytes); its loads and stores of 16 bytes are counted in
sm_90's machine code, and the bytes a pair are the most of any architecture's. The loop has no narrower loads. It has
narrower stores, which run in place of those of 16 bytes where a gradient does not begin so, and write as many bytes.
Under each architecture: the occupancy that the registers allow, with 256 threads a block.

{table(["kernel", "loads / stores", "pairs a pass", "bytes a pair", "must move", *columns], loops)}
## All kernels

Registers a thread; bytes spilled to the stack, all architectures together; bytes of shared memory a block; instructions
in the whole kernel that load and store 16 bytes (LDG.128 and STG.128, sm_90), which all have narrower ones beside them
for rows' ends and for columns with strides. No kernel has a generic load or store.

{table(["kernel", *columns, "spills", "shared", "LDG.128 / STG.128"], resources)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", type=Path, help="where to write the report; else it is printed")
    path = parser.parse_args().markdown
    cuobjdump = tool("cuobjdump", "nvidia-cuda-cuobjdump")
    os.environ["NVDISASM_PATH"] = str(Path(tool("nvdisasm", "nvidia-cuda-nvdisasm")).parent)  # cuobjdump runs it
    for name in ("nvcc", "c++filt"):
        tool(name)
    architectures, flags = build_settings()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [(name, source, flags, cuobjdump, Path(folder)) for name in architectures for source in SOURCES]
        found = list(pool.map(lambda job: compiled(*job), jobs))
    report: dict[str, dict[str, Kernel]] = {name: {} for name in architectures}
    for (name, *_), kernels in zip(jobs, found, strict=True):
        report[name] |= kernels
    problems = [
        f"sm_{architecture}: {name} {fault}"
        for architecture, kernels in report.items()
        for name, kernel in kernels.items()
        for fault in faults(name, kernel)
    ]
    if problems:
        sys.exit("\n".join(problems))
    text = markdown(report, flags)
    if path:
        path.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
