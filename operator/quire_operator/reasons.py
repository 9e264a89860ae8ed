"""Every reason that `Ready` can have, in order: the first whose rule finds something is told. Pure.

What stops everything behind it stands before it. A new reason is one entry here, a rule in the
module of its matter, and an end-to-end test marked with its name; `python -m
quire_operator.reasons_page` writes the page that people read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from quire_operator import fetch_rules, fit_rules, pod_rules, service_rules
from quire_operator.case import Case, Rule
from quire_operator.fetch_rules import failed_as, failed_otherwise
from quire_operator.service_rules import problem

Level = Literal[
    "service", "plan", "claim", "fetch", "pod", "container", "engine", "rollout", "scaler"
]

READY = "Ready"


@dataclass(frozen=True, slots=True)
class Entry:
    """One reason: where it arises, why, what a person does, and how it is found."""

    reason: str
    level: Level
    cause: str
    remedy: str
    rule: Rule
    is_trouble: bool = True
    """Whether somebody has to do something; what is but on its way is told as Normal, and beside
    ready pods not as the reason."""


def first(*rules: Rule) -> Rule:
    """The rule that finds what any of these does, in their order."""

    def found(case: Case) -> str | None:
        return next((words for rule in rules if (words := rule(case)) is not None), None)

    return found


def find(case: Case) -> tuple[Entry, str] | None:
    """The first entry that is so, with its message; None for a service that has all it needs."""
    for entry in TABLE:
        message = entry.rule(case)
        if message is not None:
            return entry, message
    return None


_FETCH = (
    Entry(
        "SourceUnauthorized",
        "fetch",
        "The source answers 401 or 403: no token or keys, wrong ones, or a gated model.",
        "Name a Secret with a token or keys that may read the model in `model.credentialsSecret`, "
        "or mend the one that is named.",
        failed_as("SourceUnauthorized"),
    ),
    Entry(
        "SourceNotFound",
        "fetch",
        "The source has no such repository, revision or file (or does not tell strangers of it).",
        "Mend `model.uri` or `model.revision`; a private model wants `model.credentialsSecret`.",
        failed_as("SourceNotFound"),
    ),
    Entry(
        "SourceUnreachable",
        "fetch",
        "No connection, or server errors, for 10 s and more.",
        "Look at the way from the pod to the source: DNS, proxy, NetworkPolicy, the source itself.",
        failed_as("SourceUnreachable"),
    ),
    Entry(
        "NoSpace",
        "fetch",
        "The volume has fewer free bytes than the model still wants.",
        "Raise `cache.size` (a class that can grows the claim), or make room on the volume.",
        failed_as("NoSpace"),
    ),
    Entry(
        "Stalled",
        "fetch",
        "The source keeps the connection and sends nothing: for 10 s in a plan, 19 s in a fetch.",
        "Look at the source and what lies between; the next attempt goes on where this one ended.",
        failed_as("Stalled"),
    ),
    Entry(
        "Corrupt",
        "fetch",
        "What came is not what the source lists: length or sha256 differ.",
        "Mend the source or the mirror; the bad files are fetched again by themselves.",
        failed_as("Corrupt"),
    ),
    Entry(
        "UnsupportedModel",
        "fetch",
        "The repository is whole, but holds nothing that the engine can load.",
        "Name another model, or one GGUF file of a repository that has several.",
        failed_as("UnsupportedModel"),
    ),
    Entry(
        "Interrupted",
        "fetch",
        "Somebody ended the fetch or the plan: its pod was deleted, evicted or killed, or its node "
        "was lost.",
        "Nothing: the next attempt goes on where this one ended. If it repeats, look at the node.",
        failed_as("Interrupted"),
    ),
)

_KNOWN = frozenset({"OOMKilled", *(entry.reason for entry in _FETCH)})

TABLE: tuple[Entry, ...] = (
    Entry(
        "InvalidSpec",
        "service",
        "The spec does not decode: an older CRD let it in.",
        "Correct the field that the message names, or upgrade the CRD.",
        service_rules.invalid_spec,
    ),
    Entry(
        "InvalidPodTemplate",
        "service",
        "`podTemplate` cannot be laid over the pod.",
        "Mend the field that the message names.",
        service_rules.invalid_pod_template,
    ),
    Entry(
        "NameConflict",
        "service",
        "An object of a name that the service needs exists and is not ours.",
        "Delete or rename that object, or give the InferenceService another name.",
        problem("NameConflict"),
    ),
    Entry(
        "PredecessorLeaving",
        "service",
        "An object of a deleted service of the same name still bears a name that this one needs.",
        "Wait. If it stays, look at its finalizers: `kubectl get` with `-o yaml` shows whose they "
        "are.",
        problem("PredecessorLeaving"),
        is_trouble=False,
    ),
    Entry(
        "Forbidden",
        "service",
        "The API server does not let the operator do what it must; the message has the verb and "
        "the resource.",
        "Give the operator's service account that right; the chart's RBAC has all it needs.",
        problem("Forbidden"),
    ),
    Entry(
        "Refused",
        "service",
        "The API server or an admission plugin refuses an object of ours: a value in `podTemplate` "
        "that no pod can have, a LimitRange on claims, a policy, a namespace that ends.",
        "Mend the field that the message names, or the policy.",
        problem("Refused"),
    ),
    Entry(
        "ScaledToZero",
        "service",
        "`replicas` is 0: paused, or asleep until the gateway wakes it.",
        "Set `replicas` to 1 or more, or send a request through the gateway.",
        service_rules.scaled_to_zero,
        is_trouble=False,
    ),
    Entry(
        "QuotaExceeded",
        "service",
        "A ResourceQuota of the namespace leaves no room for the claim, the fetch or the pods.",
        "Raise the quota, or ask for less: replicas, GPUs, memory, `cache.size`.",
        pod_rules.quota_exceeded,
    ),
    Entry(
        "DoesNotFit",
        "plan",
        "The model needs more memory than a GPU has, or than `resources.memory` lets the container "
        "take; nothing was fetched.",
        "Lower `engine.maxModelLen` to the context that the message names, or take a larger GPU or "
        "limit, more `engine.tensorParallel`, or another model.",
        fit_rules.does_not_fit,
    ),
    Entry(
        "ClaimUnbound",
        "claim",
        "The claim has no volume: no such StorageClass, none that fits, the provisioner's refusal, "
        "a claim that does not exist, is being removed or has lost its volume.",
        "Mend `cache.storageClassName`, `cache.existingClaim` or the volume, as the message says.",
        fetch_rules.claim_unbound,
    ),
    *_FETCH,
    Entry(
        "PlanFailed",
        "plan",
        "The engine could not say what the model needs; the message begins with the reason, most "
        "often a flag that it has not.",
        "Follow the message, most often to `engine.extraArgs`; it is asked again by itself.",
        fit_rules.plan_failed(_KNOWN),
    ),
    Entry(
        "FetchFailed",
        "fetch",
        "The fetch ended for another reason, which the message begins with.",
        "Follow the message; the next attempt comes by itself.",
        failed_otherwise(_KNOWN),
    ),
    Entry(
        "PodsRefused",
        "pod",
        "The API server refuses the pods: LimitRange, PodSecurity, another admission plugin.",
        "Change `resources` or `podTemplate` so that the pod is let in, or the namespace's policy.",
        pod_rules.pods_refused,
    ),
    Entry(
        "OOMKilled",
        "container",
        "The kernel killed the engine, the fetch or the plan at its memory limit; the message has "
        "the limit.",
        "Raise `resources.memory`, or lower `engine.maxModelLen` or `engine.maxNumSeqs`.",
        first(failed_as("OOMKilled"), pod_rules.oom_killed),
    ),
    Entry(
        "NodeLost",
        "pod",
        "The pod's node is not ready, by the word of the cluster's node controller.",
        "Bring the node back. After five minutes the cluster puts the pod elsewhere; a volume that "
        "only one node can attach may hold it back.",
        pod_rules.node_lost,
    ),
    Entry(
        "EngineHung",
        "engine",
        "The engine runs and does not answer, or stands still with requests pending, or the "
        "kubelet killed it for that.",
        "Nothing: the kubelet restarts it. If it repeats, look at the log of the run before, and "
        "at the node's CPU or GPU.",
        pod_rules.engine_hung,
    ),
    Entry(
        "CrashLoop",
        "container",
        "The engine, or a container that `podTemplate` adds, ended; the message has its exit code "
        "and its last error line.",
        "Follow the message: most often a flag in `engine`, or a file of the model.",
        pod_rules.crash_loop,
    ),
    Entry(
        "ImagePull",
        "container",
        "The image cannot be pulled: no such tag, no access, no way to the registry, a bad name.",
        "Mend `engine.image`, or name an `imagePullSecrets` in `podTemplate`.",
        pod_rules.image_pull,
    ),
    Entry(
        "PodConfig",
        "container",
        "The kubelet cannot make the container: a Secret, a ConfigMap or a key of one is missing.",
        "Make what the message names, or mend `model.credentialsSecret` or `podTemplate`.",
        pod_rules.pod_config,
    ),
    Entry(
        "MountFailed",
        "pod",
        "A volume cannot be attached or mounted: it is attached elsewhere, its folder or Secret is "
        "not there, the driver fails. The message is the kubelet's or the attacher's.",
        "Mend the volume or what `podTemplate.spec.volumes` names; ReadWriteOnce is for one node.",
        pod_rules.mount_failed,
    ),
    Entry(
        "SandboxFailed",
        "pod",
        "The node cannot begin the pod at all: its runtime class or its network fails.",
        "Mend `podTemplate.spec.runtimeClassName`, or the node's runtime or network plugin.",
        pod_rules.sandbox_failed,
    ),
    Entry(
        "Unschedulable",
        "pod",
        "No node takes the pod; the message is the scheduler's.",
        "Free or add what the message says is lacking, or mend `resources` or `podTemplate`.",
        pod_rules.unschedulable,
    ),
    Entry(
        "Evicted",
        "pod",
        "The kubelet put the pod out: the node is short of memory or disk, or a volume's size "
        "limit was passed.",
        "Give the pod a request that it keeps to, or the node more room.",
        pod_rules.evicted,
    ),
    Entry(
        "PodFailed",
        "pod",
        "The pod has ended and there is no other; the message has the kubelet's reason.",
        "Look at the node: it shut down, or could not give the pod what it was promised.",
        pod_rules.pod_failed,
    ),
    Entry(
        "NotReady",
        "engine",
        "The engine runs and takes no requests: it drains, its core has died, or the kubelet's "
        "probe does not reach it. The message has its own word, or the kubelet's.",
        "Follow the message: a probe in `podTemplate`, a NetworkPolicy, the engine's log.",
        pod_rules.not_ready,
    ),
    Entry(
        "Planning",
        "plan",
        "The engine is asked what the model needs, before anything of it is fetched.",
        "Wait.",
        fit_rules.planning,
        is_trouble=False,
    ),
    Entry(
        "Fetching",
        "fetch",
        "The model is on its way to the cache; the message has bytes, rate and time left.",
        "Wait.",
        fetch_rules.fetching,
        is_trouble=False,
    ),
    Entry(
        "ProgressDeadlineExceeded",
        "rollout",
        "The revision has had no ready pod for `rollout.progressDeadlineSeconds`, and no nearer "
        "cause is known.",
        "Look at the pod's log; a slow model wants a longer deadline.",
        pod_rules.deadline_exceeded,
    ),
    Entry(
        "Starting",
        "engine",
        "Pods are being made, or load the model.",
        "Wait.",
        pod_rules.starting,
        is_trouble=False,
    ),
    Entry(
        "ClaimCannotGrow",
        "claim",
        "`cache.size` was raised, and the claim's class or the API server does not let it grow.",
        "Set `cache.size` back, or another size to try.",
        fetch_rules.claim_cannot_grow,
    ),
    Entry(
        "NoMetrics",
        "scaler",
        "The scaler, the HPA or KEDA gets no metrics, or not all: nothing shrinks meanwhile.",
        "Follow the message: which pods, which metric, which adapter.",
        service_rules.no_metrics,
    ),
    Entry(
        "ScalingFailed",
        "scaler",
        "The scaler cannot work for another reason: condition Scaling's, with which the message "
        "begins.",
        "Follow the message; the service serves meanwhile.",
        service_rules.scaling_failed,
    ),
)
"""First match wins."""

REASONS = (READY, *(entry.reason for entry in TABLE))
"""Each once: a reason that could arise in two places has one rule that knows both."""
