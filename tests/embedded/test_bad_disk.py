"""A node whose disk fails a write starts again by itself, from files that it can trust."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pytest

import raftstate
from raftstate.config import NodeSettings
from raftstate.errors import RaftstateError, StorageError
from raftstate.folder import settings_alone
from raftstate.server import RESTART_S_MAX, Restarts
from raftstate.store import checkpoint, directory
from raftstate.store.log import LogStore


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"embedded:{tmp_path / 'store'}"


def eio() -> lmdb.Error:
    error = lmdb.Error("mdb_txn_commit: Input/output error")
    error.code = errno.EIO  # type: ignore[attr-defined]
    return error


def retried(call: Callable[[], Any]) -> Any:
    """Call until the node is back."""
    for _ in range(100):
        try:
            return call()
        except raftstate.IndefiniteError:
            continue
    raise AssertionError("the node did not come back")


def data_file(tmp_path: Path) -> Path:
    return tmp_path / "store" / "data" / "log" / "data.mdb"


@pytest.mark.case(53)
@pytest.mark.parametrize("marked", [True, False], ids=["marker written", "marker lost"])
def test_after_eio_in_a_commit_of_the_log_it_goes_on_in_a_copy(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    commit, failing = LogStore._commit, [False]

    def fail_once(store: LogStore, txn: lmdb.Transaction[memoryview]) -> None:
        if failing[0]:
            failing[0] = False
            txn.abort()
            raise eio()
        commit(store, txn)

    monkeypatch.setattr(LogStore, "_commit", fail_once)
    if not marked:
        write = directory.durable_write

        def no_marker(path: Path, content: bytes) -> None:
            if path.name == "eio":
                raise StorageError("can't write it", detail={"errno": errno.EIO})
            write(path, content)

        monkeypatch.setattr(directory, "durable_write", no_marker)
    with raftstate.connect(url, timeout=20) as store:
        store.put("before", b"1")
        inode = data_file(tmp_path).stat().st_ino
        failing[0] = True
        with contextlib.suppress(RaftstateError):
            store.put("during", b"1", timeout=1)  # may last until the node is back
        assert failing == [False]
        retried(lambda: store.put("after", b"1"))
        assert store.get("before") is not None
        assert data_file(tmp_path).stat().st_ino != inode
    assert not (tmp_path / "store" / "data" / "eio").exists()


@pytest.mark.case(53)
@pytest.mark.case(54)
@pytest.mark.parametrize("marked", [True, False], ids=["marker written", "marker lost"])
def test_after_eio_in_a_sync_of_the_state_it_goes_on_in_the_next_generation(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marked: bool
) -> None:
    sync, write = checkpoint.sync_data, checkpoint.durable_write
    failing = [False]

    def fail_once(environment: lmdb.Environment) -> None:
        if failing[0]:
            failing[0] = False
            raise eio()
        sync(environment)

    def write_but_no_marker(path: Path, content: bytes) -> None:
        if path.name == "eio" and not marked:
            raise StorageError("can't write it", detail={"errno": errno.EIO})
        write(path, content)

    monkeypatch.setattr(checkpoint, "sync_data", fail_once)
    monkeypatch.setattr(checkpoint, "durable_write", write_but_no_marker)
    with raftstate.connect(url, timeout=20) as store:
        store.put("before", b"1")
        failing[0] = True
        number = 0
        while not (tmp_path / "store" / "data" / "state-2").exists():
            number += 1
            retried(lambda number=number: store.put(f"{number}", b"1"))  # type: ignore[misc]
        retried(lambda: store.put("after", b"1"))
        assert store.get("before") is not None
        assert all(store.get(f"{each}") is not None for each in range(1, number + 1))
    assert (tmp_path / "store" / "data" / "CURRENT").read_text() == "state-2\n"


@pytest.fixture
def settings(tmp_path: Path) -> NodeSettings:
    settings = settings_alone(tmp_path / "store", {})
    settings.data_path.mkdir(parents=True, exist_ok=True)
    return settings


def full() -> StorageError:
    return StorageError("the disk is full", detail={"errno": errno.ENOSPC})


def test_a_first_start_that_fails_is_told_unless_it_waits_for_room_to_mend_something(
    settings: NodeSettings,
) -> None:
    assert not Restarts(settings).may_follow(full())
    directory.mark_eio(settings.data_path, "failed")
    assert Restarts(settings).may_follow(full())
    for distrusted in ({}, {"distrust": "log"}):
        gone = StorageError("gone", detail={"errno": errno.EIO} | distrusted)
        assert not Restarts(settings).may_follow(gone)
    # What a start has found damaged the next one mends, or finds lost.
    assert Restarts(settings).may_follow(StorageError("damaged", detail={"errno": 0, "distrust": "log"}))


async def test_restarts_wait_longer_each_time_until_one_works(settings: NodeSettings) -> None:
    restarts = Restarts(settings)
    restarts.started()
    waits = []
    for _ in range(9):
        assert restarts.may_follow(full())
        waits.append(restarts._pause_s)
        stop = asyncio.Event()
        stop.set()
        await restarts.wait(stop)
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (0.2, RESTART_S_MAX)
    restarts.started()
    assert restarts._pause_s == waits[0]


def test_what_must_be_copied_is_remembered_until_a_start_works(settings: NodeSettings) -> None:
    restarts = Restarts(settings)
    restarts.started()
    failure = StorageError("failed", detail={"errno": errno.EIO, "distrust": "log"})
    assert restarts.may_follow(failure)
    assert restarts.may_follow(full())
    assert restarts.distrust == {"log"}
    restarts.started()
    assert restarts.distrust == set()


def test_a_state_that_was_cut_off_is_an_error_and_does_not_end_the_process(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    with raftstate.connect(f"embedded:{folder}") as client:
        for number in range(300):
            client.put(f"key{number}", bytes(5_000))
    [file] = folder.glob("data/state-*/data.mdb")
    os.truncate(file, file.stat().st_size // 2)
    # In a process of its own: behind the end of a file a map raises SIGBUS. What the opening does not meet of
    # the cut, a read does.
    script = f"""import raftstate
with raftstate.connect({f"embedded:{folder}"!r}) as client:
    print(sum(1 for pair in client.scan(prefix="key")))"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "DataLossError" in ended.stderr
