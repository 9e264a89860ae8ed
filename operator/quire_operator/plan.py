"""What to do for one service: Observation in, actions out. Pure: no client, no clock.

Order matters and is the order of the list: what is recorded comes before what it allows, what
comes up before what goes away. Each action carries the uid of what it changes as precondition.

    plan Job ─► (it fits) ─► claim ─► fetch Job ─► (content recorded) ─►
        Deployment of the revision ─► ready ─► older ones go
    one autoscaler goes ─► is gone ─► the other comes
    Service and disruption budget: always; EndpointSlice to the gateway: see route.py
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from quire_operator import (
    autoscalers,
    children,
    fetch,
    fit,
    memory_plan,
    names,
    pods,
    route,
    writer,
)
from quire_operator.actions import (
    Action,
    Annotate,
    Create,
    Delete,
    Ensure,
    Grow,
    JoinClaim,
    LeaveClaim,
    Lift,
    Nudge,
    SetReplicas,
)
from quire_operator.errors import OverlayError
from quire_operator.fetch import FetchState, Stage
from quire_operator.fetch_environment import Network
from quire_operator.fit import FitState
from quire_operator.kinds import (
    BUDGET,
    BY_NAME,
    CLAIM,
    DEPLOYMENT,
    HPA,
    JOB,
    POD,
    SERVICE,
    SLICE,
    Kind,
    Manifest,
)
from quire_operator.observe import Observation
from quire_operator.views import AutoscalerView, ClaimView, Meta

POLL_SECONDS = 5.0
"""How often a running fetch is asked for its bytes."""
FIRST_POLL_SECONDS = 1.0
"""Until it has answered for the first time."""
UNCLEAR_SECONDS = 5.0
"""While a pod has a node and is not ready: events and engines are asked, as nobody tells of them.
With what the kubelet takes to notice, well within the 15 s that a reason may be late."""
NUDGE_SECONDS = 10.0
"""Between two tries of pods that the API server refuses: a raised quota is found by then."""
WAIT_SECONDS = 2.0
"""For what no event tells of: a claim that terminates, a name that is taken."""

UNKNOWN_CLAIM_SIZE = "20Gi"
"""Of a claim whose files nobody has counted, and which nobody gives a size."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The actions, where fit and fetch stand, and when to look again if no event comes."""

    actions: tuple[Action, ...]
    fit: FitState
    fetch: FetchState
    refusal: str | None = None
    """Why no pod can be described (spec.podTemplate)."""
    again_seconds: float | None = None


def plan(seen: Observation) -> Plan:
    """Everything that is to be done for the service now; empty when the world is as wanted."""
    state = fetch.state(seen)
    template, refusal = _serving_template(seen)
    fitted = fit.state(seen, state, memory_plan.request(seen.spec, template, seen.gpu_nodes))
    if not fitted.passes:
        state = fetch.held_up(seen, state, refused=fitted.refusal is not None)
    actions = [*_autoscaler(seen), *_address(seen), *_route(seen), *_claim(seen, state, fitted)]
    if refusal is None:
        actions += [*_fit(seen, fitted), *_fetch(seen, state, fitted)]
        actions += [*_revision(seen, state, fitted), *_mend(seen, state)]
        actions += _nudge(seen, state, fitted)
    actions += [*_older(seen), *_unroute(seen), *_stale(seen), *_release(seen)]
    return Plan(tuple(actions), fitted, state, refusal, _again(seen, state, fitted))


def _serving_template(seen: Observation) -> tuple[Manifest, str | None]:
    """What the pods of the spec are made of; without spec.podTemplate, and why, where that cannot
    be merged."""
    try:
        return pods.engine_template(seen.key, seen.spec, seen.revision, seen.image, Network()), None
    except OverlayError as e:
        bare = msgspec.structs.replace(seen.spec, pod_template={})
        return pods.engine_template(seen.key, bare, seen.revision, seen.image, Network()), str(e)


def _address(seen: Observation) -> list[Action]:
    service = children.service(seen.key, seen.uid)
    budget = children.budget(seen.key, seen.uid)
    wanted = [Ensure(SERVICE, service, seen.address), Ensure(BUDGET, budget, seen.budget)]
    return [action for action in wanted if not _held(action)]


def _held(action: Ensure) -> bool:
    """Whether the live object is what we would apply: nothing is sent then."""
    return action.live is not None and children.holds(action.live, action.manifest)


