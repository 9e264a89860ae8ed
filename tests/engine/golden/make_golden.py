"""Write golden.json: what transformers says in fp32, for the engine to be held against.

    python tests/engine/golden/make_golden.py MODEL_DIR

For each of prompts.json: its token ids, 64 greedy tokens (one sequence at a time, end-of-sequence
ignored), and at each of them the gap between the two largest logits. Run it again only when the
prompts change.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

NUM_TOKENS = 64
HERE = Path(__file__).parent


def greedy(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], list[float]]:
    """NUM_TOKENS greedy tokens after `prompt`, and the top-2 logit gap at each."""
    tokens: list[int] = []
    gaps: list[float] = []
    cache, ids = None, prompt
    for _ in range(NUM_TOKENS):
        answer = model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
        cache = answer.past_key_values
        top = answer.logits[0, -1].topk(2)
        ids = [int(top.indices[0])]
        tokens += ids
        gaps.append(round(float(top.values[0] - top.values[1]), 7))
    return tokens, gaps


@torch.inference_mode()
def main(model_dir: Path) -> None:
    """Generate and write golden.json beside this file."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(model_dir / "tokenizer.json"))
    golden = []
    for entry in json.loads((HERE / "prompts.json").read_text()):
        name, text = entry["name"], entry["text"]
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        tokens, gaps = greedy(model, prompt)
        golden.append({"name": name, "prompt": prompt, "tokens": tokens, "gaps": gaps})
        sys.stderr.write(f"{name}: {len(prompt)} tokens in, {tokenizer.decode(tokens)[:60]!r}\n")
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in golden)
    (HERE / "golden.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
