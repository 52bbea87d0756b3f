"""The snapshot's file: what goes in comes out, and nothing but a whole and unchanged file gets through."""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from raftstate.core.types import ConfState
from raftstate.errors import DataLossError, FailedPreconditionError, InvariantError
from raftstate.machine.tables import Table
from raftstate.store import snapshot_format
from raftstate.store.snapshot_format import FORMAT, Block, Row, SnapshotEncoder, SnapshotMeta, SnapshotParser

META = SnapshotMeta(0xC1, 900, 7, ConfState(voters=(1, 2, 3), learners=(4,)), 3, 0, 0)
BLOCKS = [
    Block(Table.CHANGES, [(b"%08d" % n, b"value %d" % n * 5) for n in range(40)]),
    Block(Table.CHANGES, [(b"%08d" % n, b"") for n in range(40, 60)]),
    Block(Table.CHANGES, [(b"00000060", Random(1).randbytes(5_000))]),
    Block(Table.INDEX, [(b"a", b"1"), (b"a\x00", b"2"), (b"b" * 511, b"3")]),
    Block(Table.HOT, [(b"M", b"meta")]),
]
"""No milestones: a table may be empty."""


def pieces(blocks: list[Block], meta: SnapshotMeta | None = None) -> list[bytes]:
    """A snapshot as its head, its blocks and its end."""
    rows = sum(len(block.rows) for block in blocks)
    encoder = SnapshotEncoder()
    return [
        encoder.begin(meta or msgspec.structs.replace(META, rows=rows)),
        *(encoder.block(*block) for block in blocks),
        encoder.end(),
    ]


def parse(data: bytes, piece_bytes: int = 1 << 20) -> tuple[SnapshotMeta, list[Block]]:
    parser = SnapshotParser()
    found = []
    for start in range(0, len(data), piece_bytes):
        parser.feed(data[start : start + piece_bytes])
        while (block := parser.next_block()) is not None:
            found.append(block)
    return parser.finish(), found


PIECES = pieces(BLOCKS)
WHOLE = b"".join(PIECES)


@pytest.mark.parametrize("piece_bytes", [1, 2, 37, 1000, 1 << 20])
def test_what_was_written_is_read_in_pieces_of_any_size(piece_bytes: int) -> None:
    meta, blocks = parse(WHOLE, piece_bytes)
    assert (meta, blocks) == (msgspec.structs.replace(META, rows=65), BLOCKS)


def test_a_snapshot_without_rows_is_whole() -> None:
    assert parse(b"".join(pieces([])))[1] == []


def test_the_meta_is_known_before_the_first_block_has_arrived() -> None:
    parser = SnapshotParser()
    parser.feed(PIECES[0][:-1])
    assert (parser.next_block(), parser.meta) == (None, None)
    parser.feed(PIECES[0][-1:])
    assert parser.next_block() is None
    assert parser.meta == msgspec.structs.replace(META, rows=65)


keys = st.binary(min_size=1, max_size=40)
tables = st.dictionaries(st.sampled_from(Table), st.dictionaries(keys, st.binary(max_size=200), min_size=1))


@given(tables, st.integers(1, 5), st.integers(1, 400))
@settings(max_examples=150, deadline=None)
def test_any_rows_come_out_as_they_went_in(
    content: dict[Table, dict[bytes, bytes]], block_rows: int, piece_bytes: int
) -> None:
    blocks = []
    for table, rows in sorted(content.items()):
        ordered: list[Row] = sorted(rows.items())
        blocks += [
            Block(table, ordered[start : start + block_rows]) for start in range(0, len(ordered), block_rows)
        ]
    assert parse(b"".join(pieces(blocks)), piece_bytes)[1] == blocks


# -- damage


@pytest.mark.case(42)
@pytest.mark.case(56)
def test_every_flipped_bit_is_noticed() -> None:
    for at in range(len(WHOLE)):
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(DataLossError):
            parse(bytes(damaged))


@pytest.mark.case(42)
def test_every_truncation_is_noticed() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(DataLossError):
            parse(WHOLE[:size])


@given(st.data())
@settings(max_examples=400, deadline=None)
@pytest.mark.case(42)
def test_no_mishap_of_bytes_gets_through_or_raises_anything_else(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(damaged)))
        end = data.draw(st.integers(start, min(start + 300, len(damaged))))
        match data.draw(st.sampled_from(["replace", "cut", "insert", "repeat", "zero"])):
            case "replace":
                damaged[start:end] = data.draw(st.binary(min_size=end - start, max_size=end - start))
            case "cut":
                del damaged[start:end]
            case "insert":
                damaged[start:start] = data.draw(st.binary(max_size=100))
            case "repeat":
                damaged[start:start] = damaged[start:end]
            case "zero":
                damaged[start:end] = bytes(end - start)
    if bytes(damaged) == WHOLE:
        return
    with pytest.raises(DataLossError):
        parse(bytes(damaged), data.draw(st.sampled_from([1 << 20, 50])))


