"""The core's face: inputs go in by methods, everything that comes out is a `Ready`.

May live here: the translation of calls into messages, and the bookkeeping of what was handed out. Not safe
for concurrent use.

      while running:
          node.tick() | node.step(message) | node.propose(data) | ...
          if node.has_ready():
              handle(node.ready())            # see `raftstate.core.ready`
              node.advance()                  # synchronous mode only
"""

from __future__ import annotations

from raftstate.core import invariants, reconfigure
from raftstate.core import status as statuses
from raftstate.core.conf_change import encode_conf_change
from raftstate.core.config import Config
from raftstate.core.errors import StepLocalMessage, StepPeerNotFound
from raftstate.core.raft import Raft
from raftstate.core.ready import (
    Ready,
    SoftState,
    storage_append,
    storage_append_response,
    storage_apply,
    storage_apply_response,
)
from raftstate.core.roles import Role
from raftstate.core.types import (
    LOCAL_APPEND_THREAD,
    LOCAL_APPLY_THREAD,
    NONE,
    ConfChange,
    ConfChangeV2,
    ConfState,
    Entry,
    EntryType,
    HardState,
    Message,
    MessageType,
)
from raftstate.errors import InvariantError

_LOCAL_TYPES = frozenset(
    {
        MessageType.HUP,
        MessageType.BEAT,
        MessageType.UNREACHABLE,
        MessageType.SNAP_STATUS,
        MessageType.CHECK_QUORUM,
        MessageType.STORAGE_APPEND,
        MessageType.STORAGE_APPEND_RESP,
        MessageType.STORAGE_APPLY,
        MessageType.STORAGE_APPLY_RESP,
    }
)
_RESPONSE_TYPES = frozenset(
    {
        MessageType.APP_RESP,
        MessageType.VOTE_RESP,
        MessageType.HEARTBEAT_RESP,
        MessageType.READ_INDEX_RESP,
        MessageType.PRE_VOTE_RESP,
    }
)
_LOCAL_THREADS = (LOCAL_APPEND_THREAD, LOCAL_APPLY_THREAD)


