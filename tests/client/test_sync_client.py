"""The face for threads, and what happens to it at the end of a process and across a fork."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import raftstate
from tests.client.fake_cluster import FakeCluster, hold


def run(script: str, url: str) -> subprocess.CompletedProcess[str]:
    """Run a script with every warning an error; `url` is its argument."""
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, url],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_every_call_has_its_face(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store:
            assert store.put("a", b"1") == raftstate.PutResult(2)
            assert [result.revision for result in store.put_many([("b", b"2"), ("c", b"3")])] == [3, 4]
            assert store.get("a") == raftstate.KeyValue(b"a", b"1", 2, 2, 1, 0)
            assert [kv.key for kv in store.range("b")] == [b"b", b"c"]
            assert store.delete("c").deleted == 1
            assert [node.name for node in store.status()] == ["n1", "n2", "n3"]
            assert store.transfer_leader("n3") == 3
        with pytest.raises(raftstate.ClosedError):
            store.get("a")

    await asyncio.to_thread(use)


def test_the_faces_take_the_same_arguments() -> None:
    for face, inner in (
        (raftstate.Client, raftstate.AsyncClient),
        (raftstate.Lease, raftstate.AsyncLease),
        (raftstate.Txn, raftstate.AsyncTxn),
    ):
        calls = [name for name in vars(face) if callable(vars(face)[name]) and not name.startswith("_")]
        assert calls
        for name in calls:
            here, there = (inspect.signature(getattr(kind, name)) for kind in (face, inner))
            assert here.parameters == there.parameters, name
            # What is a handle there is a face of it here.
            assert here.return_annotation == str(there.return_annotation).removeprefix("Async"), name


async def test_many_threads_share_a_client_and_a_session(cluster: FakeCluster) -> None:
    def use() -> None:
        with raftstate.connect(cluster.url) as store, ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: store.put(f"k{number}", b""), range(200)))
            assert len(cluster.sessions) == 1

    await asyncio.to_thread(use)
    assert sorted(key for key, _ in cluster.executed) == sorted(
        f"k{number}".encode() for number in range(200)
    )


async def test_close_from_another_thread_ends_calls_that_wait(cluster: FakeCluster) -> None:
    arrived = asyncio.Event()
    cluster.faults.append(hold(arrived, asyncio.Event()))
    store = raftstate.connect(cluster.url)
    write = asyncio.create_task(asyncio.to_thread(store.put, "k", b"1"))
    await arrived.wait()
    await asyncio.to_thread(store.close)
    with pytest.raises(raftstate.IndefiniteError):
        await write
    await asyncio.to_thread(store.close)


def test_an_unused_client_starts_no_thread() -> None:
    before = threading.active_count()
    with raftstate.connect("127.0.0.1:1"):
        assert threading.active_count() == before


async def test_a_client_that_is_collected_ends_its_thread(cluster: FakeCluster) -> None:
    def use() -> None:
        store = raftstate.connect(cluster.url)
        store.put("k", b"1")

    await asyncio.to_thread(use)
    [thread] = [each for each in threading.enumerate() if each.name == "raftstate-client"] or [None]
    gc.collect()
    if thread is not None:
        await asyncio.to_thread(thread.join, 20)
    assert "raftstate-client" not in {thread.name for thread in threading.enumerate()}
    assert cluster.sessions == []


@pytest.mark.parametrize("end", ["", "del store", "store.close()"])
async def test_a_process_ends_cleanly_with_or_without_close(cluster: FakeCluster, end: str) -> None:
    script = f"import sys, raftstate; store = raftstate.connect(sys.argv[1]); store.put('k', b'1'); {end}"
    done = await asyncio.to_thread(run, script, cluster.url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert cluster.executed == [(b"k", b"1")]
    assert cluster.sessions == []


FORK_BEFORE_USE = """
import os, sys, raftstate
store = raftstate.connect(sys.argv[1])
child = os.fork()
store.put("child" if child == 0 else "parent", b"1")
store.close()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    os._exit(0)
"""

FORK_AFTER_USE = """
import asyncio, os, sys, raftstate
store = raftstate.connect(sys.argv[1])
store.put("before", b"1")
child = os.fork()
if child == 0:
    async def use_another():
        async with raftstate.connect_async(sys.argv[1]) as other:
            await other.put("child", b"1")
    refused = 0
    calls = (lambda: store.put("child", b"1"), lambda: store.get("k"), lambda: asyncio.run(use_another()))
    for call in calls:
        try:
            call()
        except raftstate.FailedPreconditionError as error:
            refused += "was forked from one that" in error.message
    store.close()
    os._exit(0 if refused == 3 else 1)
assert os.waitpid(child, 0)[1] == 0
store.put("after", b"1")
"""


FORK_IN_A_COROUTINE = """
import asyncio, os, raftstate
from raftstate.client import fork

async def main():
    client = raftstate.connect_async("127.0.0.1:1")
    links = client._connected()
    fork.about_to_open_channel()
    child = os.fork()
    if child == 0:
        try:
            fork.about_to_open_channel()
        except raftstate.FailedPreconditionError:
            os._exit(2 if client._links is links else 0)
        os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client._links is links)
    await client.close()

asyncio.run(main())
"""


@pytest.mark.case(74)
def test_a_child_forked_in_a_coroutine_has_nothing_of_its_parents_and_opens_no_channel() -> None:
    done = run(FORK_IN_A_COROUTINE, "")
    assert (done.stdout, done.stderr) == ("0 True\n", "")


@pytest.mark.case(74)
async def test_a_child_forked_before_the_first_call_has_a_session_of_its_own(cluster: FakeCluster) -> None:
    done = await asyncio.to_thread(run, FORK_BEFORE_USE, cluster.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(cluster.executed) == [(b"child", b"1"), (b"parent", b"1")]
    assert len({batch.session.nonce for batch in cluster.batches}) == 2


@pytest.mark.case(74)
async def test_a_child_forked_after_the_first_call_is_refused_and_does_its_parent_no_harm(
    cluster: FakeCluster,
) -> None:
    done = await asyncio.to_thread(run, FORK_AFTER_USE, cluster.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.executed == [(b"before", b"1"), (b"after", b"1")]


def test_importing_the_package_does_not_import_grpc() -> None:
    script = (
        "import sys, raftstate; raftstate.NoLeaderError; print('grpc' in sys.modules, raftstate.__version__)"
    )
    done = run(script, "")
    assert (done.stdout, done.stderr) == ("False 0.1.0\n", "")


def test_every_public_name_is_there() -> None:
    assert all(hasattr(raftstate, name) for name in raftstate.__all__)
    assert set(raftstate.__all__) <= set(dir(raftstate))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        raftstate.nothing  # noqa: B018
