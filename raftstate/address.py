"""host:port, and the names of nodes, as settings, URLs and links write them. Pure functions; no name is
looked up here."""

from __future__ import annotations

import ipaddress

from raftstate.errors import ConfigError

ADDRESS_FORM = "host:port with a port from 1 to 65535 (IPv6 as [address]:port)"
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
NAME_FORM = "1 to 63 letters, digits, dots, dashes and underscores, beginning with a letter or digit"
_NOT_IN_A_HOST = frozenset("/@?#, ")


def split_address(address: str) -> tuple[str, int]:
    """Return (host, port) of "host:port" or "[ipv6]:port"; the host comes without brackets.

    Raises `ConfigError` when it is of neither form.
    """
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    port_is_possible = port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535
    if not colon or not host or not port_is_possible or not _NOT_IN_A_HOST.isdisjoint(host):
        raise ConfigError(f"{address!r} is not {ADDRESS_FORM}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Return host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Return whether a host can be reached from its own machine only.

    Of names only localhost counts: what another one resolves to may change after this was asked.
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
