"""Watches how much room a node has, and decides what it does with little of it.

    room left                       what goes on                              what else happens
    above the soft floor            everything
    below the soft floor, over      reads, deletions, compaction, renewals    the log is cut closer to
      the quota, or with the          and ends of leases and sessions,          the last checkpoint
      log's map full                  membership
    below the hard floor, or once   reads                                     leadership is handed
      a write found no room                                                     over, if anybody is better off

What counts is the room of the file system, and of the free pages in the files of log and state: each can use
its own alone, and an entry takes some of both, so of these the smaller one. It recovers by itself, with a
distance between where a limit begins and where it ends, so that it does not flutter.

The room is measured on a thread, and at once where much was proposed since: a disk fills faster than that.
Also looked after here: readers of the
state that died, which keep pages from being used again until somebody clears them, and those that stand
still.

May live here: what is measured, the limits, and who is told of them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from raftstate.errors import RaftstateError, ResourceExhaustedError
from raftstate.logs import get_logger
from raftstate.node.applier import StateApplier
from raftstate.node.driver import Driver
from raftstate.node.environment import Clock, Timer
from raftstate.node.room import UNLIMITED, Writes
from raftstate.store.log import LogStore
from raftstate.store.log_writer import LogWriter
from raftstate.store.reserve import Reserve
from raftstate.store.space import FileSystem, Reader, Space, file_system
from raftstate.store.state import StateStore

log = get_logger(__name__)

LOOK_S = 1.0
LOOK_NEAR_S = 0.2
"""While there is less than some soft floors' room, or a limit holds."""
NEAR_SOFT_FLOORS = 4
READERS_LOOKS = 10
"""Every how many looks at the room the readers are looked at, too."""
OLD_READER_NS = 60_000_000_000
"""A reader in another process that has stood at one commit for so long, while later ones were made, keeps
their pages from being used again: it is paused, or has forgotten to end."""

SOFT_FLOOR_BYTES_MAX, SOFT_FLOOR_PART = 1 << 30, 5
HARD_FLOOR_BYTES_MAX, HARD_FLOOR_PART = 256 << 20, 10
RESERVE_BYTES_MAX, RESERVE_PART = 16 << 20, 100
"""Unless told otherwise: so much, but no larger part of the disk than one in so many."""
QUOTA_REST_BYTES_MAX, LOG_REST_BYTES_MAX, REST_PART = 1 << 30, 256 << 20, 8
"""What is kept free of a map, by the same rule: pages that are still being read can't be used again yet, and
what frees some takes others first."""
ROOM_PER_BYTE = 4
"""What a byte of an entry takes at most, when it is a value: its pages in the log and in the state, each with
others that change along."""
LOOK_BYTES_MIN = 256 << 10
"""However little room is left, so many bytes are proposed between two looks: each takes some 0.1 ms."""
SLACK_PART = 4
"""A floor ends to hold a quarter above where it began."""

