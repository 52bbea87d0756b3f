"""Mutants of the cases 1 to 14, the log and the vote."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        case=1,
        what="a vote for another node leaves before term and vote are written",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "        if kind in _AFTER_APPEND_TYPES:\n",
                "        if kind in _AFTER_APPEND_TYPES and (\n"
                "            kind is not MessageType.VOTE_RESP or message.to == self.id\n"
                "        ):\n",
            ),
        ),
        caught_by=(
            "tests/core/test_election.py::"
            "test_a_vote_leaves_only_after_its_write_which_holds_term_and_vote_together",
        ),
    ),
    Mutant(
        case=2,
        what="a new term is written first, and the vote given in it with the next write",
        edits=(
            Edit(
                "raftstate/core/rawnode.py",
                "            ready.hard_state = HardState(raft.term, raft.vote, log.committed)\n",
                "            vote = raft.vote if raft.term == self._hard_state.term else NONE\n"
                "            ready.hard_state = HardState(raft.term, vote, log.committed)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_election.py::"
            "test_a_vote_leaves_only_after_its_write_which_holds_term_and_vote_together",
        ),
    ),
    Mutant(
        case=3,
        what="a sole voter commits when it appends, and applies what is still being written (etcd#14370)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "        self.send(Message(MessageType.APP_RESP, to=self.id, index=last))\n",
                "        self.send(Message(MessageType.APP_RESP, to=self.id, index=last))\n"
                "        if self.tracker.is_singleton():\n"
                "            self.tracker.progress[self.id].maybe_update(last)\n"
                "            self.raft_log.maybe_commit(last, term)\n",
            ),
            Edit(
                "raftstate/core/log.py",
                "min(self.committed, self.unstable.offset - 1)\n",
                "min(self.committed, self.unstable.offset_in_progress - 1)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_a_single_node_commits_its_first_entry_and_a_proposal_only_when_each_is_durable",
        ),
    ),
    Mutant(
        case=4,
        what="a new leader counts itself for its first entry as soon as that is appended (openraft#1125)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "    def _change_role",
                "        own.maybe_update(self.raft_log.last_index())\n"
                "        self.raft_log.maybe_commit(self.tracker.committed(), self.term)\n\n"
                "    def _change_role",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_a_new_leader_does_not_count_its_first_entry_before_it_is_durable",
        ),
    ),
    Mutant(
        case=5,
        what="a leader counts its own copy of a proposal when it appends it, not when it has it on disk",
        edits=(
            Edit(
                "raftstate/core/leader.py",
                '            "propose again later"\n        )\n    replication.broadcast_append(raft)\n',
                '            "propose again later"\n        )\n'
                "    raft.tracker.progress[raft.id].maybe_update(raft.raft_log.last_index())\n"
                "    replication.maybe_commit(raft)\n"
                "    replication.broadcast_append(raft)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::test_a_leader_does_not_count_its_own_copy_before_it_is_durable",
        ),
    ),
    Mutant(
        case=6,
        what="the log's view in memory is that of a write that failed (hashicorp/raft#429)",
        edits=(
            Edit(
                "raftstate/store/log.py",
                "        with self._transaction() as txn:\n            if entries:\n"
                "                _delete(txn, entries[0].index, self._meta.last_index)\n",
                "        before, self._meta, self._hard_state = self._meta, meta, target\n"
                "        with self._transaction() as txn:\n            if entries:\n"
                "                _delete(txn, entries[0].index, before.last_index)\n",
            ),
        ),
        caught_by=("tests/store/test_log.py::test_a_write_that_failed_is_not_gone_by",),
    ),
    Mutant(
        case=7,
        what="what a quorum holds is committed, whatever its term (Raft paper, figure 8)",
        edits=(
            Edit(
                "raftstate/core/log.py",
                "bool(term) and index > self.committed and self.match_term(index, term)\n",
                "bool(term) and index > self.committed\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_an_entry_of_an_earlier_term_commits_only_with_one_of_the_present_term",
        ),
    ),
    Mutant(
        case=8,
        what="an append replaces everything from its first entry on, also what matches (databend#3914)",
        edits=(
            Edit(
                "raftstate/core/log.py",
                "        conflict = self._find_conflict(entries)\n",
                "        conflict = self._find_conflict(entries)\n"
                "        if not conflict and entries and entries[0].index > self.committed:\n"
                "            conflict = entries[0].index\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::test_a_repeated_or_late_append_leaves_the_suffix_behind_it",
        ),
    ),
    Mutant(
        case=9,
        what="a follower commits up to its own last entry, also beyond what the append verified",
        edits=(
            Edit(
                "raftstate/core/log.py",
                "        self.commit_to(min(committed, last))\n",
                "        self.commit_to(min(committed, self.last_index()))\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_the_commit_index_goes_no_further_than_the_last_entry_this_append_verified",
        ),
    ),
    Mutant(
        case=10,
        what="a follower acknowledges its last index, also behind what the append verified",
        edits=(
            Edit(
                "raftstate/core/follower.py",
                "to=message.from_, index=last))\n",
                "to=message.from_, index=log.last_index()))\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_what_is_acknowledged_is_what_the_append_verified_and_not_the_suffix_behind_it",
        ),
    ),
    Mutant(
        case=11,
        what="a write's report carries no term, so that one of an earlier term is believed (ABA race)",
        edits=(
            Edit(
                "raftstate/core/ready.py",
                "        from_=LOCAL_APPEND_THREAD,\n        term=raft.term,\n",
                "        from_=LOCAL_APPEND_THREAD,\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::test_a_report_of_a_write_from_an_earlier_term_is_not_believed",
        ),
    ),
    Mutant(
        case=12,
        what="who waits for an index is answered by whatever entry another leader committed there",
        edits=(
            Edit(
                "raftstate/node/requests.py",
                "            elif term == entry.term:\n"
                "                for request, result in zip(requests, entry.items, strict=True):\n",
                "            elif entry.items:\n"
                "                for request, result in zip(requests, entry.items, strict=False):\n",
            ),
        ),
        caught_by=(
            "tests/node/test_driver.py::test_a_write_whose_index_another_leader_filled_was_never_applied",
        ),
    ),
    Mutant(
        case=13,
        what="a leader leaves out the entry that it can't read, and sends those behind it (openraft#1795)",
        edits=(
            Edit(
                "raftstate/core/replication.py",
                "            entries = log.entries_from(progress.next, raft.max_message_bytes)\n",
                "            try:\n"
                "                entries = log.entries_from(progress.next, raft.max_message_bytes)\n"
                "            except (Unavailable, Damaged):\n"
                "                entries = log.entries_from(progress.next + 1, raft.max_message_bytes)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_a_leader_that_cannot_read_its_own_log_sends_nothing_and_resumes_later",
        ),
    ),
    Mutant(
        case=14,
        what="where two logs begin to agree is searched entry by entry, not term by term",
        edits=(
            Edit(
                "raftstate/core/log.py",
                "            if our_term <= term:\n",
                "            if our_term <= term or guess < index:\n",
            ),
        ),
        caught_by=(
            "tests/core/test_replication.py::"
            "test_a_follower_with_a_long_conflicting_tail_catches_up_in_few_rounds",
        ),
    ),
)
