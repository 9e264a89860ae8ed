"""The InferenceService resource, `serving.quire.dev/v1alpha1`, as types.

This module is the source of the CustomResourceDefinition (`crd.py` writes it) and what the operator
decodes objects into. Every field says its unit, its default and what follows from it. A field that
does nothing yet is not here. `spec.replicas` is the one number that says how many pods: the user
writes it, or the scaler through `/scale`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NewType

import msgspec
from msgspec import Meta, Struct, field

GROUP = "serving.quire.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "InferenceService"
PLURAL = "inferenceservices"
MAX_NAME_LEN = 40
"""Characters. Children carry a suffix (`-<hash8>`, ReplicaSet, pod) that has to fit in 63."""

Revision = NewType("Revision", str)
"""Eight hex digits: the hash of what the user asked of a pod and of its pinned image."""

QUANTITY_PATTERN = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$"

QuantityField = int | Annotated[str, Meta(pattern=QUANTITY_PATTERN)]
"""A Kubernetes quantity: 2, "500m", "20Gi"."""


class Rule(Struct, frozen=True):
    """A CEL rule of the schema. `message_expression`, CEL too, shows the refused value."""

    rule: str
    message: str
    message_expression: str | None = None


class _Schema(Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all that lies in the resource: camelCase on the wire, defaults left out."""

    rules: ClassVar[tuple[Rule, ...]] = ()


def _cel(rule: str, message: str, message_expression: str | None = None) -> dict[str, Any]:
    validation = {"rule": rule, "message": message}
    if message_expression:
        validation["messageExpression"] = message_expression
    return {"x-kubernetes-validations": [validation]}


_URI_HELP = (
    "model.uri must be hf://org/name[/file.gguf], s3://, gs:// or az://bucket[/prefix][/file.gguf],"
    " https://host/path of a .gguf or .tar file, or pvc://claim/path"
)
_URI_RULE = (
    "self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*(/[^/ ]+)*$')"
    " || self.matches('^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[^/ ]+)*/?$')"
    " || self.matches('^https://[^/@?# ]+(/[^/?# ]+)+[.](gguf|tar)$')"
    " || self.matches('^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/ ]+)*/?$')"
)


class Model(_Schema, frozen=True):
    """Which model is served, and under what name."""

    rules = (
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.revision)",
            "model.revision has no meaning for pvc://, served as its files lie; remove it",
        ),
        Rule(
            "!self.uri.startsWith('pvc://') || !has(self.credentialsSecret)",
            "model.credentialsSecret has no meaning for pvc://, never downloaded; remove it",
        ),
    )

    uri: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=512,
            description="Where the model lies: `hf://org/name` (a repository of safetensors on "
            "a Hugging Face hub or its mirror), `s3://bucket/prefix`, `gs://bucket/prefix` or "
            "`az://container/prefix` (safetensors right below a prefix of an object store), a "
            "`/file.gguf` below one of these (one file of it), `https://host/path` (a .gguf file, "
            "or a .tar of a folder of safetensors) or `pvc://claim/path` (files on a claim of this "
            "namespace, served as they lie). A change makes a new revision.",
            extra_json_schema=_cel(_URI_RULE, _URI_HELP, f"'{_URI_HELP}, got ' + self"),
        ),
    ]
    revision: Annotated[
        Annotated[str, Meta(min_length=1, max_length=128)] | None,
        Meta(
            description="Branch, tag or commit of the repository. Default: the repository's "
            "main branch. It is resolved to a commit once, when it is fetched "
            "(status.model.commit), and moves only when the spec changes. Object "
            "stores and https:// have one, a hash of what lies there: when it is given "
            "here and is not that any more, the fetch fails.",
        ),
    ] = None
    served_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=256)] | None,
        Meta(
            description="The `model` name that OpenAI clients send. Default: metadata.name.",
        ),
    ] = None
    credentials_secret: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Name of a Secret of this namespace. Its keys: for hf:// `token`; for "
            "https:// `token`, or `username` and `password`; for object stores what "
            "their own tools read from the environment: `AWS_ACCESS_KEY_ID`, "
            "`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`; "
            "`GOOGLE_SERVICE_ACCOUNT_KEY` (the JSON itself), `GOOGLE_BASE_URL`; "
            "`AZURE_STORAGE_ACCOUNT_NAME`, `AZURE_STORAGE_ACCOUNT_KEY` or "
            "`AZURE_STORAGE_SAS_TOKEN`, `AZURE_STORAGE_ENDPOINT`. They reach the Jobs that plan "
            "and fetch, never the pods that serve; so it cannot be used with cache.mode none, "
            "where those fetch. Without it buckets are asked as a stranger.",
        ),
    ] = None


