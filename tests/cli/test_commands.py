from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import msgspec
import pytest

import raftstate
from raftstate.client import NodeStatus
from raftstate.client.limits import VALUE_BYTES_MAX
from raftstate.client.types import MemberStatus, PeerProgress
from raftstate.errors import (
    ConfigError,
    DeadlineError,
    FailedPreconditionError,
    IndefiniteError,
    InvalidArgumentError,
    NoLeaderError,
    RaftstateError,
)
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient

BINARY = b"\x00\xff\n\t\\"


def test_a_value_goes_in_and_comes_out_byte_for_byte(run: Run, client: FakeClient) -> None:
    assert run("put", "k", "v\n") == (0, b"revision 2\n", "")
    assert run("get", "k") == (0, b"v\n", "")


def test_a_value_is_read_from_stdin(run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(BINARY)))
    assert run("put", "k", "-").code == 0
    assert run("get", "k").out == BINARY


def test_arguments_that_are_not_text_are_passed_on_as_bytes(run: Run, client: FakeClient) -> None:
    run("put", "\udcff", "\udcfe")
    assert [(row.key, row.value) for row in client.rows.values()] == [(b"\xff", b"\xfe")]


def test_an_absent_key_is_said_and_fails(run: Run, client: FakeClient) -> None:
    assert run("get", "a\tb") == (1, b"", "raftstate: there is no key a\\tb\n")
    assert run("get", "k", "--json") == (1, b"null\n", "raftstate: there is no key k\n")


def test_json_carries_text_as_text_and_other_bytes_in_base64(run: Run, client: FakeClient) -> None:
    assert run("put", "k", "é", "--json") == (0, b'{"revision": 2}\n', "")
    numbers = {"create_revision": 2, "mod_revision": 2, "version": 1, "lease": "0"}
    assert json.loads(run("get", "k", "--json").out) == {"key": "k", "value": "é", **numbers}
    client.put(b"\xff", BINARY)
    found = json.loads(run("range", "--json").out)
    assert [(pair.get("key"), pair.get("key_base64"), pair.get("value_base64")) for pair in found["kvs"]] == [
        ("k", None, None),
        (None, "/w==", "AP8KCVw="),
    ]
    assert {**found, "kvs": []} == {"kvs": [], "count": 2, "more": False, "revision": 3}


def test_a_range_is_a_line_a_pair_whatever_the_bytes(run: Run, client: FakeClient) -> None:
    client.put(b"a", BINARY)
    client.put(b"b", "é".encode())
    assert run("range") == (0, "a\t\\x00\\xff\\n\\t\\\\\nb\té\n".encode(), "")
    assert run("range", "--keys-only").out == b"a\nb\n"
    assert run("range", "--count-only").out == b"2\n"
    assert run("range", "--limit", "1") == (
        0,
        b"a\t\\x00\\xff\\n\\t\\\\\n",
        "raftstate: 1 of 2 keys; --limit left the others out\n",
    )


def test_ranges_and_reads_say_what_was_asked_for(run: Run, client: FakeClient) -> None:
    run("range", "a", "b", "--limit", "5", "--consistency", "bounded", "--max-lag-ms", "7")
    run("get", "k", "--consistency", "local")
    run("delete", "k", "m")
    run("delete", "k", "--prefix")
    run("get", "k", "--revision", "9")
    run("range", "--revision", "9", "--sort", "mod", "--descending")
    flags = {"prefix": None, "keys_only": False, "count_only": False}
    latest = {"revision": None, "sort": None, "descending": False}
    freshest = {"consistency": "linearizable", "max_lag_ms": 50}
    assert client.calls == [
        (b"a", b"b", 5, {**flags, **latest, "consistency": "bounded", "max_lag_ms": 7}),
        {"revision": None, "consistency": "local", "max_lag_ms": 50},
        (b"k", b"m", False),
        (b"k", None, True),
        {"revision": 9, **freshest},
        (None, None, None, {**flags, "revision": 9, "sort": "mod", "descending": True, **freshest}),
    ]


