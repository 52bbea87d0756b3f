"""Watches over a real channel: what a stream is told, what it is refused, and how it ends."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.message import Message

from raftstate.errors import (
    ClosedError,
    DataLossError,
    NoLeaderError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from raftstate.machine.types import KeyValue
from raftstate.node.service import WatchEnd, WatchEvent, WatchNews, WatchSpec
from raftstate.pb.v1 import common_pb2, kv_pb2, watch_pb2
from raftstate.rpc.methods import StreamMethod, methods_of, serve
from raftstate.rpc.status import RefusedError
from tests.rpc.conftest import Served
from tests.rpc.errors import refusal, told_by
from tests.rpc.fake_node import CLUSTER_ID, NODE_ID, TERM, FakeNode
from tests.rpc.fake_watches import FakeWatches

Stream = grpc.aio.StreamStreamCall[watch_pb2.WatchRequest, watch_pb2.WatchResponse]
INVALID = common_pb2.ERROR_CODE_INVALID
PUT, DELETE = watch_pb2.Event.KIND_PUT, watch_pb2.Event.KIND_DELETE
LONG = b"k" * 481


def create(watch_id: int, key: bytes = b"a", range_end: bytes = b"", **fields: int) -> watch_pb2.WatchRequest:
    made = watch_pb2.WatchCreate(watch_id=watch_id, key=key, range_end=range_end, **fields)  # type: ignore[arg-type]
    return watch_pb2.WatchRequest(create=made)


def cancel(watch_id: int) -> watch_pb2.WatchRequest:
    return watch_pb2.WatchRequest(cancel=watch_pb2.WatchCancel(watch_id=watch_id))


PROGRESS = watch_pb2.WatchRequest(progress=watch_pb2.WatchProgress())


def header(*, revision: int, applied_index: int) -> common_pb2.ResponseHeader:
    return common_pb2.ResponseHeader(
        cluster_id=CLUSTER_ID, node_id=NODE_ID, revision=revision, applied_index=applied_index, term=TERM
    )


def pair(key: bytes, value: bytes, create: int, mod: int, version: int) -> common_pb2.KeyValue:
    return common_pb2.KeyValue(
        key=key, value=value, create_revision=create, mod_revision=mod, version=version
    )


async def read(stream: Stream) -> watch_pb2.WatchResponse:
    async with asyncio.timeout(10):
        response = await stream.read()
    assert isinstance(response, watch_pb2.WatchResponse), "the stream ended"
    return response


async def assert_ends_well(stream: Stream) -> None:
    async with asyncio.timeout(10):
        assert await stream.read() is grpc.aio.EOF
        assert await stream.code() is grpc.StatusCode.OK


async def put(served: Served, key: bytes, value: bytes) -> None:
    await served.kv.Put(kv_pb2.PutRequest(key=key, value=value))


async def open_watch(served: Served, request: watch_pb2.WatchRequest) -> tuple[Stream, FakeWatches]:
    """Open a stream with one watch, and see it created; return it and the node's side of it."""
    stream = served.watch.Watch()
    await stream.write(request)
    created = await read(stream)
    assert [each.watch_id for each in created.created] == [request.create.watch_id]
    return stream, served.node.streams[-1]


def raw_stream(served: Served) -> grpc.aio.StreamStreamCall[bytes, watch_pb2.WatchResponse]:
    return served.channel.stream_stream(
        "/raftstate.v1.Watch/Watch", response_deserializer=watch_pb2.WatchResponse.FromString
    )()


