"""ScaledObjects are listed: KEDA may come, go and be absent, and the operator goes on."""

import asyncio
from typing import Any

import pytest

from quire_operator.api import decode_spec
from quire_operator.autoscalers import Limits, scaled_object
from quire_operator.errors import ApiError, Denied, Unavailable
from quire_operator.kinds import SCALED_OBJECT, SERVICE_KIND, Kind, Manifest
from quire_operator.names import Key
from quire_operator.scaled_objects import ScaledObjectPoller
from quire_operator.testing import FakeCluster, Rig, service_manifest
from quire_operator.testing_autoscalers import run_keda
from quire_operator.world import World

CHAT = Key("default", "chat")
KEDA = {"mode": "keda"}


def one(name: str = "chat") -> Manifest:
    spec = decode_spec({"model": {"uri": "hf://org/model"}, "scaling": KEDA})
    return scaled_object(Key("default", name), "uid", spec, Limits(min_replicas=1), "scaler:1")


async def test_what_is_there_is_learnt_and_what_is_gone_forgotten(rig: Rig) -> None:
    rig.cluster.put(one())
    await rig.scaled_objects.poll()
    assert [view.meta.name for view in rig.world.autoscalers(CHAT)] == ["chat"]
    rig.cluster.remove(SCALED_OBJECT, CHAT)
    await rig.scaled_objects.poll()
    assert rig.world.autoscalers(CHAT) == []


async def test_without_keda_a_service_says_so_and_serves(rig: Rig) -> None:
    rig.cluster.unknown.add(SCALED_OBJECT)
    rig.cluster.put(service_manifest(scaling=KEDA))
    await rig.scaled_objects.poll()
    await rig.bring_up(CHAT)
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("False", "KedaMissing")
    assert "install KEDA" in told.message
    assert rig.condition(CHAT).status == "True"
    assert await rig.wake(CHAT) == []


async def test_keda_that_comes_later_is_found(rig: Rig) -> None:
    rig.cluster.unknown.add(SCALED_OBJECT)
    rig.cluster.put(service_manifest(scaling=KEDA))
    await rig.scaled_objects.poll()
    await rig.bring_up(CHAT)
    rig.cluster.unknown.clear()
    await rig.scaled_objects.poll()
    assert CHAT in rig.woken
    await rig.settle()
    assert len(rig.cluster.all(SCALED_OBJECT)) == 1


async def test_keda_that_goes_takes_its_objects_along(rig: Rig) -> None:
    rig.cluster.put(service_manifest(scaling=KEDA))
    await rig.bring_up(CHAT)
    rig.cluster.remove(SCALED_OBJECT, CHAT)
    rig.cluster.unknown.add(SCALED_OBJECT)
    await rig.scaled_objects.poll()
    await rig.settle()
    assert rig.condition(CHAT, "Scaling").reason == "KedaMissing"


async def test_a_scaled_object_that_keda_does_not_let_go_is_told(rig: Rig) -> None:
    rig.cluster.put(service_manifest(scaling=KEDA))
    await rig.bring_up(CHAT)
    run_keda(rig.cluster)
    body = rig.cluster.all(SERVICE_KIND)[0]
    body["spec"]["scaling"] = {"mode": "builtin"}
    rig.cluster.put(body)
    await rig.settle()
    assert rig.condition(CHAT, "Scaling").reason == "Switching"
    rig.cluster.now += 31
    await rig.wake(CHAT)
    told = rig.condition(CHAT, "Scaling")
    assert (told.status, told.reason) == ("False", "ScaledObjectStuck")
    assert "kubectl patch scaledobject chat -n default --type=merge" in told.message
    assert await rig.wake(CHAT) == [], "told once, deleted once"
    run_keda(rig.cluster)
    await rig.wake(CHAT)
    view = rig.world.snapshot(CHAT)
    assert view is not None
    assert view.other_writer is None


class Done(Exception):
    """Ends a loop."""


class Failing(FakeCluster):
    """A cluster that answers lists with an error."""

    error: ApiError | None = None

    async def list_objects(self, kind: Kind, *args: Any, **more: Any) -> list[Manifest]:
        if self.error is not None:
            raise self.error
        return await super().list_objects(kind, *args, **more)


async def test_an_outage_changes_nothing_that_is_known() -> None:
    cluster = Failing()
    world = World()
    sleeps = 0

    async def sleep(_: float) -> None:
        nonlocal sleeps
        sleeps += 1
        if sleeps == 3:
            raise Done

    poller = ScaledObjectPoller(cluster, world, (), sleep)
    cluster.put(one())
    await poller.poll()
    cluster.error = Unavailable(503, "GET", "etcd is slow")
    with pytest.raises(Done):
        await poller.run()
    assert world.keda_trouble is None
    assert len(world.all(SCALED_OBJECT)) == 1


async def test_a_first_look_without_an_answer_is_no_look() -> None:
    cluster = Failing()
    cluster.error = Unavailable(503, "GET", "etcd is slow")
    with pytest.raises(Unavailable):
        await ScaledObjectPoller(cluster, World(), ()).poll()


async def test_a_missing_right_is_told() -> None:
    cluster = Failing()
    cluster.error = Denied(403, "GET", "no")
    world = World()
    await ScaledObjectPoller(cluster, world, ()).poll()
    assert "may not list" in (world.keda_trouble or "")


@pytest.mark.parametrize(("mode", "sleeps"), [("keda", 1), ("hpa", 12)])
async def test_it_looks_rarely_while_nobody_wants_one(rig: Rig, mode: str, sleeps: int) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    class Once(ScaledObjectPoller):
        async def poll(self) -> None:
            raise Done

    rig.cluster.put(service_manifest(scaling={"mode": mode}))
    with pytest.raises(Done):
        await asyncio.wait_for(Once(rig.cluster, rig.world, (), sleep).run(), 5)
    assert slept == [10.0] * sleeps
