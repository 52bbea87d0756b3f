"""The settings of a node: what its cluster must agree on, and what is its own affair.

A setting comes from, in this order of precedence: an argument of the command, an environment variable, the
TOML file, the default. In the environment a field is RAFTSTATE_<FIELD>, a nested one has two underscores
(RAFTSTATE_CLUSTER__HEARTBEAT_MS=20). Whatever is wrong is a `ConfigError` that names where it came from, the
key, what was got and what is allowed.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from raftstate.address import ADDRESS_FORM, NAME_PATTERN, is_loopback, split_address
from raftstate.errors import ConfigError

ENV_PREFIX = "RAFTSTATE_"
METRICS_PORT_OFFSET = 200
"""The port of a node's metrics lies so far above that for clients, unless it is told another one."""
METRICS_OFF = "off"
VOTERS_MAX = 7
"""Each further voter costs every write another copy; etcd's documentation draws the same line."""
MEMBERS_MAX = 14
"""Voters, and as many learners: to take a whole cluster to other machines at once."""
HISTORY_RETENTION_S_MAX = 366 * 86_400
"""A year. Ages are kept in memory and begin anew with each leader that was restarted, so that a much longer
time might never pass; 0 says that nothing is to be forgotten."""


def _checked_address(address: str) -> str:
    try:
        split_address(address)
    except ConfigError:
        # What was got is said beside it, as for every setting.
        raise ValueError(ADDRESS_FORM) from None
    return address


