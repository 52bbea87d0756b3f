"""Random programs of all commands against plain dictionaries; however their log is cut, aborted or swept, all
nodes end with the same."""

from __future__ import annotations

from random import Random

import pytest

from chaos.sim.memory_tables import MemoryTables
from raftstate.errors import StorageError
from raftstate.machine.command import check
from raftstate.machine.digest import recount
from raftstate.machine.history import scan_at
from raftstate.machine.keyspace import key_value
from raftstate.machine.layout import read_sums
from raftstate.machine.machine import Machine
from raftstate.machine.types import (
    MACHINE_VERSION,
    Answer,
    CompactTo,
    DeleteDone,
    Done,
    EntryResult,
    ExpireLease,
    LongApply,
    PutDone,
    RangeDone,
)
from raftstate.machine.verify import check_state
from raftstate.pb.v1.pipeline_pb2 import Command
from raftstate.pb.v1.txn_pb2 import RequestOp
from tests.machine.rig import (
    CLUSTER,
    MEMBERS,
    Rig,
    compact,
    compare,
    erase,
    grant,
    op_delete,
    op_put,
    op_range,
    renew,
    revoke,
    txn,
)
from tests.machine.store_model import Outcome, StoreModel

KEYS = [b"a", b"aa", b"b", b"b\x00", b"c", b"d" * 40]
ENDS = [b"", b"", b"b", b"c", b"e", b"\x00"]
LEASES = [1, 2, 3]


class Writer:
    """Makes up commands, all of which pass their check."""

    def __init__(self, random: Random, model: StoreModel) -> None:
        self.random = random
        self.model = model

    def command(self, serial: int) -> Command:
        while True:
            made = self.made_up(serial)
            if check(made, MACHINE_VERSION) is None:
                return made

    def made_up(self, serial: int) -> Command:
        random = self.random
        kind = random.choices(
            ["put", "delete", "txn", "compact", "grant", "revoke", "renew", "erase"],
            [6, 2, 8, 1, 2, 1, 1, 0.5],
        )[0]
        match kind:
            case "put":
                return Command(serial=serial, put=self.a_put().put)
            case "delete":
                return Command(serial=serial, delete=self.a_delete().delete)
            case "txn":
                branches = [[self.operation() for _ in range(random.choice([0, 1, 2, 2, 4]))] for _ in "tf"]
                return txn(serial, [self.a_compare() for _ in range(random.choice([0, 1, 1, 2]))], *branches)
            case "compact":
                return compact(serial, max(1, self.model.revision - random.randrange(-1, 12)))
            case "erase":
                return erase(serial, self.key())
            case "grant":
                return grant(serial, random.choice(LEASES), random.choice([1_000, 3_000]))
            case "revoke":
                return revoke(serial, random.choice(LEASES))
        return renew(serial, random.choice(LEASES))

    def key(self) -> bytes:
        return self.random.choice(KEYS)

    def lease(self) -> int:
        return self.random.choice([0, 0, 0, *self.model.leases, *self.model.leases, 9, *LEASES[:1]])

    def a_put(self) -> RequestOp:
        value = self.random.choice([b"", b"x", b"yy"])
        return op_put(self.key(), value, prev_kv=self.random.random() < 0.3, lease=self.lease())

    def a_delete(self) -> RequestOp:
        return op_delete(self.key(), self.random.choice(ENDS), prev_kv=self.random.random() < 0.5)

    def operation(self) -> RequestOp:
        random = self.random
        made = random.choices([self.a_put, self.a_delete, self.a_range], [3, 1, 2])[0]
        return made()

    def a_range(self) -> RequestOp:
        random = self.random
        past = self.model.revision - random.randrange(-1, 20)
        return op_range(
            self.key(),
            random.choice(ENDS),
            limit=random.choice([0, 0, 1, 2]),
            revision=max(0, past) if random.random() < 0.4 else 0,
            keys_only=random.random() < 0.2,
            count_only=random.random() < 0.1,
            sort_order=random.randrange(3),
            sort_target=random.choice([0, 0, 1, 2, 3, 4]),
        )

    def a_compare(self):  # type: ignore[no-untyped-def]
        random = self.random
        target = random.choice(["version", "create_revision", "mod_revision", "value", "lease"])
        want: int | bytes = random.choice([0, 1, 2, self.model.revision])
        if target == "value":
            want = random.choice([b"", b"x", b"yy"])
        return compare(
            self.key(), random.choice(["==", "!=", ">", "<"]), random.choice(ENDS), **{target: want}
        )


def seen(answer: Answer) -> Outcome:
    """An answer in the model's words."""
    if answer.fault is not None:
        return Outcome(answer.revision, answer.fault.code)
    said: object = (answer.deleted, answer.prev_kvs)
    if answer.lease is not None:
        said = (answer.lease.id, answer.lease.ttl_ms)
    if answer.txn is not None:
        responses: list[object] = []
        for response in answer.txn.responses:
            match response:
                case PutDone(prev_kv):
                    responses.append(prev_kv)
                case DeleteDone(deleted, prev_kvs):
                    responses.append((deleted, prev_kvs))
                case RangeDone(kvs, more, count):
                    responses.append((kvs, more, count))
        said = (answer.txn.succeeded, responses)
    return Outcome(answer.revision, None, said)


