"""What a GPU's arithmetic and memory allow, on paper: published rates of its units, and what a loop asks of them.

Rates are results a clock of a multiprocessor, from the table "Throughput of Native Arithmetic Instructions" of the CUDA C++
Programming Guide (since CUDA 13 of the CUDA C++ Best Practices Guide, 12.1.1); which unit runs what is from "Pipelines" in
the Nsight Compute Profiling Guide. The GPUs are as in NVIDIA's data sheets and white papers. Where these give no clock, it
is the one at which the multiprocessors reach the float32 peak that they give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cuda_machine_code import Instruction

ISSUE = 128  # four schedulers, each of which issues an instruction for 32 threads a clock
LOADS = 32  # threads whose address is taken in a clock


class Architecture(NamedTuple):
    """A GPU, and what each multiprocessor of its architecture does in a clock."""

    gpu: str
    multiprocessors: int
    gigahertz: float
    gigabytes_a_second: float
    float32: int
    integer: int
    float64: int
    float64_conversions: int  # from and to 64-bit types
    special: int = 16  # reciprocal, 2^x, ...; conversions between narrower types, which the same unit runs

    @property
    def bytes_a_clock(self) -> float:
        return self.gigabytes_a_second / self.gigahertz / self.multiprocessors


ARCHITECTURES = {
    "80": Architecture("A100 SXM 80 GB", 108, 1.41, 2039, 64, 64, 32, 16),
    "89": Architecture("RTX 4090", 128, 2.52, 1008, 128, 64, 2, 2),
    "90": Architecture("H100 SXM", 132, 1.98, 3350, 128, 64, 64, 16),
    "100": Architecture("B200", 148, 1.98, 8000, 128, 64, 64, 16),
    "120": Architecture("RTX 5090", 170, 2.407, 1792, 128, 64, 2, 2),
}

# The unit of each instruction. Uniform ones (U...) have a unit of their own, and take a turn of the scheduler alone.
UNITS = {
    "float32": "FADD FFMA FMUL HADD2 HFMA2 IMAD FADD2 FFMA2 FMUL2",
    "integer": "FCHK FMNMX FMNMX3 FSEL FSET FSETP IADD IADD3 IMNMX ISETP LEA LOP3 MOV P2R PLOP3 PRMT R2P SEL SHF VIADD "
    "VIMNMX VIMNMX3",
    "float64": "DADD DFMA DMUL DSETP",
    "special": "MUFU",
    "conversion": "F2F F2FP",
    "load/store": "LDC LDG STG",
    "issue": "BRA BSSY BSYNC CALL CS2R EXIT LDCU NOP R2UR S2R S2UR UIADD3 UIMAD UISETP ULDC ULEA ULOP3 UMOV UPLOP3 UPRMT USEL USHF",
}
UNIT_OF = {name: unit for unit, names in UNITS.items() for name in names.split()}
TWO_RESULTS = ("FADD2", "FFMA2", "FMUL2", "F2FP")
SLOW = (
    "HADD2",
    "HFMA2",
    "IMAD",
)  # in the unit of float32, but 64 results a clock at most: integer products, and float16 to float32
MOST_SLOW = 64


class Counts(NamedTuple):
    """What one pair asks of each unit: results, of which an instruction has one a thread, or two; issued instructions."""

    issue: float
    float32: float
    integer: float
    float64: float
    float64_conversions: float
    special: float
    loads: float
    slow: float

    @classmethod
    def of(cls, instructions: Sequence[Instruction], pairs: int) -> Counts:
        counts = dict.fromkeys((*UNITS, "64-bit conversion"), 0)
        for instruction in instructions:
            unit = UNIT_OF.get(instruction.name)
            if unit is None:
                raise ValueError(f"{instruction.opcode} is not in UNITS: name the unit that runs it")
            if unit == "conversion" and "F64" in instruction.opcode:
                unit = "64-bit conversion"
            counts[unit] += 2 if instruction.name in TWO_RESULTS else 1
        return cls(
            len(instructions) / pairs,
            counts["float32"] / pairs,
            counts["integer"] / pairs,
            counts["float64"] / pairs,
            counts["64-bit conversion"] / pairs,
            (counts["special"] + counts["conversion"]) / pairs,
            counts["load/store"] / pairs,
            sum(instruction.name in SLOW for instruction in instructions) / pairs,
        )

    def clocks(self, on: Architecture) -> dict[str, float]:
        """The clocks that each unit of a multiprocessor needs for a pair."""
        few = (
            on.float64_conversions < on.special
        )  # then the unit of float64 converts too; else that of special functions
        float64 = self.float64 / on.float64 + (self.float64_conversions / on.float64_conversions if few else 0)
        special = self.special / on.special + (0 if few else self.float64_conversions / on.float64_conversions)
        return {
            "issue": self.issue / ISSUE,
            "float32": max(self.float32 / on.float32, self.slow / MOST_SLOW),
            "integer": self.integer / on.integer,
            "float64": float64,
            "special": special,
            "load/store": self.loads / LOADS,
        }

    def share_of_bandwidth(self, bytes_a_pair: float, on: Architecture) -> tuple[float, str]:
        """The share of the memory's bandwidth that the arithmetic leaves possible, above 1 too; and the unit that it is up to."""
        clocks = self.clocks(on)
        unit = max(clocks, key=lambda name: clocks[name])
        return bytes_a_pair / on.bytes_a_clock / clocks[unit], unit
