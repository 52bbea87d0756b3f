"""A client process with many watches, that keeps what each was given; `bench.watch_load` starts and reads it.

    python -m bench.watch_client URL --watches 1000 --prefixes 100 --unread 0 --records FILE

Prints one line of JSON when all watches exist, and another, after FILE is written, when each has seen the
last key of its prefix.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import time
from array import array
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from bench.watch_load import LAST, RECORD_FIELDS, prefix_of, serial_of
from raftstate import AsyncWatch, connect_async


async def read(watch: AsyncWatch, number: int, records: array[int]) -> None:
    """Note every event of a watch until the last one."""
    async for event in watch:
        records.extend((number, event.revision, serial_of(event.value), time.monotonic_ns()))
        if event.key.endswith(LAST):
            return


async def run(url: str, watches: int, prefixes: int, unread: int, path: Path) -> None:
    """Open all watches, and read those that are to be read to their end."""
    records = array("q")
    async with connect_async(url, timeout=30) as client, AsyncExitStack() as stack:
        every = [client.watch(prefix=prefix_of(number % prefixes)) for number in range(watches + unread)]
        await asyncio.gather(*(stack.enter_async_context(watch) for watch in every))
        gc.freeze()
        print(json.dumps({"ready": len(every)}), flush=True)
        async with asyncio.TaskGroup() as readers:
            for number, watch in enumerate(every[:watches]):
                readers.create_task(read(watch, number, records))
        with path.open("wb") as file:
            records.tofile(file)
        print(json.dumps({"watches": watches, "records": len(records) // RECORD_FIELDS}), flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.watch_client", description=__doc__)
    parser.add_argument("url")
    for name in ("--watches", "--prefixes", "--unread"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--records", type=Path, required=True)
    args = parser.parse_args()
    uvloop.run(run(args.url, args.watches, args.prefixes, args.unread, args.records))


if __name__ == "__main__":
    main()
