"""The benchmarks' command line: what others read of it."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest

from bench.load import Keys, UsageError


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, check=False
    )


def test_the_same_seed_gives_every_system_the_same_keys() -> None:
    keys = Keys("uniform:10")
    first, second = (list(itertools.islice(keys.stream(7), 5_000)) for _ in range(2))
    assert first == second
    assert set(first) == set(keys.prefilled())


def test_sequential_keys_are_new_ones_in_order() -> None:
    keys = list(itertools.islice(Keys("sequential").stream(7), 100))
    assert keys == sorted(set(keys))
    assert Keys("sequential").prefilled() == []


@pytest.mark.parametrize("spec", ["uniform", "uniform:0", "uniform:x", "zipf:3", ""])
def test_key_specs_without_meaning_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="must be uniform:N"):
        Keys(spec)


def test_a_peer_that_is_not_there_is_exit_code_1() -> None:
    done = bench("compare", "--peers", "nosuch", "--seconds", "0.1")
    assert done.returncode == 1
    assert "nosuch" in done.stdout


@pytest.mark.parametrize("concurrency", ["0", "1,x", ""])
def test_a_concurrency_without_meaning_is_exit_code_2(concurrency: str) -> None:
    assert bench("write", "--concurrency", concurrency).returncode == 2


@pytest.mark.processes
def test_write_prints_one_object_a_concurrency() -> None:
    done = bench("write", "--concurrency", "1,8", "--seconds", "0.3", "--keys", "uniform:50", "--json", "-")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["concurrency"] for row in rows] == [1, 8]
    for row in rows:
        assert row["workload"] == "put"
        assert row["ratio"] == {}
        assert set(row["systems"]) == {"raftstate"}
        figures = row["systems"]["raftstate"]
        assert set(figures) == {"ops_per_s", "p50_ms", "p99_ms", "max_ms", "settings"}
        assert 0 < figures["p50_ms"] <= figures["p99_ms"] <= figures["max_ms"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("watch", "--watches", "0"),
        ("watch", "--unread", "-1"),
        ("history", "--reads", "0"),
        ("compaction", "--keys", "0"),
        ("compaction", "--seconds", "nan"),
    ],
)
def test_a_size_without_meaning_is_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert f"argument {arguments[1]}: got '{arguments[2]}'" in done.stderr


@pytest.mark.processes
def test_watch_says_what_was_delivered_how_late_and_at_what_cost() -> None:
    options = ("--watches", "20", "--prefixes", "4", "--processes", "2", "--unread", "2")
    load = ("--writes-per-s", "100", "--seconds", "0.5", "--filler-mib", "1")
    done = bench("watch", *options, *load, "--json", "-")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["workload"] == "watch"
    assert set(figures["processes"]) == {"n1", "n2", "n3", "client 1", "client 2"}
    assert figures["lag_p50_ms"] <= figures["lag_p99_ms"] <= figures["lag_max_ms"]
    assert figures["delivered_per_s"] > 0
    for verdict in figures["verdicts"]:
        assert verdict.pop("delivered") > 0
        assert verdict == {"missing": 0, "disordered": 0, "foreign": 0}


@pytest.mark.processes
def test_history_compares_reads_of_the_past_with_the_latest() -> None:
    done = bench("history", "--versions", "50", "--reads", "20", "--json", "-")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    for transport in ("gRPC", "embedded"):
        assert figures[transport]["ratio_p50"] > 0
        assert figures[transport]["past_p50_ms"] <= figures[transport]["past_p99_ms"]


@pytest.mark.processes
def test_compaction_tells_puts_before_from_puts_during_it() -> None:
    options = ("--changes", "2000", "--keys", "100", "--seconds", "0.5", "--json", "-")
    done = bench("compaction", *options)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures["sweep_s"]) == {"n1", "n2", "n3"}
    for when in ("before", "during"):
        assert figures[when]["puts"] > 0
        assert figures[when]["p50_ms"] <= figures[when]["p99_ms"] <= figures[when]["max_ms"]
