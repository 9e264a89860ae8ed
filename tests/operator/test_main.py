"""How the parts are put together: events into the world, tasks that end together, kopf."""

import asyncio
from typing import Any

import kopf
import pytest
from aiohttp import ClientSession

from quire_operator import health
from quire_operator.errors import NotFound, QuireError
from quire_operator.kinds import CHILDREN, SERVICE_KIND
from quire_operator.main import (
    WATCH_SERVER_SECONDS,
    Operator,
    feed,
    kopf_settings,
    registry_for,
    run_together,
)
from quire_operator.names import Key
from quire_operator.settings import Settings
from quire_operator.testing import FakeCluster, service_manifest
from quire_operator.world import World


def stored() -> dict[str, object]:
    body = service_manifest()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    return body


def test_events_go_into_the_world_and_out_of_it() -> None:
    world = World()
    feed(world, SERVICE_KIND, {"type": "ADDED", "object": stored()})  # type: ignore[typeddict-item]
    assert world.keys() == [Key("default", "chat")]
    feed(world, SERVICE_KIND, {"type": "DELETED", "object": stored()})  # type: ignore[typeddict-item]
    assert world.keys() == []


def test_an_object_that_cannot_be_read_is_told(caplog: pytest.LogCaptureFixture) -> None:
    body = stored()
    del body["metadata"]["uid"]  # type: ignore[attr-defined]
    feed(World(), SERVICE_KIND, {"type": "ADDED", "object": body})  # type: ignore[typeddict-item]
    assert "InferenceService event not understood" in caplog.text


def test_kopf_watches_and_writes_nothing() -> None:
    settings = kopf_settings()
    assert settings.posting.enabled is False
    assert settings.scanning.disabled is True
    assert settings.peering.standalone is True
    assert isinstance(WATCH_SERVER_SECONDS, int), "timeoutSeconds=600.0 is refused"
    registry = registry_for(World())
    assert isinstance(registry, kopf.OperatorRegistry)
    assert registry._changing.get_all_handlers() == []
    assert len(registry._watching.get_all_handlers()) == 1 + len(CHILDREN)


async def forever() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    return None


async def broken() -> None:
    raise QuireError("the lease is lost")


class NoDefinition(FakeCluster):
    """A cluster without our CRD."""

    async def list_objects(self, kind: Any, *args: Any, **more: Any) -> list[Any]:
        if kind is SERVICE_KIND:
            raise NotFound(404, "GET inferenceservices", "the server could not find it")
        return []


async def test_nothing_starts_before_the_world_is_full() -> None:
    operator = Operator(Settings(engine_image="engine:v1"), None, None)  # type: ignore[arg-type]
    operator.sweeper._client = NoDefinition()
    with pytest.raises(QuireError, match=r"knows no inferenceservices\.serving\.quire\.dev"):
        await operator.run()


async def test_a_write_ends_within_the_last_third_of_the_lease() -> None:
    settings = Settings(engine_image="engine:v1", lease_seconds=6.0)
    operator = Operator(settings, None, None)  # type: ignore[arg-type]
    assert operator.client._write_seconds == 2.0


async def test_the_end_of_the_main_task_ends_the_others() -> None:
    await run_together(at_once(), forever(), forever())


async def test_an_error_in_the_background_ends_all() -> None:
    with pytest.raises(QuireError, match="the lease is lost"):
        await run_together(forever(), broken(), forever())


async def test_a_background_task_that_just_ends_is_an_error() -> None:
    with pytest.raises(QuireError, match="should run for ever"):
        await run_together(forever(), at_once())


@pytest.mark.parametrize(("wrong", "status"), [(None, 200), ("a watch is stale", 500)])
async def test_liveness(wrong: str | None, status: int) -> None:
    runner = await health.serve((lambda: None, lambda: wrong), 0, "127.0.0.1")
    try:
        port = runner.addresses[0][1]
        async with (
            ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/healthz") as response,
        ):
            assert response.status == status
            assert (await response.text()) == (wrong or "ok")
    finally:
        await runner.cleanup()


def answering(**settings: Any) -> list[str]:
    """What an operator with these settings serves to autoscalers, by the coroutines' names."""
    operator = Operator(Settings(engine_image="engine:v1", **settings), None, None)  # type: ignore[arg-type]
    found = list(operator._answering())
    for coroutine in found:
        coroutine.close()
    return [coroutine.__qualname__ for coroutine in found]


def test_autoscalers_are_answered_where_it_is_switched_on() -> None:
    assert answering() == []
    assert answering(external_metrics_port=6443) == ["Server.run"]
    keda = {"keda_scaler_port": 9100, "keda_scaler_address": "quire-keda:9100"}
    assert answering(external_metrics_port=6443, **keda) == ["Server.run", "run"]


async def test_an_activation_reaches_all_who_listen() -> None:
    operator = Operator(Settings(engine_image="engine:v1"), None, None)  # type: ignore[arg-type]
    heard: list[Key] = []
    operator._on_activation += [heard.append, heard.append]
    operator.world.on_activation(Key("default", "chat"))
    assert heard == [Key("default", "chat")] * 2
