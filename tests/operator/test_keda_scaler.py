"""A real gRPC client against the scaler: what KEDA asks, and what it is told."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from quire_operator import externalscaler_pb2 as pb
from quire_operator import keda_scaler
from quire_operator.api import decode_spec
from quire_operator.errors import QuireError
from quire_operator.keda_scaler import SERVICE, Activity
from quire_operator.names import Key
from quire_operator.readings import Reading, Readings
from quire_operator.world import Snapshot

CHAT = Key("default", "chat")
REF = pb.ScaledObjectRef(name="chat", namespace="default")
SOURCES = Path(keda_scaler.__file__).parent


def snapshot(**changes: Any) -> Snapshot:
    scaling = {"mode": "keda", "idleSecondsToZero": 60}
    spec = decode_spec({"model": {"uri": "hf://org/model"}, "scaling": scaling})
    view = Snapshot(
        key=CHAT,
        spec=spec,
        replicas=2,
        ready_pods=(),
        pending=0,
        unschedulable=0,
        deleting=False,
        gateway_ready=True,
    )
    return replace(view, **changes)


def reading(**changes: Any) -> Reading:
    known = Reading(
        at=100.0,
        wall=1_700_000_000.0,
        ready=2,
        complete=True,
        waiting=3.0,
        running=0.0,
        kv_cache_utilization=0.5,
        ttft_p95_seconds=0.25,
        idle=False,
    )
    return replace(known, **changes)


@dataclass
class Rig:
    """An operator's knowledge, its scaler, and a client of it."""

    views: dict[Key, Snapshot] = field(default_factory=lambda: {CHAT: snapshot()})
    readings: Readings = field(default_factory=lambda: Readings(gap_seconds=1000.0))
    now: float = 101.0
    channel: Any = None

    def __post_init__(self) -> None:
        self.activity = Activity(self, self.readings, 5.0, clock=lambda: self.now)
        self.readings.put(CHAT, reading())

    def snapshot(self, key: Key) -> Snapshot | None:
        return self.views.get(key)

    def read(self, idle_since: float | None = None, **changes: Any) -> None:
        self.readings.forget(CHAT)
        if idle_since is not None:
            self.readings.put(CHAT, reading(at=idle_since, idle=True))
        self.readings.put(CHAT, reading(idle=idle_since is not None, **changes))

    def set(self, **changes: Any) -> None:
        self.views[CHAT] = snapshot(**changes)

    async def ask(self, method: str, request: Any, answer: Any) -> Any:
        call = self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=10)

    async def is_active(self) -> bool:
        return bool((await self.ask("IsActive", REF, pb.IsActiveResponse)).result)

    async def metric(self, name: str) -> float:
        request = pb.GetMetricsRequest(scaledObjectRef=REF, metricName=name)
        (value,) = (await self.ask("GetMetrics", request, pb.GetMetricsResponse)).metricValues
        assert value.metricName == name
        return float(value.metricValueFloat)

    def stream(self) -> Any:
        call = self.channel.unary_stream(
            f"/{SERVICE}/StreamIsActive",
            request_serializer=pb.ScaledObjectRef.SerializeToString,
            response_deserializer=pb.IsActiveResponse.FromString,
        )
        return call(REF, timeout=10)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    made = Rig()
    server, port = keda_scaler.server(made.activity, 0, "127.0.0.1")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        made.channel = channel
        yield made
    await server.stop(0)


def code(error: pytest.ExceptionInfo[grpc.aio.AioRpcError]) -> grpc.StatusCode:
    return error.value.code()  # type: ignore[no-any-return]


# ---- numbers ----


async def test_a_complete_reading_is_answered(rig: Rig) -> None:
    assert await rig.metric("quire_queue_depth") == 3
    assert await rig.metric("quire_kv_cache_utilization") == 0.5
    assert await rig.metric("quire_ttft_p95_seconds") == 0.25


@pytest.mark.parametrize("changes", [{"complete": False}, {"waiting": None}, {"at": 80.0}], ids=str)
async def test_anything_less_is_unavailable(rig: Rig, changes: dict[str, Any]) -> None:
    rig.read(**changes)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.metric("quire_queue_depth")
    assert code(error) is grpc.StatusCode.UNAVAILABLE


async def test_at_zero_replicas_there_is_nothing_to_measure(rig: Rig) -> None:
    """An error would count as a failure of KEDA's, for as long as the service sleeps."""
    rig.set(replicas=0)
    rig.readings.forget(CHAT)
    assert await rig.metric("quire_queue_depth") == 0


async def test_a_service_that_wakes_is_unavailable_until_a_pod_is_read(rig: Rig) -> None:
    rig.set(replicas=1, activated=True)
    rig.readings.forget(CHAT)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.metric("quire_queue_depth")
    assert code(error) is grpc.StatusCode.UNAVAILABLE


async def test_who_is_unknown_is_not_found(rig: Rig) -> None:
    rig.views.clear()
    for method in (rig.is_active(), rig.metric("quire_queue_depth")):
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await method
        assert code(error) is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.stream().read()
    assert code(error) is grpc.StatusCode.NOT_FOUND


