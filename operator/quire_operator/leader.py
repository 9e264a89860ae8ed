"""Leadership by a Lease: one process writes, the others stand by and take over within 20 s.

A Lease cannot fence a writer, so time does. A leader that renewed at t may begin writes until
t + 2/3 of the lease (`guard`, on the monotonic clock); a write takes at most the last third
(`KubeClient`'s `write_seconds`). A candidate waits until it has seen the same record unchanged for
the whole lease, by its own clock: nobody's wall clock matters. Losing the lease ends the process
(`LeaseLost`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from quire_operator.errors import AlreadyExists, ApiError, Conflict, NotFound, NotLeader, QuireError
from quire_operator.kinds import LEASE, Kind, Manifest

logger = logging.getLogger(__name__)

LEASE_NAME = "quire-operator"


class LeaseLost(QuireError):
    """Another process leads, or the lease could not be renewed in time."""


class LeaseApi(Protocol):
    """What a leader asks of the API server."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest: ...

    async def create(self, manifest: Manifest, manager: str) -> Manifest: ...

    async def replace(self, manifest: Manifest) -> Manifest: ...


class Leader:
    """Owner of this process's claim to the lease. `clock` is monotonic, `wall` epoch seconds."""

    def __init__(
        self,
        client: LeaseApi,
        namespace: str,
        identity: str,
        lease_seconds: float,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
        on_leading: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._wall = wall
        self._on_leading = on_leading
        self._lease: Manifest | None = None
        self._seen_at = 0.0
        self._deadline: float | None = None

    @property
    def is_leader(self) -> bool:
        """Whether a write may begin now."""
        return self._deadline is not None and self._clock() < self._deadline

    def guard(self) -> None:
        """Called before each write. Raises NotLeader."""
        if not self.is_leader:
            raise NotLeader(f"{self._identity} does not hold lease {LEASE_NAME}; nothing written")

    async def run(self) -> None:
        """Waits for the lease and keeps it. Raises LeaseLost once it was held and is lost."""
        while self._deadline is None:
            await self._attempt()
            if self._deadline is None:
                await asyncio.sleep(self._lease_seconds / 5.0)
        logger.info("leading as %s", self._identity)
        self._on_leading()
        while True:
            await asyncio.sleep(self._lease_seconds / 3.0 if self.is_leader else 0.0)
            await self._renew()

    async def release(self) -> None:
        """Gives the lease back, so that a successor need not wait it out. For a clean exit."""
        if self._deadline is None or self._lease is None:
            return
        self._deadline = None
        try:
            await self._client.replace(self._record(holder=""))
        except ApiError as e:
            logger.warning("lease %s not released: %s", LEASE_NAME, e)

    async def _attempt(self) -> None:
        """One try to take the lease, if it is free or was left."""
        began = self._clock()
        try:
            if not await self._is_free(began):
                return
            if self._lease is None:
                self._lease = await self._client.create(self._record(self._identity), "quire")
            else:
                self._lease = await self._client.replace(self._record(self._identity))
        except (Conflict, AlreadyExists):
            return
        except ApiError as e:
            logger.warning("lease %s: %s", LEASE_NAME, e)
            return
        self._held(began)

    async def _is_free(self, now: float) -> bool:
        try:
            live = await self._client.get(LEASE, self._namespace, LEASE_NAME)
        except NotFound:
            self._lease = None
            return True
        known = self._lease
        if known is None or _version(live) != _version(known):
            self._seen_at = now
        self._lease = live
        holder = live["spec"].get("holderIdentity") or ""
        if holder in ("", self._identity):
            return True
        lasts = float(live["spec"].get("leaseDurationSeconds") or self._lease_seconds)
        return now - self._seen_at > lasts

    async def _renew(self) -> None:
        """Renews; a failure is retried until the deadline, then the lease counts as lost."""
        began = self._clock()
        try:
            self._lease = await self._client.replace(self._record(self._identity))
            # After a stall: what was reconciled meanwhile was dropped, as by one who stands by.
            late = not self.is_leader
            self._held(began)
            if late:
                logger.warning("lease %s renewed late; all services are looked at", LEASE_NAME)
                self._on_leading()
        except (Conflict, NotFound) as e:
            await self._recheck(e)
        except ApiError as e:
            logger.warning("lease %s not renewed: %s", LEASE_NAME, e)
            if not self.is_leader:
                raise LeaseLost(f"lease {LEASE_NAME} was not renewed in time: {e}") from e
            await asyncio.sleep(min(1.0, self._lease_seconds / 15.0))

    async def _recheck(self, error: ApiError) -> None:
        """Somebody wrote the lease: fatal, unless it names us still (they edited a label, say)."""
        try:
            live = await self._client.get(LEASE, self._namespace, LEASE_NAME)
        except ApiError as e:
            raise LeaseLost(f"lease {LEASE_NAME} is gone: {e}") from error
        if live["spec"].get("holderIdentity") != self._identity or not self.is_leader:
            self._deadline = None
            holder = live["spec"].get("holderIdentity")
            raise LeaseLost(f"lease {LEASE_NAME} is held by {holder!r}") from error
        self._lease = live

    def _held(self, began: float) -> None:
        self._deadline = began + self._lease_seconds * 2.0 / 3.0

    def _record(self, holder: str) -> Manifest:
        now = datetime.fromtimestamp(self._wall(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = self._lease or {}
        spec = before.get("spec") or {}
        metadata = before.get("metadata") or {"name": LEASE_NAME, "namespace": self._namespace}
        same = spec.get("holderIdentity") == holder
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {k: v for k, v in metadata.items() if k != "managedFields"},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": max(1, round(self._lease_seconds)),
                "acquireTime": spec.get("acquireTime") if same else now,
                "renewTime": now,
                "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if same else 1),
            },
        }


def _version(lease: Manifest) -> str:
    return str(lease["metadata"].get("resourceVersion", ""))
