"""Machine version 1, byte for byte: nodes with newer code must agree with those that know no other version.

The values were computed by the last code that knew version 1 alone. They never change.
"""

from __future__ import annotations

import msgspec
import pytest

from raftstate.machine import batch as batch_module
from raftstate.machine.layout import ANSWERS_END, ANSWERS_START, META_KEY, meta_row, read_meta
from raftstate.machine.tables import Table
from raftstate.machine.types import Cancel, Close, Code, Expire, MoveTo, SessionId
from tests.machine.rig import CLUSTER, Rig, answers, batch, codes, delete, put

SESSION_BYTES_MAX = 1_000
"""In place of the real one, so that the rows of a few answers decide about WINDOW."""


def rig_of_version_1() -> Rig:
    rig = Rig()
    meta = msgspec.structs.replace(read_meta(rig.tables), machine_version=1)
    rig.tables.put(Table.HOT, META_KEY, meta_row(meta))
    rig.reload()
    return rig


def run_log(rig: Rig) -> list[int]:
    """Run some of all that version 1 knows; return the digest after each entry."""
    rig.run()
    session = rig.register()
    other = rig.register(nonce=8)
    digests = []
    for number, items in enumerate(
        (
            (batch(put(1, b"a"), put(2, b"b", b"w"), put(3, b"a", b"x", prev_kv=True)),),
            (batch(delete(1, b"a"), delete(2, b"none"), delete(3, b"b", prev_kv=True)),),
            (batch(put(1, b"k1"), put(2, b"k2"), put(3, b""), session=session),),
            (batch(put(4, b"k1", b"2", prev_kv=True), delete(5, b"k", b"l", prev_kv=True), session=session),),
            (batch(delete(6, b"none"), put(6_000, b"z"), session=session, floor=2, given_up=(9, 10)),),
            (Cancel(session, 12), Cancel(session, 5), Cancel(session, 1), Cancel(session, 9_000)),
            (batch(put(12, b"a"), put(9, b"a"), put(5, b"a"), put(1, b"a"), session=session),),
            (batch(put(1, b"q"), session=SessionId(77, 7)), batch(put(1, b"q"), cluster_id=CLUSTER + 1)),
            (
                batch(
                    put(20, b"a", b"v" * 300, prev_kv=True), delete(21, b"a", prev_kv=True), session=session
                ),
            ),
            *(
                (batch(*(delete(n, b"none") for n in range(s, s + 9)), session=session),)
                for s in (30, 40, 50)
            ),
            *((batch(delete(n, b"none"), session=session),) for n in range(60, 70)),
            (batch(put(100, b"b"), delete(101, b"b"), session=session),),
            (batch(put(1, b"b"), session=other), Close(other), Expire(session, 10)),
        )
    ):
        rig.run(*items, lease_ms=10 * number, wall_ms=1_000 + number)
        digests.append(rig.machine.digest)
    return digests


def answer_rows(rig: Rig) -> list[str]:
    rows = rig.tables.scan(Table.HOT, ANSWERS_START, ANSWERS_END)
    return [f"{row_key.hex()} {row.hex()}" for row_key, row in rows]


