"""What the core makes of records that its storage can't read."""

from __future__ import annotations

import random

import pytest

from raftstate.core.config import Config
from raftstate.core.errors import Damaged
from raftstate.core.log import RaftLog
from raftstate.core.rawnode import RawNode
from raftstate.core.replication import broadcast_append
from raftstate.core.roles import Role
from raftstate.core.storage import MemoryStorage
from raftstate.core.types import ConfState, Entry, HardState, Message, MessageType


class Rotten(MemoryStorage):
    """A storage with records that can't be read; of the last one the term is known."""

    def __init__(self, terms: list[int], rotten: set[int], commit: int = 0) -> None:
        super().__init__()
        self.append([Entry(index, term) for index, term in enumerate(terms, 1)])
        self.set_hard_state(HardState(max(terms), 0, commit))
        self.rotten = rotten

    def entries(self, lo: int, hi: int, max_bytes: int) -> list[Entry]:
        found = super().entries(lo, hi, max_bytes)
        for entry in found:
            if entry.index in self.rotten:
                raise Damaged(f"log entry {entry.index} is damaged")
        return found

    def term(self, index: int) -> int:
        if index in self.rotten and index != self.last_index():
            raise Damaged(f"log entry {index} is damaged")
        return super().term(index)


def log_of(terms: list[int], rotten: set[int], commit: int = 0) -> RaftLog:
    log = RaftLog(Rotten(terms, rotten))
    log.commit_to(commit)
    return log


def append(log: RaftLog, index: int, term: int, terms: list[int]) -> int | None:
    entries = [Entry(index + 1 + place, each) for place, each in enumerate(terms)]
    return log.maybe_append(index, term, entries, 0)


def terms_of(log: RaftLog) -> list[int]:
    return [entry.term for entry in log.unstable.entries]


@pytest.mark.case(8)
@pytest.mark.case(61)
def test_unreadable_entries_before_one_that_matches_are_held() -> None:
    log = log_of([1, 1, 1, 1, 1], {2, 3})
    assert append(log, 1, 1, [1, 1, 1]) == 4
    assert log.last_index() == 5
    assert terms_of(log) == []
    # The last one can be told by its term.
    log = log_of([1, 1, 1, 1, 1], {4, 5})
    assert append(log, 3, 1, [1, 1, 1]) == 6
    assert (log.unstable.offset, terms_of(log)) == (6, [1])


def test_unreadable_entries_before_one_that_conflicts_go_with_it() -> None:
    log = log_of([1, 1, 1, 1, 1], {3, 4})
    assert append(log, 2, 1, [2, 2, 2]) == 5
    assert (log.unstable.offset, terms_of(log)) == (3, [2, 2, 2])
    # But what is committed stays, whatever can be read of it.
    log = log_of([1, 1, 1, 1, 1], {3, 4}, commit=3)
    assert append(log, 2, 1, [1, 2, 2]) == 5
    assert (log.unstable.offset, terms_of(log)) == (4, [2, 2])


def test_a_higher_term_than_stands_behind_them_is_a_conflict_too() -> None:
    log = log_of([1, 1, 1, 1, 1], {2, 3})
    assert append(log, 1, 1, [2, 2]) == 3
    assert (log.unstable.offset, log.last_index(), terms_of(log)) == (2, 3, [2, 2])


def test_what_can_not_be_told_changes_nothing() -> None:
    log = log_of([1, 1, 1, 1, 1], {2, 3, 4})
    with pytest.raises(Damaged):
        append(log, 1, 1, [1, 1])
    with pytest.raises(Damaged):
        append(log, 3, 1, [1])
    assert (log.last_index(), terms_of(log)) == (5, [])


@pytest.mark.case(7)
def test_an_unreadable_entry_commits_nothing() -> None:
    log = log_of([1, 1, 1], {2})
    assert not log.maybe_commit(2, 1)
    assert log.maybe_commit(3, 1)


def raw_node(storage: Rotten, applied: int = 0) -> RawNode:
    state = storage.initial_state()[0]
    storage.initial_state = lambda: (state, ConfState(voters=(1, 2, 3)))  # type: ignore[method-assign]
    return RawNode(
        Config(
            id=1,
            storage=storage,
            random=random.Random(1),
            election_ticks=10,
            heartbeat_ticks=1,
            applied=applied,
            async_storage_writes=True,
            max_message_bytes=1 << 20,
        )
    )


def test_a_ready_that_meets_damage_can_be_asked_for_again() -> None:
    node = raw_node(Rotten([1, 1, 1, 1], {3}, commit=4))
    node.step(Message(MessageType.HEARTBEAT, to=1, from_=2, term=1))
    with pytest.raises(Damaged):
        node.ready()
    node.raft.raft_log.readable_to = 2
    ready = node.ready()
    assert [entry.index for entry in ready.committed_entries] == [1, 2]
    append = next(message for message in ready.messages if message.type is MessageType.HEARTBEAT_RESP)
    assert append.to == 2
    assert not node.has_ready()


@pytest.mark.case(13)
def test_a_leader_sends_nothing_in_place_of_what_it_can_not_read() -> None:
    storage = Rotten([1, 1, 1, 1], set(), commit=4)
    node = raw_node(storage, applied=4)
    raft = node.raft
    raft.become_candidate()
    raft.become_leader()
    node.ready()
    storage.rotten = {3}
    raft.tracker.progress[2].next = 2
    raft.tracker.progress[3].next = 5
    for peer in (2, 3):
        raft.tracker.progress[peer].match = 0
    broadcast_append(raft)
    assert raft.state is Role.LEADER
    assert [(message.to, message.index) for message in raft.messages] == [(3, 4)]
    assert raft.tracker.progress[2].next == 2