@given(st.permutations(range(len(PIECES))))
@settings(max_examples=60, deadline=None)
@pytest.mark.case(42)
def test_blocks_in_another_order_are_noticed(order: list[int]) -> None:
    shuffled = b"".join(PIECES[n] for n in order)
    if shuffled != WHOLE:
        with pytest.raises(DataLossError):
            parse(shuffled)


@pytest.mark.case(42)
@pytest.mark.parametrize("number", range(len(PIECES)))
def test_a_part_that_is_missing_or_repeated_or_of_another_snapshot_is_noticed(number: int) -> None:
    other = pieces([Block(table, [(key, value + b"!") for key, value in rows]) for table, rows in BLOCKS])
    later = msgspec.structs.replace(META, rows=65, index=901)
    for changed in (
        PIECES[:number] + PIECES[number + 1 :],
        PIECES[:number] + PIECES[number : number + 1] * 2 + PIECES[number + 1 :],
        PIECES[:number] + other[number : number + 1] + PIECES[number + 1 :],
        PIECES[:number] + pieces(BLOCKS, later)[number : number + 1] + PIECES[number + 1 :],
        PIECES[:number] + other[number:],
    ):
        if b"".join(changed) in (WHOLE, b"".join(other)):
            continue
        with pytest.raises(DataLossError):
            parse(b"".join(changed))


def test_bytes_after_the_end_are_refused_in_the_same_piece_or_later() -> None:
    with pytest.raises(DataLossError, match="goes on after its end with 1 bytes"):
        parse(WHOLE + b"\x00")
    with pytest.raises(DataLossError, match="goes on after its end"):
        parse(WHOLE + WHOLE, 1)


# -- what a sender with a bug might send: all checksums match


class Forger(SnapshotEncoder):
    """Seals whatever it is given."""

    def raw(self, head: bytes, stored: bytes = b"") -> bytes:
        return self._sealed(head) + stored

    def rows(self, table: int, count: int, raw: bytes, raw_bytes: int | None = None) -> bytes:
        stored = snapshot_format.zstd.compress(raw, 1)
        size = len(raw) if raw_bytes is None else raw_bytes
        head = struct.pack("<BBIIIQ", 1, table, count, size, len(stored), xxh3_64_intdigest(stored))
        return self.raw(head, stored)


def raw_of(*rows: Row) -> bytes:
    return b"".join(
        (
            struct.pack(f"<{len(rows)}H", *(len(key) for key, _ in rows)),
            struct.pack(f"<{len(rows)}I", *(len(value) for _, value in rows)),
            *(key for key, _ in rows),
            *(value for _, value in rows),
        )
    )


AB = raw_of((b"a", b"1"), (b"b", b"2"))


@pytest.mark.parametrize(
    ("table", "count", "raw", "raw_bytes", "says"),
    [
        (1, 2, raw_of((b"b", b"1"), (b"a", b"2")), None, "rows out of order"),
        (1, 2, raw_of((b"a", b"1"), (b"a", b"2")), None, "rows out of order"),
        (1, 1, raw_of((b"", b"1")), None, "rows out of order, or keys of 0"),
        (1, 1, raw_of((b"k" * 512, b"1")), None, "keys of 0 or over 511 bytes"),
        (1, 3, AB, None, r"the rows of a snapshot's block have|can't have 3 rows"),
        (1, 1, AB, None, r"the rows of a snapshot's block have"),
        (1, 0, AB, None, r"can't have 0 rows"),
        (1, 1 << 31, AB, None, r"can't have 2147483648 rows"),
        (1, 2, AB + b"!", None, r"the rows of a snapshot's block have"),
        (1, 2, AB, len(AB) + 1, r"holds \d+ bytes, expected \d+"),
        (9, 2, AB, None, r"is of kind 1 and table 9"),
        (0, 2, AB, None, r"is of kind 1 and table 0"),
        (1, 2, AB, 65 << 20, r"limit 67108864"),
    ],
)
def test_a_block_that_says_wrong_things_of_itself_is_refused(
    table: int, count: int, raw: bytes, raw_bytes: int | None, says: str
) -> None:
    forger = Forger()
    with pytest.raises(DataLossError, match=says):
        parse(forger.begin(META) + forger.rows(table, count, raw, raw_bytes))


