"""The wire between API and core process."""

import gc

import msgspec
import pytest

from quire_engine.messages import CoreStats, FromCore, Output, RequestId, StepOutputs, TokenLogprobs

STATS = CoreStats(
    num_running=1, num_waiting=0, kv_cache_usage=0.5, num_preemptions=0, prefix_cache_queries=1,
    prefix_cache_hits=0, prompt_tokens=1, generation_tokens=1, step_tokens=1,
)  # fmt: skip
LOGPROBS = TokenLogprobs(chosen=-0.5, top_token_ids=(3, 4), top_logprobs=(-0.5, -1.5))
OUTPUTS = (
    Output(request_id=RequestId("plain"), token_ids=(3,)),
    Output(request_id=RequestId("ended"), token_ids=(3, 2), finish_reason="stop",
           stop_token_id=2, num_cached_tokens=16, logprobs=(LOGPROBS, LOGPROBS)),
    Output(request_id=RequestId("refused"), token_ids=(), finish_reason="error", error="too long"),
)  # fmt: skip


def test_a_step_comes_out_of_the_wire_as_it_went_in() -> None:
    step = StepOutputs(outputs=OUTPUTS, stats=STATS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(step), type=FromCore) == step


@pytest.mark.parametrize("output", [*OUTPUTS, LOGPROBS])
def test_what_there_is_one_of_a_token_is_nothing_to_the_garbage_collector(output: object) -> None:
    assert not gc.is_tracked(output)
