"""PromQL that yields complete numbers or none: for KEDA's `prometheus` triggers, and as recording
rules for prometheus-adapter. Pure.

A pod whose series are missing would make a sum smaller, and an autoscaler would shrink on it. So
each query ends with a gate: as many pods must show the metric as Prometheus has targets (`up`,
which stays, at 0, when a scrape fails; only a pod that is gone loses it). Two jobs that scrape one
pod count once: they share `instance`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire_operator.names import Key
from quire_operator.served_metrics import KV_CACHE, METRICS, QUEUE_DEPTH, TTFT_P95

WAITING = "vllm:num_requests_waiting"
CACHE_USAGE = "vllm:kv_cache_usage_perc"
TTFT = "vllm:time_to_first_token_seconds"
RATE_WINDOW = "2m"
"""Two samples at Prometheus' slowest usual scrape interval, 1 min."""
SERVICE = "serving_quire_dev_service"
"""Our pods' label as Prometheus spells it: by our PodMonitor, or by `labelmap`."""


def query(key: Key, metric: str) -> str:
    """One of `served_metrics.METRICS` of one service, as a number without labels."""
    pods = f'{{namespace="{key.namespace}",{SERVICE}="{key.name}"}}'
    return _Scope(pods, ()).query(metric)


def rules() -> dict[str, str]:
    """Recording rules by name: every metric of every service, with the labels `namespace` and
    `service` by which an HPA of ours selects."""
    scope = _Scope(f'{{{SERVICE}!=""}}', ("namespace", SERVICE))
    labelled = 'label_replace({}, "service", "$1", "' + SERVICE + '", "(.*)")'
    return {metric: labelled.format(scope.query(metric)) for metric in METRICS}


@dataclass(frozen=True, slots=True)
class _Scope:
    """Which pods, and the labels by which they are told apart."""

    pods: str
    by: tuple[str, ...]

    def query(self, metric: str) -> str:
        if metric == QUEUE_DEPTH:
            series = f"{WAITING}{self.pods}"
            return f"{self._over('sum', self._each(series))} and {self._gate(series)}"
        if metric == KV_CACHE:
            series = f"{CACHE_USAGE}{self.pods}"
            return f"{self._over('avg', self._each(series))} and {self._gate(series)}"
        assert metric == TTFT_P95, metric
        return self._ttft()

    def _ttft(self) -> str:
        """Without traffic the quantile is NaN, which counts as 0; with requests that wait all the
        while and get no token there is no number."""
        counts = f"rate({TTFT}_count{self.pods}[{RATE_WINDOW}])"
        buckets = self._each(f"rate({TTFT}_bucket{self.pods}[{RATE_WINDOW}])", "le")
        p95 = f"histogram_quantile(0.95, {self._over('sum', buckets, 'le')}) >= 0"
        waiting = self._over("sum", f"{WAITING}{self.pods}")
        quiet = f"({self._over('sum', counts)} == 0) and ({waiting} == 0)"
        return f"(({p95}) or ({quiet})) and {self._gate(counts)}"

    def _gate(self, series: str) -> str:
        targets = self._over("max", f"up{self.pods}", "instance")
        pods = self._over("max", series, "instance")
        return f"({self._over('count', targets)} == {self._over('count', pods)})"

    def _each(self, series: str, *labels: str) -> str:
        """Each pod's series once."""
        return self._over("max", series, "instance", "model_name", *labels)

    def _over(self, operator: str, series: str, *labels: str) -> str:
        by = ", ".join((*self.by, *labels))
        return f"{operator} by ({by}) ({series})" if by else f"{operator}({series})"
