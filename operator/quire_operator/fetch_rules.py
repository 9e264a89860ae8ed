"""How reasons of the claim and of the fetch are found: rules of `reasons.py`. Pure."""

from __future__ import annotations

from quire_operator import fetch
from quire_operator.case import Case, Rule, pair, size
from quire_operator.fetch import Stage
from quire_operator.views import ContainerView, PodView

# ---- the claim ----


def claim_unbound(case: Case) -> str | None:
    claim, mount = case.seen.claim, case.seen.mount
    if not case.seen.fetches or case.fetch.stage is Stage.IDLE:
        return None
    if claim is None:
        theirs = case.seen.spec.cache.mode == "existing"
        return f"claim {mount.claim} (cache.existingClaim) does not exist" if theirs else None
    if claim.meta.deleting:
        return f"claim {claim.meta.name} is being removed; waiting to make it anew"
    if claim.phase == "Lost":
        return f"claim {claim.meta.name} has lost its volume"
    if claim.phase != "Bound" and case.seen.claim_event:
        return f"claim {claim.meta.name} is not bound: {case.seen.claim_event}"
    return None


_UNBOUND = "unbound immediate PersistentVolumeClaims"


def waits_for_claim(case: Case, pod: PodView) -> bool:
    """Whether the scheduler's word on a pod is but that its claim has no volume yet: why it has
    none says the claim. It takes that word back some seconds after the claim has one."""
    seen = case.seen
    if not seen.fetches or seen.claim is None or _UNBOUND not in (pod.unschedulable or ""):
        return False
    others = "laim" in str(seen.spec.pod_template.get("spec"))  # volumes that podTemplate adds
    others = others or any(a.uri.startswith("pvc://") for a in seen.spec.model.adapters)
    return seen.claim.phase != "Bound" or not others


def claim_cannot_grow(case: Case) -> str | None:
    seen = case.seen
    if seen.refused_growth is None or seen.claim is None:
        return None
    given = seen.spec.cache.size is not None
    wanted = f"{'cache.size ' if given else ''}{seen.claim_size}"
    way_out = "set cache.size back, or another one to try" if given else "set cache.size to keep it"
    return (
        f"claim {seen.claim.meta.name} of {seen.claim.size} cannot grow to {wanted}: "
        f"{seen.refused_growth}; {way_out}"
    )


# ---- a fetch that failed ----


def failed_as(*reasons: str) -> Rule:
    """The rule of fetches that ended so, in a Job or in a pod's init container, and of plans that
    did: they ask the same source."""

    def found(case: Case) -> str | None:
        failure = _failure(case)
        return failure[1] if failure is not None and failure[0] in reasons else None

    return found


def failed_otherwise(known: frozenset[str]) -> Rule:
    """The rule of fetches that ended for a reason not in `known`: an engine's newer than we are."""

    def found(case: Case) -> str | None:
        failure = _failure(case)
        if case.plans or failure is None or failure[0] in known:
            return None
        reason, message = failure
        return message if reason == "FetchFailed" else f"{reason}: {message}"

    return found


def _failure(case: Case) -> tuple[str, str] | None:
    """Reason and words of the fetch that failed last, until another one gets further."""
    if _gets_further(case):
        return None
    if case.plans:
        return case.plan.fit.failure
    progress = case.seen.progress
    # Not of a repair that another service of the claim asked for, while this one's pods are ready.
    concerned = case.fetches or case.seen.mount.claim is None
    if concerned and progress is not None and progress.reason:
        return progress.reason, f"{progress.note} (this attempt goes on trying)"
    if not case.fetches:
        return _init_failure(case)
    failure = case.fetch.failure
    if failure is None:
        return None
    tries = f"{failure.failures} attempt{'s' if failure.failures > 1 else ''}"
    message = f"{failure.message} ({tries} so far, {_again(case)})"
    small = claim_cannot_grow(case) if failure.reason == "NoSpace" else None
    return failure.reason, f"{message}; {small}" if small is not None else message


def _init_failure(case: Case) -> tuple[str, str] | None:
    for pod in case.waiting_pods:
        init = pod.init
        if init is None or _passed(init) or not (init.exited or init.last_exit):
            continue
        reason, message = fetch.explain(pod, None)
        return reason, f"{message} (restarted {init.restarts} times)"
    return None


def _passed(container: ContainerView) -> bool:
    return container.exited is not None and container.exited.code == 0


def _gets_further(case: Case) -> bool:
    """Whether the attempt after a failure has bytes coming, or is held up by something else."""
    if case.seen.progress is not None and case.seen.progress.moves:
        return True
    waiting = (s.container.waiting for s in case.subjects if s.role == "fetch")
    return any(reason in STUCK for reason in waiting) or any(
        pod.unschedulable is not None for pod in case.waiting_pods
    )


IMAGE_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"}
)
CONFIG_REASONS = frozenset({"CreateContainerConfigError", "CreateContainerError"})
STUCK = IMAGE_REASONS | CONFIG_REASONS


# ---- a fetch on its way ----


def fetching(case: Case) -> str | None:
    if case.fetches:
        if case.fetch.stage is Stage.NO_CLAIM:
            return f"claim {case.seen.mount.claim} is being made"
        return progress_words(case)
    inits = (pod.init for pod in case.waiting_pods if pod.init is not None)
    on_its_way = any(init.running or not _passed(init) for init in inits)
    return progress_words(case) if on_its_way else None


def progress_words(case: Case) -> str:
    """Such as "1.2 of 16.1 GB at 300.0 MB/s, 40 s left"."""
    what = "the cached files are wrong, fetching them anew: " if case.fetch.repairing else ""
    if case.fetch.waits_for is not None:
        return what + _again(case)
    progress = case.seen.progress
    note = f"; {progress.note}" if progress is not None and progress.note else ""
    if progress is None or not progress.bytes_total:
        return what + _before_or_after(case) + note
    if progress.phase == "verifying":
        return f"{what}verifying {size(progress.bytes_total)}"
    done, total = pair(progress.bytes_done, progress.bytes_total)
    rate = f" at {size(int(progress.bytes_per_second))}/s" if progress.bytes_per_second else ""
    left = "" if progress.eta_seconds is None else f", {progress.eta_seconds:.0f} s left"
    return f"{what}{done} of {total}{rate}{left}{note}"


def _again(case: Case) -> str:
    who = case.fetch.waits_for
    return "trying again" if who is None else f"waiting for {who} to end"


def _before_or_after(case: Case) -> str:
    """What a fetch that does not tell its progress is doing."""
    claim, pod = case.seen.claim, case.fetch.pod
    if claim is not None and claim.phase == "Pending" and (pod is None or not pod.on_node):
        return f"claim {claim.meta.name} waits for its volume"
    if pod is None:
        return "the fetch is being started"
    ended = pod.main is not None and pod.main.exited is not None
    return "the fetch has ended, noting the result" if ended else "asking for the files"
