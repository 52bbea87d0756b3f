"""demo: a real job on three nodes that loses its leader, and then its worker.

The order of things: start a cluster and the worker (demo_worker), kill the leader with SIGKILL after a third
of the checkpoints, kill the worker after two thirds, start the dead node again, let a new worker finish, and
compare (demo_check) what is stored with the files and with the ledger.
"""

from __future__ import annotations

import json as jsonlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raftstate.cli import demo_worker
from raftstate.cli.common import console, interrupted_once, megabytes, print_json
from raftstate.cli.demo_check import differences, independent_manifest, lost_checkpoints, read_ledger
from raftstate.client import connect
from raftstate.errors import FailedPreconditionError, InvalidArgumentError
from raftstate.lifeline import Lifeline
from raftstate.supervisor import LocalCluster

NODES = 3
LEADER_DIES_AT = 1 / 3
WORKER_DIES_AT = 2 / 3
_SHOWN_FAULTS = 10


class Event(msgspec.Struct):
    """A line that the worker prints; which fields mean something depends on `event`."""

    event: str
    files: int = 0
    done: int = 0
    every: int = 1
    began_s: float = 0.0
    ended_s: float = 0.0


class Outcome(msgspec.Struct, kw_only=True):
    """What the demo found, as --json gives it. Sizes in bytes; both are sums over all checkpoints."""

    path: str
    files: int
    skipped: dict[str, int]
    checkpoints: int
    create_ms: dict[str, float]
    state_bytes: int
    stored_bytes: int
    failover_ms: float
    worker_killed_at_files: int
    resumed_at_files: int
    checkpoints_lost: int
    manifests_agree: bool
    faults: list[str]
    seconds: float


