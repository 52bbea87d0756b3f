from __future__ import annotations

import pytest

from raftstate.client.url import endpoints_of
from raftstate.errors import ConfigError, InvalidArgumentError


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("raftstate://127.0.0.1:7001,127.0.0.1:7002", ("127.0.0.1:7001", "127.0.0.1:7002")),
        ("RaftState://n1:1", ("n1:1",)),
        ("n1:1", ("n1:1",)),
        ("n1:1, n2:65535/", ("n1:1", "n2:65535")),
        ("[::1]:7001", ("[::1]:7001",)),
        ("n1:1,n2:1,n1:1", ("n1:1", "n2:1")),
    ],
)
def test_a_url_names_its_endpoints_in_order_each_once(url: str, endpoints: tuple[str, ...]) -> None:
    assert endpoints_of(url) == endpoints


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "'' is not host:port"),
        ("n1:1,,n2:1", "'' is not host:port"),
        ("n1", "'n1' is not host:port"),
        (":7001", "':7001' is not host:port"),
        ("::1:7001", "'::1:7001' is not host:port"),
        ("n1:1,n2:0", "'n2:0' is not host:port with a port from 1 to 65535 (IPv6 as [address]:port)"),
        ("n1/a:1", "'n1/a:1' is not host:port"),
        ("http://n1:1", "has an unknown scheme"),
    ],
)
def test_a_bad_url_is_refused_with_what_is_wrong_and_what_is_right(url: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        endpoints_of(url)
    assert says in caught.value.message
    assert repr(url) in caught.value.message
    assert "[raftstate://]host:port[,host:port...]" in caught.value.message


@pytest.mark.parametrize("url", [5, b"n1:1"])
def test_what_is_no_text_is_no_url(url: object) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the URL must be a str, got {type(url).__name__}"):
        endpoints_of(url)  # type: ignore[arg-type]


def test_without_a_url_the_environment_names_the_cluster_and_then_dev_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAFTSTATE_URL", "n9:9")
    assert endpoints_of(None) == ("n9:9",)
    monkeypatch.delenv("RAFTSTATE_URL")
    assert endpoints_of(None) == ("127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003")


def test_a_bad_url_from_the_environment_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAFTSTATE_URL", "n9")
    with pytest.raises(ConfigError, match="from the environment variable RAFTSTATE_URL"):
        endpoints_of(None)
