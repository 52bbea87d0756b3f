"""A client whose cluster is a dict; it can be told to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, Self

import msgspec

from raftstate.client import (
    DeleteResult,
    EraseResult,
    KeyValue,
    LeaseStatus,
    MemberAdded,
    MemberErase,
    MemberList,
    MemberStatus,
    NodeStatus,
    PeerProgress,
    PutResult,
    RangeResult,
    TxnResult,
    WatchEvent,
)
from raftstate.errors import LeaseNotFoundError, LockLostError


class FakeTxn:
    """Notes what it is built of; gives the client's `txn_result`."""

    def __init__(self, client: FakeClient) -> None:
        self._client = client

    def when(self, *compares: object) -> Self:
        self._client.calls.append(("when", *compares))
        return self

    def then(self, *operations: object) -> Self:
        self._client.calls.append(("then", *operations))
        return self

    def otherwise(self, *operations: object) -> Self:
        self._client.calls.append(("otherwise", *operations))
        return self

    def commit(self) -> TxnResult:
        self._client._fail()
        return self._client.txn_result


class FakeLease:
    """A lease of the client's `leases_held`."""

    def __init__(self, client: FakeClient, ttl: float | None, lease_id: int | None) -> None:
        self._client = client
        self.ttl_s = ttl
        self.id = 2**63 - 1 if lease_id is None else lease_id
        self.checks_left = 2

    def grant(self) -> Self:
        self._client._fail()
        assert self.ttl_s is not None
        self._client.leases_held[self.id] = self.ttl_s
        return self

    def renew(self) -> None:
        self._client._fail()
        self.ttl_s = self._known()

    def revoke(self) -> int:
        self._client._fail()
        self._known()
        del self._client.leases_held[self.id]
        return 3

    def time_to_live(self, *, keys: bool) -> LeaseStatus:
        self._client._fail()
        status = self._client.lease_status(self.id, self._known())
        return LeaseStatus(*status, (b"a", b"\xff") if keys else ())

    def keep_alive(self) -> None:
        self._client.calls.append(("keep_alive", self.id))

    def check(self) -> None:
        """Find it alive, and the next time the client's `ending`."""
        self.checks_left -= 1
        if self.checks_left == 0:
            raise self._client.ending

    def _known(self) -> float:
        if self.id not in self._client.leases_held:
            raise LeaseNotFoundError(f"there is no lease {self.id}")
        return self._client.leases_held[self.id]


class FakeLock:
    """A check raises the client's `ending` as soon as its `is_over` says so."""

    token = 7
    key = b"l/0000000000000001"

    def __init__(self, client: FakeClient) -> None:
        self._client = client

    def acquire(self) -> None:
        self._client._fail()
        self._client.calls.append("acquire")

    def check(self) -> None:
        if self._client.is_over():
            raise self._client.ending

    def release(self) -> None:
        self._client.calls.append("release")
        if isinstance(self._client.ending, LockLostError):
            raise self._client.ending