def demo(
    path: Annotated[
        Path | None, typer.Argument(help="What to hash.", show_default="the Python standard library")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE|-", help="Write the outcome as JSON.")] = None,
) -> None:
    """Run a resumable job on three nodes, kill its leader and its worker, and check that nothing was lost."""
    output = console(err=json == "-")
    if json not in (None, "-"):
        _check_writable(Path(json))
    root, left_out = _what_to_hash(path)
    try:
        with interrupted_once(), _folder() as folder, Lifeline() as lifeline:
            cluster = LocalCluster(folder, nodes=NODES, port=0)
            try:
                outcome = _Demo(cluster, lifeline, folder / "ledger", root, left_out, output).run()
            finally:
                cluster.stop()
    except KeyboardInterrupt:
        output.print("interrupted; everything was stopped and removed")
        raise typer.Exit(130) from None
    _show(output, outcome)
    if json == "-":
        print_json(msgspec.to_builtins(outcome))
    elif json is not None:
        Path(json).write_text(jsonlib.dumps(msgspec.to_builtins(outcome)) + "\n", "utf-8")
    if outcome.faults:
        raise typer.Exit(1)


class _Worker:
    """A worker process; its events are to be read to their end, or it killed."""

    def __init__(self, arguments: list[str], lifeline: Lifeline, log: Path) -> None:
        self._log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "raftstate.cli.demo_worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(lifeline.child_fd,),
                start_new_session=True,
            )

    def events(self) -> Iterator[Event]:
        """Yield what it reports. Raises FailedPreconditionError when it ends without having finished."""
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            event = msgspec.json.decode(line, type=Event)
            last = event.event
            yield event
        status = self._process.wait()
        if last != "finished":
            said = self._log.read_text("utf-8", errors="replace").strip()
            raise FailedPreconditionError(f"the worker ended with exit code {status}: {said}")

    def kill(self) -> None:
        """SIGKILL it (if it still runs) and wait for its end."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Demo:
    """One run. `run` returns its outcome; the caller stops the cluster."""

    def __init__(
        self,
        cluster: LocalCluster,
        lifeline: Lifeline,
        ledger: Path,
        root: Path,
        left_out: frozenset[bytes],
        output: Console,
    ) -> None:
        self._cluster = cluster
        self._lifeline = lifeline
        self._ledger = ledger
        self._root = root
        self._left_out = left_out
        self._output = output
        self._progress = Progress(
            TextColumn("hashing"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("files, {task.fields[checkpoints]} checkpoints"),
            TimeElapsedColumn(),
            console=output,
        )
        self._bar = self._progress.add_task("", total=None, checkpoints=0)
        self._create_ms: list[float] = []
        self._planned = 0
        self._done = 0
        self._killed_leader = ""
        self._killed_leader_s = 0.0
        self._failover_ms = 0.0

    def run(self) -> Outcome:
        """Do everything. Raises RaftstateError when it can't be done at all."""
        began_s = time.monotonic()
        self._cluster.start()
        leader = self._cluster.wait_for_leader()
        pids = ", ".join(f"{node.name} pid {node.pid}" for node in self._cluster.nodes)
        self._say(f"three nodes serve ({pids}); {leader} leads")
        with self._progress:
            self._work_until(WORKER_DIES_AT)
            killed_at = self._done
            self._say(f"killed the worker with SIGKILL, {killed_at:,} files into the job")
            # Not earlier: the worker would go on to its end while the node starts.
            self._cluster.restart(self._killed_leader)
            self._say(f"started {self._killed_leader} again")
            resumed_at = self._work_until(None)
        self._say("comparing with an independent walk, and with the ledger")
        return self._check(began_s, killed_at, resumed_at)

    def _work_until(self, fraction: float | None) -> int:
        """Let a worker do that part of the job (None: all of it), then kill it; return with how many files
        it began."""
        options = ["--url", self._cluster.url, "--ledger", str(self._ledger)]
        for name in self._left_out:
            options += ["--leave-out", name.decode()]
        options += ["--die-with-parent", str(self._lifeline.child_fd), str(self._root)]
        worker = _Worker(options, self._lifeline, self._ledger.with_name("worker.log"))
        resumed_at = 0
        try:
            for event in worker.events():
                if event.event == "started":
                    resumed_at = self._started(event)
                elif event.event == "checkpoint":
                    self._checkpoint(event)
                    if (
                        fraction is not None
                        and self._failover_ms
                        and len(self._create_ms) >= fraction * self._planned
                    ):
                        break
        finally:
            worker.kill()
        if not self._failover_ms:
            # Too few files for the worker to be still at it: what follows is checked all the same.
            self._fail_over_without_worker()
        return resumed_at

    def _started(self, event: Event) -> int:
        if not self._planned:
            if event.files == 0:
                raise InvalidArgumentError(f"there is no regular file under {self._root}", field="path")
            self._planned = event.files // event.every + 1
            self._say(f"{event.files:,} files to hash, a checkpoint every {event.every}")
        else:
            self._say(f"a new worker resumed at {event.done:,} files")
        self._done = event.done
        self._progress.update(self._bar, total=event.files, completed=event.done)
        return event.done

    def _checkpoint(self, event: Event) -> None:
        self._create_ms.append((event.ended_s - event.began_s) * 1e3)
        self._done = event.done
        self._progress.update(self._bar, completed=event.done, checkpoints=len(self._create_ms))
        if not self._killed_leader:
            if len(self._create_ms) >= LEADER_DIES_AT * self._planned:
                self._kill_leader()
        elif not self._failover_ms and event.began_s > self._killed_leader_s:
            # Begun after the kill: one that was under way may have been answered by the old leader.
            self._failed_over((event.ended_s - self._killed_leader_s) * 1e3)

    def _kill_leader(self) -> None:
        self._killed_leader = self._cluster.wait_for_leader()
        pid = self._cluster.node(self._killed_leader).pid
        self._killed_leader_s = time.monotonic()
        self._cluster.kill(self._killed_leader)
        self._say(f"killed the leader, {self._killed_leader} (pid {pid}), with SIGKILL")

    def _failed_over(self, failover_ms: float) -> None:
        self._failover_ms = failover_ms
        self._say(f"a checkpoint that was begun after it was acknowledged {failover_ms:,.0f} ms after it")

    def _fail_over_without_worker(self) -> None:
        if not self._killed_leader:
            self._kill_leader()
        self._cluster.wait_for_leader()
        self._failed_over((time.monotonic() - self._killed_leader_s) * 1e3)

    def _check(self, began_s: float, killed_at: int, resumed_at: int) -> Outcome:
        expected = independent_manifest(self._root, self._left_out | demo_worker.LEFT_OUT)
        ledger = read_ledger(self._ledger)
        with connect(self._cluster.url, timeout=demo_worker.TIMEOUT_S) as client:
            workflow = client.workflow(demo_worker.WORKFLOW)
            restored = workflow.restore()
            made = workflow.list(limit=len(ledger) + 100)
            lost = lost_checkpoints(workflow, ledger)
        manifest: demo_worker.Manifest = (
            restored.state if restored is not None else {"files": {}, "skipped": {}}
        )
        wrong = differences(manifest["files"], expected)
        deaths = [f"{death.name} ended by itself: {death.cause}" for death in self._cluster.deaths()]
        create_ms = sorted(self._create_ms)
        return Outcome(
            path=str(self._root),
            files=len(manifest["files"]),
            skipped=dict(Counter(manifest["skipped"].values())),
            checkpoints=len(ledger),
            create_ms={"p50": _percentile(create_ms, 0.5), "p99": _percentile(create_ms, 0.99)},
            state_bytes=sum(checkpoint.size for checkpoint in made),
            stored_bytes=sum(checkpoint.stored_bytes for checkpoint in made),
            failover_ms=self._failover_ms,
            worker_killed_at_files=killed_at,
            resumed_at_files=resumed_at,
            checkpoints_lost=len(lost),
            manifests_agree=not wrong,
            faults=lost + wrong + deaths,
            seconds=time.monotonic() - began_s,
        )

    def _say(self, what: str) -> None:
        self._progress.console.print(what, markup=False)


