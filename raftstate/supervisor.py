"""A cluster of local node processes in one directory: made, started, killed, stopped.

    DATA/formed         exists once all nodes have served: from then on none may start with an empty directory
    DATA/lock           an exclusive flock while the nodes run; holds the id of the process that started them
    DATA/n1/node.toml   the node's settings
    DATA/n1/node.log    what it printed
    DATA/n1/data/       the node's own directory

Nodes that joined later have their folders beside those of the first ones: what has a node.toml is a node.

The nodes end when the process that holds the `LocalCluster` does, however it ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from raftstate.address import split_address
from raftstate.client import connect
from raftstate.config import (
    ENV_PREFIX,
    VOTERS_MAX,
    ClusterConfig,
    MemberConfig,
    load_settings,
)
from raftstate.errors import ConfigError, FailedPreconditionError, NoLeaderError
from raftstate.folder import (
    CLIENT_PORT_DEFAULT,
    HOST,
    PEER_PORT_OFFSET,
    check_joinable,
    check_unused,
    new_cluster_id,
    write_node_file,
)
from raftstate.joining import write_joiner
from raftstate.lifeline import Lifeline

NODES_DEFAULT = 3
"""The fewest that go on without one of them."""
SERVE_COMMAND = (sys.executable, "-m", "raftstate.cli", "serve")
START_TIMEOUT_S = 30.0
"""A start replays the log since the last checkpoint, in seconds at most; the rest is for a busy machine."""
STOP_TIMEOUT_S = 10.0
"""A stop takes one checkpoint: a sync of the pages dirtied since the last one."""

_FREE_PORTS = range(10_000, 32_000)
"""Below the ephemeral ports of Linux and macOS: a port from there can be taken by any outgoing connection
while its node is down, even by a peer's attempt to reach that node (a TCP self-connect)."""
_PORT_WAIT_S = 5.0
"""The nodes of a parent that was killed end within their lifeline's grace (`lifeline.GRACE_S`)."""
_LOG_TAIL_LINES = 15
"""What a start logs before it fails, with room for a traceback's end."""


class NodeProcess(NamedTuple):
    """A node of a local cluster. `pid` is None while it is not running; `data` is its folder."""

    name: str
    endpoint: str
    data: Path
    pid: int | None

    @property
    def log(self) -> Path:
        """What the node printed."""
        return self.data / "node.log"


class Death(NamedTuple):
    """A node that ended without having been told to. `status`: as `subprocess.Popen.returncode`."""

    name: str
    pid: int
    status: int

    @property
    def cause(self) -> str:
        """What ended it, for people."""
        return (
            f"killed by {signal.Signals(-self.status).name}"
            if self.status < 0
            else f"exit code {self.status}"
        )


