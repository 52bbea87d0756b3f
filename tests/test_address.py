from __future__ import annotations

import pytest

from raftstate.address import ADDRESS_FORM, is_loopback, split_address
from raftstate.errors import ConfigError


@pytest.mark.parametrize(
    "address",
    ["", ":1", "a", "a:", "a:b", "a:0", "a:65536", "::1:80", "a:-1", "a:²", "[]:1", "a/b:1", "u@a:1"],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split_address(address)
    assert caught.value.message == f"{address!r} is not {ADDRESS_FORM}"


def test_addresses_are_split() -> None:
    assert split_address("a.example:80") == ("a.example", 80)
    assert split_address("127.0.0.1:1") == ("127.0.0.1", 1)
    assert split_address("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_hosts_that_only_their_own_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.7", "example.org", "localhost.example.org"])
def test_every_other_host_counts_as_reachable(host: str) -> None:
    assert not is_loopback(host)