async def test_a_watch_is_created_and_told_of_puts_and_deletes(served: Served) -> None:
    stream = served.watch.Watch()
    await put(served, b"a", b"0")
    await stream.write(create(7, prev_kv=True))
    assert await read(stream) == watch_pb2.WatchResponse(
        header=header(revision=2, applied_index=1),
        created=[watch_pb2.WatchCreated(watch_id=7, start_revision=3)],
    )
    await put(served, b"a", b"1")
    event = watch_pb2.Event(kind=PUT, kv=pair(b"a", b"1", 2, 3, 2), prev_kv=pair(b"a", b"0", 2, 2, 1))
    assert await read(stream) == watch_pb2.WatchResponse(
        header=header(revision=3, applied_index=2),
        events=[watch_pb2.WatchEvents(watch_ids=[7], events=[event])],
    )
    await served.kv.Delete(kv_pb2.DeleteRequest(key=b"a"))
    deleted = common_pb2.KeyValue(key=b"a", mod_revision=4)
    event = watch_pb2.Event(kind=DELETE, kv=deleted, prev_kv=pair(b"a", b"1", 2, 3, 2))
    response = await read(stream)
    assert response.events == [watch_pb2.WatchEvents(watch_ids=[7], events=[event])]


async def test_a_watch_from_a_past_revision_is_told_what_happened_since(served: Served) -> None:
    for value in (b"1", b"2", b"3"):
        await put(served, b"a", value)
    stream = served.watch.Watch()
    await stream.write(create(1, b"a", b"b", start_revision=3))
    response = await read(stream)
    assert response.created == [watch_pb2.WatchCreated(watch_id=1, start_revision=3)]
    assert [event.kv.value for event in response.events[0].events] == [b"2", b"3"]
    assert not any(event.HasField("prev_kv") for event in response.events[0].events)


@pytest.mark.parametrize(
    ("request_", "spec"),
    [
        (create(0), WatchSpec(0, b"a", b"a\x00", 0)),
        (
            create((1 << 64) - 1, b"a", b"\x00", start_revision=9, prev_kv=True),
            WatchSpec((1 << 64) - 1, b"a", None, 9, prev_kv=True),
        ),
        (
            create(3, b"a", b"b", progress_notify=True, no_put=True),
            WatchSpec(3, b"a", b"b", 0, progress_notify=True, no_put=True),
        ),
        (
            create(3, b"k" * 480 + b"\x00", b"z", no_delete=True),
            WatchSpec(3, b"k" * 480 + b"\x00", b"z", 0, no_delete=True),
        ),
    ],
    ids=["one key", "all keys", "no puts", "no deletes"],
)
async def test_what_a_watch_wants_reaches_the_node_in_full(
    served: Served, request_: watch_pb2.WatchRequest, spec: WatchSpec
) -> None:
    _, watches = await open_watch(served, request_)
    assert watches.specs == {spec.watch_id: spec}
    assert watches.timeouts_s == [5.0]


async def test_requests_are_taken_in_their_order_and_an_id_may_be_used_again_after_its_end(
    served: Served,
) -> None:
    stream = served.watch.Watch()
    for request in (create(1), create(2), cancel(1), PROGRESS):
        await stream.write(request)
    told: list[str] = []
    while "progress 2" not in told or "end 1" not in told:
        response = await read(stream)
        told += [f"create {each.watch_id}" for each in response.created]
        told += [f"end {each.watch_id}" for each in response.canceled]
        told += [f"progress {watch_id}" for watch_id in response.progress]
    assert told[:2] == ["create 1", "create 2"]
    assert sorted(told[2:]) == ["end 1", "progress 2"]
    await stream.write(create(1, b"z"))
    assert (await read(stream)).created[0].watch_id == 1
    assert served.node.streams[0].specs == {
        1: WatchSpec(1, b"z", b"z\x00", 0),
        2: WatchSpec(2, b"a", b"a\x00", 0),
    }


async def test_a_cancel_is_answered_without_an_error_and_one_of_no_watch_not_at_all(served: Served) -> None:
    stream, _ = await open_watch(served, create(1))
    await stream.write(cancel(99))
    await stream.write(cancel(1))
    response = await read(stream)
    assert response.canceled == [watch_pb2.WatchCanceled(watch_id=1)]
    assert not response.canceled[0].HasField("error")


