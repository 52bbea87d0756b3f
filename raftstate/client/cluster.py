"""What is asked of nodes as such: their status, who of them should lead, who belongs to the cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Literal, TypeVar

from raftstate.client import limits
from raftstate.client.faults import RpcFailure
from raftstate.client.leader import BACKOFF_S_MAX, LeaderTracker
from raftstate.client.links import Links
from raftstate.client.methods import DEFRAGMENT, MEMBER_LIST, TRANSFER_LEADER
from raftstate.client.results import member_list, node_status
from raftstate.client.transport import Method, Request, Response
from raftstate.client.types import MemberErase, MemberList, NodeStatus
from raftstate.errors import InvalidArgumentError, NoLeaderError
from raftstate.pb.v1 import cluster_pb2

ChangeReply = TypeVar(
    "ChangeReply",
    cluster_pb2.MemberAddResponse,
    cluster_pb2.MemberPromoteResponse,
    cluster_pb2.MemberRemoveResponse,
    cluster_pb2.MemberReplaceResponse,
)

STATUS_S_MAX = 2.0
"""Whoever waits for the list can't tell a node that takes longer from a dead one anyway."""


async def statuses(
    tracker: LeaderTracker, endpoints: tuple[str, ...], timeout_s: float, *, with_others: bool
) -> list[NodeStatus]:
    """Return the status of nodes; `with_others`: and of those that they name.

    Raises `WrongClusterError`, and `NoLeaderError` when none answers.
    """
    found = await _ask_all(tracker, endpoints, timeout_s)
    if with_others:
        answered = {node.node_id for node in found}
        others = {
            member.client_address
            for node in found
            for member in node.members
            if member.client_address and member.id not in answered
        }
        found += await _ask_all(tracker, sorted(others.difference(endpoints)), timeout_s)
    if all(node.error for node in found):
        raise _nobody_answered(found, min(timeout_s, STATUS_S_MAX))
    return found


async def transfer_leader(links: Links, target: int | str | None, timeout_s: float) -> int:
    """Have the leader hand over to a member given by id or name; return the id of the node that leads then.

    Raises as `AsyncClient.transfer_leader` says.
    """
    tracker = links.tracker
    deadline = links.loop.time() + timeout_s
    address = await tracker.find(deadline, timeout_s)
    request = cluster_pb2.TransferLeaderRequest()
    try:
        if target is not None:
            request.target_id = await _member_id(tracker, address, target, deadline - links.loop.time())
        reply = await links.transport.unary(address, TRANSFER_LEADER, request, deadline - links.loop.time())
    except RpcFailure as failure:
        tracker.forget(address)
        raise failure.as_error(write=True) from failure
    tracker.observe(reply.header)
    return reply.leader_id


async def members(links: Links, timeout_s: float) -> MemberList:
    """Return the members, as the leader knows them. Raises as `AsyncClient.members` says."""
    deadline = links.loop.time() + timeout_s
    while True:
        try:
            reply = await _ask_leader(
                links, MEMBER_LIST, cluster_pb2.MemberListRequest(), deadline, timeout_s
            )
        except RpcFailure as failure:
            # Nothing is changed by it, so it is asked again as long as there is time.
            if links.loop.time() + BACKOFF_S_MAX >= deadline:
                raise failure.as_error(write=False) from failure
            await asyncio.sleep(BACKOFF_S_MAX)
            continue
        links.tracker.observe(reply.header)
        links.tracker.learn_members(reply.members, reply.header)
        return member_list(reply)


async def change_members(
    links: Links, method: Method[Request, ChangeReply], request: Request, timeout_s: float
) -> ChangeReply:
    """Have the membership changed. It is sent once: whoever got no answer looks at the members first.

    Raises as `AsyncClient.add_member` says.
    """
    deadline = links.loop.time() + timeout_s
    try:
        reply = await _ask_leader(links, method, request, deadline, timeout_s)
    except RpcFailure as failure:
        raise failure.as_error(write=True) from failure
    links.tracker.observe(reply.header)
    links.tracker.learn_members(reply.members, reply.header)
    return reply


