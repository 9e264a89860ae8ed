"""The question to the engine's memory plan: key, memory, and the claim's size from its answer."""

from typing import Any

import pytest

from quire_operator import api, memory_plan, pods
from quire_operator.fetch_environment import Network
from quire_operator.memory_plan import GIBIBYTE, MEBIBYTE, Request
from quire_operator.names import Key
from quire_operator.values import quantity
from quire_operator.views import GpuNode

CHAT = Key("default", "chat")
LABEL = "nvidia.com/gpu.memory"


def spec(**given: Any) -> api.Spec:
    return api.decode_spec({"model": {"uri": "hf://org/model"}, **given})


def ask(of: api.Spec, *nodes: GpuNode) -> Request:
    template = pods.engine_template(CHAT, of, "0" * 8, "engine:v1", Network())
    return memory_plan.request(of, template, nodes)


def node(mebibytes: int, **labels: str) -> GpuNode:
    return GpuNode(f"node-{mebibytes}", labels, mebibytes)


@pytest.mark.parametrize(
    "other",
    [
        {"model": {"uri": "hf://org/other"}},
        {"model": {"uri": "hf://org/model", "revision": "v2"}},
        {"engine": {"maxModelLen": 512}},
        {"engine": {"extraArgs": ["--block-size", "32"]}},
        {"resources": {"gpuMemory": "24Gi"}},
        {"resources": {"gpus": 2}},
        {"resources": {"memory": "24Gi"}},
    ],
)
def test_another_question_has_another_key(other: dict[str, Any]) -> None:
    assert ask(spec(**other)).key != ask(spec()).key


@pytest.mark.parametrize(
    "same",
    [
        {"engine": {"image": "engine:v2"}},
        {"replicas": 3},
        {"resources": {"cpu": 2}},
        {"cache": {"size": "5Gi"}},
        {"model": {"uri": "hf://org/model", "credentialsSecret": "token"}},
        {"scaling": {"mode": "builtin"}},
    ],
)
def test_what_changes_no_answer_changes_no_key(same: dict[str, Any]) -> None:
    assert ask(spec(**same)).key == ask(spec()).key


def test_another_memory_changes_the_keys_second_part_only() -> None:
    small, large = ask(spec(), node(16384)), ask(spec(), node(81559))
    assert small.key != large.key
    assert memory_plan.content_of(small.key) == memory_plan.content_of(large.key)
    assert memory_plan.content_of(small.key) == memory_plan.content(spec())


def test_the_largest_gpu_that_the_pod_may_go_to_counts() -> None:
    nodes = (node(16384, pool="a"), node(24576, pool="a"), node(81559, pool="b"))
    assert ask(spec(), *nodes).memory.num_bytes == 81559 * MEBIBYTE
    picky = spec(podTemplate={"spec": {"nodeSelector": {"pool": "a"}}})
    assert ask(picky, *nodes).memory.num_bytes == 24576 * MEBIBYTE
    nowhere = spec(podTemplate={"spec": {"nodeSelector": {"pool": "c"}}})
    assert ask(nowhere, *nodes).memory.num_bytes is None


def test_what_is_given_counts_more_than_labels() -> None:
    given = spec(resources={"gpuMemory": "16Gi"})
    assert ask(given, node(81559)).memory.num_bytes == 16 * GIBIBYTE
    assert not memory_plan.asks_nodes(given)


def test_unknown_memory_says_what_would_help() -> None:
    memory = ask(spec()).memory
    assert memory.num_bytes is None
    assert LABEL in memory.unknown
    assert "resources.gpuMemory" in memory.unknown
    slice_of = spec(resources={"gpuResource": "nvidia.com/mig-1g.10gb"})
    assert "nvidia.com/mig-1g.10gb.memory" in ask(slice_of).memory.unknown
    assert "resources.memory" in ask(spec(resources={"gpus": 0})).memory.unknown


@pytest.mark.parametrize(
    "given",
    [
        {"resources": {"gpus": 0, "memory": "3Gi"}},
        {"resources": {"gpus": 1, "memory": "3Gi"}, "engine": {"extraArgs": ["--device", "cpu"]}},
        {"resources": {"memory": "3Gi"}, "engine": {"extraArgs": ["--device=cpu"]}},
        {
            "resources": {"gpus": 0, "memory": "9Gi"},
            "podTemplate": {
                "spec": {
                    "containers": [{"name": "engine", "resources": {"limits": {"memory": "3Gi"}}}]
                }
            },
        },
    ],
)
def test_on_a_cpu_the_containers_limit_is_the_memory(given: dict[str, Any]) -> None:
    memory = ask(spec(**given), node(81559)).memory
    assert (memory.num_bytes, memory.on_gpu) == (3 * GIBIBYTE, False)


@pytest.mark.parametrize(
    ("num_bytes", "size"), [(0, "1Gi"), (272_000_000, "1Gi"), (16_100_000_000, "17Gi")]
)
def test_a_claim_has_room_for_the_files_and_a_file_systems_own(num_bytes: int, size: str) -> None:
    assert memory_plan.claim_size(num_bytes) == size
    assert (quantity(size) or 0) >= num_bytes * 1.1
