"""Prometheus metrics in vLLM's names, so that its dashboards and recipes work; `quire_*` beside
them.

Gauges and the core's counters are read when they are scraped, from the client's view of the core:
they are right between steps too. Differences from vLLM, on purpose: buckets of queue and
inter-token time begin at 1 ms; waiting includes what the core has not seen yet; recomputation after
preemption is in no cache figure.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from quire_engine.messages import CoreReady, CoreStats

LABELS = ("model_name", "engine")
ENGINE = "0"  # one core process a server

TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5,
                10, 20, 40, 80, 160, 640, 2560)  # fmt: skip
ITL_BUCKETS = (0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
               0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40, 80)  # fmt: skip
QUEUE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5,
                 5, 10, 15, 20, 30, 60, 120, 240, 480, 960)  # fmt: skip
E2E_BUCKETS = (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60,
               120, 240, 480, 960, 1920, 7680)  # fmt: skip
STEP_TOKEN_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

FINISH_REASONS = ("stop", "length", "abort", "error")
EWMA_WEIGHT = 0.1  # of a new request in the mean that Retry-After is computed from


class CoreView(Protocol):
    """What a scrape reads of the core."""

    stats: CoreStats
    ready: CoreReady | None

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    num_queued_tokens: int


class Metrics:
    """All of a server's metrics, in a registry of their own. `wall`: epoch seconds."""

    def __init__(self, model_name: str, wall: Callable[[], float] = time.time) -> None:
        # `_created` series are a third of the page, and nobody reads them
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._model_name = model_name
        self._wall = wall
        self.registry = CollectorRegistry()
        self.mean_e2e_seconds = 0.0
        self.mean_ttft_seconds = 0.0
        labels = (model_name, ENGINE)
        ProcessCollector(registry=self.registry)
        self.registry.register(_PageTime(wall))
        self._ttft = self._histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS
        )
        self._itl = self._histogram(
            "vllm:inter_token_latency_seconds", "Between two tokens of a sequence.", ITL_BUCKETS
        )
        self._e2e = self._histogram(
            "vllm:e2e_request_latency_seconds", "Arrival to last token.", E2E_BUCKETS
        )
        self._queue = self._histogram(
            "vllm:request_queue_time_seconds",
            "In the core's queue, to the first step.",
            QUEUE_BUCKETS,
        )
        self._step_tokens = self._histogram(
            "quire_step_tokens", "Tokens in one step's batch.", STEP_TOKEN_BUCKETS
        )
        success = Counter(
            "vllm:request_success",
            "Sequences ended, by why.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self._ended = {reason: success.labels(*labels, reason) for reason in FINISH_REASONS}
        self._aborted = Counter(
            "quire_requests_aborted",
            "Sequences aborted: the client left, or the drain's time was over.",
            LABELS,
            registry=self.registry,
        ).labels(*labels)

    def _histogram(self, name: str, what: str, buckets: Sequence[float]) -> "_Histogram":
        histogram = _Histogram(name, what, (self._model_name, ENGINE), buckets)
        self.registry.register(histogram)
        return histogram

    def watch(self, core: CoreView, num_adapters: int = 0) -> None:
        """Export the core's state from now on."""
        self.registry.register(_CoreCollector(core, self._model_name))
        if num_adapters:
            self.registry.register(_AdapterCollector(core, num_adapters, self._wall))

    def observe_step(self, stats: CoreStats) -> None:
        """One step's report."""
        if stats.step_tokens:
            self._step_tokens.observe(stats.step_tokens)
        for seconds in stats.queue_seconds:
            self._queue.observe(seconds)

    def observe_tokens(
        self, count: int, now: float, arrived: float, last_token: float | None
    ) -> None:
        """`count` tokens of one sequence came at once; several share the time since the last."""
        if last_token is None:
            self._ttft.observe(now - arrived)
            self.mean_ttft_seconds = _moved(self.mean_ttft_seconds, now - arrived)
        else:
            self._itl.observe((now - last_token) / count, count)

    def observe_end(self, reason: str, e2e_seconds: float) -> None:
        """A sequence ended."""
        self._ended[reason].inc()
        if reason == "abort":
            self._aborted.inc()
        elif reason != "error":
            self._e2e.observe(e2e_seconds)
            self.mean_e2e_seconds = _moved(self.mean_e2e_seconds, e2e_seconds)

    def observe_startup(self, seconds_by_phase: dict[str, float]) -> None:
        """Start-up, once."""
        self.registry.register(_StartupCollector(seconds_by_phase))

    def exposition(self) -> bytes:
        """The text that /metrics answers."""
        return generate_latest(self.registry)


def _moved(mean: float, value: float) -> float:
    mean = mean or value
    return mean + EWMA_WEIGHT * (value - mean)


class _Histogram(Collector):
    """One series. prometheus_client's own takes a lock and 6 us an observation, of which there is
    one a token; this one takes a tenth, and is for the event loop's thread alone.
    """

    def __init__(
        self, name: str, what: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._name = name
        self._what = what
        self._labels = labels
        self._buckets = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """`count` times `value`."""
        self._counts[bisect_left(self._buckets, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._what, labels=LABELS)
        total, cumulative = 0, list[tuple[str, float]]()
        for edge, count in zip((*self._buckets, inf), self._counts, strict=True):
            total += count
            cumulative.append(("+Inf" if edge == inf else str(float(edge)), total))
        family.add_metric(self._labels, cumulative, self._sum)
        yield family


class _PageTime(Collector):
    """When the page was made. A proxy that repeats an old page has sound numbers and no use; this
    one does not move then, and a scaler can tell."""

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "quire_metrics_time_seconds", "When this page was made, epoch seconds.", self._wall()
        )


class _StartupCollector(Collector):
    def __init__(self, seconds_by_phase: dict[str, float]) -> None:
        self._seconds_by_phase = seconds_by_phase

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "quire_startup_seconds",
            "Seconds of start-up: command, imports, plan, weights, kv_cache, warmup and verify "
            "follow one another; api and tokenizer run beside them; total is from exec to ready.",
            labels=["phase"],
        )
        for phase, seconds in self._seconds_by_phase.items():
            family.add_metric([phase], seconds)
        yield family


class _AdapterCollector(Collector):
    """vLLM's, which the Gateway API's inference extension routes by: names in labels, the time as
    value."""

    def __init__(self, core: CoreView, num_adapters: int, wall: Callable[[], float]) -> None:
        self._core = core
        self._num_adapters = num_adapters
        self._wall = wall

    def collect(self) -> Iterator[Metric]:
        labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "LoRA adapters of the requests there are.", labels=labels
        )
        stats = self._core.stats
        adapters = (",".join(stats.waiting_adapters), ",".join(stats.running_adapters))
        family.add_metric([str(self._num_adapters), *adapters], self._wall())
        yield family


