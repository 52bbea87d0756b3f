"""The README's code runs as it stands there, against three real nodes, and its numbers are the code's."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftstate import connect
from raftstate.machine import types
from raftstate.node.watch_memory import WatchLimits
from raftstate.supervisor import LocalCluster

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
URL = "raftstate://127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"
COMMAND = f"{shlex.quote(sys.executable)} -m raftstate.cli"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


def shell_lines() -> list[str]:
    return re.findall(r"^\$ (.*)$", "".join(blocks("console")), re.MULTILINE)


def file_of(block: str) -> str | None:
    """Return the name of the file that a block is to be, where it says so."""
    match = re.match(r"# (\w+\.py)\n", block)
    return match and match[1]


PROGRAMS = [block for block in blocks("python") if not file_of(block)]

# What stands in a program -> what it prints, and how many of its comments say what a line gives.
TOLD = {
    "embedded:": ("", 1),
    "workflow(": ("b'jobs/42' b'queued' 1\n", 3),
    "connect_async": ("10000\n", 0),
    ".otherwise(": ("", 1),
    "store.watch(": ("", 1),
    "store.lease(": ("", 4),
    "store.compact(": ("", 2),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("readme"), nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster


def with_checked_comments(code: str) -> tuple[str, int]:
    """Turn each `expression  # value` into an assertion; return the code, and how many there are."""
    checked = 0
    lines = code.splitlines()
    for number, line in enumerate(lines):
        match = re.fullmatch(r"( +)(\S.*?)  # (.+)", line)
        if match is None:
            continue
        indent, expression, value = match.groups()
        try:
            ast.parse(expression, mode="eval")
            ast.literal_eval(value)
        except (SyntaxError, ValueError):
            continue  # a statement, or words
        lines[number] = f"{indent}assert ({expression}) == ({value}), ({expression})"
        checked += 1
    return "\n".join(lines), checked


@pytest.mark.processes
@pytest.mark.parametrize("mark", TOLD)
def test_a_program_runs_and_gives_what_its_comments_say(
    mark: str, cluster: LocalCluster, tmp_path: Path
) -> None:
    [program] = [each for each in PROGRAMS if mark in each]
    with connect(cluster.url, timeout=30) as store:
        store.delete("", prefix=True)  # each as if it were the first
    code, checked = with_checked_comments(program.replace(URL, cluster.url))
    environment = {**os.environ, "RAFTSTATE_URL": cluster.url}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (done.stdout, checked) == TOLD[mark]


def test_no_program_is_without_a_test() -> None:
    assert [sum(mark in program for mark in TOLD) for program in PROGRAMS] == [1] * len(TOLD)


def test_the_fixtures_are_used_as_shown(tmp_path: Path) -> None:
    files = {name: block for block in blocks("python") if (name := file_of(block))}
    assert sorted(files) == ["conftest.py", "test_jobs.py"]
    for name, block in files.items():
        (tmp_path / name).write_text(block)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


@pytest.mark.processes
def test_the_shell_lines_run(cluster: LocalCluster) -> None:
    """In their order, and with the leader killed where they say so."""
    with connect(cluster.url, timeout=30) as store:
        store.delete("jobs/", prefix=True)
    environment = {**os.environ, "RAFTSTATE_URL": cluster.url}
    outputs: dict[str, str] = {}
    watch: subprocess.Popen[str] | None = None
    for line in shell_lines():
        command = line.replace(".venv/bin/raftstate", COMMAND)
        if line.startswith("kill -9 PID-OF-THE-LEADER"):
            dead = cluster.wait_for_leader()
            cluster.kill(dead)
        elif line.startswith(".venv/bin/raftstate") and line.endswith("&"):
            assert watch is None
            watch = subprocess.Popen(
                shlex.split(command.removesuffix("&")),
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            assert watch.stderr is not None
            assert watch.stderr.readline() == "raftstate: watching; interrupt to stop\n"
        elif line.split()[1] in ("dev", "member", "serve"):
            continue  # it goes on for ever, or changes the cluster; tests of their own run these
        elif line.startswith(".venv/bin/raftstate"):
            done = subprocess.run(
                command, shell=True, env=environment, capture_output=True, text=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, ""), line
            outputs[line.split()[1]] = done.stdout
    assert watch is not None
    with watch:
        watch.send_signal(signal.SIGINT)
        seen, _ = watch.communicate()
    cluster.restart(dead)
    assert list(outputs) == ["put", "status", "get", "txn", "lock"]
    assert outputs["get"] == "queued"
    assert outputs["txn"].startswith("succeeded, ")
    assert outputs["lock"] == "nobody else runs this now\n"
    assert [line.split("\t")[1:] for line in seen.splitlines()] == [["put", "jobs/42", "running"]]


def test_what_the_other_shell_lines_name_is_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines():
        match line.split():
            case ["make", target, *_]:
                assert target in targets
            case [".venv/bin/python", "-m", module, *_]:
                assert importlib.util.find_spec(module) is not None
            case [".venv/bin/raftstate" | "kill", *_]:
                pass
            case _:
                pytest.fail(f"nobody looks at {line!r}")


def test_every_file_that_it_links_is_there() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert (ROOT / target).exists(), target


# How a row of the table of limits begins -> what it must say.
LIMITS = {
    "key": f"1 to {types.KEY_BYTES_MAX} bytes",
    "value": f"{types.VALUE_BYTES_MAX >> 20} MiB",
    "batch": f"{types.BATCH_COMMANDS_MAX} commands, {types.BATCH_BYTES_MAX >> 20} MiB",
    "keys that the range deletes": f"{types.RANGE_DELETE_KEYS_MAX:,}",
    "previous pairs": f"{types.ANSWERS_BYTES_MAX >> 20} MiB, {types.COMMAND_PAIRS_MAX:,} pairs",
    "pairs that one transaction": f"{types.ANSWERS_BYTES_MAX >> 20} MiB, {types.COMMAND_PAIRS_MAX:,} pairs;"
    f" {types.BATCH_PAIRS_MAX:,} of one batch",
    "transaction": f"{types.TXN_OPERATIONS_MAX:,} compares and operations",
    "transactions of one batch": f"{types.BATCH_OPERATIONS_MAX:,} compares and operations;"
    f" their ranges look at {types.TXN_READ_KEYS_MAX:,} keys",
    "range sorted": f"{types.SORT_KEYS_MAX:,} keys",
    "lease": f"lives {types.LEASE_TTL_MS_MIN // 1_000} s to {types.LEASE_TTL_MS_MAX // 3_600_000} h, holds"
    f" {types.LEASE_KEYS_MAX:,} keys; {types.LEASES_MAX:,} leases",
    "watches": f"{WatchLimits().watches:,} at one node, in {WatchLimits().streams:,} streams",
    "client session": f"ends {types.SESSION_TTL_MS_DEFAULT // 60_000} minutes after",
}


@pytest.mark.parametrize("row", LIMITS)
def test_a_limit_is_that_of_the_code(row: str) -> None:
    lines = [line for line in README.read_text().splitlines() if re.match(rf"\| {row}\b", line)]
    assert any(LIMITS[row] in line for line in lines), lines
