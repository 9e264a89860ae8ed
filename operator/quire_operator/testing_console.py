"""What `kubectl quire` asks of a cluster, in memory and over HTTP, for tests.

`ConsoleCluster` is a `FakeCluster` with rights, field selectors and pods that answer; `serve` puts
it behind the API server's paths, for the console script as a whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web

from quire_operator import names
from quire_operator.errors import ApiError, Denied, NotFound, Unavailable
from quire_operator.kinds import BY_NAME, POD, Kind, Manifest
from quire_operator.names import Key
from quire_operator.testing import FakeCluster
from quire_operator.testing_endpoints import event_on

Page = Callable[[], bytes]

KINDS = {(kind.api_version, kind.plural): kind for kind in BY_NAME.values()}


class ConsoleCluster(FakeCluster):
    """`console.reading.Reader` over dictionaries, for a user with some rights."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        super().__init__(now)
        self.forbidden: set[str] = set()
        """Plural resources that this user may not read; "pods/proxy" too."""
        self.broken: dict[str, ApiError] = {}
        """Plural resources whose reads fail otherwise."""
        self.pages: dict[tuple[str, int, str], bytes | Page] = {}
        """By pod, port and path."""
        self.hung: set[str] = set()
        """Pods that take a connection and say nothing."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest:
        self._allow("get", kind.plural, namespace)
        try:
            return await super().get(kind, namespace, name)
        except NotFound as error:
            if kind in self.unknown:
                raise
            words = f'{kind.plural} "{name}" not found'
            raise NotFound(404, error.message, words, "NotFound") from error

    async def list_objects(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
    ) -> list[Manifest]:
        self._allow("list", kind.plural, namespace)
        return await super().list_objects(
            kind, namespace, labels=labels, fields=fields, metadata_only=metadata_only
        )

    async def page(self, at: Key, port: int, path: str, seconds: float) -> bytes:
        """As the API server passes it on."""
        self._allow("get", "pods/proxy", at.namespace)
        if at.name in self.hung:
            await asyncio.Event().wait()
        found = self.pages.get((at.name, port, path))
        if found is None:
            words = "error trying to reach service: dial tcp: connect: connection refused"
            raise Unavailable(503, f"GET pods/{at.name}:{port}/proxy", words, "ServiceUnavailable")
        return found if isinstance(found, bytes) else found()

    # ---- what a test does ----

    def engine_pods(self) -> list[str]:
        found = [pod["metadata"] for pod in self.all(POD)]
        return [pod["name"] for pod in found if names.LABEL_REVISION in pod.get("labels", {})]

    def answer(self, **values: float) -> None:
        """Lets every engine answer with these numbers."""
        for name in self.engine_pods():
            self.pages[name, names.ENGINE_PORT, "/metrics"] = metrics_page(**values)

    def schedule(self, node: str) -> None:
        """Puts all pods on a node."""
        for pod in self.all(POD):
            self.put(pod | {"spec": pod["spec"] | {"nodeName": node}}, "scheduler")

    def set_pod(self, name: str, namespace: str = "default", **status: object) -> None:
        """What the kubelet says of a pod from now on."""
        self.set_status(POD, Key(namespace, name), dict(status))

    def tell(self, about: Manifest, type_: str, reason: str, message: str, count: int = 1) -> None:
        """An Event of now on an object."""
        event = event_on(about, reason, message, self.now, kind=type_)
        self.put(event | {"count": count}, "kubelet")

    def _allow(self, verb: str, resource: str, namespace: str | None) -> None:
        if resource in self.broken:
            raise self.broken[resource]
        if resource in self.forbidden:
            where = f'in the namespace "{namespace}"' if namespace else "at the cluster scope"
            words = (
                f'{resource} is forbidden: User "kim" cannot {verb} resource "{resource}" {where}'
            )
            raise Denied(403, f"{verb} {resource}", words, "Forbidden")


def metrics_page(**values: float) -> bytes:
    """An engine's /metrics, as far as the console reads it: gauges by their last word, `tokens`
    generated so far, and `ttft_<seconds>` requests whose first token took at most so long."""
    values = {"running": 2, "waiting": 0, "kv": 0.25, "tokens": 0} | values
    firsts = {k.removeprefix("ttft_"): v for k, v in values.items() if k.startswith("ttft_")}
    lines = [
        f"vllm:num_requests_running {values['running']}",
        f"vllm:num_requests_waiting {values['waiting']}",
        f"vllm:kv_cache_usage_perc {values['kv']}",
        f"vllm:generation_tokens_total {values['tokens']}",
    ]
    for bound, count in (*firsts.items(), ("+Inf", max(firsts.values(), default=0))):
        le = bound.replace("_", ".")
        lines.append(f'vllm:time_to_first_token_seconds_bucket{{le="{le}"}} {count}')
    return "".join(f"{line}\n" for line in lines).encode()


def serve(cluster: ConsoleCluster) -> web.Application:
    """The API server's paths for reading; errors as its Status objects."""
    app = web.Application()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            return await _answer(cluster, request)
        except ApiError as error:
            status = {"kind": "Status", "message": error.message, "reason": error.reason}
            return web.json_response(status, status=error.status)

    app.router.add_get("/{path:.*}", answer)
    return app


async def _answer(cluster: ConsoleCluster, request: web.Request) -> web.StreamResponse:
    parts = request.path.strip("/").split("/")
    version = parts[1] if parts[0] == "api" else "/".join(parts[1:3])
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    namespace = None
    if rest[0] == "namespaces":
        namespace, rest = rest[1], rest[2:]
    if len(rest) > 2 and rest[2] == "proxy":
        pod, _, port = rest[1].partition(":")
        at = Key(namespace or "", pod)
        page = await cluster.page(at, int(port), "/" + "/".join(rest[3:]), 60.0)
        return web.Response(body=page)
    kind = KINDS[version, rest[0]]
    if len(rest) == 2:
        return web.json_response(await cluster.get(kind, namespace or "", rest[1]))
    query = request.query
    labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
    items = await cluster.list_objects(kind, namespace, labels=labels, fields=fields)
    return web.json_response({"items": items})
