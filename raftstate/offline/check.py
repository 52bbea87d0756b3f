"""`raftstate check`: everything in a stopped node's directory, without changing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from raftstate.config import NodeSettings, load_settings
from raftstate.errors import FailedPreconditionError
from raftstate.machine.verify import check_state
from raftstate.store.check import Report, check_directory


def check(folder: Path, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Check a stopped node.

    Args:
        folder: of the node, or its data directory.
        tell: is told, now and then, what is looked at.

    Raises:
        FailedPreconditionError: there is no node's data, or the node runs.
        ConfigError: the node's settings can't be read.
        StorageError: something can't be read.
    """
    data, _ = find(folder)
    return check_directory(data, check_state, tell)


def find(folder: Path) -> tuple[Path, NodeSettings | None]:
    """Return the data directory that is meant by a folder, and the settings of its node if they stand there,
    or above it.

    Raises:
        FailedPreconditionError: there is no such folder.
        ConfigError: the settings can't be read.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise FailedPreconditionError(
            f"there is no directory {folder}; give a node's folder, or its data folder"
        )
    if (folder / "node.toml").exists():
        settings = load_settings(folder / "node.toml")
        return settings.data_path, settings
    if (folder / "data").is_dir() and not (folder / "identity").exists():
        return folder / "data", None
    above = folder.parent / "node.toml"
    if above.exists():
        settings = load_settings(above)
        if settings.data_path == folder:
            return folder, settings
    return folder, None