def test_a_key_is_put_under_a_lease(run: Run, client: FakeClient) -> None:
    assert run("put", "k", "v", "--lease", "9223372036854775807").code == 0
    # Text, since a JSON number of that size loses its last digits in many a reader.
    assert json.loads(run("get", "k", "--json").out)["lease"] == "9223372036854775807"


def test_a_sorted_range_that_does_not_fit_one_answer_is_refused_before_anything_is_printed(
    run: Run, client: FakeClient
) -> None:
    for number in range(5):
        client.put(b"k%d" % number, b"v")
    client.page = 3
    code, out, err = run("range", "--descending")
    assert (code, out) == (2, b"")
    assert "3 of 5 pairs do" in err
    assert run("range", "--sort", "value", "--keys-only", "--limit", "3").out == b"k0\nk1\nk2\n"
    assert run("range", "--sort", "value", "--keys-only", "--limit", "4").code == 2
    assert run("range", "--sort", "key", "--keys-only").out == b"k0\nk1\nk2\nk3\nk4\n"


def test_a_delete_says_how_many_keys_it_deleted(run: Run, client: FakeClient) -> None:
    client.put(b"k", b"v")
    assert run("delete", "k") == (0, b"deleted 1, revision 3\n", "")
    assert json.loads(run("delete", "k", "--json").out) == {"deleted": 0, "revision": 4}


def test_the_cluster_and_the_time_come_from_options(
    run: Run,
    client: FakeClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run("get", "k")
    monkeypatch.setenv("RAFTSTATE_URL", "127.0.0.1:9")
    run("get", "k", "--timeout", "0.5")
    run("get", "k", "--url", "127.0.0.1:8")
    assert client.opened == [(None, 5.0), ("127.0.0.1:9", 0.5), ("127.0.0.1:8", 5.0)]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (InvalidArgumentError("m"), 2),
        (ConfigError("m"), 2),
        (FailedPreconditionError("m"), 1),
        (DeadlineError("m"), 1),
        (IndefiniteError("m"), 3),
        (NoLeaderError("m"), 4),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ("put", "k", "v"),
        ("get", "k"),
        ("delete", "k"),
        ("range",),
        ("scan",),
        ("txn", "--then", "get k"),
        ("compact", "5"),
        ("erase", "k"),
        ("erase", "--progress", "7"),
        ("defragment",),
        ("watch", "k"),
        ("lease", "grant", "10"),
        ("lease", "renew", "1"),
        ("lease", "revoke", "1"),
        ("lease", "ttl", "1"),
        ("lease", "list"),
        ("lease", "keep-alive", "1"),
        ("lock", "l"),
        ("status",),
        ("transfer-leader",),
    ],
)
def test_an_error_is_a_message_and_an_exit_code_without_a_traceback(
    run: Run,
    client: FakeClient,
    command: tuple[str, ...],
    failure: RaftstateError,
    code: int,
) -> None:
    client.failure = failure
    assert run(*command, "--json") == (code, b"", "raftstate: m\n")


@pytest.mark.parametrize(
    "command",
    [
        ("put", "k"),
        ("get",),
        ("get", "k", "--timeout", "0"),
        ("get", "k", "--consistency", "strong"),
        ("get", "k", "--consistency", "session"),
        ("get", "k", "--revision", "0"),
        ("put", "k", "v", "--lease", "-1"),
        ("range", "--limit", "0"),
        ("range", "--sort", "size"),
        ("lease", "ttl", "0"),
        ("lease", "frobnicate"),
        ("watch",),
        ("watch", "k", "--count", "0"),
        ("lock",),
        ("lock", "l", "--wait", "0"),
        ("compact", "soon"),
        ("erase", "--progress", "0"),
        ("frobnicate",),
        ("get", "k", "--frob"),
        ("get", "k", "--timeout", "86401"),
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, client: FakeClient, command: tuple[str, ...]) -> None:
    code, out, err = run(*command)
    assert (code, out) == (2, b"")
    assert "Usage: raftstate" in err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("delete", "", "--prefix"), "give --all, too"),
        (("delete", "a", "b", "--prefix"), "give END or --prefix, not both"),
        (("range", "a", "--prefix", "a"), "give START and END, or --prefix, not both"),
        (("scan", "a", "--prefix", "a"), "give START and END, or --prefix, not both"),
        (("txn",), "give --then or --else"),
        (("lock", "l", "--json", "--", "true"), "leave --json out"),
    ],
)
def test_what_can_not_be_meant_is_refused_in_the_words_of_the_command_line(
    run: Run, client: FakeClient, command: tuple[str, ...], says: str
) -> None:
    code, out, err = run(*command)
    assert (code, out) == (2, b"")
    assert says in err
    assert client.calls == []


