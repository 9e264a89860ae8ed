"""The check on the watches: what they missed is learnt, and missing twice running is told."""

import pytest

from quire_operator.kinds import POD, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.sweep import Sweeper
from quire_operator.testing import FakeCluster, Rig, service_manifest
from quire_operator.world import World


async def no_sleep(seconds: float) -> None:
    return None


def sweeper(cluster: FakeCluster, world: World) -> Sweeper:
    return Sweeper(cluster, world, (), sleep=no_sleep)


async def test_a_world_that_is_up_to_date_is_left_alone(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    found = sweeper(rig.cluster, rig.world)
    assert await found.sweep(SERVICE_KIND) == 0
    assert not found.is_stale


async def test_what_a_watch_missed_is_learnt() -> None:
    cluster, world = FakeCluster(), World()
    cluster.put(service_manifest())
    found = sweeper(cluster, world)
    assert await found.sweep(SERVICE_KIND) == 1
    assert world.keys() == [Key("default", "chat")]
    assert not found.is_stale, "once is a hiccup"
    assert await found.sweep(SERVICE_KIND) == 0


async def test_what_was_deleted_unseen_is_forgotten(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster._listeners.clear()  # the watches are down
    for pod in rig.cluster.all(POD):
        rig.cluster.remove(POD, Key("default", pod["metadata"]["name"]))
    assert await sweeper(rig.cluster, rig.world).sweep(POD) > 0
    assert rig.world.pods(chat) == []


async def test_missing_something_twice_running_is_stale() -> None:
    cluster, world = FakeCluster(), World()
    found = sweeper(cluster, world)
    for name in ("a", "b"):
        cluster.put(service_manifest(name))
        await found.sweep(SERVICE_KIND)
    assert found.is_stale


async def test_a_late_watch_is_given_time() -> None:
    cluster, rig = FakeCluster(), Rig()
    cluster.put(service_manifest())

    async def watch_arrives(seconds: float) -> None:
        rig._feed(SERVICE_KIND, "MODIFIED", cluster.all(SERVICE_KIND)[0])

    found = Sweeper(cluster, rig.world, (), sleep=watch_arrives)
    assert await found.sweep(SERVICE_KIND) == 0


@pytest.mark.parametrize("namespace", ["default", "elsewhere"])
async def test_only_watched_namespaces_are_swept(namespace: str) -> None:
    cluster, world = FakeCluster(), World()
    cluster.put(service_manifest())
    found = Sweeper(cluster, world, (namespace,), sleep=no_sleep)
    assert await found.sweep(SERVICE_KIND) == (1 if namespace == "default" else 0)
