from raftstate.pb.v1 import common_pb2 as _common_pb2
from raftstate.pb.v1 import pipeline_pb2 as _pipeline_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RegisterRequest(_message.Message):
    __slots__ = ("nonce", "ttl_ms", "cluster_id")
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    nonce: int
    ttl_ms: int
    cluster_id: int
    def __init__(self, nonce: _Optional[int] = ..., ttl_ms: _Optional[int] = ..., cluster_id: _Optional[int] = ...) -> None: ...

class RegisterResponse(_message.Message):
    __slots__ = ("header", "session", "ttl_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    TTL_MS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    session: _common_pb2.SessionId
    ttl_ms: int
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., session: _Optional[_Union[_common_pb2.SessionId, _Mapping]] = ..., ttl_ms: _Optional[int] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("session", "serial", "cluster_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SERIAL_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    session: _common_pb2.SessionId
    serial: int
    cluster_id: int
    def __init__(self, session: _Optional[_Union[_common_pb2.SessionId, _Mapping]] = ..., serial: _Optional[int] = ..., cluster_id: _Optional[int] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("header", "answer")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    answer: _pipeline_pb2.Answer
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., answer: _Optional[_Union[_pipeline_pb2.Answer, _Mapping]] = ...) -> None: ...

class CloseRequest(_message.Message):
    __slots__ = ("session", "cluster_id")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    session: _common_pb2.SessionId
    cluster_id: int
    def __init__(self, session: _Optional[_Union[_common_pb2.SessionId, _Mapping]] = ..., cluster_id: _Optional[int] = ...) -> None: ...

class CloseResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...
