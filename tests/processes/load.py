"""Writers that remember what was acknowledged, and the comparison of that with what the cluster holds."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from raftstate import AsyncClient, ClosedError, IndefiniteError, NoLeaderError, RaftstateError


@dataclass
class Ledger:
    """What was told to the writers."""

    acknowledged: dict[bytes, int] = field(default_factory=dict)
    """key -> revision; each key is written once."""
    counted: dict[bytes, int] = field(default_factory=dict)
    """key -> acknowledged writes; these keys are written again and again."""
    unknown: dict[bytes, int] = field(default_factory=dict)
    """key -> writes whose outcome could not be known."""
    refused: int = 0


class Load:
    """Writers at work in the background, each with one write under way."""

    def __init__(self, client: AsyncClient, *, writers: int, prefix: str) -> None:
        self.ledger = Ledger()
        self._client = client
        self._prefix = prefix
        self._stopping = False
        self._progress = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write(number)) for number in range(writers)]

    async def _write(self, writer: int) -> None:
        counter = f"{self._prefix}/counter/{writer}".encode()
        number = 0
        while not self._stopping:
            key = f"{self._prefix}/{writer}/{number:06d}".encode()
            number += 1
            await self._put(key, counted=False)
            await self._put(counter, counted=True)

    async def _put(self, key: bytes, *, counted: bool) -> None:
        ledger = self.ledger
        try:
            result = await self._client.put(key, b"v" * 100, timeout=20)
        except ClosedError:
            # A test that failed closes its client: to go on would keep it from ending.
            self._stopping = True
        except IndefiniteError:
            ledger.unknown[key] = ledger.unknown.get(key, 0) + 1
        except (NoLeaderError, RaftstateError):
            ledger.refused += 1
        else:
            if counted:
                ledger.counted[key] = ledger.counted.get(key, 0) + 1
            else:
                ledger.acknowledged[key] = result.revision
            self._progress.set()

    async def until(self, acknowledged: int) -> None:
        """Wait until so many writes in all were acknowledged."""
        async with asyncio.timeout(60):
            while len(self.ledger.acknowledged) + sum(self.ledger.counted.values()) < acknowledged:
                self._progress.clear()
                await self._progress.wait()

    @property
    def total(self) -> int:
        """How many writes were acknowledged."""
        return len(self.ledger.acknowledged) + sum(self.ledger.counted.values())

    async def stop(self) -> Ledger:
        """Let each writer finish what it has under way."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        return self.ledger


async def check(client: AsyncClient, ledger: Ledger, prefix: str) -> None:
    """Assert that every acknowledged write is there, and that none was applied twice."""
    found = {}
    start = f"{prefix}/".encode()
    end = f"{prefix}0".encode()
    while True:
        page = await client.range(start, end, timeout=30)
        found.update({pair.key: pair for pair in page.kvs})
        if not page.more:
            break
        start = page.kvs[-1].key + b"\x00"
    lost = [key for key in ledger.acknowledged if key not in found]
    assert lost == []
    moved = [key for key, revision in ledger.acknowledged.items() if found[key].mod_revision != revision]
    assert moved == []
    counters = set(ledger.counted) | {key for key in found if b"/counter/" in key}
    twice = [key for key, pair in found.items() if key not in counters and pair.version != 1]
    assert twice == []
    for key in counters:
        acknowledged, unknown = ledger.counted.get(key, 0), ledger.unknown.get(key, 0)
        version = found[key].version if key in found else 0
        assert acknowledged <= version <= acknowledged + unknown, key
