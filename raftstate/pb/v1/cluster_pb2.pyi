from raftstate.pb.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_FOLLOWER: _ClassVar[Role]
    ROLE_PRE_CANDIDATE: _ClassVar[Role]
    ROLE_CANDIDATE: _ClassVar[Role]
    ROLE_LEADER: _ClassVar[Role]
    ROLE_LEARNER: _ClassVar[Role]
ROLE_UNSPECIFIED: Role
ROLE_FOLLOWER: Role
ROLE_PRE_CANDIDATE: Role
ROLE_CANDIDATE: Role
ROLE_LEADER: Role
ROLE_LEARNER: Role

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Member(_message.Message):
    __slots__ = ("id", "incarnation", "name", "peer_address", "client_address", "learner", "promote")
    ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    PROMOTE_FIELD_NUMBER: _ClassVar[int]
    id: int
    incarnation: int
    name: str
    peer_address: str
    client_address: str
    learner: bool
    promote: bool
    def __init__(self, id: _Optional[int] = ..., incarnation: _Optional[int] = ..., name: _Optional[str] = ..., peer_address: _Optional[str] = ..., client_address: _Optional[str] = ..., learner: _Optional[bool] = ..., promote: _Optional[bool] = ...) -> None: ...

class PeerProgress(_message.Message):
    __slots__ = ("id", "match_index", "next_index", "state", "recently_active", "lag_entries", "lag_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    MATCH_INDEX_FIELD_NUMBER: _ClassVar[int]
    NEXT_INDEX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECENTLY_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    LAG_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    LAG_MS_FIELD_NUMBER: _ClassVar[int]
    id: int
    match_index: int
    next_index: int
    state: str
    recently_active: bool
    lag_entries: int
    lag_ms: int
    def __init__(self, id: _Optional[int] = ..., match_index: _Optional[int] = ..., next_index: _Optional[int] = ..., state: _Optional[str] = ..., recently_active: _Optional[bool] = ..., lag_entries: _Optional[int] = ..., lag_ms: _Optional[int] = ...) -> None: ...

class StatusResponse(_message.Message):
    __slots__ = ("header", "name", "version", "role", "leader_id", "commit_index", "last_log_index", "first_log_index", "durable_applied_index", "digest", "machine_version", "log_bytes", "state_bytes", "sessions", "members", "progress", "alarms", "leader_silent_ms", "keys", "compacted_revision", "leases", "watches", "incarnation", "metrics_address", "checkpoint_age_ms", "disk_free_bytes", "log_map_bytes", "state_map_bytes", "wall_clock_ms", "last_erase_index", "erased_index", "rebuild", "rebuild_done_bytes", "rebuild_total_bytes", "state_free_bytes", "scrub_age_ms", "scrub_period_ms")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    LAST_LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    FIRST_LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    DURABLE_APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MACHINE_VERSION_FIELD_NUMBER: _ClassVar[int]
    LOG_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ALARMS_FIELD_NUMBER: _ClassVar[int]
    LEADER_SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    COMPACTED_REVISION_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    WATCHES_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_MAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_MAP_BYTES_FIELD_NUMBER: _ClassVar[int]
    WALL_CLOCK_MS_FIELD_NUMBER: _ClassVar[int]
    LAST_ERASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    ERASED_INDEX_FIELD_NUMBER: _ClassVar[int]
    REBUILD_FIELD_NUMBER: _ClassVar[int]
    REBUILD_DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REBUILD_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATE_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SCRUB_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    SCRUB_PERIOD_MS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    name: str
    version: str
    role: Role
    leader_id: int
    commit_index: int
    last_log_index: int
    first_log_index: int
    durable_applied_index: int
    digest: int
    machine_version: int
    log_bytes: int
    state_bytes: int
    sessions: int
    members: _containers.RepeatedCompositeFieldContainer[Member]
    progress: _containers.RepeatedCompositeFieldContainer[PeerProgress]
    alarms: _containers.RepeatedScalarFieldContainer[str]
    leader_silent_ms: int
    keys: int
    compacted_revision: int
    leases: int
    watches: int
    incarnation: int
    metrics_address: str
    checkpoint_age_ms: int
    disk_free_bytes: int
    log_map_bytes: int
    state_map_bytes: int
    wall_clock_ms: int
    last_erase_index: int
    erased_index: int
    rebuild: str
    rebuild_done_bytes: int
    rebuild_total_bytes: int
    state_free_bytes: int
    scrub_age_ms: int
    scrub_period_ms: int
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., leader_id: _Optional[int] = ..., commit_index: _Optional[int] = ..., last_log_index: _Optional[int] = ..., first_log_index: _Optional[int] = ..., durable_applied_index: _Optional[int] = ..., digest: _Optional[int] = ..., machine_version: _Optional[int] = ..., log_bytes: _Optional[int] = ..., state_bytes: _Optional[int] = ..., sessions: _Optional[int] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., progress: _Optional[_Iterable[_Union[PeerProgress, _Mapping]]] = ..., alarms: _Optional[_Iterable[str]] = ..., leader_silent_ms: _Optional[int] = ..., keys: _Optional[int] = ..., compacted_revision: _Optional[int] = ..., leases: _Optional[int] = ..., watches: _Optional[int] = ..., incarnation: _Optional[int] = ..., metrics_address: _Optional[str] = ..., checkpoint_age_ms: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., log_map_bytes: _Optional[int] = ..., state_map_bytes: _Optional[int] = ..., wall_clock_ms: _Optional[int] = ..., last_erase_index: _Optional[int] = ..., erased_index: _Optional[int] = ..., rebuild: _Optional[str] = ..., rebuild_done_bytes: _Optional[int] = ..., rebuild_total_bytes: _Optional[int] = ..., state_free_bytes: _Optional[int] = ..., scrub_age_ms: _Optional[int] = ..., scrub_period_ms: _Optional[int] = ...) -> None: ...

class DefragmentRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DefragmentResponse(_message.Message):
    __slots__ = ("header", "state_bytes")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    state_bytes: int
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., state_bytes: _Optional[int] = ...) -> None: ...

class TransferLeaderRequest(_message.Message):
    __slots__ = ("target_id",)
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    target_id: int
    def __init__(self, target_id: _Optional[int] = ...) -> None: ...

class TransferLeaderResponse(_message.Message):
    __slots__ = ("header", "leader_id")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    leader_id: int
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., leader_id: _Optional[int] = ...) -> None: ...

class ClusterTimes(_message.Message):
    __slots__ = ("heartbeat_ms", "election_timeout_ms", "history_retention_s")
    HEARTBEAT_MS_FIELD_NUMBER: _ClassVar[int]
    ELECTION_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_RETENTION_S_FIELD_NUMBER: _ClassVar[int]
    heartbeat_ms: int
    election_timeout_ms: int
    history_retention_s: int
    def __init__(self, heartbeat_ms: _Optional[int] = ..., election_timeout_ms: _Optional[int] = ..., history_retention_s: _Optional[int] = ...) -> None: ...

class MemberListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MemberListResponse(_message.Message):
    __slots__ = ("header", "members", "leader_id", "commit_index", "progress", "times")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    LEADER_ID_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    members: _containers.RepeatedCompositeFieldContainer[Member]
    leader_id: int
    commit_index: int
    progress: _containers.RepeatedCompositeFieldContainer[PeerProgress]
    times: ClusterTimes
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., leader_id: _Optional[int] = ..., commit_index: _Optional[int] = ..., progress: _Optional[_Iterable[_Union[PeerProgress, _Mapping]]] = ..., times: _Optional[_Union[ClusterTimes, _Mapping]] = ...) -> None: ...

class MemberAddRequest(_message.Message):
    __slots__ = ("name", "peer_address", "client_address", "learner")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LEARNER_FIELD_NUMBER: _ClassVar[int]
    name: str
    peer_address: str
    client_address: str
    learner: bool
    def __init__(self, name: _Optional[str] = ..., peer_address: _Optional[str] = ..., client_address: _Optional[str] = ..., learner: _Optional[bool] = ...) -> None: ...

class MemberAddResponse(_message.Message):
    __slots__ = ("header", "member", "members", "times", "already")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    ALREADY_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    member: Member
    members: _containers.RepeatedCompositeFieldContainer[Member]
    times: ClusterTimes
    already: bool
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., times: _Optional[_Union[ClusterTimes, _Mapping]] = ..., already: _Optional[bool] = ...) -> None: ...

class MemberPromoteRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class MemberPromoteResponse(_message.Message):
    __slots__ = ("header", "members")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class MemberRemoveRequest(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class MemberRemoveResponse(_message.Message):
    __slots__ = ("header", "members")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    members: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class MemberReplaceRequest(_message.Message):
    __slots__ = ("name", "peer_address", "client_address")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    name: str
    peer_address: str
    client_address: str
    def __init__(self, name: _Optional[str] = ..., peer_address: _Optional[str] = ..., client_address: _Optional[str] = ...) -> None: ...

class MemberReplaceResponse(_message.Message):
    __slots__ = ("header", "member", "members", "times")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TIMES_FIELD_NUMBER: _ClassVar[int]
    header: _common_pb2.ResponseHeader
    member: Member
    members: _containers.RepeatedCompositeFieldContainer[Member]
    times: ClusterTimes
    def __init__(self, header: _Optional[_Union[_common_pb2.ResponseHeader, _Mapping]] = ..., member: _Optional[_Union[Member, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., times: _Optional[_Union[ClusterTimes, _Mapping]] = ...) -> None: ...
