"""States as bytes: MessagePack of what comes back as it went in.

Saved as they are: None, bool, int (64 bits), float, str, bytes, list, dict (keys str, int or bytes), UUID,
and datetime: an aware one comes back as the same instant in UTC, a naive one as it was. A tuple comes back
as a list, as in JSON. A dataclass or msgspec Struct is saved as a dict of its fields and comes back as one,
or as itself when `decode` is told the type; its fields may also hold what msgspec can convert (enums, sets,
dates, Decimals).

Everything else is refused when it is saved, with the path to it: sets outside of typed fields too (their
order is not defined, and a list that comes back is not a set). Nothing ever turns into None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TypeVar, overload
from uuid import UUID

import msgspec

from raftstate.errors import DataLossError, InvalidArgumentError

T = TypeVar("T")

_EXT_NAIVE_DATETIME = 1
_EXT_UUID = 2
_DIRECT = frozenset({type(None), bool, int, float, str, bytes})
"""Types whose values MessagePack holds as they are."""
_KEYS = frozenset({str, int, bytes})


def encode(state: object, field: str = "state") -> bytes:
    """Return `state` as MessagePack. The same state gives the same bytes; dicts keep their order.

    Args:
        state: what to save.
        field: what errors call it.

    Raises:
        InvalidArgumentError: something in it can't be saved; the message says where.
    """
    try:
        plain = _plain(state, field)
        try:
            return _ENCODER.encode(plain)
        except OverflowError as error:
            fault = f"{error}; convert it to a str"
        except UnicodeEncodeError as error:
            fault = f"{error.object[:80]!r} is not valid Unicode; save it as bytes"
        raise InvalidArgumentError(f"can't save {_path_of_fault(plain, field)}: {fault}", field=field)
    except RecursionError:
        raise InvalidArgumentError(
            f"can't save {field}: it is nested too deeply, or holds itself", field=field
        ) from None
    except _UnsupportedError as error:
        raise InvalidArgumentError(str(error), field=field) from None


@overload
def decode(raw: bytes) -> Any: ...
@overload
def decode(raw: bytes, type: type[T]) -> T: ...
def decode(raw: bytes, type: Any = Any) -> Any:
    """Return what `encode` made `raw` of, as an instance of `type` if one is given.

    Raises:
        InvalidArgumentError: the state is not one of `type`.
        DataLossError: `raw` is not a state.
    """
    try:
        state = _DECODER.decode(raw)
    except (msgspec.DecodeError, ValueError) as error:
        raise DataLossError(f"a saved state is not readable: {error}") from error
    if type is Any:
        return state
    try:
        return msgspec.convert(state, type, builtin_types=(bytes, datetime, UUID))
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(f"the saved state is not a {type}: {error}") from error


class _UnsupportedError(Exception):
    """The message says which part of a state can't be saved."""


def _path_of_fault(plain: object, path: str) -> str:
    """Return where in a state, of which MessagePack can't hold something, that stands."""
    parts: Iterable[tuple[object, object]] = ()
    if isinstance(plain, dict):
        parts = plain.items()
    elif isinstance(plain, list | tuple):
        parts = enumerate(plain)
    for key, part in parts:
        try:
            _ENCODER.encode(part)
        except (OverflowError, UnicodeEncodeError):
            return _path_of_fault(part, f"{path}[{key!r}]")
    return path


def _plain(value: object, path: str) -> object:
    """Return `value` in types that MessagePack holds: itself where nothing needs to change."""
    kind = type(value)
    if kind in _DIRECT:
        return value
    if isinstance(value, dict) and kind is dict:
        return _plain_dict(value, path)
    if isinstance(value, list | tuple) and kind in (list, tuple):
        if _DIRECT.issuperset(map(type, value)):
            return value
        return [_plain(item, f"{path}[{position}]") for position, item in enumerate(value)]
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            return value
        return msgspec.msgpack.Ext(_EXT_NAIVE_DATETIME, b"%d%b" % (value.fold, value.isoformat().encode()))
    if isinstance(value, UUID):
        return msgspec.msgpack.Ext(_EXT_UUID, value.bytes)
    if isinstance(value, msgspec.Struct) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _plain_record(value, path)
    raise _UnsupportedError(
        f"can't save {path}: it is a {kind.__module__}.{kind.__qualname__}{_advice(value)}"
    )


def _plain_dict(value: dict[object, object], path: str) -> dict[object, object]:
    strangers = set(map(type, value)) - _KEYS
    if strangers:
        names = ", ".join(sorted(kind.__name__ for kind in strangers))
        raise _UnsupportedError(
            f"can't save {path}: it has keys of type {names}; str, int and bytes are allowed, so convert"
            " them to str"
        )
    if _DIRECT.issuperset(map(type, value.values())):
        return value
    return {key: _plain(item, f"{path}[{key!r}]") for key, item in value.items()}


def _plain_record(value: object, path: str) -> object:
    try:
        fields = msgspec.to_builtins(value, builtin_types=(bytes, datetime, UUID), order="deterministic")
    except TypeError as error:
        raise _UnsupportedError(f"can't save {path} (a {type(value).__qualname__}): {error}") from None
    return _plain(fields, path)


def _advice(value: object) -> str:
    if isinstance(value, set | frozenset):
        return "; save a sorted list"
    if isinstance(value, bytearray | memoryview):
        return "; save bytes"
    return "; convert it to a dict, list or str (dataclasses and msgspec Structs are taken as they are)"


def _from_extension(code: int, data: memoryview) -> object:
    read = _EXTENSIONS.get(code)
    if read is None:
        raise ValueError(f"extension type {code} is unknown to this version")
    return read(bytes(data))


_EXTENSIONS: dict[int, Callable[[bytes], object]] = {
    _EXT_NAIVE_DATETIME: lambda raw: datetime.fromisoformat(raw[1:].decode()).replace(fold=int(raw[:1])),
    _EXT_UUID: lambda raw: UUID(bytes=raw),
}
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ext_hook=_from_extension)
