"""What may become of the membership: a request and what the leader knows in, a change or a refusal out.

    add      a learner under a new id, to be promoted by the leader once it has caught up, if that is wanted
    promote  a learner gets a vote
    remove   one or several members go; several in one joint change, which the leader leaves by itself
    replace  a member goes on as an empty node of the same id and the next incarnation: a voter is made a
             learner first, since nothing of what it promised is there any more, and promoted when it has
             caught up
    update   other addresses of a member

Pure functions, no clock: who is healthy and how far each log reaches stands in `View`. A refusal is a `Fault`
whose message says what would happen, and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from raftstate.address import NAME_FORM, NAME_PATTERN, split_address
from raftstate.core.membership import ConfChangeError, next_conf_state
from raftstate.core.types import ConfChangeSingle, ConfChangeType, ConfChangeV2, ConfState
from raftstate.errors import ConfigError
from raftstate.machine.types import MEMBERSHIP_SINCE, Code, Fault, Member, MemberChange, Uint

VOTERS_MAX = 7
"""Each further voter costs every write another copy; etcd's documentation draws the same line."""
LEARNERS_MAX = 7
"""As many as voters: enough to take a whole cluster to other machines at once."""
PROMOTE_LAG_MAX = 1_000
"""Entries that a learner may be behind the commit index and count as caught up: a second or so of a busy
cluster, much less than an operator's patience, and not so little that a steady load keeps it out."""

_encode = msgspec.msgpack.Encoder().encode


