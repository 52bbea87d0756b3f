"""Compares what this node's machine came to with what others' did, at equal indexes.

The digest chains all entries, so that two nodes whose digests differ at one index have differed ever since
they did something differently, and will from then on. Each node keeps its digest at every 64th index, and at
its last ones, in memory; about once a second it tells its peers what is new.

    a majority of the voters agrees on a digest that is not this node's   this node is odd
    nodes differ, and no majority agrees                                  all who see it say so, none acts

Nothing of this is on disk: whoever starts compares again from the next index that others tell of. What a node
said before its state was replaced (a start, an install, a repair) is void: it draws another `life` then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from raftstate.core.quorum import JointConfig, MajorityConfig, VoteResult
from raftstate.core.types import ConfState
from raftstate.machine.types import EntryResult
from raftstate.node.environment import Digests

POINT_INDEXES = 64
"""From one index whose digest is kept, and told, to the next."""
POINTS_MAX = 1024
"""Of one node, at most: the last 65,536 entries. A node further behind is compared once it has caught up."""
RECENT_INDEXES = 4096
"""Of its own last entries a node knows each digest, so that a peer's latest can be compared, too, and a copy
of the state that the log was replayed on."""
SEND_POINTS_MAX = 256
"""In one message, the latest ones: what a busy second makes several times over."""


class Trail:
    """A bounded number of (index, digest), in ascending order."""

    def __init__(self, points_max: int) -> None:
        self._points_max = points_max
        self._digests: dict[int, int] = {}

    def add(self, index: int, digest: int) -> None:
        """Add a point; one that does not come after the last is left out."""
        digests = self._digests
        if digests and index <= next(reversed(digests)):
            return
        digests[index] = digest
        if len(digests) > self._points_max:
            del digests[next(iter(digests))]

    def get(self, index: int) -> int | None:
        """Return the digest at an index, if it is known."""
        return self._digests.get(index)

    def after(self, index: int) -> list[tuple[int, int]]:
        """Return all points after an index."""
        found = []
        for point in reversed(self._digests.items()):
            if point[0] <= index:
                break
            found.append(point)
        return found[::-1]

    def indexes(self) -> set[int]:
        """Return the indexes of all points."""
        return set(self._digests)


class Odd(NamedTuple):
    """A majority of the voters agrees on a digest that is not this node's."""

    log_index: int
    majority: frozenset[int]


class _Compared(NamedTuple):
    log_index: int
    equal: bool


