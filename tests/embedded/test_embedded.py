"""A node within this process: the same calls, errors and durability, without a port."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raftstate
from raftstate.config import load_settings
from raftstate.embedded import open_node
from raftstate.errors import (
    ClosedError,
    ConfigError,
    DeadlineError,
    FailedPreconditionError,
    InvalidArgumentError,
    OutOfRangeError,
)
from raftstate.folder import settings_alone
from raftstate.supervisor import LocalCluster


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"embedded:{tmp_path / 's'}"


@pytest.fixture
def store(url: str) -> Iterator[raftstate.Client]:
    with raftstate.connect(url) as store:
        yield store


def run(program: str, *arguments: object, input: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, input=input, capture_output=True, text=True, timeout=30, check=False)


def listening_sockets() -> set[str]:
    own = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            own.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            continue
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(f"socket:[{fields[9]}]")
    return own & listening


def test_calls_are_those_of_a_cluster(store: raftstate.Client) -> None:
    assert store.put("a", b"1").revision == 2
    found = store.get("a")
    assert found is not None
    assert (found.value, found.version) == (b"1", 1)
    assert store.delete("a").deleted == 1
    store.put_many((f"k/{number:03}", b"v") for number in range(200))
    assert store.range(prefix="k/", count_only=True).count == 200
    [node] = store.status()
    assert (node.role, node.name, node.keys) == ("leader", "n1", 200)


def test_errors_are_those_of_a_cluster(store: raftstate.Client) -> None:
    with pytest.raises(InvalidArgumentError):
        store.put("", b"1")
    with pytest.raises(OutOfRangeError):
        store.get("a", revision=1_000)


async def test_asyncio_reaches_it_from_another_loop(url: str) -> None:
    async with raftstate.connect_async(url) as store:
        await asyncio.gather(*(store.put(f"k/{number}", b"v") for number in range(1_000)))
        assert (await store.range(prefix="k/", count_only=True)).count == 1_000


def test_watches_and_transactions_work_without_a_socket(store: raftstate.Client) -> None:
    with store.watch(prefix="jobs/") as events:
        done = (
            store.txn()
            .when(raftstate.where("jobs/1").missing())
            .then(raftstate.Put("jobs/1", b"queued"), raftstate.Put("jobs/2", b"queued"))
            .commit()
        )
        assert done.succeeded
        seen = [events.next(timeout=5), events.next(timeout=5)]
        assert [(event.kind, event.key, event.revision) for event in seen] == [
            ("put", b"jobs/1", done.revision),
            ("put", b"jobs/2", done.revision),
        ]
        with pytest.raises(DeadlineError):
            events.next(timeout=0.05)


def test_a_lease_is_kept_alive_and_ends_with_its_block(store: raftstate.Client) -> None:
    with store.lease(2) as lease:
        store.put("alive", b"1", lease=lease)
        assert store.get("alive") is not None
    assert store.get("alive") is None


def test_no_port_is_open_unless_asked(tmp_path: Path) -> None:
    before = listening_sockets()
    with raftstate.connect(f"embedded:{tmp_path / 's'}") as store:
        store.put("a", b"1")
        assert listening_sockets() == before


def test_a_port_is_open_when_asked(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "c", nodes=1, port=0) as cluster:
        address = cluster.endpoints[0]  # free, once this is stopped
    with raftstate.connect(f"embedded:{tmp_path / 's'}?listen={address}") as store:
        store.put("a", b"1")
        with raftstate.connect(address) as outside:
            found = outside.get("a")
            assert found is not None
            assert found.value == b"1"


def test_clients_of_one_process_share_the_node(url: str) -> None:
    with raftstate.connect(url) as one:
        with raftstate.connect(url) as other:
            other.put("a", b"1")
        assert one.get("a") is not None
        with pytest.raises(ClosedError):
            other.get("a")


def test_a_second_process_is_refused_and_told_who_has_it(store: raftstate.Client, url: str) -> None:
    refused = run("import sys, raftstate\nraftstate.connect(sys.argv[1])", url)
    assert refused.returncode == 1
    assert f"is in use by process {os.getpid()}; stop it first" in refused.stderr


def test_what_was_written_is_there_again(url: str) -> None:
    for number in range(3):
        with raftstate.connect(url) as store:
            assert store.range(count_only=True).count == number
            store.put(f"k{number}", b"v")


def test_the_end_of_the_process_stops_it_cleanly_and_silently(url: str, tmp_path: Path) -> None:
    program = "import sys, raftstate\nstore = raftstate.connect(sys.argv[1])\nstore.put('a', b'1')\n"
    ended = run(program, url)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert (tmp_path / "s" / "data" / "clean-stop").exists()
    with raftstate.connect(url) as store:
        assert store.get("a") is not None


def test_an_async_client_that_was_not_closed_stops_cleanly_too(url: str, tmp_path: Path) -> None:
    program = (
        "import asyncio, sys, raftstate\n"
        "async def main():\n"
        "    store = raftstate.connect_async(sys.argv[1])\n"
        "    await store.put('a', b'1')\n"
        "asyncio.run(main())\n"
    )
    ended = run(program, url)
    assert (ended.returncode, ended.stdout) == (0, "")
    assert (tmp_path / "s" / "data" / "clean-stop").exists()


def test_a_directory_of_several_voters_is_refused(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path / "c", nodes=3, port=0)
    with cluster:
        pass
    with pytest.raises(FailedPreconditionError, match=r"cluster with 3 voters.*raftstate serve"):
        raftstate.connect(f"embedded:{tmp_path / 'c' / 'n1'}")


def test_files_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FailedPreconditionError, match=r"thesis\.txt"):
        raftstate.connect(f"embedded:{tmp_path}")
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    "url", ["embedded:", "embedded:d?", "embedded:d?port=1", "embedded:d?listen=nowhere"]
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        raftstate.connect(url)


def test_a_file_is_no_folder_of_a_node(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file, not the folder of a node"):
        raftstate.connect(f"embedded:{tmp_path / 'file'}")


def test_the_status_of_another_endpoint_is_not_the_embedded_nodes(store: raftstate.Client) -> None:
    with pytest.raises(InvalidArgumentError, match="an embedded store is a node alone"):
        store.status("127.0.0.1:1")
    [node] = store.status(store.endpoints[0])
    assert node.name == "n1"


def test_a_closed_client_is_not_entered(url: str) -> None:
    store = raftstate.connect(url)
    store.close()
    with pytest.raises(ClosedError, match="connect again"), store:
        pass


def test_a_crash_after_the_settings_and_before_the_data_is_no_loss(tmp_path: Path, url: str) -> None:
    settings_alone(tmp_path / "s", {})  # as far as a process came that was killed
    with raftstate.connect(url) as store:
        store.put("a", b"1")


def test_lost_data_are_not_taken_for_a_new_store(tmp_path: Path, url: str) -> None:
    with raftstate.connect(url) as store:
        store.put("a", b"1")
    (tmp_path / "s" / "data").rename(tmp_path / "elsewhere")
    with pytest.raises(FailedPreconditionError, match="must not come back under its old identity"):
        raftstate.connect(url)


def test_processes_that_make_a_store_at_once_agree_on_whose_it_is(tmp_path: Path, url: str) -> None:
    program = (
        "import sys, raftstate\nsys.stdin.readline()\n"
        "with raftstate.connect(sys.argv[1]) as store: store.put('by', b'me')\n"
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    ended = [racer.communicate(timeout=30)[1] for racer in racers]
    assert [racer.returncode for racer in racers].count(0) >= 1
    assert all(not told or "is in use by process" in told for told in ended), ended
    settings = load_settings(tmp_path / "s" / "node.toml")
    with raftstate.connect(url) as store:
        [node] = store.status()
    assert node.cluster_id == settings.cluster.cluster_id


def test_a_forked_child_is_refused(store: raftstate.Client, url: str) -> None:
    store.put("a", b"1")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.get("a")
            told = "it answered"
        except FailedPreconditionError as error:
            told = error.message
        except BaseException as error:  # noqa: BLE001 - it is told by the parent
            told = repr(error)
        os.write(writing, told.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    told = os.read(reading, 1_000).decode()
    os.close(reading)
    assert "is open in the process that this one was forked from" in told
    assert store.get("a") is not None


def test_calls_of_many_threads_share_the_node(store: raftstate.Client) -> None:
    def work(number: int) -> None:
        for turn in range(20):
            store.put(f"t/{number}/{turn}", b"v")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.range(prefix="t/", count_only=True).count == 160


def test_closing_twice_and_a_call_afterwards_are_told(url: str) -> None:
    store = raftstate.connect(url)
    store.close()
    store.close()
    with pytest.raises(ClosedError):
        store.put("a", b"1")
    node = open_node(url)
    node.release()
    with pytest.raises(ClosedError, match="was stopped"):
        node.check()


def test_an_erased_key_leaves_no_byte_in_the_directory(tmp_path: Path, store: raftstate.Client) -> None:
    secret = b"zQ7y-secret-"

    def files() -> list[str]:
        return [path.name for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]

    for size in (1, 500, 20_000):
        store.put(secret, secret * size)
    assert files()
    erased = store.erase(secret)
    deadline = time.monotonic() + 30
    while store.erase_progress(erased)[0].state != "done":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert files() == []
    assert store.defragment("n1") > 0


def test_an_embedded_node_opens_no_port_for_metrics(tmp_path: Path) -> None:
    with raftstate.connect(f"embedded:{tmp_path / 'd'}") as store:
        assert [node.metrics_address for node in store.status()] == [""]
