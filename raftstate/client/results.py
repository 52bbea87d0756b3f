"""From messages of the wire to what calls return."""

from __future__ import annotations

from collections.abc import Iterable

from raftstate.client.types import (
    DeleteResult,
    KeyValue,
    LeaseStatus,
    MemberStatus,
    NodeStatus,
    PeerProgress,
    PutResult,
    RangeResult,
)
from raftstate.pb.v1 import cluster_pb2, common_pb2, kv_pb2, lease_pb2, pipeline_pb2


def key_value(kv: common_pb2.KeyValue) -> KeyValue:
    """Return the pair."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def put_result(answer: pipeline_pb2.Answer) -> PutResult:
    """Return the result of a put."""
    return PutResult(answer.revision, key_value(answer.prev_kvs[0]) if answer.prev_kvs else None)


def delete_result(answer: pipeline_pb2.Answer) -> DeleteResult:
    """Return the result of a delete."""
    return DeleteResult(answer.revision, answer.deleted, tuple(map(key_value, answer.prev_kvs)))


def range_result(reply: kv_pb2.RangeResponse, *, by_key: bool = True) -> RangeResult:
    """Return the pairs of a range; `by_key`: their keys ascend."""
    kvs = tuple(map(key_value, reply.kvs))
    return RangeResult(kvs, reply.more, reply.count, reply.header.revision, by_key)


def lease_status(
    lease: lease_pb2.LeaseStatus | lease_pb2.LeaseTimeToLiveResponse, keys: Iterable[bytes] = ()
) -> LeaseStatus:
    """Return what a node knows of a lease."""
    return LeaseStatus(
        lease.id, lease.ttl_ms / 1_000, lease.remaining_ms / 1_000, lease.key_count, tuple(keys)
    )


def node_status(endpoint: str, reply: cluster_pb2.StatusResponse) -> NodeStatus:
    """Return what a node says of itself."""
    header = reply.header
    return NodeStatus(
        endpoint=endpoint,
        cluster_id=header.cluster_id,
        node_id=header.node_id,
        name=reply.name,
        version=reply.version,
        role=cluster_pb2.Role.Name(reply.role).removeprefix("ROLE_").lower(),
        term=header.term,
        leader_id=reply.leader_id,
        leader_silent_ms=reply.leader_silent_ms,
        revision=header.revision,
        keys=reply.keys,
        applied_index=header.applied_index,
        commit_index=reply.commit_index,
        durable_applied_index=reply.durable_applied_index,
        first_log_index=reply.first_log_index,
        last_log_index=reply.last_log_index,
        digest=reply.digest,
        machine_version=reply.machine_version,
        log_bytes=reply.log_bytes,
        state_bytes=reply.state_bytes,
        sessions=reply.sessions,
        compacted_revision=reply.compacted_revision,
        leases=reply.leases,
        watches=reply.watches,
        members=tuple(
            MemberStatus(
                each.id, each.name, each.peer_address, each.client_address, each.incarnation, each.learner
            )
            for each in reply.members
        ),
        progress=tuple(
            PeerProgress(each.id, each.match_index, each.next_index, each.state, each.recently_active)
            for each in reply.progress
        ),
        alarms=tuple(reply.alarms),
        last_erase_index=reply.last_erase_index,
        erased_index=reply.erased_index,
        state_free_bytes=reply.state_free_bytes,
        rebuild=reply.rebuild,
        rebuild_done_bytes=reply.rebuild_done_bytes,
        rebuild_total_bytes=reply.rebuild_total_bytes,
    )
