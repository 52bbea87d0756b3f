"""How much room there is: on the file system, and within the files of an LMDB environment.

May live here: measuring. What is to be done about too little of it is the node's affair.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple, TypedDict

import lmdb

from raftstate.store.files import disk_failure

_META_PAGES = 2
_FREE_PER_PAGE = 256
"""Page numbers in one page of the free list: 512 fit, and a page may be half full."""


class Space(NamedTuple):
    """What an LMDB environment's file holds."""

    used_bytes: int
    """Of pages that hold rows."""
    free_bytes: int
    """Of pages that hold none, within the file: only this environment can use them, and only once nobody
    reads them any more. LMDB gives nothing back to the file system."""
    map_bytes: int
    """The most that the file can ever take, as it was opened."""


class FileSystem(NamedTuple):
    """The file system of a directory."""

    total_bytes: int
    free_bytes: int
    """What this process may still take: what is kept for root is not in it."""


def file_system(path: Path) -> FileSystem:
    """Measure the file system that a directory is on.

    Raises:
        StorageError: it can't be asked.
    """
    try:
        total_bytes, _, free_bytes = shutil.disk_usage(path)
    except OSError as error:
        raise disk_failure("looking for free space", path, error) from error
    return FileSystem(total_bytes, free_bytes)


def environment_space(environment: lmdb.Environment, tables_bytes: int) -> Space:
    """Measure an environment. Reads nothing but what LMDB has in memory. Any thread.

    Args:
        environment: to be measured.
        tables_bytes: of the pages of its named tables, if it has any.

    Raises:
        lmdb.Error: LMDB failed.
    """
    info, main = environment.info(), environment.stat()
    page_bytes = main["psize"]
    used_bytes = tables_bytes + pages_bytes(main)
    rest = info["last_pgno"] + 1 - _META_PAGES - used_bytes // page_bytes
    # LMDB does not tell how many pages the list of free pages takes itself.
    free_pages = max(0, rest - rest // _FREE_PER_PAGE - 1)
    return Space(used_bytes, free_pages * page_bytes, info["map_size"])


class TreeStat(TypedDict):
    """What `pages_bytes` needs of what `stat` says."""

    psize: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int


def pages_bytes(stat: TreeStat) -> int:
    """Return the bytes of the pages of a table, as `stat` of an environment or a transaction tells them."""
    return stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])


class Reader(NamedTuple):
    """A slot of an environment's reader table that holds a transaction."""

    pid: int
    thread: str
    transaction_id: int


def parse_readers(table: str) -> list[Reader]:
    """Return who reads, from what `Environment.readers()` says. A slot that is between two transactions reads
    nothing, and is left out."""
    readers = []
    for line in table.splitlines():
        pid, _, rest = line.strip().partition(" ")
        thread, _, transaction_id = rest.partition(" ")
        if pid.isdecimal() and transaction_id.strip().isdecimal():
            readers.append(Reader(int(pid), thread, int(transaction_id)))
    return readers


def needed_for_copy(path: Path) -> int:
    """Return the bytes that a file takes on its disk: holes take none.

    Raises:
        StorageError: it can't be looked at.
    """
    try:
        return os.stat(path).st_blocks * 512
    except OSError as error:
        raise disk_failure("looking at a file's size", path, error) from error
