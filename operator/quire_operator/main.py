"""The operator's parts together: watches feed the world, it wakes the queue, workers reconcile.

kopf only watches: its handlers are `on.event`, which write no annotation and no finalizer; they
store a projection and return. What to do is decided in `reconcile.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import aiohttp
import kopf
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from quire_operator import api, external_metrics, health, metrics, names, scaling_loop
from quire_operator.client import KubeClient
from quire_operator.engines import EngineReader
from quire_operator.errors import NotFound, QuireError
from quire_operator.event_reader import EventReader
from quire_operator.gateway import GatewayPoll
from quire_operator.inquirer import Inquirer, Sources
from quire_operator.kinds import CHILDREN, SERVICE_KIND, Kind
from quire_operator.leader import Leader
from quire_operator.names import Key
from quire_operator.nodes import NodeReader
from quire_operator.observe import Defaults
from quire_operator.progress import ProgressReader
from quire_operator.projections import project
from quire_operator.queue import WorkQueue
from quire_operator.readings import Readings
from quire_operator.reconcile import Reconciler
from quire_operator.scaled_objects import ScaledObjectPoller
from quire_operator.scaling_config import GAP_ROUNDS
from quire_operator.settings import Settings
from quire_operator.sweep import Sweeper
from quire_operator.world import World

logger = logging.getLogger(__name__)

SERVICE_ACCOUNT_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
WATCH_INACTIVITY_SECONDS = 70.0
"""Bookmarks come every 60 s, so a watch that is silent for longer is dead; kopf opens it anew."""
WATCH_SERVER_SECONDS = 600
"""An int: the API server refuses `timeoutSeconds=600.0`."""
STUCK_WORKER_SECONDS = 300.0
"""A reconcile that has not ended by then will not."""


def registry_for(world: World) -> kopf.OperatorRegistry:
    """kopf's handlers: one event handler for each kind, feeding the world."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        # kopf's default would import the whole synchronous client for this.
        if os.path.exists(SERVICE_ACCOUNT_TOKEN):
            return kopf.login_with_service_account(**kwargs)
        return kopf.login_with_kubeconfig(**kwargs)

    for kind in (SERVICE_KIND, *CHILDREN):
        _watch(registry, world, kind)
    return registry


def _watch(registry: kopf.OperatorRegistry, world: World, kind: Kind) -> None:
    group, _, version = kind.api_version.rpartition("/")

    @kopf.on.event(group, version, kind.plural, registry=registry, id=kind.plural)
    async def seen(event: kopf.RawEvent, **_: Any) -> None:
        feed(world, kind, event)


def feed(world: World, kind: Kind, event: kopf.RawEvent) -> None:
    """Takes one watch event into the world. An object that cannot be read is logged, not dropped on
    the floor: kopf would swallow the exception."""
    body: dict[str, Any] = dict(event["object"])
    at = Key(body["metadata"]["namespace"], body["metadata"]["name"])
    try:
        if event["type"] == "DELETED":
            world.drop(kind, at, body["metadata"]["uid"])
        else:
            world.put(kind, project(kind, body))
    except Exception:
        logger.exception("[%s] %s event not understood", at, kind.kind)


