"""What a node has on disk: made at its very first start, and opened, by this process alone, at each.

Here is what a start does to the data directory, the log and the state before anything runs on them, and which
error says that one of them is lost. Nothing here waits for another node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence, Set
from pathlib import Path

from raftstate.config import NodeSettings
from raftstate.errors import DataLossError, FailedPreconditionError, RaftstateError
from raftstate.folder import LOG_FOLDER, data_made
from raftstate.logs import get_logger
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member
from raftstate.node.disk import reserve_bytes_for
from raftstate.node.known_members import noted_members
from raftstate.node.startup import LogLostError, cut_damage, reset_to_finish
from raftstate.server.configured import initial_members
from raftstate.store import replacement
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.log import LogStore
from raftstate.store.log_renewal import must_copy, renew_log
from raftstate.store.reserve import Reserve
from raftstate.store.space import file_system
from raftstate.store.start import distrust_state
from raftstate.store.state import StateStore

log = get_logger(__name__)

LOG_MARGIN_PART = 16
"""What the log keeps for followers that were away is no more than one part in so many of the disk."""


class Stores:
    """A node's data directory and what is in it, opened by this process alone.

    `directory`: locked already; None: it is opened here. `distrust`: what is to be copied before it is
    opened, as if the marker of a failed disk stood there. `suspect`: the last run crashed, and a damaged page
    may be why. `with_reserve`: keep a reserve of disk space, as the settings say.

    Raises what `serve` does when it can't start; `LogLostError` if other nodes may replace this one.
    """

    def __init__(
        self,
        settings: NodeSettings,
        directory: DataDirectory | None = None,
        *,
        distrust: Set[str] = frozenset(),
        suspect: bool = False,
        with_reserve: bool = True,
    ) -> None:
        with contextlib.ExitStack() as opened:
            if directory is None:
                directory = open_directory(settings)
                opened.callback(directory.close)
            self.directory = directory
            disk = file_system(directory.path)
            reserve_bytes = reserve_bytes_for(settings.disk_reserve_bytes, disk) if with_reserve else 0
            self.reserve = Reserve(directory.path, reserve_bytes)
            self.log_margin_bytes = min(
                settings.log_margin_bytes, settings.log_map_bytes // 4, disk.total_bytes // LOG_MARGIN_PART
            )
            if disk.free_bytes < self.reserve.size_bytes:
                self.reserve.release()  # a start writes little, but it does
            if "state" in distrust:
                distrust_state(directory.path)
            must_renew = "log" in distrust or must_copy(directory.path)
            if must_renew:
                self.reserve.release()  # the copy needs the room; it is made anew when there is some
            try:
                self.state = StateStore.open(
                    directory.path, map_bytes=settings.state_map_bytes, suspect=suspect
                )
                opened.callback(self.state.close, clean=False)
                with self.state.read() as tables:
                    self.machine = Machine(tables)
            except (DataLossError, FailedPreconditionError) as error:
                # If the log is lost, too, there is nothing to keep.
                known = noted_members(directory.path, directory.identity.cluster_id)
                log_store = open_log(settings, directory, known, must_renew=must_renew)
                boundary = log_store.first_index() - 1
                log_store.close()
                raise state_is_lost(error, settings, known, boundary) from error
            # What the state holds durably is verified once the node runs: no start waits for it, unless
            # a damaged page may have ended the last run.
            self.log = open_log(
                settings,
                directory,
                self.machine.members,
                must_renew=must_renew,
                verify_after=0 if suspect else self.machine.applied_index,
            )
            opened.callback(self.log.close)
            fit_log_to_state(self.log, self.machine, self.state.durable_applied_index)
            check_sole_copy(self.log, self.machine, settings.node_id)
            opened.pop_all()  # they stay open
        self.clean = False
        """Whether the state was checkpointed at the end; the node says so when it has."""

    def close(self) -> None:
        """Close everything."""
        self.log.close()
        try:
            self.state.close(clean=self.clean)
        finally:
            # Whatever could not be noted at the end: a start in this process must find it unlocked.
            self.directory.close()


def check_sole_copy(log_store: LogStore, machine: Machine, node_id: int) -> None:
    """Raise `DataLossError` if a record is damaged that the state lacks, and that no other node can hold."""
    damaged = log_store.first_damaged_index
    if damaged is not None and {member.id for member in machine.members} <= {node_id}:
        raise DataLossError(
            f"entry {damaged} of this node's log is damaged on disk. It was acknowledged, perhaps, the state "
            f"ends with entry {machine.applied_index}, and no other node holds it: restore a copy of this "
            "node's folder, or go on without it, and all that came after it, by `raftstate recover DIR "
            "--accept-loss`"
        )


class StateLostError(DataLossError):
    """The state can't be opened, while the log can; other nodes may have it.

    `log_boundary`: what the log holds begins behind it.
    """

    def __init__(self, message: str, log_boundary: int) -> None:
        super().__init__(message)
        self.log_boundary = log_boundary


def state_is_lost(
    error: RaftstateError, settings: NodeSettings, members: Sequence[Member], log_boundary: int
) -> DataLossError:
    """Return what to raise for a state that can't be opened, beside a log that can. `members`: as far as they
    are known otherwise."""
    if {member.id for member in members or settings.cluster.members} - {settings.node_id}:
        return StateLostError(error.message, log_boundary)
    return DataLossError(
        f"{error.message}. No other node holds it: restore a copy of this node's folder, or see what "
        "`raftstate check DIR` says of it",
        detail=error.detail,
    )


def open_log(
    settings: NodeSettings,
    directory: DataDirectory,
    members: Sequence[Member],
    *,
    must_renew: bool,
    verify_after: int = 0,
) -> LogStore:
    """Open the log. `members`: as the state beside it knows them. `must_renew`: its disk failed a write, so
    that it goes on in new files. `verify_after`: as `LogStore.open` takes it.

    Raises `LogLostError` when it is lost, and other nodes may replace this one; else what `LogStore.open`
    does.
    """
    path = directory.path / LOG_FOLDER
    try:
        if must_renew:
            log.warning("copying the log: a write of it failed, or it is damaged", node=settings.name)
            renew_log(path, map_bytes=settings.log_map_bytes)
        return LogStore.open(path, map_bytes=settings.log_map_bytes, verify_after=verify_after)
    except DataLossError as error:
        known = {member.id for member in members or settings.cluster.members}
        if known - {settings.node_id}:
            raise LogLostError(error.message, members) from error
        raise DataLossError(
            f"{error.message}. No other node holds what it held: restore a copy of this node's folder, or go "
            "on with the state as of its last checkpoint, and without what came after it, by `raftstate "
            "recover DIR --accept-loss`",
            detail=error.detail,
        ) from error


def make_blank(settings: NodeSettings, directory: Path) -> None:
    """Make, durably, the data of a node that joins its cluster: an empty log, and a state without members."""
    LogStore.open(directory / LOG_FOLDER, map_bytes=settings.log_map_bytes, create=True).close()
    state = StateStore.create(directory, settings.state_map_bytes)
    with state.write() as tables:
        Machine.blank(tables, settings.cluster.cluster_id)
    state.checkpoint(0)
    state.close(clean=True)


def fit_log_to_state(log_store: LogStore, machine: Machine, durable_index: int) -> None:
    """Finish an install that a crash cut short, cut off damage to what was applied, and see to it that the
    log does not hold the first entry of all: whoever needs that one joins, and needs a snapshot instead.

    Raises:
        DataLossError: log and state don't fit.
        StorageError: the log can't be written.
    """
    hard_state = reset_to_finish(log_store, machine.applied_index, machine.applied_term)
    if hard_state is not None:
        log.warning("finishing an install", applied=machine.applied_index, last_index=log_store.last_index())
        log_store.publish(log_store.reset(hard_state, machine.applied_index, machine.applied_term))
    cut_damage(log_store, machine.applied_index, machine.applied_term)
    if durable_index >= 1:
        cut = log_store.compact(1, 1)
        if cut is not None:
            log_store.publish(cut)


def open_directory(settings: NodeSettings) -> DataDirectory:
    """Open the data directory, or create it if this is the very first start and the settings say so."""
    path = settings.data_path
    member = settings.member
    identity = Identity(
        cluster_id=settings.cluster.cluster_id,
        node_id=member.id,
        incarnation=member.incarnation,
        name=member.name,
    )
    if (path / "identity").exists():
        directory = DataDirectory.open(path, identity)
        try:
            replacement.finish(directory, lambda fresh: make_blank(settings, fresh))
        except BaseException:
            directory.close()
            raise
        data_made(settings)  # again, if a crash came between the two
        return directory
    if not settings.bootstrap:
        name = identity.name
        raise FailedPreconditionError(
            f"{path} holds no data of node {name}, and a node that lost its data must not come back under "
            "its old identity: what it has acknowledged would be gone. Have it replaced: `raftstate member "
            f"replace {name} --out DIR` on any machine that reaches the cluster, then start DIR. If this is "
            "the very first start of a new cluster or member, give --bootstrap"
        )

    def populate(directory: Path) -> None:
        LogStore.open(directory / LOG_FOLDER, map_bytes=settings.log_map_bytes, create=True).close()
        state = StateStore.create(directory, settings.state_map_bytes)
        members = initial_members(settings.cluster)
        with state.write() as tables:
            if settings.join:
                Machine.blank(tables, settings.cluster.cluster_id)
            else:
                Machine.bootstrap(tables, settings.cluster.cluster_id, members)
        state.checkpoint(0)
        state.close(clean=True)

    directory = DataDirectory.create(path, identity, populate)
    data_made(settings)
    return directory
