"""A process of etcd, and what asks it over gRPC."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from tests.differential.etcd_messages import message
from tests.differential.operations import (
    Compact,
    CompactAnswer,
    Compare,
    Delete,
    DeleteAnswer,
    Event,
    Grant,
    KeyValue,
    LeaseAnswer,
    Leases,
    LeasesAnswer,
    Put,
    PutAnswer,
    Range,
    RangeAnswer,
    Refusal,
    Renew,
    Reply,
    Request,
    Revoke,
    TimeToLive,
    Txn,
    TxnAnswer,
    Watch,
)
from tests.differential.store import REQUEST_TIMEOUT_S, Call, News, StreamWatch, ask, refused

HOW_TO_INSTALL = "there is no etcd on PATH; on Debian: apt-get install etcd-server"
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
_STARTS_MAX = 3
"""Between finding a port free and listening on it, another process may take it."""

_RESULTS = {"=": 0, ">": 1, "<": 2, "!=": 3}
_TARGETS = {"version": 0, "create_revision": 1, "mod_revision": 2, "value": 3, "lease": 4}
_ORDERS = {"none": 0, "ascend": 1, "descend": 2}
_SORT_TARGETS = {"key": 0, "version": 1, "create_revision": 2, "mod_revision": 3, "value": 4}
_NO_PUT, _NO_DELETE = 0, 1
_DELETE_EVENT = 1
_NO_SUCH_LEASE = Refusal("NOT_FOUND", "requested lease not found")


class EtcdMissingError(Exception):
    """etcd is not installed. The message says what to install."""


class EtcdFailedError(Exception):
    """etcd did not start. The message holds what it logged."""


class EtcdProcess:
    """A single etcd on free loopback ports, which ends with the `with` block.

    Args:
        folder: an empty one for its data and its log.

    Raises:
        EtcdMissingError: it is not installed.
        EtcdFailedError: it did not start.
    """

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("etcd")
        if binary is None:
            raise EtcdMissingError(HOW_TO_INSTALL)
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    @property
    def version(self) -> str:
        """What it calls itself: etcd Version: 3.4.23."""
        said = subprocess.run([self._binary, "--version"], capture_output=True, text=True, check=True)
        return said.stdout.splitlines()[0]

    def __enter__(self) -> Self:
        try:
            for number in range(1, _STARTS_MAX + 1):
                if self._start(self._folder / f"start-{number}"):
                    return self
        except BaseException:
            self._stop()
            raise
        raise EtcdFailedError(f"etcd did not start in {_STARTS_MAX} attempts; it logged:\n{self._log_tail()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self, folder: Path) -> bool:
        client_port, peer_port = _free_ports(2)
        self.address = f"127.0.0.1:{client_port}"
        client_url, peer_url = f"http://{self.address}", f"http://127.0.0.1:{peer_port}"
        folder.mkdir()
        options = {
            "data-dir": str(folder / "data"),
            "listen-client-urls": client_url,
            "advertise-client-urls": client_url,
            "listen-peer-urls": peer_url,
            "initial-advertise-peer-urls": peer_url,
            "initial-cluster": f"default={peer_url}",
            # It is alone, so that nobody but the start waits for an election.
            "heartbeat-interval": "20",
            "election-timeout": "200",
        }
        self._log = folder / "etcd.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._binary, *(f"--{name}={value}" for name, value in options.items())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # What is set for another etcd would be this one's, too.
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        with grpc.insecure_channel(self.address) as channel:
            ready = grpc.channel_ready_future(channel)
            while self._process.poll() is None and time.monotonic() < deadline:
                try:
                    ready.result(timeout=0.1)
                except grpc.FutureTimeoutError:
                    continue
                return True
            ready.cancel()
        self._stop()
        return False

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _log_tail(self) -> str:
        return "\n".join(self._log.read_text("utf-8", errors="replace").splitlines()[-15:])


class Etcd:
    """Asks an etcd. Close it when done."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._put = self._unary("KV/Put", "PutResponse")
        self._delete = self._unary("KV/DeleteRange", "DeleteResponse")
        self._range = self._unary("KV/Range", "RangeResponse")
        self._txn = self._unary("KV/Txn", "TxnResponse")
        self._compact = self._unary("KV/Compact", "CompactResponse")
        self._grant = self._unary("Lease/LeaseGrant", "GrantResponse")
        self._revoke = self._unary("Lease/LeaseRevoke", "RevokeResponse")
        self._time_to_live = self._unary("Lease/LeaseTimeToLive", "TimeToLiveResponse")
        self._leases = self._unary("Lease/LeaseLeases", "LeasesResponse")
        self._keep_alive = self._stream("Lease/LeaseKeepAlive", "KeepAliveResponse")
        self._watch = self._stream("Watch/Watch", "WatchResponse")

    def ask(self, request: Request) -> Reply:
        """Send a request without references; return its reply."""
        if isinstance(request, Renew):
            return self._renew(request)
        return ask(self._call(request))

    def watch(self, watch: Watch, start: int) -> StreamWatch:
        """Open a watch from `start` on, and wait until it stands."""
        filters = [_NO_PUT] * watch.no_put + [_NO_DELETE] * watch.no_delete
        create = _message(
            "WatchCreate",
            key=watch.key,
            range_end=watch.range_end,
            start_revision=start,
            filters=filters,
            prev_kv=watch.prev_kv,
        )
        return StreamWatch(self._watch, _message("WatchRequest", create=create), _news)

    def close(self) -> None:
        """Drop the connection."""
        self._channel.close()

    def _call(self, request: Request) -> Call:
        match request:
            case Put():
                return Call(self._put, _put_request(request), lambda got: _reply(got, _put_answer(got)))
            case Delete():
                return Call(
                    self._delete, _delete_request(request), lambda got: _reply(got, _delete_answer(got))
                )
            case Range():
                return Call(self._range, _range_request(request), lambda got: _reply(got, _range_answer(got)))
            case Txn():
                return Call(self._txn, _txn_request(request), lambda got: _reply(got, _txn_answer(got)))
            case Compact(revision):
                asked = _message("CompactRequest", revision=revision)
                return Call(self._compact, asked, lambda got: _reply(got, CompactAnswer()))
            case Grant(lease, ttl_s):
                asked = _message("GrantRequest", id=lease, ttl=ttl_s)
                return Call(self._grant, asked, lambda got: _reply(got, LeaseAnswer(got.id, got.ttl, [])))
            case Revoke(lease):
                asked = _message("RevokeRequest", id=lease)
                return Call(self._revoke, asked, lambda got: _reply(got, LeaseAnswer(lease, 0, [])))
            case TimeToLive(lease, keys):
                return Call(
                    self._time_to_live, _message("TimeToLiveRequest", id=lease, keys=keys), _time_to_live
                )
            case Leases():
                return Call(
                    self._leases,
                    _message("LeasesRequest"),
                    lambda got: _reply(got, LeasesAnswer(sorted(lease.id for lease in got.leases))),
                )
        raise AssertionError(f"{request} is not a unary request")

    def _renew(self, request: Renew) -> Reply:
        asked = _message("KeepAliveRequest", id=request.id)
        call = self._keep_alive(iter([asked]), timeout=REQUEST_TIMEOUT_S)
        try:
            got = next(call)
        except grpc.RpcError as error:
            return refused(error)
        call.cancel()
        # etcd's way to say that there is no such lease.
        if got.ttl <= 0:
            return Reply(None, _NO_SUCH_LEASE)
        return _reply(got, LeaseAnswer(got.id, got.ttl, []))

    def _unary(self, path: str, response: str) -> Callable[..., Any]:
        made: Callable[..., Any] = self._channel.unary_unary(
            f"/etcdserverpb.{path}", _serialized, message(response).FromString
        )
        return made

    def _stream(self, path: str, response: str) -> Callable[..., Any]:
        made: Callable[..., Any] = self._channel.stream_stream(
            f"/etcdserverpb.{path}", _serialized, message(response).FromString
        )
        return made


