"""Pod templates: the engine's pod of a revision, and the fetch's. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quire_operator import names
from quire_operator.api import Adapter, Model, Spec
from quire_operator.fetch_environment import Network, credentials
from quire_operator.kinds import Manifest
from quire_operator.names import Key
from quire_operator.overlay import overlay

USER = 65532
MODELS = "/models"
ADAPTERS = "/adapters"
"""Where claims of the user's that hold adapters are mounted, each by its name."""
PRE_STOP_SECONDS = 10
"""While the engine still accepts: the time that kube-proxies have to forget the endpoint."""
EXIT_SECONDS = 10
FETCH_RESOURCES: Manifest = {
    "requests": {"cpu": "100m", "memory": "256Mi"},
    "limits": {"memory": "512Mi"},
}
"""A fetch holds some 60 MiB, whatever the model's size; the rest is for pages on their way to the
volume, which the kernel counts as its memory too and writes out when they come near the limit."""
HUNG_SECONDS = 5
"""What an engine that answers no probe is given to end, instead of the time to drain."""
PLAN_RESOURCES: Manifest = {
    "requests": {"cpu": "100m", "memory": "128Mi"},
    "limits": {"memory": "512Mi"},
}
"""A plan reads headers alone: kilobytes."""
UNSET_LIMIT = "20Gi"
"""What an emptyDir's limit counts as in a revision's hash where none is given: the default that it
once had. Another value would restart the pods of such services with an upgrade."""
SCHEDULING = (
    "nodeSelector",
    "tolerations",
    "affinity",
    "schedulerName",
    "priorityClassName",
    "runtimeClassName",
    "imagePullSecrets",
)
"""What a fetch takes over from the pod, so that a volume that waits for its first consumer is made
where the pod will be."""
SCRAPE_ANNOTATIONS = {
    "prometheus.io/scrape": "true",
    "prometheus.io/port": str(names.ENGINE_PORT),
    "prometheus.io/path": "/metrics",
}
"""By which a Prometheus without its operator finds an engine; podTemplate can take them off."""


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a service's files lie: on a claim, or (claim None) in an emptyDir of each pod."""

    claim: str | None
    folder: str
    """What a fetch fills, below the volume's root: quire-<hash> on a claim of the user's, which may
    hold several models; else the root itself, ""."""
    path: str
    """What is served, below the volume's root: a folder of safetensors, or a GGUF file."""

    @property
    def root(self) -> str:
        return "/".join(part for part in (MODELS, self.folder) if part)


def mount_of(spec: Spec) -> Mount:
    """The volume and path of the spec's model."""
    model = spec.model
    if model.uri.startswith("pvc://"):
        claim, _, path = model.uri.removeprefix("pvc://").strip("/").partition("/")
        return Mount(claim=claim, folder="", path=path)
    content = names.claim_hash(model.uri, model.revision)
    path = "/".join(["model", *file_of(model)])
    if spec.cache.mode == "none":
        return Mount(claim=None, folder="", path=path)
    if spec.cache.mode == "existing":
        folder = f"quire-{content}"
        return Mount(claim=spec.cache.existing_claim, folder=folder, path=f"{folder}/{path}")
    return Mount(claim=names.shared_claim(model.uri, model.revision), folder="", path=path)


def content_of(spec: Spec) -> str:
    """Ten hex digits: all that a fetch of the spec brings, adapters included."""
    own = model_content(spec)
    adapters = sorted({names.claim_hash(a.uri, a.revision) for a in fetched_adapters(spec.model)})
    return names.digest("+".join((own, *adapters)), 10) if adapters else own


def model_content(spec: Spec) -> str:
    """Ten hex digits: the model's files alone. Claims are called after it."""
    return names.claim_hash(spec.model.uri, spec.model.revision)


def fetched_adapters(model: Model) -> list[Adapter]:
    """Those that do not lie on a claim of the user's."""
    return [adapter for adapter in model.adapters if not adapter.uri.startswith("pvc://")]


def file_of(model: Model) -> list[str]:
    """The path, below what is fetched, of the one file that a uri names, if any, in parts."""
    scheme, _, rest = model.uri.partition("://")
    path = rest.strip("/").split("/")[1:]  # after the organization, bucket or host
    if scheme == "hf":
        return path[1:]
    return path[-1:] if path and path[-1].endswith(".gguf") else []