class LocalCluster:
    """Node processes on this machine. Not safe to use from several threads at once.

    Args:
        data_dir: where the nodes' directories stand; made when it does not exist. One that holds a cluster
            is resumed.
        nodes: how many; None: as many as there are, or three.
        port: of the first node, the others follow; 0: free ones; None: those the cluster has, or 7001 and on.
        command: what serves a node, without the options that every node is given.
        tell: is told, in a sentence for people, what a start waits for and which wish was of no effect.

    Raises:
        ConfigError: nodes or port are not possible, or not those of the cluster in `data_dir`.
        FailedPreconditionError: `data_dir` holds a part of a cluster only, or files of somebody else; or a
            port for a new cluster is in use, in which case nothing was written.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        nodes: int | None = None,
        port: int | None = None,
        command: Sequence[str] = SERVE_COMMAND,
        tell: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._data_dir = data_dir.absolute()
        self._command = tuple(command)
        self._tell = tell
        self._lock: int | None = None
        is_new = not (self._data_dir / "n1" / "node.toml").exists()
        if is_new:
            self._create(
                NODES_DEFAULT if nodes is None else nodes, CLIENT_PORT_DEFAULT if port is None else port
            )
        self.config = load_settings(self._data_dir / "n1" / "node.toml", {"name": "n1"}).cluster
        """What the nodes agree on. Its members are the first ones."""
        self.members = self._read()
        """The nodes of this directory, by the settings in their folders, in the order of their ids."""
        if not is_new:
            self._check_asked(nodes, port)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lifeline: Lifeline | None = None
        self._lifeline_made = threading.Lock()
        """Held while it is made: nodes may be restarted by several threads at once."""

    @property
    def nodes(self) -> list[NodeProcess]:
        """All nodes, in the order of their names."""
        return [
            NodeProcess(
                member.name, member.client_address, self._data_dir / member.name, self._pid(member.name)
            )
            for member in self.members
        ]

    @property
    def endpoints(self) -> list[str]:
        """host:port at which each node serves clients."""
        return [member.client_address for member in self.members]

    @property
    def url(self) -> str:
        """What to give to `raftstate.connect`."""
        return "raftstate://" + ",".join(self.endpoints)

    def node(self, name: str) -> NodeProcess:
        """Return the node of that name. Raises KeyError when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def start(self, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start all nodes and wait until each serves. When one does not, all are stopped again.

        Raises:
            FailedPreconditionError: the cluster runs already, a port is in use, or a node ended or did not
                serve in time; tells what it logged.
        """
        self._lock = self._take_lock()
        try:
            advice = (
                f"the cluster in {self._data_dir} keeps its ports ({self._ports()}): stop that process, or"
                " start a new cluster in another directory"
            )
            self._wait_for_ports(self.members, advice)
            deadline = time.monotonic() + timeout_s
            waiting = [(name, self._spawn(name)) for name in (member.name for member in self.members)]
            for name, ready_fd in waiting:
                self._wait_ready(name, ready_fd, deadline)
        except BaseException:
            self.stop()
            raise
        (self._data_dir / "formed").touch()

    def wait_for_leader(self, *, timeout_s: float = START_TIMEOUT_S) -> str:
        """Return the name of the leader, once one answers reads.

        Raises:
            NoLeaderError: none did within `timeout_s` seconds.
        """
        deadline = time.monotonic() + timeout_s
        with connect(self.url, timeout=timeout_s) as client:
            while (remaining_s := deadline - time.monotonic()) > 0:
                # A linearizable read is answered only by a leader that has committed in its own term.
                client.get(b"raftstate", timeout=remaining_s)
                leaders = [node for node in client.status() if node.role == "leader"]
                if leaders:
                    return max(leaders, key=lambda node: node.term).name
        raise NoLeaderError(f"no node of {self.url} led for long enough to be asked, in {timeout_s:g} s")

    def kill(self, name: str, sig: int = signal.SIGKILL, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Send a signal that ends a node, and wait until it has. It is not reported as a death.

        Raises:
            FailedPreconditionError: the node is not running, or still is after `timeout_s` seconds.
        """
        process = self._processes.get(name)
        if process is None or process.poll() is not None:
            raise FailedPreconditionError(f"node {name} is not running")
        process.send_signal(sig)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise FailedPreconditionError(
                f"node {name} (pid {process.pid}) still runs {timeout_s:g} s after {signal.Signals(sig).name}"
            ) from None
        del self._processes[name]

    def restart(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start a node that is not running, and wait until it serves.

        Raises:
            FailedPreconditionError: it runs, its port is in use, or it ended or did not serve in time.
        """
        if self._pid(name) is not None:
            raise FailedPreconditionError(f"node {name} is running")
        self._wait_ready(name, self._spawn(name), time.monotonic() + timeout_s)

    def add_node(self, name: str, *, timeout_s: float = START_TIMEOUT_S) -> NodeProcess:
        """Add a node to the running cluster, in a folder beside the others, and start it on free ports.

        It has not caught up yet when this returns; `raftstate.client.Client.members` tells when it votes.

        Args:
            name: new in the cluster.
            timeout_s: for adding it, and again for its start.

        Raises:
            RaftstateError: the cluster refused it; or as `restart`.
        """
        folder = self._data_dir / name
        check_joinable(folder)
        client_port, peer_port = _free_ports(2)
        with connect(self.url, timeout=timeout_s) as client:
            added = client.add_member(
                name, peer_address=f"{HOST}:{peer_port}", client_address=f"{HOST}:{client_port}"
            )
        write_joiner(folder, added)
        self.members = self._read()
        self.restart(name, timeout_s=timeout_s)
        return self.node(name)

    def deaths(self) -> list[Death]:
        """Return the nodes that ended by themselves, or by somebody else's hand, since the last call."""
        dead = [
            Death(name, process.pid, process.returncode)
            for name, process in self._processes.items()
            if process.poll() is not None
        ]
        for death in dead:
            del self._processes[death.name]
        return dead

    def stop(self, *, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop all nodes with SIGTERM, and what is left after `timeout_s` seconds with SIGKILL."""
        for process in self._processes.values():
            process.terminate()
        deadline = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def log_tail(self, name: str) -> str:
        """Return the last lines that a node printed."""
        log = self.node(name).log
        lines = log.read_text("utf-8", errors="replace").splitlines() if log.exists() else []
        return "\n".join(lines[-_LOG_TAIL_LINES:])

    def _create(self, nodes: int, port: int) -> None:
        if not 1 <= nodes <= VOTERS_MAX:
            raise ConfigError(f"a cluster has 1 to {VOTERS_MAX} nodes, not {nodes}", field="nodes")
        if port != 0 and not 1 <= port <= 65_535 - PEER_PORT_OFFSET - nodes:
            raise ConfigError(
                f"port is 0 (free ones) or from 1 to {65_535 - PEER_PORT_OFFSET - nodes}, not {port}",
                field="port",
            )
        leftovers = sorted(self._data_dir.glob("n*/data"))
        if leftovers:
            names = ", ".join(path.parent.name for path in leftovers)
            raise FailedPreconditionError(
                f"{self._data_dir} holds {names} but no n1/node.toml: it is not a whole cluster."
                " Restore the file, or give another directory"
            )
        check_unused(
            self._data_dir, ("formed", "lock", *(f"n{number}" for number in range(1, VOTERS_MAX + 1)))
        )
        ports = _free_ports(3 * nodes) if port == 0 else []
        first_peer = port + PEER_PORT_OFFSET
        members = tuple(
            MemberConfig(
                id=number,
                name=f"n{number}",
                client_address=f"{HOST}:{ports[number - 1] if ports else port + number - 1}",
                peer_address=f"{HOST}:{ports[nodes + number - 1] if ports else first_peer + number - 1}",
            )
            for number in range(1, nodes + 1)
        )
        config = ClusterConfig(cluster_id=new_cluster_id(), members=members)
        # Before anything is written: the ports of a cluster are for good.
        self._wait_for_ports(
            members, "stop that process, or start the new cluster on other ports (port 0 picks free ones)"
        )
        # The first node's file comes last: it is what makes the directory a cluster.
        for number, member in reversed(list(enumerate(members))):
            # Beside ports that were asked for, the metrics have the ports that they have by default.
            metrics = f"{HOST}:{ports[2 * nodes + number]}" if ports else None
            write_node_file(self._data_dir / member.name, member.name, config, listen_metrics=metrics)

    def _read(self) -> list[MemberConfig]:
        """Return the nodes whose folders are here. Raises FailedPreconditionError when one of the first
        lacks."""
        first = self.config.members
        folders = {file.parent.name: file for file in self._data_dir.glob("*/node.toml")}
        missing = [member.name for member in first if member.name not in folders]
        if missing:
            files = ", ".join(f"{name}/node.toml" for name in missing)
            raise FailedPreconditionError(
                f"{self._data_dir} is that of a cluster of {len(first)} nodes, but lacks {files};"
                " restore the files, or give another directory"
            )
        members = [load_settings(file, {"name": name}).member for name, file in folders.items()]
        return sorted(members, key=lambda member: member.id)

    def _check_asked(self, nodes: int | None, port: int | None) -> None:
        has = len(self.members)
        if nodes is not None and nodes != has:
            raise ConfigError(
                f"{self._data_dir} holds a cluster of {has} nodes, not {nodes};"
                " leave the number of nodes out, or give another directory",
                field="nodes",
            )
        first = split_address(self.endpoints[0])[1]
        if port == 0:
            self._tell(
                f"the cluster in {self._data_dir} keeps the ports it has ({self._ports()});"
                " port 0 picks free ones for a new cluster only"
            )
        elif port not in (None, first):
            raise ConfigError(
                f"the cluster in {self._data_dir} serves on port {first} and on, not {port};"
                " leave the port out, or give another directory",
                field="port",
            )

    def _ports(self) -> str:
        return ", ".join(str(split_address(endpoint)[1]) for endpoint in self.endpoints)

    def _take_lock(self) -> int:
        """Return the descriptor that holds the directory's lock. Raises FailedPreconditionError."""
        lock = os.open(self._data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(lock, 20).decode("ascii", errors="replace").strip()
            os.close(lock)
            raise FailedPreconditionError(
                f"the cluster in {self._data_dir} runs already, started by process {holder}, and serves at"
                f" {self.url}; connect to it, stop that process, or give another directory"
            ) from None
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        return lock

    def _wait_for_ports(self, members: Sequence[MemberConfig], advice: str) -> None:
        """Return when all ports are free: nodes of a parent that was just killed need a moment to go.

        Raises FailedPreconditionError that ends with `advice`.
        """
        deadline = time.monotonic() + _PORT_WAIT_S
        told = False
        for address in [each for member in members for each in (member.client_address, member.peer_address)]:
            while not _is_free(*split_address(address)):
                if time.monotonic() > deadline:
                    raise FailedPreconditionError(f"{address} is in use by another process; {advice}")
                if not told:
                    self._tell(f"{address} is in use; waiting up to {_PORT_WAIT_S:g} s for it to become free")
                    told = True
                time.sleep(0.05)

    def _pid(self, name: str) -> int | None:
        process = self._processes.get(name)
        return process.pid if process is not None and process.poll() is None else None

    def _lifeline_fd(self) -> int:
        with self._lifeline_made:
            if self._lifeline is None:
                self._lifeline = Lifeline()
            return self._lifeline.child_fd

    def _spawn(self, name: str) -> int:
        """Start a node's process; return the file descriptor on which it says that it serves."""
        lifeline_fd = self._lifeline_fd()
        ready_fd, child_ready_fd = os.pipe()
        folder = self._data_dir / name
        options = ["--config", str(folder / "node.toml"), "--ready-fd", str(child_ready_fd)]
        options += ["--die-with-parent", str(lifeline_fd)]
        if not (self._data_dir / "formed").exists():
            options.append("--bootstrap")
        try:
            with (folder / "node.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    [*self._command, *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(child_ready_fd, lifeline_fd),
                    # A Ctrl-C at the terminal is the parent's to handle.
                    start_new_session=True,
                    # What is set for the parent (RAFTSTATE_NAME, ...) would be every node's.
                    env={key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)},
                )
        except BaseException:
            os.close(ready_fd)
            raise
        finally:
            os.close(child_ready_fd)
        return ready_fd

    def _wait_ready(self, name: str, ready_fd: int, deadline: float) -> None:
        try:
            readable, _, _ = select.select([ready_fd], [], [], max(0.0, deadline - time.monotonic()))
            said = os.read(ready_fd, 1) if readable else None
        finally:
            os.close(ready_fd)
        if said:
            return
        if said is None:
            what = "does not serve yet; its start took too long"
        else:
            what = f"ended at its start with exit code {self._processes[name].wait(STOP_TIMEOUT_S)}"
        raise FailedPreconditionError(
            f"node {name} {what}. It logged ({self.node(name).log}):\n{self.log_tail(name)}"
        )


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_FREE_PORTS, len(_FREE_PORTS)):
        if len(found) == count:
            break
        if _is_free(HOST, port):
            found.append(port)
    return found


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
