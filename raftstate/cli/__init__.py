"""The raftstate command: what stands between its commands and the process that runs them.

Nothing of weight is imported here, so that an interrupt during the long imports is met like any other.
"""

from __future__ import annotations

import os
import sys

from raftstate.errors import ConfigError, IndefiniteError, InvalidArgumentError, NoLeaderError, RaftstateError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNKNOWN = 3
EXIT_NO_LEADER = 4
EXIT_INTERRUPTED = 130
"""As a shell reports a process that SIGINT ended."""


def main() -> None:
    """Run the command line; end the process with the exit code of what happened."""
    try:
        code = _run()
        if sys.stdout is not None:
            # Here, where a failure can still be told; the interpreter would do it after the last word.
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough.
        _discard_output()
        code = EXIT_FAILED
    except KeyboardInterrupt:
        _discard_output()
        code = EXIT_INTERRUPTED
    except OSError as error:
        _discard_output()
        _say(f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error))
        code = EXIT_FAILED
    sys.exit(code)


def _run() -> int:
    if not _streams_are_open():
        _say("stdout is closed; redirect it to /dev/null where the output is not wanted")
        return EXIT_FAILED
    try:
        # Inside, so that what interrupts or fails the loading is caught, too.
        from raftstate.cli.app import app

        app(prog_name="raftstate")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0
    except RaftstateError as error:
        _say(error.message)
        return exit_code(error)
    return 0


def exit_code(error: RaftstateError) -> int:
    """Return what a command that failed so ends with."""
    if isinstance(error, IndefiniteError):
        return EXIT_UNKNOWN
    if isinstance(error, InvalidArgumentError | ConfigError):
        return EXIT_USAGE
    return EXIT_NO_LEADER if isinstance(error, NoLeaderError) else EXIT_FAILED


def _streams_are_open() -> bool:
    """Return whether there is a stdout. Closed descriptors are put on /dev/null: sockets and pipes would
    else get the numbers 0 to 2, and what is meant for people would go to them."""
    was_open = True
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            was_open = was_open and descriptor != 1
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 (for as long as the process runs)
    return was_open


def _discard_output() -> None:
    """Let what stdout still holds go nowhere, so that the end of the interpreter does not fail on it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _say(message: str) -> None:
    sys.stderr.write(f"raftstate: {message}\n")
