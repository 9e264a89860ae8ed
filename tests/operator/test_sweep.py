"""The check on the watches: what they missed is learnt, and missing twice running is told."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from quire_operator import sweep
from quire_operator.errors import Unavailable
from quire_operator.kinds import CHILDREN, DEPLOYMENT, POD, SERVICE_KIND, Kind, Manifest
from quire_operator.metrics import Metrics
from quire_operator.names import Key, labels
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


class Bounded(FakeCluster):
    """Gives whole objects in parts only."""

    sizes: list[int]

    async def list_objects(self, *_: object, **how: object) -> list[Manifest]:
        assert how.get("metadata_only"), "whole objects were listed all at once"
        return []

    async def list_pages(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", size: int
    ) -> AsyncIterator[list[Manifest]]:
        found = [body for body in self.all(kind) if kind is SERVICE_KIND]
        self.sizes.append(size)
        for begin in range(0, len(found), size):
            yield found[begin : begin + size]


async def test_whole_objects_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PAGE_SIZE", 2)
    cluster, world = Bounded(), World()
    cluster.sizes = []
    for n in range(5):
        cluster.put(service_manifest(f"s{n}"))
    await sweeper(cluster, world).fill()
    assert {key.name for key in world.keys()} == {f"s{n}" for n in range(5)}  # noqa: SIM118
    assert set(cluster.sizes) == {2}


def cold(rig: Rig) -> Rig:
    """Another operator, with a newer default image, over the same cluster; it knows nothing yet."""
    other = Rig(image="engine:v2")
    other.reconciler = replace(
        other.reconciler, client=rig.cluster, wall=lambda: rig.cluster.now, metrics=Metrics()
    )
    return other


async def test_a_new_leader_plans_over_the_whole_world(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    rig.cluster.put(service_manifest(model={"uri": "hf://org/other"}))
    await rig.settle()
    rig.cluster.bind_claims()
    rig.cluster.run_jobs()
    await rig.settle()
    before = len(rig.cluster.writes)
    other = cold(rig)
    await sweeper(rig.cluster, other.world).fill()
    assert list(other.woken) == [chat]
    assert {kind: other.world.all(kind) for kind in CHILDREN} == {
        kind: rig.world.all(kind) for kind in CHILDREN
    }
    await other.wake(chat)
    wrote = [write for write in rig.cluster.writes[before:] if "Service" not in write]
    assert wrote == [], "neither a second Deployment nor a claim taken away"


async def test_one_unreadable_object_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    cluster, world = FakeCluster(), World()
    broken: Manifest = {"metadata": {"name": "a", "namespace": "default", "labels": labels("a")}}
    cluster.put(broken | {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}})
    cluster.put(service_manifest())
    await sweeper(cluster, world).fill()
    assert world.keys() == [Key("default", "chat")]
    assert "Deployment not understood" in caplog.text


async def test_what_cannot_be_read_is_no_miss_of_the_watch() -> None:
    cluster, world = FakeCluster(), World()
    broken: Manifest = {"metadata": {"name": "a", "namespace": "default", "labels": labels("a")}}
    cluster.put(broken | {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {}})
    found = sweeper(cluster, world)
    assert [await found.sweep(DEPLOYMENT) for _ in range(3)] == [0, 0, 0]
    assert not found.is_stale, "a restart would not mend it"


async def test_a_child_that_lost_our_label_is_no_miss_of_the_watch(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    deployment = rig.cluster.all(DEPLOYMENT)[0]
    deployment["metadata"]["labels"].pop("app.kubernetes.io/managed-by")
    rig.cluster.put(deployment)
    found = sweeper(rig.cluster, rig.world)
    assert [await found.sweep(DEPLOYMENT) for _ in range(3)] == [0, 0, 0]
    assert not found.is_stale
    assert rig.world.deployments(chat), "it is still looked after"


async def test_one_object_that_is_not_answered_for_stops_no_sweep() -> None:
    class Forgetful(FakeCluster):
        async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
            if name == "a":
                raise Unavailable(503, "GET", "etcd is slow")
            return await super().get(kind, namespace, name)

    cluster, world = Forgetful(), World()
    for name in ("a", "b"):
        cluster.put(service_manifest(name))
    assert await sweeper(cluster, world).sweep(SERVICE_KIND) == 1
    assert world.keys() == [Key("default", "b")]
