"""What a node's scrub looks at before all else: what its start has left unverified of the log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from raftstate.core.types import HardState
from raftstate.errors import RaftstateError
from raftstate.node import scrub
from raftstate.node.scrub import Scrubber
from raftstate.store import log_unverified
from raftstate.store.log import LogStore
from tests.store.log_helpers import MAP_BYTES, entry, put
from tests.store.test_log_damage import closed_log, damage
from tests.store.test_log_unverified import large, spoil_head


class Told:
    """A scrubber at rate 0 over a log, and what it tells of it."""

    def __init__(self, log: LogStore) -> None:
        self.log_damage = 0
        self.lost: list[RaftstateError] = []
        self.applier = SimpleNamespace(is_beside=False)
        self.scrubber = Scrubber(
            cast(Any, SimpleNamespace(record_sum_changes=lambda changes: None)),
            cast(Any, None),
            log,
            cast(Any, self.applier),
            cast(Any, SimpleNamespace(monotonic_ns=time.monotonic_ns)),
            rate_bytes_per_s=0,
            on_damage=lambda error, hidden: pytest.fail(f"damage of the state: {error}"),
            on_log_damage=self._count,
            on_log_lost=self.lost.append,
            may_scrub=lambda: False,
        )

    def _count(self) -> None:
        self.log_damage += 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_damaged_records_are_told_of_whatever_the_rate(tmp_path: Path) -> None:
    closed_log(tmp_path / "log", [entry(i, data=b"payload %d" % i) for i in range(1, 9)], HardState(1, 1, 8))
    damage(tmp_path / "log", b"payload 3", b"paYload 3")
    log = LogStore.open(tmp_path / "log", map_bytes=MAP_BYTES, verify_after=8)
    told = Told(log)
    assert not told.applier.may_cut()
    told.scrubber.start()
    await until(lambda: told.log_damage == 1)
    assert told.applier.may_cut()
    assert (log.damaged, told.lost) == ((3,), [])
    await told.scrubber.close()
    log.close()


async def test_more_than_damaged_records_is_what_the_node_halts_with(tmp_path: Path) -> None:
    closed_log(tmp_path / "log", [large(i) for i in range(1, 9)], HardState(1, 1, 8))
    spoil_head(tmp_path / "log", 3)
    log = LogStore.open(tmp_path / "log", map_bytes=MAP_BYTES, verify_after=8)
    told = Told(log)
    told.scrubber.start()
    await until(lambda: bool(told.lost))
    assert "this node's log is damaged" in str(told.lost[0])
    assert told.log_damage == 0
    await told.scrubber.close()
    log.close()


async def slowly_verified(path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[LogStore, Told]:
    """A log of which a scrubber has begun to verify the rest: all of it takes more than 3 s."""
    closed_log(path, [large(i) for i in range(1, 9)], HardState(1, 1, 8))
    monkeypatch.setattr(log_unverified, "_STEPS_AT_ONCE", 1)
    monkeypatch.setattr(log_unverified, "_PAUSE_S", 0.2)
    log = LogStore.open(path, map_bytes=MAP_BYTES, verify_after=8)
    told = Told(log)
    told.scrubber.start()
    await asyncio.sleep(0.1)
    return log, told


async def test_a_node_that_stops_does_not_wait_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, told = await slowly_verified(tmp_path / "log", monkeypatch)
    began_s = time.monotonic()
    await told.scrubber.close()
    assert time.monotonic() - began_s < 1.0
    assert (told.log_damage, told.lost) == (0, [])
    log.close()


async def test_a_log_that_grows_meanwhile_is_verified_in_haste(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, told = await slowly_verified(tmp_path / "log", monkeypatch)
    assert not told.applier.may_cut()
    put(log, [entry(9, data=bytes(scrub.GROWN_BYTES_MAX + (1 << 20)))])
    began_s = time.monotonic()
    await until(told.applier.may_cut)
    assert time.monotonic() - began_s < 2.0
    await told.scrubber.close()
    log.close()
