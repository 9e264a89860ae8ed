"""What a service's state is called: conditions, with reasons and words to act on. Pure.

`Ready` tells the first trouble of `reasons.TABLE`, in order of what a person must mend first. It
concerns the spec as it is now: with an earlier revision still serving it is False until the wanted
one has a ready pod, and says so.
"""

from __future__ import annotations

from quire_operator import fetch, fit, reasons, service_rules
from quire_operator.case import Case, Finding, short, size
from quire_operator.fetch import Stage
from quire_operator.fetch_rules import progress_words
from quire_operator.pod_rules import past_deadline

READY = reasons.READY
MODEL_CACHED = "ModelCached"
FITS = "Fits"
PODS_READY = "PodsReady"
ROLLOUT_COMPLETE = "RolloutComplete"
SCALING = "Scaling"
TYPES = frozenset({READY, MODEL_CACHED, FITS, PODS_READY, ROLLOUT_COMPLETE, SCALING})

MADE = "pods are being made"


def conditions(case: Case) -> list[Finding]:
    """All conditions of a service, Ready first."""
    found = [_ready(case), _model_cached(case), _fits(case), _pods_ready(case), _rollout(case)]
    return found + _scaling(case)


def invalid(error: str) -> list[Finding]:
    """Of a service whose spec does not decode: an older CRD let it in."""
    message = f"the spec is not understood: {short(error)}; correct it, or upgrade the CRD"
    return [Finding(READY, "False", "InvalidSpec", message)]


def _ready(case: Case) -> Finding:
    found = reasons.find(case)
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    if wanted and ready:
        count = f"{ready} of {wanted} replicas ready"
        if found is None:
            return Finding(READY, "True", READY, count)
        entry, message = found
        reason = entry.reason if entry.is_trouble else READY
        return Finding(READY, "True", reason, short(f"{count}; {message}"))
    reason, message = (found[0].reason, found[1]) if found else ("Starting", MADE)
    serving = [old for old in case.seen.others if old.ready]
    if serving:
        message += f"; revision {serving[0].revision} still serves"
    return Finding(READY, "False", reason, short(message))


def _model_cached(case: Case) -> Finding:
    stage = case.fetch.stage
    if stage is Stage.NOT_NEEDED:
        why = "the files lie on a claim of yours or in each pod"
        return Finding(MODEL_CACHED, "True", "NotNeeded", why)
    record = case.fetch.record
    if stage is Stage.COMPLETE and record is not None:
        held = size(record.bytes_total) if record.bytes_total else "all files"
        commit = f", commit {record.commit}" if record.commit else ""
        where = case.seen.claim.meta.name if case.seen.claim else "the claim"
        message = f"{held} on claim {where}{commit}{_pace(record)}"
        return Finding(MODEL_CACHED, "True", "Cached", message)
    if stage is Stage.IDLE:
        return Finding(MODEL_CACHED, "False", "NotFetched", "fetched when replicas is above 0")
    found = reasons.find(case) if case.fetches or case.plans else None
    if found is None:
        return Finding(MODEL_CACHED, "False", "Fetching", short(progress_words(case)))
    return Finding(MODEL_CACHED, "False", found[0].reason, short(found[1]))


def _pace(record: fetch.Record) -> str:
    """What the last fetch brought, and how fast; nothing for one that found all in place."""
    if not record.bytes_fetched or not record.seconds:
        return ""
    rate = size(int(record.bytes_fetched / record.seconds))
    return f"; fetched {size(record.bytes_fetched)} in {record.seconds:.1f} s ({rate}/s)"


def _fits(case: Case) -> Finding:
    status, (reason, message) = fit.condition(case.seen, case.plan.fit)
    return Finding(FITS, status, reason, short(message))


def _pods_ready(case: Case) -> Finding:
    wanted, ready = case.seen.spec.replicas, case.ready_pods
    message = f"{ready} of {wanted} replicas ready"
    if ready >= wanted:
        return Finding(PODS_READY, "True", "AllReady", message)
    # Some rule finds something: `starting` does whenever a pod is missing.
    found = reasons.find(case)
    reason, words = (found[0].reason, found[1]) if found else ("Starting", MADE)
    return Finding(PODS_READY, "False", reason, short(f"{message}; {words}"))


def _rollout(case: Case) -> Finding:
    seen, current = case.seen, case.seen.current
    wanted = f"revision {seen.revision}"
    if current is None and not seen.others and seen.spec.replicas == 0:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", "spec.replicas is 0: nothing to do")
    if current is not None and not seen.others and current.ready >= seen.spec.replicas:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", f"{wanted} is the only one")
    if past_deadline(case):
        deadline = seen.spec.rollout.progress_deadline_seconds
        message = f"{wanted} has had no ready pod for {deadline} s"
        return Finding(ROLLOUT_COMPLETE, "False", "ProgressDeadlineExceeded", message)
    older = ", ".join(old.revision for old in seen.others)
    if not older and current is not None and current.ready:
        return Finding(ROLLOUT_COMPLETE, "True", "Complete", f"{wanted} is the only one")
    message = f"{wanted} comes up" + (f" beside {older}" if older else "")
    return Finding(ROLLOUT_COMPLETE, "False", "Progressing", message)


def _scaling(case: Case) -> list[Finding]:
    told = service_rules.scaling(case)
    return [Finding(SCALING, told[0], told[1], short(told[2]))] if told is not None else []
