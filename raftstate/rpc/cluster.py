"""The Cluster service: what operators ask."""

from __future__ import annotations

from raftstate.node.service import NodeService
from raftstate.pb.v1 import cluster_pb2
from raftstate.rpc.conversion import header, status_message


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

    async def defragment(
        self, _request: cluster_pb2.DefragmentRequest, _timeout_s: float
    ) -> cluster_pb2.DefragmentResponse:
        """Begin to rewrite the files of this node's state without free space."""
        service = self._service
        state_bytes = service.defragment()
        head = header(service, revision=service.revision, applied_index=service.applied_index)
        return cluster_pb2.DefragmentResponse(header=head, state_bytes=state_bytes)
