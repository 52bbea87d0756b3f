from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from raftstate.errors import DataLossError, IndefiniteError, InvalidArgumentError, OutOfRangeError
from raftstate.state import AsyncWorkflow, Checkpoint, Workflow, delta
from tests.state.memory_store import MemoryStore

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def writer(store: MemoryStore, number: int = 1, name: str = "job") -> AsyncWorkflow:
    return AsyncWorkflow(store, name, now=lambda: NOON, writer=bytes([number]) * 8)


def conversation(turns: int) -> dict[str, Any]:
    """A state that grows by a message that compresses badly, as text does."""
    dice = random.Random(1)
    return {"messages": [{"turn": turn, "text": dice.randbytes(100).hex()} for turn in range(turns)]}


async def restored(workflow: AsyncWorkflow, *args: Any, **kwargs: Any) -> tuple[Any, Checkpoint]:
    found = await workflow.restore(*args, **kwargs)
    assert found is not None
    return found.state, found.checkpoint


async def test_a_checkpoint_says_what_was_saved_and_restore_gives_it_back() -> None:
    store = MemoryStore()
    made = await writer(store).checkpoint({"step": 3}, {"why": "test"})
    assert made == Checkpoint(
        id="1-0101010101010101",
        revision=2,
        parent=None,
        created_at=NOON,
        checksum="3ba15d5f5621544c2a56548d1d5aa907",
        size=7,
        stored_bytes=len(next(iter(store.rows.values())).value),
        kind="base",
        metadata={"why": "test"},
    )
    assert await restored(writer(store, 2)) == ({"step": 3}, made)


async def test_a_workflow_without_checkpoints_restores_nothing() -> None:
    store = MemoryStore()
    await writer(store, name="other").checkpoint(1)
    assert await writer(store).restore() is None
    assert await writer(store).restore(revision=99) is None
    assert await writer(store).list() == []


async def test_a_chain_is_listed_newest_first_each_with_its_parent() -> None:
    store = MemoryStore(page_max=3)
    workflow = writer(store)
    made = [await workflow.checkpoint({"step": step}) for step in range(10)]
    assert await workflow.list() == made[::-1]
    assert await workflow.list(4) == made[:-5:-1]
    assert [checkpoint.parent for checkpoint in made] == [None, *(checkpoint.id for checkpoint in made[:-1])]


async def test_each_checkpoint_restores_by_its_id_and_by_revision() -> None:
    store = MemoryStore(page_max=3)
    workflow = writer(store)
    made = [await workflow.checkpoint({"step": step}) for step in range(10)]
    for step, checkpoint in enumerate(made):
        assert await restored(writer(store, 2), checkpoint.id) == ({"step": step}, checkpoint)
        assert await restored(writer(store, 2), revision=checkpoint.revision) == ({"step": step}, checkpoint)
    assert await writer(store, 2).restore(revision=1) is None


async def test_a_new_object_continues_the_chain_without_restoring() -> None:
    store = MemoryStore()
    first = await writer(store, 1).checkpoint({"step": 1})
    second = await writer(store, 2).checkpoint({"step": 2})
    assert (second.id, second.parent) == ("2-0202020202020202", first.id)


async def test_a_step_back_makes_a_child_of_the_old_checkpoint_that_is_the_newest() -> None:
    store = MemoryStore()
    workflow = writer(store)
    made = [await workflow.checkpoint({"step": step}) for step in range(3)]
    await workflow.restore(made[0].id)
    retry = await workflow.checkpoint({"step": "again"})
    assert (retry.parent, retry.id) == (made[0].id, "4-0101010101010101")
    assert await restored(writer(store, 2)) == ({"step": "again"}, retry)
    assert len(await workflow.list()) == 4


async def test_two_writers_that_do_not_know_of_each_other_make_a_visible_fork() -> None:
    store = MemoryStore()
    root = await writer(store, 9).checkpoint("root")
    one, two = writer(store, 2), writer(store, 1)
    await one.restore()
    await two.restore()
    left = await one.checkpoint("left")
    right = await two.checkpoint("right")
    assert left.parent == right.parent == root.id
    assert sorted(c.id for c in await writer(store, 3).list()) == sorted([root.id, left.id, right.id])
    assert (await restored(writer(store, 3), left.id))[0] == "left"
    # The one written last counts, whichever writer's bits sort first.
    assert await restored(writer(store, 3)) == ("right", right)


async def test_checkpoints_of_several_tasks_form_one_chain() -> None:
    store = MemoryStore()
    workflow = writer(store)
    made = await asyncio.gather(*(workflow.checkpoint(step) for step in range(5)))
    assert [c.parent for c in made] == [None, *(c.id for c in made[:-1])]