def _checked_metrics_address(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if address != METRICS_OFF:
        # 0 is no port that anyone could be told of, but a node can say which one it became.
        _checked_address(f"{host}:1" if colon and port == "0" else address)
    return address


Address = Annotated[str, AfterValidator(_checked_address)]
MetricsAddress = Annotated[str, AfterValidator(_checked_metrics_address)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberConfig(_Section):
    """A node of the cluster, as it is known at the first start."""

    id: int = Field(ge=1, lt=1 << 63, description="Raft id, unique in the cluster for ever.")
    name: Name = Field(
        description="For people: letters, digits, dot, dash, underscore; unique in the cluster."
    )
    incarnation: int = Field(
        default=1,
        ge=1,
        lt=1 << 63,
        description="Grows when a node is replaced by an empty one of the same id.",
    )
    peer_address: Address = Field(description="host:port at which the other nodes reach it.")
    client_address: Address = Field(description="host:port at which clients reach it.")


class ClusterConfig(_Section):
    """What all nodes of a cluster must agree on."""

    cluster_id: int = Field(ge=1, lt=1 << 63, description="Random, drawn once; keeps two clusters apart.")
    members: tuple[MemberConfig, ...] = Field(
        description="The voters of the first configuration; of a node that joins later, the members as known"
        " when it was added, itself among them. Once a node has data, these say who the members are."
    )
    heartbeat_ms: int = Field(
        default=15,
        ge=1,
        le=10_000,
        description="Between two heartbeats of a leader, in ms; a follower renews its freshness as often.",
    )
    election_timeout_ms: int = Field(
        default=400,
        ge=10,
        le=100_000,
        description="A follower that hears nothing waits for a random time between this and twice this, in"
        " ms, before it campaigns (Raft paper, section 9.3): well above the time of a broadcast, and above"
        " the longest stall of a busy loop.",
    )
    history_retention_s: int = Field(
        default=3_600,
        ge=0,
        le=HISTORY_RETENTION_S_MAX,
        description="How long, at least, what was written can be read as of then, and watched from, in"
        " seconds; what is older is compacted soon after. 0: nothing is, but what clients compact.",
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if not 1 <= len(self.members) <= MEMBERS_MAX:
            raise _fault("members", f"{len(self.members)} members", f"1 to {MEMBERS_MAX}")
        for key in ("id", "name", "peer_address", "client_address"):
            seen = [getattr(member, key) for member in self.members]
            twice = sorted({str(value) for value in seen if seen.count(value) > 1})
            if twice:
                raise _fault(
                    "members", f"{', '.join(twice)} more than once", f"a different {key} for each member"
                )
        if self.election_timeout_ms < 5 * self.heartbeat_ms:
            allowed = f"at least 5 heartbeats ({5 * self.heartbeat_ms} ms)"
            raise _fault("election_timeout_ms", self.election_timeout_ms, allowed)
        return self


class NodeSettings(BaseSettings):
    """Everything that one node needs to start. Made by `load_settings`, or in tests by its constructor."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        validate_default=True,
    )

    config_file: Path | None = Field(default=None, description="The TOML file that the settings come from.")
    name: Name = Field(description="Which of the members this node is.")
    cluster: ClusterConfig = Field(description="What all nodes agree on.")
    data_dir: Path = Field(description="The node's directory. A relative one is relative to the TOML file.")
    bootstrap: bool = Field(
        default=False,
        description="Whether an absent or empty data directory may be created. For the very first start only:"
        " a node that lost its disk must not vote again under its old identity.",
    )
    join: bool = Field(
        default=False,
        description="Whether this node was added to a cluster that exists (`raftstate member add`): it starts"
        " empty and is sent what the cluster stores.",
    )
    listen_client: Address | None = Field(
        default=None, description="host:port that clients are served on. None: the member's client_address."
    )
    listen_peer: Address | None = Field(
        default=None, description="host:port that peers are served on. None: the member's peer_address."
    )
    listen_metrics: MetricsAddress | None = Field(
        default=None,
        description="host:port of the HTTP port for /metrics, /livez and /readyz; port 0: a free one, which"
        ' the log and `raftstate status` tell; "off": no such port. None: the address that clients are served'
        f" on, with a port {METRICS_PORT_OFFSET} higher, if that is free; an embedded node has none then.",
    )
    advertise: Address | None = Field(
        default=None,
        description="host:port told to clients, where it differs from the member's client_address. The"
        " cluster records it.",
    )
    advertise_peer: Address | None = Field(
        default=None,
        description="host:port told to the other nodes, where it differs from the member's peer_address. The"
        " cluster records it.",
    )
    peer_addresses: Mapping[str, Address] = Field(
        default_factory=dict,
        description="Member name -> host:port by which this node reaches it, in place of its peer_address.",
    )
    insecure: bool = Field(
        default=False,
        description="Listen beyond loopback although connections are neither encrypted nor authenticated.",
    )
    log_map_bytes: int = Field(
        default=16 << 30,
        ge=16 << 20,
        description="Address space of the log's LMDB environment, in bytes; the file is sparse, and the"
        " size applies from the next start.",
    )
    state_map_bytes: int = Field(
        default=64 << 30,
        ge=16 << 20,
        description="Address space of the state's LMDB environment, in bytes; the file is sparse. A larger"
        " size applies from the next start, a smaller one never.",
    )
    disk_soft_floor_bytes: int | None = Field(
        default=None,
        ge=0,
        description="With less room than this, in bytes, on the data directory's disk (free pages of the"
        " files count, too), a leader takes no puts, transactions that put, or new leases; what frees room"
        " goes on. None: 1 GiB, or a fifth of a small disk. 0: no such floor.",
    )
    disk_hard_floor_bytes: int | None = Field(
        default=None,
        ge=0,
        description="With less room than this, in bytes, only reads go on, and leadership is handed over:"
        " what is left is for the log's terms and votes, and for what is under way. None: 256 MiB, or a"
        " tenth of a small disk. 0: no such floor.",
    )
    disk_reserve_bytes: int | None = Field(
        default=None,
        ge=0,
        le=1 << 30,
        description="A file of this size, in bytes, is kept in the data directory, and let go of when the"
        " disk is full, so that votes can still be written. None: 16 MiB, or a hundredth of a small disk,"
        " and nothing in an embedded node. 0: none.",
    )
    quota_bytes: int | None = Field(
        default=None,
        ge=1 << 20,
        description="The most that the state's rows may take, in bytes, with their history and all that"
        " stands beside them; over it a leader takes no puts, transactions that put, or new leases. None: the"
        " size of its map, but for an eighth, at most 1 GiB, that replacing rows takes for a while.",
    )
    log_margin_entries: int = Field(
        default=50_000,
        ge=1,
        description="How many log entries are kept behind the last checkpoint for followers that were away:"
        " one that is further behind is sent a snapshot. A start does not wait for them to be verified:"
        " the node does that as soon as it runs.",
    )
    log_margin_bytes: int = Field(
        default=256 << 20,
        ge=1 << 20,
        description="How many bytes of log entries are kept so at most, in bytes; a quarter of log_map_bytes"
        " if that is less.",
    )
    defragment_bytes_min: int = Field(
        default=1 << 30,
        ge=0,
        description="A state file larger than this, in bytes, is rewritten by itself when half of it is free."
        " 0: never by itself.",
    )
    scrub_rate_bytes_per_s: int = Field(
        default=16 << 20,
        ge=0,
        description="How fast what is on disk is read again and verified, in bytes a second; a row counts for"
        " 1 KiB more than it has. It takes some percent of a processor. 0: not at all, but for"
        " what a start has left unverified of the log.",
    )
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="The least that is logged: debug, info, warning or error.",
    )
    log_format: str = Field(
        default="text",
        pattern="^(text|json)$",
        description="How it is logged: text, for people, or json, an object a line.",
    )

    @field_validator("data_dir")
    @classmethod
    def _not_empty(cls, value: Path) -> Path:
        if value == Path():
            raise ValueError("the path of a directory of its own")
        return value

    @model_validator(mode="after")
    def _is_a_member(self) -> Self:
        names = [member.name for member in self.cluster.members]
        if self.name not in names:
            raise _fault("name", self.name, f"the name of a member ({', '.join(names)})")
        if len(names) > VOTERS_MAX and not self.join:
            raise _fault("cluster.members", f"{len(names)} members", f"1 to {VOTERS_MAX} in a new cluster")
        return self

    @model_validator(mode="after")
    def _listens_where_it_may(self) -> Self:
        listeners = {"listen_client": self.client_listener, "listen_peer": self.peer_listener}
        if self.listen_metrics not in (None, METRICS_OFF):
            listeners["listen_metrics"] = self.listen_metrics
        for key, address in listeners.items():
            host = address.rpartition(":")[0].strip("[]")
            if not self.insecure and not is_loopback(host):
                raise _fault(
                    key,
                    address,
                    "a loopback address, since without TLS (there is none yet) anyone who reaches the port"
                    " could use it; give --insecure (insecure = true) to listen there nevertheless",
                )
        return self

    @model_validator(mode="after")
    def _leaves_room(self) -> Self:
        soft, hard = self.disk_soft_floor_bytes, self.disk_hard_floor_bytes
        if soft is not None and hard is not None and hard > soft:
            raise _fault("disk_hard_floor_bytes", hard, f"at most disk_soft_floor_bytes ({soft})")
        if self.quota_bytes is not None and self.quota_bytes > self.state_map_bytes:
            raise _fault("quota_bytes", self.quota_bytes, f"at most state_map_bytes ({self.state_map_bytes})")
        return self

    @property
    def member(self) -> MemberConfig:
        """This node, as the cluster knows it."""
        return next(member for member in self.cluster.members if member.name == self.name)

    @property
    def node_id(self) -> int:
        """This node's Raft id."""
        return self.member.id

    @property
    def data_path(self) -> Path:
        """`data_dir`, absolute."""
        folder = self.config_file.parent if self.config_file else Path()
        return (folder / self.data_dir).absolute()

    @property
    def client_listener(self) -> str:
        """host:port that clients are served on."""
        return self.listen_client or self.member.client_address

    @property
    def peer_listener(self) -> str:
        """host:port that peers are served on."""
        return self.listen_peer or self.member.peer_address

    @property
    def metrics_listener(self) -> tuple[str, int] | None:
        """(host, port) of the HTTP port; port 0: a free one. None: there is to be none."""
        if self.listen_metrics == METRICS_OFF:
            return None
        if self.listen_metrics is not None:
            host, _, port = self.listen_metrics.rpartition(":")
            return host.strip("[]"), int(port)
        host, client_port = split_address(self.client_listener)
        port_number = client_port + METRICS_PORT_OFFSET
        return (host, port_number) if port_number <= 65_535 else None

    @property
    def client_address(self) -> str:
        """host:port that clients are told."""
        return self.advertise or self.member.client_address

    @property
    def own_peer_address(self) -> str:
        """host:port that the other nodes are told."""
        return self.advertise_peer or self.member.peer_address

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments come before the environment, and that before the file named by `config_file`."""
        file = cast(InitSettingsSource, init_settings).init_kwargs.get("config_file")
        if file is None:
            return init_settings, env_settings
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, toml_file=file)


def load_settings(config_file: Path | None, arguments: Mapping[str, object] | None = None) -> NodeSettings:
    """Read and check the settings of a node.

    Args:
        config_file: a TOML file, or None for arguments and environment alone.
        arguments: what the command line gave: field -> value. A None is as if it was not given.

    Raises:
        ConfigError: the file can't be read, or a setting is unknown, missing or not allowed. `field` is
            the dotted key; `detail` holds file, key, got and allowed of the first fault; the message tells
            all.
    """
    given = {key: value for key, value in (arguments or {}).items() if value is not None}
    if config_file is not None:
        given["config_file"] = config_file
        _check_readable(config_file)
    try:
        return NodeSettings(**given)  # type: ignore[arg-type]
    except ValidationError as error:
        raise _config_error(error, config_file, given) from None
    except SettingsError as error:
        # Of the environment: a table of settings that is no JSON.
        raise ConfigError(
            f"{error}; give a JSON object in an environment variable that stands for several settings, for "
            'example RAFTSTATE_PEER_ADDRESSES=\'{"n1": "127.0.0.1:7101"}\', or unset it',
            field="environment",
        ) from None


def dump_toml(values: Mapping[str, object]) -> str:
    """Return a TOML document; `values` holds strings, numbers, booleans, mappings, lists of mappings."""
    return "\n".join(_toml_lines(values, ())) + "\n"


def _check_readable(file: Path) -> None:
    try:
        tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"can't read the configuration file {file}: {error.strerror}", detail={"file": str(file)}
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}", detail={"file": str(file)}) from error


def _fault(key: str, got: object, allowed: str) -> PydanticCustomError:
    """Return what a check of several fields together raises: it alone knows which field is at fault."""
    return PydanticCustomError("several_fields", "{allowed}", {"key": key, "got": got, "allowed": allowed})


def _config_error(error: ValidationError, file: Path | None, arguments: Mapping[str, object]) -> ConfigError:
    faults: list[str] = []
    detail: dict[str, object] = {}
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        allowed, got = item["msg"].removeprefix("Value error, "), _shown(item["input"])
        if item["type"] == "several_fields":
            location.append(item["ctx"]["key"])
            got = str(item["ctx"]["got"])
        elif item["type"] == "missing":
            got, allowed = "nothing", "it must be given"
        elif item["type"] == "extra_forbidden":
            allowed = "there is no such setting"
        key = ".".join(location)
        faults.append(f"{_source(location, file, arguments)}: {key}: got {got}; allowed: {allowed}")
        detail = detail or {"file": str(file) if file else None, "key": key, "got": got, "allowed": allowed}
    return ConfigError("\n".join(faults), field=str(detail["key"]), detail=detail)


def _source(location: list[str], file: Path | None, arguments: Mapping[str, object]) -> str:
    if location[0] in arguments:
        return "argument"
    name = ENV_PREFIX + "__".join(location).upper()
    if name in os.environ:
        return f"environment variable {name}"
    return str(file) if file else "settings"


def _shown(value: object) -> str:
    text = (
        repr(value)
        if isinstance(value, str | int | float | bool | None | list | tuple)
        else type(value).__name__
    )
    return text if len(text) <= 80 else text[:77] + "..."


def _toml_lines(values: Mapping[str, object], path: tuple[str, ...]) -> Iterator[str]:
    nested: list[tuple[str, Mapping[str, object] | list[Mapping[str, object]]]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            nested.append((key, value))
        elif isinstance(value, list | tuple):
            nested.append((key, list(value)))
        elif value is not None:
            # JSON's strings, numbers and booleans are TOML's too, but for a bare DEL, which TOML forbids.
            yield f"{key} = {json.dumps(value)}".replace("\x7f", "\\u007f")
    for key, value in nested:
        name = ".".join((*path, key))
        for table in value if isinstance(value, list) else [value]:
            yield ""
            yield f"[[{name}]]" if isinstance(value, list) else f"[{name}]"
            yield from _toml_lines(table, (*path, key))
