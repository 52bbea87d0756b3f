"""The mutants of cases 47 to 60: LMDB and the disk."""

from __future__ import annotations

from tests.mutants.mutant import Edit, Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        47,
        "the log's commits return before their meta page is synced: a power cut takes the last one",
        (
            Edit(
                "raftstate/store/log.py",
                "return lmdb.open(str(path), map_size=map_bytes, create=create, mode=0o600)",
                "return lmdb.open(str(path), map_size=map_bytes, create=create, mode=0o600, metasync=False)",
            ),
        ),
        (
            "tests/store/test_power_cut.py::test_every_write_of_the_log_that_has_returned_survives",
            "tests/store/test_log_crash.py::test_data_and_meta_page_are_in_the_file_before_a_write_returns",
        ),
    ),
    Mutant(
        48,
        "a checkpoint asks LMDB for a sync that does nothing where commits are not synced",
        (Edit("raftstate/store/checkpoint.py", "environment.sync(True)", "environment.sync()"),),
        (
            "tests/store/test_power_cut.py::test_the_state_goes_back_to_its_checkpoint",
            "tests/store/test_checkpoint.py::test_the_sync_of_a_checkpoint_is_forced",
        ),
    ),
    Mutant(
        49,
        "the state is written through its map",
        (
            Edit(
                "raftstate/store/start.py",
                "        sync=False,\n        readahead=False,\n",
                "        sync=False,\n        writemap=True,\n        readahead=False,\n",
            ),
        ),
        ("tests/test_tidy.py::test_no_durability_flag_is_weakened_but_sync_of_the_state_in_one_place",),
    ),
    Mutant(
        50,
        "the checksum of a log record covers its head alone: a torn payload is served",
        (
            Edit(
                "raftstate/store/log_format.py",
                "    digest = xxhash.xxh3_64(key + head)\n    digest.update(entry.data)\n",
                "    digest = xxhash.xxh3_64(key + head)\n",
            ),
            Edit(
                "raftstate/store/log_format.py",
                "digest.update(value[_CHECKSUM_BYTES:])",
                "digest.update(value[_CHECKSUM_BYTES:_PAYLOAD_AT])",
            ),
        ),
        ("tests/store/test_log_damage.py::test_a_damaged_record_is_named_and_not_served",),
    ),
    Mutant(
        51,
        "a group that the disk has no room for is reported as one that needs no transaction",
        (
            Edit(
                "raftstate/store/log_writer.py",
                "if not self._release() and not self._wait_for_room():\n                    raise\n",
                "if not self._release():\n                    return None\n",
            ),
        ),
        ("tests/store/test_log_writer.py::test_what_a_full_disk_put_off_is_on_it_once_it_is_reported",),
    ),
    Mutant(
        52,
        "an EIO that LMDB says where the disk has no room is taken for a failed disk",
        (
            Edit(
                "raftstate/store/open_generation.py",
                'if failure.detail.get("errno") == errno.EIO and self.disk_free_bytes() < wanted_bytes:',
                'if failure.detail.get("errno") == errno.ENOSPC and self.disk_free_bytes() < wanted_bytes:',
            ),
        ),
        ("tests/store/test_state.py::test_full_disk_fails_the_commit_and_not_the_state",),
    ),
    Mutant(
        53,
        "a log goes on after a failed commit, as soon as the next one succeeds",
        (
            Edit(
                "raftstate/store/log.py",
                '        self._failure = failure\n        if failure.detail["errno"] == errno.EIO:',
                '        if failure.detail["errno"] == errno.EIO:',
            ),
        ),
        ("tests/store/test_log.py::test_after_a_failed_commit_nothing_is_written_any_more",),
    ),
    Mutant(
        54,
        "LMDB's panic is an error like any other: no word of the meta page, and the file is trusted",
        (
            Edit(
                "raftstate/store/files.py",
                "elif isinstance(error, lmdb.PanicError):",
                "elif isinstance(error, lmdb.PanicError) and code == errno.EIO:",
            ),
        ),
        ("tests/store/test_log.py::test_a_log_whose_meta_page_could_not_be_written_says_so_and_stops",),
    ),
    Mutant(
        55,
        "the slots of dead readers are looked at once, at the start",
        (
            Edit(
                "raftstate/node/disk.py",
                "if self._looks % READERS_LOOKS == 0:",
                "if self._looks == 0:",
            ),
        ),
        ("tests/node/test_disk_watch.py::test_a_reader_that_dies_later_is_cleared_by_a_later_look",),
    ),
    Mutant(
        56,
        "a change is believed if it names the checksum that the index does, whatever its bytes are",
        (
            Edit(
                "raftstate/machine/layout.py",
                "    body = unseal(Table.CHANGES, row_key, row)\n    kind, key_bytes,",
                "    body = row[CHECKSUM_BYTES:]\n    kind, key_bytes,",
            ),
        ),
        ("tests/machine/test_rows.py::test_a_damaged_row_is_found_by_every_read_of_it",),
    ),
    Mutant(
        57,
        "apply does not wait for a checkpoint that is in progress, however much was dirtied",
        (
            Edit(
                "raftstate/store/checkpoint.py",
                "return self._store.dirtied_bytes > WAIT_BYTES",
                "return self._in_progress is None and self._store.dirtied_bytes > WAIT_BYTES",
            ),
        ),
        ("tests/store/test_checkpoint.py::test_apply_waits_while_too_much_is_dirtied_and_not_yet_durable",),
    ),
    Mutant(
        58,
        "a read that finds no reader slot stops the state",
        (
            Edit(
                "raftstate/store/open_generation.py",
                '            raise lmdb_failure("beginning to read", self.path, error) from error',
                '            raise self._write_failure("beginning to read", error, 0) from error',
            ),
        ),
        ("tests/store/test_state.py::test_running_out_of_reader_slots_fails_that_read_alone",),
    ),
    Mutant(
        59,
        "a data directory of another cluster is taken if its node and incarnation fit",
        (
            Edit(
                "raftstate/store/directory.py",
                "if found.cluster_id != expected.cluster_id:",
                "if found.cluster_id != expected.cluster_id and found.node_id != expected.node_id:",
            ),
        ),
        ("tests/store/test_directory.py::test_another_clusters_directory_is_refused",),
    ),
    Mutant(
        60,
        "a snapshot of the next format is read as if it were of this one",
        (
            Edit(
                "raftstate/store/snapshot_format.py",
                "            if version > FORMAT:\n",
                "            if version > FORMAT + 1:\n",
            ),
        ),
        ("tests/store/test_generations.py::test_a_newer_format_is_refused",),
    ),
)