async def test_a_checkpoint_whose_answer_was_lost_is_never_overwritten() -> None:
    store = MemoryStore()
    workflow = writer(store)
    first = await workflow.checkpoint("first")
    store.lose_answer = True
    with pytest.raises(IndefiniteError):
        await workflow.checkpoint("lost answer")
    again = await workflow.checkpoint("again")
    found = await workflow.list()
    assert [(c.id[:2], c.parent) for c in found] == [("3-", first.id), ("2-", first.id), ("1-", None)]
    assert found[0] == again
    assert (await restored(writer(store, 2), found[1].id))[0] == "lost answer"


async def test_a_restore_reads_two_rows_however_long_the_chain() -> None:
    store = MemoryStore()
    workflow = writer(store)
    for turns in range(1, 60):
        await workflow.checkpoint(conversation(turns))
    made = await workflow.list()
    assert {c.kind for c in made} == {"base", "delta"}
    for checkpoint in made:
        store.gets = 0
        state, _ = await restored(writer(store, 2), checkpoint.id)
        assert state == conversation(int(checkpoint.id.partition("-")[0]))
        assert store.gets == (1 if checkpoint.kind == "base" else 2)


async def test_one_object_restores_checkpoints_of_different_bases() -> None:
    store = MemoryStore()
    workflow = writer(store)
    made = [await workflow.checkpoint(conversation(turns)) for turns in range(1, 30)]
    deltas = [checkpoint for checkpoint in made if checkpoint.kind == "delta"]
    for checkpoint in (deltas[0], deltas[-1], deltas[0]):
        assert (await restored(workflow, checkpoint.id))[0] == conversation(made.index(checkpoint) + 1)


async def test_the_deltas_of_a_base_take_no_more_room_than_it() -> None:
    store = MemoryStore()
    workflow = writer(store)
    for turns in range(1, 120):
        await workflow.checkpoint(conversation(turns))
    header_bytes = 120
    room, deltas = 0, 0
    for checkpoint in reversed(await workflow.list(200)):
        if checkpoint.kind == "base":
            room = checkpoint.stored_bytes
            deltas = 0
        else:
            deltas += checkpoint.stored_bytes - header_bytes
            assert deltas <= room
    stored = sum(c.stored_bytes for c in await workflow.list(200))
    assert stored < 0.2 * sum(c.size for c in await workflow.list(200))


async def test_a_small_change_to_a_large_state_is_stored_in_few_bytes() -> None:
    store = MemoryStore()
    workflow = writer(store)
    state = {"blobs": [os.urandom(1 << 16) for _ in range(80)]}
    await workflow.checkpoint(state)
    state["blobs"][40] = b"changed"
    made = await workflow.checkpoint(state)
    assert (made.kind, made.stored_bytes < 10_000, made.size > 5_000_000) == ("delta", True, True)
    assert (await restored(writer(store, 2)))[0] == state


async def test_the_state_is_taken_at_the_call_not_later() -> None:
    store = MemoryStore()
    workflow = writer(store)
    state = {"big": "x" * 200_000, "step": 1}
    pending = asyncio.create_task(workflow.checkpoint(state))
    await asyncio.sleep(0)
    state["step"] = 2
    await pending
    assert (await restored(writer(store, 2)))[0]["step"] == 1


async def test_a_state_comes_back_as_the_type_asked_for() -> None:
    class Job(msgspec.Struct):
        step: int

    store = MemoryStore()
    await writer(store).checkpoint(Job(step=4))
    assert (await restored(writer(store, 2), type=Job))[0] == Job(step=4)
    assert (await restored(writer(store, 2)))[0] == {"step": 4}


