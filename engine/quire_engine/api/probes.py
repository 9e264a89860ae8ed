"""What Kubernetes, Prometheus and people ask: /health, /ready, /metrics, /version."""

import time
from collections.abc import Callable
from importlib import metadata
from typing import Literal

import msgspec
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.requests import Request
from starlette.responses import Response

from quire_engine.api.client import CoreClient
from quire_engine.api.core_process import CoreProcess
from quire_engine.api.drain import Drain
from quire_engine.api.health import HealthMonitor, HealthReport
from quire_engine.api.metrics import Metrics
from quire_engine.api.wire import json_response
from quire_engine.messages import CoreReady


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /health."""

    status: Literal["ok", "failing"]
    reason: str
    stalled_seconds: float


class Readiness(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Body of /ready."""

    ready: bool
    reason: Literal["Ready", "Loading", "Draining", "Stalled", "CoreDied"]
    message: str = ""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Body of /version; the core's part is null until it is ready."""

    version: str
    device: str | None
    dtype: str | None
    kernels: str | None


class Probes:
    """The routes that answer whatever the state."""

    def __init__(
        self,
        core: CoreProcess,
        client: CoreClient,
        drain: Drain,
        metrics: Metrics,
        *,
        is_loaded: Callable[[], bool],
        health_timeout: float,
        ready_timeout: float,
    ) -> None:
        self._version = metadata.version("quire")  # reads files: 1 ms
        self._core = core
        self._client = client
        self._drain = drain
        self._metrics = metrics
        self._is_loaded = is_loaded
        self._ready_timeout = ready_timeout
        self._monitor = HealthMonitor(health_timeout, now=time.monotonic())

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the core moves or has nothing to do."""
        report = self._check()
        body = Health(
            status="ok" if report.healthy else "failing",
            reason=report.reason,
            stalled_seconds=round(report.stalled_seconds, 3),
        )
        return json_response(body, 200 if report.healthy else 503)

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 from the warm-up forward on until the drain begins, but not while the
        core stands still with work pending."""
        body = self._readiness()
        return json_response(body, 200 if body.ready else 503)

    def _readiness(self) -> Readiness:
        if self._core.process.poll() is not None:
            return Readiness(ready=False, reason="CoreDied")
        if self._drain.draining:
            return Readiness(ready=False, reason="Draining")
        report = self._check()
        if report.stands_still(self._ready_timeout):
            return Readiness(ready=False, reason="Stalled", message=report.standstill)
        if not self._is_loaded():
            return Readiness(ready=False, reason="Loading")
        return Readiness(ready=True, reason="Ready")

    def _check(self) -> HealthReport:
        return self._monitor.check(
            self._core.progress.read(),
            now=time.monotonic(),
            alive=self._core.process.poll() is None,
            loading=self._client.ready is None,
            pending_since=self._client.pending_since,
        )

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        return Response(self._metrics.exposition(), media_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def version(self, request: Request) -> Response:
        """GET /version."""
        ready: CoreReady | None = self._client.ready
        return json_response(
            Version(
                version=self._version,
                device=ready.device if ready else None,
                dtype=ready.dtype if ready else None,
                kernels=ready.kernels if ready else None,
            )
        )
