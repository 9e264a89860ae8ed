"""The document on one screen: verdict first, then what it is made of. Pure.

Between 80 and 120 columns; below 100 a pod takes two lines, and its revision is left to its name.
Colour says nothing that words do not. Foreign text (messages of pods, of the API server) goes
through `words.printable`.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from quire_operator.console import document as doc
from quire_operator.console import words

NARROW = 100
"""Columns."""
GOOD, BAD, BUSY, DIM, HEAD = "green", "red", "yellow", "dim", "bold"
_BUSY_STATES = (
    "Fetching",
    "Planning",
    "Loading",
    "Draining",
    "ContainerCreating",
    "PodInitializing",
)


def screen(story: doc.Document, width: int) -> RenderableType:
    """All parts that have something to say."""
    now = words.epoch(story.time)
    return Group(
        _headline(story, now),
        *_remarks(story, now),
        Text(),
        _facts(story, now),
        *_section(_conditions(story, now)),
        *_section(_revisions(story, now), bool(story.revisions)),
        *_section(_pods(story, now, width), bool(story.pods)),
        *_section(_decisions(story, now), bool(story.scaling and story.scaling.decisions)),
        *_section(_events(story, now), bool(story.events)),
        *_section(_unseen(story), bool(story.unseen)),
    )


def _section(part: RenderableType, has_something: bool = True) -> list[RenderableType]:
    return [Text(), part] if has_something else []


# ---- the head ----


def _headline(story: doc.Document, now: float) -> RenderableType:
    ready = story.ready
    style = {"True": GOOD, "False": BAD}.get(ready.status, BUSY)
    jobs = (story.plan_job, story.fetch)
    if ready.status == "False" and any(job and job.state == "Running" for job in jobs):
        style = BUSY
    verdict = {"True": "Ready", "False": "not ready"}.get(ready.status, "not known")
    if ready.reason and ready.reason != verdict:
        verdict += f", but {ready.reason}" if ready.status == "True" else f": {ready.reason}"
    told = f", for {words.since(ready.since, now)}" if ready.since else ""
    line = Text.assemble(
        (f"{story.namespace}/{story.name}", HEAD), "  ", (verdict, f"{HEAD} {style}"), (told, DIM)
    )
    said = [_foreign(ready.message)]
    if story.remedy is not None:
        said.append(Text(f"To do: {story.remedy}", overflow="fold"))
    return Group(line, Padding(Group(*said), (0, 0, 0, 2)))


def _remarks(story: doc.Document, now: float) -> Iterator[RenderableType]:
    """What makes the rest to be read with care."""
    if story.leaving:
        yield Text("It is being deleted.", BUSY)
    if story.observed_generation is not None and story.observed_generation < story.generation:
        yield Text(
            f"The status is of an earlier spec (generation {story.observed_generation} of "
            f"{story.generation}): the operator has not got to this one.",
            BUSY,
        )
    if story.spec_error is not None:
        yield Text(f"The spec is not understood: {words.printable(story.spec_error)}", BAD)


# ---- facts ----


def _facts(story: doc.Document, now: float) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style=HEAD, no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    for name, value in _fact_rows(story, now):
        table.add_row(name, value)
    return table


def _fact_rows(story: doc.Document, now: float) -> Iterator[tuple[str, Text]]:
    yield "URL", _foreign(story.url or "-")
    yield "Model", _foreign(_model(story.model))
    if story.claim is not None:
        yield "Cache", _foreign(_cache(story.claim, story.model))
    elif story.model.bytes_total is not None:
        yield "Cache", _foreign(_bytes(story.model))
    if story.fetch is not None:
        yield "Fetch", _foreign(_fetch(story.fetch, now))
    if story.failed_fetch is not None:
        yield (
            "" if story.fetch is not None else "Fetch",
            _foreign(_failed_fetch(story, story.failed_fetch, now)),
        )
    yield from _plan_rows(story, now)
    yield "Replicas", _foreign(_replicas(story.replicas))
    if story.scaling is not None:
        yield "Scaling", _foreign(_scaling(story.scaling))


def _plan_rows(story: doc.Document, now: float) -> Iterator[tuple[str, Text]]:
    """One has been made, is asked for, or could not be had: what there is, under one heading."""
    said = [
        _plan(story.plan) if story.plan is not None else None,
        _plan_job(story.plan_job, now) if story.plan_job is not None else None,
        _failed_plan(story.failed_plan, now) if story.failed_plan is not None else None,
    ]
    heading = "Plan"
    for words_ in filter(None, said):
        yield heading, _foreign(words_)
        heading = ""


def _model(model: doc.Model) -> str:
    parts = [model.uri or "-"]
    if model.revision is not None:
        parts.append(f"revision {model.revision}")
    if model.commit is not None and model.commit != model.revision:
        parts.append(f"commit {model.commit[:12]}")
    return ", ".join([*parts, f"served as {model.served_name}"])


def _cache(claim: doc.Claim, model: doc.Model) -> str:
    held = claim.capacity or claim.requested
    parts = [f"claim {claim.name}", f"{claim.phase} {held}".rstrip()]
    if claim.storage_class:
        parts.append(f"class {claim.storage_class}")
    if claim.shared_by > 1:
        parts.append(f"shared by {claim.shared_by} services")
    return "; ".join([", ".join(parts), *filter(None, [_bytes(model)])])


def _bytes(model: doc.Model) -> str:
    if not model.bytes_total:
        return ""
    done = model.bytes_done or 0
    if done >= model.bytes_total:
        return f"{words.size(model.bytes_total)} cached"
    rate = f" at {words.size(model.bytes_per_second)}/s" if model.bytes_per_second else ""
    left = f", {words.age(model.eta_seconds)} left" if model.eta_seconds is not None else ""
    part = words.percent(done / model.bytes_total)
    return f"{words.size(done)} of {words.size(model.bytes_total)} ({part}){rate}{left}"


def _fetch(fetch: doc.Fetch, now: float) -> str:
    age = words.since(fetch.created, now)
    doing = f"{fetch.phase} for {age}" if fetch.phase else f"{fetch.state.lower()}, made {age} ago"
    said = f"job {fetch.job}, attempt {fetch.attempt}, {doing}"
    said += f"; {fetch.note}" if fetch.note else ""
    return f"{said}; {_job_pod(fetch.pod)}"


def _job_pod(pod: doc.Pod | None, *, why: bool = True) -> str:
    """`why`: with what troubles it, unless that is told elsewhere."""
    if pod is None:
        return "it has no pod"
    node = f" on {pod.node}" if pod.node else ""
    trouble = f": {pod.trouble}" if pod.trouble and why else ""
    return f"pod {pod.name} {pod.state}{node}{trouble}"


def _failed_fetch(story: doc.Document, failed: doc.FailedFetch, now: float) -> str:
    then = "" if story.fetch is not None else f"; {_due(failed.next, now)}"
    ago = words.since(failed.time, now)
    return (
        f"failed {_times(failed.failures)}, last {ago} ago: {failed.reason}: {failed.message}{then}"
    )


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _due(next_: str, now: float) -> str:
    wait = words.epoch(next_) - now
    return "the next attempt is due" if wait <= 0 else f"the next attempt in {words.age(wait)}"


def _plan_job(plan: doc.PlanJob, now: float) -> str:
    age = words.since(plan.created, now)
    said = f"job {plan.job}, attempt {plan.attempt}, {plan.state.lower()}, made {age} ago"
    return f"{said}; {_job_pod(plan.pod, why=plan.state != 'Failed')}"


def _failed_plan(failed: doc.FailedPlan, now: float) -> str:
    last = f", last {words.since(failed.time, now)} ago" if failed.time else ""
    then = f"; {_due(failed.next, now)}" if failed.next else ""
    return f"failed {_times(failed.failures)}{last}: {failed.reason}: {failed.message}{then}"


def _plan(plan: doc.Plan) -> str:
    parts = [
        ("weights {}", plan.weight_bytes, words.size),
        ("KV {} a token", plan.kv_bytes_per_token, words.size),
        ("{} KV blocks", plan.kv_blocks, words.count),
        ("longest sequence {}", plan.max_model_len, words.count),
        ("{} of them at once", plan.max_concurrency, "{:.1f}".format),
        ("needs {}", plan.required_bytes, words.size),
        ("made for {}", plan.memory_bytes, words.size),
    ]
    said = [form.format(write(value)) for form, value, write in parts if value is not None]
    return ", ".join(said) + (f"; does not fit: {plan.refusal}" if plan.refusal else "")


def _replicas(replicas: doc.Replicas) -> str:
    wanted = "?" if replicas.wanted is None else replicas.wanted
    if not replicas.present:
        return f"no pod, {wanted} wanted"
    pods = "pod" if replicas.present == 1 else "pods"
    return f"{replicas.ready} of {replicas.present} {pods} ready, {wanted} wanted"


def _scaling(scaling: doc.Scaling) -> str:
    if scaling.mode == "none":
        return "none: spec.replicas is set by whoever writes it"
    parts = [f"{scaling.mode}, {scaling.min_replicas} to {scaling.max_replicas} replicas"]
    if scaling.desired is not None:
        parts.append(f"wants {scaling.desired}")
    if scaling.idle_seconds_to_zero is not None:
        parts.append(f"to zero after {words.age(scaling.idle_seconds_to_zero)} without a request")
    if scaling.dry_run:
        parts.append("dry run: decisions are only recorded")
    return ", ".join(parts)


# ---- tables ----


def _table(*columns: str, wraps: str) -> Table:
    """The column `wraps` takes what width there is; the others take what they need."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style=HEAD)
    for column in columns:
        if column == wraps:
            table.add_column(column, ratio=1, overflow="fold")
        else:
            table.add_column(column, no_wrap=True)
    return table