def _serialized(asked: Any) -> bytes:
    raw: bytes = asked.SerializeToString()
    return raw


def _message(name: str, **fields: object) -> Any:
    return message(name)(**fields)


# ---- requests


def _put_request(put: Put) -> Any:
    return _message("PutRequest", key=put.key, value=put.value, lease=put.lease, prev_kv=put.prev_kv)


def _delete_request(delete: Delete) -> Any:
    return _message("DeleteRequest", key=delete.key, range_end=delete.range_end, prev_kv=delete.prev_kv)


def _range_request(asked: Range) -> Any:
    return _message(
        "RangeRequest",
        key=asked.key,
        range_end=asked.range_end,
        limit=asked.limit,
        revision=asked.revision,
        sort_order=_ORDERS[asked.order],
        sort_target=_SORT_TARGETS[asked.target],
        keys_only=asked.keys_only,
        count_only=asked.count_only,
    )


def _txn_request(txn: Txn) -> Any:
    return _message(
        "TxnRequest",
        compare=list(map(_compare, txn.compares)),
        success=list(map(_operation, txn.success)),
        failure=list(map(_operation, txn.failure)),
    )


def _compare(compare: Compare) -> Any:
    return _message(
        "Compare",
        key=compare.key,
        range_end=compare.range_end,
        target=_TARGETS[compare.target],
        result=_RESULTS[compare.result],
        **{compare.target: compare.operand},
    )


def _operation(operation: Put | Delete | Range) -> Any:
    match operation:
        case Put():
            return _message("RequestOp", put=_put_request(operation))
        case Delete():
            return _message("RequestOp", delete=_delete_request(operation))
        case Range():
            return _message("RequestOp", range=_range_request(operation))


# ---- answers


def _reply(got: Any, answer: Any) -> Reply:
    return Reply(got.header.revision, answer)


def _pair(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _put_answer(got: Any) -> PutAnswer:
    return PutAnswer(_pair(got.prev_kv) if got.HasField("prev_kv") else None)


def _delete_answer(got: Any) -> DeleteAnswer:
    return DeleteAnswer(got.deleted, list(map(_pair, got.prev_kvs)))


def _range_answer(got: Any) -> RangeAnswer:
    return RangeAnswer(list(map(_pair, got.kvs)), got.more, got.count)


def _txn_answer(got: Any) -> TxnAnswer:
    return TxnAnswer(got.succeeded, list(map(_response, got.responses)))


def _response(got: Any) -> PutAnswer | DeleteAnswer | RangeAnswer:
    if got.HasField("put"):
        return _put_answer(got.put)
    if got.HasField("delete"):
        return _delete_answer(got.delete)
    return _range_answer(got.range)


def _time_to_live(got: Any) -> Reply:
    if got.ttl < 0:
        return Reply(None, _NO_SUCH_LEASE)
    return _reply(got, LeaseAnswer(got.id, got.granted_ttl, sorted(got.keys)))


def _news(got: Any) -> News:
    events = [
        Event(
            "delete" if event.type == _DELETE_EVENT else "put",
            _pair(event.kv),
            _pair(event.prev_kv) if event.HasField("prev_kv") else None,
        )
        for event in got.events
    ]
    return News(got.created, events, f"compacted {got.compact_revision}" if got.canceled else "")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
