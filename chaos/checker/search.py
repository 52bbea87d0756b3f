"""The search for a legal order on one register: Wing and Gong's, with Lowe's memory of where it was.

Operations are linearized one by one. One may be next if every operation that ended before it began is
linearized already and the register lets it happen; from a dead end the search goes back. What may follow
depends on the *configuration* alone, that is on which operations are linearized and the value, so none is
visited twice. (J. Wing and C. Gong, 1993; G. Lowe, "Testing for linearizability", 2017.)

The search is complete, and stays so under what makes it fast; each rule changes a legal order into another
legal one that the search does not leave out:

- *Reads at once.* A read, or a failed cas, that may be next and holds is linearized at once. In any legal
  order it can be moved here: it changes nothing, and nothing that must precede it is missing.
- *Equal ones by their end.* Of several writes, or cas, with the same values that may be next, only the one
  that ends first is tried: in any legal order it can trade places with the other. Of optional ones, which
  have no end, the one that began first.
- *Optional ones only where they are seen.* An unknown write or cas is tried only if what it leaves is wanted
  by a required operation that may be next, or by another optional cas on the way there. In a legal order
  whatever happens directly after it holds at its value, or is a write, and then it can be left out. Those
  that are wanted by nothing to come are no part of the configuration.
- *Unseen ones on the way.* Where no cas failed, writes whose value nobody sees may all happen directly before
  any other write, and there is no better place: their later one, if left, changes nothing that is looked at.
- *The more, the worse.* Where the same is linearized and the value is the same, what fails with some optional
  ones used fails with more of them used, too.
- *Nothing left behind.* A value that operations to come want, and that nothing to come can write, is not
  left.

Sizes: the base is the first operation in order of ends that is not linearized. Everything that is linearized
beyond it was open at the base's end, and has a bit in a mask: as wide as the history is concurrent, not long.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec

from chaos.checker.operations import UNSEEN, Kind, Op

LOOK_AT_THE_CLOCK_EVERY = 512
"""Configurations."""


class Outcome(Enum):
    """What is known of a history."""

    VALID = "valid"
    VIOLATION = "violation"
    UNKNOWN = "unknown"


class Limits(msgspec.Struct):
    """How much one search may take; beyond it the outcome is unknown."""

    configurations: int
    """How many may be remembered; one takes about 200 bytes."""
    deadline: float | None = None
    """In `time.monotonic()` seconds."""

    def passed(self) -> bool:
        """Return whether time is up."""
        return self.deadline is not None and time.monotonic() > self.deadline


Configuration = tuple[int, int, int, int]
"""(base, mask of the linearized ones beyond it, mask of the optional ones that were used, value)."""


class Search:
    """One search.

    Args:
        ops: operations of one register, in any order. Reads, and cas that failed, must be required ones.
        initial: the value that it has at first.
    """

    def __init__(self, ops: Sequence[Op], initial: int) -> None:
        self.required = sorted((op for op in ops if op.required), key=lambda op: op.end)
        self.optional = sorted((op for op in ops if not op.required), key=lambda op: op.invoke)
        self.configurations = 0
        """How many were visited."""
        self._initial = initial
        self._seen: dict[int, int | list[int]] = {}
        """(base, mask, value) as one integer, which is small -> the optional ones that were used there."""
        self._pure = [op.kind in (Kind.READ, Kind.CAS_FAILED) for op in self.required]
        self._any_failed_cas = any(op.kind is Kind.CAS_FAILED for op in self.required)
        self._place_in_masks()
        self._index_values()
        self._find_last_uses()

    def _place_in_masks(self) -> None:
        """Give each required operation a bit that no other open at the same time has."""
        events = [(op.invoke, 0, number) for number, op in enumerate(self.required)]
        events += [(op.end, 1, number) for number, op in enumerate(self.required)]
        events.sort()
        self._bit = [0] * len(self.required)
        self._open_at: list[tuple[int, ...]] = [()] * len(self.required)
        free: list[int] = []
        self._width = 0
        now_open: list[int] = []
        for _, is_end, number in events:
            if is_end:
                self._open_at[number] = tuple(now_open)
                now_open.remove(number)
                free.append(self._bit[number])
            else:
                if not free:
                    free.append(1 << self._width)
                    self._width += 1
                self._bit[number] = free.pop()
                insort(now_open, number)

    def _index_values(self) -> None:
        self._seen_by: dict[int, list[int]] = {}
        self._written_by: dict[int, list[int]] = {}
        for number, op in enumerate(self.required):
            if op.kind in (Kind.READ, Kind.CAS):
                self._seen_by.setdefault(op.old, []).append(number)
            if op.writes:
                self._written_by.setdefault(op.new, []).append(number)
        self._offered_by: dict[int, list[int]] = {}
        self._offers: dict[int, int] = {}
        for number, op in enumerate(self.optional):
            self._offered_by.setdefault(op.new, []).append(number)
            self._offers[op.new] = self._offers.get(op.new, 0) | 1 << number

    def _find_last_uses(self) -> None:
        """Find, for each base, which optional operations nothing from there on can want."""
        last_failed: dict[int, int] = {}
        for number, op in enumerate(self.required):
            if op.kind is Kind.CAS_FAILED:
                last_failed[op.old] = number
        uses = []
        for op in self.optional:
            failed = [number for old, number in last_failed.items() if old != op.new]
            uses.append(max([-1, *failed, *self._seen_by.get(op.new, ())[-1:]]))
        changed = True
        while changed:
            changed = False
            for number, op in enumerate(self.optional):
                if op.kind is Kind.CAS:
                    for giver in self._offered_by.get(op.old, ()):
                        if uses[giver] < uses[number]:
                            uses[giver] = uses[number]
                            changed = True
        ends_at: dict[int, int] = {}
        for number, use in enumerate(uses):
            ends_at[use + 1] = ends_at.get(use + 1, 0) | 1 << number
        self._useless_from = []
        useless = 0
        for base in range(len(self.required) + 1):
            useless |= ends_at.get(base, 0)
            self._useless_from.append(useless)

    def run(self, limits: Limits) -> Outcome:
        """Search until an order is found, there is none, or a limit is reached."""
        start = self._settle(0, 0, 0, self._initial) if self.required else None
        if start is None:
            return Outcome.VALID
        self._is_new(start)
        branches = [self._successors(*start)]
        while branches:
            for found in branches[-1]:
                if found is None:
                    return Outcome.VALID
                if not self._is_new(found):
                    continue
                if self.configurations > limits.configurations or (
                    self.configurations % LOOK_AT_THE_CLOCK_EVERY == 0 and limits.passed()
                ):
                    return Outcome.UNKNOWN
                branches.append(self._successors(*found))
                break
            else:
                branches.pop()
        return Outcome.VIOLATION

    def _is_new(self, configuration: Configuration) -> bool:
        """Remember a configuration; return whether none was seen before that can do all that it can."""
        base, mask, used, value = configuration
        place = ((value << self._width | mask) << len(self.required).bit_length()) | base
        before = self._seen.get(place)
        if before is None:
            self._seen[place] = used
        elif isinstance(before, int):
            if before & ~used == 0:
                return False
            self._seen[place] = used if used & ~before == 0 else [before, used]
        else:
            for other in before:
                if other & ~used == 0:
                    return False
            self._seen[place] = [other for other in before if used & ~other] + [used]
        self.configurations += 1
        return True

    def _settle(self, base: int, mask: int, used: int, value: int) -> Configuration | None:
        """Linearize what may be at once, and move the base on; None when nothing required is left."""
        required, bits, pure = self.required, self._bit, self._pure
        while True:
            for number in self._open_at[base]:
                if pure[number] and not mask & bits[number]:
                    op = required[number]
                    if (op.old == value) is (op.kind is Kind.READ):
                        mask |= bits[number]
            before = base
            while mask & bits[base]:
                mask ^= bits[base]
                base += 1
                if base == len(required):
                    return None
            if base == before:
                return base, mask, used | self._useless_from[base], value

    def _successors(self, base: int, mask: int, used: int, value: int) -> Iterator[Configuration | None]:
        """Yield where the search can go, the likeliest first; None for the end of a legal order."""
        wanted: set[int] = set()
        stuck = False
        """A failed cas waits for any other value."""
        moves: list[int] = []
        tried: set[tuple[int, int]] = set()
        for number in self._open_at[base]:
            if mask & self._bit[number]:
                continue
            op = self.required[number]
            if op.kind is Kind.CAS_FAILED:
                stuck = True
            elif op.kind is Kind.READ or (op.kind is Kind.CAS and op.old != value):
                wanted.add(op.old)
            elif (op.old, op.new) not in tried:
                tried.add((op.old, op.new))
                moves.append(number)
        for value_wanted in wanted:
            if not self._can_be_had(value_wanted, base, mask, used):
                return
        first = self.required[base]
        aim = first.old if first.kind in (Kind.READ, Kind.CAS) and first.old != value else None
        if aim is not None:
            moves.sort(key=lambda number: self.required[number].new != aim)
        may_leave = self._may_leave(value, base, mask, used)
        later: list[int] = []
        for number in moves:
            op = self.required[number]
            if op.new != value and not (may_leave or self._is_last_to_see(number, value, base, mask)):
                continue
            if aim is not None and op.new != aim:
                later.append(number)
                continue
            yield self._after_required(number, base, mask, used)
        if may_leave:
            for number in self._optional_moves(base, used, value, wanted, stuck):
                op = self.optional[number]
                after = mask | (self._unseen_at(base, mask) if op.kind is Kind.WRITE else 0)
                yield self._settle(base, after, used | 1 << number, op.new)
        for number in later:
            yield self._after_required(number, base, mask, used)

    def _after_required(self, number: int, base: int, mask: int, used: int) -> Configuration | None:
        op = self.required[number]
        if op.kind is Kind.WRITE:
            mask |= self._unseen_at(base, mask)
        return self._settle(base, mask | self._bit[number], used, op.new)

    def _unseen_at(self, base: int, mask: int) -> int:
        """Return the bits of the writes that may be next and whose value nobody sees."""
        if self._any_failed_cas or UNSEEN not in self._written_by:
            return 0
        bits = 0
        for number in self._open_at[base]:
            op = self.required[number]
            if op.new == UNSEEN and op.kind is Kind.WRITE:
                bits |= self._bit[number]
        return bits & ~mask

    def _optional_moves(
        self, base: int, used: int, value: int, wanted: set[int], stuck: bool
    ) -> Iterator[int]:
        """Yield the optional operations that may be next and lead to a value that is wanted."""
        until = self.required[base].end
        todo = [other for other in self._offered_by if other != value] if stuck else list(wanted)
        looked_for = set(todo)
        while todo:
            aim = todo.pop()
            write_tried = cas_tried = False
            for number in self._offered_by.get(aim, ()):
                op = self.optional[number]
                if op.invoke >= until:
                    break
                if used >> number & 1:
                    continue
                if op.kind is Kind.WRITE:
                    if not write_tried:
                        write_tried = True
                        yield number
                elif op.old == value:
                    if not cas_tried:
                        cas_tried = True
                        yield number
                elif op.old not in looked_for:
                    looked_for.add(op.old)
                    todo.append(op.old)

    def _is_linearized(self, number: int, base: int, mask: int) -> bool:
        if number < base:
            return True
        is_open = self.required[number].invoke < self.required[base].end
        return is_open and bool(mask & self._bit[number])

    def _can_be_had(self, value: int, base: int, mask: int, used: int) -> bool:
        """Return whether something that is not linearized writes this value."""
        if self._offers.get(value, 0) & ~used:
            return True
        for number in reversed(self._written_by.get(value, ())):
            if number < base:
                return False
            if not self._is_linearized(number, base, mask):
                return True
        return False

    def _may_leave(self, value: int, base: int, mask: int, used: int) -> bool:
        """Return whether this value may be overwritten: nobody wants it later, or it can be had again."""
        for number in reversed(self._seen_by.get(value, ())):
            if number < base:
                return True
            if not self._is_linearized(number, base, mask):
                return self._can_be_had(value, base, mask, used)
        return True

    def _is_last_to_see(self, number: int, value: int, base: int, mask: int) -> bool:
        """Return whether a cas is all that is left to want this value."""
        if self.required[number].kind is not Kind.CAS:
            return False
        return all(
            other == number or self._is_linearized(other, base, mask)
            for other in reversed(self._seen_by.get(value, ()))
            if other >= base
        )