def _conditions(story: doc.Document, now: float) -> Table:
    table = _table("CONDITION", "STATUS", "SINCE", "REASON", "MESSAGE", wraps="MESSAGE")
    for condition in story.conditions:
        same = condition.message and condition.message == story.ready.message
        message = "(see above)" if same else condition.message
        style = {"True": GOOD, "False": BAD}.get(condition.status, BUSY)
        table.add_row(
            condition.type,
            Text(condition.status, style),
            words.since(condition.since, now),
            _foreign(condition.reason),
            _foreign(message),
        )
    return table


def _revisions(story: doc.Document, now: float) -> Table:
    table = _table("REVISION", "READY", "AGE", "IMAGE", wraps="IMAGE")
    for revision in story.revisions:
        said = revision.image + (", leaving" if revision.leaving else "")
        said += "" if revision.wanted else ", of an earlier spec"
        said += f"; {revision.failure}" if revision.failure else ""
        ready = f"{revision.ready}/{revision.replicas}"
        age = words.since(revision.created, now)
        table.add_row(revision.revision, ready, age, _foreign(said))
    return table


def _pods(story: doc.Document, now: float, width: int) -> RenderableType:
    """One line a pod, two on narrow screens; what troubles it below."""
    wide = width >= NARROW
    if wide:
        table = _table("POD", "REVISION", "STATE", "RESTARTS", "AGE", *_LOAD, "NODE", wraps="NODE")
    else:
        table = _table("POD", "STATE", "RST", "AGE", *_LOAD, wraps="POD")
    for pod in story.pods:
        state = Text(words.printable(pod.state), _pod_style(pod))
        cells: list[str | Text] = [
            state,
            str(pod.restarts),
            words.since(pod.created, now),
            *_load(pod.load),
        ]
        if wide:
            table.add_row(pod.name, pod.revision or "-", *cells, _foreign(pod.node or "-"))
        else:
            where = (f"\n  on {words.printable(pod.node)}", DIM) if pod.node else ""
            table.add_row(Text.assemble(pod.name, where, overflow="fold"), *cells)
    notes = [_note(pod.name, said) for pod in story.pods for said in _said(story, pod)]
    return Group(table, *notes)