class AddMember(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """A node that is to join, under a new id. `promote`: to be given a vote once it has caught up."""

    name: str
    peer_address: str
    client_address: str
    promote: bool = True


class PromoteMember(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """A learner that is to vote."""

    name: str


class RemoveMembers(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Members that are to leave, for ever."""

    names: list[str]


class ReplaceMember(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """A member whose data are lost or given up, and which begins anew with empty ones.

    Empty addresses stay as they are. `incarnation`: the one that is to be replaced; when it has been already,
    nothing more is done. 0: whichever it is now.
    """

    name: str
    peer_address: str = ""
    client_address: str = ""
    incarnation: Uint = 0


class UpdateMember(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A member that is reached under other addresses now."""

    id: int
    peer_address: str
    client_address: str


MemberRequest = AddMember | PromoteMember | RemoveMembers | ReplaceMember | UpdateMember


@dataclass(frozen=True, slots=True)
class View:
    """What the leader knows at one moment."""

    own_id: int
    conf_state: ConfState
    members: Collection[Member]
    last_member_id: int
    machine_version: int
    commit_index: int
    match: Mapping[int, int]
    """How far each member's log is known to be this one's; 0: nothing is known yet."""
    healthy: frozenset[int]
    """Members that were heard from lately, the leader among them."""
    replicating: frozenset[int]
    """Those that entries are streamed to: neither probed nor sent a snapshot."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A change to be proposed, and the ids of the members that it is about. `change` None: what was asked for
    is so already."""

    ids: tuple[int, ...]
    change: ConfChangeV2 | None = None


def check_request(request: MemberRequest) -> Fault | None:
    """Return what is wrong with a request whatever the cluster's state."""
    match request:
        case AddMember(name, peer, client):
            return (
                _bad_name(name)
                or _bad_address("peer_address", peer)
                or _bad_address("client_address", client)
            )
        case ReplaceMember(_, peer, client):
            return (_bad_address("peer_address", peer) if peer else None) or (
                _bad_address("client_address", client) if client else None
            )
        case UpdateMember(_, peer, client):
            return _bad_address("peer_address", peer) or _bad_address("client_address", client)
        case RemoveMembers(names):
            if not names or len(set(names)) != len(names):
                return Fault(
                    Code.INVALID, f"names must hold at least one member, each once; got {names}", "names"
                )
    return None


def plan(view: View, request: MemberRequest) -> Plan | Fault:
    """Return the change that a request comes down to, or why it is refused."""
    if view.machine_version < MEMBERSHIP_SINCE:
        return Fault(
            Code.UNIMPLEMENTED,
            f"the cluster is at machine version {view.machine_version}, and its members change from version "
            f"{MEMBERSHIP_SINCE} on: it moves there by itself once all nodes run newer software and are up",
        )
    fault = check_request(request)
    if fault is not None:
        return fault
    match request:
        case AddMember():
            return _add(view, request)
        case PromoteMember():
            return _promote(view, request)
        case RemoveMembers():
            return _remove(view, request)
        case ReplaceMember():
            return _replace(view, request)
        case UpdateMember():
            return _update(view, request)


def _add(view: View, request: AddMember) -> Plan | Fault:
    existing = _find(view, request.name)
    if existing is not None:
        return _add_again(view, request, existing)
    fault = _address_in_use(view, 0, request.peer_address, request.client_address)
    if fault is not None:
        return fault
    learners = [member for member in view.members if member.learner]
    voters = len(view.members) - len(learners) + sum(member.promote for member in learners)
    if request.promote and voters >= VOTERS_MAX:
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the cluster has {voters} members that vote or are about to, the limit is {VOTERS_MAX}; remove "
            "one first, or add a learner that stays one",
        )
    if len(learners) >= LEARNERS_MAX:
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the cluster has {len(learners)} learners, the limit is {LEARNERS_MAX}; promote or remove one "
            "first",
        )
    member = Member(
        id=view.last_member_id + 1,
        incarnation=1,
        name=request.name,
        peer_address=request.peer_address,
        client_address=request.client_address,
        learner=True,
        promote=request.promote,
    )
    return Plan((member.id,), _change(ConfChangeType.ADD_LEARNER_NODE, member))


def _add_again(view: View, request: AddMember, existing: Member) -> Plan | Fault:
    """An add whose answer was lost is asked again. As long as the node has not taken part it may still be
    given its (empty) directory; afterwards an empty one would be that of a node which forgot what it said."""
    asked = (request.peer_address, request.client_address)
    if (existing.peer_address, existing.client_address) != asked:
        return Fault(
            Code.FAILED_PRECONDITION,
            f"the name {existing.name} is in use by node {existing.id} at {existing.peer_address}; choose "
            "another name",
            "name",
        )
    if existing.learner and existing.incarnation == 1 and not view.match.get(existing.id, 0):
        return Plan((existing.id,))
    return Fault(
        Code.FAILED_PRECONDITION,
        f"{existing.name} is a member already (node {existing.id}, with these addresses), and has taken "
        f"part; start it with its data, or replace it (`raftstate member replace {existing.name}`) if they "
        "are lost",
        "name",
    )


def _promote(view: View, request: PromoteMember) -> Plan | Fault:
    member = _find(view, request.name)
    if member is None:
        return _unknown(view, request.name)
    if not member.learner:
        return Fault(Code.FAILED_PRECONDITION, f"{member.name} is no learner: it has a vote already", "name")
    if len(view.conf_state.voters) >= VOTERS_MAX:
        return Fault(
            Code.RESOURCE_EXHAUSTED,
            f"the cluster has {len(view.conf_state.voters)} voters, the limit is {VOTERS_MAX}; remove one "
            "first",
        )
    fault = _not_caught_up(view, member)
    if fault is not None:
        return fault
    record = msgspec.structs.replace(member, learner=False, promote=False)
    change = _change(ConfChangeType.ADD_NODE, record)
    return _lost_quorum(view, change, f"with {member.name} as a voter") or Plan((member.id,), change)


def _not_caught_up(view: View, member: Member) -> Fault | None:
    match = view.match.get(member.id, 0)
    if member.id not in view.healthy:
        return Fault(
            Code.FAILED_PRECONDITION,
            f"{member.name} does not answer the leader: a vote for it would only be missed; start it, and "
            "see that it can be reached",
        )
    if member.id in view.replicating and match and view.commit_index - match <= PROMOTE_LAG_MAX:
        return None
    return Fault(
        Code.FAILED_PRECONDITION,
        f"{member.name} is {view.commit_index - match} entries behind (its log is known up to {match} of "
        f"{view.commit_index}), the limit is {PROMOTE_LAG_MAX}; wait until it has caught up",
    )


def _remove(view: View, request: RemoveMembers) -> Plan | Fault:
    leaving: list[Member] = []
    for name in request.names:
        member = _find(view, name)
        if member is None:
            return _unknown(view, name)
        leaving.append(member)
    ids = tuple(member.id for member in leaving)
    what = ", ".join(request.names)
    if set(view.conf_state.voters) <= set(ids):
        return Fault(
            Code.FAILED_PRECONDITION,
            f"without {what} no voter would be left: a cluster needs one at least. To give a cluster up, "
            "stop its nodes and delete their directories",
        )
    change = ConfChangeV2(
        changes=tuple(ConfChangeSingle(ConfChangeType.REMOVE_NODE, id) for id in ids),
        context=_encode(MemberChange()),
    )
    return _lost_quorum(view, change, f"without {what}") or Plan(ids, change)


def _replace(view: View, request: ReplaceMember) -> Plan | Fault:
    member = _find(view, request.name)
    if member is None:
        return _unknown(view, request.name)
    if request.incarnation and request.incarnation < member.incarnation:
        return Plan((member.id,))
    peer = request.peer_address or member.peer_address
    client = request.client_address or member.client_address
    fault = _address_in_use(view, member.id, peer, client)
    if fault is not None:
        return fault
    if member.id == view.own_id:
        return Fault(
            Code.FAILED_PRECONDITION,
            f"{member.name} leads, and so has its data; hand leadership over first "
            "(`raftstate transfer-leader`) if it is to begin anew nevertheless",
        )
    voters = set(view.conf_state.voters)
    others = (voters & view.healthy) - {member.id}
    needed = len(voters) // 2 + 1
    if member.id in voters and len(others) < needed:
        # What it acknowledged may be lost: those who are left must hold all that was committed.
        return Fault(
            Code.FAILED_PRECONDITION,
            f"without {member.name} {len(others)} of {len(voters)} voters answer, and {needed} must: only a "
            "quorum of the others is certain to hold everything that was acknowledged. Bring other voters "
            "back first",
        )
    record = msgspec.structs.replace(
        member,
        incarnation=member.incarnation + 1,
        peer_address=peer,
        client_address=client,
        learner=True,
        promote=member.promote or not member.learner,
    )
    return Plan((member.id,), _change(ConfChangeType.ADD_LEARNER_NODE, record))


def _update(view: View, request: UpdateMember) -> Plan | Fault:
    member = next((member for member in view.members if member.id == request.id), None)
    if member is None:
        return Fault(Code.INVALID, f"node {request.id} is no member", "id")
    record = msgspec.structs.replace(
        member, peer_address=request.peer_address, client_address=request.client_address
    )
    if record == member:
        return Plan((member.id,))
    fault = _address_in_use(view, member.id, request.peer_address, request.client_address)
    return fault or Plan((member.id,), _change(ConfChangeType.UPDATE_NODE, record))


def _change(kind: ConfChangeType, member: Member) -> ConfChangeV2:
    return ConfChangeV2(changes=(ConfChangeSingle(kind, member.id),), context=_encode(MemberChange([member])))


def _lost_quorum(view: View, change: ConfChangeV2, what: str) -> Fault | None:
    """Return why a change is refused if the voters that answer would be no quorum of those it leads to."""
    try:
        voters = next_conf_state(view.conf_state, change).voters
    except ConfChangeError as error:
        return Fault(
            Code.FAILED_PRECONDITION, f"the present configuration does not allow this change: {error}"
        )
    healthy = set(voters) & view.healthy
    needed = len(voters) // 2 + 1
    if len(healthy) >= needed:
        return None
    silent = _names(view, set(voters) - healthy)
    return Fault(
        Code.FAILED_PRECONDITION,
        f"{what} the cluster would lose its quorum: it would have {len(voters)} voters, of which {needed} "
        f"must answer, and {len(healthy)} do (not {silent}). Bring these back first, or remove them first",
    )


def _find(view: View, name: str) -> Member | None:
    return next((member for member in view.members if member.name == name), None)


def _unknown(view: View, name: str) -> Fault:
    return Fault(
        Code.INVALID,
        f"no member is named {name!r}; members are {_names(view, (member.id for member in view.members))}",
        "name",
    )


def _names(view: View, ids: Iterable[int]) -> str:
    names = {member.id: member.name for member in view.members}
    return ", ".join(names.get(id, f"node {id}") for id in sorted(ids))


def _address_in_use(view: View, own_id: int, peer_address: str, client_address: str) -> Fault | None:
    if peer_address == client_address:
        return Fault(
            Code.INVALID,
            f"peers and clients can't be served at the same address, {peer_address}; give two ports",
            "peer_address",
        )
    for member in view.members:
        if member.id == own_id:
            continue
        for field, asked in (("peer_address", peer_address), ("client_address", client_address)):
            if asked in (member.peer_address, member.client_address):
                return Fault(
                    Code.FAILED_PRECONDITION,
                    f"the address {asked} is in use by {member.name} (node {member.id}); each node needs its "
                    "own",
                    field,
                )
    return None


def _bad_name(name: str) -> Fault | None:
    if re.fullmatch(NAME_PATTERN, name):
        return None
    return Fault(Code.INVALID, f"name must be {NAME_FORM}, got {name!r:.80}", "name")


def _bad_address(field: str, address: str) -> Fault | None:
    try:
        split_address(address)
    except ConfigError as error:
        return Fault(Code.INVALID, f"{field}: {error.message}", field)
    return None


class MembersChanged(msgspec.Struct, array_like=True, frozen=True):
    """A membership change that is applied, or was so already.

    `index`: of its entry, or the applied index when there was nothing to do. `members`: all, afterwards.
    `ids`: of the members that it was about. `already`: nothing had to be done.
    """

    index: Uint
    members: list[Member]
    ids: list[int]
    already: bool = False
