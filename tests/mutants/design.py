"""The mutants of cases 61 to 85: what was found by reading the design hard."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        61,
        "a snapshot whose last entry this log holds replaces the log, and what was acknowledged behind it",
        (
            Edit(
                "raftstate/core/reconfigure.py",
                "    if log.match_term(metadata.index, metadata.term):\n"
                "        log.commit_to(metadata.index)\n"
                "        return False\n",
                "",
            ),
        ),
        (
            "tests/core/test_reconfigure.py"
            "::test_a_snapshot_within_the_log_commits_up_to_it_and_keeps_the_suffix",
        ),
    ),
    Mutant(
        62,
        "a log ends, to the core that votes by it, before its first damaged record",
        (
            Edit(
                "raftstate/node/startup.py",
                "        self.last_index = log.last_index\n",
                '        damaged = getattr(log, "damaged", ())\n'
                "        self.last_index = (lambda: damaged[0] - 1) if damaged else log.last_index\n",
            ),
        ),
        ("tests/node/test_refill.py::test_a_node_votes_only_for_logs_as_long_as_its_own_was",),
    ),
    Mutant(
        63,
        "a node campaigns before it has applied the membership that is committed",
        (
            Edit(
                "raftstate/core/election.py",
                "not promotable(raft) or _has_unapplied_conf_change(raft):",
                "not promotable(raft):",
            ),
        ),
        ("tests/core/test_election.py::test_no_campaign_before_a_committed_configuration_is_applied",),
    ),
    Mutant(
        64,
        "the log is cut up to what is applied, not up to the last durable checkpoint",
        (
            Edit(
                "raftstate/node/applier.py",
                "        durable_index = self._state.durable_applied_index\n        margin_bytes",
                "        durable_index = self._machine.applied_index\n        margin_bytes",
            ),
        ),
        ("tests/node/test_applier.py::test_the_log_is_not_cut_beyond_a_checkpoint_that_is_not_durable_yet",),
    ),
    Mutant(
        65,
        "answers leave before the transaction that they are of has committed",
        (
            Edit(
                "raftstate/node/applier.py",
                "keys_at_once_max=KEYS_ON_LOOP_MAX\n                )\n",
                "keys_at_once_max=KEYS_ON_LOOP_MAX\n                )\n"
                "                self._answer(work, results)\n",
            ),
            Edit(
                "raftstate/node/applier.py",
                "            self._applied(work, results)\n        synced, self._synced_meanwhile",
                "            self._answer(work, results)\n"
                "            self._applied(work, results)\n        synced, self._synced_meanwhile",
            ),
            Edit(
                "raftstate/node/applier.py",
                "        self._sizes.append((work.entries[-1].index, self._applied_bytes))\n",
                "        self._sizes.append((work.entries[-1].index, self._applied_bytes))\n"
                "        self._applied_since_slice = True\n"
                "        self._tell()\n"
                "        self._sweep_later()\n"
                "        self._checkpoint_if_due()\n\n"
                "    def _answer(self, work: _Work, results: list[EntryResult]) -> None:\n",
            ),
            Edit(
                "raftstate/node/applier.py",
                "            start = end\n"
                "        self._applied_since_slice = True\n"
                "        self._tell()\n"
                "        self._sweep_later()\n"
                "        self._checkpoint_if_due()\n",
                "            start = end\n",
            ),
        ),
        ("tests/node/test_applier.py::test_no_answer_leaves_before_its_transaction_has_committed",),
    ),
    Mutant(
        66,
        "apply trusts that the leader has checked each command",
        (
            Edit("raftstate/machine/machine.py", "batch, checked.faults, None)", "batch, {}, None)"),
            Edit("raftstate/machine/machine.py", "batch, checked.faults, session)", "batch, {}, session)"),
        ),
        ("tests/machine/test_checks.py::test_a_refused_command_is_an_answer_and_the_rest_of_its_batch_runs",),
    ),
    Mutant(
        67,
        "a start takes a log that ends before the state for the one that belongs to it",
        (
            Edit(
                "raftstate/node/startup.py",
                "    except (Compacted, Unavailable):\n",
                "    except Unavailable:\n        return None\n    except Compacted:\n",
            ),
        ),
        (
            "tests/node/test_startup.py::test_a_log_that_ends_before_an_installed_state_begins_anew",
            "tests/node/test_snapshots.py"
            "::test_a_crash_between_the_new_state_and_the_new_log_is_mended_at_the_start",
        ),
    ),
    Mutant(
        68,
        "a leader whose fsync hangs, and that has asked somebody to take over, leads until somebody does",
        (
            Edit(
                "raftstate/node/succession.py",
                "if stalled_ns > LOG_WRITE_STALLS_UNTIL_STEP_DOWN * LOG_WRITE_STALL_NS:",
                "if self._handed_to == NONE and stalled_ns > 4 * LOG_WRITE_STALL_NS:",
            ),
        ),
        (
            "tests/node/test_disk_cluster.py"
            "::test_a_leader_whose_log_write_hangs_and_who_can_t_hand_over_steps_down_in_time",
        ),
    ),
    Mutant(
        69,
        "the lease clock counts a stall like any other time: leases end before their renewals are read",
        (
            Edit(
                "raftstate/node/clock.py",
                "        if elapsed_ns > self.STEP_MS_MAX * 1_000_000:\n"
                "            elapsed_ns = self.STEP_MS_MAX * 1_000_000\n"
                "            self.stalled_ns = now_ns\n",
                "",
            ),
        ),
        (
            "tests/node/test_upkeep.py::"
            "test_no_lease_ends_whose_renewal_waits_in_the_sockets_of_a_cluster_that_stalls_as_a_whole",
            "tests/node/test_upkeep.py::test_after_a_stall_renewals_that_come_within_the_grace_are_in_time",
        ),
    ),
    Mutant(
        71,
        "serials that a batch gives up are cancelled in memory alone, and forgotten by a restart",
        (
            Edit(
                "raftstate/machine/machine.py",
                "StoredAnswers(ran.serials, ran.revisions, cancelled + ran.answers)",
                "StoredAnswers(ran.serials, ran.revisions, ran.answers)",
            ),
            Edit(
                "raftstate/machine/machine.py",
                "cancelled = give_up(session, batch.given_up, keyspace.revision)",
                "give_up(session, batch.given_up, keyspace.revision)",
            ),
        ),
        (
            "tests/machine/test_sessions.py"
            "::test_given_up_serials_are_cancelled_before_the_batch_runs_and_those_with_an_answer_keep_it",
        ),
    ),
    Mutant(
        72,
        "a watch that is up to date goes on behind what an installed state has compacted, with a gap",
        (
            Edit(
                "raftstate/node/watches.py",
                "                    if group.first_revision < compacted:\n",
                "                    if compacted < group.first_revision:\n",
            ),
        ),
        (
            "tests/node/test_watches_replaced.py"
            "::test_a_watch_ends_as_compacted_when_the_new_state_lacks_what_it_was_not_told",
        ),
    ),
    Mutant(
        73,
        "a leader whose digest is the odd one shows nothing, and leads on",
        (
            Edit(
                "raftstate/node/integrity.py",
                'f"{self._reason}; {what}", may_lead=False, may_read=False)',
                'f"{self._reason}; {what}", may_read=False)',
            ),
        ),
        (
            "tests/node/test_integrity.py"
            "::test_an_odd_leader_hands_over_answers_nothing_meanwhile_and_is_rebuilt",
        ),
    ),
    Mutant(
        74,
        "a client that is in use goes on in a forked child, with its parent's session and serials",
        (
            Edit(
                "raftstate/client/fork.py",
                "    for owner in list(_living):\n        owner._forget_parent()\n",
                "    _living.clear()\n",
            ),
        ),
        (
            "tests/client/test_sync_client.py"
            "::test_a_child_forked_in_a_coroutine_has_nothing_of_its_parents_and_opens_no_channel",
        ),
    ),
    Mutant(
        75,
        "unknown fields are looked for at the top of a batch alone",
        (
            Edit(
                "raftstate/machine/command.py",
                "    known = CommandBatch()\n"
                "    known.CopyFrom(batch)\n"
                "    known.DiscardUnknownFields()\n"
                "    return known.ByteSize() != batch.ByteSize()\n",
                "    return len(UnknownFieldSet(batch)) > 0\n",
            ),
        ),
        ("tests/machine/test_checks.py::test_a_refused_command_is_an_answer_and_the_rest_of_its_batch_runs",),
    ),
    Mutant(
        76,
        "the scrub passes over buckets in which it has found no key",
        (
            Edit(
                "raftstate/machine/scrub.py",
                "enumerate(self._sums) if total & SUM_MASK != stored[n]]",
                "enumerate(self._sums) if total and total & SUM_MASK != stored[n]]",
            ),
        ),
        ("tests/machine/test_scrub.py::test_a_key_that_vanished_is_found_whatever_is_written_meanwhile",),
    ),
    Mutant(
        77,
        "the reader of a checkpoint ends as the next one begins, before that is durable",
        (
            Edit(
                "raftstate/store/open_generation.py",
                "        pin = Pin(self.environment, self._data_fd, self._page_bytes, self.path)\n",
                "        pin = Pin(self.environment, self._data_fd, self._page_bytes, self.path)\n"
                "        if self._pin is not None:\n"
                "            self._pin.end()\n"
                "            self._pin = pin\n",
            ),
            Edit(
                "raftstate/store/open_generation.py",
                "        if previous is not None:\n            previous.end()\n",
                "        if previous is not None and previous is not checkpoint.pin:\n"
                "            previous.end()\n",
            ),
        ),
        (
            "tests/store/test_checkpoint.py"
            "::test_no_page_of_a_checkpoint_is_written_to_before_the_next_one_is_durable",
        ),
    ),
    Mutant(
        78,
        "a session is found by its index alone: after a reset of the data that may be a stranger's",
        (
            Edit(
                "raftstate/machine/sessions.py",
                "return session if session is not None and session.id == id else None",
                "return session",
            ),
        ),
        ("tests/machine/test_sessions.py::test_both_parts_of_a_session_id_and_the_cluster_id_are_checked",),
    ),
    Mutant(
        79,
        "a session whose answers are over their size runs nothing, the lowest serial neither",
        (
            Edit(
                "raftstate/machine/batch.py",
                "(run_bytes > room_bytes and serial > floor)",
                "(run_bytes > room_bytes and serial >= floor)",
            ),
        ),
        ("tests/machine/test_sessions.py::test_over_its_bytes_a_session_runs_the_lowest_serial_only",),
    ),
    Mutant(
        80,
        "a node that has forwarded a write sends it again when the link to the leader breaks",
        (
            Edit(
                "raftstate/node/requests.py",
                "        request.item = None\n        request.sent_to = leader\n",
                "        request.sent_to = leader\n",
            ),
            Edit(
                "raftstate/node/requests.py",
                "            self._unknown(\n"
                "                self._forwarded.pop(forward_id),\n"
                '                "the connection to the leader was lost after the write was sent",\n'
                "            )\n",
                "            self._held.append(self._forwarded.pop(forward_id))\n",
            ),
        ),
        (
            "tests/node/test_driver.py::test_a_forwarded_write_whose_link_breaks_is_unknown_and_is_not_sent_again",
        ),
    ),
    Mutant(
        81,
        "the last refusal decides: a copy that was lost before does not count",
        (
            Edit(
                "raftstate/client/ledger.py",
                "unknown = write.lost or code == common_pb2.ERROR_CODE_STALE",
                "unknown = not refuses(error) or code == common_pb2.ERROR_CODE_STALE",
            ),
        ),
        (
            "tests/client/test_exactly_once.py"
            "::test_a_final_refusal_is_definite_only_when_no_earlier_copy_was_lost",
        ),
    ),
    Mutant(
        82,
        "an installer does not add up the buckets in which it has found no key",
        (
            Edit(
                "raftstate/machine/verify.py",
                "enumerate(sums) if total & SUM_MASK != stored[n]]",
                "enumerate(sums) if total and total & SUM_MASK != stored[n]]",
            ),
        ),
        ("tests/store/test_generations.py::test_a_snapshot_of_a_state_that_has_lost_a_row_is_refused",),
    ),
    Mutant(
        83,
        "a start takes a log that is longer than the state for the one that belongs to it",
        (
            Edit(
                "raftstate/node/startup.py",
                "        if term == applied_term:\n",
                "        if term == applied_term or log.last_index() > applied_index:\n",
            ),
        ),
        (
            "tests/node/test_startup.py"
            "::test_a_longer_log_that_conflicts_with_an_installed_state_begins_anew_and_keeps_term_and_vote",
        ),
    ),
    Mutant(
        84,
        "a copy older than the log's boundary is gone over to, and the entries between are passed over",
        (
            Edit(
                "raftstate/node/rebuild.py",
                "        if meta.index < boundary:\n            raise",
                "        if meta.index < 0:\n            raise",
            ),
            Edit(
                "raftstate/node/rebuild.py",
                "        term = self._log.term(meta.index)\n",
                "        term = self._log.term(meta.index) if meta.index >= boundary else meta.term\n",
            ),
            Edit(
                "raftstate/node/rebuild.py",
                "            first = self.applied_index + 1\n",
                "            first = max(self.applied_index + 1, self._log.first_index())\n",
            ),
        ),
        (
            "tests/node/test_rebuild.py::test_a_copy_older_than_the_logs_boundary_is_refused_and_the_state_stays",
        ),
    ),
    Mutant(
        85,
        "a node acknowledges what it appends behind a damaged entry",
        (
            Edit(
                "raftstate/node/driver.py",
                "if self._damaged and response.type is MessageType.APP_RESP and not response.reject:",
                "if response.index in self._damaged and response.type is MessageType.APP_RESP:",
            ),
        ),
        ("tests/node/test_refill.py::test_a_node_acknowledges_nothing_at_or_above_its_first_damaged_entry",),
    ),
)
