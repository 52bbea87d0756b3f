"""Every flipped bit in the log's file is noticed, or touches nothing that means anything."""

from __future__ import annotations

import os
import random
import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from raftstate.core.errors import Damaged
from raftstate.core.types import Entry, HardState
from raftstate.errors import DataLossError, StorageError
from raftstate.store import log_format
from raftstate.store.log import LogStore
from raftstate.store.log_check import check_data_file, check_rows, page_checksum
from raftstate.store.log_format import MetaRow
from raftstate.store.meta_page import META_BYTES, read_meta_pages
from raftstate.store.page_check import check_pages
from tests.store.log_helpers import MAP_BYTES, NO_LIMIT, content, entry, new_log, put, reopen, run

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def damage(path: Path, old: bytes, new: bytes) -> None:
    """Replace `old`, which must stand in the log's file, by `new`, wherever it stands."""
    file = path / "data.mdb"
    held = file.read_bytes()
    assert old in held
    file.write_bytes(held.replace(old, new))


def closed_log(path: Path, entries: list[Entry], hard_state: HardState) -> None:
    log = new_log(path)
    put(log, entries, hard_state)
    log.close()


def test_records_before_the_window_are_verified_at_an_opening_and_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    entries = [entry(index, data=b"<%02d>" % index + b"x" * 10_000) for index in range(1, 41)]
    closed_log(path, entries, HardState(1, 1, 40))
    log = reopen(path, window_bytes=50_000)
    assert log.damaged == ()
    assert 37 <= log._window.first_index <= 39
    assert log.entries(1, 41, NO_LIMIT) == entries
    log.close()
    for index, window_from in ((3, 37), (39, 40), (40, 41)):
        damage(path, b"<%02d>" % index, b"<??>")
        log = reopen(path, window_bytes=50_000)
        assert index in log.damaged
        assert list(log.damaged) == sorted(log.damaged)
        assert log._window.first_index >= window_from
        assert log._window.next_index == 41
        log.close()


@pytest.mark.case(50)
def test_a_damaged_record_is_named_and_not_served(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 10)], HardState(1, 1, 9))
    damage(path, b"payload 7", b"paYload 7")
    damage(path, b"payload 4", b"paYload 4")
    log = reopen(path)
    assert log.first_damaged_index == 4
    assert log.last_index() == 9
    for lo, hi in ((4, 5), (1, 10), (7, 9)):
        with pytest.raises(DataLossError, match=rf"log entry {4 if lo < 5 else 7} is damaged"):
            log.entries(lo, hi, NO_LIMIT)
    with pytest.raises(DataLossError, match="log entry 4 is damaged"):
        log.term(4)
    assert [e.data for e in log.entries(8, 10, NO_LIMIT)] == [b"payload 8", b"payload 9"]
    assert [e.data for e in log.entries(1, 4, NO_LIMIT)] == [b"payload 1", b"payload 2", b"payload 3"]
    log.close()


@pytest.mark.case(62)
def test_a_damaged_last_record_keeps_its_index_and_term(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(1), entry(2, term=5, data=b"the last one")], HardState(5, 1, 1))
    damage(path, b"the last one", b"the last 0ne")
    log = reopen(path)
    assert (log.last_index(), log.term(2), log.first_damaged_index) == (2, 5, 2)
    with pytest.raises(DataLossError, match="log entry 2 is damaged"):
        log.entries(2, 3, NO_LIMIT)
    log.close()


@pytest.mark.case(85)
def test_a_log_with_a_damaged_record_goes_on_around_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 4)], HardState(1, 1, 1))
    damage(path, b"payload 2", b"payload 3")
    log = reopen(path)
    put(log, run(4, 5), HardState(2, 3, 1))
    assert (log.damaged, log.last_index(), log.last_hard_state) == ((2,), 5, HardState(2, 3, 1))
    log.close()
    log = reopen(path)
    assert (log.damaged, log.last_index()) == ((2,), 5)
    put(log, run(3, 3, term=2), HardState(2, 3, 1))
    assert log.damaged == (2,)
    put(log, run(2, 4, term=2))
    assert (log.damaged, log.entries(2, 5, NO_LIMIT)) == ((), run(2, 4, term=2))
    log.close()
    assert reopen(path).damaged == ()


