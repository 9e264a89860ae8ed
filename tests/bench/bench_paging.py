"""What paging is for: full memory, more sessions, and a system prompt that is read once.

    python tests/bench/bench_paging.py [--seed 0] [--rounds 8] [--model DIR] [--results DIR]

Saturation: the real scheduler and block manager with tokens out of a hat, for which sequence gets
which block does not depend on them. More requests wait than ever fit; lengths are lognormal about
ShareGPT's means (lengths.py), drawn from the seed, cut to the context. Held against what contiguous
reservation gives in the same memory: a session for every `context` slots. Warm-up and the end, when
fewer wait, are left out.

Shared prompt: two engines over the real model in one process, one without the prefix cache, in
turns; each request is the same system prompt and a question of its own. Time to first token is from
`add_request` to its first output. The first request of each engine, which nobody was before, is
left out of the times and counts in the hit rate.
"""

import argparse
import json
import os
import random
import statistics
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from lengths import CONTEXT, MEAN_ANSWER, MEAN_PROMPT, length
from matplotlib import pyplot
from processor import processor

from quire_engine.batch import Batch
from quire_engine.block_manager import BlockManager
from quire_engine.config import EngineConfig
from quire_engine.engine import Engine
from quire_engine.messages import AddRequest, RequestId, SamplingParams
from quire_engine.scheduler import Scheduler
from quire_engine.sequence import Sequence
from quire_engine.start import start_engine

MODEL = Path("~/.cache/quire/models/SmolLM2-135M-Instruct").expanduser()
RESULTS = Path(__file__).parent / "results"
BLOCK_SIZE, NUM_BLOCKS = 16, 2048
NUM_REQUESTS, MAX_NUM_SEQS, TOKEN_BUDGET = 1500, 256, 512
SYSTEM_PROMPT, QUESTION, ANSWER = 512, 32, 4


@dataclass(frozen=True)
class Step:
    """What a step left behind."""

    num_running: int
    num_tokens: int  # whose keys and values lie in the cache
    num_slots: int  # in blocks that sequences hold

    @property
    def filled(self) -> float:
        return self.num_tokens / self.num_slots


def saturate(seed: int) -> list[Step]:
    """Steps of the scheduler while requests wait, from the first on that has no room for one."""
    chance = random.Random(seed)
    blocks = BlockManager(NUM_BLOCKS, BLOCK_SIZE, enable_prefix_caching=True)
    scheduler = Scheduler(
        blocks, max_num_seqs=MAX_NUM_SEQS, token_budget=TOKEN_BUDGET, max_model_len=CONTEXT
    )
    for number in range(NUM_REQUESTS):
        scheduler.add(_sequence(chance, number))
    steps: list[Step] = []
    is_full = False
    while scheduler.waiting:
        batch = scheduler.schedule(0.0)
        is_full = is_full or batch.num_tokens < TOKEN_BUDGET  # what waits has no room
        if is_full:
            steps.append(_seen(scheduler, batch))
        scheduler.finish_step(batch, [chance.randrange(1 << 16) for _ in batch.sampling])
    return steps


def _sequence(chance: random.Random, number: int) -> Sequence:
    prompt = tuple(chance.randrange(1 << 16) for _ in range(length(chance, MEAN_PROMPT)))
    sampling = SamplingParams(max_tokens=length(chance, MEAN_ANSWER))
    request = AddRequest(
        request_id=RequestId(str(number)), prompt_token_ids=prompt, sampling=sampling
    )
    return Sequence.of(request, 0.0)


def _seen(scheduler: Scheduler, batch: Batch) -> Step:
    """When the step has run; no prompt is like another, so that no block is shared."""
    return Step(
        num_running=len(scheduler.running),
        num_tokens=batch.num_tokens + sum(s.num_computed_tokens for s in scheduler.running),
        num_slots=scheduler.blocks.num_used_blocks * BLOCK_SIZE,
    )


class Prompted:
    """An engine whose requests share a system prompt."""

    def __init__(self, model: Path, *, cached: bool) -> None:
        config = EngineConfig(
            model=str(model), device="cpu", enable_prefix_caching=cached, max_model_len=CONTEXT,
            max_num_seqs=8, kv_cache_memory_bytes=256 << 20,
        )  # fmt: skip
        self._engine, ready = start_engine(config)
        self._vocab_size = ready.vocab_size
        self.seconds: list[float] = []

    def ask(self, chance: random.Random) -> None:
        """A request to its end; remembers how long its first token took."""
        question = tuple(chance.randrange(self._vocab_size) for _ in range(QUESTION))
        prompt = tuple(7 * n % self._vocab_size for n in range(SYSTEM_PROMPT)) + question
        begun = time.perf_counter()
        self._engine.add_request(
            AddRequest(
                request_id=RequestId(str(len(self.seconds))),
                prompt_token_ids=prompt,
                sampling=SamplingParams(temperature=0, max_tokens=ANSWER),
            )
        )
        self.seconds.append(_until_first_token(self._engine) - begun)

    @property
    def hit_rate(self) -> float:
        counters = self._engine.scheduler.counters
        return counters.prefix_cache_hits / counters.prefix_cache_queries