_WHAT_GOES_ON = "reads, deletions, compaction, renewals and ends of leases go on"


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """What a node was told; None: by the size of its disk, or of its map. A floor of 0: none."""

    soft_floor_bytes: int | None = None
    hard_floor_bytes: int | None = None
    quota_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """`DiskSettings` for a certain disk, and certain maps."""

    soft_floor_bytes: int
    hard_floor_bytes: int
    quota_bytes: int
    log_bytes: int

    @classmethod
    def of(cls, settings: DiskSettings, disk: FileSystem, state_map_bytes: int, log_map_bytes: int) -> Limits:
        """Fill in what was not told."""
        hard, soft = settings.hard_floor_bytes, settings.soft_floor_bytes
        if hard is None:
            hard = min(HARD_FLOOR_BYTES_MAX, disk.total_bytes // HARD_FLOOR_PART)
            hard = hard if soft is None else min(hard, soft)
        if soft is None:
            soft = max(hard, min(SOFT_FLOOR_BYTES_MAX, disk.total_bytes // SOFT_FLOOR_PART))
        quota = settings.quota_bytes
        if quota is None:
            quota = state_map_bytes - min(QUOTA_REST_BYTES_MAX, state_map_bytes // REST_PART)
        return cls(soft, hard, quota, log_map_bytes - min(LOG_REST_BYTES_MAX, log_map_bytes // REST_PART))


def reserve_bytes_for(asked: int | None, disk: FileSystem) -> int:
    """Return how much room to reserve: what was asked for, or by the size of the disk."""
    return min(RESERVE_BYTES_MAX, disk.total_bytes // RESERVE_PART) if asked is None else asked


@dataclass(frozen=True, slots=True)
class Measured:
    """One look."""

    disk: FileSystem
    log: Space
    state: Space
    log_full: str | None = None
    """What the disk said when it had no room for the log."""
    state_full: str | None = None
    old_reader: str = ""
    """A sentence on a reader that keeps free pages from being used; empty: none does."""

    @property
    def room_bytes(self) -> int:
        """What log and state may still take, each of them."""
        state_free = 0 if self.old_reader else self.state.free_bytes
        return self.disk.free_bytes + min(self.log.free_bytes, state_free)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What holds by one limit. `may_lead`: whether this node may lead nevertheless."""

    writes: Writes
    reason: str
    may_lead: bool = True


class _Limit:
    """A limit that ends to hold some way above where it began."""

    def __init__(self) -> None:
        self.holds = False

    def look(self, room: int, floor: int, slack: int) -> bool:
        """Return whether it holds, by the room left now."""
        self.holds = room < floor + (slack if self.holds else 0)
        return self.holds


class Judge:
    """Says what a node may do, by what was measured; no clock, no disk."""

    def __init__(self, settings: DiskSettings) -> None:
        self._settings = settings
        self._soft, self._hard, self._quota, self._log = _Limit(), _Limit(), _Limit(), _Limit()
        self.limits: Limits | None = None
        """As of the last look."""

    def judge(self, seen: Measured) -> dict[str, Verdict]:
        """Return what holds, by the name of the limit; empty: all is well."""
        limits = Limits.of(self._settings, seen.disk, seen.state.map_bytes, seen.log.map_bytes)
        self.limits = limits
        found: dict[str, Verdict] = {}
        disk = self._judge_disk(seen, limits)
        if disk is not None:
            found["disk"] = disk
        quota = limits.quota_bytes
        if self._quota.look(quota - seen.state.used_bytes, 1, quota // REST_PART // SLACK_PART):
            found["quota"] = Verdict(
                Writes.FREEING,
                f"the state takes {_size(seen.state.used_bytes)}, its quota is {_size(quota)}: no puts and "
                f"no new leases are taken; {_WHAT_GOES_ON}. Delete keys and compact, or start the node again "
                "with a larger quota_bytes or state_map_bytes",
            )
        rest = seen.log.map_bytes - limits.log_bytes
        if self._log.look(limits.log_bytes - seen.log.used_bytes, 1, rest // SLACK_PART):
            found["log"] = Verdict(
                Writes.FREEING,
                f"the log takes {_size(seen.log.used_bytes)} of its map of {_size(seen.log.map_bytes)}: no "
                f"puts and no new leases are taken; {_WHAT_GOES_ON}. It is cut as soon as it may be; "
                "otherwise start the node again with a larger log_map_bytes",
            )
        return found

    def left_bytes(self, seen: Measured) -> int:
        """Return how much may be taken until some limit begins to hold."""
        limits = Limits.of(self._settings, seen.disk, seen.state.map_bytes, seen.log.map_bytes)
        return min(
            seen.room_bytes - limits.soft_floor_bytes,
            limits.quota_bytes - seen.state.used_bytes,
            limits.log_bytes - seen.log.used_bytes,
        )

    def _judge_disk(self, seen: Measured, limits: Limits) -> Verdict | None:
        room, soft, hard = seen.room_bytes, limits.soft_floor_bytes, limits.hard_floor_bytes
        is_hard = self._hard.look(room, hard, hard // SLACK_PART)
        is_soft = self._soft.look(room, soft, soft // SLACK_PART)
        full = seen.log_full or seen.state_full
        if full is not None:
            return Verdict(
                Writes.NONE, f"there was no room for a write: only reads go on. {full}", may_lead=False
            )
        if is_hard:
            return Verdict(
                Writes.NONE,
                f"{_size(room)} of room are left, the hard floor is {_size(hard)}: only reads go on. Free or "
                "add disk space",
                may_lead=False,
            )
        if is_soft:
            return Verdict(
                Writes.FREEING,
                f"{_size(room)} of room are left, the soft floor is {_size(soft)}: no puts and no new leases "
                f"are taken; {_WHAT_GOES_ON}. Delete keys and compact, or free or add disk space",
            )
        return None


class DiskWatch:
    """Looks at the room regularly, and tells driver, gate and applier. Belongs to the loop's thread.

    Args:
        driver: whose fitness and gate are set.
        log_store: measured.
        state: measured; its readers are looked after.
        log_writer: says when the disk had no room.
        applier: the same; cuts the log closer while room is short.
        reserve: made, and made anew, while there is room for it.
        clock: the node's.
        path: the data directory.
        settings: the limits.
    """

    def __init__(
        self,
        driver: Driver,
        log_store: LogStore,
        state: StateStore,
        log_writer: LogWriter,
        applier: StateApplier,
        reserve: Reserve,
        clock: Clock,
        *,
        path: Path,
        settings: DiskSettings,
    ) -> None:
        self._driver = driver
        self._log_store = log_store
        self._state = state
        self._log_writer = log_writer
        self._applier = applier
        self._reserve = reserve
        self._clock = clock
        self._path = path
        self._judge = Judge(settings)
        self._readers = OldReaders(clock.monotonic_ns)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="raftstate-disk")
        self._timer: Timer | None = None
        self._looking: asyncio.Future[Measured] | None = None
        self._told: dict[str, tuple[Writes, bool]] = {}
        """The limits that hold: which writes are taken by each, and whether this node may lead."""
        self._old_reader = ""
        self._looks = 0
        self._closed = False
        self.measured: Measured | None = None
        """The last look."""

    def start(self) -> None:
        """Look once, here and now, so that no write is taken before; then regularly."""
        self._driver.requests.gate.look = self._look_now
        self._reserve_if_there_is_room(self._look_now())
        self._look_later()

    def _look_now(self) -> Measured | None:
        """Look on the loop: so much was proposed that it can't wait."""
        try:
            seen = self._measure()
        except RaftstateError as error:
            log.warning("room not measured", reason=str(error))
            self._driver.requests.gate.left_bytes = LOOK_BYTES_MIN
            return None
        self._found(seen)
        return seen

    def close(self) -> None:
        """Look no more; waits for a look that is under way."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._thread.shutdown()

    @property
    def limits(self) -> Limits | None:
        """The limits as of the last look."""
        return self._judge.limits

    def _look_later(self) -> None:
        if not self._closed:
            delay_s = LOOK_NEAR_S if self._told or self._is_near() else LOOK_S
            self._timer = self._clock.call_later(delay_s, self._look)

    def _is_near(self) -> bool:
        if self.measured is None or self._judge.limits is None:
            return True
        return self.measured.room_bytes < NEAR_SOFT_FLOORS * self._judge.limits.soft_floor_bytes

    def _look(self) -> None:
        if not self._closed:
            self._looking = asyncio.get_running_loop().run_in_executor(self._thread, self._look_around)
            self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Future[Measured]) -> None:
        if self._closed:
            looking.exception()
            return
        try:
            self._found(looking.result())
        except RaftstateError as error:
            log.warning("room not measured", reason=str(error))
        self._look_later()

    def _look_around(self) -> Measured:
        """Measure, and look after what belongs to it. On the thread."""
        seen = self._measure()
        if self._looks % READERS_LOOKS == 0:
            self._look_at_readers()
        self._looks += 1
        self._reserve_if_there_is_room(seen)
        return seen

    def _measure(self) -> Measured:
        return Measured(
            file_system(self._path),
            self._log_store.space(),
            self._state_space(),
            self._log_writer.full,
            self._applier.full,
            self._old_reader,
        )

    def _state_space(self) -> Space:
        try:
            return self._state.space()
        except ResourceExhaustedError:
            # All reader slots are taken; the disk may fill up nevertheless.
            if self.measured is None:
                raise
            return self.measured.state

    def _reserve_if_there_is_room(self, seen: Measured | None) -> None:
        limits = self._judge.limits
        if seen is None or limits is None:
            return
        if seen.state_full is not None:
            self._reserve.release()
            return
        wanted = self._reserve.size_bytes + limits.hard_floor_bytes
        if not self._reserve.held and seen.log_full is None and seen.disk.free_bytes > wanted:
            self._reserve.make()

    def _look_at_readers(self) -> None:
        cleared = self._state.clear_dead_readers()
        if cleared:
            log.warning("dead readers cleared", count=cleared)
        self._old_reader = self._readers.look(*self._state.readers())

    def _found(self, seen: Measured) -> None:
        self.measured = seen
        fitness = self._driver.fitness
        found = self._judge.judge(seen)
        alone = len(self._driver.applied.conf_state.voters) == 1
        for name in self._told.keys() - found.keys():
            log.info("enough room again", limit=name)
            fitness.lift(f"room: {name}")
            del self._told[name]
        for name, verdict in found.items():
            holds = (verdict.writes, verdict.may_lead or alone)
            if self._told.get(name) == holds:
                continue  # operators are told once, with the figures of when it began
            self._told[name] = holds
            log.warning("little room", limit=name, reason=verdict.reason)
            may_lead = verdict.may_lead or alone
            fitness.limit(f"room: {name}", verdict.reason, may_lead=may_lead, at_need=True)
        strictest = max(found.values(), key=lambda verdict: verdict.writes, default=None)
        raft, gate = self._driver.raw.raft, self._driver.requests.gate
        if strictest is None:
            # What is on its way to the disk is not seen in what is left of it.
            left_bytes = self._judge.left_bytes(seen) // ROOM_PER_BYTE - raft.uncommitted_bytes
            gate.set(Writes.ALL, "", max(left_bytes, LOOK_BYTES_MIN))
        else:
            gate.set(strictest.writes, f"node {raft.id}, the leader: {strictest.reason}", UNLIMITED)
        self._applier.space_is_short("disk" in found or "log" in found)
        if seen.old_reader:
            fitness.limit("readers", seen.old_reader)
        else:
            fitness.lift("readers")


class OldReaders:
    """Finds readers of other processes that stand still."""

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._since: dict[Reader, int] = {}

    def look(self, readers: list[Reader], newest: int) -> str:
        """Return a sentence on the one that has stood still the longest; empty: none has for long.

        `newest`: the id of the newest commit; who reads that one keeps nothing.
        """
        now_ns = self._now_ns()
        others = [each for each in readers if each.pid != os.getpid() and each.transaction_id < newest]
        self._since = {each: self._since.get(each, now_ns) for each in others}
        oldest = min(self._since, key=lambda each: self._since[each], default=None)
        if oldest is None or now_ns - self._since[oldest] < OLD_READER_NS:
            return ""
        return (
            f"process {oldest.pid} has been reading this node's state as of one moment for over "
            f"{OLD_READER_NS // 1_000_000_000} s, so that the file only grows: let it go on, or end it"
        )


def _size(size_bytes: int) -> str:
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} bytes"