class RawNode:
    """One Raft node without I/O, clock or threads.

    Args:
        config: settings. The node starts from `config.storage` as a follower.

    Raises:
        ConfigError: the settings are wrong.
        ConfChangeError: the stored configuration can't exist.
        InvariantError: the stored hard state contradicts the stored log.
    """

    def __init__(self, config: Config) -> None:
        self.raft = Raft(config)
        self._async = config.async_storage_writes
        self._soft_state = SoftState(self.raft.lead, self.raft.state)
        self._hard_state = HardState(self.raft.term, self.raft.vote, self.raft.raft_log.committed)
        self._steps_on_advance: list[Message] = []
        self._advance_due = False

    # -- inputs

    def tick(self) -> None:
        """Let one tick pass."""
        self.raft.tick()

    def campaign(self) -> None:
        """Stand for election now.

        Does nothing if this node leads, may not lead, or has a committed configuration change to apply.
        """
        self.raft.step(Message(MessageType.HUP))

    def propose(self, data: bytes) -> None:
        """Propose one entry with `data`. That it was taken does not mean that it will be committed.

        Raises:
            ProposalDropped: it was not appended here nor passed on to the leader.
        """
        self.propose_entries([data])

    def propose_entries(self, datas: list[bytes]) -> None:
        """Propose entries with these `datas`, in order: either all of them are appended, or none.

        Raises:
            ProposalDropped: they were not appended here nor passed on to the leader.
        """
        entries = [Entry(0, 0, EntryType.NORMAL, data) for data in datas]
        self.raft.step(Message(MessageType.PROP, from_=self.raft.id, entries=entries))

    def propose_conf_change(self, change: ConfChange | ConfChangeV2) -> None:
        """Propose a change of configuration. A leader that may not make it now appends an empty entry in
        its place.

        Raises:
            ProposalDropped: it was not appended here nor passed on to the leader.
        """
        self.raft.step(Message(MessageType.PROP, entries=[encode_conf_change(change)]))

    def apply_conf_change(self, change: ConfChange | ConfChangeV2) -> ConfState:
        """Go over to the configuration that `change`, from an entry now being applied, leads to.

        Returns:
            The new configuration, to be stored with the applied state.

        Raises:
            ConfChangeError: the change does not fit; the configuration is as it was. Every node that
                applies it finds the same.
        """
        return reconfigure.apply_conf_change(self.raft, change)

    def step(self, message: Message) -> None:
        """Take a message from a peer, or a response from a storage thread. It must not be changed afterwards.

        Raises:
            StepLocalMessage: it is of a type that no peer may send.
            StepPeerNotFound: it is a response from a node that is no member.
            ProposalDropped: it is a proposal, and it was not appended or passed on.
            InvariantError: it contradicts what this node knows for certain.
        """
        kind = message.type
        if message.from_ not in _LOCAL_THREADS:
            if kind in _LOCAL_TYPES:
                raise StepLocalMessage(
                    f"a {kind.name} is for a node's own use, but came from node {message.from_}"
                )
            if kind in _RESPONSE_TYPES and message.from_ not in self.raft.tracker.progress:
                raise StepPeerNotFound(f"a {kind.name} came from node {message.from_}, which is no member")
        self.raft.step(message)

    def transfer_leader(self, target: int) -> None:
        """Hand leadership over to `target`, a voter.

        Proposals are dropped until that is done or an election timeout has passed.
        """
        self.raft.step(Message(MessageType.TRANSFER_LEADER, from_=target))

    def step_down(self) -> None:
        """Have a leader follow, in the same term, whoever will be elected; nothing else does anything.

        For one that can't acknowledge anything and found nobody to hand over to: its followers wait for an
        election timeout, and elect another.
        """
        if self.raft.state is Role.LEADER:
            self.raft.become_follower(self.raft.term, NONE)

    def forget_leader(self) -> None:
        """Make a follower behave as if it had no leader, until it hears from one: it grants votes at once."""
        self.raft.step(Message(MessageType.FORGET_LEADER))

    def read_index(self, context: bytes) -> None:
        """Ask for a read index; the answer is a `ReadState` with `context`.

        A request may be lost, and changes of leader or of members drop it: ask again after a while.
        """
        self.raft.step(Message(MessageType.READ_INDEX, entries=[Entry(0, 0, EntryType.NORMAL, context)]))

    def restart_progress(self, node_id: int) -> None:
        """Forget what is known of a learner's log: it is an empty one by now, under a new incarnation.

        A voter's is never forgotten: what it acknowledged may be what a commit stands on.

        Raises:
            InvariantError: `node_id` is a voter, or no member.
        """
        reconfigure.restart_progress(self.raft, node_id)

    def report_unreachable(self, node_id: int) -> None:
        """Tell a leader that what it sent to `node_id` was probably lost."""
        self.raft.step(Message(MessageType.UNREACHABLE, from_=node_id))

    def report_snapshot(self, node_id: int, ok: bool) -> None:
        """Tell a leader whether the snapshot that it sent to `node_id` arrived.

        Every SNAP message needs this, or nothing more is sent to a node whose acknowledgement was lost.
        """
        self.raft.step(Message(MessageType.SNAP_STATUS, from_=node_id, reject=not ok))

    # -- outputs

    def has_ready(self) -> bool:
        """Whether `ready` would return anything."""
        raft = self.raft
        log = raft.raft_log
        return bool(
            raft.messages
            or raft.messages_after_append
            or raft.read_states
            or log.unstable.has_next_entries()
            or self._hard_state_changed()
            or self._soft_state_changed()
            or log.unstable.next_snapshot() is not None
            or log.has_next_committed(not self._async)
        )

    def ready(self) -> Ready:
        """Hand out the work that has come up since the last call. It must be done: it is not handed out
        again.

        Raises:
            InvariantError: something that must always hold does not, or `advance` is due.
        """
        if self._advance_due:
            raise InvariantError(f"node {self.raft.id}: ready() called twice without advance()")
        raft = self.raft
        invariants.check(raft, self._hard_state)
        ready = self._collect()
        if self._async:
            if ready.entries or ready.hard_state or ready.snapshot or raft.messages_after_append:
                ready.messages.append(storage_append(raft, ready))
            if ready.committed_entries:
                ready.messages.append(storage_apply(raft, ready.committed_entries))
        else:
            self._defer_own_messages(ready)
        self._accept(ready)
        return ready

    def advance(self) -> None:
        """Report that the last `Ready` is stored and applied. Only in synchronous mode.

        Raises:
            InvariantError: storage is asynchronous, where the storage messages' responses take this call's
                place.
        """
        if self._async:
            raise InvariantError(f"node {self.raft.id}: advance() called in asynchronous mode")
        self._advance_due = False
        steps, self._steps_on_advance = self._steps_on_advance, []
        for message in steps:
            self.raft.step(message)

    def _collect(self) -> Ready:
        raft = self.raft
        log = raft.raft_log
        ready = Ready(
            entries=log.unstable.next_entries(),
            committed_entries=log.next_committed(not self._async),
            messages=raft.messages,
            read_states=raft.read_states,
            snapshot=log.unstable.next_snapshot(),
        )
        if self._soft_state_changed():
            ready.soft_state = SoftState(raft.lead, raft.state)
        if self._hard_state_changed():
            ready.hard_state = HardState(raft.term, raft.vote, log.committed)
        ready.must_sync = (
            bool(ready.entries) or raft.term != self._hard_state.term or raft.vote != self._hard_state.vote
        )
        return ready

    def _defer_own_messages(self, ready: Ready) -> None:
        raft = self.raft
        self._advance_due = True
        for message in raft.messages_after_append:
            (self._steps_on_advance if message.to == raft.id else ready.messages).append(message)
        response = storage_append_response(raft, ready)
        if response is not None:
            self._steps_on_advance.append(response)
        if ready.committed_entries:
            self._steps_on_advance.append(storage_apply_response(raft, ready.committed_entries))

    def _accept(self, ready: Ready) -> None:
        raft = self.raft
        raft.messages = []
        raft.messages_after_append = []
        raft.read_states = []
        if ready.soft_state is not None:
            self._soft_state = ready.soft_state
        if ready.hard_state is not None:
            self._hard_state = ready.hard_state
        raft.raft_log.unstable.accept_in_progress()
        if ready.committed_entries:
            raft.raft_log.accept_applying(ready.committed_entries, not self._async)

    def _soft_state_changed(self) -> bool:
        return self._soft_state.lead != self.raft.lead or self._soft_state.role is not self.raft.state

    def _hard_state_changed(self) -> bool:
        old, raft = self._hard_state, self.raft
        return old.commit != raft.raft_log.committed or old.term != raft.term or old.vote != raft.vote

    # -- inspection

    def status(self) -> statuses.Status:
        """Return this node's state, its configuration and, if it leads, what it knows of every member."""
        return statuses.status(self.raft)

    def basic_status(self) -> statuses.BasicStatus:
        """Return this node's own state; cheaper than `status`."""
        return statuses.basic_status(self.raft)
