"""Names, labels, annotations and hashes: the words by which our objects find each other."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from quire_operator.api import GROUP

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE = "quire"
APP_NAME = "app.kubernetes.io/name"
APP_NAME_VALUE = "quire-engine"
COMPONENT = "app.kubernetes.io/component"
LABEL_SERVICE = f"{GROUP}/service"
LABEL_REVISION = f"{GROUP}/revision"
LABEL_CLAIM = f"{GROUP}/claim"
LABEL_CACHE = f"{GROUP}/cache"
"""On all pods that mount a claim of ours: its name, by which they keep to one node."""
SELECTOR = f"{MANAGED_BY}={MANAGED_BY_VALUE}"

ANNOTATION_DIGEST = f"{GROUP}/applied"
"""sha256 (16 hex digits) of what we last applied: with a differing one we want something else."""
ANNOTATION_SPEC = f"{GROUP}/spec"
"""On a Deployment: hash of the user's part of the revision, without the pinned image."""
ANNOTATION_URI = f"{GROUP}/uri"
"""On a claim: whose files it holds, for people."""
ANNOTATION_ATTEMPT = f"{GROUP}/attempt"
"""On a fetch or plan Job: its number."""
ANNOTATION_ASKED = f"{GROUP}/asked"
"""On a fetch or plan Job: who started it, and how it was to go (`fetch.asked`)."""
ANNOTATION_PLAN = f"{GROUP}/plan"
"""On a plan Job: what it was asked for (`memory_plan.Request.key`). On a Deployment: that this was
asked before it was made, and is asked on until there is an answer."""

ANNOTATION_NUDGED = f"{GROUP}/nudged"
"""On a Deployment or a Job whose pods were refused: when we last made its controllers try again."""

SLICE_SERVICE = "kubernetes.io/service-name"
SLICE_MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
SLICE_MANAGER = f"operator.{GROUP}"
"""The selector's EndpointSlices say `endpointslice-controller.k8s.io`, and have their Service's
labels, so that our watch sees them too."""

MANAGER = "quire"
MANAGER_REPLICAS = "quire-replicas"
MANAGER_STATUS = "quire-status"
MANAGER_SCALER = "quire-scaler"

ENGINE_CONTAINER = "engine"
FETCH_CONTAINER = "fetch"
PLAN_CONTAINER = "plan"
ENGINE_PORT = 8000
PROGRESS_PORT = 8001
SERVICE_PORT = 80
PORT_NAME = "http"


class Key(NamedTuple):
    """One InferenceService."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def claim_manager(uid: str) -> str:
    """The field manager under which one service holds its owner reference on a shared claim."""
    return f"quire-{uid}"


def digest(text: str, length: int) -> str:
    """The first `length` hex digits of the text's sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def claim_hash(uri: str, revision: str | None) -> str:
    """Ten hex digits: which files a model's uri and revision mean."""
    return digest(f"{uri}@{revision or ''}", 10)


def shared_claim(uri: str, revision: str | None) -> str:
    return f"quire-{claim_hash(uri, revision)}"


def fetched_annotation(content: str) -> str:
    """Annotation of a claim: the fetch of this content (`claim_hash`) ended well, with what."""
    return f"{GROUP}/fetched.{content}"


def failed_annotation(content: str) -> str:
    """Annotation of a claim: the last fetch of this content failed, how often and why."""
    return f"{GROUP}/failed.{content}"


def refused_size_annotation(size: str) -> str:
    """Annotation of a claim: it cannot grow to this size, and the API server's words why. One for
    each size, as services that share the claim may ask for different ones."""
    return f"{GROUP}/refused-size.{size}"


def deployment(name: str, revision: str) -> str:
    return f"{name}-{revision}"


def fetch_stem(claim: str, content: str) -> str:
    """What a content's fetches are called after: the claim, and on a claim of the user's, which may
    hold several contents, the content too. Fits in a label."""
    return claim if claim.endswith(content) else f"{claim[:36].rstrip('-.')}-{content}"


_FETCH = "-fetch-"


def fetch_job(stem: str, attempt: int) -> str:
    return f"{stem}{_FETCH}{attempt}"


def plan_job(name: str, key: str, attempt: int) -> str:
    """Of a service's name, at most 40 characters, it stays below the 63 of a label."""
    return f"{name}-plan-{digest(key, 8)}-{attempt}"


def gateway_slice(name: str) -> str:
    """The EndpointSlice by which a service without a ready pod leads to the gateway."""
    return f"{name}-gateway"


_ACTIVATION = "-activation"


def activation(name: str) -> str:
    """The Lease that whoever holds requests for a service renews."""
    return name + _ACTIVATION


def activated(lease: str) -> str | None:
    """The service that a Lease of this name wakes."""
    return lease.removesuffix(_ACTIVATION) if lease.endswith(_ACTIVATION) else None


def writer_lease(claim: str) -> str:
    """The Lease of the one fetch that may write a claim. A name has at most 253 characters."""
    return f"{claim[:246]}-writer"


def fetch_stem_of(job: str) -> str:
    """The stem of a fetch Job's name."""
    return job.rpartition(_FETCH)[0]


def fetch_attempt(job: str, stem: str) -> int:
    """The number of the fetch Job of this name; 0 for one of another stem."""
    of, _, number = job.rpartition(_FETCH)
    return int(number) if of == stem and number.isdecimal() else 0


def selector_labels(name: str) -> dict[str, str]:
    """What the Service, the budget and /scale select pods by."""
    return {APP_NAME: APP_NAME_VALUE, LABEL_SERVICE: name}


def labels(name: str) -> dict[str, str]:
    return {MANAGED_BY: MANAGED_BY_VALUE, **selector_labels(name)}


def url(key: Key) -> str:
    return f"http://{key.name}.{key.namespace}.svc.cluster.local/v1"
