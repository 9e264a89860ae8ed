"""The real client against a small HTTP server: paths, content types, errors, and the guard."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from quire_operator import client, errors
from quire_operator.client import KubeClient
from quire_operator.kinds import CLAIM, DEPLOYMENT, POD, SERVICE, SERVICE_KIND

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str], str, object]] = []
        self.status = 200
        self.body: object = {"metadata": {}}
        self.hang = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        sent = await request.json() if request.can_read_body else None
        if self.hang:
            await asyncio.sleep(5)
        kind = request.headers["Content-Type"]
        self.requests.append((request.method, request.path, dict(request.query), kind, sent))
        return web.json_response(self.body, status=self.status)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def kube(server: Server) -> AsyncIterator[KubeClient]:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", server.answer)
    async with TestServer(app) as running:
        configuration = Configuration()
        configuration.host = str(running.make_url("")).rstrip("/")
        transport = ApiClient(configuration)
        yield KubeClient(transport, write_seconds=5.0)
        await transport.close()


async def test_apply(kube: KubeClient, server: Server) -> None:
    manifest = {
        "apiVersion": SERVICE_KIND.api_version,
        "kind": "InferenceService",
        "metadata": {"namespace": "ns", "name": "chat"},
        "status": {"replicas": 1},
    }
    await kube.apply(manifest, "quire-status", force=True, subresource="status")
    method, path, query, content_type, sent = server.requests[0]
    assert (method, content_type, sent) == ("PATCH", client.APPLY, manifest)
    assert path == "/apis/serving.quire.dev/v1alpha1/namespaces/ns/inferenceservices/chat/status"
    assert query == {"fieldManager": "quire-status", "force": "true"}


async def test_create_and_patch(kube: KubeClient, server: Server) -> None:
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "a"}}
    await kube.create(manifest, "quire")
    await kube.patch(CLAIM, "n", "c", {"a": 1}, "quire", strategic=True)
    assert server.requests[0][:3] == (
        "POST",
        "/api/v1/namespaces/n/services",
        {"fieldManager": "quire"},
    )
    assert server.requests[1][3] == client.STRATEGIC


async def test_delete_has_preconditions_and_what_is_gone_is_no_error(
    kube: KubeClient, server: Server
) -> None:
    await kube.delete(DEPLOYMENT, "ns", "d", uid="u", resource_version="7")
    sent = server.requests[0][4]
    assert isinstance(sent, dict)
    assert sent["preconditions"] == {"uid": "u", "resourceVersion": "7"}
    assert sent["propagationPolicy"] == "Background"
    server.status, server.body = 404, {"message": "gone", "reason": "NotFound"}
    await kube.delete(DEPLOYMENT, "ns", "d", uid="u")


async def test_list_of_all_namespaces(kube: KubeClient, server: Server) -> None:
    server.body = {"items": [{"metadata": {"name": "p"}}]}
    found = await kube.list_objects(POD, None, labels="a=b")
    assert found == [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}]
    assert server.requests[0][1:3] == ("/api/v1/pods", {"labelSelector": "a=b"})
    server.body = {"items": None}
    assert await kube.list_objects(POD, "ns") == []


async def test_a_list_in_pages_is_asked_for_as_long_as_there_is_a_rest(
    kube: KubeClient, server: Server
) -> None:
    server.body = {"metadata": {"continue": "rest"}, "items": [{"metadata": {"name": "p"}}]}
    found = []
    async for page in kube.list_pages(POD, "ns", fields="a!=b", size=1):
        found.append(page)
        server.body = {"metadata": {}, "items": [{"metadata": {"name": "q"}}]}
    assert [[body["metadata"]["name"] for body in page] for page in found] == [["p"], ["q"]]
    asked = {"fieldSelector": "a!=b", "limit": "1"}
    assert [request[2] for request in server.requests] == [asked, {**asked, "continue": "rest"}]


REFUSALS = [
    (404, "NotFound", "", errors.NotFound),
    (409, "AlreadyExists", "", errors.AlreadyExists),
    (409, "Conflict", "", errors.Conflict),
    (403, "Forbidden", "pods is forbidden: exceeded quota: q", errors.QuotaExceeded),
    (403, "Forbidden", "cannot patch", errors.Denied),
    (422, "Invalid", "spec.x: Required", errors.Invalid),
    (429, "TooManyRequests", "", errors.Unavailable),
    (500, "InternalError", "etcd", errors.Unavailable),
]


@pytest.mark.parametrize(("status", "reason", "message", "kind"), REFUSALS)
async def test_refusals(
    kube: KubeClient,
    server: Server,
    status: int,
    reason: str,
    message: str,
    kind: type[errors.ApiError],
) -> None:
    server.status, server.body = status, {"message": message, "reason": reason}
    with pytest.raises(kind) as caught:
        await kube.get(SERVICE, "ns", "chat")
    assert type(caught.value) is kind
    assert caught.value.message == message


async def test_no_answer_is_worth_another_try(server: Server) -> None:
    configuration = Configuration()
    configuration.host = "http://127.0.0.1:1"
    transport = ApiClient(configuration)
    with pytest.raises(errors.Unavailable, match="no answer"):
        await KubeClient(transport, write_seconds=5.0).get(SERVICE, "ns", "chat")
    await transport.close()


async def test_a_write_ends_within_its_part_of_the_lease(kube: KubeClient, server: Server) -> None:
    server.hang = True
    kube = KubeClient(kube._transport, write_seconds=0.05)
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "a"}}
    with pytest.raises(errors.Unavailable, match="no answer"):
        await kube.create(manifest, "quire")


async def test_who_does_not_lead_writes_nothing(kube: KubeClient, server: Server) -> None:
    def guard() -> None:
        raise errors.NotLeader("not me")

    follower = kube.guarded(guard)
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "n", "name": "a"}}
    with pytest.raises(errors.NotLeader):
        await follower.apply(manifest, "quire", force=True)
    with pytest.raises(errors.NotLeader):
        await follower.create(manifest, "quire")
    with pytest.raises(errors.NotLeader):
        await follower.delete(SERVICE, "n", "a", uid="u")
    with pytest.raises(errors.NotLeader):
        await follower.patch(SERVICE, "n", "a", {}, "quire")
    assert server.requests == []
    await follower.get(SERVICE, "n", "a")
    assert len(server.requests) == 1