def _check_writable(file: Path) -> None:
    """Raise InvalidArgumentError, before all the work, unless the outcome can be written there."""
    folder = file.absolute().parent
    if file.is_dir():
        fault = "it is a folder; give the name of a file in it"
    elif not folder.is_dir():
        fault = f"there is no folder {folder}"
    elif not os.access(file if file.exists() else folder, os.W_OK):
        fault = "it can't be written; give a file that can"
    else:
        return
    raise InvalidArgumentError(f"--json {file}: {fault}", field="json")


def _what_to_hash(path: Path | None) -> tuple[Path, frozenset[bytes]]:
    """Return the folder, and the names left out of it."""
    if path is None:
        # What was installed beside the standard library is not its own.
        return Path(sysconfig.get_path("stdlib")).resolve(), frozenset({b"site-packages", b"dist-packages"})
    if not path.is_dir():
        raise InvalidArgumentError(
            f"{path} is not a folder; give one whose files are to be hashed", field="path"
        )
    return path.resolve(), frozenset()


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="raftstate-demo-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _percentile(ascending: list[float], fraction: float) -> float:
    return ascending[min(len(ascending) - 1, int(len(ascending) * fraction))]


def _show(output: Console, outcome: Outcome) -> None:
    table = Table(box=None, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    skipped = ", ".join(f"{count} skipped ({reason})" for reason, count in sorted(outcome.skipped.items()))
    table.add_row("files", f"{outcome.files:,}" + (f", {skipped}" if skipped else ""))
    table.add_row("checkpoints", f"{outcome.checkpoints:,}")
    table.add_row(
        "create p50 / p99", f"{outcome.create_ms['p50']:.1f} ms / {outcome.create_ms['p99']:.1f} ms"
    )
    share = outcome.stored_bytes / outcome.state_bytes
    sizes = f"{megabytes(outcome.stored_bytes)} / {megabytes(outcome.state_bytes)} ({share:.1%})"
    table.add_row("stored / state", sizes)
    table.add_row(
        "failover", f"{outcome.failover_ms:,.0f} ms from SIGKILL to the next acknowledged checkpoint"
    )
    resumed = (
        f"{outcome.resumed_at_files:,} files; killed after {outcome.worker_killed_at_files:,} were reported"
    )
    table.add_row("worker resumed at", resumed)
    table.add_row(
        "manifest", "agrees with an independent walk" if outcome.manifests_agree else "[bold red]differs"
    )
    style = "[bold red]" if outcome.checkpoints_lost else "[bold green]"
    table.add_row("checkpoints lost", f"{style}{outcome.checkpoints_lost}")
    output.print(table)
    for fault in outcome.faults[:_SHOWN_FAULTS]:
        output.print(fault, style="red", markup=False)
    if len(outcome.faults) > _SHOWN_FAULTS:
        output.print(f"... and {len(outcome.faults) - _SHOWN_FAULTS} more", style="red")
