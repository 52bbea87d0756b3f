"""Checks the data directory of a stopped node, without changing a byte of it.

LMDB is not asked: it would open what its newest meta page says, make a lock file, and believe the pages. The
log is checked as a start checks it, the state as of its last durable checkpoint, which is what a start goes
back to.

May live here: what is looked at, and what it means when it is wrong. What a state's rows should say the
machine knows: that check is passed in.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from raftstate.core.errors import Damaged
from raftstate.core.types import HardState
from raftstate.errors import DataLossError, FailedPreconditionError
from raftstate.machine.tables import ReadTables
from raftstate.store import log_format
from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.directory import Identity, decode_identity, read_eio
from raftstate.store.files import disk_failure
from raftstate.store.generation import current_generation
from raftstate.store.log_check import check_data_file, check_rows
from raftstate.store.log_format import HARD_STATE_KEY, META_KEY, MetaRow, entry_key
from raftstate.store.page_check import check_pages
from raftstate.store.page_tables import PageTables, PageTree, mapped

LOG_FOLDER = "log"
_SHOWN = 5
"""How many damaged entries are named."""
_TELL_ENTRIES = 50_000

IDENTITY_LOST = (
    "nobody can tell whose data these are: have the node replaced (`raftstate member replace`), and delete "
    "them"
)
LOG_LOST = (
    "what this node promised is not known any more. At its next start it asks the other nodes to be "
    "replaced, and begins anew, by itself; they must be a quorum without it. A cluster of one node goes on "
    "with its state as of the last checkpoint by `raftstate recover DIR --accept-loss`"
)
RECORDS_APPLIED = "the state holds what they held: the next start cuts them off, and nothing is lost"
RECORDS_NEEDED = (
    "the next start fetches them again from the other nodes; until then this node neither leads nor "
    "acknowledges anything from there on. In a cluster of one node nobody has them: restore a copy, or "
    "`raftstate recover DIR --accept-loss`"
)
STATE_LOST = (
    "the log may be whole, and is kept. While the other nodes are up, have this one replaced (`raftstate "
    "member replace`); a cluster of one node needs a copy of this folder"
)
UNFIT = (
    "they are not of one node, or one of them was put back: have the node replaced (`raftstate member "
    "replace`)"
)


class Finding(NamedTuple):
    """Something that is wrong. `part`: "identity", "disk", "log" or "state"; `meaning`: what follows from it,
    and what to do."""

    part: str
    problem: str
    meaning: str


class Report(NamedTuple):
    """What a check found. `fine`: what is in order, in words; `pending`: what the next start brings to its
    end."""

    findings: list[Finding]
    fine: list[str]
    pending: list[str]


class StateMeta(Protocol):
    """What a check needs of the state's own record."""

    @property
    def cluster_id(self) -> int: ...  # noqa: D102
    @property
    def applied_index(self) -> int: ...  # noqa: D102
    @property
    def applied_term(self) -> int: ...  # noqa: D102
    @property
    def revision(self) -> int: ...  # noqa: D102


Verify = Callable[[ReadTables], StateMeta]
Tell = Callable[[str], None]


class LogContent(NamedTuple):
    """What stands in a log that can be opened."""

    meta: MetaRow
    hard_state: HardState
    damaged: Sequence[int]
    term_of: Callable[[int], int | None]
    """The term of an entry from the boundary on, None if it is damaged, 0 if the log does not hold it."""


class Examination(NamedTuple):
    """A report and what it was made from; None: that can't be read."""

    report: Report
    identity: Identity | None
    log: LogContent | None
    state: Any
    """What `verify` returned."""


def check_directory(path: Path, verify: Verify, tell: Tell = lambda _: None) -> Report:
    """Check a data directory.

    Args:
        path: the directory, of a node that does not run.
        verify: reads the whole state, raises `DataLossError` where it contradicts itself, returns its record.
        tell: is told what is looked at.

    Raises:
        FailedPreconditionError: it is no data directory, or in use.
        StorageError: it can't be read.
    """
    return examine(path, verify, tell).report


def examine(path: Path, verify: Verify, tell: Tell = lambda _: None) -> Examination:
    """Check a data directory as `check_directory` does, and return what was read, too."""
    with unused(path):
        report = Report([], [], [])
        identity = _check_identity(path, report)
        _check_markers(path, report)
        tell("the log")
        log = _check_log(path / LOG_FOLDER / "data.mdb", report, tell)
        tell("the state")
        state = _check_state(path, report, verify)
        if identity is not None and state is not None and identity.cluster_id != state.cluster_id:
            problem = f"it is of cluster {state.cluster_id:#x}, the directory of {identity.cluster_id:#x}"
            report.findings.append(Finding("state", problem, UNFIT))
        if log is not None and log.damaged:
            _report_records(log, state, report)
        if log is not None and state is not None:
            _check_fit(log, state, report)
        return Examination(report, identity, log, state)


