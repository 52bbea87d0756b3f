"""lease."""

from __future__ import annotations

import json

from raftstate.errors import LeaseNotFoundError
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient

CHOSEN = 2**63 - 1
"""An id whose last digits are lost where JSON numbers are floats."""


def test_a_grant_prints_the_id_for_the_next_command(run: Run, client: FakeClient) -> None:
    assert run("lease", "grant", "10") == (0, b"%d\n" % CHOSEN, "")
    assert json.loads(run("lease", "grant", "2.5", "--id", "7", "--json").out) == {"id": "7", "ttl_s": 2.5}
    assert client.leases_held == {CHOSEN: 10.0, 7: 2.5}


def test_a_lease_is_renewed_and_revoked(run: Run, client: FakeClient) -> None:
    client.leases_held = {7: 10.0}
    assert run("lease", "renew", "7") == (0, b"lease 7 lives for 10 s from now on\n", "")
    assert json.loads(run("lease", "renew", "7", "--json").out) == {"id": "7", "ttl_s": 10.0}
    assert run("lease", "revoke", "7") == (0, b"revoked lease 7, deleted 3\n", "")
    assert run("lease", "revoke", "7") == (1, b"", "raftstate: there is no lease 7\n")
    client.leases_held = {7: 10.0}
    assert json.loads(run("lease", "revoke", "7", "--json").out) == {"id": "7", "deleted": 3}


def test_what_a_lease_has_left_is_told(run: Run, client: FakeClient) -> None:
    client.leases_held = {7: 10.0}
    assert run("lease", "ttl", "7").out == b"lease 7: 5.0 of 10 s left, keys: 2\n"
    assert run("lease", "ttl", "7", "--keys").out.splitlines()[1:] == [b"a", b"\\xff"]
    told = {"id": "7", "ttl_s": 10.0, "remaining_s": 5.0, "key_count": 2}
    assert json.loads(run("lease", "ttl", "7", "--json").out) == told
    keys = {"keys": [{"key": "a"}, {"key_base64": "/w=="}]}
    assert json.loads(run("lease", "ttl", "7", "--keys", "--json").out) == {**told, **keys}


def test_all_leases_are_listed(run: Run, client: FakeClient) -> None:
    client.leases_held = {7: 10.0, CHOSEN: 60.0}
    assert [line.split() for line in run("lease", "list").out.decode().splitlines()] == [
        ["lease", "ttl", "left", "keys"],
        ["7", "10", "s", "5.0", "s", "2"],
        [str(CHOSEN), "60", "s", "30.0", "s", "2"],
    ]
    listed = json.loads(run("lease", "list", "--json").out)
    assert [each["id"] for each in listed] == ["7", str(CHOSEN)]


def test_a_lease_is_kept_alive_until_interrupted_or_ended(run: Run, client: FakeClient) -> None:
    client.leases_held = {7: 10.0}
    assert run("lease", "keep-alive", "7") == (
        0,
        b"keeping lease 7 alive; once interrupted, it has 10 s left\n",
        "",
    )
    assert client.calls == [("keep_alive", 7)]
    assert json.loads(run("lease", "keep-alive", "7", "--json").out) == {"id": "7", "ttl_s": 10.0}
    client.ending = LeaseNotFoundError("lease 7 was revoked")
    code, _, err = run("lease", "keep-alive", "7")
    assert (code, err) == (1, "raftstate: lease 7 was revoked\n")
