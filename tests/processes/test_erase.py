"""Erase on real nodes: afterwards no file of any node holds a byte of the key or its values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from raftstate import AsyncClient, Delete, EraseResult, Put, Range, connect_async
from raftstate.supervisor import LocalCluster
from tests.processes.load import Load, check

pytestmark = pytest.mark.processes

MARK = b"zQ7y-secret-"
KEY = b"people/" + MARK * 3
"""Longer than a group of a milestone's key, which splits it."""
DONE_S = 60.0


def files_with(directory: Path, wanted: bytes = MARK) -> set[str]:
    """Files below a directory that hold these bytes, in their content or their name."""
    found = set()
    for path in directory.rglob("*"):
        try:
            if path.is_file() and (wanted in path.read_bytes() or wanted in path.name.encode()):
                found.add(f"{path.parent.name}/{path.name}")
        except FileNotFoundError:
            continue  # removed meanwhile
    return found


def data(cluster: LocalCluster, name: str) -> Path:
    return cluster.node(name).data


async def fill(store: AsyncClient) -> None:
    """Write the key again and again: small values and such as take pages of their own; leases; answers with
    previous pairs, kept by the client's session for as long as it has something to wait for."""
    lease = await store.lease(600).grant()
    for round in range(40):
        await store.put(KEY, MARK + b"%d" % round, lease=lease)
        await store.put(KEY, MARK * (1_000 if round % 3 else 100_000 // len(MARK)))
    await store.delete(KEY)
    await store.put(KEY, MARK * 2_000, lease=lease)
    await store.put(KEY, MARK, prev_kv=True, lease=lease)
    await store.txn().then(Range(prefix="people/"), Put(KEY, MARK * 500, prev_kv=True)).commit()
    await store.txn().then(Delete(KEY, prev_kv=True), Put("other", b"kept")).commit()
    await store.put(KEY, MARK * 3_000, lease=lease)
    await store.put("kept", b"as it is")


async def until_done(store: AsyncClient, erased: EraseResult, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    """Wait until all members but these are done; return what each is."""
    deadline = time.monotonic() + DONE_S
    while True:
        states = {each.name: each.state for each in await store.erase_progress(erased)}
        if all(state == "done" for name, state in states.items() if name not in but):
            return states
        assert time.monotonic() < deadline, (states, await store.status())
        await asyncio.sleep(0.1)


@asynccontextmanager
async def loaded(cluster: LocalCluster) -> AsyncIterator[tuple[AsyncClient, Load]]:
    async with connect_async(cluster.url, timeout=20) as store, connect_async(cluster.url) as other:
        load = Load(other, writers=8, prefix="load")
        try:
            yield store, load
        finally:
            ledger = await load.stop()
        await check(store, ledger, "load")


async def test_no_file_of_any_node_holds_an_erased_key_while_others_write(cluster: LocalCluster) -> None:
    async with loaded(cluster) as (store, load):
        await fill(store)
        names = [node.name for node in cluster.nodes]
        deadline = time.monotonic() + 10
        while not all(
            {"log/data.mdb"} < files_with(data(cluster, name)) for name in names
        ):  # it is in the log and in the state of each
            assert time.monotonic() < deadline, {n: files_with(data(cluster, n)) for n in names}
            await asyncio.sleep(0.1)
        before = load.total
        async with store.watch(prefix="people/", prev_kv=True) as watch:
            erased = await store.erase(KEY)
            event = await anext(aiter(watch))
        assert (event.kind, event.key, event.prev_kv) == ("delete", KEY, None)
        assert erased.deleted
        assert await store.get(KEY) is None
        await until_done(store, erased)
        assert {name: files_with(data(cluster, name)) for name in names} == {name: set() for name in names}
        assert load.total > before
        kept = await store.get("kept")
        assert kept is not None
        status = await store.status()
        assert all(node.erased_index >= node.last_erase_index > 0 for node in status)
        assert not any(node.alarms for node in status)
    assert cluster.deaths() == []


async def test_a_node_that_was_down_is_pending_and_done_once_it_is_back(cluster: LocalCluster) -> None:
    async with loaded(cluster) as (store, load):
        await fill(store)
        leader = cluster.wait_for_leader()
        down = next(node.name for node in cluster.nodes if node.name != leader)
        others = [node.name for node in cluster.nodes if node.name != down]
        await asyncio.sleep(1.5)  # a checkpoint: what is down holds it on its disk
        await asyncio.to_thread(cluster.kill, down)
        erased = await store.erase(KEY)
        states = await until_done(store, erased, but=(down,))
        assert states[down] == "unreachable"
        assert {name: files_with(data(cluster, name)) for name in others} == {name: set() for name in others}
        assert files_with(data(cluster, down)) != set()
        await asyncio.to_thread(cluster.restart, down)
        await until_done(store, erased)
        assert files_with(data(cluster, down)) == set()
        await load.until(load.total + 50)
        # And they stay so: nothing that was sent to it has come from a file that still held it.
        assert {name: files_with(data(cluster, name)) for name in others} == {name: set() for name in others}


async def test_nodes_that_are_killed_on_the_way_go_on_when_they_are_back(cluster: LocalCluster) -> None:
    async with loaded(cluster) as (store, _):
        await fill(store)
        erased = await store.erase(KEY)
        for delay_s in (0.3, 1.3, 2.0):
            await asyncio.sleep(delay_s)
            for node in cluster.nodes:
                await asyncio.to_thread(cluster.kill, node.name)
            for node in cluster.nodes:
                await asyncio.to_thread(cluster.restart, node.name)
        await until_done(store, erased)
        for node in cluster.nodes:
            assert files_with(data(cluster, node.name)) == set()
