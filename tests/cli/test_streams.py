"""What the command line does to its standard streams, and they to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = [sys.executable, "-m", "raftstate.cli"]
SIZE_BYTES = 1 << 20
"""Many times what a pipe holds."""

WRITE_OUT = f"""
import os, sys
from raftstate.cli.common import write_out
os.set_blocking(1, False)
sys.stderr.write("go")
sys.stderr.flush()
write_out(bytes({SIZE_BYTES}))
"""


def test_all_of_a_large_output_reaches_a_slow_reader() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE_OUT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert process.stderr.read(2) == b"go"
        received = 0
        while piece := os.read(process.stdout.fileno(), 10_000):
            received += len(piece)
        assert process.stderr.read() == b""
    assert (process.wait(30), received) == (0, SIZE_BYTES)


def shell(line: str) -> tuple[int, str]:
    """Run a shell line in which $R is the raftstate command; return its exit code and stderr."""
    quoted = " ".join(PROGRAM)
    done = subprocess.run(
        ["/bin/sh", "-c", line.replace("$R", quoted)],
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_closed_stdout_is_said_before_anything_is_done() -> None:
    code, err = shell("$R put k v --url 127.0.0.1:1 >&-")
    assert (code, err) == (
        1,
        "raftstate: stdout is closed; redirect it to /dev/null where the output is not wanted\n",
    )


def test_a_closed_stdin_is_said_when_a_value_should_come_from_it() -> None:
    code, err = shell("$R put k - --url 127.0.0.1:1 <&-")
    assert (code, err) == (2, "raftstate: the value - is read from stdin, and stdin is closed\n")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_output_that_can_not_be_written_is_an_error_of_one_line() -> None:
    code, err = shell("$R --version >/dev/full")
    assert (code, err) == (1, "raftstate: No space left on device\n")


def test_a_reader_that_has_had_enough_is_no_error_to_speak_of() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*PROGRAM, "--version"], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_putting_a_value_loads_nothing_of_what_serves_nodes() -> None:
    program = (
        "import sys; import raftstate.cli.app as a; a._Commands(name='r').get_command(None, 'put');"
        " print(*sorted({'structlog', 'pydantic', 'lmdb', 'rich.table', 'raftstate.supervisor',"
        " 'raftstate.cli.demo'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