async def test_all_that_news_can_hold_is_told(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    one = WatchEvent(False, KeyValue(b"a", b"v", 3, 4, 2, 77), KeyValue(b"a", b"u", 3, 3, 1))
    two = WatchEvent(True, KeyValue(b"b", b"", 0, 5, 0))
    news = WatchNews(
        revision=9,
        applied_index=12,
        created=[(4, 6)],
        events=[((1, 2), [one, two]), ((3,), [two])],
        progress=[1, 3],
        ended=[
            WatchEnd(8),
            WatchEnd(9, OutOfRangeError("revision 1 is compacted", field="start_revision"), 5),
            WatchEnd(10, DataLossError("a row is damaged")),
        ],
    )
    watches.tell(news)
    kv = pair(b"a", b"v", 3, 4, 2)
    kv.lease = 77
    first = watch_pb2.Event(kind=PUT, kv=kv, prev_kv=pair(b"a", b"u", 3, 3, 1))
    second = watch_pb2.Event(kind=DELETE, kv=common_pb2.KeyValue(key=b"b", mod_revision=5))
    not_applied = common_pb2.OUTCOME_NOT_APPLIED
    assert await read(stream) == watch_pb2.WatchResponse(
        header=header(revision=9, applied_index=12),
        created=[watch_pb2.WatchCreated(watch_id=4, start_revision=6)],
        events=[
            watch_pb2.WatchEvents(watch_ids=[1, 2], events=[first, second]),
            watch_pb2.WatchEvents(watch_ids=[3], events=[second]),
        ],
        progress=[1, 3],
        canceled=[
            watch_pb2.WatchCanceled(watch_id=8),
            watch_pb2.WatchCanceled(
                watch_id=9,
                error=common_pb2.Error(
                    code=common_pb2.ERROR_CODE_OUT_OF_RANGE,
                    outcome=not_applied,
                    message="revision 1 is compacted",
                    field="start_revision",
                ),
                compacted_revision=5,
            ),
            watch_pb2.WatchCanceled(
                watch_id=10,
                error=common_pb2.Error(
                    code=common_pb2.ERROR_CODE_DATA_LOSS, outcome=not_applied, message="a row is damaged"
                ),
            ),
        ],
    )


UNKNOWN_FIELD = b"\x9a\x06\x01x"  # field 99, one byte


def with_unknown_in_create(watch_id: int) -> bytes:
    made = create(watch_id).create.SerializeToString() + UNKNOWN_FIELD
    return b"\x0a" + bytes([len(made)]) + made


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        (create(5, b"").SerializeToString(), "key", "key must have 1 to 480 bytes, got 0"),
        (create(5, LONG).SerializeToString(), "key", "key must have 1 to 480 bytes, got 481"),
        (
            create(5, b"a", LONG).SerializeToString(),
            "range_end",
            "range_end must have 1 to 480 bytes, got 481",
        ),
        (create(5, b"b", b"b").SerializeToString(), "range_end", "got key b'b', range_end b'b'"),
        (create(5, b"b", b"a").SerializeToString(), "range_end", "range_end must lie above key"),
        (
            create(5, no_put=True, no_delete=True).SerializeToString(),
            "no_delete",
            "no_put and no_delete leave nothing to watch",
        ),
        (create(1).SerializeToString(), "watch_id", "watch_id 1 is that of an open watch"),
        (with_unknown_in_create(5), "create.99", "unknown field: got field number 99 in create"),
        (create(5).SerializeToString() + UNKNOWN_FIELD, "99", "got field number 99 in WatchRequest"),
    ],
    ids=[
        "no key",
        "long key",
        "long end",
        "empty",
        "reversed",
        "filters",
        "id in use",
        "unknown",
        "unknown beside",
    ],
)
async def test_a_create_that_is_no_good_is_answered_for_its_id_and_the_stream_goes_on(
    served: Served, raw: bytes, field: str, says: str
) -> None:
    stream = raw_stream(served)
    await stream.write(create(1).SerializeToString())
    assert len((await read(stream)).created) == 1  # type: ignore[arg-type]
    await stream.write(raw)
    [canceled] = (await read(stream)).canceled  # type: ignore[arg-type]
    assert canceled.watch_id == watch_pb2.WatchRequest.FromString(raw).create.watch_id
    assert (canceled.error.code, canceled.error.outcome, canceled.error.field) == (
        INVALID,
        common_pb2.OUTCOME_NOT_APPLIED,
        field,
    )
    assert says in canceled.error.message
    await put(served, b"a", b"1")
    assert (await read(stream)).events[0].watch_ids == [1]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NoLeaderError("no leader answered in time", detail={"term": 7}), common_pb2.ERROR_CODE_NO_LEADER),
        (
            ResourceExhaustedError("10000 watches are open, the limit"),
            common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED,
        ),
    ],
)
async def test_what_the_node_refuses_a_watch_for_is_told_in_its_place(
    served: Served, error: Exception, code: int
) -> None:
    stream, watches = await open_watch(served, create(1))
    watches.create_error = error
    await stream.write(create(2))
    response = await read(stream)
    assert response.header == header(revision=1, applied_index=0)
    assert [(each.watch_id, each.error.code) for each in response.canceled] == [(2, code)]
    await stream.write(create(3))
    assert (await read(stream)).created[0].watch_id == 3


