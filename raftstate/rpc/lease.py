"""The Lease service: grants, revokes and renewals are commands like puts; what is left of a lease is a
read."""

from __future__ import annotations

from raftstate.errors import InvalidArgumentError, LeaseNotFoundError
from raftstate.machine.types import LeaseDone
from raftstate.node.service import STALENESS_MS_DEFAULT, NodeService
from raftstate.pb.v1 import common_pb2, kv_pb2, lease_pb2, pipeline_pb2
from raftstate.rpc.conversion import fill_lease, read_header, write_header
from raftstate.rpc.validation import check_consistency
from raftstate.rpc.writing import apply_command, outcome

KEYS_BYTES_MAX = 3 << 20
"""What the keys in one TimeToLive reply take at most, so that it passes a client's 4 MiB default."""
LEASES_PAGE_MAX = 10_000
"""What one List reply holds at most: some milliseconds of the loop, and half a MiB."""


class LeaseHandlers:
    """Answers for one node."""

    def __init__(self, service: NodeService) -> None:
        self._service = service

    async def grant(
        self, request: lease_pb2.LeaseGrantRequest, timeout_s: float
    ) -> lease_pb2.LeaseGrantResponse:
        """Make a lease."""
        command = pipeline_pb2.Command(
            lease_grant=pipeline_pb2.LeaseGrantCommand(id=request.id, ttl_ms=request.ttl_ms)
        )
        head, lease = await self._write(command, request.context, timeout_s)
        return lease_pb2.LeaseGrantResponse(header=head, id=lease.id, ttl_ms=lease.ttl_ms)

    async def renew(
        self, request: lease_pb2.LeaseRenewRequest, timeout_s: float
    ) -> lease_pb2.LeaseRenewResponse:
        """Have a lease live for its whole time from now on."""
        command = pipeline_pb2.Command(lease_renew=pipeline_pb2.LeaseRenewCommand(id=request.id))
        head, lease = await self._write(command, request.context, timeout_s)
        return lease_pb2.LeaseRenewResponse(header=head, id=lease.id, ttl_ms=lease.ttl_ms)

    async def revoke(
        self, request: lease_pb2.LeaseRevokeRequest, timeout_s: float
    ) -> lease_pb2.LeaseRevokeResponse:
        """End a lease, with its keys."""
        command = pipeline_pb2.Command(lease_revoke=pipeline_pb2.LeaseRevokeCommand(id=request.id))
        index, answer = await apply_command(self._service, command, request.context, timeout_s)
        head = write_header(self._service, index=index, revision=answer.revision)
        return lease_pb2.LeaseRevokeResponse(header=head, deleted=answer.deleted)

    async def time_to_live(
        self, request: lease_pb2.LeaseTimeToLiveRequest, timeout_s: float
    ) -> lease_pb2.LeaseTimeToLiveResponse:
        """Return what is left of a lease, and its keys if they are wanted."""
        consistency = check_consistency(request.consistency)
        if request.id == 0:
            raise InvalidArgumentError("id must be that of a lease, 1 or more, got 0", field="id")
        async with self._service.reader(
            consistency,
            max_staleness_ms=request.max_staleness_ms or STALENESS_MS_DEFAULT,
            timeout_s=timeout_s,
        ) as reader:
            found = await reader.lease(request.id, keys_bytes_max=KEYS_BYTES_MAX if request.keys else 0)
            head = read_header(self._service, reader)
        if found is None:
            raise LeaseNotFoundError(
                f"there is no lease {request.id}: it was never granted, was revoked, or has expired",
                field="id",
            )
        lease, keys = found
        return lease_pb2.LeaseTimeToLiveResponse(
            header=head,
            id=lease.id,
            ttl_ms=lease.ttl_ms,
            remaining_ms=lease.remaining_ms,
            key_count=lease.key_count,
            keys=keys,
        )

    async def list(
        self, request: lease_pb2.LeaseListRequest, timeout_s: float
    ) -> lease_pb2.LeaseListResponse:
        """Return leases in order of id."""
        consistency = check_consistency(request.consistency)
        async with self._service.reader(
            consistency,
            max_staleness_ms=request.max_staleness_ms or STALENESS_MS_DEFAULT,
            timeout_s=timeout_s,
        ) as reader:
            limit = min(request.limit or LEASES_PAGE_MAX, LEASES_PAGE_MAX)
            leases, more = await reader.leases(above=request.above, limit=limit)
            head = read_header(self._service, reader)
        response = lease_pb2.LeaseListResponse(header=head, more=more)
        for lease in leases:
            fill_lease(response.leases.add(), lease)
        return response

    async def _write(
        self, command: pipeline_pb2.Command, context: kv_pb2.WriteContext, timeout_s: float
    ) -> tuple[common_pb2.ResponseHeader, LeaseDone]:
        """Have a grant or a renewal applied; return the header of its reply, and the lease."""
        index, answer = await apply_command(self._service, command, context, timeout_s)
        return write_header(self._service, index=index, revision=answer.revision), outcome(answer.lease)