def spec_digest(spec: Spec) -> str:
    """Hash of what the user asks of a pod. Defaults are left out: a new field changes no hash."""
    size = UNSET_LIMIT if spec.cache.size is None else str(spec.cache.size)
    limit = [size] if mount_of(spec).claim is None else []
    parts = {
        "model": msgspec.to_builtins(spec.model),
        "engine": msgspec.to_builtins(spec.engine),
        "resources": msgspec.to_builtins(spec.resources),
        "mount": [spec.cache.mode, spec.cache.existing_claim, *limit],
        "drain": spec.rollout.drain_seconds,
        "podTemplate": spec.pod_template,
    }
    parts["model"].pop("credentialsSecret", None)
    parts["resources"].pop("gpuMemory", None)
    return names.digest(msgspec.json.encode(parts, order="sorted").decode(), 16)


def revision_of(digest: str, image: str) -> str:
    """Eight hex digits that name a revision: the user's part and the image pinned to it."""
    return names.digest(f"{digest}@{image}", 8)


def engine_arguments(key: Key, spec: Spec, *, mounted: bool = True) -> list[str]:
    """The command line after the image's entrypoint. Not `mounted`: for a plan that finds at their
    sources what serve finds on the model's volume."""
    engine = spec.engine
    path = "/".join(part for part in (MODELS, mount_of(spec).path) if part)
    flags: list[tuple[str, object]] = [
        ("--served-model-name", spec.model.served_name or key.name),
        ("--host", "0.0.0.0"),  # noqa: S104 - a pod's own network
        ("--port", names.ENGINE_PORT),
        ("--device", "cuda" if spec.resources.gpus else "cpu"),
        ("--shutdown-timeout", spec.rollout.drain_seconds),
        ("--dtype", engine.dtype),
        ("--quantization", engine.quantization),
        ("--max-model-len", engine.max_model_len),
        ("--max-num-seqs", engine.max_num_seqs),
        ("--max-num-batched-tokens", engine.max_batched_tokens),
        ("--gpu-memory-utilization", engine.gpu_memory_utilization),
        ("--tensor-parallel-size", engine.tensor_parallel),
    ]
    arguments = ["serve", path]
    for flag, value in flags:
        if value is not None:
            arguments += [flag, str(value)]
    if engine.prefix_caching is not None:
        arguments.append(f"--{'' if engine.prefix_caching else 'no-'}enable-prefix-caching")
    for adapter in spec.model.adapters:
        arguments += ["--lora-modules", f"{adapter.name}={_place(spec, adapter, mounted)}"]
    return arguments + list(engine.extra_args)


def _place(spec: Spec, adapter: Adapter, mounted: bool) -> str:
    """Where an engine, or a plan without the model's volume, finds an adapter."""
    if adapter.uri.startswith("pvc://"):
        claim, path = _on_claim(adapter.uri)
        root = MODELS if mounted and claim == mount_of(spec).claim else f"{ADAPTERS}/{claim}"
        return f"{root}/{path}"
    if mounted:
        return f"{mount_of(spec).root}/{_adapter_folder(adapter)}/model"
    return _pinned(adapter)


def _on_claim(uri: str) -> tuple[str, str]:
    """Claim and path of a pvc:// URI."""
    claim, _, path = uri.removeprefix("pvc://").strip("/").partition("/")
    return claim, path


def _adapter_folder(adapter: Adapter) -> str:
    """Below what a fetch fills: its own, by content, so that services share it."""
    return f"adapters/{names.claim_hash(adapter.uri, adapter.revision)}"


def _pinned(adapter: Adapter) -> str:
    return f"{adapter.uri}#{adapter.revision}" if adapter.revision else adapter.uri


def plan_arguments(key: Key, spec: Spec, memory_bytes: int | None, *, mounted: bool) -> list[str]:
    """The flags that serve gets, with the model as its files lie (`mounted`) or as it is listed."""
    path = f"{MODELS}/{mount_of(spec).path}"
    model = [path] if mounted else [spec.model.uri, *_revision(spec.model.revision)]
    memory = ["--memory", str(memory_bytes)] if memory_bytes else []
    return ["plan", *model, *memory, "--", *engine_arguments(key, spec, mounted=mounted)[2:]]


def _revision(revision: str | None) -> list[str]:
    return ["--revision", revision] if revision else []


def fetch_arguments(
    spec: Spec, root: str, *, repair: bool, keep: bool = False, commit: str | None = None
) -> list[str]:
    """`commit`: with that of the plan, a branch that moves meanwhile moves nothing. `keep`: others
    serve the model that lies there, and adapters are to come beside it."""
    # Other sources keep no earlier commits: what lies there now is all that can be had of them.
    pinned = commit if spec.model.uri.startswith("hf://") else None
    revision = _revision(pinned or spec.model.revision)
    flags = ["--progress-port", str(names.PROGRESS_PORT)]
    fetched = {(_adapter_folder(a), _pinned(a)) for a in fetched_adapters(spec.model)}
    for folder, place in sorted(fetched):
        flags += ["--adapter", f"{folder}={place}"]
    flags += ["--repair"] * repair + ["--keep"] * keep
    return ["fetch", spec.model.uri, root, *revision, *flags]


