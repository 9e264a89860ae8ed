"""PromQL for KEDA's `prometheus` triggers, of which each yields a complete number or none. Pure.

A pod whose series are missing would make a sum smaller, and KEDA would shrink on it. So each query
ends with a gate: as many pods must show the metric as Prometheus has targets (`up`, which stays, at
0, when a scrape fails; only a pod that is gone loses it). Two jobs that scrape one pod count once:
they share `instance`.
"""

from __future__ import annotations

from quire_operator.names import Key
from quire_operator.served_metrics import KV_CACHE, QUEUE_DEPTH, TTFT_P95

WAITING = "vllm:num_requests_waiting"
CACHE_USAGE = "vllm:kv_cache_usage_perc"
TTFT = "vllm:time_to_first_token_seconds"
RATE_WINDOW = "2m"
"""Two samples at Prometheus' slowest usual scrape interval, 1 min."""


def selector(key: Key) -> str:
    """The labels that Prometheus gives a service's pods: by our PodMonitor, or by `labelmap`."""
    return f'{{namespace="{key.namespace}",serving_quire_dev_service="{key.name}"}}'


def query(key: Key, metric: str) -> str:
    """The query of one of `served_metrics.METRICS`."""
    pods = selector(key)
    if metric == QUEUE_DEPTH:
        series = f"{WAITING}{pods}"
        return f"sum({_per_pod(series)}) and {_gate(pods, series)}"
    if metric == KV_CACHE:
        series = f"{CACHE_USAGE}{pods}"
        return f"avg({_per_pod(series)}) and {_gate(pods, series)}"
    assert metric == TTFT_P95, metric
    return _ttft(pods)


def _ttft(pods: str) -> str:
    """Without traffic the quantile is NaN, which counts as 0; with requests that wait all the while
    and get no token there is no number."""
    counts = f"rate({TTFT}_count{pods}[{RATE_WINDOW}])"
    buckets = f"rate({TTFT}_bucket{pods}[{RATE_WINDOW}])"
    per_pod = f"max by (instance, model_name, le) ({buckets})"
    p95 = f"histogram_quantile(0.95, sum by (le) ({per_pod})) >= 0"
    quiet = f"(sum({counts}) == 0) and (sum({WAITING}{pods}) == 0)"
    return f"(({p95}) or ({quiet})) and {_gate(pods, counts)}"


def _per_pod(series: str) -> str:
    return f"max by (instance, model_name) ({series})"


def _gate(pods: str, series: str) -> str:
    return f"(count(max by (instance) (up{pods})) == count(max by (instance) ({series})))"