class FakeClient:
    def __init__(self) -> None:
        self.rows: dict[bytes, KeyValue] = {}
        self.revision = 1
        self.nodes: list[NodeStatus] = []
        self.failure: BaseException | None = None
        self.opened: list[tuple[str | None, float]] = []
        self.calls: list[Any] = []
        self.page = 10_000
        self.txn_result = TxnResult(revision=1, succeeded=True, responses=())
        self.events: list[WatchEvent] = []
        self.ending: BaseException = KeyboardInterrupt()
        self.is_over: Callable[[], bool] = lambda: True
        self.leases_held: dict[int, float] = {}
        self.progress: list[list[MemberErase]] = []
        self.member_records = tuple(
            MemberStatus(number, f"n{number}", f"h{number}:7101", f"h{number}:7001", 1, learner=number == 3)
            for number in (1, 2, 3)
        )

    def put(self, key: bytes, value: bytes, *, lease: int = 0) -> PutResult:
        self._fail()
        self.revision += 1
        self.rows[key] = KeyValue(
            key=key,
            value=value,
            create_revision=self.revision,
            mod_revision=self.revision,
            version=1,
            lease=lease,
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
        return RangeResult(
            kvs=shown,
            more=len(shown) < len(found),
            count=len(found),
            revision=self.revision,
            by_key=options["sort"] in (None, "key") and not options["descending"],
        )

    def scan(self, start: bytes | None, end: bytes | None, **options: Any) -> Iterator[KeyValue]:
        self._fail()
        self.calls.append((start, end, options))
        return iter([self.rows[key] for key in sorted(self.rows)])

    def txn(self) -> FakeTxn:
        return FakeTxn(self)

    def compact(self, revision: int) -> None:
        self._fail()
        self.calls.append(revision)

    def watch(self, key: bytes | None, **options: Any) -> Any:
        self._fail()
        self.calls.append((key, options))
        events = iter(self.events)

        def following(timeout: float) -> WatchEvent:
            event = next(events, None)
            if event is None:
                raise self.ending
            return event

        return nullcontext(SimpleNamespace(next=following))

    def lease(self, ttl: float | None = None, *, id: int | None = None) -> FakeLease:
        return FakeLease(self, ttl, id)

    def leases(self) -> list[LeaseStatus]:
        self._fail()
        return [LeaseStatus(*self.lease_status(each, ttl)) for each, ttl in self.leases_held.items()]

    @staticmethod
    def lease_status(lease_id: int, ttl: float) -> tuple[int, float, float, int]:
        return lease_id, ttl, ttl / 2, 2

    def lock(self, name: str | bytes, **options: Any) -> FakeLock:
        self.calls.append((name, options))
        return FakeLock(self)

    def erase(self, key: bytes) -> EraseResult:
        deleted = self.delete(key, range_end=None, prefix=False).deleted
        return EraseResult(self.revision + 1, bool(deleted), 77)

    def erase_progress(self, index: int) -> list[MemberErase]:
        self._fail()
        self.calls.append(index)
        return self.progress.pop(0)

    def status(self, endpoint: str | None = None) -> list[NodeStatus]:
        self._fail()
        return [node for node in self.nodes if endpoint in (None, node.endpoint)]

    def defragment(self, target: int | str) -> int:
        self._fail()
        self.calls.append(target)
        return 3_000_000

    def transfer_leader(self, target: int | str | None) -> int:
        self._fail()
        self.calls.append(target)
        return 2

    def members(self) -> MemberList:
        self._fail()
        progress = (
            PeerProgress(2, 90, 91, "replicate", recently_active=True),
            PeerProgress(3, 0, 1, "snapshot", recently_active=True),
        )
        return MemberList(self.member_records, leader_id=1, commit_index=100, progress=progress)

    def add_member(
        self, name: str, *, peer_address: str, client_address: str, learner: bool = False
    ) -> MemberAdded:
        self._fail()
        self.calls.append((name, peer_address, client_address, learner))
        member = MemberStatus(4, name, peer_address, client_address, 1, learner=True, promote=not learner)
        return self._added(member)

    def replace_member(
        self, name: str, *, peer_address: str | None, client_address: str | None
    ) -> MemberAdded:
        self._fail()
        self.calls.append((name, peer_address, client_address))
        record = next(record for record in self.member_records if record.name == name)
        return self._added(msgspec.structs.replace(record, incarnation=2))

    def promote_member(self, name: str) -> tuple[MemberStatus, ...]:
        self._fail()
        self.calls.append(name)
        return self.member_records

    def remove_members(self, names: list[str]) -> tuple[MemberStatus, ...]:
        self._fail()
        self.calls.append(names)
        return tuple(record for record in self.member_records if record.name not in names)

    def _added(self, member: MemberStatus) -> MemberAdded:
        others = tuple(record for record in self.member_records if record.id != member.id)
        members = tuple(sorted((*others, member), key=lambda each: each.id))
        return MemberAdded(member, members, 77, 20, 500, 60)

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure
