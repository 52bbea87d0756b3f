"""A short program of a fixed seed on our node and on a real etcd; and each plant, which must be found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tests.differential.__main__ import main
from tests.differential.comparison import same, same_watch
from tests.differential.etcd import HOW_TO_INSTALL
from tests.differential.generator import KEYS, program
from tests.differential.operations import (
    Collect,
    Delete,
    Event,
    Grant,
    KeyValue,
    Picture,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Reference,
    Refusal,
    Reply,
    Revoke,
    Txn,
    TxnAnswer,
    Watch,
    WatchAnswer,
)
from tests.differential.plants import PLANTS
from tests.differential.report import shown, shown_difference
from tests.differential.runner import Arena, run, shrink

SEED = 7
OPERATIONS = 1_000

needs_etcd = pytest.mark.skipif(shutil.which("etcd") is None, reason=HOW_TO_INSTALL)


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena() as arena:
        yield arena


# ---- on real processes


@needs_etcd
@pytest.mark.processes
def test_a_program_is_answered_alike_by_our_node_and_by_etcd(arena: Arena) -> None:
    arena.plant = None
    outcome = run(arena.contest(), program(SEED), OPERATIONS)
    assert outcome.difference is None, shown_difference(outcome.difference)
    assert outcome.done == OPERATIONS
    kinds = {kind for kind, _ in outcome.counts}
    assert kinds >= {
        "Put",
        "Delete",
        "Range",
        "Txn",
        "Compact",
        "Grant",
        "Revoke",
        "Renew",
        "TimeToLive",
        "Watch",
    }


@needs_etcd
@pytest.mark.processes
def test_a_program_in_batches_of_which_some_are_sent_twice_is_answered_as_by_etcd() -> None:
    with Arena(batch=16) as arena:
        outcome = run(arena.contest(), program(SEED), OPERATIONS)
    assert outcome.difference is None, shown_difference(outcome.difference)
    assert outcome.done == OPERATIONS


@needs_etcd
@pytest.mark.processes
@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_difference_is_found(arena: Arena, plant: str) -> None:
    arena.plant = plant
    outcome = run(arena.contest(), program(SEED), 4_000)
    assert outcome.difference is not None, f"{outcome.done} operations were done, and {plant} was not found"


@needs_etcd
@pytest.mark.processes
def test_the_program_of_a_difference_is_shrunk_to_what_matters(arena: Arena) -> None:
    arena.plant = "no-prev-kv"
    matters = [Put(b"a", b"one"), Put(b"a", b"two", prev_kv=True)]
    padding = [Grant(1, 5_000), Delete(b"b"), Range(b"a"), Txn(success=(Put(b"c", b""),)), Revoke(1)]
    outcome = run(arena.contest(), [matters[0], *padding, matters[1]], 100)
    assert outcome.done == 6
    assert shrink(arena, outcome.last, budget_s=20) == matters


@needs_etcd
@pytest.mark.processes
def test_the_command_tells_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", str(SEED), "--operations", "100", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["seed"], told["done"], told["differences"]) == (SEED, 100, 0)


# ---- the command line


def test_without_etcd_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--operations", "10"]) == 2
    assert "apt-get install etcd-server" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--operations", "0"], ["--batch", "0"], ["--plant", "nothing"], ["--seed", "x"]]
)
def test_bad_usage_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2


# ---- programs


def test_a_seed_gives_the_same_program_each_time_and_another_seed_another_one() -> None:
    first, again, other = (list(islice(program(seed), 3_000)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_keys_are_few_and_prefixes_of_one_another() -> None:
    assert len(KEYS) == len(set(KEYS)) == 60
    assert sum(any(other != key and other.startswith(key) for other in KEYS) for key in KEYS) > 10


def test_references_mean_numbers_of_the_moment() -> None:
    picture = Picture()
    picture.learn(Put(b"a", b""), Reply(40, PutAnswer(KeyValue(b"a", b"", 11, 12, 3, 0))))
    picture.compacted = 10
    meant = {
        Reference("now"): 40,
        Reference("now", -50): 1,
        Reference("compacted", -1): 9,
        Reference("between", 500): 25,
        Reference("created", 1, b"a"): 12,
        Reference("modified", 0, b"a"): 12,
        Reference("version", -1, b"a"): 2,
        Reference("version", 1, b"never seen"): 1,
    }
    assert {reference: picture.number(reference) for reference in meant} == meant
    assert picture.resolve(Txn(success=(Range(b"a", revision=Reference("now")),))) == Txn(
        success=(Range(b"a", revision=40),)
    )


# ---- comparison


def pair(key: bytes, value: bytes = b"", *, version: int = 1) -> KeyValue:
    return KeyValue(key, value, 2, 2, version, 0)


A, B, C = pair(b"a"), pair(b"b"), pair(b"c", version=2)
BY_VERSION = Range(b"a", b"z", order="ascend", target="version")


def ranged(*kvs: KeyValue, more: bool = False, revision: int = 2) -> Reply:
    return Reply(revision, RangeAnswer(list(kvs), more, 3))


def test_replies_differ_in_their_revision() -> None:
    assert same(Range(b"a", b"z"), ranged(A, B, C), ranged(A, B, C))
    assert not same(Range(b"a", b"z"), ranged(A, B, C), ranged(A, B, C, revision=3))


def test_the_order_within_ties_of_a_sort_does_not_matter_and_any_other_does() -> None:
    assert same(BY_VERSION, ranged(A, B, C), ranged(B, A, C))
    assert not same(BY_VERSION, ranged(A, B, C), ranged(A, C, B))
    assert not same(BY_VERSION, ranged(A, B, C), ranged(A, A, C))
    assert not same(Range(b"a", b"z"), ranged(A, B, C), ranged(B, A, C))


def test_which_pairs_of_a_tie_a_limit_leaves_does_not_matter() -> None:
    assert same(BY_VERSION, ranged(A, more=True), ranged(B, more=True))
    assert not same(BY_VERSION, ranged(A, more=True), ranged(C, more=True))
    assert not same(BY_VERSION, ranged(A, more=True), ranged(B, more=False))


def test_ties_within_transactions_are_ties_too() -> None:
    txn = Txn(failure=(BY_VERSION,))
    replies = [Reply(2, TxnAnswer(False, [RangeAnswer(kvs, False, 2)])) for kvs in ([A, B], [B, A])]
    assert same(txn, *replies)
    assert not same(replace(txn, failure=(Range(b"a", b"z"),)), *replies)


def test_refusals_differ_in_their_kind_only() -> None:
    one, reworded, other = (
        Reply(None, Refusal(*each)) for each in (("NOT_FOUND", "x"), ("NOT_FOUND", "y"), ("UNKNOWN", "x"))
    )
    assert same(Put(b"a", b""), one, reworded)
    assert not same(Put(b"a", b""), one, other)
    assert not same(Put(b"a", b""), one, Reply(None, PutAnswer(None)))


def test_deletions_at_the_compacted_revision_are_left_out_of_watches_from_there() -> None:
    deletion = Event("delete", pair(b"a"), None)
    etcd, ours = WatchAnswer([], "finished"), WatchAnswer([deletion], "finished")
    assert same_watch(2, 2, etcd, ours)
    assert not same_watch(2, 1, etcd, ours)
    assert not same_watch(2, 2, etcd, ours._replace(events=[Event("put", pair(b"a"), None)]))


def test_watches_that_did_not_come_to_their_end_are_not_the_same() -> None:
    late = WatchAnswer([], "late")
    assert not same_watch(2, 1, late, late)


def test_programs_are_shown_as_what_makes_them() -> None:
    operations = [
        Watch("w", b"a", start=Reference("compacted", -1)),
        Collect("w"),
        Put(b"a", b"v" * 5_000),
        Txn(success=(Delete(b"a"),)),
    ]
    for operation in operations:
        assert len(shown(operation)) < 80
        assert eval(shown(operation)) == operation
