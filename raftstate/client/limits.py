"""What a request may hold, checked before anything is sent.

The numbers are the server's; it checks them again. Checked here, a bad argument fails at the line that gave
it, and can't hold up a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from raftstate.errors import InvalidArgumentError

KEY_BYTES_MAX = 480
VALUE_BYTES_MAX = 8 << 20
BATCH_COMMANDS_MAX = 512
BATCH_BYTES_MAX = 1 << 20
"""A batch may be larger when it holds a single command."""
SESSION_WINDOW = 4_096
"""How far a serial may lie above its session's floor."""
MESSAGE_BYTES_MAX = 20 << 20
COMMAND_BYTES_MAX = VALUE_BYTES_MAX + (16 << 10)
"""What one command may take: the longest value and some keys. A batch has 64 KiB more than such a value, and
says up to 41 KiB of its session."""
TXN_OPERATIONS_MAX = 1_024
"""Compares and operations of both branches, together."""
LEASE_TTL_MS_MIN = 1_000
LEASE_TTL_MS_MAX = 86_400_000
REVISION_MAX = (1 << 64) - 1
LEASE_ID_MAX = (1 << 64) - 1
PAGE_PAIRS_MAX = 10_000
"""A node puts no more into one reply."""
LAG_MS_MAX = (1 << 32) - 1
COUNT_MAX = (1 << 64) - 1
TIMEOUT_S_MAX = 86_400.0
"""A day. Nobody means to wait longer for an answer, and beyond some size the clocks below gRPC overflow."""

ALL_KEYS = b"\x00"
"""As `range_end`: no upper end. As `key` beside it: no lower end, since no key is empty."""

Key = str | bytes
BytesLike = bytes | bytearray | memoryview


class HasId(Protocol):
    """A handle of a lease."""

    @property
    def id(self) -> int:
        """The lease's id."""
        ...


def encode_key(key: Key, field: str = "key") -> bytes:
    """Return a key as bytes, a str in UTF-8.

    Raises `InvalidArgumentError` naming `field` unless it has 1 to 480 bytes.
    """
    if type(key) is bytes:
        encoded = key
    else:
        encoded = key.encode() if type(key) is str and key.isascii() else encode_text(key, field)
    if 1 <= len(encoded) <= KEY_BYTES_MAX:
        return encoded
    raise InvalidArgumentError(
        f"{field} must have 1 to {KEY_BYTES_MAX} bytes, got {len(encoded)}", field=field
    )


def encode_text(text: Key, field: str) -> bytes:
    """Return str (as UTF-8) or bytes as bytes of any length.

    Raises `InvalidArgumentError` for anything else.
    """
    if isinstance(text, str):
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            raise InvalidArgumentError(
                f"{field} must be text that UTF-8 can hold, or bytes: {error}", field=field
            ) from error
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise InvalidArgumentError(f"{field} must be str or bytes, got {type(text).__name__}", field=field)


def encode_value(value: BytesLike) -> bytes:
    """Return a value as bytes (a copy, unless it is bytes).

    Raises `InvalidArgumentError` for other types and beyond 8 MiB.
    """
    if type(value) is not bytes:
        if not isinstance(value, bytes | bytearray | memoryview):
            advice = "; encode text first, for example value.encode()" if isinstance(value, str) else ""
            raise InvalidArgumentError(
                f"value must be bytes-like, got {type(value).__name__}{advice}", field="value"
            )
        value = bytes(value)
    if len(value) > VALUE_BYTES_MAX:
        raise InvalidArgumentError(
            f"value must have at most {VALUE_BYTES_MAX} bytes, got {len(value)}; split it over several keys",
            field="value",
        )
    return value


def check_items(items: Iterable[tuple[Key, BytesLike]]) -> Iterable[tuple[Key, BytesLike]]:
    """Return what holds many pairs. Raises `InvalidArgumentError` when it can't be iterated over."""
    if isinstance(items, Iterable):
        return items
    raise InvalidArgumentError(
        f"items must be an iterable of (key, value) pairs, got {type(items).__name__}", field="items"
    )


