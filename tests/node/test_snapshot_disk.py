"""Files of snapshots: one that is still sent is not touched by what is made after it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from raftstate.node.environment import SnapshotFile
from tests.node.test_rebuild import RebuildRig


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[RebuildRig]:
    rig = RebuildRig(tmp_path)
    yield rig
    await rig.close()


async def made(rig: RebuildRig) -> SnapshotFile:
    future: asyncio.Future[SnapshotFile | BaseException] = asyncio.get_running_loop().create_future()
    rig.snapshot_disk.make(future.set_result)
    result = await future
    assert isinstance(result, SnapshotFile)
    return result


async def read(rig: RebuildRig, file: SnapshotFile) -> bytes | BaseException:
    future: asyncio.Future[bytes | BaseException] = asyncio.get_running_loop().create_future()
    rig.snapshot_disk.read(file, 0, file.size_bytes, future.set_result)
    return await future


async def test_two_at_the_same_entry_are_two_files(rig: RebuildRig) -> None:
    """As when the first one is handed out no more, and is still being sent: an idle cluster applies nothing
    in between."""
    await rig.put("k")
    first = await made(rig)
    content = await read(rig, first)
    second = await made(rig)
    assert second.metadata == first.metadata
    assert await read(rig, first) == content
    rig.snapshot_disk.remove(first)
    assert isinstance(await read(rig, first), BaseException)
    assert await read(rig, second) == content