class _CoreCollector(Collector):
    """Reads the core's state when it is scraped."""

    def __init__(self, core: CoreView, model_name: str) -> None:
        self._core = core
        self._labels = [model_name, ENGINE]

    def collect(self) -> Iterator[Metric]:
        stats = self._core.stats
        yield self._gauge(
            "vllm:num_requests_running", "Sequences in the last step.", self._core.num_running
        )
        yield self._gauge(
            "vllm:num_requests_waiting", "Sequences that do not run yet.", self._core.num_waiting
        )
        yield self._gauge(
            "quire_queued_prompt_tokens",
            "Prompt tokens whose answers' first tokens are still to come.",
            self._core.num_queued_tokens,
        )
        yield self._gauge(
            "vllm:kv_cache_usage_perc", "Blocks held by sequences, 0 to 1.", stats.kv_cache_usage
        )
        yield self._gauge("quire_kv_blocks_free", "Blocks that can be had.", stats.num_free_blocks)
        for name, what, value in (
            ("vllm:prompt_tokens", "Prompt tokens computed or cached.", stats.prompt_tokens),
            ("vllm:generation_tokens", "Tokens generated.", stats.generation_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found.", stats.prefix_cache_hits),
            (
                "vllm:num_preemptions",
                "Sequences put back for want of blocks.",
                stats.num_preemptions,
            ),
        ):
            counter = CounterMetricFamily(name, what, labels=LABELS)
            counter.add_metric(self._labels, value)
            yield counter
        ready = self._core.ready
        if ready is not None:
            # The operator judges by it whether one replica less could hold what runs.
            yield self._gauge("quire_max_num_seqs", "Sequences in a step.", ready.max_num_seqs)
            yield self._cache_config(ready)

    def _gauge(self, name: str, what: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, what, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _cache_config(self, ready: CoreReady) -> GaugeMetricFamily:
        labels = (*LABELS, "block_size", "num_gpu_blocks", "kv_cache_bytes", "cache_dtype")
        family = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=labels)
        values = [ready.block_size, ready.num_blocks, ready.kv_cache_bytes, ready.dtype]
        family.add_metric([*self._labels, *map(str, values)], 1)
        return family