class Engine(_Schema, frozen=True):
    """Flags of the engine. What is unset is decided by it. Any change makes a new revision."""

    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"] | None,
        Meta(
            description="Number format of weights and activations. Unset: auto, the engine decides."
        ),
    ] = None
    quantization: Annotated[
        Literal["int8"] | None,
        Meta(
            description="What float weights are rounded to while they are loaded: int8 halves the "
            "bytes of bfloat16. It runs on the CPU only (resources.gpus 0) and refuses a GGUF that "
            "is quantized already. Unset: the weights stay as they are stored.",
        ),
    ] = None
    max_model_len: Annotated[
        Annotated[int, Meta(ge=1, le=16_777_216)] | None,
        Meta(
            description="Longest sequence, prompt and answer, in tokens. Unset: the model's "
            "own limit. Lower it when the cache does not fit.",
        ),
    ] = None
    max_num_seqs: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | None,
        Meta(description="Most requests that run in one step. Unset: the engine decides."),
    ] = None
    max_batched_tokens: Annotated[
        Annotated[int, Meta(ge=1, le=16_777_216)] | None,
        Meta(
            description="Token budget of one step: longer prompts are cut into chunks of it. "
            "Unset: the engine decides.",
        ),
    ] = None
    gpu_memory_utilization: Annotated[
        Annotated[float, Meta(ge=0.05, le=1.0)] | None,
        Meta(
            description="Part of the GPU's memory, 0.05 to 1, that weights and cache may take. "
            "Unset: the engine decides.",
        ),
    ] = None
    tensor_parallel: Annotated[
        Annotated[int, Meta(ge=1, le=64)] | None,
        Meta(description="GPUs over which one replica is split. Unset: 1."),
    ] = None
    prefix_caching: Annotated[
        bool | None,
        Meta(
            description="Keep and reuse the cache of shared prompt beginnings. Unset: the "
            "engine decides (on)."
        ),
    ] = None
    extra_args: Annotated[
        list[Annotated[str, Meta(max_length=1024)]],
        Meta(
            max_length=64,
            description="Further arguments of `quire-engine serve`, one a list item, put last "
            "so that they win.",
        ),
    ] = field(default_factory=list)
    image: Annotated[
        Annotated[str, Meta(min_length=1, max_length=512)] | None,
        Meta(
            description="Engine image. Unset: the operator's default at the time the revision "
            "is made; a later upgrade of the operator does not move a running "
            "revision.",
        ),
    ] = None


class Resources(_Schema, frozen=True):
    """What one replica takes."""

    gpus: Annotated[
        int,
        Meta(
            ge=0,
            le=64,
            description="GPUs of one replica. Default 1. 0 runs on the CPU (`--device cpu`); "
            "with more, a pod that finds no CUDA device fails and says so.",
        ),
    ] = 1
    gpu_resource: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=253,
            description="Extended resource that counts GPUs. Default nvidia.com/gpu; another "
            "for MIG slices or another vendor.",
        ),
    ] = "nvidia.com/gpu"
    gpu_memory: Annotated[
        QuantityField | None,
        Meta(
            description="Memory of each GPU, such as 24Gi: a model that does not fit into it is "
            "refused before anything is fetched (condition Fits). Unset: the largest that a node "
            "label `<gpuResource>.memory` tells of the nodes that the pod may run on; nothing is "
            "refused where there is none. A change moves no running revision.",
        ),
    ] = None
    cpu: Annotated[
        QuantityField | None,
        Meta(
            description="CPU of one replica, request and limit (the engine takes as many "
            "threads as the limit gives). Unset: neither.",
        ),
    ] = None
    memory: Annotated[
        QuantityField | None,
        Meta(
            description="Memory of one replica, request and limit. Unset: neither. With gpus 0 a "
            "model that does not fit into it is refused before anything is fetched (condition "
            "Fits). A replica above it is OOMKilled, and Ready says so with the limit.",
        ),
    ] = None


