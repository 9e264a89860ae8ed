"""A gateway as small as one can be, for end-to-end tests: it stands where the gateway will stand.

A script of its own: it runs in a pod of the operator's image, which has Python and aiohttp and
nothing of this package. It does what operator/README.md asks of a gateway and nothing else: it
listens on each service's `status.gatewayPort`, holds a request, renews the service's activation
Lease, and passes the request on to a pod of the service's as soon as one is ready. It answers
nothing itself, so an answer that a test gets is the engine's.
"""

import asyncio
import contextlib
import json
import logging
import os
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

Json: TypeAlias = Any

logger = logging.getLogger("gateway-stub")

API = "/apis/serving.quire.dev/v1alpha1"
ENGINE_PORT = 8000
READY_PORT = 8080
LEASE_SECONDS = 15
HOLD_SECONDS = 300.0
POLL_SECONDS = 0.5
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
HOP_BY_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})


@dataclass(frozen=True)
class Service:
    """One InferenceService that may sleep."""

    namespace: str
    name: str
    uid: str


class Api:
    """The three things that are asked of the API server."""

    def __init__(self, session: ClientSession, url: str, token: Callable[[], str]) -> None:
        self._session = session
        self._url = url
        self._token = token

    async def services(self) -> dict[int, Service]:
        """By the port that their status names."""
        answer = await self._call("GET", f"{API}/inferenceservices")
        return {
            item["status"]["gatewayPort"]: _service(item["metadata"])
            for item in answer["items"]
            if item.get("status", {}).get("gatewayPort")
        }

    async def ready_pod(self, service: Service) -> str | None:
        """The address of a pod that serves."""
        labels = f"app.kubernetes.io/name=quire-engine,serving.quire.dev/service={service.name}"
        path = f"/api/v1/namespaces/{service.namespace}/pods"
        answer = await self._call("GET", path, params={"labelSelector": labels})
        return next((pod["status"]["podIP"] for pod in answer["items"] if _is_ready(pod)), None)

    async def activate(self, service: Service, holder: str) -> None:
        """Writes the activation Lease, or renews it."""
        body = activation(service, holder, datetime.now(UTC))
        path = f"/apis/coordination.k8s.io/v1/namespaces/{service.namespace}/leases"
        await self._call(
            "PATCH",
            f"{path}/{body['metadata']['name']}",
            params={"fieldManager": "gateway-stub", "force": "true"},
            headers={"Content-Type": "application/apply-patch+yaml"},
            data=json.dumps(body),
        )

    async def _call(self, method: str, path: str, **more: Any) -> Json:
        headers = {**more.pop("headers", {}), "Authorization": f"Bearer {self._token()}"}
        async with self._session.request(
            method, self._url + path, headers=headers, timeout=ClientTimeout(total=10), **more
        ) as response:
            response.raise_for_status()
            return await response.json()


def _service(metadata: Json) -> Service:
    return Service(metadata["namespace"], metadata["name"], metadata["uid"])


def _is_ready(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def activation(service: Service, holder: str, now: datetime) -> Json:
    """The Lease that wakes a service and keeps it awake."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": f"{service.name}-activation",
            "namespace": service.namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "quire",
                "serving.quire.dev/service": service.name,
            },
            "ownerReferences": [
                {
                    "apiVersion": "serving.quire.dev/v1alpha1",
                    "kind": "InferenceService",
                    "name": service.name,
                    "uid": service.uid,
                }
            ],
        },
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


class Stub:
    """Owner of the ports that it listens on and of the count of what it holds."""

    def __init__(
        self,
        api: Api,
        session: ClientSession,
        holder: str,
        *,
        host: str = "0.0.0.0",
        engine_port: int = ENGINE_PORT,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._api = api
        self._session = session
        self._holder = holder
        self._host = host
        self._engine_port = engine_port
        self._sleep = sleep
        self._services: dict[int, Service] = {}
        self._sites: dict[int, web.TCPSite] = {}
        self._held: Counter[Service] = Counter()
        self._has_looked = False
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)

    async def start(self) -> None:
        await self._runner.setup()

    async def run(self) -> None:
        """Until cancelled, after `start`."""
        while True:
            try:
                await self.look()
            except (ClientError, TimeoutError) as e:
                logger.warning("services not read: %r", e)
            await self._sleep(POLL_SECONDS)

    async def look(self) -> None:
        """Listens where statuses say now, and no longer where none does."""
        self._services = await self._api.services()
        for port in self._services.keys() - self._sites.keys():
            site = self._sites[port] = web.TCPSite(self._runner, self._host, port)
            await site.start()
            logger.info("port %d for %s", port, self._services[port])
        for port in self._sites.keys() - self._services.keys():
            await self._sites.pop(port).stop()
        self._has_looked = True

    async def ready(self, _: web.Request) -> web.Response:
        return web.Response(status=200 if self._has_looked else 503)

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        port = request.transport.get_extra_info("sockname")[1]
        service = self._services.get(port)
        if service is None:
            return web.Response(status=404, text=f"no service has port {port}")
        body = await request.read()
        async with self._holding(service):
            address = await self._wait_for_pod(service)
        if address is None:
            return web.Response(status=503, headers={"Retry-After": "30"})
        return await self._pass_on(request, body, f"http://{address}:{self._engine_port}")

    @contextlib.asynccontextmanager
    async def _holding(self, service: Service) -> AsyncIterator[None]:
        """The Lease is written before anything is waited for, and renewed all the while."""
        self._held[service] += 1
        renewing = asyncio.create_task(self._renew(service)) if self._held[service] == 1 else None
        try:
            yield
        finally:
            self._held[service] -= 1
            if renewing is not None and not self._held[service]:
                renewing.cancel()

    async def _renew(self, service: Service) -> None:
        while self._held[service]:
            try:
                await self._api.activate(service, self._holder)
            except (ClientError, TimeoutError) as e:
                logger.warning("%s not activated: %r", service, e)
                await self._sleep(1.0)
            else:
                await self._sleep(LEASE_SECONDS / 3)

    async def _wait_for_pod(self, service: Service) -> str | None:
        for _ in range(int(HOLD_SECONDS / POLL_SECONDS)):
            try:
                address = await self._api.ready_pod(service)
            except (ClientError, TimeoutError) as e:
                logger.warning("pods of %s not read: %r", service, e)
                address = None
            if address is not None:
                return address
            await self._sleep(POLL_SECONDS)
        return None

    async def _pass_on(self, request: web.Request, body: bytes, engine: str) -> web.StreamResponse:
        async with self._session.request(
            request.method,
            engine + request.path_qs,
            data=body,
            headers=_end_to_end(request.headers),
            timeout=ClientTimeout(total=HOLD_SECONDS),
        ) as answer:
            passed = web.StreamResponse(status=answer.status, headers=_end_to_end(answer.headers))
            await passed.prepare(request)
            async for chunk in answer.content.iter_any():
                await passed.write(chunk)
            await passed.write_eof()
            return passed


def _end_to_end(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP}


async def main() -> None:
    """In a pod, with its service account."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    async with (
        ClientSession(connector=TCPConnector(ssl=trust)) as to_api,
        ClientSession(auto_decompress=False) as to_pods,
    ):
        url = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        api = Api(to_api, url, (ACCOUNT / "token").read_text)
        stub = Stub(api, to_pods, os.environ["HOSTNAME"])
        app = web.Application()
        app.router.add_get("/ready", stub.ready)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", READY_PORT).start()
        await stub.start()
        await stub.run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    asyncio.run(main())
