"""One node's Raft state, the gate that every message passes, and the changes of role.

May live here: the state that the roles share, `send`, the term gate and the dispatch, and `become_*`, the
only places where the role changes. What a role does with a message stands in `leader`, `candidate` and
`follower`; elections in `election`, what a leader sends in `replication`, changes of configuration in
`reconfigure`.

A message is first measured by its term: a newer one makes this node a follower of it, an older one is
answered only where silence could lock somebody out. What remains belongs to the present term and goes to
the role's table of handlers; a type that is not in the table means nothing to that role and is ignored.

Two lists leave with the next `Ready`: `messages` may be sent at once; those in `messages_after_append`
(votes and acknowledgements, to others or to this node itself) only when all that was to be written by then
is durable. So a leader counts its own copy of an entry, and a candidate its own vote, no sooner than the
disk has it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from raftstate.core import candidate, election, follower, leader, reconfigure
from raftstate.core.conf_change import LEAVE_JOINT
from raftstate.core.config import Config
from raftstate.core.errors import ProposalDropped
from raftstate.core.log import RaftLog
from raftstate.core.membership import ProgressTracker
from raftstate.core.progress import Inflights, Progress
from raftstate.core.read_only import ReadOnlyQueue
from raftstate.core.roles import Role, check_change
from raftstate.core.storage import NO_LIMIT, payload_bytes
from raftstate.core.types import NONE, Entry, HardState, Message, MessageType, ReadState, Snapshot
from raftstate.errors import InvariantError

Handler = Callable[["Raft", Message], None]

_CAMPAIGN_TYPES = frozenset(
    {MessageType.VOTE, MessageType.VOTE_RESP, MessageType.PRE_VOTE, MessageType.PRE_VOTE_RESP}
)
_AFTER_APPEND_TYPES = frozenset({MessageType.APP_RESP, MessageType.VOTE_RESP, MessageType.PRE_VOTE_RESP})
_FROM_LEADER_TYPES = frozenset({MessageType.APP, MessageType.HEARTBEAT, MessageType.SNAP})
# Requests on their way to whoever leads: they belong to no term.
_TERMLESS_TYPES = frozenset({MessageType.PROP, MessageType.READ_INDEX})


class Raft:
    """The state of one node, changed by `tick` and `step` only.

    Args:
        config: settings, checked here.

    Raises:
        ConfigError: the settings are wrong.
        ConfChangeError: the stored configuration can't exist.
        InvariantError: the stored hard state contradicts the stored log.
    """

    def __init__(self, config: Config) -> None:
        config.validate()
        self.id = config.id
        self.term = 0
        self.vote = NONE
        self.lead = NONE
        """The leader of `term`, as far as this node knows."""
        self.state = Role.FOLLOWER
        self.raft_log = RaftLog(config.storage, config.max_applying_bytes or config.max_message_bytes or 1)
        self.tracker = ProgressTracker(config.max_inflight_messages, config.max_inflight_bytes)
        self.peers: tuple[int, ...] = ()
        """The ids of all other members, ascending."""
        self.is_learner = False
        self.may_campaign = True
        """Whether the application lets this node stand for election: not while it can't vouch for its own
        log or its disk."""

        self.messages: list[Message] = []
        self.messages_after_append: list[Message] = []
        self.read_states: list[ReadState] = []
        self.read_only = ReadOnlyQueue(config.read_only)
        self.postponed_reads: list[Message] = []
        """Read-index requests that arrived before a new leader had committed anything in its term."""

        self.lead_transferee = NONE
        self.pending_conf_index = 0
        """At or before this index may stand a configuration change that is not applied yet; none stands
        behind it."""
        self.uncommitted_bytes = 0
        """Payload that a leader appended and did not see applied yet. It may be too low, never too high."""

        self.election_elapsed = 0
        """Ticks since the last election timeout; in a follower also since it last heard from its leader."""
        self.heartbeat_elapsed = 0
        self.election_ticks = config.election_ticks
        self.heartbeat_ticks = config.heartbeat_ticks
        self.randomized_election_ticks = 0
        self.check_quorum = config.check_quorum
        self.pre_vote = config.pre_vote
        self.max_message_bytes = config.max_message_bytes
        self.max_uncommitted_bytes = config.max_uncommitted_bytes or NO_LIMIT
        self.disable_proposal_forwarding = config.disable_proposal_forwarding
        self.disable_conf_change_validation = config.disable_conf_change_validation
        self.step_down_on_removal = config.step_down_on_removal
        self._random = config.random

        hard_state, conf_state = config.storage.initial_state()
        reconfigure.restore_configuration(self, conf_state)
        self._load(hard_state, config.applied)
        self.become_follower(self.term, NONE)

    def _load(self, hard_state: HardState, applied: int) -> None:
        log = self.raft_log
        # What is applied or compacted away was committed, even if the crash came before that was written
        # down.
        commit = max(hard_state.commit, log.committed, applied)
        last = log.last_entry_id()
        if commit > last.index:
            raise InvariantError(
                f"node {self.id}: {commit} is committed or applied, but the stored log ends at {last.index}"
            )
        if hard_state != HardState() and hard_state.term < last.term:
            raise InvariantError(
                f"node {self.id}: the stored term is {hard_state.term}, but the log ends in term {last.term}"
            )
        self.term = hard_state.term
        self.vote = hard_state.vote
        log.commit_to(commit)
        log.applied_to(max(log.applied, applied), [])

    # -- messages in

    def step(self, message: Message) -> None:
        """Take one message, of this node or another. It must not be changed afterwards.

        Raises:
            ProposalDropped: it is a proposal, and it was not appended or passed on.
            InvariantError: it contradicts what this node knows for certain.
        """
        term = message.term
        if term and term != self.term:
            if term < self.term:
                self._answer_older_term(message)
                return
            if not self._meet_newer_term(message):
                return
        handler = _HANDLERS[self.state].get(message.type)
        if handler is not None:
            handler(self, message)

    def _meet_newer_term(self, message: Message) -> bool:
        """Adopt the term of `message` where it binds this node. Returns whether to handle the message."""
        kind = message.type
        if (
            (kind is MessageType.VOTE or kind is MessageType.PRE_VOTE)
            and self.check_quorum
            and self.lead != NONE
            and self.election_elapsed < self.election_ticks
            and message.context != election.TRANSFER_CONTEXT
        ):
            # A leader was heard from lately: a candidate that was cut off, or removed, must not disturb it.
            return False
        if kind is MessageType.PRE_VOTE:
            return True
        if kind is MessageType.PRE_VOTE_RESP and not message.reject:
            # It echoes the term that this node would campaign in; only a quorum of such answers makes that
            # term real.
            return True
        self.become_follower(message.term, message.from_ if kind in _FROM_LEADER_TYPES else NONE)
        return True

    def _answer_older_term(self, message: Message) -> None:
        kind = message.type
        if (self.check_quorum or self.pre_vote) and (
            kind is MessageType.HEARTBEAT or kind is MessageType.APP
        ):
            # Its sender leads an older term and can't be reached by a vote request, which its followers
            # ignore: this answer's term makes it step down, so that a node with a higher term is not locked
            # out for ever.
            self.send(Message(MessageType.APP_RESP, to=message.from_))
        elif kind is MessageType.PRE_VOTE:
            # A candidate behind in term but ahead in log must learn the term, or neither side would ever win.
            self.send(Message(MessageType.PRE_VOTE_RESP, to=message.from_, term=self.term, reject=True))
        elif kind is MessageType.STORAGE_APPEND_RESP and message.snapshot is not None:
            # The entries of this write may have been overwritten in a later term, and are not believed; a
            # snapshot is committed state, durable under any term.
            self._applied_snapshot(message.snapshot)

    # -- messages out

    def send(self, message: Message) -> None:
        """Queue `message`, completing its sender and, unless it belongs to a campaign, its term."""
        kind = message.type
        if message.from_ == NONE:
            message.from_ = self.id
        if kind in _CAMPAIGN_TYPES:
            if message.term == 0:
                raise InvariantError(f"node {self.id}: a {kind.name} needs a term, got 0")
        elif message.term:
            raise InvariantError(
                f"node {self.id}: a {kind.name} is sent in term {self.term}, it came with term {message.term}"
            )
        elif kind not in _TERMLESS_TYPES:
            message.term = self.term
        if kind in _AFTER_APPEND_TYPES:
            self.messages_after_append.append(message)
        elif message.to == self.id:
            raise InvariantError(f"node {self.id}: a {kind.name} to itself, {message.to}")
        else:
            self.messages.append(message)

    def append_entries(self, entries: list[Entry]) -> bool:
        """Append `entries`, as leader, under the next indexes and the present term.

        Returns:
            Whether there was room: False, with nothing appended, if the uncommitted tail would grow too
            large.
        """
        size = payload_bytes(entries)
        # Alone in the tail, any size is let in; and entries without payload always are (a new leader's
        # first, leaving a joint configuration).
        if self.uncommitted_bytes and size and self.uncommitted_bytes + size > self.max_uncommitted_bytes:
            return False
        self.uncommitted_bytes += size
        term = self.term
        first = self.raft_log.last_index() + 1
        last = self.raft_log.append(
            [Entry(index, term, entry.type, entry.data) for index, entry in enumerate(entries, first)]
        )
        self.send(Message(MessageType.APP_RESP, to=self.id, index=last))
        return True

    # -- storage's answers

    def _handle_append_response(self, message: Message) -> None:
        if message.index:
            self.raft_log.unstable.stable_to(message.index, message.log_term)
        if message.snapshot is not None:
            self._applied_snapshot(message.snapshot)

    def _handle_apply_response(self, message: Message) -> None:
        if message.entries:
            self.applied_to(message.entries[-1].index, message.entries)
            self.uncommitted_bytes = max(0, self.uncommitted_bytes - payload_bytes(message.entries))

    def _applied_snapshot(self, snapshot: Snapshot) -> None:
        index = snapshot.metadata.index
        self.raft_log.unstable.stable_snapshot_to(index)
        self.applied_to(index, [])

    def applied_to(self, index: int, entries: list[Entry]) -> None:
        """Note that everything up to `index` is applied, `entries` by what is acknowledged now.

        A leader that has applied the joint configuration which it shall leave by itself proposes that here.
        The proposal may be dropped (a transfer in progress); then it is made again with the next entries,
        here or by the next leader.
        """
        log = self.raft_log
        log.applied_to(max(index, log.applied), entries)
        if (
            self.tracker.config.auto_leave
            and log.applied >= self.pending_conf_index
            and self.state is Role.LEADER
        ):
            with suppress(ProposalDropped):
                self.step(Message(MessageType.PROP, entries=[LEAVE_JOINT]))

    # -- time

    def tick(self) -> None:
        """Let one tick pass."""
        if self.state is Role.LEADER:
            leader.tick(self)
        else:
            election.tick(self)

    # -- roles

    def become_follower(self, term: int, lead: int) -> None:
        """Follow `lead` (NONE: whoever will be elected) in `term`."""
        self._change_role(Role.FOLLOWER)
        self._reset(term)
        self.lead = lead

    def become_pre_candidate(self) -> None:
        """Ask for promises of votes, under the present term and keeping the vote given in it."""
        self._change_role(Role.PRE_CANDIDATE)
        self.tracker.reset_votes()
        self.lead = NONE

    def become_candidate(self) -> None:
        """Stand for election in the next term, voting for oneself."""
        self._change_role(Role.CANDIDATE)
        self._reset(self.term + 1)
        self.vote = self.id

    def become_leader(self) -> None:
        """Lead the present term, and append its first, empty entry."""
        self._change_role(Role.LEADER)
        self._reset(self.term)
        self.lead = self.id
        own = self.tracker.progress[self.id]
        own.become_replicate()
        own.recent_active = True
        # Changes left by earlier leaders may be anywhere in the log: no new one until all of it is applied.
        # A change of this term may be proposed at once: it takes effect when it is applied, and so only
        # after the entry that is appended here is committed (Ongaro 2015).
        self.pending_conf_index = self.raft_log.last_index()
        appended = self.append_entries([Entry(index=0, term=self.term)])
        if not appended:  # pragma: no cover - an entry without payload always has room
            raise InvariantError(
                f"node {self.id}: no room for the first entry of term {self.term}: {self.uncommitted_bytes} "
                f"bytes are uncommitted, the limit is {self.max_uncommitted_bytes}"
            )

    def _change_role(self, role: Role) -> None:
        check_change(self.id, self.term, self.state, role)
        self.state = role

    def _reset(self, term: int) -> None:
        if term != self.term:
            self.term = term
            self.vote = NONE
        self.lead = NONE
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.randomized_election_ticks = self.election_ticks + self._random.randrange(self.election_ticks)
        self.lead_transferee = NONE
        self.pending_conf_index = 0
        self.uncommitted_bytes = 0
        self.read_only.drop()
        self.postponed_reads = []
        tracker = self.tracker
        tracker.reset_votes()
        last = self.raft_log.last_index()
        for node_id, progress in tracker.progress.items():
            tracker.progress[node_id] = Progress(
                match=last if node_id == self.id else 0,
                next=last + 1,
                inflights=Inflights(tracker.max_inflight, tracker.max_inflight_bytes),
                is_learner=progress.is_learner,
            )


_COMMON_HANDLERS: dict[MessageType, Handler] = {
    MessageType.HUP: election.handle_hup,
    MessageType.VOTE: election.handle_vote_request,
    MessageType.PRE_VOTE: election.handle_vote_request,
    MessageType.STORAGE_APPEND_RESP: Raft._handle_append_response,
    MessageType.STORAGE_APPLY_RESP: Raft._handle_apply_response,
}

_HANDLERS: dict[Role, dict[MessageType, Handler]] = {
    Role.FOLLOWER: _COMMON_HANDLERS | follower.HANDLERS,
    Role.PRE_CANDIDATE: _COMMON_HANDLERS
    | candidate.HANDLERS
    | {MessageType.PRE_VOTE_RESP: candidate.handle_vote_response},
    Role.CANDIDATE: _COMMON_HANDLERS
    | candidate.HANDLERS
    | {MessageType.VOTE_RESP: candidate.handle_vote_response},
    Role.LEADER: _COMMON_HANDLERS | leader.HANDLERS,
}
"""For each role, the messages that mean something to it."""
