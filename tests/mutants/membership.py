"""Mutants of the cases 15 to 23, changes of the membership."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        case=15,
        what="a new leader begins a membership change before it has committed anything (Ongaro 2015)",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "        self.pending_conf_index = self.raft_log.last_index()\n",
                "",
            ),
            Edit(
                "raftstate/node/membership.py",
                "        if raft_log.term_or_zero(raft_log.applied) != raft.term:\n",
                "        if raft_log.last_entry_id().term != raft.term:\n",
            ),
        ),
        caught_by=(
            "tests/core/test_reconfigure.py::test_no_change_while_a_new_leader_has_earlier_entries_to_apply",
            "tests/node/test_membership.py::"
            "test_no_change_begins_before_the_leader_has_committed_an_entry_of_its_term",
        ),
    ),
    Mutant(
        case=16,
        what="nobody looks whether another membership change is under way (as in pysyncobj)",
        edits=(
            Edit(
                "raftstate/core/leader.py",
                "        pending = raft.pending_conf_index > raft.raft_log.applied\n",
                "        pending = False\n",
            ),
            Edit(
                "raftstate/node/membership.py",
                "        if raft.pending_conf_index > raft_log.applied or raft.tracker.config.joint:\n",
                "        if raft.tracker.config.joint:\n",
            ),
        ),
        caught_by=(
            "tests/core/test_reconfigure.py::test_a_second_change_is_refused_until_the_first_is_applied",
        ),
    ),
    Mutant(
        case=17,
        what="a leader goes by a configuration as soon as it has appended it",
        edits=(
            Edit(
                "raftstate/core/leader.py",
                "from raftstate.core import reads, replication\n",
                "from raftstate.core import reads, reconfigure, replication\n",
            ),
            Edit(
                "raftstate/core/leader.py",
                '            "propose again later"\n        )\n    replication.broadcast_append(raft)\n',
                '            "propose again later"\n        )\n'
                "    for entry in entries:\n"
                "        if entry.type is not EntryType.NORMAL:\n"
                "            reconfigure.apply_conf_change(raft, decode_conf_change(entry))\n"
                "    replication.broadcast_append(raft)\n",
            ),
        ),
        caught_by=(
            "tests/core/test_reconfigure.py::"
            "test_a_configuration_acts_when_it_is_applied_and_not_when_it_is_appended",
            "tests/core/test_reconfigure.py::test_a_change_that_was_truncated_never_acted",
        ),
    ),
    Mutant(
        case=18,
        what="followers that hear their leader consider whoever asks for a vote in a higher term",
        edits=(
            Edit(
                "raftstate/core/raft.py",
                "            and self.election_elapsed < self.election_ticks\n",
                "            and self.election_elapsed < 0\n",
            ),
        ),
        caught_by=(
            "tests/core/test_election.py::"
            "test_a_removed_node_does_not_disturb_followers_that_hear_their_leader",
        ),
    ),
    Mutant(
        case=19,
        what="what a node acknowledged before its disk was wiped counts for its replacement",
        edits=(
            Edit(
                "raftstate/node/membership.py",
                "            progress = self._raw.raft.tracker.progress.get(id)\n"
                "            if progress is not None and progress.is_learner:\n"
                "                self._raw.restart_progress(id)\n",
                "",
            ),
        ),
        caught_by=(
            "tests/node/test_membership.py::"
            "test_a_wiped_node_comes_back_as_a_new_incarnation_and_votes_when_it_has_caught_up",
        ),
    ),
    Mutant(
        case=20,
        what="a leader that removed itself goes on counting itself",
        edits=(
            Edit(
                "raftstate/core/reconfigure.py",
                "    raft.tracker.install(config, progress)\n    raft.peers",
                "    if raft.state is not Role.LEADER or raft.id in progress:\n"
                "        raft.tracker.install(config, progress)\n    raft.peers",
            ),
        ),
        caught_by=(
            "tests/core/test_reconfigure.py::"
            "test_a_leader_removes_itself_under_the_old_configuration_its_own_vote_included",
        ),
    ),
    Mutant(
        case=21,
        what="a learner is promoted once entries are streamed to it, however far behind it is",
        edits=(
            Edit(
                "raftstate/node/member_changes.py",
                "in view.replicating and match and view.commit_index - match <= PROMOTE_LAG_MAX:\n",
                "in view.replicating and match:\n",
            ),
        ),
        caught_by=("tests/node/test_member_changes.py",),
    ),
    Mutant(
        case=22,
        what="whether enough voters would be left is judged by who is a member, not by who answers",
        edits=(
            Edit(
                "raftstate/node/member_changes.py",
                "    healthy = set(voters) & view.healthy\n",
                "    healthy = set(voters)\n",
            ),
        ),
        caught_by=("tests/node/test_member_changes.py",),
    ),
    Mutant(
        case=23,
        what="a member that is sent a snapshot keeps the configuration it had (nats-server#7545)",
        edits=(
            Edit(
                "raftstate/core/reconfigure.py",
                "    log.restore(snapshot)\n    restore_configuration(raft, conf_state)\n",
                "    log.restore(snapshot)\n"
                "    if not raft.tracker.voter_nodes():\n"
                "        restore_configuration(raft, conf_state)\n",
            ),
        ),
        caught_by=(
            "tests/node/test_membership.py::"
            "test_a_member_that_was_cut_off_while_the_members_changed_goes_over_with_the_snapshot",
        ),
    ),
)