async def test_every_flipped_bit_of_a_stored_state_is_found() -> None:
    store = MemoryStore()
    workflow = writer(store)
    await workflow.checkpoint({"text": "a" * 40, "n": [1, 2, 3]})
    await workflow.checkpoint({"text": "a" * 40, "n": [1, 2, 4]})
    genuine = dict(store.rows)
    for key, row in genuine.items():
        payload = msgspec.msgpack.decode(row.value)[-1]
        start = len(row.value) - len(payload)
        for bit in range(8 * start, 8 * len(row.value)):
            damaged = bytearray(row.value)
            damaged[bit // 8] ^= 1 << bit % 8
            store.rows[key] = msgspec.structs.replace(row, value=bytes(damaged))
            try:
                found = await writer(store, 2).restore()
            except DataLossError:
                continue
            assert found is not None
            # A bit of zstd's frame header that says nothing about the content.
            assert found.state == {"text": "a" * 40, "n": [1, 2, 4]}
        store.rows[key] = row


async def test_a_checksum_that_does_not_match_is_data_loss() -> None:
    store = MemoryStore()
    made = await writer(store).checkpoint({"step": 3})
    (key, row), *_ = store.rows.items()
    checksum = bytes.fromhex(made.checksum)
    store.rows[key] = msgspec.structs.replace(row, value=row.value.replace(checksum, bytes(16)))
    with pytest.raises(
        DataLossError, match=f"1-0101010101010101 of 'job' has checksum {made.checksum}, not 0000"
    ):
        await writer(store).restore()


async def test_a_row_that_is_no_checkpoint_is_data_loss() -> None:
    store = MemoryStore()
    made = await writer(store).checkpoint({"step": 3})
    (key, row), *_ = store.rows.items()
    store.rows[key] = msgspec.structs.replace(row, value=b"junk")
    with pytest.raises(DataLossError, match=f"checkpoint {made.id} is not readable"):
        await writer(store).restore()


async def test_a_state_over_the_stores_limit_is_refused_and_the_chain_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = MemoryStore()
    workflow = writer(store)
    with pytest.raises(
        InvalidArgumentError,
        match=r"takes 8,4\d\d,\d\d\d bytes compressed .*limit of both together is 8,388,608",
    ):
        await workflow.checkpoint(os.urandom((8 << 20) + 100_000))
    monkeypatch.setattr(delta, "STATE_BYTES_MAX", 1_000)
    with pytest.raises(InvalidArgumentError, match="takes 1,004 bytes encoded; the limit is 1,000"):
        await workflow.checkpoint("x" * 1_001)
    assert (await workflow.checkpoint("ok")).parent is None
    assert len(await workflow.list()) == 1


async def test_long_names_fit_a_key_and_do_not_meet() -> None:
    store = MemoryStore()
    names = ["n" * 300 + "a", "n" * 300 + "b", "\0" * 100, "é" * 128]
    for name in names:
        await writer(store, name=name).checkpoint(name)
    for name in names:
        assert (await restored(writer(store, name=name)))[0] == name
    assert max(map(len, store.rows)) <= 480


@pytest.mark.parametrize("name", ["", 5, None, b"job", "\ud800"])
def test_a_name_that_is_no_text_is_refused(name: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a workflow's name must be") as caught:
        AsyncWorkflow(MemoryStore(), name)
    assert caught.value.field == "name"


async def test_what_is_wrong_with_metadata_is_not_blamed_on_the_state() -> None:
    workflow = writer(MemoryStore())
    with pytest.raises(
        InvalidArgumentError, match=r"can't save metadata\['x'\]: it is a builtins.set"
    ) as caught:
        await workflow.checkpoint({}, {"x": {1}})
    assert caught.value.field == "metadata"
    with pytest.raises(InvalidArgumentError, match=r"the metadata takes 8,388,6\d\d bytes") as caught:
        await workflow.checkpoint({}, bytes(8 << 20))
    assert caught.value.field == "metadata"


async def test_wrong_arguments_are_refused() -> None:
    workflow = writer(MemoryStore())
    with pytest.raises(InvalidArgumentError, match="an id or a revision, not both"):
        await workflow.restore("1-00", revision=3)
    with pytest.raises(InvalidArgumentError, match="'latest' is not the id of a checkpoint"):
        await workflow.restore("latest")
    with pytest.raises(OutOfRangeError, match="workflow 'job' has no checkpoint '7-00'"):
        await workflow.restore("7-00")
    for limit in (0, "a"):
        with pytest.raises(InvalidArgumentError, match="limit must be a whole number from 1 up"):
            await workflow.list(limit)  # type: ignore[arg-type]
    for revision in (-1, "x", True):
        with pytest.raises(InvalidArgumentError, match="revision must be a whole number from 0 up"):
            await workflow.restore(revision=revision)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match=r"id must be the str of a Checkpoint\.id, got 5"):
        await workflow.restore(5)  # type: ignore[call-overload]
    with pytest.raises(InvalidArgumentError, match=r"can't save state\['x'\]"):
        await workflow.checkpoint({"x": object()})


def test_the_sync_face_runs_the_same_code() -> None:
    store = MemoryStore()

    with asyncio.Runner() as runner:

        def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return runner.run(coroutine)

        workflow = Workflow(writer(store), run)
        made = workflow.checkpoint({"step": 3}, {"m": 1})
        found = workflow.restore()
        assert found is not None
        assert (workflow.name, found.state, found.checkpoint, workflow.list()) == (
            "job",
            {"step": 3},
            made,
            [made],
        )
