from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftstate.errors import DataLossError
from raftstate.state.delta import compress, decompress


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_content_comes_back_whatever_the_prefix(content: bytes, prefix: bytes) -> None:
    assert decompress(compress(content, prefix), len(content), prefix) == content


def test_content_like_its_prefix_takes_few_bytes() -> None:
    prefix = b"".join(b"%d: %x\n" % (number, number * 2654435761) for number in range(5_000))
    assert len(compress(prefix + b"one line more", prefix)) < 60


def test_content_of_another_size_is_refused_before_it_is_made() -> None:
    with pytest.raises(DataLossError, match="holds 1000 bytes, not 999"):
        decompress(compress(b"x" * 1_000), 999)


def test_damaged_bytes_are_refused() -> None:
    data = compress(bytes(range(256)))
    for damaged in (data[:-1], b"", b"junk" + data):
        with pytest.raises(DataLossError):
            decompress(damaged, 256)