def test_every_key_is_deleted_when_that_is_said_twice(run: Run, client: FakeClient) -> None:
    assert run("delete", "", "--prefix", "--all").code == 0
    assert client.calls == [(b"", None, True)]


def test_a_range_is_read_page_after_page(run: Run, client: FakeClient) -> None:
    for number in range(5):
        client.put(b"k%d" % number, b"v")
    client.page = 2
    assert run("range", "--keys-only") == (0, b"k0\nk1\nk2\nk3\nk4\n", "")
    assert [start for start, *_ in client.calls] == [None, b"k1\x00", b"k3\x00"]
    found = json.loads(run("range", "--json").out)
    assert [pair["key"] for pair in found["kvs"]] == ["k0", "k1", "k2", "k3", "k4"]
    assert (found["count"], found["more"]) == (5, False)
    assert run("range", "--keys-only", "--limit", "3") == (
        0,
        b"k0\nk1\nk2\n",
        "raftstate: 3 of 5 keys; --limit left the others out\n",
    )


def test_a_value_from_stdin_is_read_up_to_the_limit_of_a_value(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.BytesIO(bytes(VALUE_BYTES_MAX + 10))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
    code, _, err = run("put", "k", "-")
    assert (code, client.rows) == (2, {})
    assert "stdin holds more than 8388608 bytes" in err
    assert stdin.tell() == VALUE_BYTES_MAX + 1
    monkeypatch.setattr(sys, "stdin", None)
    assert "stdin is closed" in run("put", "k", "-").err


@pytest.mark.parametrize(
    ("failure", "code", "err"),
    [
        (OSError(28, "No space left on device"), 1, "raftstate: No space left on device\n"),
        (PermissionError(13, "Permission denied", "f"), 1, "raftstate: f: Permission denied\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, ""),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_system_does_to_a_command_is_no_traceback(
    run: Run, client: FakeClient, failure: BaseException, code: int, err: str
) -> None:
    client.failure = failure
    assert run("get", "k") == (code, b"", err)


def test_the_version_and_the_exit_codes_are_told(run: Run) -> None:
    assert run("--version") == (0, f"raftstate {raftstate.__version__}\n".encode(), "")
    assert "3 a write was sent" in " ".join(run("--help").out.decode().split())


LEADER = NodeStatus(
    endpoint="127.0.0.1:7001",
    cluster_id=255,
    node_id=1,
    name="n1",
    role="leader",
    term=3,
    revision=40,
    keys=5,
    commit_index=90,
    applied_index=90,
    durable_applied_index=80,
    compacted_revision=12,
    leases=3,
    watches=4,
    log_bytes=1_500_000,
    state_bytes=2_000_000,
    digest=1,
    version="1.2.3",
    machine_version=3,
    incarnation=4,
    metrics_address="127.0.0.1:7201",
    checkpoint_age_ms=300,
    disk_free_bytes=7_000_000,
    log_map_bytes=8_000_000,
    state_map_bytes=9_000_000,
    members=(MemberStatus(2, "n2", "127.0.0.1:7102", "127.0.0.1:7002", 1, False),),
    progress=(PeerProgress(2, 70, 71, "replicate", False, 20, 1_500),),
    alarms=("disk is [almost] full",),
)
BEHIND = NodeStatus(
    endpoint="127.0.0.1:7002", node_id=2, name="n2", role="follower", term=3, applied_index=70
)
GONE = NodeStatus(endpoint="127.0.0.1:7003", error="connection [to] n3 refused")


def test_status_shows_each_node_those_that_do_not_answer_too(run: Run, client: FakeClient) -> None:
    client.nodes = [LEADER, BEHIND, GONE]
    code, out, _ = run("status")
    assert code == 0
    assert [" ".join(line.split()) for line in out.decode().splitlines()] == [
        "node endpoint role term commit applied checkpoint lag"
        " revision compacted keys leases watches log state",
        "n1 127.0.0.1:7001 leader 3 90 90 80 0 40 12 5 3 4 1.5 MB 2.0 MB",
        "n2 127.0.0.1:7002 follower 3 0 70 0 20 0 0 0 0 0 0.0 MB 0.0 MB",
        "? 127.0.0.1:7003 unreachable: connection [to] n3 refused",
        "node id incarnation version machine digest metrics checkpoint age disk free log max state max",
        "n1 1 4 1.2.3 3 0000000000000001 127.0.0.1:7201 0.3 s 7.0 MB 8.0 MB 9.0 MB",
        "n2 2 0 0 0000000000000000 none 0.0 s 0.0 MB 0.0 MB 0.0 MB",
        "follower replication active match entries behind seconds behind",
        "n2 replicate no 70 20 1.5",
        "n1: disk is [almost] full",
    ]


def test_status_tells_of_files_that_are_being_rewritten(run: Run, client: FakeClient) -> None:
    busy = msgspec.structs.replace(
        BEHIND,
        rebuild="erase",
        rebuild_done_bytes=2_000_000,
        rebuild_total_bytes=5_000_000,
        last_erase_index=8,
        erased_index=7,
    )
    client.nodes = [busy]
    assert run("status").out.decode().splitlines()[-2:] == [
        "n2: rewrites its files (erase), 2.0 MB of 5.0 MB",
        "n2: what was erased is still in its files",
    ]


def test_status_goes_on_with_a_line_each_time_whatever_becomes_of_the_nodes(
    run: Run, client: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.nodes = [LEADER]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        client.failure = NoLeaderError("no node answered") if len(slept) == 1 else None
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", sleep)
    code, out, _ = run("status", "--watch", "--interval", "0.5", "--json")
    lines = [json.loads(line) for line in out.decode().splitlines()]
    assert (code, slept) == (0, [0.5] * 3)
    assert [line.get("error", "shown") for line in lines] == ["shown", "no node answered", "shown"]
    slept.clear()
    code, out, _ = run("status", "--watch")
    assert code == 0
    assert "no node answered" in out.decode()


def test_status_as_json_has_every_field_and_the_lag(run: Run, client: FakeClient) -> None:
    client.nodes = [LEADER, BEHIND, GONE]
    nodes = json.loads(run("status", "--json").out)["nodes"]
    assert [node.get("lag") for node in nodes] == [0, 20, None]
    assert (nodes[0]["cluster_id"], nodes[0]["digest"]) == ("00000000000000ff", "0000000000000001")
    assert nodes[0]["members"][0]["name"] == "n2"
    assert [nodes[0][name] for name in ("compacted_revision", "leases", "watches")] == [12, 3, 4]
    assert nodes[2] == {"endpoint": "127.0.0.1:7003", "error": "connection [to] n3 refused"}


def test_leadership_is_handed_to_a_name_an_id_or_anyone(run: Run, client: FakeClient) -> None:
    client.nodes = [LEADER, BEHIND]
    assert run("transfer-leader", "n2") == (0, b"n2 leads\n", "")
    assert json.loads(run("transfer-leader", "2", "--json").out) == {"leader_id": 2, "leader": "n2"}
    run("transfer-leader")
    assert client.calls == ["n2", 2, None]
