"""Where the cluster is: `[raftstate://]host:port[,host:port...]`, or `embedded:DIR[?listen=HOST:PORT]`."""

from __future__ import annotations

import os

from raftstate.address import split_address
from raftstate.errors import ConfigError, InvalidArgumentError

ENVIRONMENT_VARIABLE = "RAFTSTATE_URL"
URL_DEFAULT = "raftstate://127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"
"""Where `raftstate dev` serves."""

EMBEDDED = "embedded:"
"""The scheme of a node within the process."""

_SCHEME = "raftstate://"
_FORM = (
    "a URL is [raftstate://]host:port[,host:port...], for example raftstate://127.0.0.1:7001,127.0.0.1:7002,"
    " or embedded:DIR, for example embedded:./state"
)


def endpoints_of(url: str | None) -> tuple[str, ...]:
    """Return the host:port endpoints of a URL, in its order, each once.

    That of an embedded node is one endpoint, with its directory made absolute: `embedded:/path`.

    None means the environment variable RAFTSTATE_URL, else the three nodes of `raftstate dev`. Raises
    `ConfigError` that says what is wrong, and `InvalidArgumentError` for another type.
    """
    source = "URL"
    if url is not None and not isinstance(url, str):
        raise InvalidArgumentError(f"the URL must be a str, got {type(url).__name__}; {_FORM}", field="url")
    if url is None:
        url = os.environ.get(ENVIRONMENT_VARIABLE) or URL_DEFAULT
        source = f"URL (from the environment variable {ENVIRONMENT_VARIABLE})"
    if url.startswith(EMBEDDED):
        return (_embedded(url, source),)
    rest = url[len(_SCHEME) :] if url[: len(_SCHEME)].lower() == _SCHEME else url
    if "://" in rest:
        raise ConfigError(f"{source} {url!r} has an unknown scheme; {_FORM}", field="url")
    endpoints = [part.strip() for part in rest.removesuffix("/").split(",")]
    for endpoint in endpoints:
        try:
            split_address(endpoint)
        except ConfigError as error:
            raise ConfigError(f"{source} {url!r}: {error.message}; {_FORM}", field="url") from None
    return tuple(dict.fromkeys(endpoints))


def _embedded(url: str, source: str) -> str:
    directory, asked, query = url.removeprefix(EMBEDDED).partition("?")
    name, _, listen = query.partition("=")
    if not directory or "\0" in url or directory.startswith("//") or (asked and name != "listen"):
        raise ConfigError(
            f"{source} {url!r} is not embedded:DIR or embedded:DIR?listen=HOST:PORT, for example"
            " embedded:./state",
            field="url",
        )
    if asked:
        try:
            split_address(listen)
        except ConfigError as error:
            raise ConfigError(f"{source} {url!r}: {error.message}", field="url") from None
    path = os.path.realpath(os.path.expanduser(directory))
    return EMBEDDED + path + (f"?listen={listen}" if asked else "")
