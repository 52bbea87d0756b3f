"""Between the wire's messages and the machine's and the node's types. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from raftstate.machine.reader import LeaseStatus
from raftstate.machine.types import (
    Answer,
    DeleteDone,
    KeyValue,
    Member,
    OperationDone,
    PutDone,
    RangeDone,
    SessionId,
    TxnDone,
)
from raftstate.node.service import (
    ClusterTimes,
    NodeReader,
    NodeService,
    NodeStatus,
    PeerStatus,
    WatchEnd,
    WatchEvent,
    WatchNews,
)
from raftstate.pb.v1 import cluster_pb2, common_pb2, lease_pb2, pipeline_pb2, txn_pb2, watch_pb2
from raftstate.rpc.status import refusal_of_error, refusal_of_fault


class Pairs(Protocol):
    """A repeated field of pairs."""

    def add(self) -> common_pb2.KeyValue:
        """Append an empty pair, and return it."""
        ...


def header(
    service: NodeService, *, revision: int, applied_index: int, staleness_bound_us: int | None = None
) -> common_pb2.ResponseHeader:
    """Return a reply's header. `staleness_bound_us` None: the field is absent."""
    return common_pb2.ResponseHeader(
        cluster_id=service.cluster_id,
        node_id=service.node_id,
        revision=revision,
        applied_index=applied_index,
        term=service.term,
        staleness_bound_us=staleness_bound_us,
    )


def write_header(service: NodeService, *, index: int, revision: int) -> common_pb2.ResponseHeader:
    """Return the header of a write's reply.

    `index`: the write's log entry; a node that forwarded it may not have applied it yet.
    """
    return header(service, revision=revision, applied_index=max(index, service.applied_index))


def read_header(service: NodeService, reader: NodeReader) -> common_pb2.ResponseHeader:
    """Return the header of a read's reply; to be made after the data was read."""
    return header(
        service,
        revision=reader.revision,
        applied_index=reader.applied_index,
        staleness_bound_us=reader.staleness_bound_us,
    )


def session_id(session: common_pb2.SessionId) -> SessionId:
    """Return the machine's form of a session id."""
    return SessionId(session.index, session.nonce)


def session_message(session: SessionId) -> common_pb2.SessionId:
    """Return the wire's form of a session id."""
    return common_pb2.SessionId(index=session.index, nonce=session.nonce)


def fill_kv(message: common_pb2.KeyValue, kv: KeyValue) -> None:
    """Write a pair into an empty message."""
    # Filled in place, field by field, it takes a third of the time of one made of keywords and then copied.
    message.key = kv.key
    message.value = kv.value
    message.create_revision = kv.create_revision
    message.mod_revision = kv.mod_revision
    message.version = kv.version
    message.lease = kv.lease


def fill_kvs(messages: Pairs, kvs: Iterable[KeyValue]) -> None:
    """Append pairs to a repeated field."""
    for kv in kvs:
        fill_kv(messages.add(), kv)


def answer_message(answer: Answer) -> pipeline_pb2.Answer:
    """Return the wire's form of what became of one command."""
    message = pipeline_pb2.Answer(
        serial=answer.serial,
        revision=answer.revision,
        error=None if answer.fault is None else refusal_of_fault(answer.fault).error,
        deleted=answer.deleted,
    )
    fill_kvs(message.prev_kvs, answer.prev_kvs)
    if answer.txn is not None:
        fill_txn(message.txn, answer.txn)
    if answer.lease is not None:
        message.lease.id, message.lease.ttl_ms = answer.lease.id, answer.lease.ttl_ms
    return message


def pair_count(done: TxnDone) -> int:
    """Return how many pairs came of a transaction."""
    count = 0
    for each in done.responses:
        match each:
            case RangeDone(kvs) | DeleteDone(_, kvs):
                count += len(kvs)
            case PutDone(prev_kv):
                count += prev_kv is not None
    return count


def fill_txn(message: txn_pb2.TxnResult, done: TxnDone) -> None:
    """Write what came of a transaction into an empty message."""
    message.succeeded = done.succeeded
    for each in done.responses:
        _fill_operation(message.responses.add(), each)


def _fill_operation(message: txn_pb2.ResponseOp, done: OperationDone) -> None:
    match done:
        case RangeDone(kvs, more, count):
            message.range.more, message.range.count = more, count
            fill_kvs(message.range.kvs, kvs)
        case PutDone(prev_kv):
            message.put.SetInParent()
            if prev_kv is not None:
                fill_kv(message.put.prev_kv, prev_kv)
        case DeleteDone(deleted, kvs):
            message.delete.deleted = deleted
            fill_kvs(message.delete.prev_kvs, kvs)


def fill_lease(message: lease_pb2.LeaseStatus, lease: LeaseStatus) -> None:
    """Write a lease into an empty message."""
    message.id = lease.id
    message.ttl_ms = lease.ttl_ms
    message.remaining_ms = lease.remaining_ms
    message.key_count = lease.key_count


