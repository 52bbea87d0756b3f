"""How a client ends: closed, cancelled while it closes, or with a transport that does nothing any more."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import raftstate
from raftstate.client import links
from raftstate.client.channels import Channels
from raftstate.client.links import Links
from raftstate.client.transport import Method
from raftstate.errors import ClosedError, FailedPreconditionError, IndefiniteError, RaftstateError
from tests.client.fake_cluster import FakeCluster, hold


class Mortal(Channels):
    """A transport whose node may go away for good: `error` is raised by whatever is asked of it then.

    `closing`: a close has begun; it waits for `may_close`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.error: RaftstateError | None = None
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()
        self.may_close.set()
        self.closed = False
        self.streams: list[Any] = []

    async def unary(self, address: str, method: Method[Any, Any], request: Any, timeout_s: float) -> Any:
        self._check()
        return await super().unary(address, method, request, timeout_s)

    def stream(self, address: str, method: Method[Any, Any]) -> Any:
        self._check()
        self.streams.append(super().stream(address, method))
        return self.streams[-1]

    def halt(self, error: RaftstateError) -> None:
        self.error = error
        for stream in self.streams:
            stream.cancel()

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        await super().close()
        self.closed = True

    def _check(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> Mortal:
    transport = Mortal()
    monkeypatch.setattr(links, "_transport_to", lambda endpoints: transport)
    return transport


def links_of(store: raftstate.AsyncClient) -> Links:
    assert store._links is not None
    return store._links


def running() -> list[str]:
    """The names of the tasks of clients that still run."""
    return [name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("raftstate-")]


# ---- closing


async def test_a_close_that_was_cancelled_goes_on_and_is_waited_for_by_the_next(
    cluster: FakeCluster, transport: Mortal
) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.put("k", b"1")
    transport.may_close.clear()
    closing = asyncio.create_task(store.close())
    await transport.closing.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    again = [asyncio.create_task(store.close()) for _ in range(2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in again)
    transport.may_close.set()
    await asyncio.gather(*again)
    await store.close()
    assert transport.closed
    assert running() == []
    assert cluster.sessions == []


async def test_a_close_that_is_cancelled_at_once_closes_all_the_same(
    cluster: FakeCluster, transport: Mortal
) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.put("k", b"1")
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await store.close()
    assert transport.closed


async def test_what_cancels_every_task_leaves_nothing_open(cluster: FakeCluster, transport: Mortal) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.put("k", b"1")
    arrived = asyncio.Event()
    cluster.faults.append(hold(arrived, asyncio.Event()))
    before = asyncio.all_tasks()
    writing = asyncio.create_task(store.put("k", b"2"))
    await arrived.wait()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.wait([writing, closing])
    await store.close()
    assert transport.closed


async def test_a_client_whose_node_is_gone_closes(cluster: FakeCluster, transport: Mortal) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.put("k", b"1")
    transport.error = ClosedError("the node has halted")
    await store.close()
    await store.close()
    assert transport.closed
    assert running() == []


async def test_one_part_that_fails_to_close_keeps_no_other_open(
    cluster: FakeCluster, transport: Mortal, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = raftstate.connect_async(cluster.url)
    await store.put("k", b"1")

    async def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(links_of(store).watcher, "close", fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await store.close()
    assert transport.closed
    assert cluster.sessions == []


# ---- a transport that does nothing any more


async def two_sent_and_one_not(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> tuple[list[asyncio.Task[raftstate.PutResult]], asyncio.Task[raftstate.PutResult]]:
    """Begin three writes in a client that sends the third when the node has answered one of the others."""
    cluster.faults.append(hold(asyncio.Event(), asyncio.Event()))
    ledger = links_of(store).pipeline._ledger
    sent = []
    for count in (1, 2):
        sent.append(asyncio.create_task(store.put("k", b"2")))
        async with asyncio.timeout(10):
            while ledger.batches_in_flight < count:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0)
    unsent = asyncio.create_task(store.put("k", b"3"))
    await asyncio.sleep(0)
    return sent, unsent


@pytest.mark.parametrize("error", [ClosedError("the node has halted"), FailedPreconditionError("of a fork")])
async def test_when_the_node_is_gone_for_good_all_calls_end_at_once(
    cluster: FakeCluster, transport: Mortal, error: RaftstateError
) -> None:
    store = raftstate.connect_async(cluster.url, timeout=1_000)
    await store.put("k", b"1")
    sent, unsent = await two_sent_and_one_not(cluster, store)
    transport.halt(error)
    outcomes = await asyncio.gather(*sent, unsent, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [IndefiniteError, IndefiniteError, type(error)]
    assert error.message in str(outcomes[0])
    for call in (store.get("k"), store.get("k", consistency="local"), store.put("k", b"4"), store.leases()):
        with pytest.raises(type(error), match=error.message):
            await call
    await store.close()


async def test_writes_end_when_their_pipeline_is_cancelled_by_somebody_else(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put("k", b"1")
    sent, unsent = await two_sent_and_one_not(cluster, store)
    task = links_of(store).pipeline._task
    assert task is not None
    task.cancel()
    outcomes = await asyncio.gather(*sent, unsent, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [IndefiniteError, IndefiniteError, ClosedError]
    await store.put("k", b"4")
    assert cluster.executed[-1] == (b"k", b"4")
