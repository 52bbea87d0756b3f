"""The simulated world of `world`, with a membership at each node: nodes join, leave, are wiped and come back.

What a connection would refuse is refused, and told to the one who dialled.
"""

from __future__ import annotations

from chaos.sim.clock import MS
from chaos.sim.memory_tables import MemoryTables
from chaos.sim.world import CLUSTER_ID, SimCluster, SimNode, _EpochClock, _Sender
from raftstate.core.types import Message, MessageType
from raftstate.errors import FailedPreconditionError
from raftstate.machine.machine import Machine
from raftstate.machine.types import Member
from raftstate.node.admission import Place
from raftstate.node.environment import PeerBody, Rejected
from raftstate.node.frames import Channel, Hello
from raftstate.node.member_changes import AddMember, MemberRequest, MembersChanged
from raftstate.node.membership import Membership

Outcomes = list[MembersChanged | Rejected]


class MemberNode(SimNode):
    """A node with a membership. `incarnation`, `addresses`: as its settings say."""

    cluster: MemberCluster

    def __init__(self, cluster: SimCluster, node_id: int) -> None:
        super().__init__(cluster, node_id)
        self.incarnation = 1
        self.addresses = (f"h{node_id}:7101", f"h{node_id}:7001")
        self.changes_seen = 0

    def start(self) -> None:
        super().start()
        place = Place(CLUSTER_ID, self.id, self.incarnation, f"n{self.id}", *self.addresses)
        self.membership = Membership(
            self.driver, _Sender(self, self.epoch), _EpochClock(self, self.epoch), place, self._changed
        )

    def _changed(self) -> None:
        self.changes_seen += 1

    @property
    def running(self) -> bool:
        return self.alive and self.driver.running

    @property
    def names(self) -> list[str]:
        return [member.name for member in self.driver.applied.members]


class MemberCluster(SimCluster):
    """Nodes that come and go. `nodes` keeps those that have left."""

    nodes: dict[int, MemberNode]  # type: ignore[assignment]

    def __init__(self, size: int, seed: int, *, machine_version: int = 3) -> None:
        self.refusals: list[tuple[int, str]] = []
        self.drop_appends_to: set[int] = set()
        super().__init__(size, seed, machine_version=machine_version, log_margin=20)

    def make_node(self, node_id: int) -> MemberNode:
        return MemberNode(self, node_id)

    def first_members(self) -> list[Member]:
        return [Member(i, 1, f"n{i}", f"h{i}:7101", f"h{i}:7001") for i in self.ids]

    def deliver(self, sender: int, to: int, body: PeerBody) -> None:
        node, source = self.nodes[to], self.nodes[sender]
        if not node.running or (sender, to) in self.cut:
            return
        if isinstance(body, Message) and body.type is MessageType.APP and to in self.drop_appends_to:
            return
        if self.connects(source, node) and node.membership.admission.takes(sender, source.incarnation, body):
            node.receive(sender, body)

    def connects(self, source: MemberNode, node: MemberNode) -> bool:
        """Whether a node lets another one in; if not, that one is told why."""
        hello = Hello(CLUSTER_ID, source.id, source.incarnation, node.id, Channel.CONTROL, source.knows)
        welcome = node.membership.admission.admit(hello)
        if not welcome.refusal:
            return True
        self.refusals.append((source.id, welcome.refusal))
        if source.running:
            source.membership.admission.refused(node.id, welcome)
        return False

    def leader(self) -> MemberNode | None:
        """The leader of the highest term that a majority of its own voters follow."""
        living = {id: node for id, node in self.nodes.items() if node.running}
        leaders = [node for node in living.values() if node.driver.raw.raft.lead == node.id]
        for node in sorted(leaders, key=lambda item: -item.driver.raw.raft.term):
            voters = node.driver.raw.raft.tracker.conf_state().voters
            followers = [id for id in voters if id in living and living[id].driver.raw.raft.lead == node.id]
            if len(followers) > len(voters) // 2:
                return node
        return None

    def elect(self) -> MemberNode:
        self.run_until(self.leader)
        leader = self.leader()
        assert leader is not None
        return leader

    def change(self, node_id: int, request: MemberRequest, timeout_s: float = 5.0) -> Outcomes:
        """Submit a change at a node; the returned list gets its one outcome."""
        outcomes: Outcomes = []
        self.nodes[node_id].membership.submit(request, int(timeout_s * 1e9), outcomes.append)
        self.nodes[node_id].driver.turn()
        return outcomes

    def changed(self, node_id: int, request: MemberRequest) -> MembersChanged:
        """Have the membership changed."""
        outcomes = self.change(node_id, request)
        self.run_until(lambda: outcomes)
        outcome = outcomes[0]
        assert isinstance(outcome, MembersChanged), outcome
        return outcome

    def refusal(self, node_id: int, request: MemberRequest) -> Rejected:
        """Have a change refused, for certain."""
        outcomes = self.change(node_id, request)
        self.run_until(lambda: outcomes)
        outcome = outcomes[0]
        assert isinstance(outcome, Rejected)
        assert outcome.applied_never, outcome
        return outcome

    def join(self, member: Member) -> MemberNode:
        """Start the empty node of a member that was added, or replaced."""
        node = self.make_node(member.id)
        node.incarnation = member.incarnation
        node.addresses = (member.peer_address, member.client_address)
        node.checkpoint = MemoryTables()
        Machine.blank(node.checkpoint, CLUSTER_ID)
        old = self.nodes.get(member.id)
        if old is not None:
            # A new process has nothing to do with the old one's timers and messages.
            old.crash()
            node.epoch = old.epoch
        self.nodes[member.id] = node
        self.ids = tuple(sorted(self.nodes))
        node.start()
        return node

    def add(self, number: int, *, promote: bool = True) -> MemberNode:
        """Add a node and start it."""
        request = AddMember(f"n{number}", f"h{number}:7101", f"h{number}:7001", promote)
        changed = self.changed(self.elect().id, request)
        (id,) = changed.ids
        return self.join(next(member for member in changed.members if member.id == id))

    def voters(self) -> tuple[int, ...]:
        return self.elect().driver.applied.conf_state.voters

    def run_until_voters(self, *ids: int, seconds: float = 10) -> None:
        """Run until all members have applied that these are the voters."""

        def are() -> bool:
            living = [node for node in self.nodes.values() if node.running and node.id in ids]
            states = [node.driver.applied.conf_state for node in living]
            return bool(states) and all(state.voters == ids and not state.voters_outgoing for state in states)

        self.run_until(are, seconds)


def halted(node: MemberNode) -> str:
    """Return why a node halted."""
    (failure,) = node.failures
    assert isinstance(failure, FailedPreconditionError)
    return failure.message


__all__ = ["MS", "MemberCluster", "MemberNode", "halted"]
