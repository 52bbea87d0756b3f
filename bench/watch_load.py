"""The load of watches: a writer at a given rate, client processes with many watches, and the comparison of
what was acknowledged to the one with what came to the others.

Every write has a number of its own, and names it in its value. So each event can be told from all others, and
what is missing, came twice or came too early is counted, not guessed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raftstate import AsyncClient, IndefiniteError, Put, RaftstateError

ROOT = Path(__file__).resolve().parents[1]
SERIAL_DIGITS = 15
KEYS_OF_PREFIX = 100
TXN_EVERY = 50
"""So often a write is a transaction of two puts: two events of one revision."""
PACE_S = 0.005
"""Writes that fall due within it leave together."""
LAST = b"~last"
"""The end of the last key of each prefix: whoever sees it has seen all."""
RECORD_FIELDS = 4
"""(watch, revision, serial, monotonic ns) of an event."""


def prefix_of(number: int) -> bytes:
    """Return the prefix of that number."""
    return b"watched/%05d/" % number


def serial_of(value: bytes) -> int:
    """Return the number that a written value names."""
    return int(value[:SERIAL_DIGITS])


@dataclass
class Written:
    """What the writer was told: serial -> (revision, monotonic ns of the answer)."""

    prefixes: int
    acknowledged: dict[int, tuple[int, int]] = field(default_factory=dict)
    unknown: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)

    def by_prefix(self) -> list[dict[int, int]]:
        """Return the acknowledged writes, serial -> revision, of each prefix."""
        found: list[dict[int, int]] = [{} for _ in range(self.prefixes)]
        for serial, (revision, _) in self.acknowledged.items():
            found[serial // 2 % self.prefixes][serial] = revision
        return found


class Writer:
    """Writes `per_s` times a second, round the prefixes, however long the answers take.

    Args:
        client: of the cluster.
        prefixes: how many there are; each has `KEYS_OF_PREFIX` keys.
        value_bytes: of each value.
        timeout_s: of each write.
    """

    def __init__(
        self,
        client: AsyncClient,
        *,
        per_s: float,
        prefixes: int,
        value_bytes: int = 100,
        timeout_s: float = 30,
    ) -> None:
        self.written = Written(prefixes)
        self._client = client
        self._per_s = per_s
        self._prefixes = prefixes
        self._filler = b"." * (value_bytes - SERIAL_DIGITS)
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._progress = asyncio.Event()
        self._number = 0
        self._pacer = asyncio.create_task(self._pace())

    async def _pace(self) -> None:
        began = time.perf_counter()
        while True:
            due = int((time.perf_counter() - began) * self._per_s)
            while self._number < due:
                task = asyncio.create_task(self._write(self._number))
                self._number += 1
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.sleep(PACE_S)

    async def _write(self, number: int) -> None:
        prefix = prefix_of(number % self._prefixes)
        place = number // self._prefixes % KEYS_OF_PREFIX
        serials = [2 * number] if number % TXN_EVERY else [2 * number, 2 * number + 1]
        puts = [
            Put(prefix + b"%05d-%d" % (place, serial % 2), b"%0*d" % (SERIAL_DIGITS, serial) + self._filler)
            for serial in serials
        ]
        await self._send(serials, puts)

    async def _send(self, serials: Sequence[int], puts: Sequence[Put]) -> None:
        written = self.written
        try:
            if len(puts) == 1:
                result = await self._client.put(puts[0].key, puts[0].value, timeout=self._timeout_s)
                revision = result.revision
            else:
                txn = self._client.txn().then(*puts)
                revision = (await txn.commit(timeout=self._timeout_s)).revision
        except IndefiniteError:
            written.unknown.update(serials)
        except RaftstateError:
            written.refused.update(serials)
        else:
            now_ns = time.monotonic_ns()
            for serial in serials:
                written.acknowledged[serial] = (revision, now_ns)
            self._progress.set()

    async def until(self, acknowledged: int, *, timeout_s: float = 60) -> None:
        """Wait until so many writes in all were acknowledged. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout_s):
            while len(self.written.acknowledged) < acknowledged:
                self._progress.clear()
                await self._progress.wait()

    @property
    def total(self) -> int:
        """How many writes were acknowledged."""
        return len(self.written.acknowledged)

    async def finish(self) -> Written:
        """Stop, wait for the last answers, and then write the last key of each prefix."""
        self._pacer.cancel()
        await asyncio.gather(*self._tasks)
        start = -(-self._number // self._prefixes) * self._prefixes
        for number in range(start, start + self._prefixes):
            serial = 2 * number
            put = Put(prefix_of(number % self._prefixes) + LAST, b"%0*d" % (SERIAL_DIGITS, serial))
            await self._send([serial], [put])
        return self.written


class WatchProcess:
    """A client process with watches (`bench.watch_client`).

    Args:
        url: of the cluster.
        folder: for its records.
        watches: how many watches are read, round the prefixes.
        prefixes: how many there are.
        unread: how many more there are that are never read.
    """

    def __init__(self, url: str, folder: Path, *, watches: int, prefixes: int, unread: int = 0) -> None:
        self._records = folder / f"records-{os.getpid()}-{time.monotonic_ns()}"
        options = {"watches": watches, "prefixes": prefixes, "unread": unread, "records": self._records}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.watch_client", url, *words], stdout=subprocess.PIPE, cwd=ROOT
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait_ready(self) -> None:
        """Wait until all its watches exist. Raises `RuntimeError` when it ended."""
        self._line()

    def records(self) -> Records:
        """Wait until each watch that is read has seen the last key of its prefix; return what they saw.

        Raises `RuntimeError` when it ended otherwise.
        """
        said = self._line()
        fields = array("q")
        with self._records.open("rb") as file:
            fields.fromfile(file, said["records"] * RECORD_FIELDS)
        self._records.unlink()
        return Records(said["watches"], fields)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of watches ended with exit code {self._process.wait()}")
        said: dict[str, Any] = json.loads(line)
        return said


@dataclass
class Records:
    """The events of a client process's watches, in the order in which they came."""

    watches: int
    fields: array[int]

    def __iter__(self) -> Iterator[tuple[int, int, int, int]]:
        """Yield (watch, revision, serial, monotonic ns)."""
        fields = iter(self.fields)
        return zip(fields, fields, fields, fields, strict=True)

    def between(self, start_ns: int, end_ns: int) -> Records:
        """Return those that came from `start_ns` on and before `end_ns`."""
        fields = array("q")
        for record in self:
            if start_ns <= record[3] < end_ns:
                fields.extend(record)
        return Records(self.watches, fields)


@dataclass(frozen=True)
class Verdict:
    """What came, and how many events were not as they must be; all but `delivered` should be 0.

    `missing`: acknowledged, and did not come. `disordered`: came after a later one, or twice. `foreign`: were
    never written, were refused, or belong to another prefix or revision.
    """

    delivered: int
    missing: int
    disordered: int
    foreign: int

    @property
    def is_sound(self) -> bool:
        """Whether each watch saw every event once, in order."""
        return not (self.missing or self.disordered or self.foreign)


def judge(records: Records, written: Written) -> Verdict:
    """Compare what watches were given with what was written."""
    expected = written.by_prefix()
    missing = sum(len(expected[watch % written.prefixes]) for watch in range(records.watches))
    last = [(0, 0)] * records.watches
    delivered = disordered = foreign = 0
    for watch, revision, serial, _ in records:
        delivered += 1
        if (revision, serial) <= last[watch]:
            disordered += 1
            continue
        # In a transaction serials ascend, too.
        last[watch] = (revision, serial)
        is_own = serial // 2 % written.prefixes == watch % written.prefixes
        if is_own and expected[watch % written.prefixes].get(serial) == revision:
            missing -= 1
        elif not is_own or serial not in written.unknown:
            foreign += 1
    return Verdict(delivered, missing, disordered, foreign)


def lags_ms(records: Records, written: Written) -> list[float]:
    """Return, sorted, how long after the acknowledgement of its write each event came, in ms.

    Below 0: it came before. Processes of one machine have the same monotonic clock.
    """
    lags = []
    for _, _, serial, came_ns in records:
        answered = written.acknowledged.get(serial)
        if answered is not None:
            lags.append((came_ns - answered[1]) / 1e6)
    return sorted(lags)
