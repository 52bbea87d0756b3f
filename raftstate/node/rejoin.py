"""A node that has lost its log is replaced by an empty one of the same id, under a new incarnation.

Without its log a node does not know what it voted for and acknowledged, so it must not take part any more:
its incarnation has come to its end. What it still has is its identity, and the lock of its directory, so no
other process can be it. With these it asks its peers, before any core runs:

    wiped node                                   leader
    dials its peers (Hello: wiped)
    ReplaceRequest(its incarnation)  ──────────> proposes a record with the next incarnation, as a learner
                                                 committed by the others, applied
                      <──────────────────────────  ReplaceReply(the next incarnation)
    makes its data anew, joins

Every answer is a fresh incarnation: one that was committed, and whose answer was lost, has nobody. So a node
that asks again under an incarnation that was replaced meanwhile is given another one, unless somebody has
been heard of under the present one: then an operator has put another node in its place.

May live here: asking, and answering. What the membership makes of it is the leader's affair; how the data
directory changes stands in `store.replacement`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from raftstate.core.roles import Role
from raftstate.errors import FailedPreconditionError
from raftstate.logs import get_logger
from raftstate.machine.types import MEMBERSHIP_SINCE, Member
from raftstate.node.driver import Driver
from raftstate.node.environment import Network, PeerBody, ReplaceReply, ReplaceRequest
from raftstate.node.frames import Hello, Reason, Welcome
from raftstate.node.links import LinkEvents, LocalPeer, PeerLinks

log = get_logger(__name__)

ASK_S = 0.5
"""Between two questions: an election timeout must have passed before the leader takes a node for silent."""

Replaced = Callable[[Member | str], None]
"""Told the new record once it is applied, or why there is none."""


class WipedPeers:
    """The leader's side. Belongs to the driver's thread.

    Args:
        driver: of this node. This registers what a wiped peer asks with it.
        network: to the peers.
        replace: proposes the next incarnation for a member, given its present record, and calls back once.
            Only called while this node leads, and once at a time for a member.
    """

    def __init__(self, driver: Driver, network: Network, replace: Callable[[Member, Replaced], None]) -> None:
        self._driver = driver
        self._network = network
        self._replace = replace
        self._under_way: set[int] = set()
        driver.on(ReplaceRequest, self._asked)
        driver.on(
            ReplaceReply, lambda _sender, _reply: None
        )  # late: it was answered already, and has started

    def _asked(self, sender: int, request: ReplaceRequest) -> None:
        if sender in self._under_way:
            return
        record = self._driver.applied.member(sender)
        refusal = self._refusal(sender, request, record)
        if refusal or record is None:
            self._network.send(sender, ReplaceReply(0, refusal))
            return
        log.warning("a node that lost its log is replaced", peer=sender, incarnation=record.incarnation)
        self._under_way.add(sender)

        def replaced(outcome: Member | str) -> None:
            self._under_way.discard(sender)
            if isinstance(outcome, str):
                self._network.send(sender, ReplaceReply(0, outcome))
            else:
                self._network.send(sender, ReplaceReply(outcome.incarnation))

        self._replace(record, replaced)

    def _refusal(self, sender: int, request: ReplaceRequest, record: Member | None) -> str:
        raft = self._driver.raw.raft
        if raft.state is not Role.LEADER:
            return f"node {raft.id} does not lead; {self._driver.describe_leader()}"
        if record is None:
            return f"node {sender} is no member of the cluster (any more)"
        progress = raft.tracker.progress.get(sender)
        if progress is None or request.incarnation > record.incarnation:
            return f"node {raft.id} has not applied yet what made node {sender} what it is; ask again"
        if request.incarnation < record.incarnation and (progress.match or progress.recent_active):
            return (
                f"node {sender} was replaced, and runs under incarnation {record.incarnation}; this "
                f"directory is of incarnation {request.incarnation}, and may be deleted"
            )
        return ""


async def ask_for_replacement(
    local: LocalPeer, addresses: Mapping[int, Sequence[str]], listen: tuple[str, int], seed: int
) -> int:
    """Ask the peers until the leader has given a new incarnation, and return it.

    Args:
        local: who this node is; `wiped`.
        addresses: of the peers: node id -> host:ports to try in turn.
        listen: host and port on which the peers reach this node: the answer comes on a connection of theirs.
        seed: for the pauses between dials.

    Raises:
        ConfigError: the port can't be listened on.
        FailedPreconditionError: there is nobody to ask, or this node was removed from the cluster.
    """
    if not addresses.keys() - {local.node_id}:
        raise FailedPreconditionError(f"node {local.node_id} has no peers that could replace it")
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    able: set[int] = set()
    refusals: dict[int, str] = {}

    def take(sender: int, body: PeerBody) -> None:
        if not isinstance(body, ReplaceReply):
            return  # for a node that takes part
        if body.incarnation > local.incarnation and not answer.done():
            answer.set_result(body.incarnation)
        elif refusals.get(sender) != body.refusal:
            refusals[sender] = body.refusal
            log.warning("not replaced yet", peer=sender, reason=body.refusal)

    def met(peer: int, version: int) -> None:
        if version >= MEMBERSHIP_SINCE:
            able.add(peer)

    def admit(hello: Hello) -> Welcome:
        if hello.cluster_id != local.cluster_id or hello.to_id != local.node_id:
            return Welcome(f"this is node {local.node_id} of cluster {local.cluster_id:#x}")
        return Welcome()

    def refused(_peer: int, welcome: Welcome) -> None:
        if welcome.reason == Reason.REMOVED and not answer.done():
            answer.set_exception(FailedPreconditionError(f"{welcome.refusal}; its directory may be deleted"))

    events = LinkEvents(
        body=take,
        turn=lambda: None,
        met=met,
        lost=able.discard,
        refused=refused,
        admit=admit,
        takes=lambda _peer, _incarnation, _body: True,
    )
    links = PeerLinks(local, addresses, events, seed)
    await links.start(*listen)
    try:
        while not answer.done():
            for peer in sorted(able):
                links.send(peer, ReplaceRequest(local.incarnation))
            await asyncio.wait([answer], timeout=ASK_S)
    finally:
        await links.close()
    return answer.result()
