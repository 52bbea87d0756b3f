from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_LINEARIZABLE: _ClassVar[Consistency]
    CONSISTENCY_BOUNDED: _ClassVar[Consistency]
    CONSISTENCY_LOCAL: _ClassVar[Consistency]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_NOT_APPLIED: _ClassVar[Outcome]
    OUTCOME_UNKNOWN: _ClassVar[Outcome]

class ErrorCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_CODE_UNSPECIFIED: _ClassVar[ErrorCode]
    ERROR_CODE_INVALID: _ClassVar[ErrorCode]
    ERROR_CODE_RESOURCE_EXHAUSTED: _ClassVar[ErrorCode]
    ERROR_CODE_OUT_OF_RANGE: _ClassVar[ErrorCode]
    ERROR_CODE_CONFLICT: _ClassVar[ErrorCode]
    ERROR_CODE_NO_LEADER: _ClassVar[ErrorCode]
    ERROR_CODE_UNKNOWN_OUTCOME: _ClassVar[ErrorCode]
    ERROR_CODE_SESSION_EXPIRED: _ClassVar[ErrorCode]
    ERROR_CODE_STALE: _ClassVar[ErrorCode]
    ERROR_CODE_WINDOW: _ClassVar[ErrorCode]
    ERROR_CODE_CANCELLED: _ClassVar[ErrorCode]
    ERROR_CODE_WRONG_CLUSTER: _ClassVar[ErrorCode]
    ERROR_CODE_DATA_LOSS: _ClassVar[ErrorCode]
    ERROR_CODE_UNIMPLEMENTED: _ClassVar[ErrorCode]
    ERROR_CODE_FAILED_PRECONDITION: _ClassVar[ErrorCode]
    ERROR_CODE_LEASE_NOT_FOUND: _ClassVar[ErrorCode]
CONSISTENCY_LINEARIZABLE: Consistency
CONSISTENCY_BOUNDED: Consistency
CONSISTENCY_LOCAL: Consistency
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_NOT_APPLIED: Outcome
OUTCOME_UNKNOWN: Outcome
ERROR_CODE_UNSPECIFIED: ErrorCode
ERROR_CODE_INVALID: ErrorCode
ERROR_CODE_RESOURCE_EXHAUSTED: ErrorCode
ERROR_CODE_OUT_OF_RANGE: ErrorCode
ERROR_CODE_CONFLICT: ErrorCode
ERROR_CODE_NO_LEADER: ErrorCode
ERROR_CODE_UNKNOWN_OUTCOME: ErrorCode
ERROR_CODE_SESSION_EXPIRED: ErrorCode
ERROR_CODE_STALE: ErrorCode
ERROR_CODE_WINDOW: ErrorCode
ERROR_CODE_CANCELLED: ErrorCode
ERROR_CODE_WRONG_CLUSTER: ErrorCode
ERROR_CODE_DATA_LOSS: ErrorCode
ERROR_CODE_UNIMPLEMENTED: ErrorCode
ERROR_CODE_FAILED_PRECONDITION: ErrorCode
ERROR_CODE_LEASE_NOT_FOUND: ErrorCode

class ResponseHeader(_message.Message):
    __slots__ = ("cluster_id", "node_id", "revision", "applied_index", "term", "staleness_bound_us")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    STALENESS_BOUND_US_FIELD_NUMBER: _ClassVar[int]
    cluster_id: int
    node_id: int
    revision: int
    applied_index: int
    term: int
    staleness_bound_us: int
    def __init__(self, cluster_id: _Optional[int] = ..., node_id: _Optional[int] = ..., revision: _Optional[int] = ..., applied_index: _Optional[int] = ..., term: _Optional[int] = ..., staleness_bound_us: _Optional[int] = ...) -> None: ...

class KeyValue(_message.Message):
    __slots__ = ("key", "value", "create_revision", "mod_revision", "version", "lease")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    CREATE_REVISION_FIELD_NUMBER: _ClassVar[int]
    MOD_REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ..., create_revision: _Optional[int] = ..., mod_revision: _Optional[int] = ..., version: _Optional[int] = ..., lease: _Optional[int] = ...) -> None: ...

class SessionId(_message.Message):
    __slots__ = ("index", "nonce")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    index: int
    nonce: int
    def __init__(self, index: _Optional[int] = ..., nonce: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "outcome", "message", "field", "term", "leader_id", "leader_address", "leader_silent_ms", "compacted_revision")
    CODE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEADER_SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    COMPACTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    code: ErrorCode
    outcome: Outcome
    message: str
    field: str
    term: int
    leader_id: int
    leader_address: str
    leader_silent_ms: int
    compacted_revision: int
    def __init__(self, code: _Optional[_Union[ErrorCode, str]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., term: _Optional[int] = ..., leader_id: _Optional[int] = ..., leader_address: _Optional[str] = ..., leader_silent_ms: _Optional[int] = ..., compacted_revision: _Optional[int] = ...) -> None: ...