@pytest.mark.case(50)
def test_a_compaction_ends_at_a_sound_record_and_takes_damaged_ones_with_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 10)], HardState(1, 1, 9))
    for index in (2, 3, 6, 9):
        damage(path, b"payload %d" % index, b"paYload %d" % index)
    log = reopen(path)
    boundaries = []
    while (write := log.compact(6, 3)) is not None:
        log.publish(write)
        boundaries.append(log.first_index() - 1)
    assert (boundaries, log.damaged) == ([1, 4, 5], (6, 9))
    # Of the last one the meta row knows the term.
    while (write := log.compact(9, 3)) is not None:
        log.publish(write)
    assert (log.first_index(), log.last_index(), log.term(9), log.damaged) == (10, 9, 1, ())
    log.close()


@pytest.mark.case(50)
def test_damaged_records_are_refilled_in_place_and_nothing_else_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "log"
    entries = [entry(i, data=(b"payload %d" % i) * (i * i * 100)) for i in range(1, 8)]
    closed_log(path, entries, HardState(3, 1, 5))
    for index in (2, 3, 6):  # 6 stands on pages of its own
        damage(path, b"payload %d" % index, b"paYload %d" % index)
    log = reopen(path)
    assert log.damaged == (2, 3, 6)
    log.publish(log.refill([entry(1, data=b"another"), *entries[1:3]], None))
    assert (log.damaged, log.entries(1, 6, NO_LIMIT)) == ((6,), entries[:5])
    log.publish(log.refill(entries[5:6], (7, 9)))
    assert log.damaged == (6,)
    log.publish(log.refill(entries[5:6], (7, 1)))
    assert (log.damaged, content(log)) == ((), (HardState(3, 1, 5), 1, entries))
    log.close()
    log = reopen(path)
    assert (log.damaged, content(log)) == ((), (HardState(3, 1, 5), 1, entries))
    log.close()


def test_a_refill_of_what_was_replaced_meanwhile_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 6)], HardState(1, 1, 1))
    damage(path, b"payload 3", b"paYload 3")
    damage(path, b"payload 5", b"paYload 5")
    log = reopen(path)
    put(log, run(3, 4, term=2), HardState(2, 1, 1))
    log.publish(log.refill([entry(3, data=b"payload 3")], (4, 1)))
    log.publish(log.refill([entry(5, data=b"payload 5")], None))
    assert (log.damaged, log.last_index()) == ((), 4)
    assert log.entries(3, 5, NO_LIMIT) == run(3, 4, term=2)
    log.close()


def test_a_record_of_another_size_than_belongs_there_is_not_refilled(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 6)], HardState(1, 1, 5))
    damage(path, b"payload 3", b"paYload 3")
    log = reopen(path)
    with pytest.raises(DataLossError, match="the page that it stands on is damaged"):
        log.refill([entry(3, data=b"some longer payload")], None)
    assert log.damaged == (3,)
    log.close()


@pytest.mark.parametrize("verify_after", [0, 5])
@pytest.mark.parametrize("index", [1, 3, 5])
@pytest.mark.parametrize("bit", range(16))
def test_a_flip_of_a_records_key_or_size_is_damage_of_the_tree(
    tmp_path: Path, bit: int, index: int, verify_after: int
) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"payload %d" % i) for i in range(1, 6)], HardState(1, 1, 5))
    image = (path / "data.mdb").read_bytes()
    for what in (0, 8):  # the low half of the size; the low bytes of the key
        damaged = bytearray(image)
        for found in re.finditer(struct.pack(">Q", index), image):
            node = found.start() - 8
            at = node + bit // 8 if what == 0 else node + 8 + 7 - bit // 8
            damaged[at] ^= 1 << bit % 8
        (path / "data.mdb").write_bytes(damaged)
        with pytest.raises(DataLossError) as raised:
            reopen(path, verify_after=verify_after)
        assert not isinstance(raised.value, Damaged)


def test_a_flip_in_any_key_of_a_tree_of_many_pages_is_noticed_without_reading_records(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, [entry(i, data=b"%d" % i * 400) for i in range(1, 400)], HardState(1, 1, 399))
    image = (path / "data.mdb").read_bytes()
    newest, _ = check_data_file(path / "data.mdb")
    assert newest.main.branch_pages
    missed = []
    for index in random.Random(4).sample(range(1, 400), 40):
        for found in re.finditer(struct.pack(">Q", index), image):
            damaged = bytearray(image)
            damaged[found.start() + 7] ^= 1
            (path / "data.mdb").write_bytes(damaged)
            try:
                log = reopen(path, verify_after=399)
            except DataLossError:
                continue
            # It stood in an old page, or in a branch's first node, which means nothing.
            if log.verify_rest() or content(log)[2] != [
                entry(i, data=b"%d" % i * 400) for i in range(1, 400)
            ]:
                missed.append(index)
            log.close()
    assert missed == []


