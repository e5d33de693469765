"""A CUDA kernel's machine code: its loop over pairs, and the instructions that one pass of that loop runs.

`cuobjdump -sass` lists the code. A loop has branches that hardly any pair takes: a division that is not finite, a product
that is put aside once in 512 pairs. `usual_pass` leaves them out: it is the shortest way round the loop that makes all of
its 16-byte loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)([^;]*);")
WIDTHS = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
CALL = 1000  # instructions, or more: no function that a loop calls is part of a usual pass


class Instruction(NamedTuple):
    address: int
    is_guarded: bool
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def width(self) -> int:
        """The bytes that a load or store moves."""
        return next((WIDTHS[suffix] for suffix in self.opcode.split(".")[1:] if suffix in WIDTHS), 4)

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        found = re.search(r"0x([0-9a-f]+)\s*$", self.operands)
        return int(found[1], 16) if self.name == "BRA" and found else None

    @property
    def is_left_behind(self) -> bool:
        """Whether the next instruction is never run after this one."""
        conditional = self.is_guarded or bool(re.search(r"\bU?P\d", self.operands))
        return self.name in ("BRA", "EXIT", "RET") and not conditional


def instructions_of(listing: str) -> list[Instruction]:
    return [
        Instruction(int(address, 16), bool(guard), opcode, operands)
        for address, guard, opcode, operands in INSTRUCTION.findall(listing)
    ]


def followers_of(code: list[Instruction]) -> list[list[int]]:
    """The instructions that may be run after each, by number."""
    numbers = {instruction.address: number for number, instruction in enumerate(code)}
    followers = []
    for number, instruction in enumerate(code):
        after = [] if instruction.is_left_behind or number + 1 == len(code) else [number + 1]
        if instruction.target in numbers and numbers[instruction.target] != number:
            after.append(numbers[instruction.target])
        followers.append(after)
    return followers


def innermost_loops(followers: list[list[int]]) -> Iterator[tuple[int, set[int]]]:
    """The first instruction of each loop that has no other one inside, and all of its instructions."""
    before: list[list[int]] = [[] for _ in followers]
    ends: dict[int, list[int]] = {}
    for number, after in enumerate(followers):
        for other in after:
            before[other].append(number)
            if other <= number:
                ends.setdefault(other, []).append(number)
    loops = {}
    for head, last in ends.items():
        body, found = {head}, list(last)
        while found:
            number = found.pop()
            if number not in body:
                body.add(number)
                found += before[number]
        loops[head] = body
    for head, body in loops.items():
        if not any(other != head and other in body and loops[other] < body for other in loops):
            yield head, body


def shortest_pass(
    code: list[Instruction], followers: list[list[int]], head: int, body: set[int], stores: bool
) -> list[Instruction]:
    """The shortest way from `head` to itself, of those that load and store 16 bytes most often, or store least often."""

    def merit(instruction: Instruction) -> tuple[int, int]:
        wide = instruction.name == "LDG" or (instruction.name == "STG" and stores and instruction.width == 16)
        unwanted = instruction.name == "STG" and not stores
        return wide - unwanted, -CALL if instruction.name == "CALL" else -1

    order, seen, stack = [], {head}, [(head, iter(followers[head]))]
    while stack:  # after all that follow it within the loop
        number, rest = stack[-1]
        following = next((other for other in rest if other in body and other not in seen), None)
        if following is None:
            order.append(stack.pop()[0])
        else:
            seen.add(following)
            stack.append((following, iter(followers[following])))
    best: dict[int, tuple[tuple[int, int], int]] = {}
    for number in order:
        ways = [((0, 0), head)] if head in followers[number] else []
        ways += [(best[other][0], other) for other in followers[number] if other in best and other != head]
        if ways:
            (wide, short), following = max(ways)
            mine = merit(code[number])
            best[number] = (wide + mine[0], short + mine[1]), following
    found, number = [code[head]], best[head][1]
    while number != head:
        found.append(code[number])
        number = best[number][1]
    return found


def usual_pass(code: list[Instruction], stores: bool) -> list[Instruction] | None:
    """What one pass runs of the one innermost loop that loads 16 bytes at a time and nothing narrower; None without such a loop.

    With `stores` the pass writes to memory, 16 bytes at a time; without, what the loop may store on request is left out.
    """
    followers = followers_of(code)
    found = []
    for head, body in innermost_loops(followers):
        widths = {code[number].width for number in body if code[number].name == "LDG"}
        if widths == {16}:
            found.append(shortest_pass(code, followers, head, body, stores))
    return found[0] if len(found) == 1 else None
