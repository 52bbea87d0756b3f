"""A client whose cluster is a dict; it can be told to fail."""

from __future__ import annotations

from typing import Any

from raftstate.client import DeleteResult, KeyValue, NodeStatus, PutResult, RangeResult


class FakeClient:
    def __init__(self) -> None:
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.nodes: list[NodeStatus] = []
        self.failure: BaseException | None = None
        self.opened: list[tuple[str | None, float]] = []
        self.calls: list[Any] = []
        self.page = 10_000

    def put(self, key: bytes, value: bytes) -> PutResult:
        self._fail()
        self.revision += 1
        self.rows[key] = KeyValue(
            key=key, value=value, create_revision=self.revision, mod_revision=self.revision, version=1
        )
        return PutResult(revision=self.revision)

    def get(self, key: bytes, **options: Any) -> KeyValue | None:
        self._fail()
        self.calls.append(options)
        return self.rows.get(key)

    def delete(self, key: bytes, *, range_end: bytes | None, prefix: bool) -> DeleteResult:
        self._fail()
        self.calls.append((key, range_end, prefix))
        self.revision += 1
        kept = {each: row for each, row in self.rows.items() if each != key}
        deleted, self.rows = len(self.rows) - len(kept), kept
        return DeleteResult(revision=self.revision, deleted=deleted)

    def range(
        self, start: bytes | None, end: bytes | None, *, limit: int | None, **options: Any
    ) -> RangeResult:
        self._fail()
        self.calls.append((start, end, limit, options))
        found = tuple(self.rows[key] for key in sorted(self.rows) if start is None or key >= start)
        shown = () if options["count_only"] else found[: min(limit or self.page, self.page)]
        return RangeResult(kvs=shown, more=len(shown) < len(found), count=len(found), revision=self.revision)

    def status(self) -> list[NodeStatus]:
        self._fail()
        return self.nodes

    def transfer_leader(self, target: int | str | None) -> int:
        self._fail()
        self.calls.append(target)
        return 2

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
