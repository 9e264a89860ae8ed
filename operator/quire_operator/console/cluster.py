"""Which cluster, as whom, in which namespace: as kubectl finds out, by kubeconfig and context.

The one module of the console that knows of `kubernetes.aio`. Inside a pod without a kubeconfig it
is the pod's own service account, as for kubectl.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kubernetes.aio import config
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration

from quire_operator.client import KubeClient
from quire_operator.errors import ConsoleError

READ_SECONDS = 10.0
"""A person waits for it."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says of it; None: as the kubeconfig says."""

    kubeconfig: str | None = None
    context: str | None = None
    namespace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """An open connection. `place` names the cluster in sentences."""

    client: KubeClient
    namespace: str
    place: str


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Cluster]:
    """The cluster that kubectl would ask. Raises ConsoleError, with what is wrong in the files."""
    configuration = Configuration()
    files = _files(options)
    if files is None:
        context = _in_cluster(configuration, options)
    else:
        context = await _by_kubeconfig(configuration, files, options)
    try:
        transport = ApiClient(configuration)
    except OSError as error:  # an authority's or a user's certificate that is none
        raise ConsoleError(f"{_blame(files or '', options)}: its certificates: {error}") from error
    try:
        yield Cluster(
            client=KubeClient(transport, write_seconds=READ_SECONDS, read_seconds=READ_SECONDS),
            namespace=options.namespace or context.get("namespace") or DEFAULT_NAMESPACE,
            place=configuration.host,
        )
    finally:
        await transport.close()  # type: ignore[no-untyped-call]


def _files(options: Options) -> str | None:
    """Kubeconfig files, ":" between them; None inside a pod that has none."""
    asked = options.kubeconfig or os.environ.get("KUBECONFIG")
    files = asked or str(Path("~/.kube/config").expanduser())
    if any(Path(name).expanduser().exists() for name in files.split(os.pathsep) if name):
        return files
    if asked is None and "KUBERNETES_SERVICE_HOST" in os.environ and SERVICE_ACCOUNT.exists():
        return None
    raise ConsoleError(
        f"there is no kubeconfig at {files}: give one by --kubeconfig or KUBECONFIG, as for kubectl"
    )


def _in_cluster(configuration: Configuration, options: Options) -> dict[str, str]:
    if options.context is not None:
        raise ConsoleError(
            f"--context {options.context} needs a kubeconfig, and there is none: leave it out to "
            "use this pod's service account, or give --kubeconfig"
        )
    config.load_incluster_config(  # type: ignore[no-untyped-call]
        client_configuration=configuration
    )
    return {"namespace": (SERVICE_ACCOUNT / "namespace").read_text().strip()}


async def _by_kubeconfig(
    configuration: Configuration, files: str, options: Options
) -> dict[str, Any]:
    try:
        loader = await config.load_kube_config(  # type: ignore[no-untyped-call]
            config_file=files,
            context=options.context,
            client_configuration=configuration,
            persist_config=False,
        )
    except (config.ConfigException, OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        # A file that is no kubeconfig at all ends in the last two.
        raise ConsoleError(f"{_blame(files, options)}: {error}") from error
    context: dict[str, Any] = loader.current_context["context"]
    return context


def _blame(files: str, options: Options) -> str:
    if options.context is not None and options.context not in (known := _contexts(files)):
        names = ", ".join(known) or "none"
        return f"kubeconfig {files} has no context {options.context} (it has: {names})"
    return f"kubeconfig {files} cannot be used"


def _contexts(files: str) -> list[str]:
    found: list[str] = []
    for name in filter(None, files.split(os.pathsep)):
        try:
            content = yaml.safe_load(Path(name).expanduser().read_text()) or {}
            found += [str(context["name"]) for context in content.get("contexts") or ()]
        except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError):
            continue  # what is wrong with this one is the loader's own sentence
    return found