async def _ask_leader(
    links: Links, method: Method[Request, Response], request: Request, deadline: float, timeout_s: float
) -> Response:
    """Call a method of the leader, once one is found. Raises `RpcFailure`, `NoLeaderError`."""
    tracker = links.tracker
    address = await tracker.find(deadline, timeout_s)
    try:
        return await links.transport.unary(address, method, request, deadline - links.loop.time())
    except RpcFailure:
        tracker.forget(address)
        raise


def erase_progress(nodes: Iterable[NodeStatus], index: int) -> list[MemberErase]:
    """Return how far each member is with what was erased up to log index `index`, by what nodes answered."""
    answered = {node.node_id: node for node in nodes if not node.error}
    newest = max(answered.values(), key=lambda node: node.applied_index)
    return [
        MemberErase(
            member.id, member.name, member.client_address, _erase_state(answered.get(member.id), index)
        )
        for member in newest.members
    ]


def _erase_state(node: NodeStatus | None, index: int) -> Literal["done", "pending", "unreachable"]:
    if node is None:
        return "unreachable"
    # An index may be that of a later entry than the erase: then all that there was before it must be done.
    done = node.erased_index >= min(index, node.last_erase_index)
    return "done" if done and node.applied_index >= index else "pending"


async def defragment(links: Links, endpoints: tuple[str, ...], target: int | str, timeout_s: float) -> int:
    """Have a member, given by id or name, rewrite its files; return the size of its state as it begins.

    Raises as `AsyncClient.defragment` says.
    """
    tracker = links.tracker
    deadline = links.loop.time() + timeout_s
    nodes = await statuses(tracker, endpoints, timeout_s, with_others=True)
    found = next((node for node in nodes if not node.error and target in (node.node_id, node.name)), None)
    if found is None:
        members = {member.id: member.name for node in nodes for member in node.members}
        if target in members or target in members.values():
            raise NoLeaderError(f"member {target!r} did not answer; nothing was begun")
        known = ", ".join(f"{name} ({id})" for id, name in members.items())
        raise InvalidArgumentError(f"no member is {target!r}; members are {known}", field="target")
    left_s = max(0.001, deadline - links.loop.time())
    try:
        reply = await links.transport.unary(
            found.endpoint, DEFRAGMENT, cluster_pb2.DefragmentRequest(), left_s
        )
    except RpcFailure as failure:
        raise failure.as_error(write=True) from failure
    tracker.observe(reply.header)
    return int(reply.state_bytes)


async def _ask_all(tracker: LeaderTracker, endpoints: Iterable[str], timeout_s: float) -> list[NodeStatus]:
    """Ask nodes for their status, all at once. Raises `WrongClusterError`."""

    async def ask(endpoint: str) -> NodeStatus:
        try:
            return node_status(endpoint, await tracker.ask(endpoint, min(timeout_s, STATUS_S_MAX)))
        except RpcFailure as failure:
            return NodeStatus(endpoint=endpoint, error=failure.text)

    return list(await asyncio.gather(*map(ask, endpoints)))


def _nobody_answered(nodes: list[NodeStatus], waited_s: float) -> NoLeaderError:
    who = "the node" if len(nodes) == 1 else "no node"
    did = "did not answer" if len(nodes) == 1 else "answered"
    tried = ", ".join(f"{node.endpoint} ({node.error})" for node in nodes)
    return NoLeaderError(
        f"{who} {did} within {waited_s:g} s; tried {tried}. Check what runs there, and that these are client"
        " ports"
    )


async def _member_id(tracker: LeaderTracker, address: str, target: int | str, timeout_s: float) -> int:
    """Return the id of a member given by id or name. Raises `InvalidArgumentError`, `RpcFailure`."""
    if isinstance(target, int):
        return limits.check_count(target, "target", 1, limits.COUNT_MAX)
    status = await tracker.ask(address, timeout_s)
    for member in status.members:
        if member.name == target:
            return int(member.id)
    names = ", ".join(member.name for member in status.members)
    raise InvalidArgumentError(f"no member is named {target!r}; members are {names}", field="target")
