"""Client sessions: what makes a write that was sent twice happen once.

A session keeps the answers to its serials from its floor upward. On disk that is one row for the session
itself, and one for all the answers that one item of an entry added: what a batch costs does not depend on how
many answers the session holds. A row is deleted once all its serials lie below the floor; until then the
answers in it that do are skipped when it is loaded.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from struct import pack

from raftstate.errors import DataLossError
from raftstate.machine.budget import Budget, answer_pairs, names
from raftstate.machine.layout import (
    ANSWERS_END,
    ANSWERS_START,
    CHECKSUM_BYTES,
    SESSIONS_END,
    SESSIONS_START,
    StoredAnswers,
    answers_key,
    answers_row,
    read_answers,
    read_answers_key,
    read_session,
    read_session_key,
    session_key,
    session_row,
)
from raftstate.machine.tables import ReadTables, Table, WriteTables
from raftstate.machine.types import Answer, Code, Fault, SessionId

_RESPONSE_MEMORY_BYTES, _PAIR_MEMORY_BYTES = 128, 192
"""What a response of a transaction, and each pair in it, take in memory beyond their bytes in a row."""


def _memory_bytes(answer: Answer) -> int:
    responses = 0 if answer.txn is None else len(answer.txn.responses)
    return responses * _RESPONSE_MEMORY_BYTES + len(answer_pairs(answer)) * _PAIR_MEMORY_BYTES


def without_pairs(answer: Answer) -> Answer:
    """Return what an answer becomes when a key that it holds is erased.

    To its client that is as if the answer was forgotten: it may well have run, and never will again.
    """
    fault = Fault(
        Code.STALE,
        f"the answer to serial {answer.serial} held a key that was erased since, and is kept no more; not run"
        " now",
        "serial",
    )
    return Answer(answer.serial, answer.revision, fault)


class Session:
    """One client session.

    Args:
        id: what the client names it by.
        last_ms: the lease clock when it was last heard from.
        ttl_ms: it may end when it was not heard from for so long.
        floor: the lowest serial that the client still waits for.
    """

    def __init__(self, id: SessionId, last_ms: int, ttl_ms: int, floor: int) -> None:
        self.id = id
        self.last_ms = last_ms
        self.ttl_ms = ttl_ms
        self.floor = floor
        self.results: dict[int, int | Answer] = {}
        """Answers to serials >= floor. A number: the revision that it made, and nothing else to say."""
        self.stored_bytes = 0
        """What its rows of answers take, those parts included that lie below the floor: see `adopt`."""
        self.rows: list[tuple[int, bytes, int]] = []
        """A heap of its rows of answers: (highest serial, key of the row, bytes that it counts)."""
        self.rows_with_pairs: set[bytes] = set()
        """Keys of those of its rows of answers that hold pairs."""

    @property
    def due_ms(self) -> int:
        """The lease clock at which it may end."""
        return self.last_ms + self.ttl_ms

    def answer(self, serial: int) -> Answer | None:
        """Return the answer to a serial in full, or None when it has none."""
        result = self.results.get(serial)
        return Answer(serial, result) if isinstance(result, int) else result

    def raise_floor(self, floor: int) -> list[bytes]:
        """Forget the answers below `floor`; return the keys of the rows that hold no others."""
        if floor <= self.floor:
            return []
        # The serials between the two floors may be many more than the answers, and the other way round.
        if floor - self.floor < len(self.results):
            for serial in range(self.floor, floor):
                self.results.pop(serial, None)
        else:
            self.results = {serial: result for serial, result in self.results.items() if serial >= floor}
        self.floor = floor
        ended = []
        while self.rows and self.rows[0][0] < floor:
            _, row_key, row_bytes = heappop(self.rows)
            self.stored_bytes -= row_bytes
            self.rows_with_pairs.discard(row_key)
            ended.append(row_key)
        return ended

    def adopt(self, row_key: bytes, row: bytes, answers: StoredAnswers) -> None:
        """Count a row of answers as this session's: its bytes, and what transactions take in memory beside.

        Its results are the caller's to set.
        """
        highest = max((*answers.serials, *(answer.serial for answer in answers.answers)))
        row_bytes = _counted_bytes(row, answers)
        heappush(self.rows, (highest, row_key, row_bytes))
        self.stored_bytes += row_bytes
        if any(map(answer_pairs, answers.answers)):
            self.rows_with_pairs.add(row_key)

    def replace(self, row_key: bytes, row: bytes, answers: StoredAnswers) -> None:
        """Count a row of answers that stands in the place of one with the same serials."""
        at = next(at for at, (_, own, _) in enumerate(self.rows) if own == row_key)
        highest, _, before_bytes = self.rows[at]
        row_bytes = _counted_bytes(row, answers)
        self.rows[at] = highest, row_key, row_bytes
        self.stored_bytes += row_bytes - before_bytes
        if not any(map(answer_pairs, answers.answers)):
            self.rows_with_pairs.discard(row_key)


def _counted_bytes(row: bytes, answers: StoredAnswers) -> int:
    # Of transactions alone: what counts of others was settled when there was machine version 1 alone.
    done = [answer for answer in answers.answers if answer.txn is not None]
    return len(row) + sum(map(_memory_bytes, done))


class Sessions:
    """All sessions, in memory, and the writes to their rows that one call of apply has gathered."""

    def __init__(self, tables: ReadTables) -> None:
        """Load every session. Raises `DataLossError` when a row is damaged or belongs to no session."""
        self._by_index: dict[int, Session] = {}
        self._writes: dict[bytes, bytes | None] = {}
        self._facts: list[bytes] = []
        for row_key, row in tables.scan(Table.HOT, SESSIONS_START, SESSIONS_END):
            found = read_session_key(row_key)
            self._by_index[found.index] = Session(found, *read_session(row_key, row))
        for row_key, row in tables.scan(Table.HOT, ANSWERS_START, ANSWERS_END):
            self._load_answers(row_key, row)

    def _load_answers(self, row_key: bytes, row: bytes) -> None:
        owner = read_answers_key(row_key)
        session = self.find(owner)
        if session is None:
            raise DataLossError(
                f"row {row_key.hex()} of table HOT holds answers of {owner}, and there is no such session"
            )
        answers = read_answers(row_key, row)
        session.adopt(row_key, row, answers)
        floor, results = session.floor, session.results
        results.update((s, r) for s, r in zip(answers.serials, answers.revisions, strict=True) if s >= floor)
        results.update((answer.serial, answer) for answer in answers.answers if answer.serial >= floor)

    def __len__(self) -> int:
        return len(self._by_index)

    def find(self, id: SessionId) -> Session | None:
        """Return the session with this index and this nonce, or None."""
        session = self._by_index.get(id.index)
        return session if session is not None and session.id == id else None

    def opened_by(self, index: int) -> bool:
        """Return whether the entry at `index` opened a session that is still open."""
        return index in self._by_index

    def due(self, clock_ms: int) -> list[SessionId]:
        """Return the sessions that may end at `clock_ms`. May be called while another thread applies."""
        return [session.id for session in list(self._by_index.values()) if session.due_ms <= clock_ms]

    def open(self, id: SessionId, clock_ms: int, ttl_ms: int) -> None:
        """Add a session. Serials start at 1, and so does its floor."""
        session = self._by_index[id.index] = Session(id, clock_ms, ttl_ms, 1)
        self.touch(session, clock_ms, 0)

    def touch(self, session: Session, clock_ms: int, floor: int) -> None:
        """Note that a session was heard from, and which serials its client no longer waits for."""
        session.last_ms = clock_ms
        for row_key in session.raise_floor(floor):
            self._write(row_key, None)
        row_key = session_key(session.id)
        self._write(row_key, session_row(row_key, session.last_ms, session.ttl_ms, session.floor))

    def store(
        self, session: Session, entry_index: int, item: int, answers: StoredAnswers, machine_version: int
    ) -> None:
        """Write the answers that item number `item` of an entry added to the session's results."""
        row_key = answers_key(session.id, entry_index, item)
        row = answers_row(row_key, answers, machine_version)
        session.adopt(row_key, row, answers)
        self._write(row_key, row)

    def erase(
        self, tables: WriteTables, keys: Collection[bytes], budget: Budget, machine_version: int
    ) -> None:
        """Let no stored answer keep pairs of these keys.

        Rows are rewritten whole: those of answers below the floor, too, that are in no memory any more.
        Raises `LongApply`.
        """
        for session in list(self._by_index.values()):
            for row_key in sorted(session.rows_with_pairs):
                row = self._writes.get(row_key) or tables.get(Table.HOT, row_key)
                if row is None:
                    raise DataLossError(f"row {row_key.hex()} of table HOT is missing: it holds answers")
                budget.spend(0, len(row))
                stored = read_answers(row_key, row)
                if any(names(answer, keys) for answer in stored.answers):
                    self._erase_from(session, row_key, stored, keys, machine_version)

    def _erase_from(
        self,
        session: Session,
        row_key: bytes,
        stored: StoredAnswers,
        keys: Collection[bytes],
        machine_version: int,
    ) -> None:
        kept = StoredAnswers(stored.serials, stored.revisions, [])
        for answer in stored.answers:
            if not names(answer, keys):
                kept.answers.append(answer)
                continue
            kept.answers.append(without_pairs(answer))
            if answer.serial >= session.floor:
                session.results[answer.serial] = kept.answers[-1]
        row = answers_row(row_key, kept, machine_version)
        session.replace(row_key, row, kept)
        self._write(row_key, row)

    def close(self, session: Session) -> None:
        """Forget a session and its answers."""
        del self._by_index[session.id.index]
        for _, row_key, _ in sorted(session.rows):
            self._write(row_key, None)
        self._write(session_key(session.id), None)

    def take_facts(self) -> bytes:
        """Return what the digest should cover of all that was done since this was last called."""
        taken, self._facts = self._facts, []
        return b"".join(taken)

    def flush(self, tables: WriteTables) -> None:
        """Write the rows that were gathered."""
        rows = []
        for row_key, row in sorted(self._writes.items()):
            if row is not None:
                rows.append((row_key, row))
            else:
                tables.delete(Table.HOT, row_key)
        tables.put_many(Table.HOT, rows)
        self._writes.clear()

    def _write(self, row_key: bytes, row: bytes | None) -> None:
        self._writes[row_key] = row
        # The row's checksum stands for the row; a deletion has none.
        self._facts += (
            pack("<HB", len(row_key), row is not None),
            row_key,
            b"" if row is None else row[:CHECKSUM_BYTES],
        )
