"""The client knows the server by its published interface only, so numbers that both need stand twice."""

from __future__ import annotations

import pytest

from raftstate import config
from raftstate.client import async_client, faults, limits
from raftstate.client import url as client_url
from raftstate.folder import CLIENT_PORT_DEFAULT, HOST
from raftstate.machine import types
from raftstate.node import member_changes, service
from raftstate.pb.v1 import common_pb2, pipeline_pb2
from raftstate.rpc import kv, server, status
from raftstate.state import workflow
from raftstate.supervisor import NODES_DEFAULT


@pytest.mark.parametrize(
    "name",
    [
        "KEY_BYTES_MAX",
        "VALUE_BYTES_MAX",
        "BATCH_COMMANDS_MAX",
        "BATCH_BYTES_MAX",
        "SESSION_WINDOW",
        "TXN_OPERATIONS_MAX",
        "LEASE_TTL_MS_MIN",
        "LEASE_TTL_MS_MAX",
    ],
)
def test_the_client_checks_by_the_machine_s_limits(name: str) -> None:
    assert getattr(limits, name) == getattr(types, name)


def test_a_client_sends_nothing_that_is_too_large_for_a_server() -> None:
    assert limits.MESSAGE_BYTES_MAX == server.RECEIVE_BYTES_MAX


def test_a_command_leaves_room_in_its_batch_for_all_that_one_may_say_of_its_session() -> None:
    most = (1 << 64) - 1
    head = pipeline_pb2.CommandBatch(
        cluster_id=most,
        session=common_pb2.SessionId(index=most, nonce=most),
        floor=most,
        given_up=range(most - types.SESSION_WINDOW, most),
        timeout_ms=(1 << 32) - 1,
    )
    command_head_bytes = 1 + 5  # tag and length
    batch_bytes = head.ByteSize() + command_head_bytes + limits.COMMAND_BYTES_MAX
    assert batch_bytes <= types.VALUE_BYTES_MAX + types.BATCH_HEAD_BYTES_MAX
    assert types.VALUE_BYTES_MAX + types.BATCH_HEAD_BYTES_MAX <= server.RECEIVE_BYTES_MAX


def test_a_page_of_a_scan_is_what_a_node_puts_in_a_reply() -> None:
    assert limits.PAGE_PAIRS_MAX == kv.RANGE_PAIRS_MAX


def test_a_checkpoint_s_row_may_be_as_large_as_a_value() -> None:
    assert workflow.ROW_BYTES_MAX == types.VALUE_BYTES_MAX


def test_both_sides_name_the_trailer_of_errors_alike() -> None:
    assert faults.TRAILER == status.TRAILER


def test_what_a_caller_leaves_out_means_the_same_to_both_sides() -> None:
    assert async_client.TIMEOUT_S_DEFAULT == service.TIMEOUT_S_DEFAULT
    assert async_client.MAX_LAG_MS_DEFAULT == service.STALENESS_MS_DEFAULT


def test_a_client_without_a_url_looks_where_local_clusters_serve() -> None:
    ports = range(CLIENT_PORT_DEFAULT, CLIENT_PORT_DEFAULT + NODES_DEFAULT)
    assert client_url.endpoints_of(client_url.URL_DEFAULT) == tuple(f"{HOST}:{port}" for port in ports)


def test_settings_allow_as_many_members_as_the_leader_does() -> None:
    assert config.VOTERS_MAX == member_changes.VOTERS_MAX
    assert config.MEMBERS_MAX == member_changes.VOTERS_MAX + member_changes.LEARNERS_MAX
