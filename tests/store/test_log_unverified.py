"""What an opening leaves unverified: when it is looked at, and what waits for that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from raftstate.core.errors import Damaged
from raftstate.core.types import Entry, HardState
from raftstate.errors import ClosedError, DataLossError, StorageError
from raftstate.store import log_unverified
from raftstate.store.directory import read_eio
from raftstate.store.log import LogStore
from tests.store.log_helpers import MAP_BYTES, NO_LIMIT, content, entry, put, reopen, run
from tests.store.log_regions import regions
from tests.store.test_log_damage import closed_log, damage

PAGE_BYTES = 4096
LARGE = 10_000


def large(index: int) -> Entry:
    """One that LMDB puts on pages of its own."""
    return entry(index, data=b"<%03d>" % index + b"x" * LARGE)


def opened(path: Path, verify_after: int) -> LogStore:
    return LogStore.open(path, map_bytes=MAP_BYTES, verify_after=verify_after)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a closed log with entries 1 to 40, all of them committed."""
    closed_log(tmp_path / "log", [large(index) for index in range(1, 41)], HardState(1, 1, 40))
    return tmp_path / "log"


def spoil_head(path: Path, index: int) -> None:
    """Damage what the first page of a record says of itself: LMDB reads it when it frees the record."""
    file = path / "data.mdb"
    end_of_record = regions(file)["record"][index - 1]
    image = bytearray(file.read_bytes())
    head = image.rindex(b"<%03d>" % index, 0, end_of_record) // PAGE_BYTES * PAGE_BYTES
    assert image[head + 10] == 4  # the flag of such a page
    image[head + 12] += 3  # the number of its pages
    file.write_bytes(image)


def test_an_opening_verifies_what_comes_after_and_leaves_the_rest_for_later(path: Path) -> None:
    damage(path, b"<003>", b"<???>")
    damage(path, b"<033>", b"<???>")
    log = opened(path, 30)
    assert log.damaged == (33,)
    assert log._window.first_index > 33
    assert log.verify_rest() == (3,)
    log.note_damage(3)
    assert log.damaged == (3, 33)
    assert log.verify_rest() == (3,)
    log.close()


def test_what_is_not_verified_yet_is_verified_when_it_is_read(path: Path) -> None:
    damage(path, b"<003>", b"<???>")
    log = opened(path, 40)
    assert (log.damaged, log._window.first_index) == ((), 41)
    assert log.entries(4, 41, NO_LIMIT) == [large(index) for index in range(4, 41)]
    assert log.term(40) == 1
    with pytest.raises(Damaged):
        log.entries(1, 41, NO_LIMIT)
    assert log.damaged == (3,)
    log.close()


def test_a_log_without_anything_behind_its_boundary_has_no_rest(path: Path) -> None:
    log = reopen(path)
    cut = log.compact(40, 100)
    assert cut is not None
    log.publish(cut)
    log.close()
    log = opened(path, 40)
    assert log.verify_rest() == ()
    put(log, run(41, 42))
    log.close()


REMOVALS: dict[str, Callable[[LogStore], object]] = {
    "compact": lambda log: log.compact(5, 100),
    "reset": lambda log: log.reset(HardState(2, 0, 50), 50, 2),
    "rewrite": lambda log: log.rewrite(),
    "refill": lambda log: log.refill([large(3)], None),
    "truncate": lambda log: log.write(None, [large(41)]),
}


@pytest.mark.case(85)
@pytest.mark.parametrize("removal", REMOVALS)
def test_nothing_is_removed_through_a_page_that_nobody_has_looked_at(path: Path, removal: str) -> None:
    spoil_head(path, 3)
    with pytest.raises(DataLossError, match="overflow page"):
        reopen(path)
    log = opened(path, 30)
    held = content(log)
    put(log, [large(41)])  # an append removes nothing
    for _ in range(2):
        with pytest.raises(StorageError, match="this node's log is damaged") as raised:
            REMOVALS[removal](log)
        assert raised.value.detail["distrust"] == "log"
    assert content(log) == (held[0], held[1], [*held[2], large(41)])
    log.close()
    log.close()
    assert "overflow page" in (read_eio(path.parent) or "")


@pytest.mark.parametrize("index", [3, 33])
def test_the_pages_of_what_comes_after_are_looked_at_by_the_opening(path: Path, index: int) -> None:
    spoil_head(path, index)
    if index > 30:
        with pytest.raises(DataLossError, match="overflow page"):
            opened(path, 30)
    else:
        opened(path, 30).close()


def test_the_rest_is_verified_as_it_was_at_the_opening_whatever_is_written_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = (log := reopen(path)).compact(20, 100)  # leaves pages behind that are free
    assert cut is not None
    log.publish(cut)
    log.close()
    damage(path, b"<025>", b"<???>")
    log = opened(path, 40)
    written = iter(range(41, 1_000))

    def write(_: float) -> None:
        put(log, [large(next(written))])

    monkeypatch.setattr(log_unverified, "_STEPS_AT_ONCE", 1)
    monkeypatch.setattr(log_unverified.time, "sleep", write)
    assert log.verify_rest() == (25,)
    assert next(written) > 70
    log.close()
    log = reopen(path)
    assert log.damaged == (25,)
    log.close()


def test_a_removal_does_not_wait_for_the_pauses_of_who_verifies(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(path, 40)
    paused, go_on = threading.Event(), threading.Event()
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        paused.set()
        assert go_on.wait(10)

    monkeypatch.setattr(log_unverified, "_STEPS_AT_ONCE", 1)
    monkeypatch.setattr(log_unverified.time, "sleep", sleep)
    verifying = threading.Thread(target=log.verify_rest)
    verifying.start()
    assert paused.wait(10)
    cuts = []
    cutting = threading.Thread(target=lambda: cuts.append(log.compact(20, 100)))
    cutting.start()
    while log._unverified is not None and not log._unverified._hurried:
        pass
    go_on.set()
    cutting.join(10)
    verifying.join(10)
    assert len(pauses) == 1
    assert cuts[0] is not None
    log.publish(cuts[0])
    assert content(log)[1:] == (21, [large(index) for index in range(21, 41)])
    log.close()


def test_verifying_can_be_stopped_and_a_removal_still_comes_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_unverified, "_STEPS_AT_ONCE", 1)
    spoil_head(path, 3)
    log = opened(path, 40)
    log.stop_verifying()
    with pytest.raises(ClosedError):
        log.verify_rest()
    with pytest.raises(StorageError, match="this node's log is damaged"):
        log.compact(20, 100)
    log.close()