def assert_agree(rig: Rig, model: StoreModel) -> None:
    """All that can be read, at every revision that can be, is what the model says."""
    assert rig.machine.revision == model.revision
    assert rig.machine.compacted_revision == model.compacted
    for revision in range(max(1, model.compacted), model.revision + 1):
        pairs = {
            change.key: key_value(change, at) for at, change in scan_at(rig.tables, b"\x00", None, revision)
        }
        assert pairs == model.history[revision], revision
    assert {pair.key: pair for pair in rig.reader.range(b"\x00", None).kvs} == model.keys
    assert rig.machine.lease_count == len(model.leases)
    for id, (renewed, ttl_ms) in model.leases.items():
        status = rig.reader.lease(id, model.clock)
        assert status is not None
        assert (status.ttl_ms, status.remaining_ms) == (ttl_ms, max(0, renewed + ttl_ms - model.clock))
        assert rig.reader.lease_keys(id, 1_000) == model.attached(id)
        assert status.key_count == len(model.attached(id))
    due = [id for id, (renewed, ttl_ms) in model.leases.items() if renewed + ttl_ms <= model.clock]
    assert sorted(rig.machine.expired_leases(model.clock)) == sorted(due)
    assert recount(rig.tables) == read_sums(rig.tables)
    assert check_state(rig.tables).revision == model.revision


def run_program(random: Random, rig: Rig, steps: int) -> None:
    model = StoreModel()
    writer = Writer(random, model)
    for _ in range(steps):
        action = random.random()
        if action < 0.75:
            # One by one into the model, since what is made up next looks at it.
            commands = []
            expected = {}
            for serial in range(1, random.choice([1, 3, 8]) + 1):
                commands.append(writer.command(serial))
                expected[serial] = model.run(commands[-1])
            found = rig.write(*commands, lease_ms=model.clock)
            assert {serial: seen(answer) for serial, answer in found.items()} == expected
        elif action < 0.85:
            model.clock += random.choice([100, 500, 1_500])
            for id in list(model.leases):
                at = max(0, model.clock - random.choice([0, 0, 1_000]))
                ends = sum(model.leases[id]) <= at
                [result] = rig.run(ExpireLease(id, at), lease_ms=model.clock)
                assert (result == Done()) == ends
                if ends:
                    model.end(id)
        elif action < 0.9:
            revision = random.randrange(model.revision + 2)
            [result] = rig.run(CompactTo(revision))
            assert (result == Done()) == (revision <= model.revision)
            if revision <= model.revision:
                model.compacted = max(model.compacted, revision)
        elif action < 0.97:
            with rig.tables.write() as tables:
                rig.machine.sweep(tables, random.choice([1, 3, 100]))
        else:
            rig.reload()
        check_state(rig.tables)
    assert_agree(rig, model)


def raise_after(results: list[EntryResult]) -> None:
    raise StorageError("the commit failed")


def replay(random: Random, rig: Rig) -> tuple[MemoryTables, Machine, list[EntryResult]]:
    """Apply a rig's log anew, cut into other portions, some of them aborted at first."""
    tables = MemoryTables()
    Machine.bootstrap(tables, CLUSTER, MEMBERS)
    machine = Machine(tables)
    results: list[EntryResult] = []
    at = 0
    while at < len(rig.log):
        portion = rig.log[at : at + random.choice([1, 2, 7])]
        before = tables.dump()
        try:
            with tables.write() as transaction:
                limit = random.choice([None, 0, 3, 10])
                found = machine.apply(transaction, portion, keys_at_once_max=limit)
                if random.random() < 0.3:
                    raise_after(found)
        except (StorageError, LongApply):
            assert tables.dump() == before
            machine.load(tables)
            with tables.write() as transaction:
                found = machine.apply(transaction, portion)
        results += found
        at += len(portion)
    return tables, machine, results


@pytest.mark.parametrize("seed", range(25))
def test_random_programs_end_as_the_model_does_and_alike_on_all_nodes(seed: int) -> None:
    random = Random(seed)
    rig = Rig()
    run_program(random, rig, 30)
    nodes = [replay(random, rig) for _ in range(2)]
    assert nodes[0][2] == nodes[1][2]
    assert nodes[0][1].digest == nodes[1][1].digest == rig.machine.digest
    assert nodes[0][0].dump() == nodes[1][0].dump()
    # A node that has swept differs in what can't be read any more, and in nothing else.
    swept, whole = rig.tables.dump(), nodes[0][0].dump()
    swept["HOT"].pop(b"P", None)
    assert (swept["HOT"], swept["INDEX"]) == (whole["HOT"], whole["INDEX"])
    assert swept["CHANGES"].items() <= whole["CHANGES"].items()
    assert swept["MILESTONES"].items() <= whole["MILESTONES"].items()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1_000, 1_200))
def test_many_more_random_programs(seed: int) -> None:
    random = Random(seed)
    rig = Rig()
    run_program(random, rig, 80)
    assert replay(random, rig)[1].digest == rig.machine.digest