class DigestExchange:
    """What this node and its peers have come to.

    Args:
        node_id: this node.
        life: a random number, of this start.
        send: sends to a peer; False: it was not sent.
        peers: returns those who understand what is sent.
        conf_state: returns the present configuration.
        on_odd: called when this node turns out to be odd; once until `replaced`.
    """

    def __init__(
        self,
        node_id: int,
        life: int,
        *,
        send: Callable[[int, Digests], bool],
        peers: Callable[[], Sequence[int]],
        conf_state: Callable[[], ConfState],
        on_odd: Callable[[Odd], None],
    ) -> None:
        self._node_id = node_id
        self._send = send
        self._peers = peers
        self._conf_state = conf_state
        self._on_odd = on_odd
        self._theirs: dict[int, Trail] = {}
        self._lives: dict[int, int] = {}
        self._told: dict[int, int] = {}
        """Peer -> the last index whose digest it was told."""
        self.replaced(life)

    def replaced(self, life: int) -> None:
        """This node's state is another one: what was noted of it is void. `life`: a new random number."""
        self._life = life
        self._own = Trail(POINTS_MAX)
        self._recent = Trail(RECENT_INDEXES)
        self._compared: dict[int, _Compared] = {}
        self._told.clear()
        self.agreed_index = 0
        """The last index at which this node was found to be of one mind with a majority."""
        self._is_odd = False

    # -- what comes in

    def applied(self, results: Sequence[EntryResult]) -> None:
        """Note what the machine came to."""
        for result in results:
            self.note(result.index, result.digest)

    def note(self, index: int, digest: int) -> None:
        """Note the digest at one index."""
        self._recent.add(index, digest)
        if not index % POINT_INDEXES:
            self._own.add(index, digest)
        for peer, trail in self._theirs.items():
            theirs = trail.get(index)
            if theirs is not None:
                self._compare(peer, index, digest, theirs)

    def received(self, sender: int, digests: Digests) -> None:
        """Take what a peer says of itself."""
        if self._lives.get(sender) != digests.life:
            self._lives[sender] = digests.life
            self._theirs[sender] = Trail(POINTS_MAX)
            self._compared.pop(sender, None)
            self._told.pop(sender, None)  # it may know nothing of this node any more
        trail = self._theirs[sender]
        for index, theirs in digests.points:
            trail.add(index, theirs)
            own = self._at(index)
            if own is not None:
                self._compare(sender, index, own, theirs)

    def tell(self, applied_index: int, digest: int) -> None:
        """Tell the peers what is new, with where this node is now: a quiet cluster is compared, too."""
        self.note(applied_index, digest)
        for peer in self._peers():
            told = self._told.get(peer, -1)
            points = self._own.after(told)[-SEND_POINTS_MAX:]
            if applied_index > max(told, points[-1][0] if points else 0):
                points.append((applied_index, digest))
            if points and self._send(peer, Digests(self._life, points)):
                self._told[peer] = points[-1][0]

    # -- what comes of it

    def dispute(self) -> str:
        """Return a sentence on nodes that differ from this one; empty: none is known to."""
        members = self._members()
        for peer, (index, equal) in self._compared.items():
            if equal or peer not in members:
                continue
            groups: dict[int, list[int]] = {}
            for node, digest in sorted(self._digests_at(index).items()):
                groups.setdefault(digest, []).append(node)
            sides = " against ".join("/".join(map(str, nodes)) for nodes in groups.values())
            what = f"the nodes' states differ at log index {index} (nodes {sides})"
            if any(self._is_majority(nodes) for nodes in groups.values()):
                return f"{what}: those that differ from the majority show nothing, and rebuild their state"
            return (
                f"{what}, and no majority of the voters agrees on one, so that none is rebuilt: start the "
                "nodes that are missing; if none are, compare `raftstate check` of the nodes' directories, "
                "keep the right one, and replace the others (`raftstate member replace`)"
            )
        return ""

    def contradicts(self, index: int, digest: int, nodes: frozenset[int]) -> bool | None:
        """Return whether what others (`nodes`; empty: this node) came to at an index is another digest; None:
        that is not known."""
        known = self._digests_at(index)
        theirs = {known[node] for node in nodes or {self._node_id} if node in known}
        return digest not in theirs if theirs else None

    def sources(self) -> list[int]:
        """Return the nodes whose state may take the place of this one's if this one's is damaged: those that
        agree with it, and those of a majority that agrees."""
        found = {peer for peer, compared in self._compared.items() if compared.equal}
        indexes = set().union(*(trail.indexes() for trail in self._theirs.values()))
        for index in sorted(indexes, reverse=True):
            majority = self._majority(self._digests_at(index))
            if majority is not None:
                found |= majority[1]
                break
        return sorted((found & self._members()) - {self._node_id})

    def _compare(self, peer: int, index: int, own: int, theirs: int) -> None:
        known = self._compared.get(peer)
        if known is None or known.log_index <= index:
            self._compared[peer] = _Compared(index, own == theirs)
        majority = self._majority(self._digests_at(index))
        if majority is None:
            return
        if majority[0] == own:
            self.agreed_index = max(self.agreed_index, index)
        elif not self._is_odd:
            self._is_odd = True
            self._on_odd(Odd(index, majority[1]))

    def _at(self, index: int) -> int | None:
        own = self._own.get(index)
        return self._recent.get(index) if own is None else own

    def _digests_at(self, index: int) -> dict[int, int]:
        found = {peer: trail.get(index) for peer, trail in self._theirs.items()}
        found[self._node_id] = self._at(index)
        return {node: digest for node, digest in found.items() if digest is not None}

    def _majority(self, digests: Mapping[int, int]) -> tuple[int, frozenset[int]] | None:
        """Return the digest that a majority of the voters agrees on, and all nodes that do."""
        for digest in set(digests.values()):
            nodes = frozenset(node for node, its in digests.items() if its == digest)
            if self._is_majority(nodes):
                return digest, nodes
        return None

    def _is_majority(self, nodes: Sequence[int] | frozenset[int]) -> bool:
        state = self._conf_state()
        voters = JointConfig(MajorityConfig(state.voters), MajorityConfig(state.voters_outgoing))
        return bool(voters.ids()) and voters.vote_result(dict.fromkeys(nodes, True)) is VoteResult.WON

    def _members(self) -> set[int]:
        state = self._conf_state()
        return {*state.voters, *state.voters_outgoing, *state.learners, *state.learners_next}