_LOAD = ("RUN", "WAIT", "KV")


def _load(load: doc.Load | None) -> tuple[str, str, str]:
    if load is None:
        return "-", "-", "-"
    return (
        words.count(load.running),
        words.count(load.waiting),
        words.percent(load.kv_cache_utilization),
    )


def _said(story: doc.Document, pod: doc.Pod) -> Iterator[str]:
    if pod.trouble is not None:
        yield pod.trouble
    told_once = any(unseen.part == "load" for unseen in story.unseen)
    if pod.load_missing is not None and pod.ready and not told_once:
        yield f"its /metrics: {pod.load_missing}"


def _note(name: str, said: str) -> RenderableType:
    return Padding(Text.assemble((f"{name}: ", DIM), words.printable(said)), (0, 0, 0, 2))


def _pod_style(pod: doc.Pod) -> str:
    if pod.state == "Ready":
        return GOOD
    return BUSY if pod.state in _BUSY_STATES else BAD


def _decisions(story: doc.Document, now: float) -> Table:
    table = _table("SCALED", "AGO", "WHY", wraps="WHY")
    for decision in story.scaling.decisions if story.scaling else ():
        change = f"{decision.from_replicas} -> {decision.to_replicas}"
        why = _foreign(decision.reason)
        inputs = ", ".join(f"{name} {value}" for name, value in decision.inputs.items())
        why.append(f" ({words.printable(inputs)})" if inputs else "", DIM)
        table.add_row(change, words.since(decision.time, now), why)
    return table


def _events(story: doc.Document, now: float) -> Table:
    table = _table("EVENT", "AGO", "MESSAGE", wraps="MESSAGE")
    for event in story.events:
        times = f" ({event.count} times)" if event.count > 1 else ""
        own = event.object.partition("/")[2] == story.name
        about = "" if own else f"{event.object}: "
        style = BUSY if event.type == "Warning" else ""
        ago = words.since(event.time, now)
        said = _foreign(f"{about}{event.message}{times}")
        table.add_row(Text(words.printable(event.reason), style), ago, said)
    return table


def _unseen(story: doc.Document) -> Table:
    table = _table("NOT SHOWN", "WHY", wraps="WHY")
    for unseen in story.unseen:
        table.add_row(unseen.part, _foreign(unseen.why))
    return table


def _foreign(text: str) -> Text:
    return Text(words.printable(text), overflow="fold")
