"""The fixtures of raftstate.testing, in a test suite as somebody else would write it."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]


def run_suite(pytester: pytest.Pytester, tests: str) -> pytest.RunResult:
    """Run tests in a process of their own, whose conftest.py asks for the fixtures."""
    pytester.makeconftest('pytest_plugins = ["raftstate.testing"]')
    pytester.makepyfile(tests)
    # Warnings are errors: a client or a node that a fixture leaves open would be one.
    return pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio")


def test_each_test_gets_an_empty_store_of_its_own(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
        import asyncio
        import pytest
        import raftstate

        @pytest.mark.parametrize("run", [1, 2])
        def test_store(raftstate_store, run):
            assert raftstate_store.range().count == 0
            raftstate_store.put("k", b"v")
            assert raftstate_store.get("k").value == b"v"

        def test_url(raftstate_url):
            async def write():
                async with raftstate.connect_async(raftstate_url) as store:
                    await store.put("k", b"v")

            asyncio.run(write())
            with raftstate.connect(raftstate_url) as store:
                assert store.get("k").value == b"v"

        def test_they_are_the_same(raftstate_store, raftstate_url):
            raftstate_store.put("k", b"v")
            with raftstate.connect(raftstate_url) as other:
                assert other.get("k").value == b"v"
        """,
    )
    result.assert_outcomes(passed=4)


def test_a_store_is_closed_after_a_test_that_failed(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
        import pytest
        import raftstate

        stores = []

        def test_fails(raftstate_store):
            stores.append(raftstate_store)
            raftstate_store.put("k", b"v")
            assert False

        def test_it_is_closed():
            with pytest.raises(raftstate.ClosedError):
                stores[0].get("k")
        """,
    )
    result.assert_outcomes(passed=1, failed=1)


@pytest.mark.processes
def test_a_cluster_of_processes_serves_and_can_lose_its_leader(pytester: pytest.Pytester) -> None:
    result = run_suite(
        pytester,
        """
        import raftstate

        def test_cluster(raftstate_cluster):
            with raftstate.connect(raftstate_cluster.url, timeout=30) as store:
                store.put("k", b"v")
                leader = raftstate_cluster.wait_for_leader()
                raftstate_cluster.kill(leader)
                assert store.get("k").value == b"v"
                raftstate_cluster.restart(leader)
                assert len(raftstate_cluster.endpoints) == 3
        """,
    )
    result.assert_outcomes(passed=1)
