"""`external.metrics.k8s.io/v1beta1` for HPAs, behind the API server's aggregation layer.

The API server has authenticated and authorized the caller before it asks here, and says who it is
itself by a client certificate of the front-proxy CA. Which CA and which names stands in ConfigMap
kube-system/extension-apiserver-authentication. No other caller gets a word: no certificate is 401,
one of another CA ends the TLS handshake, another name is 403. What has no number gets an error,
never 0 (`served_metrics.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from aiohttp import web

from quire_operator import served_metrics
from quire_operator.autoscalers import SERVICE_LABEL
from quire_operator.errors import ApiError, QuireError
from quire_operator.kinds import CONFIG_MAP, Kind, Manifest
from quire_operator.names import Key
from quire_operator.readings import Readings
from quire_operator.served_metrics import METRICS, NoReading
from quire_operator.values import timestamp

logger = logging.getLogger(__name__)

GROUP = "external.metrics.k8s.io"
VERSION = "v1beta1"
REFRESH_SECONDS = 60.0
"""How often the CA, the names and our own certificate are looked at."""
RETRY_SECONDS = 5.0
USER_HEADER = "X-Remote-User"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class TrustError(QuireError):
    """The cluster does not say whom to believe; nothing is served."""


class ConfigMaps(Protocol):
    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest: ...


@dataclass(frozen=True, slots=True)
class Trust:
    """The front proxy: who signs its certificate, and which common names it may have."""

    client_ca: str
    """PEM"""
    allowed_names: frozenset[str]
    """Empty: any name that the CA has signed."""


async def read_trust(client: ConfigMaps) -> Trust:
    """Raises ApiError, TrustError."""
    found = await client.get(CONFIG_MAP, "kube-system", "extension-apiserver-authentication")
    data = found.get("data") or {}
    client_ca = data.get("requestheader-client-ca-file")
    if not client_ca:
        raise TrustError(
            "ConfigMap kube-system/extension-apiserver-authentication has no "
            "requestheader-client-ca-file: the API server runs without an aggregation layer"
        )
    return Trust(client_ca, _allowed_names(data.get("requestheader-allowed-names") or "[]"))


def _allowed_names(text: str) -> frozenset[str]:
    """Raises TrustError: what is no list of names must not pass for an empty one, which lets all
    in. null is how Go writes an empty list."""
    try:
        names = json.loads(text)
    except ValueError as e:
        raise TrustError(f"requestheader-allowed-names is not a JSON list: {e}") from e
    if names is None:
        return frozenset()
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TrustError(f"requestheader-allowed-names is not a JSON list of names: {text}")
    return frozenset(names)


@dataclass(frozen=True, slots=True)
class Identity:
    """Our own certificate, as files that a rotation replaces."""

    certificate: Path
    key: Path

    def read(self) -> tuple[bytes, bytes]:
        return self.certificate.read_bytes(), self.key.read_bytes()


class ExternalMetrics:
    """The answers, without their transport."""

    def __init__(
        self,
        readings: Readings,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._readings = readings
        self._interval = interval_seconds
        self._clock = clock
        self.allowed_names: frozenset[str] = frozenset()

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._authenticated])
        root = f"/apis/{GROUP}/{VERSION}"
        app.router.add_get("/apis", _groups)
        app.router.add_get(f"/apis/{GROUP}", _group)
        app.router.add_get(root, _resources)
        app.router.add_get(f"{root}/namespaces/{{namespace}}/{{metric}}", self._values)
        return app

    @web.middleware
    async def _authenticated(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        transport = request.transport
        certificate = transport.get_extra_info("peercert") if transport is not None else None
        if not certificate:
            return failure(
                401, "Unauthorized", "a client certificate of the front-proxy CA, please"
            )
        name = common_name(certificate)
        if self.allowed_names and name not in self.allowed_names:
            return failure(403, "Forbidden", f"{name!r} is not among requestheader-allowed-names")
        if not request.headers.get(USER_HEADER):
            return failure(401, "Unauthorized", f"header {USER_HEADER} is missing")
        try:
            return await handler(request)
        except web.HTTPException as e:
            return failure(e.status, e.reason.replace(" ", ""), e.text or e.reason)

    async def _values(self, request: web.Request) -> web.Response:
        metric, namespace = request.match_info["metric"], request.match_info["namespace"]
        selector = request.query.get("labelSelector", "")
        name = selected_service(selector)
        if metric not in METRICS:
            known = ", ".join(METRICS)
            return failure(404, "NotFound", f"no metric {metric}; the known ones are {known}")
        if name is None:
            words = f"the selector must be {SERVICE_LABEL}=<name>, got {selector!r}"
            return failure(400, "BadRequest", words)
        key = Key(namespace, name)
        try:
            number, reading = served_metrics.value(
                self._readings, key, metric, self._clock(), self._interval
            )
        except NoReading as e:
            return failure(503, "ServiceUnavailable", str(e))
        item = {
            "metricName": metric,
            "metricLabels": {SERVICE_LABEL: name},
            "timestamp": timestamp(reading.wall),
            "value": served_metrics.quantity(number),
        }
        return web.json_response(
            {
                "kind": "ExternalMetricValueList",
                "apiVersion": f"{GROUP}/{VERSION}",
                "metadata": {},
                "items": [item],
            }
        )


class Server:
    """Owner of the port: opens it once there is somebody to believe, anew when that has changed."""

    def __init__(
        self,
        metrics: ExternalMetrics,
        client: ConfigMaps,
        identity: Identity,
        port: int,
        host: str | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._metrics = metrics
        self._client = client
        self._identity = identity
        self._address = (host, port)
        self._sleep = sleep
        self._runner: web.AppRunner | None = None
        self._site: web.TCPSite | None = None
        self._served: tuple[str, bytes, bytes] | None = None

    async def run(self) -> None:
        """Serves until cancelled. What is in the way is logged and tried again: HPAs hold."""
        try:
            while True:
                try:
                    await self.refresh()
                except (ApiError, TrustError, OSError) as e:
                    logger.error("external metrics: %s", e)
                    await self._sleep(RETRY_SECONDS)
                else:
                    await self._sleep(REFRESH_SECONDS)
        finally:
            await self.close()

    async def refresh(self) -> None:
        """Serves by the CA, names and certificate as they are now. Raises ApiError, TrustError,
        OSError (ssl.SSLError among them); what was served before is then served on."""
        trust = await read_trust(self._client)
        self._metrics.allowed_names = trust.allowed_names
        wanted = (trust.client_ca, *self._identity.read())
        if wanted == self._served:
            return
        context = tls_context(trust, self._identity)
        if self._runner is None:
            self._runner = web.AppRunner(self._metrics.app(), access_log=None)
            await self._runner.setup()
        # A context cannot take a CA back, so both listen for a moment, on the same port.
        before, self._site = self._site, await self._listen(self._runner, context)
        if before is not None:
            await before.stop()
        self._served = wanted
        logger.info("external metrics are served on port %d", self._address[1])

    async def _listen(self, runner: web.AppRunner, context: ssl.SSLContext) -> web.TCPSite:
        """Raises OSError; the runner does not remember the attempt then."""
        host, port = self._address
        site = web.TCPSite(runner, host, port, ssl_context=context, reuse_port=True)
        try:
            await site.start()
        except OSError:
            await site.stop()
            raise
        return site

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def tls_context(trust: Trust, identity: Identity) -> ssl.SSLContext:
    """Asks for a client certificate; who has none may come in, to be told 401."""
    # Not create_default_context: from Python 3.13 on it refuses CAs without key identifiers, as
    # kubeadm and openssl(1) make them.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(identity.certificate, identity.key)
    # Text around the certificates is no part of PEM, and Python takes ASCII only.
    context.load_verify_locations(cadata=trust.client_ca.encode("ascii", "ignore").decode())
    # As the API server does: the CA that is given may be an intermediate one.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


def common_name(certificate: dict[str, Any]) -> str:
    """The subject's, of a certificate as `SSLSocket.getpeercert` tells it."""
    pairs = [pair for part in certificate.get("subject") or () for pair in part]
    return next((str(value) for name, value in pairs if name == "commonName"), "")


def selected_service(selector: str) -> str | None:
    """The name in `service=<name>`; None for every other selector."""
    label, equals, name = selector.replace("==", "=").partition("=")
    named = label.strip() == SERVICE_LABEL and equals and "," not in name
    return (name.strip() or None) if named else None


def failure(code: int, reason: str, message: str) -> web.Response:
    """A Status, as the API server words its own refusals."""
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(body, status=code)


_GROUP_VERSION = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
_GROUP = {"name": GROUP, "versions": [_GROUP_VERSION], "preferredVersion": _GROUP_VERSION}


async def _groups(_: web.Request) -> web.Response:
    return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_GROUP]})


async def _group(_: web.Request) -> web.Response:
    return web.json_response({"kind": "APIGroup", "apiVersion": "v1", **_GROUP})


async def _resources(_: web.Request) -> web.Response:
    resources = [
        {
            "name": metric,
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
        for metric in METRICS
    ]
    body = {"kind": "APIResourceList", "apiVersion": "v1"}
    return web.json_response({**body, "groupVersion": f"{GROUP}/{VERSION}", "resources": resources})
