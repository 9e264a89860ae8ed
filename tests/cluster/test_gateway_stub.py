"""The stub against an API server and an engine that are both small: held, activated, passed on."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer, unused_port

from quire_cluster import gateway_stub
from quire_cluster.gateway_stub import Api, Stub


class World:
    """What a cluster would answer. `pods` is empty until a Lease has been written `wakes` times."""

    def __init__(self) -> None:
        self.port = unused_port()
        self.leases: list[tuple[str, Any]] = []
        self.asked: list[tuple[str, bytes]] = []
        self.is_deleted = False

    async def services(self, _: web.Request) -> web.Response:
        metadata = {"namespace": "default", "name": "chat", "uid": "uid-1"}
        awake = {"metadata": metadata | {"name": "awake"}, "status": {}}
        chat = {"metadata": metadata, "status": {"gatewayPort": self.port}}
        return web.json_response({"items": [awake] if self.is_deleted else [awake, chat]})

    async def pods(self, request: web.Request) -> web.Response:
        assert "serving.quire.dev/service=chat" in request.query["labelSelector"]
        ready = "True" if self.leases else "False"
        condition = {"type": "Ready", "status": ready}
        status = {"podIP": "127.0.0.1", "conditions": [condition]}
        leaving = {"metadata": {"deletionTimestamp": "t"}, "status": status | {"podIP": "x"}}
        return web.json_response({"items": [leaving, {"metadata": {}, "status": status}]})

    async def lease(self, request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer token"
        assert request.content_type == "application/apply-patch+yaml"
        self.leases.append((request.path, json.loads(await request.read())))
        return web.json_response({})

    async def engine(self, request: web.Request) -> web.StreamResponse:
        self.asked.append((request.path_qs, await request.read()))
        response = web.StreamResponse(status=201, headers={"X-Engine": "yes"})
        await response.prepare(request)
        for piece in (b"one ", b"two"):
            await response.write(piece)
        return response


@pytest.fixture
def world() -> World:
    return World()


async def no_sleep(seconds: float) -> None:
    await asyncio.sleep(0)


@pytest.fixture
async def stub(world: World) -> AsyncIterator[Stub]:
    api, engine = web.Application(), web.Application()
    api.router.add_get("/apis/serving.quire.dev/v1alpha1/inferenceservices", world.services)
    api.router.add_get("/api/v1/namespaces/default/pods", world.pods)
    leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases/{name}"
    api.router.add_patch(leases, world.lease)
    engine.router.add_route("*", "/{path:.*}", world.engine)
    async with (
        TestServer(api) as to_api,
        TestServer(engine) as to_engine,
        ClientSession() as session,
    ):
        client = Api(session, str(to_api.make_url("")).rstrip("/"), lambda: "token")
        port = to_engine.port or 0
        stub = Stub(client, session, "me", host="127.0.0.1", engine_port=port, sleep=no_sleep)
        await stub.start()
        await stub.look()
        yield stub
        await stub.close()


async def test_a_request_is_held_activates_and_is_passed_on(stub: Stub, world: World) -> None:
    url = f"http://127.0.0.1:{world.port}/v1/chat?x=1"
    async with ClientSession() as session, session.post(url, data=b"question") as response:
        assert response.status == 201
        assert response.headers["X-Engine"] == "yes"
        assert await response.text() == "one two"
    assert world.asked == [("/v1/chat?x=1", b"question")]
    path, lease = world.leases[0]
    assert path.endswith("/leases/chat-activation")
    assert lease["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    assert lease["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "quire"
    assert lease["spec"]["leaseDurationSeconds"] == gateway_stub.LEASE_SECONDS


async def test_a_port_goes_with_its_service(stub: Stub, world: World) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.close()
    world.is_deleted = True
    await stub.look()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", world.port)
