"""`raftstate recover`: what is left after a majority was lost for good becomes a new cluster of one node.

It is another cluster: a new id, so that no node of the former one can ever join it or vote in it, and that no
client takes it for the one that made it promises. The node keeps its id and gets the next incarnation.

What it holds is applied as far as its log can be read, beyond the commit index too: what stands there may
have been acknowledged by the nodes that are gone, and what was not was never refused for certain, either.
Damaged records end it: what stands behind one can't be applied.

    recovering   durable: holds the new identity. From here on only another `recover` opens the directory
    state        the log's tail is applied, the state's record rewritten: one transaction, and a checkpoint
    log          begun anew behind the applied entry
    identity     the new one
    node.toml    the new cluster's id and only member
    (none)       the marker is removed

Each step may be the last one before a crash: the next call goes on. Before the marker nothing has changed.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from raftstate.config import NodeSettings, dump_toml
from raftstate.core.conf_change import decode_conf_change
from raftstate.core.membership import ConfChangeError, next_conf_state
from raftstate.core.types import NONE, ConfState, Entry, EntryType, HardState
from raftstate.errors import ConfigError, DataLossError, WrongClusterError
from raftstate.folder import new_cluster_id
from raftstate.machine.layout import Meta
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member
from raftstate.machine.verify import check_state
from raftstate.offline.check import find
from raftstate.store.check import LOG_FOLDER, LogContent, examine
from raftstate.store.directory import (
    RECOVERING,
    DataDirectory,
    Identity,
    decode_identity,
    encode_identity,
)
from raftstate.store.files import disk_failure, durable_remove, durable_write
from raftstate.store.log import LogStore
from raftstate.store.state import StateStore

LOG_MAP_BYTES = 16 << 30
"""Of a log that is made for a node whose settings are not at hand: the default of the setting."""
_NO_LIMIT = 1 << 62


@dataclass(frozen=True, slots=True)
class Recovery:
    """What `recover` would make, or has made, of a directory."""

    data: Path
    settings: NodeSettings | None
    identity: Identity
    """The new one."""
    is_resumed: bool
    """Whether an earlier call was cut short."""
    losses: tuple[str, ...]
    """What may be missing afterwards, in sentences for people."""


def look(folder: Path) -> Recovery:
    """Say what a recovery would cost. Changes nothing.

    Args:
        folder: of a node that does not run, or its data directory.

    Raises:
        FailedPreconditionError: there is no node's data, or the node runs.
        DataLossError: the state, or the identity, is damaged: there is nothing to go on from.
        WrongClusterError: the settings beside the data are not of this node.
        ConfigError, StorageError: something can't be read.
    """
    data, settings = find(folder)
    marker = data / RECOVERING
    if marker.exists():
        identity = decode_identity(marker)
        _check_settings(settings, identity, None)
        losses = ("what was said when this recovery was begun; it is only brought to its end now",)
        return Recovery(data, settings, identity, True, losses)
    found = examine(data, check_state)
    old, state = found.identity, found.state
    if old is None or state is None:
        what = next(each.problem for each in found.report.findings if each.part in ("identity", "state"))
        raise DataLossError(f"nothing can be recovered: {what}. Restore a copy of this folder")
    _check_settings(settings, old, old.cluster_id)
    identity = msgspec.structs.replace(old, cluster_id=new_cluster_id(), incarnation=old.incarnation + 1)
    return Recovery(data, settings, identity, False, tuple(_losses(old, found.log, state)))


def _check_settings(settings: NodeSettings | None, identity: Identity, cluster_id: int | None) -> None:
    """Check that the settings are of the node whose data these are. `cluster_id` None: of a recovery that was
    cut short it may be the old one or the new."""
    if settings is None:
        return
    if settings.node_id != identity.node_id or cluster_id not in (None, settings.cluster.cluster_id):
        raise WrongClusterError(
            f"{settings.config_file} is of node {settings.node_id} of cluster "
            f"{settings.cluster.cluster_id:#x}, the data beside it are of node {identity.node_id} of cluster "
            f"{identity.cluster_id:#x}"
        )


def _losses(old: Identity, log: LogContent | None, state: Meta) -> Iterable[str]:
    others = [member.name for member in state.members if member.id != old.node_id]
    if log is None:
        yield (
            f"the log can't be read: everything after entry {state.applied_index}, the state's last "
            "checkpoint, is lost, whoever acknowledged it"
        )
    else:
        last = log.meta.last_index
        ahead = [index for index in log.damaged if index > state.applied_index]
        if ahead:
            yield (
                f"entry {ahead[0]} of the log is damaged: it, and the {last - ahead[0]} entries after it, "
                "are lost"
            )
        if others:
            yield (
                f"whatever the other nodes acknowledged after entry {last}, where this node's log ends, and "
                "this node never had: it can't be known how much that is"
            )
        if last > log.hard_state.commit:
            yield (
                f"entries {log.hard_state.commit + 1} to {last} are not known to be committed: they are "
                "kept, so writes may come to be that nobody was told of"
            )
    if others:
        yield (
            f"the other members ({', '.join(others)}) are not part of the new cluster. Never start them "
            "again beside it for the same clients: delete their folders"
        )
    yield (
        "clients must connect anew: sessions of the old cluster are refused, and what became of a write that "
        "was under way can't be asked any more. Leases and locks go on as this node knew them: some may have "
        "been renewed, released or taken over since"
    )


def recover(folder: Path) -> Recovery:
    """Make a new cluster of one of what a stopped node holds. Goes on with a recovery that was cut short.

    Args:
        folder: of the node, or its data directory.

    Raises:
        FailedPreconditionError, DataLossError, WrongClusterError, ConfigError: as `look` does.
        StorageError: the disk failed; the next call goes on.
    """
    recovery = look(folder)
    data, identity = recovery.data, recovery.identity
    directory = DataDirectory.open(data, resume_recovery=True)
    try:
        if not recovery.is_resumed:
            durable_write(data / RECOVERING, encode_identity(identity))
        machine_index, machine_term = _renew_state(data, identity, recovery.settings)
        _renew_log(data, recovery.settings, machine_index, machine_term)
        durable_write(data / "identity", encode_identity(identity))
        if recovery.settings is not None:
            _renew_settings(recovery.settings, identity)
        durable_remove(data / RECOVERING)
    finally:
        directory.close()
    return recovery


def _renew_state(data: Path, identity: Identity, settings: NodeSettings | None) -> tuple[int, int]:
    """Apply what the log holds, and make the state another cluster's; return the applied index and its
    term."""
    state = StateStore.open(data, map_bytes=0 if settings is None else settings.state_map_bytes)
    clean = False
    try:
        with state.read() as tables:
            machine = Machine(tables)
        if machine.cluster_id != identity.cluster_id:
            entries = _tail(data, settings, machine.applied_index)
            member = _own_record(machine, identity, settings)
            conf_state = machine.conf_state()
            # One transaction: with half of the tail, and under the old identity, it would be neither.
            with state.write() as tables:
                for entry in entries:
                    conf_states: Mapping[int, ConfState] = {}
                    if entry.type is not EntryType.NORMAL:
                        conf_state = _after(conf_state, entry)
                        conf_states = {entry.index: conf_state}
                    machine.apply(tables, [entry], conf_states)
                machine.found_anew(tables, identity.cluster_id, member)
            state.checkpoint(machine.applied_index)
        # What was noted for as long as others had a better state would keep this only node from leading.
        state.trust()
        clean = True
        return machine.applied_index, machine.applied_term
    finally:
        state.close(clean=clean)


def _after(conf_state: ConfState, entry: Entry) -> ConfState:
    try:
        return next_conf_state(conf_state, decode_conf_change(entry))
    except ConfChangeError:
        return conf_state  # as on a node: it is without effect


def _tail(data: Path, settings: NodeSettings | None, applied_index: int) -> list[Entry]:
    """The entries behind the applied one, up to the first that is damaged or missing."""
    try:
        # What the state holds may be damaged as it likes: only what comes after is wanted.
        log = LogStore.open(data / LOG_FOLDER, map_bytes=_log_map_bytes(settings), verify_after=applied_index)
    except DataLossError:
        return []
    try:
        if not log.first_index() - 1 <= applied_index:
            return []
        end = min([index for index in log.damaged if index > applied_index], default=log.last_index() + 1)
        return log.entries(applied_index + 1, end, _NO_LIMIT) if end > applied_index + 1 else []
    finally:
        log.close()


def _log_map_bytes(settings: NodeSettings | None) -> int:
    return LOG_MAP_BYTES if settings is None else settings.log_map_bytes


def _own_record(machine: Machine, identity: Identity, settings: NodeSettings | None) -> Member:
    known = next((member for member in machine.members if member.id == identity.node_id), None)
    if settings is not None:
        own = settings.member
        return Member(own.id, identity.incarnation, own.name, own.peer_address, own.client_address)
    if known is None:
        raise ConfigError(
            "the state does not know under which addresses this node is reached, and there is no node.toml: "
            "give the node's folder",
            field="dir",
        )
    return msgspec.structs.replace(known, incarnation=identity.incarnation, learner=False, promote=False)


def _renew_log(data: Path, settings: NodeSettings | None, index: int, term: int) -> None:
    """Begin the log anew behind the entry that the state ends with."""
    path = data / LOG_FOLDER
    try:
        if path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise disk_failure("removing the old log", path, error) from error
    log = LogStore.open(path, map_bytes=_log_map_bytes(settings), create=True)
    try:
        if index:
            log.publish(log.reset(HardState(term, NONE, index), index, term))
    finally:
        log.close()


def _renew_settings(settings: NodeSettings, identity: Identity) -> None:
    """Rewrite node.toml: the new cluster, and its only member. The old one is kept beside it."""
    file = settings.config_file
    if file is None:
        return
    try:
        old = file.read_bytes()
    except OSError as error:
        raise disk_failure("reading the settings", file, error) from error
    if settings.cluster.cluster_id != identity.cluster_id:
        durable_write(file.with_name(file.name + ".before-recover"), old)
    values = tomllib.loads(old.decode())
    own = settings.member.model_dump() | {"incarnation": identity.incarnation}
    values["cluster"] = values["cluster"] | {"cluster_id": identity.cluster_id, "members": [own]}
    values.pop("join", None)
    values.pop("peer_addresses", None)
    durable_write(file, dump_toml(values).encode())
