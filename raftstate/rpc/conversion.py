"""Between the wire's messages and the machine's and the node's types. Nothing here decides anything."""

from __future__ import annotations

from collections.abc import Iterable

from raftstate.machine.types import Answer, KeyValue, Member, SessionId
from raftstate.node.service import NodeService, NodeStatus, PeerStatus
from raftstate.pb.v1 import cluster_pb2, common_pb2, pipeline_pb2
from raftstate.rpc.status import refusal_of_fault


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


def session_id(session: common_pb2.SessionId) -> SessionId:
    """Return the machine's form of a session id."""
    return SessionId(session.index, session.nonce)


def session_message(session: SessionId) -> common_pb2.SessionId:
    """Return the wire's form of a session id."""
    return common_pb2.SessionId(index=session.index, nonce=session.nonce)


def kv_message(kv: KeyValue) -> common_pb2.KeyValue:
    """Return the wire's form of a pair."""
    return common_pb2.KeyValue(
        key=kv.key,
        value=kv.value,
        create_revision=kv.create_revision,
        mod_revision=kv.mod_revision,
        version=kv.version,
        lease=kv.lease,
    )


def kv_messages(kvs: Iterable[KeyValue]) -> list[common_pb2.KeyValue]:
    """Return the wire's form of many pairs."""
    return [kv_message(kv) for kv in kvs]


def answer_message(answer: Answer) -> pipeline_pb2.Answer:
    """Return the wire's form of what became of one command."""
    return pipeline_pb2.Answer(
        serial=answer.serial,
        revision=answer.revision,
        error=None if answer.fault is None else refusal_of_fault(answer.fault).error,
        deleted=answer.deleted,
        prev_kvs=kv_messages(answer.prev_kvs),
    )


def member_message(member: Member) -> cluster_pb2.Member:
    """Return the wire's form of a member record."""
    return cluster_pb2.Member(
        id=member.id,
        incarnation=member.incarnation,
        name=member.name,
        peer_address=member.peer_address,
        client_address=member.client_address,
        learner=member.learner,
    )


def progress_message(peer: PeerStatus) -> cluster_pb2.PeerProgress:
    """Return the wire's form of a leader's view of a member."""
    return cluster_pb2.PeerProgress(
        id=peer.id,
        match_index=peer.match_index,
        next_index=peer.next_index,
        state=peer.state,
        recently_active=peer.recently_active,
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
    )