def encode_items(items: Iterable[tuple[Key, BytesLike]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield many pairs as bytes. Raises `InvalidArgumentError` at the first that is wrong."""
    for number, item in enumerate(check_items(items)):
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InvalidArgumentError(
                f"item {number} must be a (key, value) pair, got {item!r:.80}; of a dict give items()",
                field="items",
            )
        yield encode_key(item[0]), encode_value(item[1])


def encode_bound(bound: Key, field: str) -> bytes:
    """Return an end of a range as bytes.

    It may be one zero byte longer than a key may be: the successor of the longest one.
    Raises `InvalidArgumentError` naming `field`.
    """
    encoded = encode_text(bound, field)
    bytes_max = KEY_BYTES_MAX + encoded.endswith(b"\x00")
    if 1 <= len(encoded) <= bytes_max:
        return encoded
    raise InvalidArgumentError(f"{field} must have 1 to {bytes_max} bytes, got {len(encoded)}", field=field)


def prefix_interval(prefix: Key) -> tuple[bytes, bytes]:
    """Return (key, range_end) that cover all keys with this prefix; an empty one covers all keys."""
    start = encode_text(prefix, "prefix")
    if not start:
        return ALL_KEYS, ALL_KEYS
    encode_key(start, "prefix")
    stem = start.rstrip(b"\xff")
    return start, stem[:-1] + bytes([stem[-1] + 1]) if stem else ALL_KEYS


def check_timeout(timeout_s: float) -> float:
    """Return a timeout in seconds. Raises `InvalidArgumentError` unless it is above 0 and at most a day."""
    if not isinstance(timeout_s, int | float) or not 0 < timeout_s <= TIMEOUT_S_MAX:
        raise InvalidArgumentError(
            f"timeout must be a number of seconds above 0 and at most {TIMEOUT_S_MAX:.0f} (a day),"
            f" got {timeout_s!r}",
            field="timeout",
        )
    return timeout_s


def check_count(count: int, field: str, least: int, most: int) -> int:
    """Return a whole number.

    Raises `InvalidArgumentError` naming `field` unless it is one within [least, most].
    """
    if not isinstance(count, int) or isinstance(count, bool) or not least <= count <= most:
        raise InvalidArgumentError(
            f"{field} must be a whole number from {least} to {most}, got {count!r}", field=field
        )
    return count


def check_flag(flag: bool, field: str) -> bool:
    """Return a flag. Raises `InvalidArgumentError` naming `field` unless it is True or False."""
    if not isinstance(flag, bool):
        raise InvalidArgumentError(f"{field} must be True or False, got {flag!r:.80}", field=field)
    return flag


def check_str(text: str, field: str) -> str:
    """Return a text. Raises `InvalidArgumentError` naming `field` for anything else."""
    if not isinstance(text, str):
        raise InvalidArgumentError(f"{field} must be a str, got {type(text).__name__}", field=field)
    encode_text(text, field)
    return text


def lease_id(lease: int | HasId) -> int:
    """Return the id of a lease given by its id (0: none) or its handle.

    Raises `InvalidArgumentError`, and `FailedPreconditionError` for a handle whose lease is not granted yet.
    """
    number = lease if isinstance(lease, int) or not hasattr(type(lease), "id") else lease.id
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= LEASE_ID_MAX:
        return number
    raise InvalidArgumentError(
        f"lease must be a lease, or its id (a whole number from 0, which is none, to {LEASE_ID_MAX}), got"
        f" {lease!r:.80}",
        field="lease",
    )


def ttl_ms(ttl_s: float) -> int:
    """Return a lease's time to live, given in seconds, in milliseconds.

    Raises `InvalidArgumentError` unless it is a number from 1 s to a day.
    """
    least, most = LEASE_TTL_MS_MIN / 1_000, LEASE_TTL_MS_MAX / 1_000
    if isinstance(ttl_s, int | float) and not isinstance(ttl_s, bool) and least <= ttl_s <= most:
        return round(ttl_s * 1_000)
    raise InvalidArgumentError(
        f"ttl must be a number of seconds from {least:g} to {most:.0f} (a day), got {ttl_s!r:.80}",
        field="ttl",
    )