async def test_a_watch_of_a_compacted_revision_is_told_where_one_can_begin(served: Served) -> None:
    for value in (b"1", b"2", b"3"):
        await put(served, b"a", value)
    await served.kv.Compact(kv_pb2.CompactRequest(revision=3))
    stream = served.watch.Watch()
    await stream.write(create(1, start_revision=2))
    [canceled] = (await read(stream)).canceled
    assert (canceled.error.code, canceled.compacted_revision) == (common_pb2.ERROR_CODE_OUT_OF_RANGE, 3)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"\xff\xff\xff", "the 3 bytes of the request are no raftstate.v1.WatchRequest"),
        (b"", "a request must hold create, cancel or progress, got none of them"),
        (UNKNOWN_FIELD, "unknown field: got field number 99 in WatchRequest"),
        (cancel(1).SerializeToString() + UNKNOWN_FIELD, "unknown field: got field number 99 in WatchRequest"),
    ],
    ids=["garbage", "nothing", "unknown request", "cancel with unknown"],
)
async def test_what_is_no_request_ends_its_stream_and_no_other(served: Served, raw: bytes, says: str) -> None:
    other, _ = await open_watch(served, create(1))
    stream = raw_stream(served)
    await stream.write(create(1).SerializeToString())
    await stream.read()
    await stream.write(raw)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stream.read()
    told = told_by(caught.value)
    assert (told.status, told.error.code) == (grpc.StatusCode.INVALID_ARGUMENT, INVALID)
    assert says in told.text
    assert served.node.streams[1].is_closed
    await put(served, b"a", b"1")
    assert (await read(other)).events[0].watch_ids == [1]


