"""A store within a program becomes a server, and then a cluster of three: nothing is exported, nothing waits.

    python examples/grow.py [FOLDER]

It begins as a directory that one process has open. `raftstate serve` goes on with that directory, and two
more nodes join it, while a writer writes and a watch watches. Then the first node is killed, as if its
machine had died: by now the other two are a majority. At the end, every acknowledged write is there once,
and the watch has seen each of them once, in order.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import raftstate

RAFTSTATE = [sys.executable, "-m", "raftstate.cli"]


class Writer(threading.Thread):
    """Writes order after order, and remembers which were acknowledged."""

    def __init__(self, store: raftstate.Client, first: int) -> None:
        super().__init__()
        self.store = store
        self.acknowledged: list[int] = []
        self.next = first
        self.done = threading.Event()

    def run(self) -> None:
        """Write until told that it is enough."""
        while not self.done.is_set():
            self.store.put(f"orders/{self.next:06d}", b"placed", timeout=30)
            self.acknowledged.append(self.next)
            self.next += 1

    def wait_for(self, more: int) -> None:
        """Wait until so many more were acknowledged."""
        target = len(self.acknowledged) + more
        while len(self.acknowledged) < target:
            if not self.is_alive():
                raise RuntimeError("the writer has failed")
            time.sleep(0.01)


def serve(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a node, and wait until it serves."""
    command = [*RAFTSTATE, "serve", "--data", str(folder), *arguments]
    log = (folder / "node.log").open("wb")
    node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    assert node.stdout is not None
    if not node.stdout.readline():
        raise RuntimeError(f"the node has not started: {(folder / 'node.log').read_text()}")
    return node


def join(store: raftstate.Client, url: str, name: str, folder: Path) -> subprocess.Popen[bytes]:
    """Add a node, start it, and wait until it votes."""
    ports = free_ports(2)
    added = [*RAFTSTATE, "member", "add", name, "--address", f"127.0.0.1:{ports[0]}"]
    added += ["--peer-address", f"127.0.0.1:{ports[1]}", "--out", str(folder), "--url", url]
    subprocess.run(added, check=True, stdout=subprocess.DEVNULL)
    node = serve(folder)
    while any(member.learner for member in store.members()):
        time.sleep(0.05)
    print(f"{name} has caught up, and votes")
    return node


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main(folder: Path) -> None:
    first = folder / "n1"
    with raftstate.connect(f"embedded:{first}") as store:
        for number in range(100):
            store.put(f"orders/{number:06d}", b"placed")
    print("100 orders in a directory")

    client_port, peer_port = free_ports(2)
    url = f"raftstate://127.0.0.1:{client_port}"
    nodes = [serve(first, "--listen", f"127.0.0.1:{client_port}", "--peer", f"127.0.0.1:{peer_port}")]
    print("served from the same directory")
    try:
        with raftstate.connect(url) as store, store.watch(prefix="orders/") as events:
            writer = Writer(store, first=100)
            writer.start()
            try:
                writer.wait_for(100)
                for name in ("n2", "n3"):
                    nodes.append(join(store, url, name, folder / name))
                    writer.wait_for(100)
                os.kill(nodes[0].pid, signal.SIGKILL)
                print("killed n1")
                writer.wait_for(200)
            finally:
                writer.done.set()
                writer.join()

            seen = [events.next(timeout=10).key for _ in writer.acknowledged]
            found = {pair.key: pair.version for pair in store.scan(prefix="orders/")}
        orders = [f"orders/{number:06d}".encode() for number in writer.acknowledged]
        print("acknowledged writes lost:", sum(1 for key in orders if key not in found))
        print("written twice:", sum(1 for version in found.values() if version != 1))
        print("the watch saw each of them once, in order:", seen == orders)
    finally:
        for node in nodes:
            node.terminate()
        for node in nodes:
            node.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            main(Path(scratch))
