from raftstate.pb.v1 import common_pb2 as _common_pb2
from raftstate.pb.v1 import txn_pb2 as _txn_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CommandBatch(_message.Message):
    __slots__ = ("cluster_id", "session", "floor", "given_up", "timeout_ms", "commands")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    FLOOR_FIELD_NUMBER: _ClassVar[int]
    GIVEN_UP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    session: _common_pb2.SessionId
    floor: int
    given_up: _containers.RepeatedScalarFieldContainer[int]
    timeout_ms: int
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, cluster_id: _Optional[int] = ..., session: _Optional[_Union[_common_pb2.SessionId, _Mapping]] = ..., floor: _Optional[int] = ..., given_up: _Optional[_Iterable[int]] = ..., timeout_ms: _Optional[int] = ..., commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("serial", "put", "delete", "txn", "compact", "lease_grant", "lease_revoke", "lease_renew", "erase")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    PUT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    TXN_FIELD_NUMBER: _ClassVar[int]
    COMPACT_FIELD_NUMBER: _ClassVar[int]
    LEASE_GRANT_FIELD_NUMBER: _ClassVar[int]
    LEASE_REVOKE_FIELD_NUMBER: _ClassVar[int]
    LEASE_RENEW_FIELD_NUMBER: _ClassVar[int]
    ERASE_FIELD_NUMBER: _ClassVar[int]
    serial: int
    put: _txn_pb2.PutCommand
    delete: _txn_pb2.DeleteCommand
    txn: _txn_pb2.TxnCommand
    compact: CompactCommand
    lease_grant: LeaseGrantCommand
    lease_revoke: LeaseRevokeCommand
    lease_renew: LeaseRenewCommand
    erase: EraseCommand
    def __init__(self, serial: _Optional[int] = ..., put: _Optional[_Union[_txn_pb2.PutCommand, _Mapping]] = ..., delete: _Optional[_Union[_txn_pb2.DeleteCommand, _Mapping]] = ..., txn: _Optional[_Union[_txn_pb2.TxnCommand, _Mapping]] = ..., compact: _Optional[_Union[CompactCommand, _Mapping]] = ..., lease_grant: _Optional[_Union[LeaseGrantCommand, _Mapping]] = ..., lease_revoke: _Optional[_Union[LeaseRevokeCommand, _Mapping]] = ..., lease_renew: _Optional[_Union[LeaseRenewCommand, _Mapping]] = ..., erase: _Optional[_Union[EraseCommand, _Mapping]] = ...) -> None: ...

class CompactCommand(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class EraseCommand(_message.Message):
    __slots__ = ("key",)
    KEY_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    def __init__(self, key: _Optional[bytes] = ...) -> None: ...

class LeaseGrantCommand(_message.Message):
    __slots__ = ("id", "ttl_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    ttl_ms: int
    def __init__(self, id: _Optional[int] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class LeaseRevokeCommand(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class LeaseRenewCommand(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: int
    def __init__(self, id: _Optional[int] = ...) -> None: ...

class BatchReply(_message.Message):
    __slots__ = ("header", "serials", "revisions", "answers")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SERIALS_FIELD_NUMBER: _ClassVar[int]
    REVISIONS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    serials: _containers.RepeatedScalarFieldContainer[int]
    revisions: _containers.RepeatedScalarFieldContainer[int]
    answers: _containers.RepeatedCompositeFieldContainer[Answer]
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., serials: _Optional[_Iterable[int]] = ..., revisions: _Optional[_Iterable[int]] = ..., answers: _Optional[_Iterable[_Union[Answer, _Mapping]]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("serial", "revision", "error", "deleted", "prev_kvs", "txn", "lease")
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    PREV_KVS_FIELD_NUMBER: _ClassVar[int]
    TXN_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    serial: int
    revision: int
    error: _common_pb2.Error
    deleted: int
    prev_kvs: _containers.RepeatedCompositeFieldContainer[_common_pb2.KeyValue]
    txn: _txn_pb2.TxnResult
    lease: LeaseResult
    def __init__(self, serial: _Optional[int] = ..., revision: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ..., deleted: _Optional[int] = ..., prev_kvs: _Optional[_Iterable[_Union[_common_pb2.KeyValue, _Mapping]]] = ..., txn: _Optional[_Union[_txn_pb2.TxnResult, _Mapping]] = ..., lease: _Optional[_Union[LeaseResult, _Mapping]] = ...) -> None: ...

class LeaseResult(_message.Message):
    __slots__ = ("id", "ttl_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    ttl_ms: int
    def __init__(self, id: _Optional[int] = ..., ttl_ms: _Optional[int] = ...) -> None: ...
