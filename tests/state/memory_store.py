"""A store in a dict, with the answers of the async client, for tests of the models. Every call takes a turn
of the loop."""

from __future__ import annotations

import asyncio

from raftstate.client.types import KeyValue, PutResult, RangeResult
from raftstate.errors import IndefiniteError


class MemoryStore:
    """`lose_answer`: the next put is applied, and its answer lost. `page_max`: pairs in one answer to a
    range."""

    def __init__(self, page_max: int = 1_000) -> None:
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.gets = 0
        self.lose_answer = False
        self.page_max = page_max

    async def get(self, key: bytes, /, *, timeout: float | None = None) -> KeyValue | None:
        self.gets += 1
        await asyncio.sleep(0)
        return self.rows.get(key)

    async def put(self, key: bytes, value: bytes, /, *, timeout: float | None = None) -> PutResult:
        await asyncio.sleep(0)
        self.revision += 1
        old = self.rows.get(key)
        self.rows[key] = KeyValue(
            key=key,
            value=value,
            create_revision=old.create_revision if old else self.revision,
            mod_revision=self.revision,
            version=old.version + 1 if old else 1,
        )
        if self.lose_answer:
            self.lose_answer = False
            raise IndefiniteError("the answer was lost")
        return PutResult(revision=self.revision)

    async def range(
        self,
        start: bytes,
        end: bytes,
        /,
        *,
        limit: int,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        await asyncio.sleep(0)
        found = [self.rows[key] for key in sorted(self.rows) if start <= key < end]
        page = found[: min(limit, self.page_max)]
        if keys_only:
            page = [
                KeyValue(
                    key=row.key,
                    value=b"",
                    create_revision=row.create_revision,
                    mod_revision=row.mod_revision,
                    version=row.version,
                )
                for row in page
            ]
        return RangeResult(
            kvs=tuple(page), more=len(page) < len(found), count=len(found), revision=self.revision
        )