class Cache(_Schema, frozen=True):
    """Where the model's files are kept. Not used for pvc:// models."""

    rules = (
        Rule(
            "self.mode == 'existing' ? has(self.existingClaim) : !has(self.existingClaim)",
            "cache.existingClaim is required with cache.mode existing, and only there",
        ),
        Rule(
            "self.mode != 'none' || !self.prefetch",
            "cache.prefetch needs a claim: set cache.mode shared or existing, or remove it",
        ),
    )

    mode: Annotated[
        Literal["shared", "existing", "none"],
        Meta(
            description="`shared` (default): one claim per model, revision and namespace, made "
            "by the operator, shared by all services that use it and removed with "
            "the last of them. `existing`: a claim of yours. `none`: an emptyDir, "
            "fetched anew by each pod, without credentials.",
        ),
    ] = "shared"
    size: Annotated[
        QuantityField | None,
        Meta(
            description="Size of the claim (mode shared) or limit of the emptyDir (mode none). "
            "Unset: the claim gets the model's own size and 10 %, in whole GiB, the emptyDir no "
            "limit. A larger value grows a claim whose storage class allows it; with mode none "
            "another value makes a new revision.",
        ),
    ] = None
    storage_class_name: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Storage class of the claim (mode shared). Unset: the cluster's "
            "default. Read when the claim is made.",
        ),
    ] = None
    access_mode: Annotated[
        Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"],
        Meta(
            description="Access mode of the claim (mode shared). Default ReadWriteOnce, which "
            "keeps all replicas on the volume's node (a required podAffinity, which "
            "podTemplate may replace); ReadWriteMany lets them spread. Read when the "
            "claim is made.",
        ),
    ] = "ReadWriteOnce"
    existing_claim: Annotated[
        Annotated[str, Meta(min_length=1, max_length=253)] | None,
        Meta(
            description="Name of the claim with mode existing. The model goes to a folder of "
            "its own, quire-<hash>.",
        ),
    ] = None
    prefetch: Annotated[
        bool,
        Meta(description="Fetch the model even while replicas is 0. Default false."),
    ] = False


class Targets(_Schema, frozen=True):
    """What one replica may carry. The target that is exceeded most decides."""

    queue_depth: Annotated[
        int,
        Meta(ge=1, le=100_000, description="Waiting requests per replica. Default 4."),
    ] = 4
    ttft_seconds: Annotated[
        Annotated[float, Meta(ge=0.001, le=3600)] | None,
        Meta(
            description="95th percentile of the time to the first token, in seconds. Unset: "
            "not looked at.",
        ),
    ] = None
    kv_cache_utilization: Annotated[
        Annotated[float, Meta(ge=0.05, le=1.0)] | None,
        Meta(description="Used part of the KV cache, 0.05 to 1. Default 0.9."),
    ] = 0.9


class ScaleRule(_Schema, frozen=True):
    """How fast one direction is followed."""

    stabilization_seconds: Annotated[
        Annotated[int, Meta(ge=0, le=3600)] | None,
        Meta(
            description="Seconds for which the wish must have lasted. Default 0 up, 300 down. "
            "Starts anew with the operator.",
        ),
    ] = None
    max_step: Annotated[
        Annotated[int, Meta(ge=1, le=1000)] | None,
        Meta(
            description="Most replicas added or removed at once. Default: up as many as are "
            "ready (at most doubling, whatever is given here), down 1.",
        ),
    ] = None


class Schedule(_Schema, frozen=True):
    """From each of its moments on, another minReplicas."""

    cron: Annotated[
        str,
        Meta(
            min_length=9,
            max_length=100,
            pattern=r"^\S+( \S+){4}$",
            description="Five cron fields: minute, hour, day of month, month, day of week. "
            "minReplicas holds from each such moment until the next one of any schedule.",
        ),
    ]
    min_replicas: Annotated[
        int, Meta(ge=1, le=1000, description="Fewest replicas from then on. At most maxReplicas.")
    ]
    time_zone: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9_+/-]+$",
            description="IANA name, such as Europe/Berlin. Default UTC.",
        ),
    ] = "UTC"