def engine_template(
    key: Key,
    spec: Spec,
    revision: str,
    image: str,
    network: Network,
    commit: str | None = None,
) -> Manifest:
    """The pod template of a revision, overlay included. `commit`: for pods that fetch for
    themselves. Raises OverlayError."""
    mount = mount_of(spec)
    template: Manifest = {
        "metadata": {
            "labels": {
                **names.labels(key.name),
                names.LABEL_REVISION: revision,
                **_cache_label(spec),
            },
            "annotations": SCRAPE_ANNOTATIONS,
        },
        "spec": {
            **_pod_basics(),
            "terminationGracePeriodSeconds": PRE_STOP_SECONDS
            + spec.rollout.drain_seconds
            + EXIT_SECONDS,
            "containers": [_engine_container(key, spec, image)],
            "volumes": [*_volumes(mount, spec), *_adapter_volumes(spec, mounted=True)],
            **_gpu_tolerations(spec),
            **_one_node(spec),
        },
    }
    if mount.claim is None:
        # Without credentials: this is a pod that serves. The schema refuses the two together.
        arguments = fetch_arguments(spec, MODELS, repair=False, commit=commit)
        fetch = _fetch_container(image, arguments, network.environment())
        template["spec"]["initContainers"] = [fetch]
    return overlay(template, spec.pod_template)


def fetch_template(
    key: Key,
    spec: Spec,
    stem: str,
    image: str,
    network: Network,
    *,
    repair: bool,
    keep: bool = False,
    commit: str | None = None,
) -> Manifest:
    """The pod template of a fetch Job. Without the service's label: it is never an endpoint."""
    mount = mount_of(spec)
    serving = engine_template(key, spec, "0" * 8, image, network)["spec"]
    environment = [*network.environment(), *credentials(spec.model)]
    arguments = fetch_arguments(spec, mount.root, repair=repair, keep=keep, commit=commit)
    return {
        "metadata": {
            "labels": {
                names.MANAGED_BY: names.MANAGED_BY_VALUE,
                names.COMPONENT: names.FETCH_CONTAINER,
                names.LABEL_CLAIM: stem,
                **_cache_label(spec),
            }
        },
        "spec": {
            **_pod_basics(),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 10,
            "containers": [_fetch_container(image, arguments, environment)],
            "volumes": _volumes(mount, spec),
            **{field: serving[field] for field in SCHEDULING if field in serving},
        },
    }


def plan_template(
    key: Key,
    spec: Spec,
    image: str,
    network: Network,
    memory_bytes: int | None,
    *,
    mounted: bool,
) -> Manifest:
    """The pod template of a plan Job. With the service's label, but without that of our app: it is
    never an endpoint."""
    # Without the volume it is not bound to that one's node.
    free = msgspec.structs.replace(spec.cache, access_mode="ReadWriteMany")
    placed = spec if mounted else msgspec.structs.replace(spec, cache=free)
    serving = engine_template(key, placed, "0" * 8, image, network)["spec"]
    environment = [] if mounted else [*network.environment(), *credentials(spec.model)]
    arguments = plan_arguments(key, spec, memory_bytes, mounted=mounted)
    volumes = _volumes(mount_of(spec), spec)
    adapters = _adapter_volumes(spec, mounted=mounted)
    container = _plan_container(image, arguments, environment, mounted=mounted)
    container["volumeMounts"] += _adapter_mounts(spec, mounted=mounted)
    return {
        "metadata": {
            "labels": {
                names.MANAGED_BY: names.MANAGED_BY_VALUE,
                names.COMPONENT: names.PLAN_CONTAINER,
                names.LABEL_SERVICE: key.name,
                **(_cache_label(spec) if mounted else {}),
            }
        },
        "spec": {
            **_pod_basics(),
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [*(volumes if mounted else volumes[1:]), *adapters],
            **{field: serving[field] for field in SCHEDULING if field in serving},
        },
    }


