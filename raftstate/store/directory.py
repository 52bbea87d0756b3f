"""A node's data directory: whose it is, and that only one process uses it.

    identity    cluster, node, incarnation, name, format version: JSON, with a checksum
    lock        an exclusive flock for as long as the node runs; holds its process id
    creating    there while the directory is being filled for the first time
    recovering  there while another cluster is made of what the directory holds (`offline.recover`)
    eio         there once the disk failed a write of the log: what the page cache shows of it proves nothing
                any more, and it must be copied (`store.log_renewal`) before it is opened again

May live here: these four files. The log and the state in the directory are `store.log`'s and `store.state`'s.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

import msgspec
import xxhash

from raftstate.errors import DataLossError, FailedPreconditionError, WrongClusterError
from raftstate.store.files import disk_failure, durable_remove, durable_write, fsync_directory, remove

FORMAT_VERSION = 1
"""The newest format of a data directory that this version of raftstate knows."""

_IDENTITY, _LOCK, _CREATING, _EIO = "identity", "lock", "creating", "eio"
RECOVERING = "recovering"
_REPLACE = (
    "Nobody can tell whose data these are: have the node replaced (`raftstate member replace`), and delete "
    "them"
)
_LEFT_BY_CREATION = frozenset({_LOCK, _CREATING, _CREATING + ".new"})


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """Whose data a directory holds. The incarnation tells a node from one it replaced under its id."""

    cluster_id: int
    node_id: int
    incarnation: int
    name: str
    format_version: int = FORMAT_VERSION


class _Sealed(msgspec.Struct, frozen=True):
    """The identity file: `checksum` is the xxh3-64 of `identity` as it stands in the file, in hexadecimal."""

    identity: msgspec.Raw
    checksum: str


class _Version(msgspec.Struct, frozen=True):
    format_version: int


class DataDirectory:
    """A data directory that this process has locked. Made by `create` or `open`; `close` unlocks it."""

    def __init__(self, path: Path, identity: Identity, lock: int) -> None:
        self.path = path
        self.identity = identity
        self._lock = lock
        _locked.add(self)

    @classmethod
    def create(
        cls, path: Path, identity: Identity, populate: Callable[[Path], None] | None = None
    ) -> DataDirectory:
        """Make and lock a new data directory.

        Args:
            path: a directory that is empty or does not exist; or one whose creation was cut short, which
                starts over.
            identity: whose it will be. It is written last: with it, everything that `populate` made is there.
            populate: makes the log and the state in the directory, durably.

        Raises:
            FailedPreconditionError: the directory is in use, or holds something already.
            StorageError: the disk failed.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            _check_free(path)
            lock = _take_lock(path)
        except OSError as error:
            raise disk_failure("making a data directory", path, error) from error
        try:
            # Again, now that nobody else can be filling it.
            _check_free(path)
            durable_write(path / _CREATING, b"")
            _clear(path)
            if populate is not None:
                populate(path)
            durable_write(path / _IDENTITY, encode_identity(identity))
            durable_remove(path / _CREATING)
            fsync_directory(path.parent)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, identity, lock)

    @classmethod
    def open(
        cls, path: Path, expected: Identity | None = None, *, resume_recovery: bool = False
    ) -> DataDirectory:
        """Lock an existing data directory.

        Args:
            path: the directory.
            expected: whose it must be; None takes it as it is. The name may differ: it is a label. The
                incarnation may be a later one: the cluster gave it to this very directory.
            resume_recovery: whether it may be one whose recovery was begun, and not brought to its end.

        Raises:
            WrongClusterError: it belongs to another cluster.
            FailedPreconditionError: it is no data directory, is in use, belongs to another node or
                incarnation, or was written by a newer raftstate.
            DataLossError: its identity is damaged.
            StorageError: the disk failed.
        """
        if not (path / _IDENTITY).exists():
            raise FailedPreconditionError(
                f"{path} is no raftstate data directory: it has no file named {_IDENTITY!r}"
            )
        try:
            lock = _take_lock(path)
        except OSError as error:
            raise disk_failure("locking a data directory", path, error) from error
        try:
            identity = decode_identity(path / _IDENTITY)
            if expected is not None:
                _check_identity(path, identity, expected)
            if (path / RECOVERING).exists() and not resume_recovery:
                raise FailedPreconditionError(
                    f"a recovery of {path} was begun, and was cut short: bring it to its end by `raftstate "
                    "recover DIR --accept-loss`"
                )
            # Not durably: where there is an identity, a marker that comes back means nothing.
            remove(path / _CREATING)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, identity, lock)

    def close(self) -> None:
        """Unlock the directory; closing twice does nothing."""
        if self._lock >= 0:
            # A forked child may still have the descriptor, and with it the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def _leave_to_parent(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


