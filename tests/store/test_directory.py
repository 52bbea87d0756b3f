"""The data directory: whose it is, who holds it, and what is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import xxhash

from raftstate.errors import DataLossError, FailedPreconditionError, StorageError, WrongClusterError
from raftstate.store.directory import DataDirectory, Identity
from raftstate.store.files import durable_write

MINE = Identity(cluster_id=0xFEDCBA9876543210, node_id=2, incarnation=5, name="n2")


def test_a_directory_is_made_and_opened_by_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "made/data"
    made = DataDirectory.create(path, MINE)
    assert (made.path, made.identity) == (path, MINE)
    made.close()
    for expected in (None, MINE):
        opened = DataDirectory.open(path, expected)
        assert opened.identity == MINE
        opened.close()
    assert sorted(entry.name for entry in path.iterdir()) == ["identity", "lock"]


@pytest.mark.case(59)
def test_another_clusters_directory_is_refused(tmp_path: Path) -> None:
    DataDirectory.create(tmp_path, MINE).close()
    other = msgspec.structs.replace(MINE, cluster_id=0xAB)
    with pytest.raises(WrongClusterError, match=r"belongs to cluster 0xfedcba9876543210, .* of cluster 0xab"):
        DataDirectory.open(tmp_path, other)


@pytest.mark.case(59)
@pytest.mark.parametrize("change", [{"node_id": 3}, {"incarnation": 6}])
def test_another_nodes_directory_is_refused(tmp_path: Path, change: dict[str, int]) -> None:
    DataDirectory.create(tmp_path, MINE).close()
    other = msgspec.structs.replace(MINE, **change)
    message = rf"belongs to node 2, incarnation 5 .* node {other.node_id}, incarnation {other.incarnation}"
    with pytest.raises(FailedPreconditionError, match=message):
        DataDirectory.open(tmp_path, other)
    # A refusal gives the lock back.
    DataDirectory.open(tmp_path, MINE).close()


@pytest.mark.case(60)
def test_a_newer_format_is_refused_whatever_else_it_says(tmp_path: Path) -> None:
    DataDirectory.create(tmp_path, MINE).close()
    body = msgspec.json.encode({"format_version": 2, "node": {"id": 7}})
    sealed = {"identity": msgspec.Raw(body), "checksum": xxhash.xxh3_64_hexdigest(body)}
    durable_write(tmp_path / "identity", msgspec.json.encode(sealed))
    with pytest.raises(FailedPreconditionError, match=r"newer raftstate \(format 2, this one knows 1\)"):
        DataDirectory.open(tmp_path, MINE)


def test_every_damage_to_the_identity_is_noticed(tmp_path: Path) -> None:
    DataDirectory.create(tmp_path, MINE).close()
    good = (tmp_path / "identity").read_bytes()
    for place in range(len(good) - 1):
        damaged = bytearray(good)
        damaged[place] ^= 1
        (tmp_path / "identity").write_bytes(damaged)
        with pytest.raises(DataLossError, match=r"identity file .* is damaged"):
            DataDirectory.open(tmp_path, MINE)
    for size in range(0, len(good) - 1, 10):
        (tmp_path / "identity").write_bytes(good[:size])
        with pytest.raises(DataLossError, match=r"identity file .* is damaged"):
            DataDirectory.open(tmp_path, MINE)


def test_a_directory_in_use_is_refused_and_its_holder_named(tmp_path: Path) -> None:
    held = DataDirectory.create(tmp_path / "data", MINE)
    child = (
        "import sys; from pathlib import Path; from raftstate.store.directory import DataDirectory\n"
        "from raftstate.errors import FailedPreconditionError\n"
        "try: DataDirectory.open(Path(sys.argv[1]))\n"
        "except FailedPreconditionError as error: print(error)\n"
    )
    command = [sys.executable, "-c", child, str(tmp_path / "data")]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == f"{tmp_path / 'data'} is in use by process {os.getpid()}; stop it first"
    held.close()
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_the_lock_goes_with_the_process_that_held_it(tmp_path: Path) -> None:
    child = (
        "import os, sys; from pathlib import Path\n"
        "from raftstate.store.directory import DataDirectory, Identity\n"
        "mine = Identity(cluster_id=1, node_id=1, incarnation=1, name='n')\n"
        "DataDirectory.create(Path(sys.argv[1]), mine)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=False)
    opened = DataDirectory.open(tmp_path)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    opened.close()


def test_what_is_no_data_directory_is_not_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(FailedPreconditionError, match="is no raftstate data directory"):
            DataDirectory.open(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["letters.txt", "log", "CURRENT"])
def test_a_directory_that_holds_something_is_not_taken_for_a_new_node(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("precious")
    with pytest.raises(FailedPreconditionError, match=f"is not empty .*{name}"):
        DataDirectory.create(tmp_path, MINE)
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {name: "precious"}


def test_an_existing_data_directory_is_not_made_anew(tmp_path: Path) -> None:
    DataDirectory.create(tmp_path, MINE).close()
    with pytest.raises(FailedPreconditionError, match="is a data directory already"):
        DataDirectory.create(tmp_path, MINE)


def test_a_creation_that_was_cut_short_starts_over(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        (path / "log").mkdir()
        (path / "log/data.mdb").write_bytes(b"half")
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match="the disk is full"):
        DataDirectory.create(tmp_path, MINE, fail)
    with pytest.raises(FailedPreconditionError, match="is no raftstate data directory"):
        DataDirectory.open(tmp_path)
    made = DataDirectory.create(tmp_path, MINE, lambda path: (path / "CURRENT").write_text("state-1"))
    made.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["CURRENT", "identity", "lock"]


def test_the_identity_comes_after_everything_else(tmp_path: Path) -> None:
    seen: list[str] = []
    made = DataDirectory.create(
        tmp_path, MINE, lambda path: seen.extend(sorted(entry.name for entry in path.iterdir()))
    )
    made.close()
    assert seen == ["creating", "lock"]


def test_a_durable_write_replaces_the_whole_file(tmp_path: Path) -> None:
    durable_write(tmp_path / "file", b"a long first version")
    durable_write(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_durable_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    durable_write(tmp_path / "file", b"old")
    (tmp_path / "file.new").mkdir()
    with pytest.raises(StorageError, match="failed while writing a file at"):
        durable_write(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
