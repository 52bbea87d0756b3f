"""A node whose settings list itself alone, since its cluster has grown since, is mended like any other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import raftstate
from examples.grow import free_ports, join, serve


def end(node: subprocess.Popen[bytes]) -> None:
    node.kill()
    node.wait()
    assert node.stdout is not None
    node.stdout.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the example closes no log
@pytest.mark.parametrize("lost", ["state", "log"])
def test_the_first_node_of_a_grown_cluster_gets_back_what_it_lost(tmp_path: Path, lost: str) -> None:
    first = tmp_path / "n1"
    client_port, peer_port = free_ports(2)
    url = f"raftstate://127.0.0.1:{client_port}"
    options = ["--listen", f"127.0.0.1:{client_port}", "--peer", f"127.0.0.1:{peer_port}"]
    with raftstate.connect(f"embedded:{first}") as store:
        store.put("key", b"value")
    nodes: list[subprocess.Popen[bytes]] = [serve(first, *options)]
    try:
        with raftstate.connect(url) as store:
            nodes += [join(store, url, name, tmp_path / name) for name in ("n2", "n3")]
        end(nodes[0])
        if lost == "state":
            (first / "data" / "CURRENT").write_bytes(b"garbage")
        else:
            with (first / "data" / "log" / "data.mdb").open("r+b") as log:
                log.write(bytes(8192))
        nodes[0] = serve(first, *options)
        with raftstate.connect(url, timeout=20) as store:
            found = store.get("key")
            assert found is not None and found.value == b"value"  # noqa: PT018
    finally:
        for node in nodes:
            end(node)
