"""Watches over the real state store, with the event loop's clock and a real thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raftstate.machine.machine import Machine
from raftstate.node.clock import LoopClock
from raftstate.node.watch_stream import Watches
from raftstate.node.watches import WatchHub, beside_on
from raftstate.store.state import StateStore
from tests.machine.rig import CLUSTER, MEMBERS, batch, entry, put
from tests.node.watch_rig import create, spec, told


async def read_until(stream: Watches, watch_id: int, revision: int) -> list[int]:
    """Return the revisions that a watch is told, up to one of them."""
    revisions: list[int] = []
    while not revisions or revisions[-1] < revision:
        revisions += [each for each, _, _ in told(await stream.next()).get(watch_id, [])]
    return revisions


async def test_watches_of_a_state_on_disk_miss_nothing_while_it_is_written_to(tmp_path: Path) -> None:
    state = StateStore.create(tmp_path, 64 << 20)
    with state.write() as tables:
        Machine.bootstrap(tables, CLUSTER, MEMBERS)
    with state.read() as tables:
        machine = Machine(tables)

    async def confirm(timeout_s: float) -> None:
        """What is applied here is all there is."""

    thread = ThreadPoolExecutor(1)
    hub = WatchHub(state.read, LoopClock(asyncio.get_running_loop()), beside_on(thread), confirm)

    def write(puts: int) -> None:
        commands = [put(n, b"k%d" % n, b"x" * 100) for n in range(puts)]
        with state.write() as tables:
            machine.apply(tables, [entry(machine.applied_index + 1, batch(*commands))])
        hub.applied()

    for _ in range(10):
        write(250)
    early, late = hub.open(), hub.open()
    await create(early, spec(1, b"k", prefix=True, start=2))
    await create(late, spec(1, b"k", prefix=True))
    last = machine.revision + 20 * 10
    reading = [asyncio.ensure_future(read_until(stream, 1, last)) for stream in (early, late)]
    for _ in range(20):
        write(10)
        await asyncio.sleep(0.001)
    got_early, got_late = await asyncio.gather(*reading)
    assert got_early == list(range(2, last + 1))
    assert got_late == list(range(2_502, last + 1))
    hub.close()
    thread.shutdown()
    state.close(clean=False)
