"""Mutants of the cases 36 to 46, clients and snapshots."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        case=36,
        what="the answers of a session are kept in memory alone: after a restart a retry is run again",
        edits=(
            Edit(
                "raftstate/machine/sessions.py",
                """\
        session.adopt(row_key, row, answers)
        self._write(row_key, row)

    def erase(
""",
                """\
        session.adopt(row_key, row, answers)

    def erase(
""",
            ),
        ),
        caught_by=(
            "tests/machine/test_sessions.py"
            "::test_a_retried_write_is_applied_once_and_answered_as_the_first_time",
        ),
    ),
    Mutant(
        case=37,
        what="a connection that breaks in mid-write counts as a write that failed, with clients and nodes",
        edits=(
            Edit(
                "raftstate/client/ledger.py",
                "            write.batch = None\n            write.lost = True\n",
                "            write.batch = None\n",
            ),
            Edit(
                "raftstate/node/requests.py",
                """\
            self._unknown(
                self._forwarded.pop(forward_id),
                "the connection to the leader was lost after the write was sent",
            )
""",
                """\
            message = "the connection to the leader was lost after the write was sent"
            fault = Fault(Code.NO_LEADER, message)
            self._forwarded.pop(forward_id).answer(Rejected(fault, applied_never=True))
""",
            ),
        ),
        caught_by=(
            "tests/client/test_exactly_once.py"
            "::test_a_deadline_is_definite_only_when_every_copy_sent_was_refused",
            "tests/node/test_driver.py"
            "::test_a_forwarded_write_whose_link_breaks_is_unknown_and_is_not_sent_again",
        ),
    ),
    Mutant(
        case=38,
        what="the batch of a session that was evicted is run as one without a session",
        edits=(
            Edit(
                "raftstate/machine/machine.py",
                """\
        if not batch.HasField("session"):
            result, _ = run_batch(keyspace, place, batch, checked.faults, None)
            self._erase(keyspace, index)
            return result
        session = self._find(SessionId(batch.session.index, batch.session.nonce))
        if isinstance(session, Fault):
            return session
""",
                """\
        session = self._sessions.find(SessionId(batch.session.index, batch.session.nonce))
        if session is None:
            result, _ = run_batch(keyspace, place, batch, checked.faults, None)
            self._erase(keyspace, index)
            return result
""",
            ),
        ),
        caught_by=(
            "tests/machine/test_sessions.py::test_an_expired_session_is_an_error_and_its_commands_are_not_run",
        ),
    ),
    Mutant(
        case=39,
        what="entries behind a snapshot are applied before its state is adopted: those between are missing",
        edits=(
            Edit(
                "raftstate/node/installs.py",
                """\
        if self._waiting is None:
            return False
        self._waiting.append(responses)
        return True
""",
                "        return False\n",
            ),
        ),
        caught_by=(
            "tests/node/test_snapshots.py"
            "::test_what_follows_a_snapshot_is_applied_to_its_state_however_late_that_is_adopted",
        ),
    ),
    Mutant(
        case=40,
        what="CURRENT names a new state before its directory is durable: after a power cut it may be gone",
        edits=(
            Edit("raftstate/store/snapshot.py", "        fsync_directory(self._opened.path.parent)\n", ""),
            Edit("raftstate/store/generation.py", "        fsync_directory(self.data_directory)\n", ""),
        ),
        caught_by=(
            "tests/store/test_install_crash.py"
            "::test_the_directory_of_a_new_state_is_durable_before_current_names_it",
            "tests/store/test_install_crash.py"
            "::test_a_crash_at_any_step_of_an_install_leaves_the_old_or_the_new[0]",
        ),
    ),
    Mutant(
        case=41,
        what="a snapshot that comes while another is being installed takes its place",
        edits=(
            Edit(
                "raftstate/node/snapshot_receiver.py",
                """\
        if incoming.phase is _Phase.PULLING:
            self._give_up(incoming, "another one was offered", answer=False)
            return True
        self._answer(sender, offer, "an earlier one is being installed", remember=False)
        return False
""",
                """\
        self._give_up(incoming, "another one was offered", answer=False)
        return True
""",
            ),
        ),
        caught_by=(
            "tests/node/test_snapshots.py"
            "::test_a_second_snapshot_while_the_first_is_being_installed_waits_for_it",
        ),
    ),
    Mutant(
        case=42,
        what="the checksum of a snapshot's block is not compared with the bytes that arrived",
        edits=(
            Edit(
                "raftstate/store/snapshot_format.py",
                """\
        if xxh3_64_intdigest(stored) != checksum:
            raise DataLossError(f"block {self._blocks} of a snapshot is damaged: its checksum does not match")
""",
                "",
            ),
        ),
        caught_by=("tests/store/test_snapshot_format.py::test_every_flipped_bit_is_noticed",),
    ),
    Mutant(
        case=43,
        what="snapshots are installed without a look at the commit index: an older one takes back state",
        edits=(
            Edit(
                "raftstate/node/snapshot_receiver.py",
                "        return metadata.index > raft_log.committed and not raft_log.match_term",
                "        return not raft_log.match_term",
            ),
            Edit(
                "raftstate/core/reconfigure.py",
                """\
    if metadata.index <= log.committed:
        return False
    if raft.state is not Role.FOLLOWER:
""",
                "    if raft.state is not Role.FOLLOWER:\n",
            ),
        ),
        caught_by=(
            "tests/core/test_reconfigure.py::test_a_snapshot_older_than_the_log_s_boundary_is_ignored",
            "tests/node/test_snapshots.py"
            "::test_an_older_snapshot_is_answered_with_what_is_committed_and_no_bytes_travel",
        ),
    ),
    Mutant(
        case=44,
        what="a node that goes on with a snapshot's state keeps the sessions of its own",
        edits=(
            Edit(
                "raftstate/machine/machine.py",
                """\
        self.lose_sum_changes()
        self.load(tables)
""",
                """\
        self.lose_sum_changes()
        sessions = self._sessions
        self.load(tables)
        self._sessions = sessions
""",
            ),
        ),
        caught_by=(
            "tests/node/test_snapshots.py"
            "::test_sessions_and_members_come_with_a_snapshot_and_those_who_wait_for_its_index_go_on",
        ),
    ),
    Mutant(
        case=45,
        what="the log is not kept for a snapshot on its way: who installed it needs the next (RATIS-1305)",
        edits=(
            Edit(
                "raftstate/node/snapshots.py",
                "        needed = (self.sender.log_needed_from(), self.own.log_needed_from())\n",
                "        needed: tuple[int | None, ...] = ()\n",
            ),
        ),
        caught_by=(
            "tests/node/test_snapshots.py"
            "::test_the_log_is_kept_for_a_follower_that_installs_while_others_write",
        ),
    ),
    Mutant(
        case=46,
        what="the applied index outlives an aborted transaction: what was in it is passed over (etcd#13766)",
        edits=(
            Edit(
                "raftstate/machine/machine.py",
                """\
        self._sum_changes: SumChanges | None = None
        self.load(tables)
""",
                """\
        self._sum_changes: SumChanges | None = None
        self.applied_index = 0
        self.load(tables)
""",
            ),
            Edit(
                "raftstate/machine/machine.py",
                "        self.applied_index = meta.applied_index\n",
                "        self.applied_index = max(self.applied_index, meta.applied_index)\n",
            ),
        ),
        caught_by=(
            "tests/machine/test_apply.py::test_the_applied_index_is_in_the_transaction_that_applied_it",
            "tests/machine/test_apply.py::test_after_an_abort_at_any_write_the_same_entries_give_the_same_again",
        ),
    ),
)