def _pod_basics() -> Manifest:
    return {
        "automountServiceAccountToken": False,
        # A Service called quire-x would otherwise set QUIRE_X_PORT in every pod beside it.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _container_security() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _volumes(mount: Mount, spec: Spec) -> list[Manifest]:
    if mount.claim is None:
        size = spec.cache.size
        model: Manifest = {"emptyDir": {} if size is None else {"sizeLimit": str(size)}}
    else:
        # Not readOnly here: that would attach the volume read-only, and a repair writes beside us.
        model = {"persistentVolumeClaim": {"claimName": mount.claim}}
    return [{"name": "models", **model}, {"name": "tmp", "emptyDir": {}}]


def _adapter_claims(spec: Spec, *, mounted: bool) -> list[str]:
    """Claims of the user's that adapters lie on, but for the model's own where that is mounted: a
    pod names a claim once."""
    uris = [adapter.uri for adapter in spec.model.adapters if adapter.uri.startswith("pvc://")]
    claims = sorted({_on_claim(uri)[0] for uri in uris})
    return [claim for claim in claims if not mounted or claim != mount_of(spec).claim]


def _adapter_volumes(spec: Spec, *, mounted: bool) -> list[Manifest]:
    return [
        {"name": f"adapters-{number}", "persistentVolumeClaim": {"claimName": claim}}
        for number, claim in enumerate(_adapter_claims(spec, mounted=mounted))
    ]


def _adapter_mounts(spec: Spec, *, mounted: bool) -> list[Manifest]:
    return [
        {"name": f"adapters-{number}", "mountPath": f"{ADAPTERS}/{claim}", "readOnly": True}
        for number, claim in enumerate(_adapter_claims(spec, mounted=mounted))
    ]


def _gpu_tolerations(spec: Spec) -> Manifest:
    """GPU nodes are commonly tainted with their resource's name."""
    if not spec.resources.gpus:
        return {}
    key = spec.resources.gpu_resource
    return {"tolerations": [{"key": key, "operator": "Exists", "effect": "NoSchedule"}]}


def _cache_label(spec: Spec) -> dict[str, str]:
    """A claim of the user's is not marked: its name may be too long for a label."""
    claim = mount_of(spec).claim
    ours = spec.cache.mode == "shared" and not spec.model.uri.startswith("pvc://")
    return {names.LABEL_CACHE: claim} if ours and claim else {}


def _one_node(spec: Spec) -> Manifest:
    """A ReadWriteOnce volume is attached to one node: a pod on another waits there for ever."""
    label = _cache_label(spec)
    if not label or spec.cache.access_mode == "ReadWriteMany":
        return {}
    # The first pod matches itself and so may go anywhere.
    term = {"labelSelector": {"matchLabels": label}, "topologyKey": "kubernetes.io/hostname"}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    return {"affinity": {"podAffinity": required}}


def _engine_resources(spec: Spec) -> Manifest:
    wanted = spec.resources
    amounts: Manifest = {}
    if wanted.cpu is not None:
        amounts["cpu"] = str(wanted.cpu)
    if wanted.memory is not None:
        amounts["memory"] = str(wanted.memory)
    if wanted.gpus:
        amounts[wanted.gpu_resource] = str(wanted.gpus)
    return {"requests": amounts, "limits": dict(amounts)} if amounts else {}


def _engine_container(key: Key, spec: Spec, image: str) -> Manifest:
    return {
        "name": names.ENGINE_CONTAINER,
        "image": image,
        "args": engine_arguments(key, spec),
        "ports": [{"name": names.PORT_NAME, "containerPort": names.ENGINE_PORT, "protocol": "TCP"}],
        "resources": _engine_resources(spec),
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        # The image has no shell: the kubelet's own sleep.
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SECONDS}}},
        # /health answers while the model loads, so this only covers the start of the process.
        "startupProbe": _killing(_probe("/health", period=1, timeout=3, failures=300)),
        "livenessProbe": _killing(_probe("/health", period=10, timeout=5, failures=3)),
        # A saturated CPU may answer late: one slow answer must not take the endpoint away.
        "readinessProbe": _probe("/ready", period=1, timeout=3, failures=3),
        "volumeMounts": [
            {"name": "models", "mountPath": MODELS, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir
            *_adapter_mounts(spec, mounted=True),
        ],
    }


def _probe(path: str, *, period: int, timeout: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": names.ENGINE_PORT},
        "periodSeconds": period,
        "timeoutSeconds": timeout,
        "failureThreshold": failures,
    }


def _killing(probe: Manifest) -> Manifest:
    """A probe whose failure ends the engine soon: one that hangs finishes no request."""
    return {**probe, "terminationGracePeriodSeconds": HUNG_SECONDS}


def _fetch_container(image: str, arguments: list[str], environment: list[Manifest]) -> Manifest:
    return {
        "name": names.FETCH_CONTAINER,
        "image": image,
        "args": arguments,
        "env": environment,
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT, "protocol": "TCP"}],
        "resources": FETCH_RESOURCES,
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "models", "mountPath": MODELS},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - an emptyDir
        ],
    }


def _plan_container(
    image: str, arguments: list[str], environment: list[Manifest], *, mounted: bool
) -> Manifest:
    models = [{"name": "models", "mountPath": MODELS, "readOnly": True}] if mounted else []
    return {
        "name": names.PLAN_CONTAINER,
        "image": image,
        "args": arguments,
        "env": environment,
        "resources": PLAN_RESOURCES,
        "securityContext": _container_security(),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [*models, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - an emptyDir
    }
