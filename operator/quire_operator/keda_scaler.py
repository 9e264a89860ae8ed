"""KEDA's external scaler: gRPC, over which KEDA asks for numbers and is told of activity.

Import it only where it is served: gRPC and protobuf cost 20 MiB. Without TLS, as KEDA speaks it
unless told otherwise: what it tells are queue lengths, and it takes no orders.

What has no number is UNAVAILABLE, which KEDA answers with the ScaledObject's fallback. Activity
only decides about zero: a service is inactive when it is known to have been idle for long enough,
never because nothing is known. KEDA heeds a pushed True at once and finds a False by asking.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Protocol

import grpc

from quire_operator import externalscaler_pb2 as pb
from quire_operator import served_metrics
from quire_operator.autoscalers import ACTIVATION
from quire_operator.errors import QuireError
from quire_operator.names import Key
from quire_operator.readings import Readings
from quire_operator.served_metrics import METRICS, NoReading
from quire_operator.world import Snapshot

logger = logging.getLogger(__name__)

SERVICE = "externalscaler.ExternalScaler"
RECHECK_SECONDS = 5.0
"""How often a stream looks by itself; an activation wakes it at once."""
STOP_SECONDS = 1.0


class UnknownService(QuireError):
    """No InferenceService of the ScaledObject's name."""


class Fleet(Protocol):
    """All services (`world.World`)."""

    def snapshot(self, key: Key) -> Snapshot | None: ...


class Activity:
    """What KEDA is told, without gRPC."""

    def __init__(
        self,
        fleet: Fleet,
        readings: Readings,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fleet = fleet
        self._readings = readings
        self._interval = interval_seconds
        self._clock = clock
        self._waiting: dict[Key, set[asyncio.Event]] = {}

    def is_active(self, key: Key) -> bool:
        """False when it may sleep, or sleeps and nobody waits for it. Raises UnknownService."""
        view = self._view(key)
        idle_seconds = view.spec.scaling.idle_seconds_to_zero
        if view.activated or view.replicas == 0:
            return view.activated
        if idle_seconds is None or not view.gateway_ready:
            return True
        now = self._clock()
        try:
            reading = served_metrics.fresh(self._readings, key, now, self._interval)
        except NoReading:
            return True
        return reading.idle_since is None or now - reading.idle_since < idle_seconds

    def value(self, key: Key, metric: str) -> float:
        """Raises UnknownService, NoReading. At zero replicas there is nothing to be measured, and
        nothing that an HPA, which stands still then, could take away."""
        view = self._view(key)
        if metric == ACTIVATION:
            return float(self.is_active(key))
        if metric not in METRICS:
            raise NoReading(f"no metric {metric}; the known ones are {', '.join(METRICS)}")
        if view.replicas == 0:
            return 0.0
        number, _ = served_metrics.value(self._readings, key, metric, self._clock(), self._interval)
        return number

    async def changes(self, key: Key) -> AsyncIterator[bool]:
        """Activity now and whenever it turns; True over and over while a service is to wake, as
        KEDA may have failed to lift it. Raises UnknownService."""
        last: bool | None = None
        event = asyncio.Event()
        self._waiting.setdefault(key, set()).add(event)
        try:
            while True:
                event.clear()
                active = self.is_active(key)
                if active != last or (active and self._view(key).replicas == 0):
                    yield active
                last = active
                await _wait(event, RECHECK_SECONDS)
        finally:
            self._waiting[key].discard(event)
            if not self._waiting[key]:
                del self._waiting[key]

    def activated(self, key: Key) -> None:
        """Wakes the streams of a service that somebody holds requests for."""
        for event in self._waiting.get(key, ()):
            event.set()

    def _view(self, key: Key) -> Snapshot:
        view = self._fleet.snapshot(key)
        if view is None:
            raise UnknownService(f"there is no InferenceService {key}")
        return view


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


def targets(metadata: Iterable[tuple[str, str]]) -> dict[str, float]:
    """The metrics of a trigger and their targets, as `autoscalers.py` put them into its metadata.
    Raises ValueError."""
    known = {name: text for name, text in metadata if name in (*METRICS, ACTIVATION)}
    if not known:
        raise ValueError(f"the trigger names none of {', '.join((*METRICS, ACTIVATION))}")
    return {name: float(text) for name, text in known.items()}


class _Servicer:
    """The methods as gRPC calls them."""

    def __init__(self, activity: Activity) -> None:
        self._activity = activity

    async def is_active(self, ref: pb.ScaledObjectRef, context: Any) -> pb.IsActiveResponse:
        try:
            return pb.IsActiveResponse(result=self._activity.is_active(_key(ref)))
        except UnknownService as e:
            return await context.abort(grpc.StatusCode.NOT_FOUND, str(e))  # type: ignore[no-any-return]

    async def stream_is_active(
        self, ref: pb.ScaledObjectRef, context: Any
    ) -> AsyncIterator[pb.IsActiveResponse]:
        try:
            async for active in self._activity.changes(_key(ref)):
                yield pb.IsActiveResponse(result=active)
        except UnknownService as e:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(e))

    async def get_metric_spec(
        self, ref: pb.ScaledObjectRef, context: Any
    ) -> pb.GetMetricSpecResponse:
        try:
            wanted = targets(ref.scalerMetadata.items())
        except ValueError as e:
            return await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(e))  # type: ignore[no-any-return]
        specs = [pb.MetricSpec(metricName=n, targetSizeFloat=v) for n, v in wanted.items()]
        return pb.GetMetricSpecResponse(metricSpecs=specs)

    async def get_metrics(
        self, request: pb.GetMetricsRequest, context: Any
    ) -> pb.GetMetricsResponse:
        try:
            number = self._activity.value(_key(request.scaledObjectRef), request.metricName)
        except UnknownService as e:
            return await context.abort(grpc.StatusCode.NOT_FOUND, str(e))  # type: ignore[no-any-return]
        except NoReading as e:
            return await context.abort(grpc.StatusCode.UNAVAILABLE, str(e))  # type: ignore[no-any-return]
        value = pb.MetricValue(metricName=request.metricName, metricValueFloat=number)
        return pb.GetMetricsResponse(metricValues=[value])


