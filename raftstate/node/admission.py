"""Who is let in, what is taken from whom, and whether this node itself still has a place.

A connection is of one incarnation of a node, and what an incarnation promised (votes, acknowledgements) is
gone with its data. So those that were removed or replaced are turned away; what is already under way from
them is dropped; and nothing that is counted is taken from an incarnation before this node has heard that it
is a member.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from raftstate.core.membership import conf_change_as_v2
from raftstate.core.types import ConfChange, ConfChangeV2, Message, MessageType
from raftstate.errors import FailedPreconditionError
from raftstate.machine.types import Member, MemberChange
from raftstate.node.applied import AppliedState
from raftstate.node.driver import Driver
from raftstate.node.environment import PeerBody, ReplaceRequest
from raftstate.node.frames import Hello, Reason, Welcome

_decode_change = msgspec.msgpack.Decoder(MemberChange).decode
_COUNTED = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.VOTE_RESP,
        MessageType.PRE_VOTE_RESP,
    }
)
"""Answers that are a member's promise."""
_ASK_FOR_VOTES = frozenset({MessageType.VOTE, MessageType.PRE_VOTE, MessageType.TIMEOUT_NOW})


class Place(NamedTuple):
    """Who this node is, by its settings."""

    cluster_id: int
    node_id: int
    incarnation: int
    name: str
    peer_address: str
    client_address: str
    alone: bool = False
    """Whether no other node can reach it: it runs within a program."""


class Admission:
    """What this node knows of who is who.

    `leave`: called with the reason when a peer says that this node's time is over.

    Raises FailedPreconditionError when the state says that this node is no member any more.
    """

    def __init__(self, driver: Driver, place: Place, leave: Callable[[str], None]) -> None:
        self._driver = driver
        self._place = place
        self._leave = leave
        self._incarnations = {member.id: member.incarnation for member in driver.applied.members}
        """By all that is committed, applied or not."""
        gone = self.why_gone()
        if gone:
            raise FailedPreconditionError(gone)
        self._note_whether_joined()

    # -- what becomes known

    def went_over(self, change: ConfChange | ConfChangeV2) -> list[int]:
        """Learn from a committed change; return the ids of those that begin anew by it."""
        renewed = []
        for record in records_of(change):
            if record.incarnation > self._incarnations.get(record.id, record.incarnation):
                renewed.append(record.id)
            self._incarnations[record.id] = record.incarnation
        return renewed

    def applied(self, applied: AppliedState) -> None:
        """Learn from what is applied now: changes, or a snapshot in their stead."""
        for member in applied.members:
            # The core may be ahead of what is applied, and `went_over` with it.
            self._incarnations[member.id] = max(member.incarnation, self._incarnations.get(member.id, 0))
        for id in self._incarnations.keys() - {member.id for member in applied.members}:
            if id not in self._driver.raw.raft.tracker.progress:
                del self._incarnations[id]
        self._note_whether_joined()

    # -- whom to believe

    def admit(self, hello: Hello) -> Welcome:
        """Return the answer to a Hello, but for what this node's code knows; its `refusal` is empty if the
        caller is let in.

        Members that this node has not heard of yet are let in: it may be this node that is behind, and all
        that it knows may have left meanwhile. `takes` says what is taken from them.
        """
        place = self._place
        if hello.cluster_id != place.cluster_id:
            return Welcome(
                f"this node is of cluster {place.cluster_id:#x}, the caller of {hello.cluster_id:#x}",
                reason=Reason.WRONG_CLUSTER,
            )
        if hello.to_id != place.node_id:
            return Welcome(
                f"this is node {place.node_id}, the caller means node {hello.to_id}", reason=Reason.NOT_ME
            )
        if hello.from_id == place.node_id:
            return Welcome(f"node {hello.from_id} is this node itself")
        known = self._incarnations.get(hello.from_id, 0)
        if self._was_removed(hello.from_id):
            return Welcome(f"node {hello.from_id} was removed from the cluster", reason=Reason.REMOVED)
        if hello.from_incarnation < known and not hello.wiped:
            return Welcome(
                f"node {hello.from_id} was replaced: it has incarnation {known} now, the caller "
                f"{hello.from_incarnation}",
                reason=Reason.REPLACED,
                incarnation=known,
            )
        return Welcome(incarnation=known)

    def takes(self, peer: int, incarnation: int, body: PeerBody) -> bool:
        """Return whether what a peer sent under an incarnation may be given to the driver.

        From an incarnation that was replaced meanwhile, or a node that was removed: nothing. From one that
        this node has not heard of yet: nothing that is counted, since it would be counted as its
        predecessor's promise. And a node that has not its own record yet does not vote: it may have voted
        before, as the incarnation that it replaces.
        """
        known = self._incarnations.get(peer, 0)
        if self._was_removed(peer):
            return False
        if incarnation < known:
            return type(body) is ReplaceRequest  # it may not have heard that it was replaced
        if type(body) is not Message:
            return True
        if incarnation != known and body.type in _COUNTED:
            return False
        return body.type not in _ASK_FOR_VOTES or self.joined

    def refused(self, peer: int, welcome: Welcome) -> None:
        """A peer has turned this node away. If it says that this node's time is over, it is: it has applied
        that, and nobody becomes a member twice."""
        who = f"node {peer}, which has applied that, turned it away"
        if welcome.reason == Reason.REMOVED:
            self._leave(f"{_removed(self._place)} ({who})")
        elif welcome.reason == Reason.REPLACED:
            self._leave(f"{_replaced(self._place, welcome.incarnation)} ({who})")

    def _was_removed(self, id: int) -> bool:
        applied = self._driver.applied
        return bool(applied.members) and id <= applied.last_member_id and id not in self._incarnations

    # -- the own place

    @property
    def joined(self) -> bool:
        """Whether this node has applied that it is a member, in this incarnation."""
        record = self._driver.applied.member(self._place.node_id)
        return record is not None and record.incarnation == self._place.incarnation

    def _note_whether_joined(self) -> None:
        fitness = self._driver.fitness
        if self.joined:
            fitness.lift("joining")
        elif not self.why_gone():
            fitness.limit(
                "joining",
                f"{self._place.name} is new to the cluster, and waits to be sent what it stores",
                may_lead=False,
            )

    def why_gone(self) -> str:
        """Return why this node has no place any more, by what is applied; empty: it has one, or may get
        it."""
        place = self._place
        applied = self._driver.applied
        record = applied.member(place.node_id)
        if record is None:
            return _removed(place) if applied.members and place.node_id <= applied.last_member_id else ""
        return _replaced(place, record.incarnation) if record.incarnation > place.incarnation else ""


def records_of(change: ConfChange | ConfChangeV2) -> list[Member]:
    """Return the records that a change brings with it."""
    context = conf_change_as_v2(change).context
    try:
        return _decode_change(context).records if context else []
    except msgspec.DecodeError:
        return []  # the machine passes over such bytes, too


def _removed(place: Place) -> str:
    return (
        f"{place.name} (node {place.node_id}) was removed from the cluster: it does not take part any more, "
        "and its directory may be deleted. To have a node here again, add one under a new directory "
        "(`raftstate member add`)"
    )


def _replaced(place: Place, incarnation: int) -> str:
    return (
        f"{place.name} (node {place.node_id}) was replaced: this directory is of incarnation "
        f"{place.incarnation}, the cluster goes on with incarnation {incarnation}. Start the directory that "
        "`raftstate member replace` has made; this one may be deleted"
    )
