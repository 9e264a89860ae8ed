"""Our engine in one process: `run_quire.py MODEL NUM_THREADS [QUANTIZATION]`."""

import sys
import time
from typing import cast

import torch
from channel import answer_requests, open_channel

from quire_engine.config import EngineConfig, Quantization
from quire_engine.engine import Engine
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.start import start_engine

KV_CACHE_BYTES = 512 << 20  # 32 sequences of 192 tokens take 283 MB


def run(engine: Engine, prompts: list[list[int]], answer_len: int) -> float:
    """All prompts to their ends; when the first token was there."""
    for number, prompt in enumerate(prompts):
        engine.add_request(
            AddRequest(
                request_id=RequestId(str(number)),
                prompt_token_ids=tuple(prompt),
                sampling=SamplingParams(temperature=0, max_tokens=answer_len),
            )
        )
    count, first = 0, None
    while engine.num_pending:
        count += sum(len(output.token_ids) for output in engine.step().outputs)
        if first is None and count:
            first = time.perf_counter()
    assert count == answer_len * len(prompts), f"{count} tokens"
    assert first is not None
    return first


def main() -> None:
    channel = open_channel()
    model, num_threads, *rest = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    config = EngineConfig(
        model=model,
        device="cpu",
        quantization=cast(Quantization, rest[0]) if rest else None,
        kv_cache_memory_bytes=KV_CACHE_BYTES,
    )
    engine, ready = start_engine(config)
    facts = {
        "version": "this tree",
        "build": f"kernels {ready.kernels}",
        "weight_bytes": ready.weight_bytes,
    }
    answer_requests(channel, facts, lambda *request: run(engine, *request))


if __name__ == "__main__":
    main()