def _key(ref: pb.ScaledObjectRef) -> Key:
    """Our ScaledObjects are called as their services are."""
    return Key(ref.namespace, ref.name)


def server(activity: Activity, port: int, host: str = "[::]") -> tuple[Any, int]:
    """A server that is not started yet, and its port. Raises QuireError when it is taken."""
    servicer = _Servicer(activity)
    unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    ref = pb.ScaledObjectRef.FromString
    methods = {
        "IsActive": unary(servicer.is_active, ref, pb.IsActiveResponse.SerializeToString),
        "StreamIsActive": stream(
            servicer.stream_is_active, ref, pb.IsActiveResponse.SerializeToString
        ),
        "GetMetricSpec": unary(
            servicer.get_metric_spec, ref, pb.GetMetricSpecResponse.SerializeToString
        ),
        "GetMetrics": unary(
            servicer.get_metrics,
            pb.GetMetricsRequest.FromString,
            pb.GetMetricsResponse.SerializeToString,
        ),
    }
    made = grpc.aio.server()
    made.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    try:
        return made, int(made.add_insecure_port(f"{host}:{port}"))
    except RuntimeError as e:
        raise QuireError(
            f"KEDA's external scaler cannot listen on port {port}: {e}; set QUIRE_KEDA_SCALER_PORT "
            "to another"
        ) from e


async def run(activity: Activity, port: int) -> None:
    """Serves KEDA until cancelled. Raises QuireError when the port is taken."""
    running, bound = server(activity, port)
    await running.start()
    logger.info("KEDA's external scaler is served on port %d", bound)
    try:
        await running.wait_for_termination()
    finally:
        await running.stop(STOP_SECONDS)
