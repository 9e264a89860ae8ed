"""Nodes with GPUs, asked for when a plan needs their memory: no watch, and nothing kept up to date
for services that serve.

One list, of nodes with the label alone and without their status, each `FRESH_SECONDS` at most for
all services together.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from quire_operator.client import Api
from quire_operator.errors import Denied, Invalid
from quire_operator.kinds import NODE, Manifest
from quire_operator.views import GpuNode

logger = logging.getLogger(__name__)

FRESH_SECONDS = 5.0
"""A label that appears is seen within 15 s: this, and the wait of who was refused (`fit.py`)."""
DENIED_SECONDS = 300.0
"""Until an operator without the right asks again."""


class NodeSource(Protocol):
    """Where nodes come from; tests have one without an API server."""

    async def read(self, label: str) -> tuple[GpuNode, ...]: ...


class NodeReader:
    """Remembers the last answer for each label as long as it is fresh."""

    def __init__(self, client: Api, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[str, tuple[float, tuple[GpuNode, ...]]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def read(self, label: str) -> tuple[GpuNode, ...]:
        """Nodes that tell their GPUs' memory by this label; none where we may not look. Raises
        ApiError for an API server that does not answer."""
        async with self._one_at_a_time:  # who comes meanwhile waits for that answer
            fresh_until, known = self._known.get(label, (0.0, ()))
            return known if self._clock() < fresh_until else await self._list(label)

    async def _list(self, label: str) -> tuple[GpuNode, ...]:
        now = self._clock()
        try:
            bodies = await self._client.list_objects(NODE, None, labels=label, metadata_only=True)
            found = tuple(node for body in bodies for node in _gpu_nodes(body, label))
            self._known[label] = (now + FRESH_SECONDS, found)
        except (Denied, Invalid) as e:  # no right to; or a gpuResource that no label can be made of
            logger.info("nodes are not looked at, resources.gpuMemory has to tell: %s", e)
            self._known[label] = (now + DENIED_SECONDS, ())
        return self._known[label][1]


def _gpu_nodes(body: Manifest, label: str) -> list[GpuNode]:
    labels = body["metadata"].get("labels") or {}
    value = labels.get(label, "")
    if not value.isdecimal() or int(value) == 0:
        return []
    return [GpuNode(name=body["metadata"]["name"], labels=labels, mebibytes=int(value))]
