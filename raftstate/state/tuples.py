"""Tuples as keys: bytes that sort as the tuples do, in the manner of FoundationDB's tuple layer.

Elements are None, bytes, str, int (up to 64 bits and a sign) and tuples of these. Across types None < bytes
< str < int < tuple; within one, bytes and integers by their natural order, strings by code points, and a
tuple before every longer one that begins with it. The encoding of a tuple is a prefix of those of its
extensions, so that one interval holds all of them.

    element  encoding
    None     05
    bytes    06, the bytes with each 00 as 00 ff, 00
    str      07, its UTF-8 likewise, 00
    int      20 + n, n bytes of magnitude (n = 0 for zero); negative: 20 - n, n bytes of its complement
    tuple    30, the elements, 00

A terminating 00 is followed by a type byte or the end, never by ff: that is what keeps the order.
"""

from __future__ import annotations

from raftstate.errors import InvalidArgumentError

Element = None | bytes | str | int | tuple["Element", ...]

_NONE, _BYTES, _STR, _INT_ZERO, _TUPLE, _END = 0x05, 0x06, 0x07, 0x20, 0x30, 0x00
_INT_BYTES_MAX = 8


def pack(elements: tuple[Element, ...]) -> bytes:
    """Return the key of a tuple.

    Raises:
        InvalidArgumentError: an element is of another type, an integer needs more than 64 bits, or a string
            holds a lone surrogate.
    """
    out = bytearray()
    for element in elements:
        _pack_element(element, out)
    return bytes(out)


def unpack(key: bytes) -> tuple[Element, ...]:
    """Return the tuple of a key. Raises InvalidArgumentError when `key` is not one that `pack` made."""
    elements: list[Element] = []
    at = 0
    while at < len(key):
        element, at = _unpack_element(key, at)
        elements.append(element)
    return tuple(elements)


def prefix_range(elements: tuple[Element, ...]) -> tuple[bytes, bytes]:
    """Return [start, end) of the keys of all tuples that begin with `elements`, itself left out."""
    prefix = pack(elements)
    return prefix + b"\x01", prefix + b"\xff"


def _pack_element(element: Element, out: bytearray) -> None:
    if element is None:
        out.append(_NONE)
    elif isinstance(element, bytes):
        out.append(_BYTES)
        _pack_terminated(element, out)
    elif isinstance(element, str):
        out.append(_STR)
        try:
            _pack_terminated(element.encode(), out)
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                f"a key can't hold {element!r}: it is not valid Unicode; use bytes"
            ) from None
    elif isinstance(element, int) and not isinstance(element, bool):
        _pack_int(element, out)
    elif isinstance(element, tuple):
        out.append(_TUPLE)
        for inner in element:
            _pack_element(inner, out)
        out.append(_END)
    else:
        raise InvalidArgumentError(
            f"a key can't hold a {type(element).__name__}; None, bytes, str, int, tuple can"
        )


def _pack_terminated(raw: bytes, out: bytearray) -> None:
    out += raw.replace(b"\x00", b"\x00\xff")
    out.append(_END)


def _pack_int(number: int, out: bytearray) -> None:
    size = (number.bit_length() + 7) // 8
    if size > _INT_BYTES_MAX:
        raise InvalidArgumentError(
            f"a key can't hold the integer {number}: it needs {number.bit_length()} bits, over 64"
        )
    out.append(_INT_ZERO + (size if number >= 0 else -size))
    if number < 0:
        number += (1 << 8 * size) - 1
    out += number.to_bytes(size, "big")


def _unpack_element(key: bytes, at: int) -> tuple[Element, int]:
    kind = key[at]
    at += 1
    if kind == _NONE:
        return None, at
    if kind in (_BYTES, _STR):
        raw, at = _unpack_terminated(key, at)
        try:
            return (raw if kind == _BYTES else raw.decode()), at
        except UnicodeDecodeError:
            raise _malformed(key, at) from None
    if abs(kind - _INT_ZERO) <= _INT_BYTES_MAX:
        return _unpack_int(key, at, kind - _INT_ZERO)
    if kind == _TUPLE:
        inner: list[Element] = []
        while at < len(key) and key[at] != _END:
            element, at = _unpack_element(key, at)
            inner.append(element)
        if at == len(key):
            raise _malformed(key, at)
        return tuple(inner), at + 1
    raise _malformed(key, at - 1)


def _unpack_terminated(key: bytes, at: int) -> tuple[bytes, int]:
    end = key.find(b"\x00", at)
    while end >= 0 and key[end + 1 : end + 2] == b"\xff":
        end = key.find(b"\x00", end + 2)
    if end < 0:
        raise _malformed(key, at)
    return key[at:end].replace(b"\x00\xff", b"\x00"), end + 1


def _unpack_int(key: bytes, at: int, signed_size: int) -> tuple[int, int]:
    size = abs(signed_size)
    raw = key[at : at + size]
    if len(raw) < size:
        raise _malformed(key, at)
    number = int.from_bytes(raw, "big")
    if signed_size < 0:
        number -= (1 << 8 * size) - 1
    if (number.bit_length() + 7) // 8 != size:
        raise _malformed(key, at)
    return number, at + size


def _malformed(key: bytes, at: int) -> InvalidArgumentError:
    return InvalidArgumentError(f"not the key of a tuple: {key.hex()} is malformed at byte {at}")
