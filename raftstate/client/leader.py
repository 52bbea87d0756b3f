"""Which node leads.

Nodes are asked for their status, all at once. A node is taken for the leader when it says itself that it
leads, in a term no lower than any seen: a deposed leader that has not noticed yet is not believed twice. When
others name a leader they hear, but it can't be reached from here, one of them will do: every node forwards
writes. A tracker belongs to one event loop.

Nodes come and go, and those that the user named may all be gone some day. So the members' addresses are
learned from every status, and one is asked for now and then while the client is in use. The user's own stay,
whatever the members: they may be names that the nodes do not know, and a learned address may be one that
leads nowhere from here, so that one counts only when all else is silent, or once it has answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Iterable

from raftstate.client.faults import RpcFailure
from raftstate.client.methods import STATUS
from raftstate.client.transport import Transport
from raftstate.client.url import EMBEDDED
from raftstate.errors import NoLeaderError, RaftstateError, WrongClusterError
from raftstate.pb.v1 import cluster_pb2, common_pb2

_ASK_S_MIN = 0.5
_ASK_S_MAX = 4.0
"""For a node to tell its status. The time doubles while none answers: a far cluster is not a dead one."""

_SILENT_MS_MAX = 200
"""A leader that a follower has not heard for so long (ten heartbeats) is not worth forwarding to."""

REFRESH_S = 10.0
"""How old what is known of the members may be while replies come: one small request in so long a time, and a
cluster whose nodes are all replaced takes longer to catch up."""

BACKOFF_S_MIN = 0.01
"""Less than a heartbeat: most refusals are over as soon as the next leader is heard of."""
BACKOFF_S_MAX = 0.2
"""Half of the shortest election timeout: a new leader is found soon, and its nodes are not flooded before."""


def backoff_s(attempt: int) -> float:
    """Return how long to wait after an attempt, in seconds: doubling from 10 to 200 ms, half of it jitter."""
    full: float = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** min(attempt, 10))
    return full * (0.5 + random.random() / 2)


class LeaderTracker:
    """Knows the nodes, and the leader as far as it has been learned.

    endpoints: the addresses that the user gave.
    """

    def __init__(self, endpoints: tuple[str, ...], transport: Transport) -> None:
        self._given = endpoints
        self._learned: tuple[str, ...] = ()
        """Of members, beside those."""
        self._learned_index = 0
        self._reached: set[str] = set()
        """Learned addresses that have answered."""
        self._refresh_due = 0.0
        self._refresh: asyncio.Task[None] | None = None
        self.cluster_id = 0
        self.applied_index = 0
        """The highest that any reply told: a node which has applied as much shows nothing older."""
        self.leader: str | None = None
        self.term = 0
        self._transport = transport
        self._home = random.choice(endpoints)
        self._tried: dict[str, str] = {}
        self._round: asyncio.Task[str | None] | None = None
        self._ask_s = _ASK_S_MIN

    # ---- what is known

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The addresses of nodes: the user's, and those of members that have answered."""
        return (*self._given, *(address for address in self._learned if address in self._reached))

    @property
    def home(self) -> str:
        """The endpoint for reads that need no leader: any one, but the same one while it answers, so that
        what is read does not move back.
        """
        return self._home

    def observe(self, header: common_pb2.ResponseHeader) -> None:
        """Learn from a reply.

        Raises `WrongClusterError` when it comes from another cluster than earlier ones.
        """
        if header.cluster_id not in (0, self.cluster_id):
            self._learn_cluster(header)
        if header.applied_index > self.applied_index:
            self.applied_index = header.applied_index
        self._refresh_soon()
        if header.term > self.term:
            self.term = header.term
            self.leader = None

    def forget(self, address: str) -> None:
        """A node did not do what its leader or a reachable node would have done: look elsewhere next time."""
        if self.leader == address:
            self.leader = None
        self._reached.discard(address)
        if self._home == address:
            others = self.endpoints
            at = others.index(address) if address in others else -1
            self._home = others[(at + 1) % len(others)]

    def learn_members(self, members: Iterable[cluster_pb2.Member], header: common_pb2.ResponseHeader) -> None:
        """Learn from a reply where the members are, unless a later state told already."""
        if header.applied_index < self._learned_index or self._given[0].startswith(EMBEDDED):
            return
        addresses = dict.fromkeys(member.client_address for member in members if member.client_address)
        if addresses:
            self._learned_index = header.applied_index
            self._learned = tuple(address for address in addresses if address not in self._given)
            self._reached.intersection_update(self._learned)

    def note_failure(self, address: str, reason: str) -> None:
        """Remember why a node was of no use, for the message of an error."""
        self._tried[address] = reason

    def no_leader(self, waited_s: float, what: str) -> NoLeaderError:
        """Return the error for a request that found no leader; `what` says what did not happen, for example
        "nothing was sent".
        """
        tried = ", ".join(
            f"{address} ({self._tried.get(address, 'no answer yet')})"
            for address in dict.fromkeys((*self._given, *self._tried))
        )
        return NoLeaderError(f"no leader was found within {waited_s:g} s; {what}; tried {tried}")

    # ---- finding it

    async def locate(self) -> str | None:
        """Ask all nodes once and return the address to send writes to; None: no leader is known now.

        Callers share a round. Raises `WrongClusterError` when the nodes are not all of one cluster.
        """
        if self._round is None:
            self._round = asyncio.create_task(self._ask_all())
            self._round.add_done_callback(self._round_done)
        return await asyncio.shield(self._round)

    async def find(self, deadline: float, timeout_s: float) -> str:
        """Return the leader's address, asking until `deadline` (of the loop's clock).

        Raises `NoLeaderError` then.
        """
        loop = asyncio.get_running_loop()
        attempt = 0
        while self.leader is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    if await self.locate() is None:
                        await asyncio.sleep(backoff_s(attempt))
            attempt += 1
            if self.leader is None and loop.time() >= deadline:
                raise self.no_leader(timeout_s, "nothing was sent")
        return self.leader

    async def ask(self, address: str, timeout_s: float) -> cluster_pb2.StatusResponse:
        """Return the status of one node. Raises `RpcFailure`, `WrongClusterError`."""
        try:
            reply = await self._transport.unary(address, STATUS, cluster_pb2.StatusRequest(), timeout_s)
        except RpcFailure as failure:
            self.note_failure(address, failure.text)
            raise
        self.observe(reply.header)
        self._reached.add(address)
        self.learn_members(reply.members, reply.header)
        return reply

    async def close(self) -> None:
        """Wait for a round that is under way; a closed transport ends it."""
        self._refresh_due = math.inf
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.wait([self._refresh])
        if self._round is not None:
            await asyncio.wait([self._round])

    def _refresh_soon(self) -> None:
        """Ask a node for the members, if nobody was asked for long."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._refresh_due:
            return
        first, self._refresh_due = self._refresh_due == 0, loop.time() + REFRESH_S
        if not first and self._refresh is None:
            self._refresh = loop.create_task(self._ask_for_members(), name="raftstate-members")
            self._refresh.add_done_callback(self._refreshed)

    async def _ask_for_members(self) -> None:
        with contextlib.suppress(RpcFailure, RaftstateError):  # whoever has a request to make will be told
            await self.ask(self.leader or self._home, _ASK_S_MAX)

    def _refreshed(self, task: asyncio.Task[None]) -> None:
        self._refresh = None

    async def _ask_all(self) -> str | None:
        """One round: every endpoint, and the leader that they name, until one confirms itself or all have
        spoken.
        """
        asked = {*self._given, *self._learned}
        asking = {asyncio.create_task(self._claim(address)): address for address in sorted(asked)}
        named: list[tuple[int, str]] = []
        answered = False
        try:
            while asking:
                done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = asking.pop(task)
                    reply = task.result()
                    if reply is None:
                        continue
                    answered = True
                    if reply.role == cluster_pb2.ROLE_LEADER and reply.header.term >= self.term:
                        self.leader = address
                        return address
                    leader = _leader_address(reply)
                    if leader and reply.leader_silent_ms <= _SILENT_MS_MAX:
                        named.append((reply.header.term, address))
                    # The leader that it names, and those of whom this client has not heard before.
                    for other in {leader, *self._learned} - asked - {""}:
                        asked.add(other)
                        asking[asyncio.create_task(self._claim(other))] = other
        finally:
            for task in asking:
                task.cancel()
            self._ask_s = _ASK_S_MIN if answered else min(_ASK_S_MAX, self._ask_s * 2)
        forwarders = [address for term, address in named if term >= self.term]
        self.leader = forwarders[0] if forwarders else None
        return self.leader

    async def _claim(self, address: str) -> cluster_pb2.StatusResponse | None:
        try:
            reply = await self.ask(address, self._ask_s)
        except RpcFailure:
            return None
        leader = (
            f"follows {_leader_address(reply) or 'a leader without address'}"
            if reply.leader_id
            else "knows no leader"
        )
        self._tried[address] = f"{leader}, term {reply.header.term}"
        return reply

    def _round_done(self, task: asyncio.Task[str | None]) -> None:
        self._round = None
        if not task.cancelled():
            # Retrieved here, since every caller may have been cancelled meanwhile.
            task.exception()

    def _learn_cluster(self, header: common_pb2.ResponseHeader) -> None:
        if self.cluster_id == 0:
            self.cluster_id = header.cluster_id
            return
        raise WrongClusterError(
            f"a node (id {header.node_id}) of cluster {header.cluster_id:016x} answered, and this client is"
            f" of cluster {self.cluster_id:016x}; check the addresses {', '.join(self._given)}"
        )


def _leader_address(reply: cluster_pb2.StatusResponse) -> str:
    """Return the client address of the leader that a node names, or nothing."""
    for member in reply.members:
        if member.id == reply.leader_id:
            return str(member.client_address)
    return ""
