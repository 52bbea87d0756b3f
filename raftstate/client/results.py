"""From messages of the wire to what calls return."""

from __future__ import annotations

from collections.abc import Iterable

from raftstate.client.types import (
    DeleteResult,
    KeyValue,
    LeaseStatus,
    MemberAdded,
    MemberList,
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


def member_statuses(members: Iterable[cluster_pb2.Member]) -> tuple[MemberStatus, ...]:
    """Return members as the cluster records them."""
    return tuple(map(_member_status, members))


def member_list(reply: cluster_pb2.MemberListResponse) -> MemberList:
    """Return the members of a cluster."""
    members, progress = member_statuses(reply.members), _progress(reply.progress)
    return MemberList(members, reply.leader_id, reply.commit_index, progress)


def member_added(reply: cluster_pb2.MemberAddResponse | cluster_pb2.MemberReplaceResponse) -> MemberAdded:
    """Return a member that is to be started empty."""
    times = reply.times
    return MemberAdded(
        member=_member_status(reply.member),
        members=member_statuses(reply.members),
        cluster_id=reply.header.cluster_id,
        heartbeat_ms=times.heartbeat_ms,
        election_timeout_ms=times.election_timeout_ms,
        history_retention_s=times.history_retention_s,
        already=isinstance(reply, cluster_pb2.MemberAddResponse) and reply.already,
    )


def _member_status(member: cluster_pb2.Member) -> MemberStatus:
    return MemberStatus(
        member.id,
        member.name,
        member.peer_address,
        member.client_address,
        member.incarnation,
        member.learner,
        member.promote,
    )


def _progress(peers: Iterable[cluster_pb2.PeerProgress]) -> tuple[PeerProgress, ...]:
    return tuple(
        PeerProgress(
            each.id,
            each.match_index,
            each.next_index,
            each.state,
            each.recently_active,
            each.lag_entries,
            each.lag_ms,
        )
        for each in peers
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
        members=member_statuses(reply.members),
        progress=_progress(reply.progress),
        alarms=tuple(reply.alarms),
        incarnation=reply.incarnation,
        metrics_address=reply.metrics_address,
        checkpoint_age_ms=reply.checkpoint_age_ms,
        disk_free_bytes=reply.disk_free_bytes,
        log_map_bytes=reply.log_map_bytes,
        state_map_bytes=reply.state_map_bytes,
        wall_clock_ms=reply.wall_clock_ms,
        last_erase_index=reply.last_erase_index,
        erased_index=reply.erased_index,
        state_free_bytes=reply.state_free_bytes,
        rebuild=reply.rebuild,
        rebuild_done_bytes=reply.rebuild_done_bytes,
        rebuild_total_bytes=reply.rebuild_total_bytes,
        scrub_age_ms=reply.scrub_age_ms,
        scrub_period_ms=reply.scrub_period_ms,
    )
