"""How an embedded node ends when something goes wrong: everybody is told, nobody waits for ever."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import raftstate
from raftstate.embedded import node as embedded_node
from raftstate.errors import ClosedError, IndefiniteError, RaftstateError
from raftstate.server import Node

HANG_S = 20


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"embedded:{tmp_path / 's'}"


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[Node]:
    """The nodes that were made, in order."""
    made: list[Node] = []

    class Noted(Node):
        def __init__(self, *arguments: object, **options: object) -> None:
            super().__init__(*arguments, **options)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(embedded_node, "Node", Noted)
    return made


def halt(node: Node) -> None:
    """Halt a node as a failed disk does, on its own loop."""
    [running] = [each for each in embedded_node._nodes.open.values() if each.methods]
    running.loop.call_soon_threadsafe(node.driver._halt, RuntimeError("the disk failed"))
    assert running.closed.wait(HANG_S)


@pytest.mark.filterwarnings("default")
def test_when_a_node_halts_every_caller_is_told_and_none_waits_for_ever(url: str, nodes: list[Node]) -> None:
    store = raftstate.connect(url, timeout=5)
    store.put("a", b"1")
    told: list[BaseException] = []
    halted = threading.Event()

    def work(number: int) -> None:
        while not halted.is_set():
            try:
                store.put(f"k{number}", b"v")
            except BaseException as error:  # noqa: BLE001 - what it is is asserted below
                told.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    halt(nodes[0])
    halted.set()
    for thread in threads:
        thread.join(HANG_S)
    assert not any(thread.is_alive() for thread in threads)
    assert {type(error) for error in told} <= {ClosedError, IndefiniteError}
    for call in (lambda: store.put("a", b"1"), lambda: store.get("a")):
        with pytest.raises(ClosedError, match="has halted: the disk failed"):
            call()
    store.close()


def test_a_node_that_halted_can_be_opened_again(url: str, nodes: list[Node]) -> None:
    with raftstate.connect(url) as store:
        store.put("a", b"1")
        halt(nodes[0])
        with raftstate.connect(url) as again:
            assert again.get("a") is not None


def test_a_forked_child_does_not_keep_the_directory(url: str) -> None:
    store = raftstate.connect(url)
    store.put("a", b"1")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        store.close()
        with raftstate.connect(url) as again:
            assert again.get("a") is not None
    finally:
        os.close(writing)
        os.waitpid(child, 0)


ORPHAN = """
import os, sys, raftstate
store = raftstate.connect(sys.argv[1])
store.put("a", b"1")
if os.fork() == 0:
    os.read(0, 1)
    os._exit(0)
print("forked", flush=True)
os.read(0, 1)
"""


@pytest.mark.processes
def test_a_killed_parent_leaves_nothing_locked_to_its_child(url: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"forked\n"
    parent.send_signal(signal.SIGKILL)
    parent.wait(HANG_S)
    with raftstate.connect(url) as store:
        assert store.get("a") is not None
    parent.stdin.close()  # the child ends
    parent.stdout.close()


def abandon(url: str) -> None:
    """Leave a client to the collector, in a cycle."""
    cycle: list[object] = [raftstate.connect(url)]
    cycle.append(cycle)


def test_a_client_collected_on_the_thread_of_another_node_blocks_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.disable()
    try:
        abandon(f"embedded:{tmp_path / 'a'}")
        stores = embedded_node.Stores

        def collect_first(*arguments: object, **options: object) -> object:
            gc.collect()
            return stores(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(embedded_node, "Stores", collect_first)
        opened: list[bool] = []
        opening = threading.Thread(
            target=lambda: opened.append(opens(f"embedded:{tmp_path / 'b'}")), daemon=True
        )
        opening.start()
        opening.join(HANG_S)
        assert opened == [True]
    finally:
        gc.enable()
    with raftstate.connect(f"embedded:{tmp_path / 'a'}") as again:
        again.put("a", b"1")


def test_clients_collected_while_a_call_is_handed_over_or_a_node_made_block_nobody(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    thresholds = gc.get_threshold()
    store = raftstate.connect(url)
    done: list[int] = []

    def work() -> None:
        for _ in range(300):
            abandon(url)
            store.put("k", b"v")
        done.append(300)

    gc.set_threshold(50, 2, 2)  # collections at nearly every step
    try:
        working = threading.Thread(target=work, daemon=True)
        working.start()
        working.join(60)
    finally:
        gc.set_threshold(*thresholds)
    assert done == [300]
    made = embedded_node.EmbeddedNode

    def collect_first(*arguments: object, **options: object) -> object:
        gc.collect()
        return made(*arguments)  # type: ignore[arg-type]

    gc.disable()
    try:
        abandon(f"embedded:{tmp_path / 'a'}")
        monkeypatch.setattr(embedded_node, "EmbeddedNode", collect_first)
        opened: list[bool] = []
        opening = threading.Thread(
            target=lambda: opened.append(opens(f"embedded:{tmp_path / 'b'}")), daemon=True
        )
        opening.start()
        opening.join(HANG_S)
        assert opened == [True]
    finally:
        gc.enable()
    store.close()


def opens(url: str) -> bool:
    with raftstate.connect(url) as store:
        store.put("b", b"1")
    return True


def test_an_interrupt_while_it_opens_ends_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stores = embedded_node.Stores

    def interrupt_first(*arguments: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return stores(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as interrupted:
        interrupted.setattr(embedded_node, "Stores", interrupt_first)
        with pytest.raises(KeyboardInterrupt):
            raftstate.connect(url)
    with raftstate.connect(url) as store:
        store.put("a", b"1")


def test_a_port_in_use_is_told_and_gives_the_directory_back(url: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RaftstateError, match="can't listen on"):
            raftstate.connect(f"{url}?listen=127.0.0.1:{taken.getsockname()[1]}")
    with raftstate.connect(url) as store:
        store.put("a", b"1")
