"""The operator's own numbers, in Prometheus' text format on QUIRE_METRICS_PORT.

One `Metrics` a process, made by `main.py` and handed to whoever counts. Per-service series carry
the labels `namespace` and `service` and go when the service goes (`forget`).
"""

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SERVICE = ("namespace", "service")
# An unchanged world reconciles in well under 10 ms, one with a slow API server in seconds.
_RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_ROUND_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30)


class _ScrapeAge(Collector):
    """Seconds since a service's pods last all answered, worked out when it is asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.complete_at: dict[tuple[str, str], float] = {}

    def collect(self) -> list[Metric]:
        family = GaugeMetricFamily(
            "quire_scrape_age_seconds",
            "Seconds since every ready pod of the service last gave complete metrics",
            labels=_SERVICE,
        )
        now = self._clock()
        for service, at in list(self.complete_at.items()):
            family.add_metric(service, max(0.0, now - at))
        return [family]


class Metrics:
    """Everything the operator counts. `clock`: steady seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.registry = registry = CollectorRegistry()
        self._reconciles = Counter(
            "quire_reconcile", "Reconciles, by result (ok or error)", ["result"], registry=registry
        )
        self._errors = Counter(
            "quire_reconcile_errors", "Failed reconciles, by error", ["error"], registry=registry
        )
        self._durations = Histogram(
            "quire_reconcile_duration_seconds",
            "Seconds that one reconcile took",
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self._queue = Gauge("quire_queue_length", "Services that wait", registry=registry)
        self._leader = Gauge("quire_leader", "1 on the replica that leads", registry=registry)
        self._downloads = Counter(
            "quire_model_downloads",
            "Finished fetches, by result (ok or the reason of the failure)",
            ["result"],
            registry=registry,
        )
        self._download_bytes = Counter(
            "quire_model_download_bytes", "Bytes that finished fetches moved", registry=registry
        )
        self._decisions = Counter(
            "quire_scaling_decisions",
            "Decisions that changed replicas (or would have, with dryRun)",
            [*_SERVICE, "direction", "reason", "dry_run"],
            registry=registry,
        )
        self._desired = Gauge(
            "quire_desired_replicas", "Replicas that are wanted", _SERVICE, registry=registry
        )
        self._ready = Gauge(
            "quire_ready_replicas", "Replicas that are ready", _SERVICE, registry=registry
        )
        self._rounds = Histogram(
            "quire_scaling_round_seconds",
            "Seconds in which all services were scraped and decided on once",
            buckets=_ROUND_BUCKETS,
            registry=registry,
        )
        self._scrapes = Counter(
            "quire_scrapes", "Pod scrapes, by result (ok or missing)", ["result"], registry=registry
        )
        self._age = _ScrapeAge(clock)
        registry.register(self._age)
        self._decided: dict[tuple[str, str], set[tuple[str, str, str]]] = {}

    def reconciled(self, seconds: float, error: str | None = None) -> None:
        """One reconcile is over. `error`: its class or reason (few distinct words), or None."""
        self._reconciles.labels("error" if error else "ok").inc()
        self._durations.observe(seconds)
        if error:
            self._errors.labels(error).inc()

    def queue_length(self, length: int) -> None:
        self._queue.set(length)

    def leading(self, is_leader: bool) -> None:
        self._leader.set(1 if is_leader else 0)

    def downloaded(self, result: str, num_bytes: int = 0) -> None:
        """A fetch has ended. `result`: "ok" or the reason of its failure, e.g. SourceNotFound."""
        self._downloads.labels(result).inc()
        self._download_bytes.inc(num_bytes)

    def replicas(self, namespace: str, service: str, desired: int, ready: int) -> None:
        self._desired.labels(namespace, service).set(desired)
        self._ready.labels(namespace, service).set(ready)

    def decided(
        self, namespace: str, service: str, direction: str, reason: str, dry_run: bool
    ) -> None:
        """One change of replicas. `direction`: "up" or "down"; `reason`: a `scaling.Reason`."""
        detail = (direction, reason, str(dry_run).lower())
        self._decided.setdefault((namespace, service), set()).add(detail)
        self._decisions.labels(namespace, service, *detail).inc()

    def scraped(self, num_answered: int, num_missing: int) -> None:
        """One service's pods were asked once."""
        self._scrapes.labels("ok").inc(num_answered)
        self._scrapes.labels("missing").inc(num_missing)

    def complete(self, namespace: str, service: str) -> None:
        """Every ready pod of the service has just given complete metrics."""
        self._age.complete_at[(namespace, service)] = self._clock()

    def round_took(self, seconds: float) -> None:
        self._rounds.observe(seconds)

    def forget(self, namespace: str, service: str) -> None:
        """The service is gone: drop its series."""
        key = (namespace, service)
        self._age.complete_at.pop(key, None)
        for gauge in (self._desired, self._ready):
            gauge.remove_by_labels({"namespace": namespace, "service": service})
        for detail in self._decided.pop(key, set()):
            self._decisions.remove(*key, *detail)

    def text(self) -> bytes:
        return generate_latest(self.registry)


async def serve(metrics: Metrics, port: int, host: str | None = None) -> web.AppRunner:
    """Serves /metrics until the runner's `cleanup()`. OSError when the port is taken."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/metrics", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
