"""vLLM's names and labels, and values that agree with what was done."""

import re
import time
from typing import Any

import pytest

from quire_engine.api.metrics import Metrics
from quire_engine.messages import CoreStats

NAMES = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total", "vllm:num_preemptions_total", "vllm:cache_config_info",
    "vllm:request_success_total", "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count", "vllm:request_queue_time_seconds_count",
    "vllm:e2e_request_latency_seconds_count", "quire_startup_seconds", "quire_step_tokens_count",
    "quire_requests_aborted_total", "quire_metrics_time_seconds", "quire_max_num_seqs",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there_with_vllms_labels(server: Any, name: str) -> None:
    assert server.metric(name) >= 0
    if name.startswith("vllm:"):
        assert server.metric(name, model_name="fake", engine="0") >= 0


def test_counts_agree_with_what_was_done(server: Any) -> None:
    names = {
        "vllm:generation_tokens_total": {},
        "vllm:prompt_tokens_total": {},
        "vllm:request_success_total": {"finished_reason": "length"},
        "vllm:time_to_first_token_seconds_count": {},
        "vllm:inter_token_latency_seconds_count": {},
        "vllm:request_queue_time_seconds_count": {},
        "vllm:e2e_request_latency_seconds_count": {},
    }
    before = {name: server.metric(name, **labels) for name, labels in names.items()}
    server.post("/v1/completions", {"prompt": "hello", "max_tokens": 5, "n": 2})
    gained = {name: server.metric(name, **names[name]) - before[name] for name in names}
    assert list(gained.values()) == [10, 2, 2, 2, 8, 2, 2]


def test_a_server_without_a_request_yet_has_all_its_blocks(launch_server: Any) -> None:
    server = launch_server()
    assert server.metric("vllm:cache_config_info", num_gpu_blocks="10000") == 1
    assert server.metric("quire_kv_blocks_free") == 10_000


def test_fine_buckets_begin_at_a_millisecond(server: Any) -> None:
    text = server.get("/metrics").text
    for name in ("vllm:inter_token_latency_seconds", "vllm:request_queue_time_seconds"):
        assert re.search(rf'{name}_bucket{{[^}}]*le="0.001"', text)


def test_a_page_says_when_it_was_made(server: Any) -> None:
    before = time.time()
    first = server.metric("quire_metrics_time_seconds")
    second = server.metric("quire_metrics_time_seconds")
    assert before <= first < second <= time.time()


def test_each_page_has_its_own_time() -> None:
    metrics = Metrics("m", wall=iter([1_795_000_000.25, 1_795_000_005.5]).__next__)
    pages = [metrics.exposition().decode() for _ in range(2)]
    times = [re.search(r"^quire_metrics_time_seconds (\S+)$", page, re.M) for page in pages]
    assert [float(found[1]) for found in times if found] == [1_795_000_000.25, 1_795_000_005.5]


def test_the_seats_of_a_step_are_told(server: Any, slow_server: Any) -> None:
    """The operator's scaler reads this name, and adds the series of several engines up."""
    labels = {"model_name": "fake", "engine": "0"}
    assert server.metric("quire_max_num_seqs", **labels) == 64
    assert slow_server.metric("quire_max_num_seqs", **labels) == 2


def test_start_up_is_told_by_phase(server: Any) -> None:
    seconds = {
        phase: server.metric("quire_startup_seconds", phase=phase)
        for phase in ("command", "imports", "weights", "api", "tokenizer", "total")
    }
    assert all(value >= 0 for value in seconds.values())
    assert 0 < seconds["command"] <= seconds["api"] <= seconds["total"]


def test_several_tokens_at_once_share_the_time_between_steps() -> None:
    metrics = Metrics("m")
    metrics.observe_tokens(1, 2.0, 0.5, None)
    metrics.observe_tokens(4, 3.0, 0.5, 2.0)
    text = metrics.exposition().decode()
    labels = '{engine="0",model_name="m"}'
    assert f"vllm:time_to_first_token_seconds_sum{labels} 1.5" in text
    assert f"vllm:inter_token_latency_seconds_count{labels} 4.0" in text
    assert f"vllm:inter_token_latency_seconds_sum{labels} 1.0" in text


def test_a_report_without_a_step_is_no_step() -> None:
    metrics = Metrics("m")
    idle = CoreStats(
        num_running=0, num_waiting=0, kv_cache_usage=0, num_preemptions=0, prefix_cache_queries=0,
        prefix_cache_hits=0, prompt_tokens=0, generation_tokens=0, step_tokens=0,
    )  # fmt: skip
    metrics.observe_step(idle)
    assert 'quire_step_tokens_count{engine="0",model_name="m"} 0.0' in metrics.exposition().decode()
