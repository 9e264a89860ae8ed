"""Nodes are listed seldom, and where we may not look they are left alone."""

import asyncio

import pytest

from quire_operator.errors import ApiError, Denied, Invalid
from quire_operator.kinds import Kind, Manifest
from quire_operator.nodes import DENIED_SECONDS, FRESH_SECONDS, NodeReader
from quire_operator.testing import FakeCluster, node_manifest

LABEL = "nvidia.com/gpu.memory"


class Counting(FakeCluster):
    """A cluster that counts lists, and may refuse them."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0
        self.error: ApiError | None = None

    async def list_objects(
        self, kind: Kind, namespace: str | None, **how: object
    ) -> list[Manifest]:
        self.lists += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return await super().list_objects(kind, namespace, **how)  # type: ignore[arg-type]


async def test_only_nodes_that_tell_a_number_count() -> None:
    cluster = Counting()
    cluster.put(node_manifest("a", {LABEL: "81559", "pool": "x"}))
    cluster.put(node_manifest("b", {LABEL: "many"}))
    cluster.put(node_manifest("c", {"pool": "x"}))
    found = await NodeReader(cluster, lambda: cluster.now).read(LABEL)
    assert [(node.name, node.mebibytes, node.labels["pool"]) for node in found] == [
        ("a", 81559, "x")
    ]


async def test_one_list_serves_all_for_a_while() -> None:
    cluster = Counting()
    reader = NodeReader(cluster, lambda: cluster.now)
    assert await reader.read(LABEL) == ()
    cluster.put(node_manifest("a", {LABEL: "81559"}))
    assert await reader.read(LABEL) == ()
    assert cluster.lists == 1
    cluster.now += FRESH_SECONDS
    assert [node.name for node in await reader.read(LABEL)] == ["a"]


async def test_who_comes_while_a_list_runs_waits_for_that_one() -> None:
    cluster = Counting()
    cluster.put(node_manifest("a", {LABEL: "81559"}))
    reader = NodeReader(cluster, lambda: cluster.now)
    found = await asyncio.gather(*(reader.read(LABEL) for _ in range(8)))
    assert [len(nodes) for nodes in found] == [1] * 8
    assert cluster.lists == 1


@pytest.mark.parametrize(
    "error",
    [
        Denied(403, "GET nodes", "nodes is forbidden"),
        Invalid(400, "GET nodes", "unable to parse requirement: no label of two slashes"),
    ],
)
async def test_without_an_answer_nothing_is_known_and_seldom_asked(error: ApiError) -> None:
    cluster = Counting()
    cluster.error = error
    reader = NodeReader(cluster, lambda: cluster.now)
    for _ in range(30):
        assert await reader.read(LABEL) == ()
        cluster.now += DENIED_SECONDS / 31
    assert cluster.lists == 1
    cluster.error = None
    cluster.put(node_manifest("a", {LABEL: "81559"}))
    cluster.now += DENIED_SECONDS
    assert [node.name for node in await reader.read(LABEL)] == ["a"]