_locked: weakref.WeakSet[DataDirectory] = weakref.WeakSet()


def _in_child() -> None:
    """A lock is its process's own: a child must not keep it when its parent has died."""
    for directory in list(_locked):
        directory._leave_to_parent()


os.register_at_fork(after_in_child=_in_child)


def mark_eio(path: Path, reason: str) -> None:
    """Note durably that the disk failed a write of the log, so that the next start does not trust its file.

    Args:
        path: the data directory.
        reason: what failed, for those who read the marker.

    Raises:
        StorageError: the marker could not be written either.
    """
    durable_write(path / _EIO, reason.encode())


def read_eio(path: Path) -> str | None:
    """What `mark_eio` noted in the data directory `path`, or None.

    Raises:
        StorageError: the marker can't be read.
    """
    try:
        return (path / _EIO).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise disk_failure("reading a marker", path / _EIO, error) from error


def clear_eio(path: Path) -> None:
    """Take the marker away, durably: the log goes on in another file, and that one was synced.

    Raises:
        StorageError: it can't be removed.
    """
    durable_remove(path / _EIO)


def _check_free(path: Path) -> None:
    names = {name.name for name in path.iterdir()}
    if _IDENTITY in names:
        raise FailedPreconditionError(f"{path} is a data directory already; open it, or choose another one")
    if _CREATING not in names and names - _LEFT_BY_CREATION:
        raise FailedPreconditionError(
            f"{path} is not empty (it holds {', '.join(sorted(names)[:5])}): "
            f"choose an empty directory for a new node"
        )


def _clear(path: Path) -> None:
    """Remove what a creation that was cut short has left; nothing in it was ever acknowledged."""
    for entry in path.iterdir():
        if entry.name in _LEFT_BY_CREATION:
            continue
        try:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        except OSError as error:
            raise disk_failure("clearing an unfinished data directory", entry, error) from error


def _take_lock(path: Path) -> int:
    lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise FailedPreconditionError(
                f"{path} is in use by process {holder or 'unknown'}; stop it first", detail={"pid": holder}
            ) from error
        raise
    return lock


def encode_identity(identity: Identity) -> bytes:
    """Return the content of an identity file."""
    body = msgspec.json.encode(identity)
    return msgspec.json.encode(_Sealed(msgspec.Raw(body), xxhash.xxh3_64_hexdigest(body))) + b"\n"


def decode_identity(path: Path) -> Identity:
    """Read an identity file.

    Raises:
        FailedPreconditionError: it is of a newer raftstate.
        DataLossError: it is damaged.
        StorageError: it can't be read.
    """
    try:
        sealed = msgspec.json.decode(path.read_bytes(), type=_Sealed)
        body = bytes(sealed.identity)
        if xxhash.xxh3_64_hexdigest(body) != sealed.checksum:
            raise DataLossError(
                f"the identity file {path} is damaged: it does not match its checksum. {_REPLACE}"
            )
        version = msgspec.json.decode(body, type=_Version).format_version
        if version > FORMAT_VERSION:
            raise FailedPreconditionError(
                f"{path.parent} was written by a newer raftstate "
                f"(format {version}, this one knows {FORMAT_VERSION}): use that version"
            )
        return msgspec.json.decode(body, type=Identity)
    except msgspec.DecodeError as error:
        raise DataLossError(f"the identity file {path} is damaged: {error}. {_REPLACE}") from error
    except OSError as error:
        raise disk_failure("reading the identity", path, error) from error


def _check_identity(path: Path, found: Identity, expected: Identity) -> None:
    if found.cluster_id != expected.cluster_id:
        raise WrongClusterError(
            f"{path} belongs to cluster {found.cluster_id:#x}, "
            f"and this node is of cluster {expected.cluster_id:#x}"
        )
    got, wanted = (found.node_id, found.incarnation), (expected.node_id, expected.incarnation)
    if found.node_id != expected.node_id or found.incarnation < expected.incarnation:
        raise FailedPreconditionError(
            f"{path} belongs to node {got[0]}, incarnation {got[1]} ({found.name!r}); "
            f"this one is node {wanted[0]}, incarnation {wanted[1]} ({expected.name!r})"
        )
