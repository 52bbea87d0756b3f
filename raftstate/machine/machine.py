"""The machine: applies log entries, in the caller's transaction, and says what came of each.

It is a function of the entries alone. Whatever a client sent is answered, with a refusal if need be, and the
index moves on; what comes from the environment (a disk, memory, a damaged row) is raised, and is never a
result. After a transaction that did not commit the caller loads the machine again and applies the same
entries, with the same results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from struct import Struct
from types import MappingProxyType

import msgspec

from raftstate.core.conf_change import decode_conf_change
from raftstate.core.membership import conf_change_as_v2
from raftstate.core.types import ConfState, Entry, EntryType
from raftstate.errors import FailedPreconditionError, InvariantError
from raftstate.machine import compaction
from raftstate.machine.batch import (
    CANCELLED,
    Place,
    compact,
    give_up,
    run_batch,
    stale_fault,
    window_refusal,
)
from raftstate.machine.budget import Budget
from raftstate.machine.command import check_batch, check_ttl, parse_batch
from raftstate.machine.compaction import Sweeper
from raftstate.machine.digest import BUCKETS, SumChanges, next_digest
from raftstate.machine.keyspace import Keyspace
from raftstate.machine.layout import (
    LONG_ANSWERS_SINCE,
    META_KEY,
    SUMS_KEY,
    Meta,
    StoredAnswers,
    meta_row,
    read_meta,
    read_sums,
    short_results,
    sums_row,
)
from raftstate.machine.leases import Leases
from raftstate.machine.sessions import Session, Sessions
from raftstate.machine.step import Step
from raftstate.machine.tables import ReadTables, Table, WriteTables
from raftstate.machine.types import (
    MACHINE_VERSION,
    MEMBERSHIP_SINCE,
    SESSION_TTL_MS_DEFAULT,
    SESSIONS_MAX,
    Batch,
    BatchResult,
    Cancel,
    Cancelled,
    Close,
    Closed,
    Code,
    CompactTo,
    Done,
    EntryResult,
    Envelope,
    Expire,
    ExpireLease,
    Fault,
    Item,
    ItemResult,
    Member,
    MemberChange,
    MoveTo,
    Refused,
    Register,
    Registered,
    SessionId,
)

_COMPACTED_FACT = Struct("<BQ")
_COMPACTED = 4
"""Beside the facts of leases."""
_NO_CONF_STATES: Mapping[int, ConfState] = MappingProxyType({})
_envelope_decoder = msgspec.msgpack.Decoder(Envelope)
_member_change_decoder = msgspec.msgpack.Decoder(MemberChange)
_encoder = msgspec.msgpack.Encoder()


class Machine:
    """The state machine of one node. Applies on one thread; its attributes may be read from another.

    Args:
        tables: the state as committed, bootstrapped before.

    Raises `DataLossError` when it is damaged, or was never bootstrapped.
    """

    def __init__(self, tables: ReadTables) -> None:
        self._sweeper = Sweeper()
        self._swept_last = False
        self._sum_changes: SumChanges | None = None
        self.load(tables)

    @staticmethod
    def bootstrap(tables: WriteTables, cluster_id: int, members: Sequence[Member]) -> None:
        """Write the state before the first log entry. Every node of a new cluster must be given the same.

        Args:
            tables: empty ones.
            cluster_id: 64 random bits.
            members: the nodes it starts with.

        Raises `FailedPreconditionError` when there is a state already.
        """
        conf_state = ConfState(
            voters=tuple(sorted(member.id for member in members if not member.learner)),
            learners=tuple(sorted(member.id for member in members if member.learner)),
        )
        _write_first_state(tables, cluster_id, MACHINE_VERSION, conf_state, members)

    @staticmethod
    def blank(tables: WriteTables, cluster_id: int) -> None:
        """Write the state of a node that joins a cluster: it knows whose it is, and nothing else.

        It has no members and the lowest machine version; a snapshot brings all there is.

        Args:
            tables: empty ones.
            cluster_id: of the cluster.

        Raises `FailedPreconditionError` when there is a state already.
        """
        _write_first_state(tables, cluster_id, 1, ConfState(), [])

    def load(self, tables: ReadTables) -> None:
        """Take everything from the tables, as committed. Raises `DataLossError` when a row is damaged."""
        meta = read_meta(tables)
        self.cluster_id = meta.cluster_id
        self.applied_index = meta.applied_index
        self.applied_term = meta.applied_term
        self.revision = meta.revision
        self.machine_version = meta.machine_version
        self.lease_clock_ms = meta.lease_clock_ms
        self.wall_clock_ms = meta.wall_clock_ms
        self.digest = meta.digest
        self.members = meta.members
        self.last_member_id = max(meta.last_member_id, *(member.id for member in meta.members), 0)
        """The highest id that a member ever had."""
        self.compacted_revision = meta.compacted_revision
        self.last_erase_index = meta.last_erase_index
        """The entry of the last erase; 0: there was none."""
        self.sweep_pending = compaction.pending(tables, self.compacted_revision)
        """Whether `sweep` has anything left to do."""
        if self._swept_last:
            self._sweeper = Sweeper()  # its transaction did not commit
        self._conf_state = meta.conf_state
        self._sums = read_sums(tables)
        self._sessions = Sessions(tables)
        self._leases = Leases(tables)
        if self._sum_changes is not None:
            self._sum_changes.go_back_to(self.applied_index)
        self._as_committed = True

    def record_sum_changes(self, changes: SumChanges | None) -> None:
        """Have all that later calls of `apply` change in the bucket sums recorded; None: no more."""
        self._sum_changes = changes

    def lose_sum_changes(self) -> None:
        """Take note that the tables are about to be another state's: what is being recorded is of no use to
        whoever adds up sums meanwhile, and says so. Before a reader can see that state."""
        if self._sum_changes is not None:
            self._sum_changes.is_lost = True
            self._sum_changes = None

    def adopt(self, tables: ReadTables) -> None:
        """Go on with another state of the same cluster, as `load` does with this one.

        Raises `DataLossError` when a row is damaged.
        """
        self._sweeper = Sweeper()  # it remembers rows of the state that goes
        self.lose_sum_changes()
        self.load(tables)

    def found_anew(self, tables: WriteTables, cluster_id: int, member: Member) -> None:
        """Make this the state of another cluster, whose only member is `member`: what is left of one that
        lost its majority for good. Keys, history, leases and sessions stay; ids of former members are not
        used again.

        Args:
            tables: a transaction; if it does not commit, call `load`.
            cluster_id: 64 random bits.
            member: a voter.
        """
        self._begin()
        self.cluster_id = cluster_id
        self.members = [member]
        self.last_member_id = max(self.last_member_id, member.id)
        self._conf_state = ConfState(voters=(member.id,))
        tables.put(Table.HOT, META_KEY, meta_row(self._meta()))
        self._as_committed = True

    def conf_state(self) -> ConfState:
        """Return the configuration as of the applied index."""
        return self._conf_state

    @property
    def is_blank(self) -> bool:
        """Whether this is still the state of a node that joins, which waits for its first snapshot."""
        return self.applied_index == 0 and self._conf_state == ConfState()

    @property
    def session_count(self) -> int:
        """How many client sessions are open."""
        return len(self._sessions)

    def expired_sessions(self, clock_ms: int) -> list[SessionId]:
        """Return the sessions that a leader may propose to end, at lease clock `clock_ms`."""
        return self._sessions.due(clock_ms)

    @property
    def lease_count(self) -> int:
        """How many leases there are."""
        return len(self._leases)

    def expired_leases(self, clock_ms: int) -> list[int]:
        """Return leases that a leader may propose to end, at lease clock `clock_ms`: 1,000 at most, those due
        longest first. Called by one thread only; another may apply meanwhile."""
        return self._leases.due(clock_ms)

    def lease_key_count(self, id: int) -> int:
        """Return how many keys are attached to a lease; 0 when there is no such lease."""
        lease = self._leases.find(id)
        return 0 if isinstance(lease, Fault) else lease.key_count

    def apply(
        self,
        tables: WriteTables,
        entries: Sequence[Entry],
        conf_states: Mapping[int, ConfState] = _NO_CONF_STATES,
        keys_at_once_max: int | None = None,
    ) -> list[EntryResult]:
        """Apply committed entries; all that they write, the applied index included, goes into `tables`.

        Args:
            tables: the caller's transaction. If it does not commit, call `load` before the next `apply`.
            entries: in order. Those at or below the applied index are left out, in the results too.
            conf_states: what the core made of each membership change among them, by its index.
            keys_at_once_max: how many keys their ranges and revoked leases may hold in all before the call
                gives up; None: no limit. The results are the same whatever it is.

        Raises:
            LongApply: `keys_at_once_max` was exceeded. Nothing was applied; abort.
            StorageError, DataLossError, MemoryError: from the environment. Nothing was applied; abort.
            InvariantError: an entry or a conf state is missing, a term is lower than the one before, or an
                entry moves the cluster to a machine version that this code does not know.
        """
        self._begin()
        self._swept_last = False
        keyspace = Keyspace(
            tables,
            self._sums,
            self._leases,
            revision=self.revision,
            compacted_revision=self.compacted_revision,
            budget=Budget(keys_at_once_max, self.machine_version),
        )
        if self._sum_changes is not None:
            keyspace.sum_changes = []
        results = [
            self._apply_entry(keyspace, entry, conf_states)
            for entry in entries
            if entry.index > self.applied_index
        ]
        if results:
            keyspace.flush()
            self._leases.flush(tables)
            self._sessions.flush(tables)
            tables.put(Table.HOT, SUMS_KEY, sums_row(self._sums))
            tables.put(Table.HOT, META_KEY, meta_row(self._meta()))
        if self._sum_changes is not None and keyspace.sum_changes:
            self._sum_changes.add(self.applied_index, keyspace.sum_changes)
        self._as_committed = True
        return results

    def sweep(self, tables: WriteTables, changes_max: int) -> int:
        """Take away rows that compaction has made unreachable: a part of them, on this node alone.

        Args:
            tables: a transaction of its own. If it does not commit, call `load` before the next call.
            changes_max: how many changes to walk or delete at most; at least 1.

        Returns how many that were; `sweep_pending` then says whether any are left.

        Raises `DataLossError` when a change on the way is damaged or missing.
        """
        self._begin()
        self._swept_last = True
        done = self._sweeper.sweep(tables, self.compacted_revision, changes_max)
        self.sweep_pending = compaction.pending(tables, self.compacted_revision)
        self._as_committed = True
        return done

    def _begin(self) -> None:
        if not self._as_committed:
            raise InvariantError("the machine was not loaded again after an apply or a sweep that failed")
        self._as_committed = False

    def _meta(self) -> Meta:
        return Meta(
            cluster_id=self.cluster_id,
            applied_index=self.applied_index,
            applied_term=self.applied_term,
            revision=self.revision,
            machine_version=self.machine_version,
            lease_clock_ms=self.lease_clock_ms,
            wall_clock_ms=self.wall_clock_ms,
            digest=self.digest,
            conf_state=self._conf_state,
            members=self.members,
            compacted_revision=self.compacted_revision,
            last_member_id=self.last_member_id,
            last_erase_index=self.last_erase_index,
        )

    # -- one entry

    def _apply_entry(
        self, keyspace: Keyspace, entry: Entry, conf_states: Mapping[int, ConfState]
    ) -> EntryResult:
        if entry.index != self.applied_index + 1 or entry.term < self.applied_term:
            raise InvariantError(
                f"entry {entry.index} of term {entry.term} can't follow applied index {self.applied_index} "
                f"of term {self.applied_term}"
            )
        items: list[ItemResult] = []
        facts = b""
        if entry.type != EntryType.NORMAL:
            facts = self._change_membership(entry, conf_states)
        elif entry.data:
            items = self._apply_envelope(keyspace, entry)
            facts = self._sessions.take_facts() + self._leases.take_facts() + self._compact(keyspace)
        self.applied_index = entry.index
        self.applied_term = entry.term
        self.revision = keyspace.revision
        self.digest = next_digest(
            self.digest,
            index=entry.index,
            term=entry.term,
            machine_version=self.machine_version,
            clocks_ms=(self.lease_clock_ms, self.wall_clock_ms),
            changes=keyspace.take_checksums(),
            facts=facts,
            results=_encoder.encode(
                items if self.machine_version >= LONG_ANSWERS_SINCE else short_results(items)
            ),
        )
        return EntryResult(entry.index, entry.term, self.revision, items, self.digest)

    def _compact(self, keyspace: Keyspace) -> bytes:
        """Take over the compactions of an entry; return what the digest should cover of them."""
        if keyspace.compacted_revision == self.compacted_revision:
            return b""
        self.compacted_revision = keyspace.compacted_revision
        self.sweep_pending = True
        return _COMPACTED_FACT.pack(_COMPACTED, self.compacted_revision)

    def _change_membership(self, entry: Entry, conf_states: Mapping[int, ConfState]) -> bytes:
        if entry.index not in conf_states:
            raise InvariantError(
                f"entry {entry.index} changes the membership, and no conf state was given for it"
            )
        state = self._conf_state = conf_states[entry.index]
        if self.machine_version < MEMBERSHIP_SINCE:
            return _encoder.encode(state)
        learners = {*state.learners, *state.learners_next}
        records = {member.id: member for member in (*self.members, *_new_records(entry))}
        self.members = [
            msgspec.structs.replace(records[id], learner=id in learners)
            for id in sorted({*state.voters, *state.voters_outgoing, *learners} & records.keys())
        ]
        self.last_member_id = max(self.last_member_id, *(member.id for member in self.members), 0)
        return _encoder.encode((state, self.members))

    def _apply_envelope(self, keyspace: Keyspace, entry: Entry) -> list[ItemResult]:
        try:
            envelope = _envelope_decoder.decode(entry.data)
        except msgspec.DecodeError:
            # No leader of this version proposes such bytes. Whoever did, all nodes pass over them alike.
            return []
        self.lease_clock_ms = max(self.lease_clock_ms, envelope.lease_clock_ms)
        self.wall_clock_ms = max(self.wall_clock_ms, envelope.wall_clock_ms)
        return [
            self._apply_item(keyspace, entry.index, position, item)
            for position, item in enumerate(envelope.items)
        ]

    def _apply_item(self, keyspace: Keyspace, index: int, position: int, item: Item) -> ItemResult:
        done: ItemResult | Fault
        match item:
            case Batch():
                done = self._apply_batch(keyspace, index, position, item)
            case Register():
                done = self._register(index, item)
            case Cancel():
                done = self._cancel(keyspace, index, position, item)
            case Close():
                done = self._close(item)
            case Expire():
                done = self._expire(item)
            case ExpireLease():
                done = self._expire_lease(keyspace, item)
            case CompactTo():
                done = self._compact_to(keyspace, item)
            case MoveTo():
                done = self._move_to(keyspace, item)
        return Refused(done) if isinstance(done, Fault) else done

    # -- items: each returns its result, or the fault that refuses it as a whole

    def _apply_batch(self, keyspace: Keyspace, index: int, position: int, item: Batch) -> BatchResult | Fault:
        batch = parse_batch(item.raw)
        if isinstance(batch, Fault):
            return batch
        checked = check_batch(batch, self.machine_version, keyspace.budget.spend_operations)
        fault = self._check_cluster(batch.cluster_id) or checked.fault
        if fault is not None:
            return fault
        place = Place(self.cluster_id, index, position, self.lease_clock_ms)
        if not batch.HasField("session"):
            result, _ = run_batch(keyspace, place, batch, checked.faults, None)
            self._erase(keyspace, index)
            return result
        session = self._find(SessionId(batch.session.index, batch.session.nonce))
        if isinstance(session, Fault):
            return session
        self._sessions.touch(session, self.lease_clock_ms, batch.floor)
        fault = window_refusal(session, batch.given_up)
        if fault is not None:
            return fault
        cancelled = give_up(session, batch.given_up, keyspace.revision)
        result, ran = run_batch(keyspace, place, batch, checked.faults, session)
        self._erase(keyspace, index)  # from the answers before this batch
        stored = StoredAnswers(ran.serials, ran.revisions, cancelled + ran.answers)
        if stored.serials or stored.answers:
            self._sessions.store(session, index, position, stored, self.machine_version)
        return result

    def _erase(self, keyspace: Keyspace, index: int) -> None:
        """Take what a batch has erased out of all stored answers."""
        keys = keyspace.take_erased()
        if keys:
            self._sessions.erase(keyspace.tables, keys, keyspace.budget, self.machine_version)
            self.last_erase_index = index

    def _register(self, index: int, item: Register) -> Registered | Fault:
        fault = self._check_cluster(item.cluster_id) or check_ttl(item.ttl_ms)
        if fault is not None:
            return fault
        if len(self._sessions) >= SESSIONS_MAX:
            return Fault(
                Code.RESOURCE_EXHAUSTED,
                f"the cluster holds {len(self._sessions)} sessions, limit {SESSIONS_MAX}; close some or "
                "wait until unused ones expire",
            )
        if self._sessions.opened_by(index):
            return Fault(
                Code.RESOURCE_EXHAUSTED, "one log entry opens one session, and this one has; register again"
            )
        opened = SessionId(index, item.nonce)
        ttl_ms = item.ttl_ms or SESSION_TTL_MS_DEFAULT
        self._sessions.open(opened, self.lease_clock_ms, ttl_ms)
        return Registered(opened, ttl_ms)

    def _cancel(self, keyspace: Keyspace, index: int, position: int, item: Cancel) -> Cancelled | Fault:
        fault = self._check_cluster(item.cluster_id)
        if fault is not None:
            return fault
        session = self._find(item.session)
        if isinstance(session, Fault):
            return session
        self._sessions.touch(session, self.lease_clock_ms, 0)
        if item.serial < session.floor:
            return stale_fault(item.serial, session.floor)
        fault = window_refusal(session, (item.serial,))
        if fault is not None:
            return fault
        cancelled = give_up(session, (item.serial,), keyspace.revision)
        if cancelled:
            stored = StoredAnswers([], [], cancelled)
            self._sessions.store(session, index, position, stored, self.machine_version)
        answer = session.answer(item.serial)
        return Cancelled(None if answer is None or answer.fault == CANCELLED else answer)

    def _close(self, item: Close) -> Closed | Fault:
        fault = self._check_cluster(item.cluster_id)
        if fault is not None:
            return fault
        session = self._sessions.find(item.session)
        if session is not None:
            self._sessions.close(session)
        return Closed()

    def _expire(self, item: Expire) -> Closed | Fault:
        session = self._sessions.find(item.session)
        if session is None:
            return Closed()
        if session.due_ms > item.at_ms:
            return Fault(
                Code.FAILED_PRECONDITION,
                f"the session may end at lease clock {session.due_ms} ms, got {item.at_ms} ms",
            )
        self._sessions.close(session)
        return Closed()

    def _expire_lease(self, keyspace: Keyspace, item: ExpireLease) -> Done | Fault:
        lease = self._leases.find(item.lease)
        if isinstance(lease, Fault):
            return Done()
        if lease.due_ms > item.at_ms:
            return Fault(
                Code.FAILED_PRECONDITION,
                f"lease {lease.id} may end at lease clock {lease.due_ms} ms, got {item.at_ms} ms",
            )
        keyspace.budget.spend(lease.key_count)
        Step(keyspace, looks_at_tables=False).revoke(lease)
        return Done()

    def _compact_to(self, keyspace: Keyspace, item: CompactTo) -> Done | Fault:
        if item.revision <= keyspace.compacted_revision:
            return Done()
        return compact(keyspace, item.revision) or Done()

    def _move_to(self, keyspace: Keyspace, item: MoveTo) -> Done:
        if item.machine_version > MACHINE_VERSION:
            raise InvariantError(
                f"the cluster moves to machine version {item.machine_version}, and this node knows none "
                f"above {MACHINE_VERSION}; start it with newer software"
            )
        self.machine_version = max(self.machine_version, item.machine_version)
        keyspace.budget.move_to(self.machine_version)
        return Done()

    def _find(self, id: SessionId) -> Session | Fault:
        session = self._sessions.find(id)
        if session is not None:
            return session
        return Fault(
            Code.SESSION_EXPIRED,
            f"session {id.index} with nonce {id.nonce:016x} is unknown or expired; not run; register anew",
            "session",
        )

    def _check_cluster(self, asked: int) -> Fault | None:
        if asked in (0, self.cluster_id):
            return None
        return Fault(
            Code.WRONG_CLUSTER,
            f"this is cluster {self.cluster_id:016x}, the request is for cluster {asked:016x}; not run; "
            "check the addresses that the client was given",
            "cluster_id",
        )


def _write_first_state(
    tables: WriteTables,
    cluster_id: int,
    machine_version: int,
    conf_state: ConfState,
    members: Sequence[Member],
) -> None:
    if tables.get(Table.HOT, META_KEY) is not None:
        raise FailedPreconditionError("the state holds a cluster already; bootstrap only an empty directory")
    meta = Meta(
        cluster_id=cluster_id,
        applied_index=0,
        applied_term=0,
        revision=1,
        machine_version=machine_version,
        lease_clock_ms=0,
        wall_clock_ms=0,
        digest=0,
        conf_state=conf_state,
        members=sorted(members, key=lambda member: member.id),
    )
    tables.put(Table.HOT, META_KEY, meta_row(meta))
    tables.put(Table.HOT, SUMS_KEY, sums_row([0] * BUCKETS))


def _new_records(entry: Entry) -> list[Member]:
    try:
        change = conf_change_as_v2(decode_conf_change(entry))
        return _member_change_decoder.decode(change.context).records if change.context else []
    except msgspec.DecodeError:
        return []  # no leader of this version proposes such bytes; all nodes pass over them alike
