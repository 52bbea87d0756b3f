"""etcd's messages, as far as they are needed here: etcd's API reference is where the numbers come from.

Made with protobuf's descriptors, in a pool of their own: nothing to generate. What etcd has as a `oneof` is a
plain field here: the bytes are the same, and etcd reads an absent number as 0.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

# message -> its fields: name, number, type. A trailing * is `repeated`; messages have capitals.
_MESSAGES = {
    "Header": "revision 3 int64",
    "KeyValue": "key 1 bytes, create_revision 2 int64, mod_revision 3 int64, version 4 int64,"
    " value 5 bytes, lease 6 int64",
    "RangeRequest": "key 1 bytes, range_end 2 bytes, limit 3 int64, revision 4 int64, sort_order 5 int32,"
    " sort_target 6 int32, keys_only 8 bool, count_only 9 bool",
    "RangeResponse": "header 1 Header, kvs 2 KeyValue*, more 3 bool, count 4 int64",
    "PutRequest": "key 1 bytes, value 2 bytes, lease 3 int64, prev_kv 4 bool",
    "PutResponse": "header 1 Header, prev_kv 2 KeyValue",
    "DeleteRequest": "key 1 bytes, range_end 2 bytes, prev_kv 3 bool",
    "DeleteResponse": "header 1 Header, deleted 2 int64, prev_kvs 3 KeyValue*",
    "Compare": "result 1 int32, target 2 int32, key 3 bytes, version 4 int64, create_revision 5 int64,"
    " mod_revision 6 int64, value 7 bytes, lease 8 int64, range_end 64 bytes",
    "RequestOp": "range 1 RangeRequest, put 2 PutRequest, delete 3 DeleteRequest",
    "ResponseOp": "range 1 RangeResponse, put 2 PutResponse, delete 3 DeleteResponse",
    "TxnRequest": "compare 1 Compare*, success 2 RequestOp*, failure 3 RequestOp*",
    "TxnResponse": "header 1 Header, succeeded 2 bool, responses 3 ResponseOp*",
    "CompactRequest": "revision 1 int64",
    "CompactResponse": "header 1 Header",
    "GrantRequest": "ttl 1 int64, id 2 int64",
    "GrantResponse": "header 1 Header, id 2 int64, ttl 3 int64",
    "RevokeRequest": "id 1 int64",
    "RevokeResponse": "header 1 Header",
    "KeepAliveRequest": "id 1 int64",
    "KeepAliveResponse": "header 1 Header, id 2 int64, ttl 3 int64",
    "TimeToLiveRequest": "id 1 int64, keys 2 bool",
    "TimeToLiveResponse": "header 1 Header, id 2 int64, ttl 3 int64, granted_ttl 4 int64, keys 5 bytes*",
    "LeasesRequest": "",
    "LeaseStatus": "id 1 int64",
    "LeasesResponse": "header 1 Header, leases 2 LeaseStatus*",
    "Event": "type 1 int32, kv 2 KeyValue, prev_kv 3 KeyValue",
    "WatchCreate": "key 1 bytes, range_end 2 bytes, start_revision 3 int64, filters 5 int32*, prev_kv 6 bool",
    "WatchRequest": "create 1 WatchCreate",
    "WatchResponse": "header 1 Header, created 3 bool, canceled 4 bool, compact_revision 5 int64,"
    " events 11 Event*",
}
_PACKAGE = "etcd_as_seen_from_outside"


def _declare() -> DescriptorPool:
    file = FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split(", ")):
            field_name, number, kind = field.split()
            declared = message.field.add(name=field_name, number=int(number))
            repeated = kind.endswith("*")
            declared.label = (
                FieldDescriptorProto.LABEL_REPEATED if repeated else FieldDescriptorProto.LABEL_OPTIONAL
            )
            kind = kind.removesuffix("*")
            if kind[0].isupper():
                declared.type = FieldDescriptorProto.TYPE_MESSAGE
                declared.type_name = f".{_PACKAGE}.{kind}"
            else:
                declared.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = DescriptorPool()
    pool.Add(file)
    return pool


_POOL = _declare()


def message(name: str) -> Any:
    """Return the class of a message by its name in the table above. Raises KeyError."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
