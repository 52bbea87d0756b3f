from raftstate.pb.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRequest(_message.Message):
    __slots__ = ("create", "cancel", "progress")
    CREATE_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    create: WatchCreate
    cancel: WatchCancel
    progress: WatchProgress
    def __init__(self, create: _Optional[_Union[WatchCreate, _Mapping]] = ..., cancel: _Optional[_Union[WatchCancel, _Mapping]] = ..., progress: _Optional[_Union[WatchProgress, _Mapping]] = ...) -> None: ...

class WatchCreate(_message.Message):
    __slots__ = ("watch_id", "key", "range_end", "start_revision", "prev_kv", "progress_notify", "no_put", "no_delete")
    WATCH_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    START_REVISION_FIELD_NUMBER: _ClassVar[int]
    PREV_KV_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_NOTIFY_FIELD_NUMBER: _ClassVar[int]
    NO_PUT_FIELD_NUMBER: _ClassVar[int]
    NO_DELETE_FIELD_NUMBER: _ClassVar[int]
    watch_id: int
    key: bytes
    range_end: bytes
    start_revision: int
    prev_kv: bool
    progress_notify: bool
    no_put: bool
    no_delete: bool
    def __init__(self, watch_id: _Optional[int] = ..., key: _Optional[bytes] = ..., range_end: _Optional[bytes] = ..., start_revision: _Optional[int] = ..., prev_kv: _Optional[bool] = ..., progress_notify: _Optional[bool] = ..., no_put: _Optional[bool] = ..., no_delete: _Optional[bool] = ...) -> None: ...

class WatchCancel(_message.Message):
    __slots__ = ("watch_id",)
    WATCH_ID_FIELD_NUMBER: _ClassVar[int]
    watch_id: int
    def __init__(self, watch_id: _Optional[int] = ...) -> None: ...

class WatchProgress(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("header", "created", "events", "progress", "canceled")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CANCELED_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    created: _containers.RepeatedCompositeFieldContainer[WatchCreated]
    events: _containers.RepeatedCompositeFieldContainer[WatchEvents]
    progress: _containers.RepeatedScalarFieldContainer[int]
    canceled: _containers.RepeatedCompositeFieldContainer[WatchCanceled]
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., created: _Optional[_Iterable[_Union[WatchCreated, _Mapping]]] = ..., events: _Optional[_Iterable[_Union[WatchEvents, _Mapping]]] = ..., progress: _Optional[_Iterable[int]] = ..., canceled: _Optional[_Iterable[_Union[WatchCanceled, _Mapping]]] = ...) -> None: ...

class WatchCreated(_message.Message):
    __slots__ = ("watch_id", "start_revision")
    WATCH_ID_FIELD_NUMBER: _ClassVar[int]
    START_REVISION_FIELD_NUMBER: _ClassVar[int]
    watch_id: int
    start_revision: int
    def __init__(self, watch_id: _Optional[int] = ..., start_revision: _Optional[int] = ...) -> None: ...

class WatchEvents(_message.Message):
    __slots__ = ("watch_ids", "events")
    WATCH_IDS_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    watch_ids: _containers.RepeatedScalarFieldContainer[int]
    events: _containers.RepeatedCompositeFieldContainer[Event]
    def __init__(self, watch_ids: _Optional[_Iterable[int]] = ..., events: _Optional[_Iterable[_Union[Event, _Mapping]]] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("kind", "kv", "prev_kv")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_PUT: _ClassVar[Event.Kind]
        KIND_DELETE: _ClassVar[Event.Kind]
    KIND_PUT: Event.Kind
    KIND_DELETE: Event.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    KV_FIELD_NUMBER: _ClassVar[int]
    PREV_KV_FIELD_NUMBER: _ClassVar[int]
    kind: Event.Kind
    kv: _common_pb2.KeyValue
    prev_kv: _common_pb2.KeyValue
    def __init__(self, kind: _Optional[_Union[Event.Kind, str]] = ..., kv: _Optional[_Union[_common_pb2.KeyValue, _Mapping]] = ..., prev_kv: _Optional[_Union[_common_pb2.KeyValue, _Mapping]] = ...) -> None: ...

class WatchCanceled(_message.Message):
    __slots__ = ("watch_id", "error", "compacted_revision")
    WATCH_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    COMPACTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    watch_id: int
    error: _common_pb2.Error
    compacted_revision: int
    def __init__(self, watch_id: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., compacted_revision: _Optional[int] = ...) -> None: ...