class Keda(_Schema, frozen=True):
    """Where KEDA reads with mode keda."""

    prometheus_server: Annotated[
        Annotated[str, Meta(min_length=1, max_length=2048, pattern=r"^https?://\S+$")] | None,
        Meta(
            description="Address of a Prometheus that scrapes the pods. Unset: KEDA asks the "
            "operator, which scrapes them itself.",
        ),
    ] = None


class Scaling(_Schema, frozen=True):
    """Who writes spec.replicas."""

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "scaling.minReplicas must be <= scaling.maxReplicas",
        ),
        Rule(
            "!has(self.schedules) || self.schedules.all(s, s.minReplicas <= self.maxReplicas)",
            "scaling.schedules[].minReplicas must be <= scaling.maxReplicas",
        ),
        Rule(
            "!has(self.idleSecondsToZero) || self.mode in ['builtin', 'keda']",
            "scaling.idleSecondsToZero needs scaling.mode builtin or keda (an HPA at 0 stops"
            " itself, and with mode none nobody would come back from 0)",
        ),
        Rule(
            "!has(self.dryRun) || !self.dryRun || self.mode == 'builtin'",
            "scaling.dryRun needs scaling.mode builtin (the other modes decide elsewhere)",
        ),
    )

    mode: Annotated[
        Literal["none", "builtin", "hpa", "keda"],
        Meta(
            description="`none` (default): the user, or anything else that writes /scale. "
            "`builtin`: the operator's scaler, which reads the pods' own metrics; "
            "it never shrinks on missing ones. `hpa`: a HorizontalPodAutoscaler of ours, on the "
            "operator's external metrics. `keda`: a ScaledObject of ours.",
        ),
    ] = "none"
    min_replicas: Annotated[
        int, Meta(ge=1, le=1000, description="Fewest replicas while not idle. Default 1.")
    ] = 1
    max_replicas: Annotated[int, Meta(ge=1, le=1000, description="Most replicas. Default 4.")] = 4
    targets: Annotated[
        Targets, Meta(description="What one replica may carry before another is added.")
    ] = Targets()
    scale_up: Annotated[ScaleRule, Meta(description="How replicas are added.")] = ScaleRule()
    scale_down: Annotated[ScaleRule, Meta(description="How replicas are removed.")] = ScaleRule()
    idle_seconds_to_zero: Annotated[
        Annotated[int, Meta(ge=10, le=604_800)] | None,
        Meta(
            description="Seconds without any request after which no pod is kept (modes builtin "
            "and keda). The gateway holds what comes then and wakes the service. "
            "Unset: never below minReplicas.",
        ),
    ] = None
    schedules: Annotated[
        list[Schedule],
        Meta(max_length=16, description="Moments from which another minReplicas holds."),
    ] = field(default_factory=list)
    keda: Annotated[Keda, Meta(description="Where KEDA reads with mode keda.")] = Keda()
    dry_run: Annotated[
        bool,
        Meta(
            description="Record decisions in status.scaling without following them. Default false."
        ),
    ] = False

    @property
    def up_seconds(self) -> int:
        return self.scale_up.stabilization_seconds or 0

    @property
    def down_seconds(self) -> int:
        seconds = self.scale_down.stabilization_seconds
        return 300 if seconds is None else seconds


class Rollout(_Schema, frozen=True):
    """How a revision follows another, and how a pod leaves."""

    drain_seconds: Annotated[
        int,
        Meta(
            ge=0,
            le=86_400,
            description="Seconds that a leaving pod has to finish its requests. Default 120. "
            "The pod's grace period is this plus 20: 10 for endpoints to "
            "propagate, 10 to exit.",
        ),
    ] = 120
    progress_deadline_seconds: Annotated[
        int,
        Meta(
            ge=10,
            le=604_800,
            description="Seconds, counted from when its Deployment became unavailable (or "
            "was made, if that is later), within which a revision must become ready. "
            "Default 1800. Past them RolloutComplete is False with reason "
            "ProgressDeadlineExceeded; an earlier revision keeps serving.",
        ),
    ] = 1800


