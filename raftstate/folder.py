"""The folder of one node: its settings beside its data.

    FOLDER/node.toml    the node's settings, the cluster's id among them
    FOLDER/data/        the node's own directory (`store.directory`)
    FOLDER/new          there until the data were made: only then may a node with such settings start empty

The settings of a node that joined later are written by `raftstate member add`, and by `member replace` for
one that lost its data.

The folder itself is locked (flock) while node.toml is made.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from raftstate.config import ClusterConfig, MemberConfig, NodeSettings, dump_toml, load_settings
from raftstate.errors import ConfigError, FailedPreconditionError, StorageError

HOST = "127.0.0.1"
CLIENT_PORT_DEFAULT = 7001
"""Where a client without a URL looks (`client.url`)."""
PEER_PORT_OFFSET = 100
"""The peer port of a node lies so far above its client port, where the ports are not free ones."""

_SHOWN_STRANGERS = 3


def settings_alone(folder: Path, arguments: Mapping[str, object]) -> NodeSettings:
    """Return the settings of the node in a folder; one that is empty or absent becomes a cluster of one node.

    Args:
        folder: of the node.
        arguments: settings that come before those of the file.

    Raises:
        FailedPreconditionError: the folder holds files of somebody else.
        ConfigError: it holds data without settings, or settings that can't be read or are not allowed.
        StorageError: the disk failed.
    """
    file = folder / "node.toml"
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, not the folder of a node; give a directory", field="data")
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with _only_maker(folder):
                if not file.exists():
                    _make(folder)
    except OSError as error:
        raise StorageError(f"can't make the folder of a node in {folder}: {error.strerror}") from error
    return settings_of(file, arguments)


def settings_of(file: Path, arguments: Mapping[str, object]) -> NodeSettings:
    """Return the settings in a file; beside it may stand the marker of a node that may start empty.

    Raises ConfigError: they can't be read or are not allowed.
    """
    if (file.parent / "new").exists():
        arguments = {**arguments, "bootstrap": True}
    return load_settings(file, arguments)


def data_made(settings: NodeSettings) -> None:
    """Note that the node's data are there: from now on it never starts without them.

    Raises `StorageError` when the disk failed.
    """
    if settings.config_file is None:
        return
    marker = settings.config_file.parent / "new"
    try:
        if marker.exists():
            marker.unlink()
            _fsync(marker.parent)
    except OSError as error:
        raise StorageError(f"can't remove the marker {marker}: {error.strerror}") from error


LOG_FOLDER = "log"
"""In the node's directory: where the log's environment is."""


def new_cluster_id() -> int:
    """Return random bits that no other cluster has; never 0."""
    return secrets.randbits(62) + 1


def check_unused(folder: Path, own: Collection[str]) -> None:
    """Check that nobody else's files stand in a folder that is to be filled.

    Args:
        folder: it need not exist.
        own: names that raftstate may have left there.

    Raises:
        FailedPreconditionError: it holds something else.
    """
    if not folder.exists():
        return
    # The root of a file system of its own has a lost+found.
    strangers = sorted({entry.name for entry in folder.iterdir()} - {*own, "lost+found"})
    if strangers:
        shown = ", ".join(strangers[:_SHOWN_STRANGERS]) + (
            ", ..." if len(strangers) > _SHOWN_STRANGERS else ""
        )
        raise FailedPreconditionError(
            f"{folder} holds what is not part of a new cluster ({shown}); give an empty directory, or one"
            " that does not exist yet"
        )


def check_joinable(folder: Path) -> None:
    """Check that a node that joins a cluster can have its folder here: there may be settings, but no data.

    Raises:
        FailedPreconditionError: there are data, or files of somebody else.
    """
    data = folder / "data"
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise FailedPreconditionError(
            f"{folder} holds the data of a node already; give an empty directory, or one that does not exist "
            "yet. If these data are given up, move them away first"
        )
    check_unused(folder, ("data", "new", "node.log", "node.toml", "node.toml.new"))


def write_joiner(folder: Path, name: str, config: ClusterConfig) -> Path:
    """Write FOLDER/node.toml for a node that was added to a cluster, or replaced, and allow it to start
    empty.

    Args:
        folder: of the node; checked by `check_joinable`.
        name: of the node, one of the members of `config`.
        config: with the members as they are now.

    Returns the path of node.toml. Raises `StorageError` when the disk failed.
    """
    try:
        # The marker comes last: beside the settings of the node that is replaced it would let that one start
        # empty.
        (folder / "new").unlink(missing_ok=True)
        file = write_node_file(folder, name, config, join=True)
        (folder / "new").touch()
        _fsync(folder)
    except OSError as error:
        raise StorageError(f"can't make the folder of a node in {folder}: {error.strerror}") from error
    return file


def write_node_file(
    folder: Path,
    name: str,
    config: ClusterConfig,
    *,
    join: bool = False,
    listen_metrics: str | None = None,
) -> Path:
    """Write FOLDER/node.toml for a node whose data stand in FOLDER/data; return its path.

    Args:
        folder: of the node.
        name: of the node.
        config: of its cluster.
        join: it is not one of those that make the cluster.
        listen_metrics: the setting of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "node.toml"
    fresh = folder / "node.toml.new"
    settings: dict[str, object] = {"name": name, "data_dir": "data"}
    if join:
        settings["join"] = True
    if listen_metrics is not None:
        settings["listen_metrics"] = listen_metrics
    content = dump_toml({**settings, "cluster": config.model_dump()})
    # Durably: it holds the cluster's id, without which the data beside it can't be opened again.
    with fresh.open("w", encoding="utf-8") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(file)
    _fsync(folder)
    return file


def _make(folder: Path) -> None:
    if (folder / "data").exists():
        raise ConfigError(
            f"{folder} holds a node's data but no node.toml; restore it, or give --config", field="data"
        )
    check_unused(folder, ("node.toml.new", "new"))
    # Before the settings: a crash right after them must not look like data that were lost.
    (folder / "new").touch()
    member = MemberConfig(
        id=1,
        name="n1",
        client_address=f"{HOST}:{CLIENT_PORT_DEFAULT}",
        peer_address=f"{HOST}:{CLIENT_PORT_DEFAULT + PEER_PORT_OFFSET}",
    )
    write_node_file(folder, member.name, ClusterConfig(cluster_id=new_cluster_id(), members=(member,)))


@contextmanager
def _only_maker(folder: Path) -> Iterator[None]:
    """Two processes that make settings at once would each go on with its own."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