@pytest.mark.case(13)
def test_a_record_that_rots_while_the_log_is_open_is_noticed_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = new_log(path, window_bytes=1)
    put(log, [entry(i, data=b"payload %d" % i) for i in range(1, 4)])
    put(log, [entry(4)])
    # In place, and in every copy of the page that LMDB has left behind: LMDB has the file mapped.
    image = (path / "data.mdb").read_bytes()
    with (path / "data.mdb").open("r+b") as file:
        for found in re.finditer(b"payload 2", image):
            file.seek(found.start())
            file.write(b"P")
    with pytest.raises(DataLossError, match="log entry 2 is damaged"):
        log.entries(1, 5, NO_LIMIT)
    assert log.first_damaged_index == 2
    log.close()


def test_a_record_does_not_pass_for_that_of_another_index(tmp_path: Path) -> None:
    _, value = log_format.encode_record(Entry(index=7, term=1, data=b"x"))
    assert log_format.decode_record(7, memoryview(value)) == Entry(index=7, term=1, data=b"x")
    with pytest.raises(DataLossError, match="log entry 8 is damaged"):
        log_format.decode_record(8, memoryview(value))


def test_a_damaged_meta_row_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, run(1, 3, term=0x1122334455667788), HardState(0x1122334455667788, 1, 1))
    last = struct.pack(">QQ", 3, 0x1122334455667788)
    damage(path, last, struct.pack(">QQ", 2, 0x1122334455667788))
    with pytest.raises(DataLossError, match="the log's meta row is damaged"):
        reopen(path)


def test_a_damaged_hard_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log"
    closed_log(path, run(1, 3), HardState(0x1122334455667788, 2, 1))
    damage(path, struct.pack(">QQ", 0x1122334455667788, 2), struct.pack(">QQ", 0x1122334455667788, 3))
    with pytest.raises(DataLossError, match="the log's hard state is damaged"):
        reopen(path)


