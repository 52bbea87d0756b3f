"""Mutants of the cases 24 to 35, elections and reads."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        case=24,
        what="a pre-vote of a lower term is ignored: who is ahead in log never learns the term (etcd#8243)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                """\
        elif kind is MessageType.PRE_VOTE:
            # A candidate behind in term but ahead in log must learn the term, or neither side would ever win.
            self.send(Message(MessageType.PRE_VOTE_RESP, to=message.from_, term=self.term, reject=True))
""",
                "",
            ),
        ),
        caught_by=(
            "tests/core/test_election.py::test_a_pre_vote_of_a_lower_term_is_refused_with_the_higher_one",
        ),
    ),
    Mutant(
        case=25,
        what="with pre-vote an older term's leader is not answered, and a newer term locks out (etcd#8501)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "        if (self.check_quorum or self.pre_vote) and (\n",
                "        if (self.check_quorum and not self.pre_vote) and (\n",
            ),
        ),
        caught_by=("tests/core/test_election.py::test_with_pre_vote_an_older_leader_is_told_the_newer_term",),
    ),
    Mutant(
        case=26,
        what="a pre-candidate keeps its leader, and refuses those who would take its place (etcd#9586)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                """\
        self._change_role(Role.PRE_CANDIDATE)
        self.tracker.reset_votes()
        self.lead = NONE
""",
                """\
        self._change_role(Role.PRE_CANDIDATE)
        self.tracker.reset_votes()
""",
            ),
        ),
        caught_by=("tests/core/test_election.py::test_a_pre_candidate_has_no_leader_any_more",),
    ),
    Mutant(
        case=27,
        what="whoever was heard from once counts as active for ever: a leader that nobody answers goes on",
        edits=(
            Edit(
                "raftstate/core/leader.py",
                """\
    for node_id in raft.peers:
        raft.tracker.progress[node_id].recent_active = False
    return True
""",
                "    return True\n",
            ),
        ),
        caught_by=("tests/core/test_election.py::test_a_leader_that_hears_from_no_quorum_steps_down",),
    ),
    Mutant(
        case=28,
        what="a vote that was refused puts the election off: who can't win keeps others from standing",
        edits=(
            Edit(
                "raftstate/core/election.py",
                "        raft.send(Message(response, to=message.from_, term=raft.term, reject=True))\n",
                """\
        raft.election_elapsed = 0
        raft.send(Message(response, to=message.from_, term=raft.term, reject=True))
""",
            ),
        ),
        caught_by=("tests/core/test_election.py::test_nothing_else_puts_the_election_off",),
    ),
    Mutant(
        case=29,
        what="a transfer of leadership that does not finish is never given up: no more writes",
        edits=(
            Edit(
                "raftstate/core/leader.py",
                """\
        # The transfer had an election timeout to finish; from here on proposals are taken again.
        raft.lead_transferee = NONE
""",
                "",
            ),
        ),
        caught_by=(
            "tests/node/test_driver.py"
            "::test_a_transfer_to_a_node_that_does_not_answer_is_given_up_and_writes_go_on",
        ),
    ),
    Mutant(
        case=30,
        what="a new leader gives read indexes before it has committed in its own term (etcd#7331)",
        edits=(
            Edit(
                "raftstate/core/reads.py",
                """\
    log = raft.raft_log
    if log.term_or_zero(log.committed) == raft.term:
        _begin(raft, message)
    else:
        # The commit index of a new leader may lag behind what its predecessors acknowledged, even if it is
        # the only voter: a change of the commit index alone is not made durable at once (Raft thesis, 6.4).
        raft.postponed_reads.append(message)
""",
                "    _begin(raft, message)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_reads.py::test_a_new_leader_answers_no_read_before_it_committed_in_its_term",
            "tests/core/test_reads.py::test_a_single_node_answers_no_read_before_it_committed_in_its_term",
        ),
    ),
    Mutant(
        case=31,
        what="a round that is asked again keeps its context: a late answer confirms newer reads (etcd#20418)",
        edits=(
            Edit(
                "raftstate/node/reads.py",
                """\
        self._sequence += 1
        context =\
""",
                "        context =",
            ),
            Edit(
                "raftstate/node/reads.py",
                """\
                self._round = None
                self._confirmed.append((state.index, round_))
""",
                """\
                self._round = None
                self._sequence += 1
                self._confirmed.append((state.index, round_))
""",
            ),
        ),
        caught_by=(
            "tests/node/test_reads.py"
            "::test_a_late_answer_to_a_round_that_was_asked_again_confirms_no_read_that_began_meanwhile",
        ),
    ),
    Mutant(
        case=32,
        what="a leader answers its own clients' reads without asking whether it still leads (etcd#741)",
        edits=(
            Edit(
                "raftstate/core/reads.py",
                """\
    committed = raft.raft_log.committed
    if raft.tracker.is_singleton() or raft.read_only.option is ReadOnlyOption.LEASE_BASED:
""",
                """\
    committed = raft.raft_log.committed
    is_local = message.from_ in (NONE, raft.id)
    if is_local or raft.tracker.is_singleton() or raft.read_only.option is ReadOnlyOption.LEASE_BASED:
""",
            ),
        ),
        caught_by=(
            "tests/core/test_reads.py::test_a_leader_that_was_cut_off_and_replaced_answers_no_read",
            "tests/node/test_driver.py::test_an_isolated_leader_confirms_no_read",
            "tests/node/test_driver.py"
            "::test_a_leader_that_was_paused_serves_nothing_older_than_its_successor_has_acknowledged",
        ),
    ),
    Mutant(
        case=33,
        what="reads are confirmed by the leader's lease, which is right only while all clocks run alike",
        edits=(
            Edit(
                "raftstate/core/config.py",
                "    read_only: ReadOnlyOption = ReadOnlyOption.SAFE\n",
                "    read_only: ReadOnlyOption = ReadOnlyOption.LEASE_BASED\n",
            ),
        ),
        caught_by=(
            "tests/core/test_lease_reads.py"
            "::test_the_product_confirms_reads_by_a_round_and_has_no_setting_for_anything_else",
        ),
    ),
    Mutant(
        case=34,
        what="a node that starts takes what its log knows to be committed for what its state has applied",
        edits=(
            Edit(
                "raftstate/node/driver.py",
                "        self.applied_index = raw.raft.raft_log.applied\n",
                "        self.applied_index = raw.raft.raft_log.committed\n",
            ),
        ),
        caught_by=(
            "tests/node/test_reads.py"
            "::test_a_restarted_node_serves_nothing_before_it_has_caught_up_with_what_it_had_acknowledged",
        ),
    ),
)
