"""`raftstate check` finds what is wrong, says what it means, and changes nothing."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from raftstate import connect
from raftstate.errors import FailedPreconditionError
from raftstate.machine.layout import read_meta
from raftstate.machine.tables import Table
from raftstate.offline.check import check
from raftstate.store.checkpoint import CheckpointRecord
from raftstate.store.generation import current_generation
from raftstate.store.page_check import _Walk
from raftstate.store.page_tables import PageTables, mapped
from raftstate.store.state import StateStore
from tests.offline.folders import KEYS, command, image, killed, stopped
from tests.store.log_regions import flip, regions


@pytest.mark.parametrize("make", [stopped, killed])
def test_a_sound_directory_is_fine_and_stays_as_it_is(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    folder = make(tmp_path / "node")
    before = image(folder)
    for given in (folder, folder / "data"):
        report = check(given)
        assert (report.findings, report.pending) == ([], [])
        assert [line.split(":")[0] for line in report.fine] == [
            "identity",
            "log",
            "state",
            "log and state fit together",
        ]
    assert image(folder) == before


def test_a_running_nodes_directory_is_refused(tmp_path: Path) -> None:
    with (
        connect(f"embedded:{tmp_path / 'node'}"),
        pytest.raises(FailedPreconditionError, match="is in use by process"),
    ):
        check(tmp_path / "node")


def test_what_is_no_nodes_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="is no data directory of a node"):
        check(tmp_path)
    with pytest.raises(FailedPreconditionError, match="there is no directory"):
        check(tmp_path / "missing")


@pytest.mark.case(50)
@pytest.mark.case(56)
@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("what", "part", "meaning"),
    [
        ("record", "log", "nobody has them: restore a copy"),
        ("meta row", "log", "asks the other nodes to be replaced"),
        ("hard state", "log", "asks the other nodes to be replaced"),
        ("newest meta page", "log", "asks the other nodes to be replaced"),
        ("older meta page", "log", "asks the other nodes to be replaced"),
        ("leaf page", "log", "asks the other nodes to be replaced"),
        ("identity", "identity", "nobody can tell whose data these are"),
        ("CURRENT", "state", "the log may be whole"),
        ("checkpoint", "state", "the log may be whole"),
        ("missing log", "log", "asks the other nodes to be replaced"),
        ("missing state", "state", "the log may be whole"),
    ],
)
def test_damage_is_found_and_said_what_it_means(tmp_path: Path, what: str, part: str, meaning: str) -> None:
    folder = killed(tmp_path / "node")
    data = folder / "data"
    log = data / "log" / "data.mdb"
    if what in ("identity", "CURRENT"):
        flip(data / what, 3)
    elif what == "checkpoint":
        flip(data / "state-1" / "checkpoint", 20)
    elif what == "missing log":
        shutil.rmtree(data / "log")
    elif what == "missing state":
        shutil.rmtree(data / "state-1")
    elif what == "record":
        flip(log, regions(log)["record"][-1])
    else:
        flip(log, regions(log)[what][0])
    before = image(folder)
    report = check(data)
    assert [finding.part for finding in report.findings] == [part]
    assert meaning in report.findings[0].meaning
    assert image(folder) == before


@pytest.mark.case(56)
def test_a_damaged_record_that_was_applied_is_no_loss(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node")
    log = folder / "data" / "log" / "data.mdb"
    flip(log, *regions(log)["record"][2:9:3])
    report = check(folder)
    assert len(report.findings) == 1
    assert report.findings[0].problem.startswith("3 records are damaged (entries ")
    assert "nothing is lost" in report.findings[0].meaning
    with connect(f"embedded:{folder}") as client:
        assert client.get("key7") is not None
    assert check(folder).findings == []


@pytest.mark.case(56)
def test_a_flip_in_any_page_of_the_state_in_use_is_found_or_means_nothing(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node")
    data_file = folder / "data" / "state-1" / "data.mdb"
    content = data_file.read_bytes()
    generation = current_generation(folder / "data")
    assert generation is not None
    record = CheckpointRecord.read(generation.checkpoint_file)
    with mapped(data_file) as pages:
        tables = PageTables(pages, record.meta)
        rows = {table: list(tables.scan(table)) for table in Table}
        walk = _Walk(pages, record.meta, named=True)
        walk.run()
        in_use = sorted(walk._reached)
    rng = random.Random(1)
    found = 0
    for _ in range(150):
        place = rng.choice(in_use) * record.meta.page_bytes + rng.randrange(record.meta.page_bytes)
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.randrange(8)
        data_file.write_bytes(damaged)
        report = check(folder)
        if report.findings:
            assert report.findings[0].part == "state"
            found += 1
        else:
            with mapped(data_file) as pages:
                tables = PageTables(pages, record.meta)
                assert {table: list(tables.scan(table)) for table in Table} == rows
    assert found > 30


def test_rows_are_read_from_pages_as_lmdb_reads_them(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node", 1_000)
    generation = current_generation(folder / "data")
    assert generation is not None
    record = CheckpointRecord.read(generation.checkpoint_file)
    with mapped(generation.data_file) as pages:
        ours = PageTables(pages, record.meta)
        assert read_meta(ours).applied_index == record.applied_index
        held = {table: list(ours.scan(table)) for table in Table}
        counts = {table: ours.count(table) for table in Table}
        some = held[Table.INDEX][::37]
        assert [ours.get(Table.INDEX, key) for key, _ in some] == [value for _, value in some]
        assert ours.get(Table.INDEX, b"key5x") is None
        assert [key for key, _ in ours.scan(Table.INDEX, b"key5", b"key50")] == [b"key5"]
    state = StateStore.open(folder / "data")
    with state.read() as theirs:
        assert held == {table: list(theirs.scan(table)) for table in Table}
        assert counts == {table: theirs.count(table) for table in Table}
    state.close(clean=False)
    assert counts[Table.INDEX] == 1_000


def test_the_command_says_it_in_words_and_in_json(tmp_path: Path) -> None:
    folder = stopped(tmp_path / "node", 5)
    fine = command("check", str(folder))
    assert (fine.returncode, fine.stdout.splitlines()[-1]) == (0, "no damage found")
    flip(folder / "data" / "identity", 3)
    damaged = command("check", str(folder / "data"), "--json")
    assert damaged.returncode == 1
    told = json.loads(damaged.stdout)
    assert (told["ok"], told["findings"][0]["part"]) == (False, "identity")
    assert "DAMAGE   identity" in command("check", str(folder / "data")).stdout
    assert KEYS > 5


def test_a_folder_of_several_nodes_is_no_node_and_names_them(tmp_path: Path) -> None:
    for name in ("n1", "n2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "node.toml").touch()
    (tmp_path / "lock").touch()
    with pytest.raises(FailedPreconditionError, match=r"nodes are in its folders n1, n2: give one of them"):
        check(tmp_path)
