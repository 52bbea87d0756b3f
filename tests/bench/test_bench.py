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