def _autoscaler(seen: Observation) -> list[Action]:
    """The one that the mode wants, once every other one is gone: never two write replicas."""
    kind, live = autoscalers.wanted_kind(seen.spec), seen.autoscaler
    if seen.other_writers:
        return [
            Delete(BY_NAME[view.kind], view.meta.name, view.meta.uid)
            for view in seen.other_writers
            if seen.uid in view.meta.owners and not view.meta.deleting
        ]
    if kind is None or keda_obstacle(seen) is not None or (live is not None and live.meta.deleting):
        return []
    action = Ensure(kind, _autoscaler_manifest(seen, kind), live)
    if _held(action):
        return []
    return [Lift(1), action] if _is_switch_to_hpa(seen, kind, live) else [action]


def keda_obstacle(seen: Observation) -> str | None:
    """Why mode keda cannot have its ScaledObject, with the way out."""
    if seen.spec.scaling.mode != "keda":
        return None
    if seen.keda_trouble is not None:
        return seen.keda_trouble
    if autoscalers.needs_scaler(seen.spec.scaling) and seen.defaults.keda_scaler is None:
        return (
            "KEDA is to ask the operator, which does not answer it: set the chart's "
            "keda.externalScaler.enabled, or set scaling.keda.prometheusServer and no "
            "idleSecondsToZero"
        )
    return None


def _autoscaler_manifest(seen: Observation, kind: Kind) -> Manifest:
    if kind is HPA:
        return autoscalers.hpa(seen.key, seen.uid, seen.spec, seen.limits)
    scaler = seen.defaults.keda_scaler
    return autoscalers.scaled_object(seen.key, seen.uid, seen.spec, seen.limits, scaler)


def _is_switch_to_hpa(seen: Observation, kind: Kind, live: AutoscalerView | None) -> bool:
    """A service that was made with 0 is paused by its maker; a later 0 finds the HPA there."""
    made_so = seen.service.generation <= 1
    return kind is HPA and live is None and seen.spec.replicas == 0 and not made_so


def _route(seen: Observation) -> list[Action]:
    """The way to the gateway, wherever it is to lead now."""
    manifest = route.wanted(seen)
    if manifest is None or route.stands(seen):
        return []
    return [Ensure(SLICE, manifest, seen.route)]


def _unroute(seen: Observation) -> list[Action]:
    """The way to the gateway goes once a pod answers, or nobody may be asleep any more."""
    live = seen.route
    if live is None or live.meta.deleting or route.wanted(seen) is not None:
        return []
    return [Delete(SLICE, live.meta.name, live.meta.uid)]


def _fit(seen: Observation, fitted: FitState) -> list[Action]:
    actions: list[Action] = []
    if fitted.start is not None:
        job = children.plan_job(
            seen.key,
            seen.uid,
            seen.spec,
            fitted.start,
            seen.image,
            seen.defaults.network,
            request=fitted.request,
            asked=fetch.asked(seen),
            mounted=fitted.mounted,
        )
        actions.append(Create(JOB, job))
    return actions + [Delete(JOB, job.meta.name, job.meta.uid) for job in fitted.discard]


def _claim(seen: Observation, state: FetchState, fitted: FitState) -> list[Action]:
    if seen.spec.cache.mode != "shared" or not seen.fetches:
        return []
    claim = seen.claim
    if claim is None:
        if state.stage is Stage.IDLE or not fitted.passes:
            return []
        size = _new_claim_size(seen, fitted)
        return [Create(CLAIM, children.claim(seen.key, seen.uid, seen.spec, size))]
    if claim.meta.deleting:
        return []
    actions: list[Action] = []
    if seen.uid not in claim.meta.owners and fitted.passes:
        actions.append(JoinClaim(claim))
    wanted = seen.claim_size
    joins = seen.uid in claim.meta.owners or fitted.passes  # growth cannot be taken back
    # Kubernetes lets a claim grow once it is bound, and refuses it before.
    may_grow = joins and claim.managed and claim.phase == "Bound"
    if may_grow and wanted is not None and seen.too_small and seen.refused_growth is None:
        actions.append(Grow(claim, wanted))
    return actions


