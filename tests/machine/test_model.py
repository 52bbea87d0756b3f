"""Random programs against a model that keeps whole dictionaries and knows nothing of rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from raftstate.machine.digest import recount
from raftstate.machine.layout import read_sums
from raftstate.machine.types import (
    SESSION_WINDOW,
    Answer,
    Cancel,
    Cancelled,
    Code,
    Expire,
    ItemResult,
    KeyValue,
    Refused,
    SessionId,
)
from raftstate.pb.v1.pipeline_pb2 import Command
from tests.machine.rig import Rig, answers, batch, delete, put

KEYS = [b"a", b"ab", b"b", b"c"]
TTL_MS = 10_000


class Said(NamedTuple):
    """An answer, with the code of its fault in place of the words."""

    revision: int
    fault: Code | None = None
    deleted: int = 0
    pairs: tuple[KeyValue, ...] = ()


@dataclass
class ModelSession:
    """What the rule says of one session, as the design writes it down."""

    last: int
    floor: int = 1
    results: dict[int, Said] = field(default_factory=dict)


@dataclass
class Model:
    """Keys, revision and sessions as plain dictionaries."""

    revision: int = 1
    clock: int = 0
    keys: dict[bytes, KeyValue] = field(default_factory=dict)
    sessions: dict[SessionId, ModelSession] = field(default_factory=dict)

    def run(self, command: Command) -> Said:
        if command.HasField("put"):
            key, value = command.put.key, command.put.value
            if not key:
                return Said(self.revision, Code.INVALID)
            before = self.keys.get(key)
            self.revision += 1
            created, version = (before.create_revision, before.version) if before else (self.revision, 0)
            self.keys[key] = KeyValue(key, value, created, self.revision, version + 1)
            return Said(self.revision, pairs=(before,) if before and command.put.prev_kv else ())
        start, end = command.delete.key, command.delete.range_end
        gone = [key for key in sorted(self.keys) if (start <= key < end if end else key == start)]
        pairs = tuple(self.keys.pop(key) for key in gone)
        self.revision += bool(gone)
        return Said(self.revision, deleted=len(gone), pairs=pairs if command.delete.prev_kv else ())

    def write(
        self, sid: SessionId, commands: list[Command], floor: int, given_up: list[int]
    ) -> dict[int, Said] | Code:
        session = self.sessions.get(sid)
        if session is None:
            return Code.SESSION_EXPIRED
        session.last = self.clock
        session.floor = max(session.floor, floor)
        session.results = {s: answer for s, answer in session.results.items() if s >= session.floor}
        for serial in given_up:
            if serial >= session.floor:
                session.results.setdefault(serial, Said(self.revision, Code.CANCELLED))
        found = {}
        for command in commands:
            serial = command.serial
            if serial < session.floor:
                found[serial] = Said(self.revision, Code.STALE)
            elif serial in session.results:
                found[serial] = session.results[serial]
            elif serial >= session.floor + SESSION_WINDOW:
                found[serial] = Said(self.revision, Code.WINDOW)
            else:
                found[serial] = session.results[serial] = self.run(command)
        return found

    def cancel(self, sid: SessionId, serial: int) -> Said | Code | None:
        session = self.sessions.get(sid)
        if session is None:
            return Code.SESSION_EXPIRED
        session.last = self.clock
        if serial < session.floor:
            return Code.STALE
        answer = session.results.setdefault(serial, Said(self.revision, Code.CANCELLED))
        return None if answer.fault == Code.CANCELLED else answer

    def expire(self, sid: SessionId, at: int) -> bool:
        session = self.sessions.get(sid)
        if session is not None and session.last + TTL_MS <= at:
            del self.sessions[sid]
        return sid not in self.sessions


def said(answer: Answer) -> Said:
    return Said(
        answer.revision, answer.fault.code if answer.fault else None, answer.deleted, tuple(answer.prev_kvs)
    )


def seen(result: ItemResult) -> object:
    """A result in the model's words."""
    if isinstance(result, Refused):
        return result.fault.code
    if isinstance(result, Cancelled):
        return result.answer and said(result.answer)
    return {serial: said(answer) for serial, answer in answers(result).items()}


serials = st.integers(1, 12) | st.sampled_from([SESSION_WINDOW, SESSION_WINDOW + 5])
keys = st.sampled_from(KEYS)
puts = st.builds(
    put, serials, keys | st.just(b""), st.sampled_from([b"", b"x", b"yy"]), prev_kv=st.booleans()
)
deletes = st.builds(delete, serials, keys, st.just(b"") | keys, prev_kv=st.booleans())
batches = st.tuples(
    st.just("write"),
    st.integers(0, 1),
    st.lists(puts | deletes, max_size=6, unique_by=lambda command: command.serial),
    st.integers(0, 8),
    st.lists(st.integers(1, 12), max_size=2),
)
steps = st.one_of(
    batches,
    batches,
    st.tuples(st.just("cancel"), st.integers(0, 1), st.integers(1, 12)),
    st.tuples(st.just("expire"), st.integers(0, 1), st.integers(0, 2 * TTL_MS)),
    st.tuples(st.just("clock"), st.integers(0, TTL_MS // 2)),
    st.tuples(st.just("reload")),
    st.tuples(st.just("register"), st.integers(0, 1)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, max_size=25))
def test_random_programs_end_as_the_model_does(program: list[tuple]) -> None:  # type: ignore[type-arg]
    rig, model = Rig(), Model()
    sids: list[SessionId] = []

    def register() -> SessionId:
        sid = rig.register(ttl_ms=TTL_MS, lease_ms=model.clock)
        model.sessions[sid] = ModelSession(last=model.clock)
        return sid

    sids = [register(), register()]
    for kind, *values in program:
        match kind, values:
            case "write", [n, commands, floor, given_up]:
                item = batch(*commands, session=sids[n], floor=floor, given_up=given_up)
                [result] = rig.run(item, lease_ms=model.clock)
                assert seen(result) == model.write(sids[n], commands, floor, given_up)
            case "cancel", [n, serial]:
                [result] = rig.run(Cancel(sids[n], serial), lease_ms=model.clock)
                assert seen(result) == model.cancel(sids[n], serial)
            case "expire", [n, later]:
                [result] = rig.run(Expire(sids[n], model.clock + later), lease_ms=model.clock)
                assert isinstance(result, Refused) != model.expire(sids[n], model.clock + later)
            case "clock", [later]:
                model.clock += later
            case "reload", _:
                rig.reload()
            case "register", [n]:
                sids[n] = register()
        assert rig.machine.revision == model.revision
    reader = rig.reader
    assert {key: reader.get(key) for key in KEYS} == {key: model.keys.get(key) for key in KEYS}
    assert [pair.key for pair in reader.range(b"\x00", None).kvs] == sorted(model.keys)
    assert rig.machine.session_count == len(model.sessions)
    assert recount(rig.tables) == read_sums(rig.tables)