DIGESTS = [
    0x6A48E0092B679B56,
    0x097AE01027464EB4,
    0xCA7E60419FB629F3,
    0x5CF9942D86F21D64,
    0x8CB5A86B00BEA6ED,
    0x463A7357E606096A,
    0x8F7A7763FD38E270,
    0xA1731708CDE0678A,
    0x1EA94E8637A9A416,
    0xB5664C2649F842EF,
    0x8283BFD8C43A0291,
    0x89C13B28BF576730,
    0x3E59A53F62D83A96,
    0xEE50F814E3651AEB,
    0xAADBD8364ADE2A87,
    0xC6E6739AB37C4CBF,
    0x9D555B81C4D867F4,
    0x4F47046F94C73364,
    0xA4B43C3984AB2BA3,
    0x0DBE8F13C8B0B7FF,
    0x1DFE94A8BB1E3FB3,
    0xC455E72E61523C75,
    0xD93B16611A5C2DF2,
    0x13D6BA81D80B7E7B,
]
ANSWER_ROWS = [
    "4100000000000000020000000000000007000000000000000600000000 "
    "260e71bda01d981393920102920708919503089301d9236b6579206d7573742068617665203120746f203438302062797465"
    "732c20676f742030a36b65790090",
    "4100000000000000020000000000000007000000000000000700000000 "
    "293b7004cb650ec893909092950409c0009196c4026b31c401760707010095050ac0029296c4026b31c401320709020096c4"
    "026b32c4017608080100",
    "4100000000000000020000000000000007000000000000000800000000 "
    "5976e590c796797c9390909395090a930ad94274686520636c69656e74206761766520746869732073657269616c20757020"
    "6265666f7265206974207761732072756e3b206974206e657665722077696c6c206265a673657269616c0090950a0a930ad9"
    "4274686520636c69656e74206761766520746869732073657269616c207570206265666f7265206974207761732072756e3b"
    "206974206e657665722077696c6c206265a673657269616c009095060ac00090",
    "4100000000000000020000000000000007000000000000000900000000 "
    "89c7b31d166d48c593909091950c0a930ad94274686520636c69656e74206761766520746869732073657269616c20757020"
    "6265666f7265206974207761732072756e3b206974206e657665722077696c6c206265a673657269616c0090",
    "4100000000000000020000000000000007000000000000000c00000000 "
    "18d66902ec34313b939114910b9195150cc0019196c40161c5012c7676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676767676"
    "7676767676767676767676767676767676767676767676767676760b0b0100",
    "4100000000000000020000000000000007000000000000000d00000000 "
    "4b98e0f09227213493909099951e0cc00090951f0cc0009095200cc0009095210cc0009095220cc0009095230cc000909524"
    "0cc0009095250cc0009095260cc00090",
    "4100000000000000020000000000000007000000000000000e00000000 "
    "2294826cef68581d9390909995280cc0009095290cc00090952a0cc00090952b0cc00090952c0cc00090952d0cc00090952e"
    "0cc00090952f0cc0009095300cc00090",
    "4100000000000000020000000000000007000000000000000f00000000 "
    "60af6be9473ecc169390909995320cc0009095330cc0009095340cc0009095350cc0009095360cc0009095370cc000909538"
    "0cc0009095390cc00090953a0cc00090",
    "4100000000000000020000000000000007000000000000001000000000 838047ac28cf9d1793909091953c0cc00090",
    "4100000000000000020000000000000007000000000000001100000000 592017ecd7cc1f1893909091953d0cc00090",
    "4100000000000000020000000000000007000000000000001200000000 658be0b2facf80f893909091953e0cc00090",
    "4100000000000000020000000000000007000000000000001300000000 1cfcb79124d29f4493909091953f0cc00090",
]


def test_digests_and_rows_are_those_of_the_code_that_knew_no_other_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_module, "SESSION_BYTES_MAX", SESSION_BYTES_MAX)
    rig = rig_of_version_1()
    assert run_log(rig) == DIGESTS
    assert answer_rows(rig) == ANSWER_ROWS
    # What the rows take decides what is run: the last ones were refused.
    assert codes(rig.write(put(102, b"b"), session=SessionId(2, 7))) == {102: Code.WINDOW}


def test_answers_of_version_1_are_given_again_at_version_2_and_after_a_restart() -> None:
    rig = rig_of_version_1()
    session = rig.register()
    commands = put(1, b"a"), put(2, b"a", prev_kv=True), delete(3, b"a", prev_kv=True), put(4, b"")
    found = rig.write(*commands, session=session)
    assert found[3].prev_kvs
    assert found[4].fault is not None
    *_, again = rig.run(MoveTo(2), batch(*commands, session=session))
    assert answers(again) == found
    assert rig.write(delete(5, b"none"), session=session)[5].deleted == 0
    rows = answer_rows(rig)
    assert len(rows) == 2
    rig.reload()
    assert answer_rows(rig) == rows
    assert rig.write(*commands, session=session) == found
