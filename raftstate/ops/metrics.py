"""The one table of a node's metrics. docs/metrics.md is made from it.

A metric that etcd has, too, has its name, with raftstate_ in place of etcd_, and means the same; those of
gRPC have the names that gRPC servers in Go give them.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftstate.core.progress import Progress
from raftstate.core.roles import Role
from raftstate.core.types import NONE
from raftstate.errors import ResourceExhaustedError
from raftstate.machine.tables import Table
from raftstate.ops.metric import Metric, Parts, Samples, counter, gauge, histogram


def _leads(parts: Parts) -> bool:
    return parts.driver.raw.raft.state is Role.LEADER


def _followers(parts: Parts) -> Iterator[tuple[int, Progress]]:
    """Yield what a leader knows of the others; nothing on a node that does not lead."""
    if _leads(parts):
        raft = parts.driver.raw.raft
        yield from ((peer, item) for peer, item in raft.tracker.visit() if peer != raft.id)


def _peers(parts: Parts) -> Iterator[int]:
    own = parts.driver.raw.raft.id
    return (member.id for member in parts.driver.applied.members if member.id != own)


def _lag_entries(parts: Parts) -> Samples:
    last = parts.driver.raw.raft.raft_log.last_index()
    return [((str(peer),), max(0, last - item.match)) for peer, item in _followers(parts)]


def _lag_seconds(parts: Parts) -> Samples:
    return [
        ((str(peer),), parts.driver.follower_lag_ns(item.match) / 1e9) for peer, item in _followers(parts)
    ]


def _keys(parts: Parts) -> int | None:
    try:
        with parts.state.read() as tables:
            return tables.count(Table.INDEX)
    except ResourceExhaustedError:
        return None  # no reader slot is free: reads of clients have them all


def _state_free(parts: Parts) -> int | None:
    defragmenter = parts.service.defragmenter
    try:
        return None if defragmenter is None else defragmenter.free_bytes()
    except ResourceExhaustedError:
        return None


def _erase_pending(parts: Parts) -> int | None:
    eraser = parts.service.eraser
    return None if eraser is None else int(parts.driver.applied.last_erase_index > eraser.erased_index)


def _alarms(parts: Parts) -> Samples:
    limits = parts.driver.fitness.limits
    kinds = dict.fromkeys(limits, 1)
    return [((kind,), count) for kind, count in sorted(kinds.items())]


def _code(status: str) -> str:
    """Return the name of a gRPC status as Go writes it."""
    return {"OK": "OK", "CANCELLED": "Canceled"}.get(status, status.title().replace("_", ""))


def _started(parts: Parts) -> Samples:
    calls = parts.meter.started if parts.meter is not None else {}
    return [((kind.type, kind.service, kind.method), count) for kind, count in calls.items()]


def _handled(parts: Parts) -> Samples:
    calls = parts.meter.handled if parts.meter is not None else {}
    return [
        ((kind.type, kind.service, kind.method, _code(status)), count)
        for (kind, status), count in calls.items()
    ]


def _handling(parts: Parts) -> Samples:
    times = parts.meter.seconds if parts.meter is not None else {}
    return [((kind.type, kind.service, kind.method), times[kind].snapshot()) for kind in times]


_CALL = ("grpc_type", "grpc_service", "grpc_method")

RAFT = (
    gauge(
        "raftstate_server_has_leader",
        "1: this node knows a leader.",
        lambda p: int(p.driver.raw.raft.lead != NONE),
    ),
    gauge("raftstate_server_is_leader", "1: this node leads.", lambda p: int(_leads(p))),
    gauge(
        "raftstate_server_is_learner",
        "1: this node has no vote.",
        lambda p: int(p.driver.raw.raft.is_learner),
    ),
    counter(
        "raftstate_server_leader_changes_seen_total",
        "How often this node came to know a leader: another than before, or one after none.",
        lambda p: p.driver.leader_changes,
    ),
    counter(
        "raftstate_server_proposals_committed_total",
        "The commit index at this node.",
        lambda p: p.driver.raw.raft.raft_log.committed,
    ),
    counter(
        "raftstate_server_proposals_applied_total",
        "The last log index applied at this node.",
        lambda p: p.driver.applied_index,
    ),
    gauge(
        "raftstate_server_proposals_pending",
        "Requests that this node proposed or forwarded, and that are not answered yet.",
        lambda p: p.driver.requests.pending,
    ),
    counter(
        "raftstate_server_proposals_failed_total",
        "Writes of this node's clients that were not applied (outcome not_applied), or of which that can't"
        " be known (unknown).",
        lambda p: [
            (("not_applied",), p.driver.requests.tally.refused),
            (("unknown",), p.driver.requests.tally.unknown),
        ],
        "outcome",
    ),
    counter(
        "raftstate_server_proposals_forwarded_total",
        "Requests that this node sent on to a leader.",
        lambda p: p.driver.requests.tally.forwarded,
    ),
    gauge(
        "raftstate_server_requests_held",
        "Requests that wait at this node for a leader.",
        lambda p: p.driver.requests.held,
    ),
    gauge(
        "raftstate_server_requests_held_bytes",
        "Memory that they take.",
        lambda p: p.driver.requests.held_bytes,
    ),
    histogram(
        "raftstate_server_commit_duration_seconds",
        "Of entries proposed by this node: from the proposal until they were applied here.",
        lambda p: p.driver.requests.tally.commit_seconds.snapshot(),
    ),
    histogram(
        "raftstate_server_apply_duration_seconds",
        "Of the state's transactions: from begin to commit, each of a portion of entries.",
        lambda p: p.applier.apply_seconds.snapshot(),
    ),
    counter(
        "raftstate_server_commands_applied_total",
        "Commands applied since the node was started.",
        lambda p: p.applier.commands_applied,
    ),
    counter(
        "raftstate_server_slow_read_indexes_total",
        "Rounds that confirm reads and got no answer in time, and were asked for again.",
        lambda p: p.driver.reads.rounds_repeated,
    ),
    counter(
        "raftstate_server_read_indexes_failed_total",
        "Reads that were refused, since nothing confirmed them, or too little was applied, in time.",
        lambda p: p.driver.reads.failed,
    ),
    gauge(
        "raftstate_server_reads_waiting",
        "Reads that wait to be confirmed, or for an entry to be applied.",
        lambda p: p.driver.reads.waiting,
    ),
    gauge(
        "raftstate_server_reads_open",
        "Reads under way, each with a reader slot of the state.",
        lambda p: p.service.open_reads,
    ),
    gauge(
        "raftstate_server_follower_lag_entries",
        "On the leader: entries of its log that a member is not known to have.",
        _lag_entries,
        "To",
    ),
    gauge(
        "raftstate_server_follower_lag_seconds",
        "On the leader: how long ago the first entry that a member is not known to have was appended,"
        " to a tenth of a second and up to ten minutes.",
        _lag_seconds,
        "To",
    ),
    gauge(
        "raftstate_server_follower_active",
        "On the leader: 1 if a member was heard of since the quorum was last checked.",
        lambda p: [((str(peer),), int(item.recent_active)) for peer, item in _followers(p)],
        "To",
    ),
    gauge(
        "raftstate_server_leader_silent_seconds",
        "How long ago the leader was last heard of; 0 on the leader.",
        lambda p: p.service.leader_silent_ms / 1e3,
    ),
    gauge(
        "raftstate_server_alarms",
        "1 for each thing that is wrong with this node, by kind; `raftstate status` has the sentences.",
        _alarms,
        "kind",
    ),
    gauge(
        "raftstate_server_may_lead",
        "1: nothing keeps this node from leading.",
        lambda p: int(p.driver.fitness.may_lead),
    ),
    gauge(
        "raftstate_server_may_read",
        "1: nothing keeps this node from showing what it holds.",
        lambda p: int(p.driver.fitness.may_read),
    ),
    gauge(
        "raftstate_server_id",
        "The id of this node.",
        lambda p: [((str(p.service.node_id), f"{p.service.cluster_id:016x}", p.name), 1)],
        "server_id",
        "cluster_id",
        "name",
    ),
    gauge(
        "raftstate_server_version",
        "The version of raftstate that runs.",
        lambda p: [((p.version,), 1)],
        "server_version",
    ),
    gauge(
        "raftstate_server_machine_version",
        "The rules by which commands are applied.",
        lambda p: p.driver.applied.machine_version,
    ),
    gauge(
        "raftstate_server_members",
        "Members of the cluster, as applied here.",
        lambda p: [
            (("voter",), sum(not member.learner for member in p.driver.applied.members)),
            (("learner",), sum(member.learner for member in p.driver.applied.members)),
        ],
        "role",
    ),
    gauge("raftstate_raft_term", "The Raft term at this node.", lambda p: p.driver.raw.raft.term),
    gauge(
        "raftstate_raft_commit_index",
        "The last log index known to be committed.",
        lambda p: p.driver.raw.raft.raft_log.committed,
    ),
    gauge("raftstate_raft_applied_index", "The last log index applied.", lambda p: p.driver.applied_index),
    gauge(
        "raftstate_raft_durable_applied_index",
        "The applied index that a power cut can't take back.",
        lambda p: p.state.durable_applied_index,
    ),
    gauge(
        "raftstate_raft_first_log_index",
        "The first log index that this node holds.",
        lambda p: p.driver.raw.raft.raft_log.first_index(),
    ),
    gauge(
        "raftstate_raft_last_log_index",
        "The last log index that this node holds.",
        lambda p: p.driver.raw.raft.raft_log.last_index(),
    ),
)

DISK = (
    histogram(
        "raftstate_disk_wal_fsync_duration_seconds",
        "Of the log's transactions: from begin until they were durable.",
        lambda p: p.log_writer.commit_seconds.snapshot(),
    ),
    gauge(
        "raftstate_disk_wal_write_pending_seconds",
        "How long the oldest write of the log is under way; 0: none is. A stuck disk shows here.",
        lambda p: p.driver.log_write_pending_ns() / 1e9,
    ),
    histogram(
        "raftstate_disk_backend_commit_duration_seconds",
        "Of commits of the state alone, which wait for no disk but for its write-back.",
        lambda p: p.state.commit_seconds.snapshot(),
    ),
    histogram(
        "raftstate_disk_checkpoint_duration_seconds",
        "Of the state's checkpoints: from begin until they were durable.",
        lambda p: p.applier.checkpoint_seconds.snapshot(),
    ),
    gauge(
        "raftstate_disk_checkpoint_age_seconds",
        "For how long, at most, something is applied that no durable checkpoint has; 0: they have all.",
        lambda p: p.applier.checkpoint_age_ns / 1e9,
    ),
    gauge(
        "raftstate_disk_log_size_bytes",
        "Size of the pages that the log's rows take, free ones not included.",
        lambda p: p.log.size_bytes(),
    ),
    gauge(
        "raftstate_disk_log_map_bytes", "Size that the log's file can't exceed.", lambda p: p.log.map_bytes
    ),
    gauge(
        "raftstate_mvcc_db_total_size_in_bytes",
        "Size of the state's file, free pages included.",
        lambda p: p.state.size_bytes(),
    ),
    gauge(
        "raftstate_server_quota_backend_bytes",
        "Size that the state's file can't exceed.",
        lambda p: p.state.map_bytes,
    ),
    gauge(
        "raftstate_disk_free_bytes",
        "What the file system of the data directory has left.",
        lambda p: p.state.disk_free_bytes(),
    ),
)

CONTENTS = (
    gauge("raftstate_debugging_mvcc_keys_total", "Keys that exist now.", _keys),
    gauge(
        "raftstate_debugging_mvcc_current_revision",
        "The store's revision at this node.",
        lambda p: p.driver.applied.revision,
    ),
    gauge(
        "raftstate_debugging_mvcc_compact_revision",
        "Reads of the past, and watches, reach back to here.",
        lambda p: p.driver.applied.compacted_revision,
    ),
    gauge(
        "raftstate_debugging_mvcc_watcher_total",
        "Watches that this node serves.",
        lambda p: p.service.watch_hub.watch_count,
    ),
    gauge("raftstate_server_leases", "Leases that live.", lambda p: p.driver.applied.leases),
    gauge("raftstate_server_sessions", "Client sessions that live.", lambda p: p.driver.applied.sessions),
)

NETWORK = (
    counter(
        "raftstate_network_peer_sent_bytes_total",
        "Bytes sent to a peer.",
        lambda p: [((str(peer),), p.links.traffic[peer].sent_bytes) for peer in _peers(p)],
        "To",
    ),
    counter(
        "raftstate_network_peer_received_bytes_total",
        "Bytes received from a peer.",
        lambda p: [((str(peer),), p.links.traffic[peer].received_bytes) for peer in _peers(p)],
        "From",
    ),
    counter(
        "raftstate_network_peer_sent_failures_total",
        "Messages not sent to a peer: there was no connection, or too much waited on it.",
        lambda p: [((str(peer),), p.links.traffic[peer].not_sent) for peer in _peers(p)],
        "To",
    ),
    gauge(
        "raftstate_network_peer_connected",
        "1: both connections to a peer stand.",
        lambda p: [((str(peer),), int(p.links.connected(peer))) for peer in _peers(p)],
        "To",
    ),
    counter(
        "raftstate_network_client_grpc_received_bytes_total",
        "Serialized messages of clients.",
        lambda p: p.meter.received_bytes if p.meter is not None else None,
    ),
    counter(
        "raftstate_network_client_grpc_sent_bytes_total",
        "Serialized messages to clients.",
        lambda p: p.meter.sent_bytes if p.meter is not None else None,
    ),
    counter("grpc_server_started_total", "Calls that began.", _started, *_CALL),
    counter("grpc_server_handled_total", "Calls that ended, by how they did.", _handled, *_CALL, "grpc_code"),
    histogram(
        "grpc_server_handling_seconds",
        "How long calls of one request and one answer took within the node.",
        _handling,
        *_CALL,
    ),
)

REPAIR = (
    gauge(
        "raftstate_disk_log_damaged_entries",
        "Records of the log that are damaged, and not refilled yet.",
        lambda p: len(p.log.damaged),
    ),
    gauge("raftstate_disk_state_free_bytes", "Bytes of the state's file that nothing uses.", _state_free),
    gauge(
        "raftstate_disk_rebuild_done_bytes",
        "Bytes of rows copied while the state's files are rewritten.",
        lambda p: p.service.defragmenter.done_bytes if p.service.defragmenter is not None else None,
    ),
    gauge(
        "raftstate_disk_rebuild_total_bytes",
        "Bytes of rows to be copied; 0: the files are not rewritten.",
        lambda p: p.service.defragmenter.total_bytes if p.service.defragmenter is not None else None,
    ),
    gauge(
        "raftstate_server_erase_pending",
        "1: bytes of something erased may still be in this node's files.",
        _erase_pending,
    ),
    gauge(
        "raftstate_network_snapshot_send_inflights",
        "Followers that are being sent a snapshot.",
        lambda p: p.driver.snapshots.sender.under_way,
    ),
    histogram(
        "raftstate_network_snapshot_send_total_duration_seconds",
        "Of snapshots sent: from the offer until the follower had installed it.",
        lambda p: p.driver.snapshots.sender.sent_seconds.snapshot(),
    ),
    counter(
        "raftstate_network_snapshot_send_failures_total",
        "Snapshots that were not sent after all.",
        lambda p: p.driver.snapshots.sender.failed,
    ),
    histogram(
        "raftstate_network_snapshot_receive_total_duration_seconds",
        "Of snapshots received: from the offer until this node went on with it.",
        lambda p: p.driver.snapshots.receiver.installed_seconds.snapshot(),
    ),
    counter(
        "raftstate_network_snapshot_receive_failures_total",
        "Snapshots that were begun to be received, and not installed after all.",
        lambda p: p.driver.snapshots.receiver.given_up,
    ),
)

METRICS: tuple[Metric, ...] = (*RAFT, *DISK, *CONTENTS, *NETWORK, *REPAIR)