@contextmanager
def unused(path: Path) -> Iterator[None]:
    """Keep a node from using the data directory meanwhile, without writing to it.

    Raises:
        FailedPreconditionError: it is no data directory, or a node uses it.
    """
    lock = path / "lock"
    if not any((path / name).exists() for name in ("identity", LOG_FOLDER, "CURRENT")):
        nodes = sorted(settings.parent.name for settings in path.glob("*/node.toml"))
        raise FailedPreconditionError(
            f"{path} is no data directory of a node: it holds no identity, log or state"
            + (f"; nodes are in its folders {', '.join(nodes)}: give one of them" if nodes else "")
        )
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield  # nobody has ever started here
        return
    except OSError as error:
        raise disk_failure("locking a data directory", path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise FailedPreconditionError(
                f"{path} is in use by process {holder or 'unknown'}: stop the node first"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _check_identity(path: Path, report: Report) -> Identity | None:
    if not (path / "identity").exists():
        report.findings.append(Finding("identity", "there is no identity file", IDENTITY_LOST))
        return None
    try:
        identity = decode_identity(path / "identity")
    except DataLossError as error:
        report.findings.append(Finding("identity", error.message, IDENTITY_LOST))
        return None
    report.fine.append(
        f"identity: {identity.name} (node {identity.node_id}, incarnation {identity.incarnation}) of cluster "
        f"{identity.cluster_id:#x}"
    )
    return identity


def _check_markers(path: Path, report: Report) -> None:
    reason = read_eio(path)
    if reason is not None:
        meaning = "what the page cache shows proves nothing about the disk; the next start goes by that"
        report.findings.append(Finding("disk", f"a write failed ({reason})", meaning))
    for name, what in (
        ("replacing", "the node is being replaced by an empty one"),
        ("blanking", "the node is being replaced by an empty one"),
        ("recovering", "a recovery was begun: run `raftstate recover` again"),
        ("creating", "the directory was being filled for the first time"),
    ):
        if (path / name).exists():
            report.pending.append(what)


def _check_log(data_file: Path, report: Report, tell: Tell) -> LogContent | None:
    try:
        newest, older = check_data_file(data_file)
        with mapped(data_file) as content:
            tree = PageTree(content, newest.page_bytes, newest.main)
            row, hard_state = tree.get(META_KEY), tree.get(HARD_STATE_KEY)
            meta = log_format.decode_meta(None if row is None else memoryview(row))
            saved = log_format.decode_hard_state(None if hard_state is None else memoryview(hard_state))
            check_rows(
                meta,
                saved,
                newest=newest,
                older=older,
                transaction_id=newest.transaction_id,
                rows=tree.count,
            )
            terms, damaged = _read_records(tree, meta, tell)
    except DataLossError as error:
        report.findings.append(Finding("log", error.message, LOG_LOST))
        return None
    count = meta.last_index - meta.boundary_index
    sound = f"{count - len(damaged)} of {count} records" if damaged else f"all {count} records"
    report.fine.append(
        f"log: meta pages, page walk, hard state (term {saved.term}, commit index {saved.commit}), {sound}; "
        f"entries {meta.boundary_index + 1} to {meta.last_index}"
    )

    def term_of(index: int) -> int | None:
        if index == meta.last_index:
            return meta.last_term
        return meta.boundary_term if index == meta.boundary_index else terms.get(index, 0)

    return LogContent(meta, saved, damaged, term_of)


def _read_records(tree: PageTree, meta: MetaRow, tell: Tell) -> tuple[dict[int, int | None], list[int]]:
    """The term of each entry, and which ones are damaged."""
    terms: dict[int, int | None] = {}
    damaged = []
    rows = tree.scan(entry_key(0))
    for index in range(meta.boundary_index + 1, meta.last_index + 1):
        key, value = next(rows, (b"", b""))
        if key != entry_key(index):
            raise DataLossError(
                f"log entry {index} is missing: its place is taken by key {key.hex() or 'none'}"
            )
        try:
            terms[index], _ = log_format.verify_record(index, memoryview(value))
        except Damaged:
            terms[index] = None
            damaged.append(index)
        if index % _TELL_ENTRIES == 0:
            tell(f"the log: entry {index} of {meta.last_index}")
    return terms, damaged


def _check_state(path: Path, report: Report, verify: Verify) -> StateMeta | None:
    try:
        generation = current_generation(path)
        if generation is None:
            raise DataLossError("CURRENT is missing: no state was ever made here, or it is gone")
        record = CheckpointRecord.read(generation.checkpoint_file)
        with mapped(generation.data_file) as content:
            check_pages(generation.data_file, record.meta, named=True)
            meta = verify(PageTables(content, record.meta))
        if meta.applied_index != record.applied_index:
            raise DataLossError(
                f"the checkpoint is of entry {record.applied_index}, the state in it of {meta.applied_index}"
            )
    except DataLossError as error:
        report.findings.append(Finding("state", error.message, STATE_LOST))
        return None
    if generation.eio_marker.exists():
        report.pending.append(
            f"a sync of {generation.path.name} failed: the next start goes on in a copy of it"
        )
    report.fine.append(
        f"state: CURRENT names {generation.path.name}; checkpoint, page walk, every row as of the "
        f"checkpoint, bucket sums; applied index {meta.applied_index}, revision {meta.revision}"
    )
    return meta


def _report_records(log: LogContent, state: StateMeta | None, report: Report) -> None:
    shown = ", ".join(map(str, log.damaged[:_SHOWN])) + (", ..." if len(log.damaged) > _SHOWN else "")
    applied = state is not None and log.damaged[-1] <= state.applied_index
    report.findings.append(
        Finding(
            "log",
            f"{len(log.damaged)} records are damaged (entries {shown})",
            RECORDS_APPLIED if applied else RECORDS_NEEDED,
        )
    )


def _check_fit(log: LogContent, state: StateMeta, report: Report) -> None:
    index, term = state.applied_index, state.applied_term
    held = log.term_of(index)
    if held is None or held == term:
        report.fine.append("log and state fit together")
    elif index > max(log.hard_state.commit, log.meta.boundary_index):
        report.pending.append(
            "an installed snapshot is ahead of the log, which the next start begins anew behind it"
        )
    else:
        what = (
            f"that index in term {held}"
            if held
            else f"entries {log.meta.boundary_index + 1} to {log.meta.last_index}"
        )
        problem = f"the state has applied entry {index} of term {term}, the log holds {what}"
        report.findings.append(Finding("log", problem, UNFIT))
