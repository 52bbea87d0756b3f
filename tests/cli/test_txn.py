"""txn, compact and scan."""

from __future__ import annotations

import json

import pytest

from raftstate import Delete, Get, Put, Range, where
from raftstate.client import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from tests.cli.conftest import Run
from tests.cli.fake_client import FakeClient

PAIR = KeyValue(b"k\xff", b"v", 2, 3, 2)


@pytest.mark.parametrize(
    ("text", "compare"),
    [
        ("k version = 0", where("k").version == 0),
        ("k version == 2", where("k").version == 2),
        ("k create != 3", where("k").create_revision != 3),
        ("k mod < 4", where("k").mod_revision < 4),
        ("k lease > 5", where("k").lease > 5),
        ("k value = '  two words'", where("k").value == b"  two words"),
        ("'a b' exists", where("a b").exists()),
        ("k missing", where("k").missing()),
        ("\udcff value = \udcfe", where(b"\xff").value == b"\xfe"),
    ],
)
def test_a_condition_is_what_it_reads_like(run: Run, client: FakeClient, text: str, compare: object) -> None:
    client.txn_result = TxnResult(1, True, (None,))
    assert run("txn", "--when", text, "--then", "get k").code == 0
    assert client.calls[0] == ("when", compare)


def test_operations_are_what_they_read_like(run: Run, client: FakeClient) -> None:
    client.txn_result = TxnResult(1, True, (None,) * 9)
    words = [
        "put k 'a value'",
        "put k v 77",
        "get k",
        "get k 5",
        "range a b",
        "prefix a/",
        "delete k",
        "delete a b",
        "delete-prefix a/",
    ]
    then = [part for each in words for part in ("--then", each)]
    assert run("txn", *then, "--else", "get \udcff", "--else", "put k ''").code == 0
    assert client.calls == [
        ("when",),
        (
            "then",
            Put(b"k", b"a value"),
            Put(b"k", b"v", lease=77),
            Get(b"k"),
            Get(b"k", revision=5),
            Range(b"a", b"b"),
            Range(prefix=b"a/"),
            Delete(b"k"),
            Delete(b"a", range_end=b"b"),
            Delete(b"a/", prefix=True),
        ),
        ("otherwise", Get(b"\xff"), Put(b"k", b"")),
    ]


@pytest.mark.parametrize(
    ("option", "text", "says"),
    [
        ("--when", "k", "'k' is no condition; the form is KEY (version|"),
        ("--when", "k size = 1", "is no condition"),
        ("--when", "k version ~ 1", "is no condition"),
        ("--when", "k version = one", "'one' is no whole number"),
        ("--when", "k version = -1", "'-1' is no whole number"),
        ("--when", "k version = ²", "is no whole number"),
        ("--when", "k value = 'x", "No closing quotation; the form is KEY"),
        ("--then", "", "'' is no operation; the form is put KEY VALUE"),
        ("--then", "put k", "is no operation"),
        ("--then", "put k v lease", "'lease' is no whole number"),
        ("--else", "delete-prefix ''", "is no operation"),
        ("--else", "get 'x", "No closing quotation; the form is put"),
    ],
)
def test_what_has_no_meaning_is_refused_with_the_form_that_has(
    run: Run, client: FakeClient, option: str, text: str, says: str
) -> None:
    code, out, err = run("txn", "--then", "get k", option, text)
    assert (code, out, client.calls) == (2, b"", [])
    assert says in err


RESPONSES = (
    PutResult(9),
    PAIR,
    None,
    DeleteResult(9, 2),
    RangeResult(kvs=(PAIR, PAIR), more=False, count=2, revision=9),
)
OPERATIONS = ("put k v", "get k", "get k", "delete a b", "prefix k")


def test_a_branch_that_ran_is_told_operation_by_operation(run: Run, client: FakeClient) -> None:
    client.txn_result = TxnResult(9, True, RESPONSES)
    arguments = [part for each in OPERATIONS for part in ("--then", each)]
    assert run("txn", *arguments) == (
        0,
        b"succeeded, revision 9\ndone\nk\\xff\tv\nthere is no such key\ndeleted 2\nk\\xff\tv\nk\\xff\tv\n",
        "",
    )


def test_the_other_branch_is_told_with_exit_code_1(run: Run, client: FakeClient) -> None:
    client.txn_result = TxnResult(9, False, RESPONSES)
    arguments = [part for each in OPERATIONS for part in ("--else", each)]
    code, out, err = run("txn", "--when", "k exists", "--then", "put k v", *arguments)
    assert (code, err) == (1, "")
    assert out.startswith(b"failed, revision 9\ndone\nk\\xff\tv\nthere is")
    code, out, _ = run("txn", *arguments, "--json")
    pair = {
        "key_base64": "a/8=",
        "value": "v",
        "create_revision": 2,
        "mod_revision": 3,
        "version": 2,
        "lease": "0",
    }
    assert code == 1
    assert json.loads(out) == {
        "succeeded": False,
        "revision": 9,
        "responses": [
            {"revision": 9},
            pair,
            None,
            {"deleted": 2},
            {"kvs": [pair, pair], "count": 2, "more": False},
        ],
    }


def test_a_compaction_says_up_to_where(run: Run, client: FakeClient) -> None:
    assert run("compact", "5") == (0, b"compacted up to revision 5\n", "")
    assert json.loads(run("compact", "6", "--json").out) == {"compacted_revision": 6}
    assert client.calls == [5, 6]


def test_a_scan_prints_every_pair_of_one_revision(run: Run, client: FakeClient) -> None:
    # More than are printed at once.
    for number in range(1_500):
        client.put(b"k%04d" % number, b"\xff")
    code, out, err = run("scan", "k", "l", "--revision", "7")
    assert (code, err) == (0, "")
    assert out.decode().splitlines() == [f"k{number:04}\t\\xff" for number in range(1_500)]
    assert run("scan", "--prefix", "k", "--keys-only").out.startswith(b"k0000\nk0001\n")
    assert client.calls == [
        (b"k", b"l", {"prefix": None, "revision": 7, "keys_only": False}),
        (None, None, {"prefix": b"k", "revision": None, "keys_only": True}),
    ]


def test_a_scan_as_json_is_an_object_a_line(run: Run, client: FakeClient) -> None:
    client.put(b"a", b"\xff")
    client.put(b"b", b"v")
    lines = run("scan", "--json").out.splitlines()
    assert [json.loads(line).get("value_base64") for line in lines] == ["/w==", None]
    assert "value" not in json.loads(run("scan", "--json", "--keys-only").out.splitlines()[1])
