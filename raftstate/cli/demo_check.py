"""What `raftstate demo` checks at its end, with nothing of the worker's code but what it wrote."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

import msgspec

from raftstate.errors import DataLossError, OutOfRangeError
from raftstate.state import Workflow

_CHUNK_BYTES = 1 << 20


class Acknowledged(msgspec.Struct, frozen=True):
    """A line of the ledger."""

    id: str
    revision: int
    checksum: str


def read_ledger(path: Path) -> list[Acknowledged]:
    """Return what was acknowledged. A last line without its end was being written when the worker was
    killed."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [msgspec.json.decode(line, type=Acknowledged) for line in lines]


def lost_checkpoints(workflow: Workflow, ledger: list[Acknowledged]) -> list[str]:
    """Return a line for each acknowledged checkpoint that is not restored as it was acknowledged."""
    lost = []
    for noted in ledger:
        try:
            restored = workflow.restore(noted.id)
        except (OutOfRangeError, DataLossError) as error:
            lost.append(str(error))
            continue
        found = restored.checkpoint if restored is not None else None
        if found is None or (found.revision, found.checksum) != (noted.revision, noted.checksum):
            lost.append(f"checkpoint {noted.id} was acknowledged with {noted}, and is stored as {found}")
    return lost


def independent_manifest(root: Path, left_out: frozenset[bytes]) -> dict[bytes, bytes]:
    """Return path -> SHA-256 of every readable regular file under `root`, found and read anew."""
    manifest = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        folders[:] = [name for name in folders if name not in left_out]
        for name in files:
            path = os.path.join(folder, name)
            if name not in left_out and (digest := _sha256(path)) is not None:
                manifest[os.path.relpath(path, os.fsencode(root))] = digest
    return manifest


def differences(manifest: dict[bytes, bytes], expected: dict[bytes, bytes]) -> list[str]:
    """Return a line for each path on which two manifests differ."""
    found = []
    for path in sorted(manifest.keys() | expected.keys()):
        name = os.fsdecode(path)
        if path not in manifest:
            found.append(f"{name!r} is missing from the manifest")
        elif path not in expected:
            found.append(f"{name!r} is in the manifest only")
        elif manifest[path] != expected[path]:
            found.append(f"{name!r} has another digest")
    return found


def _sha256(path: bytes) -> bytes | None:
    """Return a file's SHA-256, or None for what is no regular file or can't be read."""
    digest = hashlib.sha256()
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError:
        return None
    return digest.digest()