def watch_message(service: NodeService, news: WatchNews) -> watch_pb2.WatchResponse:
    """Return the wire's form of what the watches of a stream have to say."""
    message = watch_pb2.WatchResponse(
        header=header(service, revision=news.revision, applied_index=news.applied_index),
        progress=news.progress,
        canceled=[_canceled_message(end) for end in news.ended],
    )
    for watch_id, start_revision in news.created:
        message.created.add(watch_id=watch_id, start_revision=start_revision)
    for watch_ids, events in news.events:
        group = message.events.add(watch_ids=watch_ids)
        for event in events:
            _fill_event(group.events.add(), event)
    return message


def canceled_message(service: NodeService, watch_id: int, error: Exception) -> watch_pb2.WatchResponse:
    """Return what refuses a watch."""
    return watch_pb2.WatchResponse(
        header=header(service, revision=service.revision, applied_index=service.applied_index),
        canceled=[_canceled_message(WatchEnd(watch_id, error))],
    )


def _canceled_message(end: WatchEnd) -> watch_pb2.WatchCanceled:
    error = None if end.error is None else refusal_of_error(end.error, write=False).error
    return watch_pb2.WatchCanceled(
        watch_id=end.watch_id, error=error, compacted_revision=end.compacted_revision
    )


def _fill_event(message: watch_pb2.Event, event: WatchEvent) -> None:
    # Not kept for the next stream that wants the same event: to copy a message takes most of the time that it
    # takes to fill one.
    if event.is_delete:
        message.kind = watch_pb2.Event.KIND_DELETE
    fill_kv(message.kv, event.kv)
    if event.prev_kv is not None:
        fill_kv(message.prev_kv, event.prev_kv)


def member_message(member: Member) -> cluster_pb2.Member:
    """Return the wire's form of a member record."""
    return cluster_pb2.Member(
        id=member.id,
        incarnation=member.incarnation,
        name=member.name,
        peer_address=member.peer_address,
        client_address=member.client_address,
        learner=member.learner,
        promote=member.learner and member.promote,
    )


def times_message(times: ClusterTimes) -> cluster_pb2.ClusterTimes:
    """Return the wire's form of what all nodes of a cluster agree on."""
    return cluster_pb2.ClusterTimes(
        heartbeat_ms=times.heartbeat_ms,
        election_timeout_ms=times.election_timeout_ms,
        history_retention_s=times.history_retention_s,
    )


def progress_message(peer: PeerStatus) -> cluster_pb2.PeerProgress:
    """Return the wire's form of a leader's view of a member."""
    return cluster_pb2.PeerProgress(
        id=peer.id,
        match_index=peer.match_index,
        next_index=peer.next_index,
        state=peer.state,
        recently_active=peer.recently_active,
        lag_entries=peer.lag_entries,
        lag_ms=peer.lag_ms,
    )


def status_message(service: NodeService, status: NodeStatus) -> cluster_pb2.StatusResponse:
    """Return the wire's form of a node's status. Header and body are of the same moment."""
    head = header(service, revision=status.revision, applied_index=status.applied_index)
    head.term = status.term
    return cluster_pb2.StatusResponse(
        header=head,
        name=status.name,
        version=status.version,
        role=f"ROLE_{status.role.name}",
        leader_id=status.leader_id,
        commit_index=status.commit_index,
        last_log_index=status.last_log_index,
        first_log_index=status.first_log_index,
        durable_applied_index=status.durable_applied_index,
        digest=status.digest,
        machine_version=status.machine_version,
        log_bytes=status.log_bytes,
        state_bytes=status.state_bytes,
        sessions=status.sessions,
        members=[member_message(member) for member in status.members],
        progress=[progress_message(peer) for peer in status.progress],
        alarms=list(status.alarms),
        leader_silent_ms=status.leader_silent_ms,
        keys=status.keys,
        compacted_revision=status.compacted_revision,
        leases=status.leases,
        watches=status.watches,
        incarnation=status.incarnation,
        metrics_address=status.metrics_address,
        checkpoint_age_ms=status.checkpoint_age_ms,
        disk_free_bytes=status.disk_free_bytes,
        log_map_bytes=status.log_map_bytes,
        state_map_bytes=status.state_map_bytes,
        wall_clock_ms=status.wall_clock_ms,
        last_erase_index=status.last_erase_index,
        erased_index=status.erased_index,
        rebuild=status.rebuild,
        rebuild_done_bytes=status.rebuild_done_bytes,
        rebuild_total_bytes=status.rebuild_total_bytes,
        state_free_bytes=status.state_free_bytes,
        scrub_age_ms=status.scrub_age_ms,
        scrub_period_ms=status.scrub_period_ms,
    )
