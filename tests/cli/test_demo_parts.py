"""The demo's worker and its final check, without processes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftstate.cli.demo_check import (
    Acknowledged,
    differences,
    independent_manifest,
    lost_checkpoints,
    read_ledger,
)
from raftstate.cli.demo_worker import LEFT_OUT, Ledger, SkippedError, hash_file, walk, work
from raftstate.state import AsyncWorkflow, Workflow
from tests.state.memory_store import MemoryStore


def tree(root: Path) -> Path:
    """Files, and whatever else stands in file systems."""
    for name in ("b/two", "a", "b/__pycache__/x.pyc", "c/d/three", "left/out"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (root / os.fsdecode(b"caf\xe9")).write_text("latin-1")
    (root / "link").symlink_to("a")
    (root / "dangling").symlink_to("nowhere")
    (root / "linked-folder").symlink_to("b")
    os.mkfifo(root / "fifo")
    return root


FILES = [b"a", b"b/two", b"c/d/three", b"caf\xe9"]


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def workflow(store: MemoryStore, runner: asyncio.Runner) -> Workflow:
    def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
        return runner.run(coroutine)

    return Workflow(AsyncWorkflow(store, "job"), run)


def test_the_walk_finds_regular_files_in_a_fixed_order_and_notes_the_rest(tmp_path: Path) -> None:
    skipped: dict[bytes, str] = {}
    assert list(walk(os.fsencode(tree(tmp_path)), LEFT_OUT | {b"left"}, skipped)) == FILES
    assert skipped == {
        b"dangling": "symbolic link",
        b"fifo": "special file",
        b"link": "symbolic link",
        b"linked-folder": "symbolic link",
    }


def test_a_folder_that_cannot_be_read_is_noted(tmp_path: Path) -> None:
    skipped: dict[bytes, str] = {}
    assert list(walk(os.fsencode(tmp_path / "absent"), LEFT_OUT, skipped)) == []
    assert skipped == {b".": "unreadable folder: No such file or directory"}


def test_a_file_that_became_something_else_is_skipped_at_once(tmp_path: Path) -> None:
    tree(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    reasons = {}
    for name in ("fifo", "link", "absent", "socket"):
        with pytest.raises(SkippedError) as caught:
            hash_file(os.fsencode(tmp_path / name))
        reasons[name] = str(caught.value)
    assert reasons == {
        "fifo": "special file",
        "link": "unreadable file: Too many levels of symbolic links",
        "absent": "unreadable file: No such file or directory",
        "socket": "unreadable file: No such device or address",
    }


def test_the_worker_resumes_where_the_last_one_stopped(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, ledger = MemoryStore(), Ledger(tmp_path / "ledger")
    root = tree(tmp_path / "root")
    with asyncio.Runner() as runner:
        first = workflow(store, runner)
        # As a worker leaves it that is killed after two files; they keep their digests if they are not read
        # again.
        first.checkpoint({"files": {b"a": b"kept", b"b/two": b"kept"}, "skipped": {}})
        work(workflow(store, runner), os.fsencode(root), LEFT_OUT | {b"left"}, ledger)
        restored = first.restore()
        assert restored is not None
        made = first.list()
    assert restored.state["files"] == {
        b"a": b"kept",
        b"b/two": b"kept",
        b"c/d/three": digest("c/d/three"),
        b"caf\xe9": digest("latin-1"),
    }
    assert [noted.id for noted in read_ledger(tmp_path / "ledger")] == [c.id for c in made[-2::-1]]
    events = [msgspec.json.decode(line) for line in capfd.readouterr().out.splitlines()]
    assert events[0] == {"event": "started", "files": 4, "done": 2, "every": 1}
    assert [(event["event"], event.get("done")) for event in events[1:]] == [
        ("checkpoint", 3),
        ("checkpoint", 4),
        ("checkpoint", 4),
        ("finished", None),
    ]


def test_the_independent_walk_agrees_with_the_worker(tmp_path: Path) -> None:
    root = tree(tmp_path)
    expected = {path: hash_file(os.path.join(os.fsencode(root), path)) for path in FILES}
    assert independent_manifest(root, LEFT_OUT | {b"left"}) == expected


def test_manifests_that_differ_are_told_apart() -> None:
    assert differences({b"a": b"1", b"b": b"1", b"c": b"1"}, {b"b": b"2", b"c": b"1", b"\xff": b"1"}) == [
        "'a' is in the manifest only",
        "'b' has another digest",
        "'\\udcff' is missing from the manifest",
    ]


def test_a_lost_a_changed_and_a_damaged_checkpoint_are_each_found(tmp_path: Path) -> None:
    store, ledger = MemoryStore(), Ledger(tmp_path / "ledger")
    with asyncio.Runner() as runner:
        job = workflow(store, runner)
        # Unlike each other, so that each is a base.
        states = [hashlib.sha256(bytes([number])).digest() * 2 for number in range(4)]
        made = [job.checkpoint(state) for state in states]
        for checkpoint in made:
            ledger.note(checkpoint)
        noted = read_ledger(tmp_path / "ledger")
        assert noted == [Acknowledged(c.id, c.revision, c.checksum) for c in made]
        assert lost_checkpoints(workflow(store, runner), noted) == []
        newest, second, third, _ = sorted(store.rows)
        del store.rows[newest]
        store.rows[second] = msgspec.structs.replace(store.rows[second], mod_revision=99)
        store.rows[third] = msgspec.structs.replace(store.rows[third], value=store.rows[third].value[:-1])
        lost = lost_checkpoints(workflow(store, runner), noted)
    assert len(lost) == 3
    assert f"has no checkpoint '{made[3].id}'" in lost[2]
    assert f"checkpoint {made[2].id} was acknowledged with" in lost[1]
    assert f"checkpoint {made[1].id} is not readable" in lost[0]


def test_a_torn_last_line_of_the_ledger_was_never_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    assert read_ledger(path) == []
    path.write_text('{"id": "1-aa", "revision": 2, "checksum": "cc"}\n{"id": "2-')
    assert read_ledger(path) == [Acknowledged("1-aa", 2, "cc")]