def test_tables_out_of_order_are_refused() -> None:
    encoder = SnapshotEncoder()
    data = encoder.begin(META) + encoder.block(Table.INDEX, [(b"a", b"1")])
    with pytest.raises(DataLossError, match="rows out of order"):
        parse(data + encoder.block(Table.CHANGES, [(b"b", b"1")]))


def test_stored_bytes_that_are_no_frame_are_refused() -> None:
    forger = Forger()
    stored = b"no frame of zstd"
    head = struct.pack("<BBIIIQ", 1, 1, 1, 10, len(stored), xxh3_64_intdigest(stored))
    with pytest.raises(DataLossError, match="can't be decompressed"):
        parse(forger.begin(META) + forger.raw(head, stored))


@pytest.mark.parametrize("wrong", ["blocks", "bytes", "rows of a table", "size"])
def test_an_end_with_other_counts_is_refused(wrong: str) -> None:
    forger = Forger()
    data = forger.begin(msgspec.structs.replace(META, rows=2)) + forger.rows(1, 2, AB)
    counts = [1, len(AB), 2, 0, 0, 0]
    counts[{"blocks": 0, "bytes": 1, "rows of a table": 3, "size": 0}[wrong]] += 1
    end = struct.pack(f"<{len(counts)}Q", *counts) + (b"!" if wrong == "size" else b"")
    head = struct.pack("<BBIIIQ", 2, 0, 0, len(end), len(end), xxh3_64_intdigest(end))
    with pytest.raises(DataLossError, match="end does not agree with what came before"):
        parse(data + forger.raw(head, end))


def test_another_number_of_rows_than_the_meta_says_is_refused() -> None:
    with pytest.raises(DataLossError, match="should hold 66 rows, and holds 65"):
        parse(b"".join(pieces(BLOCKS, msgspec.structs.replace(META, rows=66))))


def test_a_meta_of_other_bytes_is_refused() -> None:
    forger = Forger()
    head = struct.pack("<4sII", b"RSSN", FORMAT, 3)
    with pytest.raises(DataLossError, match="meta can't be read"):
        parse(forger.raw(head) + forger.raw(b"\xc1\xc1\xc1"))


def test_a_meta_that_asks_for_much_memory_is_refused_at_once() -> None:
    with pytest.raises(DataLossError, match="meta has 1048577 bytes, limit 1048576"):
        parse(Forger().raw(struct.pack("<4sII", b"RSSN", FORMAT, (1 << 20) + 1)))


def test_a_file_of_something_else_is_refused() -> None:
    with pytest.raises(DataLossError, match="not a snapshot: it begins with b'RSCP'"):
        parse(Forger().raw(struct.pack("<4sII", b"RSCP", FORMAT, 10)))


@pytest.mark.case(60)
def test_a_newer_format_is_refused_with_what_to_do_whatever_follows() -> None:
    with pytest.raises(
        FailedPreconditionError, match=r"format 2, .* formats up to 1: start it with the newer"
    ):
        parse(Forger().raw(struct.pack("<4sII", b"RSSN", FORMAT + 1, 1 << 31)) + b"anything")


def test_a_later_meta_with_more_fields_is_read() -> None:
    class Later(msgspec.Struct, array_like=True):
        cluster_id: int
        index: int
        term: int
        conf_state: ConfState
        machine_version: int
        rows: int
        raw_bytes: int
        more: str

    forger = Forger()
    encoded = msgspec.msgpack.encode(Later(1, 2, 3, ConfState(), 4, 0, 0, "more"))
    head = struct.pack("<4sII", b"RSSN", FORMAT, len(encoded))
    assert parse(forger.raw(head) + forger.raw(encoded) + forger.end())[0].index == 2


def test_a_row_as_large_as_the_largest_is_a_block_of_its_own(tmp_path: Path) -> None:
    large = Random(2).randbytes(22 << 20)
    blocks = [Block(Table.HOT, [(b"A", large)])]
    assert parse(b"".join(pieces(blocks)), 64 << 10)[1] == blocks


def test_a_block_over_the_limit_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_format, "BLOCK_BYTES_MAX", 100)
    with pytest.raises(InvariantError, match="a block of a snapshot has 107 bytes, limit 100"):
        SnapshotEncoder().block(Table.HOT, [(b"A", b"x" * 100)])


@pytest.mark.parametrize("byte", range(0, 256, 5))
def test_many_small_blocks_are_decompressed_one_at_a_time(byte: int) -> None:
    """A few bytes may stand for much memory: what is fed is not unpacked before it is asked for."""
    blocks = [Block(Table.CHANGES, [(b"%08d" % n, bytes((byte,)) * 100_000)]) for n in range(5)]
    parser = SnapshotParser()
    parser.feed(b"".join(pieces(blocks)))
    assert parser.next_block() == blocks[0]
    assert parser.rows[Table.CHANGES] == 1
