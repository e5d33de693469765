"""What the compiler made of the CUDA kernels: registers, spills, bytes and instructions a pair, and what they allow. No GPU.

python benchmarks/cuda_static.py --markdown docs/cuda_kernels.md

Exits with 1 where a kernel spills or goes through generic addresses, where a plain kernel's loop has other than 16-byte
accesses or moves more bytes a pair than it must, or where its arithmetic leaves less of the memory's bandwidth than MUST
says. Needs nvcc and c++filt; cuobjdump and nvdisasm, where CUDA's toolkit is without them:
pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from cuda_machine_code import Instruction, instructions_of, usual_pass
from cuda_rates import ARCHITECTURES, Counts

ROOT = Path(__file__).resolve().parent.parent
COMPILED = ("csrc/cuda", "csrc/*.h", "CMakeLists.txt")  # what the machine code is made from
BUILD = ROOT / "build" / "cuda_static"  # keeps the machine code until its sources change
AHEAD = Path("csrc/cuda/pair_groups.cuh")  # says how many groups
SIZES = {"float": 4, "double": 8, "BFloat16": 2, "Float16": 2}  # bytes of an entry
# Kernels whose loop is counted: what runs for the default call.
PLAIN = {
    f"{kernel}<{dtype}{arguments}>": kernel
    for kernel, arguments in (("plain_forward", ""), ("plain_backward", ""), ("statistics_forward", ", false, false"))
    for dtype in ("float", "BFloat16", "Float16", "double")
}
COLUMNS = {"plain_forward": (2, 0), "plain_backward": (2, 2), "statistics_forward": (2, 0)}  # loaded, stored
# The least share of the memory's bandwidth that the arithmetic may leave, and on which architectures; float64 has none.
MUST = {
    "plain_forward": (0.9, tuple(ARCHITECTURES)),
    "plain_backward": (0.9, tuple(ARCHITECTURES)),
    "statistics_forward": (0.5, ("90",)),
}
# Warps that fit on a multiprocessor; all of them have 65536 registers.
WARPS = {"75": 32, "80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "120": 48}
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


class Kernel(NamedTuple):
    usage: Usage
    generic: int
    wide_loads: int
    wide_stores: int
    usual: list[Instruction]  # of one pass of the loop; of a kernel in PLAIN alone


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


def build_settings() -> tuple[dict[str, str], list[Path], list[str]]:
    """What CMakeLists.txt compiles the kernels with: each architecture with that of its PTX, the sources and the flags."""
    text = (ROOT / "CMakeLists.txt").read_text()

    def words(pattern: str) -> list[str]:
        found = re.search(pattern, text)
        assert found, f"nothing in CMakeLists.txt is {pattern}"
        return found[1].split()

    architectures = [name.removesuffix("-real") for name in words(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]*)\)")]
    ptx = {name: name for name in architectures} | dict.fromkeys(words(r"set\(architectures_from_80 ([^)]*)\)"), "80")
    sources = [Path(source) for source in words(r"set\(cuda_sources ([^)]*)\)")]
    flags = words(r"target_compile_options\(kernels_cuda PRIVATE (-[^)]*)\)")
    return (
        dict(sorted(ptx.items(), key=lambda names: int(names[0]))),
        sources,
        ["-O3", "-DNDEBUG", "-std=c++17", *flags, "-Werror=all-warnings"],
    )


def short_name(signature: str) -> str:
    """plain_forward<float> for the whole demangled signature; of a value of an enumeration, (Others)0, Others 0."""
    plain = re.sub(r"\(anonymous namespace\)|void |[\w]+(?=::)|::", "", signature)
    return re.sub(r"\((\w+)\)(?=\d)", r"\1 ", plain).partition("(")[0]


def count_of(code: list[Instruction], name: str, width: int) -> int:
    return sum(instruction.name == name and instruction.width == width for instruction in code)


def is_newer(made: Path) -> bool:
    """Whether a file was made after the last change of what the machine code is made from."""
    sources = [path for pattern in ("csrc/*.h", "csrc/cuda/**/*", "CMakeLists.txt") for path in ROOT.glob(pattern)]
    return made.exists() and made.stat().st_mtime > max(path.stat().st_mtime for path in sources)


def compiled(
    architecture: str, ptx: str, source: Path, flags: list[str], cuobjdump: str, folder: Path
) -> dict[str, Kernel]:
    """The kernels of one source for one architecture, by name."""
    cubin = folder / f"{source.stem}_sm_{architecture}.cubin"
    said_by_nvcc = cubin.with_suffix(".txt")
    if not is_newer(said_by_nvcc):
        target = f"--generate-code=arch=compute_{ptx},code=[sm_{architecture}]"
        options = target, "-Xptxas=-v", "-cubin", source, "-o", cubin
        said_by_nvcc.write_text(output_of("nvcc", *flags, *options))
    said = output_of("c++filt", text=said_by_nvcc.read_text())
    usages = {short_name(name): Usage(*(int(n or 0) for n in figures)) for name, *figures in USAGE.findall(said)}
    sass = output_of("c++filt", text=output_of(cuobjdump, "-sass", cubin))
    kernels = {}
    for listing in sass.split("Function : ")[1:]:
        signature, _, body = listing.partition("\n")
        code, name = instructions_of(body), short_name(signature)
        generic = sum(instruction.name in ("LD", "ST") for instruction in code)
        wide = count_of(code, "LDG", 16), count_of(code, "STG", 16)
        usual = usual_pass(code, stores=COLUMNS[PLAIN[name]][1] > 0) if name in PLAIN else None
        kernels[name] = Kernel(usages[name], generic, *wide, usual or [])
    assert kernels.keys() == usages.keys()
    return kernels


def entry_size(name: str) -> int:
    return next(size for dtype, size in SIZES.items() if name.partition("<")[2].startswith(dtype))


def pairs_a_pass(name: str) -> int:
    """Pairs that a thread takes in one pass of a loop: kAhead groups of 16 bytes, or one where there are statistics."""
    ahead = re.search(r"\bkAhead = (\d+)", (ROOT / AHEAD).read_text())
    assert ahead, f"{AHEAD} has no kAhead"
    return (1 if PLAIN[name] == "statistics_forward" else int(ahead[1])) * 16 // entry_size(name)


def floor_of(name: str) -> int:
    return sum(COLUMNS[PLAIN[name]]) * entry_size(name)


def bytes_a_pair(name: str, kernel: Kernel) -> float:
    """Guarded stores of fewer than 16 bytes run in place of those, where a gradient does not begin at a multiple of 16."""
    moved = sum(
        instruction.width
        for instruction in kernel.usual
        if instruction.name == "LDG"
        or (instruction.name == "STG" and (instruction.width == 16 or not instruction.is_guarded))
    )
    return moved / pairs_a_pass(name)


def share_of_bandwidth(name: str, architecture: str, kernel: Kernel) -> tuple[float, str]:
    counts = Counts.of(kernel.usual, pairs_a_pass(name))
    return counts.share_of_bandwidth(floor_of(name), ARCHITECTURES[architecture])


def faults(name: str, architecture: str, kernel: Kernel) -> list[str]:
    """What is wrong with a kernel."""
    usage, found = kernel.usage, []
    if usage.stack or usage.spill_stores or usage.spill_loads:
        found.append(f"spills: {usage.stack} bytes of stack, {usage.spill_stores} stored, {usage.spill_loads} loaded")
    if kernel.generic:
        found.append(f"has {kernel.generic} generic loads or stores")
    if name not in PLAIN:
        return found
    if not kernel.usual:
        return [*found, "has no loop, or several, that loads 16 bytes at a time and nothing narrower"]
    if bytes_a_pair(name, kernel) != floor_of(name):
        found.append(f"moves {bytes_a_pair(name, kernel):g} bytes a pair in place of {floor_of(name)}")
    must, where = MUST[PLAIN[name]]
    if architecture in where and not name.startswith(f"{PLAIN[name]}<double"):
        share, unit = share_of_bandwidth(name, architecture, kernel)
        if share < must:
            found.append(f"has arithmetic ({unit}) that leaves {share:.3f} of the bandwidth; it must be {must:g}")
    return found


def occupancy(architecture: str, registers: int) -> str:
    """The share of a multiprocessor's warps that its registers allow, in blocks of 8 warps."""
    of_a_warp = -(-registers * 32 // 256) * 256
    return f"{min(65536 // (8 * of_a_warp) * 8, WARPS[architecture]) / WARPS[architecture]:.0%}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def loop_row(name: str, report: dict[str, dict[str, Kernel]]) -> list[str]:
    moved = max(bytes_a_pair(name, kernels[name]) for kernels in report.values())
    shares = [occupancy(architecture, kernels[name].usage.registers) for architecture, kernels in report.items()]
    return [f"`{name}`", str(pairs_a_pass(name)), f"{moved:g}", str(floor_of(name)), *shares]


COUNTED = ("issue", "float32", "integer", "float64", "64-bit conversions", "special", "load/store")


def count_rows(name: str, report: dict[str, dict[str, Kernel]]) -> list[list[str]]:
    """A row for each architecture: what a pair asks of each unit, and the share of bandwidth that is left."""
    rows = []
    for architecture, on in ARCHITECTURES.items():
        kernel = report[architecture][name]
        counts = Counts.of(kernel.usual, pairs_a_pass(name))
        share, unit = share_of_bandwidth(name, architecture, kernel)
        figures = [f"{figure:.2f}".rstrip("0").rstrip(".") for figure in counts[: len(COUNTED)]]
        allowed = f"{share:.2f}" if share < 1 else "1"
        rows.append([f"`{name}`", f"sm_{architecture}, {on.gpu}", *figures, unit, f"{share:.2f}", allowed])
    return rows


def gpu_row(architecture: str) -> list[str]:
    on = ARCHITECTURES[architecture]
    size = [str(on.multiprocessors), f"{on.gigahertz:g}", f"{on.gigabytes_a_second:g}", f"{on.bytes_a_clock:.1f}"]
    rates = [on.float32, on.integer, on.float64, on.float64_conversions, on.special]
    return [f"sm_{architecture}", on.gpu, *size, *map(str, rates)]


def resources_row(name: str, report: dict[str, dict[str, Kernel]]) -> list[str]:
    usages, of_90 = [kernels[name].usage for kernels in report.values()], report["90"][name]
    spilled = sum(usage.stack + usage.spill_stores + usage.spill_loads for usage in usages)
    shared = " or ".join(str(size) for size in sorted({usage.shared for usage in usages}))
    registers = [str(usage.registers) for usage in usages]
    return [f"`{name}`", *registers, str(spilled or "none"), shared, f"{of_90.wide_loads} / {of_90.wide_stores}"]


def revision() -> str:
    """The commit that the kernels were compiled from."""
    commit = output_of("git", "log", "-1", "--format=%h of %cs", "--", *COMPILED).strip()
    return commit + (", and changes since" if output_of("git", "status", "--porcelain", "--", *COMPILED) else "")


def markdown(report: dict[str, dict[str, Kernel]], sources: list[Path], flags: list[str]) -> str:
    """The report as a document."""
    release = re.search(r"V[\d.]+", output_of("nvcc", "--version"))
    resources = [resources_row(name, report) for name in sorted(report["90"])]
    loops = [loop_row(name, report) for name in PLAIN]
    counted = [row for name in PLAIN for row in count_rows(name, report)]
    gpus = [gpu_row(name) for name in ARCHITECTURES]
    columns = [f"sm_{architecture}" for architecture in report]
    gpu_columns = ["multiprocessors", "GHz", "GB/s", "bytes a clock"]
    forward, statistics = MUST["plain_forward"][0], MUST["statistics_forward"][0]
    unit_columns = ["float32", "integer", "float64", "64-bit conversions", "special"]
    return f"""# The CUDA kernels as compiled

`make cuda-report` makes this page. It fails where a kernel spills registers, where a plain kernel moves more bytes than it
must, or where a kernel's arithmetic leaves too little of the memory's bandwidth.
Compiled from commit {revision()}: {", ".join(f"`{source}`" for source in sources)}, by nvcc
{release[0] if release else "?"}, once per architecture, with
`{" ".join(flags)}`.
All figures are read from the messages of ptxas and from the machine code (SASS). Nothing here ran on a GPU, and no time
was measured: the shares below are what the published rates of a GPU allow.

## The loop of the plain kernels

These kernels run without options, where the rewards are contiguous and begin at a multiple of 16 bytes. "Pairs a pass":
how many a thread takes in one pass of the loop. "Bytes a pair": the most of any architecture. The loop loads 16 bytes at a
time and nothing narrower. Where a gradient does not begin at a multiple of 16 bytes, narrower stores write as many bytes.
Under each architecture stands the occupancy that the registers allow, with 256 threads a block.

{table(["kernel", "pairs a pass", "bytes a pair", "must move", *columns], loops)}
## What a pair costs

The instructions of one ordinary pass of these loops: the shortest way round the loop that makes all of its loads and, in a
backward kernel, its 16-byte stores. This leaves out what hardly any pair needs: a division by what is not finite,
half-precision gradients where |z| > 16, a product that is put aside once in 512 pairs, a pivot that moves when four times
as many pairs have come. An instruction whose guard is false also takes a turn of a scheduler, and is counted.

- issue: all instructions. Four schedulers issue each for 32 threads a clock, 128 together.
- float32: additions, products, and both in one; integer products and conversions from float16, which have 64 results a
  clock at most, run there too. `FFMA2` and its like (sm_100) count as two.
- integer: logic, shifts, sums, comparisons, selections, moves.
- float64: its arithmetic. Where "64-bit conversions" are as slow, they count for the same unit.
- special: 1 / x and 2^x, and conversions between types of up to 32 bits, 16 results a clock together. An instruction that
  makes two numbers of half precision counts as two.
- load/store: 32 threads a clock.

"Unit" is the unit that needs the most clocks for a pair. The clocks of the memory over the clocks of this unit are the
share of the peak bandwidth that the arithmetic leaves: all of it from 1 on. The share must be {forward:g} or more for the forward
and backward kernels on every architecture of the table, and {statistics:g} on sm_90 for the forward kernel with
statistics. Kernels of float64, for which many GPUs have few units, have no limit.

{table(["kernel", "on", *COUNTED, "unit", "clocks of memory / clocks of unit", "share"], counted)}
Results a clock of a multiprocessor are those of the table "Throughput of Native Arithmetic Instructions" in the CUDA C++
Programming Guide (since CUDA 13 in the CUDA C++ Best Practices Guide, 12.1.1). Multiprocessors, clocks and bandwidths are
those of NVIDIA's data sheets and white papers: "NVIDIA A100 Tensor Core GPU Architecture" (80 GB: A100 data sheet), "NVIDIA
Ada GPU Architecture", "NVIDIA H100 Tensor Core GPU" data sheet, "NVIDIA Blackwell" data sheet, "NVIDIA RTX Blackwell GPU
Architecture". NVIDIA gives no clock for H100 and B200; the one here is where 128 float32 results a clock and
multiprocessor come to the 67 and 75 TFLOPS that it gives. We took the table and the B200's figures from others who quote
them, and have not read them at their source.

{table(["architecture", "GPU", *gpu_columns, *unit_columns], gpus)}
## All kernels

Under each architecture: registers a thread. "Spills": bytes spilled to the stack, all architectures together. "Shared":
bytes of shared memory a block. Last column: how many instructions of the kernel load and store 16 bytes (LDG.128 and
STG.128, sm_90); there are narrower ones for rows' ends and columns with strides. No kernel has a generic load or store.

{table(["kernel", *columns, "spills", "shared", "LDG.128 / STG.128"], resources)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--markdown", type=Path, help="where to write the report; else it is printed")
    path = parser.parse_args().markdown
    cuobjdump = tool("cuobjdump", "nvidia-cuda-cuobjdump")
    os.environ["NVDISASM_PATH"] = str(Path(tool("nvdisasm", "nvidia-cuda-nvdisasm")).parent)  # cuobjdump runs it
    for name in ("nvcc", "c++filt"):
        tool(name)
    architectures, sources, flags = build_settings()
    BUILD.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        jobs = [(*names, source, flags, cuobjdump, BUILD) for names in architectures.items() for source in sources]
        found = list(pool.map(lambda job: compiled(*job), jobs))
    report: dict[str, dict[str, Kernel]] = {name: {} for name in architectures}
    for (name, *_), kernels in zip(jobs, found, strict=True):
        report[name] |= kernels
    problems = [
        f"sm_{architecture}: {name} {fault}"
        for architecture, kernels in report.items()
        for name, kernel in kernels.items()
        for fault in faults(name, architecture, kernel)
    ]
    if problems:
        sys.exit("\n".join(problems))
    text = markdown(report, sources, flags)
    if path:
        path.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
