"""What the project wants of its speed and exactness: the figures that must be reached, and those that are aimed at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import call_cases
import torch
from cases import Case
from item_cases import SPREAD

Sense = Literal["<=", ">="]
GROUPED_MUST = {9: 4.0, 64: 10.0, 512: 20.0}  # by the size of the groups


class Figure(NamedTuple):
    """A measured number beside what is wanted of it."""

    what: str
    value: float
    sense: Sense
    must: float
    aim: float | None = None

    def reaches(self, wanted: float) -> bool:
        return self.value <= wanted if self.sense == "<=" else self.value >= wanted

    def plain(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            **self._asdict(),
            "must_reached": self.reaches(self.must),
            "aim_reached": None if self.aim is None else self.reaches(self.aim),
        }

    def __str__(self) -> str:
        must = "reached" if self.reaches(self.must) else "MISSED"
        line = f"{self.what:<72} {self.value:>9.3g}  must {self.sense} {self.must:g}: {must}"
        if self.aim is None:
            return line
        return f"{line}, aim {self.aim:g}: {'reached' if self.reaches(self.aim) else 'missed'}"


class Limit(NamedTuple):
    """A bound on our time over the rival's (`sense` "<="), or on the rival's over ours, our speed-up (">=")."""

    rival: str
    sense: Sense
    must: float
    aim: float | None = None

    def figure(self, case: Case, ours: float, rival: float) -> Figure:
        ratio, value = ("time over", ours / rival) if self.sense == "<=" else ("speed over", rival / ours)
        return Figure(f"{case}: {ratio} {self.rival}'s", value, self.sense, self.must, self.aim)


def limits_of(case: Case) -> Iterator[Limit]:
    """The limits that hold for a case; most have none and are there for the charts."""
    match case:
        case Case(kind, torch.float32, size) if kind.startswith("call "):
            for rival in ("composed", "composed, second form"):
                yield Limit(rival, "<=", *call_cases.limit(kind, size))
        case Case("step", torch.float32, size) if size <= 256:
            yield Limit("eager", "<=", 0.65, 0.55)
            yield Limit("cheapest two-input op", "<=", 1.15, 1.1)
        case Case("step", torch.float32, 4_096):
            yield Limit("eager", "<=", 0.80, 0.70)
        case Case("step", torch.float32, 65_536):
            yield Limit("eager", ">=", 1.7, 2.5)
            yield Limit("torch.compile", ">=", 2.0, 2.5)
        case Case("step", torch.float32, 1_048_576):
            yield Limit("eager", ">=", 3.5, 6.0)
            yield Limit("torch.compile", ">=", 1.4, 2.5)
        case Case("step", torch.bfloat16 | torch.float16, 1_048_576):
            yield Limit("eager", ">=", 4.0, 6.0)
        case Case("options", torch.float32, size) if size <= 256:
            yield Limit("composed", "<=", 0.85)
        case Case("indexed", torch.float32, 10_000_000):
            yield Limit("eager", ">=", 4.0, 8.0)
        case Case("grouped", torch.float32, size) if size in GROUPED_MUST:
            for form in ("index", "mask"):
                yield Limit(f"eager, {form} form", ">=", GROUPED_MUST[size])
        case Case("list", torch.float32, 10_000):
            yield Limit("torch.sort", "<=", 3.0, 1.5)
        case Case("list", torch.float32, 1_000_000):
            yield Limit("torch.sort", "<=", 1.2, 0.8)
        case Case("list, deviation 30", torch.float32, 1_000_000):
            yield Limit("torch.sort", "<=", 3.0, 1.6)
        case Case(kind, torch.float32, 1_000_000) if kind.removeprefix("list, ") in SPREAD:
            yield Limit("torch.sort", "<=", 12.0, 6.0)
        case Case("list, two ranks", torch.float32, 1_000_000):
            yield Limit("torch.sort", "<=", 1.0, 0.5)
        case Case("forward kernel", torch.float32, 16_777_216):
            yield Limit("two copies", "<=", 0.95, 0.55)
        case Case("backward kernel", torch.float32, 16_777_216):
            yield Limit("two copies", ">=", 0.9)


def gpu_limits_of(case: Case) -> Iterator[Limit]:
    """The same for the cases of gpu.py."""
    match case:
        case Case("step", torch.float32, size) if size <= 4_096:
            yield Limit("eager", "<=", 0.6)
        case Case("forward, statistics", _, _):
            yield Limit("device copy", ">=", 0.5)
        case Case(kind, _, 67_108_864) if kind.startswith(("forward", "backward")):
            yield Limit("device copy", ">=", 0.85)
        case Case(kind, torch.float32, size) if kind.startswith("call "):
            for rival in ("composed", "composed, second form"):
                yield Limit(rival, "<=", max(1.0, call_cases.limit(kind, size)[0]))


MEAN_ERROR_CASE = Case("step", torch.float32, 16_777_216)


def mean_error(value: float) -> Figure:
    return Figure(f"{MEAN_ERROR_CASE}: relative error of the mean", value, "<=", 1e-7)


def import_seconds(value: float) -> Figure:
    return Figure("import prefloss, after torch: seconds", value, "<=", 0.030)
