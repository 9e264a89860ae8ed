"""What a plan may ask to be done; `apply.py` does it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.kinds import Kind, Manifest
from quire_operator.views import ChildView, ClaimView, DeploymentView, Meta
from quire_operator.writer import Hold, Release


@dataclass(frozen=True, slots=True)
class Create:
    """POST: for what is made once and never changed by us (claim, Job, Deployment)."""

    kind: Kind
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Ensure:
    """Server-side apply of a whole child; skipped when the live one holds it already."""

    kind: Kind
    manifest: Manifest
    live: ChildView | None


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Server-side apply of a Deployment's replicas under their own field manager."""

    deployment: DeploymentView
    count: int


@dataclass(frozen=True, slots=True)
class Nudge:
    """Merge patch of an annotation on a Deployment or a Job whose pods were refused: its controller
    (a ReplicaSet takes it over) tries at once what it would try within minutes."""

    kind: Kind
    meta: Meta
    now: float
    """Epoch seconds."""


@dataclass(frozen=True, slots=True)
class Annotate:
    """Merge patch of annotations on the claim; None removes one."""

    claim: ClaimView
    annotations: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Grow:
    """A larger request on the claim."""

    claim: ClaimView
    size: str


@dataclass(frozen=True, slots=True)
class JoinClaim:
    """Our owner reference on a shared claim, under a field manager of the service's own."""

    claim: ClaimView


@dataclass(frozen=True, slots=True)
class LeaveClaim:
    """Takes our owner reference off; others still use the claim."""

    claim: ClaimView


@dataclass(frozen=True, slots=True)
class Delete:
    """Background deletion of exactly this object."""

    kind: Kind
    name: str
    uid: str
    resource_version: str | None = None


@dataclass(frozen=True, slots=True)
class Lift:
    """spec.replicas through /scale, on the switch to an HPA: at 0 an HPA stops itself."""

    replicas: int


Action = (
    Create
    | Ensure
    | SetReplicas
    | Nudge
    | Annotate
    | Grow
    | JoinClaim
    | LeaveClaim
    | Delete
    | Lift
    | Hold
    | Release
)