def _new_claim_size(seen: Observation, fitted: FitState) -> str:
    """As given, or for the bytes that the plan counts, which may be younger than status; or that
    were fetched before, by a service that serves and whose claim was lost."""
    if seen.spec.cache.size is not None:
        return str(seen.spec.cache.size)
    counted = fitted.plan.bytes_total if fitted.plan is not None else None
    fetched = seen.service.status.model.bytes_total if seen.service.status.model else None
    total = counted or fetched
    return UNKNOWN_CLAIM_SIZE if total is None else memory_plan.claim_size(total)


def _fetch(seen: Observation, state: FetchState, fitted: FitState) -> list[Action]:
    if seen.claim is None:
        return []
    actions: list[Action] = []
    if state.note:
        actions.append(Annotate(seen.claim, state.note))
    actions += _writer(seen, state, seen.claim)
    if state.start is not None:
        job = children.fetch_job(
            seen.key,
            seen.uid,
            seen.spec,
            state.start,
            seen.image,
            seen.defaults.network,
            asked=fetch.asked(seen),
            repair=state.record is not None,
            keep=state.record is None and fetch.model_record(seen) is not None,
            commit=_commit(seen, state, fitted),
        )
        actions.append(Create(JOB, job))
    actions += [Delete(JOB, job.meta.name, job.meta.uid) for job in state.discard]
    return actions


def _commit(seen: Observation, state: FetchState, fitted: FitState) -> str | None:
    """Whose files to fetch: a repair, or a fetch of more adapters, stays with what is there, a
    first fetch with what was planned, so that a branch that moves meanwhile moves nothing."""
    known = state.record or fetch.model_record(seen)
    if known is not None:
        return known.commit
    return fitted.plan.commit if fitted.plan is not None else None


def _writer(seen: Observation, state: FetchState, claim: ClaimView) -> list[Action]:
    """The Lease of the claim's one writer: held before its Job is made, and as long as that runs.
    Nobody reads a claim that leaves: its Lease goes with it."""
    if not seen.fetches or claim.meta.deleting:
        return []
    runs = state.stage is Stage.RUNNING and not (seen.jobs[-1].succeeded or seen.jobs[-1].failed)
    step = writer.move(
        seen.writer,
        claim,
        starting=names.fetch_job(seen.stem, state.start) if state.start is not None else None,
        running=seen.jobs[-1].meta.name if runs else None,
        service=seen.uid,
        now=seen.now,
    )
    return [step] if step is not None else []


def _revision(seen: Observation, state: FetchState, fitted: FitState) -> list[Action]:
    """The Deployment of the wanted revision: made once its files are there, then only scaled."""
    current = seen.current
    if current is None:
        if not fitted.passes or state.stage not in (Stage.COMPLETE, Stage.NOT_NEEDED):
            return []
        manifest = children.deployment(
            seen.key,
            seen.uid,
            seen.spec,
            seen.revision,
            seen.image,
            seen.defaults.network,
            _commit(seen, state, fitted),
            plan_key=fitted.request.key,
        )
        return [Create(DEPLOYMENT, manifest)]
    if current.replicas != seen.spec.replicas and _may_scale(seen):
        return [SetReplicas(current, seen.spec.replicas)]
    return []


def _nudge(seen: Observation, state: FetchState, fitted: FitState) -> list[Action]:
    """Has refused pods tried again: of the wanted revision, of the fetch, of the plan."""
    refused = _refused(seen)
    leaving = {job.meta.uid for job in (*state.discard, *fitted.discard)}
    due = [(k, m) for k, m in refused if m.uid not in leaving and not _nudge_in(m, seen.now)]
    return [Nudge(kind, meta, seen.now) for kind, meta in due]


def _refused(seen: Observation) -> list[tuple[Kind, Meta]]:
    """Whose pods the API server refuses. A Job says so in its events only."""
    found = []
    current = seen.current
    if current is not None and current.failure is not None and current.replicas > 0:
        found.append((DEPLOYMENT, current.meta))
    for jobs, event in ((seen.jobs, seen.job_event), (seen.plan_jobs, seen.plan_event)):
        if event is not None and jobs and not jobs[-1].meta.deleting:
            found.append((JOB, jobs[-1].meta))
    return found


def _nudge_in(meta: Meta, now: float) -> float:
    """Seconds until refused pods are to be tried again."""
    text = meta.annotations.get(names.ANNOTATION_NUDGED, "")
    last = max(meta.created, float(text) if text.isdecimal() else 0.0)
    return max(0.0, last + NUDGE_SECONDS - now)