def _until_first_token(engine: Engine) -> float:
    """When it came; runs the request to its end."""
    came: deque[float] = deque(maxlen=ANSWER)
    while engine.num_pending:
        if engine.step().outputs:
            came.append(time.perf_counter())
    return came[0]


def share_prompt(model: Path, rounds: int, seed: int) -> dict[str, dict[str, float]]:
    """Both engines in turns."""
    chance = random.Random(seed)
    engines = {"with": Prompted(model, cached=True), "without": Prompted(model, cached=False)}
    for _ in range(rounds + 1):
        for engine in engines.values():
            engine.ask(chance)
    return {
        name: {
            "hit_rate": round(engine.hit_rate, 3),
            "ttft_ms": round(statistics.median(engine.seconds[1:]) * 1000, 1),
            "ttft_lowest_ms": round(min(engine.seconds[1:]) * 1000, 1),
            "ttft_highest_ms": round(max(engine.seconds[1:]) * 1000, 1),
        }
        for name, engine in engines.items()
    }


def draw(steps: list[Step], reserved: int, path: Path) -> None:
    """Sessions and filled slots, step by step."""
    mpl.use("Agg")
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 5))
    above.plot([step.num_running for step in steps], label="paged")
    above.axhline(reserved, color="tab:red", label=f"{CONTEXT} slots reserved for each")
    above.set_ylabel("sessions at once")
    above.set_ylim(bottom=0)
    above.legend()
    below.plot([step.filled * 100 for step in steps])
    below.axhline(95, color="tab:gray", linestyle=":")
    below.set_ylabel("slots with a token, %")
    below.set_ylim(90, 100)
    below.set_xlabel(f"step; {NUM_BLOCKS} blocks of {BLOCK_SIZE}, requests waiting")
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


def table(result: dict[str, object]) -> str:
    """The report for people."""
    slots, shared, machine = result["saturation"], result["shared_prompt"], result["machine"]
    assert isinstance(slots, dict)
    assert isinstance(shared, dict)
    assert isinstance(machine, dict)
    rows = "\n".join(
        f"| {name} | {way['hit_rate']} | {way['ttft_ms']} ({way['ttft_lowest_ms']}-"
        f"{way['ttft_highest_ms']}) |"
        for name, way in shared.items()
    )
    return f"""{machine["processor"]}, {machine["cpus"]} cores, load average {machine["load"]}

At saturation {slots["filled_percent"]} % of the allocated slots hold a token (worst step \
{slots["filled_worst_percent"]} %), and {slots["sessions"]} sessions run at once where reserving \
{CONTEXT} slots for each gives {slots["sessions_reserved"]}: {slots["ratio"]} times as many \
({NUM_BLOCKS} blocks of {BLOCK_SIZE}, {slots["steps"]} steps).

![sessions and filled slots](paging.png)

A shared system prompt of {SYSTEM_PROMPT} tokens before questions of {QUESTION}:

| prefix cache | hit rate | time to first token, ms, median (lowest-highest) |
| --- | --- | --- |
{rows}

With the cache the first token comes in {result["ttft_ratio"]} of the time.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    steps = saturate(options.seed)
    reserved = NUM_BLOCKS * BLOCK_SIZE // CONTEXT
    sessions = statistics.fmean(step.num_running for step in steps)
    load = os.getloadavg()[0]
    shared = share_prompt(options.model, options.rounds, options.seed)
    result: dict[str, object] = {
        "saturation": {
            "steps": len(steps),
            "filled_percent": round(statistics.fmean(s.filled for s in steps) * 100, 2),
            "filled_worst_percent": round(min(step.filled for step in steps) * 100, 2),
            "sessions": round(sessions, 1),
            "sessions_reserved": reserved,
            "ratio": round(sessions / reserved, 2),
        },
        "shared_prompt": shared,
        "ttft_ratio": round(shared["with"]["ttft_ms"] / shared["without"]["ttft_ms"], 3),
        "machine": {"processor": processor(), "cpus": os.cpu_count(),
                    "load": [round(load, 2), round(os.getloadavg()[0], 2)]},
    }  # fmt: skip
    (options.results / "paging.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.results / "paging.md").write_text(table(result))
    draw(steps, reserved, options.results / "paging.png")
    print(table(result))


if __name__ == "__main__":
    main()
