"""The /metrics page of a simulated engine, in the real one's names.

The scaler's own parser reads it, so that what counts as missing, stale or begun anew is decided in
one place for both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate

from quire_operator.simulator.engine_model import TTFT_BOUNDS, EngineModel

_TTFT = "vllm:time_to_first_token_seconds"


def page(engine: EngineModel, now: float) -> bytes:
    """As far as a scaler may want it. The engine has been advanced to `now`."""
    return "".join(f"{line}\n" for line in _lines(engine, now)).encode()


def _lines(engine: EngineModel, now: float) -> Iterator[str]:
    yield f"process_start_time_seconds {engine.started}"
    yield f"quire_metrics_time_seconds {now}"
    yield f"quire_max_num_seqs {engine.max_num_seqs}"
    yield f"vllm:num_requests_running {engine.num_running}"
    yield f"vllm:num_requests_waiting {engine.num_waiting}"
    yield f"vllm:kv_cache_usage_perc {engine.kv_utilization}"
    yield f"vllm:prompt_tokens_total {engine.num_prompt_tokens}"
    yield f"vllm:generation_tokens_total {engine.num_generated_tokens}"
    yield f"vllm:num_preemptions_total {engine.num_preemptions}"
    yield f'vllm:request_success_total{{finished_reason="stop"}} {engine.num_finished}'
    for bound, total in zip(TTFT_BOUNDS, accumulate(engine.ttft_counts), strict=True):
        le = "+Inf" if bound == math.inf else float(bound)
        yield f'{_TTFT}_bucket{{le="{le}"}} {total}'
    yield f"{_TTFT}_count {sum(engine.ttft_counts)}"
    yield f"{_TTFT}_sum {engine.ttft_sum}"
