"""The calls by which members come and go: a part of `AsyncClient`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from raftstate.client import cluster, limits
from raftstate.client.links import Links
from raftstate.client.methods import MEMBER_ADD, MEMBER_PROMOTE, MEMBER_REMOVE, MEMBER_REPLACE
from raftstate.client.results import member_added, member_statuses
from raftstate.client.types import MemberAdded, MemberList, MemberStatus
from raftstate.pb.v1 import cluster_pb2


class MemberCalls(ABC):
    """What a client asks of its cluster as to its members."""

    @abstractmethod
    def _connected(self) -> Links: ...

    @abstractmethod
    def _timeout_s(self, timeout: float | None) -> float: ...

    async def members(self, *, timeout: float | None = None) -> MemberList:
        """Return the members of the cluster, with every change that was acknowledged before the call.

        Args:
            timeout: in seconds; None: the client's.

        Returns:
            See `raftstate.client.MemberList`.

        Raises:
            RaftstateError: as `get`.
        """
        return await cluster.members(self._connected(), self._timeout_s(timeout))

    async def add_member(
        self,
        name: str,
        *,
        peer_address: str,
        client_address: str,
        learner: bool = False,
        timeout: float | None = None,
    ) -> MemberAdded:
        """Add a node to the cluster. It is to be started empty afterwards (`raftstate member add --out`
        writes its settings), receives what the cluster stores, and gets a vote as soon as it has caught up.

        Args:
            name: new in the cluster: 1 to 63 letters, digits, dots, dashes and underscores.
            peer_address: host:port at which the other nodes reach it.
            client_address: host:port at which clients reach it.
            learner: it is to stay without a vote, until `promote_member`.
            timeout: in seconds; None: the client's.

        Returns:
            The new member, and what its settings must say. Asked again, before the node was started, it
            returns the same.

        Raises:
            InvalidArgumentError: the name or an address is malformed.
            FailedPreconditionError: the name or an address is in use, another change is under way, or the
                member has been there and taken part; the message says which. Nothing was changed.
            ResourceExhaustedError: there are too many members: 7 may vote, and 7 may be learners.
            UnimplementedError: a node of the cluster runs older software.
            NoLeaderError: no leader took it in time; nothing was changed.
            IndefiniteError: it was sent, and its answer lost; `members` tells what became of it.
            ClosedError: the client is closed.
        """
        request = cluster_pb2.MemberAddRequest(
            name=limits.check_str(name, "name"),
            peer_address=limits.check_str(peer_address, "peer_address"),
            client_address=limits.check_str(client_address, "client_address"),
            learner=limits.check_flag(learner, "learner"),
        )
        links, timeout_s = self._connected(), self._timeout_s(timeout)
        return member_added(await cluster.change_members(links, MEMBER_ADD, request, timeout_s))

    async def promote_member(self, name: str, *, timeout: float | None = None) -> tuple[MemberStatus, ...]:
        """Give a learner a vote.

        Args:
            name: of the member.
            timeout: in seconds; None: the client's.

        Returns:
            All members.

        Raises:
            InvalidArgumentError: there is no such member.
            FailedPreconditionError: it is no learner, does not answer, or is too far behind; the message says
                how far.
            RaftstateError: else as `add_member`.
        """
        request = cluster_pb2.MemberPromoteRequest(name=limits.check_str(name, "name"))
        links, timeout_s = self._connected(), self._timeout_s(timeout)
        reply = await cluster.change_members(links, MEMBER_PROMOTE, request, timeout_s)
        return member_statuses(reply.members)

    async def remove_members(
        self, names: Iterable[str], *, timeout: float | None = None
    ) -> tuple[MemberStatus, ...]:
        """Remove members, for ever; several in one step. Their nodes stop by themselves.

        Args:
            names: of the members, each once; the leader may be among them.
            timeout: in seconds; None: the client's.

        Returns:
            The members that are left.

        Raises:
            InvalidArgumentError: there is no such member.
            FailedPreconditionError: no voter would be left, or so many of those that are left do not answer
                that the cluster would lose its quorum.
            RaftstateError: else as `add_member`.
        """
        if isinstance(names, str):
            names = (names,)
        request = cluster_pb2.MemberRemoveRequest(names=[limits.check_str(name, "names") for name in names])
        links, timeout_s = self._connected(), self._timeout_s(timeout)
        reply = await cluster.change_members(links, MEMBER_REMOVE, request, timeout_s)
        return member_statuses(reply.members)

    async def replace_member(
        self,
        name: str,
        *,
        peer_address: str | None = None,
        client_address: str | None = None,
        timeout: float | None = None,
    ) -> MemberAdded:
        """Have a member whose data are lost begin anew with empty ones, under its name.

        A node that lost its data must not come back as if it had them: what it acknowledged would be gone.
        With this the cluster stops counting on it; it is started empty, like one that was added, and votes
        again when it has caught up. What is left of its old directory can't take part any more.

        Args:
            name: of the member.
            peer_address: host:port at which the other nodes reach it from now on; None: as before.
            client_address: host:port at which clients reach it from now on; None: as before.
            timeout: in seconds; None: the client's.

        Returns:
            The member, under its next incarnation, and what its settings must say.

        Raises:
            InvalidArgumentError: there is no such member, or an address is malformed.
            FailedPreconditionError: the other voters that answer are no quorum, or it is the leader.
            RaftstateError: else as `add_member`.
        """
        request = cluster_pb2.MemberReplaceRequest(
            name=limits.check_str(name, "name"),
            peer_address="" if peer_address is None else limits.check_str(peer_address, "peer_address"),
            client_address=""
            if client_address is None
            else limits.check_str(client_address, "client_address"),
        )
        links, timeout_s = self._connected(), self._timeout_s(timeout)
        return member_added(await cluster.change_members(links, MEMBER_REPLACE, request, timeout_s))
