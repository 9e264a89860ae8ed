"""kubectl and helm against the test cluster, as the end-to-end tests and the demo use them.

Everything here runs inside `quire_cluster exec`, which sets KUBECONFIG and PATH and enters the
cluster's network.
"""

import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar

import yaml

from quire_cluster.errors import CommandError, NotReadyError
from quire_cluster.shell import run

Json: TypeAlias = Any  # a Kubernetes object as kubectl prints it
T = TypeVar("T")

POLL_SECONDS = 0.5


def kubectl(*args: str, namespace: str | None = None, stdin: str | None = None) -> str:
    scope = ("--namespace", namespace) if namespace else ()
    return run(["kubectl", *scope, *args], stdin=stdin)


def apply(manifest: Json, namespace: str | None = None) -> str:
    """Apply one object (a dict) or YAML text."""
    text = manifest if isinstance(manifest, str) else yaml.safe_dump(manifest)
    return kubectl("apply", "-f", "-", namespace=namespace, stdin=text)


def get(kind: str, name: str, namespace: str | None = None) -> Json:
    """The object; None when there is none of this name."""
    text = kubectl("get", kind, name, "--ignore-not-found", "-o", "json", namespace=namespace)
    return json.loads(text) if text.strip() else None


def raw(path: str) -> Json:
    """What the API server answers to a GET of this path."""
    return json.loads(kubectl("get", f"--raw={path}"))


def items(kind: str, namespace: str | None = None, selector: str = "") -> list[Json]:
    args = ("--selector", selector) if selector else ()
    found: list[Json] = json.loads(kubectl("get", kind, *args, "-o", "json", namespace=namespace))[
        "items"
    ]
    return found


def patch(kind: str, name: str, namespace: str, merge: Json) -> str:
    return kubectl(
        "patch", kind, name, "--type=merge", "-p", json.dumps(merge), namespace=namespace
    )


def wait_until(condition: Callable[[], T | None], seconds: float, what: str) -> T:
    """Poll until `condition` returns something true; CommandError counts as not yet."""
    deadline = time.monotonic() + seconds
    last: object = None
    while time.monotonic() < deadline:
        try:
            found = condition()
            if found:
                return found
            last = found
        except CommandError as error:
            last = error
        time.sleep(POLL_SECONDS)
    raise NotReadyError(f"waited {seconds:.0f} s for {what}; last seen: {last}")


def sleep(seconds: float) -> None:
    """Let real time pass, where a test shows that nothing happens in it."""
    time.sleep(seconds)


def condition(service: Json, kind: str = "Ready") -> Json:
    """The condition of that type, or an empty one when the operator has not written it yet."""
    found = [c for c in service.get("status", {}).get("conditions", []) if c["type"] == kind]
    return found[0] if found else {"type": kind, "status": "Unknown", "reason": "", "message": ""}


def wait_ready(namespace: str, name: str, seconds: float = 180) -> Json:
    """The InferenceService once it is Ready for its current generation."""
    seen: list[str] = []

    def ready() -> Json | None:
        service = get("inferenceservice", name, namespace)
        if service is None:
            return None
        now = condition(service)
        line = f"{now['reason']}: {now['message']}"
        if not seen or seen[-1] != line:
            seen.append(line)
        current = now.get("observedGeneration") == service["metadata"]["generation"]
        return service if now["status"] == "True" and current else None

    try:
        return wait_until(ready, seconds, f"{namespace}/{name} to be Ready")
    except NotReadyError as error:
        raise NotReadyError(f"{error}; its reasons were: {seen[-5:]}") from error


def wait_reason(namespace: str, name: str, reason: str, seconds: float = 30) -> str:
    """The message of Ready=False once its reason is `reason`."""

    seen = ""

    def has_reason() -> str | None:
        nonlocal seen
        now = condition(get("inferenceservice", name, namespace) or {})
        seen = f"{now['reason']}: {now['message']}"
        return seen if now["reason"] == reason and now["status"] == "False" else None

    try:
        return wait_until(has_reason, seconds, f"{namespace}/{name} to be Ready=False/{reason}")
    except NotReadyError as error:
        raise NotReadyError(f"{error}; its last reason was {seen}") from error


def wait_condition(namespace: str, name: str, kind: str, reason: str, seconds: float = 60) -> Json:
    """The condition of this type once it has this reason, whatever its status."""

    def found() -> Json | None:
        now = condition(get("inferenceservice", name, namespace) or {}, kind)
        return now if now["reason"] == reason else None

    return wait_until(found, seconds, f"{namespace}/{name} to have {kind} {reason}")


@contextmanager
def service_address(namespace: str, name: str) -> Iterator[str]:
    """`host:port` that reaches the Service from here: its cluster address where this process stands
    in the cluster's network (netns provider), a port-forward elsewhere."""
    if os.environ.get("QUIRE_CLUSTER_NETWORK") == "direct":
        service = wait_until(lambda: get("service", name, namespace), 30, f"Service {name}")
        yield f"{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["kubectl", "--namespace", namespace, "port-forward", f"service/{name}", f"{port}:80"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as forward:
        try:
            wait_until(lambda: _accepts(port), 30, f"a port-forward to service {name}")
            yield f"127.0.0.1:{port}"
        finally:
            forward.terminate()


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