def worn_log(path: Path) -> tuple[HardState, int, list[Entry]]:
    """A log with a free list, overflow pages, a truncation and a compaction behind it; what it holds."""
    rng = random.Random(1)
    log = new_log(path)
    last = 0
    for step in range(60):
        count = rng.randrange(1, 4)
        data = [rng.randbytes(rng.choice((10, 300, 5000, 9000))) for _ in range(count)]
        term = 1 + step // 20
        put(log, [entry(last + 1 + i, term, data[i]) for i in range(count)], HardState(term, 1, last // 2))
        last += count
        if step % 15 == 10:
            put(log, [entry(last, term, b"replaced")])
    compacted = log.compact(20, 100)
    assert compacted is not None
    log.publish(compacted)
    held = content(log)
    log.close()
    return held


def open_copy(path: Path, image: bytes, *, verify_after: int = 0) -> tuple[HardState, int, list[Entry]] | str:
    """What a log with this data file holds, or what was noticed about it, all told."""
    path.mkdir(exist_ok=True)
    (path / "data.mdb").write_bytes(image)
    try:
        log = LogStore.open(path, map_bytes=MAP_BYTES, verify_after=verify_after)
    except DataLossError:
        return "refused"
    try:
        for index in log.verify_rest():
            log.note_damage(index)
    except StorageError:
        log.close()
        return "refused"
    try:
        return content(log) if log.first_damaged_index is None else "a record is damaged"
    finally:
        log.close()


@pytest.mark.case(85)
def test_every_flipped_bit_of_the_meta_pages_is_noticed_or_means_nothing(tmp_path: Path) -> None:
    held = worn_log(tmp_path / "log")
    image = (tmp_path / "log/data.mdb").read_bytes()
    newest = max(read_meta_pages(tmp_path / "log/data.mdb"), key=lambda page: page.transaction_id)
    assert newest.transaction_id & 2, (
        "the id must have bit 1 set, or no flip makes it that of the commit before last"
    )
    # Bits that LMDB does not read, or that only make it take later pages: the page header's unused fields,
    # the map's address and size, and a last page that is too high.
    meaningless = {*range(8, 16), *range(24, 40)}
    missed: set[tuple[int, int]] = set()
    for slot in (0, 1):
        for place in range(META_BYTES * 8):
            offset = place // 8
            damaged = bytearray(image)
            damaged[slot * PAGE_BYTES + offset] ^= 1 << place % 8
            found = open_copy(tmp_path / "copy", bytes(damaged))
            if found != "refused":
                assert found == held, f"slot {slot}, offset {offset}, bit {place % 8}"
                missed.add((slot, offset))
    last_page = {(newest.page_number, offset) for offset in range(136, 144)}
    assert missed - last_page <= {(slot, offset) for slot in (0, 1) for offset in meaningless}


@pytest.mark.case(50)
@pytest.mark.parametrize("verify_after", [0, 70, 1_000])
@pytest.mark.parametrize("flips", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_flipped_bit_anywhere_is_noticed_or_means_nothing(
    tmp_path: Path, flips: int, verify_after: int
) -> None:
    held = worn_log(tmp_path / "log")
    image = (tmp_path / "log/data.mdb").read_bytes()
    rng = random.Random(flips)
    outcomes = set()
    for _ in range(flips):
        damaged = bytearray(image)
        place = rng.randrange(2 * PAGE_BYTES, len(image))
        damaged[place] ^= 1 << rng.randrange(8)
        found = open_copy(tmp_path / "copy", bytes(damaged), verify_after=verify_after)
        assert found in ("refused", "a record is damaged", held), f"offset {place}"
        outcomes.add(found if isinstance(found, str) else "intact")
    assert {"a record is damaged", "intact"} <= outcomes


def test_a_file_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    worn_log(tmp_path / "log")
    image = (tmp_path / "log/data.mdb").read_bytes()
    newest = max(read_meta_pages(tmp_path / "log/data.mdb"), key=lambda page: page.transaction_id)
    for size in (0, 100, PAGE_BYTES, 2 * PAGE_BYTES, (newest.main.root + 1) * PAGE_BYTES - 1):
        assert open_copy(tmp_path / "copy", image[:size]) == "refused"


def test_a_log_put_back_by_one_commit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = new_log(path)
    for index in range(1, 7):
        put(log, [entry(index)])
    log.close()
    image = bytearray((path / "data.mdb").read_bytes())
    pages = read_meta_pages(path / "data.mdb")
    assert [page.transaction_id for page in pages] == [6, 7]
    # 7 with bit 1 flipped is 5: to the eye, a crash before the meta page of 7 was written.
    struct.pack_into("=Q", image, PAGE_BYTES + META_BYTES - 8, 5)
    (path / "data.mdb").write_bytes(image)
    with pytest.raises(
        DataLossError, match=r"meta page 1 claims transaction 5, and is not the page that transaction 6"
    ):
        reopen(path)


def test_a_meta_page_with_another_commits_tree_is_noticed(tmp_path: Path) -> None:
    worn_log(tmp_path / "log")
    data_file = tmp_path / "log/data.mdb"
    newest, older = check_data_file(data_file)
    check_pages(data_file, newest)
    with pytest.raises(DataLossError, match=rf"the free list ends with transaction {older.transaction_id}"):
        check_pages(data_file, replace(newest, free=older.free))
    with pytest.raises(DataLossError, match=r"page \d+ is in use and on the free list"):
        check_pages(data_file, replace(newest, main=older.main))
    highest = replace(newest, last_page=newest.last_page - 1)
    with pytest.raises(DataLossError, match=rf"{newest.last_page - 1}"):
        check_pages(data_file, highest)


def test_rows_that_do_not_belong_to_their_meta_page_are_noticed(tmp_path: Path) -> None:
    worn_log(tmp_path / "log")
    newest, older = check_data_file(tmp_path / "log/data.mdb")
    identity = newest.transaction_id
    row = MetaRow(9, 2, 3, 1, identity, page_checksum(older))

    def check(row: MetaRow, commit: int = 5, opened: int = identity, rows: int = 8) -> None:
        hard_state = HardState(2, 1, commit)
        check_rows(row, hard_state, newest=newest, older=older, transaction_id=opened, rows=rows)

    check(row)
    with pytest.raises(DataLossError, match="a commit is missing"):
        check(row._replace(transaction_id=identity - 2))
    with pytest.raises(DataLossError, match="a commit is missing"):
        check(row, opened=identity - 1)
    with pytest.raises(DataLossError, match="is not the page that transaction"):
        check(row._replace(previous_page_checksum=1))
    for wrong in ({"commit": 2}, {"commit": 10}, {"rows": 7}, {"rows": 9}):
        with pytest.raises(DataLossError, match="contradict each other"):
            check(row, **wrong)