class Spec(_Schema, frozen=True):
    """What the user asks for."""

    rules = (
        Rule(
            "!has(self.engine.tensorParallel) || self.engine.tensorParallel == 1"
            " || self.engine.tensorParallel <= self.resources.gpus",
            "engine.tensorParallel must be <= resources.gpus (the GPUs of one replica)",
        ),
        Rule(
            "!has(self.engine.quantization) || self.resources.gpus == 0",
            "engine.quantization runs on the CPU only: set resources.gpus 0, or remove"
            " engine.quantization",
        ),
        Rule(
            "self.cache.mode != 'none' || !has(self.model.credentialsSecret)",
            "model.credentialsSecret reaches the fetch Job only, and cache.mode none has none: set"
            " cache.mode shared or existing, or remove model.credentialsSecret",
        ),
    )

    model: Model
    replicas: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="Number of pods. Default 1. Written by the user, or by the scaler "
            "through /scale; 0 stops all pods and keeps the cache.",
        ),
    ] = 1
    engine: Annotated[Engine, Meta(description="Flags of the engine.")] = Engine()
    resources: Annotated[Resources, Meta(description="What one replica takes.")] = Resources()
    cache: Annotated[Cache, Meta(description="Where the model's files are kept.")] = Cache()
    scaling: Annotated[Scaling, Meta(description="Who writes spec.replicas.")] = Scaling()
    rollout: Annotated[
        Rollout, Meta(description="How a revision follows another, and how a pod leaves.")
    ] = Rollout()
    pod_template: Annotated[
        dict[str, Any],
        Meta(
            description="Overlay on the pod (metadata and spec of a PodTemplateSpec), merged "
            "strategically: lists of containers, env, volumes and the like merge "
            "by their names, all else is replaced. The engine's container is "
            "`engine`. Our labels, the command and the ports stay. The fetch Job "
            "takes over nodeSelector, tolerations, affinity, schedulerName, "
            "priorityClassName, runtimeClassName and imagePullSecrets.",
        ),
    ] = field(default_factory=dict)


class Condition(_Schema, frozen=True, omit_defaults=False):
    """One observation, in the form that `kubectl wait` understands."""

    type: Annotated[
        str,
        Meta(
            max_length=64,
            description="Ready, ModelCached, Fits, PodsReady, RolloutComplete or Scaling.",
        ),
    ]
    status: Annotated[
        Literal["True", "False", "Unknown"], Meta(description="True, False or Unknown.")
    ]
    reason: Annotated[str, Meta(max_length=128, description="One word that says why.")]
    message: Annotated[
        str, Meta(max_length=4096, description="The same for a person, with numbers.")
    ]
    observed_generation: Annotated[
        int, Meta(description="The metadata.generation that this was said of.")
    ]
    last_transition_time: Annotated[
        str,
        Meta(
            description="When status last changed, RFC 3339.",
            extra_json_schema={"format": "date-time"},
        ),
    ]


class ModelStatus(_Schema, frozen=True):
    """What is known of the model's files."""

    commit: Annotated[
        str | None, Meta(description="Commit that model.revision was resolved to.")
    ] = None
    bytes_total: Annotated[int | None, Meta(description="Bytes to fetch.")] = None
    bytes_done: Annotated[
        int | None, Meta(description="Bytes fetched; renewed at most every 5 s.")
    ] = None
    eta_seconds: Annotated[float | None, Meta(description="Seconds to go at the present rate.")] = (
        None
    )


