"""Events of Ready's turns: one each, whoever leads."""

from quire_operator import ready_events
from quire_operator.api import Condition
from quire_operator.errors import Unavailable
from quire_operator.kinds import EVENT, SERVICE_KIND
from quire_operator.names import Key
from quire_operator.testing import Rig, service_manifest


def ready(reason: str, status: str = "False", message: str = "words") -> list[Condition]:
    told = Condition(
        type="Ready",
        status=status,  # type: ignore[arg-type]
        reason=reason,
        message=message,
        observed_generation=1,
        last_transition_time="2026-11-21T10:00:00Z",
    )
    return [told]


def told(rig: Rig) -> list[tuple[str, str]]:
    """Type and reason of the events on the service."""
    events = rig.cluster.all(EVENT)
    ours = [e for e in events if e["involvedObject"]["kind"] == SERVICE_KIND.kind]
    return [(event["type"], event["reason"]) for event in ours]


def test_trouble_warns_and_what_is_on_its_way_does_not() -> None:
    for reason, kind in (("CrashLoop", "Warning"), ("Fetching", "Normal"), ("Ready", "Normal")):
        note = ready_events.note([], ready(reason))
        assert note is not None
        assert (note.type, note.reason, note.message) == (kind, reason, "words")


def test_other_words_on_the_same_reason_are_no_turn() -> None:
    assert ready_events.note(ready("Fetching"), ready("Fetching", message="1 of 2 GB")) is None


def test_the_same_reason_with_another_status_is_a_turn() -> None:
    assert ready_events.note(ready("CrashLoop", "True"), ready("CrashLoop")) is not None


def test_the_scalers_trouble_is_the_scalers_to_tell() -> None:
    assert ready_events.note(ready("Ready", "True"), ready("NoMetrics", "True")) is None
    assert ready_events.note(ready("NoMetrics", "True"), ready("Ready", "True")) is None
    note = ready_events.note(ready("NoMetrics", "True"), ready("CrashLoop"))
    assert note is not None
    assert note.reason == "CrashLoop"


async def test_a_service_that_comes_up_tells_each_step_once(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert told(rig) == [("Normal", "Fetching"), ("Normal", "Starting"), ("Normal", "Ready")]
    assert await rig.wake(chat) == []
    event = rig.cluster.all(EVENT)[-1]
    assert event["message"] == "1 of 1 replicas ready"
    service = rig.cluster.all(SERVICE_KIND)[0]
    assert event["involvedObject"]["uid"] == service["metadata"]["uid"]


async def test_a_new_operator_tells_nothing_anew(rig: Rig, chat: Key) -> None:
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    before = len(told(rig))
    other = Rig(cluster=rig.cluster)
    for body in rig.cluster.all(SERVICE_KIND):
        other._feed(SERVICE_KIND, "MODIFIED", body)
    rig.cluster.put(service_manifest(replicas=0))
    await rig.settle()
    assert told(rig)[before:] == [("Normal", "ScaledToZero")]


async def test_an_event_that_is_lost_stops_nothing(rig: Rig, chat: Key) -> None:
    rig.cluster.refuse[EVENT] = Unavailable(500, "POST events", "etcd is away")
    rig.cluster.put(service_manifest())
    await rig.bring_up(chat)
    assert rig.condition(chat).reason == "Ready"
    assert told(rig) == []
