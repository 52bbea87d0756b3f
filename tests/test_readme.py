"""The README's code runs as it stands there, against three real nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftstate import connect
from raftstate.supervisor import LocalCluster

README = Path(__file__).resolve().parent.parent / "README.md"
URL = "raftstate://127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"

pytestmark = pytest.mark.processes


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("readme"), nodes=3, port=0) as cluster:
        cluster.wait_for_leader()
        yield cluster


def run_python(code: str, cluster: LocalCluster) -> str:
    environment = {**os.environ, "RAFTSTATE_URL": cluster.url}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def with_checked_comments(code: str) -> str:
    """Turn `expression    # value` lines into assertions."""
    return re.sub(
        r"^( +)(store\.get.*?|workflow\.restore.*?) {2,}# (.+)$",
        r"\1assert (\2) == (\3), \2",
        code,
        flags=re.MULTILINE,
    )


def test_the_session_runs_and_gives_what_its_comments_say(cluster: LocalCluster) -> None:
    code = next(block for block in blocks("python") if "workflow" in block)
    checked = with_checked_comments(code.replace(URL, cluster.url))
    assert checked.count("assert") == 3
    # jobs/42 is written once by this session.
    assert run_python(checked, cluster) == "b'jobs/42' b'queued' 1\n"


def test_the_asyncio_session_runs(cluster: LocalCluster) -> None:
    code = next(block for block in blocks("python") if "connect_async" in block)
    assert run_python(code, cluster) == "10000\n"


def test_paging_through_a_range_finds_every_key(cluster: LocalCluster) -> None:
    with connect(cluster.url, timeout=30) as store:
        store.put_many([(f"k/{number}", b"v") for number in range(10_000)])
        store.put("k/one-more", b"v")
    code = next(block for block in blocks("python") if "next_start" in block)
    assert run_python(code, cluster) == "10001\n"


def test_the_shell_lines_run(cluster: LocalCluster) -> None:
    environment = {**os.environ, "RAFTSTATE_URL": cluster.url}
    lines = [
        line
        for block in blocks("console")
        for line in re.findall(r"^\$ \.venv/bin/raftstate (.*)$", block, re.M)
    ]
    asked = [line.split() for line in lines if line.split()[0] in {"put", "get", "status"}]
    assert [line[0] for line in asked] == ["put", "status", "get"]
    outputs = [
        subprocess.run(
            [sys.executable, "-m", "raftstate.cli", *arguments],
            env=environment,
            capture_output=True,
            check=True,
        ).stdout
        for arguments in asked
    ]
    assert outputs[-1] == b"queued"
