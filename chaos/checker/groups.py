"""Registers whose writes all differ: decided without a search, in O(n log n), whatever is concurrent.

Where no value is written twice (and nobody writes the initial one), each read names the write that it saw. So
all that happens at a value happens between its write and the next one: the operations of a value are one
*cluster*, and clusters follow one another whole. A cas ties the cluster that it ends to the one that it
begins: such a chain stands together, too, and within it the order is given. (P. Gibbons and E. Korach,
"Testing shared memories", 1997, show that this case is easy; what follows is their argument, with cas and
unknown outcomes.)

A history is linearizable if and only if
1. every value that is seen was written, and no value is left by two cas;
2. within a chain nothing ended before something that must stand earlier in it began;
3. the chains can be put in a row. X must stand before Y where an operation of X ended before one of Y began:
   min_end(X) < max_invoke(Y). Let a row be impossible: then some chains demand each other in a circle. Of
   these let Y be the one with the largest max_invoke. Each X of the circle has min_end(X) < max_invoke(its
   next) <= max_invoke(Y), so all of them must stand before Y, and Y before its next: two that demand each
   other. So pairs are all there is to look at. Within a group of reads any order that agrees with time will
   do.

Unknown outcomes: a write or cas whose value is seen has happened, by its first reader's end at the latest;
that one has no end of its own. One whose value nobody sees can be taken out of any legal order: what came
next was another write, or nothing.

A failed cas is not part of this: it holds nearly anywhere. One is looked at alone: where something of the
value that it compared with ended before it began, and something else of it began after it ended, it stood
within that cluster. Several together, or with the row, can be illegal in other ways. So where there are any,
the conditions are necessary only, and only a violation is believed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise

from chaos.checker.operations import INITIAL, NEVER, UNSEEN, Kind, Op


def decide_unique(ops: Sequence[Op]) -> bool | None:
    """Return whether a history is linearizable, None if this can't be told here.

    Args:
        ops: operations of one register, in any order.
    """
    writer: dict[int, Op] = {}
    unseen: list[Op] = []
    for op in ops:
        if not op.writes:
            continue
        if op.new == INITIAL or op.new in writer:
            return None
        if op.new == UNSEEN:
            unseen.append(op)
        else:
            writer[op.new] = op
    seen = _seen_values(ops, writer)
    if seen is None:
        return False
    chains = _chains(ops, writer, seen)
    if chains is None:
        return False
    zones = []
    for chain in chains:
        if first_inversion(chain) is not None:
            return False
        members = [op for group in chain for op in group]
        begins = min(op.end for op in members) if chain is not chains[0] else -1
        zones.append((begins, max((op.invoke for op in members), default=-1)))
    zones += [(op.end, op.invoke) for op in unseen if op.required]
    if _clash(zones):
        return False
    failed = [op for op in ops if op.kind is Kind.CAS_FAILED]
    if not failed:
        return True
    spans = _spans(chains)
    for op in failed:
        first, last = spans.get(op.old, (NEVER, -1))
        if first < op.invoke and op.end < last:
            return False
    return None


def first_inversion(groups: Iterable[Sequence[Op]]) -> tuple[Op, Op] | None:
    """Return two operations that can't stand in the order of their groups; None if all can.

    Args:
        groups: operations that must follow one another group by group; those of one group need not.

    Returns:
        (earlier, later): `later` stands in a later group, but ended before `earlier` began.
    """
    latest: Op | None = None
    for group in groups:
        for op in group:
            if latest is not None and op.end < latest.invoke:
                return latest, op
        for op in group:
            if latest is None or op.invoke > latest.invoke:
                latest = op
    return None


def _spans(chains: Iterable[Sequence[Sequence[Op]]]) -> dict[int, tuple[int, int]]:
    """Return value -> (first end, last invoke) of what happened at it; between these the register had it.

    Its write counts for the first, and the cas that ended it for the last.
    """
    spans = {}
    for chain in chains:
        for at in range(0, len(chain), 2):
            write, reads = chain[at : at + 2]
            first = min(op.end for op in (*write, *reads)) if write else -1
            after = chain[at + 2] if at + 2 < len(chain) else ()
            last = max((op.invoke for op in (*reads, *after)), default=-1)
            spans[write[0].new if write else INITIAL] = (first, last)
    return spans


def _seen_values(ops: Sequence[Op], writer: dict[int, Op]) -> set[int] | None:
    """Return the values that the register certainly had; None if one of them was never written."""
    seen = {INITIAL}
    todo = [op.old for op in ops if op.required and op.kind in (Kind.READ, Kind.CAS)]
    todo += [op.new for op in writer.values() if op.required]
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        if value not in writer:
            return None
        seen.add(value)
        if writer[value].kind is Kind.CAS:
            todo.append(writer[value].old)
    return seen


def _chains(ops: Sequence[Op], writer: dict[int, Op], seen: set[int]) -> list[list[list[Op]]] | None:
    """Return each chain as groups in order: a write, its reads, the cas that ended it, its reads, and so on.

    The first chain is that of the initial value. None if there is no such order, for then some value stands
    in no chain: a second cas left the same value as another, or cas follow one another in a circle.
    """
    reads: dict[int, list[Op]] = {value: [] for value in seen}
    ended_by: dict[int, Op] = {}
    for op in ops:
        if op.kind is Kind.READ and op.required:
            reads[op.old].append(op)
    for value in seen - {INITIAL}:
        op = writer[value]
        if op.kind is Kind.CAS:
            ended_by.setdefault(op.old, op)
    first = [INITIAL, *(value for value in seen if value in writer and writer[value].kind is Kind.WRITE)]
    chains = []
    placed = 0
    for value in first:
        chain = [[writer[value]] if value in writer else [], reads[value]]
        placed += 1
        while value in ended_by:
            chain.append([ended_by[value]])
            value = ended_by[value].new
            chain.append(reads[value])
            placed += 1
        chains.append(chain)
    return chains if placed == len(seen) else None


def _clash(zones: list[tuple[int, int]]) -> bool:
    """Return whether two chains must each stand before the other; each is (min_end, max_invoke).

    A chain with min_end < max_invoke holds the time between them for itself. Two such clash where their times
    overlap. One with max_invoke < min_end fits in anywhere between these, and clashes only with a chain that
    holds all of that time; two of that kind never clash.
    """
    holding = sorted(zone for zone in zones if zone[0] < zone[1])
    if any(later[0] < earlier[1] for earlier, later in pairwise(holding)):
        return True
    begins = [zone[0] for zone in holding]
    for min_end, max_invoke in zones:
        if max_invoke < min_end < NEVER:
            at = bisect_right(begins, max_invoke) - 1
            if at >= 0 and begins[at] < max_invoke and min_end < holding[at][1]:
                return True
    return False
