"""How long the core's progress counter stands still at most while a long prompt is read.

    python tests/bench/bench_standstill.py [--model DIR] [--context 8192]
        [--max-num-batched-tokens N]
    python tests/bench/bench_standstill.py --shape 8b [--context 8192]

/ready calls a core hung after --ready-timeout without a move, so no healthy kernel call may take
that long. One prompt of the whole context, in chunks of the step's budget, and one token more; a
thread looks at the counter each millisecond. `--shape 8b` is one layer of Llama-3.1-8B, embedding
and head included, with random weights: all its layers are alike, so that its longest call is the
model's.
"""

import argparse
import json
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from processor import processor

import quire_kernels as kernels
from quire_engine.config import EngineConfig
from quire_engine.engine import Engine
from quire_engine.machine import num_cpus
from quire_engine.messages import AddRequest, CoreReady, RequestId, SamplingParams
from quire_engine.progress import ProgressFile
from quire_engine.start import start_engine

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
LOOK_SECONDS = 0.001
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@dataclass
class Watch:
    """Looks at the counter until told to stop."""

    progress: ProgressFile
    longest_seconds: float = 0.0
    num_moves: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        counter, moved = self.progress.read().counter, time.perf_counter()
        while not self._over.wait(LOOK_SECONDS):
            now, seen = time.perf_counter(), self.progress.read().counter
            if seen != counter:
                self.longest_seconds = max(self.longest_seconds, now - moved)
                self.num_moves += seen - counter
                counter, moved = seen, now

    def stop(self) -> None:
        self._over.set()


def measure(config: EngineConfig, context: int, folder: Path) -> tuple[Watch, float, CoreReady]:
    """Reads a prompt of `context` tokens less two; what was seen, in how many seconds."""
    progress = ProgressFile.create(folder / "progress")
    kernels.set_progress_counter(progress.counter_address)
    try:
        engine, ready = start_engine(config, progress.bump)
        watch = Watch(progress)
        looking = threading.Thread(target=watch.look)
        _add(engine, ready, context)
        looking.start()
        begun = time.perf_counter()
        while engine.num_pending:
            progress.mark(engine.num_pending)  # as the core's loop does
            engine.step()
        seconds = time.perf_counter() - begun
        watch.stop()
        looking.join()
    finally:
        kernels.set_progress_counter(None)
    return watch, seconds, ready


def _add(engine: Engine, ready: CoreReady, context: int) -> None:
    prompt = tuple(number % ready.vocab_size for number in range(1, context - 1))
    sampling = SamplingParams(temperature=0, max_tokens=1)
    engine.add_request(
        AddRequest(request_id=RequestId("long"), prompt_token_ids=prompt, sampling=sampling)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--shape", choices=["8b"])
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--max-num-batched-tokens", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model
        if options.shape is not None:
            model = folder
            (folder / "config.json").write_text(json.dumps(LLAMA_8B))
        config = EngineConfig(
            model=str(model),
            device="cpu",
            load_format="dummy" if options.shape else "auto",
            max_model_len=options.context,
            max_num_batched_tokens=options.max_num_batched_tokens,
        )
        watch, seconds, ready = measure(config, options.context, folder)
    print(
        f"{options.shape or model.name}: longest standstill {watch.longest_seconds:.3f} s, "
        f"{options.context - 2} tokens in {seconds:.1f} s, {watch.num_moves} moves, chunks of "
        f"{ready.max_num_batched_tokens}, {ready.kernels}, {num_cpus()} cores, {processor()}"
    )


if __name__ == "__main__":
    main()
