from raftstate.pb.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SortOrder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SORT_ORDER_NONE: _ClassVar[SortOrder]
    SORT_ORDER_ASCEND: _ClassVar[SortOrder]
    SORT_ORDER_DESCEND: _ClassVar[SortOrder]

class SortTarget(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SORT_TARGET_KEY: _ClassVar[SortTarget]
    SORT_TARGET_VERSION: _ClassVar[SortTarget]
    SORT_TARGET_CREATE_REVISION: _ClassVar[SortTarget]
    SORT_TARGET_MOD_REVISION: _ClassVar[SortTarget]
    SORT_TARGET_VALUE: _ClassVar[SortTarget]
SORT_ORDER_NONE: SortOrder
SORT_ORDER_ASCEND: SortOrder
SORT_ORDER_DESCEND: SortOrder
SORT_TARGET_KEY: SortTarget
SORT_TARGET_VERSION: SortTarget
SORT_TARGET_CREATE_REVISION: SortTarget
SORT_TARGET_MOD_REVISION: SortTarget
SORT_TARGET_VALUE: SortTarget

class TxnCommand(_message.Message):
    __slots__ = ("compares", "success", "failure")
    COMPARES_FIELD_NUMBER: _ClassVar[int]
    SUCCESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    compares: _containers.RepeatedCompositeFieldContainer[Compare]
    success: _containers.RepeatedCompositeFieldContainer[RequestOp]
    failure: _containers.RepeatedCompositeFieldContainer[RequestOp]
    def __init__(self, compares: _Optional[_Iterable[_Union[Compare, _Mapping]]] = ..., success: _Optional[_Iterable[_Union[RequestOp, _Mapping]]] = ..., failure: _Optional[_Iterable[_Union[RequestOp, _Mapping]]] = ...) -> None: ...

class Compare(_message.Message):
    __slots__ = ("result", "key", "range_end", "version", "create_revision", "mod_revision", "value", "lease")
    class Result(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        RESULT_EQUAL: _ClassVar[Compare.Result]
        RESULT_NOT_EQUAL: _ClassVar[Compare.Result]
        RESULT_GREATER: _ClassVar[Compare.Result]
        RESULT_LESS: _ClassVar[Compare.Result]
    RESULT_EQUAL: Compare.Result
    RESULT_NOT_EQUAL: Compare.Result
    RESULT_GREATER: Compare.Result
    RESULT_LESS: Compare.Result
    RESULT_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    result: Compare.Result
    key: bytes
    range_end: bytes
    version: int
    create_revision: int
    mod_revision: int
    value: bytes
    lease: int
    def __init__(self, result: _Optional[_Union[Compare.Result, str]] = ..., key: _Optional[bytes] = ..., range_end: _Optional[bytes] = ..., version: _Optional[int] = ..., create_revision: _Optional[int] = ..., mod_revision: _Optional[int] = ..., value: _Optional[bytes] = ..., lease: _Optional[int] = ...) -> None: ...

class RequestOp(_message.Message):
    __slots__ = ("range", "put", "delete")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    range: RangeOp
    put: PutCommand
    delete: DeleteCommand
    def __init__(self, range: _Optional[_Union[RangeOp, _Mapping]] = ..., put: _Optional[_Union[PutCommand, _Mapping]] = ..., delete: _Optional[_Union[DeleteCommand, _Mapping]] = ...) -> None: ...

class RangeOp(_message.Message):
    __slots__ = ("key", "range_end", "limit", "revision", "keys_only", "count_only", "sort_order", "sort_target")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    KEYS_ONLY_FIELD_NUMBER: _ClassVar[int]
    COUNT_ONLY_FIELD_NUMBER: _ClassVar[int]
    SORT_ORDER_FIELD_NUMBER: _ClassVar[int]
    SORT_TARGET_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    keys_only: bool
    count_only: bool
    sort_order: SortOrder
    sort_target: SortTarget
    def __init__(self, key: _Optional[bytes] = ..., range_end: _Optional[bytes] = ..., limit: _Optional[int] = ..., revision: _Optional[int] = ..., keys_only: _Optional[bool] = ..., count_only: _Optional[bool] = ..., sort_order: _Optional[_Union[SortOrder, str]] = ..., sort_target: _Optional[_Union[SortTarget, str]] = ...) -> None: ...

class PutCommand(_message.Message):
    __slots__ = ("key", "value", "prev_kv", "lease")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PREV_KV_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    prev_kv: bool
    lease: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., prev_kv: _Optional[bool] = ..., lease: _Optional[int] = ...) -> None: ...

class DeleteCommand(_message.Message):
    __slots__ = ("key", "range_end", "prev_kv")
    KEY_FIELD_NUMBER: _ClassVar[int]
    RANGE_END_FIELD_NUMBER: _ClassVar[int]
    PREV_KV_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    range_end: bytes
    prev_kv: bool
    def __init__(self, key: _Optional[bytes] = ..., range_end: _Optional[bytes] = ..., prev_kv: _Optional[bool] = ...) -> None: ...

class TxnResult(_message.Message):
    __slots__ = ("succeeded", "responses")
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    succeeded: bool
    responses: _containers.RepeatedCompositeFieldContainer[ResponseOp]
    def __init__(self, succeeded: _Optional[bool] = ..., responses: _Optional[_Iterable[_Union[ResponseOp, _Mapping]]] = ...) -> None: ...

class ResponseOp(_message.Message):
    __slots__ = ("range", "put", "delete")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    range: RangeResult
    put: PutResult
    delete: DeleteResult
    def __init__(self, range: _Optional[_Union[RangeResult, _Mapping]] = ..., put: _Optional[_Union[PutResult, _Mapping]] = ..., delete: _Optional[_Union[DeleteResult, _Mapping]] = ...) -> None: ...

class RangeResult(_message.Message):
    __slots__ = ("kvs", "more", "count")
    KVS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    kvs: _containers.RepeatedCompositeFieldContainer[_common_pb2.KeyValue]
    more: bool
    count: int
    def __init__(self, kvs: _Optional[_Iterable[_Union[_common_pb2.KeyValue, _Mapping]]] = ..., more: _Optional[bool] = ..., count: _Optional[int] = ...) -> None: ...

class PutResult(_message.Message):
    __slots__ = ("prev_kv",)
    PREV_KV_FIELD_NUMBER: _ClassVar[int]
    prev_kv: _common_pb2.KeyValue
    def __init__(self, prev_kv: _Optional[_Union[_common_pb2.KeyValue, _Mapping]] = ...) -> None: ...

class DeleteResult(_message.Message):
    __slots__ = ("deleted", "prev_kvs")
    DELETED_FIELD_NUMBER: _ClassVar[int]
    PREV_KVS_FIELD_NUMBER: _ClassVar[int]
    deleted: int
    prev_kvs: _containers.RepeatedCompositeFieldContainer[_common_pb2.KeyValue]
    def __init__(self, deleted: _Optional[int] = ..., prev_kvs: _Optional[_Iterable[_Union[_common_pb2.KeyValue, _Mapping]]] = ...) -> None: ...
