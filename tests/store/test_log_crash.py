"""What is left of the log by kill -9, and by a power cut in the middle of a commit."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from raftstate.core.types import HardState
from raftstate.store.meta_page import read_meta_pages
from tests.store.log_helpers import content, entry, new_log, put, reopen
from tests.store.log_writing_process import payload


def write_until_killed(path: Path, seed: int, writes: int, held: dict[int, int]) -> None:
    """Run the writing process, kill it after so many acknowledged writes; `held`: what was acknowledged."""
    command = [sys.executable, "-m", "tests.store.log_writing_process", str(path), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for count, line in enumerate(process.stdout):
            if count == writes:
                process.kill()
            if not line.endswith("\n"):
                break
            first, last, term = map(int, line.split())
            for index in [index for index in held if index > last]:
                del held[index]
            held.update(dict.fromkeys(range(first, last + 1), term))


@pytest.mark.case(3)
@pytest.mark.case(5)
@pytest.mark.parametrize("rounds", [8, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_every_acknowledged_write_outlives_kill_9(tmp_path: Path, rounds: int) -> None:
    path = tmp_path / "log"
    new_log(path).close()
    rng = random.Random(rounds)
    held: dict[int, int] = {}
    checked = 0
    for _ in range(rounds):
        write_until_killed(path, rng.randrange(1 << 30), rng.randrange(1, 150), held)
        log = reopen(path)
        hard_state, first, entries = content(log)
        assert log.first_damaged_index is None
        assert all(e.data == payload(e.index, e.term) for e in entries)
        found = {e.index: e.term for e in entries}
        # A last write that was durable, and not reported yet, may have replaced the end of what was
        # acknowledged.
        lost = [index for index, term in held.items() if index >= first and found.get(index) != term]
        newest = max(found.values())
        replaced_from = min(index for index, term in found.items() if term == newest)
        assert all(
            index > hard_state.commit and index >= replaced_from and newest > held[index] for index in lost
        )
        assert hard_state.term >= max(held.values(), default=0)
        held = found
        checked += len(found)
        log.close()
    assert checked > 100


@pytest.mark.case(47)
@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_power_cut_within_a_commit_leaves_the_commit_before_it_or_this_one(
    tmp_path: Path, rounds: int
) -> None:
    path, image_path = tmp_path / "log", tmp_path / "image"
    image_path.mkdir()
    rng = random.Random(rounds)
    log = new_log(path)
    page_bytes = read_meta_pages(path / "data.mdb")[0].page_bytes
    last = 0
    for round_ in range(rounds):
        before, held_before = (path / "data.mdb").read_bytes(), content(log)
        first = rng.randrange(max(log.last_hard_state.commit + 1, last - 3), last + 2)
        last = first + rng.randrange(6)
        term = round_ + 1
        entries = [entry(i, term, rng.randbytes(rng.choice((10, 500, 9000)))) for i in range(first, last + 1)]
        put(log, entries, HardState(term, 1, max(log.last_hard_state.commit, first - 10)))
        after, held_after = (path / "data.mdb").read_bytes(), content(log)
        assert open_image(image_path, after) == held_after
        # The data pages are synced before the meta page is written: any of them may be there, and the meta
        # page not.
        image = bytearray(before.ljust(len(after), b"\0"))
        for at in range(2 * page_bytes, len(after), page_bytes):
            if rng.random() < 0.5:
                image[at : at + page_bytes] = after[at : at + page_bytes]
        assert open_image(image_path, bytes(image)) == held_before
        if round_ % 10 == 9 and (compacted := log.compact(log.last_hard_state.commit, 100)) is not None:
            log.publish(compacted)
    log.close()


def open_image(path: Path, image: bytes) -> object:
    (path / "data.mdb").write_bytes(image)
    log = reopen(path)
    try:
        assert log.first_damaged_index is None
        return content(log)
    finally:
        log.close()


@pytest.mark.case(49)
def test_data_and_meta_page_are_in_the_file_before_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(tmp_path / "log")
    order: list[str] = []

    def commit(txn: lmdb.Transaction[memoryview]) -> None:
        assert [page.transaction_id for page in read_meta_pages(tmp_path / "log/data.mdb")] == [0, 1]
        txn.commit()
        assert [page.transaction_id for page in read_meta_pages(tmp_path / "log/data.mdb")] == [2, 1]
        order.append("durable")

    monkeypatch.setattr(log, "_commit", commit)
    write = log.write(HardState(1, 1, 0), [entry(1)])
    order.append("returned")
    log.publish(write)
    assert order == ["durable", "returned"]
    flags = log._environment.flags()
    assert (flags["sync"], flags["metasync"], flags["writemap"], flags["map_async"]) == (
        True,
        True,
        False,
        False,
    )
    log.close()
