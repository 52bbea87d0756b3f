"""Real nodes on a real disk whose power is cut under writes: what was only in the page cache is gone."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bench.power import PowerCutDisk
from raftstate import FailedPreconditionError, connect_async
from raftstate.supervisor import LocalCluster
from tests.processes.load import Ledger, Load, check

WRITES = 200

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        "CI" not in os.environ and (os.geteuid() != 0 or shutil.which("mkfs.ext4") is None),
        reason="only root can cut the power of a disk, and mkfs.ext4 (e2fsprogs) makes it",
    ),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[PowerCutDisk]:
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(PowerCutDisk(tmp_path, megabytes=2048))
        except subprocess.CalledProcessError as error:
            if "CI" in os.environ:
                raise
            pytest.skip(f"no loop device can be mounted here: {error}")
        yield disk


def cut_power(cluster: LocalCluster, disk: PowerCutDisk) -> None:
    """Cut the power of all nodes at one blow, and start them again once it is back."""
    disk.cut()
    for node in cluster.nodes:
        with suppress(FailedPreconditionError):  # it may have ended by itself
            cluster.kill(node.name)
    cluster.stop()  # its lock is on that disk, too, and would keep it busy
    disk.restore()
    cluster.start()


@pytest.mark.case(47)
@pytest.mark.parametrize("nodes", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_every_acknowledged_write_survives_power_cuts_of_all_nodes(
    disk: PowerCutDisk, nodes: int
) -> None:
    cluster = LocalCluster(disk.folder / "cluster", nodes=nodes, port=0)
    ledgers: dict[str, Ledger] = {}
    with cluster:
        await asyncio.to_thread(cluster.wait_for_leader)
        async with connect_async(cluster.url) as client:
            for prefix in ("first", "second", "third"):
                load = Load(client, writers=8, prefix=prefix)
                await load.until(WRITES)
                await asyncio.to_thread(cut_power, cluster, disk)
                await asyncio.to_thread(cluster.wait_for_leader)
                # Writes that were under way at the cut are sent again, within their session: applied once.
                ledgers[prefix] = await load.stop()
                for earlier, ledger in ledgers.items():
                    await check(client, ledger, earlier)
