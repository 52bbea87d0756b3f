"""Erase, its progress, and defragmentation, against the real machine."""

from __future__ import annotations

import pytest

import raftstate
from raftstate.errors import IndefiniteError, InvalidArgumentError, NoLeaderError, OutOfRangeError
from tests.client.fake_cluster import FakeCluster, apply_and_break


async def test_an_erase_says_whether_the_key_was_there_and_ends_its_past(
    store: raftstate.AsyncClient,
) -> None:
    await store.put("k", b"v")
    erased = await store.erase("k")
    assert (erased.revision, erased.deleted) == (4, True)
    assert await store.get("k") is None
    with pytest.raises(OutOfRangeError):
        await store.get("k", revision=2)
    assert not (await store.erase("k")).deleted


async def test_an_erase_whose_answer_was_lost_is_done_once(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put("k", b"v")
    cluster.faults.append(apply_and_break)
    erased = await store.erase("k")
    assert (erased.revision, erased.deleted) == (4, True)
    assert erased.index >= cluster.rig.machine.last_erase_index


async def test_an_answer_that_held_an_erased_pair_is_unknown_and_not_waited_for(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    await store.put("k", b"v")

    async def erase_before_the_answer(node, batch):  # type: ignore[no-untyped-def]
        cluster.apply(batch)
        async with raftstate.connect_async(cluster.url) as other:
            await other.erase("k")

    cluster.faults.append(erase_before_the_answer)
    with pytest.raises(IndefiniteError, match="held a key that was erased since"):
        await store.put("k", b"w", prev_kv=True)
    assert await store.get("k") is None


async def test_progress_is_of_each_member(cluster: FakeCluster, store: raftstate.AsyncClient) -> None:
    erased = await store.erase("k")
    cluster.nodes[0].erased_index = cluster.rig.machine.last_erase_index
    await cluster.nodes[2].stop()
    for asked in (erased, erased.index):
        progress = await store.erase_progress(asked)
        assert [(each.name, each.state) for each in progress] == [
            ("n1", "done"),
            ("n2", "pending"),
            ("n3", "unreachable"),
        ]
    assert progress[2].client_address == cluster.nodes[2].address


async def test_a_member_that_has_not_applied_it_is_not_done(
    cluster: FakeCluster, store: raftstate.AsyncClient
) -> None:
    progress = await store.erase_progress(cluster.rig.machine.applied_index + 5)
    assert {each.state for each in progress} == {"pending"}


@pytest.mark.parametrize("target", [2, "n2"])
async def test_a_member_is_defragmented_by_id_or_name(
    cluster: FakeCluster, store: raftstate.AsyncClient, target: int | str
) -> None:
    assert await store.defragment(target) == 77
    assert [node.defragmented for node in cluster.nodes] == [0, 1, 0]
    with pytest.raises(InvalidArgumentError, match=r"no member is 'n9'; members are n1 \(1\), n2"):
        await store.defragment("n9")
    await cluster.nodes[1].stop()
    with pytest.raises(NoLeaderError, match="did not answer; nothing was begun"):
        await store.defragment(target)


async def test_threads_have_them_too(cluster: FakeCluster) -> None:
    def work() -> None:
        with raftstate.connect(cluster.url) as store:
            erased = store.erase("k")
            assert len(store.erase_progress(erased)) == 3
            assert store.defragment(1) == 77

    import asyncio

    await asyncio.to_thread(work)