async def test_a_stream_ends_unavailable_when_the_node_stops(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    watches.stop()
    told = await refusal(stream.read())
    assert (told.status, told.error.code) == (grpc.StatusCode.UNAVAILABLE, common_pb2.ERROR_CODE_NO_LEADER)
    assert "the node is stopping" in told.text
    assert watches.is_closed


async def test_a_create_that_meets_a_node_that_stops_ends_its_stream(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    watches.create_error = ClosedError("the node is stopping")
    await stream.write(create(2))
    told = await refusal(stream.read())
    assert (told.status, told.error.code) == (grpc.StatusCode.UNAVAILABLE, common_pb2.ERROR_CODE_NO_LEADER)


async def test_a_stream_beyond_the_node_s_limit_is_refused(served: Served) -> None:
    served.node.watches_error = ResourceExhaustedError("this node serves 1024 streams of watches, its limit")
    told = await refusal(served.watch.Watch().read())
    assert (told.status, told.error.code) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        common_pb2.ERROR_CODE_RESOURCE_EXHAUSTED,
    )


async def test_a_half_closed_stream_goes_on_until_its_last_watch_has_ended(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    await stream.done_writing()
    await put(served, b"a", b"1")
    assert (await read(stream)).events[0].events[0].kv.value == b"1"
    watches.cancel(1)
    assert (await read(stream)).canceled == [watch_pb2.WatchCanceled(watch_id=1)]
    await assert_ends_well(stream)


async def test_a_half_closed_stream_without_watches_ends_well(served: Served) -> None:
    stream = served.watch.Watch()
    await stream.write(create(1, b""))
    assert (await read(stream)).canceled[0].watch_id == 1
    await stream.done_writing()
    await assert_ends_well(stream)
    assert served.node.streams[0].is_closed


async def test_a_cancelled_stream_closes_its_watches(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    closed = asyncio.Event()
    watches.close = closed.set  # type: ignore[method-assign]
    stream.cancel()
    async with asyncio.timeout(10):
        await closed.wait()


def large_news(count: int) -> list[WatchNews]:
    event = WatchEvent(False, KeyValue(b"a", bytes(1 << 20), 2, 2, 1))
    return [WatchNews(revision, 0, events=[((1,), [event])]) for revision in range(2, count + 2)]


async def test_a_client_that_does_not_read_is_not_asked_for_news_in_advance(served: Served) -> None:
    stream, watches = await open_watch(served, create(1))
    for news in large_news(40):
        watches.tell(news)
    # Reads go to the node and back on the same connection: what flow control would let pass, it has by then.
    for _ in range(100):
        await served.kv.Get(kv_pb2.GetRequest(key=b"absent"))
    assert watches.told < 20
    for revision in range(2, 42):
        assert (await read(stream)).header.revision == revision


async def test_garbage_from_a_client_that_does_not_read_ends_its_stream_after_what_was_being_written(
    served: Served,
) -> None:
    stream = raw_stream(served)
    await stream.write(create(1).SerializeToString())
    await stream.read()
    watches = served.node.streams[0]
    for news in large_news(40):
        watches.tell(news)
    for _ in range(100):
        await served.kv.Get(kv_pb2.GetRequest(key=b"absent"))
    told_before = watches.told
    await stream.write(b"\xff")
    revisions: list[int] = []

    async def read_all() -> None:
        while isinstance(response := await stream.read(), watch_pb2.WatchResponse):
            revisions.append(response.header.revision)

    assert (await refusal(read_all())).status is grpc.StatusCode.INVALID_ARGUMENT
    assert revisions == list(range(2, len(revisions) + 2))
    assert len(revisions) >= told_before - 1


async def test_a_client_that_does_not_read_its_refusals_is_not_read_from_either() -> None:
    node = FakeNode()
    reads = 0
    blocked = asyncio.Event()

    class Unread:
        async def read(self) -> bytes | None:
            nonlocal reads
            reads += 1
            return create(reads, b"").SerializeToString() if reads < 100 else None

        async def write(self, message: Message) -> None:
            blocked.set()
            await asyncio.get_running_loop().create_future()

    method = methods_of(node)["Watch/Watch"]
    assert isinstance(method, StreamMethod)
    serving = asyncio.ensure_future(serve(method, Unread()))
    await blocked.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    assert reads == 1
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


async def test_a_stream_that_the_node_gives_up_ends_with_the_reason_though_a_message_is_being_written() -> (
    None
):
    node = FakeNode()
    blocked = asyncio.Event()
    requests = [create(1).SerializeToString()]

    class Stuck:
        async def read(self) -> bytes | None:
            if requests:
                return requests.pop()
            await asyncio.get_running_loop().create_future()
            return None

        async def write(self, message: Message) -> None:
            blocked.set()
            await asyncio.get_running_loop().create_future()

    method = methods_of(node)["Watch/Watch"]
    assert isinstance(method, StreamMethod)
    serving = asyncio.ensure_future(serve(method, Stuck()))
    await blocked.wait()
    [watches] = node.streams
    watches.given_up.set_result("it has not taken 9 bytes")
    with pytest.raises(RefusedError) as caught:
        await serving
    refused = caught.value.refusal
    assert (refused.status, refused.error.message) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "it has not taken 9 bytes",
    )
    assert watches.is_closed
