"""The Cluster service: what operators ask."""

from __future__ import annotations

from raftstate.machine.types import Member
from raftstate.node.member_changes import (
    AddMember,
    MemberRequest,
    MembersChanged,
    PromoteMember,
    RemoveMembers,
    ReplaceMember,
    check_request,
)
from raftstate.node.service import NodeService
from raftstate.pb.v1 import cluster_pb2, common_pb2
from raftstate.rpc.conversion import (
    header,
    member_message,
    progress_message,
    status_message,
    times_message,
    write_header,
)
from raftstate.rpc.status import RefusedError, refusal_of_fault


class ClusterHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def status(
        self, _request: cluster_pb2.StatusRequest, _timeout_s: float
    ) -> cluster_pb2.StatusResponse:
        """Return what this node knows; needs no leader."""
        return status_message(self._service, self._service.status())

    async def transfer_leader(
        self, request: cluster_pb2.TransferLeaderRequest, timeout_s: float
    ) -> cluster_pb2.TransferLeaderResponse:
        """Hand leadership to another voter, and return who leads then."""
        service = self._service
        leader_id = await service.transfer_leader(request.target_id, timeout_s=timeout_s)
        head = header(service, revision=service.revision, applied_index=service.applied_index)
        return cluster_pb2.TransferLeaderResponse(header=head, leader_id=leader_id)

    async def member_list(
        self, _request: cluster_pb2.MemberListRequest, timeout_s: float
    ) -> cluster_pb2.MemberListResponse:
        """Return the members, with every change that was acknowledged before."""
        service = self._service
        listed = await service.members(timeout_s=timeout_s)
        return cluster_pb2.MemberListResponse(
            header=header(service, revision=service.revision, applied_index=service.applied_index),
            members=map(member_message, listed.members),
            leader_id=listed.leader_id,
            commit_index=listed.commit_index,
            progress=map(progress_message, listed.progress),
            times=times_message(service.cluster_times()),
        )

    async def member_add(
        self, request: cluster_pb2.MemberAddRequest, timeout_s: float
    ) -> cluster_pb2.MemberAddResponse:
        """Add a node, and return how it is to start."""
        asked = AddMember(
            request.name, request.peer_address, request.client_address, promote=not request.learner
        )
        changed = await self._change(asked, timeout_s)
        return cluster_pb2.MemberAddResponse(
            header=self._header(changed),
            member=member_message(_only_one(changed)),
            members=map(member_message, changed.members),
            times=times_message(self._service.cluster_times()),
            already=changed.already,
        )

    async def member_promote(
        self, request: cluster_pb2.MemberPromoteRequest, timeout_s: float
    ) -> cluster_pb2.MemberPromoteResponse:
        """Give a learner a vote."""
        changed = await self._change(PromoteMember(request.name), timeout_s)
        return cluster_pb2.MemberPromoteResponse(
            header=self._header(changed), members=map(member_message, changed.members)
        )

    async def member_remove(
        self, request: cluster_pb2.MemberRemoveRequest, timeout_s: float
    ) -> cluster_pb2.MemberRemoveResponse:
        """Remove members, and return those who are left."""
        changed = await self._change(RemoveMembers(list(request.names)), timeout_s)
        return cluster_pb2.MemberRemoveResponse(
            header=self._header(changed), members=map(member_message, changed.members)
        )

    async def member_replace(
        self, request: cluster_pb2.MemberReplaceRequest, timeout_s: float
    ) -> cluster_pb2.MemberReplaceResponse:
        """Have a member begin anew, and return how it is to start."""
        asked = ReplaceMember(request.name, request.peer_address, request.client_address)
        changed = await self._change(asked, timeout_s)
        return cluster_pb2.MemberReplaceResponse(
            header=self._header(changed),
            member=member_message(_only_one(changed)),
            members=map(member_message, changed.members),
            times=times_message(self._service.cluster_times()),
        )

    async def defragment(
        self, _request: cluster_pb2.DefragmentRequest, _timeout_s: float
    ) -> cluster_pb2.DefragmentResponse:
        """Begin to rewrite the files of this node's state without free space."""
        service = self._service
        state_bytes = service.defragment()
        head = header(service, revision=service.revision, applied_index=service.applied_index)
        return cluster_pb2.DefragmentResponse(header=head, state_bytes=state_bytes)

    async def _change(self, request: MemberRequest, timeout_s: float) -> MembersChanged:
        fault = check_request(request)
        if fault is not None:
            raise RefusedError(refusal_of_fault(fault))
        return await self._service.change_members(request, timeout_s=timeout_s)

    def _header(self, changed: MembersChanged) -> common_pb2.ResponseHeader:
        return write_header(self._service, index=changed.index, revision=self._service.revision)


def _only_one(changed: MembersChanged) -> Member:
    """Return the member that a change was about."""
    (id,) = changed.ids
    return next(member for member in changed.members if member.id == id)
