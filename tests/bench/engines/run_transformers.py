"""transformers' generate: `run_transformers.py MODEL NUM_THREADS DTYPE`."""

import sys

import torch
import transformers
from channel import answer_requests, open_channel


def main() -> None:
    channel = open_channel()
    model, num_threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(num_threads))
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, dtype)
    ).eval()

    @torch.inference_mode()
    def run(prompts: list[list[int]], answer_len: int) -> None:
        ids = torch.tensor(prompts)
        answer = peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=answer_len,
            max_new_tokens=answer_len,
            pad_token_id=0,
        )
        assert answer.shape == (len(prompts), len(prompts[0]) + answer_len)

    version = f"{transformers.__version__}, torch {torch.__version__}"
    build = f"generate, {dtype}, {torch.backends.cpu.get_cpu_capability()}"
    answer_requests(channel, {"version": version, "build": build}, run)


if __name__ == "__main__":
    main()