def _may_scale(seen: Observation) -> bool:
    """The last pods go only once somebody else takes the service's requests."""
    return seen.spec.replicas > 0 or route.lets_go(seen)


def _older(seen: Observation) -> list[Action]:
    """Surge: earlier revisions serve on until the wanted one has all its pods, then they go."""
    if not _may_scale(seen):
        return []
    current = seen.current
    wanted = seen.spec.replicas
    done = current is not None and current.replicas == wanted and current.ready >= wanted
    actions: list[Action] = []
    for old in seen.others:
        if done or wanted == 0 or (current is not None and old.ready == 0):
            actions.append(Delete(DEPLOYMENT, old.meta.name, old.meta.uid))
        elif old.replicas != wanted:
            actions.append(SetReplicas(old, wanted))
    return actions


def _stale(seen: Observation) -> list[Action]:
    """Fetches of what the spec no longer wants; one whose end is in doubt still holds the claim."""
    told = [j for j in seen.stale_jobs if not writer.is_in_doubt(seen.writer, j, seen.now)]
    jobs = [job for job in told if not job.meta.deleting]
    return [Delete(JOB, job.meta.name, job.meta.uid) for job in jobs]


def _release(seen: Observation) -> list[Action]:
    """Claims that only an earlier spec used, once no Deployment of that spec is left."""
    if seen.others:
        return []
    actions: list[Action] = []
    for claim in seen.released:
        if claim.meta.deleting:
            continue
        if len(claim.meta.owners) > 1:
            actions.append(LeaveClaim(claim))
        else:
            meta = claim.meta
            actions.append(Delete(CLAIM, meta.name, meta.uid, meta.resource_version))
    return actions


def _mend(seen: Observation, state: FetchState) -> list[Action]:
    if state.stage is not Stage.COMPLETE or state.record is None:
        return []
    crashed = fetch.mended(seen, state.record)
    return [Delete(POD, pod.meta.name, pod.meta.uid) for pod in crashed]


def _again(seen: Observation, state: FetchState, fitted: FitState) -> float | None:
    waits = [wait for wait in (state.wait_seconds, fitted.wait_seconds) if wait is not None]
    if state.stage is Stage.RUNNING or _init_fetches(seen):
        waits.append(_fetch_poll(seen, state))
    if (state.stage is Stage.NO_CLAIM and fitted.passes) or _autoscaler_leaves(seen):
        waits.append(WAIT_SECONDS)
    asks = fitted.asking and fitted.waits_for is None
    if asks and (fitted.pod is None or not fitted.pod.on_node):
        waits.append(WAIT_SECONDS)  # of what keeps its pod away only events tell
    if seen.unclear_pods:
        waits.append(UNCLEAR_SECONDS)
    waits += [_nudge_in(meta, seen.now) or NUDGE_SECONDS for _, meta in _refused(seen)]
    if any(writer.is_in_doubt(seen.writer, job, seen.now) for job in seen.jobs):
        waits.append(WAIT_SECONDS)
    until = seen.minimum.until if seen.spec.scaling.mode in ("hpa", "keda") else None
    if until is not None:
        waits.append(max(1.0, until.timestamp() - seen.now))
    deadline = _deadline(seen)
    if deadline is not None and deadline > 0:
        waits.append(deadline)
    return min(waits, default=None)


def _fetch_poll(seen: Observation, state: FetchState) -> float:
    if seen.progress is not None and seen.progress.moves:
        return POLL_SECONDS
    main = state.pod.main if state.pod is not None else None
    runs = _init_fetches(seen) or (main is not None and main.running)
    # Of one that does not run yet the watch tells; not of its claim's, its Job's or its own events.
    return FIRST_POLL_SECONDS if runs else WAIT_SECONDS


def _autoscaler_leaves(seen: Observation) -> bool:
    """No watch tells of ScaledObjects, and KEDA takes its time."""
    live = seen.autoscaler
    return bool(seen.other_writers) or (live is not None and live.meta.deleting)


def _init_fetches(seen: Observation) -> bool:
    return any(pod.init is not None and pod.init.running for pod in seen.current_pods)


def _deadline(seen: Observation) -> float | None:
    """Seconds until the wanted revision's progress deadline, while it is not ready."""
    current = seen.current
    if current is None or current.ready >= seen.spec.replicas:
        return None
    return current.waits_since + seen.spec.rollout.progress_deadline_seconds - seen.now
