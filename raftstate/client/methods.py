"""The methods of the wire contract that the client calls."""

from __future__ import annotations

from raftstate.client.transport import Method
from raftstate.pb.v1 import cluster_pb2, kv_pb2, lease_pb2, pipeline_pb2, session_pb2, watch_pb2

GET = Method("KV/Get", kv_pb2.GetRequest, kv_pb2.GetResponse)
RANGE = Method("KV/Range", kv_pb2.RangeRequest, kv_pb2.RangeResponse)
WRITE = Method("Pipeline/Write", pipeline_pb2.CommandBatch, pipeline_pb2.BatchReply)
REGISTER = Method("Session/Register", session_pb2.RegisterRequest, session_pb2.RegisterResponse)
CLOSE = Method("Session/Close", session_pb2.CloseRequest, session_pb2.CloseResponse)
TIME_TO_LIVE = Method("Lease/TimeToLive", lease_pb2.LeaseTimeToLiveRequest, lease_pb2.LeaseTimeToLiveResponse)
LEASES = Method("Lease/List", lease_pb2.LeaseListRequest, lease_pb2.LeaseListResponse)
WATCH = Method("Watch/Watch", watch_pb2.WatchRequest, watch_pb2.WatchResponse)
STATUS = Method("Cluster/Status", cluster_pb2.StatusRequest, cluster_pb2.StatusResponse)
DEFRAGMENT = Method("Cluster/Defragment", cluster_pb2.DefragmentRequest, cluster_pb2.DefragmentResponse)
TRANSFER_LEADER = Method(
    "Cluster/TransferLeader", cluster_pb2.TransferLeaderRequest, cluster_pb2.TransferLeaderResponse
)
MEMBER_LIST = Method("Cluster/MemberList", cluster_pb2.MemberListRequest, cluster_pb2.MemberListResponse)
MEMBER_ADD = Method("Cluster/MemberAdd", cluster_pb2.MemberAddRequest, cluster_pb2.MemberAddResponse)
MEMBER_PROMOTE = Method(
    "Cluster/MemberPromote", cluster_pb2.MemberPromoteRequest, cluster_pb2.MemberPromoteResponse
)
MEMBER_REMOVE = Method(
    "Cluster/MemberRemove", cluster_pb2.MemberRemoveRequest, cluster_pb2.MemberRemoveResponse
)
MEMBER_REPLACE = Method(
    "Cluster/MemberReplace", cluster_pb2.MemberReplaceRequest, cluster_pb2.MemberReplaceResponse
)