def kopf_settings() -> kopf.OperatorSettings:
    """kopf as a watcher only: no posting, no peering, no scanning for CRDs and namespaces."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.watching.inactivity_timeout = WATCH_INACTIVITY_SECONDS
    settings.watching.server_timeout = WATCH_SERVER_SECONDS
    settings.watching.client_timeout = WATCH_SERVER_SECONDS + 30
    settings.watching.connect_timeout = 10.0
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.queueing.idle_timeout = 1.0
    for kind in CHILDREN:
        group, _, version = kind.api_version.rpartition("/")
        settings.watching.label_selectors[group, version, kind.plural] = names.SELECTOR
    return settings


class Operator:
    """One operator process: owner of the world, the queue and all background tasks."""

    def __init__(self, settings: Settings, transport: ApiClient, session: aiohttp.ClientSession):
        self.settings = settings
        self.queue = WorkQueue()
        self.world = World(self.queue.add)
        self.metrics = metrics.Metrics()
        self.readings = Readings(GAP_ROUNDS * settings.scrape_interval_seconds)
        self._on_activation: list[Callable[[Key], None]] = []
        self.world.on_activation = self._activated
        unguarded = KubeClient(transport, write_seconds=settings.lease_seconds / 3.0)
        self.leader = Leader(
            unguarded,
            settings.namespace,
            settings.pod_name,
            settings.lease_seconds,
            clock=time.monotonic,
            wall=time.time,
            on_leading=self._wake_all,
        )
        self.client = unguarded.guarded(self.leader.guard)
        self.sweeper = Sweeper(self.client, self.world, settings.watch_namespaces)
        self.gateway = _gateway(settings, self.client, self.world)
        self.scaled_objects = ScaledObjectPoller(self.client, self.world, settings.watch_namespaces)
        defaults = Defaults(
            image=settings.engine_image,
            network=settings.network,
            keda_scaler=settings.keda_scaler_address,
            external_metrics=settings.external_metrics_port > 0,
            plan_places=settings.plan_jobs,
        )
        self.inquirer = Inquirer(
            self.world,
            defaults,
            Sources(EventReader(self.client), ProgressReader(session), EngineReader(session)),
            wake=self.queue.add,
        )
        self.reconciler = Reconciler(
            client=self.client,
            world=self.world,
            defaults=defaults,
            inquirer=self.inquirer,
            nodes=NodeReader(self.client),
            metrics=self.metrics,
            is_leader=lambda: self.leader.is_leader,
        )
        self._busy: dict[Key, float] = {}

    def _wake_all(self) -> None:
        for key in self.world.keys():  # noqa: SIM118 - not a mapping
            self.queue.add(key)

    async def run(self) -> None:
        """Runs until SIGTERM. Raises LeaseLost, or what else ended a task that must not end."""
        await self._fill()
        async with contextlib.AsyncExitStack() as stack:
            checks = (self._stale_watch, self._stuck_worker)
            probe = await health.serve(checks, self.settings.probe_port)
            stack.push_async_callback(probe.cleanup)
            numbers = await metrics.serve(self.metrics, self.settings.metrics_port)
            stack.push_async_callback(numbers.cleanup)
            await run_together(self._watching(), *self._background())
            await self.leader.release()

    async def _fill(self) -> None:
        """The whole world before the first plan. Without the CRD kopf would wait in silence."""
        if self.gateway is not None:
            await self.gateway.look()
        try:
            await self.sweeper.fill()
        except NotFound as e:
            raise QuireError(
                f"the API server knows no {api.PLURAL}.{api.GROUP}: install the chart's CRD first"
            ) from e
        await self.scaled_objects.poll()

    async def _watching(self) -> None:
        """kopf until SIGTERM. It gives up on a kind that is gone: the CRD's removal, say."""
        try:
            await self._watch()
        except Exception as e:
            raise QuireError(f"watching has ended: {type(e).__name__}: {e}") from e

    def _watch(self) -> Coroutine[Any, Any, None]:
        return kopf.operator(
            registry=registry_for(self.world),
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self.settings.watch_namespaces,
            namespaces=list(self.settings.watch_namespaces),
        )

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        workers = [self.queue.work(self._reconcile) for _ in range(self.settings.workers)]
        scaling = scaling_loop.run(
            self.world,
            self.client,
            self.settings,
            self.leader,
            self.metrics,
            self.readings,
            on_start=self._wake_sleepers,
        )
        polls = [self.gateway.run()] if self.gateway is not None else []
        polls += [self.scaled_objects.run(), self.inquirer.run(), *self._answering()]
        return [self.leader.run(), self.sweeper.run(), self._gauge(), scaling, *polls, *workers]

    def _answering(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What HPAs and KEDA ask us, where it is switched on."""
        settings, interval = self.settings, self.settings.scrape_interval_seconds
        if settings.external_metrics_port:
            identity = external_metrics.Identity(
                settings.external_metrics_certificate, settings.external_metrics_key
            )
            answers = external_metrics.ExternalMetrics(self.readings, interval)
            port = settings.external_metrics_port
            yield external_metrics.Server(answers, self.client, identity, port).run()
        if settings.keda_scaler_port:
            # Here, as gRPC costs 20 MiB that most operators need not pay.
            from quire_operator import keda_scaler

            activity = keda_scaler.Activity(self.world, self.readings, interval)
            self._on_activation.append(activity.activated)
            yield keda_scaler.run(activity, settings.keda_scaler_port)

    def _wake_sleepers(self, loop: scaling_loop.ScalingLoop) -> None:
        self._on_activation.append(loop.hurry)

    def _activated(self, key: Key) -> None:
        for listener in self._on_activation:
            listener(key)

    async def _reconcile(self, key: Key) -> float | None:
        self._busy[key] = time.monotonic()
        try:
            return await self.reconciler(key)
        finally:
            del self._busy[key]

    async def _gauge(self) -> None:
        while True:
            self.metrics.queue_length(len(self.queue))
            self.metrics.leading(self.leader.is_leader)
            await asyncio.sleep(1.0)

    def _stale_watch(self) -> str | None:
        return "a watch has missed events in two sweeps" if self.sweeper.is_stale else None

    def _stuck_worker(self) -> str | None:
        oldest = min(self._busy.values(), default=None)
        if oldest is None or time.monotonic() - oldest < STUCK_WORKER_SECONDS:
            return None
        return f"a reconcile has been running for more than {STUCK_WORKER_SECONDS:.0f} s"


def _gateway(settings: Settings, client: KubeClient, world: World) -> GatewayPoll | None:
    name = settings.gateway_service
    return GatewayPoll(client, settings.namespace, name, world.set_gateway) if name else None


async def run_together(
    main: Coroutine[Any, Any, None], *background: Coroutine[Any, Any, None]
) -> None:
    """Runs all until `main` returns, then cancels the others. Raises the first error of any."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in (main, *background)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if tasks[0] not in done:
            raise QuireError("a background task ended that should run for ever")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connect() -> ApiClient:
    """A connection pool with the service account's credentials, or those of the kubeconfig."""
    configuration = Configuration()
    if os.path.exists(SERVICE_ACCOUNT_TOKEN):
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    else:
        await config.load_kube_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    return ApiClient(configuration)


async def run(settings: Settings) -> None:
    """The whole process. Raises QuireError (LeaseLost among them) when it cannot go on."""
    transport = await connect()
    try:
        # The inquirer bounds itself; to wait for one of aiohttp's 100 would count as silence.
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            await Operator(settings, transport, session).run()
    finally:
        await transport.close()  # type: ignore[no-untyped-call]
