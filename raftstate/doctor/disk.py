"""The disk of a data directory: its file system, how long writes take to be durable, what it has left."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from raftstate.doctor.finding import Finding, failed, note, ok, warning

WRITES = 200
WRITE_BYTES = 4_096
PROBE_S_MAX = 10.0
"""A disk that is so slow is known before all writes are made."""
P99_S_GOOD = 0.010
"""etcd's own advice: a p99 below 10 ms. Every write of the cluster waits for a majority's slowest part."""
P99_S_MAX = 0.200
"""Half of what makes a leader hand over (`succession.LOG_WRITE_STALL_NS`)."""
P50_S_DOUBTFUL = 0.000_020
"""No disk is so quick: a write-back cache that a power cut empties is, and memory."""

FREE_SOFT_BYTES = 1 << 30
FREE_HARD_BYTES = 256 << 20
"""The floors below which a node takes no more puts, and nothing but reads, where the settings name none: a
tenth and a 25th of a small disk."""

_REMOTE = re.compile(
    r"^(nfs\d?|cifs|smb\d?|smbfs|9p|afs|ceph|glusterfs|lustre|fuse.*|virtiofs|vboxsf|davfs)$"
)
_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
_LAYERED = frozenset({"overlay", "aufs"})
_WITHOUT_BARRIERS = frozenset({"nobarrier", "barrier=0", "nodiscard,nobarrier"})


class Mount(NamedTuple):
    """A mounted file system."""

    point: Path
    kind: str
    options: frozenset[str]


def look(data: Path) -> Iterator[Finding]:
    """Yield what is found where the data directory is, or would be made."""
    folder = nearest(data)
    try:
        mounts = parse_mounts(Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines())
    except OSError:
        yield note("file system", "unknown: this system has no /proc/self/mountinfo")
    else:
        yield judge_mount(mount_of(folder.resolve(), mounts))
    yield judge_space(*space(folder))
    yield look_at_syncs(folder)


def nearest(data: Path) -> Path:
    """Return `data`, or the folder that it would be made in."""
    folder = data.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def parse_mounts(lines: Iterable[str]) -> list[Mount]:
    """Return what is mounted, in the order of /proc/self/mountinfo (see proc(5))."""
    mounts = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())}
        mounts.append(Mount(Path(point), rest[0], frozenset(options)))
    return mounts


def mount_of(path: Path, mounts: Sequence[Mount]) -> Mount:
    """Return the file system that a path is on: the last one mounted at the deepest point above it."""
    above = [mount for mount in mounts if path.is_relative_to(mount.point)]
    deepest = max(len(mount.point.parts) for mount in above)
    return [mount for mount in above if len(mount.point.parts) == deepest][-1]


def judge_mount(mount: Mount) -> Finding:
    """Say what to think of a file system."""
    check, found = "file system", f"{mount.kind} at {mount.point}"
    if "ro" in mount.options:
        return failed(
            check, f"{found}, mounted read-only", "remount it read-write; the kernel's log may say why"
        )
    if _REMOTE.match(mount.kind):
        return failed(
            check,
            found,
            "locks and memory maps of a shared or user-space file system are not those that LMDB needs: use a"
            " local disk (ext4, xfs)",
        )
    if mount.options & _WITHOUT_BARRIERS:
        return failed(
            check, f"{found}, without write barriers", "remount it with barriers: a power cut loses data"
        )
    if mount.kind in _MEMORY:
        return warning(check, found, "it is memory: nothing outlives a restart of the machine; use a disk")
    if mount.kind in _LAYERED:
        return warning(
            check, found, "it goes with its container: put the data directory on a volume of its own"
        )
    return ok(check, found)


def space(folder: Path) -> tuple[int, int]:
    """Return (bytes left for this user, bytes in all) of a folder's file system."""
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize, system.f_blocks * system.f_frsize


def judge_space(free_bytes: int, total_bytes: int) -> Finding:
    """Say what to think of the space that is left."""
    soft = min(FREE_SOFT_BYTES, total_bytes // 10)
    hard = min(FREE_HARD_BYTES, total_bytes // 25)
    found = f"{free_bytes / 1e9:,.1f} of {total_bytes / 1e9:,.1f} GB free"
    if free_bytes < hard:
        return failed("disk space", f"{found}; below {hard / 1e6:,.0f} MB only reads go on", "make room now")
    if free_bytes < soft:
        return failed("disk space", f"{found}; below {soft / 1e6:,.0f} MB no puts are taken", "make room")
    if free_bytes < 4 * soft:
        return warning(
            "disk space", f"{found}; below {soft / 1e6:,.0f} MB no puts are taken", "make room soon"
        )
    return ok("disk space", found)


def look_at_syncs(folder: Path) -> Finding:
    """Say how long the folder's disk takes to make 4 KiB durable."""
    try:
        return judge_syncs(time_syncs(folder, time.perf_counter))
    except OSError as error:
        return failed(
            "sync latency",
            f"nothing could be written in {folder}: {error.strerror}",
            "let the user that runs the node own the data directory",
        )


def time_syncs(folder: Path, clock: Callable[[], float]) -> list[float]:
    """Write 4 KiB and make them durable, again and again in a file that is removed; return the times in s."""
    sync = getattr(os, "fdatasync", os.fsync)
    times: list[float] = []
    with tempfile.TemporaryFile(dir=folder, prefix="raftstate-doctor-") as file:
        descriptor = file.fileno()
        # Appended blocks change the file's size, which a sync then writes, too: LMDB's files have theirs.
        os.pwrite(descriptor, bytes(WRITES * WRITE_BYTES), 0)
        os.fsync(descriptor)
        until = clock() + PROBE_S_MAX
        for number in range(WRITES):
            block = number.to_bytes(8, "big") * (WRITE_BYTES // 8)
            began = clock()
            os.pwrite(descriptor, block, number * WRITE_BYTES)
            sync(descriptor)
            ended = clock()
            times.append(ended - began)
            if ended > until:
                break
    return times


def judge_syncs(times: Sequence[float]) -> Finding:
    """Say what to think of these times."""
    ascending = sorted(times)
    p50, p99 = ascending[len(times) // 2], ascending[min(len(times) - 1, len(times) * 99 // 100)]
    check = "sync latency"
    found = f"p50 {p50 * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms of {len(times)} writes of {WRITE_BYTES} bytes"
    if p99 > P99_S_MAX:
        return failed(check, found, "a leader that waits for 400 ms hands over: use a quicker disk (SSD)")
    if p99 > P99_S_GOOD:
        return warning(check, found, f"every write waits for it: a p99 below {P99_S_GOOD * 1e3:g} ms is good")
    if p50 < P50_S_DOUBTFUL:
        return note(
            check, found, "no disk is so quick: if this is a cache without a battery, a power cut loses data"
        )
    return ok(check, found)