class PlanStatus(_Schema, frozen=True):
    """The engine's memory plan of one replica, made from the model's headers before it is fetched.

    With tensorParallel bytes are of one GPU."""

    key: Annotated[
        str | None,
        Meta(
            description="What it was asked for: a hash of model, flags and given memory, and the "
            "bytes of memory that it was made for. It is asked anew when this changes."
        ),
    ] = None
    commit: Annotated[
        str | None, Meta(description="Commit whose files it is of, and which is then fetched.")
    ] = None
    bytes_total: Annotated[int | None, Meta(description="Bytes of the files to fetch.")] = None
    weight_bytes: Annotated[int | None, Meta(description="Bytes of the weights.")] = None
    kv_bytes_per_token: Annotated[
        int | None, Meta(description="Bytes of KV cache that one token takes.")
    ] = None
    kv_blocks: Annotated[
        int | None, Meta(description="Blocks of KV cache that the memory has room for.")
    ] = None
    max_model_len: Annotated[int | None, Meta(description="The longest sequence, in tokens.")] = (
        None
    )
    max_concurrency: Annotated[
        float | None, Meta(description="Sequences of that length that the cache holds at once.")
    ] = None
    required_bytes: Annotated[
        int | None, Meta(description="Bytes that one sequence of that length needs in all.")
    ] = None
    memory_bytes: Annotated[
        int | None,
        Meta(description="Bytes of a GPU, or of the container's limit, that it was made for."),
    ] = None
    refusal: Annotated[
        str | None, Meta(description="Why it does not fit, and what would. Unset: it fits.")
    ] = None


class StartupStatus(_Schema, frozen=True):
    """How long pods take to start."""

    last_seconds: Annotated[
        float | None,
        Meta(description="Seconds from the last ready pod's start to its readiness."),
    ] = None


class ScalingDecision(_Schema, frozen=True, omit_defaults=False):
    """One decision of the scaler, with what it was based on."""

    time: Annotated[
        str,
        Meta(description="When, RFC 3339.", extra_json_schema={"format": "date-time"}),
    ]
    from_replicas: Annotated[int, Meta(description="Replicas before.")] = field(name="from")
    to_replicas: Annotated[int, Meta(description="Replicas decided.")] = field(name="to")
    reason: Annotated[str, Meta(max_length=1024, description="Why, in words and numbers.")]
    inputs: Annotated[
        dict[str, str],
        Meta(description="The measured values that were decided on, by name."),
    ] = field(default_factory=dict)


class ScalingStatus(_Schema, frozen=True):
    """What the scaler wants and did."""

    desired: Annotated[int | None, Meta(description="Replicas that the scaler wants now.")] = None
    decisions: Annotated[
        list[ScalingDecision],
        Meta(max_length=5, description="The last five changes, newest first."),
    ] = field(default_factory=list)


class Status(_Schema, frozen=True):
    """What the operator sees."""

    observed_generation: Annotated[
        int | None, Meta(description="The metadata.generation that this status describes.")
    ] = None
    conditions: Annotated[
        list[Condition],
        Meta(
            max_length=16,
            description="Ready and what it is made of.",
            extra_json_schema={
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
            },
        ),
    ] = field(default_factory=list)
    url: Annotated[
        str | None, Meta(description="Base URL for OpenAI clients inside the cluster.")
    ] = None
    replicas: Annotated[
        int | None, Meta(description="Pods of this service, ready or not (for /scale).")
    ] = None
    ready_replicas: Annotated[int | None, Meta(description="Pods that are ready.")] = None
    selector: Annotated[
        str | None, Meta(description="Label selector of the pods (for /scale).")
    ] = None
    revision: Annotated[str | None, Meta(description="Revision that the spec asks for.")] = None
    model: Annotated[
        ModelStatus | None, Meta(description="What is known of the model's files.")
    ] = None
    plan: Annotated[PlanStatus | None, Meta(description="The engine's memory plan.")] = None
    startup: Annotated[StartupStatus | None, Meta(description="How long pods take to start.")] = (
        None
    )
    scaling: Annotated[ScalingStatus | None, Meta(description="What the scaler wants and did.")] = (
        None
    )
    gateway_port: Annotated[
        int | None,
        Meta(
            description="The gateway's port for this service alone, 20000 to 29999: where its own "
            "address leads while it has no ready pod. Given to services with "
            "scaling.idleSecondsToZero, and kept.",
        ),
    ] = None


def decode_spec(spec: object) -> Spec:
    """A spec as stored. Raises msgspec.ValidationError with the path that is wrong."""
    return msgspec.convert(spec, Spec)


def decode_status(status: object) -> Status:
    """A status as stored; one that does not decode counts as empty, as we write it anew."""
    try:
        return msgspec.convert(status, Status)
    except msgspec.ValidationError:
        return Status()
