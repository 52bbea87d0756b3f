"""A machine, and a plain list of all that was ever done to its keys, from which any past can be told."""

from __future__ import annotations

from dataclasses import dataclass

from raftstate.machine.compaction import Sweeper
from raftstate.machine.layout import ChangeKind, change_key, milestone_key
from raftstate.machine.types import CompactTo, Done, KeyValue
from tests.machine.rig import Rig, delete, put

Pairs = dict[bytes, KeyValue]


@dataclass(frozen=True)
class Happened:
    """One change: `pair` is None for a deletion."""

    revision: int
    sub: int
    key: bytes
    pair: KeyValue | None

    @property
    def kind(self) -> ChangeKind:
        return ChangeKind.DELETE if self.pair is None else ChangeKind.PUT

    @property
    def is_milestone(self) -> bool:
        return self.pair is None or self.pair.version % 16 == 0


class Chronicle:
    """Does everything twice: to a machine, and to a list."""

    def __init__(self) -> None:
        self.rig = Rig()
        self.done: list[Happened] = []
        self.revision = 1
        self.compacted = 0
        self.sweeper = Sweeper()
        self.live: Pairs = {}

    def put(self, key: bytes, value: bytes, times: int = 1) -> None:
        values = [value + b"." * n for n in range(times)]
        self.rig.write(*(put(n, key, each) for n, each in enumerate(values, 1)))
        for each in values:
            self.revision += 1
            old = self.live.get(key)
            self.live[key] = KeyValue(
                key,
                each,
                old.create_revision if old else self.revision,
                self.revision,
                old.version + 1 if old else 1,
            )
            self.done.append(Happened(self.revision, 0, key, self.live[key]))
        assert self.rig.machine.revision == self.revision

    def delete(self, key: bytes, range_end: bytes = b"") -> None:
        self.rig.write(delete(1, key, range_end))
        end = range_end or key + b"\x00"
        gone = sorted(each for each in self.live if key <= each and (end == b"\x00" or each < end))
        self.revision += bool(gone)
        for sub, each in enumerate(gone):
            del self.live[each]
            self.done.append(Happened(self.revision, sub, each, None))
        assert self.rig.machine.revision == self.revision

    def compact(self, revision: int) -> None:
        """Forget the history before `revision`; the rows go later, by `sweep`."""
        assert self.rig.run(CompactTo(revision)) == [Done()]
        self.compacted = revision

    def sweep(self, changes_max: int) -> int:
        """One slice."""
        with self.rig.tables.write() as tables:
            return self.sweeper.sweep(tables, self.compacted, changes_max)

    def restart(self) -> None:
        """Forget what a sweep holds in memory, as a crash between two slices does."""
        self.sweeper = Sweeper()

    def sweep_all(self, changes_max: int = 100) -> None:
        while self.sweep(changes_max):
            pass

    # -- what the list says

    def as_of(self, revision: int) -> Pairs:
        pairs: Pairs = {}
        for each in self.done:
            if each.revision > revision:
                break
            if each.pair is None:
                del pairs[each.key]
            else:
                pairs[each.key] = each.pair
        return dict(sorted(pairs.items()))

    def rows_left(self) -> tuple[set[bytes], set[bytes]]:
        """The keys of CHANGES and MILESTONES that stand once the sweep is done."""
        live = self.as_of(self.compacted)
        left = [
            each
            for each in self.done
            if each.revision >= self.compacted or (each.pair is not None and live.get(each.key) == each.pair)
        ]
        return (
            {change_key(each.revision, each.sub) for each in left},
            {milestone_key(each.key, each.revision) for each in left if each.is_milestone},
        )

    def rows(self) -> tuple[set[bytes], set[bytes]]:
        """The keys of CHANGES and MILESTONES that stand."""
        dump = self.rig.tables.dump()
        return set(dump["CHANGES"]), set(dump["MILESTONES"])


AWKWARD_KEYS = [
    b"\x00",
    b"\x00\x00",
    b"\x00\xff",
    b"a",
    b"a\x00",
    b"a" * 31,
    b"a" * 32,
    b"a" * 32 + b"\x00",
    b"a" * 33,
    b"a" * 31 + b"\x00" * 2,
    b"a" * 31 + b"\xff",
    b"a" * 64,
    b"a" * 64 + b"\x00",
    b"b" * 479,
    b"b" * 480,
    b"b" * 479 + b"\xff",
    b"\xff",
    b"\xff" * 33,
    b"\xff" * 480,
]
"""Prefixes of one another, and what a milestone's groups of 32 bytes might put in another order."""
