"""What must hold of a log's files before they are believed: the check that every start runs.

**What a crash can leave.** LMDB commits transaction N, with sync and metasync on, in this order: it writes
N's pages, none of which transaction N - 1 uses; `fdatasync`; it writes the meta page N & 1, through a
descriptor opened with O_DSYNC; then the commit returns, and only then is anything acknowledged. The other
meta page stays that of N - 1. The meta page is written by one `pwrite` that lies within one 512-byte
sector: after kill -9 or a power cut it is there whole or not at all. Hence there are two states, and no
third:

1. {N - 2, N - 1}: the meta page of N did not reach the disk. Nothing of N was acknowledged. Its pages may be
   there in part, on pages that N - 1 calls free or that lie past its last one. N - 1 is whole, since its meta
   page was written after its pages were synced. Opening it is sound.
2. {N, N - 1}: the meta page of N did. Its pages were synced before. Whether the commit had returned or not,
   opening N is sound: what is durable, and was not acknowledged, Raft may keep.

An aborted transaction writes no meta page, and its id is given again; a log that exists has committed at
least transaction 1 (it gets its name afterwards), beside which page 0 still holds id 0. So in both states
the ids are consecutive, and each stands on the page of its parity. Anything else is damage.

**What damage could look like a crash.** A flip of bit 1 in N, where set, makes it N - 2: state 1 to the
letter, and an acknowledged commit is gone. So each commit's meta row holds a checksum of its predecessor's
meta page: the page that claims N - 2 must be the one that N - 1 found. A meta page whose id is right and
whose roots are not is noticed by the meta row, which holds its own transaction id, or by `check_pages`. A
page that holds an older version of itself (a lost write) is noticed by its row, its counts or the free
list, unless it is a leaf of records only, and then by a record that is missing.
"""

from __future__ import annotations

from pathlib import Path

from raftstate.core.types import HardState
from raftstate.errors import DataLossError
from raftstate.store.files import disk_failure
from raftstate.store.log_format import FIXED_ROWS, MetaRow, checksum
from raftstate.store.meta_page import MetaPage, read_meta_pages
from raftstate.store.page_check import check_pages


def page_checksum(page: MetaPage) -> int:
    """The checksum of a meta page, as the next transaction's meta row holds it."""
    return checksum(page.to_bytes())


def check_data_file(data_file: Path, *, trusted_key: bytes = b"") -> tuple[MetaPage, MetaPage]:
    """Check an LMDB data file of a log, which no one has open, without LMDB.

    Args:
        data_file: the environment's `data.mdb`.
        trusted_key: as `check_pages` takes it.

    Returns:
        The meta pages of the newest commit and of the one before it.

    Raises:
        DataLossError: it is in no state that a crash can leave.
        StorageError: it can't be read.
    """
    try:
        pages = read_meta_pages(data_file)
    except FileNotFoundError as error:
        raise DataLossError(f"the log's data file {data_file} is missing") from error
    except OSError as error:
        raise disk_failure("reading the log's meta pages", data_file, error) from error
    older, newest = sorted(pages, key=lambda page: page.transaction_id)
    if newest.transaction_id != older.transaction_id + 1 or not (newest.in_its_slot and older.in_its_slot):
        raise DataLossError(
            f"the meta pages of {data_file} hold transactions {pages[0].transaction_id} (page 0) and "
            f"{pages[1].transaction_id} (page 1); they must be consecutive, the even one on page 0"
        )
    if (older.page_bytes, older.free.flags) != (newest.page_bytes, newest.free.flags) or (
        newest.main.pad,
        newest.main.flags,
    ) != (0, 0):
        raise DataLossError(
            f"the meta pages of {data_file} disagree: page sizes {older.page_bytes} and {newest.page_bytes}, "
            f"free tree's flags {older.free.flags:#x} and {newest.free.flags:#x}; "
            f"main tree's pad {newest.main.pad} and flags {newest.main.flags:#x} must be 0"
        )
    if newest.last_page >= newest.map_bytes // newest.page_bytes:
        raise DataLossError(
            f"the newest meta page of {data_file} says that the last page is {newest.last_page}, "
            f"and that the map has {newest.map_bytes // newest.page_bytes}"
        )
    check_pages(data_file, newest, trusted_key=trusted_key)
    return newest, older


def check_rows(
    row: MetaRow, hard_state: HardState, *, newest: MetaPage, older: MetaPage, transaction_id: int, rows: int
) -> None:
    """Check what the newest commit says of itself against its meta page and the one before.

    Args:
        row: its meta row.
        hard_state: its hard state.
        newest: its meta page, as `check_data_file` found it.
        older: the meta page of the commit before.
        transaction_id: that of the commit that LMDB has opened.
        rows: how many rows it has, all told.

    Raises:
        DataLossError: they do not belong together.
    """
    if not transaction_id == newest.transaction_id == row.transaction_id:
        raise DataLossError(
            f"the log opened at transaction {transaction_id}, its newest meta page is of transaction "
            f"{newest.transaction_id} and its meta row of {row.transaction_id}: a commit is missing"
        )
    if row.previous_page_checksum != page_checksum(older):
        raise DataLossError(
            f"meta page {older.page_number} claims transaction {older.transaction_id}, and is not the page "
            f"that transaction {row.transaction_id} followed: a newer commit may have stood there"
        )
    expected = row.last_index - row.boundary_index + FIXED_ROWS
    if not row.boundary_index <= hard_state.commit <= row.last_index or rows != expected:
        raise DataLossError(
            f"the log's rows contradict each other: boundary {row.boundary_index}, "
            f"commit {hard_state.commit}, last index {row.last_index}, {rows} rows (expected {expected})"
        )
