"""lock: hold a lock while a command runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated

import typer

from raftstate.cli.common import (
    JsonOption,
    bytes_field,
    interrupted_once,
    print_json,
    print_text,
    raw_argument,
)
from raftstate.cli.remote import TimeoutOption, UrlOption, open_client
from raftstate.client import Lock
from raftstate.client.async_client import TIMEOUT_S_DEFAULT
from raftstate.client.claim import TTL_S_DEFAULT
from raftstate.client.limits import TIMEOUT_S_MAX
from raftstate.errors import FailedPreconditionError, InvalidArgumentError, LockLostError

_LOOK_S = 0.05
"""How often it looks whether the lock is still held, and the command still runs."""
_END_S = 5.0
"""How long a command that was told to end, since the lock was lost, has for it."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_OF_TERMINAL = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""What a terminal sends to all of its foreground, the command included."""
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
"""Exit codes of shells."""


def lock(
    name: Annotated[str, typer.Argument(help="Of the lock.")],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run while it is held, with RAFTSTATE_LOCK_TOKEN and RAFTSTATE_LOCK_KEY set.",
            show_default="hold it until interrupted",
        ),
    ] = None,
    ttl: Annotated[
        float, typer.Option(help="Seconds until others get it when this process is cut off.")
    ] = TTL_S_DEFAULT,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=TIMEOUT_S_MAX, help="Seconds to wait for it.", show_default="as long as it takes"
        ),
    ] = None,
    url: UrlOption = None,
    timeout: TimeoutOption = TIMEOUT_S_DEFAULT,
    json: JsonOption = False,
) -> None:
    """Hold the lock NAME while COMMAND runs, and end with its exit code: raftstate lock backup -- tar c /srv.

    Signals are passed on to the command, and the lock is held until it has ended. When the lock is lost, the
    command is told to end (SIGTERM, SIGKILL 5 s later), and the exit code is 1. A command that goes on all
    the same, or whose lock process was killed, is kept from harm by RAFTSTATE_LOCK_TOKEN only, where what it
    writes to compares tokens: they grow from holder to holder.

    Without a command it prints the token, and holds the lock until SIGINT or SIGTERM.
    """
    if command and json:
        raise InvalidArgumentError("with a command, stdout is the command's: leave --json out", field="json")
    with open_client(url, timeout) as client:
        held = client.lock(_readable(raw_argument(name)), ttl=ttl, timeout=wait)
        code = _run(held, command) if command else _hold(held, json=json)
    raise typer.Exit(code)


def _readable(name: bytes) -> str | bytes:
    """Return a name as text if it is UTF-8: messages show it so."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return name


def _hold(held: Lock, *, json: bool) -> int:
    with interrupted_once():
        try:
            held.acquire()
            try:
                if json:
                    print_json({"token": held.token, **bytes_field("key", held.key)})
                else:
                    print_text(str(held.token))
                while True:
                    held.check()
                    time.sleep(_LOOK_S)
            except KeyboardInterrupt:
                return 0
        finally:
            _release(held)


def _run(held: Lock, command: list[str]) -> int:
    """Run a command under the lock; return its exit code, as a shell would."""
    with interrupted_once():
        try:
            held.acquire()
            with _signals_kept() as signals:
                return _supervise(held, command, signals)
        finally:
            _release(held)


def _release(held: Lock) -> None:
    # Not held: it was never acquired. Lost: that is what is being told.
    with suppress(FailedPreconditionError, LockLostError):
        held.release()


@contextmanager
def _signals_kept() -> Iterator[list[int]]:
    """Within, signals for the command are put into the list that it gives."""
    signals: list[int] = []

    def keep(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    # One that this process was started to ignore, as by nohup, the command ignores, too.
    kept = [each for each in _PASSED_ON if signal.getsignal(each) is not signal.SIG_IGN]
    previous = {each: signal.signal(each, keep) for each in kept}
    try:
        yield signals
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _supervise(held: Lock, command: list[str], signals: list[int]) -> int:
    environment = {
        **os.environ,
        "RAFTSTATE_LOCK_TOKEN": str(held.token),
        "RAFTSTATE_LOCK_KEY": os.fsdecode(held.key),
    }
    at_terminal = _is_in_foreground()
    try:
        # At a terminal it must stay in this group: another one may not read from it.
        process = subprocess.Popen(command, env=environment, process_group=None if at_terminal else 0)
    except FileNotFoundError as error:
        return _not_started(command, error, _NOT_FOUND)
    except OSError as error:
        return _not_started(command, error, _NOT_EXECUTABLE)
    with process:
        try:
            while process.poll() is None:
                held.check()
                while signals:
                    signum = signals.pop(0)
                    if not (at_terminal and signum in _OF_TERMINAL):
                        _send(process, signum, to_group=not at_terminal)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_S)
        except LockLostError as error:
            typer.echo(f"raftstate: {error.message}; telling the command to end", err=True)
            _end(process, to_group=not at_terminal)
            raise typer.Exit(1) from error
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _not_started(command: list[str], error: OSError, code: int) -> int:
    typer.echo(f"raftstate: can't run {command[0]}: {error.strerror}", err=True)
    return code


def _is_in_foreground() -> bool:
    """Return whether a terminal sends its signals to this process and to what it starts."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _send(process: subprocess.Popen[bytes], signum: int, *, to_group: bool) -> None:
    if not to_group:
        process.send_signal(signum)
    elif process.poll() is None:
        os.killpg(process.pid, signum)


def _end(process: subprocess.Popen[bytes], *, to_group: bool) -> None:
    _send(process, signal.SIGTERM, to_group=to_group)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        _send(process, signal.SIGKILL, to_group=to_group)
        process.wait()
