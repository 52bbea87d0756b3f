"""What is wrong with an argument is said before anything is sent."""

from __future__ import annotations

from typing import Any

import pytest

import raftstate
from raftstate.errors import InvalidArgumentError
from tests.client.fake_cluster import FakeCluster

UNREACHABLE = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("method", "arguments", "field", "says"),
    [
        ("put", {"key": "", "value": b""}, "key", "key must have 1 to 480 bytes, got 0"),
        ("put", {"key": "k" * 481, "value": b""}, "key", "key must have 1 to 480 bytes, got 481"),
        ("put", {"key": "é" * 241, "value": b""}, "key", "key must have 1 to 480 bytes, got 482"),
        ("put", {"key": 7, "value": b""}, "key", "key must be str or bytes, got int"),
        ("put", {"key": "\ud800", "value": b""}, "key", "key must be text that UTF-8 can hold"),
        ("put", {"key": "k", "value": "v"}, "value", "value must be bytes-like, got str; encode text first"),
        ("put", {"key": "k", "value": None}, "value", "value must be bytes-like, got NoneType"),
        ("put", {"key": "k", "value": bytes((8 << 20) + 1)}, "value", "at most 8388608 bytes, got 8388609"),
        (
            "put",
            {"key": "k", "value": b"", "timeout": 0},
            "timeout",
            "a number of seconds above 0 and at most 86400 (a day), got 0",
        ),
        (
            "put",
            {"key": "k", "value": b"", "timeout": float("nan")},
            "timeout",
            "at most 86400 (a day), got nan",
        ),
        ("put", {"key": "k", "value": b"", "lease": -1}, "lease", "lease must be a lease, or its id"),
        ("put", {"key": "k", "value": b"", "lease": "7"}, "lease", "got '7'"),
        (
            "put",
            {"key": "k", "value": b"", "prev_kv": None},
            "prev_kv",
            "prev_kv must be True or False, got None",
        ),
        ("get", {"key": "k", "revision": 0}, "revision", "revision must be a whole number from 1"),
        ("get", {"key": "k", "revision": "5"}, "revision", "got '5'"),
        ("range", {"revision": -1}, "revision", "revision must be a whole number from 1"),
        ("range", {"sort": "size"}, "sort", "sort must be None or one of 'key', 'version', 'create'"),
        ("range", {"sort": []}, "sort", "sort must be None or one of 'key'"),
        ("range", {"descending": 1}, "descending", "descending must be True or False, got 1"),
        ("range", {"keys_only": "no"}, "keys_only", "keys_only must be True or False, got 'no'"),
        ("range", {"count_only": 0}, "count_only", "count_only must be True or False, got 0"),
        ("delete", {"key": "k", "prefix": "k"}, "prefix", "prefix must be True or False, got 'k'"),
        ("erase", {"key": ""}, "key", "key must have 1 to 480 bytes, got 0"),
        ("erase_progress", {"erased": 0}, "erased", "erased must be a whole number from 1"),
        ("compact", {"revision": 0}, "revision", "revision must be a whole number from 1"),
        ("compact", {"revision": None}, "revision", "got None"),
        ("compact", {"revision": 5, "timeout": 0}, "timeout", "timeout must be a number of seconds above 0"),
        ("leases", {"timeout": -1}, "timeout", "timeout must be a number of seconds above 0"),
        ("put_many", {"items": [("k", b""), ("", b"")]}, "key", "key must have 1 to 480 bytes, got 0"),
        ("get", {"key": ""}, "key", "key must have 1 to 480 bytes, got 0"),
        ("get", {"key": "k", "consistency": "eventual"}, "consistency", "must be one of 'linearizable'"),
        ("get", {"key": "k", "consistency": []}, "consistency", "must be one of 'linearizable'"),
        (
            "get",
            {"key": "k", "consistency": "bounded", "max_lag_ms": 0},
            "max_lag_ms",
            "from 1 to 4294967295",
        ),
        ("range", {"prefix": "a", "end": "b"}, "prefix", "give start and end, or prefix, not end and prefix"),
        ("range", {"prefix": "a", "start": "b"}, "start", "start must begin with the prefix 'a'"),
        ("put", {"key": "k", "value": b"", "timeout": 1e12}, "timeout", "(a day), got 1000000000000.0"),
        (
            "put_many",
            {"items": [("k", b""), ("a",)]},
            "items",
            "item 1 must be a (key, value) pair, got ('a',)",
        ),
        ("put_many", {"items": 5}, "items", "must be an iterable of (key, value) pairs, got int"),
        ("range", {"start": ""}, "start", "start must have 1 to 480 bytes, got 0"),
        ("range", {"end": "k" * 481}, "end", "end must have 1 to 480 bytes, got 481"),
        ("range", {"end": "k" * 481 + "\0"}, "end", "end must have 1 to 481 bytes, got 482"),
        ("range", {"limit": 0}, "limit", "limit must be a whole number from 1"),
        ("delete", {"key": ""}, "key", "key must have 1 to 480 bytes, got 0"),
        ("delete", {"key": "a", "prefix": True, "range_end": "b"}, "range_end", "not both"),
        ("transfer_leader", {"target": 1, "timeout": -1}, "timeout", "(a day), got -1"),
    ],
)
async def test_bad_arguments_name_the_field_what_was_got_and_the_limit(
    method: str, arguments: dict[str, Any], field: str, says: str
) -> None:
    async with raftstate.connect_async(UNREACHABLE) as store:
        with pytest.raises(InvalidArgumentError) as caught:
            await getattr(store, method)(**arguments)
    assert says in caught.value.message
    assert caught.value.field == field
    assert caught.value.definite


def test_many_pairs_that_are_none_are_refused_by_threads_too() -> None:
    with raftstate.connect(UNREACHABLE) as store, pytest.raises(InvalidArgumentError, match="got int"):
        store.put_many(5)  # type: ignore[arg-type]


def test_a_bad_default_timeout_is_refused_at_connect() -> None:
    with pytest.raises(InvalidArgumentError, match="timeout must be"):
        raftstate.connect(UNREACHABLE, timeout=0)


@pytest.mark.parametrize("value", [b"v", bytearray(b"v"), memoryview(b"v")])
async def test_any_bytes_like_value_and_the_longest_key_are_taken(
    cluster: FakeCluster, store: raftstate.AsyncClient, value: bytes | bytearray | memoryview
) -> None:
    await store.put("k" * 480, value)
    assert cluster.executed == [(b"k" * 480, b"v")]


async def test_one_bad_pair_of_many_sends_none(cluster: FakeCluster, store: raftstate.AsyncClient) -> None:
    with pytest.raises(InvalidArgumentError):
        await store.put_many([("a", b"1"), ("b", 2)])  # type: ignore[list-item]
    await store.put("c", b"3")
    assert cluster.executed == [(b"c", b"3")]
