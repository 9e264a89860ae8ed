"""The API server as we use it: JSON in, JSON out, our own errors, and a guard before each write.

Stands on `kubernetes.aio` for configuration, credentials and TLS only; its generated models cost
time and memory. (Import: 61 MiB RSS with all of aiohttp, 68 MiB together with kopf.)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from kubernetes.aio.client.api_client import ApiClient

from quire_operator.errors import NotFound, Unavailable, from_answer
from quire_operator.kinds import POD, Kind, Manifest, kind_of
from quire_operator.names import Key

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

READ_TIMEOUT_SECONDS = 30.0


class Reads(Protocol):
    """What is asked of an API server by who changes nothing."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest: ...

    async def list_objects(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> list[Manifest]: ...


class Api(Reads, Protocol):
    """What the control plane asks of an API server: of `KubeClient`, or of `testing.FakeCluster`.

    Every method raises errors of `errors.ApiError`'s tree, writing ones also NotLeader.
    """

    def list_pages(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", size: int
    ) -> AsyncIterator[list[Manifest]]:
        """A list of what may be many, in parts of at most `size`."""
        ...

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        """POST: the one write that is atomic about absence. Raises AlreadyExists."""
        ...

    async def apply(
        self, manifest: Manifest, manager: str, *, force: bool, subresource: str = ""
    ) -> Manifest:
        """Server-side apply. A uid or resourceVersion in the manifest is a precondition."""
        ...

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Manifest,
        manager: str,
        *,
        strategic: bool = False,
        subresource: str = "",
    ) -> Manifest: ...

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
    ) -> None:
        """Background deletion of exactly this object; that it is gone already is no error."""
        ...


def _no_guard() -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Request:
    """One request, as `kubernetes.aio` is asked to send it."""

    method: str
    path: str
    query: list[tuple[str, str]]
    body: Manifest | None = None
    content_type: str = "application/json"
    accept: str = "application/json"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class KubeClient:
    """`Api` over HTTP. `guard` is called before each write and raises NotLeader to stop it.

    A write is given up after `write_seconds`: a third of the lease, as writes begin in its first
    two thirds only, and so end within it.
    """

    def __init__(
        self,
        transport: ApiClient,
        write_seconds: float,
        guard: Callable[[], None] = _no_guard,
        read_seconds: float = READ_TIMEOUT_SECONDS,
    ) -> None:
        self._transport = transport
        self._write_seconds = write_seconds
        self._guard = guard
        self._read_seconds = read_seconds

    def guarded(self, guard: Callable[[], None]) -> KubeClient:
        """The same connection pool with another guard."""
        return KubeClient(self._transport, self._write_seconds, guard, self._read_seconds)

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return await self._call(_Request("GET", kind.path(namespace, name), []))

    async def list_objects(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> list[Manifest]:
        query = [("labelSelector", labels), ("fieldSelector", fields)]
        accept = METADATA_ONLY if metadata_only else "application/json"
        return _items(kind, await self._list(kind, namespace, query, accept))

    async def list_pages(
        self, kind: Kind, namespace: str | None, *, labels: str = "", fields: str = "", size: int
    ) -> AsyncIterator[list[Manifest]]:
        wanted = [("labelSelector", labels), ("fieldSelector", fields), ("limit", str(size))]
        rest = ""
        while True:
            answer = await self._list(kind, namespace, [*wanted, ("continue", rest)])
            yield _items(kind, answer)
            rest = (answer.get("metadata") or {}).get("continue") or ""
            if not rest:
                return

    async def _list(
        self,
        kind: Kind,
        namespace: str | None,
        query: list[tuple[str, str]],
        accept: str = "application/json",
    ) -> Manifest:
        asked = [pair for pair in query if pair[1]]
        return await self._call(_Request("GET", kind.path(namespace), asked, accept=accept))

    async def create(self, manifest: Manifest, manager: str) -> Manifest:
        path = kind_of(manifest).path(manifest["metadata"]["namespace"])
        return await self._write("POST", path, manifest, [("fieldManager", manager)])

    async def apply(
        self, manifest: Manifest, manager: str, *, force: bool, subresource: str = ""
    ) -> Manifest:
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"], subresource)
        query = [("fieldManager", manager), ("force", "true" if force else "false")]
        return await self._write("PATCH", path, manifest, query, content_type=APPLY)

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Manifest,
        manager: str,
        *,
        strategic: bool = False,
        subresource: str = "",
    ) -> Manifest:
        path = kind.path(namespace, name, subresource)
        content_type = STRATEGIC if strategic else MERGE
        return await self._write("PATCH", path, body, [("fieldManager", manager)], content_type)

    async def delete(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        *,
        uid: str,
        resource_version: str | None = None,
    ) -> None:
        preconditions = {"uid": uid}
        if resource_version is not None:
            preconditions["resourceVersion"] = resource_version
        body = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "propagationPolicy": "Background",
            "preconditions": preconditions,
        }
        try:
            await self._write("DELETE", kind.path(namespace, name), body, [])
        except NotFound:
            return

    async def replace(self, manifest: Manifest) -> Manifest:
        """PUT with the manifest's own resourceVersion as precondition (the Lease needs it)."""
        metadata = manifest["metadata"]
        path = kind_of(manifest).path(metadata["namespace"], metadata["name"])
        return await self._write("PUT", path, manifest, [])

    async def page(self, at: Key, port: int, path: str, seconds: float) -> bytes:
        """What a pod answers to a GET, by way of the API server (`pods/proxy`), for whoever has no
        route to pods. Raises ApiError, with the pod's own status too."""
        url = f"{POD.path(at.namespace, f'{at.name}:{port}', 'proxy')}{path}"
        return await self._ask(_Request("GET", url, [], accept="*/*"), seconds)

    async def _write(
        self,
        method: str,
        path: str,
        body: Manifest,
        query: list[tuple[str, str]],
        content_type: str = "application/json",
    ) -> Manifest:
        self._guard()
        return await self._call(
            _Request(method, path, query, body, content_type), self._write_seconds
        )

    async def _call(self, request: _Request, seconds: float | None = None) -> Manifest:
        answer: Manifest = json.loads(await self._ask(request, seconds))
        return answer

    async def _ask(self, request: _Request, seconds: float | None) -> bytes:
        headers = {"Accept": request.accept, "Content-Type": request.content_type}
        try:
            prepared = await self._transport.param_serialize(
                request.method,
                request.path,
                query_params=request.query,
                header_params=headers,
                body=request.body,
                auth_settings=["BearerToken"],
            )
            response = await self._transport.call_api(
                *prepared,
                _request_timeout=aiohttp.ClientTimeout(total=seconds or self._read_seconds),
            )
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            raise Unavailable(0, str(request), f"no answer from the API server: {e!r}") from e
        if response.status >= 400:
            raise _refusal(response.status, str(request), data)
        return data


def _items(kind: Kind, answer: Manifest) -> list[Manifest]:
    """A list says what it lists once, and leaves it out of each item."""
    what = {"apiVersion": kind.api_version, "kind": kind.kind}
    return [{**what, **item} for item in answer.get("items") or []]


def _refusal(status: int, request: str, data: bytes) -> Exception:
    try:
        answer: Any = json.loads(data)
        message, reason = str(answer.get("message", "")), str(answer.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason = data[:200].decode(errors="replace"), ""
    return from_answer(status, request, message, reason)