async def test_the_specs_are_those_of_the_trigger(rig: Rig) -> None:
    metadata = {"scalerAddress": "x:1", "quire_queue_depth": "4", "quire_activation": "1"}
    ref = pb.ScaledObjectRef(name="chat", namespace="default", scalerMetadata=metadata)
    answer = await rig.ask("GetMetricSpec", ref, pb.GetMetricSpecResponse)
    found = {spec.metricName: spec.targetSizeFloat for spec in answer.metricSpecs}
    assert found == {"quire_queue_depth": 4.0, "quire_activation": 1.0}


@pytest.mark.parametrize("metadata", [{}, {"quire_queue_depth": "many"}], ids=str)
async def test_a_trigger_of_no_sense_is_refused(rig: Rig, metadata: dict[str, str]) -> None:
    ref = pb.ScaledObjectRef(name="chat", namespace="default", scalerMetadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await rig.ask("GetMetricSpec", ref, pb.GetMetricSpecResponse)
    assert code(error) is grpc.StatusCode.INVALID_ARGUMENT


# ---- activity ----

IDLE = {"idle_since": 41.0}  # for exactly the 60 s that are asked for


@pytest.mark.parametrize(
    ("view", "read", "active"),
    [
        ({}, {}, True),
        ({}, IDLE, False),
        ({}, {"idle_since": 41.5}, True),
        ({}, {**IDLE, "complete": False}, True),
        ({}, {**IDLE, "at": 80.0}, True),
        ({"gateway_ready": False}, IDLE, True),
        ({"activated": True}, IDLE, True),
        ({"replicas": 0}, {}, False),
        ({"replicas": 0, "activated": True}, {}, True),
    ],
    ids=str,
)
async def test_it_may_sleep_only_when_known_to_be_idle(
    rig: Rig, view: dict[str, Any], read: dict[str, Any], active: bool
) -> None:
    rig.set(**view)
    rig.read(**read)
    assert await rig.is_active() is active
    assert await rig.metric("quire_activation") == float(active)


async def test_without_idle_seconds_it_is_always_active(rig: Rig) -> None:
    spec = decode_spec({"model": {"uri": "hf://org/model"}, "scaling": {"mode": "keda"}})
    rig.set(spec=spec)
    rig.read(**IDLE)
    assert await rig.is_active()


async def test_nothing_known_is_not_idle(rig: Rig) -> None:
    rig.readings.forget(CHAT)
    assert await rig.is_active()


async def test_an_activation_is_pushed(rig: Rig) -> None:
    rig.set(replicas=0)
    stream = rig.stream()
    assert (await stream.read()).result is False
    rig.set(replicas=0, activated=True)
    rig.activity.activated(CHAT)
    async with asyncio.timeout(2):  # at once, not when the stream looks by itself
        assert (await stream.read()).result is True
    stream.cancel()


async def test_a_service_that_nobody_lifts_is_pushed_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keda_scaler, "RECHECK_SECONDS", 0.01)
    rig.set(replicas=0, activated=True)
    stream = rig.stream()
    assert [(await stream.read()).result for _ in range(3)] == [True] * 3
    rig.set(replicas=1, activated=False)
    rig.read(**IDLE)
    while (await stream.read()).result:
        pass
    stream.cancel()


async def test_a_stream_that_has_ended_leaves_nothing(rig: Rig) -> None:
    stream = rig.stream()
    await stream.read()
    assert rig.activity._waiting
    stream.cancel()
    async with asyncio.timeout(5):
        while rig.activity._waiting:
            await asyncio.sleep(0.01)


# ---- the interface ----


def test_the_messages_are_what_the_proto_says(tmp_path: Path) -> None:
    """`make proto` writes them anew."""
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(SOURCES)]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, *outputs, "externalscaler.proto"], check=True)
    for written in tmp_path.iterdir():
        assert (SOURCES / written.name).read_text() == written.read_text(), written.name
    assert len(list(tmp_path.iterdir())) == 2


def test_the_numbers_are_kedas() -> None:
    """As KEDA 2.21 has them: a field that moves is read as another."""
    numbers = {
        message.name: {part.name: part.number for part in message.fields}
        for message in pb.DESCRIPTOR.message_types_by_name.values()
    }
    assert numbers == {
        "ScaledObjectRef": {"name": 1, "namespace": 2, "scalerMetadata": 3},
        "IsActiveResponse": {"result": 1},
        "GetMetricSpecResponse": {"metricSpecs": 1},
        "MetricSpec": {"metricName": 1, "targetSize": 2, "targetSizeFloat": 3},
        "GetMetricsRequest": {"scaledObjectRef": 1, "metricName": 2},
        "GetMetricsResponse": {"metricValues": 1},
        "MetricValue": {"metricName": 1, "metricValue": 2, "metricValueFloat": 3},
    }
    assert list(pb.DESCRIPTOR.services_by_name["ExternalScaler"].methods_by_name) == [
        "IsActive",
        "StreamIsActive",
        "GetMetricSpec",
        "GetMetrics",
    ]


async def test_a_port_that_is_taken_is_told(rig: Rig) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(QuireError, match="cannot listen on port"):
            keda_scaler.server(rig.activity, taken.getsockname()[1], "127.0.0.1")


def test_an_operator_without_it_does_not_pay_for_it() -> None:
    code = "import sys, quire_operator.main; assert 'grpc' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
